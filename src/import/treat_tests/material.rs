//! Secrets and hashes of a row: which one counts, which are refused, and what is told of them.
//! Invariant: what goes in is known by the text that its holder presents and by no other.

use base64::{Engine as _, engine::general_purpose};

use super::*;

/// The lowest cost that there is.
const COST: u32 = 4;
const ARGON2: &str = "$argon2id$v=19$m=64,t=1,p=1$c29tZXNhbHQ$iWh06vD8Fy27wf9npn6FXWiCX4K6pW6Ue1Bnzz07Z8A";

fn bcrypt_of(text: &str) -> String {
    bcrypt::hash(text, COST).unwrap()
}

fn is_key_of(treated: Treated, secret: &str) -> Vec<Note> {
    let (key, notes) = key_of(treated);
    assert_eq!(key.material.digest(), Some(&Digest::of(secret)));
    notes
}

#[test]
fn a_row_without_material_is_passed_over_unless_it_has_an_id() {
    for cell in [NULL, "", " \t\n"] {
        let blank = ["secret", "sha256-hex", "sha256-base64", "bcrypt", "argon2"].map(|field| (field, cell));
        assert!(matches!(treat(&blank), Treated::Skipped), "{cell:?}");
        let (key, _) = key_of(treat(&[("sha256-hex", cell), ("key-id", "ak_1"), ("display", "sk_...wxyz")]));
        assert_eq!((key.given, key.kept_id), (GivenScheme::Missing, KeyId::of_text("ak_1").ok()));
        assert!(matches!(key.material, Material::Missing));
        assert_eq!((key.prefix.as_str(), key.hint.as_str()), ("sk_", "wxyz"));
        assert_eq!(reason_of(treat(&[("secret", cell), ("key-id", cell)])), Refusal::MissingMaterial);
    }
}

#[test]
fn white_space_around_material_is_taken_off_and_told() {
    let padded = format!(" \t{SECRET}\r\n");
    assert_eq!(is_key_of(treat(&[("secret", &padded)]), SECRET), [Note::Trimmed]);
    let padded = format!("\n{}  ", sha256_hex(SECRET));
    assert_eq!(is_key_of(treat(&[("sha256-hex", &padded)]), SECRET), [Note::Trimmed]);
    let padded = format!("{} ", bcrypt_of(SECRET));
    let (key, notes) = key_of(treat(&[("bcrypt", &padded)]));
    assert!(is_slow(&key) && notes.contains(&Note::Trimmed));
}

#[test]
fn a_plaintext_that_could_never_be_presented_is_refused() {
    let long: String = SECRET.repeat(30);
    assert!(is_key_of(treat(&[("secret", &long[..512])]), &long[..512]).is_empty());
    for text in [
        format!("{SECRET}\n{SECRET}"),
        format!("{SECRET}\u{7}x"),
        long[..513].to_owned(),
        long.clone(),
        long.repeat(100),
        // Cut off it would be a good one.
        format!("{SECRET}{}x", " ".repeat(700)),
        format!("pk_live_{SECRET}"),
        format!("pk_test_{}", &long[..44]),
    ] {
        assert_eq!(reason_of(treat(&[("secret", &text)])), Refusal::BadSecret, "{text}");
    }
    let native = format!("pk_live_{}", &long[..43]);
    let (key, _) = key_of(treat(&[("secret", &native)]));
    assert_eq!(key.prefix, "pk_live_");
}

#[test]
fn a_weak_plaintext_is_refused_or_flagged() {
    for text in ["hunter2", "fifteen-letters", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "abcdefghijklmnopqrstuvwxyz"] {
        assert_eq!(reason_of(treat(&[("secret", text)])), Refusal::WeakSecret, "{text}");
        let many: Vec<String> = (0..50).map(|number| format!("\"k{number:02}\":1")).collect();
        let metadata = format!("{{{}}}", many.join(","));
        let (key, notes) = key_of(treat_with("", true, &[("secret", text), ("metadata", &metadata)]));
        assert_eq!(key.metadata.get("imported-weak").map(String::as_str), Some("true"), "{text}");
        assert_eq!(key.metadata.len(), 50, "the mark has its place before all else");
        assert_eq!(notes, [Note::Weak, Note::MetadataCut]);
    }
    let (key, notes) = key_of(treat_with("", true, &[("secret", SECRET)]));
    assert!(key.metadata.is_empty() && notes.is_empty(), "a good one is not flagged");
    let (key, _) = key_of(treat_with("", true, &[("secret", "hunter2")]));
    assert_eq!((key.prefix.as_str(), key.hint.as_str()), ("", ""), "a short one shows nothing of itself");
}

