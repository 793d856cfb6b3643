/* The CPU backend through its table: compile, load, run; and what it refuses.
 *
 * Runs without forking (CK_NOFORK), since OpenMP and LLVM do not survive a fork; the one case that
 * wants crashes contained forks a child itself, before this process has loaded either. */
#define _GNU_SOURCE
#include <check.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "jit/backend.h"
#include "jit/cpu/cpu.h"
#include "jit/target.h"
#include "tests/cpu_object.h"

static const struct qn_backend *const cpu = &qn_backend_cpu;

/* ---- Setting up ---------------------------------------------------------------------------- */

/* ThreadSanitizer cannot see libgomp's barriers and would call them races: one thread under it. */
#ifdef __SANITIZE_THREAD__
enum { IS_TEAM_ALLOWED = 0 };
#else
enum { IS_TEAM_ALLOWED = 1 };
#endif

static struct qn_device *device_open(int threads)
{
    struct qn_backend_options options = { .threads = IS_TEAM_ALLOWED ? threads : 1 };
    struct qn_device *device;
    struct quern_message why = { "" };

    ck_assert_msg(!cpu->open(&options, &device, &why), "%s", why.text);
    return device;
}

static struct quern_target host_target(const struct qn_device *device)
{
    struct quern_target target;
    struct quern_profile profile;

    cpu->describe(device, &target, &profile);
    return target;
}

/* A kernel loaded from source, and a one-step plan around it. */
struct loaded {
    struct qn_module *module;
    struct qn_function *functions[QUERN_MAX_STEPS];
    struct quern_plan plan;
    struct quern_launch launch;
};

static struct loaded *load(struct qn_device *device, const char *source, const char *entry)
{
    struct quern_target target = host_target(device);
    struct cpu_object blob = cpu_object_make(&target, source);
    struct loaded *loaded = aligned_alloc(64, (sizeof *loaded + 63) / 64 * 64);
    struct quern_message why = { "" };

    ck_assert_ptr_nonnull(loaded);
    memset(loaded, 0, sizeof *loaded);
    int status = cpu->load(device, &target, blob.data, blob.bytes, &loaded->module, &why);
    ck_assert_msg(!status, "%s", why.text);
    memset(blob.data, 0xa5, blob.bytes); /* the backend keeps a copy */
    free(blob.data);
    status = cpu->function(device, loaded->module, entry, &loaded->functions[0], &why);
    ck_assert_msg(!status, "%s", why.text);
    loaded->plan.step_count = 1;
    loaded->plan.steps[0].kind = QUERN_STEP_KERNEL;
    return loaded;
}

static void unload(struct qn_device *device, struct loaded *loaded)
{
    cpu->unload(device, loaded->module);
    free(loaded);
}

#define RUN(device, loaded, arguments, x, y, z, order)                                             \
    do {                                                                                           \
        struct quern_message run_why = { "" };                                                     \
        QUERN_BIND(&(loaded)->launch.steps[0], arguments, x, y, z);                                \
        int run_status = cpu->launch(device, &(loaded)->plan, (loaded)->functions,                 \
                                     &(loaded)->launch, NULL, order, &run_why);                    \
        ck_assert_msg(!run_status, "%s", run_why.text);                                            \
    } while (0)

static void expect_refused(struct qn_device *device, const char *source, const char *reason)
{
    struct quern_target target = host_target(device);
    struct cpu_object blob = cpu_object_make(&target, source);
    char options[512];
    struct qn_compile_request request = { .source = source,
                                          .source_bytes = strlen(source),
                                          .target = &target,
                                          .options = options,
                                          .timeout_s = 30 };
    struct qn_compile_result result;
    struct qn_module *module = NULL;
    struct quern_message why = { "" };

    ck_assert_msg(cpu->load(device, &target, blob.data, blob.bytes, &module, &why) == QUERN_LOAD,
                  "%s", source);
    ck_assert_msg(strstr(why.text, reason) != NULL, "%s", why.text);
    ck_assert_ptr_null(module);
    cpu->options(&target, options, sizeof options);
    ck_assert_int_eq(cpu->compile(device, &request, &result, &why), QUERN_COMPILE);
    ck_assert_msg(strstr(why.text, reason) != NULL, "%s", why.text);
    ck_assert_ptr_null(result.blob);
    free(result.log);
    free(result.report);
    free(blob.data);
}

/* ---- Running ------------------------------------------------------------------------------- */

struct axpy {
    float *y;
    const float *x;
    float a;
    int n;
};
static const char axpy_source[] =
    "struct args { float *y; const float *x; float a; int n; };\n"
    "void axpy(const void *p, unsigned x, unsigned y, unsigned z)\n"
    "{ const struct args *g = p; for (int i = x * 64; i < g->n && i < x * 64 + 64; i++)\n"
    "  g->y[i] += g->a * g->x[i]; }\n";

