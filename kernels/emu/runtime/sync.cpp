// Barriers of a block, rendezvous of a warp's lanes, and what is computed at them.

#include <cstring>

#include "runtime.h"

namespace emu {
namespace {

// Arrives at a barrier; the last comer wakes the others.
void arrive(Barrier& barrier, u32 id, u32 expected, bool wait) {
    Thread* thread = self();
    Block& b = block();
    if (expected % 32 != 0 && expected != b.threads.size())
        fail(kDivergence, "barrier %u counts %u threads, which are not whole warps", id, expected);
    if (expected > b.threads.size())
        fail(kDivergence, "barrier %u counts %u threads; the block has %zu", id, expected,
             b.threads.size());
    if (barrier.arrived == 0) barrier.expected = expected;
    if (barrier.expected != expected)
        fail(kDivergence, "barrier %u is met with %u threads here and with %u elsewhere", id,
             expected, barrier.expected);
    u32& lanes = barrier.lanes[thread->warp_index()];
    u32 bit = 1u << thread->lane();
    if (lanes & bit)
        fail(kDivergence, "a second arrival at barrier %u before the first is over", id);
    lanes |= bit;
    SyncToken& token = barrier.tokens[barrier.generation & 1];
    token.release();
    barrier.arrived++;
    if (barrier.arrived < expected) {
        if (!wait) return;
        barrier.waiting.push_back(thread);
        sleep("barrier %u for %u threads", id, expected);
        token.acquire();
        return;
    }
    for (size_t w = 0; w < b.warps.size(); w++) {
        u32 missing = b.warps[w].lanes & ~barrier.lanes[w];
        if (barrier.lanes[w] != 0 && missing != 0)
            fail(kDivergence, "barrier %u was met by a part of warp %zu: lanes 0x%08x were missing",
                 id, w, missing);
        barrier.lanes[w] = 0;
    }
    barrier.arrived = 0;
    barrier.generation++;
    for (Thread* other : barrier.waiting) wake(other);
    barrier.waiting.clear();
    if (wait) token.acquire();
}

// The group that meets under the mask, or a free one. Each lane waits in one at most, so that there
// is always one free. Lanes that wait for each other under different masks end as a deadlock.
LaneGroup& find_group(Warp& warp, u32 mask) {
    for (u32 groups = warp.meeting; groups != 0; groups &= groups - 1) {
        LaneGroup& group = warp.groups[__builtin_ctz(groups)];
        if (group.mask == mask) return group;
    }
    return warp.groups[__builtin_ctz(~warp.meeting)];
}

}  // namespace

void meet_lanes(const char* wrapper, u64 shape, u32 mask, void* argument,
                void (*all)(LaneGroup& group), bool orders_memory) {
    point(wrapper);
    Thread* thread = self();
    Warp& w = warp();
    u32 lane = thread->lane();
    if (!(mask >> lane & 1))
        fail(kDivergence, "the mask 0x%08x does not name the calling lane %u", mask, lane);
    if ((mask & ~w.lanes) != 0 && mask != kFullWarp)
        fail(kDivergence, "the mask 0x%08x names lanes that the block does not have", mask);
    mask &= w.lanes;
    if (mask & w.ended)
        fail(kDivergence, "the mask 0x%08x names lanes that have ended (0x%08x)", mask,
             mask & w.ended);
    LaneGroup& group = find_group(w, mask);
    if (group.arrived == 0) {
        group.wrapper = wrapper;
        group.shape = shape;
        group.mask = mask;
        w.meeting |= 1u << (u32)(&group - w.groups);
    }
    bool same = group.wrapper == wrapper || std::strcmp(group.wrapper, wrapper) == 0;
    if (!same || group.shape != shape)
        fail(kDivergence, "lanes of one warp (mask 0x%08x) are in %s and in %s at the same time",
             mask, group.wrapper, wrapper);
    group.arguments[lane] = argument;
    group.arrived |= 1u << lane;
    if (orders_memory) group.token.release();
    if (group.arrived != mask) {
        sleep("the other lanes of mask 0x%08x", mask);
        if (orders_memory) group.token.acquire();
        return;
    }
    if (all) all(group);
    group.arrived = 0;
    w.meeting &= ~(1u << (u32)(&group - w.groups));
    u32 first = thread->thread - lane;
    for (u32 others = mask & ~(1u << lane); others != 0; others &= others - 1)
        wake(&block().threads[first + (u32)__builtin_ctz(others)]);
    if (orders_memory) group.token.acquire();
}

void thread_ended(Thread& thread) {
    Block& b = *thread.owner;
    check_copies_ended(thread);
    check_bulk_ended(thread);
    check_products_ended(thread);
    for (u32 id = 0; id < 16; id++) {
        const Barrier& barrier = b.barriers[id];
        bool all_expected = barrier.arrived > 0 && barrier.expected == b.threads.size();
        bool was_here = barrier.lanes[thread.warp_index()] >> thread.lane() & 1;
        if (all_expected && !was_here)
            fail(kDivergence, "a thread ended while others wait for it at barrier %u", id);
    }
    Warp& w = b.warps[thread.warp_index()];
    for (const LaneGroup& group : w.groups)
        if (group.arrived != 0 && (group.mask >> thread.lane() & 1))
            fail(kDivergence, "a lane ended while others wait for it in %s", group.wrapper);
    w.ended |= 1u << thread.lane();
}

namespace {

struct Shuffle {
    u32 value;
    u32 from;
    u32 result;
};

void shuffle_lanes(LaneGroup& group) {
    for (u32 lanes = group.mask; lanes != 0; lanes &= lanes - 1) {
        Shuffle& mine = *(Shuffle*)group.arguments[__builtin_ctz(lanes)];
        if (!(group.mask >> mine.from & 1))
            fail(kDivergence, "lane %d takes the value of lane %u, which is not in the mask 0x%08x",
                 __builtin_ctz(lanes), mine.from, group.mask);
        mine.result = ((Shuffle*)group.arguments[mine.from])->value;
    }
}

// Combines the values of all lanes into one result, from the lowest lane on.
struct Reduction {
    u32 value;
    u32 result;
};

template <typename Combine>
void reduce_lanes(LaneGroup& group, u32 start, Combine combine) {
    u32 total = start;
    for (u32 lanes = group.mask; lanes != 0; lanes &= lanes - 1) {
        u32 lane = (u32)__builtin_ctz(lanes);
        total = combine(total, ((Reduction*)group.arguments[lane])->value, lane);
    }
    for (u32 lanes = group.mask; lanes != 0; lanes &= lanes - 1)
        ((Reduction*)group.arguments[__builtin_ctz(lanes)])->result = total;
}

void ballot_lanes(LaneGroup& group) {
    reduce_lanes(group, 0, [](u32 t, u32 v, u32 lane) { return t | ((v != 0 ? 1u : 0u) << lane); });
}

void max_lanes(LaneGroup& group) {
    reduce_lanes(group, 0, [](u32 t, u32 v, u32) { return v > t ? v : t; });
}

void add_lanes(LaneGroup& group) {
    reduce_lanes(group, 0, [](u32 t, u32 v, u32) { return t + v; });
}

void match_lanes(LaneGroup& group) {
    for (u32 lanes = group.mask; lanes != 0; lanes &= lanes - 1) {
        Reduction& mine = *(Reduction*)group.arguments[__builtin_ctz(lanes)];
        mine.result = 0;
        for (u32 others = group.mask; others != 0; others &= others - 1) {
            u32 other = (u32)__builtin_ctz(others);
            if (((Reduction*)group.arguments[other])->value == mine.value)
                mine.result |= 1u << other;
        }
    }
}

u32 reduction(const char* wrapper, u32 mask, u32 value, void (*all)(LaneGroup&)) {
    Reduction mine = {value, 0};
    meet_lanes(wrapper, 0, mask, &mine, all);
    return mine.result;
}

}  // namespace
}  // namespace emu

