// Grouped products of one mixture-of-experts layer on Hopper (sm_90a), for many rows an expert:
// `up` gathers rows of x, multiplies by w13 and applies SwiGLU; `down` multiplies h by w2.
// TMA and cp.async fill a ring of shared-memory stages, wgmma empties it.
//
// What it is not: the path for a handful of rows an expert (swap_ab_sm90.cu, gemv.cu), the path of
// other architectures (grouped_gemm.cu), or the sum over a token's experts (permute.cu), except for
// the `fast` kernel at the end.
//
// One block is 384 threads: warpgroup 0 produces (it requests the operands), warpgroups 1 and 2
// consume (they multiply). A consumer holds 128 f32 sums a thread, a tile of 64 x 256 or 128 x 128,
// or 192, a tile of 128 x 192 and the most that leaves room for addresses. A block's tile is
//
//   cooperative   both consumers work on one tile, on blocks of 64 rows in turn: 128 x 256,
//                 256 x 128 (each weight byte is read once for an expert of up to 256 rows) or
//                 256 x 192 (the most products a byte of L2 traffic, one stage less);
//   ping-pong     each consumer has a tile of its own, every second one: while one writes its
//                 results, the other keeps the tensor cores busy. For short sums (down with I below
//                 about 1024), where the epilogue is not small beside the loop, and for 64-row
//                 tiles. They take turns in the loop.
//
// `up` puts gate and up rows of the same columns in one stage, so that both factors of an output
// stand in one thread: SwiGLU costs no exchange.
//
// Floors (expected, not measured). Tensor cores take 1024 cycles for 128 x 256 or 256 x 128 and 64
// of depth, and the stage is 48 KB: 85 FLOP a byte that the L2 delivers, 9.4 TB/s at 800 TFLOP/s.
// 256 x 192 takes 1536 cycles for 56 KB: 110 FLOP a byte, 7.3 TB/s; ping-pong 128 x 192 needs
// 10.4 TB/s and 128 x 128 12.5, but hides its epilogue. Which of them the L2 feeds is the first
// thing to measure. The epilogue of `up` is 2 special-function results an output, 2048 cycles for
// 128 x 256, beside 64 steps for Mixtral (H 4096) and 32 for Qwen3-30B-A3B (H 2048).
//
// ---- Launch contract ---------------------------------------------------------------------------
//
//   kernel grouped_gemm_sm90_bf16_   block_m  block_n  columns  map of b        shared bytes
//   up_m128n256                      128      256      128      {64, 128, 2, 1}  230464
//   up_m128n192 (ping-pong)          128      192      96       {64, 96, 2, 1}   197696
//   up_m256n128                      256      128      64       {64, 64, 2, 1}   230464
//   up_m256n192                      256      192      96       {64, 96, 2, 1}   205872
//   up_m64n256 (ping-pong)           64       256      128      {64, 128, 2, 1}  197696
//   down_m128n256                    128      256      256      {64, 256, 1}     230464
//   down_m128n192 (ping-pong)        128      192      192      {64, 192, 1}     197696
//   down_m128n128 (ping-pong)        128      128      128      {64, 128, 1}     230496
//   down_m256n128                    256      128      128      {64, 128, 1}     230464
//   down_m256n192                    256      192      192      {64, 192, 1}     205872
//   down_m64n256 (ping-pong)         64       256      256      {64, 256, 1}     197696
//   down_fast_m128n256               128      256      256      {64, 256, 1}     222256
//
//   grid      (blocks, 1): one an SM, or fewer; any number is correct. Work is read from the header
//             and the tiles on the device: num_tiles x ceil(p.columns / columns of the table),
//             which stays below 2^31.
//   block     384 threads; dynamic shared memory as in the table (more than 48 KB: raise the
//             function's limit first); launches may be programmatic dependent ones.
//   block_m   the tile table was made by align with exactly this block_m; sorted_pairs, h and y
//             have padded_rows rows at least, segments padded to block_m.
//   maps      bf16, 128-byte swizzle, zero fill, boxes in elements, innermost dimension first:
//     up       (w13, h, GemmParams): w13 4-D {H, I, 2, E}, box from the table; h 2-D
//              {I, capacity_rows}, box {64, 64}
//     down     (w2, h, y, GemmParams): w2 3-D {I, H, E}, box from the table; h as above; y 2-D
//              {H, capacity_rows}, box {64, 64}
//     fast     (w2, h, GemmParams)
//   p         up reads a (= x), a_stride, header, tiles, sorted_pairs, columns, depth, top_k and
//             gate_first; down reads header, tiles, columns and depth; fast also sorted_pairs,
//             topk_weights, top_k, accumulate (16-byte aligned, zero or a sum to add to) and
//             accumulate_stride (a multiple of 4). b and b_scale are not read: the maps have the
//             weights. out (h, rows of I, 16-byte aligned) is used beside its map by the kernels
//             with 96 columns.
//   results   up writes each row of h of every tile, padding rows as zeros, columns below I; down
//             the same for y; fast adds weight * product to accumulate[token], in no fixed order:
//             it alone is not reproducible.
//
// Faults planted for the tests: MUTANT_NO_FULL_WAIT, MUTANT_NO_EMPTY_WAIT,
// MUTANT_RELEASE_BEFORE_WAIT, MUTANT_NO_PROXY_FENCE, MUTANT_NO_STORE_FENCE, MUTANT_NO_STORE_WAIT,
// MUTANT_SWAPPED_GATE_UP, MUTANT_DROPPED_K_TAIL, MUTANT_DROPPED_LAST_TILE, MUTANT_LAST_ROW_DROPPED,
// MUTANT_PADDING_UNWRITTEN, MUTANT_NO_TURN (ping-pong only).

#include "common.cuh"

