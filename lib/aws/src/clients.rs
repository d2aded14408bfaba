//! SDK clients: one TLS stack, one configuration, made once per process.

use std::time::Duration;

use aws_config::BehaviorVersion;
pub use aws_config::SdkConfig;
use aws_config::retry::RetryConfig;
use aws_config::timeout::TimeoutConfig;
use aws_smithy_http_client::tls;

use crate::config;

/// Loads credentials, region and endpoint by the SDK's own rules (`AWS_ENDPOINT_URL` included).
///
/// One call may take 5 s and is tried three times: every caller here is itself retried by a queue, a schedule or a
/// marketplace, so hanging on is worth less than saying so.
pub async fn load() -> SdkConfig {
    let http = aws_smithy_http_client::Builder::new()
        .tls_provider(tls::Provider::Rustls(tls::rustls_provider::CryptoMode::Ring))
        .build_https();
    let timeouts = TimeoutConfig::builder()
        .connect_timeout(Duration::from_secs(2))
        .operation_attempt_timeout(Duration::from_secs(5))
        .build();
    aws_config::defaults(BehaviorVersion::latest())
        .http_client(http)
        .timeout_config(timeouts)
        .retry_config(RetryConfig::standard().with_max_attempts(3))
        .load()
        .await
}

/// A client of S3, as [`s3`] makes it.
pub type S3 = aws_sdk_s3::Client;

/// An S3 client. At an endpoint other than AWS, buckets are paths: such endpoints seldom resolve bucket host names.
#[must_use]
pub fn s3(sdk: &SdkConfig) -> S3 {
    let elsewhere = sdk.endpoint_url().is_some() || config::optional(config::AWS_ENDPOINT_URL).is_some();
    let config = aws_sdk_s3::config::Builder::from(sdk)
        .force_path_style(elsewhere)
        .build();
    aws_sdk_s3::Client::from_conf(config)
}

/// A Lambda client for calls that wait for a function: no attempt timeout, no second attempt.
#[must_use]
pub fn lambda_invoker(sdk: &SdkConfig) -> aws_sdk_lambda::Client {
    let config = aws_sdk_lambda::config::Builder::from(sdk)
        .timeout_config(
            TimeoutConfig::builder()
                .connect_timeout(Duration::from_secs(2))
                // Left unsaid, that of all other calls would hold.
                .disable_operation_attempt_timeout()
                .build(),
        )
        .retry_config(RetryConfig::disabled())
        .build();
    aws_sdk_lambda::Client::from_conf(config)
}

/// What went wrong, from the outermost error to the innermost, on one line.
///
/// The SDK's own long form holds the whole raw answer, and the answer to a read of a secret holds the secret.
#[must_use]
pub fn explain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut said: Vec<String> = Vec::new();
    let mut next = Some(error);
    while let Some(error) = next {
        let text = error.to_string().replace('\n', " ");
        // Many wrappers repeat what they wrap.
        if !said.iter().any(|before| before.ends_with(&text)) {
            said.push(text);
        }
        next = error.source();
    }
    said.join(": ")
}

#[cfg(test)]
mod tests {
    use aws_sdk_secretsmanager::error::SdkError;
    use aws_sdk_secretsmanager::operation::get_secret_value::GetSecretValueError;
    use aws_sdk_secretsmanager::types::error::ResourceNotFoundException;

    use super::explain;

    #[test]
    fn an_error_is_explained_without_the_raw_answer() {
        let inner = ResourceNotFoundException::builder()
            .message("no such secret")
            .build();
        let error = GetSecretValueError::ResourceNotFoundException(inner);
        let error = SdkError::service_error(error, "raw answer with whsec_AAAA".to_owned());
        assert_eq!(
            explain(&error),
            "service error: ResourceNotFoundException: no such secret"
        );
    }
}
