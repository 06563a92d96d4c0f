//! `import vllm-bench` on files as `vllm bench serve` leaves them, through to an estimate.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::path::Path;
use std::process::{Command, Output};

fn run(folder: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_moe-frontier"))
        .current_dir(folder)
        .args(args)
        .output()
        .unwrap()
}

/// A closed loop of `concurrency` clients with a mean time per token.
fn result(concurrency: u32, tpot_ms: f64) -> String {
    let completed = concurrency * 10;
    let whole_s = 0.1 + tpot_ms / 1e3 * 199.0;
    let rate = f64::from(concurrency) / whole_s;
    format!(
        r#"{{"model_id": "mistralai/Mixtral-8x7B-Instruct-v0.1", "request_rate": "inf",
"max_concurrency": {concurrency}, "duration": {}, "completed": {completed},
"total_input_tokens": {}, "total_output_tokens": {}, "request_throughput": {rate},
"output_throughput": {}, "mean_ttft_ms": 100.0, "mean_tpot_ms": {tpot_ms}}}"#,
        f64::from(completed) / rate,
        completed * 1000,
        completed * 200,
        rate * 200.0
    )
}

#[test]
fn results_become_points_that_calibrate_an_estimate() {
    let folder = tempfile::tempdir().unwrap();
    let runs = [(1, 9.0), (4, 16.0), (16, 24.0), (64, 36.0)];
    let mut args = vec!["import", "vllm-bench"];
    let names: Vec<String> = runs.iter().map(|(c, _)| format!("c{c}.json")).collect();
    for ((concurrency, tpot), name) in runs.iter().zip(&names) {
        std::fs::write(folder.path().join(name), result(*concurrency, *tpot)).unwrap();
        args.push(name);
    }
    args.extend(["--gpu", "h100", "--parallelism", "tp2", "--weights", "bf16", "--json"]);
    let output = run(folder.path(), &args);
    let document: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(document["schema"], "moe-frontier/import-points");
    assert_eq!((document["points"].as_u64(), document["left_out"][0].is_null()), (Some(4), true));
    let estimate = run(
        folder.path(),
        &["estimate", "--points", "points.csv", "--calibrate", "points.csv", "--json"],
    );
    let document: serde_json::Value = serde_json::from_slice(&estimate.stdout).unwrap();
    assert_eq!(document["summary"]["n_predicted"], 4, "{document}");
    let mape = document["summary"]["tpot_mape"].as_f64().unwrap();
    assert!(mape < 0.15, "{mape}");
}

#[test]
fn a_bad_result_is_one_line_with_file_and_field_and_writes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let text = result(4, 9.0).replace("\"completed\": 40", "\"completed\": null");
    std::fs::write(folder.path().join("bad.json"), text).unwrap();
    let args = ["import", "vllm-bench", "bad.json", "--gpu", "h100", "--parallelism", "tp2"];
    let output = run(folder.path(), &args);
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(3), "{message}");
    assert!(message.contains("bad.json") && message.contains("completed"), "{message}");
    assert_eq!(message.trim().lines().count(), 1, "{message}");
    assert!(!folder.path().join("points.csv").exists());
}
