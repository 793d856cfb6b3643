/* Array arguments: the caller's {data, strides} against the shapes that the spec asks for.
 *
 * qn_arrays_bind() is the one gate: behind it every array has its family's rank, strides that stay
 * inside 63 bits, rows of outputs that do not overlap, memory enough where its size is known, and a
 * base aligned to its element. It runs on every call: no allocation, no text unless it refuses.
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

static int check_strides(const char *name, const struct quern_shape *shape,
                         const struct quern_array *bound, struct quern_message *why)
{
    int64_t inner = 1, reach = (int64_t)quern_dtype_bytes(shape->dtype), bytes;
    for (int d = shape->rank - 1; d >= 0; d--) {
        if (shape->dims[d] <= 1)
            continue;
        int64_t stride = bound->strides[d];
        if (d == shape->rank - 1 && stride != 1)
            return quern_refuse(why, "%s.strides[%d]=%lld: the innermost must be 1", name, d,
                                (long long)stride);
        bool is_short = shape->role == QUERN_IN ? stride != 0 && stride < inner : stride < inner;
        if (is_short)
            return quern_refuse(why, "%s.strides[%d]=%lld: must be at least %lld%s", name, d,
                                (long long)stride, (long long)inner,
                                shape->role == QUERN_IN ? ", or 0 to repeat" : "");
        if (__builtin_mul_overflow(shape->dims[d] - 1, stride, &bytes) ||
            __builtin_mul_overflow(bytes, (int64_t)quern_dtype_bytes(shape->dtype), &bytes) ||
            __builtin_add_overflow(reach, bytes, &reach))
            return quern_refuse(why, "%s.strides[%d]=%lld: its reach overflows 63 bits", name, d,
                                (long long)stride);
        if (stride)
            inner = stride * (shape->dims[d] - 1) + inner;
    }
    return QUERN_OK;
}

static int check_memory(const char *name, const struct quern_shape *shape,
                        const struct quern_array *bound, struct quern_message *why)
{
    size_t element = quern_dtype_bytes(shape->dtype);
    int64_t span = qn_array_span(shape, bound);
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

int qn_arrays_bind(const struct quern_spec *spec, const struct quern_array *arrays,
                   struct quern_array bound[QUERN_MAX_ARRAYS], struct quern_message *why)
{
    const struct quern_family *family = spec->family;
    if (!arrays)
        return quern_refuse(why, "arrays=NULL: must be %d arrays", family->array_count);
    for (int i = 0; i < family->array_count; i++) {
        const char *name = family->arrays[i].name;
        struct quern_shape shape;
        family->shape(spec, i, &shape);
        bound[i].data = shape.role == QUERN_ABSENT ? NULL : arrays[i].data;
        bound[i].size_bytes = arrays[i].size_bytes;
        if (shape.role == QUERN_ABSENT) {
            if (arrays[i].data)
                return quern_refuse(why, "%s=%p: must be NULL, as this spec has no %s", name,
                                    arrays[i].data, name);
            bound[i].rank = 0;
            continue;
        }
        if (arrays[i].rank == 0) {
            strides_dense(&shape, &bound[i]);
        } else {
            QN_TRY(strides_given(name, &shape, &arrays[i], &bound[i], why));
            QN_TRY(check_strides(name, &shape, &bound[i], why));
        }
        QN_TRY(check_memory(name, &shape, &bound[i], why));
    }
    return QUERN_OK;
}
