//! Rows whose key or hash is not as it should be. Invariant: what goes in is found by the text that its holder presents
//! and by no other, and what could be found by trying, or is a stored hash itself, does not go in.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD};
use keystead::proto::v1::Outcome::Valid;
use sha2::{Digest as _, Sha256};

use super::{Case, row};
use crate::imports::world::{Keys, argon2, sha256_hex};

/// The lowest cost that there is: what these cases show does not depend on it.
const COST: u32 = 4;

pub fn cases(keys: &Keys) -> Vec<Case> {
    [blanks(keys), plaintexts(keys), weak_ones(), hashes(keys), slow_hashes(keys), two_at_once(keys), repeats(keys)]
        .into_iter()
        .flatten()
        .collect()
}

fn blanks(keys: &Keys) -> Vec<Case> {
    let (padded, hashed) = (keys.text("padded"), keys.text("padded hash"));
    vec![
        row("all NULL"),
        row("an empty key").with("secret", ""),
        row("a key of spaces").with("secret", "  \t "),
        row("a hash of nothing").with("sha256_hex", " "),
        row("white space around a key")
            .with("secret", format!(" \t{padded}\r\n"))
            .noted("TRIMMED")
            .gives(&padded, Valid),
        row("white space around a hash")
            .with("sha256_hex", format!("\n{}  ", sha256_hex(&hashed)))
            .noted("TRIMMED")
            .gives(&hashed, Valid),
    ]
}

fn plaintexts(keys: &Keys) -> Vec<Case> {
    let long: String = keys.texts("long", 20).concat();
    let native = format!("pk_live_{}", &keys.texts("native", 2).concat().replace(['_', '-'], "x")[..43]);
    let named = format!("pk_test_{}", keys.text("named"));
    vec![
        row("a plain key").with("secret", keys.text("plain")).gives(&keys.text("plain"), Valid),
        row("as long as may be").with("secret", &long[..512]).gives(&long[..512], Valid),
        row("too long by one").with("secret", &long[..513]).refused("BAD_SECRET"),
        row("far too long").with("secret", &long).refused("BAD_SECRET"),
        row("a line within").with("secret", format!("{}\n{}", keys.text("a"), keys.text("b"))).refused("BAD_SECRET"),
        row("a bell within").with("secret", format!("{}\u{7}x", keys.text("bell"))).refused("BAD_SECRET"),
        row("of native shape").with("secret", &native).gives(&native, Valid),
        row("that claims to be native").with("secret", named).refused("BAD_SECRET"),
        row("of letters with accents")
            .with("secret", format!("clé {}", keys.text("accent")))
            .gives(&format!("clé {}", keys.text("accent")), Valid),
    ]
}

fn weak_ones() -> Vec<Case> {
    let texts = [
        "hunter2",
        "fifteen-letters",
        "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
        "abcdefghijklmnopqrstuvwxyz",
        "zyxwvutsrqponmlkjihgfedcba",
        "01234567890123456789",
        "passwordpassword",
        "abababababababababababab",
    ];
    let case = |(at, text): (usize, &&str)| row(&format!("weak {at}")).with("secret", *text).refused("WEAK_SECRET");
    texts.iter().enumerate().map(case).collect()
}

fn hashes(keys: &Keys) -> Vec<Case> {
    let hash = |name: &str| sha256_hex(&keys.text(name));
    let digest = |name: &str| Sha256::digest(keys.text(name));
    let good = |name: &str, column, text: String| row(name).with(column, text).gives(&keys.text(name), Valid);
    let bad = |name: &str, column, text: String| row(name).with(column, text).refused("BAD_HASH");
    let hex = hash("bad hex");
    vec![
        good("hex", "sha256_hex", hash("hex")),
        good("upper-case hex", "sha256_hex", hash("upper-case hex").to_uppercase()),
        good("hex as PostgreSQL writes bytes", "sha256_hex", format!("\\x{}", hash("hex as PostgreSQL writes bytes"))),
        good("hex as a number", "sha256_hex", format!("0x{}", hash("hex as a number"))),
        good("base64", "sha256_base64", STANDARD.encode(digest("base64"))),
        good("base64 without padding", "sha256_base64", STANDARD_NO_PAD.encode(digest("base64 without padding"))),
        good("base64 of URLs", "sha256_base64", URL_SAFE.encode(digest("base64 of URLs"))),
        good("bare base64 of URLs", "sha256_base64", URL_SAFE_NO_PAD.encode(digest("bare base64 of URLs"))),
        bad("hex too short", "sha256_hex", hex[1..].to_owned()),
        bad("hex too long", "sha256_hex", format!("{hex}0")),
        bad("hex with another letter", "sha256_hex", format!("{}g", &hex[1..])),
        bad("the digest of another function", "sha256_hex", hex[..40].to_owned()),
        bad("base64 of 31 bytes", "sha256_base64", STANDARD.encode(&digest("31")[1..])),
        bad("base64 with another letter", "sha256_base64", STANDARD.encode(digest("letter")).replace('=', "!")),
    ]
}

