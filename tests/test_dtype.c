/* float64 <-> dtype, and the default draw. The oracle spells each format out from its bits. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common.h"
#include "jit/dtype.h"

struct format {
    int dtype, bits, mantissa, emin;
    bool has_inf;
};

static const struct format formats[] = {
    { QUERN_BF16, 16, 7, -126, true },
    { QUERN_F16, 16, 10, -14, true },
    { QUERN_E5M2, 8, 2, -14, true },
    { QUERN_E4M3, 8, 3, -6, false },
};
#define FORMATS ((int)(sizeof(formats) / sizeof(formats[0])))

/* What the bits mean, by the book. */
static double oracle_decode(const struct format *format, unsigned bits)
{
    unsigned magnitude = bits & ((1u << (format->bits - 1)) - 1);
    unsigned exponent = magnitude >> format->mantissa;
    unsigned fraction = magnitude & ((1u << format->mantissa) - 1);
    unsigned top = (1u << (format->bits - 1 - format->mantissa)) - 1;
    double sign = bits >> (format->bits - 1) ? -1 : 1, value;
    if (exponent == top && format->has_inf)
        return fraction ? (double)NAN : sign * (double)INFINITY;
    if (!format->has_inf && magnitude == (1u << (format->bits - 1)) - 1)
        return (double)NAN;
    if (exponent)
        value = ldexp(1 + ldexp(fraction, -format->mantissa), (int)exponent - 1 + format->emin);
    else
        value = ldexp(fraction, format->emin - format->mantissa);
    return sign * value;
}

static unsigned decode_bits(const struct format *format, const void *data)
{
    uint16_t wide;
    uint8_t narrow;
    memcpy(&wide, data, format->bits / 8 == 2 ? 2 : 1);
    memcpy(&narrow, data, 1);
    return format->bits == 16 ? wide : narrow;
}

static unsigned encode_one(const struct format *format, double value)
{
    unsigned char data[8] = { 0 };
    qn_dtype_encode(format->dtype, &value, 1, data);
    return decode_bits(format, data);
}

/* Largest finite magnitude's bits. */
static unsigned largest(const struct format *format)
{
    unsigned all = (1u << (format->bits - 1)) - 1;
    return format->has_inf ? (all >> format->mantissa << format->mantissa) - 1 : all - 1;
}

/* Nearest by search over all magnitudes; ties to the even one. */
static double oracle_round(const struct format *format, double value)
{
    if (isnan(value))
        return value;
    double magnitude = fabs(value);
    unsigned low = 0, high = largest(format);
    double top = oracle_decode(format, high);
    double half = (top - oracle_decode(format, high - 1)) / 2;
    if (magnitude > top + half || (magnitude == top + half && high % 2))
        return format->has_inf ? copysign((double)INFINITY, value) : (double)NAN;
    while (low < high) { /* the largest that is not above */
        unsigned middle = (low + high + 1) / 2;
        if (oracle_decode(format, middle) <= magnitude)
            low = middle;
        else
            high = middle - 1;
    }
    double below = oracle_decode(format, low), above = oracle_decode(format, low + 1);
    if (low == largest(format))
        return copysign(below, value);
    bool is_up = magnitude - below > above - magnitude ||
                 (magnitude - below == above - magnitude && low % 2);
    return copysign(is_up ? above : below, value);
}

static bool is_same(double a, double b)
{
    return isnan(a) ? isnan(b) : a == b && signbit(a) == signbit(b);
}

static void rounds_like_oracle(const struct format *format, double value)
{
    double want = oracle_round(format, value), got = qn_dtype_round(format->dtype, value);
    ck_assert_msg(is_same(want, got), "%s of %a: wanted %a, got %a",
                  quern_dtype_name(format->dtype), value, want, got);
}

START_TEST(every_bit_pattern_decodes_as_its_format_says)
{
    for (int f = 0; f < FORMATS; f++) {
        for (unsigned bits = 0; bits < 1u << formats[f].bits; bits++) {
            uint16_t wide = (uint16_t)bits;
            uint8_t narrow = (uint8_t)bits;
            double got = qn_dtype_get(formats[f].dtype,
                                      formats[f].bits == 16 ? (void *)&wide : (void *)&narrow);
            double want = oracle_decode(&formats[f], bits);
            ck_assert_msg(is_same(want, got), "%s %#x: wanted %a, got %a",
                          quern_dtype_name(formats[f].dtype), bits, want, got);
        }
    }
}
END_TEST

