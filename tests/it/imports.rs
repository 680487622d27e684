//! Bringing keys in from elsewhere, end to end: the real command on real sources, and a real server that answers for
//! what it brought in. `ownership`, `clients`, `pairs` and `organizations` are four whole systems, each by its mapping
//! in `docs/migrating/`; `treatments` is the dirt of real tables, row by row; the others show one promise each.
//! Invariant: a source is only ever told apart from what it was by what `contract` does to it.

mod clients;
mod contract;
mod files;
mod metadata;
mod organizations;
mod ownership;
mod pairs;
mod placing;
mod resume;
mod secrecy;
mod sources;
mod treatments;
mod usage;
mod weak;
mod windows;
pub mod world;
