//! Fits: coefficients of a published form from training runs, with what they are worth.
//!
//! Huber loss on the residuals of ln L (Hoffmann et al. 2022, arXiv 2203.15556), L-BFGS from many
//! starts, resampling over runs for the joint spread of the coefficients, and a refusal where the
//! runs cannot tell the coefficients apart.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use serde::Serialize;

use crate::law::file::{self, FORMS, LawFile};
use crate::law::fit::forms::{Form, MOST, coefficients};
use crate::law::fit::solve::{Objective, Solution, condition, minimise, minimise_from_afar};
use crate::law::{Range, Variable};
use crate::units::Flops;
use crate::{Error, Result};

pub mod downstream;
mod forms;
mod formula;
mod optima;
mod runs;
mod solve;

pub use formula::{Formula, Operator};
pub use optima::{FittedOptimum, check_optimum};
pub use runs::{Filter, Mapping, Origin, Reading, Run, Runs};

/// Runs that a form must have per coefficient.
const RUNS_PER_COEFFICIENT: usize = 3;
/// Random points tried for each start that is kept.
const TRIES: usize = 25;
/// Condition number from which the coefficients cannot be told apart. Grids of runs that determine a
/// form have 2e2 (Clark et al. 2022) to 8e3; tokens that follow the size in every run give 1e6.
const MOST_CONDITION: f64 = 1e5;
/// Starts count as having found the best when their Huber sum is within this share of it.
const LANDED: f64 = 0.01;
/// Residuals below this share of delta are as good as none: made-up runs can be met exactly.
const EXACT: f64 = 1e-3;

/// How to fit.
#[derive(Clone, Copy, Debug)]
pub struct FitOptions {
    /// Residual in ln L beyond which the loss grows linearly; published fits used 1e-3 to 1e-1.
    pub huber_delta: f64,
    /// Starts of the search.
    pub starts: usize,
    /// Resamplings of the runs.
    pub resamples: usize,
    /// Seed of starts and resamplings.
    pub seed: u64,
    /// Whether to give coefficients that cannot be told apart all the same.
    pub force: bool,
    /// Training budget whose best models are given with their spread, if any.
    pub optimum_at: Option<Flops>,
}

impl Default for FitOptions {
    fn default() -> Self {
        Self {
            huber_delta: 1e-3,
            starts: 40,
            resamples: 200,
            seed: 1,
            force: false,
            optimum_at: None,
        }
    }
}

/// Which runs to leave out and predict.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum HoldOut {
    /// The runs with the largest value of a variable.
    Largest(Variable),
    /// The runs with this value of a variable.
    Value(Variable, f64),
}

/// Median and 90 % interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    /// 5th percentile.
    pub p5: f64,
    /// Median.
    pub p50: f64,
    /// 95th percentile.
    pub p95: f64,
}

/// One coefficient.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Coefficient {
    /// Name.
    pub name: String,
    /// Value.
    pub value: f64,
    /// Spread over the resamplings; none without them.
    pub spread: Option<Spread>,
    /// Whether it lies at a bound of the search, so that the runs do not determine it.
    pub at_bound: bool,
}

/// How a held-out part was predicted.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct HeldOut {
    /// The variable and value that were left out.
    pub variable: Variable,
    /// Its value.
    pub value: f64,
    /// Runs left out.
    pub runs: usize,
    /// Root mean square error of ln L on them.
    pub rmsle: f64,
    /// The same on the runs that were fitted.
    pub rmsle_fitted: f64,
}

/// Error of the fit at one size.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct SizeError {
    /// N as the form counts it.
    pub n: f64,
    /// Runs of it.
    pub runs: usize,
    /// Root mean square error of ln L.
    pub rmsle: f64,
}

