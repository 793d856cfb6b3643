/* Array arguments: the caller's {data, strides} against the shapes that the spec asks for.
 *
 * qn_arrays_bind() is the one gate: behind it every array has its family's rank, strides that stay
 * inside 63 bits, elements of outputs that do not overlap, memory enough where its size is known,
 * and a base aligned to its element; no output shares a byte with another array, unless it lies
 * exactly on an input and the family says that it may. qn_call_bind() is that for a call on a
 * device, which must be able to reach the memory; on a CPU that is not known without trying. They
 * run on every call: no allocation, no text unless they refuse.
 */
#include "jit/context.h"

#include <string.h>

/* The products below overflow only in shapes without elements: those are answered first. */
static bool is_empty(const struct quern_shape *shape)
{
    for (int d = 0; d < shape->rank; d++) {
        if (shape->dims[d] == 0)
            return true;
    }
    return false;
}

int64_t qn_shape_count(const struct quern_shape *shape)
{
    int64_t count = !is_empty(shape);
    for (int d = 0; d < shape->rank && count; d++)
        count *= shape->dims[d];
    return count;
}

int64_t qn_array_span(const struct quern_shape *shape, const struct quern_array *bound)
{
    int64_t last = 0;
    if (is_empty(shape))
        return 0;
    for (int d = 0; d < shape->rank; d++)
        last += (shape->dims[d] - 1) * bound->strides[d];
    return (last + 1) * (int64_t)quern_dtype_bytes(shape->dtype);
}

/* Row-major strides of the shape, outermost first. */
static void strides_dense(const struct quern_shape *shape, struct quern_array *bound)
{
    int64_t stride = 1;
    bool is_none = is_empty(shape);
    bound->rank = shape->rank;
    for (int d = shape->rank - 1; d >= 0; d--) {
        bound->strides[d] = stride;
        stride *= shape->dims[d] > 1 && !is_none ? shape->dims[d] : 1;
    }
}

/* The caller's strides, with dimensions of extent 1 put in front up to the family's rank. */
static int strides_given(const char *name, const struct quern_shape *shape,
                         const struct quern_array *array, struct quern_array *bound,
                         struct quern_message *why)
{
    if (array->rank < 0 || array->rank > shape->rank)
        return quern_refuse(why, "%s.rank=%lld: must be from 0 (dense) to %d", name,
                            (long long)array->rank, shape->rank);
    int missing = shape->rank - (int)array->rank;
    bound->rank = shape->rank;
    for (int d = 0; d < shape->rank; d++) {
        if (d >= missing) {
            bound->strides[d] = array->strides[d - missing];
            continue;
        }
        bound->strides[d] = 0;
        if (shape->dims[d] != 1)
            return quern_refuse(why, "%s.rank=%lld: must be %d, as dimension %d is %lld and not 1",
                                name, (long long)array->rank, shape->rank, d,
                                (long long)shape->dims[d]);
    }
    return QUERN_OK;
}

/* Strides of dimensions of one do not matter; the others, in any order of size, are not negative,
 * the innermost is 1, and the last byte lies within 63 bits. */
static int check_strides(const char *name, const struct quern_shape *shape,
                         const struct quern_array *bound, struct quern_message *why)
{
    int64_t reach = (int64_t)quern_dtype_bytes(shape->dtype), bytes;
    for (int d = shape->rank - 1; d >= 0; d--) {
        int64_t stride = bound->strides[d];
        if (shape->dims[d] <= 1)
            continue;
        if (d == shape->rank - 1 && stride != 1)
            return quern_refuse(why, "%s.strides[%d]=%lld: the innermost must be 1", name, d,
                                (long long)stride);
        if (stride < 0)
            return quern_refuse(why, "%s.strides[%d]=%lld: must be at least 0", name, d,
                                (long long)stride);
        if (__builtin_mul_overflow(shape->dims[d] - 1, stride, &bytes) ||
            __builtin_mul_overflow(bytes, (int64_t)quern_dtype_bytes(shape->dtype), &bytes) ||
            __builtin_add_overflow(reach, bytes, &reach))
            return quern_refuse(why, "%s.strides[%d]=%lld: its reach overflows 63 bits", name, d,
                                (long long)stride);
    }
    return QUERN_OK;
}

/* The dimension of the least stride among those in `left`, the inner one of equals; -1: none. */
static int least_stride(const struct quern_shape *shape, const struct quern_array *bound,
                        unsigned left)
{
    int least = -1;
    for (int d = shape->rank - 1; d >= 0; d--) {
        if (left >> d & 1 && (least < 0 || bound->strides[d] < bound->strides[least]))
            least = d;
    }
    return least;
}

