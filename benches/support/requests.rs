//! Request bodies, encoded once; each call copies the bytes and writes other secrets into them.
//! The secret of key number N is `pk_live_` and N in 43 digits, so that millions need no list. Numbers from
//! `UNKNOWN` on belong to no key. Invariant: a body is a whole gRPC message, prefix included.

use keystead::proto::v1::{BatchVerifyKeysRequest, VerifyKeyRequest};
use prost::{Message, bytes::Bytes};

use super::Failure;

/// Digits of a secret's random part.
const DIGITS: usize = 43;
/// The first number that no key has.
pub const UNKNOWN: u64 = 1 << 40;

/// The secret of key `number`, well-shaped as any.
pub fn secret(number: u64) -> String {
    format!("pk_live_{number:0DIGITS$}")
}

/// A gRPC message as bytes: not compressed, its length, itself.
pub fn frame(message: &impl Message) -> Result<Bytes, Failure> {
    let mut bytes = vec![0];
    bytes.extend(u32::try_from(message.encoded_len())?.to_be_bytes());
    message.encode(&mut bytes)?;
    Ok(bytes.into())
}

/// A body with places for secrets.
pub struct Template {
    bytes: Bytes,
    /// Where the digits of each secret begin.
    places: Vec<usize>,
}

impl Template {
    /// One `VerifyKey` with what a service states of each request.
    pub fn verify() -> Result<Self, Failure> {
        Self::new(&question())
    }

    /// One `BatchVerifyKeys` of so many.
    pub fn verify_batch(size: usize) -> Result<Self, Failure> {
        Self::new(&BatchVerifyKeysRequest { requests: vec![question(); size] })
    }

    fn new(message: &impl Message) -> Result<Self, Failure> {
        let bytes = frame(message)?;
        let placeholder = secret(0);
        let found = bytes.windows(placeholder.len()).enumerate();
        let found = found.filter(|(_, window)| *window == placeholder.as_bytes());
        let places: Vec<usize> = found.map(|(at, _)| at + placeholder.len() - DIGITS).collect();
        Ok(Self { bytes, places })
    }

    /// The body with the secrets of these keys.
    pub fn fill(&self, mut number: impl FnMut() -> u64) -> Bytes {
        let mut bytes = self.bytes.to_vec();
        for place in &self.places {
            let mut rest = number();
            for digit in bytes.iter_mut().skip(*place).take(DIGITS).rev() {
                *digit = b'0' + u8::try_from(rest % 10).unwrap_or(0);
                rest /= 10;
            }
        }
        bytes.into()
    }
}

fn question() -> VerifyKeyRequest {
    VerifyKeyRequest {
        secret: secret(0),
        endpoint: "/v1/invoices".to_owned(),
        method: "POST".to_owned(),
        ..Default::default()
    }
}
