//! The members of an archive, unpacked one after the other within limits.

use std::io::{self, BufRead, BufReader, Chain, Read, Take};

use flate2::bufread::GzDecoder;
use sha2::{Digest as _, Sha256};

use super::error::{ArchiveError, stray};
use super::{BLOCK, GZIP_HEADER, Tally, ZEROS, header, padding};

/// How much an archive may ask of its reader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of the file.
    pub archive_bytes: u64,
    /// Bytes of all members together, unpacked.
    pub unpacked_bytes: u64,
    /// Bytes of one member that is read whole: key, policy, manifest, sums, text.
    pub document_bytes: u64,
    /// Bytes of one receipt.
    pub line_bytes: u64,
    pub members: u64,
    /// Threads that check receipts beside the one that unpacks; 0 leaves all to that one.
    pub threads: usize,
}

impl Default for Limits {
    /// Room for some ten million receipts; 16 MiB is the most that is held of any one member.
    fn default() -> Self {
        Self {
            archive_bytes: 8 << 30,
            unpacked_bytes: 32 << 30,
            document_bytes: 16 << 20,
            line_bytes: 64 << 10,
            members: 100_000,
            threads: 0,
        }
    }
}

/// Whether what begins with `start` is a tar: its format is named at byte 257.
fn is_tar(start: &[u8], mut rest: impl Read) -> bool {
    const MAGIC: &[u8] = b"ustar";
    let mut block = [0; BLOCK];
    let (before, after) = block.split_at_mut(start.len());
    before.copy_from_slice(start);
    rest.read_exact(after).is_ok() && block.get(257..).is_some_and(|magic| magic.starts_with(MAGIC))
}

/// A member's header, read and found in order.
pub(super) struct Member {
    pub(super) name: String,
    size: u64,
}

/// The file, counted and hashed, with the header that was already read put back in front.
type Compressed<R> = Chain<io::Cursor<[u8; 10]>, BufReader<Tally<Take<R>>>>;

/// The members of an archive, one after the other.
pub(super) struct Members<R: Read> {
    stream: BufReader<GzDecoder<Compressed<R>>>,
    limits: Limits,
    members: u64,
    unpacked: u64,
}

impl<R: Read> Members<R> {
    pub(super) fn open(reader: R, limits: Limits) -> Result<Self, ArchiveError> {
        // One byte more than the limit, so that reaching it shows.
        let mut file = BufReader::new(Tally::new(reader.take(limits.archive_bytes.saturating_add(1))));
        let mut found = [0; GZIP_HEADER.len()];
        file.read_exact(&mut found).map_err(|source| ArchiveError::Read {
            member: "the gzip header".to_owned(),
            source,
        })?;
        if found != GZIP_HEADER {
            if is_tar(&found, &mut file) {
                return Err(ArchiveError::Unpacked);
            }
            return Err(ArchiveError::Gzip {
                expected: hex::encode(GZIP_HEADER),
                found: hex::encode(found),
            });
        }
        // The decoder reads the header too.
        let stream = BufReader::new(GzDecoder::new(io::Cursor::new(found).chain(file)));
        Ok(Self {
            stream,
            limits,
            members: 0,
            unpacked: 0,
        })
    }

    /// The next header. `expected` is for the error when there is none.
    pub(super) fn next(&mut self, expected: &str) -> Result<Member, ArchiveError> {
        let mut block = [0; BLOCK];
        self.fill(&mut block, expected)?;
        let unexpected = |found: &str| ArchiveError::UnexpectedMember {
            expected: expected.to_owned(),
            found: found.to_owned(),
        };
        if block == [0; BLOCK] {
            return Err(unexpected("the end of the archive"));
        }
        self.members += 1;
        let found = tar::Header::from_byte_slice(&block);
        let name = String::from_utf8_lossy(&found.path_bytes()).into_owned();
        if !found.entry_type().is_file() {
            let found = char::from(found.entry_type().as_byte());
            return Err(ArchiveError::NotAFile { member: name, found });
        }
        let size = found.entry_size().map_err(|source| ArchiveError::Read {
            member: name.clone(),
            source,
        })?;
        // A name that leaves the folder has no header either.
        let expected_block = header(&name, size).map_err(|_| unexpected(&name))?;
        let bytes = expected_block.as_bytes().iter().zip(&block).enumerate();
        for (at, (&expected, &found)) in bytes {
            if expected != found {
                return Err(ArchiveError::Header {
                    member: name,
                    at,
                    expected,
                    found,
                });
            }
        }
        let Limits {
            members,
            unpacked_bytes,
            ..
        } = self.limits;
        self.within(&name, "number of members", self.members, members)?;
        self.within(
            &name,
            "bytes unpacked",
            self.unpacked.saturating_add(size),
            unpacked_bytes,
        )?;
        Ok(Member { name, size })
    }

