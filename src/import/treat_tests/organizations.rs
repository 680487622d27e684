//! Rows of organizations. Invariant: no row becomes the organization `system`, and what bounds an organization is never
//! taken for absent because it cannot be read.

use super::*;
use crate::{
    domain::{ids::OrganizationId, organization::Plan},
    import::treat::{OrganizationReader, SourceOrganization},
};

const UUID: &str = "0198c7a4-5b7e-7c3a-9f00-2f1d6a8b9c0d";

fn read_with(rest: &str, id: &str, cells: Cells<'_>) -> Result<SourceOrganization, Refusal> {
    let columns: String =
        cells.iter().fold(String::new(), |text, (field, _)| text + &format!("{field} = \"{field}\"\n"));
    let text = "source = \"test\"\n[[organizations]]\ntable = \"t\"\nid = \"id\"\n[organizations.columns]\n";
    let mapping = Mapping::parse(&format!("{text}{columns}{rest}")).unwrap();
    let table = mapping.organizations.as_ref().unwrap();
    OrganizationReader::new(&mapping, table)
        .read(&row(&table.table.ask(), id, cells), NOW)
        .map_err(|refused| refused.reason)
}

fn read(cells: Cells<'_>) -> SourceOrganization {
    read_with("", UUID, cells).unwrap()
}

#[test]
fn a_whole_organization_comes_over() {
    let read = read(&[
        ("name", "Acme Corp."),
        ("slug", "Acme-2"),
        ("email", "Ops@Acme.example"),
        ("plan", "PRO"),
        ("active", "t"),
        ("max-keys", "10"),
        ("monthly-quota", "1000"),
        ("quota-used", "123"),
        ("metadata", r#"{"region":"eu"}"#),
        ("create-time", "2024-05-06T07:08:09Z"),
        ("secret-prefix", "acme"),
    ]);
    assert_eq!((read.source_id.as_str(), read.key.as_str(), read.id.to_string().as_str()), (UUID, UUID, UUID));
    assert_eq!((read.name.as_str(), read.slug.as_str()), ("Acme Corp.", "acme-2"));
    assert_eq!(read.email.as_deref(), Some("ops@acme.example"));
    assert_eq!((read.plan, read.active), (Plan::Pro, true));
    assert_eq!((read.max_keys, read.monthly_quota, read.quota_used), (10, 1000, 123));
    assert_eq!(read.metadata["region"], "eu");
    assert_eq!(read.create_time.map(|time| time.to_string()).as_deref(), Some("2024-05-06T07:08:09Z"));
    assert_eq!((read.secret_prefix.as_str(), read.notes), ("acme", vec![]));
}

#[test]
fn what_a_row_does_not_say_has_a_default() {
    let names = ["email", "plan", "active", "max-keys", "monthly-quota", "quota-used", "metadata", "secret-prefix"];
    let cells = names.map(|name| (name, NULL));
    let read = read(&[[("name", "Acme")].as_slice(), &cells].concat());
    assert_eq!((read.slug.as_str(), read.email, read.plan, read.active), ("acme", None, Plan::Free, true));
    assert_eq!((read.max_keys, read.monthly_quota, read.quota_used), (0, 0, 0));
    assert_eq!((read.secret_prefix.as_str(), read.create_time, read.metadata.len()), ("pk", None, 0));
}

#[test]
fn what_others_call_it_becomes_its_id() {
    let read = read_with("", "42", &[("name", "Acme")]).unwrap();
    assert_eq!((read.key.as_str(), read.id), ("42", OrganizationId::of_source("test", "42").unwrap()));
    let read = read_with("", "42", &[("name", "Acme"), ("key", " acme:eu\n")]).unwrap();
    assert_eq!((read.key.as_str(), read.notes), ("acme:eu", vec![Note::Trimmed]));
    for key in ["00000000-0000-0000-0000-000000000001", "two words", " ", NULL] {
        assert_eq!(read_with("", "42", &[("key", key)]).unwrap_err(), Refusal::BadOrganization, "{key}");
    }
}

#[test]
fn names_and_slugs_are_made_legal_and_it_is_told() {
    for (name, slug, expected, is_changed) in [
        ("Acme", "acme", ("Acme", "acme"), false),
        ("Acme", "ACME", ("Acme", "acme"), false),
        ("Acme", "Acme_Corp!", ("Acme", "acme-corp"), true),
        ("Acme\nCorp", NULL, ("AcmeCorp", "acmecorp"), true),
        ("密钥", NULL, ("密钥", "org-0198c7a4-5b7e-7c3a-9f00-2f1d6a8b9c0d"), false),
        (NULL, "acme", (UUID, "acme"), false),
    ] {
        let read = read(&[("name", name), ("slug", slug)]);
        assert_eq!((read.name.as_str(), read.slug.as_str()), expected);
        assert_eq!(read.notes.contains(&Note::NameChanged), is_changed, "{name:?} {slug:?}");
    }
    assert_eq!(read_with("", UUID, &[("slug", "system")]).unwrap_err(), Refusal::BadOrganization);
}

#[test]
fn what_bounds_an_organization_is_read_or_the_row_is_refused() {
    for (field, text) in [
        ("max-keys", "-1"),
        ("max-keys", ""),
        ("max-keys", "9000000000"),
        ("monthly-quota", "much"),
        ("monthly-quota", " "),
        ("quota-used", "-1"),
        ("active", ""),
        ("active", "frozen"),
        ("plan", "gold"),
        ("email", "nobody"),
        ("secret-prefix", "ACME"),
        ("create-time", "2999-01-01"),
        ("metadata", "[]"),
    ] {
        let refused = read_with("", UUID, &[("name", "Acme"), (field, text)]);
        assert_eq!(refused.unwrap_err(), Refusal::BadOrganization, "{field} {text:?}");
    }
}

#[test]
fn words_limits_and_constants_of_the_mapping_count() {
    let rest = "plan = \"plan\"\n[organizations.values]\nactive = false\nmax-keys = 5\n\
                [organizations.words]\nplan = { starter = \"free\", business = \"pro\" }\n\
                [[organizations.limits]]\nname = \"requests\"\nlimit = \"name\"\nwindow = \"1m\"\n";
    let cells = [("name", "60")];
    let read = read_with(rest, UUID, &cells).unwrap();
    assert_eq!((read.active, read.max_keys, read.rate_limits[0].limit), (false, 5, 60));
    let rest = "[organizations.words]\nplan = { business = \"pro\" }\n";
    let read = read_with(rest, UUID, &[("name", "Acme"), ("plan", "Business")]).unwrap();
    assert_eq!((read.plan, read.active), (Plan::Pro, true));
    for (text, active) in [("suspended", false), ("Active", true), ("0", false)] {
        assert_eq!(read_with("", UUID, &[("name", "Acme"), ("active", text)]).unwrap().active, active, "{text}");
    }
}
