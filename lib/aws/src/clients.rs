//! SDK clients: one TLS stack, one configuration and one client of each service, made once per process.

use std::sync::OnceLock;
use std::time::Duration;

use aws_config::environment::EnvironmentVariableCredentialsProvider;
use aws_config::retry::RetryConfig;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, SdkConfig};
use aws_smithy_http_client::tls::{self, TlsContext, TrustStore};

use crate::config::{self, Roots};

/// The roots of all of AWS's own endpoints: Amazon Root CA 1 to 4 and Starfield Services Root CA G2, of
/// <https://www.amazontrust.com/repository/>, valid until 2037 at the least. Reading a machine's 144 roots takes most of a cold
/// start.
const AMAZON_ROOTS: &str = include_str!("amazon-roots.pem");

/// The services, each with one client: making one takes a quarter of a millisecond, most of it to read the SDK's table of regions.
#[derive(Debug)]
pub struct Sdk {
    config: SdkConfig,
    dynamodb: OnceLock<aws_sdk_dynamodb::Client>,
    lambda: OnceLock<aws_sdk_lambda::Client>,
    s3: OnceLock<S3>,
    secrets: OnceLock<aws_sdk_secretsmanager::Client>,
    sqs: OnceLock<aws_sdk_sqs::Client>,
}

impl From<SdkConfig> for Sdk {
    fn from(config: SdkConfig) -> Self {
        Self {
            config,
            dynamodb: OnceLock::new(),
            lambda: OnceLock::new(),
            s3: OnceLock::new(),
            secrets: OnceLock::new(),
            sqs: OnceLock::new(),
        }
    }
}

impl Sdk {
    #[must_use]
    pub fn dynamodb(&self) -> aws_sdk_dynamodb::Client {
        let made = || aws_sdk_dynamodb::Client::new(&self.config);
        self.dynamodb.get_or_init(made).clone()
    }

    #[must_use]
    pub fn lambda(&self) -> aws_sdk_lambda::Client {
        let made = || aws_sdk_lambda::Client::new(&self.config);
        self.lambda.get_or_init(made).clone()
    }

    /// At an endpoint other than AWS, buckets are paths: such endpoints seldom resolve bucket host names.
    #[must_use]
    pub fn s3(&self) -> S3 {
        let made = || {
            let elsewhere =
                self.config.endpoint_url().is_some() || config::optional(config::AWS_ENDPOINT_URL).is_some();
            let config = aws_sdk_s3::config::Builder::from(&self.config)
                .force_path_style(elsewhere)
                .build();
            S3::from_conf(config)
        };
        self.s3.get_or_init(made).clone()
    }

    #[must_use]
    pub fn secrets(&self) -> aws_sdk_secretsmanager::Client {
        let made = || aws_sdk_secretsmanager::Client::new(&self.config);
        self.secrets.get_or_init(made).clone()
    }

    #[must_use]
    pub fn sqs(&self) -> aws_sdk_sqs::Client {
        let made = || aws_sdk_sqs::Client::new(&self.config);
        self.sqs.get_or_init(made).clone()
    }
}

/// Loads credentials, region and endpoint by the SDK's own rules (`AWS_ENDPOINT_URL` included). Those that Lambda hands to a
/// function are taken as they are: the SDK would make a client of STS first, for a web identity that a function never has.
///
/// One call may take 5 s and is tried three times: every caller here is itself retried by a queue, a schedule or a
/// marketplace, so hanging on is worth less than saying so.
pub async fn load() -> Sdk {
    let ring = tls::Provider::Rustls(tls::rustls_provider::CryptoMode::Ring);
    let http = aws_smithy_http_client::Builder::new().tls_provider(ring);
    let roots = config::roots();
    let trusting = match roots {
        Roots::Machine => TrustStore::default(),
        Roots::Amazon => TrustStore::empty().with_pem_certificate(AMAZON_ROOTS),
    };
    let http = match TlsContext::builder().with_trust_store(trusting).build() {
        Ok(context) => http.tls_context(context).build_https(),
        // That of the machine's roots: a context always can be built, but does not say so.
        Err(_) => http.build_https(),
    };
    let timeouts = TimeoutConfig::builder()
        .connect_timeout(Duration::from_secs(2))
        .operation_attempt_timeout(Duration::from_secs(5))
        .build();
    let loader = aws_config::defaults(BehaviorVersion::latest())
        .http_client(http)
        .timeout_config(timeouts)
        .retry_config(RetryConfig::standard().with_max_attempts(3));
    let handed_over = roots == Roots::Amazon && config::optional(config::AWS_ACCESS_KEY_ID).is_some();
    let loader = match handed_over {
        true => loader.credentials_provider(EnvironmentVariableCredentialsProvider::new()),
        false => loader,
    };
    Sdk::from(loader.load().await)
}

/// A client of S3, as [`Sdk::s3`] makes it.
pub type S3 = aws_sdk_s3::Client;

/// A Lambda client for calls that wait for a function: no attempt timeout, no second attempt.
#[must_use]
pub fn lambda_invoker(sdk: &Sdk) -> aws_sdk_lambda::Client {
    let config = aws_sdk_lambda::config::Builder::from(&sdk.config)
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
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;

    use super::{AMAZON_ROOTS, explain};

    /// As Amazon Trust Services publishes them: SHA-256 of each certificate.
    #[test]
    fn amazons_roots_are_those_that_it_publishes() {
        let published = [
            "8ecde6884f3d87b1125ba31ac3fcb13d7016de7f57cc904fe1cb97c6ae98196e",
            "1ba5b2aa8c65401a82960118f80bec4f62304d83cec4713a19c39c011ea46db4",
            "18ce6cfe7bf14e60b2e347b8dfe868cb31d02ebb3ada271569f50343b46db3a4",
            "e35d28419ed02025cfa69038cd623962458da5c695fbdea3c22b0bfb25897092",
            "568d6905a2c88708a4b3025190edcfedb1974a606a13c6e5290fcb2ae63edab5",
        ];
        let found: Vec<String> = AMAZON_ROOTS
            .split("-----BEGIN CERTIFICATE-----")
            .skip(1)
            .map(|pem| {
                let body = pem.split("-----END").next().unwrap().replace('\n', "");
                receipts::sha256_hex(STANDARD.decode(body).unwrap())
            })
            .collect();
        assert_eq!(found, published);
    }

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