START_TEST(a_kernel_compiled_and_loaded_computes)
{
    enum { N = 1000, GUARD = 64 };
    struct qn_device *device = device_open(0);
    struct loaded *loaded = load(device, axpy_source, "axpy");
    float x[N], y[N + GUARD], expected[N + GUARD];
    struct axpy arguments = { y, x, 1.5f, N };

    for (int i = 0; i < N + GUARD; i++)
        expected[i] = y[i] = (float)cpu_object_dice() / 4e9f - 0.5f;
    for (int i = 0; i < N; i++) {
        x[i] = (float)(cpu_object_dice() % 1024) / 1024;
        expected[i] = __builtin_fmaf(1.5f, x[i], expected[i]);
    }
    RUN(device, loaded, arguments, (N + 63) / 64, 1, 1, QN_GRID_PARALLEL);
    for (int i = 0; i < N + GUARD; i++)
        ck_assert_float_eq_tol(y[i], expected[i], 1e-6f);
    unload(device, loaded);
    cpu->close(device);
}
END_TEST

struct copy_args {
    unsigned char *to;
    const unsigned char *from;
    long bytes;
};

START_TEST(memcpy_and_memset_are_provided)
{
    struct qn_device *device = device_open(1);
    struct loaded *loaded =
        load(device,
             "struct args { char *to; const char *from; long bytes; };\n"
             "void k(const void *p, unsigned x, unsigned y, unsigned z)\n"
             "{ const struct args *g = p; __builtin_memset(g->to + g->bytes, 7, g->bytes);\n"
             "  __builtin_memcpy(g->to, g->from, g->bytes); }\n",
             "k");
    unsigned char from[777], to[1600];
    struct copy_args arguments = { to, from, sizeof from };

    for (size_t i = 0; i < sizeof from; i++)
        from[i] = (unsigned char)cpu_object_dice();
    memset(to, 0xa5, sizeof to);
    RUN(device, loaded, arguments, 1, 1, 1, QN_GRID_PARALLEL);
    ck_assert_mem_eq(to, from, sizeof from);
    for (size_t i = sizeof from; i < sizeof to; i++)
        ck_assert_int_eq(to[i], i < 2 * sizeof from ? 7 : 0xa5);
    unload(device, loaded);
    cpu->close(device);
}
END_TEST

START_TEST(constants_tables_and_static_data_are_linked)
{
    struct qn_device *device = device_open(1);
    struct loaded *loaded =
        load(device,
             "struct args { unsigned *out; };\n"
             "static unsigned calls; const unsigned table[4] = { 11, 22, 33, 44 };\n"
             "static const unsigned *const rows[2] = { table, table + 2 };\n"
             "void k(const void *p, unsigned x, unsigned y, unsigned z)\n"
             "{ const struct args *g = p; g->out[x] = rows[x / 2 % 2][x % 2] + 100 * ++calls; }\n",
             "k");
    unsigned out[4] = { 1, 2, 3, 4 }, *arguments[1] = { out };

    RUN(device, loaded, arguments, 4, 1, 1, QN_GRID_FORWARD);
    for (unsigned i = 0; i < 4; i++)
        ck_assert_uint_eq(out[i], 11 * (i + 1) + 100 * (i + 1));
    unload(device, loaded);
    cpu->close(device);
}
END_TEST

START_TEST(two_modules_with_one_name_do_not_meet_and_namespaces_are_reused)
{
    struct qn_device *device = device_open(1);
    unsigned value = 0, *arguments[1] = { &value };
    char source[160];

    for (int round = 0; round < 3; round++) {
        struct loaded *loaded[3];
        unsigned numbers[3];
        for (int i = 0; i < 3; i++) {
            numbers[i] = cpu_object_dice();
            snprintf(source, sizeof source,
                     "void k(const void *p, unsigned x, unsigned y, unsigned z)\n"
                     "{ **(unsigned *const *)p = %uu; }",
                     numbers[i]);
            loaded[i] = load(device, source, "k");
        }
        for (int i = 0; i < 3; i++) {
            RUN(device, loaded[i], arguments, 1, 1, 1, QN_GRID_PARALLEL);
            ck_assert_uint_eq(value, numbers[i]);
        }
        for (int i = 0; i < 3; i++)
            unload(device, loaded[(i + round) % 3]);
    }
    cpu->close(device);
}
END_TEST

