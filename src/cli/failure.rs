//! Why a command failed, and the exit code that says so to a script.
//!
//! 0 done, 1 refused, 2 usage, 3 unreachable. Turns errors of the configuration, the application and the server
//! into text; prints nothing itself. Invariant: text that a server sent is escaped here, once, before it becomes
//! part of a failure.

use std::error::Error;
use std::fmt::Write as _;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use super::output::escape;
use crate::app::AppError;
use crate::config::ConfigError;

/// The command did what it was asked to.
pub const DONE: u8 = 0;
/// The service or the database said no, or the answer is "no".
pub const REFUSED: u8 = 1;
/// The command line or the configuration is wrong.
pub const USAGE: u8 = 2;
/// The service could not be reached, or did not answer.
pub const UNREACHABLE: u8 = 3;

/// Why a command failed.
#[derive(Debug)]
pub(super) struct Failure {
    /// Exit code of the process.
    pub(super) code: u8,
    /// What to tell, without a line feed at its end.
    pub(super) text: String,
}

impl Failure {
    /// The answer is no.
    pub(super) fn refused(text: String) -> Self {
        Self { code: REFUSED, text }
    }

    /// The command line or what it names is wrong.
    pub(super) fn usage(text: String) -> Self {
        Self { code: USAGE, text }
    }

    /// Nobody answered.
    pub(super) fn unreachable(text: String) -> Self {
        Self { code: UNREACHABLE, text }
    }

    /// What a call ended with. A status with a source was made here, from a connection that failed; one that a
    /// server sent has none.
    pub(super) fn of_status(status: &Status, address: &str) -> Self {
        match status.source() {
            Some(source) => Self::unreachable(format!(
                "the connection to {address} failed: {}; a change may have been made",
                chain(source)
            )),
            None => Self::refused(status_text(status)),
        }
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::usage(error.to_string())
    }
}

impl From<AppError> for Failure {
    fn from(error: AppError) -> Self {
        Self { code: error.exit_code(), text: chain(&error) }
    }
}

/// An error and what caused it, in one line.
pub(super) fn chain(error: &dyn Error) -> String {
    let mut text = escape(&error.to_string());
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = escape(&cause.to_string());
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        next = cause.source();
    }
    text
}

/// `CODE REASON: message` and a line for each detail.
fn status_text(status: &Status) -> String {
    let details = status.get_error_details();
    let mut text = code_name(status.code());
    if let Some(info) = details.error_info() {
        text.push(' ');
        text.push_str(&escape(&info.reason));
    }
    text.push_str(": ");
    text.push_str(&escape(status.message()));
    for line in detail_lines(&details) {
        let _ = write!(text, "\n  {line}");
    }
    text
}

fn detail_lines(details: &ErrorDetails) -> Vec<String> {
    let mut lines = Vec::new();
    for violation in details.bad_request().iter().flat_map(|part| &part.field_violations) {
        lines.push(format!("field {}: {}", escape(&violation.field), escape(&violation.description)));
    }
    for violation in details.precondition_failure().iter().flat_map(|part| &part.violations) {
        let (kind, subject) = (escape(&violation.r#type), escape(&violation.subject));
        lines.push(format!("precondition {kind} {subject}: {}", escape(&violation.description)));
    }
    for violation in details.quota_failure().iter().flat_map(|part| &part.violations) {
        lines.push(format!("quota {}: {}", escape(&violation.subject), escape(&violation.description)));
    }
    if let Some(resource) = details.resource_info() {
        let (kind, name) = (escape(&resource.resource_type), escape(&resource.resource_name));
        lines.push(format!("resource {kind} {name}: {}", escape(&resource.description)));
    }
    if let Some(request) = details.request_info() {
        lines.push(format!("request {}", escape(&request.request_id)));
    }
    if let Some(delay) = details.retry_info().and_then(|retry| retry.retry_delay) {
        lines.push(format!("try again in {} s", delay.as_secs_f64()));
    }
    if let Some(info) = details.error_info() {
        let mut pairs: Vec<_> = info.metadata.iter().collect();
        pairs.sort();
        lines.extend(pairs.iter().map(|(name, value)| format!("{}: {}", escape(name), escape(value))));
    }
    lines
}

/// The code as the contract writes it, such as `INVALID_ARGUMENT`.
fn code_name(code: Code) -> String {
    let mut name = String::new();
    for character in format!("{code:?}").chars() {
        if character.is_uppercase() && !name.is_empty() {
            name.push('_');
        }
        name.push(character.to_ascii_uppercase());
    }
    name
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    #[test]
    fn a_refusal_shows_code_reason_message_and_every_detail() {
        let mut details = ErrorDetails::with_error_info("FIELDS_INVALID", "keystead", HashMap::new());
        details.add_bad_request_violation("name", "is required");
        details.add_bad_request_violation("scopes[1]", "has a \u{1b}character too many");
        let status = Status::with_error_details(Code::InvalidArgument, "2 fields are wrong", details);

        let failure = Failure::of_status(&status, "http://h");

        assert_eq!(failure.code, REFUSED);
        assert_eq!(
            failure.text,
            "INVALID_ARGUMENT FIELDS_INVALID: 2 fields are wrong\n  field name: is required\n  \
             field scopes[1]: has a \\u{1b}character too many"
        );
    }

    #[test]
    fn what_the_server_calls_unavailable_is_a_refusal_and_a_broken_connection_is_not() {
        let sent = Status::unavailable("overload");
        assert_eq!(Failure::of_status(&sent, "http://h").code, REFUSED);
        let broken = Status::from_error(Box::new(std::io::Error::other("reset")));
        assert_eq!(Failure::of_status(&broken, "http://h").code, UNREACHABLE);
    }
}
