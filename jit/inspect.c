/* Looking into the cache and at the machine: what <quern/cache.h> and quern_doctor() answer.
 *
 * explain works on lines. The request's tuning key, then the key of each unit of its plan, is
 * looked up among the stored ones; where it is missing, the stored key with the fewest differing
 * lines is the nearest, and each differing line is reported by name, the text before '='. Keys are
 * compared only where they have the same places: the device profile of a tuned row, target and
 * template of an artifact. A kernel of another place differs in every line, which says less than
 * the one line that names the places where something is stored.
 */
#include <quern/cache.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "jit/build.h"
#include "jit/device.h"
#include "jit/plan.h"
#include "jit/target.h"
#include "jit/text.h"

int quern_cache_stats(struct quern_context *ctx, struct quern_cache_stats *stats)
{
    struct qn_store_counters counters;
    QN_TRY(qn_require(ctx, "stats", stats));
    if (qn_store_counters(ctx->store, &counters) != QN_STORE_OK)
        return qn_fail(ctx, QUERN_STORE, "cache=%s: cannot be read", qn_store_path(ctx->store));
    *stats = (struct quern_cache_stats){
        .artifacts = counters.artifacts,
        .tuned = counters.tuned,
        .trials = counters.trials,
        .misses_recorded = counters.misses_recorded,
        .bytes = counters.bytes,
        .compiles = counters.compiles,
        .hits = counters.hits,
        .misses = counters.misses,
    };
    return QUERN_OK;
}

int quern_cache_verify(struct quern_context *ctx, int64_t *checked, int64_t *damaged)
{
    QN_TRY(qn_require(ctx, "checked", checked));
    QN_TRY(qn_require(ctx, "damaged", damaged));
    int64_t rows = 0, bad = 0;
    for (struct qn_store *file = ctx->store; file; file = qn_store_base(file)) {
        int64_t more_rows, more_bad;
        if (qn_store_verify(file, &more_rows, &more_bad) != QN_STORE_OK)
            return qn_fail(ctx, QUERN_STORE, "%s=%s: cannot be read",
                           file == ctx->store ? "cache" : "base", qn_store_path(file));
        rows += more_rows;
        bad += more_bad;
    }
    *checked = rows;
    *damaged = bad;
    return QUERN_OK;
}

/* ---- Rows ---------------------------------------------------------------------------------- */

struct listing {
    quern_cache_visit *visit;
    void *user;
    int64_t count;
    int ended; /* what visit returned, once that was not 0 */
};

static int visit_artifact(void *user, const struct qn_artifact *artifact)
{
    struct listing *listing = user;
    const struct quern_cache_row row = {
        .table = "artifact",
        .key = artifact->key,
        .text = artifact->text,
        .family = artifact->family,
        .target = artifact->target,
        .detail = artifact->compiler,
        .log = artifact->log,
        .bytes = (int64_t)artifact->blob_bytes,
        .hits = artifact->hits,
        .created = artifact->created,
        .last_use = artifact->last_use,
    };
    listing->count++;
    return listing->ended = listing->visit(listing->user, &row);
}

static int visit_tuned(void *user, const struct qn_tuned *tuned)
{
    struct listing *listing = user;
    char detail[1024];
    snprintf(detail, sizeof(detail), "%s %s", tuned->variant, tuned->config);
    const struct quern_cache_row row = {
        .table = "tuned",
        .key = tuned->key,
        .text = tuned->text,
        .family = tuned->family,
        .target = tuned->profile,
        .detail = detail,
        .log = "",
        .created = tuned->created,
        .last_use = tuned->created,
        .generation = tuned->generation,
        .time_us = tuned->time_us,
        .spread_us = tuned->spread_us,
    };
    listing->count++;
    return listing->ended = listing->visit(listing->user, &row);
}

