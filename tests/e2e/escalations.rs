//! Actions that wait for a person: how they get there, that they are listed, resolved on record or taken up again, and that
//! a letter on a dead-letter queue is lost wherever its way back is cut off: never.

use std::collections::BTreeMap;
use std::process::Command;

use aws::clients;
use aws::store::{Store, StoreError};
use aws_sdk_sqs::types::QueueAttributeName;
use domain::action::{Action, ActionEvent, DEAD_LETTERED};
use domain::signal::ActionId;
use domain::transaction::Plan;
use jiff::Timestamp;
use receipts::Signer;
use receipts::receipt::Draft;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::life::gone;
use crate::sweep::{abandoned, asked_for};
use crate::webhooks::Delivery;
use crate::world::{
    PATIENCE, Ran, SOON, Tenant, World, alone, alongside, eventually, operation, partition_of, unique,
};

const WHO: [&str; 2] = ["--who", "end-to-end"];

impl World {
    /// What is escalated of an account.
    async fn escalations(&self, account: &str) -> Vec<Value> {
        let list = ["escalations", "--format", "json", "--account-id", account];
        let ran = self.ggen(&list).await;
        let listed = ran.json()["escalations"].as_array().unwrap().clone();
        assert_eq!(ran.code, Some(i32::from(!listed.is_empty())), "{ran:?}");
        listed
    }

    async fn resolve(&self, action_id: &str, note: &str, more: &[&str]) -> Ran {
        let resolve = ["resolve", action_id, "--format", "json", "--note", note];
        self.ggen(&[&resolve[..], &WHO, more].concat()).await
    }

    async fn redrive(&self, account: &str, more: &[&str]) -> Ran {
        let redrive = ["redrive", "--format", "json", "--account-id", account];
        self.ggen(&[&redrive[..], &WHO, more].concat()).await
    }

    /// The same, with calls that go through the proxy under this name.
    async fn redrive_as(&self, name: &str, account: &str) -> Ran {
        let mut command = Command::new(&self.env.ggen);
        command
            .args(["redrive", "--format", "json", "--account-id", account])
            .args(WHO)
            .env("AWS_ENDPOINT_URL", &self.env.proxy_url)
            .env("AWS_SDK_UA_APP_ID", name);
        let ran = tokio::task::spawn_blocking(move || command.output()).await;
        let ran = ran.unwrap().unwrap();
        Ran {
            code: ran.status.code(),
            stdout: String::from_utf8(ran.stdout).unwrap(),
            stderr: String::from_utf8(ran.stderr).unwrap(),
        }
    }

    async fn audited(&self, account: &str) {
        let key = self.env.auditor_pub.to_str().unwrap();
        let audit = ["audit", "--account-id", account, "--public-key", key];
        self.ggen(&audit).await.ok();
    }

    async fn dead_letters_url(&self, tenant: &Tenant) -> String {
        let name = format!("{}-dlq", tenant.queue);
        let found = self.sqs.get_queue_url().queue_name(name).send().await;
        found.unwrap().queue_url.unwrap()
    }

    /// Puts a letter on a tenant's dead-letter queue, and gives SQS's id of it.
    async fn letter(&self, tenant: &Tenant, body: impl ToString) -> String {
        let send = self
            .sqs
            .send_message()
            .queue_url(self.dead_letters_url(tenant).await);
        let sent = send.message_body(body.to_string()).send().await.unwrap();
        sent.message_id.unwrap()
    }

    /// Letters of a tenant, hidden ones included.
    async fn letters(&self, tenant: &Tenant) -> u64 {
        let url = self.dead_letters_url(tenant).await;
        let mut all = 0;
        for count in [
            QueueAttributeName::ApproximateNumberOfMessages,
            QueueAttributeName::ApproximateNumberOfMessagesNotVisible,
        ] {
            all += self.queue_attribute(&url, count).await.parse::<u64>().unwrap();
        }
        all
    }

    /// A sweep of everything.
    async fn swept(&self) -> Value {
        let event = json!({ "probes": 1, "sweep": "everything" });
        eventually("a round that sweeps", SOON, || async {
            let mut report = self.invoke(&self.env.health, &event).await;
            match report.get("sweep") {
                Some(_) => Ok(report["sweep"].take()),
                None => Err(report.to_string()),
            }
        })
        .await
    }

