/* moe for many tokens, of kernels that are families of their own: moe_grouped_sm90 with the
 * products of grouped_gemm_sm90, moe_grouped_sm80 with those of grouped_gemm_sm80.
 *
 *     route         experts and weights of each token       ids, weights      [tokens][slots]
 *     align_count   slots sorted by expert                  counts
 *     align_sort                                            sorted, offsets, positions
 *     up            act(gate) up of rows of x, gathered     h   [slots][inter]
 *     down          in f32: out is rounded once             y   [slots][hidden]
 *     combine       weights y, added in order of slots      out
 *
 *     workspace     ids | weights | sorted | positions | offsets | counts | h | y
 *
 * x is read by `up` only, so `combine` may write out over it. A config is one of each product. */
#define QUERN_DEF "moe/moe.def"
#include <quern/family_def.h>

#include <string.h>

#include "grouped_gemm_sm80.h"
#include "grouped_gemm_sm90_plan.h"
#include "moe_align.h"
#include "moe_combine.h"
#include "moe_cuda.h"
#include "moe_grouped_args.h"

enum { ROUTE_THREADS = 256, EACH = 8 /* knobs of a product */, KNOB_COUNT = 2 * EACH };
QUERN_STATIC_ASSERT((int)GROUPED_GEMM_SM80_KNOBS == EACH && (int)GROUPED_GEMM_SM90_KNOBS == EACH,
                    "each product has as many knobs");

#define KNOBS_SM80(at, name, doc)                                                                  \
    [at +                                                                                          \
        GROUPED_GEMM_SM80_BM] = { name "bm", 16, 256, doc "rows of a tile" },                      \
        [at + GROUPED_GEMM_SM80_BN] = { name "bn", 16, 256, doc "lines of weights of a tile" },    \
        [at +                                                                                      \
            GROUPED_GEMM_SM80_BK] = { name "bk", 32, 128, doc "k that a block copies at a time" }, \
        [at + GROUPED_GEMM_SM80_WARPS_M] = { name "warps_m", 1, 8, doc "warps along the rows" },   \
        [at +                                                                                      \
            GROUPED_GEMM_SM80_WARPS_N] = { name "warps_n", 1, 8, doc "warps along the columns" },  \
        [at + GROUPED_GEMM_SM80_STAGES] = { name "stages", 2, 8,                                   \
                                            doc "steps of k in shared memory" },                   \
        [at + GROUPED_GEMM_SM80_GROUP] = { name "group", 1, 64, doc "rows of tiles of a group" },  \
        [at + GROUPED_GEMM_SM80_BLOCKS] = { name "blocks", 1, 8, doc "blocks for each SM" }
#define KNOBS_SM90(at, name, doc)                                                                  \
    [at +                                                                                          \
        GROUPED_GEMM_SM90_BM] = { name "bm", 64, 256, doc "rows of a tile" },                      \
        [at + GROUPED_GEMM_SM90_BN] = { name "bn", 16, 256, doc "columns of a tile" },             \
        [at +                                                                                      \
            GROUPED_GEMM_SM90_STAGES] = { name "stages", 2, 16, doc "steps of 64 along k ahead" }, \
        [at + GROUPED_GEMM_SM90_CONSUMERS] = { name "consumers", 1, 3,                             \
                                               doc "warpgroups that multiply" },                   \
        [at + GROUPED_GEMM_SM90_PINGPONG] = { name "pingpong", 0, 1,                               \
                                              doc "a tile for each of them" },                     \
        [at + GROUPED_GEMM_SM90_GROUP] = { name "group", 1, 64, doc "rows of tiles of a group" },  \
        [at +                                                                                      \
            GROUPED_GEMM_SM90_SWAP] = { name "swap", 0, 1, doc "weights on the side of 64 rows" }, \
        [at + GROUPED_GEMM_SM90_BLOCKS] = { name "blocks", 1, 4, doc "blocks of an SM" }

static const struct quern_knob knobs_sm80[] = { KNOBS_SM80(0, "up.", "first product: "),
                                                KNOBS_SM80(EACH, "down.", "second product: ") };
