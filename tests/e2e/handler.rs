//! Where the governor may call: one that is configured with an address it must not reach does not start.

use aws_sdk_lambda::types::{Environment, FunctionCode, Runtime};
use serde_json::{Value, json};

use crate::world::{World, alongside, unique};

/// A copy of `governor` that never ran, with some variables changed; its name.
async fn governor_with(world: &World, changes: &[(&str, &str)]) -> String {
    let get = world.lambda.get_function_configuration();
    let original = get.function_name(&world.env.governor).send().await.unwrap();
    let mut variables = original.environment.unwrap().variables.unwrap();
    for (name, value) in changes {
        variables.insert((*name).to_owned(), (*value).to_owned());
    }
    let stack = world.env.governor.strip_suffix("-governor").unwrap();
    let code = FunctionCode::builder().s3_bucket(format!("{stack}-artifacts"));
    let name = unique("governor");
    let create = world.lambda.create_function().function_name(&name);
    create
        .runtime(Runtime::Providedal2023)
        .role("arn:aws:iam::000000000000:role/test")
        .handler("bootstrap")
        .timeout(15)
        .code(code.s3_key("governor.zip").build())
        .environment(Environment::builder().set_variables(Some(variables)).build())
        .send()
        .await
        .unwrap();
    name
}

/// Asks such a copy whether it can work for a tenant, and removes it: its answer, or what Lambda says of a function that did
/// not start.
async fn boot(
    world: &World,
    changes: &[(&str, &str)],
    account: &str,
    policy_hash: &str,
) -> Result<Value, Value> {
    let name = governor_with(world, changes).await;
    let event = json!({ "boot": { "account_id": account, "policy_hash": policy_hash } });
    let invoke = world.lambda.invoke().function_name(&name);
    let answer = invoke
        .payload(event.to_string().into_bytes().into())
        .send()
        .await
        .unwrap();
    let payload = serde_json::from_slice(&answer.payload.unwrap().into_inner()).unwrap();
    let delete = world.lambda.delete_function().function_name(&name);
    delete.send().await.unwrap();
    match answer.function_error {
        None => Ok(payload),
        Some(_) => Err(payload),
    }
}

#[tokio::test]
async fn a_governor_starts_only_where_it_may_call() {
    let world = alongside().await;
    let tenant = world.tenant("may-call").await;
    let (account, hash) = (&tenant.account, &tenant.policy_hash);
    let refused = [
        [("HANDLER_BASE_URL", "https://169.254.169.254/latest/meta-data")],
        [("HANDLER_BASE_URL", "https://[fd00:ec2::254]")],
        [("HANDLER_BASE_URL", "http://handlers.example.com")],
        [("HANDLER_BASE_URL", "https://ann:secret@handlers.example.com")],
        [("HANDLER_NETWORKS", "")],
        [("HANDLER_NETWORKS", "127.0.0.1")],
        [("ROLLBACK_BUDGET_MS", "15000")],
    ];
    for change in &refused {
        let answer = boot(&world, change, account, hash).await;
        assert!(answer.is_err(), "{change:?}: {answer:?}");
    }
    // The same with what the stack sets, and with a name, which is looked at when it is called.
    for change in [
        [("ROLLBACK_BUDGET_MS", "10000")],
        [("HANDLER_BASE_URL", "https://handlers.example.com")],
    ] {
        let answer = boot(&world, &change, account, hash).await;
        assert_eq!(answer, Ok(json!({ "ready": true })), "{change:?}");
    }
}
