//! Rows whose settings are not as they should be. Invariant: what a row says never ends later, may more or has more
//! left in Keystead than in its source; where it cannot be read, the row is refused and never guessed.

use keystead::proto::v1::Outcome::{AddressNotAllowed, CreditsExhausted, Disabled, Expired, Revoked, Valid};
use keystead::proto::v1::{KeyStatus, Outcome};
use prost_types::Timestamp;
use time::OffsetDateTime;
use time::macros::datetime;

use super::{Case, row};
use crate::imports::world::Keys;

pub fn cases(keys: &Keys) -> Vec<Case> {
    [ends(keys), states(keys), revocations(keys), moments(keys), names(keys), contents(keys), bad_ones(keys)]
        .into_iter()
        .flatten()
        .collect()
}

/// A row with a good key of its own.
fn with_key(keys: &Keys, name: &str) -> Case {
    row(name).with("secret", keys.text(name))
}

fn assert_at(time: Option<Timestamp>, expected: OffsetDateTime) {
    let time = time.expect("a time");
    assert_eq!((time.seconds, time.nanos), (expected.unix_timestamp(), 0), "is to be {expected}");
}

fn ends(keys: &Keys) -> Vec<Case> {
    let end = |name: &str, text: &str| with_key(keys, name).with("expires_at", text);
    let key = |name: &str| keys.text(name);
    vec![
        end("ended", "2020-01-01T00:00:00Z").gives(&key("ended"), Expired),
        end("ends on a day", "2999-01-02").gives_with(&key("ends on a day"), Valid, |answer, _| {
            assert_at(answer.expire_time, datetime!(2999-01-01 22:00:00 UTC));
        }),
        end("ends without a zone", "2999-01-02 03:04:05").gives_with(
            &key("ends without a zone"),
            Valid,
            |answer, _| {
                assert_at(answer.expire_time, datetime!(2999-01-02 01:04:05 UTC));
            },
        ),
        end("ends with a zone", "2999-01-02 03:04:05+05:30").gives_with(
            &key("ends with a zone"),
            Valid,
            |answer, _| {
                assert_at(answer.expire_time, datetime!(2999-01-01 21:34:05 UTC));
            },
        ),
        end("ends within a second", "2999-01-02T03:04:05.999999999Z").gives_with(
            &key("ends within a second"),
            Valid,
            |answer, _| {
                let time = answer.expire_time.expect("a time");
                assert_eq!(time.seconds, datetime!(2999-01-02 03:04:05 UTC).unix_timestamp());
                assert_eq!(time.nanos, 999_999_000, "never later");
            },
        ),
        end("ends at seconds", "32503680000").gives_with(&key("ends at seconds"), Valid, |answer, _| {
            assert_at(answer.expire_time, datetime!(3000-01-01 00:00:00 UTC));
        }),
        end("ends at milliseconds", "32503680000000").gives_with(&key("ends at milliseconds"), Valid, |answer, _| {
            assert_at(answer.expire_time, datetime!(3000-01-01 00:00:00 UTC));
        }),
        end("ends at microseconds", "32503680000000000").gives_with(
            &key("ends at microseconds"),
            Valid,
            |answer, _| {
                assert_at(answer.expire_time, datetime!(3000-01-01 00:00:00 UTC));
            },
        ),
        end("never ends", "infinity").gives_with(&key("never ends"), Valid, |answer, _| {
            assert_eq!(answer.expire_time, None);
        }),
        end("has always been over", "-infinity").gives(&key("has always been over"), Expired),
        end("ends at a word", "soon").refused("BAD_EXPIRE_TIME"),
        end("ends in a month that is none", "2999-13-01").refused("BAD_EXPIRE_TIME"),
        end("ends at the other end of a date", "01/02/2999").refused("BAD_EXPIRE_TIME"),
        end("ends at too many digits", "325036800000000000").refused("BAD_EXPIRE_TIME"),
    ]
}

