/* The CPU as a device: the table of jit/backend.h over the modules of this folder.
 *
 *     source --clang.c--> object --elf_check.c--> object --llvm.c--> code --grid.c--> run
 *                           |                       ^
 *                           +------- the store -----+       cpu_target.c: for whom, with what flags
 *
 * A device is a target, a profile, a compiler that is looked for when something is compiled, and an
 * LLVM that is loaded when the first artifact is. Opening one costs neither.
 *
 * Invariants
 *  - An object passes elf_check twice: after the compiler, so that what cannot be loaded is never
 *    stored, and before LLVM, since what is loaded may not be what was stored.
 *  - accepts() comes before anything is linked: code for another instruction set never gets here.
 *  - launch() takes no lock and allocates nothing.
 *
 * A qn_function is the address of a kernel's entry, no object: there is nothing to free and nothing
 * to follow on a launch. Streams mean nothing here; every call ends before it returns. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "jit/backend.h"
#include "jit/cpu/clang.h"
#include "jit/cpu/cpu.h"
#include "jit/cpu/llvm.h"
#include "jit/target.h"

enum { ALIGNMENT = 256, MAPPED_FROM_BYTES = 1 << 20 };

struct qn_device {
    struct quern_target target;
    struct quern_profile profile;
    struct qn_clang clang;
    pthread_mutex_t lock; /* llvm, until it is set */
    struct qn_llvm *llvm;
};

/* ---- The device ---------------------------------------------------------------------------- */

static int cpu_open(const struct qn_backend_options *options, struct qn_device **device,
                    struct quern_message *why)
{
    struct qn_device *made;

    if (options->threads < 0 || options->threads > QN_MOST_THREADS)
        return quern_refuse(why, "threads=%d: must be from 0 (all) to %d", options->threads,
                            QN_MOST_THREADS);
    made = calloc(1, sizeof *made);
    if (!made)
        return QN_CPU_FAIL(NO_MEMORY, why, "device=cpu: out of memory");
    int status = qn_clang_init(&made->clang, options, why);
    if (status) {
        free(made);
        return status;
    }
    pthread_mutex_init(&made->lock, NULL);
    qn_cpu_target_detect(&made->target);
    qn_cpu_profile_detect(options->threads ? options->threads : qn_grid_default_threads(),
                          &made->profile);
    *device = made;
    return 0;
}

static void cpu_close(struct qn_device *device)
{
    if (!device)
        return;
    qn_llvm_close(device->llvm);
    qn_clang_fini(&device->clang);
    pthread_mutex_destroy(&device->lock);
    free(device);
}

static void cpu_describe(const struct qn_device *device, struct quern_target *target,
                         struct quern_profile *profile)
{
    *target = device->target;
    *profile = device->profile;
}

static int cpu_accepts(const struct qn_device *device, const struct quern_target *target,
                       struct quern_message *why)
{
    return qn_cpu_target_accepts(&device->target, target, why);
}

/* ---- Compile ------------------------------------------------------------------------------- */

static int cpu_compiler(struct qn_device *device, char *identity, size_t bytes,
                        struct quern_message *why)
{
    return qn_clang_identity(&device->clang, identity, bytes, why);
}

static int cpu_compile(struct qn_device *device, const struct qn_compile_request *request,
                       struct qn_compile_result *result, struct quern_message *why)
{
    const char *function;
    int status = qn_clang_compile(&device->clang, request, result, why);

    if (status)
        return status;
    if (!qn_elf_check(result->blob, result->blob_bytes, request->target, &function, why))
        return 0;
    free(result->blob);
    result->blob = NULL;
    result->blob_bytes = 0;
    return QUERN_COMPILE;
}

/* ---- Load ---------------------------------------------------------------------------------- */

static int llvm_get(struct qn_device *device, struct qn_llvm **llvm, struct quern_message *why)
{
    int status = 0;

    pthread_mutex_lock(&device->lock);
    if (!device->llvm)
        status = qn_llvm_open(&device->llvm, why);
    *llvm = device->llvm;
    pthread_mutex_unlock(&device->lock);
    return status;
}

static int cpu_load(struct qn_device *device, const struct quern_target *target, const void *blob,
                    size_t blob_bytes, struct qn_module **module, struct quern_message *why)
{
    struct qn_llvm *llvm;
    const char *function;

    if (qn_cpu_target_accepts(&device->target, target, why))
        return QUERN_LOAD;
    int status = qn_elf_check(blob, blob_bytes, target, &function, why);
    if (!status)
        status = llvm_get(device, &llvm, why);
    if (!status)
        status = qn_llvm_link(llvm, blob, blob_bytes, function, module, why);
    return status;
}

