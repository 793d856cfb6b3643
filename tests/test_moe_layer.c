/* moe beyond its cases, on the CPU: tests/moe_layer_edges.h says what. */
#include "moe_layer_edges.h"

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

START_TEST(tokens_that_all_go_to_the_same_experts_are_computed_and_repeat)
{
    moe_layer_crowd_check(ctx, &seed, _i);
}
END_TEST

START_TEST(an_expert_map_may_hold_anything)
{
    moe_layer_map_check(ctx, &seed, _i);
}
END_TEST

START_TEST(a_nan_in_x_stays_in_its_token)
{
    moe_layer_nan_check(ctx, &seed, _i);
}
END_TEST

START_TEST(biases_and_logits_may_be_no_numbers)
{
    moe_layer_bias_check(ctx, &seed, _i);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("moe_layer");
    TCase *tcase = tcase_create("moe_layer");
    tcase_set_timeout(tcase, 300);
    tcase_add_unchecked_fixture(tcase, setup, teardown);
    tcase_add_loop_test(tcase, tokens_that_all_go_to_the_same_experts_are_computed_and_repeat, 0,
                        moe_layer_spec_count);
    tcase_add_loop_test(tcase, an_expert_map_may_hold_anything, 0, moe_layer_spec_count);
    tcase_add_loop_test(tcase, a_nan_in_x_stays_in_its_token, 0, moe_layer_spec_count);
    tcase_add_loop_test(tcase, biases_and_logits_may_be_no_numbers, 0, moe_layer_spec_count);
    suite_add_tcase(suite, tcase);
    return common_main(suite);
}
