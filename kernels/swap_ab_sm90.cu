// Decode on Hopper with the operands swapped: the weights are the M operand of wgmma and the tokens
// its N operand, for experts of 2 to 64 rows. A decode step is paced by the weight stream; with the
// tokens as N, 8 tokens cost 8 columns and are not padded to 64 rows, so that the tensor cores and
// their reads of shared memory stay far below what memory delivers.
//
//   swap_ab_sm90_bf16_up_n{8,16,32,64}    h = silu(x w_gate^T) * (x w_up^T), x gathered by pair
//   swap_ab_sm90_bf16_down_n{8,16,32,64}  y = h w2^T
//   swap_ab_sm90_e4m3_..                  the same with weights of 8 bits, in blocks of 128 x 128
//                                         that share an f32 scale; x, h and y stay bf16
//
// Unit of work: one tile of the table (N = block_m rows of one expert) times 128 columns of the
// output. A stage of the ring is 32 KB of weights: for `up` 128 gate and 128 up rows of 128 bytes
// along the depth (64 bf16, 128 e4m3), for `down` 128 rows of 256 bytes; both as two halves of
// [128 rows][128 bytes] in shared memory. Each of the two consumer warpgroups multiplies 64 rows of
// either half by all tokens, into one accumulator a half: `up` then holds gate and up of an element
// in the same register of the same thread, so that SwiGLU needs no exchange; `down` adds its two.
//
// e4m3 is widened to bf16 in registers, which is exact, and wgmma takes the weights from there. The
// products of a half of a stage have one scale: they are summed on their own, and scaled in f32
// when they are added to the sums of the unit. Activations are not quantised.
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
// to `partials`, and the last to finish a unit, by ticket, adds them in order of depth. Blocks
// never wait for each other. Results are the same in every run with the same grid, tile table and
// shape; another grid may split elsewhere and round differently.
//
// The narrower tile of 64 + 64 rows, whose warpgroups would split the depth, is not here: splitting
// the depth between blocks fills idle multiprocessors better (any number of them) with one source.
//
// Launch contract
//   grid     any; meant: the number of multiprocessors. One block fits a multiprocessor
//   block and dynamic shared memory (`Tiling<..>::kThreads`, `kSharedBytes`), with the stages that
//   these bytes hold. Bytes = 1024 + stages * (32768 + 128 * N * t) + 256 * N + 16 * stages + 8,
//   where t, the token tiles of a stage, is 1 for bf16 up, 2 for bf16 down and e4m3 up, 4 for e4m3
//   down:
//                     n8               n16              n32              n64
//     bf16 up     352 205,928 6    416 214,120 6    416 230,504 6    416 222,296 5
//     bf16 down   288 212,072 6    288 226,408 6    288 214,104 5    288 214,088 4
//     e4m3 up     320 212,072 6    384 226,408 6    384 214,104 5    384 214,088 4
//     e4m3 down   384 224,360 6    384 210,008 5    384 205,896 4    384 214,072 3
//   align    block_m = N
//   maps     128-byte swizzle, zero fill, innermost dimension first
//     bf16 up     w13 (H, I, 2, E) box {64, 128, 2, 1}
//     bf16 down   w2 (I, H, E) box {64, 128, 1}, then h (I, capacity_rows) box {64, N}
//     e4m3 up     w13 as bytes (H, I, 2, E) box {128, 128, 2, 1}
//     e4m3 down   w2 as bytes (I, H, E) box {128, 128, 1}
//   params   SplitGemmParams: gemm.{out, header, tiles, columns, depth}; up also gemm.{a, a_stride,
//            sorted_pairs, top_k, gate_first}; e4m3 also gemm.b_scale, and for down gemm.a = h, its
//            rows `depth` apart; the rest of gemm is not read. `partials` null switches the
//            sharing of units off; else 2 * grid * 256 * N floats, 16-byte aligned, and `tickets`
//            2 * grid zeros, which are zeros again when the launch ends
//   needs    columns a multiple of 8, depth one of 8 (bf16) or 16 (e4m3); `a` and `out` 16-byte
//            aligned; grid * depth / 64 below 2^32; sm_90a. NaN codes of e4m3 are read as 480
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
// A swizzled row: 64 bf16 or 128 e4m3, in 8 chunks.
constexpr u32 kRowBytes = 128;
constexpr u32 kChunkBytes = 16;
constexpr u32 kChunks = kRowBytes / kChunkBytes;
constexpr u32 kChunkTokens = kChunkBytes / (u32)sizeof(bf16);
// Depth of one token tile, and of one wgmma, which takes two chunks of it.
constexpr u32 kTokenDepth = kRowBytes / (u32)sizeof(bf16);
constexpr u32 kWgmmaDepth = 16;
constexpr u32 kWgmmaBytes = kWgmmaDepth * (u32)sizeof(bf16);
// Rows and columns of weights that share a scale (e4m3): those of a block, and of a swizzled row.
constexpr u32 kScaleBlock = 128;
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
// Registers of a gathering and of a consuming thread where they are moved: 504 in all for the three
// warpgroups, of which each starts with 168.
constexpr u32 kGatherRegisters = 104;
constexpr u32 kConsumerRegisters = 200;
// Barrier of consumer warpgroup 0; its neighbour takes the next. 0 is block_sync's.
constexpr u32 kGroupBarrier = 1;
constexpr u32 kMaxSharedBytes = 227 * 1024;

