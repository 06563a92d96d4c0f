//! `import`: third-party kernel tables and benchmark results into files that other commands read.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde::Serialize;

use crate::cli::Output;
use crate::cli::progress::Progress;
use crate::config::DeviceSpec;
use crate::files::check_writable;
use crate::latency::tables::series::{EngineTables, ImportedFile, LeftOut, Table};
use crate::latency::tables::{codec, errors, gather, nccl_tests, pack};
use crate::{Error, Result};

pub mod vllm_bench;

/// Reads third-party measured tables and benchmark results.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  moe-frontier import aiconfigurator h100_sxm/ --out h100.tables\n  moe-frontier import vllm-bench c8.json c32.json --gpu h100 --parallelism tp2 --out points.csv"
)]
pub struct ImportArgs {
    /// Where the tables come from.
    #[command(subcommand)]
    pub format: Format,
}

/// Known third-party formats.
#[derive(Debug, Subcommand)]
pub enum Format {
    /// Kernel tables of NVIDIA's aiconfigurator: MoE, GEMM, attention, MLA, collectives, expert
    /// exchange; CSV or Parquet.
    Aiconfigurator(Aiconfigurator),
    /// Errors of answers from imported tables, as the accuracy report prints them.
    #[command(hide = true)]
    Errors(TableErrors),
    /// Collectives that nccl-tests measured (`-J FILE`).
    NcclTests(NcclTests),
    /// Results of `vllm bench serve --save-result`, as points to calibrate on.
    VllmBench(vllm_bench::VllmBench),
}

/// Files of aiconfigurator.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  moe-frontier import aiconfigurator systems/data/h100_sxm --out h100.tables"
)]
pub struct Aiconfigurator {
    /// Tables, or folders of them.
    #[arg(required = true, value_name = "PATH")]
    pub paths: Vec<PathBuf>,
    /// File to write; with tables of several devices, each device's name goes before the extension.
    #[arg(long, value_name = "FILE", default_value = "engine.tables")]
    pub out: PathBuf,
    /// Overwrite existing files.
    #[arg(long)]
    pub overwrite: bool,
    /// Exit with code 4 if any file, row or series was left out.
    #[arg(long)]
    pub strict: bool,
    /// Write compact tables into this folder instead, as the program embeds them.
    #[arg(long, value_name = "DIR", conflicts_with = "out")]
    pub pack: Option<PathBuf>,
    /// Commit of the source that the tables come from.
    #[arg(long, value_name = "HASH")]
    pub commit: Option<String>,
    /// Date of that commit (yyyy-mm-dd).
    #[arg(long, value_name = "DATE")]
    pub date: Option<String>,
}

/// Results of nccl-tests.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  moe-frontier import nccl-tests all_reduce.json alltoall.json --out links.tables"
)]
pub struct NcclTests {
    /// Files that `all_reduce_perf`, `all_gather_perf`, `reduce_scatter_perf` and `alltoall_perf` wrote, of one
    /// device.
    #[arg(required = true, value_name = "FILE")]
    pub paths: Vec<PathBuf>,
    /// File to write.
    #[arg(long, value_name = "FILE", default_value = "links.tables")]
    pub out: PathBuf,
    /// Overwrite an existing file.
    #[arg(long)]
    pub overwrite: bool,
}

/// Tables to judge.
#[derive(Debug, Args)]
pub struct TableErrors {
    /// What is judged: `cells`, `points`, `shapes` or `nodes`.
    pub what: String,
    /// Tables that answer.
    pub from: PathBuf,
    /// Tables that hold the truth (`cells` only).
    pub truth: Option<PathBuf>,
}

/// What was imported.
#[derive(Debug, Serialize)]
struct Imported<'a> {
    schema: &'static str,
    schema_version: &'static str,
    devices: Vec<ImportedDevice<'a>>,
}

/// What was imported of one device.
#[derive(Debug, Serialize)]
struct ImportedDevice<'a> {
    out: String,
    bytes: usize,
    device: &'a str,
    cells: usize,
    series: usize,
    tables: Vec<TableCount>,
    engines: Vec<String>,
    files: &'a [ImportedFile],
    left_out: &'a [LeftOut],
}

/// Series and cells of one table.
#[derive(Debug, Serialize)]
struct TableCount {
    table: &'static str,
    series: usize,
    cells: usize,
    /// Series of which cells appear more than once; each is the median of its rows.
    repeated_series: usize,
    /// Largest standard deviation of ln(time) between rows of one cell.
    spread_rel: Option<f64>,
}

/// Imports the files and writes the tables or points.
///
/// # Errors
/// As [`gather::aiconfigurator`] and [`codec::write`], or of the results; [`Error::Unfit`] with
/// `--strict` when anything was left out.
pub fn run(args: ImportArgs, output: Output) -> Result<()> {
    match args.format {
        Format::Aiconfigurator(args) => aiconfigurator(&args, output),
        Format::NcclTests(args) => nccl(&args, output),
        Format::VllmBench(args) => vllm_bench::run(&args, output),
        Format::Errors(args) => table_errors(&args, output),
    }
}

fn table_errors(args: &TableErrors, output: Output) -> Result<()> {
    let from = codec::read(&args.from)?;
    let truth = args.truth.as_deref().map(codec::read).transpose()?;
    let rows = match args.what.as_str() {
        "cells" => errors::cell_errors(&from, truth.as_ref().unwrap_or(&from))?,
        "points" => errors::point_errors(&from)?,
        "shapes" => errors::shape_errors(&from)?,
        "nodes" => errors::node_errors(&from)?,
        other => {
            return Err(Error::usage(
                "WHAT",
                format!("`{other}` is none of cells, points, shapes, nodes"),
            ));
        }
    };
    output.result(&rows, || rows.iter().map(error_line).collect())
}

