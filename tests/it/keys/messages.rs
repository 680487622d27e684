//! Messages of `KeyService` as a whole: too large for an rpc, or no message of it at all.
//! Two members of a oneof, and messages of the other services, are in `server/messages.rs`.
//! Invariant: each is refused with `INVALID_ARGUMENT`, changes nothing, and leaves the connection as it was.

use keystead::proto::v1::usage_stats_request::Subject;
use keystead::proto::v1::{
    ApiKey, BatchVerifyKeysRequest, CreateKeyRequest, GetKeyRequest, ImportKeysRequest, ListKeysRequest, Outcome,
    ReportUsageRequest, RevokeKeyRequest, RevokeKeysRequest, RotateKeyRequest, UpdateKeyRequest, UsageRecord,
    UsageStatsRequest,
};
use prost::Message;
use tonic::{Code, Response, Status};

use super::{Footprint, World, bad_fields, fields, mask, presenting, refused};
use crate::harness::rpcs::{call, path_of};
use crate::harness::{TestDatabase, store_test};

fn assert_too_large<T>(result: Result<Response<T>, Status>) {
    refused(result, Code::InvalidArgument, "MESSAGE_TOO_LARGE");
}

store_test!(a_message_over_64_kib_is_refused_by_every_rpc);
async fn a_message_over_64_kib_is_refused_by_every_rpc(database: TestDatabase) {
    let world = World::new(&database).await;
    let (_, secret) = world.create(world.new_key()).await;
    let mut keys = world.server.keys();
    let before = Footprint::of(&database).await;
    for size in [100_000, 1_000_000] {
        let long = "x".repeat(size);
        assert_too_large(keys.verify_key(presenting(&long)).await);
        assert_too_large(keys.create_key(CreateKeyRequest { name: long.clone(), ..world.new_key() }).await);
        assert_too_large(keys.get_key(GetKeyRequest { key_id: long.clone() }).await);
        assert_too_large(keys.list_keys(ListKeysRequest { name_contains: long.clone(), ..Default::default() }).await);
        let key = Some(ApiKey { name: long.clone(), ..Default::default() });
        let update = UpdateKeyRequest { key, update_mask: Some(mask(&["name"])), ..Default::default() };
        assert_too_large(keys.update_key(update).await);
        assert_too_large(keys.rotate_key(RotateKeyRequest { key_id: long.clone(), ..Default::default() }).await);
        assert_too_large(keys.revoke_key(RevokeKeyRequest { note: long.clone(), ..Default::default() }).await);
        assert_too_large(keys.revoke_keys(RevokeKeysRequest { note: long.clone(), ..Default::default() }).await);
        let subject = Some(Subject::KeyId(long.clone()));
        assert_too_large(keys.usage_stats(UsageStatsRequest { subject, ..Default::default() }).await);
        assert_eq!(world.outcome(&secret).await, Outcome::Valid, "the connection goes on");
    }
    assert_eq!(Footprint::of(&database).await, before);
}

store_test!(the_bound_is_65536_bytes_for_one_key_and_a_mebibyte_for_batches);
async fn the_bound_is_65536_bytes_for_one_key_and_a_mebibyte_for_batches(database: TestDatabase) {
    let world = World::new(&database).await;
    let mut keys = world.server.keys();
    let request = presenting(&"x".repeat(65_536 - 4));
    assert_eq!(request.encoded_len(), 65_536);
    assert_eq!(world.ask(request).await.outcome(), Outcome::NotFound);
    assert_too_large(keys.verify_key(presenting(&"x".repeat(65_536 - 3))).await);

    for (size, is_legal) in [(100_000, true), (1_048_000, true), (1_048_577, false)] {
        let text = "x".repeat(size);
        let batch = keys.batch_verify_keys(BatchVerifyKeysRequest { requests: vec![presenting(&text)] }).await;
        let imports = keys.import_keys(ImportKeysRequest { source: text.clone(), ..Default::default() }).await;
        let record = UsageRecord { endpoint: text, ..Default::default() };
        let reports = keys.report_usage(ReportUsageRequest { records: vec![record] }).await;
        if is_legal {
            assert_eq!(batch.expect("an answer").into_inner().responses.len(), 1);
            assert_eq!(bad_fields(imports), fields(&["organization_id", "keys", "source"]), "it is read");
            let answer = reports.expect("an answer").into_inner();
            assert_eq!((answer.accepted, answer.rejected.len()), (0, 1), "the record is judged");
        } else {
            assert_too_large(batch);
            assert_too_large(imports);
            assert_too_large(reports);
        }
    }
}

store_test!(bytes_that_are_no_message_are_refused);
async fn bytes_that_are_no_message_are_refused(database: TestDatabase) {
    let world = World::new(&database).await;
    let (_, secret) = world.create(world.new_key()).await;
    let authorization = format!("Bearer {}", world.server.admin_secret());
    let before = Footprint::of(&database).await;
    let garbage: [&[u8]; 6] = [
        &[0x0a, 0x02, 0xff, 0xfe],       // field 1, a text that is not UTF-8
        &[0x0a, 0x05, b'a'],             // cut
        &[0x0a, 0xff, 0xff, 0xff, 0x7f], // a length far beyond the end
        &[0x08, 0x01],                   // field 1 as a number
        &[0xff; 32],
        &[0x0f, 0x00], // a wire type that there is not
    ];
    for rpc in ["VerifyKey", "CreateKey", "GetKey", "ListKeys", "UpdateKey", "RotateKey", "RevokeKey", "UsageStats"] {
        for bytes in garbage {
            let path = path_of(&format!("KeyService/{rpc}"));
            let result = call(&world.server.channel(), &path, bytes.to_vec(), &[&authorization]).await;
            refused(result, Code::InvalidArgument, "MALFORMED_MESSAGE");
        }
        assert_eq!(world.outcome(&secret).await, Outcome::Valid, "the connection goes on after {rpc}");
    }
    assert_eq!(Footprint::of(&database).await, before);
}

store_test!(fields_that_this_version_does_not_know_are_ignored);
async fn fields_that_this_version_does_not_know_are_ignored(database: TestDatabase) {
    let world = World::new(&database).await;
    let (_, secret) = world.create(world.new_key()).await;
    let authorization = format!("Bearer {}", world.server.admin_secret());
    let mut bytes = presenting(&secret).encode_to_vec();
    bytes.extend([0xfa, 0x7f, 0x03, b'n', b'e', b'w']); // field 2047, a text
    let path = path_of("KeyService/VerifyKey");
    let answer = call(&world.server.channel(), &path, bytes, &[&authorization]).await.expect("an answer");
    let answer = keystead::proto::v1::VerifyKeyResponse::decode(answer.into_inner().as_slice()).expect("a response");
    assert_eq!(answer.outcome(), Outcome::Valid);
}
