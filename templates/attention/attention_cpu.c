/* Attention on the CPU, blocked: a block of the grid is BM rows (queries of the heads that share a
 * head of k and v) against all keys that they see, BN of them at a time.
 *
 *     1. pack      q once, in tiles of MR rows; then of each block of keys k and v
 *     2. scores    S = q k^T                        a tile of rows at a time: MR x BN f32, in L1
 *     3. weights   P = 2^(S factor - most)          VW rows at a time (attention_softmax.h)
 *     4. outputs   O = keep O + P v                 f32, in L2 for all rows
 *     5. store     O / sum, and lse = ln 2 (most + log2 sum)
 *
 * Products are those of gemm_tile.h: on AMX tiles, on dot products of bf16 pairs, or in f32. With
 * pairs P is rounded to bf16, its sum is not. A tile of rows takes only the panels of keys that one
 * of them sees; within those what a row does not see has weight 0. The rows share what is packed,
 * so a group's heads are packed for once.
 *
 * A sink is a key with a score and no value: it opens a row's maximum and sum. */
#include "common/cpu/dtype.h"

#ifndef DTYPE
#define DTYPE DT_BF16
#endif
#ifndef AMX
#define AMX 0
#endif
#ifndef BF16_PAIRS
#define BF16_PAIRS AMX
#endif
#define IS_PAIRED BF16_PAIRS
#if AMX
#define MR 32
#elif VW == 16
#define MR 14
#elif VW == 8
#define MR 6
#else
#define MR 4
#endif
#if AMX
#define NR 32
#else
#define NR (2 * VW)
#endif
#define PANEL NR
#define B_IS_STREAMED 0

#ifndef EXTEND
#define EXTEND 0
#endif
#ifndef KV_DTYPE
#define KV_DTYPE DTYPE
#endif
#ifndef KEY_WIDTH
#define KEY_WIDTH 128
#endif
#ifndef VALUE_WIDTH
#define VALUE_WIDTH 128
#endif
#ifndef CAUSAL
#define CAUSAL 0
#endif
#ifndef VARLEN
#define VARLEN 0
#endif
#ifndef HAS_WINDOW
#define HAS_WINDOW 0
#endif
#ifndef HAS_SOFTCAP
#define HAS_SOFTCAP 0
#endif
#ifndef HAS_SINKS
#define HAS_SINKS 0
#endif
#ifndef SINKS_DTYPE
#define SINKS_DTYPE DT_F32
#endif
#ifndef HAS_LSE
#define HAS_LSE 0
#endif
#ifndef BY_INDICES
#define BY_INDICES 0
#endif
#ifndef KV_SCALE /* 1: one factor, 2: one for each head */
#define KV_SCALE 0
#endif
#ifndef PAGE
#define PAGE 16
#endif
#ifndef BM
#define BM 128
#endif
#ifndef BN
#define BN 128
#endif

/* The most units of k that a tile of a holds: those of q or of P. */
#if IS_PAIRED
#define KU ((KEY_WIDTH > BN ? KEY_WIDTH : BN) / 2)
#else
#define KU (KEY_WIDTH > BN ? KEY_WIDTH : BN)
#endif
#include "attention_kv.h"
#include "common/cpu/attention_softmax.h"

#define TILES ((BM + MR - 1) / MR)
#define GROUP_ROWS ((MR + VW - 1) / VW * VW) /* a tile's rows in whole vectors */
#define VALUE_PANELS (VALUE_WIDTH / NR)
#define WEIGHT_SIZE (IS_PAIRED ? 2 : 4)
#if AMX
#define WEIGHT_STRIDE (A_STRIDE * 2) /* in elements */
#else
#define WEIGHT_STRIDE BN
#endif
#define LOG2_E 1.44269504f
#define LN_2 0.69314718f
#define LARGE 0x1p20f /* maxima beyond this are rounded to much of 1, weights being 2^difference */
_Static_assert(BN % PACKED_K == 0 && BN % NR == 0, "blocks of whole panels");

struct tile {
    ALIGNED float o[VALUE_PANELS][MR * NR];
    ALIGNED float most[GROUP_ROWS], sum[GROUP_ROWS], keep[GROUP_ROWS];
    int64_t first[GROUP_ROWS], end[GROUP_ROWS]; /* the keys that each row sees */
    int is_begun;                               /* o holds something */
};

struct work {
    ALIGNED uint32_t q[TILES][A_TILE_UNITS + VW];
    struct tile tiles[TILES];
    struct block block;
    ALIGNED float scores[BN / NR][GROUP_ROWS * NR];
    ALIGNED char weights[GROUP_ROWS * WEIGHT_STRIDE * WEIGHT_SIZE];
#if !AMX
    ALIGNED uint32_t packed_weights[A_TILE_UNITS + VW];
#endif
    ALIGNED char rows[MR * KEY_WIDTH * DT_SIZE(DTYPE)];
    int32_t first[GROUP_ROWS], end[GROUP_ROWS]; /* what each row sees of the block */
};

