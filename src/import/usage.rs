//! Requests of the past, from rows to batches of `service::import_usage`.
//!
//! A request is counted whatever it was called: texts that are too long are cut, what does not show is taken out of
//! them, and what is no address is left out. An error is a status code of 400 and more (or a gRPC code but OK), an
//! error code, or an error message; one with a message alone gets the code `UNKNOWN`, so that it is one here too.
//! NULL as status, tokens or cost is 0, and as response time none. Money finer than a millionth of a dollar is rounded,
//! row by row. What cannot be counted (no time, a negative number) is refused.
//! Must not write by itself.

use std::{sync::Arc, time::Duration};

use time::UtcOffset;

use super::{
    mapping::{Field, Mapping, UsageTable},
    planned::Planned,
    rows::{BatchCounts, KeyRefs, check_row_id},
    source::Row,
    treat::Columns,
    values::{Moment, parse_count, parse_micro_usd, parse_micros, parse_millis, parse_moment, trim},
};
use crate::{
    domain::{
        Invalid, address,
        ids::KeyId,
        import::{Refusal, Refused},
        text,
        time::Timestamp,
        usage_report::{REPORT_AHEAD_MAX, REPORTED_AMOUNT_MAX, RESPONSE_TIME_MAX, STATUS_CODE_MAX, UsageReport},
    },
    service::{self, Context, ServiceError, UsageItem},
    store::{StoreError, imports::Import},
};

/// The most characters of texts; the same as in reports.
const ENDPOINT_LENGTH_MAX: usize = 256;
const METHOD_LENGTH_MAX: usize = 16;
const USER_AGENT_LENGTH_MAX: usize = 512;
const REQUEST_ID_LENGTH_MAX: usize = 128;
const ERROR_CODE_LENGTH_MAX: usize = 64;
const ERROR_MESSAGE_LENGTH_MAX: usize = 1000;
/// How far the clocks of the source and of this machine may be apart.
const CLOCKS_DIFFER_MAX: Duration = Duration::from_mins(5);
/// The code of an error that has a message alone.
const UNKNOWN_ERROR: &str = "UNKNOWN";

/// A table of requests of the past.
pub(super) struct Usage {
    columns: Columns,
    zone: UtcOffset,
    keys: KeyRefs,
    /// Whether requests of this month are taken from monthly quotas.
    spends_quota: bool,
    /// From when on a request may be of a key that was issued after the keys were read.
    unsure_from: Timestamp,
}

impl Usage {
    /// A table of a mapping, once its table of keys has been imported, which was begun at `keys_read_from`.
    ///
    /// # Errors
    /// The store's own.
    pub(super) async fn open(
        context: &Context,
        mapping: &Mapping,
        table: &UsageTable,
        keys_read_from: Timestamp,
    ) -> Result<Self, StoreError> {
        let keys = KeyRefs::of_table(context, &mapping.source, table.keys.as_deref()).await?;
        let (_, columns) = Columns::new(&table.table);
        let unsure_from = keys_read_from.minus(CLOCKS_DIFFER_MAX);
        Ok(Self { columns, zone: mapping.time_zone, keys, spends_quota: spends_quota(mapping), unsure_from })
    }

    /// How many of these rows can be taken now: those before the first request of a key that is not here and may have
    /// been issued since the keys were read.
    ///
    /// # Errors
    /// The store's own.
    pub(super) async fn ready(&mut self, context: &Context, rows: &[Row]) -> Result<usize, StoreError> {
        let now = context.clock.now();
        self.keys.find(context, rows.iter().filter_map(|row| self.columns.reference(row))).await?;
        let waits = |row: &Row| {
            let is_unknown = self.columns.reference(row).is_some_and(|reference| self.keys.get(reference).is_none());
            is_unknown && self.time(row, now).is_ok_and(|time| time >= self.unsure_from)
        };
        Ok(rows.iter().position(waits).unwrap_or(rows.len()))
    }

    /// Brings in the rows that follow the position `after`, and moves the import on behind the last of them.
    ///
    /// # Errors
    /// `FailedPrecondition` where another run has gone on with the import; the store's own.
    pub(super) async fn write_batch(
        &mut self,
        context: &Arc<Context>,
        import: &Import,
        after: &str,
        rows: &[Row],
    ) -> Result<BatchCounts, ServiceError> {
        let now = context.clock.now();
        self.keys.find(context, rows.iter().filter_map(|row| self.columns.reference(row))).await?;
        let mut counts = BatchCounts::default();
        let (read, items) = counts.sort_out(rows.iter().map(|row| (row, now)), |row, now| self.item(row, now));
        let batch = counts.batch_of(import.id, after, rows, items);
        let results = service::import_usage(context, batch, self.spends_quota).await?;
        counts.count(read, results);
        Ok(counts)
    }

