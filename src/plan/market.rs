//! All priced candidates together, and what they cost in one draw.

use std::sync::Arc;

use rayon::prelude::*;

use crate::law::beyond::{REALISED, Standing};
use crate::law::{Scaling, Slice, TokenCurve};
use crate::plan::candidates::{Density, Family, Point, Reference, Shape, families};
use crate::plan::draws::Draw;
use crate::plan::inputs::{Demand, RankInputs};
use crate::plan::outcome::CandidateKind;
use crate::plan::price::{Book, Priced, replicas};
use crate::serving::{StepFactors, TrainingPrice, training_flops, usd_per_million_output};
use crate::units::TokensPerSecond;
use crate::{Error, Result};

/// A training at its limit is within it.
const ROUNDING: f64 = 1e-9;

/// One candidate of the equal-loss comparison.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Index of its expert count in the inputs.
    pub family: usize,
    /// Shape and tokens.
    pub point: Point,
    /// Its replicas.
    pub priced: Arc<Priced>,
    /// Standard deviation of ln(time of the routed experts) at its operating point.
    pub experts_log_sigma: f64,
    /// The law at its size.
    pub curve: TokenCurve,
    /// How far it lies outside the law's runs.
    pub standing: Standing,
    /// Whether it is priced only to be compared: no recommendation of this market.
    pub is_guest: bool,
}

/// All candidates of a ranking.
#[derive(Clone, Debug)]
pub struct Market {
    /// What the candidates are equal in.
    pub reference: Reference,
    /// Expert counts with their curves.
    pub families: Vec<Family>,
    /// Equal-loss candidates, grouped by expert count in the order of `families`.
    pub entries: Vec<Entry>,
    /// Standard deviation of the law's residual within its runs, in nats.
    residual_nats: f64,
    /// The model that sets the loss.
    setter: Option<Setter>,
}

/// The model that sets the loss, as large as one in the candidates' bits must be to be worth as much.
#[derive(Clone, Copy, Debug)]
struct Setter {
    family: usize,
    n_active: f64,
    tokens: f64,
    /// How far it lies outside the law's runs.
    standing: Standing,
}

/// What one candidate costs in one draw.
#[derive(Clone, Debug, PartialEq)]
pub struct Costs {
    /// Training in dollars; infinite when the loss is out of reach in this draw.
    pub train: f64,
    /// (devices, requests per second within the service level) of each layout that keeps it.
    pub capacity: Vec<(usize, f64)>,
}

/// Costs of every candidate in one draw, with the draw's serving price.
#[derive(Clone, Debug, PartialEq)]
pub struct World {
    /// Serving price per device and hour in this draw.
    pub price: crate::units::UsdPerHour,
    /// Maximum serving dollars per output token; infinite without a bound.
    pub max_serve: f64,
    /// One per entry.
    pub costs: Vec<Costs>,
}

impl Market {
    /// Builds and prices all candidates.
    ///
    /// # Errors
    /// When the law does not cover an expert count, or no latency model a layer.
    pub fn new(book: &Book, law: &Scaling, inputs: &RankInputs, density: Density) -> Result<Self> {
        let law = &inputs.of_law(law);
        let (reference, families) = families(law, inputs, density)?;
        let points: Vec<(usize, Point)> = families
            .iter()
            .enumerate()
            .flat_map(|(i, family)| family.curve.iter().map(move |&point| (i, point)))
            .collect();
        let entries = points
            .into_par_iter()
            .map(|(family, point)| {
                let slice = families[family].slice.as_ref();
                entry((book, law), (family, point), slice, inputs)
            })
            .collect::<Result<Vec<_>>>()?;
        let setter = inputs.target.reference_experts().and_then(|experts| {
            let family = families.iter().position(|f| f.experts == experts)?;
            let best = law.worth(1.0).slice(experts).ok()?.optimum(reference.budget);
            let standing = Standing::of(law, experts, best.n_active, experts);
            let n_active = best.n_active / law.effective();
            Some(Setter { family, n_active, tokens: best.tokens, standing })
        });
        let residual_nats = law.residual_nats();
        Ok(Self { reference, families, entries, residual_nats, setter })
    }

