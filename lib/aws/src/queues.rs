//! Tenants' queues and the event source mappings that feed the governor from them.

mod backlog;
mod dead_letters;
mod messages;
mod tenant;

pub use self::backlog::{Backlog, Feeds};
pub use self::dead_letters::{DeadLetters, LeftMessage, Teardown};
pub use self::messages::Messages;
pub use self::tenant::TenantQueues;

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
        what: &'static str,
    },
    /// The governor's ARN is not one.
    #[error("GOVERNOR_FUNCTION_ARN {arn:?} is not a function ARN")]
    Arn {
        /// What was configured.
        arn: String,
    },
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