    /// Tells what would become of rows, where these keys would be there besides those that are.
    ///
    /// # Errors
    /// The store's own.
    pub(super) async fn plan_batch(
        &mut self,
        context: &Context,
        rows: &[Row],
        planned: &Planned,
    ) -> Result<BatchCounts, StoreError> {
        let (mut counts, now) = (BatchCounts::default(), context.clock.now());
        self.keys.find(context, rows.iter().filter_map(|row| self.columns.reference(row))).await?;
        for row in rows {
            let nobody = KeyId::from_u128(0);
            let read = check_row_id(row, Refusal::BadUsage).and_then(|()| {
                let reference = self.columns.reference(row).ok_or_else(no_key)?;
                let is_planned = self.keys.is_planned(reference, planned);
                if is_planned { self.report(row, nobody, now).map(|_| ()) } else { Err(unknown_key()) }
            });
            match read {
                Ok(()) => counts.created += 1,
                Err(refused) => counts.refuse(row, refused),
            }
        }
        Ok(counts)
    }

    fn item(&self, row: &Row, now: Timestamp) -> Result<UsageItem, Refused> {
        check_row_id(row, Refusal::BadUsage)?;
        let reference = self.columns.reference(row).ok_or_else(no_key)?;
        let (key_id, organization_id) = self.keys.get(reference).ok_or_else(unknown_key)?;
        Ok(UsageItem { organization_id, report: self.report(row, key_id, now)? })
    }

    fn report(&self, row: &Row, key_id: KeyId, now: Timestamp) -> Result<UsageReport, Refused> {
        let error_message = self.text(row, Field::ErrorMessage, ERROR_MESSAGE_LENGTH_MAX);
        let mut error_code = self.text(row, Field::ErrorCode, ERROR_CODE_LENGTH_MAX);
        if error_code.is_empty() && !error_message.is_empty() {
            UNKNOWN_ERROR.clone_into(&mut error_code);
        }
        let client_address = self.columns.raw(row, Field::ClientAddress).map(|(text, _)| address_of(text));
        Ok(UsageReport {
            request_id: self.text(row, Field::RequestId, REQUEST_ID_LENGTH_MAX),
            key_id,
            time: self.time(row, now)?,
            endpoint: self.text(row, Field::Endpoint, ENDPOINT_LENGTH_MAX),
            method: self.text(row, Field::Method, METHOD_LENGTH_MAX),
            status_code: self.number(row, Field::StatusCode, parse_status_code)?.unwrap_or(0),
            response_time: self.response_time(row)?,
            tokens: self.number(row, Field::Tokens, parse_amount)?.unwrap_or(0),
            cost_micro_usd: self.cost(row)?.unwrap_or(0),
            client_address: client_address.unwrap_or_default(),
            user_agent: self.text(row, Field::UserAgent, USER_AGENT_LENGTH_MAX),
            error_code,
            error_message,
        })
    }

    fn response_time(&self, row: &Row) -> Result<Option<Duration>, Refused> {
        let millis = self.number(row, Field::ResponseTimeMs, |text| parse_millis(text).and_then(at_most_a_day))?;
        match millis {
            Some(time) => Ok(Some(time)),
            None => self.number(row, Field::ResponseTimeUs, |text| parse_micros(text).and_then(at_most_a_day)),
        }
    }

    fn cost(&self, row: &Row) -> Result<Option<i64>, Refused> {
        match self.number(row, Field::CostMicroUsd, parse_amount)? {
            Some(cost) => Ok(Some(cost)),
            None => self.number(row, Field::CostUsd, |text| parse_micro_usd(text).and_then(bounded)),
        }
    }

    fn time(&self, row: &Row, now: Timestamp) -> Result<Timestamp, Refused> {
        let past = |text: &str| match parse_moment(text, self.zone)? {
            Moment::At(time) if time <= now.plus(REPORT_AHEAD_MAX) => Ok(time),
            Moment::At(_) | Moment::Never => Err(Invalid::new("must not be in the future")),
        };
        let time = self.columns.read(row, Field::Time, Refusal::BadUsage, past)?;
        time.ok_or_else(|| self.columns.refused(Field::Time, Refusal::BadUsage, &Invalid::new("must be given")))
    }

    fn number<T>(
        &self,
        row: &Row,
        field: Field,
        parse: impl FnOnce(&str) -> Result<T, Invalid>,
    ) -> Result<Option<T>, Refused> {
        self.columns.read_filled(row, field, Refusal::BadUsage, parse)
    }

