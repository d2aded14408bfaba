//! Tables of tenants whose plan asks for their own: made when they are provisioned, gone when they leave.

use std::time::Duration;

use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::error::{BuildError, ProvideErrorMetadata};
use aws_sdk_dynamodb::types::{
    AttributeDefinition, BillingMode, GlobalSecondaryIndex, KeySchemaElement, KeyType,
    PointInTimeRecoverySpecification, Projection, ProjectionType, ScalarAttributeType, TableStatus,
};
use tokio::time::{Instant, sleep};

use crate::clients::{Sdk, explain};

/// How long a new table is waited for. DynamoDB takes some seconds; the caller of a webhook is told to come back later.
const READY_WITHIN: Duration = Duration::from_secs(12);
/// How often a table that is being made or deleted is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Why a table could not be made or deleted.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    #[error("{operation} of table {table}: {detail}")]
    Call {
        operation: &'static str,
        table: String,
        detail: String,
    },
    /// It is not ready yet.
    #[error("table {table} was not ready after {} s", READY_WITHIN.as_secs())]
    NotReady { table: String },
}

/// Which of a tenant's own tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Its actions: keys as in the tenants table.
    Actions,
    /// Its receipts: keys, index and recovery as in the receipts table.
    Receipts,
}

/// Makes and deletes tenants' own tables.
pub struct TenantTables {
    client: Client,
}

impl TenantTables {
    /// A maker of tables.
    #[must_use]
    pub fn new(sdk: &Sdk) -> Self {
        Self {
            client: sdk.dynamodb(),
        }
    }

    /// Asks for a table. One that is there is found. It can be used once it is [`TenantTables::ready`].
    ///
    /// # Errors
    /// [`TableError`] when DynamoDB does not take it.
    pub async fn create(&self, table: &str, kind: Kind) -> Result<(), TableError> {
        const OPERATION: &str = "CreateTable";
        let unfit = |e: BuildError| call(OPERATION, table, &e);
        let sort = match kind {
            Kind::Actions => "sk",
            Kind::Receipts => "seq",
        };
        let mut create = self
            .client
            .create_table()
            .table_name(table)
            .billing_mode(BillingMode::PayPerRequest)
            .attribute_definitions(text("account_id").map_err(unfit)?)
            .attribute_definitions(text(sort).map_err(unfit)?)
            .key_schema(key("account_id", KeyType::Hash).map_err(unfit)?)
            .key_schema(key(sort, KeyType::Range).map_err(unfit)?);
        if kind == Kind::Receipts {
            let index = GlobalSecondaryIndex::builder()
                .index_name("by-receipt-id")
                .key_schema(key("receipt_id", KeyType::Hash).map_err(unfit)?)
                .projection(
                    Projection::builder()
                        .projection_type(ProjectionType::KeysOnly)
                        .build(),
                )
                .build()
                .map_err(unfit)?;
            create = create
                .attribute_definitions(text("receipt_id").map_err(unfit)?)
                .global_secondary_indexes(index);
        }
        match create.send().await {
            Ok(_) => Ok(()),
            Err(e) if e.code() == Some("ResourceInUseException") => Ok(()),
            Err(e) => Err(call(OPERATION, table, &e)),
        }
    }

    /// Waits until a table can be used, and one of receipts be restored.
    ///
    /// # Errors
    /// [`TableError::NotReady`] when it is not ready in time, which is no failure: whoever asks again finds it further on.
    pub async fn ready(&self, table: &str, kind: Kind) -> Result<(), TableError> {
        let deadline = Instant::now() + READY_WITHIN;
        loop {
            let answer = self.client.describe_table().table_name(table).send().await;
            let status = match answer {
                Ok(answer) => answer.table.and_then(|table| table.table_status),
                // A table that was asked for a moment ago may not be known everywhere.
                Err(e) if is_gone(e.code()) => None,
                Err(e) => return Err(call("DescribeTable", table, &e)),
            };
            if status == Some(TableStatus::Active) {
                break;
            }
            if Instant::now() >= deadline {
                return Err(not_ready(table));
            }
            sleep(LOOK_EVERY).await;
        }
        match kind {
            Kind::Actions => Ok(()),
            Kind::Receipts => self.recoverable(table, deadline).await,
        }
    }

