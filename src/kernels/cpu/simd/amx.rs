//! AMX: products of 16 x 32 by 32 x 16 bf16 tiles into 16 x 16 tiles of single precision.
//!
//! Weights are the left operand: 16 rows x 32 columns straight from the row-major matrix. Activations
//! are the right one, in the order that the instruction wants: a tile holds 16 pairs of columns x 16
//! token rows, and a block of 64 columns is two halves of such tiles, one for every 16 rows. A tile of
//! h is written in that order by the first product, so that the second reads it as it lies.
//!
//! Intel, "Architecture Instruction Set Extensions Programming Reference", chapter 3. Intrinsics are
//! not stable in Rust: one block of inline assembly configures the tiles, runs a whole product and
//! releases them, so that no tile is live in code that the compiler wrote.

#![expect(
    clippy::inline_always,
    reason = "code takes on the instruction set of its caller only when it is inlined into it"
)]

use std::arch::asm;
use std::arch::x86_64::{__cpuid, __cpuid_count, _xgetbv};
use std::sync::OnceLock;

use half::bf16;

use super::activate::activate;
use super::format::{Activation, Format};
use super::{Isa, Operand, Panel};
use crate::kernels::cpu::blocks::BLOCK;

/// Rows of a tile: weight rows, token rows, and pairs of columns.
pub(super) const SIDE: usize = 16;
/// Columns that one multiplication takes.
const STEP: usize = 32;
/// Values of one tile of activations, and of one tile of sums.
const TILE: usize = SIDE * STEP;
const SUMS: usize = SIDE * SIDE;

/// bf16 tiles; activations are rounded to bf16, sums kept in single precision.
pub(crate) struct Tiles;

/// Whether the processor has AMX with bf16 products.
pub(super) fn processor_has_it() -> bool {
    let leaves = __cpuid(0).eax;
    if leaves < 7 {
        return false;
    }
    let edx = __cpuid_count(7, 0).edx;
    // AMX-BF16 and AMX-TILE.
    edx >> 22 & 1 == 1 && edx >> 24 & 1 == 1
}

/// Whether tiles that may be used take int8 as well (AMX-INT8).
pub(super) fn takes_int8() -> bool {
    #[cfg(test)]
    if super::amx_emulator::is_installed() {
        return true;
    }
    is_available() && __cpuid_count(7, 0).edx >> 25 & 1 == 1
}

/// Whether the processor has AMX, the system saves its registers, and this process may use them.
pub(super) fn is_available() -> bool {
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    *AVAILABLE.get_or_init(|| processor_has_it() && system_saves_tiles() && permitted())
}

/// Whether tile instructions may be executed: [`is_available`], or a test carries them out in software.
pub(super) fn executable() -> bool {
    #[cfg(test)]
    if super::amx_emulator::is_installed() {
        return true;
    }
    is_available()
}

/// Whether the operating system saves tile configuration and data (bits 17 and 18 of XCR0).
fn system_saves_tiles() -> bool {
    if __cpuid(1).ecx >> 27 & 1 == 0 {
        return false;
    }
    // SAFETY: bit 27 (OSXSAVE) says that XGETBV may be used.
    let enabled = unsafe { xcr0() };
    enabled >> 17 & 0b11 == 0b11
}

#[target_feature(enable = "xsave")]
fn xcr0() -> u64 {
    // SAFETY: register 0 exists wherever XGETBV does.
    unsafe { _xgetbv(0) }
}

/// Asks the kernel for the right to use tile data, which a process has to do once; threads that are
/// started later inherit it.
#[cfg(target_os = "linux")]
fn permitted() -> bool {
    const ARCH_REQ_XCOMP_PERM: usize = 0x1023;
    const XTILEDATA: usize = 18;
    const SYS_ARCH_PRCTL: usize = 158;
    let result: isize;
    // SAFETY: arch_prctl with this request takes a number, touches no memory of the process, and
    // fails with a negative result where it is unknown. The kernel clobbers rcx and r11.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") SYS_ARCH_PRCTL => result,
            in("rdi") ARCH_REQ_XCOMP_PERM,
            in("rsi") XTILEDATA,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    result == 0
}

