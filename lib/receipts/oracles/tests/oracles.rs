//! Trees, tiles, proofs and notes of this crate and of others' are the same, and each side reads what the other wrote.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ct_merkle::mem_backed_tree::MemoryBackedTree;
use receipts::merkle::{Hash, inclusion_proof, leaf_hash, verify_inclusion};
use receipts::tile::{
    consistency_proof_from, consistency_tiles, edge_tiles, inclusion_proof_from, inclusion_tiles, root_from,
};
use receipts::{Checkpoint, CompactRange, InclusionProof, PublicKey, Signer, Tile, TileWriter, Tiles};
use sha2::Sha256;
use signed_note::{Note, StandardSigner, StandardVerifier, VerifierList};
use tlog_tiles::{HashReader, TileHashReader, TileReader};

/// More than 65,536, so that there are tiles on three levels.
const LEAVES: u64 = 70_000;

/// Where tiles begin, are full, and begin again.
const EDGES: [u64; 14] = [
    1, 2, 3, 255, 256, 257, 511, 512, 513, 65_280, 65_535, 65_536, 65_537, LEAVES,
];

/// Each is of its place, in eight bytes.
static HASHES: LazyLock<Vec<Hash>> =
    LazyLock::new(|| (0..LEAVES).map(|place| leaf_hash(place.to_be_bytes())).collect());

fn leaves(size: u64) -> &'static [Hash] {
    &HASHES[..size as usize]
}

fn root(size: u64) -> Hash {
    CompactRange::of(leaves(size)).root()
}

/// What a writer gives back, which must be each tile once.
#[track_caller]
fn write(writer: &mut TileWriter, leaves: &[Hash]) -> BTreeMap<Tile, Vec<u8>> {
    let mut written = BTreeMap::new();
    for leaf in leaves {
        for (tile, bytes) in writer.push(*leaf) {
            assert_eq!(written.insert(tile, bytes), None, "{tile}");
        }
    }
    written
}

/// A tree's tiles, as a [`TileWriter`] writes them, for both sides to read.
struct Written(BTreeMap<Tile, Vec<u8>>);

impl Written {
    #[track_caller]
    fn new(size: u64) -> Self {
        let mut writer = TileWriter::new();
        let mut written = write(&mut writer, leaves(size));
        written.extend(writer.finish());
        Self(written)
    }

    fn fetch(&self, wanted: impl IntoIterator<Item = Tile>) -> Tiles {
        let mut tiles = Tiles::new();
        for tile in wanted {
            tiles.insert(tile, &*self.0[&tile]).unwrap();
        }
        tiles
    }
}

impl TileReader for Written {
    fn height(&self) -> u8 {
        8
    }

    fn read_tiles(&self, tiles: &[tlog_tiles::Tile]) -> Result<Vec<Vec<u8>>, tlog_tiles::Error> {
        Ok(tiles.iter().map(|tile| self.0[&ours(tile)].clone()).collect())
    }

    fn save_tiles(&self, _: &[tlog_tiles::Tile], _: &[Vec<u8>]) {}
}

// tlog_tiles: its paths name the height, 8, in front of the level.

fn theirs(tile: Tile) -> tlog_tiles::Tile {
    let width = u32::from(tile.width());
    tlog_tiles::Tile::new(8, tile.level(), tile.index(), width, false)
}

fn ours(theirs: &tlog_tiles::Tile) -> Tile {
    let width = u16::try_from(theirs.width()).unwrap();
    Tile::new(theirs.level(), theirs.level_index(), width).unwrap()
}

fn plain(hashes: Vec<tlog_tiles::Hash>) -> Vec<Hash> {
    hashes.into_iter().map(|hash| hash.0).collect()
}