static void cpu_unload(struct qn_device *device, struct qn_module *module)
{
    if (module)
        qn_llvm_unlink(device->llvm, module);
}

static int cpu_function(struct qn_device *device, struct qn_module *module, const char *entry,
                        struct qn_function **function, struct quern_message *why)
{
    struct quern_message reason;
    void *address;

    if (qn_llvm_lookup(device->llvm, module, entry, &address, &reason))
        return QN_CPU_FAIL(LOAD, why, "entry=%s: the artifact has no such function (%.300s)", entry,
                           reason.text);
    *function = address;
    return 0;
}

/* ---- Launch -------------------------------------------------------------------------------- */

static int run_memset(const struct quern_step_launch *step, const char *name,
                      struct quern_message *why)
{
    if (step->memset_bytes < 0 || (step->memset_bytes && !step->memset_data))
        return quern_refuse(why, "step=%s: memset of %lld bytes at %p", name,
                            (long long)step->memset_bytes, step->memset_data);
    if (step->memset_bytes)
        memset(step->memset_data, 0, (size_t)step->memset_bytes);
    return 0;
}

static int cpu_launch(struct qn_device *device, const struct quern_plan *plan,
                      struct qn_function *const *functions, struct quern_launch *launch,
                      void *stream, enum qn_grid_order order, struct quern_message *why)
{
    int status = 0;

    (void)stream;
    /* Kernels load vectors from their arguments: a launch in plain malloc memory would fault. */
    if ((uintptr_t)launch % _Alignof(struct quern_launch))
        return quern_refuse(why, "launch=%p: must be %zu-byte aligned", (const void *)launch,
                            _Alignof(struct quern_launch));
    for (int i = 0; i < plan->step_count && !status; i++) {
        const struct quern_step_launch *step = &launch->steps[i];
        if (plan->steps[i].kind == QUERN_STEP_MEMSET)
            status = run_memset(step, plan->steps[i].name, why);
        else
            status = qn_grid_run((qn_cpu_entry *)(uintptr_t)functions[i], step,
                                 device->profile.cores, order, why);
    }
    return status;
}

static int cpu_synchronize(struct qn_device *device, void *stream, struct quern_message *why)
{
    (void)device;
    (void)stream;
    (void)why;
    return 0;
}

static int cpu_is_capturing(struct qn_device *device, void *stream)
{
    (void)device;
    (void)stream;
    return 0;
}

/* Any address may be a kernel's: what is mapped is not known without trying. */
static int cpu_check_pointer(struct qn_device *device, const void *data, struct quern_message *why)
{
    (void)device;
    (void)data;
    (void)why;
    return 0;
}

static double now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return 1e9 * (double)now.tv_sec + (double)now.tv_nsec;
}

static int cpu_time_launch(struct qn_device *device, const struct quern_plan *plan,
                           struct qn_function *const *functions, struct quern_launch *launch,
                           void *stream, double *nanoseconds, struct quern_message *why)
{
    double start = now_ns();
    int status = cpu_launch(device, plan, functions, launch, stream, QN_GRID_PARALLEL, why);

    if (!status)
        *nanoseconds = now_ns() - start;
    return status;
}

/* ---- Memory -------------------------------------------------------------------------------- */

/* From 1 MiB up memory is mapped, for huge pages: a GEMM's operands miss the TLB otherwise. */
static void *cpu_alloc(struct qn_device *device, size_t bytes, void *stream)
{
    (void)device;
    (void)stream;
    if (bytes > SIZE_MAX / 2)
        return NULL;
    if (bytes < MAPPED_FROM_BYTES)
        return aligned_alloc(ALIGNMENT, (bytes + ALIGNMENT) / ALIGNMENT * ALIGNMENT);
    void *data = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (data == MAP_FAILED)
        return NULL;
    madvise(data, bytes, MADV_HUGEPAGE);
    return data;
}

static void cpu_free(struct qn_device *device, void *data, size_t bytes, void *stream)
{
    (void)device;
    (void)stream;
    if (data && bytes >= MAPPED_FROM_BYTES)
        munmap(data, bytes);
    else
        free(data);
}

