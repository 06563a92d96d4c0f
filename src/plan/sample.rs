//! Made-up reports for tests: nothing here was measured or computed.

use proptest::prelude::*;

use crate::latency::Source;
use crate::plan::outcome::{
    Assumption, AtBudget, Basis, Binding, ByFlops, Candidate, CandidateKind, Choice, ChoiceCosts,
    Crossover, DecisionMap, DecisionMaps, ExpertShare, FlopsSaved, Interval, LatencyCurve,
    LatencyPoint, LawAnswer, LawUsed, Mixture, OperationSource, OverTraining, OverTrainingReport,
    ProfileUsed, RankReport, SCHEMA, SCHEMA_VERSION, Sensitivity, SmallerModel, TotalCostCurve,
    TotalCostPoint,
};
use crate::serving::Layout;

/// A report with three expert counts, of which the last cannot be served.
pub(crate) fn report() -> RankReport {
    let mut report = empty();
    report.summary = vec![
        "Cheapest in all: 4 experts (7.20 B active, 21.0 B total, 1.10 T tokens), $540k over 1.00 T \
         tokens served; probability 0.71."
            .into(),
    ];
    let kinds = [CandidateKind::LossOptimal, CandidateKind::IsoLoss, CandidateKind::OverTrained];
    for (index, experts) in [1, 4, 32].into_iter().enumerate() {
        for (step, kind) in kinds.into_iter().enumerate() {
            report.candidates.push(candidate(experts, kind, index as f64, step as f64));
        }
    }
    report.laws = laws();
    report.mixture = Some(mixture());
    report.frontier = vec![4, 5];
    report.crossovers = vec![
        Crossover {
            from_experts: 32,
            to_experts: 4,
            lifetime_tokens: 2e11,
            interval: Some(Interval { lo: 8e10, hi: 6e11, share: 0.9 }),
        },
        Crossover { from_experts: 4, to_experts: 1, lifetime_tokens: 4e13, interval: None },
    ];
    report.over_training = over_training();
    report.total_cost = [(1, 3e5, 0.5), (4, 2e5, 0.4)]
        .into_iter()
        .map(|(experts, train, serve)| TotalCostCurve {
            experts,
            points: (8..=16)
                .map(f64::from)
                .map(|power| TotalCostPoint {
                    lifetime_tokens: 10f64.powf(power),
                    total_usd: train + serve * 10f64.powf(power - 6.0),
                })
                .collect(),
        })
        .collect();
    report.decision_map.traffic =
        map("requests per second", "lifetime output tokens", (10.0, 1e12));
    report.decision_map.traffic.output_tokens_per_request = Some(1000.0);
    report.decision_map.budget =
        map("training budget, FLOPs", "limit on time per output token, ms", (1e23, 20.0));
    report.sensitivity = vec![
        sensitivity("lifetime output tokens", Some(32), true),
        sensitivity("training MFU", Some(4), false),
        sensitivity("serving price", None, true),
    ];
    report.layer_latency = vec![curve(4, Source::Measured), curve(32, Source::Transferred)];
    report.warnings = vec!["far outside the law's fitted range: 32 experts 12x".into()];
    report.assumptions = vec![
        Assumption {
            name: "--mfu".into(),
            value: "0.4".into(),
            range: Some("0.3 to 0.5".into()),
            source: "usual for dense training on this device".into(),
            is_default: true,
        },
        Assumption {
            name: "--rate".into(),
            value: "10 requests/s".into(),
            range: None,
            source: "given".into(),
            is_default: false,
        },
    ];
    report
}

