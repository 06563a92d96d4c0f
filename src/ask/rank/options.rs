//! What a ranking is asked.

use std::path::PathBuf;

use super::mfu::Mfu;
use crate::ask::check;
use crate::ask::sources::{DevicePrice, SourceOptions};
use crate::law::Scaling;
use crate::law::precision::TrainedBits;
use crate::plan::familial::Exits;
use crate::units::{Flops, Nats, Seconds, UsdPerHour, UsdPerMillionTokens};
use crate::workload::RoutingKind;
use crate::{Error, Result};

/// Most random draws of a ranking.
const MOST_DRAWS: usize = 100_000;

/// Options of [`rank`](crate::rank()), as the flags of `moe-frontier rank`; `None` is the default that
/// [`RankReport::assumptions`](crate::plan::outcome::RankReport::assumptions) then states with its reason.
///
/// ```
/// use moe_frontier::RankOptions;
/// use moe_frontier::units::{Flops, Seconds};
///
/// let options = RankOptions {
///     train_flops: Some(Flops(1e22)),
///     tpot: Some(Seconds::from_ms(20.0)),
///     ..RankOptions::on("h100")
/// };
/// assert_eq!(options.law, "all");
/// ```
#[derive(Clone)]
pub struct RankOptions {
    /// Where latencies come from; needs a source at least.
    pub source: SourceOptions,
    /// Device to price (preset or TOML file), if it is not the one of the first source.
    pub device: Option<String>,
    /// Laws, comma-separated: identifiers, files, or `all` for every published law that ranks. The first
    /// lists its candidates. Empty with `own_laws` alone.
    pub law: String,
    /// Laws of your own, before those of `law`.
    pub own_laws: Vec<Scaling>,
    /// Weights of laws in their mixture: `abnar2025:2,zhao2025:0`, or `runs:FILE.csv`.
    pub law_weights: Option<String>,
    /// Expert counts; 1 is the dense model beside them.
    pub experts: Option<Vec<usize>>,
    /// Training budget whose loss is to be reached.
    pub train_flops: Option<Flops>,
    /// Loss to reach instead of a budget; of one law.
    pub target_loss: Option<Nats>,
    /// Expert count whose loss-optimal model at the budget sets the loss.
    pub reference_experts: Option<usize>,
    /// Tokens of the training corpus; beyond them it is repeated.
    pub unique_tokens: Option<f64>,
    /// Maximum training tokens per active parameter.
    pub max_tokens_per_param: Option<f64>,
    /// Maximum training FLOPs, as a multiple of the budget.
    pub max_train_factor: Option<f64>,
    /// Format of the weights, such as `fp8`.
    pub weights: Option<String>,
    /// Average bits of an expert weight where precisions are mixed.
    pub weight_bits: Option<f64>,
    /// Bits that models are trained in; 16 of everything by default.
    pub train_bits: Option<TrainedBits>,
    /// Architecture whose size and expert count vary: a preset, a config.json, a folder or a Hub id.
    pub model: Option<String>,
    /// Routed experts per token, at most the expert count.
    pub top_k: Option<usize>,
    /// Experts into which the width of a feed-forward block is divided.
    pub granularity: Option<f64>,
    /// Shared experts.
    pub shared: Option<usize>,
    /// Query heads per key/value head.
    pub kv_group: Option<f64>,
    /// Hidden size over layers.
    pub aspect: Option<f64>,
    /// Exits of one trunk, each a model to serve, shown beside the recommended model.
    pub exits: Option<Exits>,
    /// Fit of downstream error to loss, which `law fit --form gadre2024` wrote.
    pub downstream: Option<PathBuf>,
    /// Prompt tokens of a request.
    pub isl: Option<f64>,
    /// Output tokens of a request.
    pub osl: Option<f64>,
    /// Requests per second to serve in all, by whole replicas.
    pub rate: Option<f64>,
    /// Maximum share of a replica's capacity that is used.
    pub utilisation: Option<f64>,
    /// Maximum mean TPOT.
    pub tpot: Option<Seconds>,
    /// Maximum mean TTFT, excluding queueing.
    pub ttft: Option<Seconds>,
    /// Maximum serving cost per million output tokens.
    pub max_serve_cost: Option<UsdPerMillionTokens>,
    /// Output tokens served over the model's life.
    pub lifetime_tokens: Option<f64>,
    /// Maximum prompt tokens of one step.
    pub prefill_chunk: Option<f64>,
    /// Price of a serving device.
    pub price: Option<DevicePrice>,
    /// Device that trains.
    pub train_device: Option<String>,
    /// Price of a training device.
    pub train_price: Option<UsdPerHour>,
    /// Share of the training device's peak that training reaches.
    pub mfu: Option<Mfu>,
    /// Devices that one replica may use.
    pub replica_sizes: Option<Vec<usize>>,
    /// Nominal routing of tokens over experts.
    pub routing: RoutingKind,
    /// Routing skew at the far end of its range, as a Zipf exponent; 0 is none.
    pub skew: Option<f64>,
    /// Random draws for the probabilities, from 1.
    pub draws: usize,
    /// Seed of the draws.
    pub seed: u64,
}

