// Every instruction that C++ cannot spell, one wrapper each: the only file with inline PTX.
//
// Two halves declare the same names. The device half below is inline PTX; the host half
// (emu/ptx_host.h) executes the same instruction on the CPU, so that the kernels run in tests on
// machines without a GPU. A wrapper is used by a kernel only when both halves have it.
//
// Not here: tile shapes, parameter structs and arithmetic (common.cuh).
//
// Conventions. Shared-memory addresses are 32-bit (`smem_addr`). Parities and counts are those of
// the PTX manual. Waiting loops stand inside wrappers, never in kernels: the emulator switches
// threads there. No CUDA or host header is included, so that nvcc, NVRTC and a host compiler read
// the same text.

#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef int i32;
typedef long long i64;

// A 16-bit brain float as its bits; converted by `to_f32`, `to_bf16` and `pack_bf16x2`.
struct bf16 {
    u16 bits;
};

// Four 32-bit registers that are loaded and stored as one 16-byte access.
struct alignas(16) u32x4 {
    u32 x, y, z, w;
};

// A tensor map as the driver encodes it (`CUtensorMap`), passed to kernels by value.
struct alignas(64) TensorMap {
    u64 opaque[16];
};

constexpr u32 kFullWarp = 0xffffffffu;
constexpr u32 kWarpSize = 32;

#if defined(__CUDACC__) || defined(__CUDACC_RTC__)

#define DEVICE __device__ __forceinline__
#define KERNEL(threads, blocks_per_sm) \
    extern "C" __global__ void __launch_bounds__(threads, blocks_per_sm)
#define GRID_CONSTANT const __grid_constant__

// ---- identity and shared memory -------------------------------------------------------------

DEVICE u32 thread_index() { return threadIdx.x; }
DEVICE u32 block_threads() { return blockDim.x; }
DEVICE u32 block_index() { return blockIdx.x; }
DEVICE u32 block_index_y() { return blockIdx.y; }
DEVICE u32 grid_blocks() { return gridDim.x; }

// Start of the block's dynamic shared memory: the one declaration of it. 16-byte aligned at least;
// nothing stronger is promised.
DEVICE u8* dynamic_smem() {
    extern __shared__ __align__(16) u8 dynamic_smem_bytes[];
    return dynamic_smem_bytes;
}

// Shared-space address of a generic pointer into shared memory.
DEVICE u32 smem_addr(const void* pointer) { return (u32)__cvta_generic_to_shared(pointer); }

// Tells the emulator that the bytes belong to one buffer of the arena; nothing on a device.
DEVICE void smem_region(const void*, u32) {}

// ---- arithmetic that is rounded once and never fused ------------------------------------------

DEVICE float fma_rn(float a, float b, float c) { return __fmaf_rn(a, b, c); }
DEVICE float mul_rn(float a, float b) { return __fmul_rn(a, b); }
DEVICE float add_rn(float a, float b) { return __fadd_rn(a, b); }
DEVICE float div_rn(float a, float b) { return __fdiv_rn(a, b); }
DEVICE float sqrt_rn(float a) { return __fsqrt_rn(a); }
DEVICE u32 float_bits(float a) { return __float_as_uint(a); }
DEVICE float bits_float(u32 a) { return __uint_as_float(a); }
DEVICE u32 count_ones(u32 a) { return __popc(a); }
// Index of the lowest set bit; `a` is not zero.
DEVICE u32 lowest_bit(u32 a) { return __ffs((i32)a) - 1; }

// Approximate e^x and 1/x of the special-function unit, for activations whose bound allows it.
DEVICE float exp_approx(float a) { return __expf(a); }
DEVICE float rcp_approx(float a) {
    float r;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(a));
    return r;
}

// Two floats rounded to nearest even; `low` in bits 0-15.
DEVICE u32 pack_bf16x2(float low, float high) {
    u32 r;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
    return r;
}

