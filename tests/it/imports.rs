//! Bringing keys in from elsewhere, end to end: the real command on real sources, and a real server that answers for
//! what it brought in. `ownership`, `clients`, `pairs` and `organizations` are four whole systems, each by its mapping
//! in `docs/migrating/`; `treatments` is the dirt of real tables, row by row; the others show one promise each.
//! Invariant: a source is only ever told apart from what it was by what `contract` does to it.

mod beside_contract;
mod binary;
mod clients;
mod contract;
mod fed;
mod files;
mod findings;
mod interrupted_contract;
mod interrupted_rows;
mod labels;
mod limits_redis;
mod many_bcrypt;
mod metadata;
mod nul;
mod nul_usage;
mod organizations;
mod other_sources;
mod outline;
mod overtaken;
mod overtaken_rows;
mod ownership;
mod pairs;
mod placing;
mod remarks;
mod resume;
mod secrecy;
mod seen;
mod sources;
mod spent_quotas;
mod terminal;
mod tracked;
mod treatments;
mod under_way;
mod usage;
mod weak;
mod windows;
mod withheld;
pub mod world;
