//! The forms that can be fitted, each written once over plain and dual numbers.
//!
//! Factors enter as their logarithms, exponents as they are; `E_start = 1 + exp(u)` and
//! `E_max = E_start + exp(v)`, so that no step of a search leaves the form's domain. Each form
//! returns ln L, summed by log-sum-exp.

use std::f64::consts::LN_10;

use num_dual::{DualNum, DualStruct};

use crate::law::Variable;
use crate::law::fit::runs::Run;

/// Most coefficients of any form.
pub(crate) const MOST: usize = 12;

/// How a coefficient is searched.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Scale {
    /// As its natural logarithm.
    Log,
    /// As it is.
    Plain,
    /// `1 + exp(u)`.
    Start,
    /// The coefficient before it plus `exp(u)`.
    AboveStart,
}

/// One coefficient: its name and the bounds of its search, in searched units.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Parameter {
    /// Name in a law file.
    pub(crate) name: &'static str,
    pub(crate) scale: Scale,
    pub(crate) low: f64,
    pub(crate) high: f64,
    /// The variable that must vary over the runs for this coefficient to mean anything.
    pub(crate) needs: Option<Variable>,
}

/// A form that can be fitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    Ludziejewski,
    Yun,
    Zhao,
    Krajewski,
    Clark,
    Abnar,
    Dense,
    Familial,
}

const fn log(name: &'static str, low: f64, high: f64) -> Parameter {
    Parameter { name, scale: Scale::Log, low, high, needs: None }
}

const fn plain(name: &'static str, low: f64, high: f64, needs: Variable) -> Parameter {
    Parameter { name, scale: Scale::Plain, low, high, needs: Some(needs) }
}

const E_START: Parameter = Parameter {
    name: "e_start",
    scale: Scale::Start,
    low: -7.0,
    high: 4.0,
    needs: Some(Variable::Experts),
};
const E_MAX: Parameter = Parameter {
    name: "e_max",
    scale: Scale::AboveStart,
    low: 0.0,
    high: 12.0,
    needs: Some(Variable::Experts),
};

// Bounds are wide: every published value of every form lies well inside.
const LUDZIEJEWSKI: [Parameter; 11] = [
    log("a", -2.0, 12.0),
    plain("alpha", -1.2, -0.01, Variable::NActive),
    plain("delta", -1.5, 1.5, Variable::Experts),
    plain("gamma", -0.1, 0.1, Variable::Experts),
    log("b", -2.0, 12.0),
    plain("beta", -1.2, -0.01, Variable::Tokens),
    plain("omega", -1.5, 2.0, Variable::Experts),
    plain("zeta", -0.1, 0.1, Variable::Experts),
    E_START,
    E_MAX,
    log("c", -4.0, 1.5),
];
const YUN: [Parameter; 10] = [
    log("a", -4.0, 12.0),
    plain("alpha", 0.01, 1.2, Variable::NDense),
    log("b", -8.0, 4.0),
    plain("beta", 0.0, 3.0, Variable::Experts),
    log("c", -4.0, 14.0),
    plain("gamma", 0.01, 1.2, Variable::Tokens),
    log("f", -6.0, 1.5),
    plain("d", -0.1, 0.1, Variable::Experts),
    E_START,
    E_MAX,
];
const ZHAO: [Parameter; 12] = [
    log("e", -8.0, 3.0),
    log("f", -5.0, 6.0),
    log("m", -5.0, 6.0),
    plain("n", -20.0, 5.0, Variable::SharedRatio),
    log("k", -14.0, 3.0),
    log("h", -10.0, 2.0),
    log("a", -2.0, 12.0),
    plain("alpha", 0.01, 1.2, Variable::NTotal),
    log("b", -2.0, 16.0),
    plain("beta", 0.01, 1.2, Variable::Tokens),
    log("c", -2.0, 12.0),
    log("eps", -4.0, 1.5),
];
const KRAJEWSKI: [Parameter; 7] = [
    log("a", -2.0, 12.0),
    plain("alpha", 0.01, 1.2, Variable::NTotal),
    log("b", -2.0, 16.0),
    plain("beta", 0.01, 1.2, Variable::Tokens),
    log("g", -5.0, 6.0),
    plain("gamma", 0.01, 3.0, Variable::Granularity),
    log("c", -4.0, 1.5),
];
const CLARK: [Parameter; 6] = [
    plain("a", -0.5, 0.0, Variable::NActive),
    plain("b", -1.0, 0.5, Variable::Experts),
    plain("c", -0.1, 0.1, Variable::Experts),
    plain("d", 0.0, 4.0, Variable::NActive),
    E_START,
    E_MAX,
];
const ABNAR: [Parameter; 10] = [
    log("a", -2.0, 16.0),
    plain("alpha", 0.01, 1.2, Variable::NTotal),
    log("b", -2.0, 16.0),
    plain("beta", 0.01, 1.2, Variable::Tokens),
    log("c", -6.0, 3.0),
    plain("lambda", -2.0, 2.0, Variable::Sparsity),
    log("d", -2.0, 8.0),
    plain("delta", -1.0, 1.0, Variable::Sparsity),
    plain("gamma", 0.01, 1.2, Variable::NTotal),
    log("e", -4.0, 1.5),
];
const DENSE: [Parameter; 5] = [
    log("e", -4.0, 1.5),
    log("a", -2.0, 14.0),
    log("b", -2.0, 16.0),
    plain("alpha", 0.01, 1.2, Variable::NActive),
    plain("beta", 0.01, 1.2, Variable::Tokens),
];
const FAMILIAL: [Parameter; 6] = [
    log("e", -4.0, 1.5),
    log("a", -2.0, 14.0),
    log("b", -2.0, 16.0),
    plain("alpha", 0.01, 1.2, Variable::NActive),
    plain("beta", 0.01, 1.2, Variable::Tokens),
    plain("gamma", -0.2, 0.5, Variable::Exits),
];

