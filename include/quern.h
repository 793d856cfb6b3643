/* quern: kernels made at run time for your shapes, your dtypes and your processor.
 *
 *     #include <quern.h>
 *     #include <quern/gemm.h>
 *     #include <stdio.h>
 *
 *     int main(void)
 *     {
 *         static float a[64 * 256], b[128 * 256], d[64 * 128];
 *         struct quern_context *ctx;
 *         struct quern_options options = QUERN_OPTIONS_INIT;
 *         struct quern_gemm_spec spec = QUERN_GEMM_SPEC_INIT;
 *         struct quern_gemm_arrays arrays = { .a = { a }, .b = { b }, .d = { d } };
 *
 *         spec.m = 64, spec.n = 128, spec.k = 256;
 *         options.device = "cpu"; // the arrays are in host memory
 *         int status = quern_context_create(&options, &ctx);
 *         if (!status)
 *             status = quern_gemm(ctx, &spec, &arrays, NULL);
 *         if (status)
 *             fprintf(stderr, "%s\n", quern_errmsg(ctx));
 *         quern_context_destroy(ctx);
 *         return status != 0;
 *     }
 *
 * The first call of a spec compiles a kernel for its bucket and stores it; later calls, and later
 * processes, reuse it. Words (family, spec, bucket, config, plan, ...) are those of
 * docs/ARCHITECTURE.md.
 *
 * Read this first
 *  - A function returns QUERN_OK (0), a positive expected outcome (QUERN_MISS, QUERN_UNSUPPORTED)
 *    or a negative failure. The text is quern_errmsg(ctx): one line that names the parameter as
 *    name=value and what is allowed. The library never prints, exits or aborts.
 *  - Results come back through the last parameter and are written only on success, with one
 *    exception: quern_context_create(), as sqlite3_open() does it.
 *  - A context may be used by any number of threads at once; each thread has its own error text.
 *    quern_context_destroy() needs every other call, and the device work that calls began, to have
 *    ended. Do not use a context in a forked child: create a new one there.
 *  - A NULL that must not be is refused ("kernel=NULL: must be given"; of a NULL context without a
 *    text); what returns nothing then does nothing.
 *  - Sizes are in elements unless the name says bytes. Strides are in elements.
 *  - Everything obtained from a context (kernels, families, texts) lives until it is destroyed.
 *  - Until 1.0 a program must be built with the header of the library that it loads: structs may
 *    grow. The soname changes with the ABI; a size field turns a mismatch into an error.
 */
#ifndef QUERN_H
#define QUERN_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define QUERN_VERSION "0.1.0"
#define QUERN_API __attribute__((visibility("default")))
/* clang-format off */
#define QUERN_INIT(type) { .size = sizeof(type) } /* of the structs that have a size field */
/* clang-format on */

/* ---- Outcomes ------------------------------------------------------------------------------ */

#define QUERN_STATUS_LIST(X)                                                                       \
    X(OK, 0, "ok")                                                                                 \
    X(MISS, 1, "nothing stored under this key")                                                    \
    X(UNSUPPORTED, 2, "no variant serves this spec on this target")                                \
    X(CHECK_FAILED, 3, "the output differs from the reference")                                    \
    X(INVALID, -1, "invalid argument")                                                             \
    X(NO_MEMORY, -2, "out of memory")                                                              \
    X(NO_COMPILER, -3, "no usable compiler")                                                       \
    X(COMPILE, -4, "the compiler failed")                                                          \
    X(LOAD, -5, "an artifact could not be loaded")                                                 \
    X(DEVICE, -6, "the device failed or is absent")                                                \
    X(STORE, -7, "the cache cannot be used")                                                       \
    X(SEALED, -8, "sealed: would have had to compile")                                             \
    X(IO, -9, "input or output failed")                                                            \
    X(INTERNAL, -10, "internal error")

enum quern_status {
#define X(name, value, text) QUERN_##name = value,
    QUERN_STATUS_LIST(X)
#undef X
};

