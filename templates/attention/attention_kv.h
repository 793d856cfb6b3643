/* Where attention_cpu finds a sequence's queries, and its keys and values: sequences, tiles of
 * rows, and blocks of keys packed as right factors.
 *
 * A block has at most BN keys of one kind: of the prefix, in pages, or beside the queries' own.
 * Those of a prefix are first gathered into rows of DTYPE; from e4m3 that loses nothing, since
 * factors of the cache are applied to scores and weights.
 *
 *     keys     BN / NR panels of KEY_UNITS x NR       a panel has NR keys
 *     values   VALUE_WIDTH / NR panels of BN units x NR   a panel has NR columns
 *
 * Whatever index arrays hold, nothing outside the arrays is read: lengths and places are clamped.
 * What is past a block's last key is zero. */
#ifndef ATTENTION_KV_H
#define ATTENTION_KV_H
#include "attention_cpu_args.h"
#include "common/cpu/attention_dtype.h"
#include "common/cpu/gemm_tile.h"

#define KEY_UNITS (KEY_WIDTH / UNIT_K)
#define BLOCK_UNITS (BN / UNIT_K)
#define ALIGNED __attribute__((aligned(64)))

INLINE int64_t clamp(int64_t value, int64_t most)
{
    return value < 0 ? 0 : value > most ? most : value;
}

/* A sequence, and the tile of its rows that is worked on. Row r is of query r / group and of head
 * r % group of those that share a head of k and v. */
struct sequence {
    int64_t number, first_q, queries; /* tokens */
    int64_t first_k, keys, prefix;    /* keys: the prefix among them; first_k: of those after it */
    int64_t first_row, rows;          /* of the tile; rows 0: there is no such tile */
};

INLINE void find_keys(const struct attention_cpu_args *args, struct sequence *s)
{
#if EXTEND
    s->first_k = s->first_q;
    if (BY_INDICES)
        s->prefix = clamp(args->kv_indptr[s->number + 1], args->indices) -
                    clamp(args->kv_indptr[s->number], args->indices);
    else
        s->prefix = clamp(args->prefix_lens[s->number], args->max_pages * PAGE);
    if (s->prefix < 0 || !args->pages)
        s->prefix = 0;
    s->keys = s->prefix + s->queries;
#else
    s->first_k = s->number * args->sk;
    s->keys = args->sk;
    if (VARLEN) {
        s->first_k = clamp(args->cu_seqlens_k[s->number], args->sk);
        s->keys = clamp(args->cu_seqlens_k[s->number + 1], args->sk) - s->first_k;
    }
    if (s->keys < 0)
        s->keys = 0;
#endif
}

/* The number of a packed sequence's first tile, counted through all of them. With one more for each
 * sequence before it than whole tiles of the tokens before it, every sequence has as many as it
 * needs; some tiles then are nobody's. */
INLINE int64_t first_tile(const struct attention_cpu_args *args, int64_t sequence)
{
    return clamp(args->cu_seqlens_q[sequence], args->sq) * args->group / BM + sequence;
}

INLINE void find_packed(const struct attention_cpu_args *args, int64_t tile, struct sequence *s)
{
    int64_t low = 0, high = args->b - 1; /* the last sequence whose first tile is not past this */
    while (low < high) {
        int64_t middle = (low + high + 1) / 2;
        if (first_tile(args, middle) <= tile)
            low = middle;
        else
            high = middle - 1;
    }
    s->number = low;
    s->first_q = clamp(args->cu_seqlens_q[low], args->sq);
    s->queries = clamp(args->cu_seqlens_q[low + 1], args->sq) - s->first_q;
    s->first_row = (tile - first_tile(args, low)) * BM;
}

static struct sequence find_tile(const struct attention_cpu_args *args, int64_t tile)
{
    struct sequence s = { .queries = args->sq };
    if (VARLEN || EXTEND) {
        find_packed(args, tile, &s);
    } else {
        int64_t tiles = (args->sq * args->group + BM - 1) / BM;
        s.number = tile / tiles;
        s.first_q = s.number * args->sq;
        s.first_row = tile % tiles * BM;
    }
    s.rows = s.queries * args->group - s.first_row;
    s.rows = s.rows > BM ? BM : s.rows;
    if (s.rows > 0 && s.first_row >= 0)
        find_keys(args, &s);
    else
        s.rows = 0;
    return s;
}

/* Row r of the tile in an array of q's kind: in elements from its data. */
INLINE int64_t row_offset(const struct attention_cpu_args *args, const struct sequence *s,
                          struct attention_strides step, int64_t kv_head, int64_t r)
{
    int64_t row = s->first_row + r, token = s->first_q + row / args->group;
    int64_t head = kv_head * args->group + row % args->group;
    if (VARLEN || EXTEND)
        return token * step.token + head * step.head;
    return s->number * step.sequence + (token - s->first_q) * step.token + head * step.head;
}

