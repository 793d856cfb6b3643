/* What the reference says a call must give, and outputs held against it. */
#ifndef QN_CHECK_H
#define QN_CHECK_H

#include "jit/region.h"

struct qn_expectation;

/* Evaluate the family's reference on `before`, the arrays as they are before the call
 * (QN_IMAGE_ALL). Large problems are sampled, by `seed`. map and before must outlive
 * *expectation. */
int qn_expect_create(const struct qn_regions *map, const struct qn_image *before, uint64_t seed,
                     struct qn_expectation **expectation, struct quern_message *why);
void qn_expect_destroy(struct qn_expectation *expectation); /* NULL is allowed */

/* Hold `after`, the arrays as the call left them, against it; the verdict is check->ok. Poison is
 * qn_image_poison()'s. */
int qn_expect_compare(const struct qn_expectation *expectation, const struct qn_image *after,
                      struct quern_check *check, struct quern_message *why);

#endif
