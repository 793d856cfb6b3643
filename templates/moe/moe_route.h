/* What topk_softmax, topk_sigmoid and moe_fused_gate have in common on the host: parameters and
 * arrays in one order, a kernel for each kind of device. The fused layer makes its steps' defines
 * here too. */
#ifndef MOE_ROUTE_H
#define MOE_ROUTE_H

#include <quern/family.h>

#include "moe_route_rules.h"

QUERN_API extern const struct quern_family quern_family_topk_softmax;
QUERN_API extern const struct quern_family quern_family_topk_sigmoid;
QUERN_API extern const struct quern_family quern_family_moe_fused_gate;

enum { MOE_ROUTE_LOGITS, MOE_ROUTE_BIAS, MOE_ROUTE_WEIGHTS, MOE_ROUTE_IDS }; /* the arrays */
enum { MOE_ROUTE_SCALING = 7 }; /* the last parameter that all three have, in one order */
enum { MOE_ROUTE_EXPERTS_MOST = 1024, MOE_ROUTE_TOPK_MOST = 32, MOE_ROUTE_GROUPS_MOST = 32 };

/* How the experts of a token are chosen and weighed. */
struct moe_route {
    int64_t tokens, experts;
    int64_t topk, shared; /* experts chosen; columns behind those */
    int64_t groups, topk_group;
    int scoring; /* ROUTE_BY_... */
    int dtype;   /* of logits */
    int has_bias, renormalize;
    double softcap;       /* NaN: none */
    double scaling;       /* factor of the weights */
    double shared_weight; /* of the columns behind */
};

struct moe_route moe_route_of(const struct quern_spec *spec); /* a spec of one of the three */
/* The defines of moe_route_rules.h, and for GPUs how logits and bias are aligned. */
void moe_route_define(struct quern_step *step, const struct moe_route *route);
void moe_route_define_access(struct quern_step *step, int logits_alignment, int bias_alignment);
struct moe_route_scalars moe_route_scalars_of(const struct moe_route *route);

extern const struct quern_variant *const moe_route_variants[];

int moe_route_validate(const struct quern_spec *spec, struct quern_message *why);
int moe_route_inputs(const struct quern_spec *spec, int index, uint64_t seed, void *data);
int64_t moe_route_units(const struct quern_spec *spec); /* a unit is a token */
void moe_route_reference(struct quern_ref *ref, int64_t unit);
double moe_route_tolerance(const struct quern_spec *spec, int index);
void moe_route_cost(const struct quern_spec *spec, struct quern_cost *cost);

#endif
