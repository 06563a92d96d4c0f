// TMA box copies and bulk reductions.
//
// A load is delivered in one step and then completes its bytes on its barrier. A store or reduction
// takes two: its source is read, then global memory is written; `bulk_wait_read` waits for the
// first and `bulk_wait` for both. Ordinary stores to what an operation reads must have been fenced
// by their writers when it is issued.

#include <cstring>

#include "runtime.h"

#if defined(EMU_THREAD)
extern "C" {
u32 __tsan_atomic32_load(const volatile u32*, int);
void __tsan_atomic32_store(volatile u32*, u32, int);
}
#endif

namespace emu {
namespace {

constexpr u64 kMapMagic = 0x70616d2d756d6531ull;

const MapRecord& record(const TensorMap* map) {
    const MapRecord& found = *reinterpret_cast<const MapRecord*>(map);
    if (found.magic != kMapMagic)
        fail(kDescriptor, "the tensor map was not made by the host: is it a kernel parameter?");
    return found;
}

u32 box_bytes(const MapRecord& map) {
    u32 bytes = map.element_bytes;
    for (u32 i = 0; i < map.rank; i++) bytes *= map.box[i];
    return bytes;
}

u32 swizzled(const MapRecord& map, u32 address) {
    return map.swizzle == 128 ? swizzle128(address) : address;
}

// Calls `row(shared offset, global pointer or null, first element, elements)` for each innermost
// row of the box: which part of it lies in the tensor, and where. Elements outside are told by a
// count below the box's width or a null pointer.
template <typename Row>
void for_rows(const MapRecord& map, const i32* coordinates, Row row) {
    u32 row_bytes = map.box[0] * map.element_bytes;
    u32 rows = box_bytes(map) / row_bytes;
    i64 first = coordinates[0];
    i64 from = first < 0 ? -first : 0;
    i64 to = (i64)map.dims[0] - first < (i64)map.box[0] ? (i64)map.dims[0] - first : map.box[0];
    for (u32 r = 0; r < rows; r++) {
        bool inside = from < to;
        u8* pointer = map.base;
        u32 rest = r;
        for (u32 i = 1; i < map.rank; i++) {
            i64 c = (i64)coordinates[i] + rest % map.box[i];
            rest /= map.box[i];
            if (c < 0 || c >= (i64)map.dims[i]) inside = false;
            else pointer += (u64)c * map.strides[i];
        }
        if (inside)
            row(r * row_bytes, pointer + (first + from) * map.element_bytes, (u32)from,
                (u32)(to - from));
        else row(r * row_bytes, nullptr, 0u, 0u);
    }
}

void check_box(const MapRecord& map, u32 rank, u32 address) {
    if (map.rank != rank)
        fail(kDescriptor, "a tensor map of rank %u with %u coordinates", map.rank, rank);
    u32 align = map.swizzle == 128 ? 1024 : 128;
    if (address % align != 0)
        fail(kShared, "the box at shared address 0x%x is not aligned to %u bytes", address, align);
    checked_shared(block(), address, box_bytes(map), align);
}

u64 sum_bytes(const u8* bytes, u32 count) {
    u64 sum = 0xcbf29ce484222325ull;
    for (u32 i = 0; i < count; i++) sum = (sum ^ bytes[i]) * 0x100000001b3ull;
    return sum;
}

void load(Block& block, const BulkOp& op) {
    u32 row_bytes = op.map.box[0] * op.map.element_bytes;
    u32 size = op.map.element_bytes;
    u8 value[1024];
    for_rows(op.map, op.coordinates, [&](u32 offset, const u8* from, u32 first, u32 count) {
        std::memset(value, 0, row_bytes);
        if (count > 0) {
            check_global(from, (u64)count * size, size);
            note_read(from, (u64)count * size);
            std::memcpy(value + first * size, from, (u64)count * size);
        }
        for (u32 i = 0; i < row_bytes; i += 16) {
            u8* to = shared_pointer(block, swizzled(op.map, op.shared + offset + i));
            note_write(to, 16);
            std::memcpy(to, value + i, 16);
        }
    });
    clear_marks(block, op.shared, op.bytes);
    complete_bytes(block, op.barrier, op.bytes);
}

void take_source(Block& block, BulkOp& op) {
    const u8* source = shared_pointer(block, op.shared);
    if (sum_bytes(source, op.bytes) != op.source_sum) {
        emu_self = op.issuer;
        fail(kInFlight, "the source at shared address 0x%x of a %s changed before bulk_wait_read",
             op.shared, op.type == BulkOp::kStore ? "tma_store" : "bulk_reduce_add");
    }
    note_read(source, op.bytes);
    op.taken.resize(op.bytes);
    if (op.type == BulkOp::kReduce) {
        std::memcpy(op.taken.data(), source, op.bytes);
        return;
    }
    for (u32 i = 0; i < op.bytes; i += 16)
        std::memcpy(op.taken.data() + i, shared_pointer(block, swizzled(op.map, op.shared + i)),
                    16);
}

void store(const BulkOp& op) {
    u32 size = op.map.element_bytes;
    for_rows(op.map, op.coordinates, [&](u32 offset, u8* to, u32 first, u32 count) {
        if (count == 0) return;
        check_global(to, (u64)count * size, size);
        note_write(to, (u64)count * size);
        std::memcpy(to, op.taken.data() + offset + first * size, (u64)count * size);
    });
}

void add_to(float* to, float v) {
#if defined(EMU_THREAD)
    u32 bits = __tsan_atomic32_load((u32*)to, 0);
    __tsan_atomic32_store((u32*)to, float_bits(bits_float(bits) + v), 0);
#else
    *to += v;
#endif
}

void reduce(const BulkOp& op) {
    u32 count = op.bytes / 4;
    // From a random element on: no order is promised.
    u32 start = random_u32() % count;
    for (u32 i = 0; i < count; i++) {
        u32 at = (start + i) % count;
        float v;
        std::memcpy(&v, op.taken.data() + 4 * at, 4);
        add_to(op.global + at, v);
    }
}

// Runs the operation's next step; true when it was the last.
bool step(Block& block, BulkOp& op) {
    op.issuer->bulk_context.enter();
    op.issuer->bulk_issued.acquire();
    bool last = true;
    if (op.type == BulkOp::kLoad) {
        load(block, op);
    } else if (op.taken.empty()) {
        take_source(block, op);
        last = false;
    } else if (op.type == BulkOp::kStore) {
        store(op);
    } else {
        reduce(op);
    }
    if (op.type != BulkOp::kLoad) op.issuer->bulk_done.release();
    op.issuer->bulk_context.leave();
    return last;
}

void remove(Block& block, size_t index) {
    std::swap(block.bulk[index], block.bulk.back());
    block.bulk.pop_back();
}

void issue(BulkOp op) {
    Block& b = block();
    op.issuer = self();
    op.group = self()->bulk_groups;
    self()->bulk_issued.release();
    if (op.type == BulkOp::kLoad && emu_options().mode == kEmuEarly) {
        step(b, op);
        return;
    }
    b.bulk.push_back(std::move(op));
}

void check_source(BulkOp& op) {
    check_fenced(block(), op.shared, op.bytes, self()->wrapper);
    op.source_sum = sum_bytes(shared_pointer(block(), op.shared), op.bytes);
}

}  // namespace

bool deliver_bulk(Block& block) {
    if (block.bulk.empty()) return false;
    size_t index = random_u32() % block.bulk.size();
    if (step(block, block.bulk[index])) remove(block, index);
    return true;
}

void check_bulk_ended(Thread& thread) {
    for (const BulkOp& op : thread.owner->bulk) {
        if (op.issuer != &thread) continue;
        if (op.type == BulkOp::kLoad) continue;
        if (op.taken.empty())
            fail(kInFlight, "a thread ended before its bulk store had read shared memory");
    }
}

void end_block_bulk(Block& block) {
    for (BulkOp& op : block.bulk) {
        if (op.type == BulkOp::kLoad) {
            emu_self = op.issuer;
            fail(kInFlight, "the block ended before a tma_load had arrived at 0x%x", op.shared);
        }
        while (!step(block, op)) {
        }
    }
    block.bulk.clear();
}

}  // namespace emu