#[test]
fn a_stored_hash_is_no_secret() {
    let own = sha256_hex(SECRET);
    for cells in [
        vec![("secret", bcrypt_of(SECRET))],
        vec![("secret", ARGON2.to_owned())],
        vec![("secret", own.clone()), ("sha256-hex", own.clone())],
        vec![("secret", own.to_uppercase()), ("sha256-hex", own.clone())],
        vec![("secret", own.clone()), ("sha256-hex", format!("\\x{own}"))],
        vec![("secret", own.clone()), ("sha256-base64", base64_of(SECRET))],
        vec![("secret", base64_of(SECRET)), ("sha256-base64", base64_of(SECRET))],
    ] {
        let cells: Vec<(&str, &str)> = cells.iter().map(|(field, cell)| (*field, cell.as_str())).collect();
        assert_eq!(reason_of(treat(&cells)), Refusal::StoredHash, "{cells:?}");
    }
    // Whether it is the hash of another key is for whoever can look it up.
    let (key, _) = key_of(treat(&[("secret", &own)]));
    assert_eq!(key.plaintext_as_digest, Some(Digest::of(SECRET)));
    assert_eq!(with(&[]).0.plaintext_as_digest, None);
}

fn base64_of(text: &str) -> String {
    general_purpose::STANDARD.encode(Digest::of(text).as_bytes())
}

#[test]
fn hashes_are_read_as_they_are_meant() {
    let hex = sha256_hex(SECRET);
    for text in [hex.clone(), hex.to_uppercase(), format!("\\x{hex}"), format!("0x{hex}")] {
        assert!(is_key_of(treat(&[("sha256-hex", &text)]), SECRET).is_empty(), "{text}");
    }
    let base64 = base64_of(SECRET);
    for text in [base64.as_str(), base64.trim_end_matches('=')] {
        assert!(is_key_of(treat(&[("sha256-base64", text)]), SECRET).is_empty());
    }
    let (key, notes) = key_of(treat(&[("bcrypt", &bcrypt_of(SECRET))]));
    assert!(is_slow(&key) && key.given == GivenScheme::Bcrypt);
    assert_eq!(notes, [Note::Scanned]);
    let (key, _) = key_of(treat(&[("argon2", ARGON2)]));
    assert!(is_slow(&key) && key.given == GivenScheme::Argon2);
}

#[test]
fn a_hash_that_is_none_is_refused() {
    let hex = sha256_hex(SECRET);
    let bcrypt = bcrypt_of(SECRET);
    for (field, text) in [
        ("sha256-hex", hex[1..].to_owned()),
        ("sha256-hex", format!("{hex}0")),
        ("sha256-hex", format!("{}g", &hex[1..])),
        ("sha256-hex", hex.repeat(100)),
        ("sha256-base64", base64_of(SECRET)[1..].to_owned()),
        ("bcrypt", bcrypt[..59].to_owned()),
        ("bcrypt", bcrypt.replacen("$04$", "$15$", 1)),
        ("bcrypt", bcrypt.replacen("$04$", "$03$", 1)),
        ("argon2", ARGON2.replace("m=64", "m=65537")),
        ("argon2", ARGON2.replace("t=1", "t=11")),
        ("argon2", ARGON2.replace("p=1", "p=17")),
        ("argon2", "not a hash".to_owned()),
    ] {
        assert_eq!(reason_of(treat(&[(field, &text)])), Refusal::BadHash, "{field} {text}");
        // Beside a plaintext too: it says that something is wrong with the row.
        assert_eq!(refused_with(&[(field, &text)]), Refusal::BadHash, "{field} {text}");
    }
}

