//! A tenant's queues and its mapping.

use std::collections::HashMap;
use std::time::Duration;

use aws_sdk_lambda::error::ProvideErrorMetadata as _;
use aws_sdk_lambda::types::{FunctionResponseType, ScalingConfig};
use aws_sdk_sqs::types::QueueAttributeName;
use domain::action::MAX_DELIVERIES;
use domain::names;
use domain::tenant::Pace;
use serde_json::json;
use tokio::time::{Instant, sleep};

use super::{QueueError, call, missing, queue_is_gone};

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
use crate::clients::{Sdk, explain};

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
    pub fn new(sdk: &Sdk, governor_arn: String) -> Result<Self, QueueError> {
        let parts: Vec<&str> = governor_arn.split(':').collect();
        let arn_prefix = match parts.as_slice() {
            ["arn", partition, "lambda", region, account, "function", ..] => {
                format!("arn:{partition}:sqs:{region}:{account}")
            }
            _ => return Err(QueueError::Arn { arn: governor_arn }),
        };
        Ok(Self {
            sqs: sdk.sqs(),
            lambda: sdk.lambda(),
            governor_arn,
            arn_prefix,
        })
    }

    /// Makes the dead-letter queue beside a tenant's queue, and gives its URL. Doing so again finds what is there.
    pub async fn dead_letter_queue(&self, queue: &str) -> Result<String, QueueError> {
        self.create_queue(&names::dead_letter_queue_name(queue), kept_long())
            .await
    }

    /// Makes a tenant's queue, and gives its URL. Doing so again finds what is there.
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
                Err(e) if dead_letters_unknown_yet(e.code(), e.message()) && Instant::now() < deadline => {
                    sleep(LOOK_EVERY).await;
                }
                Err(e) => return Err(call("CreateQueue", name, explain(&e))),
            }
        }
    }

    /// Makes the mapping that feeds the governor from a tenant's queue, and gives its id. One that is there is found.
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
                Err(e) if queue_unknown_yet(e.code()) && Instant::now() < deadline => sleep(LOOK_EVERY).await,
                Err(e) => return Err(call("CreateEventSourceMapping", queue, explain(&e))),
            }
        }
    }

    /// The id of a mapping that feeds the governor from a tenant's queue already.
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
    pub async fn pace_mapping(&self, mapping_id: &str, pace: Pace) -> Result<(), QueueError> {
        pace_mapping(&self.lambda, mapping_id, pace).await
    }

    /// Deletes the mappings from a queue, and says whether there was one. None is needed for that to be known by its id.
    pub async fn remove_mapping(&self, queue: &str) -> Result<bool, QueueError> {
        let found = self.mappings(queue).await?;
        for id in &found {
            delete_mapping(&self.lambda, id).await?;
        }
        Ok(!found.is_empty())
    }

    /// The URL of a queue; `None` when there is no such queue.
    pub async fn url(&self, name: &str) -> Result<Option<String>, QueueError> {
        queue_url(&self.sqs, name).await
    }

    /// Deletes a queue by its name, and says whether there was one.
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

pub(super) async fn pace_mapping(
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
pub(super) async fn delete_queue(sqs: &aws_sdk_sqs::Client, queue_url: &str) -> Result<bool, QueueError> {
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

/// Whether SQS does not know the dead-letter queue yet that was made a moment ago: it asks for a second's patience. Any other
/// value that it calls invalid, a name for example, stays invalid.
fn dead_letters_unknown_yet(code: Option<&str>, message: Option<&str>) -> bool {
    queue_is_gone(code)
        || (matches!(code, Some("InvalidParameterValue" | "InvalidAttributeValue"))
            && message.is_some_and(|message| message.contains("RedrivePolicy")))
}

/// Whether Lambda does not know the queue yet that was made a moment ago.
fn queue_unknown_yet(code: Option<&str>) -> bool {
    queue_is_gone(code) || code == Some("InvalidParameterValueException")
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_dead_letter_queue_that_is_unknown_is_waited_for() {
        let unknown =
            "Value {...} for parameter RedrivePolicy is invalid. Reason: Dead letter target does not exist.";
        let name = "Can only include alphanumeric characters, hyphens, or underscores. 1 to 80 in length";
        for (code, message, waits) in [
            ("InvalidParameterValue", unknown, true),
            ("InvalidAttributeValue", unknown, true),
            ("QueueDoesNotExist", "", true),
            ("AWS.SimpleQueueService.NonExistentQueue", "", true),
            ("InvalidParameterValue", name, false),
            ("InvalidAttributeValue", "Unknown Attribute", false),
            ("QueueDeletedRecently", "", false),
        ] {
            let found = dead_letters_unknown_yet(Some(code), Some(message));
            assert_eq!(found, waits, "{code}: {message}");
        }
    }
}
