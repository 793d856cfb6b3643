/* Leases: one holder at a time among threads and processes, and none that outlives its process. */
#include "tests/store_fixture.h"

#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#define LONG_S 30.0 /* ends a test that would hang; no case comes near it */
#define ROUNDS 15

static double now_s(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static struct qn_lease *acquire(struct qn_store *store, const char *name)
{
    struct qn_lease *lease = NULL;

    ck_assert_int_eq(qn_lease_acquire(store, name, LONG_S, LONG_S, &lease), QN_STORE_OK);
    ck_assert_ptr_nonnull(lease);
    return lease;
}

/* Somebody has it: timeout_s pass, and nothing is handed back. */
static void assert_held(struct qn_store *store, const char *name, double timeout_s, double expiry_s)
{
    struct qn_lease *lease = (struct qn_lease *)store;
    double start_s = now_s();

    ck_assert_int_eq(qn_lease_acquire(store, name, timeout_s, expiry_s, &lease), QN_STORE_MISS);
    ck_assert_ptr_eq(lease, store);
    ck_assert_double_ge(now_s() - start_s, timeout_s);
    ck_assert_double_lt(now_s() - start_s, timeout_s + 5);
}

START_TEST(a_lease_is_held_until_it_is_released)
{
    const char *where[] = { qt_path, "" };

    for (int w = 0; w < 2; w++) {
        struct qn_store *store = qt_open_logged(where[w], NULL);
        struct qn_lease *lease = acquire(store, "compile a");
        assert_held(store, "compile a", 0.15, 0.01); /* alive: its heartbeat does not matter */
        assert_held(store, "compile a", 0, LONG_S);
        qn_lease_release(acquire(store, "compile b"));
        qn_lease_release(lease);
        qn_lease_release(acquire(store, "compile a"));
        qn_lease_release(NULL);
        ck_assert_int_eq(qt_counters_of(store).errors, 0);
        qn_store_close(store);
    }
}
END_TEST

/* ---- One at a time ---- */

/* Fails if somebody else is inside. */
static int be_alone(void)
{
    int fd = open(qt_beside(".inside"), O_CREAT | O_EXCL | O_WRONLY, 0600);

    if (fd < 0) {
        return 1;
    }
    qt_sleep_us((long)(qt_draw() % 500));
    close(fd);
    return unlink(qt_beside(".inside"));
}

static int enter_often(struct qn_store *store)
{
    for (int i = 0; i < ROUNDS; i++) {
        struct qn_lease *lease = NULL;
        if (qn_lease_acquire(store, "door", LONG_S, LONG_S, &lease)) {
            return 2;
        }
        int failed = be_alone();
        qn_lease_release(lease);
        if (failed) {
            return 3;
        }
    }
    return 0;
}

static int enter_in_process(int number)
{
    struct qn_store *store = qt_open_store();
    int status = enter_often(store);

    (void)number;
    qn_store_close(store);
    return status;
}

START_TEST(eight_processes_hold_it_one_at_a_time)
{
    qt_run_processes(enter_in_process);
}
END_TEST

static void *enter_in_thread(void *store)
{
    return enter_often(store) ? store : NULL;
}

START_TEST(eight_threads_hold_it_one_at_a_time_on_disk_and_in_memory)
{
    const char *where[] = { qt_path, "" };

    for (int w = 0; w < 2; w++) {
        struct qn_store *store = qt_open_logged(where[w], NULL);
        pthread_t threads[QT_PROCESSES];
        for (int i = 0; i < QT_PROCESSES; i++) {
            ck_assert_int_eq(pthread_create(&threads[i], NULL, enter_in_thread, store), 0);
        }
        for (int i = 0; i < QT_PROCESSES; i++) {
            void *failed;
            pthread_join(threads[i], &failed);
            ck_assert_ptr_null(failed);
        }
        qn_store_close(store);
    }
}
END_TEST

/* ---- Holders that are gone ---- */

/* Says on the pipe that it holds the lease, then waits for its end. */
static int pipe_ends[2];

static int hold(int number)
{
    struct qn_store *store = qt_open_store();

    (void)number;
    acquire(store, "work");
    if (write(pipe_ends[1], "h", 1) != 1) {
        return 1;
    }
    pause();
    return 0;
}

static int hold_and_exit(int number)
{
    (void)number;
    acquire(qt_open_store(), "work");
    return 0;
}

static pid_t spawn_holder(void)
{
    char byte;

    ck_assert_int_eq(pipe(pipe_ends), 0);
    pid_t pid = qt_spawn(hold, 0);
    ck_assert_int_eq(read(pipe_ends[0], &byte, 1), 1);
    return pid;
}

START_TEST(the_lease_of_a_killed_process_is_taken_at_once_even_from_a_zombie)
{
    pid_t pid = spawn_holder();
    struct qn_store *store = qt_open_store();

    assert_held(store, "work", 0.1, LONG_S);
    ck_assert_int_eq(kill(pid, SIGKILL), 0);
    double start_s = now_s();
    struct qn_lease *lease = acquire(store, "work"); /* nobody has waited for the child */
    ck_assert_double_lt(now_s() - start_s, 5);
    ck_assert_int_eq(qt_reap(pid), SIGKILL);
    assert_held(store, "work", 0, LONG_S);
    qn_lease_release(lease);
    qn_store_close(store);
}
END_TEST

START_TEST(a_waiter_takes_over_when_the_holder_is_killed_under_it)
{
    pid_t pid = spawn_holder();
    pid_t killer = fork();

    if (!killer) {
        qt_sleep_us(150000);
        _exit(kill(pid, SIGKILL));
    }
    struct qn_store *store = qt_open_store();
    double start_s = now_s();
    struct qn_lease *lease = acquire(store, "work");
    ck_assert_double_lt(now_s() - start_s, 5);
    ck_assert_int_eq(qt_reap(killer), 0);
    ck_assert_int_eq(qt_reap(pid), SIGKILL);
    qn_lease_release(lease);
    qn_store_close(store);
}
END_TEST

START_TEST(a_stopped_process_keeps_its_lease)
{
    pid_t pid = spawn_holder();
    struct qn_store *store = qt_open_store();

    ck_assert_int_eq(kill(pid, SIGSTOP), 0);
    assert_held(store, "work", 0.2, 0.01);
    ck_assert_int_eq(kill(pid, SIGKILL), 0);
    qn_lease_release(acquire(store, "work"));
    qt_reap(pid);
    qn_store_close(store);
}
END_TEST

START_TEST(a_process_that_ended_without_releasing_holds_nothing)
{
    ck_assert_int_eq(qt_reap(qt_spawn(hold_and_exit, 0)), 0);
    struct qn_store *store = qt_open_store();
    double start_s = now_s();
    qn_lease_release(acquire(store, "work"));
    ck_assert_double_lt(now_s() - start_s, 5);
    qn_store_close(store);
}
END_TEST

START_TEST(a_pid_in_use_again_is_told_by_its_start_time)
{
    struct qn_store *store = qt_open_store();
    struct qn_lease *lease = acquire(store, "work");

    assert_held(store, "work", 0.05, LONG_S);
    qt_change("UPDATE lease SET start_time = start_time - 1"); /* alive, and another */
    qn_lease_release(acquire(store, "work"));
    qn_lease_release(lease);
    qn_store_close(store);
}
END_TEST

/* ---- Holders that cannot be looked at ---- */

START_TEST(a_holder_elsewhere_is_believed_while_its_heartbeat_is_young)
{
    static const char *const elsewhere[] = {
        "UPDATE lease SET boot_id = 'of another machine'",
        "UPDATE lease SET pid_namespace = pid_namespace + 1",
        "UPDATE lease SET start_time = 0",
    };

    for (int i = 0; i < 3; i++) {
        struct qn_store *store = qt_open_store();
        struct qn_lease *lease = acquire(store, "work");
        qt_change(elsewhere[i]);
        assert_held(store, "work", 0.05, LONG_S);
        qt_change("UPDATE lease SET heartbeat = heartbeat - 100");
        assert_held(store, "work", 0, 1000);
        qn_lease_release(acquire(store, "work"));
        qn_lease_release(lease);
        qn_store_close(store);
    }
}
END_TEST

START_TEST(a_heartbeat_from_the_future_does_not_hold_for_ever)
{
    struct qn_store *store = qt_open_store();
    struct qn_lease *lease = acquire(store, "work");

    qt_change("UPDATE lease SET boot_id = '', heartbeat = heartbeat + 1e6");
    qn_lease_release(acquire(store, "work"));
    qn_lease_release(lease);
    qn_store_close(store);
}
END_TEST

START_TEST(a_beat_keeps_a_lease_that_would_expire)
{
    struct qn_store *store = qt_open_store();
    struct qn_lease *lease = NULL;

    ck_assert_int_eq(qn_lease_acquire(store, "work", LONG_S, 1e-3, &lease), QN_STORE_OK);
    qt_change("UPDATE lease SET boot_id = '', heartbeat = heartbeat - 1e6");
    qt_sleep_us(2000);
    qn_lease_beat(lease);
    assert_held(store, "work", 0.05, LONG_S);
    qn_lease_release(lease);
    qn_lease_release(acquire(store, "work"));
    qn_store_close(store);
}
END_TEST

START_TEST(beats_in_quick_succession_write_once)
{
    struct qn_store *store = qt_open_store();
    struct qn_lease *lease = acquire(store, "work"); /* expires after LONG_S: it is fresh */

    qt_change("UPDATE lease SET boot_id = '', heartbeat = heartbeat - 1e6");
    qn_lease_beat(lease);
    qn_lease_release(acquire(store, "work"));
    qn_lease_release(lease);
    qn_store_close(store);
}
END_TEST

START_TEST(a_holder_that_was_replaced_leaves_its_successors_lease_alone)
{
    struct qn_store *store = qt_open_store();
    struct qn_lease *lease = NULL;

    ck_assert_int_eq(qn_lease_acquire(store, "work", LONG_S, 1e-3, &lease), QN_STORE_OK);
    qt_change("UPDATE lease SET boot_id = '', heartbeat = heartbeat - 100");
    struct qn_lease *successor = acquire(store, "work");
    qt_change("UPDATE lease SET boot_id = '', heartbeat = heartbeat - 100");
    qt_sleep_us(2000);
    qn_lease_beat(lease); /* would make the successor's heartbeat young */
    qn_lease_release(lease);
    assert_held(store, "work", 0, 1000); /* was not released */
    qn_lease_release(acquire(store, "work"));
    qn_lease_release(successor);
    qn_store_close(store);
}
END_TEST

/* ---- Full disks ---- */

static void limit_files(rlim_t bytes)
{
    struct rlimit limit;

    signal(SIGXFSZ, SIG_IGN);
    ck_assert_int_eq(getrlimit(RLIMIT_FSIZE, &limit), 0);
    limit.rlim_cur = bytes;
    ck_assert_int_eq(setrlimit(RLIMIT_FSIZE, &limit), 0);
}

/* Nobody can store a result: a waiter does its work long before the holder ends. */
static int is_let_go(struct qn_store *store)
{
    double start_s = now_s();
    struct qn_lease *lease;

    return qn_lease_acquire(store, "work", LONG_S, LONG_S, &lease) == QN_STORE_MISS &&
           now_s() - start_s < LONG_S / 2;
}

START_TEST(a_lease_that_a_full_disk_keeps_makes_its_own_process_wait_for_nothing)
{
    struct qn_store *store = qt_open_store();
    struct qn_artifact artifact = qt_draw_artifact(60000);
    struct qn_lease *lease = acquire(store, "work");

    limit_files(3000);
    ck_assert_int_eq(qn_artifact_put(store, &artifact), QN_STORE_MISS);
    qn_lease_release(lease);
    for (int i = 0; i < 3; i++)
        ck_assert(is_let_go(store));
    limit_files(RLIM_INFINITY);
    qn_lease_release(acquire(store, "other")); /* pays what is owed */
    qn_lease_release(acquire(store, "work"));
    ck_assert_int_eq(qn_artifact_put(store, &artifact), QN_STORE_OK);

    lease = acquire(store, "work");
    limit_files(3000);
    qn_lease_release(lease); /* owed to the end, and freed */
    qn_store_close(store);
    limit_files(RLIM_INFINITY);
    qn_artifact_fini(&artifact);
}
END_TEST

static int wait_on_a_full_disk(int number)
{
    struct qn_store *store = qt_open_store();

    (void)number;
    while (!qt_exists(qt_beside(".held")))
        qt_sleep_us(1000);
    limit_files(3000);
    int is_done = is_let_go(store);
    qn_store_close(store);
    return !is_done;
}

START_TEST(a_waiter_that_cannot_write_does_its_work_at_once)
{
    qn_store_close(qt_open_store());
    pid_t pid = qt_spawn(wait_on_a_full_disk, 0);
    struct qn_store *store = qt_open_store();
    struct qn_lease *lease = acquire(store, "work");

    qt_write_whole(qt_beside(".held"), "", 0);
    ck_assert_int_eq(qt_reap(pid), 0);
    qn_lease_release(lease);
    qn_store_close(store);
}
END_TEST

static void add_leases(TCase *tcase)
{
    tcase_add_test(tcase, a_lease_is_held_until_it_is_released);
    tcase_add_test(tcase, eight_processes_hold_it_one_at_a_time);
    tcase_add_test(tcase, eight_threads_hold_it_one_at_a_time_on_disk_and_in_memory);
    tcase_add_test(tcase, the_lease_of_a_killed_process_is_taken_at_once_even_from_a_zombie);
    tcase_add_test(tcase, a_waiter_takes_over_when_the_holder_is_killed_under_it);
    tcase_add_test(tcase, a_stopped_process_keeps_its_lease);
    tcase_add_test(tcase, a_process_that_ended_without_releasing_holds_nothing);
    tcase_add_test(tcase, a_pid_in_use_again_is_told_by_its_start_time);
    tcase_add_test(tcase, a_holder_elsewhere_is_believed_while_its_heartbeat_is_young);
    tcase_add_test(tcase, a_heartbeat_from_the_future_does_not_hold_for_ever);
    tcase_add_test(tcase, a_beat_keeps_a_lease_that_would_expire);
    tcase_add_test(tcase, beats_in_quick_succession_write_once);
    tcase_add_test(tcase, a_holder_that_was_replaced_leaves_its_successors_lease_alone);
    tcase_add_test(tcase, a_lease_that_a_full_disk_keeps_makes_its_own_process_wait_for_nothing);
    tcase_add_test(tcase, a_waiter_that_cannot_write_does_its_work_at_once);
}

int main(void)
{
    static const struct qt_group groups[] = { { "leases", add_leases } };

    return qt_run_suite("lease", groups, 1);
}
