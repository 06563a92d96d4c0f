// Host half of ptx.cuh: the same wrappers, executed on the CPU by the emulator.
//
// Included by ptx.cuh and by nothing else. Arithmetic stands here; whatever concerns several
// threads, addresses or asynchronous work is a hook of the runtime (hooks.h). Loads and stores are
// made here and not in the runtime, so that the sanitizers see them as the kernel's own.
//
// Compile with -ffp-contract=off: `mul_rn` and `add_rn` promise not to be fused.

#pragma once

#include "hooks.h"

#if defined(__FAST_MATH__)
#error "the emulator promises the bits of single operations: build without -ffast-math"
#endif

// Always inlined, as on the device: kernels of several sources are linked into one driver, and may
// have functions of the same name.
#define DEVICE inline __attribute__((always_inline))
// The bounds stay in the preprocessed text, where build.sh reads them and the kernel's name.
template <u32 kThreads, u32 kBlocks>
using emu_kernel = void;
#define KERNEL(threads, blocks_per_sm) extern "C" emu_kernel<(threads), (blocks_per_sm)>
#define GRID_CONSTANT const

// ---- identity and shared memory ---------------------------------------------------------------

DEVICE u32 thread_index() { return emu_self->thread; }
DEVICE u32 block_threads() { return emu_self->threads; }
DEVICE u32 block_index() { return emu_self->block; }
DEVICE u32 block_index_y() { return emu_self->block_y; }
DEVICE u32 grid_blocks() { return emu_self->grid; }
DEVICE u8* dynamic_smem() { return emu_self->smem; }
DEVICE u32 smem_addr(const void* pointer) { return emu_smem_addr(pointer); }
DEVICE void smem_region(const void* start, u32 bytes) { emu_smem_region(start, bytes); }

// ---- arithmetic that is rounded once and never fused ------------------------------------------

