//! Fits an engine's constants to runs of your own and predicts with them.
//!
//! `cargo run --example calibrate`

#![expect(clippy::print_stdout, reason = "an example shows what it computed")]

use std::fs;

use moe_frontier::serving::Traffic;
use moe_frontier::{Error, EstimateOptions, Result, estimate};

/// One row a run. These are made up: a server that is slower than the usual one.
const RUNS: &str = "\
source_id,model,gpu,n_gpus,parallelism,engine,weights_precision,workload,isl,osl,concurrency_or_rate,output_tok_s_total,ttft_ms,tpot_ms
a,mixtral-8x7b,h100_sxm,2,tp2,vllm,bf16,\"closed loop, fixed concurrency\",1000,200,1,85,70,11.5
b,mixtral-8x7b,h100_sxm,2,tp2,vllm,bf16,\"closed loop, fixed concurrency\",1000,200,8,430,160,17.5
c,mixtral-8x7b,h100_sxm,2,tp2,vllm,bf16,\"closed loop, fixed concurrency\",1000,200,32,1150,420,25.0
";

fn main() -> Result<()> {
    let path = std::env::temp_dir().join(format!("moe-frontier-runs-{}.csv", std::process::id()));
    fs::write(&path, RUNS).map_err(|e| Error::io("write", &path, e))?;
    let traffic = Traffic::Closed { concurrency: 16.0, requests_per_client: f64::INFINITY };
    let prior = EstimateOptions {
        device: Some("h100".into()),
        tp: 2,
        ..EstimateOptions::of("mixtral-8x7b", traffic)
    };
    let own = EstimateOptions { calibrate: Some(path.clone()), ..prior.clone() };
    for (name, options) in [("prior", &prior), ("own runs", &own)] {
        let found = estimate(options)?;
        let interval = |half: f64| (100.0 * (half.exp() - 1.0)).round();
        println!(
            "{name}: TPOT {} +{}%, TTFT {} +{}%",
            found.served.tpot,
            interval(found.halves.tpot),
            found.served.ttft,
            interval(found.halves.ttft),
        );
    }
    fs::remove_file(&path).map_err(|e| Error::io("remove", &path, e))
}
