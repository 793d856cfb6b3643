/* Slots sorted by expert, stably, each expert's rows padded to a multiple of `block`: what
 * moe_align_block_size, prepare_moe_input and the fused layer have in common. A counting sort:
 *
 *     slots    [ chunk 0 | chunk 1 | ... ]      a block of the grid has a chunk
 *     count    counts[chunk][bucket]            bucket 0: of no expert, bucket e + 1: expert e
 *     sort     rows ahead of a slot = those of the buckets ahead, padded, those of its bucket in
 *              the chunks ahead, and in its own chunk
 *
 * Where slots are few each block of `sort` counts all of them itself, and `count` is skipped.
 *
 * Both lists begin with tokens, topk and experts, so one list's `values` serves both for these. */
#define QUERN_DEF "moe/prepare_moe_input.def"
#include <quern/family_def.h>

#include <string.h>

#include "moe_align.h"

/* ---- Sizes ----------------------------------------------------------------------------------- */

int64_t moe_align_rows(int64_t slots, int64_t experts, int64_t block)
{
    if (slots < experts + 1)
        return slots * block;
    return (slots + (experts + 2) * (block - 1)) / block * block;
}

static int has_sizes(const struct quern_spec *spec)
{
    return !strcmp(spec->family->name, "prepare_moe_input");
}

static struct moe_align_args arguments(const struct quern_binding *binding)
{
    return has_sizes(binding->spec) ? prepare_moe_input_arguments(binding)
                                    : moe_align_block_size_arguments(binding);
}

/* Of a bucket it may be more than 32 bits hold. */
static int64_t slots_of(const struct quern_spec *spec)
{
    return values_of(spec)->tokens * values_of(spec)->topk;
}

static int64_t chunks_of(int64_t slots, int64_t chunk)
{
    return (slots + chunk - 1) / chunk;
}

/* ---- CUDA ------------------------------------------------------------------------------------ */

static const char cuda_source[] = "moe/moe_align_cuda.cu";
enum { KNOB_THREADS, KNOB_CHUNK, KNOB_WHOLE, CUDA_KNOBS };
static const struct quern_knob cuda_knobs[] = {
    [KNOB_THREADS] = { "threads", 128, 512, "threads of a block" },
    [KNOB_CHUNK] = { "chunk", 32, 65504, "slots that a block sorts" },
    [KNOB_WHOLE] = { "whole", 0, 65536, "up to so many slots each block counts all" },
};
enum {
    FILL_ROWS = 4,      /* rows for each thread of the grid, about */
    CHUNK_LEAST = 1024, /* unless a config says so */
    CHUNKS = 128        /* of more slots than make so many, chunks are larger */
};

/* A block's tables: three integers for each bucket, 16 bits for each bucket and warp. */
static int64_t shared_bytes(int64_t experts, int32_t threads)
{
    return 4 * (3 * (experts + 2) + 32) + 2 * (threads / 32) * (experts + 2);
}

void moe_align_choose(int64_t slots, struct moe_align_config *config)
{
    int64_t chunk = ((slots + CHUNKS - 1) / CHUNKS + 31) / 32 * 32;
    config->threads = 512;
    config->chunk = (int32_t)(chunk < CHUNK_LEAST ? CHUNK_LEAST : chunk > 65504 ? 65504 : chunk);
    config->whole = 8192;
}

int64_t moe_align_counts_bytes(int64_t slots, int64_t experts,
                               const struct moe_align_config *config)
{
    const int64_t chosen = chunks_of(slots, CHUNK_LEAST); /* more than CHUNKS: with larger ones */
    const int64_t least = chosen < CHUNKS ? chosen : CHUNKS, own = chunks_of(slots, config->chunk);
    if (slots <= config->whole)
        return 0;
    return (own > least ? own : least) * (experts + 1) * (int64_t)sizeof(int32_t);
}

void moe_align_plan(const struct quern_problem *problem, int64_t experts,
                    const struct moe_align_config *config, struct quern_plan *plan)
{
    static const char *const entries[] = { "moe_align_count", "moe_align_sort" };
    for (int i = 0; i < MOE_ALIGN_STEPS; i++) {
        struct quern_step *step =
            quern_plan_kernel(plan, i ? "align_sort" : "align_count", cuda_source, entries[i]);
        quern_step_define(step, "THREADS", config->threads);
        step->threads[0] = (uint32_t)config->threads;
        step->shared_bytes = (uint32_t)shared_bytes(experts, config->threads);
        step->is_programmatic = problem->target->sm >= 90;
    }
}

/* With 2^s >= d and factor = 2^(31 + s) / d rounded up, factor d exceeds 2^(31 + s) by less than
 * 2^s, so n factor / 2^(31 + s) exceeds n / d by less than 1 / d. */