/// Other systems have requests of their own, which were not tried.
#[cfg(not(target_os = "linux"))]
fn permitted() -> bool {
    false
}

/// What LDTILECFG reads: palette 1, then bytes per row and rows of each tile.
#[repr(C, align(64))]
pub(super) struct Config([u8; 64]);

impl Config {
    /// Sums of `rows` weight rows in tiles 0 to 3, weights in 4 and 5, activations in 6 and 7.
    pub(super) fn new(rows: usize) -> Self {
        let mut bytes = [0; 64];
        bytes[0] = 1;
        for tile in 0..8 {
            bytes[16 + 2 * tile] = 64;
            bytes[48 + tile] = if tile < 6 { u8::try_from(rows).unwrap_or(16) } else { 16 };
        }
        Self(bytes)
    }
}

/// Sums of two groups of weight rows with up to two tiles of token rows:
/// `[group][token tile][weight row][token row]`.
#[repr(align(64))]
struct Sums([[[f32; SUMS]; 2]; 2]);

impl Sums {
    const ZERO: Self = Self([[[0.0; SUMS]; 2]; 2]);

    fn add(&mut self, other: &Self) {
        for (sum, other) in self.0.as_flattened_mut().iter_mut().zip(other.0.as_flattened()) {
            sum.iter_mut().zip(other).for_each(|(sum, other)| *sum += other);
        }
    }
}

/// Two groups of up to 16 weight rows against one or two tiles of token rows.
struct Product<'a> {
    /// Weights of both groups, each `[rows, k]`.
    groups: [&'a [bf16]; 2],
    rows: usize,
    k: usize,
    /// Activations of the expert.
    a: Operand<'a, bf16>,
    /// First tile of token rows, and how many.
    token: usize,
    tokens: usize,
    /// Where the weights lie that come after these, to be asked for meanwhile.
    next: Option<(*const bf16, *const bf16)>,
}

impl Product<'_> {
    /// The sums over all columns, in place of what `sums` held; those of weight rows that are not there are
    /// zero.
    fn run(&self, sums: &mut Sums) {
        let (k, whole) = (self.k, self.k / STEP);
        let steps = k.div_ceil(STEP);
        // What the loads below rely on.
        assert!((1..=SIDE).contains(&self.rows) && (1..=2).contains(&self.tokens), "tile sizes");
        assert!(self.groups.iter().all(|w| w.len() == self.rows * k), "weight rows");
        assert!(self.a.rows.is_multiple_of(SIDE), "token rows fill tiles");
        assert!((self.token + self.tokens) * SIDE <= self.a.rows, "token tiles exist");
        assert!(self.a.values.len() >= steps * self.a.rows * STEP, "token columns exist");

        // Tiles are stored over what is there, as many rows as they have.
        if self.rows < SIDE || whole == 0 {
            *sums = Sums::ZERO;
        }
        let config = Config::new(self.rows);
        let [w0, w1] = self.groups.map(<[bf16]>::as_ptr);
        let steps_at = |sums: &mut Sums, weights, (stride, step, steps), asks| Run {
            config: &raw const config,
            sums: sums.0.as_mut_ptr(),
            weights,
            stride,
            next: self.next.unwrap_or((w0, w1)),
            asks,
            x: self.activations(step),
            step_bytes: self.a.rows * STEP * size_of::<bf16>(),
            steps,
            tokens: self.tokens,
        };
        // SAFETY: `whole` steps of 32 columns lie within the `k` columns of every row; activations
        // have `steps` steps of `a.rows` rows, of which the token tiles are part (asserted above).
        unsafe { steps_at(sums, (w0, w1), (2 * k, 0, whole), self.next.is_some()).run() };
        if whole < steps {
            // The last columns, filled up with zeros: what follows them in memory is another row.
            let mut tails = [[bf16::ZERO; TILE]; 2];
            for (tail, w) in tails.iter_mut().zip(self.groups) {
                for (tail, row) in tail.chunks_exact_mut(STEP).zip(w.chunks_exact(k)) {
                    tail[..k - whole * STEP].copy_from_slice(&row[whole * STEP..]);
                }
            }
            let tails = (tails[0].as_ptr(), tails[1].as_ptr());
            let mut last = Sums::ZERO;
            // SAFETY: the tails hold 16 rows of one step; activations as above.
            unsafe { steps_at(&mut last, tails, (2 * STEP, whole, 1), false).run() };
            sums.add(&last);
        }
    }

    /// First value of the first token tile in a step.
    fn activations(&self, step: usize) -> *const bf16 {
        self.a.values[step * self.a.rows * STEP + self.token * TILE..].as_ptr()
    }
}

