//! `ggen redrive`: dead letters go back to their tenant's queue, and escalated actions are taken up again.
//!
//! A letter's way: taken and hidden → its action opened again, in one transaction → the signal put on the queue → the letter
//! deleted. Whoever is cut off in between does it again: an open action needs no opening, a signal that comes twice asks
//! for nothing more, and what is over only has its letter removed. An action without a letter is given one first.

use std::collections::BTreeSet;
use std::fmt;
use std::io::{self, Write as _};
use std::time::Duration;

use aws::clients;
use aws::config::{self, ConfigError, Stack};
use aws::control::{ControlError, ControlStore};
use aws::queues::{DeadLetters, Left, Messages, QueueError};
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
use serde::Serialize;
use uuid::Uuid;

use super::escalations;
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

Each letter's signal goes back to the tenant's queue, and its action is opened again with a signed action_redriven receipt:
one that never began meets the gate anew, one that was under way is undone once a place is free. With --action-id an
escalated action without a letter is given one. Letters that are no signals stay; those whose action is over by now are
removed, as the ledger has them. Safe to repeat, also when it was cut off: a letter it was at work on is hidden for a minute.
{NEEDS_A_STACK}
Exit code 0 all went back or were over already; 1 some stay, and it says why; 2 could not tell."
    )
}

