//! Which expert each token visits: the router's settings, its result, and the rows grouped by expert.

use crate::config::{RouterConfig, Scoring};
use crate::kernels::MAX_EXPERTS;
use crate::{Error, Result};

/// A router's settings with its per-expert bias.
#[derive(Clone, Debug, PartialEq)]
pub struct RouterSpec {
    /// Settings.
    pub config: RouterConfig,
    /// Bias added for the choice only, `[experts]`; empty without.
    pub bias: Vec<f32>,
}

impl RouterSpec {
    /// Softmax over all experts, top-k, renormalised: the common router.
    pub const fn softmax() -> Self {
        Self { config: RouterConfig::SOFTMAX, bias: Vec::new() }
    }

    /// Checks the settings for `experts` experts and `top_k` choices.
    ///
    /// # Errors
    /// [`Error::Usage`] naming the setting.
    pub fn validate(&self, experts: usize, top_k: usize) -> Result<()> {
        let c = &self.config;
        if !(1..=MAX_EXPERTS).contains(&experts) || !(1..=experts).contains(&top_k) {
            return Err(Error::usage(
                "experts and top_k",
                format!("{experts} and {top_k}: need 1 <= top_k <= experts <= {MAX_EXPERTS}"),
            ));
        }
        if c.scoring == Scoring::SparseMixer {
            return Err(Error::usage("scoring", "sparse_mixer is counted but not executed here"));
        }
        if c.n_group == 0 || !experts.is_multiple_of(c.n_group) {
            return Err(Error::usage(
                "n_group",
                format!("{} does not divide the {experts} experts", c.n_group),
            ));
        }
        if !(1..=c.n_group).contains(&c.topk_group) || c.topk_group * (experts / c.n_group) < top_k
        {
            return Err(Error::usage(
                "topk_group",
                format!("{} groups of {} hold fewer than {top_k} experts", c.topk_group, c.n_group),
            ));
        }
        if c.scoring == Scoring::Prototype && !experts.is_multiple_of(top_k) {
            return Err(Error::usage(
                "top_k",
                format!("{top_k} prototypes do not divide the {experts} experts"),
            ));
        }
        if c.bias != (self.bias.len() == experts) || (!c.bias && !self.bias.is_empty()) {
            return Err(Error::usage(
                "bias",
                format!("needs {experts} values, has {}", self.bias.len()),
            ));
        }
        if self.bias.iter().any(|b| !b.is_finite()) {
            return Err(Error::usage("bias", "has a value that is not finite"));
        }
        Ok(())
    }
}

/// What a router chose.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Routed {
    /// Expert of each (token, slot), `[tokens, top_k]`; distinct within a token.
    pub ids: Vec<u32>,
    /// Weight of each (token, slot).
    pub weights: Vec<f32>,
}

/// Rows grouped by expert, in the order of (token, slot) within each expert.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Alignment {
    /// First row of each expert, and the number of rows last; `[experts + 1]`.
    pub offsets: Vec<usize>,
    /// Pair `token * top_k + slot` of each row.
    pub sorted_pairs: Vec<u32>,
    /// Row of each pair: the inverse of `sorted_pairs`.
    pub pair_rows: Vec<u32>,
}

impl Alignment {
    /// Rows of one expert.
    pub fn rows(&self, expert: usize) -> std::ops::Range<usize> {
        self.offsets[expert]..self.offsets[expert + 1]
    }
}
