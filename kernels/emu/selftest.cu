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

// ---- a product in the manner of the Hopper kernels --------------------------------------------

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
        u64 policy = p.depth > kDepth ? policy_evict_first() : policy_evict_normal();
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

// d = a b^T for 64 rows and one depth of 64, with a in the registers of a warpgroup.
template <u32 N>
DEVICE void register_product(const RegisterProductParams& p) {
    TestArena arena;
    u8* b = arena.take<u8>(N * 128, 1024);
    u32 t = thread_index();
    for (u32 c = t; c < N * 8; c += 128)
        st_shared(smem_addr(b) + swizzle128(c * 16), ld_global(p.b + c * 8));
    fence_proxy_async();
    block_sync();
    u32 row = t / 32 * 16 + t % 32 / 4;
    u32 pair = t % 4 * 2;
    float d[N / 2];
    for (u32 k = 0; k < kDepth; k += 16) {
        // Rows row and row + 8, then the same 8 columns further; one factor of 2 by mul_bf16x2.
        u32 a[4];
        for (u32 i = 0; i < 4; i++) {
            u32 half = *(const u32*)(p.a + (row + i % 2 * 8) * kDepth + k + pair + i / 2 * 8);
            a[i] = mul_bf16x2(half, pack_bf16x2(2.0f, 2.0f));
        }
        // The registers of a were written since the last product.
        wgmma_fence();
        wgmma_bf16_rs<N>(d, a, wgmma_descriptor(smem_addr(b) + k * 2), k > 0);
    }
    wgmma_commit();
    wgmma_wait<0>();
    for (u32 i = 0; i < N / 2; i++) wgmma_fence_operand(d[i]);
    for (u32 i = 0; i < N / 2; i++)
        p.d[(row + i / 2 % 2 * 8) * N + i / 4 * 8 + pair + i % 2] = d[i];
}

#define REGISTER_PRODUCT(N)                                                 \
    KERNEL(128, 1)                                                          \
    selftest_register_product_n##N(GRID_CONSTANT RegisterProductParams p) { \
        register_product<N>(p);                                             \
    }
REGISTER_PRODUCT(8)
REGISTER_PRODUCT(16)
REGISTER_PRODUCT(32)
REGISTER_PRODUCT(64)

// ---- fragments --------------------------------------------------------------------------------

// One warp: each lane writes out what it received, and stores what it was given.
KERNEL(32, 1)
selftest_fragments(GRID_CONSTANT FragmentParams p) {
    TestArena arena;
    u8* tile = arena.take<u8>(32 * 128, 1024);
    u8* out = arena.take<u8>(3 * 32 * 16, 16);
    u32 lane = thread_index();
    for (u32 c = 0; c < 8; c++) {
        u32x4 v = ld_global(p.tile + lane * 64 + c * 8);
        st_shared(smem_addr(tile) + swizzle128(lane * 128 + c * 16), v);
    }
    warp_sync(kFullWarp);
    // Matrix m of x4: rows 8m..8m+7, the 8 columns of chunk 3; x2: chunk 5.
    u32 four[4];
    ldmatrix_x4(four, smem_addr(tile) + swizzle128(lane * 128 + 3 * 16));
    u32 two[2];
    ldmatrix_x2(two, smem_addr(tile) + swizzle128((lane & 15) * 128 + 5 * 16));
    for (u32 i = 0; i < 4; i++) p.ldmatrix_x4[lane * 4 + i] = four[i];
    for (u32 i = 0; i < 2; i++) p.ldmatrix_x2[lane * 2 + i] = two[i];

    u32 r[4];
    u32 half[2];
    for (u32 i = 0; i < 4; i++) r[i] = p.registers[lane * 4 + i];
    for (u32 i = 0; i < 2; i++) half[i] = r[i];
    stmatrix_x4(smem_addr(out) + lane * 16, r);
    stmatrix_x4_trans(smem_addr(out) + (32 + lane) * 16, r);
    stmatrix_x2_trans(smem_addr(out) + (64 + (lane & 15)) * 16, half);
    warp_sync(kFullWarp);
    for (u32 i = 0; i < 3; i++) {
        if (i == 2 && lane >= 16) continue;
        u32 row = i * 32 + lane;
        st_global(p.stmatrix + row * 8, ld_shared(smem_addr(out) + row * 16));
    }

    u32 a[4];
    u32 b[2];
    float d[4];
    for (u32 i = 0; i < 4; i++) a[i] = p.a[lane * 4 + i];
    for (u32 i = 0; i < 2; i++) b[i] = p.b[lane * 2 + i];
    for (u32 i = 0; i < 4; i++) d[i] = p.d[lane * 4 + i];
    mma_m16n8k16_bf16(d, a, b);
    for (u32 i = 0; i < 4; i++) p.d[lane * 4 + i] = d[i];
}