    /// Prices a shape that this market does not recommend, to compare it; returns its entry, or `None`
    /// when no training of it reaches the loss.
    ///
    /// # Errors
    /// When no latency model answers.
    pub fn invite(
        &mut self,
        (book, law): (&Book, &Scaling),
        inputs: &RankInputs,
        (shape, n_active): (Shape, f64),
    ) -> Result<Option<usize>> {
        let known = |e: &Entry| e.point.shape == shape;
        if let Some(found) = self.entries.iter().position(known) {
            return Ok(Some(found));
        }
        let Some(family) = self.families.iter().position(|f| f.experts == shape.experts) else {
            return Ok(None);
        };
        let law = &inputs.of_law(law);
        let slice = Arc::clone(&self.families[family].slice);
        let standing = Standing::of(law, shape.experts, n_active, inputs.target.base_experts());
        let data = inputs.data(REALISED.0);
        let at = (n_active, standing.ratio_limit);
        let reached = data.tokens_for(&slice.curve(n_active), at, self.reference.loss.0);
        let Some(tokens) = reached else { return Ok(None) };
        let point = Point { shape, n_active, tokens, kind: CandidateKind::OverTrained };
        let guest = entry((book, law), (family, point), slice.as_ref(), inputs)?;
        self.entries.push(Entry { is_guest: true, ..guest });
        Ok(Some(self.entries.len() - 1))
    }

    /// The same without guests.
    pub fn own(&self) -> Self {
        let mut own = self.clone();
        own.entries.retain(|e| !e.is_guest);
        own
    }

    /// Why nothing can be served, from the candidate that comes nearest.
    pub fn why_not(&self, inputs: &RankInputs) -> Error {
        let own = || self.entries.iter().filter(|e| !e.is_guest);
        let deployed = own().filter_map(|e| e.priced.deploy(inputs, &StepFactors::ONE));
        let cheapest = deployed.map(|d| d.cost).min_by(|a, b| a.0.total_cmp(&b.0));
        if let (Some(bound), Some(cheapest)) = (inputs.max_serve, cheapest) {
            return Error::infeasible(
                format!("no candidate at equal loss serves for ${}/M or less", bound.0),
                format!("nearest feasible --max-serve-cost is {:.4}", cheapest.0),
            );
        }
        let weights = |e: &Entry| e.priced.model.weight_bytes().0;
        let smallest = own().min_by(|a, b| weights(a).total_cmp(&weights(b)));
        smallest.map_or_else(
            || Error::infeasible("no candidate can be trained", "raise --max-train-factor"),
            |entry| entry.priced.why_not(inputs),
        )
    }

    /// What every candidate costs with nothing drawn.
    pub fn nominal(&self, inputs: &RankInputs) -> World {
        self.world(inputs, &Draw::nominal(inputs.training.mfu, inputs.experts.len()))
    }

    /// What every candidate costs in one draw.
    pub fn world(&self, inputs: &RankInputs, draw: &Draw) -> World {
        self.world_of(inputs, draw, &|_| true)
    }

