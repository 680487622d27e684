//! The answer of `VerifyKey` as bytes, written in one pass. Through the generated message each of its texts would first
//! become a string of its own: a twentieth of what the whole call costs.
//! Invariant: the bytes say what `encode::encode_verified` says, which the tests compare. The numbers are those of the
//! fields of `VerifyKeyResponse`.

use prost::{
    bytes::BufMut as _,
    encoding::{WireType, encode_key, encode_varint, encoded_len_varint, int32, int64, key_len, message},
};

use super::encode::{encode_environment, encode_limit_status, encode_outcome, encode_span, encode_time};
use crate::service::Verified;

/// Room for most answers.
const USUAL_BYTES: usize = 512;

/// The answer, behind room for `before` bytes.
pub fn encode_verified_bytes(verified: Verified, before: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(before + USUAL_BYTES);
    bytes.resize(before, 0);
    enumeration(1, encode_outcome(verified.outcome).into(), &mut bytes);
    let Some(key) = verified.key else {
        return bytes;
    };
    let mut id = [0; 36];
    text(2, key.id.write(&mut id), &mut bytes);
    text(3, key.organization_id.write(&mut id), &mut bytes);
    text(4, &key.name, &mut bytes);
    enumeration(5, encode_environment(key.environment).into(), &mut bytes);
    text(6, &key.owner_id, &mut bytes);
    for scope in &key.scopes {
        always_text(7, scope.as_str(), &mut bytes);
    }
    for (name, value) in &key.metadata {
        entry(8, name, value, &mut bytes);
    }
    if let Some(time) = key.expire_time {
        message::encode(9, &encode_time(time), &mut bytes);
    }
    for status in verified.rate_limits {
        message::encode(10, &encode_limit_status(status), &mut bytes);
    }
    if let Some(remaining) = verified.credits_remaining {
        int64::encode(11, &remaining, &mut bytes);
    }
    message::encode(12, &encode_span(verified.reuse_for), &mut bytes);
    bytes
}

/// A field of a number that is absent where it is 0.
fn enumeration(tag: u32, value: i32, bytes: &mut Vec<u8>) {
    if value != 0 {
        int32::encode(tag, &value, bytes);
    }
}

/// A field of text that is absent where it is empty.
fn text(tag: u32, value: &str, bytes: &mut Vec<u8>) {
    if !value.is_empty() {
        always_text(tag, value, bytes);
    }
}

fn always_text(tag: u32, value: &str, bytes: &mut Vec<u8>) {
    encode_key(tag, WireType::LengthDelimited, bytes);
    encode_varint(value.len() as u64, bytes);
    bytes.put_slice(value.as_bytes());
}

/// An entry of a map: a message of a name and a value.
fn entry(tag: u32, name: &str, value: &str, bytes: &mut Vec<u8>) {
    let length = |tag: u32, text: &str| match text.len() {
        0 => 0,
        length => key_len(tag) + encoded_len_varint(length as u64) + length,
    };
    encode_key(tag, WireType::LengthDelimited, bytes);
    encode_varint((length(1, name) + length(2, value)) as u64, bytes);
    text(1, name, bytes);
    text(2, value, bytes);
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use proptest::{collection, option, prelude::*};
    use prost::Message as _;

    use super::*;
    use crate::{
        domain::{
            key::Environment, limits::LimitStatus, outcome::Outcome, record::KeyRecord, samples, scope::Scope,
            time::Timestamp,
        },
        grpc::encode::encode_verified,
        proto::v1,
    };

    fn key() -> impl Strategy<Value = KeyRecord> {
        let scopes = collection::vec("[a-z]{1,100}", 0..4);
        let metadata = collection::btree_map("[a-z]{1,8}", ".{0,200}", 0..4);
        let times = option::of(0_i64..4_000_000_000_000_000);
        (".{0,300}", ".{0,20}", scopes, metadata, times, any::<bool>()).prop_map(
            |(name, owner, scopes, metadata, expire, live)| KeyRecord {
                name: name.into(),
                owner_id: owner.into(),
                scopes: scopes.iter().map(|scope| Scope::parse(scope).unwrap()).collect(),
                metadata: metadata.into_iter().map(|(name, value)| (name.into(), value.into())).collect(),
                expire_time: expire.map(Timestamp::from_micros),
                environment: if live { Environment::Live } else { Environment::Test },
                ..samples::key_record()
            },
        )
    }

    fn status() -> impl Strategy<Value = LimitStatus> {
        let reset = option::of((0_u64..40_000_000).prop_map(Duration::from_secs));
        ("[a-z]{1,63}", 1_i64..1 << 40, 0_i64..1 << 40, reset, any::<bool>(), any::<bool>()).prop_map(
            |(name, limit, remaining, reset_after, exceeded, shadow)| LimitStatus {
                name,
                limit,
                remaining,
                reset_after,
                exceeded,
                shadow,
            },
        )
    }

    fn verified() -> impl Strategy<Value = (Verified, Verified)> {
        let outcome = proptest::sample::select(Outcome::ALL);
        let (statuses, credits) = (collection::vec(status(), 0..4), option::of(0_i64..1000));
        (outcome, option::of(key()), statuses, credits, 0_u64..2_000_000_000).prop_map(
            |(outcome, key, rate_limits, credits_remaining, reuse_ns)| {
                let key = key.map(Arc::new);
                let one = |rate_limits| Verified {
                    outcome,
                    key: key.clone(),
                    rate_limits,
                    credits_remaining,
                    reuse_for: Duration::from_nanos(reuse_ns),
                };
                (one(rate_limits.clone()), one(rate_limits))
            },
        )
    }

    proptest! {
        #[test]
        fn the_bytes_are_those_of_the_message((one, same) in verified(), before in 0_usize..8) {
            let bytes = encode_verified_bytes(one, before);
            prop_assert!(bytes[..before].iter().all(|byte| *byte == 0));
            prop_assert_eq!(v1::VerifyKeyResponse::decode(&bytes[before..]), Ok(encode_verified(same)));
        }
    }
}
