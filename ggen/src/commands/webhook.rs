//! `ggen webhook`: sign a delivery as a marketplace does, or check one as we do.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Subcommand};
use domain::webhook::MAX_BODY_BYTES;
use domain::webhook::provider::Provider;
use domain::webhook::providers::{self, PROVIDERS};
use domain::webhook::signature::{Headers, Secret, SecretError};
use jiff::Timestamp;
use serde::Serialize;
use serde_json::{Map, Value};

use crate::input::{self, InputError, is_stdin};
use crate::out::Out;
use crate::report::Verdict;

const SIGN_EXAMPLES: &str = "\
Examples:
  ggen webhook sign --body created.json
  ggen webhook sign --provider github --body purchased.json --curl --url \"$API_URL/webhooks/github\" | sh
  ggen webhook sign --event events/entitlement/standard-created.json > target/event.json
  cargo lambda invoke -A 127.0.0.1 entitlement --data-file target/event.json

created.json stands for a body of your own: docs/webhooks.md has one. events/ is in the project.

The secret is read from an environment variable, never from the command line, which others can see.";

const VERIFY_EXAMPLES: &str = "\
Examples:
  ggen webhook sign --body created.json > headers.txt
  ggen webhook verify --body created.json --headers headers.txt
  ggen webhook verify --provider github --event event.json

Exit code 0 and the delivery's id if the signature is valid, 1 and the reason if it is not.";

/// Most bytes of an event: what API Gateway puts around a body, escapes and base64 included, is no more than its own
/// limit of 10 MB. What counts is the body in it.
const MAX_EVENT_BYTES: u64 = 10 * 1024 * 1024;

/// What to do with a webhook.
#[derive(Subcommand)]
pub enum WebhookCommand {
    /// Print the headers that sign a body
    #[command(after_help = SIGN_EXAMPLES)]
    Sign(SignArgs),
    /// Check the signature of a delivery
    #[command(after_help = VERIFY_EXAMPLES)]
    Verify(VerifyArgs),
}

/// Arguments of `ggen webhook sign`.
#[derive(Args)]
pub struct SignArgs {
    #[command(flatten)]
    delivery: DeliveryArgs,
    /// Delivery id [default: a new one]
    #[arg(long, value_name = "ID")]
    id: Option<String>,
    /// The URL that --curl posts to
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// Print a curl command that posts the signed body
    #[arg(long, requires = "url", conflicts_with = "event")]
    curl: bool,
}

/// Arguments of `ggen webhook verify`.
#[derive(Args)]
pub struct VerifyArgs {
    #[command(flatten)]
    delivery: DeliveryArgs,
    /// The delivery's headers: `name: value` lines or a JSON object; `-` for stdin
    #[arg(
        long,
        value_name = "FILE",
        required_unless_present = "event",
        conflicts_with = "event"
    )]
    headers: Option<PathBuf>,
}

#[derive(Args)]
struct DeliveryArgs {
    #[command(flatten)]
    input: InputArgs,
    /// The provider whose convention to use
    #[arg(long, value_parser = providers(), value_name = "PROVIDER", default_value = "standard")]
    provider: &'static Provider,
    /// Environment variable with the secret [default: the provider's, such as STANDARD_WEBHOOK_SECRET]
    #[arg(long, value_name = "NAME")]
    secret_env: Option<String>,
    /// The time to sign or check at, in seconds since 1970 [default: now]
    #[arg(long, value_name = "SECONDS")]
    at: Option<i64>,
}

#[derive(Args)]
#[group(required = true, multiple = false)]
struct InputArgs {
    /// The raw body; `-` for stdin
    #[arg(long, value_name = "FILE")]
    body: Option<PathBuf>,
    /// An API Gateway event (payload format 2.0) with body and headers; sign writes it with new headers
    #[arg(long, value_name = "FILE")]
    event: Option<PathBuf>,
}

/// The providers by name.
fn providers() -> impl TypedValueParser<Value = &'static Provider> {
    let names = PROVIDERS.iter().map(|provider| provider.name);
    PossibleValuesParser::new(names).try_map(|name| providers::of_name(&name).ok_or("no such provider"))
}

