//! Functions that are asked to run, now or later.

use std::time::Duration;

use aws_config::retry::RetryConfig;
use aws_config::timeout::TimeoutConfig;
use aws_sdk_lambda::Client;
use aws_sdk_lambda::primitives::Blob;
use aws_sdk_lambda::types::InvocationType;
use serde::Serialize;
use serde_json::Value;

use crate::clients::{Sdk, explain};

/// A function that could not be asked.
#[derive(Debug, thiserror::Error)]
#[error("asking function {function} to run: {detail}")]
pub struct InvokeError {
    pub function: String,
    pub detail: String,
}

/// How long a function that is waited for may take: longer than any that is asked so takes at its worst.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// Asks functions.
pub struct Functions {
    client: Client,
}

impl Functions {
    /// The functions of this account.
    #[must_use]
    pub fn new(sdk: &Sdk) -> Self {
        Self { client: sdk.lambda() }
    }

    /// Has a function run with this event, without waiting for it. It may run more than once.
    ///
    /// # Errors
    /// [`InvokeError`] when the event has no JSON form or Lambda does not take it.
    pub async fn invoke_later(&self, function: &str, event: &impl Serialize) -> Result<(), InvokeError> {
        let error = |detail: String| InvokeError {
            function: function.to_owned(),
            detail,
        };
        let payload = serde_json::to_vec(event).map_err(|e| error(e.to_string()))?;
        self.client
            .invoke()
            .function_name(function)
            .invocation_type(InvocationType::Event)
            .payload(Blob::new(payload))
            .send()
            .await
            .map(|_| ())
            .map_err(|e| error(explain(&e)))
    }

    /// Has a function run with this event, and gives its answer.
    ///
    /// # Errors
    /// [`InvokeError`] when Lambda does not run it, it fails, or its answer is not JSON.
    pub async fn ask(&self, function: &str, event: &impl Serialize) -> Result<Value, InvokeError> {
        let error = |detail: String| InvokeError {
            function: function.to_owned(),
            detail,
        };
        let payload = serde_json::to_vec(event).map_err(|e| error(e.to_string()))?;
        // Once: whoever waits has a time of its own, and asks again with its next run.
        let patient = aws_sdk_lambda::config::Config::builder()
            .timeout_config(
                TimeoutConfig::builder()
                    .operation_attempt_timeout(ANSWER_WITHIN)
                    .build(),
            )
            .retry_config(RetryConfig::disabled());
        let answer = self
            .client
            .invoke()
            .function_name(function)
            .payload(Blob::new(payload))
            .customize()
            .config_override(patient)
            .send()
            .await
            .map_err(|e| error(explain(&e)))?;
        let said = answer.payload.map(Blob::into_inner).unwrap_or_default();
        if let Some(kind) = answer.function_error {
            // Its own words may hold anything; they are in its log.
            return Err(error(format!("it failed: {kind}")));
        }
        serde_json::from_slice(&said).map_err(|e| error(format!("its answer is not JSON: {e}")))
    }
}
