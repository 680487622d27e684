//! Results of `ImportKeys`, from domain to wire. Must not put material into a message: there is none in a result.

use crate::{proto::v1, service::ItemResult};

/// A result for each key, in order.
pub fn encode_import(results: Vec<ItemResult>) -> v1::ImportKeysResponse {
    v1::ImportKeysResponse { results: (0..).zip(results).map(|(index, result)| encode_item(index, result)).collect() }
}

fn encode_item(index: i32, result: ItemResult) -> v1::ImportKeyResult {
    let (result, key_id, refused) = match result {
        ItemResult::Created(id) => (v1::ImportResult::Created, id.to_string(), None),
        ItemResult::WouldCreate => (v1::ImportResult::Created, String::new(), None),
        ItemResult::Existing(id) | ItemResult::Duplicate(Some(id)) => {
            (v1::ImportResult::AlreadyImported, id.to_string(), None)
        }
        ItemResult::Duplicate(None) => (v1::ImportResult::AlreadyImported, String::new(), None),
        ItemResult::Refused(refused) => (v1::ImportResult::Refused, String::new(), Some(refused)),
    };
    let (reason, message) =
        refused.map(|refused| (refused.reason.as_str().to_owned(), refused.message)).unwrap_or_default();
    v1::ImportKeyResult { index, key_id, result: result.into(), reason, message }
}
