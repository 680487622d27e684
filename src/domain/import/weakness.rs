//! Which plaintext keys are too easy to guess to be let in unasked.
//! A digest without a slow hash is safe because a secret carries many random bits; one that does not could be found by
//! trying. What a text's characters show is an upper bound of that alone: a password of words can pass.

/// The fewest characters.
const LENGTH_MIN: usize = 16;
/// The fewest bits, by Shannon's entropy of the characters times their number (A Mathematical Theory of
/// Communication, 1948). 16 random characters of base62 have about 60.
const BITS_MIN: f64 = 48.0;

/// Whether a secret is short, of few different characters, or a run such as `abcdef...` or `aaaa...`.
#[must_use]
pub fn is_weak(text: &str) -> bool {
    let length = text.chars().count();
    length < LENGTH_MIN || bits(text) < BITS_MIN || is_run(text.as_bytes())
}

/// Entropy of the bytes, times their number.
fn bits(text: &str) -> f64 {
    let mut counts = [0_u32; 256];
    for byte in text.bytes() {
        if let Some(count) = counts.get_mut(usize::from(byte)) {
            *count += 1;
        }
    }
    let total = f64::from(u32::try_from(text.len()).unwrap_or(u32::MAX));
    counts.iter().filter(|count| **count > 0).map(|count| f64::from(*count)).map(|n| n * (total / n).log2()).sum()
}

/// Whether three quarters of the neighbours differ by the same -1, 0 or 1.
fn is_run(bytes: &[u8]) -> bool {
    let mut steps = [0_usize; 3];
    for pair in bytes.windows(2) {
        let [before, after] = pair else { continue };
        let step = i16::from(*after) - i16::from(*before);
        if let Some(count) = usize::try_from(step + 1).ok().and_then(|at| steps.get_mut(at)) {
            *count += 1;
        }
    }
    let neighbours = bytes.len().saturating_sub(1);
    steps.iter().any(|count| count * 4 >= neighbours * 3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_uniform_and_counting_texts_are_weak() {
        for text in [
            "",
            "Zx81kQp0aVn3Wc7",
            "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
            "abababababababababababababab",
            "abcdefghijklmnopqrstuvwxyz",
            "12345678901234567890",
            "zyxwvutsrqponmlkjihg",
            "0000000000000001",
        ] {
            assert!(is_weak(text), "{text}");
        }
    }

    #[test]
    fn random_keys_of_the_usual_shapes_are_not_weak() {
        for text in [
            "Zx81kQp0aVn3Wc7d",
            "9f86d081884c7d659a2feaa0c55ad015",
            "sk_live_51H8xYzAbCdEfGhIj",
            "550e8400-e29b-41d4-a716-446655440000",
            "pk_live_4eC39HqLyjWDarjtT1zdp7dcAAAAAAAAAAAAAAAAAAAA",
        ] {
            assert!(!is_weak(text), "{text}");
        }
    }
}
