//! How the program behaves beside its answers: widths, completions, manual, glossary, errors as JSON,
//! variables and the file of settings.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use clap::CommandFactory;
use moe_frontier::cli::Cli;
use serde_json::Value;
use unicode_width::UnicodeWidthStr;

/// The program in a folder of its own, without the user's settings and profiles.
fn program(folder: &Path, line: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_moe-frontier"));
    command.args(line.split_whitespace()).current_dir(folder);
    command.env("MOE_FRONTIER_PROFILES", folder.join("profiles"));
    command.env("XDG_CONFIG_HOME", folder.join("settings")).env_remove("COLUMNS");
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn printed(mut command: Command) -> String {
    let Output { status, stdout, stderr } = command.output().unwrap();
    assert!(status.success(), "{command:?}: {}", text(&stderr));
    text(&stdout)
}

/// Every command that prints tables or paragraphs, with arguments that need no measurement.
const COMMANDS: [&str; 21] = [
    "rank --profile h100 --train-flops 1e21 --experts 4,8 --draws 50",
    "size --model mixtral-8x7b --device h100 --rate 20 --requests 2000",
    "estimate --model mixtral-8x7b --device h100 --tp 2 --concurrency 8",
    "law list",
    "law eval --experts 8 --n-active 1B --tokens 20B",
    "law optimal --experts 64 --train-flops 1e25",
    "law claims",
    "preset list",
    "preset show deepseek-v3",
    "preset show qwen3-next-80b-a3b",
    "device list",
    "device show h100",
    "doctor",
    "doctor --prune",
    "explain",
    "explain tpot",
    "explain expert parallel",
    "--help",
    "rank --help",
    "size -h",
    "law fit --help",
];

#[test]
fn no_line_is_wider_than_the_terminal() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("profiles")).unwrap();
    for width in [60, 80, 100, 160] {
        for line in COMMANDS {
            let mut command = program(folder.path(), line);
            command.env("COLUMNS", width.to_string());
            for found in printed(command).lines() {
                assert!(found.width() <= width, "{line} at {width}: {found}");
            }
        }
    }
}

#[test]
fn tables_use_the_room_there_is() {
    let folder = tempfile::tempdir().unwrap();
    let widest = |line: &str, width: usize| {
        let mut command = program(folder.path(), line);
        command.env("COLUMNS", width.to_string());
        printed(command).lines().map(UnicodeWidthStr::width).max().unwrap()
    };
    assert!(widest("law list", 160) > 140 && widest("law list", 60) > 50);
    let mut narrow = program(folder.path(), "device list");
    narrow.env("COLUMNS", "60");
    let narrow = printed(narrow);
    assert!(narrow.contains("without: also called") && narrow.contains("80 GB"), "{narrow}");
}

#[test]
fn the_help_lists_every_command_once() {
    let folder = tempfile::tempdir().unwrap();
    let help = printed(program(folder.path(), "-h"));
    for sub in Cli::command().get_subcommands().filter(|s| !s.is_hide_set()) {
        let start = format!("  {} ", sub.get_name());
        let found = help.lines().filter(|l| l.starts_with(&start)).count();
        assert_eq!(found, 1, "{} in {help}", sub.get_name());
    }
}

#[test]
fn completions_and_manual_pages_are_made() {
    let folder = tempfile::tempdir().unwrap();
    for (shell, word) in [
        ("bash", "complete -F"),
        ("zsh", "#compdef moe-frontier"),
        ("fish", "complete -c moe-frontier"),
    ] {
        let text = printed(program(folder.path(), &format!("completions {shell}")));
        assert!(text.contains(word) && text.contains("law"), "{shell}");
    }
    let page = printed(program(folder.path(), "man law fit"));
    assert!(page.contains(".TH moe-frontier-law-fit 1") && page.contains("Exit codes"), "{page}");
    let pages = printed(program(folder.path(), "man --out pages"));
    assert!(pages.lines().count() > 20, "{pages}");
    for name in pages.lines() {
        assert!(
            fs::metadata(folder.path().join("pages").join(name)).unwrap().len() > 200,
            "{name}"
        );
    }
    let again = program(folder.path(), "man --out pages").output().unwrap();
    assert_eq!(again.status.code(), Some(7), "pages are not replaced unasked");
}

