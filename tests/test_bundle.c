/* Bundles as files: exported, imported and read as bases while disks fill up, processes die and
 * bytes rot. jit/bundle.c, cache/merge.c, cache/artifact.c. */
#include "tests/store_fixture.h"

#include <dirent.h>
#include <pthread.h>
#include <quern/cache.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cache/store.h"

static char bundle[160];

static struct quern_context *open_context(const char *cache, const char *base)
{
    struct quern_options options = QUERN_OPTIONS_INIT;
    struct quern_context *ctx = NULL;

    options.cache = cache;
    options.base = base ? base : "";
    options.device = "cpu";
    options.log_level = QUERN_LOG_OFF;
    int status = quern_context_create(&options, &ctx);
    ck_assert_msg(!status, "%s", quern_errmsg(ctx));
    return ctx;
}

static void assert_says(struct quern_context *ctx, int got, int status, const char *words)
{
    ck_assert_int_eq(got, status);
    ck_assert_msg(strstr(quern_errmsg(ctx), words) != NULL, "\"%s\" does not say \"%s\"",
                  quern_errmsg(ctx), words);
}

/* Files of the folder whose name begins with `start`. */
static int count_files(const char *folder, const char *start)
{
    DIR *dir = opendir(folder);
    struct dirent *entry;
    int count = 0;

    ck_assert_ptr_nonnull(dir);
    while ((entry = readdir(dir)) != NULL)
        count += !strncmp(entry->d_name, start, strlen(start));
    closedir(dir);
    return count;
}

/* The folder's bundle.qdb: a closed store of `rows` artifacts, each with a row of the manifest. */
static void make_bundle(int rows, size_t blob_bytes)
{
    snprintf(bundle, sizeof bundle, "%s/bundle.qdb", qt_folder);
    struct qn_store *store = qt_open_logged(bundle, NULL);
    for (int i = 0; i < rows; i++) {
        struct qn_artifact artifact = qt_draw_artifact(blob_bytes);
        struct qn_manifest row = { .target = artifact.target, .model = "m", .spec = artifact.text };
        qn_key_hex(artifact.text, strlen(artifact.text), row.key);
        ck_assert_int_eq(qn_artifact_put(store, &artifact), QN_STORE_OK);
        ck_assert_int_eq(qn_manifest_put(store, &row), QN_STORE_OK);
        qn_artifact_fini(&artifact);
    }
    qn_store_close(store);
}

static int count_row(void *user, const struct quern_cache_manifest_row *row)
{
    (void)row;
    ++*(int *)user;
    return 0;
}

static int count_manifest(struct quern_context *ctx)
{
    int rows = 0;

    ck_assert_int_eq(quern_cache_manifest(ctx, count_row, &rows), QUERN_OK);
    return rows;
}

/* ---- Export ---- */

START_TEST(an_export_is_one_whole_file_of_its_name)
{
    struct quern_cache_merged merged;
    char out[200];

    make_bundle(5, 3000);
    snprintf(out, sizeof out, "%s/out.qdb", qt_folder);
    struct quern_context *ctx = open_context(bundle, NULL);
    ck_assert_int_eq(quern_cache_export(ctx, out, NULL, &merged), QUERN_OK);
    ck_assert_int_eq(merged.artifacts, 5);
    ck_assert_int_eq(merged.manifest, 5);
    ck_assert_int_eq(count_files(qt_folder, "out.qdb"), 1);
    assert_says(ctx, quern_cache_export(ctx, out, NULL, &merged), QUERN_INVALID,
                "is there already");
    assert_says(ctx, quern_cache_export(ctx, bundle, NULL, &merged), QUERN_INVALID, "output=");
    const struct quern_cache_selection none = { .model = "other" };
    snprintf(out, sizeof out, "%s/none.qdb", qt_folder);
    assert_says(ctx, quern_cache_export(ctx, out, &none, &merged), QUERN_MISS, "nothing");
    snprintf(out, sizeof out, "%s/no/out.qdb", qt_folder);
    assert_says(ctx, quern_cache_export(ctx, out, NULL, &merged), QUERN_STORE, "output=");
    ck_assert_int_eq(count_files(qt_folder, "none.qdb"), 0);
    quern_context_destroy(ctx);
}
END_TEST

