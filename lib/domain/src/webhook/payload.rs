//! What a verified delivery says, as a typed event: parse, don't validate.

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::signature::Verified;
use crate::account::{AccountId, PlanType, SkuId};

/// Region of a subscription whose sender names none.
pub const DEFAULT_REGION: &str = "us-east-1";

/// Why a delivery could not be understood. The message names the field.
#[derive(Debug, thiserror::Error)]
pub enum PayloadError {
    /// The body is empty.
    #[error("body is empty")]
    Empty,
    /// The body is not JSON, or a field is missing or of the wrong type.
    #[error("body field `{field}`: {source}")]
    Field {
        /// Path of the field, `.` for the whole body.
        field: String,
        /// What the JSON reader said.
        #[source]
        source: serde_json::Error,
    },
}

/// What a customer bought, in the words of whoever says so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PlanReference {
    /// Our own SKU and plan.
    Canonical {
        /// The product.
        sku_id: SkuId,
        /// The plan of the product.
        plan_type: PlanType,
    },
    /// A provider's own plan id; the registry's alias says which SKU and plan it means.
    Provider {
        /// Name of the provider.
        provider: &'static str,
        /// The provider's id of the plan.
        plan_id: String,
    },
}

/// What a marketplace tells us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WebhookEvent {
    /// A customer subscribed.
    Subscribed {
        /// The customer.
        account_id: AccountId,
        /// What was bought.
        plan: PlanReference,
        /// Where the customer wants it.
        region: String,
    },
    /// A customer cancelled.
    Cancelled {
        /// The customer.
        account_id: AccountId,
        /// The product, when the sender names it in our words.
        sku_id: Option<SkuId>,
    },
    /// Nothing we act on; answered with success so that the sender does not repeat it for days.
    Ignored {
        /// Why.
        reason: String,
    },
}

fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, PayloadError> {
    if body.is_empty() {
        return Err(PayloadError::Empty);
    }
    let mut reader = serde_json::Deserializer::from_slice(body);
    let value = serde_path_to_error::deserialize(&mut reader).map_err(|e| {
        // The path tracker writes `?` when reading stopped before any field.
        let path = e.path().to_string();
        PayloadError::Field {
            field: if path == "?" { ".".to_owned() } else { path },
            source: e.into_inner(),
        }
    })?;
    reader.end().map_err(|source| PayloadError::Field {
        field: ".".to_owned(),
        source,
    })?;
    Ok(value)
}

#[derive(Deserialize)]
struct Kind {
    r#type: String,
}

#[derive(Deserialize)]
struct Envelope<T> {
    data: T,
}

#[derive(Deserialize)]
struct Subscription {
    account_id: AccountId,
    sku_id: SkuId,
    plan_type: PlanType,
    region: Option<String>,
}

#[derive(Deserialize)]
struct Cancellation {
    account_id: AccountId,
    sku_id: Option<SkuId>,
}

/// Reads a Standard Webhooks body: `{"type": …, "timestamp": …, "data": {…}}`. Unknown fields are ignored.
///
/// # Errors
/// [`PayloadError`] naming the field that is missing or mistyped.
pub fn standard(delivery: &Verified<'_>) -> Result<WebhookEvent, PayloadError> {
    let kind: Kind = read(delivery.body())?;
    match kind.r#type.as_str() {
        "entitlement.created" => {
            let Envelope { data } = read::<Envelope<Subscription>>(delivery.body())?;
            Ok(WebhookEvent::Subscribed {
                account_id: data.account_id,
                plan: PlanReference::Canonical {
                    sku_id: data.sku_id,
                    plan_type: data.plan_type,
                },
                region: data.region.unwrap_or_else(|| DEFAULT_REGION.to_owned()),
            })
        }
        "entitlement.cancelled" => {
            let Envelope { data } = read::<Envelope<Cancellation>>(delivery.body())?;
            Ok(WebhookEvent::Cancelled {
                account_id: data.account_id,
                sku_id: data.sku_id,
            })
        }
        other => Ok(WebhookEvent::Ignored {
            reason: format!("unknown event type{}", named(other)),
        }),
    }
}

#[derive(Deserialize)]
struct GithubAction {
    action: String,
}

#[derive(Deserialize)]
struct GithubDelivery {
    marketplace_purchase: GithubPurchase,
}

#[derive(Deserialize)]
struct GithubPurchase {
    account: GithubAccount,
    plan: GithubPlan,
}