INLINE vec_f32 at(const float *p)
{
    return (vec_f32)load_u32(p);
}

INLINE void put(float *p, vec_f32 value)
{
    store_u32(p, (vec_u32)value);
}

/* ---- 1. ------------------------------------------------------------------------------------- */

struct range {
    int64_t first, end;
};

/* The keys that row `row` of the sequence sees. */
INLINE struct range seen_by(const struct attention_cpu_args *args, const struct sequence *s,
                            int64_t row)
{
    int64_t position = row / args->group + s->keys - s->queries;
    struct range range = { 0, s->keys };
    if (CAUSAL && range.end > position + 1)
        range.end = position + 1;
    if (HAS_WINDOW && range.end > position + args->window)
        range.end = position + args->window;
    if (HAS_WINDOW && range.first < position - args->window + 1)
        range.first = position - args->window + 1;
    return range;
}

/* A tile's rows of q, and what a row has seen before the first key. */
APART void begin_tile(struct work *w, const struct attention_cpu_args *args,
                      const struct sequence *s, int64_t kv_head, int64_t t)
{
    struct tile *tile = &w->tiles[t];
    const int64_t left = s->rows - t * MR, rows = left < MR ? left : MR;
    for (int64_t r = 0; r < rows; r++) {
        int64_t offset = row_offset(args, s, args->q_step, kv_head, t * MR + r);
        __builtin_memcpy(w->rows + r * KEY_WIDTH * DT_SIZE(DTYPE), element(DTYPE, args->q, offset),
                         KEY_WIDTH * DT_SIZE(DTYPE));
    }
    pack_a_tile(w->q[t], DTYPE, w->rows, KEY_WIDTH, rows, KEY_WIDTH);
    for (int64_t r = 0; r < GROUP_ROWS; r++) {
        struct range seen = { 0, 0 };
        if (r < rows)
            seen = seen_by(args, s, s->first_row + t * MR + r);
        tile->first[r] = seen.first;
        tile->end[r] = seen.end;
        tile->most[r] = MINUS_INFINITY;
        tile->sum[r] = 0;
        if (HAS_SINKS && r < rows) {
            int64_t head = kv_head * args->group + (s->first_row + t * MR + r) % args->group;
            tile->most[r] =
                LOG2_E * load_one_as_f32(SINKS_DTYPE, element(SINKS_DTYPE, args->sinks, head));
            tile->sum[r] = tile->most[r] > MINUS_INFINITY || tile->most[r] != tile->most[r];
        }
    }
    tile->is_begun = 0;
}

/* What the tile's rows see of keys [first, first + count); returns the columns of the panels in
 * which one of them sees something. */
APART struct range see_block(struct work *w, const struct tile *tile, int64_t first, int64_t count)
{
    struct range all = { count, 0 };
    for (int64_t r = 0; r < GROUP_ROWS; r++) {
        int64_t begin = clamp(tile->first[r] - first, count);
        int64_t end = clamp(tile->end[r] - first, count);
        w->first[r] = begin < end ? (int32_t)begin : 0;
        w->end[r] = begin < end ? (int32_t)end : 0;
        all.first = begin < end && begin < all.first ? begin : all.first;
        all.end = begin < end && end > all.end ? end : all.end;
    }
    const int64_t step = NR > PACKED_K ? NR : PACKED_K;
    all.first = all.first / step * step;
    all.end = (all.end + step - 1) / step * step;
    return all;
}

/* ---- 3. ------------------------------------------------------------------------------------- */

INLINE float *score_at(struct work *w, int64_t r, uint32_t j)
{
    return w->scores[j / NR] + r * NR + j % NR;
}

/* Of a vector of scores those outside [first, end) become -infinity. */
INLINE void mask_scores(float *scores, uint32_t first, uint32_t end)
{
    float lane[VW];
    for (int i = 0; i < VW; i++)
        lane[i] = (float)i;
    vec_f32 lanes = at(lane);
    vec_i32 is_seen = (lanes >= (float)first) & (lanes < (float)end);
    put(scores, select_f32(is_seen, at(scores), splat_f32(MINUS_INFINITY)));
}

INLINE void put_weight(void *weights, uint32_t j, vec_f32 value)
{
#if IS_PAIRED && defined(__AVX512BF16__)
    typedef __bf16 vec_bf16 __attribute__((vector_size(2 * VW)));
    store_u16((uint16_t *)weights + j,
              (vec_u16)__builtin_ia32_cvtneps2bf16_512_mask(value, (vec_bf16){ 0 }, 0xffff));
#elif IS_PAIRED
    store_u16((uint16_t *)weights + j, bf16_from_f32(value));
#else
    put((float *)weights + j, value);
#endif
}

