//! Functions that are asked to run later.

use aws_config::SdkConfig;
use aws_sdk_lambda::Client;
use aws_sdk_lambda::primitives::Blob;
use aws_sdk_lambda::types::InvocationType;
use serde::Serialize;

use crate::clients::explain;

/// A function that could not be asked.
#[derive(Debug, thiserror::Error)]
#[error("asking function {function} to run: {detail}")]
pub struct InvokeError {
    /// Which function.
    pub function: String,
    /// What went wrong.
    pub detail: String,
}

/// Asks functions.
pub struct Functions {
    client: Client,
}

impl Functions {
    /// The functions of this account.
    #[must_use]
    pub fn new(sdk: &SdkConfig) -> Self {
        Self {
            client: Client::new(sdk),
        }
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
}
