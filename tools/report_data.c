/* Reads a cache file for a report.
 *
 *   artifact -- by family and target --> groups       by compiler --> compilers
 *   tuned    -- newest of each key ----> searches     with the trials of their generation
 *   trial    -- later generations -----> searches without a winner
 *   miss ------ but what is tuned -----> misses
 *   counter, manifest -----------------> as they are
 *   manifest -- counted by model ------> models, calls
 *
 * The file is read by SQLite directly, in one transaction, and never written: a report must be
 * possible of a bundle on a read-only disk, and must not count as a use. The table manifest need
 * not be there.
 *
 * What a call costs, and which parameters need no mention, comes from the family, which the context
 * must know: of a family that it does not, rates are not known.
 */
#include "report_data.h"

#include "args.h"
#include "timing.h"

#include <quern/family.h>

#include <errno.h>
#include <math.h>
#include <sqlite3.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define APPLICATION_ID 1364546126 /* "QURN", as cache/schema.sql sets it */
#define NEWEST_SCHEMA 2
#define BUCKET_BYTES 1024

struct reader {
    struct report_data *data;
    struct quern_context *ctx;
    sqlite3 *sqlite;
    struct report_table *table; /* being read */
    int is_out_of_memory;
};

/* ---- Strings and rows ---------------------------------------------------------------------- */

/* How many bytes of a well-formed UTF-8 character `text` begins with; 0: none. */
static int utf8_length(const unsigned char *text)
{
    static const unsigned least[] = { 0, 0, 0x80, 0x800, 0x10000 };
    int length = *text < 0x80       ? 1
                 : *text >> 5 == 6  ? 2
                 : *text >> 4 == 14 ? 3
                 : *text >> 3 == 30 ? 4
                                    : 0;
    unsigned code = length == 1 ? *text : *text & (0x7Fu >> length);

    for (int i = 1; i < length; i++) {
        if (text[i] >> 6 != 2)
            return 0;
        code = code << 6 | (text[i] & 0x3F);
    }
    return code < least[length] || code > 0x10FFFF || (code >= 0xD800 && code <= 0xDFFF) ? 0
                                                                                         : length;
}

static char *clean_dup(struct reader *reader, const char *text)
{
    char *copy = strdup(text ? text : "");
    if (!copy) {
        reader->is_out_of_memory = 1;
        return NULL;
    }
    for (unsigned char *at = (unsigned char *)copy; *at;) {
        int length = utf8_length(at);
        if (!length || (*at < ' ' && *at != '\n') || *at == 127)
            *at = '?', length = 1;
        at += length;
    }
    return copy;
}

static char *column_dup(struct reader *reader, sqlite3_stmt *row, int column)
{
    return clean_dup(reader, (const char *)sqlite3_column_text(row, column));
}

/* Room for one more, zeroed, in a list whose size is a power of two; NULL: none. */
static void *append(struct reader *reader, void *list_at, int *count, size_t size)
{
    void *list = *(void **)list_at;
    if (!(*count & (*count - 1))) {
        void *grown = realloc(list, (size_t)(*count ? 2 * *count : 1) * size);
        if (!grown) {
            reader->is_out_of_memory = 1;
            return NULL;
        }
        *(void **)list_at = list = grown;
    }
    return memset((char *)list + (size_t)(*count)++ * size, 0, size);
}

/* ---- Statements ---------------------------------------------------------------------------- */

static int fail(const struct reader *reader)
{
    return complain(EXIT_FAILED, "cache=%s: cannot be read: %s", reader->data->path,
                    reader->is_out_of_memory ? "out of memory" : sqlite3_errmsg(reader->sqlite));
}

/* Call `take` for each row of the query. An exit code. */
static int each(struct reader *reader, const char *sql,
                void (*take)(struct reader *reader, sqlite3_stmt *row))
{
    sqlite3_stmt *row = NULL;
    int rc = sqlite3_prepare_v2(reader->sqlite, sql, -1, &row, NULL);

    while (rc == SQLITE_OK && (rc = sqlite3_step(row)) == SQLITE_ROW) {
        take(reader, row);
        rc = reader->is_out_of_memory ? SQLITE_NOMEM : SQLITE_OK;
    }
    int code = rc == SQLITE_DONE ? EXIT_DONE : fail(reader);
    sqlite3_finalize(row);
    return code;
}

