/* Inputs drawn by the library: what `quern run` and the tuner use when nobody gives arrays.
 *
 * The default draw is counter-based: element i of array a depends on (seed, a, i) only, so that it
 * is the same for any number of threads and a longer array begins with the shorter one. Floats are
 * uniform in [-1, 1) and rounded to the dtype; integers are 0 or 1, valid whatever they index. A
 * family whose arrays must be more than that (page tables, cumulative lengths) draws its own.
 */
#include "jit/context.h"

#include "jit/dtype.h"
#include "jit/mix.h"

#define BLOCK 4096 /* elements drawn at a time, on the stack */

static uint64_t draw(uint64_t stream, int64_t element)
{
    return qn_mix(stream + (uint64_t)element * UINT64_C(0x9e3779b97f4a7c15));
}

static void draw_block(uint64_t stream, bool is_float, int64_t first, int64_t count, double *values)
{
    for (int64_t i = 0; i < count; i++) {
        uint64_t bits = draw(stream, first + i);
        values[i] = is_float ? (double)(bits >> 11) * 0x1p-52 - 1 : (double)(bits >> 63);
    }
}

static void draw_default(const struct quern_shape *shape, int index, uint64_t seed, void *data)
{
    const int64_t total = qn_shape_count(shape);
    const int64_t bytes = (int64_t)quern_dtype_bytes(shape->dtype);
    const uint64_t stream = qn_mix(seed ^ qn_mix((uint64_t)index + 1));
    const bool is_float = qn_dtype_is_float(shape->dtype);
#pragma omp parallel for schedule(static)
    for (int64_t first = 0; first < total; first += BLOCK) {
        double values[BLOCK];
        int64_t count = total - first < BLOCK ? total - first : BLOCK;
        draw_block(stream, is_float, first, count, values);
        qn_dtype_encode(shape->dtype, values, count, (char *)data + first * bytes);
    }
}

int quern_fill(struct quern_context *ctx, const struct quern_spec *spec, int index, uint64_t seed,
               void *data)
{
    struct quern_shape shape;
    QN_TRY(quern_spec_validate(ctx, spec));
    QN_TRY(quern_spec_shape(ctx, spec, index, &shape));
    if (shape.role == QUERN_ABSENT || qn_shape_count(&shape) == 0)
        return QUERN_OK;
    if (!data)
        return qn_fail(ctx, QUERN_INVALID, "data=NULL: must point to %lld elements of %s",
                       (long long)qn_shape_count(&shape), spec->family->arrays[index].name);
    if (!spec->family->inputs || !spec->family->inputs(spec, index, seed, data))
        draw_default(&shape, index, seed, data);
    return QUERN_OK;
}
