//! Sizes of a deployment under recorded bursts.
//!
//! `tests/data/results/a23_burst.csv` holds 250 requests in 8 s, every 100 s.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

fn trace() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/results/a23_burst.csv");
    path.to_str().unwrap().to_owned()
}

fn run(more: &[&str]) -> Output {
    let mut args = vec!["size", "--model", "mixtral-8x7b", "--device", "h100"];
    args.extend_from_slice(&["--ttft-p99", "2s", "--tpot-p99", "60ms"]);
    args.extend_from_slice(more);
    Command::new(env!("CARGO_BIN_EXE_moe-frontier")).args(&args).output().unwrap()
}

/// The document of a size that must be found.
fn size(more: &[&str]) -> Value {
    let mut args = more.to_vec();
    args.push("--json");
    let output = run(&args);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{more:?}: {errors}");
    serde_json::from_slice(&output.stdout).unwrap()
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is not a number"))
}

fn kept(plan: &Value) -> bool {
    number(&plan["ttft_p99_ms"]) <= 2000.0 && number(&plan["tpot_p99_ms"]) <= 60.0
}

#[test]
fn bursts_are_served_at_every_rate_with_gpus_in_proportion() {
    let trace = trace();
    let mut before: Option<(f64, f64)> = None;
    for rate in ["1", "2", "5", "7", "10", "20"] {
        let answer = size(&["--trace", &trace, "--rate", rate]);
        let (rate, gpus) = (rate.parse::<f64>().unwrap(), number(&answer["gpus"]));
        eprintln!("rate {rate}: {gpus} GPUs, binding {}", answer["binding_constraint"]);
        if let Some((slower, fewer)) = before {
            assert!(gpus >= fewer, "{rate}: {gpus} after {fewer}");
            // One more replica of up to four GPUs for rounding.
            let most = fewer * rate / slower + 4.0;
            assert!(gpus <= most, "{rate}: {gpus}, at most {most}");
        }
        before = Some((rate, gpus));
        assert!(number(&answer["goodput"]) >= 0.98, "{}", answer["goodput"]);
        for margin in answer["margins"].as_array().unwrap() {
            assert!(number(&margin["left"]) >= 0.0, "{margin}");
            let name = margin["limit"].as_str().unwrap().split('_').next().unwrap();
            let printed = number(&answer[format!("{name}_ms")]["p99_hi"]);
            assert!((number(&margin["upper_ms"]) - printed).abs() < 1e-9, "{margin}");
        }
        for plan in answer["alternatives"].as_array().unwrap() {
            assert!(kept(plan), "{plan}");
            assert!(number(&plan["usd_per_hour"]) >= number(&answer["usd_per_hour"]));
        }
        for failed in answer["failed"].as_array().unwrap() {
            let reason = failed["reason"].as_str().unwrap();
            let named = ["ttft_p99: ", "tpot_p99: ", "memory: ", "throughput: ", "latency: "];
            assert!(named.iter().any(|name| reason.starts_with(name)), "{reason}");
        }
    }
}

#[test]
fn a_trace_tells_the_replicas_that_it_needs_over_time() {
    let trace = trace();
    let answer = size(&["--trace", &trace, "--rate", "2.5"]);
    let windows = answer["replicas_over_time"].as_array().unwrap();
    assert!(!windows.is_empty());
    for window in windows {
        assert!(number(&window["mean"]) <= number(&window["peak"]), "{window}");
    }
    // A burst fills a window of 10 s and an eighth of one of 600 s.
    let peak = |i: usize| number(&windows[i]["peak"]);
    assert!(peak(0) > peak(windows.len() - 1), "{windows:?}");
}

#[test]
fn a_router_that_knows_the_load_needs_no_more_gpus_for_bursts() {
    let trace = trace();
    let gpus =
        |router| number(&size(&["--trace", &trace, "--rate", "10", "--router", router])["gpus"]);
    assert!(gpus("least-loaded") <= gpus("random"));
}

#[test]
fn a_limit_that_does_not_bind_changes_nothing_in_the_document() {
    let trace = trace();
    let args = ["--trace", trace.as_str(), "--rate", "5"];
    let before = size(&args);
    let mut more = args.to_vec();
    more.extend_from_slice(&["--ttft-mean", "1000s", "--tpot-p50", "1000s"]);
    let after = size(&more);
    for field in ["gpus", "replicas", "max_batch", "ttft_ms", "tpot_ms", "binding_constraint"] {
        assert_eq!(before[field], after[field], "{field}");
    }
}

#[test]
fn what_cannot_be_had_names_the_binding_limit_of_the_nearest_plan() {
    let trace = trace();
    let output = run(&["--trace", &trace, "--rate", "20", "--max-gpus", "4"]);
    assert_eq!(output.status.code(), Some(5));
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains("nearest feasible service level: ttft_p99"), "{error}");
    assert!(error.contains("; binding: "), "{error}");
}

#[test]
fn columns_of_another_name_are_mapped_and_empty_requests_are_counted() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("own.csv");
    let rows = (0..1500).map(|i| format!("{},{},30", f64::from(i) / 4.0, 200 * (i % 10).min(1)));
    let text = format!("when,prompt,completion\n{}\n", rows.collect::<Vec<String>>().join("\n"));
    std::fs::write(&file, text).unwrap();
    let file = file.to_str().unwrap();
    let plain = run(&["--trace", file, "--rate", "4"]);
    let error = String::from_utf8(plain.stderr).unwrap();
    assert!(plain.status.code() == Some(3) && error.contains("--column arrival_s="), "{error}");
    let args = [
        "--trace",
        file,
        "--rate",
        "4",
        "--column",
        "arrival_s=when,input_tokens=prompt",
        "--column",
        "output_tokens=completion",
    ];
    let answer = size(&args);
    assert_eq!(answer["assumptions"]["trace_left_out"], 150);
    let text = String::from_utf8(run(&args).stdout).unwrap();
    assert!(text.contains("150 request(s)"), "{text}");
}
