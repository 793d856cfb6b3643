/* Candidates: the list, and the threads that build it.
 *
 * The list, most promising first:
 *   1. each variant's heuristic; the first variant's is the default, what an untuned call uses
 *   2. winners of neighbouring buckets, as far as they are legal here
 *   3. each variant's own candidates, one of each in turn, so that a limit cuts all variants alike
 * Illegal configs and repeats are dropped.
 *
 * The builder:
 *
 *     index     0 1 2 3 4 5 6 7 8 9
 *               benched | built | being built | not begun
 *                       ^ asked for           ^ next        ^ limit = asked for + window
 *
 * Threads take `next` while it is below `limit`. On a GPU the bench runs meanwhile. On the CPU
 * compilers would disturb the measurement, so there the window is built whole while the bench
 * waits, and then nothing is begun until the bench asks past it. The first window is one candidate:
 * the default is measured however small the budget.
 */
#include "jit/candidate.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "jit/winners.h"

#define MAX_PER_VARIANT 4096
#define MAX_VARIANTS 16
#define MAX_SEEDS 16
#define WINDOW_PER_JOB 3

/* ---- The list ------------------------------------------------------------------------------ */

struct gathering {
    struct qn_build_request request; /* of any candidate: no config */
    struct quern_problem problem;    /* the request's */
    struct qn_candidates *candidates;
    int capacity, limit, seeds;
    bool is_out_of_memory;
};

static bool is_full(const struct gathering *gathering)
{
    return gathering->is_out_of_memory ||
           (gathering->limit && gathering->candidates->count >= gathering->limit);
}

static bool is_repeat(const struct qn_candidates *candidates, const struct quern_variant *variant,
                      const int32_t *config)
{
    for (int i = 0; i < candidates->count; i++) {
        const struct qn_candidate *other = &candidates->list[i];
        if (other->variant == variant &&
            !memcmp(other->config, config, (size_t)variant->knob_count * sizeof(*config)))
            return true;
    }
    return false;
}

static void candidate_add(struct gathering *gathering, const struct quern_variant *variant,
                          const int32_t *config)
{
    struct qn_candidates *candidates = gathering->candidates;
    struct quern_message why;
    if (is_full(gathering) || is_repeat(candidates, variant, config) ||
        qn_config_check(variant, &gathering->problem, config, &why))
        return;
    if (candidates->count == gathering->capacity) {
        int capacity = gathering->capacity ? 2 * gathering->capacity : 64;
        void *list = realloc(candidates->list, (size_t)capacity * sizeof(*candidates->list));
        if (!list) {
            gathering->is_out_of_memory = true;
            return;
        }
        candidates->list = list;
        gathering->capacity = capacity;
    }
    struct qn_candidate *candidate = &candidates->list[candidates->count];
    memset(candidate, 0, sizeof(*candidate));
    candidate->variant = variant;
    candidate->is_default = candidates->count == 0;
    memcpy(candidate->config, config, (size_t)variant->knob_count * sizeof(*config));
    qn_config_text(variant, config, candidate->text, sizeof(candidate->text));
    candidates->count++;
}

/* 1 */
static void add_heuristics(struct gathering *gathering)
{
    const struct quern_family *family = gathering->request.bucket->spec.family;
    for (int v = 0; family->variants[v]; v++) {
        int32_t config[QUERN_MAX_KNOBS] = { 0 };
        if (!qn_variant_usable(&gathering->request, family->variants[v]))
            continue;
        family->variants[v]->heuristic(&gathering->problem, config);
        candidate_add(gathering, family->variants[v], config);
    }
}

/* 2 */
static int add_seed(void *user, const struct qn_tuned *row)
{
    struct gathering *gathering = user;
    struct quern_message why;
    int32_t config[QUERN_MAX_KNOBS] = { 0 };
    const struct quern_variant *variant =
        qn_variant_find(gathering->request.bucket->spec.family, row->variant);
    if (!variant || !qn_variant_usable(&gathering->request, variant))
        return 0;
    if (!qn_config_for(&gathering->request, variant, row->config, config, &why))
        candidate_add(gathering, variant, config);
    return ++gathering->seeds >= MAX_SEEDS;
}

/* 3 */
static void add_lists(struct gathering *gathering)
{
    const struct quern_family *family = gathering->request.bucket->spec.family;
    int32_t(*configs[MAX_VARIANTS])[QUERN_MAX_KNOBS] = { NULL };
    int counts[MAX_VARIANTS] = { 0 }, longest = 0;
    for (int v = 0; v < MAX_VARIANTS && family->variants[v]; v++) {
        const struct quern_variant *variant = family->variants[v];
        if (!variant->candidates || !qn_variant_usable(&gathering->request, variant))
            continue;
        configs[v] = calloc(MAX_PER_VARIANT, sizeof(*configs[v]));
        gathering->is_out_of_memory |= !configs[v];
        if (configs[v])
            counts[v] = variant->candidates(&gathering->problem, configs[v], MAX_PER_VARIANT);
        longest = counts[v] > longest ? counts[v] : longest;
    }
    for (int i = 0; i < longest && !is_full(gathering); i++) {
        for (int v = 0; v < MAX_VARIANTS; v++) {
            if (i < counts[v])
                candidate_add(gathering, family->variants[v], configs[v][i]);
        }
    }
    for (int v = 0; v < MAX_VARIANTS; v++)
        free(configs[v]);
}

