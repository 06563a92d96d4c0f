// What the host half of the wrappers (ptx_host.h) asks of the emulator's runtime (runtime/).
//
// Plain C functions and no host header, so that kernel sources see nothing but this. Each hook
// names the wrapper it stands for in its messages, is a point where threads may be exchanged, and
// reports what breaks the instruction's rules. Not here: how drivers launch kernels (emu.h).

#pragma once

// What a running thread knows of itself. Filled by the runtime; kernels reach it through
// `thread_index()` and its like only.
struct EmuThread {
    u32 thread;
    u32 threads;
    u32 block;
    u32 block_y;
    u32 grid;
    u32 smem_bytes;
    u32 smem_start;  // shared-space address of `smem`
    u8* smem;
};

extern "C" {

// The thread that is running.
extern EmuThread* emu_self;

// ---- points and addresses ---------------------------------------------------------------------

// A place where other threads may run, and asynchronous work may arrive.
void emu_point(const char* wrapper);
// Always lets another thread run.
void emu_yield(const char* wrapper);
void emu_smem_region(const void* start, u32 bytes);
u32 emu_smem_addr(const void* pointer);
// Host address of `bytes` of shared memory, which lie in one buffer of the arena and are aligned.
void* emu_shared(u32 address, u32 bytes, u32 align, const char* wrapper);
// The same for a store by the calling thread that the asynchronous proxy may read later.
void* emu_shared_store(u32 address, u32 bytes, u32 align, const char* wrapper);
// Checks a global address; buffers are only known when the driver named them.
void emu_global(const void* pointer, u64 bytes, u32 align, const char* wrapper);
// Notes that `bytes` were read as data that no block writes in this launch.
void emu_read_only(const void* pointer, u32 bytes, const char* wrapper);

// ---- atomics ----------------------------------------------------------------------------------

// Around each access: what a fence before it released, and what a fence after it acquires. Loads
// have no `done`: they change nothing that others poll for. `observes` is 1 for an atomic that
// returns what it found.
void emu_atomic(const void* pointer, u32 bytes, const char* wrapper);
void emu_atomic_done(const void* pointer, u32 observes);
void emu_fence_gpu();

// ---- block and warp ---------------------------------------------------------------------------

void emu_block_sync();
void emu_named_sync(u32 id, u32 threads);
void emu_named_arrive(u32 id, u32 threads);
void emu_warp_sync(u32 mask);
u32 emu_shfl(u32 mask, u32 value, u32 lane, const char* wrapper);
u32 emu_ballot(u32 mask, u32 predicate);
u32 emu_match_any(u32 mask, u32 value);
u32 emu_redux_max(u32 mask, u32 value);
u32 emu_redux_add(u32 mask, u32 value);

// ---- matrices ---------------------------------------------------------------------------------

// `row` is what the calling lane read at its address; r receives `matrices` registers.
void emu_ldmatrix(u32 matrices, const u32x4* row, u32* r, const char* wrapper);
// `row` receives what the calling lane has to store at its address.
void emu_stmatrix(u32 matrices, u32 trans, const u32* r, u32x4* row, const char* wrapper);
void emu_mma_m16n8k16_bf16(float* d, const u32* a, const u32* b);

// ---- asynchronous copies ----------------------------------------------------------------------

void emu_cp_async16(u32 to, const void* from, u32 bytes);
void emu_cp_async_commit();
void emu_cp_async_wait(u32 newest);

// ---- mbarrier and TMA -------------------------------------------------------------------------

void emu_mbar_init(u32 barrier, u32 count);
void emu_fence_mbar_init();
void emu_mbar_arrive_expect_tx(u32 barrier, u32 bytes);
void emu_mbar_arrive(u32 barrier);
void emu_mbar_wait(u32 barrier, u32 parity);
void emu_fence_proxy_async();
void emu_prefetch_map(const TensorMap* map);
void emu_tma_load(u32 rank, u32 to, const TensorMap* map, u32 barrier, const i32* coordinates);
void emu_tma_store(u32 rank, const TensorMap* map, u32 from, const i32* coordinates);
void emu_bulk_reduce_add_f32(float* to, u32 from, u32 bytes);
void emu_bulk_commit();
void emu_bulk_wait(u32 newest, u32 read_only);

// ---- wgmma ------------------------------------------------------------------------------------

void emu_setmaxnreg(u32 registers, u32 increase);
void emu_wgmma_fence();
void emu_wgmma_commit();
void emu_wgmma_wait(u32 newest);
void emu_wgmma_fence_operand(float* d);
void emu_wgmma_bf16(u32 n, float* d, u64 a, u64 b, u32 accumulate);
// `a` in four registers of each lane; they are read at once.
void emu_wgmma_bf16_rs(u32 n, float* d, const u32* a, u64 b, u32 accumulate);

// ---- launches that overlap --------------------------------------------------------------------

void emu_griddep_wait();
void emu_griddep_launch();
u64 emu_nanoseconds();
}
