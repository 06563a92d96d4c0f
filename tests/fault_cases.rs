//! Cases of `tests/faults.md` by the built program and the public library, where no other file has them.

#![cfg(unix)]

#[path = "common/runs.rs"]
mod runs;

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use half::bf16;
use moe_frontier::kernels::cpu::CpuBackend;
use moe_frontier::kernels::cpu::simd::Isa;
use moe_frontier::kernels::{LayerWeights, MoeShape, Routed, WeightData};
use moe_frontier::latency::measured::format;
use runs::{TINY, message, program};

/// Case 5. Small integers, so that every sum is exact and every order of summation must agree; the gate is one
/// column of 32, where silu is exact.
#[test]
fn one_expert_is_the_dense_product_to_the_bit() {
    let (hidden, inter, tokens) = (96, 64, 7);
    let shape = MoeShape { experts: 1, top_k: 1, hidden, inter, gated: true };
    // Three values of each row are not zero: sums stay far below 256, which bf16 holds.
    let small = |i: usize, k: usize| match (i * 7 + k * 3) % 32 {
        0 => 3.0_f32,
        1 => -2.0,
        2 => 1.0,
        _ => 0.0,
    };
    let x: Vec<f32> = (0..tokens * hidden)
        .map(|at| if at % hidden == 0 { 1.0 } else { small(at / hidden, at % hidden + 1) })
        .collect();
    let up = |i: usize, k: usize| small(i + 5, k);
    let gate = |k: usize| if k == 0 { 32.0_f32 } else { 0.0 };
    let down = |j: usize, i: usize| small(j + 11, i);
    let mut w13 = vec![0.0; shape.w13_len().unwrap()];
    for i in 0..inter {
        for k in 0..hidden {
            w13[i * hidden + k] = gate(k);
            w13[(inter + i) * hidden + k] = up(i, k);
        }
    }
    let w2: Vec<f32> = (0..hidden * inter).map(|at| down(at / inter, at % inter)).collect();
    let dense = |token: usize, column: usize| -> f32 {
        (0..inter)
            .map(|i| {
                let row = &x[token * hidden..(token + 1) * hidden];
                let sum: f32 = row.iter().enumerate().map(|(k, x)| x * up(i, k)).sum();
                32.0 * sum * down(column, i)
            })
            .sum()
    };
    let routed = Routed { ids: vec![0; tokens], weights: vec![1.0; tokens] };
    let narrow =
        |values: &[f32]| WeightData::Bf16(values.iter().copied().map(bf16::from_f32).collect());
    for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
        let formats = [
            (WeightData::F32(w13.clone().into()), WeightData::F32(w2.clone().into())),
            (narrow(&w13), narrow(&w2)),
        ];
        for (w13, w2) in formats {
            let weights = LayerWeights::new(shape, w13, w2).unwrap();
            let out = CpuBackend::with_isa(isa).unwrap().forward(&weights, &x, &routed).unwrap();
            assert_eq!(out.len(), tokens * hidden);
            assert!(out.iter().any(|v| v.abs() > 100.0), "the product is not zero");
            for (at, got) in out.iter().enumerate() {
                let expected = dense(at / hidden, at % hidden);
                // Zero has two signs.
                assert!((got - expected).abs() <= 0.0, "{}: {at}: {got}, {expected}", isa.label());
            }
        }
    }
}

/// Case 14. No price is free: nothing is ever divided by a price of zero.
#[test]
fn a_price_of_nothing_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    for command in [
        "rank --profile h100 --price 0",
        "size --model mixtral-8x7b --device h100 --rate 1 --isl 100 --osl 100 --price 0",
    ] {
        let output = program(folder.path(), command).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{command}: {}", message(&output));
        assert!(message(&output).contains("--price"), "{command}: {}", message(&output));
        assert_eq!(message(&output).lines().count(), 1, "{command}: {}", message(&output));
    }
}

