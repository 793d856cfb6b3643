/* The families that sort, move and add routed rows, on a device beyond their cases, which are
 * test_families_gpu.c's: tests/moe_align_edges.h says what. QUERN_TEST_DEVICE=cpu tries the
 * suite. */
#include <stdlib.h>

#include "jit/context.h"
#include "tests/gpu_arrays.h"
#include "tests/moe_align_edges.h"

static struct quern_context *ctx;
static uint64_t seed;

static void setup(void)
{
    ctx = gpu_context(NULL);
    seed = common_seed();
}

static void teardown(void)
{
    quern_context_destroy(ctx);
}

static void test_setup(void)
{
    gpu_watch(NULL);
}

START_TEST(whatever_index_arrays_hold_matches_the_reference)
{
    const struct moe_align_edge *edge = &moe_align_edges[_i / MOE_ALIGN_PATTERNS];
    const enum moe_align_pattern pattern = _i % MOE_ALIGN_PATTERNS;
    const struct quern_spec spec = common_spec(ctx, edge->spec);
    struct quern_request request = QUERN_REQUEST_INIT;
    struct quern_kernel *kernel;
    struct quern_check check;
    struct gpu_arrays set;
    char text[256];
    moe_align_edge_text(edge, pattern, text, sizeof(text));
    gpu_watch(text);
    gpu_arrays_init(&set, ctx, &spec, &gpu_layouts[0], common_random(&seed));
    moe_align_edge_put(&set.host, &spec, edge, pattern, &seed);
    gpu_arrays_upload(&set);
    request.spec = &spec;
    request.arrays = set.arrays;
    request.config = ctx->target.kind == QUERN_CUDA ? edge->cuda : edge->cpu;
    assert_ok(ctx, quern_prepare(ctx, &request, &kernel));
    assert_ok(ctx, quern_verify(ctx, kernel, &spec, set.arrays, seed, &check));
    ck_assert_msg(check.ok, "%s: %s", text, check.why);
    gpu_arrays_check(&set, text);
    gpu_arrays_fini(&set);
    gpu_watch(NULL);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("moe_align_gpu");
    TCase *tcase = tcase_create("moe_align");
    tcase_set_timeout(tcase, 120);
    tcase_add_unchecked_fixture(tcase, setup, teardown);
    tcase_add_checked_fixture(tcase, test_setup, NULL);
    tcase_add_loop_test(tcase, whatever_index_arrays_hold_matches_the_reference, 0,
                        moe_align_edge_count * MOE_ALIGN_PATTERNS);
    suite_add_tcase(suite, tcase);
    return common_main(suite);
}