static_assert(kBlockRows == kConsumerGroups * kGroupRows, "each warpgroup takes one m64 product");
static_assert(kGatherRegisters + kConsumerGroups * kConsumerRegisters <= 65536 / kGroupThreads,
              "registers that are moved are there");
static_assert(kScaleBlock == kBlockRows && kScaleBlock == kRowBytes,
              "a half of a stage of e4m3 has one scale");

// Most stages that fit beside `other` bytes, at most 6: more would not raise the rate.
constexpr u32 stages_that_fit(u32 stage, u32 other) {
    u32 stages = (kMaxSharedBytes - other) / stage;
    return stages < 6 ? stages : 6;
}

template <bool kIsUp, bool kIsFp8, u32 N>
struct Tiling {
    static constexpr bool kUp = kIsUp;
    static constexpr bool kFp8 = kIsFp8;
    static constexpr u32 kTokens = N;
    // Depth of a stage, and its tokens: tiles [N][64].
    static constexpr u32 kRowDepth = kFp8 ? kRowBytes : kRowBytes / (u32)sizeof(bf16);
    static constexpr u32 kDepth = kUp ? kRowDepth : kHalves * kRowDepth;
    static constexpr u32 kTokenTiles = kDepth / kTokenDepth;
    static constexpr u32 kTokenBytes = N * kRowBytes;
    static constexpr u32 kStageBytes = kWeightBytes + kTokenTiles * kTokenBytes;
    static constexpr u32 kStagingBytes = kTokenBytes;
    // 256 bytes are more than all barriers and tickets take.
    static constexpr u32 kStages =
        stages_that_fit(kStageBytes, 1024 + kConsumerGroups * kStagingBytes + 256);
    static constexpr u32 kSharedBytes = 1024 + kStages * kStageBytes +
                                        kConsumerGroups * kStagingBytes +
                                        2 * kStages * (u32)sizeof(u64) +
                                        kConsumerGroups * (u32)sizeof(u32);
    // Warps that gather tokens: `down` in bf16 has none, since its rows come by TMA; the others
    // have a piece of each stage for every thread, and four warps at most.
    static constexpr u32 kPieces = kFp8 ? N * kDepth / kWgmmaDepth : N * kChunks;
    static constexpr u32 kGatherWarps =
        !kUp && !kFp8 ? 0 : (kPieces / kWarpSize < 4 ? kPieces / kWarpSize : 4);
    // In bf16 a warp of its own asks for weights. In e4m3 the first gathering warp does it too:
    // more than 12 warps would leave consumers 128 registers, and they need up to 168.
    static constexpr u32 kWeightWarps = kFp8 ? 0 : 1;
    static constexpr u32 kThreads = (kConsumerWarps + kWeightWarps + kGatherWarps) * kWarpSize;
    // A stage is full when the copies of the weights' thread have landed and every gathering warp
    // has handed over its rows.
    static constexpr u32 kFullArrivals = 1 + kGatherWarps;
    // At N = 64 consumers of e4m3 hold 96 sums and 32 registers of widened weights: more than an
    // equal share of the registers lets them. The gathering warpgroup gives up what it can.
    static constexpr bool kMovesRegisters = kFp8 && N == 64;
    // f32 sums of one warpgroup that go to `partials`: gate and up, or one product.
    static constexpr u32 kSums = kUp ? 2 : 1;
    static constexpr u32 kGroupPartials = kSums * kGroupRows * N;
    static constexpr u32 kSlotPartials = 256 * N;

    static_assert(N == 8 || N == 16 || N == 32 || N == 64, "the widths that are built");
    static_assert(kStageBytes % 1024 == 0, "swizzled tiles start at multiples of 1024 bytes");
    static_assert(kSharedBytes <= kMaxSharedBytes, "the ring fits the shared memory of a block");
    static_assert(kStages > kGatherLag, "a lag of the whole ring would wait for itself");
    static_assert(kDepth % kTokenDepth == 0, "a stage has whole token tiles");
    static_assert(kThreads <= (kFp8 ? 384 : 416), "consumers keep their registers");
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
};

// Blocks [first, first + count) share a unit.
struct Sharers {
    u32 first;
    u32 count;
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
        total_ = rest_ * steps;
        parts_ = rest_;
        if (may_split && rest_ > 0 && steps >= kMinPartSteps) {
            u32 parts = min_of(blocks, total_ / kMinPartSteps);
            u32 shared = ceil_div(total_, parts) + kJoinSteps;
            if (shared * kLoneSpeedup < steps) {
                parts_ = parts;
            }
        }
        if (block_index() < parts_) {
            position_ = (u32)((u64)total_ * block_index() / parts_);
            end_ = (u32)((u64)total_ * (block_index() + 1) / parts_);
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
        wave_ += 1;
        return true;
    }

