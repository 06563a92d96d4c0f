//! Candidates, ranking with probabilities, frontier, crossovers.

pub mod outcome;
