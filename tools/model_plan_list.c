/* The calls of a plan, in the order they came in, and a table that finds one by its spec:
 *
 *     calls   [ gemm m=1 .. "qkv" | gemm m=2 .. | ... ]
 *     first   [ 0 | 17 | 3 | 0 ... ]   of a hash the latest call, plus 1
 *     next      of each call: an earlier one of that hash, plus 1
 */
#include "model_plan.h"

#include <stdlib.h>
#include <string.h>

static uint64_t hash_text(uint64_t hash, const char *text)
{
    for (; *text; text++)
        hash = (hash ^ (unsigned char)*text) * UINT64_C(0x100000001b3);
    return hash;
}

static size_t place_of(const struct plan *plan, const struct plan_call *call)
{
    uint64_t hash = hash_text(UINT64_C(0xcbf29ce484222325), call->family);
    return (size_t)(hash_text(hash, call->params) % (uint64_t)plan->capacity);
}

static void link_call(struct plan *plan, int index)
{
    int *first = &plan->first[place_of(plan, &plan->calls[index])];
    plan->calls[index].next = *first;
    *first = index + 1;
}

static int grow(struct plan *plan)
{
    int capacity = plan->capacity ? plan->capacity * 2 : 1024;
    struct plan_call *calls = realloc(plan->calls, (size_t)capacity * sizeof(*calls));
    if (!calls)
        return -1;
    plan->calls = calls;
    int *first = calloc((size_t)capacity, sizeof(*first));
    if (!first)
        return -1;
    free(plan->first);
    plan->first = first;
    plan->capacity = capacity;
    for (int i = 0; i < plan->count; i++)
        link_call(plan, i);
    return 0;
}

int plan_add(struct plan *plan, const struct plan_call *call)
{
    int is_repeat = 0;
    if (plan->count == plan->capacity && grow(plan))
        return -1;
    for (int i = plan->first[place_of(plan, call)]; i; i = plan->calls[i - 1].next) {
        struct plan_call *other = &plan->calls[i - 1];
        if (strcmp(other->family, call->family) || strcmp(other->params, call->params))
            continue;
        if (!strcmp(other->where, call->where)) {
            other->is_extra &= call->is_extra;
            return 0;
        }
        is_repeat = 1;
    }
    plan->calls[plan->count] = *call;
    plan->calls[plan->count].is_repeat = is_repeat;
    link_call(plan, plan->count++);
    return 0;
}

void plan_fini(struct plan *plan)
{
    free(plan->calls);
    free(plan->first);
    *plan = (struct plan){ .calls = NULL };
}
