//! Identifiers: UUIDs, told apart by type so that a key's id is never passed for an organization's.
//! New ones are version 7 (RFC 9562): they sort by creation time, which keeps index pages dense.
//! The organization `system` has a fixed id, so that no look-up decides who is an administrator.

use std::fmt;

use uuid::{Builder, Uuid};

use super::{Invalid, time::Timestamp};

macro_rules! id_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(Uuid);

        impl $name {
            /// A new id from the present moment and ten random bytes.
            #[must_use]
            pub fn new(now: Timestamp, random: [u8; 10]) -> Self {
                let millis = u64::try_from(now.micros() / 1000).unwrap_or(0);
                Self(Builder::from_unix_timestamp_millis(millis, &random).into_uuid())
            }

            /// The id of these 16 bytes, as `bytes` gave them.
            #[must_use]
            pub const fn from_bytes(bytes: [u8; 16]) -> Self {
                Self(Uuid::from_bytes(bytes))
            }

            /// The 16 bytes of the id, for files of our own.
            #[must_use]
            pub const fn bytes(&self) -> &[u8; 16] {
                self.0.as_bytes()
            }

            /// Reads the hyphenated form, in either case.
            ///
            /// # Errors
            /// Anything else is refused, other spellings of a UUID included.
            pub fn parse(text: &str) -> Result<Self, Invalid> {
                parse_uuid(text).map(Self)
            }
        }

        impl $name {
            /// The 128 bits of the id.
            #[must_use]
            pub const fn as_u128(&self) -> u128 {
                self.0.as_u128()
            }

            /// The id with these 128 bits.
            #[must_use]
            pub const fn from_u128(bits: u128) -> Self {
                Self(Uuid::from_u128(bits))
            }

            /// The id that stands for a text by which another system named the same thing: a UUID as it is, anything
            /// else as the version 5 UUID (RFC 9562) of the text in a namespace of Keystead's own.
            ///
            /// # Errors
            /// Refuses all but 1 to 128 of `[A-Za-z0-9_.:/-]`.
            pub fn of_text(text: &str) -> Result<Self, Invalid> {
                Self::parse(text).or_else(|_| named_uuid(text).map(Self))
            }

            /// A number that spreads ids evenly: the low half of a version 7 UUID is random.
            #[must_use]
            pub const fn spread(&self) -> u64 {
                self.0.as_u64_pair().1
            }
        }

        impl $name {
            /// Writes the hyphenated form, for where a string of its own would be one too many.
            pub fn write<'a>(&self, room: &'a mut [u8; 36]) -> &'a str {
                self.0.hyphenated().encode_lower(room)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.hyphenated().fmt(f)
            }
        }
    };
}

id_type! {
    /// Names an organization.
    OrganizationId
}
id_type! {
    /// Names an API key. Not secret: it appears in logs and answers.
    KeyId
}
id_type! {
    /// Names an audit event, a recorded request or a call: whatever is neither a key nor an organization.
    RecordId
}

impl OrganizationId {
    /// The built-in organization `system`, whose keys act on every organization.
    pub const SYSTEM: Self = Self(Uuid::from_u128(1));

    /// The id that stands for a text by which a source named an organization: a UUID as it is, anything else as the
    /// version 5 UUID of the source's label and the text, so that customer 42 of one system is never that of another.
    ///
    /// # Errors
    /// Refuses what [`OrganizationId::of_text`] refuses.
    pub fn of_source(source: &str, text: &str) -> Result<Self, Invalid> {
        Self::parse(text).or_else(|_| {
            check_foreign(text)?;
            Ok(Self(Uuid::new_v5(&NAMESPACE, format!("{source}\n{text}").as_bytes())))
        })
    }
}

/// Ids of other systems become UUIDs in this namespace, which must never change.
const NAMESPACE: Uuid = Uuid::from_u128(0x6b65_7973_7465_6164_8000_0000_0000_0001);

fn named_uuid(text: &str) -> Result<Uuid, Invalid> {
    check_foreign(text)?;
    Ok(Uuid::new_v5(&NAMESPACE, text.as_bytes()))
}

fn check_foreign(text: &str) -> Result<(), Invalid> {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"_.:/-".contains(&byte);
    if !(1..=128).contains(&text.len()) || !text.bytes().all(legal) {
        return Err(Invalid::new("must be a UUID, or 1 to 128 of A-Z a-z 0-9 _ . : / -"));
    }
    Ok(())
}

fn parse_uuid(text: &str) -> Result<Uuid, Invalid> {
    let refused = || Invalid::new("must be a UUID such as 0198c7a4-5b7e-7c3a-9f00-2f1d6a8b9c0d");
    if text.len() != 36 {
        return Err(refused());
    }
    Uuid::try_parse(text).map_err(|_| refused())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_round_trip_and_sort_by_time() {
        let early = KeyId::new(Timestamp::from_micros(1_000_000), [9; 10]);
        let late = KeyId::new(Timestamp::from_micros(2_000_000), [0; 10]);
        assert!(early < late);
        assert_eq!(KeyId::parse(&early.to_string()), Ok(early));
        assert_eq!(KeyId::from_bytes(*early.bytes()), early);
    }

    #[test]
    fn an_id_of_another_system_always_becomes_the_same_uuid() {
        let id = KeyId::of_text("ak_live:1").unwrap();
        assert_eq!(id.to_string(), "aa458626-e837-54cf-8b6d-d0e15f25d699", "a key would be lost if it ever changed");
        assert_eq!(
            KeyId::of_text("0198C7A4-5b7e-7c3a-9f00-2f1d6a8b9c0d"),
            KeyId::parse("0198c7a4-5b7e-7c3a-9f00-2f1d6a8b9c0d")
        );
        for text in ["", "a b", "é", &"a".repeat(129)] {
            assert!(KeyId::of_text(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn an_organization_of_one_source_is_not_that_of_another() {
        let id = OrganizationId::of_source("portal", "42").unwrap();
        assert_eq!(OrganizationId::of_source("portal", "42"), Ok(id));
        assert_ne!(OrganizationId::of_source("shop", "42"), Ok(id));
        assert_ne!(OrganizationId::of_text("42"), Ok(id));
        let uuid = "0198c7a4-5b7e-7c3a-9f00-2f1d6a8b9c0d";
        assert_eq!(OrganizationId::of_source("shop", uuid), OrganizationId::parse(uuid));
        for text in ["", "a b", "a\nb", &"a".repeat(129)] {
            assert!(OrganizationId::of_source("portal", text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn other_spellings_are_refused() {
        for text in ["", "1", "{0198c7a4-5b7e-7c3a-9f00-2f1d6a8b9c0d}", "0198c7a45b7e7c3a9f002f1d6a8b9c0d", "💥"] {
            assert!(KeyId::parse(text).is_err(), "{text:?}");
        }
    }
}
