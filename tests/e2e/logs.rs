//! What the functions write to their logs.

use serde_json::{Value, json};

use crate::github::{account, purchased};
use crate::webhooks::{Delivery, ENTITLEMENT, created};
use crate::world::{PLAN, SKU, SOON, World, alongside, eventually, unique};

/// Looks at everything logged so far, so whatever tests ran before this one are covered as well.
#[tokio::test]
async fn no_secret_no_body_and_no_address_is_logged() {
    let world = alongside().await;
    let env = world.env;
    let marker = unique("marker");
    let address = format!("{marker}@customers.example");

    let tenant = world.tenant("logged").await;
    let mut accepted = created(&unique("logged"), SKU, PLAN);
    accepted["data"]["contact"] = json!(address);
    let mut mistyped = accepted.clone();
    mistyped["data"] = json!(address);
    let mut github = purchased(account());
    github["marketplace_purchase"]["plan"] = json!(address);
    let forged = Delivery::standard(env, ENTITLEMENT, accepted.to_string()).with("webhook-id", "other");
    for (delivery, status) in [
        (Delivery::standard(env, ENTITLEMENT, accepted.to_string()), 200),
        (Delivery::standard(env, ENTITLEMENT, mistyped.to_string()), 400),
        (Delivery::standard(env, ENTITLEMENT, address.as_str()), 400),
        (
            Delivery::standard(env, ENTITLEMENT, format!("{{\"{address}\":no}}")),
            400,
        ),
        (Delivery::github(env, purchased(account()).to_string()), 200),
        (Delivery::github(env, github.to_string()), 400),
        (forged, 400),
    ] {
        let answer = world.post(&delivery).await;
        assert_eq!(answer.status, status, "{answer:?}");
    }
    let action_id = unique("logged");
    let parameters = json!({ "service": marker, "owner": address });
    let malformed = world.send(&tenant, &address).await;
    world
        .send(&tenant, tenant.signal(&action_id, "restart-service", parameters))
        .await;
    world
        .settled(&tenant.account, &malformed, &["action_refused"])
        .await;
    world
        .settled(&tenant.account, &action_id, &["action_refused"])
        .await;
    world
        .invoke(&env.policy_upgrade, &json!({ "ontology": address }))
        .await;

    let answer = json!({ "SecretId": env.signing_key_secret_id });
    let signing_key = world
        .aws_json("secretsmanager", "secretsmanager.GetSecretValue", &answer)
        .await;
    let pem = signing_key["SecretString"].as_str().unwrap();
    let mut forbidden: Vec<String> = pem
        .lines()
        .filter(|line| !line.starts_with('-'))
        .map(str::to_owned)
        .collect();
    assert!(!forbidden.is_empty());
    for secret in [&env.standard_secret, &env.github_secret, &env.handler_secret] {
        forbidden.push(secret.trim_start_matches("whsec_").to_owned());
    }
    forbidden.extend([
        marker,
        "whsec_".to_owned(),
        "@email.com".to_owned(),
        "@gmail.com".to_owned(),
    ]);

    // Each function's log holds what it must, so an empty or unread log cannot pass.
    for (function, shows) in [
        (&env.entitlement, tenant.account.as_str()),
        (&env.governor, "action_refused"),
        (&env.policy_upgrade, "policy in force"),
    ] {
        eventually(&format!("{function} to have logged {shows}"), SOON, || async {
            let log = log(&world, function).await;
            log.iter()
                .any(|line| line.contains(shows))
                .then_some(())
                .ok_or_else(|| format!("{} lines", log.len()))
        })
        .await;
    }
    for function in [
        &env.entitlement,
        &env.cancel,
        &env.governor,
        &env.health,
        &env.policy_upgrade,
    ] {
        for line in log(&world, function).await {
            for text in &forbidden {
                assert!(
                    !line.contains(text.as_str()),
                    "{function} logged {text:?}: {line}"
                );
            }
        }
    }
}

/// A function's log, as CloudWatch Logs has it.
pub(crate) async fn log(world: &World, function: &str) -> Vec<String> {
    let (mut lines, mut token) = (Vec::new(), Value::Null);
    loop {
        let mut ask = json!({ "logGroupName": format!("/aws/lambda/{function}"), "limit": 10_000 });
        if !token.is_null() {
            ask["nextToken"] = token;
        }
        let mut page = world
            .aws_json("logs", "Logs_20140328.FilterLogEvents", &ask)
            .await;
        let events = page["events"].as_array().unwrap();
        lines.extend(
            events
                .iter()
                .map(|event| event["message"].as_str().unwrap().to_owned()),
        );
        token = page["nextToken"].take();
        if token.is_null() {
            return lines;
        }
    }
}
