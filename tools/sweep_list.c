/* What a sweep tunes.
 *
 *     --model config.json    the calls of one rank (model_plan.c)
 *     --shapes FILE          "gemm m=1 n=4096 k=4096" a line, or a CSV whose heads are parameters
 *                            and whose cells may hold several values
 *     --family F --grid      the product of lists: "m=1,2,4 n=4096 k=4096"
 *     --from-misses          what this cache served untuned on this device's profile
 *     --standard             calls of a few models (sweep_standard.c), copies
 *     --device-profile-out   the rows that measure the device
 *
 * They add up. Every spec is rounded to its bucket, and a bucket stands in the list once. A spec
 * that is wrong is an error that names its line, before anything is tuned; only a model's plan may
 * name operators that are not provided, which are counted.
 *
 * --family names the family of a grid, and of a CSV without that column. Of what quern itself
 * lists, which is all but those two, it leaves its families alone.
 */
#include "sweep_list.h"

#include "model_plan.h"
#include "sweep_standard.h"

#include <quern/cache.h>
#include <quern/family.h>

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_ROWS = 100000, LINE_BYTES = 1024, MOST_COLUMNS = 40, MOST_FAMILIES = 64 };

/* ---- The list ------------------------------------------------------------------------------ */

static struct sweep_row *find(const struct sweep_list *list, const char *spec)
{
    for (int i = 0; i < list->count; i++)
        if (!strcmp(list->rows[i].spec, spec))
            return &list->rows[i];
    return NULL;
}

static int grow(struct sweep_list *list)
{
    int capacity = list->capacity ? 2 * list->capacity : 64;
    struct sweep_row *rows = realloc(list->rows, (size_t)capacity * sizeof(*rows));
    if (!rows)
        return complain(EXIT_FAILED, "memory ran out");
    list->rows = rows;
    list->capacity = capacity;
    return EXIT_DONE;
}

static void round_up(struct quern_spec *spec)
{
    const struct quern_family *family = spec->family;
    if (family->bucket) {
        family->bucket(spec);
        return;
    }
    for (int i = 0; i < family->param_count; i++) {
        int kind = family->params[i].param_class;
        if (kind == QUERN_DYNAMIC || kind == QUERN_HINT)
            spec->values[i] = quern_power_of_two_above(spec->values[i]);
    }
}

static int add_spec(struct sweep_list *list, struct quern_spec spec, enum sweep_ceiling ceiling)
{
    char text[LINE_BYTES];
    struct quern_family_description family;
    round_up(&spec);
    quern_spec_text(&spec, text, sizeof(text));
    struct sweep_row *row = find(list, text);
    if (row) {
        row->ceiling = row->ceiling ? row->ceiling : ceiling;
        return EXIT_DONE;
    }
    if (list->count == MOST_ROWS)
        return complain(EXIT_USAGE, "sweep: must be %d specs at most", MOST_ROWS);
    int code = list->count == list->capacity ? grow(list) : EXIT_DONE;
    if (code)
        return code;
    row = &list->rows[list->count];
    memset(row, 0, sizeof(*row));
    quern_family_describe(spec.family, &family);
    snprintf(row->family, sizeof(row->family), "%s", family.name);
    row->ceiling = ceiling;
    row->spec = strdup(text);
    if (!row->spec)
        return complain(EXIT_FAILED, "memory ran out");
    list->count++;
    return EXIT_DONE;
}

/* `where` is named in the complaint, as "shapes=FILE:3". */
static int add_text(struct session *session, struct sweep_list *list, const char *text,
                    const char *where)
{
    struct quern_spec spec;
    int status = quern_spec_parse(session->ctx, text, &spec);
    if (!status)
        status = quern_spec_validate(session->ctx, &spec);
    if (status)
        return complain(EXIT_USAGE, "%s: %s", where, quern_errmsg(session->ctx));
    return add_spec(list, spec, SWEEP_NO_CEILING);
}

