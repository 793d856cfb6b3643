/* Array arguments against the shapes of a spec: jit/arrays.c, by way of the family `kinds`. */
#include <stdio.h>
#include <string.h>

#include "common.h"
#include "jit/context.h"
#include "kinds.h"

static struct quern_context *ctx;
static struct quern_spec spec; /* batch=2 rows=3 cols=5 f32 with bias */
static float x[600], out[600], bias[16];
static float memory[1024] __attribute__((aligned(64)));
static struct quern_array arrays[3], bound[QUERN_MAX_ARRAYS];
static struct quern_message why;

static void setup(void)
{
    ctx = common_context(NULL);
    spec = common_spec(ctx, "kinds batch=2 rows=3 cols=5 biased=1");
    memset(bound, 0x5a, sizeof(bound));
    memset(arrays, 0, sizeof(arrays));
    arrays[KINDS_X].data = x;
    arrays[KINDS_BIAS].data = bias;
    arrays[KINDS_OUT].data = out;
}

static void teardown(void)
{
    quern_context_destroy(ctx);
}

static int bind(void)
{
    return qn_arrays_bind(&spec, arrays, bound, &why);
}

static void accepted(void)
{
    ck_assert_msg(bind() == QUERN_OK, "%s", why.text);
}

static void refused(const char *text)
{
    memset(&why, 0, sizeof(why));
    ck_assert_msg(bind() == QUERN_INVALID, "not refused (%s)", text);
    ck_assert_msg(strstr(why.text, text) != NULL, "said \"%s\", without \"%s\"", why.text, text);
    ck_assert(!strchr(why.text, '\n'));
}

static void set(int index, int64_t rank, int64_t first, int64_t second, int64_t third)
{
    arrays[index].rank = rank;
    arrays[index].strides[0] = first;
    arrays[index].strides[1] = second;
    arrays[index].strides[2] = third;
}

static void bound_is(int index, int64_t first, int64_t second, int64_t third)
{
    ck_assert_int_eq(bound[index].rank, 3);
    ck_assert_int_eq(bound[index].strides[0], first);
    ck_assert_int_eq(bound[index].strides[1], second);
    ck_assert_int_eq(bound[index].strides[2], third);
}

static int64_t span_of(int index)
{
    struct quern_shape shape;
    assert_ok(ctx, quern_spec_shape(ctx, &spec, index, &shape));
    return qn_array_span(&shape, &bound[index]);
}

/* ---- What is accepted ---------------------------------------------------------------------- */

START_TEST(a_pointer_alone_is_dense)
{
    accepted();
    bound_is(KINDS_X, 15, 5, 1);
    bound_is(KINDS_OUT, 15, 5, 1);
    ck_assert_int_eq(bound[KINDS_BIAS].rank, 1);
    ck_assert_int_eq(bound[KINDS_BIAS].strides[0], 1);
    ck_assert_ptr_eq(bound[KINDS_X].data, x);
    ck_assert_int_eq(span_of(KINDS_X), 30 * 4);
}
END_TEST

START_TEST(given_strides_are_kept)
{
    set(KINDS_X, 3, 100, 7, 1);
    set(KINDS_OUT, 3, 27, 9, 1);
    accepted();
    bound_is(KINDS_X, 100, 7, 1);
    bound_is(KINDS_OUT, 27, 9, 1);
    ck_assert_int_eq(span_of(KINDS_X), (100 + 14 + 5) * 4);
}
END_TEST

START_TEST(dense_strides_written_out_are_the_same_as_none)
{
    struct qn_bucket with, without;
    qn_bucket_make(&spec, arrays, &without);
    set(KINDS_X, 3, 15, 5, 1);
    accepted();
    bound_is(KINDS_X, 15, 5, 1);
    qn_bucket_make(&spec, arrays, &with);
    ck_assert(qn_bucket_equal(&with, &without));
}
END_TEST

START_TEST(a_lower_rank_leaves_out_leading_dimensions_of_one)
{
    spec = common_spec(ctx, "kinds batch=1 rows=3 cols=5 biased=1");
    set(KINDS_X, 2, 6, 1, -77);
    accepted();
    ck_assert_int_eq(bound[KINDS_X].rank, 3);
    ck_assert_int_eq(bound[KINDS_X].strides[1], 6);
    ck_assert_int_eq(bound[KINDS_X].strides[2], 1);
    ck_assert_int_eq(span_of(KINDS_X), (12 + 5) * 4);
    spec = common_spec(ctx, "kinds batch=1 rows=1 cols=5 biased=1");
    set(KINDS_X, 1, 1, -77, -77);
    accepted();
    ck_assert_int_eq(span_of(KINDS_X), 5 * 4);
}
END_TEST