    /// Writes what is written when an action is given up that came this far.
    async fn given_up(&self, tenant: &Tenant, action: &Action, came: &[ActionEvent], code: &'static str) {
        let store = Store::new(&clients::load().await, self.stack());
        let signer = Signer::from_pem(&self.signing_key().await).unwrap();
        let plan = |account: &domain::transaction::Account, now| {
            let held = account.tenant.as_ref().unwrap();
            let receipt_id = Uuid::now_v7();
            let mut action = Action {
                entitlement_id: held.entitlements.keys().next().cloned(),
                ..action.clone()
            };
            for event in came {
                action = action.next(event, receipt_id, now).unwrap().action;
            }
            let abandoned = ActionEvent::Abandoned { error_code: code };
            let ended = action.next(&abandoned, receipt_id, now).unwrap();
            let plan = Plan {
                actions: vec![ended.action.owned_by(Uuid::nil(), now)],
                drafts: vec![Draft::new(
                    receipt_id,
                    &tenant.account,
                    ended.receipt.unwrap(),
                    now,
                )],
                ..Plan::tenant(Some(held.written()))
            };
            Ok::<_, StoreError>((plan, ()))
        };
        let keys = domain::transaction::Keys::default();
        store
            .transact(&signer, &partition_of(&tenant.account), &keys, None, plan)
            .await
            .unwrap();
    }
}

/// A tenant with tables of its own, under a policy with these changes.
pub(crate) async fn dedicated(world: &World, name: &str, changes: &[(&str, &str)]) -> Tenant {
    let sku = unique(name);
    let named = format!("sku_id: {sku}");
    let changes = [&[("sku_id: dedicated-sku", named.as_str())], changes].concat();
    world.deploy_fixture("dedicated.yaml", &changes).await;
    world.tenant_of(name, &sku).await
}

#[tokio::test]
async fn a_rollback_that_always_fails_is_a_persons_in_the_end() {
    let world = alongside().await;
    let steers = "one_of: [succeed, fail, fail-unrecoverable]";
    let more = "one_of: [succeed, fail, fail-unrecoverable, fail-rollback]";
    let tenant = dedicated(&world, "exhausted", &[(steers, more)]).await;
    let (account, action_id) = (tenant.account.as_str(), unique("exhausted"));
    let fails = json!({ "service": "web", "outcome": "fail-rollback" });
    world
        .send(&tenant, tenant.signal(&action_id, "restart-service", fails))
        .await;
    let failed = ["action_failed", "action_failed"];
    let receipts = world.settled(account, &action_id, &failed).await;
    assert_eq!(
        (&receipts[0]["error_code"], &receipts[0]["is_recoverable"]),
        (&json!("SIMULATED_FAILURE"), &json!(true))
    );
    assert_eq!(
        (&receipts[1]["error_code"], &receipts[1]["is_recoverable"]),
        (&json!("ROLLBACK_EXHAUSTED"), &json!(false))
    );
    let listed = world.escalations(account).await;
    let expected = json!({
        "account_id": account, "action_id": action_id, "template": "restart-service",
        "state": "escalated",
        "error_code": "ROLLBACK_EXHAUSTED", "since": listed[0]["since"], "redrivable": true,
        "receipt_id": receipts[1]["receipt_id"], "lifecycle": "active",
    });
    assert_eq!(listed, [expected]);
    let table = world.ggen(&["escalations", "--limit", "100000"]).await;
    assert_eq!(table.code, Some(1), "{table:?}");
    for whole in ["ROLLBACK_EXHAUSTED", action_id.as_str(), account] {
        assert!(table.stdout.contains(whole), "{whole}: {table:?}");
    }

    // Its id is nobody else's: the account can be left out.
    let resolved = world.resolve(&action_id, "undone by hand", &[]).await;
    assert_eq!(resolved.code, Some(0), "{resolved:?}");
    let all = ["action_failed", "action_failed", "action_resolved"];
    let receipts = world.settled(account, &action_id, &all).await;
    assert_eq!(receipts[2]["receipt_id"], resolved.json()["receipt_id"]);
    assert_eq!(
        (&receipts[2]["who"], &receipts[2]["note"]),
        (&json!("end-to-end"), &json!("undone by hand"))
    );
    assert_eq!(
        receipts[2]["previous_action_receipt_id"],
        receipts[1]["receipt_id"]
    );
    assert_eq!(world.escalations(account).await, [Value::Null; 0]);
    for (note, code, outcome) in [
        ("undone by hand", 0, "already_resolved"),
        ("otherwise", 1, "resolved_otherwise"),
    ] {
        let again = world.resolve(&action_id, note, &["--account-id", account]).await;
        let found = (again.code, again.json()["outcome"].clone());
        assert_eq!(found, (Some(code), json!(outcome)), "{again:?}");
    }
    // A signal that comes late changes nothing.
    world.send(&tenant, tenant.restart(&action_id)).await;
    world.drained(&tenant.queue_url).await;
    world.settled(account, &action_id, &all).await;
    assert_eq!(world.handler_saw(&action_id).await, (0, 0));
    let held = world.stored(account).await.tenant.unwrap();
    assert_eq!((held.in_flight, held.actions_failed), (0, 1));
    world.audited(account).await;
}