    DEVICE bool is_shared(const Segment& segment) const {
        return segment.end - segment.first < steps_;
    }

    // Who shares the unit of a segment that is shared.
    DEVICE Sharers sharers(const Segment& segment) const {
        u32 start = (segment.row_block * tiles_ + segment.tile) * steps_;
        u32 first = owner(start);
        return Sharers{first, owner(start + steps_ - 1) - first + 1};
    }

private:
    // Tiles fastest: those of one expert are neighbours and read the same weights.
    DEVICE void place(Segment& segment, u32 unit) {
        segment.tile = unit % tiles_;
        segment.row_block = unit / tiles_;
    }

    DEVICE void next_part(Segment& segment) {
        u32 unit = position_ / steps_;
        u32 start = unit * steps_;
        u32 stop = min_of(start + steps_, end_);
        place(segment, unit);
        segment.first = position_ - start;
        segment.end = stop - start;
        position_ = stop;
    }

    // The block whose part holds this step: the last whose first step, total * block / parts
    // rounded down, is not beyond it.
    DEVICE u32 owner(u32 step) const {
        return (u32)(((u64)(step + 1) * parts_ - 1) / total_);
    }

    u32 tiles_;
    u32 steps_;
    u32 rest_;
    u32 waves_;
    u32 wave_ = 0;
    u32 parts_;
    // Steps of the units that do not fill a wave: fewer than blocks times steps, far below 2^32.
    u32 total_;
    u32 position_ = 0;
    u32 end_ = 0;
};

// The block's shared memory as addresses.
template <class T>
struct Shared {
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
    DEVICE void wait_empty([[maybe_unused]] const Ring& ring) const {
#ifndef MUTANT_NO_EMPTY_WAIT
        // A fresh barrier lets the parity of the phase before its first pass.
        mbar_wait(empty(ring.stage), ring.parity ^ 1);
#endif
    }
    DEVICE void wait_full([[maybe_unused]] const Ring& ring) const {
#ifndef MUTANT_NO_FULL_WAIT
        mbar_wait(full(ring.stage), ring.parity);
#endif
    }
};

template <class T>
DEVICE Walk walk_of(const SplitGemmParams& p) {
    u32 tiles = p.gemm.header->num_tiles;
#ifdef MUTANT_DROPPED_LAST_TILE
    tiles -= tiles > 0 ? 1 : 0;
#endif
#ifdef MUTANT_DROPPED_K_TAIL
    u32 steps = p.gemm.depth / T::kDepth;
#else
    u32 steps = ceil_div(p.gemm.depth, T::kDepth);
#endif
    return Walk(tiles, ceil_div(p.gemm.columns, kBlockRows), steps, p.partials != nullptr);
}

// ---- producers ----------------------------------------------------------------------------------

// Asks for one stage: its weights, and for `down` in bf16 its tokens, which lie in a row.
template <class T>
DEVICE void load_stage(const TensorMap& weights, const TensorMap& tokens, u32 to, u32 full,
                       const Tile& tile, i32 row, i32 depth) {
    u64 once = policy_evict_first();
    if constexpr (T::kUp) {
        mbar_arrive_expect_tx(full, kWeightBytes);
        tma_load_4d(to, weights, full, once, depth, row, 0, tile.expert);
        return;
    }
    mbar_arrive_expect_tx(full, T::kFp8 ? kWeightBytes : T::kStageBytes);
    // The second half may lie wholly beyond the depth: then it is zeros.
#pragma unroll
    for (u32 half = 0; half < kHalves; ++half) {
        i32 column = depth + (i32)(half * T::kRowDepth);
        tma_load_3d(to + half * kHalfBytes, weights, full, once, column, row, tile.expert);
        if constexpr (!T::kFp8) {
            tma_load_2d(to + kWeightBytes + half * T::kTokenBytes, tokens, full,
                        policy_evict_last(), column, tile.row0);
        }
    }
}

// The one thread that asks for weights.
template <class T>
DEVICE void load_weights(const TensorMap& weights, const TensorMap& tokens,
                         const SplitGemmParams& p, const Shared<T>& shared) {
    Walk walk = walk_of<T>(p);
    Segment segment;
    Ring ring;
    while (walk.next(segment)) {
        Tile tile = p.gemm.tiles[segment.tile];
        i32 row = (i32)(segment.row_block * kBlockRows);
#pragma unroll 1
        for (u32 step = segment.first; step < segment.end; ++step) {
            shared.wait_empty(ring);
            load_stage<T>(weights, tokens, shared.weights(ring.stage), shared.full(ring.stage),
                          tile, row, (i32)(step * T::kDepth));
            ring.advance<T::kStages>();
        }
    }
}

