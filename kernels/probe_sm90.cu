// Probes of the Hopper instructions (sm_90a), as the instruction probes of probe.cu.
//
// ProbeParams by value, after the tensor map where there is one. Grid 1. Words are 32 bits.
//   probe_stmatrix   block 32, shared 512 + 16. from[32][4]: registers of each lane. variant 0:
//                    stmatrix_x4, 1: stmatrix_x4_trans, 2: stmatrix_x2_trans of the first two.
//                    to[128]: the shared memory, which was zero before.
//   probe_wgmma      block 128, shared 40,960 + 1024. from: A, 64 rows of 128 bytes (64 bf16), then
//                    B, n rows, as they lie in shared memory: swizzled by whoever prepares them.
//                    variant: n, of 8, 16, 32, 64, 128, 192, 256. to[128][n / 2]: d of each thread,
//                    after four steps of 16 along K. seed 0: the operands are stored by st.shared,
//                    1: by cp.async; both are fenced by their writers.
//   probe_wgmma_rs   the same with A in registers: from: a[128][4 steps][4], then B. variant: n, of
//                    8, 16, 32, 64. shared 8,192 + 1024.
//   probe_tma        tensor map with boxes of 1024 bytes, the 128-byte swizzle and `variant`
//                    dimensions: 2, 3 or 4; block 32, shared 1024 + 8 + 1024. Loads the box at (8,
//                    seed), (8, seed, 1) or (8, seed, 0, 1). to[256]: the shared memory.
//   probe_tma_store  tensor map of bf16 with the box {64, 8}; from[256] goes to shared memory and
//                    from there to the box at (8, seed).
//   probe_reduce     block 32, shared 512 + 16. from[128] f32 is added to to[128].
//
// A ceiling:
//   probe_read_bulk  tensor map of bf16 [bytes / 128, 64] with the box {64, 256} and the 128-byte
//                    swizzle; block 288, shared 1024 + 196,608 + 96; one block a multiprocessor. Reads
//                    `bytes`, a multiple of 32,768, through a ring of six boxes as the products read
//                    their weights. to[256 a block]: the exclusive or of the words that each reader
//                    saw. The rate of an ideal weight stream through shared memory.

#include "common.cuh"

constexpr u32 kWarpgroup = 128;
constexpr u32 kTileBytes = 1024;  // 8 rows of 128 bytes: one atom of the swizzle
constexpr u32 kRowBytes = 128;

constexpr u32 kBulkReaders = 256;
constexpr u32 kBulkThreads = kBulkReaders + kWarpSize;
constexpr u32 kBulkRows = 256;  // The longest edge of a box.
constexpr u32 kBulkBytes = kBulkRows * kRowBytes;
constexpr u32 kBulkStages = 6;  // 192 KB in flight, as much as the products have.
static_assert(1024 + kBulkStages * (kBulkBytes + 16) <= 227 * 1024,
              "the ring fits the shared memory of a block");

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
        if (params.seed == 0) {
            st_shared(a + at, ld_readonly((const u8*)params.from + at));
        } else {
            cp_async16(a + at, (const u8*)params.from + at, 16);
        }
    }
    cp_async_commit();
    cp_async_wait<0>();
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

// The same with A in registers.
template <u32 kColumns>
DEVICE void multiply_rs(const ProbeParams& p, u32 b) {
    float d[kColumns / 2];
    u32 a[4][4];
    for (u32 step = 0; step < 4; ++step) {
        for (u32 i = 0; i < 4; ++i) {
            a[step][i] = ((const u32*)p.from)[16 * thread_index() + 4 * step + i];
            wgmma_fence_operand(a[step][i]);
        }
    }
    wgmma_fence();
    for (u32 step = 0; step < 4; ++step) {
        wgmma_bf16_rs<kColumns>(d, a[step], wgmma_descriptor(b + 32 * step), step > 0 ? 1 : 0);
    }
    wgmma_commit();
    wgmma_wait<0>();
    u32* to = (u32*)p.to + kColumns / 2 * thread_index();
    for (u32 i = 0; i < kColumns / 2; ++i) {
        wgmma_fence_operand(d[i]);
        to[i] = float_bits(d[i]);
    }
}

