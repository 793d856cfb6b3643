/* Bad input to the KDA families: what the host can see is refused by name, with what is allowed;
 * what lies in index arrays is refused with QUERN_CHECK=1 before anything is compiled, launched or
 * written, and without it no byte but the outputs' is; what is not a number stays in its sequence.
 * tests/gpu/test_kda_gpu.c says the same of a device. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <quern/cache.h>

#include "bad_indices.h"
#include "common.h"
#include "jit/context.h"
#include "kda_nan.h"

static struct quern_context *ctx, *checking;
static uint64_t seed;

static struct quern_context *context_make(const char *check)
{
    setenv("QUERN_CHECK", check, 1);
    struct quern_context *made = common_context(NULL);
    unsetenv("QUERN_CHECK");
    return made;
}

static void setup(void)
{
    ctx = context_make("");
    checking = context_make("1");
    seed = common_seed();
}

static void teardown(void)
{
    quern_context_destroy(ctx);
    quern_context_destroy(checking);
}

static void arrays_draw(struct common_arrays *set, struct quern_context *with,
                        const struct quern_spec *spec)
{
    common_arrays_init(set, with, spec, (struct common_layout){ 0, 3 }, common_random(&seed));
}

/* ---- Index arrays -------------------------------------------------------------------------- */

static int64_t compiles(struct quern_context *with)
{
    struct quern_cache_stats stats;
    assert_ok(with, quern_cache_stats(with, &stats));
    return stats.compiles;
}

/* The arrays of `set` are refused by every way in, and stay as they are. */
static void refuse_everywhere(const struct quern_spec *spec, struct common_arrays *set,
                              const char *said, const char *what)
{
    struct quern_kernel *kernel;
    struct quern_check check;
    struct quern_time time;
    int64_t before = compiles(checking);
    common_arrays_keep(set);
    assert_refused(checking, quern_run(checking, spec, set->arrays, NULL), QUERN_INVALID, said);
    ck_assert_int_eq(compiles(checking), before);
    assert_ok(checking, quern_dispatch(checking, spec, set->arrays, &kernel));
    assert_refused(checking, quern_launch(checking, kernel, spec, set->arrays, NULL), QUERN_INVALID,
                   said);
    assert_refused(checking, quern_verify(checking, kernel, spec, set->arrays, seed, &check),
                   QUERN_INVALID, said);
    assert_refused(checking, quern_measure(checking, kernel, spec, set->arrays, 3, &time),
                   QUERN_INVALID, said);
    ck_assert_msg(common_arrays_differ(set) < 0, "%s: array %d was written", what,
                  common_arrays_differ(set));
}

START_TEST(with_quern_check_index_arrays_are_refused_saying_where_and_nothing_is_written)
{
    const struct bad_indices *bad = &bad_indices[_i];
    for (int i = 0; i < bad_index_spec_count; i++) {
        struct quern_spec spec = common_spec(checking, bad_index_specs[i]);
        int index = bad_indices_array(checking, &spec, bad->array);
        struct common_arrays set;
        char what[400];
        if (index < 0)
            continue;
        bad_indices_text(bad_index_specs[i], bad, what, sizeof(what));
        arrays_draw(&set, checking, &spec);
        bad_indices_put(&set, index, bad);
        common_doing(what);
        if (bad->text)
            refuse_everywhere(&spec, &set, bad->text, what);
        else
            assert_ok(checking, quern_run(checking, &spec, set.arrays, NULL));
        common_arrays_check(&set, what);
        common_arrays_fini(&set);
    }
}
END_TEST

START_TEST(without_it_the_call_runs_and_no_byte_but_the_outputs_is_written)
{
    const struct bad_indices *bad = &bad_indices[_i];
    int met = 0;
    for (int i = 0; i < bad_index_spec_count; i++) {
        struct quern_spec spec = common_spec(ctx, bad_index_specs[i]);
        int index = bad_indices_array(ctx, &spec, bad->array);
        struct quern_kernel *kernel;
        struct quern_check check;
        struct common_arrays set;
        char what[400];
        if (index < 0)
            continue;
        bad_indices_text(bad_index_specs[i], bad, what, sizeof(what));
        arrays_draw(&set, ctx, &spec);
        bad_indices_put(&set, index, bad);
        common_doing(what);
        assert_ok(ctx, quern_dispatch(ctx, &spec, set.arrays, &kernel));
        assert_ok(ctx, quern_launch(ctx, kernel, &spec, set.arrays, NULL));
        common_arrays_check(&set, what);
        common_arrays_restore(&set);
        assert_ok(ctx, quern_verify(ctx, kernel, &spec, set.arrays, seed, &check));
        ck_assert_msg(check.ok || bad->is_undefined, "%s: %s", what, check.why);
        common_arrays_check(&set, what);
        common_arrays_fini(&set);
        met++;
    }
    ck_assert_int_gt(met, 0);
}
END_TEST