/// Eight lines of the weights that come next, asked for into L2.
macro_rules! ahead {
    ($from:literal, first) => {
        ahead!($from, "", " + 64", " + 128", " + 192", " + 256", " + 320", " + 384", " + 448")
    };
    ($from:literal, last) => {
        ahead!(
            $from, " + 512", " + 576", " + 640", " + 704", " + 768", " + 832", " + 896", " + 960"
        )
    };
    ($from:literal, $($line:literal),+) => {
        concat!($("prefetcht1 [{", $from, "}", $line, "]\n"),+)
    };
}

/// Sums of zero, `body` once a step, and the sums stored.
macro_rules! over_steps {
    ($of:ident, [$($zero:literal),+], [$($body:expr),+], [$($store:literal),+]) => {
        asm!(
            "ldtilecfg [{config}]",
            $($zero,)+
            "2:",
            $($body,)+
            "add {w0}, 64",
            "add {w1}, 64",
            "add {n0}, 1024",
            "add {n1}, 1024",
            "add {x}, {step}",
            "dec {steps}",
            "jnz 2b",
            $($store,)+
            "tilerelease",
            config = in(reg) $of.config,
            sums = in(reg) $of.sums,
            line = in(reg) 64usize,
            w0 = inout(reg) $of.weights.0 => _,
            w1 = inout(reg) $of.weights.1 => _,
            n0 = inout(reg) $of.next.0 => _,
            n1 = inout(reg) $of.next.1 => _,
            stride = in(reg) $of.stride,
            x = inout(reg) $of.x => _,
            step = in(reg) $of.step_bytes,
            steps = inout(reg) $of.steps => _,
            options(nostack),
        )
    };
}

/// What a run of steps reads and writes.
struct Run {
    config: *const Config,
    sums: *mut [[f32; SUMS]; 2],
    /// First weights of both groups, rows `stride` bytes apart.
    weights: (*const bf16, *const bf16),
    stride: usize,
    /// The weights to ask for: as many bytes behind each as the steps read; only addresses.
    next: (*const bf16, *const bf16),
    asks: bool,
    /// First token tile of the first step, and bytes to the next step's.
    x: *const bf16,
    step_bytes: usize,
    steps: usize,
    tokens: usize,
}

impl Run {
    /// Adds both groups times one or two tiles of token rows to the sums.
    ///
    /// # Safety
    /// The tiles may be used; `weights` point to the rows that `config` says, of `steps` x 32 weights; `x`
    /// points to `tokens` tiles, and again after every `step_bytes`; `sums` to both groups' sums.
    unsafe fn run(self) {
        match (self.steps, self.tokens) {
            (0, _) => {}
            // SAFETY: what the caller vouches for.
            (_, 2) => unsafe { self.two_tiles() },
            // SAFETY: likewise.
            _ => unsafe { self.one_tile() },
        }
    }

