//! `Tile::parse` and `Tiles`: a path that is read is the tile's own. Whatever tiles say, a proof made of them either
//! holds or is refused, and honest tiles give proofs that hold.
#![no_main]

use governor_fuzz::plant;
use libfuzzer_sys::arbitrary::{self, Arbitrary, Unstructured};
use libfuzzer_sys::fuzz_target;
use receipts::merkle::{Hash, leaf_hash, verify_consistency, verify_inclusion};
use receipts::tile::{
    consistency_proof_from, consistency_tiles, edge_tiles, inclusion_proof_from, inclusion_tiles, root_from,
};
use receipts::{Tile, TileWriter, Tiles};

/// Leaves of the tree whose tiles are altered: more than one full tile.
const LEAVES: u64 = 700;

#[derive(Arbitrary, Debug)]
struct Altered {
    size: u16,
    index: u16,
    /// Which tile, which byte of it, and how.
    change: Option<(u8, u16, u8)>,
}

#[derive(Arbitrary, Debug)]
struct Strange {
    size: u64,
    index: u64,
    old_size: u64,
    tiles: Vec<(u8, u64, u16, u8)>,
}

fuzz_target!(
    init: plant("tile", ["tile/0/x001/234.p/7", "tile/63/x018/x446/x744/x073/x709/x551/615.p/255", "tile/1/000"]),
    |bytes: &[u8]| {
        if let Some(tile) = str::from_utf8(bytes).ok().and_then(|path| Tile::parse(path).ok()) {
            assert_eq!(tile.path().as_bytes(), bytes);
            assert_eq!(Tile::new(tile.level(), tile.index(), tile.width()), Some(tile));
            assert_eq!(tile.is_full(), tile.width() == 256);
        }
        let mut input = Unstructured::new(bytes);
        if let Ok(altered) = Altered::arbitrary(&mut input) {
            altered.check();
        }
        if let Ok(strange) = Strange::arbitrary_take_rest(Unstructured::new(bytes)) {
            strange.check();
        }
    }
);

impl Altered {
    fn check(self) {
        let size = 1 + u64::from(self.size) % LEAVES;
        let index = u64::from(self.index) % size;
        let leaves: Vec<Hash> = (0..size).map(|at| leaf_hash(at.to_be_bytes())).collect();
        let mut writer = TileWriter::new();
        let mut written: Vec<(Tile, Vec<u8>)> = leaves.iter().flat_map(|leaf| writer.push(*leaf)).collect();
        let root = writer.root();
        written.extend(writer.finish());
        let needed = inclusion_tiles(index, size).expect("a leaf of the tree");
        let honest = collect(&written);
        for tile in needed.iter().chain(&edge_tiles(size)) {
            assert_eq!(Tile::at(tile.level(), tile.index(), size), Some(*tile));
            assert_eq!(Tile::parse(&tile.path()).ok(), Some(*tile));
        }
        let proof = inclusion_proof_from(index, size, &honest).expect("its tiles are there");
        let leaf = leaves[index as usize];
        verify_inclusion(index, size, &leaf, &proof, &root).expect("honest tiles");
        let old = 1 + index;
        let old_root = receipts::CompactRange::of(&leaves[..old as usize]).root();
        let growth = consistency_proof_from(old, size, &honest).expect("its tiles are there");
        verify_consistency(old, size, &growth, &old_root, &root).expect("honest tiles");
        assert_eq!(root_from(size, &honest).ok(), Some(root));

        let Some((which, at, bits)) = self.change else {
            return;
        };
        let place = usize::from(which) % written.len();
        let bytes = &mut written[place].1;
        let at = usize::from(at) % bytes.len();
        bytes[at] ^= bits;
        let altered = collect(&written);
        let forged = inclusion_proof_from(index, size, &altered).expect("its tiles are there");
        assert_eq!(
            verify_inclusion(index, size, &leaf, &forged, &root).is_ok(),
            forged == proof,
            "another proof of the same leaf"
        );
        let forged = consistency_proof_from(old, size, &altered).expect("its tiles are there");
        assert_eq!(
            verify_consistency(old, size, &forged, &old_root, &root).is_ok(),
            forged == growth,
            "another proof of the same past"
        );
    }
}

fn collect(written: &[(Tile, Vec<u8>)]) -> Tiles {
    let mut tiles = Tiles::new();
    for (tile, bytes) in written {
        tiles.insert(*tile, bytes).expect("as long as the tile says");
    }
    tiles
}

impl Strange {
    /// Any tiles, of any tree.
    fn check(self) {
        let Self {
            size,
            index,
            old_size,
            tiles: given,
        } = self;
        let mut tiles = Tiles::new();
        for (level, index, width, byte) in given.into_iter().take(64) {
            let Some(tile) = Tile::new(level % 70, index, width % 300) else {
                continue;
            };
            assert_eq!(Tile::parse(&tile.path()).ok(), Some(tile));
            let before = tiles.clone();
            if tiles.insert(tile, vec![byte; tile.len_bytes()]).is_err() {
                assert_eq!(tiles, before);
            }
            assert!(tiles.insert(tile, [byte]).is_err());
        }
        // As if every tile that is asked for came, filled with something.
        let mut all = tiles.clone();
        let named = [
            inclusion_tiles(index, size),
            consistency_tiles(old_size, size),
            Ok(edge_tiles(size)),
        ];
        for tile in named.into_iter().flatten().flatten() {
            assert_eq!(Tile::at(tile.level(), tile.index(), size), Some(tile));
            drop(all.insert(tile, vec![7; tile.len_bytes()]));
        }
        for tiles in [&tiles, &all] {
            if let Ok(proof) = inclusion_proof_from(index, size, tiles) {
                assert!(proof.len() <= 64);
                drop(verify_inclusion(index, size, &[0; 32], &proof, &[0; 32]));
            }
            if let Ok(proof) = consistency_proof_from(old_size, size, tiles) {
                assert!(proof.len() <= 65);
                drop(verify_consistency(old_size, size, &proof, &[0; 32], &[0; 32]));
            }
            if let Ok(mut writer) = TileWriter::resume(size, tiles) {
                assert_eq!(root_from(size, tiles).ok(), Some(writer.root()));
                drop(writer.push([1; 32]));
                assert_eq!(writer.size(), size + 1);
                drop((writer.root(), writer.finish()));
            }
        }
    }
}
