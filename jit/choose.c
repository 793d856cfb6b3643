/* Choosing a config for a bucket, best knowledge first:
 *   1. given      the request names it
 *   2. tuned      this bucket's winner
 *   3. neighbour  the winner of an adjacent bucket that shares everything but dynamic parameters,
 *                 where it is not just the heuristic's choice there
 *   4. heuristic  the first variant that supports the problem, by its own model
 * What comes from text, also from the store, must pass bounds and the variant's legality; a stored
 * row that does not is passed over.
 *
 * Sealed, a choice without a kernel is followed by the next: without the cache's tuned rows, then
 * without the first base's, and so on to the heuristic's (qn_build()).
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "jit/build.h"
#include "jit/target.h"
#include "jit/text.h"
#include "jit/winners.h"

/* A neighbour further away than this, in factors of two summed over the dynamic parameters, says
 * less than the heuristic does: one row and four want different kernels. */
#define NEIGHBOUR_REACH 1.0

struct quern_problem qn_problem_of(const struct qn_build_request *request)
{
    return (struct quern_problem){ &request->bucket->spec, request->target, request->profile,
                                   request->bucket->alignment };
}

bool qn_variant_usable(const struct qn_build_request *request, const struct quern_variant *variant)
{
    const struct quern_problem problem = qn_problem_of(request);
    if (request->variant && strcmp(request->variant, variant->name))
        return false;
    return variant->device == request->target->kind && variant->supports(&problem);
}

int qn_config_for(const struct qn_build_request *request, const struct quern_variant *variant,
                  const char *text, int32_t *config, struct quern_message *why)
{
    const struct quern_problem problem = qn_problem_of(request);
    variant->heuristic(&problem, config);
    QN_TRY(qn_config_parse(variant, text, config, why));
    return qn_config_check(variant, &problem, config, why);
}

static int fail_variant(struct quern_context *ctx, const struct quern_family *family,
                        const char *name)
{
    char known[512] = "";
    for (int i = 0; family->variants[i]; i++)
        qn_list_add(known, sizeof(known), family->variants[i]->name);
    return qn_fail(ctx, QUERN_INVALID, "variant=%s: %s has no such variant; it has: %s", name,
                   family->name, known);
}

/* The variant that the request names cannot be taken: because of what it is. */
static int fail_named(struct quern_context *ctx, const struct qn_build_request *request,
                      const char *target, const char *spec)
{
    const struct quern_family *family = request->bucket->spec.family;
    const struct quern_variant *variant = qn_variant_find(family, request->variant);
    if (!variant)
        return fail_variant(ctx, family, request->variant);
    if (variant->device != request->target->kind)
        return qn_fail(ctx, QUERN_UNSUPPORTED, "variant=%s: is for %s, target=%s", variant->name,
                       variant->device == QUERN_CUDA ? "CUDA" : "the CPU", target);
    return qn_fail(ctx, QUERN_UNSUPPORTED, "target=%s: %s (%s) does not serve %s", target,
                   variant->name, variant->doc ? variant->doc : "no description", spec);
}

/* None of the target's kind can: what they are says why. */
static int fail_all(struct quern_context *ctx, const struct qn_build_request *request,
                    const char *target, const char *spec)
{
    const struct quern_family *family = request->bucket->spec.family;
    char known[512] = "", one[160];
    for (int i = 0; family->variants[i]; i++) {
        const struct quern_variant *variant = family->variants[i];
        if (variant->device != request->target->kind)
            continue;
        snprintf(one, sizeof(one), "%s (%s)", variant->name,
                 variant->doc ? variant->doc : "no description");
        qn_list_add(known, sizeof(known), one);
    }
    return qn_fail(ctx, QUERN_UNSUPPORTED, "target=%s: no variant serves %s; %s%s", target, spec,
                   *known ? "there are: " : "there is none for this kind of target", known);
}

static int choose_first(struct quern_context *ctx, const struct qn_build_request *request,
                        const struct quern_variant **variant)
{
    const struct quern_family *family = request->bucket->spec.family;
    *variant = NULL;
    for (int i = 0; family->variants[i]; i++) {
        if (qn_variant_usable(request, family->variants[i])) {
            *variant = family->variants[i];
            return QUERN_OK;
        }
    }
    char target[96], spec[512];
    qn_target_format(request->target, target, sizeof(target));
    quern_spec_text(&request->bucket->spec, spec, sizeof(spec));
    if (request->variant)
        return fail_named(ctx, request, target, spec);
    return fail_all(ctx, request, target, spec);
}

/* ---- Tuned rows ---------------------------------------------------------------------------- */

static int choose_row(const struct qn_build_request *request, const struct qn_tuned *row,
                      struct qn_choice *choice)
{
    struct quern_message why;
    const struct quern_variant *variant =
        qn_variant_find(request->bucket->spec.family, row->variant);
    if (!variant || !qn_variant_usable(request, variant) ||
        qn_config_for(request, variant, row->config, choice->config, &why))
        return QUERN_MISS;
    choice->variant = variant;
    return QUERN_OK;
}

/* The bucket that a row of the request's group was tuned for, read from its key text. */
static int row_bucket(const struct qn_build_request *request, const char *text,
                      struct qn_bucket *bucket)
{
    const struct quern_family *family = request->bucket->spec.family;
    *bucket = *request->bucket;
    for (int i = 0; i < family->param_count; i++) {
        const struct quern_param *param = &family->params[i];
        char name[80];
        if (param->param_class != QUERN_DYNAMIC && param->param_class != QUERN_HINT)
            continue;
        snprintf(name, sizeof(name), "\n%s=", param->name);
        const char *line = strstr(text, name);
        if (!line)
            return QUERN_MISS;
        bucket->spec.values[i] = strtoll(line + strlen(name), NULL, 10);
    }
    return QUERN_OK;
}