// Products of two pairs of bf16, each rounded to nearest even; subnormals are kept (sm_90).
DEVICE u32 mul_bf16x2(u32 a, u32 b) {
    u32 r;
    asm("mul.rn.bf16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
    return r;
}

// ---- block and warp ---------------------------------------------------------------------------

DEVICE void block_sync() { __syncthreads(); }
// Barrier `id` (1 to 15; 0 is block_sync's) among `threads` threads.
DEVICE void named_sync(u32 id, u32 threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
// Arrival at barrier `id` without waiting.
DEVICE void named_arrive(u32 id, u32 threads) {
    asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
DEVICE void warp_sync(u32 mask) { __syncwarp(mask); }
DEVICE u32 shfl(u32 mask, u32 value, u32 lane) { return __shfl_sync(mask, value, (i32)lane); }
DEVICE u32 shfl_xor(u32 mask, u32 value, u32 lanes) {
    return __shfl_xor_sync(mask, value, (i32)lanes);
}
// Value of the lane `delta` below; lanes below `delta` keep their own.
DEVICE u32 shfl_up(u32 mask, u32 value, u32 delta) { return __shfl_up_sync(mask, value, delta); }
DEVICE u32 ballot(u32 mask, bool predicate) { return __ballot_sync(mask, predicate); }
// Lanes of `mask` that hold the same value.
DEVICE u32 match_any(u32 mask, u32 value) { return __match_any_sync(mask, value); }
DEVICE u32 redux_max(u32 mask, u32 value) { return __reduce_max_sync(mask, value); }
DEVICE u32 redux_add(u32 mask, u32 value) { return __reduce_add_sync(mask, value); }

// ---- global memory ----------------------------------------------------------------------------

// L2 policies, for streamed loads and TMA copies.
DEVICE u64 policy_evict_first() {
    u64 p;
    asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(p));
    return p;
}
DEVICE u64 policy_evict_last() {
    u64 p;
    asm("createpolicy.fractional.L2::evict_last.b64 %0, 1.0;" : "=l"(p));
    return p;
}
DEVICE u64 policy_evict_normal() {
    u64 p;
    asm("createpolicy.fractional.L2::evict_normal.b64 %0, 1.0;" : "=l"(p));
    return p;
}
// Read-only data that is used once: past L1, and in L2 as the policy says.
DEVICE u32x4 ld_stream(const void* pointer, u64 policy) {
    u32x4 v;
    asm volatile("ld.global.nc.L1::no_allocate.L2::cache_hint.v4.u32 {%0, %1, %2, %3}, [%4], %5;"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(pointer), "l"(policy));
    return v;
}
// Read-only data that many blocks use. Not for data written by the same launch.
DEVICE u32x4 ld_readonly(const void* pointer) {
    u32x4 v;
    asm volatile("ld.global.nc.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(pointer));
    return v;
}
DEVICE u32x4 ld_global(const void* pointer) { return *(const u32x4*)pointer; }
DEVICE void st_global(void* pointer, u32x4 v) { *(u32x4*)pointer = v; }

// Atomics and flags at device scope. Every access to memory that blocks share within one launch
// goes through these.
DEVICE u32 atom_add_gpu(u32* pointer, u32 v) {
    u32 old;
    asm volatile("atom.relaxed.gpu.global.add.u32 %0, [%1], %2;"
                 : "=r"(old)
                 : "l"(pointer), "r"(v)
                 : "memory");
    return old;
}
// Adds with acquire and release: a ticket that orders what comes before it and after it.
DEVICE u32 atom_add_acq_rel_gpu(u32* pointer, u32 v) {
    u32 old;
    asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], %2;"
                 : "=r"(old)
                 : "l"(pointer), "r"(v)
                 : "memory");
    return old;
}
DEVICE void red_or_gpu(u32* pointer, u32 v) {
    asm volatile("red.relaxed.gpu.global.or.b32 [%0], %1;" ::"l"(pointer), "r"(v) : "memory");
}
DEVICE void red_add_f32_gpu(float* pointer, float v) {
    asm volatile("red.relaxed.gpu.global.add.f32 [%0], %1;" ::"l"(pointer), "f"(v) : "memory");
}
DEVICE u32 ld_acquire_gpu(const u32* pointer) {
    u32 v;
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(pointer) : "memory");
    return v;
}
DEVICE void st_release_gpu(u32* pointer, u32 v) {
    asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(pointer), "r"(v) : "memory");
}
// Makes what this thread wrote visible to the device before what it writes next.
DEVICE void fence_gpu() { __threadfence(); }

// ---- shared memory ----------------------------------------------------------------------------

