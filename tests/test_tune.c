/* The tuner, on a family of the suite's own whose knob picks a right, wrong, racing, straying, slow
 * or broken kernel: each bad one must be rejected for its own reason, the fastest right one must
 * win, and whatever ran, the caller's memory must come back bit for bit. */
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common.h"
#include "jit/build.h"
#include "jit/context.h"
#include "mill.h"

/* ---- A tuning and what it said ------------------------------------------------------------- */

struct trials {
    int count, stop_after; /* 0: never */
    char config[80][64], outcome[80][256];
};

static int record(void *user, const struct quern_tune_progress *progress)
{
    struct trials *trials = user;
    ck_assert_int_eq(progress->done, trials->count + 1);
    snprintf(trials->config[trials->count], sizeof(trials->config[0]), "%s", progress->config);
    snprintf(trials->outcome[trials->count], sizeof(trials->outcome[0]), "%s", progress->outcome);
    return ++trials->count == trials->stop_after;
}

static const char *outcome_of(const struct trials *trials, int kind)
{
    char config[64];
    snprintf(config, sizeof(config), "kind=%d,work=0", kind);
    for (int i = 0; i < trials->count; i++) {
        if (!strcmp(trials->config[i], config))
            return trials->outcome[i];
    }
    return "(not tried)";
}

struct tuning {
    struct quern_context *ctx;
    struct quern_spec spec;
    struct quern_request request;
    struct quern_tune_options options;
    struct quern_tune_result result;
    struct trials trials;
};

/* On one thread unless the options say otherwise: on a busy machine, waiting for a second one
 * drowns what the candidates differ by. */
static void tuning_open(struct tuning *tuning, const struct quern_options *options,
                        const char *text)
{
    struct quern_options mine = QUERN_OPTIONS_INIT;
    if (options)
        mine = *options;
    if (!mine.threads)
        mine.threads = 1;
    memset(tuning, 0, sizeof(*tuning));
    memset(&mill_probe, 0, sizeof(mill_probe));
    tuning->ctx = common_context(&mine);
    assert_ok(tuning->ctx, quern_family_register(tuning->ctx, &mill_family));
    tuning->spec = common_spec(tuning->ctx, text);
    tuning->request = (struct quern_request)QUERN_REQUEST_INIT;
    tuning->request.spec = &tuning->spec;
    tuning->options = (struct quern_tune_options)QUERN_TUNE_OPTIONS_INIT;
    tuning->options.memory_bytes = 4 << 20; /* no rotation through hundreds of copies */
    tuning->options.seed = common_seed();
    tuning->options.progress = record;
    tuning->options.user = &tuning->trials;
}

static int tune(struct tuning *tuning)
{
    tuning->trials.count = 0;
    return quern_tune(tuning->ctx, &tuning->request, &tuning->options, &tuning->result);
}

/* Of the spec's tuned rows; malloc'ed. */
static void tuning_key(const struct tuning *tuning, char **text, char **group)
{
    struct qn_bucket bucket;
    qn_bucket_make(&tuning->spec, NULL, &bucket);
    ck_assert(!qn_tuned_key(&bucket, &tuning->ctx->profile, text, group));
}

static void tuning_close(struct tuning *tuning)
{
    quern_context_destroy(tuning->ctx);
}

static struct quern_options file_options(const char *path)
{
    struct quern_options options = QUERN_OPTIONS_INIT;
    options.cache = path;
    return options;
}

/* What the log said, at info level and above. */
struct said {
    char text[8000];
    size_t bytes;
};

static void keep_line(void *user, int level, const char *line)
{
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* builder threads speak, too */
    struct said *said = user;
    (void)level;
    pthread_mutex_lock(&lock);
    said->bytes +=
        (size_t)snprintf(said->text + said->bytes, sizeof(said->text) - said->bytes, "%s\n", line);
    pthread_mutex_unlock(&lock);
    ck_assert_uint_lt(said->bytes, sizeof(said->text));
}

static struct quern_options logged_options(struct said *said)
{
    struct quern_options options = QUERN_OPTIONS_INIT;
    memset(said, 0, sizeof(*said));
    options.log = keep_line;
    options.log_level = QUERN_LOG_INFO;
    options.user = said;
    return options;
}

/* The config that a call of the spec runs with, and where it comes from. */
static void assert_serves(struct tuning *tuning, int config_from, const char *config)
{
    struct quern_kernel *kernel;
    struct quern_report report;
    assert_ok(tuning->ctx, quern_dispatch(tuning->ctx, &tuning->spec, NULL, &kernel));
    quern_kernel_report(kernel, &report);
    ck_assert_int_eq(report.config_from, config_from);
    ck_assert_str_eq(report.config, config);
}

/* ---- Winners ------------------------------------------------------------------------------- */

START_TEST(the_fastest_right_config_wins_and_serves_the_next_call)
{
    struct tuning tuning;
    struct quern_kernel *before, *after;
    struct quern_report report;
    tuning_open(&tuning, NULL, "mill m=16");
    assert_ok(tuning.ctx, quern_dispatch(tuning.ctx, &tuning.spec, NULL, &before));
    quern_kernel_report(before, &report);
    ck_assert_int_eq(report.config_from, QUERN_CONFIG_HEURISTIC);

    assert_ok(tuning.ctx, tune(&tuning));
    ck_assert_str_eq(tuning.result.best.config, "kind=0,work=0");
    ck_assert_str_eq(tuning.result.heuristic.config, "kind=0,work=20000");
    ck_assert_double_gt(tuning.result.speedup, 2);
    ck_assert_int_eq(tuning.result.candidates, 6);
    ck_assert_int_gt(tuning.result.scratch_bytes, 0);
    ck_assert_str_eq(tuning.trials.config[0], "kind=0,work=20000"); /* the default comes first */

    assert_ok(tuning.ctx, quern_dispatch(tuning.ctx, &tuning.spec, NULL, &after));
    quern_kernel_report(after, &report);
    ck_assert_int_eq(report.config_from, QUERN_CONFIG_TUNED);
    ck_assert_str_eq(report.config, "kind=0,work=0");
    tuning_close(&tuning);
}
END_TEST

