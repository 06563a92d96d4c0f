//! One training, several sizes to serve.

use serde::{Deserialize, Serialize};

/// The recommended model of the first law as one trunk with several exits (Song et al. 2025,
/// arXiv 2512.23407), each of them a model to serve.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Familial {
    /// Experts per layer.
    pub experts: usize,
    /// Exits of the trunk, equally far apart; the last is the trunk itself.
    pub exits: usize,
    /// Exponent of the number of exits in the loss.
    pub exponent: f64,
    /// Factor on the loss, the mean over the exits, at the same size and tokens.
    pub loss_factor: f64,
    /// Training tokens with which the mean loss of the exits is the target; `null` where none do.
    pub tokens: Option<f64>,
    /// Cost of that one training, heads of the exits included.
    pub train_usd: Option<f64>,
    /// Cost of training every size by itself on as many tokens as the recommended model.
    pub separate_train_usd: f64,
    /// Why there is no training with exits.
    pub missing: Option<String>,
    /// The sizes, smallest first.
    pub sizes: Vec<ExitSize>,
}

/// One exit as a model to serve.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExitSize {
    /// Layers up to the exit.
    pub num_layers: usize,
    /// Active parameters, with embeddings.
    pub n_active: f64,
    /// All parameters.
    pub n_total: f64,
    /// Serving cost with all traffic at this exit; `null` when it cannot be served.
    pub serve_usd_per_million_output_tokens: Option<f64>,
    /// Mean time per output token in milliseconds.
    pub tpot_ms: Option<f64>,
}
