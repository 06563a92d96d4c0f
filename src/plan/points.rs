//! Measured points of running servers, and what the serving model predicts for each.
//!
//! One row of a CSV file is one deployment under one load. A row that cannot be predicted is kept
//! with its reason; a row that says something impossible about itself (saturated, implausible) is
//! predicted where possible but stays out of errors and fits, by name.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use crate::config::{DType, DeviceSpec, MoeModel, local_model};
use crate::latency::tables::flat_table::{FlatTable, Row};
use crate::latency::{LatencyModel, Source};
use crate::plan::parallelism;
use crate::plan::results::silicon;
use crate::serving::{
    Breakdown, Deployment, EngineCosts, KvLink, Layout, Lengths, LoadModel, MemoryBudget, Pools,
    Served, Traffic,
};
use crate::units::Seconds;
use crate::workload::RoutingKind;
use crate::{Error, Result};

/// `InferenceX` draws lengths evenly from 80-100 % of the nominal ones.
const INFERENCEX_MEAN_LENGTH: f64 = 0.9;
/// Requests of each client in its closed-loop runs, and where no column says otherwise.
pub const REQUESTS_PER_CLIENT: f64 = 10.0;
/// An open loop that completes less than this share of what was offered is overloaded: its batch is
/// set by what the engine admits and by how long the run lasted, not by the rate.
pub const OVERLOAD_SHARE: f64 = 0.9;
/// Requests of an overloaded run of vllm-cost-meter, as its rows tell: at 100 and 200 req/s offered,
/// p99 of TTFT plus decoding end within `requests / done` seconds for 620-655 requests.
pub const OVERLOAD_REQUESTS: f64 = 640.0;
/// What a server was measured at.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Measured {
    /// Time to first token.
    pub ttft: Option<Seconds>,
    /// Time per output token after the first.
    pub tpot: Option<Seconds>,
    /// Output tokens per second of the whole deployment.
    pub output_rate: Option<f64>,
}

/// A deployment and its load, resolved.
#[derive(Clone, Debug)]
pub struct Setup {
    /// The model in the formats it was served in.
    pub model: MoeModel,
    /// The device.
    pub device: DeviceSpec,
    /// How it was spread.
    pub layout: Layout,
    /// Mean lengths.
    pub lengths: Lengths,
    /// The load.
    pub traffic: Traffic,
    /// Separate pools for prompts and for decoding; `layout` is then that of one decode worker.
    pub pools: Option<Pools>,
}

/// One row of a file of points.
#[derive(Clone, Debug)]
pub struct Point {
    /// Name in the file, or its row.
    pub id: String,
    /// Model as the file names it.
    pub model: String,
    /// Device as the file names it.
    pub gpu: String,
    /// Engine in lower case.
    pub engine: String,
    /// Its version as the file names it; may be empty.
    pub version: String,
    /// Where the row was published or recorded: rows of one origin ran on one kind of host.
    pub origin: String,
    /// Measured figures.
    pub measured: Measured,
    /// What to predict, or why it cannot be predicted.
    pub setup: Result<Setup, String>,
    /// Why the row stays out of errors and fits, if it does.
    pub excluded: Option<String>,
}

/// Reads a CSV of points.
///
/// # Errors
/// [`Error::Io`] when it cannot be read; [`Error::BadFile`] when it is no table, lacks a column or
/// holds a number that is none.
pub fn read(path: &Path) -> Result<Vec<Point>> {
    let table = silicon::as_points(FlatTable::read(path)?)?;
    for column in ["model", "gpu", "engine", "isl", "osl", "concurrency_or_rate"] {
        if !table.has(column) {
            return Err(Error::bad_file(table.location(), format!("no column `{column}`")));
        }
    }
    let points: Result<Vec<Point>> =
        table.rows().enumerate().map(|(index, row)| point(index, &row)).collect();
    let mut points = points?;
    exclude_repeats(&mut points);
    Ok(points)
}

