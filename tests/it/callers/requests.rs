//! For every rpc, requests that are good in themselves and name a key or an organization in each way that the rpc
//! knows. Sent with names that exist for others and with names that exist for nobody, they must answer the same.
//! An rpc that takes an id and is missing here fails the test that goes over the contract.

use keystead::proto::v1::create_key_request::Lifetime;
use keystead::proto::v1::get_organization_request::Selector;
use keystead::proto::v1::import_key::Material;
use keystead::proto::v1::usage_stats_request::Subject;
use keystead::proto::v1::{
    ActivateOrganizationRequest, ApiKey, BatchVerifyKeysRequest, Consistency, CreateKeyRequest,
    CreateOrganizationRequest, DeactivateOrganizationRequest, DeleteOrganizationRequest, Environment, GetKeyRequest,
    GetOrganizationRequest, ImportKey, ImportKeysRequest, ListAuditEventsRequest, ListKeysRequest, Organization,
    ReportUsageRequest, RevokeKeyRequest, RevokeKeysRequest, RotateKeyRequest, UpdateKeyRequest,
    UpdateOrganizationRequest, UsageRecord, UsageStatsRequest, VerifyKeyRequest,
};
use prost::Message;
use prost_types::{Duration, FieldMask};

/// The names of one organization and one key of it.
#[derive(Clone, Copy, Debug)]
pub struct Names<'a> {
    pub organization: &'a str,
    pub slug: &'a str,
    pub email: &'a str,
    pub key: &'a str,
    pub secret: &'a str,
}

/// Names that nothing has. Each is as long as the name of what exists in the tests, so that answers compare.
pub const ABSENT: Names<'static> = Names {
    organization: "0198c7a4-5b7e-7c3a-9f00-2f1d6a8b9c0d",
    slug: "nobody",
    email: "nobody@example.com",
    key: "0198c7a4-5b7e-7c3a-9f00-2f1d6a8b9c0e",
    secret: "pk_live_0000000000000000000000000000000000000000000",
};

/// What a request must be answered with where it names what the caller may not know of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    NotFound,
    /// An answer, the same as for what does not exist.
    SameAnswer,
}

/// One request.
#[derive(Debug)]
pub struct Naming {
    pub what: &'static str,
    pub bytes: Vec<u8>,
    pub expected: Expected,
}

fn missing(what: &'static str, message: &impl Message) -> Naming {
    Naming { what, bytes: message.encode_to_vec(), expected: Expected::NotFound }
}

fn same(what: &'static str, message: &impl Message) -> Naming {
    Naming { what, bytes: message.encode_to_vec(), expected: Expected::SameAnswer }
}

/// A request for a new organization.
pub fn creating(slug: &str) -> CreateOrganizationRequest {
    CreateOrganizationRequest {
        name: "An organization".to_owned(),
        slug: slug.to_owned(),
        email: format!("{slug}@example.org"),
        ..Default::default()
    }
}

/// A request that verifies a secret.
pub fn verifying(secret: &str) -> VerifyKeyRequest {
    VerifyKeyRequest { secret: secret.to_owned(), ..Default::default() }
}

/// A request for a new key.
pub fn issuing(organization: &str, scopes: &[&str]) -> CreateKeyRequest {
    CreateKeyRequest {
        organization_id: organization.to_owned(),
        name: "A key".to_owned(),
        environment: Environment::Test.into(),
        scopes: scopes.iter().map(ToString::to_string).collect(),
        ..Default::default()
    }
}

/// A request that changes one field of a key.
pub fn updating(key: ApiKey, path: &str) -> UpdateKeyRequest {
    let update_mask = Some(FieldMask { paths: vec![path.to_owned()] });
    UpdateKeyRequest { key: Some(key), update_mask, ..Default::default() }
}