/// A handler that says that it can't be undone is not asked again.
#[tokio::test]
async fn a_rollback_that_is_refused_is_a_persons_at_once() {
    let world = alongside().await;
    let nowhere = [("rollback: /rollbacks/restart-service", "rollback: /no-such-route")];
    let tenant = dedicated(&world, "refused", &nowhere).await;
    let (account, action_id) = (tenant.account.as_str(), unique("refused"));
    let fails = json!({ "service": "web", "outcome": "fail" });
    world
        .send(&tenant, tenant.signal(&action_id, "restart-service", fails))
        .await;
    let receipts = world
        .settled(account, &action_id, &["action_failed", "action_failed"])
        .await;
    assert_eq!(receipts[1]["error_code"], "ROLLBACK_REFUSED", "{}", receipts[1]);
    let listed = world.escalations(account).await;
    assert_eq!(listed.len(), 1, "{listed:?}");
    assert_eq!(listed[0]["redrivable"], true, "{listed:?}");
    world.audited(account).await;
}

#[tokio::test]
async fn what_the_handler_gave_up_is_resolved_and_not_redriven() {
    let world = alongside().await;
    let tenant = world.tenant("unrecoverable").await;
    let (account, action_id) = (tenant.account.as_str(), unique("unrecoverable"));
    let fails = json!({ "service": "web", "outcome": "fail-unrecoverable" });
    world
        .send(&tenant, tenant.signal(&action_id, "restart-service", fails))
        .await;
    world.settled(account, &action_id, &["action_failed"]).await;
    let listed = world.escalations(account).await;
    assert_eq!(listed.len(), 1, "{listed:?}");
    assert_eq!(
        (&listed[0]["error_code"], &listed[0]["redrivable"]),
        (&json!("SIMULATED_FAILURE"), &json!(false))
    );
    let redriven = world.redrive(account, &["--action-id", &action_id]).await;
    assert_eq!(redriven.code, Some(1), "{redriven:?}");
    assert_eq!(redriven.json()["letters"][0]["outcome"], "nothing_to_go_on_with");

    let complete = unique("complete");
    world.send(&tenant, tenant.restart(&complete)).await;
    world.settled(account, &complete, &["action_complete"]).await;
    let of = ["--account-id", account];
    for (id, outcome, state) in [
        (complete.as_str(), "not_escalated", json!("complete")),
        ("no-such-action", "unknown", Value::Null),
    ] {
        let refused = world.resolve(id, "x", &of).await;
        assert_eq!(refused.code, Some(1), "{refused:?}");
        let found = (&refused.json()["outcome"], &refused.json()["state"]);
        assert_eq!(found, (&json!(outcome), &state), "{refused:?}");
    }
    let empty = world.resolve(&action_id, " ", &of).await;
    assert_eq!(empty.code, Some(2), "{empty:?}");

    // Action ids are each tenant's own: whose is meant has to be said.
    let other = world.tenant("same-id").await;
    let same = Action {
        action_id: ActionId::try_from(action_id.clone()).unwrap(),
        ..asked_for(&other, "same", Timestamp::now())
    };
    world.given_up(&other, &same, &[], DEAD_LETTERED).await;
    let several = world.resolve(&action_id, "by hand", &[]).await;
    assert_eq!(several.code, Some(1), "{several:?}");
    assert_eq!(several.json()["accounts"].as_array().map(Vec::len), Some(2));

    // Two at once: one receipt.
    let both = tokio::join!(
        world.resolve(&action_id, "by hand", &of),
        world.resolve(&action_id, "by hand", &of)
    );
    assert_eq!((both.0.code, both.1.code), (Some(0), Some(0)), "{both:?}");
    let all = ["action_failed", "action_resolved"];
    world.settled(account, &action_id, &all).await;
    assert_eq!(world.escalations(account).await, [Value::Null; 0]);
    assert_eq!(world.escalations(&other.account).await.len(), 1);
    world.audited(account).await;
}

