//! Cold start of `checkpoint`: signs how far each ledger has come.

mod handler;

use domain::json::Object;
use handler::{Checkpoints, Order};
use lambda_runtime::{Error, LambdaEvent, run, service_fn};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    aws::telemetry::init();
    let checkpoints = Checkpoints::from_env()
        .await
        .map_err(aws::telemetry::StartFailure::new)?;
    let checkpoints = &checkpoints;
    run(service_fn(|event: LambdaEvent<Object<Order>>| async move {
        checkpoints.handle(event.payload.0).await.map_err(Error::from)
    }))
    .await
}
