//! The database away from one replica, cut off, silent, or slow, while another goes on: what is cached is answered
//! until the bound, and quickly; then nobody knows, and it is said so; what is not cached, and what the database has
//! the last word on, is not known from the first moment on; changes are refused at once; and all comes back by itself,
//! nothing that a fault suggested among it, with every verification counted. Half-open connections are replaced; how
//! the feed does that is a test of its own.
//! What a watch of each kind of question may be told is one table, which `matrix` puts to every state of Redis too.

mod feed;
mod matrix;

use std::time::{Duration, Instant};

use keystead::domain::digest::Digest;
use keystead::proto::v1::{
    Consistency, CreateKeyRequest, CreateOrganizationRequest, Credits, Outcome, RevokeKeyRequest, VerifyKeyRequest,
};
use tonic::Code;
use tonic_health::pb::health_check_response::ServingStatus;

use super::replicas::{
    BOUND, HASTY, Replicas, Seen, Told, Watch, create, expect_unavailable, hear, long_limit, totals, words,
};
use crate::callers::requests::{creating, issuing, verifying};
use crate::harness::{Fault, Proxy, Server, create_organization, expect_error, hex, wait_until};
use crate::server::metrics::{get, value};

/// What health calls the database.
const DATABASE: &str = "keystead.database";
/// Longer than a refusal takes that asks nobody, and shorter than any question to a database that does not answer.
const AT_ONCE: Duration = Duration::from_secs(3);
/// Answers from the cache within the bound. If each waited for the database, there would be one at the most.
const HITS_MIN: usize = 5;
/// The secret of a key that is not there yet: well formed.
const NOT_YET: &str = "pk_live_0000000000000000000000000000000000000NotYet";

/// What is asked about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// A key that the replica has cached.
    Known,
    /// One with a rate limit.
    Limited,
    /// One that was cached as revoked.
    Revoked,
    /// A cached key, from the database.
    Fresh,
    /// A cached key that was revoked elsewhere meanwhile, from a state that knows of it.
    Demanding,
    /// A cached key with credits.
    Credited,
    /// A cached key of an organization with a quota.
    Metered,
    /// A key that was created elsewhere meanwhile.
    Meanwhile,
    /// One that was asked for before it was there.
    NotYet,
    /// A secret that nobody has.
    Nobody,
}

impl Kind {
    /// What the answer is where it is known.
    const fn truth(self) -> Told {
        Told::Outcome(match self {
            Self::Revoked | Self::Demanding => Outcome::Revoked,
            Self::Nobody => Outcome::NotFound,
            Self::Known
            | Self::Limited
            | Self::Fresh
            | Self::Credited
            | Self::Metered
            | Self::Meanwhile
            | Self::NotYet => Outcome::Valid,
        })
    }

    /// Whether the cache may answer.
    const fn is_cached(self) -> bool {
        matches!(self, Self::Known | Self::Limited | Self::Revoked)
    }
}

/// A fault of the database, while it lasts.
struct Outage {
    fault: Fault,
    begun: Instant,
}

impl Outage {
    fn begin(network: &Proxy, fault: Fault) -> Self {
        network.set(fault);
        Self { fault, begun: Instant::now() }
    }

    /// Whether the database answers nothing until it is over.
    const fn is_total(&self) -> bool {
        matches!(self.fault, Fault::Cut | Fault::Silence | Fault::Delay(_))
    }

    /// Ends it.
    fn end(self, network: &Proxy) -> Over {
        let ended = Instant::now();
        network.set(Fault::None);
        Over { outage: self, ended }
    }
}

/// A fault that is over.
struct Over {
    outage: Outage,
    ended: Instant,
}