/// Case 41, with a planted lack of locks.
#[test]
fn a_file_system_without_locks_needs_the_user_s_word() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let with = |arguments: &str| {
        let mut command = program(at, arguments);
        command.env("MOE_FRONTIER_STORAGE_FAULT", "nolocks").output().unwrap()
    };
    let refused = with(&format!("{TINY} --out run"));
    assert_eq!(refused.status.code(), Some(7), "{}", message(&refused));
    assert!(message(&refused).contains("--no-lock"), "{}", message(&refused));
    assert_eq!(fs::read_dir(at).unwrap().count(), 0, "it was found out before anything was kept");
    let unlocked = with(&format!("{TINY} --out unlocked --no-lock"));
    assert!(unlocked.status.success(), "{}", message(&unlocked));
    let journal = fs::read_to_string(at.join("unlocked/journal.jsonl")).unwrap();
    assert!(journal.contains("\"locked\":false"), "the journal says so");
    // Replacing a run needs no lock either, and takes none from a file system that has none.
    let cut = at.join("unlocked/profile.json");
    fs::remove_file(&cut).unwrap();
    let refused = with(&format!("{TINY} --out unlocked --overwrite"));
    assert_eq!(refused.status.code(), Some(7), "{}", message(&refused));
    assert!(message(&refused).contains("--no-lock"), "{}", message(&refused));
    let flags = "--experts 0 --overwrite --no-lock";
    let wrong = with(&format!("{} {flags} --out unlocked", TINY.replace("--experts 4", "")));
    assert_eq!(wrong.status.code(), Some(2), "{}", message(&wrong));
    assert!(at.join("unlocked/journal.jsonl").exists(), "a wrong flag removes nothing");
    let again = with(&format!("{TINY} --out unlocked --overwrite --no-lock"));
    assert!(again.status.success(), "{}", message(&again));
    format::read(&cut).unwrap();
}

/// Case 18, as product.md has it: a law outside its fitted range always says how far. There it answers.
#[test]
fn a_law_outside_its_range_says_how_far_at_every_number() {
    let folder = tempfile::tempdir().unwrap();
    for (question, outside) in [
        ("eval --experts 8 --n-active 500M --tokens 20B", false),
        ("eval --experts 8 --n-active 100B --tokens 20B", true),
        ("eval --experts 8 --n-active 500M --tokens 20T", true),
        ("optimal --experts 8 --train-flops 1e25", true),
    ] {
        let asked = |json: &str| {
            let arguments = format!("law {question}{json}");
            let output = program(folder.path(), &arguments).output().unwrap();
            assert!(output.status.success(), "{question}: {}", message(&output));
            (String::from_utf8(output.stdout.clone()).unwrap(), message(&output))
        };
        let (text, warning) = asked("");
        assert_eq!(text.contains("outside, by a factor of up to"), outside, "{text}");
        assert_eq!(warning.contains("times past what"), outside, "{warning}");
        let (document, _) = asked(" --json");
        assert!(document.contains(&format!("\"in_fit_range\": {}", !outside)), "{document}");
        assert_eq!(document.contains("\"factor\": "), outside, "{document}");
    }
    let output = program(folder.path(), "rank --profile h100 --train-flops 1e24 --draws 20 --json");
    let document = { output }.output().unwrap();
    let document = String::from_utf8(document.stdout).unwrap();
    let (losses, factors) = (
        document.matches("\"loss_nats\": ").count(),
        document.matches("\"extrapolation\": ").count(),
    );
    assert!(losses > 0 && factors >= losses, "{losses} losses, {factors} factors");
}

/// Case 55, where names come from the files of other tools.
#[test]
fn names_out_of_results_never_become_formulas() {
    let folder = tempfile::tempdir().unwrap();
    let results = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/results/a17_sglang.jsonl");
    let text = fs::read_to_string(results).unwrap();
    let name = "Qwen/Qwen3-30B-A3B";
    assert!(text.contains(name));
    fs::write(folder.path().join("r.jsonl"), text.replace(name, "=HYPERLINK(1)")).unwrap();
    let flags =
        "import vllm-bench r.jsonl --out p.csv --gpu h100 --parallelism tp1 --engine-version +1+1";
    let output = program(folder.path(), flags).output().unwrap();
    assert!(output.status.success(), "{}", message(&output));
    let written = fs::read_to_string(folder.path().join("p.csv")).unwrap();
    let cells: Vec<&str> = written.lines().skip(1).flat_map(|line| line.split(',')).collect();
    assert!(cells.contains(&"'=HYPERLINK(1)") && cells.contains(&"'+1+1"), "{written}");
    let computes = |cell: &&&str| cell.starts_with(['=', '+', '@']);
    assert_eq!(cells.iter().filter(computes).count(), 0, "{written}");
}

/// Case 61: root, without a home folder and with one that cannot be written.
#[test]
fn no_home_folder_is_needed_and_only_named_ones_are_written() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    for home in [None, Some("/proc"), Some("/dev/null/home")] {
        let with_home = |arguments: &str| {
            let mut command = program(at, arguments);
            command.env_remove("MOE_FRONTIER_PROFILES");
            for variable in ["HOME", "XDG_DATA_HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"] {
                command.env_remove(variable);
            }
            command.envs(home.map(|home| ("HOME", home)));
            command.output().unwrap()
        };
        for arguments in ["preset list", "law list", "device show h100"] {
            let output = with_home(arguments);
            assert!(output.status.success(), "{home:?} {arguments}: {}", message(&output));
        }
        if home.is_some() {
            // Nowhere to keep a profile: said before anything is measured.
            let output = with_home(TINY);
            assert_eq!(output.status.code(), Some(7), "{home:?}: {}", message(&output));
        }
        if home == Some("/proc") {
            let output = with_home(&format!("{TINY} --out p.json"));
            assert!(output.status.success(), "{home:?}: {}", message(&output));
            format::read(&at.join("p.json")).unwrap();
        }
    }
    let names: Vec<_> = fs::read_dir(at).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names, ["p.json"]);
}

