//! The command line: parse (no I/O), resolve, call the library, print.
//!
//! Results go to stdout, everything else (progress, warnings, errors) to stderr. With `--json`
//! stdout holds exactly one JSON document.

use clap::{Parser, Subcommand};

use crate::Result;

pub mod accuracy;
pub mod estimate;
pub mod import;
pub mod output;
pub mod parse;
pub mod progress;
pub mod size;

pub use output::Output;

/// Which mixture-of-experts model to train and what it costs to serve, from measurements.
#[derive(Debug, Parser)]
#[command(name = "moe-frontier", version, propagate_version = true, max_term_width = 100)]
pub struct Cli {
    /// Print one JSON document on stdout instead of text.
    #[arg(long, global = true)]
    pub json: bool,

    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands; each has a module of its own.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Third-party measured tables into a file that `estimate` and `size` read.
    Import(import::ImportArgs),
    /// GPUs, layout and replicas for a request rate under a service level.
    Size(Box<size::SizeArgs>),
    /// The page that compares the serving model with measured servers.
    Accuracy(accuracy::AccuracyArgs),
    /// TTFT, TPOT, throughput, memory and cost of one deployment, or of a file of measured points.
    Estimate(Box<estimate::EstimateArgs>),
}

/// Runs a parsed command.
///
/// # Errors
/// Whatever the command reports; [`crate::Error::exit_code`] says how the program ends.
pub fn run(cli: Cli) -> Result<()> {
    let output = Output::new(cli.json);
    match cli.command {
        Command::Import(args) => import::run(args, output),
        Command::Size(args) => size::run(&args, output),
        Command::Accuracy(args) => accuracy::run(&args, output),
        Command::Estimate(args) => estimate::run(&args, output),
    }
}
