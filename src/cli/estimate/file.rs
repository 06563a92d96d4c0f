//! `estimate --points`: every row of a file of measured points.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;

use super::EstimateArgs;
use crate::Result;
use crate::ask::sources::Sources;
use crate::calibrate::predict::{Halves, apply, ends, predict};
use crate::calibrate::{Calibration, Group, judge, pool};
use crate::cli::Output;
use crate::cli::output::width;
use crate::constants::memory;
use crate::plan::accuracy::{Errors, Summary, looks_speculative, summarise};
use crate::plan::points::{self, Point, Prediction, REQUESTS_PER_CLIENT};
use crate::report::grid::{Column, grid, hanging};
use crate::serving::Breakdown;
use crate::units::Seconds;
use crate::workload::RoutingKind;

/// The document of `estimate --points`.
#[derive(Debug, Serialize)]
struct Document<'a> {
    schema: &'static str,
    schema_version: &'static str,
    summary: Summary,
    calibration: &'static str,
    calibrations: &'a [Calibration],
    assumptions: Assumptions,
    rows: Vec<RowOut>,
}

#[derive(Debug, Serialize)]
struct Assumptions {
    kernel_times: String,
    errors_are: &'static str,
    errors_leave_out: &'static str,
    routing: String,
    usable_memory_share: f64,
    reserved_bytes: f64,
    closed_loop_requests_per_client: f64,
    unstated_h100_variant: &'static str,
}

/// One row of it.
#[derive(Debug, Serialize)]
struct RowOut {
    source_id: String,
    model: String,
    gpu: String,
    engine: String,
    tpot_ms: Option<f64>,
    ttft_ms: Option<f64>,
    output_tok_s_total: Option<f64>,
    predicted_tpot_ms: Option<f64>,
    predicted_ttft_ms: Option<f64>,
    predicted_output_tok_s_total: Option<f64>,
    predicted_tpot_ms_lo: Option<f64>,
    predicted_tpot_ms_hi: Option<f64>,
    predicted_ttft_ms_lo: Option<f64>,
    predicted_ttft_ms_hi: Option<f64>,
    predicted_output_tok_s_total_lo: Option<f64>,
    predicted_output_tok_s_total_hi: Option<f64>,
    batch: Option<f64>,
    max_batch: Option<f64>,
    saturated: Option<bool>,
    step: Option<Breakdown>,
    refused: Option<String>,
    excluded: Option<String>,
    /// Whether its server probably drafted tokens: much faster at small loads than predicted without.
    looks_speculative: bool,
}

pub(super) fn run(
    path: &Path,
    args: &EstimateArgs,
    sources: &Sources,
    calibrations: &[Calibration],
    output: Output,
) -> Result<()> {
    let points = points::read(path)?;
    let latency = sources.latency_of();
    let results: Vec<Answer> = if args.cross_validate {
        let rows = pool::prepare(&points, &latency)?;
        let judgement = judge::judge(&rows, &|i| points[i].id.clone());
        let one = |point: &Point| {
            let group = Group::of(point).ok_or("model or device is not known")?;
            apply(point, &judge::held_out_costs(&judgement, &group), &latency).map(|p| (p, None))
        };
        points.iter().map(|p| p.setup.clone().and_then(|_| one(p))).collect()
    } else {
        let one = |p: &Point| predict(p, calibrations, &latency).map(|(p, h)| (p, Some(h)));
        points.iter().map(one).collect()
    };
    let scored: Vec<_> =
        points.iter().zip(&results).map(|(p, r)| (p, r.as_ref().ok().map(|a| &a.0))).collect();
    let summary = summarise(&scored);
    let flags = looks_speculative(&scored);
    let document = Document {
        schema: "moe-frontier/estimate-points",
        schema_version: "1.0",
        summary,
        calibration: if args.cross_validate {
            "cross_validated"
        } else if args.calibrate.is_some() {
            "calibrated"
        } else {
            "uncalibrated"
        },
        calibrations,
        assumptions: Assumptions {
            kernel_times: kernel_times(&args.source.profile),
            errors_are: "shares of the measured value: 0.1 is 10 %",
            errors_leave_out: "rows with a quality flag and overloaded rows (see `excluded`)",
            routing: RoutingKind::TYPICAL.to_string(),
            usable_memory_share: memory::GPU_SHARE,
            reserved_bytes: memory::GPU_RESERVE.0,
            closed_loop_requests_per_client: REQUESTS_PER_CLIENT,
            unstated_h100_variant: "H100 NVL",
        },
        rows: points.iter().zip(results).zip(flags).map(|((p, r), f)| row(p, r, f)).collect(),
    };
    output.result(&document, || text(&document, width(), args.details))
}

/// Where latencies come from, in words.
fn kernel_times(profile: &[String]) -> String {
    if profile.is_empty() {
        return "shipped tables of each row's device, else its published peaks".into();
    }
    profile.join(",")
}

/// A prediction with its interval, or why there is none.
type Answer = Result<(Prediction, Option<Halves>), String>;

