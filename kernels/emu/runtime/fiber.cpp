// Scheduling: CUDA threads as fibers, blocks and launches as groups of them.
//
// Fibers switch to each other directly; the scheduler (the process' own stack) runs only to start
// blocks and to end them. A switch saves the callee-saved registers and nothing else, which is some
// ten times cheaper than ucontext with its system call for signal masks.

#include <sys/mman.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "runtime.h"

EmuThread* emu_self = nullptr;

#if defined(__x86_64__)
asm(R"(
.text
.globl emu_switch_stacks
.type emu_switch_stacks, @function
emu_switch_stacks:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size emu_switch_stacks, .-emu_switch_stacks
)");
#elif defined(__aarch64__)
asm(R"(
.text
.globl emu_switch_stacks
.type emu_switch_stacks, %function
emu_switch_stacks:
    sub sp, sp, #160
    stp x19, x20, [sp, #0]
    stp x21, x22, [sp, #16]
    stp x23, x24, [sp, #32]
    stp x25, x26, [sp, #48]
    stp x27, x28, [sp, #64]
    stp x29, x30, [sp, #80]
    stp d8, d9, [sp, #96]
    stp d10, d11, [sp, #112]
    stp d12, d13, [sp, #128]
    stp d14, d15, [sp, #144]
    mov x9, sp
    str x9, [x0]
    mov sp, x1
    ldp x19, x20, [sp, #0]
    ldp x21, x22, [sp, #16]
    ldp x23, x24, [sp, #32]
    ldp x25, x26, [sp, #48]
    ldp x27, x28, [sp, #64]
    ldp x29, x30, [sp, #80]
    ldp d8, d9, [sp, #96]
    ldp d10, d11, [sp, #112]
    ldp d12, d13, [sp, #128]
    ldp d14, d15, [sp, #144]
    add sp, sp, #160
    ret
.size emu_switch_stacks, .-emu_switch_stacks
)");
#else
#error "the emulator switches stacks on x86-64 and aarch64 only"
#endif

extern "C" void emu_switch_stacks(void** save, void* load);

namespace emu {

#if defined(EMU_THREAD)
void* scheduler_fiber = nullptr;
#endif

namespace {

// Enough for the largest kernel with the address sanitizer's red zones; only touched pages count.
constexpr size_t kStackBytes = 256 * 1024;
// Stacks start at different cache sets: at equal distances all their hot lines would share a few.
constexpr size_t kStackColours = 61;
// More polls of a flag than any kernel makes while another thread can still set it.
constexpr u64 kMostIdlePolls = 5'000'000;

u64 random_state = 1;
std::vector<Thread*> ready;
std::vector<Block*> live_blocks;
std::vector<Grid> running;
void* scheduler_stack_pointer = nullptr;
u64 idle_polls = 0;

// Stacks of ended blocks, for the next.
std::vector<u8*> free_stacks;

#if defined(__SANITIZE_ADDRESS__)
void* scheduler_fake_stack = nullptr;
const void* scheduler_bottom = nullptr;
size_t scheduler_bytes = 0;
#endif

void print_wait(const Thread& thread) {
    std::fprintf(stderr, thread.waits_for, thread.waits_with[0], thread.waits_with[1]);
}

[[noreturn]] void deadlock() {
    emu_self = nullptr;
    std::string kernel = "?";
    u32 waiting = 0;
    for (Block* block : live_blocks) {
        kernel = block->grid->launch->name;
        waiting += (u32)block->threads.size() - block->ended;
    }
    std::fprintf(stderr, "emulator: deadlock: %u threads wait, nothing is in flight (kernel %s)\n",
                 waiting, kernel.c_str());
    // Threads of a block that wait for the same are told once.
    for (Block* block : live_blocks) {
        const Thread* first = nullptr;
        const Thread* last = nullptr;
        auto tell = [&] {
            if (!first) return;
            std::fprintf(stderr, "  block %u,%u threads %u..%u: ", first->block, first->block_y,
                         first->thread, last->thread);
            print_wait(*first);
            std::fprintf(stderr, "\n");
        };
        for (const Thread& thread : block->threads) {
            if (thread.ended) continue;
            bool same = first && last->thread + 1 == thread.thread &&
                        std::strcmp(first->waits_for, thread.waits_for) == 0 &&
                        first->waits_with[0] == thread.waits_with[0] &&
                        first->waits_with[1] == thread.waits_with[1];
            if (!same) {
                tell();
                first = &thread;
            }
            last = &thread;
        }
        tell();
        for (const auto& [address, barrier] : block->mbarriers) {
            if (barrier.waiting.empty()) continue;
            std::fprintf(stderr, "  block %u,%u barrier 0x%x: phase %u lacks ",
                         block->threads[0].block, block->threads[0].block_y, address,
                         barrier.phase);
            std::fprintf(stderr, "%u of %u arrivals and %lld bytes\n", barrier.pending,
                         barrier.count, barrier.bytes);
        }
    }
    std::fflush(stderr);
    std::_Exit(kDeadlock);
}

// Delivers one piece of any live block's work of the given kinds.
bool deliver_any(bool bulk_only) {
    if (live_blocks.empty()) return false;
    u32 first = random_u32() % (u32)live_blocks.size();
    for (u32 i = 0; i < live_blocks.size(); i++) {
        Block& block = *live_blocks[(first + i) % live_blocks.size()];
        if (bulk_only) {
            if (deliver_bulk(block)) return true;
            continue;
        }
        u32 kind = random_u32() % 3;
        bool any = kind == 0   ? deliver_copy(block)
                   : kind == 1 ? deliver_bulk(block)
                               : deliver_product(block);
        if (any) return true;
    }
    return false;
}

// Takes a ready thread, or null when none can move.
Thread* pick() {
    if (emu_options().mode == kEmuRandom && one_in(4)) deliver_any(false);
    while (ready.empty()) {
        if (!deliver_any(true)) return nullptr;
    }
    size_t index = random_u32() % ready.size();
    Thread* thread = ready[index];
    ready[index] = ready.back();
    ready.pop_back();
    thread->ready = false;
    return thread;
}

void switch_to_thread(void** save, Thread* from, Thread* to) {
    emu_self = to;
#if defined(EMU_THREAD)
    __tsan_switch_to_fiber(to->context.thread_fiber, 1);
#endif
#if defined(__SANITIZE_ADDRESS__)
    void** fake =
        from ? (from->ended ? nullptr : &from->context.fake_stack) : &scheduler_fake_stack;
    __sanitizer_start_switch_fiber(fake, to->stack, to->stack_bytes);
#else
    (void)from;
#endif
    emu_switch_stacks(save, to->stack_pointer);
}

// What runs first after a switch into a thread.
void arrived(Thread* thread) {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(thread->context.fake_stack, nullptr, nullptr);
#else
    (void)thread;
#endif
}

void switch_to_scheduler(Thread* from) {
    emu_self = nullptr;
#if defined(EMU_THREAD)
    __tsan_switch_to_fiber(scheduler_fiber, 1);
#endif
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(from->ended ? nullptr : &from->context.fake_stack,
                                   scheduler_bottom, scheduler_bytes);
#endif
    emu_switch_stacks(&from->stack_pointer, scheduler_stack_pointer);
    arrived(from);
}

// Leaves the running thread, which is either ready or waits somewhere.
void switch_away() {
    Thread* from = self();
    Thread* to = pick();
    if (to == from) return;
    if (!to) {
        switch_to_scheduler(from);
        return;
    }
    switch_to_thread(&from->stack_pointer, from, to);
    arrived(from);
}

void make_ready(Thread* thread) {
    thread->ready = true;
    ready.push_back(thread);
}

// First function on a fiber's stack.
void thread_main() {
    Thread* thread = self();
#if defined(__SANITIZE_ADDRESS__)
    // The address sanitizer tells the bounds of the stack that was left; only the scheduler starts
    // threads that were never run, or another thread: the bounds are kept once.
    const void* bottom = nullptr;
    size_t bytes = 0;
    __sanitizer_finish_switch_fiber(nullptr, &bottom, &bytes);
    if (!scheduler_bottom) {
        scheduler_bottom = bottom;
        scheduler_bytes = bytes;
    }
#endif
    thread->owner->grid->launch->body();
    thread->wrapper = "its end";
    thread_ended(*thread);
    thread->ended = true;
    thread->owner->ended++;
    idle_polls = 0;
#if defined(EMU_THREAD)
    thread->owner->grid->token.release();
#endif
    switch_to_scheduler(thread);
    std::abort();  // an ended thread is never run again
}

// Maps stacks for `count` threads at once.
u8* map_stacks(u32 count) {
    void* memory = mmap(nullptr, count * kStackBytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) fail(kUsage, "no memory for the stacks of %u threads", count);
    for (u32 i = 0; i < count; i++) {
        u8* stack = (u8*)memory + i * kStackBytes;
#if !defined(EMU_THREAD)
        // A guard page: a kernel that runs out of stack ends with a fault and not with a riddle.
        mprotect(stack, 4096, PROT_NONE);
#endif
        free_stacks.push_back(stack);
    }
    return (u8*)memory;
}

void prepare_stack(Thread& thread, u32 index) {
    thread.stack = free_stacks.back() + 4096;
    thread.stack_bytes = kStackBytes - 4096;
    free_stacks.pop_back();
    unpoison(thread.stack, thread.stack_bytes);
    u8* top = thread.stack + thread.stack_bytes - 64 * (1 + (index * 7) % kStackColours);
#if defined(__x86_64__)
    // Six registers, the entry point, and a return address of 0 that ends a debugger's walk. At a
    // function's first instruction the stack pointer is 8 past a multiple of 16.
    u64* frame = (u64*)top - 8;
    std::memset(frame, 0, 64);
    frame[6] = (u64)&thread_main;
#else
    // 20 registers; x30 is the entry point.
    u64* frame = (u64*)(top - 160);
    std::memset(frame, 0, 160);
    frame[11] = (u64)&thread_main;
#endif
    thread.stack_pointer = frame;
}

// An ordinary launch sees all that came before it in the stream. One that may overlap sees that in
// griddep_wait only, even where it happens to start later.
void see_launches_before(const Grid& grid) {
    if (grid.launch->overlap) return;
    for (Grid& other : running) {
        if (&other == &grid) break;
        other.token.acquire();
    }
}

void start_block(Grid& grid) {
    const EmuLaunch& launch = *grid.launch;
    see_launches_before(grid);
    u32 linear = grid.order[grid.started++];
    grid.live++;
    Block* block = new Block;
    block->grid = &grid;
    block->threads.resize(launch.block);
    block->warps.resize((launch.block + 31) / 32);
    begin_block_memory(*block);
    if (free_stacks.size() < launch.block) block->stacks = map_stacks(launch.block);
    for (u32 i = 0; i < launch.block; i++) {
        Thread& thread = block->threads[i];
        thread.thread = i;
        thread.threads = launch.block;
        thread.block = linear % launch.grid.x;
        thread.block_y = linear / launch.grid.x;
        thread.grid = launch.grid.x;
        thread.smem = block->arena;
        thread.smem_bytes = launch.shared_bytes;
        thread.smem_start = block->arena_start;
        thread.owner = block;
        // As ptxas shares the register file among a block's threads, one block to the device.
        thread.registers = std::min(255u, 65536u / launch.block) & ~7u;
        prepare_stack(thread, i);
#if defined(EMU_THREAD)
        thread.context.thread_fiber = __tsan_create_fiber(0);
#endif
        block->warps[i >> 5].lanes |= 1u << (i & 31);
        make_ready(&thread);
    }
    live_blocks.push_back(block);
}

void release_stacks(Block& block) {
#if defined(EMU_THREAD)
    for (Thread& thread : block.threads) __tsan_destroy_fiber(thread.context.thread_fiber);
    // A new mapping has no history of accesses; an old one would race with its next user.
    munmap(block.stacks, block.threads.size() * kStackBytes);
#else
    for (Thread& thread : block.threads) free_stacks.push_back(thread.stack - 4096);
#endif
}

void end_block(Block* block) {
    Grid& grid = *block->grid;
    end_block_bulk(*block);
    end_block_barriers(*block);
    end_block_products(*block);
    end_block_memory(*block);
    release_stacks(*block);
    for (Thread& thread : block->threads) {
        thread.copy_context.destroy();
        thread.bulk_context.destroy();
        thread.fence_context.destroy();
    }
    for (Warp& warp : block->warps) warp.context.destroy();
    if (!block->let_dependents) grid.let_dependents++;
    grid.live--;
    grid.finished++;
    for (size_t i = 0; i < live_blocks.size(); i++) {
        if (live_blocks[i] != block) continue;
        live_blocks[i] = live_blocks.back();
        live_blocks.pop_back();
        break;
    }
    delete block;
    if (grid.done()) {
        end_grid_memory(grid);
        for (Thread* thread : grid.waiting) wake(thread);
        grid.waiting.clear();
    }
}

// Starts what may start; says whether anything did.
bool start_blocks() {
    bool any = false;
    for (size_t i = 0; i < running.size(); i++) {
        Grid& grid = running[i];
        if (grid.done()) continue;
        u32 most = grid.launch->live == 0 ? grid.blocks : grid.launch->live;
        while (grid.started < grid.blocks && grid.live < most) {
            start_block(grid);
            any = true;
        }
        // At most the next launch may overlap with the oldest that runs.
        bool may_overlap = i + 1 < running.size() && running[i + 1].launch->overlap &&
                           grid.let_dependents == grid.blocks;
        if (!may_overlap) break;
        bool oldest = i == 0 || running[i - 1].done();
        if (!oldest) break;
    }
    return any;
}

void check_launch(const EmuLaunch& launch) {
    const char* name = launch.name.c_str();
    if (launch.block == 0 || launch.block > 1024)
        fail(kUsage, "%s: a block of %u threads; 1 to 1024 are possible", name, launch.block);
    if (launch.shared_bytes > 232448)
        fail(kUsage, "%s: %u bytes of shared memory; 232448 is the largest of any device", name,
             launch.shared_bytes);
    if (launch.grid.x == 0 || launch.grid.y == 0)
        fail(kUsage, "%s: an empty grid of %u x %u", name, launch.grid.x, launch.grid.y);
    if ((u64)launch.grid.x * launch.grid.y > (1u << 20))
        fail(kUsage, "%s: %u x %u blocks are too many to emulate", name, launch.grid.x,
             launch.grid.y);
}

void prepare_grids(const std::vector<EmuLaunch>& launches) {
    running.assign(launches.size(), Grid());
    for (size_t i = 0; i < launches.size(); i++) {
        const EmuLaunch& launch = launches[i];
        check_launch(launch);
        Grid& grid = running[i];
        grid.launch = &launch;
        grid.before = i > 0 && launch.overlap ? &running[i - 1] : nullptr;
        grid.blocks = launch.grid.x * launch.grid.y;
        for (u32 b = 0; b < grid.blocks; b++) grid.order.push_back(b);
        // Blocks that do not wait for each other may run in any order; those that do rely on lower
        // indices having started first.
        if (launch.live != 1) continue;
        for (u32 b = grid.blocks; b > 1; b--)
            std::swap(grid.order[b - 1], grid.order[random_u32() % b]);
    }
}

}  // namespace

void fail(Kind kind, const char* format, ...) {
    const char* kinds[] = {"divergence", "deadlock", "shared",     "global", "constant",
                           "in-flight",  "mbarrier", "descriptor", "proxy",  "registers"};
    const char* name = kind == kUsage ? "usage" : kind == kCapsule ? "capsule" : kinds[kind - 10];
    std::fprintf(stderr, "emulator: %s: ", name);
    va_list list;
    va_start(list, format);
    std::vfprintf(stderr, format, list);
    va_end(list);
    if (Thread* thread = self())
        std::fprintf(stderr, " (kernel %s, block %u,%u, thread %u, in %s)",
                     thread->owner->grid->launch->name.c_str(), thread->block, thread->block_y,
                     thread->thread, thread->wrapper);
    std::fprintf(stderr, "\n");
    std::fflush(stderr);
    std::_Exit(kind);
}

u32 random_u32() {
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return (u32)(random_state >> 16);
}

bool one_in(u32 n) { return random_u32() % n == 0; }

void point(const char* wrapper) {
    Thread* thread = self();
    thread->wrapper = wrapper;
    if (!one_in(emu_options().yield_one_in)) return;
    make_ready(thread);
    switch_away();
}

void sleep(const char* format, u32 first, u32 second) {
    Thread* thread = self();
    thread->waits_for = format;
    thread->waits_with[0] = first;
    thread->waits_with[1] = second;
    switch_away();
}

void wake(Thread* thread) {
    idle_polls = 0;
    make_ready(thread);
}

void note_progress() { idle_polls = 0; }

void visit_scheduler() {
    make_ready(self());
    switch_to_scheduler(self());
}

}  // namespace emu

using namespace emu;

EmuOptions& emu_options() {
    static EmuOptions options = [] {
        EmuOptions read = {kEmuLate, 1, 1, 4};
        if (const char* mode = std::getenv("EMU_MODE")) {
            if (!std::strcmp(mode, "late")) read.mode = kEmuLate;
            else if (!std::strcmp(mode, "early")) read.mode = kEmuEarly;
            else if (!std::strcmp(mode, "random")) read.mode = kEmuRandom;
            else fail(kUsage, "EMU_MODE is %s; late, early or random are possible", mode);
        }
        if (const char* seed = std::getenv("EMU_SEED"))
            read.seed = std::strtoull(seed, nullptr, 10);
        if (const char* live = std::getenv("EMU_LIVE")) read.live = (u32)std::atoi(live);
        if (const char* yield = std::getenv("EMU_YIELD")) read.yield_one_in = (u32)std::atoi(yield);
        if (read.yield_one_in == 0)
            fail(kUsage, "EMU_YIELD is 0; 1 lets others run at each wrapper");
        return read;
    }();
    return options;
}

void emu_run(const std::vector<EmuLaunch>& launches) {
    // Seeds that are near each other give unlike sequences.
    random_state = (emu_options().seed + 1) * 0x9e3779b97f4a7c15ull;
    for (u32 i = 0; i < 8; i++) random_u32();
    idle_polls = 0;
    listen_for_faults();
#if defined(EMU_THREAD)
    scheduler_fiber = __tsan_get_current_fiber();
#endif
    prepare_grids(launches);
    while (!running.empty() && !running.back().done()) {
        bool started = start_blocks();
        Thread* next = pick();
        if (!next) {
            if (started) continue;
            deadlock();
        }
        switch_to_thread(&scheduler_stack_pointer, nullptr, next);
#if defined(__SANITIZE_ADDRESS__)
        __sanitizer_finish_switch_fiber(scheduler_fake_stack, nullptr, nullptr);
#endif
        for (size_t i = 0; i < live_blocks.size();) {
            Block* block = live_blocks[i];
            if (block->ended == block->threads.size()) end_block(block);
            else i++;
        }
    }
    for (Grid& grid : running) grid.token.acquire();
    running.clear();
}

void emu_point(const char* wrapper) { point(wrapper); }

void emu_yield(const char* wrapper) {
    Thread* thread = self();
    thread->wrapper = wrapper;
    if (++idle_polls > kMostIdlePolls) fail(kDeadlock, "threads poll flags that no thread sets");
    make_ready(thread);
    switch_away();
}

void emu_griddep_wait() {
    point("griddep_wait");
    Grid* before = block().grid->before;
    while (before && !before->done()) {
        before->waiting.push_back(self());
        sleep("griddep_wait for the launch before");
    }
    // All that ended before that launch began is seen through it, if it has waited itself.
    if (before) before->token.acquire();
}

void emu_griddep_launch() {
    point("griddep_launch");
    if (block().let_dependents) return;
    block().let_dependents = true;
    block().grid->let_dependents++;
    visit_scheduler();
}

u64 emu_nanoseconds() {
    // A clock that goes forward is all that probes may rely on here.
    static u64 now = 0;
    point("global_nanoseconds");
    return now += 32;
}