KERNEL(kWarpgroup, 1) probe_wgmma_rs(GRID_CONSTANT ProbeParams params) {
    Arena arena;
    u32 bytes = params.variant * kRowBytes;
    u32 b = smem_addr(arena.take<u8>(bytes, kTileBytes));
    const u8* from = (const u8*)params.from + 64 * kWarpgroup;
    for (u32 at = 16 * thread_index(); at < bytes; at += 16 * kWarpgroup) {
        st_shared(b + at, ld_readonly(from + at));
    }
    fence_proxy_async();
    block_sync();
    switch (params.variant) {
        case 8:
            return multiply_rs<8>(params, b);
        case 16:
            return multiply_rs<16>(params, b);
        case 32:
            return multiply_rs<32>(params, b);
        default:
            return multiply_rs<64>(params, b);
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
        i32 row = (i32)params.seed;
        u64 policy = policy_evict_first();
        if (params.variant == 2) {
            tma_load_2d(tile, map, barrier, policy, 8, row);
        } else if (params.variant == 3) {
            tma_load_3d(tile, map, barrier, policy, 8, row, 1);
        } else {
            tma_load_4d(tile, map, barrier, policy, 8, row, 0, 1);
        }
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

// Place in the ring of boxes: stage, and the parity of the phase that is waited for.
struct BulkRing {
    u32 stage;
    u32 parity;

    DEVICE void advance() {
        stage += 1;
        if (stage == kBulkStages) {
            stage = 0;
            parity ^= 1;
        }
    }
};

// Requests this block's boxes in order, each once its place has been read.
DEVICE void request_boxes(const TensorMap& map, u32 boxes, u32 ring, u32 full, u32 empty) {
    u64 policy = policy_evict_first();
    BulkRing at = {0, 1};
    for (u32 box = block_index(); box < boxes; box += grid_blocks()) {
        mbar_wait(empty + 8 * at.stage, at.parity);
        mbar_arrive_expect_tx(full + 8 * at.stage, kBulkBytes);
        tma_load_2d(ring + at.stage * kBulkBytes, map, full + 8 * at.stage, policy, 0,
                    (i32)(box * kBulkRows));
        at.advance();
    }
}

KERNEL(kBulkThreads, 1)
probe_read_bulk(GRID_CONSTANT TensorMap map, GRID_CONSTANT ProbeParams params) {
    Arena arena;
    u32 ring = smem_addr(arena.take<u8>(kBulkStages * kBulkBytes, kTileBytes));
    u32 full = smem_addr(arena.take<u64>(2 * kBulkStages, 8)), empty = full + 8 * kBulkStages;
    u32 thread = thread_index(), boxes = (u32)(params.bytes / kBulkBytes);
    if (thread == 0) {
        for (u32 i = 0; i < kBulkStages; ++i) {
            mbar_init(full + 8 * i, 1);
            mbar_init(empty + 8 * i, kBulkReaders / kWarpSize);
        }
        fence_mbar_init();
    }
    block_sync();
    if (thread >= kBulkReaders) {
        if (thread == kBulkReaders) {
            request_boxes(map, boxes, ring, full, empty);
        }
        return;
    }
    u32 all = 0;
    BulkRing at = {0, 0};
    for (u32 box = block_index(); box < boxes; box += grid_blocks()) {
        mbar_wait(full + 8 * at.stage, at.parity);
        u32 from = ring + at.stage * kBulkBytes;
        for (u32 byte = 16 * thread; byte < kBulkBytes; byte += 16 * kBulkReaders) {
            u32x4 v = ld_shared(from + byte);
            all ^= v.x ^ v.y ^ v.z ^ v.w;
        }
        warp_sync(kFullWarp);
        if (thread % kWarpSize == 0) {
            mbar_arrive(empty + 8 * at.stage);
        }
        at.advance();
    }
    ((u32*)params.to)[block_index() * kBulkReaders + thread] = all;
}
