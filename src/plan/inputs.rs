//! Everything that a ranking depends on, resolved: no defaults are filled in after this point.

use std::sync::Arc;

use crate::Result;
use crate::config::{DType, DeviceSpec};
use crate::law::beyond::Data;
use crate::law::downstream::Downstream;
use crate::law::precision::TrainedBits;
use crate::law::{Scaling, Template};
use crate::plan::familial::Exits;
use crate::serving::{EngineCosts, Lengths, MemoryBudget, ServiceLevel, TrainingPrice};
use crate::units::{Flops, Nats, UsdPerHour, UsdPerMillionTokens};
use crate::workload::RoutingKind;

/// What all candidates must be equal in.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Target {
    /// The loss that the loss-optimal model with `experts` experts reaches at `budget`.
    Budget {
        /// Reference training budget.
        budget: Flops,
        /// Expert count that sets the loss.
        experts: usize,
    },
    /// A loss given outright; the budget is what `experts` experts need to reach it.
    Loss {
        /// The loss to reach.
        loss: Nats,
        /// Expert count whose budget the over-training limit refers to.
        experts: usize,
    },
}

impl Target {
    /// The expert count that sets the loss, when the loss was not given outright.
    pub const fn reference_experts(&self) -> Option<usize> {
        match *self {
            Self::Budget { experts, .. } => Some(experts),
            Self::Loss { .. } => None,
        }
    }

    /// The expert count whose budget the comparison refers to.
    pub const fn base_experts(&self) -> usize {
        match *self {
            Self::Budget { experts, .. } | Self::Loss { experts, .. } => experts,
        }
    }
}

/// Limits on over-training, without which a law lets a tiny model on endless tokens win everything.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// Most training tokens per active parameter.
    pub max_tokens_per_param: f64,
    /// Most training FLOPs, as a multiple of the reference budget.
    pub max_train_factor: f64,
    /// Tokens of the training corpus that are not repeated; `None` is endless data.
    pub unique_tokens: Option<f64>,
}

/// How much traffic there is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Demand {
    /// Requests per second to serve in all; without it replicas are counted in fractions, as a large
    /// fleet has them.
    pub rate: Option<f64>,
    /// Share of a replica's capacity that is used at most.
    pub utilisation: f64,
}

/// Output tokens served over the model's life.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Lifetime {
    /// A number of tokens.
    Tokens(f64),
    /// A multiple of the reference model's training tokens.
    PerTrainingToken(f64),
}

/// The devices that serve.
#[derive(Clone, Debug, PartialEq)]
pub struct ServingDevice {
    /// The device.
    pub spec: DeviceSpec,
    /// Memory of one device.
    pub memory: MemoryBudget,
    /// Price of one device; zero only when the user allowed it.
    pub price: UsdPerHour,
    /// Devices that one replica may use.
    pub replica_sizes: Vec<usize>,
    /// Further sizes, tried only where none of those holds the weights and keeps the service level.
    pub wide_sizes: Vec<usize>,
    /// What the engine adds to its kernels.
    pub costs: EngineCosts,
}

/// Half-widths and ranges that the random draws use.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ranges {
    /// Lowest and highest training MFU.
    pub mfu: (f64, f64),
    /// Standard deviation of ln(training MFU) of each expert count by itself.
    pub mfu_log_sigma: f64,
    /// Serving price relative to the given one, lowest and highest.
    pub price: (f64, f64),
    /// Routing skew at the far end of its range, as the exponent of a Zipf law; 0 is no range.
    pub zipf: f64,
    /// Error of the serving model against servers: standard deviation of ln(step time) that all
    /// candidates of a device and an engine share.
    pub shared_log_sigma: f64,
    /// The same of each expert count by itself.
    pub own_log_sigma: f64,
}

