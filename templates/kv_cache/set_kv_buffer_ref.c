/* The obvious reference of set_kv_buffer. Where it rounds to f32, so do the kernels: an operation
 * on two f32 in float64, rounded to f32, is the f32 operation. A unit is a token. */
#define QUERN_DEF "kv_cache/set_kv_buffer.def"
#include <quern/family_def.h>

#include <float.h>
#include <math.h>
#include <string.h>

#include "set_kv_buffer.h"

/* To `mantissa` bits below the leading one, the least exponent being `least`. */
static double round_to(double value, int mantissa, int least)
{
    if (value == 0 || !isfinite(value))
        return value;
    int exponent = ilogb(value) < least ? least : ilogb(value);
    return ldexp(nearbyint(ldexp(value, mantissa - exponent)), exponent - mantissa);
}

static double round_dtype(int64_t dtype, double value)
{
    if (dtype == QUERN_F32)
        return (float)value;
    double rounded = dtype == QUERN_BF16 ? round_to(value, 7, -126) : round_to(value, 10, -14);
    double most = dtype == QUERN_BF16 ? 0x1.fep127 : 65504;
    return fabs(rounded) > most ? copysign(INFINITY, value) : rounded;
}

static double round_e4m3(double value)
{
    return fabs(value) > 448 ? copysign(448, value) : round_to(value, 3, -6);
}

/* The byte of an e4m3 value. */
static double code_of(double value)
{
    int exponent = value == 0 || ilogb(value) < -6 ? -6 : ilogb(value);
    int code = isnan(value) ? 0x7f : (exponent + 6) * 8 + (int)ldexp(fabs(value), 3 - exponent);
    return !isnan(value) && signbit(value) ? code | 0x80 : code;
}

static int64_t one(struct quern_ref *ref, int index, int64_t at)
{
    double value;
    quern_ref_read(ref, index, at, 1, &value);
    return (int64_t)value;
}

static void rotate(struct quern_ref *ref, const struct quern_spec *spec, int64_t token, double *row)
{
    const struct values *v = values_of(spec);
    const int64_t dim = set_kv_buffer_rope_dim(spec), half = dim / 2, last = v->max_position - 1;
    double *angles = quern_ref_scratch(ref, dim);
    int64_t position = one(ref, ARRAY_positions, token);
    position = position < 0 ? 0 : position < last ? position : last;
    quern_ref_read(ref, ARRAY_cos_sin, position * dim, dim, angles);
    row += set_kv_buffer_rope_first(spec);
    for (int64_t i = 0; i < half; i++) {
        double *a = &row[v->rope == KV_ROPE_GPTJ ? 2 * i : i];
        double *b = &row[v->rope == KV_ROPE_GPTJ ? 2 * i + 1 : half + i];
        double cosine = angles[i], sine = angles[half + i], left = *a, right = *b;
        *a = round_dtype(v->dtype, (float)((float)(left * cosine) - (double)(float)(right * sine)));
        *b = round_dtype(v->dtype, (float)((float)(right * cosine) + (double)(float)(left * sine)));
    }
}

/* The bytes of a token of layout=mla. NaN of the tail is 0x7fff, or the input's bits. */
static void expect_mla(struct quern_ref *ref, int64_t row, const double *k, int is_moved)
{
    double bytes[KV_MLA_BYTES], *tail = bytes + KV_MLA_BYTES - 2 * KV_MLA_TAIL;
    for (int g = 0; g < KV_MLA_CODES / KV_MLA_GROUP; g++) {
        const double *group = k + g * KV_MLA_GROUP;
        double most = 0;
        for (int i = 0; i < KV_MLA_GROUP; i++)
            most = fmax(most, fabs(group[i]));
        float factor = fmaxf((float)(most / 448), FLT_MIN);
        uint8_t stored[sizeof(factor)];
        memcpy(stored, &factor, sizeof(factor));
        for (int i = 0; i < KV_MLA_GROUP; i++)
            bytes[g * KV_MLA_GROUP + i] = code_of(round_e4m3((float)(group[i] / factor)));
        for (int i = 0; i < (int)sizeof(factor); i++)
            bytes[KV_MLA_CODES + g * 4 + i] = stored[i];
    }
    for (int i = 0; i < KV_MLA_TAIL; i++) {
        float value = (float)round_dtype(QUERN_BF16, k[KV_MLA_CODES + i]);
        uint32_t bits;
        memcpy(&bits, &value, sizeof(bits));
        bits = isnan(value) && !is_moved ? 0x7fff0000 : bits;
        tail[2 * i] = bits >> 16 & 0xff;
        tail[2 * i + 1] = bits >> 24;
    }
    quern_ref_expect(ref, ARRAY_k_cache, row * KV_MLA_BYTES, KV_MLA_BYTES, bytes);
}

/* A head of k or v to row `row` of its cache. */
static void expect_head(struct quern_ref *ref, const struct quern_spec *spec, int is_v, int64_t row,
                        int64_t head, double *values)
{
    const struct values *v = values_of(spec);
    const int64_t width = is_v ? v->dv : v->d, at = (row * v->hkv + head) * width;
    double factor = 1;
    if (v->kv_scale)
        quern_ref_read(ref, is_v ? ARRAY_v_scale : ARRAY_k_scale,
                       v->kv_scale == KV_SCALE_HEAD ? head : 0, 1, &factor);
    for (int64_t i = 0; v->kv_dtype == QUERN_E4M3 && i < width; i++)
        values[i] = round_e4m3((float)(values[i] / factor));
    quern_ref_expect(ref, is_v ? ARRAY_v_cache : ARRAY_k_cache, at, width, values);
}

void set_kv_buffer_reference(struct quern_ref *ref, int64_t unit)
{
    const struct quern_spec *spec = quern_ref_spec(ref);
    const struct values *v = values_of(spec);
    const int64_t row = one(ref, ARRAY_loc, unit);
    const int is_kept = row >= 0 && row < v->pages * v->page;
    double *values = quern_ref_scratch(ref, v->d > v->dv ? v->d : v->dv);
    for (int64_t h = 0; h < v->hq; h++) {
        quern_ref_read(ref, ARRAY_q, (unit * v->hq + h) * v->d, v->d, values);
        rotate(ref, spec, unit, values);
        quern_ref_expect(ref, ARRAY_q, (unit * v->hq + h) * v->d, v->d, values);
    }
    for (int64_t h = 0; is_kept && h < v->hkv; h++) {
        quern_ref_read(ref, ARRAY_k, (unit * v->hkv + h) * v->d, v->d, values);
        if (v->rope)
            rotate(ref, spec, unit, values);
        if (v->layout == KV_MLA)
            expect_mla(ref, row, values, !v->rope && v->dtype == QUERN_BF16);
        else
            expect_head(ref, spec, 0, row, h, values);
    }
    for (int64_t h = 0; is_kept && v->dv && h < v->hkv; h++) {
        quern_ref_read(ref, ARRAY_v, (unit * v->hkv + h) * v->dv, v->dv, values);
        expect_head(ref, spec, 1, row, h, values);
    }
    if (!is_kept)
        quern_ref_expect(ref, ARRAY_k_cache, 0, 0, values);
}