// One producer and two consumer warpgroups: two consumers hide each other's waits, a third would
// leave 128 sums no registers.
constexpr u32 kWarpgroup = 128;
constexpr u32 kConsumers = 2;
constexpr u32 kThreads = kWarpgroup * (1 + kConsumers);
// Registers a thread after the split of what the launch gives, which is 65,536 by 384 threads in
// steps of 8. Consumers need 232 for 192 sums; producers keep two tokens and the ring.
constexpr u32 kLaunchRegisters = 168;
constexpr u32 kProducerRegisters = 40;
constexpr u32 kConsumerRegisters = 232;
static_assert(kProducerRegisters + kConsumers * kConsumerRegisters <=
                  (1 + kConsumers) * kLaunchRegisters,
              "the split asks for no more than the launch gave, or it would wait for ever");
static_assert(kProducerRegisters % 8 == 0 && kConsumerRegisters % 8 == 0,
              "setmaxnreg takes multiples of 8");

// Depth of a stage: 64 bf16 are the 128 bytes of a swizzled row, and four wgmma steps.
constexpr u32 kTileK = 64;
constexpr u32 kRowBytes = kTileK * 2;
constexpr u32 kWgmmaK = 16;
// Rows of one wgmma, and of one TMA box of activations: what one warpgroup multiplies at a time.
constexpr u32 kWgmmaM = 64;
constexpr u32 kBlockBytes = kWgmmaM * kRowBytes;
// Columns of an output box: 64 bf16 are again 128 bytes, and a store swizzled the same way is free
// of bank conflicts.
constexpr u32 kChunk = 64;
constexpr u32 kTailColumns = 32;
// Swizzle atoms are 8 rows of 128 bytes.
constexpr u32 kSwizzleAlign = 1024;
// Steps the gather has under way before it hands the oldest over. Two of them are 96 KB a block,
// more than the latency of memory asks for (3.35 TB/s for 1 us are 25 KB an SM), and the hand-over
// comes two steps before a consumer that keeps up needs it.
constexpr u32 kLag = 2;
// Row pitch of the f32 staging tile of the fast epilogue: 64 sums and 32 bytes, so that four rows
// of 8-byte stores fall into different banks; a multiple of 16 for the bulk copies.
constexpr u32 kScatterPitch = kChunk * 4 + 32;
// Opt-in shared memory of a Hopper block.
constexpr u32 kSharedLimit = 232448;

// A kernel's tile. `N` weight rows a stage, gate and up together; `M` activation rows.
template <bool UP, bool FAST, u32 M, u32 N, u32 STAGES, bool PINGPONG>
struct Tiling {
    static constexpr bool kUp = UP;
    static constexpr bool kFast = FAST;
    static constexpr bool kPingpong = PINGPONG;
    static constexpr u32 kM = M;
    static constexpr u32 kN = N;
    static constexpr u32 kStages = STAGES;
    static constexpr u32 kColumns = UP ? N / 2 : N;
    // Outputs leave in chunks of 64 columns, and what 96 leave over in one of 32.
    static constexpr u32 kChunks = kColumns / kChunk;
    static constexpr u32 kTail = kColumns % kChunk;
    // Blocks of 64 rows a consumer owns.
    static constexpr u32 kBlocks = PINGPONG ? M / kWgmmaM : M / kWgmmaM / kConsumers;
    static constexpr u32 kABytes = M * kRowBytes;
    static constexpr u32 kBBytes = N * kRowBytes;
    static constexpr u32 kStageBytes = kABytes + kBBytes;
    // Two buffers a consumer, so that one is filled while the other is being copied out.
    static constexpr u32 kBufferBytes = FAST ? kWgmmaM * kScatterPitch : kWgmmaM * kChunk * 2;
    static constexpr u32 kEpilogueBytes = kConsumers * 2 * kBufferBytes;
    static constexpr u32 kSharedBytes =
        kStages * kStageBytes + kEpilogueBytes + 2 * kStages * 8 + kSwizzleAlign;
    // The full barrier awaits the TMA announcement and, with a gather, each producer warp.
    static constexpr u32 kFullArrivals = UP ? 1 + kWarpgroup / kWarpSize : 1;
    // A stage is released by each warp that read it, and by each warp that skipped it.
    static constexpr u32 kEmptyArrivals =
        (PINGPONG ? 1 : kConsumers) * (kWarpgroup / kWarpSize);
    // Tiles along M that share their weights' way through the L2 before the next columns are
    // begun: 2048 rows, so that 132 blocks cover about as many rows as columns.
    static constexpr u32 kGroupTiles = M >= 256 ? 8 : 16;

    static_assert(kBlocks * N == 256 || kBlocks * N == 384,
                  "a consumer holds 128 or 192 sums a thread");
    static_assert(kBlocks * kWgmmaM * (PINGPONG ? 1 : kConsumers) == M,
                  "the consumers cover the rows");
    static_assert(kStageBytes % kSwizzleAlign == 0 && kABytes % kSwizzleAlign == 0 &&
                      (FAST || kBufferBytes % kSwizzleAlign == 0),
                  "operands and stores start at swizzle atoms");
    static_assert(kTail == 0 || (kTail == kTailColumns && !FAST), "the store knows this tail");
    static_assert(!UP || kLag + 1 <= kStages,
                  "a step is handed over before the producer needs the stage that waits for it");
    static_assert(kSharedBytes <= kSharedLimit, "shared memory of one block");
};

using UpM128N256 = Tiling<true, false, 128, 256, 4, false>;
using UpM128N192 = Tiling<true, false, 128, 192, 4, true>;
using UpM256N128 = Tiling<true, false, 256, 128, 4, false>;
using UpM256N192 = Tiling<true, false, 256, 192, 3, false>;
using UpM64N256 = Tiling<true, false, 64, 256, 4, true>;
using DownM128N256 = Tiling<false, false, 128, 256, 4, false>;
using DownM128N192 = Tiling<false, false, 128, 192, 4, true>;
using DownM128N128 = Tiling<false, false, 128, 128, 6, true>;
using DownM256N128 = Tiling<false, false, 256, 128, 4, false>;
using DownM256N192 = Tiling<false, false, 256, 192, 3, false>;
using DownM64N256 = Tiling<false, false, 64, 256, 4, true>;
// Three stages: the f32 staging tile takes the place of the fourth.
using DownFastM128N256 = Tiling<false, true, 128, 256, 3, false>;

