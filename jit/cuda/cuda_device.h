/* What the modules of jit/cuda/ share: the device, whose context a call works in, and the functions
 * that cuda_backend.c puts into the table of jit/backend.h, where their contracts are. */
#ifndef QN_CUDA_DEVICE_H
#define QN_CUDA_DEVICE_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>

#include "jit/cuda/cuda_driver.h"
#include "jit/cuda/nvrtc.h"

struct qn_cuda_clock; /* cuda_time.c: a stream and events to time on */

struct qn_device {
    const struct qn_cuda_driver *cu; /* NULL: opened to compile only */
    struct qn_nvrtc *nvrtc;
    int ordinal;      /* also the driver's CUdevice */
    char subject[24]; /* "device=cuda:1" */
    struct quern_target target;
    struct quern_profile profile;
    int shared_optin;    /* bytes of shared memory that a block may have */
    bool has_pools;      /* stream-ordered allocation */
    bool has_host_pages; /* kernels may read any host memory */

    struct cu_context *_Atomic primary; /* retained when first needed */
    pthread_mutex_t lock;               /* primary, until it is set; the modules' functions */
    pthread_mutex_t clock_lock;         /* clock, and its use */
    struct qn_cuda_clock *clock;        /* in the primary context */
};

/* ---- cuda_context.c ------------------------------------------------------------------------ */

/* Between enter and leave a context of the device is current: the caller's if it is one, else that
 * of the stream, else the primary one. */
struct qn_cuda_scope {
    bool is_pushed;
};
int qn_cuda_enter(struct qn_device *device, struct qn_cuda_scope *scope, struct quern_message *why);
/* The stream's context. QUERN_INVALID: it is of another device, or no stream. */
int qn_cuda_enter_stream(struct qn_device *device, void *stream, struct qn_cuda_scope *scope,
                         struct quern_message *why);
void qn_cuda_leave(struct qn_device *device, const struct qn_cuda_scope *scope);
/* Gives the primary context back. */
void qn_cuda_context_fini(struct qn_device *device);

/* qn_cuda_fail() with the device as subject. */
int qn_cuda_device_fail(const struct qn_device *device, const char *call, int code,
                        struct quern_message *why);

int qn_cuda_synchronize(struct qn_device *device, void *stream, struct quern_message *why);
int qn_cuda_is_capturing(struct qn_device *device, void *stream);

/* ---- cuda_profile.c ------------------------------------------------------------------------ */

/* Target, profile and limits of device->ordinal. */
int qn_cuda_device_read(struct qn_device *device, struct quern_message *why);
int qn_cuda_accepts(const struct qn_device *device, const struct quern_target *target,
                    struct quern_message *why);

/* ---- cuda_module.c, cuda_image.c ----------------------------------------------------------- */

/* QUERN_LOAD unless the blob is an ELF file for CUDA whose parts lie within it. */
int qn_cuda_image_check(const void *blob, size_t blob_bytes, struct quern_message *why);

int qn_cuda_load(struct qn_device *device, const struct quern_target *target, const void *blob,
                 size_t blob_bytes, struct qn_module **module, struct quern_message *why);
void qn_cuda_unload(struct qn_device *device, struct qn_module *module);
int qn_cuda_function(struct qn_device *device, struct qn_module *module, const char *entry,
                     struct qn_function **function, struct quern_message *why);

/* ---- cuda_map.c ---------------------------------------------------------------------------- */

/* The last encoding of each map of a function. */
struct qn_cuda_maps {
    atomic_flag is_busy;
    struct {
        bool is_set;
        struct quern_tensor_map map;
        __attribute__((aligned(64))) unsigned char encoded[QUERN_MAP_BYTES];
    } last[QUERN_MAX_MAPS];
};
/* Writes the step's maps into its args; `name` is the step's. */
int qn_cuda_maps_encode(const struct qn_cuda_driver *cu, struct qn_cuda_maps *maps,
                        struct quern_step_launch *step, const char *name,
                        struct quern_message *why);

/* ---- cuda_launch.c ------------------------------------------------------------------------- */

struct qn_function {
    struct cu_kernel *kernel;
    struct qn_function *next; /* of the module */
    size_t args_bytes;        /* what the kernel takes; 0: not known */
    int shared_limit;         /* dynamic shared memory */
    struct qn_cuda_maps maps;
};

int qn_cuda_launch(struct qn_device *device, const struct quern_plan *plan,
                   struct qn_function *const *functions, struct quern_launch *launch, void *stream,
                   enum qn_grid_order order, struct quern_message *why);

/* ---- cuda_memory.c ------------------------------------------------------------------------- */

void *qn_cuda_alloc(struct qn_device *device, size_t bytes, void *stream);
void qn_cuda_free(struct qn_device *device, void *data, size_t bytes, void *stream);
int qn_cuda_copy(struct qn_device *device, void *to, const void *from, size_t bytes, void *stream);
int qn_cuda_fill(struct qn_device *device, void *data, int byte, size_t bytes, void *stream);
size_t qn_cuda_free_bytes(struct qn_device *device);
int qn_cuda_check_pointer(struct qn_device *device, const void *data, struct quern_message *why);

/* ---- cuda_time.c --------------------------------------------------------------------------- */

int qn_cuda_time_launch(struct qn_device *device, const struct quern_plan *plan,
                        struct qn_function *const *functions, struct quern_launch *launch,
                        void *stream, double *nanoseconds, struct quern_message *why);
int qn_cuda_record(struct qn_device *device, const struct quern_plan *plan,
                   struct qn_function *const *functions, struct quern_launch *launches, int count,
                   struct qn_recording **recording, struct quern_message *why);
int qn_cuda_replay(struct qn_device *device, struct qn_recording *recording, double *nanoseconds,
                   struct quern_message *why);
void qn_cuda_forget(struct qn_device *device, struct qn_recording *recording);
/* Destroys device->clock. */
void qn_cuda_time_fini(struct qn_device *device);

/* ---- cuda_doctor.c ------------------------------------------------------------------------- */

void qn_cuda_doctor(const struct qn_backend_options *options, struct qn_device *device,
                    void (*fact)(void *user, const char *section, const char *name,
                                 const char *value),
                    void *user);

#endif