static int64_t number_of(struct reader *reader, const char *sql)
{
    sqlite3_stmt *row = NULL;
    int64_t number = -1;
    if (sqlite3_prepare_v2(reader->sqlite, sql, -1, &row, NULL) == SQLITE_OK &&
        sqlite3_step(row) == SQLITE_ROW)
        number = sqlite3_column_int64(row, 0);
    sqlite3_finalize(row);
    return number;
}

/* ---- Opening ------------------------------------------------------------------------------- */

/* Whether the newest rows may be in a WAL. Where there is none, nobody is writing the file, and
 * SQLite need not make the files that it would leave beside it. */
static int has_wal(const char *path)
{
    char *real = realpath(path, NULL), *wal = NULL;
    int is_there = !real || asprintf(&wal, "%s-wal", real) < 0 || !access(wal, F_OK);
    free(real);
    free(wal);
    return is_there;
}

/* file:PATH?immutable=1 */
static char *immutable_uri(const char *path)
{
    size_t bytes = 3 * strlen(path) + 32;
    char *uri = malloc(bytes), *at = uri;

    if (!uri)
        return NULL;
    at += sprintf(at, "file:");
    for (; *path; path++)
        at += sprintf(at, strchr("%?#", *path) ? "%%%02X" : "%c", (unsigned char)*path);
    strcpy(at, "?immutable=1");
    return uri;
}

static int open_with(struct reader *reader, const char *name, int flags)
{
    sqlite3_close(reader->sqlite);
    reader->sqlite = NULL;
    int rc = sqlite3_open_v2(name, &reader->sqlite, SQLITE_OPEN_READONLY | flags, NULL);
    if (rc == SQLITE_OK) {
        sqlite3_busy_timeout(reader->sqlite, 10000);
        rc = sqlite3_exec(reader->sqlite,
                          "PRAGMA trusted_schema = OFF; BEGIN; SELECT count(*) FROM sqlite_master",
                          NULL, NULL, NULL);
    }
    return rc;
}

static int open_file(struct reader *reader)
{
    struct report_data *data = reader->data;
    struct stat info;

    if (stat(data->path, &info))
        return complain(EXIT_FAILED, "cache=%s: cannot be opened: %s", data->path, strerror(errno));
    if (!S_ISREG(info.st_mode))
        return complain(EXIT_FAILED, "cache=%s: must be a file", data->path);
    data->bytes = info.st_size;
    int rc = has_wal(data->path) ? open_with(reader, data->path, 0) : SQLITE_CANTOPEN;
    if (rc == SQLITE_CANTOPEN || rc == SQLITE_READONLY) { /* none, or its folder is read-only */
        char *uri = immutable_uri(data->path);
        rc = uri ? open_with(reader, uri, SQLITE_OPEN_URI) : SQLITE_NOMEM;
        free(uri);
    }
    if (rc != SQLITE_OK)
        return fail(reader);
    if (number_of(reader, "PRAGMA application_id") != APPLICATION_ID)
        return complain(EXIT_FAILED, "cache=%s: must be a cache of quern", data->path);
    data->schema = number_of(reader, "PRAGMA user_version");
    if (data->schema < 1 || data->schema > NEWEST_SCHEMA)
        return complain(EXIT_FAILED, "cache=%s: its schema is %lld, must be from 1 to %d",
                        data->path, (long long)data->schema, NEWEST_SCHEMA);
    return EXIT_DONE;
}

/* ---- Artifacts, misses, counters ----------------------------------------------------------- */

static void take_group(struct reader *reader, sqlite3_stmt *row)
{
    struct report_data *data = reader->data;
    struct report_group *group = append(reader, &data->groups, &data->group_count, sizeof(*group));
    if (!group)
        return;
    group->family = column_dup(reader, row, 0);
    group->target = column_dup(reader, row, 1);
    group->count = sqlite3_column_int64(row, 2);
    group->bytes = sqlite3_column_int64(row, 3);
    group->compile_ms = sqlite3_column_double(row, 4);
    group->hits = sqlite3_column_int64(row, 5);
    group->created = sqlite3_column_int64(row, 6);
    group->newest = sqlite3_column_int64(row, 7);
    group->last_use = sqlite3_column_int64(row, 8);
}

