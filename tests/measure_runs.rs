//! Runs of `measure` that end early, by the built program: killed at a write, stopped by a signal, out of
//! disk, started twice. The cases of `tests/faults.md` that name this file.

#![cfg(unix)]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "common/runs.rs"]
mod runs;

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use moe_frontier::latency::measured::format;
use runs::{PROGRAM, TINY, message, program};

fn ended(folder: &Path, arguments: &str, fault: Option<&str>) -> Output {
    let mut command = program(folder, arguments);
    if let Some(fault) = fault {
        command.env("MOE_FRONTIER_STORAGE_FAULT", fault);
    }
    command.output().unwrap()
}

fn blocks(journal: &Path) -> usize {
    let text = fs::read_to_string(journal).unwrap_or_default();
    text.lines().filter(|line| line.contains("\"answer\":{\"block\"")).count()
}

/// A run that has measured some blocks.
fn running(folder: &Path, out: &str, blocks_wanted: usize) -> Child {
    let arguments =
        format!("{TINY} --time-budget 300s --out {out}").replace("--time-budget 20s ", "");
    let arguments = arguments.replace("--quick", "");
    let mut child =
        program(folder, &arguments).stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let journal = folder.join(out).join("journal.jsonl");
    let start = Instant::now();
    while blocks(&journal) < blocks_wanted {
        assert!(child.try_wait().unwrap().is_none(), "ended by itself");
        assert!(start.elapsed() < Duration::from_secs(300), "nothing was measured");
        std::thread::sleep(Duration::from_millis(20));
    }
    child
}

#[test]
fn a_killed_run_goes_on_and_keeps_its_blocks() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    // Within the plan, within the journal, within the profile.
    for step in [2, 9, 16, 23] {
        let out = format!("run{step}");
        let killed = ended(at, &format!("{TINY} --out {out}"), Some(&format!("kill@{step}")));
        let run = at.join(&out);
        if killed.status.success() {
            continue;
        }
        assert_eq!(killed.status.code(), None, "{}", message(&killed));
        let before = blocks(&run.join("journal.jsonl"));
        if !run.join("plan.json").exists() {
            assert_eq!(before, 0);
            continue;
        }
        let resumed = ended(at, &format!("measure --resume {out}"), None);
        assert!(resumed.status.success(), "step {step}: {}", message(&resumed));
        let profile = format::read(&run.join("profile.json")).unwrap();
        assert!(profile.run.partial.is_none());
        assert!(profile.cells[0].blocks.len() >= before.min(6), "{step}");
    }
}

#[test]
fn a_full_disk_ends_with_seven_and_the_run_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let failed = ended(at, &format!("{TINY} --out run"), Some("enospc@20+"));
    assert_eq!(failed.status.code(), Some(7), "{}", message(&failed));
    assert!(message(&failed).contains("measure --resume run"), "{}", message(&failed));
    let resumed = ended(at, "measure --resume run", None);
    assert!(resumed.status.success(), "{}", message(&resumed));
    format::read(&at.join("run/profile.json")).unwrap();
}

#[test]
fn a_stopped_run_has_a_partial_profile_and_ends_within_a_moment() {
    for (signal, code) in [("-INT", 130), ("-HUP", 143)] {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path();
        let child = running(at, "run", 2);
        let sent = Instant::now();
        let pid = child.id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
        let output = child.wait_with_output().unwrap();
        let took = sent.elapsed();
        assert_eq!(output.status.code(), Some(code), "{}", message(&output));
        // A second on a quiet machine; tests run beside each other.
        assert!(took < Duration::from_secs(10), "{took:?}");
        let profile = format::read(&at.join("run/profile.json")).unwrap();
        assert!(profile.run.partial.is_some());
        assert!(message(&output).contains("measure --resume run"), "{}", message(&output));
    }
}

#[test]
fn a_second_writer_and_an_unfinished_run_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let mut child = running(at, "run", 1);
    let before = fs::read(at.join("run/plan.json")).unwrap();
    let second = ended(at, "measure --resume run", None);
    assert_eq!(second.status.code(), Some(7), "{}", message(&second));
    let locked = format!("locked by process {}", child.id());
    assert!(message(&second).contains(&locked), "{}", message(&second));
    for flags in ["", "--overwrite"] {
        let new = ended(at, &format!("{TINY} --out run {flags}"), None);
        assert_eq!(new.status.code(), Some(7), "{}", message(&new));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(fs::read(at.join("run/plan.json")).unwrap(), before);
    let new = ended(at, &format!("{TINY} --out run"), None);
    assert_eq!(new.status.code(), Some(7));
    assert!(message(&new).contains("--resume run"), "{}", message(&new));
}

#[test]
fn storage_is_tried_and_sizes_are_checked_before_anything_is_measured() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    fs::write(at.join("file"), "").unwrap();
    let start = Instant::now();
    for (arguments, code, word) in [
        ("--out no/run", 7, "no/run"),
        ("--out no/p.json", 7, "no/p.json"),
        ("--out file", 7, "it is a file"),
        ("--hidden 1000000 --inter 1000000", 4, "no layer fits"),
        ("--tokens 2147483648", 4, "no layer fits"),
        ("--tokens 99999999999999", 2, "--tokens"),
        ("--hidden 18446744073709551615", 2, "--hidden"),
        ("--time-budget 2000m", 2, "longer than a day"),
        ("--resume nothing", 7, "nothing"),
        ("--resume nothing --experts 4", 2, "cannot be used"),
    ] {
        let flags = if arguments.contains("--resume") { "measure" } else { "measure --device cpu" };
        let output = ended(at, &format!("{flags} {arguments}"), None);
        assert_eq!(output.status.code(), Some(code), "{arguments}: {}", message(&output));
        assert!(message(&output).contains(word), "{arguments}: {}", message(&output));
    }
    let unwritable = program(at, "measure --device cpu")
        .env("MOE_FRONTIER_PROFILES", at.join("file/below"))
        .output()
        .unwrap();
    assert_eq!(unwritable.status.code(), Some(7), "{}", message(&unwritable));
    assert!(start.elapsed() < Duration::from_secs(60), "{:?}", start.elapsed());
    let names: Vec<_> = fs::read_dir(at).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(names.iter().all(|n| n == "file" || n == "profiles"), "{names:?}");
}

#[test]
fn what_a_list_names_twice_is_measured_once_with_a_note() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let arguments = TINY.replace("--tokens 1", "--tokens 1,1-2*2,1") + " --out p.json";
    let output = ended(at, &arguments, None);
    assert!(output.status.success(), "{}", message(&output));
    assert!(message(&output).contains("--tokens names 2 twice or more"), "{}", message(&output));
    let profile = format::read(&at.join("p.json")).unwrap();
    let tokens: Vec<usize> = profile.cells.iter().map(|c| c.tokens).collect();
    assert!(tokens.len() <= 2 && tokens.windows(2).all(|t| t[0] != t[1]), "{tokens:?}");
    assert!(!at.join("p.journal").exists(), "the profile holds what the journal held");
    // A pipe is read like a file, and one that nobody writes to is given up.
    let pipe = at.join("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let waiting = Instant::now();
    let silent = ended(at, "compare p.json pipe", None);
    assert_eq!(silent.status.code(), Some(7), "{}", message(&silent));
    assert!(waiting.elapsed() < Duration::from_secs(20));
    let script = format!("{PROGRAM} compare <(cat p.json) p.json");
    let read = Command::new("bash").args(["-c", &script]).current_dir(at).output().unwrap();
    assert!(read.status.success(), "{}", message(&read));
}
