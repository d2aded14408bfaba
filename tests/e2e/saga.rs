//! Every step of provisioning and of decommissioning, and every undo, fails in every way that calls fail.
//!
//! A case has a tenant of its own and breaks only calls that say that tenant's name, so cases run at once. How they break
//! is told by the tables here; that nothing is left, and that the sender's next delivery makes a tenant that works, is
//! looked at after each.

use std::sync::Arc;

use domain::account::AccountId;
use domain::names;
use domain::provisioning::Step;
use domain::tenant::Lifecycle;
use serde_json::{Value, json};
use tokio::sync::{OnceCell, Semaphore};
use tokio::task::JoinSet;

use crate::github;
use crate::life::{gone, objects};
use crate::webhooks::{Answer, Delivery};
use crate::world::{PATIENCE, PLAN, SKU, SOON, World, alone, alongside, eventually, operation, unique};

/// A SKU whose tenants have tables of their own.
const OWN_TABLES: &str = "saga-own-tables";
static OWN_TABLES_DEPLOYED: OnceCell<()> = OnceCell::const_new();

/// A call that a step or an undo makes.
struct Call {
    /// The step.
    step: &'static str,
    service: &'static str,
    operation: &'static str,
    /// What only that call says of the tenant: `{queue}` is the name of its first queue, `{account}` its account.
    says: &'static str,
    /// How many calls that say so come before.
    skip: u32,
    /// What comes of it when it is not done, and when it is done but not answered.
    ends: [End; 2],
}