static int export_it(int number)
{
    struct quern_cache_merged merged;
    struct quern_context *ctx = open_context(bundle, NULL);
    char out[200];

    (void)number;
    snprintf(out, sizeof out, "%s/out.qdb", qt_folder);
    int status = quern_cache_export(ctx, out, NULL, &merged);
    quern_context_destroy(ctx);
    return status != QUERN_OK;
}

START_TEST(an_export_that_is_killed_leaves_nothing_under_its_name)
{
    struct quern_cache_merged merged;
    char out[200];

    make_bundle(60, 3000);
    snprintf(out, sizeof out, "%s/out.qdb", qt_folder);
    for (int round = 0; round < 8; round++) {
        pid_t pid = qt_spawn(export_it, round);
        qt_sleep_us((long)(qt_draw() % 30000));
        kill(pid, SIGKILL);
        qt_reap(pid);
        if (!qt_exists(out))
            continue;
        struct quern_context *whole = open_context("", out);
        ck_assert_int_eq(count_manifest(whole), 60);
        quern_context_destroy(whole);
        unlink(out);
    }
    struct quern_context *ctx = open_context(bundle, NULL);
    ck_assert_int_eq(quern_cache_export(ctx, out, NULL, &merged), QUERN_OK);
    ck_assert_int_eq(merged.artifacts, 60);
    quern_context_destroy(ctx);
}
END_TEST

START_TEST(eight_exports_to_one_name_give_one_whole_bundle)
{
    pid_t pids[QT_PROCESSES];
    int done = 0;
    char out[200];

    make_bundle(20, 3000);
    snprintf(out, sizeof out, "%s/out.qdb", qt_folder);
    for (int i = 0; i < QT_PROCESSES; i++)
        pids[i] = qt_spawn(export_it, i);
    for (int i = 0; i < QT_PROCESSES; i++)
        done += qt_reap(pids[i]) == 0;
    ck_assert_int_eq(done, 1);
    ck_assert_int_eq(count_files(qt_folder, "out.qdb"), 1);
    struct quern_context *ctx = open_context("", out);
    ck_assert_int_eq(count_manifest(ctx), 20);
    quern_context_destroy(ctx);
}
END_TEST

/* The -wal and the file need room each: with less there is an error, with none a bundle. */
START_TEST(an_export_on_a_disk_that_fills_up_fails_and_leaves_nothing)
{
    struct quern_cache_merged merged;
    char folder[160], out[200], room[40];

    make_bundle(40, 9000);
    snprintf(folder, sizeof folder, "%s/small", qt_folder);
    snprintf(out, sizeof out, "%s/out.qdb", folder);
    ck_assert_int_eq(mkdir(folder, 0700), 0);
    if (unshare(CLONE_NEWNS) || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) ||
        mount("tmpfs", folder, "tmpfs", 0, "size=64k")) {
        printf("passed over: no small disk can be mounted here: %m\n");
        return;
    }
    struct quern_context *ctx = open_context(bundle, NULL);
    for (int kib = 256, is_done = 0; kib <= 4096 && !is_done; kib += 128) {
        snprintf(room, sizeof room, "size=%dk", kib);
        ck_assert_int_eq(mount("tmpfs", folder, "tmpfs", MS_REMOUNT, room), 0);
        is_done = quern_cache_export(ctx, out, NULL, &merged) == QUERN_OK;
        if (is_done) {
            struct quern_context *whole = open_context("", out);
            ck_assert_int_eq(count_manifest(whole), 40);
            quern_context_destroy(whole);
        }
        ck_assert_int_eq(count_files(folder, "out.qdb"), is_done);
        ck_assert(is_done || kib < 4096);
    }
    quern_context_destroy(ctx);
    umount(folder);
}
END_TEST

/* ---- Import ---- */

