/* Every call that one rank makes of a model, in prefill and in decode. */
#ifndef TOOLS_MODEL_PLAN_H
#define TOOLS_MODEL_PLAN_H

#include "model.h"

#include <jansson.h>

enum { PLAN_MOST = 100000 }; /* calls that a plan file may have */

struct plan_options {
    int64_t tp, ep; /* ranks that share each layer; ranks that have experts of their own, 1: none */
    int64_t max_tokens, max_batch, max_seq; /* of a prefill step; sequences; tokens of one */
    int64_t page;                           /* tokens of a page of the cache */
    const char *dtype, *kv_dtype;           /* NULL: the model's, and dtype */
};

enum { PLAN_PARAMS = 352 };

struct plan_call {
    char family[32];
    char params[PLAN_PARAMS]; /* "m=16 n=4096 ...": what follows the family in a spec */
    char where[80];           /* "qkv", "decode" */
    int64_t layers;           /* that make it */
    int64_t count;            /* calls in one step of the model */
    int is_extra;             /* nothing may miss it, but it is not worth a tuning of its own */
    int is_repeat;            /* a call before it has the same family and params */
    int next;                 /* model_plan_list.c's */
};

struct plan {
    struct plan_call *calls;
    int *first; /* model_plan_list.c's */
    int count, capacity;
    int is_out_of_memory;
};

/* 0, or -1 with one line in `why`, which names what does not divide and what engines do then.
 * Release with plan_fini() in any case. */
int plan_model(const struct model *model, const struct plan_options *options, struct plan *plan,
               char *why, int size);
/* A copy of the call, unless it is there with the same place. 0, or -1 when memory ran out. */
int plan_add(struct plan *plan, const struct plan_call *call);
/* The same from a file that --dry-run --json made. 0, or -1 with "plan=FILE: ..." in `why`. */
int plan_read(const char *path, struct plan *plan, char *why, int size);
/* For people, on stdout: a line for the calls that only differ in numbers. 0, or -1 when memory ran
 * out. */
int plan_print(const struct plan *plan, int (*is_provided)(void *user, const struct plan_call *),
               void *user);
/* {"m": 16, ...} of "m=16 ...". */
json_t *plan_params_json(const char *params);
void plan_fini(struct plan *plan);

#endif
