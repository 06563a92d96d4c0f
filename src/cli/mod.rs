//! The command line: parse (no I/O), resolve, call the library, print.
//!
//! Results go to stdout, everything else (progress, warnings, errors) to stderr. With `--json`
//! stdout holds exactly one JSON document.

use std::ffi::OsString;
use std::io::Write;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::Result;

pub mod accuracy;
pub mod calibrate;
pub mod compare;
pub mod completions;
pub mod device;
pub mod doctor;
pub mod embedded;
pub mod emit;
pub mod estimate;
pub mod explain;
pub mod failure;
pub mod group_worker;
pub mod help;
pub mod import;
pub mod law;
pub mod live;
pub mod man;
pub mod measure;
pub mod merge;
pub mod output;
pub mod parse;
pub mod preset;
pub mod probe;
pub mod profile;
pub mod progress;
pub mod rank;
pub mod repeat;
pub mod report;
pub mod settings;
pub mod signals;
pub mod size;
pub mod store;
pub mod worker;

pub use failure::Failure;
pub use output::Output;

/// Which mixture-of-experts model to train and what it costs to serve, from measurements.
#[derive(Debug, Parser)]
#[command(name = "moe-frontier", version, propagate_version = true, max_term_width = 100)]
pub struct Cli {
    /// Print one JSON document on stdout instead of text.
    #[arg(long, global = true, value_parser = clap::builder::BoolishValueParser::new())]
    pub json: bool,

    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands; each has a module of its own.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Rank expert counts by total cost: training plus serving.
    Rank(Box<rank::RankArgs>),
    /// Time MoE layers and the device's ceilings; write a latency profile.
    Measure(Box<measure::MeasureArgs>),
    /// Merge the shards of a sweep (`measure --plan`) into one profile.
    Merge(merge::Args),
    /// Re-render the page and the plots from a rank.json.
    Report(report::Args),
    /// Compare two profiles or two commands: FASTER, SLOWER, SAME or AMBIGUOUS per cell.
    Compare(compare::Args),
    /// List and show the models that come with the program.
    Preset(preset::Args),
    /// List and show the devices that come with the program.
    Device(device::Args),
    /// Show what was found: CPU, kernels, GPU driver, stored profiles.
    Doctor(doctor::Args),
    /// List, evaluate, fit and plot loss laws; find the best size for a budget.
    #[command(subcommand)]
    #[command(
        after_help = "Example: moe-frontier law optimal --experts 8 --train-flops 1e21 --json"
    )]
    Law(law::Command),
    /// Convert third-party kernel tables and load-generator results.
    Import(import::ImportArgs),
    /// Size a deployment: GPUs, layout and replicas for a request rate under a service level.
    Size(Box<size::SizeArgs>),
    /// Compare the serving model with measured servers; write the page.
    Accuracy(accuracy::AccuracyArgs),
    /// Fit an engine's constants to your runs, or name the runs to make.
    Calibrate(calibrate::CalibrateArgs),
    /// Predict TTFT, TPOT, throughput, memory and cost of one deployment, or of measured points.
    Estimate(Box<estimate::EstimateArgs>),
    /// Explain a term of the tables.
    Explain(explain::Args),
    /// Print completions for a shell.
    Completions(completions::Args),
    /// Print a manual page, or write all of them.
    Man(man::Args),
    /// Runs kernels for `measure`.
    #[command(hide = true)]
    Worker(worker::WorkerArgs),
    /// Runs one rank for `measure --group`.
    #[command(hide = true)]
    GroupWorker,
    /// Asks the GPU driver for other commands.
    #[command(hide = true)]
    Probe(probe::ProbeArgs),
}

/// Wider help is hard to read.
const WIDEST_HELP: usize = 100;

/// Runs the program with the words of a command line, its own name first; the exit code.
pub fn program(words: Vec<OsString>) -> u8 {
    let shown: Vec<String> = words.iter().map(|w| w.to_string_lossy().into_owned()).collect();
    let end = |failure: &Failure, json: bool| {
        let _ = writeln!(std::io::stderr(), "{}", failure.line(json));
        failure.exit_code()
    };
    let cli = match parse(words) {
        Ok(cli) => cli,
        Err(Failure::Usage(error)) if failure::is_help(&error) => {
            return failure::show_help(&error);
        }
        Err(failure) => {
            let asked = std::env::var("MOE_FRONTIER_JSON").ok();
            let words = shown.iter().map(String::as_str);
            return end(&failure, failure::asks_for_json(words, asked.as_deref()));
        }
    };
    let json = cli.json;
    match run(cli) {
        Ok(()) => 0,
        Err(error) => end(&error.into(), json),
    }
}

/// A command line, with variables and the file of settings in it; the first word is the program's name.
///
/// # Errors
/// Help, version and wrong arguments as [`Failure::Usage`]; a wrong file of settings.
pub fn parse(words: Vec<OsString>) -> Result<Cli, Failure> {
    let settings = settings::Settings::find()?;
    let command = help::finished(settings.apply(repeat::with_flag(Cli::command()))?);
    let mut command = command.term_width(output::width().min(WIDEST_HELP));
    let words = repeat::expanded(words)?;
    let matches =
        command.try_get_matches_from_mut(words).map_err(|e| match settings.blame(&e) {
            Some(ours) => Failure::Run(ours),
            None => Failure::Usage(e),
        })?;
    repeat::record(&command, &matches, |flag| settings.has("rank", flag));
    Cli::from_arg_matches(&matches).map_err(Failure::Usage)
}

/// Runs a parsed command.
///
/// # Errors
/// Whatever the command reports; [`crate::Error::exit_code`] says how the program ends.
pub fn run(cli: Cli) -> Result<()> {
    let output = Output::new(cli.json);
    if !matches!(cli.command, Command::Worker(_) | Command::Probe(_) | Command::GroupWorker) {
        signals::install()?;
        progress::begin_notice("working");
    }
    let done = dispatch(cli.command, output);
    progress::end_notice();
    done
}

fn dispatch(command: Command, output: Output) -> Result<()> {
    match command {
        Command::Measure(args) => measure::run(&args, output),
        Command::Merge(args) => merge::run(&args, output),
        Command::Report(args) => report::run(&args, output),
        Command::Compare(args) => compare::run(&args, output),
        Command::Preset(args) => preset::run(&args, output),
        Command::Device(args) => device::run(&args, output),
        Command::Doctor(args) => doctor::run(&args, output),
        Command::Law(command) => law::run(command, output),
        Command::Import(args) => import::run(args, output),
        Command::Rank(args) => rank::run(&args, output),
        Command::Size(args) => size::run(&args, output),
        Command::Accuracy(args) => accuracy::run(&args, output),
        Command::Calibrate(args) => calibrate::run(&args, output),
        Command::Estimate(args) => estimate::run(&args, output),
        Command::Explain(args) => explain::run(&args, output),
        Command::Completions(args) => completions::run(&args, output),
        Command::Man(args) => man::run(&args, output),
        Command::Worker(args) => worker::run(&args),
        Command::GroupWorker => group_worker::run(),
        Command::Probe(args) => probe::run(&args),
    }
}