static void take_compiler(struct reader *reader, sqlite3_stmt *row)
{
    struct report_data *data = reader->data;
    struct report_compiler *compiler =
        append(reader, &data->compilers, &data->compiler_count, sizeof(*compiler));
    if (!compiler)
        return;
    compiler->name = column_dup(reader, row, 0);
    compiler->count = sqlite3_column_int64(row, 1);
    compiler->created = sqlite3_column_int64(row, 2);
    compiler->newest = sqlite3_column_int64(row, 3);
}

static void take_miss(struct reader *reader, sqlite3_stmt *row)
{
    struct report_data *data = reader->data;
    struct report_miss *miss = append(reader, &data->misses, &data->miss_count, sizeof(*miss));
    if (!miss)
        return;
    miss->spec = column_dup(reader, row, 0);
    miss->family = column_dup(reader, row, 1);
    miss->count = sqlite3_column_int64(row, 2);
    miss->first_seen = sqlite3_column_int64(row, 3);
    miss->last_seen = sqlite3_column_int64(row, 4);
}

static void take_counter(struct reader *reader, sqlite3_stmt *row)
{
    struct report_data *data = reader->data;
    const struct {
        const char *name;
        int64_t *number;
    } counters[] = { { "compiles", &data->compiles },
                     { "hits", &data->hits },
                     { "misses", &data->misses_counted },
                     { "damaged", &data->damaged } };
    const char *name = (const char *)sqlite3_column_text(row, 0);
    for (size_t i = 0; name && i < sizeof(counters) / sizeof(counters[0]); i++)
        if (!strcmp(name, counters[i].name))
            *counters[i].number = sqlite3_column_int64(row, 1);
}

static void take_table_row(struct reader *reader, sqlite3_stmt *row)
{
    struct report_table *table = reader->table;
    int count = sqlite3_column_count(row), cells = table->row_count * count;

    if (!table->row_count)
        for (int i = 0; i < count; i++) {
            char **name = append(reader, &table->names, &table->column_count, sizeof(*name));
            if (name)
                *name = clean_dup(reader, sqlite3_column_name(row, i));
        }
    for (int i = 0; i < count; i++) {
        char **cell = append(reader, &table->cells, &cells, sizeof(*cell));
        if (!cell)
            return;
        *cell = column_dup(reader, row, i);
    }
    table->row_count++;
}

/* ---- Searches ------------------------------------------------------------------------------ */

static int ends_with(const char *text, size_t length, const char *end)
{
    size_t bytes = strlen(end);
    return length >= bytes && !memcmp(text + length - bytes, end, bytes);
}

/* "family=gemm", "m=1", ... of a key's text as "gemm m=1 ...", as specs are written: without names
 * that have a dot (alignments) and scalars that are absent. */
static void bucket_of(const char *text, char *bucket, size_t bytes)
{
    size_t used = 0;
    int is_spec = 0;

    *bucket = '\0';
    while (*text) {
        size_t length = strcspn(text, "\n"), name = strcspn(text, "=\n");
        int is_family = !strncmp(text, "family=", 7);
        int is_other = memchr(text, '.', name) || !strncmp(text, "profile=", 8) ||
                       ends_with(text, length, "=absent");
        if ((is_family || (is_spec && !is_other)) && used + length + 2 < bytes) {
            int skipped = is_family ? 7 : 0;
            used += (size_t)sprintf(bucket + used, "%s%.*s", used ? " " : "", (int)length - skipped,
                                    text + skipped);
        }
        is_spec |= is_family;
        text += length + (text[length] == '\n');
    }
}

static int is_spec(struct reader *reader, const char *text, struct quern_spec *spec)
{
    return !quern_spec_parse(reader->ctx, text, spec) && !quern_spec_validate(reader->ctx, spec);
}

static int is_same_spec(struct reader *reader, const char *text, const char *canonical)
{
    struct quern_spec spec;
    char other[BUCKET_BYTES];
    return is_spec(reader, text, &spec) &&
           quern_spec_text(&spec, other, sizeof(other)) < (int)sizeof(other) &&
           !strcmp(other, canonical);
}

/* Leave out each parameter without which the text still means the same spec. */
static void make_brief(struct reader *reader, const struct quern_spec *spec, char *text)
{
    char canonical[BUCKET_BYTES], shorter[BUCKET_BYTES];
    quern_spec_text(spec, canonical, sizeof(canonical));
    for (char *at = strchr(text, ' '); at;) {
        size_t word = 1 + strcspn(at + 1, " ");
        snprintf(shorter, sizeof(shorter), "%.*s%s", (int)(at - text), text, at + word);
        if (is_same_spec(reader, shorter, canonical))
            memmove(at, at + word, strlen(at + word) + 1);
        else
            at += word;
        at = *at ? at : NULL;
    }
}

