/* Arrays that name rows: what apply_shuffle_mul_sum and shuffle_rows have in common. */
#ifndef MOE_ROWS_H
#define MOE_ROWS_H

#include <quern/family.h>

/* Refuses rows that are neither -1 nor below `limit`; `name` is the array's. */
int moe_rows_check(const char *name, const int32_t *rows, int64_t count, const char *limit_name,
                   int64_t limit, struct quern_message *why);
/* Rows below `limit` in no order, all different as far as they go, some -1. */
void moe_rows_draw(uint64_t seed, int64_t count, int64_t limit, int32_t *rows);

#endif