static void *load_and_run(void *device)
{
    unsigned value = 0, number = cpu_object_dice(), *arguments[1] = { &value };
    char source[160];

    snprintf(source, sizeof source,
             "void k(const void *p, unsigned x, unsigned y, unsigned z)\n"
             "{ __atomic_add_fetch(*(unsigned *const *)p, %uu, __ATOMIC_RELAXED); }",
             number);
    struct loaded *loaded = load(device, source, "k");
    for (unsigned i = 1; i <= 20; i++) {
        RUN(device, loaded, arguments, 3, 1, 1, QN_GRID_PARALLEL);
        ck_assert_uint_eq(value, 3 * i * number);
    }
    unload(device, loaded);
    return NULL;
}

START_TEST(threads_load_run_and_unload_on_one_device)
{
    struct qn_device *device = device_open(2);
    pthread_t threads[8];

    for (int i = 0; i < 8; i++)
        ck_assert_int_eq(pthread_create(&threads[i], NULL, load_and_run, device), 0);
    for (int i = 0; i < 8; i++)
        pthread_join(threads[i], NULL);
    cpu->close(device);
}
END_TEST

START_TEST(an_entry_that_is_not_there_is_named)
{
    struct qn_device *device = device_open(1);
    struct loaded *loaded = load(device, axpy_source, "axpy");
    struct qn_function *function = NULL;
    struct quern_message why;

    ck_assert_int_eq(cpu->function(device, loaded->module, "axpby", &function, &why), QUERN_LOAD);
    ck_assert_ptr_eq(strstr(why.text, "entry=axpby: "), why.text);
    ck_assert_ptr_null(function);
    /* Nor is anything of this process to be had. */
    ck_assert_int_eq(cpu->function(device, loaded->module, "puts", &function, &why), QUERN_LOAD);
    unload(device, loaded);
    cpu->close(device);
}
END_TEST

#ifdef __x86_64__
/* One 16x16x32 bf16 tile product, A (16x32) times B (pairs of rows interleaved). */
static const char amx_source[] =
    "struct args { float *c; const void *a, *b; };\n"
    "struct config { unsigned char palette, start, reserved[14]; unsigned short bytes[16];\n"
    "                unsigned char rows[16]; };\n"
    "void k(const void *p, unsigned x, unsigned y, unsigned z)\n"
    "{ const struct args *g = p; struct config c = { .palette = 1 };\n"
    "  for (int i = 0; i < 3; i++) c.bytes[i] = 64, c.rows[i] = 16;\n"
    "  __builtin_ia32_tile_loadconfig(&c); __builtin_ia32_tilezero(0);\n"
    "  __builtin_ia32_tileloadd64(1, g->a, 64); __builtin_ia32_tileloadd64(2, g->b, 64);\n"
    "  __builtin_ia32_tdpbf16ps(0, 1, 2); __builtin_ia32_tilestored64(0, g->c, 64);\n"
    "  __builtin_ia32_tilerelease(); }\n";

struct amx_args {
    float *c;
    const void *a, *b;
};

/* A small integer as bf16, which holds it exactly: the sums are exact too. */
static uint16_t bf16_of(int value)
{
    float real = (float)value;
    uint32_t bits;
    memcpy(&bits, &real, sizeof bits);
    return (uint16_t)(bits >> 16);
}

START_TEST(amx_tiles_multiply_where_the_target_says_so)
{
    struct qn_device *device = device_open(2);
    struct quern_target target = host_target(device);
    int a[16][32], b[32][16];
    uint16_t packed_a[16][32], packed_b[16][16][2];
    float c[16][16];
    struct amx_args arguments = { &c[0][0], packed_a, packed_b };

    if (!(target.cpu_features & QUERN_CPU_AMX)) {
        cpu->close(device);
        return;
    }
    for (int i = 0; i < 16; i++)
        for (int j = 0; j < 32; j++) {
            a[i][j] = (int)(cpu_object_dice() % 31) - 15;
            b[j][i] = (int)(cpu_object_dice() % 31) - 15;
            packed_a[i][j] = bf16_of(a[i][j]);
            packed_b[j / 2][i][j % 2] = bf16_of(b[j][i]);
        }
    struct loaded *loaded = load(device, amx_source, "k");
    RUN(device, loaded, arguments, 1, 1, 1, QN_GRID_PARALLEL);
    for (int i = 0; i < 16; i++)
        for (int j = 0; j < 16; j++) {
            int sum = 0;
            for (int k = 0; k < 32; k++)
                sum += a[i][k] * b[k][j];
            ck_assert_float_eq(c[i][j], (float)sum);
        }
    unload(device, loaded);
    cpu->close(device);
}
END_TEST
#endif

/* ---- Grids --------------------------------------------------------------------------------- */

struct trace {
    unsigned *next; /* how many blocks have run */
    unsigned (*blocks)[3];
};
static const char trace_source[] =
    "struct args { unsigned *next; unsigned (*blocks)[3]; };\n"
    "void k(const void *p, unsigned x, unsigned y, unsigned z)\n"
    "{ const struct args *g = p;\n"
    "  unsigned i = __atomic_fetch_add(g->next, 1, __ATOMIC_RELAXED);\n"
    "  g->blocks[i][0] = x; g->blocks[i][1] = y; g->blocks[i][2] = z; }\n";

