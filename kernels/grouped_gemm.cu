// Grouped products of a mixture-of-experts layer on any tensor core since sm_80: `up` (gathered x
// times gate and up weights, SwiGLU in registers) and `down`. Ampere, Ada and consumer Blackwell
// have no other path, and every faster kernel is compared with this one.
//
// Entry points, with M = block_m of the tile table (exactly that value): 16, 32, 64, 128 of `bf16`
// and 16, 32, 64 of `w8`, whose rows are bf16 and whose weights are e4m3 with an f32 scale for each
// block of 128 x 128.
//
//   grouped_gemm_{bf16,w8}_up_m{M}         a = x, b = w13 -> out = h [rows, I], padding rows zero
//   grouped_gemm_{bf16,w8}_down_m{M}       a = h, b = w2 -> out = y [rows, H], padding rows zero
//   grouped_gemm_{bf16,w8}_down_fast_m{M}  a = h, b = w2 -> accumulate [tokens, H] f32 += weight *
//                                          row; needs it zeroed before. The order of the sums is
//                                          not fixed: not reproducible
//
// Launch contract. One parameter, GemmParams by value, no tensor map.
//
//   kernel    threads  columns a block  depth a step  stages  shared bytes  blocks an SM
//                      (up, down)       (elements)            (launch)      (launch bound)
//   bf16 16   128      64, 128          64            4       73984         3
//   bf16 32   128      64, 128          64            4       82176         2
//   bf16 64   128      64, 128          64            3       73984         3
//   bf16 128  256      128, 256         32            4       98560         1
//   w8 16     128      64, 128          128           3       61696         3
//   w8 32     128      64, 128          128           4       98560         2
//   w8 64     128      64, 128          128           3       98560         2
//
//   shared bytes = stages * depth step * (2 M + element bytes * columns of `down`) + 256, the last
//   for the alignment of two buffers. All fit the 99 KB of sm_86, sm_89 and sm_120; above 48 KB the
//   function's limit is raised first. Any grid >= 1 gives the same bits (`down_fast` aside); best
//   is SMs * resident blocks, never more than num_tiles_bound * ceil(columns / columns a block), a
//   product that stays below 2^32. columns and depth are multiples of 8, depth of 16 for `w8`; a, b
//   and out are 16-byte aligned; a_stride is a multiple of 8 (`up` reads it; `down` reads rows of
//   `depth` elements). `up` reads sorted_pairs, top_k and gate_first, `down` none, `down_fast`
//   sorted_pairs, top_k, topk_weights, accumulate and accumulate_stride, but not out. b_scale is
//   read by `w8` only: [experts, 2, ceil(columns / 128), ceil(depth / 128)] for `up`, without the 2
//   for `down`. A NaN code of e4m3 reads as 480 of its sign: weights are checked where they are
//   loaded.
//
// Tile. Weights stream once for each tile of rows. Where they are the floor (M up to 64), a step is
// one 128-byte line of each weight row, and two or three blocks an SM keep 120 to 160 KB on their
// way on Hopper. M 128 is for floors of arithmetic: 128 x 256 needs 85 FLOP a byte of cache traffic
// instead of the 64 of 128 x 128, and its 64 x 64 warp tile 32 FLOP a byte of shared memory. With
// 128 accumulators a thread one block of 8 warps fills the registers, and steps are of 32 so that
// four stages still fit 99 KB. `w8` widens weights to bf16, which hold them exactly, in registers;
// a step of 128 meets one scale, so each step's sums are scaled into a second set of accumulators,
// which leaves no room for M 128.
//
// Registers a thread (up, down), no spills:
//
//   kernel    sm_80      sm_89      sm_90a     sm_100     sm_120
//   bf16 16   80, 70     80, 70     85, 72     94, 88     82, 76
//   bf16 32   96, 96     96, 96     105, 96    125, 118   118, 104
//   bf16 64   145, 143   145, 143   155, 150   164, 160   159, 153
//   bf16 128  209, 209   209, 209   220, 215   228, 223   214, 208
//   w8 16     104, 102   104, 100   112, 107   125, 113   135, 114
//   w8 32     160, 134   162, 134   174, 148   160, 152   160, 154
//   w8 64     228, 227   228, 227   243, 239   238, 236   238, 234
//
// Expected share of the floor, not measured: 65 to 75 % of the dense bf16 rate on Ampere, 60 % on
// Hopper, whose full rate only wgmma reaches (`w8`: half of that, by its tile); 75 to 85 % of the
// read bandwidth where weights are the floor.
//
// Order. Blocks take (tile, column block) in groups of 8 tiles, tiles fastest: neighbours share
// the weights of an expert with several tiles, and the rows of a group stay in the cache. The
// loads run ahead of the products across work items, so that no pipeline drains between tiles.
//
// Shared memory. Chunk c (16 bytes) of row r lies at chunk c ^ (r & 7) of 128-byte rows, or
// c ^ ((r >> 1) & 3) of 64-byte rows: the 8 rows that one ldmatrix phase reads, and the 8 chunks
// that 8 threads copy, fall on 8 different 16-byte banks, so that neither conflicts. Rows of x and
// h in `w8` have 256 bytes and c ^ 2 (r & 3): a half warp reads 32 bytes of each of 4 rows, again
// from all banks.
//
// Sums run over depth in steps of 16 inside the tensor core, in one accumulator an element (`w8`:
// 8 steps, then acc = fma(scale, sum, acc)).

