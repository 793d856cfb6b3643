/* Weights packed ahead: what gemm_pack gives, fed to a gemm with packed=P, is the gemm on the plain
 * weights, bit for bit; shared by a batch too. templates/gemm. */
#include <stdio.h>
#include <string.h>

#include "common.h"

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

/* ---- One product, plain and packed --------------------------------------------------------- */

enum { A, B, BIAS, D }; /* arrays of gemm */
enum { PLAIN, PANELS }; /* of gemm_pack */

/* Configs that are legal with plain b as well, each for targets that have a feature. */
static const struct way {
    const char *feature, *dtypes, *b, *config;
} ways[] = {
    { "", "d=f32", "f32", "algo=0,amx=0,bf16_pairs=0,split_k=1,mr=2,mc=16,nc=64,kc=64" },
    { "", "d=bf16", "f32", "algo=0,amx=0,bf16_pairs=0,split_k=2,mr=2,mc=16,nc=32,kc=32" },
    { "+bf16", "a=bf16 b=bf16", "bf16",
      "algo=0,amx=0,bf16_pairs=1,split_k=1,mr=6,mc=12,nc=64,kc=64" },
    { "+amx", "a=bf16 b=bf16", "bf16",
      "algo=0,amx=1,bf16_pairs=1,split_k=1,mr=16,mc=32,nc=64,kc=64" },
    { "+amx", "a=bf16 b=bf16 d=bf16 bias=f32 accumulate=1", "bf16",
      "algo=0,amx=1,bf16_pairs=1,split_k=2,mr=32,mc=32,nc=32,kc=128" },
};
enum { WAYS = sizeof(ways) / sizeof(ways[0]) };
static const int panels[] = { 16, 32, 48, 64 };
static const char *const layouts[] = { "nt", "nn" };

struct product {
    int64_t m, n, k, batch;
    int panel;
    const char *layout;
    const struct way *way;
};

static bool is_here(const struct way *way)
{
    struct quern_spec spec = common_spec(ctx, "copy n=1");
    struct quern_request request = QUERN_REQUEST_INIT;
    struct quern_report report;
    struct quern_kernel *kernel;
    request.spec = &spec;
    assert_ok(ctx, quern_prepare(ctx, &request, &kernel));
    quern_kernel_report(kernel, &report);
    return strstr(report.target, way->feature) != NULL;
}

static struct quern_spec gemm_spec(const struct product *p, int packed)
{
    char text[256];
    snprintf(text, sizeof(text), "gemm m=%lld n=%lld k=%lld batch=%lld %s layout=%s packed=%d",
             (long long)p->m, (long long)p->n, (long long)p->k, (long long)p->batch, p->way->dtypes,
             packed ? "nt" : p->layout, packed);
    return common_spec(ctx, text);
}

static struct quern_spec pack_spec(const struct product *p, int64_t batch)
{
    char text[256];
    snprintf(text, sizeof(text), "gemm_pack n=%lld k=%lld batch=%lld b=%s layout=%s panel=%d",
             (long long)p->n, (long long)p->k, (long long)batch, p->way->b, p->layout, p->panel);
    return common_spec(ctx, text);
}

/* `plain` packed, in memory of the device. */
static void *pack(const struct quern_spec *spec, const struct quern_array *plain, size_t *bytes)
{
    struct quern_array arrays[QUERN_MAX_ARRAYS] = { [PLAIN] = *plain };
    struct quern_shape shape;
    assert_ok(ctx, quern_spec_shape(ctx, spec, PANELS, &shape));
    *bytes = quern_dtype_bytes(shape.dtype);
    for (int d = 0; d < shape.rank; d++)
        *bytes *= (size_t)shape.dims[d];
    assert_ok(ctx, quern_memory_alloc(ctx, *bytes, &arrays[PANELS].data));
    memset(arrays[PANELS].data, 0xa5, *bytes);
    arrays[PANELS].size_bytes = *bytes;
    assert_ok(ctx, quern_run(ctx, spec, arrays, NULL));
    return arrays[PANELS].data;
}

static void launch(const struct product *p, const struct quern_spec *spec,
                   const struct quern_array *arrays)
{
    struct quern_request request = QUERN_REQUEST_INIT;
    struct quern_kernel *kernel;
    char config[200];
    snprintf(config, sizeof(config), "%s,pack_b=1,nr=16", p->way->config);
    request.spec = spec;
    request.arrays = arrays;
    request.config = config;
    assert_ok(ctx, quern_prepare(ctx, &request, &kernel));
    assert_ok(ctx, quern_launch(ctx, kernel, spec, arrays, NULL));
}

