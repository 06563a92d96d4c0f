//! Fits of made-up runs with known coefficients, and of the published runs where they are at hand.

use super::*;
use crate::law::{Inputs, load_scaling};
use rand_distr::StandardNormal;
use std::path::PathBuf;

/// Runs of the default law on a grid like its own, with log-normal noise.
fn grid(sigma: f64, seed: u64) -> Vec<Run> {
    let law = load_scaling("ludziejewski2025").unwrap();
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut runs = Vec::new();
    for experts in [1_usize, 2, 4, 8, 16, 32] {
        for n in [79e6, 160e6, 321e6, 683e6, 1.35e9, 2.7e9] {
            for ratio in [2.0, 8.0, 30.0, 70.0] {
                let (tokens, slice) = (n * ratio, law.slice(experts).unwrap());
                let noise: f64 = rng.sample(StandardNormal);
                let loss = slice.loss(n, tokens).0 * (sigma * noise).exp();
                let values = [
                    (Variable::NActive, n),
                    (Variable::Tokens, tokens),
                    (Variable::Experts, experts as f64),
                ];
                runs.push(Run::new(Inputs::new(values).unwrap(), loss, runs.len(), 0));
            }
        }
    }
    runs
}

fn fit(
    form: &str,
    runs: &[Run],
    source: &str,
    options: &FitOptions,
    hold_out: Option<HoldOut>,
) -> Result<Fit> {
    super::fit(form, runs, source, options, hold_out, &mut |_, _| ())
}

fn options(starts: usize, resamples: usize) -> FitOptions {
    FitOptions { starts, resamples, ..FitOptions::default() }
}

#[test]
fn the_default_law_is_found_again_from_its_own_losses() {
    let options = FitOptions { force: true, ..options(16, 0) };
    let fit = fit("ludziejewski2025", &grid(0.0, 1), "test", &options, None).unwrap();
    assert!(fit.rmsle < 3e-4, "{}", fit.rmsle);
    let law = fit.law.clone().into_law().unwrap().scaling().unwrap();
    let truth = load_scaling("ludziejewski2025").unwrap();
    for experts in [1, 4, 32] {
        let budget = crate::units::Flops(1e21);
        let got = law.slice(experts).unwrap().optimum(budget);
        let expected = truth.slice(experts).unwrap().optimum(budget);
        assert!((got.n_active / expected.n_active - 1.0).abs() < 0.1, "{got:?} {expected:?}");
        assert!((got.loss.0 - expected.loss.0).abs() < 5e-3, "{got:?} {expected:?}");
    }
}

#[test]
fn resampling_gives_joint_draws_that_a_ranking_can_use() {
    let options = FitOptions { force: true, ..options(4, 20) };
    let fit = fit("ludziejewski2025", &grid(0.002, 2), "test", &options, None).unwrap();
    assert_eq!(fit.law.draws.len(), 20);
    let law = fit.law.clone().into_law().unwrap().scaling().unwrap();
    // Differences between expert counts are better known than levels: the reason for joint draws.
    let budget = crate::units::Flops(1e21);
    let losses = |experts: usize| -> Vec<f64> {
        law.drawn_slices(experts).iter().map(|s| s.optimum(budget).loss.0).collect()
    };
    let sd = |values: &[f64]| {
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        rms(&values.iter().map(|v| v - mean).collect::<Vec<_>>())
    };
    let (eight, sixteen) = (losses(8), losses(16));
    let difference: Vec<f64> = eight.iter().zip(&sixteen).map(|(a, b)| a - b).collect();
    assert!(sd(&difference) < 0.7 * sd(&eight), "{} {}", sd(&difference), sd(&eight));
    assert!(fit.correlation.iter().enumerate().all(|(i, row)| (row[i] - 1.0).abs() < 1e-9));
}

#[test]
fn the_optimum_of_a_budget_has_a_spread_that_holds_it_and_the_truth() {
    let budget = crate::units::Flops(1e20);
    let options = FitOptions { force: true, optimum_at: Some(budget), ..options(6, 40) };
    let fit = fit("ludziejewski2025", &grid(0.002, 2), "test", &options, None).unwrap();
    assert_eq!(fit.optima.len(), 6);
    let truth = load_scaling("ludziejewski2025").unwrap();
    for optimum in &fit.optima {
        assert_eq!(optimum.of, Some(Variable::Experts));
        let (n, loss) = (optimum.n_active_spread.unwrap(), optimum.loss_spread.unwrap());
        assert!(n.p5 < n.p95 && loss.p5 < loss.p95, "{optimum:?}");
        assert!((0.9 * n.p5..=1.1 * n.p95).contains(&optimum.n_active.unwrap()), "{optimum:?}");
        let experts = [1, 2, 4, 8, 16, 32]
            .into_iter()
            .find(|e| (f64::from(*e) - optimum.value.unwrap()).abs() < 0.5)
            .unwrap();
        let expected = truth.slice(usize::try_from(experts).unwrap()).unwrap().optimum(budget);
        // The stated accuracy of such a fit: a few thousandths of a nat at the optimum.
        assert!((optimum.loss_nats - expected.loss.0).abs() < 9e-3, "{optimum:?}");
    }
    let none = FitOptions { optimum_at: Some(budget), ..options };
    let error = super::fit("clark2022", &grid(0.0, 1), "t", &none, None, &mut |_, _| ());
    assert_eq!(error.unwrap_err().exit_code(), 2);
}

