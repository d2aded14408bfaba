//! Tenants' queues and the event source mappings that feed the governor from them.

use std::collections::HashMap;

use aws_sdk_lambda::error::ProvideErrorMetadata as _;
use aws_sdk_lambda::types::{FunctionResponseType, ScalingConfig};
use aws_sdk_sqs::types::{ChangeMessageVisibilityBatchRequestEntry, QueueAttributeName};
use domain::names;
use domain::tenant::{Quota, TenantResources};
use serde_json::json;

use crate::clients::explain;

/// How long a message stays hidden once a governor has it, in seconds: longer than a claim's lease, so that a
/// redelivery after a crash finds the lease expired.
const VISIBILITY_SECONDS: u32 = 30;
/// Deliveries before a message goes to the dead-letter queue: SQS's most. A signal waits for a free place or for storage
/// by being delivered again, up to a minute apart, and a day of waiting must not lose it.
const MAX_RECEIVE_COUNT: u32 = 1000;
/// How long messages are kept, in seconds: SQS's longest.
const RETENTION_SECONDS: u32 = 14 * 24 * 3600;
/// Most signals a governor takes at once.
pub const MAX_BATCH: u64 = 10;

/// Why a queue or mapping could not be handled.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// A call failed.
    #[error("{operation} for {name}: {detail}")]
    Call {
        /// Which operation.
        operation: &'static str,
        /// Which queue or mapping.
        name: String,
        /// What the SDK said.
        detail: String,
    },
    /// The answer lacks what the API promises.
    #[error("{operation} for {name} answered without {what}")]
    Answer {
        /// Which operation.
        operation: &'static str,
        /// Which queue or mapping.
        name: String,
        /// What is missing.
        what: &'static str,
    },
    /// The governor's ARN is not one.
    #[error("GOVERNOR_FUNCTION_ARN {arn:?} is not a function ARN")]
    Arn {
        /// What was configured.
        arn: String,
    },
}

/// Makes tenants' queues.
pub struct TenantQueues {
    sqs: aws_sdk_sqs::Client,
    lambda: aws_sdk_lambda::Client,
    governor_arn: String,
    /// `arn:<partition>:sqs:<region>:<account>`: queues live where the governor does.
    arn_prefix: String,
}

impl TenantQueues {
    /// A maker of queues that feed this governor.
    ///
    /// # Errors
    /// [`QueueError::Arn`] when the governor's ARN is not one.
    pub fn new(sdk: &aws_config::SdkConfig, governor_arn: String) -> Result<Self, QueueError> {
        let parts: Vec<&str> = governor_arn.split(':').collect();
        let arn_prefix = match parts.as_slice() {
            ["arn", partition, "lambda", region, account, "function", ..] => {
                format!("arn:{partition}:sqs:{region}:{account}")
            }
            _ => return Err(QueueError::Arn { arn: governor_arn }),
        };
        let (sqs, lambda) = (aws_sdk_sqs::Client::new(sdk), aws_sdk_lambda::Client::new(sdk));
        Ok(Self {
            sqs,
            lambda,
            governor_arn,
            arn_prefix,
        })
    }

    /// Makes a tenant's dead-letter queue, queue and mapping. Doing so again finds what is there.
    ///
    /// # Errors
    /// [`QueueError`] naming the call that failed; what was made before it stays and is found by the next attempt.
    pub async fn create(&self, queue: &str, quota: &Quota) -> Result<TenantResources, QueueError> {
        let dead_letter = names::dead_letter_queue_name(queue);
        let mut attributes = HashMap::from([
            (
                QueueAttributeName::MessageRetentionPeriod,
                RETENTION_SECONDS.to_string(),
            ),
            (QueueAttributeName::SqsManagedSseEnabled, "true".to_owned()),
        ]);
        let dead_letter_queue_url = self.create_queue(&dead_letter, attributes.clone()).await?;
        let redrive = json!({
            "deadLetterTargetArn": format!("{}:{dead_letter}", self.arn_prefix),
            "maxReceiveCount": MAX_RECEIVE_COUNT,
        });
        attributes.insert(
            QueueAttributeName::VisibilityTimeout,
            VISIBILITY_SECONDS.to_string(),
        );
        attributes.insert(QueueAttributeName::RedrivePolicy, redrive.to_string());
        let queue_url = self.create_queue(queue, attributes).await?;
        let mapping_id = self.create_mapping(queue, quota).await?;
        Ok(TenantResources {
            queue: queue.to_owned(),
            queue_url,
            dead_letter_queue_url,
            mapping_id,
        })
    }

    async fn create_queue(
        &self,
        name: &str,
        attributes: HashMap<QueueAttributeName, String>,
    ) -> Result<String, QueueError> {
        let answer = self
            .sqs
            .create_queue()
            .queue_name(name)
            .set_attributes(Some(attributes))
            .send()
            .await;
        let answer = answer.map_err(|e| call("CreateQueue", name, explain(&e)))?;
        answer
            .queue_url
            .ok_or_else(|| missing("CreateQueue", name, "a queue URL"))
    }