// ---- lanes and barriers -----------------------------------------------------------------------

// Two warps. The lower and the upper half of each warp meet by masks of their own.
KERNEL(64, 1)
selftest_lanes(GRID_CONSTANT LaneParams p) {
    TestArena arena;
    u32* held = arena.take<u32>(64, 16);
    u32* count = arena.take<u32>(1, 4);
    u32 t = thread_index();
    u32 lane = t % 32;
    u32 mask = lane < 16 ? 0x0000ffffu : 0xffff0000u;
    u32* out = p.out + t;
    if (t == 0) *count = 0;
    if (p.fault == kFaultEarlyEnd && t >= 32) return;
    block_sync();

    out[0] = shfl(kFullWarp, t * 3, (lane + 5) % 32);
    out[64] = shfl_xor(mask, t * 5, 7);
    out[128] = shfl_up(kFullWarp, t * 7, 4);
    out[192] = ballot(mask, lane % 3 == 0);
    out[256] = match_any(kFullWarp, lane / 5);
    if (p.fault == kFaultPartialMask) mask = 0x0000ffffu;
    out[320] = redux_max(mask, (lane * 37) % 41);
    if (p.fault == kFaultDivergent && lane == 3) out[384] = ballot(kFullWarp, true);
    else out[384] = redux_add(kFullWarp, t);

    u32 id = 2 + t / 32;
    if (p.fault == kFaultCounts) id = 2;
    named_sync(id, p.fault == kFaultCounts ? 32 + t / 32 * 32 : 32);
    held[t] = t * 11;
    // One warp only arrives, the other waits for both.
    if (t < 32) {
        if (p.fault != kFaultDeadlock) named_arrive(1, 64);
        if (p.fault != kFaultNoSync) atom_add_shared(count, 1);
    } else {
        named_sync(1, 64);
        atom_add_shared(count, 1);
        out[448] = held[t - 32];
    }
    if (p.fault != kFaultNoSync) block_sync();
    if (t < 32) out[448] = held[t + 32] + *count * 1000;
    if (p.fault == kFaultOverflow && t == 63) held[t + 2] = 1;
    if (p.fault == kFaultArena) arena.take<u32>(4096, 16);
    if (p.fault == kFaultUnaligned) ld_shared(smem_addr(held) + 8);
}

// ---- asynchronous copies ----------------------------------------------------------------------

// 128 threads bring `stages` groups, two of them ahead; each reads what its neighbour brought. Odd
// threads bring 4 bytes and 12 zeros, and nothing at all in the last group.
KERNEL(128, 1)
selftest_copies(GRID_CONSTANT CopyParams p) {
    TestArena arena;
    u8* held = arena.take<u8>(3 * 128 * 16, 16);
    u32 t = thread_index();
    auto bring = [&](u32 stage) {
        if (stage < p.stages) {
            u32 bytes = t % 2 == 0 ? 16 : stage + 1 == p.stages ? 0 : 4;
            cp_async16(smem_addr(held) + (stage % 3 * 128 + t) * 16,
                       p.from + ((u64)stage * 128 + t) * 4, bytes);
        }
        cp_async_commit();
    };
    bring(0);
    bring(1);
    for (u32 stage = 0; stage < p.stages; stage++) {
        if (p.fault != kFaultNoCopyWait) cp_async_wait<1>();
        if (p.fault != kFaultNoSync) block_sync();
        u32 neighbour = (t + 33) % 128;
        u32x4 v = ld_shared(smem_addr(held) + (stage % 3 * 128 + neighbour) * 16);
        st_global(p.out + ((u64)stage * 128 + neighbour) * 4, v);
        bring(stage + 2);
    }
    cp_async_wait<0>();
    if (p.fault == kFaultGlobal) cp_async16(smem_addr(held), p.from + (u64)p.stages * 128 * 4, 16);
    cp_async_wait<0>();
}

