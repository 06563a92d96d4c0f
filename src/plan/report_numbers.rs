//! What the numbers of a ranking can be, whatever they are: probabilities, signs, counts, orders.
//!
//! A seal says that nobody changed a file by accident. Whoever seals nonsense is refused here.

use crate::plan::outcome::{
    Candidate, DecisionMap, Interval, LatencyPoint, LawAnswer, Mixture, OverTrainingReport,
    RankReport,
};

/// How far sums of probabilities may lie above one: they are rounded.
const ROUNDING: f64 = 1e-6;

type Checked = Result<(), String>;

/// Checks every number of a ranking.
pub(super) fn check(report: &RankReport) -> Checked {
    share("p_none", report.p_none)?;
    for (index, candidate) in report.candidates.iter().enumerate() {
        self::candidate(candidate).map_err(|e| format!("candidate {index}: {e}"))?;
    }
    let best = report.candidates.iter().filter_map(|c| c.p_best);
    at_most_one("the probabilities of the candidates", best.sum::<f64>() + report.p_none)?;
    for crossover in &report.crossovers {
        count("from_experts", Some(crossover.from_experts))?;
        count("to_experts", Some(crossover.to_experts))?;
        positive("lifetime_tokens", Some(crossover.lifetime_tokens))?;
        interval("interval", crossover.interval)?;
    }
    for curve in &report.total_cost {
        count("experts", Some(curve.experts))?;
        for point in &curve.points {
            positive("lifetime_tokens", Some(point.lifetime_tokens))?;
            not_negative("total_usd", Some(point.total_usd))?;
        }
    }
    for (name, map) in
        [("traffic", &report.decision_map.traffic), ("budget", &report.decision_map.budget)]
    {
        self::map(map).map_err(|e| format!("decision map `{name}`: {e}"))?;
    }
    for curve in &report.layer_latency {
        let sizes = [("experts", curve.experts), ("hidden", curve.hidden), ("inter", curve.inter)];
        sizes.into_iter().try_for_each(|(name, size)| count(name, Some(size)))?;
        curve.points.iter().try_for_each(latency)?;
    }
    over_training(&report.over_training).map_err(|e| format!("over_training: {e}"))?;
    for answer in &report.laws {
        law(answer).map_err(|e| format!("law `{}`: {e}", answer.law))?;
    }
    at_most_one("the weights of the laws", report.laws.iter().map(|l| l.weight).sum())?;
    report.mixture.as_ref().map_or(Ok(()), mixture)?;
    positive("target_loss_nats", Some(report.law.target_loss_nats))?;
    positive("read_bytes_per_s", Some(report.profile.read_bytes_per_s))?;
    positive("gemm_flops_per_s", Some(report.profile.gemm_flops_per_s))?;
    not_negative("noise_floor_rel", report.profile.noise_floor_rel)?;
    not_negative("transfer_error_rel", report.profile.transfer_error_rel)
}

fn candidate(c: &Candidate) -> Checked {
    for (name, value) in [
        ("experts", Some(c.experts)),
        ("top_k", Some(c.top_k)),
        ("hidden_size", Some(c.hidden_size)),
        ("num_layers", Some(c.num_layers)),
        ("gpus", c.gpus),
        ("gpus_per_replica", c.gpus_per_replica),
    ] {
        count(name, value)?;
    }
    if c.top_k > c.experts {
        return Err(format!("top_k {} of {} experts", c.top_k, c.experts));
    }
    for (name, value) in [
        ("n_active", Some(c.n_active)),
        ("n_total", Some(c.n_total)),
        ("tokens", Some(c.tokens)),
        ("tokens_per_param", Some(c.tokens_per_param)),
        ("loss_nats", Some(c.loss_nats)),
        ("train_flops", Some(c.train_flops)),
        ("learning_rate", c.learning_rate),
        ("batch_tokens", c.batch_tokens),
        ("weights_bytes", Some(c.weights_bytes)),
        ("tpot_ms", c.tpot_ms),
        ("over_training.size_ratio", c.over_training.map(|o| o.size_ratio)),
    ] {
        positive(name, value)?;
    }
    factor("extrapolation", Some(c.extrapolation))?;
    factor("hyperparameter_extrapolation", c.hyperparameter_extrapolation)?;
    for (name, value) in [
        ("train_usd", Some(c.train_usd)),
        ("serve_usd_per_million_output_tokens", c.serve_usd_per_million_output_tokens),
        (
            "serve_usd_per_million_output_tokens_at_scale",
            c.serve_usd_per_million_output_tokens_at_scale,
        ),
        ("output_tokens_per_s_per_gpu", c.output_tokens_per_s_per_gpu),
        ("requests_per_s_per_replica", c.requests_per_s_per_replica),
        ("batch", c.batch),
        ("utilisation", c.utilisation),
        ("ttft_ms", c.ttft_ms),
        ("total_usd", c.total_usd),
        (
            "over_training.pays_from_output_tokens",
            c.over_training.and_then(|o| o.pays_from_output_tokens),
        ),
    ] {
        not_negative(name, value)?;
    }
    interval("train_usd_interval", c.train_usd_interval)?;
    interval("serve_usd_interval", c.serve_usd_interval)?;
    interval("total_usd_interval", c.total_usd_interval)?;
    c.p_best.map_or(Ok(()), |p| share("p_best", p))?;
    c.p_best_at_scale.map_or(Ok(()), |p| share("p_best_at_scale", p))
}