fn states(keys: &Keys) -> Vec<Case> {
    let words: [(Outcome, &[&str]); 4] = [
        (Valid, &["active", "enabled", "valid", "live", "ok", "1", "true", "ACTIVE"]),
        (
            Disabled,
            &["disabled", "inactive", "suspended", "paused", "blocked", "locked", "pending", "0", "false", "Paused"],
        ),
        (Revoked, &["revoked", "deleted", "cancelled", "canceled", "compromised", "terminated"]),
        (Expired, &["expired", "Expired"]),
    ];
    let mut cases = Vec::new();
    for (outcome, words) in words {
        for word in words {
            let name = format!("status {word}");
            cases.push(with_key(keys, &name).with("status", *word).gives(&keys.text(&name), outcome));
        }
    }
    let enabled = |name: &str, word: &str| with_key(keys, name).with("enabled", word);
    let key = |name: &str| keys.text(name);
    cases.extend([
        with_key(keys, "status unknown").with("status", "weird").refused("BAD_STATUS"),
        with_key(keys, "status NULL").without("status").refused("BAD_STATUS"),
        with_key(keys, "switched to NULL").without("enabled").refused("BAD_STATUS"),
        enabled("switched on", "true").gives(&key("switched on"), Valid),
        enabled("switched off", "false").gives(&key("switched off"), Disabled),
        enabled("switched off by number", "0").gives(&key("switched off by number"), Disabled),
        enabled("switched to a word", "maybe").refused("BAD_STATUS"),
        enabled("active but switched off", "0")
            .with("status", "active")
            .gives(&key("active but switched off"), Disabled),
        enabled("switched on but disabled", "1")
            .with("status", "disabled")
            .gives(&key("switched on but disabled"), Disabled),
        enabled("switched off and revoked", "0")
            .with("status", "revoked")
            .gives(&key("switched off and revoked"), Revoked),
        with_key(keys, "expired since its making")
            .with("status", "expired")
            .with("created_at", "2021-02-03T04:05:06Z")
            .gives_with(&key("expired since its making"), Expired, |_, key| {
                assert_at(key.expire_time, datetime!(2021-02-03 04:05:06 UTC));
            }),
        with_key(keys, "expired before its end")
            .with("status", "expired")
            .with("expires_at", "2999-01-01T00:00:00Z")
            .gives(&key("expired before its end"), Expired),
        with_key(keys, "expired at its end")
            .with("status", "expired")
            .with("expires_at", "2022-01-01T00:00:00Z")
            .gives_with(&key("expired at its end"), Expired, |_, key| {
                assert_at(key.expire_time, datetime!(2022-01-01 00:00:00 UTC));
            }),
    ]);
    cases
}

fn revocations(keys: &Keys) -> Vec<Case> {
    let revoked = |name: &str| with_key(keys, name).with("status", "revoked");
    let key = |name: &str| keys.text(name);
    vec![
        revoked("revoked with all")
            .with("revoked_at", "2023-04-05 06:07:08Z")
            .with("revoked_by", "ann@example.com")
            .with("reason", "key-compromise")
            .gives_with(&key("revoked with all"), Revoked, |_, key| {
                assert_at(key.revoke_time, datetime!(2023-04-05 06:07:08 UTC));
                assert_eq!(key.revoked_by, "ann@example.com");
                assert_eq!(key.status(), KeyStatus::Revoked);
            }),
        revoked("revoked after its last use")
            .with("created_at", "2023-01-01T00:00:00Z")
            .with("last_used_at", "2023-02-02T00:00:00Z")
            .gives_with(&key("revoked after its last use"), Revoked, |_, key| {
                assert_at(key.revoke_time, datetime!(2023-02-02 00:00:00 UTC));
            }),
        revoked("revoked and never used").with("created_at", "2023-01-01T00:00:00Z").gives_with(
            &key("revoked and never used"),
            Revoked,
            |_, key| {
                assert_at(key.revoke_time, datetime!(2023-01-01 00:00:00 UTC));
                assert_eq!(key.revoked_by, "import");
            },
        ),
        revoked("revoked in words").with("reason", "found in a public repository").gives_with(
            &key("revoked in words"),
            Revoked,
            |_, key| assert!(key.revocation_note.contains("found in a public repository"), "{key:?}"),
        ),
        revoked("revoked in time to come").with("revoked_at", "2999-01-01T00:00:00Z").refused("BAD_REVOKE_TIME"),
        revoked("revoked some time").with("revoked_at", "long ago").refused("BAD_REVOKE_TIME"),
    ]
}

