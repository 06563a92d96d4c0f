// wgmma: asynchronous products of a warpgroup's accumulators (PTX manual, 9.7.15).
//
// Each warp's quarter (16 rows) is issued, executed and waited for on its own: the instruction is
// collective over a warp, and nothing promises that the four warps of a group go together. At the
// end of a block their products are compared. Accumulators hold NaN from issue until
// `wgmma_fence_operand` after the wait hands each register back.

#include <cstring>

#include "runtime.h"

namespace emu {
namespace {

// Bits of an accumulator's register in flight: a quiet NaN that no arithmetic makes.
constexpr u32 kInFlightBits = 0x7fde'ad5au;

struct Descriptor {
    u32 start;
    u32 stride;
};

// Decodes a K-major operand with the 128-byte swizzle, the only kind that kernels use.
Descriptor decode(u64 bits, const char* operand) {
    if (bits >> 62 != 1)
        fail(kDescriptor, "operand %s: swizzle mode %u; 1 (128 bytes) is expected", operand,
             (u32)(bits >> 62));
    if ((bits >> 49 & 7) != 0) fail(kDescriptor, "operand %s: a base offset is set", operand);
    u64 known = 0x3fffull | 0x3fffull << 16 | 0x3fffull << 32 | 7ull << 49 | 3ull << 62;
    if ((bits & ~known) != 0) fail(kDescriptor, "operand %s: reserved bits are set", operand);
    Descriptor d = {(u32)(bits & 0x3fff) << 4, (u32)(bits >> 32 & 0x3fff) << 4};
    // The swizzle repeats every 1024 bytes: 8 rows start there, and K moves within their 128 bytes.
    if (d.start % 1024 >= 128 || d.start % 32 != 0)
        fail(kDescriptor,
             "operand %s: address 0x%x is not one of the four K steps of a row that starts at a "
             "multiple of 1024",
             operand, d.start);
    if (d.stride % 1024 != 0)
        fail(kDescriptor, "operand %s: groups of 8 rows are %u bytes apart", operand, d.stride);
    return d;
}

float element(Block& block, u32 address) {
    u16 bits;
    std::memcpy(&bits, shared_pointer(block, address), 2);
    return bits_float((u32)bits << 16);
}

// Reads 16 elements of a row; `column(k, value)` takes them.
template <typename Column>
void read_row(Block& block, const Descriptor& d, u32 row, Column column) {
    u32 start = d.start + row / 8 * d.stride + row % 8 * 128;
    for (u32 half = 0; half < 2; half++) {
        u32 chunk = swizzle128(start + 16 * half);
        note_read(shared_pointer(block, chunk), 16);
        for (u32 k = 0; k < 8; k++) column(8 * half + k, element(block, chunk + 2 * k));
    }
}

void check_rows(Block& block, const Descriptor& d, u32 first, u32 rows, const char* operand) {
    for (u32 row = first; row < first + rows; row += 8) {
        u32 group = (d.start & ~1023u) + row / 8 * d.stride;
        checked_shared(block, group, 1024, 1024);
    }
    for (u32 row = first; row < first + rows; row++) {
        u32 start = d.start + row / 8 * d.stride + row % 8 * 128;
        check_fenced(block, swizzle128(start), 16, operand);
        check_fenced(block, swizzle128(start + 16), 16, operand);
    }
}

// Operands and sums of the product that is being executed.
float left[16][16];
float right[16][256];
float sums[16][256];

// Operand A of a warp's lanes, laid out as mma.sync's.
void read_registers(const Product& product) {
    for (u32 lane = 0; lane < 32; lane++) {
        for (u32 i = 0; i < 4; i++) {
            u32 pair = product.a_registers[lane][i];
            u32 row = lane / 4 + i % 2 * 8;
            u32 k = lane % 4 * 2 + i / 2 * 8;
            left[row][k] = bits_float(pair << 16);
            left[row][k + 1] = bits_float(pair & 0xffff0000u);
        }
    }
}

// Most of the emulator's arithmetic, and on nothing but the three arrays above: vectorised in every
// build, and not slowed by the sanitizers.
__attribute__((optimize("O3", "fp-contract=off"), no_sanitize("address", "undefined"))) void
multiply(u32 n) {
    for (u32 row = 0; row < 16; row++)
        for (u32 k = 0; k < 16; k++)
            for (u32 column = 0; column < n; column++)
                sums[row][column] += left[row][k] * right[k][column];
}

// Calls `each(sum, accumulator register)` for all elements of the warp's accumulators: register
// 4 j + 2 i + b of lane 4 g + t is row g + 8 i, column 8 j + 2 t + b.
template <typename Each>
void for_accumulators(const Product& product, Each each) {
    for (u32 lane = 0; lane < 32; lane++) {
        Accumulator& held = *product.lanes[lane];
        for (u32 r = 0; r < product.n / 2; r++)
            each(sums[lane / 4 + r / 2 % 2 * 8][r / 4 * 8 + lane % 4 * 2 + r % 2], held.value[r]);
    }
}

void execute(Block& block, u32 warp_index, const Product& product) {
    Descriptor b = decode(product.b, "B");
    if (product.a_in_registers) {
        read_registers(product);
    } else {
        Descriptor a = decode(product.a, "A");
        u32 first = 16 * (warp_index % 4);
        for (u32 row = 0; row < 16; row++)
            read_row(block, a, first + row, [&](u32 k, float v) { left[row][k] = v; });
    }
    for (u32 column = 0; column < product.n; column++)
        read_row(block, b, column, [&](u32 k, float v) { right[k][column] = v; });
    bool accumulate = product.accumulate != 0;
    for_accumulators(product, [&](float& sum, float value) { sum = accumulate ? value : 0.0f; });
    multiply(product.n);
    for_accumulators(product, [](float sum, float& value) { value = sum; });
}

// Groups whose products are all executed are over: their reads are before what waits for them.
void finish_groups(Warp& warp) {
    while (warp.groups_finished < warp.group_ends.size() &&
           warp.group_ends[warp.groups_finished] <= warp.executed) {
        warp.context.enter();
        warp.group_tokens[warp.groups_finished % 8].release();
        warp.context.leave();
        warp.groups_finished++;
    }
}

void execute_next(Block& block, u32 warp_index) {
    Warp& warp = block.warps[warp_index];
    Product product = warp.products.front();
    warp.products.erase(warp.products.begin());
    warp.context.enter();
    warp.issue_token.acquire();
    execute(block, warp_index, product);
    warp.context.leave();
    warp.executed++;
    finish_groups(warp);
}

// The thread's accumulator at `d`, with what the registers hold if it is not in flight.
Accumulator* take_accumulator(Thread& thread, float* d, u32 count) {
    Accumulator* found = nullptr;
    for (size_t i = 0; i < thread.accumulators.size(); i++) {
        Accumulator* other = thread.accumulators[i];
        if (other->registers == d && other->count == count) {
            found = other;
            continue;
        }
        if (d >= other->registers + other->count || other->registers >= d + count) continue;
        if (other->last_product >= warp().waited)
            fail(kRegisters, "accumulators of %u and %u registers overlap", other->count, count);
        // The place of an array that has served its time.
        delete other;
        thread.accumulators.erase(thread.accumulators.begin() + (long)i--);
    }
    bool fresh = !found;
    if (fresh) {
        found = new Accumulator;
        found->registers = d;
        found->count = count;
        std::memset(found->handed_back, 1, sizeof(found->handed_back));
        thread.accumulators.push_back(found);
    }
    bool touched = false;
    for (u32 i = 0; i < count; i++) {
        if (found->handed_back[i]) {
            found->value[i] = d[i];
            found->handed_back[i] = false;
            d[i] = bits_float(kInFlightBits);
            touched = true;
        } else if (float_bits(d[i]) != kInFlightBits) {
            fail(kRegisters, "register %u of an accumulator was written while it was in flight", i);
        }
    }
    if (touched && !thread.registers_fenced)
        fail(kRegisters, "wgmma on registers that were touched without a wgmma_fence since");
    return found;
}

struct Issue {
    u64 a;
    u64 b;
    u32 accumulate;
    Accumulator* accumulator;
    const u32* registers;  // of operand A; or null, and `a` is its descriptor
};

void issue_product(LaneGroup& group) {
    Block& b = block();
    Warp& w = warp();
    const Issue& first = *(Issue*)group.arguments[0];
    bool in_registers = first.registers != nullptr;
    Product product = {first.a,    first.b, (u32)group.shape, first.accumulate,
                       w.issued++, {},      in_registers,     {}};
    for (u32 lane = 0; lane < 32; lane++) {
        const Issue& mine = *(Issue*)group.arguments[lane];
        if (mine.a != first.a || mine.b != first.b || mine.accumulate != first.accumulate)
            fail(kDescriptor, "descriptors or `accumulate` differ between lanes 0 and %u", lane);
        product.lanes[lane] = mine.accumulator;
        mine.accumulator->last_product = product.number;
        if (in_registers) std::memcpy(product.a_registers[lane], mine.registers, 16);
    }
    if (!in_registers) {
        Descriptor left = decode(product.a, "A");
        check_rows(b, left, 16 * (self()->warp_index() % 4), 16, "wgmma operand A");
    }
    Descriptor right = decode(product.b, "B");
    check_rows(b, right, 0, product.n, "wgmma operand B");
    w.log.push_back(product);
    w.products.push_back(product);
}

void commit_products(LaneGroup&) {
    Warp& w = warp();
    w.group_ends.push_back(w.issued);
    finish_groups(w);
}

void wait_for_products(LaneGroup& group) {
    Warp& w = warp();
    u32 newest = (u32)group.shape;
    u32 groups = (u32)w.group_ends.size() > newest ? (u32)w.group_ends.size() - newest : 0;
    if (groups == 0) return;
    u32 end = w.group_ends[groups - 1];
    while (w.executed < end) execute_next(block(), self()->warp_index());
    if (end > w.waited) w.waited = end;
}

void set_fence(LaneGroup& group) {
    // Every lane fences its own registers.
    for (u32 lane = 0; lane < 32; lane++) *(bool*)group.arguments[lane] = true;
}

}  // namespace

bool deliver_product(Block& block) {
    u32 count = (u32)block.warps.size();
    u32 start = random_u32() % count;
    for (u32 i = 0; i < count; i++) {
        u32 index = (start + i) % count;
        if (block.warps[index].products.empty()) continue;
        execute_next(block, index);
        return true;
    }
    return false;
}

void check_products_ended(Thread& thread) {
    Warp& w = thread.owner->warps[thread.warp_index()];
    if (w.waited < w.issued)
        fail(kInFlight, "a thread ended with %u wgmma that it has not waited for",
             w.issued - w.waited);
    for (Accumulator* held : thread.accumulators) delete held;
    thread.accumulators.clear();
}

void end_block_products(Block& block) {
    for (size_t first = 0; first < block.warps.size(); first += 4) {
        for (size_t i = first + 1; i < first + 4 && i < block.warps.size(); i++) {
            const std::vector<Product>& one = block.warps[first].log;
            const std::vector<Product>& other = block.warps[i].log;
            bool same = one.size() == other.size();
            for (size_t p = 0; same && p < one.size(); p++)
                same = one[p].a == other[p].a && one[p].b == other[p].b && one[p].n == other[p].n &&
                       one[p].accumulate == other[p].accumulate;
            if (same) continue;
            emu_self = &block.threads[32 * i];
            self()->wrapper = "the end of its block";
            fail(kDescriptor, "warps %zu and %zu of a warpgroup issued different wgmma", first, i);
        }
        for (size_t i = first + 1; i < first + 4 && i < block.warps.size(); i++) {
            if (block.threads[32 * i].registers == block.threads[32 * first].registers) continue;
            emu_self = &block.threads[32 * i];
            self()->wrapper = "the end of its block";
            fail(kRegisters, "setmaxnreg by a part of a warpgroup");
        }
        bool any = !block.warps[first].log.empty();
        if (any && first + 4 > block.warps.size()) {
            emu_self = &block.threads[32 * first];
            self()->wrapper = "the end of its block";
            fail(kDescriptor, "wgmma by an incomplete warpgroup");
        }
    }
}

}  // namespace emu

