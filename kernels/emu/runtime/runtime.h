// The emulator's inside: threads as fibers, blocks, launches, and what its parts share.
//
// One operating-system thread runs everything. A CUDA thread is a fiber that gives way only inside
// hooks; ready fibers are picked at random from one seed, so that a run can be repeated exactly.
// Model and limits: README.md.

#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "../emu.h"
#include "sanitizers.h"

namespace emu {

// Kinds of findings and their exit codes; capsule.md has the list.
enum Kind {
    kUsage = 2,
    kCapsule = 3,
    kDivergence = 10,
    kDeadlock = 11,
    kShared = 12,
    kGlobal = 13,
    kConstant = 14,
    kInFlight = 15,
    kMbarrier = 16,
    kDescriptor = 17,
    kProxy = 18,
    kRegisters = 19,
};

// Prints the finding with the running thread's place, and ends the process.
[[noreturn]] void fail(Kind kind, const char* format, ...) __attribute__((format(printf, 2, 3)));

struct Block;
struct Grid;
struct Thread;

// ---- asynchronous work that a thread has issued -----------------------------------------------

// A cp.async: `bytes` of 16 are read, the rest are zeros.
struct Copy {
    u32 to;
    const void* from;
    u32 bytes;
    u32 group;
};

// An accumulator of wgmma between issue and the point where it may be read.
struct Accumulator {
    float* registers;  // the kernel's array; what is not handed back holds NaN
    u32 count;
    u32 last_product;  // number of the last product into it
    float value[128];
    bool handed_back[128];
};

// One warp's quarter of a wgmma: 16 rows by n columns by 16.
struct Product {
    u64 a;
    u64 b;
    u32 n;
    u32 accumulate;
    u32 number;  // counts up by warp
    Accumulator* lanes[32];
    bool a_in_registers;
    u32 a_registers[32][4];
};

// What the host holds in the 128 bytes of a TensorMap.
struct MapRecord {
    u64 magic;
    u8* base;
    u64 dims[4];     // elements, innermost first
    u64 strides[4];  // bytes; strides[0] is that of an element
    u32 box[4];
    u32 rank;
    u32 element_bytes;
    u32 swizzle;  // 0 or 128
};
static_assert(sizeof(MapRecord) <= sizeof(TensorMap), "a record fits the map it stands for");

// A TMA copy or bulk reduction in flight.
struct BulkOp {
    enum Type {
        kLoad,
        kStore,
        kReduce
    } type;
    Thread* issuer;
    MapRecord map;
    i32 coordinates[4];
    u32 shared;
    u32 bytes;
    u32 barrier;
    float* global;
    u32 group;
    u64 source_sum;         // of the source at issue: it must not change until it is read
    std::vector<u8> taken;  // a store's source, once read
};

// ---- threads, warps, blocks -------------------------------------------------------------------

struct Thread : EmuThread {
    void* stack_pointer = nullptr;
    u8* stack = nullptr;
    size_t stack_bytes = 0;
    Block* owner = nullptr;
    bool ended = false;
    bool ready = false;
    const char* wrapper = "";
    // What it waits for, for the deadlock report: a format and its numbers.
    const char* waits_for = "";
    u32 waits_with[2] = {0, 0};

    std::vector<Copy> copies;
    u32 copy_groups = 0;  // committed so far; the open group has this number
    OpContext copy_context;
    SyncToken copy_issued;
    SyncToken copy_done;

    u32 bulk_groups = 0;  // committed so far
    // Of this thread's operations alone: one that another thread's had used would have seen what
    // that thread had.
    OpContext bulk_context;
    SyncToken bulk_issued;
    SyncToken bulk_done;

    std::vector<Accumulator*> accumulators;
    bool registers_fenced = false;  // a wgmma_fence since an accumulator was last handed back
    u32 registers = 0;              // a thread's share; changed by setmaxnreg

    u32 proxy_epoch = 1;  // counts fence_proxy_async
    u32 mbar_epoch = 1;   // counts fence_mbar_init

    // Thread build: what this thread had seen at its last fence_gpu, which its relaxed atomics
    // publish from then on; and where it has made relaxed atomics since, which its next one sees.
    bool fenced = false;
    OpContext fence_context;
    SyncToken fence_token;
    std::vector<const void*> atomics;

    FiberContext context;  // what the sanitizers know of this fiber

    u32 lane() const { return thread & 31; }
    u32 warp_index() const { return thread >> 5; }
};

// One rendezvous of lanes of a warp.
struct LaneGroup {
    const char* wrapper = nullptr;
    u64 shape = 0;
    u32 mask = 0;
    u32 arrived = 0;
    void* arguments[32] = {};
    SyncToken token;
};

struct Warp {
    LaneGroup groups[32];  // as many as there are lanes may meet under different masks
    u32 meeting = 0;       // groups that some lanes wait in
    u32 ended = 0;         // lanes
    u32 lanes = 0;