static int visit_samples(void *user, const struct qn_trial *trial)
{
    if (!strcmp(trial->config, "kind=0,work=120000"))
        *(int64_t *)user = trial->samples;
    return 0;
}

START_TEST(slow_candidates_drop_out_early)
{
    struct tuning tuning;
    char *text, *group;
    int64_t samples = 0;
    tuning_open(&tuning, NULL, "mill m=16");
    assert_ok(tuning.ctx, tune(&tuning));
    tuning_key(&tuning, &text, &group);
    qn_trial_each(tuning.ctx->store, text, 1, visit_samples, &samples);
    ck_assert_int_eq(samples, 3); /* more than twice the best: no more than three */
    ck_assert_str_eq(tuning.trials.config[5], "kind=0,work=60000000");
    ck_assert_msg(strstr(tuning.trials.outcome[5], "slow: its first run took"), "%s",
                  tuning.trials.outcome[5]);
    ck_assert_int_eq(tuning.result.failed, 1);
    free(text);
    free(group);
    tuning_close(&tuning);
}
END_TEST

START_TEST(a_stored_winner_is_reused_and_force_makes_a_new_generation)
{
    struct tuning tuning;
    struct qn_tuned row;
    char *text, *group;
    tuning_open(&tuning, NULL, "mill m=16");
    assert_ok(tuning.ctx, tune(&tuning));
    double time_us = tuning.result.best.time_us;
    assert_ok(tuning.ctx, tune(&tuning));
    ck_assert_int_eq(tuning.result.is_reused, 1);
    ck_assert_int_eq(tuning.trials.count, 0);
    ck_assert_double_eq(tuning.result.best.time_us, time_us);
    ck_assert_double_gt(tuning.result.speedup, 1);
    tuning.options.force = 1;
    assert_ok(tuning.ctx, tune(&tuning));
    ck_assert_int_eq(tuning.result.is_reused, 0);

    tuning_key(&tuning, &text, &group);
    ck_assert_int_eq(qn_tuned_find(tuning.ctx->store, text, &row), QN_STORE_OK);
    ck_assert_int_eq(row.generation, 2);
    ck_assert_str_eq(row.config, "kind=0,work=0");

    /* On other templates it serves until somebody tunes. */
    char digest[] = "00000000000000000000000000000000";
    free(row.digest);
    row.digest = digest;
    row.generation = 3;
    ck_assert_int_eq(qn_tuned_put(tuning.ctx->store, &row, NULL), QN_STORE_OK);
    row.digest = NULL;
    qn_tuned_fini(&row);
    tuning.options.force = 0;
    assert_ok(tuning.ctx, tune(&tuning));
    ck_assert_int_eq(tuning.result.is_reused, 0);
    ck_assert_int_eq(qn_tuned_find(tuning.ctx->store, text, &row), QN_STORE_OK);
    ck_assert_int_eq(row.generation, 4);
    qn_tuned_fini(&row);
    free(text);
    free(group);
    tuning_close(&tuning);
}
END_TEST

START_TEST(two_tunings_give_one_winner_and_neighbours_seed_the_search)
{
    struct tuning first, second;
    tuning_open(&first, NULL, "mill m=16");
    tuning_open(&second, NULL, "mill m=16");
    assert_ok(first.ctx, tune(&first));
    assert_ok(second.ctx, tune(&second));
    ck_assert_str_eq(first.result.best.config, second.result.best.config);

    second.spec = common_spec(second.ctx, "mill m=64");
    assert_ok(second.ctx, tune(&second));
    ck_assert_str_eq(second.trials.config[1], "kind=0,work=0"); /* m=16's winner */
    tuning_close(&first);
    tuning_close(&second);
}
END_TEST

static void *tune_main(void *data)
{
    struct tuning *tuning = data;
    int status = quern_tune(tuning->ctx, &tuning->request, &tuning->options, &tuning->result);
    return (void *)(intptr_t)status;
}

START_TEST(of_two_that_tune_at_once_one_works_and_both_have_its_winner)
{
    char *path = common_scratch_path("race/quern.db");
    struct quern_options options = file_options(path);
    struct tuning tunings[2];
    pthread_t threads[2];
    for (int i = 0; i < 2; i++) {
        tuning_open(&tunings[i], &options, "mill m=32");
        tunings[i].options.progress = NULL;
    }
    for (int i = 0; i < 2; i++)
        ck_assert(!pthread_create(&threads[i], NULL, tune_main, &tunings[i]));
    for (int i = 0; i < 2; i++) {
        void *status;
        pthread_join(threads[i], &status);
        ck_assert_ptr_null(status);
    }
    ck_assert_int_eq(tunings[0].result.is_reused + tunings[1].result.is_reused, 1);
    ck_assert_str_eq(tunings[0].result.best.config, tunings[1].result.best.config);
    ck_assert_double_eq(tunings[0].result.best.time_us, tunings[1].result.best.time_us);
    for (int i = 0; i < 2; i++)
        tuning_close(&tunings[i]);
    free(path);
}
END_TEST

/* A winner of other templates, that a tuning replaces. */
static void put_stale_winner(const struct tuning *tuning, const char *config)
{
    char *text, *group;
    tuning_key(tuning, &text, &group);
    const struct qn_tuned row = {
        .text = text,
        .group = group,
        .family = (char *)"mill",
        .variant = (char *)"mill_cpu",
        .config = (char *)config,
        .generation = 1,
        .time_us = 100,
        .samples = 3,
        .digest = (char *)"00000000000000000000000000000000",
        .toolkit = (char *)"",
        .profile = tuning->ctx->profile.name,
        .provenance = (char *)"",
    };
    ck_assert_int_eq(qn_tuned_put(tuning->ctx->store, &row, NULL), QN_STORE_OK);
    free(text);
    free(group);
}

