//! `ggen redrive`: dead letters go back to their tenant's queue, and escalated actions are taken up again.
//!
//! A letter's way: taken and hidden → its action opened again, in one transaction → the signal put on the queue → the letter
//! deleted. Whoever is cut off in between does it again: an open action needs no opening, a signal that comes twice asks
//! for nothing more, and what is over only has its letter removed. An action without a letter is given one first.

mod answer;

use std::collections::BTreeSet;
use std::io;
use std::time::Duration;

use aws::clients;
use aws::config::{self, ConfigError, Stack};
use aws::control::{ControlError, ControlStore};
use aws::queues::{DeadLetters, LeftMessage, Messages, QueueError};
use aws::secrets::{Secrets, SecretsError};
use aws::store::{Store, StoreError};
use clap::Args;
use domain::account::AccountId;
use domain::action::{ActionState, IllegalTransition};
use domain::names::Partition;
use domain::operations::redrive::{self, Redriven};
use domain::signal::{ActionId, Signal};
use domain::tenant::{Lifecycle, TenantResources};
use domain::transaction::{Account, Keys};
use jiff::Timestamp;
use receipts::Signer;
use uuid::Uuid;

use self::answer::{Answer, LetterResult, Outcome};
use crate::cloud::{self, NEEDS_A_STACK};
use crate::out::{Format, Out};
use crate::report::{self, Verdict};

/// Most letters of one call.
const MAX_LETTERS: u64 = 10_000;
/// How long a letter is hidden from the sweep, and from another call, while it is worked on.
const HIDDEN: Duration = Duration::from_secs(60);
/// Letters that SQS takes back in one call.
const HANDED_BACK_AT_ONCE: usize = 10;

fn after_help() -> String {
    format!(
        "\
Examples:
  ggen redrive --account-id customer-123
  ggen redrive --account-id customer-123 --action-id a-1

Sends each dead letter's signal back to the tenant's queue and reopens its action with a signed action_redriven receipt.
An action that never started passes the gate again; one that had started is rolled back once a place is free. With
--action-id, an escalated action that has no dead letter gets one, and an action that was routed to a person is released: the
gate decides about it anew, under the policy in force. Letters that are not signals stay in place; letters
whose action has ended are removed, since the ledger has the action. Safe to repeat, even after an interruption: a letter
that was being processed stays hidden for a minute.
{NEEDS_A_STACK}
Exit code 0 all letters were returned or had already ended; 1 some stay, with the reason for each; 2 could not tell."
    )
}

/// Arguments of `ggen redrive`.
#[derive(Args)]
#[command(after_help = after_help())]
pub struct RedriveArgs {
    /// The tenant's account
    #[arg(long, value_name = "ID", value_parser = cloud::account_id)]
    account_id: AccountId,
    /// Only this action, with or without a dead letter [default: all letters]
    #[arg(long, value_name = "ID", value_parser = cloud::action_id)]
    action_id: Option<ActionId>,
    /// Maximum number of dead letters to process
    #[arg(long, value_name = "N", default_value_t = 100, conflicts_with = "action_id",
          value_parser = clap::value_parser!(u64).range(1..=MAX_LETTERS))]
    max: u64,
    /// Who asked for it, for the receipts
    #[arg(long, value_name = "NAME", env = "USER", value_parser = cloud::persons_text)]
    who: String,
}

