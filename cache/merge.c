/* One store's rows into another: what export and import do. The rule stands in cache/store.h. */
#include "cache/store.h"

#include <stdlib.h>
#include <string.h>

struct merge {
    struct qn_store *to, *from;
    const struct qn_selection *selection;
    struct qn_merged merged;
    int status; /* the first write that failed */
};

static int is_chosen(const char *wanted, const char *have)
{
    return !wanted || !strcmp(wanted, have);
}

static int merge_artifact(void *user, const struct qn_artifact *artifact)
{
    struct merge *merge = user;
    const struct qn_selection *selection = merge->selection;
    int is_taken = 0;

    if (!is_chosen(selection->family, artifact->family) ||
        !is_chosen(selection->target, artifact->target) ||
        (selection->model &&
         !qn_manifest_has(merge->from, artifact->key, artifact->target, selection->model)))
        return 0;
    merge->status = qn_artifact_keep(merge->to, artifact, &is_taken);
    merge->merged.artifacts += is_taken;
    merge->merged.artifacts_there += !is_taken;
    return merge->status;
}

static int merge_tuned(void *user, const struct qn_tuned *tuned)
{
    struct merge *merge = user;
    int is_taken = 0;

    if (!is_chosen(merge->selection->family, tuned->family))
        return 0;
    merge->status = qn_tuned_merge(merge->to, tuned, &is_taken);
    merge->merged.tuned += is_taken;
    merge->merged.tuned_there += !is_taken;
    return merge->status;
}

/* A spec's text begins with its family. */
static int is_of_family(const char *family, const char *spec)
{
    size_t length = family ? strlen(family) : 0;

    return !family || (!strncmp(spec, family, length) && (spec[length] == ' ' || !spec[length]));
}

/* A row whose artifact was damaged, or deleted before, would promise a kernel that is not there. */
static int merge_manifest(void *user, const struct qn_manifest *row)
{
    struct merge *merge = user;
    const struct qn_selection *selection = merge->selection;
    char *compiler;

    if (!is_of_family(selection->family, row->spec) || !is_chosen(selection->target, row->target) ||
        !is_chosen(selection->model, row->model) ||
        qn_artifact_compiler(merge->to, row->key, &compiler) != QN_STORE_OK)
        return 0;
    free(compiler);
    merge->status = qn_manifest_put(merge->to, row);
    merge->merged.manifest += merge->status == QN_STORE_OK;
    return merge->status;
}

int qn_store_merge(struct qn_store *to, struct qn_store *from, const struct qn_selection *selection,
                   struct qn_merged *merged)
{
    struct merge merge = { .to = to, .from = from, .selection = selection };
    int status = qn_artifact_each_whole(from, &merge.merged.damaged, merge_artifact, &merge);

    if (!status && !merge.status)
        status = qn_tuned_list(from, "", merge_tuned, &merge);
    if (!status && !merge.status)
        status = qn_manifest_each(from, merge_manifest, &merge);
    *merged = merge.merged;
    return status ? status : merge.status;
}
