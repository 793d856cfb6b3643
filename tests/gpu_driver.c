#include "gpu_driver.h"

#include <dlfcn.h>
#include <string.h>

#include "common.h"
#include "gpu_arrays.h"

const struct gpu_driver *gpu_driver(void)
{
    static struct gpu_driver driver;
    if (driver.init)
        return &driver;
    struct gpu_driver found;
    void *library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL), *symbol;
    ck_assert_msg(library != NULL, "%s", dlerror());
#define X(name, symbol_name, parameters)                                                           \
    symbol = dlsym(library, #symbol_name);                                                         \
    ck_assert_msg(symbol != NULL, #symbol_name ": not in libcuda.so.1");                           \
    memcpy(&found.name, &symbol, sizeof(symbol));
    GPU_DRIVER_LIST(X)
#undef X
    assert_cuda(found.init(0));
    driver = found;
    return &driver;
}

void gpu_driver_enter(void)
{
    void *primary;
    assert_cuda(gpu_driver()->primary_retain(&primary, gpu_ordinal()));
    assert_cuda(gpu_driver()->ctx_set_current(primary));
}

void gpu_driver_leave(void)
{
    assert_cuda(gpu_driver()->ctx_set_current(NULL));
    assert_cuda(gpu_driver()->primary_release(gpu_ordinal()));
}