/* "INVALID" and "invalid argument" for -1; "?" for a value outside the list. Static storage. */
QUERN_API const char *quern_status_name(int status);
QUERN_API const char *quern_status_text(int status);
QUERN_API const char *quern_version(void);

/* ---- Data types ---------------------------------------------------------------------------- */

#define QUERN_DTYPE_LIST(X)                                                                        \
    X(NONE, none, 0)                                                                               \
    X(F32, f32, 4)                                                                                 \
    X(BF16, bf16, 2)                                                                               \
    X(F16, f16, 2)                                                                                 \
    X(F64, f64, 8)                                                                                 \
    X(E4M3, e4m3, 1)                                                                               \
    X(E5M2, e5m2, 1)                                                                               \
    X(I8, i8, 1)                                                                                   \
    X(U8, u8, 1)                                                                                   \
    X(I32, i32, 4)                                                                                 \
    X(I64, i64, 8)

enum quern_dtype {
#define X(upper, lower, bytes) QUERN_##upper,
    QUERN_DTYPE_LIST(X) QUERN_DTYPE_COUNT
#undef X
};

QUERN_API const char *quern_dtype_name(int dtype); /* "bf16"; "?" outside the list */
QUERN_API size_t quern_dtype_bytes(int dtype);     /* 2 for bf16; 0 for none and outside the list */

/* ---- Families and specs -------------------------------------------------------------------- */

#define QUERN_MAX_PARAMS 32
#define QUERN_MAX_ARRAYS 16
#define QUERN_MAX_RANK 6
#define QUERN_MAX_STEPS 8

enum quern_param_class { QUERN_STATIC, QUERN_DYNAMIC, QUERN_HINT, QUERN_SCALAR };
enum quern_param_kind { QUERN_SIZE, QUERN_CHOICE, QUERN_DTYPE, QUERN_FLAG, QUERN_REAL };
enum quern_role { QUERN_ABSENT, QUERN_IN, QUERN_OUT, QUERN_INOUT };

#define QUERN_REQUIRED INT64_MIN /* default_value of a parameter that must be given */

struct quern_param {
    const char *name;
    enum quern_param_class param_class;
    enum quern_param_kind kind;
    const char *domain;    /* CHOICE and DTYPE: the words allowed, blank-separated; else NULL */
    int64_t minimum;       /* SIZE: the least value */
    int64_t default_value; /* or QUERN_REQUIRED */
    const char *doc;
};

struct quern_array_info {
    const char *name;
    const char *role;  /* as an expression of the parameters: "accumulate ? INOUT : OUT" */
    const char *dtype; /* likewise: "a" is the value of parameter a */
    const char *shape; /* likewise: "batch, m, k" */
    const char *doc;
};

struct quern_family; /* <quern/family.h> */

/* What is asked for: a family and one value for each of its parameters, in the order of its .def.
 * SIZE: the number; CHOICE: index into the domain; DTYPE: enum quern_dtype; FLAG: 0 or 1;
 * REAL: the bits of a double (NaN: not given). The generated quern_<family>_spec is the same object
 * with named fields. */
struct quern_spec {
    const struct quern_family *family;
    int64_t values[QUERN_MAX_PARAMS];
};

/* One array argument. {pointer} alone is dense (row-major); with rank > 0, strides[0..rank) are in
 * elements, outermost first; a rank below the family's leaves out leading dimensions of extent 1.
 * size_bytes, where not 0, is what may be used from data on: a call that needs more is refused.
 * data is memory of the context's device; on a GPU managed or pinned host memory will do, too.
 *  - Strides are not negative, the innermost is 1; those of dimensions of extent 1 do not matter.
 *    Outer ones may be in any order of size: heads of a [tokens, heads, dim] tensor as a batch are
 *    {dim, heads * dim, 1}. An input's may also be 0 or step less than what is inside them, so that
 *    elements are read more than once; an output's elements may not overlap.
 *  - Inputs may share memory. An output that shares a byte with another array is refused; but where
 *    the family says so (copy does, gemm does not) it may be an input's very data, shape and
 *    strides. What lies between another's rows, such as columns of one buffer, shares none with
 *    it. Hundreds of rows of two pitches, of which neither holds the other, may be refused too. */