#[test]
fn errors_are_json_where_that_is_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("empty.json"), "").unwrap();
    for (line, code, kind, word) in [
        ("device show h10 --json", 2, "usage", "h100"),
        ("rank --prise 1 --json", 2, "usage", "--price"),
        ("report empty.json --json", 3, "bad_file", "empty.json"),
        ("report missing.json --json", 7, "io", "missing.json"),
        (
            "size --json --model mixtral-8x7b --device h100 --rate 20 --tpot-p99 100us",
            5,
            "infeasible",
            "nearest",
        ),
    ] {
        let output = program(folder.path(), line).output().unwrap();
        let told = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{line}: {told}");
        assert!(output.stdout.is_empty(), "{line}");
        let value: Value = serde_json::from_str(told.lines().last().unwrap()).unwrap();
        assert_eq!(value["schema"], "moe-frontier/error", "{told}");
        assert_eq!((&value["kind"], &value["exit_code"]), (&kind.into(), &code.into()), "{told}");
        assert!(value["message"].as_str().unwrap().contains(word), "{told}");
    }
}

#[test]
fn a_flag_beats_its_variable_and_the_variable_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let device = |command: Command| {
        let document: Value = serde_json::from_str(&printed(command)).unwrap();
        document["device"].as_str().unwrap().to_owned()
    };
    let line = "size --model olmoe-1b-7b --rate 1 --requests 1000 --json";
    fs::write(at.join("moe-frontier.toml"), "[size]\ndevice = \"h200\"\n").unwrap();
    assert_eq!(device(program(at, line)), "H200 SXM");
    let mut told = program(at, line);
    told.env("MOE_FRONTIER_DEVICE", "b200");
    assert_eq!(device(told), "B200 SXM");
    let mut flagged = program(at, &format!("{line} --device h100"));
    flagged.env("MOE_FRONTIER_DEVICE", "b200");
    assert_eq!(device(flagged), "H100 SXM");
    let mut off = program(at, "device list --json");
    fs::write(at.join("moe-frontier.toml"), "nothing = 1\n").unwrap();
    assert_eq!(program(at, "device list").output().unwrap().status.code(), Some(3));
    off.env("MOE_FRONTIER_CONFIG", "");
    assert!(printed(off).contains("H100"));
}

#[test]
fn a_ranking_is_repeated_from_its_file() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let line = "rank --profile h100 --train-flops 1e21 --experts 4,8 --draws 50 --json";
    let mut first = program(at, line);
    first.env("MOE_FRONTIER_PRICE", "2.5");
    let first = printed(first);
    let value: Value = serde_json::from_str(&first).unwrap();
    let flags = "--profile=h100 --train-flops=1e21 --experts=4,8 --price=2.5 --draws=50";
    let kept: Vec<&str> =
        value["arguments"].as_array().unwrap().iter().map(|f| f.as_str().unwrap()).collect();
    let mut sorted = kept.clone();
    sorted.sort_unstable();
    let mut expected: Vec<&str> = flags.split(' ').collect();
    expected.sort_unstable();
    assert_eq!(sorted, expected);
    assert!(!kept.iter().any(|flag| flag.starts_with("--out")));
    let again = printed(program(at, "rank --from out/rank.json --out again --json"));
    assert_eq!(first, again);
    let other = printed(program(at, "rank --from out/rank.json --out again --json --price 5"));
    let other: Value = serde_json::from_str(&other).unwrap();
    assert!(other["arguments"].to_string().contains("--price=5"), "{}", other["arguments"]);
    assert_ne!(value["candidates"], other["candidates"]);
    let list = fs::read_to_string(at.join("out/candidates.csv")).unwrap();
    assert_eq!(list.lines().count(), 1 + value["candidates"].as_array().unwrap().len());
    let wrong = program(at, "rank --from out/candidates.csv").output().unwrap();
    assert_eq!(wrong.status.code(), Some(3), "{}", text(&wrong.stderr));
}

#[test]
fn an_emitted_script_is_printed_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let line = "size --model mixtral-8x7b --device h100 --rate 20 --requests 2000 --emit";
    let mut narrow = program(folder.path(), &format!("{line} vllm"));
    narrow.env("COLUMNS", "60");
    let script = printed(narrow);
    assert_eq!(script, printed(program(folder.path(), &format!("{line} vllm"))));
    assert!(script.contains("vllm serve mistralai/Mixtral-8x7B-v0.1"), "{script}");
    let json = printed(program(folder.path(), &format!("{line} k8s --json")));
    let value: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(value["schema"], "moe-frontier/emit");
    assert!(value["engine_version"].as_str().unwrap().starts_with("0."), "{json}");
    assert!(value["text"].as_str().unwrap().contains("kind: Deployment"));
    let other = program(folder.path(), &format!("{line} sglang --engine vllm")).output().unwrap();
    assert_eq!(other.status.code(), Some(2), "{}", text(&other.stderr));
}
