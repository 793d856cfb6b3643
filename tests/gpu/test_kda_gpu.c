/* The KDA families on a device, beyond their cases (test_families_gpu.c): runs repeated until a
 * race would show, tuning in place in a large pool, one call and two, what bad index arrays may
 * touch, and where a NaN goes.
 *
 *     for every variant of kda_prefill in every legal config, 10,000 times
 *         outputs and states put back ── launch ── compared with the first run's, guards too
 *
 * all in the order of one stream: the host looks at a counter when they are done. The configs are
 * those that the variants list as candidates, all of them for two specs, some for the others, and
 * on GPUs those that split sequences, which no variant lists for sequences so short.
 *
 * QUERN_TEST_REPEATS=N runs another number of times, QUERN_TEST_ALL=1 all configs of all specs;
 * CK_RUN_CASE=repeats, restore, gates or inputs a part. QUERN_TEST_DEVICE=cpu tries the suite
 * itself. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "jit/context.h"
#include "jit/dtype.h"
#include "jit/measure.h"
#include "tests/bad_indices.h"
#include "tests/gpu_arrays.h"
#include "tests/gpu_driver.h"
#include "tests/gpu_kernel.h"
#include "tests/kda_nan.h"
#include "tests/kda_regimes.h"

static struct quern_context *ctx, *checking;
static uint64_t seed;

static void setup(void)
{
    unsetenv("QUERN_CHECK");
    ctx = gpu_context(NULL);
    setenv("QUERN_CHECK", "1", 1);
    checking = gpu_context(NULL);
    unsetenv("QUERN_CHECK");
    seed = common_seed();
}

static void teardown(void)
{
    quern_context_destroy(ctx);
    quern_context_destroy(checking);
}

static bool is_gpu(void)
{
    return ctx->target.kind == QUERN_CUDA;
}

/* ---- Memory put back and compared on the device -------------------------------------------- */

/* A written array's whole block, guards too, before a run and after the first. */
struct watched {
    unsigned char *now, *before, *first;
    size_t bytes;
};

struct repeats {
    struct gpu_arrays set;
    struct watched arrays[QUERN_MAX_ARRAYS];
    int count;
    int32_t *differing; /* words in all, and the first run with one; on the device */
    struct gpu_kernel restore, compare;
};

static unsigned char *copy_make(const void *from, size_t bytes)
{
    void *data;
    assert_ok(ctx, quern_memory_alloc(ctx, bytes, &data));
    assert_ok(ctx, quern_memory_copy(ctx, data, from, bytes));
    return data;
}

static void repeats_init(struct repeats *r, const struct quern_spec *spec)
{
    static const int32_t none[2] = { 0, INT32_MAX };
    memset(r, 0, sizeof(*r));
    gpu_arrays_init(&r->set, ctx, spec, &gpu_layouts[0], common_random(&seed));
    for (int i = 0; i < r->set.host.count; i++) {
        struct watched *array = &r->arrays[r->count];
        int role = r->set.host.shapes[i].role;
        if (role != QUERN_OUT && role != QUERN_INOUT)
            continue;
        array->now = r->set.blocks[i];
        array->bytes = gpu_arrays_block_bytes(&r->set, i);
        array->before = copy_make(array->now, array->bytes);
        array->first = copy_make(array->now, array->bytes);
        r->count++;
    }
    r->differing = (int32_t *)(void *)copy_make(none, sizeof(none));
    if (!is_gpu())
        return;
    gpu_kernel_open(&r->restore, ctx, "fact_compare.cu", "restore");
    gpu_kernel_open(&r->compare, ctx, "fact_compare.cu", "compare");
    gpu_kernel_shape(&r->restore, 0, 128, 256, 0, 0);
    gpu_kernel_shape(&r->compare, 0, 128, 256, 0, 0);
}

static void repeats_fini(struct repeats *r)
{
    for (int i = 0; i < r->count; i++) {
        quern_memory_free(ctx, r->arrays[i].before, r->arrays[i].bytes);
        quern_memory_free(ctx, r->arrays[i].first, r->arrays[i].bytes);
    }
    quern_memory_free(ctx, r->differing, 2 * sizeof(*r->differing));
    gpu_arrays_fini(&r->set);
    if (!is_gpu())
        return;
    gpu_kernel_close(&r->restore);
    gpu_kernel_close(&r->compare);
}

/* In the default stream's order; nothing waits. */
static void enqueue(struct gpu_kernel *kernel, const struct fact_args *args)
{
    struct quern_message why;
    memcpy(kernel->launch.steps[0].args, args, sizeof(*args));
    kernel->launch.steps[0].args_bytes = sizeof(*args);
    int status = ctx->backend->launch(ctx->device, &kernel->plan, kernel->functions,
                                      &kernel->launch, NULL, QN_GRID_PARALLEL, &why);
    if (status)
        ck_abort_msg("%s: %s", kernel->plan.steps[0].entry, why.text);
}