#[test]
fn the_other_implementation_names_the_same_tiles() {
    for old in [0, 1, 300, 65_000, 69_999] {
        let edge = edge_tiles(old);
        let stored = Written::new(old).fetch(edge.iter().copied());
        for new in EDGES.into_iter().filter(|new| old <= *new) {
            let mut writer = TileWriter::resume(old, &stored).unwrap();
            let mut written = write(&mut writer, &leaves(new)[old as usize..]);
            written.extend(writer.finish());
            // It leaves out the partial tiles that have not changed.
            written.retain(|tile, _| !edge.contains(tile));
            let mut expected = tlog_tiles::Tile::new_tiles(8, old, new);
            expected.sort_by_key(ours);
            assert!(written.keys().copied().map(theirs).eq(expected), "{old} to {new}");
        }
    }
    let tiles = (0..3).flat_map(|level| (0..).map_while(move |index| Tile::at(level, index, LEAVES)));
    let mut compared = 0;
    for tile in tiles {
        let path = theirs(tile).path();
        assert_eq!(path.strip_prefix("tile/8/"), tile.path().strip_prefix("tile/"));
        assert_eq!(ours(&tlog_tiles::Tile::from_path(&path).unwrap()), tile);
        compared += 1;
    }
    assert_eq!(compared, 274 + 2 + 1);
}

#[test]
fn the_other_implementation_reads_our_tiles() {
    for size in EDGES {
        let written = Written::new(size);
        let all = written.fetch(written.0.keys().copied());
        let whole = tlog_tiles::Hash(root(size));
        // It checks each tile against the root.
        let reader = TileHashReader::new(size, whole, &written);
        for index in EDGES.iter().map(|edge| edge - 1).filter(|index| *index < size) {
            let proof = tlog_tiles::prove_record(size, index, &reader).unwrap();
            let leaf = tlog_tiles::Hash(leaves(size)[index as usize]);
            tlog_tiles::check_record(&proof, size, whole, index, leaf).unwrap();
            assert_eq!(inclusion_proof_from(index, size, &all).unwrap(), plain(proof));
        }
        for old in EDGES.into_iter().filter(|old| *old <= size) {
            let proof = tlog_tiles::prove_tree(size, old, &reader).unwrap();
            tlog_tiles::check_tree(&proof, size, whole, old, tlog_tiles::Hash(root(old))).unwrap();
            assert_eq!(consistency_proof_from(old, size, &all).unwrap(), plain(proof));
        }
    }
}

/// The other implementation's own store of hashes.
struct Stored(Vec<tlog_tiles::Hash>);

impl HashReader for Stored {
    fn read_hashes(&self, indexes: &[u64]) -> Result<Vec<tlog_tiles::Hash>, tlog_tiles::Error> {
        Ok(indexes.iter().map(|index| self.0[*index as usize]).collect())
    }
}

#[test]
fn the_other_implementations_tiles_are_read() {
    let mut stored = Stored(Vec::new());
    for place in 0..LEAVES {
        let hashes = tlog_tiles::stored_hashes(place, &place.to_be_bytes(), &stored).unwrap();
        stored.0.extend(hashes);
    }
    for size in EDGES {
        let root = tlog_tiles::tree_hash(size, &stored).unwrap().0;
        let fetch = |wanted: Vec<Tile>| {
            let mut tiles = Tiles::new();
            for tile in wanted {
                let bytes = theirs(tile).read_data(&stored).unwrap();
                tiles.insert(tile, bytes).unwrap();
            }
            tiles
        };
        assert_eq!(root_from(size, &fetch(edge_tiles(size))), Ok(root));
        let index = size / 2;
        let leaf = leaf_hash(index.to_be_bytes());
        let tiles = fetch(inclusion_tiles(index, size).unwrap());
        let proof = inclusion_proof_from(index, size, &tiles).unwrap();
        verify_inclusion(index, size, &leaf, &proof, &root).unwrap();
    }
}

#[test]
fn a_third_implementation_makes_the_same_proofs() {
    let mut tree = MemoryBackedTree::<Sha256, [u8; 8]>::new();
    for size in 1..=LEAVES {
        tree.push((size - 1).to_be_bytes());
        if !EDGES.contains(&size) {
            continue;
        }
        assert_eq!(tree.root().as_bytes()[..], root(size));
        let written = Written::new(size);
        for index in [0, size / 3, size / 2, size - 1] {
            let tiles = written.fetch(inclusion_tiles(index, size).unwrap());
            let proof = inclusion_proof_from(index, size, &tiles).unwrap().concat();
            assert_eq!(tree.prove_inclusion(index as usize).as_bytes(), proof);
            let proof = ct_merkle::InclusionProof::try_from_bytes(proof).unwrap();
            tree.root()
                .verify_inclusion(&index.to_be_bytes(), index, &proof)
                .unwrap();
        }
        for old in [1, size / 3, size / 2, size - 1]
            .into_iter()
            .filter(|old| *old > 0 && *old < size)
        {
            let tiles = written.fetch(consistency_tiles(old, size).unwrap());
            let proof = consistency_proof_from(old, size, &tiles).unwrap().concat();
            assert_eq!(tree.prove_consistency((size - old) as usize).as_bytes(), proof);
            let proof = ct_merkle::ConsistencyProof::try_from_bytes(proof).unwrap();
            let old_root = ct_merkle::RootHash::new(root(old).into(), old);
            tree.root().verify_consistency(&old_root, &proof).unwrap();
        }
    }
}