DEVICE u32x4 ld_shared(u32 address) {
    u32x4 v;
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "r"(address)
                 : "memory");
    return v;
}
// Stores that TMA or wgmma will read go through these three, so that the emulator can hold the
// writer to its proxy fence.
DEVICE void st_shared(u32 address, u32x4 v) {
    asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(v.x), "r"(v.y),
                 "r"(v.z), "r"(v.w)
                 : "memory");
}
DEVICE void st_shared_u32(u32 address, u32 v) {
    asm volatile("st.shared.u32 [%0], %1;" ::"r"(address), "r"(v) : "memory");
}
// Two neighbouring words; the address is a multiple of 8.
DEVICE void st_shared_u32x2(u32 address, u32 low, u32 high) {
    asm volatile("st.shared.v2.u32 [%0], {%1, %2};" ::"r"(address), "r"(low), "r"(high) : "memory");
}
DEVICE u32 atom_add_shared(u32* pointer, u32 v) {
    u32 old;
    asm volatile("atom.relaxed.cta.shared.add.u32 %0, [%1], %2;"
                 : "=r"(old)
                 : "r"(smem_addr(pointer)), "r"(v)
                 : "memory");
    return old;
}

// 16-byte asynchronous copy; bytes from `bytes` (0 to 16) on are written as zeros. With 0 bytes the
// source is not read.
DEVICE void cp_async16(u32 to, const void* from, u32 bytes) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes)
                 : "memory");
}
DEVICE void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most N of this thread's newest groups are unfinished.
template <i32 N>
DEVICE void cp_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

// Loads 8x8 matrices of 16-bit elements: lane l gives the address of row l & 7 of matrix l >> 3.
DEVICE void ldmatrix_x4(u32 (&r)[4], u32 address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
}
DEVICE void ldmatrix_x2(u32 (&r)[2], u32 address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(address)
                 : "memory");
}
// The inverse (sm_90). Tracked like st_shared.
DEVICE void stmatrix_x4(u32 address, const u32 (&r)[4]) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address),
                 "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3])
                 : "memory");
}
DEVICE void stmatrix_x4_trans(u32 address, const u32 (&r)[4]) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(
                     address),
                 "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3])
                 : "memory");
}
DEVICE void stmatrix_x2_trans(u32 address, const u32 (&r)[2]) {
    asm volatile("stmatrix.sync.aligned.m8n8.x2.trans.shared.b16 [%0], {%1, %2};" ::"r"(address),
                 "r"(r[0]), "r"(r[1])
                 : "memory");
}

// ---- tensor cores: mma.sync (sm_80) -------------------------------------------------------------

// d += a b for a 16x16 (row) by 16x8 (column) product of bf16.
DEVICE void mma_m16n8k16_bf16(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// ---- mbarrier and TMA (sm_90) -------------------------------------------------------------------

DEVICE void mbar_init(u32 barrier, u32 count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(count) : "memory");
}
// Makes initialised barriers visible to the asynchronous proxy; a block_sync follows.
DEVICE void fence_mbar_init() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
// Announces `bytes` to come, and arrives.
DEVICE void mbar_arrive_expect_tx(u32 barrier, u32 bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier),
                 "r"(bytes)
                 : "memory");
}
DEVICE void mbar_arrive(u32 barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
// Waits until the phase of this parity is over; a fresh barrier lets parity 1 pass.
DEVICE void mbar_wait(u32 barrier, u32 parity) {
    asm volatile(
        "{\n"
        ".reg .pred done;\n"
        "wait_%=:\n"
        "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
        "@!done bra wait_%=;\n"
        "}" ::"r"(barrier),
        "r"(parity)
        : "memory");
}
// Makes this thread's ordinary shared-memory stores visible to TMA and wgmma.
DEVICE void fence_proxy_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

DEVICE void prefetch_map(const TensorMap& map) {
    asm volatile("prefetch.tensormap [%0];" ::"l"((u64)&map) : "memory");
}

// Box copies, global to shared; coordinates innermost first, in elements; what lies outside the
// tensor arrives as zeros. `barrier` receives the bytes of the whole box.
DEVICE void tma_load_2d(u32 to, const TensorMap& map, u32 barrier, u64 policy, i32 c0, i32 c1) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
        ".L2::cache_hint [%0], [%1, {%3, %4}], [%2], %5;" ::"r"(to),
        "l"((u64)&map), "r"(barrier), "r"(c0), "r"(c1), "l"(policy)
        : "memory");
}
DEVICE void tma_load_3d(u32 to, const TensorMap& map, u32 barrier, u64 policy, i32 c0, i32 c1,
                        i32 c2) {
    asm volatile(
        "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes"
        ".L2::cache_hint [%0], [%1, {%3, %4, %5}], [%2], %6;" ::"r"(to),
        "l"((u64)&map), "r"(barrier), "r"(c0), "r"(c1), "r"(c2), "l"(policy)
        : "memory");
}
DEVICE void tma_load_4d(u32 to, const TensorMap& map, u32 barrier, u64 policy, i32 c0, i32 c1,
                        i32 c2, i32 c3) {
    asm volatile(
        "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes"
        ".L2::cache_hint [%0], [%1, {%3, %4, %5, %6}], [%2], %7;" ::"r"(to),
        "l"((u64)&map), "r"(barrier), "r"(c0), "r"(c1), "r"(c2), "r"(c3), "l"(policy)
        : "memory");
}
// Box copy, shared to global; what lies outside the tensor is not written.
DEVICE void tma_store_2d(const TensorMap& map, u32 from, i32 c0, i32 c1) {
    asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%2, %3}], [%1];" ::
                     "l"((u64)&map),
                 "r"(from), "r"(c0), "r"(c1)
                 : "memory");
}
// Adds `bytes` (a multiple of 16) of f32 from shared memory to global memory, in no fixed order.
DEVICE void bulk_reduce_add_f32(float* to, u32 from, u32 bytes) {
    asm volatile("cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [%0], [%1], %2;" ::"l"(
                     to),
                 "r"(from), "r"(bytes)
                 : "memory");
}
DEVICE void bulk_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
// Until at most N newest groups have not finished reading their source.
template <i32 N>
DEVICE void bulk_wait_read() {
    asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(N) : "memory");
}
// Until at most N newest groups are not complete.
template <i32 N>
DEVICE void bulk_wait() {
    asm volatile("cp.async.bulk.wait_group %0;" ::"n"(N) : "memory");
}