START_TEST(forward_and_reverse_are_such_and_parallel_runs_each_block_once)
{
    struct qn_device *device = device_open(4);
    struct loaded *loaded = load(device, trace_source, "k");

    for (int round = 0; round < 30; round++) {
        unsigned gx = 1 + cpu_object_dice() % 9, gy = 1 + cpu_object_dice() % 5,
                 gz = 1 + cpu_object_dice() % 4, next = 0;
        unsigned count = gx * gy * gz, blocks[180][3], seen[180] = { 0 };
        enum qn_grid_order order = (enum qn_grid_order)(round % 3);
        struct trace arguments = { &next, blocks };

        RUN(device, loaded, arguments, gx, gy, gz, order);
        ck_assert_uint_eq(next, count);
        for (unsigned i = 0; i < count; i++) {
            ck_assert(blocks[i][0] < gx && blocks[i][1] < gy && blocks[i][2] < gz);
            unsigned index = (blocks[i][2] * gy + blocks[i][1]) * gx + blocks[i][0];
            ck_assert_uint_eq(seen[index]++, 0);
            if (order != QN_GRID_PARALLEL)
                ck_assert_uint_eq(index, order == QN_GRID_FORWARD ? i : count - 1 - i);
        }
    }
    unload(device, loaded);
    cpu->close(device);
}
END_TEST

/* Each block waits, for at most a second or so, until all have come. */
static const char rendezvous_source[] =
    "struct args { unsigned *arrived, *met; };\n"
    "void k(const void *p, unsigned x, unsigned y, unsigned z)\n"
    "{ const struct args *g = p; __atomic_add_fetch(g->arrived, 1, __ATOMIC_SEQ_CST);\n"
    "  for (long i = 0; i < 2000000000; i++)\n"
    "    if (__atomic_load_n(g->arrived, __ATOMIC_SEQ_CST) == 2)\n"
    "      { __atomic_add_fetch(g->met, 1, __ATOMIC_SEQ_CST); return; } }\n";

START_TEST(two_threads_run_two_blocks_at_once)
{
    struct qn_device *device = device_open(2);
    struct loaded *loaded = load(device, rendezvous_source, "k");
    unsigned arrived = 0, met = 0, *arguments[2] = { &arrived, &met };

    if (IS_TEAM_ALLOWED) {
        RUN(device, loaded, arguments, 1, 2, 1, QN_GRID_PARALLEL);
        ck_assert_uint_eq(met, 2);
    }
    unload(device, loaded);
    cpu->close(device);
}
END_TEST

/* libgomp would wait in the child for a team that stayed with the parent. */
START_TEST(a_forked_child_runs_its_grids_without_the_team)
{
    struct qn_device *device = device_open(2);
    struct loaded *loaded = load(device, trace_source, "k");
    unsigned next = 0, blocks[64][3];
    struct trace arguments = { &next, blocks };
    int status = -1;

    RUN(device, loaded, arguments, 64, 1, 1, QN_GRID_PARALLEL);
    ck_assert_uint_eq(next, 64);
    pid_t child = fork();
    if (!child) {
        alarm(20);
        next = 0;
        RUN(device, loaded, arguments, 64, 1, 1, QN_GRID_PARALLEL);
        _exit(next != 64);
    }
    ck_assert_int_eq(waitpid(child, &status, 0), child);
    ck_assert_msg(WIFEXITED(status) && !WEXITSTATUS(status), "status %d", status);
    unload(device, loaded);
    cpu->close(device);
}
END_TEST

START_TEST(an_empty_grid_runs_nothing_and_an_endless_one_is_refused)
{
    struct qn_device *device = device_open(2);
    struct loaded *loaded = load(device, trace_source, "k");
    unsigned next = 0, blocks[1][3];
    struct trace arguments = { &next, blocks };
    struct quern_message why;

    RUN(device, loaded, arguments, 0, 5, 5, QN_GRID_PARALLEL);
    RUN(device, loaded, arguments, 5, 0, 5, QN_GRID_FORWARD);
    RUN(device, loaded, arguments, 5, 5, 0, QN_GRID_REVERSE);
    RUN(device, loaded, arguments, ~0u, ~0u, 0, QN_GRID_PARALLEL);
    QUERN_BIND(&loaded->launch.steps[0], arguments, ~0u, ~0u, 2);
    ck_assert_int_eq(cpu->launch(device, &loaded->plan, loaded->functions, &loaded->launch, NULL,
                                 QN_GRID_PARALLEL, &why),
                     QUERN_INVALID);
    ck_assert_ptr_eq(strstr(why.text, "grid=4294967295x4294967295x2: "), why.text);
    ck_assert_uint_eq(next, 0);
    unload(device, loaded);
    cpu->close(device);
}
END_TEST