#[test]
fn a_plaintext_and_the_hashes_beside_it_must_agree() {
    let spaced = format!("{SECRET} ");
    let hash = sha256_hex(SECRET);
    for (secret, field, text) in [
        (SECRET, "sha256-hex", hash.clone()),
        (SECRET, "sha256-hex", hash.to_uppercase()),
        (SECRET, "sha256-base64", base64_of(SECRET)),
        (SECRET, "bcrypt", bcrypt_of(SECRET)),
        (spaced.as_str(), "sha256-hex", sha256_hex(&spaced)),
        (spaced.as_str(), "sha256-hex", hash.clone()),
        (spaced.as_str(), "bcrypt", bcrypt_of(&spaced)),
    ] {
        let (key, _) = key_of(treat(&[("secret", secret), (field, &text)]));
        assert_eq!(key.given, GivenScheme::Plaintext);
        assert_eq!(key.material.digest(), Some(&Digest::of(SECRET)), "{field}: what holders present has no space");
    }
    // Before it is asked whether the secret is good enough: a weak one that is left out would hide it.
    for secret in ["hunter2", "two\nlines and more of them", "pk_live_not of the native shape"] {
        assert_eq!(reason_of(treat(&[("secret", secret), ("sha256-hex", &hash)])), Refusal::HashMismatch, "{secret}");
    }
    let other = "another secret of 2 words";
    for (field, text) in [
        ("sha256-hex", sha256_hex(other)),
        ("sha256-base64", base64_of(other)),
        ("bcrypt", bcrypt_of(other)),
        ("argon2", ARGON2.to_owned()),
    ] {
        assert_eq!(refused_with(&[(field, &text)]), Refusal::HashMismatch, "{field}");
    }
}

#[test]
fn the_first_kind_of_material_that_is_there_counts() {
    let (hex, base64) = (sha256_hex(SECRET), base64_of("another"));
    let (hex, base64) = (hex.as_str(), base64.as_str());
    let cells = [("secret", " "), ("sha256-hex", hex), ("sha256-base64", base64), ("bcrypt", "not looked at")];
    let (key, _) = key_of(treat(&cells));
    assert_eq!((key.given, key.material.digest()), (GivenScheme::Sha256Hex, Some(&Digest::of(SECRET))));
    let (key, _) = key_of(treat(&[("sha256-hex", NULL), ("sha256-base64", base64)]));
    assert_eq!(key.given, GivenScheme::Sha256Base64);
}

#[test]
fn a_slow_key_has_what_leads_to_it() {
    let hash = bcrypt_of(SECRET);
    let slow = |cells: Cells<'_>| treat(&[[("bcrypt", hash.as_str())].as_slice(), cells].concat());
    let (key, notes) = key_of(slow(&[("look-up-id", " Zx81kQp0 ")]));
    assert_eq!((key.look_up_id.as_deref(), notes), (Some("Zx81kQp0"), vec![Note::Trimmed]));
    let (key, notes) = key_of(slow(&[("prefix", "sk_l****"), ("hint", "...abRt5Y")]));
    assert_eq!((key.prefix.as_str(), key.hint.as_str(), notes), ("sk_l", "Rt5Y", vec![]));
    let (key, notes) = key_of(slow(&[("display", "Zx8...Rt5Y")]));
    assert_eq!((key.prefix.as_str(), key.hint.as_str(), notes), ("Zx8", "Rt5Y", vec![]));
    assert_eq!(key_of(slow(&[])).1, [Note::Scanned]);
    for (field, text, reason) in [
        ("look-up-id", "Zx8", Refusal::BadLookUpId),
        ("look-up-id", "Zx81\u{1}kQp0", Refusal::BadLookUpId),
        ("look-up-id", "x".repeat(129).as_str(), Refusal::BadLookUpId),
        ("prefix", "x".repeat(65).as_str(), Refusal::BadPrefix),
        ("hint", "a\u{1}b", Refusal::BadHint),
    ] {
        assert_eq!(reason_of(slow(&[(field, text)])), reason, "{field} {text}");
    }
    // A digest is found without: what is no use is left out.
    assert_eq!(with(&[("look-up-id", "Zx8")]).0.look_up_id, None);
    assert_eq!(with(&[("look-up-id", "other")]).0.look_up_id, None);
    assert_eq!(with(&[("look-up-id", "Zx81")]).0.look_up_id.as_deref(), Some("Zx81"));
}
