/* attention_decode, merge_state and merge_state_v2 on a device beyond their cases, which are
 * test_families_gpu.c's: tests/decode_edges.h says what. QUERN_TEST_DEVICE=cpu tries the suite. */
#include <stdlib.h>
#include <string.h>

#include "jit/context.h"
#include "tests/decode_edges.h"
#include "tests/gpu_arrays.h"

static struct quern_context *ctx, *checking;
static uint64_t seed;
static struct gpu_arrays sets[DECODE_SLOTS];
static bool is_open[DECODE_SLOTS];

static void close_set(int slot)
{
    if (is_open[slot])
        gpu_arrays_fini(&sets[slot]);
    is_open[slot] = false;
}

static struct decode_set open_set(struct quern_context *with, const struct quern_spec *spec,
                                  int slot, uint64_t set_seed)
{
    close_set(slot);
    gpu_arrays_init(&sets[slot], with, spec, &gpu_layouts[0], set_seed);
    is_open[slot] = true;
    return (struct decode_set){ &sets[slot].host, sets[slot].arrays };
}

static int run(struct quern_context *with, const struct quern_spec *spec, int slot,
               const char *config, const char *what)
{
    struct quern_request request = QUERN_REQUEST_INIT;
    struct quern_kernel *kernel;
    gpu_watch(what);
    gpu_arrays_upload(&sets[slot]);
    request.spec = spec;
    request.arrays = sets[slot].arrays;
    request.config = config;
    int status = config ? quern_prepare(with, &request, &kernel) : QUERN_OK;
    if (!status)
        status = config ? quern_launch(with, kernel, spec, sets[slot].arrays, NULL)
                        : quern_run(with, spec, sets[slot].arrays, NULL);
    gpu_arrays_check(&sets[slot], what);
    gpu_watch(NULL);
    return status;
}

static struct quern_check verify(struct quern_context *with, const struct quern_spec *spec,
                                 int slot, const char *what)
{
    struct quern_check check;
    struct quern_kernel *kernel;
    gpu_watch(what);
    gpu_arrays_upload(&sets[slot]);
    assert_ok(with, quern_dispatch(with, spec, sets[slot].arrays, &kernel));
    assert_ok(with, quern_verify(with, kernel, spec, sets[slot].arrays, seed, &check));
    gpu_arrays_check(&sets[slot], what);
    gpu_watch(NULL);
    return check;
}

/* No GPU variant of attention_decode takes f32. */
static bool is_served(const char *text)
{
    return ctx->target.kind != QUERN_CUDA || !strstr(text, "dtype=f32");
}

static struct decode_bed bed = {
    .seed = &seed, .open = open_set, .run = run, .verify = verify, .is_served = is_served
};

static void setup(void)
{
    unsetenv("QUERN_CHECK");
    bed.ctx = ctx = gpu_context(NULL);
    setenv("QUERN_CHECK", "1", 1);
    bed.checking = checking = gpu_context(NULL);
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

static void test_setup(void)
{
    gpu_watch(NULL);
}

int main(void)
{
    Suite *suite = suite_create("decode_gpu");
    TCase *tcase = decode_tcase(&bed);
    tcase_add_unchecked_fixture(tcase, setup, teardown);
    tcase_add_checked_fixture(tcase, test_setup, NULL);
    suite_add_tcase(suite, tcase);
    return common_main(suite);
}
