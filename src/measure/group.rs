//! Times of a group of ranks: expert exchange with the experts in the middle, and collectives.
//!
//! Every rank does the same steps. An iteration begins at a barrier; its time is the slowest rank's. Blocks of
//! iterations give medians, and those the interval, as for one device; but the blocks are of one process a rank
//! and share its bias. Routing and data follow from the seed, so that every rank knows all of them; their
//! checksums are compared, and outputs are held to the reference.

use half::bf16;
use serde::{Deserialize, Serialize};

use super::data;
use super::timing::{Clock, MonotonicClock};
use crate::comm::{Group, texts};
use crate::config::DType;
use crate::files::sha256_hex;
use crate::kernels::exchange::{
    Copies, Dispatched, Layout, Placement, Received, Wire, combine, dispatch,
};
use crate::kernels::{
    LayerWeights, LoadedLayer, MoeBackend, MoeShape, Routed, RouterSpec, Stage, reference,
};
use crate::record::group::{Collective, CollectiveRecord, ExchangeRecord, GroupTiming};
use crate::stats::interval::{MIN_BLOCKS, median, median_interval};
use crate::units::whole_part;
use crate::workload::RoutingKind;
use crate::{Error, Result};

/// Iterations of a block.
const LEAST_ITERATIONS: usize = 5;
const MOST_ITERATIONS: usize = 200;
/// Pairs of a chain: as many as nothing but the first notices how they began.
const CHAIN: usize = 16;
/// Tokens of each rank whose outputs are held to the reference.
const CHECKED_TOKENS: usize = 2;
/// Rounding of sums on the way, in multiples of what the reference allows one rank.
const EXCHANGE_SLACK: f64 = 1.0;
/// Unit roundoff of bf16.
const BF16: f64 = 1.0 / 256.0;

/// What a group measures.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GroupRequest {
    /// (hidden, inter) of the layers.
    pub widths: Vec<(usize, usize)>,
    /// Experts of the layers, over all ranks. Without any no exchange is measured.
    pub experts: Vec<usize>,
    /// Experts per token.
    pub top_k: usize,
    /// Tokens that enter on each rank.
    pub tokens: Vec<usize>,
    /// Storage of the weights.
    pub dtype: DType,
    /// How tokens choose experts.
    pub routing: RoutingKind,
    /// Seed of everything random.
    pub seed: u64,
    /// How often a row is sent.
    pub copies: Copies,
    /// Collectives that are measured by themselves.
    pub collectives: Vec<Collective>,
    /// At these sizes.
    pub bytes: Vec<usize>,
    /// Busy time of a block, in nanoseconds.
    pub block_ns: u64,
}

impl GroupRequest {
    /// Cells that it asks for.
    pub fn cells(&self) -> usize {
        self.widths.len() * self.experts.len() * self.tokens.len()
            + self.collectives.len() * self.bytes.len()
    }

    fn wire(&self) -> Wire {
        if self.dtype == DType::F32 { Wire::F32 } else { Wire::Bf16 }
    }
}

/// Something that a rank says while it measures.
pub trait Listener {
    /// What is begun now, and how long it may take at most, in seconds.
    ///
    /// # Errors
    /// Whatever ends the run.
    fn at(&mut self, what: &str, seconds: f64) -> Result<()>;

    /// An exchange was measured.
    ///
    /// # Errors
    /// Whatever ends the run.
    fn exchange(&mut self, record: ExchangeRecord) -> Result<()>;

    /// A collective was measured.
    ///
    /// # Errors
    /// Whatever ends the run.
    fn collective(&mut self, record: CollectiveRecord) -> Result<()>;
}

/// Longest time of a step whose duration is not known yet.
pub const STEP_S: f64 = 10.0;
/// The same in multiples of what is expected.
const FACTOR: f64 = 100.0;
/// For drawing weights, and for the reference of a few tokens.
const DRAWING_S: f64 = 600.0;
const CHECKING_S: f64 = 60.0;