fn slow_hashes(keys: &Keys) -> Vec<Case> {
    let of = |name: &str| bcrypt::hash(keys.text(name), COST).expect("a hash");
    let versioned = |name: &str, version: &str| format!("${version}{}", &of(name)[3..]);
    let slow =
        |name: &str, column, hash: String| row(name).with(column, hash).noted("SCANNED").gives(&keys.text(name), Valid);
    let bad = |name: &str, column, hash: String| row(name).with(column, hash).refused("BAD_HASH");
    let shown = |name: &str| format!("{}...{}", &keys.text(name)[..3], &keys.text(name)[31..]);
    let tail = "c29tZXNhbHQ$iWh06vD8Fy27wf9npn6FXWiCX4K6pW6Ue1Bnzz07Z8A";
    vec![
        slow("bcrypt", "bcrypt", of("bcrypt")),
        slow("bcrypt 2a", "bcrypt", versioned("bcrypt 2a", "2a")),
        slow("bcrypt 2y", "bcrypt", versioned("bcrypt 2y", "2y")),
        slow("argon2id", "argon2", argon2(&keys.text("argon2id"))),
        row("bcrypt that is shown")
            .with("bcrypt", of("bcrypt that is shown"))
            .with("display", shown("bcrypt that is shown"))
            .gives_with(&keys.text("bcrypt that is shown"), Valid, |_, key| {
                assert_eq!(key.prefix, "sk_");
                assert_eq!(key.hint.len(), 4);
            }),
        row("bcrypt that is looked up")
            .with("bcrypt", of("bcrypt that is looked up"))
            .with("starts_with", &keys.text("bcrypt that is looked up")[..12])
            .gives(&keys.text("bcrypt that is looked up"), Valid),
        bad("bcrypt too cheap", "bcrypt", of("cheap").replacen("$04$", "$03$", 1)),
        bad("bcrypt too dear", "bcrypt", of("dear").replacen("$04$", "$15$", 1)),
        bad("bcrypt cut", "bcrypt", of("cut")[..59].to_owned()),
        bad("bcrypt of another version", "bcrypt", versioned("version", "2z")),
        bad("argon2 with too much memory", "argon2", format!("$argon2id$v=19$m=65537,t=1,p=1${tail}")),
        bad("argon2 with too many passes", "argon2", format!("$argon2id$v=19$m=64,t=11,p=1${tail}")),
        bad("argon2 with too many lanes", "argon2", format!("$argon2id$v=19$m=512,t=1,p=17${tail}")),
        bad("argon2 with too little memory", "argon2", format!("$argon2id$v=19$m=64,t=1,p=9${tail}")),
        bad("argon2 of no known shape", "argon2", format!("argon2id:{tail}")),
        row("a look-up part that is no text")
            .with("bcrypt", of("look-up"))
            .with("starts_with", "a\u{1}bc")
            .refused("BAD_LOOK_UP_ID"),
    ]
}

/// A key and a hash in one row, and keys that are hashes.
fn two_at_once(keys: &Keys) -> Vec<Case> {
    let text = |name: &str| keys.text(name);
    let pair = |name: &str, secret: String, hash: String| row(name).with("secret", secret).with("sha256_hex", hash);
    let slow = bcrypt::hash(text("agree slowly"), COST).expect("a hash");
    let other = bcrypt::hash(text("another"), COST).expect("a hash");
    vec![
        pair("agree", text("agree"), sha256_hex(&text("agree"))).gives(&text("agree"), Valid),
        pair("agree in capitals", text("agree in capitals"), sha256_hex(&text("agree in capitals")).to_uppercase())
            .gives(&text("agree in capitals"), Valid),
        pair(
            "agree with the space",
            format!("{} ", text("agree with the space")),
            sha256_hex(&format!("{} ", text("agree with the space"))),
        )
        .noted("TRIMMED")
        .gives(&text("agree with the space"), Valid),
        pair(
            "agree without the space",
            format!("{} ", text("agree without the space")),
            sha256_hex(&text("agree without the space")),
        )
        .noted("TRIMMED")
        .gives(&text("agree without the space"), Valid),
        pair("disagree", text("disagree"), sha256_hex(&text("another"))).refused("HASH_MISMATCH"),
        pair("weak and disagree", "hunter2".to_owned(), sha256_hex(&text("another"))).refused("HASH_MISMATCH"),
        pair("beside no hash", text("beside no hash"), "hash".to_owned()).refused("BAD_HASH"),
        row("agree slowly")
            .with("secret", text("agree slowly"))
            .with("bcrypt", slow)
            .gives(&text("agree slowly"), Valid),
        row("disagree slowly").with("secret", text("disagree slowly")).with("bcrypt", other).refused("HASH_MISMATCH"),
        row("a bcrypt hash as a key")
            .with("secret", bcrypt::hash(text("hash as key"), COST).expect("a hash"))
            .refused("STORED_HASH"),
        row("an Argon2 hash as a key").with("secret", argon2(&text("hash as key"))).refused("STORED_HASH"),
        pair("the row's own hash as a key", sha256_hex(&text("own")), sha256_hex(&text("own"))).refused("STORED_HASH"),
        pair("the same in capitals", sha256_hex(&text("own")).to_uppercase(), sha256_hex(&text("own")))
            .refused("STORED_HASH"),
        row("another row's hash as a key").with("secret", sha256_hex(&text("plain"))).refused("STORED_HASH"),
        row("hex that is nobody's hash")
            .with("secret", sha256_hex(&text("nobody's")))
            .gives(&sha256_hex(&text("nobody's")), Valid),
    ]
}

/// The same key in more than one row.
fn repeats(keys: &Keys) -> Vec<Case> {
    let shared = keys.text("shared");
    vec![
        row("shared").with("secret", &shared).gives(&shared, Valid),
        row("shared again").with("secret", &shared).duplicate_of(&shared),
        row("shared, as its hash").with("sha256_hex", sha256_hex(&shared)).duplicate_of(&shared),
        row("shared, but disabled").with("secret", &shared).with("enabled", "0").refused("DUPLICATE_DIFFERS"),
        row("shared, but revoked").with("secret", &shared).with("status", "revoked").refused("DUPLICATE_DIFFERS"),
        row("shared, but not for ever")
            .with("secret", &shared)
            .with("expires_at", "2999-01-01T00:00:00Z")
            .refused("DUPLICATE_DIFFERS"),
    ]
}
