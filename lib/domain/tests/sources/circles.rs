//! No two files need each other: each can be read, and moved, without the one that needs it.

use std::collections::{BTreeMap, BTreeSet};

use super::{files, read, rust};

/// A module by its names from the crate's root, or an item in it.
type Names = Vec<String>;

/// What a file is and names, but for its tests.
struct Source {
    path: String,
    module: Names,
    /// Names that `use` brings in, and what each stands for; `None` when it is another crate's.
    imported: BTreeMap<String, Option<Names>>,
    /// Every path into this crate, except those by which it hands on what its own children hold.
    named: Vec<Names>,
}

fn tokens(code: &str) -> Vec<String> {
    let mut tokens: Vec<String> = Vec::new();
    let mut word = String::new();
    let mut chars = code.chars().peekable();
    while let Some(c) = chars.next() {
        if c.is_alphanumeric() || c == '_' {
            word.push(c);
            continue;
        }
        if !word.is_empty() {
            tokens.push(std::mem::take(&mut word));
        }
        match c {
            ':' if chars.peek() == Some(&':') => {
                chars.next();
                tokens.push("::".to_owned());
            }
            c if c.is_whitespace() => (),
            c => tokens.push(c.to_string()),
        }
    }
    tokens
}

/// The code without comments, and without what is compiled for tests only; and the test modules in files of their own.
fn product(text: &str) -> (String, BTreeSet<String>) {
    let (mut code, mut tests, mut of_tests) = (String::new(), BTreeSet::new(), false);
    for line in text.lines() {
        let line = line.split("//").next().unwrap();
        let module = line.split_once("mod ").filter(|_| of_tests);
        if line.trim() == "#[cfg(test)]" {
            of_tests = true;
        } else if let Some((_, name)) = module {
            match name.strip_suffix(';') {
                Some(name) => tests.insert(name.to_owned()),
                None => break,
            };
            of_tests = false;
        } else {
            // An attribute between the two may have several lines; anything else ends with its first one.
            of_tests &= !line.ends_with([';', '{']);
            code.push_str(line);
            code.push('\n');
        }
    }
    (code, tests)
}

/// The paths of a `use` tree or of an expression that begins at `at`, with what each is called here; and where it ends.
fn paths(tokens: &[String], mut at: usize, so_far: &[String], found: &mut Vec<(Names, String)>) -> usize {
    let mut path = so_far.to_vec();
    loop {
        match tokens.get(at).map(String::as_str) {
            Some("{") => {
                at += 1;
                while tokens.get(at).is_some_and(|token| token != "}") {
                    at = paths(tokens, at, &path, found);
                    at += usize::from(tokens.get(at).is_some_and(|token| token == ","));
                }
                return at + 1;
            }
            Some(name) => path.push(name.to_owned()),
            None => return at,
        }
        at += 1;
        match tokens.get(at).map(String::as_str) {
            Some("::") => at += 1,
            Some("as") => {
                found.push((path, tokens[at + 1].clone()));
                return at + 2;
            }
            _ => {
                let last = path.last().unwrap().clone();
                found.push((path, last));
                return at;
            }
        }
    }
}

impl Source {
    fn read(path: &str, krate: &str, modules: &BTreeSet<Names>) -> (Self, BTreeSet<String>) {
        let module = module(path, krate);
        let (code, tests) = product(&read(path));
        let tokens = tokens(&code);
        let mut source = Self {
            path: path.to_owned(),
            module,
            imported: BTreeMap::new(),
            named: Vec::new(),
        };
        let mut at = 0;
        while at < tokens.len() {
            let before = at.checked_sub(1).map(|at| tokens[at].as_str());
            let imports = before == Some("use");
            if before == Some("::") || !(imports || tokens.get(at + 1).is_some_and(|next| next == "::")) {
                at += 1;
                continue;
            }
            let handed_on = imports && at > 1 && (tokens[at - 2] == "pub" || tokens[at - 2] == ")");
            let mut found = Vec::new();
            let end = paths(&tokens, at, &[], &mut found);
            for (names, called) in found {
                let whole = source.whole(&names, modules);
                if imports {
                    let name = if called == "self" {
                        names[names.len() - 2].clone()
                    } else {
                        called
                    };
                    source.imported.insert(name, whole.clone());
                }
                let own = |whole: &Names| {
                    whole.starts_with(&source.module) && whole.len() > source.module.len() + 1
                };
                let needed = whole.filter(|whole| !(handed_on && own(whole)));
                source.named.extend(needed);
            }
            at = end.max(at + 1);
        }
        (source, tests)
    }

