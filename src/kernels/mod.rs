//! Router, align, grouped GEMM and the whole MoE layer, behind one trait for every device.
//!
//! A backend loads weights once, takes inputs, then runs stages as often as asked without
//! allocating, and hands results back for checking. The plain loops in [`mod@reference`] are the oracle
//! that every backend is compared with.
//!
//! Layouts: `x` and `out` are `[tokens, hidden]`, `logits` `[tokens, experts]`, ids and weights
//! `[tokens, top_k]`, all row-major; pairs of token and slot are numbered `token * top_k + slot`.

#[cfg(feature = "candle")]
pub mod candle;
pub mod cpu;
pub mod exchange;
mod fp8;
pub mod gpu;
mod int8;
pub mod math;
pub mod reference;
mod routing;
pub mod stages;
mod values;
mod weights;

pub use fp8::Fp8Weights;
pub use int8::Int8Weights;
pub use reference::{Activations, Arithmetic};
pub use routing::{Alignment, Routed, RouterSpec};
pub use values::Values;
pub use weights::{LayerWeights, MAX_EXPERTS, MoeShape, WeightData};

use crate::Result;
use crate::config::DType;

/// A part of the layer that can be run and timed on its own. Each needs the results of those before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stage {
    /// Logits to expert ids and weights.
    Router,
    /// Ids to rows grouped by expert.
    Align,
    /// Gathered rows times `w13`, and the activation.
    GateUp,
    /// Times `w2`.
    Down,
    /// Weighted sum of each token's rows.
    Combine,
    /// All of the above, in order.
    Layer,
}

impl Stage {
    /// Every stage, in order.
    pub const ALL: [Self; 6] =
        [Self::Router, Self::Align, Self::GateUp, Self::Down, Self::Combine, Self::Layer];

    /// The name used in profiles and tables.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Router => "router",
            Self::Align => "align",
            Self::GateUp => "gate_up",
            Self::Down => "down",
            Self::Combine => "combine",
            Self::Layer => "moe_layer",
        }
    }
}

/// One launch of a series: with which weights, on which routing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Turn {
    /// Set of weights.
    pub set: usize,
    /// Number of the routing among those put in place.
    pub routing: usize,
}

/// Something that can execute MoE layers: the CPU, or a GPU.
pub trait MoeBackend: Send + Sync {
    /// Short name: `cpu`, `cuda`.
    fn name(&self) -> &'static str;

    /// What runs: instruction set and threads, or device and architecture.
    fn description(&self) -> String;

    /// Name of the kernels that execute a stage.
    fn kernel(&self, stage: Stage) -> &'static str;

    /// Whether layers with weights of a format can be loaded.
    ///
    /// # Errors
    /// [`crate::Error::Usage`] naming the formats that can.
    fn check_weights(&self, weights: DType) -> Result<()> {
        let _ = weights;
        Ok(())
    }

    /// How often weights of a format lie in memory once a layer is loaded: more than once where a backend
    /// keeps a copy of its own beside them.
    fn weight_copies(&self, weights: DType) -> usize {
        let _ = weights;
        1
    }

    /// Where results are rounded with weights of a format, for the bounds that they are held to
    /// ([`reference::layer_in`]).
    fn arithmetic(&self, weights: DType) -> Arithmetic {
        let _ = weights;
        Arithmetic::SINGLE
    }

    /// SHA-256 over the sources and settings that the stages' code is made from.
    fn kernel_sha256(&self) -> String;

    /// Makes layers of equal shape ready to run, with room for `max_tokens` tokens. Several sets of
    /// weights let a caller rotate through more memory than the caches hold.
    ///
    /// # Errors
    /// [`crate::Error::Usage`] when shapes differ or sizes overflow; [`crate::Error::Device`] when
    /// the device has no room.
    fn load<'a>(
        &'a self,
        sets: &'a [LayerWeights],
        router: &RouterSpec,
        max_tokens: usize,
    ) -> Result<Box<dyn LoadedLayer + 'a>>;
}

/// A layer on its device.
pub trait LoadedLayer {
    /// Copies an input in: `x` is `[tokens, hidden]`, `logits` `[tokens, experts]`.
    ///
    /// # Errors
    /// [`crate::Error::Usage`] when lengths do not fit or exceed `max_tokens`.
    fn set_input(&mut self, x: &[f32], logits: &[f32]) -> Result<()>;

    /// Runs one stage with weight set `set` and waits for its end.
    ///
    /// # Errors
    /// [`crate::Error::Usage`] for a NaN logit or an unknown set; [`crate::Error::Device`] when the
    /// device fails.
    fn run(&mut self, stage: Stage, set: usize) -> Result<()>;

    /// Runs one stage once with each weight set of `sets`, back to back, and returns how many
    /// nanoseconds all of them took by the device's own clock. `None`, and nothing is run, where the
    /// device has no clock beside the host's.
    ///
    /// # Errors
    /// As [`LoadedLayer::run`].
    fn time(&mut self, stage: Stage, sets: &[usize]) -> Result<Option<u64>> {
        let _ = (stage, sets);
        Ok(None)
    }

    /// Copies an input in with several routings of it, `[tokens, experts]` each, for
    /// [`LoadedLayer::time_series`]. Stages run by themselves take the first, until another is chosen.
    ///
    /// # Errors
    /// As [`LoadedLayer::set_input`].
    fn set_routings(&mut self, x: &[f32], logits: &[&[f32]]) -> Result<()> {
        self.set_input(x, logits.first().copied().unwrap_or_default())
    }

    /// Puts a routing of [`LoadedLayer::set_routings`] in place for stages that are run or timed by
    /// themselves.
    ///
    /// # Errors
    /// [`crate::Error::Usage`] for one that was not put in place, or where routings are not kept.
    fn choose_routing(&mut self, routing: usize) -> Result<()> {
        Err(crate::Error::usage("routing", format!("{routing}: this layer keeps none")))
    }

    /// Runs one stage once for each turn, as one piece of work, twice in a row, and returns how many
    /// nanoseconds the second took by the device's own clock: its launches find in the caches what
    /// launches like themselves have left there. `None`, and nothing is run, where the device cannot
    /// replay a piece of work.
    ///
    /// # Errors
    /// As [`LoadedLayer::run`]; [`crate::Error::Usage`] for a routing that was not put in place.
    fn time_series(&mut self, stage: Stage, turns: &[Turn]) -> Result<Option<u64>> {
        let _ = (stage, turns);
        Ok(None)
    }

    /// Which kernels were planned for the input in place, with the reason; `None` where there is no
    /// choice.
    fn plan(&self) -> Option<String> {
        None
    }

    /// What the router chose.
    ///
    /// # Errors
    /// [`crate::Error::Device`] when it cannot be read back.
    fn routed(&mut self) -> Result<Routed>;

    /// The layer's output, `[tokens, hidden]`.
    ///
    /// # Errors
    /// [`crate::Error::Device`] when it cannot be read back.
    fn output(&mut self) -> Result<Vec<f32>>;

    /// Fills outputs and workspace with NaN, so that a value that is not written shows.
    ///
    /// # Errors
    /// [`crate::Error::Device`] when the device fails.
    fn poison(&mut self) -> Result<()>;
}
