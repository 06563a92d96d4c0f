//! What kernels are given: mirrors of the structs of `kernels/common.cuh`, field for field.
//!
//! Device addresses are plain 64-bit numbers here ([`DeviceAddress`]); nothing on the host follows
//! them. Each struct lists its fields with offsets and sizes, which `config_check.cu` states for the
//! device side, and turns itself into the bytes that a launch hands over.

use crate::gpu::DeviceAddress;

/// Most experts of one layer that the kernels take.
pub const MAX_EXPERTS: u32 = 1024;
/// Most choices per token that the kernels take.
pub const MAX_TOP_K: u32 = 32;
/// Most groups of experts that the kernels take.
pub const MAX_GROUPS: u32 = 32;

/// Status bit: a logit was NaN and was taken as minus infinity.
pub const STATUS_NON_FINITE_LOGIT: u32 = 1;
/// Status bit: an expert id was not below the number of experts; its pair was dropped.
pub const STATUS_BAD_EXPERT_ID: u32 = 2;
/// Status bit: a table would have overflowed; nothing was written past its end.
pub const STATUS_CAPACITY: u32 = 4;

/// How scores become choices and weights: the values of `RouterParams::scoring`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum RouterScoring {
    /// Softmax over all experts.
    Softmax = 0,
    /// Softmax over the chosen experts.
    SoftmaxOverTopK = 1,
    /// Sigmoid; the bias moves the choice, not the weight.
    Sigmoid = 2,
    /// Square root of softplus; bias as for the sigmoid.
    SoftplusSqrt = 3,
    /// `top_k` groups of experts, the best of each by softmax in its group.
    Prototype = 4,
}

impl RouterScoring {
    /// Every value, in order.
    pub const ALL: [Self; 5] =
        [Self::Softmax, Self::SoftmaxOverTopK, Self::Sigmoid, Self::SoftplusSqrt, Self::Prototype];

    /// The number that kernels read.
    pub const fn value(self) -> u32 {
        self as u32
    }
}

/// Name, place and size of one field, for comparison with the device side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FieldLayout {
    /// Name, as in `common.cuh`.
    pub name: &'static str,
    /// Bytes from the start of the struct.
    pub offset: usize,
    /// Size in bytes.
    pub bytes: usize,
}

/// A value that can stand in a parameter struct.
pub trait Field {
    /// Writes the value's bytes, in the order of this machine, to the start of `to`.
    fn write(&self, to: &mut [u8]);

    /// Adds the places of device addresses in a value that starts at `at`.
    fn addresses(at: usize, places: &mut Vec<usize>) {
        let _ = (at, places);
    }
}

macro_rules! plain_fields {
    ($($kind:ty),*) => {$(
        impl Field for $kind {
            fn write(&self, to: &mut [u8]) {
                to[..size_of::<Self>()].copy_from_slice(&self.to_ne_bytes());
            }
        }
    )*};
}
plain_fields!(u32, u64, i32, f32);

impl Field for DeviceAddress {
    fn write(&self, to: &mut [u8]) {
        self.0.write(to);
    }

    fn addresses(at: usize, places: &mut Vec<usize>) {
        places.push(at);
    }
}

impl<T: Field, const N: usize> Field for [T; N] {
    fn write(&self, to: &mut [u8]) {
        for (value, to) in self.iter().zip(to.chunks_exact_mut(size_of::<T>())) {
            value.write(to);
        }
    }

    fn addresses(at: usize, places: &mut Vec<usize>) {
        for i in 0..N {
            T::addresses(at + i * size_of::<T>(), places);
        }
    }
}

/// A struct that kernels read or write.
pub trait DeviceStruct: Field {
    /// Name, as in `common.cuh`.
    const NAME: &'static str;
    /// Every field in order.
    const FIELDS: &'static [FieldLayout];
}

