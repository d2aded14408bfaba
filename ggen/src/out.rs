//! Where answers go: stdout, for people or for programs.

use std::fmt::Display;
use std::io::{self, BufWriter, Write};

use clap::ValueEnum;
use serde::Serialize;

/// How an answer is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Text for people
    Human,
    /// One JSON value
    Json,
    /// One JSON value a line
    Jsonl,
    /// A table, of what has rows: exported receipts
    Csv,
}

/// Stdout that does not mind a reader who has seen enough (`ggen … | head -1`): what follows is dropped, and the exit
/// code still tells the verdict.
pub struct Out {
    format: Option<Format>,
    stdout: BufWriter<io::Stdout>,
    closed: bool,
}

impl Out {
    /// Answers in this format, or in the one each command prefers.
    pub fn new(format: Option<Format>) -> Self {
        Self {
            format,
            stdout: BufWriter::new(io::stdout()),
            closed: false,
        }
    }

    /// The format asked for.
    pub fn format(&self) -> Option<Format> {
        self.format
    }

    /// Whether a program reads the answer, as JSON.
    pub fn for_programs(&self) -> bool {
        matches!(self.format, Some(Format::Json | Format::Jsonl))
    }

    /// Whether the reader has seen enough.
    pub fn closed(&self) -> bool {
        self.closed
    }

    /// Writes an answer as its `Display` text for people, or as one line of JSON.
    pub fn show<T: Display + Serialize>(&mut self, answer: &T) -> io::Result<()> {
        if self.for_programs() {
            self.line(answer)
        } else {
            writeln!(self, "{answer}")
        }
    }

    /// Writes a list whole, or its items on a line each where that is the format.
    pub fn list<T: Display + Serialize>(&mut self, list: &T, items: &[impl Serialize]) -> io::Result<()> {
        match self.format {
            Some(Format::Jsonl) => items.iter().try_for_each(|item| self.line(item)),
            _ => self.show(list),
        }
    }

    fn line(&mut self, value: &impl Serialize) -> io::Result<()> {
        serde_json::to_writer(&mut *self, value)?;
        self.write_all(b"\n")
    }

    fn forgive<T>(&mut self, result: io::Result<T>, instead: T) -> io::Result<T> {
        match result {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                self.closed = true;
                Ok(instead)
            }
            result => result,
        }
    }
}

impl Write for Out {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.closed {
            return Ok(bytes.len());
        }
        let written = self.stdout.write(bytes);
        self.forgive(written, bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.closed {
            return Ok(());
        }
        let flushed = self.stdout.flush();
        self.forgive(flushed, ())
    }
}
