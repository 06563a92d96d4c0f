// Decode with one to four rows per expert: matrix times vector, each weight read once from memory
// for all rows of its tile. What counts is the stream of weights; tensor cores would idle.
//
// Entry points (block_m of the tile table is exactly 4, so tiles have 1 to 4 rows):
//
//   gemv_bf16_up    x [tokens, H], w13 bf16 -> h [rows, I]
//   gemv_bf16_down  h [rows, I], w2 bf16    -> y [rows, H]
//   gemv_w8_up      the same with e4m3 weights and one f32 scale for each 128 x 128 block of them;
//   gemv_w8_down    rows stay bf16, weights are widened in registers and sums are f32
//
// Launch contract. GemmParams by value, no tensor map. 128 threads; no shared memory.
//
//   kernel           blocks an SM (launch bound)  registers (sm_80, 89, 90a, 100, 120)
//   gemv_bf16_up     5                            92   90   90   96   96
//   gemv_bf16_down   5                            88   90   90   96   96
//   gemv_w8_up       4                            122  124  124  126  126
//   gemv_w8_down     4                            122  123  123  124  124
//
//   Any grid >= 1 gives the same bits; best is SMs * blocks an SM, and more than
//   ceil(num_tiles_bound * units / 4) blocks would idle, with units = columns (`up`) or columns / 2
//   (`down`). columns and depth are multiples of 8, depth of 16 for `w8`; a, b, out are 16-byte
//   aligned, a_stride a multiple of 8 (read by `up`; `down` reads rows of `depth` elements). `up`
//   reads sorted_pairs, top_k and gate_first, `down` none of them. b_scale is read by `w8` only:
//   [experts, 2, ceil(columns / 128), ceil(depth / 128)] for `up`, without the 2 for `down`. A NaN
//   code of e4m3 reads as 480 of its sign: weights are checked where they are loaded.
//
// Work. A warp takes a unit: two weight rows of one tile, gate and up of one column or two
// neighbouring columns. Units are dealt to the warps of the grid in turn, so 8 experts of 768
// columns, say, make 6144 units over 132 SMs, and no SM waits for a tile of 128 columns. A thread
// has 8 independent 16-byte loads on their way before the first is used: 512 contiguous bytes a
// warp and load, 4 KB a warp, 80 KB an SM with 20 warps (64 KB with the 16 of `w8`). Hopper needs
// some 18 KB an SM to cover its memory latency at full rate, so three of four warps may compute or
// start anew. Weights pass by L1 and leave L2 first; the few rows of a tile are read by all warps
// and stay in L1.
//
// Arithmetic. A bf16 weight costs rows + 1 instructions and its share of widening the rows, half of
// one a row; an e4m3 weight three more. An H100 can issue 17 a bf16 weight and 9 an e4m3 weight
// while one arrives at 3.35 TB/s: that covers all but e4m3 with 4 rows, where it is even.
//
// Floor: the bytes of the active experts' weights over the read bandwidth. Expected share, not
// measured: 0.85 to 0.92 for experts of 10 MB and more, less where a launch is only some 20 us long
// and its start and end show; 0.7 for `w8` with 3 and 4 rows.
//
// Sums. Lane l adds depth 8 l to 8 l + 7 (16 for `w8`) of each run of 256 (512) in order of depth,
// in one accumulator an output; the 32 sums are added pairwise at distances 16, 8, 4, 2, 1. Nothing
// depends on the grid.

#include "common.cuh"

constexpr u32 kBlockM = 4;
// Registers a thread that the blocks of an SM leave: 32 hold the loads on their way, 32 the weights
// and rows being multiplied, the rest addresses. bf16: 96. `w8`, which widens: 128.
constexpr u32 kThreads = 128;
constexpr u32 kBlocksBf16 = 5;
constexpr u32 kBlocksW8 = 4;
constexpr u32 kWarps = kThreads / kWarpSize;
// Weight rows of a unit, and 16-byte loads of each on their way.
constexpr u32 kUnitRows = 2;
constexpr u32 kLoads = 4;
// Edge of the blocks of weights that share a scale.
constexpr u32 kScaleBlock = 128;
static_assert(kUnitRows * kLoads >= 8, "eight loads a thread cover the latency of memory");
static_assert(kBlockM <= kWarpSize, "a lane writes the result of each row");

