//! A ledger's Merkle tree stored as C2SP tiles (`c2sp.org/tlog-tiles`): files of up to 256 hashes that are written once
//! and never change, of which a proof needs a handful however long the ledger is.
//!
//! A tile of level 0 holds leaf hashes; each hash of a tile of level `l + 1` is the root over one full tile of level
//! `l`. At most one tile a level is partial, the last: together they are the right edge, and all that appending needs.
//!
//! The caller does the I/O, in two steps: [`inclusion_tiles`], [`consistency_tiles`] or [`edge_tiles`] say what to
//! fetch, and [`inclusion_proof_from`], [`consistency_proof_from`], [`range_from`] or [`TileWriter::resume`] make
//! something of it. Bytes from outside are checked for their length only, so hold what comes out against a root that is
//! known: [`verify_inclusion`](crate::merkle::verify_inclusion) for a proof, the head's root for a range.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ops::Range;
use std::{fmt, iter, mem};

use thiserror::Error;

use crate::merkle::{
    CompactRange, Hash, ProofError, RangeError, SIZE_LIMIT, consistency_parts, inclusion_parts,
};

/// Hashes in a full tile.
pub const TILE_WIDTH: u16 = 1 << HEIGHT;

/// Levels of the tree between two levels of tiles.
const HEIGHT: u32 = 8;

/// Levels of tiles that a tree of any size can have.
const LEVELS: usize = 8;

/// The highest level that a path can name. No tree has tiles there.
const LEVEL_LIMIT: u8 = 63;

/// The longest path: level 63, the last index, a width of three digits.
const PATH_BYTES: usize = "tile/63/x018/x446/x744/x073/x709/x551/615.p/255".len();

/// Tiles that can't be, or that are not what was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum TileError {
    /// A text that is not the path of a tile.
    #[error(
        "{found:?} is not the path of a tile: `tile/<level>/<index>`, and `.p/<width>` for a partial one"
    )]
    Path {
        /// The text, cut short.
        found: String,
    },
    /// The bytes are not as many hashes as the tile has.
    #[error("{tile} has {expected} bytes, found {found}")]
    Length {
        tile: Tile,
        /// What its width asks for.
        expected: usize,
        /// The bytes given.
        found: usize,
    },
    /// A tile that is held already, of another width, begins with other hashes.
    #[error("{tile} does not agree with the tile at the same place that is held already")]
    Conflict { tile: Tile },
    /// A tile that is needed is not held.
    #[error("{tile} is needed, and missing")]
    Missing { tile: Tile },
    #[error(transparent)]
    Proof(#[from] ProofError),
    #[error(transparent)]
    Range(#[from] RangeError),
}

/// Which tile: its place in the tree, and how many hashes it has. Shown as its path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tile {
    level: u8,
    index: u64,
    width: u16,
}

impl Tile {
    /// A tile of `width` hashes. `None` for a level above 63, and for a width that is not from 1 to 256.
    pub fn new(level: u8, index: u64, width: u16) -> Option<Self> {
        let fits = level <= LEVEL_LIMIT && (1..=TILE_WIDTH).contains(&width);
        fits.then_some(Self { level, index, width })
    }

    /// The tile at this place in a tree of `size` leaves. `None` where that tree has none.
    ///
    /// A proof in a smaller tree can be made from the tiles of a larger one, which may be all that is still stored.
    pub fn at(level: u8, index: u64, size: u64) -> Option<Self> {
        let hashes = size.unbounded_shr(HEIGHT * u32::from(level));
        let left = hashes.checked_sub(index.checked_mul(u64::from(TILE_WIDTH))?)?;
        Self::new(level, index, left.min(u64::from(TILE_WIDTH)) as u16)
    }

    /// Reads a path strictly: what [`Tile::path`] writes, and nothing else.
    ///
    /// # Errors
    /// [`TileError::Path`].
    pub fn parse(path: &str) -> Result<Self, TileError> {
        Self::read(path)
            .filter(|tile| tile.path() == path)
            .ok_or_else(|| TileError::Path {
                found: path.chars().take(PATH_BYTES).collect(),
            })
    }