START_TEST(an_input_may_repeat_with_stride_0)
{
    set(KINDS_X, 3, 0, 5, 1);
    accepted();
    ck_assert_int_eq(span_of(KINDS_X), 15 * 4);
    set(KINDS_X, 3, 0, 0, 1);
    accepted();
    ck_assert_int_eq(span_of(KINDS_X), 5 * 4);
    set(KINDS_X, 3, 5, 0, 1); /* rows repeat inside a batch */
    accepted();
    ck_assert_int_eq(span_of(KINDS_X), 10 * 4);
}
END_TEST

START_TEST(strides_of_dimensions_of_one_do_not_matter)
{
    spec = common_spec(ctx, "kinds batch=1 rows=1 cols=1 biased=1");
    set(KINDS_X, 3, -9, INT64_MAX, 0);
    set(KINDS_OUT, 3, 0, INT64_MIN, -1);
    accepted();
    ck_assert_int_eq(span_of(KINDS_X), 4);
    ck_assert_int_eq(span_of(KINDS_OUT), 4);
}
END_TEST

START_TEST(an_empty_array_needs_no_memory)
{
    spec = common_spec(ctx, "kinds batch=2 rows=0 cols=5 biased=1");
    arrays[KINDS_X].data = arrays[KINDS_OUT].data = NULL;
    accepted();
    ck_assert_int_eq(span_of(KINDS_X), 0);
    arrays[KINDS_OUT].data = (char *)out + 1; /* never touched, so its alignment is no matter */
    accepted();
}
END_TEST

START_TEST(an_absent_array_is_bound_to_null)
{
    spec = common_spec(ctx, "kinds batch=2 rows=3 cols=5");
    arrays[KINDS_BIAS].data = NULL;
    arrays[KINDS_BIAS].rank = 99; /* nothing of it is looked at */
    accepted();
    ck_assert_ptr_null(bound[KINDS_BIAS].data);
}
END_TEST

START_TEST(size_bytes_may_be_exact)
{
    arrays[KINDS_X].size_bytes = 30 * 4;
    arrays[KINDS_OUT].size_bytes = 30 * 4;
    accepted();
    arrays[KINDS_X].size_bytes = 30 * 4 - 1;
    refused("x.size_bytes=119: must be at least 120");
    set(KINDS_X, 3, 20, 6, 1);
    arrays[KINDS_X].size_bytes = (20 + 12 + 5) * 4;
    accepted();
    arrays[KINDS_X].size_bytes--;
    refused("x.size_bytes=147: must be at least 148");
    arrays[KINDS_X].size_bytes = 1;
    refused("x.size_bytes=1: must be at least 148");
}
END_TEST

/* Every element is reached inside the span, and the last one at its end. */
START_TEST(span_ends_with_the_last_element_for_random_strides)
{
    uint64_t seed = common_seed();
    arrays[KINDS_OUT].data = memory;
    for (int i = 0; i < 2000; i++) {
        int64_t batch = common_between(&seed, 1, 5), rows = common_between(&seed, 1, 5);
        int64_t cols = common_between(&seed, 1, 5), row = common_between(&seed, cols, 3 * cols);
        int64_t matrix = common_between(&seed, row * rows, 2 * row * rows), last = 0;
        spec.values[KINDS_BATCH] = batch;
        spec.values[KINDS_ROWS] = rows;
        spec.values[KINDS_COLS] = cols;
        set(KINDS_OUT, 3, matrix, row, 1);
        for (int64_t b = 0; b < batch; b++)
            for (int64_t r = 0; r < rows; r++)
                last = b * matrix + r * row + cols - 1;
        accepted();
        ck_assert_int_eq(span_of(KINDS_OUT), (last + 1) * 4);
    }
}
END_TEST

/* ---- What is refused ----------------------------------------------------------------------- */

