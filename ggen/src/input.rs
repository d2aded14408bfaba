//! Files and stdin, read no further than a limit.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// An input that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum InputError {
    #[error("cannot read {}", path.display())]
    Read {
        /// The file, or `-`.
        path: PathBuf,
        source: io::Error,
    },
    #[error("{} is larger than {limit} bytes", path.display())]
    TooLarge {
        /// The file, or `-`.
        path: PathBuf,
        /// Most bytes accepted.
        limit: u64,
    },
    #[error("{} is not UTF-8 text", path.display())]
    NotText {
        /// The file, or `-`.
        path: PathBuf,
    },
}

/// Whether a path stands for stdin.
pub fn is_stdin(path: &Path) -> bool {
    path.as_os_str() == "-"
}

/// What to call a path when telling about it.
pub fn name(path: &Path) -> String {
    if is_stdin(path) {
        "stdin".to_owned()
    } else {
        path.display().to_string()
    }
}

/// Reads a file, or stdin for `-`, of at most `limit` bytes.
pub fn bytes(path: &Path, limit: u64) -> Result<Vec<u8>, InputError> {
    let mut bytes = Vec::new();
    let most = limit.saturating_add(1);
    let read = if is_stdin(path) {
        io::stdin().lock().take(most).read_to_end(&mut bytes)
    } else {
        File::open(path).and_then(|file| file.take(most).read_to_end(&mut bytes))
    };
    read.map_err(|source| InputError::Read {
        path: path.to_owned(),
        source,
    })?;
    if bytes.len() as u64 > limit {
        return Err(InputError::TooLarge {
            path: path.to_owned(),
            limit,
        });
    }
    Ok(bytes)
}

/// As [`bytes`], as text.
pub fn text(path: &Path, limit: u64) -> Result<String, InputError> {
    String::from_utf8(bytes(path, limit)?).map_err(|_| InputError::NotText {
        path: path.to_owned(),
    })
}
