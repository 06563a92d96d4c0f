// Self-tests of the emulator: each instruction against plain loops, each planted fault by its code.
//
//     sh build.sh [-k KIND] -o selftest selftest.cu selftest.cpp && ./selftest KERNELS_FOLDER
//
// Each case runs in a process of its own, in all three delivery modes and two seeds (one in the
// sanitizer builds, which are slower; EMU_SEEDS=n says otherwise). Exit code 0 when all behave as
// the table says for this build. The folder is that of ptx.cuh: every wrapper named there must have
// a host half and be used by selftest.cu, and the kernels beside it must keep to the wrappers.

#include "selftest.cuh"

#include <sys/wait.h>
#include <unistd.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <regex>
#include <set>
#include <sstream>

#include "emu.h"

#define PRODUCT(N) \
    extern "C" void selftest_product_n##N(TensorMap, TensorMap, TensorMap, ProductParams);
PRODUCT(8)
PRODUCT(16)
PRODUCT(32)
PRODUCT(64)
PRODUCT(128)
PRODUCT(192)
PRODUCT(256)
#define REGISTER_PRODUCT(N) \
    extern "C" void selftest_register_product_n##N(RegisterProductParams);
REGISTER_PRODUCT(8)
REGISTER_PRODUCT(16)
REGISTER_PRODUCT(32)
REGISTER_PRODUCT(64)
extern "C" void selftest_fragments(FragmentParams);
extern "C" void selftest_lanes(LaneParams);
extern "C" void selftest_copies(CopyParams);
extern "C" void selftest_grid(GridParams);
extern "C" void selftest_box(TensorMap, BoxParams);
extern "C" void selftest_reduce(GridParams);
extern "C" void selftest_after(GridParams);
extern "C" void selftest_barrier(LaneParams);
extern "C" void selftest_nowhere(LaneParams);
extern "C" void selftest_scalars(LaneParams);

