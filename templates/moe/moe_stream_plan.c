/* The host side of moe_stream.cu.
 *
 *     steps        route (more than SELF_TOKENS)  ->  up  ->  down
 *     workspace    h, then weights and tiles of slots
 *
 * Up to SELF_TOKENS tokens every block chooses their experts itself: a warp has a token or two. For
 * more than LIKELY_BEST the grouped forms are tried first. */
#define QUERN_DEF "moe/moe.def"
#include <quern/family_def.h>

#include "moe_cuda.h"
#include "moe_stream_args.h"

enum { WARPS_UP, STAGES_UP, STEP_UP, WARPS_DOWN, STAGES_DOWN, STEP_DOWN, PARTS, KNOB_COUNT };
static const struct quern_knob knobs[] = {
    [WARPS_UP] = { "warps_up", 2, 16, "warps of a block of the first product" },
    [STAGES_UP] = { "stages_up", 2, 16, "steps that it loads ahead" },
    [STEP_UP] = { "step_up", 32, 256, "elements of a row of a step" },
    [WARPS_DOWN] = { "warps_down", 2, 16, "warps of a block of the second product" },
    [STAGES_DOWN] = { "stages_down", 2, 16, "steps that it loads ahead" },
    [STEP_DOWN] = { "step_down", 32, 256, "elements of a row of a step" },
    [PARTS] = { "parts", 1, 8, "parts into which it cuts rows of w2" },
};

enum { SELF_TOKENS = 8, LIKELY_BEST = 32, ROUTE_THREADS = 512 };

static const char source[] = "moe/moe_stream.cu";

/* ---- What is possible ------------------------------------------------------------------------ */

static int is_self(const struct values *v)
{
    return v->tokens <= SELF_TOKENS;
}

/* Few enough for an expert as well: weights come from L2 once for every 8. */
static int is_few(const struct values *v)
{
    return v->tokens <= 16 ||
           (v->tokens <= MOE_STREAM_TOKENS && v->tokens * v->topk <= 24 * v->experts);
}

/* For which the kernels are made. */
static int64_t most_tokens(const struct values *v)
{
    return v->tokens <= 1             ? 1
           : is_self(v)               ? SELF_TOKENS
           : v->tokens <= LIKELY_BEST ? LIKELY_BEST
                                      : MOE_STREAM_TOKENS;
}

static int64_t table_bytes(const struct values *v)
{
    return MOE_STREAM_TABLE(v->experts, v->shared, most_tokens(v) * (v->topk + v->shared));
}

static int is_one(const struct values *v)
{
    return most_tokens(v) == 1;
}

/* Beside the rings. */
static int64_t up_rest(const struct values *v, const int32_t *config)
{
    return (is_self(v) ? table_bytes(v) : 0) +
           (is_one(v) ? MOE_STREAM_VECTOR(v->hidden, config[STEP_UP]) : 0);
}

static int64_t down_rest(const struct values *v, const int32_t *config)
{
    return (is_self(v) ? table_bytes(v) : 0) + config[WARPS_DOWN] * most_tokens(v) * 64 +
           (is_one(v) ? (v->topk + v->shared) * MOE_STREAM_VECTOR(v->inter, config[STEP_DOWN]) : 0);
}

static int64_t ring_bytes(const struct values *v, int warps, int stages, int step)
{
    return (int64_t)warps * stages * MOE_STREAM_STAGE(step, is_one(v));
}

static int64_t up_bytes(const struct values *v, const int32_t *config)
{
    return ring_bytes(v, config[WARPS_UP], config[STAGES_UP], config[STEP_UP]) + up_rest(v, config);
}

static int64_t down_bytes(const struct values *v, const int32_t *config)
{
    return ring_bytes(v, config[WARPS_DOWN], config[STAGES_DOWN], config[STEP_DOWN]) +
           down_rest(v, config);
}

static int legal(const struct quern_problem *problem, const int32_t *config,
                 struct quern_message *why)
{
    const struct values *v = values_of(problem->bucket);
    const int64_t most = moe_cuda_shared_bytes(problem);
    const int64_t steps = (v->inter + config[STEP_DOWN] - 1) / config[STEP_DOWN];
    const int64_t part = (steps + config[PARTS] - 1) / config[PARTS];
    for (int i = STEP_UP; i <= STEP_DOWN; i += STEP_DOWN - STEP_UP)
        if (config[i] & (config[i] - 1))
            return quern_refuse(why, "config %s=%d: must be a power of two", knobs[i].name,
                                config[i]);
    if ((config[PARTS] - 1) * part >= steps)
        return quern_refuse(why, "config parts=%d: must leave none of %lld steps empty",
                            config[PARTS], (long long)steps);
    if (up_bytes(v, config) > most)
        return quern_refuse(why,
                            "config stages_up=%d: takes %lld bytes of shared memory, at most %lld",
                            config[STAGES_UP], (long long)up_bytes(v, config), (long long)most);
    if (down_bytes(v, config) > most)
        return quern_refuse(
            why, "config stages_down=%d: takes %lld bytes of shared memory, at most %lld",
            config[STAGES_DOWN], (long long)down_bytes(v, config), (long long)most);
    return QUERN_OK;
}