    // wgmma: products are executed in order, each warp's for itself.
    std::vector<Product> products;  // not executed yet
    u32 issued = 0;
    u32 executed = 0;             // products below this number
    u32 waited = 0;               // products below this number may be read
    std::vector<u32> group_ends;  // number after the last product of each committed group
    u32 groups_finished = 0;      // groups whose products were all executed
    std::vector<Product> log;     // all of this warp, to compare with its warpgroup
    OpContext context;
    SyncToken issue_token;
    SyncToken group_tokens[8];  // by group
};

struct Barrier {
    u32 expected = 0;
    u32 arrived = 0;
    u32 lanes[32] = {};  // by warp
    std::vector<Thread*> waiting;
    u32 generation = 0;
    SyncToken tokens[2];  // by parity of the generation: late leavers do not see early comers
};

struct Mbarrier {
    u32 count = 0;
    u32 pending = 0;
    i64 bytes = 0;
    u32 phase = 0;
    Thread* initialised_by = nullptr;
    u32 initialised_at = 0;  // mbar_epoch of that thread
    std::vector<Thread*> waiting;
    SyncToken tokens[2];
};

// Bytes of the arena that one `take` handed out.
struct Region {
    u32 start;
    u32 bytes;
};

struct Block {
    Grid* grid = nullptr;
    u8* arena = nullptr;    // start of dynamic shared memory
    u32 arena_start = 0;    // its shared-space address
    u8* mapping = nullptr;  // the memory that it lies in
    u32 mapping_bytes = 0;
    u8* stacks = nullptr;  // mapped for this block, if it was
    std::vector<Thread> threads;
    std::vector<Warp> warps;
    Barrier barriers[16];
    std::map<u32, Mbarrier> mbarriers;
    std::vector<Region> regions;
    // By 4 bytes of the arena: thread (plus 1) and proxy epoch of the last tracked ordinary store.
    std::vector<u32> marks;
    std::vector<BulkOp> bulk;
    u32 free_registers = 0;  // given up by setmaxnreg_dec
    std::vector<Thread*> waiting_for_registers;
    u32 ended = 0;
    bool let_dependents = false;
};

struct Grid {
    const EmuLaunch* launch = nullptr;
    Grid* before = nullptr;  // the launch it may overlap with
    u32 blocks = 0;
    u32 started = 0;
    u32 finished = 0;
    u32 let_dependents = 0;  // blocks that have let the next launch start
    std::vector<u32> order;
    u32 live = 0;
    std::vector<Thread*> waiting;  // in griddep_wait for this grid to end
    SyncToken token;

    bool done() const { return finished == blocks; }
};

// ---- fiber.cpp: scheduling --------------------------------------------------------------------

inline Thread* self() { return static_cast<Thread*>(emu_self); }
inline Block& block() { return *self()->owner; }
inline Warp& warp() { return block().warps[self()->warp_index()]; }

u32 random_u32();
// True once in `n` times.
bool one_in(u32 n);
// Names the wrapper, and may let others run and asynchronous work arrive.
void point(const char* wrapper);
// Sleeps until `wake`; the caller has put itself where the waker finds it. `format` takes the two
// numbers, for the report of a deadlock.
void sleep(const char* format, u32 first = 0, u32 second = 0);
void wake(Thread* thread);
// A flag may have changed that other threads poll.
void note_progress();
// Goes to the scheduler, which may start blocks.
void visit_scheduler();

// ---- faults.cpp -------------------------------------------------------------------------------

// From now on, accesses to nothing end the run as findings do.
void listen_for_faults();
// Ends the process as a deadlock after that time; 0 is never.
void limit_time(u32 seconds);

// ---- memory.cpp -------------------------------------------------------------------------------

// Host address in the running block's arena, without checks of buffers.
u8* shared_pointer(const Block& block, u32 address);
// Checks range, buffer and alignment, and returns the host address.
u8* checked_shared(Block& block, u32 address, u32 bytes, u32 align);
void mark_store(Block& block, u32 address, u32 bytes, Thread* writer);
void clear_marks(Block& block, u32 address, u32 bytes);
// Reports a tracked store in the range whose writer has not fenced since.
void check_fenced(Block& block, u32 address, u32 bytes, const char* reader);
void check_global(const void* pointer, u64 bytes, u32 align);
// `emu_buffer`; a constant buffer is known not to change, since the driver compares it.
void name_buffer(const void* start, size_t bytes, const char* name, bool constant);
void begin_block_memory(Block& block);
void end_block_memory(Block& block);
void end_grid_memory(const Grid& grid);

// ---- sync.cpp ---------------------------------------------------------------------------------

// Waits for all lanes of `mask` with the same wrapper and shape; the last comer runs `all` on the
// lanes' arguments for everyone.
void meet_lanes(const char* wrapper, u64 shape, u32 mask, void* argument,
                void (*all)(LaneGroup& group), bool orders_memory = false);
void thread_ended(Thread& thread);

// ---- asynchronous work ------------------------------------------------------------------------

// Each delivers one piece of the block's outstanding work at random, and says if there was any.
bool deliver_copy(Block& block);
bool deliver_bulk(Block& block);
bool deliver_product(Block& block);
// Reports work that the ended thread or block left behind.
void check_copies_ended(Thread& thread);
void check_bulk_ended(Thread& thread);
void check_products_ended(Thread& thread);
// At the end of a block: finishes stores, compares what its barriers and warps are left with.
void end_block_bulk(Block& block);
void end_block_barriers(Block& block);
void end_block_products(Block& block);

// ---- mbarrier.cpp -----------------------------------------------------------------------------

// The barrier at the address; reports one that was not initialised or that was written over.
Mbarrier& mbarrier_at(Block& block, u32 address);
// A delivered copy's bytes.
void complete_bytes(Block& block, u32 address, u32 bytes);

}  // namespace emu
