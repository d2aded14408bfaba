//! `ggen switches`: what operators turn on and off for the whole system.

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::str::FromStr;
use std::time::Instant;

use aws::clients;
use aws::config::{self, ConfigError, Stack};
use aws::control::{ControlError, ControlStore};
use aws::secrets::{Secrets, SecretsError};
use aws::spool::{Spool, SpoolError};
use aws::store::{Store, StoreError};
use clap::{Args, Subcommand};
use domain::control::{Control, Switches};
use domain::names::{self, Partition};
use domain::transaction::{Keys, Plan};
use jiff::Timestamp;
use policy::ontology::is_template_name;
use receipts::receipt::{Draft, Payload};
use serde::Serialize;
use uuid::Uuid;

use crate::cloud::{self, NEEDS_A_STACK};
use crate::out::Out;
use crate::report::{self, Verdict};

/// Highest rollout tier.
const MAX_TIER: u8 = 2;

fn after_set_help() -> String {
    format!(
        "\
Switches:
  armed=true|false               false: every signal is refused
  automation_enabled=true|false  false: actions wait for a person
  safe_mode=true|false           true: actions wait for a person
  rollout_tier=0|1|2             highest tier of action that runs without a person
  disabled_templates=a,b         templates that wait for a person; * for all, empty for none

Example:
  ggen switches set armed=true automation_enabled=true safe_mode=false rollout_tier=1 disabled_templates=

A change leaves a signed switch_changed receipt in the system's ledger (ggen export-receipts --system).
{NEEDS_A_STACK}"
    )
}

/// What to do with the switches.
#[derive(Subcommand)]
pub enum SwitchesCommand {
    /// Show the mode and the switches
    #[command(after_help = NEEDS_A_STACK)]
    Show,
    /// Change switches
    #[command(after_help = after_set_help())]
    Set(SetArgs),
}

/// Arguments of `ggen switches set`.
#[derive(Args)]
pub struct SetArgs {
    /// The switches to change; the others stay as they are
    #[arg(value_name = "SWITCH=VALUE", required = true)]
    changes: Vec<Change>,
    /// Who makes the change, for the receipt
    #[arg(long, value_name = "NAME", env = "USER", value_parser = cloud::persons_text)]
    who: String,
}

#[derive(Clone, Debug)]
enum Change {
    Armed(bool),
    AutomationEnabled(bool),
    SafeMode(bool),
    RolloutTier(u8),
    DisabledTemplates(Vec<String>),
}

/// A change that is none.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    #[error(
        "expected armed, automation_enabled or safe_mode=true|false, rollout_tier=0|1|2 or disabled_templates=a,b"
    )]
    Switch,
    #[error(
        "{0:?} is not a template's name: expected names with commas between them, * for all, or nothing for none"
    )]
    Template(String),
    #[error("template {0:?} is named twice")]
    TemplateTwice(String),
}

/// Templates as they are listed in `disabled_templates`.
fn templates(listed: &str) -> Result<Vec<String>, ChangeError> {
    let mut templates = Vec::new();
    if listed.trim().is_empty() {
        return Ok(templates);
    }
    for template in listed.split(',').map(str::trim) {
        if template != "*" && !is_template_name(template) {
            return Err(ChangeError::Template(template.to_owned()));
        }
        if templates.iter().any(|known| known == template) {
            return Err(ChangeError::TemplateTwice(template.to_owned()));
        }
        templates.push(template.to_owned());
    }
    Ok(templates)
}

impl FromStr for Change {
    type Err = ChangeError;

    fn from_str(text: &str) -> Result<Self, ChangeError> {
        let (name, value) = text.split_once('=').ok_or(ChangeError::Switch)?;
        let switch = || value.parse().map_err(|_| ChangeError::Switch);
        Ok(match name {
            "armed" => Self::Armed(switch()?),
            "automation_enabled" => Self::AutomationEnabled(switch()?),
            "safe_mode" => Self::SafeMode(switch()?),
            "rollout_tier" => {
                let tier = value.parse().ok().filter(|tier| *tier <= MAX_TIER);
                Self::RolloutTier(tier.ok_or(ChangeError::Switch)?)
            }
            "disabled_templates" => Self::DisabledTemplates(templates(value)?),
            _ => return Err(ChangeError::Switch),
        })
    }
}

