//! Generated clients of a running server, each carrying a caller's secret, and the commonest calls.
//! What is asserted here is only what every test relies on; a test asserts its own subject itself.

use keystead::proto::v1::audit_service_client::AuditServiceClient;
use keystead::proto::v1::key_service_client::KeyServiceClient;
use keystead::proto::v1::organization_service_client::OrganizationServiceClient;
use keystead::proto::v1::{
    ApiKey, CreateKeyRequest, CreateOrganizationRequest, Environment, Organization, VerifyKeyRequest, VerifyKeyResponse,
};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};
use tonic_types::{ErrorDetail, ErrorDetails, StatusExt};

use super::Server;

/// A channel that sends a caller's secret with every call.
pub type Authorized = InterceptedService<Channel, Bearer>;

/// Adds `authorization: Bearer SECRET`.
#[derive(Clone)]
pub struct Bearer(MetadataValue<Ascii>);

impl Bearer {
    fn new(secret: &str) -> Self {
        Self(format!("Bearer {secret}").parse().expect("a secret is plain ASCII"))
    }
}

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert("authorization", self.0.clone());
        Ok(request)
    }
}

impl Server {
    /// `KeyService` as the first admin.
    pub fn keys(&self) -> KeyServiceClient<Authorized> {
        self.keys_as(self.admin_secret())
    }

    /// `OrganizationService` as the first admin.
    pub fn organizations(&self) -> OrganizationServiceClient<Authorized> {
        self.organizations_as(self.admin_secret())
    }

    /// `AuditService` as the first admin.
    pub fn audit(&self) -> AuditServiceClient<Authorized> {
        self.audit_as(self.admin_secret())
    }

    /// `KeyService` as the holder of `secret`.
    pub fn keys_as(&self, secret: &str) -> KeyServiceClient<Authorized> {
        KeyServiceClient::with_interceptor(self.channel(), Bearer::new(secret))
    }

    /// `KeyService` as the first admin, on a connection of its own.
    pub fn keys_on_new_connection(&self) -> KeyServiceClient<Authorized> {
        KeyServiceClient::with_interceptor(self.new_channel(), Bearer::new(self.admin_secret()))
    }

    /// `OrganizationService` as the holder of `secret`.
    pub fn organizations_as(&self, secret: &str) -> OrganizationServiceClient<Authorized> {
        OrganizationServiceClient::with_interceptor(self.channel(), Bearer::new(secret))
    }

    /// `AuditService` as the holder of `secret`.
    pub fn audit_as(&self, secret: &str) -> AuditServiceClient<Authorized> {
        AuditServiceClient::with_interceptor(self.channel(), Bearer::new(secret))
    }
}

/// Creates an organization as the admin; its name and email are made from `slug`.
pub async fn create_organization(server: &Server, slug: &str) -> Organization {
    let request = CreateOrganizationRequest {
        name: format!("Organization {slug}"),
        slug: slug.to_owned(),
        email: format!("{slug}@example.com"),
        ..Default::default()
    };
    let answer = server.organizations().create_organization(request).await;
    answer.expect("an organization is created").into_inner().organization.expect("the organization")
}

/// Creates a live key as the admin. Returns the record and the secret.
pub async fn create_key(server: &Server, organization_id: &str, scopes: &[&str]) -> (ApiKey, String) {
    let request = CreateKeyRequest {
        organization_id: organization_id.to_owned(),
        name: "A key of the tests".to_owned(),
        environment: Environment::Live.into(),
        scopes: scopes.iter().map(ToString::to_string).collect(),
        ..Default::default()
    };
    let answer = server.keys().create_key(request).await.expect("a key is created").into_inner();
    (answer.key.expect("the key"), answer.secret)
}

/// Verifies `secret` as the admin, with nothing required of it.
pub async fn verify(server: &Server, secret: &str) -> VerifyKeyResponse {
    let request = VerifyKeyRequest { secret: secret.to_owned(), ..Default::default() };
    server.keys().verify_key(request).await.expect("a verification always answers").into_inner()
}

/// Asserts that a call was refused with `code`, and that the details hold exactly one `ErrorInfo`, of
/// domain `keystead` and with `reason`. Returns all the details.
pub fn expect_error<T>(result: Result<T, Status>, code: Code, reason: &str) -> ErrorDetails {
    let Err(status) = result else {
        panic!("expected {code:?} with {reason}, and the call succeeded");
    };
    assert_eq!(status.code(), code, "{status:?}");
    let details = status.check_error_details_vec().expect("the details decode");
    let infos: Vec<_> = details
        .iter()
        .filter_map(|detail| match detail {
            ErrorDetail::ErrorInfo(info) => Some(info),
            _ => None,
        })
        .collect();
    assert_eq!(infos.len(), 1, "exactly one ErrorInfo: {status:?}");
    assert_eq!(infos[0].domain, "keystead", "{status:?}");
    assert_eq!(infos[0].reason, reason, "{status:?}");
    status.get_error_details()
}
