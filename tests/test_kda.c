/* kda_prefill beyond its cases: what two calls share, what a call may not touch, and that the check
 * sees the faults that others' kernels have had. Those are put into a copy of the device code that
 * a context takes by its `templates` option: the product holds nothing of them. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <quern/kda_prefill.h>

#include "common.h"
#include "jit/context.h"
#include "jit/embedded.h"
#include "kda_regimes.h"

static struct quern_context *ctx;
static uint64_t seed;

static void setup(void)
{
    ctx = common_context(NULL);
    seed = common_seed();
}

static void teardown(void)
{
    quern_context_destroy(ctx);
}

/* ---- A call and its arrays ----------------------------------------------------------------- */

enum {
    Q,
    K,
    V,
    G,
    BETA,
    A_LOG,
    DT_BIAS,
    CU_SEQLENS,
    INITIAL,
    SLOTS,
    O,
    FINAL,
    STATES,
    CHUNK_STATES
};

static void arrays_draw(struct common_arrays *set, const struct quern_spec *spec)
{
    common_arrays_init(set, ctx, spec, (struct common_layout){ 0, 0 }, common_random(&seed));
}

static void run(struct quern_context *with, const struct quern_spec *spec,
                const struct quern_array *arrays)
{
    struct quern_kernel *kernel;
    assert_ok(with, quern_dispatch(with, spec, arrays, &kernel));
    assert_ok(with, quern_launch(with, kernel, spec, arrays, NULL));
}

static struct quern_check check(struct quern_context *with, const struct quern_spec *spec,
                                const struct quern_array *arrays)
{
    struct quern_check result;
    struct quern_kernel *kernel;
    assert_ok(with, quern_dispatch(with, spec, arrays, &kernel));
    assert_ok(with, quern_verify(with, kernel, spec, arrays, seed, &result));
    return result;
}

/* ||a - b|| / ||b||. */
static double distance(const float *a, const float *b, int64_t count)
{
    double error = 0, norm = 0;
    for (int64_t i = 0; i < count; i++) {
        error += (double)(a[i] - b[i]) * (a[i] - b[i]);
        norm += (double)b[i] * b[i];
    }
    return sqrt(error / norm);
}

/* ---- The recurrence ------------------------------------------------------------------------ */

static const char *const dtypes[] = { "dtype=f32", "dtype=bf16", "dtype=f16" };
enum { DTYPES = sizeof(dtypes) / sizeof(dtypes[0]) };

START_TEST(every_regime_of_gates_matches_the_recurrence_at_lengths_around_blocks_and_chunks)
{
    char words[64], text[256];
    struct common_arrays set;
    snprintf(words, sizeof(words), "h=2 hv=2 k=64 v=64 %s", dtypes[_i % DTYPES]);
    kda_regime_text(&kda_regimes[_i / DTYPES], words, text, sizeof(text));
    struct quern_spec spec = common_spec(ctx, text);
    arrays_draw(&set, &spec);
    kda_regime_put(&kda_regimes[_i / DTYPES], &set, ctx, &spec, &seed);
    struct quern_check result = check(ctx, &spec, set.arrays);
    ck_assert_msg(result.ok, "%s, %s: %s", kda_regimes[_i / DTYPES].name, text, result.why);
    common_arrays_check(&set, text);
    common_arrays_fini(&set);
}
END_TEST

static const char *const gates[] = {
    "gate=none",
    "gate=softplus dt_bias=1",
    "gate=bounded lower_bound=-5",
    "gate=none decay=scalar",
};