/// Checks that all ranks say the same, and names the one that does not.
///
/// # Errors
/// [`Error::Unfit`] naming rank, host and what differs.
pub fn agree(group: &dyn Group, hosts: &[String], facts: &[(&str, String)]) -> Result<()> {
    for (what, own) in facts {
        let all = texts(group, &sha256_hex(own))?;
        let differs = all.iter().position(|other| *other != all[0]);
        // Shown by the ranks themselves: hashes tell nobody anything.
        let shown = texts(group, own)?;
        if let Some(rank) = differs {
            let host = |rank: usize| hosts.get(rank).map_or("", String::as_str);
            return Err(Error::unfit(
                format!("rank {rank} on {}", host(rank)),
                format!(
                    "has another {what}: `{}`; rank 0 on {} has `{}`",
                    shown[rank],
                    host(0),
                    shown[0]
                ),
            ));
        }
    }
    Ok(())
}

/// Measures everything that is asked for.
///
/// # Errors
/// [`Error::Device`] when the group or a device fails, or when a rank has other data or another output than it
/// should; [`Error::Usage`] for sizes that make no layer.
pub fn measure(
    (group, hosts): (&dyn Group, &[String]),
    backend: &dyn MoeBackend,
    request: &GroupRequest,
    listener: &mut dyn Listener,
) -> Result<()> {
    let clock = MonotonicClock::default();
    let bench = Bench { group, hosts, clock: &clock, block_ns: request.block_ns };
    for &kind in &request.collectives {
        for &bytes in &request.bytes {
            let record = bench.collective(kind, bytes, listener)?;
            listener.collective(record)?;
        }
    }
    for &(hidden, inter) in &request.widths {
        for &experts in &request.experts {
            let shape = MoeShape { experts, top_k: request.top_k, hidden, inter, gated: true };
            listener.at("drawing weights", DRAWING_S)?;
            let whole = data::weights(shape, request.dtype, request.seed)?;
            let placement = Placement { experts, ranks: group.size() };
            let local = whole.experts(placement.experts_of(group.rank()))?;
            // Some draw faster than others.
            listener.at("waiting until all have drawn weights", DRAWING_S)?;
            group.barrier()?;
            for &tokens in &request.tokens {
                let cell = Cell::new(request, shape, tokens, group)?;
                let record = bench.exchange(backend, (&whole, local.as_ref()), &cell, listener)?;
                listener.exchange(record)?;
            }
        }
    }
    Ok(())
}

/// One layer and its tokens on this rank.
struct Cell<'a> {
    request: &'a GroupRequest,
    shape: MoeShape,
    tokens: usize,
    layout: Layout,
    x: Vec<f32>,
    routed: Routed,
    /// Rows of the busiest rank over the mean.
    busiest_over_mean: f64,
    /// Checksum over the seed and the routing of all ranks.
    checksum: String,
}

impl<'a> Cell<'a> {
    fn new(
        request: &'a GroupRequest,
        shape: MoeShape,
        tokens: usize,
        group: &dyn Group,
    ) -> Result<Self> {
        let (ranks, rank, top_k) = (group.size(), group.rank(), shape.top_k);
        let all =
            tokens.checked_mul(ranks).filter(|n| n.checked_mul(top_k * shape.hidden).is_some());
        let all =
            all.ok_or_else(|| Error::usage("--tokens", format!("{tokens} on {ranks} ranks")))?;
        let seed = request.seed ^ (tokens as u64) << 20 ^ (shape.experts as u64) << 40;
        let ids = request.routing.sample(all, shape.experts, top_k, seed)?.ids;
        let placement = Placement { experts: shape.experts, ranks };
        let mut rows = vec![0_usize; ranks];
        for &id in &ids {
            rows[placement.owner(id as usize)] += 1;
        }
        let busiest = rows.iter().max().copied().unwrap_or(0);
        // Weights follow from the seed; few tokens may be routed alike by two seeds.
        let mut bytes = seed.to_le_bytes().to_vec();
        bytes.extend(ids.iter().flat_map(|id| id.to_le_bytes()));
        let own = rank * tokens * top_k..(rank + 1) * tokens * top_k;
        let weights = vec![1.0 / top_k as f32; own.len()];
        let x = data::normals(seed ^ (rank as u64 + 1), tokens * shape.hidden);
        // Rounded once before, so that the reference has the input that arrives.
        let x = x.into_iter().map(|v| bf16::from_f32(v).to_f32()).collect();
        let (copies, wire) = (request.copies, request.wire());
        Ok(Self {
            request,
            shape,
            tokens,
            layout: Layout { placement, top_k, hidden: shape.hidden, copies, wire },
            x,
            routed: Routed { ids: ids[own].to_vec(), weights },
            busiest_over_mean: busiest as f64 * ranks as f64 / ids.len().max(1) as f64,
            checksum: sha256_hex(bytes),
        })
    }

