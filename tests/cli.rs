//! The program itself against its contract: help, exit codes, one-line errors, streams, files and
//! signals. What commands compute is tested where it is computed.
//!
//! Stored profiles are kept in temporary folders; the user's are never read or written.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use clap::CommandFactory;
use clap::error::ErrorKind;
use moe_frontier::cli::Cli;
use moe_frontier::kernels::cpu::simd::Isa;
use serde_json::Value;
use tempfile::TempDir;

/// The program, started in a folder that also holds its stored profiles.
fn program(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_moe-frontier"));
    command.args(arguments).current_dir(folder);
    command.env("MOE_FRONTIER_PROFILES", folder.join("profiles"));
    command
}

fn output(folder: &Path, arguments: &[&str]) -> Output {
    program(folder, arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// What a successful call prints.
fn printed(folder: &Path, arguments: &[&str]) -> String {
    let output = output(folder, arguments);
    assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
    text(&output.stdout)
}

/// Ends with this code and one line on stderr that contains `word`, and prints no result.
fn refused(folder: &Path, arguments: &[&str], code: i32, word: &str) {
    let output = output(folder, arguments);
    let message = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {message}");
    let errors: Vec<&str> = message.lines().filter(|l| !l.starts_with("warning: ")).collect();
    assert_eq!(errors.len(), 1, "{arguments:?}: {message}");
    assert!(errors[0].starts_with("error: ") && errors[0].contains(word), "{message}");
    assert!(output.stdout.is_empty(), "{arguments:?}");
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<String> =
        entries.map(|e| e.unwrap().file_name().to_str().unwrap().to_owned()).collect();
    names.sort();
    names
}

/// A profile of small layers that this machine measured, as text; measured once.
fn profile() -> &'static str {
    static PROFILE: OnceLock<String> = OnceLock::new();
    PROFILE.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let flags = "measure --quick --dtype f32 --experts 4,8 --top-k 1 --hidden 64,128 \
                     --tokens 1,16 --time-budget 5s --out p.json";
        printed(folder.path(), &flags.split_whitespace().collect::<Vec<_>>());
        fs::read_to_string(folder.path().join("p.json")).unwrap()
    })
}

/// Every command and subcommand, as the words that call it.
fn commands() -> Vec<Vec<String>> {
    fn walk(command: &clap::Command, words: &[String], all: &mut Vec<Vec<String>>) {
        let shown = |s: &&clap::Command| s.get_name() != "help" && !s.is_hide_set();
        for sub in command.get_subcommands().filter(shown) {
            let words = [words, &[sub.get_name().to_owned()]].concat();
            all.push(words.clone());
            walk(sub, &words, all);
        }
    }
    let mut all = Vec::new();
    walk(&Cli::command(), &[], &mut all);
    all
}

#[test]
fn the_help_of_every_command_shows_an_example_and_fits() {
    let folder = tempfile::tempdir().unwrap();
    let commands = commands();
    assert!(commands.len() >= 8, "{commands:?}");
    for words in commands {
        let mut arguments: Vec<&str> = words.iter().map(String::as_str).collect();
        arguments.push("--help");
        let help = printed(folder.path(), &arguments);
        let example = help.split_once("Example").map(|(_, after)| after).unwrap_or_default();
        let call = format!("moe-frontier {}", words[0]);
        assert!(example.contains(&call), "{words:?} has no example:\n{help}");
    }
}

/// Every flag that takes a number, with the words of its command.
fn numeric_flags() -> Vec<(Vec<String>, String)> {
    let mut flags = Vec::new();
    for words in commands() {
        let root = Cli::command();
        let command = words.iter().fold(&root, |c, w| c.find_subcommand(w).unwrap());
        for flag in command.get_arguments().filter_map(|a| a.get_long()) {
            let accepts = |value: &str| refusal(&words, flag, value) != Some(true);
            // A number of some kind is fine, and a word is not.
            let numbers = ["1", "1s", "0.5", "2"];
            if numbers.iter().any(|n| accepts(n)) && !accepts("word") {
                flags.push((words.clone(), flag.to_owned()));
            }
        }
    }
    flags
}

/// Parses a command with one flag; whether the flag's value was refused, `None` if nothing was.
fn refusal(words: &[String], flag: &str, value: &str) -> Option<bool> {
    let given = format!("--{flag}={value}");
    let arguments = ["moe-frontier"].into_iter().chain(words.iter().map(String::as_str));
    let error = Cli::command().try_get_matches_from(arguments.chain([given.as_str()])).err()?;
    Some(matches!(error.kind(), ErrorKind::ValueValidation | ErrorKind::InvalidValue))
}

