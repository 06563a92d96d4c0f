// Router: which experts each token visits, and with which weight.
//
// One warp takes a row of logits: expert e belongs to lane e mod 32, which keeps its scores in
// shared memory as order-preserving integers. k rounds of a maximum over the warp choose the
// experts: highest score first, ties to the lowest id. Rows of at most 32 experts share a warp,
// each in as many lanes as the next power of two. Slot j of the result belongs to lane j of the
// row, which computes its weight. All arithmetic is that of src/kernels/reference.rs, operation by
// operation (common.cuh), so ids and weights equal the CPU's bit for bit.
//
// Modes (RouterScoring). The choice is made by: softmax, softmax_over_top_k: the logit, or softmax
// value (logit) plus bias; sigmoid, softplus_sqrt: the transformed logit plus bias; prototype: in
// each of top_k groups of experts / top_k, the logit, or the softmax value within the group plus
// bias. The weight never contains the bias. With n_group > 1 (not in prototype) only the topk_group
// best groups are chosen from; a group's score is the sum of its two best experts, or its best.
// Then weights are divided by their sum if `renormalize` (a sum of 0 leaves weights of 0) and
// multiplied by `scaling`.
//
// A NaN logit counts as -infinity and sets kStatusNonFiniteLogit. Ids of a row are distinct for any
// logits. A row with nothing above -infinity has weights 0, and takes the lowest ids, or those of
// highest bias.
//
// Launches. RouterParams by value. Grid ceil(tokens / rows) blocks of 256 threads, where rows, the
// rows of a block, is 8 for experts > 32 and 8 * (32 / P) for the next power of two P >= experts
// otherwise (experts 8: 32 rows). 1 <= tokens; 1 <= experts <= 1024; 1 <= top_k <= min(experts,
// 32); n_group divides experts and is at most 32; topk_group * (experts / n_group) >= top_k;
// prototype: top_k divides experts. logits_stride >= experts. bias is finite.
//   router_topk_f32, router_topk_bf16   by the type of the logits.
// Shared memory: 1024 * ceil(experts / 32) + 16 bytes, at most 32,784; with fuse_align the larger
// of that and 22 * align.experts + 148. `fuse_align` has the last block to finish (tickets[0], 0
// before and after) do what align_small does, with align.topk_ids = topk_ids, align.pairs = tokens
// * (top_k + shared) <= 4096 and align.experts = experts + shared <= 1024. The plan uses it up to
// 1024 pairs, where 8 warps instead of 16 should cost less than a launch (not measured yet).
//
//   router_topk_gate_bf16   RouterGateParams; grid ceil(experts / 2), 256 threads, meant for tokens
//                           <= 16.
// Computes the logits first, x . gate^T in f32 in a fixed order, into router.logits, which is
// written here ([tokens, experts] f32 with logits_stride); the last block to finish (tickets[0])
// then routes all rows, and aligns with fuse_align. hidden and x_stride are multiples of 8, x and
// gate 16-byte aligned. Shared memory: the larger of 1024 * ceil(experts / 32) + 20 and, with
// fuse_align, 22 * align.experts + 144 bytes.
//
// Floor: the logits once, 4 or 2 bytes an expert: 5.6 us for 16,384 tokens of 256 f32 at 3 TB/s. At
// few tokens it is latency: k rounds of two warp reductions, some 60 cycles each.

#include "align.cuh"

// 8 warps: small batches then spread over many SMs, and the fused align still has 256 threads.
constexpr u32 kRouterThreads = 256;
constexpr u32 kRouterWarps = kRouterThreads / kWarpSize;
static_assert(kMaxTopK <= kWarpSize, "each slot has a lane of its own");
static_assert(kMaxGroups <= kWarpSize, "each group has a lane of its own, and a bit");

// Logits a lane requests before it uses the first: 256 experts are one trip to memory.
constexpr u32 kLoadBatch = 8;

// Tokens and experts whose products with the gate a thread adds up together: the gate is read once
// for 4 tokens, which covers decode, and 2 experts a block put 256 experts on 128 SMs.
constexpr u32 kGateTokens = 4;
constexpr u32 kGateExperts = 2;
// Vectors of the gate that a thread requests before it uses the first: 4 cover a hidden size of
// 8192, so that the gate costs one trip to memory.
constexpr u32 kGateSteps = 4;

constexpr u32 kMinusInfinity = 0xff800000u;
constexpr u32 kNobody = 0xffffffffu;  // no expert's id

DEVICE float load_logit(const float* logits, u64 at) { return logits[at]; }
DEVICE float load_logit(const bf16* logits, u64 at) { return to_f32(logits[at]); }