#[derive(Deserialize)]
struct GithubAccount {
    id: NumberOrText,
}

#[derive(Deserialize)]
struct GithubPlan {
    id: NumberOrText,
}

/// GitHub sends ids as numbers; proxies and older payloads send them as text.
#[derive(Deserialize)]
#[serde(untagged)]
enum NumberOrText {
    Number(u64),
    Text(String),
}

impl NumberOrText {
    fn text(self) -> String {
        match self {
            Self::Number(number) => number.to_string(),
            Self::Text(text) => text,
        }
    }
}

/// Reads a GitHub Marketplace `marketplace_purchase` body. The account is `github-<account id>`: GitHub's numeric ids
/// are its only stable ones, and the prefix keeps them apart from other marketplaces' accounts.
///
/// # Errors
/// [`PayloadError`] naming the field that is missing or mistyped.
pub fn github(delivery: &Verified<'_>) -> Result<WebhookEvent, PayloadError> {
    let GithubAction { action } = read(delivery.body())?;
    if action != "purchased" && action != "cancelled" {
        return Ok(WebhookEvent::Ignored {
            reason: format!("unhandled GitHub action{}", named(&action)),
        });
    }
    let GithubDelivery { marketplace_purchase } = read(delivery.body())?;
    let account_id =
        AccountId::parse(format!("github-{}", marketplace_purchase.account.id.text())).map_err(|e| {
            PayloadError::Field {
                field: "marketplace_purchase.account.id".to_owned(),
                source: serde::de::Error::custom(e),
            }
        })?;
    if action == "cancelled" {
        return Ok(WebhookEvent::Cancelled {
            account_id,
            sku_id: None,
        });
    }
    let plan = PlanReference::Provider {
        provider: "github",
        plan_id: marketplace_purchase.plan.id.text(),
    };
    Ok(WebhookEvent::Subscribed {
        account_id,
        plan,
        region: DEFAULT_REGION.to_owned(),
    })
}

