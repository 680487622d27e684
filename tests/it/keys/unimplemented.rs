//! The rpcs that this version does not have yet: they say so, by name, to whoever may call them.
//! An rpc that is built leaves this file and gets one of its own.
//! Invariant: such a call changes nothing, and tells nothing to callers without its permission.

use keystead::proto::v1::ImportKeysRequest;
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
    let before = Footprint::of(&database).await;
    let mut keys = world.server.keys();
    assert_unimplemented(keys.import_keys(ImportKeysRequest::default()).await, "ImportKeys");
    assert_eq!(Footprint::of(&database).await, before, "and does nothing");
}

store_test!(a_caller_without_the_permission_is_not_told);
async fn a_caller_without_the_permission_is_not_told(database: TestDatabase) {
    let world = World::new(&database).await;
    let caller = world.caller(&world.organization, &["keystead.organizations.read"]).await;
    let mut keys = world.server.keys_as(&caller);
    let denied = "PERMISSION_DENIED";
    refused(keys.import_keys(ImportKeysRequest::default()).await, Code::PermissionDenied, denied);
}
