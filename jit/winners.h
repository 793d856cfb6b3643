/* Tuned winners: the store's, and beside them those that it would not take. */
#ifndef QN_WINNERS_H
#define QN_WINNERS_H

#include "jit/context.h"

/* As qn_tuned_find(), with the winners that the context keeps: of two the newer generation. */
int qn_winner_find(struct quern_context *ctx, const char *text, struct qn_tuned *row);
/* As qn_tuned_each(), with the winners that the context keeps, which come first. */
void qn_winner_each(struct quern_context *ctx, const char *group,
                    int (*visit)(void *user, const struct qn_tuned *row), void *user);
/* Keep a copy of `row`, which the store would not take, as long as the context lives. A winner that
 * there is no memory for is forgotten. */
void qn_winner_keep(struct quern_context *ctx, const struct qn_tuned *row);
void qn_winners_fini(struct quern_context *ctx);

#endif
