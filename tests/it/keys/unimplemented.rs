//! The rpcs that this version does not have yet: they say so, by name, to whoever may call them.
//! An rpc that is built leaves this file and gets one of its own.
//! Invariant: such a call changes nothing, and tells nothing to callers without its permission.

use keystead::proto::v1::{BatchVerifyKeysRequest, ImportKeysRequest, ReportUsageRequest};
use tonic::{Code, Response, Status};

use super::{Footprint, World, refused};
use crate::harness::{TestDatabase, store_test};

fn assert_unimplemented<T>(result: Result<Response<T>, Status>, rpc: &str) {
    let message = result.as_ref().err().map(|status| status.message().to_owned()).unwrap_or_default();
    let details = refused(result, Code::Unimplemented, "NOT_IMPLEMENTED");
    assert!(message.contains(rpc), "{message:?}");
    let metadata = &details.error_info().expect("an ErrorInfo").metadata;
    assert!(metadata.values().any(|value| value == rpc), "{metadata:?}");
}

store_test!(an_rpc_that_is_not_there_yet_says_so);
async fn an_rpc_that_is_not_there_yet_says_so(database: TestDatabase) {
    let world = World::new(&database).await;
    let (_, secret) = world.create(world.new_key()).await;
    let before = Footprint::of(&database).await;
    let mut keys = world.server.keys();
    let batch = BatchVerifyKeysRequest { requests: vec![super::presenting(&secret)] };
    assert_unimplemented(keys.batch_verify_keys(batch).await, "BatchVerifyKeys");
    assert_unimplemented(keys.import_keys(ImportKeysRequest::default()).await, "ImportKeys");
    assert_unimplemented(keys.report_usage(ReportUsageRequest::default()).await, "ReportUsage");
    assert_eq!(Footprint::of(&database).await, before, "and does nothing");
}

store_test!(a_caller_without_the_permission_is_not_told);
async fn a_caller_without_the_permission_is_not_told(database: TestDatabase) {
    let world = World::new(&database).await;
    let caller = world.caller(&world.organization, &["keystead.organizations.read"]).await;
    let mut keys = world.server.keys_as(&caller);
    let denied = "PERMISSION_DENIED";
    refused(keys.batch_verify_keys(BatchVerifyKeysRequest::default()).await, Code::PermissionDenied, denied);
    refused(keys.import_keys(ImportKeysRequest::default()).await, Code::PermissionDenied, denied);
    refused(keys.report_usage(ReportUsageRequest::default()).await, Code::PermissionDenied, denied);
}
