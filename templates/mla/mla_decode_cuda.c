/* What the CUDA variants of mla_decode share on the host: defines, the grid, the workspace, and the
 * step that adds the pieces of what was cut.
 *
 *     grid   x  shares of the line in which all sequences' tiles (or pieces) stand
 *            y  units of `rows` rows of o that read the same rows of the cache
 *
 * As many blocks as run at once, so that all have the same work; where units are more than SMs,
 * one share of all. */
#define QUERN_DEF "mla/mla_decode.def"
#include <quern/family_def.h>

#include "mla_decode_cuda.h"

static int64_t ceil_div(int64_t a, int64_t b)
{
    return (a + b - 1) / b;
}

int64_t mla_cuda_unit_rows(const struct quern_spec *spec)
{
    const struct values *v = values_of(spec);
    return v->topk ? v->hq : v->sq * v->hq;
}

int64_t mla_cuda_shared_bytes(const struct quern_problem *problem)
{
    return problem->profile->l1_bytes ? problem->profile->l1_bytes : 99 * 1024;
}

int mla_cuda_supports(const struct quern_problem *problem)
{
    return problem->target->kind == QUERN_CUDA && problem->target->sm >= 80 &&
           values_of(problem->bucket)->dtype != QUERN_F32;
}

/* ---- The grid -------------------------------------------------------------------------------- */

static int64_t sequences_of(const struct values *v)
{
    return v->topk ? v->b * v->sq : v->b;
}

static int64_t units_of(const struct quern_spec *spec, const struct mla_cut *cut)
{
    return ceil_div(mla_cuda_unit_rows(spec), cut->rows);
}

static int64_t shares_of(const struct quern_spec *spec, const struct quern_profile *profile,
                         const struct mla_cut *cut)
{
    int64_t blocks = (profile->cores ? profile->cores : 108) * cut->resident;
    int64_t shares = blocks / units_of(spec, cut);
    return shares > 0 ? shares : 1;
}

/* Places for pieces, and how many of them a block may have; those of a bucket are no fewer than
 * those of what is in it. */
static int64_t slots_of(const struct quern_spec *spec, const struct quern_profile *profile,
                        const struct mla_cut *cut)
{
    const struct values *v = values_of(spec);
    int64_t units = units_of(spec, cut);
    if (!v->deterministic)
        return 2 * shares_of(spec, profile, cut) * units;
    int64_t pieces = ceil_div(mla_decode_length(spec), MLA_PIECE_TOKENS);
    pieces = pieces < 1 ? 1 : pieces > MLA_MOST_PIECES ? MLA_MOST_PIECES : pieces;
    return sequences_of(v) * pieces * units;
}

/* ---- Plan and bind --------------------------------------------------------------------------- */

void mla_cuda_define(const struct quern_problem *problem, struct quern_step *step)
{
    mla_decode_define(step, problem->bucket);
    quern_step_define(step, "ALIGN_Q", problem->alignment[ARRAY_q]);
    quern_step_define(step, "ALIGN_KV", problem->alignment[ARRAY_kv_cache]);
    quern_step_define(step, "ALIGN_O", problem->alignment[ARRAY_o]);
}

/* Threads of a block that adds a row's pieces. Where all blocks share few sequences pieces are
 * many. */
static int combine_threads(const struct quern_problem *problem, const struct mla_cut *cut)
{
    const struct values *v = values_of(problem->bucket);
    int64_t shares = shares_of(problem->bucket, problem->profile, cut);
    return !v->deterministic && shares >= 8 * sequences_of(v) ? 512 : 256;
}

void mla_cuda_add_combine(const struct quern_problem *problem, const char *source,
                          const struct mla_cut *cut, struct quern_plan *plan)
{
    struct quern_step *main = &plan->steps[0];
    struct quern_step *step = quern_plan_kernel(plan, "combine", source, "mla_decode_combine");
    quern_step_define(main, "COMBINE_THREADS", combine_threads(problem, cut));
    step->define_count = main->define_count;
    for (int i = 0; i < main->define_count; i++)
        step->defines[i] = main->defines[i];
    step->threads[0] = (uint32_t)combine_threads(problem, cut);
    step->is_programmatic = problem->target->sm >= 90;
    plan->workspace_bytes = split_kv_bytes(
        shares_of(problem->bucket, problem->profile, cut), sequences_of(values_of(problem->bucket)),
        slots_of(problem->bucket, problem->profile, cut), cut->rows, MLA_DV);
}

void mla_cuda_bind(const struct quern_binding *binding, const struct mla_cut *cut,
                   struct quern_launch *launch)
{
    const struct values *v = values_of(binding->spec);
    int64_t shares = shares_of(binding->spec, binding->profile, cut);
    int64_t units = units_of(binding->spec, cut), sequences = sequences_of(v);
    struct mla_cuda_args args = {
        .mla = mla_decode_arguments(binding),
        .space = split_kv_space(binding->workspace, shares, sequences,
                                slots_of(binding->spec, binding->profile, cut), cut->rows),
        .sequences = (int32_t)sequences,
        .least = v->deterministic ? 1 : cut->least,
    };
    QUERN_BIND(&launch->steps[0], args, sequences ? shares : 0, units, 1);
    QUERN_BIND(&launch->steps[1], args, v->deterministic ? sequences : shares,
               sequences ? units * cut->rows : 0, 1);
}
