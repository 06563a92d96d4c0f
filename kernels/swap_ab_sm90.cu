// Decode on Hopper with the operands swapped: the weights are the M operand of wgmma and the tokens
// its N operand, for experts of 2 to 64 rows. A decode step is paced by the weight stream; with the
// tokens as N, 8 tokens cost 8 columns and are not padded to 64 rows, so that the tensor cores and
// their reads of shared memory stay far below what memory delivers.
//
//   swap_ab_sm90_bf16_up_n{8,16,32,64}    h = silu(x w_gate^T) * (x w_up^T), x gathered by pair
//   swap_ab_sm90_bf16_down_n{8,16,32,64}  y = h w2^T
//
// Unit of work: one tile of the table (N = block_m rows of one expert) times 128 columns of the
// output. A stage of the ring is 32 KB of weights: for `up` 128 gate and 128 up rows of 64 along
// the depth, for `down` 128 rows of 128 along the depth; both as two halves [128][64] in shared
// memory. Each of the two consumer warpgroups multiplies 64 rows of either half by all tokens, into
// one accumulator a half: `up` then holds gate and up of an element in the same register of the
// same thread, so that SwiGLU needs no exchange; `down` adds its two halves.
//
// Floors. An H100's 132 multiprocessors share 3.35 TB/s, so that one of them gets a stage of 32 KB
// in about 1.3 us or 2,300 cycles. wgmma reads these 32 KB from shared memory at 128 bytes a cycle:
// 256 cycles, whatever N is up to 32, and 512 cycles of arithmetic at N = 64. Hence each batch of
// wgmma is simply waited for before its stage is released. 128 KB to 192 KB of weights are in
// flight in every multiprocessor, where 18 KB would cover the latency of memory at full rate.
//
// Schedule. Blocks stay for the whole launch and the ring runs on across units, so that the weights
// of the next unit, of whatever expert, are requested while this one finishes. Units are dealt in
// waves of one a block, tiles of one expert next to each other, so that its weights are read at one
// time and come from memory once. The units that do not fill a wave are dealt first. If they are
// few and deep, all blocks share them by splitting the depth (stream-K): each block writes its sums
// to `partials`, and the last to finish a unit, by ticket, adds them in order of depth. Blocks never
// wait for each other. Results are the same in every run with the same grid, tile table and shape;
// another grid may split elsewhere and round differently.
//
// The narrower tile of 64 + 64 rows, whose warpgroups would split the depth, is not here: splitting
// the depth between blocks fills idle multiprocessors better (any number of them) with one source.
//
// Launch contract
//   grid     any; meant: the number of multiprocessors. One block fits a multiprocessor
//   block    up: 352 threads for n8, 416 for n16, n32, n64; down: 288
//   shared   1024 + stages * stage + 256 * N + 16 * stages + 8 bytes (`Tiling<..>::kSharedBytes`):
//                            n8       n16      n32      n64
//              up    stages  6        6        6        5       stage = 32768 + 128 * N
//                    bytes   205,928  214,120  230,504  222,296
//              down  stages  6        6        5        4       stage = 32768 + 256 * N
//                    bytes   212,072  226,408  214,104  214,088
//   align    block_m = N
//   maps     bf16, 128-byte swizzle, zero fill, innermost dimension first
//              up    w13 (H, I, 2, E) box {64, 128, 2, 1}
//              down  w2 (I, H, E) box {64, 128, 1}, then h (I, capacity_rows) box {64, N}
//   params   SplitGemmParams: gemm.{out, header, tiles, columns, depth}; up also gemm.{a, a_stride,
//            sorted_pairs, top_k, gate_first}; the rest of gemm is not read. `partials` null
//            switches the sharing of units off; else 2 * grid * 256 * N floats, 16-byte aligned,
//            and `tickets` 2 * grid zeros, which are zeros again when the launch ends
//   needs    columns and depth multiples of 8; `a` and `out` 16-byte aligned; sm_90a
//   writes   all block_m rows of each tile; rows without a pair are zeros
//   overlap  may be launched as a dependent: all that reads an earlier launch's output comes after
//            griddep_wait. The weights come after it too, since tiles say whose they are; before it
//            are only barriers and map prefetches. The next launch is let in at once, because its
//            blocks find room only when these leave

