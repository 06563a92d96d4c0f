// Matrix fragments of a warp: ldmatrix, stmatrix, mma.sync.
//
// Layouts are those of the PTX manual (9.7.14.5); g = lane / 4, t = lane % 4. Pairs of 16-bit
// elements are (low, high) halves of a register.

#include <cstring>

#include "runtime.h"

namespace emu {
namespace {

struct Load {
    const u32x4* row;
    u32* r;
};

u16 element(const u32x4& row, u32 column) {
    u16 value;
    std::memcpy(&value, (const u8*)&row + 2 * column, 2);
    return value;
}

// Lane l brings row l % 8 of matrix l / 8. Register m of lane l receives columns 2t and 2t + 1 of
// row g of matrix m.
void load_matrices(LaneGroup& group) {
    for (u32 lane = 0; lane < 32; lane++) {
        Load& mine = *(Load*)group.arguments[lane];
        for (u32 m = 0; m < group.shape; m++) {
            const Load& source = *(Load*)group.arguments[8 * m + lane / 4];
            u32 column = 2 * (lane % 4);
            mine.r[m] = element(*source.row, column) | (u32)element(*source.row, column + 1) << 16;
        }
    }
}

struct Store {
    const u32* r;
    u32x4* row;
};

u16 half(u32 pair, u32 which) { return (u16)(which ? pair >> 16 : pair & 0xffff); }

// The inverse. Transposed: lane l holds rows 2t and 2t + 1 of column g of matrix m.
void store_matrices(LaneGroup& group, u32 matrices, bool transposed) {
    for (u32 lane = 0; lane < 8 * matrices; lane++) {
        u32 m = lane / 8;
        u32 row = lane % 8;
        u16 values[8];
        for (u32 column = 0; column < 8; column++) {
            u32 holder = transposed ? 4 * column + row / 2 : 4 * row + column / 2;
            const Store& source = *(Store*)group.arguments[holder];
            values[column] = half(source.r[m], transposed ? row % 2 : column % 2);
        }
        std::memcpy(((Store*)group.arguments[lane])->row, values, 16);
    }
}

void store_plain(LaneGroup& group) { store_matrices(group, (u32)group.shape, false); }
void store_transposed(LaneGroup& group) { store_matrices(group, (u32)group.shape, true); }

struct Multiply {
    float* d;
    const u32* a;
    const u32* b;
};

float bf16_value(u16 bits) { return bits_float((u32)bits << 16); }

// 16x16 by 16x8; sums in the order of k. The order on a device is not documented.
void multiply(LaneGroup& group) {
    float a[16][16];
    float b[16][8];
    float d[16][8];
    for (u32 lane = 0; lane < 32; lane++) {
        const Multiply& mine = *(Multiply*)group.arguments[lane];
        u32 g = lane / 4;
        u32 t = lane % 4;
        for (u32 i = 0; i < 4; i++) {
            u32 row = g + 8 * (i % 2);
            u32 column = 2 * t + 8 * (i / 2);
            for (u32 h = 0; h < 2; h++) a[row][column + h] = bf16_value(half(mine.a[i], h));
            d[g + 8 * (i / 2)][2 * t + i % 2] = mine.d[i];
        }
        for (u32 i = 0; i < 2; i++)
            for (u32 h = 0; h < 2; h++) b[2 * t + 8 * i + h][g] = bf16_value(half(mine.b[i], h));
    }
    for (u32 row = 0; row < 16; row++)
        for (u32 k = 0; k < 16; k++)
            for (u32 column = 0; column < 8; column++) d[row][column] += a[row][k] * b[k][column];
    for (u32 lane = 0; lane < 32; lane++) {
        const Multiply& mine = *(Multiply*)group.arguments[lane];
        for (u32 i = 0; i < 4; i++) mine.d[i] = d[lane / 4 + 8 * (i / 2)][2 * (lane % 4) + i % 2];
    }
}

}  // namespace
}  // namespace emu

using namespace emu;

void emu_ldmatrix(u32 matrices, const u32x4* row, u32* r, const char* wrapper) {
    Load mine = {row, r};
    meet_lanes(wrapper, matrices, kFullWarp, &mine, load_matrices);
}

void emu_stmatrix(u32 matrices, u32 trans, const u32* r, u32x4* row, const char* wrapper) {
    Store mine = {r, row};
    meet_lanes(wrapper, matrices, kFullWarp, &mine, trans ? store_transposed : store_plain);
}

void emu_mma_m16n8k16_bf16(float* d, const u32* a, const u32* b) {
    Multiply mine = {d, a, b};
    meet_lanes("mma_m16n8k16_bf16", 0, kFullWarp, &mine, multiply);
}