/// Why letters could not be taken back.
#[derive(Debug, thiserror::Error)]
pub enum RedriveError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("cannot read or write the tenant's actions")]
    Store(#[from] StoreError),
    #[error("cannot use the tenant's queues")]
    Queue(#[from] QueueError),
    /// The control object cannot be read; nothing was changed.
    #[error("cannot read the control object; nothing was changed")]
    Control(#[from] ControlError),
    /// The signing key cannot be read; nothing was changed.
    #[error("cannot read the signing key; nothing was changed")]
    Secrets(#[from] SecretsError),
    #[error("cannot write the signal as JSON")]
    Encode(#[from] serde_json::Error),
    #[error(transparent)]
    Illegal(#[from] IllegalTransition),
    #[error("cannot start the runtime, or write to stdout")]
    System(#[from] io::Error),
}

/// Takes letters back.
///
/// # Errors
/// When the stack does not answer; letters that stay are a verdict.
pub fn run(args: &RedriveArgs, out: &mut Out) -> Result<Verdict, RedriveError> {
    cloud::block_on(redrive(args, out))?
}

async fn redrive(args: &RedriveArgs, out: &mut Out) -> Result<Verdict, RedriveError> {
    let stack = Stack::from_env()?;
    let sdk = clients::load().await;
    // The key first: what could leave no receipt is not begun.
    let signer = Secrets::new(&sdk).signer(&stack.signing_key_secret).await?;
    // A signal that is refused would have used up its letter.
    let bucket = config::required(config::CONTROL_BUCKET)?;
    let control = ControlStore::new(sdk.s3(), bucket).read().await?;
    let store = Store::new(&sdk, stack);
    let partition = Partition::of(&args.account_id);
    let account = Box::pin(cloud::load(&store, &partition)).await?;
    let lifecycle = account.tenant.as_ref().map(|tenant| tenant.lifecycle);
    let resources = account.tenant.map(|tenant| tenant.resources).unwrap_or_default();
    let mut redrive = Redrive {
        args,
        store,
        signer,
        partition,
        letters: DeadLetters::new(&sdk),
        messages: Messages::new(&sdk),
        resources,
        kept: Vec::new(),
        answer: Answer {
            account_id: args.account_id.clone(),
            lifecycle,
            degraded: control.degraded(),
            letters: Vec::new(),
            hidden: 0,
            more: false,
        },
    };
    let ended = match redrive.answer.degraded {
        true => Ok(()),
        false => Box::pin(redrive.all()).await,
    };
    redrive.hand_back().await;
    // What was done is told even if not all was: those signals are on the queue.
    if ended.is_ok() || !redrive.answer.letters.is_empty() {
        show(&redrive.answer, out)?;
    }
    ended.map(|()| redrive.answer.verdict())
}

fn show(answer: &Answer, out: &mut Out) -> Result<(), RedriveError> {
    out.list(answer, &answer.letters)?;
    if out.format() == Some(Format::Jsonl) && (answer.hidden > 0 || answer.more) {
        report::note(&format!(
            "{} letters are hidden, more: {}",
            answer.hidden, answer.more
        ));
    }
    Ok(())
}

struct Redrive<'a> {
    args: &'a RedriveArgs,
    store: Store,
    signer: Signer,
    partition: Partition,
    letters: DeadLetters,
    messages: Messages,
    resources: TenantResources,
    /// Handles of letters that stay.
    kept: Vec<String>,
    answer: Answer,
}

impl Redrive<'_> {
    async fn all(&mut self) -> Result<(), RedriveError> {
        let queue_url = self.resources.dead_letter_queue_url.clone();
        // Letters of one that leaves are kept, and put on record, by whoever decommissions it.
        if self.answer.lifecycle == Some(Lifecycle::Active) {
            let backlog = self.letters.backlog(&queue_url).await?;
            self.answer.hidden = backlog.in_flight;
            self.take_letters(&queue_url).await?;
        }
        let Some(action_id) = &self.args.action_id else {
            return Ok(());
        };
        if self.answer.letters.is_empty() {
            self.give_letter(action_id, &queue_url).await?;
        }
        // Letters of other actions are nobody's business here.
        self.answer.hidden = 0;
        Ok(())
    }

    /// Takes letters until there are none, or enough: all, or those of the action that was named. A signal that was sent
    /// twice has two.
    async fn take_letters(&mut self, queue_url: &str) -> Result<(), RedriveError> {
        let most = usize::try_from(self.args.max).unwrap_or(usize::MAX);
        let mut seen = BTreeSet::new();
        loop {
            let letters = self.letters.receive(queue_url, HIDDEN).await?;
            // One that comes again was hidden for its time; others may not have been looked at.
            let again = letters
                .iter()
                .any(|letter| !seen.insert(letter.message_id.clone()));
            self.kept
                .extend(letters.iter().map(|letter| letter.receipt_handle.clone()));
            if letters.is_empty() {
                return Ok(());
            }
            if again {
                self.answer.more = self.args.action_id.is_none();
                return Ok(());
            }
            for letter in letters {
                if self.answer.letters.len() >= most {
                    self.answer.more = true;
                    return Ok(());
                }
                let Some(taken) = self.take(queue_url, &letter).await? else {
                    continue;
                };
                if taken.outcome.is_settled() {
                    self.kept.retain(|handle| *handle != letter.receipt_handle);
                }
                self.answer.letters.push(taken);
            }
        }
    }

    /// Brings one letter back; `None` when it is not the one that was asked for.
    async fn take(
        &self,
        queue_url: &str,
        letter: &LeftMessage,
    ) -> Result<Option<LetterResult>, RedriveError> {
        let signal = Signal::parse(&letter.body).ok();
        let signal = signal.filter(|signal| signal.account_id == self.args.account_id);
        let named = signal.as_ref().map(|signal| &signal.action_id);
        if self
            .args
            .action_id
            .as_ref()
            .is_some_and(|wanted| named != Some(wanted))
        {
            return Ok(None);
        }
        let taken = |outcome, state, receipt_id| {
            Some(LetterResult {
                message_id: Some(letter.message_id.clone()),
                action_id: named.cloned(),
                outcome,
                state,
                receipt_id,
            })
        };
        let Some(signal) = &signal else {
            return Ok(taken(Outcome::NotASignal, None, None));
        };
        let (outcome, state, receipt_id) = Box::pin(self.open(&signal.action_id, Some(signal))).await?;
        if outcome == Outcome::Returned {
            let body = letter.body.clone();
            self.messages.send(&self.resources.queue_url, body).await?;
        }
        if outcome.is_settled() {
            self.letters.delete(queue_url, &letter.receipt_handle).await?;
        }
        Ok(taken(outcome, state, receipt_id))
    }

    /// Opens an action again, if it has to be: then its signal may go back.
    async fn open(
        &self,
        action_id: &ActionId,
        signal: Option<&Signal>,
    ) -> Result<(Outcome, Option<ActionState>, Option<Uuid>), RedriveError> {
        let keys = Keys {
            actions: BTreeSet::from([action_id.clone()]),
            ..Keys::default()
        };
        let redrive = self.of(action_id, signal);
        let decide = |account: &Account, now| {
            let state = account.actions.get(action_id).map(|action| action.state);
            let (plan, redriven) = redrive::redrive(account, &redrive, now)?;
            Ok::<_, RedriveError>((plan, (redriven, state)))
        };
        let (_, (redriven, state)) = self
            .store
            .transact(&self.signer, &self.partition, &keys, None, decide)
            .await?;
        Ok(match redriven {
            Redriven::Reopened(state) => (Outcome::Returned, Some(state), Some(redrive.receipt_id)),
            other => (Outcome::of(other), state, None),
        })
    }

    fn of<'a>(&'a self, action_id: &'a ActionId, signal: Option<&'a Signal>) -> redrive::Redrive<'a> {
        redrive::Redrive {
            action_id,
            signal,
            by: &self.args.who,
            receipt_id: Uuid::now_v7(),
        }
    }

    /// Gives an action that has no letter one, as far as the action says what it was to do, and takes that: from then on
    /// nothing is lost, wherever it is cut off.
    async fn give_letter(&mut self, action_id: &ActionId, queue_url: &str) -> Result<(), RedriveError> {
        let keys = Keys {
            actions: BTreeSet::from([action_id.clone()]),
            ..Keys::default()
        };
        let account = Box::pin(self.store.load(&self.partition, &keys)).await?;
        let action = account.actions.get(action_id);
        let hidden = self.answer.hidden > 0;
        let (outcome, state) = match action {
            None if hidden => (Outcome::Hidden, None),
            None => (Outcome::Unknown, None),
            // Only its own signal says what it is to do, and that is on the queue or among the letters.
            Some(action) if action.state == ActionState::Pending => (Outcome::Hidden, Some(action.state)),
            Some(action) if action.parameters.is_none() && !action.state.is_final() => {
                (Outcome::Hidden, Some(action.state))
            }
            Some(action) => {
                let (_, redriven) = redrive::redrive(&account, &self.of(action_id, None), Timestamp::now())?;
                let outcome = Outcome::of(redriven);
                // What never began is best known by its letter.
                let letter_first = hidden && action.resumes_at() == Some(ActionState::Pending);
                let outcome = match outcome {
                    Outcome::Returned if letter_first => Outcome::Hidden,
                    outcome => outcome,
                };
                (outcome, Some(action.state))
            }
        };
        let told = |outcome, state| LetterResult {
            message_id: None,
            action_id: Some(action_id.clone()),
            outcome,
            state,
            receipt_id: None,
        };
        let Some(action) = action.filter(|_| outcome == Outcome::Returned) else {
            self.answer.letters.push(told(outcome, state));
            return Ok(());
        };
        let signal = redrive::signal(&account, &self.args.account_id, action);
        let body = serde_json::to_string(&signal)?;
        if !action.state.is_a_persons() {
            // Nothing has to be opened: a signal more does no harm.
            self.messages.send(&self.resources.queue_url, body).await?;
            self.answer.letters.push(told(outcome, state));
            return Ok(());
        }
        self.messages.send(queue_url, body).await?;
        self.take_letters(queue_url).await?;
        if self.answer.letters.is_empty() {
            self.answer.letters.push(told(Outcome::Hidden, state));
        }
        Ok(())
    }

    /// Shows letters that stay to others again; without that they come back after their time.
    async fn hand_back(&mut self) {
        let kept: Vec<(String, u32)> = self.kept.drain(..).map(|handle| (handle, 0)).collect();
        for handles in kept.chunks(HANDED_BACK_AT_ONCE) {
            let queue_url = &self.resources.dead_letter_queue_url;
            if let Err(error) = self.messages.retry_in(queue_url, handles).await {
                report::note(&format!(
                    "letters that stay are hidden for up to a minute: {error}"
                ));
            }
        }
    }
}
