/* What the plans of the CUDA variants of mla_decode share. */
#ifndef MLA_DECODE_CUDA_H
#define MLA_DECODE_CUDA_H

#include <quern/family.h>

#include "mla_decode.h"
#include "mla_decode_cuda_args.h"

/* How a variant cuts: rows of a unit, rows of the cache in a tile, blocks an SM has, tiles of a
 * share at least. */
struct mla_cut {
    int rows, tile, resident, least;
};

/* What no variant can do without. */
int mla_cuda_supports(const struct quern_problem *problem);
/* Rows of o that read the same rows of the cache. */
int64_t mla_cuda_unit_rows(const struct quern_spec *spec);
int64_t mla_cuda_shared_bytes(const struct quern_problem *problem);

/* The defines of the step `main`; the step that adds pieces, and the workspace. */
void mla_cuda_define(const struct quern_problem *problem, struct quern_step *step);
void mla_cuda_add_combine(const struct quern_problem *problem, const char *source,
                          const struct mla_cut *cut, struct quern_plan *plan);
/* Both steps. */
void mla_cuda_bind(const struct quern_binding *binding, const struct mla_cut *cut,
                   struct quern_launch *launch);

#endif
