// What all kernels share: the workspace's layout, parameter structs, the arena, conversions.
//
// No PTX here (ptx.cuh) and no host header. Every struct is mirrored by a `#[repr(C)]` struct in
// src/gpu/params.rs; config_check.cu writes sizes and offsets, and a test compares the two.
//
// One layer, with T tokens, k experts per token, P = T * k pairs (pair p = token * k + slot), E
// experts, hidden size H and inner size I:
//
//   router    logits [T, E]                    -> topk_ids, topk_weights [P]
//   align     topk_ids                         -> sorted_pairs, pair_rows, tiles, expert offsets
//   up        x [T, H], w13 [E, 2, I, H]       -> h [rows, I]     (gathered, SwiGLU)
//   down      h, w2 [E, H, I]                  -> y [rows, H]
//   combine   y, pair_rows, topk_weights       -> out [T, H]
//
// `rows` are the pairs grouped by expert, each expert's segment padded to a multiple of `block_m`.
// Padding rows of h and y are exact zeros. Rounding: x and weights bf16; sums f32; h bf16; y bf16;
// the weighted sum f32; out bf16.

#pragma once

#include "ptx.cuh"

// Most experts and most choices per token; the host refuses more.
constexpr u32 kMaxExperts = 1024;
constexpr u32 kMaxTopK = 32;
// Most groups of a group-limited choice.
constexpr u32 kMaxGroups = 32;

// Status bits, set by kernels and read by the host after a synchronisation.
constexpr u32 kStatusNonFiniteLogit = 1;  // a logit is NaN: it was taken as -infinity
constexpr u32 kStatusBadExpertId = 2;     // an id is not below E: its pair was dropped
constexpr u32 kStatusCapacity = 4;        // a table would have overflowed: nothing was written past it

// A run of rows of one expert that one block multiplies at a time.
struct Tile {
    i32 expert;
    i32 row0;  // first padded row; a multiple of block_m
    i32 rows;  // rows that hold a pair, 1 to block_m
    i32 unused;
};

// First 256 bytes of the workspace.
struct WorkspaceHeader {
    u32 num_tiles;
    u32 padded_rows;
    u32 status;
    u32 active_experts;
    // Counters that blocks take their order from. 0 between launches: the last arriver resets its
    // own. 0: router (fused align), 1: align, 2..: free.
    u32 tickets[60];
};
static_assert(sizeof(WorkspaceHeader) == 256, "the header is 256 bytes");

// How scores become choices and weights; values as in src/gpu/params.rs.
enum RouterScoring : u32 {
    kSoftmax = 0,          // softmax over all experts
    kSoftmaxOverTopK = 1,  // softmax over the chosen experts
    kSigmoid = 2,          // sigmoid; the bias moves the choice, not the weight
    kSoftplusSqrt = 3,     // sqrt(softplus); bias as above
    kPrototype = 4,        // k groups of E / k experts, the best of each by softmax in its group
};

// Where align puts its results; also embedded in the router for the fused small case.
struct AlignParams {
    const i32* topk_ids;  // [pairs]
    i32* expert_count;    // [experts] rows without padding
    i32* expert_offsets;  // [experts + 1] first padded row; the last is the number of padded rows
    i32* sorted_pairs;    // [capacity_rows] pair of each padded row, -1 for padding
    i32* pair_rows;       // [pairs] padded row of each pair: the inverse; -1 for a dropped pair
    Tile* tiles;          // [capacity_tiles]
    i32* block_counts;    // [blocks, experts] scratch of the large case
    WorkspaceHeader* header;
    u32 pairs;
    u32 experts;
    u32 block_m;          // rows a tile, a power of two from 1 to 256
    u32 capacity_rows;
    u32 capacity_tiles;
    u32 pairs_per_block;  // large case: pairs that each block of the histogram and scatter takes
};

struct RouterParams {
    const void* logits;  // [tokens, experts] f32 or bf16 by kernel name
    const float* bias;   // [experts], or null
    i32* topk_ids;       // [tokens, top_k + shared]
    float* topk_weights; // the same
    WorkspaceHeader* header;
    u64 logits_stride;   // elements between rows
    u32 tokens;
    u32 experts;
    u32 top_k;
    u32 scoring;         // RouterScoring
    u32 n_group;
    u32 topk_group;
    u32 group_top1;      // 1: a group's score is its best expert's; 0: the sum of its two best
    u32 renormalize;
    float scaling;
    u32 shared;          // 1: one more slot, expert `experts`, weight 1
    u32 fuse_align;      // 1: the last block to finish also aligns
    u32 unused;
    AlignParams align;   // read when fuse_align is 1
};

// Router that computes its logits itself.
struct RouterGateParams {
    RouterParams router;  // logits: f32, written by the kernel
    const bf16* x;        // [tokens, hidden] with row stride x_stride
    const bf16* gate;     // [experts, hidden]
    u64 x_stride;         // elements; a multiple of 8
    u32 hidden;           // a multiple of 8
    u32 unused;
};

