//! The ranking itself: candidates priced, drawn, compared, and put into a
//! [`crate::plan::outcome::RankReport`].
//!
//! Nothing is measured and nothing is printed here: a law, a latency model and resolved inputs go
//! in, a report comes out.

use std::sync::Arc;

use rayon::prelude::*;

use crate::Result;
use crate::config::{Attention, MoeModel};
use crate::latency::{LatencyModel, Operation};
use crate::law::beyond::{REALISED, Standing};
use crate::law::precision::{self, FEWEST_BITS, TrainedBits};
use crate::law::{Scaling, step_law};
use crate::plan::candidates::Point;
use crate::plan::decide::{
    CostTable, best_of_families, changes, cost_table, interval, pair_crossing, win_shares, winner,
};
use crate::plan::decision_map;
use crate::plan::draws::{Draw, draws};
use crate::plan::frontier::pareto;
use crate::plan::inputs::{Demand, RankInputs};
use crate::plan::market::{Market, World};
use crate::plan::mixture::{Member, Panel};
use crate::plan::operating::{Operating, operate};
use crate::plan::outcome::{
    Assumption, Basis, Candidate, CandidateKind, Crossover, DecisionMaps, Interval, LawUsed,
    OperationSource, ProfileUsed, RankReport, SCHEMA, SCHEMA_VERSION, Sensitivity, TotalCostCurve,
    TotalCostPoint,
};
use crate::plan::price::{Book, Priced};
use crate::plan::{familial, latency_curve, over_training, sensitivity, summary};
use crate::serving::training_flops;
use crate::units::{Seconds, nearest_whole};

/// Draws that crossover intervals use.
const CROSSOVER_DRAWS: usize = 250;
/// Points of the total-cost curves per factor of ten in lifetime.
const LIFETIME_POINTS: i32 = 8;
/// Total cost is drawn over this many decades to either side of the given lifetime.
const LIFETIME_DECADES: i32 = 4;

