//! Many writers of one ledger at once: no gap, no fork, no error. `make bench` prints what they get done.

use std::io::Write as _;
use std::sync::Arc;

use aws::clients;
use aws::store::{Store, StoreError};
use domain::transaction::{Keys, Plan};
use receipts::receipt::{Draft, Payload};
use receipts::{Head, Signer};
use tokio::task::JoinSet;
use tokio::time::Instant;
use uuid::Uuid;

use crate::world::{World, alongside, partition_of, unique};

/// Receipts in one commit: a batch of signals leaves as many.
const GROUP: usize = 10;
/// Commits of all writers together.
const COMMITS: usize = 48;

#[tokio::test]
async fn writers_of_one_ledger_leave_one_chain() {
    let world = alongside().await;
    let signer = Arc::new(Signer::from_pem(&world.signing_key().await).unwrap());
    let mut told = String::new();
    for writers in [1, 4, 16] {
        let seconds = write(&world, &signer, writers).await;
        let rate = COMMITS as f64 / seconds;
        told += &format!(
            "{writers:>3} writers {rate:>8.1} commits/s {:>9.1} receipts/s\n",
            rate * GROUP as f64
        );
    }
    // Past the capture of a test that passes, for `make bench`.
    if std::env::var_os("PRINT_RATES").is_some() {
        writeln!(std::io::stdout(), "\n{told}").unwrap();
    }
}

/// Has so many writers commit to one new ledger; gives how long they took, in seconds.
async fn write(world: &World, signer: &Arc<Signer>, writers: usize) -> f64 {
    let account = unique("written");
    let store = Arc::new(Store::new(&clients::load().await, world.stack()));
    let began = Instant::now();
    let mut running = JoinSet::new();
    for writer in 0..writers {
        let (store, signer, account) = (store.clone(), signer.clone(), account.clone());
        running.spawn(async move {
            for commit in (writer..COMMITS).step_by(writers) {
                let drafts: Vec<_> = (0..GROUP).map(|_| draft(&account, commit)).collect();
                let plan = |_: &domain::transaction::Account, _| {
                    let drafts = drafts.clone();
                    let plan = Plan {
                        drafts,
                        ..Plan::default()
                    };
                    Ok::<_, StoreError>((plan, ()))
                };
                let done = store
                    .transact(&signer, &partition_of(&account), &Keys::default(), None, plan)
                    .await;
                assert_eq!(done.unwrap().0.sealed.len(), GROUP);
            }
        });
    }
    running.join_all().await;
    let seconds = began.elapsed().as_secs_f64();

    // Reading it checks the chain; each group stands together, and nothing of a commit that lost is left.
    let ledger = world.ledger(&account).await;
    assert_eq!(ledger.lines.len(), COMMITS * GROUP);
    let mut commits = Vec::new();
    for group in ledger.receipts.chunks(GROUP) {
        assert!(
            group
                .iter()
                .all(|receipt| receipt["reason"] == group[0]["reason"]),
            "{group:?}"
        );
        commits.push(group[0]["reason"].as_str().unwrap().to_owned());
    }
    commits.sort();
    commits.dedup();
    assert_eq!(commits.len(), COMMITS);
    let partition = store
        .load(&partition_of(&account), &Keys::default())
        .await
        .unwrap();
    let leaves: Vec<_> = ledger.lines.iter().map(receipts::merkle::leaf_hash).collect();
    let root = receipts::CompactRange::of(&leaves).root();
    assert_eq!(partition.head.root().unwrap(), root);
    assert_ne!(partition.head, Head::empty());
    seconds
}

fn draft(account: &str, commit: usize) -> Draft {
    Draft {
        receipt_id: Uuid::now_v7(),
        account_id: account.to_owned(),
        occurred_at: jiff::Timestamp::now(),
        duration_ms: 1,
        policy_hash: None,
        payload: Payload::WebhookIgnored {
            provider: None,
            delivery_id: None,
            reason: format!("commit {commit:03}"),
        },
    }
}
