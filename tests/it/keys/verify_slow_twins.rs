//! `VerifyKey` of keys that came under a slow hash and whose secret says something of another key, which nobody can see
//! before it is presented: the same secret under two hashes, or a secret that is another key's stored hash as text.
//! Invariant: a stored digest opens nothing, and one secret is one key.

use keystead::proto::v1::Outcome;

use super::import_samples::{is_slow, is_upgraded, naming, plain, secret, sha256_hex, slow, told};
use super::{World, presenting, with};
use crate::harness::{TestDatabase, store_test};

store_test!(a_slow_key_whose_secret_is_the_stored_hash_of_a_key_opens_nothing);
async fn a_slow_key_whose_secret_is_the_stored_hash_of_a_key_opens_nothing(database: TestDatabase) {
    let world = World::new(&database).await;
    let known = world.import_one(plain(&secret(0))).await;
    let text = sha256_hex(&secret(0));
    let id = world.import_one(slow(&text)).await;
    for _ in 0..2 {
        assert_eq!(world.outcome(&text).await, Outcome::NotFound);
    }
    assert!(is_slow(&database, &id).await, "its hash stays");
    world.expect_valid(presenting(&secret(0)), &known).await;
}

store_test!(a_slow_key_whose_stored_hash_would_be_a_secret_opens_nothing);
async fn a_slow_key_whose_stored_hash_would_be_a_secret_opens_nothing(database: TestDatabase) {
    let world = World::new(&database).await;
    let text = sha256_hex(&secret(0));
    let known = world.import_one(plain(&text)).await;
    let id = world.import_one(slow(&secret(0))).await;
    assert_eq!(world.outcome(&secret(0)).await, Outcome::NotFound);
    assert!(is_slow(&database, &id).await && !is_upgraded(&database, &id, &secret(0)).await);
    world.expect_valid(presenting(&text), &known).await;
}

store_test!(of_two_keys_with_one_secret_the_first_that_is_presented_has_it);
async fn of_two_keys_with_one_secret_the_first_that_is_presented_has_it(database: TestDatabase) {
    let world = World::new(&database).await;
    let twins = [1, 2].map(|row| with(&slow(&secret(0)), |key| key.source_id = format!("twin {row}")));
    let results = world.import(twins.into()).await;
    assert_eq!(told(&results), ["CREATED"; 2], "two salts, and nobody can tell");
    let ids: Vec<&str> = results.iter().map(|result| result.key_id.as_str()).collect();
    world.expect_valid(naming(&secret(0), ids[1]), ids[1]).await;
    assert!(is_upgraded(&database, ids[1], &secret(0)).await && is_slow(&database, ids[0]).await);
    assert_eq!(world.ask(naming(&secret(0), ids[0])).await.outcome(), Outcome::NotFound);
    world.expect_valid(presenting(&secret(0)), ids[1]).await;
}
