/* The host side of mla_decode_sm90.cu. It multiplies 64 rows at a time, however few there are. */
#define QUERN_DEF "mla/mla_decode.def"
#include <quern/family_def.h>

#include <stddef.h>

#include "mla_decode_cuda.h"

enum { LEAST, TURNS, KNOB_COUNT };
static const struct quern_knob knobs[] = {
    [LEAST] = { "least", 1, 64, "tiles of 64 rows of the cache that a block has at least" },
    [TURNS] = { "turns", 0, 1, "warpgroups multiply keys in turns" },
};

/* 4-byte accesses are the narrowest that copy without registers. */
static int supports(const struct quern_problem *problem)
{
    return mla_cuda_supports(problem) && problem->target->sm == 90 &&
           problem->target->sm_suffix == 'a' && problem->alignment[ARRAY_kv_cache] >= 4 &&
           mla_cuda_unit_rows(problem->bucket) > 16;
}

static void heuristic(const struct quern_problem *problem, int32_t *config)
{
    (void)problem;
    config[LEAST] = 1;
    config[TURNS] = 1;
}

static int candidates(const struct quern_problem *problem, int32_t (*configs)[QUERN_MAX_KNOBS],
                      int max)
{
    static const int32_t list[][2] = { { 1, 1 }, { 1, 0 }, { 2, 1 }, { 4, 1 } };
    int count = 0;
    (void)problem;
    for (; count < max && count < (int)(sizeof(list) / sizeof(list[0])); count++) {
        configs[count][LEAST] = list[count][0];
        configs[count][TURNS] = list[count][1];
    }
    return count;
}

/* A tile is in one page, of rows that TMA can reach. */
static int may_use_map(const struct quern_problem *problem)
{
    const struct values *v = values_of(problem->bucket);
    return !v->topk && v->page >= 64 && v->kv_dtype != QUERN_E4M3 &&
           problem->alignment[ARRAY_kv_cache] >= 16;
}

static int bind_map(const struct quern_binding *binding, struct quern_step_launch *step)
{
    const struct values *v = values_of(binding->spec);
    const struct quern_array *cache = &binding->arrays[ARRAY_kv_cache];
    int64_t page = v->pages > 1 ? cache->strides[0] : v->page * cache->strides[1];
    if (v->topk || v->page < 64 || v->kv_dtype == QUERN_E4M3 || !v->pages || page <= 0 ||
        cache->strides[1] <= 0 ||
        ((uintptr_t)cache->data | (uintptr_t)(page * 2) | (uintptr_t)(cache->strides[1] * 2)) % 16)
        return 0;
    struct quern_tensor_map *map = quern_step_map(step, offsetof(struct mla_cuda_args, map));
    map->data = cache->data;
    map->dtype = (int)v->dtype;
    map->rank = 3;
    map->swizzle = 128;
    map->dims[0] = MLA_DK;
    map->dims[1] = v->page;
    map->dims[2] = v->pages;
    map->strides[0] = 1;
    map->strides[1] = cache->strides[1];
    map->strides[2] = page;
    map->box[0] = 64;
    map->box[1] = 64;
    map->box[2] = 1;
    return 1;
}

static struct mla_cut cut_of(const int32_t *config)
{
    return (struct mla_cut){ 64, 64, 1, config[LEAST] };
}

static void plan(const struct quern_problem *problem, const int32_t *config,
                 struct quern_plan *plan)
{
    static const char source[] = "mla/mla_decode_sm90.cu";
    const struct mla_cut cut = cut_of(config);
    struct quern_step *step = quern_plan_kernel(plan, "main", source, "mla_decode_sm90");
    mla_cuda_define(problem, step);
    quern_step_define(step, "TURNS", config[TURNS]);
    quern_step_define(step, "USE_MAP", may_use_map(problem));
    step->threads[0] = 384;
    step->shared_bytes = MLA_SM90_SHARED;
    mla_cuda_add_combine(problem, source, &cut, plan);
}

static void bind(const struct quern_binding *binding, struct quern_launch *launch)
{
    const struct mla_cut cut = cut_of(binding->config);
    struct mla_cuda_args *args = (struct mla_cuda_args *)(void *)launch->steps[0].args;
    mla_cuda_bind(binding, &cut, launch);
    args->has_map = launch->steps[0].grid[0] && bind_map(binding, &launch->steps[0]);
}

const struct quern_variant mla_decode_sm90 = {
    .name = "mla_decode_sm90",
    .doc = "wgmma on Hopper, 64 rows of queries a block, two stages of 64 rows of the cache",
    .device = QUERN_CUDA,
    .knobs = knobs,
    .knob_count = KNOB_COUNT,
    .supports = supports,
    .heuristic = heuristic,
    .candidates = candidates,
    .plan = plan,
    .bind = bind,
};
