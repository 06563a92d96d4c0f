//! From a latency profile to step time, memory, throughput and dollars.

mod deployment;
mod engine_costs;
mod geometry;
mod load;
mod memory;
mod money;
mod prompt_times;
mod queue;
mod serving;
mod simulate;
mod steady;
mod step;
pub mod yun2024;

pub use deployment::{Breakdown, Deployment, Layout, StepLoad};
pub use engine_costs::{EngineCosts, Layers};
pub use geometry::Geometry;
pub use load::LoadModel;
pub use memory::{MemoryBudget, batch_cap};
pub use money::{TrainingPrice, training_flops, usd_per_million_output, usd_per_million_split};
pub use prompt_times::PromptTimes;
pub use queue::{Equilibrium, Queue};
pub use serving::{Served, Steps, Traffic};
pub use simulate::{Arrivals, EngineSpeed, Estimate, Percentiles, Simulated, Spread, simulate};
pub use steady::{Operation, ServiceLevel, StepCurve, StepFactors};
pub use step::{Lengths, Link, Replica, StepTime};
