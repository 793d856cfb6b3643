/* The CPU variant of gemm, host side: which configs are legal, which is likely best, the steps of a
 * plan and the arguments of a launch. gemm_cpu.c says what the steps do.
 *
 *     plan                 pack_b (pack_b=1)  ->  main or small  ->  reduce (split_k > 1)
 *     workspace            packed_b [batch][ceil(n / nr)][units(k)][nr] u32, up to 256 bytes,
 *                          then partial [split_k][batch][m][n] f32
 *
 * A spec with packed=P has b in panels of P columns already: pack_b is 1, without the step and its
 * workspace, and nr any divisor of P. Its bf16 panels hold pairs, so that bf16_pairs is 1 even on
 * targets that have no instruction for them: a packed b serves every target.
 *
 * All steps of a plan have the same source and defines: one artifact.
 */
#define QUERN_DEF "gemm/gemm.def"
#include <quern/family_def.h>

#include "gemm.h"
#include "gemm_args.h"

enum { ALGO, AMX, BF16_PAIRS, PACK_B, SPLIT_K, MR, NR, MC, NC, KC, KNOB_COUNT };
enum { TILED, SMALL };

static const struct quern_knob knobs[] = {
    [ALGO] = { "algo", 0, 1, "0: blocked product; 1: few rows, b is read once and unpacked" },
    [AMX] = { "amx", 0, 1, "multiply by AMX tiles (bf16 by bf16)" },
    [BF16_PAIRS] = { "bf16_pairs", 0, 1, "multiply bf16 in pairs instead of widening it to f32" },
    [PACK_B] = { "pack_b", 0, 1, "b is packed ahead, by a step or (packed) by gemm_pack" },
    [SPLIT_K] = { "split_k", 1, 64, "shares of k that are summed apart" },
    [MR] = { "mr", 1, 32, "rows of a register tile" },
    [NR] = { "nr", 1, 64, "columns of a register tile" },
    [MC] = { "mc", 0, 1024, "rows of a block; 0 where algo=1" },
    [NC] = { "nc", 16, 8192, "columns of a block" },
    [KC] = { "kc", 0, 8192, "k that a block packs at a time; 0 where algo=1 amx=0" },
};

#define MAX_STACK_BYTES (2 << 20)
#define MAX_WORKSPACE_BYTES 1e15

static int min_int(int64_t x, int64_t y)
{
    return (int)(x < y ? x : y);
}

/* ---- What the target offers ---- */

struct machine {
    int lanes, registers;   /* vectors of 32-bit lanes */
    int has_bf16;           /* instructions that multiply bf16 */
    int has_pairs, has_amx; /* what these dtypes may use */
};

static struct machine machine_of(const struct quern_problem *problem)
{
    const struct quern_target *target = problem->target;
    const struct values *v = values_of(problem->bucket);
    int is_bf16 = v->a == QUERN_BF16 && v->b == QUERN_BF16;
    int is_x86 = target->cpu_arch == 0, level = is_x86 ? target->cpu_level : 0;
    struct machine machine = {
        .lanes = level >= 4   ? 16
                 : level == 3 ? 8
                              : 4,
        .registers = level >= 4 || !is_x86 ? 32 : 16,
        .has_bf16 = level >= 4 && target->cpu_features & QUERN_CPU_BF16,
    };
    machine.has_pairs = is_bf16 && (machine.has_bf16 || v->packed);
    machine.has_amx = is_bf16 && machine.has_bf16 && target->cpu_features & QUERN_CPU_AMX;
    return machine;
}

static int supports(const struct quern_problem *problem)
{
    return problem->target->kind == QUERN_CPU;
}

/* ---- Legality ---- */

