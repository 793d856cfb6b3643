/* What the plans of the CUDA variants of moe share. */
#ifndef MOE_CUDA_H
#define MOE_CUDA_H

#include "moe.h"
#include "moe_route_rules.h"

/* What no variant can do without. */
int moe_cuda_supports(const struct quern_problem *problem);
/* SMs, and shared memory that a block may have, where they are unknown too. */
int moe_cuda_cores(const struct quern_profile *profile);
int64_t moe_cuda_shared_bytes(const struct quern_problem *problem);

/* What choosing a token's experts depends on. */
void moe_cuda_define_route(const struct quern_problem *problem, struct quern_step *step);
struct moe_route_scalars moe_cuda_scalars(const struct quern_spec *spec);
/* Slots of all tokens. */
int64_t moe_cuda_slots(const struct quern_spec *spec);

#endif
