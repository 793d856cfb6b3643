/* Scores and values on AMX tiles, of queries of bf16 and a cache of bf16 or e4m3.
 *
 *     scores   A   16 tokens by 32 of d        rows of a page, or a copy of rows of several
 *              B   16 pairs of d by LANES      queries of one head
 *              C   16 tokens by LANES          stored into the head's lanes of vectors of 16
 *
 *     values   A   LANES by 32 tokens          weights of one head, rounded to bf16
 *              B   16 pairs of tokens by 16    rows of v, two and two interleaved
 *              C   LANES by 16 of dv           the sums
 *
 * What softmax goes over is a vector for each token, full of queries: LANES rows of each of
 * HEADS_A_VECTOR heads. The weights then take the place of the scores, STEP tokens at a time turned
 * over into rows of A.
 *
 * Interleaving works on 128 bits at a time: of 32 columns the first tile has 0-3, 8-11, 16-19 and
 * 24-27, the second one the others. store_sums puts them back. A row is at a head, counted from the
 * piece's first, and a number among the rows that the piece has of it. */
#ifndef DECODE_AMX_H
#define DECODE_AMX_H
#include "common/cpu/amx.h"

#define LANES (GROUP > 8 ? 16 : GROUP > 4 ? 8 : GROUP > 2 ? 4 : GROUP)
#define HEADS_A_VECTOR (16 / LANES)
#define VECTORS_A_HEAD ((Q_TILES * RT + 15) / 16) /* 1 unless a head has more than a vector */
#define MOST_VECTORS 6                            /* of 16 lanes, in a unit */
#define STEP 32                                   /* tokens: two tiles share a load of B */
#define STREAMS 8                                 /* of rows asked for */
#define PAIR_TILES (D / 32)
/* Rows to ask for at once: at two places for each tile of pairs of d, at 16 for rows of v, where
 * products take the others. */
#define K_ROWS ((STEP + 2 * PAIR_TILES - 1) / (2 * PAIR_TILES))
#define V_ROWS (DV == 64 ? 2 : 1)

_Static_assert(DTYPE == DT_BF16 && IS_SPLIT && VW == 16, "tiles are of bf16");

struct scratch {
    uint32_t queries[MOST_VECTORS * HEADS_A_VECTOR][PAIR_TILES][TILE_ROWS][LANES];
    uint32_t rows[2][TILE_ROWS][D / 2];         /* copies of rows of k */
    uint32_t pairs[DV / 16][TILE_ROWS][16];     /* rows of v, interleaved */
    vec_f32 scores[MOST_VECTORS][DECODE_PIECE]; /* then weights */
    float max[MOST_VECTORS][16], sum[MOST_VECTORS][16];
    float sums[MOST_VECTORS][16][DV];
};

INLINE int64_t vector_of(int64_t head, int64_t row)
{
    return HEADS_A_VECTOR > 1 ? head / HEADS_A_VECTOR : head * VECTORS_A_HEAD + row / 16;
}

INLINE int64_t lane_of(int64_t head, int64_t row)
{
    return HEADS_A_VECTOR > 1 ? head % HEADS_A_VECTOR * LANES + row : row % 16;
}

INLINE struct decode_state state_of(const struct scratch *scratch, const struct piece *piece,
                                    int64_t head, int64_t tile, int64_t row)
{
    int64_t vector = vector_of(head, tile * RT + row), lane = lane_of(head, tile * RT + row);
    (void)piece;
    return (struct decode_state){ scratch->max[vector][lane], scratch->sum[vector][lane] };
}