static int64_t stack_bytes(const int32_t *config)
{
    int64_t panels = config[PACK_B] ? 0 : (int64_t)config[NC] * 64;
    if (config[ALGO] == SMALL && config[AMX]) /* out, sums, a_panel */
        return (int64_t)config[NC] * 128 + (int64_t)config[KC] * 32;
    if (config[ALGO] == SMALL)
        return (int64_t)config[MR] * config[NC] * 4;
    return 4 *
           ((int64_t)config[MC] * (config[KC] + 16) + (int64_t)config[MC] * config[NC] + panels);
}

static int has_pack_step(const struct values *v, const int32_t *config)
{
    return config[PACK_B] && !v->packed;
}

/* Of a panel that the step packs. */
static int64_t panel_bytes(const struct values *v, const int32_t *config)
{
    int64_t units = gemm_round_up(v->k, GEMM_PACKED_K) / (config[BF16_PAIRS] ? 2 : 1);
    return units * config[NR] * 4;
}

static int64_t packed_bytes(const struct values *v, const int32_t *config)
{
    int64_t panels = gemm_ceil_div(v->n, config[NR]);
    return has_pack_step(v, config) ? gemm_round_up(v->batch * panels * panel_bytes(v, config), 256)
                                    : 0;
}

static int64_t partial_bytes(const struct values *v, const int32_t *config)
{
    return config[SPLIT_K] > 1 ? config[SPLIT_K] * v->batch * v->m * v->n * 4 : 0;
}

/* In floating point: the integers above may only be asked when this fits. */
static int is_workspace_ok(const struct values *v, const int32_t *config)
{
    double packed = 4.0 * (double)v->batch * ((double)v->n + 64) * ((double)v->k + 64);
    double partial = 4.0 * config[SPLIT_K] * (double)v->batch * (double)v->m * (double)v->n;
    return (!has_pack_step(v, config) || packed < MAX_WORKSPACE_BYTES) &&
           (config[SPLIT_K] == 1 || partial < MAX_WORKSPACE_BYTES);
}

/* Few rows by AMX tiles. */
static int legal_small_amx(int is_nt, const int32_t *config, struct quern_message *why)
{
    if (!is_nt)
        return quern_refuse(why, "config amx=1: must be 0 where algo=1 and layout=nn");
    if (config[MR] != 16 || (config[NR] != 16 && config[NR] != 32))
        return quern_refuse(why, "config mr=%d nr=%d: must be 16, and 16 or 32, where algo=1 amx=1",
                            config[MR], config[NR]);
    if (config[NC] % config[NR])
        return quern_refuse(why, "config nc=%d: must be a multiple of nr=%d", config[NC],
                            config[NR]);
    if (!config[KC] || config[KC] % 32)
        return quern_refuse(why, "config kc=%d: must be a multiple of 32", config[KC]);
    return QUERN_OK;
}

static int legal_small(const struct machine *machine, int is_nt, const int32_t *config,
                       struct quern_message *why)
{
    int registers = config[MR] * config[NR] + config[NR] + 1;
    if (config[PACK_B] || config[MC] || (config[KC] && !config[AMX]))
        return quern_refuse(why, "config algo=1: pack_b and mc must be 0, and kc where amx=0");
    if (config[AMX])
        return legal_small_amx(is_nt, config, why);
    if (config[MR] > 16)
        return quern_refuse(why, "config mr=%d: must be at most 16 where algo=1", config[MR]);
    if (!is_nt && config[NR] != 1)
        return quern_refuse(why, "config nr=%d: must be 1 where algo=1 and layout=nn", config[NR]);
    if (is_nt && registers > machine->registers)
        return quern_refuse(why, "config mr=%d nr=%d: needs %d registers, there are %d", config[MR],
                            config[NR], registers, machine->registers);
    if (config[NC] % config[NR] || config[NC] % machine->lanes)
        return quern_refuse(why, "config nc=%d: must be a multiple of nr=%d and %d", config[NC],
                            config[NR], machine->lanes);
    return QUERN_OK;
}

