/* What host and device sides of set_kv_buffer share. Strides are in elements of the array. */
#ifndef SET_KV_BUFFER_ARGS_H
#define SET_KV_BUFFER_ARGS_H

#include "common/types.h"

/* A token of layout=mla: 512 of e4m3, 4 f32 factors of 128 of them each, 64 bf16. */
#define KV_MLA_WIDTH 576
#define KV_MLA_CODES 512
#define KV_MLA_GROUP 128
#define KV_MLA_TAIL 64
#define KV_MLA_BYTES 656

/* Rows [t, heads, width]. */
struct kv_rows {
    const void *data; /* q's are written too */
    int64_t token, head;
};

/* A cache [pages, page, heads, width]. */
struct kv_cache {
    void *data;
    int64_t page, token, head;
};

struct set_kv_buffer_args {
    struct kv_rows k, v, q;
    struct kv_cache k_cache, v_cache;
    const void *loc, *positions, *cos_sin;
    const float *k_scale, *v_scale;
    int64_t cos_sin_row; /* stride */
    int64_t t, rows;     /* rows: of a cache, pages * page */
    int64_t max_position;
    int64_t block; /* CPU: tokens that one block of the grid handles */
};

#endif
