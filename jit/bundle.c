/* Bundles: the cache's rows written to a file of their own, taken from one, and the manifest; and
 * the cache's file made smaller. */
#include <quern/cache.h>

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "jit/context.h"

static void store_log(void *user, int level, const char *line)
{
    qn_log(user, level, "%s", line);
}

static struct quern_cache_merged counts_of(const struct qn_merged *merged)
{
    return (struct quern_cache_merged){
        .artifacts = merged->artifacts,
        .tuned = merged->tuned,
        .manifest = merged->manifest,
        .artifacts_there = merged->artifacts_there,
        .tuned_there = merged->tuned_there,
        .damaged = merged->damaged,
    };
}

/* ---- Export -------------------------------------------------------------------------------- */

static void remove_bundle(const char *path)
{
    static const char *const suffixes[] = { "", "-wal", "-shm", "-journal", ".lock" };
    char name[4200];
    for (size_t i = 0; i < sizeof(suffixes) / sizeof(suffixes[0]); i++) {
        snprintf(name, sizeof(name), "%s%s", path, suffixes[i]);
        unlink(name);
    }
}

/* Writes the bundle and closes it. Rows that stay in a -wal, because the disk got full while they
 * were taken from it, are not in the bundle. */
static int fill_bundle(struct quern_context *ctx, const char *path, const char *part,
                       const struct qn_selection *chosen, struct qn_merged *taken)
{
    const struct qn_store_options options = { .path = part }; /* what is wrong is said below */
    struct qn_store *bundle;
    struct stat left;
    char error[4600] = "", wal[4200];
    int failed = qn_store_open(&options, &bundle, error, sizeof(error));
    int is_memory = !failed && !qn_store_is_writable(bundle) && *error;
    if (is_memory)
        qn_store_close(bundle);
    if (failed || is_memory) {
        const char *why = strstr(error, part);
        return qn_fail(ctx, QUERN_STORE, "output=%s%s", path,
                       why ? why + strlen(part) : ": cannot be created");
    }
    failed = !qn_store_is_writable(bundle) || qn_store_merge(bundle, ctx->store, chosen, taken) ||
             qn_store_sync(bundle);
    qn_store_close(bundle);
    snprintf(wal, sizeof(wal), "%s-wal", part);
    if (failed || (!lstat(wal, &left) && left.st_size))
        return qn_fail(ctx, QUERN_STORE, "output=%s: cannot be written to its end from cache=%s",
                       path, qn_store_path(ctx->store));
    /* Tuned rows name no target and no model: they alone are not what was asked for. */
    if (!taken->artifacts && (!taken->tuned || chosen->target || chosen->model))
        return qn_fail(ctx, QUERN_MISS, "cache=%s: nothing in it was selected",
                       qn_store_path(ctx->store));
    return QUERN_OK;
}

/* Gives the whole bundle its name, and takes it from no other file. Where there are no links a
 * rename must do. */
static int publish(struct quern_context *ctx, const char *part, const char *path)
{
    if (!link(part, path) || (errno != EEXIST && !rename(part, path)))
        return QUERN_OK;
    return qn_fail(ctx, errno == EEXIST ? QUERN_INVALID : QUERN_STORE, "output=%s: %s", path,
                   strerror(errno));
}

int quern_cache_export(struct quern_context *ctx, const char *path,
                       const struct quern_cache_selection *selection,
                       struct quern_cache_merged *merged)
{
    const struct qn_selection chosen = { selection ? selection->family : NULL,
                                         selection ? selection->target : NULL,
                                         selection ? selection->model : NULL };
    struct qn_merged taken = { 0 };
    struct stat there;
    char part[4128];
    QN_TRY(qn_require(ctx, "path", path));
    QN_TRY(qn_require(ctx, "merged", merged));
    if (!*path || strlen(path) > 4096)
        return qn_fail(ctx, QUERN_INVALID, "output=%s: must be the name of a new file", path);
    if (!lstat(path, &there))
        return qn_fail(ctx, QUERN_INVALID, "output=%s: is there already; must be a new file", path);
    snprintf(part, sizeof(part), "%s.XXXXXX", path);
    int fd = mkostemp(part, O_CLOEXEC);
    if (fd < 0)
        return qn_fail(ctx, QUERN_STORE, "output=%s: cannot be created: %s", path, strerror(errno));
    close(fd);
    int status = fill_bundle(ctx, path, part, &chosen, &taken);
    if (!status)
        status = publish(ctx, part, path);
    remove_bundle(part);
    if (!status)
        *merged = counts_of(&taken);
    return status;
}

/* ---- Import -------------------------------------------------------------------------------- */

