/* From one context and process to the next: new winners, sealed contexts, other compilers,
 * artifacts that do not load. jit/choose.c, jit/build.c, jit/dispatch.c. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <quern/tune.h>

#include "common.h"
#include "jit/build.h"
#include "kinds.h"

static struct quern_context *ctx;
static uint64_t seed;

static void setup(void)
{
    ctx = common_context(NULL);
    seed = common_seed();
}

static void teardown(void)
{
    quern_context_destroy(ctx);
}

static const struct common_layout dense = { 16, 0 };

/* ---- Retuning ------------------------------------------------------------------------------ */

static struct qn_bucket bucket_of(const struct quern_spec *spec)
{
    struct qn_bucket bucket;
    qn_bucket_make(spec, NULL, &bucket);
    return bucket;
}

/* What tuning does when it has a winner. */
static void put_winner(struct quern_context *with, const struct quern_spec *spec,
                       const char *variant, const char *config)
{
    struct qn_bucket bucket = bucket_of(spec);
    char *text, *group;
    ck_assert_int_eq(qn_tuned_key(&bucket, &with->profile, &text, &group), QUERN_OK);
    const struct qn_tuned row = { .text = text,
                                  .group = group,
                                  .family = (char *)"kinds",
                                  .variant = (char *)variant,
                                  .config = (char *)config,
                                  .time_us = 1,
                                  .samples = 3,
                                  .digest = (char *)"",
                                  .toolkit = (char *)"",
                                  .profile = (char *)with->profile.name,
                                  .provenance = (char *)"" };
    ck_assert_int_eq(qn_tuned_put(with->store, &row, NULL), QN_STORE_OK);
    qn_kernels_refresh(with, &bucket);
    free(text);
    free(group);
}

struct follower {
    struct quern_context *ctx;
    struct quern_spec spec;
    pthread_barrier_t step;
    struct quern_kernel *kernels[3];
};

static void *follow(void *data)
{
    struct follower *follower = data;
    for (int i = 0; i < 3; i++) {
        quern_dispatch(follower->ctx, &follower->spec, NULL, &follower->kernels[i]);
        pthread_barrier_wait(&follower->step);
        pthread_barrier_wait(&follower->step);
    }
    return NULL;
}

START_TEST(a_new_winner_is_used_by_every_thread_at_its_next_call)
{
    struct follower follower = { .ctx = ctx, .spec = common_spec(ctx, "kinds rows=40") };
    pthread_t thread;
    pthread_barrier_init(&follower.step, NULL, 2);
    ck_assert_int_eq(pthread_create(&thread, NULL, follow, &follower), 0);
    static const char *const configs[] = { "tile=16,add.unroll=1", "tile=4,add.unroll=2" };
    for (int i = 0; i < 3; i++) {
        pthread_barrier_wait(&follower.step);
        if (i < 2)
            put_winner(ctx, &follower.spec, "kinds_cpu", configs[i]);
        pthread_barrier_wait(&follower.step);
    }
    pthread_join(thread, NULL);
    pthread_barrier_destroy(&follower.step);
    ck_assert_int_eq(kinds_report(follower.kernels[0]).config_from, QUERN_CONFIG_HEURISTIC);
    for (int i = 0; i < 2; i++) {
        ck_assert_int_eq(kinds_report(follower.kernels[i + 1]).config_from, QUERN_CONFIG_TUNED);
        ck_assert_str_eq(kinds_report(follower.kernels[i + 1]).config, configs[i]);
    }
    ck_assert_ptr_eq(follower.kernels[2], kinds_dispatch(ctx, "kinds rows=33", NULL));
}
END_TEST

/* A kernel that was replaced still launches: somebody may be about to. */
START_TEST(a_replaced_kernel_stays_usable)
{
    struct quern_spec spec = common_spec(ctx, "kinds rows=20 gain=2");
    struct common_arrays set;
    struct quern_kernel *old;
    common_arrays_init(&set, ctx, &spec, dense, common_random(&seed));
    assert_ok(ctx, quern_dispatch(ctx, &spec, set.arrays, &old));
    put_winner(ctx, &spec, "kinds_cpu", "tile=2,add.unroll=1");
    ck_assert_ptr_ne(old, kinds_dispatch(ctx, "kinds rows=20 gain=2", NULL));
    assert_ok(ctx, quern_launch(ctx, old, &spec, set.arrays, NULL));
    ck_assert(kinds_is_scaled(&set, 2));
    common_arrays_fini(&set);
}
END_TEST

