// Probes: ceilings of the device, helpers of the timing, and what single instructions do.
//
// All take ProbeParams by value and no shared memory unless stated. None is part of a layer.
//
// Ceilings and timing (any grid, 256 threads unless stated):
//   probe_read_stream   reads `bytes` of `from` past L1; to[thread of the grid] is the exclusive or of
//                       the 32-bit words that the thread read, so that the result shows that all was
//                       read. variant 0: evict-first, the rate of an ideal weight stream through
//                       registers (probe_sm90.cu has the one through shared memory). variant 1:
//                       lines stay as others do, so that they push everything else, also what was
//                       written, out of the second-level cache.
//   probe_copy          copies `bytes`.
//   probe_flush         fills `bytes` of `to` with a pattern of `seed` and address: not zeros,
//                       which some devices move faster, and another one each time.
//   probe_gate          grid 1, block 1: holds the stream until *flag is 1 or limit_ns have passed,
//                       so that what is queued behind it starts without launch gaps.
//   probe_clock_stamp   grid: multiprocessors, block 1: to[2 * sm], u64 pairs: nanoseconds and
//                       cycles. Two stamps give the clock of each multiprocessor between them. Room
//                       for 1024.
//
// Instructions (grid 1, block 32 unless stated): inputs from `from`, outputs to `to`, all 32-bit
// words, by lane. Their results on a device are kept as the golden file that the emulator is
// compared with.
//   probe_shuffle       from[32]. 9 words a lane: shfl of lane 3 l + 1, shfl_xor 5, shfl_up 2,
//                       ballot of bit 0, match_any, redux_max, redux_add, count_ones, lowest_bit of
//                       value | 2^31.
//   probe_ldmatrix      shared 512 + 16. from[128]: four 8 x 8 matrices. 6 words a lane: x4, then
//                       x2.
//   probe_mma           from[32][10]: a[4], b[2], d[4] of each lane; 4 words a lane: d.
//   probe_copy_async    shared 512 + 16. from[128]; lane l copies bytes [16 l, 16 l + l % 17) and
//                       zeros after; 4 words a lane: the shared memory.
//   probe_overlap       two launches. variant 0: lets the next launch start, waits limit_ns (*flag is
//                       not 1), then to[lane] = from[lane] + 1. variant 1, launched to overlap with
//                       it: waits for its end, then to[lane] = 3 * from[lane].
//   probe_atomics       grid any, block 32: to[0] += 1 a thread, to[1] |= 1 << lane, to[2] (f32) +=
//                       lane, to[3]: blocks that arrived, by acquire and release. Zero before.
//   probe_arithmetic    any grid, block 256: from[bytes / 4] f32 x; 9 words each: exp_f32,
//                       log1p_f32, sigmoid_f32, sqrt_softplus_f32, x / 3, sqrt(|x|), pack_bf16x2(x,
//                       -x), then the approximate e^x and 1 / x, which alone may differ between
//                       devices.

#include "common.cuh"

constexpr u32 kProbeThreads = 256;
// 16-byte loads a thread requests before it uses the first: 4 blocks an SM then have 128 KB in
// flight, several times what the latency of memory asks for.
constexpr u32 kProbeBatch = 8;

DEVICE u32 grid_thread() { return block_index() * block_threads() + thread_index(); }

// Calls `use(vector, value)` for this thread's vectors among `bytes`, in batches of loads.
template <typename Use>
DEVICE void each_vector(const ProbeParams& p, Use use) {
    u64 vectors = p.bytes / 16, step = (u64)grid_blocks() * block_threads();
    u64 policy = p.variant == 1 ? policy_evict_normal() : policy_evict_first();
    const u32x4* from = (const u32x4*)p.from;
    for (u64 at = grid_thread(); at < vectors; at += kProbeBatch * step) {
        u32x4 values[kProbeBatch];
        for (u32 i = 0; i < kProbeBatch; ++i) {
            values[i] = u32x4{0, 0, 0, 0};
            if (at + i * step < vectors) {
                values[i] = ld_stream(from + at + i * step, policy);
            }
        }
        for (u32 i = 0; i < kProbeBatch; ++i) {
            if (at + i * step < vectors) {
                use(at + i * step, values[i]);
            }
        }
    }
}

KERNEL(kProbeThreads, 4) probe_read_stream(GRID_CONSTANT ProbeParams params) {
    u32 all = 0;
    each_vector(params, [&](u64, u32x4 v) { all ^= v.x ^ v.y ^ v.z ^ v.w; });
    ((u32*)params.to)[grid_thread()] = all;
}

KERNEL(kProbeThreads, 4) probe_copy(GRID_CONSTANT ProbeParams params) {
    u32x4* to = (u32x4*)params.to;
    each_vector(params, [&](u64 at, u32x4 v) { st_global(to + at, v); });
}

KERNEL(kProbeThreads, 4) probe_flush(GRID_CONSTANT ProbeParams params) {
    u64 vectors = params.bytes / 16, step = (u64)grid_blocks() * block_threads();
    u32x4* to = (u32x4*)params.to;
    for (u64 at = grid_thread(); at < vectors; at += step) {
        // Fibonacci hashing: odd multiples of 2^32 / golden ratio look like noise.
        u32 noise = ((u32)at ^ params.seed) * 0x9e3779b9u;
        st_global(to + at, u32x4{noise, ~noise, noise ^ params.seed, noise + 1});
    }
}

