/* The tuner: quern_tune().
 *
 *     stored winner? ──yes──> reuse
 *          │ no, older templates, cut short, or force
 *     lease of the tuned key: one process tunes, the others wait and then reuse
 *          │
 *     1. candidates    the list (candidate.c), and what an interrupted tuning of the same key,
 *                      generation, templates and toolkit found: its failures are not run again
 *     2. testbed       arrays, expectation, private memory (testbed.c)
 *     3. first round   build ─> check ─> time for ROUND_MS at most; stored as it comes
 *     4. halving       the best KEEP are timed in turns, a part of each at a time, so that what
 *                      slows the machine slows all alike; the better half stays, until CONFIRM
 *                      are left
 *     5. confirm       those again, longer; the tie rule (stats.c) names the winner
 *     6. store         insert-or-ignore: what is stored afterwards is the result, whoever wrote it;
 *                      a cache that cannot take it leaves it with the context (winners.c)
 *
 * Invariants
 * - The default (what an untuned call uses) is candidate 0: built and timed however small the
 *   budget, and taken along into every round, so that a winner has beaten it under the same
 *   conditions.
 * - Nothing wins unchecked in any grid order. In the first round the serial orders are left out
 *   where one core would take long over them; such a winner is checked at the end.
 * - A candidate that does not compile, spills, is wrong, races or writes out of bounds is a failed
 *   trial with its reason, never an error of the tuning.
 * - The caller's arrays come back bit for bit, whatever the outcome.
 * - A search that its budget or its caller ended stores its winner, which serves, and the next
 *   tuning goes on with it: a new generation that has the trials of the old one. One on a caller's
 *   arrays does not: it stands before a call, which a winner of any kind is enough for.
 * - A stored winner is reused while its templates are the present ones. On other templates it
 *   serves until somebody tunes, and then is a seed: a plain tune makes a new generation, as force
 *   does. A new compiler alone makes none: two machines that share a cache would take turns.
 *
 * What it does not do: survive a kernel that crashes or hangs (testbed.c), and tune on sizes other
 * than the bucket's bound: arrays of another size are left alone and the family's inputs are drawn,
 * which the result and the log say.
 */
#include <math.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "jit/indices.h"
#include "jit/search.h"
#include "jit/winners.h"

#define LEASE_EXPIRY_S 180.0
#define LEASE_WAIT_S 3600.0    /* without a budget of our own */
#define LEASE_SLICE_S 1.0      /* how often a waiting caller hears of it */
#define CUT ", stopped after " /* in the provenance of a search that had more candidates */

static void entry_set(struct quern_tune_entry *entry, const char *variant, const char *config,
                      double time_us, double spread_us)
{
    snprintf(entry->variant, sizeof(entry->variant), "%s", variant);
    snprintf(entry->config, sizeof(entry->config), "%s", config);
    entry->time_us = time_us;
    entry->spread_us = spread_us;
}

/* ---- A stored winner ----------------------------------------------------------------------- */

static void reuse(struct qn_search *search, const struct qn_tuned *row)
{
    struct quern_tune_result *result = search->result;
    entry_set(&result->best, row->variant, row->config, row->time_us, row->spread_us);
    entry_set(&result->heuristic, row->heuristic_variant, row->heuristic_config, row->heuristic_us,
              row->heuristic_spread_us);
    if (row->time_us > 0)
        result->speedup = row->heuristic_us / row->time_us;
    result->is_reused = 1;
}

/* Legal here, of the variant asked for, and measured on the templates that we have. */
static bool is_current(struct qn_search *search, const struct qn_tuned *row)
{
    const struct qn_build_request request = { &search->bucket,
                                              &search->ctx->target,
                                              &search->ctx->profile,
                                              row->variant,
                                              row->config,
                                              false,
                                              false };
    char digest[QN_KEY_HEX];
    if (search->request->variant && strcmp(search->request->variant, row->variant))
        return false;
    return !qn_build_digest(search->ctx, &request, digest) && !strcmp(digest, row->digest);
}

/* Made too long ago, or with another compiler or driver, where the caller has asked for that to
 * count. */
static bool is_stale(const struct qn_search *search, const struct qn_tuned *row)
{
    const struct quern_tune_options *options = search->options;
    return (options->retune_before && row->created < options->retune_before) ||
           (options->retune_toolkit && strcmp(row->toolkit, search->toolkit));
}

