/* Troubles of a batch. The tasks in trouble are sorted by what is wrong with them, so that those of
 * one trouble lie side by side, and what comes of it by the first task of each:
 *
 *     tasks      fine | A | B | A | fine | A
 *     sorted     A A A | B
 *     troubles   3 of A, 1 of B
 *
 * A sealed miss names the key of the artifact after a fixed beginning, and then the call's bucket,
 * which differs between calls of one kernel: it is the key that counts. */
#include "model_trouble.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_LINES = 20, PARAMS_SHOWN = 64 };

static const char missing_artifact[] = "mode=sealed: artifact ";

int is_trouble(const struct task *task)
{
    return task->state == TASK_FAILED || task->state == TASK_MISSING;
}

static int is_missing_artifact(const struct task *task)
{
    return task->why && !strncmp(task->why, missing_artifact, sizeof(missing_artifact) - 1);
}

/* ---- Which tasks have the same --------------------------------------------------------------- */

/* The part of `why` that says which trouble it is, and its length. */
static const char *cause_of(const struct task *task, int *length)
{
    const char *why = task->why ? task->why : "";
    if (!is_missing_artifact(task)) {
        *length = (int)strlen(why);
        return why;
    }
    why += sizeof(missing_artifact) - 1;
    *length = (int)strcspn(why, " ");
    return why;
}

static int compare_causes(const struct task *a, const struct task *b)
{
    int lengths[2];
    const char *first = cause_of(a, &lengths[0]), *second = cause_of(b, &lengths[1]);
    int order = a->state - b->state;
    order = order ? order : strcmp(a->target, b->target);
    order = order ? order : strcmp(a->call->family, b->call->family);
    order = order ? order : lengths[0] - lengths[1];
    return order ? order : memcmp(first, second, (size_t)lengths[0]);
}

static int compare_tasks(const void *a, const void *b)
{
    const struct trouble *x = a, *y = b;
    int order = compare_causes(x->task, y->task);
    return order ? order : (x->task > y->task) - (x->task < y->task);
}

static int compare_places(const void *a, const void *b)
{
    const struct trouble *x = a, *y = b;
    return (x->task > y->task) - (x->task < y->task);
}

int troubles_init(struct troubles *troubles, const struct batch *batch)
{
    int tasks = 0;
    *troubles =
        (struct troubles){ .list = calloc((size_t)batch->count + 1, sizeof(struct trouble)) };
    struct trouble *list = troubles->list;
    if (!list)
        return -1;
    for (int i = 0; i < batch->count; i++)
        if (is_trouble(&batch->tasks[i]))
            list[tasks++].task = &batch->tasks[i];
    qsort(list, (size_t)tasks, sizeof(*list), compare_tasks);
    for (int i = 0; i < tasks; i++) {
        if (!i || compare_causes(list[troubles->count - 1].task, list[i].task))
            list[troubles->count++] = (struct trouble){ list[i].task, 0 };
        list[troubles->count - 1].calls++;
    }
    qsort(list, (size_t)troubles->count, sizeof(*list), compare_places);
    for (int i = 0; i < troubles->count; i++)
        troubles->missing += list[i].task->state == TASK_MISSING;
    return 0;
}

void troubles_fini(struct troubles *troubles)
{
    free(troubles->list);
    *troubles = (struct troubles){ .list = NULL };
}

/* ---- Printing -------------------------------------------------------------------------------- */

/* "sm_90a: gemm m=1 n=4096 k=3584: artifact 5e08... is missing (5 calls)" */
static void print_missing(const struct trouble *trouble)
{
    const struct task *task = trouble->task;
    const char *params = task->call->params;
    int length;
    const char *key = cause_of(task, &length);
    complain(EXIT_FAILED, "%s: %s %.*s%s: artifact %.*s is missing (%d call%s)", task->target,
             task->call->family, PARAMS_SHOWN, params, strlen(params) > PARAMS_SHOWN ? "..." : "",
             length, key, trouble->calls, trouble->calls > 1 ? "s" : "");
}

static void print_failed(const struct trouble *trouble)
{
    const struct task *task = trouble->task;
    char calls[48] = "";
    if (trouble->calls > 1)
        snprintf(calls, sizeof(calls), " (%d calls)", trouble->calls);
    complain(EXIT_FAILED, "%s: %s %s: %s%s", task->target, task->call->family, task->call->params,
             task->why ? task->why : "", calls);
    if (task->log && *task->log)
        fprintf(stderr, "%s\n", task->log);
}

void troubles_print(const struct troubles *troubles)
{
    for (int i = 0; i < troubles->count && i < MOST_LINES; i++) {
        if (is_missing_artifact(troubles->list[i].task))
            print_missing(&troubles->list[i]);
        else
            print_failed(&troubles->list[i]);
    }
    if (troubles->count > MOST_LINES)
        complain(EXIT_FAILED, "... and %d more; --json has all", troubles->count - MOST_LINES);
}
