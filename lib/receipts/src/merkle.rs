//! A tenant's ledger as an RFC 6962 Merkle tree: its root from a handful of hashes, and proofs against it.
//!
//! The leaves are ledger lines as bytes, without their line feed. [`CompactRange`] is what a ledger's head carries, so
//! that the root after an append costs no read. [`verify_inclusion`] and [`verify_consistency`] follow RFC 9162,
//! sections 2.1.3.2 and 2.1.4.2, and accept exactly the proofs that have the one right length.

use std::ops::Range;

use sha2::{Digest as _, Sha256};
use thiserror::Error;

use crate::canonical::is_sha256_hex;

/// A SHA-256: of a leaf, of a node, or a root.
pub type Hash = [u8; 32];

/// The most leaves a [`CompactRange`] is taken up with. No ledger comes near it, and counting on can't overflow.
pub const SIZE_LIMIT: u64 = 1 << 63;

/// Hashes that can't be the compact range of a tree of the size they are said to be of.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum RangeError {
    /// More leaves than a tree may have.
    #[error("the tree is said to have {size} leaves, the most are {SIZE_LIMIT}")]
    Size { size: u64 },
    /// Too many or too few hashes.
    #[error("the compact range of a tree of {size} leaves has {expected} hashes, found {found}")]
    Length {
        size: u64,
        /// One for each bit that is set in `size`.
        expected: usize,
        found: usize,
    },
    /// A text that is not a hash.
    #[error("hash {place} of the compact range is not 64 lower-case hex digits")]
    Digits {
        /// Its place in the range, from 0.
        place: usize,
    },
}

/// A proof that does not prove, or can't be made.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ProofError {
    /// No such leaf.
    #[error("leaf {index} is not in a tree of {size} leaves")]
    Index { index: u64, size: u64 },
    /// Trees that no consistency proof connects: every tree begins with the empty one, so that proves nothing.
    #[error(
        "a consistency proof leads from 1 to {new_size} leaves to {new_size} leaves, not from {old_size}"
    )]
    Sizes { old_size: u64, new_size: u64 },
    /// Too many or too few hashes.
    #[error("the proof must have {expected} hashes, found {found}")]
    Length { expected: usize, found: usize },
    /// The proof leads elsewhere.
    #[error("the root of the tree of {size} leaves is {expected}, the proof leads to {found}")]
    Root {
        size: u64,
        /// Its root in hex.
        expected: String,
        /// Where the proof leads, in hex.
        found: String,
    },
}

/// The hash of a leaf: SHA-256(0x00 ‖ leaf).
pub fn leaf_hash(leaf: impl AsRef<[u8]>) -> Hash {
    Sha256::new()
        .chain_update([0])
        .chain_update(leaf)
        .finalize()
        .into()
}

/// The hash of an inner node: SHA-256(0x01 ‖ left ‖ right).
pub fn node_hash(left: &Hash, right: &Hash) -> Hash {
    Sha256::new()
        .chain_update([1])
        .chain_update(left)
        .chain_update(right)
        .finalize()
        .into()
}

/// The right edge of a growing tree: the roots of the full subtrees it falls into, from the largest on the left to the
/// smallest on the right, one for each bit that is set in its size.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CompactRange {
    size: u64,
    hashes: Vec<Hash>,
}

impl CompactRange {
    /// The range of the empty tree.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes a range up again.
    ///
    /// # Errors
    /// [`RangeError`] when no tree of `size` leaves has that many hashes. Whether they are the right ones only a root
    /// that is known otherwise can tell.
    pub fn from_hashes(size: u64, hashes: Vec<Hash>) -> Result<Self, RangeError> {
        check_length(size, hashes.len())?;
        Ok(Self { size, hashes })
    }

    /// As [`CompactRange::from_hashes`], from lower-case hex.
    ///
    /// # Errors
    /// [`RangeError`], also for a text that is not a hash.
    pub fn from_hex<T: AsRef<str>>(size: u64, hashes: &[T]) -> Result<Self, RangeError> {
        // Before any is decoded: a wrong range may be as long as it likes.
        check_length(size, hashes.len())?;
        let decode = |(place, text): (usize, &T)| {
            let text = text.as_ref();
            let mut hash = Hash::default();
            if !is_sha256_hex(text) || hex::decode_to_slice(text, &mut hash).is_err() {
                return Err(RangeError::Digits { place });
            }
            Ok(hash)
        };
        let hashes = hashes.iter().enumerate().map(decode).collect::<Result<_, _>>()?;
        Ok(Self { size, hashes })
    }

