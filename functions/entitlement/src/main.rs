//! Cold start of `entitlement`: every event of an entitlement, and what an earlier run left undone.

mod handler;
mod repair;
mod saga;

use handler::Entitlement;
use lambda_runtime::{Error, LambdaEvent, run, service_fn};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    aws::telemetry::init();
    let entitlement = Entitlement::from_env()
        .await
        .map_err(aws::telemetry::StartFailure::new)?;
    let entitlement = &entitlement;
    run(service_fn(|event: LambdaEvent<serde_json::Value>| async move {
        entitlement.handle(event.payload).await
    }))
    .await
}
