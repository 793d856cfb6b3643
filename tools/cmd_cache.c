/* quern cache: what is stored, why a request hits or misses, whether the file is sound. */
#include "cmd.h"
#include "human.h"
#include "json_out.h"
#include "nearest.h"
#include "session.h"

#include <quern/cache.h>

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define KEY_COLUMNS 12 /* enough of a key's 32 digits to tell rows apart and to give to show */

static int is_artifact(const struct quern_cache_row *row)
{
    return !strcmp(row->table, "artifact");
}

/* A tuned row's detail is "VARIANT CONFIG". */
static const char *split_detail(const struct quern_cache_row *row, char variant[64])
{
    size_t length = strcspn(row->detail, " ");
    snprintf(variant, 64, "%.*s", (int)length, row->detail);
    return row->detail + length + (row->detail[length] == ' ');
}

static json_t *row_json(const struct quern_cache_row *row)
{
    char variant[64];
    const char *config;

    if (is_artifact(row))
        return json_pack("{s:s, s:s, s:s, s:o, s:I, s:I, s:I, s:I}", "key", row->key, "family",
                         row->family, "target", row->target, "compiler", json_out_text(row->detail),
                         "bytes", (json_int_t)row->bytes, "hits", (json_int_t)row->hits, "created",
                         (json_int_t)row->created, "last_use", (json_int_t)row->last_use);
    config = split_detail(row, variant);
    return json_pack("{s:s, s:s, s:o, s:s, s:o, s:I, s:o, s:o, s:I}", "key", row->key, "family",
                     row->family, "profile", json_out_text(row->target), "variant", variant,
                     "config", json_out_config(config), "generation", (json_int_t)row->generation,
                     "time_us", json_out_real(row->time_us), "spread_us",
                     json_out_real(row->spread_us), "created", (json_int_t)row->created);
}

/* ---- ls ------------------------------------------------------------------------------------ */

static int add_row(void *user, const struct quern_cache_row *row)
{
    json_array_append_new(json_object_get(user, is_artifact(row) ? "artifacts" : "tuned"),
                          row_json(row));
    return 0;
}

/* Lists come artifacts first, so that a heading is due at the first row of each table. */
struct listing {
    int artifacts, tuned;
};

static int print_row(void *user, const struct quern_cache_row *row)
{
    struct listing *listing = user;
    char size[HUMAN_BYTES], date[HUMAN_BYTES];

    if (is_artifact(row)) {
        if (!listing->artifacts++)
            printf("%-*s  %-10s %10s %6s  %-16s  %s\n", KEY_COLUMNS, "artifact", "family", "size",
                   "hits", "last use", "target, compiler");
        human_size(row->bytes, size);
        human_date(row->last_use, date);
        printf("%.*s  %-10s %10s %6" PRId64 "  %-16s  %s, %s\n", KEY_COLUMNS, row->key, row->family,
               size, row->hits, date, row->target, row->detail);
        return 0;
    }
    if (!listing->tuned++)
        printf("%s%-*s  %-10s %10s %6s  %-16s  %s\n", listing->artifacts ? "\n" : "", KEY_COLUMNS,
               "tuned", "family", "time", "gen", "tuned at", "config, device profile");
    human_time(row->time_us, size);
    human_date(row->created, date);
    printf("%.*s  %-10s %10s %6" PRId64 "  %-16s  %s, %s\n", KEY_COLUMNS, row->key, row->family,
           size, row->generation, date, row->detail, row->target);
    return 0;
}

static int list(struct session *session)
{
    struct listing listing = { 0 };
    json_t *object = NULL;
    int status;

    if (!args_has(session->args, OPTION_json)) {
        status = quern_cache_list(session->ctx, print_row, &listing);
        if (!status && !listing.artifacts && !listing.tuned)
            printf("the cache is empty\n");
        return status ? session_fail(session, status) : EXIT_DONE;
    }
    object = json_pack("{s:[], s:[]}", "artifacts", "tuned");
    status = quern_cache_list(session->ctx, add_row, object);
    if (!status)
        return json_out_print(object);
    json_decref(object);
    return session_fail(session, status);
}

/* ---- show ---------------------------------------------------------------------------------- */