/// What comes of a delivery.
#[derive(Debug, Clone, Copy, PartialEq)]
enum End {
    /// The entitlement is active.
    Active,
    /// The failure is on record, with these steps undone.
    Undone(&'static str),
    /// Nothing is on record, and the next delivery goes on.
    Unrecorded,
}

const fn call(
    step: &'static str,
    service: &'static str,
    operation: &'static str,
    says: &'static str,
    skip: u32,
    ends: [End; 2],
) -> Call {
    Call {
        step,
        service,
        operation,
        says,
        skip,
        ends,
    }
}

use End::{Active, Undone, Unrecorded};

const TO_DEAD_LETTERS: End = Undone("dead_letter_queue tenant_record");
const TO_QUEUE: End = Undone("queue dead_letter_queue tenant_record");
const POOL_MADE: &str = "mapping queue dead_letter_queue tenant_record";
const TO_MAPPING: End = Undone(POOL_MADE);
const TO_ACTIONS: End = Undone("action_table queue dead_letter_queue tenant_record");
const TO_RECEIPTS: End = Undone("receipt_table action_table queue dead_letter_queue tenant_record");
const ALL_MADE: &str = "mapping receipt_table action_table queue dead_letter_queue tenant_record";
const ALL_OWN: End = Undone(ALL_MADE);

/// Of a plan that shares its tables.
const POOL: &[Call] = &[
    call(
        "tenant_record",
        "dynamodb",
        "TransactWriteItems",
        "{queue}",
        0,
        [Unrecorded, Unrecorded],
    ),
    call(
        "dead_letter_queue",
        "sqs",
        "CreateQueue",
        "{queue}-dlq\"",
        0,
        [Undone("tenant_record"), TO_DEAD_LETTERS],
    ),
    call(
        "queue",
        "sqs",
        "CreateQueue",
        "{queue}\"",
        0,
        [TO_DEAD_LETTERS, TO_QUEUE],
    ),
    call(
        "mapping",
        "lambda",
        "CreateEventSourceMapping",
        "{queue}\"",
        0,
        [TO_QUEUE, TO_MAPPING],
    ),
    call(
        "governor_boot",
        "lambda",
        "Invoke",
        "{account}",
        0,
        [TO_MAPPING, TO_MAPPING],
    ),
    call(
        "receipt",
        "dynamodb",
        "TransactWriteItems",
        "{queue}",
        1,
        [TO_MAPPING, Active],
    ),
];

/// Of a plan with tables of its own, what that adds.
const DEDICATED: &[Call] = &[
    call(
        "action_table",
        "dynamodb",
        "CreateTable",
        "{queue}-actions\"",
        0,
        [TO_QUEUE, TO_ACTIONS],
    ),
    // Both are asked for before either is waited for.
    call(
        "receipt_table",
        "dynamodb",
        "DescribeTable",
        "{queue}-actions\"",
        0,
        [TO_RECEIPTS, TO_RECEIPTS],
    ),
    call(
        "receipt_table",
        "dynamodb",
        "CreateTable",
        "{queue}-receipts\"",
        0,
        [TO_ACTIONS, TO_RECEIPTS],
    ),
    call(
        "receipt_table",
        "dynamodb",
        "DescribeTable",
        "{queue}-receipts\"",
        0,
        [TO_RECEIPTS, TO_RECEIPTS],
    ),
    call(
        "receipt_table",
        "dynamodb",
        "UpdateContinuousBackups",
        "{queue}-receipts\"",
        0,
        [TO_RECEIPTS, TO_RECEIPTS],
    ),
    call(
        "receipt",
        "dynamodb",
        "TransactWriteItems",
        "{queue}",
        1,
        [ALL_OWN, Active],
    ),
];

/// How a call fails: the proxy's rule, and which of its ends a call comes to, none when the SDK's next attempt mends it.
/// The SDK makes three attempts, of five seconds each; only the governor is asked once.
fn ways() -> [(&'static str, Value, Option<usize>); 6] {
    [
        ("refused", json!({ "mode": "refuse", "count": 3 }), Some(0)),
        (
            "forbidden",
            json!({ "mode": "fail", "code": "AccessDeniedException", "count": 1 }),
            Some(0),
        ),
        ("cut off", json!({ "mode": "close", "count": 3 }), Some(0)),
        // It would be passed on long after all is over: as good as never.
        (
            "never answered",
            json!({ "mode": "delay", "ms": 600_000, "count": 3 }),
            Some(0),
        ),
        (
            "not answered once",
            json!({ "mode": "lose-reply", "count": 1 }),
            None,
        ),
        (
            "done, never answered",
            json!({ "mode": "lose-reply", "count": 3 }),
            Some(1),
        ),
    ]
}

/// A tenant to be, and what is broken for it.
struct Case {
    world: World,
    name: String,
    account: String,
    /// The queue of its first generation.
    queue: String,
    delivery: Delivery,
}

impl Case {
    fn new(world: &World, name: String, sku: &str) -> Self {
        let account = unique("saga");
        Self {
            world: world.clone(),
            name,
            queue: queue_of(world, &account),
            delivery: Delivery::created(world.env, &account, sku, PLAN),
            account,
        }
    }

    /// Breaks a call of this tenant's.
    async fn fault(&self, id: &str, service: &str, operation: &str, says: &str, rule: &Value) {
        let mut rule = rule.clone();
        rule["operation"] = json!(operation);
        rule["contains"] = json!(
            says.replace("{queue}", &self.queue)
                .replace("{account}", &self.account)
        );
        self.world
            .fault(&format!("{service}/{id}-{}", self.account), rule)
            .await;
    }

    async fn mend(&self, id: &str, service: &str) {
        self.world.mend(&format!("{service}/{id}-{}", self.account)).await;
    }

    async fn post(&self) -> Answer {
        self.world.post(&self.delivery).await
    }

    async fn operations(&self) -> Vec<String> {
        let ledger = self.world.ledger(&self.account).await;
        ledger.operations().into_iter().map(str::to_owned).collect()
    }

    /// The delivery has to come back, and the failure is on record with these steps undone.
    async fn failed(&self, answer: &Answer, step: &str, undone: &str) {
        come_back(&self.name, answer);
        self.on_record(step, undone).await;
    }

    async fn on_record(&self, step: &str, undone: &str) {
        assert_eq!(self.undone(step).await, undone, "{}", self.name);
    }

    /// The steps that were undone, as the failure on record says. Nothing is left of them.
    async fn undone(&self, step: &str) -> String {
        let name = &self.name;
        let ledger = self.world.ledger(&self.account).await;
        let last = ledger
            .receipts
            .last()
            .unwrap_or_else(|| panic!("{name}: no receipt"));
        let steps: Vec<&str> = last["undone"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        assert_eq!(
            (operation(last), last["step"].as_str()),
            ("entitlement_failed", Some(step)),
            "{name}: {last}"
        );
        assert_eq!(left(&self.world, &self.queue).await, [""; 0], "{name}");
        let tenant = self.world.stored(&self.account).await.tenant.unwrap();
        assert_eq!(
            (tenant.lifecycle, tenant.provisioning),
            (Lifecycle::Absent, None),
            "{name}"
        );
        steps.join(" ")
    }

    /// Nothing is on record, and the tenant is between two states.
    async fn stuck(&self, answer: &Answer, failed: Option<Step>) {
        come_back(&self.name, answer);
        assert_eq!(self.operations().await, [""; 0], "{}", self.name);
        let tenant = self.world.stored(&self.account).await.tenant.unwrap();
        let failure = tenant.provisioning.unwrap().failure.map(|failure| failure.step);
        assert_eq!(
            (tenant.lifecycle, failure),
            (Lifecycle::Provisioning, failed),
            "{}",
            self.name
        );
    }

    /// An answer that the entitlement is active, as the ledger says; and a signal runs.
    async fn works(&self, answer: Answer, generation: u32, before: &[&str]) {
        let name = &self.name;
        assert_eq!(answer.status, 200, "{name}: {answer:?}");
        let tenant = self.world.provisioned(answer.body).await;
        assert!(
            tenant.queue.ends_with(&format!("-g{generation}")),
            "{name}: {}",
            tenant.queue
        );
        let action_id = unique("works");
        self.world.send(&tenant, tenant.restart(&action_id)).await;
        self.world
            .settled(&self.account, &action_id, &["action_complete"])
            .await;
        let operations = [before, &["entitlement_active", "action_complete"]].concat();
        assert_eq!(self.operations().await, operations, "{name}");
    }
}

/// The queue of an account's first generation.
fn queue_of(world: &World, account: &str) -> String {
    names::queue_name(stack(world), &AccountId::parse(account).unwrap(), 1)
}

/// What the names of the stack's resources begin with.
fn stack(world: &World) -> &'static str {
    world.env.entitlement.strip_suffix("-entitlement").unwrap()
}

/// What stands of a queue's tenant, of any generation.
async fn left(world: &World, queue: &str) -> Vec<String> {
    let any_generation = queue.strip_suffix('1').unwrap();
    let queues = world
        .sqs
        .list_queues()
        .queue_name_prefix(any_generation)
        .send()
        .await
        .unwrap();
    let mut left = queues.queue_urls.unwrap_or_default();
    let arn = format!("arn:aws:sqs:us-east-1:000000000000:{queue}");
    left.extend(
        world
            .mappings(&arn)
            .await
            .into_iter()
            .filter_map(|mapping| mapping.uuid),
    );
    let mut start = None;
    loop {
        let list = world.dynamodb.list_tables().set_exclusive_start_table_name(start);
        let page = list.send().await.unwrap();
        let tables = page.table_names.unwrap_or_default().into_iter();
        left.extend(tables.filter(|table| table.starts_with(any_generation)));
        start = page.last_evaluated_table_name;
        if start.is_none() {
            return left;
        }
    }
}

#[track_caller]
fn come_back(name: &str, answer: &Answer) {
    assert_eq!(
        (
            answer.status,
            answer.content_type.as_str(),
            answer.retry_after.is_some()
        ),
        (503, "application/problem+json", true),
        "{name}: {answer:?}"
    );
}

async fn own_tables(world: &World) {
    let deploy = || async {
        let sku = format!("sku_id: {OWN_TABLES}");
        world
            .deploy_fixture("dedicated.yaml", &[("sku_id: dedicated-sku", &sku)])
            .await;
    };
    OWN_TABLES_DEPLOYED.get_or_init(deploy).await;
}

/// Runs cases at once: those that only wait for time to pass beside the others.
struct Cases {
    running: JoinSet<()>,
    turns: Arc<Semaphore>,
}

impl Cases {
    fn new() -> Self {
        Self {
            running: JoinSet::new(),
            turns: Arc::new(Semaphore::new(8)),
        }
    }

    fn run(&mut self, waits: bool, case: impl Future<Output = ()> + Send + 'static) {
        let turns = self.turns.clone();
        self.running.spawn(async move {
            let _turn = match waits {
                true => None,
                false => Some(turns.acquire_owned().await.unwrap()),
            };
            case.await;
        });
    }

    async fn done(mut self) {
        let mut failed = Vec::new();
        while let Some(ended) = self.running.join_next().await {
            if let Err(error) = ended {
                failed.push(error);
            }
        }
        // Each has told what it found.
        assert!(failed.is_empty(), "{} cases failed", failed.len());
    }
}

#[tokio::test]
async fn every_step_of_provisioning_fails_and_is_undone() {
    let world = alongside().await;
    own_tables(&world).await;
    let mut cases = Cases::new();
    for (calls, sku) in [(POOL, SKU), (DEDICATED, OWN_TABLES)] {
        for call in calls {
            for (way, rule, end) in ways() {
                let name = format!("{} at {} {way}", call.step, call.operation);
                let case = Case::new(&world, name, sku);
                cases.run(
                    way == "never answered",
                    step_fails(case, call, rule, end.map(|end| call.ends[end])),
                );
            }
        }
    }
    cases.done().await;
}

async fn step_fails(case: Case, call: &'static Call, mut rule: Value, end: Option<End>) {
    rule["skip"] = json!(call.skip);
    case.fault("step", call.service, call.operation, call.says, &rule)
        .await;
    let answer = case.post().await;
    case.mend("step", call.service).await;
    let asked_once = call.operation == "Invoke";
    match end.unwrap_or(if asked_once { call.ends[1] } else { Active }) {
        Active => case.works(answer, 1, &[]).await,
        Undone(undone) => {
            case.failed(&answer, call.step, undone).await;
            let again = case.post().await;
            case.works(again, 2, &["entitlement_failed"]).await;
        }
        Unrecorded => {
            come_back(&case.name, &answer);
            assert_eq!(case.operations().await, [""; 0], "{}", case.name);
            let again = case.post().await;
            case.works(again, 1, &[]).await;
        }
    }
}

/// Calls behind a failed boot of the governor, for a plan with tables of its own. The first notes the failure and the last
/// puts it on record; the others undo.
const UNDO: &[Call] = &[
    call(
        "failure",
        "dynamodb",
        "TransactWriteItems",
        "{queue}",
        1,
        [Unrecorded, Unrecorded],
    ),
    call(
        "mapping",
        "lambda",
        "ListEventSourceMappings",
        ":{queue}",
        0,
        [Unrecorded, Unrecorded],
    ),
    call(
        "mapping",
        "lambda",
        "DeleteEventSourceMapping",
        "{mapping}",
        0,
        [Unrecorded, Unrecorded],
    ),
    call(
        "receipt_table",
        "dynamodb",
        "DescribeTable",
        "{queue}-receipts\"",
        1,
        [Unrecorded, Unrecorded],
    ),
    call(
        "receipt_table",
        "dynamodb",
        "DeleteTable",
        "{queue}-receipts\"",
        0,
        [Unrecorded, Unrecorded],
    ),
    call(
        "action_table",
        "dynamodb",
        "DescribeTable",
        "{queue}-actions\"",
        1,
        [Unrecorded, Unrecorded],
    ),
    call(
        "action_table",
        "dynamodb",
        "DeleteTable",
        "{queue}-actions\"",
        0,
        [Unrecorded, Unrecorded],
    ),
    call(
        "queue",
        "sqs",
        "GetQueueUrl",
        "{queue}\"",
        0,
        [Unrecorded, Unrecorded],
    ),
    call(
        "queue",
        "sqs",
        "DeleteQueue",
        "{queue}\"",
        0,
        [Unrecorded, Unrecorded],
    ),
    call(
        "dead_letter_queue",
        "sqs",
        "GetQueueUrl",
        "{queue}-dlq\"",
        0,
        [Unrecorded, Unrecorded],
    ),
    call(
        "dead_letter_queue",
        "sqs",
        "DeleteQueue",
        "{queue}-dlq\"",
        0,
        [Unrecorded, Unrecorded],
    ),
    call(
        "record",
        "dynamodb",
        "TransactWriteItems",
        "{queue}",
        2,
        [Unrecorded, ALL_OWN],
    ),
];

#[tokio::test]
async fn every_undo_fails_and_is_finished_by_the_next_delivery() {
    let world = alongside().await;
    own_tables(&world).await;
    let mut cases = Cases::new();
    for call in UNDO {
        for (way, rule, end) in ways() {
            let name = format!("undo of {} at {} {way}", call.step, call.operation);
            let case = Case::new(&world, name, OWN_TABLES);
            let end = end.map_or(ALL_OWN, |end| call.ends[end]);
            cases.run(way == "never answered", undo_fails(case, call, rule, end));
        }
    }
    cases.done().await;
}

async fn undo_fails(case: Case, call: &'static Call, mut rule: Value, end: End) {
    let forbidden = json!({ "mode": "fail", "code": "AccessDeniedException" });
    case.fault("step", "lambda", "Invoke", "{account}", &forbidden)
        .await;
    let mut says = call.says.to_owned();
    if says == "{mapping}" {
        // Only its id is told when it is deleted, so it has to be there first.
        case.fault(
            "list",
            "lambda",
            "ListEventSourceMappings",
            ":{queue}",
            &forbidden,
        )
        .await;
        let answer = case.post().await;
        case.stuck(&answer, Some(Step::GovernorBoot)).await;
        case.mend("list", "lambda").await;
        says = mapping_of(&case.world, &case.queue).await;
    }
    rule["skip"] = json!(call.skip);
    case.fault("undo", call.service, call.operation, &says, &rule)
        .await;
    let mut answer = case.post().await;
    case.mend("undo", call.service).await;
    if end == Unrecorded {
        let unknown = call.step == "failure" && rule["mode"] != "lose-reply";
        case.stuck(&answer, (!unknown).then_some(Step::GovernorBoot))
            .await;
        answer = case.post().await;
    }
    come_back(&case.name, &answer);
    let undone = case.undone("governor_boot").await;
    let all = ALL_MADE;
    if rule["mode"] == "lose-reply" || call.step == "record" {
        // What was undone without anybody knowing is found gone.
        let mut steps = all.split(' ');
        let known = undone.split(' ').all(|step| steps.any(|known| known == step));
        assert!(known, "{}: {undone}", case.name);
    } else {
        assert_eq!(undone, all, "{}", case.name);
    }
    case.mend("step", "lambda").await;
    let again = case.post().await;
    case.works(again, 2, &["entitlement_failed"]).await;
}

async fn mapping_of(world: &World, queue: &str) -> String {
    let arn = format!("arn:aws:sqs:us-east-1:000000000000:{queue}");
    let mut mappings = world.mappings(&arn).await;
    assert_eq!(mappings.len(), 1, "{mappings:?}");
    mappings.remove(0).uuid.unwrap()
}

/// The calls of a run that takes up a crash behind the last step, as far as they are others than those of the first run.
const AGAIN: &[Call] = &[
    call(
        "mapping",
        "lambda",
        "ListEventSourceMappings",
        ":{queue}",
        0,
        [ALL_OWN, ALL_OWN],
    ),
    call(
        "receipt",
        "dynamodb",
        "TransactWriteItems",
        "{queue}",
        0,
        [ALL_OWN, Active],
    ),
];

/// Whichever step fails when a crash is taken up, what stands behind it since the first run is undone too.
#[tokio::test]
async fn a_step_that_fails_when_a_crash_is_taken_up_undoes_all() {
    let world = alongside().await;
    own_tables(&world).await;
    let mut cases = Cases::new();
    let first = POOL.iter().chain(DEDICATED);
    let first =
        first.filter(|call| !matches!(call.operation, "TransactWriteItems" | "CreateEventSourceMapping"));
    for call in first.chain(AGAIN) {
        let name = format!("again {} at {}", call.step, call.operation);
        let case = Case::new(&world, name, OWN_TABLES);
        cases.run(false, async move {
            crash(&case).await;
            let rule = json!({ "mode": "refuse", "count": 3 });
            case.fault("step", call.service, call.operation, call.says, &rule)
                .await;
            let answer = case.post().await;
            case.mend("step", call.service).await;
            let all = ALL_MADE;
            case.failed(&answer, call.step, all).await;
            let again = case.post().await;
            case.works(again, 2, &["entitlement_failed"]).await;
        });
    }
    cases.done().await;
}

/// The policy that was pinned cannot be read when a crash is taken up; when it begins it was just read.
#[tokio::test]
async fn a_policy_that_is_gone_when_a_crash_is_taken_up_is_undone() {
    let world = alongside().await;
    own_tables(&world).await;
    let mut cases = Cases::new();
    for (way, mut rule, end) in ways() {
        // The governor reads it, too.
        rule["function"] = json!("entitlement");
        // A test that invokes a function waits less than this takes.
        if way == "never answered" {
            continue;
        }
        let world = world.clone();
        cases.run(false, async move {
            let sku = unique("pinned");
            let own = format!("sku_id: {sku}");
            let hash = world
                .deploy_fixture("dedicated.yaml", &[("sku_id: dedicated-sku", &own)])
                .await;
            let case = Case::new(&world, format!("policy_pin {way}"), &sku);
            crash(&case).await;
            case.fault("step", "s3", "GetObject", &format!("enforcers/{hash}"), &rule)
                .await;
            let resumed = resume(&case, &world.entitlement_with(&[]).await).await;
            case.mend("step", "s3").await;
            if end.is_none() {
                assert_eq!(resumed["lifecycle"], "active", "{}: {resumed}", case.name);
                let again = case.post().await;
                return case.works(again, 1, &[]).await;
            }
            assert_eq!(
                (&resumed["lifecycle"], &resumed["waiting"]),
                (&json!("absent"), &json!(0)),
                "{}",
                case.name
            );
            let all = ALL_MADE;
            case.on_record("policy_pin", all).await;
            let again = case.post().await;
            case.works(again, 2, &["entitlement_failed"]).await;
        });
    }
    cases.done().await;
}

/// As if the function had died between the intent and the outcome.
async fn crash(case: &Case) {
    let rule = json!({ "mode": "refuse", "skip": 1 });
    case.fault("crash", "dynamodb", "TransactWriteItems", "{queue}", &rule)
        .await;
    let answer = case.post().await;
    case.stuck(&answer, None).await;
    case.mend("crash", "dynamodb").await;
}

/// What the sweep asks for.
async fn resume(case: &Case, function: &str) -> Value {
    let event = json!({ "resume": { "account_id": case.account } });
    case.world.invoke(function, &event).await
}

/// The enforcer that was pinned is not there any more. Nothing is gained by a repeat until somebody puts that right; then it is
/// carried out.
#[tokio::test]
async fn what_fails_for_good_is_tried_when_it_comes_again() {
    let world = alongside().await;
    let sku = unique("vanished");
    let own = format!("sku_id: {sku}");
    let hash = world
        .deploy_fixture(
            "pool.yaml",
            &[
                ("sku_id: pool-sku", &own),
                ("plan_type: starter", "plan_type: professional"),
            ],
        )
        .await;
    let case = Case::new(&world, "a policy that vanished".to_owned(), &sku);
    crash(&case).await;
    let rule = json!({ "mode": "fail", "status": 404, "code": "NoSuchKey" });
    case.fault("step", "s3", "GetObject", &format!("enforcers/{hash}"), &rule)
        .await;
    assert_eq!(
        resume(&case, &world.entitlement_with(&[]).await).await["lifecycle"],
        "absent"
    );
    let all = POOL_MADE;
    case.on_record("policy_pin", all).await;
    case.mend("step", "s3").await;
    let answer = case.post().await;
    assert_eq!(
        (answer.status, operation(&answer.json())),
        (200, "entitlement_active"),
        "{answer:?}"
    );
    assert_eq!(case.post().await, answer);
    let operations = case.operations().await;
    assert_eq!(operations, ["entitlement_failed", "entitlement_active"]);
}

/// A sender that is impatient: the same delivery several times at once, while a step fails and when it works again.
#[tokio::test]
async fn repeats_of_a_delivery_whose_provisioning_fails_leave_nothing() {
    let world = alongside().await;
    let mut cases = Cases::new();
    for call in POOL {
        // Those whose calls of any generation can be told from others.
        if !matches!(
            call.operation,
            "CreateQueue" | "CreateEventSourceMapping" | "Invoke"
        ) {
            continue;
        }
        let case = Case::new(&world, format!("repeats at {}", call.operation), SKU);
        cases.run(false, async move {
            let says = match call.says.starts_with("{queue}") {
                true => case.queue.strip_suffix("-g1").unwrap(),
                false => call.says,
            };
            let rule = json!({ "mode": "fail", "code": "AccessDeniedException" });
            case.fault("step", call.service, call.operation, says, &rule)
                .await;
            let failed = at_once(&case).await;
            for answer in &failed {
                come_back(&case.name, answer);
            }
            // Each run that found nothing under way began anew, and whatever was begun is undone and on record.
            let last = case.post().await;
            come_back(&case.name, &last);
            let before = case.operations().await;
            assert!(
                before.iter().all(|operation| operation == "entitlement_failed"),
                "{}: {before:?}",
                case.name
            );
            assert_eq!(left(&case.world, &case.queue).await, [""; 0], "{}", case.name);
            case.mend("step", call.service).await;
            let answers = at_once(&case).await;
            for answer in &answers {
                assert_eq!(
                    (answer.status, &answer.body),
                    (200, &answers[0].body),
                    "{}: {answer:?}",
                    case.name
                );
            }
            let ledger = case.world.ledger(&case.account).await;
            assert_eq!(ledger.lines.last(), Some(&answers[0].body), "{}", case.name);
            assert_eq!(
                ledger.lines.len(),
                before.len() + 1,
                "{}: {:?}",
                case.name,
                ledger.operations()
            );
            case.world.provisioned(answers[0].body.clone()).await;
        });
    }
    cases.done().await;
}

async fn at_once(case: &Case) -> Vec<Answer> {
    let mut posting = JoinSet::new();
    for _ in 0..3 {
        let (world, delivery) = (case.world.clone(), case.delivery.clone());
        posting.spawn(async move { world.post(&delivery).await });
    }
    posting.join_all().await
}

/// GitHub posts nothing again, so what it said is kept and tried later.
#[tokio::test]
async fn a_purchase_on_github_that_fails_is_kept() {
    let world = alongside().await;
    let account = github::account();
    let mut case = Case::new(&world, "GitHub".to_owned(), SKU);
    case.account = format!("github-{account}");
    case.queue = queue_of(&world, &case.account);
    case.delivery = Delivery::github(world.env, github::purchased(account).to_string());
    let rule = json!({ "mode": "fail", "code": "AccessDeniedException" });
    case.fault("step", "lambda", "Invoke", "{account}", &rule).await;
    let answer = case.post().await;
    assert_eq!(
        (answer.status, operation(&answer.json())),
        (202, "entitlement_failed"),
        "{answer:?}"
    );
    let all = POOL_MADE;
    case.on_record("governor_boot", all).await;
    case.mend("step", "lambda").await;
    // It is due in a minute, so nobody has to come now.
    let resumed = resume(&case, &world.env.entitlement).await;
    assert_eq!(
        (&resumed["carried_out"], &resumed["waiting"]),
        (&json!(0), &json!(1)),
        "{resumed}"
    );
    let kept = world.stored(&case.account).await.tenant.unwrap().deferred;
    assert_eq!(kept.len(), 1, "{kept:?}");
    let wait = kept[0].due_at.duration_since(kept[0].received_at).as_secs();
    assert_eq!((kept[0].attempts, wait / 10), (1, 6), "{kept:?}");
    assert_eq!(case.post().await, answer);
    assert_eq!(case.operations().await, ["entitlement_failed"]);
}

/// Calls of `cancel` that decommission a tenant with tables of its own, in their order: `{mapping}` is the id of its
/// mapping; so many calls that say so come before.
const DECOMMISSION: &[(&str, &str, &str, &str, u32)] = &[
    ("the log", "s3", "PutObject", "_log/{account}/", 0),
    ("drain", "sqs", "GetQueueAttributes", "{queue}\"", 0),
    ("mapping", "lambda", "DeleteEventSourceMapping", "{mapping}", 0),
    ("mappings", "lambda", "ListEventSourceMappings", ":{queue}", 0),
    ("signals", "sqs", "ReceiveMessage", "{queue}\"", 0),
    ("dead letters", "sqs", "ReceiveMessage", "{queue}-dlq\"", 0),
    // The first one begins it all, for the webhook.
    (
        "end of own tables",
        "dynamodb",
        "TransactWriteItems",
        "{queue}",
        1,
    ),
    ("own actions", "dynamodb", "Query", "{queue}-actions\"", 0),
    (
        "archive of actions",
        "s3",
        "PutObject",
        "/{account}/g1.actions.jsonl",
        0,
    ),
    ("own receipts", "dynamodb", "Query", "{queue}-receipts\"", 0),
    (
        "own tables retired",
        "dynamodb",
        "TransactWriteItems",
        "{queue}",
        2,
    ),
    ("archive", "s3", "PutObject", "/{account}/20", 0),
    ("queue", "sqs", "DeleteQueue", "{queue}\"", 0),
    ("dead-letter queue", "sqs", "DeleteQueue", "{queue}-dlq\"", 0),
    ("actions", "dynamodb", "DeleteTable", "{queue}-actions\"", 0),
    ("receipts", "dynamodb", "DeleteTable", "{queue}-receipts\"", 0),
    ("the end", "dynamodb", "TransactWriteItems", "{queue}", 3),
    ("closing receipt", "s3", "PutObject", "/{account}/20", 1),
];

#[tokio::test]
async fn every_step_of_decommissioning_fails_and_is_finished() {
    alone(|world| async move {
        own_tables(&world).await;
        let mut cases = JoinSet::new();
        for (step, service, operation, says, skip) in DECOMMISSION {
            let case = Case::new(&world, (*step).to_owned(), OWN_TABLES);
            cases.spawn(async move {
                let answer = case.post().await;
                let tenant = case.world.provisioned(answer.body).await;
                let action_id = unique("before");
                case.world.send(&tenant, tenant.restart(&action_id)).await;
                case.world
                    .settled(&case.account, &action_id, &["action_complete"])
                    .await;
                let mut says = (*says).to_owned();
                if says == "{mapping}" {
                    says = mapping_of(&case.world, &case.queue).await;
                }
                let rule = json!({ "mode": "refuse", "skip": skip, "count": 3, "function": "cancel" });
                case.fault("step", service, operation, &says, &rule).await;
                (case, tenant, *service)
            });
        }
        let cases = cases.join_all().await;
        let mut cancellations = Vec::new();
        for (case, ..) in &cases {
            let cancellation = Delivery::cancelled(world.env, &case.account, OWN_TABLES);
            let answer = world.post(&cancellation).await;
            assert_eq!(answer.status, 200, "{}: {answer:?}", case.name);
            cancellations.push(cancellation);
        }
        // Every one has met its fault, three times as the SDK asks.
        eventually("each step to have failed", PATIENCE, || async {
            let url = format!("{}/_calls", world.env.proxy_url);
            let calls: Vec<Value> = world.http.get(url).send().await.unwrap().json().await.unwrap();
            let refused = calls
                .iter()
                .filter(|call| call["function"] == "cancel" && call["status"] == 503);
            match refused.count() {
                enough if enough == 3 * cases.len() => Ok(()),
                found => Err(format!("{found} refusals")),
            }
        })
        .await;
        // A repeated delivery orders it again; the queue's own repeat comes after a minute, and finds nothing to do.
        for (cancellation, (case, ..)) in cancellations.iter().zip(&cases) {
            assert_eq!(world.post(cancellation).await.status, 200, "{}", case.name);
        }
        for (case, tenant, service) in &cases {
            gone(&world, tenant).await;
            case.mend("step", service).await;
            eventually("nothing to be left", SOON, || async {
                match left(&world, &case.queue).await {
                    left if left.is_empty() => Ok(()),
                    left => Err(format!("{}: {left:?}", case.name)),
                }
            })
            .await;
            assert_eq!(
                case.operations().await,
                [
                    "entitlement_active",
                    "action_complete",
                    "decommission_start",
                    "decommission_complete"
                ],
                "{}",
                case.name
            );
            let ledger = world.ledger(&case.account).await;
            assert_eq!(
                ledger.receipts[3]["actions_archive"]["entries"], 1,
                "{}",
                case.name
            );
            let kept = objects(&world, &format!("{}/", case.account)).await;
            assert!(
                kept.iter().any(|key| key.ends_with(".tar.gz")),
                "{}: {kept:?}",
                case.name
            );
        }
        let purge = world
            .sqs
            .purge_queue()
            .queue_url(&world.env.decommission_queue_url);
        purge.send().await.unwrap();
    })
    .await;
}

/// Calls of a plan change that asks for tables of its own: only those are made, and only those are undone.
const MOVE: &[Call] = &[
    call(
        "action_table",
        "dynamodb",
        "CreateTable",
        "{queue}-1-actions\"",
        0,
        [Undone(""), Undone("action_table")],
    ),
    call(
        "receipt_table",
        "dynamodb",
        "CreateTable",
        "{queue}-1-receipts\"",
        0,
        [Undone("action_table"), Undone(OWN)],
    ),
    call(
        "receipt",
        "dynamodb",
        "TransactWriteItems",
        "{queue}",
        1,
        [Undone(OWN), Active],
    ),
];
const OWN: &str = "receipt_table action_table";

/// Whichever way it fails, the tenant works on as before; and then it moves.
#[tokio::test]
async fn a_move_to_own_tables_fails_and_is_undone() {
    let world = alongside().await;
    let sku = unique("moving");
    let own = format!("sku_id: {sku}");
    let to = ("plan_type: professional", "plan_type: dedicated");
    world
        .deploy_fixture("dedicated.yaml", &[("sku_id: dedicated-sku", &own), to])
        .await;
    let from = ("plan_type: starter", "plan_type: professional");
    world
        .deploy_fixture("pool.yaml", &[("sku_id: pool-sku", &own), from])
        .await;
    let mut cases = Cases::new();
    for call in MOVE {
        for (way, mut rule, end) in ways() {
            // That time passes changes nothing here.
            let Some(end) = end.filter(|_| way != "never answered") else {
                continue;
            };
            let end = call.ends[end];
            rule["skip"] = json!(call.skip);
            let mut case = Case::new(&world, format!("move, {} {way}", call.operation), &sku);
            let sku = sku.clone();
            cases.run(false, async move {
                let world = case.world.clone();
                let answer = case.post().await;
                let tenant = world.provisioned(answer.body).await;
                let data = json!({ "account_id": case.account, "sku_id": sku, "plan_type": "dedicated" });
                case.delivery = Delivery::entitlement(world.env, "changed", data);
                case.fault("step", call.service, call.operation, call.says, &rule)
                    .await;
                let mut answer = case.post().await;
                case.mend("step", call.service).await;
                let mut operations = vec!["entitlement_active"];
                if let Undone(undone) = end {
                    come_back(&case.name, &answer);
                    let ledger = world.ledger(&case.account).await;
                    let last = ledger.receipts.last().unwrap();
                    let expected: Vec<&str> = undone.split_whitespace().collect();
                    assert_eq!(
                        (operation(last), &last["step"], &last["undone"]),
                        ("entitlement_failed", &json!(call.step), &json!(expected)),
                        "{}: {last}",
                        case.name
                    );
                    let action_id = unique("unmoved");
                    world.send(&tenant, tenant.restart(&action_id)).await;
                    world
                        .settled(&case.account, &action_id, &["action_complete"])
                        .await;
                    operations.extend(["entitlement_failed", "action_complete"]);
                    answer = case.post().await;
                }
                assert_eq!(
                    (answer.status, operation(&answer.json())),
                    (200, "entitlement_changed"),
                    "{}: {answer:?}",
                    case.name
                );
                operations.push("entitlement_changed");
                assert_eq!(case.operations().await, operations, "{}", case.name);
                assert!(world.own_receipts(&case.account).await.is_some(), "{}", case.name);
            });
        }
    }
    cases.done().await;
}