/// A run that a file holds twice counts once.
fn exclude_repeats(points: &mut [Point]) {
    let mut seen: HashMap<String, String> = HashMap::new();
    for point in points {
        let (Ok(s), Measured { ttft: Some(ttft), tpot: Some(tpot), .. }) =
            (&point.setup, point.measured)
        else {
            continue;
        };
        let key = format!(
            "{} {} {} {} {:?} {:?} {:?} {} {}",
            s.model.name,
            point.gpu,
            point.engine,
            s.layout,
            s.pools,
            s.lengths,
            s.traffic,
            ttft.0,
            tpot.0
        );
        if let Some(first) = seen.get(&key) {
            let why = || format!("repeated: the same run as {first}");
            point.excluded.get_or_insert_with(why);
        } else {
            seen.insert(key, point.id.clone());
        }
    }
}

fn point(index: usize, row: &Row) -> Result<Point> {
    let text = |column: &str| row.text(column).unwrap_or_default().to_owned();
    let optional = |column: &str| -> Result<Option<f64>> {
        match row.text(column) {
            None => Ok(None),
            Some(_) => row.number(column).map(Some),
        }
    };
    let ms = |column: &str| -> Result<Option<Seconds>> {
        let value = optional(column)?;
        if value.is_some_and(|v| v <= 0.0) {
            return Err(row.bad(format!("`{column}` is not above zero")));
        }
        Ok(value.map(Seconds::from_ms))
    };
    let measured = Measured {
        ttft: ms("ttft_ms")?,
        tpot: ms("tpot_ms")?,
        output_rate: optional("output_tok_s_total")?,
    };
    let setup = setup(row);
    let excluded = excluded(row).or_else(|| implausible(setup.as_ref().ok()?));
    Ok(Point {
        id: row.text("source_id").map_or_else(|| format!("row {}", index + 1), str::to_owned),
        model: text("model"),
        gpu: text("gpu"),
        engine: text("engine").to_lowercase(),
        version: text("engine_version"),
        origin: text("source"),
        measured,
        setup,
        excluded,
    })
}

/// Why a row must not enter errors or fits.
fn excluded(row: &Row) -> Option<String> {
    if let Some(flag) = row.text("quality_flag") {
        return Some(flag.split([' ', '(']).next().unwrap_or(flag).to_owned());
    }
    let (offered, done) = offered_and_done(row.text("concurrency_or_rate")?)?;
    (done < OVERLOAD_SHARE * offered).then(|| {
        format!("overloaded: {done} of {offered} req/s completed; the queue sets its figures")
    })
}

/// Ranks of one tensor-parallel server at most: two nodes of eight.
const MOST_RANKS: usize = 16;

/// A server of one replica whose heads are said to be over more ranks than any engine splits them: a
/// total over several servers, whose siblings have numbers of devices that do not divide the heads.
fn implausible(setup: &Setup) -> Option<String> {
    let ranks = setup.layout.attention_tp;
    (setup.pools.is_none() && ranks > MOST_RANKS)
        .then(|| format!("gpu_count_implausible: tensor parallel over {ranks} devices"))
}

fn setup(row: &Row) -> Result<Setup, String> {
    let model = model(row)?;
    let gpu = row.text("gpu").unwrap_or_default();
    let device = device(gpu)?;
    let layout = layout(row)?;
    layout.validate(&model).map_err(|e| e.to_string())?;
    let length = |column: &str| -> Result<f64, String> {
        let text = row.text(column).unwrap_or_default();
        let value: Option<f64> = text.parse().ok();
        value
            .filter(|v| v.is_finite() && *v >= 1.0)
            .ok_or_else(|| format!("{column} is `{text}`, not a number of tokens"))
    };
    let mut lengths = Lengths { input: length("isl")?, output: length("osl")? };
    if row.text("source").is_some_and(|s| s.contains("InferenceX")) {
        lengths.input *= INFERENCEX_MEAN_LENGTH;
        lengths.output *= INFERENCEX_MEAN_LENGTH;
    }
    let traffic = traffic(row)?;
    let pools = pools(row, &model)?;
    Ok(Setup { model, device, layout, lengths, traffic, pools })
}

