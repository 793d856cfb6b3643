/* Few tokens of an expert: rows of weights times rows of x, as dot products along k, side by
 * side. The weights are read once, in order, straight from memory.
 *
 *              x[0]  x[1]                  at most MOE_DOTS of them: they stay in L1
 *     w[0]      +     +
 *     w[1]      +     +      accumulators: `rows` x `tokens` vectors
 *     ...
 *
 * Reading is asked for DOT_AHEAD bytes early, past a row's end in the rows that come next (`jump`
 * bytes from a row's end to the beginning of the next one), since straight on lies a row that is
 * being read already. */
#ifndef MOE_CPU_DOTS_H
#define MOE_CPU_DOTS_H
#include "moe/moe_cpu_args.h"
#include "moe/moe_cpu_load.h"

#ifndef DOT_AHEAD
#define DOT_AHEAD 4096
#endif

/* Two rows side by side: more streams are slower (one token, bf16: 2, 4 and 8 rows read at 0.91,
 * 0.88 and 0.84 of the bandwidth). Four of i8, where there are registers: a line of each is several
 * multiply-adds, which then need not wait for each other. */
enum { LINE = 64, LINE_K = LINE / W_SIZE, DOT_STEPS = LINE_K / DOT_K };
enum { ROWS = VW == 16 && IS_I8 ? 4 : 2 };

struct dots {
    const char *w[ROWS];
    const char *x[MOE_DOTS];
    int64_t k, jump;
};

/* What `steps` vectors along k from p on add. */
INLINE void add_dots(const struct dots *d, const int rows, const int tokens, int64_t p,
                     const int steps, vec_f32 acc[ROWS][MOE_DOTS])
{
    UNROLL
    for (int step = 0; step < steps; step++, p += DOT_K) {
        vec_u32 w[ROWS];
        UNROLL
        for (int r = 0; r < rows; r++)
            w[r] = dot_weights(d->w[r] + p * W_SIZE);
        UNROLL
        for (int t = 0; t < tokens; t++) {
            vec_u32 x = dot_activations(d->x[t] + p * DT_SIZE(DTYPE));
            UNROLL
            for (int r = 0; r < rows; r++)
                acc[r][t] = dot_add(acc[r][t], x, w[r]);
        }
    }
}

/* out[r * stride + t * token_stride] = row r times x[t]. */
INLINE void dot_rows(const struct dots *given, const int rows, const int tokens, float *out,
                     int64_t token_stride)
{
    const struct dots d = *given;
    vec_f32 acc[ROWS][MOE_DOTS];
    UNROLL
    for (int r = 0; r < rows; r++) {
        UNROLL
        for (int t = 0; t < tokens; t++)
            acc[r][t] = (vec_f32){ 0 };
    }
    int64_t p = 0;
    for (; p + LINE_K <= d.k; p += LINE_K) {
        int64_t at = p * W_SIZE + DOT_AHEAD;
        if (at >= d.k * W_SIZE)
            at += d.jump;
        UNROLL
        for (int r = 0; r < rows; r++)
            __builtin_prefetch((const void *)((uintptr_t)d.w[r] + (uintptr_t)at));
        add_dots(&d, rows, tokens, p, DOT_STEPS, acc);
    }
    vec_f32 sums[ROWS][MOE_DOTS]; /* apart from acc, which stays in registers */
    UNROLL
    for (int r = 0; r < rows; r++) {
        UNROLL
        for (int t = 0; t < tokens; t++)
            sums[r][t] = acc[r][t];
    }
    ROLLED
    for (int r = 0; r < rows; r++) {
        ROLLED
        for (int t = 0; t < tokens; t++) {
            vec_f32 sum = sums[r][t];
            ROLLED
            for (int64_t q = p; q < d.k; q += DOT_K)
                sum = dot_add(sum, dot_some_activations(d.x[t] + q * DT_SIZE(DTYPE), d.k - q),
                              dot_some_weights(d.w[r] + q * W_SIZE, d.k - q));
            out[t * token_stride + r] = sum_lanes(sum);
        }
    }
}

/* Two runs of rows, each in order of memory: rows of gate and of up, or two halves of a block's. A
 * row of either begins `stride` bytes after the one before. after: where reading goes on when the
 * first is done; the second's place relative to it stays as it was. */
enum { RUN = 32 };
struct runs {
    const char *first, *second, *after;
    int64_t stride, count[2]; /* at most RUN; of the second, not more than of the first */
};

INLINE void dot_runs(const struct dots *x, const struct runs *runs, const int tokens,
                     float out[MOE_DOTS][2][RUN])
{
    enum { SIDE = ROWS / 2 };
    struct dots d = *x;
    for (int64_t i = 0; i < runs->count[0]; i += SIDE) {
        float sums[MOE_DOTS][ROWS];
        UNROLL
        for (int r = 0; r < SIDE; r++) {
            int64_t row = i + r < runs->count[0] ? i + r : runs->count[0] - 1;
            int64_t pair = i + r < runs->count[1] ? i + r : runs->count[1] - 1;
            d.w[r] = runs->first + row * runs->stride;
            d.w[SIDE + r] = runs->second + pair * runs->stride;
        }
        const char *next = runs->first + (i + SIDE) * runs->stride;
        next = i + SIDE < runs->count[0] ? next : runs->after;
        d.jump = next - d.w[0] - d.k * W_SIZE;
        dot_rows(&d, ROWS, tokens, sums[0], ROWS);
        UNROLL
        for (int t = 0; t < tokens; t++) {
            UNROLL
            for (int r = 0; r < SIDE; r++) {
                out[t][0][i + r] = sums[t][r];
                out[t][1][i + r] = sums[t][SIDE + r];
            }
        }
    }
}

#define DEFINE_DOT_RUNS(tokens)                                                                    \
    APART void dot_runs_##tokens(const struct dots *x, const struct runs *runs,                    \
                                 float out[MOE_DOTS][2][RUN])                                      \
    {                                                                                              \
        dot_runs(x, runs, tokens, out);                                                            \
    }
DEFINE_DOT_RUNS(1)
DEFINE_DOT_RUNS(2)
DEFINE_DOT_RUNS(3)
DEFINE_DOT_RUNS(4)

/* out[t][half][i] = row i of the half times x[t], for t < tokens <= MOE_DOTS. */
static void multiply_runs(const struct dots *x, const struct runs *runs, int64_t tokens,
                          float out[MOE_DOTS][2][RUN])
{
    if (tokens == 1)
        dot_runs_1(x, runs, out);
    else if (tokens == 2)
        dot_runs_2(x, runs, out);
    else if (tokens == 3)
        dot_runs_3(x, runs, out);
    else
        dot_runs_4(x, runs, out);
}
#endif
