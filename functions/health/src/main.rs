//! Cold start of `health`: scheduled probes of storage, and sweeps.

mod handler;
mod sweep;

use domain::json::Object;
use handler::{Health, Round};
use lambda_runtime::{Error, LambdaEvent, run, service_fn};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    aws::telemetry::init();
    let health = Health::from_env()
        .await
        .map_err(aws::telemetry::StartFailure::new)?;
    let health = &health;
    run(service_fn(|event: LambdaEvent<Object<Round>>| async move {
        Ok::<_, Error>(health.handle(event.payload.0).await)
    }))
    .await
}
