/* A plan for people: calls of one place and family that differ in numbers are one line,
 *
 *     where             layers  calls  what
 *     qkv                   32     32  gemm m=1,2,4..8192 n=6144 k=4096 a=bf16 b=bf16 d=bf16
 *
 * in the order in which the first of each came. Values of a parameter are those of the calls, which
 * need not be every combination: no prefill has more sequences than tokens. */
#include "model_plan.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_PARAMS = 48, MOST_VALUES = 40 };

struct row {
    const struct plan_call *call; /* the first */
    int calls, is_provided, param_count;
    struct param {
        char name[24], value[64];
        long long numbers[MOST_VALUES];
        int count; /* of numbers; 0: it is text */
    } params[MOST_PARAMS];
};

struct rows {
    struct row *list;
    int count, capacity;
};

/* ---- Making rows ----------------------------------------------------------------------------- */

static void row_init(struct row *row, const struct plan_call *call)
{
    char text[PLAN_PARAMS], *rest, *end;
    *row = (struct row){ .call = call };
    snprintf(text, sizeof(text), "%s", call->params);
    for (char *word = strtok_r(text, " ", &rest); word && row->param_count < MOST_PARAMS;
         word = strtok_r(NULL, " ", &rest)) {
        struct param *param = &row->params[row->param_count];
        char *value = strchr(word, '=');
        if (!value)
            continue;
        *value++ = 0;
        snprintf(param->name, sizeof(param->name), "%s", word);
        snprintf(param->value, sizeof(param->value), "%s", value);
        param->numbers[0] = strtoll(value, &end, 10);
        param->count = !*end;
        row->param_count++;
    }
}

static int is_alike(const struct row *row, const struct row *other)
{
    if (strcmp(row->call->family, other->call->family) ||
        strcmp(row->call->where, other->call->where) || row->call->layers != other->call->layers ||
        row->call->count != other->call->count || row->param_count != other->param_count ||
        row->is_provided != other->is_provided)
        return 0;
    for (int i = 0; i < row->param_count; i++) {
        const struct param *param = &row->params[i], *with = &other->params[i];
        if (strcmp(param->name, with->name) || !param->count != !with->count ||
            (!param->count && strcmp(param->value, with->value)))
            return 0;
    }
    return 1;
}

/* -1 if a parameter has no room for one more value. */
static int row_take(struct row *row, const struct row *other)
{
    int at[MOST_PARAMS];
    for (int i = 0; i < row->param_count; i++) {
        struct param *param = &row->params[i];
        long long number = other->params[i].numbers[0];
        for (at[i] = 0; at[i] < param->count && param->numbers[at[i]] != number; at[i]++)
            ;
        if (at[i] == MOST_VALUES)
            return -1;
    }
    for (int i = 0; i < row->param_count; i++) {
        struct param *param = &row->params[i];
        if (!param->count)
            continue;
        param->numbers[at[i]] = other->params[i].numbers[0];
        param->count += at[i] == param->count;
    }
    row->calls++;
    return 0;
}

static int rows_add(struct rows *rows, const struct plan_call *call, int is_provided)
{
    struct row row;
    row_init(&row, call);
    row.is_provided = is_provided;
    for (int i = rows->count - 1; i >= 0; i--) {
        if (is_alike(&rows->list[i], &row) && !row_take(&rows->list[i], &row))
            return 0;
    }
    if (rows->count == rows->capacity) {
        int capacity = rows->capacity ? 2 * rows->capacity : 64;
        struct row *list = realloc(rows->list, (size_t)capacity * sizeof(*list));
        if (!list)
            return -1;
        rows->list = list;
        rows->capacity = capacity;
    }
    row.calls = 1;
    rows->list[rows->count++] = row;
    return 0;
}

/* ---- Printing -------------------------------------------------------------------------------- */

static int compare(const void *a, const void *b)
{
    long long x = *(const long long *)a, y = *(const long long *)b;
    return (x > y) - (x < y);
}

/* "1,2,4..8192": four or more numbers that double are cut short. */
static void print_numbers(long long *numbers, int count)
{
    qsort(numbers, (size_t)count, sizeof(*numbers), compare);
    for (int i = 0, run; i < count; i = run) {
        for (run = i + 1; run < count && numbers[run] == 2 * numbers[run - 1]; run++)
            ;
        if (run - i < 5) {
            printf("%s%lld", i ? "," : "", numbers[i]);
            run = i + 1;
        } else {
            printf("%s%lld,%lld,%lld..%lld", i ? "," : "", numbers[i], numbers[i + 1],
                   numbers[i + 2], numbers[run - 1]);
        }
    }
}

static void row_print(struct row *row)
{
    printf("%-30s %6lld %6lld  %s", row->call->where, (long long)row->call->layers,
           (long long)row->call->count, row->call->family);
    for (int i = 0; i < row->param_count; i++) {
        struct param *param = &row->params[i];
        printf(" %s=", param->name);
        if (param->count > 1)
            print_numbers(param->numbers, param->count);
        else
            fputs(param->value, stdout);
    }
    puts(row->is_provided ? "" : "  (not provided)");
}

int plan_print(const struct plan *plan, int (*is_provided)(void *user, const struct plan_call *),
               void *user)
{
    struct rows rows = { .list = NULL };
    int status = 0, missing = 0;
    for (int i = 0; i < plan->count && !status; i++) {
        int is_here = is_provided(user, &plan->calls[i]);
        missing += !is_here;
        status = rows_add(&rows, &plan->calls[i], is_here);
    }
    if (!status)
        printf("%-30s %6s %6s  %s\n", "where", "layers", "calls", "what");
    for (int i = 0; i < rows.count && !status; i++)
        row_print(&rows.list[i]);
    if (!status)
        printf("%d calls, %d of them of operators that quern does not provide\n", plan->count,
               missing);
    free(rows.list);
    return status;
}