/* No two elements of an output share memory: from the least stride to the greatest, each steps over
 * all that lies inside it. Other strides could do so too, but no layout in use has them. */
static int check_distinct(const char *name, const struct quern_shape *shape,
                          const struct quern_array *bound, struct quern_message *why)
{
    int64_t inside = 1; /* elements from the first to the last of what was looked at */
    unsigned left = 0;
    int last = shape->rank - 1;
    if (is_empty(shape))
        return QUERN_OK;
    if (last >= 0)
        inside = shape->dims[last]; /* its stride is 1 */
    for (int d = 0; d < QUERN_MAX_RANK; d++)
        left |= (unsigned)(d < last && shape->dims[d] > 1) << d;
    for (int d; (d = least_stride(shape, bound, left)) >= 0; left &= ~(1u << d)) {
        if (bound->strides[d] < inside)
            return quern_refuse(why,
                                "%s.strides[%d]=%lld: must be at least %lld, so that its "
                                "elements do not overlap",
                                name, d, (long long)bound->strides[d], (long long)inside);
        inside += bound->strides[d] * (shape->dims[d] - 1);
    }
    return QUERN_OK;
}

static int check_memory(const char *name, const struct quern_shape *shape,
                        const struct quern_array *bound, int64_t span, struct quern_message *why)
{
    size_t element = quern_dtype_bytes(shape->dtype);
    if (!span)
        return QUERN_OK;
    if (!bound->data)
        return quern_refuse(why, "%s=NULL: must point to %lld bytes", name, (long long)span);
    if ((uintptr_t)bound->data % element)
        return quern_refuse(why, "%s=%p: must be a multiple of %zu, the size of %s", name,
                            bound->data, element, quern_dtype_name(shape->dtype));
    if (bound->size_bytes && (uint64_t)span > bound->size_bytes)
        return quern_refuse(why, "%s.size_bytes=%zu: must be at least %lld", name,
                            bound->size_bytes, (long long)span);
    return QUERN_OK;
}

/* ---- Bytes that two arrays share -------------------------------------------------------------
 *
 * Spans, from the first byte of an array to its last, may meet where no element does:
 *
 *     k [t, h k]      ....####........    ....####........    ....####........
 *     o [t, hv v]     ........########    ........########    ........########
 *                     <----- pitch ------>
 *
 *     1. Inner dimensions without a gap between their elements make up a run of bytes; what is left
 *        says where runs begin.
 *     2. A run of b begins `distance` bytes after one of a: what b's data lies after a's, and for
 *        each stride of either some multiple of it. A stride that both have is one term, taken from
 *        -(a's extent - 1) to b's extent - 1 times. The two runs share a byte where
 *        -(bytes of b's run) < distance < bytes of a's run.
 *     3. The terms are searched for such a distance, the greatest stride first: only multiples are
 *        tried from which the lesser terms can get there, and none if the greatest common divisor
 *        of all strides has no multiple in between.
 *
 * Column ranges of one buffer, parts of pages of one pitch, and every other row are seen in the
 * first step, rows within rows in two or three for each dimension. The answer is exact, but that
 * two arrays count as sharing memory where the search does not end within SEARCH_STEPS, as with
 * hundreds of rows of two pitches of which neither holds the other, and where a span is above
 * SEARCH_BYTES. Arrays whose spans are apart, which is nearly all of them, are not searched.
 */

#define SEARCH_STEPS 256
#define SEARCH_BYTES (INT64_C(1) << 60) /* sums of two spans and a distance stay inside 63 bits */

struct term {
    int64_t stride, least, most;      /* bytes, and how many times */
    int64_t divisor, lowest, highest; /* of sums of this term and those of lesser strides */
};

struct distances {
    int count, steps;
    struct term terms[2 * QUERN_MAX_RANK + 1]; /* the greatest stride first; then one of nothing */
};

/* Differences are modulo 2^64: one begins inside the other. */
static bool are_spans_met(const struct quern_array *a, int64_t span_a, const struct quern_array *b,
                          int64_t span_b)
{
    uint64_t first = (uint64_t)(uintptr_t)a->data, second = (uint64_t)(uintptr_t)b->data;
    return span_a && span_b &&
           (second - first < (uint64_t)span_a || first - second < (uint64_t)span_b);
}

