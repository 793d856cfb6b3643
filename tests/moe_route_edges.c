#include "moe_route_edges.h"

#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "gpu_arrays.h"
#include "jit/dtype.h"

enum { LOGITS, BIAS, WEIGHTS, IDS }; /* the arrays of all three families */
enum { EXPERTS_MOST = 1024 };

static const char *const specs[] = {
    "topk_softmax experts=160 topk=8 dtype=bf16",
    "topk_softmax experts=256 topk=8 dtype=f32 bias=1 softcap=30 renormalize=1",
    "topk_sigmoid experts=96 topk=6 dtype=f16 bias=1 renormalize=1",
    "moe_fused_gate experts=256 groups=8 topk_group=4 topk=9 shared=1 scaling=2.5",
    "moe_fused_gate experts=60 groups=6 topk_group=2 topk=6 scoring=softmax bias=0",
};
const int moe_route_spec_count = sizeof(specs) / sizeof(specs[0]);

static const int shapes[][2] = { { 1, 1 },   { 2, 1 },  { 2, 2 },  { 3, 3 },
                                 { 7, 4 },   { 8, 8 },  { 17, 2 }, { 31, 31 },
                                 { 32, 32 }, { 33, 6 }, { 40, 9 }, { 512, 10 } };
const int moe_route_shape_count = sizeof(shapes) / sizeof(shapes[0]);

struct call {
    struct quern_context *ctx;
    struct quern_spec spec;
    struct gpu_arrays set;
    bool is_softmax, by_logit, has_bias, renormalizes; /* is_softmax: weights are */
    int64_t tokens, experts, topk, shared, groups, topk_group;
    double softcap, scaling;
};

/* A parameter's value, or `otherwise` of a family that has none of that name. */
static int64_t value_of(const struct quern_spec *spec, const char *name, int64_t otherwise)
{
    struct quern_family_description family;
    quern_family_describe(spec->family, &family);
    for (int i = 0; i < family.param_count; i++) {
        if (strcmp(family.params[i].name, name) == 0)
            return spec->values[i];
    }
    return otherwise;
}

static double real_of(const struct quern_spec *spec, const char *name, double otherwise)
{
    int64_t bits = value_of(spec, name, 0);
    double value;
    memcpy(&value, &bits, sizeof(value));
    return isnan(value) ? otherwise : value;
}

static void call_open(struct call *call, struct quern_context *ctx, uint64_t *seed,
                      const char *text)
{
    const bool is_gate = strstr(text, "gate") != NULL;
    struct quern_spec spec = common_spec(ctx, text);
    memset(call, 0, sizeof(*call));
    call->ctx = ctx;
    call->spec = spec;
    gpu_arrays_init(&call->set, ctx, &spec, &gpu_layouts[0], common_random(seed));
    call->by_logit = strstr(text, "topk_softmax") != NULL;
    call->is_softmax = call->by_logit || value_of(&spec, "scoring", 0);
    call->has_bias = value_of(&spec, "bias", 0);
    call->renormalizes = value_of(&spec, "renormalize", 0);
    call->tokens = value_of(&spec, "tokens", 0);
    call->experts = value_of(&spec, "experts", 0);
    call->shared = value_of(&spec, "shared", 0);
    call->topk = value_of(&spec, "topk", 0) - call->shared;
    call->groups = value_of(&spec, "groups", 1);
    call->topk_group = value_of(&spec, "topk_group", 1);
    call->softcap = real_of(&spec, "softcap", 0);
    call->scaling = is_gate ? 1 : real_of(&spec, "scaling", 1); /* none applies it here */
}

static void run(struct call *call, const char *what)
{
    gpu_watch(what);
    gpu_arrays_upload(&call->set);
    assert_ok(call->ctx, quern_run(call->ctx, &call->spec, call->set.arrays, NULL));
    gpu_arrays_check(&call->set, what);
    gpu_watch(NULL);
}