using namespace emu;

void emu_block_sync() {
    point("block_sync");
    Block& b = block();
    if (b.ended > 0)
        fail(kDivergence, "block_sync after %u threads of the block have ended", b.ended);
    arrive(b.barriers[0], 0, (u32)b.threads.size(), true);
}

void emu_named_sync(u32 id, u32 threads) {
    point("named_sync");
    if (id == 0 || id > 15) fail(kDivergence, "barrier %u; named barriers are 1 to 15", id);
    arrive(block().barriers[id], id, threads, true);
}

void emu_named_arrive(u32 id, u32 threads) {
    point("named_arrive");
    if (id == 0 || id > 15) fail(kDivergence, "barrier %u; named barriers are 1 to 15", id);
    arrive(block().barriers[id], id, threads, false);
}

void emu_warp_sync(u32 mask) { meet_lanes("warp_sync", 0, mask, nullptr, nullptr, true); }

u32 emu_shfl(u32 mask, u32 value, u32 lane, const char* wrapper) {
    Shuffle mine = {value, lane, 0};
    meet_lanes(wrapper, 0, mask, &mine, shuffle_lanes);
    return mine.result;
}

u32 emu_ballot(u32 mask, u32 predicate) {
    return reduction("ballot", mask, predicate, ballot_lanes);
}
u32 emu_match_any(u32 mask, u32 value) { return reduction("match_any", mask, value, match_lanes); }
u32 emu_redux_max(u32 mask, u32 value) { return reduction("redux_max", mask, value, max_lanes); }
u32 emu_redux_add(u32 mask, u32 value) { return reduction("redux_add", mask, value, add_lanes); }