INLINE void load_queries(const struct decode_args *args, const struct piece *piece,
                         struct scratch *scratch)
{
    const int64_t rows = piece->tiles * RT, left = GROUP - piece->tile * RT;
    __builtin_memset(scratch->queries, 0,
                     piece->heads * VECTORS_A_HEAD * (int64_t)sizeof(scratch->queries[0]));
    for (int64_t h = 0; h < piece->heads; h++) {
        for (int64_t r = 0; r < rows && r < left; r++) {
            const int64_t head = (piece->head + h) * GROUP + piece->tile * RT + r;
            const u32_any *pairs = element(
                DTYPE, args->q.data, piece->sequence * args->q.sequence + head * args->q.head);
            for (int i = 0; i < D / 2; i++)
                scratch->queries[h * VECTORS_A_HEAD + r / 16][i / 16][i % 16][r % LANES] = pairs[i];
        }
    }
}

INLINE void ask_rows(struct ahead *ahead, const int count, const int width)
{
    for (int i = 0; i < count; i++)
        ask(ahead, width * KV_SIZE(KV_DTYPE));
}

struct tile_shape {
    int rows, units; /* of 32 bits */
};

/* Tiles 0-3 are C, 4 is what goes with two or four of them, 5-6 what is new for each. */
INLINE void shape_tiles(struct tile_shape sums, struct tile_shape kept, struct tile_shape fresh)
{
    struct {
        uint8_t palette, start_row, reserved[14];
        uint16_t row_bytes[16];
        uint8_t rows[16];
    } config = { .palette = 1 };
    for (int i = 0; i < 7; i++) {
        struct tile_shape shape = i < 4 ? sums : i < 5 ? kept : fresh;
        config.row_bytes[i] = (uint16_t)(shape.units * 4);
        config.rows[i] = (uint8_t)shape.rows;
    }
    __builtin_ia32_tile_loadconfig(&config);
}

/* ---- 1. Scores ------------------------------------------------------------------------------- */

struct tile_rows {
    const char *data;
    int64_t stride; /* bytes */
};

/* Rows of k of 16 tokens from `first` on: where they are, or a copy as bf16. */
INLINE struct tile_rows rows_of_tile(const struct decode_args *args, const struct piece *piece,
                                     int64_t first, const char *const rows[TILE], int64_t offset,
                                     uint32_t (*copy)[D / 2])
{
    if (KV_DTYPE == DT_BF16 && PAGE % TILE == 0 && (piece->begin + first) % TILE == 0 &&
        first < piece->count)
        return (struct tile_rows){ rows[0] + offset, args->k.token * 2 };
    for (int i = 0; i < TILE; i++) {
        for (int c = 0; c < D; c += 2 * CHUNK) {
            const int count = D - c < 2 * CHUNK ? 1 : 2;
            vec_u32 chunks[2];
            load_all_pairs(kv_element(KV_DTYPE, rows[i] + offset, c), count, chunks);
            for (int k = 0; k < count; k++)
                store_u32(copy[i] + c / 2 + k * 16, chunks[k]);
        }
    }
    return (struct tile_rows){ (const char *)copy, sizeof(copy[0]) };
}

/* Of STEP tokens, part `part` of head `head`. */
INLINE void score_step(const struct decode_args *args, const struct piece *piece,
                       struct scratch *scratch, int64_t first, int64_t head, int64_t part,
                       const char *const rows[STEP], struct ahead *ahead)
{
    const int64_t offset = head * args->k.head * KV_SIZE(KV_DTYPE);
    const struct tile_rows low = rows_of_tile(args, piece, first, rows, offset, scratch->rows[0]);
    const struct tile_rows high =
        rows_of_tile(args, piece, first + TILE, rows + TILE, offset, scratch->rows[1]);
    float *scores =
        (float *)&scratch->scores[vector_of(head, part * 16)][first] + lane_of(head, part * 16);
    TILE_ZERO(0);
    TILE_ZERO(1);
    for (int c = 0; c < PAIR_TILES; c++) {
        TILE_LOAD(4, scratch->queries[head * VECTORS_A_HEAD + part][c], LANES * 4);
        ask_rows(ahead, K_ROWS, D);
        TILE_LOAD(5, low.data + c * 64, low.stride);
        TILE_MULTIPLY(0, 5, 4);
        ask_rows(ahead, K_ROWS, D);
        TILE_LOAD(6, high.data + c * 64, high.stride);
        TILE_MULTIPLY(1, 6, 4);
    }
    TILE_STORE(0, scores, 64);
    TILE_STORE(1, scores + TILE * 16, 64);
}