#include "common.cuh"

// Tiles that share a sweep over the columns: 8 tiles of 128 rows by 2048 of depth are 4 MB, which
// every level-2 cache since sm_80 holds.
constexpr u32 kGroupTiles = 8;
// Edge of the blocks of 8-bit weights that share a scale.
constexpr u32 kScaleBlock = 128;

// How weights lie in memory, as bytes an element.
enum Format : u32 {
    kE4m3 = 1,  // with an f32 scale for each 128 x 128 block
    kBf16 = 2,
};

template <Format kFormat, u32 BlockM, u32 WeightRows, u32 DepthStep, u32 Stages, u32 WarpsM,
          u32 WarpsN>
struct Shape {
    static constexpr bool kScaled = kFormat == kE4m3;
    static constexpr u32 kBlockM = BlockM;
    static constexpr u32 kWeightRows = WeightRows;
    static constexpr u32 kDepthStep = DepthStep;
    static constexpr u32 kStages = Stages;
    static constexpr u32 kWarpsN = WarpsN;
    static constexpr u32 kThreads = WarpsM * WarpsN * kWarpSize;

    // What one warp multiplies, in instructions of 16 rows by 8 weight rows.
    static constexpr u32 kWarpM = BlockM / WarpsM;
    static constexpr u32 kWarpN = WeightRows / WarpsN;
    static constexpr u32 kFragmentsM = kWarpM / 16;
    static constexpr u32 kFragmentsN = kWarpN / 8;

    // Elements of a 16-byte chunk: the unit of copies, of swizzling and of bounds.
    static constexpr u32 kChunkA = 8;
    static constexpr u32 kChunkB = 16 / kFormat;
    static constexpr u32 kWeightBytes = kFormat;
    static constexpr u32 kChunksA = DepthStep / kChunkA;
    static constexpr u32 kChunksB = DepthStep / kChunkB;
    static constexpr u32 kRowBytesA = kChunksA * 16;
    static constexpr u32 kRowBytesB = kChunksB * 16;
    static constexpr u32 kBytesA = BlockM * kRowBytesA;
    static constexpr u32 kBytesB = WeightRows * kRowBytesB;
    static constexpr u32 kSharedBytes = Stages * (kBytesA + kBytesB) + 256;

    // All threads copy one chunk each, so many rows at a time.
    static constexpr u32 kRowsPerPassA = kThreads / kChunksA;
    static constexpr u32 kRowsPerPassB = kThreads / kChunksB;
    static constexpr u32 kPassesA = BlockM / kRowsPerPassA;
    static constexpr u32 kPassesB = WeightRows / kRowsPerPassB;