START_TEST(every_value_encodes_to_itself)
{
    for (int f = 0; f < FORMATS; f++) {
        for (unsigned bits = 0; bits < 1u << formats[f].bits; bits++) {
            double value = oracle_decode(&formats[f], bits);
            if (isnan(value))
                ck_assert(isnan(oracle_decode(&formats[f], encode_one(&formats[f], value))));
            else
                ck_assert_uint_eq(encode_one(&formats[f], value), bits);
        }
    }
}
END_TEST

START_TEST(what_lies_between_rounds_to_nearest_even)
{
    for (int f = 0; f < FORMATS; f++) {
        for (unsigned bits = 0; bits < largest(&formats[f]); bits++) {
            double low = oracle_decode(&formats[f], bits);
            double high = oracle_decode(&formats[f], bits + 1), middle = low + (high - low) / 2;
            rounds_like_oracle(&formats[f], middle);
            rounds_like_oracle(&formats[f], -middle);
            rounds_like_oracle(&formats[f], nextafter(middle, high));
            rounds_like_oracle(&formats[f], nextafter(middle, low));
        }
    }
}
END_TEST

START_TEST(overflow_gives_inf_and_nan_where_there_is_none)
{
    for (int f = 0; f < FORMATS; f++) {
        double top = oracle_decode(&formats[f], largest(&formats[f]));
        double half = (top - oracle_decode(&formats[f], largest(&formats[f]) - 1)) / 2;
        const double values[] = {
            top + half, nextafter(top + half, 0), nextafter(top + half, (double)INFINITY),
            1e300,      (double)INFINITY,         2 * top
        };
        for (size_t i = 0; i < sizeof(values) / sizeof(values[0]); i++) {
            rounds_like_oracle(&formats[f], values[i]);
            rounds_like_oracle(&formats[f], -values[i]);
        }
        ck_assert(isnan(qn_dtype_round(formats[f].dtype, (double)NAN)));
    }
    ck_assert_double_eq(qn_dtype_round(QUERN_E4M3, 464), 448); /* a tie: 448 is even */
}
END_TEST

START_TEST(tiny_and_random_values_round_to_nearest_even)
{
    uint64_t seed = common_seed();
    for (int f = 0; f < FORMATS; f++) {
        rounds_like_oracle(&formats[f], 0x1p-1074);
        rounds_like_oracle(&formats[f], -0x1p-1022);
        rounds_like_oracle(&formats[f], -0.0);
        for (int i = 0; i < 20000; i++) {
            double value = ldexp((double)common_random(&seed) / 0x1p63,
                                 (int)common_between(&seed, formats[f].emin - 14, 20));
            rounds_like_oracle(&formats[f], i % 2 ? value : -value);
        }
    }
}
END_TEST

START_TEST(rounding_happens_once_and_not_by_way_of_f32)
{
    /* Just above a bf16 tie; f32 would drop the last bits and then round down. */
    double value = 1 + 0x1p-8 + 0x1p-40;
    ck_assert_double_eq(qn_dtype_round(QUERN_BF16, value), 1 + 0x1p-7);
    ck_assert_double_eq(qn_dtype_round(QUERN_F16, 1 + 0x1p-11 + 0x1p-40), 1 + 0x1p-10);
}
END_TEST

