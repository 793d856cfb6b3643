/* NVRTC: found, known, run from many threads, failing in every way it can; and what ptxas says of a
 * kernel, with planted kernels that it must say it of.
 *
 * Each test is a process of its own (Check forks), so that none finds the library loaded already.
 * Run as `test_nvrtc find` this program prints the library that it would load, as `test_nvrtc
 * find-for 12020` with a driver of that version, as `test_nvrtc compile FILE` it compiles with that
 * one.
 *
 * NVRTC is expected to be there: `make deps` sees to it. Where that could not get it, it left
 * nvrtc/absent with the reason in the build's folder; what needs NVRTC is then counted as
 * skipped. */
#define _GNU_SOURCE
#include <check.h>
#include <elf.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common.h"
#include "cuda_common.h"
#include "jit/cuda/nvrtc.h"
#include "jit/target.h"
#include "planted.h"

#define EM_CUDA_NUMBER 190

/* ---- Setting up ---------------------------------------------------------------------------- */

static struct qn_nvrtc *nvrtc_open(const char *given, int driver_version)
{
    struct qn_backend_options options = { .nvrtc = given };
    struct quern_message why;
    struct qn_nvrtc *nvrtc;
    ck_assert_int_eq(qn_nvrtc_open(&options, driver_version, &nvrtc, &why), 0);
    return nvrtc;
}

static struct qn_nvrtc *nvrtc_default(void)
{
    return nvrtc_open(getenv("QUERN_NVRTC"), 0);
}

static int compile(struct qn_nvrtc *nvrtc, const char *target_text, const char *source,
                   struct qn_compile_result *result, struct quern_message *why)
{
    struct quern_target target;
    char options[512];
    struct qn_compile_request request = { .source = source,
                                          .source_bytes = strlen(source),
                                          .target = &target,
                                          .options = options,
                                          .timeout_s = 30 };
    ck_assert_int_eq(qn_target_parse(target_text, &target, why), 0);
    why->text[0] = '\0';
    qn_nvrtc_options(&target, options, sizeof options);
    return qn_nvrtc_compile(nvrtc, &request, result, why);
}

static void release(struct qn_compile_result *result)
{
    free(result->blob);
    free(result->log);
    free(result->report);
}

static void expect_cubin(const struct qn_compile_result *result)
{
    const Elf64_Ehdr *header = result->blob;
    ck_assert_uint_gt(result->blob_bytes, sizeof *header);
    ck_assert_mem_eq(header->e_ident, ELFMAG, SELFMAG);
    ck_assert_int_eq(header->e_machine, EM_CUDA_NUMBER);
}

/* Compiles for sm_90a with the default library: expects `status`, `said` in the one line, and the
 * log kept. */
static void expect_refused(const char *target, const char *source, int status, const char *said)
{
    struct qn_nvrtc *nvrtc = nvrtc_default();
    struct qn_compile_result result;
    struct quern_message why;
    int got = compile(nvrtc, target, source, &result, &why);
    ck_assert_msg(got == status, "%s: %s", quern_status_name(got), why.text);
    ck_assert_msg(strstr(why.text, said) && !strchr(why.text, '\n'), "%s", why.text);
    ck_assert_ptr_null(result.blob);
    ck_assert_ptr_nonnull(result.log);
    ck_assert_str_ne(result.log, "");
    release(&result);
    qn_nvrtc_close(nvrtc);
}

/* ---- What ptxas says ----------------------------------------------------------------------- */

#define SAID(name) "ptxas info    : Function properties for " name "\n"
#define ENTRY(name) "ptxas info    : Compiling entry function '" name "' for 'sm_90a'\n" SAID(name)
#define FRAME(stack, stores, loads)                                                                \
    "ptxas         .     " #stack " bytes stack frame, " #stores " bytes spill stores, " #loads    \
    " bytes spill loads\n"

