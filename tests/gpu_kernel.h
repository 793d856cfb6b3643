/* Kernels of the suites' own, written in tests/gpu/NAME.cu against templates/common/cuda:
 * flattened, compiled, loaded and launched by the modules that do so for families.
 *
 *     gpu_kernel_open(&kernel, ctx, "fact_tma.cu", "load_box");
 *     kernel.launch.steps[0] ...            grid, maps; kernel.plan.steps[0]: threads, cluster, ...
 *     gpu_kernel_run(&kernel, &args);       and wait
 *     gpu_kernel_close(&kernel);
 */
#ifndef GPU_KERNEL_H
#define GPU_KERNEL_H

#include <quern/family.h>

#include "common.h"
#include "gpu/fact_args.h"

struct gpu_kernel {
    struct quern_context *ctx;
    struct quern_plan plan;
    struct quern_launch launch;
    struct qn_module *module;
    struct qn_function *functions[QUERN_MAX_STEPS];
    void *stream; /* NULL: the default stream */
    char *report; /* the compiler's, a line an entry */
};

/* Compiles tests/gpu/`source` for the context's device, with `entry` as step 0: one block of 128
 * threads. Fails the test with the compiler's log. */
void gpu_kernel_open(struct gpu_kernel *kernel, struct quern_context *ctx, const char *source,
                     const char *entry);
/* One more step of the same source. */
void gpu_kernel_add(struct gpu_kernel *kernel, const char *entry);
void gpu_kernel_close(struct gpu_kernel *kernel);

/* Compiles tests/gpu/`source` for `target`, keeps the first `keep_bytes` bytes (0: all) of what
 * comes out, and loads that as code for the context's device. Returns what loading gives. */
int gpu_source_load(struct quern_context *ctx, const char *source, const char *target,
                    size_t keep_bytes, struct quern_message *why);

/* What the compiler said about `source` for a target: NULL if it compiled, else the refusal and the
 * log (malloc'ed). Needs no device. */
char *gpu_source_compile(struct quern_context *ctx, const char *source, const char *target);

void gpu_kernel_shape(struct gpu_kernel *kernel, int step, int blocks, int threads, int cluster,
                      int shared_bytes);
/* A tensor map in step 0's args.maps[index]: planes of rows of `columns` elements, rows `stride`
 * from each other and planes without a gap, read or written in boxes of one plane. */
struct gpu_box {
    const void *data;
    int dtype;
    int64_t columns, rows, planes, stride;
    int box_columns, box_rows;
    int swizzle;
};
void gpu_kernel_map(struct gpu_kernel *kernel, int index, const struct gpu_box *box);
/* Every step with these args on kernel->stream, and wait: the status, with `why` if it is not 0. */
int gpu_kernel_try(struct gpu_kernel *kernel, const struct fact_args *args,
                   struct quern_message *why);
/* The same; fails the test if it fails. */
void gpu_kernel_run(struct gpu_kernel *kernel, const struct fact_args *args);

/* Whether the device of gpu_context() runs code for `target`; true if there is no device, so that a
 * suite which asks goes on to say so. */
bool gpu_serves(const char *target);
/* Runs the suite, or says that it was skipped where the device does not run `target`. Returns what
 * main() does. */
int gpu_main(Suite *suite, const char *target);

/* Device memory: `bytes` bytes of `from`, or of 0xa5 if that is NULL. */
void *gpu_memory_make(struct quern_context *ctx, const void *from, size_t bytes);
void gpu_memory_read(struct quern_context *ctx, void *to, const void *from, size_t bytes);
/* The same and free it. */
void gpu_memory_take(struct quern_context *ctx, void *to, void *from, size_t bytes);

#endif
