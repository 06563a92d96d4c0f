//! Engine constants from measured points: robust, with intervals, cross-validated.
//!
//! Five constants are fitted to the time per output token of one engine on one kind of host: the
//! factors on kernel and on arithmetic-bound time, the small kernels of a layer, the host's work per
//! sequence and its launches per layer. The batch of each row follows from its own measured times (Little's law), so that
//! the fit is not disturbed by rows near saturation. Residuals are logarithms with Huber's loss;
//! weak priors around the defaults carry what few rows cannot tell. The front end's time per
//! request is the median of what the time to first token leaves over.
//!
//! Huber, Robust estimation of a location parameter, Ann. Math. Statist. 35 (1964).

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use crate::plan::points::{self, LatencyOf, Point, Prediction, uniform_load};
use crate::serving::{EngineCosts, Layers, StepLoad, Traffic};
use crate::stats::Z95;
use crate::{Error, Result};

/// Fitted constants.
const FITTED: usize = 5;
/// Their names, for tables.
pub const NAMES: [&str; FITTED] =
    ["kernel_factor", "arithmetic_factor", "layer_us", "sequence_us", "decode_launch_us"];
/// Standard deviation of the prior on the logarithm of each: tables are good to some 30 %, host
/// costs are known to a factor.
const PRIOR: [f64; FITTED] = [0.3, 0.4, 1.5, 1.5, 2.0];
/// Logarithmic residual at which the loss turns linear: the agreement of two runs of one server.
const HUBER: f64 = 0.05;
/// A row further away than this many robust standard deviations, and than [`OUTLIER_LEAST`], is
/// inconsistent with its group.
const OUTLIER_SIGMAS: f64 = 5.0;
/// Least logarithmic residual of an outlier.
const OUTLIER_LEAST: f64 = 0.4;
/// Where the search starts for the launch cost of a decode layer, over its default: it hides behind
/// the kernels until it exceeds them, so that no slope leads there.
const LAUNCH_STARTS: [f64; 4] = [1.0, 20.0, 60.0, 200.0];
/// Rows that a fit needs; fewer keep the defaults.
const LEAST_ROWS: usize = 3;
/// Iterations of the fit; it converges in about ten.
const ITERATIONS: usize = 60;

/// One row prepared for fitting.
struct Observation {
    layers: Layers,
    decode: Kernels,
    with: Kernels,
    plain: f64,
    share: f64,
    measured: f64,
    index: usize,
}

/// Table time of one kind of step.
struct Kernels {
    seconds: f64,
    arithmetic: f64,
    load: StepLoad,
}

/// A fitted constant with its 95 % interval.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Fitted {
    /// Name with unit.
    pub name: &'static str,
    /// Value.
    pub value: f64,
    /// Lower end of the 95 % interval.
    pub lo: f64,
    /// Upper end of the 95 % interval.
    pub hi: f64,
}

/// Constants of one group of rows.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Calibration {
    /// Engine and origin of the rows.
    pub group: String,
    /// Rows that were fitted.
    pub rows: usize,
    /// Rows left out as inconsistent with the others.
    pub left_out: Vec<String>,
    /// The constants with intervals; empty when there were too few rows and the defaults stand.
    pub fitted: Vec<Fitted>,
    /// Constants to predict with.
    pub costs: EngineCosts,
}

/// Fits the constants of the rows of one group.
///
/// # Errors
/// When kernel times cannot be had for a row.
pub fn fit(group: &str, rows: &[&Point], latency: &LatencyOf) -> Result<Calibration> {
    let engine = rows.first().map_or("", |p| p.engine.as_str());
    let default = EngineCosts::of(engine);
    let mut observations = Vec::new();
    for (index, point) in rows.iter().enumerate() {
        observations.extend(observe(index, point, &default, latency)?);
    }
    let mut left_out = Vec::new();
    let mut result = Calibration {
        group: group.to_owned(),
        rows: observations.len(),
        left_out: Vec::new(),
        fitted: Vec::new(),
        costs: default.clone(),
    };
    if observations.len() >= LEAST_ROWS {
        let mut solution = solve(&observations, &default);
        let bad = outliers(&observations, &solution, &default);
        if !bad.is_empty() && observations.len() - bad.len() >= LEAST_ROWS {
            for o in observations.iter().filter(|o| bad.contains(&o.index)) {
                left_out.push(rows[o.index].id.clone());
            }
            observations.retain(|o| !bad.contains(&o.index));
            solution = solve(&observations, &default);
        }
        result.costs = solution.costs(&default);
        result.fitted = solution.intervals(&observations, &default);
        result.rows = observations.len();
    }
    result.costs.request_s = request_time(rows, &result.costs, latency)?;
    result.left_out = left_out;
    Ok(result)
}