/* ---- Blocks of keys ------------------------------------------------------------------------- */

struct block {
    ALIGNED uint32_t keys[BN / NR][KEY_UNITS * NR];
    ALIGNED uint32_t values[VALUE_WIDTH / NR][BLOCK_UNITS * NR];
#if EXTEND
    ALIGNED char rows[BN * KEY_WIDTH * DT_SIZE(DTYPE)];
#endif
};

/* Rows of DTYPE, `stride` elements apart. */
INLINE void pack_keys(struct block *block, const void *rows, int64_t stride, int64_t count)
{
    for (int64_t j = 0; j < units_of(count) * UNIT_K; j += NR) {
        int64_t columns = count - j < NR ? count - j : NR; /* below 0: none */
        pack_panel_nk(block->keys[j / NR], NR, DTYPE, element(DTYPE, rows, j * stride), stride,
                      columns, KEY_WIDTH, KEY_UNITS);
    }
}

APART void pack_values(struct block *block, const void *rows, int64_t stride, int64_t count)
{
    pack_panels_kn(block->values, NR, sizeof(block->values[0]), DTYPE, rows, stride, VALUE_WIDTH,
                   count, units_of(count));
}

#if EXTEND
/* The row of the cache that holds token j of the prefix: a page, and the place in it. */
INLINE int64_t cache_row(const struct attention_cpu_args *args, const struct sequence *s, int64_t j)
{
    if (BY_INDICES)
        return clamp(args->kv_indices[clamp(args->kv_indptr[s->number], args->indices) + j],
                     args->pages * PAGE - 1);
    int64_t id = args->page_table[s->number * args->table_step + j / PAGE];
    return clamp(id, args->pages - 1) * PAGE + j % PAGE;
}

/* Values that every DTYPE holds: of bf16 the upper half. */
INLINE void store_exact(void *to, vec_f32 value)
{
    if (DTYPE == DT_BF16)
        store_u16(to, __builtin_convertvector((vec_u32)value >> 16, vec_u16));
    else
        store_from_f32(DTYPE, to, value);
}

/* Tokens [first, first + count) of the prefix as rows of DTYPE. */
INLINE void gather(const struct attention_cpu_args *args, const struct sequence *s, int64_t first,
                   int64_t count, const void *cache, struct attention_strides step, int64_t head,
                   int64_t width, char *rows)
{
    for (int64_t j = 0; j < count; j++) {
        int64_t row = cache_row(args, s, first + j);
        const void *from =
            kv_element(KV_DTYPE, cache,
                       row / PAGE * step.sequence + row % PAGE * step.token + head * step.head);
        char *to = rows + j * width * DT_SIZE(DTYPE);
        if (KV_DTYPE == DTYPE)
            __builtin_memcpy(to, from, width * DT_SIZE(DTYPE));
        for (int64_t c = 0; KV_DTYPE != DTYPE && c < width; c += VW)
            store_exact(to + c * DT_SIZE(DTYPE), load_kv(KV_DTYPE, kv_element(KV_DTYPE, from, c)));
    }
}

APART void pack_prefix(struct block *block, const struct attention_cpu_args *args,
                       const struct sequence *s, int64_t first, int64_t count, int64_t head)
{
    gather(args, s, first, count, args->k_cache, args->k_cache_step, head, KEY_WIDTH, block->rows);
    pack_keys(block, block->rows, KEY_WIDTH, count);
    gather(args, s, first, count, args->v_cache, args->v_cache_step, head, VALUE_WIDTH,
           block->rows);
    pack_values(block, block->rows, VALUE_WIDTH, count);
}
#endif

/* Keys [first, first + count) of the sequence, of one kind. */
INLINE void pack_block(struct block *block, const struct attention_cpu_args *args,
                       const struct sequence *s, int64_t first, int64_t count, int64_t head)
{
#if EXTEND
    if (first < s->prefix) {
        pack_prefix(block, args, s, first, count, head);
        return;
    }
#endif
    int64_t token = s->first_k + first - s->prefix, k = head * args->k_step.head,
            v = head * args->v_step.head;
    if (!VARLEN && !EXTEND) {
        token = first;
        k += s->number * args->k_step.sequence;
        v += s->number * args->v_step.sequence;
    }
    pack_keys(block, element(DTYPE, args->k, k + token * args->k_step.token), args->k_step.token,
              count);
    pack_values(block, element(DTYPE, args->v, v + token * args->v_step.token), args->v_step.token,
                count);
}
#endif