/// A report that says nothing.
pub(crate) fn empty() -> RankReport {
    let nothing = || DecisionMap {
        x_label: "requests per second".into(),
        y_label: "lifetime output tokens".into(),
        x: vec![],
        y: vec![],
        last_is_at_scale: false,
        output_tokens_per_request: None,
        winner: vec![],
        p_best: vec![],
        here: (1.0, 1e12),
    };
    RankReport {
        familial: None,
        schema: SCHEMA.into(),
        schema_version: SCHEMA_VERSION.into(),
        program_version: "0.0.0".into(),
        summary: vec![],
        basis: Basis::WholeReplicas,
        p_none: 0.1,
        arguments: None,
        candidates: vec![],
        frontier: vec![],
        crossovers: vec![],
        total_cost: vec![],
        over_training: OverTrainingReport {
            base_experts: 4,
            budget_flops: 1e21,
            base_loss_nats: 2.0,
            base_serve_usd_per_million_output_tokens: None,
            max_serve_usd_per_million_output_tokens: None,
            at_budget: vec![],
            processed_tokens: 1e12,
            by_flops: vec![],
        },
        decision_map: DecisionMaps { traffic: nothing(), budget: nothing() },
        sensitivity: vec![],
        layer_latency: vec![],
        profile: ProfileUsed {
            origin: "profile.json".into(),
            device: "made-up <device> & co".into(),
            engine: "none".into(),
            operations: vec![OperationSource {
                operation: "routed experts".into(),
                source: Source::Transferred,
                from: "measured by this program on <x>".into(),
            }],
            dtype: "bf16".into(),
            measured_utc: Some("2026-01-02T03:04:05Z".into()),
            cells: Some(120),
            noise_floor_rel: Some(0.012),
            transfer_error_rel: Some(0.08),
            read_bytes_per_s: 2e10,
            gemm_flops_per_s: 2e11,
        },
        law: LawUsed {
            id: "made-up".into(),
            source: "nobody 2026".into(),
            uncertainty: "residuals of 0.004 nats".into(),
            target_loss_nats: 2.1234,
            target_from_experts: Some(4),
        },
        laws: vec![],
        mixture: None,
        assumptions: vec![],
        warnings: vec![],
    }
}

fn candidate(experts: usize, kind: CandidateKind, index: f64, step: f64) -> Candidate {
    let train_usd = 4e5 / (1.0 + index) * (1.0 + 0.2 * step);
    let serve = (experts < 32).then_some(0.5 - 0.1 * index - 0.05 * step);
    let best = kind == CandidateKind::OverTrained;
    let around = |v: f64| Interval { lo: v * 0.8, hi: v * 1.25, share: 1.0 };
    let total_usd = serve.filter(|_| best).map(|s| train_usd + s * 1e6);
    Candidate {
        experts,
        top_k: 1,
        kind,
        best_of_experts: best,
        n_active: 1e10 / (1.0 + index + step),
        n_total: 1e10 * (1.0 + 2.0 * index),
        hidden_size: 4096,
        num_layers: 32,
        num_heads: 32,
        num_kv_heads: 32,
        moe_intermediate_size: 12288,
        config: best.then(|| format!("config_e{experts}.json")),
        tokens: 2e11 * (1.0 + 3.0 * step),
        tokens_per_param: 20.0 * (1.0 + index + step) * (1.0 + 3.0 * step),
        loss_nats: if step == 0.0 { 2.05 + 0.02 * index } else { 2.1234 },
        downstream: None,
        extrapolation: 1.0 + 5.0 * index * step,
        train_flops: 1.2e22,
        learning_rate: (experts < 32).then_some(4.2e-4),
        batch_tokens: (experts < 32).then_some(1.6e6),
        hyperparameter_extrapolation: (experts < 32).then_some(2.5),
        hyperparameters_missing: (experts == 32).then(|| "tokens lie far outside".into()),
        train_usd,
        train_usd_interval: Some(around(train_usd)),
        serve_usd_per_million_output_tokens: serve,
        serve_usd_interval: serve.map(around),
        output_tokens_per_s_per_gpu: serve.map(|_| 900.0),
        gpus: serve.map(|_| 16),
        gpus_per_replica: serve.map(|_| 2),
        layout: serve.map(|_| Layout::tensor(2)),
        requests_per_s_per_replica: serve.map(|_| 3.5),
        serve_usd_per_million_output_tokens_at_scale: serve.filter(|_| best).map(|s| 0.97 * s),
        batch: serve.map(|_| 31.5),
        utilisation: serve.map(|_| 0.87),
        tpot_ms: serve.map(|_| 18.25),
        ttft_ms: serve.map(|_| 210.0),
        weights_bytes: 4.2e10,
        total_usd,
        total_usd_interval: total_usd.map(around),
        over_training: (kind == CandidateKind::OverTrained).then(|| OverTraining {
            size_ratio: 0.5,
            extra_train_usd: train_usd / 6.0,
            saved_usd_per_million_output_tokens: serve.map(|_| 0.05),
            pays_from_output_tokens: serve.map(|_| train_usd / 0.3 * 1e6),
        }),
        p_best: best.then_some(if experts == 4 { 0.71 } else { 0.095 }),
        p_best_at_scale: best.then_some(if experts == 4 { 0.69 } else { 0.155 }),
        binding: serve.map(|_| Binding::WeightStream),
        latency_source: serve.map(|_| Source::Transferred),
        infeasible: serve.is_none().then(|| "weights do not fit".into()),
    }
}

