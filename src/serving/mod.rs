//! The serving model: what a deployment does under traffic, and what that costs.
//!
//! A [`Deployment`] is a model, a layout, latencies and an engine's costs. Everything that has a
//! price asks it: `rank`, `size`, `estimate` and the accuracy page. It names no file format.

mod breakdown;
mod curve;
mod deployment;
mod engine_costs;
mod fleet;
mod layers;
mod layout;
mod load;
mod memory;
mod money;
mod pools;
mod prompt_times;
mod queue;
mod simulate;
mod speculation;
mod steady;
#[cfg(test)]
pub(crate) mod testing;
pub mod training;
pub mod yun2024;

pub use breakdown::{Breakdown, Origins, Part};
pub use curve::{Operation, ServiceLevel, StepCurve, StepFactors, batch_grid};
pub use deployment::{Deployment, StepLoad};
pub use engine_costs::{CacheFormat, EngineCosts, Layers};
pub use fleet::{Fleet, FleetRun, Router};
pub use layout::Layout;
pub use load::{LoadModel, RankLoad};
pub use memory::{Lengths, MemoryBudget};
pub use money::{TrainingPrice, training_flops, usd_per_million_output, usd_per_million_split};
pub use pools::{KvLink, Pools};
pub use prompt_times::PromptTimes;
pub use queue::{Equilibrium, Queue};
pub use simulate::{
    Arrivals, Delivery, EngineSpeed, Estimate, Percentiles, Simulated, Spread, simulate,
};
pub use speculation::{Published, Speculation, published};
pub use steady::{Prefill, Served, Steps, Traffic};