    /// Reads a path that may be written in other ways, too.
    fn read(path: &str) -> Option<Self> {
        if path.len() > PATH_BYTES {
            return None;
        }
        let (level, rest) = path.strip_prefix("tile/")?.split_once('/')?;
        let (groups, width) = match rest.split_once(".p/") {
            Some((groups, width)) => (groups, width.parse().ok()?),
            None => (rest, TILE_WIDTH),
        };
        let mut index = 0_u64;
        for group in groups.split('/') {
            let digits: u16 = group.strip_prefix('x').unwrap_or(group).parse().ok()?;
            index = index.checked_mul(1000)?.checked_add(u64::from(digits))?;
        }
        Self::new(level.parse().ok()?, index, width)
    }

    /// Where the tile is stored, below the ledger's own prefix: `tile/0/x001/234`, or `tile/0/x001/234.p/7`.
    pub fn path(&self) -> String {
        self.to_string()
    }

    /// Its level: 0 for the tiles of leaf hashes.
    pub fn level(&self) -> u8 {
        self.level
    }

    /// Its place on its level, from 0.
    pub fn index(&self) -> u64 {
        self.index
    }

    /// Its hashes: from 1 to 256.
    pub fn width(&self) -> u16 {
        self.width
    }

    /// Whether it has all its hashes and so stays when the tree grows.
    pub fn is_full(&self) -> bool {
        self.width == TILE_WIDTH
    }

    /// The length of its file in bytes.
    pub fn len_bytes(&self) -> usize {
        usize::from(self.width) * size_of::<Hash>()
    }
}

impl fmt::Display for Tile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "tile/{}/", self.level)?;
        let groups = 1 + self.index.checked_ilog(1000).unwrap_or(0);
        for left in (0..groups).rev() {
            let group = self.index / 1000_u64.pow(left) % 1000;
            if left > 0 {
                write!(f, "x{group:03}/")?;
            } else {
                write!(f, "{group:03}")?;
            }
        }
        if !self.is_full() {
            write!(f, ".p/{}", self.width)?;
        }
        Ok(())
    }
}

/// A full subtree: of `1 << level` leaves, the `index`-th of its kind.
#[derive(Clone, Copy)]
struct Node {
    level: u32,
    index: u64,
}

impl Node {
    /// The full subtrees that a subtree falls into, left to right.
    fn of(mut part: Range<u64>) -> impl Iterator<Item = Self> {
        iter::from_fn(move || {
            let level = (part.end - part.start).checked_ilog2()?;
            let index = part.start >> level;
            part.start += 1 << level;
            Some(Self { level, index })
        })
    }

    /// The node's first hash among all of its level of tiles.
    fn first(self) -> u64 {
        self.index << (self.level % HEIGHT)
    }

    /// The tile under which the node is, as it is in a tree of `size` leaves that has the node.
    fn tile(self, size: u64) -> Tile {
        let level = self.level / HEIGHT;
        let left = (size >> (HEIGHT * level)) - (self.first() >> HEIGHT << HEIGHT);
        Tile {
            level: level as u8,
            index: self.first() >> HEIGHT,
            width: left.min(u64::from(TILE_WIDTH)) as u16,
        }
    }

    /// Which of that tile's hashes the node is the root of.
    fn places(self) -> Range<usize> {
        let start = (self.first() % u64::from(TILE_WIDTH)) as usize;
        start..start + (1 << (self.level % HEIGHT))
    }
}

/// The tiles a proof that leaf `index` is in a tree of `size` leaves is made from: each once, by level and index.
///
/// # Errors
/// [`ProofError::Index`] when there is no such leaf.
pub fn inclusion_tiles(index: u64, size: u64) -> Result<Vec<Tile>, ProofError> {
    Ok(tiles_of(inclusion_parts(index, size)?, size))
}

/// As [`inclusion_tiles`], of the proof that a tree of `new_size` leaves begins with one of `old_size`.
///
/// # Errors
/// [`ProofError::Sizes`] when `old_size` is 0 or more than `new_size`.
pub fn consistency_tiles(old_size: u64, new_size: u64) -> Result<Vec<Tile>, ProofError> {
    Ok(tiles_of(consistency_parts(old_size, new_size)?, new_size))
}

