//! A candidate on every replica size it fits, and the cheapest way to serve given traffic with it.

use crate::latency::latency::LatencyModel;
use crate::plan::inputs::{Demand, RankInputs};
use crate::serving::{
    Geometry, LoadModel, Operation, Replica, StepCurve, StepFactors, batch_cap,
    usd_per_million_output,
};
use crate::units::{TokensPerSecond, UsdPerMillionTokens};
use crate::{Error, Result};

/// One candidate with its step time on each replica size that holds it.
#[derive(Clone, Debug)]
pub struct Priced {
    /// Sizes priced.
    pub geometry: Geometry,
    /// Replica sizes that hold the weights and at least one sequence.
    pub options: Vec<ReplicaOption>,
}

/// A candidate on one replica size.
#[derive(Clone, Debug)]
pub struct ReplicaOption {
    /// Devices of the replica.
    pub devices: usize,
    /// Its step time against batch.
    pub curve: StepCurve,
}

/// A deployment of one candidate at given traffic.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Quote {
    /// Devices of one replica.
    pub devices: usize,
    /// Replicas; 1 when only a utilisation was given.
    pub replicas: f64,
    /// Highest operating point of one replica within the service level.
    pub capacity: Operation,
    /// All serving dollars over output tokens.
    pub cost: UsdPerMillionTokens,
    /// Traffic over capacity.
    pub utilisation: f64,
}

impl Quote {
    /// Devices of all replicas.
    pub fn gpus(&self) -> f64 {
        self.devices as f64 * self.replicas
    }
}

/// The routing expectations of one expert count.
#[derive(Clone, Debug)]
pub struct Routing {
    /// Nominal.
    pub load: LoadModel,
    /// Far end of the range of skew.
    pub skewed: LoadModel,
}

impl Priced {
    /// Prices `geometry` on every replica size of `inputs`.
    ///
    /// # Errors
    /// When the latency model cannot answer for the layer's shape.
    pub fn new(
        geometry: Geometry,
        routing: &Routing,
        latency: &dyn LatencyModel,
        inputs: &RankInputs,
    ) -> Result<Self> {
        let mut options = Vec::new();
        for &devices in &inputs.device.replica_sizes {
            let cap = batch_cap(&geometry, &inputs.device.memory, devices, inputs.lengths.held());
            let replica = Replica {
                geometry,
                devices,
                latency,
                load: &routing.load,
                skewed: &routing.skewed,
                link: inputs.device.link,
            };
            let cap = cap.min(MAX_BATCH);
            if let Some(curve) =
                StepCurve::new(&replica, inputs.lengths, cap, inputs.prefill_chunk)?
            {
                options.push(ReplicaOption { devices, curve });
            }
        }
        Ok(Self { geometry, options })
    }

    /// Requests per second of one replica of each option within the service level; 0 when it cannot.
    pub fn capacities<'a>(
        &'a self,
        inputs: &'a RankInputs,
        factors: &'a StepFactors,
    ) -> impl Iterator<Item = (usize, Option<Operation>)> + 'a {
        self.options.iter().map(move |o| (o.devices, o.curve.capacity(&inputs.level, factors)))
    }

    /// The cheapest deployment for the given traffic; `None` when no replica size keeps the service level.
    pub fn quote(&self, inputs: &RankInputs, factors: &StepFactors) -> Option<Quote> {
        self.capacities(inputs, factors)
            .filter_map(|(devices, capacity)| {
                let capacity = capacity?;
                let (replicas, utilisation) = replicas(inputs.demand, capacity.requests_per_s);
                let output = capacity.output_rate.0 * utilisation * replicas;
                let gpus = devices as f64 * replicas;
                let cost =
                    usd_per_million_output(gpus, inputs.device.price, TokensPerSecond(output));
                Some(Quote { devices, replicas, capacity, cost, utilisation })
            })
            // At the same number of devices the faster one is the better answer.
            .min_by(|a, b| {
                let key = |q: &Quote| (q.gpus() / q.output_rate(), q.capacity.tpot.0);
                key(a).partial_cmp(&key(b)).unwrap_or(std::cmp::Ordering::Equal)
            })
    }

    /// The option on `devices` devices.
    pub fn option(&self, devices: usize) -> Option<&ReplicaOption> {
        self.options.iter().find(|o| o.devices == devices)
    }

    /// Why nothing serves this candidate, as one sentence.
    pub fn why_not(&self, inputs: &RankInputs) -> Error {
        let Some(fastest) = self
            .options
            .iter()
            .map(|o| o.curve.step_time(1.0, &StepFactors::ONE).as_ms())
            .reduce(f64::min)
        else {
            let weights = self.geometry.weights_bytes();
            let most = inputs.device.replica_sizes.iter().max().copied().unwrap_or(1);
            let have = inputs.device.memory.usable() * most as f64;
            return Error::infeasible(
                format!(
                    "weights of {weights} and one sequence need more than {have} on {most} device(s)"
                ),
                "use fewer experts, fewer bits or a larger device",
            );
        };
        Error::infeasible(
            format!("one sequence alone takes {fastest:.1} ms a token, over the service level"),
            format!("nearest feasible --tpot is {fastest:.1}ms"),
        )
    }
}

impl Quote {
    fn output_rate(&self) -> f64 {
        self.capacity.output_rate.0 * self.utilisation * self.replicas
    }
}

/// Most sequences that one replica is ever given; engines cap their batch as well.
const MAX_BATCH: f64 = 4096.0;

/// Replicas for the demand, and the share of their capacity that it uses.
pub fn replicas(demand: Demand, requests_per_s: f64) -> (f64, f64) {
    match demand {
        Demand::Rate(rate) => {
            let replicas = (rate / requests_per_s).ceil().max(1.0);
            (replicas, rate / (requests_per_s * replicas))
        }
        Demand::Utilisation(share) => (1.0, share),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_served_by_whole_replicas() {
        let (count, share) = replicas(Demand::Rate(100.0), 30.0);
        assert!((count - 4.0).abs() < 1e-12 && (share - 100.0 / 120.0).abs() < 1e-12);
        let (count, share) = replicas(Demand::Rate(0.1), 30.0);
        assert!((count - 1.0).abs() < 1e-12 && (share - 0.1 / 30.0).abs() < 1e-12);
    }

    #[test]
    fn a_utilisation_is_one_replica_at_that_share() {
        let (count, share) = replicas(Demand::Utilisation(0.7), 30.0);
        assert!((count - 1.0).abs() < 1e-12 && (share - 0.7).abs() < 1e-12);
    }
}
