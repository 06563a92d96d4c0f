//! Sizes a deployment for a request rate under a service level, and compares what it costs on two devices.
//!
//! `cargo run --example size`

#![expect(clippy::print_stdout, reason = "an example shows what it computed")]

use moe_frontier::plan::size::{Limit, Metric, Statistic};
use moe_frontier::units::Seconds;
use moe_frontier::{Result, SizeOptions, size};

fn main() -> Result<()> {
    let p99 = |metric, ms| Limit { metric, statistic: Statistic::P99, most: Seconds::from_ms(ms) };
    let sized = size(&SizeOptions {
        device: vec!["h100".into(), "h200".into()],
        limits: vec![p99(Metric::Ttft, 2000.0), p99(Metric::Tpot, 60.0)],
        requests: 4000,
        ..SizeOptions::of("mixtral-8x7b", 20.0)
    })?;
    let plans = std::iter::once(&sized.answer.best).chain(&sized.answer.others);
    for plan in plans {
        let (input, output) = plan.token_prices(&sized.inputs);
        println!(
            "{}: {} devices, ${:.2}/h, ${:.3}/M input, ${:.3}/M output, p99 TPOT {:.1} ms",
            plan.name(),
            plan.gpus(),
            plan.total_price().0,
            input.0,
            output.0,
            plan.simulated.tpot_s.p99.value * 1e3,
        );
    }
    println!("what binds: {}", sized.answer.binding);
    Ok(())
}
