/* What prebuild writes beside kernels: whom each artifact is for, and what another cache has
 * tuned. */
#include <quern/cache.h>

#include <stdlib.h>
#include <string.h>

#include "jit/build.h"
#include "jit/winners.h"

/* ---- The manifest -------------------------------------------------------------------------- */

/* The row names what compiled the newest artifact of its key: what the build has found or made. */
static int note_artifact(struct qn_store *store, struct qn_manifest *row)
{
    int status = QN_STORE_MISS;
    for (struct qn_store *file = store; file && status; file = qn_store_base(file))
        status = qn_artifact_compiler(file, row->key, &row->toolkit);
    if (status != QN_STORE_OK)
        return status;
    status = qn_manifest_put(store, row);
    free(row->toolkit);
    return status;
}

int qn_origin_note(struct quern_context *ctx, const struct quern_origin *origin,
                   const struct qn_build_request *request, const struct quern_report *report)
{
    struct qn_manifest row = {
        .target = (char *)report->target,
        .model = (char *)(origin->model ? origin->model : ""),
        .rank = (char *)(origin->rank ? origin->rank : ""),
        .where = (char *)(origin->where ? origin->where : ""),
        .spec = (char *)report->bucket,
        .kind = report->config_from == QUERN_CONFIG_TUNED ? "tuned" : "built",
    };
    char **keys;
    int count, status = QN_STORE_OK;
    QN_TRY(qn_unit_keys(ctx, request, &keys, &count));
    for (int u = 0; u < count; u++) {
        qn_key_hex(keys[u], strlen(keys[u]), row.key);
        if (note_artifact(ctx->store, &row) != QN_STORE_OK)
            status = QN_STORE_MISS;
        free(keys[u]);
    }
    free(keys);
    return status ? qn_fail(ctx, QUERN_STORE, "cache=%s: its manifest cannot be written",
                            qn_store_path(ctx->store))
                  : QUERN_OK;
}

/* ---- Tuned configs ------------------------------------------------------------------------- */

struct adoption {
    struct qn_store *store;
    int has_failed;
};

static int adopt_row(void *user, const struct qn_tuned *row)
{
    struct adoption *adoption = user;
    adoption->has_failed |= qn_tuned_put(adoption->store, row, NULL) != QN_STORE_OK;
    return 0;
}

int quern_cache_adopt(struct quern_context *ctx, struct quern_context *from,
                      const struct quern_request *request)
{
    struct quern_target target;
    struct quern_profile profile;
    struct qn_bucket bucket;
    char *text, *group;
    QN_TRY(qn_request_check(ctx, request));
    QN_TRY(qn_require(ctx, "from", from));
    QN_TRY(qn_target_of(ctx, request, &target, &profile));
    qn_bucket_make(request->spec, request->arrays, &bucket);
    if (qn_tuned_key(&bucket, &profile, &text, &group))
        return qn_fail(ctx, QUERN_NO_MEMORY, "out of memory");
    struct adoption adoption = { ctx->store, 0 };
    qn_winner_each(from, group, adopt_row, &adoption);
    free(text);
    free(group);
    return adoption.has_failed
               ? qn_fail(ctx, QUERN_STORE, "cache=%s: cannot be written", qn_store_path(ctx->store))
               : QUERN_OK;
}
