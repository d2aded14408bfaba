//! `ggen audit`: a live ledger from its first receipt to its head, against its checkpoints, and its actions.

use std::fmt;
use std::io;

use aws::pages::Pages;
use clap::Args;
use domain::audit::{ActionAudit, ActionError, Actions};
use domain::names::LedgerId;
use indicatif::{ProgressBar, ProgressStyle};
use jiff::Timestamp;
use receipts::key::KeyRing;
use serde::Serialize;

use crate::cloud::{self, LedgerArgs, NEEDS_A_STACK};
use crate::evidence::{Rejected, TrustArgs};
use crate::ledger::{LedgerCheck, LedgerError, Live, LiveError};
use crate::out::Out;
use crate::report::Verdict;

fn after_help() -> String {
    format!(
        "\
Examples:
  ggen audit --account-id customer-123 --public-key auditor.pub
  ggen audit --system --public-key auditor.pub --format json

Reads the whole ledger and checks the form, fields, signature, account, sequence, chain and time order of each receipt;
that the ledger ends where its head says, with the head's Merkle tree, and that nothing stands behind it; that every checkpoint in the audit bucket, where
nobody can delete them, covers a prefix of this ledger; and that every action has exactly one final receipt and the
state that it says in the table. Reports the first problem: what it is, the rule, and both values.
{NEEDS_A_STACK}
Exit code 0 VERIFIED, 1 NOT VERIFIED, 2 could not tell."
    )
}

/// Arguments of `ggen audit`.
#[derive(Args)]
#[command(after_help = after_help())]
pub struct AuditArgs {
    #[command(flatten)]
    ledger: LedgerArgs,
    #[command(flatten)]
    trust: TrustArgs,
}

/// Why a ledger could not be audited.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    #[error(transparent)]
    Live(#[from] LiveError),
    #[error("account {account} has no receipts")]
    NoLedger { account: String },
    #[error("cannot write the answer")]
    Write(#[from] io::Error),
}

/// What is wrong with a ledger.
#[derive(Debug, thiserror::Error)]
enum WrongError {
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    #[error("the ledger's receipts and actions do not match")]
    Action(#[from] ActionError),
    #[error(
        "an item stands at place {seq}, but the head says that the ledger has {size} receipts: it was planted, or the head was put back; no receipt can be appended"
    )]
    Planted { seq: u64, size: u64 },
    #[error("the ledger is empty, but a checkpoint covers {size} receipts: it was rolled back")]
    Gone { size: u64 },
}

#[derive(Serialize)]
struct VerifiedLedger {
    verified: bool,
    account_id: String,
    receipts: u64,
    last_hash: String,
    root: String,
    checkpoints: u64,
    /// Receipts under the largest checkpoint.
    checkpointed: u64,
    actions_finished: u64,
    actions_in_progress: u64,
    key_ids: Vec<String>,
}

impl fmt::Display for VerifiedLedger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "VERIFIED: ledger of account {}", self.account_id)?;
        writeln!(f, "  receipts    {} in order, chained and signed", self.receipts)?;
        writeln!(f, "  head        {}", self.last_hash)?;
        writeln!(f, "  root        {}", self.root)?;
        writeln!(
            f,
            "  checkpoints {}, the largest over {} receipts",
            self.checkpoints, self.checkpointed
        )?;
        writeln!(
            f,
            "  actions     {} finished, {} in progress",
            self.actions_finished, self.actions_in_progress
        )?;
        write!(f, "  keys        {}", self.key_ids.join(", "))
    }
}

/// Audits a ledger.
///
/// # Errors
/// When it cannot be read; a ledger that does not hold is a verdict.
pub fn run(args: &AuditArgs, out: &mut Out) -> Result<Verdict, AuditError> {
    cloud::block_on(audit(args, out))?
}