#include "common.cuh"

namespace swap_ab_sm90 {

// Columns of the output, rows of the weights, that one block multiplies: two warpgroups of one m64
// product each.
constexpr u32 kBlockRows = 128;
constexpr u32 kConsumerGroups = 2;
constexpr u32 kGroupThreads = 128;
constexpr u32 kGroupRows = 64;
constexpr u32 kConsumerWarps = kConsumerGroups * kGroupThreads / kWarpSize;
// Depth of one swizzled row: 64 bf16 are the 128 bytes of the swizzle.
constexpr u32 kSwizzleDepth = 64;
constexpr u32 kRowBytes = 128;
constexpr u32 kChunkBytes = 16;
constexpr u32 kChunks = kRowBytes / kChunkBytes;
constexpr u32 kWgmmaDepth = 16;
// Gate and up rows, or the two halves of a stage's depth.
constexpr u32 kHalves = 2;
constexpr u32 kHalfBytes = kBlockRows * kRowBytes;
constexpr u32 kWeightBytes = kHalves * kHalfBytes;
// Groups of copies that a gathering thread leaves unfinished: it hands over the stage before the
// last two. Tokens come from L2 within one stage's time; handing over late would cost ready stages.
constexpr u32 kGatherLag = 2;
// Fewest stages worth a part of a shared unit, and what sharing costs at its end in stages:
// writing, a ticket, reading, about 2.5 us. Expected, not measured.
constexpr u32 kMinPartSteps = 2;
constexpr u32 kJoinSteps = 2;
// How much faster than its share of memory one multiprocessor reads when others idle; expected from
// its bytes in flight, not measured. Fewer than half of a wave's units leave bandwidth unused.
constexpr u32 kLoneSpeedup = 2;
// Barrier of consumer warpgroup 0; its neighbour takes the next. 0 is block_sync's.
constexpr u32 kGroupBarrier = 1;
constexpr u32 kMaxSharedBytes = 227 * 1024;

static_assert(kBlockRows == kConsumerGroups * kGroupRows, "each warpgroup takes one m64 product");
static_assert(kSwizzleDepth * sizeof(bf16) == kRowBytes, "a swizzled row is 128 bytes");

template <bool kUp, u32 N>
struct Tiling {
    // Tokens of a stage: N rows for each swizzled depth that it spans.
    static constexpr u32 kTokenHalves = kUp ? 1 : kHalves;
    static constexpr u32 kDepth = kTokenHalves * kSwizzleDepth;
    static constexpr u32 kTokenBytes = N * kRowBytes;
    static constexpr u32 kStageBytes = kWeightBytes + kTokenHalves * kTokenBytes;
    // As many as fit beside the staging rows, at most 6: more would not raise the rate.
    static constexpr u32 kStages = kUp ? (N == 64 ? 5 : 6) : (N == 64 ? 4 : N == 32 ? 5 : 6);
    // Warps that gather tokens: one 16-byte chunk a thread at least, no more than four.
    static constexpr u32 kGatherWarps = kUp ? (N == 8 ? 2 : 4) : 0;
    static constexpr u32 kThreads = (kConsumerWarps + 1 + kGatherWarps) * kWarpSize;
    // A stage is full when its weights have landed (and for `down` its tokens, by the same
    // thread) and every gathering warp has handed over its rows.
    static constexpr u32 kFullArrivals = 1 + kGatherWarps;
    static constexpr u32 kStagingBytes = kTokenBytes;
    static constexpr u32 kSharedBytes = 1024 + kStages * kStageBytes +
                                        kConsumerGroups * kStagingBytes +
                                        2 * kStages * (u32)sizeof(u64) +
                                        kConsumerGroups * (u32)sizeof(u32);
    // f32 sums of one warpgroup that go to `partials`: gate and up, or one product.
    static constexpr u32 kSums = kUp ? 2 : 1;
    static constexpr u32 kGroupPartials = kSums * kGroupRows * N;
    static constexpr u32 kSlotPartials = 256 * N;