/// The account's own table is gone with the tenant: only the mark is left of its action, and the ledger goes on.
#[tokio::test]
async fn an_action_of_a_tenant_that_is_gone_is_resolved() {
    let world = alongside().await;
    let tenant = dedicated(&world, "left-behind", &[]).await;
    let (account, action_id) = (tenant.account.as_str(), unique("left-behind"));
    let fails = json!({ "service": "web", "outcome": "fail-unrecoverable" });
    world
        .send(&tenant, tenant.signal(&action_id, "restart-service", fails))
        .await;
    world.settled(account, &action_id, &["action_failed"]).await;
    // While the tenant is there, its own table is where what is redriven stands.
    let stuck = asked_for(&tenant, "stuck", Timestamp::now());
    world
        .given_up(&tenant, &stuck, &[ActionEvent::Claimed], "STUCK")
        .await;
    let stuck = stuck.action_id.as_str();
    let redriven = world.redrive(account, &["--action-id", stuck]).await;
    assert_eq!(redriven.code, Some(0), "{redriven:?}");
    let undone = ["action_failed", "action_redriven", "action_rolled_back"];
    world.settled(account, stuck, &undone).await;
    assert_eq!(world.handler_saw(stuck).await, (0, 1));
    world.drained(&tenant.queue_url).await;

    let sku = world.stored(account).await.tenant.unwrap();
    let sku = sku.entitlements.values().next().unwrap().sku_id.to_string();
    let answer = world.post(&Delivery::cancelled(world.env, account, &sku)).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    gone(&world, &tenant).await;

    let listed = world.escalations(account).await;
    assert_eq!(listed.len(), 1, "{listed:?}");
    assert_eq!(
        (&listed[0]["redrivable"], &listed[0]["lifecycle"]),
        (&json!(false), &json!("decommissioned"))
    );
    let redriven = world.redrive(account, &["--action-id", &action_id]).await;
    assert_eq!(redriven.code, Some(1), "{redriven:?}");
    for outcome in ["resolved", "already_resolved"] {
        let resolved = world
            .resolve(&action_id, "customer left", &["--account-id", account])
            .await;
        assert_eq!(resolved.code, Some(0), "{resolved:?}");
        assert_eq!(resolved.json()["outcome"], outcome);
    }
    let ledger = world.ledger(account).await;
    assert_eq!(
        ledger.operations(),
        [
            "entitlement_active",
            "action_failed",
            "action_failed",
            "action_redriven",
            "action_rolled_back",
            "decommission_start",
            "decommission_complete",
            "action_resolved"
        ]
    );
    assert_eq!(world.escalations(account).await, [Value::Null; 0]);
    // No action came back to life for it.
    let items = world
        .query_if_there(&world.env.tenants_table, account)
        .await
        .unwrap();
    let actions = items
        .iter()
        .filter(|item| item["sk"].as_s().unwrap().starts_with("ACTION#"));
    assert_eq!(actions.count(), 0);
    world.audited(account).await;
}