static int visit_rows(struct quern_context *ctx, const char *prefix, struct listing *listing)
{
    if (qn_artifact_each(ctx->store, prefix, visit_artifact, listing) != QN_STORE_OK ||
        (!listing->ended && qn_tuned_list(ctx->store, prefix, visit_tuned, listing) != QN_STORE_OK))
        return qn_fail(ctx, QUERN_STORE, "cache=%s: cannot be read", qn_store_path(ctx->store));
    return listing->ended;
}

int quern_cache_list(struct quern_context *ctx, quern_cache_visit *visit, void *user)
{
    struct listing listing = { visit, user, 0, 0 };
    QN_TRY(qn_require(ctx, "visit", (const void *)(uintptr_t)visit));
    return visit_rows(ctx, "", &listing);
}

struct miss_listing {
    int (*visit)(void *user, const struct quern_cache_miss *miss);
    void *user;
    int ended;
};

static int visit_miss(void *user, const struct qn_miss *miss)
{
    struct miss_listing *listing = user;
    char profile[128] = "";
    const char *line = strstr(miss->text, "\nprofile=");
    if (line)
        snprintf(profile, sizeof(profile), "%.*s", (int)strcspn(line + 9, "\n"), line + 9);
    const struct quern_cache_miss row = { miss->spec, profile, miss->count, miss->first_seen,
                                          miss->last_seen };
    return listing->ended = listing->visit(listing->user, &row);
}

int quern_cache_misses(struct quern_context *ctx,
                       int (*visit)(void *user, const struct quern_cache_miss *miss), void *user)
{
    struct miss_listing listing = { visit, user, 0 };
    QN_TRY(qn_require(ctx, "visit", (const void *)(uintptr_t)visit));
    if (qn_miss_each(ctx->store, visit_miss, &listing) != QN_STORE_OK)
        return qn_fail(ctx, QUERN_STORE, "cache=%s: cannot be read", qn_store_path(ctx->store));
    return listing.ended;
}

int quern_cache_show(struct quern_context *ctx, const char *prefix, quern_cache_visit *visit,
                     void *user)
{
    struct listing listing = { visit, user, 0, 0 };
    QN_TRY(qn_require(ctx, "visit", (const void *)(uintptr_t)visit));
    if (!prefix || !*prefix || strspn(prefix, "0123456789abcdef") != strlen(prefix))
        return qn_fail(ctx, QUERN_INVALID, "key=%s: must be hexadecimal digits (quern cache ls)",
                       prefix ? prefix : "NULL");
    QN_TRY(visit_rows(ctx, prefix, &listing));
    return listing.count ? QUERN_OK
                         : qn_fail(ctx, QUERN_MISS, "key=%s: no row of cache=%s starts with it",
                                   prefix, qn_store_path(ctx->store));
}

/* ---- Explain ------------------------------------------------------------------------------- */

/* Splits a key's text into its lines, in place; returns how many. */
static int split_lines(char *text, char **lines, int max)
{
    int count = 0;
    char *rest = NULL;
    for (char *line = strtok_r(text, "\n", &rest); line && count < max;
         line = strtok_r(NULL, "\n", &rest))
        lines[count++] = line;
    return count;
}

/* The value of `name` (of given length) among lines, or NULL. */
static const char *value_of(char *const *lines, int count, const char *name, size_t length)
{
    for (int i = 0; i < count; i++) {
        if (!strncmp(lines[i], name, length) && lines[i][length] == '=')
            return lines[i] + length + 1;
    }
    return NULL;
}

#define MAX_LINES 256

struct key_lines {
    char *text; /* owned; cut into lines */
    char *lines[MAX_LINES];
    int count;
};

static int key_lines_init(struct key_lines *key, const char *text)
{
    key->text = strdup(text);
    if (!key->text)
        return QUERN_NO_MEMORY;
    key->count = split_lines(key->text, key->lines, MAX_LINES);
    return QUERN_OK;
}

/* Lines whose value differs, those of only one side included; the hash of the whole source says
 * nothing that the other lines do not, so it does not count. */
