//! Candidates, ranking with probabilities, frontier, crossovers.

pub mod accuracy;
pub mod calibrate;
pub mod candidates;
pub mod decide;
pub mod decision_map;
pub mod draws;
pub mod frontier;
pub mod inputs;
pub mod latency_curve;
pub mod market;
pub mod operating;
pub mod outcome;
pub mod points;
pub mod price;
pub mod rank;
pub mod sensitivity;
pub mod size;
pub mod summary;