int sweep_list_repeat(struct sweep_list *list, int profile)
{
    int count = list->count, code = EXIT_DONE;
    for (int i = 0; i < count && !code; i++) {
        if (list->rows[i].profile)
            continue;
        if (list->count == list->capacity)
            code = grow(list);
        char *spec = code ? NULL : strdup(list->rows[i].spec);
        if (!code && !spec)
            code = complain(EXIT_FAILED, "memory ran out");
        if (code)
            break;
        struct sweep_row *row = &list->rows[list->count++];
        *row = list->rows[i];
        row->spec = spec;
        row->profile = profile;
        row->ceiling = SWEEP_NO_CEILING;
    }
    return code;
}

void sweep_list_fini(struct sweep_list *list)
{
    for (int i = 0; i < list->count; i++) {
        free(list->rows[i].spec);
        free(list->rows[i].why);
    }
    free(list->rows);
}

/* ---- --family ------------------------------------------------------------------------------ */

/* Of --family, apart by commas; without it all. */
struct chosen {
    const struct quern_family *families[MOST_FAMILIES];
    int count;
};

static int choose_families(struct session *session, struct chosen *chosen)
{
    const char *names = session->args->text[OPTION_family];
    char name[64];
    chosen->count = 0;
    for (; names && *names; names += *names == ',') {
        int length = (int)strcspn(names, ",");
        snprintf(name, sizeof(name), "%.*s", length, names);
        if (chosen->count == MOST_FAMILIES)
            return complain(EXIT_USAGE, "family: must be %d at most", MOST_FAMILIES);
        chosen->families[chosen->count] = session_family(session, name);
        if (!chosen->families[chosen->count++])
            return EXIT_USAGE;
        names += length;
    }
    return EXIT_DONE;
}

static int is_chosen(const struct chosen *chosen, const struct quern_family *family)
{
    int i = 0;
    while (i < chosen->count && chosen->families[i] != family)
        i++;
    return !chosen->count || i < chosen->count;
}

/* ---- --model ------------------------------------------------------------------------------- */

static int add_plan(struct session *session, struct sweep_list *list, const struct chosen *chosen,
                    const struct plan *plan)
{
    char text[512];
    struct quern_spec spec;
    int code = EXIT_DONE;
    for (int i = 0; i < plan->count && !code; i++) {
        if (plan->calls[i].is_extra)
            continue;
        snprintf(text, sizeof(text), "%s %s", plan->calls[i].family, plan->calls[i].params);
        if (quern_spec_parse(session->ctx, text, &spec) || quern_spec_validate(session->ctx, &spec))
            list->not_provided += !chosen->count;
        else if (is_chosen(chosen, spec.family))
            code = add_spec(list, spec, SWEEP_NO_CEILING);
    }
    return code;
}

static int add_model(struct session *session, struct sweep_list *list, const struct chosen *chosen)
{
    const struct args *args = session->args;
    const struct plan_options options = {
        .tp = args->tp,
        .ep = args->ep,
        .max_tokens = args->max_tokens,
        .max_batch = args->max_batch,
        .max_seq = args->max_seq,
        .page = args->page,
        .dtype = args->text[OPTION_dtype],
        .kv_dtype = args->text[OPTION_kv_dtype],
    };
    struct plan plan = { .calls = NULL };
    struct model model;
    char warning[512], why[512];
    int code = EXIT_DONE;
    if (model_read(args->text[OPTION_model], &model, warning, why, sizeof(why)))
        return complain(EXIT_FAILED, "%s", why);
    if (*warning && !args_has(args, OPTION_quiet))
        fprintf(stderr, "quern: %s\n", warning);
    if (plan_model(&model, &options, &plan, why, sizeof(why)))
        code = complain(EXIT_FAILED, "%s", why);
    if (!code)
        code = add_plan(session, list, chosen, &plan);
    plan_fini(&plan);
    return code;
}

/* ---- --grid -------------------------------------------------------------------------------- */

