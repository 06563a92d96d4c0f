// Probes of the Hopper instructions (sm_90a), as the instruction probes of probe.cu.
//
// ProbeParams by value, after the tensor map where there is one. Grid 1. Words are 32 bits.
//   probe_stmatrix   block 32, shared 512 + 16. from[32][4]: registers of each lane. variant 0:
//                    stmatrix_x4, 1: stmatrix_x4_trans, 2: stmatrix_x2_trans of the first two.
//                    to[128]: the shared memory, which was zero before.
//   probe_wgmma      block 128, shared 40,960 + 1024. from: A, 64 rows of 128 bytes (64 bf16), then
//                    B, n rows, as they lie in shared memory: swizzled by whoever prepares them.
//                    variant: n, of 8, 16, 32, 64, 128, 192, 256. to[128][n / 2]: d of each thread,
//                    after four steps of 16 along K.
//   probe_tma        tensor map of bf16 with the box {64, 8} and the 128-byte swizzle; block 32,
//                    shared 1024 + 8 + 1024. Loads the box at (8, seed), to[256]: the shared
//                    memory.
//   probe_tma_store  the same map; from[256] goes to shared memory and from there to the box at (8,
//                    seed).
//   probe_reduce     block 32, shared 512 + 16. from[128] f32 is added to to[128].

#include "common.cuh"

constexpr u32 kWarpgroup = 128;
constexpr u32 kTileBytes = 1024;  // 8 rows of 128 bytes: one atom of the swizzle

KERNEL(kWarpSize, 1) probe_stmatrix(GRID_CONSTANT ProbeParams params) {
    Arena arena;
    u32 shared = smem_addr(arena.take<u8>(512, 16)), lane = thread_index();
    st_shared(shared + 16 * lane, u32x4{0, 0, 0, 0});
    block_sync();
    u32x4 v = ld_readonly((const u32x4*)params.from + lane);
    u32 four[4] = {v.x, v.y, v.z, v.w}, two[2] = {v.x, v.y};
    if (params.variant == 0) {
        stmatrix_x4(shared + 16 * lane, four);
    } else if (params.variant == 1) {
        stmatrix_x4_trans(shared + 16 * lane, four);
    } else {
        stmatrix_x2_trans(shared + 16 * (lane % 16), two);
    }
    block_sync();
    st_global((u32x4*)params.to + lane, ld_shared(shared + 16 * lane));
}

// Multiplies what lies in shared memory and writes the accumulators.
template <u32 kColumns>
DEVICE void multiply(const ProbeParams& p, u32 a, u32 b) {
    float d[kColumns / 2];
    wgmma_fence();
    for (u32 step = 0; step < 4; ++step) {
        // A step of 16 along K is 32 bytes; the first overwrites d.
        wgmma_bf16<kColumns>(d, wgmma_descriptor(a + 32 * step), wgmma_descriptor(b + 32 * step),
                             step > 0 ? 1 : 0);
    }
    wgmma_commit();
    wgmma_wait<0>();
    u32* to = (u32*)p.to + kColumns / 2 * thread_index();
    for (u32 i = 0; i < kColumns / 2; ++i) {
        wgmma_fence_operand(d[i]);
        to[i] = float_bits(d[i]);
    }
}

KERNEL(kWarpgroup, 1) probe_wgmma(GRID_CONSTANT ProbeParams params) {
    Arena arena;
    u32 bytes = (64 + params.variant) * 128;
    u32 a = smem_addr(arena.take<u8>(bytes, kTileBytes)), b = a + 64 * 128;
    for (u32 at = 16 * thread_index(); at < bytes; at += 16 * kWarpgroup) {
        st_shared(a + at, ld_readonly((const u8*)params.from + at));
    }
    fence_proxy_async();
    block_sync();
    switch (params.variant) {
        case 8:
            return multiply<8>(params, a, b);
        case 16:
            return multiply<16>(params, a, b);
        case 32:
            return multiply<32>(params, a, b);
        case 64:
            return multiply<64>(params, a, b);
        case 128:
            return multiply<128>(params, a, b);
        case 192:
            return multiply<192>(params, a, b);
        default:
            return multiply<256>(params, a, b);
    }
}

KERNEL(kWarpSize, 1) probe_tma(GRID_CONSTANT TensorMap map, GRID_CONSTANT ProbeParams params) {
    Arena arena;
    u32 tile = smem_addr(arena.take<u8>(kTileBytes, kTileBytes));
    u32 barrier = smem_addr(arena.take<u64>(1, 8)), lane = thread_index();
    if (lane == 0) {
        mbar_init(barrier, 1);
        fence_mbar_init();
    }
    block_sync();
    if (lane == 0) {
        mbar_arrive_expect_tx(barrier, kTileBytes);
        tma_load_2d(tile, map, barrier, policy_evict_first(), 8, (i32)params.seed);
    }
    mbar_wait(barrier, 0);
    for (u32 at = 16 * lane; at < kTileBytes; at += 16 * kWarpSize) {
        st_global((u8*)params.to + at, ld_shared(tile + at));
    }
}

KERNEL(kWarpSize, 1)
probe_tma_store(GRID_CONSTANT TensorMap map, GRID_CONSTANT ProbeParams params) {
    Arena arena;
    u32 tile = smem_addr(arena.take<u8>(kTileBytes, kTileBytes)), lane = thread_index();
    for (u32 at = 16 * lane; at < kTileBytes; at += 16 * kWarpSize) {
        st_shared(tile + at, ld_readonly((const u8*)params.from + at));
    }
    fence_proxy_async();
    block_sync();
    if (lane == 0) {
        tma_store_2d(map, tile, 8, (i32)params.seed);
        bulk_commit();
        bulk_wait<0>();
    }
}

KERNEL(kWarpSize, 1) probe_reduce(GRID_CONSTANT ProbeParams params) {
    Arena arena;
    u32 shared = smem_addr(arena.take<u8>(512, 16)), lane = thread_index();
    st_shared(shared + 16 * lane, ld_readonly((const u32x4*)params.from + lane));
    fence_proxy_async();
    block_sync();
    if (lane == 0) {
        bulk_reduce_add_f32((float*)params.to, shared, 512);
        bulk_commit();
        bulk_wait<0>();
    }
}
