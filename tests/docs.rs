//! The guide says what the program prints: every command of its `console` blocks is run and its output
//! compared, the glossary is the program's own, and links lead to files that exist.
//!
//! `MOE_FRONTIER_DOCS=write cargo test --test docs` writes the files anew. A block that starts with
//! ```` ```console machine ```` depends on the machine: its commands are run and must succeed, their output
//! stays as it is.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use moe_frontier::report::glossary::TERMS;

#[path = "common/prepared.rs"]
mod setting;

use setting::{ROOT, prepared, program};

/// How a line begins that holds a command.
const PROMPT: &str = "$ moe-frontier ";
/// A block whose output is compared, and one whose output is not.
const FENCES: [(&str, bool); 2] = [("```console", true), ("```console machine", false)];

fn writes() -> bool {
    std::env::var("MOE_FRONTIER_DOCS").is_ok_and(|v| v == "write")
}

/// All pages that are read: the guide, and what stands at the root.
fn pages() -> Vec<PathBuf> {
    let root = Path::new(ROOT);
    let mut found: Vec<PathBuf> = fs::read_dir(root.join("docs"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "md"))
        .collect();
    found.push(root.join("README.md"));
    found.push(root.join("CONTRIBUTING.md"));
    found.sort();
    found
}

/// What a command prints, after its prompt line or lines.
fn printed(folder: &Path, line: &str) -> String {
    let output = program(folder, line).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{line}: {}", text(&output.stderr));
    text(&output.stdout)
}

/// A page with the output of its commands as it is now; the number of commands that were run.
fn renewed(page: &str, folder: &Path) -> (String, usize) {
    let (mut out, mut commands) = (String::new(), 0);
    let mut lines = page.lines().peekable();
    while let Some(line) = lines.next() {
        writeln!(out, "{line}").unwrap();
        let Some((_, compared)) = FENCES.iter().find(|(fence, _)| *fence == line) else { continue };
        while let Some(line) = lines.next() {
            writeln!(out, "{line}").unwrap();
            if line == "```" {
                break;
            }
            let Some(mut command) = line.strip_prefix(PROMPT).map(str::to_owned) else { continue };
            while let Some(start) = command.strip_suffix('\\').map(str::to_owned) {
                let next = lines.next().unwrap();
                writeln!(out, "{next}").unwrap();
                command = start + next.trim_start();
            }
            commands += 1;
            let fresh = printed(folder, &command);
            while let Some(old) = lines.peek().filter(|l| !l.starts_with("$ ") && **l != "```") {
                if !compared {
                    writeln!(out, "{old}").unwrap();
                }
                lines.next();
            }
            if *compared {
                out.extend(fresh.lines().map(|l| format!("{}\n", l.trim_end())));
            }
        }
    }
    (out, commands)
}

fn compare(path: &Path, old: &str, new: &str) {
    if old == new {
        return;
    }
    if writes() {
        fs::write(path, new).unwrap();
        return;
    }
    let differs = old.lines().zip(new.lines()).enumerate().find(|(_, (a, b))| a != b);
    let (line, (had, now)) = differs.unwrap_or((old.lines().count(), ("", "")));
    panic!(
        "{}:{}: the page says\n  {had}\nand the program\n  {now}\n\
         MOE_FRONTIER_DOCS=write cargo test --test docs writes it anew",
        path.display(),
        line + 1
    );
}

#[test]
fn the_guide_shows_what_the_program_prints() {
    let folder = prepared();
    let mut commands = 0;
    for path in pages() {
        let old = fs::read_to_string(&path).unwrap();
        let (new, run) = renewed(&old, folder.path());
        commands += run;
        compare(&path, &old, &new);
    }
    assert!(commands > 15, "{commands}");
}

#[test]
fn a_page_is_renewed_where_it_is_compared_alone() {
    let folder = tempfile::tempdir().unwrap();
    let page = "a\n```console\n$ moe-frontier explain \\\n    tpot\nold\n```\nb\n\
                ```console machine\n$ moe-frontier explain ttft\nkept\n```\n";
    let (new, run) = renewed(page, folder.path());
    assert_eq!(run, 2);
    assert!(new.contains("    tpot\nTPOT: ") && !new.contains("old"), "{new}");
    assert!(new.contains("explain ttft\nkept\n```\n") && new.contains("```\nb\n"), "{new}");
}

#[test]
fn the_glossary_is_the_program_s() {
    let path = Path::new(ROOT).join("docs/GLOSSARY.md");
    let mut new = String::from(
        "# Glossary\n\n`moe-frontier explain` prints these; `explain TERM` one of them, by any of its names.\n\n\
         | term | also | meaning |\n|---|---|---|\n",
    );
    for term in TERMS {
        let meaning = term.meaning.replace('|', "\\|");
        writeln!(new, "| {} | {} | {meaning} |", term.term, term.also.join(", ")).unwrap();
    }
    compare(&path, &fs::read_to_string(&path).unwrap_or_default(), &new);
}

#[test]
fn links_lead_to_files_that_exist() {
    for path in pages() {
        let text = fs::read_to_string(&path).unwrap();
        for part in text.split("](").skip(1) {
            let target = part.split(')').next().unwrap_or_default();
            let file = target.split('#').next().unwrap_or_default();
            if file.is_empty() || file.contains("://") {
                continue;
            }
            let beside = path.parent().unwrap().join(file);
            assert!(beside.exists(), "{}: {target}", path.display());
        }
    }
}

/// Names in code style that look like files of this repository are files of it.
#[test]
fn files_that_the_guide_names_exist() {
    let roots = [
        "src/",
        "tests/",
        "kernels/",
        "benches/",
        "reports/",
        "examples/",
        ".ci/",
        "docs/",
        "python/",
    ];
    for path in pages() {
        let text = fs::read_to_string(&path).unwrap();
        for word in text.split('`').skip(1).step_by(2) {
            let is_file = roots.iter().any(|root| word.starts_with(root));
            if !is_file || word.contains(['<', '*', ' ', '{']) {
                continue;
            }
            assert!(Path::new(ROOT).join(word).exists(), "{}: `{word}`", path.display());
        }
    }
}