static int cpu_copy(struct qn_device *device, void *to, const void *from, size_t bytes,
                    void *stream)
{
    (void)device;
    (void)stream;
    if (bytes)
        memmove(to, from, bytes);
    return 0;
}

static int cpu_fill(struct qn_device *device, void *data, int byte, size_t bytes, void *stream)
{
    (void)device;
    (void)stream;
    if (bytes)
        memset(data, byte, bytes);
    return 0;
}

static size_t cpu_free_bytes(struct qn_device *device)
{
    char line[128];
    unsigned long long kibibytes = 0;
    FILE *file = fopen("/proc/meminfo", "re");

    (void)device;
    while (file && !kibibytes && fgets(line, sizeof line, file))
        if (sscanf(line, "MemAvailable: %llu kB", &kibibytes) != 1)
            kibibytes = 0;
    if (file)
        fclose(file);
    return (size_t)kibibytes << 10;
}

/* ---- Doctor -------------------------------------------------------------------------------- */

/* Who is told, so that a fact takes one line here. */
struct audience {
    void (*fact)(void *user, const char *section, const char *name, const char *value);
    void *user;
};

static void tell(const struct audience *audience, const char *name, const char *value)
{
    audience->fact(audience->user, "cpu", name, value);
}

static void tell_number(const struct audience *audience, const char *name, int64_t value)
{
    char text[24];

    snprintf(text, sizeof text, "%lld", (long long)value);
    tell(audience, name, value ? text : "unknown");
}

static void tell_machine(const struct audience *audience, const struct qn_device *device)
{
    char target[QN_TARGET_TEXT_BYTES];

    qn_target_format(&device->target, target, sizeof target);
    tell(audience, "target", target);
    tell(audience, "model", device->profile.name);
    tell_number(audience, "cores", device->profile.cores);
    tell_number(audience, "l1_bytes", device->profile.l1_bytes);
    tell_number(audience, "l2_bytes", device->profile.l2_bytes);
    tell_number(audience, "l3_bytes", device->profile.l3_bytes);
}

/* Without a compiler, what is stored still runs: this does not make the device unusable. */
static void tell_clang(const struct audience *audience, struct qn_device *device)
{
    struct quern_message why;
    char identity[256], *path;

    if (qn_clang_find(&device->clang, &path, &why)) {
        tell(audience, "clang", why.text);
        return;
    }
    if (qn_clang_identity(&device->clang, identity, sizeof identity, &why)) {
        tell(audience, "clang", why.text);
    } else {
        tell(audience, "clang", path);
        tell(audience, "clang_version", identity);
    }
    free(path);
}

static void tell_device(const struct audience *audience, struct qn_device *device)
{
    struct quern_message why;
    struct qn_llvm *llvm;
    int status = llvm_get(device, &llvm, &why);

    tell(audience, "usable", status ? "no" : "yes");
    if (status)
        tell(audience, "reason", why.text);
    tell_machine(audience, device);
    tell_clang(audience, device);
    tell(audience, "llvm", status ? why.text : qn_llvm_path(llvm));
}

static void cpu_doctor(const struct qn_backend_options *options, struct qn_device *device,
                       void (*fact)(void *user, const char *section, const char *name,
                                    const char *value),
                       void *user)
{
    const struct audience audience = { fact, user };
    struct qn_device *own = NULL;
    struct quern_message why;

    if (!device && cpu_open(options, &own, &why)) {
        tell(&audience, "usable", "no");
        tell(&audience, "reason", why.text);
        return;
    }
    tell_device(&audience, device ? device : own);
    cpu_close(own);
}

const struct qn_backend qn_backend_cpu = {
    .name = "cpu",
    .kind = QUERN_CPU,
    .open = cpu_open,
    .close = cpu_close,
    .describe = cpu_describe,
    .accepts = cpu_accepts,
    .options = qn_cpu_target_options,
    .compiler = cpu_compiler,
    .compile = cpu_compile,
    .load = cpu_load,
    .unload = cpu_unload,
    .function = cpu_function,
    .launch = cpu_launch,
    .synchronize = cpu_synchronize,
    .is_capturing = cpu_is_capturing,
    .check_pointer = cpu_check_pointer,
    .alloc = cpu_alloc,
    .free = cpu_free,
    .copy = cpu_copy,
    .fill = cpu_fill,
    .free_bytes = cpu_free_bytes,
    .time_launch = cpu_time_launch,
    .doctor = cpu_doctor,
};
