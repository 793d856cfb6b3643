#include "moe_rows.h"

int moe_rows_check(const char *name, const int32_t *rows, int64_t count, const char *limit_name,
                   int64_t limit, struct quern_message *why)
{
    for (int64_t i = 0; rows && i < count; i++) {
        if (rows[i] < -1 || rows[i] >= limit)
            return quern_refuse(why, "%s[%lld]=%d: must be -1, or from 0 to below %s=%lld", name,
                                (long long)i, rows[i], limit_name, (long long)limit);
    }
    return QUERN_OK;
}

void moe_rows_draw(uint64_t seed, int64_t count, int64_t limit, int32_t *rows)
{
    const int64_t step = limit % 7919 ? 7919 : limit % 7907 ? 7907 : 7901;
    for (int64_t i = 0; i < count; i++) {
        const uint64_t bits = (seed + (uint64_t)i) * UINT64_C(0x9e3779b97f4a7c15);
        const int is_none = !limit || bits >> 59 == 3;
        rows[i] = is_none ? -1 : (int32_t)((i * step + (int64_t)(seed % 65536)) % limit);
    }
}