    fn name(&self) -> String {
        let MoeShape { experts, hidden, inter, .. } = self.shape;
        format!("{experts} experts of {hidden} x {inter}, {} tokens a rank", self.tokens)
    }
}

/// What all cells have in common.
struct Bench<'a> {
    group: &'a dyn Group,
    hosts: &'a [String],
    clock: &'a MonotonicClock,
    block_ns: u64,
}

/// Times of one phase: of the slowest rank and of the fastest, a list a block.
#[derive(Default)]
struct Times {
    slowest: Vec<Vec<u64>>,
    fastest: Vec<Vec<u64>>,
}

impl Times {
    fn timing(&self) -> Result<GroupTiming> {
        let medians = |blocks: &[Vec<u64>]| {
            let of =
                |block: &Vec<u64>| median(&block.iter().map(|t| *t as f64).collect::<Vec<_>>());
            blocks.iter().filter_map(of).collect::<Vec<f64>>()
        };
        let unfit = || Error::unfit("group", "nothing was measured");
        let interval = median_interval(&medians(&self.slowest)).ok_or_else(unfit)?;
        let fastest = median(&medians(&self.fastest)).ok_or_else(unfit)?;
        let ps = |ns: f64| whole_part((ns * 1000.0).round()) as u64;
        Ok(GroupTiming {
            median_ps: ps(interval.median),
            lo_ps: ps(interval.lo),
            hi_ps: ps(interval.hi),
            fastest_rank_ps: ps(fastest),
            samples: self.slowest.iter().map(Vec::len).sum(),
        })
    }
}