static const struct {
    const char *log, *report;
} reports[] = {
    { "", "" },
    { "quern(3): warning #177-D: variable \"unused\" was declared but never referenced\n"
      "  float (C7511) registers;\n",
      "" },
    { "ptxas info    : 0 bytes gmem\n" ENTRY("k2")
          FRAME(0, 0, 0) "ptxas info    : Used 250 registers, used 0 barriers, 128 bytes smem\n"
                         "ptxas info    : Compile time = 20.681 ms\n",
      "entry=k2 registers=250 spills=0 shared=128\n" },
    /* 12.0 counts no barriers and ends without a newline here. */
    { "ptxas info    : 304 bytes gmem\n" ENTRY("main")
          FRAME(512, 628, 776) "ptxas info    : Used 32 registers, 128 bytes smem\n" ENTRY("pack")
              FRAME(0, 0, 0) "ptxas info    : Used 20 registers",
      "entry=main registers=32 spills=1404 shared=128 stack=512\n"
      "entry=pack registers=20 spills=0 shared=0\n" },
    /* What a function that was not inlined spills counts against every entry. */
    { ENTRY("a") FRAME(
          0, 8, 4) "ptxas info    : Used 40 registers, used 1 barriers, 240 bytes cumulative stack "
                   "size, 48 "
                   "bytes smem, 388 bytes cmem[0]\n" ENTRY("b")
                       FRAME(256, 0, 0) "ptxas info    : Used 20 registers, used 0 barriers\n" SAID(
                           "_Z6helperPfi") FRAME(16, 10, 20),
      "entry=a registers=40 spills=42 shared=48\n"
      "entry=b registers=20 spills=30 shared=0 stack=256\n" },
    /* Warnings that are none of ours, and a kernel with a name that looks like one. */
    { "ptxas info    : (C7509) Potential Performance Loss: x\n"
      "ptxas info    : (C7519) Potential Performance Loss: x\n" ENTRY("C7511")
          FRAME(0, 0, 0) "ptxas info    : Used 8 registers, used 0 barriers\n",
      "entry=C7511 registers=8 spills=0 shared=0\n" },
};

START_TEST(a_log_of_ptxas_becomes_a_line_for_each_entry)
{
    struct quern_message why;
    char *report = NULL;
    int status = qn_ptxas_report(reports[_i].log, &report, &why);
    ck_assert_msg(!status, "%s", why.text);
    ck_assert_str_eq(report, reports[_i].report);
    free(report);
}
END_TEST

START_TEST(each_warning_that_makes_the_code_useless_is_refused)
{
    static const int numbers[] = { 7508, 7510, 7511, 7512, 7513, 7514, 7515, 7516, 7517, 7518 };
    struct quern_message why;
    char line[256], log[512], *report = NULL;
    snprintf(line, sizeof line,
             "ptxas info    : (C%d) Potential Performance Loss: something in function 'k'",
             numbers[_i]);
    snprintf(log, sizeof log, "%s\n%s", line, ENTRY("k") FRAME(0, 0, 0));
    ck_assert_int_eq(qn_ptxas_report(log, &report, &why), QUERN_COMPILE);
    ck_assert_str_eq(why.text, line);
    snprintf(log, sizeof log, "%s%s", ENTRY("k") FRAME(0, 0, 0), line);
    ck_assert_int_eq(qn_ptxas_report(log, &report, &why), QUERN_COMPILE);
    ck_assert_str_eq(why.text, line);
    ck_assert_ptr_null(report);
}
END_TEST

START_TEST(a_wait_that_was_put_in_gives_way_to_what_it_led_to)
{
    static const char log[] = "ptxas info    : (C7517) warpgroup.wait is injected\n"
                              "ptxas info    : (C7511) serialized\n"
                              "ptxas info    : (C7514) serialized again\n";
    struct quern_message why;
    char *report;
    ck_assert_int_eq(qn_ptxas_report(log, &report, &why), QUERN_COMPILE);
    ck_assert_str_eq(why.text, "ptxas info    : (C7511) serialized");
}
END_TEST

/* ---- Planted kernels ----------------------------------------------------------------------- */

static const char *with_plant(const char *source, int plant)
{
    static char text[4096];
    snprintf(text, sizeof text, "#define PLANT %d\n%s", plant, source);
    return text;
}

/* The number behind `name` in the one-entry report of a kernel that must compile. */
static int report_of(const char *source, const char *name)
{
    struct qn_nvrtc *nvrtc = nvrtc_default();
    struct qn_compile_result result;
    struct quern_message why;
    int status = compile(nvrtc, "sm_90a", source, &result, &why);
    ck_assert_msg(!status, "%s", why.text);
    expect_cubin(&result);
    ck_assert_int_eq(strncmp(result.report, "entry=planted registers=", 24), 0);
    const char *number = strstr(result.report, name);
    ck_assert_ptr_nonnull(number);
    int value = atoi(number + strlen(name));
    release(&result);
    qn_nvrtc_close(nvrtc);
    return value;
}

START_TEST(a_touched_accumulator_is_refused_as_c7511)
{
    ck_assert_int_eq(report_of(with_plant(planted_wgmma, 0), "spills="), 0);
    expect_refused("sm_90a", with_plant(planted_wgmma, 1), QUERN_COMPILE, "(C7511)");
}
END_TEST