START_TEST(an_import_replaces_damaged_rows_and_promises_no_artifact_that_is_damaged)
{
    struct quern_cache_merged merged;
    int64_t checked, damaged;

    make_bundle(4, 500);
    struct quern_context *ctx = open_context(qt_path, NULL);
    ck_assert_int_eq(quern_cache_import(ctx, bundle, &merged), QUERN_OK);
    quern_context_destroy(ctx);
    qt_change("UPDATE artifact SET blob = zeroblob(length(blob)) WHERE id <= 2");
    ctx = open_context(qt_path, NULL);
    ck_assert_int_eq(quern_cache_import(ctx, bundle, &merged), QUERN_OK);
    ck_assert_int_eq(merged.artifacts, 2);
    ck_assert_int_eq(merged.artifacts_there, 2);
    ck_assert_int_eq(quern_cache_verify(ctx, &checked, &damaged), QUERN_OK);
    ck_assert_int_eq(checked, 4);
    ck_assert_int_eq(damaged, 0);
    quern_context_destroy(ctx);

    unlink(qt_path);
    qt_change_file(bundle, "UPDATE artifact SET blob = zeroblob(length(blob)) WHERE id = 1; "
                           "DELETE FROM artifact WHERE id = 2");
    ctx = open_context(qt_path, NULL);
    ck_assert_int_eq(quern_cache_import(ctx, bundle, &merged), QUERN_OK);
    ck_assert_int_eq(merged.artifacts, 2);
    ck_assert_int_eq(merged.damaged, 1);
    ck_assert_int_eq(merged.manifest, 2);
    ck_assert_int_eq(count_manifest(ctx), 2);
    quern_context_destroy(ctx);
}
END_TEST

START_TEST(the_cache_itself_is_no_bundle_for_it_and_no_base)
{
    struct quern_options options = QUERN_OPTIONS_INIT;
    struct quern_cache_merged merged;
    struct quern_context *ctx, *bad = NULL;
    char link_name[200];

    make_bundle(3, 500);
    snprintf(link_name, sizeof link_name, "%s/hard.qdb", qt_folder);
    ck_assert_int_eq(link(bundle, link_name), 0);
    ctx = open_context(bundle, NULL);
    assert_says(ctx, quern_cache_import(ctx, bundle, &merged), QUERN_INVALID,
                "is the cache itself");
    assert_says(ctx, quern_cache_import(ctx, link_name, &merged), QUERN_INVALID,
                "is the cache itself");
    options.cache = bundle;
    options.base = link_name;
    options.device = "cpu";
    assert_says(bad, quern_context_create(&options, &bad), QUERN_STORE, "base=");
    assert_says(bad, QUERN_STORE, QUERN_STORE, "is the cache itself");
    quern_context_destroy(bad);
    quern_context_destroy(ctx);
}
END_TEST

START_TEST(a_bundle_that_is_being_written_is_not_imported)
{
    struct quern_cache_merged merged;

    make_bundle(1, 500);
    struct qn_store *writer = qt_open_logged(bundle, NULL);
    struct qn_artifact artifact = qt_draw_artifact(500);
    ck_assert_int_eq(qn_artifact_put(writer, &artifact), QN_STORE_OK);
    struct quern_context *ctx = open_context(qt_path, NULL);
    assert_says(ctx, quern_cache_import(ctx, bundle, &merged), QUERN_STORE, "is being written");
    qn_store_close(writer);
    ck_assert_int_eq(quern_cache_import(ctx, bundle, &merged), QUERN_OK);
    ck_assert_int_eq(merged.artifacts, 2);
    quern_context_destroy(ctx);
    qn_artifact_fini(&artifact);
}
END_TEST

/* ---- Bases ---- */

START_TEST(verify_counts_the_rows_of_bases_and_leaves_them)
{
    int64_t checked, damaged;

    make_bundle(4, 500);
    qt_change_file(bundle, "UPDATE artifact SET blob = zeroblob(length(blob)) WHERE id <= 2");
    struct quern_context *ctx = open_context("", bundle);
    for (int i = 0; i < 2; i++) {
        ck_assert_int_eq(quern_cache_verify(ctx, &checked, &damaged), QUERN_OK);
        ck_assert_int_eq(checked, 4);
        ck_assert_int_eq(damaged, 2);
    }
    quern_context_destroy(ctx);
}
END_TEST