static int64_t floor_divided(int64_t value, int64_t by)
{
    return value / by - (value % by < 0);
}

static int64_t common_divisor(int64_t a, int64_t b)
{
    while (b) {
        int64_t rest = a % b;
        a = b;
        b = rest;
    }
    return a;
}

static void term_add(struct distances *all, int64_t stride, int64_t least, int64_t most)
{
    int at = 0;
    while (at < all->count && all->terms[at].stride > stride)
        at++;
    struct term *term = &all->terms[at];
    if (at == all->count || term->stride != stride) {
        memmove(term + 1, term, (size_t)(all->count++ - at) * sizeof(*term));
        *term = (struct term){ .stride = stride };
    }
    term->least += least;
    term->most += most;
}

/* Steps 1 and 2 for one array, whose strides count `sign` times. Returns the bytes of a run. */
static int64_t terms_of(struct distances *all, int sign, const struct quern_shape *shape,
                        const struct quern_array *bound)
{
    int64_t element = (int64_t)quern_dtype_bytes(shape->dtype), run = element;
    unsigned left = 0;
    for (int d = 0; d < shape->rank; d++)
        left |= (unsigned)(shape->dims[d] > 1) << d;
    for (int d; (d = least_stride(shape, bound, left)) >= 0; left &= ~(1u << d)) {
        int64_t stride = bound->strides[d] * element, times = shape->dims[d] - 1;
        if (stride <= run)
            run += stride * times;
        else
            term_add(all, stride, sign < 0 ? -times : 0, sign > 0 ? times : 0);
    }
    return run;
}

/* What a term and the lesser ones come to together. */
static void terms_sum(struct distances *all)
{
    all->terms[all->count] = (struct term){ 0 };
    for (int at = all->count - 1; at >= 0; at--) {
        struct term *term = &all->terms[at], *lesser = term + 1;
        term->divisor = common_divisor(term->stride, lesser->divisor);
        term->lowest = lesser->lowest + term->stride * term->least;
        term->highest = lesser->highest + term->stride * term->most;
    }
}

/* Step 3: whether the terms from `at` on have a sum from low to high. True, too, if it takes too
 * long to say. */
static bool has_sum(struct distances *all, int at, int64_t low, int64_t high)
{
    const struct term *term = &all->terms[at], *lesser = term + 1;
    if (at == all->count)
        return low <= 0 && high >= 0;
    if (all->steps++ == SEARCH_STEPS)
        return true;
    low = low > term->lowest ? low : term->lowest;
    high = high < term->highest ? high : term->highest;
    if (floor_divided(high, term->divisor) * term->divisor < low)
        return false;
    int64_t times = floor_divided(low - lesser->highest - 1, term->stride) + 1;
    int64_t last = floor_divided(high - lesser->lowest, term->stride);
    times = times > term->least ? times : term->least;
    last = last < term->most ? last : term->most;
    for (; times <= last; times++) {
        if (has_sum(all, at + 1, low - times * term->stride, high - times * term->stride))
            return true;
    }
    return false;
}

bool qn_arrays_share(const struct quern_shape *a, const struct quern_array *bound_a,
                     const struct quern_shape *b, const struct quern_array *bound_b)
{
    int64_t span_a = qn_array_span(a, bound_a), span_b = qn_array_span(b, bound_b);
    if (!are_spans_met(bound_a, span_a, bound_b, span_b))
        return false;
    if (span_a > SEARCH_BYTES || span_b > SEARCH_BYTES)
        return true;
    struct distances all;
    all.count = all.steps = 0;
    int64_t run_a = terms_of(&all, -1, a, bound_a), run_b = terms_of(&all, 1, b, bound_b);
    int64_t after = (int64_t)((uintptr_t)bound_b->data - (uintptr_t)bound_a->data);
    terms_sum(&all);
    return has_sum(&all, 0, 1 - run_b - after, run_a - 1 - after);
}

/* ---- Overlaps ------------------------------------------------------------------------------ */

/* Element for element in the same place. */
static bool is_same_view(const struct quern_shape *a, const struct quern_array *bound_a,
                         const struct quern_shape *b, const struct quern_array *bound_b)
{
    if (bound_a->data != bound_b->data || a->rank != b->rank ||
        quern_dtype_bytes(a->dtype) != quern_dtype_bytes(b->dtype))
        return false;
    for (int d = 0; d < a->rank; d++) {
        if (a->dims[d] != b->dims[d] ||
            (a->dims[d] > 1 && bound_a->strides[d] != bound_b->strides[d]))
            return false;
    }
    return true;
}