/* Tokens [from, to) of a call of one sequence, from one state to another. */
static void run_part(const struct quern_spec *whole, const struct common_arrays *set, int64_t from,
                     int64_t to, float *before, float *after)
{
    struct quern_array arrays[QUERN_MAX_ARRAYS];
    struct quern_spec spec = *whole;
    char text[32];
    snprintf(text, sizeof(text), "%d", (int)(to - from));
    assert_ok(ctx, quern_spec_set(ctx, &spec, "t", text));
    memcpy(arrays, set->arrays, sizeof(arrays));
    const int by_token[] = { Q, K, V, G, BETA, O };
    for (size_t i = 0; i < sizeof(by_token) / sizeof(by_token[0]); i++) {
        const struct quern_shape *shape = &set->shapes[by_token[i]];
        int64_t row = shape->rank == 3 ? shape->dims[1] * shape->dims[2] : shape->dims[1];
        arrays[by_token[i]].data = (float *)arrays[by_token[i]].data + from * row;
        arrays[by_token[i]].size_bytes = (size_t)((to - from) * row) * sizeof(float);
    }
    arrays[INITIAL].data = before;
    arrays[FINAL].data = after;
    run(ctx, &spec, arrays);
}

START_TEST(one_call_gives_what_two_give_with_a_border_off_the_chunks)
{
    enum { T = 100, CUT = 37, STATE = 2 * 64 * 64 };
    char text[256];
    struct common_arrays set;
    float *middle = calloc(STATE, sizeof(float));
    float *o = calloc(T * 2 * 64, sizeof(float)), *after = calloc(STATE, sizeof(float));
    snprintf(text, sizeof(text), "kda_prefill t=%d h=2 hv=2 k=64 v=64 dtype=f32 initial=1 %s", T,
             gates[_i]);
    struct quern_spec spec = common_spec(ctx, text);
    arrays_draw(&set, &spec);
    run(ctx, &spec, set.arrays);
    memcpy(o, set.arrays[O].data, T * 2 * 64 * sizeof(float));
    memcpy(after, set.arrays[FINAL].data, STATE * sizeof(float));
    common_arrays_restore(&set);
    run_part(&spec, &set, 0, CUT, set.arrays[INITIAL].data, middle);
    run_part(&spec, &set, CUT, T, middle, set.arrays[FINAL].data);
    ck_assert_double_lt(distance(set.arrays[O].data, o, T * 2 * 64), 1e-5);
    ck_assert_double_lt(distance(set.arrays[FINAL].data, after, STATE), 1e-5);
    common_arrays_fini(&set);
    free(middle), free(o), free(after);
}
END_TEST

START_TEST(the_state_of_a_chunk_is_what_a_call_of_the_tokens_before_it_leaves)
{
    enum { T = 150, CHUNKS = 3, STATE = 2 * 64 * 64 };
    struct common_arrays set;
    float *kept = malloc(CHUNKS * STATE * sizeof(float)), *after = malloc(STATE * sizeof(float));
    struct quern_spec spec = common_spec(ctx, "kda_prefill t=150 h=2 hv=2 k=64 v=64 dtype=f32 "
                                              "initial=1 layout=vk chunk_states=1");
    arrays_draw(&set, &spec);
    run(ctx, &spec, set.arrays);
    common_arrays_check(&set, "chunk states");
    memcpy(kept, set.arrays[CHUNK_STATES].data, CHUNKS * STATE * sizeof(float));
    ck_assert_mem_eq(kept, set.arrays[INITIAL].data, STATE * sizeof(float));
    for (int chunk = 1; chunk < CHUNKS; chunk++) {
        run_part(&spec, &set, 0, 64 * chunk, set.arrays[INITIAL].data, after);
        ck_assert_double_lt(distance(kept + chunk * STATE, after, STATE), 1e-6);
    }
    common_arrays_fini(&set);
    free(kept), free(after);
}
END_TEST

START_TEST(in_text_hv_is_h_unless_it_is_given_and_kda_is_kda_prefill)
{
    struct quern_spec given = common_spec(ctx, "kda_prefill t=8 h=3 hv=3");
    struct quern_spec implied = common_spec(ctx, "kda t=8 h=3");
    struct quern_spec other = common_spec(ctx, "kda hv=6 t=8 h=3");
    ck_assert_mem_eq(&given, &implied, sizeof(given));
    assert_ok(ctx, quern_spec_set(ctx, &implied, "hv", "6"));
    ck_assert_mem_eq(&other, &implied, sizeof(other));
    assert_refused(ctx, quern_spec_parse(ctx, "kda_prefill t=8", &other), QUERN_INVALID,
                   "h: must be given");
    struct quern_kda_prefill_spec typed = QUERN_KDA_PREFILL_SPEC_INIT;
    typed.t = 8, typed.h = 3;
    assert_refused(ctx, quern_spec_validate(ctx, (const struct quern_spec *)(const void *)&typed),
                   QUERN_INVALID, "hv: must be given");
}
END_TEST