START_TEST(a_base_may_be_named_by_a_link_and_an_empty_name_is_none)
{
    char list[600], name[200];

    make_bundle(2, 500);
    snprintf(name, sizeof name, "%s/latest.qdb", qt_folder);
    ck_assert_int_eq(symlink("bundle.qdb", name), 0);
    snprintf(list, sizeof list, "::%s:::%s:", name, bundle);
    struct quern_context *ctx = open_context("", list);
    ck_assert_int_eq(count_manifest(ctx), 4);
    quern_context_destroy(ctx);
}
END_TEST

/* Four threads over a hundred files: the last one has the row. */
struct searcher {
    pthread_t thread;
    struct qn_store *store;
    const struct qn_artifact *wanted;
    int found;
};

static void *search(void *user)
{
    struct searcher *searcher = user;

    for (int i = 0; i < 5; i++) {
        struct qn_artifact found;
        if (qn_artifact_find(searcher->store, searcher->wanted->text, searcher->wanted->compiler,
                             NULL, NULL, &found) != QN_STORE_OK)
            continue;
        searcher->found++;
        qn_artifact_fini(&found);
    }
    return NULL;
}

START_TEST(threads_find_a_row_in_the_last_of_a_hundred_bases)
{
    char *list = malloc(100 * 100), error[512] = "", *end = list;
    struct qn_artifact wanted = qt_draw_artifact(500);
    struct searcher searchers[4];
    struct qn_store *store = NULL;

    for (int i = 0; i < 100; i++) {
        char *name = end;
        end += sprintf(end, "%s/base%d.qdb", qt_folder, i);
        struct qn_store *base = qt_open_logged(name, NULL);
        if (i == 99)
            ck_assert_int_eq(qn_artifact_put(base, &wanted), QN_STORE_OK);
        qn_store_close(base);
        *end++ = ':';
    }
    end[-1] = 0;
    const struct qn_store_options options = { .path = qt_path, .base = list };
    ck_assert_msg(!qn_store_open(&options, &store, error, sizeof error), "%s", error);
    for (int i = 0; i < 4; i++) {
        searchers[i] = (struct searcher){ .store = store, .wanted = &wanted };
        ck_assert_int_eq(pthread_create(&searchers[i].thread, NULL, search, &searchers[i]), 0);
    }
    for (int i = 0; i < 4; i++) {
        pthread_join(searchers[i].thread, NULL);
        ck_assert_int_eq(searchers[i].found, 5);
    }
    qn_store_close(store);
    qn_artifact_fini(&wanted);
    free(list);
}
END_TEST

static int visit_nothing(void *user, const struct qn_artifact *artifact)
{
    (void)user, (void)artifact;
    return 0;
}

/* Reads all that a base has; what is found is what was stored. */
static void read_base(const struct qn_artifact *kept, int count)
{
    const struct qn_store_options options = { .path = "", .base = bundle };
    static const struct qn_selection all = { NULL, NULL, NULL };
    struct qn_store *store, *to = qt_open_logged("", NULL);
    struct qn_merged merged;
    int64_t checked, damaged;
    char error[512];

    if (qn_store_open(&options, &store, error, sizeof error)) {
        ck_assert_msg(!strncmp(error, "base=", 5), "%s", error);
        qn_store_close(to);
        return;
    }
    for (int i = 0; i < count; i++) {
        struct qn_artifact found;
        if (qn_artifact_find(store, kept[i].text, NULL, NULL, NULL, &found) != QN_STORE_OK)
            continue;
        ck_assert_uint_eq(found.blob_bytes, kept[i].blob_bytes);
        ck_assert_mem_eq(found.blob, kept[i].blob, found.blob_bytes);
        qn_artifact_fini(&found);
    }
    qn_artifact_each(qn_store_base(store), "", visit_nothing, NULL);
    qn_store_merge(to, qn_store_base(store), &all, &merged);
    qn_store_verify(qn_store_base(store), &checked, &damaged);
    qn_store_close(store);
    qn_store_close(to);
}

enum { KEPT = 12, ROUNDS = 60 };

