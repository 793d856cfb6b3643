/* quern sweep: tune many specs on every device that is here, and say by family what it brought.
 *
 *     1. list      what is to be tuned (sweep_list.c)
 *     2. run       every device tunes (sweep_run.c)
 *     3. profile   with --device-profile-out, from the rows that measure the device
 *     4. summary
 *
 * Speed-ups are over the heuristic's config, timed beside the winner in one tuning; of a row that
 * was tuned before, as it was then. Roofs are those of roof.h: a call that runs out of a cache may
 * be above its own.
 */
#include "cmd.h"
#include "json_out.h"
#include "roof.h"
#include "sweep_run.h"
#include "timing.h"

#include <quern/cache.h>

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct sweep {
    struct session session;
    struct sweep_list list;
    struct sweep_run run;
};

struct summary {
    const char *family;
    int specs, tuned, skipped, not_provided, failed, left, cut_short, ties, disturbed;
    double log_speedup, log_roof; /* sums of logarithms, and of how many */
    int speedups, roofs;
};

/* ---- The profile --------------------------------------------------------------------------- */

static int is_done(const struct sweep_row *row)
{
    return row->state == SWEEP_TUNED || row->state == SWEEP_SKIPPED;
}

/* `why` says what came in the way. */
static int is_refused(const struct sweep_row *row)
{
    return row->state == SWEEP_NOT_PROVIDED || row->state == SWEEP_FAILED;
}

/* L2's rate is not measured: families' models have it in proportion to the tensor cores', so it
 * stays in that. */
static void take_tensor_rate(struct quern_profile *profile, double tflops)
{
    if (profile->tensor_tflops > 0)
        profile->l2_gbps *= tflops / profile->tensor_tflops;
    profile->tensor_tflops = tflops;
}

static void take_ceiling(struct sweep *sweep, const struct sweep_row *row)
{
    struct quern_profile *profile = &sweep->run.devices[0].profile;
    double time_us = row->result.best.time_us;
    struct quern_cost cost = { 0 };
    struct quern_spec spec;
    if (!is_done(row) || time_us <= 0 || quern_spec_parse(sweep->session.ctx, row->spec, &spec))
        return;
    spec.family->cost(&spec, &cost);
    switch (row->ceiling) {
    case SWEEP_COPY:
        profile->memory_gbps = cost.bytes / time_us * 1e-3;
        break;
    case SWEEP_TENSOR:
        take_tensor_rate(profile, cost.flops / time_us * 1e-6);
        break;
    case SWEEP_F32:
        profile->f32_tflops = cost.flops / time_us * 1e-6;
        break;
    case SWEEP_LAUNCH:
        profile->launch_us = time_us;
        break;
    default:
        break;
    }
}

/* Said before a long sweep, not after it: results that nothing keeps. */
static int check_cache(struct session *session)
{
    int status = quern_cache_sync(session->ctx);
    return status ? session_fail(session, status) : EXIT_DONE;
}

/* The same of the profile. */
static int check_place(const char *path)
{
    char folder[4096] = ".";
    const char *slash = strrchr(path, '/');
    if (slash)
        snprintf(folder, sizeof(folder), "%.*s", (int)(slash - path) + 1, path);
    if (access(folder, W_OK))
        return complain(EXIT_FAILED, "device-profile-out=%s: %s", path, strerror(errno));
    return EXIT_DONE;
}

/* All that were to be measured were: a profile of which some rates are measured and some estimated
 * would not say which. */
static int save_profile(struct sweep *sweep)
{
    const char *path = sweep->session.args->text[OPTION_device_profile_out];
    for (int i = 0; i < sweep->list.count; i++) {
        const struct sweep_row *row = &sweep->list.rows[i];
        if (row->ceiling && !is_done(row))
            return complain(EXIT_FAILED, "device-profile-out=%s: not written: %s was not measured",
                            path, row->spec);
        take_ceiling(sweep, row);
    }
    int status = quern_profile_save(sweep->session.ctx, &sweep->run.devices[0].profile, path);
    return status ? session_fail(&sweep->session, status) : EXIT_DONE;
}

/* ---- The summary --------------------------------------------------------------------------- */