fn row(point: &Point, result: Answer, looks_speculative: bool) -> RowOut {
    let predicted = result.as_ref().ok().map(|a| &a.0);
    let halves = result.as_ref().ok().and_then(|a| a.1);
    let within = |value: Option<f64>, half: fn(&Halves) -> f64| {
        halves.as_ref().zip(value).map(|(h, v)| ends(v, half(h)))
    };
    let tpot = within(predicted.map(|p| p.served.tpot.as_ms()), |h| h.tpot);
    let ttft = within(predicted.map(|p| p.served.ttft.as_ms()), |h| h.ttft);
    let rate = within(predicted.map(|p| p.output_rate), |h| h.rate);
    let of = |value: fn(&Prediction) -> f64| predicted.map(value);
    RowOut {
        source_id: point.id.clone(),
        model: point.model.clone(),
        gpu: point.gpu.clone(),
        engine: point.engine.clone(),
        tpot_ms: point.measured.tpot.map(Seconds::as_ms),
        ttft_ms: point.measured.ttft.map(Seconds::as_ms),
        output_tok_s_total: point.measured.output_rate,
        predicted_tpot_ms: of(|p| p.served.tpot.as_ms()),
        predicted_ttft_ms: of(|p| p.served.ttft.as_ms()),
        predicted_output_tok_s_total: of(|p| p.output_rate),
        predicted_tpot_ms_lo: tpot.map(|e| e.0),
        predicted_tpot_ms_hi: tpot.map(|e| e.1),
        predicted_ttft_ms_lo: ttft.map(|e| e.0),
        predicted_ttft_ms_hi: ttft.map(|e| e.1),
        predicted_output_tok_s_total_lo: rate.map(|e| e.0),
        predicted_output_tok_s_total_hi: rate.map(|e| e.1),
        batch: of(|p| p.served.batch),
        max_batch: of(|p| p.served.batch_cap),
        saturated: predicted.map(|p| p.served.saturated),
        step: predicted.map(|p| p.served.step),
        excluded: point.excluded.clone(),
        looks_speculative,
        refused: result.err(),
    }
}

fn text(document: &Document, width: usize, details: bool) -> String {
    let summary = &document.summary;
    let percent = |v: Option<f64>| v.map_or("-".to_owned(), |v| format!("{:.1} %", v * 100.0));
    let answer = format!(
        "{} of {} rows predicted: TPOT {} off in the median, {} in the mean; {} predictions",
        summary.all.n_predicted,
        summary.all.n,
        percent(summary.all.tpot_median_ape),
        percent(summary.all.tpot_mape),
        document.calibration
    );
    let mut text = hanging("Answer  ", &answer, width);
    let named = |groups: &BTreeMap<String, Errors>| -> Vec<Vec<String>> {
        groups.iter().map(|(name, errors)| errors_row(name, errors)).collect()
    };
    let mut rows = vec![
        errors_row("all", &summary.all),
        errors_row("overloaded, not in all", &summary.overloaded),
    ];
    rows.extend(named(&summary.by_gpu));
    rows.extend(named(&summary.by_engine));
    if details {
        rows.extend(named(&summary.by_group));
    }
    text += &grid(&columns(), &rows, width);
    if details {
        for c in document.calibrations {
            let head = format!("{}: {} rows, {} left out", c.group, c.rows, c.left_out.len());
            text += &hanging("", &head, width);
            for f in &c.fitted {
                let fitted = format!("{} {:.3} ({:.3} to {:.3})", f.name, f.value, f.lo, f.hi);
                text += &hanging("  ", &fitted, width);
            }
        }
    }
    let mut reasons = BTreeMap::new();
    for row in &document.rows {
        let why = row.refused.as_ref().or(row.excluded.as_ref());
        if let Some(why) = why {
            let kind = why.split(':').next().unwrap_or(why);
            *reasons.entry(kind).or_insert(0) += 1;
        }
    }
    let speculative = document.rows.iter().filter(|r| r.looks_speculative).count();
    if speculative > 0 {
        let note = format!("{speculative} row(s) look like speculative decoding");
        text += &hanging("", &note, width);
    }
    for (reason, count) in reasons {
        text += &hanging("", &format!("not counted: {count} row(s): {reason}"), width);
    }
    if !details {
        text += &hanging("Next    ", "--details (every group of model, GPU and engine)", width);
    }
    text
}

/// Columns of errors; those of the TPOT go last.
fn columns() -> [Column; 8] {
    [
        Column::words("group"),
        Column::numbers("rows"),
        Column::numbers("used").left_out(4),
        Column::numbers("TPOT\nmean").left_out(3),
        Column::numbers("TPOT\nmedian"),
        Column::numbers("TPOT\np90").left_out(1),
        Column::numbers("TPOT\nbias").left_out(2),
        Column::numbers("TTFT\nmedian").left_out(5),
    ]
}

fn errors_row(name: &str, e: &Errors) -> Vec<String> {
    let percent = |v: Option<f64>| v.map_or("-".to_owned(), |v| format!("{:.1} %", v * 100.0));
    vec![
        name.to_owned(),
        e.n.to_string(),
        e.n_predicted.to_string(),
        percent(e.tpot_mape),
        percent(e.tpot_median_ape),
        percent(e.tpot_p90_ape),
        percent(e.tpot_bias),
        percent(e.ttft_median_ape),
    ]
}
