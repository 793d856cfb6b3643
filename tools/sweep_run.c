/* The work of a sweep.
 *
 *     row 0  1  2  3  4  5  ...          one thread and one context a device; each takes the next
 *         |  |     |                     row that is left, tunes it, takes another
 *      cuda:0 cuda:1 ...
 *
 * The tuner commits every trial and every winner as it comes, and holds the lease of the bucket's
 * key in the store while it works. That lease is the claim on a row: a row that another process on
 * the same store is tuning is put off, and when nothing else is left it is waited for and then
 * found tuned. So any number of sweeps may go through one list, and one that was killed goes on
 * where it was, a dead holder's lease being free.
 *
 * A budget is divided over the rows that are left, each time one is taken: what a row did not use
 * is the others'. Rows are shared by devices of one kind: another kind's are its own.
 *
 * SIGINT and SIGTERM end the searches that are under way as a budget does, and no row is begun
 * after them; the second of them ends the process.
 *
 * A device that fails is done with: its context is lost, and it would fail every row there is. The
 * row fails, the others are left to devices of its kind.
 */
#include "sweep_run.h"

#include "progress.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define DAY_S 86400
#define BENCH_CORES 2 /* a GPU, kept from compilers: launches wait for nobody */

struct work {
    const struct args *args;
    struct sweep_list *list;
    struct sweep_run *run;
    struct quern_tune_options options;
    pthread_mutex_t lock;
    double started_s;
    struct progress line; /* on the terminal, or not */
};

struct worker {
    struct work *work;
    struct session session;
    struct args args; /* the command line with this device in it */
    int kind;
    int is_patient; /* waits for a row that another process tunes */
    int is_lost;    /* the device failed */
    int is_cut;     /* the search last told of had more candidates */
    pthread_t thread;
    int is_started;
};

static volatile sig_atomic_t was_interrupted;