    /// The range of these leaves.
    pub fn of(leaf_hashes: &[Hash]) -> Self {
        let mut range = Self::new();
        for leaf_hash in leaf_hashes {
            range.push(*leaf_hash);
        }
        range
    }

    /// Puts a range together from hashes that are known to be those of a tree of `size` leaves.
    pub(crate) fn from_parts(size: u64, hashes: Vec<Hash>) -> Self {
        debug_assert_eq!(size.count_ones() as usize, hashes.len());
        Self { size, hashes }
    }

    /// Adds the next leaf.
    pub fn push(&mut self, leaf_hash: Hash) {
        // Like a carry in a binary counter: each full subtree that ends here joins with what stands right of it.
        let joined = self.size.trailing_ones() as usize;
        let kept = self.hashes.len().saturating_sub(joined);
        let hash = self
            .hashes
            .drain(kept..)
            .rfold(leaf_hash, |right, left| node_hash(&left, &right));
        self.hashes.push(hash);
        // Exact: taken up below the limit, it would have to be counted up for centuries.
        self.size = self.size.saturating_add(1);
    }

    /// Leaves in the tree.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The hashes, left to right.
    pub fn hashes(&self) -> &[Hash] {
        &self.hashes
    }

    /// The root of the tree; of the empty one, SHA-256 of nothing.
    pub fn root(&self) -> Hash {
        let mut hashes = self.hashes.iter().rev();
        match hashes.next() {
            Some(last) => hashes.fold(*last, |right, left| node_hash(left, &right)),
            None => Sha256::digest([]).into(),
        }
    }
}

fn check_length(size: u64, found: usize) -> Result<(), RangeError> {
    if size > SIZE_LIMIT {
        return Err(RangeError::Size { size });
    }
    let expected = size.count_ones() as usize;
    if expected != found {
        return Err(RangeError::Length {
            size,
            expected,
            found,
        });
    }
    Ok(())
}

/// Checks that the tree of `size` leaves under `root` has `leaf_hash` at place `index`.
///
/// A proof fits every size that gives its leaf the same way up, so `size` and `root` must come from one checkpoint.
///
/// # Errors
/// [`ProofError`] says what does not fit.
pub fn verify_inclusion(
    index: u64,
    size: u64,
    leaf_hash: &Hash,
    proof: &[Hash],
    root: &Hash,
) -> Result<(), ProofError> {
    if index >= size {
        return Err(ProofError::Index { index, size });
    }
    let way = Way {
        node: index,
        last: size - 1,
    };
    check_proof_length(way.length(), proof)?;
    let found = way
        .zip(proof)
        .fold(*leaf_hash, |hash, (side, sibling)| match side {
            Side::Left => node_hash(sibling, &hash),
            Side::Right => node_hash(&hash, sibling),
        });
    check_root(size, root, &found)
}

/// Checks that the tree of `old_size` leaves under `old_root` is what the tree of `new_size` leaves under `new_root`
/// begins with.
///
/// # Errors
/// [`ProofError`] says what does not fit.
pub fn verify_consistency(
    old_size: u64,
    new_size: u64,
    proof: &[Hash],
    old_root: &Hash,
    new_root: &Hash,
) -> Result<(), ProofError> {
    if old_size == 0 || old_size > new_size {
        return Err(ProofError::Sizes { old_size, new_size });
    }
    if old_size == new_size {
        check_proof_length(0, proof)?;
        return check_root(new_size, new_root, old_root);
    }
    // From the largest full subtree that the old tree ends with.
    let level = old_size.trailing_zeros();
    let way = Way {
        node: (old_size - 1) >> level,
        last: (new_size - 1) >> level,
    };
    // Where that is the whole old tree, its root is known and not in the proof.
    let (start, siblings, in_proof) = match proof.split_first() {
        _ if old_size.is_power_of_two() => (old_root, proof, 0),
        Some((start, siblings)) => (start, siblings, 1),
        None => (old_root, proof, 1),
    };
    check_proof_length(in_proof + way.length(), proof)?;
    let (old, new) = way
        .zip(siblings)
        .fold((*start, *start), |(old, new), (side, sibling)| match side {
            Side::Left => (node_hash(sibling, &old), node_hash(sibling, &new)),
            Side::Right => (old, node_hash(&new, sibling)),
        });
    check_root(old_size, old_root, &old)?;
    check_root(new_size, new_root, &new)
}

fn check_proof_length(expected: usize, proof: &[Hash]) -> Result<(), ProofError> {
    let found = proof.len();
    if expected != found {
        return Err(ProofError::Length { expected, found });
    }
    Ok(())
}

