//! The roofline: no kernel is faster than moving its bytes or doing its arithmetic.
//!
//! Williams, Waterman, Patterson, "Roofline", CACM 52(4), 2009. As a predictor it needs assumed
//! shares of the peaks and a floor per kernel ([`crate::constants::roofline`]): an order of magnitude,
//! labelled [`Source::Roofline`].

use crate::Result;
use crate::config::{DType, DeviceSpec};
use crate::constants::roofline as assumed;
use crate::latency::query::{
    AttentionQuery, CollectiveKind, CollectiveQuery, ExchangeQuery, GemmQuery, MlaPart, MlaQuery,
    MoeQuery, Operation, Phase, Query,
};
use crate::latency::rates::{Arithmetic, Rates};
use crate::latency::{Absent, Answer, Latency, LatencyModel, Source};
use crate::units::Seconds;

/// A device known by its peaks alone, or by its measured ceilings.
#[derive(Clone, Debug, PartialEq)]
pub struct RooflineModel {
    rates: Rates,
    shares: Shares,
    name: String,
}

/// Shares of the rates that kernels reach, and their fixed times.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Shares {
    read: f64,
    arithmetic: f64,
    prefill_attention: f64,
    cache_read: f64,
    moe_floor_s: f64,
    kernel_floor_s: f64,
}

impl RooflineModel {
    /// A device by its published peaks, of which kernels reach the assumed shares.
    ///
    /// # Errors
    /// As [`Rates::of`].
    pub fn published(device: &DeviceSpec) -> Result<Self> {
        let shares = Shares {
            read: assumed::READ,
            arithmetic: assumed::ARITHMETIC,
            prefill_attention: assumed::PREFILL_ATTENTION,
            cache_read: assumed::CACHE_READ,
            moe_floor_s: assumed::MOE_FLOOR_S,
            kernel_floor_s: assumed::KERNEL_FLOOR_S,
        };
        let name = format!("published peaks of {}", device.name);
        Ok(Self { rates: Rates::of(device)?, shares, name })
    }

    /// A device whose rates were measured in the run that `device` describes: kernels reach all of
    /// them, and fixed times are counted per layer by the engine's costs.
    ///
    /// # Errors
    /// As [`Rates::of`].
    pub fn measured_ceilings(device: &DeviceSpec) -> Result<Self> {
        let shares = Shares {
            read: 1.0,
            arithmetic: 1.0,
            prefill_attention: 1.0,
            cache_read: 1.0,
            moe_floor_s: 0.0,
            kernel_floor_s: 0.0,
        };
        let name = format!("measured ceilings of {}", device.name);
        Ok(Self { rates: Rates::of(device)?, shares, name })
    }

    /// A kernel that moves `bytes` and does `flops` at the given peak, at the given shares.
    fn kernel(
        &self,
        bytes: f64,
        (flops, peak): (f64, f64),
        shares: (f64, f64),
        floor: f64,
    ) -> Latency {
        let (read, compute) = (bytes / self.rates.read, flops / peak);
        let seconds = floor + (read / shares.0).max(compute / shares.1);
        Latency {
            value: Seconds(seconds),
            log_sigma: assumed::LOG_SIGMA,
            floor: Seconds(read.max(compute)),
            arithmetic: if compute > 0.0 { compute / (compute + read) } else { 0.0 },
            source: Source::Roofline,
            origin: 0,
        }
    }

    fn moe(&self, q: &MoeQuery) -> Latency {
        let s = &self.shares;
        let work = (q.flops(), self.rates.peak(Arithmetic::of_weights(q.weights)));
        self.kernel(q.bytes(), work, (s.read, s.arithmetic), s.moe_floor_s)
    }

    fn gemm(&self, q: &GemmQuery) -> Latency {
        let s = &self.shares;
        let work = (q.flops(), self.rates.peak(Arithmetic::of_weights(q.weights)));
        self.kernel(q.bytes(), work, (s.read, s.arithmetic), s.kernel_floor_s)
    }

    fn core(&self, phase: Phase, bytes: f64, flops: f64) -> Latency {
        let s = &self.shares;
        let shares = match phase {
            Phase::Decode => (s.cache_read, s.arithmetic),
            Phase::Prefill => (s.read, s.prefill_attention),
        };
        let latency = self.kernel(
            bytes,
            (flops, self.rates.peak(Arithmetic::Bits16)),
            shares,
            s.kernel_floor_s,
        );
        match phase {
            // Decoding is a mix of short kernels: its arithmetic never runs into the power limit.
            Phase::Decode => Latency { arithmetic: 0.0, ..latency },
            Phase::Prefill => latency,
        }
    }

    fn attention(&self, q: &AttentionQuery) -> Latency {
        self.core(q.phase, q.bytes(), q.flops())
    }

