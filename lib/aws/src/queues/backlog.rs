//! What waits on queues, and how fast they are fed.

use aws_sdk_lambda::error::ProvideErrorMetadata as _;
use aws_sdk_sqs::types::QueueAttributeName;
use domain::tenant::Pace;

use super::tenant::pace_mapping;
use super::{QueueError, call, missing, queue_is_gone};
use crate::clients::{Sdk, explain};

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

pub(super) async fn backlog(sqs: &aws_sdk_sqs::Client, queue_url: &str) -> Result<Backlog, QueueError> {
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
    pub fn new(sdk: &Sdk) -> Self {
        Self {
            sqs: sdk.sqs(),
            lambda: sdk.lambda(),
        }
    }

    /// What a queue holds; nothing when there is no such queue.
    pub async fn backlog(&self, queue_url: &str) -> Result<Backlog, QueueError> {
        backlog(&self.sqs, queue_url).await
    }

    /// Has a mapping feed the governor at a tenant's pace.
    pub async fn pace(&self, mapping_id: &str, pace: Pace) -> Result<(), QueueError> {
        pace_mapping(&self.lambda, mapping_id, pace).await
    }
}
