//! Rows of logits to chosen experts and weights: one source for every instruction set, with the ids and
//! the bits of [`mod@crate::kernels::reference`].
//!
//! A row's scores become keys ([`Keys`]) in segments of up to 64 experts, a model's expert groups being
//! segments of their own. Each segment's best keys are kept lane by lane, so that the next expert is the
//! highest lane of all segments, and only its own segment is looked through again.

#![expect(
    clippy::inline_always,
    reason = "code takes on the instruction set of its caller only when it is inlined into it"
)]

use super::Isa;
use super::keys::{self, Keys, LANES, LOWEST, Plain};
#[cfg(target_arch = "x86_64")]
use super::keys::{Avx2, Avx512};
use super::softmax::{Finish, ROWS, highest, power_sum, softmax};
use crate::config::Scoring;
use crate::kernels::math::{sigmoid, sqrt_softplus};
use crate::kernels::{MAX_EXPERTS, RouterSpec};

/// A router of valid settings.
#[derive(Clone, Copy)]
pub(crate) struct Router<'a> {
    /// Experts to choose from.
    pub(crate) experts: usize,
    /// Choices of a token.
    pub(crate) top_k: usize,
    /// Settings.
    pub(crate) spec: &'a RouterSpec,
}

/// Places in one register of keys.
const PLACES: u32 = 8;
const _: () = assert!(PLACES as usize == LANES, "one place a lane");
/// Registers of keys of one segment, unless groups of experts are larger.
const SEGMENT: usize = 8;
/// Most registers of keys of one row.
const MOST: usize = MAX_EXPERTS / LANES;

/// How a row's experts are dealt to segments.
#[derive(Clone, Copy)]
struct Segments {
    /// Number of segments.
    count: usize,
    /// Experts of one, the last possibly fewer.
    size: usize,
    /// Registers of one, as a power of two.
    log2_registers: u32,
}

impl Router<'_> {
    fn segments(&self) -> Segments {
        let (count, size) = match self.spec.config {
            c if c.scoring == Scoring::Prototype => (self.top_k, self.experts / self.top_k),
            c if c.n_group > 1 => (c.n_group, self.experts / c.n_group),
            _ if self.experts <= SEGMENT * LANES => (1, self.experts),
            _ => (self.experts.div_ceil(SEGMENT * LANES), SEGMENT * LANES),
        };
        let log2_registers = size.div_ceil(LANES).next_power_of_two().trailing_zeros();
        Segments { count, size, log2_registers }
    }

    /// Whether rows are chosen from here: only very many groups of very few experts are not.
    pub(crate) fn fits(&self) -> bool {
        self.segments().registers() <= MOST
    }

    /// Softmax, over all experts or over the chosen, of which the highest logits are chosen.
    fn is_plain(&self) -> bool {
        let c = &self.spec.config;
        matches!(c.scoring, Scoring::Softmax | Scoring::SoftmaxOverTopK)
            && c.n_group == 1
            && self.spec.bias.is_empty()
    }

    #[expect(clippy::cast_possible_truncation, reason = "weights are f32 by definition")]
    fn finish(&self) -> Finish {
        let config = &self.spec.config;
        Finish { renormalize: config.renormalize, scale: config.scaling_factor as f32 }
    }
}

impl Segments {
    const fn registers(self) -> usize {
        self.count << self.log2_registers
    }

    /// The expert at a place among the keys.
    #[inline(always)]
    const fn expert(self, place: u32) -> u32 {
        #[expect(clippy::cast_possible_truncation, reason = "at most the number of experts")]
        let size = self.size as u32;
        let shift = self.log2_registers + PLACES.trailing_zeros();
        (place >> shift) * size + (place & ((1 << shift) - 1))
    }
}

