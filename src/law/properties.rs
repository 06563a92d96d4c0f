//! What must hold of every law, in one place: loss falls with size and tokens, an optimum beats its
//! neighbours, and each inverse undoes its law.
//!
//! The values that the laws were computed to have elsewhere are tests beside each law:
//!
//! | what | where |
//! |---|---|
//! | losses, table 4, optima, ratios, learning rate, memory limits, order up to 1e23 | `ludziejewski2025` |
//! | demonstration losses, totals and active share, limits of the effective experts | `yun2024` |
//! | the serving procedure and its toy deployment | `cost::yun2024` |
//! | both algorithms; every claim of Yun et al. and Zhao et al. | `bounded`, `claims` |
//! | best activation, active share, losses | `zhao2025` |
//! | four rows of the paper's table, dense and 16-fold sets | `krajewski2024` |
//! | losses of three routers, exact closure | `clark2022` |
//! | errors on released runs, fits, intervals, held-out errors | `fit::tests` |
//! | losses and optima by sparsity | `abnar2025` |
//! | leverages, best granularity, allocations | `tian2025` |
//! | three sets of dense coefficients, FLAME-MoE | `dense` |
//! | the papers' examples, joint budgets, gradients | `inference_aware` |
//! | learning rate and batch | `step_law` |

use proptest::prelude::*;

use super::file::{LawFile, SCHEMA, SCHEMA_VERSION};
use super::{
    Inputs, LossLaw, Question, SCALING_IDS, Surface, Variable, ask, effective_experts, load,
    load_scaling,
};
use crate::units::{Flops, Nats};

/// Demonstration coefficients of the form, fitted to the runs of Clark et al. 2022.
fn yun() -> Box<dyn LossLaw> {
    let named = [
        ("a", 26.78),
        ("alpha", 0.1718),
        ("b", 0.0644),
        ("beta", 0.0953),
        ("c", 9.872),
        ("gamma", 0.0749),
        ("f", 0.1805),
        ("d", -0.00223),
        ("e_start", 2.86),
        ("e_max", 94.1),
    ];
    let file = LawFile {
        schema: SCHEMA.into(),
        schema_version: SCHEMA_VERSION.into(),
        form: "yun2024".into(),
        source: "demonstration".into(),
        names: named.iter().map(|(name, _)| (*name).to_owned()).collect(),
        coefficients: named.iter().map(|(_, value)| *value).collect(),
        residual_nats: 0.0,
        fixed: None,
        ranges: Vec::new(),
        draws: Vec::new(),
        fit: None,
    };
    file.into_law().unwrap()
}

/// A law, its set of coefficients, and the variables beside size and tokens.
type Setting = (&'static str, Option<&'static str>, Vec<(Variable, f64)>);

/// Every law of size and tokens at one setting of its other variables, with its name.
fn surfaces(power: u32) -> Vec<(&'static str, Box<dyn Surface>)> {
    let experts = (Variable::Experts, f64::from(1 << power));
    let settings: [Setting; 11] = [
        ("ludziejewski2025", None, vec![experts]),
        (
            "krajewski2024",
            None,
            vec![(Variable::Experts, 64.0), (Variable::Granularity, f64::from(1 << power.min(4)))],
        ),
        ("clark2022", Some("s-base"), vec![experts]),
        ("clark2022", Some("rl-r"), vec![experts]),
        ("clark2022", Some("hash"), vec![experts]),
        ("abnar2025", None, vec![(Variable::Sparsity, 1.0 - 1.0 / f64::from(1 << power))]),
        ("flame_moe2025", None, vec![]),
        ("hoffmann2022", None, vec![]),
        ("besiroglu2024", None, vec![]),
        ("zhao2025", None, vec![(Variable::NTotal, 1e11)]),
        ("yun2024", None, vec![experts]),
    ];
    settings
        .into_iter()
        .map(|(id, variant, values)| {
            let law = if id == "yun2024" { yun() } else { load(id, variant).unwrap() };
            (id, law.surface(&Inputs::new(values).unwrap()).unwrap())
        })
        .collect()
}

