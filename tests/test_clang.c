/* The compiler as a subprocess: found, known, run, failing in every way it can, leaving nothing.
 *
 * A fake compiler is a shell script that answers --version as clang does and then misbehaves. Each
 * case works in a fresh directory, which is also TMPDIR: what is left there was left behind. */
#define _GNU_SOURCE
#include <check.h>
#include <dirent.h>
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "jit/cpu/clang.h"
#include "jit/cpu/cpu.h"

#define VERSION_LINE "clang version 19.1.7 (abc 0123)"

static char directory[64], original_path[PATH_MAX];

/* ---- Setting up ---------------------------------------------------------------------------- */

static void set_up(void)
{
    snprintf(original_path, sizeof original_path, "%s", getenv("PATH"));
    strcpy(directory, "/tmp/quern-test-XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(directory));
    setenv("TMPDIR", directory, 1);
}

static void tear_down(void)
{
    char command[128];

    setenv("PATH", original_path, 1);
    snprintf(command, sizeof command, "rm -rf '%s'", directory);
    ck_assert_int_eq(system(command), 0);
}

static unsigned dice(void)
{
    unsigned value;
    ck_assert_int_eq(getrandom(&value, sizeof value, 0), sizeof value);
    return value;
}

static double now_s(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static void sleep_ms(int ms)
{
    struct timespec time = { ms / 1000, ms % 1000 * 1000000 };
    nanosleep(&time, NULL);
}

/* A script in the test's directory; its path, valid until the next call. */
static const char *script(const char *name, const char *version, const char *body)
{
    static char path[128];

    snprintf(path, sizeof path, "%s/%s", directory, name);
    FILE *file = fopen(path, "w");
    ck_assert_ptr_nonnull(file);
    fprintf(file,
            "#!/bin/sh\n"
            "if [ \"$1\" = --version ]; then echo x >>%s/asked; echo '%s'; exit 0; fi\n%s\n",
            directory, version, body);
    ck_assert_int_eq(fclose(file), 0);
    ck_assert_int_eq(chmod(path, 0755), 0);
    return path;
}

static int lines_in(const char *name)
{
    char path[128];
    int lines = 0;

    snprintf(path, sizeof path, "%s/%s", directory, name);
    FILE *file = fopen(path, "r");
    for (int c; file && (c = getc(file)) != EOF;)
        lines += c == '\n';
    if (file)
        fclose(file);
    return lines;
}

static int files_left(void)
{
    DIR *stream = opendir(directory);
    int count = -2; /* . and .. */

    ck_assert_ptr_nonnull(stream);
    while (readdir(stream))
        count++;
    closedir(stream);
    return count;
}

static void open_clang(struct qn_clang *clang, const char *name)
{
    struct qn_backend_options options = { .clang = name };
    struct quern_message why;

    ck_assert_int_eq(qn_clang_init(clang, &options, &why), 0);
}

static int compile(struct qn_clang *clang, const char *source, double timeout_s,
                   struct qn_compile_result *result, struct quern_message *why)
{
    const struct quern_target target = { .cpu_level = 3 };
    char options[512];
    struct qn_compile_request request = { .source = source,
                                          .source_bytes = strlen(source),
                                          .target = &target,
                                          .options = options,
                                          .timeout_s = timeout_s };

    why->text[0] = 0;
    qn_cpu_target_options(&target, options, sizeof options);
    return qn_clang_compile(clang, &request, result, why);
}

static void release(struct qn_compile_result *result)
{
    free(result->blob);
    free(result->log);
    free(result->report);
}

/* Compile with compiler `name`, expect `status` and a message equal to `expected`, in which %s is
 * the compiler's path, and `log` in the log unless NULL. */
static void expect_failure(const char *name, double timeout_s, int status, const char *expected,
                           const char *log)
{
    struct qn_clang clang;
    struct qn_compile_result result;
    struct quern_message why;
    char *text = NULL;
    const char *mark = strstr(expected, "%s");
    int length = mark ? (int)(mark - expected) : (int)strlen(expected);

    ck_assert_int_gt(
        asprintf(&text, "%.*s%s%s", length, expected, mark ? name : "", mark ? mark + 2 : ""), 0);
    open_clang(&clang, name);
    ck_assert_int_eq(compile(&clang, "int f(void) { return 1; }", timeout_s, &result, &why),
                     status);
    ck_assert_str_eq(why.text, text);
    ck_assert_ptr_null(result.blob);
    if (log) {
        ck_assert_ptr_nonnull(result.log);
        ck_assert_ptr_nonnull(strstr(result.log, log));
    }
    release(&result);
    qn_clang_fini(&clang);
    free(text);
}

/* A function that returns a number of our choice; the object must hold its bytes. */
static void expect_object(struct qn_clang *clang)
{
    struct qn_compile_result result;
    struct quern_message why;
    unsigned number = dice();
    char source[96];

    snprintf(source, sizeof source, "unsigned f(void) { return %uu; }", number);
    int status = compile(clang, source, 30, &result, &why);
    ck_assert_msg(!status, "%s", why.text);
    ck_assert_uint_gt(result.blob_bytes, sizeof(Elf64_Ehdr));
    ck_assert_mem_eq(result.blob, ELFMAG, SELFMAG);
    ck_assert_ptr_nonnull(memmem(result.blob, result.blob_bytes, &number, sizeof number));
    ck_assert_str_eq(result.log, "");
    ck_assert_str_eq(result.report, "");
    release(&result);
}

/* ---- Compiling ----------------------------------------------------------------------------- */

START_TEST(source_becomes_an_object_and_no_file)
{
    struct qn_clang clang;

    open_clang(&clang, NULL);
    expect_object(&clang);
    ck_assert_int_eq(files_left(), 0);
    qn_clang_fini(&clang);
}
END_TEST

START_TEST(equal_sources_give_equal_objects_wherever_we_are)
{
    struct qn_clang clang;
    struct qn_compile_result here, there;
    struct quern_message why;
    const char *source = "float f(float *x, long n)\n"
                         "{ float s = 0; for (long i = 0; i < n; i++) s += x[i]; return s; }";

    open_clang(&clang, NULL);
    ck_assert_int_eq(compile(&clang, source, 30, &here, &why), 0);
    ck_assert_int_eq(chdir(directory), 0);
    setenv("LC_ALL", "tr_TR.UTF-8", 1);
    ck_assert_int_eq(compile(&clang, source, 30, &there, &why), 0);
    ck_assert_uint_eq(here.blob_bytes, there.blob_bytes);
    ck_assert_mem_eq(here.blob, there.blob, here.blob_bytes);
    ck_assert_int_eq(chdir("/"), 0);
    release(&here);
    release(&there);
    qn_clang_fini(&clang);
}
END_TEST

START_TEST(headers_of_the_environment_the_directory_and_the_system_are_not_found)
{
    static const char *const names[] = { "quern_trap.h", "stdio.h" };
    char path[128], source[64];
    struct qn_compile_result result;
    struct quern_message why;
    struct qn_clang clang;

    snprintf(path, sizeof path, "%s/quern_trap.h", directory);
    FILE *file = fopen(path, "w");
    fputs("int trap;\n", file);
    fclose(file);
    ck_assert_int_eq(chdir(directory), 0);
    setenv("CPATH", directory, 1);
    setenv("C_INCLUDE_PATH", directory, 1);
    open_clang(&clang, NULL);
    for (int i = 0; i < 2; i++) {
        snprintf(source, sizeof source, "#include \"%s\"\nint f(void) { return 1; }", names[i]);
        ck_assert_int_eq(compile(&clang, source, 30, &result, &why), QUERN_COMPILE);
        ck_assert_ptr_nonnull(strstr(why.text, "file not found"));
        release(&result);
    }
    unsetenv("CPATH");
    unsetenv("C_INCLUDE_PATH");
    ck_assert_int_eq(chdir("/"), 0);
    qn_clang_fini(&clang);
}
END_TEST

START_TEST(a_source_error_is_one_line_with_the_whole_log_kept)
{
    struct qn_clang clang;
    struct qn_compile_result result;
    struct quern_message why;

    open_clang(&clang, NULL);
    ck_assert_int_eq(compile(&clang,
                             "#warning \"first\"\nint f(void) { return missing_one; }\n"
                             "int g(void) { return missing_two; }\n",
                             30, &result, &why),
                     QUERN_COMPILE);
    ck_assert_ptr_eq(strstr(why.text, "clang failed (exit 1): <stdin>:2:"), why.text);
    ck_assert_ptr_nonnull(strstr(why.text, "missing_one"));
    ck_assert_ptr_null(strchr(why.text, '\n'));
    ck_assert_ptr_nonnull(strstr(result.log, "missing_two"));
    release(&result);
    qn_clang_fini(&clang);
}
END_TEST

static void *compile_some(void *clang)
{
    for (int i = 0; i < 3; i++)
        expect_object(clang);
    return NULL;
}

START_TEST(eight_threads_compile_at_once)
{
    struct qn_clang clang;
    pthread_t threads[8];

    open_clang(&clang, NULL);
    for (int i = 0; i < 8; i++)
        ck_assert_int_eq(pthread_create(&threads[i], NULL, compile_some, &clang), 0);
    for (int i = 0; i < 8; i++)
        pthread_join(threads[i], NULL);
    qn_clang_fini(&clang);
}
END_TEST

START_TEST(a_large_source_and_a_large_object_pass_through)
{
    enum { WORDS = 60000 };
    char *source = malloc(WORDS * 12 + 128);
    unsigned *words = malloc(WORDS * sizeof *words);
    struct qn_clang clang;
    struct qn_compile_result result;
    struct quern_message why;
    int length = sprintf(source, "const unsigned table[] = {");

    ck_assert_ptr_nonnull(words);
    for (int i = 0; i < WORDS; i++) {
        words[i] = (unsigned)rand();
        length += sprintf(source + length, "%u,", words[i]);
    }
    strcpy(source + length, "}; unsigned f(long i) { return table[i]; }");
    open_clang(&clang, NULL);
    int status = compile(&clang, source, 30, &result, &why);
    ck_assert_msg(!status, "%s", why.text);
    ck_assert_ptr_nonnull(memmem(result.blob, result.blob_bytes, words, WORDS * sizeof *words));
    release(&result);
    qn_clang_fini(&clang);
    free(source);
    free(words);
}
END_TEST

/* ---- The host's own business --------------------------------------------------------------- */

START_TEST(a_host_that_ignores_sigchld_gets_objects_and_errors)
{
    struct qn_clang clang;
    struct qn_compile_result result;
    struct quern_message why;

    signal(SIGCHLD, SIG_IGN);
    open_clang(&clang, NULL);
    expect_object(&clang);
    ck_assert_int_eq(compile(&clang, "int f(void) { return nowhere; }", 30, &result, &why),
                     QUERN_COMPILE);
    ck_assert_ptr_nonnull(strstr(why.text, "nowhere"));
    release(&result);
    signal(SIGCHLD, SIG_DFL);
    qn_clang_fini(&clang);
}
END_TEST

static void reap_everything(int number)
{
    int before = errno;

    (void)number;
    while (waitpid(-1, NULL, WNOHANG) > 0)
        ;
    errno = before;
}

START_TEST(a_host_whose_handler_reaps_every_child_gets_objects)
{
    struct qn_clang clang;

    signal(SIGCHLD, reap_everything);
    open_clang(&clang, NULL);
    for (int i = 0; i < 3; i++)
        expect_object(&clang);
    signal(SIGCHLD, SIG_DFL);
    qn_clang_fini(&clang);
}
END_TEST

START_TEST(signals_mask_directory_and_descriptors_are_as_before)
{
    struct qn_clang clang;
    sigset_t before, after;
    struct sigaction pipe_before = { .sa_handler = SIG_IGN }, pipe_after;
    char here[PATH_MAX], still_here[PATH_MAX];

    sigemptyset(&before);
    sigaddset(&before, SIGUSR1);
    sigprocmask(SIG_SETMASK, &before, NULL);
    sigaction(SIGPIPE, &pipe_before, NULL);
    ck_assert_ptr_nonnull(getcwd(here, sizeof here));
    int next_before = dup(0);
    close(next_before);
    open_clang(&clang, NULL);
    expect_object(&clang);
    qn_clang_fini(&clang);

    int next_after = dup(0);
    close(next_after);
    ck_assert_int_eq(next_before, next_after);
    sigprocmask(SIG_SETMASK, NULL, &after);
    sigaction(SIGPIPE, NULL, &pipe_after);
    ck_assert_ptr_nonnull(getcwd(still_here, sizeof still_here));
    ck_assert_int_eq(sigismember(&after, SIGUSR1), 1);
    ck_assert_int_eq(sigismember(&after, SIGTERM), 0);
    ck_assert_ptr_eq(pipe_after.sa_handler, SIG_IGN);
    ck_assert_str_eq(here, still_here);
}
END_TEST

START_TEST(a_host_without_standard_streams_can_compile)
{
    int report[2];
    unsigned number = dice();
    char answer = 0, source[96];

    snprintf(source, sizeof source, "unsigned f(void) { return %uu; }", number);
    ck_assert_int_eq(pipe(report), 0);
    pid_t pid = fork();
    if (!pid) {
        struct qn_clang clang;
        struct qn_compile_result result;
        struct quern_message why;
        int kept = fcntl(report[1], F_DUPFD, 20);
        for (int fd = 0; fd < 20; fd++)
            close(fd);
        struct qn_backend_options options = { 0 };
        int status = qn_clang_init(&clang, &options, &why);
        if (!status)
            status = compile(&clang, source, 30, &result, &why);
        if (!status)
            status = !memmem(result.blob, result.blob_bytes, &number, sizeof number);
        answer = status ? 'n' : 'y';
        _exit(write(kept, &answer, 1) != 1);
    }
    close(report[1]);
    ck_assert_int_eq(read(report[0], &answer, 1), 1);
    ck_assert_int_eq(answer, 'y');
    close(report[0]);
    ck_assert_int_eq(waitpid(pid, NULL, 0), pid);
}
END_TEST

/* ---- Failing ------------------------------------------------------------------------------- */

START_TEST(a_compiler_that_is_not_there_is_named_with_how_to_get_it)
{
    expect_failure("/nowhere/clang", 5, QUERN_NO_COMPILER,
                   "clang=%s: not found; install clang-19 (apt-get install clang-19) or set "
                   "QUERN_CLANG",
                   NULL);
    expect_failure("no-such-clang", 5, QUERN_NO_COMPILER,
                   "clang=%s: not found on PATH; install clang-19 (apt-get install clang-19) or "
                   "set QUERN_CLANG",
                   NULL);
    expect_failure(directory, 5, QUERN_NO_COMPILER,
                   "clang=%s: not an executable file; install clang-19 (apt-get install clang-19) "
                   "or set QUERN_CLANG",
                   NULL);
}
END_TEST

START_TEST(nothing_on_path_says_so)
{
    struct qn_clang clang;
    struct quern_message why;
    char *path = NULL;

    setenv("PATH", directory, 1);
    open_clang(&clang, NULL);
    ck_assert_int_eq(qn_clang_find(&clang, &path, &why), QUERN_NO_COMPILER);
    ck_assert_str_eq(why.text, "clang=clang-19: not found on PATH, nor is clang; install clang-19 "
                               "(apt-get install clang-19) or set QUERN_CLANG");
    qn_clang_fini(&clang);
}
END_TEST

START_TEST(what_is_not_clang_or_too_old_is_refused)
{
    struct quern_message why;
    struct qn_clang clang;
    char identity[128];

    open_clang(&clang, script("gcc", "gcc (Debian) 12.2.0", "exit 0"));
    ck_assert_int_eq(qn_clang_identity(&clang, identity, sizeof identity, &why), QUERN_NO_COMPILER);
    ck_assert_ptr_nonnull(strstr(why.text, "is not clang"));
    qn_clang_fini(&clang);
    open_clang(&clang, script("old", "Debian clang version 13.0.1-6", "exit 0"));
    ck_assert_int_eq(qn_clang_identity(&clang, identity, sizeof identity, &why), QUERN_NO_COMPILER);
    ck_assert_ptr_nonnull(strstr(why.text, "must be 14 or newer"));
    qn_clang_fini(&clang);
}
END_TEST

START_TEST(a_compiler_that_hangs_is_killed_with_what_it_started)
{
    char body[160];
    double start = now_s();

    snprintf(body, sizeof body, "sleep 100 & echo $! >%s/pid; wait", directory);
    expect_failure(script("hang", VERSION_LINE, body), 1.5, QUERN_COMPILE,
                   "clang=%s: no result after 1.5 s, killed", NULL);
    ck_assert_double_lt(now_s() - start, 10);

    snprintf(body, sizeof body, "%s/pid", directory);
    FILE *file = fopen(body, "r");
    int pid = 0;
    ck_assert_ptr_nonnull(file);
    ck_assert_int_eq(fscanf(file, "%d", &pid), 1);
    fclose(file);
    /* Dead; a zombie until its new parent looks. */
    char state = 'Z', stat_path[64];
    snprintf(stat_path, sizeof stat_path, "/proc/%d/stat", pid);
    for (int i = 0; i < 50; i++, sleep_ms(20)) {
        file = fopen(stat_path, "r");
        state = 'Z';
        if (file) {
            ck_assert_int_eq(fscanf(file, "%*d (%*[^)]) %c", &state), 1);
            fclose(file);
        }
        if (state == 'Z')
            break;
    }
    ck_assert_int_eq(state, 'Z');
}
END_TEST

START_TEST(a_daemon_that_keeps_the_pipes_is_not_waited_for)
{
    struct qn_clang clang;
    char *real, body[PATH_MAX + 64];
    struct quern_message why;
    double start = now_s();

    open_clang(&clang, NULL);
    ck_assert_int_eq(qn_clang_find(&clang, &real, &why), 0);
    qn_clang_fini(&clang);
    snprintf(body, sizeof body, "sleep 15 & exec %s \"$@\"", real);
    free(real);
    open_clang(&clang, script("daemon", VERSION_LINE, body));
    expect_object(&clang);
    ck_assert_double_lt(now_s() - start, 8);
    qn_clang_fini(&clang);
}
END_TEST

START_TEST(every_other_way_to_fail_has_its_own_line)
{
    expect_failure(script("killed", VERSION_LINE, "echo dying >&2; kill -9 $$"), 5, QUERN_COMPILE,
                   "clang=%s: killed by signal 9", "dying");
    expect_failure(script("failing", VERSION_LINE,
                          "echo note: x >&2; echo 'a.c:1: error: bad thing' >&2; exit 3"),
                   5, QUERN_COMPILE, "clang failed (exit 3): a.c:1: error: bad thing", "note: x");
    expect_failure(script("mute", VERSION_LINE, "exit 2"), 5, QUERN_COMPILE,
                   "clang failed (exit 2): it said nothing", NULL);
    expect_failure(script("empty", VERSION_LINE, "exit 0"), 5, QUERN_COMPILE,
                   "clang=%s: wrote nothing, not an object", NULL);
    expect_failure(script("garbage", VERSION_LINE, "head -c 300 /dev/urandom | tr '\\177' x"), 5,
                   QUERN_COMPILE, "clang=%s: wrote something else, not an object", NULL);
    expect_failure(script("flood", VERSION_LINE, "exec yes"), 20, QUERN_COMPILE,
                   "clang=%s: wrote more than 64 MiB, killed", NULL);
    expect_failure(script("noisy", VERSION_LINE,
                          "head -c 3000000 /dev/zero | tr '\\0' e >&2; "
                          "exit 1"),
                   5, QUERN_COMPILE,
                   "clang failed (exit 1): "
                   "eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee"
                   "eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee"
                   "eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee"
                   "eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee",
                   "eeee");
}
END_TEST

/* ---- Identity ------------------------------------------------------------------------------ */

struct facts {
    char name[256], value[256];
    int finds, puts;
};

static char *fact_find(void *user, const char *name)
{
    struct facts *facts = user;
    facts->finds++;
    return strcmp(facts->name, name) ? NULL : strdup(facts->value);
}

static void fact_put(void *user, const char *name, const char *value)
{
    struct facts *facts = user;
    facts->puts++;
    snprintf(facts->name, sizeof facts->name, "%s", name);
    snprintf(facts->value, sizeof facts->value, "%s", value);
}

/* The identity, asked for by a fresh process's worth of state. */
static void identify(const char *path, struct facts *facts, char *identity, size_t bytes)
{
    struct qn_backend_options options = {
        .clang = path, .user = facts, .fact_find = fact_find, .fact_put = fact_put
    };
    struct qn_clang clang;
    struct quern_message why;

    ck_assert_int_eq(qn_clang_init(&clang, &options, &why), 0);
    for (int i = 0; i < 3; i++)
        ck_assert_int_eq(qn_clang_identity(&clang, identity, bytes, &why), 0);
    qn_clang_fini(&clang);
}

START_TEST(a_compiler_is_asked_once_and_again_only_when_it_changes)
{
    struct facts facts = { .name = "" };
    char identity[128];
    const char *path = script("counted", VERSION_LINE, "exit 0");

    identify(path, &facts, identity, sizeof identity);
    ck_assert_str_eq(identity, VERSION_LINE);
    ck_assert_int_eq(lines_in("asked"), 1);
    ck_assert_int_eq(facts.puts, 1);
    identify(path, &facts, identity, sizeof identity);
    ck_assert_str_eq(identity, VERSION_LINE);
    ck_assert_int_eq(lines_in("asked"), 1);
    ck_assert_int_eq(facts.puts, 1);

    script("counted", "clang version 20.1.0 (def 9999)", "exit 0");
    identify(path, &facts, identity, sizeof identity);
    ck_assert_str_eq(identity, "clang version 20.1.0 (def 9999)");
    ck_assert_int_eq(lines_in("asked"), 2);
}
END_TEST

START_TEST(a_damaged_fact_is_asked_for_again)
{
    struct facts facts = { .name = "" };
    char identity[128];
    const char *path = script("counted", VERSION_LINE, "exit 0");

    identify(path, &facts, identity, sizeof identity);
    strcpy(facts.value, "clan");
    identify(path, &facts, identity, sizeof identity);
    ck_assert_str_eq(identity, VERSION_LINE);
    ck_assert_str_eq(facts.value, VERSION_LINE);
    ck_assert_int_eq(lines_in("asked"), 2);
}
END_TEST

START_TEST(the_identity_names_version_and_build_but_no_path)
{
    struct qn_clang clang;
    struct quern_message why;
    char identity[256], *path;

    open_clang(&clang, NULL);
    ck_assert_int_eq(qn_clang_find(&clang, &path, &why), 0);
    ck_assert_int_eq(qn_clang_identity(&clang, identity, sizeof identity, &why), 0);
    ck_assert_ptr_nonnull(strstr(identity, "clang version "));
    ck_assert_ptr_null(strstr(identity, path));
    ck_assert_ptr_null(strstr(identity, "/usr"));
    ck_assert_ptr_null(strchr(identity, '\n'));
    free(path);
    qn_clang_fini(&clang);
}
END_TEST

static void expect_found(const char *name, const char *expected)
{
    struct qn_clang clang;
    struct quern_message why;
    char *path, full[128];

    open_clang(&clang, name);
    ck_assert_msg(!qn_clang_find(&clang, &path, &why), "%s", why.text);
    snprintf(full, sizeof full, "%s/%s", directory, expected);
    ck_assert_str_eq(path, full);
    free(path);
    qn_clang_fini(&clang);
}

START_TEST(path_is_searched_for_the_name_given_then_clang_19_then_clang)
{
    char path[128];

    snprintf(path, sizeof path, ".::/nowhere:%s", directory);
    setenv("PATH", path, 1);
    script("clang", VERSION_LINE, "exit 0");
    expect_found(NULL, "clang");
    expect_found("", "clang");
    script("clang-19", VERSION_LINE, "exit 0");
    expect_found(NULL, "clang-19");
    script("my-clang", VERSION_LINE, "exit 0");
    expect_found("my-clang", "my-clang");
    ck_assert_int_eq(chdir(directory), 0);
    expect_found("./my-clang", "./my-clang");
    ck_assert_int_eq(chdir("/"), 0);
}
END_TEST

/* ---- Nothing left behind ------------------------------------------------------------------- */

/* A source that keeps clang busy for a minute. */
static const char slow_source[] =
    "#define A(x) x x x x x x x x\n#define B(x) A(A(x))\n#define C(x) B(B(x))\n"
    "unsigned f(unsigned x) { C(A(B(x = x * 3 + 1;))) return x; }\n";

/* Any compiler is known: the child that we see is not a --version. */
static char *fact_known(void *user, const char *name)
{
    (void)user;
    (void)name;
    return strdup(VERSION_LINE);
}

/* The first child of `pid`, waiting for it to be there; 0 after five seconds. */
static int child_of(pid_t pid)
{
    char path[64];
    int child = 0;

    snprintf(path, sizeof path, "/proc/%d/task/%d/children", pid, pid);
    for (int i = 0; i < 500 && !child; i++, sleep_ms(10)) {
        FILE *file = fopen(path, "r");
        if (file && fscanf(file, "%d", &child) != 1)
            child = 0;
        if (file)
            fclose(file);
    }
    return child;
}

START_TEST(killing_the_host_in_mid_compile_leaves_no_process_and_no_file)
{
    /* Orphans come to us, so that we see the compiler end. */
    ck_assert_int_eq(prctl(PR_SET_CHILD_SUBREAPER, 1), 0);
    pid_t host = fork();
    if (!host) {
        struct qn_clang clang;
        struct qn_compile_result result;
        struct quern_message why;
        struct qn_backend_options options = { .fact_find = fact_known };
        qn_clang_init(&clang, &options, &why);
        compile(&clang, slow_source, 60, &result, &why);
        _exit(0); /* not reached: the compile outlasts the test */
    }
    int compiler = child_of(host), status;
    ck_assert_int_gt(compiler, 0);
    sleep_ms(300);
    ck_assert_int_eq(waitpid(host, &status, WNOHANG), 0);
    ck_assert_int_eq(kill(host, SIGKILL), 0);
    ck_assert_int_eq(waitpid(host, &status, 0), host);

    int ended = 0;
    for (int i = 0; i < 50 && !ended; i++, sleep_ms(20))
        ended = waitpid(compiler, &status, WNOHANG);
    ck_assert_int_eq(ended, compiler);
    ck_assert(WIFSIGNALED(status));
    ck_assert_int_eq(files_left(), 0);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("clang");
    TCase *cases = tcase_create("subprocess");

    tcase_add_checked_fixture(cases, set_up, tear_down);
    tcase_set_timeout(cases, 30);
    tcase_add_test(cases, source_becomes_an_object_and_no_file);
    tcase_add_test(cases, equal_sources_give_equal_objects_wherever_we_are);
    tcase_add_test(cases, headers_of_the_environment_the_directory_and_the_system_are_not_found);
    tcase_add_test(cases, a_source_error_is_one_line_with_the_whole_log_kept);
    tcase_add_test(cases, eight_threads_compile_at_once);
    tcase_add_test(cases, a_large_source_and_a_large_object_pass_through);
    tcase_add_test(cases, a_host_that_ignores_sigchld_gets_objects_and_errors);
    tcase_add_test(cases, a_host_whose_handler_reaps_every_child_gets_objects);
    tcase_add_test(cases, signals_mask_directory_and_descriptors_are_as_before);
    tcase_add_test(cases, a_host_without_standard_streams_can_compile);
    tcase_add_test(cases, a_compiler_that_is_not_there_is_named_with_how_to_get_it);
    tcase_add_test(cases, nothing_on_path_says_so);
    tcase_add_test(cases, what_is_not_clang_or_too_old_is_refused);
    tcase_add_test(cases, a_compiler_that_hangs_is_killed_with_what_it_started);
    tcase_add_test(cases, a_daemon_that_keeps_the_pipes_is_not_waited_for);
    tcase_add_test(cases, every_other_way_to_fail_has_its_own_line);
    tcase_add_test(cases, a_compiler_is_asked_once_and_again_only_when_it_changes);
    tcase_add_test(cases, a_damaged_fact_is_asked_for_again);
    tcase_add_test(cases, the_identity_names_version_and_build_but_no_path);
    tcase_add_test(cases, path_is_searched_for_the_name_given_then_clang_19_then_clang);
    tcase_add_test(cases, killing_the_host_in_mid_compile_leaves_no_process_and_no_file);
    suite_add_tcase(suite, cases);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed != 0;
}
