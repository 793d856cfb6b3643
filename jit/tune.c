/* The tuner: quern_tune().
 *
 *     stored winner? ──yes──> reuse
 *          │ no, older templates, or force
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

#include "jit/candidate.h"
#include "jit/indices.h"
#include "jit/measure.h"
#include "jit/testbed.h"
#include "jit/winners.h"

#define KEEP 16       /* candidates after the first round */
#define CONFIRM 4     /* in the last one */
#define WITHIN 1.5    /* of the best time: slower ones are no contenders */
#define ROUND_MS 50.0 /* what a candidate may cost in the first round */
#define TURN_MS 6.0   /* one turn of a candidate in a later round */
#define HALVING_TURNS 3
#define CONFIRM_TURNS 8
#define GIVE_UP 2.0 /* times the best time: three samples are enough */
#define SLOW 10.0   /* times the best time: not worth timing, if also over SLOW_MS */
#define SLOW_MS 50.0
#define SERIAL_MS 500.0  /* a run in one thread longer than this is left to the winner */
#define SEARCH_SHARE 0.8 /* of the budget; the rest is for later rounds */
#define MAX_JOBS 32
#define BENCH_CORES 2 /* kept from compilers while a GPU is benched: launches wait for nobody */
#define LEASE_EXPIRY_S 180.0
#define LEASE_WAIT_S 3600.0 /* without a budget of our own */
#define LEASE_SLICE_S 1.0   /* how often a waiting caller hears of it */

struct search {
    struct quern_context *ctx;
    const struct quern_request *request;
    const struct quern_tune_options *options;
    struct qn_bucket bucket;
    char *text, *group; /* of the tuned key */
    char toolkit[256];
    int64_t generation; /* being tuned */
    double start_ms;    /* of all */
    double search_ms;   /* when the budget began: waiting for another process costs none */
    struct qn_lease *lease;
    struct qn_candidates candidates;
    struct qn_testbed bed;
    struct qn_builder *builder;
    int done, failed;
    double best_us;
    bool is_stopped; /* by the progress callback */
    struct quern_tune_result *result;
};

static double seconds(const struct search *search)
{
    return (qn_now_ms() - search->start_ms) * 1e-3;
}

static bool is_over(const struct search *search, double share)
{
    double budget = search->options->budget_s;
    double spent = (qn_now_ms() - search->search_ms) * 1e-3;
    return search->is_stopped || (budget > 0 && spent > budget * share);
}

/* There is none when others could not be waited for. */
static void lease_beat(const struct search *search)
{
    if (search->lease)
        qn_lease_beat(search->lease);
}

static void entry_set(struct quern_tune_entry *entry, const char *variant, const char *config,
                      double time_us, double spread_us)
{
    snprintf(entry->variant, sizeof(entry->variant), "%s", variant);
    snprintf(entry->config, sizeof(entry->config), "%s", config);
    entry->time_us = time_us;
    entry->spread_us = spread_us;
}

/* ---- A stored winner ----------------------------------------------------------------------- */

/* The default's time, if a trial of the winner's generation says it. */
static int visit_default(void *user, const struct qn_trial *trial)
{
    struct search *search = user;
    struct quern_tune_entry *entry = &search->result->heuristic;
    if (strcmp(trial->variant, entry->variant) || strcmp(trial->config, entry->config) ||
        strcmp(trial->outcome, "ok"))
        return 0;
    entry->time_us = trial->time_us;
    entry->spread_us = trial->spread_us;
    return 1;
}

static void reuse(struct search *search, const struct qn_tuned *row)
{
    struct quern_tune_result *result = search->result;
    struct qn_candidates candidates;
    entry_set(&result->best, row->variant, row->config, row->time_us, row->spread_us);
    if (!qn_candidates_init(&candidates, search->ctx, &search->bucket, search->request->variant,
                            search->group, 1)) {
        entry_set(&result->heuristic, candidates.list[0].variant->name, candidates.list[0].text, 0,
                  0);
        if (!strcmp(result->heuristic.variant, row->variant) &&
            !strcmp(result->heuristic.config, row->config))
            result->heuristic = result->best; /* one kernel: trials of it differ by noise alone */
        else
            qn_trial_each(search->ctx->store, search->text, row->generation, visit_default, search);
        qn_candidates_fini(&candidates, search->ctx);
    }
    if (result->best.time_us > 0)
        result->speedup = result->heuristic.time_us / result->best.time_us;
    result->is_reused = 1;
}

