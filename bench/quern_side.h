/* quern as a contestant, each with a context and a cache file of its own:
 *
 *     prepacked   b brought into panels by gemm_pack before anything is timed, then tuned; where
 *                 the
 *                 library has that
 *     tuned       b as the caller has it, n rows of k: where packing it pays, that is timed
 *     untuned     the same as the heuristic has it
 */
#ifndef BENCH_QUERN_SIDE_H
#define BENCH_QUERN_SIDE_H

#include "bench/contest.h"
#include <quern.h>
#include <quern/tune.h>

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

/* How wide gemm_pack makes its panels unless told, as text; "" if this quern packs nothing
 * ahead. */
static void panel_width(struct quern_context *ctx, char *width, size_t bytes)
{
    const struct quern_family *gemm = quern_family_find(ctx, "gemm");
    const struct quern_family *pack = quern_family_find(ctx, "gemm_pack");
    struct quern_family_description description;
    struct quern_spec spec = { .family = gemm };
    const struct quern_param *panel;
    const char *word;
    *width = 0;
    if (!gemm || !pack || param_index(&spec, "packed") < 0)
        return;
    spec.family = pack;
    if (param_index(&spec, "panel") < 0)
        return;
    quern_family_describe(pack, &description);
    panel = &description.params[param_index(&spec, "panel")];
    if (panel->kind != QUERN_CHOICE) {
        snprintf(width, bytes, "%lld", (long long)panel->default_value);
        return;
    }
    word = panel->domain;
    for (int64_t i = 0; i < panel->default_value; i++) {
        word += strcspn(word, " ");
        word += strspn(word, " ");
    }
    snprintf(width, bytes, "%.*s", (int)strcspn(word, " "), word);
}

/* b[set] in panels, in memory of its own. */
static int side_pack(struct quern_side *side, const struct workload *w, int set, const char *width,
                     void **packed)
{
    const char *dtype = w->is_bf16 ? "bf16" : "f32";
    struct quern_array arrays[QUERN_MAX_ARRAYS] = { { 0 } };
    struct quern_spec spec;
    struct quern_shape shape;
    char text[160];
    size_t bytes;
    int to;
    snprintf(text, sizeof text, "gemm_pack n=%lld k=%lld b=%s panel=%s", (long long)w->n,
             (long long)w->k, dtype, width);
    if (quern_spec_parse(side->ctx, text, &spec))
        return side_fail(side, text);
    to = array_index(&spec, "packed");
    if (to < 0 || quern_spec_shape(side->ctx, &spec, to, &shape))
        return side_fail(side, text);
    bytes = quern_dtype_bytes(shape.dtype);
    for (int i = 0; i < shape.rank; i++)
        bytes *= (size_t)shape.dims[i];
    *packed = big_alloc(bytes);
    arrays[array_index(&spec, "b")].data = w->b[set];
    arrays[to].data = *packed;
    return quern_run(side->ctx, &spec, arrays, NULL) ? side_fail(side, text) : 0;
}

static int side_open(struct quern_side *side, const struct contestant *entry, const char *width)
{
    const struct workload *w = entry->work;
    const char *dtype = w->is_bf16 ? "bf16" : "f32";
    char text[160];
    int length = snprintf(text, sizeof text, "gemm m=%lld n=%lld k=%lld a=%s b=%s d=%s",
                          (long long)w->m, (long long)w->n, (long long)w->k, dtype, dtype, dtype);
    if (*width)
        snprintf(text + length, sizeof text - (size_t)length, " packed=%s", width);
    if (quern_spec_parse(side->ctx, text, &side->spec))
        return side_fail(side, text);
    for (int set = 0; set < w->sets; set++) {
        void *b = w->b[set];
        if (*width && side_pack(side, w, set, width, &b))
            return -1;
        side->arrays[set][array_index(&side->spec, "a")].data = w->a;
        side->arrays[set][array_index(&side->spec, "b")].data = b;
        side->arrays[set][array_index(&side->spec, "d")].data = entry->d;
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

/* key: "prepacked", "tuned" or "untuned"; `cache` is a file that does not exist. */
static void quern_enter(struct contest *contest, const char *key, const char *cache,
                        double budget_s)
{
    static const char *const from[] = { "given", "tuned", "neighbour", "heuristic" };
    int is_packed = !strcmp(key, "prepacked");
    struct quern_side *side = calloc(1, sizeof *side);
    int status = quern_open(&side->ctx, cache, contest->work.threads);
    struct contestant *entry;
    char width[16] = "";
    if (!status && is_packed)
        panel_width(side->ctx, width, sizeof width);
    if (!status && is_packed && !*width)
        return;
    entry = contest_add(contest, key, contest->work.is_bf16);
    if (!entry)
        return;
    entry->state = side;
    entry->call = side_call;
    if (status || side_open(side, entry, width) || (budget_s > 0 && side_tune(side, budget_s)) ||
        side_ready(side)) {
        contest_drop(contest, entry, quern_errmsg(side->ctx));
        return;
    }
    snprintf(entry->name, sizeof entry->name, "quern, %s%s", from[side->report.config_from],
             *width ? ", b prepacked" : "");
    fprintf(talk, "    %s: %s %s\n", entry->name, side->report.variant, side->report.config);
}
#endif