async fn audit(args: &AuditArgs, out: &mut Out) -> Result<Verdict, AuditError> {
    let trusted = args.trust.keys().map_err(LiveError::from)?;
    let live = Live::open().await?;
    let keys = live.follow(trusted).await?;
    match look(&live, &args.ledger.id(), keys).await? {
        Ok(audited) => {
            out.show(&audited)?;
            Ok(Verdict::Good)
        }
        Err(error) => {
            let subject = format!("ledger of account {}", args.ledger.account());
            Ok(Rejected::new(subject, &error).show(out)?)
        }
    }
}

/// The outer error is that it could not be read, the inner one what is wrong.
async fn look(
    live: &Live,
    ledger: &LedgerId,
    keys: KeyRing,
) -> Result<Result<VerifiedLedger, WrongError>, AuditError> {
    let account_id = ledger.ledger().account_id().to_owned();
    let partition = ledger.partition();
    // Before the receipts: what is signed for or appended later may not be among them.
    let stored = live.log.checkpoints(ledger).await.map_err(LiveError::from)?;
    let head = cloud::load(&live.store, &partition)
        .await
        .map_err(LiveError::from)?
        .head;
    let read_from = Timestamp::now();
    let checkpoints = stored.len() as u64;
    let checkpointed = stored.iter().map(|(size, ..)| *size).max().unwrap_or(0);
    if head.size == 0 {
        let behind = live.store.behind_head(&partition).await;
        if let Some(seq) = behind.map_err(LiveError::from)? {
            return Ok(Err(WrongError::Planted { seq, size: 0 }));
        }
        return match checkpointed {
            0 => Err(AuditError::NoLedger { account: account_id }),
            size => Ok(Err(WrongError::Gone { size })),
        };
    }
    let key_ids = keys.key_ids().map(str::to_owned).collect();
    let stored = stored.into_iter().map(|(size, _, note)| (size, note));
    let following = LedgerCheck::new(&account_id, keys).with_checkpoints(&live.log.origin(ledger), stored);
    let mut following = match following {
        Ok(following) => following,
        Err(error) => return Ok(Err(error.into())),
    };

    let bar = ProgressBar::new(head.size);
    if let Ok(style) = ProgressStyle::with_template("auditing {bar:40} {pos}/{len} {eta}") {
        bar.set_style(style);
    }
    let mut actions = ActionAudit::new();
    let mut next = 0;
    while next < head.size {
        let page = live
            .store
            .receipts_from(&partition, next)
            .await
            .map_err(LiveError::from)?;
        if page.is_empty() {
            break;
        }
        let most = usize::try_from(head.size - next).unwrap_or(usize::MAX);
        for line in page.iter().take(most) {
            let followed = following
                .push(line)
                .map_err(WrongError::from)
                .and_then(|receipt| Ok(actions.receipt(&receipt)?));
            if let Err(error) = followed {
                bar.finish_and_clear();
                return Ok(Err(error));
            }
            next += 1;
        }
        bar.set_position(next);
    }
    bar.finish_and_clear();
    if let Err(error) = following.end(&head) {
        return Ok(Err(error.into()));
    }
    let behind = live.store.behind_head(&partition).await;
    if let Some(seq) = behind.map_err(LiveError::from)? {
        let size = head.size;
        return Ok(Err(WrongError::Planted { seq, size }));
    }

    let mut pages = Pages::default();
    let read = async |after| live.store.actions(&partition, after).await;
    while let Some(page) = pages.next(&read).await.map_err(LiveError::from)? {
        for action in &page {
            if let Err(error) = actions.action(action, read_from) {
                return Ok(Err(error.into()));
            }
        }
    }
    let Actions {
        finished,
        in_progress,
    } = match actions.end(read_from) {
        Ok(actions) => actions,
        Err(error) => return Ok(Err(error.into())),
    };
    let root = match head.root() {
        Ok(root) => hex::encode(root),
        // Its range was just found to be the ledger's.
        Err(_) => String::new(),
    };
    Ok(Ok(VerifiedLedger {
        verified: true,
        account_id,
        receipts: head.size,
        last_hash: head.last_hash,
        root,
        checkpoints,
        checkpointed,
        actions_finished: finished,
        actions_in_progress: in_progress,
        key_ids,
    }))
}