START_TEST(what_a_call_only_reads_may_be_read_by_two_sequences)
{
    static const char *const specs[] = {
        "kda_decode n=4 h=1 hv=2 k=64 v=64 pool=1 capacity=6 save=states",
        "causal_conv1d_update n=4 d=40 capacity=6 save=1",
    };
    struct quern_spec spec = common_spec(checking, specs[_i]);
    struct common_arrays set;
    arrays_draw(&set, checking, &spec);
    int slots = bad_indices_array(checking, &spec, "slots");
    for (int i = 0; i < 4; i++)
        common_arrays_put(&set, slots, i, i / 2);
    assert_ok(checking, quern_run(checking, &spec, set.arrays, NULL));
    common_arrays_fini(&set);
}
END_TEST

START_TEST(drawn_inputs_pass_the_check)
{
    static const char *const specs[] = {
        "kda_prefill t=333 n=23 h=1 hv=1 k=64 v=64 varlen=1 pool=1 capacity=19",
        "kda_decode n=23 steps=7 h=1 hv=1 k=64 v=64 pool=1 capacity=19 save=states tree=1",
        "causal_conv1d t=333 n=23 d=40 varlen=1 pool=1 capacity=19",
        "causal_conv1d_update n=23 d=40 capacity=19",
        "kda_gate_cumsum t=333 n=23 hv=2 k=64 varlen=1 gate=softplus index=i64",
    };
    struct quern_spec spec = common_spec(checking, specs[_i]);
    for (int i = 0; i < 20; i++) {
        struct common_arrays set;
        arrays_draw(&set, checking, &spec);
        assert_ok(checking, quern_run(checking, &spec, set.arrays, NULL));
        common_arrays_fini(&set);
    }
}
END_TEST

/* ---- The switch ---------------------------------------------------------------------------- */

static void keep_index_check(void *user, const char *section, const char *name, const char *value)
{
    if (!strcmp(section, "cpu") && !strcmp(name, "index_check"))
        snprintf(user, 64, "%s", value);
}

START_TEST(the_check_is_on_with_1_off_with_0_and_refused_with_anything_else)
{
    char said[64];
    assert_ok(ctx, quern_doctor(ctx, keep_index_check, said));
    ck_assert_str_eq(said, "off (on with QUERN_CHECK=1)");
    assert_ok(checking, quern_doctor(checking, keep_index_check, said));
    ck_assert_str_eq(said, "on (QUERN_CHECK=1)");
    struct quern_context *off = context_make("0"), *refused;
    assert_ok(off, quern_doctor(off, keep_index_check, said));
    ck_assert_str_eq(said, "off (on with QUERN_CHECK=1)");
    quern_context_destroy(off);
    setenv("QUERN_CHECK", "yes", 1);
    const struct quern_options options = { .size = sizeof(options), .cache = "", .device = "cpu" };
    assert_refused(refused, quern_context_create(&options, &refused), QUERN_INVALID,
                   "QUERN_CHECK=yes: must be 0 or 1");
    unsetenv("QUERN_CHECK");
    quern_context_destroy(refused);
}
END_TEST

static char stream;
static void *copied_on;
static int copies;

static int is_capturing(struct qn_device *device, void *which)
{
    (void)device;
    return which == &stream;
}

static int copy_noted(struct qn_device *device, void *to, const void *from, size_t bytes,
                      void *which)
{
    (void)device;
    copied_on = which;
    copies++;
    memcpy(to, from, bytes);
    return 0;
}

