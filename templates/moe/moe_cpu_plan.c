/* The CPU variant of moe, host side: the steps of a plan, room for what they leave each other, and
 * the arguments of a launch. moe_cpu.c says what the steps do; they are one artifact. */
#define QUERN_DEF "moe/moe.def"
#include <quern/family_def.h>

#include <math.h>

#include "moe.h"
#include "moe_cpu_args.h"
#include "moe_route.h"
#include "moe_route_args.h"

enum { KNOB_TILES, KNOB_AMX, KNOB_PAIRS, KNOB_UP_ROWS, KNOB_DOWN_ROWS, KNOB_COUNT };
static const struct quern_knob knobs[] = {
    [KNOB_TILES] = { "tiles", 0, 1, "experts of more than four tokens multiply tiles of 16" },
    [KNOB_AMX] = { "amx", 0, 1, "tiles are multiplied by AMX (bf16)" },
    [KNOB_PAIRS] = { "bf16_pairs", 0, 1, "multiply bf16 in pairs instead of widening it to f32" },
    [KNOB_UP_ROWS] = { "up_rows", 16, 1024, "rows of gate and of up of a block" },
    [KNOB_DOWN_ROWS] = { "down_rows", 32, 1024, "rows of w2 of a block" },
};

enum { JOB_PLACES = MOE_JOB_TILES * MOE_TILE, LEAST_PART = 256, ROUTE_BLOCK = 16 };

static int supports(const struct quern_problem *problem)
{
    return problem->target->kind == QUERN_CPU;
}

static int64_t divide_up(int64_t a, int64_t b)
{
    return (a + b - 1) / b;
}

