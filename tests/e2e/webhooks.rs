//! Deliveries as marketplaces post them, signed, and what is answered.

use domain::webhook::providers::github::{GITHUB_DELIVERY, GITHUB_SIGNATURE, sign_github};
use domain::webhook::providers::standard::{WEBHOOK_ID, WEBHOOK_SIGNATURE, WEBHOOK_TIMESTAMP, sign_standard};
use domain::webhook::signature::Secret;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use crate::world::{Environment, World, unique};

pub(crate) const ENTITLEMENT: &str = "/webhooks/entitlement";
pub(crate) const CANCEL: &str = "/webhooks/cancel";
pub(crate) const GITHUB: &str = "/webhooks/github";

/// A delivery, ready to be posted any number of times.
#[derive(Debug, Clone)]
pub(crate) struct Delivery {
    path: &'static str,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
}

impl Delivery {
    /// A Standard Webhooks delivery.
    pub(crate) fn standard(env: &Environment, path: &'static str, body: impl Into<Vec<u8>>) -> Self {
        Self::standard_at(env, path, body, SignedDuration::ZERO)
    }

    /// A Standard Webhooks delivery, signed so long ago.
    pub(crate) fn standard_at(
        env: &Environment,
        path: &'static str,
        body: impl Into<Vec<u8>>,
        age: SignedDuration,
    ) -> Self {
        let (id, body, at) = (unique("msg"), body.into(), Timestamp::now() - age);
        let secret = Secret::standard(&env.standard_secret).unwrap();
        let headers = vec![
            (WEBHOOK_SIGNATURE, sign_standard(&secret, &id, at, &body)),
            (WEBHOOK_TIMESTAMP, at.as_second().to_string()),
            (WEBHOOK_ID, id),
        ];
        Self { path, headers, body }
    }

    /// A GitHub delivery.
    pub(crate) fn github(env: &Environment, body: impl Into<Vec<u8>>) -> Self {
        let (secret, body) = (Secret::github(&env.github_secret).unwrap(), body.into());
        let headers = vec![
            (GITHUB_SIGNATURE, sign_github(&secret, &body)),
            (GITHUB_DELIVERY, unique("delivery")),
            ("x-github-event", "marketplace_purchase".to_owned()),
        ];
        Self {
            path: GITHUB,
            headers,
            body,
        }
    }

    /// A customer subscribes.
    pub(crate) fn created(env: &Environment, account: &str, sku: &str, plan: &str) -> Self {
        Self::standard(env, ENTITLEMENT, created(account, sku, plan).to_string())
    }

    /// A customer cancels.
    pub(crate) fn cancelled(env: &Environment, account: &str, sku: &str) -> Self {
        let body = json!({
            "type": "entitlement.cancelled",
            "timestamp": Timestamp::now().to_string(),
            "data": { "account_id": account, "sku_id": sku },
        });
        Self::standard(env, CANCEL, body.to_string())
    }

    /// Something else about an entitlement, with what belongs to it in its data.
    pub(crate) fn entitlement(env: &Environment, event: &str, data: Value) -> Self {
        let body = json!({
            "type": format!("entitlement.{event}"),
            "timestamp": Timestamp::now().to_string(),
            "data": data,
        });
        Self::standard(env, ENTITLEMENT, body.to_string())
    }

    /// The same to another path.
    pub(crate) fn to(mut self, path: &'static str) -> Self {
        self.path = path;
        self
    }

    /// The same with one header changed.
    pub(crate) fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.retain(|(n, _)| *n != name);
        self.headers.push((name, value.into()));
        self
    }

    /// The same without a header.
    pub(crate) fn without(mut self, name: &'static str) -> Self {
        self.headers.retain(|(n, _)| *n != name);
        self
    }

    /// The value of a header.
    pub(crate) fn header(&self, name: &str) -> String {
        let found = self.headers.iter().find(|(n, _)| *n == name);
        found.map(|(_, value)| value.clone()).unwrap_or_default()
    }
}

/// Body of a subscription.
pub(crate) fn created(account: &str, sku: &str, plan: &str) -> Value {
    json!({
        "type": "entitlement.created",
        "timestamp": Timestamp::now().to_string(),
        "data": { "account_id": account, "sku_id": sku, "plan_type": plan, "region": "us-east-1" },
    })
}

/// What was answered.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) content_type: String,
    /// Seconds after which the sender shall come back, if it shall.
    pub(crate) retry_after: Option<String>,
    pub(crate) body: String,
}

impl Answer {
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }
}

impl World {
    pub(crate) async fn post(&self, delivery: &Delivery) -> Answer {
        let mut request = self.http.post(format!("{}{}", self.env.api_url, delivery.path));
        for (name, value) in &delivery.headers {
            request = request.header(*name, value);
        }
        let form = delivery.body.starts_with(b"payload=");
        let content_type = if form {
            "application/x-www-form-urlencoded"
        } else {
            "application/json"
        };
        let request = request.header("content-type", content_type);
        let answer = request.body(delivery.body.clone()).send().await.unwrap();
        let header = |name| {
            let value = answer.headers().get(name);
            value.map(|v| v.to_str().unwrap().to_owned())
        };
        Answer {
            status: answer.status().as_u16(),
            content_type: header("content-type").unwrap_or_default(),
            retry_after: header("retry-after"),
            body: answer.text().await.unwrap(),
        }
    }
}