// ---- blocks that work together ----------------------------------------------------------------

// Each block stores 64 words; the last to take a ticket adds all up. Then a chain: block i waits
// for the flag of block i - 1.
KERNEL(64, 1)
selftest_grid(GRID_CONSTANT GridParams p) {
    TestArena arena;
    u32* ticket = arena.take<u32>(1, 4);
    u32 t = thread_index();
    u32 block = block_index();
    if (p.fault == kFaultStaleRead && t == 0) {
        ld_readonly(p.words + block * 64);
        ld_stream(p.words + block * 64 + 4, policy_evict_last());
    }
    p.words[block * 64 + t] = block * 1000 + t;
    red_add_f32_gpu(p.total, 0.5f);
    red_or_gpu(p.counters + 2, 1u << (block % 32));
    block_sync();
    if (t == 0) {
        if (p.fault != kFaultNoFenceGpu) fence_gpu();
        if (p.fault == kFaultStoreAfterFence) p.words[block * 64] = block * 1000;
        *ticket = atom_add_gpu(p.counters, 1);
        fence_gpu();
    }
    block_sync();
    if (*ticket == grid_blocks() - 1) {
        u32 sum = 0;
        for (u32 b = 0; b < grid_blocks(); b++) sum += p.words[b * 64 + t];
        p.out[t] = sum;
    }
    if (t == 0) {
        while (block > 0 && ld_acquire_gpu(p.counters + 3) != block) {
        }
        p.sums[block] = block == 0 ? 1 : p.sums[block - 1] + block;
        u32 order = atom_add_acq_rel_gpu(p.counters + 4, 1);
        if (order != block) p.counters[5] = 1;
        if (p.fault != kFaultNoFlag) st_release_gpu(p.counters + 3, block + 1);
    }
}

// ---- boxes ------------------------------------------------------------------------------------

// Brings one box and writes shared memory out as it arrived.
KERNEL(32, 1)
selftest_box(GRID_CONSTANT TensorMap map, GRID_CONSTANT BoxParams p) {
    TestArena arena;
    u8* box = arena.take<u8>(p.bytes, 1024);
    u64* barrier = arena.take<u64>(1, 8);
    u32 full = smem_addr(barrier);
    u32 to = smem_addr(box);
    if (thread_index() == 0) {
        mbar_init(full, 1);
        fence_mbar_init();
        mbar_arrive_expect_tx(full, p.bytes);
        if (p.rank == 2) tma_load_2d(to, map, full, 0, p.coordinates[0], p.coordinates[1]);
        if (p.rank == 3)
            tma_load_3d(to, map, full, 0, p.coordinates[0], p.coordinates[1], p.coordinates[2]);
        if (p.rank == 4)
            tma_load_4d(to, map, full, 0, p.coordinates[0], p.coordinates[1], p.coordinates[2],
                        p.coordinates[3]);
    }
    block_sync();
    mbar_wait(full, 0);
    for (u32 i = thread_index() * 16; i < p.bytes; i += 512)
        st_global((u8*)p.out + i, ld_shared(to + i));
}

// ---- bulk reductions, dependent launches, barriers --------------------------------------------

