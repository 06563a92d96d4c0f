//! Holds `tests/faults.md` to its word: every case of the fault table stands there once, and every test
//! that it names exists.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::HashSet;
use std::fs;
use std::path::Path;

/// Cases of the fault table.
const CASES: usize = 62;

/// All Rust sources below a folder, one after the other.
fn sources(folder: &Path, text: &mut String) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, text);
        } else if path.extension().is_some_and(|e| e == "rs") {
            *text += &fs::read_to_string(&path).unwrap();
        }
    }
}

#[test]
fn every_case_names_tests_that_exist_or_says_why_it_is_open() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut text = String::new();
    sources(&root.join("src"), &mut text);
    sources(&root.join("tests"), &mut text);
    let tests: HashSet<&str> =
        text.split("fn ").skip(1).filter_map(|rest| rest.split('(').next()).collect();
    let table = fs::read_to_string(root.join("tests/faults.md")).unwrap();
    let rows: Vec<&str> = table.lines().filter(|l| l.starts_with("| ")).skip(1).collect();
    assert_eq!(rows.len(), CASES);
    let mut open = 0;
    for (i, row) in rows.iter().enumerate() {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        assert_eq!(cells[1], (i + 1).to_string(), "{row}");
        if cells[3].starts_with("open: ") {
            open += 1;
            continue;
        }
        let named: Vec<&str> = cells[3].split('`').skip(1).step_by(2).collect();
        assert!(!named.is_empty(), "{row}");
        for name in named {
            assert!(tests.contains(name), "no test `{name}`: {row}");
        }
    }
    assert_eq!(open, 0, "{open} cases are open");
}
