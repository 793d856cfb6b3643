/* The host side of attention_decode_cpu: a workspace for the states of all pieces that there can
 * be, and two grids whose sizes do not depend on lengths. */
#define QUERN_DEF "decode/attention_decode.def"
#include <quern/family_def.h>

#include "attention_decode.h"
#include "attention_decode_cpu_args.h"

enum { KNOB_HEADS, KNOB_BLOCKS };
static const struct quern_knob knobs[] = {
    [KNOB_HEADS] = { "heads", 1, 64, "heads of the cache that a unit reads side by side" },
    [KNOB_BLOCKS] = { "blocks", 1, 256, "blocks in the grid for each thread, at most" },
};

static int supports(const struct quern_problem *problem)
{
    return problem->target->kind == QUERN_CPU;
}

/* Tiles of up to four rows of a head's queries. */
static int64_t tiles_of(const struct values *v)
{
    return (v->hq / v->hkv + 3) / 4;
}

static int legal(const struct quern_problem *problem, const int32_t *config,
                 struct quern_message *why)
{
    const struct values *v = values_of(problem->bucket);
    int64_t most = DECODE_TILES / tiles_of(v);
    most = most < 1 ? 1 : most > v->hkv ? v->hkv : most;
    if (config[KNOB_HEADS] > most)
        return quern_refuse(why, "config heads=%d: must be at most %lld with hq=%lld and hkv=%lld",
                            config[KNOB_HEADS], (long long)most, (long long)v->hq,
                            (long long)v->hkv);
    return QUERN_OK;
}

/* All heads, whose rows lie together, as long as threads have enough to do. */
static void heuristic(const struct quern_problem *problem, int32_t *config)
{
    const struct values *v = values_of(problem->bucket);
    int64_t pieces = v->b * ((v->max_pages * v->page + DECODE_PIECE - 1) / DECODE_PIECE);
    int64_t heads = DECODE_TILES / tiles_of(v);
    heads = heads < 1 ? 1 : heads > v->hkv ? v->hkv : heads;
    while (heads > 1 && pieces * ((v->hkv + heads - 1) / heads) < 4 * problem->profile->cores)
        heads = (heads + 1) / 2;
    config[KNOB_HEADS] = (int32_t)heads;
    config[KNOB_BLOCKS] = 32;
}

static int candidates(const struct quern_problem *problem, int32_t (*configs)[QUERN_MAX_KNOBS],
                      int max)
{
    static const int32_t heads[] = { 8, 4, 2, 1, 16 };
    int count = 0;
    (void)problem;
    for (; count < max && count < (int)(sizeof(heads) / sizeof(heads[0])); count++) {
        configs[count][KNOB_HEADS] = heads[count];
        configs[count][KNOB_BLOCKS] = 32;
    }
    return count;
}

/* ---- The workspace --------------------------------------------------------------------------- */

static int64_t pieces_in(int64_t tokens)
{
    return (tokens + DECODE_PIECE - 1) / DECODE_PIECE;
}

/* Of a row: the most pieces that any lengths give. */
static int64_t own_slots(const struct values *v)
{
    int64_t all = pieces_in(v->max_pages * v->page);
    int64_t seen = pieces_in(v->window) + 1;
    return v->window && seen < all ? seen : all;
}

static int64_t shared_slots(const struct values *v)
{
    return pieces_in(v->shared_pages * v->page);
}

static int64_t slots_of(const struct values *v)
{
    return own_slots(v) + shared_slots(v);
}

static int64_t states_bytes(const struct values *v)
{
    int64_t bytes = v->b * v->hq * slots_of(v) * (int64_t)sizeof(struct decode_state);
    return (bytes + 255) / 256 * 256;
}

static void plan(const struct quern_problem *problem, const int32_t *config,
                 struct quern_plan *plan)
{
    const struct values *v = values_of(problem->bucket);
    const char *source = "decode/attention_decode_cpu.c";
    (void)config; /* launch arguments: every config shares one artifact */
    struct quern_step *steps[] = {
        quern_plan_kernel(plan, "decode", source, "attention_decode_main"),
        quern_plan_kernel(plan, "combine", source, "attention_decode_combine"),
    };
    const int has_tiles = problem->target->cpu_features & QUERN_CPU_AMX && v->dtype == QUERN_BF16;
    for (int i = 0; i < 2; i++) {
        attention_decode_define(steps[i], problem->bucket);
        quern_step_define(steps[i], "AMX", has_tiles);
    }
    plan->workspace_bytes =
        states_bytes(v) + v->b * v->hq * slots_of(v) * v->dv * (int64_t)sizeof(float);
}

/* Heads of a piece of the prefix whose rows a second-level cache keeps: 1 MiB at d=128. */
enum { SHARED_HEADS = 4 };

/* Sequences that a block computes a piece of the prefix for: all, unless threads would idle. */
static int64_t shared_batch(const struct values *v, int64_t units, int64_t cores)
{
    int64_t parts = (4 * cores + units - 1) / units;
    return (v->b + parts - 1) / parts;
}

static void bind(const struct quern_binding *binding, struct quern_launch *launch)
{
    const struct values *v = values_of(binding->spec);
    const int64_t cores = binding->profile->cores > 0 ? binding->profile->cores : 1;
    const int64_t heads = binding->config[KNOB_HEADS];
    const int64_t parts = (tiles_of(v) + DECODE_TILES - 1) / DECODE_TILES;
    struct decode_cpu_args args = {
        .call = attention_decode_arguments(binding),
        .states = binding->workspace,
        .sums = (float *)((char *)binding->workspace + states_bytes(v)),
        .slots = slots_of(v),
        .shared_slots = shared_slots(v),
        .heads = heads,
        .blocks = v->b * own_slots(v) * ((v->hkv + heads - 1) / heads) * parts,
    };
    if (args.blocks > cores * binding->config[KNOB_BLOCKS])
        args.blocks = cores * binding->config[KNOB_BLOCKS];
    if (args.shared_slots && v->b) {
        args.shared_heads = heads < SHARED_HEADS ? heads : SHARED_HEADS;
        int64_t blocks = (v->hkv + args.shared_heads - 1) / args.shared_heads;
        int64_t units = args.shared_slots * blocks * parts;
        args.shared_batch = shared_batch(v, units, cores);
        args.shared_blocks = units * ((v->b + args.shared_batch - 1) / args.shared_batch);
    }
    QUERN_BIND(&launch->steps[0], args, args.shared_blocks + args.blocks, 1, 1);
    QUERN_BIND(&launch->steps[1], args, v->b ? v->hkv : 0, v->b, 1);
}

const struct quern_variant attention_decode_cpu = {
    .name = "attention_decode_cpu",
    .doc = "pieces of sequences, read once at the speed of memory, then combined",
    .device = QUERN_CPU,
    .knobs = knobs,
    .knob_count = sizeof(knobs) / sizeof(knobs[0]),
    .supports = supports,
    .legal = legal,
    .heuristic = heuristic,
    .candidates = candidates,
    .plan = plan,
    .bind = bind,
};
