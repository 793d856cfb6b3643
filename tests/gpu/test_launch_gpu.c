/* Facts about warps within a block and kernels within a stream that kernels rely on, one a test:
 * named barriers, setmaxnreg, programmatic launch. The kernels are in fact_launch.cu. sm_90a. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/gpu_arrays.h"
#include "tests/gpu_driver.h"
#include "tests/gpu_kernel.h"

static struct quern_context *ctx;
static struct gpu_kernel kernel;
static uint64_t seed;

static void setup(void)
{
    ctx = gpu_context(NULL);
    seed = common_seed();
}

static void teardown(void)
{
    quern_context_destroy(ctx);
}

START_TEST(named_barriers_hand_over_between_the_warps_that_name_them)
{
    enum { ROUNDS = 1000 };
    int32_t out[64];
    struct fact_args args = { .n = ROUNDS, .out = gpu_memory_make(ctx, NULL, sizeof(out)) };
    gpu_kernel_open(&kernel, ctx, "fact_launch.cu", "hand_over");
    gpu_kernel_run(&kernel, &args);
    gpu_kernel_close(&kernel);
    gpu_memory_take(ctx, out, args.out, sizeof(out));
    for (int at = 0; at < 64; at++) {
        int32_t wanted = 0;
        for (int i = 0; i < ROUNDS; i++)
            wanted += (at / 32 + 1) * (i + 31 - at % 32) * (i % 7 + 1);
        assert_each(out[at] == wanted, "pair %d lane %d saw %d, not %d", at / 32, at % 32, out[at],
                    wanted);
    }
}
END_TEST

/* The line of `entry` in the compiler's report has this word. */
static bool report_says(const char *report, const char *entry, const char *word)
{
    char name[64];
    snprintf(name, sizeof(name), "entry=%s ", entry);
    const char *line = strstr(report, name), *found = line ? strstr(line, word) : NULL;
    return found && found < line + strcspn(line, "\n");
}

enum { HELD = 200, HOLDERS = 256, ROUNDS = 3 };

static float held_sum(const float (*values)[HOLDERS], int thread)
{
    float held[HELD], sum = 0;
    for (int i = 0; i < HELD; i++)
        held[i] = values[i][thread];
    for (int round = 0; round < ROUNDS; round++) {
        float first = held[0];
        for (int i = 0; i < HELD - 1; i++)
            held[i] = held[i + 1] * 2 - held[i];
        held[HELD - 1] = first;
    }
    for (int i = 0; i < HELD; i++)
        sum += (float)(i % 3 + 1) * held[i];
    return sum;
}

/* C7508, setmaxnreg ignored, would have failed the compilation; 200 values in the 168 registers of
 * the launch would spill. */
START_TEST(registers_that_a_warpgroup_gives_up_hold_anothers_values_without_spills)
{
    static float values[HELD][HOLDERS], out[HOLDERS];
    for (int i = 0; i < HELD * HOLDERS; i++)
        (&values[0][0])[i] = (float)common_between(&seed, -4, 4);
    void *a = gpu_memory_make(ctx, values, sizeof(values));
    struct fact_args args = { .n = ROUNDS, .a = a, .out = gpu_memory_make(ctx, NULL, sizeof(out)) };
    gpu_kernel_open(&kernel, ctx, "fact_launch.cu", "move_registers");
    ck_assert_msg(report_says(kernel.report, "move_registers", " registers=168 ") &&
                      report_says(kernel.report, "move_registers", " spills=0 "),
                  "%s", kernel.report);
    gpu_kernel_shape(&kernel, 0, 132, 384, 0, 0);
    gpu_kernel_run(&kernel, &args);
    gpu_kernel_close(&kernel);
    gpu_memory_take(ctx, out, args.out, sizeof(out));
    quern_memory_free(ctx, a, sizeof(values));
    for (int t = 0; t < HOLDERS; t++)
        ck_assert_float_eq(out[t], held_sum((const float(*)[HOLDERS])values, t));
}
END_TEST

START_TEST(a_programmatic_kernel_starts_early_and_sees_what_it_waited_for)
{
    enum { BLOCKS = 8, VALUES = 4096, TRIES = 50, WORK_NS = 300000 };
    static int32_t out[BLOCKS * VALUES];
    uint64_t times[2];
    int overlaps = 0;
    struct fact_args args = { .n = VALUES, .bytes = WORK_NS };
    void *values = gpu_memory_make(ctx, NULL, sizeof(out)), *stream;
    void *clock = gpu_memory_make(ctx, NULL, sizeof(times));
    const struct gpu_driver *cuda = gpu_driver();
    gpu_driver_enter();
    assert_cuda(cuda->stream_create(&stream, GPU_STREAM_NON_BLOCKING));
    gpu_kernel_open(&kernel, ctx, "fact_launch.cu", "ahead");
    gpu_kernel_add(&kernel, "behind");
    gpu_kernel_shape(&kernel, 0, BLOCKS, 128, 0, 0);
    gpu_kernel_shape(&kernel, 1, BLOCKS, 128, 0, 0);
    kernel.plan.steps[1].is_programmatic = 1;
    kernel.stream = stream;
    args.a = values;
    args.b = clock;
    args.out = gpu_memory_make(ctx, NULL, sizeof(out));
    for (args.y = 0; args.y < TRIES; args.y++) {
        gpu_kernel_run(&kernel, &args);
        gpu_memory_read(ctx, out, args.out, sizeof(out));
        gpu_memory_read(ctx, times, clock, sizeof(times));
        overlaps += times[1] < times[0];
        for (int i = 0; i < BLOCKS * VALUES; i++)
            assert_each(out[i] == args.y, "try %d: value %d is of try %d", args.y, i, out[i]);
    }
    ck_assert_msg(overlaps > 0, "the second kernel never started before the first had ended");
    gpu_kernel_close(&kernel);
    assert_cuda(cuda->stream_destroy(stream));
    gpu_driver_leave();
    quern_memory_free(ctx, values, sizeof(out));
    quern_memory_free(ctx, clock, sizeof(times));
    quern_memory_free(ctx, args.out, sizeof(out));
}
END_TEST

static Suite *suite_make(void)
{
    Suite *suite = suite_create("launch_gpu");
    TCase *tcase = tcase_create("launch_gpu");
    tcase_add_unchecked_fixture(tcase, setup, teardown);
    tcase_add_test(tcase, named_barriers_hand_over_between_the_warps_that_name_them);
    tcase_add_test(tcase, registers_that_a_warpgroup_gives_up_hold_anothers_values_without_spills);
    tcase_add_test(tcase, a_programmatic_kernel_starts_early_and_sees_what_it_waited_for);
    suite_add_tcase(suite, tcase);
    return suite;
}

int main(void)
{
    return gpu_main(suite_make(), "sm_90a");
}
