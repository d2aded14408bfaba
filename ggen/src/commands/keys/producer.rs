//! `ggen keys producer`: the secret that an account's producers sign their requests with.

use std::fmt;

use aws::clients;
use aws::config::{self, ConfigError};
use aws::secrets::{Secrets, SecretsError};
use clap::Args;
use domain::account::AccountId;
use domain::webhook::signature::Secret;
use serde::Serialize;

use crate::cloud;

/// What `--help` ends with.
pub fn help() -> String {
    "\
Example:
  ggen keys producer --account-id customer-123

Derived from the stack's producer secret: valid for this account only, and not stored anywhere. Give it to those who post to
/tenants/customer-123/signals. When the stack's secret changes, so does the account's; the previous one stays valid for a
day.
Needs PRODUCER_SECRET_ID and AWS credentials that may read that secret: the template's outputs in the cloud,
target/local-cloud/env.sh for the local one."
        .to_owned()
}

/// Arguments of `ggen keys producer`.
#[derive(Args)]
pub struct ProducerArgs {
    /// The tenant's account
    #[arg(long, value_name = "ID", value_parser = cloud::account_id)]
    account_id: AccountId,
}

/// Why there is no secret to print.
#[derive(Debug, thiserror::Error)]
pub enum ProducerError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Secrets(#[from] SecretsError),
}

/// A producer's secret.
#[derive(Serialize)]
pub struct ProducerAnswer {
    account_id: AccountId,
    secret: String,
}

impl fmt::Display for ProducerAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.secret)
    }
}

/// Derives an account's secret.
///
/// # Errors
/// [`ProducerError`] when the stack's secret cannot be had.
pub async fn run(args: ProducerArgs) -> Result<ProducerAnswer, ProducerError> {
    let id = config::required(config::PRODUCER_SECRET_ID)?;
    let secrets = Secrets::new(&clients::load().await);
    let found = secrets.shared_with_sender(&id, Secret::standard).await?;
    let master = found.first().ok_or(SecretsError::Empty { id })?;
    Ok(ProducerAnswer {
        secret: master.producer_text(&args.account_id),
        account_id: args.account_id,
    })
}