impl Over {
    /// Asserts that each answer to a watch that began with the outage is one that it could be given.
    fn check(&self, kind: Kind, seen: &[Seen]) {
        for answer in seen {
            let allowed = match answer.told {
                Told::Unavailable => self.outage.fault != Fault::None,
                Told::Outcome(_) => answer.told == kind.truth() && self.could_be_known(kind, answer),
            };
            let after = answer.begun.duration_since(self.outage.begun);
            assert!(allowed, "{kind:?} under {:?}: {:?}, asked after {after:?}", self.outage.fault, answer.told);
        }
    }

    fn could_be_known(&self, kind: Kind, answer: &Seen) -> bool {
        let by_cache = kind.is_cached() && answer.begun <= self.outage.begun + BOUND;
        !self.outage.is_total() || by_cache || answer.ended >= self.ended
    }
}

/// Two replicas, of which one has a network with faults.
struct World {
    replicas: Replicas,
    organization: String,
    metered_organization: String,
}

impl World {
    async fn start() -> Self {
        let arguments = |_| words(&[&HASTY[..], &["--metrics-listen", "127.0.0.1:0"]].concat());
        let replicas = Replicas::start(2, arguments).await;
        let organization = create_organization(&replicas.servers[0], "acme").await.id;
        let request = CreateOrganizationRequest { monthly_quota: 1_000_000, ..creating("metered") };
        let answer = replicas.servers[0].organizations().create_organization(request).await;
        let metered = answer.expect("an organization").into_inner().organization.expect("the organization");
        Self { replicas, organization, metered_organization: metered.id }
    }

    fn near(&self) -> &Server {
        &self.replicas.servers[0]
    }

    fn far(&self) -> &Server {
        &self.replicas.servers[1]
    }

    /// Between the far one and the database.
    fn network(&self) -> &Proxy {
        &self.replicas.networks[1]
    }

    /// A new key that the far replica knows, of a kind; gives its id and secret.
    async fn known(&self, kind: Kind) -> (String, String) {
        let plain = issuing(&self.organization, &[]);
        let request = match kind {
            Kind::Limited => CreateKeyRequest { rate_limits: vec![long_limit(1_000_000)], ..plain },
            Kind::Credited => {
                CreateKeyRequest { credits: Some(Credits { remaining: 1_000_000, ..Default::default() }), ..plain }
            }
            Kind::Metered => issuing(&self.metered_organization, &[]),
            Kind::Known | Kind::Revoked | Kind::Fresh | Kind::Demanding => plain,
            Kind::Meanwhile | Kind::NotYet | Kind::Nobody => panic!("{kind:?} is not known before"),
        };
        let (key, secret) = create(self.near(), request).await;
        if kind == Kind::Revoked {
            self.revoke(&key.id).await;
        }
        let told = if kind == Kind::Demanding { Told::Outcome(Outcome::Valid) } else { kind.truth() };
        assert_eq!(hear(&mut self.far().keys(), verifying(&secret)).await, told, "{kind:?}");
        (key.id, secret)
    }

    /// Revokes a key on the near replica; gives the revision.
    async fn revoke(&self, key_id: &str) -> i64 {
        let request = RevokeKeyRequest { key_id: key_id.to_owned(), ..Default::default() };
        self.near().keys().revoke_key(request).await.expect("the key is revoked").into_inner().revision
    }

    /// Writes a key past the service whose secret is `NOT_YET`, otherwise a copy of another.
    async fn insert_not_yet(&self, key_id: &str) {
        const COLUMNS: &str = "organization_id, name, name_folded, scheme, prefix, hint, environment, status, scopes, \
                               metadata, allowed_cidrs, rate_limits, create_time_us, update_time_us, created_by, \
                               counter_id, etag";
        let digest = hex(Digest::of(NOT_YET).as_bytes());
        let sql = format!(
            "INSERT INTO api_keys (id, digest, {COLUMNS})
             SELECT '0198c7a4-5b7e-7c3a-9f00-2f1d6a8b9c0d', '\\x{digest}'::bytea, {COLUMNS} FROM api_keys
             WHERE id = '{key_id}'"
        );
        assert_eq!(self.replicas.database.raw_sql(&sql).await, 1);
    }