    static_assert(N == 8 || N == 16 || N == 32 || N == 64, "the widths that are built");
    static_assert(kStageBytes % 1024 == 0, "swizzled tiles start at multiples of 1024 bytes");
    static_assert(kSharedBytes <= kMaxSharedBytes, "the ring fits the shared memory of a block");
    static_assert(kStages > kGatherLag, "a lag of the whole ring would wait for itself");
    static_assert(kConsumerGroups * kGroupPartials <= kSlotPartials, "a block's sums fit a slot");
};

// Position in the ring: stage, and the parity of the phase that fills it.
struct Ring {
    u32 stage = 0;
    u32 parity = 0;

    template <u32 kStages>
    DEVICE void advance() {
        stage += 1;
        if (stage == kStages) {
            stage = 0;
            parity ^= 1;
        }
    }
};

// What one block does in one go: steps [first, end) of the depth of one unit.
struct Segment {
    u32 tile;
    u32 row_block;
    u32 first;
    u32 end;
    // Blocks [first_block, first_block + blocks) share the unit; 1 when it is not shared.
    u32 first_block;
    u32 blocks;
};

// Deals units to blocks; every role of a block walks the same segments.
class Walk {
public:
    DEVICE Walk(u32 tiles, u32 row_blocks, u32 steps, bool may_split)
        : tiles_(tiles), steps_(steps) {
        u32 units = tiles * row_blocks;
        u32 blocks = grid_blocks();
        rest_ = units % blocks;
        waves_ = units / blocks;
        total_ = (u64)rest_ * steps;
        parts_ = rest_;
        if (may_split && rest_ > 0 && steps >= kMinPartSteps) {
            u32 parts = (u32)min_of((u64)blocks, total_ / kMinPartSteps);
            u64 shared = (total_ + parts - 1) / parts + kJoinSteps;
            if (shared * kLoneSpeedup < steps) {
                parts_ = parts;
            }
        }
        if (block_index() < parts_) {
            position_ = total_ * block_index() / parts_;
            end_ = total_ * (block_index() + 1) / parts_;
        }
    }

    // The next segment of this block; false after the last.
    DEVICE bool next(Segment& segment) {
        if (position_ < end_) {
            next_part(segment);
            return true;
        }
        if (wave_ == waves_) {
            return false;
        }
        place(segment, rest_ + wave_ * grid_blocks() + block_index());
        segment.first = 0;
        segment.end = steps_;
        segment.first_block = block_index();
        segment.blocks = 1;
        wave_ += 1;
        return true;
    }

private:
    // Tiles fastest: those of one expert are neighbours and read the same weights.
    DEVICE void place(Segment& segment, u32 unit) {
        segment.tile = unit % tiles_;
        segment.row_block = unit / tiles_;
    }

    DEVICE void next_part(Segment& segment) {
        u32 unit = (u32)(position_ / steps_);
        u64 start = (u64)unit * steps_;
        u64 stop = min_of(start + steps_, end_);
        place(segment, unit);
        segment.first = (u32)(position_ - start);
        segment.end = (u32)(stop - start);
        segment.first_block = owner(start);
        segment.blocks = owner(start + steps_ - 1) - segment.first_block + 1;
        position_ = stop;
    }

    // The block whose part holds this step: the last whose first step, total * block / parts
    // rounded down, is not beyond it.
    DEVICE u32 owner(u64 step) const { return (u32)(((step + 1) * parts_ - 1) / total_); }

    u32 tiles_;
    u32 steps_;
    u32 rest_;
    u32 waves_;
    u32 wave_ = 0;
    u32 parts_;
    u64 total_;
    u64 position_ = 0;
    u64 end_ = 0;
};

// The block's shared memory as addresses.
template <bool kUp, u32 N>
struct Shared {
    using T = Tiling<kUp, N>;

    u32 stages;
    u32* tickets;