/* Take the first word of `grid`, each of its values in turn after `text`, go on with the rest. */
static int add_grid(struct session *session, struct sweep_list *list, const char *text,
                    const char *grid, const char *where)
{
    char next[LINE_BYTES], name[64];
    const char *value;
    grid += strspn(grid, " ");
    if (!*grid)
        return add_text(session, list, text, where);
    size_t length = strcspn(grid, " ");
    if (args_split(grid, name, sizeof(name), &value) || value >= grid + length)
        return complain(EXIT_USAGE, "%s=%.*s: must be PARAMETER=VALUE,VALUE...", where, (int)length,
                        grid);
    int code = EXIT_DONE;
    for (const char *end = grid + length; value <= end && !code;) {
        size_t bytes = strcspn(value, ", ");
        if (snprintf(next, sizeof(next), "%s %s=%.*s", text, name, (int)bytes, value) >=
            (int)sizeof(next))
            return complain(EXIT_USAGE, "%s: is too long", where);
        code = add_grid(session, list, next, end, where);
        value += bytes + 1;
    }
    return code;
}

/* ---- --shapes ------------------------------------------------------------------------------ */

struct table {
    char heads[LINE_BYTES];
    const char *columns[MOST_COLUMNS];
    int count;
};

/* Cells of a line in place; empty ones count, which strtok() would pass over. */
static int split_cells(char *line, const char *cells[MOST_COLUMNS])
{
    int count = 0;
    for (char *cell; count < MOST_COLUMNS && (cell = strsep(&line, ",")) != NULL;)
        cells[count++] = cell;
    return count;
}

static int has_param(const struct quern_family_description *family, const char *name)
{
    for (int i = 0; i < family->param_count; i++)
        if (!strcmp(family->params[i].name, name))
            return 1;
    return 0;
}

/* A column `dtype` of a family that has no such parameter is that of its factors and result. */
static int add_cell(char *text, size_t size, const struct quern_family_description *family,
                    const char *head, const char *cell)
{
    static const char *const operands[] = { "a", "b", "d" };
    size_t used = strlen(text);
    if (strcmp(head, "dtype") || has_param(family, "dtype"))
        return snprintf(text + used, size - used, " %s=%s", head, cell) >= (int)(size - used);
    for (int i = 0; i < 3; i++) {
        used = strlen(text);
        if (has_param(family, operands[i]) &&
            snprintf(text + used, size - used, " %s=%s", operands[i], cell) >= (int)(size - used))
            return 1;
    }
    return 0;
}

static int add_cells(struct session *session, struct sweep_list *list, const struct table *table,
                     char *line, const char *where)
{
    const char *cells[MOST_COLUMNS], *name = session->args->text[OPTION_family];
    struct quern_family_description family;
    char text[LINE_BYTES] = "";
    for (char *at = line; *at; at++) /* a cell may hold several values */
        *at = *at == ' ' ? '|' : *at;
    int count = split_cells(line, cells);
    for (int i = 0; i < count && i < table->count; i++)
        if (!strcmp(table->columns[i], "family"))
            name = cells[i];
    if (!name)
        return complain(EXIT_USAGE, "family: must be given: --family, or a column of that name");
    const struct quern_family *found = session_family(session, name);
    if (!found)
        return EXIT_USAGE;
    quern_family_describe(found, &family);
    for (int i = 0; i < count && i < table->count; i++) {
        const char *head = table->columns[i];
        if (!*cells[i] || !strcmp(head, "family") || !strcmp(head, "note"))
            continue;
        if (add_cell(text, sizeof(text), &family, head, cells[i]))
            return complain(EXIT_USAGE, "%s: is too long", where);
    }
    for (char *at = text; *at; at++)
        *at = *at == '|' ? ',' : *at;
    return add_grid(session, list, name, text, where);
}

/* Names apart by commas. */
static int is_heads(const char *line)
{
    for (; *line; line++)
        if (!isalnum((unsigned char)*line) && !strchr("_ ,", *line))
            return 0;
    return 1;
}

