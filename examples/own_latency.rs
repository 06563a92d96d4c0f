//! Prices a deployment with latencies of your own: one trait, two questions.
//!
//! A model answers what it has measured and refuses the rest, which the shipped tables then answer.
//!
//! `cargo run --example own_latency`

#![expect(clippy::print_stdout, reason = "an example shows what it computed")]

use std::sync::Arc;

use moe_frontier::latency::{Absent, Answer, Latency, Operation, Query, Source};
use moe_frontier::serving::Traffic;
use moe_frontier::units::Seconds;
use moe_frontier::{EstimateOptions, LatencyModel, Result, SourceOptions, estimate};

/// A grouped GEMM that reads its weights at a fixed share of HBM bandwidth. Made up.
struct MyKernel {
    bytes_per_s: f64,
}

impl LatencyModel for MyKernel {
    fn answer(&self, query: &Query) -> Answer {
        // Only decode of the layer that was measured: anything else is refused, never guessed.
        let Query::Moe(layer) = query else { return Err(Absent::Operation) };
        if layer.rows > 4096.0 {
            return Err(Absent::Key(format!("{} rows were not measured", layer.rows).into()));
        }
        let floor = Seconds(layer.bytes() / 3.35e12);
        Ok(Latency {
            value: Seconds(layer.bytes() / self.bytes_per_s).max(floor),
            log_sigma: 0.03,
            floor,
            arithmetic: 0.0,
            source: Source::Measured,
            origin: 0,
        })
    }

    fn provenance(&self, operation: Operation) -> Option<String> {
        (operation == Operation::Moe).then(|| "my kernel, made up".into())
    }
}

fn main() -> Result<()> {
    let traffic = Traffic::Closed { concurrency: 16.0, requests_per_client: f64::INFINITY };
    let tables = EstimateOptions {
        device: Some("h100".into()),
        tp: 2,
        ..EstimateOptions::of("mixtral-8x7b", traffic)
    };
    let mine = EstimateOptions {
        source: SourceOptions {
            own: vec![("my kernel".into(), Arc::new(MyKernel { bytes_per_s: 2.8e12 }))],
            ..SourceOptions::default()
        },
        ..tables.clone()
    };
    for (name, options) in [("shipped tables", &tables), ("my kernel first", &mine)] {
        let found = estimate(options)?;
        println!(
            "{name}: TPOT {}, {:.0} output tokens/s, routed experts {} of a step",
            found.served.tpot,
            found.output_rate().0,
            Seconds(found.served.step.moe.seconds),
        );
    }
    Ok(())
}
