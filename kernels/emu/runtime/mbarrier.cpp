// mbarrier: phases of arrivals and of bytes that copies bring (PTX manual, 9.7.13.15).
//
// The state is kept beside shared memory, by address; the barrier's own 8 bytes hold a cookie, so
// that data stored over a barrier is seen at its next use.

#include <cstring>

#include "runtime.h"

namespace emu {
namespace {

u64 cookie(u32 address) { return 0xb0a7'ba55'0000'0000ull | address; }

// Ends the phase when nothing is missing.
void update(Mbarrier& barrier) {
    if (barrier.pending != 0 || barrier.bytes != 0) return;
    barrier.pending = barrier.count;
    barrier.phase++;
    for (Thread* thread : barrier.waiting) wake(thread);
    barrier.waiting.clear();
}

void arrive(Mbarrier& barrier, u32 address) {
    if (barrier.pending == 0)
        fail(kMbarrier, "more than the %u arrivals of the barrier at 0x%x in one phase",
             barrier.count, address);
    barrier.tokens[barrier.phase & 1].release();
    barrier.pending--;
    update(barrier);
}

}  // namespace

Mbarrier& mbarrier_at(Block& block, u32 address) {
    auto found = block.mbarriers.find(address);
    if (found == block.mbarriers.end())
        fail(kMbarrier, "the barrier at 0x%x was not initialised", address);
    u8* place = shared_pointer(block, address);
    note_read(place, 8);
    u64 held;
    std::memcpy(&held, place, 8);
    if (held != cookie(address))
        fail(kMbarrier, "data was stored over the barrier at 0x%x", address);
    return found->second;
}

void complete_bytes(Block& block, u32 address, u32 bytes) {
    Mbarrier& barrier = mbarrier_at(block, address);
    barrier.tokens[barrier.phase & 1].release();
    barrier.bytes -= bytes;
    update(barrier);
}

void end_block_barriers(Block& block) {
    for (auto& [address, barrier] : block.mbarriers) {
        if (barrier.bytes == 0) continue;
        emu_self = &block.threads[0];
        self()->wrapper = "the end of its block";
        fail(kMbarrier, "the barrier at 0x%x is left with %ld bytes %s", address,
             (long)(barrier.bytes > 0 ? barrier.bytes : -barrier.bytes),
             barrier.bytes > 0 ? "that never came" : "that were never expected");
    }
}

}  // namespace emu

using namespace emu;

void emu_mbar_init(u32 address, u32 count) {
    point("mbar_init");
    Block& b = block();
    u8* place = (u8*)checked_shared(b, address, 8, 8);
    if (count == 0) fail(kMbarrier, "a barrier of 0 arrivals");
    auto found = b.mbarriers.find(address);
    if (found != b.mbarriers.end() && (!found->second.waiting.empty() || found->second.bytes != 0))
        fail(kMbarrier, "the barrier at 0x%x is initialised again while it is in use", address);
    Mbarrier& barrier = b.mbarriers[address];
    barrier.count = count;
    barrier.pending = count;
    barrier.bytes = 0;
    barrier.phase = 0;
    barrier.initialised_by = self();
    barrier.initialised_at = self()->mbar_epoch;
    note_write(place, 8);
    u64 value = cookie(address);
    std::memcpy(place, &value, 8);
}

void emu_fence_mbar_init() {
    point("fence_mbar_init");
    self()->mbar_epoch++;
}

void emu_mbar_arrive_expect_tx(u32 address, u32 bytes) {
    point("mbar_arrive_expect_tx");
    Mbarrier& barrier = mbarrier_at(block(), address);
    barrier.bytes += bytes;
    arrive(barrier, address);
}

void emu_mbar_arrive(u32 address) {
    point("mbar_arrive");
    arrive(mbarrier_at(block(), address), address);
}

void emu_mbar_wait(u32 address, u32 parity) {
    point("mbar_wait");
    if (parity > 1) fail(kMbarrier, "a parity of %u", parity);
    Block& b = block();
    // A thread that is woken after two more phases waits on, as polling hardware may.
    while ((mbarrier_at(b, address).phase & 1) == parity) {
        mbarrier_at(b, address).waiting.push_back(self());
        sleep("the barrier at 0x%x, parity %u", address, parity);
    }
    mbarrier_at(b, address).tokens[parity].acquire();
}