    /// Watches of what the far replica knows already. Of that, all but what is metered counts for the organization.
    async fn watch_known(&self) -> Vec<(Kind, Watch)> {
        let mut watches = Vec::new();
        for kind in [Kind::Known, Kind::Limited, Kind::Revoked, Kind::Fresh, Kind::Credited] {
            let (_, secret) = self.known(kind).await;
            let consistency = if kind == Kind::Fresh { Consistency::Fresh } else { Consistency::Cached };
            let request = VerifyKeyRequest { consistency: consistency.into(), ..verifying(&secret) };
            watches.push((kind, Watch::of(self.far(), request)));
        }
        watches
    }

    /// Waits until the far replica creates keys.
    async fn takes_changes(&self) {
        wait_until("changes to be taken", async || {
            self.far().keys().create_key(issuing(&self.organization, &[])).await.is_ok()
        })
        .await;
    }

    /// Asserts that verifications of the first organization were counted as often as they were answered.
    async fn counts(&self, answered: usize) {
        let counted = totals(&self.replicas.servers, &self.organization).await.verifications;
        assert_eq!(counted, i64::try_from(answered).expect("a count"), "counted, and answered");
    }
}

/// How many of these answers count for an organization without a quota.
fn answers(kind: Kind, seen: &[Seen]) -> usize {
    let outcomes = seen.iter().filter(|seen| seen.told != Told::Unavailable).count();
    if kind == Kind::Metered { 0 } else { outcomes }
}

/// Asserts that changes through the replica are refused at once, as long as its database is away.
async fn refuses_changes_at_once(server: &Server, organization: &str, key_id: &str) {
    let begun = Instant::now();
    let request = CreateKeyRequest { name: "Refused".to_owned(), ..issuing(organization, &[]) };
    let created = server.keys().create_key(request).await.map(|_| ());
    let request = RevokeKeyRequest { key_id: key_id.to_owned(), ..Default::default() };
    let revoked = server.keys().revoke_key(request).await.map(|_| ());
    assert!(begun.elapsed() < AT_ONCE, "after {:?}", begun.elapsed());
    for refused in [created, revoked] {
        if let Err(status) = &refused {
            expect_unavailable(status);
        }
        expect_error(refused, Code::Unavailable, "DATABASE_UNAVAILABLE");
    }
}