static int add_whole_row(void *user, const struct quern_cache_row *row)
{
    json_t *object = json_pack("{s:s}", "table", row->table);
    json_t *fields = row_json(row);

    json_object_update(object, fields);
    json_decref(fields);
    json_object_set_new(object, "text", json_out_text(row->text));
    if (is_artifact(row))
        json_object_set_new(object, "log", json_out_text(row->log));
    json_array_append_new(user, object);
    return 0;
}

/* Each line of text, indented. */
static void print_indented(const char *text)
{
    while (text && *text) {
        size_t length = strcspn(text, "\n");
        printf("    %.*s\n", (int)length, text);
        text += length + (text[length] == '\n');
    }
}

static int print_whole_row(void *user, const struct quern_cache_row *row)
{
    char size[HUMAN_BYTES], created[HUMAN_BYTES], used[HUMAN_BYTES];

    (void)user;
    human_size(row->bytes, size);
    human_date(row->created, created);
    human_date(row->last_use, used);
    printf("%s %s\n  family    %s\n", row->table, row->key, row->family);
    if (is_artifact(row)) {
        printf("  target    %s\n  compiler  %s\n  size      %s\n  created   %s\n", row->target,
               row->detail, size, created);
        printf("  hits      %" PRId64 ", last %s\n", row->hits, used);
    } else {
        printf("  config    %s\n  profile   %s\n  tuned     %s, generation %" PRId64 "\n",
               row->detail, row->target, created, row->generation);
        human_time(row->time_us, size);
        human_time(row->spread_us, used);
        printf("  time      %s +- %s\n", size, used);
    }
    printf("  key text\n");
    print_indented(row->text);
    if (row->log && *row->log) {
        printf("  compiler's log\n");
        print_indented(row->log);
    }
    return 0;
}

static int show(struct session *session)
{
    const char *key = session->args->words[2];
    json_t *rows = json_array();
    int status, is_json = args_has(session->args, OPTION_json), code;

    if (strspn(key, "0123456789abcdef") != strlen(key) || !*key || strlen(key) > 32) {
        code =
            complain(EXIT_USAGE, "key=%s: must be 1 to 32 hexadecimal digits, in lower case", key);
    } else {
        status =
            quern_cache_show(session->ctx, key, is_json ? add_whole_row : print_whole_row, rows);
        if (status == QUERN_MISS)
            code =
                complain(EXIT_FAILED, "key=%s: nothing stored; quern cache ls lists the keys", key);
        else if (status)
            code = session_fail(session, status);
        else
            code = is_json ? json_out_print(json_pack("{s:O}", "rows", rows)) : EXIT_DONE;
    }
    json_decref(rows);
    return code;
}

/* ---- explain ------------------------------------------------------------------------------- */

static void add_difference(void *user, const struct quern_cache_difference *line)
{
    json_array_append_new(
        user, json_pack("{s:s, s:s, s:o, s:o, s:o, s:o}", "table", line->table, "key", line->key,
                        "nearest", json_out_text(line->nearest), "name", json_out_text(line->name),
                        "wanted", json_out_text(line->wanted), "have", json_out_text(line->have)));
}

static void print_difference(void *user, const struct quern_cache_difference *line)
{
    (void)user;
    printf("%-8s %.*s  ", line->table, KEY_COLUMNS, line->key);
    if (!line->name && line->nearest)
        printf("hit: stored as asked\n");
    else if (!line->name)
        printf("miss: nothing like it is stored\n");
    else if (!line->nearest)
        printf("miss: %s: wanted %s, stored: %s\n", line->name, line->wanted, line->have);
    else if (!line->wanted)
        printf("miss: %s: nearest stored (%.*s) has %s, not wanted here\n", line->name, KEY_COLUMNS,
               line->nearest, line->have);
    else if (!line->have)
        printf("miss: %s: wanted %s, nearest stored (%.*s) has none\n", line->name, line->wanted,
               KEY_COLUMNS, line->nearest);
    else
        printf("miss: %s: wanted %s, nearest stored (%.*s) has %s\n", line->name, line->wanted,
               KEY_COLUMNS, line->nearest, line->have);
}

