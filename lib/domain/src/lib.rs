//! What Marketplace Governor decides, free of I/O.
//!
//! Every decision is a function of (state, event, now). Nothing here knows a cloud SDK, an async runtime, the
//! environment or a clock: the shell (lib/aws and the functions) reads the world, asks here, and carries out the answer.

pub mod account;
pub mod action;
pub mod admission;
pub mod audit;
pub mod control;
pub mod door;
pub mod entitlement;
pub mod gate;
pub mod governor;
pub mod json;
pub mod names;
pub mod ontology;
pub mod operations;
pub mod provisioning;
pub mod scale;
pub mod signal;
pub mod sweep;
pub mod tenant;
pub mod time;
pub mod transaction;
pub mod webhook;