#[test]
fn no_numeric_flag_takes_what_is_not_a_number() {
    let flags = numeric_flags();
    assert!(flags.len() >= 30, "{} flags", flags.len());
    for (words, flag) in &flags {
        for value in ["nan", "NaN", "-nan", "inf", "-inf", "infinity", "1e999", "", "-1", "1x"] {
            assert_eq!(refusal(words, flag, value), Some(true), "{words:?} --{flag}={value}");
        }
    }
}

#[test]
fn zero_is_refused_where_it_has_no_meaning() {
    let flags = numeric_flags();
    for flag in [
        "draws",
        "experts",
        "isl",
        "lifetime-tokens",
        "mfu",
        "osl",
        "price",
        "rate",
        "replica-sizes",
        "target-loss",
        "time-budget",
        "tokens",
        "tpot",
        "train-flops",
        "train-price",
        "utilisation",
    ] {
        let mut users = flags.iter().filter(|(_, f)| f == flag).peekable();
        assert!(users.peek().is_some(), "no command takes --{flag}");
        for (words, _) in users {
            let refused = ["0", "0s"].iter().all(|zero| refusal(words, flag, zero) == Some(true));
            assert!(refused, "{words:?} --{flag}=0");
        }
    }
}

#[test]
fn wrong_flags_end_with_two_and_say_what_is_meant() {
    let folder = tempfile::tempdir().unwrap();
    let cases: &[(&str, &str)] = &[
        ("frobnicate", "unrecognized subcommand 'frobnicate'"),
        ("rank --prise 1", "a similar argument exists: '--price'"),
        ("rank --experts 0", "--experts"),
        ("rank --experts abc", "write 8, 1,2,4"),
        ("rank --experts -4", "unexpected argument '-4'"),
        ("rank --price 0", "--price"),
        ("rank --price=-3", "--price"),
        ("rank --train-price 0", "--train-price"),
        ("rank --train-price=-0.5", "--train-price"),
        ("rank --mfu nan", "--mfu"),
        ("rank --train-flops inf", "--train-flops"),
        ("rank --tpot 20", "a duration needs a unit"),
        ("rank --draws 0", "--draws"),
        ("rank --train-flops 1e21 --target-loss 2.4", "cannot be used with"),
        ("rank --profile h100 --engine tgi", "vllm, sglang, trtllm"),
        ("rank --profile h100 --engine none", "measure"),
        ("rank --profile roofline:h10", "h100"),
        ("rank --profile h100 --price tier:none", "neocloud"),
        ("rank --profile h100 --experts 4,8 --reference-experts 5", "--reference-experts"),
        ("rank --profile h100 --train-device h10", "h100"),
        ("rank --profile h10", "h100"),
        ("rank --profile h100 --law ludziejewsky2025", "ludziejewski2025"),
        ("law optimal --experts 8", "--train-flops"),
        ("law eval --experts 8 --tokens 1B", "--n-active"),
        ("law eval --law hofmann2022 --n-total 1B --tokens 1B", "hoffmann2022"),
        ("measure --experts 4 --top-k 8", "8 exceeds the 4 experts"),
        ("measure --top-k 0", "--top-k"),
        ("measure --routing sideways", "sideways"),
        ("measure --dtype fp64", "bf16, f32 and int8"),
        ("measure --device cpu --dtype fp8", "GPUs do"),
        ("measure --device tpu", "gpu:N"),
        ("measure --mode warm", "cold, stream and hot"),
        ("measure --device cpu --mode stream", "only GPUs are timed as"),
        ("measure --device cpu --mode cold,hot", "only GPUs are timed as"),
        ("device show h10", "h100"),
        ("preset show mixtral", "Mixtral-8x7B"),
        ("compare one.json", "<NEW>"),
        ("import aiconfigurator", "<PATH>"),
    ];
    for (arguments, word) in cases {
        refused(folder.path(), &arguments.split(' ').collect::<Vec<_>>(), 2, word);
    }
    assert!(names(folder.path()).is_empty(), "{:?}", names(folder.path()));
}

