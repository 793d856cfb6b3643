/* What inputs of attention_prefill and attention_extend are drawn with. */
#ifndef ATTENTION_DRAW_H
#define ATTENTION_DRAW_H

#include <quern/family.h>

/* Number i of a seed's sequence; from 0 to 1. */
uint64_t attention_draw(uint64_t seed, int64_t i);
double attention_draw_unit(uint64_t seed, int64_t i);
/* Floats of a nearly normal distribution of mean 0. */
void attention_draw_normal(const struct quern_shape *shape, uint64_t seed, double deviation,
                           void *data);
/* Factors from 0.5 to 1.5. */
void attention_draw_factors(const struct quern_shape *shape, uint64_t seed, float *data);
/* b + 1 borders from 0 to `total`: lengths of 0, 1, about the edges of tiles, and any. */
void attention_draw_borders(uint64_t seed, int64_t b, int64_t total, int32_t *borders);
/* Length i of many from 0 to `most`, likewise; the first is `most`. */
int64_t attention_draw_length(uint64_t seed, int64_t i, int64_t most);
/* Numbers below `limit` in no order, distinct as far as they go. */
void attention_draw_ids(uint64_t seed, int64_t count, int64_t limit, int32_t *ids);

#endif