START_TEST(a_winner_that_the_cache_cannot_take_serves_its_context)
{
    char *path = common_scratch_path("readonly/quern.db");
    struct quern_options options = file_options(path);
    struct tuning tuning;
    tuning_open(&tuning, &options, "mill m=16");
    put_stale_winner(&tuning, "kind=0,work=40000");
    tuning_close(&tuning);
    ck_assert_int_eq(chmod(path, 0400), 0);

    tuning_open(&tuning, &options, "mill m=16");
    assert_serves(&tuning, QUERN_CONFIG_TUNED, "kind=0,work=40000");
    assert_ok(tuning.ctx, tune(&tuning));
    ck_assert_str_eq(tuning.result.best.config, "kind=0,work=0");
    assert_serves(&tuning, QUERN_CONFIG_TUNED, "kind=0,work=0");
    assert_ok(tuning.ctx, tune(&tuning));
    ck_assert_int_eq(tuning.result.is_reused, 1);
    ck_assert_str_eq(tuning.result.best.config, "kind=0,work=0");

    tuning.spec = common_spec(tuning.ctx, "mill m=32");
    assert_serves(&tuning, QUERN_CONFIG_NEIGHBOUR, "kind=0,work=0");
    tuning_close(&tuning);
    tuning_open(&tuning, &options, "mill m=16"); /* it was the context's alone */
    assert_serves(&tuning, QUERN_CONFIG_TUNED, "kind=0,work=40000");
    tuning_close(&tuning);
    free(path);
}
END_TEST

/* ---- Waiting ------------------------------------------------------------------------------- */

struct watch {
    struct qn_lease *lease; /* another's */
    int waited, stop_after, release_after;
};

static int watch_waiting(void *user, const struct quern_tune_progress *progress)
{
    struct watch *watch = user;
    if (strcmp(progress->outcome, "waiting for another process"))
        return 0;
    ck_assert_int_eq(progress->done, 0);
    ck_assert_ptr_nonnull(progress->variant);
    ck_assert_ptr_nonnull(progress->config);
    watch->waited++;
    if (watch->waited == watch->release_after)
        qn_lease_release(watch->lease);
    return watch->waited == watch->stop_after;
}

START_TEST(waiting_for_another_process_is_told_and_can_be_stopped)
{
    struct said said;
    struct quern_options options = logged_options(&said);
    struct watch watch = { .stop_after = 2 };
    struct tuning tuning;
    struct qn_tuned row;
    char *text, *group, name[64] = "tune ";
    tuning_open(&tuning, &options, "mill m=16");
    tuning_key(&tuning, &text, &group);
    qn_key_hex(text, strlen(text), name + strlen(name));
    ck_assert_int_eq(qn_lease_acquire(tuning.ctx->store, name, 10, 60, &watch.lease), QN_STORE_OK);
    tuning.options.progress = watch_waiting;
    tuning.options.user = &watch;
    assert_refused(tuning.ctx, tune(&tuning), QUERN_MISS, "stopped while another process tunes it");
    ck_assert_int_eq(watch.waited, 2);
    ck_assert_int_eq(qn_tuned_find(tuning.ctx->store, text, &row), QN_STORE_MISS);
    ck_assert_msg(strstr(said.text, "another process does; waiting for it"), "%s", said.text);

    watch = (struct watch){ .lease = watch.lease, .release_after = 2 };
    tuning.options.budget_s = 30;
    assert_ok(tuning.ctx, tune(&tuning));
    ck_assert_int_eq(watch.waited, 2);
    ck_assert_str_eq(tuning.result.best.config, "kind=0,work=0");
    ck_assert_double_gt(tuning.result.seconds, 2);
    free(text);
    free(group);
    tuning_close(&tuning);
}
END_TEST

/* ---- Bad candidates ------------------------------------------------------------------------ */

START_TEST(every_bad_kernel_is_rejected_for_its_own_reason)
{
    static const struct {
        int kind;
        const char *reason;
    } cases[] = {
        { MILL_WRONG, "out: row 15, element 63: wanted" },
        { MILL_RACING, "they depend on each other" },
        { MILL_PAST_END, "out: written out of bounds, 1 byte after it" },
        { MILL_BEFORE_BEGIN, "before it" },
        { MILL_WRITES_INPUT, "x: byte 25" }, /* the last float of row 0: bytes 252 to 255 */
        { MILL_UNWRITTEN, "(unwritten)" },
        { MILL_BROKEN, "this kind does not compile" },
        { MILL_READS_SCRATCH, "out: " },
        { MILL_PAST_SCRATCH, "workspace: written out of bounds, 1 byte after it" },
    };
    struct quern_options options = QUERN_OPTIONS_INIT;
    struct tuning tuning;
    options.threads = 2;
    tuning_open(&tuning, &options, "mill m=16 menu=1");
    assert_ok(tuning.ctx, tune(&tuning));
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        const char *outcome = outcome_of(&tuning.trials, cases[i].kind);
        ck_assert_msg(strstr(outcome, cases[i].reason), "kind %d: \"%s\", without \"%s\"",
                      cases[i].kind, outcome, cases[i].reason);
        ck_assert(!strchr(outcome, '\n'));
    }
    ck_assert_int_eq(tuning.result.failed, 9);
    ck_assert_str_eq(tuning.result.best.config, "kind=0,work=20000");
    tuning_close(&tuning);
}
END_TEST

/* ---- The caller's memory ------------------------------------------------------------------- */

/* Arrays of the request, strided by `padding`, of random bytes that make ordinary floats. */
struct memory {
    struct quern_array arrays[MILL_ARRAYS];
    float *data[MILL_ARRAYS], *copy[MILL_ARRAYS];
    size_t bytes[MILL_ARRAYS];
};