/* What the family tells of the bucket. */
static void find_spec(struct reader *reader, struct report_search *search)
{
    struct quern_spec spec;
    char brief[BUCKET_BYTES];
    int is_known = is_spec(reader, search->bucket, &spec);

    snprintf(brief, sizeof(brief), "%s", search->bucket);
    if (is_known) {
        roof_call_of(reader->ctx, &spec, &search->call);
        make_brief(reader, &spec, brief);
    }
    search->brief = clean_dup(reader, brief);
}

static void read_trial(struct reader *reader, struct report_search *search, sqlite3_stmt *row)
{
    struct report_trial *trial =
        append(reader, &search->trials, &search->trial_count, sizeof(*trial));
    if (!trial)
        return;
    trial->variant = column_dup(reader, row, 0);
    trial->config = column_dup(reader, row, 1);
    trial->outcome = column_dup(reader, row, 2);
    trial->time_us = sqlite3_column_double(row, 3);
    trial->spread_us = sqlite3_column_double(row, 4);
    trial->samples = sqlite3_column_int64(row, 5);
    trial->is_ok = trial->outcome && !strcmp(trial->outcome, "ok") && trial->time_us > 0;
    search->failed += !trial->is_ok;
}

static void read_trials(struct reader *reader, struct report_search *search)
{
    sqlite3_stmt *row = NULL;
    if (sqlite3_prepare_v2(reader->sqlite,
                           "SELECT variant, config, outcome, time_us, spread_us, samples FROM "
                           "trial WHERE key = ? AND generation = ? ORDER BY id",
                           -1, &row, NULL) == SQLITE_OK &&
        search->key) {
        sqlite3_bind_text(row, 1, search->key, -1, SQLITE_STATIC);
        sqlite3_bind_int64(row, 2, search->generation);
        while (sqlite3_step(row) == SQLITE_ROW && !reader->is_out_of_memory)
            read_trial(reader, search, row);
    }
    sqlite3_finalize(row);
}

/* Columns 0 to 2 are key, generation and text. */
static struct report_search *take_any_search(struct reader *reader, sqlite3_stmt *row)
{
    struct report_data *data = reader->data;
    struct report_search *search =
        append(reader, &data->searches, &data->search_count, sizeof(*search));
    char bucket[BUCKET_BYTES];

    if (!search)
        return NULL;
    search->speedup = NAN;
    search->key = column_dup(reader, row, 0);
    search->generation = sqlite3_column_int64(row, 1);
    search->text = column_dup(reader, row, 2);
    if (!search->text)
        return NULL;
    bucket_of(search->text, bucket, sizeof(bucket));
    search->bucket = clean_dup(reader, *bucket ? bucket : search->text);
    bucket[strcspn(bucket, " ")] = '\0';
    search->family = clean_dup(reader, bucket);
    const char *profile = strstr(search->text, "\nprofile=");
    search->profile = clean_dup(reader, profile ? profile + 9 : "");
    if (!search->bucket || !search->profile)
        return NULL;
    search->profile[strcspn(search->profile, "\n")] = '\0';
    find_spec(reader, search);
    read_trials(reader, search);
    return search;
}

static void mark_heuristic(struct report_search *search)
{
    for (int i = 0; i < search->trial_count; i++) {
        struct report_trial *trial = &search->trials[i];
        trial->is_heuristic = !strcmp(trial->variant, search->heuristic_variant) &&
                              !strcmp(trial->config, search->heuristic_config);
    }
}

static void take_tuned(struct reader *reader, sqlite3_stmt *row)
{
    struct report_search *search = take_any_search(reader, row);
    if (!search)
        return;
    search->is_won = 1;
    search->variant = column_dup(reader, row, 3);
    search->config = column_dup(reader, row, 4);
    search->time_us = sqlite3_column_double(row, 5);
    search->spread_us = sqlite3_column_double(row, 6);
    search->samples = sqlite3_column_int64(row, 7);
    search->toolkit = column_dup(reader, row, 8);
    search->provenance = column_dup(reader, row, 9);
    search->created = sqlite3_column_int64(row, 10);
    search->heuristic_variant = column_dup(reader, row, 11);
    search->heuristic_config = column_dup(reader, row, 12);
    double heuristic_us = sqlite3_column_double(row, 13);
    if (heuristic_us > 0 && search->time_us > 0)
        search->speedup = heuristic_us / search->time_us;
    search->is_disturbed = isfinite(search->speedup) &&
                           timing_is_disturbed(search->time_us, search->spread_us, heuristic_us,
                                               sqlite3_column_double(row, 14));
    if (!reader->is_out_of_memory)
        mark_heuristic(search);
}