/// A sender's own word for a kind of event, quoted only where it looks like one: a receipt keeps it for ever.
fn named(word: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    if word.len() <= 64 && word.bytes().all(plain) {
        format!(" \"{word}\"")
    } else {
        String::new()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use jiff::Timestamp;
    use proptest::prelude::*;

    use super::super::signature::{self, Secret};
    use super::*;

    const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

    fn parse_standard(body: &[u8]) -> Result<WebhookEvent, String> {
        let now = Timestamp::from_second(1_700_000_000).unwrap();
        let secret = Secret::standard(SECRET).unwrap();
        let headers: BTreeMap<String, String> = [
            (signature::WEBHOOK_ID, "m".to_owned()),
            (signature::WEBHOOK_TIMESTAMP, "1700000000".to_owned()),
            (
                signature::WEBHOOK_SIGNATURE,
                signature::sign_standard(&secret, "m", now, body),
            ),
        ]
        .map(|(k, v)| (k.to_owned(), v))
        .into();
        let verified = signature::verify_standard(&[secret], &headers, body, now).unwrap();
        standard(&verified).map_err(|e| e.to_string())
    }

    fn parse_github(body: &[u8]) -> Result<WebhookEvent, String> {
        let secret = Secret::github("s").unwrap();
        let headers: BTreeMap<String, String> = [
            (signature::GITHUB_DELIVERY, "d".to_owned()),
            (signature::GITHUB_SIGNATURE, signature::sign_github(&secret, body)),
        ]
        .map(|(k, v)| (k.to_owned(), v))
        .into();
        let verified = signature::verify_github(&[secret], &headers, body).unwrap();
        github(&verified).map_err(|e| e.to_string())
    }

    #[track_caller]
    fn refuses(got: Result<WebhookEvent, String>, expected: &str) {
        let message = got.unwrap_err();
        assert!(
            message.starts_with(expected),
            "{message:?} does not begin with {expected:?}"
        );
    }

    #[test]
    fn subscription() {
        let got = parse_standard(
            br#"{"type":"entitlement.created","timestamp":"2026-01-01T00:00:00Z","extra":[1],
                "data":{"account_id":"customer-123","sku_id":"marketplace-sku-456","plan_type":"professional","seats":5}}"#,
        );
        assert_eq!(
            got,
            Ok(WebhookEvent::Subscribed {
                account_id: AccountId::parse("customer-123").unwrap(),
                plan: PlanReference::Canonical {
                    sku_id: SkuId::parse("marketplace-sku-456").unwrap(),
                    plan_type: PlanType::parse("professional").unwrap(),
                },
                region: "us-east-1".to_owned(),
            })
        );
    }

    #[test]
    fn cancellation_and_unknown_types() {
        assert_eq!(
            parse_standard(br#"{"type":"entitlement.cancelled","data":{"account_id":"c"}}"#),
            Ok(WebhookEvent::Cancelled {
                account_id: AccountId::parse("c").unwrap(),
                sku_id: None
            })
        );
        assert_eq!(
            parse_standard(br#"{"type":"invoice.paid","data":7}"#),
            Ok(WebhookEvent::Ignored {
                reason: "unknown event type \"invoice.paid\"".to_owned()
            })
        );
    }

    #[test]
    fn a_kind_of_event_that_is_no_word_is_not_quoted() {
        for body in [
            r#"{"type":"me@example.org"}"#,
            r#"{"type":"a\u0007"}"#,
            &format!(r#"{{"type":"{}"}}"#, "x".repeat(65)),
        ] {
            let ignored = WebhookEvent::Ignored {
                reason: "unknown event type".to_owned(),
            };
            assert_eq!(parse_standard(body.as_bytes()), Ok(ignored), "{body}");
        }
    }

    #[test]
    fn bad_bodies_name_the_field() {
        refuses(parse_standard(b""), "body is empty");
        refuses(parse_standard(b"{"), "body field `.`: EOF while parsing");
        refuses(parse_standard(b"\xff"), "body field `.`: expected value");
        refuses(parse_standard(b"{}"), "body field `.`: missing field `type`");
        refuses(
            parse_standard(br#"{"type":5}"#),
            "body field `type`: invalid type",
        );
        refuses(
            parse_standard(br#"{"type":"x"} x"#),
            "body field `.`: trailing characters",
        );
        refuses(
            parse_standard(br#"{"type":"entitlement.created"}"#),
            "body field `.`: missing field `data`",
        );
        let body = br#"{"type":"entitlement.created","data":{"account_id":5,"sku_id":"s","plan_type":"p"}}"#;
        refuses(
            parse_standard(body),
            "body field `data.account_id`: invalid type: integer `5`, expected a string",
        );
        let body = br#"{"type":"entitlement.created","data":{"account_id":"","sku_id":"s","plan_type":"p"}}"#;
        refuses(
            parse_standard(body),
            "body field `data.account_id`: account_id is empty",
        );
        let body = br#"{"type":"entitlement.created","data":{"account_id":"a","account_id":"b"}}"#;
        refuses(parse_standard(body), "body field `data");
        let deep = format!(r#"{{"type":{}"#, "[".repeat(100_000));
        refuses(parse_standard(deep.as_bytes()), "body field `type`: invalid type");
        let deep = format!(r#"{{"other":{}"#, "[".repeat(100_000));
        refuses(parse_standard(deep.as_bytes()), "body field `");
    }

    #[test]
    fn github_deliveries() {
        let purchased =
            br#"{"action":"purchased","marketplace_purchase":{"account":{"id":18404719},"plan":{"id":435}}}"#;
        assert_eq!(
            parse_github(purchased),
            Ok(WebhookEvent::Subscribed {
                account_id: AccountId::parse("github-18404719").unwrap(),
                plan: PlanReference::Provider {
                    provider: "github",
                    plan_id: "435".to_owned()
                },
                region: "us-east-1".to_owned(),
            })
        );
        let cancelled = br#"{"action":"cancelled","marketplace_purchase":{"account":{"id":"18404719"},"plan":{"id":686}}}"#;
        assert_eq!(
            parse_github(cancelled),
            Ok(WebhookEvent::Cancelled {
                account_id: AccountId::parse("github-18404719").unwrap(),
                sku_id: None
            })
        );
        assert_eq!(
            parse_github(br#"{"action":"changed"}"#),
            Ok(WebhookEvent::Ignored {
                reason: "unhandled GitHub action \"changed\"".to_owned()
            })
        );
        refuses(
            parse_github(
                br#"{"action":"purchased","marketplace_purchase":{"account":{"id":[]},"plan":{"id":1}}}"#,
            ),
            "body field `marketplace_purchase.account.id`:",
        );
    }

    proptest! {
        #[test]
        fn no_body_panics(body: Vec<u8>) {
            let _ = parse_standard(&body);
            let _ = parse_github(&body);
        }
    }
}
