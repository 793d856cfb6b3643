/* mla_decode: softmax(scale q c^T) c[:512], online over blocks of BLOCK rows. Three entries:
 *
 *     mla_decode_schedule    one block: cuts the runs (mla_decode_cpu_args.h) into pieces
 *     mla_decode_main        block (x, y): piece x, query rows from y GROUP_ROWS on
 *     mla_decode_combine     block (x, y): run x, the same rows: joins its pieces, if there are two
 *
 * A block of rows of the cache, read once for all query rows:
 *
 *     1. load      STEP rows into k and v (mla_decode_work.h), those that are none left out
 *     2. score     k times q, a lane a query row; then the next STEP rows
 *     3. soften    weights 2^(score - most) and their sums; o shrinks where `most` has grown
 *     4. gather    o += weights times v
 *
 * Every query sees all of a block's rows. Those that causal hides from some, the last SQ - 1, are
 * no part of any block: step 5 takes them one by one, each query its own, so that what a query does
 * not see cannot reach it, whatever it holds. A query row's bits depend on its own run alone. */
#include "mla/mla_decode_products.h"
#include "mla/mla_decode_work.h"

#define LOG2_E 1.44269504f
#define LN_2 0.693147181f
#define INFINITE __builtin_inff()

/* ---- The schedule ---------------------------------------------------------------------------- */

/* Rows of a piece, at least: two of them, and joining them, must be faster than one. */
enum { PIECE_LEAST = 512 };

INLINE int64_t divide_up(int64_t a, int64_t b)
{
    return (a + b - 1) / b;
}

/* Whole blocks, all of a length of `wanted` pieces. */
static int64_t piece_rows(int64_t length, int64_t wanted)
{
    int64_t rows = divide_up(length, wanted);
    rows = rows < PIECE_LEAST ? PIECE_LEAST : rows;
    return divide_up(rows, BLOCK) * BLOCK;
}

void mla_decode_schedule(const struct mla_decode_cpu_args *args, uint32_t x, uint32_t y, uint32_t z)
{
    (void)x, (void)y, (void)z;
    int64_t total = 0, count = 0;
    int32_t slots = 0;
    for (int64_t run = 0; !DETERMINISTIC && run < args->runs; run++)
        total += run_length(&args->call, run);
    const int64_t shared = piece_rows(total, args->pieces_wanted);
    for (int64_t run = 0; run < args->runs; run++) {
        const int64_t length = run_length(&args->call, run);
        const int64_t rows = DETERMINISTIC ? piece_rows(length, RUN_PIECES) : shared;
        const int64_t pieces = length ? divide_up(length, rows) : 1;
        args->run_table[run] = (struct mla_run){ slots, (int32_t)pieces };
        for (int64_t i = 0; i < pieces; i++) {
            int64_t end = (i + 1) * rows;
            args->pieces[count++] = (struct mla_piece){ .run = (int32_t)run,
                                                        .slot = pieces > 1 ? slots++ : -1,
                                                        .begin = i * rows,
                                                        .end = end < length ? end : length };
        }
    }
    *args->piece_count = count;
}

/* ---- 3. Soften ------------------------------------------------------------------------------- */

/* What scores are taken off from: where all are -infinity, nothing. */
INLINE vec_f32 base_of(vec_f32 most)
{
    return select_f32(most == -INFINITE, splat_f32(0), most);
}

INLINE int is_all_one(vec_f32 x)
{
    vec_f32 differs = select_f32(x == 1.0f, splat_f32(0), splat_f32(1));
    return sum_lanes(differs) == 0;
}

/* o of a tile times a factor for each lane. */
APART void shrink(struct work *w, int64_t tile, vec_f32 keep)
{
    float factors[VW];
    store_u32(factors, (vec_u32)keep);
    for (int64_t panel = 0; panel < PANELS; panel++) {
        for (int64_t lane = 0; lane < VW; lane++) {
            float *o = w->o[tile][panel][lane];
            store_u32(o, (vec_u32)((vec_f32)load_u32(o) * factors[lane]));
        }
    }
}