#[test]
fn a_file_that_cannot_be_used_ends_with_three_or_seven() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let files = [
        ("empty.json", ""),
        ("cut.json", "{\"schema\": \"moe-frontier/profile\", \"schema_ver"),
        ("foreign.json", "{\"schema\": \"someone/else\", \"schema_version\": \"1.0\"}"),
        ("list.json", "[1, 2]"),
        ("nan.json", "{\"schema\": NaN}"),
        ("words.json", "this is no JSON"),
    ];
    for (name, content) in files {
        fs::write(at.join(name), content).unwrap();
    }
    fs::write(at.join("bytes.json"), [0xff, 0x00, 0xfe, 0x80]).unwrap();
    fs::create_dir(at.join("folder.json")).unwrap();
    let before = names(at);
    let all = before.iter().map(String::as_str).filter(|n| *n != "folder.json");
    for name in all {
        refused(at, &["rank", "--profile", name], 3, name);
        refused(at, &["report", name], 3, name);
        refused(at, &["compare", name, name], 3, name);
        refused(at, &["import", "aiconfigurator", name], 3, name);
    }
    for name in ["missing.json", "folder.json"] {
        refused(at, &["rank", "--profile", name], 7, name);
        refused(at, &["report", name], 7, name);
        refused(at, &["compare", name, name], 7, name);
    }
    refused(at, &["import", "aiconfigurator", "missing.json"], 7, "missing.json");
    refused(at, &["import", "aiconfigurator", "folder.json"], 2, "folder.json");
    assert_eq!(names(at), before, "something was written");
}

#[test]
fn what_nothing_meets_ends_with_five_and_the_nearest_that_can_be_met() {
    let folder = tempfile::tempdir().unwrap();
    let tight = "rank --profile h100 --train-flops 1e24 --tpot 1ms";
    refused(folder.path(), &tight.split(' ').collect::<Vec<_>>(), 5, "nearest feasible --tpot");
    assert!(!folder.path().join("out").exists(), "a folder was left");
    let cases =
        ["rank --profile h100 --target-loss 0.5", "law optimal --experts 8 --target-loss 0.5"];
    for arguments in cases {
        refused(folder.path(), &arguments.split(' ').collect::<Vec<_>>(), 5, "floor");
    }
    assert!(names(folder.path()).is_empty());
}

#[test]
fn what_cannot_be_written_ends_with_seven_before_the_work() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    fs::write(at.join("file"), "mine").unwrap();
    refused(at, &["rank", "--profile", "h100", "--out", "file"], 7, "file");
    refused(at, &["rank", "--profile", "h100", "--out", "file/below"], 7, "file");
    refused(at, &["measure", "--out", "no/p.json"], 7, "no/p.json");
    refused(at, &["measure", "--out", "."], 7, "it is a folder");
    assert_eq!(names(at), ["file"]);
    assert_eq!(fs::read(at.join("file")).unwrap(), b"mine");
}

#[test]
fn an_existing_output_is_kept_without_force() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    fs::write(at.join("mine.json"), "mine").unwrap();
    fs::write(at.join("table.csv"), "a,b\n1,2\n").unwrap();
    refused(at, &["measure", "--out", "mine.json"], 7, "--overwrite");
    refused(at, &["import", "aiconfigurator", "table.csv", "--out", "mine.json"], 7, "--overwrite");
    assert_eq!(fs::read(at.join("mine.json")).unwrap(), b"mine");
}

#[test]
fn rank_prints_one_document_with_its_schema_first_and_the_fields_of_the_contract() {
    let folder = tempfile::tempdir().unwrap();
    let document =
        printed(folder.path(), &["rank", "--profile", "h100", "--json", "--draws", "100"]);
    let head: String = document.split_whitespace().take(5).collect();
    assert_eq!(head, "{\"schema\":\"moe-frontier/rank\",\"schema_version\":\"2.3\",");
    let mut documents = serde_json::Deserializer::from_str(&document).into_iter::<Value>();
    let report = documents.next().unwrap().unwrap();
    assert!(documents.next().is_none(), "more than one document");
    for field in
        ["candidates", "frontier", "crossovers", "decision_map", "profile", "law", "assumptions"]
    {
        assert!(!report[field].is_null(), "no {field}");
    }
    let candidates = report["candidates"].as_array().unwrap();
    assert!(!candidates.is_empty());
    for candidate in candidates {
        for field in [
            "experts",
            "top_k",
            "n_active",
            "n_total",
            "tokens",
            "loss_nats",
            "kind",
            "train_flops",
            "train_usd",
            "serve_usd_per_million_output_tokens",
            "output_tokens_per_s_per_gpu",
            "gpus",
            "tpot_ms",
            "ttft_ms",
            "p_best",
            "tokens_per_param",
            "extrapolation",
            "binding",
            "latency_source",
            "layout",
            "serve_usd_per_million_output_tokens_at_scale",
        ] {
            assert!(candidate.get(field).is_some(), "no {field} in {candidate}");
        }
        let kind = candidate["kind"].as_str().unwrap();
        assert!(["loss_optimal", "iso_loss", "over_trained"].contains(&kind), "{kind}");
    }
    let stored = fs::read_to_string(folder.path().join("out/rank.json")).unwrap();
    assert_eq!(stored, document, "stdout and file differ");
}