// An integer whose unsigned order is that of the floats; both zeros are one. Never 0, which marks
// what cannot be chosen: NaN, whose integer 0 would be, counts as -infinity.
DEVICE u32 order_key(float v) {
    u32 bits = float_bits(v != v ? bits_float(kMinusInfinity) : add_rn(v, 0.0f));
    return bits ^ ((bits >> 31) != 0 ? 0xffffffffu : 0x80000000u);
}
DEVICE float key_value(u32 key) {
    return bits_float((key >> 31) != 0 ? key ^ 0x80000000u : ~key);
}

// A score and whose it is.
struct Best {
    u32 key;
    u32 id;
};

DEVICE bool is_better(u32 key, u32 id, const Best& than) {
#ifdef MUTANT_TIES_TO_HIGHEST
    return key > than.key || (key == than.key && id > than.id);
#else
    return key > than.key || (key == than.key && id < than.id);
#endif
}

// Best of the lanes of each row; every lane of the row gets it. All lanes of the warp take part.
DEVICE Best best_of_row(Best best, u32 lanes) {
    if (lanes < kWarpSize) {
        for (u32 d = lanes / 2; d > 0; d /= 2) {
            u32 key = shfl_xor(kFullWarp, best.key, d);
            u32 id = shfl_xor(kFullWarp, best.id, d);
            if (is_better(key, id, best)) {
                best = Best{key, id};
            }
        }
        return best;
    }
    u32 key = redux_max(kFullWarp, best.key);
    bool equal = best.key == key;
#ifdef MUTANT_TIES_TO_HIGHEST
    return Best{key, redux_max(kFullWarp, equal ? best.id : 0)};
#else
    return Best{key, ~redux_max(kFullWarp, equal ? ~best.id : 0)};
#endif
}

// Lanes that share a row: the next power of two from `experts` on, at most a warp.
DEVICE u32 row_lanes(u32 experts) {
    u32 lanes = 1;
    while (lanes < experts && lanes < kWarpSize) {
        lanes *= 2;
    }
    return lanes;
}

// One row of logits as the lanes of a warp see it. A lane's keys are a column of shared memory that
// no other lane reads: registers would need all loops unrolled for 32 scores, which the many modes
// do not survive (128 registers and spills), and the scan of a column costs one bank-conflict-free
// load a key.
template <typename Logit>
struct Row {
    const RouterParams& p;
    u32* keys;  // key of expert i * 32 + lane at [i * 32]; 0: not to be chosen
    u32 token;
    u32 lane;   // within the row
    u32 lanes;  // of the row: a power of two; 32 when it has more than 32 experts
    u32 count;  // keys of this lane: ceil(experts / 32), and 1 for rows that share a warp
    bool exists;

    DEVICE u32 expert(u32 i) const { return i * kWarpSize + lane; }
    DEVICE u32& key(u32 i) const { return keys[i * kWarpSize]; }
    // Whether this lane has a slot of a row that exists.
    DEVICE bool has_slot() const { return exists && lane < p.top_k; }

    DEVICE float raw_logit(u32 expert) const {
        return load_logit((const Logit*)p.logits, (u64)token * p.logits_stride + expert);
    }
    DEVICE float logit(u32 expert) const {
        float v = raw_logit(expert);
        return v != v ? bits_float(kMinusInfinity) : v;
    }

    // Reads the logits into keys; whether one is NaN.
    DEVICE bool load() const {
        bool nan = false;
        for (u32 i = 0; i < count; i += kLoadBatch) {
            float v[kLoadBatch];
#pragma unroll
            for (u32 b = 0; b < kLoadBatch; ++b) {
                bool in = exists && i + b < count && expert(i + b) < p.experts;
                v[b] = in ? raw_logit(expert(i + b)) : 0.0f;
            }
#pragma unroll
            for (u32 b = 0; b < kLoadBatch; ++b) {
                if (i + b < count) {
                    bool in = exists && expert(i + b) < p.experts;
                    nan |= v[b] != v[b];
                    key(i + b) = in ? order_key(v[b]) : 0;
                }
            }
        }
        return nan;
    }

    // This lane's best among experts [begin, end) except `but`.
    DEVICE Best best_of_lane(u32 begin, u32 end, u32 but) const {
        Best best{0, kNobody};
        for (u32 i = 0; i < count; ++i) {
            u32 id = expert(i), of_id = key(i);
            if (of_id != 0 && id >= begin && id < end && id != but && is_better(of_id, id, best)) {
                best = Best{of_id, id};
            }
        }
        return best;
    }
    DEVICE Best best_in(u32 begin, u32 end, u32 but) const {
        return best_of_row(best_of_lane(begin, end, but), lanes);
    }