/* Unit of weights: of one row, or of two next to each other. */
INLINE vec_u32 weight_unit(vec_f32 even, vec_f32 odd)
{
    if (!IS_PAIRED)
        return (vec_u32)even;
    vec_u32 low = __builtin_convertvector(bf16_from_f32(even), vec_u32);
    return low | __builtin_convertvector(bf16_from_f32(odd), vec_u32) << 16;
}

/* VW units of weights of all lanes: the square is transposed, so that a row is a lane's. */
INLINE void put_weights(struct work *w, int64_t tile, int t, int64_t first)
{
    for (int64_t g = 0; g < WEIGHTS; g++) {
        vec_u32 square[VW];
        for (int64_t i = 0; i < VW; i++) {
            const int64_t j = (first + i) * UNIT_K, next = j + UNIT_K - 1;
            vec_f32 even = (vec_f32)load_u32(w->scores[tile][j]);
            vec_f32 odd = (vec_f32)load_u32(w->scores[tile][next]);
            if (IS_SCALED) {
                even *= w->factors[g][j];
                odd *= w->factors[g][next];
            }
            square[i] = weight_unit(even, odd);
        }
        transpose(square);
        for (int64_t lane = 0; lane < VW; lane++)
            store_u32(w->weights[t][g][lane] + first, square[lane]);
    }
}

/* Of `rows` rows the first `count` are there. */
APART void soften(struct work *w, int64_t tile, int t, int64_t count, int64_t rows, float scale)
{
    const vec_f32 before = (vec_f32)load_u32(w->most[tile]);
    vec_f32 most = before, sum = (vec_f32)load_u32(w->sum[tile]);
    for (int64_t j = 0; j < count; j++) {
        vec_f32 score = (vec_f32)load_u32(w->scores[tile][j]) * scale;
        most = select_f32(score > most, score, most);
        store_u32(w->scores[tile][j], (vec_u32)score);
    }
    const vec_f32 base = base_of(most), keep = exp2_f32(before - base);
    vec_f32 sums = { 0 };
    for (int64_t j = 0; j < rows; j++) {
        vec_f32 weight = { 0 };
        if (j < count)
            weight = exp2_f32((vec_f32)load_u32(w->scores[tile][j]) - base);
        sums += weight;
        store_u32(w->scores[tile][j], (vec_u32)weight);
    }
    for (int64_t first = 0; first < rows / UNIT_K; first += VW)
        put_weights(w, tile, t, first);
    if (!is_all_one(keep))
        shrink(w, tile, keep);
    store_u32(w->most[tile], (vec_u32)most);
    store_u32(w->sum[tile], (vec_u32)(sum * keep + sums));
}

/* ---- 5. Rows that not all queries see -------------------------------------------------------- */