/// The partial tiles of a tree of `size` leaves, from level 0 up: what its root is computed from and what appending
/// goes on from. None where a level ends in a full tile, so a tree of 256 leaves has the one of level 1 only.
pub fn edge_tiles(size: u64) -> Vec<Tile> {
    tiles_of(iter::once(0..size), size)
}

fn tiles_of(parts: impl IntoIterator<Item = Range<u64>>, size: u64) -> Vec<Tile> {
    let mut tiles: Vec<Tile> = parts
        .into_iter()
        .flat_map(Node::of)
        .map(|node| node.tile(size))
        .collect();
    tiles.sort_unstable();
    tiles.dedup();
    tiles
}

/// Tiles that were fetched.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tiles {
    held: BTreeMap<(u8, u64), Vec<Hash>>,
}

impl Tiles {
    /// None.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a tile's bytes. A wider tile does as well as the one that was asked for; of two at one place, the wider one
    /// stays.
    ///
    /// # Errors
    /// [`TileError::Length`] when the bytes are not those of so many hashes, [`TileError::Conflict`] when they
    /// contradict a tile that is held. The collection is then as it was.
    pub fn insert(&mut self, tile: Tile, bytes: impl AsRef<[u8]>) -> Result<(), TileError> {
        let bytes = bytes.as_ref();
        let (hashes, _) = bytes.as_chunks();
        if bytes.len() != tile.len_bytes() {
            return Err(TileError::Length {
                tile,
                expected: tile.len_bytes(),
                found: bytes.len(),
            });
        }
        match self.held.entry((tile.level, tile.index)) {
            Entry::Vacant(place) => {
                place.insert(hashes.to_vec());
            }
            Entry::Occupied(place) if place.get().starts_with(hashes) => {}
            Entry::Occupied(mut place) if hashes.starts_with(place.get()) => {
                place.insert(hashes.to_vec());
            }
            Entry::Occupied(_) => return Err(TileError::Conflict { tile }),
        }
        Ok(())
    }

    /// Some of a tile's hashes.
    fn hashes(&self, tile: Tile, places: Range<usize>) -> Result<&[Hash], TileError> {
        self.held
            .get(&(tile.level, tile.index))
            .and_then(|hashes| hashes.get(places))
            .ok_or(TileError::Missing { tile })
    }

    /// The root of a subtree of a tree of `size` leaves.
    fn root(&self, part: Range<u64>, size: u64) -> Result<Hash, TileError> {
        let leaves = part.end - part.start;
        let node_root = |node: Node| {
            let hashes = self.hashes(node.tile(size), node.places())?;
            Ok(CompactRange::of(hashes).root())
        };
        let hashes: Result<_, TileError> = Node::of(part).map(node_root).collect();
        Ok(CompactRange::from_parts(leaves, hashes?).root())
    }
}

/// The proof that leaf `index` is in the tree of `size` leaves, from the leaf's sibling up, out of the tiles that
/// [`inclusion_tiles`] names.
///
/// # Errors
/// [`ProofError::Index`] when there is no such leaf, [`TileError::Missing`] when a tile is not held.
pub fn inclusion_proof_from(index: u64, size: u64, tiles: &Tiles) -> Result<Vec<Hash>, TileError> {
    let parts = inclusion_parts(index, size)?;
    parts.into_iter().map(|part| tiles.root(part, size)).collect()
}

/// The proof that the tree of `new_size` leaves begins with the tree of `old_size`, out of the tiles that
/// [`consistency_tiles`] names.
///
/// # Errors
/// [`ProofError::Sizes`] when `old_size` is 0 or more than `new_size`, [`TileError::Missing`] when a tile is not held.
pub fn consistency_proof_from(old_size: u64, new_size: u64, tiles: &Tiles) -> Result<Vec<Hash>, TileError> {
    let parts = consistency_parts(old_size, new_size)?;
    parts.into_iter().map(|part| tiles.root(part, new_size)).collect()
}

/// The compact range of the tree of `size` leaves, out of the tiles that [`edge_tiles`] names.
///
/// # Errors
/// [`RangeError::Size`] above [`SIZE_LIMIT`], [`TileError::Missing`] when a tile is not held.
pub fn range_from(size: u64, tiles: &Tiles) -> Result<CompactRange, TileError> {
    Ok(TileWriter::resume(size, tiles)?.range())
}

