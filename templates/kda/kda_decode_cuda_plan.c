/* The CUDA variant of kda_decode: what it runs on, its knobs, its launch. kda_decode_cuda.cu draws
 * the kernel.
 *
 *     bv       columns of v in a block: its slab of a state is k by bv
 *     warps    that share the slab: 32 elements a thread is a good number
 *
 * A small batch wants many blocks, so that all SMs fetch; a large one wants long rows. */
#define QUERN_DEF "kda/kda_decode.def"
#include <quern/family_def.h>

#include "kda_decode.h"
#include "kda_kinds.h"

enum { BV, WARPS, KNOB_COUNT };
static const struct quern_knob knobs[] = {
    [BV] = { "bv", 8, 256, "columns of v that a block has" },
    [WARPS] = { "warps", 1, 16, "warps of a block" },
};

static int least(int a, int b)
{
    return a < b ? a : b;
}

/* Bytes of an access to the states: what all that are used are aligned to. */
static int state_access(const struct quern_problem *problem)
{
    int from = kda_decode_from(problem->bucket), to = kda_decode_to(problem->bucket);
    return least(from < 0 ? 16 : problem->alignment[from], to < 0 ? 16 : problem->alignment[to]);
}

enum { MOST_ELEMENTS = 64 }; /* of the state, a thread: more would spill beside the factors */

static int is_power_of_two(int32_t value)
{
    return value > 0 && !(value & (value - 1));
}

int kda_slab_legal(const struct kda_slab *slab, int32_t bv, int32_t warps,
                   struct quern_message *why)
{
    if (!is_power_of_two(bv) || bv > slab->v)
        return quern_refuse(why, "config bv=%d: must be a power of two, at most v=%lld", bv,
                            (long long)slab->v);
    if (!is_power_of_two(warps))
        return quern_refuse(why, "config warps=%d: must be a power of two", warps);
    /* The slab's rows, and how many a warp reads at a time. */
    int rows = slab->is_vk ? bv : (int)slab->k, inner = slab->is_vk ? (int)slab->k : bv;
    int lanes = inner * (int)quern_dtype_bytes(slab->state) / slab->access;
    int groups = lanes >= 32 ? 1 : lanes > 0 ? 32 / lanes : 64;
    if (groups > 32 || rows < warps * groups)
        return quern_refuse(why, "config warps=%d: must be at most %d with bv=%d", warps,
                            groups > 32 ? 0 : rows / groups, bv);
    if (slab->k * bv > MOST_ELEMENTS * 32 * warps)
        return quern_refuse(why, "config bv=%d: must be at most %lld with warps=%d", bv,
                            (long long)(MOST_ELEMENTS * 32 * warps / slab->k), warps);
    return QUERN_OK;
}

static int supports(const struct quern_problem *problem)
{
    return problem->target->kind == QUERN_CUDA;
}

static int legal(const struct quern_problem *problem, const int32_t *config,
                 struct quern_message *why)
{
    const struct values *v = values_of(problem->bucket);
    const struct kda_slab slab = { v->k, v->v, v->layout == KDA_LAYOUT_VK, (int)v->state,
                                   state_access(problem) };
    return kda_slab_legal(&slab, config[BV], config[WARPS], why);
}

/* The widest slab of at most 32 columns that leaves each SM four of them, 32 elements a thread; 16
 * where it is narrower, since there is too little work. Rows are 32 bytes at least, a sector. */
static void heuristic(const struct quern_problem *problem, int32_t *config)
{
    const struct values *v = values_of(problem->bucket);
    const int64_t heads = v->n * v->hv, wanted = 4 * (int64_t)problem->profile->cores;
    const int narrowest = v->layout == KDA_LAYOUT_VK || v->state == QUERN_F32 ? 8 : 16;
    struct quern_message why;
    config[BV] = 32;
    while (config[BV] > narrowest && heads * (v->v / config[BV]) < wanted)
        config[BV] /= 2;
    config[WARPS] = (int32_t)(v->k * config[BV] / 32 / (config[BV] < 32 ? 16 : 32));
    while (config[WARPS] > 1 && legal(problem, config, &why))
        config[WARPS] /= 2;
}

static int candidates(const struct quern_problem *problem, int32_t (*configs)[QUERN_MAX_KNOBS],
                      int max)
{
    static const int32_t list[][2] = { { 32, 4 },  { 16, 2 },  { 16, 4 },  { 32, 8 }, { 8, 1 },
                                       { 64, 8 },  { 8, 2 },   { 64, 16 }, { 32, 2 }, { 128, 16 },
                                       { 16, 1 },  { 64, 4 },  { 128, 8 }, { 8, 4 },  { 16, 8 },
                                       { 32, 16 }, { 256, 16 } };
    int count = 0;
    (void)problem;
    for (; count < max && count < (int)(sizeof(list) / sizeof(list[0])); count++) {
        configs[count][BV] = list[count][0];
        configs[count][WARPS] = list[count][1];
    }
    return count;
}

static void plan(const struct quern_problem *problem, const int32_t *config,
                 struct quern_plan *plan)
{
    struct quern_step *step =
        quern_plan_kernel(plan, "decode", "kda/kda_decode_cuda.cu", "kda_decode_cuda");
    kda_decode_define(step, problem->bucket);
    quern_step_define(step, "ACCESS", state_access(problem));
    quern_step_define(step, "Q_ACCESS", problem->alignment[ARRAY_q]);
    quern_step_define(step, "K_ACCESS", problem->alignment[ARRAY_k]);
    quern_step_define(step, "V_ACCESS", problem->alignment[ARRAY_v]);
    quern_step_define(step, "G_ACCESS", problem->alignment[ARRAY_g]);
    quern_step_define_config(step, &kda_decode_cuda, config);
    step->threads[0] = 32 * (uint32_t)config[WARPS];
}

static void bind(const struct quern_binding *binding, struct quern_launch *launch)
{
    const struct values *v = values_of(binding->spec);
    const struct kda_decode_args args = kda_decode_arguments(binding);
    int64_t blocks = v->n * v->hv * (v->v / binding->config[BV]);
    QUERN_BIND(&launch->steps[0], args, blocks < INT32_MAX ? blocks : INT32_MAX, 1, 1);
}

const struct quern_variant kda_decode_cuda = {
    .name = "kda_decode_cuda",
    .doc = "a slab of one head's state in the registers of a block",
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
