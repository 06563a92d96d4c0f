// Grouping pairs by expert: what align.cu and the router's fused align share. No entry points.
//
// A counting sort of indices. A block takes a run of pairs and gives each warp an equal, contiguous
// part of it. A warp walks its part 32 pairs at a time: lanes with the same expert find each other
// (`match_any`), the lowest of them adds their number to the warp's own counter of that expert, and
// the number of lower lanes is each pair's place. Counters of earlier warps, then of earlier
// blocks, come first, so experts keep their pairs in order: the result depends on neither schedule
// nor grid.

#pragma once

#include "common.cuh"

// Most pairs that one block groups. Counters are 16 bits, to fit 1024 experts times 16 warps into
// the 48 KB of shared memory that need no opt-in.
constexpr u32 kAlignSmallPairs = 4096;
static_assert(kAlignSmallPairs < 65536, "counters of a block are 16 bits");

// Shared memory of one block that groups pairs.
struct AlignShared {
    u16* counters;  // [warps, experts]: counts, then each warp's next place within the expert
    u32* first_row; // [experts]: first row of this block's pairs
    u16* counts;    // [experts]: pairs in this block
    u32* scratch;   // [32]: one value a warp
};

// Its size, which the launch adds to the arena's slack of 16 bytes.
DEVICE constexpr u32 align_shared_bytes(u32 experts, u32 warps) {
    return 2 * warps * experts + 4 * experts + 2 * experts + 4 * kWarpSize;
}
static_assert(align_shared_bytes(kMaxExperts, 16) + 16 <= 48 * 1024,
              "16 warps and 1024 experts fit without opting in to more shared memory");

DEVICE AlignShared take_align_shared(Arena& arena, u32 experts, u32 warps) {
    AlignShared shared;
    shared.first_row = arena.take<u32>(experts, 4);
    shared.scratch = arena.take<u32>(kWarpSize, 4);
    shared.counters = arena.take<u16>(warps * experts, 2);
    shared.counts = arena.take<u16>(experts, 2);
    return shared;
}

// One pair and the lanes of its warp that hold pairs of the same expert.
struct PairLanes {
    u32 expert;  // not below `experts`: no pair, or one that is dropped
    u32 peers;
    bool counted;
};

// By all lanes of a warp, each with its own `pair`; those from `end` on are no pairs.
DEVICE PairLanes pair_lanes(const AlignParams& p, u32 pair, u32 end) {
#ifdef MUTANT_ALIGN_TAIL
    end -= 1;
#endif
    u32 expert = pair < end ? (u32)p.topk_ids[pair] : p.experts;
    bool counted = expert < p.experts;
    // Whatever is not counted shares one value, so that it never meets a real expert.
    u32 peers = match_any(kFullWarp, counted ? expert : p.experts);
    return PairLanes{expert, peers, counted};
}

DEVICE u32 lanes_below() { return (1u << (thread_index() % kWarpSize)) - 1; }

// Pairs [begin, end) of a block are dealt to warps in multiples of 32.
DEVICE u32 pairs_per_warp(u32 pairs, u32 warps) {
    return ceil_div(ceil_div(pairs, kWarpSize), warps) * kWarpSize;
}

// Clears the counters and counts the pairs [begin, end) into them, warp by warp. Reports bad ids.
// A block_sync follows.
DEVICE void count_pairs(const AlignParams& p, const AlignShared& shared, u32 begin, u32 end,
                        u32 warps) {
    u32 warp = thread_index() / kWarpSize, lane = thread_index() % kWarpSize;
    u16* counters = shared.counters + warp * p.experts;
    for (u32 e = lane; e < p.experts; e += kWarpSize) {
        counters[e] = 0;
    }
    warp_sync(kFullWarp);
    u32 part = pairs_per_warp(end - begin, warps);
    u32 dropped = 0;
    for (u32 i = 0; i < part; i += kWarpSize) {
        u32 pair = begin + warp * part + i + lane;
        PairLanes found = pair_lanes(p, pair, end);
        if (found.counted && (found.peers & lanes_below()) == 0) {
            counters[found.expert] = (u16)(counters[found.expert] + count_ones(found.peers));
        }
        dropped |= pair < end && !found.counted ? 1 : 0;
        warp_sync(kFullWarp);
    }
    if (ballot(kFullWarp, dropped != 0) != 0 && lane == 0) {
        red_or_gpu(&p.header->status, kStatusBadExpertId);
    }
}

// Turns one expert's counters into each warp's first place within it; returns the block's count.
DEVICE u32 rank_warps(const AlignParams& p, const AlignShared& shared, u32 expert, u32 warps) {
    u32 count = 0;
    for (u32 w = 0; w < warps; ++w) {
        u16* counter = shared.counters + w * p.experts + expert;
        u32 before = count;
        count += *counter;
        *counter = (u16)before;
    }
    return count;
}

