//! An MoE layer of this library's CPU kernels inside a candle model.
//!
//! `cargo run --example candle_layer`

#![expect(clippy::print_stdout, reason = "an example shows what it computed")]

use std::collections::HashMap;

use candle_core::{DType, Device, Module, Result, Tensor};
use candle_nn::VarBuilder;
use moe_frontier::kernels::candle::{MoeLayer, MoeLayerConfig};
use moe_frontier::kernels::{MoeShape, RouterSpec};

fn main() -> Result<()> {
    let shape = MoeShape { experts: 8, top_k: 2, hidden: 256, inter: 512, gated: true };
    let MoeShape { experts, hidden, inter, .. } = shape;
    let weights = |sizes: &[usize]| Tensor::randn(0.0_f32, 0.05, sizes, &Device::Cpu);
    // The names of Hugging Face checkpoints with fused experts.
    let checkpoint = HashMap::from([
        ("gate.weight".to_owned(), weights(&[experts, hidden])?),
        ("experts.gate_up_proj".to_owned(), weights(&[experts, 2 * inter, hidden])?),
        ("experts.down_proj".to_owned(), weights(&[experts, hidden, inter])?),
    ]);
    let vb = VarBuilder::from_tensors(checkpoint, DType::F32, &Device::Cpu);
    let config = MoeLayerConfig { shape, router: RouterSpec::softmax().config };
    let layer = MoeLayer::new(config, vb)?;

    let x = Tensor::randn(0.0_f32, 1.0, (4, 16, hidden), &Device::Cpu)?;
    let y = layer.forward(&x)?;
    println!(
        "{:?} -> {:?}, mean square {:.2e}",
        x.dims(),
        y.dims(),
        y.sqr()?.mean_all()?.to_scalar::<f32>()?
    );
    Ok(())
}
