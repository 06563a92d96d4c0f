//! The same ranking under several laws, and under their mixture: losses of two laws are never compared,
//! but who is cheapest under each can be.

use std::collections::BTreeMap;

use rayon::prelude::*;

use crate::law::Scaling;
use crate::law::beyond::ErrorDraw;
use crate::plan::candidates::{Density, Family, Shape};
use crate::plan::decide::{
    CostTable, Shares, best_of_families, cheapest, cost_table, cost_table_of, shares, total,
    win_shares, winner,
};
use crate::plan::decision_map::lifetime;
use crate::plan::draws::{Draw, draws};
use crate::plan::inputs::RankInputs;
use crate::plan::market::Market;
use crate::plan::outcome::{Choice, ChoiceCosts, ExpertShare, FlopsSaved, LawAnswer, Mixture};
use crate::plan::pooled::{LawCosts, pooled};
use crate::plan::price::Book;
use crate::serving::training_flops;
use crate::{Error, Result};

/// A law of a mixture.
#[derive(Clone, Debug)]
pub struct Member {
    /// The law, on the architecture of the inputs.
    pub law: Scaling,
    /// Its share of the mixture; shares are divided by their sum.
    pub weight: f64,
}

/// One law with its candidates.
pub struct Seat<'a> {
    member: &'a Member,
    /// The question about the expert counts that the law says something about.
    pub inputs: RankInputs,
    /// Its candidates; after its own come those of other laws, as guests.
    pub market: Market,
    /// Output tokens served over the model's life.
    pub lifetime: f64,
    /// Its own recommendations: entry and total dollars, by expert count.
    pub best: Vec<Option<(usize, f64)>>,
    /// Costs without a draw, guests included.
    nominal: CostTable,
}

impl Seat<'_> {
    /// The law, on the architecture of the inputs.
    pub const fn law(&self) -> &Scaling {
        &self.member.law
    }
}

/// A recommendation of the mixture for one expert count.
type Pick = (usize, Shape, f64);

/// All laws at one question, with one model for each expert count to be judged under each of them.
pub struct Panel<'a> {
    inputs: &'a RankInputs,
    /// By the order of the laws; a law that refuses has none.
    seats: Vec<Seat<'a>>,
    refusals: Vec<LawAnswer>,
    /// Why the first law refuses, if so.
    first_refusal: Option<Error>,
    picks: Vec<Pick>,
}

/// What happens to the models of a mixture in one draw under one law.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// The expert count whose model is the cheapest.
    pub winner: usize,
    /// Dollars that each expert count's model costs beyond the cheapest.
    pub regrets: Vec<(usize, f64)>,
}

impl<'a> Panel<'a> {
    /// Prices the candidates of every law and chooses the models to be judged.
    ///
    /// # Errors
    /// When no latency model answers; what the first law refuses for when every law refuses.
    pub fn new(book: &Book, members: &'a [Member], inputs: &'a RankInputs) -> Result<Self> {
        let seated = members
            .par_iter()
            .map(|member| seat(book, member, inputs))
            .collect::<Result<Vec<_>>>()?;
        let (mut seats, mut refusals, mut first_refusal) = (Vec::new(), Vec::new(), None);
        for (index, (member, seat)) in members.iter().zip(seated).enumerate() {
            match seat {
                Ok(seat) => seats.push(seat),
                Err(reason) => {
                    refusals.push(refused(member, reason.to_string()));
                    first_refusal = first_refusal.or(Some(reason).filter(|_| index == 0));
                }
            }
        }
        if seats.is_empty() {
            let no_law = || Error::usage("--law", "no law to rank with");
            return Err(first_refusal.unwrap_or_else(no_law));
        }
        invite_all(book, &mut seats)?;
        let picks = inputs.experts.iter().filter_map(|&experts| pick(&seats, experts)).collect();
        Ok(Self { inputs, seats, refusals, first_refusal, picks })
    }

    /// The same, where the first law has candidates.
    ///
    /// # Errors
    /// What the first law refuses for.
    pub fn led_by_first(mut self) -> Result<Self> {
        self.first_refusal.take().map_or(Ok(self), Err)
    }

