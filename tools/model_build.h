/* Building a plan: every call of it for every target, by threads side by side. */
#ifndef TOOLS_MODEL_BUILD_H
#define TOOLS_MODEL_BUILD_H

#include "model_plan.h"
#include "session.h"

/* One call for one target. */
struct task {
    const struct plan_call *call;
    const char *target;
    int rank;            /* 0: the config of choice; else the further candidate's number */
    struct task *choice; /* of the same call and target, if this is another */
    int is_done;
    int is_tuned; /* the choice is a winner, beside which nothing else is wanted */
    enum { TASK_WAITING, TASK_MISSING, TASK_PRESENT, TASK_COMPILED, TASK_FAILED, TASK_NONE } state;
    char *why; /* of what failed or is missing */
    char *log; /* the compiler's, if it said something */
};

struct batch {
    const struct args *args;
    struct quern_context *known; /* whose tuned configs are taken; NULL: nobody's */
    const char *model, *rank;    /* for the manifest; model NULL: none is written */
    struct task *tasks;
    int count, not_provided;
    int is_interrupted; /* by SIGINT or SIGTERM: what is WAITING was not begun */
    int is_cut;         /* the bundle could not be written to its end: an exit code, and said */
    double seconds;
};

/* Whether quern has the family, and it takes these parameters. */
int plan_call_is_provided(struct quern_context *ctx, const struct plan_call *call);

/* The calls of the plan that are provided for each target, and `candidates` more configs of each.
 * 0, or -1 when memory ran out. Release with batch_fini() in any case; plan and targets must
 * outlive it. */
int batch_init(struct batch *batch, const struct args *args, struct quern_context *ctx,
               const struct plan *plan, const char *const *targets, int target_count,
               int candidates);
/* Do the tasks in a context of its own on `cache`, `jobs` at a time. An exit code, after
 * complaining, of the context; how the tasks ended is in them. */
int batch_run(struct batch *batch, const char *cache, int jobs);
void batch_fini(struct batch *batch);
int batch_count(const struct batch *batch, int state);

#endif