#[test]
fn the_same_seed_gives_the_same_fit() {
    let options = FitOptions { force: true, ..options(3, 3) };
    let once = fit("ludziejewski2025", &grid(0.002, 2), "test", &options, None).unwrap();
    let again = fit("ludziejewski2025", &grid(0.002, 2), "test", &options, None).unwrap();
    assert_eq!(once.law, again.law);
}

#[test]
fn runs_that_cannot_determine_the_form_are_refused() {
    let all = grid(0.002, 3);
    let refused = |runs: &[Run], reason: &str| {
        let error = fit("ludziejewski2025", runs, "test", &options(2, 0), None).unwrap_err();
        assert_eq!(error.exit_code(), 4);
        assert!(error.to_string().contains(reason), "{error}");
    };
    refused(&all[..20], "at least 33");
    let eight = all.iter().filter(|r| (r.value(Variable::Experts) - 8.0).abs() < 1e-9);
    let mut many: Vec<Run> = eight.cycle().take(60).cloned().collect();
    for (group, run) in many.iter_mut().enumerate() {
        run.group = group;
    }
    refused(&many, "`experts` is the same in all runs");
    let error = fit("clark2022", &all, "test", &options(2, 0), None).unwrap_err();
    assert!(error.to_string().contains("no coefficient for `tokens`"), "{error}");
    assert_eq!(fit("tian2025", &all, "test", &options(2, 0), None).unwrap_err().exit_code(), 2);
    assert_eq!(fit("clarke", &all, "test", &options(2, 0), None).unwrap_err().exit_code(), 2);
}

#[test]
fn coefficients_that_the_runs_do_not_tell_apart_are_refused() {
    // Tokens always twenty times the size: the two terms of a dense law are one.
    let runs: Vec<Run> = (0..30)
        .map(|i| {
            let n = 1e8 * 1.2f64.powi(i);
            let values = [(Variable::NActive, n), (Variable::Tokens, 20.0 * n)];
            let loss = 1.8 + 480.0 * n.powf(-0.34) + 2000.0 * (20.0 * n).powf(-0.34);
            let loss = loss * (1.0 + 0.002 * (f64::from(i) * 7.3).sin());
            let loss = loss * (1.0 + 0.002 * (f64::from(i) * 7.3).sin());
            Run::new(Inputs::new(values).unwrap(), loss, i.unsigned_abs() as usize, 0)
        })
        .collect();
    let error = fit("hoffmann2022", &runs, "test", &options(6, 0), None).unwrap_err();
    assert_eq!(error.exit_code(), 4);
    assert!(error.to_string().contains("tell the coefficients apart"), "{error}");
}

/// The published runs, or `None` with a loud line when they are not at hand.
fn clark_runs(router: &str, filters: &[&str], form: &str) -> Option<Vec<Run>> {
    let root = std::env::var("MOE_FRONTIER_DATA").unwrap_or_else(|_| "../shared/data".into());
    let path = PathBuf::from(root).join("clark2022/curves.csv.gz");
    if !path.exists() {
        println!("SKIPPED: no {}; set MOE_FRONTIER_DATA to the data folder", path.display());
        return None;
    }
    let mut reading = Reading { run_column: Some("hyper_id".into()), ..Reading::default() };
    let size = if form == "yun2024" { "n_dense" } else { "n_active" };
    let sources = [
        format!("{size}=dense_parameter_count"),
        "tokens=step*524288".into(),
        "experts=num_experts".into(),
        "loss=loss_validation".into(),
    ];
    reading.mappings = sources.iter().map(|m| m.parse().unwrap()).collect();
    let routers = format!("router_type=Dense,{router}");
    let common = ["k=1", "routing_frequency=0.5", "flop_increase=1", routers.as_str()];
    reading.filters = common.iter().chain(filters).map(|f| f.parse().unwrap()).collect();
    reading.skip_empty = true;
    Some(reading.read(&path, variables(form).unwrap()).unwrap().runs)
}

