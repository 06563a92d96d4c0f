//! The CUDA kernels as a [`MoeBackend`], on whatever launches them.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use half::bf16;
use rayon::prelude::*;
use sha2::{Digest, Sha256};

use crate::config::DType;
use crate::gpu::params::{STATUS_BAD_EXPERT_ID, STATUS_CAPACITY, STATUS_NON_FINITE_LOGIT};
use crate::gpu::{Launcher, Recording, Region};
use crate::kernels::gpu::launches::{self, ReadPath, ReadStream, read_stream};
use crate::kernels::gpu::{
    Combine, LayerBuffers, LogitFormat, Matrix, MoeInput, MoeOptions, Piece, Plan, Routing,
    Thresholds, WeightFormat, Workspace, moe_stage,
};
use crate::kernels::{
    Arithmetic, LayerWeights, LoadedLayer, MoeBackend, MoeShape, Routed, RouterSpec, Stage, Turn,
    WeightData,
};
use crate::{Error, Result};

/// What the images were made from: changes with every source, flag and image.
const IMAGES: &str = include_str!("../../../kernels/prebuilt/index.toml");

/// Flushes move this many times the second-level cache: it does not evict strictly by age.
const FLUSH_PER_L2: u64 = 2;
/// Patterns that flushes write in turn: an unchanged line need not leave the cache.
const FLUSH_SEEDS: [u32; 2] = [1, 2];

/// What a cold launch finds in the caches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Flush {
    /// Twice the second-level cache was written, then twice as much of other memory read: nothing that
    /// waits to be written back, which the launch would have to make room for.
    #[default]
    WriteThenRead,
    /// Twice the second-level cache was written. Other programs measure like this; it is here to be
    /// compared.
    Write,
}

/// Offset of the status bits in the workspace's header.
const STATUS_AT: u64 = 8;

/// The kernels on one device.
pub struct GpuBackend<L> {
    launcher: Mutex<L>,
    description: String,
    options: MoeOptions,
    flush: Flush,
}

impl<L: Launcher> GpuBackend<L> {
    /// The backend on a device, which `description` names. Layers bring the format of their weights
    /// with them; that of the options is not read.
    ///
    /// # Errors
    /// [`Error::Usage`] for options that need another output than layers have here: one in single
    /// precision.
    pub fn new(launcher: L, description: String, options: MoeOptions) -> Result<Self> {
        if options.combine != Combine::Bf16 {
            return Err(Error::usage("combine", "layers have bf16 outputs here"));
        }
        let flush = Flush::default();
        Ok(Self { launcher: Mutex::new(launcher), description, options, flush })
    }

    /// The same with another way to empty the caches before a cold launch.
    #[must_use]
    pub fn with_flush(self, flush: Flush) -> Self {
        Self { flush, ..self }
    }

    /// The device, for what is not a layer: ceilings, facts.
    pub fn launcher(&self) -> MutexGuard<'_, L> {
        // A call that panicked leaves device memory behind, nothing that others depend on.
        self.launcher.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What would be launched for a batch of a layer with weights of this format.
    ///
    /// # Errors
    /// [`Error::Usage`] for a format without kernels; else as [`Plan::choose`].
    pub fn plan(&self, shape: &MoeShape, tokens: u32, weights: DType) -> Result<Plan> {
        let options = self.options_for(weights)?;
        Plan::choose(shape, tokens, LogitFormat::F32, self.launcher().facts(), &options)
    }

    /// The options with the weights' format of a layer.
    fn options_for(&self, weights: DType) -> Result<MoeOptions> {
        let weights = match weights {
            DType::Bf16 => WeightFormat::Bf16,
            DType::Fp8 => WeightFormat::E4m3,
            other => {
                let reason = format!(
                    "the CUDA kernels multiply bf16 and fp8 weights, not {}",
                    other.label()
                );
                return Err(Error::usage("weights", reason));
            }
        };
        Ok(MoeOptions { weights, ..self.options.clone() })
    }
}

