//! The names under `columns`, `values` and `words`: a closed set, each with its kind and how much of it is fetched.
//! One name means one thing in every table, so that what reads a field need not know the table.
//! Must not read a value; `values.rs` does.

/// What a field holds, and so how its text is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A secret or a hash.
    Material,
    /// An id, or a part of a secret that is public.
    Reference,
    /// Free text.
    Text,
    Environment,
    Status,
    Plan,
    RevocationReason,
    /// True or false.
    Flag,
    Time,
    /// A number that is not negative, whole or not.
    Number,
    Scopes,
    Cidrs,
    Metadata,
}

/// Defines the enum of fields with name, kind and the most characters that are fetched of each.
macro_rules! fields {
    ($($(#[$doc:meta])* $field:ident = $name:literal, $kind:ident, $length_max:literal;)+) => {
        /// A field of Keystead's that a column of the source, or a constant, fills.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Field { $($(#[$doc])* $field),+ }

        impl Field {
            /// Every field, in the order of the enum.
            pub const ALL: &'static [Self] = &[$(Self::$field),+];

            /// The name in the mapping.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$field => $name),+ }
            }

            /// The field of this name.
            #[must_use]
            pub fn from_name(name: &str) -> Option<Self> {
                match name { $($name => Some(Self::$field),)+ _ => None }
            }

            /// What it holds.
            #[must_use]
            pub const fn kind(self) -> Kind {
                match self { $(Self::$field => Kind::$kind),+ }
            }

            /// The most characters that are of use; what is longer is fetched cut, and told by one more.
            #[must_use]
            pub const fn length_max(self) -> u32 {
                match self { $(Self::$field => $length_max),+ }
            }
        }
    };
}

fields! {
    /// The plaintext.
    Secret = "secret", Material, 600;
    Sha256Hex = "sha256-hex", Material, 600;
    Sha256Base64 = "sha256-base64", Material, 600;
    Bcrypt = "bcrypt", Material, 600;
    Argon2 = "argon2", Material, 600;
    /// An id that the key keeps.
    KeyId = "key-id", Reference, 300;
    /// Whose row it is: `key` of organizations, or the slug or id of one in Keystead.
    Organization = "organization", Reference, 300;
    /// What the secret begins with, public.
    LookUpId = "look-up-id", Reference, 300;
    Prefix = "prefix", Text, 300;
    Hint = "hint", Text, 300;
    /// First and last characters in one text.
    Display = "display", Text, 300;
    Name = "name", Text, 1000;
    Environment = "environment", Environment, 100;
    OwnerId = "owner-id", Text, 300;
    Scopes = "scopes", Scopes, 20_000;
    Metadata = "metadata", Metadata, 65_536;
    AllowedCidrs = "allowed-cidrs", Cidrs, 20_000;
    CreditsRemaining = "credits-remaining", Number, 64;
    Enabled = "enabled", Flag, 64;
    Disabled = "disabled", Flag, 64;
    Status = "status", Status, 100;
    CreateTime = "create-time", Time, 64;
    ExpireTime = "expire-time", Time, 64;
    LastUsedTime = "last-used-time", Time, 64;
    RequestCount = "request-count", Number, 64;
    RevokeTime = "revoke-time", Time, 64;
    RevokedBy = "revoked-by", Text, 300;
    RevocationReason = "revocation-reason", RevocationReason, 2000;
    RevocationNote = "revocation-note", Text, 2000;
    /// Of organizations: what other tables call it. Of usage and limits: the id of a row of keys.
    Key = "key", Reference, 300;
    Slug = "slug", Text, 300;
    Email = "email", Text, 300;
    Plan = "plan", Plan, 100;
    Active = "active", Flag, 100;
    MaxKeys = "max-keys", Number, 64;
    MonthlyQuota = "monthly-quota", Number, 64;
    /// What is spent of the present month's quota.
    QuotaUsed = "quota-used", Number, 64;
    SecretPrefix = "secret-prefix", Text, 100;
    Time = "time", Time, 64;
    Endpoint = "endpoint", Text, 2000;
    Method = "method", Text, 100;
    StatusCode = "status-code", Number, 64;
    ResponseTimeMs = "response-time-ms", Number, 64;
    ResponseTimeUs = "response-time-us", Number, 64;
    Tokens = "tokens", Number, 64;
    CostUsd = "cost-usd", Number, 64;
    CostMicroUsd = "cost-micro-usd", Number, 64;
    ClientAddress = "client-address", Text, 100;
    UserAgent = "user-agent", Text, 2000;
    ErrorCode = "error-code", Text, 300;
    ErrorMessage = "error-message", Text, 2000;
    RequestId = "request-id", Reference, 300;
    WindowStart = "window-start", Time, 64;
    WindowEnd = "window-end", Time, 64;
    Count = "count", Number, 64;
}

impl Field {
    /// What Keystead can know a secret by, in the order in which a row's are tried.
    pub const MATERIAL: &'static [Self] =
        &[Self::Secret, Self::Sha256Hex, Self::Sha256Base64, Self::Bcrypt, Self::Argon2];

    /// Whether it is a secret, a part of one, or a hash that is written as text: in a column of bytes these are the
    /// bytes of that text. A digest or an id in such a column is the bytes themselves.
    #[must_use]
    pub const fn is_of_secret(self) -> bool {
        matches!(
            self,
            Self::Secret
                | Self::Bcrypt
                | Self::Argon2
                | Self::LookUpId
                | Self::Prefix
                | Self::Hint
                | Self::Display
                | Self::SecretPrefix
        )
    }
}

/// Which fields a kind of table has.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fields {
    /// Under `columns`.
    pub(super) columns: &'static [Field],
    /// Of those: under `values`. What tells rows apart is no constant.
    pub(super) values: &'static [Field],
    /// Of those: under `words`.
    pub(super) words: &'static [Field],
    /// Whether it may have `limits`.
    pub(super) limits: bool,
}

