/* What the plans of attention_prefill_cpu and attention_extend_cpu share. */
#ifndef ATTENTION_CPU_KNOBS_H
#define ATTENTION_CPU_KNOBS_H

#include <quern/family.h>

#include "attention_cpu_args.h"

enum {
    ATTENTION_CPU_BM,
    ATTENTION_CPU_BN,
    ATTENTION_CPU_AMX,
    ATTENTION_CPU_PAIRS,
    ATTENTION_CPU_KNOBS
};
extern const struct quern_knob attention_cpu_knobs[ATTENTION_CPU_KNOBS];

/* What the choice of knobs depends on. */
struct attention_cpu_shape {
    int64_t dtype, d, dv, group;
    int64_t lines, rows; /* sequences times heads of k and v, and rows of each: queries x group */
};

int attention_cpu_has_tiles(const struct quern_target *target, int64_t dtype);
int attention_cpu_legal(const struct quern_target *target, const struct attention_cpu_shape *shape,
                        const int32_t *config, struct quern_message *why);
void attention_cpu_heuristic(const struct quern_problem *problem,
                             const struct attention_cpu_shape *shape, int32_t *config);
int attention_cpu_candidates(int32_t (*configs)[QUERN_MAX_KNOBS], int max);

/* Sets the grid's sizes in args: tiles of bm rows of sequences of sq queries, or with is_packed of
 * all together. */
void attention_cpu_set_tiles(struct attention_cpu_args *args, int is_packed, int64_t bm);
#define ATTENTION_CPU_BIND(step_launch, args, hkv)                                                 \
    QUERN_BIND(step_launch, args, hkv, (args).tile_columns,                                        \
               ((args).tiles + (args).tile_columns - 1) / (args).tile_columns)

#endif