/* The backend with functions of this file. */
static struct qn_backend replaced(struct quern_context *with)
{
    struct qn_backend backend = *with->backend;
    copies = 0;
    backend.copy = copy_noted;
    return backend;
}

START_TEST(index_arrays_are_read_in_the_order_of_the_stream_and_no_other_array_is)
{
    struct quern_spec spec = common_spec(checking, bad_index_specs[0]);
    const struct quern_call call = { .stream = &stream };
    const struct qn_backend *own = checking->backend, noting = replaced(checking);
    struct common_arrays set;
    arrays_draw(&set, checking, &spec);
    checking->backend = &noting;
    int status = quern_run(checking, &spec, set.arrays, &call);
    checking->backend = own;
    assert_ok(checking, status);
    ck_assert_int_eq(copies, 2);
    ck_assert_ptr_eq(copied_on, &stream);
    common_arrays_fini(&set);
}
END_TEST

START_TEST(without_it_nothing_is_read)
{
    struct quern_spec spec = common_spec(ctx, bad_index_specs[0]);
    const struct qn_backend *own = ctx->backend, noting = replaced(ctx);
    struct common_arrays set;
    arrays_draw(&set, ctx, &spec);
    ctx->backend = &noting;
    int status = quern_run(ctx, &spec, set.arrays, NULL);
    ctx->backend = own;
    assert_ok(ctx, status);
    ck_assert_int_eq(copies, 0);
    common_arrays_fini(&set);
}
END_TEST

START_TEST(a_captured_call_that_would_be_checked_is_refused_unless_it_has_no_index_arrays)
{
    static const char *const plain = "kda_prefill t=48 h=1 hv=1 k=64 v=64 initial=1";
    const struct quern_call call = { .stream = &stream };
    struct qn_backend capturing = *checking->backend;
    const struct qn_backend *own = checking->backend;
    capturing.is_capturing = is_capturing;
    for (int i = 0; i < 2; i++) {
        struct quern_spec spec = common_spec(checking, i ? plain : bad_index_specs[0]);
        struct common_arrays set;
        arrays_draw(&set, checking, &spec);
        assert_ok(checking, quern_run(checking, &spec, set.arrays, NULL));
        common_arrays_keep(&set);
        checking->backend = &capturing;
        int status = quern_run(checking, &spec, set.arrays, &call);
        checking->backend = own;
        if (i)
            assert_ok(checking, status);
        else
            assert_refused(checking, status, QUERN_INVALID,
                           "is being captured, and with QUERN_CHECK=1 the index arrays");
        ck_assert_int_lt(common_arrays_differ(&set), 0);
        common_arrays_fini(&set);
    }
}
END_TEST

/* ---- What the host can see ----------------------------------------------------------------- */

static const struct {
    const char *spec, *text;
} illegal[] = {
    { "kda_prefill t=64 h=1 hv=1 gate=bounded", "lower_bound=nan: must be from -5" },
    { "kda_prefill t=64 h=1 hv=1 gate=bounded lower_bound=-5.5", "lower_bound=-5.5: must be" },
    { "kda_prefill t=64 h=1 hv=1 gate=bounded lower_bound=0", "lower_bound=0: must be from -5" },
    { "kda_prefill t=64 h=1 hv=1 gate=bounded lower_bound=1", "lower_bound=1: must be from -5" },
    { "kda_prefill t=64 h=1 hv=1 gate=softplus lower_bound=-5",
      "lower_bound=-5: must not be given unless gate=bounded" },
    { "kda_prefill t=64 h=1 hv=1 lower_bound=-5",
      "lower_bound=-5: must not be given unless gate=bounded" },
    { "kda_prefill t=64 h=1 hv=1 gate=clamped", "gate=clamped: must be" },
    { "kda_prefill t=64 h=1 hv=1 k=96", "k=96: must be 64, 128 or 256" },
    { "kda_prefill t=64 h=1 hv=1 v=96", "v=96: must be 64, 128 or 256" },
    { "kda_prefill t=64 h=1 hv=1 state=e4m3", "state=e4m3: must be" },
    { "kda_prefill t=64 h=1 hv=1 layout=kk", "layout=kk: must be" },
    { "kda_prefill t=64 h=2 hv=3", "hv=3: must be a multiple of h=2" },
    { "kda_prefill t=65 n=2 h=1 hv=1", "t=65: must be a multiple of n=2 without varlen=1" },
    { "kda_decode n=2 h=1 hv=1 gate=bounded", "lower_bound=nan: must be from -5" },
    { "kda_decode n=2 h=1 hv=1 gate=bounded lower_bound=-6", "lower_bound=-6: must be from -5" },
    { "kda_decode n=2 h=1 hv=1 gate=softplus lower_bound=-5",
      "lower_bound=-5: must not be given unless gate=bounded" },
    { "kda_decode n=2 h=1 hv=1 k=96", "k=96: must be 64, 128 or 256" },
    { "kda_decode n=2 h=1 hv=1 v=512", "v=512: must be 64, 128 or 256" },
    { "kda_decode n=2 h=1 hv=1 state=i8", "state=i8: must be" },
    { "kda_gate_cumsum t=64 hv=1 gate=bounded", "lower_bound=" },
    { "kda_gate_cumsum t=64 hv=1 gate=bounded lower_bound=-6", "lower_bound=-6: must be" },
    { "kda_gate_cumsum t=64 hv=1 gate=none lower_bound=-5",
      "lower_bound=-5: only with gate=bounded" },
    { "causal_conv1d t=64 d=8 w=5", "w=5: must be 2, 3 or 4" },
    { "causal_conv1d_update n=2 d=8 w=1", "w=1: must be from 2 to" },
};
enum { ILLEGAL_COUNT = sizeof(illegal) / sizeof(illegal[0]) };