static int legal_tiled(const struct machine *machine, const int32_t *config,
                       struct quern_message *why)
{
    int vectors = config[NR] / machine->lanes, registers = (config[MR] + 1) * vectors + 1;
    if (config[AMX] &&
        ((config[MR] != 16 && config[MR] != 32) || (config[NR] != 16 && config[NR] != 32)))
        return quern_refuse(why, "config mr=%d nr=%d: must each be 16 or 32 where amx=1",
                            config[MR], config[NR]);
    if (!config[AMX] && (config[MR] > machine->lanes || config[NR] % machine->lanes))
        return quern_refuse(why, "config mr=%d nr=%d: at most %d, and a multiple of it", config[MR],
                            config[NR], machine->lanes);
    if (!config[AMX] && registers > machine->registers)
        return quern_refuse(why, "config mr=%d nr=%d: needs %d registers, there are %d", config[MR],
                            config[NR], registers, machine->registers);
    if (!config[MC] || config[MC] % config[MR] || config[NC] % config[NR])
        return quern_refuse(why, "config mc=%d nc=%d: must be multiples of mr=%d and nr=%d",
                            config[MC], config[NC], config[MR], config[NR]);
    if (!config[KC] || config[KC] % 32)
        return quern_refuse(why, "config kc=%d: must be a multiple of 32", config[KC]);
    return QUERN_OK;
}

/* What a b that was given in panels leaves to choose. */
static int legal_packed(const struct values *v, const int32_t *config, struct quern_message *why)
{
    long long width = gemm_packed_width(v->packed);
    if (config[ALGO] == SMALL || !config[PACK_B])
        return quern_refuse(why, "config algo=%d pack_b=%d: must be 0 and 1 where packed=%lld",
                            config[ALGO], config[PACK_B], width);
    if (config[BF16_PAIRS] != (v->b == QUERN_BF16))
        return quern_refuse(why, "config bf16_pairs=%d: must be %d where packed=%lld b=%s",
                            config[BF16_PAIRS], v->b == QUERN_BF16, width,
                            quern_dtype_name((int)v->b));
    if (width % config[NR])
        return quern_refuse(why, "config nr=%d: must divide packed=%lld", config[NR], width);
    return QUERN_OK;
}

static int legal(const struct quern_problem *problem, const int32_t *config,
                 struct quern_message *why)
{
    const struct values *v = values_of(problem->bucket);
    struct machine machine = machine_of(problem);
    if (config[AMX] > machine.has_amx || config[BF16_PAIRS] > machine.has_pairs)
        return quern_refuse(why,
                            "config amx=%d bf16_pairs=%d: at most %d and %d for these dtypes "
                            "on this target",
                            config[AMX], config[BF16_PAIRS], machine.has_amx, machine.has_pairs);
    if (config[AMX] > config[BF16_PAIRS])
        return quern_refuse(why, "config amx=1: needs bf16_pairs=1");
    if (stack_bytes(config) > MAX_STACK_BYTES)
        return quern_refuse(why, "config mc=%d nc=%d kc=%d: takes %lld bytes of stack, at most %d",
                            config[MC], config[NC], config[KC], (long long)stack_bytes(config),
                            MAX_STACK_BYTES);
    if (!is_workspace_ok(v, config))
        return quern_refuse(why, "config pack_b=%d split_k=%d: the workspace would be too large",
                            config[PACK_B], config[SPLIT_K]);
    if (v->packed && legal_packed(v, config, why))
        return QUERN_INVALID;
    return config[ALGO] == SMALL ? legal_small(&machine, v->layout == 0, config, why)
                                 : legal_tiled(&machine, config, why);
}

/* ---- Choosing ---- */

/* Columns of a block: as asked, but four blocks a core where n has them. */
static int choose_nc(const struct quern_problem *problem, int64_t row_blocks, int nc, int step)
{
    const struct values *v = values_of(problem->bucket);
    int64_t cores = problem->profile->cores > 0 ? problem->profile->cores : 8;
    int64_t blocks = gemm_ceil_div(4 * cores, row_blocks * v->batch + !v->batch);
    int64_t fair = gemm_round_up(gemm_ceil_div(v->n, blocks) + !v->n, step);
    return min_int(nc, fair);
}