DEVICE float fma_rn(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
DEVICE float mul_rn(float a, float b) { return a * b; }
DEVICE float add_rn(float a, float b) { return a + b; }
DEVICE float div_rn(float a, float b) { return a / b; }
DEVICE float sqrt_rn(float a) { return __builtin_sqrtf(a); }
DEVICE u32 float_bits(float a) {
    u32 bits;
    __builtin_memcpy(&bits, &a, 4);
    return bits;
}
DEVICE float bits_float(u32 a) {
    float value;
    __builtin_memcpy(&value, &a, 4);
    return value;
}
DEVICE u32 count_ones(u32 a) { return (u32)__builtin_popcount(a); }
DEVICE u32 lowest_bit(u32 a) { return (u32)__builtin_ctz(a); }

// The exact values: within the bound that users of the approximate ones have to allow. Subnormals
// are flushed as `ftz` says.
DEVICE float exp_approx(float a) { return __builtin_expf(a); }
DEVICE float rcp_approx(float a) {
    float r = 1.0f / a;
    return __builtin_fabsf(r) < 0x1p-126f ? __builtin_copysignf(0.0f, r) : r;
}

DEVICE u32 emu_bf16_bits(float value) {
    u32 bits = float_bits(value);
    if (value != value) return 0x7fff;
    return (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
}
DEVICE u32 pack_bf16x2(float low, float high) {
    return emu_bf16_bits(low) | (emu_bf16_bits(high) << 16);
}

DEVICE u32 mul_bf16x2(u32 a, u32 b) {
    float low = bits_float(a << 16) * bits_float(b << 16);
    float high = bits_float(a & 0xffff0000u) * bits_float(b & 0xffff0000u);
    return pack_bf16x2(low, high);
}

// ---- block and warp ---------------------------------------------------------------------------

DEVICE void block_sync() { emu_block_sync(); }
DEVICE void named_sync(u32 id, u32 threads) { emu_named_sync(id, threads); }
DEVICE void named_arrive(u32 id, u32 threads) { emu_named_arrive(id, threads); }
DEVICE void warp_sync(u32 mask) { emu_warp_sync(mask); }
DEVICE u32 shfl(u32 mask, u32 value, u32 lane) {
    return emu_shfl(mask, value, lane & (kWarpSize - 1), "shfl");
}
DEVICE u32 shfl_xor(u32 mask, u32 value, u32 lanes) {
    return emu_shfl(mask, value, (thread_index() ^ lanes) & (kWarpSize - 1), "shfl_xor");
}
DEVICE u32 shfl_up(u32 mask, u32 value, u32 delta) {
    u32 lane = thread_index() & (kWarpSize - 1);
    return emu_shfl(mask, value, lane < delta ? lane : lane - delta, "shfl_up");
}
DEVICE u32 ballot(u32 mask, bool predicate) { return emu_ballot(mask, predicate); }
DEVICE u32 match_any(u32 mask, u32 value) { return emu_match_any(mask, value); }
DEVICE u32 redux_max(u32 mask, u32 value) { return emu_redux_max(mask, value); }
DEVICE u32 redux_add(u32 mask, u32 value) { return emu_redux_add(mask, value); }

// ---- global memory ----------------------------------------------------------------------------

DEVICE u64 policy_evict_first() { return 1; }
DEVICE u64 policy_evict_last() { return 2; }
DEVICE u64 policy_evict_normal() { return 3; }
DEVICE u32x4 ld_stream(const void* pointer, u64) {
    emu_read_only(pointer, 16, "ld_stream");
    return *(const u32x4*)pointer;
}
DEVICE u32x4 ld_readonly(const void* pointer) {
    emu_read_only(pointer, 16, "ld_readonly");
    return *(const u32x4*)pointer;
}
DEVICE u32x4 ld_global(const void* pointer) {
    emu_global(pointer, 16, 16, "ld_global");
    return *(const u32x4*)pointer;
}
DEVICE void st_global(void* pointer, u32x4 v) {
    emu_global(pointer, 16, 16, "st_global");
    *(u32x4*)pointer = v;
}

DEVICE u32 atom_add_gpu(u32* pointer, u32 v) {
    emu_atomic(pointer, 4, "atom_add_gpu");
    u32 old = __atomic_fetch_add(pointer, v, __ATOMIC_RELAXED);
    emu_atomic_done(pointer, 1);
    return old;
}
DEVICE u32 atom_add_acq_rel_gpu(u32* pointer, u32 v) {
    emu_atomic(pointer, 4, "atom_add_acq_rel_gpu");
    u32 old = __atomic_fetch_add(pointer, v, __ATOMIC_ACQ_REL);
    emu_atomic_done(pointer, 1);
    return old;
}
DEVICE void red_or_gpu(u32* pointer, u32 v) {
    emu_atomic(pointer, 4, "red_or_gpu");
    __atomic_fetch_or(pointer, v, __ATOMIC_RELAXED);
    emu_atomic_done(pointer, 0);
}
DEVICE void red_add_f32_gpu(float* pointer, float v) {
    emu_atomic(pointer, 4, "red_add_f32_gpu");
    // Threads are exchanged in hooks only, so that nothing comes between load and store.
    u32 old = __atomic_load_n((u32*)pointer, __ATOMIC_RELAXED);
    __atomic_store_n((u32*)pointer, float_bits(bits_float(old) + v), __ATOMIC_RELAXED);
    emu_atomic_done(pointer, 0);
}
DEVICE u32 ld_acquire_gpu(const u32* pointer) {
    // Loops that poll a flag stand still here, unless another thread runs each time.
    emu_yield("ld_acquire_gpu");
    emu_atomic(pointer, 4, "ld_acquire_gpu");
    return __atomic_load_n(pointer, __ATOMIC_ACQUIRE);
}
DEVICE void st_release_gpu(u32* pointer, u32 v) {
    emu_atomic(pointer, 4, "st_release_gpu");
    __atomic_store_n(pointer, v, __ATOMIC_RELEASE);
    emu_atomic_done(pointer, 0);
}
DEVICE void fence_gpu() { emu_fence_gpu(); }

// ---- shared memory ----------------------------------------------------------------------------

DEVICE u32x4 ld_shared(u32 address) { return *(u32x4*)emu_shared(address, 16, 16, "ld_shared"); }
DEVICE void st_shared(u32 address, u32x4 v) {
    *(u32x4*)emu_shared_store(address, 16, 16, "st_shared") = v;
}
DEVICE void st_shared_u32(u32 address, u32 v) {
    *(u32*)emu_shared_store(address, 4, 4, "st_shared_u32") = v;
}
DEVICE void st_shared_u32x2(u32 address, u32 low, u32 high) {
    u32* pair = (u32*)emu_shared_store(address, 8, 8, "st_shared_u32x2");
    pair[0] = low;
    pair[1] = high;
}
DEVICE u32 atom_add_shared(u32* pointer, u32 v) {
    emu_shared(smem_addr(pointer), 4, 4, "atom_add_shared");
    return __atomic_fetch_add(pointer, v, __ATOMIC_RELAXED);
}

DEVICE void cp_async16(u32 to, const void* from, u32 bytes) { emu_cp_async16(to, from, bytes); }
DEVICE void cp_async_commit() { emu_cp_async_commit(); }
template <i32 N>
DEVICE void cp_async_wait() {
    static_assert(N >= 0, "a number of groups");
    emu_cp_async_wait(N);
}

DEVICE void ldmatrix_x4(u32 (&r)[4], u32 address) {
    u32x4 row = *(u32x4*)emu_shared(address, 16, 16, "ldmatrix_x4");
    emu_ldmatrix(4, &row, r, "ldmatrix_x4");
}
DEVICE void ldmatrix_x2(u32 (&r)[2], u32 address) {
    // Lanes 16 to 31 give no address.
    u32x4 row = {0, 0, 0, 0};
    if ((thread_index() & 31) < 16) row = *(u32x4*)emu_shared(address, 16, 16, "ldmatrix_x2");
    emu_ldmatrix(2, &row, r, "ldmatrix_x2");
}
DEVICE void stmatrix_x4(u32 address, const u32 (&r)[4]) {
    u32x4 row;
    emu_stmatrix(4, 0, r, &row, "stmatrix_x4");
    *(u32x4*)emu_shared_store(address, 16, 16, "stmatrix_x4") = row;
}
DEVICE void stmatrix_x4_trans(u32 address, const u32 (&r)[4]) {
    u32x4 row;
    emu_stmatrix(4, 1, r, &row, "stmatrix_x4_trans");
    *(u32x4*)emu_shared_store(address, 16, 16, "stmatrix_x4_trans") = row;
}
DEVICE void stmatrix_x2_trans(u32 address, const u32 (&r)[2]) {
    u32x4 row;
    emu_stmatrix(2, 1, r, &row, "stmatrix_x2_trans");
    if ((thread_index() & 31) < 16)
        *(u32x4*)emu_shared_store(address, 16, 16, "stmatrix_x2_trans") = row;
}

// ---- tensor cores: mma.sync -------------------------------------------------------------------

DEVICE void mma_m16n8k16_bf16(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
    emu_mma_m16n8k16_bf16(d, a, b);
}

// ---- mbarrier and TMA -------------------------------------------------------------------------

DEVICE void mbar_init(u32 barrier, u32 count) { emu_mbar_init(barrier, count); }
DEVICE void fence_mbar_init() { emu_fence_mbar_init(); }
DEVICE void mbar_arrive_expect_tx(u32 barrier, u32 bytes) {
    emu_mbar_arrive_expect_tx(barrier, bytes);
}
DEVICE void mbar_arrive(u32 barrier) { emu_mbar_arrive(barrier); }
DEVICE void mbar_wait(u32 barrier, u32 parity) { emu_mbar_wait(barrier, parity); }
DEVICE void fence_proxy_async() { emu_fence_proxy_async(); }
DEVICE void prefetch_map(const TensorMap& map) { emu_prefetch_map(&map); }

DEVICE void tma_load_2d(u32 to, const TensorMap& map, u32 barrier, u64, i32 c0, i32 c1) {
    i32 coordinates[4] = {c0, c1, 0, 0};
    emu_tma_load(2, to, &map, barrier, coordinates);
}
DEVICE void tma_load_3d(u32 to, const TensorMap& map, u32 barrier, u64, i32 c0, i32 c1, i32 c2) {
    i32 coordinates[4] = {c0, c1, c2, 0};
    emu_tma_load(3, to, &map, barrier, coordinates);
}
DEVICE void tma_load_4d(u32 to, const TensorMap& map, u32 barrier, u64, i32 c0, i32 c1, i32 c2,
                        i32 c3) {
    i32 coordinates[4] = {c0, c1, c2, c3};
    emu_tma_load(4, to, &map, barrier, coordinates);
}
DEVICE void tma_store_2d(const TensorMap& map, u32 from, i32 c0, i32 c1) {
    i32 coordinates[4] = {c0, c1, 0, 0};
    emu_tma_store(2, &map, from, coordinates);
}
DEVICE void bulk_reduce_add_f32(float* to, u32 from, u32 bytes) {
    emu_bulk_reduce_add_f32(to, from, bytes);
}
DEVICE void bulk_commit() { emu_bulk_commit(); }
template <i32 N>
DEVICE void bulk_wait_read() {
    static_assert(N >= 0, "a number of groups");
    emu_bulk_wait(N, 1);
}
template <i32 N>
DEVICE void bulk_wait() {
    static_assert(N >= 0, "a number of groups");
    emu_bulk_wait(N, 0);
}

// ---- tensor cores: wgmma ----------------------------------------------------------------------

template <u32 N>
DEVICE void setmaxnreg_dec() {
    static_assert(N % 8 == 0 && N >= 24 && N <= 256, "setmaxnreg takes multiples of 8 in 24..256");
    emu_setmaxnreg(N, 0);
}
template <u32 N>
DEVICE void setmaxnreg_inc() {
    static_assert(N % 8 == 0 && N >= 24 && N <= 256, "setmaxnreg takes multiples of 8 in 24..256");
    emu_setmaxnreg(N, 1);
}
DEVICE void wgmma_fence() { emu_wgmma_fence(); }
DEVICE void wgmma_commit() { emu_wgmma_commit(); }
template <i32 N>
DEVICE void wgmma_wait() {
    static_assert(N >= 0, "a number of groups");
    emu_wgmma_wait(N);
}
DEVICE void wgmma_fence_operand(float& d) { emu_wgmma_fence_operand(&d); }
// Registers of operand A are read when the product is issued.
DEVICE void wgmma_fence_operand(u32&) {}

template <u32 N>
DEVICE void wgmma_bf16(float (&d)[N / 2], u64 a, u64 b, u32 accumulate) {
    static_assert(N == 8 || N == 16 || N == 32 || N == 64 || N == 128 || N == 192 || N == 256,
                  "the widths that the device half has");
    emu_wgmma_bf16(N, d, a, b, accumulate);
}
template <u32 N>
DEVICE void wgmma_bf16_rs(float (&d)[N / 2], const u32 (&a)[4], u64 b, u32 accumulate) {
    static_assert(N == 8 || N == 16 || N == 32 || N == 64, "the widths that the device half has");
    emu_wgmma_bf16_rs(N, d, a, b, accumulate);
}

// ---- launches that overlap --------------------------------------------------------------------

DEVICE void griddep_wait() { emu_griddep_wait(); }
DEVICE void griddep_launch() { emu_griddep_launch(); }

DEVICE u64 global_nanoseconds() { return emu_nanoseconds(); }
DEVICE u64 sm_clock() { return emu_nanoseconds(); }
// Every block has a multiprocessor of its own.
DEVICE u32 sm_index() { return block_index(); }
DEVICE void wait_flag_sys(const u32* pointer, u32 value, u64 limit) {
    emu_global(pointer, 4, 4, "wait_flag_sys");
    u64 start = emu_nanoseconds();
    while (*(volatile const u32*)pointer != value && emu_nanoseconds() - start < limit) {
        emu_yield("wait_flag_sys");
    }
}