// Weights as they lie in memory: how many one 16-byte load holds, and how 8 of them are widened.
struct Bf16Weights {
    static constexpr u32 kBytesLog2 = 1;
    static constexpr u32 kPerLoad = 8;
    static constexpr bool kScaled = false;

    static DEVICE void widen(float (&w)[8], const u32 (&words)[4], u32) {
#pragma unroll
        for (u32 i = 0; i < 4; ++i) {
            w[2 * i] = low_f32(words[i]);
            w[2 * i + 1] = high_f32(words[i]);
        }
    }
};

struct E4m3Weights {
    static constexpr u32 kBytesLog2 = 0;
    static constexpr u32 kPerLoad = 16;
    static constexpr bool kScaled = true;

    // sign, 4 bits of exponent (bias 7), 3 of mantissa. Moved to the same fields of an f32 they are
    // the value times 2^-120, subnormals included, so that one exact product widens all.
    static DEVICE void widen(float (&w)[8], const u32 (&words)[4], u32 half) {
        constexpr float kRebias = 0x1p120f;
#pragma unroll
        for (u32 i = 0; i < 8; ++i) {
            const u32 top = words[2 * half + i / 4] << (24 - 8 * (i % 4));
            // The sign goes down to bit 27 with the shift; only bit 31 of it stays.
            const u32 bits = (u32)((i32)top >> 4) & 0x87f00000u;
            w[i] = mul_rn(bits_float(bits), kRebias);
        }
    }
};

// The two weight rows of a unit, and their rows of scales.
struct UnitWeights {
    const u8* row[kUnitRows];
    const float* scale[kUnitRows];
};

// sum[j][r] += weight row j . row r over the `kPerLoad` elements of depth from `k` on.
template <class W, u32 kRows>
DEVICE void consume(float (&sum)[kUnitRows][kRows], const u32x4 (&loaded)[kUnitRows],
                    const UnitWeights& weights, const bf16* const (&rows)[kRows], u32 k) {
    float partial[kUnitRows][kRows];
#pragma unroll
    for (u32 j = 0; j < kUnitRows; ++j) {
#pragma unroll
        for (u32 r = 0; r < kRows; ++r) partial[j][r] = W::kScaled ? 0.0f : sum[j][r];
    }
#pragma unroll
    for (u32 half = 0; half < W::kPerLoad / 8; ++half) {
        float w[kUnitRows][8];
#pragma unroll
        for (u32 j = 0; j < kUnitRows; ++j) {
            const u32 words[4] = {loaded[j].x, loaded[j].y, loaded[j].z, loaded[j].w};
            W::widen(w[j], words, half);
        }
#pragma unroll
        for (u32 r = 0; r < kRows; ++r) {
            const u32x4 v = ld_global(rows[r] + k + half * 8);
            const u32 words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
            for (u32 i = 0; i < 8; ++i) {
                const float x = i % 2 == 0 ? low_f32(words[i / 2]) : high_f32(words[i / 2]);
#pragma unroll
                for (u32 j = 0; j < kUnitRows; ++j) {
                    partial[j][r] = fma_rn(w[j][i], x, partial[j][r]);
                }
            }
        }
    }
#pragma unroll
    for (u32 j = 0; j < kUnitRows; ++j) {
        const float scale = W::kScaled ? weights.scale[j][k / kScaleBlock] : 1.0f;
#pragma unroll
        for (u32 r = 0; r < kRows; ++r) {
            sum[j][r] = W::kScaled ? fma_rn(scale, partial[j][r], sum[j][r]) : partial[j][r];
        }
    }
}

