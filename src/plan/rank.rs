//! The ranking itself: candidates priced, drawn, compared, and put into a
//! [`crate::plan::outcome::RankReport`].
//!
//! Nothing is measured and nothing is printed here: a law, a latency model and resolved inputs go
//! in, a report comes out.

use rayon::prelude::*;

use crate::latency::latency::LatencyModel;
use crate::law::{ExpertScaling, step_law};
use crate::plan::candidates::{Point, geometry};
use crate::plan::decide::{
    CostTable, best_of_families, changes, cost_table, interval, pair_crossing, win_shares, winner,
};
use crate::plan::decision_map::{self, lifetime};
use crate::plan::draws::draws;
use crate::plan::frontier::pareto;
use crate::plan::inputs::{Demand, RankInputs};
use crate::plan::market::{Market, World};
use crate::plan::operating::{Served, serve};
use crate::plan::outcome::{
    Assumption, Candidate, CandidateKind, Crossover, DecisionMaps, Interval, LawUsed, ProfileUsed,
    RankReport, SCHEMA, SCHEMA_VERSION, Sensitivity, TotalCostCurve, TotalCostPoint,
};
use crate::plan::over_training::Pricing;
use crate::plan::price::Priced;
use crate::plan::{latency_curve, over_training, sensitivity, summary};
use crate::serving::{StepFactors, training_flops};
use crate::units::Seconds;
use crate::{Error, Result};

/// Sizes on each equal-loss curve; neighbours differ by a few per cent.
const CURVE_POINTS: usize = 16;
/// Draws that the traffic map uses; a share is good to 0.03 with these.
const MAP_DRAWS: usize = 250;
/// Draws that crossover intervals use.
const CROSSOVER_DRAWS: usize = 250;
/// Points of the total-cost curves per factor of ten in lifetime.
const LIFETIME_POINTS: i32 = 8;
/// Total cost is drawn over this many decades to either side of the given lifetime.
const LIFETIME_DECADES: i32 = 4;

/// What a ranking is told about its own provenance, by whoever resolved the inputs.
#[derive(Clone, Debug)]
pub struct Provenance {
    /// The profile.
    pub profile: ProfileUsed,
    /// Identifier of the law, or the file of a fit.
    pub law_id: String,
    /// Title and source of the law.
    pub law_source: String,
    /// How the law's uncertainty was drawn.
    pub law_uncertainty: String,
    /// Every price, efficiency and length used.
    pub assumptions: Vec<Assumption>,
    /// Things to know before acting on the answer.
    pub warnings: Vec<String>,
}

/// Ranks the expert counts of `inputs`.
///
/// # Errors
/// [`Error::Infeasible`] when no expert count can be trained and served within the limits;
/// whatever the law or the latency model refuses.
pub fn rank(
    law: &dyn ExpertScaling,
    latency: &dyn LatencyModel,
    inputs: &RankInputs,
    provenance: Provenance,
) -> Result<RankReport> {
    let market = Market::new(law, latency, inputs, CURVE_POINTS)?;
    let output = inputs.lengths.output;
    let lifetime = lifetime(inputs, &market.reference);
    let nominal = cost_table(&market.nominal(inputs), inputs.demand, output);
    let best = best_of_families(&market, &nominal, lifetime);
    let Some(first) = winner(&best) else {
        return Err(infeasible(&market, inputs));
    };

    let worlds: Vec<World> = draws(inputs.draws, inputs.seed, &inputs.ranges, inputs.experts.len())
        .par_iter()
        .map(|draw| market.world(inputs, draw))
        .collect();
    let tables: Vec<CostTable> =
        worlds.par_iter().map(|w| cost_table(w, inputs.demand, output)).collect();
    let shares = win_shares(&market, &tables, lifetime);

    let mut candidates = references(law, latency, inputs, &market)?;
    let offset = candidates.len();
    for (index, entry) in market.entries.iter().enumerate() {
        let mut candidate = candidate(law, inputs, entry.family, &entry.point, &entry.priced);
        candidate.best_of_experts = best[entry.family].is_some_and(|(i, _)| i == index);
        fill_costs(&mut candidate, &nominal, &tables, index, lifetime);
        candidate.over_training =
            over_training::against_cheapest_training(&market, &nominal, index);
        if candidate.best_of_experts {
            candidate.p_best = Some(shares[entry.family]);
        }
        candidates.push(candidate);
    }
    let frontier = pareto(&nominal).into_iter().map(|i| i + offset).collect();

    let (winning_entry, _) = best[first].ok_or_else(|| infeasible(&market, inputs))?;
    let winning = &candidates[offset + winning_entry];
    let rate = rate(inputs, winning);
    let tpot = inputs.level.tpot.or(winning.tpot_ms.map(Seconds::from_ms));
    let map_worlds = &worlds[..worlds.len().min(MAP_DRAWS)];
    let decision_map = DecisionMaps {
        traffic: decision_map::traffic(&market, map_worlds, inputs, (rate, lifetime)),
        budget: decision_map::budget(
            law,
            latency,
            inputs,
            &market.reference,
            tpot.unwrap_or(Seconds(0.1)),
        )?,
    };
    let span = 10f64.powi(LIFETIME_DECADES);
    let mut report = RankReport {
        schema: SCHEMA.into(),
        schema_version: SCHEMA_VERSION.into(),
        program_version: env!("CARGO_PKG_VERSION").into(),
        summary: Vec::new(),
        frontier,
        crossovers: crossovers(&market, &nominal, &tables, (lifetime / span, lifetime * span)),
        total_cost: total_cost(&market, &nominal, lifetime),
        over_training: Some(over_training::report(
            &Pricing::of(&market, law, latency, inputs),
            &market,
            lifetime,
        )?),
        decision_map,
        sensitivity: sensitivity::sensitivities(law, latency, inputs, first)?,
        layer_latency: latency_curve::curves(latency, &market, &best, inputs),
        profile: provenance.profile,
        law: LawUsed {
            id: provenance.law_id,
            source: provenance.law_source,
            uncertainty: provenance.law_uncertainty,
            target_loss_nats: market.reference.loss.0,
            target_from_experts: inputs.target.reference_experts(),
        },
        assumptions: provenance.assumptions,
        warnings: provenance.warnings,
        candidates,
    };
    report.warnings.extend(summary::warnings(&report));
    report.summary = summary::sentences(&report, lifetime);
    Ok(report)
}