impl<L: Launcher + Send> MoeBackend for GpuBackend<L> {
    fn name(&self) -> &'static str {
        "cuda"
    }

    fn description(&self) -> String {
        self.description.clone()
    }

    fn kernel(&self, stage: Stage) -> &'static str {
        match stage {
            Stage::Router => "cuda_router_topk",
            Stage::Align => "cuda_align",
            Stage::GateUp | Stage::Down => "cuda_grouped_gemm",
            Stage::Combine => "cuda_combine",
            Stage::Layer => "cuda_moe_layer",
        }
    }

    fn check_weights(&self, weights: DType) -> Result<()> {
        self.options_for(weights).map(|_| ())
    }

    fn arithmetic(&self, _weights: DType) -> Arithmetic {
        Arithmetic::CUDA
    }

    fn kernel_sha256(&self) -> String {
        let mut hash = Sha256::new();
        hash.update(IMAGES);
        hash.update(format!("{:?} {:?}", self.options, Thresholds::INITIAL));
        hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().concat()
    }

    fn load<'a>(
        &'a self,
        sets: &'a [LayerWeights],
        router: &RouterSpec,
        max_tokens: usize,
    ) -> Result<Box<dyn LoadedLayer + 'a>> {
        Ok(Box::new(GpuLayer::load(self, sets, router, max_tokens)?))
    }
}

/// A layer in device memory, with one or more sets of weights.
struct GpuLayer<'a, L: Launcher> {
    backend: &'a GpuBackend<L>,
    options: MoeOptions,
    shape: MoeShape,
    weights: DType,
    max_tokens: u32,
    sets: Vec<LayerBuffers>,
    workspace: Workspace,
    x: Region,
    logits: Region,
    out: Region,
    /// Memory that is written, memory that is read, and where the words of a read go.
    flush: [Region; 3],
    /// What empties the caches, one recording a pattern.
    cooling: Vec<Recording>,
    /// Cold launches so far.
    cooled: usize,
    /// Everything allocated outside the workspace.
    owned: Vec<Region>,
    /// The batch that was put in place, and its plan.
    batch: Option<(u32, Plan)>,
    recordings: HashMap<(Stage, usize), Recording>,
    /// Routings of a series, and the memory that they share.
    routings: Vec<Region>,
    routing_memory: Option<Region>,
    series: HashMap<(Stage, Vec<Turn>), Recording>,
}

impl<'a, L: Launcher> GpuLayer<'a, L> {
    fn load(
        backend: &'a GpuBackend<L>,
        sets: &[LayerWeights],
        router: &RouterSpec,
        max_tokens: usize,
    ) -> Result<Self> {
        let (shape, weights) = sets
            .first()
            .map(|set| (set.shape, set.dtype()))
            .ok_or_else(|| Error::usage("weights", "a layer needs at least one set"))?;
        if sets.iter().any(|set| (set.shape, set.dtype()) != (shape, weights)) {
            return Err(Error::usage("weights", "sets of one layer have one shape and format"));
        }
        let options = backend.options_for(weights)?;
        router.validate(shape.experts, shape.top_k)?;
        let max_tokens = u32::try_from(max_tokens.max(1))
            .map_err(|_| Error::usage("tokens", format!("{max_tokens} exceed 32 bits")))?;
        let mut launcher = backend.launcher();
        let launcher: &mut L = &mut launcher;
        let layout = Workspace::bytes(&shape, max_tokens, launcher.facts(), &options)?;
        let mut owned = Vec::new();
        let mut allocate = |launcher: &mut L, bytes: u64| -> Result<Region> {
            let region = launcher.allocate(bytes.max(1))?;
            owned.push(region);
            Ok(region)
        };
        let tokens = u64::from(max_tokens);
        let row = tokens * shape.hidden as u64 * 2;
        let (x, out) = (allocate(launcher, row)?, allocate(launcher, row)?);
        let logits = allocate(launcher, tokens * shape.experts as u64 * 4)?;
        let much = FLUSH_PER_L2 * launcher.facts().l2_bytes;
        let words = ReadStream::result_bytes(launcher);
        let flush =
            [allocate(launcher, much)?, allocate(launcher, much)?, allocate(launcher, words)?];
        let bias = match router.bias.as_slice() {
            [] => None,
            bias => {
                let region = allocate(launcher, bias.len() as u64 * 4)?;
                launcher.upload(region, &bytes_of(bias.iter().map(|b| b.to_ne_bytes())))?;
                Some(region)
            }
        };
        let mut uploaded = Vec::with_capacity(sets.len());
        for set in sets {
            let mut put = |bytes: &[u8]| -> Result<Region> {
                let region = allocate(launcher, bytes.len() as u64)?;
                launcher.upload(region, bytes)?;
                Ok(region)
            };
            let (w13, w2) = (bytes_of_weights(&set.w13), bytes_of_weights(&set.w2));
            let (w13, w2) = (put(&w13)?, put(&w2)?);
            let scales = match (&set.w13, &set.w2) {
                (WeightData::Fp8(first), WeightData::Fp8(second)) => Some((
                    put(&bytes_of(first.scales().iter().map(|s| s.to_ne_bytes())))?,
                    put(&bytes_of(second.scales().iter().map(|s| s.to_ne_bytes())))?,
                )),
                _ => None,
            };
            uploaded.push(LayerBuffers { shape, w13, w2, scales, router: router.clone(), bias });
        }
        let workspace = Workspace::new(launcher, layout)?;
        Ok(Self {
            backend,
            options,
            shape,
            weights,
            max_tokens,
            sets: uploaded,
            workspace,
            x,
            logits,
            out,
            flush,
            cooling: Vec::new(),
            cooled: 0,
            owned,
            batch: None,
            recordings: HashMap::new(),
            routings: Vec::new(),
            routing_memory: None,
            series: HashMap::new(),
        })
    }