/// Takes the database away from one of two replicas, and brings it back.
async fn go_through(fault: Fault) {
    let world = World::start().await;
    let (known_id, _) = world.known(Kind::Known).await;
    let (demanded_id, demanded) = world.known(Kind::Demanding).await;
    // Used once and no more, or the replica would take ahead of what the database has confirmed.
    let (_, metered) = world.known(Kind::Metered).await;
    let mut watches = world.watch_known().await;
    // So many were asked for while everything was well: the first two, and one of each watch.
    let mut answered = 2 + watches.len();
    let outage = Outage::begin(world.network(), fault);
    let begun = outage.begun;
    let min_revision = Some(world.revoke(&demanded_id).await);
    let (_, meanwhile) = create(world.near(), issuing(&world.organization, &[])).await;
    for (kind, request) in [
        (Kind::Demanding, VerifyKeyRequest { min_revision, ..verifying(&demanded) }),
        (Kind::Metered, verifying(&metered)),
        (Kind::Meanwhile, verifying(&meanwhile)),
        (Kind::NotYet, verifying(NOT_YET)),
    ] {
        watches.push((kind, Watch::of(world.far(), request)));
    }
    for (kind, watch) in &watches {
        watch.hears(Told::Unavailable, &format!("{kind:?}")).await;
    }
    let away = async || world.far().health(DATABASE).await == Some(ServingStatus::NotServing);
    wait_until("health to tell that the database is away", away).await;
    assert_eq!(world.far().health("").await, Some(ServingStatus::Serving), "the whole serves");
    let (_, page) = get(world.far().metrics_address(), "/metrics").await;
    assert!(value(&page, "keystead_feed_age_seconds") > Some(BOUND.as_secs_f64()), "{page}");
    refuses_changes_at_once(world.far(), &world.organization, &known_id).await;
    world.insert_not_yet(&known_id).await;

    let over = outage.end(world.network());
    for (kind, watch) in &watches {
        watch.hears(kind.truth(), &format!("{kind:?}")).await;
    }
    for (kind, watch) in watches {
        let seen = watch.end().await;
        let during: Vec<Seen> = seen.iter().filter(|seen| seen.begun > begun).copied().collect();
        over.check(kind, &during);
        answered += answers(kind, &seen);
        let hits = during.iter().filter(|seen| seen.begun <= begun + BOUND && seen.told == kind.truth()).count();
        assert!(kind != Kind::Known || hits >= HITS_MIN, "{hits} answers from the cache");
    }
    let back = async || world.far().health(DATABASE).await == Some(ServingStatus::Serving);
    wait_until("health to tell that the database is back", back).await;
    let log = world.far().log_text();
    assert!(log.contains("the change feed cannot be read") && log.contains("the change feed answers again"), "{log}");
    world.takes_changes().await;
    let refused = "SELECT count(*) FROM api_keys WHERE name = 'Refused'";
    assert_eq!(world.replicas.database.query_i64(refused).await, 0, "what was refused was not done");
    world.counts(answered).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_is_cut_off_its_database_says_what_it_knows_and_comes_back() {
    go_through(Fault::Cut).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_whose_database_is_silent_says_what_it_knows_and_comes_back() {
    go_through(Fault::Silence).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_whose_database_takes_seconds_says_what_it_knows_and_comes_back() {
    go_through(Fault::Delay(Duration::from_secs(5))).await;
}

/// Nothing is lifted here: the old connections stay dead.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_whose_connections_are_half_open_replaces_them_by_itself() {
    let world = World::start().await;
    let mut watches = world.watch_known().await;
    let mut answered = watches.len();
    let (_, metered) = world.known(Kind::Metered).await;
    watches.push((Kind::Metered, Watch::of(world.far(), verifying(&metered))));
    for (kind, watch) in &watches {
        watch.hears(kind.truth(), &format!("{kind:?} before")).await;
    }
    let outage = Outage::begin(world.network(), Fault::HalfOpen);
    let begun = outage.begun;
    let (_, meanwhile) = create(world.near(), issuing(&world.organization, &[])).await;
    watches.push((Kind::Meanwhile, Watch::of(world.far(), verifying(&meanwhile))));
    for (kind, watch) in &watches {
        watch.hears(kind.truth(), &format!("{kind:?} on new connections")).await;
    }
    world.takes_changes().await;
    let over = Over { outage, ended: Instant::now() };
    for (kind, watch) in watches {
        let seen = watch.end().await;
        answered += answers(kind, &seen);
        let during: Vec<Seen> = seen.into_iter().filter(|seen| seen.begun > begun).collect();
        over.check(kind, &during);
    }
    world.counts(answered).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revision_that_one_replica_acknowledged_is_obeyed_by_the_other_at_once() {
    let world = World::start().await;
    let mut keys = world.far().keys();
    for _ in 0..20 {
        let (key_id, secret) = world.known(Kind::Demanding).await;
        let min_revision = Some(world.revoke(&key_id).await);
        let request = VerifyKeyRequest { min_revision, ..verifying(&secret) };
        assert_eq!(hear(&mut keys, request).await, Told::Outcome(Outcome::Revoked));
        let beyond = VerifyKeyRequest { min_revision: min_revision.map(|revision| revision + 1), ..verifying(&secret) };
        let refused = keys.verify_key(beyond).await;
        let details = expect_error(refused, Code::Unavailable, "REVISION_NOT_REACHED");
        assert!(details.retry_info().is_some(), "with when to ask again");
    }
}