/* Legal here, of the variant asked for, and measured on the templates that we have. */
static bool is_current(struct search *search, const struct qn_tuned *row)
{
    const struct qn_build_request request = { &search->bucket,       &search->ctx->target,
                                              &search->ctx->profile, row->variant,
                                              row->config,           false };
    char digest[QN_KEY_HEX];
    if (search->request->variant && strcmp(search->request->variant, row->variant))
        return false;
    return !qn_build_digest(search->ctx, &request, digest) && !strcmp(digest, row->digest);
}

/* QUERN_MISS: there is none to reuse, and search->generation is what to tune. A generation above
 * `known` was made while we waited, and serves even if ours was to be forced. */
static int find_stored(struct search *search, int64_t known)
{
    struct qn_tuned row;
    int status = QUERN_MISS;
    search->generation = 1;
    if (qn_winner_find(search->ctx, search->text, &row) != QN_STORE_OK)
        return QUERN_MISS;
    search->generation = row.generation + 1;
    bool is_wanted = !search->options->force || (known >= 0 && row.generation > known);
    if (is_wanted && is_current(search, &row)) {
        reuse(search, &row);
        status = QUERN_OK;
    }
    qn_tuned_fini(&row);
    return status;
}

/* ---- 1. What an interrupted tuning left ---------------------------------------------------- */

