//! Dead letters, and what is left on the queues of a tenant that leaves.

use std::time::Duration;

use aws_sdk_lambda::error::ProvideErrorMetadata as _;
use aws_sdk_sqs::types::MessageSystemAttributeName;

use super::backlog::{Backlog, backlog};
use super::tenant::delete_queue;
use super::{QueueError, call, queue_is_gone};
use crate::clients::{Sdk, explain};

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

pub(super) async fn received(
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
    pub fn new(sdk: &Sdk) -> Self {
        Self { sqs: sdk.sqs() }
    }

    /// What a dead-letter queue holds; nothing when there is no such queue.
    pub async fn backlog(&self, queue_url: &str) -> Result<Backlog, QueueError> {
        backlog(&self.sqs, queue_url).await
    }

    /// Takes up to ten letters, hidden from others for this long; none when there are none, or no queue.
    pub async fn receive(&self, queue_url: &str, hidden: Duration) -> Result<Vec<LeftMessage>, QueueError> {
        receive(&self.sqs, queue_url, Some(hidden)).await
    }

    /// Deletes a letter that is dealt with.
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
    pub fn new(sdk: &Sdk) -> Self {
        Self { sqs: sdk.sqs() }
    }

    /// What a queue holds; nothing when there is no such queue.
    pub async fn backlog(&self, queue_url: &str) -> Result<Backlog, QueueError> {
        backlog(&self.sqs, queue_url).await
    }

    /// Takes up to ten messages that nobody feeds to the governor any more; none when there are none, or no queue.
    pub async fn receive(&self, queue_url: &str) -> Result<Vec<LeftMessage>, QueueError> {
        receive(&self.sqs, queue_url, None).await
    }

    /// Deletes a message that is settled.
    pub async fn delete_message(&self, queue_url: &str, receipt_handle: &str) -> Result<(), QueueError> {
        delete_message(&self.sqs, queue_url, receipt_handle).await
    }

    /// Deletes a queue; one that is gone is fine.
    pub async fn delete_queue(&self, queue_url: &str) -> Result<(), QueueError> {
        delete_queue(&self.sqs, queue_url).await.map(|_| ())
    }
}
