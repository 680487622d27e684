//! The table of treatments in `docs/migrating.md`, row by row, each with a test: `material` is about secrets and
//! hashes, `beside` about ids and hashes next to them, `standing` about times and states, `organizations` about rows of
//! organizations; here is all else.
//! Invariant: a refusal never holds the secret or the hash of its row, whatever the reason.

mod beside;
mod material;
mod organizations;
mod standing;

use zeroize::Zeroizing;

use super::{
    mapping::Mapping,
    source::{Ask, Row},
    treat::{TableReader, Treated},
};
use crate::domain::{
    audit::encode_hash,
    digest::Digest,
    ids::KeyId,
    import::{GivenScheme, ImportedKey, Material, Note, Refusal, Refused},
    key::{Environment, StoredStatus},
    scope::Scope,
    time::Timestamp,
};

/// 2026-02-02T02:40:00Z.
const NOW: Timestamp = Timestamp::from_micros(1_770_000_000_000_000);
/// A secret that is good enough.
const SECRET: &str = "Zx81kQp0aVn3Wc7dRt5Y";
/// Stands for NULL.
const NULL: &str = "<NULL>";

/// The cells of a row, by the name of their field.
type Cells<'a> = &'a [(&'a str, &'a str)];

/// What becomes of a row whose columns are called like the fields that they are.
fn treat(cells: Cells<'_>) -> Treated {
    treat_with("", false, cells)
}

/// The same with more of a mapping, and with weak secrets let in or not.
fn treat_with(rest: &str, allow_weak: bool, cells: Cells<'_>) -> Treated {
    let columns: String =
        cells.iter().fold(String::new(), |text, (field, _)| text + &format!("{field} = \"{field}\"\n"));
    let text = format!(
        "source = \"test\"\norganization = \"acme\"\ntime-zone = \"+02:00\"\n\
         [[keys]]\ntable = \"t\"\nid = \"id\"\n[keys.columns]\n{columns}{rest}"
    );
    let mapping = Mapping::parse(&text).unwrap();
    let reader = TableReader::new(&mapping, &mapping.keys[0], allow_weak);
    let treated = reader.treat(&row(&reader.ask, "row 1", cells), NOW);
    if let Treated::Refused(Refused { message, .. }) = &treated {
        for (_, cell) in cells.iter().filter(|(_, cell)| cell.trim().len() > 3) {
            assert!(!message.contains(cell.trim()), "{message}");
        }
    }
    treated
}

fn row(ask: &Ask, id: &str, cells: Cells<'_>) -> Row {
    let value = |name: &str| cells.iter().find(|(known, _)| *known == name).map(|(_, cell)| *cell);
    let values = ask.columns.iter().map(|column| {
        let cell = value(&column.name).filter(|cell| *cell != NULL)?;
        // As sources do: what is too long comes cut, with one character more than was asked for.
        let most = usize::try_from(column.length_max).unwrap() + 1;
        Some(Zeroizing::new(cell.chars().take(most).collect::<String>()))
    });
    Row { id: id.to_owned(), values: values.collect() }
}

fn key_of(treated: Treated) -> (ImportedKey, Vec<Note>) {
    match treated {
        Treated::Key { key, notes, .. } => (*key, notes),
        other => panic!("no key: {other:?}"),
    }
}

/// The key of a row with a good secret and these cells.
fn with(cells: Cells<'_>) -> (ImportedKey, Vec<Note>) {
    key_of(treat(&[[("secret", SECRET)].as_slice(), cells].concat()))
}

fn reason_of(treated: Treated) -> Refusal {
    match treated {
        Treated::Refused(refused) => refused.reason,
        other => panic!("not refused: {other:?}"),
    }
}

/// Why a row with a good secret and these cells is refused.
fn refused_with(cells: Cells<'_>) -> Refusal {
    reason_of(treat(&[[("secret", SECRET)].as_slice(), cells].concat()))
}