START_TEST(an_ignored_setmaxnreg_is_refused_as_c7508)
{
    ck_assert_int_eq(report_of(with_plant(planted_setmaxnreg, 0), "spills="), 0);
    expect_refused("sm_90a", with_plant(planted_setmaxnreg, 1), QUERN_COMPILE, "(C7508)");
}
END_TEST

START_TEST(spilled_registers_are_reported)
{
    ck_assert_int_eq(report_of(with_plant(planted_spill, 0), "spills="), 0);
    ck_assert_int_gt(report_of(with_plant(planted_spill, 1), "spills="), 0);
    ck_assert_int_eq(report_of(with_plant(planted_spill, 1), "registers="), 32);
}
END_TEST

/* ---- Compiling ----------------------------------------------------------------------------- */

/* A kernel that writes `number`; the cubin holds its bytes. */
static void number_source(unsigned number, char *text, size_t bytes)
{
    snprintf(text, bytes, "extern \"C\" __global__ void k(unsigned *p) { p[threadIdx.x] = %uu; }\n",
             number);
}

START_TEST(a_kernel_becomes_a_cubin_for_every_target)
{
    struct qn_nvrtc *nvrtc = nvrtc_default();
    uint64_t seed = common_seed();
    for (int i = 0; i < CUDA_TARGET_COUNT; i++) {
        struct qn_compile_result result;
        struct quern_message why;
        char source[128];
        unsigned number = (unsigned)common_random(&seed) | 0x80000000u;
        number_source(number, source, sizeof source);
        int status = compile(nvrtc, cuda_targets[i], source, &result, &why);
        ck_assert_msg(!status, "%s: %s", cuda_targets[i], why.text);
        expect_cubin(&result);
        ck_assert_ptr_nonnull(memmem(result.blob, result.blob_bytes, &number, sizeof number));
        ck_assert_ptr_nonnull(strstr(result.report, "entry=k registers="));
        ck_assert_ptr_nonnull(strstr(result.log, cuda_targets[i]));
        release(&result);
    }
    qn_nvrtc_close(nvrtc);
}
END_TEST

START_TEST(a_target_that_nvrtc_does_not_know_is_named_with_those_it_knows)
{
    static const char *const unknown[] = { "sm_77", "sm_999", "sm_80a" };
    char expected[64];
    snprintf(expected, sizeof expected, "target=%s: NVRTC ", unknown[_i]);
    expect_refused(unknown[_i], "extern \"C\" __global__ void k() {}", QUERN_UNSUPPORTED, expected);
    expect_refused(unknown[_i], "extern \"C\" __global__ void k() {}", QUERN_UNSUPPORTED, "sm_90");
}
END_TEST

START_TEST(an_error_in_the_source_is_one_line_with_the_log_kept)
{
    expect_refused("sm_90a",
                   "__device__ int f() { int error; return 1; }\n"
                   "extern \"C\" __global__ void k(float *p) { p[0] = missing; }",
                   QUERN_COMPILE,
                   "nvrtc failed: quern(2): error: identifier \"missing\" is undefined");
    expect_refused("sm_80", "extern \"C\" __global__ void k(float *p) { asm(\"bogus.f32 a;\"); }",
                   QUERN_COMPILE, "Not a name of any known instruction: 'bogus'");
    expect_refused("sm_80", "#error this is the end", QUERN_COMPILE, "this is the end");
}
END_TEST

START_TEST(headers_of_the_directory_the_environment_and_the_system_are_not_found)
{
    static const char *const names[] = { "trap.h", "stdio.h", "cuda_bf16.h" };
    char *path = common_scratch_path("trap.h"), source[64];
    common_file_write(path, "int trap;\n");
    ck_assert_int_eq(chdir(common_scratch()), 0);
    setenv("CPATH", common_scratch(), 1);
    setenv("CPLUS_INCLUDE_PATH", common_scratch(), 1);
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        snprintf(source, sizeof source, "#include \"%s\"\n", names[i]);
        expect_refused("sm_80", source, QUERN_COMPILE, "could not open source file");
    }
    ck_assert_int_eq(chdir("/"), 0);
    free(path);
}
END_TEST

