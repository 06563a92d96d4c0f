//! Errors of predictions against measured points: overall and by model, device and engine.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::plan::points::{Point, Prediction, Setup};
use crate::serving::Traffic;
use crate::stats::quantile;

/// Errors over a group of rows, as shares (0.1 is 10 %). `None` where no row has the figure.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Errors {
    /// Rows of the group.
    pub n: usize,
    /// Rows with a prediction that count: not refused, not excluded.
    pub n_predicted: usize,
    /// Rows among those with a measured time per output token.
    pub n_tpot: usize,
    /// Mean absolute relative error of the time per output token.
    pub tpot_mape: Option<f64>,
    /// Its median.
    pub tpot_median_ape: Option<f64>,
    /// Its 90th percentile.
    pub tpot_p90_ape: Option<f64>,
    /// Mean signed relative error: above 0 predicts too slow.
    pub tpot_bias: Option<f64>,
    /// Median absolute relative error of the time to first token.
    pub ttft_median_ape: Option<f64>,
    /// Median absolute relative error of output tokens per second.
    pub output_rate_median_ape: Option<f64>,
}

/// Errors overall and by group.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// All rows.
    #[serde(flatten)]
    pub all: Errors,
    /// Rows of overloaded runs, which count nowhere else.
    pub overloaded: Errors,
    /// By model as the file names it.
    pub by_model: BTreeMap<String, Errors>,
    /// By device.
    pub by_gpu: BTreeMap<String, Errors>,
    /// By engine.
    pub by_engine: BTreeMap<String, Errors>,
    /// By mode: aggregated, or separate pools with or without stated numbers of workers.
    pub by_mode: BTreeMap<String, Errors>,
    /// By format of the experts' weights.
    pub by_precision: BTreeMap<String, Errors>,
    /// By model, device and engine together.
    pub by_group: BTreeMap<String, Errors>,
}

/// A point with its prediction, if there is one.
pub type Scored<'a> = (&'a Point, Option<&'a Prediction>);

/// Summarises predictions.
pub fn summarise(rows: &[Scored]) -> Summary {
    let by = |name: fn(&Point) -> String| {
        let mut groups: BTreeMap<String, Vec<Scored>> = BTreeMap::new();
        for row in rows {
            groups.entry(name(row.0)).or_default().push(*row);
        }
        groups.into_iter().map(|(name, rows)| (name, errors(&rows))).collect()
    };
    Summary {
        all: errors(rows),
        overloaded: overloaded(rows),
        by_model: by(|p| p.model.clone()),
        by_gpu: by(|p| p.gpu.clone()),
        by_engine: by(|p| p.engine.clone()),
        by_mode: by(|p| mode(p).to_owned()),
        by_precision: by(|p| {
            let label = |s: &Setup| s.model.expert_dtype.label().to_owned();
            p.setup.as_ref().map_or_else(|_| "not known".to_owned(), label)
        }),
        by_group: by(|p| format!("{} / {} / {}", p.model, p.gpu, p.engine)),
    }
}

/// The mode of rows whose servers read prompts and decode together.
pub const AGGREGATED: &str = "aggregated";
/// The mode of rows with two pools of unknown size.
const UNSTATED: &str = "disaggregated, workers not stated";

/// Whether prompts and decoding ran together.
fn mode(point: &Point) -> &'static str {
    match point.setup.as_ref().ok().and_then(|s| s.pools) {
        None => AGGREGATED,
        Some(pools) if pools.stated => "disaggregated",
        Some(_) => UNSTATED,
    }
}

/// Relative error of the time per output token of a row that counts.
pub fn tpot_error(row: &Scored) -> Option<f64> {
    let (point, prediction) = row;
    let measured = point.measured.tpot?;
    counted(point).then_some(())?;
    Some((*prediction)?.served.tpot / measured - 1.0)
}

/// Relative error of the time to first token of a row that counts.
pub fn ttft_error(row: &Scored) -> Option<f64> {
    let (point, prediction) = row;
    let measured = point.measured.ttft?;
    counted(point).then_some(())?;
    Some((*prediction)?.served.ttft / measured - 1.0)
}

/// How far the serving model is off, split into what the rows of one model, device, engine and source
/// share and what is left within them: robust standard deviations of ln(predicted / measured TPOT).
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Residuals {
    /// Groups with at least one row that counts.
    pub groups: usize,
    /// Of the groups' means about 0.
    pub between_groups: f64,
    /// Of rows about their group's mean.
    pub within_groups: f64,
}

