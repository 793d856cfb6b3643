/* cuBLASLt as a contestant: dlopen'ed, declared by hand as in cublasLt.h of CUDA 12 and 13.
 *
 * Our rows-first d[m,n] = a[m,k] b[n,k]^T is, columns first, d^T[n,m] = op(b) a^T: its A is our b
 * (k x n, transposed), its B our a (k x m), its D our d (n x m).
 */
#ifndef BENCH_CUBLASLT_PEER_H
#define BENCH_CUBLASLT_PEER_H

#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { LT_ALGORITHMS = 8, LT_WORKSPACE_BYTES = 64 << 20 };
enum { LT_R_32F = 0, LT_R_16BF = 14 }; /* cudaDataType_t */
enum { LT_COMPUTE_32F = 68 };          /* cublasComputeType_t */
enum { LT_OP_N = 0, LT_OP_T = 1, LT_DESC_TRANSA = 3, LT_DESC_TRANSB = 4 };
enum { LT_PREFERENCE_WORKSPACE = 1 };

struct lt_algorithm { /* cublasLtMatmulHeuristicResult_t */
    uint64_t algo[8];
    size_t workspace_bytes;
    int state;
    float waves;
    int reserved[4];
};

/* X(field, symbol, parameters): all return a cublasStatus_t, 0 for success. */
#define LT_CALLS(X)                                                                                \
    X(create, "cublasLtCreate", (void **))                                                         \
    X(desc_create, "cublasLtMatmulDescCreate", (void **, int, int))                                \
    X(desc_set, "cublasLtMatmulDescSetAttribute", (void *, int, const void *, size_t))             \
    X(desc_destroy, "cublasLtMatmulDescDestroy", (void *))                                         \
    X(layout_create, "cublasLtMatrixLayoutCreate", (void **, int, uint64_t, uint64_t, int64_t))    \
    X(layout_destroy, "cublasLtMatrixLayoutDestroy", (void *))                                     \
    X(preference_create, "cublasLtMatmulPreferenceCreate", (void **))                              \
    X(preference_set, "cublasLtMatmulPreferenceSetAttribute", (void *, int, const void *, size_t)) \
    X(preference_destroy, "cublasLtMatmulPreferenceDestroy", (void *))                             \
    X(algorithms, "cublasLtMatmulAlgoGetHeuristic",                                                \
      (void *, void *, void *, void *, void *, void *, void *, int, struct lt_algorithm *, int *)) \
    X(matmul, "cublasLtMatmul",                                                                    \
      (void *, void *, const void *, const void *, void *, const void *, void *, const void *,     \
       const void *, void *, void *, void *, const uint64_t *, void *, size_t, void *))

struct lt {
#define X(field, symbol, parameters) int(*field) parameters;
    LT_CALLS(X)
#undef X
    size_t version;
    void *handle;
    char path[512];
};

struct lt_product {
    void *desc, *a, *b, *d;
    int count; /* algorithms, cuBLASLt's first choice first */
    struct lt_algorithm algorithms[LT_ALGORITHMS];
};

static int lt_load(struct lt *lt, const char *path)
{
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    size_t (*version)(void);
    if (!library)
        return -1;
    snprintf(lt->path, sizeof lt->path, "%s", path);
    *(void **)&version = dlsym(library, "cublasLtGetVersion");
#define X(field, symbol, parameters)                                                               \
    if (!(*(void **)&lt->field = dlsym(library, symbol)))                                          \
        return -1;
    LT_CALLS(X)
#undef X
    lt->version = version ? version() : 0;
    return lt->create(&lt->handle); /* refuses a driver that is too old for it */
}

static int lt_load_below(struct lt *lt, const char *root, const char *name)
{
    static const char *const folders[] = { "lib64", "lib" };
    char path[512];
    for (int i = 0; root && i < 2; i++) {
        snprintf(path, sizeof path, "%s/%s/%s", root, folders[i], name);
        if (!lt_load(lt, path))
            return 0;
    }
    return -1;
}

/* QUERN_CUBLASLT, else the loader's path, CUDA_HOME, /usr/local/cuda; the newest first. The CUDA
 * context must be current. 0 when it can be used. */
static int lt_open(struct lt *lt)
{
    static const char *const names[] = { "libcublasLt.so.13", "libcublasLt.so.12" };
    const char *given = getenv("QUERN_CUBLASLT");
    memset(lt, 0, sizeof *lt);
    if (given)
        return lt_load(lt, given);
    for (int i = 0; i < 2; i++)
        if (!lt_load(lt, names[i]) || !lt_load_below(lt, getenv("CUDA_HOME"), names[i]) ||
            !lt_load_below(lt, "/usr/local/cuda", names[i]))
            return 0;
    return -1;
}

/* Descriptors of a bf16 product and what cuBLASLt would run for it; 0 if it knows anything. */
static int lt_product_init(const struct lt *lt, struct lt_product *product, int64_t m, int64_t n,
                           int64_t k)
{
    const int transposed = LT_OP_T, plain = LT_OP_N;
    const uint64_t workspace = LT_WORKSPACE_BYTES;
    void *preference;
    int failed;
    memset(product, 0, sizeof *product);
    failed = lt->desc_create(&product->desc, LT_COMPUTE_32F, LT_R_32F) ||
             lt->desc_set(product->desc, LT_DESC_TRANSA, &transposed, sizeof transposed) ||
             lt->desc_set(product->desc, LT_DESC_TRANSB, &plain, sizeof plain) ||
             lt->layout_create(&product->a, LT_R_16BF, (uint64_t)k, (uint64_t)n, k) ||
             lt->layout_create(&product->b, LT_R_16BF, (uint64_t)k, (uint64_t)m, k) ||
             lt->layout_create(&product->d, LT_R_16BF, (uint64_t)n, (uint64_t)m, n);
    if (failed || lt->preference_create(&preference))
        return -1;
    failed =
        lt->preference_set(preference, LT_PREFERENCE_WORKSPACE, &workspace, sizeof workspace) ||
        lt->algorithms(lt->handle, product->desc, product->a, product->b, product->d, product->d,
                       preference, LT_ALGORITHMS, product->algorithms, &product->count);
    lt->preference_destroy(preference);
    return failed || !product->count ? -1 : 0;
}

static void lt_product_fini(const struct lt *lt, struct lt_product *product)
{
    void *const layouts[] = { product->a, product->b, product->d };
    for (int i = 0; i < 3; i++)
        if (layouts[i])
            lt->layout_destroy(layouts[i]);
    if (product->desc)
        lt->desc_destroy(product->desc);
}

static int lt_call(const struct lt *lt, const struct lt_product *product, int algorithm,
                   const void *a, const void *b, void *d, void *workspace, void *stream)
{
    const float one = 1, zero = 0;
    return lt->matmul(lt->handle, product->desc, &one, b, product->a, a, product->b, &zero, d,
                      product->d, d, product->d, product->algorithms[algorithm].algo, workspace,
                      LT_WORKSPACE_BYTES, stream);
}
#endif