START_TEST(a_base_of_rotten_bytes_is_refused_or_gives_only_what_was_stored)
{
    struct qn_artifact kept[KEPT];
    size_t size;

    snprintf(bundle, sizeof bundle, "%s/bundle.qdb", qt_folder);
    struct qn_store *store = qt_open_logged(bundle, NULL);
    for (int i = 0; i < KEPT; i++) {
        kept[i] = qt_draw_artifact(200 + (size_t)i * 700);
        memset(kept[i].blob, i, kept[i].blob_bytes / 2); /* half of it packs */
        ck_assert_int_eq(qn_artifact_put(store, &kept[i]), QN_STORE_OK);
    }
    qn_store_close(store);
    char *whole = qt_read_whole(bundle, &size), *rotten = malloc(size);
    for (int round = 0; round < ROUNDS; round++) {
        size_t length = round % 3 ? size : qt_draw() % size;
        memcpy(rotten, whole, size);
        for (int i = 0; round % 3 && i < 1 << (round % 8); i++)
            rotten[100 + qt_draw() % (size - 100)] = (char)qt_draw();
        unlink(bundle);
        qt_write_whole(bundle, rotten, length);
        read_base(kept, KEPT);
    }
    free(whole);
    free(rotten);
    for (int i = 0; i < KEPT; i++)
        qn_artifact_fini(&kept[i]);
}
END_TEST

START_TEST(lengths_that_lie_about_packed_columns_are_damage_and_no_memory)
{
    static const char *const lies[] = {
        "blob_bytes = 1 << 40",        "blob_bytes = -1",      "blob_bytes = 0",
        "blob_bytes = blob_bytes + 1", "blob_bytes = 1 << 29", "blob_bytes = 9223372036854775807",
    };
    struct qn_artifact artifact = qt_draw_artifact(60000), found;
    char sql[200];

    memset(artifact.blob, 7, artifact.blob_bytes);
    for (size_t i = 0; i < sizeof lies / sizeof *lies; i++) {
        struct qn_store *store = qt_open_store();
        ck_assert_int_eq(qn_artifact_put(store, &artifact), QN_STORE_OK);
        qn_store_close(store);
        snprintf(sql, sizeof sql, "UPDATE artifact SET %s, source_bytes = %d", lies[i],
                 i % 2 ? 1 << 30 : -5);
        qt_change(sql);
        store = qt_open_store();
        ck_assert_int_eq(qn_artifact_find(store, artifact.text, NULL, NULL, NULL, &found),
                         QN_STORE_MISS);
        ck_assert_int_eq(qt_counters_of(store).damaged, 1);
        qn_store_close(store);
    }
    qn_artifact_fini(&artifact);
}
END_TEST

static void add(TCase *tcase)
{
    tcase_add_test(tcase, an_export_is_one_whole_file_of_its_name);
    tcase_add_test(tcase, an_export_that_is_killed_leaves_nothing_under_its_name);
    tcase_add_test(tcase, eight_exports_to_one_name_give_one_whole_bundle);
    tcase_add_test(tcase, an_export_on_a_disk_that_fills_up_fails_and_leaves_nothing);
    tcase_add_test(tcase, an_import_replaces_damaged_rows_and_promises_no_artifact_that_is_damaged);
    tcase_add_test(tcase, the_cache_itself_is_no_bundle_for_it_and_no_base);
    tcase_add_test(tcase, a_bundle_that_is_being_written_is_not_imported);
    tcase_add_test(tcase, verify_counts_the_rows_of_bases_and_leaves_them);
    tcase_add_test(tcase, a_base_may_be_named_by_a_link_and_an_empty_name_is_none);
    tcase_add_test(tcase, threads_find_a_row_in_the_last_of_a_hundred_bases);
    tcase_add_test(tcase, a_base_of_rotten_bytes_is_refused_or_gives_only_what_was_stored);
    tcase_add_test(tcase, lengths_that_lie_about_packed_columns_are_damage_and_no_memory);
}

int main(void)
{
    static const struct qt_group groups[] = { { "bundle", add } };

    return qt_run_suite("bundle", groups, 1);
}