/// The model of a row by its name on the Hub, in the formats of the row.
fn model(row: &Row) -> Result<MoeModel, String> {
    let name = row.text("model").unwrap_or_default();
    // Rows of the reasoning model may name it alone.
    let name = if name.eq_ignore_ascii_case("r1") { "deepseek-ai/DeepSeek-R1" } else { name };
    let mut model = local_model(name).map_err(|_| format!("model `{name}` is not known"))?;
    let precision = row.text("weights_precision").unwrap_or_default().to_lowercase();
    set_precision(&mut model, &precision)?;
    Ok(model)
}

/// Stores a model's weights in a precision as servers name it; empty leaves them as published.
///
/// # Errors
/// A sentence that names the accepted ones.
pub fn set_precision(model: &mut MoeModel, name: &str) -> Result<(), String> {
    if let Some((experts, dense)) = precision(name)? {
        model.set_weights(experts, dense);
    }
    Ok(())
}

/// Storage of experts and of everything else by a name that servers use; `None` for an empty one.
///
/// # Errors
/// A sentence that names the accepted ones.
pub fn precision(name: &str) -> Result<Option<(DType, DType)>, String> {
    let both = |dtype: DType| (dtype, dtype);
    Ok(Some(match name {
        "" => return Ok(None),
        "bf16" | "bfloat16" | "bf16/fp16" => both(DType::Bf16),
        "fp16" | "float16" | "f16" => both(DType::F16),
        "fp8" | "fp8_block" => both(DType::Fp8),
        "int8" => both(DType::Int8),
        "int4" => (DType::Int4, DType::Bf16),
        // Published checkpoints keep attention in 16 bits (modelopt).
        p if p.starts_with("nvfp4") => (DType::Nvfp4, DType::Bf16),
        p if p.starts_with("mxfp4") => (DType::Mxfp4, DType::Bf16),
        p => {
            return Err(format!(
                "weights in `{p}` are not known; bf16, fp16, fp8, int8, int4, mxfp4 and nvfp4 are"
            ));
        }
    }))
}

fn device(gpu: &str) -> Result<DeviceSpec, String> {
    // A row that leaves the variant open is taken as the one whose price its source names.
    let name = if gpu == "h100_80gb" { "h100_nvl" } else { gpu };
    DeviceSpec::load(name).map_err(|_| format!("device `{gpu}` is not known"))
}

/// Layout of the server, or of one decode worker.
fn layout(row: &Row) -> Result<Layout, String> {
    let gpus = row.text("n_gpus").and_then(|t| t.parse().ok());
    parallelism::parse(row.text("parallelism").unwrap_or_default(), gpus)
}

/// Pools of a disaggregated server. Where a row does not say how many workers there are, one of each.
fn pools(row: &Row, model: &MoeModel) -> Result<Option<Pools>, String> {
    let Some(text) = row.text("prefill_parallelism") else { return Ok(None) };
    let prefill = parallelism::parse(text, None)?;
    prefill.validate(model).map_err(|e| format!("prefill pool: {e}"))?;
    let workers = |column: &str| -> Result<f64, String> {
        let Some(text) = row.text(column) else { return Ok(1.0) };
        let number: Option<f64> = text.parse().ok();
        number
            .filter(|n| n.is_finite() && *n >= 1.0)
            .ok_or_else(|| format!("{column} is `{text}`, not a number of workers"))
    };
    let stated = row.text("prefill_workers").is_some() && row.text("decode_workers").is_some();
    Ok(Some(Pools {
        prefill,
        prefill_workers: workers("prefill_workers")?,
        decode_workers: workers("decode_workers")?,
        stated,
    }))
}

