/* kda_step beyond its cases: it is what its three parts give one after the other, and touches of
 * the pools what the call's slots name. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <quern/causal_conv1d_update.h>
#include <quern/gated_rmsnorm.h>
#include <quern/kda_decode.h>
#include <quern/kda_step.h>

#include "common.h"

static struct quern_context *ctx;
static uint64_t seed;

static void setup(void)
{
    ctx = common_context(NULL);
    seed = common_seed();
}

static void teardown(void)
{
    quern_context_destroy(ctx);
}

/* ---- A call and its arrays ----------------------------------------------------------------- */

enum { X, WEIGHT, BIAS, G, BETA, A_LOG, DT_BIAS, SLOTS, Z, NORM_WEIGHT, CONV_STATES, STATES, O };

static void run(const struct quern_spec *spec, const struct quern_array *arrays)
{
    struct quern_kernel *kernel;
    assert_ok(ctx, quern_dispatch(ctx, spec, arrays, &kernel));
    assert_ok(ctx, quern_launch(ctx, kernel, spec, arrays, NULL));
}

static float value_at(const void *data, int dtype, int64_t i)
{
    if (dtype == QUERN_F32)
        return ((const float *)data)[i];
    uint16_t bits = ((const uint16_t *)data)[i];
    if (dtype == QUERN_BF16) {
        uint32_t wide = (uint32_t)bits << 16;
        float value;
        memcpy(&value, &wide, sizeof(value));
        return value;
    }
    float magnitude = bits >> 10 & 31
                          ? ldexpf((float)(1024 | (bits & 1023)), (bits >> 10 & 31) - 25)
                          : ldexpf((float)(bits & 1023), -24);
    return bits & 0x8000 ? -magnitude : magnitude;
}

/* Whether a and b may be of two kernels that add in another order. In f32: ||a - b|| / ||b||.
 *
 * Of 16 bits nearly all elements are the same bit for bit, and a norm says little of the others:
 * what lies beside a tie is rounded to the other side of it, o before the norm and after it, and
 * one such element of the greatest is most of the norm. So: one in 100 may differ, each by a step
 * of what was rounded before the norm and one of its own. (A row's factor, which an element beside
 * a tie moves, moves a few more of its row.) The last term is for what cancels. */
static void check_close(const void *a, const void *b, int dtype, int64_t count)
{
    const double step = dtype == QUERN_BF16 ? ldexp(1, -7) : ldexp(1, -10);
    double error = 0, norm = 0;
    int64_t moved = 0;
    for (int64_t i = 0; i < count; i++) {
        double x = value_at(a, dtype, i), y = value_at(b, dtype, i);
        ck_assert(isfinite(x) && isfinite(y));
        error += (x - y) * (x - y);
        norm += y * y;
    }
    if (dtype == QUERN_F32) {
        ck_assert_double_le(error, norm * 1e-12);
        return;
    }
    const double least = 1e-5 * sqrt(norm / (double)count);
    for (int64_t i = 0; i < count; i++) {
        double x = value_at(a, dtype, i), y = value_at(b, dtype, i);
        moved += x != y;
        ck_assert_double_le(fabs(x - y), 2 * step * fmax(fabs(x), fabs(y)) + least);
    }
    ck_assert_int_le(moved, count / 100);
}

static int64_t count_of(const struct common_arrays *set, int index)
{
    int64_t count = 1;
    for (int i = 0; i < set->shapes[index].rank; i++)
        count *= set->shapes[index].dims[i];
    return count;
}

static void *copy_of(const struct quern_array *array)
{
    void *copy = malloc(array->size_bytes);
    memcpy(copy, array->data, array->size_bytes);
    return copy;
}

/* ---- The three calls ------------------------------------------------------------------------- */

/* What the parts have of their own: the pools as they were, what they give. */
struct parts {
    void *conv_states, *states, *y, *middle, *o;
};

static struct quern_array dense(void *data)
{
    return (struct quern_array){ .data = data };
}

static void run_filter(const struct quern_kda_step_spec *v, const struct quern_array *from,
                       const struct parts *parts)
{
    struct quern_causal_conv1d_update_spec spec = QUERN_CAUSAL_CONV1D_UPDATE_SPEC_INIT;
    spec.n = v->n, spec.d = 2 * v->h * v->k + v->hv * v->v, spec.w = v->w;
    spec.dtype = v->dtype, spec.weight = v->weight, spec.bias = v->bias, spec.act = v->act;
    spec.capacity = v->capacity;
    struct quern_causal_conv1d_update_arrays arrays = {
        .x = dense(from[X].data),
        .weight = dense(from[WEIGHT].data),
        .bias = dense(v->bias ? from[BIAS].data : NULL),
        .slots = dense(from[SLOTS].data),
        .y = dense(parts->y),
        .states = dense(parts->conv_states),
    };
    assert_ok(ctx, quern_causal_conv1d_update(ctx, &spec, &arrays, NULL));
}

