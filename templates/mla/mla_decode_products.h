/* The two products of mla_decode_cpu.c, of `count` tiles of query rows from `tile` on:
 *
 *     score    scores[tile + t][row][lane] = k[row] . q[tile + t][lane]      STEP rows of the block
 *     gather   o[tile + t][panel][lane]  += weights[t][lane] . v[panel]
 *
 * AMX 1: both operands of score are as tiles want them: rows of k are tile rows, q is in pairs
 * along its columns; so are those of gather. Two tiles of queries and two of rows or panels share
 * their loads; one tile of queries takes four of the others.
 *
 * AMX 0: vectors of lanes, or of columns, times broadcast units. */
#ifndef MLA_DECODE_PRODUCTS_H
#define MLA_DECODE_PRODUCTS_H
#include "mla/mla_decode_work.h"

/* Units of the columns that share a factor; all if none do. */
#define SPAN (IS_SCALED ? MLA_GROUP / UNIT_K : UNITS)

/* scores (+)= part times each row's factor of a group; the last group, of 64, has none. */
INLINE void add_part(float *scores, const float *part, float factor, int is_first)
{
    vec_f32 value = (vec_f32)load_u32(part) * factor;
    if (!is_first)
        value += (vec_f32)load_u32(scores);
    store_u32(scores, (vec_u32)value);
}

#if AMX
#include "common/cpu/amx.h"

_Static_assert(IS_PAIRED &&VW == 16 && BLOCK % 32 == 0, "tiles are 16 x 16, of bf16 pairs");

enum { K_BYTES = K_STRIDE * 4, P_BYTES = P_STRIDE * 4, TILE_BYTES = 64 };

/* The rows of a step, units from `begin` to `end`. */
INLINE void score_units(struct work *w, int64_t tile, int is_pair, int64_t begin, int64_t end,
                        float (*to)[VW], float (*to_second)[VW])
{
    TILE_ZERO(0);
    TILE_ZERO(1);
    TILE_ZERO(2);
    TILE_ZERO(3);
    for (int64_t u = begin; u < end; u += TILE_UNITS) {
        TILE_LOAD(4, w->k[0] + u, K_BYTES);
        TILE_LOAD(5, w->k[16] + u, K_BYTES);
        TILE_LOAD(6, w->q[tile][u], TILE_BYTES);
        TILE_MULTIPLY(0, 4, 6);
        TILE_MULTIPLY(1, 5, 6);
        if (is_pair) {
            TILE_LOAD(7, w->q[tile + 1][u], TILE_BYTES);
            TILE_MULTIPLY(2, 4, 7);
            TILE_MULTIPLY(3, 5, 7);
        }
    }
    TILE_STORE(0, to, TILE_BYTES);
    TILE_STORE(1, to + 16, TILE_BYTES);
    if (is_pair) {
        TILE_STORE(2, to_second, TILE_BYTES);
        TILE_STORE(3, to_second + 16, TILE_BYTES);
    }
}

INLINE void score_tiles(struct work *w, int64_t tile, int is_pair, int64_t first)
{
    float(*to)[VW] = w->scores[tile] + first, (*to_second)[VW] = w->scores[tile + is_pair] + first;
    if (!IS_SCALED) {
        score_units(w, tile, is_pair, 0, UNITS, to, to_second);
        return;
    }
    for (int64_t begin = 0; begin < UNITS; begin += SPAN) {
        ALIGNED float part[2][STEP][VW];
        const int64_t end = begin + SPAN < UNITS ? begin + SPAN : UNITS;
        score_units(w, tile, is_pair, begin, end, part[0], part[1]);
        for (int64_t j = 0; j < STEP; j++) {
            float factor = end < UNITS ? w->factors[begin / SPAN][first + j] : 1;
            add_part(to[j], part[0][j], factor, begin == 0);
            if (is_pair)
                add_part(to_second[j], part[1][j], factor, begin == 0);
        }
    }
}

APART void score(struct work *w, int64_t tile, int count, int64_t first)
{
    if (count > 1)
        score_tiles(w, tile, 1, first);
    else
        score_tiles(w, tile, 0, first);
}

/* Two tiles of queries, two panels. */
INLINE void gather_pair(struct work *w, int64_t tile, int64_t panel, int64_t units)
{
    const int64_t g = IS_SCALED ? panel * VW / MLA_GROUP : 0;
    TILE_LOAD(0, w->o[tile][panel], TILE_BYTES);
    TILE_LOAD(1, w->o[tile][panel + 1], TILE_BYTES);
    TILE_LOAD(2, w->o[tile + 1][panel], TILE_BYTES);
    TILE_LOAD(3, w->o[tile + 1][panel + 1], TILE_BYTES);
    for (int64_t u = 0; u < units; u += TILE_UNITS) {
        TILE_LOAD(4, w->weights[0][g][0] + u, P_BYTES);
        TILE_LOAD(5, w->weights[1][g][0] + u, P_BYTES);
        TILE_LOAD(6, w->v[panel][u], TILE_BYTES);
        TILE_LOAD(7, w->v[panel + 1][u], TILE_BYTES);
        TILE_MULTIPLY(0, 4, 6);
        TILE_MULTIPLY(1, 4, 7);
        TILE_MULTIPLY(2, 5, 6);
        TILE_MULTIPLY(3, 5, 7);
    }
    TILE_STORE(0, w->o[tile][panel], TILE_BYTES);
    TILE_STORE(1, w->o[tile][panel + 1], TILE_BYTES);
    TILE_STORE(2, w->o[tile + 1][panel], TILE_BYTES);
    TILE_STORE(3, w->o[tile + 1][panel + 1], TILE_BYTES);
}

