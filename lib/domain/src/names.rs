//! Injective names: any account id becomes a legal queue name, table key and object key, and no two share one.

use std::fmt;

use receipts::origin::Ledger;
pub use receipts::origin::segment as key_segment;
use sha2::{Digest, Sha256};

use crate::account::AccountId;

/// Ledger and state of the control plane itself. No external account id maps to it: see [`Partition`].
pub const SYSTEM_ACCOUNT: &str = receipts::origin::SYSTEM;

/// The tables' `account_id` key: a customer's, or one of the control plane's own.
///
/// Keys that begin with one underscore belong to the control plane, so a customer's id that begins with an underscore
/// gets two more. The mapping is injective and cannot produce [`SYSTEM_ACCOUNT`].
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Partition(String);

impl Partition {
    /// A customer's.
    #[must_use]
    pub fn of(account: &AccountId) -> Self {
        let id = account.as_str();
        Self(if id.starts_with('_') {
            format!("__{id}")
        } else {
            id.to_owned()
        })
    }

    /// That of the control plane's own ledger.
    #[must_use]
    pub fn system() -> Self {
        Self(SYSTEM_ACCOUNT.to_owned())
    }

    /// A key as it stands in a table.
    #[must_use]
    pub fn from_key(key: String) -> Self {
        Self(key)
    }

    /// The key.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The customer; `None` for the control plane's own keys.
    #[must_use]
    pub fn account(&self) -> Option<AccountId> {
        let id = match self.0.strip_prefix("__") {
            Some(id) if id.starts_with('_') => id,
            _ if self.0.starts_with('_') => return None,
            _ => &self.0,
        };
        AccountId::parse(id).ok()
    }

    /// Whose ledger stands there; `None` for the control plane's keys that are no ledger.
    #[must_use]
    pub fn ledger(&self) -> Option<LedgerId> {
        match self.0.as_str() {
            SYSTEM_ACCOUNT => Some(LedgerId::System),
            _ => self.account().map(LedgerId::Customer),
        }
    }
}

impl fmt::Display for Partition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// How long a stack's name may be: its longest function name, `<stack>-policy-upgrade`, must fit into Lambda's 64 characters.
pub const MAX_PREFIX: usize = 49;
/// SQS allows 80 characters of `[A-Za-z0-9_-]`.
const MAX_QUEUE_NAME: usize = 80;
const DEAD_LETTERS: &str = "-dlq";

/// Name of a tenant's queue: `<prefix>-t-<readable part>-<digest>-g<generation>`.
///
/// 80 characters are too few for 256 characters of anything, so 128 bits of SHA-256 make the name unique and the readable
/// part (at most 16 characters) is only for people. The digest is written in hexadecimal. Where the dead-letter queue's
/// longer name would not fit then, it is written in base 62, and the readable part gets what is left; a stack with a very long
/// name has no readable part, and at least 16 digits (95 bits) of the digest. The generation changes when an account
/// subscribes again, because SQS refuses the name of a deleted queue for 60 s.
#[must_use]
pub fn queue_name(prefix: &str, account: &AccountId, generation: u64) -> String {
    let (prefix, generation) = (tenant_prefix(prefix), format!("-g{generation}"));
    let readable: String = account
        .as_str()
        .chars()
        .filter(|c| c.is_ascii_alphanumeric() || *c == '-')
        .take(16)
        .collect();
    let digest = Sha256::digest(account.as_str().as_bytes());
    let digest = u128::from_be_bytes(digest.first_chunk().copied().unwrap_or_default());
    let around = prefix.len() + generation.len() + DEAD_LETTERS.len();
    let room = MAX_QUEUE_NAME.saturating_sub(around);
    let id = format!("{readable}-{digest:032x}");
    if id.len() <= room {
        return format!("{prefix}{id}{generation}");
    }
    let digest: String = base62(digest).take(room).collect();
    let left = room.saturating_sub(digest.len() + 1).min(readable.len());
    match readable.get(..left) {
        Some(readable) if left > 0 => format!("{prefix}{readable}-{digest}{generation}"),
        _ => format!("{prefix}{digest}{generation}"),
    }
}

/// The 22 digits of a number in base 62, the last one first.
fn base62(number: u128) -> impl Iterator<Item = char> {
    let mut rest = number;
    (0..22).filter_map(move |_| {
        let digit = u8::try_from(rest % 62).ok()?;
        rest /= 62;
        Some(char::from(match digit {
            0..10 => b'0' + digit,
            10..36 => b'a' + (digit - 10),
            _ => b'A' + (digit - 36),
        }))
    })
}