/* ---- What a call may touch ----------------------------------------------------------------- */

START_TEST(o_may_lie_on_v_and_the_final_states_on_the_initial)
{
    struct common_arrays set;
    struct quern_spec spec = common_spec(
        ctx, "kda_prefill t=90 n=2 h=1 hv=2 k=64 v=128 initial=1 gate=softplus l2norm=1");
    arrays_draw(&set, &spec);
    run(ctx, &spec, set.arrays);
    struct quern_array arrays[QUERN_MAX_ARRAYS];
    memcpy(arrays, set.arrays, sizeof(arrays));
    arrays[O] = arrays[V];
    arrays[FINAL] = arrays[INITIAL];
    run(ctx, &spec, arrays);
    ck_assert_mem_eq(arrays[O].data, set.arrays[O].data, set.arrays[O].size_bytes);
    ck_assert_mem_eq(arrays[FINAL].data, set.arrays[FINAL].data, set.arrays[FINAL].size_bytes);
    common_arrays_fini(&set);
}
END_TEST

/* q | k | v of a token and `padding` elements, as a convolution leaves them; o lies on v. */
static void in_one_buffer(const struct common_arrays *set, int64_t padding, char *buffer,
                          struct quern_array arrays[QUERN_MAX_ARRAYS])
{
    const struct quern_shape *shape = &set->shapes[Q];
    int64_t element = (int64_t)quern_dtype_bytes(shape->dtype), pitch = padding, at = 0;
    memcpy(arrays, set->arrays, sizeof(set->arrays));
    for (int i = Q; i <= V; i++)
        pitch += set->shapes[i].dims[1] * set->shapes[i].dims[2];
    for (int i = Q; i <= V; i++) {
        int64_t dim = set->shapes[i].dims[2], width = set->shapes[i].dims[1] * dim;
        arrays[i] = (struct quern_array){ buffer + at * element, 0, 3, { pitch, dim, 1 } };
        for (int64_t t = 0; t < shape->dims[0]; t++)
            memcpy(buffer + (t * pitch + at) * element,
                   (char *)set->arrays[i].data + t * width * element, (size_t)(width * element));
        at += width;
    }
    arrays[O] = arrays[V];
}

START_TEST(q_k_and_v_may_be_columns_of_one_buffer_and_o_lie_on_v)
{
    static const char *const texts[] = {
        "kda_prefill t=90 n=2 h=1 hv=2 k=64 v=128 gate=softplus l2norm=1 dtype=bf16",
        "kda_prefill t=150 n=3 h=2 hv=2 k=64 v=64 gate=bounded lower_bound=-5 varlen=1 dtype=f32",
    };
    for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
        struct common_arrays set;
        struct quern_array arrays[QUERN_MAX_ARRAYS];
        struct quern_spec spec = common_spec(ctx, texts[i]);
        arrays_draw(&set, &spec);
        const int64_t t = set.shapes[O].dims[0],
                      width = set.shapes[O].dims[1] * set.shapes[O].dims[2];
        for (int64_t padding = 0; padding <= 8; padding += 8) {
            char *buffer = malloc((size_t)t * 4096);
            memset(buffer, 0x3c, (size_t)t * 4096);
            in_one_buffer(&set, padding, buffer, arrays);
            struct quern_check judged = check(ctx, &spec, arrays);
            ck_assert_msg(judged.ok, "%s: %s", texts[i], judged.why);
            in_one_buffer(&set, padding, buffer, arrays);
            run(ctx, &spec, set.arrays);
            run(ctx, &spec, arrays);
            size_t element = quern_dtype_bytes(set.shapes[O].dtype);
            for (int64_t row = 0; row < t; row++)
                ck_assert_mem_eq((char *)arrays[O].data +
                                     (size_t)(row * arrays[O].strides[0]) * element,
                                 (char *)set.arrays[O].data + (size_t)(row * width) * element,
                                 (size_t)width * element);
            arrays[O].data = (char *)arrays[V].data - element;
            assert_refused(ctx, quern_run(ctx, &spec, arrays, NULL), QUERN_INVALID,
                           ": overlaps k=");
            free(buffer);
        }
        common_arrays_fini(&set);
    }
}
END_TEST