START_TEST(a_launch_that_is_not_aligned_is_refused)
{
    struct qn_device *device = device_open(1);
    struct loaded *loaded = load(device, trace_source, "k");
    char *raw = calloc(1, sizeof(struct quern_launch) + 128);
    struct quern_launch *crooked = (struct quern_launch *)(((uintptr_t)raw | 63) + 1 + 16);
    struct quern_message why;

    ck_assert_int_eq(
        cpu->launch(device, &loaded->plan, loaded->functions, crooked, NULL, QN_GRID_FORWARD, &why),
        QUERN_INVALID);
    ck_assert_ptr_nonnull(strstr(why.text, "64-byte aligned"));
    free(raw);
    unload(device, loaded);
    cpu->close(device);
}
END_TEST

START_TEST(steps_run_in_order_and_a_memset_step_sets_zero)
{
    struct qn_device *device = device_open(2);
    struct loaded *loaded = load(device, axpy_source, "axpy");
    float x[200], y[201], last = 42;
    struct axpy arguments = { y, x, 2, 200 };
    double nanoseconds = -1;
    struct quern_message why;

    for (int i = 0; i < 200; i++)
        x[i] = (float)(cpu_object_dice() % 100 + 1), y[i] = (float)cpu_object_dice();
    y[200] = last;
    /* y += 2x; y = 0; y += 2x */
    loaded->plan.step_count = 3;
    loaded->plan.steps[1].kind = QUERN_STEP_MEMSET;
    loaded->functions[2] = loaded->functions[0];
    QUERN_BIND(&loaded->launch.steps[0], arguments, 4, 1, 1);
    loaded->launch.steps[1].memset_data = y;
    loaded->launch.steps[1].memset_bytes = 200 * sizeof *y;
    QUERN_BIND(&loaded->launch.steps[2], arguments, 4, 1, 1);
    ck_assert_int_eq(cpu->time_launch(device, &loaded->plan, loaded->functions, &loaded->launch,
                                      NULL, &nanoseconds, &why),
                     0);
    for (int i = 0; i < 200; i++)
        ck_assert_float_eq(y[i], 2 * x[i]);
    ck_assert_float_eq(y[200], last);
    ck_assert_double_gt(nanoseconds, 0);
    loaded->launch.steps[1].memset_data = NULL;
    ck_assert_int_eq(cpu->launch(device, &loaded->plan, loaded->functions, &loaded->launch, NULL,
                                 QN_GRID_PARALLEL, &why),
                     QUERN_INVALID);
    unload(device, loaded);
    cpu->close(device);
}
END_TEST

/* ---- Refusing ------------------------------------------------------------------------------ */

#define ENTRY "void k(const void *p, unsigned x, unsigned y, unsigned z)"

START_TEST(imports_thread_locals_and_constructors_are_refused)
{
    struct qn_device *device = device_open(1);

    expect_refused(device, "int puts(const char *); " ENTRY " { puts(p); }",
                   "artifact imports symbol=puts: only memcpy and memset are provided");
    expect_refused(device, "extern int environ; " ENTRY " { *(int *)p = environ; }",
                   "imports symbol=environ");
    expect_refused(device, "_Thread_local int t; " ENTRY " { *(int *)p = t++; }",
                   "no thread-local data");
    expect_refused(device,
                   "volatile int t; __attribute__((constructor)) void c(void) { t = 1; } " ENTRY
                   " { *(int *)p = t; }",
                   "no constructors");
    expect_refused(device,
                   "int t; __attribute__((section(\".ctors\"))) void *c = &t; " ENTRY
                   " { *(int *)p = t; }",
                   "no constructors");
    expect_refused(device,
                   "static void real(void) {} __attribute__((ifunc(\"pick\"))) void i(void);\n"
                   "void (*pick(void))(void) { return real; } " ENTRY " { i(); }",
                   "symbol=i: type");
    expect_refused(device, "int only_data = 4;", "defines no function");
    cpu->close(device);
}
END_TEST