START_TEST(integers_saturate_and_round_half_to_even)
{
    static const struct {
        int dtype;
        double value, result;
    } cases[] = {
        { QUERN_I8, 127.6, 127 },
        { QUERN_I8, -1e9, -128 },
        { QUERN_U8, -3, 0 },
        { QUERN_U8, 254.5, 254 },
        { QUERN_U8, 255.5, 255 },
        { QUERN_I32, 2.5, 2 },
        { QUERN_I32, 3.5, 4 },
        { QUERN_I32, 1e300, 2147483647 },
        { QUERN_I64, -1e300, -0x1p63 },
        { QUERN_I64, 1e300, 0x1p63 },
        { QUERN_I64, -7, -7 },
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
        ck_assert_double_eq(qn_dtype_round(cases[i].dtype, cases[i].value), cases[i].result);
    ck_assert_double_eq(qn_dtype_round(QUERN_I32, (double)NAN), 0);
    ck_assert(isnan(qn_dtype_get(QUERN_NONE, &cases[0])));
}
END_TEST

START_TEST(bulk_and_single_calls_agree_for_every_dtype)
{
    enum { COUNT = 200003 };
    uint64_t seed = common_seed();
    double *values = malloc(COUNT * sizeof(*values)), *back = malloc(COUNT * sizeof(*back));
    unsigned char *data = malloc(COUNT * 8);
    for (int dtype = QUERN_F32; dtype < QUERN_DTYPE_COUNT; dtype++) {
        size_t bytes = quern_dtype_bytes(dtype);
        for (int i = 0; i < COUNT; i++)
            values[i] = (double)(int64_t)common_random(&seed) * 0x1p-55;
        qn_dtype_encode(dtype, values, COUNT, data);
        qn_dtype_decode(dtype, data, COUNT, back);
        for (int i = 0; i < COUNT; i += 61) {
            ck_assert_double_eq(back[i], qn_dtype_get(dtype, data + (size_t)i * bytes));
            ck_assert_double_eq(back[i], qn_dtype_round(dtype, values[i]));
        }
        ck_assert_double_eq(back[COUNT - 1], qn_dtype_round(dtype, values[COUNT - 1]));
    }
    free(values);
    free(back);
    free(data);
}
END_TEST

/* ---- quern_fill ---------------------------------------------------------------------------- */

START_TEST(the_default_draw_depends_on_seed_array_and_element_only)
{
    struct quern_context *ctx = common_context(NULL);
    struct quern_spec small = common_spec(ctx, "copy n=1000 dtype=f32");
    struct quern_spec large = common_spec(ctx, "copy n=100000 dtype=f32");
    static float a[100000], b[100000], c[100000], d[100000];
    assert_ok(ctx, quern_fill(ctx, &large, 0, 7, a));
    assert_ok(ctx, quern_fill(ctx, &small, 0, 7, b));
    assert_ok(ctx, quern_fill(ctx, &large, 1, 7, c));
    assert_ok(ctx, quern_fill(ctx, &large, 0, 8, d));
    ck_assert(!memcmp(a, b, 1000 * sizeof(float)));
    ck_assert(memcmp(a, c, 1000 * sizeof(float)));
    ck_assert(memcmp(a, d, 1000 * sizeof(float)));
    quern_context_destroy(ctx);
}
END_TEST

START_TEST(drawn_floats_are_uniform_in_one_unit_either_side)
{
    struct quern_context *ctx = common_context(NULL);
    struct quern_spec spec = common_spec(ctx, "copy n=200000 dtype=bf16");
    uint16_t *data = malloc(200000 * sizeof(*data));
    double sum = 0, square = 0;
    assert_ok(ctx, quern_fill(ctx, &spec, 0, common_seed(), data));
    for (int i = 0; i < 200000; i++) {
        double value = qn_dtype_get(QUERN_BF16, &data[i]);
        ck_assert(value >= -1 && value <= 1);
        sum += value;
        square += value * value;
    }
    ck_assert_double_lt(fabs(sum / 200000), 0.01);
    ck_assert_double_lt(fabs(square / 200000 - 1.0 / 3), 0.01);
    assert_refused(ctx, quern_fill(ctx, &spec, 0, 1, NULL), QUERN_INVALID, "data=NULL");
    free(data);
    quern_context_destroy(ctx);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("dtype");
    TCase *tests = tcase_create("dtype");
    tcase_set_timeout(tests, 30);
    tcase_add_test(tests, every_bit_pattern_decodes_as_its_format_says);
    tcase_add_test(tests, every_value_encodes_to_itself);
    tcase_add_test(tests, what_lies_between_rounds_to_nearest_even);
    tcase_add_test(tests, overflow_gives_inf_and_nan_where_there_is_none);
    tcase_add_test(tests, tiny_and_random_values_round_to_nearest_even);
    tcase_add_test(tests, rounding_happens_once_and_not_by_way_of_f32);
    tcase_add_test(tests, integers_saturate_and_round_half_to_even);
    tcase_add_test(tests, bulk_and_single_calls_agree_for_every_dtype);
    tcase_add_test(tests, the_default_draw_depends_on_seed_array_and_element_only);
    tcase_add_test(tests, drawn_floats_are_uniform_in_one_unit_either_side);
    suite_add_tcase(suite, tests);
    return common_main(suite);
}