macro_rules! device_structs {
    ($($(#[$doc:meta])* pub struct $name:ident {
        $($(#[$field_doc:meta])* $field:ident: $kind:ty,)*
    })*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq)]
        #[repr(C)]
        pub struct $name {
            $($(#[$field_doc])* pub $field: $kind,)*
        }

        impl Field for $name {
            fn write(&self, to: &mut [u8]) {
                $(self.$field.write(&mut to[std::mem::offset_of!($name, $field)..]);)*
            }

            fn addresses(at: usize, places: &mut Vec<usize>) {
                $(<$kind as Field>::addresses(at + std::mem::offset_of!($name, $field), places);)*
            }
        }

        impl DeviceStruct for $name {
            const NAME: &'static str = stringify!($name);
            const FIELDS: &'static [FieldLayout] = &[$(FieldLayout {
                name: stringify!($field),
                offset: std::mem::offset_of!($name, $field),
                bytes: size_of::<$kind>(),
            },)*];
        }
    )*};
}

device_structs! {
    /// A run of rows of one expert that one block multiplies at a time.
    pub struct Tile {
        /// Expert.
        expert: i32,
        /// First padded row; a multiple of `block_m`.
        row0: i32,
        /// Rows that hold a pair, 1 to `block_m`.
        rows: i32,
        /// Not read.
        unused: i32,
    }

    /// What the probes read and write.
    pub struct ProbeParams {
        /// What is read.
        from: DeviceAddress,
        /// What is written.
        to: DeviceAddress,
        /// Gate: memory that the host writes.
        flag: DeviceAddress,
        /// Size of what is read or written; a multiple of 16.
        bytes: u64,
        /// Gate: longest wait.
        limit_ns: u64,
        /// Which of several.
        variant: u32,
        /// Seed of the flush's pattern.
        seed: u32,
    }

    /// First 256 bytes of the workspace.
    pub struct WorkspaceHeader {
        /// Entries of the tile table.
        num_tiles: u32,
        /// Rows, padding included.
        padded_rows: u32,
        /// Status bits.
        status: u32,
        /// Experts with at least one row.
        active_experts: u32,
        /// Counters that blocks take their order from; 0 between launches.
        tickets: [u32; 60],
    }

    /// Where align puts its results.
    pub struct AlignParams {
        /// Expert of each pair, `i32[pairs]`.
        topk_ids: DeviceAddress,
        /// Rows of each expert without padding, `i32[experts]`.
        expert_count: DeviceAddress,
        /// First padded row of each expert and the number of padded rows, `i32[experts + 1]`.
        expert_offsets: DeviceAddress,
        /// Pair of each padded row, -1 for padding, `i32[capacity_rows]`.
        sorted_pairs: DeviceAddress,
        /// Padded row of each pair, -1 for a dropped pair, `i32[pairs]`.
        pair_rows: DeviceAddress,
        /// Tile table, `Tile[capacity_tiles]`.
        tiles: DeviceAddress,
        /// Scratch of the large case, `i32[blocks, experts]`.
        block_counts: DeviceAddress,
        /// The workspace's header.
        header: DeviceAddress,
        /// Pairs of token and slot.
        pairs: u32,
        /// Experts.
        experts: u32,
        /// Rows a tile, a power of two from 1 to 256.
        block_m: u32,
        /// Length of `sorted_pairs`.
        capacity_rows: u32,
        /// Length of `tiles`.
        capacity_tiles: u32,
        /// Large case: pairs that each block of the histogram and scatter takes.
        pairs_per_block: u32,
    }

    /// One routing of all tokens.
    pub struct RouterParams {
        /// `[tokens, experts]`, f32 or bf16 by kernel name.
        logits: DeviceAddress,
        /// Selection bias `f32[experts]`, or null.
        bias: DeviceAddress,
        /// Chosen experts, `i32[tokens, top_k + shared]`.
        topk_ids: DeviceAddress,
        /// Their weights, `f32[tokens, top_k + shared]`.
        topk_weights: DeviceAddress,
        /// The workspace's header.
        header: DeviceAddress,
        /// Elements between rows of logits.
        logits_stride: u64,
        /// Tokens.
        tokens: u32,
        /// Experts.
        experts: u32,
        /// Choices per token.
        top_k: u32,
        /// A [`RouterScoring`].
        scoring: u32,
        /// Groups of experts; 1 without a group limit.
        n_group: u32,
        /// Groups that a token may choose from.
        topk_group: u32,
        /// 1: a group's score is its best expert's; 0: the sum of its two best.
        group_top1: u32,
        /// 1: weights are divided by their sum.
        renormalize: u32,
        /// Factor on the weights.
        scaling: f32,
        /// 1: one more slot, expert `experts`, weight 1.
        shared: u32,
        /// 1: the last block to finish also aligns.
        fuse_align: u32,
        /// Not read.
        unused: u32,
        /// Read when `fuse_align` is 1.
        align: AlignParams,
    }

    /// One routing that computes its logits itself.
    pub struct RouterGateParams {
        /// The routing; its logits are f32 and written by the kernel.
        router: RouterParams,
        /// `bf16[tokens, hidden]` with row stride `x_stride`.
        x: DeviceAddress,
        /// `bf16[experts, hidden]`.
        gate: DeviceAddress,
        /// Elements between rows of `x`; a multiple of 8.
        x_stride: u64,
        /// Hidden size; a multiple of 8.
        hidden: u32,
        /// Not read.
        unused: u32,
    }

    /// One grouped product.
    pub struct GemmParams {
        /// Up: x `bf16[tokens, depth]`; down: h `bf16[rows, depth]`.
        a: DeviceAddress,
        /// Up: `[experts, 2, columns, depth]`; down: `[experts, columns, depth]`.
        b: DeviceAddress,
        /// 8-bit weights: one f32 a block of 128 x 128; else null.
        b_scale: DeviceAddress,
        /// `bf16[rows, columns]`.
        out: DeviceAddress,
        /// The workspace's header.
        header: DeviceAddress,
        /// Tile table.
        tiles: DeviceAddress,
        /// Pair of each padded row.
        sorted_pairs: DeviceAddress,
        /// Fast combine only: weight by pair.
        topk_weights: DeviceAddress,
        /// Fast combine only: `f32[tokens, columns]`, zero before.
        accumulate: DeviceAddress,
        /// Elements between rows of `a`; a multiple of 8.
        a_stride: u64,
        /// Elements between rows of `accumulate`.
        accumulate_stride: u64,
        /// Up: inner size; down: hidden size. A multiple of 8.
        columns: u32,
        /// Up: hidden size; down: inner size. A multiple of 8.
        depth: u32,
        /// Slots per token: pair / `top_k` is its token.
        top_k: u32,
        /// 1: gate rows precede up rows in `b`.
        gate_first: u32,
    }

    /// One grouped product whose blocks may share units of work.
    pub struct SplitGemmParams {
        /// The product.
        gemm: GemmParams,
        /// Scratch `f32[2 * blocks, 256 * block_m]`; or null: units are never shared.
        partials: DeviceAddress,
        /// `u32[2 * blocks]`, 0 between launches.
        tickets: DeviceAddress,
    }

    /// The weighted sum of each token's rows.
    pub struct CombineParams {
        /// `bf16[rows, hidden]`.
        y: DeviceAddress,
        /// Padded row of each pair.
        pair_rows: DeviceAddress,
        /// Weight of each pair.
        topk_weights: DeviceAddress,
        /// `bf16[tokens, hidden]` with row stride `out_stride`; or null.
        out: DeviceAddress,
        /// The same in f32; or null. One of both is set.
        out_f32: DeviceAddress,
        /// Elements between rows of the output; a multiple of 8.
        out_stride: u64,
        /// Tokens.
        tokens: u32,
        /// Hidden size; a multiple of 8.
        hidden: u32,
        /// Slots per token.
        top_k: u32,
        /// Not read.
        unused: u32,
    }

    /// Where the layout check writes.
    pub struct ConfigCheckParams {
        /// `u32[capacity]`.
        words: DeviceAddress,
        /// Words that fit.
        capacity: u32,
        /// Not read.
        unused: u32,
    }
}

