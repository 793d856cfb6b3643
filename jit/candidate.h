/* The configs that a tuning tries, and building them ahead of the bench. */
#ifndef QN_CANDIDATE_H
#define QN_CANDIDATE_H

#include "jit/build.h"
#include "jit/stats.h"

enum qn_candidate_state { QN_CANDIDATE_NEW, QN_CANDIDATE_BUILT, QN_CANDIDATE_FAILED };

struct qn_candidate {
    const struct quern_variant *variant;
    int32_t config[QUERN_MAX_KNOBS];
    char text[512];  /* the config's */
    bool is_default; /* what an untuned call would use; always the first of the list */
    bool is_checked; /* in every grid order, by this tuning */
    bool is_known;   /* an earlier, interrupted tuning tried it: outcome and stat are that one's */

    enum qn_candidate_state state; /* what follows belongs to the builder until it is not NEW */
    struct quern_kernel *kernel;
    char digest[QN_KEY_HEX]; /* of its templates; "" if they could not be had */
    char outcome[256];       /* "ok", or why it was rejected; "" before it was tried */
    struct qn_stat stat;     /* microseconds */
};

struct qn_candidates {
    struct qn_candidate *list;
    int count;
};

/* Legal and distinct: every variant's heuristic, then what neighbours' winners say, then the
 * variants' own lists, a config of each in turn. variant NULL: all. limit 0: no limit, else at
 * least 1. QUERN_UNSUPPORTED if no variant serves the bucket. */
int qn_candidates_init(struct qn_candidates *candidates, struct quern_context *ctx,
                       const struct qn_bucket *bucket, const char *variant, const char *group,
                       int limit);
/* The same for another target: request's variant may be NULL, its config is not looked at. */
int qn_candidates_list(struct qn_candidates *candidates, struct quern_context *ctx,
                       const struct qn_build_request *request, const char *group, int limit);
void qn_candidates_fini(struct qn_candidates *candidates, struct quern_context *ctx);

/* Build one in the calling thread, unless it is built: kernel, or outcome. */
void qn_candidate_build(struct qn_candidate *candidate, struct quern_context *ctx,
                        const struct qn_bucket *bucket);
/* What qn_build() gave for it, as an outcome: "" if it may be measured. */
void qn_candidate_judge(struct qn_candidate *candidate, struct quern_context *ctx, int status,
                        const char *log);
/* The digest of its templates, once. */
void qn_candidate_digest(struct qn_candidate *candidate, struct quern_context *ctx,
                         const struct qn_bucket *bucket);

/* Threads that build candidates in order, a window ahead of the one asked for. Known ones are
 * passed over. */
struct qn_builder;
struct qn_builder_options {
    int jobs;
    bool is_exclusive;  /* the device is this CPU: no thread builds while the caller works */
    double deadline_ms; /* of qn_now_ms(): nothing is begun later, except candidate 0 */
};
int qn_builder_create(struct quern_context *ctx, const struct qn_bucket *bucket,
                      struct qn_candidates *candidates, const struct qn_builder_options *options,
                      struct qn_builder **builder);
/* Waits for candidate `index`; false if it will not be built: past the deadline. Ask in order. */
bool qn_builder_wait(struct qn_builder *builder, int index);
void qn_builder_destroy(struct qn_builder *builder); /* ends what is under way; NULL is allowed */

#endif
