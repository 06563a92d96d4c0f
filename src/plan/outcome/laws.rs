//! What each law answers, and what they answer together.

use serde::{Deserialize, Serialize};

use super::Interval;

/// The answer under one law; losses of two laws are never compared.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LawAnswer {
    /// Identifier.
    pub law: String,
    /// How the architecture became the law's own variables.
    pub mapping: String,
    /// Share of the mixture; 0 for a law that was refused.
    pub weight: f64,
    /// Why the law ranks nothing here, if so.
    pub refused: Option<String>,
    /// Expert counts that it says nothing about.
    pub silent_on: Vec<usize>,
    /// The loss that its candidates reach.
    pub target_loss_nats: Option<f64>,
    /// Expert count whose recommended candidate is the cheapest in all.
    pub winner: Option<usize>,
    /// Total cost of that candidate.
    pub total_usd: Option<f64>,
    /// Its training tokens per active parameter.
    pub tokens_per_param: Option<f64>,
    /// Largest factor by which it lies outside the law's fitted range; 1 is inside.
    pub extrapolation: Option<f64>,
    /// Training FLOPs that more experts save at the target loss, from each expert count to the next.
    #[serde(default)]
    pub flops_saved: Vec<FlopsSaved>,
    /// Probability of each expert count's recommended candidate to be the cheapest, within this law.
    pub p_best: Vec<ExpertShare>,
    /// Probability that none of them can be had.
    pub p_none: f64,
}

/// Training FLOPs that fewer experts need over those of more, at one loss and loss-optimal sizes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FlopsSaved {
    /// Fewer experts per layer.
    pub from_experts: usize,
    /// More experts per layer.
    pub to_experts: usize,
    /// The ratio.
    pub factor: f64,
}

impl FlopsSaved {
    /// The ratio of each doubling of experts between the two.
    pub fn per_doubling(&self) -> f64 {
        self.factor.powf(1.0 / (self.to_experts as f64 / self.from_experts as f64).log2())
    }
}

/// A probability of an expert count.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExpertShare {
    /// Experts per layer.
    pub experts: usize,
    /// The probability.
    pub p: f64,
}

/// The answer over all laws: one model for each expert count, whichever law holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mixture {
    /// The expert count most likely to be the cheapest.
    pub winner: Option<usize>,
    /// One model for each expert count that any law has a candidate of.
    pub choices: Vec<Choice>,
    /// Probability that none of them reaches the loss and keeps the service level; with all `p_best` it
    /// sums to 1.
    pub p_none: f64,
}

/// One model of a mixture.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Choice {
    /// Experts per layer.
    pub experts: usize,
    /// Active parameters.
    pub n_active: f64,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Layers.
    pub num_layers: usize,
    /// Probability to be the cheapest of the choices in total cost.
    pub p_best: f64,
    /// Mean dollars beyond the cheapest of the choices, over the laws that know the expert count and
    /// the draws in which any choice can be had; at most the training limit, which is what one that
    /// cannot be had has cost.
    pub expected_regret_usd: Option<f64>,
    /// Share of the mixture that those laws and draws are.
    #[serde(default)]
    pub regret_share: f64,
    /// What it costs over the laws; `null` where no law can have it.
    #[serde(default)]
    pub costs: Option<ChoiceCosts>,
}

/// What a model of a mixture costs: means over the laws under which it can be had, by their weights.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChoiceCosts {
    /// All parameters.
    pub n_total: f64,
    /// Training cost in dollars.
    pub train_usd: f64,
    /// Serving cost, all dollars on output tokens.
    pub serve_usd_per_million_output_tokens: f64,
    /// Training plus serving over the lifetime of each law.
    pub total_usd: f64,
    /// 95 % interval of `total_usd` over laws and draws.
    pub total_usd_interval: Option<Interval>,
}