    async fn recoverable(&self, table: &str, deadline: Instant) -> Result<(), TableError> {
        const OPERATION: &str = "UpdateContinuousBackups";
        let recovery = PointInTimeRecoverySpecification::builder()
            .point_in_time_recovery_enabled(true)
            .build()
            .map_err(|e| call(OPERATION, table, &e))?;
        loop {
            let update = self
                .client
                .update_continuous_backups()
                .table_name(table)
                .point_in_time_recovery_specification(recovery.clone());
            match update.send().await {
                Ok(_) => return Ok(()),
                // A table is active a moment before it can be backed up.
                Err(e) if e.code() == Some("ContinuousBackupsUnavailableException") => {
                    if Instant::now() >= deadline {
                        return Err(not_ready(table));
                    }
                    sleep(LOOK_EVERY).await;
                }
                Err(e) => return Err(call(OPERATION, table, &e)),
            }
        }
    }

    /// Deletes a table, and says whether there was one. One that is being made is waited for first.
    ///
    /// # Errors
    /// [`TableError`] when DynamoDB does not do it, or not in time.
    pub async fn delete(&self, table: &str) -> Result<bool, TableError> {
        let deadline = Instant::now() + READY_WITHIN;
        loop {
            let status = match self.client.describe_table().table_name(table).send().await {
                Ok(answer) => answer.table.and_then(|table| table.table_status),
                Err(e) if is_gone(e.code()) => return Ok(false),
                Err(e) => return Err(call("DescribeTable", table, &e)),
            };
            match status {
                Some(TableStatus::Deleting) => return Ok(true),
                Some(TableStatus::Creating | TableStatus::Updating) if Instant::now() < deadline => {
                    sleep(LOOK_EVERY).await;
                }
                _ => break,
            }
        }
        match self.client.delete_table().table_name(table).send().await {
            Ok(_) => Ok(true),
            Err(e) if is_gone(e.code()) => Ok(false),
            Err(e) => Err(call("DeleteTable", table, &e)),
        }
    }

    /// Whether a table is there.
    ///
    /// # Errors
    /// [`TableError`] when DynamoDB does not answer.
    pub async fn exists(&self, table: &str) -> Result<bool, TableError> {
        match self.client.describe_table().table_name(table).send().await {
            Ok(_) => Ok(true),
            Err(e) if is_gone(e.code()) => Ok(false),
            Err(e) => Err(call("DescribeTable", table, &e)),
        }
    }

    /// One page of the tables there are, those behind `after` only, in the order of their names: the names and, when there
    /// are more, the last one.
    ///
    /// # Errors
    /// [`TableError`] when DynamoDB does not answer.
    pub async fn list(&self, after: Option<String>) -> Result<(Vec<String>, Option<String>), TableError> {
        let list = self.client.list_tables().set_exclusive_start_table_name(after);
        let answer = list.send().await.map_err(|e| call("ListTables", "*", &e))?;
        Ok((
            answer.table_names.unwrap_or_default(),
            answer.last_evaluated_table_name,
        ))
    }
}

fn not_ready(table: &str) -> TableError {
    TableError::NotReady {
        table: table.to_owned(),
    }
}

fn text(name: &str) -> Result<AttributeDefinition, BuildError> {
    AttributeDefinition::builder()
        .attribute_name(name)
        .attribute_type(ScalarAttributeType::S)
        .build()
}

fn key(name: &str, kind: KeyType) -> Result<KeySchemaElement, BuildError> {
    KeySchemaElement::builder()
        .attribute_name(name)
        .key_type(kind)
        .build()
}

fn is_gone(code: Option<&str>) -> bool {
    code == Some("ResourceNotFoundException")
}

fn call(operation: &'static str, table: &str, error: &(dyn std::error::Error + 'static)) -> TableError {
    TableError::Call {
        operation,
        table: table.to_owned(),
        detail: explain(error),
    }
}
