//! What the benches share: a running local stack to drive, a Runtime API to start bootstraps under, an action handler,
//! and plain HTTP.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    clippy::indexing_slicing,
    reason = "a bench that cannot go on has nothing better to do than to say why and stop"
)]

pub mod handler;
pub mod http;
pub mod runtime_api;
pub mod stack;

/// The value below which `percent` of the samples lie (nearest rank).
#[must_use]
pub fn percentile(samples: &[f64], percent: usize) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted[rank - 1]
}
