/* The constants of mla_decode_cpu.c, what a block of the grid has on its stack, and the loading of
 * rows into it.
 *
 *     a row of the cache    k    [row][unit]          its 576 columns in units (dot_units.h); of
 *                                                     STEP rows at a time
 *                           v    [panel][unit][VW]    VW of its first 512 columns; units along rows
 *     a query row           q    [tile][unit][lane]   a lane a query row, VW to a tile
 *                           o    [tile][panel][lane][VW]
 *
 * Pairs of e4m3 hold the codes' values, which bf16 has exactly; their factors meet the scores and
 * the weights, in f32 (IS_SCALED). Else factors are multiplied in when a row is loaded. */
#ifndef MLA_DECODE_WORK_H
#define MLA_DECODE_WORK_H

#ifndef SQ
#define SQ 1
#define HQ 16
#define PAGE 64
#define DTYPE 2
#define KV_DTYPE 2
#define CAUSAL 0
#define HAS_TOPK 0
#define HAS_LSE 0
#define DETERMINISTIC 0
#define BLOCK 64
#define AMX 0
#define IS_PAIRED 0
#define GROUP_ROWS 16
#define RUN_PIECES 8
#endif

#include "common/cpu/dot_units.h"
#include "common/cpu/exp.h"
#include "common/cpu/transpose.h"
#include "mla/mla_decode_cpu_args.h"

#define DT_E4M3 5
#define IS_E4M3 (KV_DTYPE == DT_E4M3)
#define IS_SCALED (IS_E4M3 && IS_PAIRED)
#define ROW_BYTES (IS_E4M3 ? MLA_TOKEN_BYTES : MLA_DK * DT_SIZE(KV_DTYPE))

#define RUN_ROWS (HAS_TOPK ? HQ : SQ * HQ) /* query rows of a run */
#define TILES (GROUP_ROWS / VW)
#define UNITS (MLA_DK / UNIT_K)
#define K_STRIDE (UNITS + 16)      /* + 64 bytes: rows must not share one set of the L1 cache */
#define V_STRIDE (BLOCK_UNITS + 1) /* nor panels */
#define PANELS (MLA_DV / VW)
#define BLOCK_UNITS (BLOCK / UNIT_K)
#define P_STRIDE (BLOCK_UNITS + 16)
#define FACTORS (MLA_DV / MLA_GROUP)
#define WEIGHTS (IS_SCALED ? FACTORS : 1) /* copies of the weights, times a factor each */
#define STEP 32                           /* rows that are loaded and scored together */
#define WIDE 2                            /* tiles that are worked on together, at most */

#define ALIGNED __attribute__((aligned(64)))

struct work {
    ALIGNED uint32_t k[STEP][K_STRIDE];
    ALIGNED uint32_t v[PANELS][V_STRIDE][VW];
    ALIGNED uint32_t q[TILES][UNITS][VW];
    ALIGNED float o[TILES][PANELS][VW][VW];
    ALIGNED float scores[TILES][BLOCK][VW];
    ALIGNED uint32_t weights[WIDE][WEIGHTS][VW][P_STRIDE];
    ALIGNED float most[TILES][VW],
        sum[TILES][VW]; /* largest score in base 2; sum of exponentials */
    float factors[FACTORS][BLOCK];
    const char *rows[2][BLOCK]; /* of this block and of the next */
};

/* ---- Which rows ------------------------------------------------------------------------------ */

static int64_t run_length(const struct mla_decode_args *call, int64_t run)
{
    if (HAS_TOPK)
        return call->topk;
    int64_t most = call->pages ? call->max_pages * PAGE : 0, length = call->seq_lens[run];
    return length < 0 ? 0 : length < most ? length : most;
}

/* Number i of a run's list; NULL: none. */
INLINE const char *row_at(const struct mla_decode_args *call, int64_t run, int64_t i)
{
    int64_t page, place = i % PAGE;
    if (HAS_TOPK) {
        int64_t row =
            call->indices[run / SQ * call->indices_sequence + run % SQ * call->indices_token + i];
        if (row < 0 || row >= call->pages * PAGE)
            return 0;
        page = row / PAGE;
        place = row % PAGE;
    } else {
        page = call->page_table[run * call->table_sequence + i / PAGE];
        page = page >= 0 && page < call->pages ? page : 0;
    }
    int64_t at = page * call->cache_page + place * call->cache_token;
    return (const char *)call->kv_cache + at * (IS_E4M3 ? 1 : DT_SIZE(KV_DTYPE));
}

/* Up to BLOCK rows from *next on, which moves past them; returns how many. */
static int64_t list_rows(const struct mla_decode_args *call, int64_t run, int64_t *next,
                         int64_t end, const char **rows)
{
    int64_t count = 0;
    for (; *next < end && count < BLOCK; ++*next) {
        rows[count] = row_at(call, run, *next);
        count += rows[count] != 0;
    }
    return count;
}

/* ---- Loading --------------------------------------------------------------------------------- */

typedef uint8_t vec_u8 __attribute__((vector_size(VW)));
typedef uint8_t vec_u8_any __attribute__((vector_size(VW), aligned(1), may_alias));

/* VW codes: as an f16 of the same fields a value is 2^-8 of itself. (As an f32 of the same fields
 * small ones would be denormals, which a product is slow with.) */