    /// The first law that answers.
    pub fn first(&self) -> &Seat<'a> {
        &self.seats[0]
    }

    /// What each law answers and what their mixture does.
    pub fn answer(&self) -> Verdict {
        let weights = self.weight();
        let judged: Vec<Judged> =
            self.seats.par_iter().map(|seat| judge(seat, &self.picks)).collect();
        let mut laws: Vec<LawAnswer> = self
            .seats
            .iter()
            .zip(&judged)
            .map(|(seat, judged)| answer(seat, judged, self.inputs, weights))
            .collect();
        let mixture = mix(&self.seats, &judged, &self.picks, weights);
        laws.extend(self.refusals.iter().cloned());
        Verdict { laws, mixture, without_each: self.without_each(&judged) }
    }

    /// Total dollars of each expert count's recommendation under each law, by the law's identifier.
    pub fn by_law(&self) -> Vec<(&str, Vec<(usize, f64)>)> {
        let of = |seat: &Seat| {
            let families = seat.inputs.experts.iter().zip(&seat.best);
            families.filter_map(|(&experts, best)| Some((experts, (*best)?.1))).collect()
        };
        self.seats.iter().map(|seat| (seat.member.law.id(), of(seat))).collect()
    }

    /// P(best) of each expert count's model without one of the laws in turn, by the identifier of the one
    /// left out.
    fn without_each(&self, judged: &[Judged]) -> Vec<(String, Vec<(usize, f64)>)> {
        let of = |left_out: usize| -> Vec<(usize, f64)> {
            let others = || {
                let all = self.seats.iter().zip(judged).enumerate();
                all.filter(move |(i, _)| *i != left_out).map(|(_, other)| other)
            };
            let weights: f64 = others().map(|(seat, _)| seat.member.weight).sum();
            let share = |experts: usize| {
                let wins = others().map(|(seat, judged)| {
                    let family = seat.inputs.experts.iter().position(|&e| e == experts);
                    family.map_or(0.0, |f| seat.member.weight * judged.mixed.wins[f])
                });
                wins.sum::<f64>() / weights
            };
            self.picks.iter().map(|pick| (pick.0, share(pick.0))).collect()
        };
        if self.seats.len() < 2 {
            return Vec::new();
        }
        let ids = self.seats.iter().map(|s| s.member.law.id().to_owned()).enumerate();
        ids.map(|(index, id)| (id, of(index))).collect()
    }

    /// Shares of the laws that answer, by their identifiers.
    pub fn laws(&self) -> Vec<(&str, f64)> {
        let weights = self.weight();
        self.seats.iter().map(|s| (s.member.law.id(), s.member.weight / weights)).collect()
    }

    fn weight(&self) -> f64 {
        self.seats.iter().map(|s| s.member.weight).sum()
    }

    /// What happens if law number `index` of [`Self::laws`] holds with the errors of `draw`, whose own
    /// parts are in the order of the inputs; `None` when none of the models can be had.
    pub fn outcome(&self, index: usize, draw: &Draw) -> Option<Outcome> {
        let seat = &self.seats[index];
        let draw = restricted(draw, &self.inputs.experts, &seat.inputs.experts);
        let recommended = recommended(seat, &self.picks);
        let asked = |entry: usize| recommended.iter().flatten().any(|r| r.0 == entry);
        let world = seat.market.world_of(&seat.inputs, &draw, &asked);
        let costs = cost_table(&world, seat.inputs.demand, seat.inputs.lengths.output);
        let totals = totals(&recommended, &costs, seat.lifetime);
        let (best, regrets) = (cheapest(&totals)?, regrets_in(seat, &totals)?);
        let families = &seat.market.families;
        let picked = |f: &usize| self.picks.iter().any(|p| p.0 == families[*f].experts);
        let regrets = (0..families.len()).filter(picked).map(|f| (families[f].experts, regrets[f]));
        Some(Outcome { winner: families[best].experts, regrets: regrets.collect() })
    }
}

/// What all laws say of one question.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    /// Each law's answer, those that refuse last.
    pub laws: Vec<LawAnswer>,
    /// Their mixture.
    pub mixture: Mixture,
    /// P(best) of the mixture's models without one law in turn, by its identifier; empty with one law.
    pub without_each: Vec<(String, Vec<(usize, f64)>)>,
}

/// The parts of a draw that belong to some of the expert counts.
fn restricted(draw: &Draw, all: &[usize], kept: &[usize]) -> Draw {
    let of = |values: &[f64]| -> Vec<f64> {
        all.iter().zip(values).filter(|(e, _)| kept.contains(e)).map(|(_, &v)| v).collect()
    };
    let law = ErrorDraw { own: of(&draw.law.own), ..draw.law.clone() };
    let own_mfu = of(&draw.own_mfu);
    Draw { step: of(&draw.step), kernel: of(&draw.kernel), law, own_mfu, ..draw.clone() }
}

