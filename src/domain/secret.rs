//! Secrets: how a new one is made, and what a presented one must look like before anything is looked up.
//! Shape: prefix, `_live_` or `_test_`, and 43 base62 characters that carry 256 random bits; 51 in all with the
//! prefix `pk`. A secret cannot be printed, cloned or serialised, and is wiped on drop.
//! Must not keep a secret longer than the call that made or presented it.

use std::fmt;

use zeroize::Zeroizing;

use super::{Invalid, digest::Digest, key::Environment};

/// The alphabet of the random part: every character is legal in URL-safe base64 (RFC 4648, section 5).
const ALPHABET: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
/// Base62 digits that hold 256 bits: 62^43 > 2^256.
const RANDOM_LENGTH: usize = 43;
/// The longest text that is taken for a secret, in bytes; keys from elsewhere keep their own text.
pub const SECRET_BYTES_MAX: usize = 512;
/// The prefix of organizations that set none of their own.
const NATIVE_PREFIX: &str = "pk";
/// Characters of the hint, the secret's last ones.
const HINT_LENGTH: usize = 4;

/// The text a holder presents. Leaves the process once, in the answer that created it.
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// A new secret from 32 bytes of the operating system's generator.
    #[must_use]
    pub fn generate(prefix: &SecretPrefix, environment: Environment, random: &Zeroizing<[u8; 32]>) -> Self {
        let mut text = Zeroizing::new(String::with_capacity(SECRET_BYTES_MAX));
        text.push_str(&prefix.with_environment(environment));
        for digit in base62(random).iter() {
            text.push(char::from(*digit));
        }
        Self(text)
    }

    /// A text that somebody presented, whatever its shape.
    #[must_use]
    pub const fn presented(text: Zeroizing<String>) -> Self {
        Self(text)
    }

    /// The text, for the one answer that shows it, for the digest, and for slow hashes.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// The digest under which the key is stored.
    #[must_use]
    pub fn digest(&self) -> Digest {
        Digest::of(&self.0)
    }

    /// The last 4 characters, for display.
    #[must_use]
    pub fn hint(&self) -> String {
        hint_of(&self.0)
    }

    /// The same secret once more, for a check in another thread.
    #[must_use]
    pub fn again(&self) -> Self {
        Self(Zeroizing::new(self.0.to_string()))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

/// The last 4 characters of a text, for display.
#[must_use]
pub fn hint_of(text: &str) -> String {
    let skip = text.chars().count().saturating_sub(HINT_LENGTH);
    text.chars().skip(skip).collect()
}

/// What stands before `_live_` or `_test_`: `pk`, or an organization's own 2 to 16 of `[a-z0-9]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretPrefix(String);

impl SecretPrefix {
    /// Reads an organization's prefix; empty stands for `pk`.
    ///
    /// # Errors
    /// Refuses anything but 2 to 16 of `[a-z0-9]`.
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        let legal = text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
        if text.is_empty() {
            return Ok(Self(NATIVE_PREFIX.to_owned()));
        }
        if !legal || !(2..=16).contains(&text.len()) {
            return Err(Invalid::new("must be 2 to 16 characters of a-z and 0-9"));
        }
        Ok(Self(text.to_owned()))
    }

    /// The prefix with its environment, such as `pk_live_`: what an API key shows as `prefix`.
    #[must_use]
    pub fn with_environment(&self, environment: Environment) -> String {
        format!("{}_{}_", self.0, environment.as_str())
    }

    /// The prefix without its environment, such as `pk`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The digest of a presented text, or `None` where the text cannot be any key's secret: empty, over 512 bytes,
/// with control characters, or claiming the native prefix without its shape. No look-up is due then.
#[must_use]
pub fn digest_of_presented(text: &str) -> Option<Digest> {
    let possible = !text.is_empty()
        && text.len() <= SECRET_BYTES_MAX
        && !text.chars().any(char::is_control)
        && native_random_part(text).is_none_or(is_random_part);
    possible.then(|| Digest::of(text))
}

/// What follows `pk_live_` or `pk_test_`, `None` where the text claims neither.
fn native_random_part(text: &str) -> Option<&str> {
    let rest = text.strip_prefix(NATIVE_PREFIX)?;
    rest.strip_prefix("_live_").or_else(|| rest.strip_prefix("_test_"))
}

/// Whether this is 43 characters of URL-safe base64. New secrets are base62, a part of it; the two further
/// characters let keys of the same shape from older systems, which used base64, be imported as they are.
fn is_random_part(text: &str) -> bool {
    text.len() == RANDOM_LENGTH && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
}

/// The 256-bit number written in base62, most significant digit first, padded to 43 digits.
fn base62(random: &[u8; 32]) -> Zeroizing<[u8; RANDOM_LENGTH]> {
    let mut number = Zeroizing::new(*random);
    let mut digits = Zeroizing::new([b'0'; RANDOM_LENGTH]);
    for digit in digits.iter_mut().rev() {
        let mut remainder: u16 = 0;
        for byte in number.iter_mut() {
            let value = (remainder << 8) | u16::from(*byte);
            *byte = u8::try_from(value / 62).unwrap_or(u8::MAX);
            remainder = value % 62;
        }
        *digit = ALPHABET.get(usize::from(remainder)).copied().unwrap_or(b'0');
    }
    digits
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn secret(random: [u8; 32], environment: Environment) -> Secret {
        Secret::generate(&SecretPrefix::parse("").unwrap(), environment, &Zeroizing::new(random))
    }

    /// Reads base62 back, the slow and obvious way, to show that no bit of the 256 is lost.
    fn decode(digits: &str) -> [u8; 32] {
        let mut number = [0u8; 32];
        for digit in digits.bytes() {
            let mut carry = u32::try_from(ALPHABET.iter().position(|c| *c == digit).unwrap()).unwrap();
            for byte in number.iter_mut().rev() {
                let value = u32::from(*byte) * 62 + carry;
                *byte = u8::try_from(value & 0xff).unwrap();
                carry = value >> 8;
            }
            assert_eq!(carry, 0);
        }
        number
    }

    proptest! {
        #[test]
        fn a_secret_has_the_shape_and_carries_all_256_bits(random: [u8; 32], live: bool) {
            let environment = if live { Environment::Live } else { Environment::Test };
            let secret = secret(random, environment);
            let text = secret.expose();
            prop_assert_eq!(text.len(), 51);
            let rest = text.strip_prefix(if live { "pk_live_" } else { "pk_test_" }).unwrap();
            prop_assert!(rest.bytes().all(|byte| byte.is_ascii_alphanumeric()));
            prop_assert_eq!(decode(rest), random);
            prop_assert_eq!(digest_of_presented(text), Some(secret.digest()));
            prop_assert_eq!(&text[47..], secret.hint());
        }

        #[test]
        fn one_character_more_less_or_foreign_claims_the_prefix_in_vain(random: [u8; 32], at in 8usize..51) {
            let text = secret(random, Environment::Live).expose().to_owned();
            let mut shorter = text.clone();
            shorter.remove(at);
            prop_assert_eq!(digest_of_presented(&shorter), None);
            let mut longer = text.clone();
            longer.insert(at, 'a');
            prop_assert_eq!(digest_of_presented(&longer), None);
            let mut foreign = text;
            foreign.replace_range(at..=at, "!");
            prop_assert_eq!(digest_of_presented(&foreign), None);
        }

        #[test]
        fn no_text_makes_the_check_fail(text in ".*") {
            let _ = digest_of_presented(&text);
        }
    }

    #[test]
    fn what_cannot_be_a_secret_is_told_without_a_look_up() {
        for text in ["", "pk_live_", "pk_test_short", "with\nnewline", "with\0nul", &"a".repeat(513)] {
            assert_eq!(digest_of_presented(text), None, "{text:?}");
        }
        assert!(digest_of_presented(&"a".repeat(512)).is_some());
        assert!(digest_of_presented("sk_4eC39HqLyjWDarjtT1zdp7dc").is_some());
    }

    #[test]
    fn a_secret_cannot_be_printed() {
        assert_eq!(format!("{:?}", secret([7; 32], Environment::Live)), "Secret");
    }

    #[test]
    fn organization_prefixes_are_short_and_plain() {
        for text in ["a", "Acme", "ac_me", "seventeencharacte", "ä1"] {
            assert!(SecretPrefix::parse(text).is_err(), "{text}");
        }
        let prefix = SecretPrefix::parse("acme1").unwrap();
        assert_eq!(prefix.with_environment(Environment::Test), "acme1_test_");
    }
}
