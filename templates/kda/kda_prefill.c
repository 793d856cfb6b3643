/* kda_prefill: the gated delta rule over packed sequences. The family; a variant has its own files.
 *
 * A unit of the reference, and a block of the CPU's grid, is a value head of a sequence: nothing
 * passes between them. */
#define QUERN_DEF "kda/kda_prefill.def"
#include <quern/family_def.h>

#include <math.h>
#include <string.h>

#include "kda_indices.h"
#include "kda_kinds.h"
#include "kda_prefill.h"

/* ---- Rules --------------------------------------------------------------------------------- */

/* Grids count heads and sequences in 32 bits; the products of all sizes stay within 63. */
static int check_sizes(const struct values *v, struct quern_message *why)
{
    const struct {
        const char *name;
        int64_t value, most;
    } sizes[] = { { "t", v->t, INT64_C(1) << 32 },
                  { "n", v->n, INT64_C(1) << 24 },
                  { "hv", v->hv, 1 << 16 },
                  { "h", v->h, 1 << 16 },
                  { "capacity", v->capacity, INT64_C(1) << 24 } };
    for (int i = 0; i < (int)(sizeof(sizes) / sizeof(sizes[0])); i++) {
        if (sizes[i].value > sizes[i].most)
            return quern_refuse(why, "%s=%lld: must be at most %lld", sizes[i].name,
                                (long long)sizes[i].value, (long long)sizes[i].most);
    }
    return QUERN_OK;
}

static int check_width(const char *name, int64_t width, struct quern_message *why)
{
    if (width != 64 && width != 128 && width != 256)
        return quern_refuse(why, "%s=%lld: must be 64, 128 or 256", name, (long long)width);
    return QUERN_OK;
}

static int check_gate(const struct values *v, struct quern_message *why)
{
    if (v->gate == KDA_GATE_BOUNDED && !(v->lower_bound >= -5 && v->lower_bound < 0))
        return quern_refuse(why, "lower_bound=%g: must be from -5 up to, not including, 0",
                            v->lower_bound);
    if (v->gate != KDA_GATE_BOUNDED && !isnan(v->lower_bound))
        return quern_refuse(why, "lower_bound=%g: must not be given unless gate=bounded",
                            v->lower_bound);
    if (v->dt_bias && v->gate == KDA_GATE_NONE)
        return quern_refuse(why, "dt_bias=1: must be 0 with gate=none");
    return QUERN_OK;
}

static int check_states(const struct values *v, struct quern_message *why)
{
    if (v->pool && v->capacity < 1)
        return quern_refuse(why, "capacity=%lld: must be at least 1 with pool=1",
                            (long long)v->capacity);
    if (v->pool && v->initial)
        return quern_refuse(why, "initial=1: must be 0 with pool=1, whose slots hold the states");
    if (!v->pool && v->capacity)
        return quern_refuse(why, "capacity=%lld: must be 0 without pool=1", (long long)v->capacity);
    return QUERN_OK;
}

/* As many value heads as heads, unless it is said. */
static void implied(struct quern_spec *spec)
{
    struct values *v = (struct values *)(void *)spec->values;
    if (v->hv == QUERN_REQUIRED)
        v->hv = v->h;
}

static int validate(const struct quern_spec *spec, struct quern_message *why)
{
    const struct values *v = values_of(spec);
    if (check_sizes(v, why) || check_width("k", v->k, why) || check_width("v", v->v, why) ||
        check_gate(v, why) || check_states(v, why))
        return QUERN_INVALID;
    if (v->hv % v->h)
        return quern_refuse(why, "hv=%lld: must be a multiple of h=%lld", (long long)v->hv,
                            (long long)v->h);
    if (v->varlen && v->index == QUERN_I32 && v->t > INT32_MAX)
        return quern_refuse(why, "t=%lld: must be at most %d with index=i32", (long long)v->t,
                            INT32_MAX);
    if (v->t && !v->n)
        return quern_refuse(why, "t=%lld: must be 0 with n=0", (long long)v->t);
    if (!v->varlen && v->n && v->t % v->n)
        return quern_refuse(why, "t=%lld: must be a multiple of n=%lld without varlen=1",
                            (long long)v->t, (long long)v->n);
    return QUERN_OK;
}

/* By chunks of 64 tokens: powers of two up to 32 of them, up to 128, powers of two again. No kernel
 * is made for the pool's size: as many slots as sequences are what a call needs. */
