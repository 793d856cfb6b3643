#include "attention_rules.h"

#include <math.h>

int attention_check_most(const char *name, int64_t value, int64_t most, struct quern_message *why)
{
    if (value > most)
        return quern_refuse(why, "%s=%lld: must be at most %lld", name, (long long)value,
                            (long long)most);
    return QUERN_OK;
}

int64_t attention_implied_dv(int64_t d)
{
    return d == 192 ? 128 : d;
}

int attention_check_heads(const struct attention_heads *heads, struct quern_message *why)
{
    const int64_t d = heads->d, dv = heads->dv;
    if (attention_check_most("hq", heads->hq, 1 << 16, why))
        return QUERN_INVALID;
    if (heads->hq % heads->hkv)
        return quern_refuse(why, "hkv=%lld: must be a divisor of hq=%lld", (long long)heads->hkv,
                            (long long)heads->hq);
    if (d != 64 && d != 96 && d != 128 && d != 192 && d != 256)
        return quern_refuse(why, "d=%lld: must be 64, 96, 128, 192 or 256", (long long)d);
    if (dv != d && !(d == 192 && dv == 128))
        return quern_refuse(
            why, d == 192 ? "dv=%lld: must be 128 or 192 with d=192" : "dv=%lld: must be d=%lld",
            (long long)dv, (long long)d);
    if (heads->softcap < 0)
        return quern_refuse(why, "softcap=%g: must be 0 (none) or above", heads->softcap);
    return QUERN_OK;
}

/* ---- Index arrays -------------------------------------------------------------------------- */

int attention_check_borders(const struct attention_borders *of, const int32_t *borders,
                            struct quern_message *why)
{
    for (int64_t i = 0; borders && i <= of->b; i++) {
        long long now = borders[i], before = i ? borders[i - 1] : 0;
        if (i == 0 && now)
            return quern_refuse(why, "%s[0]=%lld: must be 0", of->name, now);
        if (now < before)
            return quern_refuse(why, "%s[%lld]=%lld: must be at least %s[%lld]=%lld", of->name,
                                (long long)i, now, of->name, (long long)i - 1, before);
        if (now > of->total || (i == of->b && !of->is_padded && now != of->total))
            return quern_refuse(why, "%s[%lld]=%lld: must be %s%s=%lld", of->name, (long long)i,
                                now, i == of->b && !of->is_padded ? "" : "at most ", of->total_name,
                                (long long)of->total);
    }
    return QUERN_OK;
}

int64_t attention_border(const int32_t *borders, int64_t i, int64_t total)
{
    return borders[i] < 0 ? 0 : borders[i] > total ? total : borders[i];
}

int64_t attention_length(const struct attention_pages *of, const int32_t *lens, int64_t sequence)
{
    int64_t most = of->pages ? of->max_pages * of->page : 0, length = lens[sequence];
    return length < 0 ? 0 : length > most ? most : length;
}

int attention_check_pages(const struct attention_pages *of, const int32_t *table,
                          const int32_t *lens, struct quern_message *why)
{
    for (int64_t s = 0; table && lens && s < of->b; s++) {
        if (lens[s] < 0 || lens[s] > of->max_pages * of->page)
            return quern_refuse(why, "%s[%lld]=%d: must be from 0 to max_pages * page = %lld",
                                of->lens_name, (long long)s, lens[s],
                                (long long)(of->max_pages * of->page));
        for (int64_t i = 0; i * of->page < lens[s]; i++) {
            int32_t id = table[s * of->max_pages + i];
            if (id < 0 || id >= of->pages)
                return quern_refuse(why,
                                    "page_table[%lld, %lld]=%d: must be from 0 to below pages=%lld",
                                    (long long)s, (long long)i, id, (long long)of->pages);
        }
    }
    return QUERN_OK;
}

/* ---- Which bytes --------------------------------------------------------------------------- */

void attention_touch_token(const struct quern_array *cache, const struct quern_shape *shape,
                           int64_t page, int64_t slot, struct quern_ranges *ranges)
{
    const int64_t bytes = (int64_t)quern_dtype_bytes(shape->dtype), *strides = cache->strides;
    const int64_t heads = shape->dims[2], width = shape->dims[3];
    const int is_dense = strides[2] == width;
    const int64_t first = (page * strides[0] + slot * strides[1]) * bytes;
    for (int64_t head = 0; head < (is_dense ? 1 : heads); head++) {
        int64_t begin = first + head * strides[2] * bytes;
        quern_ranges_add(ranges, begin, begin + (is_dense ? heads : 1) * width * bytes);
    }
}

void attention_touch_all(const struct quern_array *array, const struct quern_shape *shape,
                         struct quern_ranges *ranges)
{
    int64_t last = 0;
    for (int d = 0; d < shape->rank; d++) {
        if (!shape->dims[d])
            return;
        last += (shape->dims[d] - 1) * array->strides[d];
    }
    quern_ranges_add(ranges, 0, (last + 1) * (int64_t)quern_dtype_bytes(shape->dtype));
}

/* ---- Cost ---------------------------------------------------------------------------------- */

/* The sum of min(max(i, 0), most) over the whole numbers i up to n. */
static double clamped_sum(double n, double most)
{
    if (n <= 0)
        return 0;
    return n <= most ? n * (n + 1) / 2 : most * (most + 1) / 2 + (n - most) * most;
}

/* Of the keys that the positions sk - sq up to sk - 1 see, those below position + ahead. */
static double seen_below(double sq, double sk, double ahead)
{
    return clamped_sum(sk - 1 + ahead, sk) - clamped_sum(sk - sq - 1 + ahead, sk);
}

double attention_pairs(double sq, double sk, int64_t causal, int64_t window)
{
    double all = sq * sk, right = causal ? seen_below(sq, sk, 1) : all;
    if (!window)
        return right;
    if (!causal)
        right = seen_below(sq, sk, (double)window);
    return fmax(right - seen_below(sq, sk, 1 - (double)window), 0);
}