/// The loss-optimal model of each expert count at the reference budget, priced at the same traffic.
fn references(
    law: &dyn ExpertScaling,
    latency: &dyn LatencyModel,
    inputs: &RankInputs,
    market: &Market,
) -> Result<Vec<Candidate>> {
    market
        .families
        .par_iter()
        .enumerate()
        .map(|(index, family)| {
            let geometry = geometry(law, family.experts, family.reference.n_active, inputs)?;
            let priced = Priced::new(geometry, &market.routings[index], latency, inputs)?;
            Ok(candidate(law, inputs, index, &family.reference, &priced))
        })
        .collect()
}

/// One candidate with its nominal costs; intervals and probabilities are filled in later.
fn candidate(
    law: &dyn ExpertScaling,
    inputs: &RankInputs,
    family: usize,
    point: &Point,
    priced: &Priced,
) -> Candidate {
    let experts = inputs.experts[family];
    let served = serve(priced, inputs);
    let (served, infeasible) = match served {
        Ok(served) => (Some(served), None),
        Err(reason) => (None, Some(reason.to_string())),
    };
    let of = |f: fn(&Served) -> f64| served.as_ref().map(f);
    // Step Law counts parameters without the vocabulary.
    let body = point.n_active - 2.0 * priced.geometry.vocab_params();
    let advice = step_law::advice(body, point.tokens);
    Candidate {
        experts,
        top_k: priced.geometry.top_k,
        kind: point.kind,
        best_of_experts: false,
        n_active: point.n_active,
        n_total: priced.geometry.total_params(),
        hidden_size: whole(priced.geometry.hidden),
        num_layers: whole(priced.geometry.layers),
        tokens: point.tokens,
        tokens_per_param: point.tokens_per_param(),
        loss_nats: law_loss(law, experts, point),
        extrapolation: law.extrapolation(experts, point.n_active, point.tokens).worst(),
        train_flops: training_flops(point.n_active, point.tokens).0,
        learning_rate: advice.as_ref().ok().map(|(step, _)| step.learning_rate),
        batch_tokens: advice.as_ref().ok().map(|(step, _)| step.batch_tokens),
        hyperparameter_extrapolation: advice.as_ref().ok().map(|(_, factor)| *factor),
        hyperparameters_missing: advice.err(),
        train_usd: inputs.training.cost(point.train_flops()).0,
        train_usd_interval: None,
        serve_usd_per_million_output_tokens: of(|s| s.quote.cost.0),
        serve_usd_interval: None,
        output_tokens_per_s_per_gpu: of(|s| s.operation.output_rate.0 / s.quote.devices as f64),
        gpus: of(|s| s.quote.gpus()).map(whole),
        gpus_per_replica: served.as_ref().map(|s| s.quote.devices),
        batch: of(|s| s.operation.batch),
        utilisation: of(|s| s.quote.utilisation),
        tpot_ms: of(|s| s.operation.tpot.as_ms()),
        ttft_ms: of(|s| s.operation.ttft.as_ms()),
        weights_bytes: priced.geometry.weights_bytes().0,
        total_usd: None,
        total_usd_interval: None,
        p_best: None,
        over_training: None,
        binding: served.as_ref().map(|s| s.binding),
        latency_source: served.as_ref().map(|s| s.source),
        infeasible,
    }
}

