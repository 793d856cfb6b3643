/* Array arguments: the caller's {data, strides} against the shapes that the spec asks for.
 *
 * qn_arrays_bind() is the one gate: behind it every array has its family's rank, strides that stay
 * inside 63 bits, elements of outputs that do not overlap, memory enough where its size is known,
 * and a base aligned to its element; no output shares memory with another array, unless it lies
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

/* Outputs against all others. A span runs from the first byte to the last one, whatever lies
 * between its rows. Differences are modulo 2^64: one begins inside the other. */
static int check_overlaps(const struct quern_family *family, const struct quern_shape *shapes,
                          const struct quern_array *bound, const int64_t *spans,
                          struct quern_message *why)
{
    for (int i = 0; i < family->array_count; i++) {
        if (!spans[i] || shapes[i].role == QUERN_IN)
            continue;
        uint64_t begin = (uint64_t)(uintptr_t)bound[i].data;
        for (int j = 0; j < family->array_count; j++) {
            uint64_t other = (uint64_t)(uintptr_t)bound[j].data;
            if (j == i || !spans[j] ||
                (other - begin >= (uint64_t)spans[i] && begin - other >= (uint64_t)spans[j]))
                continue;
            bool is_allowed = family->aliasable >> i & 1 && shapes[j].role == QUERN_IN &&
                              is_same_view(&shapes[i], &bound[i], &shapes[j], &bound[j]);
            if (!is_allowed)
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