/// Zhao et al. have a best active share, so that more active parameters are not always better.
fn falls_with_size(id: &str) -> bool {
    id != "zhao2025"
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn loss_falls_with_size_and_with_tokens(
        log_n in 7.5..9.3_f64,
        log_d in 9.3..11.0_f64,
        power in 0..6_u32,
        step in 1.01..2.0_f64,
    ) {
        let (n, d) = (10f64.powf(log_n), 10f64.powf(log_d));
        for (id, surface) in surfaces(power) {
            let here = surface.loss(n, d);
            prop_assert!(here.is_finite() && here > 0.0, "{id}: {here}");
            if falls_with_size(id) {
                prop_assert!(surface.loss(n * step, d) < here, "{id} at {n:e}, {d:e}");
            }
            if surface.only_tokens().is_none() {
                prop_assert!(surface.loss(n, d * step) < here, "{id} at {n:e}, {d:e}");
            }
        }
    }

    #[test]
    fn an_optimum_beats_its_neighbours_at_the_same_budget(
        log_budget in 18.0..22.0_f64,
        power in 0..6_u32,
    ) {
        let budget = Flops(10f64.powf(log_budget));
        for (id, surface) in surfaces(power).into_iter().filter(|(_, s)| s.no_optimum().is_none()) {
            let best = surface.optimum(budget).unwrap();
            let spent = surface.train_flops_per_token(best.n) * best.tokens;
            prop_assert!((spent / budget.0 - 1.0).abs() < 1e-9, "{id}: {spent:e}");
            let loss = surface.loss(best.n, best.tokens);
            for factor in [0.8, 0.97, 1.03, 1.25] {
                let n = best.n * factor;
                let other = surface.loss(n, budget.0 / surface.train_flops_per_token(n));
                prop_assert!(loss <= other, "{id}: {loss} at {:e}, {other} at {n:e}", best.n);
            }
        }
    }

    #[test]
    fn inverses_undo_every_law(
        log_budget in 18.0..22.0_f64,
        power in 0..6_u32,
        ratio in 0.5..4.0_f64,
    ) {
        let budget = Flops(10f64.powf(log_budget));
        for (id, surface) in surfaces(power).into_iter().filter(|(_, s)| s.no_optimum().is_none()) {
            let best = surface.optimum(budget).unwrap();
            let loss = Nats(surface.loss(best.n, best.tokens));
            let back = surface.budget_for_loss(loss).unwrap();
            prop_assert!((back.0 / budget.0 - 1.0).abs() < 1e-6, "{id}: {:e}", back.0);
            let tokens = best.tokens * ratio;
            let there = Nats(surface.loss(best.n, tokens));
            let back = surface.tokens_for_loss(best.n, there).unwrap();
            prop_assert!((back / tokens - 1.0).abs() < 1e-6, "{id}: {back:e}");
        }
    }

    #[test]
    fn laws_that_rank_have_inverses_in_size_and_budget(
        log_budget in 18.0..23.0_f64,
        power in 0..6_u32,
    ) {
        for id in SCALING_IDS {
            let slice = match load_scaling(id).unwrap().slice(1 << power) {
                Ok(slice) => slice,
                // The one law without dense models.
                Err(refused) => {
                    prop_assert!(id == "zhao2025" && power == 0, "{id}: {refused}");
                    continue;
                }
            };
            let best = slice.optimum(Flops(10f64.powf(log_budget)));
            let back = slice.n_for_loss(best.tokens, best.loss).unwrap();
            prop_assert!((back / best.n_active - 1.0).abs() < 1e-9, "{id}");
        }
    }

    #[test]
    fn leverage_lowers_the_loss_of_a_budget_and_falls_with_the_active_share(
        log_budget in 18.5..21.5_f64,
        sparsity in 0.5..0.97_f64,
    ) {
        let law = load("tian2025", None).unwrap();
        let at = |sparsity: f64, budget: f64| {
            let inputs = Inputs::new([(Variable::Sparsity, sparsity)]).unwrap();
            ask(law.as_ref(), &inputs, Question::Budget(Flops(budget))).unwrap()
        };
        let budget = 10f64.powf(log_budget);
        let here = at(sparsity, budget);
        prop_assert!(at(sparsity, budget * 1.1).loss_nats < here.loss_nats);
        prop_assert!(at(sparsity + 0.01, budget).loss_nats < here.loss_nats);
        let inputs = Inputs::new([(Variable::Sparsity, sparsity)]).unwrap();
        let back = ask(law.as_ref(), &inputs, Question::Target(Nats(here.loss_nats))).unwrap();
        prop_assert!((back.train_flops.unwrap() / budget - 1.0).abs() < 1e-6);
    }

    #[test]
    fn effective_experts_rise_from_start_to_limit(
        start in 1.0..5.0_f64,
        spread in 1.0..500.0_f64,
        experts in 1.0..1e4_f64,
    ) {
        let most = start + spread;
        let at = |e: f64| effective_experts(e, start, most);
        prop_assert!((at(1.0) / start - 1.0).abs() < 1e-9);
        prop_assert!((at(1e14) / most - 1.0).abs() < 1e-6);
        prop_assert!(at(experts * 1.01) > at(experts) && at(experts) < most);
    }
}