// One grouped product. `up`: a = x gathered by sorted_pairs, b = w13, out = h. `down`: a = h,
// b = w2, out = y.
struct GemmParams {
    const bf16* a;            // up: [tokens, depth] with row stride a_stride; down: [rows, depth]
    const void* b;            // up: [experts, 2, columns, depth]; down: [experts, columns, depth]
    const float* b_scale;     // 8-bit weights: one scale a 128 x 128 block, [experts, (2,) ceil(columns/128), ceil(depth/128)]; else null
    bf16* out;                // [rows, columns]
    const WorkspaceHeader* header;
    const Tile* tiles;
    const i32* sorted_pairs;
    const float* topk_weights;  // fast combine only: weight by pair
    float* accumulate;          // fast combine only: [tokens, columns] f32, zero before
    u64 a_stride;             // elements; a multiple of 8
    u64 accumulate_stride;    // elements
    u32 columns;              // up: I, down: H; a multiple of 8
    u32 depth;                // up: H, down: I; a multiple of 8
    u32 top_k;                // slots per token: pair / top_k is its token
    u32 gate_first;           // 1: gate rows precede up rows in w13
};

// One grouped product whose blocks may share a tile: each sums a part of the depth, and the last to
// finish adds the parts in order of depth.
struct SplitGemmParams {
    GemmParams gemm;
    float* partials;  // [2 * blocks, 256 * block_m] scratch; or null: tiles are never shared
    u32* tickets;     // [2 * blocks]; 0 between launches: the last to arrive resets its own
};

struct CombineParams {
    const bf16* y;              // [rows, hidden]
    const i32* pair_rows;       // [tokens * top_k]
    const float* topk_weights;  // [tokens * top_k]
    bf16* out;                  // [tokens, hidden] with row stride out_stride; or null
    float* out_f32;             // the same in f32; or null. One of both is set
    u64 out_stride;             // elements; a multiple of 8
    u32 tokens;
    u32 hidden;                 // a multiple of 8
    u32 top_k;
    u32 unused;
};

// What the kernels of probe.cu and probe_sm90.cu read and write.
struct ProbeParams {
    const void* from;
    void* to;
    u32* flag;     // gate only: memory that the host writes
    u64 bytes;     // size of `from`, or of what is written; a multiple of 16
    u64 limit_ns;  // gate only: longest wait
    u32 variant;   // which of several
    u32 seed;      // of the flush's pattern
};

// Where config_check.cu writes.
struct ConfigCheckParams {
    u32* words;
    u32 capacity;  // words
    u32 unused;
};

// ---- conversions ------------------------------------------------------------------------------

DEVICE float to_f32(bf16 v) { return bits_float((u32)v.bits << 16); }
// The two halves of a register that holds two bf16.
DEVICE float low_f32(u32 pair) { return bits_float(pair << 16); }
DEVICE float high_f32(u32 pair) { return bits_float(pair & 0xffff0000u); }
DEVICE bf16 to_bf16(float v) { return bf16{(u16)(pack_bf16x2(v, 0.0f) & 0xffffu)}; }

// silu(gate) * up, within 8 ulp of f32: the approximate exponential and reciprocal are enough, since
// the product is rounded to bf16. Large negative gates give -0 and not NaN: e^-gate is infinite, and
// its reciprocal 0.
DEVICE float swiglu(float gate, float up) {
    return gate * rcp_approx(1.0f + exp_approx(-gate)) * up;
}

// ---- exact arithmetic -----------------------------------------------------------------------
//
// Ids and weights of the router agree with the CPU bit for bit, so these use only operations that
// IEEE 754 rounds in one way, in the order in which src/kernels/math.rs repeats them. Results that
// are not a number have unspecified bits. Denormals are kept, in arguments and results.

// e^x to 1.1 ulp over the whole range: 0 below -104, infinity above 88.73, denormals rounded once.
// Cody and Waite's reduction x = n ln 2 + r, then a minimax polynomial of (e^r - 1 - r) / r^2.
DEVICE float exp_f32(float x) {
    // Adding 1.5 * 2^23 rounds to the nearest integer and leaves it in the low bits.
    constexpr float kRound = 12582912.0f;
    // Both ends lie beyond the last argument with a result of its own; NaN passes both comparisons.
    x = x > 89.0f ? 89.0f : x;
    x = x < -104.0f ? -104.0f : x;
    float shifted = fma_rn(x, 1.44269502f, kRound);
    float n = add_rn(shifted, -kRound);
    // ln 2 in two parts; products of the first with |n| <= 150 are exact.
    float r = fma_rn(n, -0.693145752f, x);
    r = fma_rn(n, -1.42860677e-6f, r);
    float p = 1.382096903e-3f;
    p = fma_rn(p, r, 8.369827643e-3f);
    p = fma_rn(p, r, 4.166829586e-2f);
    p = fma_rn(p, r, 1.666651219e-1f);
    p = fma_rn(p, r, 4.999999404e-1f);
    p = fma_rn(mul_rn(p, r), r, r);
    p = add_rn(p, 1.0f);
    // 2^n as two factors, since n runs from -150 to 128: the first product is exact, the second
    // rounds once into the denormals.
    u32 integer = float_bits(shifted) - float_bits(kRound);
    u32 half = (u32)((i32)integer >> 1);
    p = mul_rn(p, bits_float((half + 127) << 23));
    return mul_rn(p, bits_float((integer - half + 127) << 23));
}

