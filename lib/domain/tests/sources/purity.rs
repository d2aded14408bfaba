//! The pure part knows no cloud, no runtime, no environment and no clock.

use super::{read, rust};

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

/// Pure files of functions.
const PURE_FILES: [&str; 1] = ["functions/scale/src/event.rs"];

#[test]
fn pure_crates_name_nothing_impure() {
    let mut sources: Vec<String> = PURE_FILES.map(str::to_owned).into();
    for name in ["domain", "receipts", "policy"] {
        sources.push(format!("lib/{name}/Cargo.toml"));
        sources.extend(rust(&format!("lib/{name}/src")));
    }
    assert!(
        sources.len() > 15,
        "only {} files found: the test looks in the wrong place",
        sources.len()
    );
    let mut offences = Vec::new();
    for path in sources {
        for (n, line) in read(&path).lines().enumerate() {
            // Prose may say what the code does not do.
            let code = line.split("//").next().unwrap_or_default();
            for word in FORBIDDEN.iter().filter(|word| code.contains(**word)) {
                offences.push(format!("{path}:{}: {word}", n + 1));
            }
        }
    }
    assert!(offences.is_empty(), "{}", offences.join("\n"));
}