/* One tile of queries, four panels. */
INLINE void gather_one(struct work *w, int64_t tile, int64_t panel, int64_t units)
{
    const int64_t g = IS_SCALED ? panel * VW / MLA_GROUP : 0;
    TILE_LOAD(0, w->o[tile][panel], TILE_BYTES);
    TILE_LOAD(1, w->o[tile][panel + 1], TILE_BYTES);
    TILE_LOAD(2, w->o[tile][panel + 2], TILE_BYTES);
    TILE_LOAD(3, w->o[tile][panel + 3], TILE_BYTES);
    for (int64_t u = 0; u < units; u += TILE_UNITS) {
        TILE_LOAD(4, w->weights[0][g][0] + u, P_BYTES);
        TILE_LOAD(5, w->v[panel][u], TILE_BYTES);
        TILE_LOAD(6, w->v[panel + 1][u], TILE_BYTES);
        TILE_MULTIPLY(0, 4, 5);
        TILE_MULTIPLY(1, 4, 6);
        TILE_LOAD(7, w->v[panel + 2][u], TILE_BYTES);
        TILE_LOAD(5, w->v[panel + 3][u], TILE_BYTES);
        TILE_MULTIPLY(2, 4, 7);
        TILE_MULTIPLY(3, 4, 5);
    }
    TILE_STORE(0, w->o[tile][panel], TILE_BYTES);
    TILE_STORE(1, w->o[tile][panel + 1], TILE_BYTES);
    TILE_STORE(2, w->o[tile][panel + 2], TILE_BYTES);
    TILE_STORE(3, w->o[tile][panel + 3], TILE_BYTES);
}

APART void gather(struct work *w, int64_t tile, int count, int64_t rows)
{
    for (int64_t panel = 0; count > 1 && panel < PANELS; panel += 2)
        gather_pair(w, tile, panel, rows / UNIT_K);
    for (int64_t panel = 0; count == 1 && panel < PANELS; panel += 4)
        gather_one(w, tile, panel, rows / UNIT_K);
}

#else

enum { CHAINS = VW > 8 ? 8 : 4 }; /* sums at a time: what the registers hold */

/* CHAINS rows from row j of the step on, units from `begin` to `end`. */
INLINE void score_rows(struct work *w, int64_t tile, int64_t j, int64_t begin, int64_t end,
                       float (*to)[VW])
{
    vec_f32 sums[CHAINS];
    UNROLL
    for (int i = 0; i < CHAINS; i++)
        sums[i] = (vec_f32){ 0 };
    for (int64_t u = begin; u < end; u++) {
        vec_u32 query = load_u32(w->q[tile][u]);
        UNROLL
        for (int i = 0; i < CHAINS; i++)
            sums[i] = multiply_add(sums[i], splat_u32(w->k[j + i][u]), query);
    }
    UNROLL
    for (int i = 0; i < CHAINS; i++)
        store_u32(to[i], (vec_u32)sums[i]);
}

APART void score(struct work *w, int64_t tile, int count, int64_t first)
{
    enum { PART = IS_SCALED ? SPAN : UNITS / 4 }; /* for the sake of the sums' rounding */
    for (int t = 0; t < count; t++) {
        for (int64_t j = 0; j < STEP; j += CHAINS) {
            for (int64_t begin = 0; begin < UNITS; begin += PART) {
                float part[CHAINS][VW];
                const int64_t end = begin + PART < UNITS ? begin + PART : UNITS;
                score_rows(w, tile + t, j, begin, end, part);
                for (int i = 0; i < CHAINS; i++)
                    add_part(w->scores[tile + t][first + j + i], part[i],
                             IS_SCALED && end < UNITS ? w->factors[begin / PART][first + j + i] : 1,
                             begin == 0);
            }
        }
    }
}

/* CHAINS query rows from `lane` on. */
INLINE void gather_rows(struct work *w, int64_t tile, int t, int64_t panel, int64_t lane,
                        int64_t units)
{
    const int64_t g = IS_SCALED ? panel * VW / MLA_GROUP : 0;
    float(*o)[VW] = w->o[tile][panel] + lane;
    vec_f32 sums[CHAINS];
    UNROLL
    for (int i = 0; i < CHAINS; i++)
        sums[i] = (vec_f32)load_u32(o[i]);
    for (int64_t u = 0; u < units; u++) {
        vec_u32 values = load_u32(w->v[panel][u]);
        UNROLL
        for (int i = 0; i < CHAINS; i++)
            sums[i] = multiply_add(sums[i], splat_u32(w->weights[t][g][lane + i][u]), values);
    }
    UNROLL
    for (int i = 0; i < CHAINS; i++)
        store_u32(o[i], (vec_u32)sums[i]);
}

APART void gather(struct work *w, int64_t tile, int count, int64_t rows)
{
    for (int t = 0; t < count; t++) {
        for (int64_t panel = 0; panel < PANELS; panel++) {
            for (int64_t lane = 0; lane < VW; lane += CHAINS)
                gather_rows(w, tile + t, t, panel, lane, rows / UNIT_K);
        }
    }
}

#endif
#endif
