//! `BatchVerifyKeys`: many decisions at once, each as `VerifyKey` makes it. All keys are looked up together; then limits
//! and quotas are charged in the order of the requests, and credits of one key in that order too; limits that replicas
//! share are charged a few at a time.
//! Invariant: a request that cannot be answered ends the whole call before anything is charged, unless it is
//! credits or a quota that cannot be told; nothing is recorded then, since nothing was answered.

use std::sync::Arc;

use futures_util::{StreamExt as _, TryStreamExt as _, future::join_all, stream};

use super::{
    Context, ServiceError, Verification, Verified, Violation,
    verify_key::{check_still_holds, judge, record, settle},
};

/// How many verifications of one batch charge shared limits at once: no batch may fill the way that all others take.
const SHARED_AT_ONCE: usize = 16;

/// Decides on many presented secrets, in order.
///
/// # Errors
/// Those of `VerifyKey`; every bad field of every request is named.
pub async fn batch_verify_keys(
    context: &Arc<Context>,
    mut verifications: Vec<Verification>,
) -> Result<Vec<Verified>, ServiceError> {
    let now = context.clock.now();
    let judged = join_all(verifications.iter().map(|verification| judge(context, verification, now))).await;
    let (judged, bases): (Vec<_>, Vec<_>) = all_or_violations(judged)?.into_iter().unzip();
    let at_once = if context.limits.shared().is_some() { SHARED_AT_ONCE } else { verifications.len().max(1) };
    let settled =
        verifications.iter().zip(judged).map(|(verification, judged)| settle(context, verification, judged, now));
    let settled: Vec<_> = settled.collect();
    let verified: Vec<Verified> = stream::iter(settled).buffered(at_once).try_collect().await?;
    bases.into_iter().try_for_each(|basis| check_still_holds(context, basis))?;
    for (verification, verified) in verifications.iter_mut().zip(&verified) {
        record(context, &mut verification.usage, verified, now);
    }
    Ok(verified)
}

/// All results, or the bad fields of all requests, or the first other error.
///
/// # Errors
/// As said.
pub fn all_or_violations<T>(results: Vec<Result<T, ServiceError>>) -> Result<Vec<T>, ServiceError> {
    let mut all = Vec::with_capacity(results.len());
    let mut violations: Vec<Violation> = Vec::new();
    for (at, result) in results.into_iter().enumerate() {
        match result {
            Ok(value) => all.push(value),
            Err(ServiceError::InvalidArgument(found)) => {
                let within = |Violation { field, description }| Violation {
                    field: format!("requests[{at}].{field}"),
                    description,
                };
                violations.extend(found.into_iter().map(within));
            }
            Err(other) => return Err(other),
        }
    }
    if violations.is_empty() { Ok(all) } else { Err(ServiceError::InvalidArgument(violations)) }
}