static double now_s(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

/* ---- Signals ------------------------------------------------------------------------------- */

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

/* ---- Options ------------------------------------------------------------------------------- */

static int read_retune(const struct args *args, struct quern_tune_options *options)
{
    const char *which = args->text[OPTION_retune], *days = "older-than=";
    char *end;
    if (!which)
        return EXIT_DONE;
    if (!strcmp(which, "all")) {
        options->retune_before = (int64_t)time(NULL) + 1;
        return EXIT_DONE;
    }
    if (!strcmp(which, "driver-changed")) {
        options->retune_toolkit = 1;
        return EXIT_DONE;
    }
    double age = strncmp(which, days, strlen(days)) ? -1 : strtod(which + strlen(days), &end);
    if (!(age > 0 && age < 1e5) || *end)
        return complain(EXIT_USAGE, "retune=%s: must be older-than=DAYS, driver-changed or all",
                        which);
    options->retune_before = (int64_t)time(NULL) - (int64_t)(age * DAY_S);
    return EXIT_DONE;
}

/* ---- Devices ------------------------------------------------------------------------------- */

/* "cuda:3" with a line about it; of one that cannot be used the line begins with its name. */
static void take_fact(void *user, const char *section, const char *name, const char *value)
{
    struct sweep_run *run = user;
    if (strcmp(section, "cuda") || strncmp(name, "cuda:", 5) || !strncmp(value, "device=", 7) ||
        run->device_count == SWEEP_MOST_DEVICES)
        return;
    snprintf(run->devices[run->device_count++].name, sizeof(run->devices[0].name), "%s", name);
}

/* The one that --device names, else every GPU, else the CPU. */
static void find_devices(struct session *session, struct sweep_run *run)
{
    const char *named = session->args->text[OPTION_device];
    run->device_count = 0;
    if (!named)
        quern_doctor(session->ctx, take_fact, run);
    if (!run->device_count) {
        run->device_count = 1;
        snprintf(run->devices[0].name, sizeof(run->devices[0].name), "%s", named ? named : "cpu");
    }
}

static int open_worker(struct worker *worker, struct sweep_device *device)
{
    worker->args = *worker->work->args;
    worker->args.text[OPTION_device] = device->name;
    int code = session_open(&worker->session, &worker->args);
    worker->session.progress = &worker->work->line;
    int status = code ? 0 : quern_profile_of(worker->session.ctx, &device->profile);
    return code ? code : status ? session_fail(&worker->session, status) : EXIT_DONE;
}

/* Number the kinds, and give each but the first rows of its own. */
static int number_kinds(struct work *work, struct worker *workers)
{
    struct sweep_run *run = work->run;
    int kinds = 0, code = EXIT_DONE;
    for (int i = 0; i < run->device_count && !code; i++) {
        int like = 0;
        while (strcmp(run->devices[like].profile.name, run->devices[i].profile.name))
            like++;
        if (like == i && kinds)
            code = sweep_list_repeat(work->list, kinds);
        run->devices[i].kind = like == i ? kinds++ : run->devices[like].kind;
        workers[i].kind = run->devices[i].kind;
    }
    return code;
}

/* ---- One row ------------------------------------------------------------------------------- */

static int count_state(const struct sweep_list *list, int state)
{
    int count = 0;
    for (int i = 0; i < list->count; i++)
        count += (int)list->rows[i].state == state;
    return count;
}

static int count_open(const struct sweep_list *list)
{
    return count_state(list, SWEEP_LEFT) + count_state(list, SWEEP_ELSEWHERE);
}

/* With the lock held. */
static void show(const struct work *work)
{
    double seconds = now_s() - work->started_s, left_s;
    int left = count_open(work->list) + count_state(work->list, SWEEP_CLAIMED);
    int tuned = count_state(work->list, SWEEP_TUNED),
        failed = count_state(work->list, SWEEP_FAILED);
    if (!work->line.is_shown)
        return;
    left_s = tuned + failed ? seconds / (tuned + failed) * left : 0;
    if (work->args->budget_s > 0 && left_s > work->args->budget_s - seconds)
        left_s = work->args->budget_s - seconds;
    fprintf(stderr, "\r%d of %d, %d tuned, %d failed, %.0f s, ", work->list->count - left,
            work->list->count, tuned, failed, seconds);
    fprintf(stderr, tuned + failed ? "%.0f s left \033[K" : "? s left \033[K", left_s);
}

/* A share of `rest_s` for one of the rows that are left to this kind of devices. */
static double share_of(const struct worker *worker, double rest_s)
{
    const struct work *work = worker->work;
    int rows = 0, devices = 0;
    for (int i = 0; i < work->list->count; i++) {
        const struct sweep_row *row = &work->list->rows[i];
        rows += row->profile == worker->kind &&
                (row->state == SWEEP_LEFT || row->state == SWEEP_ELSEWHERE);
    }
    for (int i = 0; i < work->run->device_count; i++)
        devices += work->run->devices[i].kind == worker->kind;
    return rows > devices ? rest_s * devices / rows : rest_s;
}

static struct sweep_row *next_in_state(struct worker *worker, int state)
{
    struct sweep_list *list = worker->work->list;
    for (int i = 0; i < list->count; i++)
        if ((int)list->rows[i].state == state && list->rows[i].profile == worker->kind)
            return &list->rows[i];
    return NULL;
}

/* The next row, and what may be spent on it: 0, without a budget, as long as it takes. NULL: there
 * is none, or the budget is spent. */
static struct sweep_row *claim(struct worker *worker, double *budget_s)
{
    struct work *work = worker->work;
    double rest_s = work->args->budget_s - (now_s() - work->started_s);
    int is_limited = work->args->budget_s > 0;
    struct sweep_row *row = NULL;
    *budget_s = 0;
    pthread_mutex_lock(&work->lock);
    if (!was_interrupted && (!is_limited || rest_s > 0)) {
        row = next_in_state(worker, SWEEP_LEFT);
        worker->is_patient = !row;
        if (!row)
            row = next_in_state(worker, SWEEP_ELSEWHERE);
    }
    if (row && is_limited)
        *budget_s = share_of(worker, rest_s);
    if (row)
        row->state = SWEEP_CLAIMED;
    pthread_mutex_unlock(&work->lock);
    return row;
}

/* No variant: another process has the row. */
static int on_progress(void *user, const struct quern_tune_progress *progress)
{
    struct worker *worker = user;
    struct work *work = worker->work;
    if (!*progress->variant && !worker->is_patient)
        return 1;
    worker->is_cut = *progress->variant && progress->done < progress->total;
    pthread_mutex_lock(&work->lock);
    show(work);
    pthread_mutex_unlock(&work->lock);
    return was_interrupted ||
           (work->args->budget_s > 0 && now_s() - work->started_s > work->args->budget_s);
}

static int tune_row(struct worker *worker, struct sweep_row *row, double budget_s)
{
    struct quern_context *ctx = worker->session.ctx;
    struct quern_tune_options options = worker->work->options;
    struct quern_request request;
    struct quern_spec spec;
    int status = quern_spec_parse(ctx, row->spec, &spec);
    options.budget_s = budget_s;
    options.progress = on_progress;
    options.user = worker;
    session_request(&worker->session, &spec, &request);
    worker->is_cut = 0;
    if (!status)
        status = quern_tune(ctx, &request, &options, &row->result);
    return status;
}

static void settle(struct worker *worker, struct sweep_row *row, int status)
{
    struct work *work = worker->work;
    pthread_mutex_lock(&work->lock);
    if (!status)
        row->state = row->result.is_reused ? SWEEP_SKIPPED : SWEEP_TUNED;
    else if (status == QUERN_MISS && !worker->is_patient)
        row->state = SWEEP_ELSEWHERE;
    else if (status == QUERN_MISS && (work->args->budget_s > 0 || was_interrupted))
        row->state = SWEEP_LEFT; /* the budget ended while it was waited for */
    else
        row->state = status == QUERN_UNSUPPORTED ? SWEEP_NOT_PROVIDED : SWEEP_FAILED;
    if (row->state == SWEEP_NOT_PROVIDED || row->state == SWEEP_FAILED)
        row->why = strdup(quern_errmsg(worker->session.ctx));
    row->is_cut = !status && worker->is_cut;
    worker->is_lost = status == QUERN_DEVICE;
    show(work);
    pthread_mutex_unlock(&work->lock);
}

static void *worker_main(void *user)
{
    struct worker *worker = user;
    struct sweep_row *row;
    double budget_s;
    while (!worker->is_lost && (row = claim(worker, &budget_s)) != NULL)
        settle(worker, row, tune_row(worker, row, budget_s));
    return NULL;
}

/* ---- All of them --------------------------------------------------------------------------- */

/* Compilers of one of `count` devices; of one alone the tuner knows. */
static int jobs_of_each(int count)
{
    cpu_set_t set;
    int cores = sched_getaffinity(0, sizeof(set), &set) ? 1 : CPU_COUNT(&set);
    int jobs = cores / count - BENCH_CORES;
    return jobs > 1 ? jobs : 1;
}

static void run_workers(struct work *work, struct worker *workers)
{
    struct sigaction before[2];
    int count = work->run->device_count;
    catch_signals(before);
    if (count > 1)
        work->options.jobs = jobs_of_each(count);
    for (int i = 1; i < count; i++)
        workers[i].is_started = !pthread_create(&workers[i].thread, NULL, worker_main, &workers[i]);
    worker_main(&workers[0]);
    for (int i = 1; i < count; i++)
        if (workers[i].is_started)
            pthread_join(workers[i].thread, NULL);
    work->run->is_interrupted = was_interrupted;
    restore_signals(before);
    progress_clear(&work->line);
}

int sweep_run(struct session *session, struct sweep_list *list, struct sweep_run *run)
{
    find_devices(session, run);
    return sweep_run_on(session->args, list, run);
}

int sweep_run_on(const struct args *args, struct sweep_list *list, struct sweep_run *run)
{
    struct work work = { .args = args,
                         .list = list,
                         .run = run,
                         .options = QUERN_TUNE_OPTIONS_INIT,
                         .started_s = now_s() };
    int code = read_retune(args, &work.options);
    work.options.max_configs = (int)args->max_configs;
    work.options.seed = (uint64_t)args->seed;
    progress_init(&work.line, args_has(args, OPTION_quiet), args->budget_s);
    struct worker *workers = calloc((size_t)run->device_count, sizeof(*workers));
    if (!workers)
        return complain(EXIT_FAILED, "memory ran out");
    pthread_mutex_init(&work.lock, NULL);
    for (int i = 0; i < run->device_count && !code; i++) {
        workers[i].work = &work;
        code = open_worker(&workers[i], &run->devices[i]);
    }
    if (!code)
        code = number_kinds(&work, workers);
    if (!code)
        run_workers(&work, workers);
    for (int i = 0; i < run->device_count; i++)
        session_close(&workers[i].session);
    pthread_mutex_destroy(&work.lock);
    free(workers);
    run->seconds = now_s() - work.started_s;
    return code;
}