// Writes the pairs [begin, end) to their rows, below `limit`. The pair on a tile's first row also
// writes the tile. `expert_rows(e, &first, &count)` gives all rows of an expert, not only this
// block's.
template <typename ExpertRows>
DEVICE void scatter_pairs(const AlignParams& p, const AlignShared& shared, u32 begin, u32 end,
                          u32 warps, u32 limit, ExpertRows expert_rows) {
    u32 warp = thread_index() / kWarpSize, lane = thread_index() % kWarpSize;
    u16* counters = shared.counters + warp * p.experts;
    u32 part = pairs_per_warp(end - begin, warps);
    for (u32 i = 0; i < part; i += kWarpSize) {
        u32 pair = begin + warp * part + i + lane;
        PairLanes found = pair_lanes(p, pair, end);
        bool leads = found.counted && (found.peers & lanes_below()) == 0;
        u32 place = 0;
        if (leads) {
            place = counters[found.expert];
            counters[found.expert] = (u16)(place + count_ones(found.peers));
        }
        place = shfl(kFullWarp, place, lowest_bit(found.peers));
#ifdef MUTANT_UNSTABLE_SCATTER
        place += count_ones(found.peers & ~lanes_below()) - 1;
#else
        place += count_ones(found.peers & lanes_below());
#endif
        if (pair < end) {
            u32 row = found.counted ? shared.first_row[found.expert] + place : limit;
            bool fits = row < limit;
            p.pair_rows[pair] = fits ? (i32)row : -1;
            if (fits) {
                p.sorted_pairs[row] = (i32)pair;
                if (row % p.block_m == 0) {
                    u32 first, count;
                    expert_rows(found.expert, first, count);
                    u32 rows = min_of(p.block_m, first + count - row);
                    p.tiles[row / p.block_m] = Tile{(i32)found.expert, (i32)row, (i32)rows, 0};
                }
            }
        }
        warp_sync(kFullWarp);
    }
}

// Marks the padding rows of one expert; by all lanes of a warp.
DEVICE void pad_expert(const AlignParams& p, u32 first, u32 count, u32 limit) {
    u32 end = min_of(first + ceil_div(count, p.block_m) * p.block_m, limit);
#ifdef MUTANT_PADDING_UNWRITTEN
    end = 0;
#endif
    for (u32 row = first + count + thread_index() % kWarpSize; row < end; row += kWarpSize) {
        p.sorted_pairs[row] = -1;
    }
}

// Sum of the values of all threads before this one; `total` is that of the whole block. Every
// thread calls it; `scratch` must not be in use.
DEVICE u32 block_sum_before(u32 value, u32* scratch, u32 warps, u32& total) {
    u32 warp = thread_index() / kWarpSize, lane = thread_index() % kWarpSize;
    u32 sum = value;
    for (u32 d = 1; d < kWarpSize; d *= 2) {
        u32 below = shfl_up(kFullWarp, sum, d);
        sum += lane >= d ? below : 0;
    }
    if (lane == kWarpSize - 1) {
        scratch[warp] = sum;
    }
    block_sync();
    u32 of_warp = lane < warps ? scratch[lane] : 0;
    u32 before = redux_add(kFullWarp, lane < warp ? of_warp : 0);
    total = redux_add(kFullWarp, of_warp);
    block_sync();
    return before + sum - value;
}

// Rows that may be written: whole tiles within both tables. Too few is reported, by one thread.
DEVICE u32 row_limit(const AlignParams& p, u32 padded_rows) {
    u32 tiles = min_of(p.capacity_tiles, p.capacity_rows / p.block_m);
    return min_of(padded_rows, tiles * p.block_m);
}

// What one thread of the block writes when all counts are known.
DEVICE void write_header(const AlignParams& p, u32 padded_rows, u32 active_experts) {
    u32 limit = row_limit(p, padded_rows);
    if (limit < padded_rows) {
        red_or_gpu(&p.header->status, kStatusCapacity);
    }
    p.expert_offsets[p.experts] = (i32)limit;
    p.header->num_tiles = limit / p.block_m;
    p.header->padded_rows = limit;
    p.header->active_experts = active_experts;
}

// Aligns all of at most kAlignSmallPairs pairs with one block of `warps` warps.
DEVICE void align_in_one_block(const AlignParams& p, Arena& arena, u32 warps) {
    AlignShared shared = take_align_shared(arena, p.experts, warps);
    u32 threads = warps * kWarpSize, thread = thread_index();
    count_pairs(p, shared, 0, p.pairs, warps);
    block_sync();
    // Each thread takes neighbouring experts, so that one prefix sum over threads orders them all.
    u32 each = ceil_div(p.experts, threads);
    u32 first = min_of(thread * each, p.experts), last = min_of(first + each, p.experts);
    u32 rows = 0, active = 0;
    for (u32 e = first; e < last; ++e) {
        u32 count = rank_warps(p, shared, e, warps);
        shared.counts[e] = (u16)count;
        p.expert_count[e] = (i32)count;
        rows += ceil_div(count, p.block_m) * p.block_m;
        active += count > 0 ? 1 : 0;
    }
    u32 padded_rows, active_experts;
    u32 row = block_sum_before(rows, shared.scratch, warps, padded_rows);
    block_sum_before(active, shared.scratch, warps, active_experts);
    u32 limit = row_limit(p, padded_rows);
    for (u32 e = first; e < last; ++e) {
        shared.first_row[e] = row;
        p.expert_offsets[e] = (i32)min_of(row, limit);
        row += ceil_div((u32)shared.counts[e], p.block_m) * p.block_m;
    }
    if (thread == 0) {
        write_header(p, padded_rows, active_experts);
    }
    block_sync();
    scatter_pairs(p, shared, 0, p.pairs, warps, limit, [&](u32 e, u32& start, u32& count) {
        start = shared.first_row[e];
        count = shared.counts[e];
    });
    for (u32 e = thread / kWarpSize; e < p.experts; e += warps) {
        pad_expert(p, shared.first_row[e], shared.counts[e], limit);
    }
}
