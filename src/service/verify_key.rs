//! `VerifyKey`: decides on one presented secret. The whole control flow, top to bottom:
//! shape, look-up, decision, limits and quota, credits, usage. Always answers with an outcome, or says that it does
//! not know. Everything but the outcome is absent from a `NOT_FOUND`, whatever was found.

use std::{sync::Arc, time::Duration};

use ipnet::IpNet;

use super::{
    Context, ServiceError, Violation,
    verify_slow_key::{self, Searched},
};
use crate::{
    domain::{
        Invalid,
        digest::Digest,
        ids::KeyId,
        import::Scheme,
        limits::LimitStatus,
        organization::Organization,
        outcome::{self, Outcome, Question},
        permission::Reach,
        record::KeyRecord,
        scope::RequiredScopes,
        secret::Secret,
        time::Timestamp,
        usage::UsageEvent,
    },
    limits::{Charge, Charged},
    store::credits::{Balance, Spent},
    verify::{Basis, Freshness},
};

/// For how long a caller may reuse an answer that charged nothing: it adds to the time a revocation takes to reach
/// the last user, so it is short.
const REUSE_FOR: Duration = Duration::from_secs(1);
/// How often credits may be found to have moved on to a newer key before the service gives up: each time takes a
/// whole rotation that comes between two statements.
const MOVES_MAX: usize = 32;

/// What is asked about one presented secret.
pub struct Verification {
    /// The presented text, for keys that came with a hash which takes long.
    pub secret: Secret,
    /// Its digest; `None` where its shape says that it is no key's secret.
    pub digest: Option<Digest>,
    pub question: Question,
    /// 0 to 1,000,000; 0 charges nothing and answers as if 1 were to be charged.
    pub cost: i64,
    /// Which of the key's limits to charge; empty for all.
    pub limit_names: Vec<String>,
    pub freshness: Freshness,
    /// The answer must come from a state at least this new.
    pub min_revision: Option<i64>,
    /// What to record; its key and outcome are filled in here.
    pub usage: UsageEvent,
}

/// The answer.
#[derive(Debug)]
pub struct Verified {
    pub outcome: Outcome,
    /// Absent exactly where the outcome is `NOT_FOUND`.
    pub key: Option<Arc<KeyRecord>>,
    pub rate_limits: Vec<LimitStatus>,
    pub credits_remaining: Option<i64>,
    pub reuse_for: Duration,
}

/// Decides on one presented secret.
///
/// # Errors
/// `InvalidArgument` for limit names that the key does not have; `Unavailable` where the database cannot say.
pub async fn verify_key(context: &Arc<Context>, mut verification: Verification) -> Result<Verified, ServiceError> {
    let now = context.clock.now();
    let (judged, basis) = judge(context, &verification, now).await?;
    let verified = settle(context, &verification, judged, now).await?;
    check_still_holds(context, basis)?;
    record(context, &mut verification.usage, &verified, now);
    Ok(verified)
}

/// The last thing before an answer: what it rests on may have grown too old while something was waited for, or while
/// the process or its machine stood still. Then nobody knows, though credits may have been spent.
///
/// # Errors
/// `Unavailable` where it has.
pub(super) fn check_still_holds(context: &Context, basis: Basis) -> Result<(), ServiceError> {
    if context.feed.holds(basis) { Ok(()) } else { Err(ServiceError::grown_stale()) }
}

/// What is decided before anything is charged.
pub(super) enum Judged {
    /// There is no such key, or none that exists for whoever asks.
    NotFound,
    Denied(Outcome, Arc<KeyRecord>),
    /// Valid, if limits, quota and credits allow it.
    Chargeable(Arc<KeyRecord>, Arc<Organization>),
}

impl Judged {
    /// Counts a use of an imported key, which a hash of this scheme led to.
    fn count_use(&self, context: &Arc<Context>, scheme: Scheme) {
        match self {
            Self::NotFound => {}
            Self::Denied(_, key) | Self::Chargeable(key, _) => context.import_uses.count(context, key, scheme),
        }
    }
}

/// Looks the key up and decides; nothing is charged yet. Gives what the decision rests on: the cache while that is no
/// older than the staleness bound, or the database.
///
/// # Errors
/// Those of [`verify_key`].
pub(super) async fn judge(
    context: &Arc<Context>,
    verification: &Verification,
    now: Timestamp,
) -> Result<(Judged, Basis), ServiceError> {
    let basis = context.feed.basis(freshness(context, verification).await?);
    let judged = judge_from(context, verification, basis, now).await?;
    if matches!(judged, Judged::NotFound) && verification.digest.is_some() {
        return Box::pin(judge_slow_key(context, verification, basis, now)).await;
    }
    judged.count_use(context, Scheme::Sha256);
    if basis.freshness == Freshness::Fresh || context.feed.holds(basis) {
        return Ok((judged, basis));
    }
    let basis = context.feed.basis(Freshness::Fresh);
    let judged = Box::pin(judge_from(context, verification, basis, now)).await?;
    Ok((judged, basis))
}