static_assert(UpM128N256::kSharedBytes == 230464, "as the head comment says");
static_assert(UpM128N192::kSharedBytes == 197696, "as the head comment says");
static_assert(UpM256N128::kSharedBytes == 230464, "as the head comment says");
static_assert(UpM256N192::kSharedBytes == 205872, "as the head comment says");
static_assert(UpM64N256::kSharedBytes == 197696, "as the head comment says");
static_assert(DownM128N256::kSharedBytes == 230464, "as the head comment says");
static_assert(DownM128N192::kSharedBytes == 197696, "as the head comment says");
static_assert(DownM128N128::kSharedBytes == 230496, "as the head comment says");
static_assert(DownM256N128::kSharedBytes == 230464, "as the head comment says");
static_assert(DownM256N192::kSharedBytes == 205872, "as the head comment says");
static_assert(DownM64N256::kSharedBytes == 197696, "as the head comment says");
static_assert(DownFastM128N256::kSharedBytes == 222256, "as the head comment says");

// ---- ring of stages -----------------------------------------------------------------------------

// Place in the ring and the parity of the pass through it. Runs on across tiles.
template <u32 STAGES>
struct Ring {
    u32 stage = 0;
    u32 parity = 0;

    DEVICE void next() {
        stage += 1;
        if (stage == STAGES) {
            stage = 0;
            parity ^= 1;
        }
    }
    DEVICE void skip(u32 steps) {
        const u32 place = stage + steps;
        stage = place % STAGES;
        parity ^= (place / STAGES) & 1;
    }
};

// Shared-memory addresses of the block.
template <typename T>
struct Shared {
    u32 stages;
    u32 epilogue;
    u32 full;
    u32 empty;

    DEVICE Shared() {
        Arena arena;
        stages = smem_addr(arena.take<u8>(T::kStages * T::kStageBytes, kSwizzleAlign));
        // Stages are whole atoms, so that asking for alignment again costs no bytes.
        epilogue = smem_addr(arena.take<u8>(T::kEpilogueBytes, kSwizzleAlign));
        full = smem_addr(arena.take<u64>(T::kStages, 8));
        empty = smem_addr(arena.take<u64>(T::kStages, 8));
    }
    DEVICE u32 a(u32 stage) const { return stages + stage * T::kStageBytes; }
    DEVICE u32 b(u32 stage) const { return a(stage) + T::kABytes; }
    DEVICE u32 full_barrier(u32 stage) const { return full + 8 * stage; }
    DEVICE u32 empty_barrier(u32 stage) const { return empty + 8 * stage; }

    DEVICE void init_barriers() const {
        for (u32 stage = 0; stage < T::kStages; ++stage) {
            mbar_init(full_barrier(stage), T::kFullArrivals);
            mbar_init(empty_barrier(stage), T::kEmptyArrivals);
        }
        fence_mbar_init();
    }
    DEVICE void wait_full(const Ring<T::kStages>& ring) const {
#ifdef MUTANT_NO_FULL_WAIT
        (void)ring;
#else
        mbar_wait(full_barrier(ring.stage), ring.parity);
#endif
    }
    // The producer's first pass finds fresh barriers, which let the other parity through.
    DEVICE void wait_empty(const Ring<T::kStages>& ring) const {
#ifdef MUTANT_NO_EMPTY_WAIT
        (void)ring;
#else
        mbar_wait(empty_barrier(ring.stage), ring.parity ^ 1);
#endif
    }
    // By all lanes of a warp; one arrival.
    DEVICE void release(u32 stage) const {
        if (thread_index() % kWarpSize == 0) {
            mbar_arrive(empty_barrier(stage));
        }
    }
};

// ---- schedule -----------------------------------------------------------------------------------

// One tile of outputs.
struct Work {
    u32 expert;
    u32 row0;
    u32 rows;
    u32 column0;
};

// The launch's work in its order: within groups of tiles the rows vary fastest, so that the blocks
// that run at the same time share weights and activations in the L2.
template <typename T>
struct Schedule {
    const Tile* tiles;
    u32 num_tiles;
    u32 column_blocks;
    u32 total;
    u32 steps;  // along the depth

    DEVICE explicit Schedule(const GemmParams& p)
        : tiles(p.tiles), num_tiles(p.header->num_tiles),
          column_blocks(ceil_div(p.columns, T::kColumns)) {
#ifdef MUTANT_DROPPED_LAST_TILE
        num_tiles -= num_tiles > 0 ? 1 : 0;
#endif
#ifdef MUTANT_DROPPED_K_TAIL
        steps = max_of(p.depth / kTileK, 1u);
#else
        steps = ceil_div(p.depth, kTileK);
#endif
        total = num_tiles * column_blocks;
    }

    DEVICE Work at(u32 index) const {
        const u32 span = T::kGroupTiles * column_blocks;
        const u32 first = index / span * T::kGroupTiles;
        const u32 height = min_of(T::kGroupTiles, num_tiles - first);
        const u32 local = index % span;
        const u32x4 tile = ld_global(tiles + first + local % height);
        return Work{tile.x, tile.y, tile.z, local / height * T::kColumns};
    }
};

// Pair of row `row` of the tile, -1 past its rows.
DEVICE i32 pair_of_row(const GemmParams& p, const Work& work, u32 row) {
#ifdef MUTANT_LAST_ROW_DROPPED
    return row + 1 < work.rows ? p.sorted_pairs[work.row0 + row] : -1;
#else
    return row < work.rows ? p.sorted_pairs[work.row0 + row] : -1;
#endif
}