    /// # Safety
    /// As [`Self::run`], with two tiles of token rows and at least one step.
    unsafe fn two_tiles(self) {
        if self.asks {
            // SAFETY: reads and writes what the caller vouches for, and 4 KiB of sums; each group's two tiles
            // lie 1 KiB apart. Tiles are configured and released inside; nothing else is changed. Asking for a
            // line touches no memory that the program could see.
            unsafe {
                over_steps!(
                    self,
                    ["tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3"],
                    [
                        "tileloadd tmm4, [{w0} + {stride}*1]",
                        "tileloadd tmm6, [{x} + {line}*1]",
                        ahead!("n0", first),
                        "tdpbf16ps tmm0, tmm4, tmm6",
                        "tileloadd tmm7, [{x} + {line}*1 + 1024]",
                        ahead!("n0", last),
                        "tdpbf16ps tmm1, tmm4, tmm7",
                        "tileloadd tmm5, [{w1} + {stride}*1]",
                        ahead!("n1", first),
                        "tdpbf16ps tmm2, tmm5, tmm6",
                        ahead!("n1", last),
                        "tdpbf16ps tmm3, tmm5, tmm7"
                    ],
                    [
                        "tilestored [{sums} + {line}*1], tmm0",
                        "tilestored [{sums} + {line}*1 + 1024], tmm1",
                        "tilestored [{sums} + {line}*1 + 2048], tmm2",
                        "tilestored [{sums} + {line}*1 + 3072], tmm3"
                    ]
                );
            }
        } else {
            // SAFETY: as above.
            unsafe {
                over_steps!(
                    self,
                    ["tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3"],
                    [
                        "tileloadd tmm4, [{w0} + {stride}*1]",
                        "tileloadd tmm6, [{x} + {line}*1]",
                        "tdpbf16ps tmm0, tmm4, tmm6",
                        "tileloadd tmm7, [{x} + {line}*1 + 1024]",
                        "tdpbf16ps tmm1, tmm4, tmm7",
                        "tileloadd tmm5, [{w1} + {stride}*1]",
                        "tdpbf16ps tmm2, tmm5, tmm6",
                        "tdpbf16ps tmm3, tmm5, tmm7"
                    ],
                    [
                        "tilestored [{sums} + {line}*1], tmm0",
                        "tilestored [{sums} + {line}*1 + 1024], tmm1",
                        "tilestored [{sums} + {line}*1 + 2048], tmm2",
                        "tilestored [{sums} + {line}*1 + 3072], tmm3"
                    ]
                );
            }
        }
    }

    /// # Safety
    /// As [`Self::run`], with one tile of token rows and at least one step.
    unsafe fn one_tile(self) {
        if self.asks {
            // SAFETY: as for two tiles, with one of each group.
            unsafe {
                over_steps!(
                    self,
                    ["tilezero tmm0", "tilezero tmm2"],
                    [
                        "tileloadd tmm6, [{x} + {line}*1]",
                        "tileloadd tmm4, [{w0} + {stride}*1]",
                        ahead!("n0", first),
                        ahead!("n0", last),
                        "tdpbf16ps tmm0, tmm4, tmm6",
                        "tileloadd tmm5, [{w1} + {stride}*1]",
                        ahead!("n1", first),
                        ahead!("n1", last),
                        "tdpbf16ps tmm2, tmm5, tmm6"
                    ],
                    [
                        "tilestored [{sums} + {line}*1], tmm0",
                        "tilestored [{sums} + {line}*1 + 2048], tmm2"
                    ]
                );
            }
        } else {
            // SAFETY: as above.
            unsafe {
                over_steps!(
                    self,
                    ["tilezero tmm0", "tilezero tmm2"],
                    [
                        "tileloadd tmm6, [{x} + {line}*1]",
                        "tileloadd tmm4, [{w0} + {stride}*1]",
                        "tdpbf16ps tmm0, tmm4, tmm6",
                        "tileloadd tmm5, [{w1} + {stride}*1]",
                        "tdpbf16ps tmm2, tmm5, tmm6"
                    ],
                    [
                        "tilestored [{sums} + {line}*1], tmm0",
                        "tilestored [{sums} + {line}*1 + 2048], tmm2"
                    ]
                );
            }
        }
    }
}

/// Place of (row, column) in a block of `rows` rows.
fn place(rows: usize, row: usize, column: usize) -> usize {
    let tile = (column / STEP) * (rows / SIDE) + row / SIDE;
    tile * TILE + (column % STEP / 2) * STEP + (row % SIDE) * 2 + column % 2
}

