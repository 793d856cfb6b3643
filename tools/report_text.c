/* A report for a terminal, and the same as JSON. */
#include "report_data.h"

#include "human.h"
#include "json_out.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>

/* ---- Text ---------------------------------------------------------------------------------- */

static const char *plural(int64_t count)
{
    return count == 1 ? "" : "s";
}

static void print_groups(const struct report_data *data)
{
    char size[HUMAN_BYTES], spent[HUMAN_BYTES], made[HUMAN_BYTES], used[HUMAN_BYTES];

    if (!data->group_count)
        return;
    printf("\n%-20s %9s %10s %10s %8s  %-16s  %-16s  %s\n", "cached", "artifacts", "size",
           "compiling", "hits", "newest", "last use", "target");
    for (int i = 0; i < data->group_count; i++) {
        const struct report_group *group = &data->groups[i];
        human_size(group->bytes, size);
        human_time(group->compile_ms * 1e3, spent);
        human_date(group->newest, made);
        human_date(group->last_use, used);
        printf("%-20s %9" PRId64 " %10s %10s %8" PRId64 "  %-16s  %-16s  %s\n", group->family,
               group->count, size, spent, group->hits, made, used, group->target);
    }
}

static void print_winner(const struct report_data *data, const struct report_search *search)
{
    char time[HUMAN_BYTES], spread[HUMAN_BYTES], date[HUMAN_BYTES];

    human_time(search->time_us, time);
    human_time(search->spread_us, spread);
    human_date(search->created, date);
    printf("%s\n    %s +- %s", search->brief, time, spread);
    if (isfinite(search->speedup))
        printf(", %.2f times the heuristic's speed%s", search->speedup,
               search->is_disturbed ? " (doubtful: timing was disturbed)" : "");
    if (isfinite(report_tflops(search)))
        printf(", %.3g TFLOP/s", report_tflops(search));
    if (isfinite(report_gbps(search)))
        printf(", %.3g GB/s", report_gbps(search));
    if (isfinite(report_share(data, search)))
        printf(", %.0f%% of its roof", 100 * report_share(data, search));
    printf("; %d tried, %d failed\n    %s %s\n    %s; %s; %s; %s\n", search->trial_count,
           search->failed, search->variant, search->config, search->profile, search->toolkit,
           search->provenance, date);
}

static void print_searches(const struct report_data *data)
{
    int shown = 0;
    for (int i = 0; i < data->search_count; i++) {
        if (!data->searches[i].is_won)
            continue;
        printf("%s", shown++ ? "" : "\ntuned\n");
        print_winner(data, &data->searches[i]);
    }
    shown = 0;
    for (int i = 0; i < data->search_count; i++) {
        const struct report_search *search = &data->searches[i];
        if (!search->is_won)
            printf("%s%s: %d tried, %d failed\n", shown++ ? "" : "\nsearches without a winner\n",
                   search->brief, search->trial_count, search->failed);
    }
}

static void print_failures(const struct report_data *data)
{
    int shown = 0;
    for (int i = 0; i < data->search_count; i++) {
        const struct report_search *search = &data->searches[i];
        for (int j = 0; j < search->trial_count; j++) {
            const struct report_trial *trial = &search->trials[j];
            if (!trial->is_ok)
                printf("%s%s\n    %s %s\n    %s\n", shown++ ? "" : "\nfailed\n", search->brief,
                       trial->variant, trial->config, trial->outcome);
        }
    }
}

static void print_table(const struct report_table *table)
{
    for (int i = 0; i < table->row_count; i++) {
        for (int j = 0; j < table->column_count; j++)
            printf("%s%s=%s", j ? ", " : "    ", table->names[j],
                   table->cells[i * table->column_count + j]);
        printf("\n");
    }
}

static void print_manifest(const struct report_data *data)
{
    int rows = data->manifest.row_count;
    printf("\nmanifest, %d row%s\n", rows, plural(rows));
    print_table(&data->models);
    if (rows)
        printf("\nby family\n");
    print_table(&data->calls);
}

void report_text(const struct report_data *data)
{
    char size[HUMAN_BYTES], date[HUMAN_BYTES];

    human_size(data->bytes, size);
    human_date(data->made, date);
    printf("%s\n%s, schema %" PRId64 ", read %s\n", data->path, size, data->schema, date);
    printf("%" PRId64
           " artifact%s, %d tuned bucket%s, %d failed candidate%s, %d spec%s not tuned\n",
           report_artifacts(data), plural(report_artifacts(data)), report_winners(data),
           plural(report_winners(data)), report_failures(data), plural(report_failures(data)),
           data->miss_count, plural(data->miss_count));
    if (!data->manifest.row_count)
        printf("%" PRId64 " compiles, %" PRId64 " hits, %" PRId64 " misses, ", data->compiles,
               data->hits, data->misses_counted);
    printf("%" PRId64 " rows set aside as damaged\n", data->damaged);
    if (isfinite(report_speedup(data)))
        printf("%.3f times the heuristics' speed, geometric mean\n", report_speedup(data));
    print_groups(data);
    print_searches(data);
    print_failures(data);
    for (int i = 0; i < data->miss_count; i++)
        printf("%s%6" PRId64 " call%s  %s\n", i ? "" : "\nused and not tuned\n",
               data->misses[i].count, data->misses[i].count == 1 ? " " : "s", data->misses[i].spec);
    for (int i = 0; i < data->compiler_count; i++)
        printf("%s%6" PRId64 " artifact%s  %s\n", i ? "" : "\ncompiled by\n",
               data->compilers[i].count, data->compilers[i].count == 1 ? " " : "s",
               data->compilers[i].name);
    if (data->has_manifest)
        print_manifest(data);
}

