//! The part of `VerifyKey` that comes after an unknown digest, where keys were imported that no digest leads to yet.
//!
//! Candidates are the key that is named, else those whose look-up part the secret begins with, and then the rest in the
//! caller's reach: a bounded number by one search, and the next by the next one for the same secret. The first success
//! stores the secret's digest, and the key is as fast as any other. A key that came without a hash is disabled when it
//! is first named.
//! Invariant: "not found" is said only where every candidate was checked that had come in when it was asked, or some
//! seconds before where another process brings them in; anything else is "we do not know".

mod progress;
mod rehash;
mod state;
mod without_hash;

use std::{collections::BTreeSet, sync::Arc};

use tokio::sync::{OwnedSemaphorePermit, watch};

pub use self::state::SlowKeys;
use self::{
    progress::{Progress, Stage},
    state::{Ask, Flight, Found, OUTLINE_AGE, SEARCHES_EACH_MAX, locked, outline},
};
use super::{Context, ServiceError, verify_key::Verification};
use crate::{
    clock::Uptime,
    domain::{
        ids::{KeyId, OrganizationId},
        import::{Scheme, SlowHash, read_as_digest},
        outcome::Outcome,
        record::KeyRecord,
        secret::{Secret, hint_of},
        time::Timestamp,
    },
    store::{
        StoreError,
        slow_keys::{self, Candidate, Outline, Page},
    },
    telemetry::CheckResult,
};

/// The most candidates of each kind that one search checks.
pub const CANDIDATES_MAX: usize = 200;

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
    if !outline(context).await?.exist || context.slow_keys.is_rejected(&ask) {
        return Ok(Searched::Nowhere);
    }
    if let Some(key) = context.slow_keys.without_hash(&ask) {
        context.metrics.imported.key_without_hash();
        return Ok(Searched::WithoutHash(Outcome::Disabled, key));
    }
    match fly(context, ask, &verification.secret, now).await {
        Found::Nothing | Found::Different => Ok(Searched::Nothing),
        Found::Rehashed(scheme) => Ok(Searched::LookAgain(scheme)),
        Found::WithoutHash(id) => without_hash::answer(context, ask, id, verification, now).await,
        Found::TooMany => Err(ServiceError::unavailable("TOO_MANY_CANDIDATES")),
        Found::Busy => Err(ServiceError::unavailable("SLOW_CHECKS_BUSY")),
        Found::Unknown => Err(ServiceError::unavailable("DATABASE_UNAVAILABLE")),
    }
}

/// One search at a time for the same secret, which goes on if whoever asked hangs up: when they ask again the key is
/// fast, or known not to be one.
async fn fly(context: &Arc<Context>, ask: Ask, secret: &Secret, now: Timestamp) -> Found {
    let under_way = locked(&context.slow_keys.flights).get(&ask).cloned();
    let mut landed = if let Some(landed) = under_way {
        landed
    } else {
        // Beyond as many searches as there may be at once a flood waits here, each with its caller's patience.
        let Ok(place) = context.slow_keys.searches.clone().acquire_owned().await else {
            return Found::Busy;
        };
        let mut flights = locked(&context.slow_keys.flights);
        if let Some(landed) = flights.get(&ask) {
            landed.clone()
        } else if flights.keys().filter(|other| other.reach == ask.reach).count() >= SEARCHES_EACH_MAX {
            return Found::Busy;
        } else {
            let landed = take_off(context, ask, secret.again(), now, place);
            flights.insert(ask, landed.clone());
            landed
        }
    };
    let found = landed.wait_for(Option::is_some).await.map(|found| *found);
    // Without a word it ended in a panic.
    found.ok().flatten().unwrap_or(Found::Unknown)
}

fn take_off(
    context: &Arc<Context>,
    ask: Ask,
    secret: Secret,
    now: Timestamp,
    place: OwnedSemaphorePermit,
) -> watch::Receiver<Option<Found>> {
    let (tell, landed) = watch::channel(None);
    let own = context.clone();
    // Before anything is read that what is imported later may change.
    let forgotten = own.slow_keys.forgotten();
    // A shutdown need not wait for it: only what it stores at its end is a mutation.
    tokio::spawn(async move {
        let _place = place;
        let flight = Flight { flights: &own.slow_keys.flights, ask };
        let mut found = find(&own, ask, &secret, now).await.unwrap_or_else(|error| {
            tracing::warn!(error = ?error, "a search among slow hashes failed");
            Found::Unknown
        });
        // Nobody joins it from here on. Whoever did after an import must not be told what was so before it.
        drop(flight);
        let is_rejected = matches!(found, Found::Nothing | Found::Different) && own.slow_keys.reject(ask, forgotten);
        if matches!(found, Found::Nothing) && !is_rejected {
            found = Found::TooMany;
        }
        tell.send_replace(Some(found));
    });
    landed
}