/// All inputs of a ranking.
#[derive(Clone, Debug, PartialEq)]
pub struct RankInputs {
    /// Expert counts to compare, ascending; 1 is dense.
    pub experts: Vec<usize>,
    /// What the candidates are equal in.
    pub target: Target,
    /// Over-training limits.
    pub limits: Limits,
    /// Prompt and output lengths.
    pub lengths: Lengths,
    /// Traffic.
    pub demand: Demand,
    /// Promised times.
    pub level: ServiceLevel,
    /// Most serving dollars per million output tokens, if there is such a bound.
    pub max_serve: Option<UsdPerMillionTokens>,
    /// Served tokens over the model's life.
    pub lifetime: Lifetime,
    /// The serving device.
    pub device: ServingDevice,
    /// Bits that models are trained in.
    pub trained_bits: TrainedBits,
    /// Bits that expert weights are rounded to after training; `None` serves them as they were trained.
    pub rounded_bits: Option<f64>,
    /// The training device.
    pub training: TrainingPrice,
    /// Training MFU by expert count, ascending; between them linear in ln(experts). Empty where the one
    /// of `training` holds for all.
    pub mfu_by_experts: Vec<(usize, f64)>,
    /// Storage of the experts' weights.
    pub expert_dtype: DType,
    /// Their bits on average where precisions are mixed.
    pub expert_bits: Option<f64>,
    /// Storage of all other weights.
    pub dense_dtype: DType,
    /// Nominal routing.
    pub routing: RoutingKind,
    /// The architecture whose expert count and size vary.
    pub template: Arc<Template>,
    /// What is drawn.
    pub ranges: Ranges,
    /// What loss means for tasks, if a fit of it was given.
    pub downstream: Option<Arc<Downstream>>,
    /// Exits of one trunk to be compared with one model, if asked about.
    pub exits: Option<Exits>,
    /// Random draws for the probabilities.
    pub draws: usize,
    /// Seed of the draws.
    pub seed: u64,
}

/// Bits that weights in a format, or of `mixed` bits on average, are rounded to after a training in
/// `trained` bits, scales left out; `None` where these are no fewer.
pub fn rounded_bits(format: DType, mixed: Option<f64>, trained: &TrainedBits) -> Option<f64> {
    let bits = mixed.unwrap_or_else(|| format.bits().floor());
    (bits < trained.weights).then_some(bits)
}

impl RankInputs {
    /// How training data and rounding turn into loss, with a share of over-training that pays.
    pub const fn data(&self, realised: f64) -> Data {
        Data { realised, unique_tokens: self.limits.unique_tokens, rounded_bits: self.rounded_bits }
    }

    /// A law on the architecture asked about, whose models are trained in the bits asked about.
    pub fn of_law(&self, law: &Scaling) -> Scaling {
        law.on(&self.template).worth(self.trained_bits.effective())
    }

    /// The same question about the expert counts that a law says something about.
    ///
    /// # Errors
    /// As [`Scaling::admits`] of the expert count that the comparison refers to.
    pub fn admitted_by(&self, law: &Scaling) -> Result<Self> {
        law.admits(self.target.base_experts())?;
        let admitted = self.experts.iter().copied().filter(|&e| law.admits(e).is_ok());
        Ok(Self { experts: admitted.collect(), ..self.clone() })
    }

    /// The training device with the MFU that an expert count reaches.
    pub fn training_of(&self, experts: usize) -> TrainingPrice {
        let known = &self.mfu_by_experts;
        let (Some(first), Some(last)) = (known.first(), known.last()) else {
            return self.training;
        };
        let after = known.partition_point(|(e, _)| *e < experts);
        let mfu = match (after.checked_sub(1).and_then(|i| known.get(i)), known.get(after)) {
            (Some(low), Some(high)) => {
                let ln = |e: usize| (e as f64).ln();
                let share = (ln(experts) - ln(low.0)) / (ln(high.0) - ln(low.0));
                low.1 + share * (high.1 - low.1)
            }
            (None, _) => first.1,
            (_, None) => last.1,
        };
        TrainingPrice { mfu, ..self.training }
    }
}