/// No key has the digest: one that was imported with another kind of hash may be meant all the same.
async fn judge_slow_key(
    context: &Arc<Context>,
    verification: &Verification,
    basis: Basis,
    now: Timestamp,
) -> Result<(Judged, Basis), ServiceError> {
    match verify_slow_key::search(context, verification, now).await? {
        Searched::WithoutHash(outcome, key) => {
            let judged = Judged::Denied(outcome, key);
            judged.count_use(context, Scheme::Missing);
            Ok((judged, context.feed.basis(Freshness::Fresh)))
        }
        Searched::LookAgain(scheme) => {
            let basis = context.feed.basis(Freshness::Fresh);
            let judged = judge_from(context, verification, basis, now).await?;
            judged.count_use(context, scheme);
            Ok((judged, basis))
        }
        Searched::Nowhere if basis.freshness == Freshness::Fresh || context.feed.holds(basis) => {
            Ok((Judged::NotFound, basis))
        }
        Searched::Nowhere | Searched::Nothing => {
            let basis = context.feed.basis(Freshness::Fresh);
            Ok((judge_from(context, verification, basis, now).await?, basis))
        }
    }
}

/// What a verification of this secret would be decided as now, as the database has it. Charges and records nothing.
///
/// # Errors
/// `Unavailable` where the database cannot say.
pub async fn peek_outcome(
    context: &Context,
    digest: Digest,
    now: Timestamp,
) -> Result<(Outcome, Option<Arc<KeyRecord>>), ServiceError> {
    let Some(key) = context.records.find_key(&digest, Freshness::Fresh).await? else {
        return Ok((Outcome::NotFound, None));
    };
    let found = context.records.find_organization(key.organization_id, Freshness::Fresh).await?;
    let Some(organization) = found else {
        return Ok((Outcome::NotFound, None));
    };
    let question = Question {
        reach: Reach::All,
        key_id: None,
        required_scopes: RequiredScopes::default(),
        // Where a key may be used from is not asked here.
        client_address: key.allowed_cidrs.first().map(IpNet::addr),
    };
    let outcome = outcome::decide(&key, &organization, &question, now).err().unwrap_or(Outcome::Valid);
    Ok((outcome, Some(key)))
}

async fn judge_from(
    context: &Context,
    verification: &Verification,
    basis: Basis,
    now: Timestamp,
) -> Result<Judged, ServiceError> {
    let Some((key, organization)) = find(context, verification, basis.freshness).await? else {
        return Ok(Judged::NotFound);
    };
    if let Err(outcome) = outcome::decide(&key, &organization, &verification.question, now) {
        return Ok(Judged::Denied(outcome, key));
    }
    check_limit_names(&key, &verification.limit_names)?;
    Ok(Judged::Chargeable(key, organization))
}

/// Charges what is to be charged. Where one process counts the limits, they are charged at the first poll of this future.
///
/// # Errors
/// `Unavailable` where it cannot be told whether credits were spent.
pub(super) async fn settle(
    context: &Context,
    verification: &Verification,
    judged: Judged,
    now: Timestamp,
) -> Result<Verified, ServiceError> {
    match judged {
        Judged::NotFound => Ok(denied(Outcome::NotFound, None)),
        Judged::Denied(outcome, key) => Ok(denied(outcome, Some(key))),
        Judged::Chargeable(key, organization) => charge(context, verification, key, &organization, now).await,
    }
}

/// Hands the answered verification to the recorder.
pub(super) fn record(context: &Context, usage: &mut UsageEvent, verified: &Verified, now: Timestamp) {
    usage.key = verified.key.as_ref().map(|key| (key.id, key.organization_id));
    usage.outcome = verified.outcome;
    usage.time = now;
    context.metrics.verification(verified.outcome);
    context.recorder.record(usage);
}

/// The key and its organization, if they exist for whoever asks.
async fn find(
    context: &Context,
    verification: &Verification,
    freshness: Freshness,
) -> Result<Option<(Arc<KeyRecord>, Arc<Organization>)>, ServiceError> {
    let Some(digest) = &verification.digest else {
        return Ok(None);
    };
    let Some(key) = context.records.find_key(digest, freshness).await? else {
        return Ok(None);
    };
    if !outcome::exists_for(&verification.question, key.id, key.organization_id) {
        return Ok(None);
    }
    let organization = context.records.find_organization(key.organization_id, freshness).await?;
    Ok(organization.map(|organization| (key, organization)))
}