START_TEST(a_nan_stays_in_its_sequence_and_goes_on_not_back)
{
    enum { T = 90, EACH = 30, ROW = 2 * 64, BAD = EACH + 11 };
    struct common_arrays set;
    struct quern_spec spec =
        common_spec(ctx, "kda_prefill t=90 n=3 h=2 hv=2 k=64 v=64 dtype=f32 initial=1");
    arrays_draw(&set, &spec);
    run(ctx, &spec, set.arrays);
    float *o = malloc(T * ROW * sizeof(float));
    memcpy(o, set.arrays[O].data, T * ROW * sizeof(float));
    ((float *)set.arrays[K].data)[BAD * ROW + 5] = NAN; /* head 0 */
    run(ctx, &spec, set.arrays);
    for (int i = 0; i < T * ROW; i++) {
        float got = ((float *)set.arrays[O].data)[i];
        bool is_hit = i / ROW >= BAD && i / ROW < 2 * EACH && i % ROW < 64;
        ck_assert_msg(is_hit ? isnan(got) : got == o[i], "token %d, column %d: %g, was %g", i / ROW,
                      i % ROW, (double)got, (double)o[i]);
    }
    common_arrays_fini(&set);
    free(o);
}
END_TEST

START_TEST(whatever_the_index_arrays_hold_nothing_outside_is_touched)
{
    static const int32_t borders[] = { -7, 10, 2000000000, -2000000000, -3, -2000000000, -1 };
    static const int32_t slots[] = { 3, -1, 4, 2147483647, -2147483647, 1 };
    struct common_arrays set;
    struct quern_spec spec = common_spec(ctx, "kda_prefill t=48 n=6 h=1 hv=1 k=64 v=64 dtype=f32 "
                                              "varlen=1 pool=1 capacity=4");
    arrays_draw(&set, &spec);
    for (int i = 0; i < 7; i++)
        common_arrays_put(&set, CU_SEQLENS, i, borders[i]);
    for (int i = 0; i < 6; i++)
        common_arrays_put(&set, SLOTS, i, slots[i]);
    run(ctx, &spec, set.arrays);
    common_arrays_check(&set, "wild indices");
    struct quern_check result = check(ctx, &spec, set.arrays);
    ck_assert_msg(result.ok, "%s", result.why);
    common_arrays_fini(&set);
}
END_TEST

/* ---- Tuning in place ------------------------------------------------------------------------ */

/* Two of 4096 slots are in use: those are what is saved, and all come back bit for bit. Memory: the
 * private copies of the other arrays and the slots, of the 24 to 64 MiB that a pool takes. */
static const char *const pools[] = {
    "kda_prefill t=64 n=2 h=1 hv=1 k=64 v=64 varlen=1 pool=1 capacity=4096 layout=vk",
    "kda_decode n=2 h=1 hv=1 k=64 v=64 pool=1 capacity=4096",
    "causal_conv1d t=64 n=2 d=512 varlen=1 pool=1 capacity=4096 dtype=f32",
    "causal_conv1d_update n=2 d=512 capacity=4096 dtype=f32",
};
enum { POOL_COUNT = sizeof(pools) / sizeof(pools[0]), CAPACITY = 4096, ROOM = 1 << 20 };

/* The array of that name. */
static int array_of(const struct quern_spec *spec, const char *name)
{
    struct quern_family_description family;
    int i = 0;
    quern_family_describe(spec->family, &family);
    while (strcmp(family.arrays[i].name, name))
        i++;
    return i;
}