static void bucket(struct quern_spec *spec)
{
    struct values *v = (struct values *)(void *)spec->values;
    v->n = quern_power_of_two_above(v->n);
    v->t = v->t < v->n ? v->n : v->t; /* a token each at least: t / n is whole */
    v->t = v->t > 2048 && v->t <= 8192 ? 8192 : quern_power_of_two_above(v->t);
    v->capacity = v->capacity ? v->n : 0;
}

/* ---- Which bytes --------------------------------------------------------------------------- */

static void touch_slot(const struct quern_array *states, const struct quern_shape *shape,
                       int64_t slot, struct quern_ranges *ranges)
{
    const int64_t bytes = (int64_t)quern_dtype_bytes(shape->dtype), *dims = shape->dims;
    const int64_t *strides = states->strides, row = dims[3] * bytes;
    for (int64_t head = 0; head < dims[1]; head++) {
        int64_t first = (slot * strides[0] + head * strides[1]) * bytes;
        if (strides[2] == dims[3]) {
            quern_ranges_add(ranges, first, first + dims[2] * row);
            continue;
        }
        for (int64_t r = 0; r < dims[2]; r++)
            quern_ranges_add(ranges, first + r * strides[2] * bytes,
                             first + r * strides[2] * bytes + row);
    }
}

/* Of the pool the slots in use. */
static void touch_pool(const struct values *v, const struct quern_array *states,
                       const struct quern_shape *shape, const int32_t *slots,
                       struct quern_ranges *ranges)
{
    for (int64_t i = 0; slots && i < v->n; i++) {
        if (slots[i] >= 0 && slots[i] < v->capacity)
            touch_slot(states, shape, slots[i], ranges);
    }
}

/* Where a sequence begins, from 0 to t. */
static int64_t border(const struct values *v, const void *cu_seqlens, int64_t sequence)
{
    int64_t at = v->t / v->n * sequence;
    if (v->varlen)
        at = v->index == QUERN_I64 ? ((const int64_t *)cu_seqlens)[sequence]
                                   : ((const int32_t *)cu_seqlens)[sequence];
    return at < 0 ? 0 : at > v->t ? v->t : at;
}

/* Of chunk_states the rows that are chunks. */
static void touch_chunks(const struct values *v, const struct quern_array *states,
                         const struct quern_shape *shape, const void *cu_seqlens,
                         struct quern_ranges *ranges)
{
    for (int64_t i = 0; (cu_seqlens || !v->varlen) && i < v->n; i++) {
        int64_t begin = border(v, cu_seqlens, i), end = border(v, cu_seqlens, i + 1);
        for (int64_t at = begin; at < end; at += KDA_PREFILL_CHUNK)
            touch_slot(states, shape,
                       begin / KDA_PREFILL_CHUNK + i + (at - begin) / KDA_PREFILL_CHUNK, ranges);
    }
}

static void touched(const struct quern_spec *spec, const struct quern_array *arrays,
                    const void *const *host, int index, struct quern_ranges *ranges)
{
    const struct values *v = values_of(spec);
    struct quern_shape shape;
    quern_def_shape(spec, index, &shape);
    if (index == ARRAY_states) {
        touch_pool(v, &arrays[index], &shape, host[ARRAY_slots], ranges);
        return;
    }
    if (index == ARRAY_chunk_states) {
        touch_chunks(v, &arrays[index], &shape, host[ARRAY_cu_seqlens], ranges);
        return;
    }
    int64_t last = 0;
    for (int d = 0; d < shape.rank; d++)
        last += (shape.dims[d] - 1) * arrays[index].strides[d];
    quern_ranges_add(ranges, 0, (last + 1) * (int64_t)quern_dtype_bytes(shape.dtype));
}

static int check_indices(const struct quern_spec *spec, const void *const *host,
                         struct quern_message *why)
{
    const struct values *v = values_of(spec);
    int status = kda_check_borders(host[ARRAY_cu_seqlens], v->index, v->n, v->t, why);
    return status ? status : kda_check_slots(host[ARRAY_slots], v->n, v->capacity, 1, why);
}

/* ---- Contents ------------------------------------------------------------------------------ */

/* splitmix64: from 0 to 1. */
static double draw(uint64_t *state)
{
    uint64_t x = *state += UINT64_C(0x9e3779b97f4a7c15);
    x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
    return (double)(x >> 11) * 0x1p-53;
}