/// Bytes of weights that are asked for at most: with what is being multiplied they stay in L2.
const MOST_AHEAD: usize = 1 << 20;

/// The weights `distance` values behind the groups, which a thread most often multiplies next. Between two
/// panels that is a guess, and an address outside of the weights may come of it: it is asked for, never read.
/// The tiles of a group lie a whole row apart, which the processor's own prefetchers follow badly; the groups
/// are contiguous.
fn after(groups: [&[bf16]; 2], distance: usize) -> Option<(*const bf16, *const bf16)> {
    (size_of_val(groups[0]) + size_of_val(groups[1]) <= MOST_AHEAD).then(|| {
        let [first, second] = groups.map(|w| w.as_ptr().wrapping_add(distance));
        (first, second)
    })
}

/// Runs a loop over one tile in vectors as wide as every processor with AMX has them.
fn in_vectors<T>(sums: &[f32; SUMS], out: &mut [T], work: impl Fn(&[f32; SUMS], &mut [T])) {
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    fn wide<T>(sums: &[f32; SUMS], out: &mut [T], work: impl Fn(&[f32; SUMS], &mut [T])) {
        work(sums, out);
    }
    if Isa::Avx512.is_available() {
        // SAFETY: the processor has the features that the callee is compiled for.
        unsafe { wide(sums, out, work) }
    } else {
        work(sums, out);
    }
}

/// Rows of h, two and two, as the second product reads them: of every token row both columns in turn.
#[inline(always)]
fn pair_up(h: &[f32; SUMS], out: &mut [bf16]) {
    for (pairs, h) in out.chunks_exact_mut(STEP).zip(h.chunks_exact(2 * SIDE)) {
        let mut line = [bf16::ZERO; STEP];
        for i in 0..SIDE {
            line[2 * i] = bf16::narrow(h[i]);
            line[2 * i + 1] = bf16::narrow(h[SIDE + i]);
        }
        pairs.copy_from_slice(&line);
    }
}

/// `out[j][i] = sums[i][j]`.
#[inline(always)]
fn transpose(sums: &[f32; SUMS], out: &mut [f32]) {
    for (j, out) in out.chunks_exact_mut(SIDE).enumerate() {
        let mut line = [0.0; SIDE];
        for i in 0..SIDE {
            line[i] = sums[i * SIDE + j];
        }
        out.copy_from_slice(&line);
    }
}

/// Weights in rows, in which they are read here.
fn in_rows(panel: Panel<'_, bf16>) -> &[bf16] {
    assert!(!panel.packed && panel.values.len() == panel.rows * panel.k, "weights in rows");
    panel.values
}

impl Format for Tiles {
    type Weight = bf16;
    type Activation = bf16;
    const ROWS: usize = SIDE;

    fn rows_at_once(k: usize) -> usize {
        /// Bytes of activations, beside which two panels of weights stay in an L2 of 2 MB.
        const BYTES: usize = 1 << 20;
        let tiles = BYTES / (2 * k.max(1)) / (2 * SIDE);
        tiles.max(1) * 2 * SIDE
    }

    fn put_row(block: &mut [bf16], rows: usize, row: usize, values: &[f32]) {
        let mut whole = [0.0; BLOCK];
        whole[..values.len()].copy_from_slice(values);
        let narrow = whole.map(bf16::narrow);
        for (half, values) in narrow.chunks_exact(STEP).enumerate() {
            let tile = &mut block[place(rows, row, half * STEP)..];
            let places = tile.chunks_mut(STEP).zip(values.chunks_exact(2));
            places.for_each(|(place, pair)| place[..2].copy_from_slice(pair));
        }
    }

