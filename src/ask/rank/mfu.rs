//! Training MFU: one number, or one an expert count.

use crate::{Error, Result};

/// The MFU of a published training run, for `6 N D` of active parameters on the device's dense rate, and
/// where it comes from: 14.8e12 tokens in 2.664e6 hours of H800 with 37e9 active parameters.
pub(crate) const PUBLISHED: (&str, f64) = ("DeepSeek-V3, 256 experts (arXiv 2412.19437)", 0.346);

/// Share of the training device's peak that training reaches, for all expert counts or for some of them;
/// between them it is linear in ln(experts), beyond them that of the nearest.
///
/// ```
/// use moe_frontier::Mfu;
/// let mfu = Mfu::by_experts([(1, 0.45), (8, 0.38), (32, 0.30)])?;
/// assert_eq!(mfu.to_string(), "1:0.45,8:0.38,32:0.3");
/// assert!(Mfu::all(1.2).is_err());
/// # Ok::<(), moe_frontier::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Mfu(
    /// Ascending; none where they are to be modelled.
    Vec<(usize, f64)>,
);

/// The word for shares by the training step.
pub(crate) const MODEL: &str = "model";

/// What the model of the training step was checked against.
#[cfg(feature = "native")]
pub(crate) const CHECKED: &str = "five published trainings of MoE models in 16 bits reach 1.0 to 1.9 times what \
                                   the model says (github NVIDIA-NeMo/Megatron-Bridge)";

/// The mean of shares.
pub(crate) fn mean(pairs: &[(usize, f64)]) -> f64 {
    pairs.iter().map(|p| p.1).sum::<f64>() / pairs.len() as f64
}

/// Shares by expert count as the flag takes them.
pub(crate) fn pairs(shares: &[(usize, f64)]) -> String {
    let pairs: Vec<String> = shares.iter().map(|(e, share)| format!("{e}:{share}")).collect();
    pairs.join(",")
}

impl Mfu {
    /// By the training step of each expert count's loss-optimal model, on the kernels of the training
    /// device.
    pub const fn modelled() -> Self {
        Self(Vec::new())
    }

    /// Whether the shares are still to be modelled.
    pub(crate) const fn is_modelled(&self) -> bool {
        self.0.is_empty()
    }

    /// One share for all expert counts.
    ///
    /// # Errors
    /// [`Error::Usage`] for a share that is not above 0 and at most 1.
    pub fn all(share: f64) -> Result<Self> {
        Self::by_experts([(1, share)])
    }

    /// A share for each of these expert counts.
    ///
    /// # Errors
    /// As [`Self::all`]; for an expert count of 0 or one that is given twice.
    pub fn by_experts(pairs: impl IntoIterator<Item = (usize, f64)>) -> Result<Self> {
        let mut pairs: Vec<(usize, f64)> = pairs.into_iter().collect();
        pairs.sort_by_key(|p| p.0);
        let wrong = |reason: &str| Err(Error::usage("--mfu", reason));
        if pairs.is_empty() || pairs.iter().any(|p| !(p.1 > 0.0 && p.1 <= 1.0)) {
            return wrong("takes shares above 0 and at most 1");
        }
        if pairs[0].0 == 0 {
            return wrong("a model has one expert or more");
        }
        if pairs.windows(2).any(|w| w[0].0 == w[1].0) {
            return wrong("an expert count is given twice");
        }
        Ok(Self(pairs))
    }

    /// The mean of the shares: what a single number would be; `None` where they are still to be modelled.
    pub(crate) fn mean(&self) -> Option<f64> {
        (!self.is_modelled()).then(|| mean(&self.0))
    }

    /// The shares by expert count; empty when there is one for all, or none yet.
    pub(crate) fn pairs(&self) -> Vec<(usize, f64)> {
        if self.0.len() > 1 { self.0.clone() } else { Vec::new() }
    }
}

impl std::fmt::Display for Mfu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0.as_slice() {
            [] => f.write_str(MODEL),
            [(_, share)] => write!(f, "{share}"),
            all => f.write_str(&pairs(all)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ask::rank::inputs::MFU;

    #[test]
    fn the_published_run_lies_in_the_range_that_is_drawn() {
        let hours = 2.664e6;
        let deepseek = 6.0 * 37e9 * 14.8e12 / (hours * 3600.0 * 989e12);
        assert!((deepseek - PUBLISHED.1).abs() < 5e-4, "{deepseek}");
        assert!(PUBLISHED.1 >= MFU.1 && PUBLISHED.1 <= MFU.2);
    }
}
