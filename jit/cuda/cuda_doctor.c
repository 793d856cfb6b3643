/* What `quern doctor` says of CUDA: the driver, every device, NVRTC. No context is made. */
#include "jit/cuda/cuda_device.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "jit/target.h"

/* Who is told, so that a fact takes one line here. */
struct audience {
    void (*fact)(void *user, const char *section, const char *name, const char *value);
    void *user;
};

static void tell(const struct audience *audience, const char *name, const char *value)
{
    audience->fact(audience->user, "cuda", name, value);
}

static void tell_device(const struct audience *audience, const struct qn_cuda_driver *cu,
                        int ordinal)
{
    struct qn_device device = { .cu = cu, .ordinal = ordinal };
    char name[128] = "unknown", target[QN_TARGET_TEXT_BYTES], line[512];
    struct quern_message why;
    size_t bytes = 0;

    snprintf(device.subject, sizeof device.subject, "device=cuda:%d", ordinal);
    if (qn_cuda_device_read(&device, &why)) {
        snprintf(line, sizeof line, "%s", why.text);
    } else {
        cu->device_name(name, sizeof name, ordinal);
        cu->device_memory(&bytes, ordinal);
        qn_target_format(&device.target, target, sizeof target);
        snprintf(line, sizeof line, "%s, %s, %d SMs, %zu GiB, profile %s", name, target,
                 device.profile.cores, bytes >> 30, device.profile.name);
    }
    tell(audience, device.subject + strlen("device="), line);
}

static void tell_driver(const struct audience *audience)
{
    const struct qn_cuda_driver *cu = NULL;
    struct quern_message why;
    char version[32];
    int count = 0;
    int status = qn_cuda_driver_get(&cu, &why);

    if (!status) {
        int code = cu->device_count(&count);
        status = code ? qn_cuda_fail(cu, "device=cuda", "cuDeviceGetCount", code, &why) : 0;
    }
    if (!status && !count)
        status = quern_refuse(&why, "device=cuda: the driver sees no device");
    tell(audience, "usable", status ? "no" : "yes");
    if (status)
        tell(audience, "reason", why.text);
    int number = qn_cuda_driver_version();
    snprintf(version, sizeof version, "%d.%d", number / 1000, number / 10 % 100);
    tell(audience, "driver", number ? version : "none");
    for (int i = 0; i < count; i++)
        tell_device(audience, cu, i);
}

/* Without it, what is stored still runs: this does not make the device unusable. */
static void tell_nvrtc(const struct audience *audience, struct qn_nvrtc *nvrtc)
{
    struct quern_message why;
    char identity[256], *path;

    if (qn_nvrtc_find(nvrtc, &path, &why)) {
        tell(audience, "nvrtc", why.text);
        return;
    }
    tell(audience, "nvrtc", path);
    tell(audience, "nvrtc_version",
         qn_nvrtc_identity(nvrtc, identity, sizeof identity, &why) ? why.text : identity);
    free(path);
}

void qn_cuda_doctor(const struct qn_backend_options *options, struct qn_device *device,
                    void (*fact)(void *user, const char *section, const char *name,
                                 const char *value),
                    void *user)
{
    const struct audience audience = { fact, user };
    struct qn_nvrtc *own = NULL;
    struct quern_message why;

    tell_driver(&audience);
    if (!device && qn_nvrtc_open(options, qn_cuda_driver_version(), &own, &why)) {
        tell(&audience, "nvrtc", why.text);
        return;
    }
    tell_nvrtc(&audience, device ? device->nvrtc : own);
    qn_nvrtc_close(own);
}