fn over_training(o: &OverTrainingReport) -> Checked {
    count("base_experts", Some(o.base_experts))?;
    positive("budget_flops", Some(o.budget_flops))?;
    positive("base_loss_nats", Some(o.base_loss_nats))?;
    not_negative("processed_tokens", Some(o.processed_tokens))?;
    not_negative("base serving cost", o.base_serve_usd_per_million_output_tokens)?;
    not_negative("bound on serving cost", o.max_serve_usd_per_million_output_tokens)?;
    for row in &o.at_budget {
        count("experts", Some(row.experts))?;
        positive("train_factor_for_both", row.train_factor_for_both)?;
        for model in row.bounded_loss.iter().chain(&row.bounded_cost) {
            positive("n_active", Some(model.n_active))?;
            positive("tokens", Some(model.tokens))?;
            positive("tokens_per_param", Some(model.tokens_per_param))?;
            positive("loss_nats", Some(model.loss_nats))?;
            positive("size_over_optimal", Some(model.size_over_optimal))?;
            not_negative("serving cost", Some(model.serve_usd_per_million_output_tokens))?;
            positive("base_train_factor", Some(model.base_train_factor))?;
            factor("extrapolation", Some(model.extrapolation))?;
        }
    }
    for row in &o.by_flops {
        count("experts", Some(row.experts))?;
        positive("n_active", Some(row.n_active))?;
        positive("tokens", Some(row.tokens))?;
        positive("tokens_per_param", Some(row.tokens_per_param))?;
        positive("train_flops", Some(row.train_flops))?;
        positive("total_flops", Some(row.total_flops))?;
        factor("extrapolation", Some(row.extrapolation))?;
    }
    Ok(())
}

fn law(l: &LawAnswer) -> Checked {
    share("weight", l.weight)?;
    share("p_none", l.p_none)?;
    l.p_best.iter().try_for_each(|e| share("p", e.p))?;
    at_most_one("its probabilities", l.p_best.iter().map(|e| e.p).sum::<f64>() + l.p_none)?;
    positive("target_loss_nats", l.target_loss_nats)?;
    positive("tokens_per_param", l.tokens_per_param)?;
    not_negative("total_usd", l.total_usd)?;
    factor("extrapolation", l.extrapolation)?;
    for saved in &l.flops_saved {
        if saved.from_experts == 0 || saved.to_experts <= saved.from_experts {
            return Err(format!("from {} to {} experts", saved.from_experts, saved.to_experts));
        }
        positive("factor", Some(saved.factor))?;
    }
    Ok(())
}

fn mixture(m: &Mixture) -> Checked {
    share("p_none", m.p_none)?;
    for choice in &m.choices {
        count("experts", Some(choice.experts))?;
        positive("n_active", Some(choice.n_active))?;
        share("p_best", choice.p_best)?;
        share("regret_share", choice.regret_share)?;
        not_negative("expected_regret_usd", choice.expected_regret_usd)?;
        if let Some(costs) = &choice.costs {
            positive("n_total", Some(costs.n_total))?;
            not_negative("train_usd", Some(costs.train_usd))?;
            not_negative("serving cost", Some(costs.serve_usd_per_million_output_tokens))?;
            not_negative("total_usd", Some(costs.total_usd))?;
            interval("total_usd_interval", costs.total_usd_interval)?;
        }
    }
    let sum = m.choices.iter().map(|c| c.p_best).sum::<f64>() + m.p_none;
    at_most_one("the probabilities of the mixture", sum)
}

fn map(m: &DecisionMap) -> Checked {
    for values in [&m.x, &m.y] {
        values.iter().try_for_each(|v| positive("a grid value", Some(*v)))?;
        if let Some([low, high]) = values.windows(2).find(|pair| pair[0] >= pair[1]) {
            return Err(format!("its grid does not rise from {low} to {high}"));
        }
    }
    m.winner.iter().flatten().try_for_each(|winner| count("a winner", *winner))?;
    m.p_best.iter().flatten().try_for_each(|p| share("p_best", *p))?;
    positive("output_tokens_per_request", m.output_tokens_per_request)
}