/// A row at its own batch; `None` for rows that cannot be fitted.
fn observe(
    index: usize,
    point: &Point,
    costs: &EngineCosts,
    latency: &LatencyOf,
) -> Result<Option<Observation>> {
    let (Ok(setup), None, Some(tpot)) = (&point.setup, &point.excluded, point.measured.tpot) else {
        return Ok(None);
    };
    let decoding = tpot.0 * (setup.lengths.output - 1.0).max(1.0);
    let batch = match setup.traffic {
        Traffic::Open(rate) => rate * decoding,
        Traffic::Closed { concurrency, .. } => {
            concurrency * decoding / (decoding + point.measured.ttft.map_or(0.0, |t| t.0))
        }
        Traffic::Offline | Traffic::Burst(_) => return Ok(None),
    };
    let neutral = EngineCosts { kernel_factor: 1.0, arithmetic_factor: 1.0, ..costs.clone() }
        .on(&point.engine, &setup.device);
    let latency = latency(&setup.device, &point.engine)?;
    let routing = uniform_load(setup.model.num_experts, setup.model.top_k)?;
    let deployment = points::deployment(setup, &neutral, latency.as_ref(), &routing);
    let steps = match deployment.steps(batch.max(1.0), &setup.lengths) {
        Ok(steps) => steps,
        // A row that cannot be predicted cannot be fitted; it is listed with its reason elsewhere.
        Err(Error::Unfit { .. } | Error::Infeasible { .. } | Error::Usage { .. }) => {
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    let groups = setup.layout.attention_dp as f64;
    let kernels = |step: &crate::serving::Breakdown, load: StepLoad| Kernels {
        seconds: step.kernels(),
        arithmetic: step.arithmetic_s(),
        load: StepLoad { sequences: load.sequences / groups, ..load },
    };
    Ok(Some(Observation {
        layers: Layers::of(&setup.model),
        decode: kernels(&steps.decode, steps.load),
        with: kernels(&steps.with, steps.with_load),
        plain: steps.plain,
        share: steps.share,
        measured: tpot.0,
        index,
    }))
}

/// Logarithms of the fitted constants relative to their defaults.
#[derive(Clone, Copy)]
struct Solution([f64; FITTED]);

impl Solution {
    fn costs(&self, default: &EngineCosts) -> EngineCosts {
        let factor = |i: usize| self.0[i].exp();
        EngineCosts {
            kernel_factor: default.kernel_factor * factor(0),
            arithmetic_factor: (default.arithmetic_factor * factor(1)).max(1.0),
            layer_s: default.layer_s * factor(2),
            sequence_s: default.sequence_s * factor(3),
            decode_launch_s: default.decode_launch_s * factor(4),
            ..default.clone()
        }
    }

    fn intervals(&self, observations: &[Observation], default: &EngineCosts) -> Vec<Fitted> {
        let costs = self.costs(default);
        let values = [
            costs.kernel_factor,
            costs.arithmetic_factor,
            costs.layer_s * 1e6,
            costs.sequence_s * 1e6,
            costs.decode_launch_s * 1e6,
        ];
        let (normal, _) = normal_equations(observations, self, default);
        let residuals: Vec<f64> = observations.iter().map(|o| residual(o, &costs).abs()).collect();
        let sigma = (1.4826 * median(residuals)).max(0.01);
        (0..FITTED)
            .map(|i| {
                let variance = inverse_diagonal(&normal, i);
                let half = Z95 * (variance.max(0.0)).sqrt() * (sigma / HUBER).max(1.0);
                Fitted {
                    name: NAMES[i],
                    value: values[i],
                    lo: values[i] * (-half).exp(),
                    hi: values[i] * half.exp(),
                }
            })
            .collect()
    }
}

/// Predicted over measured, as a logarithm.
fn residual(o: &Observation, costs: &EngineCosts) -> f64 {
    let step = |k: &Kernels| {
        let kernels = costs.kernel_time(k.seconds, k.arithmetic);
        kernels + costs.overhead(&o.layers, &k.load, kernels)
    };
    ((o.plain * step(&o.decode) + o.share * step(&o.with)) / o.measured).ln()
}

/// The best fit from every start.
fn solve(observations: &[Observation], default: &EngineCosts) -> Solution {
    let mut best = (f64::INFINITY, Solution([0.0; FITTED]));
    for start in LAUNCH_STARTS {
        let mut at = Solution([0.0; FITTED]);
        at.0[FITTED - 1] = start.ln();
        let at = descend(at, observations, default);
        let loss = objective(observations, &at, default);
        if loss < best.0 {
            best = (loss, at);
        }
    }
    best.1
}

/// Weighted Gauss-Newton on the logarithms, priors included, with halved steps where it overshoots.
fn descend(mut at: Solution, observations: &[Observation], default: &EngineCosts) -> Solution {
    let mut loss = objective(observations, &at, default);
    for _ in 0..ITERATIONS {
        let (normal, right) = normal_equations(observations, &at, default);
        let step = solve_linear(normal, right);
        let mut scale = 1.0;
        let mut moved = false;
        for _ in 0..12 {
            let mut next = at;
            for (value, step) in next.0.iter_mut().zip(step) {
                *value -= scale * step;
            }
            let next_loss = objective(observations, &next, default);
            if next_loss < loss {
                moved = loss - next_loss > 1e-10;
                (at, loss) = (next, next_loss);
                break;
            }
            scale /= 2.0;
        }
        if !moved {
            break;
        }
    }
    at
}

fn objective(observations: &[Observation], at: &Solution, default: &EngineCosts) -> f64 {
    let costs = at.costs(default);
    let data: f64 = observations
        .iter()
        .map(|o| {
            let r = residual(o, &costs).abs() / HUBER;
            if r <= 1.0 { 0.5 * r * r } else { r - 0.5 }
        })
        .sum();
    let prior: f64 = (0..FITTED).map(|i| 0.5 * (at.0[i] / PRIOR[i]).powi(2)).sum();
    data + prior
}

type Matrix = [[f64; FITTED]; FITTED];

fn normal_equations(
    observations: &[Observation],
    at: &Solution,
    default: &EngineCosts,
) -> (Matrix, [f64; FITTED]) {
    const H: f64 = 1e-5;
    let costs = at.costs(default);
    let shifted: Vec<EngineCosts> = (0..FITTED)
        .map(|i| {
            let mut moved = *at;
            moved.0[i] += H;
            moved.costs(default)
        })
        .collect();
    let mut normal = [[0.0; FITTED]; FITTED];
    let mut right = [0.0; FITTED];
    for o in observations {
        let r = residual(o, &costs);
        let weight = 1.0 / (HUBER * r.abs().max(HUBER));
        let mut slope = [0.0; FITTED];
        for (slope, costs) in slope.iter_mut().zip(&shifted) {
            *slope = (residual(o, costs) - r) / H;
        }
        for i in 0..FITTED {
            for j in 0..FITTED {
                normal[i][j] += weight * slope[i] * slope[j];
            }
            right[i] += weight * slope[i] * r;
        }
    }
    for i in 0..FITTED {
        normal[i][i] += 1.0 / PRIOR[i].powi(2);
        right[i] += at.0[i] / PRIOR[i].powi(2);
    }
    (normal, right)
}

/// Solves a positive definite system by elimination; priors keep the pivots above zero.
fn solve_linear(mut matrix: Matrix, mut right: [f64; FITTED]) -> [f64; FITTED] {
    for k in 0..FITTED {
        let pivot = matrix[k];
        for i in k + 1..FITTED {
            let factor = matrix[i][k] / pivot[k];
            for j in k..FITTED {
                matrix[i][j] -= factor * pivot[j];
            }
            right[i] -= factor * right[k];
        }
    }
    for k in (0..FITTED).rev() {
        for j in k + 1..FITTED {
            right[k] -= matrix[k][j] * right[j];
        }
        right[k] /= matrix[k][k];
    }
    right
}

fn inverse_diagonal(matrix: &Matrix, index: usize) -> f64 {
    let mut unit = [0.0; FITTED];
    unit[index] = 1.0;
    solve_linear(*matrix, unit)[index]
}

/// Rows that do not belong to the others.
fn outliers(
    observations: &[Observation],
    solution: &Solution,
    default: &EngineCosts,
) -> BTreeSet<usize> {
    let costs = solution.costs(default);
    let residuals: Vec<f64> = observations.iter().map(|o| residual(o, &costs)).collect();
    let middle = median(residuals.clone());
    let spread = 1.4826 * median(residuals.iter().map(|r| (r - middle).abs()).collect());
    let limit = (OUTLIER_SIGMAS * spread).max(OUTLIER_LEAST);
    observations
        .iter()
        .zip(&residuals)
        .filter(|(_, r)| (**r - middle).abs() > limit)
        .map(|(o, _)| o.index)
        .collect()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    crate::stats::quantile(&values, 0.5).unwrap_or(0.0)
}

/// What the times to first token leave over for the front end.
fn request_time(rows: &[&Point], costs: &EngineCosts, latency: &LatencyOf) -> Result<f64> {
    let bare = EngineCosts { request_s: 0.0, ..costs.clone() };
    let mut left = Vec::new();
    for point in rows {
        let (Ok(setup), None, Some(ttft)) = (&point.setup, &point.excluded, point.measured.ttft)
        else {
            continue;
        };
        let bare = bare.clone().on(&point.engine, &setup.device);
        let latency = latency(&setup.device, &point.engine)?;
        if let Ok(p) = points::predict(setup, &bare, latency.as_ref())
            && !p.served.saturated
        {
            left.push(ttft.0 - p.served.ttft.0);
        }
    }
    if left.len() < LEAST_ROWS {
        return Ok(costs.request_s);
    }
    Ok(median(left).max(0.0))
}

/// Predictions in which each row's constants were fitted to the other folds of its group.
///
/// Folds are devices with their models where a group has several of them, else numbers of devices,
/// else pairs of lengths.
///
/// # Errors
/// As [`fit`].
pub fn cross_validate(
    all: &[Point],
    latency: &LatencyOf,
) -> Result<Vec<Result<Prediction, String>>> {
    let mut results: Vec<Result<Prediction, String>> =
        all.iter().map(|p| Err(p.setup.as_ref().err().cloned().unwrap_or_default())).collect();
    for members in groups(all).values() {
        let fold = fold_of(all, members);
        let folds: BTreeSet<String> = members.iter().map(|&i| fold(&all[i])).collect();
        for held_out in &folds {
            let training: Vec<&Point> =
                members.iter().map(|&i| &all[i]).filter(|p| fold(p) != *held_out).collect();
            let engine = members.first().map_or("", |&i| all[i].engine.as_str());
            let costs = if training.is_empty() {
                EngineCosts::of(engine)
            } else {
                fit(held_out, &training, latency)?.costs
            };
            for &i in members.iter().filter(|&&i| fold(&all[i]) == *held_out) {
                results[i] = apply(&all[i], &costs, latency);
            }
        }
    }
    Ok(results)
}

/// Predicts a point with given constants.
///
/// # Errors
/// A sentence: why it cannot be predicted.
pub fn apply(
    point: &Point,
    costs: &EngineCosts,
    latency: &LatencyOf,
) -> Result<Prediction, String> {
    let setup = point.setup.as_ref().map_err(Clone::clone)?;
    let costs = costs.clone().on(&point.engine, &setup.device);
    let latency = latency(&setup.device, &point.engine).map_err(|e| e.to_string())?;
    points::predict(setup, &costs, latency.as_ref()).map_err(|e| e.to_string())
}

/// Indices of the rows of each group.
pub fn groups(all: &[Point]) -> BTreeMap<String, Vec<usize>> {
    let mut groups: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for (index, point) in all.iter().enumerate() {
        groups.entry(point.group()).or_default().push(index);
    }
    groups
}

/// What the rows of a group are split by.
fn fold_of(all: &[Point], members: &[usize]) -> fn(&Point) -> String {
    // Rows that stay out of fits do not decide how the others are split.
    let used = |p: &&Point| p.setup.is_ok() && p.excluded.is_none() && p.measured.tpot.is_some();
    let several = |name: fn(&Point) -> String| {
        let points = members.iter().map(|&i| &all[i]).filter(used);
        points.map(name).collect::<BTreeSet<String>>().len() > 1
    };
    let model: fn(&Point) -> String = |p| format!("{} {}", p.model, p.gpu);
    let devices: fn(&Point) -> String =
        |p| p.setup.as_ref().map_or(String::new(), |s| s.layout.devices().to_string());
    let lengths: fn(&Point) -> String = |p| {
        p.setup
            .as_ref()
            .map_or(String::new(), |s| format!("{:.0}/{:.0}", s.lengths.input, s.lengths.output))
    };
    if several(model) {
        model
    } else if several(devices) {
        devices
    } else {
        lengths
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{DeviceSpec, preset};
    use crate::plan::points::Measured;
    use crate::serving::{Layout, Lengths};
    use crate::units::Seconds;

    const TRUE: (f64, f64, f64, f64) = (1.2, 1.5, 60e-6, 40e-6);

    fn truth() -> EngineCosts {
        EngineCosts {
            kernel_factor: TRUE.0,
            arithmetic_factor: TRUE.1,
            layer_s: TRUE.2,
            sequence_s: TRUE.3,
            request_s: 0.07,
            ..EngineCosts::of("vllm")
        }
    }

    fn times() -> KernelTimes {
        KernelTimes::new(None, &DeviceSpec::load("h100").unwrap(), "vllm").unwrap()
    }

    /// Points that obey the model exactly with the true constants.
    fn synthetic(times: &KernelTimes) -> Vec<Point> {
        let mut points = Vec::new();
        for devices in [2, 4, 8] {
            for concurrency in [1.0, 4.0, 16.0, 64.0] {
                for (input, output) in [(1000.0, 200.0), (200.0, 1000.0)] {
                    let setup = Setup {
                        model: preset::load("mixtral-8x7b").unwrap().model,
                        device: DeviceSpec::load("h100").unwrap(),
                        layout: Layout::tensor(devices),
                        lengths: Lengths { input, output },
                        traffic: Traffic::Closed { concurrency, requests_per_client: 10.0 },
                    };
                    let p = points::predict_with(&setup, &truth(), times).unwrap();
                    points.push(Point {
                        id: format!("tp{devices} c{concurrency} {input}"),
                        model: "m".into(),
                        gpu: "g".into(),
                        engine: "vllm".into(),
                        origin: String::new(),
                        measured: Measured {
                            ttft: Some(p.served.ttft),
                            tpot: Some(p.served.tpot),
                            output_rate: None,
                        },
                        setup: Ok(setup),
                        excluded: None,
                    });
                }
            }
        }
        points
    }

    #[test]
    fn constants_that_made_the_points_are_found_again_despite_an_outlier() {
        let times = times();
        let mut points = synthetic(&times);
        points[3].measured.tpot = points[3].measured.tpot.map(|t| Seconds(t.0 * 3.0));
        let rows: Vec<&Point> = points.iter().collect();
        let fit = fit("g", &rows, &|_, _| Ok(&times)).unwrap();
        assert_eq!(fit.left_out, [points[3].id.clone()]);
        let got = &fit.costs;
        for (name, value, truth) in [
            ("kernel", got.kernel_factor, TRUE.0),
            ("arithmetic", got.arithmetic_factor, TRUE.1),
            ("layer", got.layer_s, TRUE.2),
            ("sequence", got.sequence_s, TRUE.3),
        ] {
            assert!((value / truth).ln().abs() < 0.15, "{name}: {value} against {truth}");
        }
        assert!((got.request_s - 0.07).abs() < 0.01, "{}", got.request_s);
        for f in &fit.fitted {
            assert!(f.lo < f.value && f.value < f.hi, "{f:?}");
        }
    }

    #[test]
    fn held_out_rows_are_predicted_from_the_others() {
        let times = times();
        let points = synthetic(&times);
        let results = cross_validate(&points, &|_, _| Ok(&times)).unwrap();
        for (point, result) in points.iter().zip(results) {
            let error = result.unwrap().served.tpot / point.measured.tpot.unwrap() - 1.0;
            assert!(error.abs() < 0.05, "{}: {error}", point.id);
        }
    }

    #[test]
    fn too_few_rows_keep_the_defaults() {
        let times = times();
        let points = synthetic(&times);
        let fit = fit("g", &[&points[0]], &|_, _| Ok(&times)).unwrap();
        assert!(fit.fitted.is_empty());
        assert_eq!(fit.costs, EngineCosts::of("vllm"));
    }
}
