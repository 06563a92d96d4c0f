//! `rank`, `size` and `estimate` say the same of the same deployment.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::path::Path;
use std::process::Command;

use serde_json::Value;

/// The JSON document of a command that must succeed.
fn run(args: &[&str]) -> Value {
    let output = Command::new(env!("CARGO_BIN_EXE_moe-frontier")).args(args).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {errors}");
    serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{args:?}: {e}"))
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is not a number"))
}

fn same(a: &Value, b: &Value, what: &str) {
    let (a, b) = (number(a), number(b));
    assert!((a / b - 1.0).abs() < 1e-9, "{what}: {a} against {b}");
}

/// What `estimate` says of a deployment at a rate of one replica.
fn estimate(model: &Path, profile: &str, layout: &Value, rate: f64, flags: &[&str]) -> Value {
    let of = |key: &str| layout[key].as_u64().unwrap().to_string();
    let (tp, dp, ep) = (of("attention_tp"), of("attention_dp"), of("moe_ep"));
    let (rate, model) = (format!("{rate:?}"), model.to_str().unwrap());
    let asked = [
        "estimate",
        "--json",
        "--model",
        model,
        "--profile",
        profile,
        "--tp",
        &tp,
        "--dp",
        &dp,
        "--ep",
        &ep,
        "--rate",
        &rate,
        "--isl",
        "1000",
        "--osl",
        "1000",
    ];
    run(&[&asked[..], flags].concat())
}

fn check(profile: &str) {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let rank = run(&[
        "rank",
        "--json",
        "--profile",
        profile,
        "--train-flops",
        "1e22",
        "--rate",
        "50",
        "--tpot",
        "30ms",
        "--draws",
        "40",
        "--out",
        out.to_str().unwrap(),
    ]);
    let mut compared = 0;
    for candidate in rank["candidates"].as_array().unwrap() {
        let Some(config) = candidate["config"].as_str() else { continue };
        if candidate["layout"].is_null() {
            continue;
        }
        let model = out.join(config);
        let rate = number(&candidate["requests_per_s_per_replica"]);
        let said = estimate(&model, profile, &candidate["layout"], rate, &[]);
        let name = format!("rank against estimate, {} experts", candidate["experts"]);
        same(&candidate["tpot_ms"], &said["tpot_ms"], &name);
        same(&candidate["ttft_ms"], &said["ttft_ms"], &name);
        same(
            &candidate["serve_usd_per_million_output_tokens"],
            &said["usd_per_million_output_tokens_all_on_output"],
            &name,
        );
        if compared == 1 {
            sized((&model, profile), 50.0, &[], &[]);
        }
        compared += 1;
    }
    assert_eq!(compared, 5, "every expert count has a recommended model");
}

/// The plan that `size` chooses at a rate, and what `estimate` says of it under the same flags; `alone`
/// are those that only `size` has.
fn sized(
    (model, profile): (&Path, &str),
    rate: f64,
    flags: &[&str],
    alone: &[&str],
) -> (Value, Value) {
    let asked_rate = format!("{rate:?}");
    let asked = [
        "size",
        "--json",
        "--model",
        model.to_str().unwrap(),
        "--profile",
        profile,
        "--rate",
        &asked_rate,
        "--isl",
        "1000",
        "--osl",
        "1000",
        "--tpot-p99",
        "60ms",
        "--ttft-p99",
        "4s",
        "--requests",
        "2000",
    ];
    let size = run(&[&asked[..], flags, alone].concat());
    let replica = &size["steady_state"];
    let layout = serde_json::json!({
        "attention_tp": size["tensor_parallel"],
        "attention_dp": size["data_parallel"],
        "moe_ep": size["expert_parallel"],
    });
    let rate = rate / number(&size["replicas"]);
    let said = estimate(model, profile, &layout, rate, flags);
    same(&replica["tpot_ms"], &said["tpot_ms"], "size against estimate, TPOT");
    same(&replica["ttft_ms"], &said["ttft_ms"], "size against estimate, TTFT");
    same(
        &replica["usd_per_million_output_tokens_all_on_output"],
        &said["usd_per_million_output_tokens_all_on_output"],
        "size against estimate, dollars",
    );
    (size, said)
}

#[test]
fn commands_agree_on_published_peaks() {
    check("roofline:h100");
}

#[test]
fn commands_agree_on_shipped_tables() {
    check("h100");
}

#[test]
fn drafts_and_found_prefixes_mean_the_same_to_every_command() {
    let value = |of: &Value, key: &str| number(&of[key]);
    for engine in ["vllm", "sglang"] {
        let of = |flags: &[&str]| {
            let flags = [flags, &["--engine", engine]].concat();
            let mixtral = (Path::new("mixtral-8x7b"), "roofline:h100");
            let (size, said) = sized(mixtral, 4.0, &flags, &["--length-cv", "0"]);
            // The simulation waits as the steady state does, in steps of one token or of several.
            let ratio = value(&size["ttft_ms"], "mean") / value(&said, "ttft_ms");
            assert!((0.95..1.05).contains(&ratio), "{flags:?}: {ratio}");
            said
        };
        let plain = of(&[]);
        let drafts = of(&["--mtp", "3", "--accept", "0.8"]);
        let prefix = of(&["--prefix-hit", "0.6"]);
        assert!(value(&drafts, "tpot_ms") < value(&plain, "tpot_ms"));
        assert!(value(&prefix, "tpot_ms") < value(&plain, "tpot_ms"));
        assert!(value(&prefix, "ttft_ms") < value(&plain, "ttft_ms"));
    }
}
