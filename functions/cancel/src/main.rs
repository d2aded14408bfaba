//! Cold start of `cancel`: the webhook that ends a tenant's life, and the queue that carries it out.

mod decommission;
mod handler;

use handler::Cancel;
use lambda_runtime::{Error, LambdaEvent, run, service_fn};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    aws::telemetry::init();
    let cancel = Cancel::from_env()
        .await
        .map_err(aws::telemetry::StartFailure::new)?;
    let cancel = &cancel;
    run(service_fn(|event: LambdaEvent<serde_json::Value>| async move {
        Box::pin(cancel.handle(event.payload)).await
    }))
    .await
}
