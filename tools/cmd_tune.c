/* quern tune: find the fastest config of a spec's bucket and remember it.
 *
 * Arrays are loaded only when --in or --out names one; else the tuner draws its own. The tuner
 * gives them back bit for bit, and --out writes what it gave back.
 */
#include "array_io.h"
#include "cmd.h"
#include "human.h"
#include "json_out.h"
#include "progress.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

struct tune {
    struct session session;
    struct quern_spec spec;
    struct array_set set;
    struct progress progress;
    struct quern_tune_result result;
    int slow; /* of the failed candidates, those that were only slow */
};

/* A candidate was tried, or (no variant) another process is waited for. */
static int show_progress(void *user, const struct quern_tune_progress *state)
{
    struct tune *tune = user;
    const struct args *args = tune->session.args;
    int is_failure = *state->variant && strcmp(state->outcome, "ok");

    if (is_failure && !strncmp(state->outcome, "slow", 4))
        tune->slow++;
    /* With -vv the library's log has a line for every candidate. */
    if (is_failure && args->verbosity == 1 && !args_has(args, OPTION_quiet)) {
        progress_clear(&tune->progress);
        fprintf(stderr, "quern: rejected %s %s: %s\n", state->variant, state->config,
                state->outcome);
    }
    progress_update(&tune->progress, state);
    return 0;
}

static int search(struct tune *tune, int has_arrays)
{
    const struct args *args = tune->session.args;
    struct quern_tune_options options = QUERN_TUNE_OPTIONS_INIT;
    struct quern_request request;

    session_request(&tune->session, &tune->spec, &request);
    request.arrays = has_arrays ? tune->set.arrays : NULL;
    options.budget_s = args->budget_s;
    options.max_configs = (int)args->max_configs;
    options.force = args_has(args, OPTION_force);
    options.seed = (uint64_t)args->seed;
    options.progress = show_progress;
    options.user = tune;
    progress_init(&tune->progress, args_has(args, OPTION_quiet), args->budget_s);
    tune->session.progress = &tune->progress;
    int status = quern_tune(tune->session.ctx, &request, &options, &tune->result);
    progress_clear(&tune->progress);
    tune->session.progress = NULL;
    return status ? session_fail(&tune->session, status) : EXIT_DONE;
}

static json_t *entry_json(const struct quern_tune_entry *entry)
{
    int is_timed = entry->time_us > 0;
    return json_pack("{s:s, s:o, s:o, s:o}", "variant", entry->variant, "config",
                     json_out_config(entry->config), "time_us",
                     json_out_real(is_timed ? entry->time_us : NAN), "spread_us",
                     json_out_real(is_timed ? entry->spread_us : NAN));
}

static int print_json(const struct quern_tune_result *result)
{
    return json_out_print(json_pack(
        "{s:s, s:i, s:i, s:o, s:o, s:o, s:o, s:I}", "bucket", result->bucket, "candidates",
        result->candidates, "failed", result->failed, "best", entry_json(&result->best),
        "heuristic", entry_json(&result->heuristic), "speedup",
        json_out_real(result->speedup > 0 ? result->speedup : NAN), "seconds",
        json_out_real(result->seconds), "scratch_bytes", (json_int_t)result->scratch_bytes));
}

static void print_entry(const char *name, const struct quern_tune_entry *entry)
{
    char time[HUMAN_BYTES], spread[HUMAN_BYTES];

    human_time(entry->time_us, time);
    human_time(entry->spread_us, spread);
    printf("  %-10s %s %s: %s +- %s\n", name, entry->variant, entry->config, time, spread);
}

static void print_text(const struct tune *tune)
{
    const struct quern_tune_result *result = &tune->result;
    char size[HUMAN_BYTES], slow[32] = "";

    if (tune->slow)
        snprintf(slow, sizeof(slow), " (%d only slow)", tune->slow);
    human_size(result->scratch_bytes, size);
    printf("%s\n", result->bucket);
    print_entry("best", &result->best);
    if (result->is_reused) {
        printf("  stored     tuned before and taken from the cache; --force tunes again\n");
    } else {
        if (result->speedup > 0) {
            print_entry("heuristic", &result->heuristic);
            printf("  speedup    %.2f over the heuristic\n", result->speedup);
        } else {
            printf("  heuristic  %s %s failed\n", result->heuristic.variant,
                   result->heuristic.config);
        }
        printf("  searched   %d candidates, %d failed%s, in %.1f s, with %s of private buffers\n",
               result->candidates, result->failed, slow, result->seconds, size);
    }
    if (result->is_drawn)
        printf("  note       your arrays were not used: their sizes are not the bucket's bound\n");
    for (int i = 0; i < tune->session.args->out_count; i++)
        printf("  wrote      %s\n", tune->session.args->out[i]);
}

int cmd_tune(const struct args *args)
{
    struct tune tune = { 0 };
    int has_arrays = args->in_count || args->out_count;
    int code = session_open(&tune.session, args);

    if (!code)
        code = session_spec(&tune.session, 1, &tune.spec);
    if (!code && has_arrays)
        code = array_set_create(&tune.session, &tune.spec, &tune.set);
    if (!code)
        code = search(&tune, has_arrays);
    if (!code)
        code = array_set_save(&tune.session, &tune.set);
    if (!code && args_has(args, OPTION_json))
        code = print_json(&tune.result);
    else if (!code)
        print_text(&tune);
    array_set_destroy(&tune.session, &tune.set);
    session_close(&tune.session);
    return code;
}