    static_assert(kRowBytesB == 64 || kRowBytesB == 128, "the swizzle knows these rows");
    static_assert(kRowBytesA == kRowBytesB || kScaled, "bf16 rows are swizzled alike");
    static_assert(BlockM % (WarpsM * 16) == 0, "a warp's rows are whole instructions");
    static_assert(kWarpN % 32 == 0, "gate and up halves of a warp are whole pairs of fragments");
    static_assert(kRowsPerPassA % 8 == 0 && kRowsPerPassB % 8 == 0,
                  "a thread's chunk keeps its swizzle from pass to pass");
    static_assert(BlockM % kRowsPerPassA == 0, "rows are copied in whole passes");
    static_assert((WeightRows / 2) % kRowsPerPassB == 0, "gate and up are copied in whole passes");
    static_assert(Stages >= 3, "one stage is multiplied while two or more are on their way");
    static_assert(kSharedBytes <= 99 * 1024, "fits sm_86, sm_89 and sm_120");
    static_assert(kFragmentsM * kFragmentsN * 4 * (kScaled ? 2 : 1) <= 128,
                  "accumulators leave half the registers");
    static_assert(!kScaled || (DepthStep == kScaleBlock && kScaleBlock % WeightRows == 0),
                  "a step of a tile meets one scale, or one of each half");

    // Where chunk `chunk` of row `row` lies in a stage.
    static DEVICE u32 offset_b(u32 row, u32 chunk) {
        constexpr u32 kRowsPerLine = 128 / kRowBytesB;
        return row * kRowBytesB + ((chunk ^ ((row / kRowsPerLine) % kChunksB)) << 4);
    }
    static DEVICE u32 offset_a(u32 row, u32 chunk) {
        if (!kScaled) return offset_b(row, chunk);
        return row * kRowBytesA + ((chunk ^ (row % 4 * 2)) << 4);
    }
};

// M up to 64: every warp takes all rows and a quarter of the weights, so that a weight is read from
// shared memory, and widened, once. M 128: 2 x 4 warps of 64 x 64.
using Bf16M16 = Shape<kBf16, 16, 128, 64, 4, 1, 4>;
using Bf16M32 = Shape<kBf16, 32, 128, 64, 4, 1, 4>;
using Bf16M64 = Shape<kBf16, 64, 128, 64, 3, 1, 4>;
using Bf16M128 = Shape<kBf16, 128, 256, 32, 4, 2, 4>;
using W8M16 = Shape<kE4m3, 16, 128, 128, 3, 1, 4>;
using W8M32 = Shape<kE4m3, 32, 128, 128, 4, 1, 4>;
using W8M64 = Shape<kE4m3, 64, 128, 128, 3, 1, 4>;

enum Product : u32 { kUp, kDown, kDownFast };

// What a block multiplies at a time.
struct Work {
    Tile tile;
    u32 column0;  // first output column
};

// The (tile, column block) sequence: work item i of all of them, the same for every block.
struct Sequence {
    u32 num_tiles;
    u32 column_blocks;

    DEVICE u32 count() const { return num_tiles * column_blocks; }

    template <u32 kColumns>
    DEVICE Work at(const Tile* tiles, u32 index) const {
        const u32 group_items = kGroupTiles * column_blocks;
        const u32 group = index / group_items;
        const u32 within = index - group * group_items;
        const u32 first = group * kGroupTiles;
        const u32 size = min_of(kGroupTiles, num_tiles - first);
        const u32 column_block = within / size;
        return Work{tiles[first + within - column_block * size], column_block * kColumns};
    }
};

// Output columns of a work item: `up` needs two weight rows, gate and up, for each.
template <class S, Product kProduct>
constexpr u32 kColumnsOf = kProduct == kUp ? S::kWeightRows / 2 : S::kWeightRows;

// Whether gate rows precede up rows in w13.
DEVICE bool gate_first(const GemmParams& p) {
#ifdef MUTANT_GATE_UP_SWAPPED
    return p.gate_first == 0;
#else
    return p.gate_first != 0;
#endif
}

// Walks the work items of a block step by step, ahead of the products, and copies.
template <class S, Product kProduct>
class Loader {
public:
    // The block has a work item at least.
    DEVICE Loader(const GemmParams& p, Sequence sequence, u32 a_ring, u32 b_ring)
        : p_(p), sequence_(sequence), index_(block_index()), k_(0) {
        a_row_ = thread_index() / S::kChunksA;
        b_row_ = thread_index() / S::kChunksB;
        a_k_ = thread_index() % S::kChunksA * S::kChunkA;
        b_k_ = thread_index() % S::kChunksB * S::kChunkB;
        a_to_ = a_ring + S::offset_a(a_row_, thread_index() % S::kChunksA);
        b_to_ = b_ring + S::offset_b(b_row_, thread_index() % S::kChunksB);
        start();
    }

