//! The secrets of webhooks: which ones are used, and two at once while one is rotated.

use domain::webhook::providers::github::sign_github;
use domain::webhook::providers::standard::sign_standard;
use domain::webhook::signature::Secret;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::github::{account, purchased};
use crate::webhooks::{ENTITLEMENT, GITHUB, created};
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
    async fn with_secrets(world: &'a World, standard: &str, github: &str) -> Copy<'a> {
        let secrets = [
            ("STANDARD_WEBHOOK_SECRET_ID", standard),
            ("GITHUB_WEBHOOK_SECRET_ID", github),
        ];
        let name = world.entitlement_with(&secrets).await;
        Copy { world, name }
    }

    async fn with_secret(world: &'a World, secret_id: &str) -> Copy<'a> {
        let name = world
            .entitlement_with(&[("STANDARD_WEBHOOK_SECRET_ID", secret_id)])
            .await;
        Copy { world, name }
    }

    /// Invokes it with a delivery of a Standard Webhook; the answer, or what Lambda says of a function that failed.
    async fn deliver(&self, account: &str, secret: &str) -> Result<(u64, Value), Value> {
        let (id, now) = (unique("msg"), Timestamp::now());
        let body = created(account, SKU, PLAN).to_string();
        let secret = Secret::standard(secret).unwrap();
        let headers = json!({
            "webhook-id": id, "webhook-timestamp": now.as_second().to_string(),
            "webhook-signature": sign_standard(&secret, &id, now, body.as_bytes()),
        });
        self.invoke(ENTITLEMENT, &body, headers).await
    }

    /// Invokes it with a delivery of GitHub's.
    async fn deliver_github(&self, account: u64, secret: &str) -> Result<(u64, Value), Value> {
        let body = purchased(account).to_string();
        let secret = Secret::github(secret).unwrap();
        let headers = json!({
            "x-github-delivery": unique("delivery"), "x-github-event": "marketplace_purchase",
            "x-hub-signature-256": sign_github(&secret, body.as_bytes()),
        });
        self.invoke(GITHUB, &body, headers).await
    }

    async fn invoke(&self, path: &str, body: &str, headers: Value) -> Result<(u64, Value), Value> {
        let event = json!({
            "version": "2.0", "rawPath": path, "body": body, "isBase64Encoded": false, "headers": headers,
            "requestContext": { "http": { "method": "POST", "path": path } },
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

/// A value that was put a moment ago counts at once, in a function that has just read the one before, and the one before goes on
/// to count.
#[tokio::test]
async fn a_warm_function_takes_a_new_secret_at_once() {
    let world = alongside().await;
    let standard = secret(&world, &[OLD]).await;
    let github = secret(&world, &["the old one"]).await;
    let function = Copy::with_secrets(&world, &standard, &github).await;
    let granted = |answer: Result<(u64, Value), Value>| {
        let (status, receipt) = answer.unwrap();
        assert_eq!(
            (status, operation(&receipt)),
            (200, "entitlement_active"),
            "{receipt}"
        );
    };
    granted(function.deliver(&unique("before"), OLD).await);
    granted(function.deliver_github(account(), "the old one").await);
    // Who posts what nobody signed does not keep the new value from being seen.
    let (forged, _) = function.deliver(&unique("forged"), OTHER).await.unwrap();
    assert_eq!(forged, 400);
    for (id, new) in [(&standard, NEW), (&github, "the new one")] {
        let put = world.secrets.put_secret_value().secret_id(id);
        put.secret_string(new).send().await.unwrap();
    }
    granted(function.deliver_github(account(), "the new one").await);
    granted(function.deliver_github(account(), "the old one").await);
    granted(function.deliver(&unique("after"), NEW).await);
    granted(function.deliver(&unique("after"), OLD).await);
    function.gone().await;
}

/// A value that waited as pending, and was made current: the one before counts for a day from then on.
#[tokio::test]
async fn a_promoted_secret_leaves_the_one_before_its_day() {
    let world = alongside().await;
    let id = secret(&world, &[OLD]).await;
    let put = world.secrets.put_secret_value().secret_id(&id).secret_string(NEW);
    let pending = put.version_stages("AWSPENDING").send().await.unwrap();
    let current = world
        .secrets
        .get_secret_value()
        .secret_id(&id)
        .send()
        .await
        .unwrap();
    let promote = world.secrets.update_secret_version_stage().secret_id(&id);
    let promote = promote
        .version_stage("AWSCURRENT")
        .set_move_to_version_id(pending.version_id);
    promote
        .set_remove_from_version_id(current.version_id)
        .send()
        .await
        .unwrap();
    let function = Copy::with_secret(&world, &id).await;
    for signed_with in [NEW, OLD] {
        let (status, receipt) = function.deliver(&unique("promoted"), signed_with).await.unwrap();
        assert_eq!(
            (status, operation(&receipt)),
            (200, "entitlement_active"),
            "{receipt}"
        );
    }
    function.gone().await;
}

/// A secret that would accept anybody, or nobody, turns its provider's deliveries away; the other provider goes on.
#[tokio::test]
async fn a_secret_that_cannot_be_used_holds_up_its_provider_alone() {
    let world = alongside().await;
    let empty: String = ["whsec", "_"].concat();
    let (versioned, object) = (format!("v1,{OLD}"), json!({ "secret": OLD }).to_string());
    let github = secret(&world, &["said to GitHub\n"]).await;
    for value in [
        empty.as_str(),
        " ",
        "whsec_AAAA",
        OLD.trim_start_matches("whsec_"),
        versioned.as_str(),
        object.as_str(),
    ] {
        let standard = secret(&world, &[value]).await;
        let function = Copy::with_secrets(&world, &standard, &github).await;
        let customer = unique("not-taken");
        let (status, problem) = function.deliver(&customer, OLD).await.unwrap();
        assert_eq!(status, 503, "{value:?}: {problem}");
        assert_eq!(world.table_items(&customer).await, 0, "{value:?}");
        let (status, receipt) = function
            .deliver_github(account(), "said to GitHub")
            .await
            .unwrap();
        assert_eq!(
            (status, operation(&receipt)),
            (200, "entitlement_active"),
            "{receipt}"
        );
        // Once a value is put that can be used, it is.
        let put = world.secrets.put_secret_value().secret_id(&standard);
        put.secret_string(format!("{OLD}\n")).send().await.unwrap();
        let answer = function.deliver(&customer, OLD).await.unwrap();
        assert_eq!(
            (answer.0, operation(&answer.1)),
            (200, "entitlement_active"),
            "{value:?}"
        );
        function.gone().await;
    }
    for value in [" ", "{\"secret\": \"said to GitHub\"}"] {
        let (standard, github) = (secret(&world, &[OLD]).await, secret(&world, &[value]).await);
        let function = Copy::with_secrets(&world, &standard, &github).await;
        let (status, problem) = function
            .deliver_github(account(), "said to GitHub")
            .await
            .unwrap();
        assert_eq!(status, 503, "{value:?}: {problem}");
        let (status, receipt) = function.deliver(&unique("goes-on"), OLD).await.unwrap();
        assert_eq!(
            (status, operation(&receipt)),
            (200, "entitlement_active"),
            "{receipt}"
        );
        function.gone().await;
    }
}
