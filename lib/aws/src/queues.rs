//! Tenants' queues and the event source mappings that feed the governor from them.

use std::collections::HashMap;
use std::time::Duration;

use aws_sdk_lambda::error::ProvideErrorMetadata as _;
use aws_sdk_lambda::types::{FunctionResponseType, ScalingConfig};
use aws_sdk_sqs::types::{
    ChangeMessageVisibilityBatchRequestEntry, DeleteMessageBatchRequestEntry, MessageSystemAttributeName,
    QueueAttributeName,
};
use domain::action::MAX_DELIVERIES;
use domain::names;
use domain::tenant::Pace;
use serde_json::json;
use tokio::time::{Instant, sleep};

use crate::clients::explain;

/// How long a message stays hidden once a governor has it, in seconds: longer than a claim's lease, so that a
/// redelivery after a crash finds the lease expired.
const VISIBILITY_SECONDS: u32 = 30;
/// How long messages are kept, in seconds: SQS's longest.
const RETENTION_SECONDS: u32 = 14 * 24 * 3600;
/// How long AWS may not know a queue that was made just now.
const KNOWN_WITHIN: Duration = Duration::from_secs(5);
/// How long a mapping may take to be made before it can be deleted.
const SETTLED_WITHIN: Duration = Duration::from_secs(10);
/// How often what is not there yet is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// State of a mapping that goes.
const DELETING: &str = "Deleting";

