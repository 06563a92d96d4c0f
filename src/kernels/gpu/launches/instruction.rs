//! Single instructions on a device, and what they leave: the probes of `kernels/probe.cu` and
//! `probe_sm90.cu` with inputs of their own.
//!
//! Every kernel rests on a reading of the PTX manual, which the emulator shares. The words that the
//! emulator leaves are kept ([`Instruction::expected`]): a device that leaves others shows a wrong reading
//! before any kernel does.

use std::collections::HashMap;
use std::io::Read;
use std::sync::OnceLock;

use flate2::read::GzDecoder;
use half::bf16;

use super::probe::{EMPTY, launch};
use crate::gpu::params::{ProbeParams, words};
use crate::gpu::{DeviceFacts, Element, Launch, Launcher, Region, TensorMap};
use crate::{Error, Result};

/// The words of every probe, a line each: name, then its words in hexadecimal. Written by the test that
/// runs the emulator.
const EXPECTED: &[u8] = include_bytes!("../../../../kernels/probes.golden.gz");
/// Most bytes of the table.
const MOST_EXPECTED: u64 = 16 << 20;

/// Threads of a warp and of a warpgroup.
const WARP: u32 = 32;
const WARPGROUP: u32 = 128;
/// Bytes of one atom of the 128-byte swizzle: the box of every map here.
const ATOM_BYTES: u32 = 1024;
/// Words of an atom.
const ATOM_WORDS: usize = 256;
/// Room for moving a tile to a multiple of an atom.
const ALIGNMENT: u32 = 1024;
/// How long the first of two overlapping launches waits before it writes.
const OVERLAP_NS: u64 = 30_000;

/// What a probe launches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// A kernel of one warp that leaves some words a lane; with this many bytes of shared memory.
    Warp { kernel: &'static str, variant: u32, words: usize, shared: u32 },
    /// Atomics of several blocks.
    Atomics,
    /// The arithmetic that host and device share.
    Arithmetic,
    /// Two launches, of which the second may start before the first has ended.
    Overlap,
    /// A product of a warpgroup with both operands in shared memory, put there by cp.async or by stores.
    Wgmma { columns: u32, cp_async: bool },
    /// The same with A in registers.
    WgmmaRegisters { columns: u32 },
    /// A box of a tensor of some dimensions, partly outside of it if asked for.
    Load { dimensions: u32, element: Element, outside: bool },
    /// A box written.
    Store,
    /// Sums added to global memory.
    Reduce,
}

/// One instruction, or a few that belong together, in one form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instruction {
    /// Name of the probe: instruction and form.
    pub name: &'static str,
    /// Whether it is one of compute capability 9.0 alone.
    pub is_hopper: bool,
    kind: Kind,
}

const fn any(name: &'static str, kind: Kind) -> Instruction {
    Instruction { name, is_hopper: false, kind }
}

const fn hopper(name: &'static str, kind: Kind) -> Instruction {
    Instruction { name, is_hopper: true, kind }
}

const fn warp(kernel: &'static str, variant: u32, words: usize, shared: u32) -> Kind {
    Kind::Warp { kernel, variant, words, shared }
}

const fn wgmma(columns: u32) -> Kind {
    Kind::Wgmma { columns, cp_async: false }
}

const fn load(dimensions: u32, element: Element, outside: bool) -> Kind {
    Kind::Load { dimensions, element, outside }
}

