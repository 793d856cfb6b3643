/* The product on Hopper as a step of a plan, for the variant grouped_gemm_sm90 and for families
 * with such a step in theirs. Needs a and b of bf16 or f16, base and strides of both multiples of
 * 16 bytes. */
#ifndef GROUPED_GEMM_SM90_PLAN_H
#define GROUPED_GEMM_SM90_PLAN_H

#include "grouped_gemm.h"

enum {
    GROUPED_GEMM_SM90_BM,
    GROUPED_GEMM_SM90_BN,
    GROUPED_GEMM_SM90_STAGES,
    GROUPED_GEMM_SM90_CONSUMERS,
    GROUPED_GEMM_SM90_PINGPONG,
    GROUPED_GEMM_SM90_GROUP,
    GROUPED_GEMM_SM90_SWAP,
    GROUPED_GEMM_SM90_BLOCKS,
    GROUPED_GEMM_SM90_KNOBS
};
extern const struct quern_variant grouped_gemm_sm90;
extern const struct quern_knob grouped_gemm_sm90_knobs[GROUPED_GEMM_SM90_KNOBS];

int grouped_gemm_sm90_supports(const struct quern_target *target,
                               const struct grouped_gemm_work *work);
int grouped_gemm_sm90_legal(const struct grouped_gemm_work *work, const int32_t *config,
                            struct quern_message *why);
/* The `max` configs that the model finds fastest, fastest first; returns how many. */
#define GROUPED_GEMM_SM90_RANKED 32
int grouped_gemm_sm90_rank(const struct grouped_gemm_work *work,
                           const struct quern_profile *profile, int32_t (*configs)[QUERN_MAX_KNOBS],
                           int max);
/* Appends the step. It may start before the one ahead of it has ended, and waits itself. */
struct quern_step *grouped_gemm_sm90_plan(const struct grouped_gemm_work *work,
                                          const int32_t *config, const char *name,
                                          struct quern_plan *plan);
void grouped_gemm_sm90_bind(const struct grouped_gemm_work *work,
                            const struct grouped_gemm_place *place,
                            const struct quern_profile *profile, const int32_t *config,
                            struct quern_step_launch *step);

#endif
