/* The gated delta rule, STEPS tokens of each sequence: a block has BV columns of v of one value
 * head's state S, K of them long, in registers, from the first token to the last. Of every token
 *
 *     S = e^g S        m = S^T key        S = S + key (beta (value - m))^T        o = S^T query
 *
 * with the scale in the query. In memory the slab is OUTER rows of INNER elements; a warp has
 * OUTER / WARPS of the rows, of which it reads GROUPS at a time, each with LANES lanes, ACCESS
 * bytes a lane:
 *
 *                    rows       a row     a sum (m, o) is over
 *     [v, k]  vk     BV         K         a row: lanes, by shuffles. No warp needs another
 *     [k, v]  kv     K          BV        rows: registers, groups by shuffles, warps by shared
 *                                         memory, with two barriers a token
 *
 *     1. Loads of the first token, then of the whole slab, all in flight together.
 *     2. Activations in f32: norms, gate, sigmoid. Every warp makes what it needs itself: it is far
 *        less than its share of the state.
 *     3. Loads of the next token.
 *     4. The token. SAVE stores the slab after each; else after the last.
 *
 * Memory bound: a state there and back is 128 KiB a head of 128 by 128 f32, at 4.3 TB/s 62 us for
 * 64 sequences of 32 heads. What hides the latency is the slabs of all warps of an SM: with 32
 * elements a thread, 24 warps have 96 KiB in flight, where 25 would do.
 *
 * A slot outside the pool: o is zeros and nothing else is touched. With TREE a token begins from
 * what its parent stored, rounded as it was stored (each thread reads what it wrote itself); with
 * no parent from the state before. Sums are in a fixed order. */
#include "common/cuda/load.cuh"
#include "kda_decode_args.h"
#include "kda_kinds.h"

#ifndef STEPS
#define STEPS 1
#endif
#ifndef H
#define H 1
#endif
#ifndef HV
#define HV 1
#endif
#ifndef K
#define K 128
#endif
#ifndef V
#define V 128
#endif
#ifndef DTYPE
#define DTYPE DT_BF16
#endif
#ifndef STATE
#define STATE DT_F32
#endif
#ifndef G_DTYPE
#define G_DTYPE DT_F32
#endif
#ifndef BETA_DTYPE
#define BETA_DTYPE DT_F32
#endif
#ifndef GATE
#define GATE KDA_GATE_NONE
#endif
#ifndef IS_SCALAR
#define IS_SCALAR 0
#endif
#ifndef L2NORM
#define L2NORM 0
#endif
#ifndef BETA_LOGITS
#define BETA_LOGITS 0
#endif
#ifndef NEG_EIGVAL
#define NEG_EIGVAL 0
#endif
#ifndef HAS_BIAS
#define HAS_BIAS 0
#endif
#ifndef IS_VK
#define IS_VK 0
#endif
#ifndef POOL
#define POOL 0
#endif
#ifndef HAS_FROM
#define HAS_FROM 0
#endif
#ifndef HAS_TO
#define HAS_TO 0
#endif
#ifndef SAVE
#define SAVE 0
#endif
#ifndef TREE
#define TREE 0
#endif
#ifndef ACCESS
#define ACCESS 16
#endif
#ifndef Q_ACCESS
#define Q_ACCESS 16
#endif
#ifndef K_ACCESS
#define K_ACCESS 16
#endif
#ifndef V_ACCESS
#define V_ACCESS 16
#endif
#ifndef G_ACCESS
#define G_ACCESS 16
#endif
#ifndef BV
#define BV 32
#endif
#ifndef WARPS
#define WARPS 4
#endif

#if IS_VK
#include "kda_decode_vk.cuh"
#else
#include "kda_decode_kv.cuh"
#endif

/* ---- The block ------------------------------------------------------------------------------- */

__device__ __forceinline__ void write_zeros(const struct kda_decode_args &args,
                                            const struct place &at)
{
    for (int token = 0; token < STEPS; token++) {
        char *to = (char *)row_of<DTYPE>(args.o, at, token, at.head);
        for (int c = at.warp * 32 + at.lane; c < BV; c += THREADS)
            store_from_f32(DTYPE, (void *)element(DTYPE, to, at.column + c), 0.0f);
    }
}

__device__ __forceinline__ void work(const struct kda_decode_args &args, struct place &at)
{
    /* 1. The slot's load and the token's are in flight together, the slab's follow. */
    struct inputs next;
    inputs_load(next, args, at, 0);
    at.slot = POOL ? args.slots[at.sequence] : at.sequence;
    if (POOL && (at.slot < 0 || at.slot >= args.capacity)) {
        write_zeros(args, at);
        return;
    }
    slab s;
    slab_begin(s, args, at);
    const struct gate gate(args, at.head);

#pragma unroll 1
    for (int token = 0; token < STEPS; token++) {
        struct inputs now = next;
        if (STEPS > 1 && token + 1 < STEPS)
            inputs_load(next, args, at, token + 1);
        if (TREE && token > 0)
            slab_branch(s, args, at, token);
        advance(s, now, gate, args, at, token);
        if (HAS_TO && (SAVE || token == STEPS - 1))
            slab_store(s, slab_of(args.to, at, SAVE ? at.sequence : at.slot, token), args.to.row);
    }
}

/* One block an SM is promised: else ptxas, on some targets, spills so that more would fit. */
extern "C" __global__ void __launch_bounds__(THREADS, 1)
    kda_decode_cuda(const __grid_constant__ struct kda_decode_args args)
{
    const int64_t total = args.n * (HV * SLABS);
    for (int64_t i = blockIdx.x; i < total; i += gridDim.x) {
        struct place at;
        at.sequence = i / (HV * SLABS);
        at.head = (int)(i / SLABS % HV);
        at.column = (int)(i % SLABS) * BV;
        at.warp = threadIdx.x / 32;
        at.lane = threadIdx.x % 32;
        work(args, at);
    }
}
