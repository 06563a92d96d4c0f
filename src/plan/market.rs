//! All priced candidates together, and what they cost in one draw.

use std::sync::Arc;

use rayon::prelude::*;

use crate::Result;
use crate::law::PowerLawSlice;
use crate::plan::candidates::{Density, Family, Point, Reference, families};
use crate::plan::draws::Draw;
use crate::plan::inputs::{Demand, RankInputs};
use crate::plan::price::{Book, Priced, replicas};
use crate::serving::{StepFactors, TrainingPrice, training_flops, usd_per_million_output};
use crate::units::{Nats, TokensPerSecond};

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
    pub fn new(book: &Book, inputs: &RankInputs, density: Density) -> Result<Self> {
        let (reference, families) = families(book.law(), inputs, density)?;
        let points: Vec<(usize, Point)> = families
            .iter()
            .enumerate()
            .flat_map(|(i, family)| family.curve.iter().map(move |&point| (i, point)))
            .collect();
        let entries = points
            .into_par_iter()
            .map(|(family, point)| {
                let priced = book.get(&point.shape)?;
                let deployed = priced.deploy(inputs, &StepFactors::ONE);
                let experts_log_sigma = deployed.map_or(0.0, |d| {
                    priced.options[d.option].curve.parts(d.capacity.batch).moe.log_sigma
                });
                Ok(Entry { family, point, priced, experts_log_sigma })
            })
            .collect::<Result<Vec<_>>>()?;
        Ok(Self { reference, families, entries })
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
        let training = TrainingPrice { mfu: draw.mfu, ..inputs.training };
        let loss_of_reference = reference_residual(inputs, draw);
        let reference_loss = self.reference_loss(inputs, draw);
        let costs = self
            .entries
            .iter()
            .enumerate()
            .map(|(index, entry)| {
                if !asked(index) {
                    return Costs { train: f64::INFINITY, capacity: Vec::new() };
                }
                let shift = loss_of_reference - draw.loss[entry.family];
                let target = Nats(reference_loss.0 + shift);
                let slice = drawn(&self.families[entry.family], draw);
                let train = slice
                    .tokens_for_loss(entry.point.n_active, target)
                    .map_or(f64::INFINITY, |tokens| {
                        training.cost(training_flops(entry.point.n_active, tokens)).0
                    });
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

    /// Loss that the candidates must reach in a draw: the given one, or what the reference model
    /// has under the draw's coefficients. Errors that all expert counts share cancel this way.
    fn reference_loss(&self, inputs: &RankInputs, draw: &Draw) -> Nats {
        let experts = inputs.target.reference_experts();
        let family = experts.and_then(|e| self.families.iter().find(|f| f.experts == e));
        family.filter(|f| !f.drawn.is_empty()).map_or(self.reference.loss, |family| {
            // The law's own optimum set the loss; its drawn twin moves it.
            let optimum = family.slice.optimum(self.reference.budget);
            drawn(family, draw).loss(optimum.n_active, optimum.tokens)
        })
    }
}

/// The law of one family in a draw: that of the draw's coefficients, if the law has draws.
fn drawn<'a>(family: &'a Family, draw: &Draw) -> &'a PowerLawSlice {
    let slice = draw.coefficients.and_then(|i| family.drawn.get(i % family.drawn.len().max(1)));
    slice.unwrap_or(&family.slice)
}

/// Residual of the expert count that sets the target loss; none when the loss was given outright.
fn reference_residual(inputs: &RankInputs, draw: &Draw) -> f64 {
    let reference = inputs.target.reference_experts();
    let index = reference.and_then(|experts| inputs.experts.iter().position(|&e| e == experts));
    index.map_or(0.0, |i| draw.loss[i])
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