fn moments(keys: &Keys) -> Vec<Case> {
    let with = |name: &str, column, text: &str| with_key(keys, name).with(column, text);
    let key = |name: &str| keys.text(name);
    vec![
        with("made without a zone", "created_at", "2024-05-06 07:08:09").gives_with(
            &key("made without a zone"),
            Valid,
            |_, key| assert_at(key.create_time, datetime!(2024-05-06 05:08:09 UTC)),
        ),
        with("used without a zone", "last_used_at", "2024-05-06T07:08").with("uses", "42").gives_with(
            &key("used without a zone"),
            Valid,
            |_, key| {
                let at_least = datetime!(2024-05-06 05:08:00 UTC).unix_timestamp();
                assert!(key.last_used_time.is_some_and(|time| time.seconds >= at_least));
                assert!((42..=43).contains(&key.request_count), "counting goes on from there: {}", key.request_count);
            },
        ),
        with("made in time to come", "created_at", "2999-01-01").refused("BAD_CREATE_TIME"),
        with("made some time", "created_at", "yesterday").refused("BAD_CREATE_TIME"),
        with("used in time to come", "last_used_at", "2999-01-01").refused("BAD_LAST_USED_TIME"),
    ]
}

fn names(keys: &Keys) -> Vec<Case> {
    let name = |row: &str, text: &str| with_key(keys, row).with("name", text);
    let key = |name: &str| keys.text(name);
    vec![
        with_key(keys, "without a name").gives_with(&key("without a name"), Valid, |_, key| {
            assert_eq!(key.name, "imported key");
        }),
        name("a blank name", "   ").gives_with(&key("a blank name"), Valid, |_, key| {
            assert_eq!(key.name, "imported key");
        }),
        name("a name of its own", "Ключ '; DROP TABLE api_keys; --").gives_with(
            &key("a name of its own"),
            Valid,
            |answer, _| assert_eq!(answer.name, "Ключ '; DROP TABLE api_keys; --"),
        ),
        name("a long name", &"é".repeat(201)).noted("NAME_CHANGED").gives_with(&key("a long name"), Valid, |_, key| {
            assert_eq!(key.name, "é".repeat(200));
        }),
        name("a name of two lines", "two\nlines\u{7}").noted("NAME_CHANGED").gives_with(
            &key("a name of two lines"),
            Valid,
            |_, key| assert!(key.name.starts_with("two") && !key.name.contains(['\n', '\u{7}']), "{:?}", key.name),
        ),
    ]
}

