/* The suites' own kernels. Source is found in tests/gpu by the context's `templates` option while
 * it is flattened, so the suites run in the repository root, as tools/run_tests.sh has it; what
 * they include comes from the embedded templates. */
#include "gpu_kernel.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "gpu_arrays.h"
#include "jit/build.h"
#include "jit/device.h"
#include "jit/target.h"

#define DIRECTORY "tests/gpu"

static const struct quern_family family = { .abi = QUERN_FAMILY_ABI,
                                            .name = "facts",
                                            .folder = "facts" };

/* ---- Compiling ----------------------------------------------------------------------------- */

static int emit(struct quern_context *ctx, const struct quern_plan *plan,
                const struct quern_target *target, const char *options, struct qn_unit *unit)
{
    struct qn_unit units[QUERN_MAX_STEPS];
    int unit_of[QUERN_MAX_STEPS], count;
    const char *given = ctx->options.templates;
    ctx->options.templates = DIRECTORY;
    int status = qn_emit(ctx, &family, plan, target, options, units, &count, unit_of);
    ctx->options.templates = given;
    if (!status)
        *unit = units[0];
    return status;
}

/* The status; *result is to be freed in any case. */
static int compile(struct quern_context *ctx, const struct quern_plan *plan,
                   const struct quern_target *target, struct qn_compile_result *result,
                   struct quern_message *why)
{
    const struct qn_backend *backend;
    struct qn_device *device;
    struct qn_unit unit;
    char options[512];
    memset(result, 0, sizeof(*result));
    assert_ok(ctx, qn_device_for(ctx, target, &backend, &device));
    backend->options(target, options, sizeof(options));
    assert_ok(ctx, emit(ctx, plan, target, options, &unit));
    const struct qn_compile_request request = { .source = unit.source,
                                                .source_bytes = unit.source_bytes,
                                                .target = target,
                                                .options = options,
                                                .timeout_s = 60 };
    int status = backend->compile(device, &request, result, why);
    qn_units_fini(&unit, 1);
    return status;
}

char *gpu_source_compile(struct quern_context *ctx, const char *source, const char *target)
{
    static struct quern_plan plan;
    struct qn_compile_result result;
    struct quern_target parsed;
    struct quern_message why;
    char *text = NULL;
    plan.step_count = 0;
    quern_plan_kernel(&plan, "facts", source, "none");
    ck_assert_int_eq(qn_target_parse(target, &parsed, &why), 0);
    int status = compile(ctx, &plan, &parsed, &result, &why);
    if (status)
        ck_assert_int_gt(asprintf(&text, "%s for %s: %s: %s\n%s", source, target,
                                  quern_status_name(status), why.text,
                                  result.log ? result.log : ""),
                         0);
    qn_compile_result_fini(&result);
    return text;
}

int gpu_source_load(struct quern_context *ctx, const char *source, const char *target,
                    size_t keep_bytes, struct quern_message *why)
{
    static struct quern_plan plan;
    struct qn_compile_result result;
    struct quern_target parsed;
    struct qn_module *module;
    plan.step_count = 0;
    quern_plan_kernel(&plan, "facts", source, "none");
    ck_assert_int_eq(qn_target_parse(target, &parsed, why), 0);
    ck_assert_msg(!compile(ctx, &plan, &parsed, &result, why), "%s", why->text);
    size_t bytes = keep_bytes ? keep_bytes : result.blob_bytes;
    int status = ctx->backend->load(ctx->device, &ctx->target, result.blob, bytes, &module, why);
    if (!status)
        ctx->backend->unload(ctx->device, module);
    qn_compile_result_fini(&result);
    return status;
}

/* ---- Kernels ------------------------------------------------------------------------------- */

static void function_find(struct gpu_kernel *kernel, int step)
{
    struct quern_context *ctx = kernel->ctx;
    struct quern_message why;
    int status = ctx->backend->function(ctx->device, kernel->module, kernel->plan.steps[step].entry,
                                        &kernel->functions[step], &why);
    ck_assert_msg(!status, "%s: %s", kernel->plan.steps[step].entry, why.text);
}

void gpu_kernel_open(struct gpu_kernel *kernel, struct quern_context *ctx, const char *source,
                     const char *entry)
{
    struct qn_compile_result result;
    struct quern_message why;
    memset(kernel, 0, sizeof(*kernel));
    kernel->ctx = ctx;
    quern_plan_kernel(&kernel->plan, entry, source, entry);
    gpu_kernel_shape(kernel, 0, 1, 128, 0, 0);
    int status = compile(ctx, &kernel->plan, &ctx->target, &result, &why);
    ck_assert_msg(!status, "%s: %s\n%s", source, why.text, result.log ? result.log : "");
    status = ctx->backend->load(ctx->device, &ctx->target, result.blob, result.blob_bytes,
                                &kernel->module, &why);
    ck_assert_msg(!status, "%s: %s", source, why.text);
    kernel->report = result.report;
    result.report = NULL;
    qn_compile_result_fini(&result);
    function_find(kernel, 0);
}

