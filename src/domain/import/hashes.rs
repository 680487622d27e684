//! Hashes as other systems store them: their shapes, and checking a secret against the slow ones.
//! What is read here may come from anywhere, so costs are bounded before anything is computed.
//! SHA-256: FIPS 180-4. bcrypt: Provos and Mazieres, 1999. Argon2: RFC 9106, as PHC strings.

use argon2::{
    Argon2, PasswordVerifier as _,
    password_hash::phc::{Ident, PasswordHash},
};
use base64::{
    Engine as _, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use sha2::{Digest as _, Sha256};

use crate::domain::{Invalid, audit::encode_hash, digest::Digest};

/// The longest hash that is read, in bytes.
pub const HASH_LENGTH_MAX: usize = 512;

/// The costs of bcrypt that are checked: 14 takes about a second.
const BCRYPT_COSTS: std::ops::RangeInclusive<u8> = 4..=14;
/// The most memory of Argon2, in KiB: 64 MiB.
const ARGON2_MEMORY_MAX: u32 = 64 * 1024;
const ARGON2_PASSES_MAX: u32 = 10;
const ARGON2_LANES_MAX: u32 = 16;
/// The least memory of Argon2 for each lane, in KiB: nothing can be computed with less (RFC 9106, section 3.1).
const ARGON2_LANE_MEMORY_MIN: u32 = 8;

/// With or without padding.
const LENIENT: GeneralPurposeConfig =
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
const STANDARD: GeneralPurpose = GeneralPurpose::new(&alphabet::STANDARD, LENIENT);
const URL_SAFE: GeneralPurpose = GeneralPurpose::new(&alphabet::URL_SAFE, LENIENT);

/// Reads 64 hex digits in either case, also after `\x` or `0x`.
///
/// # Errors
/// Refuses anything else.
pub fn parse_sha256_hex(text: &str) -> Result<Digest, Invalid> {
    let refused = || Invalid::new("must be 64 hex digits");
    let digits = text.strip_prefix("\\x").or_else(|| text.strip_prefix("0x")).unwrap_or(text).as_bytes();
    let (pairs, rest) = digits.as_chunks::<2>();
    let mut bytes = [0; 32];
    if pairs.len() != bytes.len() || !rest.is_empty() {
        return Err(refused());
    }
    for (byte, [high, low]) in bytes.iter_mut().zip(pairs) {
        let value = |digit: u8| char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok());
        *byte = value(*high).ok_or_else(refused)? << 4 | value(*low).ok_or_else(refused)?;
    }
    Digest::from_bytes(&bytes).ok_or_else(refused)
}

/// Reads 32 bytes in standard or URL-safe base64, with or without padding.
///
/// # Errors
/// Refuses anything else.
pub fn parse_sha256_base64(text: &str) -> Result<Digest, Invalid> {
    let engine = if text.contains(['-', '_']) { URL_SAFE } else { STANDARD };
    let bytes = engine.decode(text).ok();
    let digest = bytes.as_deref().and_then(Digest::from_bytes);
    digest.ok_or_else(|| Invalid::new("must be 32 bytes in base64"))
}

/// What a text says if it is read as a SHA-256 digest, in hex or in base64; `None` where it cannot be one.
#[must_use]
pub fn read_as_digest(text: &str) -> Option<Digest> {
    parse_sha256_hex(text).or_else(|_| parse_sha256_base64(text)).ok()
}

/// What stays of a secret that reads as a digest: SHA-256 of what it reads as, which would be the secret itself.
#[must_use]
pub fn decoded_digest(read_as: &Digest) -> Digest {
    let hash: [u8; 32] = Sha256::digest(read_as.as_bytes()).into();
    Digest::from_array(hash)
}

/// The digest of a digest's own text, in lower-case hex: what a table of hashes of hashes holds.
#[must_use]
pub fn digest_of_hex(digest: &Digest) -> Digest {
    Digest::of(&encode_hash(digest.as_bytes()))
}

/// Whether a text has the shape of a hash of bcrypt or Argon2.
#[must_use]
pub fn is_stored_hash(text: &str) -> bool {
    bcrypt_cost(text).is_some() || (text.starts_with("$argon2") && PasswordHash::new(text).is_ok())
}

pub(super) fn check_bcrypt(text: &str) -> Result<(), Invalid> {
    match bcrypt_cost(text) {
        Some(cost) if BCRYPT_COSTS.contains(&cost) => Ok(()),
        Some(_) => Err(Invalid::new("must be of cost 4 to 14")),
        None => Err(Invalid::new("must be a bcrypt hash of 60 characters")),
    }
}

/// The cost of a bcrypt hash; `None` where it is none.
fn bcrypt_cost(text: &str) -> Option<u8> {
    let rest = text.strip_prefix("$2")?;
    let rest = rest.strip_prefix(['a', 'b', 'x', 'y'])?.strip_prefix('$')?;
    let (cost, hash) = rest.split_once('$')?;
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'.' || byte == b'/';
    let is_hash = hash.len() == 53 && hash.bytes().all(legal);
    let is_cost = cost.len() == 2 && cost.bytes().all(|byte| byte.is_ascii_digit());
    if is_hash && is_cost { cost.parse().ok() } else { None }
}