static int add_line(struct session *session, struct sweep_list *list, struct table *table,
                    char *line, const char *where)
{
    if (!table->count && strchr(line, ',') && !strchr(line, '=')) {
        if (!is_heads(line))
            return complain(EXIT_USAGE,
                            "%s: must be a spec, as gemm m=1 n=64 k=64, or names of parameters "
                            "with commas between",
                            where);
        snprintf(table->heads, sizeof(table->heads), "%s", line);
        table->count = split_cells(table->heads, table->columns);
        return EXIT_DONE;
    }
    size_t name = strcspn(line, ";\t=");
    if (!table->count && (line[name] == ';' || line[name] == '\t'))
        return complain(EXIT_USAGE, "%s: names must have ',' between, not %s", where,
                        line[name] == ';' ? "';'" : "a tab");
    return table->count ? add_cells(session, list, table, line, where)
                        : add_text(session, list, line, where);
}

static int add_shapes(struct session *session, struct sweep_list *list)
{
    const char *path = session->args->text[OPTION_shapes];
    char line[LINE_BYTES], where[LINE_BYTES];
    struct table table = { .count = 0 };
    int code = EXIT_DONE, specs = 0;
    FILE *file = fopen(path, "re");
    if (!file)
        return complain(EXIT_FAILED, "shapes=%s: %s", path, strerror(errno));
    for (int number = 1; !code && fgets(line, sizeof(line), file); number++) {
        snprintf(where, sizeof(where), "shapes=%s:%d", path, number);
        if (!strchr(line, '\n') && !feof(file))
            code = complain(EXIT_USAGE, "%s: is too long", where);
        line[strcspn(line, "\r\n")] = 0;
        if (!code && *line && *line != '#') {
            int has_heads = table.count > 0;
            code = add_line(session, list, &table, line, where);
            specs += has_heads || !table.count;
        }
    }
    if (!code && ferror(file))
        code = complain(EXIT_FAILED, "shapes=%s: %s", path, strerror(errno));
    if (!code && !specs)
        code = complain(EXIT_USAGE, "shapes=%s: must have a spec, and has none", path);
    fclose(file);
    return code;
}

/* ---- --from-misses ------------------------------------------------------------------------- */

struct misses {
    struct session *session;
    struct sweep_list *list;
    const struct chosen *chosen;
    struct quern_profile profile;
    int code;
};

/* A miss of a family that this build has not, or has otherwise, is passed over. */
static int add_miss(void *user, const struct quern_cache_miss *miss)
{
    struct misses *misses = user;
    struct quern_spec spec;
    if (strcmp(miss->profile, misses->profile.name) ||
        quern_spec_parse(misses->session->ctx, miss->spec, &spec) ||
        quern_spec_validate(misses->session->ctx, &spec) || !is_chosen(misses->chosen, spec.family))
        return 0;
    misses->code = add_spec(misses->list, spec, SWEEP_NO_CEILING);
    return misses->code;
}

static int add_misses(struct session *session, struct sweep_list *list, const struct chosen *chosen)
{
    struct misses misses = { .session = session, .list = list, .chosen = chosen };
    int status = quern_profile_of(session->ctx, &misses.profile);
    if (!status)
        status = quern_cache_misses(session->ctx, add_miss, &misses);
    return misses.code ? misses.code : status ? session_fail(session, status) : EXIT_DONE;
}

/* ---- The standard set, and what measures the device ---------------------------------------- */

/* What the models also do and quern has no family for is not this list's business. */
static int add_standard(struct session *session, struct sweep_list *list,
                        const struct chosen *chosen)
{
    char why[512];
    struct quern_spec copy;
    struct plan plan;
    int before = list->not_provided;
    int code = sweep_standard(&plan, why, sizeof(why)) ? complain(EXIT_FAILED, "%s", why)
                                                       : add_plan(session, list, chosen, &plan);
    list->not_provided = before;
    plan_fini(&plan);
    if (!code && !quern_spec_init(session->ctx, "copy", &copy) && is_chosen(chosen, copy.family))
        code = add_grid(session, list, "copy", "n=1024,1048576,268435456 dtype=bf16", "standard");
    return code;
}