static void restore(struct repeats *r)
{
    for (int i = 0; i < r->count; i++) {
        const struct watched *array = &r->arrays[i];
        const struct fact_args args = { .a = array->before,
                                        .out = array->now,
                                        .n = (int32_t)(array->bytes / 4) };
        if (is_gpu())
            enqueue(&r->restore, &args);
        else
            memcpy(array->now, array->before, array->bytes);
    }
}

static void compare(struct repeats *r, int run)
{
    for (int i = 0; i < r->count; i++) {
        const struct watched *array = &r->arrays[i];
        const struct fact_args args = { .a = array->first,
                                        .b = array->now,
                                        .out = r->differing,
                                        .x = run,
                                        .n = (int32_t)(array->bytes / 4) };
        if (is_gpu()) {
            enqueue(&r->compare, &args);
        } else if (memcmp(array->first, array->now, array->bytes)) {
            r->differing[0]++;
            r->differing[1] = run < r->differing[1] ? run : r->differing[1];
        }
    }
}

/* ---- Forms: a variant and its config ------------------------------------------------------- */

enum { MAX_FORMS = 512, SOME_FORMS = 4 };

struct form {
    const struct quern_variant *variant;
    char config[256];
};

static void forms_add(const struct quern_variant *variant, const int32_t *config,
                      struct form *forms, int *count)
{
    struct form form = { .variant = variant };
    qn_config_text(variant, config, form.config, sizeof(form.config));
    for (int i = 0; i < *count; i++) {
        if (forms[i].variant == variant && !strcmp(forms[i].config, form.config))
            return;
    }
    ck_assert_int_lt(*count, MAX_FORMS);
    forms[(*count)++] = form;
}

/* Every variant that serves the spec: the heuristic's config, then its legal candidates. */
static int forms_find(const struct quern_spec *spec, const struct quern_array *arrays,
                      struct form *forms)
{
    static int32_t configs[256][QUERN_MAX_KNOBS];
    struct qn_bucket bucket;
    struct quern_message why;
    int count = 0;
    qn_bucket_make(spec, arrays, &bucket);
    const struct quern_problem problem = { &bucket.spec, &ctx->target, &ctx->profile,
                                           bucket.alignment };
    for (int i = 0; spec->family->variants[i]; i++) {
        const struct quern_variant *variant = spec->family->variants[i];
        if (variant->device != ctx->target.kind || !variant->supports(&problem))
            continue;
        memset(configs, 0, sizeof(configs));
        variant->heuristic(&problem, configs[0]);
        int found = 1 + (variant->candidates ? variant->candidates(&problem, configs + 1, 255) : 0);
        for (int n = 0; n < found; n++) {
            if (!qn_config_check(variant, &problem, configs[n], &why))
                forms_add(variant, configs[n], forms, &count);
        }
    }
    return count;
}

/* Moves `kept` forms drawn at random to the front. */
static int forms_draw(struct form *forms, int count, int kept)
{
    for (int i = 0; i < kept && i < count; i++) {
        int pick = (int)common_between(&seed, i, count - 1);
        struct form form = forms[i];
        forms[i] = forms[pick];
        forms[pick] = form;
    }
    return kept < count ? kept : count;
}

/* Of kda_prefill_sm80: a sequence split after 32 or 64 tokens, by wgmma and by mma.sync. */
static const char *const segment_configs[] = {
    "chunk=32,wgmma=1,bv=64,split=1,stages=3,segment=1",
    "chunk=32,wgmma=1,bv=64,split=1,stages=2,segment=2",
    "chunk=64,wgmma=0,bv=16,split=4,stages=2,segment=1",
    "chunk=16,wgmma=0,bv=64,split=1,stages=1,segment=2",
};
enum { SEGMENT_CONFIGS = sizeof(segment_configs) / sizeof(segment_configs[0]) };

/* Adds those that the device has; of other variants and families none. Returns how many there are
 * with them. */
static int forms_add_segments(const struct quern_spec *spec, struct form *forms, int count)
{
    const bool has_wgmma = ctx->target.sm == 90 && ctx->target.sm_suffix == 'a';
    const struct quern_variant *const *variant = spec->family->variants;
    while (*variant && strcmp((*variant)->name, "kda_prefill_sm80"))
        variant++;
    for (int i = 0; i < SEGMENT_CONFIGS && is_gpu() && *variant; i++) {
        if (strstr(segment_configs[i], "wgmma=1") && !has_wgmma)
            continue;
        ck_assert_int_lt(count, MAX_FORMS);
        forms[count].variant = *variant;
        snprintf(forms[count].config, sizeof(forms[count].config), "%s", segment_configs[i]);
        count++;
    }
    return count;
}