/// All requests of this rpc that name something; none for an rpc that names nothing.
pub fn naming(rpc: &str, names: Names<'_>) -> Vec<Naming> {
    let organization_id = names.organization.to_owned();
    let key_id = names.key.to_owned();
    match rpc {
        "KeyService/CreateKey" => {
            let plain = issuing(names.organization, &[]);
            let full = CreateKeyRequest {
                owner_id: "owner".to_owned(),
                lifetime: Some(Lifetime::Ttl(Duration { seconds: 60, nanos: 0 })),
                request_id: ABSENT.key.to_owned(),
                ..plain.clone()
            };
            vec![missing("organization", &plain), missing("organization, with a request id", &full)]
        }
        "KeyService/GetKey" => vec![missing("key", &GetKeyRequest { key_id })],
        "KeyService/ListKeys" => {
            let plain = ListKeysRequest { organization_id, ..Default::default() };
            let filtered = ListKeysRequest { name_contains: "key".to_owned(), page_size: 1, ..plain.clone() };
            vec![missing("organization", &plain), missing("organization, filtered", &filtered)]
        }
        "KeyService/UpdateKey" => {
            let key = ApiKey { id: key_id, name: "Taken over".to_owned(), ..Default::default() };
            let plain = updating(key, "name");
            let with_etag = UpdateKeyRequest { etag: "1".to_owned(), ..plain.clone() };
            vec![missing("key", &plain), missing("key, with an etag", &with_etag)]
        }
        "KeyService/RotateKey" => {
            let plain = RotateKeyRequest { key_id, ..Default::default() };
            let overlap = Some(Duration { seconds: 60, nanos: 0 });
            let with_overlap = RotateKeyRequest { overlap, ..plain.clone() };
            vec![missing("key", &plain), missing("key, with an overlap", &with_overlap)]
        }
        "KeyService/RevokeKey" => {
            let plain = RevokeKeyRequest { key_id, ..Default::default() };
            let with_note = RevokeKeyRequest { note: "gone".to_owned(), etag: "7".to_owned(), ..plain.clone() };
            vec![missing("key", &plain), missing("key, with a note", &with_note)]
        }
        "KeyService/VerifyKey" => verifications(names),
        "KeyService/BatchVerifyKeys" => {
            vec![same("secret", &BatchVerifyKeysRequest { requests: vec![verifying(names.secret)] })]
        }
        "KeyService/RevokeKeys" => {
            let plain = RevokeKeysRequest { organization_id, ..Default::default() };
            let dry = RevokeKeysRequest { dry_run: true, ..plain.clone() };
            vec![missing("organization", &plain), missing("organization, dry run", &dry)]
        }
        "KeyService/ImportKeys" => {
            let key = ImportKey {
                name: "A key".to_owned(),
                environment: Environment::Live.into(),
                material: Some(Material::Sha256Hex("00".repeat(32))),
                ..Default::default()
            };
            let source = "elsewhere".to_owned();
            let plain = ImportKeysRequest { organization_id, keys: vec![key], source, ..Default::default() };
            let dry = ImportKeysRequest { dry_run: true, ..plain.clone() };
            vec![missing("organization", &plain), missing("organization, dry run", &dry)]
        }
        "KeyService/ReportUsage" => {
            let record = UsageRecord { request_id: "r".to_owned(), key_id, ..Default::default() };
            vec![same("key", &ReportUsageRequest { records: vec![record] })]
        }
        "KeyService/UsageStats" => {
            let of = |subject| UsageStatsRequest { subject: Some(subject), ..Default::default() };
            let organization = of(Subject::OrganizationId(organization_id));
            vec![missing("organization", &organization), missing("key", &of(Subject::KeyId(key_id)))]
        }
        other => naming_organizations(other, names),
    }
}

/// The same for the rpcs of `OrganizationService` and `AuditService`.
fn naming_organizations(rpc: &str, names: Names<'_>) -> Vec<Naming> {
    let organization_id = names.organization.to_owned();
    let key_id = names.key.to_owned();
    match rpc {
        "OrganizationService/GetOrganization" => {
            let by = |selector| GetOrganizationRequest { selector: Some(selector) };
            vec![
                missing("id", &by(Selector::OrganizationId(organization_id))),
                missing("slug", &by(Selector::Slug(names.slug.to_owned()))),
                missing("email", &by(Selector::Email(names.email.to_owned()))),
            ]
        }
        "OrganizationService/UpdateOrganization" => {
            let organization =
                Organization { id: organization_id, name: "Taken over".to_owned(), ..Default::default() };
            let update_mask = Some(FieldMask { paths: vec!["name".to_owned()] });
            let plain =
                UpdateOrganizationRequest { organization: Some(organization), update_mask, ..Default::default() };
            let with_etag = UpdateOrganizationRequest { etag: "1".to_owned(), ..plain.clone() };
            vec![missing("organization", &plain), missing("organization, with an etag", &with_etag)]
        }
        "OrganizationService/ActivateOrganization" => {
            vec![missing("organization", &ActivateOrganizationRequest { organization_id, ..Default::default() })]
        }
        "OrganizationService/DeactivateOrganization" => {
            vec![missing("organization", &DeactivateOrganizationRequest { organization_id, ..Default::default() })]
        }
        "OrganizationService/DeleteOrganization" => {
            let plain = DeleteOrganizationRequest { organization_id, ..Default::default() };
            let forced = DeleteOrganizationRequest { force: true, ..plain.clone() };
            vec![missing("organization", &plain), missing("organization, forced", &forced)]
        }
        "AuditService/ListAuditEvents" => {
            let all = ListAuditEventsRequest::default();
            let target_id = names.organization.to_owned();
            vec![
                missing("organization", &ListAuditEventsRequest { organization_id, ..all.clone() }),
                same("organization as target", &ListAuditEventsRequest { target_id, ..all.clone() }),
                same("key as target", &ListAuditEventsRequest { target_id: key_id.clone(), ..all.clone() }),
                same("key as actor", &ListAuditEventsRequest { actor_key_id: key_id, ..all }),
            ]
        }
        _ => Vec::new(),
    }
}

/// A secret of another organization is as unknown as one that does not exist, whatever is asked about it.
fn verifications(names: Names<'_>) -> Vec<Naming> {
    let plain = verifying(names.secret);
    let fresh = VerifyKeyRequest { consistency: Consistency::Fresh.into(), ..plain.clone() };
    let of_its_key = VerifyKeyRequest { key_id: Some(names.key.to_owned()), ..plain.clone() };
    let peek = VerifyKeyRequest { cost: Some(0), ..plain.clone() };
    let limits = VerifyKeyRequest { limit_names: vec!["calls".to_owned()], ..plain.clone() };
    vec![
        same("secret", &plain),
        same("secret, fresh", &fresh),
        same("secret and its key", &of_its_key),
        same("secret, peeking", &peek),
        same("secret, with a limit's name", &limits),
    ]
}