/* After how many candidates the search of this row was cut short; 0: it had them all. */
static int cut_after(const struct qn_tuned *row)
{
    const char *cut = strstr(row->provenance, CUT);
    return cut ? (int)strtol(cut + strlen(CUT), NULL, 10) : 0;
}

static bool is_cut(const struct qn_search *search)
{
    return search->done < search->candidates.count;
}

/* QUERN_MISS: there is none to reuse, and search->generation is what to tune. A generation above
 * `known` was made while we waited, and serves even if ours was to be forced. */
static int find_stored(struct qn_search *search, int64_t known)
{
    struct qn_tuned row;
    int status = QUERN_MISS;
    search->generation = 1;
    search->carried = 0;
    if (qn_winner_find(search->ctx, search->text, &row) != QN_STORE_OK)
        return QUERN_MISS;
    search->generation = row.generation + 1;
    search->carried_done = search->request->arrays ? 0 : cut_after(&row);
    bool is_new = known >= 0 && row.generation > known;
    bool is_wanted = (!search->options->force && !is_stale(search, &row)) || is_new;
    if (is_wanted && is_current(search, &row)) {
        if (!search->carried_done || search->ctx->is_sealed || is_new) {
            reuse(search, &row);
            status = QUERN_OK;
        } else {
            search->carried = row.generation;
        }
    }
    qn_tuned_fini(&row);
    return status;
}

/* ---- 1. What an interrupted tuning left ---------------------------------------------------- */

static int visit_trial(void *user, const struct qn_trial *trial)
{
    struct qn_search *search = user;
    for (int i = 0; i < search->candidates.count; i++) {
        struct qn_candidate *candidate = &search->candidates.list[i];
        if (strcmp(candidate->variant->name, trial->variant) ||
            strcmp(candidate->text, trial->config))
            continue;
        qn_candidate_digest(candidate, search->ctx, &search->bucket);
        if (strcmp(candidate->digest, trial->digest) || strcmp(search->toolkit, trial->toolkit))
            return 0;
        candidate->is_known = true;
        snprintf(candidate->outcome, sizeof(candidate->outcome), "%s", trial->outcome);
        candidate->stat = (struct qn_stat){ trial->time_us, trial->spread_us, trial->samples };
        return 0;
    }
    return 0;
}

static void forget(struct qn_candidate *candidate)
{
    candidate->is_known = false;
    candidate->outcome[0] = '\0';
    candidate->stat = (struct qn_stat){ 0, 0, 0 };
}

/* The default is always tried anew. So is everything when the earlier tuning came to its end,
 * without a winner: what went wrong then, such as a full memory, need not now. */
static void resume(struct qn_search *search)
{
    struct qn_candidates *candidates = &search->candidates;
    int known = 0;
    if (search->carried)
        qn_trial_each(search->ctx->store, search->text, search->carried, visit_trial, search);
    qn_trial_each(search->ctx->store, search->text, search->generation, visit_trial, search);
    for (int i = 0; i < candidates->count; i++)
        known += candidates->list[i].is_known;
    for (int i = 0; i < candidates->count; i++) {
        if (i == 0 || known == candidates->count)
            forget(&candidates->list[i]);
    }
}

/* ---- 2. The testbed ------------------------------------------------------------------------ */

/* The caller's arrays are run on when they are of the bucket's own size; scalars may differ, and so
 * may hints, which size no array. A size beyond the bucket's is one that no kernel is made for, as
 * that of a pool: the bucket's is what a call needs of it, and inputs are drawn for. */
static bool is_bound(const struct qn_search *search)
{
    const struct quern_spec *spec = search->request->spec, *bucket = &search->bucket.spec;
    for (int i = 0; i < spec->family->param_count; i++) {
        if (spec->family->params[i].param_class == QUERN_DYNAMIC &&
            spec->values[i] < bucket->values[i])
            return false;
    }
    return true;
}

static void drawn_tell(struct qn_search *search)
{
    char spec[512];
    search->result->is_drawn = 1;
    quern_spec_text(search->request->spec, spec, sizeof(spec));
    qn_log(search->ctx, QUERN_LOG_INFO,
           "tuning %s: the arrays given are of %s, not of the bucket's bound: inputs are drawn "
           "instead",
           search->result->bucket, spec);
}

/* The bucket's sizes with the request's scalars: the bucket says only which of them are given, and
 * a family may refuse what stands in their place. */
