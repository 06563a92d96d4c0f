//! Laws from files in the ranking: their joint draws reach the probabilities, and a law with another
//! architecture (two experts a token, every second layer) goes through the whole chain.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::sync::Arc;

use moe_frontier::law;
use moe_frontier::law::file::{LawFile, SCHEMA, SCHEMA_VERSION};
use moe_frontier::plan::inputs::{Demand, Limits, Ranges, RankInputs, Target};
use moe_frontier::plan::outcome::RankReport;
use moe_frontier::serving::ServiceLevel;
use moe_frontier::units::Flops;

fn inputs() -> RankInputs {
    RankInputs {
        experts: vec![4, 8, 16, 32],
        target: Target::Budget { budget: Flops(1e22), experts: 4 },
        demand: Demand { rate: Some(20.0), utilisation: 1.0 },
        level: ServiceLevel { tpot: None, ttft: None },
        // Within the tokens per parameter of the usual runs, so that no over-training is in doubt.
        limits: Limits { max_tokens_per_param: 73.0, ..common::inputs().limits },
        // Nothing but the law is drawn.
        ranges: Ranges {
            mfu: (0.4, 0.4),
            mfu_log_sigma: 0.0,
            price: (1.0, 1.0),
            zipf: 0.0,
            shared_log_sigma: 0.0,
            own_log_sigma: 0.0,
        },
        draws: 200,
        ..common::inputs()
    }
}

fn report(law: &LawFile) -> RankReport {
    let file = tempfile::Builder::new().suffix(".json").tempfile().unwrap();
    std::fs::write(file.path(), serde_json::to_vec(law).unwrap()).unwrap();
    let law = law::load_scaling(file.path().to_str().unwrap()).unwrap();
    let inputs = RankInputs { template: Arc::clone(law.template()), ..inputs() };
    common::report(&law, &inputs).unwrap()
}

fn file(form: &str, named: &[(&str, f64)]) -> LawFile {
    LawFile {
        schema: SCHEMA.into(),
        schema_version: SCHEMA_VERSION.into(),
        form: form.into(),
        source: "test".into(),
        names: named.iter().map(|(name, _)| (*name).to_owned()).collect(),
        coefficients: named.iter().map(|(_, value)| *value).collect(),
        residual_nats: 0.0,
        fixed: None,
        ranges: Vec::new(),
        draws: Vec::new(),
        fit: None,
    }
}

fn published_form() -> LawFile {
    let named = [
        ("a", 35.91),
        ("alpha", -0.1889),
        ("delta", -0.2285),
        ("gamma", 0.0098),
        ("b", 35.98),
        ("beta", -0.1775),
        ("omega", 0.5529),
        ("zeta", -0.0259),
        ("e_start", 2.0732),
        ("e_max", 290.4521),
        ("c", 1.3637),
    ];
    file("ludziejewski2025", &named)
}

fn widest_interval(report: &RankReport) -> f64 {
    let widths = report.candidates.iter().filter_map(|c| {
        let interval = c.train_usd_interval?;
        Some((interval.hi - interval.lo) / c.train_usd)
    });
    widths.fold(0.0, f64::max)
}

#[test]
fn without_draws_and_residual_nothing_is_uncertain() {
    assert!(widest_interval(&report(&published_form())) < 1e-9);
}

#[test]
fn joint_draws_of_coefficients_reach_the_ranking() {
    let mut law = published_form();
    // The factor of tokens' exponent in the number of experts, within a tenth of its size.
    let zeta = law.names.iter().position(|n| n == "zeta").unwrap();
    law.draws = (0..50)
        .map(|i| {
            let mut draw = law.coefficients.clone();
            draw[zeta] *= 0.99 + 0.0004 * f64::from(i);
            draw
        })
        .collect();
    let with = report(&law);
    assert!(widest_interval(&with) > 0.01, "{}", widest_interval(&with));
    let shares: f64 =
        with.candidates.iter().filter(|c| c.best_of_experts).filter_map(|c| c.p_best).sum();
    assert!((shares + with.p_none - 1.0).abs() < 1e-9, "{shares}");
}

#[test]
fn an_error_that_all_expert_counts_share_cancels() {
    let mut law = published_form();
    let floor = law.names.iter().position(|n| n == "c").unwrap();
    law.draws = (0..50)
        .map(|i| {
            let mut draw = law.coefficients.clone();
            draw[floor] += 0.001 * f64::from(i - 25);
            draw
        })
        .collect();
    assert!(widest_interval(&report(&law)) < 1e-6);
}

#[test]
fn a_law_with_two_experts_in_every_second_layer_is_ranked() {
    // Demonstration coefficients, fitted to the runs of Clark et al. 2022; not the paper's.
    let named = [
        ("a", 26.78),
        ("alpha", 0.1718),
        ("b", 0.0644),
        ("beta", 0.0953),
        ("c", 9.872),
        ("gamma", 0.0749),
        ("f", 0.1805),
        ("d", -0.00223),
        ("e_start", 2.86),
        ("e_max", 94.1),
    ];
    let report = report(&file("yun2024", &named));
    let best: Vec<_> = report.candidates.iter().filter(|c| c.best_of_experts).collect();
    assert!(!best.is_empty());
    for candidate in best {
        assert_eq!(candidate.top_k, 2);
        // Every second layer has E experts of which two are active; what laws do not count: norms, routers.
        let (hidden, inter) =
            (candidate.hidden_size as f64, candidate.moe_intermediate_size as f64);
        let (layers, experts) = (candidate.num_layers as f64, candidate.experts as f64);
        let moe_layers = (layers / 2.0).round();
        let idle = moe_layers * (experts - 2.0) * 3.0 * hidden * inter;
        let uncounted = (2.0 * layers + 1.0) * hidden + moe_layers * experts * hidden;
        let by_hand = candidate.n_active + idle + uncounted;
        assert!((candidate.n_total / by_hand - 1.0).abs() < 1e-9, "{candidate:?} {by_hand}");
    }
}
