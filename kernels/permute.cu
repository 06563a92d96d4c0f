// Combine: each token's weighted sum of its rows; and a plain gather, timed for comparison only.
//
// combine_bf16: out[t] = sum over slots j of topk_weights[t, j] * y[pair_rows[t, j]], as
// acc = fma(w, y, acc) from 0 in the order of the slots, in f32: the same bits in every run. A pair
// without a row (pair_rows -1: it was dropped) adds nothing. `out` is rounded once to bf16;
// `out_f32` is not rounded.
// permute_gather_bf16: copies the row of x of each padded row, or zeros on padding: what it would
// cost to move activations instead of indices.
//
// Launches. 256 threads, no shared memory; a thread takes 16 bytes of bf16 at a time:
//   combine_bf16         CombineParams; grid ceil(tokens * hidden / 8 / 256), tokens * hidden / 8
//                        below 2^32; out_stride >= hidden is that of the output that is set.
//   permute_gather_bf16  GemmParams, of which a, a_stride, out, depth (the row's length), header,
//                        sorted_pairs and top_k are read; any grid: a block takes a row at a time.
//                        out has the row stride depth.
// y, x and outputs are 16-byte aligned, hidden and strides multiples of 8.
//
// Floor of the combine: y read and out written once, 2 * hidden * (pairs + tokens) bytes: 0.2 ms
// for 16,384 tokens of 8 slots and hidden 2048 at 3 TB/s. A thread requests the vectors of 8 slots
// before it uses the first, which is 32 KB in flight a block.

#include "common.cuh"

// 8 warps: enough bytes in flight with 4 blocks an SM, and small batches still spread over SMs.
constexpr u32 kPermuteThreads = 256;
// bf16 in a 16-byte vector.
constexpr u32 kVector = 8;
// Slots whose vectors are requested together; covers top_k of most models in one step.
constexpr u32 kSlotBatch = 8;

// acc += w * v, element by element.
DEVICE void accumulate(float (&acc)[kVector], float w, u32x4 v) {
    acc[0] = fma_rn(w, low_f32(v.x), acc[0]);
    acc[1] = fma_rn(w, high_f32(v.x), acc[1]);
    acc[2] = fma_rn(w, low_f32(v.y), acc[2]);
    acc[3] = fma_rn(w, high_f32(v.y), acc[3]);
    acc[4] = fma_rn(w, low_f32(v.z), acc[4]);
    acc[5] = fma_rn(w, high_f32(v.z), acc[5]);
    acc[6] = fma_rn(w, low_f32(v.w), acc[6]);
    acc[7] = fma_rn(w, high_f32(v.w), acc[7]);
}

// Adds the slots [slot, slot + kSlotBatch) of a token, at one vector of its columns.
DEVICE void add_slots(const CombineParams& p, u64 first_pair, u32 slot, u32 column,
                      float (&acc)[kVector]) {
    i32 rows[kSlotBatch];
    float weights[kSlotBatch];
    u32x4 values[kSlotBatch];
#ifdef MUTANT_COMBINE_LAST_SLOT
    u32 slots = p.top_k - 1;
#else
    u32 slots = p.top_k;
#endif
    for (u32 j = 0; j < kSlotBatch; ++j) {
        bool in = slot + j < slots;
        rows[j] = in ? p.pair_rows[first_pair + slot + j] : -1;
        weights[j] = in ? p.topk_weights[first_pair + slot + j] : 0.0f;
    }
    for (u32 j = 0; j < kSlotBatch; ++j) {
        values[j] = u32x4{0, 0, 0, 0};
        if (rows[j] >= 0) {
            values[j] = ld_readonly(p.y + (u64)rows[j] * p.hidden + column);
        }
    }
    for (u32 j = 0; j < kSlotBatch; ++j) {
        if (rows[j] >= 0) {
            accumulate(acc, weights[j], values[j]);
        }
    }
}

// 64 registers: 8 vectors, their rows and weights, and the sums.
KERNEL(kPermuteThreads, 4) combine_bf16(GRID_CONSTANT CombineParams params) {
    griddep_wait();
    griddep_launch();
    const CombineParams& p = params;
    u32 vectors = p.hidden / kVector;
    u64 at = (u64)block_index() * kPermuteThreads + thread_index();
    u64 end = (u64)p.tokens * vectors;
#ifdef MUTANT_COMBINE_TAIL
    end -= 1;
#endif
    if (at >= end) {
        return;
    }
    // 32-bit division: the launch has fewer than 2^32 vectors.
    u32 token = (u32)at / vectors, column = ((u32)at - token * vectors) * kVector;
    float acc[kVector] = {0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f};
    for (u32 slot = 0; slot < p.top_k; slot += kSlotBatch) {
        add_slots(p, (u64)token * p.top_k, slot, column, acc);
    }
    u64 to = (u64)token * p.out_stride + column;
    if (p.out != nullptr) {
        st_global(p.out + to, u32x4{pack_bf16x2(acc[0], acc[1]), pack_bf16x2(acc[2], acc[3]),
                                    pack_bf16x2(acc[4], acc[5]), pack_bf16x2(acc[6], acc[7])});
    } else {
        for (u32 i = 0; i < kVector; i += 4) {
            st_global(p.out_f32 + to + i, u32x4{float_bits(acc[i]), float_bits(acc[i + 1]),
                                                float_bits(acc[i + 2]), float_bits(acc[i + 3])});
        }
    }
}

KERNEL(kPermuteThreads, 6) permute_gather_bf16(GRID_CONSTANT GemmParams params) {
    griddep_wait();
    griddep_launch();
    const GemmParams& p = params;
    for (u32 row = block_index(); row < p.header->padded_rows; row += grid_blocks()) {
        i32 pair = p.sorted_pairs[row];
        const bf16* from = p.a + (u64)((u32)max_of(pair, 0) / p.top_k) * p.a_stride;
        bf16* to = p.out + (u64)row * p.depth;
        for (u32 column = thread_index() * kVector; column < p.depth;
             column += kPermuteThreads * kVector) {
            st_global(to + column, pair >= 0 ? ld_readonly(from + column) : u32x4{0, 0, 0, 0});
        }
    }
}
