//! Cold start of `governor`: signals from tenants' queues, and the look around before a tenant's first.

mod handler;

use handler::Governor;
use lambda_runtime::{Error, LambdaEvent, run, service_fn};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    aws::telemetry::init();
    let governor = Governor::from_env()
        .await
        .map_err(aws::telemetry::StartFailure::new)?;
    let governor = &governor;
    run(service_fn(|event: LambdaEvent<serde_json::Value>| async move {
        governor.handle(event.payload).await
    }))
    .await
}