// sum[j][r] = weight row j . row r, in every lane.
template <class W, u32 kRows>
DEVICE void dot(float (&sum)[kUnitRows][kRows], const UnitWeights& weights,
                const bf16* const (&rows)[kRows], u32 depth) {
    constexpr u32 kRun = kWarpSize * W::kPerLoad;
    const u64 policy = policy_evict_first();
    const u32 first = thread_index() % kWarpSize * W::kPerLoad;
#pragma unroll
    for (u32 j = 0; j < kUnitRows; ++j) {
#pragma unroll
        for (u32 r = 0; r < kRows; ++r) sum[j][r] = 0.0f;
    }
#ifdef MUTANT_K_TAIL_DROPPED
    depth = depth / kRun * kRun;
#endif
#pragma unroll 1
    for (u32 k0 = first; k0 < depth; k0 += kLoads * kRun) {
        u32x4 loaded[kLoads][kUnitRows];
#pragma unroll
        for (u32 i = 0; i < kLoads; ++i) {
            const u32 k = k0 + i * kRun;
#pragma unroll
            for (u32 j = 0; j < kUnitRows; ++j) {
                loaded[i][j] = u32x4{0, 0, 0, 0};
#ifdef MUTANT_LOAD_BEHIND_WEIGHTS
                if (k < depth + kRun) {
#else
                if (k < depth) {
#endif
                    loaded[i][j] = ld_stream(weights.row[j] + ((u64)k << W::kBytesLog2), policy);
                }
            }
        }
#pragma unroll
        for (u32 i = 0; i < kLoads; ++i) {
            const u32 k = k0 + i * kRun;
            if (k < depth) consume<W, kRows>(sum, loaded[i], weights, rows, k);
        }
    }
#pragma unroll
    for (u32 j = 0; j < kUnitRows; ++j) {
#pragma unroll
        for (u32 r = 0; r < kRows; ++r) {
#pragma unroll
            for (u32 lanes = kWarpSize / 2; lanes > 0; lanes /= 2) {
                const u32 other = shfl_xor(kFullWarp, float_bits(sum[j][r]), lanes);
                sum[j][r] = add_rn(sum[j][r], bits_float(other));
            }
        }
    }
}

// The operand's row that padded row `padded_row` multiplies: gathered by pair, or contiguous.
template <bool kUp>
DEVICE const bf16* row_of(const GemmParams& p, u32 padded_row) {
    if (!kUp) return p.a + (u64)padded_row * p.depth;
    // A tile's first `rows` rows hold pairs; a table that says otherwise must not lead astray.
    const u32 pair = (u32)max_of(p.sorted_pairs[padded_row], 0);
    return p.a + (u64)(pair / p.top_k) * p.a_stride;
}

// Where the unit's weights and scales are; `unit` is the column (`up`) or half of it (`down`).
template <class W, bool kUp>
DEVICE UnitWeights unit_weights(const GemmParams& p, u32 expert, u32 unit) {
    UnitWeights weights;
    const u32 scale_columns = ceil_div(p.depth, kScaleBlock);
    const u32 scale_rows = ceil_div(p.columns, kScaleBlock);
#ifdef MUTANT_GATE_UP_SWAPPED
    const u32 gate = p.gate_first != 0 ? 1 : 0;
#else
    const u32 gate = p.gate_first != 0 ? 0 : 1;
#endif
#pragma unroll
    for (u32 j = 0; j < kUnitRows; ++j) {
        // The [columns, depth] matrix, and the row in it.
        const u64 matrix = kUp ? (u64)expert * 2 + (j ^ gate) : (u64)expert;
        const u32 column = kUp ? unit : unit * kUnitRows + j;
#ifdef MUTANT_WEIGHT_OFFSET_32
        const u32 offset = ((u32)matrix * p.columns + column) * p.depth;
#else
        const u64 offset = (matrix * p.columns + column) * p.depth;
#endif
        weights.row[j] = (const u8*)p.b + ((u64)offset << W::kBytesLog2);
        weights.scale[j] = p.b_scale;
        if (W::kScaled) {
            weights.scale[j] += (matrix * scale_rows + column / kScaleBlock) * scale_columns;
        }
    }
    return weights;
}

// Multiplies and writes one unit of a tile of at most kRows rows.
template <class W, bool kUp, u32 kRows>
DEVICE void run_unit(const GemmParams& p, const Tile& tile, u32 unit) {
    const UnitWeights weights = unit_weights<W, kUp>(p, (u32)tile.expert, unit);
    const u32 row0 = (u32)tile.row0;
    u32 count = (u32)tile.rows;
    const bf16* rows[kRows];
#pragma unroll
    for (u32 r = 0; r < kRows; ++r) {
        // Rows that the tile has not repeat its first; what they give is not written.
        rows[r] = row_of<kUp>(p, row0 + (r < count ? r : 0));
    }
    float sum[kUnitRows][kRows];
    dot<W, kRows>(sum, weights, rows, p.depth);

#ifdef MUTANT_LAST_ROW_DROPPED
    count -= 1;
#endif
#ifdef MUTANT_M_TAIL_OFF_BY_ONE
    count += 1;
#endif
    // Lane r writes row r: two neighbouring columns, or one. Padding rows are zeros.
    const u32 lane = thread_index() % kWarpSize;
    u32 pair = 0;
#pragma unroll
    for (u32 r = 0; r < kRows; ++r) {
        if (lane != r || r >= count) continue;
        pair = kUp ? pack_bf16x2(swiglu(sum[0][r], sum[1][r]), 0.0f)
                   : pack_bf16x2(sum[0][r], sum[1][r]);
    }
#ifdef MUTANT_PADDING_UNWRITTEN
    if (lane >= count) return;
#endif
    if (lane >= kBlockM) return;
    bf16* out = p.out + (u64)(row0 + lane) * p.columns + (kUp ? unit : unit * kUnitRows);
#ifdef MUTANT_STORE_BEFORE_ROWS
    if (row0 + lane == 0) *(out - p.columns) = bf16{0};
#endif
    if (kUp) {
        *out = bf16{(u16)pair};
    } else {
        *(u32*)out = pair;
    }
}

template <class W, bool kUp>
DEVICE void gemv(const GemmParams& p) {
    // Every block is resident from the start, so the next launch's blocks take no room from them.
    griddep_wait();
    griddep_launch();

    u32 num_tiles = p.header->num_tiles;
#ifdef MUTANT_LAST_TILE_DROPPED
    num_tiles -= min_of(num_tiles, 1u);
#endif
    const u32 units = kUp ? p.columns : p.columns / kUnitRows;
    // Unit w, w + warps, w + 2 warps, ... of all tiles' units, without a division an item.
    const u32 warps = grid_blocks() * kWarps;
    const u32 step_tiles = warps / units;
    const u32 step_units = warps % units;
    const u32 warp = block_index() * kWarps + thread_index() / kWarpSize;
    u32 tile_index = warp / units;
    u32 unit = warp % units;
    while (tile_index < num_tiles) {
        const Tile tile = p.tiles[tile_index];
        if (tile.rows == 1) {
            run_unit<W, kUp, 1>(p, tile, unit);
        } else if (tile.rows == 2) {
            run_unit<W, kUp, 2>(p, tile, unit);
        } else {
            run_unit<W, kUp, kBlockM>(p, tile, unit);
        }
        tile_index += step_tiles;
        unit += step_units;
        if (unit >= units) {
            unit -= units;
            tile_index += 1;
        }
    }
}

KERNEL(kThreads, kBlocksBf16)
gemv_bf16_up(GRID_CONSTANT GemmParams p) { gemv<Bf16Weights, true>(p); }
KERNEL(kThreads, kBlocksBf16)
gemv_bf16_down(GRID_CONSTANT GemmParams p) { gemv<Bf16Weights, false>(p); }
KERNEL(kThreads, kBlocksW8)
gemv_w8_up(GRID_CONSTANT GemmParams p) { gemv<E4m3Weights, true>(p); }
KERNEL(kThreads, kBlocksW8)
gemv_w8_down(GRID_CONSTANT GemmParams p) { gemv<E4m3Weights, false>(p); }
