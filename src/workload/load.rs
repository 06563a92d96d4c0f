//! How evenly tokens spread over experts.

/// Rows of each expert of one layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExpertLoad {
    counts: Vec<u32>,
}

impl ExpertLoad {
    /// Counts the ids of a routing; ids at or above `experts` are not counted.
    pub fn of(ids: &[u32], experts: usize) -> Self {
        let mut counts = vec![0; experts];
        for &id in ids {
            if let Some(count) = counts.get_mut(id as usize) {
                *count += 1;
            }
        }
        Self { counts }
    }

    /// Rows of each expert.
    pub fn counts(&self) -> &[u32] {
        &self.counts
    }

    /// Experts with at least one row: the experts whose weights are read.
    pub fn active(&self) -> usize {
        self.counts.iter().filter(|&&c| c > 0).count()
    }

    /// Rows of the busiest expert.
    pub fn max(&self) -> u32 {
        self.counts.iter().copied().max().unwrap_or(0)
    }

    /// Rows of all experts together.
    pub fn total(&self) -> u64 {
        self.counts.iter().map(|&c| u64::from(c)).sum()
    }

    /// Load imbalance: rows of the busiest expert over the mean of all; 1 is even. `None` without rows.
    pub fn max_over_mean(&self) -> Option<f64> {
        let total = self.total();
        (total > 0).then(|| f64::from(self.max()) * self.counts.len() as f64 / total as f64)
    }

    /// Effective number of experts: the exponential of the entropy of the shares. `None` without rows.
    pub fn entropy_experts(&self) -> Option<f64> {
        let total = self.total();
        (total > 0).then(|| {
            let shares =
                self.counts.iter().filter(|&&c| c > 0).map(|&c| f64::from(c) / total as f64);
            shares.map(|p| -p * p.ln()).sum::<f64>().exp()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_even_load_has_no_imbalance() {
        let load = ExpertLoad::of(&[0, 1, 2, 3, 3, 2, 1, 0], 4);
        assert_eq!((load.active(), load.max(), load.total()), (4, 2, 8));
        assert!((load.max_over_mean().unwrap() - 1.0).abs() < 1e-12);
        assert!((load.entropy_experts().unwrap() - 4.0).abs() < 1e-9);
    }

    #[test]
    fn one_hot_expert_is_seen() {
        let load = ExpertLoad::of(&[2; 6], 3);
        assert_eq!((load.active(), load.max()), (1, 6));
        assert!((load.max_over_mean().unwrap() - 3.0).abs() < 1e-12);
        assert!((load.entropy_experts().unwrap() - 1.0).abs() < 1e-12);
    }

    #[test]
    fn without_rows_there_is_no_imbalance() {
        let load = ExpertLoad::of(&[], 3);
        assert_eq!((load.active(), load.max_over_mean(), load.entropy_experts()), (0, None, None));
    }
}