    // Copies the next step into `stage`; nothing once all work is copied. The caller commits.
    DEVICE void copy(u32 stage) {
        if (index_ >= sequence_.count()) return;
        const bool a_in_depth = k_ + a_k_ < readable_depth();
#pragma unroll
        for (u32 i = 0; i < S::kPassesA; ++i) {
            const u32 to = a_to_ + stage * S::kBytesA + i * S::kRowsPerPassA * S::kRowBytesA;
            cp_async16(to, a_[i] + k_, a_in_depth && ((a_rows_ >> i) & 1) ? 16 : 0);
        }
        const bool b_in_depth = k_ + b_k_ < readable_depth();
#pragma unroll
        for (u32 i = 0; i < S::kPassesB; ++i) {
            // `up`: the first half of the passes are gate rows, the second up rows.
            constexpr u32 kHalf = kProduct == kUp ? S::kPassesB / 2 : S::kPassesB;
            const u32 row = (i % kHalf) * S::kRowsPerPassB;
            const u8* from =
                (i < kHalf ? b_ : b_up_) + ((u64)row * p_.depth + k_) * S::kWeightBytes;
            const u32 to = b_to_ + stage * S::kBytesB + i * S::kRowsPerPassB * S::kRowBytesB;
            cp_async16(to, from, b_in_depth && (i32)row < b_rows_ ? 16 : 0);
        }
        k_ += S::kDepthStep;
        if (k_ < p_.depth) return;
        k_ = 0;
        index_ += grid_blocks();
        if (index_ < sequence_.count()) start();
    }

private:
    // Depth that exists; what lies past it is copied as zeros.
    DEVICE u32 readable_depth() const {
#ifdef MUTANT_K_TAIL_DROPPED
        return p_.depth / S::kDepthStep * S::kDepthStep;
#else
        return p_.depth;
#endif
    }

    // Finds the rows and weights of work item `index_`.
    DEVICE void start() {
        const Work work = sequence_.template at<kColumnsOf<S, kProduct>>(p_.tiles, index_);
        start_a(work.tile);
        start_b((u32)work.tile.expert, work.column0);
    }

    DEVICE void start_a(const Tile& tile) {
        a_rows_ = 0;
#pragma unroll
        for (u32 i = 0; i < S::kPassesA; ++i) {
            const i32 row = (i32)(a_row_ + i * S::kRowsPerPassA);
            a_[i] = p_.a + a_k_;
#ifdef MUTANT_M_TAIL_OFF_BY_ONE
            if (row > tile.rows) continue;
#else
            if (row >= tile.rows) continue;
#endif
            u64 source = (u64)(tile.row0 + row);
            u64 stride = p_.depth;
            if (kProduct == kUp) {
                i32 pair = p_.sorted_pairs[source];
#ifdef MUTANT_M_TAIL_OFF_BY_ONE
                pair = max_of(pair, 0);
#endif
                if (pair < 0) continue;
                source = (u32)pair / p_.top_k;
                stride = p_.a_stride;
            }
            a_[i] += source * stride;
            a_rows_ |= 1u << i;
        }
    }

    DEVICE void start_b(u32 expert, u32 column0) {
        const u32 column = column0 + b_row_;
        b_rows_ = (i32)p_.columns - (i32)column;
#ifdef MUTANT_WEIGHT_OFFSET_32
        const u32 matrix = p_.columns * p_.depth;
        const u32 first = expert * (kProduct == kUp ? 2 : 1) * matrix;
#else
        const u64 matrix = (u64)p_.columns * p_.depth;
        const u64 first = expert * (kProduct == kUp ? 2 : 1) * matrix;
#endif
        const u64 offset = first + (u64)column * p_.depth + b_k_;
        b_ = (const u8*)p_.b + offset * S::kWeightBytes;
        if (kProduct != kUp) return;
        const u64 half = (u64)matrix * S::kWeightBytes;
        const bool first_gate = gate_first(p_);
        b_up_ = b_ + (first_gate ? half : 0);
        b_ += first_gate ? 0 : half;
    }

    const GemmParams& p_;
    Sequence sequence_;
    u32 index_;  // work item that is being copied
    u32 k_;      // depth copied of it
    // This thread's first row of a pass, and where in a step its chunk begins.
    u32 a_row_;
    u32 b_row_;
    u32 a_k_;
    u32 b_k_;
    // Where its first chunks go in stage 0.
    u32 a_to_;
    u32 b_to_;
    const bf16* a_[S::kPassesA];
    u32 a_rows_;       // bit i: the row of pass i holds a pair
    const u8* b_;      // `up`: of the gate
    const u8* b_up_;
    i32 b_rows_;       // weight rows that exist from this thread's first on; negative for none
};