/// Arguments of `ggen redrive`.
#[derive(Args)]
#[command(after_help = after_help())]
pub struct RedriveArgs {
    /// The tenant's account
    #[arg(long, value_name = "ID", value_parser = cloud::account_id)]
    account_id: AccountId,
    /// Only this action, whether it has a letter or not [default: all letters]
    #[arg(long, value_name = "ID", value_parser = escalations::action_id)]
    action_id: Option<ActionId>,
    /// How many letters to take at most
    #[arg(long, value_name = "N", default_value_t = 100, conflicts_with = "action_id",
          value_parser = clap::value_parser!(u64).range(1..=MAX_LETTERS))]
    max: u64,
    /// Who has them taken up again, for the receipts
    #[arg(long, value_name = "NAME", env = "USER", value_parser = escalations::persons_text)]
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
    #[error("cannot tell whether signals are taken; nothing was changed")]
    Control(#[from] ControlError),
    /// The signing key cannot be read; nothing was changed.
    #[error("cannot read the signing key; nothing was changed")]
    Secrets(#[from] SecretsError),
    #[error("cannot write JSON")]
    Encode(#[from] serde_json::Error),
    /// The action does not take it: a bug, told instead of hidden.
    #[error(transparent)]
    Illegal(#[from] IllegalTransition),
    #[error("cannot go on")]
    System(#[from] io::Error),
}

/// What became of a letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Outcome {
    /// On the queue again.
    Returned,
    /// Its action has ended: removed.
    AlreadyOver,
    /// Stays: it is to be undone, and no place among the concurrent actions is free.
    NoPlace,
    /// Stays: what it ran under is cancelled.
    EntitlementGone,
    /// Stays: there is nothing left to do but what a person does.
    NothingToGoOnWith,
    /// Stays: it is no signal of this tenant.
    NotASignal,
    /// Stays: the tenant takes no signals any more.
    NotActive,
    /// Its signal waits on the queue, or its letter is one of those that are hidden now.
    Hidden,
    /// There is neither such an action nor a letter of it.
    Unknown,
}

impl Outcome {
    fn of(redriven: Redriven) -> Self {
        match redriven {
            Redriven::Open | Redriven::Reopened(_) => Self::Returned,
            Redriven::AlreadyOver => Self::AlreadyOver,
            Redriven::NotActive => Self::NotActive,
            Redriven::NothingToGoOnWith => Self::NothingToGoOnWith,
            Redriven::NoPlace => Self::NoPlace,
            Redriven::EntitlementGone => Self::EntitlementGone,
        }
    }

    fn is_settled(self) -> bool {
        matches!(self, Self::Returned | Self::AlreadyOver)
    }

    fn name(self) -> &'static str {
        match self {
            Self::Returned => "returned",
            Self::AlreadyOver => "already over",
            Self::NoPlace
            | Self::EntitlementGone
            | Self::NothingToGoOnWith
            | Self::NotASignal
            | Self::NotActive
            | Self::Hidden => "left",
            Self::Unknown => "unknown",
        }
    }

    fn detail(self) -> &'static str {
        match self {
            Self::Returned => "on the queue again",
            Self::AlreadyOver => "nothing left to do, its letter is removed",
            Self::NoPlace => "no place is free to undo it; try again",
            Self::EntitlementGone => "what it ran under is cancelled; resolve it",
            Self::NothingToGoOnWith => "nothing is left to go on with; resolve it",
            Self::NotASignal => "no signal of this tenant",
            Self::NotActive => "the tenant takes no signals any more",
            Self::Hidden => "its signal waits on the queue, or its letter is hidden; try again in a minute",
            Self::Unknown => "neither an action nor a letter",
        }
    }
}

#[derive(Debug, Serialize)]
struct Taken {
    /// SQS's id of the letter, if there is one.
    message_id: Option<String>,
    /// The action, unless the letter is no signal.
    action_id: Option<ActionId>,
    outcome: Outcome,
    /// Where the action stands, if it is known.
    state: Option<ActionState>,
    /// The receipt by which it was opened again.
    receipt_id: Option<Uuid>,
}

#[derive(Serialize)]
struct Answer {
    account_id: AccountId,
    /// Where the tenant stands, if there ever was one.
    lifecycle: Option<Lifecycle>,
    /// Whether the system is degraded: signals would only be refused.
    degraded: bool,
    letters: Vec<Taken>,
    /// Letters that somebody else was at work on.
    hidden: u64,
    /// Whether there were more letters than were asked for.
    more: bool,
}

impl Answer {
    fn count(&self, of: impl Fn(Outcome) -> bool) -> usize {
        self.letters.iter().filter(|letter| of(letter.outcome)).count()
    }

    /// Whether the tenant takes no signals, and nothing else was found.
    fn is_refused(&self) -> bool {
        self.letters.is_empty() && (self.degraded || self.lifecycle != Some(Lifecycle::Active))
    }

    fn verdict(&self) -> Verdict {
        let settled = self.letters.iter().all(|letter| letter.outcome.is_settled());
        Verdict::when(settled && self.hidden == 0 && !self.more && !self.is_refused())
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_refused() && self.degraded {
            return f
                .write_str("REFUSED: the system is degraded, and refuses signals; try again when it is not");
        }
        if self.is_refused() {
            return match self.lifecycle {
                Some(lifecycle) => write!(
                    f,
                    "REFUSED: {} is {} and takes no signals",
                    self.account_id,
                    lifecycle.name()
                ),
                None => write!(f, "REFUSED: there is no tenant {}", self.account_id),
            };
        }
        for letter in &self.letters {
            let named = match (&letter.action_id, &letter.message_id) {
                (Some(action_id), _) => action_id.as_str(),
                (None, Some(message_id)) => message_id.as_str(),
                (None, None) => "",
            };
            let (name, detail) = (letter.outcome.name(), letter.outcome.detail());
            write!(f, "{name:<12}  {named}: {detail}")?;
            match (letter.outcome, letter.state) {
                (Outcome::AlreadyOver, Some(state)) => writeln!(f, " ({})", state.name())?,
                _ => writeln!(f)?,
            }
        }
        if self.hidden > 0 {
            writeln!(
                f,
                "{} letters are hidden while somebody works on them, for a minute at the most",
                self.hidden
            )?;
        }
        let settled = self.count(Outcome::is_settled);
        write!(
            f,
            "{} returned, {} already over, {} left",
            self.count(|outcome| outcome == Outcome::Returned),
            self.count(|outcome| outcome == Outcome::AlreadyOver),
            self.letters.len() - settled
        )?;
        match self.more {
            true => f.write_str("; there are more letters: take more with --max"),
            false => Ok(()),
        }
    }
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
    let control = ControlStore::new(clients::s3(&sdk), bucket).read().await?;
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
    if out.format() != Some(Format::Jsonl) {
        return Ok(out.show(answer)?);
    }
    for letter in &answer.letters {
        serde_json::to_writer(&mut *out, letter)?;
        out.write_all(b"\n")?;
    }
    if answer.hidden > 0 || answer.more {
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
    async fn take(&self, queue_url: &str, letter: &Left) -> Result<Option<Taken>, RedriveError> {
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
            Some(Taken {
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
        let told = |outcome, state| Taken {
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
        let body = serde_json::to_string(&action.signal(&self.args.account_id))?;
        if action.state != ActionState::Escalated {
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
                report::note(&format!("letters that stay are hidden for a minute: {error}"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_say_what_stays() {
        let letter = |action_id: Option<&str>, outcome, state| Taken {
            message_id: Some("m-1".to_owned()),
            action_id: action_id.map(|id| ActionId::try_from(id.to_owned()).unwrap()),
            outcome,
            state,
            receipt_id: None,
        };
        let mut answer = Answer {
            account_id: AccountId::parse("c").unwrap(),
            lifecycle: Some(Lifecycle::Active),
            degraded: false,
            letters: vec![
                letter(Some("a-1"), Outcome::Returned, Some(ActionState::Pending)),
                letter(Some("a-2"), Outcome::AlreadyOver, Some(ActionState::Complete)),
            ],
            hidden: 0,
            more: false,
        };
        assert_eq!(answer.verdict(), Verdict::Good);
        answer.more = true;
        assert_eq!(answer.verdict(), Verdict::NotGood);
        answer.more = false;
        answer.letters.push(letter(None, Outcome::NotASignal, None));
        assert_eq!(answer.verdict(), Verdict::NotGood);
        answer.more = true;
        let expected = "\
returned      a-1: on the queue again
already over  a-2: nothing left to do, its letter is removed (complete)
left          m-1: no signal of this tenant
1 returned, 1 already over, 1 left; there are more letters: take more with --max";
        assert_eq!(answer.to_string(), expected);
        let none = Answer {
            letters: Vec::new(),
            hidden: 2,
            more: false,
            ..answer
        };
        assert_eq!(none.verdict(), Verdict::NotGood);
        assert!(none.to_string().starts_with("2 letters are hidden"), "{none}");
        let refused = |lifecycle| Answer {
            account_id: AccountId::parse("c").unwrap(),
            lifecycle,
            degraded: false,
            letters: Vec::new(),
            hidden: 0,
            more: false,
        };
        let degraded = Answer {
            degraded: true,
            ..refused(Some(Lifecycle::Active))
        };
        assert_eq!(degraded.verdict(), Verdict::NotGood);
        assert!(
            degraded
                .to_string()
                .starts_with("REFUSED: the system is degraded")
        );
        for (lifecycle, text) in [
            (None, "REFUSED: there is no tenant c"),
            (
                Some(Lifecycle::Decommissioning),
                "REFUSED: c is decommissioning and takes no signals",
            ),
        ] {
            let answer = refused(lifecycle);
            assert_eq!(
                (answer.verdict(), answer.to_string()),
                (Verdict::NotGood, text.to_owned())
            );
        }
        let nothing = refused(Some(Lifecycle::Active));
        assert_eq!(nothing.verdict(), Verdict::Good);
        assert_eq!(nothing.to_string(), "0 returned, 0 already over, 0 left");
    }
}