INLINE void scores(const struct decode_args *args, const struct piece *piece,
                   struct scratch *scratch)
{
    const char *rows[STEP], *next[STEP];
    shape_tiles((struct tile_shape){ 16, LANES }, (struct tile_shape){ 16, LANES },
                (struct tile_shape){ 16, 16 });
    find_rows(args, &args->k, piece, 0, STEP, next);
    for (int64_t first = 0; first < piece->count; first += STEP) {
        const int is_last = first + STEP >= piece->count;
        const struct decode_cache *cache = is_last ? &args->v : &args->k;
        struct ahead ahead = ahead_of(next, piece, cache, STEP, STREAMS);
        __builtin_memcpy(rows, next, sizeof(rows));
        find_rows(args, cache, piece, is_last ? 0 : first + STEP, STEP, next);
        for (int64_t h = 0; h < piece->heads; h++) {
            for (int64_t part = 0; part * 16 < piece->tiles * RT; part++)
                score_step(args, piece, scratch, first, h, part, rows, &ahead);
        }
    }
    TILE_RELEASE();
}

/* ---- 2. Softmax ------------------------------------------------------------------------------ */

/* The factor of the scores of each lane of a vector. */
INLINE vec_f32 scale_of(const struct decode_args *args, const struct piece *piece, int64_t vector)
{
    vec_f32 scale = splat_f32(args->scale * (KV_SCALE == 1 ? args->k_scale[0] : 1));
    for (int lane = 0; KV_SCALE == 2 && lane < 16; lane++) {
        int64_t head = vector / VECTORS_A_HEAD * HEADS_A_VECTOR + lane / LANES;
        scale[lane] *= head < piece->heads ? args->k_scale[piece->head + head] : 0;
    }
    return scale;
}

/* Rounded to bf16, in the upper half. */
INLINE vec_u32 upper_bf16(vec_f32 x)
{
    return __builtin_convertvector(bf16_from_f32(x), vec_u32) << 16;
}

/* Weights of STEP tokens become rows of A: 16 lanes of 16 pairs of tokens. */
INLINE void turn_over(vec_f32 weights[STEP])
{
    vec_u32 pairs[16];
    for (int i = 0; i < 16; i++)
        pairs[i] = upper_bf16(weights[2 * i]) >> 16 | upper_bf16(weights[2 * i + 1]);
    transpose(pairs);
    for (int i = 0; i < 16; i++)
        weights[i] = (vec_f32)pairs[i];
}

/* Meanwhile it asks for rows of v: those that the scores' last step has not. */
INLINE void softmax(const struct decode_args *args, const struct piece *piece,
                    struct scratch *scratch)
{
    const int64_t vectors = vector_of(piece->heads - 1, piece->tiles * RT - 1) + 1;
    const float none = -__builtin_inff();
    const char *rows[STEP];
    find_rows(args, &args->v, piece, STEP, STEP, rows);
    struct ahead ahead = ahead_of(rows, piece, &args->v, STEP, STREAMS);
    for (int64_t vector = 0; vector < vectors; vector++) {
        vec_f32 *scores = scratch->scores[vector], max = splat_f32(none), sum = splat_f32(0);
        const vec_f32 scale = scale_of(args, piece, vector);
        for (int64_t i = 0; i < piece->count; i++) {
            scores[i] = capped(args, scores[i] * scale);
            max = select_f32(scores[i] > max, scores[i], max);
        }
        const vec_f32 base = select_f32(max == none, splat_f32(0), max);
        for (int64_t i = 0; i < (piece->count + STEP - 1) / STEP * STEP; i += STEP) {
            for (int64_t k = i; k < i + STEP; k++) {
                scores[k] = k < piece->count ? exp_f32(scores[k] - base) : splat_f32(0);
                sum += scores[k];
                if (k % 4 == 0)
                    ask_rows(&ahead, 1, DV);
            }
            turn_over(scores + i);
        }
        *(vec_f32_any *)scratch->max[vector] = max;
        *(vec_f32_any *)scratch->sum[vector] = sum;
    }
}

