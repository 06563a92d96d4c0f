//! Candidates, ranking with probabilities, frontier, crossovers.
