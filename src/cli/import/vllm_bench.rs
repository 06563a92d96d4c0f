//! `import vllm-bench`: results of serving benchmarks as points that `estimate` and `size` calibrate on.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use serde::Serialize;

use crate::cli::Output;
use crate::files::csv::inert;
use crate::files::{check_writable, write_atomic};
use crate::plan::points;
use crate::plan::results::vllm_bench::{self, Average, COLUMNS, Server};
use crate::{Error, Result};

/// Results of `vllm bench serve`, SGLang, genai-perf or aiperf, guidellm and `InferenceX` as points.
///
/// TPOT is the time of a request after its first token over its output tokens but one.
#[derive(Debug, Args)]
#[command(after_help = "Example:
  moe-frontier import vllm-bench c8.json c32.json --gpu h100 --parallelism tp2 --out points.csv
  moe-frontier estimate --model mixtral-8x7b --device h100 --tp 2 --concurrency 16 \\
      --profile h100.tables.json --calibrate points.csv")]
pub struct VllmBench {
    /// Results of one or more runs; appended ones are told apart.
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// Device of the server (see `device list`), unless the results hold a key `gpu`.
    #[arg(long, value_name = "NAME")]
    pub gpu: Option<String>,
    /// Layout of the server, as tp2, tp4 ep4 or DEP8, unless the results hold a key `parallelism`.
    #[arg(long, value_name = "LAYOUT")]
    pub parallelism: Option<String>,
    /// Weights: bf16, fp16, fp8, int8, int4, mxfp4 or nvfp4; by default as published.
    #[arg(long, value_name = "FORMAT")]
    pub weights: Option<String>,
    /// Version of the engine.
    #[arg(long, value_name = "VERSION")]
    pub engine_version: Option<String>,
    /// Engine: vllm, sglang or trtllm; by default what the results name.
    #[arg(long, value_name = "NAME")]
    pub engine: Option<String>,
    /// Model, where the server has a name or folder of its own for it.
    #[arg(long, value_name = "NAME")]
    pub model: Option<String>,
    /// Which value of the measured times is taken.
    #[arg(long, value_enum, default_value_t = Statistic::Mean)]
    pub statistic: Statistic,
    /// File to write.
    #[arg(long, value_name = "FILE", default_value = "points.csv")]
    pub out: PathBuf,
    /// Overwrite that file.
    #[arg(long)]
    pub overwrite: bool,
}

/// Value of the measured times.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Statistic {
    /// Mean over requests.
    Mean,
    /// Median over requests.
    Median,
}

/// What was imported.
#[derive(Debug, Serialize)]
struct Imported {
    schema: &'static str,
    schema_version: &'static str,
    out: String,
    points: usize,
    /// Points that `estimate` and `size` will leave out, with the reason.
    left_out: Vec<LeftOut>,
}

#[derive(Debug, Serialize)]
struct LeftOut {
    source_id: String,
    reason: String,
}

/// Imports the files and writes the points.
///
/// # Errors
/// As [`vllm_bench::read`] and [`write_atomic`].
pub fn run(args: &VllmBench, output: Output) -> Result<()> {
    check_writable(&args.out, args.overwrite)?;
    let server = Server {
        gpu: args.gpu.clone(),
        parallelism: args.parallelism.clone(),
        weights: args.weights.clone(),
        version: args.engine_version.clone(),
        model: args.model.clone(),
        engine: args.engine.clone(),
    };
    let average = match args.statistic {
        Statistic::Mean => Average::Mean,
        Statistic::Median => Average::Median,
    };
    let mut writer = csv::Writer::from_writer(Vec::new());
    let failed = |e: csv::Error| Error::unfit("points", e.to_string());
    writer.write_record(COLUMNS).map_err(failed)?;
    for file in &args.files {
        for row in vllm_bench::read(file, &server, average)? {
            // Names come from the files: none becomes a formula of a spreadsheet.
            writer.write_record(row.iter().map(|cell| inert(cell))).map_err(failed)?;
        }
    }
    let text = writer.into_inner().map_err(|e| Error::unfit("points", e.to_string()))?;
    write_atomic(&args.out, &text, args.overwrite)?;
    // Read as the other commands will: what they cannot use is said now.
    let points = points::read(&args.out)?;
    let left_out = points.iter().filter_map(|p| {
        let reason = p.excluded.clone().or_else(|| p.setup.as_ref().err().cloned())?;
        Some(LeftOut { source_id: p.id.clone(), reason })
    });
    let imported = Imported {
        schema: "moe-frontier/import-points",
        schema_version: "1.0",
        out: args.out.display().to_string(),
        points: points.len(),
        left_out: left_out.collect(),
    };
    output.result(&imported, || text_of(&imported))
}

fn text_of(i: &Imported) -> String {
    use std::fmt::Write;
    let mut text = format!("{} points into {}\n", i.points, i.out);
    for left in &i.left_out {
        let _ = writeln!(text, "not usable: {}: {}", left.source_id, left.reason);
    }
    text
}
