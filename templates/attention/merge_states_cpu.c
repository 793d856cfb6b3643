/* Two states of attention made one, row by row: v = (w_a v_a + w_b v_b) / (w_a + w_b), and the
 * logarithm of the sum. One of the weights is 1, that of the larger logarithm.
 *
 * What an empty state holds is not looked at: it may be anything. A row is read before it is
 * written, so the output may lie on either input. */
#include "common/cpu/dtype.h"
#include "common/cpu/exp.h"
#include "merge_states_args.h"

#ifndef H
#define H 32
#endif
#ifndef D
#define D 128
#endif
#ifndef DTYPE
#define DTYPE DT_BF16
#endif
#ifndef IS_V2
#define IS_V2 0
#endif

#define EMPTY (-__builtin_inff())

/* Shares of the two in the merged value, and its logarithm. */
struct shares {
    float a, b, s;
};

INLINE struct shares shares_of(float s_a, float s_b)
{
    if (IS_V2) {
        s_a = s_a == -EMPTY ? EMPTY : s_a;
        s_b = s_b == -EMPTY ? EMPTY : s_b;
    }
    if (s_a == EMPTY && s_b == EMPTY)
        return (struct shares){ 0, 0, EMPTY };
    float most = s_a > s_b || s_a != s_a ? s_a : s_b;
    vec_f32 less = { s_a - most, s_b - most }, w = IS_V2 ? exp_f32(less) : exp2_f32(less);
    float rest = s_a > s_b ? w[0] - 1 + w[1] : w[1] - 1 + w[0], sum = w[0] + w[1];
    float log = log1p_of_unit(splat_f32(rest))[0] * (IS_V2 ? 1 : 1.44269504f);
    return (struct shares){ s_a == EMPTY ? 0 : w[0] / sum, s_b == EMPTY ? 0 : w[1] / sum,
                            most + log };
}

INLINE vec_f32 merge(struct shares shares, vec_f32 a, vec_f32 b)
{
    vec_f32 none = splat_f32(0);
    return (shares.a == 0 ? none : a * shares.a) + (shares.b == 0 ? none : b * shares.b);
}

INLINE const void *row_of(int dtype, const struct merge_rows *rows, int64_t row)
{
    return element(dtype, rows->data, row / H * rows->token + row % H * rows->head);
}

void merge_states_main(const struct merge_states_args *args, uint32_t x, uint32_t y, uint32_t z)
{
    int64_t begin = (int64_t)x * args->block, end = begin + args->block;
    (void)y, (void)z;
    for (int64_t row = begin; row < end && row < args->rows; row++) {
        const void *v_a = row_of(DTYPE, &args->v_a, row), *v_b = row_of(DTYPE, &args->v_b, row);
        void *merged = (void *)row_of(DTYPE, &args->v_merged, row);
        struct shares shares = shares_of(*(const float *)row_of(DT_F32, &args->s_a, row),
                                         *(const float *)row_of(DT_F32, &args->s_b, row));
        *(float *)row_of(DT_F32, &args->s_merged, row) = shares.s;
        for (int i = 0; i + VW <= D; i += VW)
            store_from_f32(DTYPE, (void *)element(DTYPE, merged, i),
                           merge(shares, load_as_f32(DTYPE, element(DTYPE, v_a, i)),
                                 load_as_f32(DTYPE, element(DTYPE, v_b, i))));
        if (D % VW)
            store_part_from_f32(
                DTYPE, (void *)element(DTYPE, merged, D - D % VW),
                merge(shares, load_part_as_f32(DTYPE, element(DTYPE, v_a, D - D % VW), D % VW),
                      load_part_as_f32(DTYPE, element(DTYPE, v_b, D - D % VW), D % VW)),
                D % VW);
    }
}
