//! The shell around the decisions: the only crate that names an AWS SDK, reads the environment or looks at the clock.
//!
//! Each module is one part of the outside: `store` the tables, `registry` the enforcers, `control` the mode and
//! switches, `queues` the tenants' queues, `spool` receipts that wait, `log` checkpoints and tiles, `archive` the way out,
//! `audit` the bucket under both, `entitlements` what becomes of a webhook, `tables` tenants' own, `inventory` what there is
//! of tenants' resources, `handler` the seller's action handler, `http` the envelope of what comes over HTTP.

pub mod archive;
pub mod audit;
pub mod clients;
pub mod config;
pub mod control;
pub mod entitlements;
pub mod functions;
pub mod handler;
pub mod http;
pub mod inventory;
pub mod log;
pub mod pages;
pub mod queues;
pub mod registry;
pub mod secrets;
pub mod spool;
pub mod store;
mod swap;
pub mod tables;
pub mod telemetry;
pub mod webhooks;
