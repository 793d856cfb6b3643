/* attention_decode, merge_state and merge_state_v2 on the CPU beyond their cases:
 * decode_edges.h says what; tests/gpu/test_decode_gpu.c says the same of a device. */
#include <stdlib.h>

#include "decode_edges.h"
#include "jit/context.h"

static struct quern_context *ctx, *checking;
static uint64_t seed;
static struct common_arrays sets[DECODE_SLOTS];
static bool is_open[DECODE_SLOTS];

static void close_set(int slot)
{
    if (is_open[slot])
        common_arrays_fini(&sets[slot]);
    is_open[slot] = false;
}

static struct decode_set open_set(struct quern_context *with, const struct quern_spec *spec,
                                  int slot, uint64_t set_seed)
{
    close_set(slot);
    common_arrays_init(&sets[slot], with, spec, (struct common_layout){ 0, 0 }, set_seed);
    is_open[slot] = true;
    return (struct decode_set){ &sets[slot], sets[slot].arrays };
}

static int run(struct quern_context *with, const struct quern_spec *spec, int slot,
               const char *config, const char *what)
{
    struct quern_request request = QUERN_REQUEST_INIT;
    struct quern_kernel *kernel;
    common_doing(what);
    request.spec = spec;
    request.arrays = sets[slot].arrays;
    request.config = config;
    int status = config ? quern_prepare(with, &request, &kernel) : QUERN_OK;
    if (!status)
        status = config ? quern_launch(with, kernel, spec, sets[slot].arrays, NULL)
                        : quern_run(with, spec, sets[slot].arrays, NULL);
    common_arrays_check(&sets[slot], what);
    return status;
}

static struct quern_check verify(struct quern_context *with, const struct quern_spec *spec,
                                 int slot, const char *what)
{
    struct quern_check check;
    struct quern_kernel *kernel;
    common_doing(what);
    assert_ok(with, quern_dispatch(with, spec, sets[slot].arrays, &kernel));
    assert_ok(with, quern_verify(with, kernel, spec, sets[slot].arrays, seed, &check));
    common_arrays_check(&sets[slot], what);
    return check;
}

static bool is_served(const char *text)
{
    return text != NULL;
}

static struct decode_bed bed = {
    .seed = &seed, .open = open_set, .run = run, .verify = verify, .is_served = is_served
};

static void setup(void)
{
    unsetenv("QUERN_CHECK");
    bed.ctx = ctx = common_context(NULL);
    setenv("QUERN_CHECK", "1", 1);
    bed.checking = checking = common_context(NULL);
    unsetenv("QUERN_CHECK");
    seed = common_seed();
}

static void teardown(void)
{
    for (int i = 0; i < DECODE_SLOTS; i++)
        close_set(i);
    quern_context_destroy(ctx);
    quern_context_destroy(checking);
}

START_TEST(an_edge_matches_its_reference)
{
    decode_edge_check(&bed, _i);
}
END_TEST

START_TEST(a_sequence_alone_has_the_bits_that_it_has_in_a_batch)
{
    decode_alone_check(&bed, _i);
}
END_TEST

START_TEST(deterministic_bits_are_the_same_in_every_config)
{
    decode_configs_check(&bed, _i);
}
END_TEST

START_TEST(a_nan_in_any_input_of_a_sequence_stays_in_it)
{
    decode_nan_check(&bed, _i);
}
END_TEST

START_TEST(with_quern_check_bad_pages_and_lengths_are_refused_saying_where)
{
    decode_bad_check_refused(&bed, _i);
}
END_TEST

START_TEST(without_it_the_call_runs_and_no_byte_but_the_outputs_is_written)
{
    decode_bad_check_runs(&bed, _i);
}
END_TEST

START_TEST(a_shared_prefix_gives_what_its_tokens_give_in_every_table)
{
    decode_prefix_check(&bed, _i);
}
END_TEST

START_TEST(halves_of_the_keys_merged_are_attention_to_all)
{
    decode_halves_check(&bed, _i);
}
END_TEST

START_TEST(states_merged_in_place_have_the_same_bits)
{
    decode_merge_in_place_check(&bed, _i);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("decode");
    TCase *tcase = tcase_create("decode");
    tcase_set_timeout(tcase, 300);
    tcase_add_unchecked_fixture(tcase, setup, teardown);
    tcase_add_loop_test(tcase, an_edge_matches_its_reference, 0, decode_edge_count);
    tcase_add_loop_test(tcase, a_sequence_alone_has_the_bits_that_it_has_in_a_batch, 0,
                        decode_alone_count);
    tcase_add_loop_test(tcase, deterministic_bits_are_the_same_in_every_config, 0,
                        decode_alone_count);
    tcase_add_loop_test(tcase, a_nan_in_any_input_of_a_sequence_stays_in_it, 0, decode_nan_count);
    tcase_add_loop_test(tcase, with_quern_check_bad_pages_and_lengths_are_refused_saying_where, 0,
                        decode_bad_count);
    tcase_add_loop_test(tcase, without_it_the_call_runs_and_no_byte_but_the_outputs_is_written, 0,
                        decode_bad_count);
    tcase_add_loop_test(tcase, a_shared_prefix_gives_what_its_tokens_give_in_every_table, 0,
                        decode_prefix_count);
    tcase_add_loop_test(tcase, halves_of_the_keys_merged_are_attention_to_all, 0,
                        decode_halves_count);
    tcase_add_loop_test(tcase, states_merged_in_place_have_the_same_bits, 0, 2);
    suite_add_tcase(suite, tcase);
    return common_main(suite);
}