#[test]
fn a_bound_on_serving_cost_leaves_dearer_models_out_and_names_the_nearest() {
    let folder = tempfile::tempdir().unwrap();
    let ask = |bound: &str| {
        let line = "rank --profile h100 --train-flops 1e22 --rate 100 --draws 50 --json";
        let bound = ["--max-serve-cost", bound];
        let arguments: Vec<&str> = line.split(' ').chain(bound).collect();
        let document = printed(folder.path(), &arguments);
        serde_json::from_str::<Value>(&document).unwrap()
    };
    let costs = |report: &Value| -> Vec<f64> {
        let candidates = report["candidates"].as_array().unwrap();
        let serve = candidates.iter().map(|c| c["serve_usd_per_million_output_tokens"].as_f64());
        serve.flatten().collect()
    };
    let (loose, tight) = (ask("1000"), ask("0.2"));
    assert!(costs(&loose).iter().any(|c| *c > 0.2));
    assert!(!costs(&tight).is_empty() && costs(&tight).iter().all(|c| *c <= 0.2));
    for candidate in tight["candidates"].as_array().unwrap() {
        let served = !candidate["serve_usd_per_million_output_tokens"].is_null();
        assert!(served || candidate["infeasible"].as_str().is_some_and(|r| !r.is_empty()));
    }
    for row in tight["over_training"]["at_budget"].as_array().unwrap() {
        let cost = &row["bounded_cost"]["serve_usd_per_million_output_tokens"];
        assert!(cost.as_f64().is_none_or(|c| c <= 0.2), "{row}");
        assert!(cost.is_f64() || row["bounded_cost_missing"].is_string(), "{row}");
    }
    let none = "rank --profile h100 --train-flops 1e22 --rate 100 --max-serve-cost 0.001";
    let none: Vec<&str> = none.split(' ').collect();
    refused(folder.path(), &none, 5, "nearest feasible --max-serve-cost");
}

#[test]
fn over_training_and_hyperparameters_are_told_for_every_candidate() {
    let folder = tempfile::tempdir().unwrap();
    let line = "rank --profile h100 --train-flops 1e21 --draws 50 --json";
    let document = printed(folder.path(), &line.split(' ').collect::<Vec<_>>());
    let report: Value = serde_json::from_str(&document).unwrap();
    for c in report["candidates"].as_array().unwrap() {
        let advice = c["learning_rate"].is_f64() && c["batch_tokens"].is_f64();
        assert!(advice || c["hyperparameters_missing"].is_string(), "{c}");
        assert_eq!(c["kind"] == "over_trained", c["over_training"].is_object(), "{c}");
        if let Some(extra) = c["over_training"]["extra_train_usd"].as_f64() {
            assert!(extra > 0.0, "{c}");
        }
    }
    let over = &report["over_training"];
    assert_eq!(over["by_flops"].as_array().unwrap().len(), 5);
    for row in over["at_budget"].as_array().unwrap() {
        let loss = row["bounded_loss"]["loss_nats"].as_f64();
        let base = over["base_loss_nats"].as_f64().unwrap();
        assert!(loss.is_none_or(|l| (l - base).abs() < 1e-9), "{row}");
    }
}

