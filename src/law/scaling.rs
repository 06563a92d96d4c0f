//! Laws that can compare expert counts at free size and data: what a ranking needs.

use crate::Result;
use crate::law::PowerLawSlice;

/// A law of parameters, tokens and experts, with the architecture its sizes stand for.
pub trait ExpertScaling: Send + Sync {
    /// The law at one expert count (1 is dense).
    ///
    /// # Errors
    /// [`crate::Error::Usage`] for an expert count the law does not define.
    fn slice(&self, experts: usize) -> Result<PowerLawSlice>;

    /// The architecture of `n_active` active parameters.
    ///
    /// # Errors
    /// [`crate::Error::Usage`] for sizes the law does not define.
    fn closure(&self, experts: usize, n_active: f64) -> Result<Closure>;

    /// How far a point lies outside the runs that the law was fitted to.
    fn extrapolation(&self, experts: usize, n_active: f64, tokens: f64) -> Extrapolation;

    /// Standard deviation of the law's residual in nats, for random draws.
    fn residual_nats(&self) -> f64;

    /// The law at one expert count for every joint draw of its coefficients, in the same order for
    /// all expert counts; empty for published laws, whose covariance is not published.
    fn drawn_slices(&self, _experts: usize) -> Vec<PowerLawSlice> {
        Vec::new()
    }
}

/// Real-valued sizes of the transformer that a law's parameter count stands for: gated feed-forward
/// blocks, multi-head attention, separate embedding and head.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Closure {
    /// Width of the residual stream.
    pub hidden: f64,
    /// FFN width of one expert, and of the layers without experts.
    pub inter: f64,
    /// Layers.
    pub layers: f64,
    /// Layers with experts.
    pub moe_layers: f64,
    /// Experts that one token visits.
    pub top_k: usize,
    /// Vocabulary size.
    pub vocab: f64,
    /// All parameters.
    pub n_total: f64,
}

/// Each variable over the largest value in the fitted runs; above 1 is outside.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Extrapolation {
    /// Training FLOPs.
    pub train_flops: f64,
    /// Active parameters.
    pub n_active: f64,
    /// Training tokens.
    pub tokens: f64,
    /// Tokens per active parameter.
    pub tokens_per_param: f64,
    /// Experts per layer.
    pub experts: f64,
}

impl Extrapolation {
    /// The largest of the factors, at least 1.
    pub fn worst(&self) -> f64 {
        [self.train_flops, self.n_active, self.tokens, self.tokens_per_param, self.experts]
            .into_iter()
            .fold(1.0, f64::max)
    }

    /// Whether every variable lies within the fitted runs.
    pub fn in_fit_range(&self) -> bool {
        self.worst() <= 1.0
    }
}