static struct quern_spec drawn_spec(const struct qn_search *search)
{
    struct quern_spec spec = search->bucket.spec;
    for (int i = 0; i < spec.family->param_count; i++) {
        if (spec.family->params[i].param_class == QUERN_SCALAR)
            spec.values[i] = search->request->spec->values[i];
    }
    return spec;
}

static int testbed_make(struct qn_search *search)
{
    const struct quern_request *request = search->request;
    const struct quern_tune_options *options = search->options;
    const struct quern_spec drawn = drawn_spec(search);
    struct quern_array bound[QUERN_MAX_ARRAYS];
    struct quern_message why;
    bool is_given = request->arrays && is_bound(search);
    if (request->arrays && !is_given)
        drawn_tell(search);
    int status = is_given ? qn_arrays_bind(request->spec, request->arrays, bound, &why) : QUERN_OK;
    if (!status)
        status =
            qn_testbed_init(&search->bed, search->ctx, is_given ? request->spec : &drawn,
                            is_given ? bound : NULL, options->memory_bytes, options->seed, &why);
    return status ? qn_fail_why(search->ctx, status, &why) : QUERN_OK;
}

/* ---- 6. The result ------------------------------------------------------------------------- */

/* Nothing passed: the first candidate's reason is the tuning's. */
static int fail_all(struct qn_search *search)
{
    const struct qn_candidate *first = &search->candidates.list[0];
    int status = first->state == QN_CANDIDATE_BUILT ? QUERN_CHECK_FAILED : QUERN_COMPILE;
    return qn_fail(search->ctx, status, "%s: none of %d candidates passed; %s %s: %s",
                   search->result->bucket, search->done, first->variant->name, first->text,
                   first->outcome);
}

static void winner_store(struct qn_search *search, struct qn_candidate *candidate)
{
    struct quern_tune_result *result = search->result;
    char provenance[160], cut[64] = "";
    if (is_cut(search))
        snprintf(cut, sizeof(cut), CUT "%d of %d", search->done, search->candidates.count);
    snprintf(provenance, sizeof(provenance), "quern %s, %d candidates, %d failed, %.1f s%s",
             QUERN_VERSION, search->done, search->failed, qn_search_seconds(search), cut);
    const struct qn_tuned row = {
        .text = search->text,
        .group = search->group,
        .family = (char *)search->bucket.spec.family->name,
        .variant = (char *)candidate->variant->name,
        .config = candidate->text,
        .generation = search->generation,
        .time_us = candidate->stat.median,
        .spread_us = candidate->stat.spread,
        .samples = candidate->stat.samples,
        .digest = candidate->digest,
        .toolkit = search->toolkit,
        .profile = search->ctx->profile.name,
        .provenance = provenance,
        .heuristic_variant = result->heuristic.variant,
        .heuristic_config = result->heuristic.config,
        .heuristic_us = result->heuristic.time_us,
        .heuristic_spread_us = result->heuristic.spread_us,
    };
    struct qn_tuned winner;
    entry_set(&result->best, candidate->variant->name, candidate->text, candidate->stat.median,
              candidate->stat.spread);
    if (qn_tuned_put(search->ctx->store, &row, &winner) == QN_STORE_OK) {
        entry_set(&result->best, winner.variant, winner.config, winner.time_us, winner.spread_us);
        entry_set(&result->heuristic, winner.heuristic_variant, winner.heuristic_config,
                  winner.heuristic_us, winner.heuristic_spread_us);
        qn_tuned_fini(&winner);
    } else {
        qn_winner_keep(search->ctx, &row); /* the store has warned */
    }
    qn_kernels_refresh(search->ctx, &search->bucket);
}

static int finish(struct qn_search *search, struct qn_field *field)
{
    struct quern_tune_result *result = search->result;
    const struct qn_candidate *first = &search->candidates.list[0];
    struct qn_candidate *winner;
    QN_TRY(qn_search_winner(search, field, &winner));
    result->candidates = search->done;
    result->failed = search->failed;
    result->scratch_bytes = qn_testbed_bytes(&search->bed);
    if (!winner)
        return fail_all(search);
    bool is_timed = !strcmp(first->outcome, "ok");
    entry_set(&result->heuristic, first->variant->name, first->text,
              is_timed ? first->stat.median : 0, is_timed ? first->stat.spread : 0);
    winner_store(search, winner);
    if (result->best.time_us > 0)
        result->speedup = result->heuristic.time_us / result->best.time_us;
    qn_log(search->ctx, QUERN_LOG_INFO,
           "tuned %s: %s %s, %.3f us, %.2f times the heuristic's speed", result->bucket,
           result->best.variant, result->best.config, result->best.time_us, result->speedup);
    return QUERN_OK;
}

