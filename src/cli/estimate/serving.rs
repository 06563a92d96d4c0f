//! How the server is run, for every command that predicts one.

use clap::Args;

use crate::ask::ServerOptions;
use crate::cli::parse::{portion, positive_whole, share};

/// Settings of the server that change its steps.
#[derive(Args, Clone, Debug, Default)]
pub struct ServingArgs {
    /// Cache: bf16 or fp8; by default as published, or 8 bits where the engine's recipes keep it so.
    #[arg(long, value_name = "FORMAT")]
    pub cache: Option<String>,
    /// Tokens that each decode step drafts and checks (multi-token prediction).
    #[arg(long, value_name = "N", value_parser = positive_whole)]
    pub mtp: Option<usize>,
    /// Share of the drafts that are kept; by default what the model's authors state.
    #[arg(long, value_name = "SHARE", value_parser = share, requires = "mtp")]
    pub accept: Option<f64>,
    /// Share of the prompt tokens found in the prefix cache.
    #[arg(long, value_name = "SHARE", value_parser = portion, default_value = "0")]
    pub prefix_hit: f64,
    /// Copies of busy experts over all expert-parallel ranks; experts and copies divide over them.
    #[arg(long, value_name = "N", default_value = "0")]
    pub redundant_experts: usize,
    /// Steps run as two halves, one exchanging tokens between ranks while the other computes.
    #[arg(long)]
    pub overlap: bool,
}

impl ServingArgs {
    /// What these flags ask for.
    pub(crate) fn options(&self) -> ServerOptions {
        ServerOptions {
            cache: self.cache.clone(),
            mtp: self.mtp,
            accept: self.accept,
            prefix_hit: self.prefix_hit,
            redundant_experts: self.redundant_experts,
            overlap: self.overlap,
        }
    }
}