// First row, within the tile, of block `block` of consumer `consumer`. Cooperating consumers take
// blocks in turn: a tile with few rows is then shared as evenly as blocks of 64 allow.
template <typename T>
DEVICE u32 block_row(u32 consumer, u32 block) {
    return (T::kPingpong ? block : consumer + kConsumers * block) * kWgmmaM;
}

// ---- producers ----------------------------------------------------------------------------------

// Makes the calling warp's finished copies of a step visible to wgmma and says so. The fence is the
// writer's duty: a barrier alone orders only ordinary accesses.
DEVICE void hand_over(u32 full_barrier) {
#ifndef MUTANT_NO_PROXY_FENCE
    fence_proxy_async();
#endif
    warp_sync(kFullWarp);
    if (thread_index() % kWarpSize == 0) {
        mbar_arrive(full_barrier);
    }
}

// The gather of `up`: eight threads copy the 128 bytes of a row, so that a warp copies 4 rows and
// the warpgroup 16 in a pass. The eight need the same token, hence each lane keeps tokens of other
// rows and they are exchanged at the copy: 1 or 2 registers instead of 16.
template <typename T>
struct Gather {
    static constexpr u32 kUnits = kRowBytes / 16;
    static constexpr u32 kWarpRows = kWarpSize / kUnits;
    static constexpr u32 kPassRows = kWarpgroup / kUnits;
    static constexpr u32 kPasses = T::kM / kPassRows;
    // Passes whose tokens fit into one register of each lane.
    static constexpr u32 kLanePasses = kWarpSize / kWarpRows;
    static constexpr u32 kRegisters = ceil_div(kPasses, kLanePasses);
    static constexpr u32 kPresent = 1u << 31;
    static_assert(kPassRows % 8 == 0, "a thread has the same swizzle in each pass");
    static_assert(kWgmmaM % kPassRows == 0, "a pass lies in one block of 64 rows");

    u32 tokens[kRegisters];  // kPresent and the token, or 0 for a row without one
    u32 live_rows;           // rows of blocks that hold a row at all: nobody reads the others

    DEVICE static u32 lane() { return thread_index() % kWarpSize; }
    DEVICE static u32 row() { return thread_index() % kWarpgroup / kUnits; }
    DEVICE static u32 unit() { return thread_index() % kUnits; }

    DEVICE void find_tokens(const GemmParams& p, const Work& work) {
        live_rows = ceil_div(work.rows, kWgmmaM) * kWgmmaM;
        const u32 warp_row = thread_index() / kWarpSize * kWarpRows;
#pragma unroll
        for (u32 i = 0; i < kRegisters; ++i) {
            const u32 pass = i * kLanePasses + lane() / kWarpRows;
            const i32 pair =
                pair_of_row(p, work, pass * kPassRows + warp_row + lane() % kWarpRows);
            tokens[i] = pair < 0 ? 0 : (u32)pair / p.top_k | kPresent;
        }
    }

    // Rows without a token and columns past the depth arrive as zeros.
    DEVICE void copy(const GemmParams& p, u32 stage_address, u32 k) const {
        const u32 column = k * kTileK + unit() * 8;
        const u32 bytes = column < p.depth ? 16 : 0;
        const u32 to = stage_address + row() * kRowBytes + ((unit() ^ (row() & 7)) << 4);
#pragma unroll
        for (u32 pass = 0; pass < kPasses; ++pass) {
            if (pass * kPassRows < live_rows) {
                const u32 token = shfl(kFullWarp, tokens[pass / kLanePasses],
                                       pass % kLanePasses * kWarpRows + lane() / kUnits);
                const u64 from = (u64)(token & ~kPresent) * p.a_stride + column;
                cp_async16(to + pass * kPassRows * kRowBytes, p.a + from,
                           (token / kPresent) * bytes);
            }
        }
    }
};

// All threads of the producer warpgroup: one requests the weights, all gather activations.
template <typename T>
DEVICE void produce_up(const TensorMap& w13, const GemmParams& p, const Schedule<T>& schedule,
                       const Shared<T>& shared) {
    const u64 policy = policy_evict_first();
    Ring<T::kStages> ring;
    Ring<T::kStages> late;  // the step to hand over next
    u32 behind = 0;         // steps between the two
    Gather<T> gather;
    for (u32 index = block_index(); index < schedule.total; index += grid_blocks()) {
        const Work work = schedule.at(index);
        gather.find_tokens(p, work);
        for (u32 k = 0; k < schedule.steps; ++k) {
            // Before the next copies, not after: the fence may wait for all that are under way.
            if (behind == kLag) {
                cp_async_wait<kLag - 1>();
                hand_over(shared.full_barrier(late.stage));
                late.next();
                behind -= 1;
            }
            shared.wait_empty(ring);
            if (thread_index() == 0) {
                const u32 full = shared.full_barrier(ring.stage);
                mbar_arrive_expect_tx(full, T::kBBytes);
                tma_load_4d(shared.b(ring.stage), w13, full, policy, (i32)(k * kTileK),
                            (i32)work.column0, 0, (i32)work.expert);
            }
            gather.copy(p, shared.a(ring.stage), k);
            cp_async_commit();
            behind += 1;
            ring.next();
        }
    }
    cp_async_wait<0>();
    for (; behind > 0; --behind) {
        hand_over(shared.full_barrier(late.stage));
        late.next();
    }
}

// One thread requests both operands of `down`: rows of h are contiguous.
template <typename T>
DEVICE void produce_down(const TensorMap& w2, const TensorMap& h, const Schedule<T>& schedule,
                         const Shared<T>& shared) {
    const u64 weights = policy_evict_first();
    const u64 activations = policy_evict_normal();
    Ring<T::kStages> ring;
    for (u32 index = block_index(); index < schedule.total; index += grid_blocks()) {
        const Work work = schedule.at(index);
        // Blocks without a row are neither loaded nor multiplied.
        const u32 blocks = ceil_div(work.rows, kWgmmaM);
        for (u32 k = 0; k < schedule.steps; ++k) {
            shared.wait_empty(ring);
            const u32 full = shared.full_barrier(ring.stage);
            mbar_arrive_expect_tx(full, T::kBBytes + blocks * kBlockBytes);
            tma_load_3d(shared.b(ring.stage), w2, full, weights, (i32)(k * kTileK),
                        (i32)work.column0, (i32)work.expert);
            for (u32 block = 0; block < blocks; ++block) {
                tma_load_2d(shared.a(ring.stage) + block * kBlockBytes, h, full, activations,
                            (i32)(k * kTileK), (i32)(work.row0 + block * kWgmmaM));
            }
            ring.next();
        }
    }
}

