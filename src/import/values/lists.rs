//! Lists in one text: JSON, an array of PostgreSQL, or words with commas or spaces between. Scopes and networks are
//! read from them. Must not take a part of a list for the whole: one that cannot be read to its end is refused.

use std::collections::HashSet;

use ipnet::IpNet;

use crate::domain::{Invalid, address, scope::Scope};

/// The most scopes, and the most networks, of a key; the same as in the contract.
const ITEMS_MAX: usize = 100;

/// Reads the items of a list. Blank and JSON's `null` are a list without items.
///
/// # Errors
/// Refuses lists that are not whole, lists within lists, NULL and anything but texts among the items.
pub fn parse_list(text: &str) -> Result<Vec<String>, Invalid> {
    let refused = || Invalid::new("must be a list: JSON, an array, or words with commas or spaces between");
    let text = text.trim();
    match text.bytes().next() {
        Some(b'[') => serde_json::from_str(text).map_err(|_| refused()),
        Some(b'{') => array_items(text).ok_or_else(refused),
        // A JSON column that holds one text.
        Some(b'"') => serde_json::from_str::<String>(text).map(|text| words_of(&text)).map_err(|_| refused()),
        Some(_) if text == "null" => Ok(Vec::new()),
        Some(_) | None => Ok(words_of(text)),
    }
}

fn words_of(text: &str) -> Vec<String> {
    let is_between = |character: char| character == ',' || character.is_ascii_whitespace();
    text.split(is_between).filter(|word| !word.is_empty()).map(str::to_owned).collect()
}

/// The items of `{a,"b, c"}`, as PostgreSQL writes an array of one dimension.
fn array_items(text: &str) -> Option<Vec<String>> {
    let mut rest = text.strip_prefix('{')?.strip_suffix('}')?;
    let mut items = Vec::new();
    if rest.trim().is_empty() {
        return Some(items);
    }
    loop {
        rest = rest.trim_start();
        let (item, after) = match rest.strip_prefix('"') {
            Some(quoted) => quoted_item(quoted)?,
            None => plain_item(rest)?,
        };
        items.push(item);
        rest = match after.trim_start() {
            "" => return Some(items),
            more => more.strip_prefix(',')?,
        };
    }
}

/// An item up to its closing quote, in which `\` stands before quotes and itself.
fn quoted_item(text: &str) -> Option<(String, &str)> {
    let mut item = String::new();
    let mut characters = text.chars();
    loop {
        match characters.next()? {
            '"' => return Some((item, characters.as_str())),
            '\\' => item.push(characters.next()?),
            character => item.push(character),
        }
    }
}

fn plain_item(text: &str) -> Option<(String, &str)> {
    let (item, after) = text.split_at_checked(text.find(',').unwrap_or(text.len()))?;
    let item = item.trim_end();
    let legal = !item.is_empty() && !item.eq_ignore_ascii_case("null") && !item.contains(['{', '}', '"', '\\']);
    legal.then(|| (item.to_owned(), after))
}

/// Reads scopes, each once, in their order.
///
/// # Errors
/// Refuses lists that cannot be read, more than 100 scopes, and any that is not legal.
pub fn parse_scopes(text: &str) -> Result<Vec<Scope>, Invalid> {
    let items = parse_list(text)?;
    if items.len() > ITEMS_MAX {
        return Err(Invalid::new(format!("must have at most {ITEMS_MAX} items")));
    }
    let mut seen = HashSet::with_capacity(items.len());
    let mut scopes = Vec::with_capacity(items.len());
    for item in items {
        let scope = Scope::parse(item.trim())?;
        if seen.insert(scope.clone()) {
            scopes.push(scope);
        }
    }
    Ok(scopes)
}

/// Reads networks and addresses.
///
/// # Errors
/// Refuses lists that cannot be read, more than 100 items, and any that is neither.
pub fn parse_cidrs(text: &str) -> Result<Vec<IpNet>, Invalid> {
    let items = parse_list(text)?;
    if items.len() > ITEMS_MAX {
        return Err(Invalid::new(format!("must have at most {ITEMS_MAX} items")));
    }
    items.iter().map(|item| address::parse_cidr(item.trim())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_has_three_shapes() {
        let expected = ["invoices:read", "users:*"];
        for text in [
            r#"["invoices:read", "users:*"]"#,
            "{invoices:read,users:*}",
            r#"{"invoices:read","users:*"}"#,
            r#"{invoices:read, "users:*"}"#,
            "invoices:read,users:*",
            "invoices:read users:*",
            " invoices:read ,\n users:* ",
            r#""invoices:read users:*""#,
        ] {
            assert_eq!(parse_list(text).unwrap(), expected, "{text}");
        }
        for text in ["", " ", "[]", "{}", "null", "\"\"", "{ }"] {
            assert!(parse_list(text).unwrap().is_empty(), "{text:?}");
        }
        assert_eq!(parse_list(r#"{"a \"b\" \\ c",d}"#).unwrap(), ["a \"b\" \\ c", "d"]);
    }

    #[test]
    fn a_list_that_is_not_whole_is_refused() {
        for text in [
            "[",
            "[\"a\"",
            "[\"a\", 1]",
            "[null]",
            "[[\"a\"]]",
            "{a",
            "{a,}",
            "{,a}",
            "{a,NULL}",
            "{{a},{b}}",
            r#"{"a"#,
            r#"{"a"b}"#,
            r#"{"read":true}"#,
            "\"a",
        ] {
            assert!(parse_list(text).is_err(), "{text}");
        }
    }

    #[test]
    fn scopes_keep_their_order_and_stand_once() {
        let scopes = parse_scopes("b:read a:* b:read").unwrap();
        assert_eq!(scopes.iter().map(Scope::as_str).collect::<Vec<_>>(), ["b:read", "a:*"]);
        for text in ["a b%c", r#"["has space inside x"]"#, "a**", &["a"; 101].join(",")] {
            assert!(parse_scopes(text).is_err(), "{text}");
        }
    }

    #[test]
    fn networks_and_addresses_are_read_alike() {
        for text in ["10.0.0.0/8, 2001:db8::1", r#"["10.0.0.0/8","2001:db8::1"]"#, "{10.0.0.0/8,2001:db8::1}"] {
            let read: Vec<String> = parse_cidrs(text).unwrap().iter().map(ToString::to_string).collect();
            assert_eq!(read, ["10.0.0.0/8", "2001:db8::1/128"], "{text}");
        }
        for text in ["10.0.0.0/33", "localhost", "10.0.0.0/8,any"] {
            assert!(parse_cidrs(text).is_err(), "{text}");
        }
    }
}
