/* One search for the best config of a bucket: its state, and the rounds that measure. */
#ifndef QN_SEARCH_H
#define QN_SEARCH_H

#include "jit/candidate.h"
#include "jit/testbed.h"

#define QN_SEARCH_KEEP 16 /* candidates after the first round */

struct qn_search {
    struct quern_context *ctx;
    const struct quern_request *request;
    const struct quern_tune_options *options;
    struct qn_bucket bucket;
    char *text, *group; /* of the tuned key */
    char toolkit[256];
    int64_t generation; /* being tuned */
    int64_t carried;    /* the generation before, if that was cut short: its trials count; else 0 */
    int carried_done;   /* how many candidates it had tried */
    double start_ms;    /* of all */
    double search_ms;   /* when the budget began: waiting for another process costs none */
    struct qn_lease *lease;
    struct qn_candidates candidates;
    struct qn_testbed bed;
    struct qn_builder *builder;
    int done, failed;
    double best_us;
    bool is_stopped; /* by the progress callback */
    struct quern_tune_result *result;
};

/* Those that are still in, of the search's candidates. */
struct qn_field {
    struct qn_candidate *list[QN_SEARCH_KEEP + 1];
    int count;
};

/* Since the search was asked for. */
double qn_search_seconds(const struct qn_search *search);

/* Build, check and time candidates; what comes of each is stored at once. Statuses are the
 * testbed's own failures. */
int qn_search_first_round(struct qn_search *search);
/* The field is filled from the first round, and measured again until few are left. */
int qn_search_later_rounds(struct qn_search *search, struct qn_field *field);
/* The field's best that has passed every check, of which it may lack one; NULL if nobody has. */
int qn_search_winner(struct qn_search *search, struct qn_field *field,
                     struct qn_candidate **winner);

#endif