    // Sum over experts [begin, end) of the softmax powers of their logits, in the fixed order.
    DEVICE float power_sum(u32 begin, u32 end, float max) const {
        float sum = 0.0f;
        for (u32 i = 0; i < count; ++i) {
            if (key(i) != 0 && expert(i) >= begin && expert(i) < end) {
                sum = add_rn(sum, softmax_power(key_value(key(i)), max));
            }
        }
        return lane_sum(sum, lanes);
    }

    // Score of a logit without bias; `max` and `sum` are those of its softmax.
    DEVICE float score(float l, float max, float sum) const {
        switch (p.scoring) {
            case kSoftmaxOverTopK:
                return l;
            case kSigmoid:
                return sigmoid_f32(l);
            case kSoftplusSqrt:
                return sqrt_softplus_f32(l);
            default:
                return share_of(softmax_power(l, max), sum);
        }
    }

    // Replaces the logits of experts [begin, end) by what the choice is made by.
    DEVICE void rescore(u32 begin, u32 end, float max, float sum) const {
        for (u32 i = 0; i < count; ++i) {
            if (key(i) != 0 && expert(i) >= begin && expert(i) < end) {
                float s = score(key_value(key(i)), max, sum);
                key(i) = order_key(p.bias ? add_rn(s, p.bias[expert(i)]) : s);
            }
        }
    }

    // Keeps the experts of the best groups only.
    DEVICE void limit_groups() const {
        u32 size = p.experts / p.n_group, group_key = 0, kept = 0;
        for (u32 g = 0; g < p.n_group; ++g) {
            Best first = best_in(g * size, g * size + size, kNobody);
            float of_group = key_value(first.key);
            if (p.group_top1 == 0 && size > 1) {
                Best second = best_in(g * size, g * size + size, first.id);
                of_group = add_rn(of_group, key_value(second.key));
            }
            group_key = lane == g ? order_key(of_group) : group_key;
        }
        for (u32 j = 0; j < p.topk_group; ++j) {
            Best best = best_of_row(Best{group_key, lane}, lanes);
            kept |= 1u << (best.id % kMaxGroups);
            group_key = best.id == lane ? 0 : group_key;
        }
        for (u32 i = 0; i < count; ++i) {
            u32 group = min_of(expert(i) / size, kMaxGroups - 1);
            key(i) = (kept >> group & 1) != 0 ? key(i) : 0;
        }
    }

    // The best top_k of what can be chosen; lane j gets slot j.
    DEVICE Best choose() const {
        Best own{0, 0}, best = best_of_lane(0, p.experts, kNobody);
        for (u32 slot = 0; slot < p.top_k; ++slot) {
            Best top = best_of_row(best, lanes);
            own = lane == slot ? top : own;
            // Only the lane that held it looks for its next.
            if (best.id == top.id && top.key != 0) {
                key(top.id / kWarpSize) = 0;
                best = best_of_lane(0, p.experts, kNobody);
            }
        }
        return own;
    }

    // Chooses among all experts; `max` and `sum` become those of the softmax over all, if it is
    // used.
    DEVICE Best choose_among_all(float& max, float& sum) const {
        if (p.scoring == kSoftmax) {
            max = key_value(best_in(0, p.experts, kNobody).key);
            sum = power_sum(0, p.experts, max);
        }
        if (p.bias != nullptr || p.scoring == kSigmoid || p.scoring == kSoftplusSqrt) {
            rescore(0, p.experts, max, sum);
        }
        if (p.n_group > 1) {
            limit_groups();
        }
        return choose();
    }

    // Chooses the best of each group; `max` and `sum` become those of this lane's group.
    DEVICE Best choose_prototypes(float& max, float& sum) const {
        u32 size = p.experts / p.top_k;
        Best own{0, 0};
        for (u32 slot = 0; slot < p.top_k; ++slot) {
            u32 begin = slot * size, end = begin + size;
            Best best = best_in(begin, end, kNobody);
            float of_best = key_value(best.key), of_all = power_sum(begin, end, of_best);
            if (p.bias != nullptr) {
                rescore(begin, end, of_best, of_all);
                best = best_in(begin, end, kNobody);
            }
            if (lane == slot) {
                own = best;
                max = of_best;
                sum = of_all;
            }
        }
        return own;
    }

