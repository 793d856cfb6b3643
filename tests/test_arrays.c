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

/* ---- Bytes that two arrays share ----------------------------------------------------------- */

/* A view that a test lays into `buffer`, in elements of `bytes` bytes from byte `at`. */
struct view {
    struct quern_shape shape;
    struct quern_array array;
};

static unsigned char buffer[1 << 16] __attribute__((aligned(64)));

static struct view view_of(int64_t at, int dtype, int rank, const int64_t *dims,
                           const int64_t *strides)
{
    struct view view = { { .dtype = dtype, .rank = rank }, { .data = buffer + at, .rank = rank } };
    for (int d = 0; d < rank; d++) {
        view.shape.dims[d] = dims[d];
        view.array.strides[d] = strides[d];
    }
    return view;
}

/* By marking every byte of the one and looking for it with every byte of the other. */
static bool is_marked_twice(const struct view *a, const struct view *b)
{
    static unsigned char marks[sizeof(buffer)];
    bool is_twice = false;
    memset(marks, 0, sizeof(marks));
    for (int which = 0; which < 2; which++) {
        const struct view *view = which ? b : a;
        int64_t bytes = (int64_t)quern_dtype_bytes(view->shape.dtype);
        for (int64_t i = 0; i < qn_shape_count(&view->shape); i++) {
            int64_t at = (unsigned char *)view->array.data - buffer, rest = i;
            for (int d = view->shape.rank - 1; d >= 0; rest /= view->shape.dims[d--])
                at += rest % view->shape.dims[d] * view->array.strides[d] * bytes;
            ck_assert(at >= 0 && at + bytes <= (int64_t)sizeof(marks));
            for (int64_t j = at; j < at + bytes; j++) {
                is_twice |= which && marks[j];
                marks[j] |= !which;
            }
        }
    }
    return is_twice;
}

static void sharing_is(bool is_shared, const struct view *a, const struct view *b)
{
    ck_assert_int_eq(is_marked_twice(a, b), is_shared);
    ck_assert_int_eq(qn_arrays_share(&a->shape, &a->array, &b->shape, &b->array), is_shared);
    ck_assert_int_eq(qn_arrays_share(&b->shape, &b->array, &a->shape, &a->array), is_shared);
}

START_TEST(column_ranges_of_one_buffer_share_nothing_until_they_meet)
{
    enum { ROWS = 7, PITCH = 50, WIDTH = 16, OTHER = 12 };
    static const int64_t dims[] = { ROWS, WIDTH }, others[] = { ROWS - 2, OTHER };
    static const int64_t strides[] = { PITCH, 1 };
    for (int64_t shift = -2 * PITCH; shift <= 2 * PITCH; shift++) {
        struct view a = view_of(1000, QUERN_BF16, 2, dims, strides);
        struct view b = view_of(1000 + 2 * shift, QUERN_BF16, 2, others, strides);
        int64_t after = (shift + 2 * PITCH) % PITCH;
        sharing_is(after < WIDTH || after > PITCH - OTHER, &a, &b);
    }
}
END_TEST

START_TEST(parts_of_pages_are_told_apart_whatever_their_dtypes)
{
    enum { PAGE = 240 }; /* bytes: 4 x 5 f32, then 3 x 24 bf16, then 16 of padding */
    static const int64_t states[] = { 9, 4, 5 }, rows[] = { 9, 3, 24 };
    static const int64_t wide[] = { PAGE / 4, 5, 1 }, narrow[] = { PAGE / 2, 24, 1 };
    struct view a = view_of(512, QUERN_F32, 3, states, wide);
    for (int64_t at = 0; at < PAGE; at++) {
        struct view b = view_of(512 + at, QUERN_BF16, 3, rows, narrow);
        sharing_is(at < 80 || at > PAGE - 144, &a, &b);
    }
}
END_TEST

