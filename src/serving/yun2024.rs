//! The serving procedure of Yun et al. 2024 (arXiv 2404.02852, section 4), for their claims; this
//! program's own serving model is the rest of this module.
//!
//! The cache of one request grows from `2 p h l` to `2 (n + p) h l` values, on average `k h l` with
//! `k = 2 p + n`, so that `b = (G M - weights) / (k h l)` requests fit on G devices. Each step
//! finishes b/n requests and takes as many prompts in: it lasts `L_P(b/n) + L_D(b)` and makes b
//! tokens. A token costs `G C0 / T`, least over G. Prompt and output lengths p and n are means; the
//! paper takes them from a set of chats and does not print them.

use crate::units::{Bytes, Seconds, TokensPerSecond, Usd};
use crate::{Error, Result, error};

/// What is served.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Served {
    /// Weights of the whole model.
    pub weights: Bytes,
    /// Width times number of layers.
    pub width_layers: f64,
    /// Bytes of one cached value.
    pub kv_value: Bytes,
    /// Mean tokens of a prompt.
    pub prompt: f64,
    /// Mean tokens of an answer.
    pub output: f64,
}

/// One choice of devices with its cost.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Quoted {
    /// Devices.
    pub devices: usize,
    /// Requests in flight.
    pub batch: f64,
    /// Duration of a step.
    pub step: Seconds,
    /// Output tokens per second.
    pub throughput: TokensPerSecond,
    /// Cost of a token.
    pub per_token: Usd,
}

impl Served {
    /// Mean cache of one request.
    pub fn cache(&self) -> Bytes {
        self.kv_value * ((2.0 * self.prompt + self.output) * self.width_layers)
    }

    /// Requests that fit beside the weights; `None` when the weights do not fit.
    pub fn largest_batch(&self, memory: Bytes) -> Option<f64> {
        let batch = (memory - self.weights) / self.cache();
        (batch > 0.0).then_some(batch)
    }
}

/// The cheapest of the device counts: `prefill` and `decode` give the latency of a batch of prompts
/// and of one step for a batch on so many devices.
///
/// # Errors
/// [`Error::Infeasible`] when the model fits on none; [`Error::Usage`] for a price that is not
/// positive.
pub fn cheapest(
    model: &Served,
    device_memory: Bytes,
    device_counts: &[usize],
    usd_per_device_second: f64,
    prefill: &dyn Fn(f64, usize) -> Seconds,
    decode: &dyn Fn(f64, usize) -> Seconds,
) -> Result<Quoted> {
    let price = error::positive("price", usd_per_device_second)?;
    device_counts
        .iter()
        .filter_map(|&devices| {
            let batch = model.largest_batch(device_memory * devices as f64)?;
            let step = prefill(batch / model.output, devices) + decode(batch, devices);
            let throughput = TokensPerSecond(batch / step.0);
            let per_token = Usd(devices as f64 * price / throughput.0);
            Some(Quoted { devices, batch, step, throughput, per_token })
        })
        .min_by(|a, b| a.per_token.0.total_cmp(&b.per_token.0))
        .ok_or_else(|| {
            Error::infeasible(
                format!("{} of weights fit on none of {device_counts:?} devices", model.weights),
                "use more or larger devices",
            )
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// h 2048, l 24, 8 experts in every second layer, 16 bits.
    fn toy(size: f64) -> Served {
        Served {
            weights: Bytes(2.0 * size),
            width_layers: 2048.0 * 24.0,
            kv_value: Bytes(2.0),
            prompt: 500.0,
            output: 250.0,
        }
    }

    fn quote(size: f64, devices: &[usize]) -> Result<Quoted> {
        let prefill = |prompts: f64, _: usize| Seconds::from_ms(4.0 + 30.0 * prompts);
        let decode = |batch: f64, _: usize| Seconds::from_ms(8.0 + 0.05 * batch);
        cheapest(&toy(size), Bytes(80e9), devices, 0.001, &prefill, &decode)
    }

    #[test]
    fn the_toy_example_agrees_with_the_computed_values() {
        let dense = 12.0 * 2048.0 * 2048.0 * 24.0;
        let total = dense * (1.0 + 7.0 / 3.0);
        let close = |got: f64, expected: f64| {
            assert!((got / expected - 1.0).abs() <= 1e-3, "{got} against {expected}");
        };
        close(dense, 1.20796e9);
        close(total, 4.02653e9);
        let got = quote(total, &[1]).unwrap();
        close(got.batch, 585.5);
        close(got.step.as_ms(), 111.54);
        close(got.throughput.0, 5249.5);
        close(got.per_token.0 * 1e6, 0.1905);
    }

    #[test]
    fn cost_rises_with_size_except_where_the_device_count_changes() {
        let costs: Vec<Quoted> =
            (1..200).map(|i| quote(1e9 * f64::from(i), &[1, 2, 4, 8]).unwrap()).collect();
        for pair in costs.windows(2) {
            let same = pair[0].devices == pair[1].devices;
            assert!(!same || pair[1].per_token.0 > pair[0].per_token.0, "{pair:?}");
        }
        assert!(costs.windows(2).any(|pair| pair[0].devices != pair[1].devices));
    }

    #[test]
    fn a_model_that_fits_nowhere_is_refused() {
        let error = quote(1e12, &[1, 2]).unwrap_err();
        assert_eq!(error.exit_code(), 5);
    }
}