/// Searches: the key that is named alone, else those that the secret's beginning leads to, and then the rest.
async fn find(context: &Arc<Context>, ask: Ask, secret: &Secret, now: Timestamp) -> Result<Found, ServiceError> {
    let Some(id) = ask.key_id else {
        return find_among_all(context, ask, secret, now).await;
    };
    let turn = context.slow_keys.queries.acquire().await;
    let found = slow_keys::find(context.store.verify(), ask.reach, id).await?;
    drop(turn);
    let Some(candidate) = found else {
        return Ok(Found::Nothing);
    };
    if candidate.hash.is_none() {
        return Ok(Found::WithoutHash(id));
    }
    let found = check(context, ask, secret, vec![candidate], false, now).await?;
    Ok(if matches!(found, Found::Nothing) { Found::Different } else { found })
}

/// Goes on where the search before this one ended, and up to where one search may.
async fn find_among_all(
    context: &Arc<Context>,
    ask: Ask,
    secret: &Secret,
    now: Timestamp,
) -> Result<Found, ServiceError> {
    let chains = &context.slow_keys.chains;
    let begun = Uptime::now();
    let as_begun = outline(context).await?;
    let before = chains.find(&ask, begun);
    let mut progress = before.unwrap_or_else(|| Progress::beginning(as_begun.imports));
    let mut was_any_checked = false;
    loop {
        let page = list(context, ask, secret, &as_begun, progress).await?;
        let is_scan = progress.stage == Stage::Scan;
        let is_any = !page.candidates.is_empty();
        let found = check(context, ask, secret, page.candidates, is_scan, now).await?;
        if matches!(found, Found::Busy) && was_any_checked {
            // Those that were looked up are not checked once more when the scan has room.
            chains.note(ask, progress, Uptime::now());
        }
        if !matches!(found, Found::Nothing) {
            return Ok(found);
        }
        was_any_checked |= is_any;
        if let Some(last) = page.more_after {
            chains.note(ask, progress.behind(last), Uptime::now());
            return Ok(Found::TooMany);
        }
        if is_scan {
            break;
        }
        progress = progress.scanning();
    }
    if before.is_some() {
        chains.end(ask, Uptime::now());
    }
    // Checks may have taken minutes. Within the age of an outline the one that it began with still tells.
    let took_long = Uptime::now().since(begun) > OUTLINE_AGE;
    let as_ended = if took_long { outline(context).await? } else { as_begun };
    // What came in since the chain began may stand before where it went on, unchecked: the next one begins anew.
    Ok(if progress.imports == as_ended.imports { Found::Nothing } else { Found::TooMany })
}

/// The candidates that are next.
async fn list(
    context: &Context,
    ask: Ask,
    secret: &Secret,
    outline: &Outline,
    progress: Progress,
) -> Result<Page, ServiceError> {
    let (db, text, after) = (context.store.verify(), secret.expose(), progress.after);
    let _turn = context.slow_keys.queries.acquire().await;
    let page = match progress.stage {
        Stage::LookUp => {
            let beginnings = beginnings_of(text, &outline.look_up_lengths);
            slow_keys::list_by_look_up(db, ask.reach, &beginnings, after, CANDIDATES_MAX).await?
        }
        Stage::Scan => {
            let beginnings = beginnings_of(text, &outline.prefix_lengths);
            slow_keys::list_to_scan(db, ask.reach, &beginnings, &hint_of(text), after, CANDIDATES_MAX).await?
        }
    };
    Ok(page)
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
    let fitting: Vec<(KeyId, OrganizationId, SlowHash)> = candidates
        .into_iter()
        .filter_map(|candidate| Some((candidate.id, candidate.organization_id, candidate.hash?)))
        .collect();
    let hashes: Vec<SlowHash> = fitting.iter().map(|(_, _, hash)| hash.clone()).collect();
    if hashes.is_empty() {
        return Ok(Found::Nothing);
    }
    let schemes: Vec<Scheme> = hashes.iter().map(|hash| hash.scheme().scheme()).collect();
    let matched = match context.slow_keys.checks.find(ask.reach, secret.again(), hashes, is_scan).await {
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
            let read_as = read_as_digest(secret.expose());
            rehash::store_digest(context, (ask.digest, read_as), (id, organization_id), hash, now).await
        }
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
