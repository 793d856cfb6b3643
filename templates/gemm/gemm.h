/* What the files of this folder share on the host side. */
#ifndef GEMM_H
#define GEMM_H

#include <quern/family.h>

QUERN_API extern const struct quern_family quern_family_gemm;

/* One row of d. */
void gemm_reference(struct quern_ref *ref, int64_t unit);
/* All of d at once: d x against a (b^T x) + old d x + bias x for random signs x. */
double gemm_linear_check(struct quern_ref *ref, uint64_t seed);

/* gemm_cpu_plan.c */
extern const struct quern_variant gemm_cpu;

#endif
