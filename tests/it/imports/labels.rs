//! Keys of more sources than the page of metrics has labels for. Invariant: the number of series is bounded whatever
//! people import, and no verification is lost by that: neither in the sum of the series nor in what a key's own row
//! says.

use std::collections::BTreeMap;

use keystead::proto::v1::import_key::Material;
use keystead::proto::v1::{Environment, ImportKey, ImportKeysRequest, Outcome};

use super::world::{World, sha256_hex};
use crate::harness::{TestDatabase, store_test, wait_until};

/// Sources with a label of their own, and the label of all others.
const LABELS_MAX: usize = 64;
const OTHER: &str = "other";
const SOURCES: usize = LABELS_MAX + 6;
/// How often each key is used.
const USES: usize = 2;

/// A key of a source of its own.
async fn bring_in(world: &World, at: usize, secret: &str) {
    let key = ImportKey {
        material: Some(Material::Sha256Hex(sha256_hex(secret))),
        name: format!("key no. {at}"),
        environment: Environment::Live.into(),
        ..Default::default()
    };
    let (organization_id, source) = (world.organization.clone(), format!("source-{at}"));
    let request = ImportKeysRequest { organization_id, source, keys: vec![key], ..Default::default() };
    world.server.keys().import_keys(request).await.expect("an answer");
}

/// The verifications of imported keys, by the label of their source.
async fn counted(world: &World) -> BTreeMap<String, usize> {
    let (_, page) = crate::server::metrics::get(world.server.metrics_address(), "/metrics").await;
    let mut counted = BTreeMap::new();
    for series in page.lines().filter_map(|line| line.strip_prefix("keystead_imported_verifications_total{")) {
        let (labels, count) = series.rsplit_once(' ').expect("a count");
        let source = labels.split("source=\"").nth(1).and_then(|rest| rest.split('"').next()).expect("a source");
        *counted.entry(source.to_owned()).or_default() += count.parse::<usize>().expect("a whole number");
    }
    counted
}

store_test!(beyond_the_labels_that_there_are_verifications_are_counted_together_and_none_is_lost);
async fn beyond_the_labels_that_there_are_verifications_are_counted_together_and_none_is_lost(database: TestDatabase) {
    let world = World::new(database, "acme").await;
    let secrets = world.keys.texts("key", SOURCES);
    for (at, secret) in secrets.iter().enumerate() {
        bring_in(&world, at, secret).await;
    }
    assert_eq!(world.key_count().await, i64::try_from(SOURCES).expect("few"));
    let mut uses = 0;
    for _ in 0..USES {
        for secret in &secrets {
            assert_eq!(world.outcome(secret).await, Outcome::Valid);
            uses += 1;
            // The first of an import is counted once its label was looked up: one after the other gets one.
            wait_until("the use to be counted", async || counted(&world).await.values().sum::<usize>() == uses).await;
        }
    }
    let mut of_sources = counted(&world).await;
    assert_eq!(of_sources.remove(OTHER), Some((SOURCES - LABELS_MAX) * USES), "those that came last");
    let expected: BTreeMap<String, usize> = (0..LABELS_MAX).map(|at| (format!("source-{at}"), USES)).collect();
    assert_eq!(of_sources, expected);

    // What was written is written about once a second.
    let written = format!("SELECT count(*) FROM api_keys WHERE import_id IS NOT NULL AND request_count = {USES}");
    wait_until("each use to be at rest", async || world.database.query_i64(&written).await == world.key_count().await)
        .await;
    let status = world.status(&["--unseen"]);
    assert_eq!(status["unseen"].as_array().map(Vec::len), Some(0));
    let imports = status["imports"].as_array().expect("imports");
    assert_eq!(imports.len(), SOURCES, "each is told apart here");
    assert!(imports.iter().all(|import| import["seen"] == 1 && import["never_seen"] == 0), "{imports:?}");
}
