/* topk_softmax, topk_sigmoid and moe_fused_gate on a device beyond their cases
 * (test_families_gpu.c): tests/moe_route_edges.h says what. QUERN_TEST_DEVICE=cpu tries the suite
 * itself. */
#include "tests/gpu_arrays.h"
#include "tests/moe_route_edges.h"

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

START_TEST(rows_put_by_hand_are_routed_as_a_plain_choice_would)
{
    moe_route_edge_check(ctx, &seed, _i);
}
END_TEST

START_TEST(any_number_of_experts_is_routed_as_a_plain_choice_would)
{
    moe_route_shape_check(ctx, &seed, _i);
}
END_TEST

START_TEST(a_nan_stays_in_its_token_whose_weights_are_finite)
{
    moe_route_nan_check(ctx, &seed, _i);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("moe_route_gpu");
    TCase *tcase = tcase_create("moe_route");
    tcase_set_timeout(tcase, 300);
    tcase_add_unchecked_fixture(tcase, setup, teardown);
    tcase_add_loop_test(tcase, rows_put_by_hand_are_routed_as_a_plain_choice_would, 0,
                        moe_route_spec_count);
    tcase_add_loop_test(tcase, any_number_of_experts_is_routed_as_a_plain_choice_would, 0,
                        moe_route_shape_count);
    tcase_add_loop_test(tcase, a_nan_stays_in_its_token_whose_weights_are_finite, 0,
                        moe_route_spec_count);
    suite_add_tcase(suite, tcase);
    return common_main(suite);
}
