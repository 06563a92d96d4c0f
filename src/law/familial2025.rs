//! Familial models (Song et al. 2025, arXiv 2512.23407): one trunk trained once with G exits, each of them a
//! model to serve.
//!
//! `L(N, D, G) = (E + A/N^alpha + B/D^beta) G^gamma`, the mean loss over the exits in nats per token. The
//! exponent is about 0.033 (second hand); **no other coefficient is published in the copies read**: they come
//! from a file, made by a fit or by the user. Its G counts exits and is no granularity of experts.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::law::dense;
use crate::law::scaling::ArchitectureLaw;
use crate::law::surface::{Sizes, Surface};
use crate::law::{Inputs, LawInfo, LossLaw, Range, Slice, Variable};
use crate::{Error, Result};

pub(crate) const INFO: &str = include_str!("../config/presets/laws/familial2025.toml");

/// Exponent of the number of exits.
pub const EXPONENT: f64 = 0.033;

/// The coefficients; the exponent of the exits is the known one unless given.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the letters of the formula at the head of this file")]
pub struct Coefficients {
    pub e: f64,
    pub a: f64,
    pub b: f64,
    pub alpha: f64,
    pub beta: f64,
    #[serde(default = "known")]
    pub gamma: f64,
}

const fn known() -> f64 {
    EXPONENT
}

/// What exits cost: the factor on the loss of the same trunk without early ones.
pub fn penalty(exits: f64, exponent: f64) -> f64 {
    exits.powf(exponent)
}

impl Coefficients {
    /// Mean loss over the exits of `n` parameters after `tokens` tokens.
    pub fn loss(&self, n: f64, tokens: f64, exits: f64) -> f64 {
        let Self { e, a, b, alpha, beta, gamma } = *self;
        let one = dense::Coefficients { e, a, b, alpha, beta }.slice().loss(n, tokens);
        one.0 * penalty(exits, gamma)
    }
}

/// The law with coefficients from a file.
#[derive(Clone, Debug, PartialEq)]
pub struct Familial2025 {
    /// Its description.
    pub info: LawInfo,
    /// The coefficients.
    pub coefficients: Coefficients,
}

impl LossLaw for Familial2025 {
    fn info(&self) -> &LawInfo {
        &self.info
    }

    fn surface(&self, inputs: &Inputs) -> Result<Box<dyn Surface>> {
        let exits = inputs.get(Variable::Exits).unwrap_or(1.0);
        Ok(Box::new(AtExits { law: self.clone(), exits }))
    }

    fn ranks(&self) -> Result<Arc<dyn ArchitectureLaw>> {
        Err(Error::unfit(
            &self.info.id,
            "its runs are dense, so that it cannot rank expert counts; rank --exits puts its penalty on \
             another law",
        ))
    }
}

/// The law at a number of exits.
struct AtExits {
    law: Familial2025,
    exits: f64,
}

impl Surface for AtExits {
    fn loss(&self, n: f64, tokens: f64) -> f64 {
        self.law.coefficients.loss(n, tokens, self.exits)
    }

    fn sizes(&self, n: f64) -> Sizes {
        Sizes { n_active: Some(n), n_total: Some(n) }
    }

    fn train_flops_per_token(&self, n: f64) -> f64 {
        6.0 * n
    }

    fn size(&self, inputs: &Inputs) -> Result<f64> {
        inputs.require(Variable::NActive, &self.law.info.id)
    }

    fn ranges(&self) -> Vec<Range> {
        self.law.info.ranges.clone()
    }

    fn fixed(&self) -> Inputs {
        Inputs::default().with(Variable::Exits, self.exits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::law::{Question, ask, embedded};
    use crate::units::Flops;

    const MADE_UP: Coefficients =
        Coefficients { e: 1.8, a: 480.0, b: 2000.0, alpha: 0.35, beta: 0.37, gamma: EXPONENT };

    #[test]
    fn exits_multiply_the_loss_and_leave_the_split_of_a_budget_alone() {
        let info = embedded("familial2025.toml", INFO).unwrap();
        let law = Familial2025 { info, coefficients: MADE_UP };
        let at = |exits: f64| {
            let inputs = Inputs::new([(Variable::Exits, exits)]).unwrap();
            ask(&law, &inputs, Question::Budget(Flops(1e21))).unwrap()
        };
        let (one, four) = (at(1.0), at(4.0));
        assert!((four.loss_nats / one.loss_nats - 4f64.powf(0.033)).abs() < 1e-9);
        let ratio = four.n_active.unwrap() / one.n_active.unwrap();
        assert!((ratio - 1.0).abs() < 1e-4, "{ratio}");
        let dense = dense::Coefficients { e: 1.8, a: 480.0, b: 2000.0, alpha: 0.35, beta: 0.37 };
        assert!((MADE_UP.loss(1e9, 2e10, 1.0) - dense.slice().loss(1e9, 2e10).0).abs() < 1e-12);
        assert_eq!(law.ranks().err().unwrap().exit_code(), 4);
    }
}