static int refuse_overlap(const struct quern_family *family, int output, int other,
                          const struct quern_array *bound, struct quern_message *why)
{
    const char *name = family->arrays[other].name;
    bool may_lie_on = family->aliasable >> output & 1;
    return quern_refuse(why, "%s=%p: overlaps %s=%p: must share no memory with it%s",
                        family->arrays[output].name, bound[output].data, name, bound[other].data,
                        may_lie_on ? ", or be an input's very data, shape and strides" : "");
}

/* Outputs against all others. */
static int check_overlaps(const struct quern_family *family, const struct quern_shape *shapes,
                          const struct quern_array *bound, const int64_t *spans,
                          struct quern_message *why)
{
    for (int i = 0; i < family->array_count; i++) {
        if (!spans[i] || shapes[i].role == QUERN_IN)
            continue;
        for (int j = 0; j < family->array_count; j++) {
            if (j == i || !are_spans_met(&bound[i], spans[i], &bound[j], spans[j]))
                continue;
            bool is_allowed = family->aliasable >> i & 1 && shapes[j].role == QUERN_IN &&
                              is_same_view(&shapes[i], &bound[i], &shapes[j], &bound[j]);
            if (!is_allowed && qn_arrays_share(&shapes[i], &bound[i], &shapes[j], &bound[j]))
                return refuse_overlap(family, i, j, bound, why);
        }
    }
    return QUERN_OK;
}

/* ---- The gate ------------------------------------------------------------------------------ */

int qn_arrays_bind(const struct quern_spec *spec, const struct quern_array *arrays,
                   struct quern_array bound[QUERN_MAX_ARRAYS], struct quern_message *why)
{
    const struct quern_family *family = spec->family;
    struct quern_shape shapes[QUERN_MAX_ARRAYS];
    int64_t spans[QUERN_MAX_ARRAYS];
    if (!arrays)
        return quern_refuse(why, "arrays=NULL: must be %d arrays", family->array_count);
    for (int i = 0; i < family->array_count; i++) {
        const char *name = family->arrays[i].name;
        struct quern_shape *shape = &shapes[i];
        family->shape(spec, i, shape);
        spans[i] = 0;
        bound[i].data = shape->role == QUERN_ABSENT ? NULL : arrays[i].data;
        bound[i].size_bytes = arrays[i].size_bytes;
        if (shape->role == QUERN_ABSENT) {
            if (arrays[i].data)
                return quern_refuse(why, "%s=%p: must be NULL, as this spec has no %s", name,
                                    arrays[i].data, name);
            bound[i].rank = 0;
            continue;
        }
        if (arrays[i].rank == 0) {
            strides_dense(shape, &bound[i]);
        } else {
            QN_TRY(strides_given(name, shape, &arrays[i], &bound[i], why));
            QN_TRY(check_strides(name, shape, &bound[i], why));
            if (shape->role != QUERN_IN)
                QN_TRY(check_distinct(name, shape, &bound[i], why));
        }
        spans[i] = qn_array_span(shape, &bound[i]);
        QN_TRY(check_memory(name, shape, &bound[i], spans[i], why));
    }
    return check_overlaps(family, shapes, bound, spans, why);
}

int qn_pointer_check(struct quern_context *ctx, const char *name, const void *data,
                     struct quern_message *why)
{
    struct quern_message what;
    int status = ctx->backend->check_pointer(ctx->device, data, &what);
    if (!status)
        return QUERN_OK;
    if (status != QUERN_INVALID) {
        *why = what; /* the device's own trouble */
        return status;
    }
    return quern_refuse(why, "%s=%p: %.300s; must be memory of %s:%d", name, data, what.text,
                        ctx->backend->name, ctx->ordinal);
}

int qn_call_bind(struct quern_context *ctx, const struct quern_spec *spec,
                 const struct quern_array *arrays, struct quern_array bound[QUERN_MAX_ARRAYS],
                 struct quern_message *why)
{
    const struct quern_family *family = spec->family;
    QN_TRY(qn_arrays_bind(spec, arrays, bound, why));
    for (int i = 0; i < family->array_count && ctx->backend->kind != QUERN_CPU; i++) {
        struct quern_shape shape;
        if (!bound[i].data)
            continue;
        family->shape(spec, i, &shape);
        if (!is_empty(&shape))
            QN_TRY(qn_pointer_check(ctx, family->arrays[i].name, bound[i].data, why));
    }
    return QUERN_OK;
}