// Makes the rows that this warp copied visible to wgmma, and hands over their stage.
template <class T>
DEVICE void hand_over(const Shared<T>& shared, Ring& ring) {
#ifndef MUTANT_NO_PROXY_FENCE
    fence_proxy_async();
#endif
    warp_sync(kFullWarp);
    if (thread_index() % kWarpSize == 0) {
        mbar_arrive(shared.full(ring.stage));
    }
    ring.advance<T::kStages>();
}

// Row `row` of the tile among the inputs; null where it holds no pair.
template <class T>
DEVICE const bf16* token_row(const GemmParams& g, const Tile& tile, u32 row) {
    if (row >= (u32)tile.rows) {
        return nullptr;
    }
    if constexpr (T::kUp) {
        u32 pair = (u32)g.sorted_pairs[tile.row0 + (i32)row];
        return g.a + (u64)(pair / g.top_k) * g.a_stride;
    } else {
        return g.a + ((u64)(u32)tile.row0 + row) * g.depth;
    }
}

// The gathering warps of `up` in bf16: thread i copies chunk i % 8 of row i / 8, and of every row
// that follows at the distance of all threads' rows. Rows without a pair, and what lies beyond the
// depth, are zeros.
template <class T>
DEVICE void gather_tokens(const SplitGemmParams& p, const Shared<T>& shared, u32 thread) {
    constexpr u32 kRows = T::kGatherWarps * kWarpSize / kChunks;
    constexpr u32 kCopies = T::kTokens / kRows;
    static_assert(kCopies * kRows == T::kTokens, "all gathering threads copy equally");
    static_assert(kRows % 8 == 0, "a thread's rows are swizzled alike");

    const GemmParams& g = p.gemm;
    u32 chunk = thread % kChunks;
    u32 row = thread / kChunks;
    u32 place = row * kRowBytes + ((chunk ^ (row & 7)) * kChunkBytes);
    Walk walk = walk_of<T>(p);
    Segment segment;
    Ring ring;
    Ring behind;
    u32 lag = 0;
    while (walk.next(segment)) {
        Tile tile = g.tiles[segment.tile];
        const bf16* source[kCopies];
#pragma unroll
        for (u32 i = 0; i < kCopies; ++i) {
            source[i] = token_row<T>(g, tile, row + i * kRows);
        }
#pragma unroll 1
        for (u32 step = segment.first; step < segment.end; ++step) {
            shared.wait_empty(ring);
            u32 depth = step * T::kDepth + chunk * kChunkTokens;
            bool inside = depth < g.depth;
#pragma unroll
            for (u32 i = 0; i < kCopies; ++i) {
                bool copied = inside && source[i] != nullptr;
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

// A thread's tokens of one stage of e4m3: 16 values along the depth of each of its rows.
template <u32 kCopies>
struct Piece {
    u32x4 low[kCopies];
    u32x4 high[kCopies];
};

template <u32 kCopies>
DEVICE void load_piece(Piece<kCopies>& piece, const bf16* const (&source)[kCopies], u32 depth,
                       bool inside) {
#pragma unroll
    for (u32 i = 0; i < kCopies; ++i) {
        bool copied = inside && source[i] != nullptr;
        piece.low[i] = copied ? ld_readonly(source[i] + depth) : u32x4{0, 0, 0, 0};
        piece.high[i] = copied ? ld_readonly(source[i] + depth + kChunkTokens) : u32x4{0, 0, 0, 0};
    }
}

template <u32 kCopies>
DEVICE void store_piece_permuted(const Piece<kCopies>& piece, u32 to, u32 stride) {
#pragma unroll
    for (u32 i = 0; i < kCopies; ++i) {
        const u32x4& low = piece.low[i];
        const u32x4& high = piece.high[i];
        // The next chunk of the swizzled row differs in one bit.
        u32 next = (to + i * stride) ^ kChunkBytes;
#ifdef MUTANT_TOKENS_IN_ORDER
        st_shared(to + i * stride, low);
        st_shared(next, high);
#else
        st_shared(to + i * stride, u32x4{low.x, low.z, high.x, high.z});
        st_shared(next, u32x4{low.y, low.w, high.y, high.w});
#endif
    }
}

// The gathering warps of e4m3. A lane that reads e4m3 by ldmatrix gets depths 4 t to 4 t + 3 of
// each 16, where wgmma wants 2 t, 2 t + 1, 2 t + 8 and 2 t + 9 of it. The sum does not mind the
// order of the depth, so the tokens are stored in the order that makes the lane's four the wanted
// ones: of each 16, first the even pairs and then the odd pairs. Hence through registers; they are
// loaded before the wait for their stage, so that the latency passes while the ring is full. Thread
// 0 asks for weights, too.
template <class T>
DEVICE void gather_permuted(const TensorMap& weights, const SplitGemmParams& p,
                            const Shared<T>& shared, u32 thread) {
    constexpr u32 kAcross = T::kDepth / kWgmmaDepth;
    constexpr u32 kRows = T::kGatherWarps * kWarpSize / kAcross;
    constexpr u32 kCopies = T::kTokens / kRows;
    static_assert(kCopies * kRows == T::kTokens, "all gathering threads copy equally");
    static_assert(kRows % 8 == 0, "a thread's rows are swizzled alike");

    const GemmParams& g = p.gemm;
    u32 across = thread % kAcross;
    u32 row = thread / kAcross;
    u32 chunk = across * kWgmmaDepth % kTokenDepth / kChunkTokens;
    u32 place = across * kWgmmaDepth / kTokenDepth * T::kTokenBytes + row * kRowBytes +
                ((chunk ^ (row & 7)) * kChunkBytes);
    Walk walk = walk_of<T>(p);
    Segment segment;
    Ring ring;
    while (walk.next(segment)) {
        Tile tile = g.tiles[segment.tile];
        i32 weight_row = (i32)(segment.row_block * kBlockRows);
        const bf16* source[kCopies];
#pragma unroll
        for (u32 i = 0; i < kCopies; ++i) {
            source[i] = token_row<T>(g, tile, row + i * kRows);
        }
#pragma unroll 1
        for (u32 step = segment.first; step < segment.end; ++step) {
            Piece<kCopies> piece;
            u32 depth = step * T::kDepth + across * kWgmmaDepth;
            load_piece<kCopies>(piece, source, depth, depth < g.depth);
            shared.wait_empty(ring);
            if (thread == 0) {
                load_stage<T>(weights, weights, shared.weights(ring.stage),
                              shared.full(ring.stage), tile, weight_row,
                              (i32)(step * T::kDepth));
            }
            store_piece_permuted<kCopies>(piece, shared.tokens(ring.stage) + place,
                                          kRows * kRowBytes);
            hand_over(shared, ring);
        }
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

// One arrival a warp: the wait for its wgmma is a warp's own, and warps need not finish together.
template <class T>
DEVICE void release_stage(const Shared<T>& shared, const Ring& ring) {
    if (thread_index() % kWarpSize == 0) {
        mbar_arrive(shared.empty(ring.stage));
    }
}

// Adds one stage of bf16: 64 rows of either half of the weights by the tokens.
template <class T>
DEVICE void multiply_stage(Sums<T::kTokens>& sums, const Shared<T>& shared, const Ring& ring,
                           u32 group) {
    u64 weights = wgmma_descriptor(shared.weights(ring.stage) + group * kGroupRows * kRowBytes);
    u64 tokens = wgmma_descriptor(shared.tokens(ring.stage));
    shared.wait_full(ring);
    sums.fence();
    wgmma_fence();
#pragma unroll
    for (u32 k = 0; k < kTokenDepth / kWgmmaDepth; ++k) {
#pragma unroll
        for (u32 half = 0; half < kHalves; ++half) {
            // Descriptors count in 16 bytes; the sum stays in their address field.
            u32 token_tile = T::kUp ? 0 : half * T::kTokenBytes;
            wgmma_bf16<T::kTokens>(sums.half[half],
                                   weights + (half * kHalfBytes + k * kWgmmaBytes) / 16,
                                   tokens + (token_tile + k * kWgmmaBytes) / 16, 1);
        }
    }
    wgmma_commit();
#ifdef MUTANT_RELEASE_BEFORE_WAIT
    release_stage(shared, ring);
#endif
    wgmma_wait<0>();
    sums.fence();
#ifndef MUTANT_RELEASE_BEFORE_WAIT
    release_stage(shared, ring);
#endif
}

// Two e4m3, in the high bytes of either half, to bf16. Their exponent and mantissa lie at the same
// place of a bf16 that is 2^120 times smaller, subnormals included. The codes of NaN become 480.
DEVICE u32 widen_pair(u32 bytes) {
    constexpr u32 kTwoTo120 = 0x7b807b80;
    return mul_bf16x2((bytes & 0x80008000u) | ((bytes & 0x7f007f00u) >> 4), kTwoTo120);
}

// Four e4m3 to two pairs of bf16: bytes 0 and 1, bytes 2 and 3.
DEVICE void widen_e4m3(u32 bytes, u32& low, u32& high) {
    low = widen_pair(((bytes & 0x000000ffu) << 8) | ((bytes & 0x0000ff00u) << 16));
    high = widen_pair(((bytes & 0x00ff0000u) >> 8) | (bytes & 0xff000000u));
}

// Widens 16 rows by 16 `kSteps` of the weights to the registers that wgmma takes them from.
// Register a[k][i] is that of mma.sync's a, with the depth in the order in which tokens are stored.
template <u32 kSteps>
DEVICE void widen_rows(u32 (&a)[kSteps][4], u32 weights, u32 row, u32 lane) {
#pragma unroll
    for (u32 k = 0; k < kSteps; k += 2) {
        // Matrices: rows 0-7 and 8-15 of chunk k, then of chunk k + 1.
        u32 bytes[4];
        u32 chunk = k + lane / 16;
        ldmatrix_x4(bytes, weights + row * kRowBytes + ((chunk ^ (row & 7)) * kChunkBytes));
        widen_e4m3(bytes[0], a[k][0], a[k][2]);
        widen_e4m3(bytes[1], a[k][1], a[k][3]);
        widen_e4m3(bytes[2], a[k + 1][0], a[k + 1][2]);
        widen_e4m3(bytes[3], a[k + 1][1], a[k + 1][3]);
    }
}

template <u32 kCount>
DEVICE void fence_operands(float (&d)[kCount]) {
#pragma unroll
    for (u32 i = 0; i < kCount; ++i) {
        wgmma_fence_operand(d[i]);
    }
}

template <u32 kSteps>
DEVICE void fence_operands(u32 (&a)[kSteps][4]) {
#pragma unroll
    for (u32 k = 0; k < kSteps; ++k) {
#pragma unroll
        for (u32 i = 0; i < 4; ++i) {
            wgmma_fence_operand(a[k][i]);
        }
    }
}

// Products of one half of a stage of e4m3, not scaled yet.
template <class T>
DEVICE void multiply_half(float (&products)[T::kTokens / 2], u32 weights, u64 tokens, u32 row,
                          u32 lane) {
    constexpr u32 kSteps = kScaleBlock / kWgmmaDepth;
    u32 a[kSteps][4];
    widen_rows<kSteps>(a, weights, row, lane);
#pragma unroll
    for (u32 i = 0; i < T::kTokens / 2; ++i) {
        products[i] = 0.0f;
    }
    fence_operands(products);
    // The widened weights as well: nothing else ties their registers to the fence.
    fence_operands(a);
    wgmma_fence();
#pragma unroll
    for (u32 k = 0; k < kSteps; ++k) {
        u32 depth = k * kWgmmaDepth;
        u32 place = depth / kTokenDepth * T::kTokenBytes +
                    depth % kTokenDepth * (u32)sizeof(bf16);
        wgmma_bf16_rs<T::kTokens>(products, a[k], tokens + place / 16, 1);
    }
    wgmma_commit();
    wgmma_wait<0>();
    fence_operands(products);
}

// Scales of a unit of e4m3: of its rows along the depth, for `up` those of the first half.
template <class T>
DEVICE const float* scales_of(const GemmParams& g, const Segment& segment, i32 expert) {
    u64 matrix = T::kUp ? (u64)(u32)expert * kHalves : (u64)(u32)expert;
    u64 row = matrix * ceil_div(g.columns, kScaleBlock) + segment.row_block;
    return g.b_scale + row * ceil_div(g.depth, kScaleBlock);
}

// Scale of one half of a stage. Beyond the depth, where the products are zeros, 0.
template <class T>
DEVICE float scale_at(const GemmParams& g, const float* scales, u32 step, u32 half) {
    u32 depth_blocks = ceil_div(g.depth, kScaleBlock);
#ifdef MUTANT_FIRST_SCALE
    step = 0;
#endif
    if constexpr (T::kUp) {
        return scales[step + half * ceil_div(g.columns, kScaleBlock) * depth_blocks];
    } else {
        u32 block = step * kHalves + half;
        return block < depth_blocks ? scales[block] : 0.0f;
    }
}

// Adds one stage of e4m3. Scales differ by half and by stage, so that the products of each half are
// summed on their own and scaled when they are added: `up` to gate and up, `down` to one sum.
template <class T>
DEVICE void multiply_scaled_stage(Sums<T::kTokens>& sums, const Shared<T>& shared,
                                  const Ring& ring, const float (&scale)[kHalves], u32 group,
                                  u32 thread) {
    u32 lane = thread % kWarpSize;
    u32 row = group * kGroupRows + thread / kWarpSize * 16 + lane % 16;
    u64 tokens = wgmma_descriptor(shared.tokens(ring.stage));
    shared.wait_full(ring);
#ifdef MUTANT_RELEASE_BEFORE_WAIT
    release_stage(shared, ring);
#endif
#pragma unroll
    for (u32 half = 0; half < kHalves; ++half) {
        constexpr u32 kTilesOfHalf = kScaleBlock / kTokenDepth;
        u32 first_tile = T::kUp ? 0 : half * kTilesOfHalf;
        float products[T::kTokens / 2];
        multiply_half<T>(products, shared.weights(ring.stage) + half * kHalfBytes,
                         tokens + first_tile * T::kTokenBytes / 16, row, lane);
#pragma unroll
        for (u32 i = 0; i < T::kTokens / 2; ++i) {
            float& sum = sums.half[T::kUp ? half : 0][i];
            sum = fma_rn(scale[half], products[i], sum);
        }
    }
#ifndef MUTANT_RELEASE_BEFORE_WAIT
    release_stage(shared, ring);
#endif
}

// Where a warpgroup of a block keeps its sums of a shared unit. A block has two slots: it may hold
// the end of one unit and the start of the next.
template <class T>
DEVICE float* partials_of(const SplitGemmParams& p, u32 block, u32 first_block, u32 group) {
    u64 slot = (u64)block * 2 + (block == first_block ? 1 : 0);
    return p.partials + slot * T::kSlotPartials + group * T::kGroupPartials;
}

// Four sums of thread t, piece i of all it has, lie at 4 * (128 * i + t): whole lines for a warp.
DEVICE u32 piece_at(u32 piece, u32 thread) { return (piece * kGroupThreads + thread) * 4; }

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
template <class T>
DEVICE bool join_parts(Sums<T::kTokens>& sums, const SplitGemmParams& p, const Sharers& sharers,
                       u32* arrived, u32 group, u32 thread) {
    constexpr u32 kPieces = T::kTokens / 8;
    float* own = partials_of<T>(p, block_index(), sharers.first, group);
#pragma unroll
    for (u32 half = 0; half < T::kSums; ++half) {
#pragma unroll
        for (u32 i = 0; i < kPieces; ++i) {
            store_piece(own + piece_at(half * kPieces + i, thread), sums.half[half], 4 * i);
        }
    }
    named_sync(kGroupBarrier + group, kGroupThreads);
    if (thread == 0) {
        u32* ticket = p.tickets + sharers.first * kConsumerGroups + group;
        u32 before = atom_add_acq_rel_gpu(ticket, 1);
#ifndef MUTANT_TICKET_NOT_RESET
        if (before + 1 == sharers.count) {
            st_release_gpu(ticket, 0);
        }
#endif
        *arrived = before + 1;
    }
    named_sync(kGroupBarrier + group, kGroupThreads);
    if (*arrived != sharers.count) {
        return false;
    }
    sums.clear();
#pragma unroll 1
    for (u32 i = 0; i < sharers.count; ++i) {
        const float* part = partials_of<T>(p, sharers.first + i, sharers.first, group);
#pragma unroll
        for (u32 half = 0; half < T::kSums; ++half) {
#pragma unroll
            for (u32 j = 0; j < kPieces; ++j) {
                add_piece(sums.half[half], 4 * j, part + piece_at(half * kPieces + j, thread));
            }
        }
    }
    return true;
}

// Two values of the output that lie in neighbouring tokens.
template <class T>
DEVICE u32 output_pair(const Sums<T::kTokens>& sums, u32 i, bool gate_first) {
    if constexpr (T::kUp) {
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
template <class T>
DEVICE void stage_rows(const Sums<T::kTokens>& sums, u32 staging, bool gate_first, u32 thread) {
    u32 lane = thread % kWarpSize;
    u32 warp = thread / kWarpSize;
    // The matrix that this lane gives a row of: bit 0 is its 8 weight rows, bit 1 its 8 tokens.
    u32 matrix = lane / 8;
    u32 chunk = 2 * warp + (matrix & 1);
    u32 token = lane & 7;
    u32 place = staging + token * kRowBytes + ((chunk ^ token) * kChunkBytes);
    if constexpr (T::kTokens == 8) {
        u32 pairs[2] = {output_pair<T>(sums, 0, gate_first),
                        output_pair<T>(sums, 2, gate_first)};
        stmatrix_x2_trans(place, pairs);
    } else {
        place += (matrix >> 1) * 8 * kRowBytes;
#pragma unroll
        for (u32 i = 0; i < T::kTokens / 2; i += 8) {
            u32 pairs[4] = {output_pair<T>(sums, i, gate_first),
                            output_pair<T>(sums, i + 2, gate_first),
                            output_pair<T>(sums, i + 4, gate_first),
                            output_pair<T>(sums, i + 6, gate_first)};
            stmatrix_x4_trans(place + i / 8 * 16 * kRowBytes, pairs);
        }
    }
}

// Writes one unit's 64 columns of this warpgroup, in 16-byte chunks, whole 128-byte lines a row.
template <class T>
DEVICE void store_unit(const Sums<T::kTokens>& sums, const GemmParams& g, const Tile& tile,
                       u32 column0, u32 staging, u32 group, u32 thread) {
    // All threads have read the rows of the unit before.
    named_sync(kGroupBarrier + group, kGroupThreads);
    stage_rows<T>(sums, staging, g.gate_first != 0, thread);
    named_sync(kGroupBarrier + group, kGroupThreads);
#pragma unroll
    for (u32 i = thread; i < T::kTokens * kChunks; i += kGroupThreads) {
        u32 token = i / kChunks;
        u32 chunk = i % kChunks;
        u32 column = column0 + chunk * kChunkTokens;
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

template <class T>
DEVICE void consume(const SplitGemmParams& p, const Shared<T>& shared, u32 group, u32 thread) {
    u32 staging = shared.staging(group);
    Walk walk = walk_of<T>(p);
    Segment segment;
    Ring ring;
    while (walk.next(segment)) {
        const Tile& tile = p.gemm.tiles[segment.tile];
        const float* scales = T::kFp8 ? scales_of<T>(p.gemm, segment, tile.expert) : nullptr;
        Sums<T::kTokens> sums;
        sums.clear();
#pragma unroll 1
        for (u32 step = segment.first; step < segment.end; ++step) {
            if constexpr (T::kFp8) {
                float scale[kHalves] = {scale_at<T>(p.gemm, scales, step, 0),
                                        scale_at<T>(p.gemm, scales, step, 1)};
                multiply_scaled_stage<T>(sums, shared, ring, scale, group, thread);
            } else {
                multiply_stage<T>(sums, shared, ring, group);
            }
            ring.advance<T::kStages>();
        }
        if constexpr (!T::kUp && !T::kFp8) {
#pragma unroll
            for (u32 i = 0; i < T::kTokens / 2; ++i) {
                sums.half[0][i] = add_rn(sums.half[0][i], sums.half[1][i]);
            }
        }
        if (walk.is_shared(segment) && !join_parts<T>(sums, p, walk.sharers(segment),
                                                      shared.tickets + group, group, thread)) {
            continue;
        }
        u32 column0 = segment.row_block * kBlockRows + group * kGroupRows;
        store_unit<T>(sums, p.gemm, tile, column0, staging, group, thread);
    }
}

// ---- roles --------------------------------------------------------------------------------------

template <class T>
DEVICE void produce(const TensorMap& weights, const TensorMap& tokens, const SplitGemmParams& p,
                    const Shared<T>& shared, u32 thread) {
    if constexpr (T::kFp8) {
        gather_permuted<T>(weights, p, shared, thread);
    } else {
        if (thread == 0) {
            load_weights<T>(weights, tokens, p, shared);
        }
        if constexpr (T::kUp) {
            if (thread >= kWarpSize) {
                gather_tokens<T>(p, shared, thread - kWarpSize);
            }
        }
    }
}

// Warps 0-7 multiply, the first thread of warp 8 asks for weights, and the warps after it, or in
// e4m3 from it on, gather tokens.
template <class T>
DEVICE void run(const TensorMap& weights, const TensorMap& tokens, const SplitGemmParams& p) {
    Shared<T> shared;
    u32 warp = thread_index() / kWarpSize;
    if (thread_index() == 0) {
        shared.init_barriers();
    }
    if (thread_index() == kConsumerWarps * kWarpSize) {
        prefetch_map(weights);
        if constexpr (!T::kUp && !T::kFp8) {
            prefetch_map(tokens);
        }
    }
    block_sync();
    griddep_wait();
    griddep_launch();
    if (warp < kConsumerWarps) {
        if constexpr (T::kMovesRegisters) {
            setmaxnreg_inc<kConsumerRegisters>();
        }
        // Through a shuffle, so that the compiler knows it is one value a warp.
        u32 group = shfl(kFullWarp, warp / (kGroupThreads / kWarpSize), 0);
        consume<T>(p, shared, group, thread_index() % kGroupThreads);
    } else {
        if constexpr (T::kMovesRegisters) {
            setmaxnreg_dec<kGatherRegisters>();
        }
        produce<T>(weights, tokens, p, shared, thread_index() - kConsumerWarps * kWarpSize);
    }
}

}  // namespace swap_ab_sm90

#define SWAP_AB_SM90(n)                                                                       \
    KERNEL((swap_ab_sm90::Tiling<true, false, n>::kThreads), 1)                               \
    swap_ab_sm90_bf16_up_n##n(GRID_CONSTANT TensorMap w13, GRID_CONSTANT SplitGemmParams p) { \
        swap_ab_sm90::run<swap_ab_sm90::Tiling<true, false, n>>(w13, w13, p);                 \
    }                                                                                         \
    KERNEL((swap_ab_sm90::Tiling<false, false, n>::kThreads), 1)                              \
    swap_ab_sm90_bf16_down_n##n(GRID_CONSTANT TensorMap w2, GRID_CONSTANT TensorMap h,        \
                                GRID_CONSTANT SplitGemmParams p) {                            \
        swap_ab_sm90::run<swap_ab_sm90::Tiling<false, false, n>>(w2, h, p);                   \
    }                                                                                         \
    KERNEL((swap_ab_sm90::Tiling<true, true, n>::kThreads), 1)                                \
    swap_ab_sm90_e4m3_up_n##n(GRID_CONSTANT TensorMap w13, GRID_CONSTANT SplitGemmParams p) { \
        swap_ab_sm90::run<swap_ab_sm90::Tiling<true, true, n>>(w13, w13, p);                  \
    }                                                                                         \
    KERNEL((swap_ab_sm90::Tiling<false, true, n>::kThreads), 1)                               \
    swap_ab_sm90_e4m3_down_n##n(GRID_CONSTANT TensorMap w2, GRID_CONSTANT SplitGemmParams p) { \
        swap_ab_sm90::run<swap_ab_sm90::Tiling<false, true, n>>(w2, w2, p);                   \
    }
SWAP_AB_SM90(8)
SWAP_AB_SM90(16)
SWAP_AB_SM90(32)
SWAP_AB_SM90(64)