// ---- tensor cores: wgmma (sm_90a) ---------------------------------------------------------------

template <u32 N>
DEVICE void setmaxnreg_dec() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
}
template <u32 N>
DEVICE void setmaxnreg_inc() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
}

DEVICE void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
DEVICE void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Waits until at most N of the newest groups are unfinished.
template <i32 N>
DEVICE void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}
// Keeps the compiler from moving an accumulator across the point where it stands. On the host it
// marks the point from which the value may be read.
DEVICE void wgmma_fence_operand(float& d) { asm volatile("" : "+f"(d)::"memory"); }
// The same for a register of operand A: written before the fence, whatever the compiler would like.
DEVICE void wgmma_fence_operand(u32& a) { asm volatile("" : "+r"(a)::"memory"); }

#define REGS_16 \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define REGS_32 \
    REGS_16     \
    ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define REGS_64                                                                         \
    REGS_32                                                                             \
    ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"  \
    ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define REGS_96                                                                         \
    REGS_64                                                                             \
    ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79"  \
    ", %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define REGS_128                                                                        \
    REGS_96                                                                             \
    ", %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109"  \
    ", %110, %111, %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122"    \
    ", %123, %124, %125, %126, %127"
#define OPERANDS_4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define OPERANDS_16(i) OPERANDS_4(i), OPERANDS_4(i + 4), OPERANDS_4(i + 8), OPERANDS_4(i + 12)
#define OPERANDS_32(i) OPERANDS_16(i), OPERANDS_16(i + 16)
#define OPERANDS_64(i) OPERANDS_32(i), OPERANDS_32(i + 32)

template <u32 N>
struct Wgmma;

