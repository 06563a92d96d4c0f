// Align: (token, slot) pairs to rows grouped by expert. Indices only; activations stay where they
// are.
//
// Reads topk_ids[pairs]. Writes, see AlignParams: sorted_pairs (with -1 on padding rows),
// pair_rows, tiles in expert order, expert_count, expert_offsets, and the header's num_tiles,
// padded_rows and active_experts. Stable: equal experts keep the order of their pairs, so the
// result is the same in every run and for every grid. An id that is not below `experts` sets
// kStatusBadExpertId, is never used as an index, and its pair gets pair_rows -1. When a table is
// too short, kStatusCapacity is set, whole tiles that fit are written, num_tiles and padded_rows
// and the offsets count those alone, and the other pairs get pair_rows -1; expert_count still
// counts all. Status bits are only ever added.
//
// Launches. All take AlignParams by value; experts 1 to 1024, block_m a power of two from 1 to 256.
//   align_small      pairs 1 to 4096. Grid 1, block 512, shared 38 experts + 144 bytes.
//   otherwise three launches on one stream, B = ceil(pairs / pairs_per_block) blocks, where
//   pairs_per_block is a multiple of 32 from 32 to 4096 (1024 suits an H100: 128 blocks at 131,072
//   pairs) and block_counts holds B * experts values:
//   align_histogram  grid B, block 512, shared 4 experts + 16 bytes.
//   align_scan       grid 1, block 1024, shared 4 * 1024 + 4 * 32 + 16 = 4240 bytes.
//   align_scatter    grid B, block 512, shared 38 experts + 144 bytes.
// Shared memory never exceeds 39,056 bytes, below the 48 KB that need no opt-in. pairs is below
// 2^31.
//
// Floor: 12 bytes a pair and 4 a padding row, below 1 us at 131,072 pairs; launches and the latency
// of dependent steps are what there is to save, so a block does much with few barriers.

#include "align.cuh"

// 16 warps: 4096 pairs are 8 steps of a warp, and the counters of 1024 experts still fit 48 KB.
constexpr u32 kAlignThreads = 512;
constexpr u32 kAlignWarps = kAlignThreads / kWarpSize;
// As many as a block may have: one expert a thread, and several runs of blocks for few experts.
constexpr u32 kScanThreads = 1024;
static_assert(kScanThreads >= kMaxExperts, "the scan gives each expert a thread");
// Loads in flight before the first is used: counts lie in L2, some 600 cycles away.
constexpr u32 kScanBatch = 8;

KERNEL(kAlignThreads, 1) align_small(GRID_CONSTANT AlignParams params) {
    griddep_wait();
    griddep_launch();
    Arena arena;
    align_in_one_block(params, arena, kAlignWarps);
}

// The pairs of this block: [begin, end).
DEVICE void block_pairs(const AlignParams& p, u32& begin, u32& end) {
    u64 first = (u64)block_index() * p.pairs_per_block;
    begin = (u32)min_of(first, (u64)p.pairs);
    end = (u32)min_of(first + p.pairs_per_block, (u64)p.pairs);
}

// Counts each block's pairs by expert. Adding is all that the atomics do, so their order never
// shows.
KERNEL(kAlignThreads, 2) align_histogram(GRID_CONSTANT AlignParams params) {
    griddep_wait();
    griddep_launch();
    const AlignParams& p = params;
    Arena arena;
    u32* counts = arena.take<u32>(p.experts, 4);
    for (u32 e = thread_index(); e < p.experts; e += kAlignThreads) {
        counts[e] = 0;
    }
    block_sync();
    u32 begin, end, dropped = 0;
    block_pairs(p, begin, end);
    for (u32 i = begin; i < end; i += kAlignThreads) {
        u32 pair = i + thread_index();
        PairLanes found = pair_lanes(p, pair, end);
        if (found.counted && (found.peers & lanes_below()) == 0) {
            atom_add_shared(counts + found.expert, count_ones(found.peers));
        }
        dropped |= pair < end && !found.counted ? 1 : 0;
    }
    if (ballot(kFullWarp, dropped != 0) != 0 && thread_index() % kWarpSize == 0) {
        red_or_gpu(&p.header->status, kStatusBadExpertId);
    }
    block_sync();
    i32* row = p.block_counts + (u64)block_index() * p.experts;
    for (u32 e = thread_index(); e < p.experts; e += kAlignThreads) {
        row[e] = (i32)counts[e];
    }
}