/// A fit.
#[derive(Clone, Debug, Serialize)]
pub struct Fit {
    /// Rows fitted.
    pub rows: usize,
    /// Runs they belong to.
    pub runs: usize,
    /// Root mean square error of ln L.
    pub rmsle: f64,
    /// Largest error of ln L.
    pub largest_residual: f64,
    /// Huber sum.
    pub huber_sum: f64,
    /// Delta of the Huber loss.
    pub huber_delta: f64,
    /// Starts of the search.
    pub starts: usize,
    /// Starts that ended within 1 % of the best Huber sum.
    pub starts_landed: usize,
    /// Condition number of the Jacobian with columns of one length.
    pub condition: f64,
    /// The coefficients.
    pub coefficients: Vec<Coefficient>,
    /// Correlation of the coefficients over the resamplings, in their order.
    pub correlation: Vec<Vec<f64>>,
    /// Error by size.
    pub by_size: Vec<SizeError>,
    /// Prediction of a part that was left out.
    pub held_out: Option<HeldOut>,
    /// The best models of the budget that was asked about.
    pub optima: Vec<FittedOptimum>,
    /// What to know before using it.
    pub warnings: Vec<String>,
    /// The law, for a file.
    #[serde(skip)]
    pub law: LawFile,
}

/// Identifier of a form, and the variables that its runs must have.
///
/// # Errors
/// [`Error::Usage`] for a form that cannot be fitted.
pub fn variables(form: &str) -> Result<&'static [Variable]> {
    if form == crate::law::downstream::ID {
        return Ok(&downstream::VARIABLES);
    }
    Ok(known(form)?.variables())
}

fn known(form: &str) -> Result<Form> {
    if form == "tian2025" {
        return Err(Error::usage("--form", "tian2025 gives compute leverage, no loss to fit"));
    }
    Form::of(form).ok_or_else(|| crate::config::unknown_name("--form", form, FORMS.into_iter()))
}

/// Name of what a form is fitted to.
pub fn response(form: &str) -> &'static str {
    if form == crate::law::downstream::ID { downstream::RESPONSE } else { "loss" }
}

/// Steps that [`fit`] reports to its progress: one a search.
pub fn steps(options: &FitOptions, hold_out: Option<HoldOut>) -> usize {
    options.starts * if hold_out.is_some() { 2 } else { 1 } + options.resamples
}

/// Fits a form to runs; `source` says where they are from, and `progress` is told how many of the
/// [`steps`] are done, and which part is at work.
///
/// # Errors
/// [`Error::Unfit`] when the runs are too few, do not vary what the form describes, or do not tell
/// its coefficients apart; [`Error::Usage`] for an unknown form or a hold-out that leaves nothing.
pub fn fit(
    form: &str,
    runs: &[Run],
    source: &str,
    options: &FitOptions,
    hold_out: Option<HoldOut>,
    progress: &mut dyn FnMut(usize, &str),
) -> Result<Fit> {
    crate::error::positive("--huber-delta", options.huber_delta)?;
    if options.optimum_at.is_some() {
        check_optimum(form)?;
    }
    let id = form;
    let form = known(form)?;
    check(form, runs)?;
    progress(0, "starts");
    let (best, landed) = best_of_starts(form, runs, options);
    let weights = vec![1.0; runs.len()];
    let objective = objective(form, runs, &weights, options);
    let condition = condition(&objective.jacobian(&best.searched));
    identified(condition, landed, options)?;
    progress(options.starts, "resamples");
    let draws = resample(form, runs, &best, options);
    progress(options.starts + options.resamples, "hold-out");
    let mut residuals = objective.residuals(&best.searched);
    let largest_residual = residuals.iter().fold(0.0, |a: f64, r| a.max(r.abs()));
    let held_out = hold_out.map(|h| held_out(form, runs, h, options)).transpose()?;
    let parameters = form.parameters();
    let values = coefficients(parameters, &best.searched);
    let rmsle = rms(&residuals);
    let mean_loss = runs.iter().map(|r| r.ln_loss.exp()).sum::<f64>() / runs.len() as f64;
    let by_size = by_size(form, runs, &mut residuals);
    let coefficients = parameters
        .iter()
        .enumerate()
        .map(|(i, parameter)| {
            let share = (best.searched[i] - parameter.low) / (parameter.high - parameter.low);
            Coefficient {
                name: parameter.name.into(),
                value: values[i],
                spread: spread(draws.iter().map(|d| d[i]).collect()),
                at_bound: !(0.005..=0.995).contains(&share),
            }
        })
        .collect();
    let mut fit = Fit {
        rows: runs.len(),
        runs: groups(runs).len(),
        rmsle,
        largest_residual,
        huber_sum: best.huber,
        huber_delta: options.huber_delta,
        starts: options.starts,
        starts_landed: landed,
        condition,
        coefficients,
        correlation: correlation(&draws),
        by_size,
        held_out,
        optima: Vec::new(),
        warnings: Vec::new(),
        law: LawFile {
            schema: file::SCHEMA.into(),
            schema_version: file::SCHEMA_VERSION.into(),
            form: id.into(),
            source: source.into(),
            names: parameters.iter().map(|p| p.name.to_owned()).collect(),
            coefficients: values,
            residual_nats: rmsle * mean_loss,
            fixed: form.constant().map(|v| runs[0].value(v)),
            ranges: ranges(form, runs),
            draws,
            fit: None,
        },
    };
    if let Some(budget) = options.optimum_at {
        fit.optima = optima::optima(&fit.law, runs, budget)?;
    }
    fit.warnings = warnings(&fit);
    fit.law.fit = serde_json::to_value(&fit).ok();
    Ok(fit)
}