struct meddler {
    struct quern_context *ctx;
    struct quern_spec spec;
    int times;
};

/* Stores a winner while the heuristic's kernel is being built. */
static void meddle(void *user, int level, const char *line)
{
    struct meddler *meddler = user;
    (void)level;
    if (strncmp(line, "compiled kinds", 14) || meddler->times++)
        return;
    put_winner(meddler->ctx, &meddler->spec, "kinds_cpu", "tile=32,add.unroll=1");
}

START_TEST(a_winner_stored_while_a_kernel_is_built_is_not_missed)
{
    struct meddler meddler = { 0 };
    struct quern_options options = QUERN_OPTIONS_INIT;
    options.log = meddle;
    options.log_level = QUERN_LOG_INFO;
    options.user = &meddler;
    struct quern_context *logged = common_context(&options);
    meddler.ctx = logged;
    meddler.spec = common_spec(logged, "kinds rows=64");
    struct quern_kernel *first = kinds_dispatch(logged, "kinds rows=64", NULL);
    ck_assert_int_eq(meddler.times, 1);
    ck_assert_int_eq(kinds_report(first).config_from, QUERN_CONFIG_HEURISTIC);
    struct quern_kernel *second = kinds_dispatch(logged, "kinds rows=64", NULL);
    ck_assert_int_eq(kinds_report(second).config_from, QUERN_CONFIG_TUNED);
    ck_assert_ptr_eq(second, kinds_dispatch(logged, "kinds rows=64", NULL));
    quern_context_destroy(logged);
}
END_TEST

START_TEST(a_winner_serves_neighbours_and_an_illegal_row_serves_nobody)
{
    static const char *const bad[][2] = { { "kinds_cpu", "tile=13,add.unroll=1" },
                                          { "kinds_cpu", "tile=65,add.unroll=1" },
                                          { "kinds_cpu", "tile=-1" },
                                          { "kinds_cpu", "height=3" },
                                          { "kinds_cpu", "tile=8,tile=4" },
                                          { "kinds_cpu", "\x01\xff" },
                                          { "kinds_gone", "tile=4" } };
    struct quern_spec spec = common_spec(ctx, "kinds rows=100");
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        put_winner(ctx, &spec, bad[i][0], bad[i][1]);
        struct quern_report report = kinds_report(kinds_dispatch(ctx, "kinds rows=100", NULL));
        ck_assert_int_eq(report.config_from, QUERN_CONFIG_HEURISTIC);
        ck_assert_str_eq(report.config, "tile=8,add.unroll=1");
    }
    put_winner(ctx, &spec, "kinds_cpu", "tile=16,add.unroll=1");
    ck_assert_int_eq(kinds_report(kinds_dispatch(ctx, "kinds rows=100", NULL)).config_from,
                     QUERN_CONFIG_TUNED);
    struct quern_report near = kinds_report(kinds_dispatch(ctx, "kinds rows=200", NULL));
    ck_assert_int_eq(near.config_from, QUERN_CONFIG_NEIGHBOUR);
    ck_assert_str_eq(near.config, "tile=16,add.unroll=1");
    ck_assert_int_eq(kinds_report(kinds_dispatch(ctx, "kinds rows=100000", NULL)).config_from,
                     QUERN_CONFIG_HEURISTIC);
    ck_assert_int_eq(kinds_report(kinds_dispatch(ctx, "kinds rows=100 cols=7", NULL)).config_from,
                     QUERN_CONFIG_HEURISTIC);
}
END_TEST

static int config_from(const char *text)
{
    return kinds_report(kinds_dispatch(ctx, text, NULL)).config_from;
}

START_TEST(a_winner_that_taught_nothing_or_lies_far_away_serves_no_neighbour)
{
    struct quern_spec near = common_spec(ctx, "kinds rows=100");
    struct quern_spec far = common_spec(ctx, "kinds rows=2000");
    put_winner(ctx, &near, "kinds_cpu", "tile=8,add.unroll=1"); /* as the heuristic has it */
    put_winner(ctx, &far, "kinds_cpu", "tile=16,add.unroll=1");
    ck_assert_int_eq(config_from("kinds rows=100"), QUERN_CONFIG_TUNED);
    ck_assert_int_eq(config_from("kinds rows=200"), QUERN_CONFIG_HEURISTIC);
    ck_assert_int_eq(config_from("kinds rows=4000"), QUERN_CONFIG_NEIGHBOUR);
    ck_assert_int_eq(config_from("kinds rows=1000"), QUERN_CONFIG_NEIGHBOUR);
    ck_assert_int_eq(config_from("kinds rows=8000"), QUERN_CONFIG_HEURISTIC);
    ck_assert_int_eq(config_from("kinds rows=500"), QUERN_CONFIG_HEURISTIC);
}
END_TEST

