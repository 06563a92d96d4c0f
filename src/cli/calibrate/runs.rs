//! `calibrate --plan`: the runs that shrink the interval most.
//!
//! Each candidate run tells one number, ln TPOT, with slopes along the constants. Runs are chosen one
//! after the other, each the one after which the mean variance over all candidates is least.

use serde::Serialize;

use super::CalibrateArgs;
use crate::ask::sources::Sources;
use crate::calibrate::constants::{Constants, TPOT, with_tpot};
use crate::calibrate::fit::ROW_SIGMA;
use crate::calibrate::predict::Chosen;
use crate::calibrate::{Group, Prior};
use crate::cli::Output;
use crate::cli::output::width;
use crate::config::{DeviceSpec, load_model};
use crate::plan::points::{self, Setup};
use crate::report::grid::{command, hanging};
use crate::serving::{Layout, Lengths, Traffic};
use crate::{Error, Result};

const CONCURRENCIES: [f64; 5] = [1.0, 8.0, 32.0, 128.0, 256.0];
const LENGTHS: [(f64, f64); 3] = [(1000.0, 200.0), (1000.0, 1000.0), (8000.0, 500.0)];
const RANKS: [usize; 4] = [1, 2, 4, 8];
/// Step of the numerical slopes.
const H: f64 = 1e-3;
/// Requests of a run over its clients.
const REQUESTS: f64 = 10.0;

#[derive(Debug, Serialize)]
struct Run {
    tp: usize,
    isl: f64,
    osl: f64,
    concurrency: f64,
    predicted_tpot_ms: f64,
    server: String,
    client: String,
}

#[derive(Debug, Serialize)]
struct Document {
    schema: &'static str,
    schema_version: &'static str,
    model: String,
    device: String,
    engine: String,
    tpot_half_width_now: f64,
    tpot_half_width_then: f64,
    runs: Vec<Run>,
}

struct Candidate {
    run: Run,
    slope: [f64; TPOT],
}

pub(super) fn run(args: &CalibrateArgs, sources: &Sources, output: Output) -> Result<()> {
    let (Some(model), Some(device)) = (&args.model, &args.device) else {
        return Err(Error::usage("--plan", "needs --model and --device"));
    };
    let loaded = load_model(model)?.model;
    let device = DeviceSpec::load(device)?;
    let engine = sources.engine();
    let group =
        Group { engine: engine.to_owned(), model: loaded.name.clone(), gpu: device.name.clone() };
    let mut chosen = Chosen::of(&group, &[])?;
    chosen.default = chosen.default.on(engine, &device);
    let latency = sources.stack(&device, engine)?;
    let mut candidates = Vec::new();
    for tp in RANKS {
        for (input, output) in LENGTHS {
            for concurrency in CONCURRENCIES {
                let setup = Setup {
                    model: loaded.clone(),
                    device: device.clone(),
                    layout: Layout::tensor(tp),
                    lengths: Lengths { input, output },
                    traffic: Traffic::Closed { concurrency, requests_per_client: REQUESTS },
                    pools: None,
                };
                candidates.extend(candidate(&setup, &chosen, latency.as_ref(), (model, engine)));
            }
        }
    }
    if candidates.is_empty() {
        return Err(Error::infeasible(
            format!("{model} does not fit 1 to 8 devices of {}", device.name),
            "name a device with more memory",
        ));
    }
    let mut constants = chosen.constants.clone();
    let now = chosen.errors.tpot_z95 * mean_sd(&constants, &candidates);
    let mut runs = Vec::new();
    for _ in 0..args.count {
        let Some(best) = best(&constants, &candidates) else { break };
        let picked = candidates.remove(best);
        constants.tpot_covariance = updated(&constants, &picked.slope);
        runs.push(picked);
        if candidates.is_empty() {
            break;
        }
    }
    let all = if candidates.is_empty() { &runs } else { &candidates };
    let then = Prior::shipped()?.own_rows.tpot_z95 * mean_sd(&constants, all);
    let document = Document {
        schema: "moe-frontier/calibrate-plan",
        schema_version: "1.0",
        model: loaded.name.clone(),
        device: device.name.clone(),
        engine: engine.to_owned(),
        tpot_half_width_now: now.exp_m1(),
        tpot_half_width_then: then.exp_m1(),
        runs: runs.into_iter().map(|c| c.run).collect(),
    };
    output.result(&document, || text(&document, width()))
}