static const struct quern_knob knobs_sm90[] = { KNOBS_SM90(0, "up.", "first product: "),
                                                KNOBS_SM90(EACH, "down.", "second product: ") };

/* ---- The two products ------------------------------------------------------------------------ */

/* Elements from a row of h or y to the next. */
static int64_t pitch(int64_t width)
{
    return (width + 7) / 8 * 8;
}

static int64_t taken(const struct values *v)
{
    return v->local + v->shared;
}

/* alignment: NULL in bind(). */
static struct grouped_gemm_work work_of(const struct quern_spec *spec, const uint8_t *alignment,
                                        int is_down)
{
    const struct values *v = values_of(spec);
    struct grouped_gemm_work work = {
        .experts = taken(v) ? taken(v) : 1,
        .m = moe_cuda_slots(spec),
        .n = is_down ? v->hidden : v->inter,
        .k = is_down ? v->inter : v->hidden,
        .source_rows = is_down ? moe_cuda_slots(spec) : v->tokens,
        .share = 1,
        .form = GROUPED_GEMM_OFFSETS,
        .block = 1,
        .gather = !is_down,
        .dtype = (int)v->dtype,
        .d = is_down ? QUERN_F32 : (int)v->dtype,
        .is_plain = 1,
        .activation = is_down ? GROUPED_GEMM_NONE : (int)v->activation + GROUPED_GEMM_SILU,
        .align_a = 16,
        .align_b = 16,
        .align_d = 16,
        .is_routed = 1,
    };
    work.limit = grouped_gemm_limit(work.activation, v->limit);
    if (alignment) {
        work.align_a = is_down ? 16 : alignment[ARRAY_x];
        work.align_b = alignment[is_down ? ARRAY_w2 : ARRAY_w13];
    }
    return work;
}

static struct grouped_gemm_sm80_problem problem_sm80(const struct quern_problem *problem,
                                                     int is_down)
{
    return (struct grouped_gemm_sm80_problem){
        .target = problem->target,
        .profile = problem->profile,
        .work = work_of(problem->bucket, problem->alignment, is_down),
    };
}

static int is_common_ok(const struct quern_problem *problem)
{
    return moe_cuda_supports(problem) && moe_cuda_slots(problem->bucket) <= MOE_SLOTS_MOST;
}

static int supports_sm80(const struct quern_problem *problem)
{
    if (!is_common_ok(problem))
        return 0;
    const struct grouped_gemm_sm80_problem up = problem_sm80(problem, 0);
    const struct grouped_gemm_sm80_problem down = problem_sm80(problem, 1);
    return grouped_gemm_sm80_serves(&up) && grouped_gemm_sm80_serves(&down);
}

static int rank_sm80(const struct quern_problem *problem, int is_down,
                     int32_t (*configs)[QUERN_MAX_KNOBS], int max)
{
    const struct grouped_gemm_sm80_problem own = problem_sm80(problem, is_down);
    return grouped_gemm_sm80_rank(&own, configs, max);
}

static int rank_sm90(const struct quern_problem *problem, int is_down,
                     int32_t (*configs)[QUERN_MAX_KNOBS], int max)
{
    const struct grouped_gemm_work work = work_of(problem->bucket, problem->alignment, is_down);
    return grouped_gemm_sm90_rank(&work, problem->profile, configs, max);
}

static int supports_sm90(const struct quern_problem *problem)
{
    int32_t config[1][QUERN_MAX_KNOBS];
    if (!is_common_ok(problem) || !taken(values_of(problem->bucket)))
        return 0;
    for (int is_down = 0; is_down < 2; is_down++) {
        const struct grouped_gemm_work work = work_of(problem->bucket, problem->alignment, is_down);
        if (!grouped_gemm_sm90_supports(problem->target, &work) ||
            !rank_sm90(problem, is_down, config, 1))
            return 0;
    }
    return 1;
}

static int legal_sm80(const struct quern_problem *problem, const int32_t *config,
                      struct quern_message *why)
{
    int status = QUERN_OK;
    for (int is_down = 0; is_down < 2 && !status; is_down++) {
        const struct grouped_gemm_sm80_problem own = problem_sm80(problem, is_down);
        status = grouped_gemm_sm80_legal(&own, config + EACH * is_down, why);
    }
    return status;
}