static int64_t min(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static int64_t cores_of(const struct quern_profile *profile)
{
    return profile->cores > 0 ? profile->cores : 8;
}

static int64_t slots_of(const struct values *v)
{
    return v->topk + v->shared;
}

/* ---- Choosing -------------------------------------------------------------------------------- */

/* x and weights are bf16, or i8 that become bf16, where there are instructions for them. */
static int has_pairs(const struct quern_problem *problem)
{
    const struct quern_target *target = problem->target;
    return values_of(problem->bucket)->dtype == QUERN_BF16 && target->cpu_arch == 0 &&
           target->cpu_level >= 4 && target->cpu_features & QUERN_CPU_BF16;
}

static int has_amx(const struct quern_problem *problem)
{
    return has_pairs(problem) && problem->target->cpu_features & QUERN_CPU_AMX;
}

static int legal(const struct quern_problem *problem, const int32_t *config,
                 struct quern_message *why)
{
    if (config[KNOB_PAIRS] > has_pairs(problem) || config[KNOB_AMX] > has_amx(problem))
        return quern_refuse(why,
                            "config amx=%d bf16_pairs=%d: at most %d and %d for these dtypes "
                            "on this target",
                            config[KNOB_AMX], config[KNOB_PAIRS], has_amx(problem),
                            has_pairs(problem));
    if (config[KNOB_AMX] && !(config[KNOB_PAIRS] && config[KNOB_TILES]))
        return quern_refuse(why, "config amx=1: needs bf16_pairs=1 and tiles=1");
    if (config[KNOB_UP_ROWS] % 16)
        return quern_refuse(why, "config up_rows=%d: must be a multiple of 16",
                            config[KNOB_UP_ROWS]);
    if (config[KNOB_DOWN_ROWS] % 32)
        return quern_refuse(why, "config down_rows=%d: must be a multiple of 32",
                            config[KNOB_DOWN_ROWS]);
    return QUERN_OK;
}

/* `most` rows, or as many as leave about sixteen blocks a core of `rows` in `jobs`. */
static int32_t block_rows(const struct quern_problem *problem, int64_t rows, int64_t jobs,
                          int64_t most)
{
    const int64_t blocks = divide_up(16 * cores_of(problem->profile), jobs);
    const int64_t fair = divide_up(divide_up(rows, blocks), 32) * 32;
    return (int32_t)min(fair, most);
}

/* Dot products stream: small blocks leave no core waiting long for the last. Tiles are read again
 * for each block of rows: larger ones. */
static void heuristic(const struct quern_problem *problem, int32_t *config)
{
    const struct values *v = values_of(problem->bucket);
    const int64_t slots = v->tokens * slots_of(v), experts = v->local + v->shared;
    const int64_t jobs = min(slots, experts);
    const int32_t most = v->tokens > MOE_DOTS ? 128 : 64;
    config[KNOB_TILES] = v->tokens > MOE_DOTS;
    config[KNOB_PAIRS] = has_pairs(problem);
    config[KNOB_AMX] = config[KNOB_TILES] && has_amx(problem);
    config[KNOB_UP_ROWS] = block_rows(problem, v->inter, jobs + !jobs, most);
    config[KNOB_DOWN_ROWS] = block_rows(problem, v->hidden, 1, most);
}

static int candidates(const struct quern_problem *problem, int32_t (*configs)[QUERN_MAX_KNOBS],
                      int max)
{
    static const int32_t rows[][2] = { { 0, 0 },   { 32, 64 },  { 64, 64 },   { 64, 128 },
                                       { 16, 32 }, { 256, 64 }, { 256, 256 }, { 128, 32 } };
    int count = 0;
    for (int form = 0; form < 4; form++) {
        for (int i = 0; i < (int)(sizeof(rows) / sizeof(rows[0])) && count < max; i++) {
            int32_t *config = configs[count++];
            heuristic(problem, config);
            if (i) {
                config[KNOB_UP_ROWS] = rows[i][0];
                config[KNOB_DOWN_ROWS] = rows[i][1];
            }
            if (form & 1)
                config[KNOB_AMX] = 0;
            if (form & 2)
                config[KNOB_PAIRS] = config[KNOB_AMX] = 0;
        }
    }
    return count;
}

/* ---- Room ------------------------------------------------------------------------------------ */

struct layout {
    int64_t parts, part_tokens, most_jobs, most_tiles;
    int64_t x_panel, h_panel; /* bytes */
    int64_t experts, factors, order, starts, counts, jobs, tiles, x_panels, h_panels, h, sums;
    int64_t bytes; /* of all; above are offsets */
};

static int64_t take(int64_t *at, int64_t bytes)
{
    int64_t offset = *at;
    *at += divide_up(bytes, 64) * 64;
    return offset;
}

/* Panels of k, padded as gemm_tile.h wants it. */
static int64_t panel_bytes(int64_t k, const int32_t *config)
{
    return divide_up(k, 32) * 32 / (config[KNOB_PAIRS] ? 2 : 1) * MOE_TILE * 4;
}

/* Parts where w2 has fewer blocks of rows than twice the cores. */
static int64_t part_count(int64_t tokens, int64_t blocks, int64_t cores)
{
    int64_t parts = 1;
    while (parts * blocks < 2 * cores && tokens / (2 * parts) >= LEAST_PART)
        parts *= 2;
    return parts;
}

/* Of all token counts up to a power of two the same, so that plan's bounds bind's. */
static struct layout layout_of(const struct values *v, const int32_t *config,
                               const struct quern_profile *profile)
{
    const int64_t experts = v->local + v->shared;
    const int64_t tokens = quern_power_of_two_above(v->tokens), slots = tokens * slots_of(v);
    const int64_t blocks = divide_up(v->hidden, config[KNOB_DOWN_ROWS]);
    const int64_t size = (int64_t)quern_dtype_bytes((int)v->dtype);
    struct layout l = { .parts = part_count(tokens, blocks, cores_of(profile)),
                        .x_panel = panel_bytes(v->hidden, config),
                        .h_panel = panel_bytes(v->inter, config) };
    int64_t at = 0;
    l.part_tokens = tokens / l.parts;
    const int64_t places = l.part_tokens * slots_of(v);
    l.most_jobs = min(experts, places) + places / JOB_PLACES;
    l.most_tiles =
        config[KNOB_TILES] ? places / MOE_TILE + min(experts, places / (MOE_DOTS + 1)) : 0;
    l.experts = take(&at, slots * 4);
    l.factors = take(&at, slots * 4);
    l.order = take(&at, slots * 4);
    l.starts = take(&at, l.parts * (experts + 1) * 4);
    l.counts = take(&at, l.parts * 2 * 4);
    l.jobs = take(&at, l.parts * l.most_jobs * (int64_t)sizeof(struct moe_job));
    l.tiles = take(&at, l.parts * l.most_tiles * (int64_t)sizeof(struct moe_tile));
    l.x_panels = take(&at, l.parts * l.most_tiles * l.x_panel);
    l.h_panels = take(&at, l.parts * l.most_tiles * l.h_panel);
    l.h = take(&at, slots * v->inter * size);
    l.sums = take(&at, tokens * blocks * config[KNOB_DOWN_ROWS] * 4);
    l.bytes = at;
    return l;
}

/* ---- The plan -------------------------------------------------------------------------------- */

static struct moe_route route_of(const struct values *v)
{
    return (struct moe_route){ .tokens = v->tokens,
                               .experts = v->experts,
                               .topk = v->topk,
                               .shared = v->shared,
                               .groups = v->groups,
                               .topk_group = v->topk_group,
                               .scoring = v->scoring ? ROUTE_BY_SIGMOID : ROUTE_BY_LOGIT,
                               .dtype = (int)v->logits_dtype,
                               .has_bias = (int)v->bias,
                               .renormalize = (int)v->renormalize,
                               .softcap = v->softcap,
                               .scaling = isnan(v->scaling) ? 1 : v->scaling,
                               .shared_weight = 1 };
}

static void plan(const struct quern_problem *problem, const int32_t *config,
                 struct quern_plan *plan)
{
    static const char *const steps[][2] = { { "sort", "moe_cpu_sort" },
                                            { "gather", "moe_cpu_gather" },
                                            { "up", "moe_cpu_up" },
                                            { "down", "moe_cpu_down" } };
    const struct values *v = values_of(problem->bucket);
    const struct moe_route route = route_of(v);
    struct quern_step *first =
        quern_plan_kernel(plan, "route", "moe/moe_route_cpu.c", "moe_route_main");
    moe_route_define(first, &route);
    quern_step_define(first, "SHARED", v->shared);
    for (int i = 0; i < 4; i++) {
        if (i == 1 && !config[KNOB_TILES])
            continue;
        struct quern_step *step =
            quern_plan_kernel(plan, steps[i][0], "moe/moe_cpu.c", steps[i][1]);
        quern_step_define(step, "DTYPE", v->dtype);
        quern_step_define(step, "W_DTYPE", v->w_dtype);
        quern_step_define(step, "ACTIVATION", v->activation + 1); /* ACT_NONE is 0 */
        quern_step_define(step, "TILES", config[KNOB_TILES]);
        quern_step_define(step, "AMX", config[KNOB_AMX]);
        quern_step_define(step, "IS_PAIRED", config[KNOB_PAIRS]);
    }
    plan->workspace_bytes = layout_of(v, config, problem->profile).bytes;
}

static void bind(const struct quern_binding *binding, struct quern_launch *launch)
{
    const struct values *v = values_of(binding->spec);
    const int32_t *config = binding->config;
    const struct layout l = layout_of(v, config, binding->profile);
    const int64_t parts = divide_up(v->tokens, l.part_tokens);
    const struct moe_route route = route_of(v);
    char *space = binding->workspace;
    struct quern_step_launch *step = launch->steps;
    const struct moe_cpu_args args = {
        .moe = moe_arguments(binding),
        .hidden = v->hidden,
        .inter = v->inter,
        .columns = v->experts,
        .slots = slots_of(v),
        .local = v->local,
        .weights = v->local + v->shared,
        .parts = parts,
        .part_tokens = l.part_tokens,
        .up_rows = config[KNOB_UP_ROWS],
        .down_rows = config[KNOB_DOWN_ROWS],
        .most_jobs = l.most_jobs,
        .most_tiles = l.most_tiles,
        .experts = (int32_t *)(void *)(space + l.experts),
        .factors = (float *)(void *)(space + l.factors),
        .order = (int32_t *)(void *)(space + l.order),
        .starts = (int32_t *)(void *)(space + l.starts),
        .counts = (int32_t *)(void *)(space + l.counts),
        .jobs = (struct moe_job *)(void *)(space + l.jobs),
        .tiles = (struct moe_tile *)(void *)(space + l.tiles),
        .x_panels = (uint32_t *)(void *)(space + l.x_panels),
        .h_panels = (uint32_t *)(void *)(space + l.h_panels),
        .h = space + l.h,
        .sums = (float *)(void *)(space + l.sums),
    };
    const struct moe_route_args route_args = {
        .logits = args.moe.logits,
        .bias = args.moe.bias,
        .weights = args.factors,
        .ids = args.experts,
        .logits_row = args.moe.logits_row,
        .weights_row = args.slots,
        .ids_row = args.slots,
        .tokens = v->tokens,
        .block = ROUTE_BLOCK,
        .scalars = moe_route_scalars_of(&route),
        .shared_weight = (float)route.shared_weight,
    };
    QUERN_BIND(step, route_args, divide_up(v->tokens, ROUTE_BLOCK), 1, 1);
    step++;
    QUERN_BIND(step, args, parts, 1, 1);
    step++;
    if (config[KNOB_TILES]) {
        QUERN_BIND(step, args, l.most_tiles, parts, 1);
        step++;
    }
    QUERN_BIND(step, args, divide_up(v->inter, args.up_rows), l.most_jobs, parts);
    step++;
    QUERN_BIND(step, args, divide_up(v->hidden, args.down_rows), parts, 1);
}

const struct quern_variant moe_cpu = {
    .name = "moe_cpu",
    .doc = "an expert's weights are read once for all its tokens; AMX tiles or vectors",
    .device = QUERN_CPU,
    .knobs = knobs,
    .knob_count = KNOB_COUNT,
    .supports = supports,
    .legal = legal,
    .heuristic = heuristic,
    .candidates = candidates,
    .plan = plan,
    .bind = bind,
};