using namespace emu;

TensorMap emu_tensor_map(const void* base, u32 element_bytes, const std::vector<u64>& dims,
                         const std::vector<u64>& strides, const std::vector<u32>& box,
                         u32 swizzle) {
    size_t rank = dims.size();
    if (rank < 2 || rank > 4 || strides.size() + 1 != rank || box.size() != rank)
        fail(kDescriptor, "tensor map: %zu dims, %zu strides and %zu box sizes", rank,
             strides.size(), box.size());
    if ((uintptr_t)base % 16 != 0)
        fail(kDescriptor, "tensor map: base %p is not 16-byte aligned", base);
    if (element_bytes != 1 && element_bytes != 2 && element_bytes != 4)
        fail(kDescriptor, "tensor map: elements of %u bytes", element_bytes);
    if (swizzle != 0 && swizzle != 128)
        fail(kDescriptor, "tensor map: swizzle of %u bytes", swizzle);
    MapRecord map = {};
    map.magic = kMapMagic;
    map.base = (u8*)const_cast<void*>(base);
    map.rank = (u32)rank;
    map.element_bytes = element_bytes;
    map.swizzle = swizzle;
    map.strides[0] = element_bytes;
    for (size_t i = 0; i < rank; i++) {
        map.dims[i] = dims[i];
        map.box[i] = box[i];
        if (dims[i] == 0 || dims[i] > (1ull << 32))
            fail(kDescriptor, "tensor map: dimension %zu has %llu elements", i, dims[i]);
        if (box[i] == 0 || box[i] > 256)
            fail(kDescriptor, "tensor map: box of %u in dimension %zu; 1 to 256 are possible",
                 box[i], i);
        if (i == 0) continue;
        map.strides[i] = strides[i - 1];
        if (strides[i - 1] % 16 != 0 || strides[i - 1] >= (1ull << 40))
            fail(kDescriptor, "tensor map: stride of %llu bytes is not a multiple of 16 below 2^40",
                 strides[i - 1]);
    }
    u32 inner = box[0] * element_bytes;
    if (inner % 16 != 0 || (swizzle != 0 && inner > swizzle))
        fail(kDescriptor, "tensor map: inner box of %u bytes; multiples of 16%s are possible",
             inner, swizzle != 0 ? " up to 128" : "");
    TensorMap encoded = {};
    std::memcpy(&encoded, &map, sizeof(map));
    return encoded;
}

