#include "kda_indices.h"

#include <stdlib.h>

int kda_check_borders(const void *borders, int64_t dtype, int64_t n, int64_t t,
                      struct quern_message *why)
{
    long long before = 0;
    for (int64_t i = 0; borders && i <= n; i++) {
        long long now =
            dtype == QUERN_I64 ? ((const int64_t *)borders)[i] : ((const int32_t *)borders)[i];
        if (i == 0 && now)
            return quern_refuse(why, "cu_seqlens[0]=%lld: must be 0", now);
        if (now < before)
            return quern_refuse(why,
                                "cu_seqlens[%lld]=%lld: must be at least cu_seqlens[%lld]=%lld",
                                (long long)i, now, (long long)i - 1, before);
        if (now > t)
            return quern_refuse(why, "cu_seqlens[%lld]=%lld: must be at most t=%lld", (long long)i,
                                now, (long long)t);
        before = now;
    }
    return QUERN_OK;
}

struct use {
    int32_t slot;
    int64_t sequence;
};

static int use_compare(const void *a, const void *b)
{
    const struct use *left = a, *right = b;
    int order = (left->slot > right->slot) - (left->slot < right->slot);
    return order ? order : (left->sequence > right->sequence) - (left->sequence < right->sequence);
}

/* Two neighbours in one slot, of all such the first by the second's sequence; NULL if none. */
static const struct use *find_shared(const struct use *uses, int64_t count)
{
    const struct use *found = NULL;
    for (int64_t i = 1; i < count; i++) {
        if (uses[i].slot == uses[i - 1].slot && (!found || uses[i].sequence < found[1].sequence))
            found = &uses[i - 1];
    }
    return found;
}

static int check_distinct(const int32_t *slots, int64_t n, struct quern_message *why)
{
    struct use *uses = malloc((size_t)n * sizeof(*uses));
    int64_t count = 0;
    if (!uses) {
        quern_refuse(why, "out of memory: slots cannot be compared");
        return QUERN_NO_MEMORY;
    }
    for (int64_t i = 0; i < n; i++) {
        if (slots[i] >= 0)
            uses[count++] = (struct use){ slots[i], i };
    }
    qsort(uses, (size_t)count, sizeof(*uses), use_compare);
    const struct use *shared = find_shared(uses, count);
    if (shared)
        quern_refuse(why, "slots[%lld]=%d: must not be used twice, and slots[%lld] is %d too",
                     (long long)shared[1].sequence, shared->slot, (long long)shared->sequence,
                     shared->slot);
    free(uses);
    return shared ? QUERN_INVALID : QUERN_OK;
}

int kda_check_slots(const int32_t *slots, int64_t n, int64_t capacity, int is_written,
                    struct quern_message *why)
{
    for (int64_t i = 0; slots && i < n; i++) {
        if (slots[i] < -1 || slots[i] >= capacity)
            return quern_refuse(why, "slots[%lld]=%d: must be -1, or from 0 to below capacity=%lld",
                                (long long)i, slots[i], (long long)capacity);
    }
    return slots && is_written && n > 1 ? check_distinct(slots, n, why) : QUERN_OK;
}

int kda_check_parents(const int32_t *parents, int64_t n, int64_t steps, struct quern_message *why)
{
    for (int64_t i = 0; parents && i < n * steps; i++) {
        int64_t token = i % steps;
        if (token && (parents[i] < -1 || parents[i] >= token))
            return quern_refuse(why, "parents[%lld, %lld]=%d: must be -1, or from 0 to below %lld",
                                (long long)(i / steps), (long long)token, parents[i],
                                (long long)token);
    }
    return QUERN_OK;
}
