#include "jit/indices.h"

#include <stdlib.h>
#include <string.h>

/* Integer inputs with something in them. */
static bool is_index_array(const struct quern_spec *spec, const struct quern_array *bound,
                           int index, struct quern_shape *shape)
{
    spec->family->shape(spec, index, shape);
    return (shape->role == QUERN_IN || shape->role == QUERN_INOUT) && shape->dtype >= QUERN_I8 &&
           bound[index].data && qn_shape_count(shape) > 0;
}

/* Rows of the innermost dimension, which is contiguous, close up. */
static void pack(const struct quern_shape *shape, const struct quern_array *bound,
                 const char *strided, char *dense)
{
    int64_t bytes = (int64_t)quern_dtype_bytes(shape->dtype), row = shape->dims[shape->rank - 1];
    for (int64_t r = 0; r < qn_shape_count(shape) / row; r++) {
        int64_t rest = r, at = 0;
        for (int d = shape->rank - 2; d >= 0; d--) {
            at += rest % shape->dims[d] * bound->strides[d];
            rest /= shape->dims[d];
        }
        memcpy(dense + r * row * bytes, strided + at * bytes, (size_t)(row * bytes));
    }
}

static int index_array_read(struct quern_context *ctx, const struct quern_shape *shape,
                            const struct quern_array *bound, void *stream, void **data,
                            struct quern_message *why)
{
    size_t span = (size_t)qn_array_span(shape, bound);
    char *strided = malloc(span);
    char *dense = malloc((size_t)qn_shape_count(shape) * quern_dtype_bytes(shape->dtype));
    int status = QUERN_OK;
    if (!strided || !dense) {
        quern_refuse(why, "out of memory: no %zu bytes for a host copy", span);
        status = QUERN_NO_MEMORY;
    }
    if (!status)
        status = qn_copy_ordered(ctx, strided, bound->data, span, stream, why);
    if (!status)
        pack(shape, bound, strided, dense);
    free(strided);
    *data = status ? NULL : dense;
    if (status)
        free(dense);
    return status;
}

int qn_indices_read(struct quern_context *ctx, const struct quern_spec *spec,
                    const struct quern_array *bound, void *stream, struct qn_indices *indices,
                    struct quern_message *why)
{
    int status = QUERN_OK;
    memset(indices, 0, sizeof(*indices));
    for (int i = 0; i < spec->family->array_count && !status; i++) {
        struct quern_shape shape;
        if (is_index_array(spec, bound, i, &shape))
            status = index_array_read(ctx, &shape, &bound[i], stream, &indices->host[i], why);
    }
    if (status)
        qn_indices_fini(indices);
    return status;
}

void qn_indices_fini(struct qn_indices *indices)
{
    for (int i = 0; i < QUERN_MAX_ARRAYS; i++) {
        free(indices->host[i]);
        indices->host[i] = NULL;
    }
}

int qn_indices_check(const struct quern_context *ctx, const struct quern_spec *spec,
                     const struct qn_indices *indices, struct quern_message *why)
{
    const struct quern_family *family = spec->family;
    if (!ctx->is_checking || !family->check_indices)
        return QUERN_OK;
    return family->check_indices(spec, (const void *const *)indices->host, why);
}

static bool has_index_arrays(const struct quern_spec *spec, const struct quern_array *bound)
{
    struct quern_shape shape;
    int i = 0;
    while (i < spec->family->array_count && !is_index_array(spec, bound, i, &shape))
        i++;
    return i < spec->family->array_count;
}

int qn_call_check(struct quern_context *ctx, const struct quern_spec *spec,
                  const struct quern_array *bound, void *stream, struct quern_message *why)
{
    struct qn_indices indices;
    if (!spec->family->check_indices || !has_index_arrays(spec, bound))
        return QUERN_OK;
    if (ctx->backend->is_capturing(ctx->device, stream))
        return quern_refuse(why,
                            "stream=%p: is being captured, and with QUERN_CHECK=1 the index "
                            "arrays of a call are read before it: capture without",
                            stream);
    QN_TRY(qn_indices_read(ctx, spec, bound, stream, &indices, why));
    int status = qn_indices_check(ctx, spec, &indices, why);
    qn_indices_fini(&indices);
    return status;
}