/// Why a queue or mapping could not be handled.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    #[error("{operation} for {name}: {detail}")]
    Call {
        operation: &'static str,
        name: String,
        detail: String,
    },
    /// The answer lacks what the API promises.
    #[error("{operation} for {name} answered without {what}")]
    Answer {
        operation: &'static str,
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

    /// Makes the dead-letter queue beside a tenant's queue, and gives its URL. Doing so again finds what is there.
    ///
    /// # Errors
    /// [`QueueError`] when SQS does not do it.
    pub async fn dead_letter_queue(&self, queue: &str) -> Result<String, QueueError> {
        self.create_queue(&names::dead_letter_queue_name(queue), kept_long())
            .await
    }

    /// Makes a tenant's queue, and gives its URL. Doing so again finds what is there.
    ///
    /// # Errors
    /// [`QueueError`] when SQS does not do it.
    pub async fn signal_queue(&self, queue: &str) -> Result<String, QueueError> {
        let redrive = json!({
            "deadLetterTargetArn": format!("{}:{}", self.arn_prefix, names::dead_letter_queue_name(queue)),
            "maxReceiveCount": MAX_DELIVERIES,
        });
        let mut attributes = kept_long();
        attributes.insert(
            QueueAttributeName::VisibilityTimeout,
            VISIBILITY_SECONDS.to_string(),
        );
        attributes.insert(QueueAttributeName::RedrivePolicy, redrive.to_string());
        self.create_queue(queue, attributes).await
    }

    async fn create_queue(
        &self,
        name: &str,
        attributes: HashMap<QueueAttributeName, String>,
    ) -> Result<String, QueueError> {
        let deadline = Instant::now() + KNOWN_WITHIN;
        loop {
            let create = self.sqs.create_queue().queue_name(name);
            match create.set_attributes(Some(attributes.clone())).send().await {
                Ok(answer) => {
                    return answer
                        .queue_url
                        .ok_or_else(|| missing("CreateQueue", name, "a queue URL"));
                }
                Err(e) if not_known_yet(e.code()) && Instant::now() < deadline => sleep(LOOK_EVERY).await,
                Err(e) => return Err(call("CreateQueue", name, explain(&e))),
            }
        }
    }

    /// Makes the mapping that feeds the governor from a tenant's queue, and gives its id. One that is there is found.
    ///
    /// # Errors
    /// [`QueueError`] when Lambda does not do it.
    pub async fn mapping(&self, queue: &str, pace: Pace) -> Result<String, QueueError> {
        let source = self.arn(queue);
        let deadline = Instant::now() + KNOWN_WITHIN;
        loop {
            let create = self
                .lambda
                .create_event_source_mapping()
                .event_source_arn(&source)
                .function_name(&self.governor_arn)
                .batch_size(pace.batch_size)
                .function_response_types(FunctionResponseType::ReportBatchItemFailures)
                .scaling_config(
                    ScalingConfig::builder()
                        .maximum_concurrency(pace.maximum_concurrency)
                        .build(),
                );
            match create.send().await {
                Ok(answer) => {
                    return answer
                        .uuid
                        .ok_or_else(|| missing("CreateEventSourceMapping", queue, "an id"));
                }
                Err(e) if e.code() == Some("ResourceConflictException") => {
                    let found = self.find_mapping(queue).await?;
                    return found.ok_or_else(|| {
                        missing(
                            "ListEventSourceMappings",
                            queue,
                            "the mapping that is said to exist",
                        )
                    });
                }
                Err(e) if not_known_yet(e.code()) && Instant::now() < deadline => sleep(LOOK_EVERY).await,
                Err(e) => return Err(call("CreateEventSourceMapping", queue, explain(&e))),
            }
        }
    }

    /// The id of a mapping that feeds the governor from a tenant's queue already.
    ///
    /// # Errors
    /// [`QueueError`] when Lambda does not answer.
    pub async fn find_mapping(&self, queue: &str) -> Result<Option<String>, QueueError> {
        Ok(self.mappings(queue).await?.into_iter().next())
    }

    /// Ids of the mappings from a queue.
    async fn mappings(&self, queue: &str) -> Result<Vec<String>, QueueError> {
        let list = self.lambda.list_event_source_mappings();
        let answer = list.event_source_arn(self.arn(queue)).send().await;
        let answer = answer.map_err(|e| call("ListEventSourceMappings", queue, explain(&e)))?;
        let found = answer.event_source_mappings.unwrap_or_default().into_iter();
        // One that is being deleted is listed for minutes.
        let there = found.filter(|mapping| mapping.state.as_deref() != Some(DELETING));
        Ok(there.filter_map(|mapping| mapping.uuid).collect())
    }

    /// Has a mapping feed the governor at a tenant's pace.
    ///
    /// # Errors
    /// [`QueueError`] when Lambda does not do it.
    pub async fn pace_mapping(&self, mapping_id: &str, pace: Pace) -> Result<(), QueueError> {
        pace_mapping(&self.lambda, mapping_id, pace).await
    }

    /// Deletes the mappings from a queue, and says whether there was one. None is needed for that to be known by its id.
    ///
    /// # Errors
    /// [`QueueError`] when Lambda does not do it.
    pub async fn remove_mapping(&self, queue: &str) -> Result<bool, QueueError> {
        let found = self.mappings(queue).await?;
        for id in &found {
            delete_mapping(&self.lambda, id).await?;
        }
        Ok(!found.is_empty())
    }

    /// The URL of a queue; `None` when there is no such queue.
    ///
    /// # Errors
    /// [`QueueError`] when SQS does not answer.
    pub async fn url(&self, name: &str) -> Result<Option<String>, QueueError> {
        queue_url(&self.sqs, name).await
    }

    /// Deletes a queue by its name, and says whether there was one.
    ///
    /// # Errors
    /// [`QueueError`] when SQS does not do it.
    pub async fn remove_queue(&self, name: &str) -> Result<bool, QueueError> {
        match queue_url(&self.sqs, name).await? {
            Some(url) => delete_queue(&self.sqs, &url).await,
            None => Ok(false),
        }
    }

    fn arn(&self, queue: &str) -> String {
        format!("{}:{queue}", self.arn_prefix)
    }
}

async fn pace_mapping(
    lambda: &aws_sdk_lambda::Client,
    mapping_id: &str,
    pace: Pace,
) -> Result<(), QueueError> {
    lambda
        .update_event_source_mapping()
        .uuid(mapping_id)
        .batch_size(pace.batch_size)
        .scaling_config(
            ScalingConfig::builder()
                .maximum_concurrency(pace.maximum_concurrency)
                .build(),
        )
        .send()
        .await
        .map(|_| ())
        .map_err(|e| call("UpdateEventSourceMapping", mapping_id, explain(&e)))
}