/* ---- JSON ---------------------------------------------------------------------------------- */

static json_t *groups_json(const struct report_data *data)
{
    json_t *list = json_array();
    for (int i = 0; i < data->group_count; i++) {
        const struct report_group *group = &data->groups[i];
        json_array_append_new(
            list,
            json_pack("{s:s, s:s, s:I, s:I, s:o, s:I, s:I, s:I, s:I}", "family", group->family,
                      "target", group->target, "count", (json_int_t)group->count, "bytes",
                      (json_int_t)group->bytes, "compile_ms", json_out_real(group->compile_ms),
                      "hits", (json_int_t)group->hits, "created", (json_int_t)group->created,
                      "newest", (json_int_t)group->newest, "last_use",
                      (json_int_t)group->last_use));
    }
    return list;
}

static json_t *trials_json(const struct report_search *search)
{
    json_t *list = json_array();
    for (int i = 0; i < search->trial_count; i++) {
        const struct report_trial *trial = &search->trials[i];
        double time_us = trial->is_ok ? trial->time_us : NAN;
        json_array_append_new(
            list, json_pack("{s:s, s:o, s:s, s:o, s:o, s:I}", "variant", trial->variant, "config",
                            json_out_config(trial->config), "outcome", trial->outcome, "time_us",
                            json_out_real(time_us), "spread_us",
                            json_out_real(trial->is_ok ? trial->spread_us : NAN), "samples",
                            (json_int_t)trial->samples));
    }
    return list;
}

static json_t *search_json(const struct report_data *data, const struct report_search *search)
{
    json_t *object = json_pack("{s:s, s:s, s:s, s:s, s:I}", "key", search->key, "bucket",
                               search->bucket, "family", search->family, "profile", search->profile,
                               "generation", (json_int_t)search->generation);
    if (search->is_won) {
        json_t *won = json_pack(
            "{s:s, s:o, s:o, s:o, s:I, s:o, s:b, s:o, s:o, s:o, s:o, s:s, s:s, s:I}", "variant",
            search->variant, "config", json_out_config(search->config), "time_us",
            json_out_real(search->time_us), "spread_us", json_out_real(search->spread_us),
            "samples", (json_int_t)search->samples, "speedup", json_out_real(search->speedup),
            "disturbed", search->is_disturbed, "tflops", json_out_real(report_tflops(search)),
            "gbps", json_out_real(report_gbps(search)), "intensity",
            json_out_real(report_intensity(search)), "roof_share",
            json_out_real(report_share(data, search)), "toolkit", search->toolkit, "provenance",
            search->provenance, "created", (json_int_t)search->created);
        json_object_update(object, won);
        json_decref(won);
    }
    json_object_set_new(object, "failed", json_integer(search->failed));
    json_object_set_new(object, "trials", trials_json(search));
    return object;
}

static json_t *searches_json(const struct report_data *data, int is_won)
{
    json_t *list = json_array();
    for (int i = 0; i < data->search_count; i++)
        if (data->searches[i].is_won == is_won)
            json_array_append_new(list, search_json(data, &data->searches[i]));
    return list;
}

static json_t *misses_json(const struct report_data *data)
{
    json_t *list = json_array();
    for (int i = 0; i < data->miss_count; i++) {
        const struct report_miss *miss = &data->misses[i];
        json_array_append_new(list,
                              json_pack("{s:s, s:s, s:I, s:I, s:I}", "spec", miss->spec, "family",
                                        miss->family, "count", (json_int_t)miss->count,
                                        "first_seen", (json_int_t)miss->first_seen, "last_seen",
                                        (json_int_t)miss->last_seen));
    }
    return list;
}

static json_t *compilers_json(const struct report_data *data)
{
    json_t *list = json_array();
    for (int i = 0; i < data->compiler_count; i++) {
        const struct report_compiler *compiler = &data->compilers[i];
        json_array_append_new(list, json_pack("{s:s, s:I, s:I, s:I}", "compiler", compiler->name,
                                              "artifacts", (json_int_t)compiler->count, "created",
                                              (json_int_t)compiler->created, "newest",
                                              (json_int_t)compiler->newest));
    }
    return list;
}

static json_t *manifest_json(const struct report_data *data)
{
    const struct report_table *table = &data->manifest;
    json_t *list = data->has_manifest ? json_array() : json_null();

    for (int i = 0; i < table->row_count; i++) {
        json_t *row = json_object();
        for (int j = 0; j < table->column_count; j++)
            json_object_set_new(row, table->names[j],
                                json_out_text(table->cells[i * table->column_count + j]));
        json_array_append_new(list, row);
    }
    return list;
}

int report_json(const struct report_data *data)
{
    json_t *totals =
        json_pack("{s:I, s:i, s:i, s:i, s:o, s:I, s:I, s:I, s:I}", "artifacts",
                  (json_int_t)report_artifacts(data), "tuned", report_winners(data), "failed",
                  report_failures(data), "not_tuned", data->miss_count, "speedup",
                  json_out_real(report_speedup(data)), "compiles", (json_int_t)data->compiles,
                  "hits", (json_int_t)data->hits, "misses", (json_int_t)data->misses_counted,
                  "damaged", (json_int_t)data->damaged);
    return json_out_print(json_pack(
        "{s:s, s:I, s:I, s:I, s:o, s:o, s:o, s:o, s:o, s:o, s:o}", "cache", data->path, "schema",
        (json_int_t)data->schema, "bytes", (json_int_t)data->bytes, "read", (json_int_t)data->made,
        "totals", totals, "artifacts", groups_json(data), "tuned", searches_json(data, 1),
        "unfinished", searches_json(data, 0), "misses", misses_json(data), "compilers",
        compilers_json(data), "manifest", manifest_json(data)));
}
