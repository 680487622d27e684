//! What every call goes through, in this order: caller and permission, then the request's fields, then the use case,
//! all within the service's own time. Refusing happens here, inside the handler, when the body has been read.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::Arc,
    task::{self, Poll, Waker},
    time::Duration,
};

use tokio::runtime::Handle;
use tokio_util::task::AbortOnDropHandle;
use tonic::{Request, Response, Status, metadata::MetadataMap};

use super::{call_log::CallRecord, status::encode_error};
use crate::{
    domain::{ids::RecordId, permission::Permission},
    service::{Call, Context, Credential, Freshness, ServiceError, authenticate},
};

/// How long before the caller's deadline it is refused.
const ANSWER_TIME: Duration = Duration::from_millis(3);

/// Runs calls.
#[derive(Clone)]
pub struct Calls {
    pub context: Arc<Context>,
    /// The runtime that has the database's connections: whatever has to wait goes on there.
    pub main: Handle,
    /// The service's own time for a verification.
    pub verify_timeout: Duration,
    /// The service's own time for any other call.
    pub control_timeout: Duration,
}

impl Calls {
    /// Runs one call that tonic has read.
    pub async fn call<Q, A, F>(
        &self,
        request: Request<Q>,
        permission: Permission,
        work: impl FnOnce(Arc<Context>, Call, Q, CallRecord) -> F + Send + 'static,
    ) -> Result<Response<A>, Status>
    where
        Q: Send + 'static,
        A: Send + 'static,
        F: Future<Output = Result<A, ServiceError>> + Send + 'static,
    {
        let record = request.extensions().get::<CallRecord>().cloned();
        let record = record.ok_or_else(|| Status::internal("the call log is missing"))?;
        let (metadata, _, message) = request.into_parts();
        self.run(metadata, record, permission, Duration::ZERO, message, work).await.map(Response::new)
    }

    /// Runs one call: verifications take the caller from the cache, all other calls from the database. What reading the
    /// message has `spent` is taken from its time.
    pub async fn run<Q, A, F>(
        &self,
        metadata: MetadataMap,
        record: CallRecord,
        permission: Permission,
        spent: Duration,
        message: Q,
        work: impl FnOnce(Arc<Context>, Call, Q, CallRecord) -> F + Send + 'static,
    ) -> Result<A, Status>
    where
        Q: Send + 'static,
        A: Send + 'static,
        F: Future<Output = Result<A, ServiceError>> + Send + 'static,
    {
        let (own_time, freshness) = if permission == Permission::KeysVerify {
            (self.verify_timeout, Freshness::Cached)
        } else {
            (self.control_timeout, Freshness::Fresh)
        };
        let own_time = own_time.saturating_sub(spent);
        let time = callers_time(&metadata).map_or(own_time, |callers| callers.saturating_sub(spent).min(own_time));
        let request_id = record.request_id;
        let context = self.context.clone();
        // In its box from the beginning: what is moved from here on is a pointer.
        let whole = Box::pin(async move {
            if !context.is_ready() {
                return Err(ServiceError::unavailable("NOT_READY"));
            }
            let call = caller(&context, &metadata, permission, freshness, &record).await?;
            work(context, call, message, record).await
        });
        let result = here_or_there(&self.main, whole, time).await.unwrap_or_else(|| {
            Err(if time < own_time { ServiceError::DeadlineExceeded } else { ServiceError::timed_out() })
        });
        result.map_err(|error| {
            log_cause(&error, request_id);
            encode_error(&error, request_id)
        })
    }
}