fn traffic(row: &Row) -> Result<Traffic, String> {
    let text = row.text("concurrency_or_rate").unwrap_or_default();
    if row.text("workload").is_some_and(|w| w.contains("static batch")) {
        return Err("a static batch has no steady state: no TTFT and TPOT to compare".into());
    }
    if text.starts_with("max load") {
        return Ok(Traffic::Offline);
    }
    if let Some((offered, done)) = offered_and_done(text) {
        if done < OVERLOAD_SHARE * offered {
            return Ok(Traffic::Burst(OVERLOAD_REQUESTS));
        }
        return Ok(Traffic::Open(done));
    }
    let at_least_one = |text: &str| text.parse().ok().filter(|c: &f64| c.is_finite() && *c >= 1.0);
    let requests_per_client = match row.text("requests_per_client") {
        None => REQUESTS_PER_CLIENT,
        Some(text) => at_least_one(text)
            .ok_or_else(|| format!("requests_per_client is `{text}`, not a number of requests"))?,
    };
    at_least_one(text)
        .map(|concurrency| Traffic::Closed { concurrency, requests_per_client })
        .ok_or_else(|| format!("load `{text}` is neither a concurrency nor a rate"))
}

/// `25 req/s offered, 20.57 done`.
fn offered_and_done(text: &str) -> Option<(f64, f64)> {
    let (offered, done) = text.split_once(" req/s offered, ")?;
    let done = done.split(' ').next()?;
    let positive = |t: &str| t.parse().ok().filter(|v: &f64| v.is_finite() && *v > 0.0);
    Some((positive(offered)?, positive(done)?))
}

/// What the model says about one point.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Prediction {
    /// Steady state.
    pub served: Served,
    /// Output tokens per second of the whole deployment.
    pub output_rate: f64,
}

impl Prediction {
    /// Where the step's times come from.
    pub fn source(&self) -> Source {
        self.served.step.source()
    }

    /// Mean step by part.
    pub fn step(&self) -> &Breakdown {
        &self.served.step
    }
}

/// Latencies on a setup's device with kernels of an engine, as a whole command uses them.
pub type LatencyOf<'a> = dyn Fn(&DeviceSpec, &str) -> Result<Arc<dyn LatencyModel>> + Sync + 'a;

/// Predicts one setup with the given engine constants under typical routing.
///
/// # Errors
/// What cannot be predicted and why.
pub fn predict(
    setup: &Setup,
    costs: &EngineCosts,
    latency: &dyn LatencyModel,
) -> Result<Prediction> {
    let routing = typical_load(setup.model.num_experts, setup.model.top_k)?;
    predict_under(setup, costs, latency, &routing)
}

/// The same under a given load of the experts.
///
/// # Errors
/// What cannot be predicted and why.
pub fn predict_under(
    setup: &Setup,
    costs: &EngineCosts,
    latency: &dyn LatencyModel,
    routing: &LoadModel,
) -> Result<Prediction> {
    let deployment = deployment(setup, costs, latency, routing);
    deployment.validate()?;
    let served = match &setup.pools {
        None => deployment.serve(&setup.traffic, &setup.lengths)?,
        Some(pools) => {
            let link = KvLink::of(&setup.device);
            deployment.serve_pools(pools, &link, &setup.traffic, &setup.lengths)?
        }
    };
    Ok(Prediction { served, output_rate: served.requests_per_s * setup.lengths.output })
}

/// The deployment of a setup.
pub fn deployment<'a>(
    setup: &'a Setup,
    costs: &'a EngineCosts,
    latency: &'a dyn LatencyModel,
    routing: &'a LoadModel,
) -> Deployment<'a> {
    Deployment {
        model: &setup.model,
        layout: setup.layout,
        latency,
        costs,
        routing,
        skewed: None,
        memory: MemoryBudget::of(&setup.device),
        domain: setup.device.scale_up_devices,
    }
}

