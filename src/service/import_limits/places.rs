//! Where the windows of a source count: which counter each belongs to, and in which of its fixed windows.
//! Pure but for one look-up of all owners. Must not write. Invariant: a window is placed no earlier than the last
//! request that it can have counted, and never ahead of now.

use std::{collections::HashMap, time::Duration};

use super::{WindowCounts, WindowItem, WindowOwner};
use crate::{
    domain::{
        ids::{KeyId, OrganizationId},
        import::Refusal,
        limits::{RateLimit, SlidingWindow},
        organization::Organization,
        time::Timestamp,
    },
    service::{ServiceError, import_rows::RowResult},
    store::{
        Database,
        imported_counts::{self, KeyLimits},
        imported_organizations,
    },
};

/// A month's window may begin so much before or after the month does in UTC: at midnight, somewhere.
const ZONES_APART: Duration = Duration::from_hours(18);

/// What a window counts for.
pub(super) enum Counter {
    /// A limit, and the id under which it counts.
    Limit {
        subject: u128,
        limit: RateLimit,
    },
    Quota,
}

/// The keys and organizations of a batch's windows.
pub(super) struct Owners {
    keys: HashMap<KeyId, KeyLimits>,
    organizations: HashMap<OrganizationId, Organization>,
}

impl Owners {
    pub(super) async fn find(db: &impl Database, items: &[WindowItem]) -> Result<Self, ServiceError> {
        let (mut keys, mut organizations) = (Vec::new(), Vec::new());
        for item in items {
            match item.owner {
                WindowOwner::Key(id) => keys.push(id),
                WindowOwner::Organization(id) => organizations.push(id),
            }
        }
        keys.sort_unstable();
        keys.dedup();
        organizations.sort_unstable();
        organizations.dedup();
        let keys = imported_counts::list_key_limits(db, &keys).await?;
        let organizations = imported_organizations::list_by_ids(db, &organizations).await?;
        Ok(Self {
            keys: keys.into_iter().map(|key| (key.id, key)).collect(),
            organizations: organizations.into_iter().map(|one| (one.id, one)).collect(),
        })
    }

    /// The counter that a window belongs to, and its organization; or why it counts nowhere.
    pub(super) fn place(&self, item: &WindowItem, now: Timestamp) -> Result<(OrganizationId, Counter), RowResult> {
        let refused = |reason, message: &str| Err(RowResult::refused(reason, message));
        let (organization, subject, limits) = match item.owner {
            WindowOwner::Key(id) => match self.keys.get(&id) {
                Some(key) => (key.organization_id, key.counter_id.as_u128(), &key.rate_limits),
                None => return refused(Refusal::UnknownKey, "there is no such key"),
            },
            WindowOwner::Organization(id) => match self.organizations.get(&id) {
                Some(organization) => (id, id.as_u128(), &organization.rate_limits),
                None => return refused(Refusal::UnknownOrganization, "there is no such organization"),
            },
        };
        let name = match (&item.counts, item.owner) {
            (WindowCounts::Limit(name), _) => name,
            (WindowCounts::Quota, WindowOwner::Key(_)) => {
                return refused(Refusal::BadLimit, "a quota is an organization's, and this is a key's");
            }
            (WindowCounts::Quota, WindowOwner::Organization(_)) => {
                let counter = Counter::Quota;
                return if is_of_month(item, now) { Ok((organization, counter)) } else { Err(RowResult::Skipped) };
            }
        };
        let Some(limit) = limits.iter().find(|limit| limit.name == *name) else {
            return refused(Refusal::BadLimit, "its owner has no limit of this name");
        };
        if span(item, limit).1 <= now.minus(limit.window) {
            return Err(RowResult::Skipped);
        }
        Ok((organization, Counter::Limit { subject, limit: limit.clone() }))
    }
}

/// Start and end of a window, of which one may not be known.
pub(super) fn span(item: &WindowItem, limit: &RateLimit) -> (Timestamp, Timestamp) {
    match (item.start, item.end) {
        (Some(start), Some(end)) => (start, end),
        (Some(start), None) => (start, start.plus(limit.window)),
        (None, Some(end)) => (end.minus(limit.window), end),
        // Never where the row was read by the rules; as though it had ended long ago.
        (None, None) => (Timestamp::from_micros(0), Timestamp::from_micros(0)),
    }
}

