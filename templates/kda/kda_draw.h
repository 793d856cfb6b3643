/* What kda_decode and kda_step draw their inputs with, and the slots of a pool of states. */
#ifndef KDA_DRAW_H
#define KDA_DRAW_H

#include <quern/family.h>

/* The finaliser of splitmix64; number i of a seed's sequence. */
uint64_t kda_mix(uint64_t x);
uint64_t kda_draw(uint64_t seed, int64_t i);
/* An array of floats uniform from least to most; is_decay: of -exp of those. */
void kda_draw_floats(const struct quern_shape *shape, uint64_t seed, double least, double most,
                     int is_decay, void *data);
/* Distinct slots of a pool in no order; of every seventh sequence, and of those that the pool has
 * none for, -1 or one outside. capacity is at least 1. */
void kda_draw_slots(uint64_t seed, int64_t n, int64_t capacity, int32_t *slots);
/* The bytes of a pool [capacity, heads, rows, columns] that slots name. */
void kda_touch_slots(const struct quern_array *pool, const struct quern_shape *shape,
                     const int32_t *slots, int64_t n, struct quern_ranges *ranges);

#endif