fn contents(keys: &Keys) -> Vec<Case> {
    let with = |name: &str, column, text: &str| with_key(keys, name).with(column, text);
    let key = |name: &str| keys.text(name);
    let entries: Vec<String> = (0..60).map(|at| format!("\"entry{at:02}\": {at}")).collect();
    vec![
        with("metadata", "metadata", r#"{"team": "billing", "seats": 3, "paid": true}"#).gives_with(
            &key("metadata"),
            Valid,
            |answer, _| {
                let seen = ["team", "seats", "paid"].map(|name| answer.metadata[name].as_str());
                assert_eq!((seen, answer.metadata.len()), (["billing", "3", "true"], 3));
            },
        ),
        with("metadata within metadata", "metadata", r#"{"team": "billing", "deep": {"er": 1}, "a b": "c"}"#)
            .noted("METADATA_CUT")
            .gives_with(&key("metadata within metadata"), Valid, |answer, _| {
                assert_eq!((answer.metadata.len(), answer.metadata["team"].as_str()), (1, "billing"));
            }),
        with("too many entries", "metadata", &format!("{{{}}}", entries.join(","))).noted("METADATA_CUT").gives_with(
            &key("too many entries"),
            Valid,
            |answer, _| assert_eq!(answer.metadata.len(), 50),
        ),
        with("scopes as JSON", "scopes", r#"["invoices:read", "users:*"]"#).gives_with(
            &key("scopes as JSON"),
            Valid,
            |answer, _| assert_eq!(answer.scopes, ["invoices:read", "users:*"]),
        ),
        with("scopes as words", "scopes", "invoices:read, users:read").gives_with(
            &key("scopes as words"),
            Valid,
            |answer, _| assert_eq!(answer.scopes, ["invoices:read", "users:read"]),
        ),
        with("an owner", "owner", "ann@example.com").gives_with(&key("an owner"), Valid, |answer, _| {
            assert_eq!(answer.owner_id, "ann@example.com");
        }),
        with("addresses", "cidrs", "192.0.2.0/24").gives(&key("addresses"), AddressNotAllowed),
        with("nothing left", "credits", "0").gives(&key("nothing left"), CreditsExhausted),
        with("something left", "credits", "7").gives_with(&key("something left"), Valid, |answer, _| {
            assert_eq!(answer.credits_remaining, Some(6));
        }),
        with("a word for live", "environment", "production").gives(&key("a word for live"), Valid),
    ]
}

fn bad_ones(keys: &Keys) -> Vec<Case> {
    [
        ("scopes", "two\tlines/é", "BAD_SCOPES"),
        ("scopes", r#"["a:*:b"]"#, "BAD_SCOPES"),
        ("scopes", r#"["keystead.admin"]"#, "RESERVED_SCOPE"),
        ("scopes", "keystead.keys.*", "RESERVED_SCOPE"),
        ("scopes", "key*", "RESERVED_SCOPE"),
        ("scopes", "*", "RESERVED_SCOPE"),
        ("uses", "-1", "BAD_REQUEST_COUNT"),
        ("uses", "many", "BAD_REQUEST_COUNT"),
        ("uses", "1000000000001", "BAD_REQUEST_COUNT"),
        ("uses", "9223372036854775807", "BAD_REQUEST_COUNT"),
        ("credits", "-1", "BAD_CREDITS"),
        ("credits", "1.5 million", "BAD_CREDITS"),
        ("cidrs", "300.0.2.0/24", "BAD_ALLOWED_CIDRS"),
        ("environment", "elsewhere", "BAD_ENVIRONMENT"),
        ("metadata", "not an object", "BAD_METADATA"),
    ]
    .iter()
    .enumerate()
    .map(|(at, (column, text, reason))| with_key(keys, &format!("bad {at}")).with(column, *text).refused(reason))
    .chain([with_key(keys, "an owner too long").with("owner", "o".repeat(201)).refused("BAD_OWNER_ID")])
    .chain(telling_ones(keys))
    .collect()
}

/// Rows that have their key once more, where it would be stored as it is.
fn telling_ones(keys: &Keys) -> [Case; 4] {
    let telling = |name: &str, column| with_key(keys, name).with(column, keys.text(name));
    [
        telling("its key as a name", "name").refused("BAD_NAME"),
        telling("its key as an owner", "owner").refused("BAD_OWNER_ID"),
        telling("its key as a scope", "scopes").refused("BAD_SCOPES"),
        telling("its key as who revoked it", "revoked_by").with("status", "revoked").refused("BAD_REVOCATION"),
    ]
}
