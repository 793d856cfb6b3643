/* silu_and_mul: block (x, y) of the grid handles args->rows rows and args->columns columns of out;
 * with a factor a row all of them.
 *
 *     none     v to dtype, a vector at a time
 *     group    128 values of v on the stack, their factor, their codes
 *     row      v is computed twice: for the factor, and for the codes; x is in a cache by then */
#include "activation/silu_and_mul_args.h"
#include "common/cpu/activation.h"
#include "common/cpu/dtype.h"
#include "common/cpu/e4m3.h"

#ifndef DTYPE
#define DTYPE DT_BF16
#endif
#ifndef ACTIVATION
#define ACTIVATION ACTIVATION_SILU
#endif
#ifndef QUANTIZE
#define QUANTIZE 0
#endif
#ifndef GROUP
#define GROUP 0
#endif

#define IS_E4M3 (QUANTIZE == 1)
#define MOST (IS_E4M3 ? SILU_MUL_E4M3_MOST : SILU_MUL_I8_MOST)

/* A row of x: what v is computed from. */
struct row {
    const void *gate, *up;
    float limit, alpha;
};

INLINE vec_f32 load_some(const void *base, int64_t i, int64_t count)
{
    const void *p = element(DTYPE, base, i);
    return count >= VW ? load_as_f32(DTYPE, p) : load_part_as_f32(DTYPE, p, count);
}

/* VW values of v from column i; `count` of them mean something. */
INLINE vec_f32 value_at(const struct row *row, int64_t i, int64_t count)
{
    return activate(ACTIVATION, load_some(row->gate, i, count), load_some(row->up, i, count),
                    row->limit, row->alpha);
}

/* The greater magnitude, lane by lane; NaN is left out. */
INLINE vec_f32 greater(vec_f32 most, vec_f32 value)
{
    vec_f32 magnitude = (vec_f32)((vec_u32)value & 0x7fffffff);
    return select_f32(magnitude > most, magnitude, most);
}

INLINE float factor_of(vec_f32 most)
{
    float lanes[VW], largest = 0;
    store_u32(lanes, (vec_u32)most);
    for (int i = 0; i < VW; i++)
        largest = lanes[i] > largest ? lanes[i] : largest;
    largest /= MOST;
    return largest > SILU_MUL_LEAST ? largest : SILU_MUL_LEAST;
}

/* Lanes to nearest even, beyond 127 to 127 with their sign, NaN to 0. */
INLINE vec_u8 i8_from_f32(vec_f32 value)
{
    value = select_f32(value != value, splat_f32(0), value);
    vec_i32 whole = __builtin_convertvector(round_f32(clamp_f32(value, -127, 127)), vec_i32);
    return __builtin_convertvector((vec_u32)whole & 0xff, vec_u8);
}

INLINE void put_codes(uint8_t *to, vec_f32 value, float inverse, int64_t count)
{
    value *= inverse;
    store_codes(to, IS_E4M3 ? e4m3_from_f32(value) : i8_from_f32(value), count);
}

/* Columns [begin, end) of a row that is not quantized. */
static void plain(const struct row *row, void *out, int64_t begin, int64_t end)
{
    int64_t i = begin;
    for (; i + VW <= end; i += VW)
        store_from_f32(DTYPE, (void *)element(DTYPE, out, i), value_at(row, i, VW));
    if (i < end)
        store_part_from_f32(DTYPE, (void *)element(DTYPE, out, i), value_at(row, i, end - i),
                            end - i);
}

static void quantize_group(const struct row *row, uint8_t *out, float *scale, int64_t begin)
{
    vec_f32 values[SILU_MUL_GROUP / VW], most = splat_f32(0);
    for (int i = 0; i < SILU_MUL_GROUP / VW; i++) {
        values[i] = value_at(row, begin + i * VW, VW);
        most = greater(most, values[i]);
    }
    *scale = factor_of(most);
    for (int i = 0; i < SILU_MUL_GROUP / VW; i++)
        put_codes(out + begin + i * VW, values[i], 1.0f / *scale, VW);
}

static void quantize_row(const struct row *row, uint8_t *out, float *scale, int64_t width)
{
    const int64_t whole = width / VW * VW;
    vec_f32 most = splat_f32(0);
    for (int64_t i = 0; i < whole; i += VW)
        most = greater(most, value_at(row, i, VW));
    if (whole < width) /* lanes beyond the row are 0, and so is their v */
        most = greater(most, value_at(row, whole, width - whole));
    *scale = factor_of(most);
    for (int64_t i = 0; i < width; i += VW)
        put_codes(out + i, value_at(row, i, width - i), 1.0f / *scale, width - i);
}

void silu_and_mul_main(const struct silu_and_mul_args *args, uint32_t x, uint32_t y, uint32_t z)
{
    (void)z;
    int64_t token = (int64_t)x * args->rows, last = token + args->rows;
    int64_t begin = (int64_t)y * args->columns, end = begin + args->columns;
    last = last < args->tokens ? last : args->tokens;
    end = end < args->width ? end : args->width;
    for (; token < last; token++) {
        const void *gate = element(DTYPE, args->x, token * args->x_row);
        struct row row = { gate, element(DTYPE, gate, args->width), args->limit, args->alpha };
        uint8_t *codes = (uint8_t *)args->out + token * args->out_row;
        if (!QUANTIZE)
            plain(&row, (void *)element(DTYPE, args->out, token * args->out_row), begin, end);
        else if (!GROUP)
            quantize_row(&row, codes, args->scales + token * args->scales_row, args->width);
        for (int64_t i = begin; GROUP && i < end; i += SILU_MUL_GROUP)
            quantize_group(&row, codes,
                           args->scales + token * args->scales_row + i / SILU_MUL_GROUP, i);
    }
}
