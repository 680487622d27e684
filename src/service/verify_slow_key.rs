//! The part of `VerifyKey` that comes after an unknown digest, where keys were imported that no digest leads to yet.
//!
//! Candidates are the key that is named, else those whose look-up part the secret begins with, else a bounded number of
//! the rest in the caller's reach. The first success stores the secret's digest, and the key is as fast as any other.
//! A key that came without a hash is disabled when it is first named.
//! Invariant: "not found" is said only where every candidate was checked; anything else is "we do not know".

mod rehash;
mod without_hash;

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    runtime::Handle,
    sync::{Semaphore, watch},
};
use tokio_util::task::TaskTracker;

use super::{Context, ServiceError, verify_key::Verification};
use crate::{
    clock::Uptime,
    domain::{
        digest::Digest,
        ids::{KeyId, OrganizationId},
        import::{Scheme, SlowHash},
        outcome::Outcome,
        permission::Reach,
        record::KeyRecord,
        secret::{Secret, hint_of},
        time::Timestamp,
    },
    store::{
        Store, StoreError,
        slow_keys::{self, Candidate, Outline},
        turns::Turns,
    },
    telemetry::CheckResult,
    verify::{GenerationCache, Hit, Slot, SlowChecks},
};

/// The most candidates of one secret.
const CANDIDATES_MAX: usize = 200;
/// For how long the outline of such keys is taken as known: a key that another process imports may be unknown for so
/// long. Where it takes long to ask, it is asked less often, so that asking takes a small part of the time.
const OUTLINE_AGE: Duration = Duration::from_secs(1);
const OUTLINE_REST: u32 = 20;
/// For how long a secret that no candidate fits is not checked again, and of how many that is remembered.
const REJECTED_AGE_MAX: Duration = Duration::from_secs(5);
const REJECTED_MAX: u64 = 10_000;
/// Searches at once, and those of them that ask the database: a flood of unknown secrets must not take it from the
/// look-ups of others.
const SEARCHES_MAX: usize = 256;
const QUERIES_AT_ONCE: usize = 2;

/// What is looked for: a secret, among the keys that may be its.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Ask {
    digest: Digest,
    reach: Reach,
    key_id: Option<KeyId>,
}

impl Slot for Ask {
    fn slot(&self) -> u64 {
        self.digest.spread()
    }
}

/// What a search came to.
#[derive(Debug, Clone, Copy)]
enum Found {
    Nothing,
    /// The digest of this scheme's key stands in the database now.
    Rehashed(Scheme),
    /// The named key has nothing to compare a secret with.
    WithoutHash(KeyId),
    /// Too many candidates to check them all, and none of those that were checked fits.
    TooMany,
    /// The checks that wait are as many as may.
    Busy,
    /// The database could not say.
    Unknown,
}

type Flights = Mutex<HashMap<Ask, watch::Receiver<Option<Found>>>>;

/// What is known of keys without a digest, for one process.
pub struct SlowKeys {
    checks: SlowChecks,
    /// Whether there are any and what they look like, and until when that is taken as known.
    outline: Mutex<Option<(Uptime, Arc<Outline>)>>,
    /// Asks that, for all who want to know at once.
    ask_outline: Turns<(), (), Arc<Outline>>,
    /// Who may ask the database for candidates.
    queries: Semaphore,
    rejected: GenerationCache<Ask, ()>,
    nothing: Arc<()>,
    flights: Flights,
}

impl SlowKeys {
    /// Knows nothing yet.
    #[must_use]
    pub fn new(store: Store) -> Self {
        let own = store.clone();
        let find = move |(), askers: Vec<()>| {
            let store = own.clone();
            Box::pin(async move {
                let outline = Arc::new(slow_keys::find_outline(store.verify()).await?);
                Ok(vec![outline; askers.len()])
            }) as _
        };
        let (runtime, tasks) = (Handle::current(), TaskTracker::new());
        Self {
            checks: SlowChecks::default(),
            outline: Mutex::default(),
            ask_outline: Turns::new(store, runtime, tasks, 1, Box::new(find)),
            queries: Semaphore::new(QUERIES_AT_ONCE),
            rejected: GenerationCache::new(REJECTED_MAX, REJECTED_AGE_MAX),
            nothing: Arc::default(),
            flights: Flights::default(),
        }
    }
}

