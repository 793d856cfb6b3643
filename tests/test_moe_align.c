/* The families that sort, move and add routed rows, on the CPU beyond their cases:
 * moe_align_edges.h says what; tests/gpu/test_moe_align_gpu.c says the same of a device. */
#include <stdlib.h>

#include "jit/context.h"
#include "moe_align_edges.h"

static struct quern_context *ctx, *checking;
static uint64_t seed;

static void setup(void)
{
    unsetenv("QUERN_CHECK");
    ctx = common_context(NULL);
    setenv("QUERN_CHECK", "1", 1);
    checking = common_context(NULL);
    unsetenv("QUERN_CHECK");
    seed = common_seed();
}

static void teardown(void)
{
    quern_context_destroy(ctx);
    quern_context_destroy(checking);
}

static void edge_open(const struct moe_align_edge *edge, enum moe_align_pattern pattern,
                      struct quern_spec *spec, struct common_arrays *set)
{
    *spec = common_spec(ctx, edge->spec);
    common_arrays_init(set, ctx, spec, (struct common_layout){ 0, 0 }, common_random(&seed));
    moe_align_edge_put(set, spec, edge, pattern, &seed);
}

START_TEST(whatever_index_arrays_hold_matches_the_reference)
{
    const struct moe_align_edge *edge = &moe_align_edges[_i / MOE_ALIGN_PATTERNS];
    const enum moe_align_pattern pattern = _i % MOE_ALIGN_PATTERNS;
    struct quern_request request = QUERN_REQUEST_INIT;
    struct quern_kernel *kernel;
    struct quern_check check;
    struct common_arrays set;
    struct quern_spec spec;
    char text[256];
    moe_align_edge_text(edge, pattern, text, sizeof(text));
    edge_open(edge, pattern, &spec, &set);
    request.spec = &spec;
    request.arrays = set.arrays;
    request.config = edge->cpu;
    common_doing(text);
    assert_ok(ctx, quern_prepare(ctx, &request, &kernel));
    assert_ok(ctx, quern_verify(ctx, kernel, &spec, set.arrays, seed, &check));
    ck_assert_msg(check.ok, "%s: %s", text, check.why);
    common_arrays_check(&set, text);
    common_arrays_fini(&set);
}
END_TEST

START_TEST(with_quern_check_what_is_out_of_range_is_refused)
{
    const struct moe_align_edge *edge = &moe_align_edges[_i];
    struct common_arrays set;
    struct quern_spec spec;
    for (int pattern = 0; pattern < MOE_ALIGN_PATTERNS; pattern++) {
        edge_open(edge, (enum moe_align_pattern)pattern, &spec, &set);
        int status = quern_run(checking, &spec, set.arrays, NULL);
        if (pattern == MOE_ALIGN_WILD)
            assert_refused(checking, status, QUERN_INVALID, "]=");
        else if (pattern != MOE_ALIGN_NEAR)
            assert_ok(checking, status);
        common_arrays_check(&set, edge->spec);
        common_arrays_fini(&set);
    }
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("moe_align");
    TCase *tcase = tcase_create("moe_align");
    tcase_set_timeout(tcase, 60);
    tcase_add_unchecked_fixture(tcase, setup, teardown);
    tcase_add_loop_test(tcase, whatever_index_arrays_hold_matches_the_reference, 0,
                        moe_align_edge_count * MOE_ALIGN_PATTERNS);
    tcase_add_loop_test(tcase, with_quern_check_what_is_out_of_range_is_refused, 0,
                        moe_align_edge_count);
    suite_add_tcase(suite, tcase);
    return common_main(suite);
}
