//! `AuditService` on the wire: decodes, calls its use case, encodes, and decides nothing.

use tonic::{Request, Response, Status};

use super::{calls::Calls, decode_audit, encode};
use crate::{
    domain::permission::Permission,
    proto::v1::{self, audit_service_server::AuditService},
    service,
};

#[tonic::async_trait]
impl AuditService for Calls {
    async fn list_audit_events(
        &self,
        request: Request<v1::ListAuditEventsRequest>,
    ) -> Result<Response<v1::ListAuditEventsResponse>, Status> {
        self.call(request, Permission::AuditRead, |context, call, request, record| async move {
            let (filter, size, token) = decode_audit::decode_audit_list(&request)?;
            if let Some(id) = filter.organization_id {
                record.organization(id);
            }
            let (events, next_page_token) = service::list_audit_events(&context, &call, filter, size, &token).await?;
            let events = events.into_iter().map(encode::encode_audit_event).collect();
            Ok(v1::ListAuditEventsResponse { events, next_page_token })
        })
        .await
    }
}