/// A parameter struct as a launch hands it over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParamBytes {
    /// The struct's bytes; what pads it is 0.
    pub bytes: Vec<u8>,
    /// Offsets of the device addresses in it.
    pub addresses: Vec<usize>,
}

impl ParamBytes {
    /// The bytes of a parameter struct.
    pub fn of<P: DeviceStruct>(params: &P) -> Self {
        let mut bytes = vec![0; size_of::<P>()];
        params.write(&mut bytes);
        let mut addresses = Vec::new();
        P::addresses(0, &mut addresses);
        Self { bytes, addresses }
    }
}

/// Reads 32-bit words as a download brings them.
pub fn words(bytes: &[u8]) -> impl Iterator<Item = u32> {
    bytes.chunks_exact(4).map(|word| u32::from_ne_bytes([word[0], word[1], word[2], word[3]]))
}

impl WorkspaceHeader {
    /// The header from its downloaded bytes; what is missing at the end is 0.
    pub fn from_bytes(bytes: &[u8]) -> Self {
        let mut words = words(bytes);
        let mut next = || words.next().unwrap_or(0);
        Self {
            num_tiles: next(),
            padded_rows: next(),
            status: next(),
            active_experts: next(),
            tickets: std::array::from_fn(|_| next()),
        }
    }
}

