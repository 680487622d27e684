//! The SeaORM entities, one file per table, exactly as the migrations make them.
//! Rows only: what a row means is said in `store/rows.rs`, and nothing outside `store/` sees one.

pub mod api_key;
pub mod api_key_usage;
pub mod audit_event;
pub mod change_counter;
pub mod import;
pub mod job_lease;
pub mod key_change;
pub mod organization;
pub mod rate_limit_tracking;
pub mod replica;
pub mod service_state;
pub mod usage_consumer;
pub mod usage_error;
pub mod usage_report;
pub mod usage_response_time;
pub mod usage_rollup;
pub mod usage_spool;
pub mod usage_total;