static int compare_keys(const struct key_lines *wanted, const struct key_lines *have,
                        void (*line)(void *, const struct quern_cache_difference *), void *user,
                        struct quern_cache_difference *difference)
{
    int differing = 0;
    for (int side = 0; side < 2; side++) {
        const struct key_lines *from = side ? have : wanted, *other = side ? wanted : have;
        for (int i = 0; i < from->count; i++) {
            size_t length = strcspn(from->lines[i], "=");
            const char *there = value_of(other->lines, other->count, from->lines[i], length);
            const char *here = from->lines[i] + length + 1;
            if (!strncmp(from->lines[i], "source=", 7) || (there && (side || !strcmp(there, here))))
                continue;
            differing++;
            if (!line)
                continue;
            char name[128];
            snprintf(name, sizeof(name), "%.*s", (int)length, from->lines[i]);
            difference->name = name;
            difference->wanted = side ? NULL : here;
            difference->have = side ? here : there;
            line(user, difference);
        }
    }
    return differing;
}

/* ---- The nearest key ----------------------------------------------------------------------- */

enum { MAX_PLACES = 2 };
static const char *const tuned_places[MAX_PLACES] = { "profile" };
static const char *const artifact_places[MAX_PLACES] = { "target", "template" };

struct nearest {
    const char *family; /* only this family's rows */
    struct key_lines wanted;
    const char *const *places;
    char others[MAX_PLACES][256]; /* of each place, the first that differs, what rows have there */
    char *text;                   /* of the nearest; owned */
    char key[QN_KEY_HEX];
    int differing;
};

/* Writes what a key has at a place; "" if nothing. The template is the first file. */
static void place_text(const struct key_lines *key, const char *place, char *text, size_t bytes)
{
    bool is_template = !strcmp(place, "template");
    const char *prefix = is_template ? "file" : place;
    size_t length = strlen(prefix);
    *text = 0;
    for (int i = 0; i < key->count; i++) {
        const char *rest = key->lines[i] + length + 1;
        if (strncmp(key->lines[i], prefix, length) || rest[-1] != (is_template ? '.' : '='))
            continue;
        int end = is_template ? (int)strcspn(rest, "=") : (int)strlen(rest);
        snprintf(text, bytes, "%.*s", end, rest);
        return;
    }
}

/* Adds name to a list "sm_80, sm_90a" that lacks it. */
static void list_add_once(char *list, size_t bytes, const char *name)
{
    size_t length = strlen(name);
    for (const char *word = list; *word; word += strspn(word, ", ")) {
        size_t end = strcspn(word, ",");
        if (end == length && !memcmp(word, name, length))
            return;
        word += end;
    }
    qn_list_add(list, bytes, name);
}

/* False if the key is of another place, which is noted. */
static bool is_same_place(struct nearest *nearest, const struct key_lines *have)
{
    for (int p = 0; p < MAX_PLACES && nearest->places[p]; p++) {
        char here[128], there[128];
        place_text(&nearest->wanted, nearest->places[p], here, sizeof(here));
        place_text(have, nearest->places[p], there, sizeof(there));
        if (strcmp(here, there)) {
            list_add_once(nearest->others[p], sizeof(nearest->others[p]), there);
            return false;
        }
    }
    return true;
}

static void offer(struct nearest *nearest, const char *key, const char *family, const char *text)
{
    struct key_lines have;
    if (strcmp(family, nearest->family) || key_lines_init(&have, text))
        return;
    if (is_same_place(nearest, &have)) {
        int differing = compare_keys(&nearest->wanted, &have, NULL, NULL, NULL);
        if (!nearest->text || differing < nearest->differing) {
            free(nearest->text);
            nearest->text = strdup(text);
            nearest->differing = differing;
            memcpy(nearest->key, key, QN_KEY_HEX);
        }
    }
    free(have.text);
}

static int offer_artifact(void *user, const struct qn_artifact *artifact)
{
    offer(user, artifact->key, artifact->family, artifact->text);
    return 0;
}

static int offer_tuned(void *user, const struct qn_tuned *tuned)
{
    offer(user, tuned->key, tuned->family, tuned->text);
    return 0;
}

