/* The step of grouped_gemm_sm80, for the variant of that name and for plans of other families that
 * have such a product in them. */
#ifndef GROUPED_GEMM_SM80_H
#define GROUPED_GEMM_SM80_H

#include "grouped_gemm.h"

enum {
    GROUPED_GEMM_SM80_BM,
    GROUPED_GEMM_SM80_BN,
    GROUPED_GEMM_SM80_BK,
    GROUPED_GEMM_SM80_WARPS_M,
    GROUPED_GEMM_SM80_WARPS_N,
    GROUPED_GEMM_SM80_STAGES,
    GROUPED_GEMM_SM80_GROUP,
    GROUPED_GEMM_SM80_BLOCKS,
    GROUPED_GEMM_SM80_KNOBS
};

/* Where it runs and what it computes. */
struct grouped_gemm_sm80_problem {
    const struct quern_target *target;
    const struct quern_profile *profile;
    struct grouped_gemm_work work;
};

int grouped_gemm_sm80_serves(const struct grouped_gemm_sm80_problem *problem);
int grouped_gemm_sm80_legal(const struct grouped_gemm_sm80_problem *problem, const int32_t *config,
                            struct quern_message *why);
/* The likely best configs, best first; at least one where it serves, `max` or fewer. */
int grouped_gemm_sm80_rank(const struct grouped_gemm_sm80_problem *problem,
                           int32_t (*configs)[QUERN_MAX_KNOBS], int max);
/* Appends the step. */
void grouped_gemm_sm80_plan(const struct grouped_gemm_sm80_problem *problem, const int32_t *config,
                            const char *name, struct quern_plan *plan);
/* work: of the call, with its real sizes. */
void grouped_gemm_sm80_bind(const struct grouped_gemm_work *work,
                            const struct grouped_gemm_place *place, const int32_t *config,
                            const struct quern_profile *profile, struct quern_step_launch *step);

#endif