/// Why a webhook could not be signed or checked.
#[derive(Debug, thiserror::Error)]
pub enum WebhookError {
    #[error("environment variable {name} is not set; it holds the webhook secret")]
    NoSecret { name: String },
    #[error("environment variable {name} holds no usable secret")]
    Secret { name: String, source: SecretError },
    #[error(transparent)]
    Input(#[from] InputError),
    #[error("{} is not JSON", path.display())]
    Json {
        path: PathBuf,
        source: serde_json::Error,
    },
    #[error("the body in {} is larger than {MAX_BODY_BYTES} bytes", path.display())]
    BodyTooLarge { path: PathBuf },
    #[error("{} is not an API Gateway event: {problem}", path.display())]
    Event { path: PathBuf, problem: &'static str },
    #[error("{}: {line:?} is not a header", path.display())]
    Header {
        path: PathBuf,
        /// The line, or the header's name.
        line: String,
    },
    #[error("--body and --headers cannot both be stdin")]
    StdinTwice,
    #[error("--at is not a valid time")]
    Time(#[from] jiff::Error),
    #[error("--curl with a body from stdin needs the body to be text")]
    NotText,
    #[error("cannot write the answer")]
    Write(#[from] io::Error),
}

#[derive(Serialize)]
#[serde(transparent)]
struct HeaderLines(BTreeMap<&'static str, String>);

impl fmt::Display for HeaderLines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines: Vec<_> = self
            .0
            .iter()
            .map(|(name, value)| format!("{name}: {value}"))
            .collect();
        f.write_str(&lines.join("\n"))
    }
}

#[derive(Serialize)]
struct Checked {
    verified: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    delivery_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

impl fmt::Display for Checked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = if self.verified { "VERIFIED" } else { "NOT VERIFIED" };
        let detail = self
            .delivery_id
            .as_ref()
            .or(self.reason.as_ref())
            .map_or("", String::as_str);
        write!(f, "{verdict}: {detail}")
    }
}

/// Signs or checks.
///
/// # Errors
/// When the secret is missing or an input cannot be read; a signature that does not hold is a verdict.
pub fn run(command: &WebhookCommand, out: &mut Out) -> Result<Verdict, WebhookError> {
    match command {
        WebhookCommand::Sign(args) => sign(args, out),
        WebhookCommand::Verify(args) => verify(args, out),
    }
}

fn sign(args: &SignArgs, out: &mut Out) -> Result<Verdict, WebhookError> {
    let secret = args.delivery.secret()?;
    let now = args.delivery.now()?;
    match args.delivery.source() {
        Source::Body(path) => {
            let body = read(path)?;
            let headers = signed_headers(args, &secret, now, &body);
            match &args.url {
                Some(url) if args.curl => writeln!(out, "{}", curl_command(url, &headers, path, &body)?)?,
                _ => out.show(&HeaderLines(headers))?,
            }
        }
        Source::Event(path) => {
            let mut event = Event::read(path)?;
            let headers = signed_headers(args, &secret, now, &event.body);
            event.set_headers(headers);
            if out.for_programs() {
                serde_json::to_writer(&mut *out, &event.whole)
            } else {
                serde_json::to_writer_pretty(&mut *out, &event.whole)
            }
            .map_err(io::Error::from)?;
            writeln!(out)?;
        }
    }
    Ok(Verdict::Good)
}

fn verify(args: &VerifyArgs, out: &mut Out) -> Result<Verdict, WebhookError> {
    let secrets = [args.delivery.secret()?];
    let now = args.delivery.now()?;
    let (headers, body) = match (args.delivery.source(), &args.headers) {
        (Source::Event(path), _) => {
            let event = Event::read(path)?;
            (event.headers, event.body)
        }
        (Source::Body(path), Some(headers)) if is_stdin(path) && is_stdin(headers) => {
            return Err(WebhookError::StdinTwice);
        }
        (Source::Body(path), Some(headers)) => (read_headers(headers)?, read(path)?),
        (Source::Body(path), None) => (Headers::new(), read(path)?),
    };
    let checked = match (args.delivery.provider.verify)(&secrets, &headers, &body, now) {
        Ok(verified) => Checked {
            verified: true,
            delivery_id: Some(verified.delivery().id.clone()),
            reason: None,
        },
        Err(error) => Checked {
            verified: false,
            delivery_id: None,
            reason: Some(error.to_string()),
        },
    };
    out.show(&checked)?;
    Ok(Verdict::when(checked.verified))
}

enum Source<'a> {
    Body(&'a Path),
    Event(&'a Path),
}

impl DeliveryArgs {
    fn source(&self) -> Source<'_> {
        match (&self.input.body, &self.input.event) {
            (_, Some(event)) => Source::Event(event),
            (body, None) => Source::Body(body.as_deref().unwrap_or(Path::new("-"))),
        }
    }

    fn now(&self) -> Result<Timestamp, WebhookError> {
        Ok(self
            .at
            .map_or_else(|| Ok(Timestamp::now()), Timestamp::from_second)?)
    }

    fn secret(&self) -> Result<Secret, WebhookError> {
        let named = self.secret_env.as_deref();
        let name = named.unwrap_or(self.provider.secret_name()).to_owned();
        let Ok(text) = std::env::var(&name) else {
            return Err(WebhookError::NoSecret { name });
        };
        (self.provider.secret)(&text).map_err(|source| WebhookError::Secret { name, source })
    }
}

fn signed_headers(
    args: &SignArgs,
    secret: &Secret,
    now: Timestamp,
    body: &[u8],
) -> BTreeMap<&'static str, String> {
    let provider = args.delivery.provider;
    let id = args.id.clone();
    let id = id.unwrap_or_else(|| format!("{}{}", provider.id_prefix, uuid::Uuid::now_v7()));
    let mut signed: BTreeMap<_, _> = (provider.sign)(secret, &id, now, body).into_iter().collect();
    signed.insert("content-type", "application/json".to_owned());
    signed
}

fn curl_command(
    url: &str,
    headers: &BTreeMap<&'static str, String>,
    path: &Path,
    body: &[u8],
) -> Result<String, WebhookError> {
    let mut command = format!("curl -sS -X POST {}", quoted(url));
    for (name, value) in headers {
        command.push_str(&format!(" \\\n  -H {}", quoted(&format!("{name}: {value}"))));
    }
    // A body from stdin is gone by the time curl runs, so it goes into the command.
    let data = if is_stdin(path) {
        let text = std::str::from_utf8(body).map_err(|_| WebhookError::NotText)?;
        format!("--data-raw {}", quoted(text))
    } else {
        format!("--data-binary {}", quoted(&format!("@{}", path.display())))
    };
    Ok(format!("{command} \\\n  {data}"))
}

/// One word of a POSIX shell.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

fn read(path: &Path) -> Result<Vec<u8>, InputError> {
    input::bytes(path, MAX_BODY_BYTES as u64)
}

fn read_headers(path: &Path) -> Result<Headers, WebhookError> {
    let bytes = read(path)?;
    let refuse = |line: &str| WebhookError::Header {
        path: path.to_owned(),
        line: line.to_owned(),
    };
    if bytes.trim_ascii_start().starts_with(b"{") {
        let object: Map<String, Value> =
            serde_json::from_slice(&bytes).map_err(|source| WebhookError::Json {
                path: path.to_owned(),
                source,
            })?;
        let header = |(name, value): (&String, &Value)| {
            let value = value.as_str().ok_or_else(|| refuse(name))?;
            Ok((name.to_ascii_lowercase(), value.to_owned()))
        };
        return object.iter().map(header).collect();
    }
    let text = String::from_utf8_lossy(&bytes);
    let header = |line: &str| {
        let (name, value) = line.split_once(':').ok_or_else(|| refuse(line))?;
        Ok((name.trim().to_ascii_lowercase(), value.trim().to_owned()))
    };
    text.lines()
        .filter(|line| !line.trim().is_empty())
        .map(header)
        .collect()
}

/// An API Gateway event of payload format 2.0, as far as a signature is concerned.
struct Event {
    whole: Map<String, Value>,
    headers: Headers,
    body: Vec<u8>,
}

impl Event {
    fn read(path: &Path) -> Result<Self, WebhookError> {
        let refuse = |problem| WebhookError::Event {
            path: path.to_owned(),
            problem,
        };
        let bytes = input::bytes(path, MAX_EVENT_BYTES)?;
        let whole: Value = serde_json::from_slice(&bytes).map_err(|source| WebhookError::Json {
            path: path.to_owned(),
            source,
        })?;
        let Value::Object(whole) = whole else {
            return Err(refuse("it is not an object"));
        };
        let Some(Value::String(body)) = whole.get("body") else {
            return Err(refuse("it has no text named body"));
        };
        let body = match whole.get("isBase64Encoded") {
            Some(Value::Bool(true)) => STANDARD
                .decode(body)
                .map_err(|_| refuse("its body is not base64"))?,
            _ => body.clone().into_bytes(),
        };
        if body.len() > MAX_BODY_BYTES {
            return Err(WebhookError::BodyTooLarge {
                path: path.to_owned(),
            });
        }
        let mut headers = Headers::new();
        if let Some(Value::Object(object)) = whole.get("headers") {
            let texts = object
                .iter()
                .filter_map(|(name, value)| Some((name, value.as_str()?)));
            headers.extend(texts.map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned())));
        }
        Ok(Self { whole, headers, body })
    }

    /// Puts headers in, instead of any of their names; names become lower case, as API Gateway sends them.
    fn set_headers(&mut self, headers: BTreeMap<&'static str, String>) {
        self.headers
            .extend(headers.into_iter().map(|(name, value)| (name.to_owned(), value)));
        let headers = self
            .headers
            .iter()
            .map(|(name, value)| (name.clone(), Value::from(value.as_str())))
            .collect();
        self.whole.insert("headers".to_owned(), Value::Object(headers));
    }
}
