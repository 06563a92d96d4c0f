//! The latency profile: the wall between measuring and everything that is computed from it.

pub mod latency;

pub use latency::{Ceilings, Latency, LatencyModel, LayerQuery, Source};
