//! The generated contract: messages, clients and servers of `proto/keystead/v1`, and the descriptor set that
//! reflection serves. Written by `build.rs`; here are only the `Debug` implementations of messages that carry a
//! secret, which show the type's name and nothing else.

use std::fmt;

/// Package `keystead.v1`.
#[expect(clippy::pedantic, clippy::allow_attributes, reason = "generated code is not ours to lint")]
pub mod v1 {
    tonic::include_proto!("keystead.v1");
}

/// All of `proto/` and what it imports, as a serialised `FileDescriptorSet`.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/keystead.bin"));

macro_rules! opaque_debug {
    ($($message:ty => $name:literal),+ $(,)?) => {$(
        impl fmt::Debug for $message {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str($name)
            }
        }
    )+};
}

opaque_debug! {
    v1::VerifyKeyRequest => "VerifyKeyRequest",
    v1::BatchVerifyKeysRequest => "BatchVerifyKeysRequest",
    v1::CreateKeyResponse => "CreateKeyResponse",
    v1::RotateKeyResponse => "RotateKeyResponse",
    v1::ImportKey => "ImportKey",
    v1::import_key::Material => "Material",
    v1::ImportKeysRequest => "ImportKeysRequest",
}
