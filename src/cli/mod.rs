//! The command line: parse (no I/O), resolve, call the library, print.
//!
//! Results go to stdout, everything else (progress, warnings, errors) to stderr. With `--json`
//! stdout holds exactly one JSON document.

use clap::{Parser, Subcommand};

use crate::Result;

pub mod accuracy;
pub mod compare;
pub mod device;
pub mod doctor;
pub mod estimate;
pub mod import;
pub mod law;
pub mod measure;
pub mod output;
pub mod parse;
pub mod preset;
pub mod probe;
pub mod profile;
pub mod progress;
pub mod rank;
pub mod report;
pub mod signals;
pub mod size;
pub mod store;
pub mod worker;

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
    /// THE main job: which expert count to train, from training cost against serving cost.
    Rank(Box<rank::RankArgs>),
    /// Times MoE layers and the device's ceilings; writes a latency profile.
    Measure(Box<measure::MeasureArgs>),
    /// Draw the plots and the page of a rank.json again.
    Report(report::Args),
    /// Two stored profiles: FASTER, SLOWER, SAME or AMBIGUOUS per cell.
    Compare(compare::Args),
    /// List and show the models that come with the program.
    Preset(preset::Args),
    /// List and show the devices that come with the program.
    Device(device::Args),
    /// What was found: processor, kernels, GPU driver, stored profiles.
    Doctor(doctor::Args),
    /// Loss laws: list them, evaluate them, find the best size for a budget.
    #[command(subcommand)]
    #[command(
        after_help = "Example: moe-frontier law optimal --experts 8 --train-flops 1e21 --json"
    )]
    Law(law::Command),
    /// Third-party measured tables into a file that `estimate` and `size` read.
    Import(import::ImportArgs),
    /// GPUs, layout and replicas for a request rate under a service level.
    Size(Box<size::SizeArgs>),
    /// The page that compares the serving model with measured servers.
    Accuracy(accuracy::AccuracyArgs),
    /// TTFT, TPOT, throughput, memory and cost of one deployment, or of a file of measured points.
    Estimate(Box<estimate::EstimateArgs>),
    /// Runs kernels for `measure`.
    #[command(hide = true)]
    Worker(worker::WorkerArgs),
    /// Asks the GPU driver for other commands.
    #[command(hide = true)]
    Probe(probe::ProbeArgs),
}

/// Runs a parsed command.
///
/// # Errors
/// Whatever the command reports; [`crate::Error::exit_code`] says how the program ends.
pub fn run(cli: Cli) -> Result<()> {
    let output = Output::new(cli.json);
    if !matches!(cli.command, Command::Worker(_) | Command::Probe(_)) {
        signals::install()?;
    }
    match cli.command {
        Command::Measure(args) => measure::run(&args, output),
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
        Command::Estimate(args) => estimate::run(&args, output),
        Command::Worker(args) => worker::run(&args),
        Command::Probe(args) => probe::run(&args),
    }
}

/// What clap says of wrong arguments as one line: what is wrong, then its tips. The usage that it
/// prints below is what `--help` shows.
pub fn usage_line(error: &clap::Error) -> String {
    let text = error.to_string();
    let joined = |part: &str| part.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut parts = text.split("\n\n").map(joined).filter(|part| !part.is_empty());
    let mut line = parts.next().unwrap_or_else(|| "error: wrong arguments".to_owned());
    for tip in parts.filter(|part| part.starts_with("tip:")) {
        line += "; ";
        line += &tip;
    }
    crate::error::tidy(&line) + "; --help shows the usage"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(arguments: &[&str]) -> String {
        let all = [&["moe-frontier"], arguments].concat();
        usage_line(&Cli::try_parse_from(all).unwrap_err())
    }

    #[test]
    fn wrong_arguments_are_told_in_one_line() {
        let wrong = line(&["rank", "--price", "nan"]);
        assert!(
            wrong.starts_with("error: invalid value 'nan' for '--price <USD|tier:NAME>'"),
            "{wrong}"
        );
        assert!(wrong.contains("write 1e21"), "{wrong}");
        assert!(
            line(&["rank", "--prise", "1"]).contains("tip: a similar argument exists: '--price'")
        );
        assert!(line(&["report"]).contains("were not provided: <RANK_JSON>"));
        assert!(
            line(&["compare", "a", "b", "--fail-on", "x"]).contains("[possible values: slower]")
        );
        for all in [wrong, line(&["rank", "a\n\nb"]), line(&["nothing"])] {
            assert_eq!(all.lines().count(), 1, "{all}");
            assert!(!all.contains("Usage:"), "{all}");
        }
    }
}
