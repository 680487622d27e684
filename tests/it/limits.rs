//! Rate limits, quotas and credits where several processes share them, against real servers: the counters in Redis, one
//! server and a cluster, and the counters in the database.

mod redis;
mod table;
