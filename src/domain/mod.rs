//! The words of Keystead and the rules that hold between them: pure, synchronous, without wire or row.
//! Must not import anything of this crate outside itself, read a clock, or draw randomness: both are arguments.
//! Invariant: a value of a type from here has been checked; nothing behind the edge checks it again.

pub mod address;
pub mod audit;
pub mod digest;
pub mod ids;
pub mod import;
pub mod key;
pub mod limits;
pub mod organization;
pub mod outcome;
pub mod page;
pub mod permission;
pub mod record;
pub mod response_times;
#[cfg(test)]
pub(crate) mod samples;
pub mod scope;
pub mod secret;
pub mod text;
pub mod time;
pub mod usage;
pub mod usage_report;
pub mod usage_span;

/// Why a value was refused, in words for the person who sent it.
///
/// Never contains the value itself: it may be a secret pasted into the wrong field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invalid(pub String);

impl Invalid {
    /// A refusal with this reason, a phrase that completes "the field ...".
    pub fn new(reason: impl Into<String>) -> Self {
        Self(reason.into())
    }
}