fn check_root(size: u64, expected: &Hash, found: &Hash) -> Result<(), ProofError> {
    if expected != found {
        return Err(ProofError::Root {
            size,
            expected: hex::encode(expected),
            found: hex::encode(found),
        });
    }
    Ok(())
}

/// Where a sibling stands.
enum Side {
    Left,
    Right,
}

/// The way from a node up to the root: on which side the next sibling stands, level by level. On the right edge the
/// levels where a node has no sibling are left out.
struct Way {
    /// The node's place on its level.
    node: u64,
    /// The last node's.
    last: u64,
}

impl Way {
    /// Siblings on the way.
    fn length(&self) -> usize {
        // Below where the ways of the two nodes meet, every level has a sibling; above, those on the left do.
        let below = u64::BITS - (self.node ^ self.last).leading_zeros();
        let above = self.node.checked_shr(below).unwrap_or(0).count_ones();
        (below + above) as usize
    }
}

impl Iterator for Way {
    type Item = Side;

    fn next(&mut self) -> Option<Side> {
        if self.last == 0 {
            return None;
        }
        if self.node == self.last {
            let alone = self.node.trailing_zeros();
            self.node >>= alone;
            self.last >>= alone;
        }
        let side = if self.node & 1 == 1 {
            Side::Left
        } else {
            Side::Right
        };
        self.node >>= 1;
        self.last >>= 1;
        Some(side)
    }
}

/// The subtrees whose roots are the proof that leaf `index` is in a tree of `size` leaves, as ranges of leaves: from
/// the leaf's sibling up.
pub(crate) fn inclusion_parts(index: u64, size: u64) -> Result<Vec<Range<u64>>, ProofError> {
    if index >= size {
        return Err(ProofError::Index { index, size });
    }
    let mut tree = 0..size;
    let mut parts = Vec::new();
    while let Some((left, right)) = halves(&tree) {
        let sibling;
        if index < left.end {
            (tree, sibling) = (left, right);
        } else {
            (tree, sibling) = (right, left);
        }
        parts.push(sibling);
    }
    parts.reverse();
    Ok(parts)
}

/// As [`inclusion_parts`], of the proof that a tree of `new_size` leaves begins with one of `old_size`.
pub(crate) fn consistency_parts(old_size: u64, new_size: u64) -> Result<Vec<Range<u64>>, ProofError> {
    if old_size == 0 || old_size > new_size {
        return Err(ProofError::Sizes { old_size, new_size });
    }
    let mut tree = 0..new_size;
    let mut parts = Vec::new();
    while let Some((left, right)) = halves(&tree).filter(|_| old_size < tree.end) {
        let sibling;
        if old_size <= left.end {
            (tree, sibling) = (left, right);
        } else {
            (tree, sibling) = (right, left);
        }
        parts.push(sibling);
    }
    // The whole old tree's root is known to whoever checks the proof.
    if tree.start > 0 {
        parts.push(tree);
    }
    parts.reverse();
    Ok(parts)
}

/// The two subtrees under a tree's root: the left one is the largest full one that is not the whole. `None` for a leaf.
fn halves(tree: &Range<u64>) -> Option<(Range<u64>, Range<u64>)> {
    let level = (tree.end - tree.start).checked_sub(1)?.checked_ilog2()?;
    let middle = tree.start + (1 << level);
    Some((tree.start..middle, middle..tree.end))
}

// The two below hash every leaf: right for tests and small ledgers. Those of large ones are read from tiles.

/// The proof that leaf `index` is in the tree of these leaves, from the leaf's sibling up.
///
/// # Errors
/// [`ProofError::Index`] when it is not.
pub fn inclusion_proof(leaf_hashes: &[Hash], index: u64) -> Result<Vec<Hash>, ProofError> {
    let parts = inclusion_parts(index, leaf_hashes.len() as u64)?;
    Ok(roots(leaf_hashes, &parts))
}

/// The proof that the tree of these leaves begins with the tree of the first `old_size` of them.
///
/// # Errors
/// [`ProofError::Sizes`] when `old_size` is 0, or more than there are.
pub fn consistency_proof(leaf_hashes: &[Hash], old_size: u64) -> Result<Vec<Hash>, ProofError> {
    let parts = consistency_parts(old_size, leaf_hashes.len() as u64)?;
    Ok(roots(leaf_hashes, &parts))
}

fn roots(leaf_hashes: &[Hash], parts: &[Range<u64>]) -> Vec<Hash> {
    // Exact and in bounds: the parts are of the tree of these leaves.
    let leaves = |part: &Range<u64>| leaf_hashes.get(part.start as usize..part.end as usize);
    parts
        .iter()
        .filter_map(leaves)
        .map(|leaves| CompactRange::of(leaves).root())
        .collect()
}
