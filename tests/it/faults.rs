//! Faults of what the service stands on: the network, the database, Redis, the clock, other replicas. Each is a real
//! one, made by a proxy, a signal or a library; nothing of the service is replaced.
//! `proxy` and `processes` show that the faults are what they claim to be, so that a test which passes under one has
//! been under it.

mod credits;
mod database;
mod history;
mod processes;
mod proxy;
mod rate_limits;
mod replicas;
mod revocation;
mod rolling;
mod usage;

use std::time::Duration;

/// How long nothing has to come before it counts as silence. What is said on this machine takes a thousandth of it.
const SILENT_FOR: Duration = Duration::from_millis(400);

/// Longer than anything may take that is not held back.
const SOON: Duration = Duration::from_secs(30);