#[test]
fn a_row_with_nothing_but_a_secret_has_defaults() {
    let (key, notes) = with(&[]);
    assert_eq!(key.source_id, "row 1");
    assert_eq!((key.given, key.kept_id), (GivenScheme::Plaintext, None));
    assert_eq!(key.material.digest(), Some(&Digest::of(SECRET)));
    assert_eq!((key.name.as_str(), key.environment), ("imported key", Environment::Live));
    assert_eq!(key.status, StoredStatus::Active);
    assert_eq!((key.prefix.as_str(), key.hint.as_str()), ("", "Rt5Y"));
    assert!(key.scopes.is_empty() && key.metadata.is_empty() && key.owner_id.is_empty());
    assert!(key.allowed_cidrs.is_empty() && key.rate_limits.is_empty() && key.credits.is_none());
    assert_eq!((key.create_time, key.expire_time, key.last_used_time, key.request_count), (None, None, None, 0));
    assert!(key.revocation.is_none() && notes.is_empty());
}

#[test]
fn null_and_blank_in_an_optional_column_are_absent() {
    for cell in [NULL, "", "  \n"] {
        let (key, notes) = with(&[
            ("name", cell),
            ("environment", cell),
            ("owner-id", cell),
            ("scopes", cell),
            ("metadata", cell),
            ("allowed-cidrs", cell),
            ("create-time", cell),
            ("last-used-time", cell),
            ("request-count", cell),
            ("look-up-id", cell),
            ("prefix", cell),
            ("hint", cell),
            ("display", cell),
            ("key-id", cell),
        ]);
        assert_eq!((key.name.as_str(), key.kept_id, key.request_count), ("imported key", None, 0), "{cell:?}");
        assert!(notes.is_empty(), "{cell:?}: {notes:?}");
    }
}

#[test]
fn a_blank_where_absence_would_let_a_key_do_more_is_refused() {
    for (field, reason) in [
        ("expire-time", Refusal::BadExpireTime),
        ("status", Refusal::BadStatus),
        ("enabled", Refusal::BadStatus),
        ("disabled", Refusal::BadStatus),
        ("revoke-time", Refusal::BadRevokeTime),
        ("credits-remaining", Refusal::BadCredits),
    ] {
        assert_eq!(refused_with(&[(field, " ")]), reason, "{field}");
        if reason == Refusal::BadStatus {
            continue;
        }
        let (key, _) = with(&[(field, NULL)]);
        assert_eq!((key.status, key.expire_time, key.credits), (StoredStatus::Active, None, None), "{field}");
    }
}

#[test]
fn the_id_of_a_row_stays_as_it_is() {
    let mapping = "source = \"t\"\norganization = \"acme\"\n[[keys]]\ntable = \"t\"\nid = \"id\"\n\
                   columns = { secret = \"secret\" }";
    let mapping = Mapping::parse(mapping).unwrap();
    let reader = TableReader::new(&mapping, &mapping.keys[0], false);
    let treated = |id: &str| reader.treat(&row(&reader.ask, id, &[("secret", SECRET)]), NOW);
    assert_eq!(key_of(treated(" 17 ")).0.source_id, " 17 ", "another row may be called 17");
    for id in ["", "a\nb", &"x".repeat(201)] {
        assert_eq!(reason_of(treated(id)), Refusal::BadSourceId, "{id:?}");
    }
}

#[test]
fn a_kept_id_is_a_uuid_or_always_the_same_one() {
    let uuid = "0198C7A4-5B7E-7C3A-9F00-2F1D6A8B9C0D";
    let (key, _) = with(&[("key-id", uuid)]);
    assert_eq!(key.kept_id.map(|id| id.to_string()), Some(uuid.to_lowercase()));
    let (key, notes) = with(&[("key-id", "  ak_live:1\n")]);
    assert_eq!((key.kept_id, notes), (Some(KeyId::of_text("ak_live:1").unwrap()), vec![Note::Trimmed]));
    for id in ["two words", "ключ", &"x".repeat(129), &"x".repeat(5000)] {
        assert_eq!(refused_with(&[("key-id", id)]), Refusal::BadKeyId, "{id}");
    }
}