/// Typical routing over some experts, sampled once in a process.
///
/// # Errors
/// [`Error::Usage`] unless `1 <= top_k <= experts`.
pub fn typical_load(experts: usize, top_k: usize) -> Result<Arc<LoadModel>> {
    type Known = Mutex<HashMap<(usize, usize), Arc<LoadModel>>>;
    static KNOWN: OnceLock<Known> = OnceLock::new();
    let mut known =
        KNOWN.get_or_init(Known::default).lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(load) = known.get(&(experts, top_k)) {
        return Ok(Arc::clone(load));
    }
    let load = Arc::new(LoadModel::new(&RoutingKind::TYPICAL, experts, top_k)?);
    known.insert((experts, top_k), Arc::clone(&load));
    Ok(load)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: &str = "model,gpu,n_gpus,parallelism,engine,weights_precision,isl,osl,concurrency_or_rate,tpot_ms\n";

    fn one(row: &str) -> Result<Point> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("p.csv");
        std::fs::write(&path, format!("{HEADER}{row}\n")).unwrap();
        read(&path).map(|mut points| points.remove(0))
    }

    #[test]
    fn parallelism_and_load_are_read_as_files_write_them() {
        for (text, devices, expected) in [
            ("tp8pp1 moe_tp8 moe_ep1", 8, Layout::tensor(8)),
            ("tp2", 2, Layout::tensor(2)),
            ("DEP4", 4, Layout { attention_tp: 1, attention_dp: 4, moe_tp: 1, moe_ep: 4 }),
            ("TP8 (attn DP)", 8, Layout { attention_tp: 1, attention_dp: 8, moe_tp: 1, moe_ep: 8 }),
            ("tp4 ep4", 4, Layout { attention_tp: 4, attention_dp: 1, moe_tp: 1, moe_ep: 4 }),
        ] {
            let row = format!("Qwen/Qwen3-30B-A3B,h100,{devices},{text},vLLM,bf16,100,10,4,5");
            assert_eq!(one(&row).unwrap().setup.unwrap().layout, expected, "{text}");
        }
        let open = one("gpt-oss-20b,h200,1,tp1,vllm,,100,10,\"25 req/s offered, 20.5 done\",5");
        let open = open.unwrap();
        assert_eq!(open.setup.unwrap().traffic, Traffic::Burst(OVERLOAD_REQUESTS));
        assert!(open.excluded.unwrap().contains("overloaded"));
    }

    #[test]
    fn what_cannot_be_predicted_says_why() {
        for (row, why) in [
            ("nobody/knows,h100,1,tp1,vllm,bf16,100,10,4,5", "knows"),
            ("mixtral-8x7b,h9000,1,tp1,vllm,bf16,100,10,4,5", "h9000"),
            ("mixtral-8x7b,h100,64,tp8,vllm,bf16,100,10,4,5", "64"),
            ("mixtral-8x7b,h100,2,tp2,vllm,int3,100,10,4,5", "int3"),
            ("mixtral-8x7b,h100,2,tp2,vllm,bf16,mixed,10,4,5", "mixed"),
            ("mixtral-8x7b,h100,2,see there,vllm,bf16,100,10,4,5", "see there"),
            ("mixtral-8x7b,h100,2,tp2,vllm,bf16,100,10,words,5", "words"),
            ("mixtral-8x7b,h100,8,tp4pp2,vllm,bf16,100,10,4,5", "pipeline"),
        ] {
            let reason = one(row).unwrap().setup.unwrap_err();
            assert!(reason.contains(why), "{row}: {reason}");
        }
        assert_eq!(one("mixtral-8x7b,h100,2,tp2,vllm,bf16,1,1,1,x").unwrap_err().exit_code(), 3);
        assert_eq!(one("mixtral-8x7b,h100,2,tp2,vllm,bf16,1,1,1,-1").unwrap_err().exit_code(), 3);
    }
}