static int visit_trial(void *user, const struct qn_trial *trial)
{
    struct search *search = user;
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
static void resume(struct search *search)
{
    struct qn_candidates *candidates = &search->candidates;
    int known = 0;
    qn_trial_each(search->ctx->store, search->text, search->generation, visit_trial, search);
    for (int i = 0; i < candidates->count; i++)
        known += candidates->list[i].is_known;
    for (int i = 0; i < candidates->count; i++) {
        if (i == 0 || known == candidates->count)
            forget(&candidates->list[i]);
    }
}

static void trial_store(const struct search *search, struct qn_candidate *candidate)
{
    const struct qn_trial trial = {
        .text = search->text,
        .variant = (char *)candidate->variant->name,
        .config = candidate->text,
        .digest = candidate->digest,
        .toolkit = (char *)search->toolkit,
        .generation = search->generation,
        .outcome = candidate->outcome,
        .time_us = candidate->stat.median,
        .spread_us = candidate->stat.spread,
        .samples = candidate->stat.samples,
    };
    qn_trial_put(search->ctx->store, &trial);
    lease_beat(search);
}

/* ---- 2. The testbed ------------------------------------------------------------------------ */

/* The caller's arrays are run on when they are of the bucket's own size; scalars may differ, and so
 * may hints, which size no array. A size beyond the bucket's is one that no kernel is made for, as
 * that of a pool: the bucket's is what a call needs of it, and inputs are drawn for. */
static bool is_bound(const struct search *search)
{
    const struct quern_spec *spec = search->request->spec, *bucket = &search->bucket.spec;
    for (int i = 0; i < spec->family->param_count; i++) {
        if (spec->family->params[i].param_class == QUERN_DYNAMIC &&
            spec->values[i] < bucket->values[i])
            return false;
    }
    return true;
}

static void drawn_tell(struct search *search)
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
static struct quern_spec drawn_spec(const struct search *search)
{
    struct quern_spec spec = search->bucket.spec;
    for (int i = 0; i < spec.family->param_count; i++) {
        if (spec.family->params[i].param_class == QUERN_SCALAR)
            spec.values[i] = search->request->spec->values[i];
    }
    return spec;
}

static int testbed_make(struct search *search)
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

/* ---- 3. The first round -------------------------------------------------------------------- */

static bool is_ok(const struct qn_candidate *candidate)
{
    return !strcmp(candidate->outcome, "ok");
}

/* Check, then time. A negative status is the testbed's own failure. */
static int candidate_bench(struct search *search, struct qn_candidate *candidate)
{
    struct qn_samples samples = { .count = 0 };
    struct quern_message why;
    double slow_ms = fmax(SLOW_MS, SLOW * search->best_us * 1e-3);
    const struct qn_check_limits limits = { search->best_us > 0 ? slow_ms : 0,
                                            candidate->is_default ? 0 : SERIAL_MS };
    int status =
        qn_testbed_check(&search->bed, candidate->kernel, &limits, &candidate->is_checked, &why);
    if (!status)
        status = qn_measure_adaptive(&search->bed.set, candidate->kernel, ROUND_MS,
                                     GIVE_UP * search->best_us, &samples, &why);
    if (status == QUERN_CHECK_FAILED) {
        snprintf(candidate->outcome, sizeof(candidate->outcome), "%.250s", why.text);
        return QUERN_OK;
    }
    if (status)
        return qn_fail_why(search->ctx, status, &why);
    candidate->stat = qn_stat_of(samples.us, samples.count);
    strcpy(candidate->outcome, "ok");
    return QUERN_OK;
}

static void progress_tell(struct search *search, const struct qn_candidate *candidate)
{
    const struct quern_tune_options *options = search->options;
    struct quern_tune_progress progress = {
        .done = search->done,
        .total = search->candidates.count,
        .failed = search->failed,
        .seconds = seconds(search),
        .best_us = search->best_us,
        .variant = candidate->variant->name,
        .config = candidate->text,
        .outcome = candidate->outcome,
    };
    qn_log(search->ctx, QUERN_LOG_DEBUG, "trial %s %s: %s, %.3f us", candidate->variant->name,
           candidate->text, candidate->outcome, candidate->stat.median);
    if (options->progress && options->progress(options->user, &progress))
        search->is_stopped = true;
}

static void candidate_count(struct search *search, const struct qn_candidate *candidate)
{
    search->done++;
    search->failed += !is_ok(candidate);
    if (is_ok(candidate) && (search->best_us == 0 || candidate->stat.median < search->best_us))
        search->best_us = candidate->stat.median;
}

/* How many of those tried, which are the first `done`, are ahead of this one. The rest may be in
 * the builder's hands. */
static int rank_of(const struct search *search, const struct qn_candidate *candidate)
{
    int rank = 0;
    for (int i = 0; i < search->done; i++) {
        const struct qn_candidate *other = &search->candidates.list[i];
        rank += is_ok(other) && other->stat.median < candidate->stat.median;
    }
    return rank;
}

static void candidate_drop(struct search *search, struct qn_candidate *candidate)
{
    qn_kernel_destroy(search->ctx, candidate->kernel);
    candidate->kernel = NULL;
}

/* Kernels of candidates that a later round may want stay loaded. */
static void candidates_trim(struct search *search)
{
    for (int i = 0; i < search->done; i++) {
        struct qn_candidate *candidate = &search->candidates.list[i];
        if (candidate->kernel && !candidate->is_default &&
            (!is_ok(candidate) || rank_of(search, candidate) >= KEEP))
            candidate_drop(search, candidate);
    }
}

static int first_round(struct search *search)
{
    for (int i = 0; i < search->candidates.count; i++) {
        struct qn_candidate *candidate = &search->candidates.list[i];
        if ((i && is_over(search, SEARCH_SHARE)) || !qn_builder_wait(search->builder, i))
            return QUERN_OK;
        if (!candidate->is_known) {
            if (candidate->state == QN_CANDIDATE_BUILT)
                QN_TRY(candidate_bench(search, candidate));
            trial_store(search, candidate);
        }
        candidate_count(search, candidate);
        progress_tell(search, candidate);
        candidates_trim(search);
    }
    return QUERN_OK;
}

static int builder_make(struct search *search)
{
    bool is_exclusive = search->ctx->backend->kind == QUERN_CPU;
    int cores = omp_get_num_procs() - (is_exclusive ? 0 : BENCH_CORES);
    int jobs = search->options->jobs ? search->options->jobs : cores;
    double budget = search->options->budget_s;
    struct qn_builder_options options = {
        .jobs = jobs < MAX_JOBS ? jobs : MAX_JOBS,
        .is_exclusive = is_exclusive,
        .deadline_ms =
            budget > 0 ? search->search_ms + budget * SEARCH_SHARE * 1e3 : (double)INFINITY,
    };
    return qn_builder_create(search->ctx, &search->bucket, &search->candidates, &options,
                             &search->builder);
}

/* ---- 4, 5. Later rounds -------------------------------------------------------------------- */

struct field {
    struct qn_candidate *list[KEEP + 1];
    int count;
};

static int candidate_compare(const void *a, const void *b)
{
    const struct qn_candidate *left = *(struct qn_candidate *const *)a;
    const struct qn_candidate *right = *(struct qn_candidate *const *)b;
    if (left->stat.median != right->stat.median)
        return left->stat.median < right->stat.median ? -1 : 1;
    return (left > right) - (left < right); /* one list: the order of candidates */
}

/* The best `most`, none much slower than the best, and the default. */
static void field_cut(struct field *field, int most)
{
    int kept = 0;
    qsort(field->list, (size_t)field->count, sizeof(field->list[0]), candidate_compare);
    for (int i = 0; i < field->count; i++) {
        struct qn_candidate *candidate = field->list[i];
        bool is_near = candidate->stat.median <= WITHIN * field->list[0]->stat.median;
        if ((i < most && is_near) || candidate->is_default)
            field->list[kept++] = candidate;
    }
    field->count = kept;
}

/* The best of whoever passed, by the first round's times. */
static void field_fill(struct search *search, struct field *field)
{
    field->count = 0;
    for (int i = 0; i < search->done && field->count <= KEEP; i++) {
        struct qn_candidate *candidate = &search->candidates.list[i];
        if (is_ok(candidate) && (candidate->is_default || rank_of(search, candidate) < KEEP))
            field->list[field->count++] = candidate;
    }
    if (field->count)
        field_cut(field, KEEP);
}

/* Its kernel, and the workspace that it needs. */
static int candidate_load(struct search *search, struct qn_candidate *candidate)
{
    struct quern_message why;
    qn_candidate_build(candidate, search->ctx, &search->bucket);
    if (!candidate->kernel)
        return qn_fail(search->ctx, QUERN_COMPILE, "%s %s: was built before, but not again: %s",
                       candidate->variant->name, candidate->text, candidate->outcome);
    int status = qn_workset_workspace(&search->bed.set,
                                      (size_t)candidate->kernel->plan->workspace_bytes, &why);
    return status ? qn_fail_why(search->ctx, status, &why) : QUERN_OK;
}

/* One turn of one candidate: about TURN_MS, at least one launch. */
static int turn(struct search *search, struct qn_candidate *candidate, struct qn_samples *samples)
{
    struct quern_message why;
    QN_TRY(candidate_load(search, candidate));
    int status = qn_measure_turn(&search->bed.set, candidate->kernel, candidate->stat.median,
                                 TURN_MS, QN_MAX_SAMPLES / CONFIRM_TURNS, samples, &why);
    return status ? qn_fail_why(search->ctx, status, &why) : QUERN_OK;
}

/* Fresh times for everybody, in turns. The budget is looked at between turns, so that all have had
 * the same number of them. */
static int field_measure(struct search *search, struct field *field, int turns)
{
    struct qn_samples *samples = calloc(KEEP + 1, sizeof(*samples));
    int status = samples ? QUERN_OK : qn_fail(search->ctx, QUERN_NO_MEMORY, "out of memory");
    for (int t = 0; t < turns && !status; t++) {
        for (int i = 0; i < field->count && !status; i++)
            status = turn(search, field->list[i], &samples[i]);
        lease_beat(search);
        if (is_over(search, 1))
            break;
    }
    for (int i = 0; i < field->count && !status; i++)
        field->list[i]->stat = qn_stat_of(samples[i].us, samples[i].count);
    free(samples);
    return status;
}

static int later_rounds(struct search *search, struct field *field)
{
    field_fill(search, field);
    for (int most = KEEP / 2; field->count > CONFIRM + 1 && !is_over(search, 1);) {
        QN_TRY(field_measure(search, field, HALVING_TURNS));
        field_cut(field, most > CONFIRM ? most : CONFIRM);
        most /= 2;
    }
    if (field->count > 1 && !is_over(search, 1))
        QN_TRY(field_measure(search, field, CONFIRM_TURNS));
    return QUERN_OK;
}

static struct qn_candidate *winner_pick(struct search *search, const struct field *field)
{
    struct qn_contender contenders[KEEP + 1];
    for (int i = 0; i < field->count; i++) {
        const struct qn_candidate *candidate = field->list[i];
        struct qn_contender *contender = &contenders[i];
        *contender = (struct qn_contender){ candidate->stat, candidate->is_default, -1, 0,
                                            candidate - search->candidates.list };
        for (int s = 0; candidate->kernel && s < candidate->kernel->report.step_count; s++) {
            const struct quern_step_report *step = &candidate->kernel->report.steps[s];
            if (step->registers > contender->registers)
                contender->registers = step->registers;
            if (step->shared_bytes > contender->shared_bytes)
                contender->shared_bytes = step->shared_bytes;
        }
    }
    int best = qn_contender_pick(contenders, field->count);
    return best < 0 ? NULL : field->list[best];
}

/* What has not been checked in every order by this tuning, is before it wins: a large problem's
 * kernels, and those that an interrupted tuning passed. */
static int winner_check(struct search *search, struct qn_candidate *candidate)
{
    const struct qn_check_limits limits = { 0, 0 };
    struct quern_message why;
    QN_TRY(candidate_load(search, candidate));
    int status =
        qn_testbed_check(&search->bed, candidate->kernel, &limits, &candidate->is_checked, &why);
    if (status != QUERN_CHECK_FAILED)
        return status ? qn_fail_why(search->ctx, status, &why) : QUERN_OK;
    snprintf(candidate->outcome, sizeof(candidate->outcome), "%.250s", why.text);
    search->failed++;
    trial_store(search, candidate);
    return QUERN_OK;
}

/* The winner that also passes; NULL if nobody does. */
static int winner_find(struct search *search, struct field *field, struct qn_candidate **winner)
{
    while ((*winner = winner_pick(search, field)) && !(*winner)->is_checked) {
        int kept = 0;
        QN_TRY(winner_check(search, *winner));
        for (int i = 0; i < field->count; i++) {
            if (is_ok(field->list[i]))
                field->list[kept++] = field->list[i];
        }
        field->count = kept;
    }
    return QUERN_OK;
}

/* ---- 6. The result ------------------------------------------------------------------------- */

/* Nothing passed: the first candidate's reason is the tuning's. */
static int fail_all(struct search *search)
{
    const struct qn_candidate *first = &search->candidates.list[0];
    int status = first->state == QN_CANDIDATE_BUILT ? QUERN_CHECK_FAILED : QUERN_COMPILE;
    return qn_fail(search->ctx, status, "%s: none of %d candidates passed; %s %s: %s",
                   search->result->bucket, search->done, first->variant->name, first->text,
                   first->outcome);
}

static void winner_store(struct search *search, struct qn_candidate *candidate)
{
    struct quern_tune_result *result = search->result;
    char provenance[160];
    snprintf(provenance, sizeof(provenance), "quern %s, %d candidates, %d failed, %.1f s",
             QUERN_VERSION, search->done, search->failed, seconds(search));
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
    };
    struct qn_tuned winner;
    entry_set(&result->best, candidate->variant->name, candidate->text, candidate->stat.median,
              candidate->stat.spread);
    if (qn_tuned_put(search->ctx->store, &row, &winner) == QN_STORE_OK) {
        entry_set(&result->best, winner.variant, winner.config, winner.time_us, winner.spread_us);
        qn_tuned_fini(&winner);
    } else {
        qn_winner_keep(search->ctx, &row); /* the store has warned */
    }
    qn_kernels_refresh(search->ctx, &search->bucket);
}