/* ---- 3. Values ------------------------------------------------------------------------------- */

/* 128 bits at a time: the lower halves of two chunks, and the upper ones. */
INLINE void store_interleaved(uint32_t low[16], uint32_t high[16], vec_u32 even_row,
                              vec_u32 odd_row)
{
    typedef uint16_t vec_halves __attribute__((vector_size(64)));
    const vec_halves even = (vec_halves)even_row, odd = (vec_halves)odd_row;
    store_u32(low, (vec_u32)__builtin_shufflevector(even, odd, 0, 32, 1, 33, 2, 34, 3, 35, 8, 40, 9,
                                                    41, 10, 42, 11, 43, 16, 48, 17, 49, 18, 50, 19,
                                                    51, 24, 56, 25, 57, 26, 58, 27, 59));
    store_u32(high, (vec_u32)__builtin_shufflevector(even, odd, 4, 36, 5, 37, 6, 38, 7, 39, 12, 44,
                                                     13, 45, 14, 46, 15, 47, 20, 52, 21, 53, 22, 54,
                                                     23, 55, 28, 60, 29, 61, 30, 62, 31, 63));
}

/* Interleaves rows two and two, those past `count` as zeros. */
INLINE void pair_rows(const char *const rows[STEP], int64_t offset, int64_t count,
                      uint32_t (*pairs)[TILE_ROWS][16], struct ahead *ahead)
{
    for (int i = 0; i < TILE_ROWS; i++) {
        UNROLL
        for (int c = 0; c < DV; c += 2 * CHUNK) {
            const int chunks = DV - c < 2 * CHUNK ? 1 : 2;
            vec_u32 even[2] = { { 0 }, { 0 } }, odd[2] = { { 0 }, { 0 } };
            if (2 * i < count)
                load_all_pairs(kv_element(KV_DTYPE, rows[2 * i] + offset, c), chunks, even);
            if (2 * i + 1 < count)
                load_all_pairs(kv_element(KV_DTYPE, rows[2 * i + 1] + offset, c), chunks, odd);
            UNROLL
            for (int k = 0; k < chunks; k++)
                store_interleaved(pairs[c / 16 + 2 * k][i], pairs[c / 16 + 2 * k + 1][i], even[k],
                                  odd[k]);
        }
        ask_rows(ahead, V_ROWS, DV);
    }
}

/* Adds the weights of STEP tokens times `chunks` chunks of columns to tiles 0-3. */
INLINE void add_pairs(const vec_f32 *weights, const uint32_t (*pairs)[TILE_ROWS][16],
                      const int chunks, struct ahead *ahead)
{
    TILE_LOAD(4, weights, 64);
    TILE_LOAD(5, pairs[0], 64);
    TILE_MULTIPLY(0, 4, 5);
    ask_rows(ahead, 1, DV);
    TILE_LOAD(6, pairs[1], 64);
    TILE_MULTIPLY(1, 4, 6);
    ask_rows(ahead, 1, DV);
    if (chunks == 1)
        return;
    TILE_LOAD(5, pairs[2], 64);
    TILE_MULTIPLY(2, 4, 5);
    ask_rows(ahead, 1, DV);
    TILE_LOAD(6, pairs[3], 64);
    TILE_MULTIPLY(3, 4, 6);
    ask_rows(ahead, 1, DV);
}

INLINE void load_sums(const float *sums, const int chunks)
{
    TILE_LOAD(0, sums, DV * 4);
    TILE_LOAD(1, sums + 16, DV * 4);
    if (chunks == 1)
        return;
    TILE_LOAD(2, sums + 32, DV * 4);
    TILE_LOAD(3, sums + 48, DV * 4);
}