static struct moe_align_divisor divisor_of(int32_t d)
{
    const int s = d > 1 ? 32 - __builtin_clz((unsigned)d - 1) : 0;
    const uint64_t power = UINT64_C(1) << (31 + s);
    return (struct moe_align_divisor){ (uint32_t)((power + (uint64_t)d - 1) / (uint64_t)d),
                                       31 + s };
}

void moe_align_bind(struct moe_align_args *args, const struct moe_align_config *config,
                    void *counts, struct quern_step_launch *steps)
{
    const int is_whole = args->slots <= config->whole;
    const int64_t chunks = chunks_of(args->slots, config->chunk);
    const int64_t filled = args->expert_ids || args->block > 1 ? args->rows : 0;
    const int64_t fillers =
        (filled + config->threads * FILL_ROWS - 1) / (config->threads * FILL_ROWS);
    int64_t blocks = chunks > fillers ? chunks : fillers;
    args->counts = is_whole ? NULL : counts;
    args->chunk = config->chunk;
    args->by_topk = divisor_of(args->topk);
    args->by_block = divisor_of(args->block);
    args->chunks = (int32_t)chunks;
    args->part = (config->chunk + config->threads - 1) / config->threads * 32;
    args->by_part = divisor_of(args->part);
    QUERN_BIND(&steps[0], *args, is_whole ? 0 : chunks, 1, 1);
    QUERN_BIND(&steps[1], *args, blocks ? blocks : 1, 1, 1);
}

static struct moe_align_config config_of(const int32_t *knobs)
{
    return (struct moe_align_config){ knobs[KNOB_THREADS], knobs[KNOB_CHUNK], knobs[KNOB_WHOLE] };
}

static int cuda_supports(const struct quern_problem *problem)
{
    return problem->target->kind == QUERN_CUDA;
}

static int cuda_legal(const struct quern_problem *problem, const int32_t *config,
                      struct quern_message *why)
{
    if (config[KNOB_THREADS] & (config[KNOB_THREADS] - 1))
        return quern_refuse(why, "config threads=%d: must be a power of two", config[KNOB_THREADS]);
    if (shared_bytes(values_of(problem->bucket)->experts, config[KNOB_THREADS]) >
        problem->profile->l1_bytes)
        return quern_refuse(why, "config threads=%d: tables must fit into shared memory",
                            config[KNOB_THREADS]);
    return QUERN_OK;
}

static void cuda_heuristic(const struct quern_problem *problem, int32_t *config)
{
    struct moe_align_config choice;
    moe_align_choose(slots_of(problem->bucket), &choice);
    config[KNOB_THREADS] = choice.threads;
    config[KNOB_CHUNK] = choice.chunk;
    config[KNOB_WHOLE] = choice.whole;
}

static int cuda_candidates(const struct quern_problem *problem, int32_t (*configs)[QUERN_MAX_KNOBS],
                           int max)
{
    static const int32_t list[][CUDA_KNOBS] = {
        { 512, 1024, 8192 }, { 512, 2048, 8192 },  { 512, 512, 4096 },   { 256, 1024, 8192 },
        { 256, 512, 8192 },  { 128, 1024, 8192 },  { 512, 1024, 65536 }, { 512, 2048, 65536 },
        { 512, 512, 0 },     { 256, 1024, 65536 }, { 512, 512, 65536 },
    };
    int count = 0;
    (void)problem;
    for (; count < max && count < (int)(sizeof(list) / sizeof(list[0])); count++)
        memcpy(configs[count], list[count], sizeof(list[count]));
    return count;
}

static void cuda_plan(const struct quern_problem *problem, const int32_t *config,
                      struct quern_plan *plan)
{
    const int64_t experts = values_of(problem->bucket)->experts;
    const struct moe_align_config choice = config_of(config);
    moe_align_plan(problem, experts, &choice, plan);
    for (int i = 0; i < MOE_ALIGN_STEPS; i++)
        quern_step_define(&plan->steps[i], "SIZES", has_sizes(problem->bucket));
    plan->workspace_bytes = moe_align_counts_bytes(slots_of(problem->bucket), experts, &choice);
}

static void cuda_bind(const struct quern_binding *binding, struct quern_launch *launch)
{
    struct moe_align_args args = arguments(binding);
    const struct moe_align_config choice = config_of(binding->config);
    moe_align_bind(&args, &choice, binding->workspace, launch->steps);
}

static const struct quern_variant moe_align_cuda = {
    .name = "moe_align_cuda",
    .doc = "a counting sort of chunks, each warp's part ranked by what its lanes agree on",
    .device = QUERN_CUDA,
    .knobs = cuda_knobs,
    .knob_count = CUDA_KNOBS,
    .supports = cuda_supports,
    .legal = cuda_legal,
    .heuristic = cuda_heuristic,
    .candidates = cuda_candidates,
    .plan = cuda_plan,
    .bind = cuda_bind,
};

/* ---- CPU ------------------------------------------------------------------------------------- */