fn error_line(r: &errors::ErrorRow) -> String {
    format!(
        "{:18} {:7} {:26} {:7} cells {:5} none, mean {:5.1}% median {:5.1}% p90 {:5.1}% within 10%: {:3.0}% bias {:+5.1}% spread x{:.1}\n",
        r.table,
        r.engine,
        r.format,
        r.cells,
        r.unanswered,
        r.mean * 100.0,
        r.median * 100.0,
        r.p90 * 100.0,
        r.within_10_percent * 100.0,
        r.bias * 100.0,
        r.spread_ratio
    )
}

fn aiconfigurator(args: &Aiconfigurator, output: Output) -> Result<()> {
    if args.pack.is_none() {
        check_writable(&args.out, args.overwrite)?;
    }
    let program = format!("moe-frontier {}", env!("CARGO_PKG_VERSION"));
    let mut progress: Option<Progress> = None;
    let mut watch = |done: usize, total: usize, file: &str| {
        // A single file is read before anybody looks up.
        if total > 1 {
            let progress = progress.get_or_insert_with(|| Progress::new("import", 1));
            progress.update(done as u64, total as u64, file);
        }
    };
    let mut all = gather::aiconfigurator(&args.paths, &program, &mut watch)?;
    if let Some(progress) = progress {
        progress.finish();
    }
    for tables in &mut all {
        (tables.origin.commit, tables.origin.date) = (args.commit.clone(), args.date.clone());
    }
    let mut written = Vec::new();
    for tables in &all {
        written.push(write(args, tables, all.len() > 1)?);
    }
    let devices =
        all.iter().zip(&written).map(|(tables, (out, bytes))| of_device(tables, out, *bytes));
    let imported = Imported {
        schema: "moe-frontier/import",
        schema_version: "2.0",
        devices: devices.collect(),
    };
    output.result(&imported, || text(&imported))?;
    let left: usize = all.iter().map(|tables| tables.left_out.len()).sum();
    if args.strict && left > 0 {
        return Err(Error::unfit("--strict", format!("{left} entries were left out, see above")));
    }
    Ok(())
}

fn nccl(args: &NcclTests, output: Output) -> Result<()> {
    check_writable(&args.out, args.overwrite)?;
    let program = format!("moe-frontier {}", env!("CARGO_PKG_VERSION"));
    let tables = nccl_tests::read(&args.paths, &program)?;
    let bytes = codec::write(&args.out, &tables, args.overwrite)?;
    let imported = Imported {
        schema: "moe-frontier/import",
        schema_version: "2.0",
        devices: vec![of_device(&tables, &args.out, bytes)],
    };
    output.result(&imported, || text(&imported))
}

/// Writes the tables of one device; the path and the length of the file.
fn write(args: &Aiconfigurator, tables: &EngineTables, several: bool) -> Result<(PathBuf, usize)> {
    if let Some(folder) = &args.pack {
        return pack::write(folder, tables, args.overwrite);
    }
    let out = if several { beside(&args.out, &tables.device) } else { args.out.clone() };
    let bytes = codec::write(&out, tables, args.overwrite)?;
    Ok((out, bytes))
}

/// `engine.tables` of an H100 SXM: `engine.h100_sxm.tables`.
fn beside(out: &Path, device: &str) -> PathBuf {
    let name = DeviceSpec::recognised(device).map_or_else(
        || device.to_lowercase().replace(|c: char| !c.is_ascii_alphanumeric(), "_"),
        |device| device.short_name().to_owned(),
    );
    let extension = out.extension().unwrap_or_default().to_string_lossy();
    out.with_extension(format!("{name}.{extension}"))
}

fn of_device<'a>(tables: &'a EngineTables, out: &Path, bytes: usize) -> ImportedDevice<'a> {
    let count = |table: Table| {
        let series = tables.of(table);
        let cells = series.iter().map(|s| tables.points(s).0.len()).sum();
        let spreads = series.iter().map(|s| f64::from(s.spread)).filter(|s| *s > 0.0);
        let spreads: Vec<f64> = spreads.collect();
        TableCount {
            table: table.label(),
            series: series.len(),
            cells,
            repeated_series: spreads.len(),
            spread_rel: spreads.iter().copied().reduce(f64::max),
        }
    };
    ImportedDevice {
        out: out.display().to_string(),
        bytes,
        device: &tables.device,
        cells: tables.cells(),
        series: tables.series.len(),
        tables: Table::ALL.map(count).into_iter().filter(|t| t.series > 0).collect(),
        engines: tables.engines(|_| true),
        files: &tables.files,
        left_out: &tables.left_out,
    }
}

fn text(imported: &Imported) -> String {
    use std::fmt::Write;
    let mut text = String::new();
    for d in &imported.devices {
        let _ = writeln!(
            text,
            "{}: {} cells in {} series from {} files into {} ({:.2} MB)",
            d.device,
            d.cells,
            d.series,
            d.files.len(),
            d.out,
            d.bytes as f64 / 1e6
        );
        for table in &d.tables {
            let repeats = table.spread_rel.map_or_else(String::new, |spread| {
                format!(
                    "; repeated rows in {} of them, {:.2} % apart at most (standard deviation)",
                    table.repeated_series,
                    100.0 * spread
                )
            });
            let _ = writeln!(
                text,
                "  {}: {} series, {} cells{repeats}",
                table.table, table.series, table.cells
            );
        }
        let _ = writeln!(text, "  engines: {}", d.engines.join(", "));
        for left in d.left_out {
            let _ =
                writeln!(text, "  left out: {} rows of {}: {}", left.rows, left.what, left.reason);
        }
    }
    text
}