static int form_prepare(const struct form *form, const struct quern_spec *spec,
                        const struct quern_array *arrays, struct quern_kernel **kernel)
{
    struct quern_request request = QUERN_REQUEST_INIT;
    request.spec = spec;
    request.arrays = arrays;
    request.variant = form->variant->name;
    request.config = form->config;
    return quern_prepare(ctx, &request, kernel);
}

/* Compiled by all cores at once, to be found by form_get(), which says what fails. */
static void forms_compile(const struct form *forms, int count, const struct quern_spec *spec,
                          const struct quern_array *arrays)
{
#pragma omp parallel for schedule(dynamic)
    for (int i = 0; i < count; i++) {
        struct quern_kernel *kernel;
        form_prepare(&forms[i], spec, arrays, &kernel);
    }
}

/* The kernel, and `text`, of the call, with the form's name and config. */
static struct quern_kernel *form_get(const struct form *form, const struct quern_spec *spec,
                                     const struct quern_array *arrays, const char *text, char *what,
                                     size_t bytes)
{
    struct quern_kernel *kernel;
    snprintf(what, bytes, "%s, variant %s, config %s", text, form->variant->name, form->config);
    int status = form_prepare(form, spec, arrays, &kernel);
    ck_assert_msg(!status, "%s: %s", what, quern_errmsg(ctx));
    return kernel;
}

/* ---- Repeats ------------------------------------------------------------------------------- */

/* At most 1024 tokens; sequences of none, one and many chunks; both layouts; pools and not. */
static const char *const repeat_specs[] = {
    "kda_prefill t=300 n=5 h=1 hv=2 varlen=1 initial=1 gate=softplus dt_bias=1 l2norm=1",
    "kda_prefill t=260 n=4 h=2 hv=2 varlen=1 pool=1 capacity=7 gate=bounded lower_bound=-5 "
    "layout=vk beta_logits=1 l2norm=1",
    "kda_prefill t=1024 h=1 hv=2 dtype=f16 initial=1 layout=vk",
    "kda_prefill t=200 n=3 h=1 hv=3 k=64 v=256 varlen=1 pool=1 capacity=5 state=bf16 l2norm=1",
    "kda_prefill t=260 n=4 h=1 hv=2 varlen=1 index=i64 pool=1 capacity=9 decay=scalar "
    "gate=softplus g=bf16 beta=bf16 neg_eigval=1 l2norm=1",
};
enum { REPEAT_SPECS = sizeof(repeat_specs) / sizeof(repeat_specs[0]), WHOLE_SPECS = 2 };
enum { REPEATS = 10000, LOOKS = 1000 };

static int repeat_count(void)
{
    const char *given = getenv("QUERN_TEST_REPEATS");
    return given ? atoi(given) : is_gpu() ? REPEATS : 2;
}

/* `runs` times with the bits of the first, which matches the reference. */
static void form_repeat(const struct quern_spec *spec, struct repeats *r,
                        struct quern_kernel *kernel, int runs, const char *what)
{
    struct quern_check check;
    struct quern_call call = { .workspace_bytes = quern_kernel_workspace(kernel) };
    int32_t differing[2] = { 0, 0 };
    if (call.workspace_bytes)
        assert_ok(ctx, quern_memory_alloc(ctx, call.workspace_bytes, &call.workspace));
    restore(r);
    assert_ok(ctx, quern_verify(ctx, kernel, spec, r->set.arrays, seed, &check));
    ck_assert_msg(check.ok, "%s: %s", what, check.why);
    gpu_arrays_check(&r->set, what);
    for (int run = 0; run <= runs && !differing[0]; run++) {
        restore(r);
        int status = quern_launch(ctx, kernel, spec, r->set.arrays, &call);
        assert_each(!status, "%s: run %d: %s", what, run, quern_errmsg(ctx));
        for (int i = 0; i < r->count && run == 0; i++)
            assert_ok(ctx, quern_memory_copy(ctx, r->arrays[i].first, r->arrays[i].now,
                                             r->arrays[i].bytes));
        compare(r, run);
        if (run % LOOKS == 0 || run == runs)
            gpu_memory_read(ctx, differing, r->differing, sizeof(differing));
    }
    ck_assert_msg(!differing[0], "%s: %d words differ, the first in run %d of %d", what,
                  differing[0], differing[1], runs);
    quern_memory_free(ctx, call.workspace, call.workspace_bytes);
}

