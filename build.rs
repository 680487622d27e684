//! Compiles `proto/` with protox, a protobuf compiler in Rust, so that nobody has to install protoc.
//! Writes the generated code and the descriptor set that reflection serves into `OUT_DIR`.
//! Messages that carry a secret get no derived `Debug`: `src/proto.rs` writes theirs by hand.

use std::{env, error::Error, fs, path::PathBuf};

use protox::prost::Message as _;

/// Messages with a secret in them, directly or nested.
const SECRET_MESSAGES: [&str; 7] = [
    "keystead.v1.VerifyKeyRequest",
    "keystead.v1.BatchVerifyKeysRequest",
    "keystead.v1.CreateKeyResponse",
    "keystead.v1.RotateKeyResponse",
    "keystead.v1.ImportKey",
    "keystead.v1.ImportKey.material",
    "keystead.v1.ImportKeysRequest",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let files =
        ["keystead/v1/key_service.proto", "keystead/v1/organization_service.proto", "keystead/v1/audit_service.proto"];
    let descriptors = protox::compile(files, ["proto"])?;
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?);
    fs::write(out.join("keystead.bin"), descriptors.encode_to_vec())?;
    let mut prost = tonic_prost_build::Config::new();
    // The codec knows messages by their names.
    prost.enable_type_names();
    tonic_prost_build::configure()
        .skip_debug(SECRET_MESSAGES)
        .codec_path("crate::grpc::StrictCodec")
        .compile_fds_with_config(descriptors, prost)?;
    Ok(())
}