static void memory_init(struct memory *memory, struct tuning *tuning, int64_t padding)
{
    uint64_t seed = common_seed();
    memset(memory, 0, sizeof(*memory));
    for (int i = 0; i < MILL_ARRAYS; i++) {
        struct quern_shape own;
        mill_shape(&tuning->spec, i, &own);
        if (own.role == QUERN_ABSENT)
            continue;
        int64_t stride = i == MILL_SLOT ? 1 : own.dims[1] + padding;
        memory->bytes[i] = (size_t)(own.dims[0] * stride) * 4;
        memory->data[i] = malloc(memory->bytes[i]);
        memory->copy[i] = malloc(memory->bytes[i]);
        memory->arrays[i].data = memory->data[i];
        if (i == MILL_SLOT) {
            mill_inputs(&tuning->spec, i, 3, memory->data[i]);
        } else {
            memory->arrays[i].rank = 2;
            memory->arrays[i].strides[0] = stride;
            memory->arrays[i].strides[1] = 1;
            for (size_t e = 0; e < memory->bytes[i] / 4; e++)
                memory->data[i][e] = (float)common_between(&seed, 1, 1000) / 16;
        }
        memcpy(memory->copy[i], memory->data[i], memory->bytes[i]);
    }
    tuning->request.arrays = memory->arrays;
    mill_probe.initial = memory->data[MILL_OUT] ? memory->data[MILL_OUT][0] : 0;
}

static void memory_is_whole(const struct memory *memory)
{
    for (int i = 0; i < MILL_ARRAYS; i++) {
        for (size_t e = 0; e < memory->bytes[i] / 4; e++)
            ck_assert_msg(!memcmp(&memory->data[i][e], &memory->copy[i][e], 4),
                          "array %d, element %zu was %a and is %a", i, e,
                          (double)memory->copy[i][e], (double)memory->data[i][e]);
    }
}

static void memory_fini(struct memory *memory)
{
    for (int i = 0; i < MILL_ARRAYS; i++) {
        free(memory->data[i]);
        free(memory->copy[i]);
    }
}

START_TEST(an_accumulating_kernel_finds_its_array_restored_before_every_launch)
{
    struct tuning tuning;
    struct memory memory;
    tuning_open(&tuning, NULL, "mill m=16 accumulate=1 menu=4");
    memory_init(&memory, &tuning, 5);
    assert_ok(tuning.ctx, tune(&tuning));
    memory_is_whole(&memory);
    ck_assert_int_gt(mill_probe.launches, 6);
    ck_assert_int_eq(mill_probe.surprises, 0);
    ck_assert_msg(
        strstr(outcome_of(&tuning.trials, MILL_PADDING), "no element of an output covers"), "%s",
        outcome_of(&tuning.trials, MILL_PADDING));
    memory_fini(&memory);
    tuning_close(&tuning);
}
END_TEST

START_TEST(bad_kernels_leave_the_callers_arrays_alone)
{
    for (int budget = 0; budget < 2; budget++) {
        struct tuning tuning;
        struct memory memory;
        tuning_open(&tuning, NULL, "mill m=512 n=256 menu=1");
        memory_init(&memory, &tuning, 0);
        if (budget) /* out fits, x does not: it is used in place, and mended */
            tuning.options.memory_bytes = 700 << 10;
        assert_ok(tuning.ctx, tune(&tuning));
        ck_assert_int_eq(tuning.result.failed, 9);
        ck_assert_msg(strstr(outcome_of(&tuning.trials, MILL_WRITES_INPUT), "but it is an input"),
                      "%s", outcome_of(&tuning.trials, MILL_WRITES_INPUT));
        memory_is_whole(&memory);
        memory_fini(&memory);
        tuning_close(&tuning);
    }
}
END_TEST

START_TEST(too_little_memory_is_refused_by_name)
{
    struct tuning tuning;
    struct memory memory;
    tuning_open(&tuning, NULL, "mill m=512 n=256");
    memory_init(&memory, &tuning, 0);
    tuning.options.memory_bytes = 1000;
    assert_refused(tuning.ctx, tune(&tuning), QUERN_NO_MEMORY, "memory_bytes=1000: must be at");
    memory_is_whole(&memory);
    memory_fini(&memory);
    tuning_close(&tuning);
}
END_TEST

START_TEST(an_input_that_overlaps_an_output_is_restored)
{
    struct tuning tuning;
    struct memory memory;
    tuning_open(&tuning, NULL, "mill m=16");
    memory_init(&memory, &tuning, 0);
    memory.arrays[MILL_OUT] = memory.arrays[MILL_X]; /* in place: twice would be 4 x */
    assert_ok(tuning.ctx, tune(&tuning));
    ck_assert_str_eq(tuning.result.best.config, "kind=0,work=0");
    memory_is_whole(&memory);
    memory_fini(&memory);
    tuning_close(&tuning);
}
END_TEST

/* What the allocator hook gave out. */
static _Atomic int64_t held_bytes, most_bytes;

static void *count_alloc(size_t bytes, int device, void *stream, void *user)
{
    (void)device, (void)stream, (void)user;
    int64_t now = atomic_fetch_add(&held_bytes, (int64_t)bytes) + (int64_t)bytes;
    most_bytes = now > most_bytes ? now : most_bytes;
    return aligned_alloc(256, (bytes + 255) / 256 * 256);
}

static void count_free(void *data, size_t bytes, int device, void *stream, void *user)
{
    (void)device, (void)stream, (void)user;
    atomic_fetch_sub(&held_bytes, (int64_t)bytes);
    free(data);
}

