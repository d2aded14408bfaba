//! What is done to an account, one operation a module: each a function of (account as it was read, request, now) that gives
//! the plan to write and the answer to whoever asked. None does any I/O: whoever holds the tables writes the plan.

pub mod abandon;
pub mod append_once;
pub mod apply_event;
pub mod block;
pub mod decommission;
pub mod end_expired;
pub mod provision;
pub mod record_dead_letters;
pub mod recount;
pub mod redrive;
pub mod refuse_left;
pub mod repair;
pub mod repin;
pub mod resolve;
pub mod scale;
pub mod settle_spool;
pub mod wake;

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test may stop at the first surprise"
)]
mod tests;