    fn gate_up(
        isa: Isa,
        (gate, up): (Panel<bf16>, Option<Panel<bf16>>),
        a: Operand<bf16>,
        out: &mut [bf16],
    ) {
        let (k, columns) = (gate.k, gate.rows);
        let (start, end) = (a.part.0 / SIDE, a.part.1 / SIDE);
        let (gate, up) = (in_rows(gate), up.map(in_rows));
        assert!(executable(), "tiles were asked for as {} where there are none", isa.label());
        let (mut h, mut sums) = ([0.0; SUMS], Sums::ZERO);
        for first in (0..BLOCK).step_by(SIDE) {
            let rows = columns.saturating_sub(first).min(SIDE);
            let group = first.min(columns) * k..first.min(columns) * k + rows * k;
            for token in (start..end).step_by(2) {
                let tokens = (end - token).min(2);
                if rows > 0 {
                    let gate = &gate[group.clone()];
                    let groups = [gate, up.map_or(gate, |up| &up[group.clone()])];
                    let next = (token == start).then(|| after(groups, groups[0].len())).flatten();
                    Product { groups, rows, k, a, token, tokens, next }.run(&mut sums);
                }
                let Sums([gates, ups]) = &sums;
                for t in 0..tokens {
                    if rows > 0 {
                        activate(isa, &gates[t], up.map(|_| ups[t].as_slice()), &mut h);
                    } else {
                        h.fill(0.0);
                    }
                    let at = place(a.rows, (token + t) * SIDE, first);
                    in_vectors(&h, &mut out[at..at + SUMS], pair_up);
                }
            }
        }
    }

