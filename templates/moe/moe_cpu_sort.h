/* Which tokens go to which expert: a part's slots sorted by expert, stably, by counting; cut into
 * jobs (moe_cpu_args.h), and those of many tokens into tiles. */
#ifndef MOE_CPU_SORT_H
#define MOE_CPU_SORT_H
#include "moe/moe_cpu_args.h"
#include "moe/moe_cpu_load.h"

/* A part's share of the tables. */
struct part {
    int64_t token, tokens, slots; /* slots: of all its tokens */
    int32_t *order, *counts;
    struct moe_job *jobs;
    struct moe_tile *tiles;
};

INLINE struct part part_of(const struct moe_cpu_args *args, int64_t z)
{
    const int64_t token = z * args->part_tokens, left = args->moe.tokens - token;
    const int64_t tokens = left < args->part_tokens ? left : args->part_tokens;
    return (struct part){ .token = token,
                          .tokens = tokens,
                          .slots = tokens * args->slots,
                          .order = args->order + token * args->slots,
                          .counts = args->counts + 2 * z,
                          .jobs = args->jobs + z * args->most_jobs,
                          .tiles = args->tiles + z * args->most_tiles };
}

/* The jobs of an expert's places. */
static void add_jobs(struct part *part, int32_t expert, int32_t first, int32_t end)
{
    int32_t *jobs = &part->counts[0], *tiles = &part->counts[1];
    if (first < end && (!TILES || end - first <= MOE_DOTS)) {
        part->jobs[(*jobs)++] = (struct moe_job){ expert, first, end - first, -1 };
        return;
    }
    while (first < end) {
        int32_t most = MOE_JOB_TILES * MOE_TILE, count = end - first < most ? end - first : most;
        part->jobs[(*jobs)++] = (struct moe_job){ expert, first, count, *tiles };
        for (int32_t i = 0; i < count; i += MOE_TILE)
            part->tiles[(*tiles)++] =
                (struct moe_tile){ first + i, count - i < MOE_TILE ? count - i : MOE_TILE };
        first += count;
    }
}

/* Which of w13 and w2 a slot's is; -1: none. */
INLINE int64_t weights_of(const struct moe_cpu_args *args, int64_t slot)
{
    int64_t e = args->experts[slot];
    if (e >= args->columns)
        return args->local + e - args->columns;
    if (args->moe.expert_map)
        e = args->moe.expert_map[e];
    return e < args->local ? e : -1;
}

static void sort_part(const struct moe_cpu_args *args, int64_t z)
{
    struct part part = part_of(args, z);
    int32_t *starts = args->starts + z * (args->weights + 1);
    const int32_t first = (int32_t)(part.token * args->slots);
    const int32_t end = (int32_t)(first + part.slots);
    __builtin_memset(starts, 0, (args->weights + 1) * sizeof(*starts));
    for (int32_t slot = first; slot < end; slot++) {
        const int64_t e = weights_of(args, slot);
        if (e >= 0)
            starts[e + 1]++;
    }
    part.counts[0] = part.counts[1] = 0;
    for (int64_t e = 0; e < args->weights; e++) {
        starts[e + 1] += starts[e];
        add_jobs(&part, (int32_t)e, starts[e], starts[e + 1]);
    }
    for (int32_t slot = first; slot < end; slot++) {
        const int64_t e = weights_of(args, slot);
        if (e >= 0)
            part.order[starts[e]++] = slot;
    }
}
#endif
