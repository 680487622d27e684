//! What a row says of its key beside the key: an id that holds it, a hash that stays.
//! Invariant: an id that holds a key is known as such before anybody is told it.

use super::*;

#[test]
fn an_id_that_holds_the_key_of_its_row_is_refused_and_known_as_such() {
    let (hex, bcrypt) = (sha256_hex(SECRET), "$2b$04$abcdefghijklmnopqrstuuWJ8ZpPOQ3z4lnmLrxm5UbyBhPqkjMDi");
    let columns = "secret = \"secret\"\nsha256-hex = \"sha256-hex\"\nbcrypt = \"bcrypt\"\nkey-id = \"key-id\"\n";
    let text = format!(
        "source = \"t\"\norganization = \"acme\"\n[[keys]]\ntable = \"t\"\nid = \"id\"\n[keys.columns]\n{columns}"
    );
    let mapping = Mapping::parse(&text).unwrap();
    let reader = TableReader::new(&mapping, &mapping.keys[0], false);
    let spaced = format!(" {SECRET}");
    for (id, cell) in [
        (SECRET, ("secret", SECRET)),
        (spaced.as_str(), ("secret", SECRET)),
        (SECRET, ("sha256-hex", hex.as_str())),
        (hex.as_str(), ("sha256-hex", hex.as_str())),
        (bcrypt, ("bcrypt", bcrypt)),
    ] {
        let row = row(&reader.ask, id, &[cell]);
        assert!(reader.id_tells(&row), "{cell:?}");
        assert_eq!(reason_of(reader.treat(&row, NOW)), Refusal::BadSourceId);
    }
    assert!(!reader.id_tells(&row(&reader.ask, "17", &[("secret", SECRET)])));
    assert_eq!(refused_with(&[("key-id", SECRET)]), Refusal::BadKeyId);
}

#[test]
fn the_hash_that_stays_must_be_there_and_be_the_lower_case_one_of_the_key() {
    let hex = sha256_hex(SECRET);
    let of = |drop: &str, secret: &str, hash: &str| {
        let text = format!(
            "source = \"t\"\norganization = \"acme\"\n[[keys]]\ntable = \"t\"\nid = \"id\"\n\
             columns = {{ secret = \"secret\", sha256-hex = \"hash\" }}\ncontract = {{ drop = [{drop}] }}"
        );
        let mapping = Mapping::parse(&text).unwrap();
        let reader = TableReader::new(&mapping, &mapping.keys[0], false);
        let row = row(&reader.ask, "1", &[("secret", secret), ("hash", hash)]);
        let (key, _) = key_of(reader.treat(&row, NOW));
        reader.stay_problem(&row, &key)
    };
    let (upper, spaced) = (hex.to_uppercase(), format!("{SECRET}\n"));
    for (secret, hash, problem) in [
        (SECRET, hex.as_str(), None),
        (spaced.as_str(), hex.as_str(), None),
        (SECRET, NULL, Some("NO_HASH_STAYS")),
        (SECRET, " ", Some("NO_HASH_STAYS")),
        (SECRET, upper.as_str(), Some("HASH_MISMATCH")),
        (spaced.as_str(), &sha256_hex(&spaced), Some("HASH_MISMATCH")),
    ] {
        assert_eq!(of("\"secret\"", secret, hash), problem, "{secret:?} {hash}");
        assert_eq!(of("\"secret\", \"hash\"", secret, hash), None, "nothing is meant to stay");
        assert_eq!(of("\"hash\"", secret, hash), None, "the plaintext stays");
    }
}