/* ---- Sealed, and without a compiler -------------------------------------------------------- */

static struct quern_context *context_without_compiler(const char *cache, const char *mode)
{
    struct quern_options options = QUERN_OPTIONS_INIT;
    options.cache = cache;
    options.mode = mode;
    options.clang = "/nonexistent/clang";
    return common_context(&options);
}

/* The artifact key of the heuristic's kernel, as hexadecimal digits. */
static void artifact_hex(struct quern_context *with, const char *text, char hex[QN_KEY_HEX])
{
    struct quern_spec spec = common_spec(with, text);
    struct qn_bucket bucket = bucket_of(&spec);
    const struct qn_build_request request = { .bucket = &bucket,
                                              .target = &with->target,
                                              .profile = &with->profile };
    char **keys;
    int count;
    assert_ok(with, qn_unit_keys(with, &request, &keys, &count));
    ck_assert_int_eq(count, 1);
    qn_key_hex(keys[0], strlen(keys[0]), hex);
    free(keys[0]);
    free(keys);
}

static void hit_and_miss(const char *cache, const char *mode, int status)
{
    struct quern_context *bare = context_without_compiler(cache, mode);
    struct quern_spec spec = common_spec(bare, "kinds rows=30 gain=2");
    struct quern_spec missing = common_spec(bare, "kinds rows=30 order=down");
    struct common_arrays set;
    struct quern_kernel *kernel;
    char hex[QN_KEY_HEX];
    common_arrays_init(&set, bare, &spec, dense, common_random(&seed));
    assert_ok(bare, quern_run(bare, &spec, set.arrays, NULL));
    ck_assert(kinds_is_scaled(&set, 2));
    assert_ok(bare, quern_dispatch(bare, &spec, set.arrays, &kernel));
    ck_assert_int_eq(kinds_report(kernel).artifact, QUERN_FROM_DISK);
    common_arrays_restore(&set);
    common_arrays_keep(&set);
    artifact_hex(bare, "kinds rows=30 order=down", hex);
    assert_refused(bare, quern_run(bare, &missing, set.arrays, NULL), status,
                   status == QUERN_SEALED ? hex : "clang=/nonexistent/clang");
    ck_assert_int_lt(common_arrays_differ(&set), 0);
    common_arrays_fini(&set);
    quern_context_destroy(bare);
}

START_TEST(a_hit_needs_no_compiler_and_a_miss_names_what_is_missing)
{
    char *cache = common_scratch_path("sealed/quern.db");
    struct quern_options options = QUERN_OPTIONS_INIT;
    options.cache = cache;
    struct quern_context *warm = common_context(&options);
    kinds_dispatch(warm, "kinds rows=30 gain=2", NULL);
    int64_t before = kinds_compiles(warm);
    quern_context_destroy(warm);
    hit_and_miss(cache, "sealed", QUERN_SEALED);
    hit_and_miss(cache, NULL, QUERN_NO_COMPILER);

    options.mode = "sealed"; /* with a compiler, too: it must not be run */
    struct quern_context *sealed = common_context(&options);
    struct quern_spec missing = common_spec(sealed, "kinds rows=30 order=down");
    struct quern_kernel *kernel = NULL;
    assert_refused(sealed, quern_dispatch(sealed, &missing, NULL, &kernel), QUERN_SEALED,
                   "mode=sealed");
    ck_assert_ptr_null(kernel);
    ck_assert_int_eq(kinds_compiles(sealed), before);
    quern_context_destroy(sealed);
    free(cache);
}
END_TEST

static int keep_key_text(void *user, const struct qn_artifact *artifact)
{
    *(char **)user = strdup(artifact->text);
    return 1;
}

