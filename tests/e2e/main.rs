//! The deployed stack from outside: webhooks over HTTP, signals over SQS, functions by name, and `ggen`.
//!
//! `make test` starts a stack of its own and runs this. Every test has accounts of its own, so they run side by side;
//! those that break storage or move the switches run alone (see [`world::alone`]).
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod actions;
mod backlog;
mod bad_input;
mod documents;
mod entitlements;
mod escalations;
mod evidence;
mod faults;
mod github;
mod governor;
mod handler;
mod isolation;
mod life;
mod logs;
mod policies;
mod provisioning;
mod saga;
mod scale;
mod secrets;
mod shown;
mod signals;
mod sweep;
mod switches;
mod tenants;
mod times;
mod webhooks;
mod world;
mod writers;
