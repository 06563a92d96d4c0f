//! What the seed papers claim, beside what a law and a cost say here: Yun et al. 2024
//! (arXiv 2404.02852) and the headlines of Zhao et al. 2025 (arXiv 2509.23678).
//!
//! Magnitudes stand side by side and are not judged. What is judged is whether the direction agrees.
//! All budgets of the claims lie far outside every fit; the factor is printed.

mod verdict;

use serde::Serialize;

pub use verdict::{Size, Verdict};

use crate::law::bounded::{Bounded, Cost, bounded_cost, bounded_loss, budget_for_both};
use crate::law::zhao2025::{Activation, Zhao2025};
use crate::law::{Optimum, Scaling};
use crate::units::Flops;
use crate::{Error, Result};
use verdict::size_of;

/// Training budgets between which the paper makes its claims.
const BUDGETS: [f64; 2] = [2.12e21, 8.18e21];
/// The budget of its bounded-cost examples.
const MIDDLE: f64 = 5.15e21;

/// What stands for the cost of serving a token.
#[derive(Clone, Copy)]
pub struct Costing<'a> {
    /// The cost, in any one unit.
    pub cost: Cost<'a>,
    /// What it is, in words.
    pub name: &'a str,
    /// Whether it is a price from latencies rather than a stand-in: then claims about which model
    /// serves cheapest are judged by it as well.
    pub is_priced: bool,
}

/// One claim with its answer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Claim {
    /// Y1 to Y14 for Yun et al., Z1 to Z4 for Zhao et al.
    pub id: &'static str,
    /// The claim in words.
    pub claim: &'static str,
    /// What the paper prints.
    pub published: &'static str,
    /// What is computed here, in words.
    pub computed: String,
    /// The numbers behind the words.
    pub values: Vec<f64>,
    /// Whether the direction agrees.
    pub verdict: Verdict,
    /// The published range of the first `values`, when the paper prints figures.
    pub published_range: Option<[f64; 2]>,
    /// Where the computed magnitudes lie relative to it.
    pub size: Size,
    /// The largest factor by which a variable of a model involved lies outside the law's fit.
    pub extrapolation: f64,
}

/// All claims, and what in the papers does not add up.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Claims {
    /// The law that answered.
    pub law: String,
    /// What stood for the cost of serving a token.
    pub cost: String,
    /// The claims.
    pub claims: Vec<Claim>,
    /// Numbers in the papers that contradict each other.
    pub inconsistencies: Vec<&'static str>,
}

/// Numbers in Yun et al. 2024 that do not add up, each by plain arithmetic.
pub const INCONSISTENCIES: [&str; 5] = [
    "The abstract's 70-85 % is the reduction: recommended sizes are 15-30 % of the loss-optimal ones \
     (30 % and 16 % in section 5.2), not 70-85 % of them.",
    "Table 1's depths do not match its parameter counts: 81.4M, 289.4M and 679.5M parameters at widths \
     768, 1024 and 1536 need 12, 24 and 24 layers, where 12, 16 and 16 are printed; the 200M row lacks \
     a digit and needs 20 layers, not 14.",
    "The appendix divides 8.01 by 8.01 + 6.34 and calls it 2/3, which it is not (0.56); with the \
     attention term of 4 it is.",
    "The extra training of 4 or 8 experts is 2.5-3.5 times in one place and 2.4-4.3 in another, and \
     follows as 2.34-4.22 from the printed 23.7-42.8 %.",
    "Eight parameters are listed as fitted, but E_start and E_max are called fitted elsewhere; no \
     value of any is printed, and about ten ratios cannot determine ten unknowns.",
];

/// Identifier, claim in words, and what the paper prints.
type Asked = (&'static str, &'static str, &'static str);

/// An answer: words, numbers, whether the direction agrees, and the models it rests on.
struct Answer {
    computed: String,
    values: Vec<f64>,
    agrees: bool,
    models: Vec<(usize, Optimum)>,
}

/// Asks a law and a cost about every claim.
///
/// # Errors
/// [`crate::Error::BadFile`] if the embedded coefficients of Zhao et al. are damaged.
pub fn claims(law: &Scaling, name: &str, costing: Costing) -> Result<Claims> {
    let desk = Desk { law, cost: costing.cost, is_priced: costing.is_priced };
    let mut claims = desk.yun_costs();
    claims.extend(desk.yun_sizes());
    claims.extend(zhao()?);
    Ok(Claims {
        law: name.into(),
        cost: costing.name.into(),
        claims,
        inconsistencies: INCONSISTENCIES.to_vec(),
    })
}

/// Where claims are answered.
struct Desk<'a> {
    law: &'a Scaling,
    cost: Cost<'a>,
    is_priced: bool,
}