impl Default for RankOptions {
    fn default() -> Self {
        Self {
            source: SourceOptions::default(),
            device: None,
            law: super::laws::ALL.into(),
            own_laws: Vec::new(),
            law_weights: None,
            experts: None,
            train_flops: None,
            target_loss: None,
            reference_experts: None,
            unique_tokens: None,
            max_tokens_per_param: None,
            max_train_factor: None,
            weights: None,
            weight_bits: None,
            train_bits: None,
            model: None,
            top_k: None,
            granularity: None,
            shared: None,
            kv_group: None,
            aspect: None,
            exits: None,
            downstream: None,
            isl: None,
            osl: None,
            rate: None,
            utilisation: None,
            tpot: None,
            ttft: None,
            max_serve_cost: None,
            lifetime_tokens: None,
            prefill_chunk: None,
            price: None,
            train_device: None,
            train_price: None,
            mfu: None,
            replica_sizes: None,
            routing: RoutingKind::TYPICAL,
            skew: None,
            draws: 1000,
            seed: 1,
        }
    }
}

impl RankOptions {
    /// The defaults with one source of latencies: a profile, imported tables, a device with shipped
    /// tables, or `roofline:DEVICE`.
    pub fn on(source: &str) -> Self {
        Self { source: SourceOptions::of([source]), ..Self::default() }
    }

    /// Refuses numbers that no flag would take.
    ///
    /// # Errors
    /// [`Error::Usage`] with the name of the flag.
    pub(super) fn check(&self) -> Result<()> {
        check::positive(&[
            ("--train-flops", self.train_flops.map(|v| v.0)),
            ("--target-loss", self.target_loss.map(|v| v.0)),
            ("--unique-tokens", self.unique_tokens),
            ("--max-tokens-per-param", self.max_tokens_per_param),
            ("--max-train-factor", self.max_train_factor),
            ("--weight-bits", self.weight_bits),
            ("--granularity", self.granularity),
            ("--kv-group", self.kv_group),
            ("--aspect", self.aspect),
            ("--isl", self.isl),
            ("--osl", self.osl),
            ("--rate", self.rate),
            ("--utilisation", self.utilisation),
            ("--tpot", self.tpot.map(|v| v.0)),
            ("--ttft", self.ttft.map(|v| v.0)),
            ("--max-serve-cost", self.max_serve_cost.map(|v| v.0)),
            ("--lifetime-tokens", self.lifetime_tokens),
            ("--prefill-chunk", self.prefill_chunk),
            ("--train-price", self.train_price.map(|v| v.0)),
        ])?;
        check::shares(&[("--utilisation", self.utilisation)])?;
        if let Some(DevicePrice::PerHour(price)) = self.price {
            check::positive(&[("--price", Some(price.0))])?;
        }
        if self.skew.is_some_and(|s| !(s.is_finite() && s >= 0.0)) {
            return Err(Error::usage("--skew", "not a finite number of zero or more"));
        }
        for (flag, list) in [("--experts", &self.experts), ("--replica-sizes", &self.replica_sizes)]
        {
            if list.as_ref().is_some_and(|l| l.is_empty() || l.contains(&0)) {
                return Err(Error::usage(flag, "takes one or more numbers above zero"));
            }
        }
        if !(1..=MOST_DRAWS).contains(&self.draws) {
            return Err(Error::usage("--draws", format!("takes 1 to {MOST_DRAWS}")));
        }
        if self.train_flops.is_some() && self.target_loss.is_some() {
            return Err(Error::usage("--target-loss", "excludes --train-flops"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_no_flag_takes_are_refused_by_name() {
        let wrong = |change: &dyn Fn(&mut RankOptions)| {
            let mut options = RankOptions::on("h100");
            change(&mut options);
            let error = options.check().unwrap_err();
            assert_eq!(error.exit_code(), 2);
            error.to_string()
        };
        for value in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert!(wrong(&|o| o.train_flops = Some(Flops(value))).contains("--train-flops"));
            assert!(wrong(&|o| o.isl = Some(value)).contains("--isl"));
            let price = DevicePrice::PerHour(UsdPerHour(value));
            assert!(wrong(&|o| o.price = Some(price.clone())).contains("--price"));
        }
        assert!(wrong(&|o| o.utilisation = Some(1.5)).contains("--utilisation"));
        assert!(wrong(&|o| o.skew = Some(-0.1)).contains("--skew"));
        assert!(wrong(&|o| o.experts = Some(vec![])).contains("--experts"));
        assert!(wrong(&|o| o.replica_sizes = Some(vec![1, 0])).contains("--replica-sizes"));
        assert!(wrong(&|o| o.draws = 0).contains("--draws"));
        let both = wrong(&|o| {
            o.train_flops = Some(Flops(1e21));
            o.target_loss = Some(Nats(2.0));
        });
        assert!(both.contains("--target-loss"), "{both}");
        RankOptions::on("h100").check().unwrap();
    }

    #[test]
    fn a_ranking_needs_a_source() {
        for options in [RankOptions::default(), RankOptions::on("auto")] {
            let error = crate::rank(&options).err().unwrap();
            assert!(error.exit_code() == 2 && error.to_string().contains("--profile"), "{error}");
        }
    }
}