    // Weight of this lane's slot before renormalisation.
    DEVICE float weigh(const Best& own, float max, float sum) const {
        float known = key_value(own.key);
        bool scored = p.scoring == kSigmoid || p.scoring == kSoftplusSqrt;
#ifndef MUTANT_BIAS_IN_WEIGHT
        if (p.bias != nullptr) {
            // The key holds score and bias: the score comes from the logit once more.
            known = has_slot() ? logit(own.id) : 0.0f;
            scored = false;
        }
#endif
        if (p.scoring == kSoftmaxOverTopK) {
            Best top{has_slot() ? order_key(known) : 0, lane};
            max = key_value(best_of_row(top, lanes).key);
            float power = has_slot() ? softmax_power(known, max) : 0.0f;
            return share_of(power, lane_sum(power, lanes));
        }
        return scored ? known : score(known, max, sum);
    }

    // Routes the row; by all lanes of the warp.
    DEVICE void route() const {
        bool nan = load();
        if (ballot(kFullWarp, nan) != 0 && thread_index() % kWarpSize == 0) {
            red_or_gpu(&p.header->status, kStatusNonFiniteLogit);
        }
        float max = 0.0f, sum = 0.0f;
        Best own = p.scoring == kPrototype ? choose_prototypes(max, sum)
                                           : choose_among_all(max, sum);
        float w = weigh(own, max, sum);
        w = has_slot() ? w : 0.0f;
        if (p.renormalize != 0) {
            float total = lane_sum(w, lanes);
            w = total > 0.0f ? div_rn(w, total) : w;
        }
        w = mul_rn(w, p.scaling);
        u64 first = (u64)token * (p.top_k + p.shared);
        if (has_slot()) {
            p.topk_ids[first + lane] = (i32)own.id;
            p.topk_weights[first + lane] = w;
        }
        if (exists && p.shared != 0 && lane == 0) {
            p.topk_ids[first + p.top_k] = (i32)p.experts;
            p.topk_weights[first + p.top_k] = 1.0f;
        }
    }
};

// Routes rows: this warp those of its own among `warps` warps, of which it is number `warp`.
template <typename Logit>
DEVICE void route_rows(const RouterParams& p, Arena& arena, u32 warp, u32 warps) {
    u32 lane = thread_index() % kWarpSize, own = thread_index() / kWarpSize;
    u32 lanes = row_lanes(p.experts), rows = kWarpSize / lanes;
    u32 count = ceil_div(p.experts, kWarpSize);
    u32* keys = arena.take<u32>(kRouterThreads * count, 4) + own * kWarpSize * count + lane;
    u32 tokens = p.tokens;
#ifdef MUTANT_ROUTER_TAIL
    tokens -= 1;
#endif
    for (u32 first = warp * rows; first < tokens; first += warps * rows) {
        u32 token = first + lane / lanes;
        Row<Logit> row{p, keys, token, lane % lanes, lanes, count, token < tokens};
        row.route();
    }
}

// Whether this block is the last of the grid to come here; the counter is then 0 again. What every
// block wrote before is visible to the last one after it.
DEVICE bool arrives_last(u32* ticket, u32* flag) {
    block_sync();
    if (thread_index() == 0) {
        bool last = atom_add_acq_rel_gpu(ticket, 1) == grid_blocks() - 1;
#ifndef MUTANT_TICKET_NOT_RESET
        if (last) {
            st_release_gpu(ticket, 0);
        }
#endif
        *flag = last ? 1 : 0;
    }
    block_sync();
    return *flag != 0;
}

template <typename Logit>
DEVICE void route_and_align(const RouterParams& p) {
    griddep_wait();
    griddep_launch();
    Arena arena;
    u32 warp = block_index() * kRouterWarps + thread_index() / kWarpSize;
    route_rows<Logit>(p, arena, warp, grid_blocks() * kRouterWarps);
    if (p.fuse_align != 0) {
        // The keys are dead: the align takes the same memory again.
        arena = Arena();
        u32* flag = arena.take<u32>(1, 4);
        if (arrives_last(&p.header->tickets[0], flag)) {
            align_in_one_block(p.align, arena, kRouterWarps);
        }
    }
}

// ---- fused with the gate's product ----------------------------------------------------------

