//! Where a row stands: since when, until when, and whether it was disabled or revoked.
//! The strictest word of a row counts. An expiry is never moved later, and one that cannot be read is never taken for
//! none. Must not read a clock.

use std::time::Duration;

use time::UtcOffset;

use super::columns::Columns;
use crate::{
    domain::{
        Invalid,
        import::{ACTOR, Refusal, Refused},
        key::{Revocation, RevocationReason, StoredStatus},
        text,
        time::Timestamp,
    },
    import::{
        mapping::Field,
        source::Row,
        values::{Moment, Reason, StatusWord, parse_flag, parse_moment, parse_reason, parse_status, states_zone},
    },
};

/// How far ahead of ours the clock of the source may be: a time within that is taken for now.
const AHEAD_MAX: Duration = Duration::from_mins(1);

/// Why an expiry without a zone is refused.
const NO_ZONE: &str = "states no zone, and neither does the mapping: give time-zone";

/// Where a row stands.
pub(super) struct Standing {
    pub(super) status: StoredStatus,
    pub(super) create_time: Option<Timestamp>,
    pub(super) expire_time: Option<Timestamp>,
    pub(super) last_used_time: Option<Timestamp>,
    /// Present exactly where the status is revoked.
    pub(super) revocation: Option<Revocation>,
}

/// Reads where a row stands at `now`. `zone` is for times that state none, with whether the mapping says so: an expiry
/// is not read in a zone that nobody has stated, in which it may come hours too late.
pub(super) fn read(
    columns: &Columns,
    row: &Row,
    (zone, is_zone_stated): (UtcOffset, bool),
    now: Timestamp,
) -> Result<Standing, Refused> {
    let create_time = past(columns, row, Field::CreateTime, Refusal::BadCreateTime, zone, now)?;
    let last_used_time = past(columns, row, Field::LastUsedTime, Refusal::BadLastUsedTime, zone, now)?;
    let expire_time = columns.read(row, Field::ExpireTime, Refusal::BadExpireTime, |text| {
        let moment = parse_moment(text, zone)?;
        if is_zone_stated || states_zone(text) { Ok(moment) } else { Err(Invalid::new(NO_ZONE)) }
    })?;
    let mut expire_time = match expire_time {
        Some(Moment::At(time)) => Some(time),
        Some(Moment::Never) | None => None,
    };
    let revoke_time = revoke_time(columns, row, zone, now)?;
    for field in [Field::Enabled, Field::Disabled, Field::Status] {
        check_said(columns, row, field)?;
    }
    let flag = |field| columns.read(row, field, Refusal::BadStatus, |text| parse_flag(text, columns.words(field)));
    let is_disabled = flag(Field::Enabled)? == Some(false) || flag(Field::Disabled)? == Some(true);
    let word = columns
        .read(row, Field::Status, Refusal::BadStatus, |text| parse_status(text, columns.words(Field::Status)))?;
    if word == Some(StatusWord::Expired) && expire_time.is_none_or(|end| end > now) {
        expire_time = Some(create_time.unwrap_or(now));
    }
    let is_revoked = word == Some(StatusWord::Stored(StoredStatus::Revoked)) || revoke_time.is_some();
    let is_disabled = is_disabled || word == Some(StatusWord::Stored(StoredStatus::Disabled));
    let mut standing =
        Standing { status: StoredStatus::Active, create_time, expire_time, last_used_time, revocation: None };
    if is_revoked {
        let time = revoke_time.or(last_used_time).or(create_time).unwrap_or(now);
        standing.status = StoredStatus::Revoked;
        standing.revocation = Some(read_revocation(columns, row, time)?);
    } else if is_disabled {
        standing.status = StoredStatus::Disabled;
    }
    Ok(standing)
}

/// NULL says neither yes nor no, and what the source made of it is not known here.
fn check_said(columns: &Columns, row: &Row, field: Field) -> Result<(), Refused> {
    if !columns.has(field) || columns.raw(row, field).is_some() || columns.constant(field).is_some() {
        return Ok(());
    }
    let why = Invalid::new("is NULL, and the mapping does not say under values what that means");
    Err(columns.refused(field, Refusal::BadStatus, &why))
}

/// A moment that is not ahead, if there is one; a blank text is none.
pub(super) fn past(
    columns: &Columns,
    row: &Row,
    field: Field,
    reason: Refusal,
    zone: UtcOffset,
    now: Timestamp,
) -> Result<Option<Timestamp>, Refused> {
    columns.read_filled(row, field, reason, |text| parse_moment(text, zone).and_then(|moment| not_ahead(moment, now)))
}

/// As `past`, but a blank text is refused: it must not make a revoked key live again.
fn revoke_time(columns: &Columns, row: &Row, zone: UtcOffset, now: Timestamp) -> Result<Option<Timestamp>, Refused> {
    columns.read(row, Field::RevokeTime, Refusal::BadRevokeTime, |text| {
        parse_moment(text, zone).and_then(|moment| not_ahead(moment, now))
    })
}

fn not_ahead(moment: Moment, now: Timestamp) -> Result<Timestamp, Invalid> {
    match moment {
        Moment::At(time) if time <= now.plus(AHEAD_MAX) => Ok(time.min(now)),
        Moment::At(_) | Moment::Never => Err(Invalid::new("must not be in the future")),
    }
}

fn read_revocation(columns: &Columns, row: &Row, time: Timestamp) -> Result<Revocation, Refused> {
    let refusal = Refusal::BadRevocation;
    let by = columns.read_filled(row, Field::RevokedBy, refusal, text::parse_owner)?;
    let mut note = columns.read_filled(row, Field::RevocationNote, refusal, text::parse_note)?.unwrap_or_default();
    let given = columns.filled(row, Field::RevocationReason);
    let given = given.map_err(|why| columns.refused(Field::RevocationReason, refusal, &why))?;
    let reason = match given.map(|text| parse_reason(text, columns.words(Field::RevocationReason))) {
        None => RevocationReason::Unspecified,
        Some(Reason::Known(reason)) => reason,
        // What the source says in its own words is kept as the note, or before it.
        Some(Reason::Free(text)) => {
            let whole = if note.is_empty() { text.to_owned() } else { format!("{text}: {note}") };
            let whole = text::parse_note(&whole);
            note = whole.map_err(|why| columns.refused(Field::RevocationReason, refusal, &why))?;
            RevocationReason::Other
        }
    };
    Ok(Revocation { time, by: by.unwrap_or_else(|| ACTOR.to_owned()), reason, note })
}
