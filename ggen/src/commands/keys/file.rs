//! New keys, and the files they are written to.

use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

/// Why a key could not be made.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    #[error("the system gives no random bytes: {0}")]
    Random(getrandom::Error),
    #[error("cannot create {}", path.display())]
    Create { path: PathBuf, source: io::Error },
}

/// A new key's bytes.
pub(super) fn random() -> Result<[u8; 32], FileError> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(FileError::Random)?;
    Ok(bytes)
}

/// Writes a file that must not exist yet.
pub(super) fn create(path: &Path, mode: u32, bytes: &[u8]) -> Result<(), FileError> {
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)
        .and_then(|mut file| file.write_all(bytes))
        .map_err(|source| FileError::Create {
            path: path.to_owned(),
            source,
        })
}