START_TEST(of_a_pool_only_the_slots_in_use_are_saved)
{
    struct quern_options options = QUERN_OPTIONS_INIT;
    struct tuning tuning;
    struct memory memory;
    options.alloc = count_alloc;
    options.free = count_free;
    tuning_open(&tuning, &options, "mill m=8 n=256 pool=16384 menu=5"); /* 16 MiB */
    memory_init(&memory, &tuning, 0);
    mill_probe.initial = memory.data[MILL_OUT][((int32_t *)memory.data[MILL_SLOT])[0] * 256];
    tuning.options.memory_bytes = 256 << 10;
    held_bytes = most_bytes = 0;
    assert_ok(tuning.ctx, tune(&tuning));
    ck_assert_int_le(most_bytes, (256 << 10) + MILL_SCRATCH_BYTES + 512);
    ck_assert_int_eq(held_bytes, 0);
    ck_assert_int_eq(mill_probe.surprises, 0);
    ck_assert_int_gt(mill_probe.launches, 6);
    memory_is_whole(&memory);
    ck_assert_msg(
        strstr(outcome_of(&tuning.trials, MILL_NEIGHBOUR), "no element of an output covers"), "%s",
        outcome_of(&tuning.trials, MILL_NEIGHBOUR));
    memory_fini(&memory);
    tuning_close(&tuning);
}
END_TEST

START_TEST(a_pool_may_have_thousands_of_slots_in_use)
{
    struct quern_options options = QUERN_OPTIONS_INIT;
    struct tuning tuning;
    struct memory memory;
    options.alloc = count_alloc;
    options.free = count_free;
    tuning_open(&tuning, &options, "mill m=2048 pool=131072 menu=5"); /* 32 MiB, 512 KiB in use */
    memory_init(&memory, &tuning, 0);
    mill_probe.initial = memory.data[MILL_OUT][((int32_t *)memory.data[MILL_SLOT])[0] * 64];
    tuning.options.memory_bytes = 2 << 20;
    held_bytes = most_bytes = 0;
    assert_ok(tuning.ctx, tune(&tuning));
    ck_assert_int_eq(tuning.result.is_drawn, 0);
    ck_assert_int_le(most_bytes, (2 << 20) + MILL_SCRATCH_BYTES + 512);
    ck_assert_int_eq(mill_probe.surprises, 0);
    ck_assert_int_gt(mill_probe.launches, 6);
    memory_is_whole(&memory);
    ck_assert_int_eq(tuning.result.failed, 2);
    ck_assert_msg(
        strstr(outcome_of(&tuning.trials, MILL_NEIGHBOUR), "no element of an output covers"), "%s",
        outcome_of(&tuning.trials, MILL_NEIGHBOUR));
    memory_fini(&memory);
    tuning_close(&tuning);
}
END_TEST

START_TEST(arrays_are_run_on_at_the_buckets_bound_whatever_the_hints_say)
{
    static const struct {
        const char *text;
        int is_drawn;
    } cases[] = { { "mill m=16 accumulate=1 menu=4 load=5", 0 },
                  { "mill m=13 accumulate=1 menu=4 load=8", 1 } };
    for (int i = 0; i < 2; i++) {
        struct said said;
        struct quern_options options = logged_options(&said);
        struct tuning tuning;
        struct memory memory;
        tuning_open(&tuning, &options, cases[i].text);
        memory_init(&memory, &tuning, 0);
        assert_ok(tuning.ctx, tune(&tuning));
        ck_assert_int_eq(tuning.result.is_drawn, cases[i].is_drawn);
        ck_assert_int_eq(mill_probe.surprises != 0, cases[i].is_drawn);
        ck_assert_int_eq(strstr(said.text, "not of the bucket's bound") != NULL, cases[i].is_drawn);
        memory_is_whole(&memory);

        tuning.request.arrays = NULL; /* nothing was asked for that was not done */
        tuning.options.force = 1;
        assert_ok(tuning.ctx, tune(&tuning));
        ck_assert_int_eq(tuning.result.is_drawn, 0);
        memory_fini(&memory);
        tuning_close(&tuning);
    }
}
END_TEST

START_TEST(measuring_leaves_every_array_as_it_was)
{
    struct tuning tuning;
    struct memory memory;
    struct quern_kernel *kernel;
    struct quern_time time;
    tuning_open(&tuning, NULL, "mill m=13 accumulate=1");
    memory_init(&memory, &tuning, 1);
    assert_ok(tuning.ctx, quern_prepare(tuning.ctx, &tuning.request, &kernel));
    assert_ok(tuning.ctx,
              quern_measure(tuning.ctx, kernel, &tuning.spec, memory.arrays, 300, &time));
    memory_is_whole(&memory);
    ck_assert_int_ge(mill_probe.launches, 300);
    ck_assert_int_eq(mill_probe.surprises, 0);
    ck_assert_int_eq(time.samples, 300);
    ck_assert_double_gt(time.median_us, 0);
    ck_assert_double_eq(time.flops, 13 * 64);
    assert_refused(tuning.ctx,
                   quern_measure(tuning.ctx, kernel, &tuning.spec, memory.arrays, 0, &time),
                   QUERN_INVALID, "iterations=0");
    assert_refused(tuning.ctx, quern_measure(tuning.ctx, kernel, &tuning.spec, NULL, 1, &time),
                   QUERN_INVALID, "arrays=NULL");
    memory_fini(&memory);
    tuning_close(&tuning);
}
END_TEST

START_TEST(the_built_in_inout_families_come_back_bit_for_bit)
{
    static const char *const texts[] = { "copy n=65536 inplace=1",
                                         "gemm m=32 n=48 k=64 a=bf16 b=bf16 d=bf16 accumulate=1" };
    struct quern_context *ctx = common_context(NULL);
    for (int i = 0; i < 2; i++) {
        struct quern_spec spec = common_spec(ctx, texts[i]);
        struct quern_request request = QUERN_REQUEST_INIT;
        struct quern_tune_options options = QUERN_TUNE_OPTIONS_INIT;
        struct quern_tune_result result;
        struct common_arrays set;
        common_arrays_init(&set, ctx, &spec, (struct common_layout){ 0, 3 * i }, common_seed());
        common_arrays_keep(&set);
        request.spec = &spec;
        request.arrays = set.arrays;
        options.max_configs = 3;
        options.memory_bytes = 8 << 20;
        assert_ok(ctx, quern_tune(ctx, &request, &options, &result));
        ck_assert_int_eq(common_arrays_differ(&set), -1);
        ck_assert_int_eq(result.failed, 0);
        common_arrays_fini(&set);
    }
    quern_context_destroy(ctx);
}
END_TEST