static float dot(const float *a, const float *b)
{
    vec_f32 sums[4] = { { 0 }, { 0 }, { 0 }, { 0 } };
    for (int64_t d = 0; d < MLA_DK; d += 4 * VW) {
        UNROLL
        for (int i = 0; i < 4; i++)
            sums[i] +=
                *(const vec_f32_any *)(a + d + i * VW) * *(const vec_f32_any *)(b + d + i * VW);
    }
    return sum_lanes((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

/* One more row for one query row, a lane of a tile. */
static void add_row(struct work *w, int64_t tile, int64_t lane, const float *row, float score)
{
    const float before = w->most[tile][lane], most = score > before ? score : before;
    const float base = most == -INFINITE ? 0 : most;
    const float keep = exp2_f32(splat_f32(before - base))[0];
    const float weight = exp2_f32(splat_f32(score - base))[0];
    for (int64_t panel = 0; panel < PANELS; panel++) {
        vec_f32 value = *(const vec_f32_any *)(row + panel * VW) * weight;
        float *o = w->o[tile][panel][lane];
        store_u32(o, (vec_u32)((vec_f32)load_u32(o) * keep + value));
    }
    w->most[tile][lane] = most;
    w->sum[tile][lane] = w->sum[tile][lane] * keep + weight;
}

/* Row i of the run's list to the queries from number `token` on. */
APART void add_to_some(struct work *w, const struct mla_decode_args *call, int64_t run, int64_t i,
                       int64_t first, float scale)
{
    float row[MLA_DK], query[MLA_DK];
    const int64_t length = run_length(call, run), end = first + GROUP_ROWS;
    const int64_t token = i - (length - SQ); /* the first that sees it */
    load_row_f32(row, row_at(call, run, i));
    for (int64_t r = token * HQ > first ? token * HQ : first; r < end && r < RUN_ROWS; r++) {
        const void *q = query_at(&call->q, DTYPE, run, r);
        for (int64_t d = 0; d < MLA_DK; d += VW)
            store_u32(query + d, (vec_u32)load_as_f32(DTYPE, element(DTYPE, q, d)));
        add_row(w, (r - first) / VW, (r - first) % VW, row, dot(query, row) * scale);
    }
}

/* ---- Results --------------------------------------------------------------------------------- */

/* ln x of x > 0, as most and sum give it: most ln 2 + ln sum. */
INLINE float log_sum(float most, float sum)
{
    union {
        float value;
        int32_t bits;
    } u = { sum };
    if (!(sum > 0))
        return sum == 0 ? -INFINITE : sum;
    int32_t exponent = (u.bits >> 23) - 127;
    u.bits -= exponent << 23;
    return ((float)exponent + most) * LN_2 + log1p_of_unit(splat_f32(u.value - 1))[0];
}

static void put_lse(const struct mla_decode_args *call, int64_t run, int64_t row, float most,
                    float sum)
{
    if (HAS_LSE)
        *(float *)query_at(&call->lse, DT_F32, run, row) = log_sum(most, sum);
}

/* The query rows from `first` on: results, or what a combine makes them of. */
APART void put_rows(struct work *w, const struct mla_decode_cpu_args *args,
                    const struct mla_piece *piece, int64_t first)
{
    const struct mla_decode_args *call = &args->call;
    for (int64_t r = first; r < first + GROUP_ROWS && r < RUN_ROWS; r++) {
        const int64_t tile = (r - first) / VW, lane = (r - first) % VW;
        const float most = w->most[tile][lane], sum = w->sum[tile][lane];
        const float inverse = sum == 0 ? 0 : 1 / sum;
        const int64_t at = piece->slot * (int64_t)RUN_ROWS + r;
        for (int64_t panel = 0; panel < PANELS; panel++) {
            vec_f32 value = (vec_f32)load_u32(w->o[tile][panel][lane]);
            if (piece->slot >= 0)
                store_u32(args->partial_o + at * MLA_DV + panel * VW, (vec_u32)value);
            else
                store_from_f32(
                    DTYPE,
                    (void *)element(DTYPE, query_at(&call->o, DTYPE, piece->run, r), panel * VW),
                    value * inverse);
        }
        if (piece->slot >= 0) {
            args->partial_sums[2 * at] = most;
            args->partial_sums[2 * at + 1] = sum;
        } else {
            put_lse(call, piece->run, r, most, sum);
        }
    }
}

void mla_decode_main(const struct mla_decode_cpu_args *args, uint32_t x, uint32_t y, uint32_t z)
{
    const struct mla_decode_args *call = &args->call;
    const struct mla_piece *piece = &args->pieces[x];
    const int64_t first = (int64_t)y * GROUP_ROWS;
    const float scale = call->scale * LOG2_E;
    struct work work, *w = &work;
    (void)z;
    if (x >= *args->piece_count)
        return;
#if AMX
    configure_tiles();
#endif
    load_queries(w, call, piece->run, first);
    __builtin_memset(w->o, 0, sizeof(w->o));
    for (int64_t i = 0; i < TILES * VW; i++) {
        w->most[i / VW][i % VW] = -INFINITE;
        w->sum[i / VW][i % VW] = 0;
    }

    const int64_t length = run_length(call, piece->run), hidden = CAUSAL ? SQ - 1 : 0;
    const int64_t seen_by_all = length > hidden ? length - hidden : 0;
    const int64_t end = piece->end < seen_by_all ? piece->end : seen_by_all;
    int64_t next = piece->begin, is_odd = 0;
    int64_t count = list_rows(call, piece->run, &next, end, w->rows[0]);
    while (count) {
        const int64_t next_count = list_rows(call, piece->run, &next, end, w->rows[!is_odd]);
        const int64_t rows = divide_up(count, STEP) * STEP;
        for (int64_t step = 0; step < rows; step += STEP) {
            load_step(w, (int)is_odd, step, count, next_count);
            for (int64_t tile = 0; tile < TILES; tile += WIDE)
                score(w, tile, TILES - tile < WIDE ? (int)(TILES - tile) : WIDE, step);
        }
        for (int64_t tile = 0; tile < TILES; tile += WIDE) {
            const int tiles = TILES - tile < WIDE ? (int)(TILES - tile) : WIDE;
            for (int t = 0; t < tiles; t++)
                soften(w, tile + t, t, count, rows, scale);
            gather(w, tile, tiles, rows);
        }
        count = next_count;
        is_odd = !is_odd;
    }
    for (int64_t i = piece->begin > end ? piece->begin : end; CAUSAL && i < piece->end; i++)
        add_to_some(w, call, piece->run, i, first, scale);
    put_rows(w, args, piece, first);
#if AMX
    TILE_RELEASE();
#endif
}

/* ---- Combine --------------------------------------------------------------------------------- */

static void combine_row(const struct mla_decode_cpu_args *args, int64_t run, int64_t row)
{
    const struct mla_run *entry = &args->run_table[run];
    const int64_t stride = RUN_ROWS, at = entry->slot * stride + row;
    const float *sums = args->partial_sums + 2 * at;
    float most = -INFINITE, sum = 0;
    void *o = (void *)query_at(&args->call.o, DTYPE, run, row);
    for (int64_t i = 0; i < entry->pieces; i++)
        most = sums[2 * i * stride] > most ? sums[2 * i * stride] : most;
    const float base = most == -INFINITE ? 0 : most;
    vec_f32 total[PANELS];
    for (int64_t panel = 0; panel < PANELS; panel++)
        total[panel] = (vec_f32){ 0 };
    for (int64_t i = 0; i < entry->pieces; i++) {
        const float keep = exp2_f32(splat_f32(sums[2 * i * stride] - base))[0];
        const float *partial = args->partial_o + (at + i * stride) * MLA_DV;
        sum += sums[2 * i * stride + 1] * keep;
        for (int64_t panel = 0; panel < PANELS; panel++)
            total[panel] += *(const vec_f32_any *)(partial + panel * VW) * keep;
    }
    const float inverse = sum == 0 ? 0 : 1 / sum;
    for (int64_t panel = 0; panel < PANELS; panel++)
        store_from_f32(DTYPE, (void *)element(DTYPE, o, panel * VW), total[panel] * inverse);
    put_lse(&args->call, run, row, most, sum);
}

void mla_decode_combine(const struct mla_decode_cpu_args *args, uint32_t x, uint32_t y, uint32_t z)
{
    const int64_t first = (int64_t)y * GROUP_ROWS;
    (void)z;
    if (args->run_table[x].pieces == 1)
        return;
    for (int64_t row = first; row < first + GROUP_ROWS && row < RUN_ROWS; row++)
        combine_row(args, x, row);
}