/// A median absolute deviation times this estimates a normal's standard deviation.
const MAD_TO_SIGMA: f64 = 1.4826;

/// Residuals of the rows that count; `None` without any.
pub fn residuals(rows: &[Scored]) -> Option<Residuals> {
    let groups = grouped_residuals(rows);
    let within = sorted(groups.iter().flat_map(|g| g.within.iter().copied()));
    let between = sorted(groups.iter().map(|g| g.mean));
    Some(Residuals {
        groups: groups.len(),
        between_groups: MAD_TO_SIGMA * quantile(&between, 0.5)?,
        within_groups: MAD_TO_SIGMA * quantile(&within, 0.5)?,
    })
}

/// Residuals, ln(predicted / measured TPOT), of the rows of one model, device, engine and source.
#[derive(Clone, Debug, PartialEq)]
pub struct GroupResiduals {
    /// Their mean.
    pub mean: f64,
    /// Each row's distance from it.
    pub within: Vec<f64>,
}

impl GroupResiduals {
    fn of(residuals: impl ExactSizeIterator<Item = f64> + Clone) -> Self {
        let mean = residuals.clone().sum::<f64>() / residuals.len() as f64;
        Self { mean, within: residuals.map(|r| r - mean).collect() }
    }

    /// Squares of the mean over all rows, and of what is left.
    fn squares(&self) -> (f64, f64) {
        let within = self.within.iter().map(|r| r * r).sum();
        (self.within.len() as f64 * self.mean * self.mean, within)
    }
}

/// Residuals of the rows that count, group by group. Pools of unknown size say nothing about the model.
pub fn grouped_residuals(rows: &[Scored]) -> Vec<GroupResiduals> {
    let name = |p: &Point| format!("{} / {} / {} / {}", p.model, p.gpu, p.engine, p.origin);
    let groups = residuals_by(rows, name).into_values();
    groups.map(|g| GroupResiduals::of(g.iter().map(|r| r.1))).collect()
}

/// Index and residual of the rows that count, by a name.
fn residuals_by(
    rows: &[Scored],
    name: impl Fn(&Point) -> String,
) -> BTreeMap<String, Vec<(usize, f64)>> {
    let mut groups: BTreeMap<String, Vec<(usize, f64)>> = BTreeMap::new();
    for (index, row) in rows.iter().enumerate().filter(|(_, r)| mode(r.0) != UNSTATED) {
        if let Some(error) = tpot_error(row) {
            groups.entry(name(row.0)).or_default().push((index, error.ln_1p()));
        }
    }
    groups
}

/// What one group of rows adds to the squared error of ln(predicted / measured TPOT).
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct GroupError {
    /// Model, device, engine, its version and the source.
    pub name: String,
    /// Rows that count.
    pub rows: usize,
    /// Mean logarithm: above 0 predicts too slow.
    pub mean: f64,
    /// Standard deviation about it.
    pub sd: f64,
    /// Share of the summed squares of all groups.
    pub share: f64,
    /// Rows among them that look like speculation ([`looks_speculative`]): those of some layouts.
    pub speculative_rows: usize,
}

/// The squared error of the rows that count, split.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Decomposition {
    /// Share of the groups' means.
    pub between: f64,
    /// Groups, those with the largest share first.
    pub groups: Vec<GroupError>,
}

/// Splits the squared error of the rows that count; pools of unknown size are left out.
pub fn decompose(rows: &[Scored]) -> Decomposition {
    let flags = looks_speculative(rows);
    let name =
        |p: &Point| format!("{} / {} / {} {} / {}", p.model, p.gpu, p.engine, p.version, p.origin);
    let groups = residuals_by(rows, name).into_iter().map(|(name, members)| {
        let residuals = GroupResiduals::of(members.iter().map(|m| m.1));
        (name, residuals, members.iter().filter(|m| flags[m.0]).count())
    });
    let groups: Vec<_> = groups.collect();
    let sum = |of: fn((f64, f64)) -> f64| groups.iter().map(|g| of(g.1.squares())).sum::<f64>();
    let total = sum(|(between, within)| between + within).max(f64::MIN_POSITIVE);
    let between = sum(|(between, _)| between) / total;
    let mut groups: Vec<GroupError> = groups
        .into_iter()
        .map(|(name, residuals, speculative_rows)| {
            let (shared, within) = residuals.squares();
            let rows = residuals.within.len();
            let sd = (within / rows as f64).sqrt();
            let share = (shared + within) / total;
            GroupError { name, rows, mean: residuals.mean, sd, share, speculative_rows }
        })
        .collect();
    groups.sort_by(|a, b| b.share.total_cmp(&a.share));
    Decomposition { between, groups }
}

