/* Building a plan. A thread takes a task at a time:
 *
 *     tasks   0 1 2 3 4 5 6 7
 *             done    |being| waiting
 *                     |built|   ^ next
 *
 * Every kernel is in the store as soon as it is compiled, and what the store has is not compiled
 * again: whatever ends a batch, the next one goes on where it ended. After the first SIGINT or
 * SIGTERM no task is begun; the second ends the process as it would any other. Nor is one begun
 * after the first kernel that the store could not keep: a full disk keeps no other either.
 *
 * The compiler's log reaches the log hook in the thread of the task that asked for it. */
#include "model_build.h"

#include "progress.h"

#include <quern/cache.h>

#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

enum { MAX_THREADS = 1024 };

static volatile sig_atomic_t was_interrupted;
static _Thread_local struct task *current; /* the calling thread's */

struct crew {
    struct batch *batch;
    struct quern_context *ctx;
    struct progress bar; /* whether one is shown, and when it was drawn */
    int next, done, failed;
    int is_full;      /* the store did not keep what it was handed */
    char reason[160]; /* the system's, if the store said it: "database or disk is full" */
    double started_s;
    pthread_mutex_t lock;
    pthread_cond_t has_done; /* one more */
};

static double now_s(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

static void note_signal(int number)
{
    (void)number;
    was_interrupted = 1;
}

static void catch_signals(struct sigaction before[2])
{
    struct sigaction action = { .sa_handler = note_signal, .sa_flags = (int)SA_RESETHAND };
    was_interrupted = 0;
    sigaction(SIGINT, &action, &before[0]);
    sigaction(SIGTERM, &action, &before[1]);
}

static void restore_signals(const struct sigaction before[2])
{
    sigaction(SIGINT, &before[0], NULL);
    sigaction(SIGTERM, &before[1], NULL);
}

/* ---- The tasks ------------------------------------------------------------------------------- */

static int parse_call(struct quern_context *ctx, const struct plan_call *call,
                      struct quern_spec *spec)
{
    char text[512];
    snprintf(text, sizeof(text), "%s %s", call->family, call->params);
    return quern_spec_parse(ctx, text, spec);
}

int plan_call_is_provided(struct quern_context *ctx, const struct plan_call *call)
{
    struct quern_spec spec;
    return quern_family_find(ctx, call->family) && !parse_call(ctx, call, &spec);
}

int batch_init(struct batch *batch, const struct args *args, struct quern_context *ctx,
               const struct plan *plan, const char *const *targets, int target_count,
               int candidates)
{
    size_t each = (size_t)target_count * (size_t)(1 + candidates);
    *batch = (struct batch){ .args = args };
    batch->tasks = calloc((size_t)plan->count * each + 1, sizeof(*batch->tasks));
    int *first = calloc((size_t)plan->count + 1, sizeof(*first)); /* of each call, its task */
    if (!batch->tasks || !first) {
        free(first);
        return -1;
    }
    for (int rank = 0; rank <= candidates; rank++) { /* what is needed first, then the rest */
        for (int i = 0; i < plan->count; i++) {
            const struct plan_call *call = &plan->calls[i];
            if (rank && (call->is_repeat || call->is_extra)) /* tuned elsewhere, or not at all */
                continue;
            int is_here = plan_call_is_provided(ctx, call);
            batch->not_provided += !is_here && !rank;
            if (is_here && !rank)
                first[i] = batch->count;
            for (int t = 0; is_here && t < target_count; t++)
                batch->tasks[batch->count++] =
                    (struct task){ .call = call,
                                   .target = targets[t],
                                   .rank = rank,
                                   .choice = rank ? &batch->tasks[first[i] + t] : NULL };
        }
    }
    free(first);
    return 0;
}

void batch_fini(struct batch *batch)
{
    for (int i = 0; i < batch->count; i++) {
        free(batch->tasks[i].why);
        free(batch->tasks[i].log);
    }
    free(batch->tasks);
    *batch = (struct batch){ .tasks = NULL };
}

int batch_count(const struct batch *batch, int state)
{
    int count = 0;
    for (int i = 0; i < batch->count; i++)
        count += (int)batch->tasks[i].state == state;
    return count;
}

/* Whether the config was tuned; *result is the status. */
static int task_run(const struct batch *batch, struct quern_context *ctx, struct task *task,
                    int *result)
{
    const struct quern_origin origin = { batch->model, batch->rank, task->call->where };
    struct quern_request request = QUERN_REQUEST_INIT;
    struct quern_report report;
    struct quern_spec spec;
    int status = parse_call(ctx, task->call, &spec);
    request.spec = &spec;
    request.target = task->target;
    request.rank = task->rank;
    request.origin = batch->model ? &origin : NULL;
    if (!status && batch->known && !task->rank) /* the choice of another has adopted */
        status = quern_cache_adopt(ctx, batch->known, &request);
    if (!status)
        status = quern_build(ctx, &request, &report);
    if (!status)
        task->state = report.artifact == QUERN_FROM_COMPILER ? TASK_COMPILED : TASK_PRESENT;
    else if (status == QUERN_MISS && task->rank)
        task->state = TASK_NONE;
    else if (status == QUERN_STORE || was_interrupted) /* the signal reached its compiler, too */
        task->state = TASK_WAITING;
    else
        task->state = status == QUERN_SEALED ? TASK_MISSING : TASK_FAILED;
    if (task->state == TASK_MISSING || task->state == TASK_FAILED)
        task->why = strdup(quern_errmsg(ctx));
    *result = status;
    return !status && report.config_from == QUERN_CONFIG_TUNED;
}

/* ---- The threads ----------------------------------------------------------------------------- */

/* Whether the line is the store's "cache=FILE: cannot be written (REASON); ...", which is said with
 * what comes of it. */
static int take_reason(struct crew *crew, const char *line)
{
    static const char said[] = ": cannot be written (";
    const char *begin = strncmp(line, "cache=", 6) ? NULL : strstr(line, said);
    const char *end = begin ? strstr(begin, "); ") : NULL;
    if (!end)
        return 0;
    begin += sizeof(said) - 1;
    pthread_mutex_lock(&crew->lock);
    snprintf(crew->reason, sizeof(crew->reason), "%.*s", (int)(end - begin), begin);
    pthread_mutex_unlock(&crew->lock);
    return 1;
}

static void log_line(void *user, int level, const char *line)
{
    struct crew *crew = user;
    size_t length = strlen(line);
    while (length && line[length - 1] == '\n')
        length--;
    if (current && level == QUERN_LOG_WARN && !strncmp(line, "compiler log:\n", 14)) {
        free(current->log);
        current->log = strndup(line + 14, length - 14);
        return;
    }
    if (take_reason(crew, line))
        return;
    progress_clear(&crew->bar);
    if (!args_has(crew->batch->args, OPTION_quiet))
        fprintf(stderr, "quern: %.*s\n", (int)length, line);
}

static int terminal_columns(void)
{
    struct winsize size;
    return ioctl(STDERR_FILENO, TIOCGWINSZ, &size) || size.ws_col < 20 ? 80 : size.ws_col;
}

/* Under the lock. */
static void show(struct crew *crew)
{
    char text[128];
    int count = crew->batch->count;
    double seconds = now_s() - crew->started_s, rate = crew->done / (seconds + 1e-9);
    if (!crew->bar.is_shown || (crew->done < count && seconds - crew->bar.drawn_s < 0.1))
        return;
    crew->bar.drawn_s = seconds;
    snprintf(text, sizeof(text), "%d/%d, %d failed, %.1f/s, %.0f s left", crew->done, count,
             crew->failed, rate, (count - crew->done) / rate);
    fprintf(stderr, "\r\033[K%.*s", terminal_columns() - 1, text);
    fflush(stderr);
}

static void *crew_main(void *user)
{
    struct crew *crew = user;
    struct batch *batch = crew->batch;
    for (;;) {
        pthread_mutex_lock(&crew->lock);
        int is_over = was_interrupted || crew->is_full || crew->next >= batch->count;
        current = is_over ? NULL : &batch->tasks[crew->next++];
        const struct task *choice = current ? current->choice : NULL;
        while (choice && !choice->is_done)
            pthread_cond_wait(&crew->has_done, &crew->lock);
        int is_wanted = !choice || !choice->is_tuned;
        pthread_mutex_unlock(&crew->lock);
        if (!current)
            return NULL;
        int status = QUERN_OK;
        int is_tuned = is_wanted && task_run(batch, crew->ctx, current, &status);
        pthread_mutex_lock(&crew->lock);
        crew->is_full |= status == QUERN_STORE;
        current->is_tuned = is_tuned;
        current->is_done = 1;
        pthread_cond_broadcast(&crew->has_done);
        current->state = is_wanted ? current->state : TASK_NONE;
        crew->done++;
        crew->failed += current->state == TASK_FAILED || current->state == TASK_MISSING;
        show(crew);
        pthread_mutex_unlock(&crew->lock);
    }
}

static void crew_work(struct crew *crew, int jobs)
{
    pthread_t threads[MAX_THREADS];
    struct sigaction before[2];
    int made = 0;
    crew->started_s = now_s();
    catch_signals(before);
    while (made < jobs && made < MAX_THREADS && made < crew->batch->count &&
           !pthread_create(&threads[made], NULL, crew_main, crew))
        made++;
    if (!made)
        crew_main(crew);
    while (made)
        pthread_join(threads[--made], NULL);
    crew->batch->is_interrupted = was_interrupted;
    restore_signals(before);
    progress_clear(&crew->bar);
    crew->batch->seconds = now_s() - crew->started_s;
}

/* The file as the command line calls it, which a context knows as its cache or base. */
static int fail_bundle(struct session *session, const struct crew *crew, int status)
{
    const char *text = quern_errmsg(session->ctx), *path = strchr(text, '=');
    const char *reason = crew->reason;
    if (strncmp(text, "cache=", 6) && strncmp(text, "base=", 5))
        return session_fail(session, status);
    return complain(EXIT_FAILED, "%s%s%s%s%s",
                    args_has(session->args, OPTION_check) ? "bundle" : "output", path,
                    *reason ? " (" : "", reason, *reason ? ")" : "");
}

static int fail_full(const struct crew *crew, const char *path)
{
    const char *reason = crew->reason;
    return complain(EXIT_FAILED,
                    "output=%s: cannot be written to its end%s%s%s: %d not begun; what is stored "
                    "stays, and the same command goes on from there",
                    path, *reason ? " (" : "", reason, *reason ? ")" : "",
                    batch_count(crew->batch, TASK_WAITING));
}

int batch_run(struct batch *batch, const char *cache, int jobs)
{
    struct session session = { .args = batch->args };
    struct quern_options options;
    struct crew crew = { .batch = batch,
                         .lock = PTHREAD_MUTEX_INITIALIZER,
                         .has_done = PTHREAD_COND_INITIALIZER };
    progress_init(&crew.bar, args_has(batch->args, OPTION_quiet), 0);
    session_options(&session, &options);
    int is_check = args_has(batch->args, OPTION_check);
    options.cache = is_check ? "" : cache; /* a check writes nothing, not even what it counts */
    options.base = is_check ? cache : "";  /* what a base has must be in the bundle, too */
    if (args_has(batch->args, OPTION_memory))
        options.makers = -1; /* then a job is one compilation, whatever a kernel consists of */
    if (is_check)
        options.mode = "sealed";
    options.log = log_line;
    options.user = &crew;
    int status = quern_context_create(&options, &session.ctx);
    if (!status)
        status = session_load_plugins(&session);
    if (!status && !is_check) /* to learn before an hour of compiling that nothing is kept */
        status = quern_cache_sync(session.ctx);
    int code = status ? fail_bundle(&session, &crew, status) : EXIT_DONE;
    crew.ctx = session.ctx;
    if (!code)
        crew_work(&crew, jobs);
    if (crew.is_full)
        batch->is_cut = fail_full(&crew, cache);
    else if (!code && !is_check && (status = quern_cache_sync(session.ctx)))
        batch->is_cut = fail_bundle(&session, &crew, status);
    session_close(&session);
    return code;
}
