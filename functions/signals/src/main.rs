//! Cold start of `signals`: the HTTP front door to a tenant's queue.

mod handler;

use handler::Door;
use lambda_runtime::{Error, LambdaEvent, run, service_fn};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    aws::telemetry::init();
    let door = Door::from_env()
        .await
        .map_err(aws::telemetry::StartFailure::new)?;
    let door = &door;
    run(service_fn(|event: LambdaEvent<serde_json::Value>| async move {
        door.handle(event.payload).await
    }))
    .await
}