int qn_candidates_list(struct qn_candidates *candidates, struct quern_context *ctx,
                       const struct qn_build_request *request, const char *group, int limit)
{
    const struct qn_bucket *bucket = request->bucket;
    struct gathering gathering = {
        .request = *request,
        .problem = qn_problem_of(request),
        .candidates = candidates,
        .limit = limit,
    };
    gathering.request.config = NULL;
    memset(candidates, 0, sizeof(*candidates));
    if (request->variant && !qn_variant_find(bucket->spec.family, request->variant))
        return qn_fail(ctx, QUERN_INVALID, "variant=%s: %s has no such variant", request->variant,
                       bucket->spec.family->name);
    add_heuristics(&gathering);
    if (!candidates->count && !gathering.is_out_of_memory)
        return qn_fail(ctx, QUERN_UNSUPPORTED, "%s: no variant serves this spec on this device",
                       bucket->spec.family->name);
    qn_winner_each(ctx, group, add_seed, &gathering);
    add_lists(&gathering);
    if (!gathering.is_out_of_memory)
        return QUERN_OK;
    qn_candidates_fini(candidates, ctx);
    return qn_fail(ctx, QUERN_NO_MEMORY, "out of memory");
}

int qn_candidates_init(struct qn_candidates *candidates, struct quern_context *ctx,
                       const struct qn_bucket *bucket, const char *variant, const char *group,
                       int limit)
{
    const struct qn_build_request request = { bucket, &ctx->target, &ctx->profile, variant,
                                              NULL,   false,        false };
    return qn_candidates_list(candidates, ctx, &request, group, limit);
}

void qn_candidates_fini(struct qn_candidates *candidates, struct quern_context *ctx)
{
    for (int i = 0; i < candidates->count; i++)
        qn_kernel_destroy(ctx, candidates->list[i].kernel);
    free(candidates->list);
    memset(candidates, 0, sizeof(*candidates));
}

/* ---- Building one -------------------------------------------------------------------------- */

/* The line of a compiler's log that says what is wrong; where none does, the library's own word. */
static void outcome_of_failure(struct quern_context *ctx, const char *log, char *text, size_t bytes)
{
    const char *line = log ? strstr(log, "error") : NULL;
    while (line && line > log && line[-1] != '\n')
        line--;
    if (!line)
        line = quern_errmsg(ctx);
    while (isspace((unsigned char)*line))
        line++;
    snprintf(text, bytes, "%.*s", (int)strcspn(line, "\n"), line);
}

static struct qn_build_request request_of(const struct qn_candidate *candidate,
                                          const struct quern_context *ctx,
                                          const struct qn_bucket *bucket)
{
    return (struct qn_build_request){
        .bucket = bucket,
        .target = &ctx->target,
        .profile = &ctx->profile,
        .variant = candidate->variant->name,
        .config = candidate->text,
        .is_loaded = true,
        .is_local = true,
    };
}

static int64_t spills_of(const struct quern_kernel *kernel)
{
    int64_t spills = 0;
    for (int i = 0; i < kernel->report.step_count; i++)
        spills += kernel->report.steps[i].spills > 0 ? kernel->report.steps[i].spills : 0;
    return spills;
}

void qn_candidate_judge(struct qn_candidate *candidate, struct quern_context *ctx, int status,
                        const char *log)
{
    if (status)
        outcome_of_failure(ctx, log, candidate->outcome, sizeof(candidate->outcome));
    else if (spills_of(candidate->kernel) > 0)
        snprintf(candidate->outcome, sizeof(candidate->outcome), "spills %lld bytes of registers",
                 (long long)spills_of(candidate->kernel));
}

void qn_candidate_build(struct qn_candidate *candidate, struct quern_context *ctx,
                        const struct qn_bucket *bucket)
{
    const struct qn_build_request request = request_of(candidate, ctx, bucket);
    char *log = NULL;
    if (candidate->kernel)
        return;
    int status = qn_build(ctx, &request, &candidate->kernel, &log);
    qn_candidate_judge(candidate, ctx, status, log);
    free(log);
}

void qn_candidate_digest(struct qn_candidate *candidate, struct quern_context *ctx,
                         const struct qn_bucket *bucket)
{
    const struct qn_build_request request = request_of(candidate, ctx, bucket);
    if (!candidate->digest[0] && qn_build_digest(ctx, &request, candidate->digest))
        candidate->digest[0] = '\0';
}