    async fn create_mapping(&self, queue: &str, quota: &Quota) -> Result<String, QueueError> {
        let source = format!("{}:{queue}", self.arn_prefix);
        // No batch may hold more signals than may run at once, or some of each batch would always go back.
        let batch = quota.concurrent_actions.clamp(1, MAX_BATCH);
        // Two is the least Lambda allows.
        let concurrency = quota.concurrent_actions.div_ceil(batch).clamp(2, 1000);
        let answer = self
            .lambda
            .create_event_source_mapping()
            .event_source_arn(&source)
            .function_name(&self.governor_arn)
            .batch_size(i32::try_from(batch).unwrap_or(1))
            .function_response_types(FunctionResponseType::ReportBatchItemFailures)
            .scaling_config(
                ScalingConfig::builder()
                    .maximum_concurrency(i32::try_from(concurrency).unwrap_or(2))
                    .build(),
            )
            .send()
            .await;
        match answer {
            Ok(answer) => answer
                .uuid
                .ok_or_else(|| missing("CreateEventSourceMapping", queue, "an id")),
            Err(e) if e.code() == Some("ResourceConflictException") => {
                self.find_mapping(queue, &source).await
            }
            Err(e) => Err(call("CreateEventSourceMapping", queue, explain(&e))),
        }
    }

    async fn find_mapping(&self, queue: &str, source: &str) -> Result<String, QueueError> {
        let operation = "ListEventSourceMappings";
        let answer = self
            .lambda
            .list_event_source_mappings()
            .event_source_arn(source)
            .send()
            .await;
        let answer = answer.map_err(|e| call(operation, queue, explain(&e)))?;
        let found = answer
            .event_source_mappings
            .unwrap_or_default()
            .into_iter()
            .find_map(|m| m.uuid);
        found.ok_or_else(|| missing(operation, queue, "the mapping that is said to exist"))
    }
}

/// What a queue holds, roughly, as SQS says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Backlog {
    /// Messages that wait.
    pub waiting: u64,
    /// Messages some governor has.
    pub in_flight: u64,
    /// Messages that are delayed.
    pub delayed: u64,
}

impl Backlog {
    /// Whether nothing is there.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.waiting == 0 && self.in_flight == 0 && self.delayed == 0
    }
}

/// A message left on a queue.
#[derive(Debug, Clone)]
pub struct Left {
    /// SQS's id of it.
    pub message_id: String,
    /// What it says.
    pub body: String,
    /// Handle by which it is deleted.
    pub receipt_handle: String,
}

/// Takes tenants' queues away.
pub struct Teardown {
    sqs: aws_sdk_sqs::Client,
    lambda: aws_sdk_lambda::Client,
}

impl Teardown {
    /// A remover of queues and mappings.
    #[must_use]
    pub fn new(sdk: &aws_config::SdkConfig) -> Self {
        Self {
            sqs: aws_sdk_sqs::Client::new(sdk),
            lambda: aws_sdk_lambda::Client::new(sdk),
        }
    }