#[tokio::test]
async fn a_signal_that_nobody_can_settle_is_escalated_and_comes_back() {
    let world = alongside().await;
    let tenant = world.tenant("dead").await;
    let (account, action_id) = (tenant.account.as_str(), unique("dead"));
    let arn = QueueAttributeName::QueueArn;
    let arn = world
        .queue_attribute(&world.dead_letters_url(&tenant).await, arn)
        .await;
    let redrive = json!({ "deadLetterTargetArn": arn, "maxReceiveCount": 2 });
    let set = world.sqs.set_queue_attributes().queue_url(&tenant.queue_url);
    set.attributes(QueueAttributeName::RedrivePolicy, redrive.to_string())
        .attributes(QueueAttributeName::VisibilityTimeout, "3")
        .send()
        .await
        .unwrap();
    let fault = format!("dynamodb/{account}");
    let rule = json!({ "mode": "refuse", "function": "governor", "contains": account });
    world.fault(&fault, rule).await;
    world.send(&tenant, tenant.restart(&action_id)).await;
    eventually("a dead letter", PATIENCE, || async {
        match world.letters(&tenant).await {
            0 => Err("none".to_owned()),
            _ => Ok(()),
        }
    })
    .await;
    world.mend(&fault).await;
    assert_eq!(world.ledger(account).await.of(&action_id).len(), 0);

    // One whose governor is never heard of again.
    let begun = asked_for(&tenant, "begun", Timestamp::now());
    abandoned(&world, &tenant, std::slice::from_ref(&begun), 0).await;
    let begun = begun.action_id.as_str();
    world.letter(&tenant, tenant.restart(begun)).await;
    // Not a signal, and one of another tenant's.
    let mut strange = tenant.restart(&unique("strange"));
    strange["account_id"] = json!("somebody-else");
    let malformed = [
        world.letter(&tenant, "restart the service").await,
        world.letter(&tenant, strange).await,
    ];
    let report = world.swept().await;
    assert!(report["dead_letters"].is_u64(), "{report}");
    // Again, and again: each is on record once.
    world.swept().await;
    let failed = world.settled(account, &action_id, &["action_failed"]).await;
    assert_eq!(
        (&failed[0]["error_code"], &failed[0]["is_recoverable"]),
        (&json!(DEAD_LETTERED), &json!(false))
    );
    let failed = world.settled(account, begun, &["action_failed"]).await;
    assert_eq!(failed[0]["error_code"], DEAD_LETTERED);
    assert_eq!(world.stored(account).await.tenant.unwrap().in_flight, 0);
    for message_id in &malformed {
        let refused = world.settled(account, message_id, &["action_refused"]).await;
        assert_eq!(refused[0]["code"], "MALFORMED_SIGNAL");
    }
    assert_eq!(world.handler_saw(&action_id).await, (0, 0));
    assert_eq!(world.letters(&tenant).await, 4);
    let listed = world.escalations(account).await;
    assert_eq!(listed.len(), 2, "{listed:?}");
    assert!(listed.iter().all(|line| line["redrivable"] == true), "{listed:?}");

    // While the sweep has them hidden nothing can be taken back, and it says so.
    let letters = eventually("the letter to come back", PATIENCE, || async {
        let ran = world.redrive(account, &[]).await;
        let answer = ran.json();
        assert_eq!(ran.code, Some(1), "{ran:?}");
        let all = answer["letters"].as_array().unwrap().clone();
        match all.len() {
            4 => Ok(all),
            _ => Err(answer.to_string()),
        }
    })
    .await;
    let outcomes = |outcome: &str| letters.iter().filter(|l| l["outcome"] == outcome).count();
    assert_eq!((outcomes("returned"), outcomes("not_a_signal")), (2, 2));
    let undone = ["action_failed", "action_redriven", "action_rolled_back"];
    world.settled(account, begun, &undone).await;
    assert_eq!(world.handler_saw(begun).await, (0, 1));
    let all = ["action_failed", "action_redriven", "action_complete"];
    let receipts = world.settled(account, &action_id, &all).await;
    assert_eq!(receipts[1]["who"], "end-to-end");
    assert_eq!(
        receipts[1]["previous_action_receipt_id"],
        receipts[0]["receipt_id"]
    );
    assert_eq!(world.handler_saw(&action_id).await, (1, 0));
    assert_eq!(world.letters(&tenant).await, 2);
    assert_eq!(world.escalations(account).await, [Value::Null; 0]);
    let over = world.redrive(account, &["--action-id", &action_id]).await;
    assert_eq!(over.code, Some(0), "{over:?}");
    assert_eq!(over.json()["letters"][0]["outcome"], "already_over");
    world.audited(account).await;
}