void gpu_kernel_add(struct gpu_kernel *kernel, const char *entry)
{
    int step = kernel->plan.step_count;
    quern_plan_kernel(&kernel->plan, entry, kernel->plan.steps[0].source, entry);
    gpu_kernel_shape(kernel, step, 1, 128, 0, 0);
    function_find(kernel, step);
}

void gpu_kernel_close(struct gpu_kernel *kernel)
{
    kernel->ctx->backend->unload(kernel->ctx->device, kernel->module);
    free(kernel->report);
}

void gpu_kernel_shape(struct gpu_kernel *kernel, int step, int blocks, int threads, int cluster,
                      int shared_bytes)
{
    struct quern_step *plan = &kernel->plan.steps[step];
    plan->threads[0] = (uint32_t)threads;
    plan->threads[1] = plan->threads[2] = 1;
    plan->cluster[0] = (uint32_t)cluster;
    plan->cluster[1] = plan->cluster[2] = cluster ? 1 : 0;
    plan->shared_bytes = (uint32_t)shared_bytes;
    kernel->launch.steps[step].grid[0] = (uint32_t)blocks;
    kernel->launch.steps[step].grid[1] = kernel->launch.steps[step].grid[2] = 1;
}

void gpu_kernel_map(struct gpu_kernel *kernel, int index, const struct gpu_box *box)
{
    struct quern_step_launch *step = &kernel->launch.steps[0];
    struct quern_tensor_map *map = &step->maps[index];
    if (step->map_count <= index)
        step->map_count = index + 1;
    memset(map, 0, sizeof(*map));
    map->data = box->data;
    map->args_offset =
        (uint32_t)(offsetof(struct fact_args, maps) + (size_t)index * sizeof(struct fact_map));
    map->dtype = box->dtype;
    map->rank = 3;
    map->swizzle = box->swizzle;
    map->dims[0] = box->columns;
    map->dims[1] = box->rows;
    map->dims[2] = box->planes;
    map->strides[0] = 1;
    map->strides[1] = box->stride;
    map->strides[2] = box->stride * box->rows;
    map->box[0] = box->box_columns;
    map->box[1] = box->box_rows;
    map->box[2] = 1;
}

int gpu_kernel_try(struct gpu_kernel *kernel, const struct fact_args *args,
                   struct quern_message *why)
{
    struct quern_context *ctx = kernel->ctx;
    for (int i = 0; i < kernel->plan.step_count; i++) {
        memcpy(kernel->launch.steps[i].args, args, sizeof(*args));
        kernel->launch.steps[i].args_bytes = sizeof(*args);
    }
    gpu_watch(kernel->plan.steps[0].entry);
    int status = ctx->backend->launch(ctx->device, &kernel->plan, kernel->functions,
                                      &kernel->launch, kernel->stream, QN_GRID_PARALLEL, why);
    if (!status)
        status = ctx->backend->synchronize(ctx->device, kernel->stream, why);
    gpu_watch(NULL);
    return status;
}

void gpu_kernel_run(struct gpu_kernel *kernel, const struct fact_args *args)
{
    struct quern_message why;
    int status = gpu_kernel_try(kernel, args, &why);
    ck_assert_msg(!status, "%s: %s", kernel->plan.steps[0].entry, why.text);
}

bool gpu_serves(const char *target)
{
    struct quern_options options = QUERN_OPTIONS_INIT;
    struct quern_context *ctx;
    struct quern_target parsed;
    struct quern_message why;
    const char *device = getenv("QUERN_TEST_DEVICE");
    bool is_served = true;
    options.device = device ? device : "cuda";
    options.cache = "";
    if (!quern_context_create(&options, &ctx))
        is_served = !qn_target_parse(target, &parsed, &why) &&
                    !ctx->backend->accepts(ctx->device, &parsed, &why);
    quern_context_destroy(ctx);
    return is_served;
}

int gpu_main(Suite *suite, const char *target)
{
    if (gpu_serves(target))
        return common_main(suite);
    printf("The device does not run %s.\n0 passed, 0 failed, 1 skipped\n", target);
    return 0;
}

/* ---- Memory -------------------------------------------------------------------------------- */

void *gpu_memory_make(struct quern_context *ctx, const void *from, size_t bytes)
{
    void *data, *pattern = malloc(bytes);
    ck_assert_ptr_nonnull(pattern);
    memset(pattern, 0xa5, bytes);
    assert_ok(ctx, quern_memory_alloc(ctx, bytes, &data));
    assert_ok(ctx, quern_memory_copy(ctx, data, from ? from : pattern, bytes));
    free(pattern);
    return data;
}

void gpu_memory_read(struct quern_context *ctx, void *to, const void *from, size_t bytes)
{
    assert_ok(ctx, quern_memory_copy(ctx, to, from, bytes));
}

void gpu_memory_take(struct quern_context *ctx, void *to, void *from, size_t bytes)
{
    gpu_memory_read(ctx, to, from, bytes);
    quern_memory_free(ctx, from, bytes);
}