/* Those that are tried, as many, had been before: the winner stays as it is. */
static bool keep_carried(struct qn_search *search, int tried)
{
    struct qn_tuned row;
    if (!search->carried || tried > search->carried_done ||
        qn_winner_find(search->ctx, search->text, &row) != QN_STORE_OK)
        return false;
    reuse(search, &row);
    qn_tuned_fini(&row);
    return true;
}

/* ---- All of it ----------------------------------------------------------------------------- */

static int search_run(struct qn_search *search)
{
    struct qn_field field;
    search->search_ms = qn_now_ms();
    QN_TRY(qn_candidates_init(&search->candidates, search->ctx, &search->bucket,
                              search->request->variant, search->group,
                              search->options->max_configs));
    if (keep_carried(search, search->candidates.count))
        return QUERN_OK;
    resume(search);
    QN_TRY(testbed_make(search));
    QN_TRY(qn_search_first_round(search));
    if (keep_carried(search, search->done))
        return QUERN_OK;
    QN_TRY(qn_search_later_rounds(search, &field));
    return finish(search, &field);
}

/* Releases what search_run() made, and keeps its status unless arrays could not be put back. */
static int search_end(struct qn_search *search, int status)
{
    struct quern_message why;
    if (search->bed.ctx) {
        int undone = qn_testbed_fini(&search->bed, &why);
        if (undone && !status)
            status = qn_fail_why(search->ctx, undone, &why);
    }
    qn_candidates_fini(&search->candidates, search->ctx);
    return status;
}

/* Another process tunes the bucket, and will for as long as it takes. */
static void waiting_tell(struct qn_search *search, bool is_first)
{
    const struct quern_tune_options *options = search->options;
    const struct quern_tune_progress progress = {
        .seconds = qn_search_seconds(search),
        .variant = "",
        .config = "",
        .outcome = "waiting for another process",
    };
    if (is_first)
        qn_log(search->ctx, QUERN_LOG_INFO, "tuning %s: another process does; waiting for it",
               search->result->bucket);
    if (options->progress && options->progress(options->user, &progress))
        search->is_stopped = true;
}

/* There may be no lease afterwards: others could not be waited for, or none can be had, which is
 * said at once and not after a slice. QUERN_MISS: the progress callback stopped the waiting. */
static int lease_wait(struct qn_search *search)
{
    struct qn_store *store = search->ctx->store;
    double budget_s = search->options->budget_s;
    double wait_s = budget_s > 0 ? budget_s * 2 + 60 : LEASE_WAIT_S;
    char hex[QN_KEY_HEX], name[64];
    qn_key_hex(search->text, strlen(search->text), hex);
    snprintf(name, sizeof(name), "tune %s", hex);
    for (bool is_first = true; qn_search_seconds(search) < wait_s; is_first = false) {
        double begin_s = qn_search_seconds(search);
        if (!qn_lease_acquire(store, name, LEASE_SLICE_S, LEASE_EXPIRY_S, &search->lease) ||
            qn_search_seconds(search) - begin_s < LEASE_SLICE_S || !qn_store_is_writable(store))
            return QUERN_OK;
        waiting_tell(search, is_first);
        if (search->is_stopped)
            return qn_fail(search->ctx, QUERN_MISS, "%s: stopped while another process tunes it",
                           search->result->bucket);
    }
    return QUERN_OK;
}

/* Once across processes. Whoever waited looks again before it works. */
static int search_leased(struct qn_search *search)
{
    struct quern_context *ctx = search->ctx;
    int64_t known = search->generation - 1;
    QN_TRY(lease_wait(search));
    int status = find_stored(search, known);
    if (status == QUERN_OK)
        qn_kernels_refresh(ctx, &search->bucket);
    else
        status = search_end(search, search_run(search));
    qn_lease_release(search->lease);
    return status;
}

/* Times taken here may stand under no other device's name. */
static int profile_check(struct quern_context *ctx)
{
    struct quern_target target;
    struct quern_profile own;
    ctx->backend->describe(ctx->device, &target, &own);
    if (!ctx->options.profile || !strcmp(own.name, ctx->named.name))
        return QUERN_OK;
    return qn_fail(ctx, QUERN_INVALID,
                   "device-profile=%s: tuning needs the device itself; leave it out",
                   ctx->options.profile);
}

