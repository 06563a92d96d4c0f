//! Ranks expert counts by training plus serving cost, from the library.
//!
//! `cargo run --example rank`

#![expect(clippy::print_stdout, reason = "an example shows what it computed")]

use moe_frontier::units::{Flops, Seconds};
use moe_frontier::{RankOptions, Result, rank};

fn main() -> Result<()> {
    let options = RankOptions {
        train_flops: Some(Flops(1e22)),
        rate: Some(20.0),
        tpot: Some(Seconds::from_ms(50.0)),
        lifetime_tokens: Some(1e12),
        // Fewer draws than the default 1000: the probabilities below are good to 0.03.
        draws: 200,
        ..RankOptions::on("h100")
    };
    let report = rank(&options)?.report;
    println!("{}", report.summary[0]);
    for c in report.candidates.iter().filter(|c| c.best_of_experts) {
        println!(
            "{:>3} experts: {:.1} B active, {:.1} B in all, train ${:.0}, total ${:.0}, P(best) {:.2}",
            c.experts,
            c.n_active / 1e9,
            c.n_total / 1e9,
            c.train_usd,
            c.total_usd.unwrap_or(f64::NAN),
            c.p_best.unwrap_or(f64::NAN),
        );
    }
    Ok(())
}