START_TEST(rows_and_heads_that_alternate_share_nothing)
{
    static const int64_t dims[] = { 6, 3, 8 };
    static const int64_t heads[] = { 100, 32, 1 };  /* q k v of a head side by side, rows padded */
    static const int64_t thirds[] = { 300, 32, 1 }; /* every third such row */
    static const int64_t halves[] = { 200, 32, 1 };
    struct view a = view_of(0, QUERN_F32, 3, dims, heads);
    for (int64_t part = 1; part < 4; part++) {
        struct view b = view_of(part * 32, QUERN_F32, 3, dims, heads);
        sharing_is(false, &a, &b);
    }
    struct view first = view_of(0, QUERN_F32, 3, dims, thirds);
    struct view second = view_of(400, QUERN_F32, 3, dims, thirds);
    struct view either = view_of(400, QUERN_F32, 3, dims, halves);
    sharing_is(false, &first, &second);
    sharing_is(true, &first, &either);
    struct view swapped =
        view_of(32, QUERN_F32, 3, (int64_t[]){ 3, 6, 8 }, (int64_t[]){ 32, 100, 1 });
    sharing_is(false, &a, &swapped);
}
END_TEST

START_TEST(what_lies_in_the_padding_of_rows_shares_nothing_with_them)
{
    static const int64_t dims[] = { 5, 8 }, strides[] = { 12, 1 };
    struct view rows = view_of(0, QUERN_F32, 2, dims, strides);
    for (int64_t at = 0; at < 5 * 48; at += 4) {
        struct view one = view_of(at, QUERN_F32, 0, NULL, NULL);
        struct view three = view_of(at, QUERN_F32, 1, (int64_t[]){ 3 }, (int64_t[]){ 1 });
        struct view repeated = view_of(at, QUERN_F32, 2, (int64_t[]){ 4, 3 }, (int64_t[]){ 0, 1 });
        bool is_last = at >= 4 * 48 + 32;
        sharing_is(!is_last && at % 48 < 32, &rows, &one);
        sharing_is(!is_last && (at % 48 < 32 || at % 48 > 36), &rows, &three);
        sharing_is(!is_last && (at % 48 < 32 || at % 48 > 36), &rows, &repeated);
    }
}
END_TEST

/* Up to four dimensions: rows within rows with gaps, in any order, or strides of any kind. */
static struct view view_random(uint64_t *seed)
{
    static const int dtypes[] = { QUERN_U8, QUERN_BF16, QUERN_F32, QUERN_I64 };
    int rank = (int)common_between(seed, 0, 4), dtype = dtypes[common_between(seed, 0, 3)];
    int64_t dims[4] = { 0 }, strides[4] = { 0 }, inside = 1;
    bool is_nested = common_between(seed, 0, 3);
    for (int d = rank - 1; d >= 0; d--) {
        dims[d] = common_between(seed, 1, 5);
        strides[d] = is_nested ? inside + common_between(seed, 0, 1) * common_between(seed, 0, 9)
                               : common_between(seed, 0, 60);
        inside = is_nested ? strides[d] * dims[d] : inside;
    }
    if (rank > 2 && common_between(seed, 0, 1)) {
        int64_t dim = dims[0], stride = strides[0];
        dims[0] = dims[1], strides[0] = strides[1];
        dims[1] = dim, strides[1] = stride;
    }
    return view_of(common_between(seed, 0, 300), dtype, rank, dims, strides);
}

/* A second one with the pitch of the first, as parts of one buffer have. */
static struct view view_beside(uint64_t *seed, const struct view *first)
{
    struct view second = *first;
    second.array.data = buffer + common_between(seed, 0, 300);
    for (int d = 0; d < second.shape.rank; d++) {
        if (common_between(seed, 0, 1))
            second.shape.dims[d] = common_between(seed, 1, second.shape.dims[d]);
    }
    return second;
}

