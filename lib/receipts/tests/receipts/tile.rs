//! Tiles: what is written is what the specification says, and proofs out of tiles are those of the whole tree.
//! What others say of them stands in `oracles/`.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use proptest::prelude::*;
use proptest::sample::Index;
use receipts::merkle::{Hash, SIZE_LIMIT, consistency_proof, inclusion_proof, leaf_hash};
use receipts::merkle::{verify_consistency, verify_inclusion};
use receipts::tile::{
    TILE_WIDTH, consistency_proof_from, consistency_tiles, edge_tiles, inclusion_proof_from, inclusion_tiles,
    range_from, root_from,
};
use receipts::{CompactRange, ProofError, RangeError, Tile, TileError, TileWriter, Tiles};

/// More than 65,536, so that there are tiles on three levels.
const LEAVES: usize = 70_000;

/// Where tiles begin, are full, and begin again.
const EDGES: [u64; 14] = [
    1, 2, 3, 255, 256, 257, 511, 512, 513, 65_280, 65_535, 65_536, 65_537, 70_000,
];

/// By level, the hashes of all its tiles, as the specification defines them: the roots of 256 to the power of the level
/// leaves each.
static HASHES: LazyLock<[Vec<Hash>; 3]> = LazyLock::new(|| {
    let leaves: Vec<Hash> = (0..LEAVES as u64)
        .map(|place| leaf_hash(place.to_be_bytes()))
        .collect();
    let roots = |count: usize| {
        let (full, _) = leaves.as_chunks::<256>();
        full.chunks_exact(count)
            .map(|leaves| CompactRange::of(leaves.as_flattened()).root())
            .collect()
    };
    let (roots, above) = (roots(1), roots(256));
    [leaves, roots, above]
});

fn leaves(size: u64) -> &'static [Hash] {
    &HASHES[0][..size as usize]
}

/// By size, the root of the tree of that many leaves.
static ROOTS: LazyLock<Vec<Hash>> = LazyLock::new(|| {
    let mut range = CompactRange::new();
    let mut roots = vec![range.root()];
    for leaf in leaves(LEAVES as u64) {
        range.push(*leaf);
        roots.push(range.root());
    }
    roots
});

fn root(size: u64) -> Hash {
    ROOTS[size as usize]
}

fn bytes(tile: Tile) -> Vec<u8> {
    let start = tile.index() as usize * usize::from(TILE_WIDTH);
    HASHES[usize::from(tile.level())][start..start + usize::from(tile.width())].concat()
}

fn fetch(wanted: &[Tile]) -> Tiles {
    let mut tiles = Tiles::new();
    for tile in wanted {
        tiles.insert(*tile, bytes(*tile)).unwrap();
    }
    tiles
}

/// Every tile of a tree.
fn all_tiles(size: u64) -> Vec<Tile> {
    (0..3)
        .flat_map(|level| (0..).map_while(move |index| Tile::at(level, index, size)))
        .collect()
}

fn tile(path: &str) -> Tile {
    Tile::parse(path).unwrap()
}

#[test]
fn paths_are_those_of_the_specification() {
    let check = |level, index, width, path: &str| {
        let tile = Tile::new(level, index, width).unwrap();
        assert_eq!(tile.path(), path);
        assert_eq!(Tile::parse(path), Ok(tile));
        assert_eq!((tile.level(), tile.index(), tile.width()), (level, index, width));
        assert_eq!(tile.len_bytes(), 32 * usize::from(width));
    };
    check(0, 0, 256, "tile/0/000");
    check(0, 0, 1, "tile/0/000.p/1");
    check(1, 999, 255, "tile/1/999.p/255");
    check(2, 1000, 256, "tile/2/x001/000");
    check(0, 1_234_067, 256, "tile/0/x001/x234/067");
    check(10, 1_234_067, 42, "tile/10/x001/x234/067.p/42");
    check(
        63,
        u64::MAX,
        255,
        "tile/63/x018/x446/x744/x073/x709/x551/615.p/255",
    );
    for (level, width) in [(0, 0), (0, 257), (0, u16::MAX), (64, 256), (255, 1)] {
        assert_eq!(Tile::new(level, 0, width), None);
    }
}