/* ---- Building ahead ------------------------------------------------------------------------ */

struct qn_builder {
    struct quern_context *ctx;
    const struct qn_bucket *bucket;
    struct qn_candidates *candidates;
    struct qn_builder_options options;
    pthread_mutex_t lock;
    pthread_cond_t work; /* the limit moved, or stopping */
    pthread_cond_t idle; /* a thread ended a build or found none to begin */
    int next, limit, in_flight;
    bool is_stopping;
    int thread_count;
    pthread_t threads[];
};

static bool is_open(const struct qn_builder *builder)
{
    return builder->next < builder->limit &&
           (builder->next == 0 || qn_now_ms() < builder->options.deadline_ms);
}

/* Takes `next`; called and left with the lock held. */
static void build_next(struct qn_builder *builder)
{
    struct qn_candidate *candidate = &builder->candidates->list[builder->next++];
    bool is_good = true;
    builder->in_flight++;
    pthread_mutex_unlock(&builder->lock);
    if (!candidate->is_known) {
        qn_candidate_digest(candidate, builder->ctx, builder->bucket);
        qn_candidate_build(candidate, builder->ctx, builder->bucket);
        is_good = !candidate->outcome[0];
    }
    pthread_mutex_lock(&builder->lock);
    candidate->state = is_good ? QN_CANDIDATE_BUILT : QN_CANDIDATE_FAILED;
    builder->in_flight--;
    pthread_cond_signal(&builder->idle);
}

static void *builder_main(void *data)
{
    struct qn_builder *builder = data;
    pthread_mutex_lock(&builder->lock);
    while (!builder->is_stopping) {
        if (is_open(builder)) {
            build_next(builder);
            continue;
        }
        pthread_cond_signal(&builder->idle); /* also when the deadline has just shut the window */
        pthread_cond_wait(&builder->work, &builder->lock);
    }
    pthread_mutex_unlock(&builder->lock);
    return NULL;
}

int qn_builder_create(struct quern_context *ctx, const struct qn_bucket *bucket,
                      struct qn_candidates *candidates, const struct qn_builder_options *options,
                      struct qn_builder **out)
{
    size_t jobs = options->jobs > 1 ? (size_t)options->jobs : 1;
    struct qn_builder *builder = calloc(1, sizeof(*builder) + jobs * sizeof(builder->threads[0]));
    if (!builder)
        return qn_fail(ctx, QUERN_NO_MEMORY, "out of memory");
    builder->ctx = ctx;
    builder->bucket = bucket;
    builder->candidates = candidates;
    builder->options = *options;
    pthread_mutex_init(&builder->lock, NULL);
    pthread_cond_init(&builder->work, NULL);
    pthread_cond_init(&builder->idle, NULL);
    while (builder->thread_count < (int)jobs &&
           !pthread_create(&builder->threads[builder->thread_count], NULL, builder_main, builder))
        builder->thread_count++;
    if (!builder->thread_count) {
        qn_builder_destroy(builder);
        return qn_fail(ctx, QUERN_NO_MEMORY, "jobs=%d: no thread can be started", options->jobs);
    }
    *out = builder;
    return QUERN_OK;
}

/* Moves the window, unless an exclusive one is not used up. */
static void window_move(struct qn_builder *builder, int index)
{
    int window = index ? builder->thread_count * WINDOW_PER_JOB : 1;
    if (builder->options.is_exclusive && index < builder->limit)
        return;
    builder->limit = index + window;
    if (builder->limit > builder->candidates->count)
        builder->limit = builder->candidates->count;
    pthread_cond_broadcast(&builder->work);
}

bool qn_builder_wait(struct qn_builder *builder, int index)
{
    struct qn_candidate *candidate = &builder->candidates->list[index];
    pthread_mutex_lock(&builder->lock);
    window_move(builder, index);
    while (builder->options.is_exclusive
               ? builder->in_flight || is_open(builder)
               : candidate->state == QN_CANDIDATE_NEW && (builder->in_flight || is_open(builder)))
        pthread_cond_wait(&builder->idle, &builder->lock);
    bool is_done = candidate->state != QN_CANDIDATE_NEW;
    pthread_mutex_unlock(&builder->lock);
    return is_done;
}

void qn_builder_destroy(struct qn_builder *builder)
{
    if (!builder)
        return;
    pthread_mutex_lock(&builder->lock);
    builder->is_stopping = true;
    pthread_cond_broadcast(&builder->work);
    pthread_mutex_unlock(&builder->lock);
    for (int i = 0; i < builder->thread_count; i++)
        pthread_join(builder->threads[i], NULL);
    pthread_cond_destroy(&builder->idle);
    pthread_cond_destroy(&builder->work);
    pthread_mutex_destroy(&builder->lock);
    free(builder);
}