/* NaN: the profile lacks a rate that it needs. */
static double roof_share(struct sweep *sweep, const struct sweep_row *row)
{
    const struct quern_profile *profile = NULL;
    struct roof_call call;
    struct quern_spec spec;
    for (int i = sweep->run.device_count - 1; i >= 0; i--)
        if (sweep->run.devices[i].kind == row->profile)
            profile = &sweep->run.devices[i].profile;
    if (!profile || row->result.best.time_us <= 0 ||
        quern_spec_parse(sweep->session.ctx, row->spec, &spec))
        return NAN;
    roof_call_of(sweep->session.ctx, &spec, &call);
    return roof_us(profile, &call) / row->result.best.time_us;
}

static void count_row(struct sweep *sweep, const struct sweep_row *row, struct summary *summary)
{
    const struct quern_tune_result *result = &row->result;
    summary->specs++;
    summary->tuned += row->state == SWEEP_TUNED;
    summary->skipped += row->state == SWEEP_SKIPPED;
    summary->not_provided += row->state == SWEEP_NOT_PROVIDED;
    summary->failed += row->state == SWEEP_FAILED;
    summary->left += !is_done(row) && !is_refused(row);
    if (!is_done(row))
        return;
    double share = roof_share(sweep, row);
    summary->cut_short += row->is_cut;
    summary->disturbed +=
        timing_is_disturbed(result->best.time_us, result->best.spread_us, result->heuristic.time_us,
                            result->heuristic.spread_us);
    summary->ties += !strcmp(result->best.variant, result->heuristic.variant) &&
                     !strcmp(result->best.config, result->heuristic.config);
    if (isfinite(result->speedup) && result->speedup > 0) {
        summary->log_speedup += log(result->speedup);
        summary->speedups++;
    }
    if (isfinite(share) && share > 0) {
        summary->log_roof += log(share);
        summary->roofs++;
    }
}

/* NaN, which is null in JSON, of none. */
static double geomean(double sum, int count)
{
    return count ? exp(sum / count) : NAN;
}

/* Rows by family, in the order in which they first appear. */
static int summarize(struct sweep *sweep, struct summary **summaries)
{
    int count = 0;
    *summaries = calloc((size_t)sweep->list.count + 1, sizeof(**summaries));
    for (int i = 0; *summaries && i < sweep->list.count; i++) {
        const struct sweep_row *row = &sweep->list.rows[i];
        int at = 0;
        while (at < count && strcmp((*summaries)[at].family, row->family))
            at++;
        if (at == count)
            (*summaries)[count++].family = row->family;
        count_row(sweep, row, &(*summaries)[at]);
    }
    return count;
}

static json_t *summaries_json(const struct summary *summaries, int count)
{
    json_t *list = json_array();
    for (int i = 0; i < count; i++) {
        const struct summary *one = &summaries[i];
        json_array_append_new(
            list, json_pack("{s:s, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:o, s:o}",
                            "family", one->family, "specs", one->specs, "tuned", one->tuned,
                            "skipped", one->skipped, "not_provided", one->not_provided, "failed",
                            one->failed, "left", one->left, "cut_short", one->cut_short, "ties",
                            one->ties, "disturbed", one->disturbed, "speedup",
                            json_out_real(geomean(one->log_speedup, one->speedups)), "roof_share",
                            json_out_real(geomean(one->log_roof, one->roofs))));
    }
    return list;
}

static json_t *devices_json(const struct sweep_run *run)
{
    json_t *list = json_array();
    for (int i = 0; i < run->device_count; i++)
        json_array_append_new(list, json_pack("{s:s, s:s}", "device", run->devices[i].name,
                                              "profile", run->devices[i].profile.name));
    return list;
}

static json_t *refused_json(const struct sweep_list *list, int state)
{
    json_t *troubles = json_array();
    for (int i = 0; i < list->count; i++)
        if ((int)list->rows[i].state == state)
            json_array_append_new(troubles, json_pack("{s:s, s:o}", "spec", list->rows[i].spec,
                                                      "why", json_out_text(list->rows[i].why)));
    return troubles;
}

static void print_real(double value)
{
    if (isfinite(value))
        printf("%8.2f", value);
    else
        printf("%8s", "-");
}

