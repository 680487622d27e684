//! `keystead keys`: the life of a key, from creation to revocation.
//!
//! Each action is one call of `KeyService`; those with many flags have a file of their own below `keys/`. What is
//! allowed is the service's to say. Invariant: a new secret is printed once, on standard output, and if it cannot
//! be printed the message says which key to revoke.

mod create;
mod list;
mod revoke_all;
mod update;
mod verify;

use clap::{Args, Subcommand};
use prost_types::Duration;
use serde_json::json;
use zeroize::Zeroizing;

use super::client::Client;
use super::failure::{DONE, Failure};
use super::output::{self, object};
use super::{fields, values};
use crate::config::{ClientSettings, Environment, Flags, OutputFormat};
use crate::proto::v1::{ApiKey, GetKeyRequest, RevocationReason, RevokeKeyRequest, RotateKeyRequest};

const ENVIRONMENTS: &[&str] = &["live", "test"];
const REASONS: &[&str] = &["key-compromise", "superseded", "owner-left", "privilege-withdrawn", "cessation", "other"];

/// Flags of `keys`.
#[derive(Debug, Args)]
pub(super) struct Keys {
    #[command(flatten)]
    flags: Flags<ClientSettings>,
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Issue a key. Prints its secret, once.
    Create(create::Create),
    /// Show one key.
    Get {
        /// Id of the key.
        #[arg(value_name = "ID")]
        id: String,
    },
    /// List the keys of an organization, newest first.
    List(list::List),
    /// Change the given fields.
    Update(update::Update),
    /// Replace a key by a new one with the same settings. Prints the new secret, once.
    Rotate(Rotate),
    /// End a key for good.
    Revoke(Revoke),
    /// End all keys of an organization, or of one owner in it, for good.
    RevokeAll(revoke_all::RevokeAll),
    /// Verify a secret, read from standard input or a file. Exit code 0 if it is VALID, else 1.
    Verify(verify::Verify),
}

#[derive(Debug, Args)]
struct Rotate {
    /// Id of the key.
    #[arg(value_name = "ID")]
    id: String,
    /// How long the old key lives on, such as 24h; without it the old one is revoked at once.
    #[arg(long, value_name = "DURATION", value_parser = values::span)]
    overlap: Option<Duration>,
    /// Only if the key still has this etag.
    #[arg(long, default_value = "", hide_default_value = true)]
    etag: String,
}

#[derive(Debug, Args)]
struct Revoke {
    /// Id of the key.
    #[arg(value_name = "ID")]
    id: String,
    /// Why.
    #[arg(long, value_parser = values::choice(REASONS, "REVOCATION_REASON_", RevocationReason::from_str_name))]
    reason: Option<i32>,
    /// Note for the record.
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    note: String,
    /// Only if the key still has this etag.
    #[arg(long, default_value = "", hide_default_value = true)]
    etag: String,
}

impl Keys {
    pub(super) async fn run(self, environment: Environment<'_>) -> Result<u8, Failure> {
        let client = Client::open(&self.flags, environment).await?;
        match self.action {
            Action::Create(create) => create.run(&client).await,
            Action::Get { id } => {
                let request = client.request(GetKeyRequest { key_id: id });
                let answer = client.call(client.keys().get_key(request)).await?;
                show(&client, answer.key.as_ref())
            }
            Action::List(list) => list.run(&client).await,
            Action::Update(update) => update.run(&client).await,
            Action::Rotate(rotate) => rotate.run(&client).await,
            Action::Revoke(revoke) => revoke.run(&client).await,
            Action::RevokeAll(revoke) => revoke.run(&client).await,
            Action::Verify(verify) => verify.run(&client).await,
        }
    }
}

impl Rotate {
    async fn run(self, client: &Client) -> Result<u8, Failure> {
        let request = RotateKeyRequest { key_id: self.id, overlap: self.overlap, etag: self.etag };
        let answer = client.call(client.keys().rotate_key(client.request(request))).await?;
        let secret = Zeroizing::new(answer.secret);
        show_secret(client, answer.key.as_ref(), answer.previous_key.as_ref(), &secret)
    }
}

impl Revoke {
    async fn run(self, client: &Client) -> Result<u8, Failure> {
        let request = RevokeKeyRequest {
            key_id: self.id,
            reason: self.reason.unwrap_or_default(),
            note: self.note,
            etag: self.etag,
        };
        let answer = client.call(client.keys().revoke_key(client.request(request))).await?;
        let key = answer.key.as_ref();
        output::print(&match client.output() {
            OutputFormat::Table => {
                let mut record = key.map(fields::key).unwrap_or_default();
                record.push(("revision", json!(answer.revision)));
                output::record(&record)
            }
            OutputFormat::Json => {
                output::json(&json!({ "key": fields::one(key, fields::key), "revision": answer.revision }))
            }
        })?;
        Ok(DONE)
    }
}

/// Prints a key.
fn show(client: &Client, key: Option<&ApiKey>) -> Result<u8, Failure> {
    output::print(&match client.output() {
        OutputFormat::Table => output::record(&key.map(fields::key).unwrap_or_default()),
        OutputFormat::Json => output::json(&json!({ "key": fields::one(key, fields::key) })),
    })?;
    Ok(DONE)
}

/// Prints a new key and its secret, which nobody can ask for again; with the old key, where it took one's place.
fn show_secret(client: &Client, key: Option<&ApiKey>, previous: Option<&ApiKey>, secret: &str) -> Result<u8, Failure> {
    let text = Zeroizing::new(match client.output() {
        OutputFormat::Table => secret_table(key, previous, secret),
        OutputFormat::Json => {
            let mut answer = vec![("key", fields::one(key, fields::key)), ("secret", json!(secret))];
            if let Some(previous) = previous {
                answer.push(("previous_key", object(fields::key(previous))));
            }
            output::json(&object(answer))
        }
    });
    output::write(&text).map_err(|error| {
        let id = key.map_or("", |key| key.id.as_str());
        Failure::refused(format!(
            "the secret could not be written and is lost ({error}); revoke or rotate key {}",
            output::escape(id)
        ))
    })?;
    Ok(DONE)
}

fn secret_table(key: Option<&ApiKey>, previous: Option<&ApiKey>, secret: &str) -> String {
    let mut text = output::record(&key.map(fields::key).unwrap_or_default());
    if let Some(previous) = previous {
        text.push_str("\nprevious key\n");
        text.push_str(&output::record(&fields::key(previous)));
    }
    text.push_str("\nKeep the secret now, it is not stored and cannot be shown again.\nsecret: ");
    text.push_str(&output::escape(secret));
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_secret_stands_on_one_line_of_its_own() {
        let key = ApiKey { id: "new".to_owned(), ..ApiKey::default() };
        let old = ApiKey { id: "old".to_owned(), ..ApiKey::default() };
        let text = secret_table(Some(&key), Some(&old), "pk_live_x");
        assert_eq!(text.lines().filter(|line| *line == "secret: pk_live_x").count(), 1);
        assert!(text.contains("new") && text.contains("old"));
    }
}
