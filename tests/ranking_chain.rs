//! The whole chain from loss law to deployment on a roofline device, against figures that were
//! computed independently from the same published law and vendor constants.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::path::Path;

use common::{h100, inputs, provenance};
use moe_frontier::law;
use moe_frontier::plan::inputs::{Lifetime, RankInputs, Target};
use moe_frontier::plan::market::{Entry, Market};
use moe_frontier::plan::outcome::{CandidateKind, RankReport};
use moe_frontier::plan::rank::rank;
use moe_frontier::report::{rank_text, write_all};
use moe_frontier::serving::{ServiceLevel, StepFactors};
use moe_frontier::units::Seconds;

fn report(inputs: &RankInputs) -> RankReport {
    let law = law::load_scaling("ludziejewski2025").unwrap();
    rank(law.as_ref(), &h100(), inputs, provenance()).unwrap()
}

#[test]
fn cheapest_deployments_at_equal_loss_agree_with_the_independent_table() {
    // (experts, serving $/M output tokens, training in units of the budget, total parameters in B)
    let table = [
        (1, 0.526, 3.21, 16.6),
        (4, 0.413, 2.45, 31.5),
        (8, 0.451, 1.67, 54.1),
        (16, 0.526, 1.27, 86.9),
        (32, 1.164, 0.99, 141.6),
    ];
    let law = law::load_scaling("ludziejewski2025").unwrap();
    let inputs = inputs();
    let market = Market::new(law.as_ref(), &h100(), &inputs, 120).unwrap();
    for (family, &(experts, serve, train, total)) in table.iter().enumerate() {
        let quotes: Vec<_> = market
            .entries
            .iter()
            .filter(|e| e.family == family)
            .filter_map(|e| Some((e, e.priced.quote(&inputs, &StepFactors::ONE)?.cost.0)))
            .collect();
        // The independent sketch walked a coarser grid of sizes: compare at its size, and require
        // that the finer grid finds nothing dearer.
        let distance = |e: &Entry| (e.priced.geometry.total_params() / (total * 1e9)).ln().abs();
        let (same_size, cost) =
            quotes.iter().min_by(|a, b| distance(a.0).total_cmp(&distance(b.0))).unwrap();
        let trained = same_size.point.train_flops().0 / 1e23;
        assert!(distance(same_size) < 0.02, "{experts} experts: no candidate of {total}B");
        assert!((cost / serve - 1.0).abs() <= 0.10, "{experts} experts: {cost} against {serve}");
        assert!(
            (trained / train - 1.0).abs() <= 0.10,
            "{experts} experts: {trained} against {train}"
        );
        let cheapest = quotes.iter().map(|q| q.1).fold(f64::INFINITY, f64::min);
        assert!((0.80..=1.02).contains(&(cheapest / serve)), "{experts} experts: {cheapest}");
    }
}

#[test]
fn the_seed_papers_finding_comes_out_of_the_chain() {
    // Four or eight experts are cheapest to serve at equal quality, 32 the cheapest to train.
    let report = report(&RankInputs { lifetime: Lifetime::Tokens(1e14), ..inputs() });
    let best: Vec<_> = report.candidates.iter().filter(|c| c.best_of_experts).collect();
    let serve = |c: &&&moe_frontier::plan::outcome::Candidate| {
        c.serve_usd_per_million_output_tokens.unwrap_or(f64::INFINITY)
    };
    let cheapest = best.iter().min_by(|a, b| serve(a).total_cmp(&serve(b))).unwrap();
    assert!([4, 8].contains(&cheapest.experts), "{}", cheapest.experts);
    let easiest = best.iter().min_by(|a, b| a.train_usd.total_cmp(&b.train_usd)).unwrap();
    assert_eq!(easiest.experts, 32);
}

#[test]
fn more_served_tokens_move_the_answer_to_fewer_experts() {
    let winner = |lifetime: f64| {
        let report = report(&RankInputs { lifetime: Lifetime::Tokens(lifetime), ..inputs() });
        let best = report.candidates.iter().filter(|c| c.best_of_experts);
        best.min_by(|a, b| a.total_usd.unwrap().total_cmp(&b.total_usd.unwrap())).unwrap().experts
    };
    assert_eq!(winner(1e8), 32);
    assert!(winner(1e14) <= 8);
}

