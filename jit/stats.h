/* What samples of a time say, and which of several times wins. */
#ifndef QN_STATS_H
#define QN_STATS_H

#include <stdbool.h>
#include <stdint.h>

struct qn_stat {
    double median, spread; /* spread: median absolute deviation */
    int64_t samples;
};

/* Sorts `samples`. None gives zeros. */
struct qn_stat qn_stat_of(double *samples, int64_t count);

/* Inside the noise: closer than the sum of the spreads, or than 1 % of the faster one. */
bool qn_stat_is_tied(const struct qn_stat *a, const struct qn_stat *b);

/* A candidate as the decision sees it. */
struct qn_contender {
    struct qn_stat stat;
    bool is_default;   /* what would run untuned */
    int64_t registers; /* -1: not reported */
    int64_t shared_bytes;
    int64_t order; /* of the candidates; distinct */
};

/* Index of the winner, -1 for none. Of those tied with the fastest: the default, else fewer
 * registers, less shared memory, lower order. */
int qn_contender_pick(const struct qn_contender *contenders, int count);

#endif