    /// The same of the entries that are asked for; others cost more than anything.
    pub fn world_of(
        &self,
        inputs: &RankInputs,
        draw: &Draw,
        asked: &dyn Fn(usize) -> bool,
    ) -> World {
        let target = self.target(draw);
        let most = self.reference.budget * inputs.limits.max_train_factor;
        let data = inputs.data(draw.law.realised_share());
        let costs = self
            .entries
            .iter()
            .enumerate()
            .map(|(index, entry)| {
                if !asked(index) {
                    return Costs { train: f64::INFINITY, capacity: Vec::new() };
                }
                let n_active = entry.point.n_active;
                let usual = inputs.training_of(entry.point.shape.experts);
                let drawn_mfu = draw.own_mfu[entry.family] * draw.mfu / inputs.training.mfu;
                let training = TrainingPrice { mfu: (usual.mfu * drawn_mfu).min(1.0), ..usual };
                let own = draw.law.own[entry.family];
                let error = entry.standing.error(&draw.law, own, self.residual_nats);
                let curve = drawn(&self.families[entry.family], draw)
                    .map_or(entry.curve, |slice| slice.curve(n_active));
                let at = (n_active, entry.standing.ratio_limit);
                // What does not fit the training limit misses the loss in this draw.
                let train = data
                    .tokens_for(&curve, at, target - error)
                    .map(|tokens| training_flops(n_active, tokens))
                    .filter(|work| work.0 <= most.0 * (1.0 + ROUNDING))
                    .map_or(f64::INFINITY, |work| training.cost(work).0);
                let factors = draw.factors(entry.family, entry.experts_log_sigma);
                let capacity = entry
                    .priced
                    .capacities(inputs, &factors)
                    .map(|(_, layout, at)| (layout.devices(), at.requests_per_s))
                    .collect();
                Costs { train, capacity }
            })
            .collect();
        let max_serve = inputs.max_serve.map_or(f64::INFINITY, |bound| bound.0 / 1e6);
        World { price: inputs.device.price * draw.price, max_serve, costs }
    }

    /// Loss that the candidates must reach in a draw: the given one, or what the reference model has
    /// under the draw's coefficients and with its own error. It is another run than any candidate, so
    /// that its residual never cancels.
    fn target(&self, draw: &Draw) -> f64 {
        let Some(Setter { family, n_active, tokens, standing }) = self.setter else {
            return self.reference.loss.0;
        };
        // The law's own optimum set the loss; its drawn twin moves it.
        let loss = drawn(&self.families[family], draw)
            .map_or(self.reference.loss.0, |slice| slice.loss(n_active, tokens).0);
        loss + standing.error(&draw.law, draw.law.reference, self.residual_nats)
    }
}

/// One candidate with its prices and its place against the law's runs.
fn entry(
    (book, law): (&Book, &Scaling),
    (family, point): (usize, Point),
    slice: &dyn Slice,
    inputs: &RankInputs,
) -> Result<Entry> {
    let priced = book.get(&point.shape)?;
    let deployed = priced.deploy(inputs, &StepFactors::ONE);
    let experts_log_sigma = deployed
        .map_or(0.0, |d| priced.options[d.option].curve.parts(d.capacity.batch).moe.log_sigma);
    let experts = point.shape.experts;
    Ok(Entry {
        family,
        point,
        priced,
        experts_log_sigma,
        curve: slice.curve(point.n_active),
        standing: Standing::of(law, experts, point.n_active, inputs.target.base_experts()),
        is_guest: false,
    })
}

/// The law of one family in a draw of its coefficients, if the law has draws.
fn drawn<'a>(family: &'a Family, draw: &Draw) -> Option<&'a dyn Slice> {
    let index = draw.coefficients? % family.drawn.len().max(1);
    family.drawn.get(index).map(AsRef::as_ref)
}

impl World {
    /// Serving dollars per output token of one candidate; infinite when it cannot be served, or not
    /// within the bound.
    pub fn serve_per_token(&self, entry: usize, demand: Demand, output_length: f64) -> f64 {
        let cheapest = self.costs[entry]
            .capacity
            .iter()
            .map(|&(devices, requests_per_s)| {
                let (count, utilisation) = replicas(demand, requests_per_s);
                let rate = TokensPerSecond(requests_per_s * utilisation * count * output_length);
                usd_per_million_output(devices as f64 * count, self.price, rate).0 / 1e6
            })
            .fold(f64::INFINITY, f64::min);
        if cheapest > self.max_serve { f64::INFINITY } else { cheapest }
    }
}
