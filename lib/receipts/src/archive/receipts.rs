//! Reading `receipts/`: lines are checked by themselves on several threads, and put in their places in order.

use std::collections::VecDeque;
use std::io::Read;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use super::error::ArchiveError;
use super::members::{Member, Members};
use super::{CHUNK_LINES, Checkpoints, Chunk, Contents, MANIFEST};
use crate::key::KeyRing;
use crate::verify::{Chain, Checked, LineError, check_lines};

/// Receipts whose signatures are checked as one batch: half a member. A batch of 256 takes longer for each of them, one
/// of a thousand little less, and more memory.
const BATCH_LINES: usize = 500;
/// Bytes of receipts in a batch, but for the last one: what bounds the memory of those on their way.
const BATCH_BYTES: usize = 512 << 10;

/// What the receipts are held against, and what is gathered from them, in order.
pub(super) struct Ledger {
    pub(super) chain: Chain,
    pub(super) checkpoints: Checkpoints,
    pub(super) contents: Contents,
}

impl Ledger {
    fn take(&mut self, batch: Batch) -> Result<(), ArchiveError> {
        let Batch {
            member,
            lines,
            good,
            wrong,
        } = batch;
        let bad = |source| ArchiveError::Receipt {
            member: member.clone(),
            source,
        };
        for (line, checked) in lines.iter().zip(good) {
            let receipt = self.chain.place(checked).map_err(bad)?;
            self.contents.add(line, &receipt);
            self.checkpoints
                .pass(self.chain.head().size, || self.chain.root())
                .map_err(|source| ArchiveError::Checkpoints { source })?;
        }
        match wrong {
            Some(source) => Err(bad(self.chain.wrong_line(source))),
            None => Ok(()),
        }
    }
}

/// Reads all of `receipts/`; returns the member behind it.
pub(super) fn receipts<R: Read>(
    members: &mut Members<R>,
    ledger: &mut Ledger,
    mut pipeline: Pipeline<'_>,
) -> Result<Member, ArchiveError> {
    let read = read_receipts(members, ledger, &mut pipeline);
    // What is still on its way stands before the place where reading failed.
    pipeline.finish(ledger)?;
    read
}

fn read_receipts<R: Read>(
    members: &mut Members<R>,
    ledger: &mut Ledger,
    pipeline: &mut Pipeline<'_>,
) -> Result<Member, ArchiveError> {
    let mut member = members.next(&ledger.contents.next_chunk())?;
    while member.name == ledger.contents.next_chunk() {
        if let Some(last) = ledger
            .contents
            .chunks
            .last()
            .filter(|last| last.lines != CHUNK_LINES)
        {
            return Err(ArchiveError::ChunkLines {
                member: last.name.clone(),
                found: last.lines,
            });
        }
        let mut lines = 0;
        let sha256 = members.lines(&member, |line| {
            lines += 1;
            pipeline.push(&member.name, line, ledger)
        })?;
        pipeline.flush(&member.name, ledger)?;
        if !(1..=CHUNK_LINES).contains(&lines) {
            return Err(ArchiveError::ChunkLines {
                member: member.name,
                found: lines,
            });
        }
        ledger.contents.add_sum(&member.name, &sha256);
        ledger.contents.chunks.push(Chunk {
            name: member.name,
            lines,
            sha256,
        });
        member = members.next(MANIFEST)?;
    }
    Ok(member)
}

/// Some lines of one member, checked by themselves.
struct Batch {
    member: String,
    lines: Vec<String>,
    /// For each of the lines, up to a bad one.
    good: Vec<Checked>,
    /// What is wrong with the line behind the good ones.
    wrong: Option<LineError>,
}

/// Lines on their way to be checked, and where the result goes.
struct Job {
    member: String,
    lines: Vec<String>,
    done: SyncSender<Batch>,
}

impl Job {
    fn check(member: String, lines: Vec<String>, keys: &KeyRing) -> Batch {
        let texts: Vec<_> = lines.iter().map(String::as_str).collect();
        let (good, wrong) = check_lines(&texts, keys);
        Batch {
            member,
            lines,
            good,
            wrong,
        }
    }
}

/// Receipts are checked by themselves on other threads, and put in their places in order here.
pub(super) struct Pipeline<'k> {
    keys: &'k KeyRing,
    lines: Vec<String>,
    bytes: usize,
    jobs: Option<Sender<Job>>,
    pending: VecDeque<Receiver<Batch>>,
    /// Batches that may be on their way.
    most: usize,
}

impl<'k> Pipeline<'k> {
    pub(super) fn start<'s>(scope: &'s thread::Scope<'s, 'k>, keys: &'k KeyRing, threads: usize) -> Self
    where
        'k: 's,
    {
        let mut pipeline = Self {
            keys,
            lines: Vec::new(),
            bytes: 0,
            jobs: None,
            pending: VecDeque::new(),
            most: threads.saturating_mul(2),
        };
        if threads > 0 {
            let (jobs, taken) = channel::<Job>();
            let taken = Arc::new(Mutex::new(taken));
            for _ in 0..threads {
                let taken = taken.clone();
                scope.spawn(move || {
                    loop {
                        let job = taken.lock().unwrap_or_else(PoisonError::into_inner).recv();
                        let Ok(Job { member, lines, done }) = job else {
                            return;
                        };
                        // Nobody waits any more where something before was wrong.
                        drop(done.send(Job::check(member, lines, keys)));
                    }
                });
            }
            pipeline.jobs = Some(jobs);
        }
        pipeline
    }

    fn push(&mut self, member: &str, line: &str, ledger: &mut Ledger) -> Result<(), ArchiveError> {
        self.bytes += line.len();
        self.lines.push(line.to_owned());
        if self.lines.len() >= BATCH_LINES || self.bytes >= BATCH_BYTES {
            return self.flush(member, ledger);
        }
        Ok(())
    }

    /// Sends what was gathered, and takes what is due.
    fn flush(&mut self, member: &str, ledger: &mut Ledger) -> Result<(), ArchiveError> {
        let lines = std::mem::take(&mut self.lines);
        self.bytes = 0;
        if lines.is_empty() {
            return Ok(());
        }
        let member = member.to_owned();
        let Some(jobs) = &self.jobs else {
            return ledger.take(Job::check(member, lines, self.keys));
        };
        let (done, batch) = sync_channel(1);
        let job = Job { member, lines, done };
        if let Err(unsent) = jobs.send(job) {
            // No thread is left to take it.
            let Job { member, lines, .. } = unsent.0;
            return ledger.take(Job::check(member, lines, self.keys));
        }
        self.pending.push_back(batch);
        if self.pending.len() > self.most {
            self.take_next(ledger)?;
        }
        Ok(())
    }

    fn take_next(&mut self, ledger: &mut Ledger) -> Result<(), ArchiveError> {
        let taken = match self.pending.pop_front().map(|batch| batch.recv()) {
            Some(Ok(batch)) => ledger.take(batch),
            Some(Err(_)) => Err(ArchiveError::Thread),
            None => Ok(()),
        };
        if taken.is_err() {
            // What is behind the first bad receipt has no place.
            self.pending.clear();
        }
        taken
    }

    fn finish(mut self, ledger: &mut Ledger) -> Result<(), ArchiveError> {
        while !self.pending.is_empty() {
            self.take_next(ledger)?;
        }
        Ok(())
    }
}
