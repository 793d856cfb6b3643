/* What arrays that name experts or rows may hold beyond what the families draw, said once for the
 * suites of the CPU and of a device: everything is legal without QUERN_CHECK=1, and what is outside
 * the range counts as -1. */
#ifndef MOE_ALIGN_EDGES_H
#define MOE_ALIGN_EDGES_H

#include "common.h"

enum moe_align_pattern {
    MOE_ALIGN_ONE,  /* all of the last expert or row */
    MOE_ALIGN_NONE, /* all -1 */
    MOE_ALIGN_WILD, /* any 32 bits */
    MOE_ALIGN_NEAR, /* from two below to two beyond the range */
    MOE_ALIGN_DOWN, /* in descending order */
    MOE_ALIGN_PATTERNS
};

struct moe_align_edge {
    const char *spec, *array;
    int64_t limit;          /* of what the array may hold */
    const char *cpu, *cuda; /* configs; NULL: as an untuned call has it */
};
extern const struct moe_align_edge moe_align_edges[];
extern const int moe_align_edge_count;

/* Puts the pattern into the host's copy of the edge's array. */
void moe_align_edge_put(struct common_arrays *set, const struct quern_spec *spec,
                        const struct moe_align_edge *edge, enum moe_align_pattern pattern,
                        uint64_t *seed);
/* "moe_align_block_size tokens=... with wild ids" */
void moe_align_edge_text(const struct moe_align_edge *edge, enum moe_align_pattern pattern,
                         char *text, size_t bytes);

#endif