/// Case 58: there is no cache of kernels that could be poisoned. Their code is in the program, or is compiled
/// from sources in the program; it is never read from a file.
#[test]
fn no_kernel_code_is_read_from_a_file() {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/gpu");
    for name in ["images.rs", "nvrtc.rs", "cuda.rs", "launch.rs", "memory.rs"] {
        let text = fs::read_to_string(sources.join(name)).unwrap();
        for way in ["fs::", "File::", "from_file", "read_capped"] {
            assert!(!text.contains(way), "{name} has `{way}`");
        }
    }
}

/// Case 62, as far as it needs no tool: the lock file has every crate from the registry, with its checksum.
#[test]
fn every_crate_comes_from_the_registry_with_a_checksum() {
    let lock =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.lock")).unwrap();
    let crates: Vec<&str> = lock.split("[[package]]").skip(1).collect();
    assert!(crates.len() > 100);
    for text in crates {
        // The packages of this workspace.
        if text.contains("name = \"moe-frontier") {
            continue;
        }
        let is_from_registry = text.contains("source = \"registry+https://");
        assert!(is_from_registry && text.contains("checksum = \""), "{text}");
    }
}

/// Interleaved comparison by the built program: the same command, one that takes longer, one that fails.
#[test]
fn two_commands_are_compared_in_turns() {
    let folder = tempfile::tempdir().unwrap();
    let compared = |a: &str, b: &str, flags: &[&str]| {
        let mut command = program(folder.path(), "compare --json --run");
        command.args([a, b]).args(flags).output().unwrap()
    };
    let slower =
        compared("sleep 0.02", "sleep 0.05", &["--fail-on", "slower", "--time-budget", "20s"]);
    assert_eq!(slower.status.code(), Some(1), "{}", message(&slower));
    let text = String::from_utf8_lossy(&slower.stdout);
    assert!(
        text.contains("\"verdict\": \"SLOWER\"") && text.contains("\"paired\": true"),
        "{text}"
    );
    let failed = compared("sleep 0.01", "sh -c 'echo no such thing >&2; exit 9'", &[]);
    assert_eq!(failed.status.code(), Some(4), "{}", message(&failed));
    assert!(message(&failed).contains("no such thing"), "{}", message(&failed));
    let cut = "echo '{\"schema\": \"moe-frontier/profile\", \"cells\": ['";
    let unreadable = compared("sleep 0.01", cut, &[]);
    assert_eq!(unreadable.status.code(), Some(3), "{}", message(&unreadable));
    assert!(unreadable.stdout.is_empty() && message(&unreadable).contains("output of `echo"));
    // It fails after whole rounds, which are told.
    let later = "echo x >> count; test $(wc -l < count) -lt 12";
    let early = compared("sleep 0.01", later, &[]);
    assert_eq!(early.status.code(), Some(4), "{}", message(&early));
    let text = String::from_utf8_lossy(&early.stdout);
    assert!(text.contains("\"rounds\": 5,") && text.contains("\"partial\": \"`echo x"), "{text}");
    let alone = program(folder.path(), "compare --run true").output().unwrap();
    assert_eq!(alone.status.code(), Some(2));
}

/// Ctrl-C during turns: the running command is asked to end, and what whole rounds say is printed.
#[test]
fn interrupted_turns_print_what_whole_rounds_say() {
    let folder = tempfile::tempdir().unwrap();
    // Times that differ so much that no interval becomes narrow.
    let command =
        "trap 'echo ended >> ends; exit 1' TERM; echo x >> count; sleep 0.0$(($$ % 9 + 1))";
    let mut compare = program(folder.path(), "compare --json --time-budget 100s --run");
    compare.args([command, command]).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = compare.spawn().unwrap();
    let count = || fs::read_to_string(folder.path().join("count")).unwrap_or_default();
    let start = Instant::now();
    while count().lines().count() < 40 && start.elapsed() < Duration::from_secs(60) {
        std::thread::sleep(Duration::from_millis(20));
    }
    let asked = Instant::now();
    let id = child.id().to_string();
    assert!(Command::new("kill").args(["-INT", &id]).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{}", message(&output));
    assert!(asked.elapsed() < Duration::from_secs(4), "{:?}", asked.elapsed());
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("\"partial\": \"interrupted by signal 2; after "), "{text}");
    assert!(text.contains("\"effect_rel\": "), "{text}");
    let before = count();
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(count(), before, "nothing runs on");
}