/* Shares of k, where d alone has too few blocks for the cores. */
static int choose_split(const struct quern_problem *problem, int64_t blocks)
{
    const struct values *v = values_of(problem->bucket);
    int64_t cores = problem->profile->cores > 0 ? problem->profile->cores : 8;
    int split = 1;
    while (blocks > 0 && blocks * split < cores && split < 16 && v->k / (2 * split) >= 1024)
        split *= 2;
    return split;
}

/* At least 128 columns, since every block packs all of a; k is split before they get fewer. */
static void guess_small_amx(const struct quern_problem *problem, int32_t *config)
{
    const struct values *v = values_of(problem->bucket);
    config[ALGO] = SMALL;
    config[AMX] = config[BF16_PAIRS] = 1;
    config[MR] = config[NR] = 16;
    config[NC] = choose_nc(problem, gemm_ceil_div(v->m, 16), 512, 16);
    config[NC] = config[NC] < 128 ? 128 : config[NC];
    config[KC] = 4096;
    config[SPLIT_K] =
        choose_split(problem, gemm_ceil_div(v->m, 16) * gemm_ceil_div(v->n, config[NC]) * v->batch);
}

static void guess_small(const struct quern_problem *problem, int32_t *config)
{
    const struct values *v = values_of(problem->bucket);
    struct machine machine = machine_of(problem);
    int is_nt = v->layout == 0;
    if (is_nt && machine.has_amx && v->m > 4) {
        guess_small_amx(problem, config);
        return;
    }
    int rows = min_int(v->m ? v->m : 1, is_nt ? 8 : 16);
    int columns = is_nt ? min_int((machine.registers - 1) / (rows + 1), 4) : 1;
    int step = is_nt ? 16 * columns : 16;
    /* From [k,n] a row of b is read in runs of a page, as long as the sums stay in L1. */
    int run = rows > 8 ? 512 : 4096 / (int)quern_dtype_bytes((int)v->b);
    config[ALGO] = SMALL;
    config[BF16_PAIRS] = machine.has_pairs;
    config[MR] = rows;
    config[NR] = columns < 1 ? 1 : columns;
    config[NC] =
        choose_nc(problem, gemm_ceil_div(v->m, rows), is_nt ? 64 / step * step : run, step);
    config[SPLIT_K] = choose_split(problem, gemm_ceil_div(v->n, config[NC]) * v->batch);
}

/* The register tile: nearly as many accumulators as there are registers, in the best shape. */
static void choose_tile(const struct machine *machine, int64_t m, int32_t *config)
{
    if (machine->has_amx) {
        config[MR] = m > 16 ? 32 : 16;
        config[NR] = 32;
    } else if (machine->lanes == 16) {
        config[MR] = m >= 64 ? 14 : 8;
        config[NR] = 32;
    } else if (machine->lanes == 8) {
        config[MR] = 6;
        config[NR] = 16;
    } else {
        config[MR] = 4;
        config[NR] = machine->registers == 32 ? 16 : 8;
    }
}

/* The same for panels that are given: a width that divides theirs, and no more rows than there are.
 * AMX reads at least 16 rows of a, which costs more than it saves up to four. Pairs that are
 * widened as they are multiplied take a register for each half, and one for a mask. */
static void choose_packed_tile(const struct machine *machine, const struct values *v,
                               int32_t *config)
{
    if (gemm_packed_width(v->packed) % config[NR])
        config[NR] = 16;
    if (v->m <= 4)
        config[AMX] = 0;
    if (!config[AMX])
        config[MR] = min_int(v->m ? v->m : 1, config[MR]);
    int vectors = config[NR] / machine->lanes;
    while (v->b == QUERN_BF16 && !machine->has_bf16 && config[MR] > 1 &&
           (config[MR] + 2) * vectors + 3 > machine->registers)
        config[MR]--;
}

