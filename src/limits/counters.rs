//! The counters of one process: sliding windows by subject and limit, and one plain count per organization and month.
//! Invariant: under the one lock, either every limit and the quota are charged or none is; no await happens under it.

use std::{
    collections::{HashMap, HashSet},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use crate::{
    domain::{
        ids::OrganizationId,
        limits::{LimitStatus, RateLimit, SlidingWindow},
        outcome::Outcome,
        time::Timestamp,
    },
    store::{Store, StoreError, rate_limits, rate_limits::TrackedWindow},
};

/// The name under which a monthly quota is tracked; no rate limit can have it.
const QUOTA_NAME: &str = "monthly quota";
/// For how long a counter that no longer counts is kept: a clock may step back.
const SLACK: Duration = Duration::from_hours(24);

/// What one verification is held to.
pub struct Limits<'a> {
    /// Limits with the subject each is counted for: the key's first, then the organization's.
    pub rate_limits: Vec<(String, &'a RateLimit)>,
    pub organization_id: OrganizationId,
    /// 0 for none.
    pub monthly_quota: i64,
}

/// What became of a charge.
#[derive(Debug)]
pub struct Charge {
    /// Why nothing was charged, if so.
    pub denied: Option<Outcome>,
    /// Where every limit stands now, in the order asked.
    pub statuses: Vec<LimitStatus>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct WindowKey {
    subject: String,
    name: String,
    window_us: i64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct QuotaKey {
    organization: OrganizationId,
    month: Timestamp,
}

#[derive(Default)]
struct Counts {
    windows: HashMap<WindowKey, SlidingWindow>,
    quotas: HashMap<QuotaKey, i64>,
    changed_windows: HashSet<WindowKey>,
    changed_quotas: HashSet<QuotaKey>,
}

/// Counts for one process.
#[derive(Default)]
pub struct Limiter {
    counts: Mutex<Counts>,
}

impl Limiter {
    /// Charges `cost` to every limit and the quota, or to none of them. A cost of 0 charges nothing and tells where
    /// the limits stand.
    pub fn charge(&self, limits: &Limits<'_>, cost: i64, now: Timestamp) -> Charge {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let standing: Vec<(WindowKey, SlidingWindow, bool)> =
            limits.rate_limits.iter().map(|(subject, limit)| counts.standing(subject, limit, cost, now)).collect();
        let exceeded =
            limits.rate_limits.iter().zip(&standing).any(|((_, limit), (_, _, full))| *full && !limit.shadow);
        let quota = QuotaKey { organization: limits.organization_id, month: now.start_of_month() };
        let spent = counts.quotas.get(&quota).copied().unwrap_or(0);
        let over_quota = limits.monthly_quota > 0 && spent.saturating_add(cost.max(1)) > limits.monthly_quota;
        let denied = match (exceeded, over_quota) {
            (true, _) => Some(Outcome::RateLimited),
            (false, true) => Some(Outcome::QuotaExceeded),
            (false, false) => None,
        };
        let charged = denied.is_none() && cost > 0;
        let mut statuses = Vec::with_capacity(standing.len());
        for ((_, limit), (key, window, full)) in limits.rate_limits.iter().zip(standing) {
            let window = if charged { window.charged(cost) } else { window };
            statuses.push(window.status(limit, now, cost.max(1), full));
            if charged {
                counts.windows.insert(key.clone(), window);
                counts.changed_windows.insert(key);
            }
        }
        if charged && limits.monthly_quota > 0 {
            counts.quotas.insert(quota, spent.saturating_add(cost));
            counts.changed_quotas.insert(quota);
        }
        Charge { denied, statuses }
    }

    /// Gives back what a charge took from the quota, where the verification was denied after it.
    pub fn refund_quota(&self, organization: OrganizationId, cost: i64, now: Timestamp) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let quota = QuotaKey { organization, month: now.start_of_month() };
        if let Some(spent) = counts.quotas.get_mut(&quota) {
            *spent = spent.saturating_sub(cost).max(0);
            counts.changed_quotas.insert(quota);
        }
    }

    /// Reads back what was counted before a restart.
    ///
    /// # Errors
    /// The store's own.
    pub async fn restore(&self, store: &Store, now: Timestamp) -> Result<(), StoreError> {
        let mut tracked = rate_limits::list_counting_at(store.control(), now).await?;
        tracked.sort_by_key(|window| window.window_start_us);
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        for window in tracked {
            counts.restore(window);
        }
        Ok(())
    }

    /// Drops the counters that no longer count, here and in the table.
    ///
    /// # Errors
    /// The store's own.
    pub async fn prune(&self, store: &Store, now: Timestamp) -> Result<(), StoreError> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner).forget_faded(now.minus(SLACK));
        rate_limits::delete_faded(store.write(), now).await.map(|_| ())
    }

    /// Writes the counts that changed since the last flush. What fails to be written is written with the next one.
    ///
    /// # Errors
    /// The store's own.
    pub async fn flush(&self, store: &Store) -> Result<(), StoreError> {
        let (windows, quotas, tracked) = {
            let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
            let windows = std::mem::take(&mut counts.changed_windows);
            let quotas = std::mem::take(&mut counts.changed_quotas);
            let tracked = counts.tracked(&windows, &quotas);
            (windows, quotas, tracked)
        };
        let result = rate_limits::upsert(store.write(), &tracked).await;
        if result.is_err() {
            let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
            counts.changed_windows.extend(windows);
            counts.changed_quotas.extend(quotas);
        }
        result
    }
}