/// One law's candidates; the inner error says why it has none.
fn seat<'a>(book: &Book, member: &'a Member, inputs: &RankInputs) -> Result<Result<Seat<'a>>> {
    let law = &member.law;
    let inputs = match inputs.admitted_by(law) {
        Ok(inputs) => inputs,
        Err(reason) => return Ok(Err(reason)),
    };
    let market = match Market::new(book, law, &inputs, Density::ALL) {
        Ok(market) => market,
        Err(e @ (Error::Infeasible { .. } | Error::Usage { .. })) => return Ok(Err(e)),
        Err(e) => return Err(e),
    };
    let lifetime = lifetime(&inputs, &market.reference);
    let nominal = cost_table(&market.nominal(&inputs), inputs.demand, inputs.lengths.output);
    let best = best_of_families(&market, &nominal, lifetime);
    if winner(&best).is_none() {
        return Ok(Err(market.why_not(&inputs)));
    }
    Ok(Ok(Seat { member, inputs, market, lifetime, best, nominal }))
}

/// Lets every law price the recommendations of every other.
fn invite_all(book: &Book, seats: &mut [Seat]) -> Result<()> {
    let mut shapes: BTreeMap<Shape, f64> = BTreeMap::new();
    for seat in seats.iter() {
        for entry in &seat.market.entries {
            shapes.insert(entry.point.shape, entry.point.n_active);
        }
    }
    seats.par_iter_mut().try_for_each(|seat| {
        for (&shape, &n_active) in &shapes {
            seat.market.invite((book, &seat.member.law), &seat.inputs, (shape, n_active))?;
        }
        let world = seat.market.nominal(&seat.inputs);
        seat.nominal = cost_table(&world, seat.inputs.demand, seat.inputs.lengths.output);
        Ok(())
    })
}

/// Dollars that the training limit allows.
fn train_limit(seat: &Seat, experts: usize) -> f64 {
    let most = seat.market.reference.budget * seat.inputs.limits.max_train_factor;
    seat.inputs.training_of(experts).cost(most).0
}

/// Total cost of a shape under one law without a draw, infinite outside its limits.
fn total_of(seat: &Seat, shape: &Shape) -> f64 {
    let found = seat.market.entries.iter().position(|e| e.point.shape == *shape);
    let Some(index) = found else { return f64::INFINITY };
    let (point, limits) = (&seat.market.entries[index].point, &seat.inputs.limits);
    let most = seat.market.reference.budget * limits.max_train_factor;
    let allowed = point.tokens_per_param() <= limits.max_tokens_per_param
        && training_flops(point.n_active, point.tokens) <= most;
    if !allowed {
        return f64::INFINITY;
    }
    total(seat.nominal[index], seat.lifetime)
}

/// Total cost of a shape under one law. Where the law says that it misses the loss, or that keeping it costs
/// more than training anew, the training limit has been spent and the law's cheapest model is had.
fn spent(seat: &Seat, shape: &Shape) -> f64 {
    let cheapest = seat.best.iter().flatten().map(|b| b.1).fold(f64::INFINITY, f64::min);
    total_of(seat, shape).min(train_limit(seat, shape.experts) + cheapest)
}

/// The shape of an expert count with the lowest mean cost over the laws.
fn pick(seats: &[Seat], experts: usize) -> Option<Pick> {
    let knows = |s: &&Seat| s.inputs.experts.contains(&experts);
    let shapes: BTreeMap<Shape, f64> = seats
        .iter()
        .flat_map(|s| s.market.entries.iter().filter(|e| !e.is_guest))
        .filter(|e| e.point.shape.experts == experts)
        .map(|e| (e.point.shape, e.point.n_active))
        .collect();
    let cost = |shape: &Shape| {
        seats.iter().filter(knows).map(|s| s.member.weight * spent(s, shape)).sum::<f64>()
    };
    let servable = |shape: &Shape| seats.iter().any(|s| total_of(s, shape).is_finite());
    let candidates = shapes.into_iter().filter(|(shape, _)| servable(shape));
    let costed = candidates.map(|(shape, n)| (cost(&shape), shape, n));
    let best = costed.min_by(|a, b| a.0.total_cmp(&b.0))?;
    Some((experts, best.1, best.2))
}

