//! The table of providers. Each is a file in this folder, and its line in [`PROVIDERS`].

pub mod github;
pub mod standard;

use super::provider::Provider;

/// Every provider.
pub static PROVIDERS: &[&Provider] = &[&standard::PROVIDER, &github::PROVIDER];

/// The provider of this name.
#[must_use]
pub fn of_name(name: &str) -> Option<&'static Provider> {
    PROVIDERS.iter().find(|provider| provider.name == name).copied()
}

/// The provider that posts to this path. Whoever types it in at a marketplace may leave a slash at its end.
#[must_use]
pub fn at_path(path: &str) -> Option<&'static Provider> {
    let path = path.strip_suffix('/').unwrap_or(path);
    PROVIDERS
        .iter()
        .find(|provider| provider.paths.contains(&path))
        .copied()
}
