//! For every rpc that changes something: good requests, with what they need made beforehand, and the events that each
//! must leave. Shared by the tests of this folder, so that a new mutation is added in one place.

use keystead::proto::v1::import_key::Material;
use keystead::proto::v1::{
    ActivateOrganizationRequest, ApiKey, CreateKeyRequest, CreateKeyResponse, CreateOrganizationResponse,
    DeactivateOrganizationRequest, DeleteOrganizationRequest, Environment, ImportKey, ImportKeysRequest,
    ListKeysRequest, ListOrganizationsRequest, Organization, RevocationReason, RevokeKeyRequest, RevokeKeysRequest,
    RotateKeyRequest, RotateKeyResponse, UpdateOrganizationRequest,
};
use prost::Message;
use prost_types::{Duration, FieldMask};
use tonic::{Response, Status};

use crate::callers::requests::{creating, issuing, updating};
use crate::harness::rpcs;
use crate::harness::{Server, TestDatabase, create_key, create_organization, hex};

/// Every rpc that changes a key or an organization.
pub const MUTATIONS: &[&str] = &[
    "KeyService/CreateKey",
    "KeyService/UpdateKey",
    "KeyService/RotateKey",
    "KeyService/RevokeKey",
    "KeyService/RevokeKeys",
    "KeyService/ImportKeys",
    "OrganizationService/CreateOrganization",
    "OrganizationService/UpdateOrganization",
    "OrganizationService/ActivateOrganization",
    "OrganizationService/DeactivateOrganization",
    "OrganizationService/DeleteOrganization",
];

/// A request that is ready to be sent.
pub struct Prepared {
    pub what: String,
    rpc: &'static str,
    request: Vec<u8>,
    actions: &'static [&'static str],
    /// What it changes; empty where it creates that.
    target_id: String,
    organization_id: String,
}

/// An event that it must leave.
pub struct Expected {
    pub action: &'static str,
    pub target_id: String,
    pub organization_id: String,
}

impl Prepared {
    pub async fn call(&self, server: &Server) -> Result<Response<Vec<u8>>, Status> {
        let bearer = format!("Bearer {}", server.admin_secret());
        rpcs::call(&server.channel(), &rpcs::path_of(self.rpc), self.request.clone(), &[&bearer]).await
    }

    /// The events, given the answer.
    pub fn expected(&self, answer: &[u8]) -> Vec<Expected> {
        let created = match self.rpc {
            "KeyService/CreateKey" => CreateKeyResponse::decode(answer).expect("decodes").key.map(|key| key.id),
            "KeyService/RotateKey" => RotateKeyResponse::decode(answer).expect("decodes").key.map(|key| key.id),
            "OrganizationService/CreateOrganization" => {
                CreateOrganizationResponse::decode(answer).expect("decodes").organization.map(|one| one.id)
            }
            _ => None,
        };
        let of = |action: &'static str| {
            let target_id = match (&created, action) {
                (Some(created), "key.create" | "organization.create") => created.clone(),
                _ => self.target_id.clone(),
            };
            let organization_id = match action {
                "organization.create" => target_id.clone(),
                _ => self.organization_id.clone(),
            };
            Expected { action, target_id, organization_id }
        };
        self.actions.iter().map(|action| of(action)).collect()
    }
}

/// The id of a new key of this owner.
async fn create_owned(server: &Server, organization: &str, owner: &str) -> String {
    let request = CreateKeyRequest { owner_id: owner.to_owned(), ..issuing(organization, &[]) };
    let created = server.keys().create_key(request).await.expect("a key is created").into_inner();
    created.key.expect("the key").id
}

/// A request to import two keys that nobody has.
fn importing(organization: &str) -> ImportKeysRequest {
    let key = || ImportKey {
        name: "imported".to_owned(),
        environment: Environment::Live.into(),
        material: Some(Material::Sha256Hex(hex(&keystead::random::bytes::<32>()))),
        ..Default::default()
    };
    let (organization_id, source) = (organization.to_owned(), "elsewhere".to_owned());
    ImportKeysRequest { organization_id, keys: vec![key(), key()], source, ..Default::default() }
}