static void run_recurrence(const struct quern_kda_step_spec *v, const struct quern_array *from,
                           const struct parts *parts)
{
    const int64_t d = 2 * v->h * v->k + v->hv * v->v;
    char *y = parts->y;
    const int64_t element = v->dtype == QUERN_F32 ? 4 : 2;
    struct quern_kda_decode_spec spec = QUERN_KDA_DECODE_SPEC_INIT;
    spec.n = v->n, spec.h = v->h, spec.hv = v->hv, spec.k = v->k, spec.v = v->v;
    spec.dtype = v->dtype, spec.state = v->state, spec.g = v->g, spec.beta = v->beta;
    spec.gate = v->gate, spec.decay = v->decay, spec.l2norm = v->l2norm;
    spec.beta_logits = v->beta_logits, spec.neg_eigval = v->neg_eigval, spec.dt_bias = v->dt_bias;
    spec.layout = v->layout, spec.pool = 1, spec.capacity = v->capacity;
    spec.scale = v->scale, spec.lower_bound = v->lower_bound;
    struct quern_kda_decode_arrays arrays = {
        .q = { y, 0, 4, { d, d, v->k, 1 } },
        .k = { y + v->h * v->k * element, 0, 4, { d, d, v->k, 1 } },
        .v = { y + 2 * v->h * v->k * element, 0, 4, { d, d, v->v, 1 } },
        .g = dense(from[G].data),
        .beta = dense(from[BETA].data),
        .A_log = dense(v->gate ? from[A_LOG].data : NULL),
        .dt_bias = dense(v->gate && v->dt_bias ? from[DT_BIAS].data : NULL),
        .slots = dense(from[SLOTS].data),
        .o = dense(v->norm ? parts->middle : parts->o),
        .states = dense(parts->states),
    };
    assert_ok(ctx, quern_kda_decode(ctx, &spec, &arrays, NULL));
}

static void run_norm(const struct quern_kda_step_spec *v, const struct quern_array *from,
                     const struct parts *parts)
{
    struct quern_gated_rmsnorm_spec spec = QUERN_GATED_RMSNORM_SPEC_INIT;
    spec.t = v->n, spec.h = v->hv, spec.d = v->v, spec.dtype = v->dtype, spec.z = v->z;
    spec.weight = v->norm_weight, spec.eps = v->eps;
    spec.act = v->norm == QUERN_KDA_STEP_NORM_SILU ? QUERN_GATED_RMSNORM_ACT_SILU
                                                   : QUERN_GATED_RMSNORM_ACT_SIGMOID;
    struct quern_gated_rmsnorm_arrays arrays = {
        .x = dense(parts->middle),
        .z = dense(from[Z].data),
        .weight = dense(from[NORM_WEIGHT].data),
        .out = dense(parts->o),
    };
    assert_ok(ctx, quern_gated_rmsnorm(ctx, &spec, &arrays, NULL));
}

static const char *const layers[] = {
    "h=4 hv=4 gate=softplus dt_bias=1 l2norm=1 beta_logits=1 g=bf16",
    "h=2 hv=6 layout=vk gate=bounded lower_bound=-5 l2norm=1 bias=bf16 weight=bf16",
    "h=2 hv=4 layout=vk decay=scalar gate=softplus norm=silu state=bf16 z=f16 l2norm=1",
    "h=2 hv=2 k=64 v=256 dtype=f16 act=none state=f16 w=3 norm_weight=f16",
    "h=1 hv=3 k=256 v=64 dtype=f32 z=f32 bias=f32 neg_eigval=1 eps=0.001 w=2",
    "h=2 hv=2 dtype=f32 norm=none layout=vk scale=0.5",
};
enum { LAYER_COUNT = sizeof(layers) / sizeof(layers[0]) };

START_TEST(one_call_gives_what_its_three_parts_give)
{
    char text[256];
    struct common_arrays set;
    snprintf(text, sizeof(text), "kda_step n=9 capacity=16 %s", layers[_i]);
    struct quern_spec spec = common_spec(ctx, text);
    struct quern_kda_step_spec values = QUERN_KDA_STEP_SPEC_INIT;
    memcpy(values.values, spec.values, sizeof(values.values));
    common_arrays_init(&set, ctx, &spec, (struct common_layout){ 0, 0 }, common_random(&seed));
    struct quern_array *arrays = set.arrays;
    struct parts parts = { .conv_states = copy_of(&arrays[CONV_STATES]),
                           .states = copy_of(&arrays[STATES]),
                           .y = malloc(arrays[X].size_bytes),
                           .middle = malloc(arrays[O].size_bytes),
                           .o = malloc(arrays[O].size_bytes) };
    run_filter(&values, arrays, &parts);
    run_recurrence(&values, arrays, &parts);
    if (values.norm)
        run_norm(&values, arrays, &parts);
    run(&spec, arrays);

    ck_assert_mem_eq(arrays[CONV_STATES].data, parts.conv_states, arrays[CONV_STATES].size_bytes);
    check_close(arrays[STATES].data, parts.states, (int)values.state, count_of(&set, STATES));
    check_close(arrays[O].data, parts.o, (int)values.dtype, count_of(&set, O));
    common_arrays_check(&set, text);
    common_arrays_fini(&set);
    free(parts.conv_states), free(parts.states), free(parts.y), free(parts.middle), free(parts.o);
}
END_TEST