struct quern_array {
    void *data;
    size_t size_bytes;
    int64_t rank;
    int64_t strides[QUERN_MAX_RANK];
};

struct quern_shape {
    int role;  /* enum quern_role for this spec; QUERN_ABSENT: takes no part */
    int dtype; /* enum quern_dtype */
    int rank;
    int64_t dims[QUERN_MAX_RANK];
};

struct quern_context;

/* Families known to the context: the built-in ones, then those registered. Threads: any. */
QUERN_API int quern_family_count(struct quern_context *ctx);
QUERN_API const struct quern_family *quern_family_at(struct quern_context *ctx, int index);
/* NULL if there is none. */
QUERN_API const struct quern_family *quern_family_find(struct quern_context *ctx, const char *name);

struct quern_family_description {
    const char *name, *folder, *doc;
    const struct quern_param *params;
    const struct quern_array_info *arrays;
    int param_count, array_count, variant_count;
    const char *variants[16];
};
QUERN_API void quern_family_describe(const struct quern_family *family,
                                     struct quern_family_description *description);

/* Register a family made by the caller (see <quern/family.h>). It must outlive the context. INVALID
 * if its tables are inconsistent or the name is taken. quern_plugin_load() dlopens `path`, calls
 * its `const struct quern_family *quern_plugin(int index)` for 0, 1, ... until NULL and registers
 * each. */
QUERN_API int quern_family_register(struct quern_context *ctx, const struct quern_family *family);
QUERN_API int quern_plugin_load(struct quern_context *ctx, const char *path);

/* Defaults of family `name`; required sizes are left QUERN_REQUIRED. */
QUERN_API int quern_spec_init(struct quern_context *ctx, const char *name, struct quern_spec *spec);
/* Set one parameter from text ("512", "bf16", "nt"). INVALID names it and what is allowed. */
QUERN_API int quern_spec_set(struct quern_context *ctx, struct quern_spec *spec, const char *name,
                             const char *value);
/* "gemm m=512 n=4096 k=14336 a=bf16" and back. Text is canonical: all parameters, in .def order. */
QUERN_API int quern_spec_parse(struct quern_context *ctx, const char *text,
                               struct quern_spec *spec);
/* Writes at most `size` bytes, always terminated; returns the full length, as snprintf does, or
 * INVALID, which is negative, when spec or its family is NULL. */
QUERN_API int quern_spec_text(const struct quern_spec *spec, char *text, size_t size);
/* Domains, then the family's own rules; also that every array's byte count fits 63 bits. */
QUERN_API int quern_spec_validate(struct quern_context *ctx, const struct quern_spec *spec);
/* Role, dtype and shape of array `index` under this spec. */
QUERN_API int quern_spec_shape(struct quern_context *ctx, const struct quern_spec *spec, int index,
                               struct quern_shape *shape);

/* ---- Context ------------------------------------------------------------------------------- */

enum quern_log_level { QUERN_LOG_OFF, QUERN_LOG_WARN, QUERN_LOG_INFO, QUERN_LOG_DEBUG };

/* NULL and 0 mean: the environment variable in brackets, else the default. The environment is read
 * once, here. log, alloc and free may be called from any thread, several at once, and must not call
 * back into the context.
 *
 * With QUERN_CHECK=1, for which there is no member, calls read their index arrays (cu_seqlens,
 * slots) first, in the stream's order, wait for them, and refuse what they may not hold. Without
 * it nothing outside the arrays is touched, whatever they hold. */