impl Change {
    fn switch(&self) -> &'static str {
        match self {
            Self::Armed(_) => "armed",
            Self::AutomationEnabled(_) => "automation_enabled",
            Self::SafeMode(_) => "safe_mode",
            Self::RolloutTier(_) => "rollout_tier",
            Self::DisabledTemplates(_) => "disabled_templates",
        }
    }

    fn apply(&self, switches: &mut Switches) {
        match self {
            Self::Armed(on) => switches.armed = *on,
            Self::AutomationEnabled(on) => switches.automation_enabled = *on,
            Self::SafeMode(on) => switches.safe_mode = *on,
            Self::RolloutTier(tier) => switches.rollout_tier = *tier,
            Self::DisabledTemplates(templates) => switches.disabled_templates.clone_from(templates),
        }
    }
}

/// Why the switches could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum SwitchesError {
    #[error("{0} is given twice: say once what it shall be; nothing was changed")]
    Twice(&'static str),
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("cannot read or change the control object")]
    Control(#[from] ControlError),
    /// The signing key cannot be read; nothing was changed.
    #[error("cannot read the signing key; nothing was changed")]
    Secrets(#[from] SecretsError),
    #[error("cannot write the switches as JSON")]
    Encode(#[from] serde_json::Error),
    #[error(
        "the switches were changed, but receipt {receipt_id} could be written neither to the ledger ({ledger}) nor to the spool"
    )]
    Receipt {
        receipt_id: Uuid,
        ledger: Box<StoreError>,
        source: SpoolError,
    },
    #[error("cannot start the runtime, or write to stdout")]
    System(#[from] io::Error),
}

#[derive(Serialize)]
struct SwitchesView {
    #[serde(flatten)]
    control: Control,
    #[serde(skip_serializing_if = "Option::is_none")]
    changed: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    receipt_id: Option<Uuid>,
}

impl fmt::Display for SwitchesView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let switches = &self.control.switches;
        if self.changed == Some(false) {
            writeln!(f, "nothing to change")?;
        }
        writeln!(
            f,
            "mode={}",
            if self.control.degraded() {
                "degraded"
            } else {
                "normal"
            }
        )?;
        writeln!(f, "armed={}", switches.armed)?;
        writeln!(f, "automation_enabled={}", switches.automation_enabled)?;
        writeln!(f, "safe_mode={}", switches.safe_mode)?;
        writeln!(f, "rollout_tier={}", switches.rollout_tier)?;
        write!(f, "disabled_templates={}", switches.disabled_templates.join(","))?;
        if let Some(receipt_id) = self.receipt_id {
            write!(f, "\nreceipt {receipt_id}")?;
        }
        Ok(())
    }
}

/// Shows or changes.
pub fn run(command: &SwitchesCommand, out: &mut Out) -> Result<Verdict, SwitchesError> {
    let shown = match command {
        SwitchesCommand::Show => cloud::block_on(show())??,
        SwitchesCommand::Set(args) => cloud::block_on(set(args))??,
    };
    out.show(&shown)?;
    Ok(Verdict::Good)
}

async fn show() -> Result<SwitchesView, SwitchesError> {
    let bucket = config::required(config::CONTROL_BUCKET)?;
    let control = ControlStore::new(clients::load().await.s3(), bucket)
        .read()
        .await?;
    Ok(SwitchesView {
        control,
        changed: None,
        receipt_id: None,
    })
}

/// The first switch that two changes are about.
fn given_twice(changes: &[Change]) -> Option<&'static str> {
    let mut known = BTreeSet::new();
    let mut switches = changes.iter().map(Change::switch);
    switches.find(|switch| !known.insert(*switch))
}

