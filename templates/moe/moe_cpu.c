/* moe on CPUs: out[t] = sum of factor w2[e] h, h = act(gate) up, an expert's weights read once for
 * all its tokens. Experts and factors of all slots come from a step before, moe_route_cpu.c. Four
 * steps of one artifact, and the blocks of their grids:
 *
 *     moe_cpu_sort      a part                         slots sorted by expert, jobs, tiles
 *     moe_cpu_gather    a tile, a part                 rows of x to a panel
 *     moe_cpu_up        rows of w13, a job, a part     h, in rows or in panels
 *     moe_cpu_down      rows of w2, a part             out
 *
 * A job is one expert and the tokens that go to it. Up to four of them are multiplied as rows of x
 * and h (moe_cpu_dots.h), which is bound by reading weights. More are multiplied sixteen at a time
 * as panels, a token a column (moe_cpu_tiles.h): the 16 x 16 results of the first product have a
 * token a column, too, and so become rows of the second product's panel as they are.
 *
 *        w13[e]      x panel           h panel            w2[e]        h panel
 *      +--------+   +------+          +-------+         +--------+    +-------+
 *      | gate   | x | k    |  ->  act |       |         | rows   |  x |       | -> sums[token][row]
 *      | up     |   |      |          |       |         |        |    |       |
 *      +--------+   +------+          +-------+         +--------+    +-------+
 *                      16                16
 *
 * A block of the last step goes through all jobs of its part and adds to the sums of its own rows:
 * a token's experts are added in the order of their weights' places, shared ones last, whatever
 * other tokens there are. Sums are f32; h is rounded to dtype. Parts are there for machines with
 * more cores than w2 has rows for; usually there is one.
 *
 * No size is a define, so that layers of all sizes share an artifact.
 *
 * Invariants: experts outside [0, local) add nothing. Zeros pad missing tokens, rows and k, so
 * that no padding makes a NaN. With inplace=1 nothing reads x after moe_cpu_up. Denormal bf16
 * inputs count as zero where vdpbf16ps or TDPBF16PS multiply. */

/* ---- Parameters: what is computed ---- */
#ifndef DTYPE
#define DTYPE DT_BF16
#endif
#ifndef W_DTYPE
#define W_DTYPE DT_BF16
#endif
#ifndef ACTIVATION /* an ACT_ of activation.h */
#define ACTIVATION 1
#endif

/* ---- Parameters: how ---- */
#ifndef IS_PAIRED /* multiply bf16 in pairs */
#define IS_PAIRED 0
#endif
#ifndef AMX
#define AMX 0
#endif
#ifndef TILES /* 0: all jobs are of dot products */
#define TILES 1
#endif

#include "common/cpu/activation.h"
#include "common/cpu/dtype.h"
#include "moe/moe_cpu_args.h"
#include "moe/moe_cpu_dots.h"
#include "moe/moe_cpu_sort.h"
#if TILES
#include "moe/moe_cpu_tiles.h"
#endif

