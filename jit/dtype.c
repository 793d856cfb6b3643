/* float64 <-> dtype.
 *
 * A small float is sign | exponent | mantissa with M mantissa bits, its least normal exponent EMIN
 * and a bias of 1 - EMIN:
 *
 *              M  EMIN   top
 *     bf16     7  -126   0x7f80 = Inf
 *     f16     10   -14   0x7c00 = Inf
 *     e5m2     2   -14   0x7c   = Inf
 *     e4m3     3    -6   0x7f   = NaN, no Inf (the "fn" format)
 *
 * encode, for |x| of a float64 and its 64 bits:
 *   1. normal: keep M of the 52 mantissa bits. Adding (half an ulp - 1 + the bit kept last) and
 *      cutting rounds to nearest even; a carry runs into the exponent, which is what it should do.
 *      Subtracting the difference of the biases leaves the small float's bits.
 *   2. subnormal (|x| < 2^EMIN): adding 2^(EMIN - M + 52) makes the float64 unit round at the small
 *      float's last place; the low bits of the sum are the result. The sum may reach 2^EMIN: again
 *      the carry is right.
 *   3. past the top: Inf, or NaN where the format has no Inf. NaN stays a quiet NaN.
 * Both 1 and 2 are computed and one is selected: no branch, so that the loops vectorise.
 *
 * decode: f16 is its bits moved to a float32's place, times 2^112 to mend the bias, which also
 * makes subnormals right; e5m2 is the upper half of an f16, e4m3 is one with its exponent moved.
 *
 * Bulk calls run dtype-specialised loops, long ones on all threads. The default rounding mode is
 * assumed, and that subnormals are not flushed.
 */
#include <math.h>
#include <string.h>

#include "jit/dtype.h"

#define PARALLEL_COUNT 65536 /* fewer elements are not worth waking threads for */
#define ALWAYS_INLINE static inline __attribute__((always_inline))

#define FLOAT64_MANTISSA 52
#define FLOAT64_BIAS 1023
#define FLOAT64_INF UINT64_C(0x7ff0000000000000)

ALWAYS_INLINE uint64_t bits_of(double value)
{
    uint64_t bits;
    memcpy(&bits, &value, sizeof(bits));
    return bits;
}

ALWAYS_INLINE double double_of(uint64_t bits)
{
    double value;
    memcpy(&value, &bits, sizeof(value));
    return value;
}

ALWAYS_INLINE float float_of(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof(value));
    return value;
}

/* The numbers of the steps are the essay's. `over` is what a magnitude at or past `top` becomes. */
ALWAYS_INLINE uint32_t encode_small(double value, int mantissa, int emin, uint32_t top,
                                    uint32_t over, uint32_t nan, int sign_bit)
{
    uint64_t bits = bits_of(value);
    uint64_t magnitude = bits & ~(UINT64_C(1) << 63);
    uint32_t sign = (uint32_t)(bits >> 63) << sign_bit;

    int drop = FLOAT64_MANTISSA - mantissa;
    uint64_t rounded = magnitude + ((UINT64_C(1) << (drop - 1)) - 1) + ((magnitude >> drop) & 1);
    uint64_t rebias = (uint64_t)(FLOAT64_BIAS - (1 - emin)) << mantissa;
    uint64_t normal = (rounded >> drop) - rebias; /* 1 */

    double magic = double_of((uint64_t)(FLOAT64_BIAS + emin - mantissa + FLOAT64_MANTISSA)
                             << FLOAT64_MANTISSA);
    uint64_t subnormal = bits_of(double_of(magnitude) + magic) - bits_of(magic); /* 2 */

    uint64_t least = (uint64_t)(FLOAT64_BIAS + emin) << FLOAT64_MANTISSA;
    uint64_t result = magnitude < least ? subnormal : normal;
    result = magnitude >= least && result >= top ? over : result; /* 3 */
    result = magnitude > FLOAT64_INF ? nan : result;
    return sign | (uint32_t)result;
}

ALWAYS_INLINE uint16_t encode_bf16(double value)
{
    return (uint16_t)encode_small(value, 7, -126, 0x7f80, 0x7f80, 0x7fc0, 15);
}

ALWAYS_INLINE uint16_t encode_f16(double value)
{
    return (uint16_t)encode_small(value, 10, -14, 0x7c00, 0x7c00, 0x7e00, 15);
}

ALWAYS_INLINE uint8_t encode_e5m2(double value)
{
    return (uint8_t)encode_small(value, 2, -14, 0x7c, 0x7c, 0x7e, 7);
}

ALWAYS_INLINE uint8_t encode_e4m3(double value)
{
    return (uint8_t)encode_small(value, 3, -6, 0x7f, 0x7f, 0x7f, 7);
}

ALWAYS_INLINE double decode_bf16(uint16_t bits)
{
    return float_of((uint32_t)bits << 16);
}

ALWAYS_INLINE double decode_f16(uint16_t bits)
{
    uint32_t magnitude = bits & 0x7fffu, sign = (uint32_t)(bits & 0x8000u) << 16;
    float scaled = float_of(magnitude << 13) * 0x1p112f;
    float special = float_of(magnitude << 13 | 0x7f800000u);
    float absolute = magnitude >= 0x7c00 ? special : scaled;
    return sign ? -absolute : absolute;
}

