/* A mixture-of-experts layer of 8 experts, 2 of them for each of 5 tokens: topk_softmax tells which
 * and with what weights, moe computes the layer, from the same logits, in one call. The layer is
 * compared with a loop over those experts.
 *
 *     cc moe.c $(pkg-config --cflags --libs quern) -lm -o moe && ./moe
 */
#include <quern.h>
#include <quern/moe.h>
#include <quern/topk_softmax.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum { TOKENS = 5, EXPERTS = 8, TOPK = 2, HIDDEN = 64, INTER = 48 };

static float x[TOKENS][HIDDEN], logits[TOKENS][EXPERTS], out[TOKENS][HIDDEN];
static float w13[EXPERTS][2 * INTER][HIDDEN], w2[EXPERTS][HIDDEN][INTER]; /* gate rows, up rows */
static float weights[TOKENS][TOPK];
static int32_t ids[TOKENS][TOPK];

static void draw(float *values, int count)
{
    for (int i = 0; i < count; i++)
        values[i] = 2.0f * (float)rand() / (float)RAND_MAX - 1;
}

static int route(struct quern_context *ctx)
{
    struct quern_topk_softmax_spec spec = QUERN_TOPK_SOFTMAX_SPEC_INIT;
    struct quern_topk_softmax_arrays arrays = { .logits = { logits } };
    arrays.weights.data = weights, arrays.ids.data = ids;
    spec.tokens = TOKENS, spec.experts = EXPERTS, spec.topk = TOPK, spec.renormalize = 1;
    return quern_topk_softmax(ctx, &spec, &arrays, NULL);
}

static int layer(struct quern_context *ctx)
{
    struct quern_moe_spec spec = QUERN_MOE_SPEC_INIT;
    struct quern_moe_arrays arrays = { .x = { x }, .logits = { logits }, .out = { out } };
    arrays.w13.data = w13, arrays.w2.data = w2;
    spec.tokens = TOKENS, spec.experts = spec.local = EXPERTS, spec.topk = TOPK;
    spec.hidden = HIDDEN, spec.inter = INTER, spec.dtype = spec.w_dtype = QUERN_F32;
    return quern_moe(ctx, &spec, &arrays, NULL);
}

/* Adds weight w2[e] (silu(gate) up) of token t. */
static void add_expert(double *sums, int t, int e, double weight)
{
    double h[INTER];
    for (int i = 0; i < INTER; i++) {
        double gate = 0, up = 0;
        for (int j = 0; j < HIDDEN; j++) {
            gate += (double)w13[e][i][j] * x[t][j];
            up += (double)w13[e][INTER + i][j] * x[t][j];
        }
        h[i] = gate / (1 + exp(-gate)) * up;
    }
    for (int j = 0; j < HIDDEN; j++)
        for (int i = 0; i < INTER; i++)
            sums[j] += weight * w2[e][j][i] * h[i];
}

int main(void)
{
    struct quern_options options = QUERN_OPTIONS_INIT;
    struct quern_context *ctx;
    double error = 0, norm = 0;

    draw(&x[0][0], TOKENS * HIDDEN);
    draw(&logits[0][0], TOKENS * EXPERTS);
    draw(&w13[0][0][0], EXPERTS * 2 * INTER * HIDDEN);
    draw(&w2[0][0][0], EXPERTS * HIDDEN * INTER);
    options.device = "cpu"; /* the arrays are in host memory */
    int status = quern_context_create(&options, &ctx);
    if (status || (status = route(ctx)) || (status = layer(ctx)))
        fprintf(stderr, "%s\n", quern_errmsg(ctx));
    quern_context_destroy(ctx);
    for (int t = 0; !status && t < TOKENS; t++) {
        double sums[HIDDEN] = { 0 };
        for (int k = 0; k < TOPK; k++)
            add_expert(sums, t, ids[t][k], weights[t][k]);
        for (int j = 0; j < HIDDEN; j++)
            error += pow(out[t][j] - sums[j], 2), norm += pow(sums[j], 2);
    }
    if (!status)
        printf("token 0 to experts %d and %d: the layer is within %.1e of its definition\n",
               ids[0][0], ids[0][1], sqrt(error / norm));
    return status || !(error <= 1e-10 * norm);
}
