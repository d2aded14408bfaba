//! SDK clients: one TLS stack, one configuration, made once per process.

use std::time::Duration;

use aws_config::retry::RetryConfig;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, SdkConfig};
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

/// An S3 client. At an endpoint other than AWS, buckets are paths: such endpoints seldom resolve bucket host names.
#[must_use]
pub fn s3(sdk: &SdkConfig) -> aws_sdk_s3::Client {
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
                .build(),
        )
        .retry_config(RetryConfig::disabled())
        .build();
    aws_sdk_lambda::Client::from_conf(config)
}