START_TEST(a_call_that_no_kernel_serves_is_refused_saying_what_is_allowed)
{
    struct quern_spec spec;
    assert_refused(ctx, quern_spec_parse(ctx, illegal[_i].spec, &spec), QUERN_INVALID,
                   illegal[_i].text);
}
END_TEST

/* Arrays as for another spec, whose states are smaller, or wider. */
static const struct {
    const char *spec, *other, *array, *text;
} mismatches[] = {
    { "kda_prefill t=64 h=1 hv=1 k=64 v=64 initial=1", "state=bf16", "initial_state",
      "initial_state.size_bytes=8192: must be at least 16384" },
    { "kda_prefill t=64 h=1 hv=1 k=64 v=64 initial=1", "state=bf16", "final_state",
      "final_state.size_bytes=8192: must be at least 16384" },
    { "kda_prefill t=64 h=1 hv=1 k=64 v=64 pool=1 capacity=5", "state=f16", "states",
      "states.size_bytes=40960: must be at least 81920" },
    { "kda_prefill t=64 h=1 hv=1 k=64 v=128 pool=1 capacity=5", "layout=vk", "states",
      "states.strides[2]=64: must be at least 128" },
    { "kda_prefill t=64 h=1 hv=1 k=64 v=128 initial=1 layout=vk", "layout=kv", "final_state",
      "final_state.size_bytes=32768: must be at least 65280" },
    { "kda_decode n=5 h=1 hv=1 k=64 v=64 pool=1 capacity=5", "state=bf16", "states",
      "states.size_bytes=40960: must be at least 81920" },
    { "kda_decode n=5 h=1 hv=1 k=64 v=128 pool=1 capacity=5", "layout=vk", "states",
      "states.strides[2]=64: must be at least 128" },
    { "causal_conv1d t=64 d=64 pool=1 capacity=5 dtype=f32", "dtype=bf16", "states",
      "states.size_bytes=1920: must be at least 3840" },
    { "kda_prefill t=64 h=1 hv=1 k=64 v=64", "pool=1 capacity=5", "states",
      "must be NULL, as this spec has no states" },
    { "kda_decode n=5 h=1 hv=1 k=64 v=64", "pool=1 capacity=5", "states",
      "must be NULL, as this spec has no states" },
};
enum { MISMATCH_COUNT = sizeof(mismatches) / sizeof(mismatches[0]) };

