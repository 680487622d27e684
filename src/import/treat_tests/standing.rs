//! Times and states of a row. Invariant: no key lives longer, or may more, than its row says; what cannot be read is
//! refused, never taken for absent.

use super::*;
use crate::domain::key::{KeyStatus, RevocationReason};

fn at(time: Option<Timestamp>) -> Option<String> {
    time.map(|time| time.to_string())
}

/// What the key of a row with these cells is now.
fn status(cells: Cells<'_>) -> KeyStatus {
    let (key, _) = with(cells);
    key.status.at(key.expire_time, NOW)
}

#[test]
fn an_expiry_is_never_moved_later() {
    for (text, expected) in [
        ("2020-01-01T00:00:00Z", Some("2020-01-01T00:00:00Z")),
        ("2999-01-02", Some("2999-01-01T22:00:00Z")),
        ("2999-01-02 03:04:05", Some("2999-01-02T01:04:05Z")),
        ("2999-01-02 03:04:05+05:30", Some("2999-01-01T21:34:05Z")),
        ("2999-01-02T03:04:05.999999999Z", Some("2999-01-02T03:04:05.999999Z")),
        ("32503680000", Some("3000-01-01T00:00:00Z")),
        ("32503680000000", Some("3000-01-01T00:00:00Z")),
        ("32503680000000000", Some("3000-01-01T00:00:00Z")),
        (" 2999-01-02T00:00:00Z\n", Some("2999-01-02T00:00:00Z")),
        ("infinity", None),
        ("-infinity", Some("1970-01-01T00:00:00Z")),
        (NULL, None),
    ] {
        assert_eq!(at(with(&[("expire-time", text)]).0.expire_time).as_deref(), expected, "{text}");
    }
    assert_eq!(status(&[("expire-time", "2020-01-01")]), KeyStatus::Expired, "an expired key stays expired");
    for text in ["soon", "2999-13-01", "01/02/2999", "325036800000000000", "0000-00-00 00:00:00", "never"] {
        assert_eq!(refused_with(&[("expire-time", text)]), Refusal::BadExpireTime, "{text}");
    }
}

#[test]
fn an_expiry_is_not_read_in_a_zone_that_nobody_states() {
    let text = "source = \"t\"\norganization = \"acme\"\n[[keys]]\ntable = \"t\"\nid = \"id\"\n\
                columns = { secret = \"secret\", expire-time = \"end\", create-time = \"made\" }";
    let mapping = Mapping::parse(text).unwrap();
    let reader = TableReader::new(&mapping, &mapping.keys[0], false);
    let treated = |end: &str| {
        let cells = [("secret", SECRET), ("end", end), ("made", "2024-01-01 12:00:00")];
        reader.treat(&row(&reader.ask, "1", &cells), NOW)
    };
    for end in ["2999-01-01", "2999-01-01 12:00:00"] {
        assert_eq!(reason_of(treated(end)), Refusal::BadExpireTime, "{end}");
    }
    for end in [NULL, "2999-01-01 12:00:00+00", "2999-01-01T12:00:00Z", "32503680000", "infinity"] {
        assert!(matches!(treated(end), Treated::Key { .. }), "{end}");
    }
    let constant = text.replace("columns = {", "values = { expire-time = \"2999-01-01\" }\ncolumns = {");
    assert!(Mapping::parse(&constant).unwrap_err().to_string().contains("time-zone"));
}

#[test]
fn the_past_is_not_ahead() {
    for (field, reason) in [
        ("create-time", Refusal::BadCreateTime),
        ("last-used-time", Refusal::BadLastUsedTime),
        ("revoke-time", Refusal::BadRevokeTime),
    ] {
        for text in ["2999-01-01", "infinity", "2026-02-02T02:50:00Z", "yesterday"] {
            assert_eq!(refused_with(&[(field, text)]), reason, "{field} {text}");
        }
    }
    let (key, _) = with(&[("create-time", "2024-05-06 07:08:09"), ("last-used-time", "2024-05-07")]);
    assert_eq!(at(key.create_time).as_deref(), Some("2024-05-06T05:08:09Z"), "in the zone of the mapping");
    assert_eq!(at(key.last_used_time).as_deref(), Some("2024-05-06T22:00:00Z"));
    // The clock of the source may be a little ahead of ours.
    let (key, _) = with(&[("last-used-time", "2026-02-02T02:40:30Z")]);
    assert_eq!(key.last_used_time, Some(NOW));
}