/// Whether a queue of any generation is this account's.
#[must_use]
pub fn queue_belongs_to(queue: &str, prefix: &str, account: &AccountId) -> bool {
    let generation = queue
        .rsplit_once("-g")
        .and_then(|(_, generation)| generation.parse().ok());
    generation.is_some_and(|generation| queue == queue_name(prefix, account, generation))
}

/// Name of the dead-letter queue beside a tenant's queue.
#[must_use]
pub fn dead_letter_queue_name(queue: &str) -> String {
    format!("{queue}{DEAD_LETTERS}")
}

/// Name of the table of a tenant's own actions, for plans that ask for one. DynamoDB allows 255 characters.
#[must_use]
pub fn action_table_name(queue: &str, attempt: u64) -> String {
    format!("{}-actions", attempted(queue, attempt))
}

/// Name of the table of a tenant's own receipts, for plans that ask for one.
#[must_use]
pub fn receipt_table_name(queue: &str, attempt: u64) -> String {
    format!("{}-receipts", attempted(queue, attempt))
}

/// What a tenant gets with its queue has the queue's name; what later attempts make has a name of its own.
fn attempted(queue: &str, attempt: u64) -> String {
    match attempt {
        0 => queue.to_owned(),
        attempt => format!("{queue}-{attempt}"),
    }
}

/// What every name of a tenant's own resources begins with in a stack.
#[must_use]
pub fn tenant_prefix(prefix: &str) -> String {
    format!("{prefix}-t-")
}

/// The queue whose tenant a queue or table was made for, by its name alone.
#[must_use]
pub fn queue_of_resource(name: &str) -> &str {
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    if let Some(queue) = name.strip_suffix(DEAD_LETTERS) {
        return queue;
    }
    let Some(table) = ["-actions", "-receipts"]
        .iter()
        .find_map(|suffix| name.strip_suffix(suffix))
    else {
        return name;
    };
    // `…-g7-2`: the second attempt at tables of generation 7.
    match table.rsplit_once('-') {
        Some((queue, attempt)) if digits(attempt) => {
            let generation = queue.rsplit_once("-g").map(|(_, generation)| generation);
            if generation.is_some_and(digits) {
                queue
            } else {
                table
            }
        }
        _ => table,
    }
}

/// Registry object that says which enforcer a SKU and plan have now.
#[must_use]
pub fn index_key(sku_id: &str, plan_type: &str) -> String {
    format!("index/{}/{}.json", key_segment(sku_id), key_segment(plan_type))
}

/// Registry object that says what a provider's own plan id means here.
#[must_use]
pub fn alias_key(provider: &str, plan_id: &str) -> String {
    format!("aliases/{}/{}.json", key_segment(provider), key_segment(plan_id))
}

/// Registry object that holds an enforcer's bytes.
#[must_use]
pub fn enforcer_key(hash: &str) -> String {
    format!("enforcers/{hash}.json")
}

/// Prefix of the audit objects that hold a generation's dead letters, one object each.
#[must_use]
pub fn dead_letters_prefix(account: &AccountId, generation: u64) -> String {
    format!(
        "{}/g{generation}.dead-letters/",
        Ledger::Customer(account.as_str()).segment()
    )
}

/// Audit object that holds the content of a generation's own action table.
#[must_use]
pub fn actions_archive_key(account: &AccountId, generation: u64) -> String {
    format!(
        "{}/g{generation}.actions.jsonl",
        Ledger::Customer(account.as_str()).segment()
    )
}

/// Audit object that holds an account's archive of one day (`date` as YYYY-MM-DD).
#[must_use]
pub fn archive_key(account: &AccountId, date: &str) -> String {
    format!("{}/{date}.tar.gz", Ledger::Customer(account.as_str()).segment())
}

/// Whose ledger.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum LedgerId {
    /// A customer's.
    Customer(AccountId),
    /// The control plane's own.
    System,
}

impl LedgerId {
    /// As receipts and checkpoints name it.
    #[must_use]
    pub fn ledger(&self) -> Ledger<'_> {
        match self {
            Self::Customer(account) => Ledger::Customer(account.as_str()),
            Self::System => Ledger::System,
        }
    }

    /// The tables' key of it.
    #[must_use]
    pub fn partition(&self) -> Partition {
        match self {
            Self::Customer(account) => Partition::of(account),
            Self::System => Partition::system(),
        }
    }
}

// The audit bucket's folders of the control plane begin with an underscore, which no customer's segment does.

