/* What a sweep tunes: specs from a model, a file, a grid, the table of misses, the standard set. */
#ifndef TOOLS_SWEEP_LIST_H
#define TOOLS_SWEEP_LIST_H

#include "session.h"

/* What a row measures of the device, besides being tuned. */
enum sweep_ceiling {
    SWEEP_NO_CEILING,
    SWEEP_COPY,   /* bytes a second of memory */
    SWEEP_TENSOR, /* flops a second of bf16 products */
    SWEEP_F32,
    SWEEP_LAUNCH /* the time of a call that does nothing much */
};

struct sweep_row {
    char *spec; /* of the bucket; rows of one bucket are one row */
    char family[64];
    enum sweep_ceiling ceiling;
    int profile; /* of several kinds of devices in one host, which: each is tuned for by itself */
    /* What came of it (sweep_run.c). */
    enum {
        SWEEP_LEFT,
        SWEEP_CLAIMED,
        SWEEP_ELSEWHERE,
        SWEEP_TUNED,
        SWEEP_SKIPPED,
        SWEEP_NOT_PROVIDED, /* no variant serves it here */
        SWEEP_FAILED
    } state;
    char *why;  /* it failed, or is not provided */
    int is_cut; /* its search had more candidates: the next tuning goes on with it */
    struct quern_tune_result result;
};

struct sweep_list {
    struct sweep_row *rows;
    int count, capacity;
    int not_provided; /* calls of a model that quern has no family for; they are no rows */
};

/* Every row that the command line asks for. An exit code, after complaining. */
int sweep_list_make(struct session *session, struct sweep_list *list);
/* Once more every row of the first kind of devices, for the kind numbered `profile`. */
int sweep_list_repeat(struct sweep_list *list, int profile);
void sweep_list_fini(struct sweep_list *list);

#endif