/* The same for [n,k] that a block packs as it goes: 16 columns at a time are read as 16 streams
 * without a break, 32 are not, which costs few rows more than the wider tile saves. */
static void choose_streamed_tile(const struct machine *machine, int64_t m, int32_t *config)
{
    if (machine->has_amx)
        config[NR] = m <= 128 ? 16 : 32;
    else if (m > 8 && m < 64)
        config[MR] = config[NR] = 16;
}

/* As many tiles, of equal height: the last one would be filled with empty rows (m=128: ten tiles
 * of 13 rows and not of 14 are 1.04 times as fast). */
static int even_rows(int64_t m, int rows)
{
    return (int)gemm_ceil_div(m, gemm_ceil_div(m, rows));
}

static void guess_tiled(const struct quern_problem *problem, int32_t *config)
{
    const struct values *v = values_of(problem->bucket);
    struct machine machine = machine_of(problem);
    int least_k = machine.has_amx ? 1024 : 256;
    config[ALGO] = TILED;
    config[AMX] = machine.has_amx;
    config[BF16_PAIRS] = machine.has_pairs;
    choose_tile(&machine, v->m, config);
    if (v->packed)
        choose_packed_tile(&machine, v, config);
    else if (v->layout == 0 && machine.lanes == 16 && v->m < 512)
        choose_streamed_tile(&machine, v->m, config);
    if (!config[AMX] && v->m >= 64 && v->m < 512)
        config[MR] = even_rows(v->m, config[MR]);

    /* Packing b first costs a trip through memory: worth it from two blocks of rows on, from [n,k]
     * for tiles that multiply as fast as AMX's only from eight. */
    config[PACK_B] = v->m >= (machine.has_amx && !v->layout ? 2048 : 512) || v->packed;
    int has_many_rows = v->m >= 512 && !machine.has_amx;
    int most_rows = has_many_rows ? 8 * config[MR] : (int)gemm_round_up(256, config[MR]);
    int most_columns = config[PACK_B] || !v->layout ? 512 : 256;
    config[MC] = min_int(gemm_round_up(v->m ? v->m : 1, config[MR]), most_rows);
    config[NC] = choose_nc(problem, gemm_ceil_div(v->m, config[MC]), most_columns, config[NR]);
    config[NC] = config[NC] < 16 ? 16 : config[NC];

    /* As much of k as lets a's rows stay in L2: b is then read in long runs. */
    int units = v->packed && config[AMX] ? 262144 : machine.has_amx ? 65536 : 98304;
    int k = min_int(units / config[MC] / 256 * 256, 4096);
    config[KC] = has_pack_step(v, config) || k < least_k ? least_k : k;
    config[SPLIT_K] = choose_split(problem, gemm_ceil_div(v->m, config[MC]) *
                                                gemm_ceil_div(v->n, config[NC]) * v->batch);
}

static int is_small_better(const struct quern_problem *problem)
{
    const struct values *v = values_of(problem->bucket);
    int has_amx = machine_of(problem).has_amx;
    return !v->packed && v->m <= (v->layout ? (has_amx ? 8 : 16) : (has_amx ? 16 : 8));
}

static void heuristic(const struct quern_problem *problem, int32_t *config)
{
    const struct values *v = values_of(problem->bucket);
    struct quern_message why;
    for (int i = 0; i < KNOB_COUNT; i++)
        config[i] = 0;
    if (is_small_better(problem))
        guess_small(problem, config);
    else
        guess_tiled(problem, config);
    if (legal(problem, config, &why)) { /* a workspace out of all proportion */
        config[PACK_B] = v->packed != 0;
        config[SPLIT_K] = 1;
    }
}