    /// The bytes of a member that is read whole, if it is the one called `expected`.
    pub(super) fn document(&mut self, member: &Member, expected: &str) -> Result<Vec<u8>, ArchiveError> {
        if member.name != expected {
            let (expected, found) = (expected.to_owned(), member.name.clone());
            return Err(ArchiveError::UnexpectedMember { expected, found });
        }
        self.within(&member.name, "bytes", member.size, self.limits.document_bytes)?;
        let mut bytes = Vec::new();
        // Grows with what is there, not with what the header promises.
        let read = (&mut self.stream).take(member.size).read_to_end(&mut bytes);
        let read = read.map_err(|source| self.broken(&member.name, source))?;
        if (read as u64) < member.size {
            return Err(self.broken(&member.name, io::ErrorKind::UnexpectedEof.into()));
        }
        self.unpacked += member.size;
        self.end(member)?;
        Ok(bytes)
    }

    /// Gives the lines of a member to `each`, without their line feeds; returns the member's SHA-256.
    pub(super) fn lines(
        &mut self,
        member: &Member,
        mut each: impl FnMut(&str) -> Result<(), ArchiveError>,
    ) -> Result<String, ArchiveError> {
        let mut sha256 = Sha256::new();
        let mut line = Vec::new();
        let mut left = member.size;
        while left > 0 {
            line.clear();
            let most = left.min(self.limits.line_bytes.saturating_add(1));
            let read = (&mut self.stream).take(most).read_until(b'\n', &mut line);
            let read = read.map_err(|source| self.broken(&member.name, source))? as u64;
            sha256.update(&line);
            let Some(text) = line.strip_suffix(b"\n") else {
                self.within(&member.name, "bytes in a line", read, self.limits.line_bytes)?;
                if read < most {
                    return Err(self.broken(&member.name, io::ErrorKind::UnexpectedEof.into()));
                }
                return Err(stray(&member.name, "a line feed at its end"));
            };
            left -= read;
            self.unpacked += read;
            each(str::from_utf8(text).map_err(|_| stray(&member.name, "UTF-8"))?)?;
        }
        self.end(member)?;
        Ok(hex::encode(sha256.finalize()))
    }

    /// Reads what must stand behind the last member: two empty blocks, and nothing.
    pub(super) fn finish(mut self) -> Result<(u64, String), ArchiveError> {
        const END: &str = "the end of the archive";
        let mut blocks = [0; 2 * BLOCK];
        self.fill(&mut blocks, END)?;
        if blocks != ZEROS {
            return Err(stray(END, "two empty blocks"));
        }
        // Asking for one more byte is also what makes the decoder check its checksum.
        let behind = self
            .stream
            .read(&mut [0])
            .map_err(|source| self.broken(END, source))?;
        if behind != 0 {
            return Err(stray(END, "nothing behind the tar"));
        }
        let (_, mut file) = self.stream.into_inner().into_inner().into_inner();
        let rest = file.fill_buf().map_err(|source| ArchiveError::Read {
            member: END.to_owned(),
            source,
        })?;
        if !rest.is_empty() {
            return Err(stray(END, "nothing behind the gzip stream"));
        }
        let file = file.into_inner();
        let limit = self.limits.archive_bytes;
        if file.bytes > limit {
            return Err(ArchiveError::TooLarge {
                member: "the archive".to_owned(),
                what: "bytes",
                limit,
            });
        }
        Ok((file.bytes, file.sha256()))
    }

    fn end(&mut self, member: &Member) -> Result<(), ArchiveError> {
        let mut block = [0; BLOCK];
        let padding = block.get_mut(..padding(member.size)).unwrap_or_default();
        self.fill(padding, &member.name)?;
        if padding.iter().any(|&byte| byte != 0) {
            return Err(stray(&member.name, "zeros up to the next block"));
        }
        Ok(())
    }

    fn fill(&mut self, buffer: &mut [u8], member: &str) -> Result<(), ArchiveError> {
        self.unpacked += buffer.len() as u64;
        self.stream
            .read_exact(buffer)
            .map_err(|source| self.broken(member, source))
    }

    /// A read that failed; because of the limit, where that is why.
    fn broken(&self, member: &str, source: io::Error) -> ArchiveError {
        let (_, file) = self.stream.get_ref().get_ref().get_ref();
        let limit = self.limits.archive_bytes;
        match self.within("the archive", "bytes", file.get_ref().bytes, limit) {
            Err(too_large) => too_large,
            Ok(()) => ArchiveError::Read {
                member: member.to_owned(),
                source,
            },
        }
    }

    fn within(&self, member: &str, what: &'static str, found: u64, limit: u64) -> Result<(), ArchiveError> {
        if found <= limit {
            return Ok(());
        }
        Err(ArchiveError::TooLarge {
            member: member.to_owned(),
            what,
            limit,
        })
    }
}
