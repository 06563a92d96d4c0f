//! Tests: every law as a ranking asks it gives what its paper, or its own form, gives.

use super::*;
use crate::config::preset;
use crate::law::tian2025::Tian2025;
use crate::units::Flops;

/// Feed-forward blocks alone: total over active parameters is `experts / top_k` exactly.
fn blocks(top_k: usize, ratio: f64) -> Template {
    Template {
        top_k,
        expert_ratio: ratio,
        attention: AttentionTemplate::Grouped { width_ratio: 1e-12, head_dim: None, group: 1.0 },
        vocab: 0,
        ..Template::ludziejewski2025()
    }
}

fn on(id: &str, template: Template) -> Scaling {
    load_scaling(id).unwrap().on(&Arc::new(template))
}

fn close(got: f64, wanted: f64, relative: f64) {
    assert!((got / wanted - 1.0).abs() <= relative, "{got} against {wanted}");
}

#[test]
fn the_default_laws_published_optima_come_out() {
    let law = load_scaling("ludziejewski2025").unwrap();
    for (experts, n, d) in [(1, 5.7e9, 29.3e9), (8, 3.8e9, 44.3e9), (32, 2.85e9, 58.4e9)] {
        let best = law.slice(experts).unwrap().optimum(Flops(1e21));
        close(best.n_active, n, 0.025);
        close(best.tokens, d, 0.025);
    }
}

#[test]
fn abnars_optima_come_out() {
    for (experts, n_total, d, loss) in [(4, 4.339e9, 76.8e9, 2.2103), (8, 7.895e9, 84.4e9, 2.1555)]
    {
        let law = on("abnar2025", blocks(2, 3.0));
        let best = law.slice(experts).unwrap().optimum(Flops(1e21));
        close(law.closure(experts, best.n_active).unwrap().n_total, n_total, 5e-3);
        close(best.tokens, d, 5e-3);
        assert!((best.loss.0 - loss).abs() <= 1e-4, "{}", best.loss);
    }
}

#[test]
fn krajewskis_published_optima_come_out() {
    // Active parameters, tokens, granularity and loss of the paper's table 2, as its form gives them.
    let rows: [(f64, f64, usize, f64); 3] =
        [(100e6, 4.37e9, 8, 3.1097), (1e9, 28.94e9, 16, 2.4714), (7e9, 137.6e9, 32, 2.0596)];
    for (n_active, tokens, granularity, loss) in rows {
        let template = Template {
            top_k: granularity,
            expert_ratio: 8.0 / 3.0 / granularity as f64,
            vocab: 0,
            ..Template::ludziejewski2025()
        };
        let slice = on("krajewski2024", template).slice(64 * granularity).unwrap();
        assert!((slice.loss(n_active, tokens).0 - loss).abs() < 1e-3);
    }
    let dense = on("krajewski2024", Template { vocab: 0, ..Template::ludziejewski2025() });
    assert!((dense.slice(1).unwrap().loss(1e9, 20e9).0 - 2.98031).abs() < 1e-4);
    assert_eq!(dense.slice(128).unwrap_err().exit_code(), 4);
    // Between its sets the loss lies between theirs.
    let at = |experts| dense.slice(experts).unwrap().loss(1e9, 20e9);
    assert!(at(1) > at(4) && at(4) > at(16) && at(16) > at(32) && at(32) > at(64));
}

#[test]
fn zhaos_losses_come_out_and_dense_models_are_refused() {
    let law = on("zhao2025", blocks(8, 0.375));
    let loss = law.slice(56).unwrap().loss(1e9, 2e11);
    assert!((loss.0 - 2.37077).abs() <= 1e-5, "{loss}");
    assert_eq!(law.slice(1).unwrap_err().exit_code(), 4);
}

#[test]
fn zhaos_published_number_of_active_experts_comes_out() {
    // At one size, one expansion and one training: 6.78 (arXiv 2509.23678).
    let loss = |top_k: usize| {
        let law = on("zhao2025", blocks(top_k, 3.0 / top_k as f64));
        law.slice(8 * top_k).unwrap().loss(1e9, 2e11).0
    };
    let best = (1..=16).min_by(|a, b| loss(*a).total_cmp(&loss(*b)));
    assert_eq!(best, Some(7));
}

#[test]
fn tians_leverage_is_worth_active_parameters() {
    let law = on("tian2025", blocks(4, 0.5));
    let dense = load("besiroglu2024", None).unwrap();
    let (n, tokens) = (1e9, 1e20 / 6e9);
    // A = 4/32, G = 4: the leverage of the acceptance values.
    let got = law.slice(32).unwrap().loss(n, tokens).0;
    let inputs = [(Variable::NActive, 2.4561 * n), (Variable::Tokens, tokens)];
    let wanted = ask(dense.as_ref(), &Inputs::new(inputs).unwrap(), Question::Loss).unwrap();
    assert!((got - wanted.loss_nats).abs() < 1e-4, "{got}");
    // The pilot model: 0.85B active of 17.5B is as good as 6.1B dense on 1T tokens.
    let leverage = Tian2025::published(None).unwrap().coefficients.leverage(
        13.0 / 385.0,
        2.0 * 2048.0 / 384.0,
        Flops(6.0 * 0.85e9 * 1e12),
    );
    close(0.85e9 * leverage, 6.1e9, 0.1);
}

#[test]
fn clarks_experts_are_worth_dense_parameters() {
    let clark = clark2022::Clark2022::published(None).unwrap().coefficients;
    for experts in [4.0, 16.0, 32.0] {
        let effective = clark.effective_parameters(1.3e9, experts);
        assert!((clark.loss(effective, 1.0).0 - clark.loss(1.3e9, experts).0).abs() < 1e-9);
        assert!(effective > 1.3e9);
    }
    let law = load_scaling("clark2022").unwrap();
    assert!(law.slice(16).unwrap().loss(1e9, 1e11) < law.slice(4).unwrap().loss(1e9, 1e11));
}

#[test]
fn every_law_answers_every_preset_or_says_why_not() {
    for name in ["mixtral-8x7b", "qwen3-30b-a3b", "deepseek-v3"] {
        let model = preset::load(name).unwrap().model;
        let template = Arc::new(Template::of(&model).unwrap());
        let params = model.params();
        for id in SCALING_IDS {
            let law = load_scaling(id).unwrap().on(&template);
            assert!(law.mapping().len() > 20);
            match law.slice(model.num_experts) {
                Ok(slice) => {
                    let loss = slice.loss(params.active(), 2e12).0;
                    assert!((1.0..3.0).contains(&loss), "{id} {name}: {loss}");
                    let more = slice.loss(2.0 * params.active(), 2e12).0;
                    assert!(more < loss, "{id} {name}: {more} {loss}");
                }
                Err(refused) => assert_eq!(refused.exit_code(), 4, "{id} {name}: {refused}"),
            }
        }
    }
}