/// Chooses experts for all rows of `logits` `[tokens, experts]` into `ids` and `weights`
/// `[tokens, top_k]`. Says whether all logits are numbers; if not, the results are not to be used.
#[must_use]
pub(crate) fn route_rows(
    isa: Isa,
    router: Router,
    logits: &[f32],
    ids: &mut [u32],
    weights: &mut [f32],
) -> bool {
    let rows = Rows { router, logits, ids, weights };
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Amx | Isa::Avx512Bf16 | Isa::Avx512 if Isa::Avx512.is_available() => {
            // SAFETY: the processor has the features that the callee is compiled for.
            unsafe { rows_avx512(rows) }
        }
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 if isa.is_available() => {
            // SAFETY: the processor has the features that the callee is compiled for.
            unsafe { rows_avx2(rows) }
        }
        // SAFETY: plain integers need no instruction set.
        _ => unsafe { rows_in::<Plain>(rows) },
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,fma")]
fn rows_avx512(rows: Rows) -> bool {
    // SAFETY: this function is only reached where its features are there.
    unsafe { rows_in::<Avx512>(rows) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn rows_avx2(rows: Rows) -> bool {
    // SAFETY: this function is only reached where its features are there.
    unsafe { rows_in::<Avx2>(rows) }
}

struct Rows<'a> {
    router: Router<'a>,
    logits: &'a [f32],
    ids: &'a mut [u32],
    weights: &'a mut [f32],
}

/// Picks the size of the buffers: clearing those of 1,024 experts would take longer than a row of few.
#[inline(always)]
unsafe fn rows_in<K: Keys>(rows: Rows) -> bool {
    // SAFETY: the caller vouches for the instructions.
    unsafe {
        match (rows.router.is_plain(), rows.router.segments().registers()) {
            (true, ..=4) => rows.plain::<K, 4>(),
            (true, ..=32) => rows.plain::<K, 32>(),
            (true, _) => rows.plain::<K, MOST>(),
            (false, ..=32) => rows.any::<K, 32, { 32 * LANES }>(),
            (false, _) => rows.any::<K, MOST, { MOST * LANES }>(),
        }
    }
}

impl Rows<'_> {
    /// [`Router::is_plain`].
    #[inline(always)]
    unsafe fn plain<K: Keys, const N: usize>(self) -> bool {
        let Router { experts, top_k, spec } = self.router;
        let over_all = spec.config.scoring == Scoring::Softmax;
        let finish = self.router.finish();
        // SAFETY: the caller vouches for the instructions.
        let mut row_keys = unsafe { RowKeys::<K, N>::new(self.router.segments()) };
        let blocks = self.ids.chunks_mut(ROWS * top_k).zip(self.weights.chunks_mut(ROWS * top_k));
        for (logits, (ids, weights)) in self.logits.chunks(ROWS * experts).zip(blocks) {
            let rows = || logits.chunks_exact(experts);
            for ((row, ids), chosen) in
                rows().zip(ids.chunks_exact_mut(top_k)).zip(weights.chunks_exact_mut(top_k))
            {
                if has_nan(row) {
                    return false;
                }
                // SAFETY: the caller vouches for the instructions.
                unsafe {
                    row_keys.pack(row);
                    row_keys.choose(ids);
                }
                for (logit, &id) in chosen.iter_mut().zip(&*ids) {
                    *logit = row[id as usize];
                }
            }
            let (mut max, mut sums) = ([0.0; ROWS], [0.0; ROWS]);
            let results = max.iter_mut().zip(&mut sums);
            for ((row, chosen), (max, sum)) in rows().zip(weights.chunks_exact(top_k)).zip(results)
            {
                *max = chosen[0];
                *sum = power_sum(if over_all { row } else { chosen }, *max);
            }
            finish.shares(weights, top_k, &max, &sums);
        }
        true
    }

    /// Every mode: scores, then what the choice is made by, then the choice; a row at a time.
    #[inline(always)]
    unsafe fn any<K: Keys, const N: usize, const EXPERTS: usize>(self) -> bool {
        let Router { experts, top_k, spec } = self.router;
        let config = &spec.config;
        let finish = self.router.finish();
        // SAFETY: the caller vouches for the instructions.
        let mut row_keys = unsafe { RowKeys::<K, N>::new(self.router.segments()) };
        let (mut scores, mut biased) = ([0.0; EXPERTS], [0.0; EXPERTS]);
        let (scores, biased) = (&mut scores[..experts], &mut biased[..experts]);
        let outputs = self.ids.chunks_exact_mut(top_k).zip(self.weights.chunks_exact_mut(top_k));
        for (row, (ids, weights)) in self.logits.chunks_exact(experts).zip(outputs) {
            if has_nan(row) {
                return false;
            }
            self.router.scores(row, scores);
            let by_score = matches!(config.scoring, Scoring::Sigmoid | Scoring::SoftplusSqrt);
            let choice = if !spec.bias.is_empty() {
                for ((b, &score), bias) in biased.iter_mut().zip(&*scores).zip(&spec.bias) {
                    *b = score + bias;
                }
                &*biased
            } else if by_score {
                &*scores
            } else {
                // Softmax keeps the order of the logits but merges close ones by rounding.
                row
            };
            // SAFETY: the caller vouches for the instructions.
            unsafe {
                row_keys.pack(choice);
                if config.scoring == Scoring::Prototype {
                    row_keys.one_of_each(ids);
                } else {
                    if config.n_group > 1 {
                        row_keys.keep_best_segments(config.topk_group);
                    }
                    row_keys.choose(ids);
                }
            }
            for (w, &id) in weights.iter_mut().zip(&*ids) {
                *w = scores[id as usize];
            }
            if config.scoring == Scoring::SoftmaxOverTopK {
                let max = highest(weights);
                finish.shares(weights, top_k, &[max; ROWS], &[power_sum(weights, max); ROWS]);
            } else {
                finish.scores(weights);
            }
        }
        true
    }
}

impl Router<'_> {
    /// Score of each expert of a row as returned.
    #[inline(always)]
    fn scores(&self, row: &[f32], scores: &mut [f32]) {
        match self.spec.config.scoring {
            Scoring::Sigmoid => {
                scores.iter_mut().zip(row).for_each(|(s, &l)| *s = sigmoid(l));
            }
            Scoring::SoftplusSqrt => {
                scores.iter_mut().zip(row).for_each(|(s, &l)| *s = sqrt_softplus(l));
            }
            Scoring::SoftmaxOverTopK => scores.copy_from_slice(row),
            Scoring::Prototype => {
                let size = self.experts / self.top_k;
                let groups = row.chunks_exact(size).zip(scores.chunks_exact_mut(size));
                for (i, (group, scores)) in groups.enumerate() {
                    softmax(group, i * size, scores);
                }
            }
            Scoring::Softmax | Scoring::SparseMixer => softmax(row, 0, scores),
        }
    }
}

