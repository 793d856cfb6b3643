/* What the pipeline asks of a plan once a variant has made it. */
#ifndef QN_PLAN_H
#define QN_PLAN_H

#include <stdbool.h>

#include <quern/family.h>

/* QUERN_INVALID if the variant overran a limit. */
int qn_plan_check(const struct quern_plan *plan, const char *variant, struct quern_message *why);
/* Equal source and defines: one artifact serves both. */
bool qn_steps_share(const struct quern_step *a, const struct quern_step *b);

#endif