START_TEST(null_arrays_are_refused)
{
    ck_assert_int_eq(qn_arrays_bind(&spec, NULL, bound, &why), QUERN_INVALID);
    ck_assert_ptr_nonnull(strstr(why.text, "arrays=NULL: must be 3 arrays"));
}
END_TEST

START_TEST(a_null_pointer_is_refused_by_name)
{
    arrays[KINDS_X].data = NULL;
    refused("x=NULL: must point to 120 bytes");
    arrays[KINDS_X].data = x;
    arrays[KINDS_BIAS].data = NULL;
    refused("bias=NULL: must point to 20 bytes");
    arrays[KINDS_BIAS].data = bias;
    arrays[KINDS_OUT].data = NULL;
    refused("out=NULL: must point to 120 bytes");
}
END_TEST

START_TEST(an_array_that_the_spec_does_not_have_is_refused)
{
    spec = common_spec(ctx, "kinds batch=2 rows=3 cols=5");
    refused("bias=0x");
    refused("must be NULL, as this spec has no bias");
}
END_TEST

START_TEST(a_base_that_is_misaligned_to_the_element_is_refused)
{
    for (int offset = 1; offset < 4; offset++) {
        arrays[KINDS_OUT].data = (char *)out + offset;
        refused("out=0x");
        refused("must be a multiple of 4, the size of f32");
    }
    arrays[KINDS_OUT].data = out + 1;
    accepted();
}
END_TEST

START_TEST(ranks_out_of_range_are_refused)
{
    static const int64_t ranks[] = { -1, 4, 7, INT64_MIN, INT64_MAX, INT64_C(1) << 32 };
    for (size_t i = 0; i < sizeof(ranks) / sizeof(ranks[0]); i++) {
        set(KINDS_X, ranks[i], 15, 5, 1);
        refused("x.rank=");
        refused("must be from 0 (dense) to 3");
    }
}
END_TEST

START_TEST(a_lower_rank_that_leaves_out_more_than_ones_is_refused)
{
    set(KINDS_X, 2, 5, 1, 0);
    refused("x.rank=2: must be 3, as dimension 0 is 2 and not 1");
    spec = common_spec(ctx, "kinds batch=1 rows=3 cols=5 biased=1");
    set(KINDS_X, 1, 1, 0, 0);
    refused("x.rank=1: must be 3, as dimension 1 is 3 and not 1");
}
END_TEST

START_TEST(an_innermost_stride_other_than_one_is_refused)
{
    static const int64_t strides[] = { 0, 2, -1, INT64_MIN, INT64_MAX };
    for (size_t i = 0; i < sizeof(strides) / sizeof(strides[0]); i++) {
        set(KINDS_X, 3, 1000, 100, strides[i]);
        refused("x.strides[2]=");
        refused("the innermost must be 1");
    }
}
END_TEST

START_TEST(output_rows_that_overlap_are_refused)
{
    set(KINDS_OUT, 3, 15, 4, 1);
    refused("out.strides[1]=4: must be at least 5, so that its elements do not overlap");
    set(KINDS_OUT, 3, 14, 5, 1);
    refused("out.strides[0]=14: must be at least 15");
    set(KINDS_OUT, 3, 15, 0, 1);
    refused("out.strides[1]=0: must be at least 5");
    set(KINDS_OUT, 3, 0, 5, 1);
    refused("out.strides[0]=0: must be at least 5");
    set(KINDS_OUT, 3, 5, 5, 1);
    refused("out.strides[0]=5: must be at least 15");
    set(KINDS_OUT, 3, 5, 9, 1); /* rows outside matrices */
    refused("out.strides[1]=9: must be at least 10");
    set(KINDS_OUT, 3, -15, 5, 1);
    refused("out.strides[0]=-15: must be at least 0");
    spec = common_spec(ctx, "kinds batch=2 rows=3 cols=5 biased=1 accumulate=1");
    set(KINDS_OUT, 3, 0, 5, 1);
    refused("out.strides[0]=0: must be at least 5");
    set(KINDS_OUT, 3, 15, 5, 1);
    accepted();
}
END_TEST

START_TEST(negative_strides_are_refused)
{
    set(KINDS_X, 3, -15, 5, 1);
    refused("x.strides[0]=-15: must be at least 0");
    set(KINDS_X, 3, 15, -5, 1);
    refused("x.strides[1]=-5: must be at least 0");
    set(KINDS_X, 0, 0, 0, 0);
    set(KINDS_OUT, 3, 15, -5, 1);
    refused("out.strides[1]=-5: must be at least 0");
}
END_TEST

