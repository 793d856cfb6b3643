/* The reference of attention_prefill: a unit is a query token and a head of k and v. */
#define QUERN_DEF "attention/attention_prefill.def"
#include <quern/family_def.h>

#include <math.h>

#include "attention_prefill.h"
#include "attention_ref.h"

static int64_t border(struct quern_ref *ref, int index, int64_t i, int64_t total)
{
    double at;
    quern_ref_read(ref, index, i, 1, &at);
    return at < 0 ? 0 : at > (double)total ? total : (int64_t)at;
}

struct place {
    int64_t first_key, head; /* row of the sequence's first key; head of k and v */
};

static void read_row(struct quern_ref *ref, const struct attention_unit *unit, int is_value,
                     int64_t j, double *row)
{
    const struct values *v = values_of(quern_ref_spec(ref));
    const struct place *place = unit->of;
    int64_t width = is_value ? v->dv : v->d;
    int64_t at = (place->first_key + j) * v->hkv + place->head;
    quern_ref_read(ref, is_value ? ARRAY_v : ARRAY_k, at * width, width, row);
}

void attention_prefill_reference(struct quern_ref *ref, int64_t unit)
{
    const struct values *v = values_of(quern_ref_spec(ref));
    const int64_t token = unit / v->hkv, group = v->hq / v->hkv;
    struct place place = { .head = unit % v->hkv };
    int64_t begin = 0, end = 0, s = 0, keys = v->sk;
    if (v->varlen) {
        for (; s < v->b && token >= end; s++) {
            begin = border(ref, ARRAY_cu_seqlens_q, s, v->sq);
            end = border(ref, ARRAY_cu_seqlens_q, s + 1, v->sq);
        }
        place.first_key = border(ref, ARRAY_cu_seqlens_k, s - 1, v->sk);
        keys = border(ref, ARRAY_cu_seqlens_k, s, v->sk) - place.first_key;
    } else {
        begin = token / v->sq * v->sq;
        end = begin + v->sq;
        place.first_key = token / v->sq * v->sk;
    }
    const struct attention_unit of = {
        .d = v->d,
        .dv = v->dv,
        .heads = group,
        .position = token - begin + keys - (end - begin),
        .keys = keys,
        .causal = v->causal,
        .window = v->window,
        .dtype = v->dtype,
        .scale = isnan(v->scale) ? 1 / sqrt((double)v->d) : v->scale,
        .softcap = isnan(v->softcap) ? 0 : v->softcap,
        .q = ARRAY_q,
        .sinks = v->sinks ? ARRAY_sinks : -1,
        .o = ARRAY_o,
        .lse = v->lse ? ARRAY_lse : -1,
        .row = token * v->hq + place.head * group,
        .head = place.head * group,
        .read = read_row,
        .of = &place,
    };
    attention_reference_unit(ref, &of);
}