static double get(const struct call *call, int array, int64_t element)
{
    const struct common_arrays *host = &call->set.host;
    const int dtype = host->shapes[array].dtype;
    return qn_dtype_get(dtype, host->own[array].data + element * (int64_t)quern_dtype_bytes(dtype));
}

/* ---- Rows ---------------------------------------------------------------------------------- */

static double equal(int64_t e, uint64_t *seed)
{
    (void)e, (void)seed;
    return 0.5;
}

static double absent(int64_t e, uint64_t *seed)
{
    (void)e, (void)seed;
    return NAN;
}

static double falling(int64_t e, uint64_t *seed)
{
    (void)seed;
    return 4 - (double)e / 64;
}

static double rising(int64_t e, uint64_t *seed)
{
    (void)seed;
    return (double)e / 64 - 8;
}

static double zeros(int64_t e, uint64_t *seed)
{
    return e % 3 == 2 ? (double)common_between(seed, -1, 0) : e % 3 ? -0.0 : 0.0;
}

static double holes(int64_t e, uint64_t *seed)
{
    static const double odd[] = { NAN, -INFINITY, -NAN, -6 };
    return e % 5 == 1 ? (double)common_between(seed, 0, 9) : odd[common_between(seed, 0, 3)];
}

static double endless(int64_t e, uint64_t *seed)
{
    static const double odd[] = { INFINITY, -INFINITY, 1, -1 };
    (void)e;
    return odd[common_between(seed, 0, 3)];
}

static double coarse(int64_t e, uint64_t *seed)
{
    (void)e;
    return (double)common_between(seed, -12, 12) / 8;
}

static double one(int64_t e, uint64_t *seed)
{
    (void)seed;
    return e == 0 ? 7 : -7;
}

static double fine(int64_t e, uint64_t *seed)
{
    (void)e;
    return (double)common_between(seed, -1000000, 1000000) / 131072;
}

static double (*const kinds[])(int64_t e, uint64_t *seed) = {
    equal, absent, falling, rising, zeros, holes, endless, coarse, one, fine,
};
enum { KIND_COUNT = sizeof(kinds) / sizeof(kinds[0]), ROWS = 2 * KIND_COUNT + 1 };

static void put_rows(struct call *call, uint64_t *seed)
{
    for (int64_t t = 0; t < call->tokens; t++) {
        for (int64_t e = 0; e < call->experts; e++)
            common_arrays_put(&call->set.host, LOGITS, t * call->experts + e,
                              kinds[t % KIND_COUNT](e, seed));
    }
}

/* ---- The choice in float64 ------------------------------------------------------------------- */

struct row {
    double z[EXPERTS_MOST], score[EXPERTS_MOST], key[EXPERTS_MOST];
    bool is_open[EXPERTS_MOST]; /* may still be chosen */
    bool is_exact;              /* keys are what f32 has, so that every difference counts */
};

static double clean(double x)
{
    return x > -FLT_MAX ? fmin(x, FLT_MAX) : -FLT_MAX;
}

static void row_read(const struct call *call, int64_t token, struct row *row)
{
    double most = -INFINITY, sum = 0;
    row->is_exact = call->by_logit && !call->has_bias && call->softcap == 0;
    for (int64_t e = 0; e < call->experts; e++) {
        double x = clean(get(call, LOGITS, token * call->experts + e));
        double bias = call->has_bias ? get(call, BIAS, e) : 0;
        x = call->softcap > 0 ? call->softcap * tanh(x / call->softcap) : x;
        row->z[e] = call->by_logit ? clean(x + bias) : x;
        most = fmax(most, row->z[e]);
    }
    for (int64_t e = 0; e < call->experts; e++)
        sum += exp(row->z[e] - most);
    for (int64_t e = 0; e < call->experts; e++) {
        double bias = call->has_bias && !call->by_logit ? get(call, BIAS, e) : 0;
        row->score[e] =
            call->is_softmax ? exp(row->z[e] - most) / sum : 1 / (1 + exp(-fmax(row->z[e], -80)));
        row->key[e] = (call->by_logit ? row->z[e] : row->score[e]) + bias;
        row->is_open[e] = true;
    }
}