/// Whether a row has a value that is not a number, without a branch for each.
#[inline(always)]
fn has_nan(row: &[f32]) -> bool {
    row.iter().fold(0, |found, l| found | u32::from(l.is_nan())) != 0
}

/// The keys of one row, `N` registers at most.
struct RowKeys<K, const N: usize> {
    segments: Segments,
    /// `[segments][registers of one]`; those that no expert fills stay the lowest.
    keys: [K; N],
    /// The highest keys of each segment, lane by lane.
    best: [K; N],
}

impl<K: Keys, const N: usize> RowKeys<K, N> {
    #[inline(always)]
    unsafe fn new(segments: Segments) -> Self {
        // SAFETY: the caller vouches for the instructions.
        let lowest = unsafe { K::lowest() };
        Self { segments, keys: [lowest; N], best: [lowest; N] }
    }

    /// Takes the scores of all experts, none of which is NaN.
    #[inline(always)]
    unsafe fn pack(&mut self, scores: &[f32]) {
        let log2 = self.segments.log2_registers;
        let all = self.keys.chunks_exact_mut(1 << log2).zip(&mut self.best);
        let mut first = 0u32;
        for ((keys, best), scores) in all.zip(scores.chunks(self.segments.size)) {
            let (whole, tail) = scores.as_chunks::<LANES>();
            let mut place = first;
            // SAFETY: the caller vouches for the instructions.
            unsafe {
                *best = K::lowest();
                for (k, eight) in keys.iter_mut().zip(whole) {
                    *k = K::pack(eight, place);
                    *best = best.max(*k);
                    place += PLACES;
                }
                if let Some(k) = keys.get_mut(whole.len()).filter(|_| !tail.is_empty()) {
                    let mut few = [LOWEST; LANES];
                    for ((few, &score), place) in few.iter_mut().zip(tail).zip(place..) {
                        *few = keys::key(score, place);
                    }
                    *k = K::new(few);
                    *best = best.max(*k);
                }
            }
            first += PLACES << log2;
        }
    }

