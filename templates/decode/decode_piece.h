/* A piece of a sequence for some heads of the cache: up to DECODE_PIECE tokens, one after another
 * in a table of pages.
 *
 *     1. scores    rows of k, each read once, times all queries of its head
 *     2. softmax   over the whole piece at once: nothing is rescaled later
 *     3. values    rows of v, each read once
 *     4. the state: max, sum, and sums of v, to the workspace
 *
 * Memory is what it waits for: a page's rows of all heads lie together, so the loops go over steps
 * of tokens and inside over the heads. Meanwhile rows of the next step are asked for, evenly: more
 * at once would only wait.
 *
 * Queries of a group are computed in tiles of RT rows, with products of f32, which is twice as fast
 * as vdpbf16ps (decode_scores.h, decode_values.h), or with products on AMX tiles (decode_amx.h).
 * Columns of dv are in an order of theirs until the state is stored.
 *
 * Scores of tokens behind the last are of its row, and are masked; as values they do not count. */
#ifndef DECODE_PIECE_H
#define DECODE_PIECE_H
#include "common/cpu/exp.h"
#include "decode_chunk.h"

#define TILE 16  /* tokens, of scores */
#define V_TILE 4 /* of values: few enough to go through memory in order */
#define ROW_TILES ((GROUP + 3) / 4)
#define RT ((GROUP + ROW_TILES - 1) / ROW_TILES)
#define Q_TILES (ROW_TILES < DECODE_TILES ? ROW_TILES : DECODE_TILES) /* of a head, in a unit */
#define MOST_SUMS (VW == 16 ? 16 : 8)                                 /* vectors in registers */
#define CHUNKS_FIT (MOST_SUMS / (RT * PER_CHUNK))
#define CHUNKS (CHUNKS_FIT < 1 ? 1 : CHUNKS_FIT < DV / CHUNK ? CHUNKS_FIT : DV / CHUNK)
#define CHUNKS_LEFT (DV / CHUNK % CHUNKS)

/* What is to be computed: tiles [tile, tile + tiles) of rows of each of `heads` heads. */
struct piece {
    const int32_t *table;
    int64_t begin, count; /* tokens */
    int64_t sequence, head, heads, tile, tiles, slot;
};

INLINE int64_t clamp(int64_t x, int64_t least, int64_t most)
{
    return x < least ? least : x > most ? most : x;
}

/* Where the rows of tokens [first, first + count) are, those of the piece's first head; past the
 * last token that one's. */
INLINE void find_rows(const struct decode_args *args, const struct decode_cache *cache,
                      const struct piece *piece, int64_t first, const int count, const char **rows)
{
    for (int i = 0; i < count; i++) {
        int64_t token = piece->begin + (first + i < piece->count ? first + i : piece->count - 1);
        int64_t page = piece->table[token / PAGE];
        page = page < 0 || page >= args->pages ? 0 : page;
        rows[i] = kv_element(KV_DTYPE, cache->data,
                             page * cache->page + token % PAGE * cache->token +
                                 piece->head * cache->head);
    }
}

/* Asks for rows of a step of tokens, some streams side by side, each in the order of memory: the
 * processor's own prefetching follows a few such streams further than one. It goes through the
 * heads of every stream's first token, then of its next. */
struct ahead {
    const char *const *rows;
    int64_t heads, head_bytes, streams, run; /* run: tokens of a stream */
    int64_t stream, head, token;
};

INLINE struct ahead ahead_of(const char *const *rows, const struct piece *piece,
                             const struct decode_cache *cache, const int count, const int streams)
{
    return (struct ahead){ .rows = rows,
                           .heads = piece->heads,
                           .head_bytes = cache->head * KV_SIZE(KV_DTYPE),
                           .streams = streams,
                           .run = count / streams };
}

/* The next row of one head; none when all have been asked for. */
INLINE void ask(struct ahead *ahead, const int bytes)
{
    const char *row;
    if (ahead->token == ahead->run)
        return;
    row = ahead->rows[ahead->stream * ahead->run + ahead->token] + ahead->head * ahead->head_bytes;
    UNROLL
    for (int at = 0; at < bytes; at += 64)
        __builtin_prefetch(row + at, 0, 2);
    if (++ahead->stream < ahead->streams)
        return;
    ahead->stream = 0;
    if (++ahead->head < ahead->heads)
        return;
    ahead->head = 0;
    ahead->token++;
}

/* ---- 1. Scores, 2. Softmax ------------------------------------------------------------------- */

/* Of |x| below 1/4 a series, which loses nothing to cancellation. */
INLINE vec_f32 tanh_f32(vec_f32 x)
{
    vec_f32 square = x * x, series = splat_f32(2.1869488e-2f);
    series = series * square - 5.3968254e-2f;
    series = series * square + 1.3333333e-1f;
    series = series * square - 3.3333333e-1f;
    series = series * square * x + x;
    vec_f32 whole = 1 - 2 / (1 + exp_f32(x + x));
    return select_f32(square < 0.0625f, series, whole);
}

INLINE vec_f32 capped(const struct decode_args *args, vec_f32 scores)
{
    if (HAS_SOFTCAP && args->softcap > 0)
        return tanh_f32(scores / args->softcap) * args->softcap;
    return scores;
}

#if AMX
#include "decode_amx.h"
#else
#include "decode_scores.h"
#include "decode_values.h"
#endif

/* ---- 4. The state ---------------------------------------------------------------------------- */

INLINE void store_states(const struct decode_cpu_args *args, const struct piece *piece,
                         const struct scratch *scratch)
{
    for (int64_t t = 0; t < piece->heads * piece->tiles; t++) {
        int64_t head = piece->head + t / piece->tiles;
        int64_t first = (piece->tile + t % piece->tiles) * RT;
        for (int64_t r = 0; r < RT && first + r < GROUP; r++) {
            int64_t row = piece->sequence * HKV * GROUP + head * GROUP + first + r;
            args->states[row * args->slots + piece->slot] =
                state_of(scratch, piece, t / piece->tiles, t % piece->tiles, r);
            store_sums(args->sums + (row * args->slots + piece->slot) * DV, scratch, piece,
                       t / piece->tiles, t % piece->tiles, r);
        }
    }
}

/* `next`: what this thread computes then, or NULL. */
APART void piece_run(const struct decode_cpu_args *args, const struct piece *piece,
                     const struct piece *next)
{
    struct scratch scratch;
    const struct decode_args *call = &args->call;
    load_queries(call, piece, &scratch);
    scores(call, piece, &scratch);
    softmax(call, piece, &scratch);
    values(call, piece, next, &scratch);
    store_states(args, piece, &scratch);
}
#endif
