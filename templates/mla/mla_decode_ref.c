/* The obvious reference of mla_decode, in float64. A unit is a query token, all its heads: it sees
 * the same rows. */
#define QUERN_DEF "mla/mla_decode.def"
#include <quern/family_def.h>

#include <math.h>
#include <string.h>

#include "mla_decode.h"

static int64_t one(struct quern_ref *ref, int index, int64_t at)
{
    double value;
    quern_ref_read(ref, index, at, 1, &value);
    return (int64_t)value;
}

/* Rows that a query may see, before those that are none are left out. */
static int64_t limit_of(struct quern_ref *ref, const struct values *v, int64_t unit)
{
    if (v->topk)
        return v->topk;
    int64_t length = one(ref, ARRAY_seq_lens, unit / v->sq), most = v->max_pages * v->page;
    length = !v->pages || length < 0 ? 0 : length < most ? length : most;
    return v->causal ? length - v->sq + 1 + unit % v->sq : length;
}

/* Number i of them as a row of the cache; -1: none. */
static int64_t row_of(struct quern_ref *ref, const struct values *v, int64_t unit, int64_t i)
{
    if (v->topk) {
        int64_t row = one(ref, ARRAY_indices, unit * v->topk + i);
        return row < v->pages * v->page ? row : -1;
    }
    int64_t at = unit / v->sq * v->max_pages + i / v->page, page = one(ref, ARRAY_page_table, at);
    return (page >= 0 && page < v->pages ? page : 0) * v->page + i % v->page;
}

/* A token of 656 bytes: 512 of e4m3, 4 f32 factors of 128 of them, 64 bf16. */
static void decode_token(const double *bytes, double *row)
{
    uint8_t token[MLA_TOKEN_BYTES];
    float factors[MLA_DV / MLA_GROUP];
    for (int i = 0; i < MLA_TOKEN_BYTES; i++)
        token[i] = (uint8_t)bytes[i];
    memcpy(factors, token + MLA_DV, sizeof(factors));
    for (int i = 0; i < MLA_DV; i++) {
        int code = token[i] & 0x7f, exponent = code >> 3;
        double value = exponent ? ldexp(8 + code % 8, exponent - 10) : ldexp(code, -9);
        row[i] = code == 0x7f ? NAN : (token[i] & 0x80 ? -value : value) * factors[i / MLA_GROUP];
    }
    for (int i = 0; i < MLA_DK - MLA_DV; i++) {
        const uint8_t *half = token + MLA_DV + sizeof(factors) + 2 * i;
        uint32_t bits = (uint32_t)half[0] << 16 | (uint32_t)half[1] << 24;
        float value;
        memcpy(&value, &bits, sizeof(value));
        row[MLA_DV + i] = value;
    }
}

static void read_row(struct quern_ref *ref, const struct values *v, int64_t at, double *row)
{
    double bytes[MLA_TOKEN_BYTES];
    if (v->kv_dtype != QUERN_E4M3) {
        quern_ref_read(ref, ARRAY_kv_cache, at * MLA_DK, MLA_DK, row);
        return;
    }
    quern_ref_read(ref, ARRAY_kv_cache, at * MLA_TOKEN_BYTES, MLA_TOKEN_BYTES, bytes);
    decode_token(bytes, row);
}

/* Scores that are all -infinity are as none. */
static void expect_head(struct quern_ref *ref, const struct values *v, int64_t at, double *scores,
                        const double *rows, int64_t count)
{
    double *o = quern_ref_scratch(ref, MLA_DV), sum = 0, norm = 0, most = -INFINITY;
    for (int64_t j = 0; j < count; j++)
        most = fmax(most, scores[j]);
    const double base = most == -INFINITY ? 0 : most;
    for (int64_t j = 0; j < count; j++)
        sum += scores[j] = exp(scores[j] - base);
    for (int64_t j = 0; j < count; j++) {
        for (int d = 0; d < MLA_DV; d++) {
            double term = sum == 0 ? 0 : scores[j] / sum * rows[j * MLA_DK + d];
            o[d] += term;
            norm += term * term;
        }
    }
    double lse = base + log(sum);
    quern_ref_expect_sums(ref, ARRAY_o, at * MLA_DV, MLA_DV, o, sqrt(norm));
    if (v->lse)
        quern_ref_expect_sums(ref, ARRAY_lse, at, 1, &lse, MLA_LSE_NORM);
}

void mla_decode_reference(struct quern_ref *ref, int64_t unit)
{
    const struct values *v = values_of(quern_ref_spec(ref));
    const double scale = isnan(v->scale) ? 1 / sqrt((double)MLA_DK) : (float)v->scale;
    int64_t limit = limit_of(ref, v, unit), count = 0;
    limit = limit < 0 ? 0 : limit;
    double *rows = quern_ref_scratch(ref, limit * MLA_DK + 1);
    double *scores = quern_ref_scratch(ref, limit + 1), *q = quern_ref_scratch(ref, MLA_DK);
    for (int64_t i = 0; i < limit; i++) {
        int64_t at = row_of(ref, v, unit, i);
        if (at >= 0)
            read_row(ref, v, at, rows + MLA_DK * count++);
    }
    for (int64_t h = 0; h < v->hq; h++) {
        quern_ref_read(ref, ARRAY_q, (unit * v->hq + h) * MLA_DK, MLA_DK, q);
        for (int64_t j = 0; j < count; j++) {
            scores[j] = 0;
            for (int d = 0; d < MLA_DK; d++)
                scores[j] += scale * q[d] * rows[j * MLA_DK + d];
        }
        expect_head(ref, v, unit * v->hq + h, scores, rows, count);
    }
}