/// Where the answer has to come from. A revision that the feed has not brought yet is looked for in the database; one
/// that the database has not reached either cannot be answered from.
async fn freshness(context: &Context, verification: &Verification) -> Result<Freshness, ServiceError> {
    let wanted = verification.min_revision.filter(|wanted| *wanted > context.feed.position());
    // What has not the shape of a secret is looked for nowhere.
    let (Some(wanted), Some(_)) = (wanted, &verification.digest) else {
        return Ok(verification.freshness);
    };
    if Box::pin(context.feed.find_revision()).await? < wanted {
        return Err(ServiceError::unavailable("REVISION_NOT_REACHED"));
    }
    Ok(Freshness::Fresh)
}

fn denied(outcome: Outcome, key: Option<Arc<KeyRecord>>) -> Verified {
    Verified { outcome, key, rate_limits: Vec::new(), credits_remaining: None, reuse_for: Duration::ZERO }
}

/// Charges limits and quota, then credits.
async fn charge(
    context: &Context,
    verification: &Verification,
    key: Arc<KeyRecord>,
    organization: &Organization,
    now: Timestamp,
) -> Result<Verified, ServiceError> {
    let Verification { limit_names, cost, .. } = verification;
    let bounded = !key.rate_limits.is_empty() || !organization.rate_limits.is_empty();
    let limited = Charge { key: &key, limit_names, organization, cost: *cost, now };
    let metered = organization.monthly_quota > 0;
    if bounded && let Some(Charged { denied: Some(outcome), statuses }) = context.limits.denied_for_certain(&limited) {
        return Ok(Verified { rate_limits: statuses, ..denied(outcome, Some(key)) });
    }
    // What is taken of the quota can be put back, so it comes first; the limits are heard all the same.
    let in_quota = !metered || Box::pin(context.quotas.take(organization, *cost, now)).await?;
    let hold = (metered && in_quota).then(|| QuotaHold { context, organization, cost: *cost, now });
    let Charged { denied: refused, statuses } = if bounded {
        context.limits.charge(&Charge { cost: if in_quota { *cost } else { 0 }, ..limited }).await
    } else {
        Charged { denied: None, statuses: Vec::new() }
    };
    let refused = refused.or((!in_quota).then_some(Outcome::QuotaExceeded));
    let (holder, expire_time) = (key.credits_id, key.expire_time);
    let mut verified = Verified { rate_limits: statuses, ..denied(Outcome::Valid, Some(key.clone())) };
    if let Some(outcome) = refused {
        verified.outcome = outcome;
        return Ok(verified);
    }
    if let Some(holder) = holder {
        let (remaining, enough) = Box::pin(spend(context, holder, *cost, now)).await?;
        verified.credits_remaining = remaining;
        if !enough {
            verified.outcome = Outcome::CreditsExhausted;
            return Ok(verified);
        }
    } else if !bounded && !metered {
        verified.reuse_for = expire_time.map_or(REUSE_FOR, |end| end.since(now).min(REUSE_FOR));
    }
    std::mem::forget(hold);
    Ok(verified)
}

/// Puts back what was taken of the quota when it is dropped: where limits or credits deny the verification, where that
/// cannot be told, or the caller hangs up meanwhile.
struct QuotaHold<'a> {
    context: &'a Context,
    organization: &'a Organization,
    cost: i64,
    now: Timestamp,
}

impl Drop for QuotaHold<'_> {
    fn drop(&mut self) {
        self.context.quotas.put_back(self.organization, self.cost, self.now);
    }
}

/// Every name must be that of a limit of the key.
fn check_limit_names(key: &KeyRecord, names: &[String]) -> Result<(), ServiceError> {
    let unknown = |name: &String| !key.rate_limits.iter().any(|limit| limit.name == *name);
    let refuse =
        |at| Violation::new(format!("limit_names[{at}]"), Invalid::new("must be the name of a limit of the key"));
    let violations: Vec<Violation> =
        names.iter().enumerate().filter(|(_, name)| unknown(name)).map(|(at, _)| refuse(at)).collect();
    if violations.is_empty() { Ok(()) } else { Err(ServiceError::InvalidArgument(violations)) }
}

/// Spends credits; gives what remains and whether it was enough. A cost of 0 spends nothing.
async fn spend(
    context: &Context,
    mut holder: KeyId,
    cost: i64,
    now: Timestamp,
) -> Result<(Option<i64>, bool), ServiceError> {
    for _ in 0..MOVES_MAX {
        match context.spender.spend(holder, cost, now).await? {
            Spent::Charged { remaining } => return Ok((Some(remaining), true)),
            Spent::Refused(Balance::Remaining(remaining)) => return Ok((Some(remaining), cost == 0 && remaining > 0)),
            Spent::Refused(Balance::Unlimited) => return Ok((None, true)),
            Spent::Refused(Balance::Gone) => return Ok((Some(0), false)),
            Spent::Refused(Balance::Moved { to }) => holder = to,
        }
    }
    Err(ServiceError::Internal(format!("the credits moved {MOVES_MAX} times during one call, to key {holder}")))
}