struct quern_options {
    size_t size;           /* sizeof(struct quern_options) */
    const char *cache;     /* file [QUERN_CACHE, else ~/.cache/quern/quern.db]; "" = memory only */
    const char *base;      /* bundles that are only read, after the cache: "A:B" [QUERN_BASE] */
    const char *device;    /* "cpu", "cuda", "cuda:N" [cuda if usable, else cpu] */
    const char *mode;      /* "normal", "sealed" [QUERN_MODE]: sealed never compiles or tunes */
    const char *clang;     /* compiler [QUERN_CLANG, else clang-19, else clang on PATH] */
    const char *nvrtc;     /* libnvrtc's file [QUERN_NVRTC, else searched] */
    const char *templates; /* directory looked in before the embedded ones [QUERN_TEMPLATES] */
    const char *profile;   /* device profile to plan for, its name or file [the device's own] */
    const char *dump;      /* stage letters to log at debug level, as docs/CLI.md lists them */
    int threads;           /* that execute a CPU grid, at most 1024 [OMP_NUM_THREADS, else all] */
    int makers;            /* that help a build to compile; -1: none [one a processor] */
    int log_level;         /* enum quern_log_level [QUERN_LOG=off|warn|info|debug, else warn] */
    void (*log)(void *user, int level, const char *line); /* NULL: nothing is said */
    void *user;                                           /* log's */
    /* Memory for workspaces and tuning buffers, 256-byte aligned, or NULL when there is none. What
     * is aligned worse is handed back and the call refused. Both NULL: the backend's own. */
    void *(*alloc)(size_t bytes, int device, void *stream, void *alloc_user);
    void (*free)(void *data, size_t bytes, int device, void *stream, void *alloc_user);
    void *alloc_user;
};
#define QUERN_OPTIONS_INIT QUERN_INIT(struct quern_options)

/* options may be NULL. Opens the cache and finds the device; loads no compiler. On failure *ctx is
 * still set (unless memory ran out: NULL) and good for quern_errmsg() and destroy only. */
QUERN_API int quern_context_create(const struct quern_options *options, struct quern_context **ctx);
QUERN_API void quern_context_destroy(struct quern_context *ctx); /* NULL is allowed */
/* Text of the calling thread's last failure on ctx; "" if none; valid until its next call. */
QUERN_API const char *quern_errmsg(struct quern_context *ctx);

/* Facts about the machine, one call of `fact` each: section is "cpu", "cuda" or "cache"; a backend
 * that cannot be used has "usable" = "no" and a "reason" that says how to get it. */
QUERN_API int quern_doctor(struct quern_context *ctx,
                           void (*fact)(void *user, const char *section, const char *name,
                                        const char *value),
                           void *user);

/* Memory of the context's device. Copies are synchronous; either side may be host memory. */
QUERN_API int quern_memory_alloc(struct quern_context *ctx, size_t bytes, void **data);
QUERN_API void quern_memory_free(struct quern_context *ctx, void *data, size_t bytes);
QUERN_API int quern_memory_copy(struct quern_context *ctx, void *to, const void *from,
                                size_t bytes);

/* ---- Kernels ------------------------------------------------------------------------------- */

/* Whom a bundle's kernel is for: a row of the manifest for each of its artifacts. */
struct quern_origin {
    const char *model, *rank, *where; /* "Qwen3MoeForCausalLM", "tp=8 ep=1", "qkv" */
};

/* What to build. Only spec must be set. arrays (array_count of the family, or NULL) give alignment:
 * without them every array counts as 16-byte aligned and dense. */
struct quern_request {
    size_t size;
    const struct quern_spec *spec;
    const struct quern_array *arrays;
    const char *variant; /* only this variant; NULL: any */
    const char *config;  /* these choices, "bm=64,bn=128"; NULL: tuned, neighbour, heuristic */
    const char *target;  /* for quern_build(), quern_generate() and quern_cache_explain():
                            "cpu:x86-64-v3", "sm_90a"; NULL: the context's */
    int rank;            /* for quern_build(): the candidate of this number, most promising first,
                            with config NULL; MISS: there are fewer. 0: the config of choice */
    const struct quern_origin *origin; /* for quern_build(); NULL: the manifest says nothing */
};
#define QUERN_REQUEST_INIT QUERN_INIT(struct quern_request)

