//! What fits: weights, cache, and the largest batch.

use crate::serving::Geometry;
use crate::units::Bytes;

/// Tokens of one cache page; a sequence occupies whole pages.
const PAGE_TOKENS: f64 = 16.0;

/// Memory of one device and how much of it an engine may use.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MemoryBudget {
    /// All memory of one device.
    pub device: Bytes,
    /// Share of it that the engine takes. Engines default to 0.90 of the total.
    pub usable_share: f64,
    /// Activations, graphs, communication buffers and the runtime itself.
    pub reserve: Bytes,
}

impl MemoryBudget {
    /// Bytes for weights and cache on one device.
    pub fn usable(&self) -> Bytes {
        Bytes(self.device.0 * self.usable_share) - self.reserve
    }
}

/// Largest number of sequences of `tokens_held` tokens that a replica of `devices` tensor-parallel
/// devices can hold beside its weights; zero when not even one fits (or the weights do not).
///
/// `tokens_held` is prompt plus output: a size at which no sequence is ever pushed out.
pub fn batch_cap(
    geometry: &Geometry,
    budget: &MemoryBudget,
    devices: usize,
    tokens_held: f64,
) -> f64 {
    let weights = geometry.weights_bytes() / devices as f64;
    let free = budget.usable() - weights;
    let pages = (tokens_held / PAGE_TOKENS).ceil() * PAGE_TOKENS;
    let splits = devices.min(geometry.kv_splits) as f64;
    let per_sequence = geometry.kv_bytes_per_token() * pages / splits;
    (free / per_sequence).floor().max(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serving::geometry::tests::small;

    const BUDGET: MemoryBudget =
        MemoryBudget { device: Bytes(8e9), usable_share: 0.9, reserve: Bytes(1e9) };

    #[test]
    fn the_batch_is_what_fits_beside_the_weights_in_whole_pages() {
        let g = small();
        let free = 6.2e9 - g.weights_bytes().0;
        // 1,000 tokens occupy 63 pages of 16.
        let expected = (free / (g.kv_bytes_per_token().0 * 1008.0)).floor();
        assert!((batch_cap(&g, &BUDGET, 1, 1000.0) - expected).abs() < 1e-9);
    }

    #[test]
    fn weights_that_do_not_fit_leave_no_batch() {
        let large = Geometry { experts: 4096, ..small() };
        assert!(batch_cap(&large, &BUDGET, 1, 1000.0).abs() < 1e-9);
    }

    #[test]
    fn more_devices_hold_more_sequences() {
        let caps: Vec<f64> =
            [1, 2, 4, 8].iter().map(|&n| batch_cap(&small(), &BUDGET, n, 1000.0)).collect();
        assert!(caps.windows(2).all(|w| w[1] > w[0]), "{caps:?}");
    }

    #[test]
    fn a_latent_cache_is_replicated_on_every_rank() {
        let latent = Geometry { kv_splits: 1, ..small() };
        assert!(batch_cap(&latent, &BUDGET, 8, 1000.0) < batch_cap(&small(), &BUDGET, 8, 1000.0));
    }
}