/// What the caller is to do after a search.
pub(super) enum Searched {
    /// There was nothing to search, or it was searched a moment ago.
    Nowhere,
    /// None fits. One that did may have got its digest from somebody else meanwhile, so look the digest up again.
    Nothing,
    /// Look the digest up again, in the database: it is there now. The scheme is the one that it took the place of.
    LookAgain(Scheme),
    /// The key that was named has no hash, and is disabled.
    WithoutHash(Outcome, Arc<KeyRecord>),
}

/// Searches the keys without a digest for one that a secret is of.
///
/// # Errors
/// `Unavailable` where that cannot be told, or not now.
pub(super) async fn search(
    context: &Arc<Context>,
    verification: &Verification,
    now: Timestamp,
) -> Result<Searched, ServiceError> {
    let Some(digest) = verification.digest else {
        return Ok(Searched::Nowhere);
    };
    let question = &verification.question;
    let ask = Ask { digest, reach: question.reach, key_id: question.key_id };
    let outline = outline(context).await?;
    if !outline.exist || context.slow_keys.is_rejected(&ask) {
        return Ok(Searched::Nowhere);
    }
    match fly(context, ask, &verification.secret, outline, now).await {
        Found::Nothing => Ok(Searched::Nothing),
        Found::Rehashed(scheme) => Ok(Searched::LookAgain(scheme)),
        Found::WithoutHash(id) => without_hash::answer(context, id, verification, now).await,
        Found::TooMany => Err(ServiceError::unavailable("TOO_MANY_CANDIDATES")),
        Found::Busy => Err(ServiceError::unavailable("SLOW_CHECKS_BUSY")),
        Found::Unknown => Err(ServiceError::unavailable("DATABASE_UNAVAILABLE")),
    }
}

/// What the keys without a digest look like.
async fn outline(context: &Context) -> Result<Arc<Outline>, ServiceError> {
    let known = context.slow_keys.outline.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let asked = Uptime::now();
    if let Some((until, outline)) = known
        && asked < until
    {
        return Ok(outline);
    }
    let outline = context.slow_keys.ask_outline.ask((), ()).await?;
    let now = Uptime::now();
    let until = now.plus(OUTLINE_AGE.max(now.since(asked) * OUTLINE_REST));
    *context.slow_keys.outline.lock().unwrap_or_else(PoisonError::into_inner) = Some((until, outline.clone()));
    Ok(outline)
}

/// One search at a time for the same secret, which goes on if whoever asked hangs up: when they ask again the key is
/// fast, or known not to be one.
async fn fly(context: &Arc<Context>, ask: Ask, secret: &Secret, outline: Arc<Outline>, now: Timestamp) -> Found {
    let mut landed = {
        let mut flights = context.slow_keys.flights.lock().unwrap_or_else(PoisonError::into_inner);
        if flights.len() >= SEARCHES_MAX && !flights.contains_key(&ask) {
            return Found::Busy;
        }
        flights.entry(ask).or_insert_with(|| take_off(context, ask, secret.again(), outline, now)).clone()
    };
    let found = landed.wait_for(Option::is_some).await.map(|found| *found);
    // Without a word it ended in a panic.
    found.ok().flatten().unwrap_or(Found::Unknown)
}

fn take_off(
    context: &Arc<Context>,
    ask: Ask,
    secret: Secret,
    outline: Arc<Outline>,
    now: Timestamp,
) -> watch::Receiver<Option<Found>> {
    let (tell, landed) = watch::channel(None);
    let own = context.clone();
    context.mutations.spawn(async move {
        let flight = Flight { flights: &own.slow_keys.flights, ask };
        let found = find(&own, ask, &secret, &outline, now).await.unwrap_or_else(|error| {
            tracing::warn!(error = ?error, "a search among slow hashes failed");
            Found::Unknown
        });
        if matches!(found, Found::Nothing) {
            own.slow_keys.reject(ask);
        }
        drop(flight);
        tell.send_replace(Some(found));
    });
    landed
}

/// Takes a search off the board, also where it panics.
struct Flight<'a> {
    flights: &'a Flights,
    ask: Ask,
}

impl Drop for Flight<'_> {
    fn drop(&mut self) {
        self.flights.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.ask);
    }
}

impl SlowKeys {
    fn is_rejected(&self, ask: &Ask) -> bool {
        matches!(self.rejected.get(ask, Uptime::now()), Some(Hit::Fresh(_) | Hit::Ageing(_)))
    }

    /// Forgets what was known: keys have been imported.
    pub(super) fn forget(&self) {
        *self.outline.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.rejected.evict_all();
    }

    fn reject(&self, ask: Ask) {
        let begun = self.rejected.begin_load(&ask, Uptime::now());
        self.rejected.insert(ask, self.nothing.clone(), begun);
    }
}