/// Every probe, the simplest first.
pub const INSTRUCTIONS: &[Instruction] = &[
    any("shuffle", warp("probe_shuffle", 0, 9, 0)),
    any("arithmetic", Kind::Arithmetic),
    any("atomics", Kind::Atomics),
    any("ldmatrix", warp("probe_ldmatrix", 0, 6, 512 + 16)),
    any("mma_m16n8k16", warp("probe_mma", 0, 4, 0)),
    any("cp_async", warp("probe_copy_async", 0, 4, 512 + 16)),
    any("griddepcontrol", Kind::Overlap),
    hopper("stmatrix_x4", warp("probe_stmatrix", 0, 4, 512 + 16)),
    hopper("stmatrix_x4_trans", warp("probe_stmatrix", 1, 4, 512 + 16)),
    hopper("stmatrix_x2_trans", warp("probe_stmatrix", 2, 4, 512 + 16)),
    hopper("tma_load_2d", load(2, Element::Bf16, false)),
    hopper("tma_load_2d_outside", load(2, Element::Bf16, true)),
    hopper("tma_load_2d_u8", load(2, Element::U8, false)),
    hopper("tma_load_3d", load(3, Element::Bf16, false)),
    hopper("tma_load_3d_u8", load(3, Element::U8, true)),
    hopper("tma_load_4d", load(4, Element::Bf16, false)),
    hopper("tma_load_4d_outside", load(4, Element::Bf16, true)),
    hopper("tma_load_4d_u8", load(4, Element::U8, false)),
    hopper("tma_store_2d", Kind::Store),
    hopper("bulk_reduce_add", Kind::Reduce),
    hopper("wgmma_n8", wgmma(8)),
    hopper("wgmma_n16", wgmma(16)),
    hopper("wgmma_n32", wgmma(32)),
    hopper("wgmma_n64", wgmma(64)),
    hopper("wgmma_n128", wgmma(128)),
    hopper("wgmma_n192", wgmma(192)),
    hopper("wgmma_n256", wgmma(256)),
    hopper("wgmma_n64_cp_async", Kind::Wgmma { columns: 64, cp_async: true }),
    hopper("wgmma_registers_n8", Kind::WgmmaRegisters { columns: 8 }),
    hopper("wgmma_registers_n16", Kind::WgmmaRegisters { columns: 16 }),
    hopper("wgmma_registers_n32", Kind::WgmmaRegisters { columns: 32 }),
    hopper("wgmma_registers_n64", Kind::WgmmaRegisters { columns: 64 }),
];

impl Instruction {
    /// Whether a device has it.
    pub const fn runs_on(&self, device: &DeviceFacts) -> bool {
        !self.is_hopper || device.is_hopper()
    }

    /// What the emulator left.
    pub fn expected(&self) -> &'static [u32] {
        static TABLE: OnceLock<HashMap<String, Vec<u32>>> = OnceLock::new();
        TABLE.get_or_init(|| table(EXPECTED)).get(self.name).map_or(&[], Vec::as_slice)
    }

    /// Whether what a device left is what the emulator did.
    ///
    /// # Errors
    /// A sentence with the first words that differ, and how many do.
    pub fn compare(&self, got: &[u32]) -> Result<(), String> {
        let expected = self.expected();
        if got.len() != expected.len() {
            return Err(format!("{} words, expected {}", got.len(), expected.len()));
        }
        let differ: Vec<usize> = (0..got.len()).filter(|&i| got[i] != expected[i]).collect();
        if differ.is_empty() {
            return Ok(());
        }
        let shown = differ.iter().take(4).map(|&i| {
            let (got, expected) = (got[i], expected[i]);
            format!("word {i} is {got:08x}, not {expected:08x}")
        });
        let shown: Vec<String> = shown.collect();
        Err(format!("{} of {} words differ: {}", differ.len(), got.len(), shown.join(", ")))
    }
}

/// The words by name.
fn table(compressed: &[u8]) -> HashMap<String, Vec<u32>> {
    let mut text = String::new();
    // An unreadable table has no words, which no device leaves.
    if GzDecoder::new(compressed).take(MOST_EXPECTED).read_to_string(&mut text).is_err() {
        return HashMap::new();
    }
    let line = |line: &str| {
        let mut fields = line.split(' ');
        let name = fields.next()?.to_owned();
        let words: Option<Vec<u32>> = fields.map(|w| u32::from_str_radix(w, 16).ok()).collect();
        Some((name, words?))
    };
    text.lines().filter_map(line).collect()
}