impl Form {
    /// The form of the law with this identifier.
    pub(crate) fn of(id: &str) -> Option<Self> {
        Some(match id {
            "ludziejewski2025" => Self::Ludziejewski,
            "yun2024" => Self::Yun,
            "zhao2025" => Self::Zhao,
            "krajewski2024" => Self::Krajewski,
            "clark2022" => Self::Clark,
            "abnar2025" => Self::Abnar,
            "hoffmann2022" => Self::Dense,
            "familial2025" => Self::Familial,
            _ => return None,
        })
    }

    pub(crate) const fn parameters(self) -> &'static [Parameter] {
        match self {
            Self::Ludziejewski => &LUDZIEJEWSKI,
            Self::Yun => &YUN,
            Self::Zhao => &ZHAO,
            Self::Krajewski => &KRAJEWSKI,
            Self::Clark => &CLARK,
            Self::Abnar => &ABNAR,
            Self::Dense => &DENSE,
            Self::Familial => &FAMILIAL,
        }
    }

    /// The variables that each run must have.
    pub(crate) const fn variables(self) -> &'static [Variable] {
        match self {
            Self::Yun => &[Variable::NDense, Variable::Tokens, Variable::Experts],
            Self::Zhao => &[
                Variable::NTotal,
                Variable::NActive,
                Variable::Tokens,
                Variable::ActiveExperts,
                Variable::SharedRatio,
            ],
            Self::Krajewski => {
                &[Variable::NTotal, Variable::Tokens, Variable::Granularity, Variable::Experts]
            }
            // Tokens are no variable of Clark's form; they must be one number, which the law keeps.
            Self::Ludziejewski | Self::Clark => {
                &[Variable::NActive, Variable::Tokens, Variable::Experts]
            }
            Self::Abnar => &[Variable::NTotal, Variable::Tokens, Variable::Sparsity],
            Self::Dense => &[Variable::NActive, Variable::Tokens],
            Self::Familial => &[Variable::NActive, Variable::Tokens, Variable::Exits],
        }
    }

    /// What must be the same in all runs, since the form has no coefficient for it.
    pub(crate) const fn constant(self) -> Option<Variable> {
        match self {
            Self::Clark => Some(Variable::Tokens),
            Self::Krajewski => Some(Variable::Experts),
            _ => None,
        }
    }

    /// The size that is N in the form.
    pub(crate) fn size(self) -> Variable {
        self.variables()[0]
    }

    /// ln L of a run at searched parameters.
    pub(crate) fn ln_loss<T: DualNum<f64> + Copy>(self, p: &[T; MOST], run: &Run) -> T {
        let (ln_n, ln_d) = (run.ln(self.size()), run.ln(Variable::Tokens));
        match self {
            Self::Dense => {
                let [e, a, b, alpha, beta, ..] = *p;
                sum(&[e, a - alpha * ln_n, b - beta * ln_d])
            }
            Self::Familial => {
                let [e, a, b, alpha, beta, gamma, ..] = *p;
                sum(&[e, a - alpha * ln_n, b - beta * ln_d]) + gamma * run.ln(Variable::Exits)
            }
            Self::Ludziejewski => {
                let [a, alpha, delta, gamma, b, beta, omega, zeta, start, above, c, _] = *p;
                let ln_e = ln_effective(run, start, above);
                sum(&[
                    a + delta * ln_e + (alpha + gamma * ln_e) * ln_n,
                    b + omega * ln_e + (beta + zeta * ln_e) * ln_d,
                    c,
                ])
            }
            Self::Yun => {
                let [a, alpha, b, beta, c, gamma, f, d, start, above, ..] = *p;
                let ln_e = ln_effective(run, start, above);
                sum(&[a - alpha * ln_n, b - beta * ln_e, c - gamma * ln_d, f]) + d * ln_e * ln_n
            }
            Self::Clark => {
                let [a, b, c, d, start, above, ..] = *p;
                let ln_e = ln_effective(run, start, above);
                // log10 L = a log10 N + ..., so that the product of two logarithms keeps a ln 10.
                a * ln_n + b * ln_e + c * ln_e * (ln_n / LN_10) + d * LN_10
            }
            Self::Krajewski => {
                let [a, alpha, b, beta, g, gamma, c, ..] = *p;
                let ln_g = run.ln(Variable::Granularity);
                sum(&[g - gamma * ln_g - alpha * ln_n, a - alpha * ln_n, b - beta * ln_d, c])
            }
            Self::Abnar => {
                let [a, alpha, b, beta, c, lambda, d, delta, gamma, e, ..] = *p;
                let ln_active = (1.0 - run.value(Variable::Sparsity)).ln();
                sum(&[
                    a - alpha * ln_n,
                    b - beta * ln_d,
                    c - lambda * ln_active,
                    d - delta * ln_active - gamma * ln_n,
                    e,
                ])
            }
            Self::Zhao => zhao(p, run),
        }
    }
}

