/* The CPU variant of grouped_gemm, host side: which configs are legal, which is likely best, the
 * one step of a plan and its arguments. grouped_gemm_cpu.c says what the step does. */
#include "grouped_gemm.h"
#include "grouped_gemm_cpu_args.h"

enum { ALGO, BF16_PAIRS, MR, NR, MC, NC, KC, KNOB_COUNT };
enum { TILED, DOTS, AMX };

static const struct quern_knob knobs[] = {
    [ALGO] = { "algo", 0, 2, "0: blocked product; 1: few rows, dot products; 2: AMX tiles (bf16)" },
    [BF16_PAIRS] = { "bf16_pairs", 0, 1, "multiply bf16 in pairs instead of widening it to f32" },
    [MR] = { "mr", 1, 16, "rows of a register tile; 1 unless algo=0" },
    [NR] = { "nr", 4, 64, "columns of a register tile; a vector unless algo=0" },
    [MC] = { "mc", 1, 1024, "rows of a block" },
    [NC] = { "nc", 16, 4096, "columns of a block" },
    [KC] = { "kc", 32, 8192, "k that a block packs at a time; 32 where algo=1" },
};

enum { MAX_STACK_BYTES = 2 << 20, DOTS_ROWS = 64 };

static int64_t min_of(int64_t x, int64_t y)
{
    return x < y ? x : y;
}

static int64_t round_up(int64_t x, int64_t to)
{
    return grouped_gemm_ceil_div(x, to) * to;
}

/* ---- What the target offers ---- */

struct machine {
    int lanes, registers;   /* vectors of 32-bit lanes */
    int has_pairs, has_amx; /* what this dtype may use */
};

static struct machine machine_of(const struct quern_problem *problem, int dtype)
{
    const struct quern_target *target = problem->target;
    int is_x86 = target->cpu_arch == 0, level = is_x86 ? target->cpu_level : 0;
    struct machine machine = {
        .lanes = level >= 4   ? 16
                 : level == 3 ? 8
                              : 4,
        .registers = level >= 4 || !is_x86 ? 32 : 16,
    };
    machine.has_pairs = dtype == QUERN_BF16 && level >= 4 && target->cpu_features & QUERN_CPU_BF16;
    machine.has_amx = machine.has_pairs && target->cpu_features & QUERN_CPU_AMX;
    return machine;
}

static void work_of(const struct quern_problem *problem, struct grouped_gemm_work *work)
{
    grouped_gemm_work_of(problem->bucket, problem->alignment, work);
}

static int supports(const struct quern_problem *problem)
{
    return problem->target->kind == QUERN_CPU;
}

/* ---- Legality ---- */

static int64_t stack_bytes(const struct grouped_gemm_work *work, const int32_t *config)
{
    int64_t sums = (int64_t)config[MC] * config[NC] * 4 * (work->activation ? 2 : 1);
    int64_t k = config[KC], mc = config[MC];
    if (config[ALGO] == DOTS)
        return sums;
    if (config[ALGO] == AMX)
        return sums + (mc + 16) * k * 2;
    return sums + (work->gather ? config[MR] * k * 4 : 0) + mc * (k + 16) * 4 + config[NR] * 256;
}

static int legal_tile(const struct machine *machine, const int32_t *config,
                      struct quern_message *why)
{
    int vectors = config[NR] / machine->lanes, needed = (config[MR] + 1) * vectors + 1;
    if (config[NR] % machine->lanes || config[MR] > machine->lanes)
        return quern_refuse(why, "config mr=%d nr=%d: must be at most, and a multiple of, %d",
                            config[MR], config[NR], machine->lanes);
    if (needed > machine->registers)
        return quern_refuse(why, "config mr=%d nr=%d: needs %d registers, there are %d", config[MR],
                            config[NR], needed, machine->registers);
    if (config[MC] % config[MR] || config[NC] % config[NR] || config[KC] % 32)
        return quern_refuse(why, "config mc=%d nc=%d kc=%d: must be multiples of mr, nr and 32",
                            config[MC], config[NC], config[KC]);
    return QUERN_OK;
}

/* Without a register tile. */
static int legal_stream(const struct machine *machine, const int32_t *config,
                        struct quern_message *why)
{
    int is_amx = config[ALGO] == AMX;
    if (config[NR] != machine->lanes || config[MR] != 1)
        return quern_refuse(why, "config mr=%d nr=%d: must be 1 and %d unless algo=0", config[MR],
                            config[NR], machine->lanes);
    if (config[NC] % machine->lanes || (is_amx && (config[NC] % 32 || config[MC] % 16)))
        return quern_refuse(why, "config mc=%d nc=%d: must be whole vectors, or tiles where algo=2",
                            config[MC], config[NC]);
    if (is_amx ? config[KC] % 32 : config[KC] != 32)
        return quern_refuse(why, "config kc=%d: must be 32, or a multiple of it where algo=2",
                            config[KC]);
    return QUERN_OK;
}