/* Nothing is stored for this place: one line, of the place closest to the request's that is. */
static void explain_place(const struct nearest *nearest,
                          void (*line)(void *, const struct quern_cache_difference *), void *user,
                          struct quern_cache_difference *difference)
{
    char wanted[128];
    for (int p = MAX_PLACES - 1; p >= 0; p--) {
        if (!*nearest->others[p])
            continue;
        place_text(&nearest->wanted, nearest->places[p], wanted, sizeof(wanted));
        difference->name = nearest->places[p];
        difference->wanted = wanted;
        difference->have = nearest->others[p];
        break;
    }
    line(user, difference);
}

static int explain_key(struct quern_context *ctx, const char *table, const char *family,
                       const char *text,
                       void (*line)(void *, const struct quern_cache_difference *), void *user)
{
    bool is_tuned = !strcmp(table, "tuned");
    struct nearest nearest = { .family = family,
                               .places = is_tuned ? tuned_places : artifact_places };
    struct key_lines have = { 0 };
    char hex[QN_KEY_HEX];
    qn_key_hex(text, strlen(text), hex);
    struct quern_cache_difference difference = { .table = table, .key = hex };
    if (key_lines_init(&nearest.wanted, text))
        return qn_fail(ctx, QUERN_NO_MEMORY, "out of memory");
    for (struct qn_store *file = ctx->store; file; file = qn_store_base(file)) {
        if (is_tuned)
            qn_tuned_list(file, "", offer_tuned, &nearest);
        else
            qn_artifact_each(file, "", offer_artifact, &nearest);
    }
    if (nearest.text) {
        difference.nearest = nearest.key;
        if (!nearest.differing)
            line(user, &difference);
        else if (!key_lines_init(&have, nearest.text))
            compare_keys(&nearest.wanted, &have, line, user, &difference);
    } else {
        explain_place(&nearest, line, user, &difference);
    }
    free(have.text);
    free(nearest.text);
    free(nearest.wanted.text);
    return QUERN_OK;
}

static int explain_units(struct quern_context *ctx, const struct qn_build_request *request,
                         void (*line)(void *, const struct quern_cache_difference *), void *user)
{
    char **keys = NULL;
    int count = 0;
    int status = qn_unit_keys(ctx, request, &keys, &count);
    for (int i = 0; i < count && !status; i++)
        status =
            explain_key(ctx, "artifact", request->bucket->spec.family->name, keys[i], line, user);
    for (int i = 0; i < count; i++)
        free(keys[i]);
    free(keys);
    return status;
}

int quern_cache_explain(struct quern_context *ctx, const struct quern_request *request,
                        void (*line)(void *user, const struct quern_cache_difference *difference),
                        void *user)
{
    struct quern_target target;
    struct quern_profile profile;
    struct qn_bucket bucket;
    char *text = NULL, *group = NULL;
    QN_TRY(qn_request_check(ctx, request));
    QN_TRY(qn_require(ctx, "line", (const void *)(uintptr_t)line));
    QN_TRY(qn_target_of(ctx, request, &target, &profile));
    qn_bucket_make(request->spec, request->arrays, &bucket);
    const struct qn_build_request build = { &bucket,         &target, &profile, request->variant,
                                            request->config, false,   false };
    if (qn_tuned_key(&bucket, &profile, &text, &group))
        return qn_fail(ctx, QUERN_NO_MEMORY, "out of memory");
    int status = explain_key(ctx, "tuned", request->spec->family->name, text, line, user);
    if (!status)
        status = explain_units(ctx, &build, line, user);
    free(text);
    free(group);
    return status;
}

/* ---- Bases for another device -------------------------------------------------------------- */

struct base_fit {
    const char *target;
    char other[QN_TARGET_TEXT_BYTES]; /* of the device's kind; "" */
};

