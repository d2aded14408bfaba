//! The published vectors of RFC 8785.

use std::fs;
use std::path::Path;

#[test]
fn published_vectors_hold() {
    let vectors = Path::new(env!("CARGO_MANIFEST_DIR")).join("vectors/jcs");
    let mut names = Vec::new();
    for entry in fs::read_dir(vectors.join("input")).unwrap() {
        let name = entry.unwrap().file_name();
        let input: serde_json::Value =
            serde_json::from_slice(&fs::read(vectors.join("input").join(&name)).unwrap()).unwrap();
        let expected = fs::read_to_string(vectors.join("output").join(&name)).unwrap();
        assert_eq!(receipts::jcs(&input).unwrap(), expected, "{name:?}");
        names.push(name);
    }
    assert_eq!(names.len(), 6, "{names:?}");
}
