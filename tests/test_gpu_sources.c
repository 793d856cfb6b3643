/* The kernels of tests/gpu compile, with no device, for the targets that they are for. */
#include <stdio.h>
#include <stdlib.h>

#include "cuda_common.h"
#include "gpu_kernel.h"

static const struct source {
    const char *name, *target;
} sources[] = {
    { "fact_convert.cu", "sm_80" }, { "fact_convert.cu", "sm_90a" }, { "fact_warp.cu", "sm_80" },
    { "fact_warp.cu", "sm_120a" },  { "fact_warp.cu", "sm_90a" },    { "fact_tma.cu", "sm_90a" },
    { "fact_launch.cu", "sm_90a" }, { "fact_wgmma.cu", "sm_90a" },   { "fact_compare.cu", "sm_80" },
};
enum { SOURCE_COUNT = sizeof(sources) / sizeof(sources[0]) };

START_TEST(a_source_compiles_for_its_target)
{
    struct quern_context *ctx = common_context(NULL);
    char *said = gpu_source_compile(ctx, sources[_i].name, sources[_i].target);
    ck_assert_msg(!said, "%s", said);
    quern_context_destroy(ctx);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("gpu_sources");
    TCase *tcase = tcase_create("gpu_sources");
    tcase_set_timeout(tcase, 120);
    tcase_add_loop_test(tcase, a_source_compiles_for_its_target, 0, SOURCE_COUNT);
    suite_add_tcase(suite, tcase);
    return cuda_is_skipped(SOURCE_COUNT) ? 0 : common_main(suite);
}
