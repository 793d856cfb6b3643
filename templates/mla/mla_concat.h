/* What concat_mla_k and concat_mla_absorb_q have in common: parameters in one order, two inputs and
 * an output in one order, a kernel for each kind of device. */
#ifndef MLA_CONCAT_H
#define MLA_CONCAT_H

#include <quern/family.h>

QUERN_API extern const struct quern_family quern_family_concat_mla_k;
QUERN_API extern const struct quern_family quern_family_concat_mla_absorb_q;

enum { MLA_CONCAT_LEFT, MLA_CONCAT_RIGHT, MLA_CONCAT_OUT }; /* the arrays */

extern const struct quern_variant *const mla_concat_variants[];

int mla_concat_validate(const struct quern_spec *spec, struct quern_message *why);
int64_t mla_concat_units(const struct quern_spec *spec); /* a unit is a token */
double mla_concat_tolerance(const struct quern_spec *spec, int index);
void mla_concat_cost(const struct quern_spec *spec, struct quern_cost *cost);
void mla_concat_reference(struct quern_ref *ref, int64_t unit);

#endif
