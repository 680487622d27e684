//! `KeyService` on the wire: each rpc decodes, calls its use case, encodes, and decides nothing.

use std::sync::Arc;

use tonic::{Request, Response, Status};

use super::{
    call_log::CallRecord, calls::Calls, decode_import, decode_key, decode_usage, encode, encode_import, encode_usage,
};
use crate::{
    domain::{permission::Permission, usage::UsageSubject},
    proto::v1::{self, key_service_server::KeyService},
    service::{self, Call, Context, ServiceError, Verified},
};

/// `VerifyKey`, once it is known who calls.
pub async fn verify(
    context: Arc<Context>,
    call: Call,
    request: v1::VerifyKeyRequest,
    record: CallRecord,
) -> Result<Verified, ServiceError> {
    let verification = decode_key::decode_verify(request, call.caller.reach(), context.clock.now())?;
    let verified = service::verify_key(&context, verification).await?;
    record.outcome(verified.outcome.as_str());
    if let Some(key) = &verified.key {
        record.key(key.id, key.organization_id);
    }
    Ok(verified)
}

#[tonic::async_trait]
impl KeyService for Calls {
    async fn create_key(
        &self,
        request: Request<v1::CreateKeyRequest>,
    ) -> Result<Response<v1::CreateKeyResponse>, Status> {
        self.call(request, Permission::KeysCreate, |context, call, request, record| async move {
            let new = decode_key::decode_create(request, context.clock.now())?;
            record.organization(new.organization_id);
            let issued = service::create_key(&context, &call, new).await?;
            record.key(issued.key.id, issued.key.organization_id);
            Ok(v1::CreateKeyResponse {
                key: Some(encode::encode_key(issued.key, context.clock.now())),
                secret: issued.secret.expose().to_owned(),
            })
        })
        .await
    }

    async fn verify_key(
        &self,
        request: Request<v1::VerifyKeyRequest>,
    ) -> Result<Response<v1::VerifyKeyResponse>, Status> {
        self.call(request, Permission::KeysVerify, |context, call, request, record| async move {
            verify(context, call, request, record).await.map(encode::encode_verified)
        })
        .await
    }

    async fn batch_verify_keys(
        &self,
        request: Request<v1::BatchVerifyKeysRequest>,
    ) -> Result<Response<v1::BatchVerifyKeysResponse>, Status> {
        self.call(request, Permission::KeysVerify, |context, call, request, _| async move {
            let reach = call.caller.reach();
            let verifications = decode_key::decode_verify_batch(request, reach, context.clock.now())?;
            let verified = service::batch_verify_keys(&context, verifications).await?;
            Ok(v1::BatchVerifyKeysResponse { responses: verified.into_iter().map(encode::encode_verified).collect() })
        })
        .await
    }

    async fn get_key(&self, request: Request<v1::GetKeyRequest>) -> Result<Response<v1::GetKeyResponse>, Status> {
        self.call(request, Permission::KeysRead, |context, call, request, record| async move {
            let id = decode_key::decode_key_id("key_id", &request.key_id)?;
            record.key_id(id);
            let key = service::get_key(&context, &call, id).await?;
            record.key(key.id, key.organization_id);
            Ok(v1::GetKeyResponse { key: Some(encode::encode_key(key, context.clock.now())) })
        })
        .await
    }

    async fn list_keys(&self, request: Request<v1::ListKeysRequest>) -> Result<Response<v1::ListKeysResponse>, Status> {
        self.call(request, Permission::KeysRead, |context, call, request, record| async move {
            let (filter, size, token) = decode_key::decode_list(&request)?;
            record.organization(filter.organization_id);
            let (keys, next_page_token) = service::list_keys(&context, &call, &filter, size, &token).await?;
            let now = context.clock.now();
            let keys = keys.into_iter().map(|key| encode::encode_key(key, now)).collect();
            Ok(v1::ListKeysResponse { keys, next_page_token })
        })
        .await
    }