// ---- consumers ----------------------------------------------------------------------------------

// A thread's sums of one block of 64 rows.
template <typename T>
using Sums = float[T::kN / 2];

// Turns of ping-pong consumers: a loop over stages begins when the one before it, which is the
// other consumer's, has seen all of its stages. Two loops would only share the tensor cores, and
// a consumer more than one pass of the ring ahead of a barrier could not tell the passes apart: the
// pass it awaits has the parity of the last but one.
template <typename T>
struct Turn {
    bool follows;   // another tile of this block came before
    bool precedes;  // another comes after

    // Barriers 1 and 2 are the epilogues'.
    DEVICE static u32 barrier(u32 consumer) { return 1 + kConsumers + consumer; }
    DEVICE void await(u32 consumer) const {
#ifdef MUTANT_NO_TURN
        return;
#endif
        if (T::kPingpong && follows) {
            named_sync(barrier(consumer), kConsumers * kWarpgroup);
        }
    }
    DEVICE void pass_on(u32 consumer) const {
#ifdef MUTANT_NO_TURN
        return;
#endif
        if (T::kPingpong && precedes) {
            named_arrive(barrier(1 - consumer), kConsumers * kWarpgroup);
        }
    }
};

// Multiplies the tile's stages into the sums. These begin at zero: were they left to the first
// product to define, the compiler would hold them live around the loop over tiles, once for each
// case. One batch of wgmma stays in flight while the next stage is awaited; a stage is released
// once the batch that read it is complete.
template <typename T, u32 LIVE>
DEVICE void multiply(Sums<T> (&d)[LIVE], Ring<T::kStages>& ring, const Shared<T>& shared, u32 steps,
                     u32 consumer, const Turn<T>& turn) {
#pragma unroll
    for (u32 block = 0; block < LIVE; ++block) {
#pragma unroll
        for (u32 i = 0; i < T::kN / 2; ++i) {
            d[block][i] = 0.0f;
        }
    }
    turn.await(consumer);
    u32 reading = 0;  // stage of the batch in flight
#pragma unroll 1
    for (u32 k = 0; k < steps; ++k) {
        shared.wait_full(ring);
        wgmma_fence();
        const u64 b = wgmma_descriptor(shared.b(ring.stage));
#pragma unroll
        for (u32 block = 0; block < LIVE; ++block) {
            const u32 row = block_row<T>(consumer, block);
            const u64 a = wgmma_descriptor(shared.a(ring.stage) + row * kRowBytes);
#pragma unroll
            for (u32 step = 0; step < kTileK / kWgmmaK; ++step) {
                // 16 elements along the depth are 32 bytes; descriptors count 16-byte units.
                wgmma_bf16<T::kN>(d[block], a + 2 * step, b + 2 * step, 1);
            }
        }
        wgmma_commit();
#ifdef MUTANT_RELEASE_BEFORE_WAIT
        shared.release(ring.stage);
        wgmma_wait<1>();
        (void)reading;
#else
        wgmma_wait<1>();
        if (k > 0) {
            shared.release(reading);
        }
#endif
        reading = ring.stage;
        ring.next();
    }
    turn.pass_on(consumer);
    wgmma_wait<0>();
#ifndef MUTANT_RELEASE_BEFORE_WAIT
    shared.release(reading);
#endif
#pragma unroll
    for (u32 block = 0; block < LIVE; ++block) {
#pragma unroll
        for (u32 i = 0; i < T::kN / 2; ++i) {
            wgmma_fence_operand(d[block][i]);
        }
    }
}

// ---- epilogues ----------------------------------------------------------------------------------

// Place of a thread's sums, by the PTX manual's layout of wgmma's D: d[4j + 2i + b] is row
// 16 warp + lane / 4 + 8i, column 8j + 2 (lane % 4) + b.
struct Lane {
    u32 warp;
    u32 lane;
    DEVICE Lane()
        : warp(thread_index() % kWarpgroup / kWarpSize), lane(thread_index() % kWarpSize) {}
    DEVICE u32 row(u32 i) const { return 16 * warp + lane / 4 + 8 * i; }
    DEVICE u32 column() const { return 2 * (lane % 4); }
};

// Two neighbouring outputs of 8-column group `j` and row half `i` as bf16. The second factor of
// SwiGLU stands half the weight rows further.
template <typename T>
DEVICE u32 output_pair(const Sums<T>& d, u32 j, u32 i, bool gate_first) {
    const float first0 = d[4 * j + 2 * i];
    const float first1 = d[4 * j + 2 * i + 1];
    if constexpr (T::kUp) {
        const float second0 = d[T::kN / 4 + 4 * j + 2 * i];
        const float second1 = d[T::kN / 4 + 4 * j + 2 * i + 1];
        return gate_first ? pack_bf16x2(swiglu(first0, second0), swiglu(first1, second1))
                          : pack_bf16x2(swiglu(second0, first0), swiglu(second1, first1));
    } else {
        return pack_bf16x2(first0, first1);
    }
}

// Writes tiles as bf16 rows: stmatrix into a swizzled buffer of 64 x 64, then one TMA store. A tail
// of 32 columns is written by the threads, since a box of the map would reach into the next tile.
template <typename T>
class RowStore {
public:
    DEVICE RowStore(const TensorMap& map, const GemmParams& p, const Shared<T>& shared,
                    u32 consumer)
        : map_(map), out_(p.out), columns_(p.columns), gate_first_(p.gate_first != 0),
          consumer_(consumer), buffers_(shared.epilogue + consumer * 2 * T::kBufferBytes) {
#ifdef MUTANT_SWAPPED_GATE_UP
        gate_first_ = !gate_first_;
#endif
    }