/* The cache's one artifact with other bytes under the same key: sound to the store. */
static void replace_blob(struct quern_context *with)
{
    static const char bytes[] = "no object at all";
    struct qn_artifact artifact;
    char *text = NULL;
    qn_artifact_each(with->store, "", keep_key_text, &text);
    ck_assert_ptr_nonnull(text);
    ck_assert_int_eq(qn_artifact_find(with->store, text, NULL, NULL, NULL, &artifact), QN_STORE_OK);
    free(artifact.blob);
    artifact.blob = strdup(bytes);
    artifact.blob_bytes = sizeof(bytes);
    ck_assert_int_eq(qn_artifact_put(with->store, &artifact), QN_STORE_OK);
    qn_artifact_fini(&artifact);
    free(text);
}

/* Refused for what the artifact is, as often as it is asked for. */
static void check_unloadable(const struct quern_options *options)
{
    struct quern_context *bare = common_context(options);
    struct quern_spec spec = common_spec(bare, "kinds rows=3");
    struct quern_kernel *kernel = NULL;
    for (int run = 0; run < 2; run++)
        assert_refused(bare, quern_dispatch(bare, &spec, NULL, &kernel), QUERN_LOAD, "ELF");
    ck_assert_ptr_null(kernel);
    quern_context_destroy(bare);
}

START_TEST(a_stored_artifact_that_does_not_load_is_made_again)
{
    char *cache = common_scratch_path("unloadable/quern.db");
    struct quern_options options = QUERN_OPTIONS_INIT;
    struct quern_report report;
    options.cache = cache;
    struct quern_context *first = common_context(&options);
    kinds_dispatch(first, "kinds rows=3", NULL);
    replace_blob(first);
    quern_context_destroy(first);

    for (int run = 0; run < 2; run++) {
        struct quern_context *later = common_context(&options);
        quern_kernel_report(kinds_dispatch(later, "kinds rows=3", NULL), &report);
        ck_assert_int_eq(report.artifact, run ? QUERN_FROM_DISK : QUERN_FROM_COMPILER);
        quern_context_destroy(later);
    }

    first = common_context(&options);
    replace_blob(first);
    quern_context_destroy(first);
    chmod(cache, 0400); /* where it cannot be deleted it is made again by each process */
    struct quern_context *reader = common_context(&options);
    ck_assert_int_eq(kinds_report(kinds_dispatch(reader, "kinds rows=3", NULL)).artifact,
                     QUERN_FROM_COMPILER);
    quern_context_destroy(reader);
    chmod(cache, 0600);
    options.clang = "/nonexistent/clang"; /* nothing to make it again with: it stays */
    check_unloadable(&options);
    options.clang = NULL;
    options.mode = "sealed";
    check_unloadable(&options);
    free(cache);
}
END_TEST

/* A compiler of another version, which notes that it was run. */
static char *other_compiler(const char *ran)
{
    char *path = common_scratch_path("other/clang"), text[4096 + 512];
    snprintf(text, sizeof(text),
             "#!/bin/sh\necho >> '%s'\n"
             "[ \"$1\" = --version ] && echo 'other clang version 19.99.9' && exit\n"
             "exec %s \"$@\"\n",
             ran, common_clang());
    common_file_write(path, text);
    chmod(path, 0700);
    return path;
}

START_TEST(another_compiler_is_another_artifact_except_to_a_sealed_context_which_runs_none)
{
    char *cache = common_scratch_path("other/quern.db"), *ran = common_scratch_path("other/ran");
    struct quern_options options = QUERN_OPTIONS_INIT;
    options.cache = cache;
    struct quern_context *first = common_context(&options);
    kinds_dispatch(first, "kinds rows=3", NULL);
    int64_t before = kinds_compiles(first);
    quern_context_destroy(first);

    char *clang = other_compiler(ran);
    options.clang = clang;
    options.mode = "sealed";
    struct quern_context *sealed = common_context(&options);
    ck_assert_int_eq(kinds_report(kinds_dispatch(sealed, "kinds rows=3", NULL)).artifact,
                     QUERN_FROM_DISK);
    quern_context_destroy(sealed);
    ck_assert_int_ne(access(ran, F_OK), 0);

    options.mode = NULL;
    struct quern_context *other = common_context(&options);
    ck_assert_int_eq(kinds_report(kinds_dispatch(other, "kinds rows=3", NULL)).artifact,
                     QUERN_FROM_COMPILER);
    ck_assert_int_eq(kinds_compiles(other), before + 1);
    quern_context_destroy(other);
    ck_assert_int_eq(access(ran, F_OK), 0);
    free(clang), free(ran), free(cache);
}
END_TEST