impl Tile {
    /// A tile table from its downloaded bytes.
    pub fn table(bytes: &[u8]) -> Vec<Self> {
        let words: Vec<i32> = words(bytes).map(u32::cast_signed).collect();
        let tiles = words.chunks_exact(4);
        tiles.map(|t| Self { expert: t[0], row0: t[1], rows: t[2], unused: t[3] }).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> CombineParams {
        CombineParams {
            y: DeviceAddress(0x1_0000_0001),
            pair_rows: DeviceAddress(2),
            topk_weights: DeviceAddress(3),
            out: DeviceAddress(4),
            out_f32: DeviceAddress::NULL,
            out_stride: 6,
            tokens: 7,
            hidden: 8,
            top_k: 9,
            unused: 0,
        }
    }

    fn contiguous<P: DeviceStruct>() {
        let mut end = 0;
        for field in P::FIELDS {
            assert_eq!(field.offset, end, "{}::{}", P::NAME, field.name);
            end = field.offset + field.bytes;
        }
        assert_eq!(end, size_of::<P>(), "{} has bytes at its end that no field names", P::NAME);
    }

    #[test]
    fn no_struct_has_bytes_that_no_field_names() {
        contiguous::<Tile>();
        contiguous::<WorkspaceHeader>();
        contiguous::<AlignParams>();
        contiguous::<RouterParams>();
        contiguous::<RouterGateParams>();
        contiguous::<GemmParams>();
        contiguous::<SplitGemmParams>();
        contiguous::<CombineParams>();
        contiguous::<ProbeParams>();
        contiguous::<ConfigCheckParams>();
        assert_eq!(size_of::<WorkspaceHeader>(), 256);
        assert_eq!(size_of::<Tile>(), 16);
    }

    #[test]
    fn bytes_hold_each_field_at_its_offset() {
        let block = ParamBytes::of(&example());
        let word = |at: usize| words(&block.bytes[at..]).next().unwrap();
        assert_eq!((word(0), word(4)), (1, 1));
        for (i, field) in CombineParams::FIELDS.iter().enumerate().skip(5).take(4) {
            assert_eq!(word(field.offset) as usize, i + 1, "{}", field.name);
        }
        assert_eq!(block.addresses, [0, 8, 16, 24, 32]);
    }

    #[test]
    fn addresses_of_a_struct_inside_another_are_found() {
        let mut places = Vec::new();
        RouterParams::addresses(0, &mut places);
        let inner = std::mem::offset_of!(RouterParams, align);
        assert_eq!(places.len(), 5 + 8);
        assert!(places[5..].iter().enumerate().all(|(i, &p)| p == inner + 8 * i));
    }

    #[test]
    fn headers_and_tiles_are_read_back() {
        let header = WorkspaceHeader {
            num_tiles: 1,
            padded_rows: 2,
            status: 3,
            active_experts: 4,
            tickets: std::array::from_fn(|i| u32::try_from(i).unwrap()),
        };
        assert_eq!(WorkspaceHeader::from_bytes(&ParamBytes::of(&header).bytes), header);
        let tile = Tile { expert: 3, row0: 128, rows: 7, unused: -1 };
        assert_eq!(Tile::table(&ParamBytes::of(&tile).bytes), [tile]);
    }
}