    async fn update_key(
        &self,
        request: Request<v1::UpdateKeyRequest>,
    ) -> Result<Response<v1::UpdateKeyResponse>, Status> {
        self.call(request, Permission::KeysUpdate, |context, call, request, record| async move {
            let update = decode_key::decode_update(request, context.clock.now())?;
            record.key_id(update.id);
            let key = service::update_key(&context, &call, update).await?;
            record.key(key.id, key.organization_id);
            Ok(v1::UpdateKeyResponse { key: Some(encode::encode_key(key, context.clock.now())) })
        })
        .await
    }

    async fn rotate_key(
        &self,
        request: Request<v1::RotateKeyRequest>,
    ) -> Result<Response<v1::RotateKeyResponse>, Status> {
        self.call(request, Permission::KeysRotate, |context, call, request, record| async move {
            let rotate = decode_key::decode_rotate(&request)?;
            record.key_id(rotate.id);
            let rotated = service::rotate_key(&context, &call, rotate).await?;
            record.key(rotated.key.id, rotated.key.organization_id);
            let now = context.clock.now();
            Ok(v1::RotateKeyResponse {
                key: Some(encode::encode_key(rotated.key, now)),
                secret: rotated.secret.expose().to_owned(),
                previous_key: Some(encode::encode_key(rotated.previous, now)),
            })
        })
        .await
    }

    async fn revoke_key(
        &self,
        request: Request<v1::RevokeKeyRequest>,
    ) -> Result<Response<v1::RevokeKeyResponse>, Status> {
        self.call(request, Permission::KeysRevoke, |context, call, request, record| async move {
            let revoke = decode_key::decode_revoke(&request)?;
            record.key_id(revoke.id);
            let (key, revision) = service::revoke_key(&context, &call, revoke).await?;
            record.key(key.id, key.organization_id);
            Ok(v1::RevokeKeyResponse { key: Some(encode::encode_key(key, context.clock.now())), revision })
        })
        .await
    }

    async fn revoke_keys(
        &self,
        request: Request<v1::RevokeKeysRequest>,
    ) -> Result<Response<v1::RevokeKeysResponse>, Status> {
        self.call(request, Permission::KeysRevoke, |context, call, request, record| async move {
            let revoke = decode_key::decode_revoke_keys(&request)?;
            record.organization(revoke.organization_id);
            Ok(encode::encode_revoked(&service::revoke_keys(&context, &call, revoke).await?))
        })
        .await
    }

    async fn import_keys(
        &self,
        request: Request<v1::ImportKeysRequest>,
    ) -> Result<Response<v1::ImportKeysResponse>, Status> {
        self.call(request, Permission::KeysImport, |context, call, request, record| async move {
            let import = decode_import::decode_import(request, context.clock.now())?;
            record.organization(import.organization_id);
            Ok(encode_import::encode_import(service::import_keys(&context, &call, import).await?))
        })
        .await
    }

    async fn usage_stats(
        &self,
        request: Request<v1::UsageStatsRequest>,
    ) -> Result<Response<v1::UsageStatsResponse>, Status> {
        self.call(request, Permission::UsageRead, |context, call, request, record| async move {
            let question = decode_usage::decode_stats(request, context.clock.now())?;
            match question.subject {
                UsageSubject::Organization(id) => record.organization(id),
                UsageSubject::Key(id) => record.key_id(id),
            }
            Ok(encode_usage::encode_stats(service::usage_stats(&context, &call, &question).await?))
        })
        .await
    }

    async fn report_usage(
        &self,
        request: Request<v1::ReportUsageRequest>,
    ) -> Result<Response<v1::ReportUsageResponse>, Status> {
        self.call(request, Permission::UsageReport, |context, call, request, _| async move {
            let reports = decode_usage::decode_report(request, context.clock.now())?;
            Ok(encode_usage::encode_reported(service::report_usage(&context, &call, reports).await?))
        })
        .await
    }
}
