//! What operators do from outside: send signals, read ledgers, propose policies, move switches.

use aws_sdk_lambda::error::DisplayErrorContext;
use aws_sdk_lambda::primitives::Blob;
use domain::account::AccountId;
use domain::control::{Control, Switches};
use domain::names;
use domain::signal::{ActionId, Signal};
use domain::tenant::Tenant;
use jiff::Timestamp;
use receipts::receipt::{Draft, Payload};
use serde_json::{Map, Value, json};
use uuid::Uuid;

use crate::clients;
use crate::config::{self, ConfigError, Stack};
use crate::control::{ControlError, ControlStore};
use crate::queues::{Messages, QueueError};
use crate::secrets::{Secrets, SecretsError};
use crate::spool::{Spool, SpoolError};
use crate::store::{Account, Keys, Plan, Store, StoreError};

/// Why an operator's wish was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum OperatorError {
    /// A variable is missing.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The tables did not answer.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A queue did not take a message.
    #[error(transparent)]
    Queue(#[from] QueueError),
    /// The control object could not be changed.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The signing key is not available.
    #[error(transparent)]
    Secrets(#[from] SecretsError),
    /// The spool did not take a receipt.
    #[error("the switches are changed, but their receipt could not be kept")]
    Spool(#[from] SpoolError),
    /// There is no such tenant.
    #[error("account {0} has no tenant")]
    NoTenant(AccountId),
    /// A message could not be written as JSON.
    #[error("writing the message")]
    Encode(#[from] serde_json::Error),
    /// A function could not be invoked, or failed.
    #[error("invoking {function}: {detail}")]
    Invoke {
        /// Which function.
        function: String,
        /// What the SDK or the function said.
        detail: String,
    },
}

/// An operator's connection to a stack, configured like the functions by environment variables.
pub struct Operator {
    sdk: aws_config::SdkConfig,
    stack: Stack,
    store: Store,
}

impl Operator {
    /// Reads the environment and makes the clients.
    ///
    /// # Errors
    /// [`OperatorError::Config`] naming the variable that is missing.
    pub async fn from_env() -> Result<Self, OperatorError> {
        let stack = Stack::from_env()?;
        let sdk = clients::load().await;
        Ok(Self {
            store: Store::new(&sdk, stack.clone()),
            sdk,
            stack,
        })
    }

    /// The tenant of an account.
    ///
    /// # Errors
    /// [`OperatorError`] when the tables do not answer or there is none.
    pub async fn tenant(&self, account_id: &AccountId) -> Result<Tenant, OperatorError> {
        let account = self
            .store
            .load(&names::partition_key(account_id), &Keys::default())
            .await?;
        account
            .tenant
            .ok_or_else(|| OperatorError::NoTenant(account_id.clone()))
    }

    /// Puts a signal on a tenant's queue, stamped with the policy the tenant has now.
    ///
    /// # Errors
    /// [`OperatorError`] when the queue does not take it.
    pub async fn send_signal(
        &self,
        tenant: &Tenant,
        action_id: ActionId,
        template: &str,
        parameters: Map<String, Value>,
    ) -> Result<(), OperatorError> {
        let signal = Signal {
            action_id,
            account_id: tenant.account_id.clone(),
            template: template.to_owned(),
            parameters,
            policy_hash: tenant.policy.hash.clone(),
        };
        let body = serde_json::to_string(&signal)?;
        Ok(Messages::new(&self.sdk)
            .send(&tenant.resources.queue_url, body)
            .await?)
    }

    /// One page of a ledger from `seq` on. `_system` is the control plane's own.
    ///
    /// # Errors
    /// [`OperatorError`] when the tables do not answer.
    pub async fn receipts_from(&self, ledger: &Ledger, seq: u64) -> Result<Vec<String>, OperatorError> {
        Ok(self.store.receipts_from(&ledger.partition(), seq).await?)
    }

    /// Proposes a policy to the policy-upgrade function and returns its answer.
    ///
    /// # Errors
    /// [`OperatorError::Invoke`] when the function does not answer or fails.
    pub async fn propose_policy(&self, ontology: &str) -> Result<Value, OperatorError> {
        let function = config::required(config::POLICY_UPGRADE_FUNCTION)?;
        let failed = |detail: String| OperatorError::Invoke {
            function: function.clone(),
            detail,
        };
        let payload = Blob::new(serde_json::to_vec(&json!({ "ontology": ontology }))?);
        let lambda = clients::lambda_invoker(&self.sdk);
        let answer = lambda
            .invoke()
            .function_name(&function)
            .payload(payload)
            .send()
            .await;
        let answer = answer.map_err(|e| failed(DisplayErrorContext(e).to_string()))?;
        let bytes = answer.payload().map(AsRef::as_ref).unwrap_or_default();
        if answer.function_error().is_some() {
            return Err(failed(String::from_utf8_lossy(bytes).into_owned()));
        }
        Ok(serde_json::from_slice(bytes)?)
    }

    fn control_store(&self) -> Result<ControlStore, OperatorError> {
        let bucket = config::required(config::CONTROL_BUCKET)?;
        Ok(ControlStore::new(clients::s3(&self.sdk), bucket))
    }

    /// The control object.
    ///
    /// # Errors
    /// [`OperatorError`] when the bucket does not answer.
    pub async fn control(&self) -> Result<Control, OperatorError> {
        Ok(self.control_store()?.read().await?)
    }

    /// Moves switches and leaves a `switch_changed` receipt: in the system's ledger, or in the spool while the tables do
    /// not work. Moving nothing leaves none.
    ///
    /// # Errors
    /// [`OperatorError`]; its text says whether the switches are changed.
    pub async fn set_switches(
        &self,
        who: &str,
        edit: impl Fn(&Switches) -> Switches,
    ) -> Result<Control, OperatorError> {
        let signer = Secrets::new(&self.sdk)
            .signer(&self.stack.signing_key_secret)
            .await?;
        let control = self.control_store()?;
        let changed = control
            .change(|c| Control {
                switches: edit(&c.switches),
                ..c.clone()
            })
            .await?;
        if changed.before.switches == changed.after.switches {
            return Ok(changed.after);
        }
        let draft = Draft {
            receipt_id: Uuid::now_v7(),
            account_id: names::SYSTEM_ACCOUNT.to_owned(),
            occurred_at: Timestamp::now(),
            duration_ms: 0,
            policy_hash: None,
            payload: Payload::SwitchChanged {
                who: names::printable(who, 128),
                before: serde_json::to_string(&changed.before.switches)?,
                after: serde_json::to_string(&changed.after.switches)?,
            },
        };
        let plan = |_: &Account| {
            Ok::<_, StoreError>(Plan {
                drafts: vec![draft.clone()],
                ..Plan::default()
            })
        };
        let kept = self
            .store
            .transact(&signer, names::SYSTEM_ACCOUNT, &Keys::default(), None, plan)
            .await;
        if let Err(e) = kept {
            tracing::warn!(error = %e, "the receipt waits in the spool");
            let bucket = config::required(config::AUDIT_BUCKET)?;
            Spool::new(clients::s3(&self.sdk), bucket)
                .keep(&draft, &signer)
                .await?;
        }
        Ok(changed.after)
    }
}

/// Which ledger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ledger {
    /// The control plane's own.
    System,
    /// A customer's.
    Account(AccountId),
}

impl Ledger {
    /// The tables' key of the ledger.
    #[must_use]
    pub fn partition(&self) -> String {
        match self {
            Self::System => names::SYSTEM_ACCOUNT.to_owned(),
            Self::Account(account_id) => names::partition_key(account_id),
        }
    }
}