template <class S>
using Accumulators = float[S::kFragmentsM][S::kFragmentsN][4];

// First weight row, within a stage, of this warp's pair of fragments `pair`. `up`: a warp holds
// gate and up of the same columns, half of its pairs each.
template <class S, Product kProduct>
DEVICE u32 weight_row(u32 warp_n, u32 pair) {
    constexpr u32 kPairs = S::kFragmentsN / 2;
    if (kProduct != kUp) return warp_n * S::kWarpN + pair * 16;
    const u32 half = pair >= kPairs / 2 ? S::kWeightRows / 2 : 0;
    return half + warp_n * (S::kWarpN / 2) + pair % (kPairs / 2) * 16;
}

// acc += a b for one stage. `a` and `b` are the addresses from which this lane reads its first
// fragment; a further 16 of depth flips address bits 5 and 6, which the swizzle leaves an exclusive
// or.
template <class S, Product kProduct>
DEVICE void multiply(Accumulators<S>& acc, u32 a, u32 b) {
#pragma unroll
    for (u32 step = 0; step < S::kDepthStep / 16; ++step) {
        u32 weights[S::kFragmentsN][2];
#pragma unroll
        for (u32 pair = 0; pair < S::kFragmentsN / 2; ++pair) {
            u32 r[4];
            ldmatrix_x4(r, (b ^ (step << 5)) + weight_row<S, kProduct>(0, pair) * S::kRowBytesB);
            weights[2 * pair][0] = r[0];
            weights[2 * pair][1] = r[1];
            weights[2 * pair + 1][0] = r[2];
            weights[2 * pair + 1][1] = r[3];
        }
#pragma unroll
        for (u32 i = 0; i < S::kFragmentsM; ++i) {
            u32 rows[4];
            ldmatrix_x4(rows, (a ^ (step << 5)) + i * 16 * S::kRowBytesA);
#pragma unroll
            for (u32 j = 0; j < S::kFragmentsN; ++j) {
                mma_m16n8k16_bf16(acc[i][j], rows, weights[j]);
            }
        }
    }
}

// Two times two e4m3 as bf16, which hold them exactly. Sign, 4 bits of exponent (bias 7) and 3 of
// mantissa, moved to the same fields of an f32, are the value times 2^-120, subnormals included.
DEVICE void widen(u32 (&pairs)[2], u32 word) {
    constexpr float kRebias = 0x1p120f;
    float w[4];
#pragma unroll
    for (u32 i = 0; i < 4; ++i) {
        // The sign goes down to bit 27 with the shift; only bit 31 of it stays.
        const u32 bits = (u32)((i32)(word << (24 - 8 * i)) >> 4) & 0x87f00000u;
        w[i] = mul_rn(bits_float(bits), kRebias);
    }
    pairs[0] = pack_bf16x2(w[0], w[1]);
    pairs[1] = pack_bf16x2(w[2], w[3]);
}

// The same as `multiply` with e4m3 weights. A lane gets four neighbouring weights of 16 along depth
// where the instruction has two and, 8 further, two. A sum may be taken in any order, so the lane
// reads the four elements of the rows that its weights meet. `a` counts from `a_ring`.
template <class S, Product kProduct>
DEVICE void multiply_w8(Accumulators<S>& acc, const u8* a_ring, u32 a, u32 b) {
#pragma unroll
    for (u32 step = 0; step < S::kDepthStep / 16; step += 2) {
        u32 weights[2][S::kFragmentsN][2];
#pragma unroll
        for (u32 pair = 0; pair < S::kFragmentsN / 2; ++pair) {
            u32 r[4];
            ldmatrix_x4(r, (b ^ (step << 4)) + weight_row<S, kProduct>(0, pair) * S::kRowBytesB);
#pragma unroll
            for (u32 q = 0; q < 4; ++q) widen(weights[q % 2][2 * pair + q / 2], r[q]);
        }
#pragma unroll
        for (u32 half = 0; half < 2; ++half) {
#pragma unroll
            for (u32 i = 0; i < S::kFragmentsM; ++i) {
                const u8* row = a_ring + (a ^ ((step + half) << 5)) + i * 16 * S::kRowBytesA;
                const u64 low = *(const u64*)row;
                const u64 high = *(const u64*)(row + 8 * S::kRowBytesA);
                const u32 rows[4] = {(u32)low, (u32)high, (u32)(low >> 32), (u32)(high >> 32)};
#pragma unroll
                for (u32 j = 0; j < S::kFragmentsN; ++j) {
                    mma_m16n8k16_bf16(acc[i][j], rows, weights[half][j]);
                }
            }
        }
    }
}

