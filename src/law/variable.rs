//! The variables of the laws by the names that the command line gives them.
//!
//! One name can mean different things in two papers (granularity, shared ratio): a law states the
//! meaning of each name it takes, and keeps its own typed quantities behind it.

use serde::{Deserialize, Serialize};

use crate::bounds::Quantity;
use crate::{Error, Result, error};

/// A named number that laws take or compute.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Variable {
    /// Experts per layer (or the expansion rate); 1 is dense.
    Experts,
    /// Parameters that one token meets.
    NActive,
    /// All parameters.
    NTotal,
    /// Parameters of the dense model of the same depth and width.
    NDense,
    /// Training tokens.
    Tokens,
    /// Granularity, in the definition of the law's paper.
    Granularity,
    /// Experts that one token visits.
    ActiveExperts,
    /// Share of the activated experts that are shared by all tokens.
    SharedRatio,
    /// Share of the experts that a token does not visit.
    Sparsity,
    /// Training FLOPs.
    TrainFlops,
    /// Training tokens per active parameter.
    TokensPerParam,
    /// Exits of one model, each a smaller model of its own.
    Exits,
    /// Loss in nats per token, where it is what something else depends on.
    Loss,
}

impl Variable {
    /// All variables, in the order of their declaration.
    pub const ALL: [Self; 13] = [
        Self::Experts,
        Self::NActive,
        Self::NTotal,
        Self::NDense,
        Self::Tokens,
        Self::Granularity,
        Self::ActiveExperts,
        Self::SharedRatio,
        Self::Sparsity,
        Self::TrainFlops,
        Self::TokensPerParam,
        Self::Exits,
        Self::Loss,
    ];

    /// The flag that sets it.
    pub const fn flag(self) -> &'static str {
        match self {
            Self::Experts => "--experts",
            Self::NActive => "--n-active",
            Self::NTotal => "--n-total",
            Self::NDense => "--n-dense",
            Self::Tokens => "--tokens",
            Self::Granularity => "--granularity",
            Self::ActiveExperts => "--active-experts",
            Self::SharedRatio => "--shared-ratio",
            Self::Sparsity => "--sparsity",
            Self::TrainFlops => "--train-flops",
            Self::TokensPerParam => "--tokens-per-param",
            Self::Exits => "--exits",
            Self::Loss => "--loss",
        }
    }

    /// The flag without its dashes, in snake case: the name in files and JSON.
    pub fn name(self) -> String {
        self.flag().trim_start_matches('-').replace('-', "_")
    }

    /// Checks a value: shares lie in 0 to 1 (sparsity below 1), everything else is above zero.
    fn check(self, value: f64) -> Result<f64> {
        match self {
            Self::Sparsity if value >= 1.0 => Err(Error::usage(
                self.flag(),
                format!("{value} leaves no active expert; it must lie below 1"),
            )),
            Self::Sparsity | Self::SharedRatio => error::in_range(self.flag(), value, 0.0, 1.0),
            Self::Experts if value.is_finite() && value < 1.0 => {
                Err(Error::usage(self.flag(), format!("{value} is below 1 (dense)")))
            }
            Self::Exits if value.is_finite() && value < 1.0 => {
                Err(Error::usage(self.flag(), format!("{value} is below 1 (the last layer)")))
            }
            _ => {
                error::positive(self.flag(), value)?;
                if let Some(quantity) = self.quantity() {
                    quantity.check_flag(self.flag(), value)?;
                }
                Ok(value)
            }
        }
    }

    /// What bounds its values; shares have their own.
    const fn quantity(self) -> Option<Quantity> {
        match self {
            Self::Experts => Some(Quantity::Experts),
            Self::NActive | Self::NTotal | Self::NDense => Some(Quantity::Parameters),
            Self::Tokens => Some(Quantity::Tokens),
            Self::TrainFlops => Some(Quantity::TrainFlops),
            Self::Granularity | Self::ActiveExperts | Self::Exits => Some(Quantity::Ratio),
            Self::Loss => Some(Quantity::LossNats),
            Self::SharedRatio | Self::Sparsity | Self::TokensPerParam => None,
        }
    }
}

/// Values by variable; a variable without a value is missing.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Inputs([Option<f64>; Variable::ALL.len()]);