#[test]
fn states_are_words_and_flags_and_the_strictest_counts() {
    for (cells, expected) in [
        ([("status", "Active"), ("enabled", "1")], KeyStatus::Active),
        ([("status", "active"), ("enabled", "false")], KeyStatus::Disabled),
        ([("status", "suspended"), ("enabled", "true")], KeyStatus::Disabled),
        ([("status", "active"), ("disabled", "yes")], KeyStatus::Disabled),
        ([("status", "deleted"), ("enabled", "0")], KeyStatus::Revoked),
        ([("status", "expired"), ("enabled", "0")], KeyStatus::Disabled),
        ([("status", "active"), ("revoke-time", "2024-01-01")], KeyStatus::Revoked),
        ([("status", "EXPIRED"), ("enabled", "1")], KeyStatus::Expired),
    ] {
        assert_eq!(status(&cells), expected, "{cells:?}");
    }
    for (field, text) in
        [("status", "weird"), ("enabled", "maybe"), ("disabled", "2024-01-01"), ("status", NULL), ("enabled", NULL)]
    {
        assert_eq!(refused_with(&[(field, text)]), Refusal::BadStatus, "{field}");
    }
    // What NULL means is for the mapping to say.
    let constant = treat_with("[keys.values]\nenabled = false\n", false, &[("secret", SECRET), ("enabled", NULL)]);
    assert_eq!(key_of(constant).0.status, StoredStatus::Disabled);
    let words = "[keys.words]\nstatus = { weird = \"disabled\", live = \"revoked\" }\nenabled = { nein = \"false\" }\n";
    for (cell, expected) in [
        (("status", "Weird"), StoredStatus::Disabled),
        (("status", "live"), StoredStatus::Revoked),
        (("status", "ok"), StoredStatus::Active),
        (("enabled", "Nein"), StoredStatus::Disabled),
    ] {
        assert_eq!(key_of(treat_with(words, false, &[("secret", SECRET), cell])).0.status, expected, "{cell:?}");
    }
}

#[test]
fn expired_by_word_means_expired_by_time() {
    let expire_time = |cells: Cells<'_>| at(with(&[[("status", "expired")].as_slice(), cells].concat()).0.expire_time);
    let created = ("create-time", "2021-02-03T04:05:06Z");
    assert_eq!(expire_time(&[]), at(Some(NOW)));
    assert_eq!(expire_time(&[created]).as_deref(), Some("2021-02-03T04:05:06Z"));
    assert_eq!(expire_time(&[created, ("expire-time", "2999-01-01")]).as_deref(), Some("2021-02-03T04:05:06Z"));
    let passed = [created, ("expire-time", "2022-01-01T00:00:00Z")];
    assert_eq!(expire_time(&passed).as_deref(), Some("2022-01-01T00:00:00Z"), "an expiry that has passed stays");
}

#[test]
fn a_revocation_has_a_time_somebody_and_a_reason() {
    let revocation = |cells: Cells<'_>| {
        let (key, _) = with(&[[("status", "revoked")].as_slice(), cells].concat());
        assert_eq!(key.status, StoredStatus::Revoked);
        key.revocation.unwrap()
    };
    let time = |cells: Cells<'_>| revocation(cells).time.to_string();
    let (created, used) = (("create-time", "2023-01-01T00:00:00Z"), ("last-used-time", "2023-02-02T00:00:00Z"));
    assert_eq!(time(&[created, used, ("revoke-time", "2023-03-03T00:00:00Z")]), "2023-03-03T00:00:00Z");
    assert_eq!(time(&[created, used]), "2023-02-02T00:00:00Z");
    assert_eq!(time(&[created]), "2023-01-01T00:00:00Z");
    assert_eq!(revocation(&[]).time, NOW);

    let bare = revocation(&[]);
    assert_eq!((bare.by.as_str(), bare.reason, bare.note.as_str()), ("import", RevocationReason::Unspecified, ""));
    let whole = revocation(&[
        ("revoked-by", " ann "),
        ("revocation-reason", "Key-Compromise"),
        ("revocation-note", "found in a log"),
    ]);
    assert_eq!((whole.by.as_str(), whole.reason), ("ann", RevocationReason::KeyCompromise));
    assert_eq!(whole.note, "found in a log");
    let free = revocation(&[("revocation-reason", "stolen laptop"), ("revocation-note", "see ticket 12")]);
    assert_eq!((free.reason, free.note.as_str()), (RevocationReason::Other, "stolen laptop: see ticket 12"));
    let free = revocation(&[("revocation-reason", "stolen laptop")]);
    assert_eq!(free.note, "stolen laptop");

    let long = "n".repeat(1001);
    let long = long.as_str();
    for (field, text) in [("revocation-note", long), ("revocation-reason", long), ("revoked-by", "a\u{7}b")] {
        assert_eq!(refused_with(&[("status", "deleted"), (field, text)]), Refusal::BadRevocation, "{field}");
        assert!(with(&[(field, text)]).0.revocation.is_none(), "of no matter where nothing was revoked");
    }
    let note = format!("it was {SECRET}");
    assert_eq!(refused_with(&[("status", "deleted"), ("revocation-note", &note)]), Refusal::BadRevocation);
}
