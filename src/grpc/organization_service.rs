//! `OrganizationService` on the wire: each rpc decodes, calls its use case, encodes, and decides nothing.

use tonic::{Request, Response, Status};

use super::{calls::Calls, decode_organization as decode, encode::encode_organization};
use crate::{
    domain::permission::Permission,
    proto::v1::{self, organization_service_server::OrganizationService},
    service,
};

#[tonic::async_trait]
impl OrganizationService for Calls {
    async fn create_organization(
        &self,
        request: Request<v1::CreateOrganizationRequest>,
    ) -> Result<Response<v1::CreateOrganizationResponse>, Status> {
        self.call(request, Permission::OrganizationsCreate, |context, call, request, record| async move {
            let new = decode::decode_create(request)?;
            let created = service::create_organization(&context, &call, new).await?;
            record.organization(created.organization.id);
            Ok(v1::CreateOrganizationResponse { organization: Some(encode_organization(created)) })
        })
        .await
    }

    async fn get_organization(
        &self,
        request: Request<v1::GetOrganizationRequest>,
    ) -> Result<Response<v1::GetOrganizationResponse>, Status> {
        self.call(request, Permission::OrganizationsRead, |context, call, request, record| async move {
            let selector = decode::decode_get(request)?;
            let found = service::get_organization(&context, &call, selector).await?;
            record.organization(found.organization.id);
            Ok(v1::GetOrganizationResponse { organization: Some(encode_organization(found)) })
        })
        .await
    }

    async fn list_organizations(
        &self,
        request: Request<v1::ListOrganizationsRequest>,
    ) -> Result<Response<v1::ListOrganizationsResponse>, Status> {
        self.call(request, Permission::OrganizationsRead, |context, call, request, _| async move {
            let (filter, size, token) = decode::decode_list(&request)?;
            let (found, next_page_token) = service::list_organizations(&context, &call, &filter, size, &token).await?;
            let organizations = found.into_iter().map(encode_organization).collect();
            Ok(v1::ListOrganizationsResponse { organizations, next_page_token })
        })
        .await
    }

    async fn update_organization(
        &self,
        request: Request<v1::UpdateOrganizationRequest>,
    ) -> Result<Response<v1::UpdateOrganizationResponse>, Status> {
        self.call(request, Permission::OrganizationsWrite, |context, call, request, record| async move {
            let update = decode::decode_update(request)?;
            record.organization(update.id);
            let updated = service::update_organization(&context, &call, update).await?;
            Ok(v1::UpdateOrganizationResponse { organization: Some(encode_organization(updated)) })
        })
        .await
    }

    async fn deactivate_organization(
        &self,
        request: Request<v1::DeactivateOrganizationRequest>,
    ) -> Result<Response<v1::DeactivateOrganizationResponse>, Status> {
        self.call(request, Permission::OrganizationsWrite, |context, call, request, record| async move {
            let (id, etag) = decode::decode_named(&request.organization_id, &request.etag)?;
            record.organization(id);
            let set = service::set_organization_active(&context, &call, id, false, etag).await?;
            Ok(v1::DeactivateOrganizationResponse { organization: Some(encode_organization(set)) })
        })
        .await
    }

    async fn activate_organization(
        &self,
        request: Request<v1::ActivateOrganizationRequest>,
    ) -> Result<Response<v1::ActivateOrganizationResponse>, Status> {
        self.call(request, Permission::OrganizationsWrite, |context, call, request, record| async move {
            let (id, etag) = decode::decode_named(&request.organization_id, &request.etag)?;
            record.organization(id);
            let set = service::set_organization_active(&context, &call, id, true, etag).await?;
            Ok(v1::ActivateOrganizationResponse { organization: Some(encode_organization(set)) })
        })
        .await
    }

    async fn delete_organization(
        &self,
        request: Request<v1::DeleteOrganizationRequest>,
    ) -> Result<Response<v1::DeleteOrganizationResponse>, Status> {
        self.call(request, Permission::OrganizationsWrite, |context, call, request, record| async move {
            let (id, etag) = decode::decode_named(&request.organization_id, &request.etag)?;
            record.organization(id);
            let deleted = service::delete_organization(&context, &call, id, request.force, etag).await?;
            Ok(v1::DeleteOrganizationResponse { organization: Some(encode_organization(deleted)) })
        })
        .await
    }
}