void emu_fence_proxy_async() {
    point("fence_proxy_async");
    self()->proxy_epoch++;
}

void emu_prefetch_map(const TensorMap* map) {
    point("prefetch_map");
    record(map);
}

void emu_tma_load(u32 rank, u32 to, const TensorMap* map, u32 barrier, const i32* coordinates) {
    point("tma_load");
    BulkOp op = {};
    op.type = BulkOp::kLoad;
    op.map = record(map);
    check_box(op.map, rank, to);
    op.shared = to;
    op.bytes = box_bytes(op.map);
    op.barrier = barrier;
    std::memcpy(op.coordinates, coordinates, sizeof(op.coordinates));
    const Mbarrier& state = mbarrier_at(block(), barrier);
    if (state.initialised_by->mbar_epoch == state.initialised_at)
        fail(kProxy, "the barrier at 0x%x was initialised without a fence_mbar_init since",
             barrier);
    issue(std::move(op));
}

void emu_tma_store(u32 rank, const TensorMap* map, u32 from, const i32* coordinates) {
    point("tma_store");
    BulkOp op = {};
    op.type = BulkOp::kStore;
    op.map = record(map);
    check_box(op.map, rank, from);
    op.shared = from;
    op.bytes = box_bytes(op.map);
    std::memcpy(op.coordinates, coordinates, sizeof(op.coordinates));
    check_source(op);
    issue(std::move(op));
}

void emu_bulk_reduce_add_f32(float* to, u32 from, u32 bytes) {
    point("bulk_reduce_add_f32");
    if (bytes == 0 || bytes % 16 != 0)
        fail(kShared, "a bulk reduction of %u bytes; multiples of 16 are possible", bytes);
    checked_shared(block(), from, bytes, 16);
    check_global(to, bytes, 16);
    BulkOp op = {};
    op.type = BulkOp::kReduce;
    op.shared = from;
    op.bytes = bytes;
    op.global = to;
    check_source(op);
    issue(std::move(op));
}

void emu_bulk_commit() {
    point("bulk_commit");
    self()->bulk_groups++;
}

void emu_bulk_wait(u32 newest, u32 read_only) {
    point(read_only ? "bulk_wait_read" : "bulk_wait");
    Thread* thread = self();
    Block& b = block();
    u32 groups = thread->bulk_groups > newest ? thread->bulk_groups - newest : 0;
    for (size_t i = 0; i < b.bulk.size();) {
        BulkOp& op = b.bulk[i];
        bool mine = op.issuer == thread && op.type != BulkOp::kLoad && op.group < groups;
        bool done = false;
        if (mine && op.taken.empty()) done = step(b, op);
        if (mine && !read_only && !done) done = step(b, op);
        if (done) remove(b, i);
        else i++;
    }
    thread->bulk_done.acquire();
}