fn latency(p: &LatencyPoint) -> Checked {
    positive("tokens", Some(p.tokens))?;
    positive("latency_us", Some(p.latency_us))?;
    not_negative("roofline_us", Some(p.roofline_us))?;
    not_negative("lo_us", Some(p.lo_us))?;
    in_order("lo_us and hi_us", p.lo_us, p.hi_us)
}

fn interval(name: &str, interval: Option<Interval>) -> Checked {
    let Some(Interval { lo, hi, share: of }) = interval else { return Ok(()) };
    not_negative(name, Some(lo))?;
    in_order(name, lo, hi)?;
    share(&format!("share of {name}"), of)
}

fn in_order(name: &str, lo: f64, hi: f64) -> Checked {
    if lo <= hi { Ok(()) } else { Err(format!("{name}: {lo} is above {hi}")) }
}

fn share(name: &str, value: f64) -> Checked {
    if (0.0..=1.0 + ROUNDING).contains(&value) {
        Ok(())
    } else {
        Err(format!("{name} is {value}, not a share from 0 to 1"))
    }
}

fn at_most_one(what: &str, sum: f64) -> Checked {
    if sum <= 1.0 + ROUNDING { Ok(()) } else { Err(format!("{what} sum to {sum}")) }
}

fn count(name: &str, value: Option<usize>) -> Checked {
    if value == Some(0) { Err(format!("{name} is 0")) } else { Ok(()) }
}

fn positive(name: &str, value: Option<f64>) -> Checked {
    match value {
        Some(v) if !(v > 0.0 && v.is_finite()) => Err(format!("{name} is {v}, not above zero")),
        _ => Ok(()),
    }
}

fn not_negative(name: &str, value: Option<f64>) -> Checked {
    match value {
        Some(v) if !(v >= 0.0 && v.is_finite()) => Err(format!("{name} is {v}, below zero")),
        _ => Ok(()),
    }
}

/// A factor outside of a range; 1 is inside.
fn factor(name: &str, value: Option<f64>) -> Checked {
    match value {
        Some(v) if !(v >= 1.0 && v.is_finite()) => {
            Err(format!("{name} is {v}, not a factor of at least 1"))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::sample;

    #[test]
    fn a_report_of_this_program_is_possible_and_changed_ones_are_not() {
        check(&sample::report()).unwrap();
        check(&sample::empty()).unwrap();
        let refused = |edit: fn(&mut RankReport), word: &str| {
            let mut report = sample::report();
            edit(&mut report);
            let error = check(&report).unwrap_err();
            assert!(error.contains(word), "{error}");
        };
        refused(|r| r.p_none = -0.1, "p_none is -0.1");
        refused(|r| r.p_none = 0.5, "sum to");
        refused(|r| r.candidates[2].p_best = Some(1.5), "candidate 2: p_best is 1.5");
        refused(|r| r.candidates[0].experts = 0, "experts is 0");
        refused(|r| r.candidates[0].top_k = 2, "top_k 2 of 1 experts");
        refused(|r| r.candidates[1].train_usd = -1.0, "train_usd is -1, below zero");
        refused(|r| r.candidates[1].loss_nats = 0.0, "loss_nats is 0");
        refused(|r| r.candidates[1].extrapolation = 0.5, "a factor of at least 1");
        refused(
            |r| {
                r.candidates[0].train_usd_interval =
                    Some(Interval { lo: 2.0, hi: 1.0, share: 1.0 });
            },
            "2 is above 1",
        );
        refused(|r| r.crossovers[0].lifetime_tokens = -2e11, "lifetime_tokens");
        refused(|r| r.total_cost[0].points[3].total_usd = -1.0, "total_usd");
        refused(|r| r.decision_map.traffic.x.reverse(), "`traffic`: its grid does not rise");
        refused(|r| r.decision_map.budget.p_best[0][1] = 7.0, "`budget`: p_best is 7");
        refused(|r| r.layer_latency[0].points[0].hi_us = 0.0, "lo_us and hi_us");
        refused(|r| r.laws[0].weight = 0.9, "weights of the laws sum to");
        refused(|r| r.laws[0].flops_saved[0].to_experts = 1, "from 1 to 1 experts");
        refused(|r| r.over_training.budget_flops = 0.0, "over_training: budget_flops");
        refused(
            |r| {
                if let Some(mixture) = &mut r.mixture {
                    mixture.choices[0].expected_regret_usd = Some(-1.0);
                }
            },
            "expected_regret_usd",
        );
    }
}