    DEVICE void prepare(const Work&) {}

    DEVICE void store(const Sums<T>& d, const Work& work, u32 block) {
#pragma unroll
        for (u32 chunk = 0; chunk < T::kChunks; ++chunk) {
            // Chunks past the last column would be clipped whole.
            if (work.column0 + chunk * kChunk < columns_) {
                await_buffer();
                put_sums<kChunk>(d, chunk);
                send(work, block, chunk);
            }
        }
        if constexpr (T::kTail > 0) {
            await_buffer();
            put_sums<kTailColumns>(d, T::kChunks);
            send_tail(work, block);
        }
    }

    DEVICE void store_zeros(const Work& work, u32 block) {
#ifdef MUTANT_PADDING_UNWRITTEN
        return;
#endif
        for (u32 chunk = 0; chunk < T::kChunks; ++chunk) {
            if (work.column0 + chunk * kChunk < columns_) {
                await_buffer();
                put_zeros<kChunk>();
                send(work, block, chunk);
            }
        }
        if constexpr (T::kTail > 0) {
            await_buffer();
            put_zeros<kTailColumns>();
            send_tail(work, block);
        }
    }

    // Shared memory must outlive the copies, and the launch that follows reads what they wrote.
    DEVICE void finish() {
        if (leads()) {
            bulk_wait<0>();
        }
    }

private:
    DEVICE static bool leads() { return thread_index() % kWarpgroup == 0; }

    DEVICE u32 buffer() const { return buffers_ + turn_ * T::kBufferBytes; }

    // The other buffer may still be on its way; this one was committed before it.
    DEVICE void await_buffer() {
#ifndef MUTANT_NO_STORE_WAIT
        if (leads()) {
            bulk_wait_read<1>();
        }
#endif
        named_sync(1 + consumer_, kWarpgroup);
    }

    // Two 8-column groups of the chunk. This lane addresses row `lane & 7` of matrix `lane >> 3`:
    // matrices 0 and 1 are the row halves of one group, 2 and 3 those of the next.
    DEVICE void put(u32 group, const u32 (&r)[4]) {
        const Lane at;
        const u32 row = 16 * at.warp + (at.lane & 15);
        const u32 unit = group + (at.lane >> 4);
        stmatrix_x4(swizzle128(buffer() + row * kRowBytes + unit * 16), r);
    }
    template <u32 COLUMNS>
    DEVICE void put_sums(const Sums<T>& d, u32 chunk) {
#pragma unroll
        for (u32 group = 0; group < COLUMNS / 8; group += 2) {
            const u32 j = chunk * (kChunk / 8) + group;
            const u32 r[4] = {output_pair<T>(d, j, 0, gate_first_),
                              output_pair<T>(d, j, 1, gate_first_),
                              output_pair<T>(d, j + 1, 0, gate_first_),
                              output_pair<T>(d, j + 1, 1, gate_first_)};
            put(group, r);
        }
    }
    template <u32 COLUMNS>
    DEVICE void put_zeros() {
        const u32 zeros[4] = {};
        for (u32 group = 0; group < COLUMNS / 8; group += 2) {
            put(group, zeros);
        }
    }

    DEVICE void send(const Work& work, u32 block, u32 chunk) {
#ifndef MUTANT_NO_STORE_FENCE
        fence_proxy_async();
#endif
        named_sync(1 + consumer_, kWarpgroup);
        if (leads()) {
            tma_store_2d(map_, buffer(), (i32)(work.column0 + chunk * kChunk),
                         (i32)(work.row0 + block_row<T>(consumer_, block)));
            bulk_commit();
        }
        turn_ ^= 1;
    }

    // 16 bytes a thread and pass, whole 32-byte sectors a pair of threads.
    DEVICE void send_tail(const Work& work, u32 block) {
        constexpr u32 kUnits = kTailColumns / 8;
        named_sync(1 + consumer_, kWarpgroup);
        const u32 row0 = work.row0 + block_row<T>(consumer_, block);
        const u32 column0 = work.column0 + T::kChunks * kChunk;
#pragma unroll
        for (u32 i = 0; i < kWgmmaM * kUnits / kWarpgroup; ++i) {
            const u32 place = i * kWarpgroup + thread_index() % kWarpgroup;
            const u32 row = place / kUnits;
            const u32 unit = place % kUnits;
            const u32x4 v = ld_shared(swizzle128(buffer() + row * kRowBytes + unit * 16));
            const u32 column = column0 + unit * 8;
            if (column < columns_) {
                st_global(out_ + (u64)(row0 + row) * columns_ + column, v);
            }
        }
        // A group without a copy: the other buffer's is again the last but one.
        if (leads()) {
            bulk_commit();
        }
        turn_ ^= 1;
    }

    const TensorMap& map_;
    bf16* out_;
    u32 columns_;
    bool gate_first_;
    u32 consumer_;
    u32 buffers_;
    u32 turn_ = 0;
};

// Adds weighted f32 rows to the tokens they belong to: sums go to a staging tile, each of whose
// rows one thread sends as a bulk addition.
template <typename T>
class Scatter {
public:
    DEVICE Scatter(const GemmParams& p, const Shared<T>& shared, u32 consumer)
        : p_(p), consumer_(consumer),
          buffers_(shared.epilogue + consumer * 2 * T::kBufferBytes) {
        static_assert(T::kBlocks == 1, "one pair of weights and one destination a thread");
    }

