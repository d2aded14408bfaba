//! Paths and symbols that documents name are there.

use std::collections::BTreeSet;
use std::path::Path;

use super::{files, read};

/// What documents name that is no file of ours: objects in buckets, parts of names in others' formats.
const ELSEWHERE: [&str; 3] = ["control.json", "tile/entries", "marketplace-governor/producer/v1"];
/// What stands in backticks in a document, but for blocks of code.
fn quoted(text: &str) -> BTreeSet<String> {
    let prose = text.lines().filter(|line| !line.starts_with("    "));
    let quoted = prose.flat_map(|line| line.split('`').skip(1).step_by(2));
    quoted.map(str::to_owned).collect()
}

fn words(text: &str) -> Vec<&str> {
    let letter = |c: char| c.is_alphanumeric() || c == '_';
    text.split(|c| !letter(c))
        .filter(|word| !word.is_empty())
        .collect()
}

fn is_path(token: &str) -> bool {
    let plain = token
        .chars()
        .all(|c| c.is_ascii_alphanumeric() || "_-./".contains(c));
    let named = ["rs", "py", "md", "yaml", "toml", "json", "sh"];
    let ends = token
        .rsplit_once('.')
        .is_some_and(|(name, end)| !name.is_empty() && named.contains(&end));
    plain && !token.starts_with('/') && (ends || token.trim_end_matches('/').contains('/'))
}

fn is_symbol(token: &str) -> bool {
    let name = |part: &str| {
        let letters = part.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        letters && part.starts_with(|c: char| c.is_ascii_alphabetic())
    };
    token.contains("::") && token.split("::").all(name)
}

/// A document that names a path or a symbol that has gone says something that is not true.
#[test]
fn what_documents_name_is_there() {
    let all = files("");
    let sources: Vec<(&String, String)> = all
        .iter()
        .filter(|path| path.ends_with(".rs"))
        .map(|path| (path, read(path)))
        .collect();
    let known = |symbol: &str| {
        let mut parts = symbol.rsplit("::");
        let (name, of) = (parts.next().unwrap(), parts.next().unwrap());
        sources.iter().any(|(path, text)| {
            if !(text.contains(name) && (text.contains(of) || path.contains(of))) {
                return false;
            }
            let words = words(text);
            let defined = |pair: &[&str]| {
                pair[1] == of && ["impl", "struct", "enum", "trait", "for", "mod"].contains(&pair[0])
            };
            let module = path.ends_with(&format!("/{of}.rs")) || path.contains(&format!("/{of}/"));
            words.contains(&name) && (module || words.windows(2).any(defined))
        })
    };
    let there = |document: &str, path: &str| {
        let path = path.trim_end_matches('/');
        let beside = Path::new(document).parent().unwrap().join(path);
        let beside = beside.to_str().unwrap();
        all.iter().any(|file| {
            let folder = |of: &str| {
                file.strip_prefix(of)
                    .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            };
            folder(path) || folder(beside) || format!("/{file}/").contains(&format!("/{path}/"))
        })
    };
    let documents: Vec<&String> = all
        .iter()
        .filter(|path| {
            ["ARCHITECTURE.md", "README.md"].contains(&path.as_str()) || path.starts_with("docs/adr/")
        })
        .collect();
    assert!(documents.len() > 15, "{documents:?}");
    let mut looked_at = 0;
    let mut gone = Vec::new();
    for document in documents {
        for token in quoted(&read(document)) {
            if ELSEWHERE.contains(&token.as_str()) || !(is_path(&token) || is_symbol(&token)) {
                continue;
            }
            looked_at += 1;
            let found = match is_symbol(&token) {
                true => known(&token),
                false => there(document, &token),
            };
            if !found {
                gone.push(format!("{document}: `{token}`"));
            }
        }
    }
    assert!(looked_at > 60, "only {looked_at} names found");
    assert!(gone.is_empty(), "{}", gone.join("\n"));
}