#[test]
fn a_report_is_consistent_with_itself() {
    let report = report(&inputs());
    let target = report.law.target_loss_nats;
    let best: Vec<_> = report.candidates.iter().filter(|c| c.best_of_experts).collect();
    assert_eq!(best.iter().map(|c| c.experts).collect::<Vec<_>>(), [1, 4, 8, 16, 32]);
    let shares: f64 = best.iter().filter_map(|c| c.p_best).sum();
    assert!((shares - 1.0).abs() < 1e-9, "{shares}");
    for c in report.candidates.iter().filter(|c| c.kind != CandidateKind::LossOptimal) {
        assert!((c.loss_nats - target).abs() < 1e-6, "{} nats", c.loss_nats);
        assert!(c.tokens_per_param <= 414.0 * (1.0 + 1e-6));
        assert!(c.train_flops <= 3.5e23 * (1.0 + 1e-6));
        assert!((c.train_flops / (6.0 * c.n_active * c.tokens) - 1.0).abs() < 1e-12);
        if let (Some(total), Some(serve)) = (c.total_usd, c.serve_usd_per_million_output_tokens) {
            assert!((total / (c.train_usd + serve * 1e6) - 1.0).abs() < 1e-9);
            assert!(c.tpot_ms.unwrap() <= 20.0 * (1.0 + 1e-9));
            assert!(c.utilisation.unwrap() <= 1.0 + 1e-9);
        } else {
            assert!(c.infeasible.is_some(), "no cost and no reason");
        }
    }
    let front: Vec<_> = report.frontier.iter().map(|&i| &report.candidates[i]).collect();
    assert!(front.windows(2).all(|w| w[0].train_usd <= w[1].train_usd
        && w[0].serve_usd_per_million_output_tokens > w[1].serve_usd_per_million_output_tokens));
    for change in &report.crossovers {
        if let Some(interval) = change.interval {
            assert!(interval.lo <= interval.hi);
        }
    }
}

#[test]
fn the_same_seed_gives_the_same_report() {
    assert_eq!(report(&inputs()), report(&inputs()));
}

#[test]
fn a_report_survives_its_json() {
    let report = report(&inputs());
    let text = serde_json::to_string(&report).unwrap();
    assert_eq!(serde_json::from_str::<RankReport>(&text).unwrap(), report);
    assert!(!text.contains("NaN") && !text.contains("Infinity"));
}

#[test]
fn a_report_becomes_a_table_and_a_page_and_is_read_back() {
    let report = report(&inputs());
    let bytes = serde_json::to_vec_pretty(&report).unwrap();
    assert_eq!(RankReport::from_bytes(Path::new("rank.json"), &bytes).unwrap(), report);
    let text = rank_text(&report, false);
    assert!(text.lines().all(|line| line.chars().count() <= 100), "{text}");
    assert!(report.warnings.iter().all(|w| text.contains(&w[..20])), "{text}");
    let folder = tempfile::tempdir().unwrap();
    let files = write_all(&report, folder.path()).unwrap();
    assert_eq!(files.len(), 13);
    let page = std::fs::read_to_string(folder.path().join("report.html")).unwrap();
    assert_eq!(page.matches("<svg ").count(), 5);
    assert!(report.summary.iter().all(|line| page.contains(line)), "{:?}", report.summary);
}

#[test]
fn a_service_level_out_of_reach_is_refused_with_the_nearest_one() {
    let level = ServiceLevel { tpot: Some(Seconds::from_us(10.0)), ttft: None };
    let law = law::load_scaling("ludziejewski2025").unwrap();
    let error =
        rank(law.as_ref(), &h100(), &RankInputs { level, ..inputs() }, provenance()).unwrap_err();
    assert_eq!(error.exit_code(), 5);
    assert!(error.to_string().contains("nearest feasible --tpot"), "{error}");
}

#[test]
fn a_target_loss_below_the_law_is_refused() {
    let target = Target::Loss { loss: moe_frontier::units::Nats(1.3), experts: 4 };
    let law = law::load_scaling("ludziejewski2025").unwrap();
    let error =
        rank(law.as_ref(), &h100(), &RankInputs { target, ..inputs() }, provenance()).unwrap_err();
    assert_eq!(error.exit_code(), 5, "{error}");
}