/// How much faster than predicted rows at small loads are that probably speculated: the servers that
/// are known to are 1.5 to 2 times as fast.
pub const SPECULATES: f64 = 1.4;
/// Rows at small loads that it takes.
const LEAST_SLOW_ROWS: usize = 3;

/// Which rows look as if their server speculated: those of one model, device, engine, version, layout,
/// format and source whose half with the smaller loads is much faster than predicted. Speculation gains
/// most where few sequences share a step.
pub fn looks_speculative(rows: &[Scored]) -> Vec<bool> {
    let mut groups: BTreeMap<String, Vec<(f64, f64, usize)>> = BTreeMap::new();
    for (index, row) in rows.iter().enumerate().filter(|(_, r)| mode(r.0) != UNSTATED) {
        let (Some(error), Ok(setup)) = (tpot_error(row), &row.0.setup) else { continue };
        let Traffic::Closed { concurrency, .. } = setup.traffic else { continue };
        let (p, format) = (row.0, setup.model.expert_dtype.label());
        let of = [&p.model, &p.gpu, &p.engine, &p.version, &p.origin].map(String::as_str);
        let name = format!("{of:?} {} {format}", setup.layout);
        groups.entry(name).or_default().push((concurrency, error.ln_1p(), index));
    }
    let mut flags = vec![false; rows.len()];
    for mut members in groups.into_values() {
        members.sort_by(|a, b| a.0.total_cmp(&b.0));
        let few = &members[..members.len().div_ceil(2)];
        let mut errors: Vec<f64> = few.iter().map(|m| m.1).collect();
        errors.sort_by(f64::total_cmp);
        let fast = quantile(&errors, 0.5).is_some_and(|median| median >= SPECULATES.ln());
        if few.len() >= LEAST_SLOW_ROWS && fast {
            for m in members {
                flags[m.2] = true;
            }
        }
    }
    flags
}

fn output_rate_error(row: &Scored) -> Option<f64> {
    let (point, prediction) = row;
    let measured = point.measured.output_rate?;
    counted(point).then_some(())?;
    Some((*prediction)?.output_rate / measured - 1.0)
}

/// Errors of overloaded rows as if they counted.
fn overloaded(rows: &[Scored]) -> Errors {
    let points: Vec<(Point, Option<&Prediction>)> = rows
        .iter()
        .filter(|(p, _)| p.excluded.as_ref().is_some_and(|why| why.starts_with("overloaded")))
        .map(|(p, r)| (Point { excluded: None, ..(*p).clone() }, *r))
        .collect();
    errors(&points.iter().map(|(p, r)| (p, *r)).collect::<Vec<Scored>>())
}

fn counted(point: &Point) -> bool {
    point.excluded.is_none()
}

fn errors(rows: &[Scored]) -> Errors {
    let tpot: Vec<f64> = rows.iter().filter_map(tpot_error).collect();
    let absolute = sorted(tpot.iter().copied());
    let ttft = sorted(rows.iter().filter_map(ttft_error));
    let rate = sorted(rows.iter().filter_map(output_rate_error));
    let mean = |values: &[f64]| {
        (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
    };
    Errors {
        n: rows.len(),
        n_predicted: rows.iter().filter(|(p, r)| counted(p) && r.is_some()).count(),
        n_tpot: tpot.len(),
        tpot_mape: mean(&absolute),
        tpot_median_ape: quantile(&absolute, 0.5),
        tpot_p90_ape: quantile(&absolute, 0.9),
        tpot_bias: mean(&tpot),
        ttft_median_ape: quantile(&ttft, 0.5),
        output_rate_median_ape: quantile(&rate, 0.5),
    }
}

fn sorted(errors: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut absolute: Vec<f64> = errors.map(f64::abs).collect();
    absolute.sort_by(f64::total_cmp);
    absolute
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_predicted_has_no_error() {
        let summary = summarise(&[]);
        assert_eq!((summary.all.n, summary.all.tpot_mape), (0, None));
    }
}