static int legal(const struct quern_problem *problem, const int32_t *config,
                 struct quern_message *why)
{
    struct grouped_gemm_work work;
    work_of(problem, &work);
    struct machine machine = machine_of(problem, work.dtype);
    if (config[BF16_PAIRS] && !machine.has_pairs)
        return quern_refuse(why, "config bf16_pairs=1: only of bf16, with AVX512_BF16");
    if (config[ALGO] == AMX && !(machine.has_amx && config[BF16_PAIRS]))
        return quern_refuse(why, "config algo=2: only of bf16, with AMX, and bf16_pairs=1");
    if (config[ALGO] == TILED ? legal_tile(&machine, config, why)
                              : legal_stream(&machine, config, why))
        return QUERN_INVALID;
    if (stack_bytes(&work, config) > MAX_STACK_BYTES)
        return quern_refuse(why, "config mc=%d nc=%d kc=%d: a block needs %lld bytes, at most %d",
                            config[MC], config[NC], config[KC],
                            (long long)stack_bytes(&work, config), MAX_STACK_BYTES);
    return QUERN_OK;
}

/* ---- Choosing ---- */

/* Of an expert that has some. */
static int64_t rows_of_expert(const struct grouped_gemm_work *work)
{
    int64_t rows = work->form == GROUPED_GEMM_BLOCKS   ? work->block
                   : work->form == GROUPED_GEMM_MASKED ? work->m / 2
                                                       : work->m / work->experts;
    return rows > 1 ? rows : 1;
}

/* Columns of a block, up to `most`, such that each core has several blocks. */
static int32_t choose_nc(const struct quern_problem *problem, const struct grouped_gemm_work *work,
                         int most, int step)
{
    int64_t cores = problem->profile->cores > 0 ? problem->profile->cores : 8;
    int64_t experts = min_of(work->experts, work->m > 0 ? work->m : 1);
    int64_t blocks = grouped_gemm_ceil_div(8 * cores, experts);
    int64_t fair = round_up(grouped_gemm_ceil_div(work->n, blocks) + !work->n, step);
    fair = fair < step ? step : fair;
    return (int32_t)min_of(most / step * step, fair < 16 ? round_up(16, step) : fair);
}

static void guess_tiled(const struct quern_problem *problem, const struct grouped_gemm_work *work,
                        int32_t *config)
{
    struct machine machine = machine_of(problem, work->dtype);
    int64_t rows = rows_of_expert(work);
    config[ALGO] = TILED;
    config[BF16_PAIRS] = machine.has_pairs;
    config[MR] = machine.lanes == 16 ? 14 : machine.lanes == 8 ? 6 : 4;
    config[NR] = machine.lanes == 16 ? 32 : machine.lanes == 8 || machine.registers == 32 ? 16 : 8;
    if (machine.lanes == 16 && rows < 64)
        config[MR] = config[NR] = 16;
    config[MC] = (int32_t)round_up(min_of(rows + rows / 2, 256), config[MR]);
    config[NC] = choose_nc(problem, work, 256, config[NR]);
    config[KC] = 512;
}

static void guess_dots(const struct quern_problem *problem, const struct grouped_gemm_work *work,
                       int32_t *config)
{
    struct machine machine = machine_of(problem, work->dtype);
    config[ALGO] = DOTS;
    config[BF16_PAIRS] = machine.has_pairs;
    config[MR] = 1;
    config[NR] = machine.lanes;
    config[MC] = DOTS_ROWS;
    config[NC] = choose_nc(problem, work, 256, machine.lanes);
    config[KC] = 32;
}

/* Rows of a as panels that stay in L2. */
static void guess_amx(const struct quern_problem *problem, const struct grouped_gemm_work *work,
                      int32_t *config)
{
    int64_t rows = rows_of_expert(work);
    guess_dots(problem, work, config);
    config[ALGO] = AMX;
    config[MC] = (int32_t)round_up(min_of(rows + rows / 2, 256), 16);
    config[NC] = choose_nc(problem, work, 256, 32);
    config[KC] = config[MC] > 192 ? 512 : 2048;
}

static void guess(const struct quern_problem *problem, const struct grouped_gemm_work *work,
                  int algo, int32_t *config)
{
    if (algo == TILED)
        guess_tiled(problem, work, config);
    else if (algo == DOTS)
        guess_dots(problem, work, config);
    else
        guess_amx(problem, work, config);
}