/* ---- Bases --------------------------------------------------------------------------------- */

/* A bundle of one kernel, and the path of a compiler of another version. */
static char *make_bundle(const char *name)
{
    char *bundle = common_scratch_path(name);
    struct quern_options options = QUERN_OPTIONS_INIT;
    options.cache = bundle;
    struct quern_context *first = common_context(&options);
    kinds_dispatch(first, "kinds rows=3", NULL);
    quern_context_destroy(first);
    return bundle;
}

START_TEST(a_base_serves_a_context_whose_compiler_is_another)
{
    char *bundle = make_bundle("shipped/bundle.qdb"), *ran = common_scratch_path("shipped/ran");
    char *cache = common_scratch_path("shipped/quern.db"), *clang = other_compiler(ran);
    struct quern_options options = QUERN_OPTIONS_INIT;
    options.cache = cache;
    options.base = bundle;
    options.clang = clang;
    for (int run = 0; run < 2; run++) {
        struct quern_context *other = common_context(&options);
        ck_assert_int_eq(kinds_report(kinds_dispatch(other, "kinds rows=3", NULL)).artifact,
                         QUERN_FROM_DISK);
        ck_assert_int_eq(kinds_compiles(other), 0);
        kinds_dispatch(other, "kinds rows=3 order=down", NULL);
        ck_assert_int_eq(kinds_compiles(other), 1); /* what it lacks is made, once */
        quern_context_destroy(other);
        options.cache = ""; /* and then, with nothing of its own, again */
    }
    free(bundle), free(ran), free(cache), free(clang);
}
END_TEST

/* Else its row would say that this compiler's kernel takes the time of another's. */
START_TEST(a_tuning_measures_what_its_own_compiler_makes)
{
    char *bundle = make_bundle("measured/bundle.qdb"), *ran = common_scratch_path("measured/ran");
    char *cache = common_scratch_path("measured/quern.db"), *clang = other_compiler(ran);
    struct quern_options options = QUERN_OPTIONS_INIT;
    struct quern_request request = QUERN_REQUEST_INIT;
    struct quern_tune_options tune = QUERN_TUNE_OPTIONS_INIT;
    struct quern_tune_result result;
    options.cache = cache;
    options.base = bundle;
    options.clang = clang;
    struct quern_context *other = common_context(&options);
    struct quern_spec spec = common_spec(other, "kinds rows=3");
    kinds_dispatch(other, "kinds rows=3", NULL);
    ck_assert_int_eq(kinds_compiles(other), 0);
    request.spec = &spec;
    tune.max_configs = 1; /* the heuristic's, which the base has */
    assert_ok(other, quern_tune(other, &request, &tune, &result));
    ck_assert_int_eq(kinds_compiles(other), 1);
    quern_context_destroy(other);
    free(bundle), free(ran), free(cache), free(clang);
}
END_TEST

START_TEST(a_base_whose_artifact_does_not_load_costs_one_compilation)
{
    char *bundle = make_bundle("broken/bundle.qdb"), *ran = common_scratch_path("broken/ran");
    char *cache = common_scratch_path("broken/quern.db"), *clang = other_compiler(ran);
    struct quern_options options = QUERN_OPTIONS_INIT;
    options.cache = bundle;
    struct quern_context *first = common_context(&options);
    replace_blob(first);
    quern_context_destroy(first);
    options.cache = cache;
    options.base = bundle;
    options.clang = clang;
    for (int run = 0; run < 2; run++) {
        struct quern_context *other = common_context(&options);
        ck_assert_int_eq(kinds_report(kinds_dispatch(other, "kinds rows=3", NULL)).artifact,
                         run ? QUERN_FROM_DISK : QUERN_FROM_COMPILER);
        ck_assert_int_eq(kinds_compiles(other), 1);
        quern_context_destroy(other);
    }
    free(bundle), free(ran), free(cache), free(clang);
}
END_TEST

