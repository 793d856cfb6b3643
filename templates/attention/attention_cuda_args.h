/* What attention_sm80 and attention_sm90 read: the contract between host side and device code. */
#ifndef ATTENTION_CUDA_ARGS_H
#define ATTENTION_CUDA_ARGS_H
#include "common/types.h"

/* An array [sequence, token, head, width]; strides are in bytes. */
struct attention_rows {
    void *data;
    int64_t sequence, token, head;
};

/* A cache [page, token, head, width]; strides are in bytes. */
struct attention_cache {
    const void *data;
    int64_t page, token, head;
    const float *scale; /* KV_SCALE: factors of what it holds */
};

struct attention_cuda_args {
    struct attention_rows q, k, v, o;
    float *lse; /* [sequence, token, head] */
    int64_t lse_sequence, lse_token;
    const void *sinks;
    const int32_t *cu_seqlens_q, *cu_seqlens_k; /* VARLEN */

    /* PREFIX: keys ahead of k, by page_table and prefix_lens or by kv_indices and kv_indptr. */
    struct attention_cache k_cache, v_cache;
    const int32_t *table, *lens; /* page_table, prefix_lens; or kv_indices, kv_indptr */
    int64_t table_row;           /* from a sequence to the next in page_table */
    int32_t max_pages, pages, page_bits, indices;

    float factor; /* > 0: of scores, to base 2; with a softcap c that of tanh, c log2(e) */
    float sign;   /* of the scale: 1, -1 or 0; with a softcap 1, or 0 where inner is 0 */
    float inner;  /* scale / c; without a softcap 0 */
    int32_t b, sq, sk, hq, group, window; /* group: heads of q to one of k; window 0: none */
    int32_t tiles;                        /* dense: of the rows of a head */
    int32_t section;                      /* dense: heads of sequences that run together */
};
#endif