impl Bench<'_> {
    /// The slowest and the fastest rank's time of each iteration.
    fn over_ranks(&self, mut own: Vec<u64>, times: &mut Times) -> Result<()> {
        let mut turned: Vec<u64> = own.iter().map(|t| u64::MAX - t).collect();
        self.group.max(&mut own)?;
        self.group.max(&mut turned)?;
        times.slowest.push(own);
        times.fastest.push(turned.into_iter().map(|t| u64::MAX - t).collect());
        Ok(())
    }

    /// Iterations of a block, as rank 0 sees it, from the time of one.
    fn iterations(&self, ns: u64) -> Result<usize> {
        let wanted = whole_part(self.block_ns as f64 / ns.max(1) as f64);
        let mut bytes = (wanted.clamp(LEAST_ITERATIONS, MOST_ITERATIONS) as u64).to_le_bytes();
        self.group.broadcast(0, &mut bytes)?;
        Ok(usize::try_from(u64::from_le_bytes(bytes)).unwrap_or(LEAST_ITERATIONS))
    }

    /// Nanoseconds of one run of something that begins everywhere at once.
    fn once(&self, mut work: impl FnMut() -> Result<()>) -> Result<u64> {
        self.group.barrier()?;
        let start = self.clock.now_ns();
        work()?;
        let host = self.clock.now_ns().saturating_sub(start);
        Ok(self.group.last_ns().unwrap_or(host))
    }

    /// Blocks of iterations of `work`, each of which does `each` at once.
    fn blocks(
        &self,
        (what, each): (&str, usize),
        listener: &mut dyn Listener,
        mut work: impl FnMut() -> Result<()>,
    ) -> Result<GroupTiming> {
        listener.at(what, STEP_S)?;
        self.once(&mut work)?;
        let ns = self.once(&mut work)?;
        let iterations = self.iterations(ns)?;
        let expected = ns as f64 * 1e-9 * iterations as f64;
        let mut times = Times::default();
        for block in 0..MIN_BLOCKS {
            listener.at(&format!("{what}, block {block}"), STEP_S.max(FACTOR * expected))?;
            let mut own = Vec::with_capacity(iterations);
            for _ in 0..iterations {
                own.push(self.once(&mut work)? / each as u64);
            }
            self.over_ranks(own, &mut times)?;
        }
        times.timing()
    }

    fn collective(
        &self,
        kind: Collective,
        bytes: usize,
        listener: &mut dyn Listener,
    ) -> Result<CollectiveRecord> {
        let ranks = self.group.size();
        // Whole values of four bytes on every rank.
        let values = (bytes / 4 / ranks).max(1) * ranks;
        let bytes = values * 4;
        let share = bytes / ranks;
        let what = format!("{} of {bytes} bytes", kind.label());
        let mut operation = Operation::new(kind, values, self.group);
        listener.at(&what, STEP_S)?;
        operation.check(self.group).map_err(|why| self.wrong(&why))?;
        let parts = vec![share; ranks];
        let time = self.blocks((&what, 1), listener, || operation.run(self.group, &parts))?;
        let algbw = bytes as f64 / (time.median_ps as f64 * 1e-12) / 1e9;
        Ok(CollectiveRecord {
            kind,
            bytes,
            time,
            algbw_gb_per_s: algbw,
            busbw_gb_per_s: algbw * kind.bus_factor(ranks),
        })
    }

    fn wrong(&self, why: &str) -> Error {
        let rank = self.group.rank();
        let host = self.hosts.get(rank).map_or("", String::as_str);
        Error::device(format!("rank {rank} on {host}"), why)
    }

    fn exchange(
        &self,
        backend: &dyn MoeBackend,
        (whole, local): (&LayerWeights, Option<&LayerWeights>),
        cell: &Cell,
        listener: &mut dyn Listener,
    ) -> Result<ExchangeRecord> {
        let (group, name) = (self.group, cell.name());
        listener.at(&format!("meeting for {name}"), STEP_S)?;
        let all = texts(group, &cell.checksum)?;
        if let Some(rank) = all.iter().position(|other| *other != all[0]) {
            let host = self.hosts.get(rank).map_or("", String::as_str);
            let reason = "has another checksum of seed and routing than rank 0";
            return Err(Error::device(format!("rank {rank} on {host}"), reason));
        }
        listener.at(&format!("checking {name}"), CHECKING_S)?;
        let (sent, rows) = dispatch(group, cell.layout, &cell.x, &cell.routed)?;
        let sets = local.map(std::slice::from_ref);
        let mut experts = Experts::load(backend, sets, rows.ids.len())?;
        experts.put(&rows)?;
        let y = experts.run()?;
        let out = combine(group, &sent, &y)?;
        let worst = self.check(backend, whole, cell, &out)?;
        let sent_rows = self.rows(&sent)?;
        let chain = |n: usize| -> Result<()> {
            for _ in 0..n {
                let (sent, rows) = dispatch(group, cell.layout, &cell.x, &cell.routed)?;
                combine(group, &sent, &rows.x)?;
            }
            Ok(())
        };
        let phase = |what: &str| format!("{what} of {name}");
        let dispatching = self.blocks((&phase("dispatch"), 1), listener, || {
            dispatch(group, cell.layout, &cell.x, &cell.routed).map(drop)
        })?;
        let expert = self.blocks((&phase("experts"), 1), listener, || experts.stages())?;
        let combining =
            self.blocks((&phase("combine"), 1), listener, || combine(group, &sent, &y).map(drop))?;
        let pair = self.blocks((&phase("pair"), CHAIN), listener, || chain(CHAIN))?;
        let layer = self.blocks((&phase("layer"), 1), listener, || {
            let (sent, rows) = dispatch(group, cell.layout, &cell.x, &cell.routed)?;
            experts.put(&rows)?;
            let y = experts.run()?;
            combine(group, &sent, &y).map(drop)
        })?;
        let ranks = group.size() as f64;
        let bytes = (sent_rows.0 * cell.shape.hidden * cell.layout.wire.bytes()) as f64 / ranks;
        let request = cell.request;
        Ok(ExchangeRecord {
            hidden: cell.shape.hidden,
            inter: cell.shape.inter,
            experts: cell.shape.experts,
            top_k: cell.shape.top_k,
            tokens_per_rank: cell.tokens,
            dtype: request.dtype,
            routing: request.routing.to_string(),
            seed: format!("{:#x}", request.seed),
            copies: match request.copies {
                Copies::TokenExpert => "token_expert".into(),
                Copies::TokenRank => "token_rank".into(),
            },
            wire_bits: 8 * u32::try_from(cell.layout.wire.bytes()).unwrap_or(0),
            busiest_over_mean: cell.busiest_over_mean,
            rows_sent: sent_rows.0,
            rows_own: sent_rows.1,
            logical_bytes_per_rank: bytes,
            logical_gb_per_s: 2.0 * bytes / (pair.median_ps as f64 * 1e-12) / 1e9,
            dispatch: dispatching,
            expert,
            combine: combining,
            pair,
            layer,
            worst_ratio_to_bound: worst,
        })
    }

    /// Rows that all ranks send, and of them those that stay.
    fn rows(&self, sent: &Dispatched) -> Result<(usize, usize)> {
        let own = [sent.sent().iter().sum(), sent.sent()[self.group.rank()]];
        let bytes: Vec<u8> = own.iter().flat_map(|n: &usize| (*n as u64).to_le_bytes()).collect();
        let mut all = vec![0; 16 * self.group.size()];
        self.group.all_gather(&bytes, &mut all)?;
        let sum = |at: usize| {
            all.chunks_exact(16)
                .filter_map(|b| b[at..at + 8].try_into().ok().map(u64::from_le_bytes))
                .filter_map(|n| usize::try_from(n).ok())
                .sum()
        };
        Ok((sum(0), sum(8)))
    }

    /// Holds the outputs of some tokens to the reference; the worst of all ranks. A rank beyond the bound is
    /// named.
    fn check(
        &self,
        backend: &dyn MoeBackend,
        whole: &LayerWeights,
        cell: &Cell,
        out: &[f32],
    ) -> Result<f64> {
        let (hidden, top_k) = (cell.shape.hidden, cell.shape.top_k);
        let rounded = if cell.layout.wire == Wire::Bf16 { BF16 } else { 0.0 };
        let arithmetic = backend.arithmetic(whole.dtype());
        let mut worst = 0.0_f64;
        for token in 0..cell.tokens.min(CHECKED_TOKENS) {
            let (x, pairs) =
                (token * hidden..(token + 1) * hidden, token * top_k..(token + 1) * top_k);
            let routed = Routed {
                ids: cell.routed.ids[pairs.clone()].to_vec(),
                weights: cell.routed.weights[pairs].to_vec(),
            };
            let exact = reference::layer_in(whole, &cell.x[x.clone()], &routed, arithmetic);
            // What rounding to bf16 on the way takes, by the largest value of the token.
            let largest = exact.iter().fold(0.0_f64, |m, e| m.max(e.value.abs()));
            for (value, exact) in out[x].iter().zip(&exact) {
                let bound = (1.0 + EXCHANGE_SLACK) * exact.bound
                    + 2.0 * rounded * largest.max(exact.value.abs())
                    + f64::from(f32::MIN_POSITIVE);
                let ratio = (f64::from(*value) - exact.value).abs() / bound;
                // A NaN is beyond every bound.
                worst = worst.max(if ratio.is_nan() { f64::INFINITY } else { ratio });
            }
        }
        let fails = u64::from(worst > 1.0);
        let mut all = vec![0; 16 * self.group.size()];
        let own = [fails.to_le_bytes(), worst.to_bits().to_le_bytes()].concat();
        self.group.all_gather(&own, &mut all)?;
        let mut most = 0.0_f64;
        for (rank, of) in all.chunks_exact(16).enumerate() {
            let word = |at: usize| of[at..at + 8].try_into().map_or(1, u64::from_le_bytes);
            if word(0) != 0 {
                let host = self.hosts.get(rank).map_or("", String::as_str);
                let reason = "its output is wrong";
                return Err(Error::device(format!("rank {rank} on {host}"), reason));
            }
            most = most.max(f64::from_bits(word(8)));
        }
        Ok(most)
    }
}