namespace {

enum Build {
    kPlain,
    kAddress,
    kThread
};
#if defined(EMU_THREAD)
constexpr Build kBuild = kThread;
#elif defined(__SANITIZE_ADDRESS__)
constexpr Build kBuild = kAddress;
#else
constexpr Build kBuild = kPlain;
#endif

// Exit code of a case whose results are wrong.
constexpr int kWrong = 1;

int expect(bool right, const char* what) {
    if (!right) std::fprintf(stderr, "wrong: %s\n", what);
    return right ? 0 : kWrong;
}

// Integers from -4 to 4: sums of their products are exact in any order.
float small(u32 i) { return (float)((i * 2654435761u >> 7) % 9) - 4.0f; }
u16 bf16_of(float v) { return (u16)(float_bits(v) >> 16); }
float value_of(u32 bits) { return bits_float(bits << 16); }

std::vector<u16> small_bf16(size_t count, u32 seed) {
    std::vector<u16> all(count);
    for (size_t i = 0; i < count; i++) all[i] = bf16_of(small((u32)i + seed));
    return all;
}

// ---- cases ------------------------------------------------------------------------------------

template <u32 N>
int product(void (*kernel)(TensorMap, TensorMap, TensorMap, ProductParams), u32 rows, u32 columns,
            u32 depth, Fault fault) {
    std::vector<u16> a = small_bf16((size_t)rows * depth, 0);
    std::vector<u16> b = small_bf16((size_t)columns * depth, 99);
    u32 packed_columns = N < 64 ? N : 64;
    std::vector<u16> packed((size_t)rows * packed_columns, 0x7fff);
    std::vector<float> d((size_t)rows * columns, NAN);
    TensorMap a_map = emu_tensor_map(a.data(), 2, {depth, rows}, {depth * 2}, {64, 128}, 128);
    TensorMap b_map = emu_tensor_map(b.data(), 2, {depth, columns}, {depth * 2}, {64, N}, 128);
    TensorMap out_map = emu_tensor_map(packed.data(), 2, {packed_columns, rows},
                                       {packed_columns * 2}, {64, 64}, 128);
    u32 shared = 3 * (128 + N) * 128 + 2 * 64 * 128 + 6 * 8 + 3 * 1023 + 7;
    ProductParams p = {d.data(), rows, columns, depth, fault};
    emu_launch(kernel, EmuDim{(rows + 127) / 128}, 384, shared, a_map, b_map, out_map, p);
    for (u32 row = 0; row < rows; row++) {
        for (u32 column = 0; column < columns; column++) {
            float sum = 0;
            for (u32 k = 0; k < depth; k++)
                sum += value_of(a[row * depth + k]) * value_of(b[column * depth + k]);
            if (d[row * columns + column] != sum) return expect(false, "a product");
            if (N < 16 || column >= packed_columns) continue;
            u16 rounded = (u16)pack_bf16x2(sum, 0);
            if (packed[row * packed_columns + column] != rounded)
                return expect(false, "a tile that stmatrix and TMA stored");
        }
    }
    return 0;
}

int product_64(Fault fault) { return product<64>(selftest_product_n64, 136, 64, 400, fault); }

// The last row that is stored is followed by nothing that belongs to the buffer.
int product_all(Fault fault) {
    return product<8>(selftest_product_n8, 136, 8, 72, fault) |
           product<16>(selftest_product_n16, 128, 16, 64, fault) |
           product<32>(selftest_product_n32, 64, 24, 200, fault) |
           product<64>(selftest_product_n64, 136, 64, 400, fault) |
           product<128>(selftest_product_n128, 72, 128, 264, fault) |
           product<192>(selftest_product_n192, 130, 192, 64, fault) |
           product<256>(selftest_product_n256, 8, 200, 200, fault);
}

int register_product(void (*kernel)(RegisterProductParams), u32 columns) {
    std::vector<u16> a = small_bf16(64 * 64, 11);
    std::vector<u16> b = small_bf16((size_t)columns * 64, 17);
    std::vector<float> d((size_t)64 * columns, NAN);
    RegisterProductParams p = {a.data(), b.data(), d.data()};
    emu_launch(kernel, EmuDim{}, 128, columns * 128 + 1023, p);
    for (u32 row = 0; row < 64; row++) {
        for (u32 column = 0; column < columns; column++) {
            float sum = 0;
            for (u32 k = 0; k < 64; k++)
                sum += 2.0f * value_of(a[row * 64 + k]) * value_of(b[column * 64 + k]);
            if (d[row * columns + column] != sum)
                return expect(false, "a product with registers");
        }
    }
    return 0;
}

int register_products(Fault) {
    return register_product(selftest_register_product_n8, 8) |
           register_product(selftest_register_product_n16, 16) |
           register_product(selftest_register_product_n32, 32) |
           register_product(selftest_register_product_n64, 64);
}

int fragments(Fault) {
    std::vector<u16> tile(32 * 64), stored(3 * 32 * 8);
    std::vector<u32> four(128), two(64), registers(128), a(128), b(64);
    std::vector<float> d(128), before;
    for (u32 i = 0; i < tile.size(); i++) tile[i] = (u16)(i + 1);
    for (u32 i = 0; i < 128; i++) {
        registers[i] = (2 * i + 1) << 16 | 2 * i;
        a[i] = (u32)bf16_of(small(7 * i + 1)) << 16 | bf16_of(small(7 * i));
        d[i] = small(i + 500);
    }
    for (u32 i = 0; i < 64; i++)
        b[i] = (u32)bf16_of(small(5 * i + 301)) << 16 | bf16_of(small(5 * i + 300));
    before = d;
    FragmentParams p = {tile.data(),   four.data(), two.data(), registers.data(),
                        stored.data(), a.data(),    b.data(),   d.data()};
    emu_launch(selftest_fragments, EmuDim{}, 32, 32 * 128 + 3 * 32 * 16 + 1023 + 15, p);
    int result = 0;
    float left[16][16], right[16][8];
    for (u32 lane = 0; lane < 32; lane++) {
        u32 g = lane / 4, t = lane % 4;
        for (u32 m = 0; m < 4; m++) {
            u32 at = (8 * m + g) * 64 + 3 * 8 + 2 * t;
            result |=
                expect(four[lane * 4 + m] == ((u32)tile[at + 1] << 16 | tile[at]), "ldmatrix_x4");
            if (m < 2) {
                at = (8 * m + g) * 64 + 5 * 8 + 2 * t;
                result |= expect(two[lane * 2 + m] == ((u32)tile[at + 1] << 16 | tile[at]),
                                 "ldmatrix_x2");
            }
            u32 low = 2 * (lane * 4 + m), high = low + 1;
            // Plain: row g, columns 2t and 2t + 1. Transposed: rows 2t and 2t + 1, column g.
            result |= expect(stored[(8 * m + g) * 8 + 2 * t] == low &&
                                 stored[(8 * m + g) * 8 + 2 * t + 1] == high,
                             "stmatrix_x4");
            for (u32 i = 1; i < (m < 2 ? 3u : 2u); i++)
                result |= expect(stored[(32 * i + 8 * m + 2 * t) * 8 + g] == low &&
                                     stored[(32 * i + 8 * m + 2 * t + 1) * 8 + g] == high,
                                 "stmatrix, transposed");
        }
        // a0: row g, columns 2t, 2t+1; a1: row g+8; a2: columns 2t+8, 2t+9; a3: both.
        for (u32 h = 0; h < 2; h++) {
            auto half = [&](u32 r) { return value_of(h ? r >> 16 : r & 0xffff); };
            left[g][2 * t + h] = half(a[lane * 4]);
            left[g + 8][2 * t + h] = half(a[lane * 4 + 1]);
            left[g][2 * t + 8 + h] = half(a[lane * 4 + 2]);
            left[g + 8][2 * t + 8 + h] = half(a[lane * 4 + 3]);
            right[2 * t + h][g] = half(b[lane * 2]);
            right[2 * t + 8 + h][g] = half(b[lane * 2 + 1]);
        }
    }
    for (u32 lane = 0; lane < 32; lane++) {
        for (u32 i = 0; i < 4; i++) {
            u32 row = lane / 4 + (i >= 2 ? 8 : 0), column = 2 * (lane % 4) + i % 2;
            float sum = before[lane * 4 + i];
            for (u32 k = 0; k < 16; k++) sum += left[row][k] * right[k][column];
            result |= expect(d[lane * 4 + i] == sum, "mma_m16n8k16_bf16");
        }
    }
    return result;
}

int lanes(Fault fault) {
    std::vector<u32> out(8 * 64, 0xdead);
    LaneParams p = {out.data(), fault};
    emu_launch(selftest_lanes, EmuDim{}, 64, 64 * 4 + 4 + 15 + 3, p);
    int result = 0;
    for (u32 t = 0; t < 64; t++) {
        u32 lane = t % 32, warp = t / 32, half = lane / 16;
        u32 same = 0, most = 0, thirds = 0, total = 0;
        for (u32 l = 0; l < 32; l++) {
            if (l / 5 == lane / 5) same |= 1u << l;
            if (l / 16 == half && (l * 37) % 41 > most) most = (l * 37) % 41;
            if (l / 16 == half && l % 3 == 0) thirds |= 1u << l;
            total += warp * 32 + l;
        }
        result |= expect(out[t] == (warp * 32 + (lane + 5) % 32) * 3, "shfl");
        result |= expect(out[64 + t] == (warp * 32 + (lane ^ 7)) * 5, "shfl_xor");
        result |= expect(out[128 + t] == (lane < 4 ? t : t - 4) * 7, "shfl_up");
        result |= expect(out[192 + t] == thirds, "ballot");
        result |= expect(out[256 + t] == same, "match_any");
        result |= expect(out[320 + t] == most, "redux_max");
        result |= expect(out[384 + t] == total, "redux_add");
        u32 held = warp == 0 ? (t + 32) * 11 + 64000 : (t - 32) * 11;
        result |= expect(out[448 + t] == held, "named_sync, named_arrive");
    }
    return result;
}

int copies(Fault fault) {
    u32 stages = 7;
    // 64 words more than the buffer that the emulator knows of.
    std::vector<u32> from(stages * 512 + 64), out(stages * 512, 0xdead);
    for (u32 i = 0; i < from.size(); i++) from[i] = i + 1;
    emu_buffer(from.data(), out.size() * 4, "from");
    emu_buffer(out.data(), out.size() * 4, "out");
    CopyParams p = {from.data(), out.data(), stages, fault};
    emu_launch(selftest_copies, EmuDim{}, 128, 3 * 128 * 16 + 15, p);
    int result = 0;
    for (u32 i = 0; i < out.size(); i++) {
        u32 t = i / 4 % 128, word = i % 4, stage = i / 512;
        bool there = t % 2 == 0 || (word == 0 && stage + 1 < stages);
        result |= expect(out[i] == (there ? from[i] : 0), "cp_async16");
    }
    return result;
}

int grid(Fault fault) {
    u32 blocks = 5;
    std::vector<u32> words(blocks * 64, 0xdead), sums(blocks, 0xdead), counters(8), out(64);
    float total = 1.0f;
    if (fault == kFaultStaleRead) emu_buffer(words.data(), words.size() * 4, "words");
    if (fault == kFaultStaleRead) emu_buffer(counters.data(), 32, "counters");
    if (fault == kFaultStaleRead) emu_buffer(&total, 4, "total");
    GridParams p = {words.data(), sums.data(), counters.data(), &total, out.data(), fault};
    emu_options().live = 0;
    emu_launch(selftest_grid, EmuDim{blocks}, 64, 4 + 3, p);
    int result = expect(total == 1.0f + blocks * 64 * 0.5f, "red_add_f32_gpu");
    result |= expect(counters[2] == 31, "red_or_gpu");
    result |= expect(counters[0] == blocks && counters[4] == blocks && counters[5] == 0, "tickets");
    for (u32 t = 0; t < 64; t++)
        result |= expect(out[t] == (0 + 1 + 2 + 3 + 4) * 1000 + blocks * t, "the last block's sum");
    result |= expect(sums[blocks - 1] == 1 + 1 + 2 + 3 + 4, "a chain of blocks");
    return result;
}

// A box of the given rank against plain loops, its corner partly outside.
int box(const std::vector<u64>& dims, const std::vector<u32>& box, std::vector<i32> corner,
        u32 swizzle) {
    u64 count = 1;
    std::vector<u64> strides;
    u64 pitch = dims[0] * 2 + 16;  // rows are padded
    for (size_t i = 1; i < dims.size(); i++) {
        strides.push_back(pitch);
        pitch *= dims[i];
    }
    count = pitch / 2;
    std::vector<u16> from(count);
    for (u64 i = 0; i < count; i++) from[i] = (u16)(i % 65521 + 1);
    BoxParams p = {};
    u32 elements = 1;
    for (u32 b : box) elements *= b;
    std::vector<u16> out(elements, 0xdead);
    p.out = out.data();
    p.rank = (u32)dims.size();
    p.bytes = elements * 2;
    for (size_t i = 0; i < corner.size(); i++) p.coordinates[i] = corner[i];
    TensorMap map = emu_tensor_map(from.data(), 2, dims, strides, box, swizzle);
    emu_launch(selftest_box, EmuDim{}, 32, p.bytes + 8 + 1023 + 7, map, p);
    for (u32 i = 0; i < elements; i++) {
        u32 rest = i;
        u64 at = 0;
        bool inside = true;
        for (size_t r = 0; r < dims.size(); r++) {
            i64 c = corner[r] + (i64)(rest % box[r]);
            rest /= box[r];
            if (c < 0 || c >= (i64)dims[r]) inside = false;
            else at += r == 0 ? (u64)c : (u64)c * strides[r - 1] / 2;
        }
        u32 place = swizzle ? swizzle128(2 * i) / 2 : i;
        if (out[place] != (inside ? from[at] : 0)) return expect(false, "a box");
    }
    return 0;
}

int boxes(Fault) {
    return box({136, 20}, {64, 16}, {128, 9}, 128) | box({136, 20}, {64, 16}, {-8, -3}, 128) |
           box({24, 20}, {16, 16}, {10, 3}, 0) | box({72, 5, 3}, {64, 4, 2}, {0, 3, 1}, 128) |
           box({72, 5, 2, 3}, {64, 4, 2, 1}, {64, 2, 0, 2}, 128) |
           box({72, 5, 2, 3}, {32, 4, 2, 2}, {8, 2, 1, 2}, 128);
}

int dependent(Fault fault) {
    std::vector<u32> words(128);
    std::vector<float> total(128, 1.0f);
    GridParams p = {words.data(), nullptr, nullptr, total.data(), nullptr, fault};
    EmuLaunch first = emu_bind("selftest_reduce", selftest_reduce, EmuDim{6}, 32, 512 + 15, p);
    EmuLaunch second = emu_bind("selftest_after", selftest_after, EmuDim{1}, 32, 0, p);
    first.live = 3;
    second.overlap = true;
    emu_run({first, second});
    int result = 0;
    for (u32 i = 0; i < 128; i++)
        result |= expect(words[i] == float_bits(2.0f * (1.0f + 6 * i + 15)), "dependent launch");
    return result;
}

int barrier(Fault fault) {
    std::vector<u32> out(33, 7);
    LaneParams p = {out.data(), fault};
    emu_launch(selftest_barrier, EmuDim{}, 32, 8 + 7, p);
    int result = 0;
    for (u32 t = 0; t < 32; t++) result |= expect(out[t] == 1, "clocks, wait_flag_sys");
    return result;
}

int nowhere(Fault fault) {
    LaneParams p = {nullptr, fault};
    emu_launch(selftest_nowhere, EmuDim{}, 32, 0, p);
    return 0;
}

int scalars(Fault) {
    std::vector<u32> out(16 * 2);
    LaneParams p = {out.data(), kFaultNone};
    emu_launch(selftest_scalars, EmuDim{1, 2}, 1, 0, p);
    const u32 right[] = {
        float_bits(-0x1p-46f),
        float_bits(0.0f),
        0x3eaaaaab,
        0x3fb504f3,
        float_bits(1.0f),
        float_bits(0.25f),
        0,
        0x3f823f80,
        0xff807fff,
        9,
        4,
    };
    int result = 0;
    for (u32 i = 0; i < 11; i++)
        result |= expect(out[i] == right[i] && out[16 + i] == right[i], "a scalar wrapper");
    return result | expect(out[11] == 1 && out[27] == 257, "block_threads, block_index_y");
}

// ---- running them -----------------------------------------------------------------------------

// What a case may end with, by build.
struct Case {
    const char* name;
    int (*run)(Fault);
    Fault fault;
    std::vector<int> plain;    // possible exit codes
    std::vector<int> address;  // the same for the address build; as plain when empty
    std::vector<int> thread;   // the same for the thread build
    bool once = false;         // enough if one mode or seed of the build reports it
};

// Exit codes of findings (capsule.md).
constexpr int kUsage = 2, kDivergence = 10, kDeadlock = 11, kShared = 12, kGlobal = 13,
              kConstant = 14, kInFlight = 15, kMbarrier = 16, kProxy = 18, kRegisters = 19,
              kRace = 66, kSanitizer = 77;

const std::vector<Case> kCases = {
    {"scalars", scalars, kFaultNone, {0}, {}, {}},
    {"lanes", lanes, kFaultNone, {0}, {}, {}},
    {"fragments", fragments, kFaultNone, {0}, {}, {}},
    {"copies", copies, kFaultNone, {0}, {}, {}},
    {"grid", grid, kFaultNone, {0}, {}, {}},
    {"boxes", boxes, kFaultNone, {0}, {}, {}},
    {"dependent launches", dependent, kFaultNone, {0}, {}, {}},
    {"barrier", barrier, kFaultNone, {0}, {}, {}},
    {"products", product_all, kFaultNone, {0}, {}, {}},
    {"products with registers", register_products, kFaultNone, {0}, {}, {}},

    {"lanes outside the mask", lanes, kFaultPartialMask, {kDivergence}, {}, {}},
    {"divergent collectives", lanes, kFaultDivergent, {kDivergence}, {}, {}},
    {"threads that end before a barrier", lanes, kFaultEarlyEnd, {kDivergence}, {}, {}},
    {"a barrier with two counts", lanes, kFaultCounts, {kDivergence, kDeadlock}, {}, {}},
    {"an arrival that never comes", lanes, kFaultDeadlock, {kDeadlock, kDivergence}, {}, {}},
    {"no block_sync between store and load", lanes, kFaultNoSync, {0, kWrong}, {}, {kRace}},
    {"a store past a shared buffer", lanes, kFaultOverflow, {kShared}, {kSanitizer}, {kShared}},
    {"more shared memory than given", lanes, kFaultArena, {kShared}, {}, {}},
    {"an unaligned shared address", lanes, kFaultUnaligned, {kShared}, {}, {}},
    {"no cp_async_wait", copies, kFaultNoCopyWait, {0, kWrong}, {}, {kRace, kWrong}, true},
    {"no block_sync after cp_async_wait", copies, kFaultNoSync, {0, kWrong}, {}, {kRace}},
    {"a global address past its buffer", copies, kFaultGlobal, {kGlobal}, {}, {}},
    {"a ticket without fence_gpu", grid, kFaultNoFenceGpu, {0}, {}, {kRace}},
    {"a store between fence and ticket", grid, kFaultStoreAfterFence, {0}, {}, {kRace}},
    {"a flag that is polled and never set", grid, kFaultNoFlag, {kDeadlock}, {}, {}},
    {"a read-only load of what is written", grid, kFaultStaleRead, {kConstant}, {}, {}},
    {"no griddep_wait", dependent, kFaultNoGriddepWait, {0, kWrong}, {}, {0, kWrong, kRace}, true},
    {"data over a barrier", barrier, kFaultBarrierOverwritten, {kMbarrier}, {}, {kMbarrier, kRace}},
    {"an arrival too many", barrier, kFaultExtraArrival, {kMbarrier}, {}, {}},
    {"a null pointer", nowhere, kFaultNull, {kGlobal}, {kSanitizer}, {kRace}},
    {"a stack that is used up", nowhere, kFaultStack, {kUsage}, {kSanitizer}, {}},

    {"no block_sync after mbar_init", product_64, kFaultNoInitSync, {0, kMbarrier}, {}, {kRace}},
    {"no fence_mbar_init", product_64, kFaultNoInitFence, {kProxy}, {}, {}},
    {"no wait for empty stages",
     product_64,
     kFaultNoEmptyWait,
     {kWrong, kMbarrier, kDeadlock},
     {},
     {kWrong, kMbarrier, kDeadlock, kRace}},
    {"no wait for full stages",
     product_64,
     kFaultNoFullWait,
     {0, kWrong, kMbarrier},
     {},
     {kRace, kMbarrier},
     true},
    {"a stage released before the products",
     product_64,
     kFaultReleaseEarly,
     {0, kWrong},
     {},
     {kRace},
     true},
    {"one release by warpgroup", product_64, kFaultReleaseByGroup, {0, kWrong}, {}, {kRace}},
    {"no fence_proxy_async", product_64, kFaultNoProxyFence, {kProxy}, {}, {}},
    {"a tile stored before it is complete",
     product_64,
     kFaultNoStoreSync,
     {kProxy, kInFlight},
     {},
     {kProxy, kInFlight, kRace}},
    {"no wgmma_fence", product_64, kFaultNoProductFence, {kRegisters}, {}, {}},
    {"no wgmma_fence_operand", product_64, kFaultNoOperandFence, {kWrong}, {}, {}},
    {"products that nobody waits for", product_64, kFaultNoProductWait, {kInFlight}, {}, {}},
    {"no bulk_wait_read", product_64, kFaultNoStoreWait, {0, kInFlight}, {}, {}, true},
    {"fewer bytes announced than come", product_64, kFaultWrongBytes, {kDeadlock}, {}, {}},
    {"a release too many",
     product_64,
     kFaultExtraArrival,
     {kDeadlock, kMbarrier, kWrong},
     {},
     {kDeadlock, kMbarrier, kWrong, kRace},
     true},
    {"more registers than the block has",
     product_64,
     kFaultRegisters,
     {kDeadlock, kRegisters},
     {},
     {}},
};

const char* kModes[] = {"late", "early", "random"};

// Runs the case in a child process; its exit code.
int run_case(const Case& c, u32 mode, u64 seed, bool quiet) {
    std::fflush(nullptr);
    pid_t child = fork();
    if (child == 0) {
        if (quiet && !std::freopen("/dev/null", "w", stderr)) std::_Exit(2);
        emu_options().mode = (EmuMode)mode;
        emu_options().seed = seed;
        int result = c.run(c.fault);
        std::fflush(nullptr);
        std::_Exit(result);
    }
    int status = 0;
    waitpid(child, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

const std::vector<int>& allowed_codes(const Case& c) {
    if (kBuild == kAddress && !c.address.empty()) return c.address;
    if (kBuild == kThread && !c.thread.empty()) return c.thread;
    return c.plain;
}

u64 seeds() {
    const char* asked = std::getenv("EMU_SEEDS");
    if (asked && std::atoi(asked) > 0) return (u64)std::atoi(asked);
    return kBuild == kPlain ? 2 : 1;
}

int run_cases(const char* only) {
    int failures = 0;
    for (const Case& c : kCases) {
        if (only && !std::strstr(c.name, only)) continue;
        // Stacks of the thread build lie side by side, without guards.
        if (c.fault == kFaultStack && kBuild == kThread) continue;
        std::set<int> allowed(allowed_codes(c).begin(), allowed_codes(c).end());
        bool reported = false;
        std::string codes;
        for (u32 mode = 0; mode < 3; mode++) {
            for (u64 seed = 1; seed <= seeds(); seed++) {
                int code = run_case(c, mode, seed, c.fault != kFaultNone && !only);
                codes += std::string(seed == 1 ? " " + std::string(kModes[mode]) + " " : ",") +
                         std::to_string(code);
                if (code != 0) reported = true;
                // What only some modes report may end with 0 in the others.
                if (allowed.count(code) || (c.once && code == 0)) continue;
                failures++;
                std::printf("FAILED %s, mode %s, seed %llu: exit code %d\n", c.name, kModes[mode],
                            seed, code);
            }
        }
        bool must_report = c.fault != kFaultNone && (c.once || !allowed.count(0));
        if (must_report && !reported) {
            failures++;
            std::printf("FAILED %s: reported by no mode\n", c.name);
        }
        std::printf("%-40s%s\n", c.name, codes.c_str());
    }
    return failures;
}

// ---- both halves ------------------------------------------------------------------------------

std::string read_text(const std::string& path) {
    std::ifstream file(path);
    std::stringstream text;
    text << file.rdbuf();
    if (!file) {
        std::printf("FAILED %s cannot be read\n", path.c_str());
        std::exit(2);
    }
    return text.str();
}

std::set<std::string> wrappers(const std::string& text) {
    std::set<std::string> names;
    std::regex definition("\nDEVICE [a-z0-9_]+\\*? ([a-z0-9_]+)\\(");
    for (std::sregex_iterator at(text.begin(), text.end(), definition), end; at != end; ++at)
        names.insert((*at)[1]);
    return names;
}

// Kernel sources keep to the wrappers: what a host compiler cannot build, or what the emulator
// would not see, stands in ptx.cuh alone.
int check_sources(const std::string& folder) {
    const std::regex comment("//[^\n]*");
    const std::regex forbidden(
        "\\basm\\b|__shared__|__device__|__global__|threadIdx|blockIdx|blockDim|gridDim|"
        "__sync[a-z]+|__shfl[a-z_]*|#include *<[^>]*>|<<<|\\bprintf\\b|__atomic_[a-z_]*");
    int failures = 0;
    int sources = 0;
    for (const auto& entry : std::filesystem::directory_iterator(folder)) {
        std::string name = entry.path().filename();
        std::string kind = entry.path().extension();
        if ((kind != ".cu" && kind != ".cuh") || name == "ptx.cuh") continue;
        sources++;
        std::string text = std::regex_replace(read_text(entry.path()), comment, "");
        std::smatch found;
        if (!std::regex_search(text, found, forbidden)) continue;
        failures++;
        std::printf("FAILED %s has %s\n", name.c_str(), found.str().c_str());
    }
    std::printf("%d sources, none past the wrappers\n", sources);
    return failures + (sources == 0 ? 1 : 0);
}

// Every wrapper of the device half has a host half and is used by a self-test.
int check_halves(const std::string& folder) {
    std::string text = read_text(folder + "/ptx.cuh");
    std::string device = text.substr(0, text.find("#include \"emu/ptx_host.h\""));
    std::set<std::string> host = wrappers(read_text(folder + "/emu/ptx_host.h"));
    std::string uses = read_text(folder + "/emu/selftest.cu");
    int failures = 0;
    std::set<std::string> names = wrappers(device);
    for (const std::string& name : names) {
        if (!host.count(name)) {
            failures++;
            std::printf("FAILED %s has no host half\n", name.c_str());
        }
        if (!std::regex_search(uses, std::regex("\\b" + name + "(<[^;]*>)?\\("))) {
            failures++;
            std::printf("FAILED %s is used by no self-test\n", name.c_str());
        }
    }
    if (names.size() < 60) {
        failures++;
        std::printf("FAILED only %zu wrappers were found in ptx.cuh\n", names.size());
    }
    std::printf("%zu wrappers, each with both halves and a self-test\n", names.size());
    return failures;
}

}  // namespace

int main(int count, char** words) {
    if (count < 2 || count > 3) {
        std::printf("selftest KERNELS_FOLDER [part of a case's name]\n");
        return 2;
    }
    int failures = check_halves(words[1]) + check_sources(words[1]);
    failures += run_cases(count == 3 ? words[2] : nullptr);
    std::printf("%d failures\n", failures);
    return failures == 0 ? 0 : 1;
}
