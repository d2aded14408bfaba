//! Cold start of `scale`: queue lag to concurrency, inside quota and budget.

mod event;
mod handler;
mod report;

use std::sync::Arc;

use event::Event;
use handler::Scaler;
use lambda_runtime::{Error, LambdaEvent, run, service_fn};
use report::ScaleError;
use serde_json::Value;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    aws::telemetry::init();
    let scaler = Scaler::from_env()
        .await
        .map_err(aws::telemetry::StartFailure::new)?;
    let scaler = &Arc::new(scaler);
    run(service_fn(|event: LambdaEvent<Value>| async move {
        let answered = match Event::read(&event.payload) {
            Ok(event) => Box::pin(scaler.handle(event)).await,
            Err(e) => Err(ScaleError::from(e)),
        };
        answered.map_err(|e| {
            tracing::error!(error = %e, "not scaled");
            Error::from(e)
        })
    }))
    .await
}
