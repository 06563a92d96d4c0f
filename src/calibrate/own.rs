//! Own runs as the lowest level: constants of one group from the prior and its rows.

use serde::{Deserialize, Serialize};

use crate::calibrate::constants::{Constants, NAMES, TPOT, TTFT, with_tpot, with_ttft};
use crate::calibrate::fit::{Before, Observation, ROW_SIGMA, Solution, inverse, solve};
use crate::calibrate::pool::{Group, Prepared};
use crate::calibrate::prior::{Errors, Known, Prior};
use crate::serving::EngineCosts;
use crate::stats::Z95;

/// Logarithmic residual from which a row does not belong to the others.
const OUTLIER: f64 = 0.5;
/// A host that launches every kernel: where searches start besides the prior, as logarithms over the
/// default. The launches hide behind the kernels until they exceed them, so that no slope leads there.
const LAUNCHES: [f64; 4] = [0.0, 3.0, 4.1, 5.3];
/// Residual standard deviation of a row of one server, as a logarithm: settings of one server scatter
/// less about its constants than those of a group.
const OWN_SIGMA: f64 = 0.05;
/// Standard deviation of the launch cost on a host that was never seen.
const LAUNCH_SD: f64 = 2.0;

/// A fitted constant with its 95 % interval.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fitted {
    /// Name with unit.
    pub name: String,
    /// Value.
    pub value: f64,
    /// Lower end.
    pub lo: f64,
    /// Upper end.
    pub hi: f64,
}

/// Constants of one group with its own rows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Calibration {
    /// The group.
    pub group: Group,
    /// Rows that were fitted.
    pub rows: usize,
    /// Rows left out as inconsistent with the others.
    pub left_out: Vec<String>,
    /// Deviations from the engine's defaults with covariances.
    pub constants: Constants,
    /// The constants with intervals.
    pub fitted: Vec<Fitted>,
    /// Errors that scale intervals.
    pub errors: Errors,
}

impl Calibration {
    /// Constants to predict with.
    pub fn costs(&self) -> EngineCosts {
        self.constants.costs(&EngineCosts::of(&self.group.engine))
    }
}

/// Fits the rows of one group; `names` are those of the points, for what is left out.
pub fn fit(
    group: &Group,
    rows: &[&Prepared],
    prior: &Prior,
    names: &dyn Fn(usize) -> String,
) -> Calibration {
    let known = prior.of(group);
    let mut used: Vec<&Prepared> = rows.to_vec();
    let mut tpot = tpot(&used, &known);
    let x = tpot.total(&[0]);
    let (kept, out): (Vec<&Prepared>, Vec<&Prepared>) =
        used.iter().partition(|r| r.tpot_residual(&x).abs() <= OUTLIER);
    if !out.is_empty() && kept.len() > out.len() {
        used = kept;
        tpot = self::tpot(&used, &known);
    }
    let x = tpot.total(&[0]);
    let ttft = ttft(&used, &known, &x);
    let constants = Constants {
        tpot: x,
        tpot_covariance: tpot.covariance(&[0]),
        ttft: ttft.total(&[0]),
        ttft_covariance: ttft.covariance(&[0]),
    };
    let values = constants.values(&EngineCosts::of(&group.engine));
    let fitted = NAMES.iter().zip(values).map(|(name, (value, sd))| Fitted {
        name: (*name).to_owned(),
        value,
        lo: value * (-Z95 * sd).exp(),
        hi: value * (Z95 * sd).exp(),
    });
    let left_out =
        rows.iter().filter(|r| !used.iter().any(|u| u.index == r.index)).map(|r| names(r.index));
    Calibration {
        group: group.clone(),
        rows: used.len(),
        left_out: left_out.collect(),
        fitted: fitted.collect(),
        constants,
        errors: prior.own_rows,
    }
}

fn before<const P: usize>(mean: &[f64; P], covariance: &[[f64; P]; P]) -> Before {
    Before {
        mean: mean.to_vec(),
        precision: inverse(covariance).iter().flatten().copied().collect(),
    }
}

fn tpot(rows: &[&Prepared], known: &Known) -> Solution<TPOT> {
    let mut covariance = known.constants.tpot_covariance;
    covariance[TPOT - 1][TPOT - 1] += LAUNCH_SD * LAUNCH_SD;
    let before = before(&known.constants.tpot, &covariance);
    let observations: Vec<Observation<TPOT>> = rows
        .iter()
        .map(|row| Observation {
            path: vec![0],
            weight: (ROW_SIGMA / OWN_SIGMA).powi(2),
            residual: Box::new(move |x| row.tpot_residual(x)),
        })
        .collect();
    let mut best: Option<Solution<TPOT>> = None;
    for launch in LAUNCHES {
        let mut start = known.constants.tpot;
        start[TPOT - 1] += launch;
        let solution = solve(&observations, &before, &start);
        if best.as_ref().is_none_or(|b| solution.loss < b.loss - 1e-6) {
            best = Some(solution);
        }
    }
    best.unwrap_or_else(|| solve(&observations, &before, &known.constants.tpot))
}

fn ttft(rows: &[&Prepared], known: &Known, x: &[f64; TPOT]) -> Solution<TTFT> {
    let observations: Vec<Observation<TTFT>> = rows
        .iter()
        .filter_map(|row| {
            let measured = row.features.measured_ttft?;
            let costs = with_tpot(&row.default, x);
            let residual =
                move |x: &[f64; TTFT]| (row.features.ttft(&with_ttft(&costs, x)) / measured).ln();
            Some(Observation { path: vec![0], weight: 1.0, residual: Box::new(residual) })
        })
        .collect();
    let before = before(&known.constants.ttft, &known.constants.ttft_covariance);
    solve(&observations, &before, &known.constants.ttft)
}

/// Standard deviation of ln TPOT of a row: of its constants, of its kernels, and its own.
pub fn row_sd(constants: &Constants, slope: &[f64; TPOT], kernels: f64) -> f64 {
    constants.tpot_log_sd(slope).hypot(kernels).hypot(ROW_SIGMA)
}