impl Counts {
    fn standing(
        &self,
        subject: &str,
        limit: &RateLimit,
        cost: i64,
        now: Timestamp,
    ) -> (WindowKey, SlidingWindow, bool) {
        let key = WindowKey {
            subject: subject.to_owned(),
            name: limit.name.clone(),
            window_us: i64::try_from(limit.window.as_micros()).unwrap_or(i64::MAX),
        };
        let window = self.windows.get(&key).copied().unwrap_or_else(|| SlidingWindow::empty(limit, now)).at(limit, now);
        let full = !window.admits(limit, now, cost.max(1));
        (key, window, full)
    }

    /// Takes in one stored window; they come oldest first.
    fn restore(&mut self, window: TrackedWindow) {
        if window.limit_name == QUOTA_NAME {
            if let Ok(organization) = OrganizationId::parse(&window.subject_id) {
                let month = Timestamp::from_micros(window.window_start_us);
                self.quotas.insert(QuotaKey { organization, month }, window.count);
            }
            return;
        }
        let window_us = window.window_end_us - window.window_start_us;
        let key = WindowKey { subject: window.subject_id, name: window.limit_name, window_us };
        let older = self.windows.get(&key).filter(|older| older.start_us + window_us == window.window_start_us);
        let previous = older.map_or(0, |older| older.current);
        self.windows.insert(key, SlidingWindow { start_us: window.window_start_us, current: window.count, previous });
    }

    /// The rows of these counters: the present window, and the one before it, which a flush may have missed.
    fn tracked(&self, windows: &HashSet<WindowKey>, quotas: &HashSet<QuotaKey>) -> Vec<TrackedWindow> {
        let mut rows = Vec::with_capacity(2 * windows.len() + quotas.len());
        for key in windows {
            let Some(window) = self.windows.get(key) else { continue };
            let row = |start: i64, count: i64| TrackedWindow {
                subject_id: key.subject.clone(),
                limit_name: key.name.clone(),
                window_start_us: start,
                window_end_us: start + key.window_us,
                count,
            };
            rows.push(row(window.start_us, window.current));
            if window.previous > 0 {
                rows.push(row(window.start_us - key.window_us, window.previous));
            }
        }
        rows.extend(quotas.iter().map(|quota| TrackedWindow {
            subject_id: quota.organization.to_string(),
            limit_name: QUOTA_NAME.to_owned(),
            window_start_us: quota.month.micros(),
            window_end_us: quota.month.start_of_next_month().micros(),
            count: self.quotas.get(quota).copied().unwrap_or(0),
        }));
        rows
    }