START_TEST(random_views_share_what_a_map_of_their_bytes_says)
{
    enum { PAIRS = 30000 };
    uint64_t seed = common_seed();
    int apart_count = 0, shared_count = 0;
    for (int i = 0; i < PAIRS; i++) {
        struct view a = view_random(&seed);
        struct view b = i & 1 ? view_random(&seed) : view_beside(&seed, &a);
        bool is_shared = is_marked_twice(&a, &b);
        bool is_said = qn_arrays_share(&a.shape, &a.array, &b.shape, &b.array);
        ck_assert_msg(is_said || !is_shared, "pair %d: shared bytes were not seen", i);
        shared_count += is_shared;
        apart_count += !is_said;
    }
    ck_assert_int_gt(shared_count, PAIRS / 10);
    ck_assert_int_gt(apart_count, PAIRS / 10);
    ck_assert_int_gt(shared_count + apart_count, PAIRS - PAIRS / 1000);
}
END_TEST

/* Hundreds of rows of two pitches that have nothing in common; in fact they are apart. */
START_TEST(views_that_are_too_intricate_to_tell_apart_count_as_sharing)
{
    enum { ROWS = 300, PITCH = 100003, OTHER = 99991, AFTER = 500 };
    const int64_t dims[] = { ROWS, 1 };
    struct view a = view_of(0, QUERN_U8, 2, dims, (int64_t[]){ PITCH, 1 });
    struct view b = view_of(AFTER, QUERN_U8, 2, dims, (int64_t[]){ OTHER, 1 });
    for (int64_t i = 0; i < ROWS; i++) {
        for (int64_t j = 0; j < ROWS; j++)
            ck_assert_int_ne(i * PITCH, AFTER + j * OTHER);
    }
    ck_assert(qn_arrays_share(&a.shape, &a.array, &b.shape, &b.array));
    a.shape.dims[0] = b.shape.dims[0] = 20;
    ck_assert(!qn_arrays_share(&a.shape, &a.array, &b.shape, &b.array));
    a.array.strides[0] = b.array.strides[0] = INT64_C(1) << 58; /* too far for the arithmetic */
    ck_assert(qn_arrays_share(&a.shape, &a.array, &b.shape, &b.array));
    a.shape.dims[0] = b.shape.dims[0] = 4;
    ck_assert(!qn_arrays_share(&a.shape, &a.array, &b.shape, &b.array));
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

/* As parts of one convolution's output. */
START_TEST(an_output_may_lie_between_the_rows_of_other_arrays)
{
    set(KINDS_X, 3, 60, 20, 1);
    set(KINDS_OUT, 3, 60, 20, 1);
    arrays[KINDS_OUT].data = memory + 100;
    for (int after = -15; after <= 15; after++) {
        arrays[KINDS_X].data = memory + 100 + after;
        if (after > -5 && after < 5)
            refused(": overlaps x=0x");
        else
            accepted();
    }
    arrays[KINDS_BIAS].data = memory + 100 + 2 * 20 + 15;
    accepted();
    arrays[KINDS_BIAS].data = memory + 100 + 2 * 20 + 16; /* its last is the first of a row */
    refused(": overlaps bias=0x");
    arrays[KINDS_BIAS].data = bias;
    arrays[KINDS_X].data = memory + 105;
    set(KINDS_X, 3, 60, 19, 1); /* one more to the left with each row */
    refused(": overlaps x=0x");
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
    tcase_add_test(tcase, column_ranges_of_one_buffer_share_nothing_until_they_meet);
    tcase_add_test(tcase, parts_of_pages_are_told_apart_whatever_their_dtypes);
    tcase_add_test(tcase, rows_and_heads_that_alternate_share_nothing);
    tcase_add_test(tcase, what_lies_in_the_padding_of_rows_shares_nothing_with_them);
    tcase_add_test(tcase, random_views_share_what_a_map_of_their_bytes_says);
    tcase_add_test(tcase, views_that_are_too_intricate_to_tell_apart_count_as_sharing);
    tcase_add_test(tcase, an_output_that_shares_memory_with_another_array_is_refused);
    tcase_add_test(tcase, an_output_may_lie_between_the_rows_of_other_arrays);
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