// log(1 + x) to 1.3 ulp: -infinity at -1, NaN below. 1 + x = 2^e (1 + m) with m in [-0.25, 0.5],
// where m is computed with one rounding (after N. Juffa); then a minimax polynomial of log(1 + m).
DEVICE float log1p_f32(float x) {
    // Zero, infinity and NaN are their own results; what is below -1 has none.
    if (!(x > -1.0f && x < bits_float(0x7f800000u)) || x == 0.0f) {
        return x < -1.0f ? bits_float(0x7fc00000u) : x == -1.0f ? bits_float(0xff800000u) : x;
    }
    float sum = add_rn(x, 1.0f);
    u32 exponent = (float_bits(sum) - 0x3f400000u) & 0xff800000u;
    // x 2^-e + (2^-e - 1); 2^-e as a quarter of 4 * 2^-e, which is never denormal.
    float scaled = bits_float(float_bits(x) - exponent);
    float four = bits_float(0x40800000u - exponent);
    float m = add_rn(scaled, fma_rn(0.25f, four, -1.0f));
    float p = -4.507638887e-2f;
    p = fma_rn(p, m, 1.046531573e-1f);
    p = fma_rn(p, m, -1.316335201e-1f);
    p = fma_rn(p, m, 1.447872370e-1f);
    p = fma_rn(p, m, -1.664709896e-1f);
    p = fma_rn(p, m, 1.999080926e-1f);
    p = fma_rn(p, m, -2.500010133e-1f);
    p = fma_rn(p, m, 3.333345056e-1f);
    p = fma_rn(p, m, -0.5f);
    p = fma_rn(mul_rn(p, m), m, m);
    // e ln 2; the integer is converted through the rounding constant of exp_f32.
    u32 e = (u32)((i32)exponent >> 23);
    float n = add_rn(bits_float(e + float_bits(12582912.0f)), -12582912.0f);
    return fma_rn(n, 0.693147182f, p);
}

// 1 / (1 + e^-x).
DEVICE float sigmoid_f32(float x) { return div_rn(1.0f, add_rn(1.0f, exp_f32(-x))); }

// sqrt(log(1 + e^x)); infinity counts as the largest finite number, so that weights can be divided
// by their sum.
DEVICE float sqrt_softplus_f32(float x) {
    constexpr float kLargest = 3.40282347e38f;
    x = x > kLargest ? kLargest : x;
    float tail = log1p_f32(exp_f32(x > 0.0f ? -x : x));
    return sqrt_rn(x > 0.0f ? add_rn(x, tail) : tail);
}

// e^(x - max) for a softmax: 1 where both are the same infinity, and 0 for every x when nothing is
// above -infinity, so that a row without a finite logit has the weight 0.
DEVICE float softmax_power(float x, float max) {
    if (max == bits_float(0xff800000u)) {
        return 0.0f;
    }
    return x == max ? 1.0f : exp_f32(add_rn(x, -max));
}

// p / sum, and 0 when the sum is 0.
DEVICE float share_of(float p, float sum) { return sum > 0.0f ? div_rn(p, sum) : 0.0f; }

// The order in which the router sums, on every device: value i (an expert id, or a slot of the
// chosen) belongs to lane i mod 32; each lane adds its values in ascending order to 0; then the
// lanes are added as a tree, lane l and lane l ^ d for d = 16, 8, 4, 2, 1, so that all end with the
// same sum. A lane without a value holds 0, so a row of at most `lanes` values (a power of two) may
// start at d = lanes / 2.
DEVICE float lane_sum(float value, u32 lanes) {
    for (u32 d = lanes / 2; d > 0; d /= 2) {
        value = add_rn(value, bits_float(shfl_xor(kFullWarp, float_bits(value), d)));
    }
    return value;
}

template <typename T>
DEVICE T min_of(T a, T b) {
    return a < b ? a : b;
}
template <typename T>
DEVICE T max_of(T a, T b) {
    return a > b ? a : b;
}
DEVICE constexpr u32 ceil_div(u32 a, u32 b) { return (a + b - 1) / b; }

// ---- shared memory ------------------------------------------------------------------------------

// Hands out the block's dynamic shared memory in order. Every thread takes the same buffers. The
// launch asks for the sum of all sizes plus the alignment slack of each (`ALIGN` - 1 at most), since
// the start of dynamic shared memory is only known to be 16-byte aligned.
class Arena {
public:
    DEVICE Arena() : next_(dynamic_smem()) {}

    // `count` values of T whose shared-space address is a multiple of `align`, a power of two.
    template <typename T>
    DEVICE T* take(u32 count, u32 align) {
        u32 address = smem_addr(next_);
        u8* start = next_ + (((address + align - 1) & ~(align - 1)) - address);
        next_ = start + count * (u32)sizeof(T);
        smem_region(start, count * (u32)sizeof(T));
        return (T*)start;
    }

private:
    u8* next_;
};