static const struct quern_knob cpu_knobs[] = {
    { "chunk", 1024, 1 << 20, "slots that a block of the grid sorts" },
};

static int cpu_supports(const struct quern_problem *problem)
{
    return problem->target->kind == QUERN_CPU;
}

/* A chunk for each core where they are worth a thread. */
static void cpu_heuristic(const struct quern_problem *problem, int32_t *config)
{
    const int64_t slots = slots_of(problem->bucket);
    const int64_t cores = problem->profile->cores > 0 ? problem->profile->cores : 1;
    const int64_t chunk = (slots + cores - 1) / cores;
    config[0] = (int32_t)(chunk < 16384 ? 16384 : chunk > 1 << 20 ? 1 << 20 : chunk);
}

static int cpu_candidates(const struct quern_problem *problem, int32_t (*configs)[QUERN_MAX_KNOBS],
                          int max)
{
    static const int32_t sizes[] = { 16384, 4096, 1024, 65536, 1 << 20 };
    int count = 0;
    (void)problem;
    for (; count < max && count < (int)(sizeof(sizes) / sizeof(sizes[0])); count++)
        configs[count][0] = sizes[count];
    return count;
}

static void cpu_plan(const struct quern_problem *problem, const int32_t *config,
                     struct quern_plan *plan)
{
    quern_plan_kernel(plan, "align_count", "moe/moe_align_cpu.c", "moe_align_count");
    quern_plan_kernel(plan, "align_sort", "moe/moe_align_cpu.c", "moe_align_sort");
    plan->workspace_bytes = chunks_of(slots_of(problem->bucket), config[0]) *
                            (values_of(problem->bucket)->experts + 1) * (int64_t)sizeof(int32_t);
}

static void cpu_bind(const struct quern_binding *binding, struct quern_launch *launch)
{
    struct moe_align_args args = arguments(binding);
    const int64_t chunks = chunks_of(args.slots, binding->config[0]);
    args.chunk = binding->config[0];
    args.counts = chunks > 1 ? binding->workspace : NULL;
    QUERN_BIND(&launch->steps[0], args, chunks > 1 ? chunks : 0, 1, 1);
    QUERN_BIND(&launch->steps[1], args, chunks ? chunks : 1, 1, 1);
}

static const struct quern_variant moe_align_cpu = {
    .name = "moe_align_cpu",
    .doc = "a counting sort, a chunk of the slots a thread",
    .device = QUERN_CPU,
    .knobs = cpu_knobs,
    .knob_count = sizeof(cpu_knobs) / sizeof(cpu_knobs[0]),
    .supports = cpu_supports,
    .heuristic = cpu_heuristic,
    .candidates = cpu_candidates,
    .plan = cpu_plan,
    .bind = cpu_bind,
};

const struct quern_variant *const moe_align_variants[] = { &moe_align_cuda, &moe_align_cpu, NULL };

/* ---- Rules, inputs --------------------------------------------------------------------------- */

int moe_align_check_sizes(int64_t tokens, int64_t topk, int64_t experts, struct quern_message *why)
{
    if (topk > MOE_EXPERTS_MOST)
        return quern_refuse(why, "topk=%lld: must be at most %d", (long long)topk,
                            MOE_EXPERTS_MOST);
    if (experts > MOE_EXPERTS_MOST)
        return quern_refuse(why, "experts=%lld: must be at most %d", (long long)experts,
                            MOE_EXPERTS_MOST);
    if (tokens > MOE_SLOTS_MOST / topk)
        return quern_refuse(why, "tokens=%lld: tokens * topk must be at most 2^30",
                            (long long)tokens);
    return QUERN_OK;
}

/* The finaliser of splitmix64. */
static uint64_t mix(uint64_t x)
{
    x = (x ^ x >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ x >> 27) * UINT64_C(0x94d049bb133111eb);
    return x ^ x >> 31;
}

/* The square of a uniform number favours the first experts; a token's next are a step apart. */
void moe_align_draw_ids(uint64_t seed, int64_t tokens, int64_t topk, int64_t experts, int32_t *ids)
{
    const int64_t chosen = (int64_t)(mix(seed) % (uint64_t)experts);
    for (int64_t i = 0; i < tokens * topk; i++) {
        uint64_t token = mix(mix(seed + 1) + (uint64_t)(i / topk));
        uint64_t slot = mix(mix(seed + 2) + (uint64_t)i);
        double popular = (double)(token >> 40) * 0x1p-24;
        int64_t id = (int64_t)(popular * popular * (double)experts) + i % topk;
        if (tokens % 5 == 0)
            id = chosen;
        ids[i] = slot % 17 == 0 ? -1 : (int32_t)(id % experts);
    }
}

int64_t moe_align_units(const struct quern_spec *spec)
{
    (void)spec;
    return 1;
}

double moe_align_tolerance(const struct quern_spec *spec, int index)
{
    (void)spec, (void)index;
    return 0;
}
