/* Scores in vectors of f32. Those of a tile of RT rows are kept as vectors of RP rows by TT tokens:
 * vector g of a tile has token g TT + t of row r in lane r TT + t. */
#ifndef DECODE_SCORES_H
#define DECODE_SCORES_H
#include "common/cpu/product_f32.h"

#define RP (RT == 3 ? 4 : RT)
#define TT (VW / RP)
#define VECTORS (DECODE_PIECE / TT) /* of scores, a tile of rows */

struct scratch {
    float q[DECODE_TILES][RT][D];
    vec_f32 scores[DECODE_TILES][VECTORS]; /* then weights, in the same vectors */
    float sums[DECODE_TILES][RT * DV];
    struct decode_state states[DECODE_TILES][RT];
};

/* The weights of RT rows of a tile, of V_TILE tokens from `first` on. */
INLINE const float *weights_of(const struct scratch *scratch, const struct piece *piece,
                               int64_t head, int64_t tile, int64_t first)
{
    return (const float *)&scratch->scores[head * piece->tiles + tile][first / TT] + first % TT;
}

INLINE struct decode_state state_of(const struct scratch *scratch, const struct piece *piece,
                                    int64_t head, int64_t tile, int64_t row)
{
    return scratch->states[head * piece->tiles + tile][row];
}
#define WEIGHT(weights, token, row) (weights)[(token) / TT * VW + (token) % TT + (row)*TT]

INLINE void load_queries(const struct decode_args *args, const struct piece *piece,
                         struct scratch *scratch)
{
    for (int64_t t = 0; t < piece->heads * piece->tiles; t++) {
        for (int64_t r = 0; r < RT; r++) {
            int64_t row = (piece->tile + t % piece->tiles) * RT + r;
            int64_t head = (piece->head + t / piece->tiles) * GROUP + row;
            const void *q = element(DTYPE, args->q.data,
                                    piece->sequence * args->q.sequence + head * args->q.head);
            if (row < GROUP)
                load_in_chunks(q, scratch->q[t][r]);
            else
                __builtin_memset(scratch->q[t][r], 0, sizeof(scratch->q[t][r]));
        }
    }
}

/* TT tokens by RT rows. */
INLINE vec_f32 score_vector(const float (*q)[D], const char *const rows[TT], int64_t offset)
{
    vec_f32 acc[VW];
    UNROLL
    for (int i = 0; i < VW; i++)
        acc[i] = splat_f32(0);
    for (int c = 0; c < D; c += CHUNK) {
        vec_f32 keys[TT][PER_CHUNK];
        UNROLL
        for (int t = 0; t < TT; t++)
            load_chunk(kv_element(KV_DTYPE, rows[t] + offset, c), keys[t]);
        UNROLL
        for (int r = 0; r < RT; r++) {
            UNROLL
            for (int half = 0; half < PER_CHUNK; half++) {
                vec_f32 query = *(const vec_f32_any *)(q[r] + c + half * VW);
                UNROLL
                for (int t = 0; t < TT; t++)
                    acc[r * TT + t] += query * keys[t][half];
            }
        }
    }
    return sum_each(acc);
}

INLINE void scores(const struct decode_args *args, const struct piece *piece,
                   struct scratch *scratch)
{
    const int64_t head_bytes = args->k.head * KV_SIZE(KV_DTYPE);
    const char *rows[TILE], *next[TILE];
    find_rows(args, &args->k, piece, 0, TILE, next);
    for (int64_t first = 0; first < piece->count; first += TILE) {
        struct ahead ahead = ahead_of(next, piece, &args->k, TILE, 1);
        __builtin_memcpy(rows, next, sizeof(rows));
        find_rows(args, &args->k, piece, first + TILE, TILE, next);
        for (int64_t h = 0; h < piece->heads; h++) {
            for (int i = 0; i < TILE; i += TT) {
                for (int t = 0; t < TT; t++)
                    ask(&ahead, D * KV_SIZE(KV_DTYPE));
                for (int64_t t = 0; t < piece->tiles; t++) {
                    int64_t tile = h * piece->tiles + t;
                    scratch->scores[tile][(first + i) / TT] =
                        score_vector((const float(*)[D])scratch->q[tile], rows + i, h * head_bytes);
                }
            }
        }
    }
}

/* For each row the largest, or the sum, of its TT lanes, in all of them; by a tree. */
INLINE vec_f32 over_tokens(vec_f32 x, const int is_max)
{
    float lanes[VW];
    *(vec_f32_any *)lanes = x;
    for (int width = TT / 2; width > 0; width /= 2) {
        for (int r = 0; r < RP; r++) {
            for (int i = r * TT; i < r * TT + width; i++) {
                float other = lanes[i + width];
                lanes[i] = !is_max ? lanes[i] + other : other > lanes[i] ? other : lanes[i];
            }
        }
    }
    for (int i = 0; i < VW; i++)
        lanes[i] = lanes[i / TT * TT];
    return *(vec_f32_any *)lanes;
}

/* The scores of one tile of rows become weights. */
INLINE void softmax_tile(const struct decode_args *args, const struct piece *piece, float scale,
                         vec_f32 *scores, struct decode_state states[RT])
{
    const float none = -__builtin_inff();
    const int64_t vectors = (piece->count + TT - 1) / TT, rest = piece->count % TT;
    vec_f32 max = splat_f32(none), sum = splat_f32(0);
    for (int64_t i = 0; i < vectors; i++) {
        vec_f32 s = capped(args, scores[i] * scale);
        for (int lane = 0; rest && i == vectors - 1 && lane < VW; lane++)
            s[lane] = lane % TT < rest ? s[lane] : none;
        max = select_f32(s > max, s, max);
        scores[i] = s;
    }
    max = over_tokens(max, 1);
    vec_f32 base = select_f32(max == none, splat_f32(0), max);
    for (int64_t i = 0; i < vectors; i++) {
        vec_f32 weights = exp_f32(scores[i] - base);
        sum += weights;
        scores[i] = weights;
    }
    sum = over_tokens(sum, 0);
    for (int r = 0; r < RT; r++)
        states[r] = (struct decode_state){ max[r * TT], sum[r * TT] };
}

/* Of all tiles. */
INLINE void softmax(const struct decode_args *args, const struct piece *piece,
                    struct scratch *scratch)
{
    for (int64_t t = 0; t < piece->heads * piece->tiles; t++) {
        int64_t head = piece->head + t / piece->tiles;
        float factor = KV_SCALE ? args->k_scale[KV_SCALE == 2 ? head : 0] : 1;
        softmax_tile(args, piece, args->scale * factor, scratch->scores[t], scratch->states[t]);
    }
}
#endif
