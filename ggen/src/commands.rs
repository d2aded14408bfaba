//! One file per command.

pub mod action;
pub mod archive;
pub mod audit;
pub mod canonicalize;
pub mod checkpoint;
pub mod deliveries;
pub mod escalations;
pub mod export_receipts;
pub mod handler;
pub mod hash;
pub mod keys;
pub mod policy;
pub mod prove;
pub mod redrive;
pub mod resolve;
pub mod scale;
pub mod send_signal;
pub mod switches;
pub mod tenants;
pub mod verify_archive;
pub mod verify_receipt;
pub mod webhook;
