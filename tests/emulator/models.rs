//! Layers of the sizes that people serve, on a GPU: outputs within the bounds of the arithmetic, ten
//! runs and a replayed recording with the same bits.

use moe_frontier::config::DType;
use moe_frontier::gpu::CudaDevice;
use moe_frontier::kernels::gpu::{GpuBackend, MoeOptions};
use moe_frontier::kernels::{MoeBackend, MoeShape, RouterSpec, Stage, Turn};
use moe_frontier::measure::check;
use moe_frontier::measure::data::{self, Inputs};
use moe_frontier::record::CheckOutcome;

use crate::suite::Outcome;

const fn shape(experts: usize, top_k: usize, hidden: usize, inter: usize) -> MoeShape {
    MoeShape { experts, top_k, hidden, inter, gated: true }
}

/// Mixtral 8x7B and 8x22B, Qwen3-30B-A3B, a 64-expert layer, odd sizes, one expert.
const SHAPES: [MoeShape; 7] = [
    shape(8, 2, 4096, 14336),
    shape(8, 2, 6144, 16384),
    shape(128, 8, 2048, 768),
    shape(64, 6, 2048, 1408),
    shape(40, 8, 2880, 704),
    shape(16, 1, 5120, 8192),
    shape(1, 1, 1024, 1032),
];
/// Around the sizes of tiles and of the fused align.
const TOKENS: [usize; 11] = [1, 2, 7, 17, 64, 127, 129, 513, 1024, 2049, 4097];

/// Every shape with every number of tokens, the smallest first: what is there when the time is over says
/// most. What is wrong does not end the rest.
pub(crate) fn check_all() -> Outcome {
    let device = CudaDevice::open(0).map_err(|e| e.to_string())?;
    let name = device.gpu().name.clone();
    let backend =
        GpuBackend::new(device, name, MoeOptions::default()).map_err(|e| e.to_string())?;
    let mut shapes = SHAPES;
    shapes.sort_by_key(|shape| shape.experts * shape.hidden * shape.inter);
    let mut wrong = Vec::new();
    for shape in shapes {
        let sets =
            vec![data::weights(shape, DType::Bf16, 3).map_err(|e| format!("{shape:?}: {e}"))?];
        for tokens in TOKENS {
            eprintln!("{shape:?}, {tokens} tokens");
            if let Err(reason) = one(&backend, &sets, tokens) {
                wrong.push(format!("{shape:?}, {tokens} tokens: {reason}"));
                eprintln!("WRONG: {reason}");
            }
        }
    }
    if wrong.is_empty() { Ok(()) } else { Err(wrong.join("\n")) }
}

fn one(
    backend: &GpuBackend<CudaDevice>,
    sets: &[moe_frontier::kernels::LayerWeights],
    tokens: usize,
) -> Outcome {
    let told = |e: moe_frontier::Error| e.to_string();
    let shape = sets[0].shape;
    let routing = "uniform".parse().map_err(told)?;
    let inputs = Inputs::draw(&shape, tokens, &routing, 7).map_err(told)?;
    let mut layer = backend.load(sets, &RouterSpec::softmax(), tokens).map_err(told)?;
    let arithmetic = backend.arithmetic(DType::Bf16);
    let found = check::run(layer.as_mut(), sets, &inputs, (0, 0), arithmetic).map_err(told)?;
    let plan = layer.plan().unwrap_or_default();
    eprintln!("{shape:?}, {tokens} tokens: {:?} of the bound; {plan}", found.worst_ratio_to_bound);
    if found.output != CheckOutcome::Pass {
        return Err(format!("the output is wrong: {found:?}"));
    }
    let first = layer.output().map_err(told)?;
    for _ in 0..10 {
        layer.run(Stage::Layer, 0).map_err(told)?;
        if layer.output().map_err(told)? != first {
            return Err("two runs differ".into());
        }
    }
    layer.poison().map_err(told)?;
    layer.time(Stage::Layer, &[0]).map_err(told)?.ok_or("no recording was made")?;
    if layer.output().map_err(told)? != first {
        return Err("a replayed recording differs".into());
    }
    let all: Vec<&[f32]> = inputs.draws.iter().map(|draw| &*draw.logits).collect();
    layer.set_routings(&inputs.x, &all).map_err(told)?;
    let turns: Vec<Turn> = (0..all.len()).rev().map(|routing| Turn { set: 0, routing }).collect();
    layer.time_series(Stage::Layer, &turns).map_err(told)?.ok_or("no series was recorded")?;
    if layer.output().map_err(told)? != first {
        return Err("the last launch of a series differs from one alone".into());
    }
    Ok(())
}
