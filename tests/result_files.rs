//! Benchmark results and traces as tools write them.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};

use moe_frontier::plan::request_trace::RequestTrace;
use moe_frontier::plan::results::vllm_bench::{Average, COLUMNS, Server, read};

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/results").join(name)
}

fn cell(name: &str, column: &str) -> String {
    let text = |t: &str| Some(t.to_owned());
    let server = Server { gpu: text("h100"), parallelism: text("tp1"), ..Server::default() };
    let rows = read(&path(name), &server, Average::Mean).unwrap();
    rows[0][COLUMNS.iter().position(|c| *c == column).unwrap()].clone()
}

#[test]
fn results_of_other_tools_become_points_with_their_engine() {
    for name in ["a17_sglang.jsonl", "a17_backend.jsonl"] {
        assert_eq!(cell(name, "engine"), "sglang");
        assert_eq!(cell(name, "model"), "Qwen/Qwen3-30B-A3B");
    }
    for name in ["a17_sglang.jsonl", "a18_summary.json"] {
        for (column, value) in [
            ("concurrency_or_rate", "16"),
            ("isl", "1024"),
            ("osl", "128"),
            ("ttft_ms", "150"),
            ("tpot_ms", "14.5"),
            ("quality_flag", ""),
        ] {
            assert_eq!(cell(name, column), value, "{name}: {column}");
        }
    }
}

#[test]
fn a_trace_with_date_stamps_is_read_by_its_header() {
    let trace = RequestTrace::read(&path("a16_dates.csv")).unwrap();
    assert_eq!(trace.left_out(), 0);
    assert!((trace.lengths().input - 607.8).abs() < 0.1);
}
