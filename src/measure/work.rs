//! What one launch of a layer has to move and to compute, whatever the kernel.

use crate::constants::ACTIVATION_BYTES;
use crate::kernels::MoeShape;
use crate::record::WorkRecord;

/// Bytes of one expert's weights at `weight_bits` bits each.
pub fn expert_bytes(shape: &MoeShape, weight_bits: f64) -> f64 {
    matrices(shape) * shape.hidden as f64 * shape.inter as f64 * weight_bits / 8.0
}

/// The work of one launch: each active expert's weights once, activations in and out once, and the
/// multiply-adds of the grouped products.
pub fn of_launch(shape: &MoeShape, tokens: usize, active: f64, weight_bits: f64) -> WorkRecord {
    let rows = tokens * shape.top_k;
    let products = matrices(shape) * shape.hidden as f64 * shape.inter as f64;
    let activations = 2.0 * tokens as f64 * shape.hidden as f64 * ACTIVATION_BYTES;
    WorkRecord {
        flops: 2.0 * products * rows as f64,
        bytes_min: active * expert_bytes(shape, weight_bits) + activations,
        rows,
    }
}

/// Weight matrices of one expert.
const fn matrices(shape: &MoeShape) -> f64 {
    if shape.gated { 3.0 } else { 2.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mixtral_layer_moves_and_computes_what_is_published() {
        let shape = MoeShape { experts: 8, top_k: 2, hidden: 4096, inter: 14336, gated: true };
        // 352.3 MB for one expert of one layer in 16 bits.
        assert!((expert_bytes(&shape, 16.0) / 352.3e6 - 1.0).abs() < 1e-3);
        let work = of_launch(&shape, 64, 8.0, 16.0);
        assert_eq!(work.rows, 128);
        assert!((work.flops / (2.0 * 3.0 * 4096.0 * 14336.0 * 128.0) - 1.0).abs() < 1e-12);
        let activations = 2.0 * 64.0 * 4096.0 * 2.0;
        assert!((work.bytes_min - 8.0 * expert_bytes(&shape, 16.0) - activations).abs() < 1.0);
        let plain = MoeShape { gated: false, ..shape };
        assert!((expert_bytes(&plain, 16.0) * 1.5 - expert_bytes(&shape, 16.0)).abs() < 1.0);
    }
}