/// The root of the tree of `size` leaves, out of the tiles that [`edge_tiles`] names.
///
/// # Errors
/// As [`range_from`].
pub fn root_from(size: u64, tiles: &Tiles) -> Result<Hash, TileError> {
    Ok(range_from(size, tiles)?.root())
}

/// Turns leaf hashes into tiles, one after another. It holds one open tile a level, 64 KiB at most.
#[derive(Debug, Clone, Default)]
pub struct TileWriter {
    size: u64,
    open: [Open; LEVELS],
}

/// The last tile of a level while it is not full.
#[derive(Debug, Clone, Default)]
struct Open {
    hashes: Vec<Hash>,
    /// Over those hashes. As each level counts eight bits of the tree's size, the ranges of all levels from the highest
    /// down are the tree's own.
    range: CompactRange,
}

impl Open {
    fn push(&mut self, hash: Hash) {
        self.hashes.push(hash);
        self.range.push(hash);
    }
}

impl TileWriter {
    /// Begins a tree.
    pub fn new() -> Self {
        Self::default()
    }

    /// Goes on from a tree of `size` leaves, given the tiles that [`edge_tiles`] names.
    ///
    /// # Errors
    /// [`RangeError::Size`] above [`SIZE_LIMIT`], [`TileError::Missing`] when a tile is not held. Whether the tiles are
    /// the tree's shows when [`TileWriter::root`] is compared with its root.
    pub fn resume(size: u64, tiles: &Tiles) -> Result<Self, TileError> {
        if size > SIZE_LIMIT {
            return Err(RangeError::Size { size }.into());
        }
        let mut writer = Self {
            size,
            ..Self::default()
        };
        for tile in edge_tiles(size) {
            let hashes = tiles.hashes(tile, 0..usize::from(tile.width))?;
            if let Some(open) = writer.open.get_mut(usize::from(tile.level)) {
                hashes.iter().for_each(|hash| open.push(*hash));
            }
        }
        Ok(writer)
    }

    /// Adds the next leaf. Gives back the tiles that it made full, from level 0 up, with their bytes: mostly none,
    /// after each 256th leaf one, after each 65,536th two.
    #[must_use = "a full tile is given back once"]
    pub fn push(&mut self, leaf_hash: Hash) -> Vec<(Tile, Vec<u8>)> {
        let mut full = Vec::new();
        let mut hash = leaf_hash;
        for (level, open) in (0..).zip(&mut self.open) {
            open.push(hash);
            if open.hashes.len() < usize::from(TILE_WIDTH) {
                break;
            }
            let Open { hashes, range } = mem::take(open);
            hash = range.root();
            let tile = Tile {
                level,
                index: self.size.unbounded_shr(HEIGHT * (u32::from(level) + 1)),
                width: TILE_WIDTH,
            };
            full.push((tile, hashes.concat()));
        }
        // Exact: taken up below the limit, it would have to be counted up for centuries.
        self.size = self.size.saturating_add(1);
        full
    }

    /// Leaves in the tree.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The compact range of the tree.
    pub fn range(&self) -> CompactRange {
        let hashes = self.open.iter().rev().flat_map(|open| open.range.hashes());
        CompactRange::from_parts(self.size, hashes.copied().collect())
    }

    /// The root of the tree: compare it with the head's before anything is stored for good.
    pub fn root(&self) -> Hash {
        self.range().root()
    }

    /// The partial tiles of the right edge with their bytes, from level 0 up: those that [`edge_tiles`] names.
    pub fn finish(self) -> Vec<(Tile, Vec<u8>)> {
        let (size, tile_levels) = (self.size, 0_u8..);
        tile_levels
            .zip(self.open)
            .filter(|(_, open)| !open.hashes.is_empty())
            .map(|(level, open)| {
                let tile = Tile {
                    level,
                    index: size.unbounded_shr(HEIGHT * (u32::from(level) + 1)),
                    width: open.hashes.len() as u16,
                };
                (tile, open.hashes.concat())
            })
            .collect()
    }
}
