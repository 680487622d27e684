//! `import_*`: bringing keys in from a PostgreSQL while a server serves. `import_rate`: rows per second of
//! `keystead import run`, against what the database alone does with the same rows. `import_memory`: its memory with few
//! rows and with many. `import_hot`: how long cached verifications take while an import and checks of bcrypt run beside
//! them, against quiet.
//! Each round has databases of its own, so that no import finds what another one left. Invariant: after each import its
//! keys are counted, its audit events are there, and the server says `VALID` of some of them.

mod command;
pub mod hot;
pub mod memory;
mod paced;
pub mod rate;
mod site;
mod slow;