/* Factors of the block's scores and values. */
struct factors {
    float cap;   /* scores s first become cap tanh(s / cap), or stay */
    float sign;  /* then a factor that is not above 0, else 1: what is masked is -infinity */
    float score; /* then a factor above 0 */
    float value;
};

/* A row's scores capped and masked; the largest of each lane. */
INLINE vec_f32 prepare_row(struct work *w, int64_t r, struct factors f)
{
    const uint32_t first = (uint32_t)w->first[r], end = (uint32_t)w->end[r],
                   begin = first / VW * VW;
    const uint32_t last = end / VW * VW;
    vec_f32 most = splat_f32(MINUS_INFINITY);
    for (uint32_t j = begin; HAS_SOFTCAP && f.cap != 0 && j < end; j += VW)
        put(score_at(w, r, j), capped(at(score_at(w, r, j)), f.cap));
    for (uint32_t j = begin; f.sign != 1 && j < end; j += VW)
        put(score_at(w, r, j), at(score_at(w, r, j)) * f.sign);
    if (begin < first)
        mask_scores(score_at(w, r, begin), first - begin, VW);
    if (last < end)
        mask_scores(score_at(w, r, last), 0, end - last);
    for (uint32_t j = begin; j < end; j += VW)
        most = larger(most, at(score_at(w, r, j)) * f.score);
    return most;
}

/* A row's weights, in all columns of the panels; their sums of each lane. */
INLINE vec_f32 weigh_row(struct work *w, int64_t r, struct range columns, struct factors f,
                         float most)
{
    const uint32_t first = (uint32_t)w->first[r] / VW * VW;
    const uint32_t end = ((uint32_t)w->end[r] + VW - 1) / VW * VW;
    char *weights = w->weights + r * WEIGHT_STRIDE * WEIGHT_SIZE;
    vec_f32 sum = splat_f32(0);
    uint32_t j = (uint32_t)columns.first;
    for (; j < first; j += VW)
        put_weight(weights, j, splat_f32(0));
    for (; j < end; j += VW) {
        vec_f32 weight = weight_of(at(score_at(w, r, j)) * f.score - most, IS_PAIRED);
        sum += weight;
        put_weight(weights, j, KV_SCALE ? weight * f.value : weight);
    }
    for (; j < columns.end; j += VW)
        put_weight(weights, j, splat_f32(0));
    return sum;
}

/* Rows [base, base + VW) have maxima of which one is large: their scores are multiplied, and
 * rounded, as those were. score factor - most in one rounding is then not 0 for the largest, but as
 * far off as rounding took most. */
APART void multiply_scores(struct work *w, int64_t base, float factor)
{
    for (int64_t r = base; r < base + VW; r++) {
        for (uint32_t j = (uint32_t)w->first[r] / VW * VW; j < (uint32_t)w->end[r]; j += VW)
            put(score_at(w, r, j), at(score_at(w, r, j)) * factor);
    }
}

INLINE int has_large(const float *values)
{
    int has = 0;
    for (int i = 0; i < VW; i++)
        has |= values[i] > LARGE || values[i] < -LARGE;
    return has;
}

/* Rows [base, base + VW) of a tile. */
APART void weigh_rows(struct work *w, struct tile *tile, int64_t base, struct range columns,
                      struct factors f)
{
    vec_f32 each[VW], most, now, keep;
    for (int r = 0; r < VW; r++)
        each[r] = prepare_row(w, base + r, f);
    most = at(tile->most + base);
    now = larger(most, largest_each(each));
    put(tile->most + base, now);
    now = select_f32(now == MINUS_INFINITY, splat_f32(0), now);
    keep = exp2_f32(most - now);
    put(tile->keep + base, keep);
    float mosts[VW];
    put(mosts, now);
    if (has_large(mosts)) {
        multiply_scores(w, base, f.score);
        f.score = 1;
    }
    for (int r = 0; r < VW; r++)
        each[r] = weigh_row(w, base + r, columns, f, mosts[r]);
    put(tile->sum + base, at(tile->sum + base) * keep + total_each(each));
}

/* ---- 2. to 4. for one tile ------------------------------------------------------------------ */

APART void keep_outputs(struct tile *tile)
{
    for (int64_t r = 0; r < MR; r++) {
        if (tile->keep[r] == 1)
            continue;
        for (int64_t p = 0; p < VALUE_PANELS; p++) {
            for (int64_t c = 0; c < NR; c += VW) {
                float *o = tile->o[p] + r * NR + c;
                put(o, at(o) * tile->keep[r]);
            }
        }
    }
}