impl Desk<'_> {
    /// Y1 to Y8: training and cost.
    fn yun_costs(&self) -> Vec<Claim> {
        vec![
            self.answer(
                (
                    "Y1",
                    "4 or 8 experts serve cheapest at equal performance but cost more to train",
                    "2.5-3.5 times the training",
                ),
                self.training_factor(),
            ),
            self.answer(
                ("Y2", "the same, in the introduction", "2.4-4.3 times the training"),
                self.training_factor(),
            ),
            self.answer(
                (
                    "Y3",
                    "FLOPs with which 16 experts reach a 4-expert loss; the gap grows",
                    "23.7-42.8 %",
                ),
                self.flops_of_sixteen(),
            ),
            self.answer(
                (
                    "Y4",
                    "dense loss-optimal size at 2.12e21 and 5.96e21 FLOPs",
                    "3.36B and 6.14B, exponent 0.583",
                ),
                self.dense_sizes(),
            ),
            self.answer(
                (
                    "Y5",
                    "cost per token of over-trained 8 experts at dense quality",
                    "31.6-38.1 % of dense",
                ),
                self.cost_at_equal_loss((1, 8), [5.15e21, 8.18e21]),
            ),
            self.answer(
                (
                    "Y6",
                    "cost per token of over-trained 8 experts at 4-expert quality",
                    "saves 49.0-52.3 %",
                ),
                self.cost_at_equal_loss((4, 8), BUDGETS),
            ),
            self.answer(
                (
                    "Y7",
                    "cost per token of over-trained 16 experts at 4-expert quality",
                    "saves 48-53 %",
                ),
                self.cost_at_equal_loss((4, 16), BUDGETS),
            ),
            self.answer(
                (
                    "Y8",
                    "training of over-trained 16 experts at 4-expert cost and quality",
                    "saves up to 68.4 %",
                ),
                self.budget_at_equal_cost_and_loss(),
            ),
        ]
    }

    /// Y9 to Y14: sizes.
    fn yun_sizes(&self) -> Vec<Claim> {
        vec![
            self.answer(
                (
                    "Y9",
                    "active parameters of 8 experts at dense quality, over dense",
                    "23.3-28.2 %, falling with budget",
                ),
                self.active_at_equal_loss((1, 8)),
            ),
            self.answer(
                (
                    "Y10",
                    "active parameters of 8 experts at 4-expert quality, over 4 experts",
                    "21.0-25.1 %, falling with budget",
                ),
                self.active_at_equal_loss((4, 8)),
            ),
            self.answer(
                (
                    "Y11",
                    "size at dense cost, relative to dense, 5.15e21 FLOPs",
                    "8 experts 84.1 %, others 37.1-125.2 % (unit of size unclear)",
                ),
                self.sizes_at_equal_cost(1, &[4, 8, 16, 32]),
            ),
            self.answer(
                (
                    "Y12",
                    "size at 4-expert cost, and FLOPs 4 experts lack to 8 experts' loss",
                    "30.7-69.5 %; 52.1 % more FLOPs",
                ),
                self.sizes_at_equal_cost(4, &[8, 16, 32]),
            ),
            self.answer(
                (
                    "Y13",
                    "recommended size over its own loss-optimal size, nearly constant",
                    "32 experts 30 % (quality first), 16 experts 16 % (cost first)",
                ),
                self.recommended_sizes(),
            ),
            self.answer(
                (
                    "Y14",
                    "more than 16 experts at 4-expert loss cost more than 8 or 16; 16 to 32 \
                            gain little at 4-expert cost",
                    "no figure",
                ),
                self.beyond_sixteen(),
            ),
        ]
    }

    fn answer(&self, asked: Asked, answer: Result<Answer>) -> Claim {
        let (id, claim, published) = asked;
        let values = answer.as_ref().map_or(&[][..], |answer| &answer.values);
        let (published_range, size) = size_of(id, values);
        match answer {
            Ok(answer) => Claim {
                id,
                claim,
                published,
                computed: answer.computed,
                values: answer.values,
                verdict: Verdict::of(answer.agrees),
                published_range,
                size,
                extrapolation: answer
                    .models
                    .iter()
                    .map(|(e, m)| self.law.extrapolation(*e, m.n_active, m.tokens).worst())
                    .fold(1.0, f64::max),
            },
            Err(reason) => Claim {
                id,
                claim,
                published,
                computed: reason.to_string(),
                values: Vec::new(),
                verdict: Verdict::NotComputable,
                published_range,
                size,
                extrapolation: 1.0,
            },
        }
    }

    fn optimum(&self, experts: usize, budget: f64) -> Result<Optimum> {
        Ok(self.law.slice(experts)?.optimum(Flops(budget)))
    }

    /// FLOPs of `experts` over those of `base` at the base's loss-optimal loss.
    fn flops_ratio(&self, (base, experts): (usize, usize), budget: f64) -> Result<f64> {
        let loss = self.optimum(base, budget)?.loss;
        Ok(self.law.slice(experts)?.budget_for_loss(loss)?.0 / budget)
    }

    fn training_factor(&self) -> Result<Answer> {
        let mut values = Vec::new();
        for pair in [(4, 16), (4, 32), (8, 16)] {
            for budget in [1e20, BUDGETS[1]] {
                values.push(1.0 / self.flops_ratio(pair, budget)?);
            }
        }
        let mut sizes = Vec::new();
        let loss = self.optimum(16, MIDDLE)?.loss;
        for experts in [1, 4, 8, 16, 32] {
            let slice = self.law.slice(experts)?;
            let best = slice.optimum(slice.budget_for_loss(loss)?);
            sizes.push((experts, (self.cost)(experts, best.n_active)));
        }
        let cheapest = sizes
            .iter()
            .filter_map(|&(e, cost)| Some((e, cost?)))
            .min_by(|a, b| a.1.total_cmp(&b.1))
            .map(|(e, _)| e);
        let costs: Vec<String> = sizes
            .iter()
            .map(|(e, cost)| {
                format!("{e}: {}", cost.map_or_else(|| "not served".to_owned(), significant))
            })
            .collect();
        if self.is_priced && cheapest.is_none() {
            return Err(Error::infeasible(
                "none of the models at equal loss can be served within the limits",
                "name a larger device or a longer time per token",
            ));
        }
        let serves = cheapest.is_some_and(|e| e == 4 || e == 8);
        let judged = if self.is_priced { "training and cheapest to serve" } else { "training" };
        Ok(Answer {
            computed: format!(
                "4 against 16 {}, 4 against 32 {}, 8 against 16 {} times the training; cost of the \
                 loss-optimal models at equal loss, by experts: {}; {} (the verdict is about {judged})",
                between(values[0], values[1], 2),
                between(values[2], values[3], 2),
                between(values[4], values[5], 2),
                costs.join(", "),
                cheapest.map_or_else(
                    || "none can be served".to_owned(),
                    |e| format!("cheapest at E = {e}")
                )
            ),
            agrees: values.iter().all(|&v| v > 1.0) && (serves || !self.is_priced),
            values,
            models: vec![(32, self.optimum(32, BUDGETS[1])?)],
        })
    }

    fn flops_of_sixteen(&self) -> Result<Answer> {
        let values = vec![self.flops_ratio((4, 16), 1e20)?, self.flops_ratio((4, 16), BUDGETS[1])?];
        Ok(Answer {
            computed: format!(
                "{} at 1e20, {} at 8.18e21",
                percent(values[0], 1),
                percent(values[1], 1)
            ),
            agrees: values[0] < 1.0 && values[1] < values[0],
            values,
            models: vec![(16, self.optimum(16, BUDGETS[1])?)],
        })
    }

    fn dense_sizes(&self) -> Result<Answer> {
        let (low, high) = (self.optimum(1, 2.12e21)?, self.optimum(1, 5.96e21)?);
        let exponent = (high.n_active / low.n_active).ln() / (5.96_f64 / 2.12).ln();
        Ok(Answer {
            computed: format!(
                "{:.2}B and {:.2}B, exponent {exponent:.3}",
                low.n_active / 1e9,
                high.n_active / 1e9
            ),
            values: vec![low.n_active, high.n_active, exponent],
            agrees: exponent < 0.6,
            models: vec![(1, high)],
        })
    }

    fn equal_loss(&self, pair: (usize, usize), budget: f64) -> Result<Bounded> {
        bounded_loss(self.law, pair, Flops(budget), self.cost)
    }

    fn equal_cost(&self, pair: (usize, usize), budget: f64) -> Result<Bounded> {
        bounded_cost(self.law, pair, Flops(budget), self.cost)
    }

    fn cost_at_equal_loss(&self, pair: (usize, usize), budgets: [f64; 2]) -> Result<Answer> {
        let (low, high) = (self.equal_loss(pair, budgets[0])?, self.equal_loss(pair, budgets[1])?);
        let values = vec![low.cost_ratio()?, high.cost_ratio()?];
        Ok(Answer {
            computed: format!(
                "{} of the base's cost, saves {}; {} tokens per parameter",
                between_percent(values[0], values[1], 1),
                between_percent(1.0 - values[0], 1.0 - values[1], 1),
                between(low.tokens_per_param(), high.tokens_per_param(), 0)
            ),
            agrees: values.iter().all(|&v| v < 1.0),
            values,
            models: vec![(pair.1, low.model), (pair.1, high.model)],
        })
    }

    fn budget_at_equal_cost_and_loss(&self) -> Result<Answer> {
        let ratios = BUDGETS.map(|b| budget_for_both(self.law, (4, 16), Flops(b), self.cost));
        let [low, high] = ratios;
        let values = vec![1.0 - low?, 1.0 - high?];
        Ok(Answer {
            computed: format!("saves {}", between_percent(values[0], values[1], 0)),
            agrees: values.iter().all(|&v| v > 0.0),
            values,
            models: vec![(4, self.optimum(4, BUDGETS[1])?)],
        })
    }

    fn active_at_equal_loss(&self, pair: (usize, usize)) -> Result<Answer> {
        let (low, high) = (self.equal_loss(pair, 2.12e21)?, self.equal_loss(pair, 5.96e21)?);
        let share = |b: &Bounded| b.model.n_active / b.base.n_active;
        let values = vec![share(&low), share(&high)];
        let falls = values[1] < values[0] * 0.98;
        Ok(Answer {
            computed: format!(
                "{}, {}",
                between_percent(values[0], values[1], 1),
                if falls { "falling with budget" } else { "flat: the trend does not reproduce" }
            ),
            agrees: values.iter().all(|&v| v < 0.5),
            values,
            models: vec![(pair.1, high.model)],
        })
    }

    fn sizes_at_equal_cost(&self, base: usize, counts: &[usize]) -> Result<Answer> {
        let (mut values, mut models, mut words) = (Vec::new(), Vec::new(), Vec::new());
        for &experts in counts {
            let got = self.equal_cost((base, experts), MIDDLE)?;
            let share = got.model.n_active / got.base.n_active;
            values.push(share);
            words.push(format!("{experts} experts {}", percent(share, 1)));
            models.push((experts, got.model));
        }
        let falls = values.windows(2).all(|w| w[1] < w[0]) && values[0] < 1.0;
        let mut computed = vec![format!("active parameters: {}", words.join(", "))];
        let mut agrees = falls;
        if base != 1 {
            let extra = self.equal_cost((base, counts[0]), MIDDLE)?.base_budget_ratio - 1.0;
            computed.push(format!("{} more FLOPs", percent(extra, 1)));
            agrees &= extra > 0.0;
            values.push(extra);
        }
        Ok(Answer { computed: computed.join("; "), values, agrees, models })
    }

    fn recommended_sizes(&self) -> Result<Answer> {
        let [low, high] = BUDGETS;
        let sixteen = (self.equal_loss((4, 16), low)?, self.equal_loss((4, 16), high)?);
        let thirty_two = (self.equal_cost((4, 32), low)?, self.equal_cost((4, 32), high)?);
        let values = vec![
            sixteen.0.size_over_optimal,
            sixteen.1.size_over_optimal,
            thirty_two.0.size_over_optimal,
            thirty_two.1.size_over_optimal,
        ];
        let steady = |a: f64, b: f64| (b / a - 1.0).abs() < 0.15;
        Ok(Answer {
            computed: format!(
                "16 experts at 4-expert loss {}, 32 at 4-expert cost {}",
                between_percent(values[0], values[1], 1),
                between_percent(values[2], values[3], 1)
            ),
            agrees: values.iter().all(|&v| v < 0.5)
                && steady(values[0], values[1])
                && steady(values[2], values[3]),
            values,
            models: vec![(16, sixteen.1.model), (32, thirty_two.1.model)],
        })
    }

    fn beyond_sixteen(&self) -> Result<Answer> {
        let (mut costs, mut gains, mut models) = (Vec::new(), Vec::new(), Vec::new());
        for experts in [8, 16, 32] {
            for budget in BUDGETS {
                let got = self.equal_loss((4, experts), budget)?;
                costs.push(got.cost_ratio()?);
                models.push((experts, got.model));
            }
            let got = self.equal_cost((4, experts), MIDDLE)?;
            gains.push(got.base.loss.0 - got.model.loss.0);
        }
        let dearest = (0..2).all(|i| costs[4 + i] > costs[i] && costs[4 + i] > costs[2 + i]);
        let little = gains[2] - gains[1] <= gains[1] - gains[0];
        Ok(Answer {
            computed: format!(
                "cost of 8, 16, 32 experts over 4: {}, {}, {}; loss gained at 4-expert cost {:.4}, \
                 {:.4}, {:.4} nats",
                between_percent(costs[0], costs[1], 0),
                between_percent(costs[2], costs[3], 0),
                between_percent(costs[4], costs[5], 0),
                gains[0],
                gains[1],
                gains[2]
            ),
            agrees: dearest && little,
            values: costs.into_iter().chain(gains).collect(),
            models,
        })
    }
}