/// The experts of this rank: rows that each visit one of them.
struct Experts<'a> {
    layer: Option<(Box<dyn LoadedLayer + 'a>, MoeShape)>,
    logits: Vec<f32>,
}

impl<'a> Experts<'a> {
    fn load(
        backend: &'a dyn MoeBackend,
        sets: Option<&'a [LayerWeights]>,
        rows: usize,
    ) -> Result<Self> {
        let Some(sets) = sets else { return Ok(Self { layer: None, logits: Vec::new() }) };
        let layer = backend.load(sets, &RouterSpec::softmax(), rows.max(1))?;
        Ok(Self { layer: Some((layer, sets[0].shape)), logits: Vec::new() })
    }

    /// Puts rows in place, with logits that send each to its expert.
    fn put(&mut self, rows: &Received) -> Result<()> {
        let Some((layer, shape)) = &mut self.layer else { return Ok(()) };
        self.logits.clear();
        self.logits.resize(rows.ids.len() * shape.experts, -8.0);
        for (logits, &id) in self.logits.chunks_exact_mut(shape.experts).zip(&rows.ids) {
            logits[id as usize] = 8.0;
        }
        layer.set_input(&rows.x, &self.logits)?;
        layer.run(Stage::Router, 0)
    }

    /// Runs them on the rows in place.
    fn stages(&mut self) -> Result<()> {
        let Some((layer, _)) = &mut self.layer else { return Ok(()) };
        for stage in [Stage::Align, Stage::GateUp, Stage::Down, Stage::Combine] {
            layer.run(stage, 0)?;
        }
        Ok(())
    }

