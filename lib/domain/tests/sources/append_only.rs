//! Receipts are appended in one place, and nothing can change or delete one.

use super::{read, rust};

/// How an SDK call begins that changes or deletes items, or writes them without the store's conditions.
const FORBIDDEN: [&str; 8] = [
    ".update_item()",
    ".delete_item()",
    ".batch_write_item()",
    ".execute_statement()",
    ".execute_transaction()",
    ".batch_execute_statement()",
    "Update::builder",
    "Delete::builder",
];

/// Where each way to write the tables may stand, and how often.
const WRITES: [(&str, &str, usize); 4] = [
    // The health probe's own item, in the tenants table.
    (".put_item()", "lib/aws/src/store.rs", 1),
    (".transact_write_items()", "lib/aws/src/store/transact.rs", 1),
    ("Put::builder()", "lib/aws/src/store/writes.rs", 1),
    // What deletes from a bucket: drained receipts, from the spool.
    (".delete_object()", "lib/aws/src/spool.rs", 1),
];

/// How a function that names the receipts table shows that it only reads it.
const READS: [&str; 3] = [".query()", ".get_item()", "self.find_receipt_in("];

/// Sources of what is deployed and of ggen, without comments and unit tests: path from the root, and text.
fn sources() -> Vec<(String, String)> {
    let paths = ["lib/aws/src", "functions", "ggen/src"]
        .into_iter()
        .flat_map(rust);
    paths
        .map(|path| {
            let text = read(&path);
            let code = text.split("#[cfg(test)]").next().unwrap_or_default();
            let code: Vec<&str> = code
                .lines()
                .map(|line| line.split("//").next().unwrap_or_default())
                .collect();
            (path, code.join("\n"))
        })
        .collect()
}

#[test]
fn nothing_changes_or_deletes_an_item() {
    let sources = sources();
    assert!(
        sources.len() > 25,
        "only {} files found: the test looks in the wrong place",
        sources.len()
    );
    for (path, code) in &sources {
        for word in FORBIDDEN {
            assert!(!code.contains(word), "{path} says {word}");
        }
    }
    for (word, where_to, times) in WRITES {
        let found: Vec<(&str, usize)> = sources
            .iter()
            .map(|(path, code)| (path.as_str(), code.matches(word).count()))
            .filter(|(_, times)| *times > 0)
            .collect();
        assert_eq!(found, [(where_to, times)], "{word}");
    }
}

fn is_store(path: &str) -> bool {
    path == "lib/aws/src/store.rs" || path.starts_with("lib/aws/src/store/")
}

#[test]
fn receipts_are_put_in_one_place() {
    let sources = sources();
    let store: String = sources
        .iter()
        .filter(|(path, _)| is_store(path))
        .map(|(_, code)| code.as_str())
        .collect();
    // The body of each function that names the receipts table, by its name.
    let naming: Vec<(&str, &str)> = store
        .split("fn ")
        .skip(1)
        .filter(|body| body.contains(".receipts_table"))
        .map(|body| (body.split(['(', '<']).next().unwrap_or_default(), body))
        .collect();
    let writing: Vec<&str> = naming
        .iter()
        .filter(|(_, body)| !READS.iter().any(|read| body.contains(read)))
        .map(|(name, _)| *name)
        .collect();
    assert_eq!(writing, ["put_receipt"]);
    let (_, body) = naming.iter().find(|(name, _)| *name == "put_receipt").unwrap();
    assert!(
        body.contains("\"attribute_not_exists(account_id)\""),
        "a receipt could replace another: {body}"
    );
    // No other file has the table's name to write to, but where it is read from the environment.
    let others: Vec<&str> = sources
        .iter()
        .filter(|(path, code)| !is_store(path) && code.contains("receipts_table"))
        .map(|(path, _)| path.as_str())
        .collect();
    assert_eq!(others, ["lib/aws/src/config.rs"]);
}
