/* The reference of attention_extend: a unit is a new token and a head of k and v. */
#define QUERN_DEF "attention/attention_extend.def"
#include <quern/family_def.h>

#include <math.h>

#include "attention_extend.h"
#include "attention_ref.h"

static int64_t whole(struct quern_ref *ref, int index, int64_t i)
{
    double value;
    quern_ref_read(ref, index, i, 1, &value);
    return (int64_t)value;
}

static int64_t clamp(int64_t value, int64_t most)
{
    return value < 0 ? 0 : value > most ? most : value;
}

struct place {
    int64_t sequence, head, begin; /* head of k and v; the sequence's first new token */
    int64_t prefix, first_index;   /* its length; prefix=indices: where it begins in kv_indices */
};

/* The cache's row that holds token j of a prefix, its pages seen as one row of tokens. */
static int64_t cache_row(struct quern_ref *ref, const struct values *v, const struct place *place,
                         int64_t j)
{
    if (v->prefix)
        return clamp(whole(ref, ARRAY_kv_indices, place->first_index + j), v->pages * v->page - 1);
    int64_t id = whole(ref, ARRAY_page_table, place->sequence * v->max_pages + j / v->page);
    return clamp(id, v->pages - 1) * v->page + j % v->page;
}

static void read_row(struct quern_ref *ref, const struct attention_unit *unit, int is_value,
                     int64_t j, double *row)
{
    const struct values *v = values_of(quern_ref_spec(ref));
    const struct place *place = unit->of;
    const int64_t width = is_value ? v->dv : v->d;
    double factor = 1;
    if (j >= place->prefix) {
        int64_t at = (place->begin + j - place->prefix) * v->hkv + place->head;
        quern_ref_read(ref, is_value ? ARRAY_v : ARRAY_k, at * width, width, row);
        return;
    }
    int64_t at = cache_row(ref, v, place, j) * v->hkv + place->head;
    quern_ref_read(ref, is_value ? ARRAY_v_cache : ARRAY_k_cache, at * width, width, row);
    if (v->kv_scale)
        quern_ref_read(ref, is_value ? ARRAY_v_scale : ARRAY_k_scale,
                       v->kv_scale == ATTENTION_SCALE_HEAD ? place->head : 0, 1, &factor);
    for (int64_t c = 0; c < width; c++)
        row[c] *= factor;
}

/* The sequence of a new token, and its prefix. Returns the sequence's end. */
static int64_t find_place(struct quern_ref *ref, int64_t token, struct place *place)
{
    const struct values *v = values_of(quern_ref_spec(ref));
    int64_t end = 0, s = -1;
    while (s + 1 < v->b && token >= end) {
        s++;
        place->begin = clamp(whole(ref, ARRAY_cu_seqlens_q, s), v->t);
        end = clamp(whole(ref, ARRAY_cu_seqlens_q, s + 1), v->t);
    }
    place->sequence = s;
    if (v->prefix) {
        place->first_index = clamp(whole(ref, ARRAY_kv_indptr, s), v->indices);
        place->prefix = clamp(whole(ref, ARRAY_kv_indptr, s + 1), v->indices) - place->first_index;
    } else {
        place->prefix = clamp(whole(ref, ARRAY_prefix_lens, s), v->max_pages * v->page);
    }
    place->prefix = v->pages && place->prefix > 0 ? place->prefix : 0;
    return end;
}

/* A factor of infinity may be applied to values or to weights, and 0 times it is NaN: what comes of
 * that is not said. */
static int has_infinite_factor(struct quern_ref *ref, const struct place *place)
{
    const struct values *v = values_of(quern_ref_spec(ref));
    double factor = 1;
    if (v->kv_scale && place->prefix)
        quern_ref_read(ref, ARRAY_v_scale, v->kv_scale == ATTENTION_SCALE_HEAD ? place->head : 0, 1,
                       &factor);
    return isinf(factor);
}

void attention_extend_reference(struct quern_ref *ref, int64_t unit)
{
    const struct values *v = values_of(quern_ref_spec(ref));
    const int64_t token = unit / v->hkv, group = v->hq / v->hkv;
    struct place place = { .head = unit % v->hkv };
    const int64_t end = find_place(ref, token, &place);
    const struct attention_unit of = {
        .d = v->d,
        .dv = v->dv,
        .heads = group,
        .position = place.prefix + token - place.begin,
        .keys = place.prefix + end - place.begin,
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
        .is_unsaid = has_infinite_factor(ref, &place),
        .read = read_row,
        .of = &place,
    };
    attention_reference_unit(ref, &of);
}