/// Cut off at each of its steps, before and after the step was done, and done again.
#[tokio::test]
async fn a_redrive_that_is_cut_off_loses_nothing() {
    alone(|world| async move {
        let tenant = world.tenant("cut-off").await;
        let steps = [
            ("dynamodb", "TransactWriteItems"),
            ("sqs", "SendMessage"),
            ("sqs", "DeleteMessage"),
        ];
        for (service, operation) in steps {
            for mode in ["refuse", "lose-reply"] {
                check_cut_off(&world, &tenant, service, operation, mode).await;
            }
        }
        world.audited(&tenant.account).await;
    })
    .await;
}

async fn check_cut_off(world: &World, tenant: &Tenant, service: &str, step: &str, mode: &str) {
    let case = format!("{step} {mode}");
    let action = asked_for(tenant, "cut-off", Timestamp::now());
    let action_id = action.action_id.as_str();
    world.given_up(tenant, &action, &[], DEAD_LETTERED).await;
    world.letter(tenant, tenant.restart(action_id)).await;
    let (name, fault) = (unique("redrive"), format!("{service}/cut-off"));
    let rule = json!({ "mode": mode, "operation": step, "function": name });
    world.fault(&fault, rule).await;
    let cut_off = world.redrive_as(&name, &tenant.account).await;
    world.mend(&fault).await;
    assert_eq!(cut_off.code, Some(2), "{case}: {cut_off:?}");
    let again = world.redrive(&tenant.account, &[]).await;
    assert_eq!(again.code, Some(0), "{case}: {again:?}");
    let all = ["action_failed", "action_redriven", "action_complete"];
    world.settled(&tenant.account, action_id, &all).await;
    world.drained(&tenant.queue_url).await;
    assert_eq!(world.letters(tenant).await, 0, "{case}");
    assert_eq!(world.handler_saw(action_id).await, (1, 0), "{case}");
    world.settled(&tenant.account, action_id, &all).await;
    let none = world.redrive(&tenant.account, &[]).await;
    assert_eq!(
        (none.code, &none.json()["letters"]),
        (Some(0), &json!([])),
        "{case}"
    );
}

/// Whoever gets a letter first hides it from the other: each action is done, once, and nothing is left.
#[tokio::test]
async fn redrives_and_sweeps_at_once_lose_nothing() {
    let world = alongside().await;
    let tenant = world.tenant("at-once").await;
    let account = tenant.account.as_str();
    let action_ids: Vec<String> = (0..12).map(|n| unique(&format!("at-once-{n}"))).collect();
    for action_id in &action_ids {
        world.letter(&tenant, tenant.restart(action_id)).await;
    }
    eventually("all letters to be back", PATIENCE, || async {
        let (_, one, other) = tokio::join!(
            world.swept(),
            world.redrive(account, &[]),
            world.redrive(account, &[])
        );
        for ran in [&one, &other] {
            assert!(ran.code == Some(0) || ran.code == Some(1), "{ran:?}");
        }
        match world.letters(&tenant).await {
            0 => Ok(()),
            left => Err(format!("{left} letters")),
        }
    })
    .await;
    world.drained(&tenant.queue_url).await;
    let ledger = world.ledger(account).await;
    for action_id in &action_ids {
        let last = ledger.of(action_id).last().map(|receipt| operation(receipt));
        assert_eq!(last, Some("action_complete"), "{action_id}");
        assert_eq!(world.handler_saw(action_id).await, (1, 0), "{action_id}");
    }
    assert_eq!(world.escalations(account).await, [Value::Null; 0]);
    world.audited(account).await;
}