START_TEST(an_inputs_rows_may_overlap)
{
    set(KINDS_X, 3, 2, 1, 1); /* windows of five, one further each row */
    accepted();
    ck_assert_int_eq(span_of(KINDS_X), (2 + 2 + 5) * 4);
    arrays[KINDS_X].size_bytes = 9 * 4 - 1;
    refused("x.size_bytes=35: must be at least 36");
}
END_TEST

START_TEST(outer_strides_may_be_in_any_order)
{
    set(KINDS_X, 3, 5, 10, 1);
    set(KINDS_OUT, 3, 7, 14, 1);
    accepted();
    bound_is(KINDS_X, 5, 10, 1);
    bound_is(KINDS_OUT, 7, 14, 1);
    ck_assert_int_eq(span_of(KINDS_OUT), (7 + 28 + 5) * 4);
}
END_TEST

/* Against a table of what is taken, over every small set of strides. */
START_TEST(an_output_is_accepted_when_no_two_elements_meet_and_refused_when_they_do)
{
    uint64_t seed = common_seed();
    int accepted_count = 0;
    for (int i = 0; i < 5000; i++) {
        int64_t dims[3] = { common_between(&seed, 1, 4), common_between(&seed, 1, 4),
                            common_between(&seed, 1, 4) };
        int64_t outer = common_between(&seed, 0, 20), row = common_between(&seed, 0, 20);
        char taken[128] = { 0 };
        bool is_met = false;
        for (int d = 0; d < 3; d++)
            spec.values[(int[]){ KINDS_BATCH, KINDS_ROWS, KINDS_COLS }[d]] = dims[d];
        for (int64_t at = 0; at < dims[0] * dims[1] * dims[2]; at++) {
            int64_t b = at / dims[2] / dims[1], r = at / dims[2] % dims[1], c = at % dims[2];
            is_met |= taken[b * outer + r * row + c]++ > 0;
        }
        set(KINDS_OUT, 3, outer, row, 1);
        bool is_accepted = bind() == QUERN_OK;
        accepted_count += is_accepted;
        ck_assert_msg(!is_accepted || !is_met, "%ldx%ldx%ld, strides %ld, %ld: accepted",
                      (long)dims[0], (long)dims[1], (long)dims[2], (long)outer, (long)row);
        bool is_nested = row >= dims[2] && outer >= (dims[1] - 1) * row + dims[2];
        bool is_swapped = outer >= dims[2] && row >= (dims[0] - 1) * outer + dims[2];
        ck_assert_msg(is_accepted || (!is_nested && !is_swapped), "refused: %s", why.text);
    }
    ck_assert_int_gt(accepted_count, 500);
}
END_TEST

/* ---- Overlaps ------------------------------------------------------------------------------ */

START_TEST(an_output_that_shares_memory_with_another_array_is_refused)
{
    for (int from = -29; from < 30; from++) {
        arrays[KINDS_X].data = memory + 100;
        arrays[KINDS_OUT].data = memory + 100 + from;
        refused("out=0x");
        refused(": overlaps x=0x");
        refused(": must share no memory with it");
        ck_assert_ptr_null(strstr(why.text, "very data"));
    }
    arrays[KINDS_OUT].data = memory + 130;
    accepted();
    arrays[KINDS_OUT].data = memory + 70;
    accepted();
    arrays[KINDS_BIAS].data = memory + 99; /* the last of out */
    refused("overlaps bias=");
    arrays[KINDS_BIAS].data = memory + 110; /* inputs may share */
    accepted();
}
END_TEST

START_TEST(overlaps_are_judged_by_what_is_reached_and_not_by_size_bytes)
{
    arrays[KINDS_X].data = memory;
    arrays[KINDS_X].size_bytes = sizeof(memory);
    arrays[KINDS_OUT].data = memory + 30;
    arrays[KINDS_OUT].size_bytes = sizeof(memory) - 120;
    accepted();
    set(KINDS_X, 3, 16, 5, 1);
    refused("overlaps x=");
    spec = common_spec(ctx, "kinds batch=2 rows=0 cols=5 biased=1");
    set(KINDS_X, 0, 0, 0, 0);
    arrays[KINDS_OUT].data = arrays[KINDS_X].data; /* empty */
    accepted();
}
END_TEST

