//! What the collector's synthetic routings load the busiest rank with: tables only name them.

use std::sync::LazyLock;

use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::cache::Cache;
use super::narrow::level;
use super::series::MoeSizes;

/// Workloads that the collector averages a power-law row over.
const SAMPLES: usize = 5;

/// The busiest rank of one MoE layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Load {
    /// Rows (token-expert pairs).
    pub(super) rows: f64,
    /// Experts with at least one row.
    pub(super) active: f64,
    /// Rows of the busiest expert.
    pub(super) max_rows: f64,
}

impl Load {
    /// Rows of the busiest expert over the mean of the active ones.
    pub(super) fn imbalance(&self) -> f64 {
        (self.max_rows * self.active / self.rows).max(1.0)
    }
}

/// The deterministic even spread: one row goes to each expert before any gets a second one.
pub(super) fn balanced(sizes: &MoeSizes, tokens: f64) -> Load {
    let rows = (tokens * f64::from(sizes.top_k) / f64::from(sizes.expert_parallel)).max(1.0);
    let active = rows.ceil().min(sizes.local_experts());
    Load { rows, active, max_rows: (rows / active).ceil() }
}

/// The power law of the collector (exponent `skew` / 1000): a weight for each expert by inverse
/// transform of x^-a on [1, 0.8 m], or on [0.01, 2] while there are fewer pairs than experts; scaled
/// to m k pairs, rounded, at most m an expert, the difference made up one by one; the busiest rank is
/// timed. Mean over the collector's number of workloads, from a fixed seed.
pub(super) fn power_law(sizes: &MoeSizes, tokens: u32) -> Load {
    /// Loads do not depend on widths, TP sizes or devices: each is simulated once.
    static KNOWN: LazyLock<Cache<5, Load>> = LazyLock::new(|| Cache::new(13));
    let key = [sizes.experts, sizes.top_k, sizes.expert_parallel, sizes.skew, tokens];
    KNOWN.with(key, || simulated(sizes, tokens), |load| *load)
}

fn simulated(sizes: &MoeSizes, tokens: u32) -> Load {
    let mut random = ChaCha8Rng::seed_from_u64(u64::from(tokens));
    let mut sum = Load { rows: 0.0, active: 0.0, max_rows: 0.0 };
    for _ in 0..SAMPLES {
        let counts = power_law_counts(sizes, tokens, &mut random);
        let local = (sizes.experts / sizes.expert_parallel).max(1) as usize;
        let ranks = counts.chunks(local);
        let busiest = ranks.max_by_key(|rank| rank.iter().sum::<i64>()).unwrap_or_default();
        sum.rows += busiest.iter().sum::<i64>() as f64;
        sum.active += busiest.iter().filter(|c| **c > 0).count() as f64;
        sum.max_rows += busiest.iter().copied().max().unwrap_or(0) as f64;
    }
    let mean = |total: f64| (total / SAMPLES as f64).max(1.0);
    Load { rows: mean(sum.rows), active: mean(sum.active), max_rows: mean(sum.max_rows) }
}

fn power_law_counts(sizes: &MoeSizes, tokens: u32, random: &mut ChaCha8Rng) -> Vec<i64> {
    let (experts, pairs) = (sizes.experts as usize, i64::from(tokens) * i64::from(sizes.top_k));
    let few = pairs <= i64::from(sizes.experts);
    let (low, high) = if few { (0.01, 2.0) } else { (1.0, (0.8 * f64::from(tokens)).max(1.001)) };
    let power = 1.0 - f64::from(sizes.skew) / 1e3;
    let (from, to): (f64, f64) = (f64::powf(low, power), f64::powf(high, power));
    let weights: Vec<f64> = (0..experts)
        .map(|_| (from + (to - from) * random.random::<f64>()).powf(1.0 / power))
        .collect();
    let scale = pairs as f64 / weights.iter().sum::<f64>();
    let cap = i64::from(tokens);
    let mut counts: Vec<i64> = weights.iter().map(|w| level(w * scale).min(cap)).collect();
    let mut order: Vec<usize> = (0..experts).collect();
    order.shuffle(random);
    order.sort_by_key(|e| counts[*e]);
    make_up(&mut counts, pairs, cap, &order);
    counts
}

/// Adds missing pairs to the emptiest experts, or takes superfluous ones from the fullest.
fn make_up(counts: &mut [i64], pairs: i64, cap: i64, order: &[usize]) {
    let mut missing = pairs - counts.iter().sum::<i64>();
    while missing != 0 {
        let before = missing;
        for place in 0..order.len() {
            let expert = if missing > 0 { order[place] } else { order[order.len() - 1 - place] };
            let step = missing.signum();
            if (step > 0 && counts[expert] < cap) || (step < 0 && counts[expert] > 0) {
                counts[expert] += step;
                missing -= step;
            }
            if missing == 0 {
                return;
            }
        }
        if missing == before {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sizes(experts: u32, top_k: u32, expert_parallel: u32, skew: u32) -> MoeSizes {
        MoeSizes {
            hidden: 1024,
            inter: 1024,
            experts,
            top_k,
            tensor_parallel: 1,
            expert_parallel,
            skew,
            gated: true,
        }
    }

    #[test]
    fn an_even_spread_hits_as_many_experts_as_there_are_pairs() {
        let layer = sizes(8, 2, 1, 0);
        let hit = |m: f64| balanced(&layer, m).active;
        let hits = [hit(1.0), hit(2.0), hit(4.0), hit(64.0)].map(f64::to_bits);
        assert_eq!(hits, [2.0, 4.0, 8.0, 8.0].map(f64::to_bits));
        let split = balanced(&sizes(256, 8, 32, 0), 1.0);
        assert_eq!((split.rows, split.active), (1.0, 1.0));
    }

    #[test]
    fn power_law_loads_are_near_the_collectors() {
        // Active experts and busiest expert, computed apart from this program (E, k, m, a = 1.2).
        for (experts, top_k, tokens, active, most) in [
            (8, 2, 8, 8.0, 3.7),
            (8, 2, 64, 8.0, 48.0),
            (16, 1, 16, 7.78, 5.2),
            (128, 8, 64, 118.0, 18.0),
        ] {
            let load = power_law(&sizes(experts, top_k, 1, 1200), tokens);
            let pairs = f64::from(tokens * top_k);
            assert!((load.rows - pairs).abs() < 1e-9);
            assert!((load.active / active - 1.0).abs() < 0.35, "{load:?}, not {active}");
            assert!((load.max_rows / most - 1.0).abs() < 0.6, "{load:?}, not {most}");
        }
    }
}