/// What a ranking is told about its own provenance, by whoever resolved the inputs.
#[derive(Clone, Debug)]
pub struct Provenance {
    /// The profile; where each operation came from is filled in here.
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

/// A ranking with the models that it recommends.
pub struct Ranking {
    /// The report.
    pub report: RankReport,
    /// The recommended model of each expert count, by the index of its candidate.
    pub models: Vec<(usize, MoeModel)>,
}

/// Ranks the expert counts of `inputs` under each law and under their mixture; the first law is the one
/// whose candidates are listed. `origin` names who answered an operation.
///
/// # Errors
/// [`crate::Error::Infeasible`] when no expert count can be trained and served within the limits;
/// whatever the law or the latency model refuses.
pub fn rank(
    members: &[Member],
    (latency, origin): (Arc<dyn LatencyModel>, &OriginOf),
    inputs: &RankInputs,
    provenance: Provenance,
) -> Result<Ranking> {
    let members: Vec<Member> =
        members.iter().map(|m| Member { law: inputs.of_law(&m.law), weight: m.weight }).collect();
    let book = Book::new(latency, inputs)?;
    let panel = Panel::new(&book, &members, inputs)?.led_by_first()?;
    let seat = panel.first();
    let (law, inputs, lifetime, best) = (seat.law(), &seat.inputs, seat.lifetime, &seat.best);
    let market = seat.market.own();
    // The recommendations are the law's own entries, which come before all guests.
    let first = winner(best).ok_or_else(|| market.why_not(inputs))?;
    let (winning_entry, _) = best[first].ok_or_else(|| market.why_not(inputs))?;
    let nominal = market.nominal(inputs);
    let drawn = draws(inputs.draws, inputs.seed, &inputs.ranges, inputs.experts.len());
    let question = Question { book: &book, law, market: &market, inputs, lifetime };
    let costs = question.costs(&nominal, &drawn);
    let (candidates, p_none) = question.candidates(&costs, best)?;
    let offset = candidates.len() - market.entries.len();
    let operations = question.operations(winning_entry, origin)?;
    let verdict = panel.answer();
    let moved = sensitivity::sensitivities((&book, law, &market), inputs, first)?;
    let mut sensitivity = sensitivity::over_laws(&panel, &verdict, inputs.experts[first]);
    sensitivity.extend(moved.rows);
    let maps = question.maps(&candidates[offset + winning_entry], &costs, &drawn)?;
    let trunk = (&market, &market.entries[winning_entry]);
    let familial = inputs.exits.map(|exits| familial::report(&book, trunk, inputs, exits));
    let models = best
        .iter()
        .flatten()
        .map(|&(entry, _)| (offset + entry, market.entries[entry].priced.model.clone()))
        .collect();
    let span = 10f64.powi(LIFETIME_DECADES);
    let mut report = RankReport {
        schema: SCHEMA.into(),
        schema_version: SCHEMA_VERSION.into(),
        program_version: env!("CARGO_PKG_VERSION").into(),
        summary: Vec::new(),
        basis: basis(inputs.demand),
        p_none,
        frontier: pareto(&costs.nominal).into_iter().map(|i| i + offset).collect(),
        crossovers: crossovers(
            &market,
            &costs.nominal,
            &costs.tables,
            (lifetime / span, lifetime * span),
        ),
        total_cost: total_cost(&market, &costs.nominal, lifetime),
        familial: familial.transpose()?,
        over_training: over_training::report((&book, law), &market, inputs, lifetime)?,
        decision_map: maps,
        sensitivity,
        layer_latency: latency_curve::curves(&book, &market, best),
        profile: ProfileUsed { operations, ..provenance.profile },
        law: LawUsed {
            id: provenance.law_id,
            source: provenance.law_source,
            uncertainty: provenance.law_uncertainty,
            target_loss_nats: market.reference.loss.0,
            target_from_experts: inputs.target.reference_experts(),
        },
        laws: verdict.laws,
        mixture: Some(verdict.mixture),
        assumptions: provenance.assumptions,
        warnings: provenance.warnings,
        arguments: None,
        candidates,
    };
    report.warnings.extend(moved.refused);
    report.warnings.extend(few_bits(&report, inputs));
    report.warnings.extend(summary::warnings(&report));
    report.summary = summary::sentences(&report, lifetime);
    Ok(Ranking { report, models })
}

/// Names who answered an operation, given the position of the model in its stack.
pub type OriginOf<'a> = dyn Fn(Operation, u8) -> Option<String> + 'a;

/// How far the models lie outside the runs behind the loss of few bits, where it counts.
fn few_bits(report: &RankReport, inputs: &RankInputs) -> Option<String> {
    let counts = inputs.rounded_bits.is_some() || inputs.trained_bits != TrainedBits::FULL;
    let best = report.candidates.iter().filter(|c| c.best_of_experts);
    let worst = best.map(|c| precision::outside(c.n_active, c.tokens)).fold(1.0, f64::max);
    let fewest = inputs.rounded_bits.is_some_and(|bits| bits < FEWEST_BITS);
    let below =
        if fewest { format!(", and below their {FEWEST_BITS} bits") } else { String::new() };
    (counts && (worst > 1.0 || fewest)).then(|| {
        format!(
            "the loss of few bits (arXiv 2411.04330) is fitted to runs of at most 220M parameters and 26B tokens: \
             up to {worst:.0}x outside them{below}"
        )
    })
}

/// What costs and probabilities count.
const fn basis(demand: Demand) -> Basis {
    if demand.rate.is_some() { Basis::WholeReplicas } else { Basis::AtScale }
}

/// Costs of every entry, nominal and in every draw, on the asked basis and at scale.
struct AllCosts {
    worlds: Vec<World>,
    nominal: CostTable,
    tables: Vec<CostTable>,
    nominal_at_scale: CostTable,
    tables_at_scale: Vec<CostTable>,
}

/// A ranking under way.
#[derive(Clone, Copy)]
struct Question<'a> {
    book: &'a Book,
    law: &'a Scaling,
    market: &'a Market,
    inputs: &'a RankInputs,
    lifetime: f64,
}