#[test]
fn served_tokens_move_the_optimum_towards_smaller_models() {
    let folder = tempfile::tempdir().unwrap();
    let ask = |rest: &str| {
        let line = format!("law optimal --experts 4 --json {rest}");
        let document = printed(folder.path(), &line.split(' ').collect::<Vec<_>>());
        serde_json::from_str::<Value>(&document).unwrap()
    };
    let number = |v: &Value, field: &str| v[field].as_f64().unwrap();
    // Cells of the table of computed values: 4 experts, loss of its optimum at 1e21, 1e12 served.
    let life = ask("--target-loss 2.3164 --served-tokens 1e12");
    assert!((number(&life, "n_active") / 0.994e9 - 1.0).abs() < 0.005, "{life}");
    assert!((number(&life, "tokens") / 315e9 - 1.0).abs() < 0.005, "{life}");
    assert!((number(&life, "lifetime_flops") / 3.869e21 - 1.0).abs() < 0.005, "{life}");
    let joint = ask("--train-flops 1e21 --served-tokens 1e11");
    assert!((number(&joint, "loss_nats") - 2.3640).abs() < 1e-4, "{joint}");
    let plain = ask("--train-flops 1e21");
    assert!(number(&plain, "n_active") > number(&joint, "n_active"));
    assert!(plain.get("lifetime_flops").is_none());
    let none = "law optimal --law tian2025 --sparsity 0.9 --train-flops 1e21 --served-tokens 1e12";
    refused(folder.path(), &none.split(' ').collect::<Vec<_>>(), 4, "served token");
}

#[test]
fn claims_are_priced_from_a_profile_or_by_a_stand_in() {
    let folder = tempfile::tempdir().unwrap();
    let ask = |line: &str| {
        let document = printed(folder.path(), &line.split(' ').collect::<Vec<_>>());
        serde_json::from_str::<Value>(&document).unwrap()
    };
    let stand_in = ask("law claims --json");
    let priced = ask("law claims --profile h100 --isl 500 --osl 250 --tpot 100ms --json");
    for answer in [&stand_in, &priced] {
        assert_eq!(answer["claims"].as_array().unwrap().len(), 18);
        assert_eq!(answer["inconsistencies"].as_array().unwrap().len(), 5);
        for claim in answer["claims"].as_array().unwrap() {
            assert!(claim["size"].is_string() && claim["extrapolation"].is_f64(), "{claim}");
            assert_ne!(claim["verdict"], "not_computable", "{claim}");
        }
    }
    assert!(stand_in["assumptions"].as_array().unwrap().is_empty());
    assert!(priced["cost"].as_str().unwrap().contains("dollars"));
    assert!(priced["assumptions"].as_array().unwrap().iter().any(|a| a["name"] == "--price"));
    assert_ne!(stand_in["claims"][5]["values"], priced["claims"][5]["values"]);
    let at = folder.path();
    refused(at, &["law", "claims", "--profile", "auto"], 2, "would measure");
    refused(at, &["law", "claims", "--profile", "missing.json"], 7, "missing.json");
    refused(at, &["law", "claims", "--profile", "h10"], 2, "h100");
}

#[test]
fn a_law_is_plotted_with_its_data_and_its_budgets_are_checked() {
    let folder = tempfile::tempdir().unwrap();
    let line = "law plot --experts 1,8 --train-flops 1e20,1e21 --out plots --json";
    let document = printed(folder.path(), &line.split(' ').collect::<Vec<_>>());
    let plot: Value = serde_json::from_str(&document).unwrap();
    assert_eq!(plot["by_experts"].as_array().unwrap().len(), 2);
    assert_eq!(plot["by_budget"].as_array().unwrap().len(), 2);
    let plots = names(&folder.path().join("plots"));
    assert_eq!(plots.iter().filter(|name| !name.starts_with('.')).count(), 6, "{plots:?}");
    let at = folder.path();
    refused(at, &["law", "plot", "--train-flops", "1e20,x"], 2, "--train-flops");
    refused(at, &["law", "plot", "--law", "hoffmann2022"], 4, "experts");
}

#[test]
fn bits_of_expert_weights_are_a_setting_where_nothing_was_measured() {
    let folder = tempfile::tempdir().unwrap();
    let ask = |bits: &str| {
        let line = format!(
            "rank --profile h100 --train-flops 1e21 --experts 4,8 --draws 50 --json --weight-bits {bits}"
        );
        let document = printed(folder.path(), &line.split(' ').collect::<Vec<_>>());
        serde_json::from_str::<Value>(&document).unwrap()
    };
    let (full, small) = (ask("16"), ask("4"));
    let weights = |r: &Value| r["candidates"][0]["weights_bytes"].as_f64().unwrap();
    assert!(weights(&small) < 0.5 * weights(&full));
    let noted = small["assumptions"].as_array().unwrap().iter().any(|a| {
        a["name"] == "--weight-bits" && a["source"].as_str().unwrap().contains("arXiv 2411.04330")
    });
    assert!(noted);
    // No kernel of these bits was measured: the experts' latencies are rooflines and say so.
    let operations = small["profile"]["operations"].as_array().unwrap();
    let experts = operations.iter().find(|o| o["operation"] == "routed experts").unwrap();
    assert_eq!(experts["source"], "roofline", "{experts}");
}

