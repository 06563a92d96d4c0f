// Shared and global memory: arenas with canaries, tracked stores, named buffers, atomics.

#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <unordered_map>

#include "runtime.h"

namespace emu {
namespace {

// The device's shared window begins with 1 KiB that the system keeps (sm_90).
constexpr u32 kWindowStart = 1024;
// Beside dynamic shared memory: room to shift its start, and a canary behind.
constexpr u32 kSlackBytes = 1024 + 4096;
constexpr size_t kMostArenaBytes = 232448 + kSlackBytes;
// NaN in bf16 and f32, and no valid index: what shared memory holds before it is written.
constexpr u8 kPoison = 0xff;

// A tracked store: thread + 1 in the low 11 bits, its proxy epoch above.
constexpr u32 kThreadBits = 11;

struct Buffer {
    const u8* start;
    u64 bytes;
    std::string name;
    bool constant;
};

std::vector<Buffer> buffers;  // by address
const Buffer* last_buffer = nullptr;

// What read-only loads saw in buffers that are not constant, to compare when the launch has ended.
std::unordered_map<const void*, u32x4> read_only_loads;

std::vector<u8*> free_arenas;

const Buffer* find_buffer(const u8* pointer) {
    if (last_buffer && pointer >= last_buffer->start &&
        pointer < last_buffer->start + last_buffer->bytes)
        return last_buffer;
    auto after = std::upper_bound(buffers.begin(), buffers.end(), pointer,
                                  [](const u8* p, const Buffer& b) { return p < b.start; });
    if (after == buffers.begin()) return nullptr;
    last_buffer = &*(after - 1);
    return last_buffer;
}

bool in_regions(const Block& block, u32 address, u32 bytes) {
    for (const Region& region : block.regions)
        if (address >= region.start && address + bytes <= region.start + region.bytes) return true;
    return false;
}

// Bytes between the buffers of the arena must be as they were filled.
void check_canaries(const Block& block) {
    std::vector<Region> regions = block.regions;
    std::sort(regions.begin(), regions.end(),
              [](const Region& a, const Region& b) { return a.start < b.start; });
    u32 position = kWindowStart;
    u32 end = kWindowStart + block.mapping_bytes;
    auto check = [&](u32 from, u32 to) {
        for (u32 i = from; i < to; i++) {
            u32 offset = i - kWindowStart;
            // Most canaries are whole: eight bytes at a time.
            u64 eight = 0;
            if (i + 8 <= to) std::memcpy(&eight, block.mapping + offset, 8);
            if (eight == ~0ull) {
                i += 7;
                continue;
            }
            if (block.mapping[offset] == kPoison) continue;
            emu_self = const_cast<Thread*>(&block.threads[0]);
            self()->wrapper = "the end of its block";
            fail(kShared,
                 "byte 0x%x of shared memory was written, outside every buffer of the arena", i);
        }
    };
    for (const Region& region : regions) {
        check(position, std::max(position, region.start));
        position = std::max(position, region.start + region.bytes);
    }
    check(position, end);
}

}  // namespace

u8* shared_pointer(const Block& block, u32 address) {
    return block.mapping + (address - kWindowStart);
}

u8* checked_shared(Block& block, u32 address, u32 bytes, u32 align) {
    if (address % align != 0)
        fail(kShared, "shared address 0x%x is not a multiple of %u", address, align);
    if (bytes > 0 && !in_regions(block, address, bytes))
        fail(kShared, "%u bytes at shared address 0x%x are not inside one buffer of the arena",
             bytes, address);
    return shared_pointer(block, address);
}

void mark_store(Block& block, u32 address, u32 bytes, Thread* writer) {
    u32 mark = (writer->proxy_epoch << kThreadBits) | (writer->thread + 1);
    for (u32 word = (address - kWindowStart) / 4; word * 4 < address - kWindowStart + bytes; word++)
        block.marks[word] = mark;
}

void clear_marks(Block& block, u32 address, u32 bytes) {
    for (u32 word = (address - kWindowStart) / 4; word * 4 < address - kWindowStart + bytes; word++)
        block.marks[word] = 0;
}

void check_fenced(Block& block, u32 address, u32 bytes, const char* reader) {
    for (u32 word = (address - kWindowStart) / 4; word * 4 < address - kWindowStart + bytes;
         word++) {
        u32 mark = block.marks[word];
        if (mark == 0) continue;
        u32 writer = (mark & ((1u << kThreadBits) - 1)) - 1;
        if ((mark >> kThreadBits) >= block.threads[writer].proxy_epoch)
            fail(kProxy,
                 "%s reads shared address 0x%x, which thread %u stored without a "
                 "fence_proxy_async since",
                 reader, kWindowStart + word * 4, writer);
    }
}

void check_global(const void* pointer, u64 bytes, u32 align) {
    if ((uintptr_t)pointer % align != 0)
        fail(kGlobal, "global address %p is not a multiple of %u", pointer, align);
    if (buffers.empty() || bytes == 0) return;
    const u8* start = (const u8*)pointer;
    const Buffer* buffer = find_buffer(start);
    if (!buffer || start + bytes > buffer->start + buffer->bytes) {
        if (!buffer)
            fail(kGlobal, "%lu bytes at %p are outside every buffer", (long)bytes, pointer);
        fail(kGlobal, "%lu bytes at byte %ld of buffer %s, which has %lu", (long)bytes,
             (long)(start - buffer->start), buffer->name.c_str(), (long)buffer->bytes);
    }
}

void begin_block_memory(Block& block) {
    if (free_arenas.empty()) {
        void* memory = mmap(nullptr, kMostArenaBytes, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (memory == MAP_FAILED) fail(kUsage, "no memory for a block's shared memory");
        free_arenas.push_back((u8*)memory);
    }
    block.mapping = free_arenas.back();
    free_arenas.pop_back();
    block.mapping_bytes = block.grid->launch->shared_bytes + kSlackBytes;
    std::memset(block.mapping, kPoison, block.mapping_bytes);
    poison(block.mapping, block.mapping_bytes);
    // 16-byte aligned and never more: kernels may rely on nothing stronger.
    u32 shift = 16 + 32 * (random_u32() % 31);
    block.arena = block.mapping + shift;
    block.arena_start = kWindowStart + shift;
    block.marks.assign(block.mapping_bytes / 4 + 1, 0);
}

void end_block_memory(Block& block) {
    unpoison(block.mapping, block.mapping_bytes);
    check_canaries(block);
#if defined(EMU_THREAD)
    // A new mapping has no history of accesses; an old one would race with its next user.
    munmap(block.mapping, kMostArenaBytes);
#else
    free_arenas.push_back(block.mapping);
#endif
}

void end_grid_memory(const Grid& grid) {
    for (const auto& load : read_only_loads) {
        if (std::memcmp(load.first, &load.second, 16) == 0) continue;
        const Buffer* buffer = find_buffer((const u8*)load.first);
        fail(kConstant,
             "bytes at %ld of buffer %s were loaded as read-only and written in the same launch "
             "(kernel %s)",
             (long)((const u8*)load.first - buffer->start), buffer->name.c_str(),
             grid.launch->name.c_str());
    }
    read_only_loads.clear();
}

void name_buffer(const void* start, size_t bytes, const char* name, bool constant) {
    Buffer buffer = {(const u8*)start, bytes, name, constant};
    auto after = std::upper_bound(buffers.begin(), buffers.end(), buffer.start,
                                  [](const u8* p, const Buffer& b) { return p < b.start; });
    buffers.insert(after, buffer);
    last_buffer = nullptr;
}

}  // namespace emu

using namespace emu;

void emu_buffer(const void* start, size_t bytes, const char* name) {
    name_buffer(start, bytes, name, false);
}

void emu_forget_buffers() {
    buffers.clear();
    last_buffer = nullptr;
}

void emu_smem_region(const void* start, u32 bytes) {
    Block& b = block();
    Thread* thread = self();
    thread->wrapper = "Arena::take";
    u32 address = (u32)((const u8*)start - thread->smem) + thread->smem_start;
    for (const Region& region : b.regions)
        if (region.start == address && region.bytes == bytes) return;
    if (address < thread->smem_start ||
        (u64)address + bytes > (u64)thread->smem_start + thread->smem_bytes)
        fail(kShared, "a buffer of %u bytes at offset %u does not fit %u bytes of shared memory",
             bytes, address - thread->smem_start, thread->smem_bytes);
    b.regions.push_back({address, bytes});
    unpoison(start, bytes);
}

u32 emu_smem_addr(const void* pointer) {
    Thread* thread = self();
    u64 offset = (u64)((const u8*)pointer - thread->smem);
    if (offset > thread->smem_bytes)
        fail(kShared, "smem_addr of a pointer that is not into shared memory");
    return thread->smem_start + (u32)offset;
}

void* emu_shared(u32 address, u32 bytes, u32 align, const char* wrapper) {
    point(wrapper);
    return checked_shared(block(), address, bytes, align);
}

void* emu_shared_store(u32 address, u32 bytes, u32 align, const char* wrapper) {
    point(wrapper);
    Block& b = block();
    void* pointer = checked_shared(b, address, bytes, align);
    mark_store(b, address, bytes, self());
    return pointer;
}

void emu_global(const void* pointer, u64 bytes, u32 align, const char* wrapper) {
    point(wrapper);
    check_global(pointer, bytes, align);
}

void emu_read_only(const void* pointer, u32 bytes, const char* wrapper) {
    point(wrapper);
    check_global(pointer, bytes, 16);
    if (buffers.empty() || find_buffer((const u8*)pointer)->constant) return;
    read_only_loads.emplace(pointer, *(const u32x4*)pointer);
}

void emu_atomic(const void* pointer, u32 bytes, const char* wrapper) {
    point(wrapper);
    check_global(pointer, bytes, bytes);
    Thread* thread = self();
    if (!thread->fenced) return;
    // An atomic after a fence publishes what came before the fence, and not what came since.
    thread->fence_context.enter();
    release_at(pointer);
    thread->fence_context.leave();
}

void emu_atomic_done(const void* pointer, u32 observes) {
    note_progress();
    if (!observes) return;
    // Without a fence after it, a relaxed atomic orders nothing.
    std::vector<const void*>& seen = self()->atomics;
    if (kWatchesEdges && std::find(seen.begin(), seen.end(), pointer) == seen.end())
        seen.push_back(pointer);
}

void emu_fence_gpu() {
    point("fence_gpu");
    if (!kWatchesEdges) return;
    Thread* thread = self();
    // A fence after a relaxed atomic sees what was published through it.
    for (const void* pointer : thread->atomics) acquire_at(pointer);
    thread->atomics.clear();
    thread->fence_token.release();
    thread->fence_context.enter();
    thread->fence_token.acquire();
    thread->fence_context.leave();
    thread->fenced = true;
}
