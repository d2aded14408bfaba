//! The pure crates know no cloud, no runtime, no environment and no clock.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test may stop at the first surprise"
)]

use std::fs;
use std::path::{Path, PathBuf};

/// What no line of a pure crate may name. Randomness is here too: ids are passed in.
const FORBIDDEN: [&str; 12] = [
    "aws_",
    "aws-",
    "tokio",
    "std::env",
    "env::var",
    "SystemTime",
    "Instant::now",
    "Timestamp::now",
    "Zoned::now",
    "new_v4",
    "now_v7",
    "std::net",
];

fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

#[test]
fn pure_crates_name_nothing_impure() {
    let lib = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut looked_at = 0;
    let mut offences = Vec::new();
    for name in ["domain", "receipts", "policy"] {
        let mut sources = vec![lib.join(name).join("Cargo.toml")];
        files(&lib.join(name).join("src"), &mut sources);
        for path in sources {
            looked_at += 1;
            for (n, line) in fs::read_to_string(&path).unwrap().lines().enumerate() {
                // Prose may say what the code does not do.
                let code = line.split("//").next().unwrap_or_default();
                for word in FORBIDDEN.iter().filter(|word| code.contains(**word)) {
                    offences.push(format!("{}:{}: {word}", path.display(), n + 1));
                }
            }
        }
    }
    assert!(
        looked_at > 15,
        "only {looked_at} files found: the test looks in the wrong place"
    );
    assert!(offences.is_empty(), "{}", offences.join("\n"));
}
