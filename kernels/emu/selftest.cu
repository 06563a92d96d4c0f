// Kernels of the emulator's self-tests: every wrapper at least once, and faults on request.
//
// Not part of the product and never compiled for a device. selftest.cpp launches them and says what
// must come out.

#include "selftest.cuh"

// From common.cuh, which these kernels do not need otherwise.
struct TestArena {
    u8* next = dynamic_smem();
    template <typename T>
    DEVICE T* take(u32 count, u32 align) {
        u32 address = smem_addr(next);
        u8* start = next + (((address + align - 1) & ~(align - 1)) - address);
        next = start + count * (u32)sizeof(T);
        smem_region(start, count * (u32)sizeof(T));
        return (T*)start;
    }
};

// ---- a product in the manner of the Hopper kernels ------------------------------------------------

constexpr u32 kStages = 3;
constexpr u32 kDepth = 64;  // bf16 in a row of 128 bytes
constexpr u32 kBlockRows = 128;
constexpr u32 kConsumers = 2;

// d = a b^T by 128 producer threads (one works) and two consumer warpgroups of 64 rows each; the
// result goes out by ordinary stores, and as bf16 through shared memory and TMA (columns below 64).
template <u32 N>
DEVICE void product(const TensorMap& a_map, const TensorMap& b_map, const TensorMap& out_map,
                    const ProductParams& p) {
    TestArena arena;
    u8* a = arena.take<u8>(kStages * kBlockRows * 128, 1024);
    u8* b = arena.take<u8>(kStages * N * 128, 1024);
    u8* tile = arena.take<u8>(kConsumers * 64 * 128, 1024);
    u64* barriers = arena.take<u64>(2 * kStages, 8);
    u32 full = smem_addr(barriers);
    u32 empty = full + 8 * kStages;
    u32 warp = thread_index() / 32;
    u32 group = thread_index() / 128;
    u32 steps = (p.depth + kDepth - 1) / kDepth;
    u32 row0 = block_index() * kBlockRows;
    u32 releases = p.fault == kFaultReleaseByGroup ? kConsumers : 4 * kConsumers;
    if (thread_index() == 0) {
        for (u32 s = 0; s < kStages; s++) {
            mbar_init(full + 8 * s, 1);
            mbar_init(empty + 8 * s, releases);
        }
        if (p.fault != kFaultNoInitFence) fence_mbar_init();
        prefetch_map(a_map);
    }
    if (p.fault != kFaultNoInitSync) block_sync();

    if (group == 0) {
        setmaxnreg_dec<24>();
        if (thread_index() != 0) return;
        u64 policy = policy_evict_first();
        for (u32 k = 0; k < steps; k++) {
            u32 s = k % kStages;
            u32 parity = (k / kStages) & 1;
            if (p.fault != kFaultNoEmptyWait) mbar_wait(empty + 8 * s, parity ^ 1);
            u32 bytes = (kBlockRows + N) * 128;
            if (p.fault == kFaultWrongBytes) bytes -= 128;
            mbar_arrive_expect_tx(full + 8 * s, bytes);
            tma_load_2d(smem_addr(a) + s * kBlockRows * 128, a_map, full + 8 * s, policy,
                        (i32)(k * kDepth), (i32)row0);
            tma_load_2d(smem_addr(b) + s * N * 128, b_map, full + 8 * s, policy,
                        (i32)(k * kDepth), 0);
        }
        // Until all copies have arrived, the block must not end.
        for (u32 k = steps < kStages ? 0 : steps - kStages; k < steps; k++)
            if (p.fault != kFaultWrongBytes) mbar_wait(full + 8 * (k % kStages), (k / kStages) & 1);
        return;
    }

    if (p.fault == kFaultRegisters) setmaxnreg_inc<256>();
    setmaxnreg_inc<240>();
    u32 consumer = group - 1;
    float d[N / 2];
    for (u32 k = 0; k < steps; k++) {
        u32 s = k % kStages;
        if (p.fault != kFaultNoFullWait) mbar_wait(full + 8 * s, (k / kStages) & 1);
        u32 a_address = smem_addr(a) + (s * kBlockRows + consumer * 64) * 128;
        u32 b_address = smem_addr(b) + s * N * 128;
        if (p.fault != kFaultNoProductFence) wgmma_fence();
        for (u32 i = 0; i < kDepth / 16; i++)
            wgmma_bf16<N>(d, wgmma_descriptor(a_address + 32 * i),
                          wgmma_descriptor(b_address + 32 * i), k + i > 0);
        wgmma_commit();
        bool releases_here = p.fault == kFaultReleaseByGroup ? thread_index() % 128 == 0
                                                             : thread_index() % 32 == 0;
        if (p.fault == kFaultReleaseEarly && releases_here) mbar_arrive(empty + 8 * s);
        if (p.fault == kFaultNoProductWait && k + 1 == steps) wgmma_wait<1>();
        else wgmma_wait<0>();
        if (p.fault == kFaultExtraArrival && releases_here) mbar_arrive(empty + 8 * s);
        if (p.fault != kFaultReleaseEarly && releases_here) mbar_arrive(empty + 8 * s);
    }
    if (p.fault != kFaultNoOperandFence)
        for (u32 i = 0; i < N / 2; i++) wgmma_fence_operand(d[i]);

    u32 lane = thread_index() % 32;
    u32 warp_row = consumer * 64 + (warp % 4) * 16;
    for (u32 j = 0; j < N / 8; j++) {
        for (u32 i = 0; i < 2; i++) {
            u32 row = row0 + warp_row + lane / 4 + 8 * i;
            if (p.fault != kFaultNoStoreGuard && row >= p.rows) continue;
            for (u32 h = 0; h < 2; h++) {
                u32 column = 8 * j + 2 * (lane % 4) + h;
                if (column < p.columns) p.d[(u64)row * p.columns + column] = d[4 * j + 2 * i + h];
            }
        }
    }

    // The first 64 columns as bf16: swizzled rows of 128 bytes, by stmatrix, then TMA.
    u32 out = smem_addr(tile) + consumer * 64 * 128;
    for (u32 j = 0; j + 1 < N / 8 && j < 8; j += 2) {
        u32 r[4];
        for (u32 m = 0; m < 4; m++) {
            u32 at = 4 * (j + m / 2) + 2 * (m % 2);
            r[m] = pack_bf16x2(d[at], d[at + 1]);
        }
        // Matrices: rows 0-7 and 8-15 of columns 8j.., then of columns 8j + 8...
        u32 row = (warp % 4) * 16 + lane % 8 + 8 * (lane / 8 % 2);
        stmatrix_x4(swizzle128(out + row * 128 + (j + lane / 16) * 16), r);
    }
    if (p.fault != kFaultNoProxyFence) fence_proxy_async();
    if (p.fault != kFaultNoStoreSync) named_sync(1 + consumer, 128);
    if (thread_index() % 128 == 0) {
        tma_store_2d(out_map, out, 0, (i32)(row0 + consumer * 64));
        bulk_commit();
        if (p.fault != kFaultNoStoreWait) bulk_wait_read<0>();
    }
}

#define PRODUCT(N)                                                                        \
    KERNEL(384, 1)                                                                        \
    selftest_product_n##N(GRID_CONSTANT TensorMap a_map, GRID_CONSTANT TensorMap b_map,   \
                          GRID_CONSTANT TensorMap out_map, GRID_CONSTANT ProductParams p) { \
        product<N>(a_map, b_map, out_map, p);                                             \
    }
PRODUCT(8)
PRODUCT(16)
PRODUCT(32)
PRODUCT(64)
PRODUCT(128)
PRODUCT(192)
PRODUCT(256)
