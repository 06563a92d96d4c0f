//! What training MFU each expert count reaches: the training step of its loss-optimal model at the
//! reference budget, from the kernels of the training device.

use crate::config::{DType, DeviceSpec};
use crate::latency::LatencyModel;
use crate::law::Scaling;
use crate::law::step_law::step_law;
use crate::plan::candidates::{model, nearest, reference};
use crate::plan::inputs::RankInputs;
use crate::serving::training::{TrainStep, Training};
use crate::serving::{EngineCosts, LoadModel, MemoryBudget};
use crate::units::{BytesPerSecond, Seconds};
use crate::workload::RoutingKind;
use crate::{Error, Result};

/// Tokens of a training sequence: what most models are pretrained on.
pub const SEQUENCE: f64 = 4096.0;
/// The longest that a run may take: as many devices are used as that needs.
pub const LONGEST_DAYS: f64 = 60.0;

/// The training of one expert count.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ModelledRun {
    /// Experts per layer.
    pub experts: usize,
    /// Its best plan.
    pub step: TrainStep,
    /// The fewest devices that hold it with its optimiser state.
    pub fewest_devices: usize,
}

/// The training of every expert count that the law has a model of, on a device with latencies of it.
/// Routing is uniform, as the balancing of training aims at, and products are in 16 bits.
///
/// # Errors
/// [`Error::Infeasible`] when a model cannot be trained on the device; [`Error::Unfit`] when no latency
/// model answers; whatever the law refuses.
pub fn modelled(
    law: &Scaling,
    inputs: &RankInputs,
    latency: &dyn LatencyModel,
    device: &DeviceSpec,
) -> Result<Vec<ModelledRun>> {
    let law = &inputs.of_law(law);
    let budget = reference(law, &inputs.target)?.budget;
    let costs = EngineCosts::of("vllm");
    let mut runs = Vec::new();
    for &experts in inputs.experts.iter().filter(|e| law.admits(**e).is_ok()) {
        let optimum = law.slice(experts)?.optimum(budget);
        let (shape, n_active) = nearest(&inputs.template, experts, optimum.n_active)?;
        let mut model = model(&shape, inputs)?;
        // Tables of served kernels in 8 bits are far off published trainings in 8 bits.
        model.set_weights(DType::Bf16, DType::Bf16);
        let routing = LoadModel::new(&RoutingKind::Uniform, experts, model.top_k)?;
        let batch = step_law(n_active, optimum.tokens).batch_tokens.max(SEQUENCE);
        let training = Training {
            model: &model,
            latency,
            costs: &costs,
            routing: &routing,
            memory: MemoryBudget::of(device),
            read: BytesPerSecond(device.read_bytes_per_s),
            domain: device.scale_up_devices,
            peak: inputs.training.peak,
            n_active,
            sequence: SEQUENCE,
            batch,
        };
        let step = training.best(budget, Seconds(LONGEST_DAYS * 86_400.0))?;
        let fewest_devices = training.fewest_devices().unwrap_or(step.plan.devices);
        runs.push(ModelledRun { experts, step, fewest_devices });
    }
    if runs.is_empty() {
        return Err(Error::unfit(law.id(), "has no model of these expert counts to train"));
    }
    Ok(runs)
}