/* Ends at a kernel for the target. */
static int see_target(void *user, const struct qn_artifact *artifact)
{
    struct base_fit *fit = user;
    bool is_of_kind = !strncmp(artifact->target, fit->target, 3); /* "cpu", "sm_" */
    if (is_of_kind)
        snprintf(fit->other, sizeof(fit->other), "%s", artifact->target);
    return !strcmp(artifact->target, fit->target);
}

void qn_bases_tell(struct quern_context *ctx)
{
    char target[QN_TARGET_TEXT_BYTES];
    if (!qn_store_base(ctx->store) || atomic_exchange(&ctx->has_told_of_bases, true))
        return;
    qn_target_format(&ctx->target, target, sizeof(target));
    for (struct qn_store *base = qn_store_base(ctx->store); base; base = qn_store_base(base)) {
        struct base_fit fit = { .target = target };
        qn_artifact_each(base, "", see_target, &fit);
        if (*fit.other && strcmp(fit.other, target))
            qn_log(ctx, QUERN_LOG_WARN,
                   "base=%s: has kernels for %s and none for this device, which is %s",
                   qn_store_path(base), fit.other, target);
    }
}

/* ---- Doctor -------------------------------------------------------------------------------- */

/* What of a base is of use on the context's device. */
struct base_rows {
    const char *target, *profile;
    int64_t artifacts, tuned, artifacts_here, tuned_here;
};

static int count_artifact(void *user, const struct qn_artifact *artifact)
{
    struct base_rows *rows = user;
    rows->artifacts++;
    rows->artifacts_here += !strcmp(artifact->target, rows->target);
    return 0;
}

static int count_tuned(void *user, const struct qn_tuned *tuned)
{
    struct base_rows *rows = user;
    rows->tuned++;
    rows->tuned_here += !strcmp(tuned->profile, rows->profile);
    return 0;
}

static void doctor_bases(struct quern_context *ctx,
                         void (*fact)(void *user, const char *section, const char *name,
                                      const char *value),
                         void *user)
{
    char target[QN_TARGET_TEXT_BYTES];
    int number = 0;
    qn_target_format(&ctx->target, target, sizeof(target));
    for (struct qn_store *base = qn_store_base(ctx->store); base; base = qn_store_base(base)) {
        struct base_rows rows = { .target = target, .profile = ctx->profile.name };
        char name[32], text[4600];
        qn_artifact_each(base, "", count_artifact, &rows);
        qn_tuned_list(base, "", count_tuned, &rows);
        snprintf(name, sizeof(name), "base_%d", ++number);
        snprintf(text, sizeof(text), "%s: %lld artifacts, %lld for %s; %lld tuned, %lld on %s%s",
                 qn_store_path(base), (long long)rows.artifacts, (long long)rows.artifacts_here,
                 rows.target, (long long)rows.tuned, (long long)rows.tuned_here, rows.profile,
                 rows.artifacts_here ? "" : "; no kernel for this device");
        fact(user, "cache", name, text);
    }
}

int quern_doctor(struct quern_context *ctx,
                 void (*fact)(void *user, const char *section, const char *name, const char *value),
                 void *user)
{
    struct qn_store_counters counters = { 0 };
    char text[64];
    QN_TRY(qn_require(ctx, "fact", (const void *)(uintptr_t)fact));
    qn_devices_doctor(ctx, fact, user);
    const char *check = ctx->is_checking ? "on (QUERN_CHECK=1)" : "off (on with QUERN_CHECK=1)";
    fact(user, "cpu", "index_check", check);
    fact(user, "cuda", "index_check", check);
    qn_store_counters(ctx->store, &counters);
    fact(user, "cache", "usable", "yes");
    fact(user, "cache", "path", qn_store_path(ctx->store));
    fact(user, "cache", "writable", qn_store_is_writable(ctx->store) ? "yes" : "no");
    snprintf(text, sizeof(text), "%lld", (long long)counters.artifacts);
    fact(user, "cache", "artifacts", text);
    snprintf(text, sizeof(text), "%lld", (long long)counters.bytes);
    fact(user, "cache", "bytes", text);
    doctor_bases(ctx, fact, user);
    return QUERN_OK;
}