impl Question<'_> {
    fn costs(&self, nominal: &World, drawn: &[Draw]) -> AllCosts {
        let (market, inputs, output) = (self.market, self.inputs, self.inputs.lengths.output);
        let worlds: Vec<World> = drawn.par_iter().map(|draw| market.world(inputs, draw)).collect();
        let tables = |demand: Demand| -> Vec<CostTable> {
            worlds.par_iter().map(|w| cost_table(w, demand, output)).collect()
        };
        let at_scale = Demand { rate: None, ..inputs.demand };
        AllCosts {
            nominal: cost_table(nominal, inputs.demand, output),
            tables: tables(inputs.demand),
            nominal_at_scale: cost_table(nominal, at_scale, output),
            tables_at_scale: tables(at_scale),
            worlds,
        }
    }

    /// The loss-optimal candidates and then all entries, with their costs and probabilities; and the
    /// share of the draws in which none can be had.
    fn candidates(
        &self,
        costs: &AllCosts,
        best: &[Option<(usize, f64)>],
    ) -> Result<(Vec<Candidate>, f64)> {
        let market = self.market;
        let shares = win_shares(market, best, &costs.tables, self.lifetime);
        let at_scale = best_of_families(market, &costs.nominal_at_scale, self.lifetime);
        let scaled = win_shares(market, &at_scale, &costs.tables_at_scale, self.lifetime);
        let mut candidates = market
            .families
            .par_iter()
            .map(|family| {
                let priced = self.book.get(&family.reference.shape)?;
                Ok(self.candidate(&family.reference, &priced))
            })
            .collect::<Result<Vec<_>>>()?;
        let entries: Vec<Candidate> = market
            .entries
            .par_iter()
            .enumerate()
            .map(|(index, entry)| {
                let mut candidate = self.candidate(&entry.point, &entry.priced);
                candidate.best_of_experts = best[entry.family].is_some_and(|(i, _)| i == index);
                fill_costs(&mut candidate, costs, index, self.lifetime);
                candidate.over_training =
                    over_training::against_cheapest_training(market, &costs.nominal, index);
                if candidate.best_of_experts {
                    candidate.p_best = Some(shares.wins[entry.family]);
                    candidate.p_best_at_scale = Some(scaled.wins[entry.family]);
                }
                candidate
            })
            .collect();
        candidates.extend(entries);
        Ok((candidates, shares.none))
    }

    /// One candidate with its nominal costs; intervals and probabilities are filled in later.
    fn candidate(&self, point: &Point, priced: &Priced) -> Candidate {
        let (law, inputs, experts) = (self.law, self.inputs, point.shape.experts);
        let (operating, infeasible) = match operate(self.book, priced, inputs) {
            Ok(operating) => (Some(operating), None),
            Err(reason) => (None, Some(reason.to_string())),
        };
        let of = |f: fn(&Operating) -> f64| operating.as_ref().map(f);
        let model = &priced.model;
        let params = model.params();
        // Step Law counts parameters without the vocabulary.
        let body = point.n_active - params.embedding - params.head;
        let advice = step_law::advice(body, point.tokens);
        let (num_heads, num_kv_heads) = heads(model);
        let loss = law_loss(law, inputs, point);
        Candidate {
            experts,
            top_k: model.top_k,
            kind: point.kind,
            best_of_experts: false,
            n_active: point.n_active,
            n_total: params.total(),
            hidden_size: model.hidden_size,
            num_layers: model.num_layers,
            num_heads,
            num_kv_heads,
            moe_intermediate_size: model.moe_intermediate_size,
            config: None,
            tokens: point.tokens,
            tokens_per_param: point.tokens_per_param(),
            loss_nats: loss,
            downstream: inputs.downstream.as_ref().map(|fit| fit.at(loss)),
            extrapolation: law.extrapolation(experts, point.n_active, point.tokens).worst(),
            train_flops: training_flops(point.n_active, point.tokens).0,
            learning_rate: advice.as_ref().ok().map(|(step, _)| step.learning_rate),
            batch_tokens: advice.as_ref().ok().map(|(step, _)| step.batch_tokens),
            hyperparameter_extrapolation: advice.as_ref().ok().map(|(_, factor)| *factor),
            hyperparameters_missing: advice.err(),
            train_usd: inputs.training_of(experts).cost(point.train_flops()).0,
            train_usd_interval: None,
            serve_usd_per_million_output_tokens: of(|o| o.deployed.cost.0),
            serve_usd_per_million_output_tokens_at_scale: None,
            serve_usd_interval: None,
            output_tokens_per_s_per_gpu: operating.as_ref().map(|o| {
                o.deployed.requests_per_s() * inputs.lengths.output
                    / o.deployed.layout.devices() as f64
            }),
            gpus: of(|o| o.deployed.gpus()).map(nearest_whole),
            gpus_per_replica: operating.as_ref().map(|o| o.deployed.layout.devices()),
            layout: operating.as_ref().map(|o| o.deployed.layout),
            requests_per_s_per_replica: of(|o| o.deployed.requests_per_s()),
            batch: of(|o| o.served.batch),
            utilisation: of(|o| o.deployed.utilisation),
            tpot_ms: of(|o| o.served.tpot.as_ms()),
            ttft_ms: of(|o| o.served.ttft.as_ms()),
            weights_bytes: model.weight_bytes().0,
            total_usd: None,
            total_usd_interval: None,
            p_best: None,
            p_best_at_scale: None,
            over_training: None,
            binding: operating.as_ref().map(|o| o.binding),
            latency_source: operating.as_ref().map(|o| o.served.step.source()),
            infeasible,
        }
    }

    /// Where the winner's latencies come from.
    fn operations(&self, entry: usize, origin: &OriginOf) -> Result<Vec<OperationSource>> {
        let operating = operate(self.book, &self.market.entries[entry].priced, self.inputs)?;
        let origins = operating.served.step.origins;
        let asked = Operation::ALL.into_iter().zip(origins);
        Ok(asked
            .filter_map(|(operation, answered)| {
                let (source, index) = answered?;
                let from = origin(operation, index).unwrap_or_else(|| "unnamed".into());
                Some(OperationSource { operation: operation.label().into(), source, from })
            })
            .collect())
    }

    fn maps(&self, winning: &Candidate, costs: &AllCosts, drawn: &[Draw]) -> Result<DecisionMaps> {
        let (inputs, worlds) = (self.inputs, &costs.worlds);
        let headline =
            decision_map::cell(self.market, &costs.nominal, &costs.tables, self.lifetime);
        // Without a rate the map is drawn around what one replica carries.
        let one = winning.requests_per_s_per_replica.unwrap_or(1.0);
        let rate = inputs.demand.rate.unwrap_or(one);
        let tpot = inputs.level.tpot.or(winning.tpot_ms.map(Seconds::from_ms));
        let tpot = tpot.unwrap_or(Seconds(0.1));
        Ok(DecisionMaps {
            traffic: decision_map::traffic(self.market, worlds, inputs, (rate, self.lifetime)),
            budget: decision_map::budget(
                (self.book, self.law),
                self.market,
                inputs,
                (tpot, drawn, headline),
            )?,
        })
    }
}