    fn batch(&self) -> Result<&(u32, Plan)> {
        self.batch.as_ref().ok_or_else(|| Error::usage("input", "none was put in place"))
    }

    fn launch(
        &self,
        launcher: &mut dyn Launcher,
        stage: Stage,
        set: usize,
        logits: Region,
    ) -> Result<()> {
        let (tokens, plan) = self.batch()?;
        let layer = self.sets.get(set).ok_or_else(|| unknown_set(set, self.sets.len()))?;
        let (hidden, experts) = (self.shape.hidden as u64, self.shape.experts as u64);
        let input = MoeInput {
            tokens: *tokens,
            x: Matrix::dense(self.x, hidden),
            routing: Routing::Logits {
                logits: Matrix::dense(logits, experts),
                format: LogitFormat::F32,
            },
            out: Matrix::dense(self.out, hidden),
        };
        moe_stage(launcher, stage, plan, layer, &self.options, &input, &self.workspace)
    }

    /// Reads and clears the status bits that kernels set.
    fn status(&self, launcher: &mut dyn Launcher) -> Result<()> {
        let at = self.workspace.piece(Piece::Header)?.part(STATUS_AT, 4)?;
        let mut bits = [0; 4];
        launcher.download(at, &mut bits)?;
        let bits = u32::from_ne_bytes(bits);
        if bits == 0 {
            return Ok(());
        }
        launcher.fill(at, 0)?;
        Err(match bits {
            b if b & STATUS_NON_FINITE_LOGIT != 0 => {
                Error::usage("router logits", "a token has a logit that is not a number")
            }
            b if b & STATUS_BAD_EXPERT_ID != 0 => {
                Error::usage("expert ids", "a pair names an expert that is not there")
            }
            b if b & STATUS_CAPACITY != 0 => Error::device(
                self.backend.name_of_device(),
                "a table of the workspace is too short",
            ),
            b => Error::device(self.backend.name_of_device(), format!("unknown status {b:#x}")),
        })
    }

    /// The recording that empties the caches before the next cold launch; none where nothing can be
    /// replayed.
    fn cool(&mut self, launcher: &mut L) -> Result<Option<Recording>> {
        let [written, from, to] = self.flush;
        let read = (self.backend.flush == Flush::WriteThenRead).then_some(ReadStream { from, to });
        if self.cooling.is_empty() {
            // What is read was written once: memory that nobody wrote may not lie anywhere.
            launcher.fill(from, 1)?;
            for seed in FLUSH_SEEDS {
                let made = launcher.record(&mut |l| {
                    launches::flush(l, written, seed)?;
                    read.map_or(Ok(()), |read| read_stream(l, &read, ReadPath::Caches))
                })?;
                let Some(made) = made else { return Ok(None) };
                self.cooling.push(made);
            }
        }
        self.cooled += 1;
        Ok(self.cooling.get(self.cooled % FLUSH_SEEDS.len()).copied())
    }