#[test]
fn every_json_result_is_one_document_with_its_schema_first() {
    let folder = tempfile::tempdir().unwrap();
    for arguments in [
        "law list --json",
        "law eval --experts 8 --n-active 1B --tokens 20B --json",
        "law optimal --experts 8 --train-flops 1e21 --json",
        "preset list --json",
        "preset show deepseek-v3 --json",
        "device list --json",
        "device show h200 --json",
    ] {
        let document = printed(folder.path(), &arguments.split(' ').collect::<Vec<_>>());
        let head: String = document.split_whitespace().collect();
        assert!(head.starts_with("{\"schema\":\"moe-frontier"), "{arguments}: {document}");
        assert!(head.split("\",\"").nth(1).is_some_and(|f| f.starts_with("schema_version\":")));
        serde_json::from_str::<Value>(&document).unwrap();
    }
}

#[test]
fn the_same_seed_gives_the_same_bytes_and_another_seed_others() {
    let run = |seed: &str| {
        let folder = tempfile::tempdir().unwrap();
        let flags = ["rank", "--profile", "h100", "--json", "--draws", "100", "--seed", seed];
        let document = printed(folder.path(), &flags);
        let mut files: Vec<(String, Vec<u8>)> = Vec::new();
        for name in names(&folder.path().join("out")) {
            let content = fs::read(folder.path().join("out").join(&name)).unwrap();
            files.push((name, content));
        }
        (document, files)
    };
    let (first, second, other) = (run("7"), run("7"), run("8"));
    assert_eq!(first.0, second.0);
    for (a, b) in first.1.iter().zip(&second.1) {
        assert!(a == b, "{} differs between two runs", a.0);
    }
    assert_eq!(first.1.len(), second.1.len());
    assert_ne!(first.0, other.0);
}

#[test]
fn rank_leaves_all_the_files_it_names() {
    let folder = tempfile::tempdir().unwrap();
    let text = printed(folder.path(), &["rank", "--profile", "h100", "--draws", "100"]);
    let mut files = names(&folder.path().join("out"));
    files.retain(|name| !name.starts_with('.'));
    let (_, beside) = text.split_once("report.html and ").unwrap();
    let beside: usize = beside.split_whitespace().next().unwrap().parse().unwrap();
    assert_eq!(files.len(), beside + 1, "{files:?}");
    assert!(files.contains(&"candidates.csv".to_owned()));
    for stem in ["cost_frontier", "total_cost", "decision_map_traffic", "layer_latency"] {
        for ending in ["svg", "png"] {
            assert!(files.contains(&format!("{stem}.{ending}")), "{stem}.{ending}");
        }
    }
    for name in &files {
        assert!(fs::metadata(folder.path().join("out").join(name)).unwrap().len() > 100, "{name}");
    }
    let page = printed(folder.path(), &["report", "out/rank.json", "--out", "again"]);
    for line in page.lines() {
        let name = Path::new(line).file_name().unwrap();
        let (old, new) = (folder.path().join("out").join(name), folder.path().join(line));
        let (old, new) = (fs::read(old).unwrap(), fs::read(new).unwrap());
        // A page that is drawn again has the answer, and no files to compute another with.
        let answer = |page: &[u8]| {
            let text = String::from_utf8_lossy(page).into_owned();
            text.split_once("<div id=\"answer\">")
                .map(|(_, rest)| rest.split_once("</main>").unwrap().0.to_owned())
        };
        let is_same = old == new || answer(&old).is_some_and(|a| Some(a) == answer(&new));
        assert!(is_same, "{line} was drawn differently");
    }
}

#[test]
fn text_is_never_wider_than_eighty_columns_where_nobody_says() {
    let folder = tempfile::tempdir().unwrap();
    for arguments in [
        "rank --profile h100 --draws 100",
        "rank --profile h100 --train-flops 1e24 --rate 1000 --draws 100",
        "law list",
        "law claims --profile h100",
        "law eval --experts 8 --n-active 1B --tokens 20B",
        "law optimal --experts 64 --train-flops 1e25",
        "preset list",
        "preset show deepseek-v3",
        "device list",
        "device show h100",
        "doctor",
    ] {
        let text = printed(folder.path(), &arguments.split(' ').collect::<Vec<_>>());
        for line in text.lines() {
            assert!(line.chars().count() <= 80, "{arguments}: {line}");
        }
    }
}