START_TEST(targets_that_this_machine_lacks_are_refused)
{
    static const struct {
        const char *host, *target, *reason;
    } cases[] = {
        { "cpu:x86-64-v2", "cpu:x86-64-v4", "lacks x86-64-v4" },
        { "cpu:x86-64-v3", "cpu:x86-64-v4+bf16", "lacks x86-64-v4" },
        { "cpu:x86-64-v4", "cpu:x86-64-v4+bf16+amx", "lacks bf16 amx" },
        { "cpu:x86-64-v4+bf16", "cpu:x86-64-v4+bf16+vnni", "lacks vnni" },
        { "cpu:x86-64-v4", "cpu:aarch64", "another architecture" },
        { "cpu:aarch64", "cpu:x86-64-v1", "another architecture" },
        { "cpu:x86-64-v4", "sm_90a", "another architecture" },
        { "cpu:x86-64-v4+amx", "cpu:x86-64-v1", NULL },
        { "cpu:x86-64-v4+bf16+vnni+amx", "cpu:x86-64-v4+vnni", NULL },
        { "cpu:aarch64", "cpu:aarch64", NULL },
    };

    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct quern_target host, target;
        struct quern_message why = { "" };
        ck_assert_int_eq(qn_target_parse(cases[i].host, &host, &why), 0);
        ck_assert_int_eq(qn_target_parse(cases[i].target, &target, &why), 0);
        int status = qn_cpu_target_accepts(&host, &target, &why);
        ck_assert_int_eq(status, cases[i].reason ? QUERN_INVALID : 0);
        if (cases[i].reason)
            ck_assert_msg(strstr(why.text, cases[i].reason) && strstr(why.text, cases[i].target),
                          "%s", why.text);
    }
}
END_TEST

START_TEST(an_object_for_another_machine_is_never_loaded)
{
    struct qn_device *device = device_open(1);
    struct quern_target here = host_target(device), there = here;
    struct qn_module *module = NULL;
    struct quern_message why;

    there.cpu_arch = !here.cpu_arch;
    there.cpu_features = 0;
    there.cpu_level = there.cpu_arch ? 0 : 1;
    struct cpu_object blob = cpu_object_make(&there, axpy_source);
    ck_assert_int_eq(cpu->load(device, &there, blob.data, blob.bytes, &module, &why), QUERN_LOAD);
    ck_assert_ptr_nonnull(strstr(why.text, "another architecture"));
    /* Also when it claims to be ours. */
    ck_assert_int_eq(cpu->load(device, &here, blob.data, blob.bytes, &module, &why), QUERN_LOAD);
    ck_assert_ptr_nonnull(strstr(why.text, "artifact machine="));
    ck_assert_ptr_null(module);
    free(blob.data);
    cpu->close(device);
}
END_TEST

START_TEST(options_are_canonical_and_name_the_instruction_set)
{
    struct quern_target target = { .cpu_level = 4, .cpu_features = QUERN_CPU_BF16 | QUERN_CPU_AMX };
    char text[512];

    cpu->options(&target, text, sizeof text);
    ck_assert_str_eq(text, "--target=x86_64-unknown-linux-gnu -std=gnu11 -O3 -ffreestanding "
                           "-nostdlibinc -fPIC -ffp-contract=fast -fno-math-errno "
                           "-fno-asynchronous-unwind-tables -fno-stack-protector "
                           "-mprefer-vector-width=512 -march=x86-64-v4 -mavx512bf16 -mamx-tile "
                           "-mamx-bf16 -mamx-int8");
    target = (struct quern_target){ .cpu_level = 1 };
    cpu->options(&target, text, sizeof text);
    ck_assert_ptr_nonnull(strstr(text, " -march=x86-64"));
    ck_assert_ptr_null(strstr(text, "-v"));
}
END_TEST

/* ---- Damage -------------------------------------------------------------------------------- */

/* In a child: load damaged objects until done or dead; *round says how far it came. */
static void load_damaged(const struct cpu_object *blob, unsigned seed, int rounds,
                         atomic_int *round)
{
    struct qn_device *device = device_open(1);
    struct quern_target target = host_target(device);
    unsigned char *copy = malloc(blob->bytes);

    for (; atomic_load(round) < rounds; atomic_fetch_add(round, 1)) {
        struct qn_module *module;
        struct quern_message why;
        unsigned state = seed + (unsigned)atomic_load(round);
        memcpy(copy, blob->data, blob->bytes);
        cpu_object_damage(copy, blob->bytes, &state);
        if (!cpu->load(device, &target, copy, blob->bytes, &module, &why))
            cpu->unload(device, module);
        else if (!why.text[0] || strchr(why.text, '\n'))
            _exit(3);
    }
    /* The device is as good as new. */
    unload(device, load(device, axpy_source, "axpy"));
    cpu->close(device);
    free(copy);
    _exit(0);
}