/// The URL of a queue; `None` when there is no such queue.
async fn queue_url(sqs: &aws_sdk_sqs::Client, name: &str) -> Result<Option<String>, QueueError> {
    match sqs.get_queue_url().queue_name(name).send().await {
        Ok(answer) => Ok(answer.queue_url),
        Err(e) if queue_is_gone(e.code()) => Ok(None),
        Err(e) => Err(call("GetQueueUrl", name, explain(&e))),
    }
}

/// Deletes a queue, and says whether there was one.
async fn delete_queue(sqs: &aws_sdk_sqs::Client, queue_url: &str) -> Result<bool, QueueError> {
    match sqs.delete_queue().queue_url(queue_url).send().await {
        Ok(_) => Ok(true),
        Err(e) if queue_is_gone(e.code()) => Ok(false),
        Err(e) => Err(call("DeleteQueue", queue_url, explain(&e))),
    }
}

/// Deletes a mapping; one that is gone or going is fine. One that is being made or changed is waited for.
async fn delete_mapping(lambda: &aws_sdk_lambda::Client, mapping_id: &str) -> Result<(), QueueError> {
    let deadline = Instant::now() + SETTLED_WITHIN;
    loop {
        let e = match lambda.delete_event_source_mapping().uuid(mapping_id).send().await {
            Ok(_) => return Ok(()),
            Err(e) => e,
        };
        match e.code() {
            Some("ResourceNotFoundException") => return Ok(()),
            Some("ResourceInUseException") if Instant::now() < deadline => {}
            _ => return Err(call("DeleteEventSourceMapping", mapping_id, explain(&e))),
        }
        match lambda.get_event_source_mapping().uuid(mapping_id).send().await {
            Ok(mapping) if mapping.state.as_deref() == Some(DELETING) => return Ok(()),
            Ok(_) => sleep(LOOK_EVERY).await,
            Err(e) if e.code() == Some("ResourceNotFoundException") => return Ok(()),
            Err(e) => return Err(call("GetEventSourceMapping", mapping_id, explain(&e))),
        }
    }
}

/// Whether AWS says that something which was made a moment ago is not there: SQS asks for a second's patience.
fn not_known_yet(code: Option<&str>) -> bool {
    queue_is_gone(code)
        || matches!(
            code,
            Some("InvalidParameterValueException" | "InvalidParameterValue" | "InvalidAttributeValue")
        )
}