/* Large enough to fill the device, and on a CPU to be done in a moment. */
static int add_ceilings(struct session *session, struct sweep_list *list)
{
    static const struct {
        enum sweep_ceiling ceiling;
        int is_gpu;
        const char *spec;
    } rows[] = {
        { SWEEP_COPY, 1, "copy n=268435456" },
        { SWEEP_TENSOR, 1, "gemm m=8192 n=8192 k=8192 a=bf16 b=bf16 d=bf16" },
        { SWEEP_F32, 1, "gemm m=4096 n=4096 k=4096" },
        { SWEEP_LAUNCH, 1, "copy n=1" },
        { SWEEP_COPY, 0, "copy n=33554432" },
        { SWEEP_F32, 0, "gemm m=1024 n=1024 k=1024" },
        { SWEEP_TENSOR, 0, "gemm m=1024 n=1024 k=1024 a=bf16 b=bf16 d=bf16" },
        { SWEEP_LAUNCH, 0, "copy n=1" },
    };
    struct quern_profile profile;
    struct quern_spec spec;
    int status = quern_profile_of(session->ctx, &profile), code = EXIT_DONE;
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]) && !status && !code; i++) {
        if (rows[i].is_gpu != (profile.kind == QUERN_CUDA))
            continue;
        status = quern_spec_parse(session->ctx, rows[i].spec, &spec);
        if (!status)
            code = add_spec(list, spec, rows[i].ceiling);
    }
    return status ? session_fail(session, status) : code;
}

/* ---- All together -------------------------------------------------------------------------- */

static int check_sources(const struct args *args)
{
    const char *family = args->text[OPTION_family];
    if (args_has(args, OPTION_grid) && !family)
        return complain(EXIT_USAGE, "family: must be given with --grid: --family gemm");
    if (family && !args_has(args, OPTION_grid) && !args_has(args, OPTION_shapes) &&
        !args_has(args, OPTION_model) && !args_has(args, OPTION_from_misses) &&
        !args_has(args, OPTION_standard))
        return complain(EXIT_USAGE,
                        "grid: must be given with --family: --grid \"m=1,2 n=4096\"; or "
                        "--model, --shapes, --from-misses or --standard");
    if (family && strchr(family, ',') &&
        (args_has(args, OPTION_grid) || args_has(args, OPTION_shapes)))
        return complain(EXIT_USAGE, "family=%s: must be one with --grid and --shapes", family);
    if (!args_has(args, OPTION_model) && !args_has(args, OPTION_shapes) &&
        !args_has(args, OPTION_grid) && !args_has(args, OPTION_from_misses) &&
        !args_has(args, OPTION_standard) && !args_has(args, OPTION_device_profile_out))
        return complain(EXIT_USAGE, "sweep: what to tune must be given: --model, --shapes, --grid, "
                                    "--from-misses, --standard or --device-profile-out");
    return EXIT_DONE;
}

int sweep_list_make(struct session *session, struct sweep_list *list)
{
    const struct args *args = session->args;
    struct chosen chosen;
    int code = check_sources(args);
    if (!code)
        code = choose_families(session, &chosen);
    if (!code && args_has(args, OPTION_device_profile_out))
        code = add_ceilings(session, list);
    if (!code && args_has(args, OPTION_model))
        code = add_model(session, list, &chosen);
    if (!code && args_has(args, OPTION_shapes))
        code = add_shapes(session, list);
    if (!code && args_has(args, OPTION_grid))
        code = add_grid(session, list, args->text[OPTION_family], args->text[OPTION_grid], "grid");
    if (!code && args_has(args, OPTION_from_misses))
        code = add_misses(session, list, &chosen);
    if (!code && args_has(args, OPTION_standard))
        code = add_standard(session, list, &chosen);
    return code;
}