static void take_unfinished(struct reader *reader, sqlite3_stmt *row)
{
    struct report_search *search = take_any_search(reader, row);
    if (!search)
        return;
    search->variant = clean_dup(reader, "");
    search->config = clean_dup(reader, "");
    search->toolkit = clean_dup(reader, "");
    search->provenance = clean_dup(reader, "");
    search->heuristic_variant = clean_dup(reader, "");
    search->heuristic_config = clean_dup(reader, "");
}

/* ---- All of it ----------------------------------------------------------------------------- */

/* A file of schema 1 has no word of the heuristic. */
static void tuned_query(struct reader *reader, char *sql, size_t bytes)
{
    int has_heuristic = number_of(reader, "SELECT count(*) FROM pragma_table_info('tuned') WHERE "
                                          "name = 'heuristic_us'") > 0;
    snprintf(sql, bytes,
             "SELECT key, generation, text, variant, config, time_us, spread_us, samples, toolkit, "
             "provenance, created, %s FROM tuned AS t WHERE generation = (SELECT max(generation) "
             "FROM tuned AS u WHERE u.key = t.key) ORDER BY family, profile, id",
             has_heuristic
                 ? "heuristic_variant, heuristic_config, heuristic_us, heuristic_spread_us"
                 : "'', '', 0, 0");
}

static int read_manifest(struct reader *reader)
{
    struct report_data *data = reader->data;
    struct report_table *tables[] = { &data->manifest, &data->models, &data->calls };
    const char *queries[] = {
        "SELECT * FROM manifest",
        "SELECT model, rank, target, kind, count(DISTINCT spec) AS calls, count(DISTINCT key) AS "
        "kernels FROM manifest GROUP BY model, rank, target, kind",
        "SELECT model, rank, target, used_in, substr(spec, 1, instr(spec || ' ', ' ') - 1) AS "
        "family, count(DISTINCT spec) AS calls, count(DISTINCT key) AS kernels FROM manifest "
        "GROUP BY 1, 2, 3, 4, 5",
    };
    int code = EXIT_DONE;
    for (int i = 0; i < 3 && !code; i++) {
        reader->table = tables[i];
        code = each(reader, queries[i], take_table_row);
    }
    return code;
}

static int read_tables(struct reader *reader)
{
    char tuned[512];
    const struct {
        const char *sql;
        void (*take)(struct reader *reader, sqlite3_stmt *row);
    } queries[] = {
        { "SELECT family, target, count(*), sum(blob_bytes), sum(compile_ms), sum(hits), "
          "min(created), max(created), max(last_use) FROM artifact GROUP BY family, target "
          "ORDER BY family, target",
          take_group },
        { "SELECT compiler, count(*), min(created), max(created) FROM artifact GROUP BY compiler "
          "ORDER BY compiler",
          take_compiler },
        { tuned, take_tuned },
        { "SELECT key, generation, min(text) FROM trial AS t WHERE generation > coalesce((SELECT "
          "max(generation) FROM tuned AS u WHERE u.key = t.key), 0) GROUP BY key, generation "
          "ORDER BY min(id)",
          take_unfinished },
        { "SELECT spec_text, family, count, first_seen, last_seen FROM miss WHERE key NOT IN "
          "(SELECT key FROM tuned) ORDER BY count DESC, spec_text",
          take_miss },
        { "SELECT name, value FROM counter", take_counter },
    };
    int code = EXIT_DONE;

    tuned_query(reader, tuned, sizeof(tuned));
    for (size_t i = 0; i < sizeof(queries) / sizeof(queries[0]) && !code; i++)
        code = each(reader, queries[i].sql, queries[i].take);
    reader->data->has_manifest =
        number_of(reader, "SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name = "
                          "'manifest'") > 0;
    return !code && reader->data->has_manifest ? read_manifest(reader) : code;
}