static void heuristic(const struct quern_problem *problem, int32_t *config)
{
    struct grouped_gemm_work work;
    work_of(problem, &work);
    int has_amx = machine_of(problem, work.dtype).has_amx;
    int64_t rows = rows_of_expert(&work);
    guess(problem, &work, rows <= (has_amx ? 2 : 16) ? DOTS : has_amx ? AMX : TILED, config);
}

/* One knob away from a guess. */
static const struct change {
    int algo, knob, value;
} changes[] = {
    { DOTS, NC, 64 },  { DOTS, NC, 128 },  { DOTS, NC, 512 },   { DOTS, MC, 16 },
    { DOTS, NC, 32 },  { AMX, KC, 512 },   { AMX, KC, 1024 },   { AMX, KC, 2048 },
    { AMX, NC, 64 },   { AMX, NC, 128 },   { AMX, NC, 512 },    { AMX, MC, 64 },
    { AMX, MC, 128 },  { TILED, KC, 256 }, { TILED, KC, 1024 }, { TILED, KC, 2048 },
    { TILED, NC, 64 }, { TILED, NC, 128 }, { TILED, NC, 512 },  { TILED, MR, 16 },
    { TILED, MR, 8 },  { TILED, NR, 16 },  { TILED, MC, 448 },  { TILED, MC, 112 },
};

static int candidates(const struct quern_problem *problem, int32_t (*configs)[QUERN_MAX_KNOBS],
                      int max)
{
    struct grouped_gemm_work work;
    int count = 0;
    work_of(problem, &work);
    for (int algo = AMX; algo >= TILED; algo--)
        for (int i = -1; i < (int)(sizeof(changes) / sizeof(changes[0])) && count < max; i++) {
            if (i >= 0 && changes[i].algo != algo)
                continue;
            guess(problem, &work, algo, configs[count]);
            if (i >= 0)
                configs[count][changes[i].knob] = changes[i].value;
            if (i >= 0 && changes[i].knob == MR)
                configs[count][MC] = (int32_t)round_up(configs[count][MC], changes[i].value);
            count++;
        }
    return count;
}

/* ---- Plan and bind ---- */

static void plan(const struct quern_problem *problem, const int32_t *config,
                 struct quern_plan *plan)
{
    struct grouped_gemm_work work;
    work_of(problem, &work);
    struct quern_step *step =
        quern_plan_kernel(plan, "rows", "moe/grouped_gemm_cpu.c", "grouped_gemm_rows");
    quern_step_define(step, "DTYPE", work.dtype);
    quern_step_define(step, "D_DTYPE", work.d);
    quern_step_define(step, "FORM", work.form);
    quern_step_define(step, "GATHER", work.gather);
    quern_step_define(step, "ACTIVATION", work.activation);
    quern_step_define_config(step, &grouped_gemm_cpu, config);
}

/* Of MC rows at most: each expert may have one that is not full. */
static int64_t count_tiles(const struct grouped_gemm_work *work, int64_t mc)
{
    if (work->form == GROUPED_GEMM_MASKED)
        return grouped_gemm_ceil_div(work->m, mc);
    if (work->form == GROUPED_GEMM_BLOCKS)
        return grouped_gemm_ceil_div(work->m, work->block) * grouped_gemm_ceil_div(work->block, mc);
    return work->m / mc + min_of(work->experts, work->m);
}

static void bind(const struct quern_binding *binding, struct quern_launch *launch)
{
    struct grouped_gemm_work work;
    struct grouped_gemm_place place;
    grouped_gemm_work_of(binding->spec, NULL, &work);
    grouped_gemm_place_of(binding, &place);
    struct grouped_gemm_cpu_args args = {
        .experts = work.experts,
        .m = work.m,
        .n = work.n,
        .k = work.k,
        .source_rows = work.source_rows,
        .share = work.share,
        .block = work.block,
        .a_row_stride = place.a_row_stride,
        .b_row_stride = place.b_row_stride,
        .d_row_stride = place.d_row_stride,
        .a_expert_stride = place.a_expert_stride,
        .b_expert_stride = place.b_expert_stride,
        .d_expert_stride = place.d_expert_stride,
        .a = place.a,
        .b = place.b,
        .d = place.d,
        .offsets = place.offsets,
        .expert_ids = place.expert_ids,
        .num_rows = place.num_rows,
        .counts = place.counts,
        .row_ids = place.row_ids,
        .limit = work.limit,
    };
    QUERN_BIND(&launch->steps[0], args, count_tiles(&work, binding->config[MC]),
               grouped_gemm_ceil_div(work.n, binding->config[NC]),
               work.form == GROUPED_GEMM_MASKED ? work.experts : 1);
}

const struct quern_variant grouped_gemm_cpu = {
    .name = "grouped_gemm_cpu",
    .doc = "vectors or AMX tiles on packed panels; for few rows b is streamed once",
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