/* ---- What a call may touch ------------------------------------------------------------------- */

/* Whether slot i of a pool of `slot` bytes each is one of the call's. */
static bool is_named(const int32_t *slots, int n, int i)
{
    for (int s = 0; s < n; s++) {
        if (slots[s] == i)
            return true;
    }
    return false;
}

static const char *const forms[] = { "h=2 hv=4 norm=sigmoid", "h=2 hv=2 layout=vk norm=none" };

START_TEST(a_slot_outside_gives_zeros_and_the_pools_keep_what_no_slot_names)
{
    enum { N = 7, CAPACITY = 6 };
    static const int32_t slots[N] = { 3, -1, CAPACITY, 2147483647, 0, -2147483647, 5 };
    char text[256];
    struct common_arrays set;
    snprintf(text, sizeof(text), "kda_step n=%d capacity=%d k=64 v=64 dtype=f32 %s", N, CAPACITY,
             forms[_i]);
    struct quern_spec spec = common_spec(ctx, text);
    common_arrays_init(&set, ctx, &spec, (struct common_layout){ 0, 0 }, common_random(&seed));
    struct quern_array *arrays = set.arrays;
    for (int i = 0; i < N; i++)
        common_arrays_put(&set, SLOTS, i, slots[i]);
    const int pools[] = { CONV_STATES, STATES };
    void *before[2];
    for (int p = 0; p < 2; p++) {
        float *pool = arrays[pools[p]].data;
        int64_t count = count_of(&set, pools[p]), slot = count / CAPACITY;
        for (int64_t i = 0; i < count; i++) {
            if (!is_named(slots, N, (int)(i / slot)))
                pool[i] = 1e30f;
        }
        before[p] = copy_of(&arrays[pools[p]]);
    }
    run(&spec, arrays);
    common_arrays_check(&set, text);

    for (int p = 0; p < 2; p++) {
        const size_t slot = (size_t)count_of(&set, pools[p]) / CAPACITY * sizeof(float);
        for (int i = 0; i < CAPACITY; i++) {
            bool is_same = !memcmp((char *)arrays[pools[p]].data + (size_t)i * slot,
                                   (char *)before[p] + (size_t)i * slot, slot);
            ck_assert_int_eq(is_same, !is_named(slots, N, i));
        }
        free(before[p]);
    }
    const int64_t row = count_of(&set, O) / N;
    for (int64_t i = 0; i < N * row; i++) {
        float value = ((float *)arrays[O].data)[i];
        bool is_used = slots[i / row] >= 0 && slots[i / row] < CAPACITY;
        ck_assert_msg(is_used ? isfinite(value) && value != 0 : value == 0, "o[%d] is %g", (int)i,
                      (double)value);
    }
    common_arrays_fini(&set);
}
END_TEST

/* Two of 512 slots are in use: those are what is saved, and all come back bit for bit. */
START_TEST(tuning_saves_the_slots_of_the_call_in_both_pools_and_gives_every_bit_back)
{
    struct quern_tune_options options = QUERN_TUNE_OPTIONS_INIT;
    struct quern_request request = QUERN_REQUEST_INIT;
    struct quern_tune_result result;
    struct common_arrays set;
    struct quern_spec spec = common_spec(ctx, "kda_step n=2 h=1 hv=1 k=64 v=64 capacity=512");
    common_arrays_init(&set, ctx, &spec, (struct common_layout){ 0, 0 }, common_random(&seed));
    void *states = copy_of(&set.arrays[STATES]), *filters = copy_of(&set.arrays[CONV_STATES]);
    request.spec = &spec;
    request.arrays = set.arrays;
    options.memory_bytes = 1 << 20; /* of the 8 MiB that the pool takes */
    assert_ok(ctx, quern_tune(ctx, &request, &options, &result));
    ck_assert_int_eq(result.is_drawn, 0);
    ck_assert_int_eq(result.failed, 0);
    ck_assert_int_ge(result.candidates, 3);
    ck_assert_int_le(result.scratch_bytes, 1 << 20);
    ck_assert_mem_eq(set.arrays[STATES].data, states, set.arrays[STATES].size_bytes);
    ck_assert_mem_eq(set.arrays[CONV_STATES].data, filters, set.arrays[CONV_STATES].size_bytes);
    common_arrays_fini(&set);
    free(states), free(filters);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("kda_step");
    TCase *tests = tcase_create("kda_step");
    tcase_set_timeout(tests, 120);
    tcase_add_unchecked_fixture(tests, setup, teardown);
    tcase_add_loop_test(tests, one_call_gives_what_its_three_parts_give, 0, LAYER_COUNT);
    tcase_add_loop_test(tests, a_slot_outside_gives_zeros_and_the_pools_keep_what_no_slot_names, 0,
                        sizeof(forms) / sizeof(forms[0]));
    tcase_add_test(tests,
                   tuning_saves_the_slots_of_the_call_in_both_pools_and_gives_every_bit_back);
    suite_add_tcase(suite, tests);
    return common_main(suite);
}