    /// The same, with what comes out.
    fn run(&mut self) -> Result<Vec<f32>> {
        self.stages()?;
        self.layer.as_mut().map_or_else(|| Ok(Vec::new()), |(layer, _)| layer.output())
    }
}

/// A collective with its buffers.
struct Operation {
    kind: Collective,
    floats: Vec<f32>,
    share: Vec<f32>,
    bytes: Vec<u8>,
    other: Vec<u8>,
}

impl Operation {
    fn new(kind: Collective, values: usize, group: &dyn Group) -> Self {
        let (ranks, bytes) = (group.size(), values * 4);
        let is_sum = matches!(kind, Collective::AllReduce | Collective::ReduceScatter);
        let of = |n: usize, is: bool| if is { n } else { 0 };
        let own = match kind {
            Collective::AllGather => bytes / ranks,
            _ => of(bytes, !is_sum),
        };
        Self {
            kind,
            // Sums of zeros stay what they are, however often they are taken.
            floats: vec![0.0; of(values, is_sum)],
            share: vec![0.0; of(values / ranks, kind == Collective::ReduceScatter)],
            bytes: vec![1; own],
            other: vec![0; of(bytes, !is_sum)],
        }
    }

    fn run(&mut self, group: &dyn Group, parts: &[usize]) -> Result<()> {
        match self.kind {
            Collective::AllReduce => group.all_reduce(&mut self.floats),
            Collective::ReduceScatter => group.reduce_scatter(&self.floats, &mut self.share),
            Collective::AllGather => group.all_gather(&self.bytes, &mut self.other),
            Collective::AllToAll => {
                group.all_to_all_v((&self.bytes, parts), (&mut self.other, parts))
            }
        }
    }

