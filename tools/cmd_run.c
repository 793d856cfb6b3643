/* quern run: one call on given or drawn arrays, its check, its time.
 *
 *     1. arrays    from files or drawn
 *     2. kernel    from memory, disk or the compiler; this is what first_call_ms covers
 *     3. one call  with --check inside quern_verify(), which compares it with the reference
 *     4. --out     what that one call left
 *     5. timing    quern_measure() restores every array before each call
 *     6. report
 */
#include "array_io.h"
#include "cmd.h"
#include "human.h"
#include "json_out.h"

#include <math.h>
#include <stdio.h>

#define TIMING_US 200e3 /* how long to time for without --iters */
#define MIN_ITERATIONS 3
#define MAX_ITERATIONS 50

struct run {
    struct session session;
    struct quern_spec spec;
    struct array_set set;
    struct quern_kernel *kernel;
    struct quern_report report;
    struct quern_check check;
    struct quern_time time;
    double tflops, gbps;
};

static int is_checked(const struct run *run)
{
    return args_has(run->session.args, OPTION_check);
}

/* ---- The steps ----------------------------------------------------------------------------- */

static int prepare(struct run *run)
{
    struct quern_request request;

    session_request(&run->session, &run->spec, &request);
    request.arrays = run->set.arrays;
    int status = quern_prepare(run->session.ctx, &request, &run->kernel);
    if (status)
        return session_fail(&run->session, status);
    quern_kernel_report(run->kernel, &run->report);
    return EXIT_DONE;
}

static int call_once(struct run *run)
{
    struct quern_context *ctx = run->session.ctx;
    uint64_t seed = (uint64_t)run->session.args->seed;
    int status;

    if (is_checked(run))
        status = quern_verify(ctx, run->kernel, &run->spec, run->set.arrays, seed, &run->check);
    else
        status = quern_launch(ctx, run->kernel, &run->spec, run->set.arrays, NULL);
    return status ? session_fail(&run->session, status) : EXIT_DONE;
}

static int measure(struct run *run, int iterations)
{
    int status = quern_measure(run->session.ctx, run->kernel, &run->spec, run->set.arrays,
                               iterations, &run->time);
    return status ? session_fail(&run->session, status) : EXIT_DONE;
}

static int time_calls(struct run *run)
{
    int64_t iterations = run->session.args->iters;
    int code = measure(run, iterations ? (int)iterations : 1);

    if (!code && !iterations && run->time.median_us < TIMING_US) {
        double fitting = TIMING_US / (run->time.median_us + 1);
        code = measure(run, (int)fmin(fmax(fitting, MIN_ITERATIONS), MAX_ITERATIONS));
    }
    if (!code && run->time.median_us > 0) {
        run->tflops = run->time.flops / run->time.median_us * 1e-6;
        run->gbps = run->time.bytes / run->time.median_us * 1e-3;
    }
    return code;
}

/* ---- The report ---------------------------------------------------------------------------- */

static int print_json(const struct run *run)
{
    const struct quern_report *report = &run->report;
    const struct quern_check *check = &run->check;
    char spec[1024];

    session_spec_text(&run->spec, spec);
    json_t *object = json_pack(
        "{s:s, s:s, s:s, s:s, s:o, s:s, s:s, s:o, s:o, s:o, s:o, s:o, s:o}", "family",
        run->set.family.name, "spec", spec, "target", report->target, "variant", report->variant,
        "config", json_out_config(report->config), "config_from",
        json_out_config_from(report->config_from), "artifact",
        json_out_artifact_from(report->artifact), "steps", json_out_steps(report), "first_call_ms",
        json_out_real(report->first_call_ms), "time_us", json_out_real(run->time.median_us),
        "spread_us", json_out_real(run->time.spread_us), "tflops", json_out_real(run->tflops),
        "gbps", json_out_real(run->gbps));
    if (is_checked(run))
        json_object_set_new(
            object, "check",
            json_pack("{s:b, s:o, s:o, s:o, s:o, s:I}", "ok", check->ok, "rel_err",
                      json_out_real(check->rel_err), "row_err", json_out_real(check->row_err),
                      "tol", json_out_real(check->tol), "covered", json_out_real(check->covered),
                      "seed", (json_int_t)check->seed));
    return json_out_print(object);
}

static void print_kernel(const struct quern_report *report)
{
    char time[HUMAN_BYTES];
    double compile_ms = 0;

    for (int i = 0; i < report->step_count; i++)
        compile_ms += report->steps[i].compile_ms;
    printf("  target    %s\n", report->target);
    printf("  variant   %s\n", report->variant);
    printf("  config    %s (%s)\n", *report->config ? report->config : "nothing to choose",
           json_out_config_from(report->config_from));
    human_time(report->first_call_ms * 1e3, time);
    printf("  kernel    %s, ready in %s", json_out_artifact_from(report->artifact), time);
    if (compile_ms > 0) {
        human_time(compile_ms * 1e3, time);
        printf(", after %s of compiling", time);
    }
    printf("\n");
}

static void print_text(const struct run *run)
{
    const struct quern_check *check = &run->check;
    char spec[1024], time[HUMAN_BYTES], spread[HUMAN_BYTES];

    session_spec_text(&run->spec, spec);
    printf("%s\n", spec);
    print_kernel(&run->report);
    human_time(run->time.median_us, time);
    human_time(run->time.spread_us, spread);
    printf("  time      %s +- %s, the median of %lld samples\n", time, spread,
           (long long)run->time.samples);
    if (run->tflops > 0)
        printf("  rate      %.3g TFLOP/s, %.3g GB/s\n", run->tflops, run->gbps);
    else
        printf("  rate      %.3g GB/s\n", run->gbps);
    if (is_checked(run))
        printf(
            "  check     %s: error %.2g, worst row %.2g, at most %.2g and %.2g; %.3g %% compared\n",
            check->ok ? "ok" : "FAILED", check->rel_err, check->row_err, check->tol, 4 * check->tol,
            100 * check->covered);
    for (int i = 0; i < run->session.args->out_count; i++)
        printf("  wrote     %s\n", run->session.args->out[i]);
}

static int report(struct run *run)
{
    int code = EXIT_DONE;

    if (args_has(run->session.args, OPTION_json))
        code = print_json(run);
    else
        print_text(run);
    if (!code && is_checked(run) && !run->check.ok)
        code = complain(EXIT_FAILED, "check failed: %s", run->check.why);
    return code;
}

int cmd_run(const struct args *args)
{
    struct run run = { 0 };
    int code = session_open(&run.session, args);

    if (!code)
        code = session_spec(&run.session, 1, &run.spec);
    if (!code)
        code = array_set_create(&run.session, &run.spec, &run.set);
    if (!code)
        code = prepare(&run);
    if (!code)
        code = call_once(&run);
    if (!code)
        code = array_set_save(&run.session, &run.set);
    if (!code)
        code = time_calls(&run);
    if (!code)
        code = report(&run);
    array_set_destroy(&run.session, &run.set);
    session_close(&run.session);
    return code;
}