static void print_text(const struct sweep *sweep, const struct summary *summaries, int count)
{
    int cut_short = 0, disturbed = 0;
    printf("%-24s %6s %6s %7s %12s %6s %5s %5s %8s %8s\n", "family", "specs", "tuned", "skipped",
           "not provided", "failed", "left", "ties", "speed-up", "of roof");
    for (int i = 0; i < count; i++) {
        const struct summary *one = &summaries[i];
        printf("%-24s %6d %6d %7d %12d %6d %5d %5d ", one->family, one->specs, one->tuned,
               one->skipped, one->not_provided, one->failed, one->left, one->ties);
        print_real(geomean(one->log_speedup, one->speedups));
        printf(" ");
        print_real(geomean(one->log_roof, one->roofs));
        printf("\n");
    }
    printf("%d spec%s on %d device%s in %.1f s", sweep->list.count,
           sweep->list.count == 1 ? "" : "s", sweep->run.device_count,
           sweep->run.device_count == 1 ? "" : "s", sweep->run.seconds);
    if (sweep->list.not_provided)
        printf("; %d call%s of operators that quern does not provide", sweep->list.not_provided,
               sweep->list.not_provided == 1 ? " is" : "s are");
    printf("\n");
    for (int i = 0; i < count; i++) {
        cut_short += summaries[i].cut_short;
        disturbed += summaries[i].disturbed;
    }
    if (cut_short)
        printf("cut short: %d; the next sweep goes on with what was not tried\n", cut_short);
    if (disturbed)
        printf("doubtful speed-ups: %d; something else ran while they were timed\n", disturbed);
}

/* A line on stderr for each row that was not tuned for a reason; how many of them failed. */
static int tell_refused(const struct sweep *sweep)
{
    int failed = 0, is_quiet = args_has(sweep->session.args, OPTION_quiet);
    for (int i = 0; i < sweep->list.count; i++) {
        const struct sweep_row *row = &sweep->list.rows[i];
        const char *why = row->why ? row->why : "no reason is known";
        failed += row->state == SWEEP_FAILED;
        if (row->state == SWEEP_FAILED)
            complain(EXIT_FAILED, "%s: %s", row->spec, why);
        else if (row->state == SWEEP_NOT_PROVIDED && !is_quiet)
            complain(EXIT_DONE, "%s: passed over: %s", row->spec, why);
    }
    return failed;
}

static int report(struct sweep *sweep)
{
    struct summary *summaries;
    int count = summarize(sweep, &summaries), code = EXIT_DONE;
    if (!summaries)
        return complain(EXIT_FAILED, "memory ran out");
    int failed = tell_refused(sweep), unfinished = 0;
    for (int i = 0; i < count; i++)
        unfinished += summaries[i].left + summaries[i].cut_short;
    if (args_has(sweep->session.args, OPTION_json))
        code = json_out_print(json_pack(
            "{s:o, s:o, s:i, s:o, s:o, s:o}", "families", summaries_json(summaries, count),
            "devices", devices_json(&sweep->run), "not_provided", sweep->list.not_provided,
            "seconds", json_out_real(sweep->run.seconds), "troubles",
            refused_json(&sweep->list, SWEEP_FAILED), "passed_over",
            refused_json(&sweep->list, SWEEP_NOT_PROVIDED)));
    else
        print_text(sweep, summaries, count);
    free(summaries);
    if (sweep->run.is_interrupted && unfinished)
        code = complain(EXIT_FAILED,
                        "interrupted: %d not finished; the same command goes on from here",
                        unfinished);
    return code ? code : failed ? EXIT_FAILED : EXIT_DONE;
}

/* ---- The verb ------------------------------------------------------------------------------ */

/* The list comes from the cache: one that is not there has none. */
static int reads_misses_alone(const struct args *args)
{
    return args_has(args, OPTION_from_misses) && !args_has(args, OPTION_model) &&
           !args_has(args, OPTION_shapes) && !args_has(args, OPTION_grid) &&
           !args_has(args, OPTION_standard) && !args_has(args, OPTION_device_profile_out);
}

int cmd_sweep(const struct args *args)
{
    struct sweep sweep = { .list = { .rows = NULL } };
    int profile_code = EXIT_DONE;
    int code = reads_misses_alone(args) ? session_require_cache(args) : EXIT_DONE;
    if (code)
        return code;
    code = session_open(&sweep.session, args);
    if (!code)
        code = session_no_more_words(&sweep.session, 1);
    if (!code)
        code = check_cache(&sweep.session);
    if (!code && args_has(args, OPTION_device_profile_out))
        code = check_place(args->text[OPTION_device_profile_out]);
    if (!code)
        code = sweep_list_make(&sweep.session, &sweep.list);
    if (!code)
        code = sweep_run(&sweep.session, &sweep.list, &sweep.run);
    if (!code) {
        if (args_has(args, OPTION_device_profile_out))
            profile_code = save_profile(&sweep);
        code = report(&sweep);
    }
    sweep_list_fini(&sweep.list);
    session_close(&sweep.session);
    return code ? code : profile_code;
}