START_TEST(sealed_an_older_artifact_serves_where_the_newest_does_not_load)
{
    char *bundle = make_bundle("older/bundle.qdb"), *ran = common_scratch_path("older/ran");
    char *clang = other_compiler(ran);
    struct quern_options options = QUERN_OPTIONS_INIT;
    options.cache = bundle;
    options.clang = clang;
    struct quern_context *second = common_context(&options);
    kinds_dispatch(second, "kinds rows=3", NULL);
    replace_blob(second); /* the newest: the other compiler's */
    quern_context_destroy(second);
    options.mode = "sealed";
    for (int run = 0; run < 2; run++) {
        struct quern_context *sealed = common_context(&options);
        ck_assert_int_eq(kinds_report(kinds_dispatch(sealed, "kinds rows=3", NULL)).artifact,
                         QUERN_FROM_DISK);
        quern_context_destroy(sealed);
        options.cache = "";
        options.base = bundle;
    }
    free(bundle), free(ran), free(clang);
}
END_TEST

/* A cache that has a winner and no kernel, as one that an update outdated. */
static char *cache_of_winner(const char *name, const char *text, const char *config)
{
    char *cache = common_scratch_path(name);
    struct quern_options options = QUERN_OPTIONS_INIT;
    options.cache = cache;
    struct quern_context *with = common_context(&options);
    struct quern_spec spec = common_spec(with, text);
    put_winner(with, &spec, "kinds_cpu", config);
    quern_context_destroy(with);
    return cache;
}

/* In a new context over `base`. */
static struct quern_report sealed_report(const char *cache, const char *base, const char *text)
{
    struct quern_options options = QUERN_OPTIONS_INIT;
    options.cache = cache;
    options.base = base;
    options.mode = "sealed";
    struct quern_context *sealed = common_context(&options);
    struct quern_report report = kinds_report(kinds_dispatch(sealed, text, NULL));
    quern_context_destroy(sealed);
    return report;
}

START_TEST(sealed_a_winner_without_a_kernel_gives_way_to_the_next_choice_that_has_one)
{
    char *bundle = cache_of_winner("outdated/bundle.qdb", "kinds rows=3", "tile=16,add.unroll=1");
    char *cache = cache_of_winner("outdated/quern.db", "kinds rows=3", "tile=4,add.unroll=2");
    struct quern_options options = QUERN_OPTIONS_INIT;
    options.cache = bundle;
    struct quern_context *first = common_context(&options);
    kinds_dispatch(first, "kinds rows=3", NULL);
    quern_context_destroy(first);

    struct quern_report report = sealed_report(cache, bundle, "kinds rows=3");
    ck_assert_int_eq(report.config_from, QUERN_CONFIG_TUNED);
    ck_assert_str_eq(report.config, "tile=16,add.unroll=1");
    ck_assert_int_eq(report.artifact, QUERN_FROM_DISK);

    char *plain = make_bundle("outdated/plain.qdb"); /* the heuristic's kernel */
    report = sealed_report(cache, plain, "kinds rows=3");
    ck_assert_int_eq(report.config_from, QUERN_CONFIG_HEURISTIC);

    options.cache = cache; /* and if nobody has one, what the first choice lacks is named */
    options.mode = "sealed";
    struct quern_context *sealed = common_context(&options);
    struct quern_spec spec = common_spec(sealed, "kinds rows=3");
    struct quern_kernel *kernel = NULL;
    assert_refused(sealed, quern_dispatch(sealed, &spec, NULL, &kernel), QUERN_SEALED,
                   "config kinds_cpu tile=4,add.unroll=2");
    quern_context_destroy(sealed);
    free(bundle), free(cache), free(plain);
}
END_TEST

START_TEST(a_row_of_the_cache_that_is_not_legal_hides_no_row_of_a_base)
{
    char *bundle = cache_of_winner("hidden/bundle.qdb", "kinds rows=3", "tile=16,add.unroll=1");
    char *cache = cache_of_winner("hidden/quern.db", "kinds rows=3", "height=3");
    struct quern_options options = QUERN_OPTIONS_INIT;
    options.cache = cache;
    options.base = bundle;
    struct quern_context *with = common_context(&options);
    struct quern_report report = kinds_report(kinds_dispatch(with, "kinds rows=3", NULL));
    ck_assert_int_eq(report.config_from, QUERN_CONFIG_TUNED);
    ck_assert_str_eq(report.config, "tile=16,add.unroll=1");
    quern_context_destroy(with);
    free(bundle), free(cache);
}
END_TEST

