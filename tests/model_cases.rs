//! Models of the Hub as a whole: every `config.json` at hand against its published totals, and
//! commands on models that have a catch.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Instant;

use moe_frontier::config::{Scoring, load_model};

/// The folder of public data sets, where it is mounted.
fn data() -> Option<PathBuf> {
    std::env::var_os("MOE_FRONTIER_DATA").map(PathBuf::from)
}

fn run(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_moe-frontier")).args(args).output().unwrap()
}

/// Total and active parameters in 1e9 as published or counted, and bf16 cache bytes a token.
const PUBLISHED: [(&str, f64, f64, f64); 10] = [
    ("Qwen--Qwen3-235B-A22B", 235.1, 22.2, 192_512.0),
    ("Qwen--Qwen3-30B-A3B", 30.53, 3.35, 98_304.0),
    ("deepseek-ai--DeepSeek-V3", 671.0, 37.5, 70_272.0),
    ("meta-llama--Llama-4-Scout-17B-16E-Instruct", 107.8, 17.2, 196_608.0),
    ("mistralai--Mixtral-8x22B-v0.1", 140.6, 39.1, 229_376.0),
    ("mistralai--Mixtral-8x7B-v0.1", 46.7, 12.9, 131_072.0),
    ("moonshotai--Kimi-K2-Instruct", 1026.0, 32.9, 70_272.0),
    ("openai--gpt-oss-120b", 116.83, 5.7, 73_728.0),
    ("openai--gpt-oss-20b", 20.91, 4.2, 49_152.0),
    ("zai-org--GLM-5", 744.0, 40.0, 109_824.0),
];

#[test]
fn every_config_at_hand_is_within_two_percent_and_its_cache_exact() {
    let Some(data) = data() else { return };
    let mut bad = Vec::new();
    for (name, total, active, cache) in PUBLISHED {
        let path = data.join(format!("hf_configs/{name}_config.json"));
        let started = Instant::now();
        let model = load_model(path.to_str().unwrap()).unwrap().model;
        let ms = started.elapsed().as_secs_f64() * 1e3;
        let params = model.params();
        let near = |value: f64, expected: f64| (value / 1e9 / expected - 1.0).abs() <= 0.02;
        // Authors count active parameters with both vocabulary matrices, one or none.
        let actives = [params.active(), params.active_head_only(), params.active_non_embedding()];
        let got = model.kv_bytes(1.0).0;
        let line = format!("{name}: {:.2} {actives:?} {got} in {ms:.1} ms", params.total() / 1e9);
        eprintln!("{line}");
        let is_right = near(params.total(), total)
            && actives.iter().any(|&a| near(a, active))
            && (got - cache).abs() < 1e-6;
        if !is_right {
            bad.push(line);
        }
    }
    assert!(bad.is_empty(), "{bad:#?}");
}

#[test]
fn deepseek_routers_without_a_scoring_function_have_that_of_their_family() {
    let Some(data) = data() else { return };
    let folder = tempfile::tempdir().unwrap();
    let text = data.join("hf_configs/deepseek-ai--DeepSeek-V3_config.json");
    let text = std::fs::read_to_string(text).unwrap();
    let mut config: serde_json::Value = serde_json::from_str(&text).unwrap();
    config.as_object_mut().unwrap().remove("scoring_func");
    let path = folder.path().join("config.json");
    std::fs::write(&path, config.to_string()).unwrap();
    let router = load_model(path.to_str().unwrap()).unwrap().model.router;
    assert_eq!(router.scoring, Scoring::Sigmoid);
    assert!(router.bias && router.renormalize && (router.scaling_factor - 2.5).abs() < 1e-9);
}

#[test]
fn a_split_that_cuts_blocks_of_fp8_scales_is_refused() {
    let args = ["--device", "h100", "--tp", "8", "--concurrency", "8"];
    let estimate = |weights: &str| {
        let mut all = vec!["estimate", "--model", "qwen3-235b-a22b", "--weights", weights];
        all.extend_from_slice(&args);
        run(&all)
    };
    let refused = estimate("fp8");
    let error = String::from_utf8(refused.stderr).unwrap();
    assert_eq!(refused.status.code(), Some(2), "{error}");
    assert!(error.contains("128"), "{error}");
    assert!(estimate("bf16").status.success());
}

#[test]
fn devices_of_today_are_known_and_others_name_the_way() {
    for device in ["b300", "gb300", "h20", "l40s", "rtx_pro_6000", "mi300x", "mi325x", "mi355x"] {
        assert!(run(&["device", "show", device]).status.success(), "{device}");
    }
    let unknown = run(&["estimate", "--model", "mixtral-8x7b", "--device", "tpu9", "--rate", "1"]);
    let error = String::from_utf8(unknown.stderr).unwrap();
    assert_eq!(unknown.status.code(), Some(2), "{error}");
    assert!(error.contains("--toml"), "{error}");
}

#[test]
fn sizes_and_estimates_say_what_was_read_of_a_model() {
    let base = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/configs");
    let file = base.join("a04_linear_config.json");
    let file = file.to_str().unwrap();
    let size = ["size", "--model", file, "--device", "h100", "--rate", "1", "--requests", "1000"];
    let estimate = ["estimate", "--model", file, "--device", "h100", "--rate", "1"];
    for args in [&size[..], &estimate[..]] {
        let output = run(args);
        let text = String::from_utf8(output.stdout).unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(text.starts_with("Answer"), "{args:?}: {text} {errors}");
        let told = text.lines().skip_while(|l| !l.starts_with("model: "));
        let told = told.flat_map(str::split_whitespace).collect::<Vec<_>>().join(" ");
        assert!(told.contains("linear)") && told.contains("256 experts (top 8)"), "{text}");
    }
}
