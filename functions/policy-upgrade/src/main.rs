//! Cold start of `policy-upgrade`: a new version of a plan's policy.

mod handler;

use handler::PolicyUpgrade;
use lambda_runtime::{Error, LambdaEvent, run, service_fn};
use serde_json::Value;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    aws::telemetry::init();
    let upgrade = PolicyUpgrade::from_env()
        .await
        .map_err(aws::telemetry::StartFailure::new)?;
    let upgrade = &upgrade;
    run(service_fn(|event: LambdaEvent<Value>| async move {
        Box::pin(upgrade.handle(&event.payload)).await.map_err(|e| {
            tracing::error!(error = %e, source = ?std::error::Error::source(&e), "policy not upgraded");
            Error::from(e)
        })
    }))
    .await
}