/// One run with its slopes; `None` where it does not fit or would wait for a place.
fn candidate(
    setup: &Setup,
    chosen: &Chosen,
    latency: &dyn crate::latency::LatencyModel,
    (model, engine): (&str, &str),
) -> Option<Candidate> {
    let costs = chosen.costs();
    let here = points::predict(setup, &costs, latency).ok()?.served;
    if here.saturated {
        return None;
    }
    let mut slope = [0.0; TPOT];
    for (p, slope) in slope.iter_mut().enumerate() {
        let mut step = [0.0; TPOT];
        step[p] = H;
        let moved = points::predict(setup, &with_tpot(&costs, &step), latency).ok()?.served;
        *slope = (moved.tpot / here.tpot).ln() / H;
    }
    let Traffic::Closed { concurrency, .. } = setup.traffic else { return None };
    let (tp, Lengths { input, output }) = (setup.layout.attention_tp, setup.lengths);
    let server = match engine {
        "sglang" => format!("python -m sglang.launch_server --model-path {model} --tp {tp}"),
        "trtllm" => format!("trtllm-serve {model} --tp_size {tp}"),
        _ => format!("vllm serve {model} --tensor-parallel-size {tp}"),
    };
    let prompts = (concurrency * REQUESTS).max(20.0);
    let client = format!(
        "vllm bench serve --model {model} --dataset-name random --random-input-len {input} \
         --random-output-len {output} --max-concurrency {concurrency} --num-prompts {prompts} \
         --ignore-eos --save-result"
    );
    let predicted_tpot_ms = here.tpot.as_ms();
    let run = Run { tp, isl: input, osl: output, concurrency, predicted_tpot_ms, server, client };
    Some(Candidate { run, slope })
}

fn mean_sd(constants: &Constants, candidates: &[Candidate]) -> f64 {
    let variance = |c: &Candidate| constants.tpot_log_sd(&c.slope).powi(2) + ROW_SIGMA * ROW_SIGMA;
    (candidates.iter().map(variance).sum::<f64>() / candidates.len() as f64).sqrt()
}

/// Covariance after a run with these slopes.
fn updated(constants: &Constants, slope: &[f64; TPOT]) -> [[f64; TPOT]; TPOT] {
    let c = &constants.tpot_covariance;
    let along: [f64; TPOT] = std::array::from_fn(|i| (0..TPOT).map(|j| c[i][j] * slope[j]).sum());
    let total = constants.tpot_log_sd(slope).powi(2) + ROW_SIGMA * ROW_SIGMA;
    std::array::from_fn(|i| std::array::from_fn(|j| c[i][j] - along[i] * along[j] / total))
}

fn best(constants: &Constants, candidates: &[Candidate]) -> Option<usize> {
    let after = |c: &Candidate| {
        let known =
            Constants { tpot_covariance: updated(constants, &c.slope), ..constants.clone() };
        mean_sd(&known, candidates)
    };
    let sds: Vec<f64> = candidates.iter().map(after).collect();
    (0..sds.len()).min_by(|&a, &b| sds[a].total_cmp(&sds[b]))
}

fn text(d: &Document, width: usize) -> String {
    let answer = format!(
        "{} on {} with {}: the 95 % interval of TPOT reaches {:.0} % up now, {:.0} % after these runs",
        d.model,
        d.device,
        d.engine,
        d.tpot_half_width_now * 100.0,
        d.tpot_half_width_then * 100.0
    );
    let mut text = hanging("Answer  ", &answer, width);
    for (i, run) in d.runs.iter().enumerate() {
        let what = format!(
            "tp{}, {:.0} in, {:.0} out, {:.0} clients (about {:.1} ms a token)",
            run.tp, run.isl, run.osl, run.concurrency, run.predicted_tpot_ms
        );
        text += &hanging(&format!("{}. ", i + 1), &what, width);
        text += &command(&run.server, "   ", width);
        text += &command(&run.client, "   ", width);
    }
    text += "then:\n";
    let import =
        "moe-frontier import vllm-bench *.json --gpu DEVICE --parallelism tpN --out runs.csv";
    text += &command(import, "   ", width);
    text + &command("moe-frontier calibrate runs.csv --out own.json", "   ", width)
}
