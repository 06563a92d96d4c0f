//! Kernel tables of other tools that are read, or left out by their true reason.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::process::Command;

use serde_json::Value;

/// What `import` says of a file of `tests/data/results`.
fn import(name: &str) -> Value {
    let folder = tempfile::tempdir().unwrap();
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/results").join(name);
    let out = folder.path().join("tables.mft");
    let mut command = Command::new(env!("CARGO_BIN_EXE_moe-frontier"));
    command.args(["import", "aiconfigurator", "--json"]).arg(file).arg("--out").arg(out);
    let output = command.output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{name}: {errors}");
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    document["devices"][0].clone()
}

fn counts(document: &Value, table: &str) -> (u64, u64) {
    let tables = document["tables"].as_array().unwrap();
    let of = tables.iter().find(|t| t["table"] == table).unwrap();
    (of["series"].as_u64().unwrap(), of["cells"].as_u64().unwrap())
}

#[test]
fn two_runs_of_one_cell_are_one_cell_with_its_spread() {
    let document = import("a16_repeat.csv");
    assert_eq!(counts(&document, "MoE"), (1, 1));
    // 1.060 and 1.066 ms: ln(1.066/1.060) / sqrt(2) apart.
    let moe = &document["tables"][0];
    assert_eq!(moe["repeated_series"], 1, "{moe}");
    let spread = moe["spread_rel"].as_f64().unwrap();
    assert!((spread - (1.066_f64 / 1.060).ln() / 2.0_f64.sqrt()).abs() < 1e-6, "{moe}");
}

#[test]
fn slots_of_replicated_experts_are_another_series() {
    let document = import("a17_slots.csv");
    assert_eq!(counts(&document, "MoE"), (2, 2));
}

#[test]
fn a_series_that_beats_the_roofline_goes_alone() {
    let document = import("a21_fast.csv");
    assert_eq!(counts(&document, "MoE").0, 2);
    let left = document["left_out"].as_array().unwrap();
    assert!(!left.is_empty(), "{document}");
}

#[test]
fn a_collective_without_a_backend_is_read() {
    let document = import("a22_allreduce.csv");
    assert_eq!(counts(&document, "all-reduce"), (1, 1));
}
