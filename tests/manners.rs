//! How the program behaves beside its answers: widths, completions, manual, glossary, errors as JSON,
//! variables and the file of settings.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::process::{Command, Output};

use clap::CommandFactory;
use moe_frontier::cli::Cli;
use serde_json::Value;
use unicode_width::UnicodeWidthStr;

#[path = "common/prepared.rs"]
mod setting;

use setting::{ROOT, prepared, program};

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn printed(mut command: Command) -> String {
    let Output { status, stdout, stderr } = command.output().unwrap();
    assert!(status.success(), "{command:?}: {}", text(&stderr));
    text(&stdout)
}

/// Every command that prints tables or paragraphs; `{root}` is this repository, and files named without it
/// are those of [`prepared`].
const COMMANDS: [&str; 40] = [
    "rank --profile h100 --train-flops 1e21 --experts 4,8 --draws 50",
    "rank --profile h100 --train-flops 1e21 --experts 4,8 --draws 50 --details",
    "rank --profile h100 --train-flops 1e21 --experts 4,8 --draws 50 --plot braille --law zhao2025",
    "rank --profile h100 --train-flops 1e22 --model deepseek-v3 --experts 64,128 --draws 50 --rate 5",
    "size --model mixtral-8x7b --device h100 --rate 20 --requests 2000",
    "size --model deepseek-v3 --device h100 --rate 5 --requests 1000 --details",
    "estimate --model mixtral-8x7b --device h100 --tp 2 --concurrency 8",
    "estimate --model mixtral-8x7b --device h100 --tp 2 --concurrency 8 --details",
    "estimate --points few.csv",
    "estimate --points few.csv --calibrate few.csv --details",
    "measure --device cpu --quick --dtype f32 --experts 4,8 --top-k 1 --hidden 64 --tokens 1,16 \
     --time-budget 2s --out again.json --overwrite",
    "measure --device cpu --quick --dtype f32 --experts 4,8 --top-k 1 --hidden 64 --tokens 1,16 \
     --time-budget 2s --out again.json --overwrite --details",
    "compare p.json p.json",
    "compare p.json p.json --details",
    "compare --run true true --time-budget 1s",
    "law list",
    "law list --details",
    "law eval --experts 8 --n-active 1B --tokens 20B",
    "law optimal --experts 64 --train-flops 1e25",
    "law claims",
    "law fit runs.csv --form hoffmann2022",
    "preset list",
    "preset show deepseek-v3",
    "preset show qwen3-next-80b-a3b",
    "device list",
    "device show h100",
    "import aiconfigurator {root}/tests/data/results/a16_repeat.csv --out tables --overwrite",
    "import vllm-bench {root}/tests/data/results/a18_summary.json --gpu h100 --parallelism tp2 --out b.csv \
     --overwrite",
    "calibrate few.csv",
    "calibrate --plan --model mixtral-8x7b --device h100",
    "doctor",
    "doctor --details",
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
    let folder = prepared();
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
fn a_pipe_is_eighty_columns_wide() {
    let folder = tempfile::tempdir().unwrap();
    for line in ["device list", "law list", "preset list", "law list --details", "doctor --details"]
    {
        let text = printed(program(folder.path(), line));
        assert!(text.lines().all(|l| l.width() <= 80), "{line}: {text}");
        assert!(text.lines().any(|l| l.width() > 60), "{line}: {text}");
    }
}

#[test]
fn every_command_answers_first_and_within_a_screen() {
    let folder = tempfile::tempdir().unwrap();
    for (line, most) in [
        ("rank --profile h100 --train-flops 1e21 --draws 50", 24),
        ("rank --profile h100 --train-flops 1e23 --rate 100 --tpot 20ms --draws 50", 24),
        ("rank --profile h100 --train-flops 1e21 --draws 50 --law abnar2025", 24),
        ("rank --profile h100 --train-flops 1e21 --draws 50 --experts 1,2,4,8,16,32,64,128", 24),
        ("size --model mixtral-8x7b --device h100 --rate 20 --requests 2000", 24),
        ("estimate --model mixtral-8x7b --device h100 --tp 2 --concurrency 8", 24),
        ("law list", 24),
        ("doctor", 24),
    ] {
        let mut command = program(folder.path(), line);
        command.env("COLUMNS", "80");
        let text = printed(command);
        assert!(text.lines().count() <= most, "{line}: {} lines\n{text}", text.lines().count());
        // A ranking says what was asked before.
        assert!(text.lines().take(3).any(|l| l.starts_with("Answer")), "{line}: {text}");
    }
}

#[test]
fn the_first_screen_of_a_ranking_has_its_parts_and_the_rest_is_in_the_details() {
    let folder = tempfile::tempdir().unwrap();
    let line = "rank --profile h100 --train-flops 1e21 --experts 4,8 --draws 50";
    let screen = printed(program(folder.path(), line));
    let words =
        ["Asked", "Answer", "P(best)", "regret", "A 4, B 8", "Page", "out/report.html", "Next"];
    for word in words {
        assert!(screen.contains(word), "{word}: {screen}");
    }
    let none = printed(program(folder.path(), &format!("{line} --plot none")));
    assert!(!none.contains("A 4, B 8") && none.contains("P(best)"), "{none}");
    let wrong = program(folder.path(), &format!("{line} --plot gnuplot")).output().unwrap();
    assert_eq!(wrong.status.code(), Some(2), "{}", text(&wrong.stderr));
    let details = printed(program(folder.path(), &format!("{line} --details")));
    for word in ["What each law says", "Assumptions", "Sensitivity", "Provenance", "Warnings"] {
        assert!(details.contains(word) && !screen.contains(word), "{word}: {details}");
    }
    let shown: Value =
        serde_json::from_str(&fs::read_to_string(folder.path().join("out/rank.json")).unwrap())
            .unwrap();
    let kept = shown["arguments"].to_string();
    assert!(!kept.contains("details") && !kept.contains("plot"), "{kept}");
}

#[test]
fn a_model_is_summarised_before_its_ranking() {
    let folder = tempfile::tempdir().unwrap();
    let config = format!("{ROOT}/tests/data/configs/a06_shared_config.json");
    let rank = format!(
        "rank --profile h100 --train-flops 1e22 --experts 32,64 --draws 50 --model {config}"
    );
    let ranked = printed(program(folder.path(), &rank));
    let line = format!("estimate --device h100 --concurrency 1 --model {config}");
    let estimated = printed(program(folder.path(), &line));
    let said = |text: &str| -> Vec<String> {
        let is_model = |l: &&str| l.starts_with("model: ") || l.starts_with("assumed: ");
        text.lines().filter(is_model).map(str::to_owned).collect()
    };
    assert!(said(&ranked).iter().any(|l| l.starts_with("model: ")), "{ranked}");
    assert_eq!(said(&ranked), said(&estimated));
}

#[test]
fn tables_use_the_room_there_is() {
    let folder = tempfile::tempdir().unwrap();
    let widest = |line: &str, width: usize| {
        let mut command = program(folder.path(), line);
        command.env("COLUMNS", width.to_string());
        printed(command).lines().map(UnicodeWidthStr::width).max().unwrap()
    };
    assert!(widest("law list --details", 160) > 140 && widest("law list", 60) > 50);
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
