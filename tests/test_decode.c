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

int main(void)
{
    Suite *suite = suite_create("decode");
    TCase *tcase = decode_tcase(&bed);
    tcase_add_unchecked_fixture(tcase, setup, teardown);
    suite_add_tcase(suite, tcase);
    return common_main(suite);
}
