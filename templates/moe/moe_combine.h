/* Rows of tokens weighed and added, on the host side: what moe_sum, moe_sum_reduce and
 * apply_shuffle_mul_sum have in common, and the step that the fused layer shares with them. */
#ifndef MOE_COMBINE_H
#define MOE_COMBINE_H

#include <quern/family.h>

#include "moe_combine_args.h"

QUERN_API extern const struct quern_family quern_family_apply_shuffle_mul_sum;
QUERN_API extern const struct quern_family quern_family_moe_sum;
QUERN_API extern const struct quern_family quern_family_moe_sum_reduce;

enum { MOE_COMBINE_TOPK_MOST = 1024, MOE_COMBINE_WIDTH_MOST = 1 << 20 };

extern const struct quern_variant *const moe_combine_variants[];

/* ---- The step on CUDA, for plans of other families ------------------------------------------- */

struct moe_combine_config {
    int32_t threads; /* of a block */
    int32_t unroll;  /* rows that a thread has in flight */
};
void moe_combine_choose(int64_t topk, struct moe_combine_config *config);
/* dtype and alignment of `in` and of `out`, rows' strides included; out's elements are not wider.
 * The step waits for the kernel ahead itself (sm_90 up). */
struct quern_step *moe_combine_plan(const struct quern_problem *problem,
                                    const struct moe_combine_config *config, const int dtypes[2],
                                    const int alignments[2], struct quern_plan *plan);
void moe_combine_bind(const struct moe_combine_args *args, const struct moe_combine_config *config,
                      int dtype, const struct quern_profile *profile,
                      struct quern_step_launch *step);

/* ---- What the three families give to the shared code ----------------------------------------- */

/* A spec in the words of all three. */
struct moe_combine_spec {
    int64_t tokens, topk, rows, width, dtype;
    int perm, factors; /* arrays; -1: none */
    double scaling;    /* 1 if not given */
};
struct moe_combine_spec apply_shuffle_mul_sum_spec(const struct quern_spec *spec);
struct moe_combine_spec moe_sum_spec(const struct quern_spec *spec);
struct moe_combine_spec moe_sum_reduce_spec(const struct quern_spec *spec);
struct moe_combine_spec moe_combine_spec(const struct quern_spec *spec);
enum { MOE_COMBINE_IN }; /* the first array; the last is out */
int moe_combine_out(const struct quern_spec *spec);

int moe_combine_validate(const struct quern_spec *spec, struct quern_message *why);
int64_t moe_combine_units(const struct quern_spec *spec); /* a unit is a token */
double moe_combine_tolerance(const struct quern_spec *spec, int index);
void moe_combine_cost(const struct quern_spec *spec, struct quern_cost *cost);
void moe_combine_reference(struct quern_ref *ref, int64_t unit);

#endif
