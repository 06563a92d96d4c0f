//! Measures MoE layers on this CPU, writes the profile, reads it back and asks it for a latency.
//!
//! `cargo run --release --example profile`

#![expect(clippy::print_stdout, reason = "an example shows what it computed")]

use std::time::Duration;

use moe_frontier::latency::LayerQuery;
use moe_frontier::latency::measured::format;
use moe_frontier::latency::measured::table::{Policy, Transfer};
use moe_frontier::measure::Request;
use moe_frontier::measure::sampling::BlockRule;
use moe_frontier::{Error, LatencyTable, Result, measure, read_profile};

fn main() -> Result<()> {
    let profile = measure(&Request {
        widths: vec![(256, 512)],
        experts: vec![4],
        tokens: Some(vec![1, 4, 16, 64]),
        budget: Duration::from_secs(10),
        rule: BlockRule::QUICK,
        ..Request::default()
    })?;
    let path = std::env::temp_dir().join(format!("moe-frontier-{}.json", std::process::id()));
    format::write(&path, &profile, true)?;

    // Reading checks the seal, the version and that every number can be true.
    let profile = read_profile(&path)?;
    println!("{}, {} cells", profile.key.device.name(), profile.cells.len());
    let policy = Policy { transfer: Transfer::Nearby, include_noisy: true };
    let table = LatencyTable::new(&profile, policy)?;
    let asked = LayerQuery {
        hidden: 256,
        inter: 512,
        experts: 4,
        top_k: 2,
        gated: true,
        weight_bits: 16.0,
        tokens: 8.0,
        active_experts: 4.0,
        max_rows: 6.0,
    };
    match table.moe_layer(&asked) {
        Ok(latency) => println!(
            "8 tokens: {} ({} to {}), {}",
            latency.value,
            latency.lo(),
            latency.hi(),
            latency.source.label(),
        ),
        Err(missing) => println!("8 tokens: {missing}"),
    }
    std::fs::remove_file(&path).map_err(|e| Error::io("remove", &path, e))
}
