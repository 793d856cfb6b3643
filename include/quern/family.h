/* What the author of a family sees: one const struct quern_family, its variants, and the types that
 * their functions take. docs/ADDING_A_FAMILY.md walks through templates/copy, the smallest one.
 *
 * A family's .c defines QUERN_DEF as the name of its .def, includes <quern/family_def.h>, which
 * expands that list into the tables below, writes the functions, and ends with one object
 *
 *     const struct quern_family quern_family_copy = { QUERN_FAMILY_TABLES(copy), .validate = ... };
 *
 * Requirements on every function here: pure (no globals, no allocation, no I/O), callable from any
 * thread, deterministic. bind() is on the path of every call: arithmetic only.
 *
 * Where a function may refuse, it returns quern_refuse(why, "n=%lld: must be ...", n): the text
 * names the parameter as name=value and says what is allowed.
 */
#ifndef QUERN_FAMILY_H
#define QUERN_FAMILY_H

#include <quern.h>

#ifdef __cplusplus
extern "C" {
#endif

#define QUERN_FAMILY_ABI 4
#define QUERN_MAX_KNOBS 32
#define QUERN_MAX_DEFINES 64
#define QUERN_ARGS_BYTES 1024
#define QUERN_MAX_MAPS 4
#define QUERN_MAP_BYTES 128
#define QUERN_MAP_RANK 5
#define QUERN_SIZE_MAX (INT64_C(1) << 40) /* no SIZE parameter may exceed it */

/* Why something was refused: one line. */
struct quern_message {
    char text[512];
};
/* Writes the line and returns QUERN_INVALID. */
QUERN_API int quern_refuse(struct quern_message *why, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

/* The power of two at or above value; 1 for 0. What bucket() functions round with. */
static inline int64_t quern_power_of_two_above(int64_t value)
{
    return value <= 1 ? 1 : INT64_C(1) << (64 - __builtin_clzll((uint64_t)value - 1));
}

/* ---- Where a kernel is to run -------------------------------------------------------------- */

enum quern_device_kind { QUERN_CPU, QUERN_CUDA };

enum quern_cpu_feature {
    QUERN_CPU_BF16 = 1, /* AVX512_BF16 */
    QUERN_CPU_VNNI = 2, /* AVX512_VNNI */
    QUERN_CPU_AMX = 4   /* AMX-TILE, AMX-BF16, AMX-INT8 */
};

/* An instruction set: what the compiler is told. No count of anything is part of it. */
struct quern_target {
    enum quern_device_kind kind;
    int cpu_arch;     /* CPU: 0 x86-64, 1 aarch64 */
    int cpu_level;    /* CPU x86-64: 1 to 4, as in x86-64-v3 */
    int cpu_features; /* CPU: enum quern_cpu_feature, or-ed */
    int sm;           /* CUDA: 80, 90, ... */
    char sm_suffix;   /* CUDA: 'a' for architecture-specific code, else 0 */
};

/* What choices depend on beyond the target. Zero: unknown. Rates are what is sustained, not what a
 * datasheet promises. */
struct quern_profile {
    char name[128];
    enum quern_device_kind kind;
    int sm;               /* CUDA: 80, 90, ... as in the target */
    int cores;            /* CPU: threads that execute a grid; CUDA: SMs */
    int64_t l1_bytes;     /* CPU: data cache of a core; CUDA: shared memory a block may have */
    int64_t l2_bytes;     /* CPU: of a core; CUDA: of the device */
    int64_t l3_bytes;     /* CPU: of the package */
    double memory_gbps;   /* read + write */
    double l2_gbps;       /* CUDA: read, all SMs together */
    double tensor_tflops; /* CUDA: bf16 tensor cores, f32 sums */
    double f32_tflops;    /* CUDA: FMA */
    double launch_us;     /* CUDA: what one more kernel in a stream costs at least */
};

/* A spec's bucket on a place: what variants decide from. */
struct quern_problem {
    const struct quern_spec *bucket;
    const struct quern_target *target;
    const struct quern_profile *profile;
    const uint8_t *alignment; /* of each array's base and strides in bytes: 16, 8, 4, 2 or 1 */
};

/* ---- A plan: what to compile and run ------------------------------------------------------- */

enum quern_step_kind { QUERN_STEP_KERNEL, QUERN_STEP_MEMSET };

struct quern_define {
    char name[32];
    char value[32];
};

struct quern_step {
    enum quern_step_kind kind;
    char name[32];   /* "pack_b" */
    char source[64]; /* template below templates/: "gemm/gemm_cpu.c" */
    char entry[64];  /* function in it. Steps with equal source and defines share one artifact */
    int define_count;
    struct quern_define defines[QUERN_MAX_DEFINES];
    uint32_t threads[3];   /* CUDA: block dimensions; 0 in y or z is 1 */
    uint32_t cluster[3];   /* CUDA: blocks of a cluster; all 0: none. The grid is a multiple */
    uint32_t shared_bytes; /* CUDA: dynamic shared memory */
    int is_programmatic;   /* CUDA, sm_90 up: may start before the kernel ahead of it in the stream
                              has ended; it waits for that one itself (griddepcontrol.wait) */
};

struct quern_plan {
    int step_count;
    struct quern_step steps[QUERN_MAX_STEPS];
    int64_t workspace_bytes; /* upper bound over the bucket */
};

/* Append a step and return it (never NULL: past QUERN_MAX_STEPS the plan is refused as a whole). */
QUERN_API struct quern_step *quern_plan_kernel(struct quern_plan *plan, const char *name,
                                               const char *source, const char *entry);
QUERN_API struct quern_step *quern_plan_memset(struct quern_plan *plan, const char *name);
/* `#define name value` ahead of the template's text. */
QUERN_API void quern_step_define(struct quern_step *step, const char *name, int64_t value);
QUERN_API void quern_step_define_text(struct quern_step *step, const char *name, const char *value);
/* Every knob of the variant as a define of its upper-cased name ("state.bv" gives STATE_BV). */
struct quern_variant;
QUERN_API void quern_step_define_config(struct quern_step *step,
                                        const struct quern_variant *variant, const int32_t *config);

/* ---- A launch: a plan made concrete for one call ------------------------------------------- */

/* A tensor map for TMA (CUDA, sm_90 up), as cuTensorMapEncodeTiled takes it: the backend encodes it
 * into the step's args at launch, 128 bytes at a multiple of 64. Its limits (16-byte base and
 * strides, box sides up to 256, an inner box side of at most `swizzle` bytes) are checked there.
 * What lies outside dims is read as zero and not written. */
struct quern_tensor_map {
    const void *data;
    uint32_t args_offset;
    int dtype; /* enum quern_dtype */
    int rank;
    int swizzle;                     /* bytes: 0 (none), 32, 64, 128 */
    int64_t dims[QUERN_MAP_RANK];    /* elements, innermost first */
    int64_t strides[QUERN_MAP_RANK]; /* elements, innermost first: strides[0] is 1 */
    int32_t box[QUERN_MAP_RANK];     /* elements, innermost first */
};

struct quern_step_launch {
    uint32_t grid[3];    /* any 0: the step is skipped. CPU: a block is entry(args, x, y, z) */
    uint32_t args_bytes; /* CUDA: args is the kernel's single by-value parameter */
    void *memset_data;   /* QUERN_STEP_MEMSET: what is set to zero, and how much */
    int64_t memset_bytes;
    int map_count; /* set to 0 by QUERN_BIND; then quern_step_map() adds */
    struct quern_tensor_map maps[QUERN_MAX_MAPS];
    __attribute__((aligned(64))) unsigned char args[QUERN_ARGS_BYTES];
};

struct quern_launch {
    struct quern_step_launch steps[QUERN_MAX_STEPS];
};

/* What bind() starts from. arrays have rank and strides filled in, absent ones data NULL. */
struct quern_binding {
    const struct quern_spec *spec; /* the real sizes */
    const struct quern_array *arrays;
    const struct quern_profile *profile;
    const int32_t *config;
    void *workspace; /* plan.workspace_bytes, 256-byte aligned */
};

#ifdef __cplusplus
#define QUERN_STATIC_ASSERT(condition, text) static_assert(condition, text)
#else
#define QUERN_STATIC_ASSERT(condition, text) _Static_assert(condition, text)
#endif

/* Copy a step's argument struct and set its grid. */
#define QUERN_BIND(step_launch, args_struct, x, y, z)                                              \
    do {                                                                                           \
        QUERN_STATIC_ASSERT(sizeof(args_struct) <= QUERN_ARGS_BYTES, "arguments too large");       \
        struct quern_step_launch *quern_bound_ = (step_launch);                                    \
        __builtin_memcpy(quern_bound_->args, &(args_struct), sizeof(args_struct));                 \
        quern_bound_->args_bytes = sizeof(args_struct);                                            \
        quern_bound_->map_count = 0;                                                               \
        quern_bound_->grid[0] = (uint32_t)(x);                                                     \
        quern_bound_->grid[1] = (uint32_t)(y);                                                     \
        quern_bound_->grid[2] = (uint32_t)(z);                                                     \
    } while (0)

/* One more tensor map of the step, zeroed, to be filled in by the caller; after QUERN_BIND. */
static inline struct quern_tensor_map *quern_step_map(struct quern_step_launch *step,
                                                      uint32_t args_offset)
{
    struct quern_tensor_map *map = &step->maps[step->map_count++];
    __builtin_memset(map, 0, sizeof(*map));
    map->args_offset = args_offset;
    return map;
}

/* ---- Variants ------------------------------------------------------------------------------ */

/* A tuned integer. minimum and maximum bound what is read back from disk before legal() looks. */
struct quern_knob {
    const char *name;
    int32_t minimum, maximum;
    const char *doc;
};

struct quern_variant {
    const char *name; /* "gemm_cpu" */
    const char *doc;
    enum quern_device_kind device;
    const struct quern_knob *knobs;
    int knob_count;
    int is_nondeterministic; /* repeated runs may differ in rounding (atomics) */

    /* Non-zero if it can serve the problem at all (target, dtypes, alignment). */
    int (*supports)(const struct quern_problem *problem);
    /* 0, or why this config may not run the problem. Called before anything is built from a config,
     * whoever made it; values are within the knobs' bounds. NULL: bounds suffice. */
    int (*legal)(const struct quern_problem *problem, const int32_t *config,
                 struct quern_message *why);
    /* The best guess without measuring; always legal. */
    void (*heuristic)(const struct quern_problem *problem, int32_t *config);
    /* Up to `max` configs to try, most promising first; returns how many. Illegal ones and repeats
     * are dropped by the caller. NULL: the heuristic's only. */
    int (*candidates)(const struct quern_problem *problem, int32_t (*configs)[QUERN_MAX_KNOBS],
                      int max);
    void (*plan)(const struct quern_problem *problem, const int32_t *config,
                 struct quern_plan *plan);
    /* Fills launch->steps[i] for every step of the plan, in the plan's order. */
    void (*bind)(const struct quern_binding *binding, struct quern_launch *launch);
};

/* ---- The family ---------------------------------------------------------------------------- */

/* Which bytes of an array a call touches; the library's, grown as touched() adds. */
struct quern_ranges;
/* Bytes [begin, end) from the array's data. In any order; overlaps and repeats are merged. One that
 * leaves the array's span fails the check or tuning that asked, naming array and range. */
QUERN_API void quern_ranges_add(struct quern_ranges *ranges, int64_t begin, int64_t end);

struct quern_cost {
    double flops, bytes; /* the least a call must do: each input read, each output written once */
};

/* Device source that a family registered at run time brings: found before the embedded ones. */
struct quern_source {
    const char *path; /* as a step and an #include name it: "scale/scale_cpu.c" */
    const char *text;
};

struct quern_ref; /* one reference evaluation; see below */

struct quern_family {
    int abi; /* QUERN_FAMILY_ABI */
    const char *name, *folder, *doc;
    const struct quern_param *params;
    int param_count;
    const struct quern_array_info *arrays;
    int array_count;
    /* From the .def: role, dtype and dims of array `index`. */
    void (*shape)(const struct quern_spec *spec, int index, struct quern_shape *shape);

    const struct quern_variant *const *variants; /* NULL-terminated, preferred first */
    const struct quern_source *sources; /* ends with {NULL, NULL}; NULL for built-in families */

    /* Bit i: array i, an output, may lie exactly on an input (same data, shape and strides), since
     * no element is written before everything that needs the input's there has read it. Any other
     * byte that an output shares is refused before bind() is called. Arrays may lie between each
     * other's rows, so nothing is written there, not even for a moment or with what it holds. */
    uint32_t aliasable;

    /* Rules beyond the domains. They run before shape() does: what it multiplies may be bounded
     * here. NULL: none. */
    int (*validate)(const struct quern_spec *spec, struct quern_message *why);
    /* Round the DYNAMIC and HINT parameters of *bucket (a copy of the spec) up in place; idempotent
     * and monotone. NULL: each to the next power of two. A size that no kernel depends on, as
     * a pool's, may become what a call needs of it instead: then pools of all sizes share kernels
     * and what is tuned, and inputs are drawn for one so small. */
    void (*bucket)(struct quern_spec *bucket);
    /* Adds the byte ranges of array `index` that a call reads or writes, any number of them.
     * host[i] is a dense host copy of integer array i, else NULL. NULL: what shape and strides
     * span. For pools of which a call uses a few slots, and paged caches. */
    void (*touched)(const struct quern_spec *spec, const struct quern_array *arrays,
                    const void *const *host, int index, struct quern_ranges *ranges);
    /* With QUERN_CHECK=1, before a launch: refuses what index arrays hold (cu_seqlens, slots, page
     * tables), naming array, element and what is allowed: "slots[4]=77: must be ...". host is as
     * for touched(). What inputs() draws must pass. It may allocate what it frees. NULL: nothing
     * is refused. The device code may not count on it: it is off by default. */
    int (*check_indices)(const struct quern_spec *spec, const void *const *host,
                         struct quern_message *why);
    /* Valid random contents of array `index`, dense, in host memory. Returns 0 to have the default
     * drawn: floats uniform in [-1, 1), integers in [0, 2). NULL: the default for all. */
    int (*inputs)(const struct quern_spec *spec, int index, uint64_t seed, void *data);
    /* The reference computes the output in independent units (a row, a query row, a head). */
    int64_t (*units)(const struct quern_spec *spec);
    void (*reference)(struct quern_ref *ref, int64_t unit);
    /* Bound on ||out - ref|| / ||ref|| for array `index`. */
    double (*tolerance)(const struct quern_spec *spec, int index);
    void (*cost)(const struct quern_spec *spec, struct quern_cost *cost);
    /* A check of the whole output that is cheaper than the reference: a number for each unit, which
     * its inputs and its outputs give alike but for rounding. For units [first, first + count), of
     * which there may be several parts at a time. Both NULL: none exists. */
    void (*linear_expect)(struct quern_ref *ref, uint64_t seed, int64_t first, int64_t count,
                          double *wanted);
    void (*linear_actual)(struct quern_ref *ref, uint64_t seed, int64_t first, int64_t count,
                          double *got);

    const char *alias; /* a second name that quern_family_find() and spec text know; NULL: none */
    /* Gives parameters that are still QUERN_REQUIRED what those set until now imply. Of specs made
     * by quern_spec_set() and from text only. NULL: nothing is implied. */
    void (*implied)(struct quern_spec *spec);
};

/* ---- For reference() ----------------------------------------------------------------------- */

/* Arrays are addressed by their index in the .def and by dense row-major element offsets, whatever
 * their strides. Values are float64 of the same rounded inputs that the kernel saw. */
QUERN_API const struct quern_spec *quern_ref_spec(const struct quern_ref *ref);
/* `count` consecutive elements from `first`, as they were before the call. */
QUERN_API void quern_ref_read(struct quern_ref *ref, int index, int64_t first, int64_t count,
                              double *values);
/* The same of an output after the call; for linear_actual(). */
QUERN_API void quern_ref_actual(struct quern_ref *ref, int index, int64_t first, int64_t count,
                                double *values);
/* What output `index` must hold: `count` elements from `first`, one row of the error bound. A call
 * of which no unit expects anything is a fault of the reference, unless one has said so with a
 * count of 0. */
QUERN_API void quern_ref_expect(struct quern_ref *ref, int index, int64_t first, int64_t count,
                                const double *values);
/* The same for a row each of whose elements is a sum. `norm` is the norm of all their terms: the
 * root of the sum of squares. Where terms cancel, what rounding them does is measured against it,
 * not against the little or nothing that is left, which may then be anything so small; where they
 * do not, it makes no difference. Of a norm of 0, a sum of nothing, no error is allowed. */
QUERN_API void quern_ref_expect_sums(struct quern_ref *ref, int index, int64_t first, int64_t count,
                                     const double *values, double norm);
/* Memory for `count` doubles, zeroed, until the unit ends. */
QUERN_API double *quern_ref_scratch(struct quern_ref *ref, int64_t count);

#ifdef __cplusplus
}
#endif
#endif
