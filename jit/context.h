/* What the modules of jit/ share: the context, a thread's part of it, and failing with a text.
 *
 *     quern_context ── device (backend, target, profile)
 *                   ├─ store            tuned rows, artifacts (cache/)
 *                   ├─ families         built-in, then registered
 *                   ├─ kernels, given   bucket -> struct quern_kernel, grow only
 *                   └─ threads          error text, recent kernels: one a thread, by pthread key
 */
#ifndef QN_CONTEXT_H
#define QN_CONTEXT_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>

#include <quern.h>
#include <quern/family.h>
#include <quern/tune.h>

#include "cache/store.h"
#include "jit/backend.h"

/* Returns from the calling function on any status but QUERN_OK. The one macro that hides a jump. */
#define QN_TRY(expression)                                                                         \
    do {                                                                                           \
        int qn_try_status = (expression);                                                          \
        if (qn_try_status)                                                                         \
            return qn_try_status;                                                                  \
    } while (0)

#define QN_MAX_FAMILIES 256
#define QN_DEVICE_KINDS 2 /* enum quern_device_kind */
#define QN_RECENT 64      /* kernels a thread remembers; a power of two */
#define QN_MEMORY_ALIGN 256

/* A spec's bucket with the alignment class of each array: what a kernel is made for. */
struct qn_bucket {
    struct quern_spec spec;
    uint8_t alignment[QUERN_MAX_ARRAYS];
};

struct quern_kernel {
    const struct quern_family *family;
    const struct quern_variant *variant;
    struct qn_bucket bucket;
    int32_t config[QUERN_MAX_KNOBS];
    struct quern_plan *plan;
    struct qn_module *modules[QUERN_MAX_STEPS]; /* distinct ones, then NULL */
    struct qn_function *functions[QUERN_MAX_STEPS];
    struct quern_report report;
    char *digest;              /* of the templates it was made from, 32 hexadecimal digits */
    struct quern_kernel *next; /* in its hash chain */
};

struct qn_recent {
    uint64_t hash;
    unsigned epoch; /* of the context when it was remembered; another means forgotten */
    struct qn_bucket bucket;
    struct quern_kernel *kernel;
};

struct qn_thread {
    char error[1024];
    struct quern_spec checked; /* the last that passed qn_spec_check(), whose rules are pure */
    struct qn_recent recent[QN_RECENT];
};

#define QN_KERNEL_CHAINS 256

struct quern_context {
    struct quern_options options; /* texts owned, environment applied */
    bool is_sealed;
    bool is_checking; /* QUERN_CHECK=1: index arrays are looked at before a launch */

    const struct qn_backend *backend;
    struct qn_device *device;
    int ordinal;                                  /* the device's number; 0 for the CPU */
    struct qn_device *compilers[QN_DEVICE_KINDS]; /* other kinds, opened to compile only */
    struct quern_target target;
    struct quern_profile named;   /* what options.profile says, read once; unset without it */
    struct quern_profile profile; /* what is planned with for the device: its own or options' */
    struct qn_store *store;
    atomic_bool has_told_of_bases; /* qn_bases_tell() */

    pthread_mutex_t lock; /* families, kernels */
    const struct quern_family *families[QN_MAX_FAMILIES];
    _Atomic int family_count;
    void *plugins[16]; /* dlopen handles */
    int plugin_count;
    struct quern_kernel *kernels[QN_KERNEL_CHAINS];
    struct quern_kernel *given[QN_KERNEL_CHAINS]; /* with a variant or config of the caller's */
    struct quern_kernel *retired; /* replaced by a newer winner; freed with the context */
    atomic_int makers; /* threads that builds have started to make units, at most max_makers */
    int max_makers;
    _Atomic unsigned epoch;            /* moves when a bucket's kernel may have changed */
    struct qn_winner *_Atomic winners; /* that the store would not take: winners.c */

    pthread_key_t thread_key;
    char *owned[9], *owned_cache; /* copies behind options' texts */
};

/* The calling thread's part; NULL when memory ran out. */
struct qn_thread *qn_thread_get(struct quern_context *ctx);

/* For a public function's pointers: QUERN_INVALID without a text when ctx is NULL, and with
 * "name=NULL: must be given" when pointer is. */
int qn_require(struct quern_context *ctx, const char *name, const void *pointer);