START_TEST(damaged_objects_never_crash_the_linker)
{
    enum { ROUNDS = 600 };
    struct quern_target target = { .cpu_level = 1 };
    atomic_int *round =
        mmap(NULL, sizeof *round, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    unsigned seed = cpu_object_dice();
    int status;

#ifdef __aarch64__
    target = (struct quern_target){ .cpu_arch = 1 };
#endif
    ck_assert(round != MAP_FAILED);
    struct cpu_object blob = cpu_object_make(&target, cpu_object_varied_source);
    pid_t pid = fork();
    if (!pid)
        load_damaged(&blob, seed, ROUNDS, round);
    ck_assert_int_eq(waitpid(pid, &status, 0), pid);
    ck_assert_msg(WIFEXITED(status) && !WEXITSTATUS(status), "seed %u: wait status 0x%x",
                  seed + (unsigned)atomic_load(round), status);
    ck_assert_int_eq(atomic_load(round), ROUNDS);
    munmap(round, sizeof *round);
    free(blob.data);
}
END_TEST

/* ---- The machine --------------------------------------------------------------------------- */

#ifdef __x86_64__
/* Whether the kernel lists a flag for the first processor: someone else's reading of cpuid. */
static int has_flag(const char *flag)
{
    char line[8192], wanted[32];
    FILE *file = fopen("/proc/cpuinfo", "r");
    int has = 0;

    ck_assert_ptr_nonnull(file);
    snprintf(wanted, sizeof wanted, " %s ", flag);
    while (fgets(line, sizeof line, file) && strncmp(line, "flags", 5))
        ;
    line[strcspn(line, "\n")] = ' ';
    has = strstr(line, wanted) != NULL;
    fclose(file);
    return has;
}

START_TEST(the_target_is_what_the_kernel_lists)
{
    struct qn_device *device = device_open(0);
    struct quern_target target = host_target(device);
    int v2 = has_flag("pni") && has_flag("ssse3") && has_flag("cx16") && has_flag("sse4_1") &&
             has_flag("sse4_2") && has_flag("popcnt") && has_flag("lahf_lm");
    int v3 = v2 && has_flag("avx") && has_flag("avx2") && has_flag("fma") && has_flag("f16c") &&
             has_flag("bmi1") && has_flag("bmi2") && has_flag("movbe") && has_flag("abm");
    int v4 = v3 && has_flag("avx512f") && has_flag("avx512bw") && has_flag("avx512cd") &&
             has_flag("avx512dq") && has_flag("avx512vl");

    ck_assert_int_eq(target.cpu_level, 1 + v2 + v3 + v4);
    ck_assert_int_eq(!!(target.cpu_features & QUERN_CPU_BF16), v4 && has_flag("avx512_bf16"));
    ck_assert_int_eq(!!(target.cpu_features & QUERN_CPU_VNNI), v4 && has_flag("avx512_vnni"));
    /* The kernel may list tiles and not grant them. */
    if (target.cpu_features & QUERN_CPU_AMX)
        ck_assert(has_flag("amx_tile") && has_flag("amx_bf16") && has_flag("amx_int8"));
    cpu->close(device);
}
END_TEST
#endif

START_TEST(the_profile_is_stable_and_counts_the_threads)
{
    struct quern_profile first, second;
    struct quern_target target;
    struct qn_backend_options options = { .threads = 3 };
    struct qn_device *device;
    struct quern_message why;

    ck_assert_int_eq(cpu->open(&options, &device, &why), 0);
    cpu->describe(device, &target, &first);
    cpu->close(device);
    ck_assert_int_eq(cpu->open(&options, &device, &why), 0);
    cpu->describe(device, &target, &second);
    cpu->close(device);
    ck_assert_mem_eq(&first, &second, sizeof first);
    ck_assert_int_eq(first.cores, 3);
    ck_assert_ptr_nonnull(strstr(first.name, " threads=3"));
    ck_assert_ptr_null(strchr(first.name, '@'));
    ck_assert_int_ge(first.l2_bytes, 0);
}
END_TEST

START_TEST(memory_is_aligned_and_holds_what_is_put_there)
{
    static const size_t sizes[] = { 0, 1, 255, 256, 4097, (1 << 20) - 1, 1 << 20, (5 << 20) + 3 };
    struct qn_device *device = device_open(1);

    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        size_t bytes = sizes[i];
        unsigned char *data = cpu->alloc(device, bytes, NULL), *back = malloc(bytes + 1);
        ck_assert_ptr_nonnull(data);
        ck_assert_uint_eq((uintptr_t)data % (bytes >= 1 << 20 ? 4096 : 256), 0);
        int byte = (int)(cpu_object_dice() % 256);
        ck_assert_int_eq(cpu->fill(device, data, byte, bytes, NULL), 0);
        ck_assert_int_eq(cpu->copy(device, back, data, bytes, NULL), 0);
        for (size_t k = 0; k < bytes; k++)
            if (back[k] != byte)
                ck_abort_msg("byte %zu of %zu", k, bytes);
        cpu->free(device, data, bytes, NULL);
        free(back);
    }
    ck_assert_ptr_null(cpu->alloc(device, SIZE_MAX, NULL));
    ck_assert_ptr_null(cpu->alloc(device, SIZE_MAX / 2, NULL));
    ck_assert_uint_gt(cpu->free_bytes(device), 1 << 20);
    cpu->close(device);
}
END_TEST