/// Runs one probe and returns the words that it left.
///
/// # Errors
/// [`Error::Usage`] for an instruction that the device does not have, else as [`Launcher::launch`].
pub fn probe_instruction(
    launcher: &mut dyn Launcher,
    instruction: &Instruction,
) -> Result<Vec<u32>> {
    if !instruction.runs_on(launcher.facts()) {
        return Err(Error::usage(instruction.name, "this device does not have it"));
    }
    let mut memory = Memory { launcher, owned: Vec::new() };
    let done = memory.run(instruction.kind);
    let freed = memory.free();
    // What the probe met comes first: a device that is broken gives nothing back either.
    let words = done?;
    freed.map(|()| words)
}

/// The memory of one probe.
struct Memory<'a> {
    launcher: &'a mut dyn Launcher,
    owned: Vec<Region>,
}

impl Memory<'_> {
    fn store(&mut self, words: &[u32]) -> Result<Region> {
        let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_ne_bytes()).collect();
        let region = self.launcher.store(&bytes)?;
        self.owned.push(region);
        Ok(region)
    }

    /// Memory that is seen to be written: a pattern of its own, or zeros.
    fn result(&mut self, words: usize, fill: u32) -> Result<Region> {
        self.store(&vec![fill; words])
    }

    fn free(self) -> Result<()> {
        self.owned.into_iter().try_for_each(|region| self.launcher.free(region))
    }

    fn read(&mut self, region: Region) -> Result<Vec<u32>> {
        let mut bytes = vec![0; usize::try_from(region.bytes).unwrap_or(0)];
        self.launcher.download(region, &mut bytes)?;
        Ok(words(&bytes).collect())
    }

    fn run(&mut self, kind: Kind) -> Result<Vec<u32>> {
        match kind {
            Kind::Warp { kernel, variant, words, shared } => {
                let from = self.store(&warp_input(kernel))?;
                let to = self.result(words * WARP as usize, UNWRITTEN)?;
                let params = ProbeParams { variant, ..both(from, to) };
                self.one(kernel, WARP, shared, None, &params)?;
                self.read(to)
            }
            Kind::Atomics => {
                let to = self.result(4, 0)?;
                let launch = launch("probe_atomics", 3, WARP, &both(to, to));
                self.launcher.launch(&launch)?;
                self.read(to)
            }
            Kind::Arithmetic => self.arithmetic(),
            Kind::Overlap => self.overlap(),
            Kind::Wgmma { columns, cp_async } => {
                let mut operands = tile(64, 1);
                operands.extend(tile(columns as usize, 2));
                self.product("probe_wgmma", columns, &operands, u32::from(cp_async))
            }
            Kind::WgmmaRegisters { columns } => {
                let each = 16 * WARPGROUP as usize;
                let mut operands: Vec<u32> = (0..each).map(|i| small_pair(3, i)).collect();
                operands.extend(tile(columns as usize, 4));
                self.product("probe_wgmma_rs", columns, &operands, 0)
            }
            Kind::Load { dimensions, element, outside } => self.load(dimensions, element, outside),
            Kind::Store => {
                let tensor = self.result(16 * 40, UNWRITTEN)?;
                let from: Vec<u32> = (0..ATOM_WORDS).map(|i| noise(5, i)).collect();
                let from = self.store(&from)?;
                // Rows of 80 elements of which 68 belong to the tensor: a part of the box lies outside.
                let map = TensorMap::bf16(tensor.address, &[(68, 1, 64), (16, 80, 8)])?;
                let params = ProbeParams { seed: 11, ..both(from, tensor) };
                self.one("probe_tma_store", WARP, shared_of_atom(), Some(map), &params)?;
                self.read(tensor)
            }
            Kind::Reduce => {
                let values = |seed| -> Vec<u32> {
                    (0..WARPGROUP as usize).map(|i| small(seed, i).to_bits()).collect()
                };
                let (from, to) = (self.store(&values(6))?, self.store(&values(7))?);
                self.one("probe_reduce", WARP, 512 + 16, None, &both(from, to))?;
                self.read(to)
            }
        }
    }

    /// Launches one block.
    fn one(
        &mut self,
        kernel: &'static str,
        threads: u32,
        shared_bytes: u32,
        map: Option<TensorMap>,
        params: &ProbeParams,
    ) -> Result<()> {
        let maps = map.into_iter().collect();
        self.launcher.launch(&Launch { shared_bytes, maps, ..launch(kernel, 1, threads, params) })
    }

    fn product(
        &mut self,
        kernel: &'static str,
        columns: u32,
        operands: &[u32],
        seed: u32,
    ) -> Result<Vec<u32>> {
        let from = self.store(operands)?;
        let to = self.result((WARPGROUP * columns / 2) as usize, UNWRITTEN)?;
        let params = ProbeParams { variant: columns, seed, ..both(from, to) };
        let rows = columns + if kernel == "probe_wgmma" { 64 } else { 0 };
        self.one(kernel, WARPGROUP, rows * 128 + ALIGNMENT, None, &params)?;
        self.read(to)
    }

    fn arithmetic(&mut self) -> Result<Vec<u32>> {
        const WORDS: usize = 9;
        // Those that are rounded as the reference rounds them; the last two are approximations.
        const EXACT: usize = 7;
        let mut inputs: Vec<f32> = (0..96_u8).map(|i| (f32::from(i) - 48.0) * 0.37).collect();
        inputs.extend([0.0, -0.0, 1e-30, -1e-30, 88.0, -88.0, 1e4, -1e4]);
        let bits: Vec<u32> = inputs.iter().map(|x| x.to_bits()).collect();
        let from = self.store(&bits)?;
        let to = self.result(WORDS * inputs.len(), UNWRITTEN)?;
        let bytes = 4 * inputs.len() as u64;
        let params = ProbeParams { bytes, ..both(from, to) };
        self.launcher.launch(&launch("probe_arithmetic", 1, 256, &params))?;
        let left = self.read(to)?;
        Ok(left.chunks_exact(WORDS).flat_map(|of_one| &of_one[..EXACT]).copied().collect())
    }

    fn overlap(&mut self) -> Result<Vec<u32>> {
        let from: Vec<u32> = (0..WARP as usize).map(|i| noise(8, i)).collect();
        let from = self.store(&from)?;
        let flag = self.result(4, 0)?;
        let (first, second) = (self.result(32, UNWRITTEN)?, self.result(32, UNWRITTEN)?);
        let begins = ProbeParams { flag: flag.address, limit_ns: OVERLAP_NS, ..both(from, first) };
        self.launcher.launch(&launch("probe_overlap", 1, WARP, &begins))?;
        let follows = ProbeParams { variant: 1, ..both(first, second) };
        let overlaps = self.launcher.facts().compute_capability.0 >= 9;
        let follows = Launch { overlaps, ..launch("probe_overlap", 1, WARP, &follows) };
        self.launcher.launch(&follows)?;
        self.read(second)
    }

    fn load(&mut self, dimensions: u32, element: Element, outside: bool) -> Result<Vec<u32>> {
        // Rows of 136 bytes, 160 apart: a box of 128 from the eighth element on ends at the edge, or
        // outside with elements of two bytes.
        let (width, stride, wide): (u64, u64, u32) = match element {
            Element::Bf16 | Element::F32 => (68, 80, 64),
            Element::U8 => (136, 160, 128),
        };
        let rows = 12_u64;
        let tensor: Vec<u32> = (0..4 * 12 * 40).map(|i| noise(9, i)).collect();
        let tensor = self.store(&tensor)?;
        let plane = rows * stride;
        let dims: &[(u64, u64, u32)] = match dimensions {
            2 => &[(width, 1, wide), (rows, stride, 8)],
            3 => &[(width, 1, wide), (rows, stride, 4), (3, plane, 2)],
            _ => &[(width, 1, wide), (rows, stride, 4), (2, plane, 2), (2, 2 * plane, 1)],
        };
        let map = TensorMap::swizzled(element, tensor.address, dims)?;
        let to = self.result(ATOM_WORDS, UNWRITTEN)?;
        // The last rows, of which there are fewer than the box has, or the first.
        let seed = if outside { 10 } else { 3 };
        let params = ProbeParams { variant: dimensions, seed, ..both(tensor, to) };
        self.one("probe_tma", WARP, shared_of_atom() + 8, Some(map), &params)?;
        self.read(to)
    }
}