static int serves(const struct quern_problem *problem)
{
    static const int32_t least[KNOB_COUNT] = { 2, 2, 32, 2, 2, 32, 1 };
    struct quern_message why;
    const struct values *v = values_of(problem->bucket);
    return moe_cuda_supports(problem) && is_few(v) &&
           table_bytes(v) <= moe_cuda_shared_bytes(problem) && !legal(problem, least, &why);
}

/* Few tokens, and room for warps and stages enough to have memory under way. */
static int is_likely_best(const struct quern_problem *problem)
{
    static const int32_t enough[KNOB_COUNT] = { 4, 3, 32, 4, 3, 32, 1 };
    struct quern_message why;
    return values_of(problem->bucket)->tokens <= LIKELY_BEST && !legal(problem, enough, &why);
}

static int supports(const struct quern_problem *problem)
{
    return serves(problem) && is_likely_best(problem);
}

static int supports_more(const struct quern_problem *problem)
{
    return serves(problem) && !is_likely_best(problem);
}

/* As many stages as fit in `room`, up to MOST; at least 2. */
static int stages_in(int64_t room, int64_t stage)
{
    enum { MOST = 8 };
    return (int)(room < 2 * stage ? 2 : room > MOST * stage ? MOST : room / stage);
}

/* Where one kernel starts while the other runs both fit an SM together, if that leaves them enough
 * stages; with one token the larger part is for what the second loads before it can begin. */
static void complete(const struct quern_problem *problem, int32_t *config)
{
    enum { ENOUGH = 4, BLOCK_BYTES = 1024 };
    const struct values *v = values_of(problem->bucket);
    const int64_t most = moe_cuda_shared_bytes(problem);
    const int64_t up = ring_bytes(v, config[WARPS_UP], 1, config[STEP_UP]);
    const int64_t down = ring_bytes(v, config[WARPS_DOWN], 1, config[STEP_DOWN]);
    const int64_t first = is_one(v) ? most * 2 / 5 : most / 2;
    config[STAGES_UP] = stages_in(first - up_rest(v, config), up);
    config[STAGES_DOWN] = stages_in(most - BLOCK_BYTES - first - down_rest(v, config), down);
    if (is_self(v) && problem->target->sm >= 90 && config[STAGES_UP] >= ENOUGH &&
        config[STAGES_DOWN] >= ENOUGH)
        return;
    config[STAGES_UP] = stages_in(most - up_rest(v, config), up);
    config[STAGES_DOWN] = stages_in(most - down_rest(v, config), down);
}

/* Fewer warps, then shorter steps, until it fits: 2 warps and steps of 32 do where it serves. */
static void heuristic(const struct quern_problem *problem, int32_t *config)
{
    struct quern_message why;
    config[WARPS_UP] = 6;
    config[WARPS_DOWN] = 8;
    config[PARTS] = 1;
    config[STEP_UP] = config[STEP_DOWN] = 64;
    for (complete(problem, config); legal(problem, config, &why); complete(problem, config)) {
        if (config[WARPS_UP] == 2 && config[WARPS_DOWN] == 2)
            config[STEP_UP] = config[STEP_DOWN] = 32;
        config[WARPS_UP] = config[WARPS_UP] > 4 ? config[WARPS_UP] / 2 : 2;
        config[WARPS_DOWN] = config[WARPS_DOWN] > 4 ? config[WARPS_DOWN] / 2 : 2;
    }
}

static int candidates(const struct quern_problem *problem, int32_t (*configs)[QUERN_MAX_KNOBS],
                      int max)
{
    static const int16_t list[][5] = {
        /* warps_up, step_up, warps_down, step_down, parts */
        { 6, 64, 8, 64, 1 },   { 6, 128, 8, 128, 1 }, { 8, 64, 8, 64, 2 },   { 8, 128, 8, 64, 3 },
        { 12, 64, 12, 64, 3 }, { 4, 128, 4, 128, 1 }, { 6, 256, 6, 256, 1 }, { 16, 64, 16, 64, 2 },
        { 6, 32, 8, 32, 1 },   { 12, 32, 16, 32, 2 }, { 4, 64, 4, 64, 1 },   { 12, 64, 8, 128, 1 },
    };
    int count = 0;
    for (; count < max && count < (int)(sizeof(list) / sizeof(list[0])); count++) {
        configs[count][WARPS_UP] = list[count][0];
        configs[count][STEP_UP] = list[count][1];
        configs[count][WARPS_DOWN] = list[count][2];
        configs[count][STEP_DOWN] = list[count][3];
        configs[count][PARTS] = list[count][4];
        complete(problem, configs[count]);
    }
    return count;
}

/* ---- Plan and bind --------------------------------------------------------------------------- */

static int64_t round_up(int64_t bytes)
{
    return (bytes + 255) / 256 * 256;
}