/// Attributes of queues whose messages are kept as long as SQS keeps any.
fn kept_long() -> HashMap<QueueAttributeName, String> {
    HashMap::from([
        (
            QueueAttributeName::MessageRetentionPeriod,
            RETENTION_SECONDS.to_string(),
        ),
        (QueueAttributeName::SqsManagedSseEnabled, "true".to_owned()),
    ])
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

async fn backlog(sqs: &aws_sdk_sqs::Client, queue_url: &str) -> Result<Backlog, QueueError> {
    let names = [
        QueueAttributeName::ApproximateNumberOfMessages,
        QueueAttributeName::ApproximateNumberOfMessagesNotVisible,
        QueueAttributeName::ApproximateNumberOfMessagesDelayed,
    ];
    let get = sqs.get_queue_attributes().queue_url(queue_url);
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

/// Looks at tenants' queues, and sets how fast they are fed to the governor.
pub struct Feeds {
    sqs: aws_sdk_sqs::Client,
    lambda: aws_sdk_lambda::Client,
}

impl Feeds {
    /// The feeds of this account.
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
        backlog(&self.sqs, queue_url).await
    }

    /// Has a mapping feed the governor at a tenant's pace.
    ///
    /// # Errors
    /// [`QueueError`] when Lambda does not do it.
    pub async fn pace(&self, mapping_id: &str, pace: Pace) -> Result<(), QueueError> {
        pace_mapping(&self.lambda, mapping_id, pace).await
    }
}

/// A message left on a queue.
#[derive(Debug, Clone)]
pub struct LeftMessage {
    pub message_id: String,
    pub body: String,
    /// Handle by which it is deleted.
    pub receipt_handle: String,
    /// When it was put on the tenant's queue, in milliseconds since 1970.
    pub sent_at_ms: Option<String>,
    /// How many times it was received, this time included.
    pub deliveries: Option<String>,
}

/// Takes up to ten messages that nobody feeds to the governor, hidden from others for as long as is said, or for the queue's
/// own time; none when there are none, or no queue.
async fn receive(
    sqs: &aws_sdk_sqs::Client,
    queue_url: &str,
    hidden: Option<Duration>,
) -> Result<Vec<LeftMessage>, QueueError> {
    let hidden = hidden.map(|hidden| i32::try_from(hidden.as_secs()).unwrap_or(i32::MAX));
    // A wait makes SQS ask all of its servers, so that an empty answer means an empty queue.
    let receive = sqs
        .receive_message()
        .queue_url(queue_url)
        .max_number_of_messages(10)
        .set_visibility_timeout(hidden)
        .wait_time_seconds(1);
    received(receive, queue_url).await
}

async fn received(
    receive: aws_sdk_sqs::operation::receive_message::builders::ReceiveMessageFluentBuilder,
    queue_url: &str,
) -> Result<Vec<LeftMessage>, QueueError> {
    let receive = receive
        .message_system_attribute_names(MessageSystemAttributeName::SentTimestamp)
        .message_system_attribute_names(MessageSystemAttributeName::ApproximateReceiveCount);
    let answer = match receive.send().await {
        Ok(answer) => answer,
        Err(e) if queue_is_gone(e.code()) => return Ok(Vec::new()),
        Err(e) => return Err(call("ReceiveMessage", queue_url, explain(&e))),
    };
    let messages = answer.messages.unwrap_or_default().into_iter();
    let known = |m: &aws_sdk_sqs::types::Message, name| m.attributes.as_ref()?.get(&name).cloned();
    Ok(messages
        .map(|m| LeftMessage {
            sent_at_ms: known(&m, MessageSystemAttributeName::SentTimestamp),
            deliveries: known(&m, MessageSystemAttributeName::ApproximateReceiveCount),
            message_id: m.message_id.unwrap_or_default(),
            body: m.body.unwrap_or_default(),
            receipt_handle: m.receipt_handle.unwrap_or_default(),
        })
        .collect())
}

async fn delete_message(
    sqs: &aws_sdk_sqs::Client,
    queue_url: &str,
    receipt_handle: &str,
) -> Result<(), QueueError> {
    let delete = sqs.delete_message().queue_url(queue_url);
    let deleted = delete.receipt_handle(receipt_handle).send().await;
    deleted
        .map(|_| ())
        .map_err(|e| call("DeleteMessage", queue_url, explain(&e)))
}

/// Looks at dead letters, and takes away those that are dealt with. Whoever works on letters hides them from others first.
#[derive(Clone)]
pub struct DeadLetters {
    sqs: aws_sdk_sqs::Client,
}

impl DeadLetters {
    /// A reader of dead letters.
    #[must_use]
    pub fn new(sdk: &aws_config::SdkConfig) -> Self {
        Self {
            sqs: aws_sdk_sqs::Client::new(sdk),
        }
    }

    /// What a dead-letter queue holds; nothing when there is no such queue.
    ///
    /// # Errors
    /// [`QueueError`] when SQS does not answer.
    pub async fn backlog(&self, queue_url: &str) -> Result<Backlog, QueueError> {
        backlog(&self.sqs, queue_url).await
    }

    /// Takes up to ten letters, hidden from others for this long; none when there are none, or no queue.
    ///
    /// # Errors
    /// [`QueueError`] when SQS does not answer.
    pub async fn receive(&self, queue_url: &str, hidden: Duration) -> Result<Vec<LeftMessage>, QueueError> {
        receive(&self.sqs, queue_url, Some(hidden)).await
    }

    /// Deletes a letter that is dealt with.
    ///
    /// # Errors
    /// [`QueueError`] when SQS does not do it.
    pub async fn delete(&self, queue_url: &str, receipt_handle: &str) -> Result<(), QueueError> {
        delete_message(&self.sqs, queue_url, receipt_handle).await
    }
}

/// Takes tenants' queues away.
pub struct Teardown {
    sqs: aws_sdk_sqs::Client,
}

impl Teardown {
    /// A remover of queues.
    #[must_use]
    pub fn new(sdk: &aws_config::SdkConfig) -> Self {
        Self {
            sqs: aws_sdk_sqs::Client::new(sdk),
        }
    }

    /// What a queue holds; nothing when there is no such queue.
    ///
    /// # Errors
    /// [`QueueError`] when SQS does not answer.
    pub async fn backlog(&self, queue_url: &str) -> Result<Backlog, QueueError> {
        backlog(&self.sqs, queue_url).await
    }

    /// Takes up to ten messages that nobody feeds to the governor any more; none when there are none, or no queue.
    ///
    /// # Errors
    /// [`QueueError`] when SQS does not answer.
    pub async fn receive(&self, queue_url: &str) -> Result<Vec<LeftMessage>, QueueError> {
        receive(&self.sqs, queue_url, None).await
    }

    /// Deletes a message that is settled.
    ///
    /// # Errors
    /// [`QueueError`] when SQS does not do it.
    pub async fn delete_message(&self, queue_url: &str, receipt_handle: &str) -> Result<(), QueueError> {
        delete_message(&self.sqs, queue_url, receipt_handle).await
    }

    /// Deletes a queue; one that is gone is fine.
    ///
    /// # Errors
    /// [`QueueError`] when SQS does not do it.
    pub async fn delete_queue(&self, queue_url: &str) -> Result<(), QueueError> {
        delete_queue(&self.sqs, queue_url).await.map(|_| ())
    }
}

/// Sends messages, receives some, and deletes or gives them back.
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

    /// Takes up to `most` messages that are there at once, hidden from others for the queue's own time; at most ten. None when
    /// there are none, or no queue; SQS asks only some of its servers, so there may be some for all that.
    ///
    /// # Errors
    /// [`QueueError`] when SQS does not answer.
    pub async fn receive(&self, queue_url: &str, most: usize) -> Result<Vec<LeftMessage>, QueueError> {
        let most = i32::try_from(most.clamp(1, 10)).unwrap_or(1);
        let receive = self.sqs.receive_message().queue_url(queue_url);
        received(
            receive.max_number_of_messages(most).wait_time_seconds(0),
            queue_url,
        )
        .await
    }

    /// Deletes messages that are settled.
    ///
    /// # Errors
    /// [`QueueError`] when SQS does not do it; the messages then come back after the queue's own time.
    pub async fn delete(&self, queue_url: &str, handles: &[String]) -> Result<(), QueueError> {
        let operation = "DeleteMessageBatch";
        // SQS takes ten at a time.
        for handles in handles.chunks(10) {
            let mut entries = Vec::with_capacity(handles.len());
            for (n, handle) in handles.iter().enumerate() {
                let entry = DeleteMessageBatchRequestEntry::builder()
                    .id(n.to_string())
                    .receipt_handle(handle)
                    .build();
                entries.push(entry.map_err(|e| call(operation, queue_url, e))?);
            }
            let delete = self.sqs.delete_message_batch().queue_url(queue_url);
            let answer = delete.set_entries(Some(entries)).send().await;
            let answer = answer.map_err(|e| call(operation, queue_url, explain(&e)))?;
            all_done(operation, queue_url, &answer.failed)?;
        }
        Ok(())
    }

    /// Makes messages visible again after some seconds instead of the queue's own time.
    ///
    /// # Errors
    /// [`QueueError`] when SQS does not do it; the messages then come back after the queue's own time.
    pub async fn retry_in(&self, queue_url: &str, handles: &[(String, u32)]) -> Result<(), QueueError> {
        // SQS takes ten at a time.
        for handles in handles.chunks(10) {
            self.retry_ten(queue_url, handles).await?;
        }
        Ok(())
    }

    async fn retry_ten(&self, queue_url: &str, handles: &[(String, u32)]) -> Result<(), QueueError> {
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
        all_done(operation, queue_url, &answer.failed)
    }
}

/// Whether SQS did all that a batch asked for.
fn all_done(
    operation: &'static str,
    queue_url: &str,
    failed: &[aws_sdk_sqs::types::BatchResultErrorEntry],
) -> Result<(), QueueError> {
    match failed.first() {
        None => Ok(()),
        Some(failed) => Err(call(
            operation,
            queue_url,
            format!("{} of entry {}", failed.code, failed.id),
        )),
    }
}

pub(crate) fn queue_is_gone(code: Option<&str>) -> bool {
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
