/* The host side of kda_prefill on GPUs: kda_prefill_intra.cu, whose time is the tokens' and heads',
 * and kda_prefill_state.cu, whose time is the longest sequence's where heads are few. They are
 * compiled apart, and what is tuned in one leaves the other's artifact as it is. */
#define QUERN_DEF "kda/kda_prefill.def"
#include <quern/family_def.h>

#include <math.h>
#include <string.h>

#include "kda_kinds.h"
#include "kda_prefill.h"
#include "kda_prefill_cuda_args.h"

enum { CHUNK, WGMMA, BV, SPLIT, STAGES, SEGMENT, KNOB_COUNT };
static const struct quern_knob knobs[] = {
    [CHUNK] = { "chunk", 16, 64, "tokens of a chunk" },
    [WGMMA] = { "wgmma", 0, 1, "the serial kernel multiplies by wgmma: sm_90a" },
    [BV] = { "bv", 16, 128, "columns of v that a block of the serial kernel has" },
    [SPLIT] = { "split", 1, 4, "warps of it that have 16 columns together" },
    [STAGES] = { "stages", 1, 4, "places for records of chunks in its shared memory" },
    [SEGMENT] = { "segment", 0, 256, "chunks after which a sequence is split; 0: it is not" },
};

/* ---- What is possible ---- */

/* Of all sequences: each but a sequence's last has `chunk` tokens. */
static int64_t chunks_of(const struct values *v, int64_t chunk)
{
    if (v->varlen)
        return v->t / chunk + v->n;
    return v->n ? v->n * ((v->t / v->n + chunk - 1) / chunk) : 0;
}

/* The same or more for every spec of the bucket. */
static int64_t most_chunks(const struct values *bucket, int64_t chunk)
{
    return bucket->t / chunk + bucket->n;
}

/* Likewise of segments; a sequence has one at least. */
static int64_t segments_of(const struct values *v, int64_t chunks, int64_t segment)
{
    return segment ? chunks / segment + v->n : v->n;
}

static int64_t intra_shared(const struct quern_problem *problem, int chunk)
{
    const struct values *v = values_of(problem->bucket);
    return KDA_INTRA_SHARED(chunk, v->k, v->decay);
}

static int64_t state_shared(const struct quern_problem *problem, const int32_t *config)
{
    int64_t k = values_of(problem->bucket)->k, bv = config[BV], chunk = config[CHUNK];
    int64_t bytes = config[STAGES] * KDA_STATE_STAGE(chunk, k, bv);
    if (config[WGMMA])
        return bytes + config[STAGES] * KDA_STATE_BARRIERS;
    return bytes + (config[SPLIT] > 1 ? KDA_STATE_SHARES(chunk, k, bv) : 0);
}

static uint32_t state_threads(const int32_t *config)
{
    return (uint32_t)(2 * config[BV] * config[SPLIT] + 32 * config[WGMMA]);
}

/* The least that any device of the target has, where the profile does not say. */
static int64_t shared_bytes(const struct quern_problem *problem)
{
    return problem->profile->l1_bytes ? problem->profile->l1_bytes : 99 * 1024;
}

/* Of the parallel kernel, what an SM's shared memory and registers (for 128 a thread) have room
 * for, in 64 tokens, be they one chunk or several: it caps the registers. */
static int intra_blocks(const struct quern_problem *problem, int chunk)
{
    int64_t by_shared = (shared_bytes(problem) + 1024) / (intra_shared(problem, chunk) + 1024);
    int64_t by_registers = 256 / values_of(problem->bucket)->k;
    int64_t most = by_shared * chunk / 64 < by_registers ? by_shared * chunk / 64 : by_registers;
    return most < 1 ? 1 : most > 3 ? 3 : (int)most;
}

/* Grids are counted in 32 bits, and the shortest chunks must be possible. */
static int supports(const struct quern_problem *problem)
{
    const struct values *v = values_of(problem->bucket);
    const int64_t most_blocks = INT32_MAX;
    return problem->target->kind == QUERN_CUDA && problem->target->sm >= 80 &&
           v->dtype != QUERN_F32 && most_chunks(v, 16) <= most_blocks / v->hv &&
           v->n * (v->v / 16) <= most_blocks / v->hv &&
           intra_shared(problem, 16) <= shared_bytes(problem);
}