    // Weights and destination are fetched before the multiplication, which hides their latency.
    DEVICE void prepare(const Work& work) {
        const Lane at;
        const u32 row = block_row<T>(consumer_, 0);
        weight0_ = weight(work, row + at.row(0));
        weight1_ = weight(work, row + at.row(1));
        const i32 pair =
            sends() ? pair_of_row(p_, work, row + thread_index() % kWarpgroup) : -1;
        to_ = pair < 0 ? nullptr
                       : p_.accumulate + (u64)((u32)pair / p_.top_k) * p_.accumulate_stride;
    }

    DEVICE void store(const Sums<T>& d, const Work& work, u32) {
#pragma unroll
        for (u32 chunk = 0; chunk < T::kChunks; ++chunk) {
            const u32 column = work.column0 + chunk * kChunk;
            if (column < p_.columns) {
                add_chunk(d, chunk, column);
            }
        }
    }

    // A block without rows has nothing to add.
    DEVICE void store_zeros(const Work&, u32) {}

    DEVICE void finish() {
        if (sends()) {
            bulk_wait<0>();
        }
    }

private:
    // One thread a row.
    DEVICE static bool sends() { return thread_index() % kWarpgroup < kWgmmaM; }
    DEVICE float weight(const Work& work, u32 row) const {
        const i32 pair = pair_of_row(p_, work, row);
        return pair < 0 ? 0.0f : p_.topk_weights[pair];
    }

    DEVICE void add_chunk(const Sums<T>& d, u32 chunk, u32 column) {
#ifndef MUTANT_NO_STORE_WAIT
        if (sends()) {
            bulk_wait_read<1>();
        }
#endif
        named_sync(1 + consumer_, kWarpgroup);
        const Lane at;
        const u32 buffer = buffers_ + turn_ * T::kBufferBytes;
        const u32 line0 = buffer + at.row(0) * kScatterPitch + at.column() * 4;
        const u32 line1 = line0 + 8 * kScatterPitch;
#pragma unroll
        for (u32 group = 0; group < kChunk / 8; ++group) {
            const u32 i = 4 * (chunk * (kChunk / 8) + group);
            st_shared_u32x2(line0 + group * 32, float_bits(mul_rn(d[i], weight0_)),
                            float_bits(mul_rn(d[i + 1], weight0_)));
            st_shared_u32x2(line1 + group * 32, float_bits(mul_rn(d[i + 2], weight1_)),
                            float_bits(mul_rn(d[i + 3], weight1_)));
        }
#ifndef MUTANT_NO_STORE_FENCE
        fence_proxy_async();
#endif
        named_sync(1 + consumer_, kWarpgroup);
        if (sends()) {
            if (to_ != nullptr) {
                // Columns are a multiple of 8, hence whole 16-byte units.
                const u32 bytes = min_of(kChunk, p_.columns - column) * 4;
                const u32 row = thread_index() % kWarpgroup;
                bulk_reduce_add_f32(to_ + column, buffer + row * kScatterPitch, bytes);
            }
            // A group without a copy keeps the count of groups equal in all rows.
            bulk_commit();
        }
        turn_ ^= 1;
    }

    const GemmParams& p_;
    u32 consumer_;
    u32 buffers_;
    u32 turn_ = 0;
    float weight0_ = 0.0f;
    float weight1_ = 0.0f;
    float* to_ = nullptr;
};

// ---- kernels ------------------------------------------------------------------------------------

// Multiplies and writes a tile of which LIVE blocks of this consumer hold rows; the others become
// zeros. The sums are local to each case: were they merged between cases, the compiler would move
// them while wgmma owns them, and serialise.
template <typename T, u32 LIVE, typename Sink>
DEVICE void live_tile(Sink& sink, const Work& work, Ring<T::kStages>& ring,
                      const Shared<T>& shared, u32 steps, u32 consumer, const Turn<T>& turn) {
    Sums<T> d[LIVE];
    multiply<T, LIVE>(d, ring, shared, steps, consumer, turn);
#pragma unroll
    for (u32 block = 0; block < T::kBlocks; ++block) {
        if (block < LIVE) {
            sink.store(d[block < LIVE ? block : 0], work, block);
        } else {
            sink.store_zeros(work, block);
        }
    }
}

// A consumer without rows in the tile awaits and releases each stage, since the barriers count it.
template <typename T, typename Sink>
DEVICE void empty_tile(Sink& sink, const Work& work, Ring<T::kStages>& ring,
                       const Shared<T>& shared, u32 steps) {
    for (u32 k = 0; k < steps; ++k) {
        shared.wait_full(ring);
        shared.release(ring.stage);
        ring.next();
    }
    for (u32 block = 0; block < T::kBlocks; ++block) {
        sink.store_zeros(work, block);
    }
}

// All threads of consumer warpgroup `consumer`, 0 or 1.
template <typename T, typename Sink>
DEVICE void consume(Sink sink, const Schedule<T>& schedule, const Shared<T>& shared, u32 consumer) {
    static_assert(T::kBlocks <= 2, "one case a number of live blocks");
    const u32 steps = schedule.steps;
    Ring<T::kStages> ring;
    u32 index = block_index();
    u32 stride = grid_blocks();
    if constexpr (T::kPingpong) {
        // The other consumer's stages lie between this one's.
        index += consumer * grid_blocks();
        stride *= kConsumers;
        ring.skip(consumer * steps);
    }
    Work next = {};
    if (index < schedule.total) {
        next = schedule.at(index);
    }
    for (; index < schedule.total; index += stride) {
        const Work work = next;
        // Requested now, needed after the epilogue.
        if (index + stride < schedule.total) {
            next = schedule.at(index + stride);
        }
        const Turn<T> turn = {index != block_index(), index + grid_blocks() < schedule.total};
        sink.prepare(work);
        if (block_row<T>(consumer, T::kBlocks - 1) < work.rows) {
            live_tile<T, T::kBlocks>(sink, work, ring, shared, steps, consumer, turn);
        } else if (T::kBlocks == 2 && block_row<T>(consumer, 0) < work.rows) {
            live_tile<T, 1>(sink, work, ring, shared, steps, consumer, turn);
        } else {
            empty_tile<T>(sink, work, ring, shared, steps);
        }
        if constexpr (T::kPingpong) {
            ring.skip(steps);
        }
    }
    sink.finish();
}