KERNEL(1, 1) probe_gate(GRID_CONSTANT ProbeParams params) {
    wait_flag_sys(params.flag, 1, params.limit_ns);
}

KERNEL(1, 1) probe_clock_stamp(GRID_CONSTANT ProbeParams params) {
    u64 ns = global_nanoseconds(), cycles = sm_clock();
    st_global((u64*)params.to + 2 * (u64)sm_index(),
              u32x4{(u32)ns, (u32)(ns >> 32), (u32)cycles, (u32)(cycles >> 32)});
}

KERNEL(kWarpSize, 1) probe_shuffle(GRID_CONSTANT ProbeParams params) {
    u32 lane = thread_index(), value = ((const u32*)params.from)[lane];
    u32* to = (u32*)params.to + 9 * lane;
    to[0] = shfl(kFullWarp, value, (3 * lane + 1) % kWarpSize);
    to[1] = shfl_xor(kFullWarp, value, 5);
    to[2] = shfl_up(kFullWarp, value, 2);
    to[3] = ballot(kFullWarp, (value & 1) != 0);
    to[4] = match_any(kFullWarp, value);
    to[5] = redux_max(kFullWarp, value);
    to[6] = redux_add(kFullWarp, value);
    to[7] = count_ones(value);
    to[8] = lowest_bit(value | 0x80000000u);
}

KERNEL(kWarpSize, 1) probe_ldmatrix(GRID_CONSTANT ProbeParams params) {
    Arena arena;
    u32 shared = smem_addr(arena.take<u8>(512, 16)), lane = thread_index();
    st_shared(shared + 16 * lane, ld_readonly((const u32x4*)params.from + lane));
    block_sync();
    u32 four[4], two[2];
    ldmatrix_x4(four, shared + 16 * lane);
    ldmatrix_x2(two, shared + 16 * (lane % 16));
    u32* to = (u32*)params.to + 6 * lane;
    for (u32 i = 0; i < 4; ++i) {
        to[i] = four[i];
    }
    for (u32 i = 0; i < 2; ++i) {
        to[4 + i] = two[i];
    }
}

KERNEL(kWarpSize, 1) probe_mma(GRID_CONSTANT ProbeParams params) {
    const u32* from = (const u32*)params.from + 10 * thread_index();
    u32* to = (u32*)params.to + 4 * thread_index();
    u32 a[4], b[2];
    float d[4];
    for (u32 i = 0; i < 4; ++i) {
        a[i] = from[i];
        d[i] = bits_float(from[6 + i]);
    }
    for (u32 i = 0; i < 2; ++i) {
        b[i] = from[4 + i];
    }
    mma_m16n8k16_bf16(d, a, b);
    for (u32 i = 0; i < 4; ++i) {
        to[i] = float_bits(d[i]);
    }
}

KERNEL(kWarpSize, 1) probe_copy_async(GRID_CONSTANT ProbeParams params) {
    Arena arena;
    u32 shared = smem_addr(arena.take<u8>(512, 16)), lane = thread_index();
    cp_async16(shared + 16 * lane, (const u8*)params.from + 16 * lane, lane % 17);
    cp_async_commit();
    cp_async_wait<0>();
    block_sync();
    // Read by another lane, as pipelines do.
    u32 other = (lane + 7) % kWarpSize;
    st_global((u32x4*)params.to + other, ld_shared(shared + 16 * other));
}

KERNEL(kWarpSize, 1) probe_overlap(GRID_CONSTANT ProbeParams params) {
    u32 lane = thread_index();
    if (params.variant == 0) {
        griddep_launch();
        wait_flag_sys(params.flag, 1, params.limit_ns);
        ((u32*)params.to)[lane] = ((const u32*)params.from)[lane] + 1;
        return;
    }
    griddep_wait();
    // Not through the read-only path: the launch before this one wrote it.
    ((u32*)params.to)[lane] = 3 * ((const u32*)params.from)[lane];
}

KERNEL(kWarpSize, 1) probe_atomics(GRID_CONSTANT ProbeParams params) {
    u32* to = (u32*)params.to;
    atom_add_gpu(to, 1);
    red_or_gpu(to + 1, 1u << thread_index());
    red_add_f32_gpu((float*)to + 2, (float)thread_index());
    block_sync();
    if (thread_index() == 0) {
        atom_add_acq_rel_gpu(to + 3, 1);
    }
}

KERNEL(kProbeThreads, 1) probe_arithmetic(GRID_CONSTANT ProbeParams params) {
    u64 count = params.bytes / 4, step = (u64)grid_blocks() * block_threads();
    for (u64 at = grid_thread(); at < count; at += step) {
        float x = ((const float*)params.from)[at];
        u32* to = (u32*)params.to + 9 * at;
        to[0] = float_bits(exp_f32(x));
        to[1] = float_bits(log1p_f32(x));
        to[2] = float_bits(sigmoid_f32(x));
        to[3] = float_bits(sqrt_softplus_f32(x));
        to[4] = float_bits(div_rn(x, 3.0f));
        to[5] = float_bits(sqrt_rn(x < 0.0f ? -x : x));
        to[6] = pack_bf16x2(x, -x);
        to[7] = float_bits(exp_approx(x));
        to[8] = float_bits(rcp_approx(x));
    }
}