static int legal_sm90(const struct quern_problem *problem, const int32_t *config,
                      struct quern_message *why)
{
    int status = QUERN_OK;
    for (int is_down = 0; is_down < 2 && !status; is_down++) {
        const struct grouped_gemm_work work = work_of(problem->bucket, problem->alignment, is_down);
        status = grouped_gemm_sm90_legal(&work, config + EACH * is_down, why);
    }
    return status;
}

/* ---- Configs --------------------------------------------------------------------------------- */

typedef int ranking(const struct quern_problem *problem, int is_down,
                    int32_t (*configs)[QUERN_MAX_KNOBS], int max);

static void choose(const struct quern_problem *problem, ranking *rank, int32_t *config)
{
    int32_t best[1][QUERN_MAX_KNOBS];
    for (int is_down = 0; is_down < 2; is_down++) {
        rank(problem, is_down, best, 1);
        memcpy(config + EACH * is_down, best[0], EACH * sizeof(*config));
    }
}

/* The best of each with the best of the other, then the others' in turns beside it. */
static int list(const struct quern_problem *problem, ranking *rank,
                int32_t (*configs)[QUERN_MAX_KNOBS], int max)
{
    enum { RANKED = 12 };
    int32_t ranked[2][RANKED][QUERN_MAX_KNOBS];
    int counts[2], count = 0;
    for (int is_down = 0; is_down < 2; is_down++)
        counts[is_down] = rank(problem, is_down, ranked[is_down], RANKED);
    for (int i = 0; i < RANKED; i++) {
        for (int other = 0; other < (i ? 2 : 1) && count < max; other++) {
            if (i >= counts[other])
                continue;
            memcpy(configs[count], ranked[0][other ? 0 : i], EACH * sizeof(**configs));
            memcpy(configs[count++] + EACH, ranked[1][other ? i : 0], EACH * sizeof(**configs));
        }
    }
    return count;
}

static void heuristic_sm80(const struct quern_problem *problem, int32_t *config)
{
    choose(problem, rank_sm80, config);
}

static void heuristic_sm90(const struct quern_problem *problem, int32_t *config)
{
    choose(problem, rank_sm90, config);
}

static int candidates_sm80(const struct quern_problem *problem, int32_t (*configs)[QUERN_MAX_KNOBS],
                           int max)
{
    return list(problem, rank_sm80, configs, max);
}

static int candidates_sm90(const struct quern_problem *problem, int32_t (*configs)[QUERN_MAX_KNOBS],
                           int max)
{
    return list(problem, rank_sm90, configs, max);
}

/* ---- Plan ------------------------------------------------------------------------------------ */

/* What lies where in the workspace, and its size. */
struct layout {
    int64_t ids, weights, sorted, positions, offsets, counts, h, y, bytes;
};

static int64_t take(int64_t *bytes, int64_t count)
{
    int64_t at = *bytes;
    *bytes += (count + 255) / 256 * 256;
    return at;
}

static struct layout layout_of(const struct quern_spec *spec)
{
    const struct values *v = values_of(spec);
    const int64_t slots = moe_cuda_slots(spec);
    struct moe_align_config align;
    struct layout at = { 0 };
    moe_align_choose(slots, &align);
    at.ids = take(&at.bytes, 4 * slots);
    at.weights = take(&at.bytes, 4 * slots);
    at.sorted = take(&at.bytes, 4 * slots);
    at.positions = take(&at.bytes, 4 * slots);
    at.offsets = take(&at.bytes, 4 * (taken(v) + 2));
    at.counts = take(&at.bytes, moe_align_counts_bytes(slots, taken(v) + 1, &align));
    at.h = take(&at.bytes, 2 * slots * pitch(v->inter));
    at.y = take(&at.bytes, 4 * slots * pitch(v->hidden));
    return at;
}

