/* What host and device sides of attention_decode share. Strides are in elements. */
#ifndef ATTENTION_DECODE_ARGS_H
#define ATTENTION_DECODE_ARGS_H

#include "common/types.h"

/* An array [b, heads, width], or of one value a head. */
struct decode_rows {
    const void *data;
    int64_t sequence, head;
};

/* A cache [pages, page, heads, width]. */
struct decode_cache {
    const void *data;
    int64_t page, token, head;
};

struct decode_args {
    struct decode_rows q, o, lse; /* o and lse are written; lse's data may be NULL */
    struct decode_cache k, v;
    const int32_t *page_table, *seq_lens, *shared_table, *shared_len;
    const float *k_scale, *v_scale;
    const void *sinks;
    int64_t table_row; /* from a row of page_table to the next */
    int64_t b, pages, max_pages, shared_pages;
    int64_t window; /* 0: all is seen */
    float scale, softcap;
};

#endif
