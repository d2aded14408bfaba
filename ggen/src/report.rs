//! From a command's outcome to an exit code, with errors told on stderr.

use std::error::Error;
use std::io::{self, Write as _};
use std::process::ExitCode;

use receipts::wording;

use crate::out::Out;

/// What a command found. Errors are apart: they mean that it could not find out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Done, or verified: exit code 0.
    Good,
    /// Looked at and found wanting: exit code 1.
    NotGood,
}

impl Verdict {
    /// [`Good`](Self::Good) if it holds.
    pub fn when(good: bool) -> Self {
        if good { Self::Good } else { Self::NotGood }
    }
}

/// Flushes what was written, tells the error if there is one, and gives the exit code.
pub fn exit_code(outcome: Result<Verdict, Box<dyn Error>>, mut out: Out) -> ExitCode {
    let outcome = outcome.and_then(|verdict| out.flush().map(|()| verdict).map_err(Into::into));
    match outcome {
        Ok(Verdict::Good) => ExitCode::SUCCESS,
        Ok(Verdict::NotGood) => ExitCode::from(1),
        Err(error) => {
            tell(error.as_ref());
            ExitCode::from(2)
        }
    }
}

/// Writes a line for a person on stderr. A closed stderr has nobody to tell about it.
pub fn note(line: &str) {
    let _ = writeln!(io::stderr().lock(), "ggen: {line}");
}

/// What an error says, without the words of the library that found it.
pub fn in_plain_words(error: &(dyn Error + 'static)) -> String {
    match error.downcast_ref::<serde_json::Error>() {
        Some(error) => wording::problem(error),
        None => error.to_string(),
    }
}

fn tell(error: &(dyn Error + 'static)) {
    let mut told = in_plain_words(error);
    note(&told);
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = in_plain_words(error);
        // Some errors already end in their cause's text; saying it twice helps nobody.
        if !told.contains(&text) {
            let _ = writeln!(io::stderr().lock(), "  caused by: {text}");
            told = text;
        }
        cause = error.source();
    }
}