// Adds 128 floats of each block into one row, then lets the next launch go.
KERNEL(32, 1)
selftest_reduce(GRID_CONSTANT GridParams p) {
    TestArena arena;
    u8* held = arena.take<u8>(512, 16);
    u32 lane = thread_index();
    u32 from = smem_addr(held);
    auto value = [&](u32 i) { return float_bits((float)(lane * 4 + i + block_index())); };
    for (u32 i = 0; i < 2; i++) st_shared_u32(from + lane * 16 + i * 4, value(i));
    st_shared_u32x2(from + lane * 16 + 8, value(2), value(3));
    fence_proxy_async();
    warp_sync(kFullWarp);
    griddep_launch();
    if (lane == 0) {
        bulk_reduce_add_f32(p.total, from, 512);
        bulk_commit();
        bulk_wait<0>();
    }
}

// Doubles what selftest_reduce has left.
KERNEL(32, 1)
selftest_after(GRID_CONSTANT GridParams p) {
    if (p.fault != kFaultNoGriddepWait) griddep_wait();
    for (u32 i = thread_index(); i < 128; i += 32) p.words[i] = float_bits(2.0f * p.total[i]);
}

// Data over a barrier, clocks that go forward, and a flag that is there at once or never.
KERNEL(32, 1)
selftest_barrier(GRID_CONSTANT LaneParams p) {
    TestArena arena;
    u64* barrier = arena.take<u64>(1, 8);
    u64 before = global_nanoseconds();
    if (thread_index() == 0) {
        mbar_init(smem_addr(barrier), 32);
        fence_mbar_init();
    }
    block_sync();
    if (p.fault == kFaultBarrierOverwritten && thread_index() == 5) *barrier = 7;
    warp_sync(kFullWarp);
    // Bytes that never come keep the phase open.
    if (p.fault == kFaultExtraArrival && thread_index() == 0)
        mbar_arrive_expect_tx(smem_addr(barrier), 16);
    mbar_arrive(smem_addr(barrier));
    mbar_wait(smem_addr(barrier), 0);
    u64 cycles = sm_clock();
    wait_flag_sys(p.out + 32, 7, ~0ull);
    wait_flag_sys(p.out + 32, 8, 1000);
    bool forward = global_nanoseconds() - before >= 1000 && sm_clock() > cycles;
    p.out[thread_index()] = forward && sm_index() == 0 ? 1 : 0;
}

// Accesses to nothing, by plain pointers that no wrapper sees.
KERNEL(32, 1)
selftest_nowhere(GRID_CONSTANT LaneParams p) {
    if (thread_index() != 7) return;
    if (p.fault == kFaultNull) p.out[2] = 1;
    if (p.fault == kFaultStack) {
        volatile u8* below = (u8*)__builtin_frame_address(0);
        for (u32 i = 0; i < 1024; i++) below[-(i64)i * 1024] = 0;
    }
}

// ---- arithmetic -------------------------------------------------------------------------------

// One thread writes results of the scalar wrappers, in the order that selftest.cpp lists; each of
// two blocks in a row of its own.
KERNEL(1, 1)
selftest_scalars(GRID_CONSTANT LaneParams p) {
    u32 i = 0;
    u32* out = p.out + block_index_y() * 16;
    auto put = [&](float v) { out[i++] = float_bits(v); };
    put(fma_rn(1.0f + 0x1p-23f, 1.0f - 0x1p-23f, -1.0f));
    put(add_rn(mul_rn(1.0f + 0x1p-23f, 1.0f - 0x1p-23f), -1.0f));
    put(div_rn(1.0f, 3.0f));
    put(sqrt_rn(2.0f));
    put(exp_approx(0.0f));
    put(rcp_approx(4.0f));
    put(rcp_approx(bits_float(0x7f800000)));
    put(bits_float(pack_bf16x2(1.0f + 0x1p-8f, 1.0f + 0x1p-8f + 0x1p-7f)));
    out[i++] = pack_bf16x2(bits_float(0x7fc00001), bits_float(0xff800000));
    out[i++] = count_ones(0xf0f1);
    out[i++] = lowest_bit(0x50);
    out[i++] = block_index_y() * 256 + block_threads();
}