static void choose_colours(struct report_data *data)
{
    int families = 0;
    for (int i = 0; i < data->search_count; i++) {
        int j = i - 1; /* backwards: they are sorted by family, as good as */
        while (j >= 0 && strcmp(data->searches[j].family, data->searches[i].family))
            j--;
        data->searches[i].colour = j < 0 ? families++ % REPORT_COLOURS : data->searches[j].colour;
    }
}

int report_data_init(struct report_data *data, struct quern_context *ctx, const char *path)
{
    struct reader reader = { .data = data, .ctx = ctx };

    *data = (struct report_data){ .made = time(NULL), .path = strdup(path) };
    if (!data->path)
        return complain(EXIT_FAILED, "cache=%s: cannot be read: out of memory", path);
    int code = open_file(&reader);
    if (!code)
        code = read_tables(&reader);
    sqlite3_close(reader.sqlite);
    if (!code) { /* from here on it is shown, not opened */
        choose_colours(data);
        char *shown = clean_dup(&reader, data->path);
        if (!shown)
            return complain(EXIT_FAILED, "cache=%s: cannot be read: out of memory", path);
        free(data->path);
        data->path = shown;
    }
    return code;
}

static void search_fini(struct report_search *search)
{
    for (int i = 0; i < search->trial_count; i++) {
        free(search->trials[i].variant);
        free(search->trials[i].config);
        free(search->trials[i].outcome);
    }
    free(search->trials);
    char *texts[] = { search->key,
                      search->text,
                      search->family,
                      search->bucket,
                      search->profile,
                      search->variant,
                      search->config,
                      search->toolkit,
                      search->provenance,
                      search->brief,
                      search->heuristic_variant,
                      search->heuristic_config };
    for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++)
        free(texts[i]);
}

static void table_fini(struct report_table *table)
{
    for (int i = 0; i < table->row_count * table->column_count; i++)
        free(table->cells[i]);
    for (int i = 0; i < table->column_count; i++)
        free(table->names[i]);
    free(table->cells);
    free(table->names);
}

void report_data_fini(struct report_data *data)
{
    for (int i = 0; i < data->group_count; i++)
        free(data->groups[i].family), free(data->groups[i].target);
    for (int i = 0; i < data->compiler_count; i++)
        free(data->compilers[i].name);
    for (int i = 0; i < data->search_count; i++)
        search_fini(&data->searches[i]);
    for (int i = 0; i < data->miss_count; i++)
        free(data->misses[i].spec), free(data->misses[i].family);
    table_fini(&data->manifest);
    table_fini(&data->models);
    table_fini(&data->calls);
    free(data->groups);
    free(data->compilers);
    free(data->searches);
    free(data->misses);
    free(data->path);
    *data = (struct report_data){ 0 };
}

/* ---- Derived ------------------------------------------------------------------------------- */

int64_t report_artifacts(const struct report_data *data)
{
    int64_t count = 0;
    for (int i = 0; i < data->group_count; i++)
        count += data->groups[i].count;
    return count;
}

int report_winners(const struct report_data *data)
{
    int count = 0;
    for (int i = 0; i < data->search_count; i++)
        count += data->searches[i].is_won;
    return count;
}

int report_failures(const struct report_data *data)
{
    int count = 0;
    for (int i = 0; i < data->search_count; i++)
        count += data->searches[i].failed;
    return count;
}

double report_speedup(const struct report_data *data)
{
    double sum = 0;
    int count = 0;
    for (int i = 0; i < data->search_count; i++) {
        if (isfinite(data->searches[i].speedup) && data->searches[i].speedup > 0)
            sum += log(data->searches[i].speedup), count++;
    }
    return count ? exp(sum / count) : NAN;
}

double report_tflops(const struct report_search *search)
{
    const struct roof_call *call = &search->call;
    return call->flops > 0 && search->time_us > 0 ? call->flops / search->time_us * 1e-6 : NAN;
}

double report_gbps(const struct report_search *search)
{
    const struct roof_call *call = &search->call;
    return call->bytes > 0 && search->time_us > 0 ? call->bytes / search->time_us * 1e-3 : NAN;
}

double report_intensity(const struct report_search *search)
{
    const struct roof_call *call = &search->call;
    return call->flops > 0 && call->bytes > 0 ? call->flops / call->bytes : NAN;
}

double report_share(const struct report_data *data, const struct report_search *search)
{
    int is_its = !strcmp(search->profile, data->roof.name) && search->time_us > 0;
    return is_its ? roof_us(&data->roof, &search->call) / search->time_us : NAN;
}