    /// A path as it is written, from the crate's root; `None` when it leads elsewhere.
    fn whole(&self, names: &[String], modules: &BTreeSet<Names>) -> Option<Names> {
        let mut base = self.module.clone();
        let mut rest = names;
        match names[0].as_str() {
            "crate" => base.clear(),
            "self" => (),
            "super" => {
                base.pop();
            }
            child => {
                base.push(child.to_owned());
                if !modules.contains(&base) {
                    return None;
                }
            }
        }
        rest = &rest[1..];
        while rest.first().is_some_and(|name| name == "super") {
            base.pop();
            rest = &rest[1..];
        }
        base.extend(rest.iter().filter(|name| *name != "self").cloned());
        Some(base)
    }
}

/// The module that a file of a crate is.
fn module(path: &str, krate: &str) -> Names {
    let inside = path.strip_prefix(&format!("{krate}/src/")).unwrap();
    let names = inside.trim_end_matches(".rs").split('/').map(str::to_owned);
    let root = |name: &String| *name == "lib" || *name == "main";
    names.filter(|name| !root(name)).collect()
}

/// Which file of a crate needs which.
fn needs(krate: &str) -> BTreeMap<String, BTreeSet<String>> {
    let paths: Vec<String> = rust(&format!("{krate}/src")).collect();
    let modules: BTreeSet<Names> = paths.iter().map(|path| module(path, krate)).collect();
    let (mut sources, mut tests) = (BTreeMap::new(), BTreeSet::new());
    for path in &paths {
        let (source, of_tests) = Source::read(path, krate, &modules);
        tests.extend(
            of_tests
                .into_iter()
                .map(|name| [source.module.clone(), vec![name]].concat()),
        );
        sources.insert(source.module.clone(), source);
    }
    sources.retain(|module, _| !tests.iter().any(|test| module.starts_with(test)));
    // Where a path ends: in the file that holds the item, whichever modules hand its name on.
    let file = |names: &Names| {
        let mut names = names.clone();
        for _ in 0..8 {
            let depth = (0..=names.len())
                .rev()
                .find(|depth| sources.contains_key(&names[..*depth]))?;
            let source = &sources[&names[..depth]];
            match names.get(depth).and_then(|name| source.imported.get(name)) {
                None => return Some(source.path.clone()),
                Some(whole) => names = [whole.clone()?, names[depth + 1..].to_vec()].concat(),
            }
        }
        panic!("{names:?} leads nowhere");
    };
    let needed = |source: &Source| {
        let files = source.named.iter().filter_map(file);
        files.filter(|path| *path != source.path).collect()
    };
    sources
        .values()
        .map(|source| (source.path.clone(), needed(source)))
        .collect()
}

#[test]
fn no_two_files_need_each_other() {
    let crates: BTreeSet<String> = files("")
        .iter()
        .filter_map(|path| path.strip_suffix("/Cargo.toml").map(str::to_owned))
        .filter(|krate| {
            ["lib/", "functions/", "ggen"]
                .iter()
                .any(|of| krate.starts_with(of))
        })
        // A workspace of its own, which has tests only.
        .filter(|krate| krate != "lib/receipts/oracles")
        .collect();
    assert!(crates.len() >= 10, "{crates:?}");
    let mut circles = Vec::new();
    let mut edges = 0;
    for krate in crates {
        let needs = needs(&krate);
        edges += needs.values().map(BTreeSet::len).sum::<usize>();
        for (file, needed) in &needs {
            for other in needed {
                // The shortest way back from there.
                let mut ways = vec![vec![other.clone()]];
                let mut seen = BTreeSet::new();
                while let Some(way) = ways.first().cloned() {
                    ways.remove(0);
                    let last = way.last().unwrap();
                    if last == file {
                        circles.push(format!("{file} → {}", way.join(" → ")));
                        break;
                    }
                    if seen.insert(last.clone()) {
                        ways.extend(
                            needs[last]
                                .iter()
                                .map(|next| [way.clone(), vec![next.clone()]].concat()),
                        );
                    }
                }
            }
        }
    }
    assert!(
        edges > 300,
        "only {edges} files are needed by others: the test looks in the wrong place"
    );
    assert!(circles.is_empty(), "{}", circles.join("\n"));
}