/* One knob, or two that belong together, away from a guess. */
struct change {
    int knob, value, other_knob, other_value;
};

static const struct change tiled_changes[] = {
    { PACK_B, 0, -1, 0 }, { NR, 16, -1, 0 },     { NR, 32, -1, 0 },         { PACK_B, 1, -1, 0 },
    { KC, 512, -1, 0 },   { KC, 1024, -1, 0 },   { KC, 256, -1, 0 },        { KC, 2048, -1, 0 },
    { KC, 4096, -1, 0 },  { NC, 64, -1, 0 },     { NC, 128, -1, 0 },        { NC, 256, -1, 0 },
    { NC, 512, -1, 0 },   { NC, 1024, -1, 0 },   { MC, 112, -1, 0 },        { MC, 128, -1, 0 },
    { MC, 224, -1, 0 },   { MC, 256, -1, 0 },    { MC, 512, -1, 0 },        { MR, 12, MC, 96 },
    { MR, 8, MC, 96 },    { MR, 6, NR, 64 },     { MR, 16, NR, 16 },        { MR, 16, NR, 32 },
    { MR, 32, NR, 32 },   { SPLIT_K, 2, -1, 0 }, { BF16_PAIRS, 0, AMX, 0 }, { AMX, 0, MR, 8 },
};

static const struct change small_changes[] = {
    { NR, 2, -1, 0 },         { NR, 4, -1, 0 },      { NR, 8, -1, 0 },
    { NR, 16, -1, 0 },        { NR, 32, -1, 0 },     { NR, 3, NC, 48 },
    { NC, 32, -1, 0 },        { NC, 128, -1, 0 },    { NC, 256, -1, 0 },
    { NC, 1024, -1, 0 },      { NC, 2048, -1, 0 },   { BF16_PAIRS, 0, -1, 0 },
    { BF16_PAIRS, 1, -1, 0 }, { SPLIT_K, 2, -1, 0 }, { SPLIT_K, 4, -1, 0 },
};

static int add_changes(const int32_t *guess, const struct change *changes, int change_count,
                       int32_t (*configs)[QUERN_MAX_KNOBS], int count, int max)
{
    for (int i = -1; i < change_count && count < max; i++, count++) {
        for (int j = 0; j < KNOB_COUNT; j++)
            configs[count][j] = guess[j];
        if (i < 0)
            continue;
        configs[count][changes[i].knob] = changes[i].value;
        if (changes[i].other_knob >= 0)
            configs[count][changes[i].other_knob] = changes[i].other_value;
    }
    return count;
}

static int candidates(const struct quern_problem *problem, int32_t (*configs)[QUERN_MAX_KNOBS],
                      int max)
{
    int32_t tiled[KNOB_COUNT] = { 0 }, small[KNOB_COUNT] = { 0 };
    enum {
        TILED_CHANGES = sizeof(tiled_changes) / sizeof(tiled_changes[0]),
        SMALL_CHANGES = sizeof(small_changes) / sizeof(small_changes[0])
    };
    guess_tiled(problem, tiled);
    guess_small(problem, small);
    int count = 0;
    if (is_small_better(problem))
        count = add_changes(small, small_changes, SMALL_CHANGES, configs, count, max);
    count = add_changes(tiled, tiled_changes, TILED_CHANGES, configs, count, max);
    if (!is_small_better(problem) && values_of(problem->bucket)->m <= 16)
        count = add_changes(small, small_changes, SMALL_CHANGES, configs, count, max);
    return count;
}

/* ---- Plan and bind ---- */

