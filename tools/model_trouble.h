/* What of a batch failed or is missing, for people: calls that lack one kernel, or failed for one
 * reason, are one trouble. */
#ifndef TOOLS_MODEL_TROUBLE_H
#define TOOLS_MODEL_TROUBLE_H

#include "model_build.h"

struct trouble {
    const struct task *task; /* the first */
    int calls;
};

struct troubles {
    struct trouble *list; /* in the order of their first calls */
    int count;
    int missing; /* of them: kernels that are missing, each once a target */
};

int is_trouble(const struct task *task);
/* 0, or -1 when memory ran out. Release with troubles_fini() in any case; the batch must outlive
 * it. */
int troubles_init(struct troubles *troubles, const struct batch *batch);
/* On stderr: a line each and the compiler's log, of the first 20, and how many more there are. */
void troubles_print(const struct troubles *troubles);
void troubles_fini(struct troubles *troubles);

#endif
