//! The methods that we serve, by name, from the descriptor sets. A path that is none of them is whatever a client
//! typed, a secret perhaps, and so stands in no log.

use std::{collections::HashMap, sync::LazyLock};

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

/// A method that we serve, or [`UNKNOWN`].
#[derive(Debug, Clone, Copy)]
pub struct Method {
    pub name: &'static str,
    /// Its place in [`names`].
    pub index: usize,
}

static METHODS: LazyLock<HashMap<String, usize>> = LazyLock::new(|| {
    let mut methods: Vec<String> = REFLECTION.into_iter().map(str::to_owned).collect();
    for bytes in [FILE_DESCRIPTOR_SET, tonic_health::pb::FILE_DESCRIPTOR_SET] {
        let files = FileDescriptorSet::decode(bytes).map(|set| set.file).unwrap_or_default();
        for file in &files {
            for service in &file.service {
                let name = |method: &str| format!("{}.{}/{method}", file.package(), service.name());
                methods.extend(service.method.iter().map(|method| name(method.name())));
            }
        }
    }
    methods.sort();
    methods.dedup();
    methods.into_iter().enumerate().map(|(index, name)| (name, index)).collect()
});

static VERIFY_KEY_METHOD: LazyLock<Method> =
    LazyLock::new(|| Method { name: VERIFY_KEY, index: METHODS.get(VERIFY_KEY).copied().unwrap_or(METHODS.len()) });

/// The names of all methods, in the order of their indices; the last stands for those that do not exist.
pub fn names() -> Vec<&'static str> {
    let mut names: Vec<&str> = METHODS.keys().map(String::as_str).collect();
    names.sort_unstable();
    names.push(UNKNOWN);
    names
}

/// The method of a path such as `/keystead.v1.KeyService/VerifyKey`; `None` if we have no such method.
pub fn find(path: &str) -> Option<Method> {
    let name = path.strip_prefix('/')?;
    // The one that is called most is not searched for.
    if name == VERIFY_KEY {
        return Some(*VERIFY_KEY_METHOD);
    }
    METHODS.get_key_value(name).map(|(name, index)| Method { name, index: *index })
}

/// What stands for every method that does not exist.
pub fn unknown() -> Method {
    Method { name: UNKNOWN, index: METHODS.len() }
}

/// Whether this method verifies keys.
pub fn is_verification(method: &str) -> bool {
    VERIFICATIONS.contains(&method)
}

/// Whether calls of this method are streams that go on until the client ends them.
pub fn is_reflection(method: &str) -> bool {
    REFLECTION.contains(&method)
}
