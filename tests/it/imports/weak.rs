//! Keys that could be found by trying: refused unless the operator lets them in, and then marked, so that their owners
//! can be found and told. Invariant: a mark is on every weak key and on no other, and a repeat does not let one in
//! unasked.

use std::collections::BTreeMap;

use keystead::proto::v1::Outcome;
use serde_json::json;

use super::world::World;
use crate::harness::{TestDatabase, store_test, wait_until};

const MAPPING: &str = r#"
source = "old-shop"
organization = "acme"

[[keys]]
id = "id"
[keys.columns]
secret = "secret"
name = "name"
metadata = "metadata"
[keys.values]
environment = "live"
"#;

const WEAK: [&str; 4] = ["hunter2", "passwordpassword", "aaaaaaaaaaaaaaaaaaaaaaaa", "1234567890123456"];

fn lines(world: &World) -> String {
    let good = world.keys.text("good");
    let keys = WEAK.iter().copied().chain([good.as_str()]).enumerate();
    // As much metadata as there may be: the mark has to find room.
    let metadata: BTreeMap<String, usize> = (0..50).map(|at| (format!("entry{at:02}"), at)).collect();
    let line = |(at, key): (usize, &str)| {
        let metadata = if at == 1 { json!(metadata) } else { json!({"shop": at}) };
        json!({"id": at, "name": format!("weak no. {at}"), "secret": key, "metadata": metadata}).to_string()
    };
    keys.map(line).collect::<Vec<String>>().join("\n")
}

fn refused() -> BTreeMap<String, u64> {
    BTreeMap::from([("WEAK_SECRET".to_owned(), 4)])
}

store_test!(weak_keys_come_in_only_where_they_are_let_and_are_marked);
async fn weak_keys_come_in_only_where_they_are_let_and_are_marked(database: TestDatabase) {
    let world = World::new(database, "acme").await;
    let path = world.write("shop.jsonl", &lines(&world));
    let import = world.import(&format!("jsonl:{}", path.display()), MAPPING);
    for report in [import.plan(&[]), import.run(&[])] {
        assert_eq!(report.table("").counts(["created", "refused"]), [1, 4]);
        assert_eq!(report.table("").by("refusals"), refused());
    }
    for key in WEAK {
        assert_eq!(world.outcome(key).await, Outcome::NotFound);
    }
    for report in [import.plan(&["--allow-weak"]), import.run(&["--allow-weak"])] {
        assert_eq!(report.table("").counts(["created", "existing", "refused"]), [4, 1, 0]);
        assert_eq!(report.table("").by("notes")["WEAK"], 4);
    }
    for (at, key) in WEAK.iter().enumerate() {
        // The server has just said that there is no such key, and remembers that for a moment.
        wait_until("the key to be known", async || world.outcome(key).await == Outcome::Valid).await;
        let answer = world.present(key).await;
        assert_eq!((answer.outcome(), answer.name), (Outcome::Valid, format!("weak no. {at}")));
        assert_eq!(answer.metadata["imported-weak"], "true");
        assert!(answer.metadata.len() <= 50);
        assert_eq!(world.key(&answer.key_id).await.hint.len(), if key.len() < 16 { 0 } else { 4 }, "row {at}");
    }
    let good = world.present(&world.keys.text("good")).await;
    assert_eq!(good.outcome(), Outcome::Valid);
    assert!(!good.metadata.contains_key("imported-weak"));

    // What was let in once is not by itself let in again, and is not taken away either.
    let again = import.run(&[]);
    assert_eq!(again.table("").counts(["created", "existing", "refused"]), [0, 1, 4]);
    assert_eq!(again.table("").by("refusals"), refused());
    assert_eq!(import.ran(&["verify"]).code, 1);
    assert!(import.verify(&["--allow-weak"]).is("passed"));
    for key in WEAK {
        assert_eq!(world.outcome(key).await, Outcome::Valid);
    }
}