template <class S>
DEVICE void clear(Accumulators<S>& acc) {
#pragma unroll
    for (u32 i = 0; i < S::kFragmentsM; ++i) {
#pragma unroll
        for (u32 j = 0; j < S::kFragmentsN; ++j) {
#pragma unroll
            for (u32 c = 0; c < 4; ++c) acc[i][j][c] = 0.0f;
        }
    }
}

// Scales of a work item along depth: `up` has one of each half.
struct Scales {
    const float* gate;  // `down`: of all
    const float* up;
};

template <class S, Product kProduct>
DEVICE Scales scales_of(const GemmParams& p, Sequence sequence, u32 index) {
    const Work work = sequence.template at<kColumnsOf<S, kProduct>>(p.tiles, index);
    const u32 blocks = ceil_div(p.depth, kScaleBlock);
    const u64 matrix = (u64)ceil_div(p.columns, kScaleBlock) * blocks;
    const u64 expert = (u64)(u32)work.tile.expert * (kProduct == kUp ? 2 : 1) * matrix;
    const float* first = p.b_scale + expert + (u64)(work.column0 / kScaleBlock) * blocks;
    const bool first_gate = kProduct != kUp || gate_first(p);
    return Scales{first + (first_gate ? 0 : matrix), first + (first_gate ? matrix : 0)};
}

// acc += scale * sums of one block of 128 along depth.
template <class S, Product kProduct>
DEVICE void promote(Accumulators<S>& acc, const Accumulators<S>& sums, float gate, float up) {
#pragma unroll
    for (u32 i = 0; i < S::kFragmentsM; ++i) {
#pragma unroll
        for (u32 j = 0; j < S::kFragmentsN; ++j) {
            const float scale = kProduct == kUp && j >= S::kFragmentsN / 2 ? up : gate;
#pragma unroll
            for (u32 c = 0; c < 4; ++c) acc[i][j][c] = fma_rn(scale, sums[i][j][c], acc[i][j][c]);
        }
    }
}

// Transposes the 4 x 4 words that the four lanes of a quad hold: lane t ends with word t of lanes 0
// to 3.
DEVICE void transpose_quad(u32 (&r)[4]) {
    const bool odd = thread_index() & 1;
    const bool high = thread_index() & 2;
#pragma unroll
    for (u32 i = 0; i < 4; i += 2) {
        const u32 other = shfl_xor(kFullWarp, odd ? r[i] : r[i + 1], 1);
        r[i] = odd ? other : r[i];
        r[i + 1] = odd ? r[i + 1] : other;
    }
#pragma unroll
    for (u32 i = 0; i < 2; ++i) {
        const u32 other = shfl_xor(kFullWarp, high ? r[i] : r[i + 2], 2);
        r[i] = high ? other : r[i];
        r[i + 2] = high ? r[i + 2] : other;
    }
}

// Output words of this lane: two columns of row half `half` (rows g and g + 8) of fragment `j`.
template <class S, Product kProduct>
DEVICE u32 output_pair(const float (&acc)[S::kFragmentsN][4], u32 j, u32 half) {
    if (kProduct != kUp) return pack_bf16x2(acc[j][2 * half], acc[j][2 * half + 1]);
    const u32 up = j + S::kFragmentsN / 2;
    return pack_bf16x2(swiglu(acc[j][2 * half], acc[up][2 * half]),
                       swiglu(acc[j][2 * half + 1], acc[up][2 * half + 1]));
}

