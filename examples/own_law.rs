//! Ranks under a loss law of your own: one trait, four questions.
//!
//! The law here is `L = E + A / N^alpha + B / D^beta` with `N` the geometric mean of active and total
//! parameters. Its coefficients are made up.
//!
//! `cargo run --example own_law`

#![expect(clippy::print_stdout, reason = "an example shows what it computed")]

use std::sync::Arc;

use moe_frontier::law::{Closure, Extrapolation, Template, TokenCurve};
use moe_frontier::units::Flops;
use moe_frontier::{ArchitectureLaw, RankOptions, Result, Scaling, rank};

#[derive(Debug)]
struct GeometricMean;

impl ArchitectureLaw for GeometricMean {
    fn mapping(&self) -> &'static str {
        "N is the geometric mean of active and total parameters"
    }

    /// The law says something about every architecture.
    fn admits(&self, _: &Closure) -> std::result::Result<(), String> {
        Ok(())
    }

    /// The loss of one architecture in nats per token against training tokens.
    fn curve(&self, at: &Closure) -> TokenCurve {
        let n = (at.n_active * at.n_total).sqrt();
        let floor = 1.7 + 406.0 * n.powf(-0.34);
        TokenCurve::new(floor, (411.0, -0.28))
    }

    /// How far each variable lies outside the fitted runs, as a factor; 1 is at their end.
    fn extrapolation(&self, at: &Closure, tokens: f64) -> Extrapolation {
        Extrapolation {
            train_flops: 6.0 * at.n_active * tokens / 1e22,
            n_active: at.n_active / 7e9,
            tokens: tokens / 1e12,
            tokens_per_param: tokens / at.n_active / 100.0,
            experts: at.experts as f64 / 64.0,
        }
    }

    /// Standard deviation of the law's residual within its runs, in nats.
    fn residual_nats(&self) -> f64 {
        0.01
    }
}

fn main() -> Result<()> {
    let law = Scaling::new("geometric-mean", Arc::new(GeometricMean), Template::ludziejewski2025());
    let report = rank(&RankOptions {
        own_laws: vec![law],
        // A published law beside it; the first law lists its candidates.
        law: "abnar2025".into(),
        train_flops: Some(Flops(1e22)),
        draws: 200,
        ..RankOptions::on("h100")
    })?
    .report;
    println!("{}", report.summary[0]);
    for answer in &report.laws {
        let words = answer.winner.map_or("refused".to_owned(), |e| format!("{e} experts"));
        println!("{} ({}): {words}", answer.law, answer.mapping);
    }
    Ok(())
}