/// The latest moment at which a request of a window that ends then can have come.
pub(super) fn latest(end: Timestamp, now: Timestamp) -> Timestamp {
    end.minus(Duration::from_micros(1)).min(now)
}

/// The start of the fixed window that a moment lies in.
pub(super) fn window_of(time: Timestamp, limit: &RateLimit) -> Timestamp {
    Timestamp::from_micros(SlidingWindow::empty(limit, time).start_us)
}

/// Whether a window of a quota is of the present month: it begins in that, by some clock of the world, or still runs.
fn is_of_month(item: &WindowItem, now: Timestamp) -> bool {
    let month = now.start_of_month();
    item.end.is_some_and(|end| end > now)
        || item
            .start
            .is_some_and(|start| start.plus(ZONES_APART).start_of_month() == month || start.start_of_month() == month)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn minute(limit: i64) -> RateLimit {
        RateLimit::parse("requests", limit, Duration::from_mins(1), false).unwrap()
    }

    const fn seconds(count: i64) -> Timestamp {
        Timestamp::from_micros(count * 1_000_000)
    }

    /// How much of a limit is taken, for a count that came over as a charge at its latest moment.
    fn taken_at(end: Timestamp, count: i64, imported: Timestamp, now: Timestamp) -> i64 {
        let limit = minute(1000);
        let start_us = window_of(latest(end, imported), &limit).micros();
        let window = SlidingWindow { start_us, current: count, previous: 0 }.at(&limit, now);
        1000 - window.status(&limit, now, 1, false).remaining
    }

    #[test]
    fn what_comes_over_weighs_at_least_as_much_as_if_it_had_been_counted_here() {
        let limit = minute(1000);
        // A window of 600 to 660 seconds, or one that lies across ours; imported while it runs and after it.
        for begin in [600, 617, 659] {
            let end = seconds(begin + 60);
            for imported in [begin + 1, begin + 30, begin + 59, begin + 60, begin + 90, begin + 119] {
                for spent in begin..imported.min(begin + 60) {
                    for now in imported..begin + 200 {
                        let own = SlidingWindow::empty(&limit, seconds(spent)).charged(10).at(&limit, seconds(now));
                        let own = 1000 - own.status(&limit, seconds(now), 1, false).remaining;
                        let taken = taken_at(end, 10, seconds(imported), seconds(now));
                        assert!(taken >= own, "window {begin}, imported {imported}, spent {spent}, now {now}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_running_window_counts_in_full_and_nothing_is_placed_ahead_of_now() {
        assert_eq!(taken_at(seconds(677), 10, seconds(620), seconds(621)), 10);
        assert!(window_of(latest(seconds(677), seconds(620)), &minute(1)) <= seconds(620));
        assert_eq!(latest(seconds(660), seconds(700)), Timestamp::from_micros(659_999_999));
    }

    #[test]
    fn a_months_window_is_known_by_its_start_in_every_zone_or_because_it_runs() {
        // 2026-02-10T00:00:00Z; January had begun 40 days before.
        let now = Timestamp::from_micros(1_770_681_600_000_000);
        let month = now.start_of_month();
        let item = |start: Option<Timestamp>, end: Option<Timestamp>| WindowItem {
            source_id: "1".to_owned(),
            owner: WindowOwner::Organization(OrganizationId::from_u128(2)),
            counts: WindowCounts::Quota,
            start,
            end,
            count: 1,
        };
        for hours in [0, 2, 14] {
            let apart = Duration::from_hours(hours);
            assert!(is_of_month(&item(Some(month.minus(apart)), None), now), "{hours} hours before");
            assert!(is_of_month(&item(Some(month.plus(apart)), None), now), "{hours} hours after");
        }
        let before = month.minus(Duration::from_hours(24 * 31));
        assert!(!is_of_month(&item(Some(before), Some(month)), now), "the month before has ended");
        assert!(is_of_month(&item(Some(before), Some(now.plus(Duration::from_hours(1)))), now), "one that runs counts");
    }
}
