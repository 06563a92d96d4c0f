//! A deployment on a published roofline, for tests.

use crate::config::{DeviceSpec, preset};
use crate::latency::RooflineModel;
use crate::serving::{Deployment, EngineCosts, Layout, LoadModel, MemoryBudget};

/// Runs `check` on a preset model over tensor-parallel devices.
pub(crate) fn on_roofline<T>(
    model: &str,
    device: &str,
    devices: usize,
    check: impl FnOnce(&Deployment) -> T,
) -> T {
    let device = DeviceSpec::load(device).unwrap();
    let latency = RooflineModel::published(&device).unwrap();
    let model = preset::load(model).unwrap().model;
    let costs = EngineCosts::of("vllm");
    let routing = LoadModel::uniform(model.num_experts, model.top_k).unwrap();
    check(&Deployment {
        model: &model,
        layout: Layout::tensor(devices),
        latency: &latency,
        costs: &costs,
        routing: &routing,
        skewed: None,
        memory: MemoryBudget::of(&device),
        domain: device.scale_up_devices,
    })
}
