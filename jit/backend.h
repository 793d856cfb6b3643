/* What a device backend gives the pipeline. jit/cpu/ is one, jit/cuda/ is the other; the rest of
 * jit/ knows them only as this table. Every function may be called from any thread; errors are
 * written as one line into `why` and returned as a negative enum quern_status. */
#ifndef QN_BACKEND_H
#define QN_BACKEND_H

#include <quern/family.h>

/* A loaded artifact, and one entry of it. */
struct qn_module;
struct qn_function;

/* What a compilation takes. options is canonical text and part of the artifact's key. */
struct qn_compile_request {
    const char *source;
    size_t source_bytes;
    const struct quern_target *target;
    const char *options;
    double timeout_s; /* the compiler is killed after it */
};

/* What it gives; all malloc'ed. */
struct qn_compile_result {
    void *blob;
    size_t blob_bytes;
    char *log;    /* the compiler's messages, also on failure */
    char *report; /* a line an entry: "entry=NAME registers=N spills=BYTES shared=BYTES"; "" if the
                     compiler reports nothing */
};
void qn_compile_result_fini(struct qn_compile_result *result);

/* The order in which a CPU grid's blocks run. Checks use all three: a kernel whose blocks depend on
 * each other gives different results. A device whose order cannot be chosen ignores it. */
enum qn_grid_order { QN_GRID_PARALLEL, QN_GRID_FORWARD, QN_GRID_REVERSE };

/* That execute a grid. libgomp ends the process when it cannot start one. */
#define QN_MOST_THREADS 1024

struct qn_backend_options {
    const char *clang; /* NULL: search */
    const char *nvrtc; /* libnvrtc's file; NULL: search */
    int ordinal;       /* device number; -1: to compile only, no device need be there */
    int threads;       /* 0: default; at most QN_MOST_THREADS */
    void (*log)(void *user, int level, const char *line);
    void *user;
    /* Small facts that outlive the process (the store's meta table); may be NULL. find returns a
     * malloc'ed value or NULL. */
    char *(*fact_find)(void *user, const char *name);
    void (*fact_put)(void *user, const char *name, const char *value);
};

struct qn_device; /* a backend opened on one device */
struct qn_recording;

struct qn_backend {
    const char *name; /* "cpu" */
    enum quern_device_kind kind;

    /* Finds the device; loads no compiler. QUERN_DEVICE if there is none. */
    int (*open)(const struct qn_backend_options *options, struct qn_device **device,
                struct quern_message *why);
    void (*close)(struct qn_device *device);
    /* What the device executes, and its profile. */
    void (*describe)(const struct qn_device *device, struct quern_target *target,
                     struct quern_profile *profile);
    /* 0 if an artifact made for `target` runs here. */
    int (*accepts)(const struct qn_device *device, const struct quern_target *target,
                   struct quern_message *why);
    /* The compile options for `target`, canonical: no path, no environment. */
    void (*options)(const struct quern_target *target, char *text, size_t bytes);
    /* The compiler's identity (name, version, build), remembered by path, size and mtime: does not
     * run it when known. QUERN_NO_COMPILER says what is missing and how to get it. */
    int (*compiler)(struct qn_device *device, char *identity, size_t bytes,
                    struct quern_message *why);
    /* ", driver 13.0": what runs the kernels, to be added to the compiler's identity. NULL: nothing
     * that a machine's owner changes. */
    void (*driver)(struct qn_device *device, char *text, size_t bytes);
    /* QUERN_COMPILE with result->log set, QUERN_NO_COMPILER, ... */
    int (*compile)(struct qn_device *device, const struct qn_compile_request *request,
                   struct qn_compile_result *result, struct quern_message *why);
    /* Takes a copy of the blob. QUERN_LOAD: it is not for this device, damaged, or imports more
     * than it may; another copy may do better. Any other failure is the device's. */
    int (*load)(struct qn_device *device, const struct quern_target *target, const void *blob,
                size_t blob_bytes, struct qn_module **module, struct quern_message *why);
    void (*unload)(struct qn_device *device, struct qn_module *module);
    int (*function)(struct qn_device *device, struct qn_module *module, const char *entry,
                    struct qn_function **function, struct quern_message *why);
    /* Run the plan's steps in order; functions[i] is step i's (NULL for a memset). Tensor maps are
     * encoded into launch's args. */
    int (*launch)(struct qn_device *device, const struct quern_plan *plan,
                  struct qn_function *const *functions, struct quern_launch *launch, void *stream,
                  enum qn_grid_order order, struct quern_message *why);
    int (*synchronize)(struct qn_device *device, void *stream, struct quern_message *why);
    /* Non-zero while work on the stream is being captured into a graph: nothing may be compiled,
     * loaded or allocated then. */
    int (*is_capturing)(struct qn_device *device, void *stream);
    /* 0 if a kernel may be given `data`; else QUERN_INVALID and what it is instead ("host memory",
     * "memory of cuda:1"). Cheap enough for every call. */
    int (*check_pointer)(struct qn_device *device, const void *data, struct quern_message *why);

    /* Device memory, 256-byte aligned (CPU: page-aligned from 1 MiB up). NULL when out. */
    void *(*alloc)(struct qn_device *device, size_t bytes, void *stream);
    void (*free)(struct qn_device *device, void *data, size_t bytes, void *stream);
    int (*copy)(struct qn_device *device, void *to, const void *from, size_t bytes, void *stream);
    int (*fill)(struct qn_device *device, void *data, int byte, size_t bytes, void *stream);
    size_t (*free_bytes)(struct qn_device *device);

    /* Launch once and say how long it took on the device. */
    int (*time_launch)(struct qn_device *device, const struct quern_plan *plan,
                       struct qn_function *const *functions, struct quern_launch *launch,
                       void *stream, double *nanoseconds, struct quern_message *why);
    /* `count` launches recorded once (a CUDA graph), and run again and again: replay says how long
     * all of them together took. NULL where single launches time as well (CPU). */
    int (*record)(struct qn_device *device, const struct quern_plan *plan,
                  struct qn_function *const *functions, struct quern_launch *launches, int count,
                  struct qn_recording **recording, struct quern_message *why);
    int (*replay)(struct qn_device *device, struct qn_recording *recording, double *nanoseconds,
                  struct quern_message *why);
    void (*forget)(struct qn_device *device, struct qn_recording *recording);

    /* Facts for quern doctor, also when the device cannot be opened (device NULL). */
    void (*doctor)(const struct qn_backend_options *options, struct qn_device *device,
                   void (*fact)(void *user, const char *section, const char *name,
                                const char *value),
                   void *user);
};

extern const struct qn_backend qn_backend_cpu, qn_backend_cuda;

#endif