/// Prefix of all ledgers' logs in the audit bucket.
pub const LOGS_PREFIX: &str = "_log/";

/// Prefix of a ledger's checkpoints and tiles in the audit bucket: a C2SP tile log's address.
#[must_use]
pub fn log_prefix(ledger: Ledger<'_>) -> String {
    format!("{LOGS_PREFIX}{}/", ledger.segment())
}

/// Audit object that holds a ledger's latest checkpoint; also the beginning of [`checkpoints_prefix`].
#[must_use]
pub fn latest_checkpoint_key(ledger: Ledger<'_>) -> String {
    format!("{}checkpoint", log_prefix(ledger))
}

/// Prefix of a ledger's checkpoints in the audit bucket.
#[must_use]
pub fn checkpoints_prefix(ledger: Ledger<'_>) -> String {
    format!("{}checkpoints/", log_prefix(ledger))
}

/// Audit object that holds the checkpoint of a ledger at `size` receipts, signed by this key. Keys sort by size.
#[must_use]
pub fn checkpoint_key(ledger: Ledger<'_>, size: u64, key_id: &str) -> String {
    format!("{}{size:020}-{key_id}", checkpoints_prefix(ledger))
}

/// The size and the key id in a [`checkpoint_key`].
#[must_use]
pub fn checkpoint_of_key(key: &str) -> Option<(u64, &str)> {
    let (_, name) = key.rsplit_once('/')?;
    let (size, key_id) = name.split_once('-')?;
    Some((size.parse().ok()?, key_id))
}

/// Prefix of the key trail in the audit bucket.
pub const KEYS_PREFIX: &str = "_keys/";

/// Audit object that holds one receipt of the key trail; keys sort as the ledger does.
#[must_use]
pub fn key_trail_key(seq: u64) -> String {
    format!("{KEYS_PREFIX}{seq:020}.json")
}

/// Somebody else's words, made safe for a receipt: at most `most` characters, none of them a control character.
#[must_use]
pub fn printable(text: &str, most: usize) -> String {
    text.chars()
        .map(|c| if c == '\n' { ' ' } else { c })
        .filter(|c| !c.is_control())
        .take(most)
        .collect()
}

/// JSON without the characters that SQS refuses in a message, and refuses for good: it takes those of XML 1.0 only. Of the others
/// JSON escapes the controls; these two it need not, and they stand in texts only, where an escape means the same.
#[must_use]
pub fn as_queues_take(json: String) -> String {
    if !json.contains(['\u{fffe}', '\u{ffff}']) {
        return json;
    }
    json.replace('\u{fffe}', "\\ufffe").replace('\u{ffff}', "\\uffff")
}

/// Prefix of receipts that wait for storage to recover.
pub const SPOOL_PREFIX: &str = "_spool/";