START_TEST(every_form_of_prefill_gives_the_same_bits_in_ten_thousand_runs)
{
    static struct form forms[MAX_FORMS];
    static struct repeats r;
    struct quern_spec spec = common_spec(ctx, repeat_specs[_i]);
    double start = qn_now_ms();
    repeats_init(&r, &spec);
    int count = forms_find(&spec, r.set.arrays, forms), runs = repeat_count();
    ck_assert_int_gt(count, 0);
    if (_i >= WHOLE_SPECS && !common_is_exhaustive())
        count = forms_draw(forms, count, SOME_FORMS);
    count = forms_add_segments(&spec, forms, count);
    forms_compile(forms, count, &spec, r.set.arrays);
    double ready = qn_now_ms();
    for (int i = 0; i < count; i++) {
        char what[700];
        struct quern_kernel *kernel =
            form_get(&forms[i], &spec, r.set.arrays, repeat_specs[_i], what, sizeof(what));
        common_doing(what);
        gpu_watch(what);
        form_repeat(&spec, &r, kernel, runs, what);
        gpu_watch(NULL);
    }
    printf("%d forms, %d runs each: %.1f s, and %.1f s until they were ready: %s\n", count, runs,
           (qn_now_ms() - ready) / 1000, (ready - start) / 1000, repeat_specs[_i]);
    repeats_fini(&r);
}
END_TEST

/* ---- Tuning in place ------------------------------------------------------------------------ */

static const char *const pools[] = {
    "kda_prefill t=64 n=2 h=1 hv=1 k=64 v=64 varlen=1 pool=1 capacity=4096 layout=vk",
    "kda_decode n=2 h=1 hv=1 k=64 v=64 pool=1 capacity=4096",
    "causal_conv1d t=64 n=2 d=512 varlen=1 pool=1 capacity=4096 dtype=f32",
    "causal_conv1d_update n=2 d=512 capacity=4096 dtype=f32",
    "kda_step n=2 h=1 hv=1 k=64 v=64 capacity=4096 dtype=f32",
};
enum { POOLS = sizeof(pools) / sizeof(pools[0]), CAPACITY = 4096, USED_0 = 77, USED_1 = 4095 };

static bool is_in_use(int64_t slot)
{
    return slot == USED_0 || slot == USED_1;
}

/* Every array that a call both reads and writes: floats of CAPACITY slots. */
static bool is_pool(const struct gpu_arrays *set, int index)
{
    return set->host.shapes[index].role == QUERN_INOUT;
}

static int64_t slot_floats(const struct gpu_arrays *set, int index)
{
    return qn_shape_count(&set->host.shapes[index]) / CAPACITY;
}

/* Tokens in both sequences, so that the states of both change, and 1e30 where no call may look.
 * Returns the bytes of the slots in use. */
static int64_t pools_fill(struct gpu_arrays *set, const struct quern_spec *spec)
{
    static const struct bad_indices slots = { "slots", { USED_0, USED_1 }, NULL, false };
    static const struct bad_indices borders = { "cu_seqlens", { 0, 30, 64 }, NULL, false };
    int64_t used = 0;
    int index = bad_indices_array(ctx, spec, borders.array);
    bad_indices_put(&set->host, bad_indices_array(ctx, spec, slots.array), &slots);
    if (index >= 0)
        bad_indices_put(&set->host, index, &borders);
    for (int pool = 0; pool < set->host.count; pool++) {
        struct common_array *own = &set->host.own[pool];
        if (!is_pool(set, pool))
            continue;
        int64_t slot = slot_floats(set, pool);
        ck_assert_int_eq(set->host.shapes[pool].dtype, QUERN_F32);
        for (int64_t i = 0; i < slot * CAPACITY; i++) {
            if (!is_in_use(i / slot))
                ((float *)(void *)own->data)[i] = 1e30f;
        }
        memcpy(own->before, own->pages, own->pages_bytes);
        used += 2 * slot * (int64_t)sizeof(float);
    }
    gpu_arrays_upload(set);
    return used;
}

/* Of the pools the slots in use have changed and no other. */
static void pools_check(const struct gpu_arrays *set, const char *what)
{
    for (int pool = 0; pool < set->host.count; pool++) {
        const struct common_array *own = &set->host.own[pool];
        if (!is_pool(set, pool))
            continue;
        size_t bytes = (size_t)slot_floats(set, pool) * sizeof(float);
        for (int64_t i = 0; i < CAPACITY; i++) {
            const unsigned char *now = own->data + (size_t)i * bytes;
            bool is_same = !memcmp(now, own->before + (now - own->pages), bytes);
            assert_each(is_same == !is_in_use(i), "%s: array %d, slot %d", what, pool, (int)i);
        }
    }
}

/* Device memory of a tuning: private copies and saved slots within ROOM; beside that only the
 * buffer that drives the last call out of the cache, of a size that the device gives. */