async fn set(args: &SetArgs) -> Result<SwitchesView, SwitchesError> {
    if let Some(switch) = given_twice(&args.changes) {
        return Err(SwitchesError::Twice(switch));
    }
    let stack = Stack::from_env()?;
    let (control, audit) = (
        config::required(config::CONTROL_BUCKET)?,
        config::required(config::AUDIT_BUCKET)?,
    );
    let sdk = clients::load().await;
    // The key first: a change that could leave no receipt is not made.
    let signer = Secrets::new(&sdk).signer(&stack.signing_key_secret).await?;
    let (began, occurred_at) = (Instant::now(), Timestamp::now());

    let changed = ControlStore::new(sdk.s3(), control)
        .change(|control| {
            let mut control = control.clone();
            args.changes
                .iter()
                .for_each(|change| change.apply(&mut control.switches));
            control
        })
        .await?;
    if changed.before.switches == changed.after.switches {
        return Ok(SwitchesView {
            control: changed.after,
            changed: Some(false),
            receipt_id: None,
        });
    }

    let receipt_id = Uuid::now_v7();
    let payload = Payload::SwitchChanged {
        who: args.who.clone(),
        before: serde_json::to_string(&changed.before.switches)?,
        after: serde_json::to_string(&changed.after.switches)?,
    };
    let draft = Draft::new(receipt_id, names::SYSTEM_ACCOUNT, payload, occurred_at)
        .lasting(u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX));
    let append = |_: &_, _| Ok::<_, StoreError>((Plan::append(draft.clone()), ()));
    let store = Store::new(&sdk, stack);
    let committed = store
        .transact(&signer, &Partition::system(), &Keys::default(), None, append)
        .await;
    // Switches work while the tables do not, and so does their receipt: it waits in the spool.
    if let Err(ledger) = committed {
        let kept = Spool::new(sdk.s3(), audit).keep(&draft, &signer).await;
        kept.map_err(|source| SwitchesError::Receipt {
            receipt_id,
            ledger: ledger.into(),
            source,
        })?;
        report::note("the ledger is not available: the receipt waits in the spool");
    }
    Ok(SwitchesView {
        control: changed.after,
        changed: Some(true),
        receipt_id: Some(receipt_id),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: Result<&str, ()>) {
        let changed = text.parse::<Change>().map(|change| {
            let mut switches = Switches::default();
            change.apply(&mut switches);
            serde_json::to_string(&switches).unwrap()
        });
        assert_eq!(changed.as_deref().map_err(|_| ()), expected, "{text}");
    }

    #[test]
    fn a_switch_is_given_once() {
        let given = |changes: &[&str]| {
            let changes: Vec<Change> = changes.iter().map(|change| change.parse().unwrap()).collect();
            given_twice(&changes)
        };
        assert_eq!(given(&["armed=true", "safe_mode=true", "rollout_tier=1"]), None);
        assert_eq!(
            given(&["armed=true", "safe_mode=true", "armed=false"]),
            Some("armed")
        );
        assert_eq!(given(&["rollout_tier=1", "rollout_tier=1"]), Some("rollout_tier"));
    }

    #[test]
    fn changes() {
        let switches = |armed: bool, automation: bool, safe: bool, tier: u8, disabled: &str| {
            format!(
                r#"{{"armed":{armed},"automation_enabled":{automation},"safe_mode":{safe},"rollout_tier":{tier},"disabled_templates":[{disabled}]}}"#
            )
        };
        check("armed=true", Ok(&switches(true, false, true, 0, r#""*""#)));
        check(
            "automation_enabled=true",
            Ok(&switches(false, true, true, 0, r#""*""#)),
        );
        check("safe_mode=false", Ok(&switches(false, false, false, 0, r#""*""#)));
        check("rollout_tier=2", Ok(&switches(false, false, true, 2, r#""*""#)));
        check(
            "disabled_templates=a, b",
            Ok(&switches(false, false, true, 0, r#""a","b""#)),
        );
        check("disabled_templates=", Ok(&switches(false, false, true, 0, "")));
        for wrong in [
            "",
            "armed",
            "armed=",
            "armed=1",
            "rollout_tier=3",
            "rollout_tier=-1",
            "mode=normal",
            "Armed=true",
            "disabled_templates=a b",
            "disabled_templates=a,,b",
            "disabled_templates=a,",
            "disabled_templates=a,b,a",
            "disabled_templates=A",
            "disabled_templates=*,*",
        ] {
            check(wrong, Err(()));
        }
    }
}
