//! `GetKey`: reads one key.

use super::{Call, Context, Resource, ServiceError, guards};
use crate::{
    domain::{ids::KeyId, key::ApiKey},
    store::api_keys,
};

/// Reads one key.
///
/// # Errors
/// `NotFound` where there is none that the caller may know of.
pub async fn get_key(context: &Context, call: &Call, id: KeyId) -> Result<ApiKey, ServiceError> {
    let found = api_keys::find(context.store.control(), call.caller.reach(), id).await?;
    let keys = guards::with_credits(context.store.control(), found.into_iter().collect()).await?;
    keys.into_iter().next().ok_or_else(|| ServiceError::NotFound(Resource::key(id)))
}