#[test]
fn a_key_belongs_to_the_organization_of_its_row_or_of_the_mapping() {
    let organization = |rest: &str, cells: Cells<'_>| match treat_with(rest, false, cells) {
        Treated::Key { organization, notes, .. } => (organization.as_str().to_owned(), notes),
        other => panic!("no key: {other:?}"),
    };
    let secret = ("secret", SECRET);
    assert_eq!(organization("", &[secret]), ("acme".to_owned(), vec![]));
    assert_eq!(organization("[keys.values]\norganization = \"rival\"\n", &[secret]), ("rival".to_owned(), vec![]));
    assert_eq!(organization("", &[secret, ("organization", "rival")]), ("rival".to_owned(), vec![]));
    assert_eq!(organization("", &[secret, ("organization", " rival\n")]), ("rival".to_owned(), vec![Note::Trimmed]));
    assert_eq!(organization("", &[secret, ("organization", NULL)]), ("acme".to_owned(), vec![]));
    let mapping = "source = \"t\"\n[[keys]]\ntable = \"t\"\nid = \"id\"\n\
                   columns = { secret = \"secret\", organization = \"o\" }";
    let mapping = Mapping::parse(mapping).unwrap();
    let reader = TableReader::new(&mapping, &mapping.keys[0], false);
    let treated = reader.treat(&row(&reader.ask, "1", &[secret]), NOW);
    assert_eq!(reason_of(treated), Refusal::UnknownOrganization);
}

#[test]
fn names_are_made_legal_or_come_from_the_mapping() {
    let long = "ä".repeat(201);
    let cut = "ä".repeat(200);
    for (given, name, is_changed) in [
        ("Acme prod", "Acme prod", false),
        (long.as_str(), cut.as_str(), true),
        ("two\nlines\u{7}", "twolines", true),
        ("\u{202e}\u{7}", "imported key", true),
        (" ", "imported key", false),
        (NULL, "imported key", false),
    ] {
        let (key, notes) = with(&[("name", given)]);
        assert_eq!((key.name.as_str(), notes.contains(&Note::NameChanged)), (name, is_changed), "{given:?}");
    }
    for given in [NULL, "  "] {
        let constant = "[keys.values]\nname = \"of clients\"\n";
        let treated = treat_with(constant, false, &[("secret", SECRET), ("name", given)]);
        assert_eq!(key_of(treated).0.name, "of clients");
    }
    let (key, notes) = with(&[("name", &"n".repeat(5000))]);
    assert_eq!((key.name.len(), notes), (200, vec![Note::NameChanged]));
}

#[test]
fn the_environment_is_a_word_or_what_the_secret_begins_with() {
    assert_eq!(with(&[("environment", "PRODUCTION")]).0.environment, Environment::Live);
    assert_eq!(with(&[("environment", "sandbox")]).0.environment, Environment::Test);
    assert_eq!(refused_with(&[("environment", "eu-west")]), Refusal::BadEnvironment);
    let words = "[keys.words]\nenvironment = { eu-west = \"live\" }\n";
    let treated = treat_with(words, false, &[("secret", SECRET), ("environment", "EU-West")]);
    assert_eq!(key_of(treated).0.environment, Environment::Live);
    let (test, _) = key_of(treat(&[("secret", "sk_test_Zx81kQp0aVn3Wc7dRt5Y")]));
    assert_eq!((test.prefix.as_str(), test.environment), ("sk_test_", Environment::Test));
    let constant = "[keys.values]\nenvironment = \"live\"\n";
    let (live, _) = key_of(treat_with(constant, false, &[("secret", "sk_test_Zx81kQp0aVn3Wc7dRt5Y")]));
    assert_eq!(live.environment, Environment::Live, "what the mapping says comes first");
}

#[test]
fn scopes_are_read_in_three_shapes_and_none_reaches_into_our_own() {
    for text in [r#"["invoices:read","users:*"]"#, "{invoices:read,users:*}", "invoices:read, users:*"] {
        let (key, _) = with(&[("scopes", text)]);
        assert_eq!(key.scopes.iter().map(Scope::as_str).collect::<Vec<_>>(), ["invoices:read", "users:*"], "{text}");
    }
    let many = ["s"; 101].join(",");
    for text in ["a b%", "[", r#"{"read": true}"#, &many, &"x,".repeat(20_000)] {
        assert_eq!(refused_with(&[("scopes", text)]), Refusal::BadScopes, "{text}");
    }
    for text in ["keystead.admin", "keystead.keys.*", "key*", "*", r#"["invoices:read", "keystead.keys.read"]"#] {
        assert_eq!(refused_with(&[("scopes", text)]), Refusal::ReservedScope, "{text}");
    }
}

