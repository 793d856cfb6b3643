/* The host side of mla_decode_cpu: three steps, of one artifact.
 *
 *     schedule    cuts the runs into pieces of about equal work
 *     decode      a block is a piece and up to GROUP_ROWS query rows
 *     combine     a block is a run and as many rows: joins what its pieces left in the workspace
 *
 * A run cut into n > 1 pieces has more than n / 2 times the rows of one, so that partial results
 * are at most twice as many as the pieces wanted. With deterministic=1 a run's pieces follow from
 * its length alone, and are at most RUN_PIECES. */
#define QUERN_DEF "mla/mla_decode.def"
#include <quern/family_def.h>

#include <string.h>

#include "mla_decode.h"
#include "mla_decode_cpu_args.h"

enum { KNOB_BLOCK, KNOB_AMX };
static const struct quern_knob knobs[] = {
    [KNOB_BLOCK] = { "block", 32, 256, "rows of the cache that are worked on together" },
    [KNOB_AMX] = { "amx", 0, 1, "products of bf16 on AMX tiles; else in vectors" },
};

enum { RUN_PIECES = 8, PIECES_A_CORE = 8 };

static int supports(const struct quern_problem *problem)
{
    return problem->target->kind == QUERN_CPU;
}

static int has_tiles(const struct quern_problem *problem)
{
    return problem->target->cpu_features & QUERN_CPU_AMX &&
           values_of(problem->bucket)->dtype == QUERN_BF16;
}

static int legal(const struct quern_problem *problem, const int32_t *config,
                 struct quern_message *why)
{
    int32_t block = config[KNOB_BLOCK];
    if (block & (block - 1))
        return quern_refuse(why, "config block=%d: must be a power of two", block);
    if (config[KNOB_AMX] && !has_tiles(problem))
        return quern_refuse(why, "config amx=1: must be 0 unless the target has AMX and "
                                 "dtype=bf16");
    return QUERN_OK;
}

static void heuristic(const struct quern_problem *problem, int32_t *config)
{
    config[KNOB_AMX] = has_tiles(problem);
    config[KNOB_BLOCK] = config[KNOB_AMX] ? 128 : 64;
}

static int candidates(const struct quern_problem *problem, int32_t (*configs)[QUERN_MAX_KNOBS],
                      int max)
{
    static const int32_t list[][2] = { { 128, 1 }, { 64, 1 }, { 256, 1 }, { 64, 0 },
                                       { 32, 0 },  { 32, 1 }, { 128, 0 } };
    int count = 0;
    (void)problem;
    for (; count < max && count < (int)(sizeof(list) / sizeof(list[0])); count++)
        memcpy(configs[count], list[count], sizeof(list[count]));
    return count;
}

/* ---- The work, and room for it --------------------------------------------------------------- */

static int64_t runs_of(const struct values *v)
{
    return v->topk ? v->b * v->sq : v->b;
}

/* Query rows of a run. */
static int64_t rows_of(const struct values *v)
{
    return v->topk ? v->hq : v->sq * v->hq;
}

static int64_t group_rows(const struct values *v)
{
    int64_t rows = (rows_of(v) + 15) / 16 * 16;
    return rows < 128 ? rows : 128;
}

struct layout {
    int64_t pieces_wanted, pieces, slots;
    int64_t piece_table, run_table, sums, o, bytes; /* offsets; the count of pieces is at 0 */
};

static struct layout layout_of(const struct values *v, const struct quern_profile *profile)
{
    const int64_t runs = runs_of(v), cores = profile->cores > 0 ? profile->cores : 1;
    const int64_t wanted = PIECES_A_CORE * cores;
    struct layout layout = { .pieces_wanted = wanted };
    layout.pieces = v->deterministic ? RUN_PIECES * runs : wanted + runs;
    layout.slots = v->deterministic ? RUN_PIECES * runs : 2 * wanted;
    layout.piece_table = 64;
    layout.run_table = layout.piece_table + layout.pieces * (int64_t)sizeof(struct mla_piece);
    layout.sums = layout.run_table + runs * (int64_t)sizeof(struct mla_run);
    layout.o = (layout.sums + layout.slots * rows_of(v) * 8 + 63) / 64 * 64;
    layout.bytes = layout.o + layout.slots * rows_of(v) * MLA_DV * 4;
    return layout;
}

/* ---- The plan -------------------------------------------------------------------------------- */

static void plan(const struct quern_problem *problem, const int32_t *config,
                 struct quern_plan *plan)
{
    static const char *const steps[][2] = { { "schedule", "mla_decode_schedule" },
                                            { "decode", "mla_decode_main" },
                                            { "combine", "mla_decode_combine" } };
    const struct values *v = values_of(problem->bucket);
    const int is_paired =
        v->dtype == QUERN_BF16 && problem->target->cpu_features & (QUERN_CPU_BF16 | QUERN_CPU_AMX);
    for (int i = 0; i < 3; i++) {
        struct quern_step *step =
            quern_plan_kernel(plan, steps[i][0], "mla/mla_decode_cpu.c", steps[i][1]);
        mla_decode_define(step, problem->bucket);
        quern_step_define_config(step, &mla_decode_cpu, config);
        quern_step_define(step, "IS_PAIRED", is_paired);
        quern_step_define(step, "GROUP_ROWS", group_rows(v));
        quern_step_define(step, "RUN_PIECES", RUN_PIECES);
    }
    plan->workspace_bytes = layout_of(v, problem->profile).bytes;
}

static void bind(const struct quern_binding *binding, struct quern_launch *launch)
{
    const struct values *v = values_of(binding->spec);
    const struct layout layout = layout_of(v, binding->profile);
    const int64_t runs = runs_of(v), groups = (rows_of(v) + group_rows(v) - 1) / group_rows(v);
    char *workspace = binding->workspace;
    const struct mla_decode_cpu_args args = {
        .call = mla_decode_arguments(binding),
        .runs = runs,
        .pieces_wanted = layout.pieces_wanted,
        .piece_count = (int64_t *)(void *)workspace,
        .pieces = (struct mla_piece *)(void *)(workspace + layout.piece_table),
        .run_table = (struct mla_run *)(void *)(workspace + layout.run_table),
        .partial_sums = (float *)(void *)(workspace + layout.sums),
        .partial_o = (float *)(void *)(workspace + layout.o),
    };
    QUERN_BIND(&launch->steps[0], args, runs ? 1 : 0, 1, 1);
    QUERN_BIND(&launch->steps[1], args, runs ? layout.pieces : 0, groups, 1);
    QUERN_BIND(&launch->steps[2], args, runs, groups, 1);
}

const struct quern_variant mla_decode_cpu = {
    .name = "mla_decode_cpu",
    .doc = "blocks of rows, every one read once for all heads; AMX tiles or vectors",
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