/// Audit object that holds one spooled receipt. Keys sort by time, and say the operation so that it can be counted
/// without reading.
#[must_use]
pub fn spool_key(occurred_at: jiff::Timestamp, receipt_id: uuid::Uuid, operation: &str) -> String {
    format!(
        "{SPOOL_PREFIX}{:015}-{receipt_id}-{operation}.json",
        occurred_at.as_millisecond().max(0)
    )
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    fn account(text: &str) -> AccountId {
        AccountId::parse(text).unwrap()
    }

    #[test]
    fn no_customer_reaches_the_system_ledger() {
        for id in ["_system", "__system", "_x", "_"] {
            let key = Partition::of(&account(id));
            assert_ne!(key, Partition::system(), "{id}");
            assert!(key.as_str().starts_with("___"), "{id} -> {key}");
        }
        assert_eq!(Partition::of(&account("customer-123")).as_str(), "customer-123");
        for key in [SYSTEM_ACCOUNT, "_queue:x", "_webhook:github#1", "__x", ""] {
            assert_eq!(Partition::from_key(key.to_owned()).account(), None, "{key}");
        }
    }

    #[test]
    fn a_queue_belongs_to_one_account() {
        let queue = queue_name("mg-dev", &account("customer-g1"), 7);
        assert!(queue_belongs_to(&queue, "mg-dev", &account("customer-g1")));
        assert!(!queue_belongs_to(&queue, "mg-dev", &account("customer-g2")));
        assert!(!queue_belongs_to(&queue, "mg-prod", &account("customer-g1")));
        assert!(!queue_belongs_to("", "mg-dev", &account("customer-g1")));
        assert!(!queue_belongs_to("x-g07", "mg-dev", &account("customer-g1")));
        for resource in [
            queue.clone(),
            dead_letter_queue_name(&queue),
            action_table_name(&queue, 0),
            receipt_table_name(&queue, 0),
            action_table_name(&queue, 1),
            receipt_table_name(&queue, 12),
        ] {
            assert_eq!(queue_of_resource(&resource), queue);
            assert!(resource.starts_with(&tenant_prefix("mg-dev")));
        }
    }

    /// Amazon SQS, SendMessage: `#x9 | #xA | #xD | #x20 to #xD7FF | #xE000 to #xFFFD | #x10000 to #x10FFFF`.
    fn sqs_takes(c: char) -> bool {
        matches!(c, '\t' | '\n' | '\r' | ' '..='\u{d7ff}' | '\u{e000}'..='\u{fffd}' | '\u{10000}'..)
    }

    /// Names of tenants that exist: they stay as they are.
    #[test]
    fn names_that_fit_have_the_digest_in_hexadecimal() {
        let check = |prefix: &str, id: &str, expected: &str| {
            assert_eq!(queue_name(prefix, &account(id), 1), expected);
        };
        let hex = format!("{:032x}", {
            let digest = Sha256::digest(b"github-18404719");
            u128::from_be_bytes(*digest.first_chunk().unwrap())
        });
        let fits = "marketplace-governor";
        check(
            fits,
            "github-18404719",
            &format!("{fits}-t-github-18404719-{hex}-g1"),
        );
        check("mg", "github-18404719", &format!("mg-t-github-18404719-{hex}-g1"));
        let long = "marketplace-governor-staging";
        let name = queue_name(long, &account("github-18404719"), 1);
        assert!(name.starts_with(&format!("{long}-t-github-18404719-")), "{name}");
        assert_eq!(name.len(), long.len() + 3 + 16 + 22 + 3);
    }

    proptest! {
        #[test]
        fn every_text_reaches_the_queue_and_is_read_as_it_was(
            text in "([\u{fffe}\u{ffff}\\\\\"]|.|[\u{0}-\u{1f}\u{7f}-\u{9f}]){0,20}",
        ) {
            let sent = as_queues_take(serde_json::to_string(&text).unwrap());
            prop_assert!(sent.chars().all(sqs_takes), "{sent:?}");
            prop_assert_eq!(serde_json::from_str::<String>(&sent).unwrap(), text);
        }

        #[test]
        fn names_are_legal_and_distinct(
            prefix in "[A-Za-z][A-Za-z0-9-]{0,48}",
            ids in proptest::collection::hash_set("[^\\p{Cc}]{1,256}", 1..20),
            generation in 1..1_000_000u64,
        ) {
            prop_assert!(prefix.len() <= MAX_PREFIX);
            let mut queues = HashSet::new();
            let mut keys = HashSet::new();
            let mut folders = HashSet::new();
            for id in &ids {
                let id = account(id);
                let queue = queue_name(&prefix, &id, generation);
                let name = dead_letter_queue_name(&queue);
                prop_assert!(name.len() <= 80, "{name}");
                prop_assert!(name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_'), "{name}");
                prop_assert!(name.starts_with(&tenant_prefix(&prefix)));
                prop_assert!(queue_belongs_to(&queue, &prefix, &id));
                prop_assert!(!queue_belongs_to(&queue, &prefix, &account("somebody else")));
                for made in [&name, &queue, &action_table_name(&queue, 0), &receipt_table_name(&queue, 2)] {
                    prop_assert_eq!(queue_of_resource(made), &queue);
                }
                prop_assert!(queues.insert(name));
                prop_assert_eq!(Partition::of(&id).account(), Some(id.clone()));
                prop_assert!(keys.insert(Partition::of(&id)));
                let folder = archive_key(&id, "2026-01-01");
                prop_assert!(folder.len() <= 1024 && !folder.contains(".."));
                prop_assert!(folders.insert(folder));
            }
        }

        /// The digest decides, however long the stack's name and however many times the account subscribed.
        #[test]
        fn alike_accounts_have_distinct_queues(
            prefix in "[A-Za-z][A-Za-z0-9-]{0,48}",
            ids in proptest::collection::hash_set("customer-000000000[0-9]{1,6}", 2..50),
            generations in proptest::collection::hash_set(1..1_000_000u64, 1..4),
        ) {
            let mut queues = HashSet::new();
            for id in &ids {
                for generation in &generations {
                    let queue = queue_name(&prefix, &account(id), *generation);
                    prop_assert!(queues.insert(queue.clone()), "{queue}");
                }
            }
        }
    }
}