#[test]
fn an_instruction_set_that_is_unknown_or_absent_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let measure = |isa: &'static str| ["measure", "--device", "cpu", "--isa", isa];
    refused(folder.path(), &measure("avx1024"), 2, "avx512-bf16");
    refused(folder.path(), &["measure", "--device", "gpu", "--isa", "avx2"], 2, "--isa");
    for isa in Isa::ALL {
        match isa.missing() {
            Some(why) => refused(folder.path(), &measure(isa.flag()), 6, why),
            None => eprintln!("SKIPPED the refusal of {}: this machine has it", isa.flag()),
        }
    }
}

/// What limits a process to some processors also limits the threads that kernels take.
#[test]
#[cfg(target_os = "linux")]
fn threads_are_those_that_the_process_may_run_on() {
    match Command::new("taskset").args(["-c", "0", "true"]).output() {
        Ok(output) if output.status.success() => {}
        Ok(output) => return eprintln!("SKIPPED: {}", text(&output.stderr)),
        Err(error) => return eprintln!("SKIPPED: no taskset ({error})"),
    }
    let folder = tempfile::tempdir().unwrap();
    let mut doctor = Command::new("taskset");
    doctor.args(["-c", "0", env!("CARGO_BIN_EXE_moe-frontier"), "doctor", "--json"]);
    doctor.env("MOE_FRONTIER_PROFILES", folder.path()).env_remove("RAYON_NUM_THREADS");
    let output = doctor.output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    let findings: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(findings["threads"], 1);
    assert_eq!(findings["cores"], 1);
    assert_eq!(findings["cpu"]["threads"], 1);
}

#[test]
fn a_closed_pipe_is_no_error() {
    let folder = tempfile::tempdir().unwrap();
    for arguments in [
        vec!["rank", "--profile", "h100", "--json", "--draws", "50"],
        vec!["preset", "list"],
        vec!["rank", "--help"],
    ] {
        let mut child = program(folder.path(), &arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        let message = text(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {message}");
        assert!(!message.contains("panicked") && !message.contains("error:"), "{message}");
    }
}

#[test]
fn a_stored_profile_is_ranked_without_measuring() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    fs::write(at.join("p.json"), profile()).unwrap();
    let flags = "rank --profile p.json --include-noisy --json --draws 50 --train-flops 1e18 \
                 --experts 4,8 --tpot 100s";
    let output = output(at, &flags.split_whitespace().collect::<Vec<_>>());
    let message = text(&output.stderr);
    assert!(!message.contains("measuring") && !message.contains("panicked"), "{message}");
    // A busy machine can leave no cell that may be used; that is refused, never guessed.
    match output.status.code() {
        Some(0) => {
            let report: Value = serde_json::from_slice(&output.stdout).unwrap();
            assert_eq!(report["profile"]["origin"], "p.json");
            assert!(report["profile"]["cells"].as_u64().unwrap() >= 1);
        }
        Some(4) => assert!(message.contains("usable"), "{message}"),
        _ => panic!("{message}"),
    }
    assert!(!at.join("profiles").exists(), "a stored profile needs no other");
}

#[test]
fn a_cut_or_changed_profile_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let whole = profile();
    for part in [1, 3, 7, 9] {
        fs::write(folder.path().join("cut.json"), &whole[..whole.len() * part / 10]).unwrap();
        refused(folder.path(), &["rank", "--profile", "cut.json"], 3, "cut.json");
    }
    let changed = whole.replacen("median_ps\": ", "median_ps\": 1", 1);
    let changed =
        if changed == whole { whole.replacen("median_ps\":", "median_ps\":1", 1) } else { changed };
    assert_ne!(changed, whole);
    fs::write(folder.path().join("changed.json"), changed).unwrap();
    refused(folder.path(), &["rank", "--profile", "changed.json"], 3, "changed.json");
}

#[test]
fn a_profile_compared_with_itself_has_no_slower_cell() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("p.json"), profile()).unwrap();
    let gate = ["compare", "p.json", "p.json", "--fail-on", "slower", "--json"];
    let document: Value = serde_json::from_str(&printed(folder.path(), &gate)).unwrap();
    assert_eq!(document["slower"], 0);
}

