//! Speculative decoding: a step checks some drafted tokens besides computing its own.
//!
//! Every drafted token is a row of every GEMM and is routed like any other, so that a step reads more
//! distinct experts; the cache is read once for all of them. A step keeps the drafts up to the first
//! one that is refused. Leviathan, Kalman and Matias, Fast inference from transformers via speculative
//! decoding, ICML 2023 (arXiv 2211.17192), equation 1.

use serde::{Deserialize, Serialize};

use crate::error::in_range;
use crate::{Error, Result};

/// Drafted tokens per step at most: each costs a pass of the draft layer.
const MOST_DRAFTS: usize = 16;

/// Drafts of one step.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Speculation {
    /// Tokens drafted per sequence and step; 0 for none.
    pub drafts: f64,
    /// Probability that a draft is kept when all before it were.
    pub acceptance: f64,
}

impl Speculation {
    /// No drafts.
    pub const NONE: Self = Self { drafts: 0.0, acceptance: 0.0 };

    /// Drafts of multi-token-prediction layers with a stated share kept, else the model's published
    /// one.
    ///
    /// # Errors
    /// [`Error::Usage`] for a share outside 0 to 1, or where none is given nor published.
    pub fn mtp(model: &str, drafts: usize, acceptance: Option<f64>) -> Result<Self> {
        in_range("--mtp", drafts as f64, 0.0, MOST_DRAFTS as f64)?;
        let stated = || published(model, drafts).map(|p| p.acceptance);
        let acceptance = acceptance.or_else(stated).ok_or_else(|| {
            let reason = format!("no share of kept drafts is published for {model}; give one");
            Error::usage("--accept", reason)
        })?;
        let speculation = Self { drafts: drafts as f64, acceptance };
        speculation.validate().map(|()| speculation)
    }

    /// Checks the numbers.
    ///
    /// # Errors
    /// [`Error::Usage`] for a share outside 0 to 1 or more drafts than make sense.
    pub fn validate(&self) -> Result<()> {
        in_range("--mtp", self.drafts, 0.0, MOST_DRAFTS as f64)?;
        in_range("--accept", self.acceptance, 0.0, 1.0).map(drop)
    }

    /// Rows of a decoding sequence in one step.
    pub fn rows(&self) -> f64 {
        1.0 + self.drafts
    }

    /// Output tokens of a sequence per step: its own, and the drafts up to the first refused one.
    pub fn tokens(&self) -> f64 {
        let mut kept = 1.0;
        let mut sum = 1.0;
        let mut left = self.drafts;
        while left > 0.0 {
            kept *= self.acceptance;
            sum += kept * left.min(1.0);
            left -= 1.0;
        }
        sum
    }
}

/// A published share of kept drafts.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Published {
    /// Model by its preset's name.
    pub model: &'static str,
    /// Drafts a step, at most.
    pub drafts: usize,
    /// Share of the drafts that are kept.
    pub acceptance: f64,
    /// Where it is stated.
    pub source: &'static str,
}

/// Shares of kept drafts that are published, of each model the fewest drafts first. A model that was trained
/// with one layer of drafts keeps fewer of the later ones.
const PUBLISHED: [Published; 2] = [
    Published {
        model: "DeepSeek-V3",
        drafts: 1,
        acceptance: 0.85,
        source: "DeepSeek-V3 technical report (arXiv 2412.19437), section 5.4.3: 85 to 90 % of the second \
                 token over topics; the lower end",
    },
    Published {
        model: "DeepSeek-V3",
        drafts: MOST_DRAFTS,
        acceptance: 0.655,
        source: "DeepSeek-V3.2 keeps 2.55 tokens a step of 4 drafts (GLM-5 report, table 2, read in \
                 transcripts): 0.655 of each, taken for 2 drafts and more",
    },
];

/// What is published of a model for so many drafts a step.
pub fn published(model: &str, drafts: usize) -> Option<&'static Published> {
    PUBLISHED.iter().find(|p| p.model.eq_ignore_ascii_case(model) && drafts <= p.drafts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_keeps_the_drafts_up_to_the_first_refused_one() {
        let of = |drafts, acceptance| Speculation { drafts, acceptance }.tokens();
        assert!((Speculation::NONE.tokens() - 1.0).abs() < 1e-12);
        assert!((of(1.0, 0.85) - 1.85).abs() < 1e-12);
        // (1 - A^(N+1)) / (1 - A)
        assert!((of(3.0, 0.8) - (1.0 - 0.8_f64.powi(4)) / 0.2).abs() < 1e-12);
        assert!((of(3.0, 1.0) - 4.0).abs() < 1e-12);
    }

    #[test]
    fn a_share_is_given_or_published() {
        assert!(
            (Speculation::mtp("deepseek-v3", 1, None).unwrap().acceptance - 0.85).abs() < 1e-12
        );
        // Four drafts of one layer: 2.55 tokens a step.
        let four = Speculation::mtp("deepseek-v3", 4, None).unwrap().tokens();
        assert!((four - 2.55).abs() < 0.01, "{four}");
        assert_eq!(Speculation::mtp("mixtral-8x7b", 1, None).unwrap_err().exit_code(), 2);
        assert_eq!(Speculation::mtp("mixtral-8x7b", 1, Some(1.5)).unwrap_err().exit_code(), 2);
        assert_eq!(Speculation::mtp("deepseek-v3", 99, None).unwrap_err().exit_code(), 2);
    }
}
