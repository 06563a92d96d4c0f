//! Recorded kernel tables and measured servers, for the tests and benches of the serving model.

#![allow(dead_code, reason = "each test is a crate of its own and uses a part of this file")]

use std::path::{Path, PathBuf};

use moe_frontier::latency::tables::engine_tables::EngineTables;
use moe_frontier::latency::tables::import;

/// The folder of recorded data, or `None` with a loud note.
pub(crate) fn data() -> Option<PathBuf> {
    let data = std::env::var("MOE_FRONTIER_DATA").unwrap_or_else(|_| "../shared/data".into());
    let folder = PathBuf::from(data);
    if folder.join("serving_points/dev.csv").is_file() {
        return Some(folder);
    }
    eprintln!("SKIPPED: no {}/serving_points (set MOE_FRONTIER_DATA)", folder.display());
    None
}

/// Every kernel table of the H100 in that folder.
///
/// # Panics
/// When a table cannot be read.
pub(crate) fn tables(folder: &Path) -> EngineTables {
    let files = [
        "moe_perf_h100_vllm_0.24.0.parquet",
        "moe_bf16_h100.csv",
        "gemm_bf16_h100.csv",
        "attention_bf16_hd128_h100.csv",
        "custom_allreduce_h100_vllm_0.24.0.csv",
        "nccl_h100_2.29.2.csv",
    ]
    .map(|name| folder.join("aiconfigurator").join(name));
    import::aiconfigurator(&files, "test").expect("recorded tables are read")
}