fn objective<'a>(
    form: Form,
    runs: &'a [Run],
    weights: &'a [f64],
    options: &FitOptions,
) -> Objective<'a> {
    Objective { form, runs, weights, delta: options.huber_delta }
}

/// Refuses runs that cannot determine the form.
fn check(form: Form, runs: &[Run]) -> Result<()> {
    let least = RUNS_PER_COEFFICIENT * form.parameters().len();
    if groups(runs).len() < least {
        return Err(Error::unfit(
            "fit",
            format!(
                "{} runs for {} coefficients; at least {least} are needed",
                groups(runs).len(),
                form.parameters().len()
            ),
        ));
    }
    for parameter in form.parameters() {
        if let Some(variable) = parameter.needs
            && !varies(runs, variable, 1e-6)
        {
            return Err(Error::unfit(
                "fit",
                format!(
                    "`{}` is the same in all runs, so that coefficient `{}` cannot be determined",
                    variable.name(),
                    parameter.name
                ),
            ));
        }
    }
    match form.constant() {
        // Whole checkpoints apart, as at the end of one schedule.
        Some(variable) if varies(runs, variable, 0.01) => Err(Error::unfit(
            "fit",
            format!("this form has no coefficient for `{}`, but the runs vary it", variable.name()),
        )),
        _ => Ok(()),
    }
}

fn varies(runs: &[Run], variable: Variable, share: f64) -> bool {
    let values = || runs.iter().map(|r| r.value(variable));
    let (low, high) = (values().fold(f64::INFINITY, f64::min), values().fold(0.0, f64::max));
    high - low > share * high
}

/// The best solution over all starts, and how many ended within 1 % of it.
fn best_of_starts(form: Form, runs: &[Run], options: &FitOptions) -> (Solution, usize) {
    let weights = vec![1.0; runs.len()];
    let objective = objective(form, runs, &weights, options);
    let mut rng = ChaCha8Rng::seed_from_u64(options.seed);
    let starts = options.starts.max(1);
    let mut points: Vec<(f64, [f64; MOST])> = (0..starts * TRIES)
        .map(|_| {
            let mut point = [0.0; MOST];
            for (value, parameter) in point.iter_mut().zip(form.parameters()) {
                let share: f64 = rng.random();
                *value = parameter.low + (parameter.high - parameter.low) * share;
            }
            let value = objective.value(&point);
            (if value.is_finite() { value } else { f64::INFINITY }, point)
        })
        .collect();
    points.sort_by(|a, b| a.0.total_cmp(&b.0));
    points.truncate(starts);
    let solutions: Vec<Solution> =
        points.par_iter().map(|(_, point)| minimise_from_afar(objective, point)).collect();
    let least = solutions.iter().map(|s| s.huber).fold(f64::INFINITY, f64::min);
    let exact = runs.len() as f64 * solve::huber(EXACT * options.huber_delta, options.huber_delta);
    let enough = (least * (1.0 + LANDED)).max(exact);
    let landed = solutions.iter().filter(|s| s.huber <= enough).count();
    let best = solutions.into_iter().min_by(|a, b| a.huber.total_cmp(&b.huber));
    (best.unwrap_or(Solution { searched: [0.0; MOST], huber: f64::INFINITY }), landed)
}