// One overload a width: the registers of d come first, so that descriptors and predicate have the
// numbers after them.
#define WGMMA_BF16(N, REGS, A, B, P, ...)                                                          \
    template <>                                                                                    \
    struct Wgmma<N> {                                                                              \
        static DEVICE void bf16(float (&d)[N / 2], u64 a, u64 b, u32 accumulate) {                 \
            asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " P ", 0;\n"                            \
                         "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32.bf16.bf16 {" REGS "}, " A \
                         ", " B ", p, 1, 1, 0, 0;\n}"                                              \
                         : __VA_ARGS__                                                             \
                         : "l"(a), "l"(b), "r"(accumulate));                                       \
        }                                                                                          \
    };
WGMMA_BF16(8, "%0, %1, %2, %3", "%4", "%5", "%6", OPERANDS_4(0))
WGMMA_BF16(16, "%0, %1, %2, %3, %4, %5, %6, %7", "%8", "%9", "%10", OPERANDS_4(0), OPERANDS_4(4))
WGMMA_BF16(32, REGS_16, "%16", "%17", "%18", OPERANDS_16(0))
WGMMA_BF16(64, REGS_32, "%32", "%33", "%34", OPERANDS_32(0))
WGMMA_BF16(128, REGS_64, "%64", "%65", "%66", OPERANDS_64(0))
WGMMA_BF16(192, REGS_96, "%96", "%97", "%98", OPERANDS_64(0), OPERANDS_32(64))
WGMMA_BF16(256, REGS_128, "%128", "%129", "%130", OPERANDS_64(0), OPERANDS_64(64))

// d (+)= a b for 64 x N x 16 of bf16, both operands K-major in shared memory, by the 128 threads of
// a warpgroup. `accumulate` 0 overwrites d. Asynchronous: d is not touched until wgmma_wait.
template <u32 N>
DEVICE void wgmma_bf16(float (&d)[N / 2], u64 a, u64 b, u32 accumulate) {
    Wgmma<N>::bf16(d, a, b, accumulate);
}

#define WGMMA_BF16_RS(N, REGS, A, B, P, ...)                                                       \
    template <>                                                                                    \
    struct WgmmaRs<N> {                                                                            \
        static DEVICE void bf16(float (&d)[N / 2], const u32 (&a)[4], u64 b, u32 accumulate) {     \
            asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " P ", 0;\n"                            \
                         "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32.bf16.bf16 {" REGS "}, {" A \
                         "}, " B ", p, 1, 1, 0;\n}"                                                \
                         : __VA_ARGS__                                                             \
                         : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate));   \
        }                                                                                          \
    };
template <u32 N>
struct WgmmaRs;
WGMMA_BF16_RS(8, "%0, %1, %2, %3", "%4, %5, %6, %7", "%8", "%9", OPERANDS_4(0))
WGMMA_BF16_RS(16, "%0, %1, %2, %3, %4, %5, %6, %7", "%8, %9, %10, %11", "%12", "%13",
              OPERANDS_4(0), OPERANDS_4(4))
WGMMA_BF16_RS(32, REGS_16, "%16, %17, %18, %19", "%20", "%21", OPERANDS_16(0))
WGMMA_BF16_RS(64, REGS_32, "%32, %33, %34, %35", "%36", "%37", OPERANDS_32(0))

// The same with a in registers: warp w of the group holds rows 16 w to 16 w + 15 as mma.sync's a.
// Its registers are left alone until wgmma_wait, too.
template <u32 N>
DEVICE void wgmma_bf16_rs(float (&d)[N / 2], const u32 (&a)[4], u64 b, u32 accumulate) {
    WgmmaRs<N>::bf16(d, a, b, accumulate);
}

// ---- launches that overlap (sm_90; nothing before) ------------------------------------------------

// Until the launch before this one has finished and its writes are visible.
DEVICE void griddep_wait() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
// Lets the next launch start its blocks.
DEVICE void griddep_launch() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// ---- clocks, for probes only ----------------------------------------------------------------------

DEVICE u64 global_nanoseconds() {
    u64 t;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(t));
    return t;
}
// Cycles of this multiprocessor since some moment; differences are good within one multiprocessor.
DEVICE u64 sm_clock() {
    u64 t;
    asm volatile("mov.u64 %0, %%clock64;" : "=l"(t));
    return t;
}
// Number of the multiprocessor that runs this block.
DEVICE u32 sm_index() {
    u32 index;
    asm volatile("mov.u32 %0, %%smid;" : "=r"(index));
    return index;
}
// Waits until the host writes `value` to memory that both see, or `limit` nanoseconds have passed.
DEVICE void wait_flag_sys(const u32* pointer, u32 value, u64 limit) {
    u64 start = global_nanoseconds();
    u32 seen;
    do {
        asm volatile("ld.acquire.sys.global.u32 %0, [%1];" : "=r"(seen) : "l"(pointer) : "memory");
    } while (seen != value && global_nanoseconds() - start < limit);
}

#else
#include "emu/ptx_host.h"
#endif

// Descriptor of a K-major operand in shared memory with the 128-byte swizzle: rows of 64 bf16, groups
// of 8 rows 1024 bytes apart. A step of 16 along K adds 32 bytes to the address.
DEVICE u64 wgmma_descriptor(u32 address) {
    return (u64)((address & 0x3ffff) >> 4) | ((u64)1 << 16) | ((u64)(1024 >> 4) << 32) |
           ((u64)1 << 62);
}

// Where 128-byte-swizzled tiles hold byte `address`: bits 4-6 are exchanged by bits 7-9.
DEVICE u32 swizzle128(u32 address) { return address ^ ((address >> 3) & 0x70); }