pub(super) const ORGANIZATIONS: Fields = Fields {
    columns: &[
        Field::Key,
        Field::Name,
        Field::Slug,
        Field::Email,
        Field::Plan,
        Field::Active,
        Field::MaxKeys,
        Field::MonthlyQuota,
        Field::QuotaUsed,
        Field::Metadata,
        Field::CreateTime,
        Field::SecretPrefix,
    ],
    values: &[
        Field::Name,
        Field::Plan,
        Field::Active,
        Field::MaxKeys,
        Field::MonthlyQuota,
        Field::QuotaUsed,
        Field::Metadata,
        Field::CreateTime,
        Field::SecretPrefix,
    ],
    words: &[Field::Plan, Field::Active],
    limits: true,
};

pub(super) const KEYS: Fields = Fields {
    columns: &[
        Field::Secret,
        Field::Sha256Hex,
        Field::Sha256Base64,
        Field::Bcrypt,
        Field::Argon2,
        Field::KeyId,
        Field::Organization,
        Field::LookUpId,
        Field::Prefix,
        Field::Hint,
        Field::Display,
        Field::Name,
        Field::Environment,
        Field::OwnerId,
        Field::Scopes,
        Field::Metadata,
        Field::AllowedCidrs,
        Field::CreditsRemaining,
        Field::Enabled,
        Field::Disabled,
        Field::Status,
        Field::CreateTime,
        Field::ExpireTime,
        Field::LastUsedTime,
        Field::RequestCount,
        Field::RevokeTime,
        Field::RevokedBy,
        Field::RevocationReason,
        Field::RevocationNote,
    ],
    values: &[
        Field::Organization,
        Field::Prefix,
        Field::Name,
        Field::Environment,
        Field::OwnerId,
        Field::Scopes,
        Field::Metadata,
        Field::AllowedCidrs,
        Field::CreditsRemaining,
        Field::Enabled,
        Field::Disabled,
        Field::Status,
        Field::CreateTime,
        Field::ExpireTime,
        Field::LastUsedTime,
        Field::RequestCount,
        Field::RevokeTime,
        Field::RevokedBy,
        Field::RevocationReason,
        Field::RevocationNote,
    ],
    words: &[Field::Environment, Field::Status, Field::Enabled, Field::Disabled, Field::RevocationReason],
    limits: true,
};

pub(super) const USAGE: Fields = Fields {
    columns: &[
        Field::Key,
        Field::Time,
        Field::Endpoint,
        Field::Method,
        Field::StatusCode,
        Field::ResponseTimeMs,
        Field::ResponseTimeUs,
        Field::Tokens,
        Field::CostUsd,
        Field::CostMicroUsd,
        Field::ClientAddress,
        Field::UserAgent,
        Field::ErrorCode,
        Field::ErrorMessage,
        Field::RequestId,
    ],
    values: &[
        Field::Endpoint,
        Field::Method,
        Field::StatusCode,
        Field::Tokens,
        Field::CostUsd,
        Field::CostMicroUsd,
        Field::UserAgent,
    ],
    words: &[],
    limits: false,
};

pub(super) const LIMITS: Fields = Fields {
    columns: &[Field::Key, Field::Organization, Field::Name, Field::WindowStart, Field::WindowEnd, Field::Count],
    values: &[Field::Organization, Field::Name],
    words: &[],
    limits: false,
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_is_found_by_its_name_and_belongs_to_a_table() {
        for field in Field::ALL {
            assert_eq!(Field::from_name(field.as_str()), Some(*field));
            assert!(
                [ORGANIZATIONS, KEYS, USAGE, LIMITS].iter().any(|fields| fields.columns.contains(field)),
                "{field:?}"
            );
        }
        assert_eq!(Field::from_name("owner_id"), None);
    }

    #[test]
    fn what_is_constant_or_has_words_is_a_field_of_the_table() {
        for fields in [ORGANIZATIONS, KEYS, USAGE, LIMITS] {
            let strays = fields.values.iter().chain(fields.words).find(|field| !fields.columns.contains(field));
            assert_eq!(strays, None);
            assert!(fields.values.iter().all(|field| field.kind() != Kind::Material));
        }
    }
}