static void plan_ahead(const struct quern_problem *problem, struct quern_plan *plan)
{
    const struct values *v = values_of(problem->bucket);
    struct moe_align_config align;
    struct quern_step *route =
        quern_plan_kernel(plan, "route", "moe/moe_grouped.cu", "moe_grouped_route");
    moe_cuda_define_route(problem, route);
    quern_step_define(route, "THREADS", ROUTE_THREADS);
    route->threads[0] = ROUTE_THREADS;
    moe_align_choose(moe_cuda_slots(problem->bucket), &align);
    moe_align_plan(problem, taken(v) ? taken(v) : 1, &align, plan);
}

static void plan_combine(const struct quern_problem *problem, struct quern_plan *plan)
{
    const struct values *v = values_of(problem->bucket);
    const int dtypes[] = { QUERN_F32, (int)v->dtype };
    const int alignments[] = { 16, problem->alignment[v->inplace ? ARRAY_x : ARRAY_out] };
    struct moe_combine_config config;
    moe_combine_choose(v->topk + v->shared, &config);
    moe_combine_plan(problem, &config, dtypes, alignments, plan);
    plan->workspace_bytes = layout_of(problem->bucket).bytes;
}

static void plan_sm80(const struct quern_problem *problem, const int32_t *config,
                      struct quern_plan *plan)
{
    plan_ahead(problem, plan);
    for (int is_down = 0; is_down < 2; is_down++) {
        const struct grouped_gemm_sm80_problem own = problem_sm80(problem, is_down);
        grouped_gemm_sm80_plan(&own, config + EACH * is_down, is_down ? "down" : "up", plan);
    }
    plan_combine(problem, plan);
}

static void plan_sm90(const struct quern_problem *problem, const int32_t *config,
                      struct quern_plan *plan)
{
    plan_ahead(problem, plan);
    for (int is_down = 0; is_down < 2; is_down++) {
        const struct grouped_gemm_work work = work_of(problem->bucket, problem->alignment, is_down);
        grouped_gemm_sm90_plan(&work, config + EACH * is_down, is_down ? "down" : "up", plan);
    }
    plan_combine(problem, plan);
}

/* ---- Bind ------------------------------------------------------------------------------------ */

enum { STEP_ROUTE, STEP_ALIGN, STEP_UP = STEP_ALIGN + MOE_ALIGN_STEPS, STEP_DOWN, STEP_COMBINE };

static void bind_ahead(const struct quern_binding *binding, const struct layout *at,
                       struct quern_step_launch *steps)
{
    const struct values *v = values_of(binding->spec);
    char *space = binding->workspace;
    const int slots = (int)moe_cuda_slots(binding->spec), tokens_a_block = ROUTE_THREADS / 32;
    struct moe_grouped_route_args route = {
        .moe = moe_arguments(binding),
        .scalars = moe_cuda_scalars(binding->spec),
        .weights = (void *)(space + at->weights),
        .ids = (void *)(space + at->ids),
    };
    struct moe_align_args align = {
        .ids = route.ids,
        .sorted = (void *)(space + at->sorted),
        .offsets = (void *)(space + at->offsets),
        .positions = (void *)(space + at->positions),
        .ids_token = v->topk + v->shared,
        .positions_token = v->topk + v->shared,
        .slots = slots,
        .topk = (int32_t)(v->topk + v->shared),
        .experts = (int32_t)(taken(v) ? taken(v) : 1),
        .global = (int32_t)(taken(v) ? taken(v) : 1),
        .block = 1,
        .rows = slots,
        .share = (int32_t)(v->topk + v->shared),
        .padding = (int32_t)v->tokens,
    };
    struct moe_align_config config;
    moe_align_choose(slots, &config);
    QUERN_BIND(&steps[STEP_ROUTE], route, (v->tokens + tokens_a_block - 1) / tokens_a_block, 1, 1);
    moe_align_bind(&align, &config, space + at->counts, &steps[STEP_ALIGN]);
    if (!v->tokens)
        steps[STEP_ALIGN + MOE_ALIGN_STEPS - 1].grid[0] = 0;
}

