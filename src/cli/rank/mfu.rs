//! Training MFU as a flag: one number, or one an expert count.

use crate::cli::parse::share;

/// The MFU of a published training run, for `6 N D` of active parameters on the device's dense rate, and
/// where it comes from: 14.8e12 tokens in 2.664e6 hours of H800 with 37e9 active parameters.
pub(super) const PUBLISHED: (&str, f64) = ("DeepSeek-V3, 256 experts (arXiv 2412.19437)", 0.346);

/// What the model of the training step was checked against.
#[cfg(feature = "cli")]
pub(super) const CHECKED: &str = "five published trainings of MoE models in 16 bits reach 1.0 to 1.9 times what \
                                  the model says (github NVIDIA-NeMo/Megatron-Bridge)";

/// Training MFU as it was asked for.
#[derive(Clone, Debug, PartialEq)]
pub enum Mfu {
    /// Of some expert counts, ascending; one number is that of a dense model and of all others.
    Given(Vec<(usize, f64)>),
    /// By the training step of each expert count's loss-optimal model.
    Model,
}

/// The word for [`Mfu::Model`].
pub(super) const MODEL: &str = "model";

impl Mfu {
    /// Reads `0.4`, `1:0.45,8:0.38` or `model`.
    ///
    /// # Errors
    /// A message that names the accepted forms.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text == MODEL {
            return Ok(Self::Model);
        }
        if !text.contains(':') {
            return Ok(Self::Given(vec![(1, share(text)?)]));
        }
        let mut pairs = text.split(',').map(pair).collect::<Result<Vec<_>, String>>()?;
        pairs.sort_by_key(|p| p.0);
        if pairs.windows(2).any(|w| w[0].0 == w[1].0) {
            return Err("an expert count is given twice".into());
        }
        Ok(Self::Given(pairs))
    }

    /// The mean of the shares: what a single number would be; `None` where they are still to be modelled.
    pub(super) fn mean(&self) -> Option<f64> {
        match self {
            Self::Given(pairs) => Some(mean(pairs)),
            Self::Model => None,
        }
    }

    /// The shares by expert count; empty when there is one for all, or none yet.
    pub(super) fn by_experts(&self) -> Vec<(usize, f64)> {
        match self {
            Self::Given(pairs) if pairs.len() > 1 => pairs.clone(),
            Self::Given(_) | Self::Model => Vec::new(),
        }
    }
}

/// The mean of shares.
pub(super) fn mean(pairs: &[(usize, f64)]) -> f64 {
    pairs.iter().map(|p| p.1).sum::<f64>() / pairs.len() as f64
}

/// Shares by expert count as the flag takes them.
pub(super) fn pairs(shares: &[(usize, f64)]) -> String {
    let pairs: Vec<String> = shares.iter().map(|(e, share)| format!("{e}:{share}")).collect();
    pairs.join(",")
}

impl std::fmt::Display for Mfu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Given(given) => match given.as_slice() {
                [(_, share)] => write!(f, "{share}"),
                all => f.write_str(&pairs(all)),
            },
            Self::Model => f.write_str(MODEL),
        }
    }
}

fn pair(text: &str) -> Result<(usize, f64), String> {
    let form = || format!("`{text}` is not experts:share, such as 8:0.38");
    let (experts, value) = text.split_once(':').ok_or_else(form)?;
    let experts = experts.trim().parse().ok().filter(|e| *e > 0).ok_or_else(form)?;
    Ok((experts, share(value.trim()).map_err(|_| form())?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::rank::inputs::MFU;

    #[test]
    fn the_published_run_lies_in_the_range_that_is_drawn() {
        let hours = 2.664e6;
        let deepseek = 6.0 * 37e9 * 14.8e12 / (hours * 3600.0 * 989e12);
        assert!((deepseek - PUBLISHED.1).abs() < 5e-4, "{deepseek}");
        assert!(PUBLISHED.1 >= MFU.1 && PUBLISHED.1 <= MFU.2);
    }

    #[test]
    fn one_number_or_pairs_are_read() {
        assert_eq!(Mfu::parse("0.4").unwrap().by_experts(), []);
        let by = Mfu::parse("32:0.3,1:0.45, 8:0.38").unwrap();
        assert_eq!(by.by_experts(), [(1, 0.45), (8, 0.38), (32, 0.3)]);
        assert_eq!(by.to_string(), "1:0.45,8:0.38,32:0.3");
        assert_eq!(Mfu::parse("model").unwrap(), Mfu::Model);
        for bad in ["nan", "models", "1.2", "8:", "x:0.3", "8:0.3,8:0.4", "0:0.4"] {
            assert!(Mfu::parse(bad).is_err(), "{bad}");
        }
    }
}