    /// Whether it does what it should, on small integers, which floats add up exactly.
    fn check(&mut self, group: &dyn Group) -> Result<(), String> {
        let (rank, ranks) = (group.rank(), group.size());
        let sum = (ranks * (ranks + 1) / 2) as f32;
        let word = |rank: usize| u8::try_from(rank % 251).unwrap_or(0);
        self.floats.fill(rank as f32 + 1.0);
        self.bytes.fill(word(rank));
        let share = self.other.len() / ranks;
        self.run(group, &vec![share; ranks]).map_err(|e| e.to_string())?;
        let in_order = |bytes: &[u8]| {
            bytes.chunks(share.max(1)).enumerate().all(|(r, b)| b.iter().all(|v| *v == word(r)))
        };
        let sums = |values: &[f32]| values.iter().all(|v| v.to_bits() == sum.to_bits());
        let is_right = match self.kind {
            Collective::AllReduce => sums(&self.floats),
            Collective::ReduceScatter => sums(&self.share),
            Collective::AllGather | Collective::AllToAll => in_order(&self.other),
        };
        self.floats.fill(0.0);
        if is_right { Ok(()) } else { Err(format!("{} gave a wrong result", self.kind.label())) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::comm::threads;
    use crate::kernels::cpu::CpuBackend;

    fn request() -> GroupRequest {
        GroupRequest {
            widths: vec![(64, 96)],
            experts: vec![3, 8],
            top_k: 2,
            tokens: vec![1, 20],
            dtype: DType::Bf16,
            routing: "zipf:1".parse().unwrap(),
            seed: 3,
            copies: Copies::TokenRank,
            collectives: Collective::ALL.to_vec(),
            bytes: vec![256, 4096],
            block_ns: 100_000,
        }
    }

    /// Keeps what it is told.
    #[derive(Default)]
    struct Kept {
        steps: usize,
        exchanges: Vec<ExchangeRecord>,
        collectives: Vec<CollectiveRecord>,
    }

    impl Listener for Kept {
        fn at(&mut self, _what: &str, seconds: f64) -> Result<()> {
            assert!(seconds >= STEP_S);
            self.steps += 1;
            Ok(())
        }
        fn exchange(&mut self, record: ExchangeRecord) -> Result<()> {
            self.exchanges.push(record);
            Ok(())
        }
        fn collective(&mut self, record: CollectiveRecord) -> Result<()> {
            self.collectives.push(record);
            Ok(())
        }
    }

    fn hosts(ranks: usize) -> Vec<String> {
        (0..ranks).map(|r| format!("h{}", r / 2)).collect()
    }

    #[test]
    fn a_group_measures_every_cell_with_its_slowest_and_fastest_rank() {
        for (copies, dtype) in [(Copies::TokenRank, DType::Bf16), (Copies::TokenExpert, DType::F32)]
        {
            let request = GroupRequest { dtype, copies, ..request() };
            let kept = threads::run(4, |group| {
                let mut kept = Kept::default();
                let backend = CpuBackend::new().with_threads(1).unwrap();
                measure((group, &hosts(4)), &backend, &request, &mut kept).unwrap();
                kept
            });
            let first = &kept[0];
            assert_eq!(first.exchanges.len() + first.collectives.len(), request.cells());
            for record in &first.exchanges {
                assert!(record.worst_ratio_to_bound <= 1.0);
                assert!(record.busiest_over_mean >= 1.0);
                assert!(record.rows_own <= record.rows_sent);
                if copies == Copies::TokenExpert {
                    assert_eq!(record.rows_sent, 4 * record.tokens_per_rank * 2);
                }
                for t in [record.dispatch, record.expert, record.combine, record.pair, record.layer]
                {
                    assert!(t.lo_ps <= t.median_ps && t.median_ps <= t.hi_ps);
                    assert!(t.fastest_rank_ps <= t.hi_ps && t.samples >= 30);
                }
            }
            for record in &first.collectives {
                let seconds = record.time.median_ps as f64 * 1e-12;
                let algbw = record.bytes as f64 / seconds / 1e9;
                assert!((record.algbw_gb_per_s / algbw - 1.0).abs() < 1e-12);
                let factor = if record.kind == Collective::AllReduce { 1.5 } else { 0.75 };
                assert!((record.busbw_gb_per_s / algbw - factor).abs() < 1e-12);
            }
            // All ranks have come to the same times.
            assert!(kept.iter().all(|k| k.exchanges == first.exchanges && k.steps == first.steps));
        }
    }

    #[test]
    fn ranks_that_differ_are_refused_by_rank_and_host() {
        let errors = threads::run(4, |group| {
            let kernel = if group.rank() == 2 { "b" } else { "a" };
            let facts = [("program", "x".to_owned()), ("kernel", kernel.to_owned())];
            agree(group, &hosts(4), &facts).unwrap_err()
        });
        for error in errors {
            let text = error.to_string();
            assert_eq!(error.exit_code(), 4);
            assert!(text.contains("rank 2 on h1") && text.contains("kernel: `b`"), "{text}");
        }
    }

    #[test]
    fn another_routing_on_one_rank_ends_the_group() {
        let errors = threads::run(2, |group| {
            let seed = 3 + group.rank() as u64;
            let request = GroupRequest { seed, collectives: vec![], ..request() };
            let backend = CpuBackend::new().with_threads(1).unwrap();
            let group: &dyn Group = group;
            measure((group, &hosts(2)), &backend, &request, &mut Kept::default()).unwrap_err()
        });
        for error in errors {
            assert_eq!(error.exit_code(), 6);
            assert!(error.to_string().contains("rank 1 on h0: has another checksum"), "{error}");
        }
    }
}