/// Searches: the key that is named alone, else those that the secret's beginning leads to, else the rest.
async fn find(
    context: &Arc<Context>,
    ask: Ask,
    secret: &Secret,
    outline: &Outline,
    now: Timestamp,
) -> Result<Found, ServiceError> {
    let db = context.store.verify();
    if let Some(id) = ask.key_id {
        let turn = context.slow_keys.queries.acquire().await;
        let found = slow_keys::find(db, ask.reach, id).await?;
        drop(turn);
        let Some(candidate) = found else {
            return Ok(Found::Nothing);
        };
        if candidate.hash.is_none() {
            return Ok(Found::WithoutHash(id));
        }
        return check(context, ask, secret, vec![candidate], false, now).await;
    }
    let looked_up = beginnings_of(secret.expose(), &outline.look_up_lengths);
    let prefixes = beginnings_of(secret.expose(), &outline.prefix_lengths);
    let limit = u64::try_from(CANDIDATES_MAX + 1).unwrap_or(u64::MAX);
    let turn = context.slow_keys.queries.acquire().await;
    let looked_up = slow_keys::list_by_look_up(db, ask.reach, &looked_up, limit).await?;
    drop(turn);
    let found = check(context, ask, secret, looked_up, false, now).await?;
    if !matches!(found, Found::Nothing) {
        return Ok(found);
    }
    let turn = context.slow_keys.queries.acquire().await;
    let to_scan = slow_keys::list_to_scan(db, ask.reach, &prefixes, &hint_of(secret.expose()), limit).await?;
    drop(turn);
    check(context, ask, secret, to_scan, true, now).await
}

/// The beginnings of a secret that have these lengths, in characters.
fn beginnings_of<'a>(secret: &'a str, lengths: &BTreeSet<usize>) -> Vec<&'a str> {
    let end = |length: &usize| match secret.char_indices().nth(*length) {
        Some((end, _)) => Some(end),
        None => (secret.chars().count() == *length).then_some(secret.len()),
    };
    lengths.iter().filter_map(end).filter_map(|end| secret.get(..end)).collect()
}

/// Checks candidates, and stores the digest of the one that the secret is of.
async fn check(
    context: &Arc<Context>,
    ask: Ask,
    secret: &Secret,
    candidates: Vec<Candidate>,
    is_scan: bool,
    now: Timestamp,
) -> Result<Found, ServiceError> {
    let too_many = candidates.len() > CANDIDATES_MAX;
    let mut fitting: Vec<(KeyId, OrganizationId, SlowHash)> = candidates
        .into_iter()
        .filter_map(|candidate| Some((candidate.id, candidate.organization_id, candidate.hash?)))
        .collect();
    fitting.truncate(CANDIDATES_MAX);
    let hashes: Vec<SlowHash> = fitting.iter().map(|(_, _, hash)| hash.clone()).collect();
    if hashes.is_empty() {
        return Ok(if too_many { Found::TooMany } else { Found::Nothing });
    }
    let schemes: Vec<Scheme> = hashes.iter().map(|hash| hash.scheme().scheme()).collect();
    let matched = match context.slow_keys.checks.find(secret.again(), hashes, is_scan).await {
        Ok(matched) => matched,
        Err(StoreError::Overloaded) => {
            if let Some(scheme) = schemes.first() {
                context.metrics.imported.slow_check(*scheme, CheckResult::Refused);
            }
            return Ok(Found::Busy);
        }
        Err(error) => return Err(error.into()),
    };
    let checked = matched.map_or(schemes.len(), |at| at + 1);
    for (at, scheme) in schemes.iter().take(checked).enumerate() {
        let result = if matched == Some(at) { CheckResult::Matched } else { CheckResult::Different };
        context.metrics.imported.slow_check(*scheme, result);
    }
    match matched.and_then(|at| fitting.get(at).cloned()) {
        Some((id, organization_id, hash)) => {
            rehash::store_digest(context, ask.digest, (id, organization_id), hash, now).await
        }
        None if too_many => Ok(Found::TooMany),
        None => Ok(Found::Nothing),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beginnings_of_a_secret_have_the_lengths_that_are_asked_for() {
        let lengths: BTreeSet<usize> = [0, 4, 5, 6].into();
        assert_eq!(beginnings_of("äbcdé", &lengths), ["", "äbcd", "äbcdé"]);
        assert!(beginnings_of("abc", &[4].into()).is_empty());
    }
}