static int64_t h_bytes(const struct values *v)
{
    return round_up(2 * v->tokens * (v->topk + v->shared) * MOE_STREAM_PITCH(v->inter));
}

static int least_of(int a, int b)
{
    return a < b ? a : b;
}

static struct quern_step *add(const struct quern_problem *problem, struct quern_plan *plan,
                              const char *name, const char *entry, int kernel)
{
    const struct values *v = values_of(problem->bucket);
    struct quern_step *step = quern_plan_kernel(plan, name, source, entry);
    moe_cuda_define_route(problem, step);
    quern_step_define(step, "KERNEL", kernel);
    quern_step_define(step, "HIDDEN", v->hidden);
    quern_step_define(step, "INTER", v->inter);
    quern_step_define(step, "DTYPE", v->dtype);
    quern_step_define(step, "ACTIVATION", v->activation);
    quern_step_define(step, "IS_SELF", is_self(v));
    quern_step_define(step, "MOST_TOKENS", most_tokens(v));
    step->is_programmatic = problem->target->sm >= 90 && plan->step_count > 1;
    return step;
}

/* config: warps, stages and step of a product. */
static void define_product(struct quern_step *step, const int32_t *config, int access)
{
    quern_step_define(step, "WARPS", config[0]);
    quern_step_define(step, "STAGES", config[1]);
    quern_step_define(step, "STEP", config[2]);
    quern_step_define(step, "ACCESS", access);
    step->threads[0] = 32 * (uint32_t)config[0];
}

static void plan(const struct quern_problem *problem, const int32_t *config,
                 struct quern_plan *plan)
{
    const struct values *v = values_of(problem->bucket);
    const uint8_t *alignment = problem->alignment;
    const int64_t slots = moe_cuda_slots(problem->bucket);
    if (!is_self(v)) {
        struct quern_step *route =
            add(problem, plan, "route", "moe_stream_route", MOE_STREAM_ROUTE);
        route->threads[0] = ROUTE_THREADS;
        route->shared_bytes = (uint32_t)table_bytes(v);
    }
    struct quern_step *up = add(problem, plan, "up", "moe_stream_up", MOE_STREAM_UP);
    define_product(up, &config[WARPS_UP], least_of(alignment[ARRAY_w13], alignment[ARRAY_x]));
    up->shared_bytes = (uint32_t)up_bytes(v, config);
    struct quern_step *down = add(problem, plan, "down", "moe_stream_down", MOE_STREAM_DOWN);
    define_product(down, &config[WARPS_DOWN], alignment[ARRAY_w2]);
    quern_step_define(down, "PARTS", config[PARTS]);
    down->shared_bytes = (uint32_t)down_bytes(v, config);
    plan->workspace_bytes = h_bytes(v) + 256 + 40 * slots;
}

static void bind(const struct quern_binding *binding, struct quern_launch *launch)
{
    const struct values *v = values_of(binding->spec);
    const int64_t slots = moe_cuda_slots(binding->spec), cores = moe_cuda_cores(binding->profile);
    const int64_t columns = (v->hidden + 15) / 16;
    char *space = (char *)binding->workspace + h_bytes(v);
    struct moe_stream_args args = {
        .moe = moe_arguments(binding),
        .scalars = moe_cuda_scalars(binding->spec),
        .tiles = { .count = (int32_t *)(void *)space,
                   .experts = (int32_t *)(void *)(space + 256),
                   .slots = (int32_t *)(void *)(space + 256 + 4 * slots),
                   .weights = (float *)(void *)(space + 256 + 36 * slots) },
        .h = binding->workspace,
    };
    struct quern_step_launch *step = launch->steps;
    /* The kernels made for up to 8 tokens and those for more have different steps; which they are
     * follows from the bucket, and SELF_TOKENS is a power of two. */
    if (!is_self(v))
        QUERN_BIND(&step[0], args, 1, 1, 1);
    step += !is_self(v);
    QUERN_BIND(&step[0], args, v->tokens ? cores : 0, 1, 1);
    QUERN_BIND(&step[1], args, v->tokens ? (columns < cores ? columns : cores) : 0, 1, 1);
}

const struct quern_variant moe_stream = {
    .name = "moe_stream",
    .doc = "few tokens: weights of the experts hit are streamed, each once for up to 8 tokens",
    .device = QUERN_CUDA,
    .knobs = knobs,
    .knob_count = KNOB_COUNT,
    .supports = supports,
    .legal = legal,
    .heuristic = heuristic,
    .candidates = candidates,
    .plan = plan,
    .bind = bind,
};

const struct quern_variant moe_stream_more = {
    .name = "moe_stream_more",
    .doc = "as moe_stream, for more tokens than it is likely the best for",
    .device = QUERN_CUDA,
    .knobs = knobs,
    .knob_count = KNOB_COUNT,
    .supports = supports_more,
    .legal = legal,
    .heuristic = heuristic,
    .candidates = candidates,
    .plan = plan,
    .bind = bind,
};
