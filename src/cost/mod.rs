//! From a latency profile to step time, memory, throughput and dollars.

mod geometry;
mod load;
mod memory;
mod money;
mod steady;
mod step;
pub mod yun2024;

pub use geometry::Geometry;
pub use load::LoadModel;
pub use memory::{MemoryBudget, batch_cap};
pub use money::{TrainingPrice, training_flops, usd_per_million_output};
pub use steady::{Operation, ServiceLevel, StepCurve, StepFactors};
pub use step::{Lengths, Link, Replica, StepTime};