int quern_cache_import(struct quern_context *ctx, const char *path,
                       struct quern_cache_merged *merged)
{
    static const struct qn_selection all = { NULL, NULL, NULL };
    struct qn_merged taken = { 0 };
    struct qn_store *bundle = NULL;
    struct stat there, own;
    char error[1024];
    QN_TRY(qn_require(ctx, "path", path));
    QN_TRY(qn_require(ctx, "merged", merged));
    if (!qn_store_is_writable(ctx->store))
        return qn_fail(ctx, QUERN_STORE, "cache=%s: cannot be written", qn_store_path(ctx->store));
    if (!stat(path, &there) && !stat(qn_store_path(ctx->store), &own) &&
        there.st_ino == own.st_ino && there.st_dev == own.st_dev)
        return qn_fail(ctx, QUERN_INVALID, "file=%s: is the cache itself", path);
    const struct qn_store_options options = { .path = path, .log = store_log, .user = ctx };
    if (qn_store_open_base(&options, &bundle, error, sizeof(error)))
        return qn_fail(ctx, QUERN_STORE, "file=%s", strchr(error, '=') + 1);
    int failed = qn_store_merge(ctx->store, bundle, &all, &taken);
    qn_store_close(bundle);
    *merged = counts_of(&taken);
    return failed ? qn_fail(ctx, QUERN_STORE, "file=%s: cannot be taken to its end into cache=%s",
                            path, qn_store_path(ctx->store))
                  : QUERN_OK;
}

int quern_cache_sync(struct quern_context *ctx)
{
    if (qn_store_sync(ctx->store) == QN_STORE_OK)
        return QUERN_OK;
    return qn_fail(ctx, QUERN_STORE, "cache=%s: cannot be written%s", qn_store_path(ctx->store),
                   qn_store_is_writable(ctx->store) ? " to its end" : "");
}

int quern_cache_gc(struct quern_context *ctx, const struct quern_cache_limits *limits,
                   struct quern_cache_freed *freed)
{
    struct qn_freed gone;
    QN_TRY(qn_require(ctx, "limits", limits));
    QN_TRY(qn_require(ctx, "freed", freed));
    if (limits->older_than_s < 0 || limits->bytes < 0 || (!limits->older_than_s && !limits->bytes))
        return qn_fail(ctx, QUERN_INVALID,
                       "limits.older_than_s=%lld, limits.bytes=%lld: must be at least 0, one above",
                       (long long)limits->older_than_s, (long long)limits->bytes);
    const struct qn_limits chosen = { limits->older_than_s, limits->bytes };
    int status = qn_store_gc(ctx->store, &chosen, &gone);
    *freed = (struct quern_cache_freed){ gone.artifacts, gone.trials, gone.misses, gone.bytes };
    return status
               ? qn_fail(ctx, QUERN_STORE, "cache=%s: cannot be written", qn_store_path(ctx->store))
               : QUERN_OK;
}

/* ---- Manifest ------------------------------------------------------------------------------ */

int quern_cache_manifest_put(struct quern_context *ctx, const struct quern_cache_manifest_row *row)
{
    QN_TRY(qn_require(ctx, "row", row));
    QN_TRY(qn_require(ctx, "row.key", row->key));
    /* The store only reads what it is handed. */
    struct qn_manifest copy = {
        .target = (char *)row->target,
        .model = (char *)row->model,
        .rank = (char *)row->rank,
        .where = (char *)row->where,
        .spec = (char *)row->spec,
        .kind = (char *)row->kind,
        .toolkit = (char *)row->toolkit,
        .created = row->created,
    };
    snprintf(copy.key, sizeof(copy.key), "%s", row->key);
    if (qn_manifest_put(ctx->store, &copy) != QN_STORE_OK)
        return qn_fail(ctx, QUERN_STORE, "cache=%s: cannot be written", qn_store_path(ctx->store));
    return QUERN_OK;
}

struct manifest_listing {
    int (*visit)(void *user, const struct quern_cache_manifest_row *row);
    void *user;
    int ended; /* what visit returned, once that was not 0 */
};

static int visit_manifest(void *user, const struct qn_manifest *found)
{
    struct manifest_listing *listing = user;
    const struct quern_cache_manifest_row row = {
        .key = found->key,
        .target = found->target,
        .model = found->model,
        .rank = found->rank,
        .where = found->where,
        .spec = found->spec,
        .kind = found->kind,
        .toolkit = found->toolkit,
        .created = found->created,
    };
    return listing->ended = listing->visit(listing->user, &row);
}

int quern_cache_manifest(struct quern_context *ctx,
                         int (*visit)(void *user, const struct quern_cache_manifest_row *row),
                         void *user)
{
    struct manifest_listing listing = { visit, user, 0 };
    QN_TRY(qn_require(ctx, "visit", (const void *)(uintptr_t)visit));
    for (struct qn_store *file = ctx->store; file && !listing.ended; file = qn_store_base(file))
        if (qn_manifest_each(file, visit_manifest, &listing) != QN_STORE_OK)
            return qn_fail(ctx, QUERN_STORE, "%s=%s: cannot be read",
                           file == ctx->store ? "cache" : "base", qn_store_path(file));
    return listing.ended;
}