fn laws() -> Vec<LawAnswer> {
    let answer = |law: &str, winner: Option<usize>| LawAnswer {
        law: law.into(),
        mapping: "unchanged".into(),
        weight: if winner.is_some() { 1.0 / 3.0 } else { 0.0 },
        refused: winner.is_none().then(|| "no dense models in it".into()),
        silent_on: if law == "second" { vec![1] } else { vec![] },
        target_loss_nats: winner.map(|_| 2.1234),
        winner,
        total_usd: winner.map(|_| 5.4e5),
        tokens_per_param: winner.map(|_| 310.0),
        extrapolation: winner.map(|_| 41.0),
        flops_saved: winner
            .map(|_| FlopsSaved { from_experts: 1, to_experts: 4, factor: 1.5 })
            .into_iter()
            .collect(),
        p_best: winner.map_or_else(Vec::new, |w| {
            let share = |experts| ExpertShare { experts, p: if experts == w { 0.7 } else { 0.2 } };
            vec![share(1), share(4)]
        }),
        p_none: if winner.is_some() { 0.1 } else { 0.0 },
    };
    vec![
        answer("made-up", Some(4)),
        answer("second", Some(4)),
        answer("third", Some(1)),
        answer("fourth", None),
    ]
}

fn mixture() -> Mixture {
    let choice = |experts, p_best, regret| Choice {
        experts,
        n_active: 7.2e9,
        hidden_size: 3584,
        num_layers: 56,
        p_best,
        expected_regret_usd: Some(regret),
        regret_share: 0.9,
        costs: Some(ChoiceCosts {
            n_total: 2.1e10,
            train_usd: 2.4e5,
            serve_usd_per_million_output_tokens: 0.35,
            total_usd: 5.4e5 + regret,
            total_usd_interval: Some(Interval { lo: 3.1e5, hi: 9.8e5, share: 0.9 }),
        }),
    };
    Mixture {
        winner: Some(4),
        choices: vec![choice(1, 0.37, 3.1e4), choice(4, 0.53, 1.2e4)],
        p_none: 0.1,
    }
}

fn over_training() -> OverTrainingReport {
    let model = SmallerModel {
        n_active: 2e9,
        tokens: 4e11,
        tokens_per_param: 200.0,
        loss_nats: 2.11,
        size_over_optimal: 0.3,
        serve_usd_per_million_output_tokens: 0.31,
        base_train_factor: 1.2,
        extrapolation: 8.0,
    };
    OverTrainingReport {
        base_experts: 4,
        budget_flops: 1.2e22,
        base_loss_nats: 2.1234,
        base_serve_usd_per_million_output_tokens: Some(0.4),
        max_serve_usd_per_million_output_tokens: Some(0.4),
        at_budget: vec![
            AtBudget {
                experts: 1,
                bounded_loss: None,
                bounded_loss_missing: Some("dense does not reach that loss".into()),
                bounded_cost: Some(model),
                bounded_cost_missing: None,
                train_factor_for_both: None,
                both_missing: Some("no dense model serves within the bound".into()),
            },
            AtBudget {
                experts: 32,
                bounded_loss: Some(model),
                bounded_loss_missing: None,
                bounded_cost: Some(model),
                bounded_cost_missing: None,
                train_factor_for_both: Some(0.68),
                both_missing: None,
            },
        ],
        processed_tokens: 2e12,
        by_flops: vec![ByFlops {
            experts: 32,
            n_active: 1e9,
            tokens: 3e11,
            tokens_per_param: 300.0,
            train_flops: 1.8e21,
            total_flops: 5.8e21,
            extrapolation: 58.0,
        }],
    }
}

fn map(x_label: &str, y_label: &str, here: (f64, f64)) -> DecisionMap {
    let grid = |centre: f64| (-3..=3).map(|i| centre * 10f64.powi(i)).collect::<Vec<f64>>();
    let (x, y) = (grid(here.0), grid(here.1));
    let winner = |i: usize, j: usize| match i + j {
        0 => None,
        1..=4 => Some(32),
        5..=8 => Some(4),
        _ => Some(1),
    };
    DecisionMap {
        x_label: x_label.into(),
        y_label: y_label.into(),
        winner: (0..7).map(|j| (0..7).map(|i| winner(i, j)).collect()).collect(),
        p_best: (0..7)
            .map(|j| {
                (0..7)
                    .map(|i| if i + j == 0 { 0.0 } else { 0.4 + 0.05 * f64::from(i + j) })
                    .collect()
            })
            .collect(),
        x,
        y,
        last_is_at_scale: false,
        output_tokens_per_request: None,
        here,
    }
}