/* Nearly normal, of mean 0 and variance 1. */
static double draw_normal(uint64_t *state)
{
    return (draw(state) + draw(state) + draw(state) + draw(state) - 2) * 1.7320508;
}

/* Rounded up or down to nearest; halves too small to be normal become 0. */
static void put(int dtype, void *data, int64_t at, double value)
{
    float single = (float)value;
    uint32_t bits, magnitude;
    memcpy(&bits, &single, sizeof(bits));
    magnitude = bits & 0x7fffffff;
    if (dtype == QUERN_F32)
        ((float *)data)[at] = single;
    else if (dtype == QUERN_BF16)
        ((uint16_t *)data)[at] = (uint16_t)((bits + 0x8000) >> 16);
    else
        ((uint16_t *)data)[at] =
            (uint16_t)((bits >> 16 & 0x8000) |
                       (magnitude < 0x38800000 ? 0 : (magnitude - 0x38000000 + 0x1000) >> 13));
}

/* Rows of queries or keys. Like what leaves a SiLU they lean to one side, so no two of them are
 * orthogonal and no output is a sum that cancels. Unless the call normalises them their norm is
 * below 1, as the recurrence wants it. */
static void draw_rows(const struct values *v, uint64_t state, void *data)
{
    double row[256];
    for (int64_t i = 0; i < v->t * v->h; i++) {
        double sum = 0, factor;
        for (int64_t d = 0; d < v->k; d++) {
            row[d] = draw_normal(&state) + 0.75;
            sum += row[d] * row[d];
        }
        factor = v->l2norm ? 0.25 + 4 * draw(&state) : 0.98 / sqrt(sum);
        for (int64_t d = 0; d < v->k; d++)
            put((int)v->dtype, data, i * v->k + d, row[d] * factor);
    }
}

/* The logarithm of a decay as it comes without a gate. Heads forget weakly, as a sigmoid does, or
 * strongly; now and then a token forgets nothing, or all. */
static double draw_decay(int64_t head, uint64_t *state)
{
    static const double strength[] = { 0.012, 0.7, 2.7, 11 };
    double chance = draw(state), value = -strength[head % 4] * 2 * draw(state);
    return chance < 0.02 ? 0 : chance < 0.022 ? -1000 : value;
}

static void draw_gates(const struct values *v, uint64_t state, void *data)
{
    int64_t width = v->decay ? 1 : v->k;
    for (int64_t i = 0; i < v->t * v->hv * width; i++)
        put((int)v->g, data, i,
            v->gate ? draw_normal(&state) : draw_decay(i / width % v->hv, &state));
}

/* Rates from 0.01 to 16. */
static void draw_rates(const struct values *v, uint64_t state, float *rates)
{
    for (int64_t head = 0; head < v->hv; head++)
        rates[head] = (float)(head % 3 == 0   ? log(1 + 15 * draw(&state))
                              : head % 3 == 1 ? log(0.01 + 0.09 * draw(&state))
                                              : log(0.1 + 0.9 * draw(&state)));
}

/* Sequences of different lengths, 0 and 1 among them; the last takes what is left. */
static void draw_borders(const struct values *v, uint64_t state, void *data)
{
    int64_t at = 0;
    for (int64_t i = 0; i <= v->n; i++) {
        int64_t mean = (v->t - at) / (v->n - i + 1);
        if (v->index == QUERN_I32)
            ((int32_t *)data)[i] = (int32_t)(i == v->n ? v->t : at);
        else
            ((int64_t *)data)[i] = i == v->n ? v->t : at;
        int64_t length = i % 5 == 3   ? 0
                         : i % 5 == 1 ? 1
                                      : (int64_t)(2 * (double)mean * draw(&state));
        at = at + length > v->t ? v->t : at + length;
    }
}

static int64_t common_divisor(int64_t a, int64_t b)
{
    return b ? common_divisor(b, a % b) : a;
}

/* Distinct, in no order, without a table: i -> (step i + first) mod capacity, step prime to it.
 * Sequences for which there is none have -1. */