/// The headline claims of Zhao et al., from their own law.
fn zhao() -> Result<Vec<Claim>> {
    let law = Zhao2025::published()?.coefficients;
    let best = law.best_activation();
    let share = |n: f64| law.best_n_active(n, best) / n;
    let (medium, large) = (share(30e9), share(LARGE.0));
    let own = Activation { active_experts: LARGE.2, shared_ratio: 1.0 / LARGE.2 };
    let loss = |n_active: f64, at: Activation| law.loss(LARGE.0, LARGE.3, n_active, at);
    let lost = loss(LARGE.1, own) - loss(law.best_n_active(LARGE.0, best), best);
    // Printed to two digits each.
    let near =
        |value: f64, printed: f64, within: f64| Verdict::of((value - printed).abs() <= within);
    let claim = |id, claim, published, value: f64, verdict, extrapolation| Claim {
        id,
        claim,
        published,
        computed: format!("{value:.3} from zhao2025"),
        values: vec![value],
        verdict,
        published_range: size_of(id, &[value]).0,
        size: size_of(id, &[value]).1,
        extrapolation,
    };
    Ok(vec![
        claim(
            "Z1",
            "best number of activated experts, whatever the sizes",
            "about 7 (6.78)",
            best.active_experts,
            near(best.active_experts, 6.78, 0.01),
            1.0,
        ),
        claim(
            "Z2",
            "best shared share of the activated experts",
            "0.31",
            best.shared_ratio,
            near(best.shared_ratio, 0.31, 0.01),
            1.0,
        ),
        claim(
            "Z3",
            "best active share of a 30B model; falls with size",
            "about 40 %",
            medium,
            near(medium, 0.40, 0.01),
            30.0 / 9.0,
        ),
        Claim {
            computed: format!(
                "{large:.3} at 671B from zhao2025 against {medium:.3} at 30B; the model's own setting is \
                 {lost:.3} nats above that optimum, which takes {:.1} times its training",
                large * LARGE.0 / LARGE.1
            ),
            values: vec![large, lost],
            ..claim(
                "Z4",
                "larger models are best sparser; at the size of DeepSeek-V3",
                "sparser with size; DeepSeek-V3 (671B, 37.6B active, 8 and 1 shared experts) activates 5.6 %",
                large,
                Verdict::of(large < medium),
                671.0 / 9.0,
            )
        },
    ])
}

/// All and active parameters of DeepSeek-V3, its activated experts with the shared one, and its training
/// tokens (arXiv 2412.19437; counts of its published configuration).
const LARGE: (f64, f64, f64, f64) = (671.026e9, 37.552e9, 9.0, 14.8e12);

/// Three significant digits.
fn significant(value: f64) -> String {
    match value.abs() {
        v if v >= 1e4 => format!("{value:.2e}"),
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

fn percent(share: f64, digits: usize) -> String {
    format!("{:.digits$} %", share * 100.0)
}

/// `a-b` with the smaller first, or one number when they print alike.
fn between(a: f64, b: f64, digits: usize) -> String {
    let (low, high) = (format!("{:.digits$}", a.min(b)), format!("{:.digits$}", a.max(b)));
    if low == high { low } else { format!("{low}-{high}") }
}

fn between_percent(a: f64, b: f64, digits: usize) -> String {
    between(a * 100.0, b * 100.0, digits) + " %"
}

#[cfg(test)]
mod tests;