/// One factor of this form is negative, so that its terms are summed as they are.
fn zhao<T: DualNum<f64> + Copy>(p: &[T; MOST], run: &Run) -> T {
    let [e, f, m, n, k, h, a, alpha, b, beta, c, eps] = *p;
    let (ln_n, ln_active) = (run.ln(Variable::NTotal), run.ln(Variable::NActive));
    let (g, s) = (run.value(Variable::ActiveExperts), run.value(Variable::SharedRatio));
    let kappa = e.exp() * g + f.exp() / g + m.exp() * (s * s) + n * s;
    let (total, active) = ((-alpha * ln_n).exp(), (-alpha * ln_active).exp());
    let share = (ln_active - ln_n).exp();
    let sum = kappa * (total + k.exp() * active + h.exp() * share)
        + a.exp() * total
        + (b - beta * run.ln(Variable::Tokens)).exp()
        + c.exp() * active
        + eps.exp();
    sum.ln()
}

/// ln of the effective number of experts at `E_start = 1 + exp(start)`, `E_max = E_start + exp(above)`.
fn ln_effective<T: DualNum<f64> + Copy>(run: &Run, start: T, above: T) -> T {
    let e_start = start.exp() + 1.0;
    let e_max = e_start + above.exp();
    let offset = (e_start.recip() - e_max.recip()).recip();
    let extra = offset + (run.value(Variable::Experts) - 1.0);
    -((extra.recip() + e_max.recip()).ln())
}

/// `ln sum exp(terms)`, shifted by the largest term.
fn sum<T: DualNum<f64> + Copy>(terms: &[T]) -> T {
    let most = terms.iter().map(DualStruct::re).fold(f64::NEG_INFINITY, f64::max);
    terms.iter().map(|&term| (term - most).exp()).sum::<T>().ln() + most
}

