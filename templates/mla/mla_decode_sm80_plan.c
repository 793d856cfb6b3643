/* The host side of mla_decode_sm80.cu. More rows of queries share what is read of the cache, and
 * take shared memory from its ring; of 64 the sums would not fit into registers. */
#define QUERN_DEF "mla/mla_decode.def"
#include <quern/family_def.h>

#include "mla_decode_cuda.h"

enum { BM, TILE, STAGES, LEAST, KNOB_COUNT };
static const struct quern_knob knobs[] = {
    [BM] = { "bm", 16, 32, "rows of queries that a block has" },
    [TILE] = { "tile", 16, 64, "rows of the cache that it reads at a time" },
    [STAGES] = { "stages", 2, 12, "tiles in shared memory" },
    [LEAST] = { "least", 1, 64, "tiles that a block has at least" },
};

/* Rows and tiles for which the warps can be arranged. */
static const struct shape {
    int bm, tile;
} shapes[] = { { 16, 32 }, { 16, 64 }, { 32, 32 }, { 32, 16 } };
enum { SHAPES = sizeof(shapes) / sizeof(shapes[0]) };

static int is_e4m3(const struct quern_problem *problem)
{
    return values_of(problem->bucket)->kv_dtype == QUERN_E4M3;
}

static int64_t shared_bytes(const struct quern_problem *problem, const int32_t *config)
{
    int shares = config[BM] == 32 && config[TILE] == 16 ? 4 : 2;
    return MLA_SM80_SHARED(config[BM], config[TILE], shares, config[STAGES], is_e4m3(problem));
}

/* The most stages that fit, of bytes in flight as many as help; below 2: not even those. */
static int choose_stages(const struct quern_problem *problem, int32_t *config)
{
    const int64_t most = mla_cuda_shared_bytes(problem);
    for (config[STAGES] = 8; config[STAGES] >= 2; config[STAGES]--)
        if (shared_bytes(problem, config) <= most)
            break;
    return config[STAGES];
}

/* The first that has enough stages. Of static parameters only. */
static void choose_shape(const struct quern_problem *problem, int32_t *config)
{
    static const struct {
        struct shape shape;
        int rows, stages;
    } wanted[] = { { { 16, 64 }, 16, 3 }, { { 16, 32 }, 16, 2 }, { { 32, 32 }, INT32_MAX, 2 } };
    for (int i = 0; i < 3; i++) {
        config[BM] = wanted[i].shape.bm;
        config[TILE] = wanted[i].shape.tile;
        if (mla_cuda_unit_rows(problem->bucket) <= wanted[i].rows &&
            choose_stages(problem, config) >= wanted[i].stages)
            return;
    }
    config[BM] = 32;
    config[TILE] = 16;
    choose_stages(problem, config);
}

static int legal(const struct quern_problem *problem, const int32_t *config,
                 struct quern_message *why)
{
    int32_t only[KNOB_COUNT];
    int found = 0;
    for (int i = 0; i < SHAPES; i++)
        found |= shapes[i].bm == config[BM] && shapes[i].tile == config[TILE];
    if (!found)
        return quern_refuse(why,
                            "config bm=%d tile=%d: must be 16 and 32 or 64, or 32 and 16 or 32",
                            config[BM], config[TILE]);
    choose_shape(problem, only);
    if (values_of(problem->bucket)->deterministic &&
        (config[BM] != only[BM] || config[TILE] != only[TILE]))
        return quern_refuse(why, "config bm=%d tile=%d: must be %d and %d with deterministic=1",
                            config[BM], config[TILE], only[BM], only[TILE]);
    int64_t bytes = shared_bytes(problem, config), most = mla_cuda_shared_bytes(problem);
    if (bytes > most)
        return quern_refuse(why,
                            "config stages=%d: takes %lld bytes of shared memory, at most %lld",
                            config[STAGES], (long long)bytes, (long long)most);
    return QUERN_OK;
}

static void heuristic(const struct quern_problem *problem, int32_t *config)
{
    choose_shape(problem, config);
    config[LEAST] = 64 / config[TILE];
}

static int candidates(const struct quern_problem *problem, int32_t (*configs)[QUERN_MAX_KNOBS],
                      int max)
{
    int count = 0;
    for (int i = 0; i < SHAPES; i++)
        for (int least = 1; least <= 4 && count < max; least *= 2) {
            int32_t *config = configs[count];
            config[BM] = shapes[i].bm;
            config[TILE] = shapes[i].tile;
            config[LEAST] = least;
            count += choose_stages(problem, config) >= 2;
        }
    return count;
}

/* ---- Plan and bind --------------------------------------------------------------------------- */

static int supports(const struct quern_problem *problem)
{
    const int32_t config[KNOB_COUNT] = { [BM] = 32, [TILE] = 16, [STAGES] = 2 };
    const int is_other = values_of(problem->bucket)->deterministic &&
                         mla_decode_sm90.supports(problem); /* there is one order of sums */
    return mla_cuda_supports(problem) && !is_other &&
           shared_bytes(problem, config) <= mla_cuda_shared_bytes(problem);
}

static struct mla_cut cut_of(const int32_t *config)
{
    return (struct mla_cut){ config[BM], config[TILE], 1, config[LEAST] };
}

static void plan(const struct quern_problem *problem, const int32_t *config,
                 struct quern_plan *plan)
{
    static const char source[] = "mla/mla_decode_sm80.cu";
    const struct mla_cut cut = cut_of(config);
    struct quern_step *step = quern_plan_kernel(plan, "main", source, "mla_decode_sm80");
    mla_cuda_define(problem, step);
    quern_step_define(step, "BM", config[BM]);
    quern_step_define(step, "TILE", config[TILE]);
    quern_step_define(step, "STAGES", config[STAGES]);
    step->threads[0] = 256;
    step->shared_bytes = (uint32_t)shared_bytes(problem, config);
    mla_cuda_add_combine(problem, source, &cut, plan);
}

static void bind(const struct quern_binding *binding, struct quern_launch *launch)
{
    const struct mla_cut cut = cut_of(binding->config);
    mla_cuda_bind(binding, &cut, launch);
}

const struct quern_variant mla_decode_sm80 = {
    .name = "mla_decode_sm80",
    .doc = "tensor cores by mma.sync, rows of the cache gathered by cp.async; bf16, f16, e4m3",
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