INLINE int64_t least(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

void moe_cpu_sort(const struct moe_cpu_args *args, uint32_t x, uint32_t y, uint32_t z)
{
    (void)y, (void)z;
    sort_part(args, x);
}

/* ---- Weights --------------------------------------------------------------------------------- */

static const char *w13_row(const struct moe_args *moe, int64_t expert, int64_t row)
{
    return (const char *)moe->w13 + (expert * moe->w13_expert + row * moe->w13_row) * W_SIZE;
}

static const char *w2_row(const struct moe_args *moe, int64_t expert, int64_t row)
{
    return (const char *)moe->w2 + (expert * moe->w2_expert + row * moe->w2_row) * W_SIZE;
}

/* The factors of rows of i8, `count` of them, to VW lanes. */
INLINE vec_f32 row_factors(const float *scale, int64_t count)
{
    return count < VW ? load_part_as_f32(DT_F32, scale, count) : (vec_f32)load_u32(scale);
}

/* ---- Up, few tokens -------------------------------------------------------------------------- */

/* Products of rows [i, i + count) of gate and up with one token's x, to its row of h. */
APART void put_h_row(const struct moe_cpu_args *args, int64_t expert, int64_t i, int64_t count,
                     const float *gate, const float *up, char *h)
{
    const float *scale = args->moe.w13_scale + expert * args->moe.w13_scale_expert + i;
    for (int64_t c = 0; c < count; c += VW) {
        vec_f32 g = (vec_f32)load_u32(gate + c), u = (vec_f32)load_u32(up + c);
        char *to = h + (i + c) * DT_SIZE(DTYPE);
        if (IS_I8) {
            g *= row_factors(scale + c, count - c);
            u *= row_factors(scale + args->inter + c, count - c);
        }
        vec_f32 value = gated_activation(ACTIVATION, g, u, args->moe.limit);
        if (count - c < VW)
            store_part_from_f32(DTYPE, to, value, count - c);
        else
            store_from_f32(DTYPE, to, value);
    }
}

/* Rows [row, end) of gate and up times at most MOE_DOTS places of a job from `place` on. */
static void up_dots(const struct moe_cpu_args *args, const struct part *part, int64_t expert,
                    int64_t place, int64_t tokens, int64_t row, int64_t end)
{
    const struct moe_args *moe = &args->moe;
    struct dots dots = { .k = args->hidden };
    float sums[MOE_DOTS][2][RUN];
    for (int64_t t = 0; t < tokens; t++) {
        int64_t token = part->order[place + t] / args->slots;
        dots.x[t] = (const char *)moe->x + token * moe->x_row * DT_SIZE(DTYPE);
    }
    for (int64_t i = row; i < end; i += RUN) {
        const int64_t count = least(RUN, end - i);
        const struct runs runs = { .first = w13_row(moe, expert, i),
                                   .second = w13_row(moe, expert, args->inter + i),
                                   .after = w13_row(moe, expert, i + count),
                                   .stride = moe->w13_row * W_SIZE,
                                   .count = { count, count } };
        multiply_runs(&dots, &runs, tokens, sums);
        for (int64_t t = 0; t < tokens; t++) {
            int64_t at = part->token * args->slots + place + t;
            put_h_row(args, expert, i, count, sums[t][0], sums[t][1],
                      args->h + at * args->inter * DT_SIZE(DTYPE));
        }
    }
}

/* ---- Down, few tokens ------------------------------------------------------------------------ */

/* Where a block of moe_cpu_down is, and what it adds to. */
struct rows {
    int64_t row, end;
    float *sums; /* [token of the part][down_rows] */
};

APART void add_row(const struct moe_cpu_args *args, int64_t expert, int64_t i, int64_t count,
                   const float *values, float factor, float *sums)
{
    const float *scale = args->moe.w2_scale + expert * args->moe.w2_scale_expert + i;
    for (int64_t c = 0; c < count; c += VW) {
        vec_f32 value = (vec_f32)load_u32(values + c);
        if (IS_I8)
            value *= row_factors(scale + c, count - c);
        store_u32(sums + c, (vec_u32)((vec_f32)load_u32(sums + c) + value * factor));
    }
}

/* The same of down: the rows in two halves, whole vectors but the last. after: where reading goes
 * on with the next job. */
static void down_dots(const struct moe_cpu_args *args, const struct part *part, int64_t expert,
                      int64_t place, int64_t tokens, const struct rows *rows, const char *after)
{
    const struct moe_args *moe = &args->moe;
    const int64_t stride = moe->w2_row * W_SIZE;
    struct dots dots = { .k = args->inter };
    float values[MOE_DOTS][2][RUN];
    for (int64_t t = 0; t < tokens; t++)
        dots.x[t] =
            args->h + (part->token * args->slots + place + t) * args->inter * DT_SIZE(DTYPE);
    for (int64_t i = rows->row; i < rows->end; i += 2 * RUN) {
        const int64_t left = rows->end - i;
        const int64_t half = least(RUN, (left + 31) / 32 * 16), first = least(half, left);
        const int64_t second = least(half, left - first);
        const char *row = w2_row(moe, expert, i);
        const struct runs runs = { .first = row,
                                   .second = second ? row + half * stride : row,
                                   .after = left > 2 * RUN ? row + 2 * RUN * stride : after,
                                   .stride = stride,
                                   .count = { first, second ? second : first } };
        multiply_runs(&dots, &runs, tokens, values);
        for (int64_t t = 0; t < tokens; t++) {
            const int32_t slot = part->order[place + t];
            const int64_t token = slot / args->slots - part->token;
            float *sums = rows->sums + token * args->down_rows + i - rows->row;
            add_row(args, expert, i, first, values[t][0], args->factors[slot], sums);
            add_row(args, expert, i + half, second, values[t][1], args->factors[slot], sums + half);
        }
    }
}

/* ---- Many tokens ----------------------------------------------------------------------------- */

#if TILES
INLINE int64_t x_panel_size(const struct moe_cpu_args *args)
{
    return units_of(args->hidden) * MOE_TILE;
}

INLINE int64_t h_panel_size(const struct moe_cpu_args *args)
{
    return units_of(args->inter) * MOE_TILE;
}

APART void gather_tile(const struct moe_cpu_args *args, const struct part *part,
                       const struct moe_tile *tile, uint32_t *panel)
{
    const struct moe_args *moe = &args->moe;
    for (int64_t c = 0; c < MOE_TILE; c += VW) {
        const char *rows[VW];
        int64_t k[VW];
        for (int64_t i = 0; i < VW; i++) {
            const int is_there = c + i < tile->count;
            int64_t slot = part->order[tile->first + (is_there ? c + i : 0)];
            k[i] = is_there ? args->hidden : 0;
            rows[i] = (const char *)moe->x + slot / args->slots * moe->x_row * DT_SIZE(DTYPE);
        }
        const int64_t whole = c + VW <= tile->count ? args->hidden / VEC_K * VW : 0;
        for (int64_t p = 0; p < units_of(args->hidden); p += VW) {
            vec_u32 square[VW];
            if (p < whole) {
                UNROLL
                for (int i = 0; i < VW; i++)
                    square[i] = load_units(DTYPE, rows[i] + p * UNIT_K * DT_SIZE(DTYPE));
            } else {
                vec_u32 edge[VW]; /* apart from square, which stays in registers */
                ROLLED
                for (int i = 0; i < VW; i++)
                    edge[i] = load_some_units(DTYPE, rows[i] + p * UNIT_K * DT_SIZE(DTYPE),
                                              k[i] - p * UNIT_K);
                UNROLL
                for (int i = 0; i < VW; i++)
                    square[i] = edge[i];
            }
            transpose(square);
            UNROLL
            for (int i = 0; i < VW; i++)
                store_u32(panel + (p + i) * MOE_TILE + c, square[i]);
        }
    }
}

void moe_cpu_gather(const struct moe_cpu_args *args, uint32_t x, uint32_t y, uint32_t z)
{
    const struct part part = part_of(args, y);
    (void)z;
    if ((int32_t)x < part.counts[1])
        gather_tile(args, &part, &part.tiles[x],
                    args->x_panels + (y * args->most_tiles + x) * x_panel_size(args));
}

/* A value as the units of a panel have it: rounded to dtype. */
INLINE vec_u32 unit_of(vec_f32 value)
{
    if (DTYPE == DT_BF16)
        return __builtin_convertvector(bf16_from_f32(value), vec_u32) << (IS_PAIRED ? 0 : 16);
    return (vec_u32)(DTYPE == DT_F16 ? f32_from_f16(f16_from_f32(value)) : value);
}

/* Sixteen rows of h from row i on, of which `rows` are there, to a panel. */
APART void put_h_tile(const struct moe_cpu_args *args, int64_t expert, int64_t i, int64_t rows,
                      tile_sums sums, uint32_t *panel)
{
    const float *scale = args->moe.w13_scale + expert * args->moe.w13_scale_expert + i;
    ROLLED
    for (int64_t r = 0; r < STRIP; r += UNIT_K) {
        ROLLED
        for (int64_t c = 0; c < MOE_TILE; c += VW) {
            vec_u32 unit = { 0 };
            ROLLED
            for (int64_t half = 0; half < UNIT_K && r + half < rows; half++) {
                vec_f32 gate = (vec_f32)load_u32(sums[0][r + half] + c);
                vec_f32 up = (vec_f32)load_u32(sums[1][r + half] + c);
                if (IS_I8) {
                    gate *= scale[r + half];
                    up *= scale[args->inter + r + half];
                }
                vec_f32 value = gated_activation(ACTIVATION, gate, up, args->moe.limit);
                unit |= unit_of(value) << (int)(half * 16);
            }
            store_u32(panel + (i + r) / UNIT_K * MOE_TILE + c, unit);
        }
    }
    if (i + STRIP >= args->inter) {
        int64_t written = (i + STRIP) / UNIT_K, left = units_of(args->inter) - written;
        __builtin_memset(panel + written * MOE_TILE, 0, left * MOE_TILE * 4);
    }
}

APART void up_job_tiles(const struct moe_cpu_args *args, int64_t first_tile,
                        const struct moe_job *job, int64_t row, int64_t end)
{
    __attribute__((aligned(64))) tile_sums sums[MOE_JOB_TILES];
    const int64_t panels = (job->count + MOE_TILE - 1) / MOE_TILE;
    for (int64_t i = row; i < end; i += STRIP) {
        const int64_t there = least(STRIP, args->inter - i);
        const struct strips strips = { .row = { w13_row(&args->moe, job->expert, i),
                                                w13_row(&args->moe, job->expert, args->inter + i) },
                                       .rows = { there, there },
                                       .stride = args->moe.w13_row * W_SIZE,
                                       .k = args->hidden };
        multiply_strips(&strips, args->x_panels + first_tile * x_panel_size(args),
                        x_panel_size(args), panels, sums);
        for (int64_t t = 0; t < panels; t++)
            put_h_tile(args, job->expert, i, there, sums[t],
                       args->h_panels + (first_tile + t) * h_panel_size(args));
    }
}

/* Sixteen rows of a tile, a token a column, to the tokens' sums. */
APART void add_tile(const struct moe_cpu_args *args, const struct part *part, int64_t place,
                    int64_t count, const float values[STRIP][MOE_TILE], const float *scale,
                    float *sums)
{
    for (int64_t c = 0; c < count; c += VW) {
        for (int64_t r = 0; r < STRIP; r += VW) {
            vec_u32 square[VW];
            UNROLL
            for (int i = 0; i < VW; i++)
                square[i] = load_u32(values[r + i] + c);
            transpose(square);
            vec_f32 tokens[VW];
            UNROLL
            for (int i = 0; i < VW; i++)
                tokens[i] = (vec_f32)square[i];
            ROLLED
            for (int64_t i = 0; i < VW && c + i < count; i++) {
                const int32_t slot = part->order[place + c + i];
                float *to = sums + (slot / args->slots - part->token) * args->down_rows + r;
                vec_f32 value = tokens[i];
                if (IS_I8)
                    value *= (vec_f32)load_u32(scale + r);
                store_u32(to, (vec_u32)((vec_f32)load_u32(to) + value * args->factors[slot]));
            }
        }
    }
}

APART void down_job_tiles(const struct moe_cpu_args *args, const struct part *part,
                          int64_t first_tile, const struct moe_job *job, const struct rows *rows)
{
    __attribute__((aligned(64))) tile_sums sums[MOE_JOB_TILES];
    const struct moe_args *moe = &args->moe;
    const int64_t panels = (job->count + MOE_TILE - 1) / MOE_TILE;
    for (int64_t i = rows->row; i < rows->end; i += 2 * STRIP) {
        const int64_t left = rows->end - i, second = left > STRIP ? left - STRIP : 0;
        const struct strips strips = { .row = { w2_row(moe, job->expert, i),
                                                w2_row(moe, job->expert,
                                                       i + (second ? STRIP : 0)) },
                                       .rows = { least(STRIP, left), least(STRIP, second) },
                                       .stride = moe->w2_row * W_SIZE,
                                       .k = args->inter };
        float scale[2 * STRIP] = { 0 };
        if (IS_I8)
            __builtin_memcpy(scale, moe->w2_scale + job->expert * moe->w2_scale_expert + i,
                             least(2 * STRIP, left) * sizeof(*scale));
        multiply_strips(&strips, args->h_panels + first_tile * h_panel_size(args),
                        h_panel_size(args), panels, sums);
        for (int64_t t = 0; t < panels; t++) {
            const int64_t place = job->first + t * MOE_TILE;
            const int64_t count = least(MOE_TILE, job->count - t * MOE_TILE);
            for (int s = 0; s < 2; s++)
                add_tile(args, part, place, count, sums[t][s], scale + s * STRIP,
                         rows->sums + i - rows->row + s * STRIP);
        }
    }
}
#endif

/* ---- The two products ------------------------------------------------------------------------ */

void moe_cpu_up(const struct moe_cpu_args *args, uint32_t x, uint32_t y, uint32_t z)
{
    const struct part part = part_of(args, z);
    const struct moe_job *job = &part.jobs[y];
    const int64_t row = x * args->up_rows, end = least(row + args->up_rows, args->inter);
    if ((int32_t)y >= part.counts[0])
        return;
    for (int64_t i = 0; job->tile < 0 && i < job->count; i += MOE_DOTS)
        up_dots(args, &part, job->expert, job->first + i, least(MOE_DOTS, job->count - i), row,
                end);
#if TILES
    if (job->tile < 0)
        return;
#if AMX
    configure_tiles();
#endif
    up_job_tiles(args, z * args->most_tiles + job->tile, job, row, end);
#if AMX
    TILE_RELEASE();
#endif
#endif
}

/* The block's rows of out: its sums, rounded. */
APART void put_out(const struct moe_cpu_args *args, const struct part *part,
                   const struct rows *rows)
{
    for (int64_t t = 0; t < part->tokens; t++) {
        char *out = (char *)args->moe.out +
                    ((part->token + t) * args->moe.out_row + rows->row) * DT_SIZE(DTYPE);
        const float *sums = rows->sums + t * args->down_rows;
        for (int64_t i = 0; i < rows->end - rows->row; i += VW) {
            const int64_t left = rows->end - rows->row - i;
            vec_f32 value = (vec_f32)load_u32(sums + i);
            if (left < VW)
                store_part_from_f32(DTYPE, out + i * DT_SIZE(DTYPE), value, left);
            else
                store_from_f32(DTYPE, out + i * DT_SIZE(DTYPE), value);
        }
    }
}

void moe_cpu_down(const struct moe_cpu_args *args, uint32_t x, uint32_t y, uint32_t z)
{
    const struct part part = part_of(args, y);
    const int64_t row = x * args->down_rows, end = least(row + args->down_rows, args->hidden);
    const int64_t blocks = (args->hidden + args->down_rows - 1) / args->down_rows;
    const int64_t size = args->part_tokens * args->down_rows;
    const struct rows rows = { row, end, args->sums + (y * blocks + x) * size };
    (void)z;
    __builtin_memset(rows.sums, 0, part.tokens * args->down_rows * sizeof(*rows.sums));
#if TILES && AMX
    configure_tiles();
#endif
    for (int64_t j = 0; j < part.counts[0]; j++) {
        const struct moe_job *job = &part.jobs[j];
        const int64_t next = j + 1 < part.counts[0] ? part.jobs[j + 1].expert : job->expert;
#if TILES
        if (job->tile >= 0) {
            down_job_tiles(args, &part, y * args->most_tiles + job->tile, job, &rows);
            continue;
        }
#endif
        for (int64_t i = 0; i < job->count; i += MOE_DOTS)
            down_dots(args, &part, job->expert, job->first + i, least(MOE_DOTS, job->count - i),
                      &rows, w2_row(&args->moe, next, row));
    }
#if TILES && AMX
    TILE_RELEASE();
#endif
    put_out(args, &part, &rows);
}
