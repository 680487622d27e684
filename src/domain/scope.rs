//! Scopes: permission strings such as `invoices:read`, with `*` alone or last standing for any ending.
//! One relation is all there is: whether one scope covers another. Must not know what a scope opens.

use super::Invalid;

/// The longest scope, in characters.
const SCOPE_LENGTH_MAX: usize = 128;

/// A permission string, 1 to 128 of `[A-Za-z0-9_.:/-]`, with `*` alone or last.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Scope(Box<str>);

impl Scope {
    /// Reads a scope.
    ///
    /// # Errors
    /// Refuses any other length or character, and `*` anywhere but at the end.
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        let literal = text.strip_suffix('*').unwrap_or(text);
        let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"_.:/-".contains(&byte);
        if text.is_empty() || text.len() > SCOPE_LENGTH_MAX || !literal.bytes().all(legal) {
            return Err(Invalid::new("must be 1 to 128 of A-Z a-z 0-9 _ . : / -, with * alone or last"));
        }
        Ok(Self(text.into()))
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether whoever holds this scope holds everything that `other` stands for.
    #[must_use]
    pub fn covers(&self, other: &Scope) -> bool {
        self.covers_text(&other.0)
    }

    /// Whether whoever holds this scope holds `other`, the text of a scope.
    #[must_use]
    pub fn covers_text(&self, other: &str) -> bool {
        match self.0.strip_suffix('*') {
            Some(start) => other.starts_with(start),
            None => *self.0 == *other,
        }
    }

    /// Whether this scope could stand for some text that begins with `start`.
    #[must_use]
    pub fn reaches_into(&self, start: &str) -> bool {
        self.0.starts_with(start) || self.0.strip_suffix('*').is_some_and(|own| start.starts_with(own))
    }
}

/// What a verification asks of a key's scopes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RequiredScopes {
    /// Each of these must be covered.
    pub all_of: Vec<Scope>,
    /// At least one of these must be covered, where there is any.
    pub any_of: Vec<Scope>,
}

impl RequiredScopes {
    /// Whether the held scopes are enough.
    #[must_use]
    pub fn met_by(&self, held: &[Scope]) -> bool {
        let covered = |wanted: &Scope| held.iter().any(|scope| scope.covers(wanted));
        self.all_of.iter().all(covered) && (self.any_of.is_empty() || self.any_of.iter().any(covered))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scopes(texts: &[&str]) -> Vec<Scope> {
        texts.iter().map(|text| Scope::parse(text).unwrap()).collect()
    }

    #[test]
    fn a_trailing_wildcard_covers_every_ending() {
        let held = scopes(&["invoices:*", "users:read"]);
        let met =
            |all: &[&str], any: &[&str]| RequiredScopes { all_of: scopes(all), any_of: scopes(any) }.met_by(&held);
        assert!(met(&["invoices:read", "users:read"], &[]));
        assert!(met(&[], &["users:write", "invoices:x"]));
        assert!(met(&["invoices:*"], &[]));
        assert!(met(&[], &[]));
        assert!(!met(&["users:write"], &[]));
        assert!(!met(&["users:*"], &[]), "a single permission is not the whole family");
        assert!(!met(&["invoices:read"], &["users:write"]));
    }

    #[test]
    fn malformed_scopes_are_refused() {
        for text in ["", " ", "a b", "a*b", "**", "ä", "a\0", "a%", &"x".repeat(129)] {
            assert!(Scope::parse(text).is_err(), "{text:?}");
        }
        assert!(Scope::parse("*").is_ok());
    }

    #[test]
    fn a_wildcard_reaches_into_what_it_could_stand_for() {
        for text in ["*", "key*", "keystead.*", "keystead.keys.read"] {
            assert!(Scope::parse(text).unwrap().reaches_into("keystead."), "{text}");
        }
        for text in ["keys", "keystead", "other.*", "keystone*"] {
            assert!(!Scope::parse(text).unwrap().reaches_into("keystead."), "{text}");
        }
    }
}