    /// Drops what has ended, and faded out in the window after it, by `time`.
    fn forget_faded(&mut self, time: Timestamp) {
        self.windows.retain(|key, window| window.start_us + 2 * key.window_us > time.micros());
        self.quotas.retain(|quota, _| quota.month.start_of_next_month() > time);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_micros(1_800_000_000_000_000);

    fn limit(name: &str, limit: i64, shadow: bool) -> RateLimit {
        RateLimit::parse(name, limit, Duration::from_hours(1), shadow).unwrap()
    }

    fn charge(limiter: &Limiter, limits: &[RateLimit], quota: i64, cost: i64) -> Charge {
        let limits = Limits {
            rate_limits: limits.iter().map(|limit| ("key".to_owned(), limit)).collect(),
            organization_id: OrganizationId::SYSTEM,
            monthly_quota: quota,
        };
        limiter.charge(&limits, cost, NOW)
    }

    #[test]
    fn several_limits_are_charged_all_or_none() {
        let limiter = Limiter::default();
        let limits = [limit("wide", 10, false), limit("narrow", 1, false)];
        assert_eq!(charge(&limiter, &limits, 0, 1).denied, None);
        for _ in 0..5 {
            let denied = charge(&limiter, &limits, 0, 1);
            assert_eq!(denied.denied, Some(Outcome::RateLimited));
            let remaining: Vec<i64> = denied.statuses.iter().map(|status| status.remaining).collect();
            assert_eq!(remaining, [9, 0], "the wide limit was not charged for what the narrow one denied");
        }
    }

    #[test]
    fn a_shadow_limit_counts_and_reports_but_never_denies() {
        let limiter = Limiter::default();
        let limits = [limit("shadow", 1, true)];
        for _ in 0..3 {
            assert_eq!(charge(&limiter, &limits, 0, 1).denied, None);
        }
        assert!(charge(&limiter, &limits, 0, 1).statuses[0].exceeded);
    }

    #[test]
    fn what_has_faded_is_forgotten_and_what_counts_is_not() {
        let mut counts = Counts::default();
        let limit = limit("hourly", 5, false);
        let (key, window, _) = counts.standing("key", &limit, 1, NOW);
        counts.windows.insert(key, window.charged(1));
        counts.forget_faded(NOW.plus(Duration::from_mins(59)));
        assert_eq!(counts.windows.len(), 1);
        counts.forget_faded(NOW.plus(Duration::from_hours(2)));
        assert!(counts.windows.is_empty());
    }

    #[test]
    fn counts_come_back_after_a_restart_the_window_before_included() {
        let limit = limit("hourly", 10, false);
        let mut before = Counts::default();
        let (key, window, _) = before.standing("key", &limit, 1, NOW);
        before.windows.insert(key.clone(), SlidingWindow { previous: 4, ..window.charged(3) });
        let mut tracked = before.tracked(&HashSet::from([key.clone()]), &HashSet::new());
        tracked.sort_by_key(|window| window.window_start_us);
        let mut after = Counts::default();
        for window in tracked {
            after.restore(window);
        }
        assert_eq!(after.windows.get(&key), before.windows.get(&key));
    }

    #[test]
    fn a_peek_charges_nothing() {
        let limiter = Limiter::default();
        let limits = [limit("only", 1, false)];
        for _ in 0..3 {
            assert_eq!(charge(&limiter, &limits, 1, 0).denied, None);
        }
        assert_eq!(charge(&limiter, &limits, 1, 1).denied, None);
        assert_eq!(charge(&limiter, &limits, 1, 0).denied, Some(Outcome::RateLimited));
    }

    #[test]
    fn the_quota_denies_after_the_limits_and_is_refunded() {
        let limiter = Limiter::default();
        assert_eq!(charge(&limiter, &[], 2, 2).denied, None);
        assert_eq!(charge(&limiter, &[], 2, 1).denied, Some(Outcome::QuotaExceeded));
        limiter.refund_quota(OrganizationId::SYSTEM, 1, NOW);
        assert_eq!(charge(&limiter, &[], 2, 1).denied, None);
    }
}