static int explain(struct session *session)
{
    int is_json = args_has(session->args, OPTION_json);
    struct quern_family_description family;
    struct quern_request request;
    struct quern_spec spec;
    char text[1024];

    int code = session_spec(session, 2, &spec);
    if (code)
        return code;
    json_t *lines = json_array();
    session_request(session, &spec, &request);
    request.target = session->args->text[OPTION_target];
    int status = quern_cache_explain(session->ctx, &request,
                                     is_json ? add_difference : print_difference, lines);
    if (status) {
        code = session_fail(session, status);
    } else if (is_json) {
        quern_family_describe(spec.family, &family);
        session_spec_text(&spec, text);
        code = json_out_print(json_pack("{s:s, s:s, s:O}", "family", family.name, "spec", text,
                                        "differences", lines));
    }
    json_decref(lines);
    return code;
}

/* ---- stats, verify ------------------------------------------------------------------------- */

static int stats(struct session *session)
{
    struct quern_cache_stats found;
    char size[HUMAN_BYTES];
    int status = quern_cache_stats(session->ctx, &found);

    if (status)
        return session_fail(session, status);
    if (args_has(session->args, OPTION_json))
        return json_out_print(json_pack(
            "{s:I, s:I, s:I, s:I, s:I, s:I, s:I}", "artifacts", (json_int_t)found.artifacts,
            "tuned", (json_int_t)found.tuned, "trials", (json_int_t)found.trials, "bytes",
            (json_int_t)found.bytes, "compiles", (json_int_t)found.compiles, "hits",
            (json_int_t)found.hits, "misses", (json_int_t)found.misses));
    human_size(found.bytes, size);
    printf("artifacts  %" PRId64 "\ntuned      %" PRId64 "\ntrials     %" PRId64
           "\nsize       %s\n",
           found.artifacts, found.tuned, found.trials, size);
    printf("compiles   %" PRId64 "\nhits       %" PRId64 "\nmisses     %" PRId64 "\n",
           found.compiles, found.hits, found.misses);
    return EXIT_DONE;
}

static int verify(struct session *session)
{
    int64_t checked, damaged;
    int status = quern_cache_verify(session->ctx, &checked, &damaged);
    int code = EXIT_DONE;

    if (status)
        return session_fail(session, status);
    if (args_has(session->args, OPTION_json))
        code = json_out_print(json_pack("{s:I, s:I}", "checked", (json_int_t)checked, "damaged",
                                        (json_int_t)damaged));
    else
        printf("%" PRId64 " rows checked, %" PRId64 " damaged\n", checked, damaged);
    if (!code && damaged)
        code = complain(EXIT_FAILED,
                        "damaged=%" PRId64 ": these rows were set aside and will be "
                        "built again; a base's are passed over",
                        damaged);
    return code;
}

/* ---- export, import ------------------------------------------------------------------------ */

static int print_merged(const struct session *session, const struct quern_cache_merged *merged)
{
    if (args_has(session->args, OPTION_json))
        return json_out_print(
            json_pack("{s:I, s:I, s:I, s:I, s:I, s:I}", "artifacts", (json_int_t)merged->artifacts,
                      "tuned", (json_int_t)merged->tuned, "manifest", (json_int_t)merged->manifest,
                      "artifacts_there", (json_int_t)merged->artifacts_there, "tuned_there",
                      (json_int_t)merged->tuned_there, "damaged", (json_int_t)merged->damaged));
    printf("%" PRId64 " artifacts, %" PRId64 " tuned rows and %" PRId64 " of the manifest taken; "
           "%" PRId64 " and %" PRId64 " there already; %" PRId64 " damaged\n",
           merged->artifacts, merged->tuned, merged->manifest, merged->artifacts_there,
           merged->tuned_there, merged->damaged);
    return EXIT_DONE;
}

/* Refuses a target that there is not. */
static int check_target(struct session *session, const char *target)
{
    struct quern_request request = QUERN_REQUEST_INIT;
    struct quern_spec spec;
    char *text = NULL;

    request.spec = &spec;
    request.target = target;
    int status = quern_spec_parse(session->ctx, "copy n=1", &spec);
    if (!status)
        status = quern_generate(session->ctx, &request, &text);
    quern_text_free(text);
    return status == QUERN_INVALID ? session_fail(session, status) : EXIT_DONE;
}

