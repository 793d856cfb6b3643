/* What host and device sides of mla_decode share. Strides are in elements of the array.
 *
 * A device may count on nothing in page_table, seq_lens and indices: a length is read as one from 0
 * to max_pages * page, and as 0 where the cache has no pages; a page outside the cache as page 0;
 * an index outside it as none. */
#ifndef MLA_DECODE_ARGS_H
#define MLA_DECODE_ARGS_H

#include "common/types.h"

/* Widths of a row: keys, and the values among them; bytes of a token of kv_dtype=e4m3. */
#define MLA_DK 576
#define MLA_DV 512
#define MLA_TOKEN_BYTES 656
#define MLA_GROUP 128 /* values of one factor */

/* An array [b, sq, hq, width]. */
struct mla_heads {
    const void *data;
    int64_t sequence, token, head;
};

struct mla_decode_args {
    struct mla_heads q, o, lse; /* o and lse are written; lse: f32 of width 1, or data NULL */
    const void *kv_cache;
    int64_t cache_page, cache_token; /* strides of kv_cache; e4m3: bytes */
    const int32_t *page_table, *seq_lens, *indices;
    int64_t table_sequence;                  /* stride of page_table */
    int64_t indices_sequence, indices_token; /* strides of indices */
    int64_t b, pages, max_pages, topk;
    float scale;
};

#endif