/* ---- Limits -------------------------------------------------------------------------------- */

START_TEST(the_budget_bounds_the_whole_and_the_default_is_always_timed)
{
    static const double budgets[] = { 1e-6, 1.5 };
    for (int i = 0; i < 2; i++) {
        struct tuning tuning;
        tuning_open(&tuning, NULL, "mill m=256 menu=2");
        tuning.options.budget_s = budgets[i];
        assert_ok(tuning.ctx, tune(&tuning));
        ck_assert_double_lt(tuning.result.seconds, budgets[i] + 10);
        ck_assert_int_ge(tuning.result.candidates, 1);
        ck_assert_int_lt(tuning.result.candidates, 61);
        ck_assert_double_gt(tuning.result.heuristic.time_us, 0);
        tuning_close(&tuning);
    }
}
END_TEST

START_TEST(max_configs_and_progress_end_the_search)
{
    struct tuning tuning;
    tuning_open(&tuning, NULL, "mill m=16");
    tuning.options.max_configs = 2;
    assert_ok(tuning.ctx, tune(&tuning));
    ck_assert_int_eq(tuning.result.candidates, 2);
    tuning.options.max_configs = 0;
    tuning.options.force = 1;
    tuning.trials.stop_after = 3;
    assert_ok(tuning.ctx, tune(&tuning));
    ck_assert_int_eq(tuning.result.candidates, 3);
    tuning_close(&tuning);
}
END_TEST

START_TEST(a_search_that_was_cut_short_serves_and_is_gone_on_with)
{
    struct tuning tuning;
    struct qn_tuned row;
    char *text, *group;
    tuning_open(&tuning, NULL, "mill m=16");
    tuning.trials.stop_after = 3;
    assert_ok(tuning.ctx, tune(&tuning));
    ck_assert_int_eq(tuning.result.candidates, 3);
    tuning_key(&tuning, &text, &group);
    ck_assert_int_eq(qn_tuned_find(tuning.ctx->store, text, &row), QN_STORE_OK);
    ck_assert_msg(strstr(row.provenance, ", stopped after 3 of "), "%s", row.provenance);
    qn_tuned_fini(&row);

    for (int i = 0; i < 2; i++) { /* nothing new: the winner of the longer search stays */
        tuning.trials.stop_after = i ? 0 : 2;
        tuning.options.max_configs = i ? 1 : 0;
        assert_ok(tuning.ctx, tune(&tuning));
        ck_assert_int_eq(tuning.result.is_reused, 1);
        ck_assert_int_eq(qn_tuned_find(tuning.ctx->store, text, &row), QN_STORE_OK);
        ck_assert_int_eq(row.generation, 1);
        qn_tuned_fini(&row);
    }
    tuning.options.max_configs = 0;

    tuning.trials.stop_after = 0;
    assert_ok(tuning.ctx, tune(&tuning));
    ck_assert_int_eq(tuning.result.is_reused, 0);
    ck_assert_int_gt(tuning.result.candidates, 3);
    ck_assert_int_eq(qn_tuned_find(tuning.ctx->store, text, &row), QN_STORE_OK);
    ck_assert_int_eq(row.generation, 2);
    ck_assert_ptr_null(strstr(row.provenance, "stopped"));
    qn_tuned_fini(&row);
    assert_ok(tuning.ctx, tune(&tuning));
    ck_assert_int_eq(tuning.result.is_reused, 1);
    free(text);
    free(group);
    tuning_close(&tuning);
}
END_TEST

START_TEST(a_reused_winner_comes_with_the_heuristic_of_its_own_tuning)
{
    struct tuning tuning;
    struct qn_tuned row;
    char *text, *group;
    tuning_open(&tuning, NULL, "mill m=16");
    tuning.options.max_configs = 1;
    assert_ok(tuning.ctx, tune(&tuning));
    ck_assert_double_eq(tuning.result.speedup, 1);

    /* Trials say nothing of it: theirs are times of another round. */
    tuning_key(&tuning, &text, &group);
    ck_assert_int_eq(qn_tuned_find(tuning.ctx->store, text, &row), QN_STORE_OK);
    row.generation++;
    ck_assert_str_eq(row.heuristic_variant, row.variant);
    ck_assert_str_eq(row.heuristic_config, row.config);
    ck_assert_double_eq(row.heuristic_us, row.time_us);
    row.heuristic_us *= 3;
    row.time_us *= 2;
    ck_assert_int_eq(qn_tuned_put(tuning.ctx->store, &row, NULL), QN_STORE_OK);
    assert_ok(tuning.ctx, tune(&tuning));
    ck_assert_int_eq(tuning.result.is_reused, 1);
    ck_assert_double_eq(tuning.result.best.time_us, row.time_us);
    ck_assert_double_eq(tuning.result.heuristic.time_us, row.heuristic_us);
    ck_assert_double_eq_tol(tuning.result.speedup, 1.5, 1e-9);

    row.generation++;
    row.heuristic_us = 0; /* not known */
    ck_assert_int_eq(qn_tuned_put(tuning.ctx->store, &row, NULL), QN_STORE_OK);
    assert_ok(tuning.ctx, tune(&tuning));
    ck_assert_double_eq(tuning.result.speedup, 0);
    qn_tuned_fini(&row);
    free(text);
    free(group);
    tuning_close(&tuning);
}
END_TEST

