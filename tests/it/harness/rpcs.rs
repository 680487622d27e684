//! Every rpc of the contract, read from the descriptor set that the server itself serves, and calls by bytes.
//! A test that goes over `rpcs()` meets each rpc that is ever added without being told. A call here carries
//! whatever bytes and credentials a test wants, wrong ones too; the generated clients cannot send those.

use http::uri::PathAndQuery;
use keystead::proto::FILE_DESCRIPTOR_SET;
use prost::Message as _;
use prost::bytes::{Buf as _, BufMut as _};
use prost_types::{DescriptorProto, FieldDescriptorProto, FileDescriptorSet};
use tonic::client::Grpc;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::Channel;
use tonic::{Request, Response, Status};

/// The package of Keystead's own services.
const PACKAGE: &str = "keystead.v1";

/// One rpc.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rpc {
    /// Such as `KeyService/VerifyKey`.
    pub name: String,
    /// The full name of the request's message, such as `.keystead.v1.VerifyKeyRequest`.
    pub input: String,
}

impl Rpc {
    /// The path of a call, such as `/keystead.v1.KeyService/VerifyKey`.
    pub fn path(&self) -> String {
        path_of(&self.name)
    }

    /// Whether the request, or a message within it, has a field that names a key or an organization.
    pub fn takes_an_id(&self) -> bool {
        const NAMES: [&str; 5] = ["id", "key_id", "organization_id", "target_id", "actor_key_id"];
        field_names(&self.input).iter().any(|name| NAMES.contains(&name.as_str()))
    }
}

/// The path of a call of `SERVICE/METHOD`.
pub fn path_of(name: &str) -> String {
    format!("/{PACKAGE}.{name}")
}

/// Every rpc of `keystead.v1`, in the order of the contract. All are unary.
pub fn rpcs() -> Vec<Rpc> {
    let mut rpcs = Vec::new();
    for file in descriptors().file.iter().filter(|file| file.package() == PACKAGE) {
        for service in &file.service {
            for method in &service.method {
                let name = format!("{}/{}", service.name(), method.name());
                assert!(!method.client_streaming() && !method.server_streaming(), "{name} streams");
                rpcs.push(Rpc { name, input: method.input_type().to_owned() });
            }
        }
    }
    assert!(!rpcs.is_empty(), "the descriptor set has no rpc of {PACKAGE}");
    rpcs
}

/// The full names of Keystead's own services, such as `keystead.v1.KeyService`.
pub fn services() -> Vec<String> {
    let mut names: Vec<String> = rpcs()
        .iter()
        .filter_map(|rpc| rpc.name.split_once('/').map(|(service, _)| format!("{PACKAGE}.{service}")))
        .collect();
    names.dedup();
    names
}

/// Calls an rpc by its path with these bytes, and one `authorization` header for each of `authorizations`.
pub async fn call(
    channel: &Channel,
    path: &str,
    request: Vec<u8>,
    authorizations: &[&str],
) -> Result<Response<Vec<u8>>, Status> {
    let mut request = Request::new(request);
    for authorization in authorizations {
        let value = authorization.parse().expect("plain ASCII");
        request.metadata_mut().append("authorization", value);
    }
    call_with(channel, path, request).await
}

/// Calls an rpc by its path with a request as it is.
pub async fn call_with(channel: &Channel, path: &str, request: Request<Vec<u8>>) -> Result<Response<Vec<u8>>, Status> {
    let path: PathAndQuery = path.parse().expect("a path");
    let mut client = Grpc::new(channel.clone());
    client.ready().await.map_err(|error| Status::from_error(Box::new(error)))?;
    client.unary(request, path, Bytes).await
}

fn descriptors() -> FileDescriptorSet {
    FileDescriptorSet::decode(FILE_DESCRIPTOR_SET).expect("the descriptor set decodes")
}

/// The fields of a message by its full name; none where the descriptor set does not have it.
pub fn fields(message: &str) -> Vec<FieldDescriptorProto> {
    let files = descriptors();
    let found = files.file.iter().find_map(|file| {
        let short = message.strip_prefix(&format!(".{}.", file.package()))?;
        find_message(&file.message_type, short)
    });
    found.map(|message| message.field).unwrap_or_default()
}

/// The names of all fields of a message and of the messages within it.
fn field_names(message: &str) -> Vec<String> {
    let mut names = Vec::new();
    let mut seen = Vec::new();
    let mut waiting = vec![message.to_owned()];
    while let Some(message) = waiting.pop() {
        if seen.contains(&message) {
            continue;
        }
        for field in fields(&message) {
            names.push(field.name().to_owned());
            waiting.extend(field.type_name);
        }
        seen.push(message);
    }
    names
}

fn find_message(messages: &[DescriptorProto], name: &str) -> Option<DescriptorProto> {
    let (own, nested) = name.split_once('.').map_or((name, None), |(own, nested)| (own, Some(nested)));
    let message = messages.iter().find(|message| message.name() == own)?;
    match nested {
        None => Some(message.clone()),
        Some(nested) => find_message(&message.nested_type, nested),
    }
}

/// Messages as the bytes that they are.
struct Bytes;

impl Codec for Bytes {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Bytes {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, item: Vec<u8>, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put_slice(&item);
        Ok(())
    }
}

impl Decoder for Bytes {
    type Item = Vec<u8>;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, Status> {
        let length = buffer.remaining();
        Ok(Some(buffer.copy_to_bytes(length).to_vec()))
    }
}