/* A source that ends before its memory does. */
START_TEST(no_byte_past_source_bytes_is_compiled)
{
    static const char text[] = "extern \"C\" __global__ void k() {}\n#error past the end";
    struct qn_nvrtc *nvrtc = nvrtc_default();
    struct quern_target target = { .kind = QUERN_CUDA, .sm = 80 };
    struct qn_compile_request request = { .source = text,
                                          .source_bytes = strcspn(text, "\n") + 1,
                                          .target = &target,
                                          .options = "--gpu-architecture=sm_80" };
    struct qn_compile_result result;
    struct quern_message why;
    int status = qn_nvrtc_compile(nvrtc, &request, &result, &why);
    ck_assert_msg(!status, "%s", why.text);
    expect_cubin(&result);
    ck_assert_str_eq(result.report, ""); /* it was not asked for one */
    release(&result);
    qn_nvrtc_close(nvrtc);
}
END_TEST

/* ---- Threads ------------------------------------------------------------------------------- */

struct worker {
    pthread_t thread;
    struct qn_nvrtc *nvrtc;
    struct qn_compile_result results[4];
};

/* Every worker compiles the same four kernels and one that fails. */
static void *worker_main(void *data)
{
    struct worker *worker = data;
    struct quern_message why;
    char source[128];
    for (int i = 0; i < 4; i++) {
        number_source(0x80000001u + (unsigned)i, source, sizeof source);
        int status = compile(worker->nvrtc, "sm_90a", source, &worker->results[i], &why);
        ck_assert_msg(!status, "%s", why.text);
    }
    struct qn_compile_result failed;
    ck_assert_int_eq(compile(worker->nvrtc, "sm_90a", "#error no", &failed, &why), QUERN_COMPILE);
    release(&failed);
    return NULL;
}

START_TEST(threads_compile_at_once_and_get_equal_cubins)
{
    enum { WORKERS = 4 };
    struct worker workers[WORKERS] = { 0 };
    struct qn_nvrtc *nvrtc = nvrtc_default();
    for (int w = 0; w < WORKERS; w++) {
        workers[w].nvrtc = nvrtc;
        ck_assert_int_eq(pthread_create(&workers[w].thread, NULL, worker_main, &workers[w]), 0);
    }
    for (int w = 0; w < WORKERS; w++)
        ck_assert_int_eq(pthread_join(workers[w].thread, NULL), 0);
    for (int w = 0; w < WORKERS; w++) {
        for (int i = 0; i < 4; i++) {
            const struct qn_compile_result *first = &workers[0].results[i];
            struct qn_compile_result *mine = &workers[w].results[i];
            expect_cubin(mine);
            ck_assert_uint_eq(mine->blob_bytes, first->blob_bytes);
            ck_assert_mem_eq(mine->blob, first->blob, first->blob_bytes);
        }
    }
    for (int w = 0; w < WORKERS; w++)
        for (int i = 0; i < 4; i++)
            release(&workers[w].results[i]);
    qn_nvrtc_close(nvrtc);
}
END_TEST

/* ---- Identity ------------------------------------------------------------------------------ */

