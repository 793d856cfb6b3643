/* attention_prefill and attention_extend on the CPU beyond their cases: attention_edges.h says
 * what; tests/gpu/test_attention_gpu.c says the same of a device. */
#include <stdlib.h>
#include <string.h>

#include "attention_edges.h"
#include "jit/context.h"

static struct quern_context *ctx, *checking;
static uint64_t seed;
static struct common_arrays sets[2];
static bool is_open[2];

static struct attention_set open_set(struct quern_context *with, const struct quern_spec *spec,
                                     int slot, uint64_t set_seed)
{
    if (is_open[slot])
        common_arrays_fini(&sets[slot]);
    common_arrays_init(&sets[slot], with, spec, (struct common_layout){ 0, 0 }, set_seed);
    is_open[slot] = true;
    return (struct attention_set){ &sets[slot], sets[slot].arrays };
}

static int run(struct quern_context *with, const struct quern_spec *spec, int slot,
               const char *what)
{
    common_doing(what);
    int status = quern_run(with, spec, sets[slot].arrays, NULL);
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

static struct attention_bed bed = {
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
    for (int i = 0; i < 2; i++) {
        if (is_open[i])
            common_arrays_fini(&sets[i]);
        is_open[i] = false;
    }
    quern_context_destroy(ctx);
    quern_context_destroy(checking);
}

/* Their differences, not they, are rounded to what a weight depends on. */
static const char *const huge_scores[] = {
    "attention_prefill sq=70 sk=150 hq=2 d=64 causal=1 scale=1e10 lse=1",
    "attention_prefill sq=70 sk=150 hq=2 d=64 scale=-1e10 lse=1 dtype=f16",
    "attention_prefill sq=70 hq=2 d=64 scale=1e34 window=9 sinks=1 lse=1 dtype=f32",
    "attention_extend t=70 hq=2 d=64 pages=9 scale=1e10 kv_dtype=e4m3 kv_scale=head lse=1",
};
enum { HUGE_SCORES = sizeof(huge_scores) / sizeof(huge_scores[0]) };

START_TEST(scores_of_any_magnitude_are_weighed)
{
    struct quern_spec spec = common_spec(ctx, huge_scores[_i]);
    bed.open(ctx, &spec, 0, seed);
    struct quern_check check = verify(ctx, &spec, 0, huge_scores[_i]);
    ck_assert_msg(check.ok, "%s: %s", huge_scores[_i], check.why);
}
END_TEST

static const struct {
    const char *words, *implied;
} implications[] = {
    { "attention hq=4 sq=8", "sk=8 hq=4 hkv=4 d=128 dv=128" },
    { "attention hq=4 sq=8 d=64", "d=64 dv=64" },
    { "attention hq=4 d=192 sq=8", "d=192 dv=128" },
    { "attention sq=8 hq=4 dv=192 d=192", "d=192 dv=192" },
    { "attention_extend hq=4 pages=20 t=8 b=3", "max_pages=7" },
    { "attention_extend hq=4 pages=20 t=0 b=0", "max_pages=0" },
    { "attention_extend hq=4 d=192 pages=20 t=8", "d=192 dv=128" },
    { "attention_extend hq=4 pages=20 t=8 prefix=indices indices=5", "max_pages=0" },
    { "attention_extend hq=4 pages=20 t=8 dtype=f32", "dtype=f32 kv_dtype=f32" },
    { "attention_extend hq=4 kv_dtype=e4m3 pages=20 t=8 dtype=f16", "dtype=f16 kv_dtype=e4m3" },
};
enum { IMPLICATIONS = sizeof(implications) / sizeof(implications[0]) };

START_TEST(what_is_not_said_follows_what_is_in_any_order)
{
    char text[512];
    struct quern_spec spec = common_spec(ctx, implications[_i].words);
    quern_spec_text(&spec, text, sizeof(text));
    ck_assert_msg(strstr(text, implications[_i].implied) != NULL, "%s gives %s",
                  implications[_i].words, text);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("attention");
    TCase *tcase = attention_tcase(&bed);
    tcase_add_unchecked_fixture(tcase, setup, teardown);
    tcase_add_loop_test(tcase, scores_of_any_magnitude_are_weighed, 0, HUGE_SCORES);
    tcase_add_loop_test(tcase, what_is_not_said_follows_what_is_in_any_order, 0, IMPLICATIONS);
    suite_add_tcase(suite, tcase);
    return common_main(suite);
}
