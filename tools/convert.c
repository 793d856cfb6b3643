/* Number formats of array files.
 *
 * Every binary format here is sign, exponent, fraction, with the usual bias and denormals, and so
 * is one line of a table:
 *
 *            sign exponent fraction   largest finite code
 *     f32       1        8       23   7f7fffff
 *     bf16      1        8        7   7f7f
 *     f16       1        5       10   7bff
 *     e5m2      1        5        2   7b
 *     e4m3      1        4        3   7e            no Inf: 7f is NaN and 78-7e are numbers
 *
 * Encoding goes from the double at once. Through f32 first, a value just above a tie of the narrow
 * format could be rounded twice.
 */
#include "convert.h"

#include <quern.h>

#include <math.h>
#include <string.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "files and memory are little-endian");

struct float_format {
    int exponent_bits, fraction_bits;
    uint32_t largest; /* code of the largest finite number */
    int has_infinity;
};

static const struct float_format *format_of(int dtype)
{
    static const struct float_format formats[QUERN_DTYPE_COUNT] = {
        [QUERN_F32] = { 8, 23, 0x7f7fffff, 1 }, [QUERN_BF16] = { 8, 7, 0x7f7f, 1 },
        [QUERN_F16] = { 5, 10, 0x7bff, 1 },     [QUERN_E5M2] = { 5, 2, 0x7b, 1 },
        [QUERN_E4M3] = { 4, 3, 0x7e, 0 },
    };
    return &formats[dtype];
}

int convert_is_float(int dtype)
{
    switch (dtype) {
    case QUERN_F32:
    case QUERN_F64:
    case QUERN_BF16:
    case QUERN_F16:
    case QUERN_E4M3:
    case QUERN_E5M2:
        return 1;
    default:
        return 0;
    }
}

static double decode(const struct float_format *format, uint32_t code)
{
    int fraction_bits = format->fraction_bits;
    uint32_t exponent_mask = (1u << format->exponent_bits) - 1;
    int bias = (int)(exponent_mask >> 1);
    uint32_t is_negative = code >> (format->exponent_bits + fraction_bits);
    uint32_t magnitude = code & ((1u << (format->exponent_bits + fraction_bits)) - 1);
    uint32_t exponent = magnitude >> fraction_bits;
    uint32_t fraction = magnitude & ((1u << fraction_bits) - 1);
    double value;

    if (magnitude == format->largest + 1 && format->has_infinity)
        value = INFINITY;
    else if (magnitude > format->largest)
        value = NAN;
    else if (exponent)
        value =
            ldexp(fraction + (double)(1u << fraction_bits), (int)exponent - bias - fraction_bits);
    else
        value = ldexp(fraction, 1 - bias - fraction_bits);
    return is_negative ? -value : value;
}

/* The magnitude of a finite double, given as biased exponent and fraction field, as a code. A carry
 * out of the fraction moves into the exponent by itself, which is what rounding up must do. */
static uint64_t round_magnitude(const struct float_format *format, int exponent, uint64_t fraction)
{
    int least = 2 - (1 << (format->exponent_bits - 1)); /* exponent of the least normal number */
    int unbiased = exponent - 1023;
    int lift = unbiased > least ? unbiased - least : 0;
    int shift = 52 - format->fraction_bits + (unbiased < least ? least - unbiased : 0);
    uint64_t significand = fraction | UINT64_C(1) << 52;

    if (exponent == 0 || shift > 53)
        return 0; /* less than half of the least denormal */
    uint64_t half_less_one = (UINT64_C(1) << (shift - 1)) - 1;
    uint64_t is_odd = significand >> shift & 1;
    return ((uint64_t)lift << format->fraction_bits) +
           ((significand + half_less_one + is_odd) >> shift);
}

static uint32_t encode(const struct float_format *format, double value)
{
    uint64_t bits;
    memcpy(&bits, &value, sizeof(bits));
    int exponent = (int)(bits >> 52 & 0x7ff);
    uint64_t fraction = bits & ((UINT64_C(1) << 52) - 1);
    uint32_t sign = (uint32_t)(bits >> 63) << (format->exponent_bits + format->fraction_bits);
    uint32_t infinity = format->largest + 1; /* NaN in e4m3 */
    uint32_t quiet = format->has_infinity ? 1u << (format->fraction_bits - 1) : 0;

    if (exponent == 0x7ff)
        return sign | infinity | (fraction ? quiet : 0);
    uint64_t magnitude = round_magnitude(format, exponent, fraction);
    return sign | (magnitude > format->largest ? infinity : (uint32_t)magnitude);
}

double convert_decode(int dtype, const void *bits)
{
    double value;
    float narrow;
    uint32_t code = 0;

    switch (dtype) {
    case QUERN_F64:
        memcpy(&value, bits, sizeof(value));
        return value;
    case QUERN_F32: /* what nearly every file holds: let the processor do it */
        memcpy(&narrow, bits, sizeof(narrow));
        return narrow;
    default:
        memcpy(&code, bits, quern_dtype_bytes(dtype));
        return decode(format_of(dtype), code);
    }
}

void convert_encode(int dtype, double value, void *bits)
{
    if (dtype == QUERN_F64) {
        memcpy(bits, &value, sizeof(value));
        return;
    }
    uint32_t code = encode(format_of(dtype), value);
    memcpy(bits, &code, quern_dtype_bytes(dtype));
}

void convert_copy(int to_dtype, void *to, int from_dtype, const void *from, int64_t stride,
                  int64_t count)
{
    size_t to_bytes = quern_dtype_bytes(to_dtype);
    size_t from_bytes = quern_dtype_bytes(from_dtype);
    unsigned char *target = to;
    const unsigned char *source = from;

    if (to_dtype == from_dtype && stride == 1) {
        if (count)
            memcpy(target, source, (size_t)count * to_bytes);
        return;
    }
    for (int64_t i = 0; i < count; i++, target += to_bytes, source += (size_t)stride * from_bytes) {
        if (to_dtype == from_dtype)
            memcpy(target, source, to_bytes);
        else
            convert_encode(to_dtype, convert_decode(from_dtype, source), target);
    }
}