// Signed notes.

const ORIGIN: &str = "governor.example/receipts/a-1";
const LINES: u64 = 21;

fn signer() -> Signer {
    Signer::generate([42; 32])
}

fn line_hashes() -> Vec<Hash> {
    (0..LINES)
        .map(|place| leaf_hash(format!("line {place}")))
        .collect()
}

fn checkpoint() -> Checkpoint {
    Checkpoint {
        origin: ORIGIN.to_owned(),
        size: LINES,
        root: CompactRange::of(&line_hashes()).root(),
    }
}

fn note() -> String {
    checkpoint().sign(&signer()).unwrap()
}

fn hashes_of_line_3() -> Vec<Hash> {
    inclusion_proof(&line_hashes(), 3).unwrap()
}

/// The last 32 bytes of a key as it stands in its PEM file, after the byte that says Ed25519 in signed-note.
fn typed(pem: &str) -> Vec<u8> {
    let der = STANDARD.decode(pem.lines().nth(1).unwrap()).unwrap();
    [&[1], der.last_chunk::<32>().unwrap().as_slice()].concat()
}

/// The key's hash and the key as signed-note writes them.
fn named(key: &PublicKey) -> (String, Vec<u8>) {
    let key = typed(&key.to_pem().unwrap());
    (format!("{ORIGIN}+{:08x}", signed_note::key_id(ORIGIN, &key)), key)
}

/// The key as signed-note writes it: `<name>+<key hash>+<type and key>`.
fn verifier(signer: &Signer) -> VerifierList {
    let (name, key) = named(&signer.public_key());
    let text = format!("{name}+{}", STANDARD.encode(key));
    VerifierList::new(vec![Box::new(StandardVerifier::new(&text).unwrap())])
}

#[test]
fn the_other_implementation_reads_our_checkpoint() {
    let proof = InclusionProof::new(3, hashes_of_line_3(), note()).unwrap();
    let note = Note::from_bytes(proof.checkpoint().as_bytes()).unwrap();
    let (by_us, by_others) = note.verify(&verifier(&signer())).unwrap();
    assert_eq!((by_us.len(), by_others.len()), (1, 0));
    assert!(note.verify(&verifier(&Signer::generate([1; 32]))).is_err());
    let read = tlog_tiles::Checkpoint::from_bytes(note.text()).unwrap();
    let ours = checkpoint();
    assert_eq!((read.origin(), read.size()), (&*ours.origin, ours.size));
    assert_eq!((read.hash().0, read.extension()), (ours.root, ""));
    let leaf = tlog_tiles::record_hash(b"line 3");
    let hashes = proof.hashes().iter().copied().map(tlog_tiles::Hash).collect();
    tlog_tiles::check_record(&hashes, read.size(), *read.hash(), 3, leaf).unwrap();
}

#[test]
fn the_other_implementations_checkpoint_is_read() {
    let (name, _) = named(&signer().public_key());
    let secret = STANDARD.encode(typed(&signer().to_pem().unwrap()));
    let signer = StandardSigner::new(&format!("PRIVATE+KEY+{name}+{secret}")).unwrap();
    let Checkpoint { origin, size, root } = checkpoint();
    let text = tlog_tiles::Checkpoint::new(&origin, size, tlog_tiles::Hash(root), "").unwrap();
    let mut signed = Note::new(&text.to_bytes(), &[]).unwrap();
    signed.add_sigs(&[&signer]).unwrap();
    let signed = String::from_utf8(signed.to_bytes()).unwrap();
    assert_eq!(signed, note());
    let proof = InclusionProof::new(3, hashes_of_line_3(), signed).unwrap();
    let key = self::signer().public_key();
    proof.verify("line 3", ORIGIN, &key).unwrap();
}
