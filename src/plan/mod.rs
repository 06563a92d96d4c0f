//! Candidates, ranking with probabilities, frontier, crossovers.

pub mod accuracy;
pub mod budget;
pub mod candidates;
pub mod decide;
pub mod decision_map;
pub mod draws;
pub mod emit;
pub mod familial;
mod format;
pub mod frontier;
pub mod headline;
pub mod inputs;
pub mod latency_curve;
pub mod market;
pub mod mixture;
pub mod operating;
pub mod outcome;
pub mod over_training;
pub mod parallelism;
pub mod points;
pub mod pooled;
pub mod price;
pub mod rank;
mod report_numbers;
pub mod request_trace;
pub mod results;
#[cfg(test)]
pub(crate) mod sample;
pub mod sensitivity;
pub mod size;
pub mod summary;
pub mod train_mfu;