    // Each buffer's size is a multiple of the next one's alignment, so that all addresses but the
    // first are constants away from it: loops need not compute them anew.
    DEVICE Shared() {
        Arena arena;
        stages = smem_addr(arena.take<u8>(T::kStages * T::kStageBytes, 1024));
        arena.take<u8>(kConsumerGroups * T::kStagingBytes, kChunkBytes);
        arena.take<u64>(T::kStages, sizeof(u64));
        arena.take<u64>(T::kStages, sizeof(u64));
        tickets = arena.take<u32>(kConsumerGroups, sizeof(u32));
    }

    DEVICE u32 weights(u32 stage) const { return stages + stage * T::kStageBytes; }
    DEVICE u32 tokens(u32 stage) const { return weights(stage) + kWeightBytes; }
    DEVICE u32 staging(u32 group) const {
        return stages + T::kStages * T::kStageBytes + group * T::kStagingBytes;
    }
    DEVICE u32 full(u32 stage) const {
        return staging(kConsumerGroups) + stage * (u32)sizeof(u64);
    }
    DEVICE u32 empty(u32 stage) const { return full(T::kStages + stage); }

    DEVICE void init_barriers() const {
        for (u32 stage = 0; stage < T::kStages; ++stage) {
            mbar_init(full(stage), T::kFullArrivals);
            mbar_init(empty(stage), kConsumerWarps);
        }
        fence_mbar_init();
    }
    DEVICE void wait_empty(const Ring& ring) const {
#ifndef MUTANT_NO_EMPTY_WAIT
        // A fresh barrier lets the parity of the phase before its first pass.
        mbar_wait(empty(ring.stage), ring.parity ^ 1);
#endif
    }
    DEVICE void wait_full(const Ring& ring) const {
#ifndef MUTANT_NO_FULL_WAIT
        mbar_wait(full(ring.stage), ring.parity);
#endif
    }
};

template <bool kUp, u32 N>
DEVICE Walk walk_of(const SplitGemmParams& p) {
    u32 tiles = p.gemm.header->num_tiles;
#ifdef MUTANT_DROPPED_LAST_TILE
    tiles -= tiles > 0 ? 1 : 0;
#endif
    constexpr u32 kDepth = Tiling<kUp, N>::kDepth;
#ifdef MUTANT_DROPPED_K_TAIL
    u32 steps = p.gemm.depth / kDepth;
#else
    u32 steps = ceil_div(p.gemm.depth, kDepth);
#endif
    return Walk(tiles, ceil_div(p.gemm.columns, kBlockRows), steps, p.partials != nullptr);
}

// ---- producers ----------------------------------------------------------------------------------

// One thread: the weights of each stage, and for `down` its tokens, which lie in a row.
template <bool kUp, u32 N>
DEVICE void load_weights(const TensorMap& weights, const TensorMap& tokens,
                         const SplitGemmParams& p, const Shared<kUp, N>& shared) {
    using T = Tiling<kUp, N>;
    u64 once = policy_evict_first();
    u64 often = policy_evict_last();
    Walk walk = walk_of<kUp, N>(p);
    Segment segment;
    Ring ring;
    while (walk.next(segment)) {
        Tile tile = p.gemm.tiles[segment.tile];
        i32 row = (i32)(segment.row_block * kBlockRows);
#pragma unroll 1
        for (u32 step = segment.first; step < segment.end; ++step) {
            shared.wait_empty(ring);
            u32 full = shared.full(ring.stage);
            u32 to = shared.weights(ring.stage);
            i32 depth = (i32)(step * T::kDepth);
            if constexpr (kUp) {
                mbar_arrive_expect_tx(full, kWeightBytes);
                tma_load_4d(to, weights, full, once, depth, row, 0, tile.expert);
            } else {
                mbar_arrive_expect_tx(full, T::kStageBytes);
                // The second half may lie wholly beyond the depth: then it is zeros.
#pragma unroll
                for (u32 half = 0; half < kHalves; ++half) {
                    i32 column = depth + (i32)(half * kSwizzleDepth);
                    tma_load_3d(to + half * kHalfBytes, weights, full, once, column, row,
                                tile.expert);
                    tma_load_2d(shared.tokens(ring.stage) + half * T::kTokenBytes, tokens, full,
                                often, column, tile.row0);
                }
            }
            ring.advance<T::kStages>();
        }
    }
}

// Makes the rows that this warp copied visible to wgmma, and hands over their stage.
template <bool kUp, u32 N>
DEVICE void hand_over(const Shared<kUp, N>& shared, Ring& ring) {
#ifndef MUTANT_NO_PROXY_FENCE
    fence_proxy_async();
#endif
    warp_sync(kFullWarp);
    if (thread_index() % kWarpSize == 0) {
        mbar_arrive(shared.full(ring.stage));
    }
    ring.advance<Tiling<kUp, N>::kStages>();
}

// The gathering warps of `up`: thread i copies chunk i % 8 of row i / 8, and of every row that
// follows at the distance of all threads' rows. Rows without a pair, and what lies beyond the
// depth, are zeros.
template <u32 N>
DEVICE void gather_tokens(const SplitGemmParams& p, const Shared<true, N>& shared, u32 thread) {
    using T = Tiling<true, N>;
    constexpr u32 kRows = T::kGatherWarps * kWarpSize / kChunks;
    constexpr u32 kCopies = N / kRows;
    static_assert(kCopies * kRows == N, "all gathering threads copy equally");
    static_assert(kRows % 8 == 0, "a thread's rows are swizzled alike");

    const GemmParams& g = p.gemm;
    u32 chunk = thread % kChunks;
    u32 row = thread / kChunks;
    u32 place = row * kRowBytes + ((chunk ^ (row & 7)) * kChunkBytes);
    Walk walk = walk_of<true, N>(p);
    Segment segment;
    Ring ring;
    Ring behind;
    u32 lag = 0;
    while (walk.next(segment)) {
        i32 row0 = g.tiles[segment.tile].row0;
        const bf16* source[kCopies];
        bool real[kCopies];
#pragma unroll
        for (u32 i = 0; i < kCopies; ++i) {
            i32 pair = g.sorted_pairs[row0 + (i32)(row + i * kRows)];
            real[i] = pair >= 0;
            source[i] = g.a + (real[i] ? (u64)((u32)pair / g.top_k) * g.a_stride : 0);
        }
#pragma unroll 1
        for (u32 step = segment.first; step < segment.end; ++step) {
            shared.wait_empty(ring);
            u32 depth = step * T::kDepth + chunk * (kChunkBytes / (u32)sizeof(bf16));
            bool inside = depth < g.depth;
#pragma unroll
            for (u32 i = 0; i < kCopies; ++i) {
                bool copied = inside && real[i];
                cp_async16(shared.tokens(ring.stage) + place + i * kRows * kRowBytes,
                           copied ? source[i] + depth : g.a, copied ? kChunkBytes : 0);
            }
            cp_async_commit();
            ring.advance<T::kStages>();
            if (lag < kGatherLag) {
                lag += 1;
            } else {
                cp_async_wait<kGatherLag>();
                hand_over(shared, behind);
            }
        }
    }
    cp_async_wait<0>();
    for (; lag > 0; --lag) {
        hand_over(shared, behind);
    }
}

// ---- consumers ----------------------------------------------------------------------------------

// Sums of one warpgroup: of thread t in the layout of wgmma's D, rows of weights by tokens.
template <u32 N>
struct Sums {
    float half[kHalves][N / 2];

