//! Whether a ranking makes sense: identities and signs that hold whatever was measured.
//!
//! Checks the `rank.json` that `MOE_FRONTIER_RANK_JSON` names, and else one that the program makes
//! from published peaks. The strict reader of the library reads it.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use moe_frontier::plan::outcome::{Candidate, CandidateKind, Interval, RankReport};
use tempfile::TempDir;

/// Names the ranking to be checked.
const VARIABLE: &str = "MOE_FRONTIER_RANK_JSON";

/// The ranking, with the folder that holds it when it was made here.
fn ranking() -> (RankReport, Option<TempDir>) {
    let (path, folder) = match std::env::var_os(VARIABLE) {
        Some(named) => (PathBuf::from(named), None),
        None => made_here(),
    };
    let report = RankReport::from_bytes(&path, &fs::read(&path).unwrap()).unwrap();
    (report, folder)
}

fn made_here() -> (PathBuf, Option<TempDir>) {
    let folder = tempfile::tempdir().unwrap();
    let status = Command::new(env!("CARGO_BIN_EXE_moe-frontier"))
        .args(["rank", "--profile", "h100", "--train-flops", "1e22", "--draws", "200"])
        .current_dir(folder.path())
        .env("MOE_FRONTIER_PROFILES", folder.path())
        .output()
        .unwrap();
    assert!(status.status.success(), "{}", String::from_utf8_lossy(&status.stderr));
    (folder.path().join("out/rank.json"), Some(folder))
}

fn close(a: f64, b: f64, relative: f64) -> bool {
    (a - b).abs() <= relative * a.abs().max(b.abs())
}

fn ordered(interval: Option<Interval>, what: &str) {
    if let Some(i) = interval {
        assert!(0.0 <= i.lo && i.lo <= i.hi && i.hi.is_finite(), "{what}: {i:?}");
    }
}

/// The number that an assumption starts with.
fn assumed(report: &RankReport, name: &str) -> Option<f64> {
    let value = &report.assumptions.iter().find(|a| a.name == name)?.value;
    value.split_whitespace().next()?.parse().ok()
}

fn training_adds_up(c: &Candidate) {
    assert!(c.experts >= 1 && c.top_k >= 1 && c.top_k <= c.experts);
    assert!(c.n_active > 0.0 && c.n_total >= c.n_active * (1.0 - 1e-12));
    // Laws count no norms: two a layer and the last one.
    let norms = (2 * c.num_layers + 1) as f64 * c.hidden_size as f64;
    assert!(c.experts > 1 || close(c.n_total, c.n_active + norms, 1e-9), "dense: all are active");
    assert!(c.tokens > 0.0 && c.loss_nats > 0.0 && c.extrapolation >= 1.0);
    assert!(close(c.train_flops, 6.0 * c.n_active * c.tokens, 1e-9));
    assert!(close(c.tokens_per_param, c.tokens / c.n_active, 1e-9));
    assert!(c.train_usd > 0.0 && c.weights_bytes > 0.0);
    ordered(c.train_usd_interval, "training");
}

fn serving_adds_up(c: &Candidate) {
    let Some(usd) = c.serve_usd_per_million_output_tokens else {
        assert!(c.infeasible.as_ref().is_some_and(|why| !why.is_empty()), "no price, no reason");
        assert!(c.total_usd.is_none());
        return;
    };
    assert!(c.infeasible.is_none() && usd > 0.0);
    assert!(c.output_tokens_per_s_per_gpu.unwrap() > 0.0);
    let (gpus, replica) = (c.gpus.unwrap(), c.gpus_per_replica.unwrap());
    assert!(replica >= 1 && gpus >= replica && gpus % replica == 0);
    let utilisation = c.utilisation.unwrap();
    assert!(utilisation > 0.0 && utilisation <= 1.0 + 1e-9);
    assert!(c.batch.unwrap() > 0.0 && c.tpot_ms.unwrap() > 0.0 && c.ttft_ms.unwrap() > 0.0);
    assert!(c.binding.is_some() && c.latency_source.is_some());
    ordered(c.serve_usd_interval, "serving");
    if let Some(total) = c.total_usd {
        assert!(total > c.train_usd);
    }
    ordered(c.total_usd_interval, "total");
}

#[test]
fn costs_are_positive_and_add_up() {
    let (report, _folder) = ranking();
    assert!(!report.summary.is_empty() && report.candidates.len() >= 4);
    for candidate in &report.candidates {
        training_adds_up(candidate);
        serving_adds_up(candidate);
    }
    let served = |c: &&Candidate| c.serve_usd_per_million_output_tokens.is_some();
    assert!(report.candidates.iter().filter(served).count() > 0, "nothing can be served");
}

