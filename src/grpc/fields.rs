//! Reading the fields of a request: every bad one is collected, so that a caller learns all of them at once.
//! A field that could not be read is `None` from here on, as one that was not given is; `finish` tells them apart,
//! and gives the whole request or all violations.

use std::time::Duration;

use crate::{
    domain::{
        Invalid, address,
        limits::{Credits, RATE_LIMITS_MAX, RateLimit, RefillInterval},
        scope::Scope,
        time::Timestamp,
    },
    proto::v1,
    service::{ServiceError, Violation},
};

/// The most scopes on a key, or asked of one.
const SCOPES_MAX: usize = 100;
/// The most CIDR blocks on a key.
const CIDRS_MAX: usize = 100;
/// The longest etag, in characters.
const ETAG_LENGTH_MAX: usize = 64;
/// An etag that no row ever has: what a caller sends and we did not write.
const FOREIGN_ETAG: i64 = -1;

/// The bad fields found so far.
#[derive(Default)]
pub struct Fields {
    violations: Vec<Violation>,
}

impl Fields {
    /// Keeps a value, or notes why the field was refused.
    pub fn take<T>(&mut self, field: &str, value: Result<T, Invalid>) -> Option<T> {
        value.map_err(|reason| self.refuse(field, reason)).ok()
    }

    /// Notes why a field was refused.
    pub fn refuse(&mut self, field: &str, reason: Invalid) {
        self.violations.push(Violation::new(field, reason));
    }

    /// The request, if every field could be read.
    pub fn finish<T>(self, request: Option<T>) -> Result<T, ServiceError> {
        match request {
            Some(request) if self.violations.is_empty() => Ok(request),
            _ => Err(ServiceError::InvalidArgument(self.violations)),
        }
    }

    /// A value of one of our enums, if one is given: 0 stands for "not given".
    pub fn word<W: TryFrom<i32>, T>(&mut self, field: &str, number: i32, read: impl Fn(W) -> Option<T>) -> Option<T> {
        if let Ok(word) = W::try_from(number) {
            return read(word);
        }
        self.refuse(field, Invalid::new("must be one of the values of its enum"));
        None
    }

    /// As `word`, where a value has to be given.
    pub fn required_word<W: TryFrom<i32>, T>(
        &mut self,
        field: &str,
        number: i32,
        read: impl Fn(W) -> Option<T>,
    ) -> Option<T> {
        if number == 0 {
            self.refuse(field, Invalid::new("must be given"));
            return None;
        }
        self.word(field, number, read)
    }

    /// A text, if one is given: empty stands for "not given".
    pub fn optional<T>(
        &mut self,
        field: &str,
        text: &str,
        parse: impl FnOnce(&str) -> Result<T, Invalid>,
    ) -> Option<T> {
        if text.is_empty() { None } else { self.take(field, parse(text)) }
    }

    /// A list, with every bad item named.
    pub fn list<S, T>(
        &mut self,
        field: &str,
        items: &[S],
        count_max: usize,
        parse: impl Fn(&S) -> Result<T, Invalid>,
    ) -> Option<Vec<T>> {
        if items.len() > count_max {
            self.refuse(field, Invalid::new(format!("must have at most {count_max} items")));
            return None;
        }
        let read: Vec<Option<T>> =
            items.iter().enumerate().map(|(at, item)| self.take(&format!("{field}[{at}]"), parse(item))).collect();
        read.into_iter().collect()
    }

    /// A list of scopes.
    pub fn scopes(&mut self, field: &str, scopes: &[String]) -> Option<Vec<Scope>> {
        self.list(field, scopes, SCOPES_MAX, |text| Scope::parse(text))
    }

    /// A list of CIDR blocks.
    pub fn cidrs(&mut self, field: &str, cidrs: &[String]) -> Option<Vec<ipnet::IpNet>> {
        self.list(field, cidrs, CIDRS_MAX, |text| address::parse_cidr(text))
    }

    /// A list of rate limits with different names.
    pub fn rate_limits(&mut self, field: &str, limits: &[v1::RateLimit]) -> Option<Vec<RateLimit>> {
        let read = self.list(field, limits, RATE_LIMITS_MAX, |limit| {
            let window = limit.window.as_ref().map(parse_span).transpose()?.unwrap_or_default();
            RateLimit::parse(&limit.name, limit.limit, window, limit.shadow)
        })?;
        for (at, limit) in read.iter().enumerate() {
            if read.iter().take(at).any(|other| other.name == limit.name) {
                self.refuse(&format!("{field}[{at}].name"), Invalid::new("must differ from the other limits' names"));
                return None;
            }
        }
        Some(read)
    }

    /// Credits, if there are any.
    pub fn credits(&mut self, field: &str, credits: Option<&v1::Credits>) -> Option<Credits> {
        let credits = credits?;
        let interval = self.word(&format!("{field}.refill_interval"), credits.refill_interval, Some)?;
        let interval = match interval {
            v1::RefillInterval::Unspecified => None,
            v1::RefillInterval::Day => Some(RefillInterval::Day),
            v1::RefillInterval::Month => Some(RefillInterval::Month),
        };
        self.take(field, Credits::parse(credits.remaining, credits.refill_amount, interval))
    }

    /// A moment, if one is given.
    pub fn time(&mut self, field: &str, time: Option<&prost_types::Timestamp>) -> Option<Timestamp> {
        let time = time?;
        let refused = || Invalid::new("must be a time from 1970 to 9999");
        self.take(field, Timestamp::from_parts(time.seconds, time.nanos).ok_or_else(refused))
    }

    /// A moment that is ahead, if one is given.
    pub fn future_time(
        &mut self,
        field: &str,
        time: Option<&prost_types::Timestamp>,
        now: Timestamp,
    ) -> Option<Timestamp> {
        let time = self.time(field, time)?;
        if time > now {
            return Some(time);
        }
        self.refuse(field, Invalid::new("must be in the future"));
        None
    }

    /// A span, if one is given.
    pub fn span(&mut self, field: &str, span: Option<&prost_types::Duration>) -> Option<Duration> {
        self.take(field, parse_span(span?))
    }

    /// An etag, if one is given. One that we never wrote matches no row.
    pub fn etag(&mut self, etag: &str) -> Option<i64> {
        self.optional("etag", etag, |text| {
            if text.len() > ETAG_LENGTH_MAX {
                return Err(Invalid::new(format!("must have at most {ETAG_LENGTH_MAX} characters")));
            }
            Ok(text.parse().unwrap_or(FOREIGN_ETAG))
        })
    }
}

/// Reads a span that is not negative.
pub(super) fn parse_span(span: &prost_types::Duration) -> Result<Duration, Invalid> {
    let refused = || Invalid::new("must be a span that is not negative");
    let seconds = u64::try_from(span.seconds).map_err(|_| refused())?;
    let nanos = u32::try_from(span.nanos).ok().filter(|nanos| *nanos < 1_000_000_000).ok_or_else(refused)?;
    Ok(Duration::new(seconds, nanos))
}