static int finish(struct search *search, struct field *field)
{
    struct quern_tune_result *result = search->result;
    const struct qn_candidate *first = &search->candidates.list[0];
    struct qn_candidate *winner;
    QN_TRY(winner_find(search, field, &winner));
    result->candidates = search->done;
    result->failed = search->failed;
    result->scratch_bytes = qn_testbed_bytes(&search->bed);
    if (!winner)
        return fail_all(search);
    entry_set(&result->heuristic, first->variant->name, first->text, first->stat.median,
              first->stat.spread);
    winner_store(search, winner);
    if (is_ok(first) && result->best.time_us > 0)
        result->speedup = result->heuristic.time_us / result->best.time_us;
    qn_log(search->ctx, QUERN_LOG_INFO,
           "tuned %s: %s %s, %.3f us, %.2f times the heuristic's speed", result->bucket,
           result->best.variant, result->best.config, result->best.time_us, result->speedup);
    return QUERN_OK;
}

/* ---- All of it ----------------------------------------------------------------------------- */

static int search_run(struct search *search)
{
    struct field field;
    search->search_ms = qn_now_ms();
    QN_TRY(qn_candidates_init(&search->candidates, search->ctx, &search->bucket,
                              search->request->variant, search->group,
                              search->options->max_configs));
    resume(search);
    QN_TRY(testbed_make(search));
    QN_TRY(builder_make(search));
    int status = first_round(search);
    qn_builder_destroy(search->builder);
    QN_TRY(status);
    QN_TRY(later_rounds(search, &field));
    return finish(search, &field);
}

