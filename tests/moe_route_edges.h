/* What the cases of topk_softmax, topk_sigmoid and moe_fused_gate cannot say, said once for the
 * suites of the CPU and of a device: rows of logits that are put by hand, against a choice that
 * knows nothing of moe_score.h. */
#ifndef MOE_ROUTE_EDGES_H
#define MOE_ROUTE_EDGES_H

#include "common.h"

extern const int moe_route_spec_count, moe_route_shape_count;
/* Equal, absent, infinite, ordered and coarse logits: ids, weights, and the reference. */
void moe_route_edge_check(struct quern_context *ctx, uint64_t *seed, int spec);
/* Few experts, all of them or some chosen; with QUERN_TEST_ALL=1 every number from 1 to 40. */
void moe_route_shape_check(struct quern_context *ctx, uint64_t *seed, int shape);
/* NaN in one token: the others keep their bits. */
void moe_route_nan_check(struct quern_context *ctx, uint64_t *seed, int spec);

#endif
