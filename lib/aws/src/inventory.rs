//! What there is of tenants' own resources, found by listing: queues, mappings and tables whose names begin as a tenant's.

use std::collections::BTreeMap;

use aws_sdk_lambda::types::EventSourceMappingConfiguration;
use aws_sdk_sqs::error::ProvideErrorMetadata as _;
use aws_sdk_sqs::types::QueueAttributeName;
use domain::names;
use domain::sweep::ExistingResources;
use domain::tenant::Pace;
use jiff::Timestamp;

use crate::clients::{Sdk, explain};
use crate::pages::Pages;
use crate::queues::queue_is_gone;
use crate::tables::{TableError, TenantTables};

/// Queues listed at a time: SQS's most.
const QUEUES_PAGE: i32 = 1000;
/// Mappings listed at a time: Lambda's most.
const MAPPINGS_PAGE: i32 = 100;

/// Why what there is could not be listed.
#[derive(Debug, thiserror::Error)]
pub enum InventoryError {
    #[error("{operation} for {name}: {detail}")]
    Call {
        operation: &'static str,
        /// What was asked for.
        name: String,
        detail: String,
    },
    #[error(transparent)]
    Tables(#[from] TableError),
}

/// What was found.
#[derive(Debug, Clone, Default)]
pub struct Listed {
    pub found: ExistingResources,
    /// URLs of the queues, by their names.
    pub queue_urls: BTreeMap<String, String>,
}

/// Lists what there is.
pub struct Inventory {
    sqs: aws_sdk_sqs::Client,
    lambda: aws_sdk_lambda::Client,
    tables: TenantTables,
    governor_arn: String,
    /// What every name begins with.
    prefix: String,
}

impl Inventory {
    /// Of a stack whose tenants' names begin with `queue_prefix` and feed this governor.
    #[must_use]
    pub fn new(sdk: &Sdk, governor_arn: String, queue_prefix: &str) -> Self {
        Self {
            sqs: sdk.sqs(),
            lambda: sdk.lambda(),
            tables: TenantTables::new(sdk),
            governor_arn,
            prefix: names::tenant_prefix(queue_prefix),
        }
    }

    /// Lists everything. What was made or deleted within the last minute may be told wrongly.
    ///
    /// # Errors
    /// [`InventoryError`] when a listing did not come to its end: what is not in it may be there.
    pub async fn list(&self) -> Result<Listed, InventoryError> {
        let mut listed = Listed::default();
        self.queues(&mut listed).await?;
        self.mappings(&mut listed.found).await?;
        self.tables(&mut listed.found).await?;
        Ok(listed)
    }

    async fn queues(&self, listed: &mut Listed) -> Result<(), InventoryError> {
        let read = async |token| {
            let list = self.sqs.list_queues().queue_name_prefix(&self.prefix);
            let list = list.max_results(QUEUES_PAGE).set_next_token(token).send().await;
            let page = list.map_err(|e| call("ListQueues", &self.prefix, &e))?;
            let next = page.next_token.filter(|token| !token.is_empty());
            Ok::<_, InventoryError>((page.queue_urls.unwrap_or_default(), next))
        };
        let mut pages = Pages::default();
        while let Some(urls) = pages.next(&read).await? {
            for url in urls {
                if let Some(name) = self.own(url.rsplit('/').next()) {
                    listed.found.queue(name);
                    listed.queue_urls.insert(name.to_owned(), url);
                }
            }
        }
        Ok(())
    }

    async fn mappings(&self, found: &mut ExistingResources) -> Result<(), InventoryError> {
        let read = async |marker| {
            let list = self.lambda.list_event_source_mappings();
            let list = list.function_name(&self.governor_arn).max_items(MAPPINGS_PAGE);
            let page = list.set_marker(marker).send().await;
            let page = page.map_err(|e| call("ListEventSourceMappings", &self.governor_arn, &e))?;
            let next = page.next_marker.filter(|marker| !marker.is_empty());
            Ok::<_, InventoryError>((page.event_source_mappings.unwrap_or_default(), next))
        };
        let mut pages = Pages::default();
        while let Some(mappings) = pages.next(&read).await? {
            for mapping in mappings.iter().filter(|mapping| !is_going(mapping)) {
                let arn = mapping.event_source_arn.as_deref();
                if let Some(queue) = self.own(arn.and_then(|arn| arn.rsplit(':').next())) {
                    let scaling = mapping.scaling_config.as_ref();
                    let pace = mapping
                        .batch_size
                        .zip(scaling.and_then(|scaling| scaling.maximum_concurrency));
                    found.mapping(
                        queue,
                        pace.map(|(batch_size, maximum_concurrency)| Pace {
                            batch_size,
                            maximum_concurrency,
                        }),
                    );
                }
            }
        }
        Ok(())
    }

    async fn tables(&self, found: &mut ExistingResources) -> Result<(), InventoryError> {
        // Names come in order: those before the first of ours are passed over, and behind the last one nothing is asked for.
        let mut pages = Pages::Next(self.prefix.clone());
        while let Some(tables) = pages.next(async |after| self.tables.list(after).await).await? {
            for table in &tables {
                let Some(table) = self.own(Some(table)) else {
                    return Ok(());
                };
                found.table(table);
            }
        }
        Ok(())
    }

    fn own<'a>(&self, name: Option<&'a str>) -> Option<&'a str> {
        name.filter(|name| name.starts_with(&self.prefix))
    }

    /// When a queue was made; `None` when it is gone.
    pub async fn made_at(&self, queue_url: &str) -> Result<Option<Timestamp>, InventoryError> {
        let created = QueueAttributeName::CreatedTimestamp;
        let get = self.sqs.get_queue_attributes().queue_url(queue_url);
        let answer = match get.attribute_names(created.clone()).send().await {
            Ok(answer) => answer,
            Err(e) if queue_is_gone(e.code()) => return Ok(None),
            Err(e) => return Err(call("GetQueueAttributes", queue_url, &e)),
        };
        let seconds = answer.attributes.as_ref().and_then(|known| known.get(&created));
        let made_at = seconds
            .and_then(|seconds| seconds.parse().ok())
            .and_then(|seconds| Timestamp::from_second(seconds).ok());
        made_at.map(Some).ok_or_else(|| InventoryError::Call {
            operation: "GetQueueAttributes",
            name: queue_url.to_owned(),
            detail: "it does not say when the queue was made".to_owned(),
        })
    }
}

/// Whether a mapping is being deleted: it is listed for a while yet.
fn is_going(mapping: &EventSourceMappingConfiguration) -> bool {
    mapping.state.as_deref() == Some("Deleting")
}

fn call(operation: &'static str, name: &str, error: &(dyn std::error::Error + 'static)) -> InventoryError {
    InventoryError::Call {
        operation,
        name: name.to_owned(),
        detail: explain(error),
    }
}
