//! Receipts from outside: canonical bytes, ledgers, archives, and what `jq` and `openssl` say of them.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::unreachable,
    reason = "a test fails by panicking"
)]

// The name its users give it.
extern crate governor_receipts as receipts;

mod archive;
mod checkpoint;
mod drafts;
mod jcs;
mod ledger;
mod merkle;
mod proof;
mod report;
mod shell;
mod tamper;
mod tile;
mod trail;