ALWAYS_INLINE double decode_e5m2(uint8_t bits)
{
    return decode_f16((uint16_t)((unsigned)bits << 8));
}

ALWAYS_INLINE double decode_e4m3(uint8_t bits)
{
    unsigned magnitude = bits & 0x7fu;
    double absolute = decode_f16((uint16_t)(magnitude << 7)) * 256;
    absolute = magnitude == 0x7f ? (double)NAN : absolute;
    return bits & 0x80 ? -absolute : absolute;
}

ALWAYS_INLINE double clamp_round(double value, double low, double high)
{
    double rounded = rint(value);
    return rounded != rounded ? 0 : rounded < low ? low : rounded > high ? high : rounded;
}

/* 2^63 is no int64_t, and the largest one is no float64. */
ALWAYS_INLINE int64_t encode_i64(double value)
{
    return value >= 0x1p63 ? INT64_MAX : (int64_t)clamp_round(value, -0x1p63, 0x1p63);
}

/* ---- One loop a dtype ---------------------------------------------------------------------- */

/* name, type of an element, decoded value of x, encoded value of v */
#define DTYPE_CODECS(X)                                                                            \
    X(F32, float, (double)x, (float)v)                                                             \
    X(BF16, uint16_t, decode_bf16(x), encode_bf16(v))                                              \
    X(F16, uint16_t, decode_f16(x), encode_f16(v))                                                 \
    X(F64, double, x, v)                                                                           \
    X(E4M3, uint8_t, decode_e4m3(x), encode_e4m3(v))                                               \
    X(E5M2, uint8_t, decode_e5m2(x), encode_e5m2(v))                                               \
    X(I8, int8_t, (double)x, (int8_t)clamp_round(v, INT8_MIN, INT8_MAX))                           \
    X(U8, uint8_t, (double)x, (uint8_t)clamp_round(v, 0, UINT8_MAX))                               \
    X(I32, int32_t, (double)x, (int32_t)clamp_round(v, INT32_MIN, INT32_MAX))                      \
    X(I64, int64_t, (double)x, encode_i64(v))

#define X(name, type, decoded, encoded)                                                            \
    static void decode_##name(const void *from, int64_t count, double *values)                     \
    {                                                                                              \
        const type *source = from;                                                                 \
        _Pragma("omp simd") for (int64_t i = 0; i < count; i++)                                    \
        {                                                                                          \
            type x = source[i];                                                                    \
            values[i] = decoded;                                                                   \
        }                                                                                          \
    }                                                                                              \
    static void encode_##name(const double *values, int64_t count, void *to)                       \
    {                                                                                              \
        type *target = to;                                                                         \
        _Pragma("omp simd") for (int64_t i = 0; i < count; i++)                                    \
        {                                                                                          \
            double v = values[i];                                                                  \
            target[i] = encoded;                                                                   \
        }                                                                                          \
    }
DTYPE_CODECS(X)
#undef X

struct codec {
    void (*decode)(const void *from, int64_t count, double *values);
    void (*encode)(const double *values, int64_t count, void *to);
};

static const struct codec codecs[QUERN_DTYPE_COUNT] = {
#define X(name, type, decoded, encoded) [QUERN_##name] = { decode_##name, encode_##name },
    DTYPE_CODECS(X)
#undef X
};

static const struct codec *codec_of(int dtype)
{
    bool is_known = dtype > QUERN_NONE && dtype < QUERN_DTYPE_COUNT;
    return is_known ? &codecs[dtype] : NULL;
}

bool qn_dtype_is_float(int dtype)
{
    return dtype >= QUERN_F32 && dtype <= QUERN_E5M2;
}

void qn_dtype_decode(int dtype, const void *from, int64_t count, double *values)
{
    const struct codec *codec = codec_of(dtype);
    size_t bytes = quern_dtype_bytes(dtype);

    if (!codec)
        return;
    if (count < PARALLEL_COUNT) {
        codec->decode(from, count, values);
        return;
    }
#pragma omp parallel for
    for (int64_t first = 0; first < count; first += PARALLEL_COUNT) {
        int64_t part = count - first < PARALLEL_COUNT ? count - first : PARALLEL_COUNT;
        codec->decode((const char *)from + (size_t)first * bytes, part, values + first);
    }
}

void qn_dtype_encode(int dtype, const double *values, int64_t count, void *to)
{
    const struct codec *codec = codec_of(dtype);
    size_t bytes = quern_dtype_bytes(dtype);

    if (!codec)
        return;
    if (count < PARALLEL_COUNT) {
        codec->encode(values, count, to);
        return;
    }
#pragma omp parallel for
    for (int64_t first = 0; first < count; first += PARALLEL_COUNT) {
        int64_t part = count - first < PARALLEL_COUNT ? count - first : PARALLEL_COUNT;
        codec->encode(values + first, part, (char *)to + (size_t)first * bytes);
    }
}

double qn_dtype_get(int dtype, const void *from)
{
    double value = (double)NAN;
    qn_dtype_decode(dtype, from, 1, &value);
    return value;
}

double qn_dtype_round(int dtype, double value)
{
    unsigned char bits[sizeof(double)];
    qn_dtype_encode(dtype, &value, 1, bits);
    return qn_dtype_get(dtype, bits);
}