    /// What a queue holds; nothing when there is no such queue.
    ///
    /// # Errors
    /// [`QueueError`] when SQS does not answer.
    pub async fn backlog(&self, queue_url: &str) -> Result<Backlog, QueueError> {
        let names = [
            QueueAttributeName::ApproximateNumberOfMessages,
            QueueAttributeName::ApproximateNumberOfMessagesNotVisible,
            QueueAttributeName::ApproximateNumberOfMessagesDelayed,
        ];
        let get = self.sqs.get_queue_attributes().queue_url(queue_url);
        let answer = match get.set_attribute_names(Some(names.to_vec())).send().await {
            Ok(answer) => answer,
            Err(e) if queue_is_gone(e.code()) => return Ok(Backlog::default()),
            Err(e) => return Err(call("GetQueueAttributes", queue_url, explain(&e))),
        };
        let attributes = answer.attributes.unwrap_or_default();
        let read = |name: &QueueAttributeName, what: &'static str| {
            let count = attributes.get(name).and_then(|text| text.parse().ok());
            count.ok_or_else(|| missing("GetQueueAttributes", queue_url, what))
        };
        let [waiting, in_flight, delayed] = &names;
        Ok(Backlog {
            waiting: read(waiting, "ApproximateNumberOfMessages")?,
            in_flight: read(in_flight, "ApproximateNumberOfMessagesNotVisible")?,
            delayed: read(delayed, "ApproximateNumberOfMessagesDelayed")?,
        })
    }

    /// Deletes a mapping; one that is gone is fine.
    ///
    /// # Errors
    /// [`QueueError`] when Lambda does not do it.
    pub async fn delete_mapping(&self, mapping_id: &str) -> Result<(), QueueError> {
        match self
            .lambda
            .delete_event_source_mapping()
            .uuid(mapping_id)
            .send()
            .await
        {
            Ok(_) => Ok(()),
            Err(e) if e.code() == Some("ResourceNotFoundException") => Ok(()),
            Err(e) => Err(call("DeleteEventSourceMapping", mapping_id, explain(&e))),
        }
    }

    /// Takes up to ten messages that nobody feeds to the governor any more; none when there are none, or no queue.
    ///
    /// # Errors
    /// [`QueueError`] when SQS does not answer.
    pub async fn receive(&self, queue_url: &str) -> Result<Vec<Left>, QueueError> {
        // A wait makes SQS ask all of its servers, so that an empty answer means an empty queue.
        let receive = self
            .sqs
            .receive_message()
            .queue_url(queue_url)
            .max_number_of_messages(10)
            .wait_time_seconds(1);
        let answer = match receive.send().await {
            Ok(answer) => answer,
            Err(e) if queue_is_gone(e.code()) => return Ok(Vec::new()),
            Err(e) => return Err(call("ReceiveMessage", queue_url, explain(&e))),
        };
        let messages = answer.messages.unwrap_or_default().into_iter();
        Ok(messages
            .map(|m| Left {
                message_id: m.message_id.unwrap_or_default(),
                body: m.body.unwrap_or_default(),
                receipt_handle: m.receipt_handle.unwrap_or_default(),
            })
            .collect())
    }

    /// Deletes a message that is settled.
    ///
    /// # Errors
    /// [`QueueError`] when SQS does not do it.
    pub async fn delete_message(&self, queue_url: &str, receipt_handle: &str) -> Result<(), QueueError> {
        let delete = self
            .sqs
            .delete_message()
            .queue_url(queue_url)
            .receipt_handle(receipt_handle);
        delete
            .send()
            .await
            .map(|_| ())
            .map_err(|e| call("DeleteMessage", queue_url, explain(&e)))
    }

    /// Deletes a queue; one that is gone is fine.
    ///
    /// # Errors
    /// [`QueueError`] when SQS does not do it.
    pub async fn delete_queue(&self, queue_url: &str) -> Result<(), QueueError> {
        match self.sqs.delete_queue().queue_url(queue_url).send().await {
            Ok(_) => Ok(()),
            Err(e) if queue_is_gone(e.code()) => Ok(()),
            Err(e) => Err(call("DeleteQueue", queue_url, explain(&e))),
        }
    }
}

/// Sends messages and hands some back.
pub struct Messages {
    sqs: aws_sdk_sqs::Client,
}

impl Messages {
    /// A sender of messages.
    #[must_use]
    pub fn new(sdk: &aws_config::SdkConfig) -> Self {
        Self {
            sqs: aws_sdk_sqs::Client::new(sdk),
        }
    }

    /// Puts a message on a queue.
    ///
    /// # Errors
    /// [`QueueError`] when SQS does not take it.
    pub async fn send(&self, queue_url: &str, body: String) -> Result<(), QueueError> {
        let answer = self
            .sqs
            .send_message()
            .queue_url(queue_url)
            .message_body(body)
            .send()
            .await;
        answer
            .map(|_| ())
            .map_err(|e| call("SendMessage", queue_url, explain(&e)))
    }

    /// Makes messages visible again after some seconds instead of the queue's own time.
    ///
    /// # Errors
    /// [`QueueError`] when SQS does not do it; the messages then come back after the queue's own time.
    pub async fn retry_in(&self, queue_url: &str, handles: &[(String, u32)]) -> Result<(), QueueError> {
        let operation = "ChangeMessageVisibilityBatch";
        let mut entries = Vec::with_capacity(handles.len());
        for (n, (handle, seconds)) in handles.iter().enumerate() {
            let entry = ChangeMessageVisibilityBatchRequestEntry::builder()
                .id(n.to_string())
                .receipt_handle(handle)
                .visibility_timeout(i32::try_from(*seconds).unwrap_or(i32::MAX))
                .build();
            entries.push(entry.map_err(|e| call(operation, queue_url, e))?);
        }
        let change = self.sqs.change_message_visibility_batch().queue_url(queue_url);
        let answer = change.set_entries(Some(entries)).send().await;
        let answer = answer.map_err(|e| call(operation, queue_url, explain(&e)))?;
        match answer.failed.first() {
            None => Ok(()),
            Some(failed) => Err(call(
                operation,
                queue_url,
                format!("{} of entry {}", failed.code, failed.id),
            )),
        }
    }
}

fn queue_is_gone(code: Option<&str>) -> bool {
    matches!(
        code,
        Some("AWS.SimpleQueueService.NonExistentQueue" | "QueueDoesNotExist")
    )
}

fn call(operation: &'static str, name: &str, detail: impl std::fmt::Display) -> QueueError {
    QueueError::Call {
        operation,
        name: name.to_owned(),
        detail: detail.to_string(),
    }
}

fn missing(operation: &'static str, name: &str, what: &'static str) -> QueueError {
    QueueError::Answer {
        operation,
        name: name.to_owned(),
        what,
    }
}
