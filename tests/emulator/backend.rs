//! Layers as `measure` runs them: loaded by the backend, planned by their tokens, held element by
//! element to the bounds of the arithmetic, the same stage by stage.

use moe_frontier::config::DType;
use moe_frontier::gpu::{Capsule, DeviceFacts};
use moe_frontier::kernels::gpu::{GpuBackend, MoeOptions, PRODUCTS, Product, WeightFormat};
use moe_frontier::kernels::{LayerWeights, LoadedLayer, MoeBackend, MoeShape, RouterSpec, Stage};
use moe_frontier::measure::check;
use moe_frontier::measure::data::{self, Inputs};
use moe_frontier::record::CheckOutcome;

use crate::suite::{DEVICE, Outcome, Run};

/// A cache so small that overwriting it takes no time in the emulator.
const SMALL_CACHE: DeviceFacts = DeviceFacts { l2_bytes: 1 << 16, ..DEVICE };
/// A device whose only tensor-core path is the generic one.
const AMPERE: DeviceFacts =
    DeviceFacts { sm_count: 2, l2_bytes: SMALL_CACHE.l2_bytes, ..DeviceFacts::A100 };
/// Sizes of one layer; more than one block of scales, tails in both sizes.
const SHAPE: MoeShape = MoeShape { experts: 3, top_k: 2, hidden: 144, inter: 208, gated: true };

/// A layer of two sets of weights in a backend.
struct Case<'a> {
    device: DeviceFacts,
    weights: DType,
    options: MoeOptions,
    /// Tokens of each batch in turn, in the same buffers.
    tokens: &'a [usize],
    /// Part of the plan of the first batch.
    planned: &'a str,
}

/// Every path that is planned by tokens, and every kernel of 8-bit weights by name.
pub(crate) fn check(run: &Run) -> Outcome {
    let options = MoeOptions::default();
    let plan = |device, weights, tokens, planned| Case {
        device,
        weights,
        options: options.clone(),
        tokens,
        planned,
    };
    let mut cases = vec![
        plan(SMALL_CACHE, DType::Bf16, &[3, 1], "gemv_bf16_up + gemv_bf16_down"),
        plan(SMALL_CACHE, DType::Fp8, &[3, 1], "gemv_w8_up + gemv_w8_down"),
        plan(SMALL_CACHE, DType::Bf16, &[15, 4], "swap_ab_sm90_bf16_up_n16"),
        plan(SMALL_CACHE, DType::Fp8, &[15, 8], "swap_ab_sm90_e4m3_up_n16"),
        plan(SMALL_CACHE, DType::Fp8, &[120], "grouped_gemm_w8_up_m64"),
        plan(SMALL_CACHE, DType::Bf16, &[90], "grouped_gemm_sm90_bf16_up_m64n256"),
        plan(AMPERE, DType::Bf16, &[15, 2], "grouped_gemm_bf16_up_m16"),
        plan(AMPERE, DType::Fp8, &[15, 40], "grouped_gemm_w8_up_m16"),
    ];
    let narrow = |k: &&moe_frontier::kernels::gpu::ProductKernel| {
        k.weights == WeightFormat::E4m3 && k.product != Product::DownFast
    };
    for kernel in PRODUCTS.iter().filter(narrow) {
        let name = Some(kernel.name.to_owned());
        let (up, down) = if kernel.product == Product::Up { (name, None) } else { (None, name) };
        let options = MoeOptions { up, down, ..MoeOptions::default() };
        let case = plan(SMALL_CACHE, DType::Fp8, &[5], kernel.name);
        cases.push(Case { options, ..case });
    }
    cases.iter().enumerate().try_for_each(|(i, case)| {
        one(case, run, i as u64).map_err(|e| format!("{} [{}]: {e}", case.planned, run.label()))
    })
}

fn one(case: &Case, run: &Run, seed: u64) -> Outcome {
    let told = |e: moe_frontier::Error| e.to_string();
    let capsule: Capsule = run.capsule(case.device).map_err(told)?;
    let backend =
        GpuBackend::new(capsule, "emulator".into(), case.options.clone()).map_err(told)?;
    let set = |seed| data::weights(SHAPE, case.weights, seed);
    let sets = [set(seed).map_err(told)?, set(seed + 50).map_err(told)?];
    let most = *case.tokens.iter().max().unwrap();
    let mut layer = backend.load(&sets, &RouterSpec::softmax(), most).map_err(told)?;
    for (i, &tokens) in case.tokens.iter().enumerate() {
        let routing = "uniform".parse().map_err(told)?;
        let inputs = Inputs::draw(&SHAPE, tokens, &routing, seed).map_err(told)?;
        for (index, set) in sets.iter().enumerate() {
            batch(&backend, layer.as_mut(), (&sets, index), &inputs)
                .map_err(|e| format!("{tokens} tokens, set {index} of {:?}: {e}", set.dtype()))?;
        }
        let planned = layer.plan().unwrap_or_default();
        if i == 0 && !planned.contains(case.planned) {
            return Err(format!("{planned} was planned"));
        }
    }
    Ok(())
}

/// One batch with one set of weights: as a layer, and by stages.
fn batch(
    backend: &GpuBackend<Capsule>,
    layer: &mut dyn LoadedLayer,
    (sets, set): (&[LayerWeights], usize),
    inputs: &Inputs,
) -> Outcome {
    let told = |e: moe_frontier::Error| e.to_string();
    let arithmetic = backend.arithmetic(sets[set].dtype());
    let found = check::run(layer, sets, inputs, (0, set), arithmetic).map_err(told)?;
    if found.output != CheckOutcome::Pass {
        return Err(format!("the output is wrong: {found:?}"));
    }
    let whole = layer.output().map_err(told)?;
    layer.poison().map_err(told)?;
    for stage in [Stage::Router, Stage::Align, Stage::GateUp, Stage::Down, Stage::Combine] {
        layer.run(stage, set).map_err(told)?;
    }
    if layer.output().map_err(told)? == whole {
        Ok(())
    } else {
        Err("stage by stage the output differs".into())
    }
}
