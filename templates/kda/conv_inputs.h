/* What the host sides of causal_conv1d and causal_conv1d_update share. */
#ifndef CONV_INPUTS_H
#define CONV_INPUTS_H

#include <quern/family.h>

/* Distinct slots below capacity, shuffled, some but the first -1; -1 where there are no more. */
void conv_draw_slots(uint64_t seed, int64_t n, int64_t capacity, int32_t *slots);
/* n + 1 boundaries of sequences, from 0 up to t: lengths of many sizes, some 0 and some 1. */
void conv_draw_cu_seqlens(uint64_t seed, int64_t n, int64_t t, int dtype, void *data);
/* Inputs, states, bias and filters of w taps for which no output is a sum that cancels and is all
 * rounding: a token's own tap outweighs what else there is. */
void conv_draw_rows(uint64_t seed, const struct quern_shape *shape, void *data);
void conv_draw_bias(uint64_t seed, int64_t count, int64_t dtype, void *data);
void conv_draw_filters(uint64_t seed, int64_t d, int64_t w, int64_t dtype, void *data);
/* The rows of a pool [capacity, rows, d] that slots name. */
void conv_touch_pool(const struct quern_array *pool, const struct quern_shape *shape,
                     const int32_t *slots, int64_t n, struct quern_ranges *ranges);
/* All of an array that its shape and strides span. */
void conv_touch_whole(const struct quern_array *array, const struct quern_shape *shape,
                      struct quern_ranges *ranges);
/* Rules that both families have. */
int conv_validate(int64_t d, int64_t w, int64_t n, int pool, int64_t capacity,
                  struct quern_message *why);
/* 1 if a * b <= QUERN_SIZE_MAX. */
int conv_is_product_small(int64_t a, int64_t b);
double conv_tolerance(int64_t dtype);
int conv_require_power_of_two(const char *name, int32_t value, struct quern_message *why);
/* Bytes of an access: what the listed arrays are aligned to, by the bucket or as they are bound. */
int conv_access_bytes(const struct quern_problem *problem, const int *list, int count);
int64_t conv_access_bound(const struct quern_array *arrays, const int *list, int count,
                          int64_t dtype);
/* Bytes of an access to the w taps of a channel, which it divides. */
int64_t conv_weight_access(int64_t w, int64_t dtype, int alignment);

static inline int64_t conv_ceil_div(int64_t a, int64_t b)
{
    return (a + b - 1) / b;
}

#endif