    DEVICE void clear() {
#pragma unroll
        for (u32 i = 0; i < N / 2; ++i) {
            half[0][i] = 0.0f;
            half[1][i] = 0.0f;
        }
    }
    DEVICE void fence() {
#pragma unroll
        for (u32 i = 0; i < N / 2; ++i) {
            wgmma_fence_operand(half[0][i]);
            wgmma_fence_operand(half[1][i]);
        }
    }
};

// Adds one stage: 64 rows of either half of the weights by the tokens.
template <bool kUp, u32 N>
DEVICE void multiply_stage(Sums<N>& sums, const Shared<kUp, N>& shared, const Ring& ring,
                           u32 group) {
    using T = Tiling<kUp, N>;
    u64 weights = wgmma_descriptor(shared.weights(ring.stage) + group * kGroupRows * kRowBytes);
    u64 tokens = wgmma_descriptor(shared.tokens(ring.stage));
    shared.wait_full(ring);
    sums.fence();
    wgmma_fence();
#pragma unroll
    for (u32 k = 0; k < kSwizzleDepth; k += kWgmmaDepth) {
        // Descriptors count in 16 bytes; the sum stays in their address field.
        u32 offset = k * (u32)sizeof(bf16);
#pragma unroll
        for (u32 half = 0; half < kHalves; ++half) {
            u32 token_half = kUp ? 0 : half * T::kTokenBytes;
            wgmma_bf16<N>(sums.half[half], weights + (half * kHalfBytes + offset) / 16,
                          tokens + (token_half + offset) / 16, 1);
        }
    }
    wgmma_commit();
#ifdef MUTANT_RELEASE_BEFORE_WAIT
    if (thread_index() % kWarpSize == 0) {
        mbar_arrive(shared.empty(ring.stage));
    }
#endif
    wgmma_wait<0>();
    sums.fence();
#ifndef MUTANT_RELEASE_BEFORE_WAIT
    // One arrival a warp: the wait is a warp's own, and warps need not finish together.
    if (thread_index() % kWarpSize == 0) {
        mbar_arrive(shared.empty(ring.stage));
    }
#endif
}

// Where a warpgroup of a block keeps its sums of a shared unit. A block has two slots: it may hold
// the end of one unit and the start of the next.
template <bool kUp, u32 N>
DEVICE float* partials_of(const SplitGemmParams& p, u32 block, u32 first_block, u32 group) {
    using T = Tiling<kUp, N>;
    u64 slot = (u64)block * 2 + (block == first_block ? 1 : 0);
    return p.partials + slot * T::kSlotPartials + group * T::kGroupPartials;
}

// Four sums of thread t, piece i of all it has, lie at 4 * (128 * i + t): whole lines for a warp.
DEVICE float* piece_of(float* partials, u32 piece, u32 thread) {
    return partials + (piece * kGroupThreads + thread) * 4;
}

template <u32 N>
DEVICE void store_piece(float* to, const float (&sums)[N], u32 i) {
    st_global(to, u32x4{float_bits(sums[i]), float_bits(sums[i + 1]), float_bits(sums[i + 2]),
                        float_bits(sums[i + 3])});
}

template <u32 N>
DEVICE void add_piece(float (&sums)[N], u32 i, const float* from) {
    u32x4 v = ld_global(from);
    sums[i] = add_rn(sums[i], bits_float(v.x));
    sums[i + 1] = add_rn(sums[i + 1], bits_float(v.y));
    sums[i + 2] = add_rn(sums[i + 2], bits_float(v.z));
    sums[i + 3] = add_rn(sums[i + 3], bits_float(v.w));
}

// Writes this warpgroup's part of a shared unit; the last of the unit's blocks to come then holds
// the sum of all parts, added in order of depth whoever is last, and gets true.
template <bool kUp, u32 N>
DEVICE bool join_parts(Sums<N>& sums, const SplitGemmParams& p, const Segment& segment,
                       u32* arrived, u32 group, u32 thread) {
    using T = Tiling<kUp, N>;
    constexpr u32 kPieces = N / 8;
    float* own = partials_of<kUp, N>(p, block_index(), segment.first_block, group);
#pragma unroll
    for (u32 half = 0; half < T::kSums; ++half) {
#pragma unroll
        for (u32 i = 0; i < kPieces; ++i) {
            store_piece(piece_of(own, half * kPieces + i, thread), sums.half[half], 4 * i);
        }
    }
    named_sync(kGroupBarrier + group, kGroupThreads);
    if (thread == 0) {
        u32* ticket = p.tickets + segment.first_block * kConsumerGroups + group;
        u32 before = atom_add_acq_rel_gpu(ticket, 1);
#ifndef MUTANT_TICKET_NOT_RESET
        if (before + 1 == segment.blocks) {
            st_release_gpu(ticket, 0);
        }
#endif
        *arrived = before + 1;
    }
    named_sync(kGroupBarrier + group, kGroupThreads);
    if (*arrived != segment.blocks) {
        return false;
    }
    sums.clear();
    for (u32 b = 0; b < segment.blocks; ++b) {
        u32 block = segment.first_block + b;
        float* part = partials_of<kUp, N>(p, block, segment.first_block, group);
#pragma unroll
        for (u32 half = 0; half < T::kSums; ++half) {
#pragma unroll
            for (u32 i = 0; i < kPieces; ++i) {
                add_piece(sums.half[half], 4 * i, piece_of(part, half * kPieces + i, thread));
            }
        }
    }
    return true;
}

// Two values of the output that lie in neighbouring tokens.
template <bool kUp, u32 N>
DEVICE u32 output_pair(const Sums<N>& sums, u32 i, bool gate_first) {
    if constexpr (kUp) {
#ifdef MUTANT_SWAPPED_GATE_UP
        gate_first = !gate_first;
#endif
        float gate_low = gate_first ? sums.half[0][i] : sums.half[1][i];
        float gate_high = gate_first ? sums.half[0][i + 1] : sums.half[1][i + 1];
        float up_low = gate_first ? sums.half[1][i] : sums.half[0][i];
        float up_high = gate_first ? sums.half[1][i + 1] : sums.half[0][i + 1];
        return pack_bf16x2(swiglu(gate_low, up_low), swiglu(gate_high, up_high));
    } else {
        return pack_bf16x2(sums.half[0][i], sums.half[0][i + 1]);
    }
}

// Turns the sums, weight rows by tokens, into rows of the output: stmatrix.trans writes the eight
// weight rows of a matrix as one 16-byte chunk of a token's row in the staging buffer, swizzled
// like the tiles so that neither side meets bank conflicts.
template <bool kUp, u32 N>
DEVICE void stage_rows(const Sums<N>& sums, u32 staging, bool gate_first, u32 thread) {
    u32 lane = thread % kWarpSize;
    u32 warp = thread / kWarpSize;
    // The matrix that this lane gives a row of: bit 0 is its 8 weight rows, bit 1 its 8 tokens.
    u32 matrix = lane / 8;
    u32 chunk = 2 * warp + (matrix & 1);
    u32 token = lane & 7;
    u32 place = staging + token * kRowBytes + ((chunk ^ token) * kChunkBytes);
    if constexpr (N == 8) {
        u32 pairs[2] = {output_pair<kUp, N>(sums, 0, gate_first),
                        output_pair<kUp, N>(sums, 2, gate_first)};
        stmatrix_x2_trans(place, pairs);
    } else {
        place += (matrix >> 1) * 8 * kRowBytes;
#pragma unroll
        for (u32 i = 0; i < N / 2; i += 8) {
            u32 pairs[4] = {output_pair<kUp, N>(sums, i, gate_first),
                            output_pair<kUp, N>(sums, i + 2, gate_first),
                            output_pair<kUp, N>(sums, i + 4, gate_first),
                            output_pair<kUp, N>(sums, i + 6, gate_first)};
            stmatrix_x4_trans(place + i / 8 * 16 * kRowBytes, pairs);
        }
    }
}

// Writes one unit's 64 columns of this warpgroup, in 16-byte chunks, whole 128-byte lines a row.
template <bool kUp, u32 N>
DEVICE void store_unit(const Sums<N>& sums, const GemmParams& g, const Tile& tile, u32 column0,
                       u32 staging, u32 group, u32 thread) {
    // All threads have read the rows of the unit before.
    named_sync(kGroupBarrier + group, kGroupThreads);
    stage_rows<kUp, N>(sums, staging, g.gate_first != 0, thread);
    named_sync(kGroupBarrier + group, kGroupThreads);
#pragma unroll
    for (u32 i = thread; i < N * kChunks; i += kGroupThreads) {
        u32 token = i / kChunks;
        u32 chunk = i % kChunks;
        u32 column = column0 + chunk * (kChunkBytes / (u32)sizeof(bf16));
        u32x4 v = ld_shared(staging + token * kRowBytes + ((chunk ^ (token & 7)) * kChunkBytes));
        // Zero times an infinite weight is not zero, and rows without a pair are promised to be.
        if (token >= (u32)tile.rows) {
            v = u32x4{0, 0, 0, 0};
        }
        if (column < g.columns) {
            st_global(g.out + ((u64)(u32)tile.row0 + token) * g.columns + column, v);
        }
    }
}

template <bool kUp, u32 N>
DEVICE void consume(const SplitGemmParams& p, const Shared<kUp, N>& shared, u32 group,
                    u32 thread) {
    using T = Tiling<kUp, N>;
    u32 staging = shared.staging(group);
    Walk walk = walk_of<kUp, N>(p);
    Segment segment;
    Ring ring;
    while (walk.next(segment)) {
        // Read long before its use at the end.
        Tile tile = p.gemm.tiles[segment.tile];
        Sums<N> sums;
        sums.clear();
#pragma unroll 1
        for (u32 step = segment.first; step < segment.end; ++step) {
            multiply_stage<kUp, N>(sums, shared, ring, group);
            ring.advance<T::kStages>();
        }
        if constexpr (!kUp) {
#pragma unroll
            for (u32 i = 0; i < N / 2; ++i) {
                sums.half[0][i] = add_rn(sums.half[0][i], sums.half[1][i]);
            }
        }
        if (segment.blocks > 1 && !join_parts<kUp, N>(sums, p, segment, shared.tickets + group,
                                                      group, thread)) {
            continue;
        }
        u32 column0 = segment.row_block * kBlockRows + group * kGroupRows;
        store_unit<kUp, N>(sums, p.gemm, tile, column0, staging, group, thread);
    }
}

// ---- roles --------------------------------------------------------------------------------------

// Warps 0-7 multiply, warp 8 asks for weights, the warps after it gather tokens.
template <bool kUp, u32 N>
DEVICE void run(const TensorMap& weights, const TensorMap& tokens, const SplitGemmParams& p) {
    Shared<kUp, N> shared;
    u32 warp = thread_index() / kWarpSize;
    if (thread_index() == 0) {
        shared.init_barriers();
    }
    if (thread_index() == kConsumerWarps * kWarpSize) {
        prefetch_map(weights);
        if constexpr (!kUp) {
            prefetch_map(tokens);
        }
    }
    block_sync();
    griddep_wait();
    griddep_launch();
    if (warp < kConsumerWarps) {
        // Through a shuffle, so that the compiler knows it is one value a warp.
        u32 group = shfl(kFullWarp, warp / (kGroupThreads / kWarpSize), 0);
        consume<kUp, N>(p, shared, group, thread_index() % kGroupThreads);
    } else if (warp == kConsumerWarps) {
        if (thread_index() % kWarpSize == 0) {
            load_weights<kUp, N>(weights, tokens, p, shared);
        }
    } else if constexpr (kUp) {
        gather_tokens<N>(p, shared, thread_index() - (kConsumerWarps + 1) * kWarpSize);
    }
}

}  // namespace swap_ab_sm90

#define SWAP_AB_SM90(n)                                                                     \
    KERNEL((swap_ab_sm90::Tiling<true, n>::kThreads), 1)                                    \
    swap_ab_sm90_bf16_up_n##n(GRID_CONSTANT TensorMap w13, GRID_CONSTANT SplitGemmParams p) { \
        swap_ab_sm90::run<true, n>(w13, w13, p);                                            \
    }                                                                                       \
    KERNEL((swap_ab_sm90::Tiling<false, n>::kThreads), 1)                                   \
    swap_ab_sm90_bf16_down_n##n(GRID_CONSTANT TensorMap w2, GRID_CONSTANT TensorMap h,      \
                                GRID_CONSTANT SplitGemmParams p) {                          \
        swap_ab_sm90::run<false, n>(w2, h, p);                                              \
    }
SWAP_AB_SM90(8)
SWAP_AB_SM90(16)
SWAP_AB_SM90(32)
SWAP_AB_SM90(64)
