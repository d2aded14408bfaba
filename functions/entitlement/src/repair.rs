//! What an active tenant needs and has no more is made again, and put on record: somebody deleted it behind our back.

use aws::queues::QueueError;
use aws::store::StoreError;
use aws::tables::TableError;
use aws::telemetry;
use domain::names::{self, Partition};
use domain::operations::repair::repair;
use domain::tenant::{Lifecycle, Tenant, TenantResources};
use domain::transaction::{Account, Keys};
use receipts::key::Signer;
use tracing::{error, warn};
use uuid::Uuid;

use crate::saga::Provisioner;

/// Why a tenant could not be repaired. The next sweep asks again.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RepairError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Queue(#[from] QueueError),
    #[error(transparent)]
    Table(#[from] TableError),
    /// A table of its own is gone, and with it what only a backup can bring back.
    #[error("table {table} of the tenant's own is gone; restore it from its backup")]
    TableLost { table: String },
}

impl Provisioner {
    /// Looks for what an active tenant needs, and makes what is missing.
    ///
    /// # Errors
    /// [`RepairError`] when something could not be looked at or made.
    pub(crate) async fn repair(
        &self,
        signer: &Signer,
        partition: &Partition,
    ) -> Result<Vec<&'static str>, RepairError> {
        let store = &self.entitlements.store;
        let account = store.load(partition, &Keys::default()).await?;
        let active = account
            .tenant
            .as_ref()
            .filter(|tenant| tenant.lifecycle == Lifecycle::Active);
        let Some(tenant) = active.cloned() else {
            return Ok(Vec::new());
        };
        if let Some(tables) = &tenant.tables {
            for table in [&tables.actions, &tables.receipts] {
                if tables.until.is_none() && !self.tables.exists(table).await? {
                    telemetry::count("entitlement", "table_lost", ("kind", "own"));
                    error!(
                        account = tenant.account_id.as_str(),
                        table, "a tenant's own table is gone"
                    );
                    return Err(RepairError::TableLost { table: table.clone() });
                }
            }
        }
        let (resources, missing) = self.whole(&tenant).await?;
        if !missing.is_empty() {
            warn!(account = tenant.account_id.as_str(), ?missing, "made again");
            self.record(signer, account, &tenant, &resources, &missing)
                .await?;
        }
        // The mapping may lag behind the plans, too.
        self.queues
            .pace_mapping(&resources.mapping_id, tenant.pace())
            .await?;
        Ok(missing)
    }

    async fn whole(&self, tenant: &Tenant) -> Result<(TenantResources, Vec<&'static str>), QueueError> {
        let queue = tenant.fsm_id.as_str();
        let mut resources = tenant.resources.clone();
        let mut missing = Vec::new();
        if self
            .queues
            .url(&names::dead_letter_queue_name(queue))
            .await?
            .is_none()
        {
            resources.dead_letter_queue_url = self.queues.dead_letter_queue(queue).await?;
            missing.push("dead_letter_queue");
        }
        if self.queues.url(queue).await?.is_none() {
            resources.queue_url = self.queues.signal_queue(queue).await?;
            missing.push("queue");
        }
        match self.queues.find_mapping(queue).await? {
            Some(id) => resources.mapping_id = id,
            None => {
                resources.mapping_id = self.queues.mapping(queue, tenant.pace()).await?;
                missing.push("mapping");
            }
        }
        Ok((resources, missing))
    }

    async fn record(
        &self,
        signer: &Signer,
        account: Account,
        found: &Tenant,
        resources: &TenantResources,
        missing: &[&'static str],
    ) -> Result<(), StoreError> {
        let made_again: Vec<_> = missing.iter().map(|missing| (*missing, Uuid::now_v7())).collect();
        let partition = account.partition.clone();
        let repair = |account: &Account, now| {
            Ok::<_, StoreError>((repair(account, found, resources, &made_again, now), ()))
        };
        let store = &self.entitlements.store;
        store
            .transact(signer, &partition, &Keys::default(), Some(account), repair)
            .await?;
        Ok(())
    }
}
