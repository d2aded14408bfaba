//! What the sources may not say, and what the documents say of them.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test may stop at the first surprise"
)]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

mod append_only;
mod circles;
mod documents;
mod purity;

/// Folders with nothing that anybody wrote.
const BUILT: [&str; 4] = ["target", ".venv", ".git", "node_modules"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap()
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap()
}

fn walk(folder: &Path, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if path.is_dir() && !BUILT.contains(&name) {
            walk(&path, found);
        } else if path.is_file() {
            found.insert(path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned());
        }
    }
}

/// Every file below a folder of the project, the root's for an empty one, by its path from the root.
fn files(folder: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    walk(&root().join(folder), &mut found);
    found
}

/// Those of them that are Rust.
fn rust(folder: &str) -> impl Iterator<Item = String> {
    files(folder).into_iter().filter(|path| path.ends_with(".rs"))
}