#[test]
fn metadata_is_kept_as_far_as_the_contract_allows() {
    let (key, notes) = with(&[("metadata", r#"{"team":"billing","seats":3,"paid":true,"none":null}"#)]);
    let entry = |(name, value): (&'_ String, &'_ String)| format!("{name}={value}");
    let entries: Vec<String> = key.metadata.iter().map(entry).collect();
    assert_eq!((entries.join(" "), notes), ("paid=true seats=3 team=billing".to_owned(), vec![]));
    let (key, notes) = with(&[("metadata", r#"{"team":"billing","deep":{"er":1},"a b":"c"}"#)]);
    assert_eq!((key.metadata.len(), notes), (1, vec![Note::MetadataCut]));
    let many: Vec<String> = (0..60).map(|number| format!("\"entry{number}\":1")).collect();
    let (key, notes) = with(&[("metadata", &format!("{{{}}}", many.join(",")))]);
    assert_eq!((key.metadata.len(), notes), (50, vec![Note::MetadataCut]));
    // Of what is too long to be fetched nothing is kept: its beginning is no object.
    let heavy = format!(r#"{{"team":"billing","blob":"{}"}}"#, "x".repeat(10 << 20));
    let (key, notes) = with(&[("metadata", &heavy)]);
    assert_eq!((key.metadata.len(), notes), (0, vec![Note::MetadataCut]));
    for text in ["[]", "not an object", "{"] {
        assert_eq!(refused_with(&[("metadata", text)]), Refusal::BadMetadata, "{text}");
    }
}

#[test]
fn owners_networks_counts_and_credits_are_held_to_the_contract() {
    let (key, notes) = with(&[
        ("owner-id", " ann@example.com\n"),
        ("allowed-cidrs", "10.0.0.0/8, 2001:db8::1"),
        ("request-count", "42.00"),
        ("credits-remaining", "7"),
    ]);
    assert_eq!((key.owner_id.as_str(), notes), ("ann@example.com", vec![Note::Trimmed]));
    assert_eq!(key.allowed_cidrs.len(), 2);
    assert_eq!((key.request_count, key.credits.map(|credits| credits.remaining)), (42, Some(7)));
    for (field, text, reason) in [
        ("owner-id", "a\nb", Refusal::BadOwnerId),
        ("owner-id", "o".repeat(201).as_str(), Refusal::BadOwnerId),
        ("allowed-cidrs", "300.0.2.0/24", Refusal::BadAllowedCidrs),
        ("request-count", "-1", Refusal::BadRequestCount),
        // A sum of such ones would be too large for a database.
        ("request-count", "1000000000001", Refusal::BadRequestCount),
        ("request-count", "9223372036854775807", Refusal::BadRequestCount),
        ("request-count", "many", Refusal::BadRequestCount),
        ("credits-remaining", "-1", Refusal::BadCredits),
        ("credits-remaining", "1.5", Refusal::BadCredits),
        ("credits-remaining", "9999999999999", Refusal::BadCredits),
    ] {
        assert_eq!(refused_with(&[(field, text)]), reason, "{field} {text}");
    }
}

#[test]
fn a_limit_is_a_number_in_a_column() {
    let limits = "[[keys.limits]]\nname = \"requests\"\nlimit = \"name\"\nwindow = \"1m\"\n";
    let of = |text: &str| treat_with(limits, false, &[("secret", SECRET), ("name", text)]);
    let (key, _) = key_of(of("100"));
    let [limit] = key.rate_limits.as_slice() else { panic!("{key:?}") };
    assert_eq!((limit.name.as_str(), limit.limit, limit.window.as_secs(), limit.shadow), ("requests", 100, 60, false));
    for none in [NULL, "0"] {
        assert!(key_of(of(none)).0.rate_limits.is_empty(), "{none}");
    }
    for bad in ["-1", "many", "1.5", " ", "9999999999"] {
        assert_eq!(reason_of(of(bad)), Refusal::BadRateLimits, "{bad}");
    }
}

#[test]
fn what_is_stored_never_holds_the_secret() {
    let (hash, revoked, spaced) = (sha256_hex(SECRET), ("status", "deleted"), format!(" {SECRET}\n"));
    for (field, reason) in [
        ("name", Refusal::BadName),
        ("owner-id", Refusal::BadOwnerId),
        ("scopes", Refusal::BadScopes),
        ("revoked-by", Refusal::BadRevocation),
        ("revocation-note", Refusal::BadRevocation),
        ("revocation-reason", Refusal::BadRevocation),
    ] {
        let text = if field == "scopes" { format!("files:read app/{SECRET}") } else { format!("key {SECRET}") };
        assert_eq!(refused_with(&[revoked, (field, text.as_str())]), reason, "{field}");
        for text in [SECRET, spaced.as_str()] {
            assert_eq!(reason_of(treat(&[("sha256-hex", hash.as_str()), revoked, (field, text)])), reason, "{field}");
        }
    }
    // What does not show is taken out of a name; the note is made of the reason, too.
    let hidden = format!("{}\u{200e}{}", &SECRET[..9], &SECRET[9..]);
    assert_eq!(refused_with(&[("name", hidden.as_str())]), Refusal::BadName);
    let note = [("sha256-hex", hash.as_str()), revoked, ("revocation-reason", SECRET), ("revocation-note", "a note")];
    assert_eq!(reason_of(treat(&note)), Refusal::BadRevocation);
    let constant = format!("[keys.values]\nscopes = \"{SECRET}\"\n");
    assert_eq!(reason_of(treat_with(&constant, false, &[("secret", SECRET)])), Refusal::BadScopes);
    let metadata = format!(r#"{{"api_key":"{SECRET}","spaced":" {SECRET}","team":"billing"}}"#);
    for (field, cell) in [("secret", SECRET.to_owned()), ("sha256-hex", sha256_hex(SECRET))] {
        let (key, notes) = key_of(treat(&[(field, cell.as_str()), ("metadata", metadata.as_str())]));
        assert_eq!(key.metadata.into_keys().collect::<Vec<_>>(), ["team"]);
        assert_eq!(notes, [Note::MetadataCut]);
    }
    for field in ["prefix", "look-up-id"] {
        let treated = treat(&[("sha256-hex", sha256_hex(SECRET).as_str()), (field, SECRET)]);
        assert!([Refusal::BadPrefix, Refusal::BadLookUpId].contains(&reason_of(treated)), "{field}");
    }
    let (key, _) = with(&[("prefix", SECRET)]);
    assert_eq!(key.prefix, "", "of a secret that is known its own beginning is shown");
    assert_eq!(with(&[("look-up-id", &SECRET[..10])]).0.look_up_id.as_deref(), Some(&SECRET[..10]));
    assert_eq!(with(&[("look-up-id", &SECRET[..11])]).0.look_up_id, None, "most of it is no beginning any more");
}

#[test]
fn the_material_of_a_row_is_told_for_its_fingerprint() {
    let cells = [("bcrypt", NULL), ("secret", " text\n"), ("name", "Acme")];
    let text = "source = \"t\"\norganization = \"acme\"\n[[keys]]\ntable = \"t\"\nid = \"id\"\n\
                columns = { bcrypt = \"bcrypt\", secret = \"secret\", name = \"name\" }";
    let mapping = Mapping::parse(text).unwrap();
    let reader = TableReader::new(&mapping, &mapping.keys[0], false);
    let row = row(&reader.ask, "1", &cells);
    assert_eq!(reader.material(&row).collect::<Vec<_>>(), [Some(" text\n"), None]);
}

fn sha256_hex(text: &str) -> String {
    encode_hash(Digest::of(text).as_bytes())
}

/// Whether a key is known by a slow hash.
fn is_slow(key: &ImportedKey) -> bool {
    matches!(key.material, Material::Slow(_))
}
