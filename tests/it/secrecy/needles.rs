//! Finds many needles in one pass over many bytes: secrets, digests in each spelling that a log or a file may have,
//! and plain texts. A secret is searched for by its random part, so that one without its prefix is found too.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use sha2::{Digest as _, Sha256};

use crate::harness::hex;

/// Characters of a secret that stand before its random part, such as `pk_live_`, at the least.
const RANDOM_LENGTH: usize = 43;
/// What all needles have at the least; shorter ones would be found by accident.
const LENGTH_MIN: usize = 16;

/// What to search for.
#[derive(Default)]
pub struct Needles(Vec<(String, Vec<u8>)>);

impl Needles {
    pub fn add(&mut self, what: &str, needle: &[u8]) {
        assert!(needle.len() >= LENGTH_MIN, "{what} is too short to mean anything");
        self.0.push((what.to_owned(), needle.to_vec()));
    }

    /// The random part of a secret.
    pub fn add_secret(&mut self, secret: &str) {
        let random = &secret[secret.len() - RANDOM_LENGTH..];
        self.add(&format!("the secret of hint {}", hint(secret)), random.as_bytes());
    }

    /// The digest of a secret as hex, base64 and a list of numbers.
    pub fn add_digest(&mut self, secret: &str) {
        let digest = Sha256::digest(secret.as_bytes());
        let hex = hex(&digest);
        let numbers: Vec<String> = digest.iter().take(8).map(ToString::to_string).collect();
        let spellings = [
            ("hex", hex.clone()),
            ("upper-case hex", hex.to_uppercase()),
            // Padding is left out, so that both spellings are found.
            ("base64", STANDARD_NO_PAD.encode(digest)),
            ("URL-safe base64", URL_SAFE_NO_PAD.encode(digest)),
            ("numbers", numbers.join(", ")),
        ];
        for (spelling, text) in spellings {
            self.add(&format!("the digest of hint {} as {spelling}", hint(secret)), text.as_bytes());
        }
    }

    /// The 32 bytes of the digest, which are at rest and nowhere else.
    pub fn add_raw_digest(&mut self, secret: &str) {
        self.add(&format!("the raw digest of hint {}", hint(secret)), &Sha256::digest(secret.as_bytes()));
    }

    /// What is found, each once.
    pub fn found_in(&self, haystack: &[u8]) -> Vec<String> {
        // Most places are told by their first two bytes.
        let mut begins = vec![false; 1 << 16];
        for (_, needle) in &self.0 {
            begins[pair(needle)] = true;
        }
        let mut found: Vec<String> = Vec::new();
        for at in 0..(haystack.len() + 1).saturating_sub(LENGTH_MIN) {
            let rest = &haystack[at..];
            if begins[pair(rest)] {
                let here = self.0.iter().filter(|(_, needle)| rest.starts_with(needle));
                found.extend(here.map(|(what, _)| what.clone()));
            }
        }
        found.sort();
        found.dedup();
        found
    }
}

fn pair(bytes: &[u8]) -> usize {
    usize::from(bytes[0]) << 8 | usize::from(bytes[1])
}

/// The last four characters, which anybody may see.
fn hint(secret: &str) -> &str {
    &secret[secret.len() - 4..]
}