    /// Forgets what was recorded: grids depend on the tokens.
    fn forget(&mut self, launcher: &mut L) {
        let alone = self.recordings.drain().map(|(_, recording)| recording);
        for recording in alone.chain(self.series.drain().map(|(_, recording)| recording)) {
            launcher.forget(recording);
        }
    }

    /// Memory for `bytes` bytes of routings; recordings that read what was there before are forgotten.
    fn make_room(&mut self, launcher: &mut L, bytes: u64) -> Result<Region> {
        if let Some(region) = self.routing_memory.filter(|region| region.bytes >= bytes) {
            return Ok(region);
        }
        self.forget(launcher);
        if let Some(old) = self.routing_memory.take() {
            launcher.free(old)?;
        }
        let region = launcher.allocate(bytes)?;
        self.routing_memory = Some(region);
        Ok(region)
    }
}

impl<L> GpuBackend<L> {
    fn name_of_device(&self) -> &str {
        &self.description
    }
}

impl<L: Launcher> LoadedLayer for GpuLayer<'_, L> {
    fn set_input(&mut self, x: &[f32], logits: &[f32]) -> Result<()> {
        let (hidden, experts) = (self.shape.hidden, self.shape.experts);
        let tokens = logits.len() / experts;
        if x.len() != tokens * hidden || logits.len() != tokens * experts {
            return Err(Error::usage(
                "input",
                format!(
                    "{} values of x and {} logits are not [tokens, {hidden}] and [tokens, {experts}]",
                    x.len(),
                    logits.len()
                ),
            ));
        }
        let tokens = u32::try_from(tokens).unwrap_or(u32::MAX);
        if tokens > self.max_tokens {
            return Err(Error::usage(
                "tokens",
                format!("{tokens} exceed the {} that there is room for", self.max_tokens),
            ));
        }
        let backend = self.backend;
        if self.batch.as_ref().is_none_or(|(before, _)| *before != tokens) {
            let plan = backend.plan(&self.shape, tokens, self.weights)?;
            self.forget(&mut backend.launcher());
            self.batch = Some((tokens, plan));
        }
        let mut launcher = backend.launcher();
        let narrow = converted(x, |v| bf16::from_f32(v).to_ne_bytes());
        launcher.upload(self.x, &narrow)?;
        launcher.upload(self.logits, &converted(logits, f32::to_ne_bytes))
    }

    fn run(&mut self, stage: Stage, set: usize) -> Result<()> {
        let mut launcher = self.backend.launcher();
        self.launch(&mut *launcher, stage, set, self.logits)?;
        launcher.synchronize()?;
        self.status(&mut *launcher)
    }

    fn time(&mut self, stage: Stage, sets: &[usize]) -> Result<Option<u64>> {
        let backend = self.backend;
        let mut launcher = backend.launcher();
        let mut total = 0.0;
        for &set in sets {
            let recording = if let Some(recording) = self.recordings.get(&(stage, set)) {
                *recording
            } else {
                let made = launcher.record(&mut |l| self.launch(l, stage, set, self.logits))?;
                let Some(made) = made else { return Ok(None) };
                self.recordings.insert((stage, set), made);
                made
            };
            let Some(cooling) = self.cool(&mut launcher)? else { return Ok(None) };
            total += launcher.time(recording, Some(cooling))?;
        }
        Ok(Some(whole_ns(total)))
    }

    fn set_routings(&mut self, x: &[f32], logits: &[&[f32]]) -> Result<()> {
        let first = logits.first().copied().unwrap_or_default();
        if logits.iter().any(|l| l.len() != first.len()) {
            return Err(Error::usage("router logits", "routings of one input differ in length"));
        }
        self.set_input(x, first)?;
        let each = first.len() as u64 * 4;
        let backend = self.backend;
        let mut launcher = backend.launcher();
        // Parts start where kernels may read 16 bytes at once.
        let stride = each.next_multiple_of(256).max(256);
        let memory = self.make_room(&mut launcher, stride * logits.len().max(1) as u64)?;
        self.routings.clear();
        for (at, logits) in (0..).step_by(usize::try_from(stride).unwrap_or(256)).zip(logits) {
            let part = memory.part(at, each)?;
            launcher.upload(part, &converted(logits, f32::to_ne_bytes))?;
            self.routings.push(part);
        }
        Ok(())
    }

    fn choose_routing(&mut self, routing: usize) -> Result<()> {
        let from = self.routings.get(routing).copied().ok_or_else(|| unknown_routing(routing))?;
        self.backend.launcher().copy(from, self.logits)
    }

    fn time_series(&mut self, stage: Stage, turns: &[Turn]) -> Result<Option<u64>> {
        let mut launcher = self.backend.launcher();
        let key = (stage, turns.to_vec());
        let recording = if let Some(recording) = self.series.get(&key) {
            *recording
        } else {
            let made = launcher.record(&mut |l| {
                turns.iter().try_for_each(|turn| {
                    let logits = self.routings.get(turn.routing).copied();
                    let logits = logits.ok_or_else(|| unknown_routing(turn.routing))?;
                    self.launch(l, stage, turn.set, logits)
                })
            })?;
            let Some(made) = made else { return Ok(None) };
            self.series.insert(key, made);
            made
        };
        Ok(Some(whole_ns(launcher.time(recording, None)?)))
    }

    fn plan(&self) -> Option<String> {
        self.batch.as_ref().map(|(_, plan)| plan.to_string())
    }

    fn routed(&mut self) -> Result<Routed> {
        let (tokens, _) = self.batch()?;
        let pairs = *tokens as usize * self.shape.top_k;
        let mut launcher = self.backend.launcher();
        let mut words = |piece| -> Result<Vec<[u8; 4]>> {
            let mut bytes = vec![0; 4 * pairs];
            launcher.download(self.workspace.piece(piece)?, &mut bytes)?;
            Ok(bytes.as_chunks::<4>().0.to_vec())
        };
        let ids = words(Piece::TopkIds)?.into_iter().map(u32::from_ne_bytes).collect();
        let weights = words(Piece::TopkWeights)?.into_iter().map(f32::from_ne_bytes).collect();
        Ok(Routed { ids, weights })
    }

    fn output(&mut self) -> Result<Vec<f32>> {
        let (tokens, _) = self.batch()?;
        let mut bytes = vec![0; *tokens as usize * self.shape.hidden * 2];
        self.backend.launcher().download(self.out, &mut bytes)?;
        Ok(bytes.as_chunks::<2>().0.iter().map(|&b| bf16::from_ne_bytes(b).to_f32()).collect())
    }

    fn poison(&mut self) -> Result<()> {
        let mut launcher = self.backend.launcher();
        // Counters are zero between launches and put back by the kernels; all else may hold anything.
        let kept = [Piece::Header, Piece::Tickets];
        for piece in Piece::ALL.into_iter().filter(|piece| !kept.contains(piece)) {
            if let Ok(region) = self.workspace.piece(piece) {
                launcher.fill(region, 0xff)?;
            }
        }
        launcher.fill(self.out, 0xff)
    }
}

