//! What a law errs beyond its runs: the largest runs of published sets are left out, predicted by a fit
//! to the others, and compared with the band that a ranking draws its error from.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use moe_frontier::law::beyond::{OWN_NATS, REALISED, SIZE_NATS, SLOPE_NATS};
use moe_frontier::law::fit::{FitOptions, Reading, Run, fit, variables};
use moe_frontier::law::{Inputs, LossLaw, Question, Variable, ask};

/// Half a 95 % band in standard deviations.
const Z95: f64 = 1.96;
/// The expert count of the reference, against which the slope in experts is drawn.
const REFERENCE: f64 = 4.0;

/// A file of the recorded data, or `None` with a loud note.
fn data(file: &str) -> Option<PathBuf> {
    let root = std::env::var("MOE_FRONTIER_DATA").unwrap_or_else(|_| "../shared/data".into());
    let path = PathBuf::from(root).join(file);
    if path.is_file() {
        return Some(path);
    }
    eprintln!("SKIPPED: no {} (set MOE_FRONTIER_DATA)", path.display());
    None
}

fn read(path: &Path, form: &str, mappings: &[&str], filters: &[&str]) -> Vec<Run> {
    let reading = Reading {
        mappings: mappings.iter().map(|m| m.parse().unwrap()).collect(),
        filters: filters.iter().map(|f| f.parse().unwrap()).collect(),
        skip_empty: true,
        ..Reading::default()
    };
    reading.read(path, variables(form).unwrap()).unwrap().runs
}

/// A fit to some runs: the law and its RMSLE.
fn fitted(form: &str, runs: &[Run]) -> (Box<dyn LossLaw>, f64) {
    let options = FitOptions { starts: 8, resamples: 0, force: true, ..FitOptions::default() };
    let fit = fit(form, runs, "test", &options, None, &mut |_, _| ()).unwrap();
    (fit.law.into_law().unwrap(), fit.rmsle)
}

fn loss(law: &dyn LossLaw, values: &[(Variable, f64)]) -> f64 {
    let inputs = Inputs::new(values.iter().copied()).unwrap();
    ask(law, &inputs, Question::Loss).unwrap().loss_nats
}

/// Error of each run beyond `largest` over half the band there.
fn clark_errors(path: &Path, router: &str, largest: f64) -> Vec<f64> {
    let routers = format!("router_type=Dense,{router}");
    let filters = ["step=249000", "k=1", "routing_frequency=0.5", "flop_increase=1", &routers];
    let mappings = [
        "n_active=dense_parameter_count",
        "experts=num_experts",
        "loss=loss_validation",
        "tokens=131.072e9",
    ];
    let all = read(path, "clark2022", &mappings, &filters);
    let size = |r: &Run| r.value(Variable::NActive);
    let (inside, outside): (Vec<Run>, Vec<Run>) = all.into_iter().partition(|r| size(r) <= largest);
    let end = inside.iter().map(size).fold(0.0, f64::max);
    let (law, rmsle) = fitted("clark2022", &inside);
    outside
        .iter()
        .map(|run| {
            let experts = run.value(Variable::Experts);
            let at = [(Variable::NActive, size(run)), (Variable::Experts, experts)];
            let predicted = loss(law.as_ref(), &at);
            let distance = (size(run) / end).ln();
            let slope = SLOPE_NATS * (experts / REFERENCE).ln();
            let own = OWN_NATS * distance + rmsle * predicted;
            (predicted - run.ln_loss.exp()) / (Z95 * (SIZE_NATS.hypot(slope) * distance).hypot(own))
        })
        .collect()
}

fn covered(errors: &[f64]) -> f64 {
    errors.iter().filter(|e| e.abs() <= 1.0).count() as f64 / errors.len() as f64
}

#[test]
fn larger_models_lie_in_the_band_of_fits_to_smaller_ones() {
    let Some(path) = data("clark2022/curves.csv.gz") else { return };
    let mut errors = Vec::new();
    for router in ["S-Base", "RL-R", "Hash"] {
        for largest in [1.4e8, 4e8] {
            let these = clark_errors(&path, router, largest);
            println!(
                "{router} up to {largest:e}: {} runs, {:.2} covered",
                these.len(),
                covered(&these)
            );
            errors.extend(these);
        }
    }
    let share = covered(&errors);
    assert!(errors.len() >= 80, "{} runs", errors.len());
    assert!((0.90..=0.98).contains(&share), "{share:.3} of {} runs lie in the band", errors.len());
}

#[test]
fn over_training_pays_the_share_that_is_drawn() {
    /// Tokens per parameter up to which runs are fitted, and those of the runs that gains start from.
    const FITTED: (f64, f64) = (85.0, 75.0);
    let Some(path) = data("gadre2024/runs.csv") else { return };
    let mut shares = Vec::new();
    for dataset in ["c4_original", "rpj"] {
        let mappings = ["n_active=n_params", "loss=loss_c4_val"];
        let filter = format!("dataset={dataset}");
        let all = read(&path, "hoffmann2022", &mappings, &[&filter]);
        let ratio = |r: &Run| r.value(Variable::Tokens) / r.value(Variable::NActive);
        let inside: Vec<Run> = all.iter().filter(|r| ratio(r) <= FITTED.0).cloned().collect();
        let (law, _) = fitted("hoffmann2022", &inside);
        let predict = |r: &Run| {
            let of = |v| (v, r.value(v));
            loss(law.as_ref(), &[of(Variable::NActive), of(Variable::Tokens)])
        };
        let mut starts: BTreeMap<u64, &Run> = BTreeMap::new();
        for run in inside.iter().filter(|r| ratio(r) >= FITTED.1) {
            starts.insert(run.value(Variable::NActive).to_bits(), run);
        }
        for run in all.iter().filter(|r| ratio(r) > FITTED.0) {
            if let Some(start) = starts.get(&run.value(Variable::NActive).to_bits()) {
                shares.push(
                    (start.ln_loss.exp() - run.ln_loss.exp()) / (predict(start) - predict(run)),
                );
            }
        }
    }
    let mean = shares.iter().sum::<f64>() / shares.len() as f64;
    let inside = |s: &&f64| (**s - REALISED.0).abs() <= Z95 * REALISED.1;
    let share = shares.iter().filter(inside).count() as f64 / shares.len() as f64;
    println!("{} runs, mean {mean:.3}, {share:.3} in the band: {shares:.2?}", shares.len());
    assert!(shares.len() >= 20, "{} runs", shares.len());
    assert!((mean - REALISED.0).abs() < 0.06, "over-training pays {mean:.3} of what fits say");
    assert!((0.90..=0.98).contains(&share), "{share:.3} of {} runs lie in the band", shares.len());
}
