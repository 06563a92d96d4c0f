//! How many experts a step reads and how many rows the busiest one gets.

/// Expectations over routings of one MoE layer.
#[derive(Clone, Debug, PartialEq)]
pub struct LoadModel {
    experts: f64,
    top_k: f64,
    /// Probability that a token visits each expert; empty for uniform routing, which has a closed form.
    inclusion: Vec<f64>,
}

impl LoadModel {
    /// Independent uniform routing of each token to `top_k` of `experts`.
    pub fn uniform(experts: usize, top_k: usize) -> Self {
        Self { experts: experts as f64, top_k: top_k as f64, inclusion: Vec::new() }
    }

    /// Routing in which a token visits expert `i` with probability `inclusion[i]` (summing to k).
    pub fn skewed(inclusion: Vec<f64>) -> Self {
        let experts = inclusion.len() as f64;
        Self { experts, top_k: inclusion.iter().sum(), inclusion }
    }

    /// Expected experts with at least one of `tokens` tokens: `E (1 - (1 - k/E)^m)` when uniform,
    /// `sum_i (1 - (1 - p_i)^m)` otherwise.
    pub fn active_experts(&self, tokens: f64) -> f64 {
        let hit = |p: f64| 1.0 - (1.0 - p.min(1.0)).powf(tokens);
        if self.inclusion.is_empty() {
            self.experts * hit(self.top_k / self.experts)
        } else {
            self.inclusion.iter().map(|&p| hit(p)).sum()
        }
    }

    /// Expected rows of the busiest expert: its mean and the usual excess of the largest of `E`
    /// counts, `mean + sqrt(2 ln E x variance)`, never more than all tokens.
    pub fn max_rows(&self, tokens: f64) -> f64 {
        let p = if self.inclusion.is_empty() {
            self.top_k / self.experts
        } else {
            self.inclusion.iter().copied().fold(0.0, f64::max)
        };
        let p = p.min(1.0);
        let excess = (2.0 * self.experts.ln() * tokens * p * (1.0 - p)).sqrt();
        (tokens * p + excess).clamp(1.0_f64.min(tokens), tokens)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uniform_routing_hits_the_tabulated_number_of_experts() {
        // E (1 - (1 - k/E)^m) for k = 2.
        let table = [(4, 4.0, 3.75), (8, 8.0, 7.20), (16, 16.0, 14.11), (32, 64.0, 31.49)];
        for (experts, tokens, hit) in table {
            let got = LoadModel::uniform(experts, 2).active_experts(tokens);
            assert!((got - hit).abs() < 0.005, "{experts} experts, {tokens} tokens: {got}");
        }
    }

    #[test]
    fn equal_probabilities_are_uniform_routing() {
        let (closed, summed) = (LoadModel::uniform(8, 2), LoadModel::skewed(vec![0.25; 8]));
        for tokens in [0.0, 1.0, 2.5, 100.0] {
            assert!((closed.active_experts(tokens) - summed.active_experts(tokens)).abs() < 1e-12);
            assert!((closed.max_rows(tokens) - summed.max_rows(tokens)).abs() < 1e-9);
        }
    }

    #[test]
    fn skew_reads_fewer_experts_and_loads_the_busiest_more() {
        let uniform = LoadModel::uniform(4, 1);
        let skewed = LoadModel::skewed(vec![0.7, 0.1, 0.1, 0.1]);
        assert!(skewed.active_experts(4.0) < uniform.active_experts(4.0));
        assert!(skewed.max_rows(64.0) > uniform.max_rows(64.0));
    }

    #[test]
    fn a_dense_layer_has_one_expert_with_all_rows() {
        let dense = LoadModel::uniform(1, 1);
        assert!((dense.active_experts(5.0) - 1.0).abs() < 1e-12);
        assert!((dense.max_rows(5.0) - 5.0).abs() < 1e-12);
        assert!(dense.active_experts(0.0).abs() < 1e-12);
    }
}