    fn down(isa: Isa, w: Panel<bf16>, a: Operand<bf16>, out: &mut [f32]) {
        let (k, columns) = (w.k, w.rows);
        let (start, end) = (a.part.0 / SIDE, a.part.1 / SIDE);
        let w = in_rows(w);
        assert!(executable(), "tiles were asked for as {} where there are none", isa.label());
        if columns < BLOCK && start == 0 {
            out.fill(0.0);
        }
        let (mut turned, mut sums) = ([0.0; SUMS], Sums::ZERO);
        let mut first = 0;
        while first < columns {
            // Two full groups, or what is left as one group (computed twice, stored once).
            let rows = (columns - first).min(SIDE);
            let second = if columns - first >= 2 * SIDE { first + SIDE } else { first };
            let groups = [first, second].map(|n| &w[n * k..(n + rows) * k]);
            for token in (start..end).step_by(2) {
                let tokens = (end - token).min(2);
                // The next two groups follow the two of this turn.
                let next = (token == start && second > first)
                    .then(|| after(groups, 2 * groups[0].len()))
                    .flatten();
                Product { groups, rows, k, a, token, tokens, next }.run(&mut sums);
                for (column, sums) in [first, second].into_iter().zip(&sums.0) {
                    for (t, sums) in sums.iter().enumerate().take(tokens) {
                        in_vectors(sums, &mut turned, transpose);
                        let out = out[(token + t) * SIDE * BLOCK..].chunks_exact_mut(BLOCK);
                        for (out, turned) in out.zip(turned.chunks_exact(SIDE)) {
                            out[column..column + rows].copy_from_slice(&turned[..rows]);
                        }
                    }
                }
            }
            first = second + rows;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::cpu::simd::amx_emulator;
    use crate::kernels::cpu::{CpuBackend, blocks};
    use crate::kernels::{LayerWeights, MoeShape, RouterSpec, WeightData, reference};
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;
    use rand_distr::StandardNormal;

    fn normal(rng: &mut ChaCha8Rng, count: usize, scale: f32) -> Vec<f32> {
        (0..count).map(|_| rng.sample::<f32, _>(StandardNormal) * scale).collect()
    }

    fn narrowed(values: &[f32]) -> Vec<bf16> {
        values.iter().map(|&v| bf16::from_f32(v)).collect()
    }

    #[test]
    fn every_place_of_a_block_is_taken_once() {
        for rows in [16, 32, 48] {
            let mut taken = vec![false; rows * BLOCK];
            for (row, column) in (0..rows).flat_map(|r| (0..BLOCK).map(move |c| (r, c))) {
                let place = place(rows, row, column);
                assert!(!std::mem::replace(&mut taken[place], true), "{rows} {row} {column}");
            }
            assert!(taken.iter().all(|&t| t));
        }
    }

    /// Integers are exact in any order, so a product must come out to the bit.
    #[test]
    fn products_of_integers_are_exact() {
        let emulated = amx_emulator::install();
        let before = amx_emulator::executed();
        for (k, columns, rows) in
            [(32, 16, 16), (64, 64, 32), (33, 5, 1), (100, 40, 17), (7, 33, 40)]
        {
            let mut rng = ChaCha8Rng::seed_from_u64(k as u64);
            let mut small = |count: usize| -> Vec<f32> {
                (0..count).map(|_| f32::from(rng.random_range(-4i8..=4))).collect()
            };
            let (w, x) = (small(columns * k), small(rows * k));
            let padded = rows.next_multiple_of(SIDE);
            let mut a = vec![bf16::NAN; padded * blocks::padded(k)];
            for (block, a) in a.chunks_exact_mut(padded * BLOCK).enumerate() {
                for row in 0..padded {
                    let columns = block * BLOCK..((block + 1) * BLOCK).min(k);
                    let values = if row < rows { &x[row * k..][columns] } else { &[] };
                    Tiles::put_row(a, padded, row, values);
                }
            }
            let mut out = vec![f32::NAN; rows * BLOCK];
            let a = Operand::whole(&a, padded);
            let w = narrowed(&w);
            let panel = Panel { values: &w, rows: columns, k, packed: false };
            Tiles::down(Isa::Amx, panel, a, &mut out);
            let w: Vec<f32> = w.iter().map(|w| w.to_f32()).collect();
            for (row, out) in out.chunks_exact(BLOCK).enumerate() {
                for (n, &got) in out.iter().enumerate() {
                    let exact: f32 = if n < columns {
                        (0..k).map(|i| w[n * k + i] * x[row * k + i]).sum()
                    } else {
                        0.0
                    };
                    assert!((got - exact).abs() <= 0.0, "k {k} row {row} n {n}: {got} not {exact}");
                }
            }
        }
        // Where the processor has no tiles, the kernel's own instructions were carried out here.
        assert_eq!(emulated, amx_emulator::executed() > before);
    }

    #[test]
    fn whole_layers_stay_within_the_bounds_of_bf16_activations() {
        amx_emulator::install();
        // Not `with_isa`, which asks the processor.
        let backend =
            CpuBackend { isa: Isa::Amx, pool: None, pack: false }.with_threads(2).unwrap();
        for (seed, (experts, top_k, hidden, inter, gated, tokens)) in [
            (1, 1, 32, 16, true, 1),
            (3, 2, 70, 45, true, 19),
            (2, 1, 33, 66, false, 40),
            (4, 4, 64, 96, true, 33),
        ]
        .into_iter()
        .enumerate()
        {
            let shape = MoeShape { experts, top_k, hidden, inter, gated };
            let mut rng = ChaCha8Rng::seed_from_u64(seed as u64);
            let w13 = narrowed(&normal(&mut rng, shape.w13_len().unwrap(), 0.15));
            let w2 = narrowed(&normal(&mut rng, shape.w2_len().unwrap(), 0.15));
            let (w13, w2) = (WeightData::Bf16(w13.into()), WeightData::Bf16(w2.into()));
            let weights = LayerWeights::new(shape, w13, w2).unwrap();
            let x = normal(&mut rng, tokens * hidden, 1.0);
            let logits = normal(&mut rng, tokens * experts, 1.0);
            let routed = reference::route(&logits, experts, top_k, &RouterSpec::softmax()).unwrap();
            let out = backend.forward(&weights, &x, &routed).unwrap();
            let activations = Isa::Amx.activations(weights.dtype());
            let exact = reference::layer_in(&weights, &x, &routed, activations);
            for (i, (&got, exact)) in out.iter().zip(&exact).enumerate() {
                let off = (f64::from(got) - exact.value).abs();
                assert!(off <= exact.bound, "{shape:?} element {i}: {got}, not {exact:?}");
            }
            assert_eq!(out, backend.forward(&weights, &x, &routed).unwrap());
        }
    }
}