/* The sum of a group's two largest keys, or its only one. */
static double group_score(const struct call *call, const struct row *row, int64_t group)
{
    const int64_t size = call->experts / call->groups;
    double first = -INFINITY, second = -INFINITY;
    for (int64_t e = group * size; e < (group + 1) * size; e++) {
        double key = row->key[e];
        second = fmax(second, fmin(first, key));
        first = fmax(first, key);
    }
    return size == 1 ? first : first + second;
}

static double slack(const struct row *row, double key)
{
    return row->is_exact ? 0 : 1e-6 * fmax(1, fabs(key));
}

/* Closes the groups that are not among the best. False where rounding may decide. */
static bool row_keep_groups(const struct call *call, struct row *row)
{
    const int64_t size = call->experts / call->groups;
    double scores[EXPERTS_MOST], last = INFINITY;
    bool is_kept[EXPERTS_MOST] = { false };
    for (int64_t g = 0; g < call->groups; g++)
        scores[g] = group_score(call, row, g);
    for (int64_t i = 0; i < call->topk_group; i++) {
        int64_t best = -1;
        for (int64_t g = 0; g < call->groups; g++)
            best = !is_kept[g] && (best < 0 || scores[g] > scores[best]) ? g : best;
        is_kept[best] = true;
        last = scores[best];
    }
    for (int64_t g = 0; g < call->groups; g++) {
        if (!is_kept[g] && scores[g] != last && scores[g] > last - slack(row, last))
            return false;
    }
    for (int64_t e = 0; e < call->experts; e++)
        row->is_open[e] = is_kept[e / size];
    return true;
}

/* An expert may be chosen if none that is left has a larger key, or the same and comes first. */
static void check_ids(const struct call *call, int64_t token, struct row *row, const char *what)
{
    const int64_t columns = call->topk + call->shared;
    for (int64_t i = 0; i < columns; i++) {
        int64_t id = (int64_t)get(call, IDS, token * columns + i);
        if (i >= call->topk) {
            assert_each(id == call->experts + i - call->topk, "%s: token %d column %d: %d", what,
                        (int)token, (int)i, (int)id);
            continue;
        }
        assert_each(id >= 0 && id < call->experts && row->is_open[id],
                    "%s: token %d column %d: %d is not to be chosen", what, (int)token, (int)i,
                    (int)id);
        row->is_open[id] = false;
        for (int64_t e = 0; e < call->experts; e++) {
            bool is_better = row->key[e] > row->key[id] + slack(row, row->key[id]) ||
                             (row->key[e] == row->key[id] && e < id);
            assert_each(!row->is_open[e] || !is_better,
                        "%s: token %d column %d: %d with %.9g, but %d has %.9g", what, (int)token,
                        (int)i, (int)id, row->key[id], (int)e, row->key[e]);
        }
    }
}

static void check_weights(const struct call *call, int64_t token, const struct row *row,
                          const char *what)
{
    const int64_t columns = call->topk + call->shared;
    double sum = 0, error = 0, norm = 0;
    for (int64_t i = 0; i < call->topk; i++)
        sum += row->score[(int64_t)get(call, IDS, token * columns + i)];
    for (int64_t i = 0; i < call->topk; i++) {
        double score = row->score[(int64_t)get(call, IDS, token * columns + i)];
        double wanted = score / (call->renormalizes ? sum : 1) * call->scaling;
        double got = get(call, WEIGHTS, token * columns + i);
        error += (got - wanted) * (got - wanted);
        norm += wanted * wanted;
    }
    assert_each(sqrt(error) <= 1e-5 * sqrt(norm), "%s: token %d: weights are off by %g", what,
                (int)token, sqrt(error / norm));
}

