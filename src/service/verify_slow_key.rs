//! The part of `VerifyKey` that comes after an unknown digest, where keys were imported that no digest leads to yet.
//!
//! Candidates are the key that is named, else those whose look-up part the secret begins with, else a bounded number of
//! the rest in the caller's reach. The first success stores the secret's digest, and the key is as fast as any other.
//! A key that came without a hash is disabled when it is first named.
//! Invariant: "not found" is said only where every candidate was checked; anything else is "we do not know".

mod rehash;
mod state;
mod without_hash;

use std::{collections::BTreeSet, sync::Arc};

use tokio::sync::{OwnedSemaphorePermit, watch};

pub use self::state::SlowKeys;
use self::state::{Ask, Flight, Found, locked, outline};
use super::{Context, ServiceError, verify_key::Verification};
use crate::{
    domain::{
        ids::{KeyId, OrganizationId},
        import::{Scheme, SlowHash},
        outcome::Outcome,
        record::KeyRecord,
        secret::{Secret, hint_of},
        time::Timestamp,
    },
    store::{
        StoreError,
        slow_keys::{self, Candidate, Outline},
    },
    telemetry::CheckResult,
};

/// The most candidates of one secret.
const CANDIDATES_MAX: usize = 200;
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
    if let Some(key) = context.slow_keys.without_hash(&ask) {
        context.metrics.imported.key_without_hash();
        return Ok(Searched::WithoutHash(Outcome::Disabled, key));
    }
    match fly(context, ask, &verification.secret, outline, now).await {
        Found::Nothing => Ok(Searched::Nothing),
        Found::Rehashed(scheme) => Ok(Searched::LookAgain(scheme)),
        Found::WithoutHash(id) => without_hash::answer(context, ask, id, verification, now).await,
        Found::TooMany => Err(ServiceError::unavailable("TOO_MANY_CANDIDATES")),
        Found::Busy => Err(ServiceError::unavailable("SLOW_CHECKS_BUSY")),
        Found::Unknown => Err(ServiceError::unavailable("DATABASE_UNAVAILABLE")),
    }
}

/// One search at a time for the same secret, which goes on if whoever asked hangs up: when they ask again the key is
/// fast, or known not to be one.
async fn fly(context: &Arc<Context>, ask: Ask, secret: &Secret, outline: Arc<Outline>, now: Timestamp) -> Found {
    let under_way = locked(&context.slow_keys.flights).get(&ask).cloned();
    let mut landed = if let Some(landed) = under_way {
        landed
    } else {
        // A flood waits here, each with its caller's patience.
        let Ok(place) = context.slow_keys.searches.clone().acquire_owned().await else {
            return Found::Busy;
        };
        let mut flights = locked(&context.slow_keys.flights);
        flights.entry(ask).or_insert_with(|| take_off(context, ask, secret.again(), outline, now, place)).clone()
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
    place: OwnedSemaphorePermit,
) -> watch::Receiver<Option<Found>> {
    let (tell, landed) = watch::channel(None);
    let own = context.clone();
    // A shutdown need not wait for it: only what it stores at its end is a mutation.
    tokio::spawn(async move {
        let _place = place;
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
    let to_scan = {
        let after = context.slow_keys.progress(&ask);
        slow_keys::list_to_scan(db, ask.reach, &prefixes, &hint_of(secret.expose()), after, limit).await?
    };
    drop(turn);
    // Where there are more than one search may check, the next one for the same secret goes on behind the last.
    let last = if to_scan.len() > CANDIDATES_MAX { to_scan.get(CANDIDATES_MAX - 1).map(|last| last.id) } else { None };
    let found = check(context, ask, secret, to_scan, true, now).await?;
    match found {
        Found::Busy | Found::Unknown => {}
        Found::TooMany => context.slow_keys.note_progress(ask, last),
        Found::Nothing | Found::Rehashed(_) | Found::WithoutHash(_) => context.slow_keys.note_progress(ask, None),
    }
    Ok(found)
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
