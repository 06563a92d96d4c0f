// Parameters that the emulator's self-tests share with their kernels (selftest.cu).

#pragma once

#include "ptx.cuh"

// What a kernel does wrong on purpose.
enum Fault : u32 {
    kFaultNone,
    kFaultNoInitSync,          // barriers are used before the block has met
    kFaultNoInitFence,         // barriers are not made visible to the asynchronous proxy
    kFaultNoEmptyWait,         // the producer fills stages that are in use
    kFaultNoFullWait,          // consumers read stages before they are filled
    kFaultReleaseEarly,        // a stage is released before the products have read it
    kFaultReleaseByGroup,      // one warp releases a stage for its whole warpgroup
    kFaultNoProxyFence,        // ordinary stores are handed to TMA without a fence
    kFaultNoStoreSync,         // a tile is handed to TMA before all threads have stored
    kFaultNoProductFence,      // no wgmma_fence
    kFaultNoOperandFence,      // accumulators are read without wgmma_fence_operand
    kFaultNoProductWait,       // the last products are not waited for
    kFaultNoStoreGuard,        // rows past the end are stored
    kFaultNoStoreWait,         // the block ends while TMA reads its tile
    kFaultWrongBytes,          // fewer bytes are announced than come
    kFaultExtraArrival,        // one arrival too many
    kFaultNoSync,              // no block_sync between store and load
    kFaultNoCopyWait,          // cp.async is not waited for
    kFaultNoFenceGpu,          // a ticket without its fence
    kFaultStoreAfterFence,     // data stored between the fence and the ticket
    kFaultNoFlag,              // a flag that others poll is not set
    kFaultPartialMask,         // lanes outside the mask join
    kFaultDivergent,           // lanes of one warp in different collectives
    kFaultEarlyEnd,            // threads end before a barrier
    kFaultCounts,              // a named barrier with two counts
    kFaultDeadlock,            // a barrier that nobody completes
    kFaultOverflow,            // a store past a shared buffer
    kFaultArena,               // more shared memory than the launch gave
    kFaultStaleRead,           // a read-only load of data that the launch writes
    kFaultNoGriddepWait,       // a dependent launch does not wait
    kFaultUnaligned,           // a shared address that is not aligned
    kFaultGlobal,              // a global address past its buffer
    kFaultBarrierOverwritten,  // data over a barrier
    kFaultRegisters,           // more registers than the block has
    kFaultNull,                // a null pointer
    kFaultStack,               // more stack than there is
};

struct ProductParams {
    float* d;     // [rows, columns]
    u32 rows;     // of A; a block takes 128
    u32 columns;  // of B; a block takes all
    u32 depth;
    Fault fault;
};

struct RegisterProductParams {
    const u16* a;  // [64, 64] bf16
    const u16* b;  // [columns, 64]
    float* d;      // [64, columns]
};

struct FragmentParams {
    const u16* tile;       // [32, 64] 16-bit elements
    u32* ldmatrix_x4;      // [32 lanes, 4]
    u32* ldmatrix_x2;      // [32 lanes, 2]
    const u32* registers;  // [32 lanes, 4]
    u16* stmatrix;         // [3][32 rows, 8]: x4, x4 transposed, x2 transposed
    const u32* a;          // [32 lanes, 4]
    const u32* b;          // [32 lanes, 2]
    float* d;              // [32 lanes, 4], in and out
};

struct LaneParams {
    u32* out;  // [8][64 threads]
    Fault fault;
};

struct CopyParams {
    const u32* from;  // [stages][128 threads][4]
    u32* out;         // the same
    u32 stages;
    Fault fault;
};

struct GridParams {
    u32* words;     // [blocks * 64]
    u32* sums;      // [blocks]
    u32* counters;  // [8], zero
    float* total;
    u32* out;  // [64]
    Fault fault;
};

struct BoxParams {
    u16* out;  // [bytes / 2] shared memory as it arrived
    u32 rank;
    i32 coordinates[4];
    u32 bytes;
};
