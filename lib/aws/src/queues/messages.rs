//! Messages: sent, received, given back.

use std::time::Duration;

use aws_sdk_sqs::types::{ChangeMessageVisibilityBatchRequestEntry, DeleteMessageBatchRequestEntry};
use tokio::time::{Instant, sleep_until, timeout};
use tracing::warn;

use domain::names::as_queues_take;

use super::dead_letters::{LeftMessage, received};
use super::{QueueError, call};
use crate::clients::{Sdk, explain};

/// How long a message that is held stays hidden once its holder is gone.
const HELD: Duration = Duration::from_secs(45);
/// How often the hold is renewed: some calls may fail before it ends.
const RENEW_EVERY: Duration = Duration::from_secs(10);

/// Sends messages, receives some, and deletes or gives them back.
pub struct Messages {
    sqs: aws_sdk_sqs::Client,
}

impl Messages {
    /// A sender of messages.
    #[must_use]
    pub fn new(sdk: &Sdk) -> Self {
        Self { sqs: sdk.sqs() }
    }

    /// Puts a message on a queue: JSON, in which any text may stand.
    pub async fn send(&self, queue_url: &str, body: String) -> Result<(), QueueError> {
        let body = as_queues_take(body);
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

    /// Keeps a message hidden for as long as this is polled, and for 45 s afterwards: a holder that is killed leaves it to the next
    /// one within a minute. Ends only when the message may be visible again, so that two never work on it.
    pub async fn hold(&self, queue_url: &str, handle: &str) -> QueueError {
        let seconds = u32::try_from(HELD.as_secs()).unwrap_or(u32::MAX);
        let handles = [(handle.to_owned(), seconds)];
        // Until the first call succeeds it is hidden for the queue's own time, which is longer than any function runs.
        let mut hidden_until = None;
        loop {
            let asked = Instant::now();
            let renewed = timeout(RENEW_EVERY, self.retry_in(queue_url, &handles)).await;
            let error = match renewed {
                Ok(Ok(())) => {
                    hidden_until = Some(asked + HELD);
                    None
                }
                Ok(Err(e)) => Some(e),
                Err(e) => Some(call("ChangeMessageVisibilityBatch", queue_url, e)),
            };
            let next = asked + RENEW_EVERY;
            match (error, hidden_until) {
                // Given up while there is time to stop.
                (Some(error), Some(until)) if next + RENEW_EVERY >= until => return error,
                (Some(error), _) => warn!(%error, "a message could not be held; tried again"),
                (None, _) => {}
            }
            sleep_until(next).await;
        }
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
