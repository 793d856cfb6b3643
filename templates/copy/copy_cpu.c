/* out[i] = alpha x[i], or out[i] += alpha x[i]: one block of the grid handles args->block elements.
 *
 * The file is compiled alone, after the plan's #defines; the defaults below let clang check it as
 * it stands. A template includes no system header and its object imports nothing but memcpy and
 * memset.
 */
#include "common/cpu/dtype.h"
#include "copy_args.h"

#ifndef DTYPE
#define DTYPE DT_F32
#endif
#ifndef INPLACE
#define INPLACE 0
#endif
#ifndef HAS_ALPHA
#define HAS_ALPHA 0
#endif

/* The new value of VW elements of out, given the old. */
INLINE vec_f32 combine(vec_f32 x, vec_f32 out, float alpha)
{
    if (HAS_ALPHA)
        x *= alpha;
    return INPLACE ? out + x : x;
}

void copy_main(const struct copy_args *args, uint32_t x, uint32_t y, uint32_t z)
{
    (void)y, (void)z;
    int64_t begin = (int64_t)x * args->block, end = begin + args->block;
    if (end > args->n)
        end = args->n;

    if (!INPLACE && !HAS_ALPHA) {
        if (begin < end)
            __builtin_memcpy((void *)element(DTYPE, args->out, begin),
                             element(DTYPE, args->x, begin), (end - begin) * DT_SIZE(DTYPE));
        return;
    }

    /* 1. Whole vectors. */
    int64_t i = begin;
    for (; i + VW <= end; i += VW) {
        void *out = (void *)element(DTYPE, args->out, i);
        vec_f32 value = load_as_f32(DTYPE, element(DTYPE, args->x, i));
        store_from_f32(DTYPE, out, combine(value, load_as_f32(DTYPE, out), args->alpha));
    }

    /* 2. What is left: never a byte past the end. */
    if (i < end) {
        void *out = (void *)element(DTYPE, args->out, i);
        vec_f32 value = load_part_as_f32(DTYPE, element(DTYPE, args->x, i), end - i);
        vec_f32 old = load_part_as_f32(DTYPE, out, end - i);
        store_part_from_f32(DTYPE, out, combine(value, old, args->alpha), end - i);
    }
}