// Adds to sums[t][e] the products of one vector of x and gate.
DEVICE void add_products(float (&sum)[kGateTokens][kGateExperts], const u32x4 (&x)[kGateTokens],
                         const u32x4 (&gate)[kGateExperts]) {
#pragma unroll
    for (u32 t = 0; t < kGateTokens; ++t) {
#pragma unroll
        for (u32 e = 0; e < kGateExperts; ++e) {
            const u32 a[4] = {x[t].x, x[t].y, x[t].z, x[t].w};
            const u32 b[4] = {gate[e].x, gate[e].y, gate[e].z, gate[e].w};
#pragma unroll
            for (u32 i = 0; i < 4; ++i) {
                sum[t][e] = fma_rn(low_f32(a[i]), low_f32(b[i]), sum[t][e]);
                sum[t][e] = fma_rn(high_f32(a[i]), high_f32(b[i]), sum[t][e]);
            }
        }
    }
}

// Logits of kGateTokens tokens and this block's experts. All threads split the hidden size; sums
// are made in one order: each thread's vectors, the lanes of a warp as a tree, the warps one by
// one.
DEVICE void gate_logits(const RouterGateParams& p, float* partial, u32 first_token) {
    u32 thread = thread_index(), warp = thread / kWarpSize, lane = thread % kWarpSize;
    u32 first_expert = block_index() * kGateExperts;
    const RouterParams& r = p.router;
    float sum[kGateTokens][kGateExperts] = {};
    constexpr u32 kStep = 8 * kRouterThreads;
    for (u32 first = 8 * thread; first < p.hidden; first += kGateSteps * kStep) {
        u32x4 gate[kGateSteps][kGateExperts];
#pragma unroll
        for (u32 s = 0; s < kGateSteps; ++s) {
#pragma unroll
            for (u32 e = 0; e < kGateExperts; ++e) {
                u64 expert = min_of(first_expert + e, r.experts - 1);
                u32 column = first + s * kStep;
                gate[s][e] = u32x4{0, 0, 0, 0};
                if (column < p.hidden) {
                    gate[s][e] = ld_readonly(p.gate + expert * p.hidden + column);
                }
            }
        }
#pragma unroll
        for (u32 s = 0; s < kGateSteps; ++s) {
            u32 column = first + s * kStep;
            if (column < p.hidden) {
                u32x4 x[kGateTokens];
#pragma unroll
                for (u32 t = 0; t < kGateTokens; ++t) {
                    u64 token = min_of(first_token + t, r.tokens - 1);
                    x[t] = ld_readonly(p.x + token * p.x_stride + column);
                }
                add_products(sum, x, gate[s]);
            }
        }
    }
#pragma unroll
    for (u32 t = 0; t < kGateTokens; ++t) {
#pragma unroll
        for (u32 e = 0; e < kGateExperts; ++e) {
            float of_warp = lane_sum(sum[t][e], kWarpSize);
            if (lane == 0) {
                partial[(warp * kGateTokens + t) * kGateExperts + e] = of_warp;
            }
        }
    }
    block_sync();
    u32 token = first_token + thread / kGateExperts, expert = first_expert + thread % kGateExperts;
    if (thread < kGateTokens * kGateExperts && token < r.tokens && expert < r.experts) {
        float logit = 0.0f;
        for (u32 w = 0; w < kRouterWarps; ++w) {
            logit = add_rn(logit, partial[w * kGateTokens * kGateExperts + thread]);
        }
        ((float*)r.logits)[token * r.logits_stride + expert] = logit;
    }
    block_sync();
}

DEVICE void route_from_gate(const RouterGateParams& p) {
    griddep_wait();
    griddep_launch();
    Arena arena;
    float* partial = arena.take<float>(kRouterWarps * kGateTokens * kGateExperts, 4);
    for (u32 token = 0; token < p.router.tokens; token += kGateTokens) {
        gate_logits(p, partial, token);
    }
    arena = Arena();
    u32* flag = arena.take<u32>(1, 4);
    if (arrives_last(&p.router.header->tickets[0], flag)) {
        route_rows<float>(p.router, arena, thread_index() / kWarpSize, kRouterWarps);
        if (p.router.fuse_align != 0) {
            block_sync();
            arena = Arena();
            align_in_one_block(p.router.align, arena, kRouterWarps);
        }
    }
}

// 6 blocks an SM are 48 warps with 40 registers a thread: enough rows in flight to cover the
// latency of each round's reductions.
KERNEL(kRouterThreads, 6) router_topk_f32(GRID_CONSTANT RouterParams params) {
    route_and_align<float>(params);
}
KERNEL(kRouterThreads, 6) router_topk_bf16(GRID_CONSTANT RouterParams params) {
    route_and_align<bf16>(params);
}
// One block an SM is all that the grid has, so registers may go to loads in flight.
KERNEL(kRouterThreads, 2) router_topk_gate_bf16(GRID_CONSTANT RouterGateParams params) {
    route_from_gate(params);
}