/* Releases what search_run() made, and keeps its status unless arrays could not be put back. */
static int search_end(struct search *search, int status)
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
static void waiting_tell(struct search *search, bool is_first)
{
    const struct quern_tune_options *options = search->options;
    const struct quern_tune_progress progress = {
        .seconds = seconds(search),
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
static int lease_wait(struct search *search)
{
    struct qn_store *store = search->ctx->store;
    double budget_s = search->options->budget_s;
    double wait_s = budget_s > 0 ? budget_s * 2 + 60 : LEASE_WAIT_S;
    char hex[QN_KEY_HEX], name[64];
    qn_key_hex(search->text, strlen(search->text), hex);
    snprintf(name, sizeof(name), "tune %s", hex);
    for (bool is_first = true; seconds(search) < wait_s; is_first = false) {
        double begin_s = seconds(search);
        if (!qn_lease_acquire(store, name, LEASE_SLICE_S, LEASE_EXPIRY_S, &search->lease) ||
            seconds(search) - begin_s < LEASE_SLICE_S || !qn_store_is_writable(store))
            return QUERN_OK;
        waiting_tell(search, is_first);
        if (search->is_stopped)
            return qn_fail(search->ctx, QUERN_MISS, "%s: stopped while another process tunes it",
                           search->result->bucket);
    }
    return QUERN_OK;
}

/* Once across processes. Whoever waited looks again before it works. */
static int search_leased(struct search *search)
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
    if (!ctx->options.profile || !strcmp(own.name, ctx->options.profile))
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

static void toolkit_find(struct search *search)
{
    struct quern_context *ctx = search->ctx;
    struct quern_message why;
    if (ctx->backend->compiler(ctx->device, search->toolkit, sizeof(search->toolkit), &why))
        search->toolkit[0] = '\0';
}

static int tune(struct search *search)
{
    struct quern_context *ctx = search->ctx;
    qn_bucket_make(search->request->spec, search->request->arrays, &search->bucket);
    quern_spec_text(&search->bucket.spec, search->result->bucket, sizeof(search->result->bucket));
    if (qn_tuned_key(&search->bucket, &ctx->profile, &search->text, &search->group))
        return qn_fail(ctx, QUERN_NO_MEMORY, "out of memory");
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
    struct search *search = calloc(1, sizeof(*search));
    if (!search)
        return qn_fail(ctx, QUERN_NO_MEMORY, "out of memory");
    memset(&found, 0, sizeof(found));
    search->ctx = ctx;
    search->request = request;
    search->options = options;
    search->result = &found;
    search->start_ms = qn_now_ms();
    int status = tune(search);
    found.seconds = seconds(search);
    free(search->text);
    free(search->group);
    free(search);
    if (!status && result)
        *result = found;
    return status;
}