START_TEST(restore_value_saves_only_the_slots_of_the_call_and_gives_every_bit_back)
{
    enum { ROOM = 2 << 20 };
    static struct gpu_arrays set;
    struct quern_tune_options options = QUERN_TUNE_OPTIONS_INIT;
    struct quern_request request = QUERN_REQUEST_INIT;
    struct quern_tune_result result;
    struct quern_spec spec = common_spec(ctx, pools[_i]);
    gpu_arrays_init(&set, ctx, &spec, &gpu_layouts[0], common_random(&seed));
    int64_t used = pools_fill(&set, &spec);
    gpu_arrays_keep(&set);
    request.spec = &spec;
    request.arrays = set.arrays;
    options.memory_bytes = ROOM; /* of the pools' 24 to 73 MiB */
    gpu_watch(pools[_i]);
    assert_ok(ctx, quern_tune(ctx, &request, &options, &result));
    gpu_watch(NULL);
    ck_assert_int_eq(result.is_drawn, 0);
    ck_assert_int_ge(result.candidates, 1);
    ck_assert_int_lt(gpu_arrays_differ(&set), 0);
    gpu_arrays_check(&set, pools[_i]);

    int64_t flush = is_gpu() ? qn_rotate_bytes(&ctx->profile) : 0;
    printf("%s: pools %lld bytes, slots in use %lld, taken %lld, of it to flush the cache %lld\n",
           pools[_i], (long long)used / 2 * CAPACITY, (long long)used,
           (long long)result.scratch_bytes, (long long)flush);
    ck_assert_int_ge(result.scratch_bytes, used);
    ck_assert_int_le(result.scratch_bytes - flush, 2 * ROOM); /* the workspace comes on top */

    assert_ok(ctx, quern_run(ctx, &spec, set.arrays, NULL));
    gpu_arrays_check(&set, pools[_i]);
    pools_check(&set, pools[_i]);
    gpu_arrays_fini(&set);
}
END_TEST

/* ---- One call and two ----------------------------------------------------------------------- */

static const struct {
    const char *dtype, *gate;
    double bound; /* of the distance: the tolerance of each, by the square root of 2 */
} splits[] = {
    { "bf16", "gate=none", 7.1e-3 },
    { "f16", "gate=softplus dt_bias=1", 1.4e-3 },
    { "bf16", "gate=bounded lower_bound=-5 layout=vk", 7.1e-3 },
    { "f16", "gate=none decay=scalar", 1.4e-3 },
};
enum { SPLITS = sizeof(splits) / sizeof(splits[0]), WHOLE = 300, CUT = 101 };

static const char *const by_token[] = { "q", "k", "v", "g", "beta", "o" };

/* ||a - b|| / ||b|| */
static double distance(int dtype, const unsigned char *a, const unsigned char *b, int64_t count)
{
    double error = 0, norm = 0;
    for (int64_t i = 0; i < count; i++) {
        int64_t at = i * (int64_t)quern_dtype_bytes(dtype);
        double x = qn_dtype_get(dtype, a + at), y = qn_dtype_get(dtype, b + at);
        error += (x - y) * (x - y);
        norm += y * y;
    }
    return sqrt(error / norm);
}

/* Tokens [from, to), from a state to a state, both on the device. */
static void run_part(const struct quern_spec *whole, const struct gpu_arrays *set, int64_t from,
                     int64_t to, void *before, void *after)
{
    struct quern_array arrays[QUERN_MAX_ARRAYS];
    struct quern_spec spec = *whole;
    char tokens[32];
    snprintf(tokens, sizeof(tokens), "%d", (int)(to - from));
    assert_ok(ctx, quern_spec_set(ctx, &spec, "t", tokens));
    memcpy(arrays, set->arrays, sizeof(arrays));
    for (size_t i = 0; i < sizeof(by_token) / sizeof(by_token[0]); i++) {
        int index = bad_indices_array(ctx, whole, by_token[i]);
        const struct quern_shape *shape = &set->host.shapes[index];
        int64_t row = qn_shape_count(shape) / WHOLE * (int64_t)quern_dtype_bytes(shape->dtype);
        arrays[index].data = (char *)arrays[index].data + from * row;
        arrays[index].size_bytes = 0;
    }
    arrays[bad_indices_array(ctx, whole, "initial_state")].data = before;
    arrays[bad_indices_array(ctx, whole, "final_state")].data = after;
    assert_ok(ctx, quern_run(ctx, &spec, arrays, NULL));
}

START_TEST(one_call_gives_what_two_give_with_a_border_off_the_chunks)
{
    static struct gpu_arrays set;
    char text[256];
    snprintf(text, sizeof(text), "kda_prefill t=%d h=1 hv=2 dtype=%s initial=1 l2norm=1 %s", WHOLE,
             splits[_i].dtype, splits[_i].gate);
    struct quern_spec spec = common_spec(ctx, text);
    gpu_arrays_init(&set, ctx, &spec, &gpu_layouts[0], common_random(&seed));
    int o = bad_indices_array(ctx, &spec, "o"), last = bad_indices_array(ctx, &spec, "final_state");
    int first = bad_indices_array(ctx, &spec, "initial_state");
    size_t bytes = set.host.own[last].pages_bytes;
    void *middle = gpu_memory_make(ctx, NULL, bytes);
    assert_ok(ctx, quern_run(ctx, &spec, set.arrays, NULL));
    gpu_arrays_keep(&set);
    gpu_arrays_rewind(&set);
    run_part(&spec, &set, 0, CUT, set.arrays[first].data, middle);
    run_part(&spec, &set, CUT, WHOLE, middle, set.arrays[last].data);
    gpu_arrays_check(&set, text);
    const int outputs[] = { o, last };
    for (int i = 0; i < 2; i++) {
        const struct common_array *own = &set.host.own[outputs[i]];
        const struct quern_shape *shape = &set.host.shapes[outputs[i]];
        double off = distance(shape->dtype, own->data, own->kept + (own->data - own->pages),
                              qn_shape_count(shape));
        ck_assert_msg(off <= splits[_i].bound, "%s: array %d: off by %g, at most %g", text,
                      outputs[i], off, splits[_i].bound);
    }
    quern_memory_free(ctx, middle, bytes);
    gpu_arrays_fini(&set);
}
END_TEST