static int has_wgmma(const struct quern_problem *problem)
{
    const struct values *v = values_of(problem->bucket);
    return problem->target->sm == 90 && problem->target->sm_suffix == 'a' && v->k <= 128;
}

static int legal_segments(const struct quern_problem *problem, const int32_t *config,
                          struct quern_message *why)
{
    const struct values *v = values_of(problem->bucket);
    int64_t segment = config[SEGMENT], chunks = most_chunks(v, config[CHUNK]);
    if (segment & (segment - 1))
        return quern_refuse(why, "config segment=%lld: must be 0 or a power of two",
                            (long long)segment);
    if (segment && config[BV] > v->k)
        return quern_refuse(why, "config bv=%d segment=%lld: bv must be at most k=%lld", config[BV],
                            (long long)segment, (long long)v->k);
    if (segments_of(v, chunks, segment) > INT32_MAX / (v->hv * (v->k + v->v) / 16))
        return quern_refuse(why, "config segment=%lld: more segments than a grid has blocks",
                            (long long)segment);
    return QUERN_OK;
}

static int legal(const struct quern_problem *problem, const int32_t *config,
                 struct quern_message *why)
{
    const struct values *v = values_of(problem->bucket);
    int64_t bytes = shared_bytes(problem);
    if (config[CHUNK] & (config[CHUNK] - 1))
        return quern_refuse(why, "config chunk=%d: must be 16, 32 or 64", config[CHUNK]);
    if (config[BV] & (config[BV] - 1) || config[BV] > v->v)
        return quern_refuse(why, "config bv=%d: must be a power of two up to v=%lld", config[BV],
                            (long long)v->v);
    if (config[SPLIT] == 3 || config[SPLIT] > config[CHUNK] / 16 ||
        config[BV] * config[SPLIT] > 256)
        return quern_refuse(why,
                            "config bv=%d split=%d chunk=%d: split must be 1, 2 or 4 up to "
                            "chunk / 16, bv split at most 256",
                            config[BV], config[SPLIT], config[CHUNK]);
    if (config[WGMMA] && (!has_wgmma(problem) || config[BV] != 64 || config[SPLIT] > 1))
        return quern_refuse(why, "config wgmma=1: needs sm_90a, k up to 128, bv=64, split=1");
    if (intra_shared(problem, config[CHUNK]) > bytes)
        return quern_refuse(
            why, "config chunk=%d: needs %lld bytes of shared memory, %lld are there",
            config[CHUNK], (long long)intra_shared(problem, config[CHUNK]), (long long)bytes);
    if (state_shared(problem, config) > bytes)
        return quern_refuse(why,
                            "config chunk=%d bv=%d stages=%d: needs %lld bytes of shared memory, "
                            "%lld are there",
                            config[CHUNK], config[BV], config[STAGES],
                            (long long)state_shared(problem, config), (long long)bytes);
    return legal_segments(problem, config, why);
}

/* ---- Choices ---- */

static int64_t cores_of(const struct quern_problem *problem)
{
    return problem->profile->cores ? problem->profile->cores : 108;
}

/* The most places for records that shared memory has, up to `most`. */
static void choose_stages(const struct quern_problem *problem, int32_t *config, int most)
{
    for (config[STAGES] = most; config[STAGES] > 1; config[STAGES]--)
        if (state_shared(problem, config) <= shared_bytes(problem))
            return;
}

/* By mma.sync: the widest slab of which there are about as many as SMs, since others would stand
 * idle, while narrower ones read each record more often; and where an SM has few warps, more of
 * them to the columns. */
static void choose_slab(const struct quern_problem *problem, int32_t *config)
{
    const struct values *v = values_of(problem->bucket);
    int64_t columns = v->n * v->hv * v->v;
    struct quern_message why;
    config[WGMMA] = 0;
    config[BV] = 64;
    while (config[BV] > 16 && columns / config[BV] * 4 < cores_of(problem) * 3)
        config[BV] /= 2;
    config[SPLIT] = 64 / config[BV];
    if (config[SPLIT] > config[CHUNK] / 16)
        config[SPLIT] = config[CHUNK] / 16;
    choose_stages(problem, config, columns / config[BV] * 2 > cores_of(problem) * 3 ? 1 : 2);
    while (config[BV] > 16 && legal(problem, config, &why))
        config[BV] /= 2;
}

/* Chunks of a segment such that all segments of all heads are two waves of blocks, where that is a
 * gain: a chain of two segments and a product for each, which four take to half the time. */