static int request_check(struct quern_context *ctx, const struct quern_request *request,
                         const struct quern_tune_options *options)
{
    struct quern_array bound[QUERN_MAX_ARRAYS];
    struct quern_message why;
    if (!request || request->size != sizeof(*request))
        return qn_fail(ctx, QUERN_INVALID, "request.size=%zu: must be %zu (QUERN_REQUEST_INIT)",
                       request ? request->size : 0, sizeof(*request));
    if (options->size != sizeof(*options))
        return qn_fail(ctx, QUERN_INVALID,
                       "options.size=%zu: must be %zu "
                       "(QUERN_TUNE_OPTIONS_INIT)",
                       options->size, sizeof(*options));
    if (request->config)
        return qn_fail(ctx, QUERN_INVALID, "config=%s: must be NULL: tuning chooses it",
                       request->config);
    if (request->target)
        return qn_fail(ctx, QUERN_INVALID, "target=%s: must be NULL: tuning runs on this device",
                       request->target);
    if (!(options->budget_s >= 0))
        return qn_fail(ctx, QUERN_INVALID, "budget_s=%g: must be at least 0", options->budget_s);
    if (options->max_configs < 0 || options->jobs < 0)
        return qn_fail(ctx, QUERN_INVALID, "%s=%d: must be at least 0",
                       options->max_configs < 0 ? "max_configs" : "jobs",
                       options->max_configs < 0 ? options->max_configs : options->jobs);
    QN_TRY(profile_check(ctx));
    int status = qn_spec_check(request->spec, &why);
    if (!status && request->arrays)
        status = qn_call_bind(ctx, request->spec, request->arrays, bound, &why);
    if (!status && request->arrays && ctx->is_checking)
        status = qn_call_check(ctx, request->spec, bound, NULL, &why);
    return status ? qn_fail_why(ctx, status, &why) : QUERN_OK;
}

/* The compiler's identity, and after it the driver's. */
static void toolkit_find(struct qn_search *search)
{
    struct quern_context *ctx = search->ctx;
    struct quern_message why;
    if (ctx->backend->compiler(ctx->device, search->toolkit, sizeof(search->toolkit), &why))
        search->toolkit[0] = '\0';
    size_t used = strlen(search->toolkit);
    if (ctx->backend->driver)
        ctx->backend->driver(ctx->device, search->toolkit + used, sizeof(search->toolkit) - used);
}

static int tune(struct qn_search *search)
{
    struct quern_context *ctx = search->ctx;
    qn_bucket_make(search->request->spec, search->request->arrays, &search->bucket);
    quern_spec_text(&search->bucket.spec, search->result->bucket, sizeof(search->result->bucket));
    if (qn_tuned_key(&search->bucket, &ctx->profile, &search->text, &search->group))
        return qn_fail(ctx, QUERN_NO_MEMORY, "out of memory");
    if (search->options->retune_toolkit)
        toolkit_find(search);
    if (find_stored(search, -1) == QUERN_OK) {
        qn_kernels_refresh(ctx, &search->bucket); /* another process may have made it */
        return QUERN_OK;
    }
    if (ctx->is_sealed)
        return qn_fail(ctx, QUERN_SEALED, "mode=sealed: %s is not tuned%s", search->result->bucket,
                       search->options->force ? " again" : "");
    toolkit_find(search);
    return search_leased(search);
}

int quern_tune(struct quern_context *ctx, const struct quern_request *request,
               const struct quern_tune_options *options, struct quern_tune_result *result)
{
    static const struct quern_tune_options defaults = QUERN_TUNE_OPTIONS_INIT;
    struct quern_tune_result found;
    if (!ctx)
        return QUERN_INVALID;
    if (!options)
        options = &defaults;
    QN_TRY(request_check(ctx, request, options));
    struct qn_search *search = calloc(1, sizeof(*search));
    if (!search)
        return qn_fail(ctx, QUERN_NO_MEMORY, "out of memory");
    memset(&found, 0, sizeof(found));
    search->ctx = ctx;
    search->request = request;
    search->options = options;
    search->result = &found;
    search->start_ms = qn_now_ms();
    int status = tune(search);
    found.seconds = qn_search_seconds(search);
    free(search->text);
    free(search->group);
    free(search);
    if (!status && result)
        *result = found;
    return status;
}