/// Refuses coefficients that the runs cannot tell apart, or that only one start found.
fn identified(condition: f64, landed: usize, options: &FitOptions) -> Result<()> {
    if options.force {
        return Ok(());
    }
    if condition.is_nan() || condition > MOST_CONDITION {
        return Err(Error::unfit(
            "fit",
            format!(
                "the runs do not tell the coefficients apart (condition number {condition:.1e}); add \
                 runs that vary size, tokens and experts independently, or use --force"
            ),
        ));
    }
    if landed < 2 && options.starts > 1 {
        return Err(Error::unfit(
            "fit",
            format!(
                "only one of {} starts reached the best coefficients; use more --starts, or --force",
                options.starts
            ),
        ));
    }
    Ok(())
}

/// Positions of each run's rows.
fn groups(runs: &[Run]) -> Vec<Vec<usize>> {
    let most = runs.iter().map(|r| r.group).max().map_or(0, |g| g + 1);
    let mut groups = vec![Vec::new(); most];
    for (position, run) in runs.iter().enumerate() {
        groups[run.group].push(position);
    }
    groups.retain(|g| !g.is_empty());
    groups
}

/// Coefficients refitted to resampled runs, each search starting from the best coefficients.
fn resample(form: Form, runs: &[Run], best: &Solution, options: &FitOptions) -> Vec<Vec<f64>> {
    let groups = groups(runs);
    (0..options.resamples)
        .into_par_iter()
        .map(|i| {
            let mut rng = ChaCha8Rng::seed_from_u64(options.seed);
            rng.set_stream(1 + i as u64);
            let mut weights = vec![0.0; runs.len()];
            for _ in 0..groups.len() {
                for &position in &groups[rng.random_range(0..groups.len())] {
                    weights[position] += 1.0;
                }
            }
            let solution = minimise(objective(form, runs, &weights, options), &best.searched);
            coefficients(form.parameters(), &solution.searched)
        })
        .collect()
}

fn held_out(form: Form, runs: &[Run], hold_out: HoldOut, options: &FitOptions) -> Result<HeldOut> {
    let (variable, value) = match hold_out {
        HoldOut::Value(variable, value) => (variable, value),
        HoldOut::Largest(variable) => {
            (variable, runs.iter().map(|r| r.value(variable)).fold(f64::NAN, f64::max))
        }
    };
    let out = |run: &&Run| (run.value(variable) / value - 1.0).abs() < 1e-9;
    let left: Vec<Run> = runs.iter().filter(out).cloned().collect();
    let kept: Vec<Run> = runs.iter().filter(|r| !out(r)).cloned().collect();
    if left.is_empty() {
        return Err(Error::usage(
            "--hold-out",
            format!("no run has {} = {value}", variable.name()),
        ));
    }
    check(form, &kept)?;
    let (best, _) = best_of_starts(form, &kept, options);
    let error = |runs: &[Run]| {
        let weights = vec![1.0; runs.len()];
        rms(&objective(form, runs, &weights, options).residuals(&best.searched))
    };
    Ok(HeldOut {
        variable,
        value,
        runs: left.len(),
        rmsle: error(&left),
        rmsle_fitted: error(&kept),
    })
}

fn rms(values: &[f64]) -> f64 {
    (values.iter().map(|v| v * v).sum::<f64>() / values.len() as f64).sqrt()
}

