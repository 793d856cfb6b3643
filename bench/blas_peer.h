/* OpenBLAS as a contestant, through dlopen. Its kernels are chosen when it is loaded, by
 * OPENBLAS_CORETYPE: blas_open() wants that set before, hence a process for each choice. */
#ifndef BENCH_BLAS_PEER_H
#define BENCH_BLAS_PEER_H

#include "bench/contest.h"
#include <dlfcn.h>

enum { BLAS_ROW_MAJOR = 101, BLAS_NO_TRANS = 111, BLAS_TRANS = 112 };

struct blas {
    void (*sgemm)(int order, int trans_a, int trans_b, int m, int n, int k, float alpha,
                  const float *a, int lda, const float *b, int ldb, float beta, float *c, int ldc);
    void (*sgemv)(int order, int trans, int m, int n, float alpha, const float *a, int lda,
                  const float *x, int incx, float beta, float *y, int incy);
    void (*set_threads)(int threads);
    char *(*config)(void);
    char *(*core)(void);
};

/* 0, or -1 with a line said why. */
static int blas_open(struct blas *blas, int threads)
{
    static const char *const names[] = { "libopenblas.so.0", "libopenblas.so" };
    void *library = NULL;
    for (int i = 0; i < 2 && !library; i++)
        library = dlopen(names[i], RTLD_NOW | RTLD_LOCAL);
    if (!library) {
        fprintf(talk, "    OpenBLAS is skipped: %s\n", dlerror());
        return -1;
    }
    *(void **)&blas->sgemm = dlsym(library, "cblas_sgemm");
    *(void **)&blas->sgemv = dlsym(library, "cblas_sgemv");
    *(void **)&blas->set_threads = dlsym(library, "openblas_set_num_threads");
    *(void **)&blas->config = dlsym(library, "openblas_get_config");
    *(void **)&blas->core = dlsym(library, "openblas_get_corename");
    if (!blas->sgemm || !blas->sgemv || !blas->set_threads || !blas->config || !blas->core) {
        fprintf(talk, "    OpenBLAS is skipped: it lacks cblas_sgemm or openblas_* functions\n");
        return -1;
    }
    blas->set_threads(threads);
    return 0;
}

static int blas_call_gemm(struct contestant *self, int set)
{
    const struct workload *w = self->work;
    const struct blas *blas = self->state;
    int m = (int)w->m, n = (int)w->n, k = (int)w->k;
    blas->sgemm(BLAS_ROW_MAJOR, BLAS_NO_TRANS, BLAS_TRANS, m, n, k, 1, w->a, k, w->b[set], k, 0,
                self->d, n);
    return 0;
}

static int blas_call_gemv(struct contestant *self, int set)
{
    const struct workload *w = self->work;
    const struct blas *blas = self->state;
    int n = (int)w->n, k = (int)w->k;
    blas->sgemv(BLAS_ROW_MAJOR, BLAS_NO_TRANS, n, k, 1, w->b[set], k, w->a, 1, 0, self->d, 1);
    return 0;
}

static void blas_enter(struct contest *contest, struct blas *blas)
{
    for (int is_gemv = 0; is_gemv <= (contest->work.m == 1); is_gemv++) {
        struct contestant *entry = contest_add(contest, "openblas", 0);
        if (!entry)
            return;
        entry->state = blas;
        entry->call = is_gemv ? blas_call_gemv : blas_call_gemm;
        snprintf(entry->name, sizeof entry->name, "OpenBLAS %s (%s)", is_gemv ? "sgemv" : "sgemm",
                 blas->core());
    }
}
#endif
