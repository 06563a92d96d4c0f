//! What a law says about itself: where it is from, what it takes, what it was fitted to, what it
//! cannot answer.

use serde::{Deserialize, Serialize};

use crate::law::{Inputs, Variable};

/// Description of a law.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LawInfo {
    /// Identifier.
    pub id: String,
    /// Title of the paper.
    pub title: String,
    /// Where the form and the coefficients were published.
    pub source: String,
    /// The formula, with the base of every logarithm.
    pub form: String,
    /// What N means.
    pub size: String,
    /// How sizes become an architecture, or that the law has no such rule.
    pub closure: String,
    /// Runs that the law was fitted to.
    pub fitted_to: String,
    /// What the law cannot answer.
    #[serde(default)]
    pub cannot: Vec<String>,
    /// Named sets of coefficients; the first is the default.
    #[serde(default)]
    pub variants: Vec<String>,
    /// The variables.
    pub variables: Vec<VariableInfo>,
    /// Ranges of the fitted runs.
    #[serde(default)]
    pub ranges: Vec<Range>,
}

/// One variable of a law.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VariableInfo {
    /// Name; the flag is the same with dashes.
    pub name: Variable,
    /// Letter in the paper's formula.
    pub symbol: String,
    /// Definition in this law.
    pub meaning: String,
    /// Whether the law can do without it.
    #[serde(default)]
    pub optional: bool,
}

/// Range of one variable over the fitted runs.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Range {
    /// The variable.
    pub variable: Variable,
    /// Smallest value, when published.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub low: Option<f64>,
    /// Largest value, when published.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub high: Option<f64>,
}

/// A variable outside the fitted runs.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Outside {
    /// The variable.
    pub variable: Variable,
    /// Its value.
    pub value: f64,
    /// The end of the range that was passed.
    pub limit: f64,
    /// Value over limit, or limit over value: above 1. Infinite where the limit is zero.
    pub factor: f64,
}

impl Range {
    /// A range with both ends.
    pub const fn new(variable: Variable, low: f64, high: f64) -> Self {
        Self { variable, low: Some(low), high: Some(high) }
    }

    /// A range that is known at its upper end only.
    pub const fn up_to(variable: Variable, high: f64) -> Self {
        Self { variable, low: None, high: Some(high) }
    }

    /// How far the state lies outside; `None` inside, or when the state lacks the variable.
    pub fn outside(&self, state: &Inputs) -> Option<Outside> {
        /// Widths and counts are rounded in the papers' own lists.
        const ROUNDING: f64 = 1e-9;
        let value = state.get(self.variable)?;
        let past = |limit: f64, factor: f64| {
            (factor > 1.0 + ROUNDING).then_some(Outside {
                variable: self.variable,
                value,
                limit,
                factor,
            })
        };
        let above = self.high.and_then(|high| past(high, value / high));
        above.or_else(|| self.low.and_then(|low| past(low, low / value)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_outside_names_the_end_and_the_factor() {
        let range = Range::new(Variable::Tokens, 1e9, 1e11);
        let at = |tokens| range.outside(&Inputs::default().with(Variable::Tokens, tokens));
        assert!(at(1e9).is_none() && at(1e11).is_none());
        let above = at(4e11).unwrap();
        assert!((above.factor - 4.0).abs() < 1e-12 && (above.limit - 1e11).abs() < 1.0);
        let below = at(5e8).unwrap();
        assert!((below.factor - 2.0).abs() < 1e-12 && (below.limit - 1e9).abs() < 1.0);
        assert!(range.outside(&Inputs::default()).is_none());
    }
}