// Rounds and writes a work item. The quads of a warp exchange words so that each lane holds 8
// neighbouring columns: 16-byte stores that fill 32-byte sectors. Padding rows are written as zeros
// whatever the weights are.
template <class S, Product kProduct>
DEVICE void store(const GemmParams& p, const Work& work, const Accumulators<S>& acc) {
    constexpr u32 kColumnFragments = kProduct == kUp ? S::kFragmentsN / 2 : S::kFragmentsN;
    const u32 lane = thread_index() % kWarpSize;
    const u32 warp = thread_index() / kWarpSize;
    const u32 warp_row = warp / S::kWarpsN * S::kWarpM + lane / 4;
    const u32 row_of_lane = warp_row + (lane & 2) * 4;
    const u32 column = work.column0 + warp % S::kWarpsN * kColumnFragments * 8 + (lane & 1) * 8;
    u32 rows = (u32)work.tile.rows;
#ifdef MUTANT_LAST_ROW_DROPPED
    rows -= 1;
#endif
#ifdef MUTANT_M_TAIL_OFF_BY_ONE
    rows += 1;
#endif
#pragma unroll
    for (u32 i = 0; i < S::kFragmentsM; ++i) {
        const bool low_real = warp_row + i * 16 < rows;
        const bool high_real = warp_row + i * 16 + 8 < rows;
        const u32 row = row_of_lane + i * 16;
        bf16* out = p.out + (u64)((u32)work.tile.row0 + row) * p.columns;
#pragma unroll
        for (u32 j = 0; j < kColumnFragments; j += 2) {
            u32 words[4];
            words[0] = low_real ? output_pair<S, kProduct>(acc[i], j, 0) : 0;
            words[1] = low_real ? output_pair<S, kProduct>(acc[i], j + 1, 0) : 0;
            words[2] = high_real ? output_pair<S, kProduct>(acc[i], j, 1) : 0;
            words[3] = high_real ? output_pair<S, kProduct>(acc[i], j + 1, 1) : 0;
            transpose_quad(words);
#ifdef MUTANT_PADDING_UNWRITTEN
            if (row >= rows) continue;
#endif
            if (column + j * 8 < p.columns) {
                st_global(out + column + j * 8, u32x4{words[0], words[1], words[2], words[3]});
            }
        }
    }
}

// Adds a work item, weighted, into its tokens' sums.
template <class S>
DEVICE void accumulate(const GemmParams& p, const Work& work, const Accumulators<S>& acc) {
    const u32 lane = thread_index() % kWarpSize;
    const u32 warp = thread_index() / kWarpSize;
    const u32 warp_row = warp / S::kWarpsN * S::kWarpM + lane / 4;
    const u32 column = work.column0 + warp % S::kWarpsN * S::kWarpN + lane % 4 * 2;
#pragma unroll
    for (u32 i = 0; i < S::kFragmentsM * 2; ++i) {
        const u32 row = warp_row + i * 8;
#ifdef MUTANT_LAST_ROW_DROPPED
        if (row + 1 >= (u32)work.tile.rows) continue;
#else
        if (row >= (u32)work.tile.rows) continue;
#endif
        const i32 pair = p.sorted_pairs[(u32)work.tile.row0 + row];
        if (pair < 0) continue;
        const float weight = p.topk_weights[pair];
        float* sums = p.accumulate + (u64)((u32)pair / p.top_k) * p.accumulate_stride;
#pragma unroll
        for (u32 j = 0; j < S::kFragmentsN; ++j) {
            if (column + j * 8 >= p.columns) continue;
            red_add_f32_gpu(sums + column + j * 8, weight * acc[i / 2][j][i % 2 * 2]);
            red_add_f32_gpu(sums + column + j * 8 + 1, weight * acc[i / 2][j][i % 2 * 2 + 1]);
        }
    }
}