pub(super) fn check_argon2(text: &str) -> Result<(), Invalid> {
    let refused = || Invalid::new("must be an Argon2 hash as a PHC string");
    let hash = PasswordHash::new(text).map_err(|_| refused())?;
    let known = ["argon2id", "argon2i", "argon2d"].iter().any(|name| Ident::new(name) == Ok(hash.algorithm));
    if !known || hash.salt.is_none() || hash.hash.is_none() || text.len() > HASH_LENGTH_MAX {
        return Err(refused());
    }
    let parameter =
        |name: &str, most: u32| hash.params.get_decimal(name).filter(|value: &u32| (1..=most).contains(value));
    let costs =
        (parameter("m", ARGON2_MEMORY_MAX), parameter("t", ARGON2_PASSES_MAX), parameter("p", ARGON2_LANES_MAX));
    let (Some(memory), Some(_), Some(lanes)) = costs else {
        return Err(Invalid::new("must take at most 64 MiB, 10 passes and 16 lanes"));
    };
    if memory < lanes * ARGON2_LANE_MEMORY_MIN {
        return Err(Invalid::new("must take at least 8 KiB a lane, or no secret could ever be compared with it"));
    }
    Ok(())
}

/// bcrypt sees the first 72 bytes of a secret alone; so did the system that the hash comes from.
pub(super) fn verify_bcrypt(secret: &str, hash: &str) -> bool {
    bcrypt::verify(secret, hash).unwrap_or(false)
}

pub(super) fn verify_argon2(secret: &str, hash: &str) -> bool {
    let hash = PasswordHash::new(hash);
    hash.is_ok_and(|hash| Argon2::default().verify_password(secret.as_bytes(), &hash).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";

    #[test]
    fn hex_is_read_in_either_case_and_with_the_marks_of_databases() {
        let digest = Digest::of("test");
        for text in [HEX.to_owned(), HEX.to_uppercase(), format!("\\x{HEX}"), format!("0x{HEX}")] {
            assert!(parse_sha256_hex(&text).unwrap() == digest, "{text}");
        }
        for text in ["", "9f", &HEX[1..], &format!("{HEX}0"), &format!("{}g", &HEX[1..]), &format!(" {HEX}")] {
            assert!(parse_sha256_hex(text).is_err(), "{text}");
        }
    }

    #[test]
    fn base64_is_read_in_both_alphabets_with_or_without_padding() {
        let digest = Digest::of("subjects?_d");
        for engine in [STANDARD, URL_SAFE] {
            let text = engine.encode(digest.as_bytes());
            assert!(parse_sha256_base64(&text).unwrap() == digest);
            assert!(parse_sha256_base64(text.trim_end_matches('=')).unwrap() == digest);
            assert!(parse_sha256_base64(&text[1..]).is_err());
        }
        assert!(parse_sha256_base64("").is_err());
    }

    #[test]
    fn every_spelling_of_a_digest_is_read_as_that_digest() {
        // Its base64 has both characters in which the alphabets differ.
        let digest = Digest::from_bytes(&[0xfb, 0xff].repeat(16)).unwrap();
        let hex = encode_hash(digest.as_bytes());
        let mut spellings = vec![hex.to_uppercase(), hex];
        for engine in [STANDARD, URL_SAFE] {
            let text = engine.encode(digest.as_bytes());
            spellings.extend([text.trim_end_matches('=').to_owned(), text]);
        }
        for text in spellings {
            assert!(read_as_digest(&text) == Some(digest), "{text}");
        }
        assert!(read_as_digest("sk_0123456789abcdef").is_none());
    }

    #[test]
    fn bcrypt_hashes_of_every_version_are_known_and_dear_ones_refused() {
        let hash = bcrypt::hash("secret", 4).unwrap();
        let rest = &hash[4..];
        for version in ["2a", "2b", "2x", "2y"] {
            assert!(check_bcrypt(&format!("${version}${rest}")).is_ok(), "{version}");
        }
        for version in ["2", "2c", "1", ""] {
            assert!(check_bcrypt(&format!("${version}${rest}")).is_err(), "{version}");
        }
        let dear = format!("$2b$15${}", &hash[7..]);
        assert!(check_bcrypt(&dear).is_err() && is_stored_hash(&dear));
        assert!(check_bcrypt(&hash[..59]).is_err() && check_bcrypt(&hash.replace('$', "_")).is_err());
    }

    #[test]
    fn argon2_hashes_are_bounded_before_they_are_computed() {
        let tail = "c29tZXNhbHQ$iWh06vD8Fy27wf9npn6FXWiCX4K6pW6Ue1Bnzz07Z8A";
        let of = |kind: &str, costs: &str| format!("${kind}$v=19${costs}${tail}");
        for kind in ["argon2id", "argon2i", "argon2d"] {
            assert!(check_argon2(&of(kind, "m=65536,t=2,p=1")).is_ok(), "{kind}");
        }
        for costs in ["m=65537,t=2,p=1", "m=65536,t=11,p=1", "m=65536,t=2,p=17", "m=65536,t=2", "m=0,t=1,p=1"] {
            assert!(check_argon2(&of("argon2id", costs)).is_err(), "{costs}");
        }
        assert!(check_argon2(&of("scrypt", "m=65536,t=2,p=1")).is_err());
        assert!(check_argon2("$argon2id$v=19$m=65536,t=2,p=1").is_err());
    }

    #[test]
    fn an_argon2_hash_that_no_secret_could_be_compared_with_is_none() {
        for (memory, lanes) in [(8, 1), (16, 2), (32, 4), (128, 16)] {
            for (memory, is_legal) in [(memory, true), (memory - 1, false)] {
                let hash = format!("$argon2id$v=19$m={memory},t=1,p={lanes}$c29tZXNhbHQ${}", "A".repeat(43));
                assert_eq!(check_argon2(&hash).is_ok(), is_legal, "{hash}");
                let costs = argon2::Params::new(memory, 1, lanes, None);
                assert_eq!(costs.is_ok(), is_legal, "what checks secrets says the same: {hash}");
            }
        }
    }
}