START_TEST(a_family_may_allow_an_output_to_lie_exactly_on_an_input)
{
    struct quern_array pair[2] = { { .data = memory }, { .data = memory } };
    spec = common_spec(ctx, "copy n=100");
    ck_assert_int_eq(qn_arrays_bind(&spec, pair, bound, &why), QUERN_OK);
    pair[1].data = memory + 1;
    ck_assert_int_eq(qn_arrays_bind(&spec, pair, bound, &why), QUERN_INVALID);
    ck_assert_ptr_nonnull(strstr(why.text, "overlaps x="));
    ck_assert_ptr_nonnull(strstr(why.text, "or be an input's very data, shape and strides"));

    struct quern_family mine = kinds_family; /* the same for views */
    mine.aliasable = 1u << KINDS_OUT;
    spec = common_spec(ctx, "kinds batch=2 rows=3 cols=5 biased=1");
    spec.family = &mine;
    arrays[KINDS_OUT].data = arrays[KINDS_X].data;
    accepted();
    set(KINDS_X, 3, 15, 5, 1); /* written out, and still the same */
    accepted();
    set(KINDS_X, 3, 5, 10, 1);
    refused("overlaps x=");
    set(KINDS_OUT, 3, 5, 10, 1);
    accepted();
    arrays[KINDS_BIAS].data = arrays[KINDS_X].data;
    refused("overlaps bias="); /* of another shape */
}
END_TEST

START_TEST(gemm_refuses_an_output_over_its_factors)
{
    struct quern_array four[4] = { { .data = x }, { .data = memory }, { 0 }, { .data = out } };
    spec = common_spec(ctx, "gemm m=8 n=8 k=8");
    ck_assert_int_eq(qn_arrays_bind(&spec, four, bound, &why), QUERN_OK);
    four[3].data = x;
    assert_refused(ctx, quern_run(ctx, &spec, four, NULL), QUERN_INVALID, ": overlaps a=");
    four[3].data = memory + 63;
    assert_refused(ctx, quern_run(ctx, &spec, four, NULL), QUERN_INVALID, ": overlaps b=");
}
END_TEST

/* ---- Views that run ------------------------------------------------------------------------ */

static struct quern_array head_major(void *data, int64_t heads, int64_t dim)
{
    return (struct quern_array){ .data = data, .rank = 3, .strides = { dim, heads * dim, 1 } };
}

/* Heads of [tokens, heads, dim] tensors as the batch of a gemm, in and out. */
START_TEST(a_batch_may_run_over_the_inner_dimension_of_its_arrays)
{
    static const char *const texts[] = {
        "gemm batch=3 m=37 n=20 k=24",
        "gemm batch=3 m=37 n=20 k=24 accumulate=1",
        "gemm batch=3 m=1 n=20 k=24 a=bf16 b=bf16 d=bf16 layout=nn",
        "gemm batch=3 m=64 n=20 k=24 a=bf16 b=bf16 layout=nn",
    };
    static float a[64 * 3 * 24], b[3 * 24 * 20], d[64 * 3 * 20];
    uint64_t seed = common_seed();
    for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
        struct quern_kernel *kernel;
        struct quern_check check = { 0 };
        spec = common_spec(ctx, texts[i]);
        int64_t n = 20, k = 24;
        bool is_nn = strstr(texts[i], "layout=nn");
        struct quern_array four[4] = {
            head_major(a, 3, k), head_major(b, 3, is_nn ? n : k), { 0 }, head_major(d, 3, n)
        };
        struct quern_shape shape;
        for (int j = 0; j < 4; j++) { /* the same numbers, in whichever order */
            assert_ok(ctx, quern_spec_shape(ctx, &spec, j, &shape));
            assert_ok(ctx, quern_fill(ctx, &spec, j, common_random(&seed), four[j].data));
        }
        assert_ok(ctx, quern_dispatch(ctx, &spec, four, &kernel));
        assert_ok(ctx, quern_verify(ctx, kernel, &spec, four, common_random(&seed), &check));
        ck_assert_msg(check.ok, "%s: %s", texts[i], check.why);
        ck_assert_double_gt(check.covered, 0);
        four[3].strides[0] = n - 1;
        assert_refused(ctx, quern_run(ctx, &spec, four, NULL), QUERN_INVALID,
                       "d.strides[0]=19: must be at least 20");
    }
}
END_TEST