/* 1e30 in every slot but two; returns the floats of a slot. */
static int64_t pool_fill(struct common_arrays *set, int states, const int32_t *slots)
{
    const struct quern_shape *shape = &set->shapes[states];
    int64_t slot = qn_shape_count(shape) / CAPACITY;
    for (int64_t i = 0; i < slot * CAPACITY; i++) {
        if (i / slot != slots[0] && i / slot != slots[1])
            ((float *)set->arrays[states].data)[i] = 1e30f;
    }
    return slot;
}

START_TEST(restore_value_saves_only_the_slots_of_the_call_and_gives_every_bit_back)
{
    struct quern_tune_options options = QUERN_TUNE_OPTIONS_INIT;
    struct quern_request request = QUERN_REQUEST_INIT;
    struct quern_tune_result result;
    struct common_arrays set;
    struct quern_spec spec = common_spec(ctx, pools[_i]);
    arrays_draw(&set, &spec);
    int pool = array_of(&spec, "states");
    common_arrays_put(&set, array_of(&spec, "slots"), 0, 77);
    common_arrays_put(&set, array_of(&spec, "slots"), 1, 4095);
    if (strstr(pools[_i], "varlen")) /* tokens in both, so that both states change */
        for (int i = 0; i <= 2; i++)
            common_arrays_put(&set, array_of(&spec, "cu_seqlens"), i, 30 * i + (i == 2) * 4);
    const int32_t *slots = set.arrays[array_of(&spec, "slots")].data;
    float *states = set.arrays[pool].data, *kept = malloc(set.arrays[pool].size_bytes);
    int64_t slot = pool_fill(&set, pool, slots);
    memcpy(kept, states, set.arrays[pool].size_bytes);
    request.spec = &spec;
    request.arrays = set.arrays;
    options.memory_bytes = ROOM;
    assert_ok(ctx, quern_tune(ctx, &request, &options, &result));
    ck_assert_int_eq(result.is_drawn, 0);
    ck_assert_int_eq(result.failed, 0);
    ck_assert_int_ge(result.candidates, 3);
    ck_assert_int_ge(result.scratch_bytes, 2 * slot * (int64_t)sizeof(float));
    ck_assert_int_le(result.scratch_bytes, ROOM);
    ck_assert_mem_eq(states, kept, set.arrays[pool].size_bytes);

    run(ctx, &spec, set.arrays);
    for (int64_t i = 0; i < CAPACITY; i++) {
        bool is_same = !memcmp(states + i * slot, kept + i * slot, (size_t)slot * sizeof(float));
        ck_assert_msg(is_same == (i != slots[0] && i != slots[1]), "slot %d", (int)i);
    }
    common_arrays_fini(&set);
    free(kept);
}
END_TEST

/* The bucket knows only that a scalar is given: what is tuned on must have the caller's. */
START_TEST(a_bounded_gate_is_tuned_on_inputs_that_are_drawn)
{
    struct quern_tune_options options = QUERN_TUNE_OPTIONS_INIT;
    struct quern_request request = QUERN_REQUEST_INIT;
    struct quern_tune_result result;
    struct quern_spec spec =
        common_spec(ctx, "kda_prefill t=33 h=1 hv=1 k=64 v=64 gate=bounded lower_bound=-5");
    request.spec = &spec;
    options.memory_bytes = 16 << 20;
    assert_ok(ctx, quern_tune(ctx, &request, &options, &result));
    ck_assert_int_eq(result.failed, 0);
}
END_TEST

/* ---- Faults --------------------------------------------------------------------------------- */

struct edit {
    const char *from, *to;
};