static int export(struct session *session)
{
    const struct args *args = session->args;
    const struct quern_cache_selection selection = { .family = args->text[OPTION_family],
                                                     .target = args->text[OPTION_target],
                                                     .model = args->text[OPTION_model] };
    struct quern_cache_merged merged;

    if (!args_has(args, OPTION_output))
        return complain(EXIT_USAGE, "output: must be given: quern cache export -o FILE");
    if (selection.family && !session_family(session, selection.family))
        return EXIT_USAGE;
    if (selection.target && check_target(session, selection.target))
        return EXIT_USAGE;
    int status = quern_cache_export(session->ctx, args->text[OPTION_output], &selection, &merged);
    return status ? session_fail(session, status) : print_merged(session, &merged);
}

static int import(struct session *session)
{
    const struct args *args = session->args;
    struct quern_cache_merged sum = { 0 };

    if (args->word_count < 3)
        return complain(EXIT_USAGE, "file: must be given: quern cache import FILE...");
    for (int i = 2; i < args->word_count; i++) {
        struct quern_cache_merged merged;
        int status = quern_cache_import(session->ctx, args->words[i], &merged);
        if (status)
            return session_fail(session, status);
        sum.artifacts += merged.artifacts;
        sum.tuned += merged.tuned;
        sum.manifest += merged.manifest;
        sum.artifacts_there += merged.artifacts_there;
        sum.tuned_there += merged.tuned_there;
        sum.damaged += merged.damaged;
    }
    return print_merged(session, &sum);
}

/* ---- gc ------------------------------------------------------------------------------------ */

static int gc(struct session *session)
{
    const struct args *args = session->args;
    const struct quern_cache_limits limits = { args->older_than * 86400, args->max_size << 20 };
    struct quern_cache_freed freed;
    char size[HUMAN_BYTES];

    if (!args->older_than && !args->max_size)
        return complain(EXIT_USAGE, "older-than, max-size: one must be given: quern cache gc "
                                    "--older-than DAYS --max-size MIB");
    int status = quern_cache_gc(session->ctx, &limits, &freed);
    if (status)
        return session_fail(session, status);
    if (args_has(args, OPTION_json))
        return json_out_print(
            json_pack("{s:I, s:I, s:I, s:I}", "artifacts", (json_int_t)freed.artifacts, "trials",
                      (json_int_t)freed.trials, "misses", (json_int_t)freed.misses, "bytes",
                      (json_int_t)freed.bytes));
    human_size(freed.bytes, size);
    printf("%" PRId64 " artifacts, %" PRId64 " trials and %" PRId64 " misses deleted, %s freed\n",
           freed.artifacts, freed.trials, freed.misses, size);
    return EXIT_DONE;
}

/* ---- Dispatch ------------------------------------------------------------------------------ */

static const struct {
    const char *name;
    int words; /* how many it takes after its name; -1: any */
    int (*run)(struct session *session);
} actions[] = {
    { "ls", 0, list },        { "show", 1, show },     { "explain", -1, explain },
    { "stats", 0, stats },    { "verify", 0, verify }, { "export", 0, export },
    { "import", -1, import }, { "gc", 0, gc },
};

int cmd_cache(const struct args *args)
{
    const char *name = args->word_count > 1 ? args->words[1] : "";
    struct session session;
    struct nearest nearest;
    int code;

    nearest_init(&nearest, name);
    for (size_t i = 0; i < sizeof(actions) / sizeof(actions[0]); i++) {
        if (strcmp(actions[i].name, name)) {
            nearest_offer(&nearest, actions[i].name);
            continue;
        }
        if (actions[i].words == 1 && args->word_count < 3)
            return complain(EXIT_USAGE, "key: must be given, as quern cache show KEY");
        if (actions[i].run != import && (code = session_require_cache(args)))
            return code;
        code = session_open(&session, args);
        if (!code && actions[i].words >= 0)
            code = session_no_more_words(&session, 2 + actions[i].words);
        if (!code)
            code = actions[i].run(&session);
        session_close(&session);
        return code;
    }
    return complain(EXIT_USAGE,
                    "cache=%s: must be one of: ls show explain stats verify export import gc%s%s%s",
                    name, nearest.best ? "; did you mean " : "", nearest.best ? nearest.best : "",
                    nearest.best ? "?" : "");
}
