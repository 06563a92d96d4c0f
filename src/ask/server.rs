//! How the server is run, for every question that predicts one.

use crate::config::DType;
use crate::serving::{CacheFormat, EngineCosts, Speculation, published};
use crate::{Error, Result};

/// Settings of the server that change its steps.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ServerOptions {
    /// Format of the KV cache: `bf16` or `fp8`; by default as published, or 8 bits where the engine's
    /// recipes keep it so.
    pub cache: Option<String>,
    /// Tokens that each decode step drafts and checks (multi-token prediction).
    pub mtp: Option<usize>,
    /// Share of the drafts that are kept, above 0 and at most 1; by default what the model's authors
    /// state.
    pub accept: Option<f64>,
    /// Share of the prompt tokens found in the prefix cache, from 0 to 1.
    pub prefix_hit: f64,
    /// Copies of busy experts over all expert-parallel ranks; experts and copies divide over them.
    pub redundant_experts: usize,
    /// Whether steps run as two halves, one exchanging tokens between ranks while the other computes.
    pub overlap: bool,
}

impl ServerOptions {
    /// An engine's constants under these settings.
    ///
    /// # Errors
    /// [`Error::Usage`] for an unknown format, a share outside 0 to 1, or drafts without a known
    /// share.
    pub(crate) fn applied(&self, model: &str, costs: &EngineCosts) -> Result<EngineCosts> {
        let cache = match self.cache.as_deref().map(str::to_lowercase).as_deref() {
            None => costs.cache,
            Some("bf16") => CacheFormat::Set(DType::Bf16),
            Some("fp8") => CacheFormat::Set(DType::Fp8),
            Some(other) => {
                return Err(Error::usage("--cache", format!("`{other}`: takes bf16 or fp8")));
            }
        };
        let speculation = match self.mtp {
            Some(drafts) => Speculation::mtp(model, drafts, self.accept)?,
            None => Speculation::NONE,
        };
        let costs = EngineCosts {
            cache,
            speculation,
            prefix_hit: self.prefix_hit,
            redundant_experts: self.redundant_experts,
            overlap: self.overlap,
            ..costs.clone()
        };
        costs.validate().map(|()| costs)
    }

    /// Where the share of kept drafts comes from.
    pub(crate) fn accept_source(&self, model: &str) -> Option<&'static str> {
        let drafts = self.mtp?;
        match self.accept {
            Some(_) => Some("--accept"),
            None => published(model, drafts).map(|p| p.source),
        }
    }
}
