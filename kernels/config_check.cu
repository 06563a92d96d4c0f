// Writes the layout of every parameter struct, and the constants that the host shares, as 32-bit
// words.
//
// config_check   ConfigCheckParams by value, grid 1, block 1, no shared memory.
//
// For each struct in the order of common.cuh: its size, then offset and size of each field in the
// order of declaration. Then the constants below. words[0] is the number of words that follow, and
// no more than `capacity` words are written in all. A test compares them with the #[repr(C)]
// structs of src/gpu/params.rs: a field that was added, moved or resized on one side only is found
// without a GPU.

#include "align.cuh"

// Where the words go, in order.
struct Words {
    u32* words;
    u32 capacity;
    u32 count;

    DEVICE void put(u32 word) {
        count += 1;
        if (count < capacity) {
            words[count] = word;
        }
    }
};

#define FIELD(type, name)                            \
    words.put((u32)__builtin_offsetof(type, name)); \
    words.put((u32)sizeof(type::name))

DEVICE void put_tables(Words& words) {
    words.put(sizeof(Tile));
    FIELD(Tile, expert);
    FIELD(Tile, row0);
    FIELD(Tile, rows);
    FIELD(Tile, unused);
    words.put(sizeof(WorkspaceHeader));
    FIELD(WorkspaceHeader, num_tiles);
    FIELD(WorkspaceHeader, padded_rows);
    FIELD(WorkspaceHeader, status);
    FIELD(WorkspaceHeader, active_experts);
    FIELD(WorkspaceHeader, tickets);
}

DEVICE void put_align(Words& words) {
    words.put(sizeof(AlignParams));
    FIELD(AlignParams, topk_ids);
    FIELD(AlignParams, expert_count);
    FIELD(AlignParams, expert_offsets);
    FIELD(AlignParams, sorted_pairs);
    FIELD(AlignParams, pair_rows);
    FIELD(AlignParams, tiles);
    FIELD(AlignParams, block_counts);
    FIELD(AlignParams, header);
    FIELD(AlignParams, pairs);
    FIELD(AlignParams, experts);
    FIELD(AlignParams, block_m);
    FIELD(AlignParams, capacity_rows);
    FIELD(AlignParams, capacity_tiles);
    FIELD(AlignParams, pairs_per_block);
}

DEVICE void put_router(Words& words) {
    words.put(sizeof(RouterParams));
    FIELD(RouterParams, logits);
    FIELD(RouterParams, bias);
    FIELD(RouterParams, topk_ids);
    FIELD(RouterParams, topk_weights);
    FIELD(RouterParams, header);
    FIELD(RouterParams, logits_stride);
    FIELD(RouterParams, tokens);
    FIELD(RouterParams, experts);
    FIELD(RouterParams, top_k);
    FIELD(RouterParams, scoring);
    FIELD(RouterParams, n_group);
    FIELD(RouterParams, topk_group);
    FIELD(RouterParams, group_top1);
    FIELD(RouterParams, renormalize);
    FIELD(RouterParams, scaling);
    FIELD(RouterParams, shared);
    FIELD(RouterParams, fuse_align);
    FIELD(RouterParams, unused);
    FIELD(RouterParams, align);
    words.put(sizeof(RouterGateParams));
    FIELD(RouterGateParams, router);
    FIELD(RouterGateParams, x);
    FIELD(RouterGateParams, gate);
    FIELD(RouterGateParams, x_stride);
    FIELD(RouterGateParams, hidden);
    FIELD(RouterGateParams, unused);
}

DEVICE void put_gemm(Words& words) {
    words.put(sizeof(GemmParams));
    FIELD(GemmParams, a);
    FIELD(GemmParams, b);
    FIELD(GemmParams, b_scale);
    FIELD(GemmParams, out);
    FIELD(GemmParams, header);
    FIELD(GemmParams, tiles);
    FIELD(GemmParams, sorted_pairs);
    FIELD(GemmParams, topk_weights);
    FIELD(GemmParams, accumulate);
    FIELD(GemmParams, a_stride);
    FIELD(GemmParams, accumulate_stride);
    FIELD(GemmParams, columns);
    FIELD(GemmParams, depth);
    FIELD(GemmParams, top_k);
    FIELD(GemmParams, gate_first);
    words.put(sizeof(SplitGemmParams));
    FIELD(SplitGemmParams, gemm);
    FIELD(SplitGemmParams, partials);
    FIELD(SplitGemmParams, tickets);
}

DEVICE void put_combine(Words& words) {
    words.put(sizeof(CombineParams));
    FIELD(CombineParams, y);
    FIELD(CombineParams, pair_rows);
    FIELD(CombineParams, topk_weights);
    FIELD(CombineParams, out);
    FIELD(CombineParams, out_f32);
    FIELD(CombineParams, out_stride);
    FIELD(CombineParams, tokens);
    FIELD(CombineParams, hidden);
    FIELD(CombineParams, top_k);
    FIELD(CombineParams, unused);
}

DEVICE void put_probe(Words& words) {
    words.put(sizeof(ProbeParams));
    FIELD(ProbeParams, from);
    FIELD(ProbeParams, to);
    FIELD(ProbeParams, flag);
    FIELD(ProbeParams, bytes);
    FIELD(ProbeParams, limit_ns);
    FIELD(ProbeParams, variant);
    FIELD(ProbeParams, seed);
    words.put(sizeof(ConfigCheckParams));
    FIELD(ConfigCheckParams, words);
    FIELD(ConfigCheckParams, capacity);
    FIELD(ConfigCheckParams, unused);
}

DEVICE void put_constants(Words& words) {
    words.put(sizeof(TensorMap));
    words.put(kMaxExperts);
    words.put(kMaxTopK);
    words.put(kMaxGroups);
    words.put(kAlignSmallPairs);
    words.put(kStatusNonFiniteLogit);
    words.put(kStatusBadExpertId);
    words.put(kStatusCapacity);
    words.put(kSoftmax);
    words.put(kSoftmaxOverTopK);
    words.put(kSigmoid);
    words.put(kSoftplusSqrt);
    words.put(kPrototype);
}

KERNEL(1, 1) config_check(GRID_CONSTANT ConfigCheckParams params) {
    Words words{params.words, params.capacity, 0};
    put_tables(words);
    put_align(words);
    put_router(words);
    put_gemm(words);
    put_combine(words);
    put_probe(words);
    put_constants(words);
    words.words[0] = words.count;
}