INLINE void keep_sums(float *sums, const int chunks)
{
    TILE_STORE(0, sums, DV * 4);
    TILE_STORE(1, sums + 16, DV * 4);
    if (chunks == 1)
        return;
    TILE_STORE(2, sums + 32, DV * 4);
    TILE_STORE(3, sums + 48, DV * 4);
}

/* Of STEP tokens, `chunks` chunks of columns from `column` on of one head. */
INLINE void add_columns(const struct piece *piece, struct scratch *scratch, int64_t first,
                        int64_t head, int column, const int chunks, struct ahead *ahead)
{
    for (int64_t part = 0; part * 16 < piece->tiles * RT; part++) {
        const int64_t vector = vector_of(head, part * 16), lane = lane_of(head, part * 16);
        float *sums = &scratch->sums[vector][lane][column];
        ask_rows(ahead, 2, DV);
        load_sums(sums, chunks);
        ask_rows(ahead, 2, DV);
        add_pairs(&scratch->scores[vector][first + lane],
                  (const uint32_t(*)[TILE_ROWS][16])scratch->pairs + column / 16, chunks, ahead);
        keep_sums(sums, chunks);
    }
}

/* Meanwhile it asks for rows of v, and at the end for the first ones of k of the next piece. */
INLINE void values(const struct decode_args *args, const struct piece *piece,
                   const struct piece *next, struct scratch *scratch)
{
    const int64_t vectors = vector_of(piece->heads - 1, piece->tiles * RT - 1) + 1;
    const char *rows[STEP], *later[STEP];
    __builtin_memset(scratch->sums, 0, vectors * (int64_t)sizeof(scratch->sums[0]));
    shape_tiles((struct tile_shape){ LANES, 16 }, (struct tile_shape){ LANES, 16 },
                (struct tile_shape){ 16, 16 });
    find_rows(args, &args->v, piece, 0, STEP, later);
    for (int64_t first = 0; first < piece->count; first += STEP) {
        const int64_t left = piece->count - first;
        struct ahead ahead = ahead_of(later, piece, &args->v, STEP, STREAMS);
        __builtin_memcpy(rows, later, sizeof(rows));
        if (next && left <= STEP) {
            find_rows(args, &args->k, next, 0, STEP, later);
            ahead = ahead_of(later, next, &args->k, STEP, STREAMS);
        } else {
            find_rows(args, &args->v, piece, first + STEP, STEP, later);
        }
        for (int64_t h = 0; h < piece->heads; h++) {
            const int64_t offset = h * args->v.head * KV_SIZE(KV_DTYPE);
            int column = 0;
            if (left >= STEP)
                pair_rows(rows, offset, STEP, scratch->pairs, &ahead);
            else
                pair_rows(rows, offset, left, scratch->pairs, &ahead);
            for (; column + 2 * CHUNK <= DV; column += 2 * CHUNK)
                add_columns(piece, scratch, first, h, column, 2, &ahead);
            if (DV % (2 * CHUNK))
                add_columns(piece, scratch, first, h, column, 1, &ahead);
        }
    }
    TILE_RELEASE();
}

INLINE void store_sums(float *to, const struct scratch *scratch, const struct piece *piece,
                       int64_t head, int64_t tile, int64_t row)
{
    const float *sums =
        scratch->sums[vector_of(head, tile * RT + row)][lane_of(head, tile * RT + row)];
    (void)piece;
    for (int c = 0; c < DV; c += 32) {
        vec_f32 first = *(const vec_f32_any *)(sums + c);
        vec_f32 second = *(const vec_f32_any *)(sums + c + 16);
        *(vec_f32_any *)(to + c) = __builtin_shufflevector(first, second, 0, 1, 2, 3, 16, 17, 18,
                                                           19, 4, 5, 6, 7, 20, 21, 22, 23);
        *(vec_f32_any *)(to + c + 16) = __builtin_shufflevector(
            first, second, 8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31);
    }
}
#endif