    /// The highest key of all segments.
    #[inline(always)]
    unsafe fn highest(&self) -> i64 {
        let mut best = self.best[0];
        for &segment in &self.best[1..self.segments.count] {
            // SAFETY: the caller vouches for the instructions.
            best = unsafe { best.max(segment) };
        }
        // SAFETY: the caller vouches for the instructions.
        unsafe { best.highest() }
    }

    /// Takes a key out.
    #[inline(always)]
    unsafe fn remove(&mut self, key: i64) {
        let register = keys::place(key) as usize / LANES;
        let log2 = self.segments.log2_registers;
        let segment = register >> log2;
        let keys = &mut self.keys[segment << log2..(segment + 1) << log2];
        let within = &mut keys[register & ((1 << log2) - 1)];
        // SAFETY: the caller vouches for the instructions.
        unsafe {
            *within = within.without(key);
            let mut best = keys[0];
            for &k in &keys[1..] {
                best = best.max(k);
            }
            self.best[segment] = best;
        }
    }

    /// The experts of the highest keys, highest first.
    #[inline(always)]
    unsafe fn choose(&mut self, ids: &mut [u32]) {
        let Some((last, others)) = ids.split_last_mut() else { return };
        // SAFETY: the caller vouches for the instructions.
        unsafe {
            for id in others {
                let key = self.highest();
                *id = self.segments.expert(keys::place(key));
                self.remove(key);
            }
            *last = self.segments.expert(keys::place(self.highest()));
        }
    }

    /// The best expert of each segment.
    #[inline(always)]
    unsafe fn one_of_each(&self, ids: &mut [u32]) {
        for (id, best) in ids.iter_mut().zip(&self.best) {
            // SAFETY: the caller vouches for the instructions.
            *id = self.segments.expert(keys::place(unsafe { best.highest() }));
        }
    }

    /// Leaves only the segments whose two best scores have the highest sums. Infinities of both signs
    /// have no sum and count as minus infinity.
    #[inline(always)]
    unsafe fn keep_best_segments(&mut self, kept: usize) {
        let mut sums = [f32::NEG_INFINITY; N];
        let count = self.segments.count;
        for (segment, sum) in sums[..count].iter_mut().enumerate() {
            // SAFETY: the caller vouches for the instructions.
            *sum = unsafe { self.sum_of_best(segment) };
        }
        let mut dropped = [true; N];
        for _ in 0..kept {
            let left = (0..count).filter(|&s| dropped[s]);
            // Of equal sums the first is kept.
            let best = left.reduce(|best, s| if sums[s] > sums[best] { s } else { best });
            if let Some(best) = best {
                dropped[best] = false;
            }
        }
        for (best, _) in self.best.iter_mut().zip(dropped).filter(|(_, dropped)| *dropped) {
            // SAFETY: the caller vouches for the instructions.
            *best = unsafe { K::lowest() };
        }
    }

    /// The sum of a segment's two best scores.
    #[inline(always)]
    unsafe fn sum_of_best(&self, segment: usize) -> f32 {
        let log2 = self.segments.log2_registers;
        // SAFETY: the caller vouches for the instructions.
        unsafe {
            let first = self.best[segment].highest();
            let mut rest = K::lowest();
            for k in &self.keys[segment << log2..(segment + 1) << log2] {
                rest = rest.max(k.without(first));
            }
            let second = rest.highest();
            let sum = keys::score(first) + if second == LOWEST { 0.0 } else { keys::score(second) };
            if sum.is_nan() { f32::NEG_INFINITY } else { sum }
        }
    }
}