// Calls `use(block, count)` for one expert's blocks [first, last) in order.
template <typename Use>
DEVICE void each_block_count(const AlignParams& p, u32 expert, u32 first, u32 last, Use use) {
    for (u32 b = first; b < last; b += kScanBatch) {
        u32 counts[kScanBatch];
        for (u32 i = 0; i < kScanBatch; ++i) {
            bool in = b + i < last;
            counts[i] = in ? (u32)p.block_counts[(u64)(b + i) * p.experts + expert] : 0;
        }
        for (u32 i = 0; i < kScanBatch; ++i) {
            if (b + i < last) {
                use(b + i, counts[i]);
            }
        }
    }
}

// Turns block_counts into the first row of each block's pairs of each expert, and writes offsets,
// counts and header. With few experts, threads share an expert's blocks in equal runs.
KERNEL(kScanThreads, 1) align_scan(GRID_CONSTANT AlignParams params) {
    griddep_wait();
    griddep_launch();
    const AlignParams& p = params;
    Arena arena;
    u32* sums = arena.take<u32>(kScanThreads, 4);
    u32* scratch = arena.take<u32>(kWarpSize, 4);
    u32 blocks = ceil_div(p.pairs, p.pairs_per_block);
    u32 runs = kScanThreads / p.experts, run_blocks = ceil_div(blocks, runs);
    u32 thread = thread_index(), run = thread / p.experts, expert = thread % p.experts;
    u32 first = min_of(run * run_blocks, blocks), last = min_of(first + run_blocks, blocks);
    // Threads beyond the last whole run have no blocks.
    last = run < runs ? last : first;
    u32 sum = 0;
    each_block_count(p, expert, first, last, [&](u32, u32 count) { sum += count; });
    sums[thread] = sum;
    block_sync();
    u32 count = 0;
    if (thread < p.experts) {
        for (u32 r = 0; r < runs; ++r) {
            u32 of_run = sums[r * p.experts + thread];
            sums[r * p.experts + thread] = count;
            count += of_run;
        }
        p.expert_count[thread] = (i32)count;
    }
    u32 padded_rows, active_experts;
    u32 rows = ceil_div(count, p.block_m) * p.block_m;
    u32 row = block_sum_before(rows, scratch, kScanThreads / kWarpSize, padded_rows);
    block_sum_before(count > 0 ? 1 : 0, scratch, kScanThreads / kWarpSize, active_experts);
    if (thread < p.experts) {
        p.expert_offsets[thread] = (i32)min_of(row, row_limit(p, padded_rows));
        for (u32 r = 0; r < runs; ++r) {
            sums[r * p.experts + thread] += row;
        }
    }
    if (thread == 0) {
        write_header(p, padded_rows, active_experts);
    }
    block_sync();
    u32 next = sums[thread];
    each_block_count(p, expert, first, last, [&](u32 block, u32 of_block) {
        p.block_counts[(u64)block * p.experts + expert] = (i32)next;
        next += of_block;
    });
}

// Writes each block's pairs to their rows; the warps of the grid share the experts' padding.
KERNEL(kAlignThreads, 2) align_scatter(GRID_CONSTANT AlignParams params) {
    griddep_wait();
    griddep_launch();
    const AlignParams& p = params;
    Arena arena;
    AlignShared shared = take_align_shared(arena, p.experts, kAlignWarps);
    u32 begin, end, thread = thread_index();
    block_pairs(p, begin, end);
    count_pairs(p, shared, begin, end, kAlignWarps);
    block_sync();
    const i32* first_rows = p.block_counts + (u64)block_index() * p.experts;
    for (u32 e = thread; e < p.experts; e += kAlignThreads) {
        rank_warps(p, shared, e, kAlignWarps);
        shared.first_row[e] = (u32)first_rows[e];
    }
    block_sync();
    u32 limit = p.header->padded_rows;
    scatter_pairs(p, shared, begin, end, kAlignWarps, limit, [&](u32 e, u32& start, u32& count) {
        start = (u32)p.expert_offsets[e];
        count = (u32)p.expert_count[e];
    });
    u32 warp = block_index() * kAlignWarps + thread / kWarpSize;
    for (u32 e = warp; e < p.experts; e += grid_blocks() * kAlignWarps) {
        pad_expert(p, (u32)p.expert_offsets[e], (u32)p.expert_count[e], limit);
    }
}