enum quern_config_from {
    QUERN_CONFIG_GIVEN,
    QUERN_CONFIG_TUNED,
    QUERN_CONFIG_NEIGHBOUR,
    QUERN_CONFIG_HEURISTIC
};
enum quern_artifact_from { QUERN_FROM_MEMORY, QUERN_FROM_DISK, QUERN_FROM_COMPILER };

struct quern_step_report {
    char name[32];
    int from; /* enum quern_artifact_from */
    double compile_ms, load_ms;
    int registers, spills; /* -1: not reported (CPU) */
    int64_t shared_bytes;
};

struct quern_report {
    char variant[64], target[96], bucket[512], config[512];
    int config_from; /* enum quern_config_from */
    int artifact;    /* enum quern_artifact_from: the slowest of the steps */
    int step_count;
    struct quern_step_report steps[QUERN_MAX_STEPS];
    double first_call_ms; /* this preparation: key, look-up, compile, load */
    int64_t workspace_bytes;
};

struct quern_kernel; /* a plan, compiled and loaded; owned by the context; any thread may use it */

/* The kernel for the spec's bucket on the context's device: from memory, else the store, else
 * compiled; a repeated request gets the same one. Never tunes. SEALED names the missing key. */
QUERN_API int quern_prepare(struct quern_context *ctx, const struct quern_request *request,
                            struct quern_kernel **kernel);
/* How the kernel came about. */
QUERN_API void quern_kernel_report(const struct quern_kernel *kernel, struct quern_report *report);
/* An upper bound, in bytes, for every spec of the kernel's bucket; 0 for NULL. */
QUERN_API size_t quern_kernel_workspace(const struct quern_kernel *kernel);

/* How a call runs; start from { 0 }. stream: the device's stream (CPU: NULL). workspace: at least
 * quern_kernel_workspace() bytes, 256-byte aligned, shared with no array and no concurrent call;
 * NULL: taken from the allocator hook, else from the device. While stream is being captured into a
 * graph, a call must be prepared (quern_prepare()) and its workspace given or the hook's. */
struct quern_call {
    void *stream;
    void *workspace;
    size_t workspace_bytes;
};

/* Launch on arrays (one entry for each of the family's; {NULL} for absent ones). spec must be in
 * the kernel's bucket. The CPU runs it before returning; elsewhere it is ordered by the stream. No
 * lock, string or getenv; no allocation when call->workspace is given or none is needed. */
QUERN_API int quern_launch(struct quern_context *ctx, struct quern_kernel *kernel,
                           const struct quern_spec *spec, const struct quern_array *arrays,
                           const struct quern_call *call);
/* Prepare once a bucket, then launch: what the generated quern_<family>() calls. */
QUERN_API int quern_run(struct quern_context *ctx, const struct quern_spec *spec,
                        const struct quern_array *arrays, const struct quern_call *call);
/* The kernel that quern_run() would use now, through the same cache; at most 200 ns when warm. */
QUERN_API int quern_dispatch(struct quern_context *ctx, const struct quern_spec *spec,
                             const struct quern_array *arrays, struct quern_kernel **kernel);

/* Compile into the store for request->target, which need not be here. */
QUERN_API int quern_build(struct quern_context *ctx, const struct quern_request *request,
                          struct quern_report *report);
/* The source of every distinct artifact, as the compiler receives it. quern_text_free() it. */
QUERN_API int quern_generate(struct quern_context *ctx, const struct quern_request *request,
                             char **text);
QUERN_API void quern_text_free(char *text);

#ifdef __cplusplus
}
#endif
#endif
