/* The rounds of a search, which tune.c's picture numbers 3 to 5:
 *
 *     candidates ──first round──> passed ──halving──> CONFIRM, and the default ──confirm──> winner
 *                  each by itself           in turns                          in turns
 *
 * The first round's times are of different moments: they only say who goes on. In turns, whatever
 * slows the machine slows all alike, and times may be compared.
 */
#include <math.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "jit/measure.h"
#include "jit/search.h"

#define CONFIRM 4     /* candidates in the last round */
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

double qn_search_seconds(const struct qn_search *search)
{
    return (qn_now_ms() - search->start_ms) * 1e-3;
}

static bool is_over(const struct qn_search *search, double share)
{
    double budget = search->options->budget_s;
    double spent = (qn_now_ms() - search->search_ms) * 1e-3;
    return search->is_stopped || (budget > 0 && spent > budget * share);
}

/* There is none when others could not be waited for. */
static void lease_beat(const struct qn_search *search)
{
    if (search->lease)
        qn_lease_beat(search->lease);
}

static void trial_store(const struct qn_search *search, struct qn_candidate *candidate)
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

/* ---- 3. The first round -------------------------------------------------------------------- */

static bool is_ok(const struct qn_candidate *candidate)
{
    return !strcmp(candidate->outcome, "ok");
}

/* Check, then time. A negative status is the testbed's own failure. */
static int candidate_bench(struct qn_search *search, struct qn_candidate *candidate)
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

static void progress_tell(struct qn_search *search, const struct qn_candidate *candidate)
{
    const struct quern_tune_options *options = search->options;
    struct quern_tune_progress progress = {
        .done = search->done,
        .total = search->candidates.count,
        .failed = search->failed,
        .seconds = qn_search_seconds(search),
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

static void candidate_count(struct qn_search *search, const struct qn_candidate *candidate)
{
    search->done++;
    search->failed += !is_ok(candidate);
    if (is_ok(candidate) && (search->best_us == 0 || candidate->stat.median < search->best_us))
        search->best_us = candidate->stat.median;
}

/* How many of those tried, which are the first `done`, are ahead of this one. The rest may be in
 * the builder's hands. */
static int rank_of(const struct qn_search *search, const struct qn_candidate *candidate)
{
    int rank = 0;
    for (int i = 0; i < search->done; i++) {
        const struct qn_candidate *other = &search->candidates.list[i];
        rank += is_ok(other) && other->stat.median < candidate->stat.median;
    }
    return rank;
}

static void candidate_drop(struct qn_search *search, struct qn_candidate *candidate)
{
    qn_kernel_destroy(search->ctx, candidate->kernel);
    candidate->kernel = NULL;
}

/* Kernels of candidates that a later round may want stay loaded. */
static void candidates_trim(struct qn_search *search)
{
    for (int i = 0; i < search->done; i++) {
        struct qn_candidate *candidate = &search->candidates.list[i];
        if (candidate->kernel && !candidate->is_default &&
            (!is_ok(candidate) || rank_of(search, candidate) >= QN_SEARCH_KEEP))
            candidate_drop(search, candidate);
    }
}

static int candidates_try(struct qn_search *search)
{
    for (int i = 0; i < search->candidates.count; i++) {
        struct qn_candidate *candidate = &search->candidates.list[i];
        if ((i && is_over(search, SEARCH_SHARE)) || !qn_builder_wait(search->builder, i))
            return QUERN_OK;
        if (!candidate->is_known) {
            if (candidate->state == QN_CANDIDATE_BUILT)
                QN_TRY(candidate_bench(search, candidate));
            trial_store(search, candidate);
        } else if (search->carried) {
            trial_store(search, candidate); /* of this generation, too */
        }
        candidate_count(search, candidate);
        progress_tell(search, candidate);
        candidates_trim(search);
    }
    return QUERN_OK;
}

static int builder_make(struct qn_search *search)
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

int qn_search_first_round(struct qn_search *search)
{
    QN_TRY(builder_make(search));
    int status = candidates_try(search);
    qn_builder_destroy(search->builder);
    search->builder = NULL;
    return status;
}

/* ---- 4, 5. Later rounds -------------------------------------------------------------------- */

static int candidate_compare(const void *a, const void *b)
{
    const struct qn_candidate *left = *(struct qn_candidate *const *)a;
    const struct qn_candidate *right = *(struct qn_candidate *const *)b;
    if (left->stat.median != right->stat.median)
        return left->stat.median < right->stat.median ? -1 : 1;
    return (left > right) - (left < right); /* one list: the order of candidates */
}

/* The best `most`, none much slower than the best, and the default. */
static void field_cut(struct qn_field *field, int most)
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
static void field_fill(struct qn_search *search, struct qn_field *field)
{
    field->count = 0;
    for (int i = 0; i < search->done && field->count <= QN_SEARCH_KEEP; i++) {
        struct qn_candidate *candidate = &search->candidates.list[i];
        if (is_ok(candidate) &&
            (candidate->is_default || rank_of(search, candidate) < QN_SEARCH_KEEP))
            field->list[field->count++] = candidate;
    }
    if (field->count)
        field_cut(field, QN_SEARCH_KEEP);
}

/* Its kernel, and the workspace that it needs. */
static int candidate_load(struct qn_search *search, struct qn_candidate *candidate)
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
static int turn(struct qn_search *search, struct qn_candidate *candidate,
                struct qn_samples *samples)
{
    struct quern_message why;
    QN_TRY(candidate_load(search, candidate));
    int status = qn_measure_turn(&search->bed.set, candidate->kernel, candidate->stat.median,
                                 TURN_MS, QN_MAX_SAMPLES / CONFIRM_TURNS, samples, &why);
    return status ? qn_fail_why(search->ctx, status, &why) : QUERN_OK;
}

/* Fresh times for everybody, in turns. The budget is looked at between turns, so that all have had
 * the same number of them. */
static int field_measure(struct qn_search *search, struct qn_field *field, int turns)
{
    struct qn_samples *samples = calloc(QN_SEARCH_KEEP + 1, sizeof(*samples));
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

/* However little time is left the last round has one turn: times of different moments, or of a
 * process that was killed long ago, are no speed-up. */
int qn_search_later_rounds(struct qn_search *search, struct qn_field *field)
{
    field_fill(search, field);
    for (int most = QN_SEARCH_KEEP / 2; field->count > CONFIRM + 1 && !is_over(search, 1);) {
        QN_TRY(field_measure(search, field, HALVING_TURNS));
        field_cut(field, most > CONFIRM ? most : CONFIRM);
        most /= 2;
    }
    if (field->count && is_over(search, 1))
        field_cut(field, CONFIRM);
    if (field->count > 1)
        QN_TRY(field_measure(search, field, CONFIRM_TURNS));
    return QUERN_OK;
}

static struct qn_candidate *winner_pick(struct qn_search *search, const struct qn_field *field)
{
    struct qn_contender contenders[QN_SEARCH_KEEP + 1];
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
static int winner_check(struct qn_search *search, struct qn_candidate *candidate)
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
int qn_search_winner(struct qn_search *search, struct qn_field *field, struct qn_candidate **winner)
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