struct facts {
    char usable[8], clang[512], llvm[512], target[64];
};

static void keep_fact(void *user, const char *section, const char *name, const char *value)
{
    struct facts *facts = user;

    ck_assert_str_eq(section, "cpu");
    ck_assert_ptr_null(strchr(value, '\n'));
    if (!strcmp(name, "usable"))
        snprintf(facts->usable, sizeof facts->usable, "%s", value);
    if (!strcmp(name, "clang"))
        snprintf(facts->clang, sizeof facts->clang, "%s", value);
    if (!strcmp(name, "llvm"))
        snprintf(facts->llvm, sizeof facts->llvm, "%s", value);
    if (!strcmp(name, "target"))
        snprintf(facts->target, sizeof facts->target, "%s", value);
}

START_TEST(doctor_says_what_is_here_and_what_is_missing)
{
    struct qn_backend_options options = { .clang = "/nowhere/clang" };
    struct facts facts = { "", "", "", "" };
    struct quern_target target;
    struct quern_message why;

    cpu->doctor(&options, NULL, keep_fact, &facts);
    ck_assert_str_eq(facts.usable, "yes");
    ck_assert_ptr_eq(strstr(facts.clang, "clang=/nowhere/clang: not found"), facts.clang);
    ck_assert_ptr_nonnull(strstr(facts.llvm, "libLLVM"));
    ck_assert_int_eq(qn_target_parse(facts.target, &target, &why), 0);

    struct qn_device *device = device_open(0);
    memset(&facts, 0, sizeof facts);
    cpu->doctor(&options, device, keep_fact, &facts);
    ck_assert_int_eq(access(facts.clang, X_OK), 0);
    cpu->close(device);
}
END_TEST

START_TEST(thread_counts_that_cannot_be_are_refused)
{
    static const int counts[] = { -2, QN_MOST_THREADS + 1 };
    for (int i = 0; i < 2; i++) {
        struct qn_backend_options options = { .threads = counts[i] };
        struct qn_device *device = NULL;
        struct quern_message why;
        char wanted[32];

        snprintf(wanted, sizeof wanted, "threads=%d: ", counts[i]);
        ck_assert_int_eq(cpu->open(&options, &device, &why), QUERN_INVALID);
        ck_assert_ptr_eq(strstr(why.text, wanted), why.text);
        ck_assert_ptr_null(device);
    }
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("cpu_backend");
    TCase *cases = tcase_create("device");

    /* First: it forks, and what follows starts threads. */
    tcase_add_test(cases, damaged_objects_never_crash_the_linker);
    tcase_add_test(cases, a_kernel_compiled_and_loaded_computes);
    tcase_add_test(cases, memcpy_and_memset_are_provided);
    tcase_add_test(cases, constants_tables_and_static_data_are_linked);
    tcase_add_test(cases, two_modules_with_one_name_do_not_meet_and_namespaces_are_reused);
    tcase_add_test(cases, threads_load_run_and_unload_on_one_device);
    tcase_add_test(cases, an_entry_that_is_not_there_is_named);
    tcase_add_test(cases, forward_and_reverse_are_such_and_parallel_runs_each_block_once);
    tcase_add_test(cases, two_threads_run_two_blocks_at_once);
    tcase_add_test(cases, a_forked_child_runs_its_grids_without_the_team);
    tcase_add_test(cases, an_empty_grid_runs_nothing_and_an_endless_one_is_refused);
    tcase_add_test(cases, a_launch_that_is_not_aligned_is_refused);
    tcase_add_test(cases, steps_run_in_order_and_a_memset_step_sets_zero);
    tcase_add_test(cases, imports_thread_locals_and_constructors_are_refused);
    tcase_add_test(cases, targets_that_this_machine_lacks_are_refused);
    tcase_add_test(cases, an_object_for_another_machine_is_never_loaded);
    tcase_add_test(cases, options_are_canonical_and_name_the_instruction_set);
    tcase_add_test(cases, the_profile_is_stable_and_counts_the_threads);
    tcase_add_test(cases, memory_is_aligned_and_holds_what_is_put_there);
    tcase_add_test(cases, doctor_says_what_is_here_and_what_is_missing);
    tcase_add_test(cases, thread_counts_that_cannot_be_are_refused);
#ifdef __x86_64__
    tcase_add_test(cases, amx_tiles_multiply_where_the_target_says_so);
    tcase_add_test(cases, the_target_is_what_the_kernel_lists);
#endif
    suite_add_tcase(suite, cases);
    SRunner *runner = srunner_create(suite);
    srunner_set_fork_status(runner, CK_NOFORK);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed != 0;
}
