//! The secrets of webhooks: which ones a function starts with, and two at once while one is rotated.

use domain::webhook::providers::standard::sign_standard;
use domain::webhook::signature::Secret;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::webhooks::{ENTITLEMENT, created};
use crate::world::{PLAN, SKU, World, alongside, operation, unique};

/// A secret of its own with these values, one after the other, and its id.
async fn secret(world: &World, values: &[&str]) -> String {
    let name = unique("webhook-secret");
    let (first, rest) = values.split_first().unwrap();
    let create = world.secrets.create_secret().name(&name);
    create.secret_string(*first).send().await.unwrap();
    for value in rest {
        let put = world.secrets.put_secret_value().secret_id(&name);
        put.secret_string(*value).send().await.unwrap();
    }
    name
}

/// A copy of `entitlement` that has another secret for Standard Webhooks.
struct Copy<'a> {
    world: &'a World,
    name: String,
}

impl<'a> Copy<'a> {
    async fn with_secret(world: &'a World, secret_id: &str) -> Copy<'a> {
        let name = world
            .entitlement_with(&[("STANDARD_WEBHOOK_SECRET_ID", secret_id)])
            .await;
        Copy { world, name }
    }

    /// Invokes it with a delivery; the answer, or what Lambda says of a function that failed.
    async fn deliver(&self, account: &str, secret: &str) -> Result<(u64, Value), Value> {
        let (id, now) = (unique("msg"), Timestamp::now());
        let body = created(account, SKU, PLAN).to_string();
        let secret = Secret::standard(secret).unwrap();
        let event = json!({
            "version": "2.0", "rawPath": ENTITLEMENT, "body": body, "isBase64Encoded": false,
            "headers": {
                "webhook-id": id, "webhook-timestamp": now.as_second().to_string(),
                "webhook-signature": sign_standard(&secret, &id, now, body.as_bytes()),
            },
            "requestContext": { "http": { "method": "POST", "path": ENTITLEMENT } },
        });
        let invoke = self.world.lambda.invoke().function_name(&self.name);
        let answer = invoke
            .payload(event.to_string().into_bytes().into())
            .send()
            .await
            .unwrap();
        let payload: Value = serde_json::from_slice(&answer.payload.unwrap().into_inner()).unwrap();
        if answer.function_error.is_some() {
            return Err(payload);
        }
        let said = serde_json::from_str(payload["body"].as_str().unwrap()).unwrap();
        Ok((payload["statusCode"].as_u64().unwrap(), said))
    }

    async fn gone(self) {
        let delete = self.world.lambda.delete_function();
        delete.function_name(&self.name).send().await.unwrap();
    }
}

const OLD: &str = "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYX";
const NEW: &str = "whsec_GBkaGxwdHh8gISIjJCUmJygpKissLS4v";
const OTHER: &str = "whsec_MDEyMzQ1Njc4OTo7PD0+P0BBQkNERUZH";

/// AWSCURRENT and AWSPREVIOUS: while a sender takes up the new secret, both count.
#[tokio::test]
async fn both_secrets_count_while_one_is_rotated() {
    let world = alongside().await;
    let secret = secret(&world, &[OLD, NEW]).await;
    let function = Copy::with_secret(&world, &secret).await;
    for signed_with in [OLD, NEW] {
        let (status, receipt) = function.deliver(&unique("rotating"), signed_with).await.unwrap();
        assert_eq!(
            (status, operation(&receipt)),
            (200, "entitlement_active"),
            "{receipt}"
        );
    }
    let (status, problem) = function.deliver(&unique("rotating"), OTHER).await.unwrap();
    assert_eq!(
        (status, &problem["detail"]),
        (400, &json!("no signature matches"))
    );
    function.gone().await;
}

/// A function that is configured with a secret that would accept anybody serves nothing.
#[tokio::test]
async fn a_secret_that_would_accept_anybody_is_not_served_with() {
    let world = alongside().await;
    let empty: String = ["whsec", "_"].concat();
    for value in [
        empty.as_str(),
        " ",
        "whsec_AAAA",
        OLD.trim_start_matches("whsec_"),
    ] {
        let secret = secret(&world, &[value]).await;
        let function = Copy::with_secret(&world, &secret).await;
        let account = unique("not-started");
        let refused = function.deliver(&account, OLD).await;
        let refused = refused.unwrap_err();
        let told = refused["errorMessage"].as_str().unwrap();
        assert!(told.contains(&secret), "{value:?}: {refused}");
        assert_eq!(world.table_items(&account).await, 0, "{value:?}");
        function.gone().await;
    }
}