#[test]
fn published_coefficients_have_their_errors_on_the_released_runs() {
    let law = |router| crate::law::clark2022::Clark2022::published(Some(router)).unwrap();
    let cases = [
        ("S-Base", "s-base", 52, 0.00886, 23, 0.00809),
        ("RL-R", "rl-r", 53, 0.01822, 24, 0.01554),
        ("Hash", "hash", 51, 0.01260, 22, 0.00886),
    ];
    for (router, variant, count, error, few, error_of_few) in cases {
        let filter = format!("router_type={router}");
        let Some(runs) = clark_runs(router, &["step=249000", &filter], "clark2022") else { return };
        let law = law(variant).coefficients;
        let rmsle = |runs: &[&Run]| {
            let errors = runs.iter().map(|r| {
                let (n, e) = (r.value(Variable::NActive), r.value(Variable::Experts));
                law.loss(n, e).0.ln() - r.ln_loss
            });
            rms(&errors.collect::<Vec<_>>())
        };
        let all: Vec<&Run> = runs.iter().collect();
        assert_eq!(all.len(), count);
        assert!((rmsle(&all) - error).abs() <= 1e-5, "{router}: {}", rmsle(&all));
        let some: Vec<&Run> = runs
            .iter()
            .filter(|r| [4.0, 8.0, 16.0, 32.0].contains(&r.value(Variable::Experts)))
            .collect();
        assert_eq!(some.len(), few);
        assert!((rmsle(&some) - error_of_few).abs() <= 1e-5, "{router}: {}", rmsle(&some));
    }
}

#[test]
fn the_released_runs_are_fitted_at_least_as_well_as_published() {
    // Router, runs, published root mean square error, our Huber sum and error.
    let cases = [
        ("S-Base", 60, 0.0089, 3.37e-4, Some(0.00778)),
        ("RL-R", 61, 0.0182, 3.40e-4, None),
        ("Hash", 59, 0.0126, 3.09e-4, None),
    ];
    for (router, count, published, huber, computed) in cases {
        let Some(runs) = clark_runs(router, &["step=249000"], "clark2022") else { return };
        assert_eq!(runs.len(), count);
        let fit = fit("clark2022", &runs, "test", &options(40, 0), None).unwrap();
        assert!(fit.rmsle <= published, "{router}: {}", fit.rmsle);
        assert!(fit.huber_sum <= huber, "{router}: {}", fit.huber_sum);
        if let Some(rmsle) = computed {
            assert!((fit.rmsle / rmsle - 1.0).abs() <= 0.02, "{router}: {}", fit.rmsle);
        }
    }
}

#[test]
fn resampled_coefficients_overlap_with_the_computed_intervals() {
    let Some(runs) = clark_runs("S-Base", &["step=249000"], "clark2022") else { return };
    let fit = fit("clark2022", &runs, "test", &options(40, 200), None).unwrap();
    let computed = [
        (-0.092, -0.080),
        (-0.189, -0.095),
        (0.007, 0.018),
        (1.087, 1.194),
        (1.87, 3.71),
        (92.0, 552.0),
    ];
    for (coefficient, (low, high)) in fit.coefficients.iter().zip(computed) {
        let spread = coefficient.spread.unwrap();
        assert!((low..=high).contains(&coefficient.value), "{coefficient:?}");
        assert!(spread.p5 <= high && spread.p95 >= low, "{coefficient:?}");
    }
}

#[test]
fn held_out_errors_are_those_computed_before() {
    let Some(runs) = clark_runs("S-Base", &["step=249000"], "clark2022") else { return };
    let held = |hold_out| {
        let fit = fit("clark2022", &runs, "test", &options(40, 0), Some(hold_out)).unwrap();
        fit.held_out.unwrap()
    };
    let experts = held(HoldOut::Value(Variable::Experts, 32.0));
    assert_eq!(experts.runs, 5);
    assert!(experts.rmsle <= 0.0095, "{experts:?}");
    let size = held(HoldOut::Largest(Variable::NActive));
    assert_eq!(size.runs, 10);
    assert!(size.rmsle <= 0.022, "{size:?}");
}

#[test]
fn the_form_of_yun_fits_the_released_schedules() {
    let filters = ["step>=30000", "num_experts<=32", "seed=42,1"];
    let Some(runs) = clark_runs("S-Base", &filters, "yun2024") else { return };
    assert_eq!(runs.len(), 828);
    let options = FitOptions { force: true, ..options(3, 0) };
    let fit = fit("yun2024", &runs, "test", &options, None).unwrap();
    assert!(fit.rmsle <= 0.0101, "{}", fit.rmsle);
    assert!(fit.warnings.iter().any(|w| w.contains("schedule")));
}