impl Inputs {
    /// Values from pairs, checked one by one and against each other.
    ///
    /// ```
    /// use moe_frontier::law::{Inputs, Variable};
    /// let inputs = Inputs::new([(Variable::Experts, 8.0), (Variable::Tokens, 2e10)])?;
    /// assert_eq!(inputs.get(Variable::Experts), Some(8.0));
    /// assert!(Inputs::new([(Variable::Tokens, f64::NAN)]).is_err());
    /// # Ok::<(), moe_frontier::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Usage`] that names the flag, for a value out of its range, more active experts than
    /// experts, or more active parameters than parameters.
    pub fn new(values: impl IntoIterator<Item = (Variable, f64)>) -> Result<Self> {
        let mut inputs = Self::default();
        for (variable, value) in values {
            inputs = inputs.with(variable, variable.check(value)?);
        }
        inputs.ordered(Variable::ActiveExperts, Variable::Experts)?;
        inputs.ordered(Variable::NActive, Variable::NTotal)?;
        Ok(inputs)
    }

    fn ordered(&self, part: Variable, whole: Variable) -> Result<()> {
        match (self.get(part), self.get(whole)) {
            (Some(p), Some(w)) if p > w => {
                Err(Error::usage(part.flag(), format!("{p} is more than {} {w}", whole.flag())))
            }
            _ => Ok(()),
        }
    }

    /// The same with one value set.
    pub const fn with(mut self, variable: Variable, value: f64) -> Self {
        self.0[variable as usize] = Some(value);
        self
    }

    /// The value of a variable, if given.
    pub const fn get(&self, variable: Variable) -> Option<f64> {
        self.0[variable as usize]
    }

    /// The value of a variable that a law cannot do without.
    ///
    /// # Errors
    /// [`Error::Usage`] that names the flag.
    pub fn require(&self, variable: Variable, law: &str) -> Result<f64> {
        self.get(variable)
            .ok_or_else(|| Error::usage(variable.flag(), format!("missing; {law} needs it")))
    }

    /// The value of a variable that must be a whole number.
    ///
    /// # Errors
    /// [`Error::Usage`] when it is missing or has a fraction.
    pub fn require_whole(&self, variable: Variable, law: &str) -> Result<usize> {
        let value = self.require(variable, law)?;
        if value.fract().abs() > 0.0 || value > 1e6 {
            return Err(Error::usage(
                variable.flag(),
                format!("{value} is not a whole number up to 1000000"),
            ));
        }
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a whole number between 1 and 10^6 was checked for"
        )]
        Ok(value as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_variable_has_its_place_and_name() {
        for (index, variable) in Variable::ALL.into_iter().enumerate() {
            assert_eq!(variable as usize, index);
            let json = serde_json::to_string(&variable).unwrap();
            assert_eq!(json, format!("\"{}\"", variable.name()));
        }
    }

    #[test]
    fn values_out_of_range_are_refused_by_flag() {
        let cases = [
            (Variable::Tokens, f64::NAN, "--tokens"),
            (Variable::NActive, 0.0, "--n-active"),
            (Variable::Experts, 0.5, "--experts"),
            (Variable::Sparsity, 1.0, "--sparsity"),
            (Variable::SharedRatio, 1.5, "--shared-ratio"),
            (Variable::NActive, 1e300, "--n-active"),
            (Variable::Tokens, 1e-300, "--tokens"),
            (Variable::TrainFlops, 1e40, "--train-flops"),
            (Variable::Granularity, 1e30, "--granularity"),
        ];
        for (variable, value, flag) in cases {
            let error = Inputs::new([(variable, value)]).unwrap_err();
            assert_eq!(error.exit_code(), 2);
            assert!(error.to_string().contains(flag), "{error}");
        }
    }

    #[test]
    fn more_active_experts_than_experts_are_refused() {
        let error = Inputs::new([(Variable::Experts, 4.0), (Variable::ActiveExperts, 8.0)]);
        assert!(error.unwrap_err().to_string().contains("more than --experts 4"));
        let error = Inputs::new([(Variable::NTotal, 1e9), (Variable::NActive, 2e9)]).unwrap_err();
        assert!(error.to_string().contains("--n-total"), "{error}");
    }

    #[test]
    fn a_missing_value_is_named_with_the_law() {
        let error = Inputs::default().require(Variable::Tokens, "some2020").unwrap_err();
        assert_eq!(error.to_string(), "--tokens: missing; some2020 needs it");
        let inputs = Inputs::default().with(Variable::Experts, 1.5);
        assert!(inputs.require_whole(Variable::Experts, "some2020").is_err());
    }
}