/// Probabilities and regrets under one law.
struct Judged {
    own: Shares,
    /// Of the mixture's recommendations, by the law's own expert counts.
    mixed: Shares,
    /// By the law's own expert counts; `None` for those without a model.
    regrets: Vec<Option<Regret>>,
    /// Total dollars of the mixture's recommendations in each draw.
    drawn: Vec<Vec<f64>>,
}

/// Mean dollars beyond the cheapest, with the share of the draws that it is the mean of.
#[derive(Clone, Copy)]
struct Regret {
    usd: f64,
    share: f64,
}

/// The mixture's models as entries of one law, by its own expert counts.
fn recommended(seat: &Seat, picks: &[Pick]) -> Vec<Option<(usize, f64)>> {
    let entries = &seat.market.entries;
    let of = |experts: usize| {
        let (_, shape, _) = picks.iter().find(|p| p.0 == experts)?;
        Some((entries.iter().position(|e| e.point.shape == *shape)?, 0.0))
    };
    seat.market.families.iter().map(|family| of(family.experts)).collect()
}

fn judge(seat: &Seat, picks: &[Pick]) -> Judged {
    let (market, inputs) = (&seat.market, &seat.inputs);
    let recommended = recommended(seat, picks);
    let mut asked = vec![false; market.entries.len()];
    for (entry, _) in seat.best.iter().chain(&recommended).flatten() {
        asked[*entry] = true;
    }
    let drawn = draws(inputs.draws, inputs.seed, &inputs.ranges, inputs.experts.len());
    let tables: Vec<CostTable> = drawn
        .par_iter()
        .map(|draw| {
            let world = market.world_of(inputs, draw, &|entry| asked[entry]);
            cost_table_of(&world, inputs.demand, inputs.lengths.output, &asked)
        })
        .collect();
    let drawn: Vec<Vec<f64>> =
        tables.iter().map(|table| totals(&recommended, table, seat.lifetime)).collect();
    let of_family = |family| drawn.iter().map(|totals| totals[family]).collect();
    Judged {
        own: win_shares(market, &seat.best, &tables, seat.lifetime),
        mixed: shares(&drawn, market.families.len()),
        regrets: regrets(seat, picks, &drawn),
        drawn: (0..recommended.len()).map(of_family).collect(),
    }
}

/// Total dollars of each recommendation in one draw, infinite where it cannot be had.
fn totals(recommended: &[Option<(usize, f64)>], table: &CostTable, lifetime: f64) -> Vec<f64> {
    let of = |r: &Option<(usize, f64)>| r.map_or(f64::INFINITY, |(i, _)| total(table[i], lifetime));
    recommended.iter().map(of).collect()
}

/// What a recommendation costs over the laws that know its expert count.
fn costs(seats: &[Seat], judged: &[Judged], shape: &Shape, weights: f64) -> Option<ChoiceCosts> {
    let mut n_total = 0.0;
    let mut laws = Vec::new();
    for (seat, judged) in seats.iter().zip(judged) {
        let family = seat.inputs.experts.iter().position(|&e| e == shape.experts);
        let entry = seat.market.entries.iter().position(|e| e.point.shape == *shape);
        let Some(family) = family else { continue };
        let total_usd = total_of(seat, shape);
        // A law under which it never reaches the loss counts as one where it cannot be had.
        let entry = entry.filter(|_| total_usd.is_finite());
        if let Some(entry) = entry {
            n_total = seat.market.entries[entry].priced.model.params().total();
        }
        laws.push(LawCosts {
            weight: seat.member.weight / weights,
            nominal: entry.map(|entry| seat.nominal[entry]),
            total_usd,
            drawn: judged.drawn[family].clone(),
        });
    }
    pooled(n_total, &laws)
}

/// Mean regret of each expert count's model over the draws in which any can be had; expert counts
/// without a model have none.
fn regrets(seat: &Seat, picks: &[Pick], drawn: &[Vec<f64>]) -> Vec<Option<Regret>> {
    let mut sums = vec![0.0; seat.market.families.len()];
    let mut count = 0.0;
    for regrets in drawn.iter().filter_map(|totals| regrets_in(seat, totals)) {
        count += 1.0;
        sums.iter_mut().zip(regrets).for_each(|(sum, regret)| *sum += regret);
    }
    let share = count / drawn.len().max(1) as f64;
    let of = |(family, sum): (usize, f64)| {
        let is_picked = picks.iter().any(|p| p.0 == seat.market.families[family].experts);
        (is_picked && count > 0.0).then_some(Regret { usd: sum / count, share })
    };
    sums.into_iter().enumerate().map(of).collect()
}