static const struct fault {
    const char *name;
    struct edit edits[5];
} faults[] = {
    { "none: but for a comment", { { "/* ---- 2. Scores", "/* ---- Scores" } } },
    { "e^g from the chunk's start, 2^g between its tokens",
      { { "    float beta[CHUNK];\n",
          "    float beta[CHUNK];\n    float mixed[CHUNK][KEY_WIDTH];\n" },
        { "        float beta = load_one_as_f32(",
          "        load_decay(w->mixed[i],"
          " element(G_DTYPE, args->g, t * args->g_t + head * args->g_h), 0, args->dt_bias,"
          " rate * 0.6931472f, args->lower_bound);\n        float beta = load_one_as_f32(" },
        { "factor(product * at(w->decay[base + i] + d))",
          "factor(product * at(w->mixed[base + i] + d))" },
        { "if (i > first)\n                chains_multiply(product, w->decay[i] + d);",
          "if (i > first)\n                chains_multiply(product, w->mixed[i] + d);" },
        { "chains_multiply(product, w->decay[j + 1] + d)",
          "chains_multiply(product, w->mixed[j + 1] + d)" } } },
    { "factors of a block of 16 from its first row, clamped to 2^-126 and 2^126",
      { { "/* ---- 3. Reach",
          "static void clamp_blocks(struct work *w, int64_t rows)\n{\n"
          "    for (int64_t i = 0; i < rows; i++)\n"
          "        for (int64_t j = i / 16 * 16; j <= i; j++) {\n"
          "            float sum_q = 0, sum_k = 0;\n"
          "            for (int64_t d = 0; d < KEY_WIDTH; d++) {\n"
          "                float row = 1, column = 1;\n"
          "                for (int64_t t = i / 16 * 16 + 1; t <= i; t++)\n"
          "                    row = row * w->decay[t][d] < 0x1p-126f ? 0x1p-126f"
          " : row * w->decay[t][d];\n"
          "                for (int64_t t = i / 16 * 16 + 1; t <= j; t++)\n"
          "                    column = column * w->decay[t][d] < 0x1p-126f ? 0x1p-126f"
          " : column * w->decay[t][d];\n"
          "                sum_q += w->q[i][d] * w->k[j][d] * (row / column);\n"
          "                sum_k += w->k[i][d] * w->k[j][d] * (row / column);\n"
          "            }\n"
          "            w->scores_q[i][j] = sum_q;\n"
          "            if (j < i)\n                w->scores_k[i][j] = sum_k;\n"
          "        }\n}\n\n/* ---- 3. Reach" },
        { "        reach_chunk(&w, rows);",
          "        clamp_blocks(&w, rows);\n        reach_chunk(&w, rows);" } } },
    { "a partial chunk's end taken at the last row of a whole one",
      { { "        chains_store(w->total + d, product);",
          "        for (int64_t i = rows; i < CHUNK; i++)\n"
          "            chains_multiply(product, w->decay[i] + d);\n"
          "        chains_store(w->total + d, product);" } } },
    { "what lies above the diagonal of the scores read as if it were zero",
      { { "    struct work w;", "    struct work w;\n"
                                "    __builtin_memset(w.scores_q, 0x41, sizeof(w.scores_q));\n"
                                "    __builtin_memset(w.x, 0, sizeof(w.x));" },
        { "for (int s = 0; s <= r; s++)", "for (int s = 0; s < PRODUCT_ROWS; s++)" } } },
};
enum { FAULT_COUNT = sizeof(faults) / sizeof(faults[0]) };

/* text with the only place of `from` replaced; malloc'ed. */
static char *edited(const char *text, const struct edit *edit)
{
    const char *place = strstr(text, edit->from);
    ck_assert_msg(place && !strstr(place + 1, edit->from), "not there once: %s", edit->from);
    char *result = malloc(strlen(text) + strlen(edit->to) + 1);
    ck_assert_ptr_nonnull(result);
    sprintf(result, "%.*s%s%s", (int)(place - text), text, edit->to, place + strlen(edit->from));
    return result;
}

/* Writes the file of the vectors' device code that holds what the edit replaces below the folder,
 * as the edits before left it. */