static void add_step(const struct quern_problem *problem, const int32_t *config, const char *name,
                     const char *entry, struct quern_plan *plan)
{
    const struct values *v = values_of(problem->bucket);
    struct quern_step *step = quern_plan_kernel(plan, name, "gemm/gemm_cpu.c", entry);
    quern_step_define(step, "A_DTYPE", v->a);
    quern_step_define(step, "B_DTYPE", v->b);
    quern_step_define(step, "D_DTYPE", v->d);
    quern_step_define(step, "BIAS_DTYPE", v->bias);
    quern_step_define(step, "B_IS_NK", v->layout == 0);
    quern_step_define(step, "ACCUMULATE", v->accumulate);
    quern_step_define(step, "PACKED", gemm_packed_width(v->packed));
    quern_step_define_config(step, &gemm_cpu, config);
}

static void plan(const struct quern_problem *problem, const int32_t *config,
                 struct quern_plan *plan)
{
    const struct values *v = values_of(problem->bucket);
    if (has_pack_step(v, config))
        add_step(problem, config, "pack_b", "gemm_pack_b", plan);
    if (config[ALGO] == SMALL)
        add_step(problem, config, "small", "gemm_small", plan);
    else
        add_step(problem, config, "main", "gemm_main", plan);
    if (config[SPLIT_K] > 1)
        add_step(problem, config, "reduce", "gemm_reduce", plan);
    plan->workspace_bytes = packed_bytes(v, config) + partial_bytes(v, config);
}

static struct gemm_args args_of(const struct quern_binding *binding)
{
    const struct values *v = values_of(binding->spec);
    const struct quern_array *a = &binding->arrays[ARRAY_a], *b = &binding->arrays[ARRAY_b];
    const struct quern_array *d = &binding->arrays[ARRAY_d];
    char *workspace = binding->workspace;
    int64_t panel = panel_bytes(v, binding->config);
    struct gemm_args args = {
        .m = v->m,
        .n = v->n,
        .k = v->k,
        .batch = v->batch,
        .a_batch_stride = a->strides[0],
        .a_row_stride = a->strides[1],
        .b_batch_stride = b->strides[0],
        .b_row_stride = b->strides[1],
        .d_batch_stride = d->strides[0],
        .d_row_stride = d->strides[1],
        .a = a->data,
        .b = b->data,
        .bias = binding->arrays[ARRAY_bias].data,
        .d = d->data,
        .packed_b = workspace,
        .packed_panel_bytes = panel,
        .packed_batch_bytes = b->strides[0] ? gemm_ceil_div(v->n, binding->config[NR]) * panel : 0,
        .partial = workspace ? (float *)(workspace + packed_bytes(v, binding->config)) : NULL,
    };
    if (v->packed) {
        int64_t element_bytes = (int64_t)quern_dtype_bytes((int)v->b);
        args.packed_b = b->data;
        args.packed_panel_bytes = b->strides[1] * element_bytes;
        args.packed_batch_bytes = b->strides[0] * element_bytes;
    }
    return args;
}

static void bind(const struct quern_binding *binding, struct quern_launch *launch)
{
    const struct values *v = values_of(binding->spec);
    const int32_t *config = binding->config;
    const struct gemm_args args = args_of(binding);
    struct quern_step_launch *step = launch->steps;
    int64_t rows = config[ALGO] == SMALL ? config[MR] : config[MC];
    int64_t column_blocks = v->m ? gemm_ceil_div(v->n, config[NC]) : 0;

    if (has_pack_step(v, config)) {
        int64_t entries = args.b_batch_stride || !v->batch ? v->batch : 1;
        int64_t panels = v->layout ? column_blocks : v->m ? gemm_ceil_div(v->n, config[NR]) : 0;
        QUERN_BIND(step, args, gemm_ceil_div(v->k, config[KC]), panels, entries);
        step++;
    }
    QUERN_BIND(step, args, gemm_ceil_div(v->m, rows), column_blocks, v->batch * config[SPLIT_K]);
    step++;
    if (config[SPLIT_K] > 1)
        QUERN_BIND(step, args, v->m, column_blocks, v->batch);
}

const struct quern_variant gemm_cpu = {
    .name = "gemm_cpu",
    .doc = "vectors or AMX tiles; packed panels, or b streamed once for few rows",
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