/// What result memory holds that nobody wrote.
const UNWRITTEN: u32 = 0xa5a5_5a5a;

const fn shared_of_atom() -> u32 {
    ATOM_BYTES + ALIGNMENT
}

fn both(from: Region, to: Region) -> ProbeParams {
    ProbeParams { from: from.address, to: to.address, ..EMPTY }
}

/// A word that depends on its place: the finaliser of `SplitMix64`.
fn noise(seed: u64, i: usize) -> u32 {
    let z = (i as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (seed << 56);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    u32::try_from((z ^ (z >> 31)) >> 32).unwrap_or(0)
}

/// A whole number from -4 to 4: sums of their products are exact in any order.
fn small(seed: u64, i: usize) -> f32 {
    f32::from(i8::try_from(noise(seed, i) % 9).unwrap_or(0) - 4)
}

/// Two of them as bf16.
fn small_pair(seed: u64, i: usize) -> u32 {
    let bits = |i| u32::from(bf16::from_f32(small(seed, i)).to_bits());
    bits(2 * i) | (bits(2 * i + 1) << 16)
}

/// Rows of 64 bf16 as the 128-byte swizzle lays them: chunk `c` of row `r` at chunk `c ^ (r % 8)`.
fn tile(rows: usize, seed: u64) -> Vec<u32> {
    const WORDS: usize = 32;
    const CHUNK: usize = 4;
    let mut tile = vec![0; rows * WORDS];
    for row in 0..rows {
        for word in 0..WORDS {
            let chunk = (word / CHUNK) ^ (row % 8);
            tile[row * WORDS + chunk * CHUNK + word % CHUNK] = small_pair(seed, row * WORDS + word);
        }
    }
    tile
}

/// What a kernel of one warp reads.
fn warp_input(kernel: &str) -> Vec<u32> {
    match kernel {
        // a, b of bf16, then d in single precision.
        "probe_mma" => (0..32 * 10)
            .map(|i| if i % 10 < 6 { small_pair(12, i) } else { small(13, i).to_bits() })
            .collect(),
        // Some lanes hold equal values, for those that look for them.
        "probe_shuffle" => (0..32).map(|i| noise(14, i % 11)).collect(),
        _ => (0..128).map(|i| noise(15, i)).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_probe_has_a_name_of_its_own_and_words() {
        for (i, instruction) in INSTRUCTIONS.iter().enumerate() {
            let name = instruction.name;
            assert!(INSTRUCTIONS[..i].iter().all(|other| other.name != name), "{name}");
            let expected = instruction.expected();
            assert!(!expected.is_empty(), "{name}");
            // A result that says nothing would agree with a device that does nothing.
            let first = expected[0];
            assert!(expected.iter().any(|word| *word != first), "{name}");
            assert!(
                expected.iter().filter(|word| **word != UNWRITTEN).count() * 8 > expected.len()
            );
        }
    }

    #[test]
    fn a_word_that_differs_is_told() {
        let instruction = &INSTRUCTIONS[0];
        let mut words = instruction.expected().to_vec();
        instruction.compare(&words).unwrap();
        words[5] ^= 1;
        let said = instruction.compare(&words).unwrap_err();
        assert!(said.starts_with("1 of 288 words differ: word 5 is"), "{said}");
        assert!(instruction.compare(&words[..5]).unwrap_err().contains("5 words"));
    }
}
