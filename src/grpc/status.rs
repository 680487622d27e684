//! From `ServiceError` to a gRPC status with rich details (google.rpc error model): always exactly one `ErrorInfo`,
//! and what else applies. Every value that the message names is in the `ErrorInfo`'s metadata too.
//! Must not show database text: `INTERNAL` shows a request id and nothing else.

use std::collections::HashMap;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use crate::{
    domain::ids::RecordId,
    service::{Resource, ServiceError, Violation},
};

/// The domain of every `ErrorInfo`.
const DOMAIN: &str = "keystead";
/// Bytes of field violations that one status carries. Details travel in a header, and common clients (grpc-core)
/// refuse more than 8 KiB of headers; what does not fit is counted.
const VIOLATION_BYTES_MAX: usize = 3072;
/// Characters of one value that a message and its metadata repeat.
const VALUE_LENGTH_MAX: usize = 256;

/// A status being put together.
pub struct Refusal {
    code: Code,
    message: String,
    metadata: HashMap<String, String>,
    reason: &'static str,
    details: ErrorDetails,
}

impl Refusal {
    /// A refusal with this `ErrorInfo` reason.
    pub fn new(code: Code, reason: &'static str, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), metadata: HashMap::new(), reason, details: ErrorDetails::new() }
    }

    /// A refusal of a request in which more than one of these fields is set.
    pub fn one_of(names: &[&str]) -> Self {
        let message = "only one member of a oneof may be set";
        let mut refusal = Self::new(Code::InvalidArgument, "INVALID_FIELDS", message);
        for name in names {
            refusal.details.add_bad_request_violation(*name, format!("only one of {} may be set", names.join(", ")));
        }
        refusal
    }

    fn with(mut self, name: &str, value: impl Into<String>) -> Self {
        self.metadata.insert(name.to_owned(), value.into());
        self
    }

    fn about(mut self, resource: &Resource) -> Self {
        let name = shorten(&resource.name);
        self.details.set_resource_info(resource.kind, name.clone(), "", "");
        self.with(resource.kind, name)
    }

    /// The status.
    pub fn into_status(mut self) -> Status {
        self.details.set_error_info(self.reason, DOMAIN, self.metadata);
        Status::with_error_details(self.code, self.message, self.details)
    }
}

/// The status of an error. Its cause has been logged with the same request id before.
pub fn encode_error(error: &ServiceError, request_id: RecordId) -> Status {
    match error {
        ServiceError::InvalidArgument(violations) => invalid_argument(violations),
        ServiceError::Unauthenticated => {
            let message = "the call needs the secret of a valid key: authorization: Bearer <secret>";
            Refusal::new(Code::Unauthenticated, "UNAUTHENTICATED", message)
        }
        ServiceError::PermissionDenied { reason, permission } => {
            let message = match *reason {
                "SCOPE_NOT_HELD" => format!("the caller does not hold {permission} and so cannot hand it out"),
                "SYSTEM_ORGANIZATION_REQUIRED" => {
                    format!("{permission} opens this rpc to keys of the organization system alone")
                }
                _ => format!("the caller's key lacks the permission {permission}"),
            };
            Refusal::new(Code::PermissionDenied, reason, message).with("permission", permission)
        }
        ServiceError::NotFound(resource) => {
            let reason = if resource.kind == "key" { "KEY_NOT_FOUND" } else { "ORGANIZATION_NOT_FOUND" };
            let message = format!("there is no {} {}", resource.kind, shorten(&resource.name));
            Refusal::new(Code::NotFound, reason, message).about(resource)
        }
        ServiceError::AlreadyExists { reason, field, resource } => already_exists(reason, field, resource.as_ref()),
        ServiceError::FailedPrecondition { reason, resource, description } => {
            let message = format!("{} {}: {description}", resource.kind, shorten(&resource.name));
            let mut refusal = Refusal::new(Code::FailedPrecondition, reason, message).about(resource);
            refusal.details.add_precondition_failure_violation(*reason, &resource.name, description);
            refusal
        }
        ServiceError::KeyCapReached { organization, max_keys } => {
            let message = format!("organization {organization} has {max_keys} keys, as many as its cap allows");
            let mut refusal = Refusal::new(Code::ResourceExhausted, "KEY_CAP_REACHED", message)
                .with("organization", organization.to_string())
                .with("max_keys", max_keys.to_string());
            let subject = format!("organization:{organization}");
            refusal.details.add_quota_failure_violation(subject, "the organization's max_keys is reached");
            refusal
        }
        ServiceError::EtagMismatch(resource) => {
            let message = format!("{} {} has changed since its etag was read", resource.kind, resource.name);
            Refusal::new(Code::Aborted, "ETAG_MISMATCH", message).about(resource)
        }
        ServiceError::Unavailable { reason, may_have_happened, retry_after, cause: _ } => {
            let message = match may_have_happened {
                true => "the service cannot tell whether it was done; read before trying again",
                false => "the service cannot answer now; try again later",
            };
            let mut refusal = Refusal::new(Code::Unavailable, reason, message);
            refusal.details.set_retry_info(Some(*retry_after));
            refusal
        }
        ServiceError::DeadlineExceeded => {
            let message = "the caller's deadline has passed; a change may have been made";
            Refusal::new(Code::DeadlineExceeded, "DEADLINE_EXCEEDED", message)
        }
        ServiceError::Internal(_) => {
            let message = format!("internal error; request id {request_id}");
            let mut refusal =
                Refusal::new(Code::Internal, "INTERNAL", message).with("request_id", request_id.to_string());
            refusal.details.set_request_info(request_id.to_string(), "");
            refusal
        }
    }
    .into_status()
}

/// All violations, as many as fit; the message names the first.
fn invalid_argument(violations: &[Violation]) -> Refusal {
    let first = violations.first().map(|first| (shorten(&first.field), first.description.clone()));
    let (field, description) = first.unwrap_or_default();
    let mut refusal = if violations.len() > 1 {
        let count = violations.len().to_string();
        let message = format!("{field}: {description}; {count} violations in all");
        Refusal::new(Code::InvalidArgument, "INVALID_FIELDS", message).with("violations", count)
    } else {
        Refusal::new(Code::InvalidArgument, "INVALID_FIELDS", format!("{field}: {description}"))
    };
    refusal = refusal.with("field", field);
    let mut bytes = 0;
    for (at, violation) in violations.iter().enumerate() {
        bytes += violation.field.len() + violation.description.len();
        if bytes > VIOLATION_BYTES_MAX {
            let left_out = violations.len() - at;
            refusal.details.add_bad_request_violation("(more)", format!("{left_out} more fields are bad"));
            break;
        }
        refusal.details.add_bad_request_violation(&violation.field, &violation.description);
    }
    refusal
}

fn already_exists(reason: &'static str, field: &'static str, resource: Option<&Resource>) -> Refusal {
    let Some(resource) = resource else {
        return Refusal::new(Code::AlreadyExists, reason, format!("{field} is taken")).with("field", field);
    };
    let message = format!("{field} was used before, for {} {}", resource.kind, resource.name);
    Refusal::new(Code::AlreadyExists, reason, message).with("field", field).about(resource)
}

fn shorten(value: &str) -> String {
    value.chars().take(VALUE_LENGTH_MAX).collect()
}