START_TEST(sealed_gives_a_stored_winner_and_never_tunes)
{
    char *path = common_scratch_path("sealed/quern.db");
    struct quern_options options = file_options(path);
    struct tuning tuning;
    tuning_open(&tuning, &options, "mill m=16");
    assert_ok(tuning.ctx, tune(&tuning));
    tuning_close(&tuning);
    options.mode = "sealed";
    tuning_open(&tuning, &options, "mill m=16");
    assert_ok(tuning.ctx, tune(&tuning));
    ck_assert_int_eq(tuning.result.is_reused, 1);
    tuning.spec = common_spec(tuning.ctx, "mill m=64");
    assert_refused(tuning.ctx, tune(&tuning), QUERN_SEALED, "mode=sealed: mill m=64");
    tuning_close(&tuning);
    free(path);
}
END_TEST

START_TEST(illegal_requests_are_refused_by_name)
{
    struct tuning tuning;
    tuning_open(&tuning, NULL, "mill m=16");
    tuning.request.config = "kind=0";
    assert_refused(tuning.ctx, tune(&tuning), QUERN_INVALID, "config=kind=0: must be NULL");
    tuning.request.config = NULL;
    tuning.request.variant = "no_such";
    assert_refused(tuning.ctx, tune(&tuning), QUERN_INVALID, "variant=no_such");
    tuning.request.variant = NULL;
    tuning.options.budget_s = -1;
    assert_refused(tuning.ctx, tune(&tuning), QUERN_INVALID, "budget_s=-1");
    tuning.options.budget_s = 0;
    tuning.options.max_configs = -2;
    assert_refused(tuning.ctx, tune(&tuning), QUERN_INVALID, "max_configs=-2");
    tuning.options.size = 1;
    assert_refused(tuning.ctx, tune(&tuning), QUERN_INVALID, "options.size=1");
    tuning.request.size = 1;
    assert_refused(tuning.ctx, tune(&tuning), QUERN_INVALID, "request.size=1");
    tuning_close(&tuning);
}
END_TEST

START_TEST(times_taken_here_are_not_stored_under_another_devices_name)
{
    struct quern_options options = QUERN_OPTIONS_INIT;
    struct tuning tuning;
    options.profile = "cpu-server-16";
    tuning_open(&tuning, &options, "mill m=16");
    assert_refused(tuning.ctx, tune(&tuning), QUERN_INVALID,
                   "device-profile=cpu-server-16: tuning needs the device itself; leave it out");
    ck_assert_int_eq(tuning.trials.count, 0);
    tuning_close(&tuning);
}
END_TEST

/* ---- Killed and resumed -------------------------------------------------------------------- */

static int die_at_sixth(void *user, const struct quern_tune_progress *progress)
{
    (void)user;
    if (progress->done == 6)
        kill(getpid(), SIGKILL);
    return 0;
}

/* What `test_tune --die FILE SPEC` does: no test runs there, so nothing of Check may be called. */
static int tune_and_die(const char *path, const char *text)
{
    struct quern_options options = file_options(path);
    struct quern_request request = QUERN_REQUEST_INIT;
    struct quern_tune_options tune_options = QUERN_TUNE_OPTIONS_INIT;
    struct quern_tune_result result;
    struct quern_context *ctx;
    struct quern_spec spec;
    options.device = "cpu";
    options.threads = 1;
    request.spec = &spec;
    tune_options.progress = die_at_sixth;
    int status = quern_context_create(&options, &ctx);
    if (!status)
        status = quern_family_register(ctx, &mill_family);
    if (!status)
        status = quern_spec_parse(ctx, text, &spec);
    if (!status)
        status = quern_tune(ctx, &request, &tune_options, &result);
    fprintf(stderr, "%s\n", quern_errmsg(ctx));
    return status != 0;
}

/* Trials that the killed process left. */
struct kept {
    int count, failed;
};

static int visit_kept(void *user, const struct qn_trial *trial)
{
    struct kept *kept = user;
    kept->count++;
    kept->failed += strcmp(trial->outcome, "ok") != 0;
    return 0;
}

/* Say something else of a candidate that was rejected, to see whether it is believed. */
struct mark {
    const char *config, *outcome;
    struct qn_trial trial;
};

static int visit_mark(void *user, const struct qn_trial *trial)
{
    struct mark *mark = user;
    if (strcmp(trial->config, mark->config))
        return 0;
    mark->trial = *trial;
    mark->trial.text = strdup(trial->text);
    mark->trial.variant = strdup(trial->variant);
    mark->trial.config = strdup(trial->config);
    mark->trial.digest = strdup(trial->digest);
    mark->trial.toolkit = strdup(trial->toolkit);
    mark->trial.outcome = strdup(mark->outcome);
    mark->trial.time_us = 1;
    return 1;
}

static void trial_mark(struct quern_context *ctx, const char *text, const char *config,
                       const char *outcome)
{
    struct mark mark = { config, outcome, { 0 } };
    qn_trial_each(ctx->store, text, 1, visit_mark, &mark);
    ck_assert_ptr_nonnull(mark.trial.config);
    ck_assert_int_eq(qn_trial_put(ctx->store, &mark.trial), QN_STORE_OK);
    qn_trial_fini(&mark.trial);
}

START_TEST(when_nothing_passes_the_reason_is_the_defaults_and_all_is_tried_again)
{
    static const char said[] =
        "none of 3 candidates passed; mill_cpu kind=1,work=20000: out: row 15";
    struct tuning tuning;
    char *text, *group;
    tuning_open(&tuning, NULL, "mill m=16 menu=3");
    assert_refused(tuning.ctx, tune(&tuning), QUERN_CHECK_FAILED, said);
    tuning_key(&tuning, &text, &group);
    trial_mark(tuning.ctx, text, "kind=1,work=20000", "marked by the test");
    trial_mark(tuning.ctx, text, "kind=3,work=0", "marked by the test");
    assert_refused(tuning.ctx, tune(&tuning), QUERN_CHECK_FAILED, said);
    ck_assert_str_ne(outcome_of(&tuning.trials, MILL_PAST_END), "marked by the test");
    free(text);
    free(group);
    tuning_close(&tuning);
}
END_TEST

