//! What `size --emit` prints is what was priced: the flags, read back, give the same deployment and the
//! same steady state.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;

use moe_frontier::Result;
use moe_frontier::config::{DType, DeviceSpec, MoeModel, preset};
use moe_frontier::latency::{LatencyModel, RooflineModel};
use moe_frontier::plan::emit::{Command, Engine, Launch, dynamo, kubernetes};
use moe_frontier::plan::size::{Limit, Metric, Offer, SizeAnswer, SizeInputs, Statistic, size};
use moe_frontier::serving::{
    Deployment, EngineCosts, Layout, Lengths, LoadModel, MemoryBudget, Router, Served, Spread,
    Traffic,
};
use moe_frontier::units::Seconds;

fn model(name: &str) -> MoeModel {
    preset::load(name).unwrap().model
}

fn inputs(name: &str, device: &str, engine: &str, weights: Option<DType>) -> SizeInputs {
    let mut model = model(name);
    if let Some(dtype) = weights {
        (model.expert_dtype, model.dense_dtype, model.bits) = (dtype, dtype, None);
    }
    let device = DeviceSpec::load(device).unwrap();
    let price = device.price().unwrap().0;
    let costs = EngineCosts::of(engine).on(engine, &device);
    let limit =
        |metric, seconds| Limit { metric, statistic: Statistic::P99, most: Seconds(seconds) };
    SizeInputs {
        routing: Arc::new(LoadModel::uniform(model.num_experts, model.top_k).unwrap()),
        model,
        devices: vec![Offer { device, price, costs }],
        engine: engine.into(),
        lengths: Lengths { input: 1000.0, output: 200.0 },
        spread: Spread::Fixed,
        trace: None,
        rate: 30.0,
        peak_over_mean: 1.0,
        burstiness: 1.0,
        router: Router::default(),
        limits: vec![limit(Metric::Ttft, 4.0), limit(Metric::Tpot, 0.1)],
        spare: 0,
        max_gpus: 512,
        requests: 2_000,
        seed: 1,
    }
}

fn latency(device: &DeviceSpec, _: &str) -> Result<Arc<dyn LatencyModel>> {
    Ok(Arc::new(RooflineModel::published(device)?))
}

/// The deployments that are checked: one device, tensor parallel, experts over one host and over several.
fn cases() -> Vec<SizeInputs> {
    let of = |engine: Engine| {
        let engine = engine.label();
        [
            inputs("olmoe-1b-7b", "h100", engine, None),
            inputs("mixtral-8x7b", "h100", engine, None),
            inputs("mixtral-8x7b", "h100", engine, Some(DType::Fp8)),
            inputs("deepseek-v3", "h200", engine, None),
            inputs("deepseek-v3", "h100", engine, None),
        ]
    };
    Engine::ALL.into_iter().flat_map(of).collect()
}

fn launch(inputs: &SizeInputs, answer: &SizeAnswer) -> Launch {
    let published = model(&inputs.model.name).expert_dtype;
    Launch::of_choice(inputs, &answer.best, "org/model", published, None).unwrap()
}

fn number(command: &Command, flag: &str) -> usize {
    command.value(flag).unwrap_or("1").parse().unwrap()
}

/// Layout, maximum batch, chunk and share of the memory for weights and cache, as the flags say.
fn read_back(launch: &Launch, command: &Command) -> (Layout, usize, usize, f64) {
    let of = |flag: &str| number(command, flag);
    let share = |flag: &str| command.value(flag).unwrap().parse::<f64>().unwrap();
    let role = &launch.roles[0];
    let memory = &role.memory;
    match launch.engine {
        Engine::Vllm => {
            let (tp, dp) = (of("--tensor-parallel-size"), of("--data-parallel-size"));
            let spread = command.has("--enable-expert-parallel");
            let (moe_tp, moe_ep) = if spread { (1, tp * dp) } else { (tp * dp, 1) };
            let layout = Layout { attention_tp: tp, attention_dp: dp, moe_tp, moe_ep };
            let usable = share("--gpu-memory-utilization") - memory.reserve / memory.device;
            let chunk = of("--max-num-batched-tokens") * dp;
            (layout, of("--max-num-seqs") * dp, chunk, usable)
        }
        Engine::Sglang => {
            let (all, dp, ep) = (of("--tp-size"), of("--dp-size"), of("--ep-size"));
            let layout =
                Layout { attention_tp: all / dp, attention_dp: dp, moe_tp: all / ep, moe_ep: ep };
            let (batch, chunk) = (of("--max-running-requests"), of("--chunked-prefill-size"));
            (layout, batch, chunk, share("--mem-fraction-static"))
        }
        Engine::Trtllm => {
            let (all, ep) = (of("--tp_size"), of("--ep_size"));
            let options = command.options_file.clone().unwrap_or_default();
            let dp = if options.contains("enable_attention_dp: true") { all } else { 1 };
            let layout =
                Layout { attention_tp: all / dp, attention_dp: dp, moe_tp: all / ep, moe_ep: ep };
            let free = 1.0 - (role.weights + memory.reserve) / memory.device;
            let cache = share("--kv_cache_free_gpu_memory_fraction") * free;
            let usable = cache + role.weights / memory.device;
            (layout, of("--max_batch_size") * dp, of("--max_num_tokens") * dp, usable)
        }
    }
}