/// The last delivery of a signal that still waits for a place, and then no place to undo what was given up.
#[tokio::test]
async fn what_waited_too_often_or_has_no_place_is_taken_up_later() {
    alone(|world| async move {
        let sku = unique("no-place");
        let named = format!("sku_id: {sku}");
        let changes = [
            ("sku_id: pool-sku", named.as_str()),
            ("plan_type: starter", "plan_type: professional"),
            ("monthly_actions: 2", "monthly_actions: 100"),
        ];
        world.deploy_fixture("pool.yaml", &changes).await;
        let tenant = world.tenant_of("no-place", &sku).await;
        let account = tenant.account.as_str();
        // A governor that is never heard of again has both places.
        abandoned(&world, &tenant, &[], 2).await;
        let stuck = asked_for(&tenant, "stuck", Timestamp::now());
        world
            .given_up(&tenant, &stuck, &[ActionEvent::Claimed], "STUCK")
            .await;

        let waited = unique("waited");
        let sample = include_str!("../../events/governor/signal.json");
        let mut event: Value = serde_json::from_str(sample).unwrap();
        let record = &mut event["Records"][0];
        record["body"] = json!(tenant.restart(&waited).to_string());
        record["attributes"]["ApproximateReceiveCount"] = json!("1000");
        record["eventSourceARN"] = json!(format!("arn:aws:sqs:us-east-1:000000000000:{}", tenant.queue));
        let message_id = record["messageId"].clone();
        for _ in 0..2 {
            let answer = world.invoke(&world.env.governor, &event).await;
            let left = answer["batchItemFailures"].as_array().unwrap();
            // Once it is escalated, a repeat is acknowledged.
            assert!(
                left.iter().all(|left| left["itemIdentifier"] == message_id),
                "{answer}"
            );
            let failed = world.settled(account, &waited, &["action_failed"]).await;
            assert_eq!(failed[0]["error_code"], DEAD_LETTERED, "{failed:?}");
        }
        assert_eq!(world.handler_saw(&waited).await, (0, 0));
        let listed: BTreeMap<String, Value> = world
            .escalations(account)
            .await
            .into_iter()
            .map(|line| {
                (
                    line["action_id"].as_str().unwrap().to_owned(),
                    line["redrivable"].clone(),
                )
            })
            .collect();
        let both = [
            (waited.clone(), json!(true)),
            (stuck.action_id.as_str().to_owned(), json!(true)),
        ];
        assert_eq!(listed, BTreeMap::from(both));

        let of = |id: &str| ["--action-id".to_owned(), id.to_owned()];
        let redrive = async |id: &str| {
            let [option, id] = of(id);
            let ran = world.redrive(account, &[&option, &id]).await;
            (ran.code, ran.json()["letters"][0]["outcome"].clone())
        };
        let stuck = stuck.action_id.as_str();
        assert_eq!(redrive(stuck).await, (Some(1), json!("no_place")));
        assert_eq!(world.letters(&tenant).await, 0);
        // What never began needs no place to go back: it waits on the queue.
        assert_eq!(redrive(&waited).await, (Some(0), json!("returned")));
        assert_eq!(world.ledger(account).await.of(stuck).len(), 1);

        let impatient = json!({ "probes": 1, "sweep": "due", "stuck_after_seconds": 0 });
        let report = world.invoke(&world.env.health, &impatient).await;
        assert!(report["sweep"]["recounted"].as_u64() >= Some(1), "{report}");
        assert_eq!(redrive(stuck).await, (Some(0), json!("returned")));
        let done = ["action_failed", "action_redriven", "action_complete"];
        world.settled(account, &waited, &done).await;
        let undone = ["action_failed", "action_redriven", "action_rolled_back"];
        world.settled(account, stuck, &undone).await;
        assert_eq!(world.handler_saw(&waited).await, (1, 0));
        assert_eq!(world.handler_saw(stuck).await, (0, 1));
        assert_eq!(world.letters(&tenant).await, 0);
        world.drained(&tenant.queue_url).await;
        let held = world.stored(account).await.tenant.unwrap();
        assert_eq!(
            (held.in_flight, held.actions_completed, held.actions_failed),
            (0, 1, 1)
        );
        world.audited(account).await;
    })
    .await;
}

/// Commands that cannot tell say so: nothing is listed as none.
#[tokio::test]
async fn what_cannot_be_read_is_not_none() {
    let world = alongside().await;
    let mut command = Command::new(&world.env.ggen);
    command.arg("escalations").env("TENANTS_TABLE", "no-such-table");
    let ran = tokio::task::spawn_blocking(move || command.output()).await;
    assert_eq!(ran.unwrap().unwrap().status.code(), Some(2));
    let nobody = world.redrive(&unique("nobody"), &[]).await;
    assert_eq!(
        (nobody.code, &nobody.json()["lifecycle"]),
        (Some(1), &Value::Null)
    );
}
