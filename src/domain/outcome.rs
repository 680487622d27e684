//! The one function that decides what a verification answers, from record, request and clock alone.
//! Charging comes after it: whoever gets `Ok` here still has to pay limits, quota and credits.
//! Invariant: outcomes are tried in the contract's order, and the first that applies wins.

use std::net::IpAddr;

use super::{
    address,
    ids::{KeyId, OrganizationId},
    key::{KeyStatus, stored_enum},
    organization::Organization,
    permission::Reach,
    record::KeyRecord,
    scope::RequiredScopes,
    time::Timestamp,
};

stored_enum! {
    /// The result of one verification. A denied key is an outcome, not an error.
    Outcome {
        NotFound = "NOT_FOUND",
        Revoked = "REVOKED",
        Disabled = "DISABLED",
        Expired = "EXPIRED",
        OrganizationInactive = "ORGANIZATION_INACTIVE",
        AddressNotAllowed = "ADDRESS_NOT_ALLOWED",
        InsufficientScope = "INSUFFICIENT_SCOPE",
        RateLimited = "RATE_LIMITED",
        QuotaExceeded = "QUOTA_EXCEEDED",
        CreditsExhausted = "CREDITS_EXHAUSTED",
        Valid = "VALID",
    }
}

/// What a verification asks, besides the secret.
#[derive(Debug, Clone)]
pub struct Question {
    /// The organizations that exist for whoever asks.
    pub reach: Reach,
    /// The secret must be this key's, where one is named.
    pub key_id: Option<KeyId>,
    pub required_scopes: RequiredScopes,
    /// The address of the end client, where it is known.
    pub client_address: Option<IpAddr>,
}

/// Whether this key exists for whoever asks. If not, nothing of it may show in the answer.
#[must_use]
pub fn exists_for(question: &Question, key_id: KeyId, organization_id: OrganizationId) -> bool {
    question.reach.includes(organization_id) && question.key_id.is_none_or(|wanted| wanted == key_id)
}

/// Decides everything that needs no charging.
///
/// # Errors
/// The outcome that denies the key. `Ok` means that only limits, quota and credits are left to decide.
pub fn decide(
    key: &KeyRecord,
    organization: &Organization,
    question: &Question,
    now: Timestamp,
) -> Result<(), Outcome> {
    if !exists_for(question, key.id, key.organization_id) {
        return Err(Outcome::NotFound);
    }
    match key.status(now) {
        KeyStatus::Revoked => return Err(Outcome::Revoked),
        KeyStatus::Disabled => return Err(Outcome::Disabled),
        KeyStatus::Expired => return Err(Outcome::Expired),
        KeyStatus::Active => {}
    }
    if !organization.active {
        return Err(Outcome::OrganizationInactive);
    }
    if !address::is_allowed(&key.allowed_cidrs, question.client_address) {
        return Err(Outcome::AddressNotAllowed);
    }
    if !question.required_scopes.met_by(&key.scopes) {
        return Err(Outcome::InsufficientScope);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{key::StoredStatus, samples, scope::Scope};

    const NOW: Timestamp = Timestamp::from_micros(1_000_000);

    fn question() -> Question {
        Question { reach: Reach::All, key_id: None, required_scopes: RequiredScopes::default(), client_address: None }
    }

    /// Puts every fault on one key and takes them off one by one: each time the next outcome shows.
    #[test]
    fn the_first_outcome_that_applies_wins() {
        let foreign = Reach::Only(OrganizationId::new(NOW, [9; 10]));
        let mut question = Question {
            reach: foreign,
            required_scopes: RequiredScopes { all_of: vec![Scope::parse("a:b").unwrap()], any_of: vec![] },
            ..question()
        };
        let mut organization = Organization { active: false, ..samples::organization() };
        let mut key = KeyRecord {
            stored_status: StoredStatus::Revoked,
            expire_time: Some(NOW),
            allowed_cidrs: [address::parse_cidr("10.0.0.0/8").unwrap()].into(),
            ..samples::key_record()
        };
        assert_eq!(decide(&key, &organization, &question, NOW), Err(Outcome::NotFound));
        question.reach = Reach::Only(key.organization_id);
        assert_eq!(decide(&key, &organization, &question, NOW), Err(Outcome::Revoked));
        key.stored_status = StoredStatus::Disabled;
        assert_eq!(decide(&key, &organization, &question, NOW), Err(Outcome::Disabled));
        key.stored_status = StoredStatus::Active;
        assert_eq!(decide(&key, &organization, &question, NOW), Err(Outcome::Expired), "the moment itself is too late");
        key.expire_time = Some(NOW.plus(std::time::Duration::from_micros(1)));
        assert_eq!(decide(&key, &organization, &question, NOW), Err(Outcome::OrganizationInactive));
        organization.active = true;
        assert_eq!(decide(&key, &organization, &question, NOW), Err(Outcome::AddressNotAllowed));
        question.client_address = Some("10.1.1.1".parse().unwrap());
        assert_eq!(decide(&key, &organization, &question, NOW), Err(Outcome::InsufficientScope));
        key.scopes = [Scope::parse("a:*").unwrap()].into();
        assert_eq!(decide(&key, &organization, &question, NOW), Ok(()));
    }

    #[test]
    fn a_secret_of_another_key_than_the_named_one_is_not_found() {
        let question = Question { key_id: Some(KeyId::new(NOW, [7; 10])), ..question() };
        assert_eq!(decide(&samples::key_record(), &samples::organization(), &question, NOW), Err(Outcome::NotFound));
    }
}