    fn mla(&self, part: MlaPart, q: &MlaQuery) -> Answer {
        match part {
            MlaPart::Block => Err(Absent::Operation),
            MlaPart::Core => Ok(self.core(q.phase, q.core_bytes(), q.core_flops())),
            MlaPart::Absorb => {
                // Two batched GEMMs over the local heads, weights in 16 bits.
                let s = &self.shares;
                let work = (q.absorb_flops(), self.rates.peak(Arithmetic::Bits16));
                let bytes = q.absorb_bytes(DType::Bf16.bits());
                Ok(self.kernel(bytes, work, (s.read, s.arithmetic), 2.0 * s.kernel_floor_s))
            }
        }
    }

    fn collective(&self, q: &CollectiveQuery) -> Answer {
        let (rate, start) = self.link(q.nodes)?;
        let factor = match q.kind {
            CollectiveKind::AllReduce => 1.0,
            // Half of an all-reduce each; an all-to-all keeps its own share.
            CollectiveKind::AllGather | CollectiveKind::ReduceScatter => 0.5,
            CollectiveKind::AllToAll => 1.0 - 1.0 / q.devices as f64,
        };
        let seconds = start + factor * q.bytes / (assumed::LINK * rate);
        Ok(Self::wire(seconds, factor * q.bytes / rate))
    }

    fn exchange(&self, q: &ExchangeQuery) -> Answer {
        let (rate, start) = self.link(q.nodes)?;
        // Copies to the own rank do not travel.
        let away = 1.0 - 1.0 / q.ranks as f64;
        let bytes = q.bytes() * away;
        Ok(Self::wire(2.0 * start + bytes / (assumed::LINK * rate), bytes / rate))
    }

    /// Bytes per second and fixed time of a message over `nodes` scale-up domains.
    fn link(&self, nodes: usize) -> std::result::Result<(f64, f64), Absent> {
        if nodes <= 1 {
            return Ok((self.rates.link, assumed::COLLECTIVE_FLOOR_S));
        }
        let reason = "no rate between nodes is stated for this device (`scale_out` in its file)";
        let (rate, latency) = self.rates.scale_out.ok_or_else(|| Absent::Key(reason.into()))?;
        Ok((rate, assumed::COLLECTIVE_FLOOR_S + latency))
    }

    const fn wire(seconds: f64, floor: f64) -> Latency {
        Latency {
            value: Seconds(seconds),
            log_sigma: assumed::LOG_SIGMA,
            floor: Seconds(floor),
            arithmetic: 0.0,
            source: Source::Roofline,
            origin: 0,
        }
    }
}

impl LatencyModel for RooflineModel {
    fn answer(&self, query: &Query) -> Answer {
        match query {
            Query::Moe(q) => Ok(self.moe(q)),
            Query::Gemm(q) => Ok(self.gemm(q)),
            Query::Attention(q) => Ok(self.attention(q)),
            Query::Mla(part, q) => self.mla(*part, q),
            Query::Collective(q) => self.collective(q),
            Query::Exchange(q) => self.exchange(q),
        }
    }

    fn provenance(&self, _operation: Operation) -> Option<String> {
        Some(format!("roofline of the {}", self.name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn h100() -> RooflineModel {
        RooflineModel::published(&DeviceSpec::load("h100").unwrap()).unwrap()
    }

    #[test]
    fn a_value_never_lies_below_its_floor() {
        let gemm = GemmQuery { m: 64.0, n: 4096, k: 4096, weights: DType::Bf16 };
        let answer = h100().answer(&Query::Gemm(gemm)).unwrap();
        assert!(answer.value >= answer.floor && answer.lo() >= answer.floor);
        assert_eq!(answer.source, Source::Roofline);
    }

    #[test]
    fn measured_ceilings_are_reached_in_full() {
        let device = DeviceSpec::load("h100").unwrap();
        let model = RooflineModel::measured_ceilings(&device).unwrap();
        let gemm = GemmQuery { m: 1.0, n: 4096, k: 4096, weights: DType::Bf16 };
        let answer = model.answer(&Query::Gemm(gemm)).unwrap();
        assert!((answer.value.0 / answer.floor.0 - 1.0).abs() < 1e-12);
    }

    #[test]
    fn nodes_without_a_stated_link_are_refused() {
        let mut device = DeviceSpec::load("h100").unwrap();
        device.scale_out = None;
        let model = RooflineModel::published(&device).unwrap();
        let query =
            CollectiveQuery { kind: CollectiveKind::AllReduce, devices: 16, nodes: 2, bytes: 1e6 };
        assert!(matches!(model.answer(&Query::Collective(query)), Err(Absent::Key(_))));
    }
}