START_TEST(sealed_a_miss_names_the_cache_and_its_bases)
{
    char *bundle = make_bundle("named/bundle.qdb"), *cache = common_scratch_path("named/own.db");
    struct quern_options options = QUERN_OPTIONS_INIT;
    struct quern_kernel *kernel = NULL;
    char words[3][4200];
    options.mode = "sealed";
    snprintf(words[0], sizeof(words[0]), "is not in cache=%s nor in base=%s", cache, bundle);
    snprintf(words[1], sizeof(words[1]), "is not in base=%s", bundle);
    snprintf(words[2], sizeof(words[2]), "is not in the cache (in memory)");
    for (int i = 0; i < 3; i++) {
        options.cache = i ? "" : cache;
        options.base = i < 2 ? bundle : "";
        struct quern_context *sealed = common_context(&options);
        struct quern_spec missing = common_spec(sealed, "kinds rows=30 order=down");
        assert_refused(sealed, quern_dispatch(sealed, &missing, NULL, &kernel), QUERN_SEALED,
                       words[i]);
        quern_context_destroy(sealed);
    }
    free(bundle), free(cache);
}
END_TEST

START_TEST(a_mode_that_does_not_exist_is_refused)
{
    struct quern_options options = QUERN_OPTIONS_INIT;
    struct quern_context *bad;
    options.cache = "";
    options.mode = "seeled";
    assert_refused(bad, quern_context_create(&options, &bad), QUERN_INVALID, "mode=seeled");
    quern_context_destroy(bad);
}
END_TEST

START_TEST(a_refused_dispatch_is_tried_again_and_may_then_succeed)
{
    char *cache = common_scratch_path("later/quern.db");
    struct quern_context *bare = context_without_compiler(cache, NULL);
    struct quern_spec spec = common_spec(bare, "kinds rows=6");
    struct quern_kernel *kernel;
    assert_refused(bare, quern_dispatch(bare, &spec, NULL, &kernel), QUERN_NO_COMPILER, "clang=");
    struct quern_options options = QUERN_OPTIONS_INIT;
    options.cache = cache;
    struct quern_context *other = common_context(&options);
    kinds_dispatch(other, "kinds rows=6", NULL);
    quern_context_destroy(other);
    assert_ok(bare, quern_dispatch(bare, &spec, NULL, &kernel));
    quern_context_destroy(bare);
    free(cache);
}
END_TEST

static Suite *suite_make(void)
{
    Suite *suite = suite_create("reuse");
    TCase *tcase = tcase_create("reuse");
    tcase_set_timeout(tcase, 60);
    tcase_add_checked_fixture(tcase, setup, teardown);
    tcase_add_test(tcase, a_new_winner_is_used_by_every_thread_at_its_next_call);
    tcase_add_test(tcase, a_replaced_kernel_stays_usable);
    tcase_add_test(tcase, a_winner_stored_while_a_kernel_is_built_is_not_missed);
    tcase_add_test(tcase, a_winner_serves_neighbours_and_an_illegal_row_serves_nobody);
    tcase_add_test(tcase, a_winner_that_taught_nothing_or_lies_far_away_serves_no_neighbour);
    tcase_add_test(tcase, a_hit_needs_no_compiler_and_a_miss_names_what_is_missing);
    tcase_add_test(tcase,
                   another_compiler_is_another_artifact_except_to_a_sealed_context_which_runs_none);
    tcase_add_test(tcase, a_stored_artifact_that_does_not_load_is_made_again);
    tcase_add_test(tcase, a_base_serves_a_context_whose_compiler_is_another);
    tcase_add_test(tcase, a_tuning_measures_what_its_own_compiler_makes);
    tcase_add_test(tcase, a_base_whose_artifact_does_not_load_costs_one_compilation);
    tcase_add_test(tcase, sealed_an_older_artifact_serves_where_the_newest_does_not_load);
    tcase_add_test(tcase,
                   sealed_a_winner_without_a_kernel_gives_way_to_the_next_choice_that_has_one);
    tcase_add_test(tcase, a_row_of_the_cache_that_is_not_legal_hides_no_row_of_a_base);
    tcase_add_test(tcase, sealed_a_miss_names_the_cache_and_its_bases);
    tcase_add_test(tcase, a_mode_that_does_not_exist_is_refused);
    tcase_add_test(tcase, a_refused_dispatch_is_tried_again_and_may_then_succeed);
    suite_add_tcase(suite, tcase);
    return suite;
}

int main(void)
{
    return common_main(suite_make());
}