// Barriers and maps first: they do not depend on the launch before this one. Everything else does,
// the weights included, since the tiles name the experts.
template <typename T>
DEVICE Shared<T> begin(const TensorMap& first, const TensorMap& second) {
    const Shared<T> shared;
    if (thread_index() == 0) {
        prefetch_map(first);
        prefetch_map(second);
        shared.init_barriers();
    }
    griddep_wait();
    block_sync();
    return shared;
}

// The warpgroup of the calling thread, told to the compiler as one value a warp.
DEVICE u32 warpgroup() { return shfl(kFullWarp, thread_index() / kWarpgroup, 0); }

template <typename T>
DEVICE void up(const TensorMap& w13, const TensorMap& h, const GemmParams& p) {
    const Shared<T> shared = begin<T>(w13, h);
    const Schedule<T> schedule(p);
    const u32 group = warpgroup();
    if (group == 0) {
        setmaxnreg_dec<kProducerRegisters>();
        produce_up<T>(w13, p, schedule, shared);
        griddep_launch();
    } else {
        setmaxnreg_inc<kConsumerRegisters>();
        consume<T>(RowStore<T>(h, p, shared, group - 1), schedule, shared, group - 1);
    }
}

template <typename T>
DEVICE void down(const TensorMap& w2, const TensorMap& h, const TensorMap& y, const GemmParams& p) {
    const Shared<T> shared = begin<T>(w2, h);
    const Schedule<T> schedule(p);
    const u32 group = warpgroup();
    if (group == 0) {
        setmaxnreg_dec<kProducerRegisters>();
        if (thread_index() == 0) {
            produce_down<T>(w2, h, schedule, shared);
            griddep_launch();
        }
    } else {
        setmaxnreg_inc<kConsumerRegisters>();
        if constexpr (T::kFast) {
            consume<T>(Scatter<T>(p, shared, group - 1), schedule, shared, group - 1);
        } else {
            consume<T>(RowStore<T>(y, p, shared, group - 1), schedule, shared, group - 1);
        }
    }
}

KERNEL(kThreads, 1)
grouped_gemm_sm90_bf16_up_m128n256(GRID_CONSTANT TensorMap w13, GRID_CONSTANT TensorMap h,
                                   GRID_CONSTANT GemmParams p) {
    up<UpM128N256>(w13, h, p);
}
KERNEL(kThreads, 1)
grouped_gemm_sm90_bf16_up_m128n192(GRID_CONSTANT TensorMap w13, GRID_CONSTANT TensorMap h,
                                   GRID_CONSTANT GemmParams p) {
    up<UpM128N192>(w13, h, p);
}
KERNEL(kThreads, 1)
grouped_gemm_sm90_bf16_up_m256n128(GRID_CONSTANT TensorMap w13, GRID_CONSTANT TensorMap h,
                                   GRID_CONSTANT GemmParams p) {
    up<UpM256N128>(w13, h, p);
}
KERNEL(kThreads, 1)
grouped_gemm_sm90_bf16_up_m256n192(GRID_CONSTANT TensorMap w13, GRID_CONSTANT TensorMap h,
                                   GRID_CONSTANT GemmParams p) {
    up<UpM256N192>(w13, h, p);
}
KERNEL(kThreads, 1)
grouped_gemm_sm90_bf16_up_m64n256(GRID_CONSTANT TensorMap w13, GRID_CONSTANT TensorMap h,
                                  GRID_CONSTANT GemmParams p) {
    up<UpM64N256>(w13, h, p);
}
KERNEL(kThreads, 1)
grouped_gemm_sm90_bf16_down_m128n256(GRID_CONSTANT TensorMap w2, GRID_CONSTANT TensorMap h,
                                     GRID_CONSTANT TensorMap y, GRID_CONSTANT GemmParams p) {
    down<DownM128N256>(w2, h, y, p);
}
KERNEL(kThreads, 1)
grouped_gemm_sm90_bf16_down_m128n192(GRID_CONSTANT TensorMap w2, GRID_CONSTANT TensorMap h,
                                     GRID_CONSTANT TensorMap y, GRID_CONSTANT GemmParams p) {
    down<DownM128N192>(w2, h, y, p);
}
KERNEL(kThreads, 1)
grouped_gemm_sm90_bf16_down_m128n128(GRID_CONSTANT TensorMap w2, GRID_CONSTANT TensorMap h,
                                     GRID_CONSTANT TensorMap y, GRID_CONSTANT GemmParams p) {
    down<DownM128N128>(w2, h, y, p);
}
KERNEL(kThreads, 1)
grouped_gemm_sm90_bf16_down_m256n128(GRID_CONSTANT TensorMap w2, GRID_CONSTANT TensorMap h,
                                     GRID_CONSTANT TensorMap y, GRID_CONSTANT GemmParams p) {
    down<DownM256N128>(w2, h, y, p);
}
KERNEL(kThreads, 1)
grouped_gemm_sm90_bf16_down_m256n192(GRID_CONSTANT TensorMap w2, GRID_CONSTANT TensorMap h,
                                     GRID_CONSTANT TensorMap y, GRID_CONSTANT GemmParams p) {
    down<DownM256N192>(w2, h, y, p);
}
KERNEL(kThreads, 1)
grouped_gemm_sm90_bf16_down_m64n256(GRID_CONSTANT TensorMap w2, GRID_CONSTANT TensorMap h,
                                    GRID_CONSTANT TensorMap y, GRID_CONSTANT GemmParams p) {
    down<DownM64N256>(w2, h, y, p);
}
KERNEL(kThreads, 1)
grouped_gemm_sm90_bf16_down_fast_m128n256(GRID_CONSTANT TensorMap w2, GRID_CONSTANT TensorMap h,
                                          GRID_CONSTANT GemmParams p) {
    down<DownFastM128N256>(w2, h, h, p);
}
