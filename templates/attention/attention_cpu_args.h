/* What host and device sides of attention_prefill_cpu and attention_extend_cpu share. */
#ifndef ATTENTION_CPU_ARGS_H
#define ATTENTION_CPU_ARGS_H

#include "common/types.h"

/* Elements from one sequence (of a cache: page), token and head to the next. */
struct attention_strides {
    int64_t sequence, token, head;
};

struct attention_cpu_args {
    const void *q, *k, *v, *sinks;
    void *o;
    float *lse;
    const int32_t *cu_seqlens_q, *cu_seqlens_k; /* absent: sequences of sq and sk tokens */
    struct attention_strides q_step, k_step, v_step, o_step, lse_step;
    int64_t b, sq, sk; /* sequences; tokens of each, or of all together */
    int64_t group, window;
    int64_t tiles, tile_columns; /* of the grid: tile z * tile_columns + y, from the last one */
    float scale, softcap;

    /* attention_extend: prefixes in a paged cache. */
    const void *k_cache, *v_cache;
    const int32_t *page_table, *prefix_lens, *kv_indptr, *kv_indices;
    const float *k_scale, *v_scale;
    struct attention_strides k_cache_step, v_cache_step;
    int64_t pages, max_pages, table_step, indices;
};

#endif