/* ---- In place ------------------------------------------------------------------------------- */

/* An input where an output lies, in the output's block, whose guards are then looked at. */
static void put_on(const struct gpu_arrays *set, struct quern_array *arrays, int input, int output)
{
    const struct quern_shape *shape = &set->host.shapes[output];
    size_t bytes = (size_t)qn_shape_count(shape) * quern_dtype_bytes(shape->dtype);
    assert_ok(ctx, quern_memory_copy(ctx, arrays[output].data, arrays[input].data, bytes));
    arrays[input] = arrays[output];
}

START_TEST(v_may_lie_on_o_and_the_initial_states_on_the_final_in_any_form)
{
    static const char text[] =
        "kda_prefill t=300 n=4 h=1 hv=2 varlen=1 initial=1 gate=softplus l2norm=1";
    static const struct bad_indices borders = { "cu_seqlens", { 0, 9, 9, 171, 300 }, NULL, false };
    static struct form forms[MAX_FORMS];
    static struct gpu_arrays set;
    struct quern_spec spec = common_spec(ctx, text);
    gpu_arrays_init(&set, ctx, &spec, &gpu_layouts[0], common_random(&seed));
    bad_indices_put(&set.host, bad_indices_array(ctx, &spec, borders.array), &borders);
    int count = forms_draw(forms, forms_find(&spec, set.arrays, forms), SOME_FORMS);
    count = forms_add_segments(&spec, forms, count);
    forms_compile(forms, count, &spec, set.arrays);
    for (int i = 0; i < count; i++) {
        struct quern_array arrays[QUERN_MAX_ARRAYS];
        char what[500];
        struct quern_kernel *kernel =
            form_get(&forms[i], &spec, set.arrays, text, what, sizeof(what));
        common_doing(what);
        gpu_watch(what);
        gpu_arrays_restore(&set);
        assert_ok(ctx, quern_launch(ctx, kernel, &spec, set.arrays, NULL));
        gpu_arrays_keep(&set);
        gpu_arrays_restore(&set);
        memcpy(arrays, set.arrays, sizeof(arrays));
        put_on(&set, arrays, bad_indices_array(ctx, &spec, "v"),
               bad_indices_array(ctx, &spec, "o"));
        put_on(&set, arrays, bad_indices_array(ctx, &spec, "initial_state"),
               bad_indices_array(ctx, &spec, "final_state"));
        assert_ok(ctx, quern_launch(ctx, kernel, &spec, arrays, NULL));
        int differing = gpu_arrays_differ(&set);
        ck_assert_msg(differing < 0, "%s: array %d is not what it is apart", what, differing);
        gpu_arrays_check(&set, what);
        gpu_watch(NULL);
    }
    gpu_arrays_fini(&set);
}
END_TEST

/* ---- Gates --------------------------------------------------------------------------------- */

static const struct {
    const char *words;
    int tokens; /* of one sequence; 0: sequences of all lengths around blocks and chunks */
} sizes[] = {
    { "h=2 dtype=bf16", 0 },    { "h=2 hv=4 dtype=f16 layout=vk", 0 }, { "h=1 k=256 v=64", 0 },
    { "h=1 dtype=bf16", 8192 }, { "h=1 dtype=bf16 layout=vk", 65536 },
};
enum { SIZES = sizeof(sizes) / sizeof(sizes[0]) };