INLINE vec_f32 f32_from_e4m3(const char *codes)
{
    vec_u16 bits = __builtin_convertvector(*(const vec_u8_any *)codes, vec_u16);
    vec_f32 value = f32_from_f16((bits & 0x80) << 8 | (bits & 0x7f) << 7) * 256;
    vec_u32 magnitude = __builtin_convertvector(bits & 0x7f, vec_u32);
    return (vec_f32)select_u32(magnitude == 0x7f, splat_u32(0x7fc00000), (vec_u32)value);
}

INLINE float factor_at(const char *row, int64_t group)
{
    float factor;
    __builtin_memcpy(&factor, row + MLA_DV + group * 4, 4);
    return factor;
}

/* A row as f32, its factors multiplied in. */
static void load_row_f32(float *to, const char *row)
{
    for (int64_t d = 0; d < MLA_DK; d += VW) {
        vec_f32 value;
        if (!IS_E4M3)
            value = load_as_f32(KV_DTYPE, element(KV_DTYPE, row, d));
        else if (d < MLA_DV)
            value = f32_from_e4m3(row + d) * factor_at(row, d / MLA_GROUP);
        else
            value = load_as_f32(DT_BF16, row + MLA_DV + FACTORS * 4 + (d - MLA_DV) * 2);
        store_u32(to + d, (vec_u32)value);
    }
}

INLINE void load_row(uint32_t *to, const char *row)
{
    if (!IS_PAIRED) {
        load_row_f32((float *)to, row);
    } else if (!IS_E4M3) {
        for (int64_t u = 0; u < UNITS; u += VW)
            store_u32(to + u, load_u32(row + u * 4));
    } else {
        for (int64_t d = 0; d < MLA_DV; d += VW)
            store_u16((uint16_t *)to + d, /* exact: the upper half */
                      __builtin_convertvector((vec_u32)f32_from_e4m3(row + d) >> 16, vec_u16));
        __builtin_memcpy(to + MLA_DV / 2, row + MLA_DV + FACTORS * 4, (MLA_DK - MLA_DV) * 2);
    }
}

INLINE void prefetch(const char *row)
{
    for (int64_t i = 0; i < ROW_BYTES; i += 64)
        __builtin_prefetch(row + i, 0, 2);
}

/* Rows j and j + UNIT_K - 1 of a step to a unit of v. */
INLINE void pack_values(struct work *w, int64_t j, int64_t unit)
{
    const uint32_t *even = w->k[j], *odd = w->k[j + UNIT_K - 1];
    for (int64_t panel = 0; panel < PANELS; panel++) {
        vec_u32 value = load_u32(even + panel * VW / UNIT_K);
        if (IS_PAIRED) {
            value = __builtin_convertvector(load_u16(even + panel * VW / 2), vec_u32);
            value |= __builtin_convertvector(load_u16(odd + panel * VW / 2), vec_u32) << 16;
        }
        store_u32(w->v[panel][unit], value);
    }
}

/* Rows first to first + STEP of a block, zeros from `count` on; meanwhile as many of the next
 * block's are fetched. */
APART void load_step(struct work *w, int is_odd, int64_t first, int64_t count, int64_t next_count)
{
    for (int64_t j = 0; j < STEP; j++) {
        const int64_t row = first + j;
        if (row < next_count)
            prefetch(w->rows[!is_odd][row]);
        if (row < count)
            load_row(w->k[j], w->rows[is_odd][row]);
        else
            __builtin_memset(w->k[j], 0, UNITS * 4);
        for (int64_t g = 0; IS_SCALED && g < FACTORS; g++)
            w->factors[g][row] = row < count ? factor_at(w->rows[is_odd][row], g) : 0;
        if ((j + 1) % UNIT_K == 0)
            pack_values(w, j + 1 - UNIT_K, row / UNIT_K);
    }
}

/* ---- Queries --------------------------------------------------------------------------------- */

/* Query row `row` of a run's, an element of it. */
INLINE const void *query_at(const struct mla_heads *heads, int dtype, int64_t run, int64_t row)
{
    int64_t sequence = HAS_TOPK ? run / SQ : run, token = HAS_TOPK ? run % SQ : row / HQ;
    int64_t at = sequence * heads->sequence + token * heads->token + row % HQ * heads->head;
    return element(dtype, heads->data, at);
}

/* Rows from `first` on, as far as there are any, then zeros. */
APART void load_queries(struct work *w, const struct mla_decode_args *call, int64_t run,
                        int64_t first)
{
    for (int64_t tile = 0; tile < TILES; tile++) {
        for (int64_t u = 0; u < UNITS; u += VW) {
            vec_u32 square[VW];
            for (int64_t lane = 0; lane < VW; lane++) {
                int64_t row = first + tile * VW + lane;
                square[lane] = (vec_u32){ 0 };
                if (row < RUN_ROWS)
                    square[lane] = load_units(
                        DTYPE, element(DTYPE, query_at(&call->q, DTYPE, run, row), u * UNIT_K));
            }
            transpose(square);
            for (int64_t i = 0; i < VW; i++)
                store_u32(w->q[tile][u + i], square[i]);
        }
    }
}
#endif