/* A cache that a killed process left its trials of the spec in. */
static void kill_tuning(char *path, char *spec)
{
    char *const arguments[] = { "test_tune", "--die", path, spec, NULL };
    pid_t child;
    int code;
    ck_assert(!posix_spawn(&child, "/proc/self/exe", NULL, NULL, arguments, environ));
    ck_assert_int_eq(waitpid(child, &code, 0), child);
    ck_assert(WIFSIGNALED(code) && WTERMSIG(code) == SIGKILL);
}

START_TEST(a_killed_tuning_resumes_where_it_stopped)
{
    char *path = common_scratch_path("killed/quern.db");
    struct quern_options options = file_options(path);
    struct tuning tuning;
    struct kept kept = { 0 };
    char *text, *group;
    kill_tuning(path, "mill m=16 menu=1");

    tuning_open(&tuning, &options, "mill m=16 menu=1");
    tuning_key(&tuning, &text, &group);
    qn_trial_each(tuning.ctx->store, text, 1, visit_kept, &kept);
    ck_assert_int_eq(kept.count, 6);
    ck_assert_int_eq(kept.failed, 5);
    trial_mark(tuning.ctx, text, "kind=1,work=0", "marked by the test");
    trial_mark(tuning.ctx, text, "kind=2,work=0", "ok"); /* and fast; but it still races */

    assert_ok(tuning.ctx, tune(&tuning));
    ck_assert_int_eq(tuning.result.candidates, 10);
    ck_assert_int_eq(tuning.result.failed, 9);
    ck_assert_str_eq(outcome_of(&tuning.trials, MILL_WRONG), "marked by the test");
    ck_assert_str_eq(outcome_of(&tuning.trials, MILL_RACING), "ok");
    ck_assert_str_eq(tuning.result.best.config, "kind=0,work=20000");
    free(text);
    free(group);
    free(path);
    tuning_close(&tuning);
}
END_TEST

START_TEST(a_resumed_tuning_that_is_stopped_believes_no_old_time)
{
    char *path = common_scratch_path("stopped/quern.db");
    struct quern_options options = file_options(path);
    struct tuning tuning;
    char *text, *group;
    kill_tuning(path, "mill m=16 menu=2");

    tuning_open(&tuning, &options, "mill m=16 menu=2");
    tuning_key(&tuning, &text, &group);
    trial_mark(tuning.ctx, text, "kind=0,work=100003", "ok"); /* 1 us: it takes far more */
    tuning.trials.stop_after = 6;
    assert_ok(tuning.ctx, tune(&tuning));
    ck_assert_int_eq(tuning.result.candidates, 6);
    ck_assert_str_eq(tuning.result.best.config, "kind=0,work=20000");
    ck_assert_double_eq(tuning.result.speedup, 1);
    free(text);
    free(group);
    free(path);
    tuning_close(&tuning);
}
END_TEST

int main(int argc, char **argv)
{
    if (argc == 4 && !strcmp(argv[1], "--die"))
        return tune_and_die(argv[2], argv[3]);
    Suite *suite = suite_create("tune");
    TCase *tests = tcase_create("tune");
    tcase_set_timeout(tests, 120);
    tcase_add_test(tests, the_fastest_right_config_wins_and_serves_the_next_call);
    tcase_add_test(tests, slow_candidates_drop_out_early);
    tcase_add_test(tests, a_stored_winner_is_reused_and_force_makes_a_new_generation);
    tcase_add_test(tests, a_search_that_was_cut_short_serves_and_is_gone_on_with);
    tcase_add_test(tests, a_reused_winner_comes_with_the_heuristic_of_its_own_tuning);
    tcase_add_test(tests, two_tunings_give_one_winner_and_neighbours_seed_the_search);
    tcase_add_test(tests, of_two_that_tune_at_once_one_works_and_both_have_its_winner);
    tcase_add_test(tests, a_winner_that_the_cache_cannot_take_serves_its_context);
    tcase_add_test(tests, waiting_for_another_process_is_told_and_can_be_stopped);
    tcase_add_test(tests, every_bad_kernel_is_rejected_for_its_own_reason);
    tcase_add_test(tests, when_nothing_passes_the_reason_is_the_defaults_and_all_is_tried_again);
    tcase_add_test(tests, an_accumulating_kernel_finds_its_array_restored_before_every_launch);
    tcase_add_test(tests, bad_kernels_leave_the_callers_arrays_alone);
    tcase_add_test(tests, too_little_memory_is_refused_by_name);
    tcase_add_test(tests, an_input_that_overlaps_an_output_is_restored);
    tcase_add_test(tests, of_a_pool_only_the_slots_in_use_are_saved);
    tcase_add_test(tests, a_pool_may_have_thousands_of_slots_in_use);
    tcase_add_test(tests, arrays_are_run_on_at_the_buckets_bound_whatever_the_hints_say);
    tcase_add_test(tests, measuring_leaves_every_array_as_it_was);
    tcase_add_test(tests, the_built_in_inout_families_come_back_bit_for_bit);
    tcase_add_test(tests, the_budget_bounds_the_whole_and_the_default_is_always_timed);
    tcase_add_test(tests, max_configs_and_progress_end_the_search);
    tcase_add_test(tests, sealed_gives_a_stored_winner_and_never_tunes);
    tcase_add_test(tests, illegal_requests_are_refused_by_name);
    tcase_add_test(tests, times_taken_here_are_not_stored_under_another_devices_name);
    tcase_add_test(tests, a_killed_tuning_resumes_where_it_stopped);
    tcase_add_test(tests, a_resumed_tuning_that_is_stopped_believes_no_old_time);
    suite_add_tcase(suite, tests);
    return common_main(suite);
}