static int32_t segment_for(const struct quern_problem *problem, int chunk)
{
    const struct values *v = values_of(problem->bucket);
    int64_t heads = (v->n ? v->n : 1) * v->hv * (v->k + v->v) / 64;
    int64_t segments = 2 * cores_of(problem) / heads;
    int64_t chunks = v->t / chunk / (v->n ? v->n : 1);
    int32_t segment = 1;
    if (segments < 4 || chunks * chunk < 4096)
        return 0;
    while (segment < 256 && segment * segments < chunks)
        segment *= 2;
    return segment;
}

/* Chunks of 32 cost the least; but with mma.sync and few heads, where the chain decides, longer
 * ones have the shorter one. */
static void heuristic(const struct quern_problem *problem, int32_t *config)
{
    const struct values *v = values_of(problem->bucket);
    struct quern_message why;
    memset(config, 0, KNOB_COUNT * sizeof(*config));
    config[CHUNK] = has_wgmma(problem) || v->n * v->hv * v->v >= 32 * cores_of(problem) ? 32 : 64;
    while (config[CHUNK] > 16 && intra_shared(problem, config[CHUNK]) > shared_bytes(problem))
        config[CHUNK] /= 2;
    config[SEGMENT] = segment_for(problem, config[CHUNK]);
    config[WGMMA] = 1;
    config[BV] = 64;
    config[SPLIT] = 1;
    choose_stages(problem, config, config[SEGMENT] ? 3 : 4);
    if (legal(problem, config, &why))
        choose_slab(problem, config);
}

static void add_candidate(const struct quern_problem *problem, int32_t (*configs)[QUERN_MAX_KNOBS],
                          int max, int *count, const int32_t *config)
{
    struct quern_message why;
    if (*count < max && !legal(problem, config, &why))
        memcpy(configs[(*count)++], config, KNOB_COUNT * sizeof(*config));
}

/* Of a length of chunks and of segments: by wgmma, by mma.sync. */
static void add_candidates(const struct quern_problem *problem, int32_t (*configs)[QUERN_MAX_KNOBS],
                           int max, int *count, int32_t *config)
{
    static const int32_t slabs[][2] = { { 16, 1 }, { 16, 4 }, { 32, 1 },
                                        { 32, 2 }, { 64, 1 }, { 128, 1 } };
    config[WGMMA] = 1, config[BV] = 64, config[SPLIT] = 1;
    for (config[STAGES] = 4; config[STAGES] >= 2; config[STAGES]--)
        add_candidate(problem, configs, max, count, config);
    config[WGMMA] = 0;
    for (int i = 0; i < (int)(sizeof(slabs) / sizeof(slabs[0])); i++) {
        config[BV] = slabs[i][0], config[SPLIT] = slabs[i][1];
        for (config[STAGES] = 2; config[STAGES] >= 1; config[STAGES]--)
            add_candidate(problem, configs, max, count, config);
    }
}

static int candidates(const struct quern_problem *problem, int32_t (*configs)[QUERN_MAX_KNOBS],
                      int max)
{
    int32_t config[QUERN_MAX_KNOBS] = { 0 };
    int count = 0;
    for (config[CHUNK] = 64; config[CHUNK] >= 16; config[CHUNK] /= 2) {
        int32_t segment = segment_for(problem, config[CHUNK]);
        config[SEGMENT] = 0;
        add_candidates(problem, configs, max, &count, config);
        for (int i = -1; i <= 1 && segment > 1; i++) {
            config[SEGMENT] = i < 0 ? segment / 2 : segment << i;
            add_candidates(problem, configs, max, &count, config);
        }
    }
    return count;
}

/* ---- Plan and bind ---- */

struct define {
    const char *name;
    int64_t value;
};

static void define_all(struct quern_step *step, const struct define *defines, size_t count)
{
    for (size_t i = 0; i < count; i++)
        quern_step_define(step, defines[i].name, defines[i].value);
}

