#include "kda_regimes.h"

#include <math.h>
#include <stdio.h>

#include "bad_indices.h"
#include "jit/context.h"

static const int lengths[] = { 1, 2, 3, 15, 16, 17, 63, 64, 65, 127, 128, 130, 1000 };
enum { LENGTHS = sizeof(lengths) / sizeof(lengths[0]) };

/* ---- Draws --------------------------------------------------------------------------------- */

static double uniform(uint64_t *seed)
{
    return (double)(common_random(seed) >> 11) * 0x1p-53;
}

static double normal(uint64_t *seed)
{
    double radius = sqrt(-2 * log(1 - uniform(seed)));
    return radius * cos(2 * 3.14159265358979 * uniform(seed));
}

/* Of the logarithm of a decay that is not exponentiated in the call: log sigmoid(normal). */
static double log_sigmoid(uint64_t *seed)
{
    return -log1p(exp(-normal(seed)));
}

/* Half of the tokens' channels keep all, the others lose what log sigmoid says, or everything. */
static double masked(uint64_t *seed)
{
    double choice = uniform(seed);
    return choice < 0.5 ? 0 : choice < 0.55 ? -1000 : log_sigmoid(seed);
}

static double weak(uint64_t *seed)
{
    return -0.012 * 2 * uniform(seed);
}

static double hard(uint64_t *seed)
{
    return -61 * 2 * uniform(seed);
}

static double log_up_to_16(uint64_t *seed)
{
    return log(1 + 15 * uniform(seed));
}

static double one(uint64_t *seed)
{
    (void)seed;
    return 0;
}

const struct kda_regime kda_regimes[] = {
    { "bounded", "gate=bounded lower_bound=-5 dt_bias=1", normal, one },
    { "softplus, rates up to 16", "gate=softplus dt_bias=1", normal, log_up_to_16 },
    { "log sigmoid", "gate=none", log_sigmoid, NULL },
    { "masked", "gate=none", masked, NULL },
    { "weak", "gate=none", weak, NULL },
    { "hard", "gate=none", hard, NULL },
    { "scalar, softplus", "gate=softplus dt_bias=1 decay=scalar", normal, log_up_to_16 },
    { "scalar, masked", "gate=none decay=scalar", masked, NULL },
};
const int kda_regime_count = sizeof(kda_regimes) / sizeof(kda_regimes[0]);

/* ---- A call -------------------------------------------------------------------------------- */

void kda_regime_text(const struct kda_regime *regime, const char *words, char *text, size_t bytes)
{
    int tokens = 0;
    for (int i = 0; i < LENGTHS; i++)
        tokens += lengths[i];
    snprintf(text, bytes, "kda_prefill t=%d n=%d varlen=1 initial=1 l2norm=1 %s %s", tokens,
             LENGTHS, regime->words, words);
}

static void fill(struct common_arrays *set, int index, double (*draw)(uint64_t *), uint64_t *seed)
{
    int64_t count = index < 0 ? 0 : qn_shape_count(&set->shapes[index]);
    for (int64_t i = 0; i < count; i++)
        common_arrays_put(set, index, i, draw(seed));
}

void kda_regime_put(const struct kda_regime *regime, struct common_arrays *set,
                    struct quern_context *ctx, const struct quern_spec *spec, uint64_t *seed)
{
    int borders = bad_indices_array(ctx, spec, "cu_seqlens"), at = 0;
    fill(set, bad_indices_array(ctx, spec, "g"), regime->g, seed);
    if (regime->rate)
        fill(set, bad_indices_array(ctx, spec, "A_log"), regime->rate, seed);
    for (int i = 0; i <= LENGTHS && borders >= 0; i++) {
        common_arrays_put(set, borders, i, at);
        at += i < LENGTHS ? lengths[i] : 0;
    }
}