/// Runs a call to its end: here and at once, where nothing has to be waited for, or else as a task of the main
/// runtime, which ends when this future is dropped. `None` where the time ran out.
async fn here_or_there<T: Send + 'static>(
    main: &Handle,
    mut call: Pin<Box<impl Future<Output = Result<T, ServiceError>> + Send + 'static>>,
    time: Duration,
) -> Option<Result<T, ServiceError>> {
    {
        // Whatever it registers with a runtime, it registers with the main one.
        let _entered = main.enter();
        let first = || call.as_mut().poll(&mut task::Context::from_waker(Waker::noop()));
        match catch_unwind(AssertUnwindSafe(first)) {
            Ok(Poll::Ready(result)) => return Some(result),
            Ok(Poll::Pending) => {}
            Err(_) => return Some(Err(ServiceError::Internal("a call panicked".to_owned()))),
        }
    }
    // The timer is made there too: this thread's may be busy, and ends with its connections.
    let task = AbortOnDropHandle::new(main.spawn(async move { tokio::time::timeout(time, call).await }));
    match task.await {
        Ok(ended) => ended.ok(),
        Err(failure) => Some(Err(ServiceError::Internal(format!("a call did not end: {failure}")))),
    }
}

async fn caller(
    context: &Context,
    metadata: &MetadataMap,
    permission: Permission,
    freshness: Freshness,
    record: &CallRecord,
) -> Result<Call, ServiceError> {
    let credential = Credential { secret: bearer(metadata), peer: Some(record.peer.ip()) };
    let caller = authenticate(context, &credential, permission, freshness).await?;
    record.caller(caller.key_id());
    Ok(Call { caller, request_id: record.request_id })
}

/// Logs what an error came from, once, here at the edge; the caller is shown none of it.
fn log_cause(error: &ServiceError, request_id: RecordId) {
    match error {
        ServiceError::Internal(cause) => tracing::error!(request_id = %request_id, cause, "internal error"),
        ServiceError::Unavailable { cause, .. } if !cause.is_empty() => {
            tracing::warn!(request_id = %request_id, cause, "the call could not be answered");
        }
        _ => {}
    }
}

/// How long the caller waits (`grpc-timeout` of the gRPC specification: up to 8 digits and a unit), less what the
/// answer needs to be sent. tonic drops a call at the caller's deadline; refusing just before it gives the answer its
/// details and the log its line.
fn callers_time(metadata: &MetadataMap) -> Option<Duration> {
    let text = metadata.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let count: u64 = digits.parse().ok().filter(|_| digits.len() <= 8)?;
    let time = match unit {
        "H" => Duration::from_hours(count),
        "M" => Duration::from_mins(count),
        "S" => Duration::from_secs(count),
        "m" => Duration::from_millis(count),
        "u" => Duration::from_micros(count),
        "n" => Duration::from_nanos(count),
        _ => return None,
    };
    Some(time.saturating_sub(ANSWER_TIME))
}

/// The bearer secret (RFC 6750, section 2.1), `None` where there is none, another scheme, or more than one header.
fn bearer(metadata: &MetadataMap) -> Option<&str> {
    let mut values = metadata.get_all("authorization").iter();
    let value = values.next()?.to_str().ok()?;
    if values.next().is_some() {
        return None;
    }
    let (scheme, secret) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| secret.trim_start())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIME: Duration = Duration::from_mins(1);

    #[tokio::test]
    async fn a_call_that_panics_is_answered_as_unforeseen() {
        let main = Handle::current();
        let at_once = here_or_there::<()>(&main, Box::pin(async { panic!("a defect") }), TIME).await;
        assert!(matches!(at_once, Some(Err(ServiceError::Internal(_)))), "{at_once:?}");
        let later = Box::pin(async {
            tokio::task::yield_now().await;
            panic!("a defect")
        });
        let later = here_or_there::<()>(&main, later, TIME).await;
        assert!(matches!(later, Some(Err(ServiceError::Internal(_)))), "{later:?}");
    }

    #[tokio::test]
    async fn a_call_that_does_not_end_in_its_time_is_given_up() {
        let never = Box::pin(std::future::pending());
        let ended = here_or_there::<()>(&Handle::current(), never, Duration::from_millis(1)).await;
        assert!(ended.is_none());
    }
}