impl<L: Launcher> Drop for GpuLayer<'_, L> {
    fn drop(&mut self) {
        let backend = self.backend;
        let mut launcher = backend.launcher();
        self.forget(&mut launcher);
        for recording in self.cooling.drain(..) {
            launcher.forget(recording);
        }
        // What cannot be given back goes with the device; there is nobody to tell here.
        for region in self.owned.drain(..) {
            let _ = launcher.free(region);
        }
        if let Some(region) = self.routing_memory.take() {
            let _ = launcher.free(region);
        }
        let _ = self.workspace.clone().free(&mut *launcher);
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a duration in nanoseconds; the cast saturates"
)]
fn whole_ns(ns: f64) -> u64 {
    ns.round() as u64
}

fn unknown_routing(routing: usize) -> Error {
    Error::usage("routing", format!("{routing} is not there"))
}

fn unknown_set(set: usize, sets: usize) -> Error {
    Error::usage("weight set", format!("{set} of {sets}"))
}

/// Weights as they lie in device memory.
fn bytes_of_weights(data: &WeightData) -> Cow<'_, [u8]> {
    match data {
        WeightData::Fp8(blocks) => Cow::Borrowed(blocks.codes()),
        WeightData::Bf16(values) => Cow::Owned(converted(values, bf16::to_ne_bytes)),
        // Refused by `options_for`.
        WeightData::F32(_) | WeightData::F16(_) | WeightData::Int8(_) => Cow::Borrowed(&[]),
    }
}