/// Coefficients as the papers write them, from searched parameters.
pub(crate) fn coefficients(parameters: &[Parameter], searched: &[f64]) -> Vec<f64> {
    let mut values: Vec<f64> = Vec::with_capacity(parameters.len());
    for (parameter, &u) in parameters.iter().zip(searched) {
        let value = match parameter.scale {
            Scale::Log => u.exp(),
            Scale::Plain => u,
            Scale::Start => 1.0 + u.exp(),
            Scale::AboveStart => values.last().copied().unwrap_or(1.0) + u.exp(),
        };
        values.push(value);
    }
    values
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::law::file::named;
    use crate::law::{
        Inputs, Slice, abnar2025, clark2022, dense, familial2025, krajewski2024, ludziejewski2025,
        yun2024,
    };
    use crate::law::{zhao2025, zhao2025::Activation};
    use std::collections::BTreeMap;

    /// Searched parameters of coefficients by name.
    pub(crate) fn searched(form: Form, named: &BTreeMap<String, f64>) -> [f64; MOST] {
        let mut searched = [0.0; MOST];
        for (i, parameter) in form.parameters().iter().enumerate() {
            let value = named[parameter.name];
            searched[i] = match parameter.scale {
                Scale::Log => value.ln(),
                Scale::Plain => value,
                Scale::Start => (value - 1.0).ln(),
                Scale::AboveStart => (value - named["e_start"]).ln(),
            };
        }
        searched
    }

    fn run(values: &[(Variable, f64)]) -> Run {
        Run::new(Inputs::new(values.iter().copied()).unwrap(), 1.0, 0, 0)
    }

    fn same(form: Form, named: &BTreeMap<String, f64>, run: &Run, loss: f64) {
        let p = searched(form, named);
        let got = form.ln_loss(&p, run).exp();
        assert!((got / loss - 1.0).abs() < 1e-12, "{form:?}: {got} against {loss}");
        for (parameter, u) in form.parameters().iter().zip(p) {
            assert!((parameter.low..=parameter.high).contains(&u), "{form:?} {parameter:?} {u}");
        }
        let back = coefficients(form.parameters(), &p[..form.parameters().len()]);
        for (parameter, value) in form.parameters().iter().zip(back) {
            assert!((value / named[parameter.name] - 1.0).abs() < 1e-9, "{parameter:?}");
        }
    }

    #[test]
    fn each_form_is_its_law() {
        let (n, d, e) = (1e9, 1e11, 8.0);
        let all = run(&[
            (Variable::NActive, n),
            (Variable::NDense, n),
            (Variable::NTotal, 7.0 * n),
            (Variable::Tokens, d),
            (Variable::Experts, e),
            (Variable::Granularity, 4.0),
            (Variable::ActiveExperts, 6.0),
            (Variable::SharedRatio, 0.25),
            (Variable::Sparsity, 0.75),
            (Variable::Exits, 3.0),
        ]);
        let law = ludziejewski2025::Ludziejewski2025::published().unwrap().coefficients;
        let loss = law.slice(e).loss(n, d).0;
        same(Form::Ludziejewski, &named(&law).unwrap(), &all, loss);
        let law = yun2024::tests::DEMONSTRATION;
        same(Form::Yun, &named(&law).unwrap(), &all, law.loss(n, d, e).0);
        let law = zhao2025::Zhao2025::published().unwrap().coefficients;
        let activation = Activation { active_experts: 6.0, shared_ratio: 0.25 };
        let loss = law.loss(7.0 * n, d, n, activation);
        same(Form::Zhao, &named(&law).unwrap(), &all, loss);
        let law = clark2022::Clark2022::published(None).unwrap().coefficients;
        same(Form::Clark, &named(&law).unwrap(), &all, law.loss(n, e).0);
        let law = abnar2025::Abnar2025::published().unwrap().coefficients;
        same(Form::Abnar, &named(&law).unwrap(), &all, law.loss(7.0 * n, d, 0.75));
        let law = krajewski2024::Coefficients {
            a: 18.1,
            alpha: 0.115,
            b: 30.8,
            beta: 0.147,
            g: 2.1,
            gamma: 0.58,
            c: 0.47,
        };
        same(Form::Krajewski, &named(&law).unwrap(), &all, law.loss(7.0 * n, d, 4.0));
        let law = dense::Coefficients { e: 1.8, a: 480.0, b: 2000.0, alpha: 0.35, beta: 0.37 };
        same(Form::Dense, &named(&law).unwrap(), &all, law.slice().loss(n, d).0);
        let dense::Coefficients { e, a, b, alpha, beta } = law;
        let law = familial2025::Coefficients { e, a, b, alpha, beta, gamma: 0.033 };
        same(Form::Familial, &named(&law).unwrap(), &all, law.loss(n, d, 3.0));
    }

    #[test]
    fn every_law_file_form_can_be_fitted() {
        for id in crate::law::file::FORMS {
            assert!(Form::of(id).is_some(), "{id}");
        }
        assert!(Form::of("tian2025").is_none());
    }
}