/// Query and key/value heads.
const fn heads(model: &MoeModel) -> (usize, usize) {
    match model.attention {
        Attention::Gqa { heads, kv_heads, .. } => (heads, kv_heads),
        Attention::Mla { heads, .. } => (heads, 1),
    }
}

/// What a model's training comes to: over-training worth its share, repeated data what it is worth.
fn law_loss(law: &Scaling, inputs: &RankInputs, point: &Point) -> f64 {
    let (experts, n_active) = (point.shape.experts, point.n_active);
    let standing = Standing::of(law, experts, n_active, inputs.target.base_experts());
    let data = inputs.data(REALISED.0);
    law.slice(experts).map_or(f64::NAN, |slice| {
        data.loss(&slice.curve(n_active), (n_active, standing.ratio_limit), point.tokens)
    })
}

/// Total cost and 95 % intervals of one equal-loss candidate over the draws.
fn fill_costs(candidate: &mut Candidate, costs: &AllCosts, entry: usize, lifetime: f64) {
    let over_draws = |f: &dyn Fn((f64, f64)) -> f64| -> Option<Interval> {
        interval(costs.tables.iter().map(|t| f(t[entry])).collect())
    };
    candidate.train_usd_interval = over_draws(&|(train, _)| train);
    candidate.serve_usd_interval = over_draws(&|(_, serve)| serve * 1e6);
    let total = |(train, serve): (f64, f64)| train + lifetime * serve;
    let finite = |value: f64| Some(value).filter(|v| v.is_finite());
    candidate.total_usd = finite(total(costs.nominal[entry]));
    candidate.total_usd_interval = over_draws(&total);
    candidate.serve_usd_per_million_output_tokens_at_scale =
        finite(costs.nominal_at_scale[entry].1 * 1e6);
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