#[test]
fn other_paths_are_refused() {
    for path in [
        "",
        "tile",
        "tile/",
        "tile/0",
        "tile/0/",
        "/tile/0/000",
        "tile/0/000/",
        "tile//000",
        "tile/00/000",
        "tile/01/000",
        "tile/+1/000",
        "tile/-1/000",
        "tile/64/000",
        "tile/256/000",
        "tile/a/000",
        "tile/entries/000",
        "tile/8/0/000",
        "tile/0/0",
        "tile/0/00",
        "tile/0/0000",
        "tile/0/1000",
        "tile/0/x000",
        "tile/0/x001",
        "tile/0/x000/001",
        "tile/0/001/001",
        "tile/0/x001/1",
        "tile/0/x001/x001",
        "tile/0/xx01/001",
        "tile/0/x+01/001",
        "tile/0/+01",
        "tile/0/ 01",
        "tile/0/٠٠١",
        "tile/0/000.p",
        "tile/0/000.p/",
        "tile/0/000.p/0",
        "tile/0/000.p/01",
        "tile/0/000.p/+1",
        "tile/0/000.p/256",
        "tile/0/000.p/257",
        "tile/0/000.p/65537",
        "tile/0/000.p/1/",
        "tile/0/000.p/1.p/1",
        "tile/0/000\n",
        "tile/0/x018/x446/x744/x073/x709/x551/616",
        "tile/0/x001/x018/x446/x744/x073/x709/x551/615",
    ] {
        let expected = TileError::Path {
            found: path.to_owned(),
        };
        assert_eq!(Tile::parse(path), Err(expected));
    }
    let error = Tile::parse(&"é".repeat(1 << 20)).unwrap_err();
    assert!(error.to_string().len() < 250, "{error}");
}

