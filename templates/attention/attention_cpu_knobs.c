#include "attention_cpu_knobs.h"

#include <string.h>

#define MOST_SCRATCH (5 << 18) /* bytes that a block has on its stack, about */
#define TILE_COLUMNS (1 << 16)

const struct quern_knob attention_cpu_knobs[ATTENTION_CPU_KNOBS] = {
    [ATTENTION_CPU_BM] = { "bm", 32, 512, "rows of a block: queries times heads of a group" },
    [ATTENTION_CPU_BN] = { "bn", 32, 512, "keys that are packed at a time" },
    [ATTENTION_CPU_AMX] = { "amx", 0, 1, "products on AMX tiles; else in vectors" },
    [ATTENTION_CPU_PAIRS] = { "bf16_pairs", 0, 1, "products of bf16 pairs; else of f32" },
};

int attention_cpu_has_tiles(const struct quern_target *target, int64_t dtype)
{
    const int needed = QUERN_CPU_AMX | QUERN_CPU_BF16;
    return dtype == QUERN_BF16 && (target->cpu_features & needed) == needed;
}

/* q and o of all rows; keys, values, and rows of a cache; scores and weights. */
static int64_t scratch_bytes(const struct attention_cpu_shape *shape, const int32_t *config)
{
    const int64_t bm = config[ATTENTION_CPU_BM], bn = config[ATTENTION_CPU_BN];
    const int64_t size = config[ATTENTION_CPU_PAIRS] ? 2 : 4;
    const int64_t widest = shape->d > bn ? shape->d : bn;
    return bm * (widest * size + shape->dv * 4) + bn * (2 * shape->d + shape->dv) * size +
           32 * bn * 6;
}

static int check_power(const char *name, int32_t value, struct quern_message *why)
{
    if (value & (value - 1))
        return quern_refuse(why, "config %s=%d: must be a power of two", name, value);
    return QUERN_OK;
}

int attention_cpu_legal(const struct quern_target *target, const struct attention_cpu_shape *shape,
                        const int32_t *config, struct quern_message *why)
{
    if (check_power("bm", config[ATTENTION_CPU_BM], why) ||
        check_power("bn", config[ATTENTION_CPU_BN], why))
        return QUERN_INVALID;
    if (config[ATTENTION_CPU_AMX] && !attention_cpu_has_tiles(target, shape->dtype))
        return quern_refuse(why, "config amx=1: must be 0 unless the target has AMX and "
                                 "dtype=bf16");
    if (config[ATTENTION_CPU_PAIRS] &&
        !(target->cpu_features & QUERN_CPU_BF16 && shape->dtype == QUERN_BF16))
        return quern_refuse(why, "config bf16_pairs=1: must be 0 unless the target has AVX512_BF16 "
                                 "and dtype=bf16");
    if (config[ATTENTION_CPU_AMX] && !config[ATTENTION_CPU_PAIRS])
        return quern_refuse(why, "config bf16_pairs=0: must be 1 with amx=1");
    if (scratch_bytes(shape, config) > MOST_SCRATCH)
        return quern_refuse(why, "config bm=%d: must be less with bn=%d, d=%lld and dv=%lld",
                            config[ATTENTION_CPU_BM], config[ATTENTION_CPU_BN], (long long)shape->d,
                            (long long)shape->dv);
    return QUERN_OK;
}

/* As many rows to what is packed as leave every core some blocks. */
void attention_cpu_heuristic(const struct quern_problem *problem,
                             const struct attention_cpu_shape *shape, int32_t *config)
{
    struct quern_message why;
    int64_t cores = problem->profile->cores > 0 ? problem->profile->cores : 1;
    config[ATTENTION_CPU_AMX] = attention_cpu_has_tiles(problem->target, shape->dtype);
    config[ATTENTION_CPU_PAIRS] = config[ATTENTION_CPU_AMX];
    config[ATTENTION_CPU_BN] = 256;
    int32_t bm = 512;
    while (bm > 32 && (bm / 2 >= shape->rows || shape->lines * shape->rows / bm < 4 * cores))
        bm /= 2;
    config[ATTENTION_CPU_BM] = bm;
    while (config[ATTENTION_CPU_BM] > 64 &&
           attention_cpu_legal(problem->target, shape, config, &why))
        config[ATTENTION_CPU_BM] /= 2;
}

int attention_cpu_candidates(int32_t (*configs)[QUERN_MAX_KNOBS], int max)
{
    static const int32_t list[][ATTENTION_CPU_KNOBS] = {
        { 512, 256, 1, 1 }, { 256, 256, 1, 1 }, { 512, 512, 1, 1 }, { 512, 128, 1, 1 },
        { 256, 128, 1, 1 }, { 128, 256, 1, 1 }, { 128, 128, 1, 1 }, { 64, 256, 1, 1 },
        { 32, 256, 1, 1 },  { 32, 512, 1, 1 },  { 512, 256, 0, 0 }, { 256, 256, 0, 0 },
        { 256, 128, 0, 0 }, { 128, 128, 0, 0 }, { 64, 128, 0, 0 },  { 32, 256, 0, 0 },
        { 512, 256, 0, 1 }, { 256, 128, 0, 1 }, { 128, 256, 0, 1 }, { 32, 256, 0, 1 },
    };
    int count = 0;
    for (; count < max && count < (int)(sizeof(list) / sizeof(list[0])); count++)
        memcpy(configs[count], list[count], sizeof(list[count]));
    return count;
}

void attention_cpu_set_tiles(struct attention_cpu_args *args, int is_packed, int64_t bm)
{
    int64_t whole = args->sq * args->group;
    args->tiles =
        is_packed ? whole / bm + (args->sq ? args->b : 0) : args->b * ((whole + bm - 1) / bm);
    args->tile_columns = args->tiles > TILE_COLUMNS ? TILE_COLUMNS : args->tiles + !args->tiles;
}