fn by_size(form: Form, runs: &[Run], residuals: &mut [f64]) -> Vec<SizeError> {
    let mut sizes: Vec<(f64, Vec<f64>)> = Vec::new();
    for (run, residual) in runs.iter().zip(residuals) {
        let n = run.value(form.size());
        match sizes.iter_mut().find(|(size, _)| (size / n - 1.0).abs() < 1e-9) {
            Some((_, errors)) => errors.push(*residual),
            None => sizes.push((n, vec![*residual])),
        }
    }
    sizes.sort_by(|a, b| a.0.total_cmp(&b.0));
    sizes
        .into_iter()
        .map(|(n, errors)| SizeError { n, runs: errors.len(), rmsle: rms(&errors) })
        .collect()
}

/// 5th, 50th and 95th percentile, by the nearest rank.
pub(crate) fn spread(mut values: Vec<f64>) -> Option<Spread> {
    values.retain(|v| v.is_finite());
    values.sort_by(f64::total_cmp);
    let last = values.len().checked_sub(1)?;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a share of a position in a list"
    )]
    let at = |share: f64| values[(share * last as f64).round() as usize];
    Some(Spread { p5: at(0.05), p50: at(0.5), p95: at(0.95) })
}

fn correlation(draws: &[Vec<f64>]) -> Vec<Vec<f64>> {
    let Some(count) = draws.first().map(Vec::len).filter(|_| draws.len() > 1) else {
        return Vec::new();
    };
    let total = draws.len() as f64;
    let means: Vec<f64> =
        (0..count).map(|i| draws.iter().map(|d| d[i]).sum::<f64>() / total).collect();
    let covariance = |i: usize, j: usize| {
        draws.iter().map(|d| (d[i] - means[i]) * (d[j] - means[j])).sum::<f64>() / total
    };
    let entry = |i: usize, j: usize| {
        let scale = (covariance(i, i) * covariance(j, j)).sqrt();
        // A coefficient that never moved is correlated with nothing.
        if scale > 0.0 { covariance(i, j) / scale } else { 0.0 }
    };
    (0..count).map(|i| (0..count).map(|j| entry(i, j)).collect()).collect()
}

fn ranges(form: Form, runs: &[Run]) -> Vec<Range> {
    let range = |variable: Variable, value: &dyn Fn(&Run) -> f64| {
        let low = runs.iter().map(value).fold(f64::INFINITY, f64::min);
        let high = runs.iter().map(value).fold(0.0, f64::max);
        Range::new(variable, low, high)
    };
    let mut ranges: Vec<Range> = form
        .variables()
        .iter()
        .filter(|&&v| form.constant() != Some(v))
        .map(|&v| range(v, &|run: &Run| run.value(v)))
        .collect();
    if form != Form::Clark && form.variables().contains(&Variable::NActive) {
        let flops = |run: &Run| 6.0 * run.value(Variable::NActive) * run.value(Variable::Tokens);
        ranges.push(range(Variable::TrainFlops, &flops));
        let ratio = |run: &Run| run.value(Variable::Tokens) / run.value(Variable::NActive);
        ranges.push(range(Variable::TokensPerParam, &ratio));
    }
    ranges
}

fn warnings(fit: &Fit) -> Vec<String> {
    let mut warnings = Vec::new();
    for coefficient in fit.coefficients.iter().filter(|c| c.at_bound) {
        warnings.push(format!(
            "`{}` lies at a bound of its search: the runs do not determine it",
            coefficient.name
        ));
    }
    if fit.starts_landed * 10 < fit.starts {
        warnings.push(format!(
            "only {} of {} starts ended within 1 % of the best",
            fit.starts_landed, fit.starts
        ));
    }
    if fit.rows > fit.runs {
        warnings.push(
            "several rows belong to one run: losses before the end of a schedule are biased, do not \
             trust an exponent of tokens that rests on them"
                .into(),
        );
    }
    warnings
}

#[cfg(test)]
mod tests;