fn law_loss(law: &dyn ExpertScaling, experts: usize, point: &Point) -> f64 {
    law.slice(experts).map_or(f64::NAN, |s| s.loss(point.n_active, point.tokens).0)
}

/// Total cost and 95 % intervals of one equal-loss candidate over the draws.
fn fill_costs(
    candidate: &mut Candidate,
    nominal: &CostTable,
    tables: &[CostTable],
    entry: usize,
    lifetime: f64,
) {
    let over_draws = |f: &dyn Fn((f64, f64)) -> f64| -> Option<Interval> {
        interval(tables.iter().map(|t| f(t[entry])).collect())
    };
    candidate.train_usd_interval = over_draws(&|(train, _)| train);
    candidate.serve_usd_interval = over_draws(&|(_, serve)| serve * 1e6);
    let total = |(train, serve): (f64, f64)| train + lifetime * serve;
    candidate.total_usd = Some(total(nominal[entry])).filter(|t| t.is_finite());
    candidate.total_usd_interval = over_draws(&total);
}

/// Requests per second that the answer is for.
fn rate(inputs: &RankInputs, winning: &Candidate) -> f64 {
    match inputs.demand {
        Demand::Rate(rate) => rate,
        Demand::Utilisation(_) => {
            let per_gpu = winning.output_tokens_per_s_per_gpu.unwrap_or(1.0);
            per_gpu * winning.gpus.unwrap_or(1) as f64 / inputs.lengths.output
        }
    }
}

fn crossovers(
    market: &Market,
    nominal: &CostTable,
    tables: &[CostTable],
    span: (f64, f64),
) -> Vec<Crossover> {
    let tables = &tables[..tables.len().min(CROSSOVER_DRAWS)];
    changes(market, nominal, span.0, span.1)
        .into_iter()
        .map(|change| {
            let crossings = tables
                .par_iter()
                .filter_map(|t| pair_crossing(market, t, (change.from, change.to), span))
                .collect();
            Crossover {
                from_experts: market.families[change.from].experts,
                to_experts: market.families[change.to].experts,
                lifetime_tokens: change.lifetime,
                interval: interval(crossings),
            }
        })
        .collect()
}

fn total_cost(market: &Market, nominal: &CostTable, lifetime: f64) -> Vec<TotalCostCurve> {
    let half = LIFETIME_DECADES * LIFETIME_POINTS;
    let lifetimes: Vec<f64> = (-half..=half)
        .map(|i| lifetime * 10f64.powf(f64::from(i) / f64::from(LIFETIME_POINTS)))
        .collect();
    let best: Vec<_> = lifetimes.iter().map(|&t| best_of_families(market, nominal, t)).collect();
    market
        .families
        .iter()
        .enumerate()
        .map(|(index, family)| TotalCostCurve {
            experts: family.experts,
            points: lifetimes
                .iter()
                .zip(&best)
                .filter_map(|(&lifetime_tokens, best)| {
                    let (_, total_usd) = best[index]?;
                    Some(TotalCostPoint { lifetime_tokens, total_usd })
                })
                .collect(),
        })
        .filter(|curve| !curve.points.is_empty())
        .collect()
}

/// Why nothing can be served, from the candidate that comes nearest.
fn infeasible(market: &Market, inputs: &RankInputs) -> Error {
    let quotes = market.entries.iter().filter_map(|e| e.priced.quote(inputs, &StepFactors::ONE));
    let cheapest = quotes.map(|quote| quote.cost).min_by(|a, b| a.0.total_cmp(&b.0));
    if let (Some(bound), Some(cheapest)) = (inputs.max_serve, cheapest) {
        return Error::infeasible(
            format!("no candidate at equal loss serves for ${}/M or less", bound.0),
            format!("nearest feasible --max-serve-cost is {:.4}", cheapest.0),
        );
    }
    let smallest = market.entries.iter().min_by(|a, b| {
        a.priced.geometry.weights_bytes().0.total_cmp(&b.priced.geometry.weights_bytes().0)
    });
    smallest.map_or_else(
        || Error::infeasible("no candidate can be trained", "raise --max-train-factor"),
        |entry| entry.priced.why_not(inputs),
    )
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "counts of devices, layers and widths are positive and small"
)]
fn whole(value: f64) -> usize {
    value.round().max(0.0) as usize
}

impl Candidate {
    /// Whether this candidate belongs to the equal-loss comparison.
    pub fn is_equal_loss(&self) -> bool {
        self.kind != CandidateKind::LossOptimal
    }
}

/// The assumptions that change the winner within their range.
pub fn flips(report: &RankReport) -> impl Iterator<Item = &Sensitivity> {
    report.sensitivity.iter().filter(|s| s.flips)
}
