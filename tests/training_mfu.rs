//! The training-step model against published training runs of MoE models.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "common/serving.rs"]
mod serving;

use moe_frontier::config::{DType, DeviceSpec, preset};
use moe_frontier::serving::training::{PUBLISHED_RUNS, PublishedRun, TrainStep, Training};
use moe_frontier::serving::{EngineCosts, LoadModel, MemoryBudget};
use moe_frontier::units::{BytesPerSecond, FlopsPerSecond};
use moe_frontier::workload::RoutingKind;

/// The step of a published run, with experts loaded evenly, as its benchmark forces them to be.
fn predicted(run: &PublishedRun) -> TrainStep {
    let mut model = preset::load(run.model).unwrap().model;
    model.set_weights(run.format, run.format);
    let device = DeviceSpec::load(run.device).unwrap();
    let latency = serving::shipped(&device, "vllm").unwrap();
    let routing = LoadModel::new(&RoutingKind::Balanced, model.num_experts, model.top_k).unwrap();
    let costs = EngineCosts::of("vllm");
    let training = Training {
        model: &model,
        latency: latency.as_ref(),
        costs: &costs,
        routing: &routing,
        memory: MemoryBudget::of(&device),
        read: BytesPerSecond(device.read_bytes_per_s),
        domain: device.scale_up_devices,
        peak: FlopsPerSecond(device.peak(DType::Bf16).unwrap()),
        n_active: model.params().active(),
        sequence: run.sequence,
        batch: run.sequences * run.sequence,
    };
    training.step(&run.plan()).unwrap()
}

/// In 16 bits the model is too slow by up to a factor of two, and nothing in it was fitted to these runs. In 8
/// bits tables of served kernels say little about training (0.06 to 1.9 times the published speed): those rows
/// are printed, and `--mfu model` takes products in 16 bits.
#[test]
fn published_runs_in_sixteen_bits_are_met_within_a_factor_of_two() {
    let mut ratios = Vec::new();
    for run in PUBLISHED_RUNS {
        let step = predicted(&run);
        let tokens = run.sequences * run.sequence / step.time.0 / run.devices as f64;
        let ratio = tokens / run.tokens_per_device_s;
        println!(
            "{:<18} {:<6} {:>5} devices, {:>6.0} tokens/s a device, predicted {tokens:>6.0} ({ratio:.2}); mfu {:.3}, {:.0} GB held, shares {:.2?}",
            run.model,
            run.device,
            run.devices,
            run.tokens_per_device_s,
            step.mfu,
            step.held.0 / 1e9,
            step.shares
        );
        if run.format == DType::Bf16 {
            assert!((0.5..=1.25).contains(&ratio), "{run:?}: {ratio}");
            ratios.push(ratio.ln());
        }
    }
    let rms = (ratios.iter().map(|r| r * r).sum::<f64>() / ratios.len() as f64).sqrt();
    println!("rms ln ratio {rms:.3}");
    assert!(ratios.len() == 5 && rms < 0.5, "{rms}");
}
