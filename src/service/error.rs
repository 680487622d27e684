//! What a use case can refuse or fail with, as a closed set; `grpc/status.rs` turns it into a status.
//! Must not hold database text where a client could see it: `Internal` is logged, never shown.

use std::time::Duration;

use crate::{
    domain::{
        Invalid,
        ids::{KeyId, OrganizationId},
    },
    limits::TurnError,
    store::StoreError,
};

/// After how long a caller may try again what the service could not answer.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// One bad field of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// The field's path, such as `key.scopes[3]`.
    pub field: String,
    pub description: String,
}

impl Violation {
    /// A refusal of this field.
    pub fn new(field: impl Into<String>, reason: Invalid) -> Self {
        Self { field: field.into(), description: reason.0 }
    }
}

/// A key or an organization, by the name under which the caller asked for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resource {
    /// `key` or `organization`.
    pub kind: &'static str,
    pub name: String,
}

impl Resource {
    /// A key.
    #[must_use]
    pub fn key(id: KeyId) -> Self {
        Self { kind: "key", name: id.to_string() }
    }

    /// An organization.
    #[must_use]
    pub fn organization(id: OrganizationId) -> Self {
        Self { kind: "organization", name: id.to_string() }
    }
}

/// Why a use case did not do what was asked.
#[derive(Debug)]
pub enum ServiceError {
    /// Every bad field of the request.
    InvalidArgument(Vec<Violation>),
    /// No credential, or one that is unknown, revoked, disabled or expired, or of an inactive organization: the
    /// answer does not tell which.
    Unauthenticated,
    /// The caller lacks this permission, or may not hand out this scope.
    PermissionDenied { reason: &'static str, permission: String },
    /// There is none, or none that the caller may know of.
    NotFound(Resource),
    /// A unique value is taken; by which resource, where the caller may know.
    AlreadyExists { reason: &'static str, field: &'static str, resource: Option<Resource> },
    /// The resource is in the wrong state for this.
    FailedPrecondition { reason: &'static str, resource: Resource, description: String },
    /// The organization has as many keys as its cap allows.
    KeyCapReached { organization: OrganizationId, max_keys: i64 },
    /// The resource has changed since the caller read it.
    EtagMismatch(Resource),
    /// The service does not know: the database could not answer. The cause is for the log, and may be empty.
    Unavailable { reason: &'static str, may_have_happened: bool, retry_after: Duration, cause: String },
    /// The caller's own deadline has passed.
    DeadlineExceeded,
    /// Anything unforeseen; the text is for the log.
    Internal(String),
}

impl ServiceError {
    /// A refusal of one field.
    pub fn invalid(field: impl Into<String>, reason: Invalid) -> Self {
        Self::InvalidArgument(vec![Violation::new(field, reason)])
    }

    /// The service cannot answer, for a reason that says it all; nothing was done.
    #[must_use]
    pub const fn unavailable(reason: &'static str) -> Self {
        Self::Unavailable { reason, may_have_happened: false, retry_after: RETRY_AFTER, cause: String::new() }
    }

    /// What an answer would rest on has grown older than the staleness bound before it could be given.
    #[must_use]
    pub const fn grown_stale() -> Self {
        Self::Unavailable {
            reason: "GROWN_STALE",
            may_have_happened: true,
            retry_after: RETRY_AFTER,
            cause: String::new(),
        }
    }

    /// The service's own time for the call ran out. A mutation goes on by itself and may come through.
    #[must_use]
    pub const fn timed_out() -> Self {
        Self::Unavailable {
            reason: "TIMED_OUT",
            may_have_happened: true,
            retry_after: RETRY_AFTER,
            cause: String::new(),
        }
    }
}

impl From<StoreError> for ServiceError {
    fn from(error: StoreError) -> Self {
        Self::from(&error)
    }
}

impl From<&StoreError> for ServiceError {
    fn from(error: &StoreError) -> Self {
        let cause = error.chain();
        let (reason, may_have_happened) = match error {
            StoreError::Unavailable { may_have_happened, .. } => ("DATABASE_UNAVAILABLE", *may_have_happened),
            StoreError::Corrupt(_) => ("ROW_UNREADABLE", false),
            StoreError::Overloaded => ("OVERLOADED", false),
            StoreError::Conflict(_) | StoreError::Unforeseen(_) => return Self::Internal(cause),
        };
        Self::Unavailable { reason, may_have_happened, retry_after: RETRY_AFTER, cause }
    }
}

impl From<TurnError> for ServiceError {
    fn from(error: TurnError) -> Self {
        match error {
            TurnError::Overloaded => Self::unavailable("OVERLOADED"),
            TurnError::Store(error) => Self::from(error),
            TurnError::Abandoned => Self::timed_out(),
        }
    }
}
