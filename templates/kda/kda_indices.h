/* What the folder's families refuse of their index arrays under QUERN_CHECK=1. Each takes a host
 * copy, NULL where the call has no such array, which is QUERN_OK. */
#ifndef KDA_INDICES_H
#define KDA_INDICES_H

#include <quern/family.h>

/* cu_seqlens: n + 1 borders of dtype i32 or i64, the first 0, none below the one before it, none
 * past t. Tokens after the last belong to no sequence, which is allowed. */
int kda_check_borders(const void *borders, int64_t dtype, int64_t n, int64_t t,
                      struct quern_message *why);
/* slots: -1, or a slot of the pool; no two sequences in one where the call writes it. */
int kda_check_slots(const int32_t *slots, int64_t n, int64_t capacity, int is_written,
                    struct quern_message *why);
/* parents: of n sequences of `steps` tokens; of every token but the first -1 or an earlier one. */
int kda_check_parents(const int32_t *parents, int64_t n, int64_t steps, struct quern_message *why);

#endif
