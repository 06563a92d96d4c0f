//! Training MFU as a flag: one number, or one an expert count.

use crate::cli::parse::share;

/// The MFU of a published training run, for `6 N D` of active parameters on the device's dense rate, and
/// where it comes from: 14.8e12 tokens in 2.664e6 hours of H800 with 37e9 active parameters.
pub(super) const PUBLISHED: (&str, f64) = ("DeepSeek-V3, 256 experts (arXiv 2412.19437)", 0.346);

/// The MFU of some expert counts, ascending; one number is that of a dense model and of all others.
#[derive(Clone, Debug, PartialEq)]
pub struct Mfu(pub(super) Vec<(usize, f64)>);

impl Mfu {
    /// Reads `0.4` or `1:0.45,8:0.38`.
    ///
    /// # Errors
    /// A message that names the accepted forms.
    pub fn parse(text: &str) -> Result<Self, String> {
        if !text.contains(':') {
            return Ok(Self(vec![(1, share(text)?)]));
        }
        let mut pairs = text.split(',').map(pair).collect::<Result<Vec<_>, String>>()?;
        pairs.sort_by_key(|p| p.0);
        if pairs.windows(2).any(|w| w[0].0 == w[1].0) {
            return Err("an expert count is given twice".into());
        }
        Ok(Self(pairs))
    }

    /// The mean of the shares: what a single number would be.
    pub(super) fn mean(&self) -> f64 {
        self.0.iter().map(|p| p.1).sum::<f64>() / self.0.len() as f64
    }

    /// The shares by expert count; empty when there is one for all.
    pub(super) fn by_experts(&self) -> Vec<(usize, f64)> {
        if self.0.len() > 1 { self.0.clone() } else { Vec::new() }
    }
}

impl std::fmt::Display for Mfu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let [(_, share)] = self.0.as_slice() {
            return write!(f, "{share}");
        }
        let pairs: Vec<String> = self.0.iter().map(|(e, share)| format!("{e}:{share}")).collect();
        f.write_str(&pairs.join(","))
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
        for bad in ["nan", "1.2", "8:", "x:0.3", "8:0.3,8:0.4", "0:0.4"] {
            assert!(Mfu::parse(bad).is_err(), "{bad}");
        }
    }
}