START_TEST(an_array_made_for_another_state_dtype_or_layout_is_refused_by_name)
{
    struct common_arrays set, other;
    struct quern_array arrays[QUERN_MAX_ARRAYS];
    char text[64], name[64];
    struct quern_spec spec = common_spec(ctx, mismatches[_i].spec), wrong = spec;
    for (const char *word = mismatches[_i].other; *word; word += strspn(word, " ")) {
        const char *equals = strchr(word, '=');
        int length = (int)strcspn(word, " "), before = (int)(equals - word);
        snprintf(name, sizeof(name), "%.*s", before, word);
        snprintf(text, sizeof(text), "%.*s", length - before - 1, equals + 1);
        assert_ok(ctx, quern_spec_set(ctx, &wrong, name, text));
        word += length;
    }
    common_arrays_init(&set, ctx, &spec, (struct common_layout){ 16, 0 }, common_random(&seed));
    common_arrays_init(&other, ctx, &wrong, (struct common_layout){ 16, 0 }, common_random(&seed));
    int index = bad_indices_array(ctx, &wrong, mismatches[_i].array);
    ck_assert_int_ge(index, 0);
    memcpy(arrays, set.arrays, sizeof(arrays));
    arrays[index] = other.arrays[index];
    arrays[index].rank = other.shapes[index].rank; /* its strides are said */
    assert_refused(ctx, quern_run(ctx, &spec, arrays, NULL), QUERN_INVALID, mismatches[_i].text);
    common_arrays_check(&set, mismatches[_i].spec);
    common_arrays_check(&other, mismatches[_i].spec);
    common_arrays_fini(&set);
    common_arrays_fini(&other);
}
END_TEST

/* ---- What is not a number ------------------------------------------------------------------ */

static bool check_nan(const struct quern_spec *spec, int hit, const char *text)
{
    struct common_arrays set;
    char what[300];
    common_arrays_init(&set, ctx, spec, (struct common_layout){ 0, 0 }, common_random(&seed));
    kda_nan_indices_put(&set, ctx, spec);
    snprintf(what, sizeof(what), "%s with NaN in array %d", text, hit);
    assert_ok(ctx, quern_run(ctx, spec, set.arrays, NULL));
    common_arrays_keep(&set);
    common_arrays_restore(&set);
    bool is_put = kda_nan_put(&set, hit, &seed);
    if (is_put) {
        assert_ok(ctx, quern_run(ctx, spec, set.arrays, NULL));
        kda_nan_check(&set, what);
    }
    common_arrays_fini(&set);
    return is_put;
}

START_TEST(a_nan_in_any_input_of_a_sequence_stays_in_it)
{
    struct quern_spec spec = common_spec(ctx, kda_nan_specs[_i]);
    int checked = 0;
    for (int i = 0; i < spec.family->array_count; i++)
        checked += check_nan(&spec, i, kda_nan_specs[_i]);
    ck_assert_int_gt(checked, 0);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("kda_inputs");
    TCase *tests = tcase_create("kda_inputs");
    tcase_set_timeout(tests, 120);
    tcase_add_unchecked_fixture(tests, setup, teardown);
    tcase_add_loop_test(
        tests, with_quern_check_index_arrays_are_refused_saying_where_and_nothing_is_written, 0,
        bad_index_count);
    tcase_add_loop_test(tests, without_it_the_call_runs_and_no_byte_but_the_outputs_is_written, 0,
                        bad_index_count);
    tcase_add_loop_test(tests, what_a_call_only_reads_may_be_read_by_two_sequences, 0, 2);
    tcase_add_loop_test(tests, drawn_inputs_pass_the_check, 0, 5);
    tcase_add_test(tests, the_check_is_on_with_1_off_with_0_and_refused_with_anything_else);
    tcase_add_test(tests, index_arrays_are_read_in_the_order_of_the_stream_and_no_other_array_is);
    tcase_add_test(tests, without_it_nothing_is_read);
    tcase_add_test(tests,
                   a_captured_call_that_would_be_checked_is_refused_unless_it_has_no_index_arrays);
    tcase_add_loop_test(tests, a_call_that_no_kernel_serves_is_refused_saying_what_is_allowed, 0,
                        ILLEGAL_COUNT);
    tcase_add_loop_test(tests, an_array_made_for_another_state_dtype_or_layout_is_refused_by_name,
                        0, MISMATCH_COUNT);
    tcase_add_loop_test(tests, a_nan_in_any_input_of_a_sequence_stays_in_it, 0, kda_nan_spec_count);
    suite_add_tcase(suite, tests);
    return common_main(suite);
}
