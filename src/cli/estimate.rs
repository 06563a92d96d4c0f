//! `estimate`: what one deployment, or every row of a file of measured points, is predicted to do.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;

use crate::cli::Output;
use crate::cost::{Breakdown, EngineCosts};
use crate::plan::accuracy::{Errors, Summary, summarise};
use crate::plan::points::{self, Point, Prediction};
use crate::profile::KernelTimes;
use crate::profile::engine_tables::{self, EngineTables};
use crate::{Error, Result};

/// Predicts TTFT, TPOT, throughput, memory and cost of a deployment.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  moe-frontier estimate --points points.csv --profile h100.tables.json"
)]
pub struct EstimateArgs {
    /// CSV of measured points: one prediction per row and a summary of errors.
    #[arg(long, value_name = "FILE")]
    pub points: Option<PathBuf>,
    /// Kernel times: a file that `import` wrote. Without it all times are rooflines.
    #[arg(long, value_name = "FILE")]
    pub profile: Option<PathBuf>,
}

/// The document of `estimate --points`.
#[derive(Debug, Serialize)]
struct PointsDocument {
    schema: &'static str,
    schema_version: &'static str,
    tables: Option<String>,
    costs: HashMap<String, EngineCosts>,
    summary: Summary,
    rows: Vec<RowOut>,
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
    batch: Option<f64>,
    batch_cap: Option<f64>,
    saturated: Option<bool>,
    step: Option<Breakdown>,
    refused: Option<String>,
    excluded: Option<String>,
}

/// Runs the command.
///
/// # Errors
/// Bad flags and files; see [`crate::Error`].
pub fn run(args: &EstimateArgs, output: Output) -> Result<()> {
    let Some(path) = &args.points else {
        return Err(Error::usage("--points", "a file is needed"));
    };
    run_points(path, args, output)
}

fn run_points(path: &Path, args: &EstimateArgs, output: Output) -> Result<()> {
    let tables = args.profile.as_deref().map(engine_tables::read).transpose()?;
    let points = points::read(path)?;
    let mut times = HashMap::new();
    let mut costs = HashMap::new();
    let mut results = Vec::with_capacity(points.len());
    for point in &points {
        results.push(predict(point, tables.as_ref(), &mut times, &mut costs));
    }
    let scored: Vec<_> = points.iter().zip(&results).map(|(p, r)| (p, r.as_ref().ok())).collect();
    let summary = summarise(&scored);
    let rows = points.iter().zip(results).map(|(point, result)| row(point, result)).collect();
    let document = PointsDocument {
        schema: "moe-frontier/estimate-points",
        schema_version: "1.0",
        tables: args.profile.as_ref().map(|p| p.display().to_string()),
        costs,
        summary,
        rows,
    };
    output.result(&document, || text(&document))
}

fn predict(
    point: &Point,
    tables: Option<&EngineTables>,
    times: &mut HashMap<(String, String), KernelTimes>,
    costs: &mut HashMap<String, EngineCosts>,
) -> Result<Prediction, String> {
    let setup = point.setup.as_ref().map_err(Clone::clone)?;
    let key = (setup.device.name.clone(), point.engine.clone());
    if !times.contains_key(&key) {
        let built = KernelTimes::new(tables, &setup.device, &point.engine);
        times.insert(key.clone(), built.map_err(|e| e.to_string())?);
    }
    let costs = costs.entry(point.engine.clone()).or_insert_with(|| EngineCosts::of(&point.engine));
    points::predict_with(setup, costs, &times[&key]).map_err(|e| e.to_string())
}

fn row(point: &Point, result: Result<Prediction, String>) -> RowOut {
    let predicted = result.as_ref().ok();
    let of = |value: fn(&Prediction) -> f64| predicted.map(value);
    RowOut {
        source_id: point.id.clone(),
        model: point.model.clone(),
        gpu: point.gpu.clone(),
        engine: point.engine.clone(),
        tpot_ms: point.measured.tpot.map(|t| t.as_ms()),
        ttft_ms: point.measured.ttft.map(|t| t.as_ms()),
        output_tok_s_total: point.measured.output_rate,
        predicted_tpot_ms: of(|p| p.served.tpot.as_ms()),
        predicted_ttft_ms: of(|p| p.served.ttft.as_ms()),
        predicted_output_tok_s_total: of(|p| p.output_rate),
        batch: of(|p| p.served.batch),
        batch_cap: of(|p| p.served.batch_cap),
        saturated: predicted.map(|p| p.served.saturated),
        step: predicted.map(|p| p.served.step),
        excluded: point.excluded.clone(),
        refused: result.err(),
    }
}

fn text(document: &PointsDocument) -> String {
    use std::fmt::Write;
    let mut text = String::new();
    let mut line = |name: &str, e: &Errors| {
        let percent = |v: Option<f64>| v.map_or("-".to_owned(), |v| format!("{:.1}%", v * 100.0));
        let _ = writeln!(
            text,
            "{name:60} n {:3} predicted {:3}  TPOT MAPE {:>6} median {:>6} p90 {:>6} bias {:>6}  TTFT median {:>6}",
            e.n,
            e.n_predicted,
            percent(e.tpot_mape),
            percent(e.tpot_median_ape),
            percent(e.tpot_p90_ape),
            percent(e.tpot_bias),
            percent(e.ttft_median_ape)
        );
    };
    line("all", &document.summary.all);
    for (name, errors) in &document.summary.by_group {
        line(name, errors);
    }
    for (name, errors) in &document.summary.by_gpu {
        line(name, errors);
    }
    text
}
