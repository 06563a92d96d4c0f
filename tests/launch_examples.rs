//! The examples of `reports/launch`: short, well-formed, and with flags that the program has. `.ci/group` runs the
//! one for mpirun, `.ci/slurm` the one for Slurm arrays, `.ci/manifests` checks the one for Kubernetes by schema.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

fn examples() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("reports/launch");
    let mut all: Vec<PathBuf> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    all.sort();
    all
}

/// Commands of the program in a text, as words: a line with its continuations, or a YAML list.
fn commands(text: &str) -> Vec<Vec<String>> {
    let joined = text.replace("\\\n", " ");
    let words = |line: &str| {
        let line = line.replace(['[', ']', ',', '"'], " ");
        line.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    joined
        .lines()
        .filter_map(|line| {
            let at = line.find("moe-frontier measure").or_else(|| line.find("moe-frontier merge"));
            let at = at.or_else(|| line.find("moe-frontier, measure"))?;
            Some(words(&line[at..])[1..].to_vec())
        })
        .collect()
}

fn help(command: &str) -> BTreeSet<String> {
    let output = Command::new(env!("CARGO_BIN_EXE_moe-frontier"))
        .args([command, "--help"])
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    text.split_whitespace()
        .filter(|word| word.starts_with("--"))
        .map(|word| word.trim_matches(|c: char| !c.is_ascii_alphanumeric() && c != '-').to_owned())
        .collect()
}

#[test]
fn examples_are_short_and_use_flags_that_there_are() {
    let (measure, merge) = (help("measure"), help("merge"));
    let mut seen = 0;
    for path in examples() {
        let text = fs::read_to_string(&path).unwrap();
        let name = path.display();
        assert!(text.lines().count() <= 20, "{name} has {} lines", text.lines().count());
        let commands = commands(&text);
        assert!(!commands.is_empty(), "{name}");
        for words in commands {
            let flags = if words[0] == "measure" { &measure } else { &merge };
            for flag in words.iter().filter(|word| word.starts_with("--")) {
                assert!(flags.contains(flag), "{name}: {} has no {flag}", words[0]);
            }
            seen += 1;
        }
    }
    assert!(seen >= 8, "{seen}");
}

#[cfg(unix)]
#[test]
fn scripts_are_well_formed() {
    let is_script = |path: &&PathBuf| path.extension().is_some_and(|e| e != "yaml");
    let mut seen = 0;
    for path in examples().iter().filter(is_script) {
        let checked = Command::new("bash").arg("-n").arg(path).output().unwrap();
        assert!(checked.status.success(), "{}: {checked:?}", path.display());
        assert!(fs::read_to_string(path).unwrap().contains("set -euo pipefail"));
        seen += 1;
    }
    assert!(seen >= 5, "{seen}");
}
