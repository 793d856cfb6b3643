/* A row of `d` elements normalised, and gated unless act is KDA_NORM_UNGATED:
 *
 *     1. the sum of its squares, in vectors, their lanes added as a tree
 *     2. the row again, now from the cache, times 1 / sqrt(sum + eps) and what gates it
 *
 * An element of out is written after the same one of x and z has been read. */
#ifndef KDA_NORM_ROW_H
#define KDA_NORM_ROW_H
#include "common/cpu/dtype.h"
#include "common/cpu/exp.h"
#include "kda_norm_args.h"

/* All but the pointers are constants. */
struct norm_row {
    int dtype, z_dtype, weight_dtype, act;
    int64_t d;
};

/* VW elements, or the last of a row, which come with zeros. */
INLINE vec_f32 norm_load(const int dtype, const void *row, int64_t column, const int64_t d)
{
    const void *p = element(dtype, row, column);
    return column + VW <= d ? load_as_f32(dtype, p) : load_part_as_f32(dtype, p, d % VW);
}

INLINE void normalise(const struct norm_row kind, const void *x, const void *z, const void *weight,
                      void *out, float eps)
{
    const int is_gated = kind.act != KDA_NORM_UNGATED;
    /* 1. */
    vec_f32 sum = { 0 };
    for (int64_t i = 0; i < kind.d; i += VW) {
        vec_f32 v = norm_load(kind.dtype, x, i, kind.d);
        sum += v * v;
    }
    float square = sum_lanes(sum); /* the root of a whole vector would take as long as the row */
    square = is_gated ? square * (1.0f / (float)kind.d) : square;
    float factor = 1.0f / __builtin_elementwise_sqrt(square + eps);

    /* 2. */
    for (int64_t i = 0; i < kind.d; i += VW) {
        vec_f32 v = norm_load(kind.dtype, x, i, kind.d) * factor;
        if (is_gated) {
            vec_f32 gate = norm_load(kind.z_dtype, z, i, kind.d);
            v *= norm_load(kind.weight_dtype, weight, i, kind.d);
            v = kind.act == KDA_NORM_SILU ? v * gate * sigmoid_f32(gate) : v * sigmoid_f32(gate);
        }
        void *to = (void *)element(kind.dtype, out, i);
        if (i + VW <= kind.d)
            store_from_f32(kind.dtype, to, v);
        else
            store_part_from_f32(kind.dtype, to, v, kind.d % VW);
    }
}
#endif