template <class S, Product kProduct>
DEVICE void grouped_gemm(const GemmParams& p) {
    Arena arena;
    const u8* a_ring = arena.take<u8>(S::kStages * S::kBytesA, 128);
    const u32 b_ring = smem_addr(arena.take<u8>(S::kStages * S::kBytesB, 128));

    // Every block is resident from the start, so the next launch's blocks take no room from them.
    griddep_wait();
    griddep_launch();

    constexpr u32 kColumns = kColumnsOf<S, kProduct>;
    u32 num_tiles = p.header->num_tiles;
#ifdef MUTANT_LAST_TILE_DROPPED
    num_tiles -= min_of(num_tiles, 1u);
#endif
    const Sequence sequence{num_tiles, ceil_div(p.columns, kColumns)};
    if (block_index() >= sequence.count()) return;
    Loader<S, kProduct> loader(p, sequence, smem_addr(a_ring), b_ring);
#pragma unroll
    for (u32 stage = 0; stage + 1 < S::kStages; ++stage) {
        loader.copy(stage);
        cp_async_commit();
    }

    // ldmatrix lanes: 0-15 name the 16 rows of an A fragment at its first 8 of depth, 16-31 at the
    // second 8. Of two B fragments, lanes 0-7 and 8-15 name the first 8 weight rows at both halves
    // of depth, 16-31 the other 8 rows. `w8`: lane 4 g + t reads A rows g and g + 8 at depth 4 t.
    const u32 lane = thread_index() % kWarpSize;
    const u32 warp = thread_index() / kWarpSize;
    const u32 warp_row = warp / S::kWarpsN * S::kWarpM;
    const u32 a_first = S::kScaled
                            ? S::offset_a(warp_row + lane / 4, lane % 4 / 2) + lane % 2 * 8
                            : smem_addr(a_ring) + S::offset_a(warp_row + lane % 16, lane / 16);
    const u32 b_first = b_ring + S::offset_b(weight_row<S, kProduct>(warp % S::kWarpsN, 0) +
                                                 lane % 8 + lane / 16 * 8,
                                             lane / 8 % 2);

    u32 stage = 0;
    for (u32 index = block_index(); index < sequence.count(); index += grid_blocks()) {
        Accumulators<S> acc;
        clear<S>(acc);
        Scales scales{};
        if constexpr (S::kScaled) scales = scales_of<S, kProduct>(p, sequence, index);
#pragma unroll 1
        for (u32 k = 0; k < p.depth; k += S::kDepthStep) {
            // This thread's copies of the stage have landed. After the barrier everybody's have,
            // and everybody has read the stage before it, which is copied into next.
#ifndef MUTANT_CP_ASYNC_WAIT_MISSING
            cp_async_wait<(i32)S::kStages - 2>();
#endif
#ifndef MUTANT_BLOCK_SYNC_MISSING
            block_sync();
#endif
            loader.copy(stage == 0 ? S::kStages - 1 : stage - 1);
            cp_async_commit();
            const u32 a = a_first + stage * S::kBytesA;
            const u32 b = b_first + stage * S::kBytesB;
            if constexpr (S::kScaled) {
                const float gate = scales.gate[k / kScaleBlock];
                const float up = kProduct == kUp ? scales.up[k / kScaleBlock] : gate;
                Accumulators<S> sums;
                clear<S>(sums);
                multiply_w8<S, kProduct>(sums, a_ring, a, b);
                promote<S, kProduct>(acc, sums, gate, up);
            } else {
                multiply<S, kProduct>(acc, a, b);
            }
            stage = stage + 1 == S::kStages ? 0 : stage + 1;
        }
        const Work work = sequence.template at<kColumns>(p.tiles, index);
        if (kProduct == kDownFast) {
            accumulate<S>(p, work, acc);
        } else {
            store<S, kProduct>(p, work, acc);
        }
    }
    // Only empty groups are left, but none is left pending at exit.
    cp_async_wait<0>();
}

#define GROUPED_GEMM(DTYPE, M, SHAPE, BLOCKS)                                                     \
    KERNEL(SHAPE::kThreads, BLOCKS)                                                               \
    grouped_gemm_##DTYPE##_up_m##M(GRID_CONSTANT GemmParams p) { grouped_gemm<SHAPE, kUp>(p); }   \
    KERNEL(SHAPE::kThreads, BLOCKS)                                                               \
    grouped_gemm_##DTYPE##_down_m##M(GRID_CONSTANT GemmParams p) {                                \
        grouped_gemm<SHAPE, kDown>(p);                                                            \
    }                                                                                             \
    KERNEL(SHAPE::kThreads, BLOCKS)                                                               \
    grouped_gemm_##DTYPE##_down_fast_m##M(GRID_CONSTANT GemmParams p) {                           \
        grouped_gemm<SHAPE, kDownFast>(p);                                                        \
    }

GROUPED_GEMM(bf16, 16, Bf16M16, 3)
GROUPED_GEMM(bf16, 32, Bf16M32, 2)
GROUPED_GEMM(bf16, 64, Bf16M64, 3)
GROUPED_GEMM(bf16, 128, Bf16M128, 1)
GROUPED_GEMM(w8, 16, W8M16, 3)
GROUPED_GEMM(w8, 32, W8M32, 2)
GROUPED_GEMM(w8, 64, W8M64, 2)