START_TEST(every_regime_of_gates_matches_the_recurrence_at_every_length)
{
    static struct gpu_arrays set;
    const struct kda_regime *regime = &kda_regimes[_i / SIZES];
    char text[256];
    struct quern_check check;
    struct quern_kernel *kernel;
    if (sizes[_i % SIZES].tokens)
        snprintf(text, sizeof(text), "kda_prefill t=%d l2norm=1 %s %s", sizes[_i % SIZES].tokens,
                 sizes[_i % SIZES].words, regime->words);
    else
        kda_regime_text(regime, sizes[_i % SIZES].words, text, sizeof(text));
    struct quern_spec spec = common_spec(ctx, text);
    gpu_arrays_init(&set, ctx, &spec, &gpu_layouts[0], common_random(&seed));
    kda_regime_put(regime, &set.host, ctx, &spec, &seed);
    gpu_arrays_upload(&set);
    assert_ok(ctx, quern_dispatch(ctx, &spec, set.arrays, &kernel));
    assert_ok(ctx, quern_verify(ctx, kernel, &spec, set.arrays, seed, &check));
    printf("%s, %s: error %.2e, worst row %.2e\n", regime->name, text, check.rel_err,
           check.row_err);
    ck_assert_msg(check.ok, "%s, %s: %s", regime->name, text, check.why);
    gpu_arrays_fini(&set);
}
END_TEST

/* ---- Bad input ------------------------------------------------------------------------------ */

static void bad_arrays_init(struct gpu_arrays *set, struct quern_context *with,
                            const struct quern_spec *spec, int index, const struct bad_indices *bad)
{
    gpu_arrays_init(set, with, spec, &gpu_layouts[2], common_random(&seed));
    bad_indices_put(&set->host, index, bad);
    gpu_arrays_upload(set);
}

static void bad_arrays_run(struct gpu_arrays *set, struct quern_kernel *kernel,
                           const struct quern_spec *spec, const struct bad_indices *bad,
                           const char *what)
{
    struct quern_check check;
    gpu_watch(what);
    gpu_arrays_restore(set);
    assert_ok(ctx, quern_launch(ctx, kernel, spec, set->arrays, NULL));
    gpu_arrays_check(set, what);
    gpu_arrays_restore(set);
    assert_ok(ctx, quern_verify(ctx, kernel, spec, set->arrays, seed, &check));
    ck_assert_msg(check.ok || bad->is_undefined, "%s: %s", what, check.why);
    gpu_arrays_check(set, what);
    gpu_watch(NULL);
}

START_TEST(whatever_index_arrays_hold_no_byte_but_the_outputs_is_written)
{
    static struct form forms[SEGMENT_CONFIGS];
    static struct gpu_arrays set;
    const struct bad_indices *bad = &bad_indices[_i];
    for (int i = 0; i < bad_index_spec_count; i++) {
        struct quern_spec spec = common_spec(ctx, bad_index_specs[i]);
        int index = bad_indices_array(ctx, &spec, bad->array);
        struct quern_kernel *kernel;
        char text[400], what[700];
        if (index < 0)
            continue;
        bad_indices_text(bad_index_specs[i], bad, text, sizeof(text));
        bad_arrays_init(&set, ctx, &spec, index, bad);
        assert_ok(ctx, quern_dispatch(ctx, &spec, set.arrays, &kernel));
        bad_arrays_run(&set, kernel, &spec, bad, text);
        int count = forms_add_segments(&spec, forms, 0);
        forms_compile(forms, count, &spec, set.arrays);
        for (int f = 0; f < count; f++) {
            kernel = form_get(&forms[f], &spec, set.arrays, text, what, sizeof(what));
            bad_arrays_run(&set, kernel, &spec, bad, what);
        }
        gpu_arrays_fini(&set);
    }
}
END_TEST

START_TEST(with_quern_check_they_are_refused_saying_where_and_nothing_is_written)
{
    static struct gpu_arrays set;
    const struct bad_indices *bad = &bad_indices[_i];
    struct quern_call call = { 0 };
    if (is_gpu()) {
        gpu_driver_enter();
        assert_cuda(gpu_driver()->stream_create(&call.stream, GPU_STREAM_NON_BLOCKING));
    }
    for (int i = 0; i < bad_index_spec_count; i++) {
        struct quern_spec spec = common_spec(checking, bad_index_specs[i]);
        int index = bad_indices_array(checking, &spec, bad->array);
        char what[400];
        if (index < 0)
            continue;
        bad_indices_text(bad_index_specs[i], bad, what, sizeof(what));
        bad_arrays_init(&set, checking, &spec, index, bad);
        gpu_arrays_keep(&set);
        gpu_watch(what);
        if (bad->text) {
            assert_refused(checking, quern_run(checking, &spec, set.arrays, &call), QUERN_INVALID,
                           bad->text);
            ck_assert_int_lt(gpu_arrays_differ(&set), 0);
        } else {
            assert_ok(checking, quern_run(checking, &spec, set.arrays, &call));
        }
        if (is_gpu())
            assert_cuda(gpu_driver()->stream_synchronize(call.stream));
        gpu_arrays_check(&set, what);
        gpu_watch(NULL);
        gpu_arrays_fini(&set);
    }
    if (is_gpu()) {
        assert_cuda(gpu_driver()->stream_destroy(call.stream));
        gpu_driver_leave();
    }
}
END_TEST