fn sensitivity(assumption: &str, winner_at_high: Option<usize>, flips: bool) -> Sensitivity {
    Sensitivity {
        assumption: assumption.into(),
        low: "a tenth".into(),
        high: "ten times".into(),
        winner_at_low: Some(4),
        winner_at_high,
        margin_at_low: Some(1.2),
        margin_at_high: winner_at_high.map(|_| 0.93),
        flips,
    }
}

fn curve(experts: usize, source: Source) -> LatencyCurve {
    let point = |power: i32| {
        let latency_us = 50.0 * 1.5f64.powi(power) + experts as f64;
        LatencyPoint {
            tokens: f64::from(power).exp2(),
            latency_us,
            lo_us: latency_us * 0.9,
            hi_us: latency_us * 1.1,
            source: if power == 3 { Source::Interpolated } else { source },
            roofline_us: latency_us * 0.5,
        }
    };
    LatencyCurve { experts, hidden: 1024, inter: 4096, points: (0..=12).map(point).collect() }
}

/// Reports of the right form with any finite numbers and any text in them.
pub(crate) fn arbitrary() -> impl Strategy<Value = RankReport> {
    use prop::num::f64::{NEGATIVE, NORMAL, POSITIVE, SUBNORMAL, ZERO};
    let number =
        prop_oneof![3 => 1e-6..1e15_f64, 1 => NORMAL | SUBNORMAL | ZERO | POSITIVE | NEGATIVE];
    let numbers = prop::collection::vec(number, 1..60);
    let counts = prop::collection::vec(prop_oneof![1_usize..600, Just(usize::MAX)], 1..12);
    let flags = prop::collection::vec(any::<bool>(), 1..20);
    (numbers, counts, flags, "\\PC{0,150}", 0..9_usize).prop_map(
        |(numbers, counts, flags, text, keep)| filled(&numbers, &counts, &flags, &text, keep),
    )
}

/// The sample report with its numbers, counts and texts replaced.
fn filled(
    numbers: &[f64],
    counts: &[usize],
    flags: &[bool],
    text: &str,
    keep: usize,
) -> RankReport {
    let mut numbers = numbers.iter().copied().cycle();
    let mut counts = counts.iter().copied().cycle();
    let mut flags = flags.iter().copied().cycle();
    let mut number = || numbers.next().unwrap_or(1.0);
    let mut experts = || counts.next().unwrap_or(1);
    let mut flag = || flags.next().unwrap_or(true);
    let mut report = report();
    report.candidates.truncate(keep);
    report.frontier.retain(|&i| i < keep);
    for c in &mut report.candidates {
        c.experts = experts();
        c.best_of_experts = flag();
        for field in [&mut c.n_active, &mut c.n_total, &mut c.tokens, &mut c.tokens_per_param] {
            *field = number();
        }
        for field in [&mut c.loss_nats, &mut c.extrapolation, &mut c.train_usd] {
            *field = number();
        }
        c.serve_usd_per_million_output_tokens = flag().then(&mut number);
        c.serve_usd_interval =
            flag().then(|| Interval { lo: number(), hi: number(), share: number() });
        c.train_usd_interval =
            flag().then(|| Interval { lo: number(), hi: number(), share: number() });
        c.total_usd = flag().then(&mut number);
        c.utilisation = flag().then(&mut number);
        c.tpot_ms = flag().then(&mut number);
        c.gpus = flag().then(&mut experts);
    }
    for change in &mut report.crossovers {
        (change.from_experts, change.to_experts) = (experts(), experts());
        change.lifetime_tokens = number();
        change.interval = flag().then(|| Interval { lo: number(), hi: number(), share: number() });
    }
    for curve in &mut report.total_cost {
        curve.experts = experts();
        curve.points.truncate(keep);
        for point in &mut curve.points {
            (point.lifetime_tokens, point.total_usd) = (number(), number());
        }
    }
    for curve in &mut report.layer_latency {
        curve.experts = experts();
        curve.points.truncate(keep);
        for p in &mut curve.points {
            (p.tokens, p.latency_us, p.lo_us) = (number(), number(), number());
            (p.hi_us, p.roofline_us) = (number(), number());
        }
    }
    for map in [&mut report.decision_map.traffic, &mut report.decision_map.budget] {
        map.here = (number(), number());
        map.x_label = text.to_owned();
        for value in map.x.iter_mut().chain(&mut map.y).chain(map.p_best.iter_mut().flatten()) {
            *value = number();
        }
        for winner in map.winner.iter_mut().flatten() {
            *winner = flag().then(&mut experts);
        }
    }
    report.profile.device = text.to_owned();
    report.summary = vec![text.to_owned()];
    report.assumptions[0].source = text.to_owned();
    report
}