static void fault_put(const char *folder, const struct edit *edit, char **texts)
{
    for (int i = 0; i < qn_embedded_template_count; i++) {
        const struct qn_embedded_file *file = &qn_embedded_templates[i];
        const char *text = texts[i] ? texts[i] : file->text;
        char name[256];
        if (strncmp(file->path, "kda/kda_prefill_", 16) || strstr(file->path, "_amx") ||
            !strstr(text, edit->from))
            continue;
        char *changed = edited(text, edit);
        snprintf(name, sizeof(name), "%s/%s", folder, file->path);
        char *path = common_scratch_path(name);
        common_file_write(path, changed);
        free(path);
        free(texts[i]);
        texts[i] = changed;
        return;
    }
    ck_abort_msg("nowhere: %s", edit->from);
}

/* A folder with the templates that the fault is in, malloc'ed. */
static char *fault_folder(const struct fault *fault, int number)
{
    char **texts = calloc((size_t)qn_embedded_template_count, sizeof(*texts)), folder[32];
    snprintf(folder, sizeof(folder), "fault%d", number);
    for (int i = 0; i < 5 && fault->edits[i].from; i++)
        fault_put(folder, &fault->edits[i], texts);
    for (int i = 0; i < qn_embedded_template_count; i++)
        free(texts[i]);
    free(texts);
    return common_scratch_path(folder);
}

START_TEST(a_known_fault_of_others_fails_the_check)
{
    const struct fault *fault = &faults[_i];
    struct quern_options options = QUERN_OPTIONS_INIT;
    struct quern_request request = QUERN_REQUEST_INIT;
    struct quern_kernel *kernel;
    struct quern_check result;
    struct common_arrays set;
    char *folder = fault_folder(fault, _i);
    options.templates = folder;
    struct quern_context *with = common_context(&options);
    struct quern_spec spec = common_spec(with, "kda_prefill t=100 h=3 hv=3 gate=softplus l2norm=1");
    arrays_draw(&set, &spec);
    common_arrays_put(&set, A_LOG, 0, 2.5); /* a head that forgets 12 nats a token */
    request.spec = &spec;
    request.arrays = set.arrays;
    request.variant = "kda_prefill_cpu";
    request.config = "chunk=32,amx=0";
    assert_ok(with, quern_prepare(with, &request, &kernel));
    assert_ok(with, quern_verify(with, kernel, &spec, set.arrays, seed, &result));
    ck_assert_msg(result.ok == (_i == 0), "%s: rel_err %g %s", fault->name, result.rel_err,
                  result.why);
    common_arrays_fini(&set);
    quern_context_destroy(with);
    free(folder);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("kda");
    TCase *tests = tcase_create("kda");
    const int gate_count = sizeof(gates) / sizeof(gates[0]);
    tcase_set_timeout(tests, 120);
    tcase_add_unchecked_fixture(tests, setup, teardown);
    tcase_add_loop_test(
        tests, every_regime_of_gates_matches_the_recurrence_at_lengths_around_blocks_and_chunks, 0,
        DTYPES * kda_regime_count);
    tcase_add_loop_test(tests, one_call_gives_what_two_give_with_a_border_off_the_chunks, 0,
                        gate_count);
    tcase_add_test(tests, the_state_of_a_chunk_is_what_a_call_of_the_tokens_before_it_leaves);
    tcase_add_test(tests, in_text_hv_is_h_unless_it_is_given_and_kda_is_kda_prefill);
    tcase_add_test(tests, o_may_lie_on_v_and_the_final_states_on_the_initial);
    tcase_add_test(tests, q_k_and_v_may_be_columns_of_one_buffer_and_o_lie_on_v);
    tcase_add_test(tests, a_nan_stays_in_its_sequence_and_goes_on_not_back);
    tcase_add_test(tests, whatever_the_index_arrays_hold_nothing_outside_is_touched);
    tcase_add_loop_test(tests,
                        restore_value_saves_only_the_slots_of_the_call_and_gives_every_bit_back, 0,
                        POOL_COUNT);
    tcase_add_test(tests, a_bounded_gate_is_tuned_on_inputs_that_are_drawn);
    tcase_add_loop_test(tests, a_known_fault_of_others_fails_the_check, 0, FAULT_COUNT);
    suite_add_tcase(suite, tests);
    return common_main(suite);
}
