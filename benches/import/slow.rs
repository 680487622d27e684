//! Keys that came with a hash of bcrypt, and checks of them at a fixed rate: secrets that begin as such a key does and
//! are wrong in the rest. Each is another one, so no cache answers; one key begins like it, so it costs one check.
//! What the service does not get done in time it may turn away, with UNAVAILABLE; such calls are counted apart.
//! Invariant: a wrong secret is `NOT_FOUND`, and the right one `VALID`, or the run is void.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use keystead::proto::v1::{
    Environment, ImportKey, ImportKeysRequest, ImportResult, Outcome, VerifyKeyRequest, import_key::Material,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinSet,
    time::interval,
};
use tonic::Code;

use super::{paced::Stop, site::Site};
use crate::support::{Failure, compare::float, plan::Plan, server::Keys};

/// Checks that are offered each second.
pub const PER_SECOND: u32 = 50;
/// How many keys there are.
const KEYS: u64 = 100;
const KEYS_QUICK: u64 = 3;
/// What bcrypt is asked to cost, as a power of two of rounds.
const COST: u32 = 10;
const COST_QUICK: u32 = 4;
/// Digits behind the look-up part of a secret.
const DIGITS: usize = 32;
/// What the metric of checks is called on the page.
const METRIC: &str = "keystead_slow_checks_total";

/// The keys, hashed once for all rounds.
pub struct SlowKeys {
    hashes: Vec<String>,
    /// How long one hash took here, and so a check takes.
    pub each: Duration,
    /// Numbers the secrets that are tried, so that each is another one.
    tried: AtomicU64,
}

/// What the offered checks came to.
pub struct Checks {
    pub offered: u64,
    /// Decided, which takes one check each.
    answered: u64,
    /// Answered with UNAVAILABLE, or not in time.
    turned_away: u64,
    elapsed: Duration,
    /// By how much the metric of checks grew, by its labels.
    pub counted: BTreeMap<String, u64>,
}

impl Checks {
    /// Checks that were decided, per second.
    pub fn answered_per_second(&self) -> f64 {
        float(self.answered) / self.elapsed.as_secs_f64()
    }

    /// Calls that were turned away, per second.
    pub fn turned_away_per_second(&self) -> f64 {
        float(self.turned_away) / self.elapsed.as_secs_f64()
    }
}

impl SlowKeys {
    /// Hashes the secrets.
    pub fn hash(plan: Plan) -> Result<Self, Failure> {
        let (count, cost) = plan.sized((KEYS, COST), (KEYS_QUICK, COST_QUICK));
        let begun = Instant::now();
        let hashes: Vec<String> =
            (0..count).map(|number| bcrypt::hash(secret(number, 0), cost)).collect::<Result<_, _>>()?;
        let each = begun.elapsed() / u32::try_from(count)?;
        Ok(Self { hashes, each, tried: AtomicU64::new(0) })
    }

    /// Brings the keys into an organization. The first one is then verified, which takes it out of the slow ones.
    pub async fn import(&self, site: &Site, organization_id: &str) -> Result<(), Failure> {
        let keys: Vec<ImportKey> = (0..).zip(&self.hashes).map(|(number, hash)| key(number, hash)).collect();
        let request = ImportKeysRequest {
            organization_id: organization_id.to_owned(),
            keys,
            source: "bench-bcrypt".to_owned(),
            ..Default::default()
        };
        let mut client = site.server.keys()?;
        let answer = client.import_keys(request).await?.into_inner();
        if let Some(result) = answer.results.iter().find(|result| result.result() != ImportResult::Created) {
            return Err(format!("a key of bcrypt was not imported: {} {}", result.reason, result.message).into());
        }
        let request = VerifyKeyRequest { secret: secret(0, 0), ..Default::default() };
        let answer = client.verify_key(request).await?.into_inner();
        if answer.outcome() == Outcome::Valid {
            return Ok(());
        }
        Err(format!("the right secret of a key of bcrypt is {}", answer.outcome().as_str_name()).into())
    }

    /// Offers wrong secrets until it is told to stop, and waits for the last answers.
    pub async fn offer(&self, site: &Site, stop: &Stop) -> Result<Checks, Failure> {
        let client = site.server.keys()?;
        let before = counted(site.metrics).await?;
        let mut ticks = interval(Duration::from_secs(1) / PER_SECOND);
        let mut calls = JoinSet::new();
        let (mut offered, mut answered, mut turned_away) = (0, 0, 0);
        let begun = Instant::now();
        while !stop.is_set() {
            ticks.tick().await;
            calls.spawn(is_decided(client.clone(), self.wrong_secret()));
            offered += 1;
        }
        while let Some(decided) = calls.join_next().await {
            if decided?? {
                answered += 1;
            } else {
                turned_away += 1;
            }
        }
        let elapsed = begun.elapsed();
        let mut counted = counted(site.metrics).await?;
        for (labels, count) in &mut counted {
            *count -= before.get(labels).copied().unwrap_or(0);
        }
        Ok(Checks { offered, answered, turned_away, elapsed, counted })
    }

    /// The look-up part of a key other than the first, and digits that are no key's.
    fn wrong_secret(&self) -> String {
        let number = self.tried.fetch_add(1, Ordering::Relaxed);
        let others = u64::try_from(self.hashes.len()).unwrap_or(u64::MAX).saturating_sub(1).max(1);
        secret(1 + number % others, 1 + number)
    }
}

/// Whether the service decided on a secret, which must then be a wrong one, or turned the call away.
async fn is_decided(mut client: Keys, secret: String) -> Result<bool, Failure> {
    match client.verify_key(VerifyKeyRequest { secret, ..Default::default() }).await {
        Ok(answer) if answer.get_ref().outcome() == Outcome::NotFound => Ok(true),
        Ok(answer) => Err(format!("a wrong secret is {}", answer.get_ref().outcome().as_str_name()).into()),
        Err(status) if matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded) => Ok(false),
        Err(status) => Err(status.into()),
    }
}

/// What the secret of key `number` begins with, in public.
fn look_up_part(number: u64) -> String {
    format!("slow_{number:06}_")
}

/// A secret that begins as key `number` does. The key's own ends with digits that are all 0.
fn secret(number: u64, digits: u64) -> String {
    format!("{}{digits:0DIGITS$}", look_up_part(number))
}

fn key(number: u64, hash: &str) -> ImportKey {
    ImportKey {
        material: Some(Material::Bcrypt(hash.to_owned())),
        name: format!("Client {number}"),
        environment: Environment::Live.into(),
        look_up_id: look_up_part(number),
        source_id: number.to_string(),
        ..Default::default()
    }
}

/// What the server has counted of checks since its start, by labels.
async fn counted(metrics: SocketAddr) -> Result<BTreeMap<String, u64>, Failure> {
    let mut stream = TcpStream::connect(metrics).await?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: keystead\r\nconnection: close\r\n\r\n").await?;
    let mut page = String::new();
    stream.read_to_string(&mut page).await?;
    let lines = page.lines().filter_map(|line| line.strip_prefix(METRIC));
    lines
        .map(|line| -> Result<(String, u64), Failure> {
            let (labels, count) = line.rsplit_once(' ').ok_or("a metric without a value")?;
            Ok((labels.trim().to_owned(), count.parse()?))
        })
        .collect()
}
