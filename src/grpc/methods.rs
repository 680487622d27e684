//! The methods that we serve, by name, from the descriptor sets. A path that is none of them is whatever a client
//! typed, a secret perhaps, and so stands in no log.

use std::{collections::HashSet, sync::LazyLock};

use prost::Message as _;
use prost_types::FileDescriptorSet;

use crate::proto::FILE_DESCRIPTOR_SET;

/// Stands in the log for a method that does not exist.
pub const UNKNOWN: &str = "(unknown)";

const REFLECTION: [&str; 2] = [
    "grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
];

/// The method that is called for every request of every service.
pub const VERIFY_KEY: &str = "keystead.v1.KeyService/VerifyKey";
const VERIFICATIONS: [&str; 2] = [VERIFY_KEY, "keystead.v1.KeyService/BatchVerifyKeys"];

static METHODS: LazyLock<HashSet<String>> = LazyLock::new(|| {
    let mut methods: HashSet<String> = REFLECTION.into_iter().map(str::to_owned).collect();
    for bytes in [FILE_DESCRIPTOR_SET, tonic_health::pb::FILE_DESCRIPTOR_SET] {
        let files = FileDescriptorSet::decode(bytes).map(|set| set.file).unwrap_or_default();
        for file in &files {
            for service in &file.service {
                let name = |method: &str| format!("{}.{}/{method}", file.package(), service.name());
                methods.extend(service.method.iter().map(|method| name(method.name())));
            }
        }
    }
    methods
});

/// The method of a path such as `/keystead.v1.KeyService/VerifyKey`, without the slash in front; `None` if we have
/// no such method.
pub fn find(path: &str) -> Option<&'static str> {
    let name = path.strip_prefix('/')?;
    // The one that is called most is looked for first.
    VERIFICATIONS.into_iter().find(|method| *method == name).or_else(|| METHODS.get(name).map(String::as_str))
}

/// Whether this method verifies keys.
pub fn is_verification(method: &str) -> bool {
    VERIFICATIONS.contains(&method)
}

/// Whether calls of this method are streams that go on until the client ends them.
pub fn is_reflection(method: &str) -> bool {
    REFLECTION.contains(&method)
}
