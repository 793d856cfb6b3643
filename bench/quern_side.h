/* quern as a contestant: tuned (first, what the others are compared with) and as its heuristic has
 * it, each with a context and a cache file of its own. b is what the caller has: n rows of k. Where
 * packing it pays, the kernel does that within the timed call.
 */
#ifndef BENCH_QUERN_SIDE_H
#define BENCH_QUERN_SIDE_H

#include "bench/contest.h"
#include <quern.h>

struct quern_side {
    struct quern_context *ctx;
    struct quern_spec spec;
    struct quern_array arrays[MAX_SETS][QUERN_MAX_ARRAYS];
    struct quern_call call;
    struct quern_report report;
};

static int side_fail(const struct quern_side *side, const char *what)
{
    fprintf(talk, "    quern: %s: %s\n", what, quern_errmsg(side->ctx));
    return -1;
}

static int quern_open(struct quern_context **ctx, const char *cache, int threads)
{
    struct quern_options options = QUERN_OPTIONS_INIT;
    options.cache = cache;
    options.device = "cpu";
    options.threads = threads;
    return quern_context_create(&options, ctx);
}

static int array_index(const struct quern_spec *spec, const char *name)
{
    struct quern_family_description description;
    quern_family_describe(spec->family, &description);
    for (int i = 0; i < description.array_count; i++)
        if (!strcmp(description.arrays[i].name, name))
            return i;
    return -1;
}

static int param_index(const struct quern_spec *spec, const char *name)
{
    struct quern_family_description description;
    quern_family_describe(spec->family, &description);
    for (int i = 0; i < description.param_count; i++)
        if (!strcmp(description.params[i].name, name))
            return i;
    return -1;
}

static void workload_text(const struct workload *w, char *text, size_t bytes)
{
    const char *dtype = w->is_bf16 ? "bf16" : "f32";
    snprintf(text, bytes, "gemm m=%lld n=%lld k=%lld a=%s b=%s d=%s", (long long)w->m,
             (long long)w->n, (long long)w->k, dtype, dtype, dtype);
}

static int side_open(struct quern_side *side, const struct contestant *entry, const char *cache)
{
    const struct workload *w = entry->work;
    char text[160];
    int a, b, d;
    workload_text(w, text, sizeof text);
    if (quern_open(&side->ctx, cache, w->threads) || quern_spec_parse(side->ctx, text, &side->spec))
        return side_fail(side, text);
    a = array_index(&side->spec, "a");
    b = array_index(&side->spec, "b");
    d = array_index(&side->spec, "d");
    for (int set = 0; set < w->sets; set++) {
        side->arrays[set][a].data = w->a;
        side->arrays[set][b].data = w->b[set];
        side->arrays[set][d].data = entry->d;
    }
    return 0;
}

static int side_tune(struct quern_side *side, double budget_s)
{
    struct quern_request request = QUERN_REQUEST_INIT;
    struct quern_tune_options options = QUERN_TUNE_OPTIONS_INIT;
    struct quern_tune_result tuned;
    request.spec = &side->spec;
    request.arrays = side->arrays[0];
    options.budget_s = budget_s;
    if (quern_tune(side->ctx, &request, &options, &tuned))
        return side_fail(side, "tuning");
    fprintf(talk, "    tuned in %.1f s: %d candidates, %d failed, %s\n", tuned.seconds,
            tuned.candidates, tuned.failed, tuned.best.config);
    return 0;
}

/* The kernel that calls will use, and a workspace for it. */
static int side_ready(struct quern_side *side)
{
    struct quern_kernel *kernel;
    if (quern_dispatch(side->ctx, &side->spec, side->arrays[0], &kernel))
        return side_fail(side, "no kernel");
    quern_kernel_report(kernel, &side->report);
    side->call.workspace_bytes = quern_kernel_workspace(kernel);
    if (side->call.workspace_bytes)
        side->call.workspace = big_alloc(side->call.workspace_bytes);
    return 0;
}

static int side_call(struct contestant *self, int set)
{
    struct quern_side *side = self->state;
    return quern_run(side->ctx, &side->spec, side->arrays[set], &side->call);
}

/* budget_s 0: not tuned. `cache` is a file that does not exist. */
static void quern_enter(struct contest *contest, const char *cache, double budget_s)
{
    static const char *const from[] = { "given", "tuned", "neighbour", "heuristic" };
    struct contestant *entry =
        contest_add(contest, budget_s > 0 ? "tuned" : "untuned", contest->work.is_bf16);
    struct quern_side *side;
    if (!entry)
        return;
    entry->state = side = calloc(1, sizeof *side);
    entry->call = side_call;
    if (side_open(side, entry, cache) || (budget_s > 0 && side_tune(side, budget_s)) ||
        side_ready(side)) {
        contest_drop(contest, entry, quern_errmsg(side->ctx));
        return;
    }
    snprintf(entry->name, sizeof entry->name, "quern, %s", from[side->report.config_from]);
    fprintf(talk, "    %s: %s %s\n", entry->name, side->report.variant, side->report.config);
}
#endif