/// Dollars of each family's model beyond the cheapest in one draw of total dollars, at most the training
/// limit; `None` where none can be had. Whoever finds that a model cannot be served, in this draw or under this law at
/// all, or that serving it costs more than training anew, trains the cheapest in its place.
fn regrets_in(seat: &Seat, totals: &[f64]) -> Option<Vec<f64>> {
    let lowest = totals[cheapest(totals)?];
    let of = |(family, total): (usize, &f64)| {
        let anew = train_limit(seat, seat.market.families[family].experts);
        (total - lowest).min(anew)
    };
    Some(totals.iter().enumerate().map(of).collect())
}

fn refused(member: &Member, reason: String) -> LawAnswer {
    LawAnswer {
        law: member.law.id().to_owned(),
        mapping: member.law.mapping().to_owned(),
        weight: 0.0,
        refused: Some(reason),
        silent_on: Vec::new(),
        target_loss_nats: None,
        winner: None,
        total_usd: None,
        tokens_per_param: None,
        extrapolation: None,
        flops_saved: Vec::new(),
        p_best: Vec::new(),
        p_none: 0.0,
    }
}

fn answer(seat: &Seat, judged: &Judged, inputs: &RankInputs, weights: f64) -> LawAnswer {
    let law = &seat.member.law;
    let first = winner(&seat.best);
    let best = first.and_then(|family| seat.best[family]);
    let point = best.map(|(entry, _)| seat.market.entries[entry].point);
    let silent = inputs.experts.iter().copied().filter(|e| !seat.inputs.experts.contains(e));
    LawAnswer {
        law: law.id().to_owned(),
        mapping: law.mapping().to_owned(),
        weight: seat.member.weight / weights,
        refused: None,
        silent_on: silent.collect(),
        target_loss_nats: Some(seat.market.reference.loss.0),
        winner: first.map(|family| seat.market.families[family].experts),
        total_usd: best.map(|(_, total)| total),
        tokens_per_param: point.map(|p| p.tokens_per_param()),
        extrapolation: point
            .map(|p| law.extrapolation(p.shape.experts, p.n_active, p.tokens).worst()),
        flops_saved: flops_saved(&seat.market),
        p_best: seat
            .inputs
            .experts
            .iter()
            .zip(&judged.own.wins)
            .map(|(&experts, &p)| ExpertShare { experts, p })
            .collect(),
        p_none: judged.own.none,
    }
}

/// What more experts save at the target loss, from each expert count to the next.
fn flops_saved(market: &Market) -> Vec<FlopsSaved> {
    let needed = |family: &Family| family.slice.budget_for_loss(market.reference.loss).ok();
    let saved = |pair: &[Family]| {
        let (from, to) = (&pair[0], &pair[1]);
        let factor = needed(from)? / needed(to)?;
        Some(FlopsSaved { from_experts: from.experts, to_experts: to.experts, factor })
    };
    market.families.windows(2).filter_map(saved).collect()
}

/// The laws' shares by their weights.
fn mix(seats: &[Seat], judged: &[Judged], picks: &[Pick], weights: f64) -> Mixture {
    let choices = picks.iter().map(|&(experts, shape, n_active)| {
        let (mut p_best, mut regret, mut known) = (0.0, 0.0, 0.0);
        for (seat, judged) in seats.iter().zip(judged) {
            let Some(family) = seat.inputs.experts.iter().position(|&e| e == experts) else {
                continue;
            };
            let weight = seat.member.weight / weights;
            p_best += weight * judged.mixed.wins[family];
            if let Some(Regret { usd, share }) = judged.regrets[family] {
                regret += weight * share * usd;
                known += weight * share;
            }
        }
        Choice {
            experts,
            n_active,
            hidden_size: shape.hidden,
            num_layers: shape.layers,
            p_best,
            expected_regret_usd: (known > 0.0).then(|| regret / known),
            regret_share: known,
            costs: costs(seats, judged, &shape, weights),
        }
    });
    let choices: Vec<Choice> = choices.collect();
    let none =
        seats.iter().zip(judged).map(|(s, j)| s.member.weight / weights * j.mixed.none).sum();
    let first = choices.iter().max_by(|a, b| a.p_best.total_cmp(&b.p_best));
    Mixture { winner: first.map(|c| c.experts), p_none: none, choices }
}