using namespace emu;

void emu_wgmma_fence() {
    meet_lanes("wgmma_fence", 0, kFullWarp, &self()->registers_fenced, set_fence);
}

void emu_wgmma_bf16(u32 n, float* d, u64 a, u64 b, u32 accumulate) {
    Thread* thread = self();
    thread->wrapper = "wgmma_bf16";
    Issue mine = {a, b, accumulate != 0 ? 1u : 0u, take_accumulator(*thread, d, n / 2), nullptr};
    warp().issue_token.release();
    meet_lanes("wgmma_bf16", n, kFullWarp, &mine, issue_product);
}

void emu_wgmma_bf16_rs(u32 n, float* d, const u32* a, u64 b, u32 accumulate) {
    Thread* thread = self();
    thread->wrapper = "wgmma_bf16_rs";
    Issue mine = {0, b, accumulate != 0 ? 1u : 0u, take_accumulator(*thread, d, n / 2), a};
    warp().issue_token.release();
    meet_lanes("wgmma_bf16_rs", n, kFullWarp, &mine, issue_product);
}

void emu_wgmma_commit() { meet_lanes("wgmma_commit", 0, kFullWarp, nullptr, commit_products); }

void emu_wgmma_wait(u32 newest) {
    meet_lanes("wgmma_wait", newest, kFullWarp, nullptr, wait_for_products);
    Warp& w = warp();
    u32 groups = (u32)w.group_ends.size() > newest ? (u32)w.group_ends.size() - newest : 0;
    if (groups > 0) w.group_tokens[(groups - 1) % 8].acquire();
}