/* is_shared: one b for the whole batch. */
static void compare(const struct product *p, bool is_shared)
{
    struct quern_spec plain = gemm_spec(p, 0), packed = gemm_spec(p, p->panel);
    struct quern_spec packing = pack_spec(p, is_shared ? 1 : p->batch);
    struct common_layout dense = { 0, 0 };
    struct quern_array arrays[QUERN_MAX_ARRAYS];
    struct common_arrays set;
    size_t bytes;
    common_arrays_init(&set, ctx, &plain, dense, common_random(&seed));
    if (is_shared) {
        set.arrays[B].rank = 3;
        set.arrays[B].strides[0] = 0;
    }
    memcpy(arrays, set.arrays, sizeof(arrays));
    arrays[B] = (struct quern_array){ .data = set.arrays[B].data };
    arrays[B].data = pack(&packing, &arrays[B], &bytes);
    if (is_shared) {
        struct quern_shape shape;
        assert_ok(ctx, quern_spec_shape(ctx, &packed, B, &shape));
        arrays[B].rank = 3;
        arrays[B].strides[1] = shape.dims[2];
        arrays[B].strides[2] = 1;
    }
    launch(p, &plain, set.arrays);
    common_arrays_keep(&set);
    common_arrays_restore(&set);
    launch(p, &packed, arrays);
    ck_assert_msg(common_arrays_differ(&set) < 0,
                  "m=%lld n=%lld k=%lld batch=%lld %s layout=%s panel=%d, %s: not the same bits",
                  (long long)p->m, (long long)p->n, (long long)p->k, (long long)p->batch,
                  p->way->dtypes, p->layout, p->panel, p->way->config);
    quern_memory_free(ctx, arrays[B].data, bytes);
    common_arrays_fini(&set);
}

static void random_sizes(struct product *p)
{
    p->m = common_between(&seed, 1, 70);
    p->n = common_between(&seed, 1, 150);
    p->k = common_between(&seed, 1, 300);
}

START_TEST(a_packed_product_has_the_bits_of_the_plain_one)
{
    struct product p = { .way = &ways[_i], .batch = 2 };
    for (int i = 0; i < 8 && is_here(p.way); i++) {
        random_sizes(&p);
        p.panel = panels[i / 2];
        p.layout = layouts[i % 2];
        compare(&p, false);
    }
}
END_TEST

START_TEST(a_batch_may_share_one_packed_b)
{
    struct product p = { .way = &ways[_i], .batch = 3, .panel = 32, .layout = layouts[_i % 2] };
    random_sizes(&p);
    if (is_here(p.way))
        compare(&p, true);
}
END_TEST

/* ---- What a packed spec costs, and what it draws ------------------------------------------- */

START_TEST(a_packed_product_is_one_step_without_workspace)
{
    static const char *const texts[] = { "gemm m=2048 n=2048 k=2048 packed=32",
                                         "gemm m=2048 n=2048 k=2048 a=bf16 b=bf16 packed=16" };
    for (int i = 0; i < 2; i++) {
        struct quern_spec spec = common_spec(ctx, texts[i]);
        struct quern_request request = QUERN_REQUEST_INIT;
        struct quern_report report;
        struct quern_kernel *kernel;
        request.spec = &spec;
        assert_ok(ctx, quern_prepare(ctx, &request, &kernel));
        quern_kernel_report(kernel, &report);
        ck_assert_int_eq(report.step_count, 1);
        ck_assert_uint_eq(quern_kernel_workspace(kernel), 0);
    }
}
END_TEST

/* bf16 multiplies what stands in the padding along k: it must have been drawn as zeros. */
START_TEST(a_drawn_packed_b_is_padded_with_zeros)
{
    static const char *const texts[] = { "gemm m=33 n=50 k=261 a=bf16 b=bf16 packed=48",
                                         "gemm m=2 n=7 k=3 batch=2 a=bf16 b=bf16 packed=16" };
    for (int i = 0; i < 2; i++) {
        struct quern_spec spec = common_spec(ctx, texts[i]);
        struct common_layout layout = { 0, 3 };
        struct common_arrays set;
        struct quern_kernel *kernel;
        struct quern_check check;
        common_arrays_init(&set, ctx, &spec, layout, common_random(&seed));
        assert_ok(ctx, quern_dispatch(ctx, &spec, set.arrays, &kernel));
        assert_ok(ctx, quern_verify(ctx, kernel, &spec, set.arrays, seed, &check));
        ck_assert_msg(check.ok, "%s: %s", texts[i], check.why);
        common_arrays_check(&set, texts[i]);
        common_arrays_fini(&set);
    }
}
END_TEST

/* ---- The suite ----------------------------------------------------------------------------- */

int main(void)
{
    Suite *suite = suite_create("gemm_packed");
    TCase *tcase = tcase_create("gemm_packed");
    tcase_set_timeout(tcase, 120);
    tcase_add_unchecked_fixture(tcase, setup, teardown);
    tcase_add_loop_test(tcase, a_packed_product_has_the_bits_of_the_plain_one, 0, WAYS);
    tcase_add_loop_test(tcase, a_batch_may_share_one_packed_b, 0, WAYS);
    tcase_add_test(tcase, a_packed_product_is_one_step_without_workspace);
    tcase_add_test(tcase, a_drawn_packed_b_is_padded_with_zeros);
    suite_add_tcase(suite, tcase);
    return common_main(suite);
}
