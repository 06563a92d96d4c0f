//! Models and devices as data: what is counted, from which file or preset it came.

pub mod model;

pub use model::{Attention, DType, MoeModel, RouterConfig, Scoring, SharedExperts, SlidingWindow};
