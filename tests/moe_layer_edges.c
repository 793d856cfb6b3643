#include "moe_layer_edges.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "gpu_arrays.h"
#include "jit/dtype.h"

enum { EXPERTS = 24, LOCAL = 7, HIDDEN = 128 };

/* So many tokens that every form has its turn. */
static const int tokens_of[] = { 1, 6, 40, 150 };
const int moe_layer_spec_count = sizeof(tokens_of) / sizeof(tokens_of[0]);

struct call {
    struct quern_context *ctx;
    struct quern_spec spec;
    struct gpu_arrays set;
    char text[256];
    int tokens;
    int x, logits, expert_map, out;
};

/* The array of that name. */
static int array_of(const struct quern_spec *spec, const char *name)
{
    struct quern_family_description family;
    quern_family_describe(spec->family, &family);
    for (int i = 0; i < family.array_count; i++) {
        if (!strcmp(family.arrays[i].name, name))
            return i;
    }
    ck_abort_msg("moe has no array %s", name);
    return -1;
}

static void call_open(struct call *call, struct quern_context *ctx, uint64_t *seed, int spec,
                      const char *options)
{
    call->ctx = ctx;
    call->tokens = tokens_of[spec];
    snprintf(call->text, sizeof(call->text),
             "moe tokens=%d experts=%d topk=4 hidden=%d inter=64 mapped=1 local=%d shared=1%s",
             call->tokens, EXPERTS, HIDDEN, LOCAL, options);
    call->spec = common_spec(ctx, call->text);
    gpu_arrays_init(&call->set, ctx, &call->spec, &gpu_layouts[0], common_random(seed));
    call->x = array_of(&call->spec, "x");
    call->logits = array_of(&call->spec, "logits");
    call->expert_map = array_of(&call->spec, "expert_map");
    call->out = array_of(&call->spec, "out");
}

static void run(struct call *call)
{
    gpu_watch(call->text);
    gpu_arrays_upload(&call->set);
    assert_ok(call->ctx, quern_run(call->ctx, &call->spec, call->set.arrays, NULL));
    gpu_arrays_check(&call->set, call->text);
    gpu_watch(NULL);
}

static double get(const struct call *call, int array, int64_t element)
{
    const struct common_arrays *host = &call->set.host;
    const int dtype = host->shapes[array].dtype;
    return qn_dtype_get(dtype, host->own[array].data + element * (int64_t)quern_dtype_bytes(dtype));
}

static void verify(struct call *call, uint64_t *seed)
{
    struct quern_kernel *kernel;
    struct quern_check check;
    assert_ok(call->ctx, quern_dispatch(call->ctx, &call->spec, call->set.arrays, &kernel));
    assert_ok(call->ctx, quern_verify(call->ctx, kernel, &call->spec, call->set.arrays,
                                      common_random(seed), &check));
    ck_assert_msg(check.ok, "%s: %s", call->text, check.why);
}

/* Elements of out that differ from `before`, but for those of token `but`. */
static void check_same(const struct call *call, const double *before, int but)
{
    for (int64_t i = 0; i < (int64_t)call->tokens * HIDDEN; i++)
        assert_each(i / HIDDEN == but || get(call, call->out, i) == before[i],
                    "%s: token %d has changed", call->text, (int)(i / HIDDEN));
}

static double *outputs(const struct call *call)
{
    double *values = malloc((size_t)call->tokens * HIDDEN * sizeof(*values));
    for (int64_t i = 0; i < (int64_t)call->tokens * HIDDEN; i++)
        values[i] = get(call, call->out, i);
    return values;
}

void moe_layer_crowd_check(struct quern_context *ctx, uint64_t *seed, int spec)
{
    struct call call;
    call_open(&call, ctx, seed, spec, "");
    for (int64_t i = 0; i < (int64_t)call.tokens * EXPERTS; i++)
        common_arrays_put(&call.set.host, call.logits, i, i % EXPERTS == 5 ? 3 : 0.5);
    for (int64_t e = 0; e < EXPERTS; e++)
        common_arrays_put(&call.set.host, call.expert_map, e, e < LOCAL ? (double)e : -1);
    run(&call);
    double *first = outputs(&call);
    run(&call);
    check_same(&call, first, -1);
    verify(&call, seed);
    free(first);
    gpu_arrays_fini(&call.set);
}

void moe_layer_map_check(struct quern_context *ctx, uint64_t *seed, int spec)
{
    static const double none[] = { INT32_MAX, INT32_MIN, LOCAL, LOCAL + 1, -2, 1 << 20 };
    struct call call;
    call_open(&call, ctx, seed, spec, "");
    for (int64_t e = 0; e < EXPERTS; e++)
        common_arrays_put(&call.set.host, call.expert_map, e, e % 3 ? none[e % 6] : e / 4);
    run(&call);
    double *odd = outputs(&call);
    for (int64_t e = 0; e < EXPERTS; e++)
        common_arrays_put(&call.set.host, call.expert_map, e, e % 3 ? -1 : e / 4);
    run(&call);
    check_same(&call, odd, -1);
    free(odd);
    gpu_arrays_fini(&call.set);
}

void moe_layer_nan_check(struct quern_context *ctx, uint64_t *seed, int spec)
{
    struct call call;
    call_open(&call, ctx, seed, spec, "");
    const int the = call.tokens / 2;
    run(&call);
    double *before = outputs(&call);
    for (int64_t i = 0; i < HIDDEN; i += 3)
        common_arrays_put(&call.set.host, call.x, the * HIDDEN + i, NAN);
    run(&call);
    check_same(&call, before, the);
    for (int64_t i = 0; i < HIDDEN; i++)
        assert_each(isnan(get(&call, call.out, the * HIDDEN + i)), "%s: element %d is no NaN",
                    call.text, (int)i);
    free(before);
    gpu_arrays_fini(&call.set);
}

void moe_layer_bias_check(struct quern_context *ctx, uint64_t *seed, int spec)
{
    static const double odd[] = { NAN, INFINITY, -INFINITY };
    static const char *const options[] = { " bias=1", " bias=1 softcap=4",
                                           " bias=1 scoring=sigmoid" };
    for (int i = 0; i < 3; i++) {
        struct call call;
        call_open(&call, ctx, seed, spec, options[i]);
        const int bias = array_of(&call.spec, "bias");
        for (int e = 0; e < 3; e++)
            common_arrays_put(&call.set.host, bias, 7 * e + i, odd[(e + i) % 3]);
        common_arrays_put(&call.set.host, call.logits, 11, odd[i]);
        run(&call);
        verify(&call, seed);
        gpu_arrays_fini(&call.set);
    }
}