/* Sets the thread's error text and returns `status`. */
int qn_fail(struct quern_context *ctx, int status, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
/* The same with a text made elsewhere. */
int qn_fail_why(struct quern_context *ctx, int status, const struct quern_message *why);

void qn_log(struct quern_context *ctx, int level, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* Stage output for options.dump, at debug level: letter as in docs/CLI.md. */
bool qn_is_dumped(const struct quern_context *ctx, char letter);

double qn_now_ms(void); /* monotonic clock */

/* What a backend is opened with: log and facts go through the context. */
void qn_backend_options(struct quern_context *ctx, struct qn_backend_options *options);

/* Workspace and tuning buffers: the caller's hook, else the backend. 256-byte aligned; a hook that
 * gives other memory is refused by name. */
int qn_memory_get(struct quern_context *ctx, size_t bytes, void *stream, void **data,
                  struct quern_message *why);
void qn_free(struct quern_context *ctx, void *data, size_t bytes, void *stream);
/* Device or host memory, either way, before it returns. */
int qn_copy(struct quern_context *ctx, void *to, const void *from, size_t bytes,
            struct quern_message *why);
/* The same in a stream's order. */
int qn_copy_ordered(struct quern_context *ctx, void *to, const void *from, size_t bytes,
                    void *stream, struct quern_message *why);
/* Device memory, on the default stream. */
int qn_fill(struct quern_context *ctx, void *data, int byte, size_t bytes,
            struct quern_message *why);

/* ---- family.c ---- */
int qn_families_init(struct quern_context *ctx);
void qn_families_fini(struct quern_context *ctx);
const struct quern_variant *qn_variant_find(const struct quern_family *family, const char *name);

/* ---- spec.c ---- */
/* QUERN_INVALID unless the values of spec lie in the domains of its family, pass its rules and give
 * arrays whose bytes fit 63 bits. The family is taken as it is: it was checked when registered. */
int qn_spec_check(const struct quern_spec *spec, struct quern_message *why);
/* QUERN_INVALID unless the parameter's words exist and its default lies in its domain. */
int qn_param_check(const struct quern_param *param, struct quern_message *why);
/* The bucket of spec with the alignment classes of arrays (NULL: 16 each). spec was checked. */
void qn_bucket_make(const struct quern_spec *spec, const struct quern_array *arrays,
                    struct qn_bucket *bucket);
bool qn_bucket_equal(const struct qn_bucket *a, const struct qn_bucket *b);
uint64_t qn_bucket_hash(const struct qn_bucket *bucket);
/* One parameter's value as in a spec's text; REAL: "given" or "absent" when `is_key`. */
void qn_value_text(const struct quern_param *param, int64_t value, bool is_key, char *text,
                   size_t bytes);

/* ---- arrays.c ---- */
/* Checks pointers, alignment, rank, strides, size_bytes and overlaps against the spec, and fills in
 * rank and strides: what bind() and everything that walks an array starts from. arrays[i].data is
 * NULL in *bound for absent arrays. */
int qn_arrays_bind(const struct quern_spec *spec, const struct quern_array *arrays,
                   struct quern_array bound[QUERN_MAX_ARRAYS], struct quern_message *why);
/* The same for a call on the context's device, which must be able to reach every array. */
int qn_call_bind(struct quern_context *ctx, const struct quern_spec *spec,
                 const struct quern_array *arrays, struct quern_array bound[QUERN_MAX_ARRAYS],
                 struct quern_message *why);
/* Whether two bound arrays have a byte in common; true, too, of a few layouts of which that is not
 * found out (arrays.c says which). */
bool qn_arrays_share(const struct quern_shape *a, const struct quern_array *bound_a,
                     const struct quern_shape *b, const struct quern_array *bound_b);
/* Refuses `data`, which the caller calls `name`, unless the device can reach it. */
int qn_pointer_check(struct quern_context *ctx, const char *name, const void *data,
                     struct quern_message *why);
/* Bytes from data to one past the last element reached through the strides; 0 if empty. */
int64_t qn_array_span(const struct quern_shape *shape, const struct quern_array *bound);
int64_t qn_shape_count(const struct quern_shape *shape); /* elements */

/* ---- config.c ---- */
int qn_config_parse(const struct quern_variant *variant, const char *text, int32_t *config,
                    struct quern_message *why);
void qn_config_text(const struct quern_variant *variant, const int32_t *config, char *text,
                    size_t bytes);
/* Knob bounds, then the variant's own rules. */
int qn_config_check(const struct quern_variant *variant, const struct quern_problem *problem,
                    const int32_t *config, struct quern_message *why);

/* ---- key.c ---- */
/* The tuning key of a bucket and its group (the same without the dynamic parameters); malloc'ed. */
int qn_tuned_key(const struct qn_bucket *bucket, const struct quern_profile *profile, char **text,
                 char **group);

/* ---- dispatch.c ---- */
/* Refuses, with a text on ctx, a request that is NULL, was made with another header or has a bad
 * spec; its other members are the caller's to look at. */
int qn_request_check(struct quern_context *ctx, const struct quern_request *request);
/* QUERN_INVALID unless spec is a member of the kernel's bucket and the arrays are aligned as it was
 * made for. */
int qn_kernel_accepts(const struct quern_kernel *kernel, const struct quern_spec *spec,
                      const struct quern_array *arrays, struct quern_message *why);
/* Launch through the plan with a workspace of the caller's; arrays bound by qn_arrays_bind(). */
int qn_kernel_launch(struct quern_context *ctx, const struct quern_kernel *kernel,
                     const struct quern_spec *spec, const struct quern_array *bound,
                     void *workspace, void *stream, enum qn_grid_order order,
                     struct quern_message *why);
void qn_kernel_bind(const struct quern_context *ctx, const struct quern_kernel *kernel,
                    const struct quern_spec *spec, const struct quern_array *bound, void *workspace,
                    struct quern_launch *launch);
/* Forget the kernel of a bucket: the next call builds it from what is best then. */
void qn_kernels_refresh(struct quern_context *ctx, const struct qn_bucket *bucket);
void qn_kernels_fini(struct quern_context *ctx);

#endif
