//! stub until merge
use crate::Result;
use crate::cli::Output;
use clap::{Args, Subcommand};
pub mod vllm_bench;
/// x
#[derive(Debug, Args)]
pub struct ImportArgs {
    /// x
    #[command(subcommand)]
    pub format: Format,
}
/// x
#[derive(Debug, Subcommand)]
pub enum Format {
    /// x
    VllmBench(vllm_bench::VllmBench),
}
/// x
pub fn run(args: ImportArgs, output: Output) -> Result<()> {
    match args.format {
        Format::VllmBench(args) => vllm_bench::run(&args, output),
    }
}