static struct quern_step *add_intra_step(const struct quern_problem *problem, const int32_t *config,
                                         struct quern_plan *plan, const char *name,
                                         const char *entry)
{
    const struct values *v = values_of(problem->bucket);
    const uint8_t *alignment = problem->alignment;
    const struct define defines[] = {
        { "KEY_WIDTH", v->k },
        { "VALUE_WIDTH", v->v },
        { "DTYPE", v->dtype },
        { "G_DTYPE", v->g },
        { "BETA_DTYPE", v->beta },
        { "IS_INDEX_64", v->index == QUERN_I64 },
        { "GATE", v->gate },
        { "DECAY", v->decay },
        { "L2NORM", v->l2norm },
        { "BETA_LOGITS", v->beta_logits },
        { "NEG_EIGVAL", v->neg_eigval },
        { "HAS_BIAS", v->gate && v->dt_bias },
        { "VARLEN", v->varlen },
        { "ALIGN_Q", alignment[ARRAY_q] },
        { "ALIGN_K", alignment[ARRAY_k] },
        { "ALIGN_V", alignment[ARRAY_v] },
        { "ALIGN_G", alignment[ARRAY_g] },
        { "CHUNK", config[CHUNK] },
        { "WGMMA", config[WGMMA] },
        { "INTRA_BLOCKS", intra_blocks(problem, config[CHUNK]) },
    };
    struct quern_step *step = quern_plan_kernel(plan, name, "kda/kda_prefill_intra.cu", entry);
    define_all(step, defines, sizeof(defines) / sizeof(defines[0]));
    return step;
}

static struct quern_step *add_state_step(const struct quern_problem *problem, const int32_t *config,
                                         struct quern_plan *plan, const char *name,
                                         const char *entry)
{
    const struct values *v = values_of(problem->bucket);
    const uint8_t *alignment = problem->alignment;
    const struct define defines[] = {
        { "KEY_WIDTH", v->k },
        { "VALUE_WIDTH", v->v },
        { "DTYPE", v->dtype },
        { "STATE_DTYPE", v->state },
        { "IS_INDEX_64", v->index == QUERN_I64 },
        { "LAYOUT", v->layout },
        { "VARLEN", v->varlen },
        { "POOL", v->pool },
        { "HAS_BEFORE", v->pool || v->initial },
        { "HAS_AFTER", v->pool || v->final },
        { "CHUNK_STATES", v->chunk_states },
        { "ALIGN_O", alignment[ARRAY_o] },
        { "ALIGN_BEFORE", alignment[v->pool ? ARRAY_states : ARRAY_initial_state] },
        { "ALIGN_AFTER", alignment[v->pool ? ARRAY_states : ARRAY_final_state] },
        { "ALIGN_CHUNKS", alignment[ARRAY_chunk_states] },
    };
    struct quern_step *step = quern_plan_kernel(plan, name, "kda/kda_prefill_state.cu", entry);
    define_all(step, defines, sizeof(defines) / sizeof(defines[0]));
    quern_step_define_config(step, &kda_prefill_sm80, config);
    step->threads[0] = state_threads(config);
    step->shared_bytes = (uint32_t)state_shared(problem, config);
    return step;
}

/* The workspace: records, segments, the first chunk of each sequence. */
static int64_t records_bytes(const struct values *v, const int32_t *config, int64_t chunks)
{
    return chunks * v->hv * KDA_RECORD_BYTES(config[CHUNK], v->k, v->v);
}

static int64_t segments_bytes(const struct values *v, const int32_t *config, int64_t chunks)
{
    if (!config[SEGMENT])
        return 0;
    return segments_of(v, chunks, config[SEGMENT]) * v->hv * KDA_SEGMENT_BYTES(v->k, v->v);
}

static void plan(const struct quern_problem *problem, const int32_t *config,
                 struct quern_plan *plan)
{
    const struct values *v = values_of(problem->bucket);
    int64_t chunks = most_chunks(v, config[CHUNK]);
    struct quern_step *step;
    plan->workspace_bytes = records_bytes(v, config, chunks) + segments_bytes(v, config, chunks);
    if (v->varlen) {
        step = add_intra_step(problem, config, plan, "scan", "kda_prefill_scan");
        step->threads[0] = 1024;
        plan->workspace_bytes += (v->n + 1) * (int64_t)sizeof(int32_t);
    }
    step = add_intra_step(problem, config, plan, "intra", "kda_prefill_intra");
    step->threads[0] = (uint32_t)(v->k * config[CHUNK] / 32);
    step->shared_bytes = (uint32_t)intra_shared(problem, config[CHUNK]);
    if (config[SEGMENT]) {
        add_state_step(problem, config, plan, "ends", "kda_prefill_ends");
        step = add_state_step(problem, config, plan, "join", "kda_prefill_join");
        step->threads[0] = 128;
        step->shared_bytes = 0;
    }
    add_state_step(problem, config, plan, "state", "kda_prefill_state");
}

