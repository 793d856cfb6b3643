#include "cuda_common.h"

#include <libgen.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "jit/cuda/nvrtc.h"

const char *const cuda_targets[CUDA_TARGET_COUNT] = { "sm_80",  "sm_86",   "sm_89",
                                                      "sm_90a", "sm_100a", "sm_120a" };

static bool is_found(void)
{
    struct qn_backend_options options = { .nvrtc = getenv("QUERN_NVRTC") };
    struct quern_message why;
    struct qn_nvrtc *nvrtc;
    char *path = NULL;
    bool is_there = !qn_nvrtc_open(&options, 0, &nvrtc, &why);
    if (is_there) {
        is_there = !qn_nvrtc_find(nvrtc, &path, &why);
        qn_nvrtc_close(nvrtc);
    }
    free(path);
    return is_there;
}

/* What tools/deps.sh leaves where it could not get NVRTC: the reason. */
bool cuda_is_skipped(int checks)
{
    char *program = realpath("/proc/self/exe", NULL), path[PATH_MAX], reason[256] = "";
    snprintf(path, sizeof(path), "%.4000s/../nvrtc/absent", program ? dirname(program) : "");
    FILE *file = fopen(path, "r");
    bool is_absent = file && fgets(reason, sizeof(reason), file) && !is_found();
    if (file)
        fclose(file);
    free(program);
    if (!is_absent)
        return false;
    printf("there is no NVRTC: %s\n0 passed, 0 failed, %d skipped\n", strtok(reason, "\n"), checks);
    fflush(stdout);
    return true;
}