static struct grouped_gemm_place place_of(const struct quern_binding *binding,
                                          const struct layout *at, int is_down)
{
    const struct values *v = values_of(binding->spec);
    const struct quern_array *x = &binding->arrays[ARRAY_x];
    const struct quern_array *b = &binding->arrays[is_down ? ARRAY_w2 : ARRAY_w13];
    char *space = binding->workspace;
    return (struct grouped_gemm_place){
        .a = is_down ? space + at->h : x->data,
        .b = b->data,
        .d = space + (is_down ? at->y : at->h),
        .offsets = (void *)(space + at->offsets),
        .row_ids = is_down ? NULL : (void *)(space + at->sorted),
        .a_row_stride = is_down ? pitch(v->inter) : x->strides[0],
        .b_row_stride = b->strides[1],
        .d_row_stride = pitch(is_down ? v->hidden : v->inter),
        .b_expert_stride = b->strides[0],
    };
}

static void bind_combine(const struct quern_binding *binding, const struct layout *at,
                         struct quern_step_launch *step)
{
    const struct values *v = values_of(binding->spec);
    const struct moe_args moe = moe_arguments(binding);
    char *space = binding->workspace;
    struct moe_combine_args args = {
        .in = space + at->y,
        .perm = (void *)(space + at->positions),
        .factors = (void *)(space + at->weights),
        .out = moe.out,
        .in_row = pitch(v->hidden),
        .perm_token = v->topk + v->shared,
        .factors_token = v->topk + v->shared,
        .out_token = moe.out_row,
        .tokens = v->tokens,
        .rows = moe_cuda_slots(binding->spec),
        .topk = (int32_t)(v->topk + v->shared),
        .width = (int32_t)v->hidden,
        .scaling = 1,
    };
    struct moe_combine_config config;
    moe_combine_choose(v->topk + v->shared, &config);
    moe_combine_bind(&args, &config, QUERN_F32, binding->profile, step);
}

static void bind_sm80(const struct quern_binding *binding, struct quern_launch *launch)
{
    const struct layout at = layout_of(binding->spec);
    bind_ahead(binding, &at, launch->steps);
    for (int is_down = 0; is_down < 2; is_down++) {
        const struct grouped_gemm_work work = work_of(binding->spec, NULL, is_down);
        const struct grouped_gemm_place place = place_of(binding, &at, is_down);
        grouped_gemm_sm80_bind(&work, &place, binding->config + EACH * is_down, binding->profile,
                               &launch->steps[STEP_UP + is_down]);
        if (!taken(values_of(binding->spec)))
            launch->steps[STEP_UP + is_down].grid[0] = 0;
    }
    bind_combine(binding, &at, &launch->steps[STEP_COMBINE]);
}

static void bind_sm90(const struct quern_binding *binding, struct quern_launch *launch)
{
    const struct layout at = layout_of(binding->spec);
    bind_ahead(binding, &at, launch->steps);
    for (int is_down = 0; is_down < 2; is_down++) {
        const struct grouped_gemm_work work = work_of(binding->spec, NULL, is_down);
        const struct grouped_gemm_place place = place_of(binding, &at, is_down);
        grouped_gemm_sm90_bind(&work, &place, binding->profile, binding->config + EACH * is_down,
                               &launch->steps[STEP_UP + is_down]);
    }
    bind_combine(binding, &at, &launch->steps[STEP_COMBINE]);
}

const struct quern_variant moe_grouped_sm80 = {
    .name = "moe_grouped_sm80",
    .doc = "routing, sorting, two grouped products by mma.sync, weighted sum",
    .device = QUERN_CUDA,
    .knobs = knobs_sm80,
    .knob_count = KNOB_COUNT,
    .supports = supports_sm80,
    .legal = legal_sm80,
    .heuristic = heuristic_sm80,
    .candidates = candidates_sm80,
    .plan = plan_sm80,
    .bind = bind_sm80,
};

const struct quern_variant moe_grouped_sm90 = {
    .name = "moe_grouped_sm90",
    .doc = "routing, sorting, two grouped products by wgmma, weighted sum",
    .device = QUERN_CUDA,
    .knobs = knobs_sm90,
    .knob_count = KNOB_COUNT,
    .supports = supports_sm90,
    .legal = legal_sm90,
    .heuristic = heuristic_sm90,
    .candidates = candidates_sm90,
    .plan = plan_sm90,
    .bind = bind_sm90,
};