void emu_wgmma_fence_operand(float* d) {
    Thread* thread = self();
    if (thread->accumulators.empty()) return;
    u32 waited = warp().waited;
    for (Accumulator* held : thread->accumulators) {
        if (d < held->registers || d >= held->registers + held->count) continue;
        u32 index = (u32)(d - held->registers);
        // In flight it is a fence for the compiler alone.
        if (held->handed_back[index] || held->last_product >= waited) return;
        if (float_bits(*d) != kInFlightBits) {
            thread->wrapper = "wgmma_fence_operand";
            fail(kRegisters, "register %u of an accumulator was written while it was in flight",
                 index);
        }
        *d = held->value[index];
        held->handed_back[index] = true;
        thread->registers_fenced = false;
        return;
    }
}

void emu_setmaxnreg(u32 registers, u32 increase) {
    const char* name = increase ? "setmaxnreg_inc" : "setmaxnreg_dec";
    meet_lanes(name, registers, kFullWarp, nullptr, nullptr);
    Thread* thread = self();
    Block& b = block();
    if (increase ? registers < thread->registers : registers > thread->registers)
        fail(kRegisters, "%s to %u registers from %u", name, registers, thread->registers);
    while (increase && b.free_registers < registers - thread->registers) {
        b.waiting_for_registers.push_back(thread);
        sleep("%u more registers than the block has given up",
              registers - thread->registers - b.free_registers);
    }
    b.free_registers += thread->registers;
    b.free_registers -= registers;
    thread->registers = registers;
    for (Thread* other : b.waiting_for_registers) wake(other);
    b.waiting_for_registers.clear();
}