struct facts {
    char name[512], value[128];
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

static struct qn_nvrtc *nvrtc_with(struct facts *facts)
{
    struct qn_backend_options options = {
        .nvrtc = getenv("QUERN_NVRTC"), .fact_find = fact_find, .fact_put = fact_put, .user = facts
    };
    struct quern_message why;
    struct qn_nvrtc *nvrtc;
    ck_assert_int_eq(qn_nvrtc_open(&options, 0, &nvrtc, &why), 0);
    return nvrtc;
}

static bool is_library_loaded(void)
{
    FILE *maps = fopen("/proc/self/maps", "r");
    char line[512];
    bool is_found = false;
    while (fgets(line, sizeof line, maps))
        is_found |= strstr(line, "libnvrtc") != NULL;
    fclose(maps);
    return is_found;
}

static void identity_of(struct qn_nvrtc *nvrtc, char identity[128])
{
    struct quern_message why;
    int status = qn_nvrtc_identity(nvrtc, identity, 128, &why);
    ck_assert_msg(!status, "%s", why.text);
}

START_TEST(the_identity_names_version_and_build_and_no_path)
{
    struct qn_nvrtc *nvrtc = nvrtc_default();
    char identity[128];
    int major, minor, build, end = 0;
    identity_of(nvrtc, identity);
    ck_assert_msg(sscanf(identity, "nvrtc %d.%d.%d%n", &major, &minor, &build, &end) == 3 &&
                      !identity[end] && major >= 12 && build > 0,
                  "%s", identity);
    qn_nvrtc_close(nvrtc);
}
END_TEST

/* Asks twice in another process, which then has the library loaded; the facts are shared. */
static bool asks_once(struct facts *facts)
{
    int status;
    pid_t child = fork();
    if (!child) {
        struct qn_nvrtc *nvrtc = nvrtc_with(facts);
        char first[128], second[128];
        identity_of(nvrtc, first);
        identity_of(nvrtc, second);
        _exit(strcmp(first, second) || facts->puts != 1 || !is_library_loaded());
    }
    ck_assert_int_eq(waitpid(child, &status, 0), child);
    return WIFEXITED(status) && !WEXITSTATUS(status);
}

START_TEST(the_identity_is_asked_for_once_and_then_known_without_loading)
{
    struct facts *facts =
        mmap(NULL, sizeof *facts, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    char identity[128];
    ck_assert(facts != MAP_FAILED);
    ck_assert(asks_once(facts));
    struct qn_nvrtc *nvrtc = nvrtc_with(facts);
    identity_of(nvrtc, identity);
    ck_assert_str_eq(identity, facts->value);
    ck_assert_int_eq(facts->puts, 1);
    ck_assert(!is_library_loaded());
    qn_nvrtc_close(nvrtc);
    munmap(facts, sizeof *facts);
}
END_TEST

START_TEST(a_damaged_fact_is_asked_for_again)
{
    static const char *const damaged[] = { "",
                                           "nvrtc",
                                           "nvrtc 13.0",
                                           "nvrtc 1.0.1",
                                           "clang 13.0.88",
                                           "nvrtc 13.0.88 and more",
                                           "nvrtc 12.8.93" };
    struct facts facts = { .finds = 0 };
    struct qn_nvrtc *nvrtc = nvrtc_with(&facts);
    char identity[128], again[128];
    identity_of(nvrtc, identity);
    qn_nvrtc_close(nvrtc);
    for (size_t i = 0; i < sizeof damaged / sizeof *damaged; i++) {
        snprintf(facts.value, sizeof facts.value, "%s", damaged[i]);
        nvrtc = nvrtc_with(&facts);
        identity_of(nvrtc, again);
        ck_assert_str_eq(again, identity);
        ck_assert_str_eq(facts.value, identity);
        qn_nvrtc_close(nvrtc);
    }
}
END_TEST

/* ---- Finding ------------------------------------------------------------------------------- */

static void expect_missing(const char *given, int driver_version, const char *said)
{
    struct qn_nvrtc *nvrtc = nvrtc_open(given, driver_version);
    struct qn_compile_result result;
    struct quern_message why;
    char identity[128];
    ck_assert_int_eq(qn_nvrtc_identity(nvrtc, identity, sizeof identity, &why), QUERN_NO_COMPILER);
    ck_assert_msg(strstr(why.text, said) && !strchr(why.text, '\n'), "%s", why.text);
    ck_assert_int_eq(compile(nvrtc, "sm_80", "", &result, &why), QUERN_NO_COMPILER);
    ck_assert_msg(strstr(why.text, said) && !strchr(why.text, '\n'), "%s", why.text);
    ck_assert_ptr_null(result.blob);
    release(&result);
    qn_nvrtc_close(nvrtc);
}

START_TEST(a_given_file_that_is_no_nvrtc_is_named_with_how_to_get_one)
{
    char *text = common_scratch_path("text.so"), *said;
    common_file_write(text, "not a library");
    expect_missing("/nonexistent/libnvrtc.so", 0, "nvrtc=/nonexistent/libnvrtc.so: no such file; ");
    expect_missing("/nonexistent/libnvrtc.so", 0, "pip install nvidia-cuda-nvrtc, ");
    expect_missing("/nonexistent/libnvrtc.so", 12040, "pip install nvidia-cuda-nvrtc-cu12, ");
    expect_missing("/nonexistent/libnvrtc.so", 13000, "pip install nvidia-cuda-nvrtc, ");
    expect_missing("/nonexistent/libnvrtc.so", 13000, "(a pip install is not searched)");
    expect_missing("/", 0, "nvrtc=/: not a file that can be read");
    ck_assert_int_gt(asprintf(&said, "nvrtc=%s: cannot be loaded: ", text), 0);
    expect_missing(text, 0, said);
    free(said);
    /* A relative one means what it did when it was given. */
    ck_assert_int_eq(chdir(common_scratch()), 0);
    ck_assert_int_gt(asprintf(&said, "nvrtc=%s/none.so: no such file", common_scratch()), 0);
    expect_missing("none.so", 0, said);
    free(said);
    free(text);
    ck_assert_int_eq(chdir("/"), 0);
}
END_TEST

START_TEST(a_library_of_another_kind_is_refused)
{
    char *path = common_scratch_path("other.so"), *command, *said;
    int code;
    ck_assert_int_gt(asprintf(&command, "echo 'int other;' | cc -shared -xc - -o %s", path), 0);
    free(common_shell(command, &code));
    ck_assert_int_eq(code, 0);
    ck_assert_int_gt(asprintf(&said, "nvrtc=%s: is no NVRTC 12.9 or newer: it lacks nvrtc", path),
                     0);
    expect_missing(path, 0, said);
    free(command);
    free(said);
    free(path);
}
END_TEST

static void expect_found(int driver_version, const char *expected)
{
    struct qn_nvrtc *nvrtc = nvrtc_open(NULL, driver_version);
    struct quern_message why;
    char *path = NULL;
    int status = qn_nvrtc_find(nvrtc, &path, &why);
    ck_assert_msg(!status, "%s", why.text);
    ck_assert_str_eq(path, expected);
    free(path);
    qn_nvrtc_close(nvrtc);
}

/* Files of majors that no toolkit here has, so that ours alone are found. */
START_TEST(the_newest_major_that_the_driver_takes_is_found_without_loading)
{
    char *fourteen = common_scratch_path("lib/libnvrtc.so.14");
    char *fifteen = common_scratch_path("lib/libnvrtc.so.15"), *places;
    common_file_write(fourteen, "");
    common_file_write(fifteen, "");
    ck_assert_int_gt(asprintf(&places, "lib::/nonexistent:%s/lib:", common_scratch()), 0);
    setenv("LD_LIBRARY_PATH", places, 1);
    expect_found(0, fifteen);
    expect_found(15030, fifteen);
    expect_found(14000, fourteen);
    remove(fifteen);
    expect_found(15000, fourteen);
    unsetenv("LD_LIBRARY_PATH");
    remove(fourteen);
    char *toolkit = common_scratch_path("cuda/lib64/libnvrtc.so.14"), *root;
    common_file_write(toolkit, "");
    ck_assert_int_gt(asprintf(&root, "%s/cuda", common_scratch()), 0);
    setenv("CUDA_PATH", root, 1);
    expect_found(0, toolkit);
    setenv("CUDA_HOME", root, 1);
    setenv("CUDA_PATH", "/nonexistent", 1);
    expect_found(14020, toolkit);
    ck_assert(!is_library_loaded());
    free(toolkit);
    free(root);
    free(places);
    free(fourteen);
    free(fifteen);
}
END_TEST

START_TEST(a_driver_older_than_every_library_is_told_so)
{
    expect_missing(NULL, 11080, ": is newer than the driver, which is CUDA 11's; ");
}
END_TEST

/* Runs this program as `interpreter PROGRAM words`. */
static char *run_self(const char *interpreter, const char *program, const char *words)
{
    char *command, *said;
    int code;
    ck_assert_int_gt(asprintf(&command, "%s %s %s", interpreter, program, words), 0);
    said = common_shell(command, &code);
    ck_assert_msg(code == 0, "%s: exit %d: %s", command, code, said);
    free(command);
    said[strcspn(said, "\n")] = '\0';
    return said;
}

START_TEST(the_one_in_the_builds_folder_is_found_first)
{
    char *program = common_scratch_path("build/tests/gpu/test_nvrtc");
    char *library = common_scratch_path("build/nvrtc/libnvrtc.so.15"), *command, *said;
    int code;
    common_file_write(library, "");
    ck_assert_int_gt(asprintf(&command, "cp %s/test_nvrtc %s", common_directory(), program), 0);
    free(common_shell(command, &code));
    ck_assert_int_eq(code, 0);
    said = run_self("", program, "find");
    ck_assert_str_eq(said, library);
    free(said);
    free(command);
    free(program);
    free(library);
}
END_TEST

/* A library with NVRTC's entry points that says it is 12.`minor` and does nothing. */
static void stub_make(const char *path, int minor)
{
#define X(type, name, parameters) "int " #name "() { return 0; }\n"
    static const char entries[] =
#include "jit/cuda/nvrtc.def"
        ;
#undef X
    char *source = common_scratch_path("stub.c"), *text, *command;
    int code;
    ck_assert_int_gt(asprintf(&text,
                              "#define nvrtcVersion other\n%s#undef nvrtcVersion\n"
                              "int nvrtcVersion(int *major, int *minor)\n"
                              "{ *major = 12; *minor = %d; return 0; }\n",
                              entries, minor),
                     0);
    common_file_write(source, text);
    ck_assert_int_gt(asprintf(&command, "cc -shared -w %s -o %s", source, path), 0);
    free(common_shell(command, &code));
    ck_assert_int_eq(code, 0);
    free(command);
    free(text);
    free(source);
}

START_TEST(a_given_library_before_12_9_is_refused_with_its_version)
{
    char *path = common_scratch_path("old/libnvrtc.so.12"), *said;
    stub_make(path, 4);
    ck_assert_int_gt(
        asprintf(&said, "nvrtc=%s: is libnvrtc 12.4: quern needs 12.9 or newer; ", path), 0);
    expect_missing(path, 0, said);
    expect_missing(path, 12080, "pip install nvidia-cuda-nvrtc-cu12, ");
    free(said);
    free(path);
}
END_TEST

/* What `test_nvrtc find` says with a driver of CUDA 12, the search being ./nvrtc, ./first, ./second
 * and then this machine's. */
static char *find_twelve(void)
{
    char *program = common_scratch_path("tests/test_nvrtc"), *command, *said;
    int code;
    ck_assert_int_gt(asprintf(&command,
                              "cp %s/test_nvrtc %s && cd %s && env -u CUDA_HOME -u CUDA_PATH "
                              "LD_LIBRARY_PATH=$PWD/first:$PWD/second %s find-for 12020 || true",
                              common_directory(), program, common_scratch(), program),
                     0);
    said = common_shell(command, &code);
    said[strcspn(said, "\n")] = '\0';
    free(command);
    free(program);
    return said;
}

static void write_empty(const char *name)
{
    char *path = common_scratch_path(name);
    common_file_write(path, "");
    free(path);
}

/* The version is in the second library's name, in that of the file which a link leads to, or only
 * the library itself tells. */
START_TEST(a_library_before_12_9_is_passed_over_for_the_next)
{
    char *first = common_scratch_path("first/libnvrtc.so.12");
    char *second = common_scratch_path("second/libnvrtc.so.12");
    write_empty("nvrtc/libnvrtc.so.12");
    write_empty("nvrtc/libnvrtc-builtins.so.12.8");
    write_empty("first/libnvrtc.so.12.4.127");
    ck_assert_int_eq(symlink("libnvrtc.so.12.4.127", first), 0);
    for (int minor = 8; minor < 12; minor++) {
        stub_make(second, minor);
        char *said = find_twelve();
        ck_assert_msg(!strcmp(said, second) == (minor >= 9), "12.%d: %s", minor, said);
        free(said);
    }
    remove(first);
    stub_make(first, 4);
    char *said = find_twelve();
    ck_assert_str_eq(said, second);
    free(said);
    write_empty("first/libnvrtc-builtins.so.12.9"); /* a name is believed */
    said = find_twelve();
    ck_assert_str_eq(said, first);
    free(said);
    free(first);
    free(second);
}
END_TEST

START_TEST(where_only_libraries_before_12_9_are_the_first_is_named)
{
    char *first = common_scratch_path("first/libnvrtc.so.12"), *expected;
    write_empty("first/libnvrtc.so.12");
    write_empty("first/libnvrtc-builtins.so.12.6");
    write_empty("second/libnvrtc.so.12");
    write_empty("second/libnvrtc-builtins.so.12.0");
    char *said = find_twelve();
    ck_assert_int_gt(asprintf(&expected,
                              "nvrtc=%s: is libnvrtc 12.6: quern needs 12.9 or newer; `make deps` "
                              "gets it, or pip install nvidia-cuda-nvrtc-cu12, or ",
                              first),
                     0);
    /* A path: this machine has one that is new enough. */
    ck_assert_msg(!strncmp(said, expected, strlen(expected)) ||
                      (*said == '/' && strncmp(said, common_scratch(), strlen(common_scratch()))),
                  "%s", said);
    free(expected);
    free(said);
    free(first);
}
END_TEST

/* Some builds of NVRTC look for their second library by its bare name only. */
START_TEST(its_second_library_is_found_where_the_loader_does_not_look)
{
    static const char loader[] = "/lib64/ld-linux-x86-64.so.2";
    char *program, *words, *path, *said;
    struct qn_nvrtc *nvrtc = nvrtc_default();
    struct quern_message why;
    if (access(loader, X_OK))
        return;
    ck_assert_int_eq(qn_nvrtc_find(nvrtc, &path, &why), 0);
    ck_assert_int_gt(asprintf(&program, "%s/test_nvrtc", common_directory()), 0);
    ck_assert_int_gt(asprintf(&words, "compile %s", path), 0);
    ck_assert_int_gt(asprintf(&said, "%s --inhibit-cache", loader), 0);
    char *line = run_self(said, program, words);
    ck_assert_str_eq(line, "compiled");
    free(line);
    free(said);
    free(words);
    free(program);
    free(path);
    qn_nvrtc_close(nvrtc);
}
END_TEST

/* ---- The suite ----------------------------------------------------------------------------- */

/* No claims here: Check runs no test. */
static int tool(const char *verb, const char *file)
{
    static const char source[] = "extern \"C\" __global__ void k() {}";
    const bool is_for = !strcmp(verb, "find-for");
    const struct qn_backend_options options = { .nvrtc = is_for ? NULL : file };
    const struct quern_target target = { .kind = QUERN_CUDA, .sm = 80 };
    const struct qn_compile_request request = { .source = source,
                                                .source_bytes = strlen(source),
                                                .target = &target,
                                                .options = "--gpu-architecture=sm_80" };
    struct qn_compile_result result = { 0 };
    struct quern_message why;
    struct qn_nvrtc *nvrtc = NULL;
    char *path = NULL;
    int status = qn_nvrtc_open(&options, is_for ? atoi(file) : 0, &nvrtc, &why);
    if (!status && !strncmp(verb, "find", 4))
        status = qn_nvrtc_find(nvrtc, &path, &why);
    else if (!status)
        status = qn_nvrtc_compile(nvrtc, &request, &result, &why);
    puts(status ? why.text : path ? path : "compiled");
    release(&result);
    free(path);
    qn_nvrtc_close(nvrtc);
    return status != 0;
}

static TCase *tcase_reports(void)
{
    TCase *tcase = tcase_create("reports");
    tcase_add_loop_test(tcase, a_log_of_ptxas_becomes_a_line_for_each_entry, 0,
                        sizeof reports / sizeof *reports);
    tcase_add_loop_test(tcase, each_warning_that_makes_the_code_useless_is_refused, 0, 9);
    tcase_add_test(tcase, a_wait_that_was_put_in_gives_way_to_what_it_led_to);
    tcase_add_test(tcase, a_given_file_that_is_no_nvrtc_is_named_with_how_to_get_one);
    tcase_add_test(tcase, a_library_of_another_kind_is_refused);
    tcase_add_test(tcase, the_newest_major_that_the_driver_takes_is_found_without_loading);
    tcase_add_test(tcase, the_one_in_the_builds_folder_is_found_first);
    tcase_add_test(tcase, a_given_library_before_12_9_is_refused_with_its_version);
    tcase_add_test(tcase, a_library_before_12_9_is_passed_over_for_the_next);
    tcase_add_test(tcase, where_only_libraries_before_12_9_are_the_first_is_named);
    return tcase;
}

enum { LIBRARY_CHECKS = 16 };

static TCase *tcase_library(void)
{
    TCase *tcase = tcase_create("library");
    tcase_set_timeout(tcase, 60);
    tcase_add_test(tcase, a_touched_accumulator_is_refused_as_c7511);
    tcase_add_test(tcase, an_ignored_setmaxnreg_is_refused_as_c7508);
    tcase_add_test(tcase, spilled_registers_are_reported);
    tcase_add_test(tcase, a_kernel_becomes_a_cubin_for_every_target);
    tcase_add_loop_test(tcase, a_target_that_nvrtc_does_not_know_is_named_with_those_it_knows, 0,
                        3);
    tcase_add_test(tcase, an_error_in_the_source_is_one_line_with_the_log_kept);
    tcase_add_test(tcase, headers_of_the_directory_the_environment_and_the_system_are_not_found);
    tcase_add_test(tcase, no_byte_past_source_bytes_is_compiled);
    tcase_add_test(tcase, threads_compile_at_once_and_get_equal_cubins);
    tcase_add_test(tcase, the_identity_names_version_and_build_and_no_path);
    tcase_add_test(tcase, the_identity_is_asked_for_once_and_then_known_without_loading);
    tcase_add_test(tcase, a_damaged_fact_is_asked_for_again);
    tcase_add_test(tcase, a_driver_older_than_every_library_is_told_so);
    tcase_add_test(tcase, its_second_library_is_found_where_the_loader_does_not_look);
    return tcase;
}

int main(int argc, char **argv)
{
    if (argc > 1)
        return tool(argv[1], argc > 2 ? argv[2] : NULL);
    Suite *suite = suite_create("nvrtc");
    suite_add_tcase(suite, tcase_reports());
    if (!cuda_is_skipped(LIBRARY_CHECKS))
        suite_add_tcase(suite, tcase_library());
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed != 0;
}
