/* attention_prefill: attention to keys that lie together. The family; a variant has its own
 * files. */
#define QUERN_DEF "attention/attention_prefill.def"
#include <quern/family_def.h>

#include <math.h>

#include "attention_draw.h"
#include "attention_prefill.h"
#include "attention_ref.h"
#include "attention_rules.h"

/* ---- Rules --------------------------------------------------------------------------------- */

static void implied(struct quern_spec *spec)
{
    struct values *v = (struct values *)(void *)spec->values;
    if (v->sk == QUERN_REQUIRED)
        v->sk = v->sq;
    if (v->hkv == QUERN_REQUIRED)
        v->hkv = v->hq;
    if (v->dv == QUERN_REQUIRED)
        v->dv = attention_implied_dv(v->d);
}

/* Products of sizes, also of what bucket() makes of them, stay within what grids count. */
static int check_sizes(const struct values *v, struct quern_message *why)
{
    if (attention_check_most("b", v->b, 1 << 24, why) ||
        attention_check_most("sq", v->sq, ATTENTION_MAX_TOKENS, why) ||
        attention_check_most("sk", v->sk, ATTENTION_MAX_TOKENS, why))
        return QUERN_INVALID;
    int64_t longest = quern_power_of_two_above(v->sq > v->sk ? v->sq : v->sk);
    if (!v->varlen && quern_power_of_two_above(v->b) * longest > ATTENTION_MAX_ROWS)
        return quern_refuse(why, "b=%lld: must be at most %lld with sq=%lld and sk=%lld",
                            (long long)v->b, (long long)(ATTENTION_MAX_ROWS / longest),
                            (long long)v->sq, (long long)v->sk);
    if (v->varlen && !v->b && v->sq)
        return quern_refuse(why, "sq=%lld: must be 0 with b=0", (long long)v->sq);
    if (v->varlen && !v->b && v->sk)
        return quern_refuse(why, "sk=%lld: must be 0 with b=0", (long long)v->sk);
    return QUERN_OK;
}

static int validate(const struct quern_spec *spec, struct quern_message *why)
{
    const struct values *v = values_of(spec);
    const struct attention_heads heads = { v->hq, v->hkv, v->d, v->dv, v->softcap };
    return check_sizes(v, why) || attention_check_heads(&heads, why) ? QUERN_INVALID : QUERN_OK;
}

/* 0 stays what it is: no window, no sequence. */
static int64_t rounded(int64_t value)
{
    return value ? quern_power_of_two_above(value) : 0;
}

static void bucket(struct quern_spec *spec)
{
    struct values *v = (struct values *)(void *)spec->values;
    v->b = rounded(v->b);
    v->sq = rounded(v->sq);
    v->sk = rounded(v->sk);
    v->window = rounded(v->window);
}

static int check_indices(const struct quern_spec *spec, const void *const *host,
                         struct quern_message *why)
{
    const struct values *v = values_of(spec);
    const struct attention_borders q = { "cu_seqlens_q", "sq", v->b, v->sq, 0 },
                                   k = { "cu_seqlens_k", "sk", v->b, v->sk, 0 };
    int status = attention_check_borders(&q, host[ARRAY_cu_seqlens_q], why);
    return status ? status : attention_check_borders(&k, host[ARRAY_cu_seqlens_k], why);
}

/* ---- Contents ------------------------------------------------------------------------------ */

/* As many keys as queries: sequences attend to themselves, so borders are alike. */
static int inputs(const struct quern_spec *spec, int index, uint64_t seed, void *data)
{
    const struct values *v = values_of(spec);
    struct quern_shape shape;
    quern_def_shape(spec, index, &shape);
    if (index == ARRAY_cu_seqlens_q)
        attention_draw_borders(seed, v->b, v->sq, data);
    else if (index == ARRAY_cu_seqlens_k)
        attention_draw_borders(v->sq == v->sk ? seed : seed + 1, v->b, v->sk, data);
    else
        attention_draw_normal(&shape, seed ^ (uint64_t)(index + 1) << 56, 1, data);
    return 1;
}

/* ---- The check ----------------------------------------------------------------------------- */

static int64_t units(const struct quern_spec *spec)
{
    const struct values *v = values_of(spec);
    return (v->varlen ? 1 : v->b) * v->sq * v->hkv;
}

static double tolerance(const struct quern_spec *spec, int index)
{
    return attention_tolerance(values_of(spec)->dtype, index == ARRAY_lse);
}

/* Packed sequences are taken to be of one length: then their pairs are the fewest. */
static void cost(const struct quern_spec *spec, struct quern_cost *cost)
{
    const struct values *v = values_of(spec);
    const double parts = v->varlen && v->b ? (double)v->b : 1;
    const double rows = v->varlen ? 1 : (double)v->b, hq = (double)v->hq, hkv = (double)v->hkv;
    const double sq = (double)v->sq, sk = (double)v->sk, width = (double)(v->d + v->dv);
    double pairs = parts * attention_pairs(sq / parts, sk / parts, v->causal, v->window);
    cost->flops = 2 * rows * hq * width * pairs;
    cost->bytes = rows * width * (sq * hq + sk * hkv) * (double)quern_dtype_bytes((int)v->dtype) +
                  (v->lse ? rows * sq * hq * 4 : 0);
}

static const struct quern_variant *const variants[] = { &attention_prefill_sm90,
                                                        &attention_prefill_sm80,
                                                        &attention_prefill_cpu, NULL };

const struct quern_family quern_family_attention_prefill = {
    QUERN_FAMILY_TABLES(attention_prefill),
    .folder = "attention",
    .doc = "attention to dense or packed keys and values; also called attention",
    .variants = variants,
    .validate = validate,
    .bucket = bucket,
    .check_indices = check_indices,
    .inputs = inputs,
    .units = units,
    .reference = attention_prefill_reference,
    .tolerance = tolerance,
    .cost = cost,
    .alias = "attention",
    .implied = implied,
};