#[test]
fn a_tree_has_the_tiles_of_the_specification() {
    let count = |level, is_full| {
        let mut tiles = all_tiles(70_000);
        tiles.retain(|tile| tile.level() == level && tile.is_full() == is_full);
        tiles.len()
    };
    assert_eq!([count(0, true), count(1, true), count(2, true)], [273, 1, 0]);
    let check = |size, paths: &[&str]| {
        let expected: Vec<Tile> = paths.iter().map(|path| tile(path)).collect();
        assert_eq!(edge_tiles(size), expected, "{size} leaves");
    };
    check(0, &[]);
    check(1, &["tile/0/000.p/1"]);
    check(255, &["tile/0/000.p/255"]);
    check(256, &["tile/1/000.p/1"]);
    check(257, &["tile/0/001.p/1", "tile/1/000.p/1"]);
    check(65_535, &["tile/0/255.p/255", "tile/1/000.p/255"]);
    check(65_536, &["tile/2/000.p/1"]);
    check(70_000, &["tile/0/273.p/112", "tile/1/001.p/17", "tile/2/000.p/1"]);
    check(1 << 63, &["tile/7/000.p/128"]);
    assert_eq!(edge_tiles(u64::MAX).len(), 8);
    for (level, index, size) in [
        (0, 0, 0),
        (1, 0, 255),
        (0, 1, 256),
        (8, 0, u64::MAX),
        (255, u64::MAX, u64::MAX),
    ] {
        assert_eq!(Tile::at(level, index, size), None);
    }
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

/// Writes a tree in two parts, the second one from what is stored of the first.
#[track_caller]
fn check_written(old: u64, new: u64) {
    let mut writer = TileWriter::resume(old, &fetch(&edge_tiles(old))).unwrap();
    assert_eq!((writer.size(), writer.root()), (old, root(old)));
    let mut written = write(&mut writer, &leaves(new)[old as usize..]);
    assert_eq!((writer.size(), writer.root()), (new, root(new)));
    assert_eq!(writer.range(), CompactRange::of(leaves(new)));
    let edge = writer.finish();
    assert!(edge.iter().map(|(tile, _)| *tile).eq(edge_tiles(new)));
    written.extend(edge);
    let before = all_tiles(old);
    let mut expected = all_tiles(new);
    expected.retain(|tile| !before.contains(tile) || !tile.is_full());
    assert!(written.keys().eq(expected.iter()), "{old} to {new}");
    for (tile, found) in written {
        assert!(found == bytes(tile), "{tile} in {new}");
    }
}

#[test]
fn every_edge_is_written_in_one_go_and_in_two() {
    for new in EDGES {
        check_written(0, new);
        for old in [new - 1, new / 2, 1, new] {
            check_written(old, new);
        }
    }
}

#[test]
fn the_widest_edge_can_be_built_on() {
    let mut tiles = Tiles::new();
    tiles.insert(tile("tile/7/000.p/128"), [7; 128 * 32]).unwrap();
    let mut writer = TileWriter::resume(SIZE_LIMIT, &tiles).unwrap();
    assert_eq!(writer.push([1; 32]), []);
    let mut range = range_from(SIZE_LIMIT, &tiles).unwrap();
    range.push([1; 32]);
    assert_eq!((writer.range(), writer.finish().len()), (range, 2));
    let size = SIZE_LIMIT + 1;
    let error = TileWriter::resume(size, &tiles).unwrap_err();
    assert_eq!(error, RangeError::Size { size }.into());
}

/// That a proof out of its tiles is the tree's, and that each of them is needed.
#[track_caller]
fn check_proof<E: std::fmt::Debug>(
    wanted: &[Tile],
    size: u64,
    expected: &[Hash],
    prove: impl Fn(&Tiles) -> Result<Vec<Hash>, E>,
) where
    TileError: PartialEq<E>,
{
    assert!(wanted.is_sorted_by(|a, b| a < b), "{wanted:?}");
    for tile in wanted {
        assert_eq!(Tile::at(tile.level(), tile.index(), size), Some(*tile));
    }
    assert_eq!(prove(&fetch(wanted)).unwrap(), expected);
    for missing in wanted {
        let others: Vec<Tile> = wanted.iter().copied().filter(|tile| tile != missing).collect();
        assert_eq!(
            TileError::Missing { tile: *missing },
            prove(&fetch(&others)).unwrap_err()
        );
    }
}

#[track_caller]
fn check_inclusion(index: u64, size: u64) {
    let expected = inclusion_proof(leaves(size), index).unwrap();
    let wanted = inclusion_tiles(index, size).unwrap();
    check_proof(&wanted, size, &expected, |tiles| {
        inclusion_proof_from(index, size, tiles)
    });
    verify_inclusion(index, size, &leaves(size)[index as usize], &expected, &root(size)).unwrap();
}

#[track_caller]
fn check_consistency(old: u64, new: u64) {
    let expected = consistency_proof(leaves(new), old).unwrap();
    let wanted = consistency_tiles(old, new).unwrap();
    check_proof(&wanted, new, &expected, |tiles| {
        consistency_proof_from(old, new, tiles)
    });
    verify_consistency(old, new, &expected, &root(old), &root(new)).unwrap();
}

#[test]
fn proofs_at_every_edge_are_the_trees_own() {
    for size in EDGES {
        for index in EDGES.iter().map(|edge| edge - 1).filter(|index| *index < size) {
            check_inclusion(index, size);
        }
        for old in EDGES.into_iter().filter(|old| *old <= size) {
            check_consistency(old, size);
        }
        let edge = edge_tiles(size);
        assert_eq!(root_from(size, &fetch(&edge)), Ok(root(size)));
    }
    for size in 1..=70 {
        (0..size).for_each(|index| check_inclusion(index, size));
        (1..=size).for_each(|old| check_consistency(old, size));
    }
    assert_eq!(range_from(0, &Tiles::new()), Ok(CompactRange::new()));
}

#[test]
fn the_tiles_of_a_larger_tree_do_as_well() {
    let (index, size) = (65_000, 65_100);
    let stored: Vec<Tile> = inclusion_tiles(index, size)
        .unwrap()
        .iter()
        .map(|tile| Tile::at(tile.level(), tile.index(), 70_000).unwrap())
        .collect();
    assert!(stored.iter().all(Tile::is_full));
    assert_eq!(
        inclusion_proof_from(index, size, &fetch(&stored)).unwrap(),
        inclusion_proof(leaves(size), index).unwrap()
    );
}

#[test]
fn what_does_not_fit_is_not_held() {
    let mut tiles = Tiles::new();
    let [narrow, wide] = ["tile/0/000.p/2", "tile/0/000.p/3"].map(tile);
    for length in [0, 1, 63, 65, 96] {
        let expected = TileError::Length {
            tile: narrow,
            expected: 64,
            found: length,
        };
        assert_eq!(tiles.insert(narrow, vec![0; length]), Err(expected));
    }
    assert_eq!(tiles, Tiles::new());
    // The wider one stays, whichever comes first.
    tiles.insert(narrow, bytes(narrow)).unwrap();
    tiles.insert(wide, bytes(wide)).unwrap();
    tiles.insert(narrow, bytes(narrow)).unwrap();
    assert_eq!(tiles, fetch(&[wide]));
    for other in [narrow, wide, tile("tile/0/000")] {
        let mut bytes = bytes(other);
        bytes[63] ^= 1;
        let expected = TileError::Conflict { tile: other };
        assert_eq!(tiles.insert(other, bytes), Err(expected));
    }
    assert_eq!(tiles, fetch(&[wide]));
}

#[test]
fn what_is_in_no_tree_has_no_tiles() {
    for (index, size) in [(0, 0), (3, 3), (u64::MAX, 3), (u64::MAX, u64::MAX)] {
        let expected = ProofError::Index { index, size };
        assert_eq!(inclusion_tiles(index, size), Err(expected.clone()));
        assert_eq!(
            inclusion_proof_from(index, size, &Tiles::new()),
            Err(expected.into())
        );
    }
    for (old_size, new_size) in [(0, 0), (0, 3), (4, 3), (u64::MAX, 3)] {
        let expected = ProofError::Sizes { old_size, new_size };
        assert_eq!(consistency_tiles(old_size, new_size), Err(expected.clone()));
        assert_eq!(
            consistency_proof_from(old_size, new_size, &Tiles::new()),
            Err(expected.into())
        );
    }
}

/// The tree that the published vectors are of.
fn published_leaves() -> Vec<Hash> {
    let leaves = ["", "00", "10", "2021", "3031", "40414243", "5051525354555657"];
    let last = "606162636465666768696a6b6c6d6e6f";
    let leaves = leaves.into_iter().chain([last]);
    leaves.map(|leaf| leaf_hash(hex::decode(leaf).unwrap())).collect()
}

#[test]
fn the_published_proofs_come_out_of_tiles() {
    let leaves = published_leaves();
    let tiles = |size: u64| {
        let mut writer = TileWriter::new();
        assert_eq!(write(&mut writer, &leaves[..size as usize]), BTreeMap::new());
        let mut tiles = Tiles::new();
        for (tile, bytes) in writer.finish() {
            tiles.insert(tile, bytes).unwrap();
        }
        tiles
    };
    let decode = |case: &serde_json::Value, field: &str| -> Vec<Hash> {
        let list = case[field].as_array().into_iter().flatten();
        list.map(|text| STANDARD.decode(text.as_str().unwrap()).unwrap())
            .map(|bytes| bytes.try_into().unwrap())
            .collect()
    };
    let good = |file: &str| -> Vec<serde_json::Value> {
        let path = format!("{}/vectors/rfc6962/{file}", env!("CARGO_MANIFEST_DIR"));
        let cases = std::fs::read_to_string(path).unwrap();
        let cases = cases.lines().map(|line| serde_json::from_str(line).unwrap());
        cases
            .filter(|case: &serde_json::Value| case["wantErr"] == false)
            .collect()
    };
    let mut compared = [0, 0];
    for case in good("inclusion.jsonl") {
        let [index, size] = ["leafIdx", "treeSize"].map(|field| case[field].as_u64().unwrap());
        let tiles = tiles(size);
        if STANDARD.encode(root_from(size, &tiles).unwrap()) != case["root"] {
            continue;
        }
        assert_eq!(
            inclusion_proof_from(index, size, &tiles).unwrap(),
            decode(&case, "proof")
        );
        compared[0] += 1;
    }
    for case in good("consistency.jsonl") {
        let [old, new] = ["size1", "size2"].map(|field| case[field].as_u64().unwrap());
        let tiles = tiles(new);
        if STANDARD.encode(root_from(new, &tiles).unwrap()) != case["root2"] {
            continue;
        }
        assert_eq!(
            consistency_proof_from(old, new, &tiles).unwrap(),
            decode(&case, "proof")
        );
        compared[1] += 1;
    }
    // The others are of trees that were made up.
    assert_eq!(compared, [5, 5]);
}

proptest! {
    // Each case hashes some trees of thousands of leaves.
    #![proptest_config(ProptestConfig { cases: 16, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_tree_is_written_and_proved(size in 1..=LEAVES as u64, at in any::<Index>()) {
        let at = at.index(size as usize) as u64;
        check_written(at, size);
        check_inclusion(at, size);
        check_consistency(at + 1, size);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_proof_in_a_million_needs_few_tiles(at in 0..1_000_000_u64, size in 1..=1_000_000_u64) {
        // One on the leaf's way and one on the edge for each of three levels, of which the top is one.
        prop_assert!(inclusion_tiles(at % size, size).unwrap().len() <= 5);
        prop_assert!(consistency_tiles(1 + at % size, size).unwrap().len() <= 5);
    }

    #[test]
    fn no_sizes_panic(a in any::<u64>(), b in any::<u64>(), level in any::<u8>()) {
        for (a, b) in [(a, b), (a, u64::MAX), (a.min(b), a.max(b)), (u64::MAX - 1, u64::MAX)] {
            let (inclusion, consistency) = (inclusion_tiles(a, b), consistency_tiles(a, b));
            prop_assert_eq!(inclusion.is_ok(), a < b);
            prop_assert_eq!(consistency.is_ok(), 0 < a && a <= b);
            for tile in inclusion.into_iter().chain(consistency).chain([edge_tiles(b)]).flatten() {
                prop_assert_eq!(Tile::at(tile.level(), tile.index(), b), Some(tile));
                prop_assert_eq!(Tile::parse(&tile.path()), Ok(tile));
            }
            let _ = Tile::at(level, a, b);
            prop_assert!(inclusion_proof_from(a, b, &Tiles::new()).is_err());
            prop_assert_eq!(consistency_proof_from(a, b, &Tiles::new()).is_ok(), a == b && a > 0);
            prop_assert!(range_from(b, &Tiles::new()).is_err() || b == 0);
        }
    }

    #[test]
    fn what_is_read_as_a_path_is_written_so(path in "tile/[0-9]{1,3}/(x[0-9]{3}/){0,7}[0-9]{3}(\\.p/[0-9]{1,3})?") {
        match Tile::parse(&path) {
            Ok(tile) => prop_assert_eq!(tile.path(), path),
            Err(TileError::Path { found }) => prop_assert!(path.starts_with(&found)),
            Err(other) => prop_assert!(false, "{other}"),
        }
    }

    #[test]
    fn no_text_makes_the_path_reader_panic(text in any::<String>(), rest in "[/x0-9.p+-]{0,40}") {
        prop_assert!(Tile::parse(&text).is_err());
        if let Ok(tile) = Tile::parse(&format!("tile/{rest}")) {
            prop_assert_eq!(tile.path(), format!("tile/{rest}"));
        }
    }
}