/// Good requests of one rpc, each with an organization and keys of its own.
#[expect(clippy::too_many_lines, reason = "a case for each rpc")]
pub async fn prepare(server: &Server, rpc: &'static str) -> Vec<Prepared> {
    let mut made = 0;
    let mut next = async || {
        made += 1;
        let method = rpc.split('/').next_back().unwrap_or_default().to_lowercase();
        create_organization(server, &format!("{method}-{made}")).await.id
    };
    let mut prepared = Vec::new();
    let mut add = |what: &str, actions, target_id: &str, organization_id: &str, request: Vec<u8>| {
        prepared.push(Prepared {
            what: format!("{rpc}: {what}"),
            rpc,
            request,
            actions,
            target_id: target_id.to_owned(),
            organization_id: organization_id.to_owned(),
        });
    };
    match rpc {
        "KeyService/CreateKey" => {
            let id = next().await;
            add("plain", &["key.create"], "", &id, issuing(&id, &["a:b"]).encode_to_vec());
        }
        "KeyService/UpdateKey" => {
            for path in ["name", "scopes", "enabled", "expire_time"] {
                let id = next().await;
                let key = create_key(server, &id, &[]).await.0.id;
                let changed = ApiKey { id: key.clone(), name: "New".to_owned(), ..Default::default() };
                add(path, &["key.update"], &key, &id, updating(changed, path).encode_to_vec());
            }
        }
        "KeyService/RotateKey" => {
            for seconds in [0, 60] {
                let id = next().await;
                let key = create_key(server, &id, &[]).await.0.id;
                let overlap = Some(Duration { seconds, nanos: 0 });
                let request = RotateKeyRequest { key_id: key.clone(), overlap, ..Default::default() };
                let what = format!("overlap {seconds}");
                add(&what, &["key.rotate", "key.create"], &key, &id, request.encode_to_vec());
            }
        }
        "KeyService/RevokeKey" => {
            let id = next().await;
            let key = create_key(server, &id, &[]).await.0.id;
            let request = RevokeKeyRequest {
                key_id: key.clone(),
                reason: RevocationReason::KeyCompromise.into(),
                note: "leaked".to_owned(),
                ..Default::default()
            };
            add("plain", &["key.revoke"], &key, &id, request.encode_to_vec());
        }
        "KeyService/RevokeKeys" => {
            for owner_id in [None, Some("worker-7".to_owned())] {
                let id = next().await;
                let key = create_owned(server, &id, "worker-7").await;
                let what = format!("of {owner_id:?}");
                let all = RevokeKeysRequest { organization_id: id.clone(), owner_id, ..Default::default() };
                add(&what, &["key.revoke"], &key, &id, all.encode_to_vec());
            }
        }
        "KeyService/ImportKeys" => {
            let id = next().await;
            add("two digests", &["key.import"], "", &id, importing(&id).encode_to_vec());
        }
        "OrganizationService/CreateOrganization" => {
            add("plain", &["organization.create"], "", "", creating("brand-new").encode_to_vec());
        }
        "OrganizationService/UpdateOrganization" => {
            let id = next().await;
            let request = UpdateOrganizationRequest {
                organization: Some(Organization { id: id.clone(), max_keys: 7, ..Default::default() }),
                update_mask: Some(FieldMask { paths: vec!["max_keys".to_owned()] }),
                ..Default::default()
            };
            add("max_keys", &["organization.update"], &id, &id, request.encode_to_vec());
        }
        "OrganizationService/ActivateOrganization" => {
            let id = next().await;
            let stop = DeactivateOrganizationRequest { organization_id: id.clone(), ..Default::default() };
            server.organizations().deactivate_organization(stop).await.expect("deactivated");
            let request = ActivateOrganizationRequest { organization_id: id.clone(), ..Default::default() };
            add("plain", &["organization.activate"], &id, &id, request.encode_to_vec());
        }
        "OrganizationService/DeactivateOrganization" => {
            let id = next().await;
            let request = DeactivateOrganizationRequest { organization_id: id.clone(), ..Default::default() };
            add("plain", &["organization.deactivate"], &id, &id, request.encode_to_vec());
        }
        "OrganizationService/DeleteOrganization" => {
            let id = next().await;
            let request = DeleteOrganizationRequest { organization_id: id.clone(), ..Default::default() };
            add("empty", &["organization.delete"], &id, &id, request.encode_to_vec());
            let id = next().await;
            create_key(server, &id, &[]).await;
            let request = DeleteOrganizationRequest { organization_id: id.clone(), force: true, ..Default::default() };
            add("forced", &["organization.delete"], &id, &id, request.encode_to_vec());
        }
        other => panic!("no requests for {other}"),
    }
    assert!(!prepared.is_empty());
    prepared
}

/// Every organization and key as an admin sees them, and the revision of the change feed. What use writes in batches
/// is left out.
pub async fn state(server: &Server, database: &TestDatabase) -> (Vec<Vec<u8>>, i64) {
    let request = ListOrganizationsRequest { page_size: 1000, ..Default::default() };
    let organizations = server.organizations().list_organizations(request).await.expect("a list").into_inner();
    let mut state = Vec::new();
    for organization in organizations.organizations {
        let request =
            ListKeysRequest { organization_id: organization.id.clone(), page_size: 1000, ..Default::default() };
        let mut keys = server.keys().list_keys(request).await.expect("a list").into_inner();
        for key in &mut keys.keys {
            (key.request_count, key.last_used_time) = (0, None);
        }
        state.push(organization.encode_to_vec());
        state.push(keys.encode_to_vec());
    }
    (state, database.query_i64("SELECT revision FROM change_counter").await)
}