START_TEST(windows_of_one_signal_are_an_input_like_any_other)
{
    struct quern_array four[4] = {
        { .data = x, .rank = 3, .strides = { 0, 1, 1 } }, { .data = memory }, { 0 }, { .data = out }
    };
    struct quern_kernel *kernel;
    struct quern_check check = { 0 };
    uint64_t seed = common_seed();
    for (int i = 0; i < 600; i++)
        x[i] = (float)common_between(&seed, -100, 100), memory[i] = x[i] / 3;
    spec = common_spec(ctx, "gemm m=50 n=7 k=16");
    assert_ok(ctx, quern_dispatch(ctx, &spec, four, &kernel));
    assert_ok(ctx, quern_verify(ctx, kernel, &spec, four, common_random(&seed), &check));
    ck_assert_msg(check.ok, "%s", check.why);
}
END_TEST

START_TEST(a_reach_that_overflows_is_refused)
{
    static const int64_t strides[] = { INT64_MAX, INT64_MAX / 4, INT64_MAX / 4 - 3,
                                       INT64_C(1) << 62, INT64_C(1) << 61 };
    for (size_t i = 0; i < sizeof(strides) / sizeof(strides[0]); i++) {
        set(KINDS_X, 3, strides[i], 5, 1);
        refused("x.strides[0]=");
        refused("its reach overflows 63 bits");
    }
    set(KINDS_X, 3, INT64_C(1) << 60, INT64_C(1) << 59, 1);
    refused("x.strides[0]=1152921504606846976");
    set(KINDS_X, 3, INT64_C(1) << 60, 5, 1);
    arrays[KINDS_X].data = memory + 200; /* behind what is written */
    arrays[KINDS_OUT].data = memory;
    arrays[KINDS_BIAS].data = memory + 100;
    accepted();
    ck_assert_int_eq(span_of(KINDS_X), (INT64_C(1) << 62) + 15 * 4);
    arrays[KINDS_X].size_bytes = 600 * 4;
    refused("x.size_bytes=2400: must be at least 4611686018427387964");
}
END_TEST

/* ---- Through the public calls -------------------------------------------------------------- */

START_TEST(launch_and_run_refuse_what_binding_refuses)
{
    struct quern_kernel *kernel;
    assert_ok(ctx, quern_dispatch(ctx, &spec, NULL, &kernel));
    arrays[KINDS_OUT].data = NULL;
    assert_refused(ctx, quern_run(ctx, &spec, arrays, NULL), QUERN_INVALID, "out=NULL");
    assert_refused(ctx, quern_run(ctx, &spec, NULL, NULL), QUERN_INVALID, "arrays=NULL");
    assert_refused(ctx, quern_launch(ctx, kernel, &spec, arrays, NULL), QUERN_INVALID, "out=NULL");
}
END_TEST

START_TEST(alignment_is_what_divides_the_base_and_every_outer_stride)
{
    static const struct {
        int offset; /* in floats, from a multiple of 64 */
        int64_t row;
        int is;
    } cases[] = { { 0, 8, 16 }, { 0, 4, 16 }, { 0, 6, 8 }, { 0, 5, 4 },   { 2, 8, 8 },
                  { 1, 8, 4 },  { 4, 4, 16 }, { 2, 7, 4 }, { 16, 64, 16 } };
    spec = common_spec(ctx, "kinds batch=2 rows=3 cols=4 biased=1");
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct qn_bucket bucket;
        arrays[KINDS_X].data = memory + cases[i].offset;
        set(KINDS_X, 3, 8 * cases[i].row, cases[i].row, 1);
        qn_bucket_make(&spec, arrays, &bucket);
        ck_assert_int_eq(bucket.alignment[KINDS_X], cases[i].is);
    }
}
END_TEST

START_TEST(alignment_of_dense_rows_is_that_of_their_length)
{
    static const int is[] = { 0, 4, 8, 4, 16, 4, 8, 4, 16 };
    set(KINDS_X, 0, 0, 0, 0);
    arrays[KINDS_X].data = memory;
    for (int cols = 1; cols <= 8; cols++) {
        struct qn_bucket bucket;
        spec.values[KINDS_COLS] = cols;
        qn_bucket_make(&spec, arrays, &bucket);
        ck_assert_int_eq(bucket.alignment[KINDS_X], is[cols]);
        qn_bucket_make(&spec, NULL, &bucket); /* dense ones, on a boundary of 16 */
        ck_assert_int_eq(bucket.alignment[KINDS_X], is[cols]);
    }
}
END_TEST