/* The sum over the dynamic parameters of |log2 ratio|. */
static double bucket_distance(const struct quern_spec *a, const struct quern_spec *b)
{
    double distance = 0;
    for (int i = 0; i < a->family->param_count; i++) {
        double here = fmax((double)a->values[i], 0.5), there = fmax((double)b->values[i], 0.5);
        enum quern_param_class class = a->family->params[i].param_class;
        if (class == QUERN_DYNAMIC || class == QUERN_HINT)
            distance += fabs(log2(here / there));
    }
    return distance;
}

/* The row's winner is what the heuristic would have taken there: tuning taught nothing, and for
 * another bucket the heuristic knows better. */
static bool is_heuristic(const struct qn_build_request *there, const struct qn_choice *choice)
{
    const struct quern_problem problem = qn_problem_of(there);
    const struct quern_variant *first = NULL;
    int32_t config[QUERN_MAX_KNOBS];
    for (int i = 0; there->bucket->spec.family->variants[i] && !first; i++) {
        if (qn_variant_usable(there, there->bucket->spec.family->variants[i]))
            first = there->bucket->spec.family->variants[i];
    }
    if (first != choice->variant)
        return false;
    first->heuristic(&problem, config);
    return !memcmp(config, choice->config, (size_t)first->knob_count * sizeof(*config));
}

struct search {
    const struct qn_build_request *request;
    struct qn_choice *choice;
    double distance;
    bool is_found;
};

static int visit_neighbour(void *user, const struct qn_tuned *row)
{
    struct search *search = user;
    struct qn_choice choice = *search->choice;
    struct qn_build_request there = *search->request;
    struct qn_bucket bucket;
    if (row_bucket(search->request, row->text, &bucket))
        return 0;
    there.bucket = &bucket;
    double distance = bucket_distance(&search->request->bucket->spec, &bucket.spec);
    if (distance > search->distance || (distance == search->distance && search->is_found) ||
        choose_row(search->request, row, &choice) || is_heuristic(&there, &choice))
        return 0;
    *search->choice = choice;
    search->distance = distance;
    search->is_found = true;
    return 0;
}

/* The winner of `text`; of a row that is not legal the next file's. */
static int choose_winner(struct quern_context *ctx, const struct qn_build_request *request,
                         struct qn_store *file, const char *text, struct qn_choice *choice)
{
    struct qn_tuned row;
    int status = QUERN_MISS;
    for (; file && status; file = qn_store_base(file)) {
        int found =
            file == ctx->store ? qn_winner_find(ctx, text, &row) : qn_tuned_find(file, text, &row);
        if (found != QN_STORE_OK)
            return QUERN_MISS;
        status = choose_row(request, &row, choice);
        choice->from = QUERN_CONFIG_TUNED;
        if (status)
            qn_log(ctx, QUERN_LOG_INFO, "tuned row %s is not legal here: passed over", row.key);
        qn_tuned_fini(&row);
    }
    return status;
}

static int choose_stored(struct quern_context *ctx, const struct qn_build_request *request,
                         int files, struct qn_choice *choice)
{
    struct search search = { request, choice, NEIGHBOUR_REACH, false };
    struct qn_store *file = ctx->store;
    char *text = NULL, *group = NULL;
    for (int i = 0; i < files && file; i++)
        file = qn_store_base(file);
    if (!file || qn_tuned_key(request->bucket, request->profile, &text, &group))
        return QUERN_MISS; /* out of memory, too: the heuristic still serves */
    int status = choose_winner(ctx, request, file, text, choice);
    if (status) {
        if (file == ctx->store)
            qn_winner_each(ctx, group, visit_neighbour, &search);
        else
            qn_tuned_each(file, group, visit_neighbour, &search);
        if (search.is_found) {
            choice->from = QUERN_CONFIG_NEIGHBOUR;
            status = QUERN_OK;
        }
    }
    free(text);
    free(group);
    return status;
}

int qn_choose_without(struct quern_context *ctx, const struct qn_build_request *request, int files,
                      struct qn_choice *choice)
{
    const struct quern_problem problem = qn_problem_of(request);
    const struct quern_variant *variant;
    struct quern_message why;
    QN_TRY(choose_first(ctx, request, &variant));
    if (request->config) {
        choice->variant = variant;
        choice->from = QUERN_CONFIG_GIVEN;
        int status = qn_config_for(request, variant, request->config, choice->config, &why);
        return status ? qn_fail_why(ctx, status, &why) : QUERN_OK;
    }
    if (choose_stored(ctx, request, files, choice) == QUERN_OK)
        return QUERN_OK;
    choice->variant = variant;
    choice->from = QUERN_CONFIG_HEURISTIC;
    variant->heuristic(&problem, choice->config);
    if (qn_config_check(variant, &problem, choice->config, &why))
        return qn_fail(ctx, QUERN_INTERNAL, "variant=%s: its heuristic's config is not legal: %s",
                       variant->name, why.text);
    return QUERN_OK;
}

int qn_choose(struct quern_context *ctx, const struct qn_build_request *request,
              struct qn_choice *choice)
{
    return qn_choose_without(ctx, request, 0, choice);
}
