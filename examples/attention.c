/* Three sequences in a paged cache: set_kv_buffer scatters their keys and values to its pages, then
 * attention_decode has a query of each attend to them. Two query heads share a head of the cache.
 *
 *     cc attention.c $(pkg-config --cflags --libs quern) -lm -o attention && ./attention
 */
#include <quern.h>
#include <quern/attention_decode.h>
#include <quern/set_kv_buffer.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum { B = 3, TOKENS = 54, HKV = 2, GROUP = 2, HQ = HKV * GROUP, D = 64 };
enum { PAGE = 16, PAGES = 8, MAX_PAGES = 3 };

static int32_t seq_lens[B] = { 5, 16, 33 };
static int32_t page_table[B][MAX_PAGES] = { { 6 }, { 1 }, { 4, 0, 7 } };
static int32_t loc[TOKENS]; /* of each token: its row of the cache */
static float k[TOKENS][HKV][D], v[TOKENS][HKV][D], q[B][HQ][D], o[B][HQ][D];
static float k_cache[PAGES][PAGE][HKV][D], v_cache[PAGES][PAGE][HKV][D];

static void draw(float *x, int count)
{
    for (int i = 0; i < count; i++)
        x[i] = 2.0f * (float)rand() / (float)RAND_MAX - 1;
}

static int store(struct quern_context *ctx)
{
    struct quern_set_kv_buffer_spec spec = QUERN_SET_KV_BUFFER_SPEC_INIT;
    struct quern_set_kv_buffer_arrays arrays = { .k = { k }, .v = { v }, .loc = { loc } };
    arrays.k_cache.data = k_cache, arrays.v_cache.data = v_cache;
    spec.t = TOKENS, spec.hkv = HKV, spec.d = spec.dv = D, spec.page = PAGE, spec.pages = PAGES;
    spec.dtype = spec.kv_dtype = QUERN_F32;
    return quern_set_kv_buffer(ctx, &spec, &arrays, NULL);
}

static int attend(struct quern_context *ctx)
{
    struct quern_attention_decode_spec spec = QUERN_ATTENTION_DECODE_SPEC_INIT;
    struct quern_attention_decode_arrays arrays = { .q = { q }, .o = { o } };
    arrays.k_cache.data = k_cache, arrays.v_cache.data = v_cache;
    arrays.page_table.data = page_table, arrays.seq_lens.data = seq_lens;
    spec.b = B, spec.hq = HQ, spec.hkv = HKV, spec.d = spec.dv = D, spec.max_pages = MAX_PAGES;
    spec.dtype = spec.kv_dtype = QUERN_F32, spec.page = PAGE, spec.pages = PAGES;
    return quern_attention_decode(ctx, &spec, &arrays, NULL);
}

/* A head of a sequence, whose tokens begin at first, by its definition: the largest difference. */
static double naive(int s, int h, int first)
{
    double sum = 0, out[D] = { 0 }, worst = 0;
    for (int t = first; t < first + seq_lens[s]; t++) {
        double score = 0;
        for (int i = 0; i < D; i++)
            score += (double)q[s][h][i] * k[t][h / GROUP][i] / sqrt(D);
        sum += exp(score);
        for (int i = 0; i < D; i++)
            out[i] += exp(score) * v[t][h / GROUP][i];
    }
    for (int i = 0; i < D; i++)
        worst = fmax(worst, fabs(out[i] / sum - o[s][h][i]));
    return worst;
}

int main(void)
{
    struct quern_options options = QUERN_OPTIONS_INIT;
    struct quern_context *ctx;
    double worst = 0;

    draw(&q[0][0][0], B * HQ * D);
    draw(&k[0][0][0], TOKENS * HKV * D);
    draw(&v[0][0][0], TOKENS * HKV * D);
    for (int s = 0, i = 0; s < B; s++)
        for (int t = 0; t < seq_lens[s]; t++)
            loc[i++] = page_table[s][t / PAGE] * PAGE + t % PAGE;
    options.device = "cpu"; /* the arrays are in host memory */
    int status = quern_context_create(&options, &ctx);
    if (status || (status = store(ctx)) || (status = attend(ctx)))
        fprintf(stderr, "%s\n", quern_errmsg(ctx));
    quern_context_destroy(ctx);
    for (int s = 0, first = 0; !status && s < B; first += seq_lens[s++])
        for (int h = 0; h < HQ; h++)
            worst = fmax(worst, naive(s, h, first));
    if (!status)
        printf("%d tokens in %d sequences: o is within %.1e of the definition\n", TOKENS, B, worst);
    return status || worst > 1e-5;
}