#[test]
fn each_expert_count_has_one_best_and_their_probabilities_sum_to_one() {
    let (report, _folder) = ranking();
    let mut best: BTreeMap<usize, usize> = BTreeMap::new();
    let mut sum = 0.0;
    for c in &report.candidates {
        assert_eq!(c.p_best.is_some(), c.best_of_experts);
        if let Some(p) = c.p_best {
            assert!((0.0..=1.0).contains(&p), "{p}");
            sum += p;
            *best.entry(c.experts).or_default() += 1;
        }
    }
    assert!(best.values().all(|n| *n == 1), "{best:?}");
    assert!(sum > 0.0, "no expert count is ever the cheapest");
    let all = sum + report.p_none;
    assert!((all - 1.0).abs() < 1e-9, "p_best and p_none sum to {all}");
    for map in [&report.decision_map.traffic, &report.decision_map.budget] {
        assert!(map.p_best.iter().flatten().all(|p| (0.0..=1.0).contains(p)));
        assert!(map.x.is_sorted() && map.y.is_sorted());
    }
}

#[test]
fn over_training_stays_within_its_limits_at_equal_loss() {
    let (report, _folder) = ranking();
    let most = assumed(&report, "--max-tokens-per-param").unwrap();
    let factor = assumed(&report, "--max-train-factor").unwrap();
    let budget = assumed(&report, "--train-flops");
    let curve = report.candidates.iter().filter(|c| c.kind != CandidateKind::LossOptimal);
    for c in curve {
        assert!(c.tokens_per_param <= most * (1.0 + 1e-9), "D/N of {}", c.tokens_per_param);
        assert!(close(c.loss_nats, report.law.target_loss_nats, 1e-9), "{}", c.loss_nats);
        if let Some(budget) = budget {
            assert!(c.train_flops <= budget * factor * (1.0 + 1e-9), "{:e} FLOPs", c.train_flops);
        }
    }
}

#[test]
fn the_frontier_trades_training_for_serving() {
    let (report, _folder) = ranking();
    assert!(!report.frontier.is_empty());
    let on: Vec<&Candidate> = report.frontier.iter().map(|&i| &report.candidates[i]).collect();
    for pair in on.windows(2) {
        assert!(pair[0].train_usd <= pair[1].train_usd);
        let serve = |c: &Candidate| c.serve_usd_per_million_output_tokens.unwrap();
        assert!(serve(pair[0]) >= serve(pair[1]));
    }
    let beaten = |c: &Candidate| {
        let serve = c.serve_usd_per_million_output_tokens.unwrap_or(f64::INFINITY);
        on.iter().any(|f| {
            f.train_usd <= c.train_usd && f.serve_usd_per_million_output_tokens.unwrap() <= serve
        })
    };
    let curve = report.candidates.iter().filter(|c| c.kind != CandidateKind::LossOptimal);
    for c in curve.filter(|c| c.serve_usd_per_million_output_tokens.is_some()) {
        assert!(beaten(c), "{} experts, {} is missing on the frontier", c.experts, c.train_usd);
    }
}

#[test]
fn curves_rise_and_latencies_lie_within_their_intervals() {
    let (report, _folder) = ranking();
    assert!(report.crossovers.iter().map(|c| c.lifetime_tokens).is_sorted());
    assert!(!report.total_cost.is_empty() && !report.layer_latency.is_empty());
    for curve in &report.total_cost {
        assert!(curve.points.iter().map(|p| p.lifetime_tokens).is_sorted());
        assert!(curve.points.iter().map(|p| p.total_usd).is_sorted());
    }
    for curve in &report.layer_latency {
        assert!(curve.points.iter().map(|p| p.tokens).is_sorted());
        for p in &curve.points {
            assert!(0.0 < p.lo_us && p.lo_us <= p.latency_us && p.latency_us <= p.hi_us, "{p:?}");
            assert!(p.roofline_us > 0.0, "{p:?}");
        }
    }
}

#[test]
fn nothing_that_the_answer_rests_on_is_hidden() {
    let (report, _folder) = ranking();
    for name in [
        "--experts",
        "--isl",
        "--osl",
        "--price",
        "--train-price",
        "--train-device",
        "--mfu",
        "--lifetime-tokens",
        "--max-tokens-per-param",
        "--max-train-factor",
        "--replica-sizes",
        "--kv-group",
        "--weights",
        "--skew",
    ] {
        let assumption = report.assumptions.iter().find(|a| a.name == name);
        assert!(assumption.is_some_and(|a| !a.value.is_empty() && !a.source.is_empty()), "{name}");
    }
    assert!(!report.profile.device.is_empty() && !report.law.source.is_empty());
    assert!(report.profile.read_bytes_per_s > 0.0 && report.profile.gemm_flops_per_s > 0.0);
}
