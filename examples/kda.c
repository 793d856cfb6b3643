/* A sequence through a layer of KDA: a prompt of five tokens by kda_prefill, then three more, one
 * at a time, by kda_decode. Its state lies in slot 2 of a pool and is advanced in place; the pool's
 * other slots stay as they are, bit for bit.
 *
 *     cc kda.c $(pkg-config --cflags --libs quern) -lm -o kda && ./kda
 */
#include <quern.h>
#include <quern/kda.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum { PROMPT = 5, TOKENS = 8, HEADS = 2, WIDTH = 64, SLOTS = 4, SLOT = 2, STATE = WIDTH * WIDTH };

/* What a token brings along: rows of WIDTH for each head, and beta. */
static float q[TOKENS][HEADS][WIDTH], k[TOKENS][HEADS][WIDTH], v[TOKENS][HEADS][WIDTH];
static float g[TOKENS][HEADS][WIDTH], beta[TOKENS][HEADS], o[TOKENS][HEADS][WIDTH];
static float states[SLOTS][HEADS][STATE]; /* [k][v] */

static float uniform(float least, float most)
{
    return least + (most - least) * ((float)rand() / (float)RAND_MAX);
}

static void draw(void)
{
    for (int t = 0; t < TOKENS; t++)
        for (int h = 0; h < HEADS; h++) {
            beta[t][h] = uniform(0, 1);
            for (int i = 0; i < WIDTH; i++) {
                q[t][h][i] = uniform(-1, 1), k[t][h][i] = uniform(-1, 1);
                v[t][h][i] = uniform(-1, 1), g[t][h][i] = uniform(-0.5f, 0);
            }
        }
    for (int slot = 0; slot < SLOTS; slot++)
        for (int i = 0; i < HEADS * STATE; i++)
            states[slot][i / STATE][i % STATE] = slot == SLOT ? 0 : 1e30f;
}

static int prefill(struct quern_context *ctx, const int32_t *slots)
{
    struct quern_kda_prefill_spec spec = QUERN_KDA_PREFILL_SPEC_INIT;
    struct quern_kda_prefill_arrays arrays = { .q = { q },
                                               .k = { k },
                                               .v = { v },
                                               .g = { g },
                                               .beta = { beta },
                                               .o = { o },
                                               .states = { states } };
    spec.t = PROMPT;
    spec.h = spec.hv = HEADS;
    spec.k = spec.v = WIDTH;
    spec.dtype = QUERN_F32;
    spec.l2norm = 1;
    spec.pool = 1;
    spec.capacity = SLOTS;
    arrays.slots.data = (void *)slots;
    return quern_kda_prefill(ctx, &spec, &arrays, NULL);
}

static int decode(struct quern_context *ctx, const int32_t *slots, int t)
{
    struct quern_kda_decode_spec spec = QUERN_KDA_DECODE_SPEC_INIT;
    struct quern_kda_decode_arrays arrays = { .q = { q[t] },
                                              .k = { k[t] },
                                              .v = { v[t] },
                                              .g = { g[t] },
                                              .beta = { beta[t] },
                                              .o = { o[t] },
                                              .states = { states } };
    spec.n = 1;
    spec.h = spec.hv = HEADS;
    spec.k = spec.v = WIDTH;
    spec.dtype = QUERN_F32;
    spec.l2norm = 1;
    spec.pool = 1;
    spec.capacity = SLOTS;
    arrays.slots.data = (void *)slots;
    return quern_kda_decode(ctx, &spec, &arrays, NULL);
}

static double length(const float *x)
{
    double sum = 1e-6;
    for (int i = 0; i < WIDTH; i++)
        sum += (double)x[i] * x[i];
    return sqrt(sum);
}

/* The recurrence, a token of a head: the largest difference from o. */
static double step(double (*s)[WIDTH], int t, int h)
{
    double q_length = length(q[t][h]), k_length = length(k[t][h]), worst = 0;
    for (int c = 0; c < WIDTH; c++) {
        double seen = 0, out = 0;
        for (int d = 0; d < WIDTH; d++) {
            s[d][c] *= exp(g[t][h][d]);
            seen += s[d][c] * k[t][h][d] / k_length;
        }
        for (int d = 0; d < WIDTH; d++) {
            s[d][c] += beta[t][h] * (v[t][h][c] - seen) * k[t][h][d] / k_length;
            out += s[d][c] * q[t][h][d] / q_length / sqrt(WIDTH);
        }
        worst = fmax(worst, fabs(out - o[t][h][c]));
    }
    return worst;
}

int main(void)
{
    static double expected[HEADS][WIDTH][WIDTH];
    const int32_t slots[] = { SLOT };
    struct quern_options options = QUERN_OPTIONS_INIT;
    struct quern_context *ctx;
    double worst = 0;
    int touched = 0;

    options.device = "cpu"; /* the arrays are in host memory */
    draw();
    int status = quern_context_create(&options, &ctx);
    if (!status)
        status = prefill(ctx, slots);
    for (int t = PROMPT; !status && t < TOKENS; t++)
        status = decode(ctx, slots, t);
    if (status)
        fprintf(stderr, "%s\n", quern_errmsg(ctx));
    quern_context_destroy(ctx);
    if (status)
        return 1;
    for (int t = 0; t < TOKENS; t++)
        for (int h = 0; h < HEADS; h++)
            worst = fmax(worst, step(expected[h], t, h));
    for (int slot = 0; slot < SLOTS; slot++)
        for (int i = 0; slot != SLOT && i < HEADS * STATE; i++)
            touched += states[slot][i / STATE][i % STATE] != 1e30f;
    printf("%d tokens: o is within %.1e of the recurrence\n", TOKENS, worst);
    printf("other slots: %d of %d elements touched\n", touched, (SLOTS - 1) * HEADS * STATE);
    return worst > 1e-5 || touched;
}
