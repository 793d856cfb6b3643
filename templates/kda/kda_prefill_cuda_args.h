/* What kda_prefill's kernels for GPUs read: the contract between their host side and the device
 * code, and the layout of the workspace that they share. */
#ifndef KDA_PREFILL_CUDA_ARGS_H
#define KDA_PREFILL_CUDA_ARGS_H
#include "common/types.h"

#define KDA_TILE_BYTES 512 /* 16 x 16 16-bit elements */

/* Of a chunk of a head, in the order in which kda_prefill_state reads: tiles of w and of the
 * queries (chunk / 16 of tokens for each 16 channels of k), of u and of the outputs' share within
 * the chunk (as many for each 16 channels of v), of keys (k / 16 for each 16 tokens), then k f32
 * decays. */
#define KDA_PART_BYTES(chunk, width) ((chunk) * (width)*2)
#define KDA_RECORD_BYTES(chunk, k, v)                                                              \
    (3 * KDA_PART_BYTES(chunk, k) + 2 * KDA_PART_BYTES(chunk, v) + 4 * (k))

/* Of a segment of a head: its end and its map (kda_segments.cuh). */
#define KDA_END_BYTES(k, v) ((k) * (v)*4)
#define KDA_SEGMENT_BYTES(k, v) (KDA_END_BYTES(k, v) + (k) * (k)*4)

/* Shared memory of kda_prefill_intra (struct intra_shared) and of kda_prefill_state. */
#define KDA_SOME_PAIRS(blocks) ((blocks) > 1 ? (blocks) * ((blocks)-1) / 2 : 1)
#define KDA_BLOCKS_SHARED(blocks, k)                                                               \
    (((blocks) * ((blocks) + 1) / 2 + KDA_SOME_PAIRS(blocks) + (blocks)) * 2 * KDA_TILE_BYTES +    \
     ((k) > 64 ? (k) / 64 - 1 : 1) * (blocks)*2048 + (blocks)*1280)
#define KDA_GREATER(a, b) ((a) > (b) ? (a) : (b))
#define KDA_INTRA_OF(blocks, k, is_scalar)                                                         \
    ((blocks) * (k) / 16 * 2 * KDA_TILE_BYTES +                                                    \
     ((is_scalar) ? 16 : KDA_SOME_PAIRS(blocks) * (k) / 16 * KDA_TILE_BYTES) +                     \
     KDA_GREATER(KDA_BLOCKS_SHARED(blocks, k), (is_scalar) ? 0 : (blocks) * (k)*64) +              \
     (blocks) * ((is_scalar) ? 4 : (k)) * 12 + (blocks) * (k) / 64 * 256 + (blocks)*384)
#define KDA_INTRA_SHARED(chunk, k, is_scalar) KDA_INTRA_OF((chunk) / 16, k, is_scalar)
#define KDA_STATE_STAGE(chunk, k, bv) KDA_RECORD_BYTES(chunk, k, bv)
#define KDA_STATE_SHARES(chunk, k, bv) ((bv) / 16 * ((chunk) + (k)) / 16 * KDA_TILE_BYTES)
#define KDA_STATE_BARRIERS 16 /* of a stage */

/* Strides are in elements: of a token, a head, a sequence or slot, a row of a head's state; the
 * innermost one is 1. */
struct kda_prefill_cuda_args {
    const void *q, *k, *v, *g, *beta;
    const float *A_log, *dt_bias;
    const void *cu_seqlens;
    const int32_t *slots;
    const void *before; /* initial_state or states */
    void *after;        /* final_state or states */
    void *o, *chunk_states;
    char *records;  /* [chunks][hv], see above */
    char *segments; /* [segments][hv], likewise */
    int32_t *first; /* varlen: of each sequence its first chunk, and how many there are in all */
    int64_t t, n, capacity, chunks; /* chunks: what there is room for in records */
    int64_t q_t, q_h, k_t, k_h, v_t, v_h, g_t, g_h, beta_t, beta_h, o_t, o_h;
    int64_t bias_h;
    int64_t before_n, before_h, before_row, after_n, after_h, after_row;
    int64_t chunks_n, chunks_h, chunks_row; /* of chunk_states */
    int32_t hv, group;                      /* group: value heads of a head */
    float scale, lower_bound;
};
#endif
