/* What the cases of moe cannot say, said once for the suites of the CPU and of a device. */
#ifndef MOE_LAYER_EDGES_H
#define MOE_LAYER_EDGES_H

#include "common.h"

extern const int moe_layer_spec_count;
/* All tokens to the same experts: as the reference, and the same bits again. */
void moe_layer_crowd_check(struct quern_context *ctx, uint64_t *seed, int spec);
/* Any integer in expert_map that is no expert is as -1. */
void moe_layer_map_check(struct quern_context *ctx, uint64_t *seed, int spec);
/* NaN in x of one token: the others keep their bits. */
void moe_layer_nan_check(struct quern_context *ctx, uint64_t *seed, int spec);
/* A bias or a logit that is NaN or infinite. */
void moe_layer_bias_check(struct quern_context *ctx, uint64_t *seed, int spec);

#endif
