//! Requests about usage, from wire to domain. Every bad field of a question is named; of reports, every bad one, with
//! the first of its faults. Nothing is looked up.

use std::time::Duration;

use super::{
    decode_key::{ENDPOINT_LENGTH_MAX, METHOD_LENGTH_MAX, REQUEST_ID_LENGTH_MAX, USER_AGENT_LENGTH_MAX},
    fields::{Fields, parse_span},
};
use crate::{
    domain::{
        Invalid, address,
        ids::{KeyId, OrganizationId},
        text,
        time::Timestamp,
        usage::{UsageQuestion, UsageSubject},
        usage_report::{
            REPORT_AGE_MAX, REPORT_AHEAD_MAX, REPORTED_AMOUNT_MAX, REPORTS_MAX, RESPONSE_TIME_MAX, Rejection,
            STATUS_CODE_MAX, UsageReport, UsageReports,
        },
        usage_span::Granularity,
    },
    proto::v1,
    service::ServiceError,
};

/// The longest error code, in characters.
const ERROR_CODE_LENGTH_MAX: usize = 64;
/// How many endpoints, errors and consumers where no number is given.
const TOP_DEFAULT: u64 = 10;
const TOP_MAX: i32 = 100;

/// The span is the current month where none is given.
pub fn decode_stats(request: v1::UsageStatsRequest, now: Timestamp) -> Result<UsageQuestion, ServiceError> {
    use v1::usage_stats_request::Subject;
    let mut fields = Fields::default();
    let subject = match request.subject {
        Some(Subject::OrganizationId(id)) => {
            fields.take("organization_id", OrganizationId::parse(&id)).map(UsageSubject::Organization)
        }
        Some(Subject::KeyId(id)) => fields.take("key_id", KeyId::parse(&id)).map(UsageSubject::Key),
        None => {
            fields.refuse("subject", Invalid::new("must be one of organization_id and key_id"));
            None
        }
    };
    let start = fields.time("start_time", request.start_time.as_ref());
    let end = fields.time("end_time", request.end_time.as_ref());
    let granularity = fields.word("granularity", request.granularity, |word| {
        Some(match word {
            v1::Granularity::Hour => Granularity::Hour,
            v1::Granularity::Unspecified | v1::Granularity::Day => Granularity::Day,
            v1::Granularity::Month => Granularity::Month,
        })
    });
    if !(0..=TOP_MAX).contains(&request.top) {
        fields.refuse("top", Invalid::new(format!("must be 0 to {TOP_MAX}")));
    }
    let top = u64::try_from(request.top).ok().filter(|top| *top > 0).unwrap_or(TOP_DEFAULT);
    let question = (|| {
        let end = end.unwrap_or_else(|| now.plus(std::time::Duration::from_micros(1)));
        Some(UsageQuestion {
            subject: subject?,
            start: start.unwrap_or_else(|| end.minus(std::time::Duration::from_micros(1)).start_of_month()),
            end,
            granularity: granularity?,
            top,
        })
    })();
    fields.finish(question)
}

/// Tells the good reports from the bad ones, so that these do not hinder those.
///
/// # Errors
/// `InvalidArgument` where there are too many for one call.
pub fn decode_report(request: v1::ReportUsageRequest, now: Timestamp) -> Result<UsageReports, ServiceError> {
    if request.records.len() > REPORTS_MAX {
        let reason = Invalid::new(format!("must have at most {REPORTS_MAX} items"));
        return Err(ServiceError::invalid("records", reason));
    }
    let mut reports = UsageReports::default();
    for (at, record) in (0..).zip(request.records) {
        match decode_record(record, now) {
            Ok(report) => reports.good.push((at, report)),
            Err(rejection) => reports.rejected.push((at, rejection)),
        }
    }
    Ok(reports)
}

fn decode_record(record: v1::UsageRecord, now: Timestamp) -> Result<UsageReport, Rejection> {
    let plain = |text: String, length_max, rejection| match text::parse_plain(&text, length_max) {
        Ok(_) => Ok(text),
        Err(_) => Err(rejection),
    };
    let amount = |amount: i64, rejection| {
        if (0..=REPORTED_AMOUNT_MAX).contains(&amount) { Ok(amount) } else { Err(rejection) }
    };
    if record.request_id.is_empty() {
        return Err(Rejection::InvalidRequestId);
    }
    if !(0..=STATUS_CODE_MAX).contains(&record.status_code) {
        return Err(Rejection::InvalidStatusCode);
    }
    if !record.client_address.is_empty() && address::parse_address(&record.client_address).is_err() {
        return Err(Rejection::InvalidClientAddress);
    }
    Ok(UsageReport {
        request_id: plain(record.request_id, REQUEST_ID_LENGTH_MAX, Rejection::InvalidRequestId)?,
        key_id: KeyId::parse(&record.key_id).map_err(|_| Rejection::InvalidKeyId)?,
        time: decode_record_time(record.time, now)?,
        endpoint: plain(record.endpoint, ENDPOINT_LENGTH_MAX, Rejection::InvalidEndpoint)?,
        method: plain(record.method, METHOD_LENGTH_MAX, Rejection::InvalidMethod)?,
        status_code: record.status_code,
        response_time: decode_response_time(record.response_time)?,
        tokens: amount(record.tokens, Rejection::InvalidTokens)?,
        cost_micro_usd: amount(record.cost_micro_usd, Rejection::InvalidCost)?,
        client_address: record.client_address,
        user_agent: plain(record.user_agent, USER_AGENT_LENGTH_MAX, Rejection::InvalidUserAgent)?,
        error_code: plain(record.error_code, ERROR_CODE_LENGTH_MAX, Rejection::InvalidErrorCode)?,
        error_message: text::parse_note(&record.error_message).map_err(|_| Rejection::InvalidErrorMessage)?,
    })
}

fn decode_record_time(time: Option<prost_types::Timestamp>, now: Timestamp) -> Result<Timestamp, Rejection> {
    let Some(time) = time else {
        return Ok(now);
    };
    let time = Timestamp::from_parts(time.seconds, time.nanos).ok_or(Rejection::InvalidTime)?;
    if time > now.plus(REPORT_AHEAD_MAX) {
        return Err(Rejection::TimeInFuture);
    }
    if time < now.minus(REPORT_AGE_MAX) {
        return Err(Rejection::TimeTooOld);
    }
    Ok(time)
}

fn decode_response_time(time: Option<prost_types::Duration>) -> Result<Option<Duration>, Rejection> {
    let time = time.as_ref().map(parse_span).transpose().map_err(|_| Rejection::InvalidResponseTime)?;
    if time.is_some_and(|time| time > RESPONSE_TIME_MAX) {
        return Err(Rejection::InvalidResponseTime);
    }
    Ok(time)
}
