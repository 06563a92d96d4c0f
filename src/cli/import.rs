//! `import`: third-party measured tables and benchmark results into files that `estimate` and `size`
//! read.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde::Serialize;

use crate::Result;
use crate::cli::Output;
use crate::files::check_writable;
use crate::latency::tables::engine_tables::{self, EngineTables, ImportedFile, LeftOut};
use crate::latency::tables::import;

pub mod vllm_bench;

/// Reads third-party measured tables and benchmark results.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  moe-frontier import aiconfigurator moe_perf.parquet gemm_perf.parquet --out h100.tables.json\n  moe-frontier import vllm-bench c8.json c32.json --gpu h100 --parallelism tp2 --out points.csv"
)]
pub struct ImportArgs {
    /// Where the tables come from.
    #[command(subcommand)]
    pub format: Format,
}

/// Known third-party formats.
#[derive(Debug, Subcommand)]
pub enum Format {
    /// Kernel tables of NVIDIA's aiconfigurator: MoE, GEMM, attention, all-reduce and NCCL, CSV or
    /// Parquet, all of one device.
    Aiconfigurator(Aiconfigurator),
    /// Results of `vllm bench serve --save-result`, as points to calibrate on.
    VllmBench(vllm_bench::VllmBench),
}

/// Files of aiconfigurator.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  moe-frontier import aiconfigurator moe_perf.parquet nccl_perf.parquet --out h100.tables.json"
)]
pub struct Aiconfigurator {
    /// Tables of one device.
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// File to write.
    #[arg(long, value_name = "FILE", default_value = "engine-tables.json")]
    pub out: PathBuf,
    /// Overwrite that file.
    #[arg(long)]
    pub force: bool,
}

/// What was imported.
#[derive(Debug, Serialize)]
struct Imported<'a> {
    schema: &'static str,
    schema_version: &'static str,
    out: String,
    device: &'a str,
    rows: usize,
    moe_series: usize,
    gemm_series: usize,
    attention_series: usize,
    link_series: usize,
    engines: Vec<String>,
    files: &'a [ImportedFile],
    left_out: &'a [LeftOut],
}

/// Imports the files and writes the tables or points.
///
/// # Errors
/// As [`import::aiconfigurator`] and [`engine_tables::write`], or of the results.
pub fn run(args: ImportArgs, output: Output) -> Result<()> {
    match args.format {
        Format::Aiconfigurator(args) => aiconfigurator(&args, output),
        Format::VllmBench(args) => vllm_bench::run(&args, output),
    }
}

fn aiconfigurator(args: &Aiconfigurator, output: Output) -> Result<()> {
    check_writable(&args.out, args.force)?;
    let program = format!("moe-frontier {}", env!("CARGO_PKG_VERSION"));
    let tables = import::aiconfigurator(&args.files, &program)?;
    engine_tables::write(&args.out, &tables, args.force)?;
    let imported = Imported {
        schema: "moe-frontier/import",
        schema_version: "1.0",
        out: args.out.display().to_string(),
        device: &tables.device,
        rows: tables.rows(),
        moe_series: tables.moe.len(),
        gemm_series: tables.gemm.len(),
        attention_series: tables.attention.len(),
        link_series: tables.links.len(),
        engines: engines(&tables),
        files: &tables.files,
        left_out: &tables.left_out,
    };
    output.result(&imported, || text(&imported))
}

/// Every engine with its version, sorted.
fn engines(tables: &EngineTables) -> Vec<String> {
    let kernels = tables.moe.iter().map(|s| &s.kernel);
    let kernels = kernels.chain(tables.gemm.iter().map(|s| &s.kernel));
    let kernels = kernels.chain(tables.attention.iter().map(|s| &s.kernel));
    let kernels = kernels.chain(tables.links.iter().map(|s| &s.kernel));
    let mut names: Vec<String> = kernels.map(|k| format!("{} {}", k.engine, k.version)).collect();
    names.sort();
    names.dedup();
    names
}

fn text(i: &Imported) -> String {
    use std::fmt::Write;
    let mut text = format!("{} rows of {} into {}\n", i.rows, i.device, i.out);
    let _ = writeln!(
        text,
        "series: {} MoE, {} GEMM, {} attention, {} collectives; {}",
        i.moe_series,
        i.gemm_series,
        i.attention_series,
        i.link_series,
        i.engines.join(", ")
    );
    for file in i.files {
        let _ = writeln!(text, "  {}: {} rows, {} repeated", file.name, file.rows, file.repeated);
    }
    for left in i.left_out {
        let _ = writeln!(text, "left out: {} rows of {}: {}", left.rows, left.what, left.reason);
    }
    text
}