static void check_rows(struct call *call, uint64_t *seed, const char *what)
{
    struct row *row = malloc(sizeof(*row));
    struct quern_kernel *kernel;
    struct quern_check check;
    int64_t compared = 0;
    run(call, what);
    for (int64_t token = 0; token < call->tokens; token++) {
        row_read(call, token, row);
        if (!row_keep_groups(call, row))
            continue;
        check_ids(call, token, row, what);
        check_weights(call, token, row, what);
        compared++;
    }
    ck_assert_msg(compared * 2 > call->tokens, "%s: %d rows compared", what, (int)compared);
    assert_ok(call->ctx, quern_dispatch(call->ctx, &call->spec, call->set.arrays, &kernel));
    assert_ok(call->ctx, quern_verify(call->ctx, kernel, &call->spec, call->set.arrays,
                                      common_random(seed), &check));
    ck_assert_msg(check.ok, "%s: %s", what, check.why);
    free(row);
}

/* ---- Claims ---------------------------------------------------------------------------------- */

void moe_route_edge_check(struct quern_context *ctx, uint64_t *seed, int spec)
{
    char text[256];
    struct call call;
    snprintf(text, sizeof(text), "%s tokens=%d", specs[spec], ROWS);
    call_open(&call, ctx, seed, text);
    put_rows(&call, seed);
    check_rows(&call, seed, text);
    gpu_arrays_fini(&call.set);
}

static void check_shape(struct quern_context *ctx, uint64_t *seed, int experts, int topk)
{
    char text[256];
    struct call call;
    snprintf(text, sizeof(text), "topk_softmax experts=%d topk=%d tokens=%d dtype=%s", experts,
             topk, ROWS, experts % 2 ? "bf16" : "f32");
    call_open(&call, ctx, seed, text);
    put_rows(&call, seed);
    check_rows(&call, seed, text);
    gpu_arrays_fini(&call.set);
}

void moe_route_shape_check(struct quern_context *ctx, uint64_t *seed, int shape)
{
    check_shape(ctx, seed, shapes[shape][0], shapes[shape][1]);
    if (!common_is_exhaustive())
        return;
    for (int experts = shape + 1; experts <= 40; experts += moe_route_shape_count) {
        for (int topk = 1; topk <= experts && topk <= 32; topk++)
            check_shape(ctx, seed, experts, topk);
    }
}

void moe_route_nan_check(struct quern_context *ctx, uint64_t *seed, int spec)
{
    enum { THE = 5 };
    char text[256];
    struct call call;
    snprintf(text, sizeof(text), "%s tokens=%d", specs[spec], ROWS);
    call_open(&call, ctx, seed, text);
    run(&call, text);
    const int64_t columns = call.topk + call.shared;
    double *before = malloc((size_t)(2 * ROWS * columns) * sizeof(double));
    for (int64_t i = 0; i < ROWS * columns; i++) {
        before[2 * i] = get(&call, IDS, i);
        before[2 * i + 1] = get(&call, WEIGHTS, i);
    }
    for (int64_t e = 0; e < call.experts; e += 1 + e % 2)
        common_arrays_put(&call.set.host, LOGITS, THE * call.experts + e, NAN);
    run(&call, text);
    for (int64_t i = 0; i < ROWS * columns; i++)
        assert_each(i / columns == THE || (before[2 * i] == get(&call, IDS, i) &&
                                           before[2 * i + 1] == get(&call, WEIGHTS, i)),
                    "%s: token %d has changed", text, (int)(i / columns));
    for (int64_t i = THE * columns; i < (THE + 1) * columns; i++)
        assert_each(isfinite(get(&call, WEIGHTS, i)), "%s: weight %d is not finite", text, (int)i);
    free(before);
    gpu_arrays_fini(&call.set);
}