fn bytes_of<const N: usize>(values: impl Iterator<Item = [u8; N]>) -> Vec<u8> {
    values.flatten().collect()
}

/// Values as the device reads them, by all threads: gigabytes of weights are waited for.
fn converted<T: Copy + Sync, const N: usize>(values: &[T], of: fn(T) -> [u8; N]) -> Vec<u8> {
    const PIECE: usize = 1 << 16;
    let mut bytes = vec![0; N * values.len()];
    let pieces = bytes.par_chunks_mut(N * PIECE).zip(values.par_chunks(PIECE));
    pieces.for_each(|(bytes, values)| {
        for (to, value) in bytes.as_chunks_mut::<N>().0.iter_mut().zip(values) {
            *to = of(*value);
        }
    });
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::{Capsule, CapsuleOptions, DeviceFacts};
    use crate::kernels::Fp8Weights;

    const SHAPE: MoeShape = MoeShape { experts: 2, top_k: 1, hidden: 16, inter: 32, gated: true };
    const FACTS: DeviceFacts = DeviceFacts { l2_bytes: 1 << 10, ..DeviceFacts::H100 };

    fn layer(shape: MoeShape) -> LayerWeights {
        let values = |n: Option<usize>| WeightData::F32(vec![0.5; n.unwrap()].into());
        LayerWeights::new(shape, values(shape.w13_len()), values(shape.w2_len())).unwrap()
    }

    fn narrow(shape: MoeShape) -> LayerWeights {
        let data = |n: Option<usize>, rows, k| {
            WeightData::Fp8(Fp8Weights::quantize(&vec![0.5; n.unwrap()], rows, k).unwrap())
        };
        let (w13, w2) = (shape.w13_len(), shape.w2_len());
        let (w13, w2) = (data(w13, shape.inter, shape.hidden), data(w2, shape.hidden, shape.inter));
        LayerWeights::new(shape, w13, w2).unwrap()
    }

    fn refused(sets: &[LayerWeights]) -> String {
        let capsule = Capsule::new(FACTS, CapsuleOptions::new("none")).unwrap();
        let backend = GpuBackend::new(capsule, "none".into(), MoeOptions::default()).unwrap();
        let loaded = backend.load(sets, &RouterSpec::softmax(), 4);
        let error = loaded.err().unwrap();
        assert_eq!(error.exit_code(), 2);
        error.to_string()
    }

    #[test]
    fn weights_without_kernels_are_refused_by_their_format() {
        assert!(refused(&[layer(SHAPE)]).contains("bf16 and fp8 weights, not f32"));
        assert!(refused(&[layer(SHAPE).quantized().unwrap()]).contains("not int8"));
        assert!(refused(&[narrow(SHAPE), layer(SHAPE)]).contains("one shape and format"));
        let odd = MoeShape { hidden: 24, ..SHAPE };
        assert!(refused(&[narrow(odd)]).contains("no multiple of 16"));
        assert!(refused(&[]).contains("at least one set"));
    }

    #[test]
    fn plans_follow_the_format_of_the_weights() {
        let capsule = Capsule::new(FACTS, CapsuleOptions::new("none")).unwrap();
        let backend = GpuBackend::new(capsule, "none".into(), MoeOptions::default()).unwrap();
        let up = |weights| backend.plan(&SHAPE, 1, weights).map(|plan| plan.up.name);
        assert_eq!(up(DType::Bf16).unwrap(), "gemv_bf16_up");
        assert_eq!(up(DType::Fp8).unwrap(), "gemv_w8_up");
        assert_eq!(up(DType::Int8).unwrap_err().exit_code(), 2);
        let sets = [narrow(SHAPE), narrow(SHAPE)];
        let mut layer = backend.load(&sets, &RouterSpec::softmax(), 2).unwrap();
        layer.set_input(&[0.0; 16], &[0.0, 1.0]).unwrap();
        assert!(layer.plan().unwrap().starts_with("gemv_w8_up + gemv_w8_down"));
    }
}
