/* A stand-in for the CUDA driver, and a device on it, for the suites that ask what the backend asks
 * of one.
 *
 * The entry points keep a stack of contexts and write what they are asked into cuda_fake.asked, a
 * word a call; the one named by `failing` returns `code` instead of 0. A tensor map is "encoded" as
 * what it was given, so that a test can look into it. One thread at a time, but for the maps. */
#ifndef CUDA_FAKE_H
#define CUDA_FAKE_H

#include "jit/cuda/cuda_device.h"
#include "tests/common.h"

struct cu_context {
    int device;
};
struct cu_stream {
    struct cu_context *context;
    int capture;
};

struct cuda_fake {
    struct cu_context contexts[3]; /* the primary ones of cuda:0 and cuda:1; another of cuda:0 */
    struct cu_context *stack[8];
    int depth;
    char asked[4096];
    const char *failing;
    int code;
    struct cu_launch launched; /* the last launch */
    struct cu_launch_attribute attributes[4];
    int kernel_attributes[16]; /* as set; [CU_KERNEL_SHARED_BYTES] is what the kernel has */
    size_t parameters[2];      /* bytes of the kernel's; 0: it has no such */
    const char *name;          /* the device's */
};
extern struct cuda_fake cuda_fake;
extern const struct qn_cuda_driver cuda_fake_driver;
extern _Atomic int cuda_fake_encoded, cuda_fake_replaced; /* maps */

/* What a stand-in map holds; 128 bytes. */
struct cuda_fake_map {
    void *data;
    uint64_t strides[4];
    uint32_t dims[5], box[5];
    uint8_t dtype, rank, swizzle;
    char rest[44];
};

/* ---- A device on it, an sm_90a, and a launch ----------------------------------------------- */

struct cuda_bed {
    struct qn_device device;
    struct quern_plan plan;
    struct quern_launch launch;
    struct qn_function function; /* of every step */
    struct qn_function *functions[QUERN_MAX_STEPS];
    struct quern_message why;
};
extern struct cuda_bed cuda_bed;

/* Everything as new; a checked fixture. */
void cuda_bed_init(void);
/* One more kernel step, of 4 x 2 x 1 blocks of 128 threads. */
struct quern_step *cuda_bed_kernel(const char *name);
/* Launches; asked is what that asked. */
int cuda_bed_run(void *stream);
void cuda_bed_push(struct cu_context *context);
/* The status, and a line in cuda_bed.why that contains `text`. */
void cuda_bed_says(int got, int status, const char *text);

#endif