    /// A text as far as it shows and fits.
    fn text(&self, row: &Row, field: Field, length_max: usize) -> String {
        let given = self.columns.raw(row, field).map(|(text, _)| trim(text)).filter(|text| !text.is_empty());
        let given = given.or_else(|| self.columns.constant(field)).unwrap_or_default();
        if text::check_plain(given, length_max).is_ok() {
            return given.to_owned();
        }
        let keeps_lines = field == Field::ErrorMessage;
        let is_seen = |letter: &char| {
            (keeps_lines && *letter == '\n') || text::check_plain(letter.encode_utf8(&mut [0; 4]), 1).is_ok()
        };
        given.chars().filter(is_seen).take(length_max).collect()
    }
}

impl Columns {
    /// The key that a row refers to, as its source writes it; `None` where that is NULL or blank.
    pub(super) fn reference<'r>(&self, row: &'r Row) -> Option<&'r str> {
        let (text, is_cut) = self.raw(row, Field::Key)?;
        (!is_cut && !trim(text).is_empty()).then_some(text)
    }
}

fn unknown_key() -> Refused {
    Refused::new(Refusal::UnknownKey, "key: no key came over from the row that it names")
}

fn no_key() -> Refused {
    Refused::new(Refusal::UnknownKey, "key: the row names none")
}

/// Whether what organizations of the source have spent of their quotas follows from its requests alone: they have
/// quotas, and neither a column nor a window says what is spent.
fn spends_quota(mapping: &Mapping) -> bool {
    let Some(organizations) = &mapping.organizations else { return false };
    let (columns, values) = (&organizations.table.columns, &organizations.table.values);
    let has = |field: Field| columns.contains_key(&field) || values.contains_key(&field);
    let has_windows = mapping.limits.iter().any(|limits| limits.quota.is_some());
    has(Field::MonthlyQuota) && !has(Field::QuotaUsed) && !has_windows
}

fn bounded(amount: i64) -> Result<i64, Invalid> {
    if amount <= REPORTED_AMOUNT_MAX { Ok(amount) } else { Err(Invalid::new("must be at most 10^12")) }
}

fn parse_amount(text: &str) -> Result<i64, Invalid> {
    parse_count(text).and_then(bounded)
}

fn parse_status_code(text: &str) -> Result<i32, Invalid> {
    let code = i32::try_from(parse_count(text)?).ok().filter(|code| *code <= STATUS_CODE_MAX);
    code.ok_or_else(|| Invalid::new("must be 0 to 999"))
}

fn at_most_a_day(time: Duration) -> Result<Duration, Invalid> {
    if time <= RESPONSE_TIME_MAX { Ok(time) } else { Err(Invalid::new("must be at most 24 hours")) }
}

/// An address, also as PostgreSQL writes a single one with its mask, or with a port; empty where it is none.
fn address_of(text: &str) -> String {
    let text = trim(text);
    let alone = text.strip_suffix("/32").or_else(|| text.strip_suffix("/128")).unwrap_or(text);
    let with_port = || alone.parse::<std::net::SocketAddr>().ok().map(|address| address.ip().to_canonical());
    let address = address::parse_address(alone).ok().or_else(with_port);
    address.map_or_else(String::new, |address| address.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_read_in_the_forms_that_databases_and_servers_write() {
        for (text, expected) in [
            ("10.0.0.1", "10.0.0.1"),
            (" 10.0.0.1/32 ", "10.0.0.1"),
            ("2001:DB8::1/128", "2001:db8::1"),
            ("::ffff:10.0.0.1", "10.0.0.1"),
            ("10.0.0.1:4711", "10.0.0.1"),
            ("[2001:db8::1]:443", "2001:db8::1"),
            ("10.0.0.0/8", ""),
            ("unknown", ""),
            ("", ""),
        ] {
            assert_eq!(address_of(text), expected, "{text:?}");
        }
    }

    #[test]
    fn quotas_are_spent_by_requests_where_nothing_else_says_what_is_spent() {
        let of = |columns: &str, rest: &str| {
            let text = format!(
                "source = \"portal\"\n[[organizations]]\ntable = \"organizations\"\nid = \"id\"\n\
                 [organizations.columns]\n{columns}\n{rest}"
            );
            spends_quota(&Mapping::parse(&text).unwrap())
        };
        let limits = "[[limits]]\ntable = \"windows\"\nid = \"id\"\nquota = \"monthly\"\n[limits.columns]\n\
                      organization = \"o\"\nname = \"n\"\nwindow-start = \"s\"\nwindow-end = \"e\"\ncount = \"c\"\n";
        assert!(of("monthly-quota = \"quota\"", ""));
        assert!(!of("name = \"name\"", ""), "there are no quotas");
        assert!(!of("monthly-quota = \"quota\"\nquota-used = \"used\"", ""));
        assert!(!of("monthly-quota = \"quota\"", limits));
    }
}