/// Measures this machine in seconds. On one that is slow or busy no cell may fit the time: that has
/// its own exit code, and then nothing may have been written.
#[test]
fn rank_measures_this_machine_when_nothing_is_stored() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let flags = "rank --profile auto --time-budget 3s --draws 50 --train-flops 1e18 --json";
    let output = output(at, &flags.split(' ').collect::<Vec<_>>());
    let message = text(&output.stderr);
    match output.status.code() {
        Some(0) => {
            let report: Value = serde_json::from_slice(&output.stdout).unwrap();
            assert_eq!(report["schema"], "moe-frontier/rank");
            assert!(report["profile"]["origin"].as_str().unwrap().starts_with("measured now"));
            assert_eq!(names(&at.join("profiles")).len(), 1);
            assert!(at.join("out/report.html").is_file());
        }
        Some(4) => {
            eprintln!("SKIPPED in part: this machine measures nothing in 3 s: {message}");
            assert!(output.stdout.is_empty() && !at.join("out/rank.json").exists());
        }
        _ => panic!("{message}"),
    }
}

/// Sends a signal to a measurement that has begun; what it printed, and its exit code.
#[cfg(unix)]
fn stopped_by(signal: &str, folder: &TempDir, out: &[&str]) -> (String, Option<i32>) {
    let flags = "measure --dtype f32 --experts 8 --top-k 1 --hidden 128 --time-budget 300s";
    let arguments: Vec<&str> = flags.split(' ').chain(out.iter().copied()).collect();
    let mut child = program(folder.path(), &arguments)
        .stderr(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    let mut message = String::new();
    while !message.contains("measuring") {
        assert!(stderr.read_line(&mut message).unwrap() > 0, "ended by itself: {message}");
    }
    let pid = child.id().to_string();
    assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
    let sent = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if sent.elapsed() > Duration::from_secs(120) {
            child.kill().unwrap();
            panic!("{signal} did not end the measurement");
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    stderr.read_to_string(&mut message).unwrap();
    (message, status.code())
}

#[cfg(unix)]
#[test]
fn an_interrupted_measurement_can_go_on_or_has_left_nothing() {
    for (signal, code) in [("-INT", 130), ("-TERM", 143), ("-HUP", 143)] {
        let folder = tempfile::tempdir().unwrap();
        let (message, ended) = stopped_by(signal, &folder, &["--out", "run"]);
        assert_eq!(ended, Some(code), "{signal}: {message}");
        assert_eq!(message.matches("error: ").count(), 1, "{message}");
        let names = names(folder.path());
        if message.contains("nothing was written") {
            assert!(names.iter().all(|n| n == "profiles"), "{names:?}");
        } else {
            assert!(message.contains("measure --resume run"), "{message}");
            assert!(folder.path().join("run/journal.jsonl").exists());
        }
    }
}

/// What the program prints on a terminal that `script` makes.
#[cfg(target_os = "linux")]
fn on_a_terminal(folder: &Path, no_color: Option<&str>) -> Option<String> {
    let call = format!(
        "{} rank --profile h100 --draws 50 2>/dev/null",
        env!("CARGO_BIN_EXE_moe-frontier")
    );
    let mut script = Command::new("script");
    script.args(["-qec", &call, "/dev/null"]).current_dir(folder).stdin(Stdio::null());
    script.env("MOE_FRONTIER_PROFILES", folder).env("TERM", "xterm").env_remove("NO_COLOR");
    if let Some(value) = no_color {
        script.env("NO_COLOR", value);
    }
    let output = script.output().ok()?;
    assert!(output.status.success(), "{}", text(&output.stdout));
    Some(text(&output.stdout))
}

#[cfg(target_os = "linux")]
#[test]
fn no_color_is_honoured_on_a_terminal_and_pipes_have_none() {
    let folder = tempfile::tempdir().unwrap();
    let piped = printed(folder.path(), &["rank", "--profile", "h100", "--draws", "50"]);
    assert!(!piped.contains('\u{1b}'));
    let Some(coloured) = on_a_terminal(folder.path(), None) else {
        eprintln!("SKIPPED: no `script` to make a terminal with");
        return;
    };
    assert!(coloured.contains('\u{1b}'), "no colour on a terminal: {coloured}");
    let plain = on_a_terminal(folder.path(), Some("1")).unwrap();
    assert!(!plain.contains('\u{1b}'), "{plain}");
    assert!(plain.replace("\r\n", "\n").contains(piped.lines().next().unwrap()));
}