/// One replica at the mean rate, from what the flags say.
fn served(inputs: &SizeInputs, layout: Layout, chunk: usize, replicas: usize) -> Served {
    let Offer { device, costs, .. } = &inputs.devices[0];
    let source = latency(device, &inputs.engine).unwrap();
    let costs = EngineCosts { chunk_tokens: chunk as f64, ..costs.clone() };
    let deployment = Deployment {
        model: &inputs.model,
        layout,
        latency: source.as_ref(),
        costs: &costs,
        routing: &inputs.routing,
        skewed: None,
        memory: MemoryBudget::of(device),
        domain: device.scale_up_devices,
    };
    deployment.serve(&Traffic::Open(inputs.rate / replicas as f64), &inputs.lengths).unwrap()
}

#[test]
fn the_emitted_flags_are_what_was_priced() {
    for inputs in cases() {
        let answer = size(&inputs, &latency).unwrap();
        let best = &answer.best;
        let name = format!("{} {} {}", inputs.model.name, inputs.engine, best.layout);
        let launch = launch(&inputs, &answer);
        let role = &launch.roles[0];
        let command = launch.command(role).unwrap();
        let (layout, batch, chunk, usable) = read_back(&launch, &command);
        assert_eq!(layout, best.layout, "{name}");
        assert_eq!(role.replicas, best.replicas, "{name}");
        let groups = best.layout.attention_dp;
        assert!(batch <= best.max_batch && best.max_batch < batch + groups, "{name}: {batch}");
        let priced = best.memory.usable() / best.memory.device;
        assert!(usable <= priced + 1e-6 && priced < usable + 2e-3, "{name}: {usable} {priced}");
        let again = served(&inputs, layout, chunk, role.replicas);
        let same = |a: Seconds, b: Seconds| (a / b - 1.0).abs() < 1e-9;
        assert!(
            same(again.tpot, answer.steady.tpot),
            "{name}: {} {}",
            again.tpot,
            answer.steady.tpot
        );
        assert!(same(again.ttft, answer.steady.ttft), "{name}");
    }
}

#[test]
fn weights_that_were_priced_are_asked_for() {
    let of = |engine: &str, weights| {
        let inputs = inputs("mixtral-8x7b", "h100", engine, weights);
        let answer = size(&inputs, &latency).unwrap();
        let launch = launch(&inputs, &answer);
        (launch.command(&launch.roles[0]).unwrap(), launch.notes())
    };
    let fp8 = Some(DType::Fp8);
    assert_eq!(of("vllm", fp8).0.value("--quantization"), Some("fp8"));
    assert_eq!(of("sglang", fp8).0.value("--quantization"), Some("fp8"));
    assert!(of("vllm", None).0.value("--quantization").is_none());
    // It loads what the checkpoint holds.
    assert!(of("trtllm", fp8).1.iter().any(|note| note.contains("checkpoint in fp8")));
}

#[test]
fn manifests_hold_the_command_and_the_devices_that_were_priced() {
    for inputs in cases() {
        let answer = size(&inputs, &latency).unwrap();
        let launch = launch(&inputs, &answer);
        let best = &answer.best;
        let request = dynamo(&launch).unwrap();
        assert!(request.contains(&format!("totalGpus: {}\n", best.gpus())), "{request}");
        assert!(request.contains(&format!("requestRate: {:?}\n", inputs.rate)), "{request}");
        let several = best.layout.devices() > launch.device.per_host;
        if several && launch.engine == Engine::Trtllm {
            assert_eq!(kubernetes(&launch).unwrap_err().exit_code(), 4);
            continue;
        }
        let manifest = kubernetes(&launch).unwrap();
        let kind = if several { "kind: LeaderWorkerSet\n" } else { "kind: Deployment\n" };
        assert!(manifest.contains(kind), "{manifest}");
        assert!(manifest.contains(&format!("replicas: {}\n", best.replicas)), "{manifest}");
        let here = best.layout.devices().min(launch.device.per_host);
        assert!(manifest.contains(&format!("nvidia.com/gpu: {here}\n")), "{manifest}");
    }
}