START_TEST(with_quern_check_a_capture_of_index_arrays_is_refused_and_goes_on)
{
    static struct gpu_arrays set;
    const struct gpu_driver *cuda;
    struct quern_spec spec = common_spec(checking, bad_index_specs[0]);
    struct quern_call call = { 0 };
    void *graph;
    if (!is_gpu())
        return;
    cuda = gpu_driver();
    gpu_driver_enter();
    gpu_arrays_init(&set, checking, &spec, &gpu_layouts[0], common_random(&seed));
    assert_ok(checking, quern_run(checking, &spec, set.arrays, NULL));
    assert_cuda(cuda->stream_create(&call.stream, GPU_STREAM_NON_BLOCKING));
    assert_cuda(cuda->capture_begin(call.stream, GPU_CAPTURE_THREAD_LOCAL));
    assert_refused(checking, quern_run(checking, &spec, set.arrays, &call), QUERN_INVALID,
                   "is being captured, and with QUERN_CHECK=1 the index arrays");
    assert_cuda(cuda->capture_end(call.stream, &graph)); /* not spoiled */
    ck_assert_ptr_nonnull(graph);
    assert_cuda(cuda->graph_destroy(graph));
    assert_cuda(cuda->stream_destroy(call.stream));
    gpu_arrays_fini(&set);
    gpu_driver_leave();
}
END_TEST

/* No GPU variant of kda_prefill takes f32. */
static bool is_served(const char *text)
{
    return !is_gpu() || strncmp(text, "kda_prefill", 11) || !strstr(text, "dtype=f32");
}

START_TEST(a_nan_in_any_input_of_a_sequence_stays_in_it)
{
    static struct gpu_arrays set;
    struct quern_spec spec = common_spec(ctx, kda_nan_specs[_i]);
    int checked = 0;
    for (int i = 0; i < spec.family->array_count && is_served(kda_nan_specs[_i]); i++) {
        char what[300];
        snprintf(what, sizeof(what), "%s with NaN in array %d", kda_nan_specs[_i], i);
        gpu_arrays_init(&set, ctx, &spec, &gpu_layouts[0], common_random(&seed));
        kda_nan_indices_put(&set.host, ctx, &spec);
        gpu_arrays_upload(&set);
        assert_ok(ctx, quern_run(ctx, &spec, set.arrays, NULL));
        gpu_arrays_keep(&set);
        gpu_arrays_restore(&set);
        if (kda_nan_put(&set.host, i, &seed)) {
            gpu_arrays_upload(&set);
            assert_ok(ctx, quern_run(ctx, &spec, set.arrays, NULL));
            gpu_arrays_check(&set, what);
            kda_nan_check(&set.host, what);
            checked++;
        }
        gpu_arrays_fini(&set);
    }
    ck_assert(checked > 0 || !is_served(kda_nan_specs[_i]));
}
END_TEST

/* ---- The suite ----------------------------------------------------------------------------- */

static void test_setup(void)
{
    gpu_watch(NULL);
}

static TCase *tcase_make(Suite *suite, const char *name)
{
    TCase *tcase = tcase_create(name);
    tcase_set_timeout(tcase, 300);
    tcase_add_unchecked_fixture(tcase, setup, teardown);
    tcase_add_checked_fixture(tcase, test_setup, NULL);
    suite_add_tcase(suite, tcase);
    return tcase;
}

int main(void)
{
    Suite *suite = suite_create("kda_gpu");
    TCase *tcase = tcase_make(suite, "repeats");
    tcase_add_loop_test(tcase, every_form_of_prefill_gives_the_same_bits_in_ten_thousand_runs, 0,
                        REPEAT_SPECS);
    tcase = tcase_make(suite, "restore");
    tcase_add_loop_test(
        tcase, restore_value_saves_only_the_slots_of_the_call_and_gives_every_bit_back, 0, POOLS);
    tcase = tcase_make(suite, "gates");
    tcase_add_loop_test(tcase, every_regime_of_gates_matches_the_recurrence_at_every_length, 0,
                        SIZES * kda_regime_count);
    tcase = tcase_make(suite, "inputs");
    tcase_add_loop_test(tcase, one_call_gives_what_two_give_with_a_border_off_the_chunks, 0,
                        SPLITS);
    tcase_add_test(tcase, v_may_lie_on_o_and_the_initial_states_on_the_final_in_any_form);
    tcase_add_loop_test(tcase, whatever_index_arrays_hold_no_byte_but_the_outputs_is_written, 0,
                        bad_index_count);
    tcase_add_loop_test(tcase,
                        with_quern_check_they_are_refused_saying_where_and_nothing_is_written, 0,
                        bad_index_count);
    tcase_add_test(tcase, with_quern_check_a_capture_of_index_arrays_is_refused_and_goes_on);
    tcase_add_loop_test(tcase, a_nan_in_any_input_of_a_sequence_stays_in_it, 0, kda_nan_spec_count);
    return common_main(suite);
}