static struct kda_prefill_cuda_args arguments(const struct quern_binding *binding)
{
    const struct values *v = values_of(binding->spec);
    const int32_t *config = binding->config;
    const int64_t chunks = chunks_of(v, config[CHUNK]);
    char *segments = (char *)binding->workspace + records_bytes(v, config, chunks);
    const struct quern_array *arrays = binding->arrays;
    const struct quern_array *before = &arrays[v->pool ? ARRAY_states : ARRAY_initial_state];
    const struct quern_array *after = &arrays[v->pool ? ARRAY_states : ARRAY_final_state];
    const struct quern_array *chunk_states = &arrays[ARRAY_chunk_states];
    return (struct kda_prefill_cuda_args){
        .q = arrays[ARRAY_q].data,
        .k = arrays[ARRAY_k].data,
        .v = arrays[ARRAY_v].data,
        .g = arrays[ARRAY_g].data,
        .beta = arrays[ARRAY_beta].data,
        .A_log = arrays[ARRAY_A_log].data,
        .dt_bias = arrays[ARRAY_dt_bias].data,
        .cu_seqlens = arrays[ARRAY_cu_seqlens].data,
        .slots = arrays[ARRAY_slots].data,
        .before = before->data,
        .after = after->data,
        .o = arrays[ARRAY_o].data,
        .chunk_states = chunk_states->data,
        .records = binding->workspace,
        .segments = segments,
        .first = (int32_t *)(segments + segments_bytes(v, config, chunks)),
        .t = v->t,
        .n = v->n,
        .capacity = v->capacity,
        .chunks = chunks,
        .q_t = arrays[ARRAY_q].strides[0],
        .q_h = arrays[ARRAY_q].strides[1],
        .k_t = arrays[ARRAY_k].strides[0],
        .k_h = arrays[ARRAY_k].strides[1],
        .v_t = arrays[ARRAY_v].strides[0],
        .v_h = arrays[ARRAY_v].strides[1],
        .g_t = arrays[ARRAY_g].strides[0],
        .g_h = arrays[ARRAY_g].strides[1],
        .beta_t = arrays[ARRAY_beta].strides[0],
        .beta_h = arrays[ARRAY_beta].strides[1],
        .o_t = arrays[ARRAY_o].strides[0],
        .o_h = arrays[ARRAY_o].strides[1],
        .bias_h = arrays[ARRAY_dt_bias].strides[0],
        .before_n = before->strides[0],
        .before_h = before->strides[1],
        .before_row = before->strides[2],
        .after_n = after->strides[0],
        .after_h = after->strides[1],
        .after_row = after->strides[2],
        .chunks_n = chunk_states->strides[0],
        .chunks_h = chunk_states->strides[1],
        .chunks_row = chunk_states->strides[2],
        .hv = (int32_t)v->hv,
        .group = (int32_t)(v->hv / v->h),
        .scale = isnan(v->scale) ? (float)(1 / sqrt((double)v->k)) : (float)v->scale,
        .lower_bound = (float)v->lower_bound,
    };
}

static void bind(const struct quern_binding *binding, struct quern_launch *launch)
{
    const struct values *v = values_of(binding->spec);
    const struct kda_prefill_cuda_args args = arguments(binding);
    const int32_t bv = binding->config[BV], segment = binding->config[SEGMENT];
    const int64_t units = segments_of(v, args.chunks, segment) * v->hv;
    struct quern_step_launch *step = launch->steps;
    if (v->varlen) {
        QUERN_BIND(step, args, v->n > 0, 1, 1);
        step++;
    }
    QUERN_BIND(step, args, args.chunks * v->hv, 1, 1);
    step++;
    if (segment) {
        QUERN_BIND(&step[0], args, units * ((v->v + v->k) / bv), 1, 1);
        QUERN_BIND(&step[1], args, v->n * v->hv * (v->v / 16), 1, 1);
        step += 2;
    }
    QUERN_BIND(step, args, units * (v->v / bv), 1, 1);
}

const struct quern_variant kda_prefill_sm80 = {
    .name = "kda_prefill_sm80",
    .doc = "chunks in parallel, then states; tensor cores by mma.sync, on sm_90a wgmma; bf16, f16",
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