static void draw_slots(const struct values *v, uint64_t state, int32_t *slots)
{
    int64_t first = (int64_t)(draw(&state) * (double)v->capacity), used = 0;
    int64_t step = 1 + (int64_t)(draw(&state) * (double)v->capacity);
    while (common_divisor(step, v->capacity) != 1)
        step++;
    for (int64_t i = 0; i < v->n; i++) {
        int is_kept = (i + first) % v->n < v->capacity;
        slots[i] = is_kept ? (int32_t)((step * used + first) % v->capacity) : -1;
        used += is_kept;
    }
}

static int inputs(const struct quern_spec *spec, int index, uint64_t seed, void *data)
{
    const struct values *v = values_of(spec);
    struct quern_shape shape;
    int64_t count = 1;
    quern_def_shape(spec, index, &shape);
    for (int d = 0; d < shape.rank; d++)
        count *= shape.dims[d];
    seed ^= (uint64_t)(index + 1) * UINT64_C(0xd1342543de82ef95);
    switch (index) {
    case ARRAY_q:
    case ARRAY_k:
        draw_rows(v, seed, data);
        return 1;
    case ARRAY_g:
        draw_gates(v, seed, data);
        return 1;
    case ARRAY_A_log:
        draw_rates(v, seed, data);
        return 1;
    case ARRAY_cu_seqlens:
        draw_borders(v, seed, data);
        return 1;
    case ARRAY_slots:
        draw_slots(v, seed, data);
        return 1;
    }
    for (int64_t i = 0; i < count; i++) {
        double value =
            index == ARRAY_beta && !v->beta_logits ? 0.1 + 0.85 * draw(&seed) : draw_normal(&seed);
        put(shape.dtype, data, i, value);
    }
    return 1;
}

/* ---- The check ----------------------------------------------------------------------------- */

static int64_t units(const struct quern_spec *spec)
{
    return values_of(spec)->n * values_of(spec)->hv;
}

/* With products of 16-bit operands and all else in f32 a bf16 call is off by up to 5e-3, an f16
 * call by an eighth of it; a state kept in 16 bits is rounded once more, within the bound. With
 * neg_eigval a step may turn the state about instead of shrinking it: what each chunk rounds adds
 * up for as long as the gates remember, to 6.7e-3 where that is 1000 tokens. */
static double tolerance(const struct quern_spec *spec, int index)
{
    const struct values *v = values_of(spec);
    double o = v->dtype == QUERN_F32 ? 1e-5 : v->dtype == QUERN_F16 ? 1e-3 : 5e-3;
    o *= v->neg_eigval && v->dtype != QUERN_F32 ? 2 : 1;
    double state = v->state == QUERN_F32 ? 0 : v->state == QUERN_BF16 ? 2.5e-3 : 5e-4;
    return index == ARRAY_o || index == ARRAY_chunk_states ? o : fmax(o, state);
}

static void cost(const struct quern_spec *spec, struct quern_cost *cost)
{
    const struct values *v = values_of(spec);
    double t = (double)v->t, k = (double)v->k, width = (double)v->v, hv = (double)v->hv;
    double size = (double)quern_dtype_bytes((int)v->dtype);
    double state = (double)v->n * hv * k * width * (double)quern_dtype_bytes((int)v->state);
    cost->flops = t * hv * (6 * k * width + 40 * (6 * k + 4 * width) + 2560);
    cost->bytes =
        t * (double)v->h * k * size * 2 +
        t * hv *
            (width * size * 2 + (v->decay ? 1 : k) * (double)quern_dtype_bytes((int)v->g) +
             (double)quern_dtype_bytes((int)v->beta)) +
        state * (double)((v->pool || v->initial) + (v->pool || v->final)) +
        (v->chunk_states ? (t / 64 + (double)v->n) * hv * k * width * size : 0);
}

static const struct quern_variant *const variants[] = { &kda_prefill_sm80, &kda_prefill_cpu, NULL };

const struct quern_family quern_family_kda_prefill = {
    QUERN_FAMILY_TABLES(kda_prefill),
    .folder = "kda",
    .doc = "gated delta rule over packed sequences, in chunks (KDA, GDN); also called kda",
    .variants = variants,
    .aliasable = 1u << ARRAY_o | 1u << ARRAY_final_state, /* over v, over initial_state: a block
                                                             reads a chunk, a state, then writes */
    .validate = validate,
    .bucket = bucket,
    .touched = touched,
    .check_indices = check_indices,
    .inputs = inputs,
    .units = units,
    .reference = kda_prefill_reference,
    .tolerance = tolerance,
    .cost = cost,
    .alias = "kda",
    .implied = implied,
};
