//! The roofline: no kernel is faster than moving its bytes or doing its arithmetic.
//!
//! Williams, Waterman, Patterson, "Roofline", CACM 52(4), 2009. As a predictor it needs assumed
//! efficiencies, so its values are an order of magnitude and labelled so; they never pass as measured.

use super::latency::{Ceilings, Latency, LatencyModel, LayerQuery, Source};
use crate::Result;
use crate::error::{in_range, positive};
use crate::units::Seconds;

/// Shares of peak bandwidth that serving kernels were seen to reach: lowest and highest.
pub const ETA_RANGE: (f64, f64) = (0.45, 0.9);

/// Shares of peak arithmetic that serving kernels were seen to reach: lowest and highest.
pub const MU_RANGE: (f64, f64) = (0.3, 0.8);

/// A device known by its peaks alone.
///
/// ```
/// use moe_frontier::latency::{LatencyModel, RooflineModel};
/// let h100 = RooflineModel::new(3.35e12, 989e12, 0.8, 0.5, 60e-6)?;
/// assert_eq!(h100.ceilings().read_bytes_per_s, 0.8 * 3.35e12);
/// # Ok::<(), moe_frontier::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RooflineModel {
    peak_bytes_per_s: f64,
    peak_flops_per_s: f64,
    ceilings: Ceilings,
}

impl RooflineModel {
    /// A device with the given peaks, of which kernels reach the shares `eta` (bandwidth) and `mu`
    /// (arithmetic), and a fixed cost of `layer_overhead_s` seconds a layer.
    ///
    /// # Errors
    /// [`crate::Error::Usage`] for a peak that is not positive or a share outside (0, 1].
    pub fn new(
        peak_bytes_per_s: f64,
        peak_flops_per_s: f64,
        eta: f64,
        mu: f64,
        layer_overhead_s: f64,
    ) -> Result<Self> {
        positive("peak bandwidth", peak_bytes_per_s)?;
        positive("peak arithmetic rate", peak_flops_per_s)?;
        in_range("bandwidth efficiency", eta, 1e-3, 1.0)?;
        in_range("arithmetic efficiency", mu, 1e-3, 1.0)?;
        in_range("layer overhead", layer_overhead_s, 0.0, 1.0)?;
        let ceilings = Ceilings {
            read_bytes_per_s: eta * peak_bytes_per_s,
            gemm_flops_per_s: mu * peak_flops_per_s,
            layer_overhead_s,
            source: Source::Roofline,
        };
        Ok(Self { peak_bytes_per_s, peak_flops_per_s, ceilings })
    }
}

impl LatencyModel for RooflineModel {
    fn moe_layer(&self, query: &LayerQuery) -> Result<Latency> {
        check_query(query)?;
        let value = query.roofline(&self.ceilings);
        let peaks = Ceilings {
            read_bytes_per_s: self.peak_bytes_per_s,
            gemm_flops_per_s: self.peak_flops_per_s,
            ..self.ceilings
        };
        let range = assumed(query, &peaks);
        Ok(Latency { value, lo: range.lo.min(value), hi: range.hi.max(value), ..range })
    }

    fn ceilings(&self) -> Ceilings {
        self.ceilings
    }
}

/// The roofline of a query under the whole range of efficiencies, its value at their geometric means.
pub(super) fn assumed(query: &LayerQuery, peaks: &Ceilings) -> Latency {
    let with = |eta: f64, mu: f64| {
        query.roofline(&Ceilings {
            read_bytes_per_s: eta * peaks.read_bytes_per_s,
            gemm_flops_per_s: mu * peaks.gemm_flops_per_s,
            ..*peaks
        })
    };
    let middle = |(low, high): (f64, f64)| (low * high).sqrt();
    Latency {
        value: with(middle(ETA_RANGE), middle(MU_RANGE)),
        lo: with(ETA_RANGE.1, MU_RANGE.1),
        hi: with(ETA_RANGE.0, MU_RANGE.0),
        source: Source::Roofline,
    }
}

/// Refuses a question that no layer can pose.
///
/// # Errors
/// [`crate::Error::Usage`] that names the field.
pub(super) fn check_query(query: &LayerQuery) -> Result<()> {
    let sizes = [
        ("hidden", query.hidden),
        ("inter", query.inter),
        ("experts", query.experts),
        ("top_k", query.top_k),
    ];
    for (name, size) in sizes {
        positive(name, size as f64)?;
    }
    positive("weight_bits", query.weight_bits)?;
    positive("tokens", query.tokens)?;
    positive("active_experts", query.active_experts)?;
    positive("max_rows", query.max_rows)?;
    Seconds(query.bytes() + query.flops()).is_finite().then_some(()).ok_or_else(|| {
        crate::Error::usage("layer", "its bytes and FLOPs exceed the range of numbers")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode() -> LayerQuery {
        LayerQuery {
            hidden: 4096,
            inter: 14336,
            experts: 8,
            top_k: 2,
            gated: true,
            weight_bits: 16.0,
            tokens: 1.0,
            active_experts: 2.0,
            max_rows: 1.0,
        }
    }

    #[test]
    fn one_token_is_bound_by_the_bytes_of_its_experts() {
        let model = RooflineModel::new(3.35e12, 989e12, 0.8, 0.5, 60e-6).unwrap();
        let latency = model.moe_layer(&decode()).unwrap();
        // 2 experts x 3 x 4096 x 14336 x 2 bytes over 2.68 TB/s.
        assert!((latency.value.as_us() - 262.96).abs() < 0.05, "{}", latency.value.as_us());
        assert!(latency.lo < latency.value && latency.value < latency.hi);
        assert_eq!(latency.source, Source::Roofline);
    }

    #[test]
    fn many_tokens_are_bound_by_arithmetic() {
        let model = RooflineModel::new(3.35e12, 989e12, 0.8, 0.5, 0.0).unwrap();
        let query = LayerQuery { tokens: 1e5, active_experts: 8.0, max_rows: 3e4, ..decode() };
        let expected = query.flops() / (0.5 * 989e12);
        assert!((model.moe_layer(&query).unwrap().value.0 / expected - 1.0).abs() < 1e-12);
    }

    #[test]
    fn impossible_constants_and_questions_are_refused() {
        assert!(RooflineModel::new(0.0, 1e12, 0.8, 0.5, 0.0).is_err());
        assert!(RooflineModel::new(1e12, f64::NAN, 0.8, 0.5, 0.0).is_err());
        assert!(RooflineModel::new(1e12, 1e12, 1.5, 0.5, 0.0).is_err());
        assert!(RooflineModel::new(1e12, 1e12, 0.8, 0.5, -1.0).is_err());
        let model = RooflineModel::new(1e12, 1e12, 0.8, 0.5, 0.0).unwrap();
        for bad in [
            LayerQuery { tokens: 0.0, ..decode() },
            LayerQuery { active_experts: f64::NAN, ..decode() },
            LayerQuery { hidden: 0, ..decode() },
        ] {
            assert_eq!(model.moe_layer(&bad).unwrap_err().exit_code(), 2);
        }
    }
}