INLINE void attend(struct work *w, struct tile *tile, const uint32_t *q, struct range columns,
                   struct factors f)
{
    for (int64_t j = columns.first; j < columns.end; j += NR)
        multiply_tile(q, w->block.keys[j / NR], KEY_UNITS, w->scores[j / NR], 1);
    for (int64_t base = 0; base < GROUP_ROWS; base += VW)
        weigh_rows(w, tile, base, columns, f);
    if (tile->is_begun)
        keep_outputs(tile);

    const int64_t units = (columns.end - columns.first) / UNIT_K, first = columns.first / UNIT_K;
#if AMX
    const uint32_t *weights = (const uint32_t *)w->weights + first;
#else
    const uint32_t *weights = w->packed_weights;
    const int dtype = IS_PAIRED ? DT_BF16 : DT_F32;
    pack_a_tile(w->packed_weights, dtype, element(dtype, w->weights, columns.first), WEIGHT_STRIDE,
                MR, columns.end - columns.first);
#endif
    for (int64_t p = 0; p < VALUE_PANELS; p++)
        multiply_tile(weights, w->block.values[p] + first * NR, units, tile->o[p], !tile->is_begun);
    tile->is_begun = 1;
}

/* ---- 5. ------------------------------------------------------------------------------------- */

APART void store_tile(struct work *w, const struct attention_cpu_args *args,
                      const struct sequence *s, int64_t kv_head, int64_t t)
{
    struct tile *tile = &w->tiles[t];
    const int64_t left = s->rows - t * MR, rows = left < MR ? left : MR;
    float lse[GROUP_ROWS];
    for (int64_t r = 0; r < GROUP_ROWS; r += VW)
        put(lse + r, LN_2 * (at(tile->most + r) + log2_f32(at(tile->sum + r))));
    for (int64_t r = 0; r < rows; r++) {
        const float inverse = 1 / tile->sum[r];
        const int is_empty = tile->sum[r] == 0 || !tile->is_begun;
        int64_t offset = row_offset(args, s, args->o_step, kv_head, t * MR + r);
        for (int64_t c = 0; c < VALUE_WIDTH; c += VW) {
            vec_f32 o = at(tile->o[c / NR] + r * NR + c % NR) * inverse;
            store_from_f32(DTYPE, (void *)element(DTYPE, args->o, offset + c),
                           is_empty ? splat_f32(0) : o);
        }
        if (HAS_LSE)
            args->lse[row_offset(args, s, args->lse_step, kv_head, t * MR + r)] =
                tile->sum[r] == 0 ? MINUS_INFINITY : lse[r];
    }
}

/* ---- The block ------------------------------------------------------------------------------ */

INLINE struct factors factors_of(const struct attention_cpu_args *args, int is_prefix, int64_t head)
{
    struct factors f = { .value = 1 };
    float score = args->scale;
    if (KV_SCALE && is_prefix) {
        score *= args->k_scale[KV_SCALE == 2 ? head : 0];
        f.value = args->v_scale[KV_SCALE == 2 ? head : 0];
        score += score * 0; /* keys times infinity: their scores are NaN, whatever their sign */
    }
    f.cap = args->softcap > 0 ? args->softcap / score : 0;
    f.sign = score > 0 ? 1 : score * LOG2_E;
    f.score = score > 0 ? score * LOG2_E : 1;
    return f;
}

void attention_main(const struct attention_cpu_args *args, uint32_t x, uint32_t y, uint32_t z)
{
    struct work w;
    const int64_t head = x, number = args->tiles - 1 - (z * args->tile_columns + y);
    if (number < 0)
        return;
    const struct sequence s = find_tile(args, number);
    if (s.rows <= 0)
        return;
#if AMX
    configure_tiles();
#endif
    const int64_t tiles = (s.rows + MR - 1) / MR;
    struct range seen = { s.keys, 0 };
    for (int64_t t = 0; t < tiles; t++)
        begin_tile(&w, args, &s, head, t);
    if (s.keys > 0) {
        seen.first = seen_by(args, &s, s.first_row).first;
        seen.end = seen_by(args, &s, s.first_row + s.rows - 1).end;
        seen.first = seen.first < 0 ? 0 : seen.first / BN * BN;
    }
    for (int64_t first = seen.first, count; first < seen.end; first += count) {
        int64_t border = first < s.prefix ? s.prefix : s.keys;
        count = border - first < BN ? border - first : BN;
        const struct factors f = factors_of(args, first < s.prefix, head);
        pack_block(&w.block, args, &s, first, count, head);
        for (int64_t t = 0; t < tiles; t++) {
            struct range columns = see_block(&w, &w.tiles[t], first, count);
            if (columns.first < columns.end)
                attend(&w, &w.tiles[t], w.q[t], columns, f);
        }
    }
    for (int64_t t = 0; t < tiles; t++)
        store_tile(&w, args, &s, head, t);
#if AMX
    TILE_RELEASE();
#endif
}