/* quern_dispatch() takes arrays for their alignment and sees them before they are bound. */
START_TEST(alignment_reads_no_further_than_the_strides_there_are)
{
    struct qn_bucket bucket;
    for (int i = 0; i < QUERN_MAX_RANK; i++)
        arrays[KINDS_X].strides[i] = 4;
    arrays[KINDS_X].data = x;
    arrays[KINDS_X].rank = INT64_MAX;
    qn_bucket_make(&spec, arrays, &bucket);
    ck_assert_int_ge(bucket.alignment[KINDS_X], 4);
    arrays[KINDS_X].rank = INT64_MIN;
    qn_bucket_make(&spec, arrays, &bucket);
    ck_assert_int_ge(bucket.alignment[KINDS_X], 4);
}
END_TEST

static Suite *suite_make(void)
{
    Suite *suite = suite_create("arrays");
    TCase *tcase = tcase_create("arrays");
    tcase_set_timeout(tcase, 60);
    tcase_add_checked_fixture(tcase, setup, teardown);
    tcase_add_test(tcase, a_pointer_alone_is_dense);
    tcase_add_test(tcase, given_strides_are_kept);
    tcase_add_test(tcase, dense_strides_written_out_are_the_same_as_none);
    tcase_add_test(tcase, a_lower_rank_leaves_out_leading_dimensions_of_one);
    tcase_add_test(tcase, an_input_may_repeat_with_stride_0);
    tcase_add_test(tcase, strides_of_dimensions_of_one_do_not_matter);
    tcase_add_test(tcase, an_empty_array_needs_no_memory);
    tcase_add_test(tcase, an_absent_array_is_bound_to_null);
    tcase_add_test(tcase, size_bytes_may_be_exact);
    tcase_add_test(tcase, span_ends_with_the_last_element_for_random_strides);
    tcase_add_test(tcase, null_arrays_are_refused);
    tcase_add_test(tcase, a_null_pointer_is_refused_by_name);
    tcase_add_test(tcase, an_array_that_the_spec_does_not_have_is_refused);
    tcase_add_test(tcase, a_base_that_is_misaligned_to_the_element_is_refused);
    tcase_add_test(tcase, ranks_out_of_range_are_refused);
    tcase_add_test(tcase, a_lower_rank_that_leaves_out_more_than_ones_is_refused);
    tcase_add_test(tcase, an_innermost_stride_other_than_one_is_refused);
    tcase_add_test(tcase, output_rows_that_overlap_are_refused);
    tcase_add_test(tcase, negative_strides_are_refused);
    tcase_add_test(tcase, an_inputs_rows_may_overlap);
    tcase_add_test(tcase, outer_strides_may_be_in_any_order);
    tcase_add_test(tcase, an_output_is_accepted_when_no_two_elements_meet_and_refused_when_they_do);
    tcase_add_test(tcase, an_output_that_shares_memory_with_another_array_is_refused);
    tcase_add_test(tcase, overlaps_are_judged_by_what_is_reached_and_not_by_size_bytes);
    tcase_add_test(tcase, a_family_may_allow_an_output_to_lie_exactly_on_an_input);
    tcase_add_test(tcase, gemm_refuses_an_output_over_its_factors);
    tcase_add_test(tcase, a_batch_may_run_over_the_inner_dimension_of_its_arrays);
    tcase_add_test(tcase, windows_of_one_signal_are_an_input_like_any_other);
    tcase_add_test(tcase, a_reach_that_overflows_is_refused);
    tcase_add_test(tcase, launch_and_run_refuse_what_binding_refuses);
    tcase_add_test(tcase, alignment_is_what_divides_the_base_and_every_outer_stride);
    tcase_add_test(tcase, alignment_of_dense_rows_is_that_of_their_length);
    tcase_add_test(tcase, alignment_reads_no_further_than_the_strides_there_are);
    suite_add_tcase(suite, tcase);
    return suite;
}

int main(void)
{
    return common_main(suite_make());
}
