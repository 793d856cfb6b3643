/* oneDNN's matmul as a contestant, through dlopen: versions 2 and 3 of its C interface, whose types
 * are declared here because its headers need not be installed. Descriptors of version 2 are structs
 * of the caller's; they are only ever passed by pointer, so that a large enough block of bytes
 * does.
 *
 * b is given as it lies (n rows of k), or prepacked: its format is left to oneDNN, and b is brought
 * into it by a reorder before anything is timed, a copy for each set.
 */
#ifndef BENCH_DNNL_PEER_H
#define BENCH_DNNL_PEER_H

#include "bench/contest.h"
#include <dlfcn.h>

enum {
    DNNL_BF16 = 2,
    DNNL_F32 = 3,
    DNNL_CPU = 1,
    DNNL_IN_ORDER = 1,
    DNNL_TAG_ANY = 1,
    DNNL_QUERY_IMPLEMENTATION = 8,
    DNNL_QUERY_WEIGHTS = 131,
    DNNL_ARG_SOURCE = 1,
    DNNL_ARG_DESTINATION = 17,
    DNNL_ARG_WEIGHT = 33
};

typedef struct dnnl_object *dnnl_ref; /* engine, stream, primitive, its descriptor, memory */

struct dnnl_description { /* dnnl_memory_desc_t (696 bytes) or dnnl_matmul_desc_t (2800) of 2.6 */
    _Alignas(16) unsigned char bytes[8192];
};

struct dnnl_argument {
    int arg;
    dnnl_ref memory;
};

struct dnnl_library_version {
    int major, minor, patch;
};

/* name in the table, symbol, parameters; all return a status, 0 is success */
#define DNNL_ENTRY_POINTS(X)                                                                       \
    X(engine_create, "dnnl_engine_create", (dnnl_ref *, int kind, size_t index))                   \
    X(stream_create, "dnnl_stream_create", (dnnl_ref *, dnnl_ref engine, unsigned flags))          \
    X(stream_wait, "dnnl_stream_wait", (dnnl_ref))                                                 \
    X(query, "dnnl_primitive_desc_query", (dnnl_ref, int what, int index, void *result))           \
    X(primitive_create, "dnnl_primitive_create", (dnnl_ref *, dnnl_ref description))               \
    X(memory_create, "dnnl_memory_create",                                                         \
      (dnnl_ref *, const void *description, dnnl_ref engine, void *data))                          \
    X(reorder_create, "dnnl_reorder_primitive_desc_create",                                        \
      (dnnl_ref *, const void *from, dnnl_ref from_engine, const void *to, dnnl_ref to_engine,     \
       const void *attributes))                                                                    \
    X(execute, "dnnl_primitive_execute",                                                           \
      (dnnl_ref, dnnl_ref stream, int count, const struct dnnl_argument *))
#define DNNL_ENTRY_POINTS_2(X)                                                                     \
    X(strided, "dnnl_memory_desc_init_by_strides",                                                 \
      (void *, int rank, const int64_t *dims, int dtype, const int64_t *strides))                  \
    X(tagged, "dnnl_memory_desc_init_by_tag",                                                      \
      (void *, int rank, const int64_t *dims, int dtype, int tag))                                 \
    X(matmul_init, "dnnl_matmul_desc_init",                                                        \
      (void *, const void *a, const void *b, const void *bias, const void *d))                     \
    X(description_create, "dnnl_primitive_desc_create",                                            \
      (dnnl_ref *, const void *operation, const void *attributes, dnnl_ref engine, dnnl_ref hint))
#define DNNL_ENTRY_POINTS_3(X)                                                                     \
    X(create_strided, "dnnl_memory_desc_create_with_strides",                                      \
      (void **, int rank, const int64_t *dims, int dtype, const int64_t *strides))                 \
    X(create_tagged, "dnnl_memory_desc_create_with_tag",                                           \
      (void **, int rank, const int64_t *dims, int dtype, int tag))                                \
    X(matmul_create, "dnnl_matmul_primitive_desc_create",                                          \
      (dnnl_ref *, dnnl_ref engine, const void *a, const void *b, const void *bias, const void *d, \
       const void *attributes))

struct dnnl {
    const struct dnnl_library_version *version;
    dnnl_ref engine, stream;
    const struct dnnl_library_version *(*get_version)(void);
    const void *(*query_memory)(dnnl_ref description, int what, int index);
    size_t (*memory_bytes)(const void *description);
#define X(field, symbol, parameters) int(*field) parameters;
    DNNL_ENTRY_POINTS(X)
    DNNL_ENTRY_POINTS_2(X)
    DNNL_ENTRY_POINTS_3(X)
#undef X
};

/* One product, ready to run on any of the sets. */
struct dnnl_product {
    const struct dnnl *dnnl;
    dnnl_ref primitive, a, d, b[MAX_SETS];
};

/* ---- Loading ------------------------------------------------------------------------------- */

/* NULL, or the first symbol that is not there. */
static const char *dnnl_bind(struct dnnl *dnnl, void *library)
{
    *(void **)&dnnl->get_version = dlsym(library, "dnnl_version");
    *(void **)&dnnl->query_memory = dlsym(library, "dnnl_primitive_desc_query_md");
    *(void **)&dnnl->memory_bytes = dlsym(library, "dnnl_memory_desc_get_size");
    if (!dnnl->get_version || !dnnl->query_memory || !dnnl->memory_bytes)
        return "dnnl_version, dnnl_primitive_desc_query_md or dnnl_memory_desc_get_size";
    dnnl->version = dnnl->get_version();
#define X(field, symbol, parameters)                                                               \
    if (!(*(void **)&dnnl->field = dlsym(library, symbol)))                                        \
        return symbol;
    DNNL_ENTRY_POINTS(X)
    if (dnnl->version->major == 2) {
        DNNL_ENTRY_POINTS_2(X)
    } else {
        DNNL_ENTRY_POINTS_3(X)
    }
#undef X
    return NULL;
}

/* 0, or -1 with a line said why. */
static int dnnl_open(struct dnnl *dnnl)
{
    static const char *const names[] = { "libdnnl.so.3", "libdnnl.so.2", "libdnnl.so" };
    const char *missing, *given = getenv("DNNL_LIBRARY");
    void *library = given ? dlopen(given, RTLD_NOW | RTLD_LOCAL) : NULL;
    for (int i = 0; i < 3 && !library && !given; i++)
        library = dlopen(names[i], RTLD_NOW | RTLD_LOCAL);
    if (!library) {
        fprintf(talk, "    oneDNN is skipped: %s\n", dlerror());
        return -1;
    }
    missing = dnnl_bind(dnnl, library);
    if (missing || (dnnl->version->major != 2 && dnnl->version->major != 3)) {
        fprintf(talk, "    oneDNN is skipped: %s is missing or of another version\n",
                missing ? missing : "its interface");
        return -1;
    }
    if (dnnl->engine_create(&dnnl->engine, DNNL_CPU, 0) ||
        dnnl->stream_create(&dnnl->stream, dnnl->engine, DNNL_IN_ORDER)) {
        fprintf(talk, "    oneDNN is skipped: no engine\n");
        return -1;
    }
    return 0;
}

/* ---- A product ----------------------------------------------------------------------------- */

/* A row-major matrix, or its transpose, or (stride 0) any format. */
static const void *dnnl_describe(const struct dnnl *dnnl, int is_bf16, int64_t rows,
                                 int64_t columns, int64_t row_stride, int64_t column_stride)
{
    int64_t dims[2] = { rows, columns }, strides[2] = { row_stride, column_stride };
    int dtype = is_bf16 ? DNNL_BF16 : DNNL_F32, status;
    void *description = NULL;
    if (dnnl->version->major == 3)
        status = row_stride ? dnnl->create_strided(&description, 2, dims, dtype, strides)
                            : dnnl->create_tagged(&description, 2, dims, dtype, DNNL_TAG_ANY);
    else {
        description = calloc(1, sizeof(struct dnnl_description));
        status = row_stride ? dnnl->strided(description, 2, dims, dtype, strides)
                            : dnnl->tagged(description, 2, dims, dtype, DNNL_TAG_ANY);
    }
    return status ? NULL : description;
}

static int dnnl_plan(const struct dnnl *dnnl, const struct contestant *entry, const void *b,
                     dnnl_ref *plan)
{
    const struct workload *w = entry->work;
    const void *a = dnnl_describe(dnnl, w->is_bf16, w->m, w->k, w->k, 1);
    const void *d = dnnl_describe(dnnl, entry->d_is_bf16, w->m, w->n, w->n, 1);
    struct dnnl_description operation;
    if (!a || !b || !d)
        return -1;
    if (dnnl->version->major == 3)
        return dnnl->matmul_create(plan, dnnl->engine, a, b, NULL, d, NULL);
    memset(&operation, 0, sizeof operation);
    if (dnnl->matmul_init(&operation, a, b, NULL, d))
        return -1;
    return dnnl->description_create(plan, &operation, NULL, dnnl->engine, NULL);
}

/* b[set] in the format that the product wants: the array itself, or a copy. */
static int dnnl_weights(const struct dnnl *dnnl, const void *from_description, void *from,
                        const void *to_description, dnnl_ref *memory)
{
    dnnl_ref source, plan, reorder;
    if (!to_description)
        return dnnl->memory_create(memory, from_description, dnnl->engine, from);
    if (dnnl->memory_create(&source, from_description, dnnl->engine, from) ||
        dnnl->memory_create(memory, to_description, dnnl->engine,
                            big_alloc(dnnl->memory_bytes(to_description))) ||
        dnnl->reorder_create(&plan, from_description, dnnl->engine, to_description, dnnl->engine,
                             NULL) ||
        dnnl->primitive_create(&reorder, plan))
        return -1;
    struct dnnl_argument arguments[] = { { DNNL_ARG_SOURCE, source },
                                         { DNNL_ARG_DESTINATION, *memory } };
    return dnnl->execute(reorder, dnnl->stream, 2, arguments) || dnnl->stream_wait(dnnl->stream);
}

static int dnnl_prepare(const struct dnnl *dnnl, struct contestant *entry, int is_packed,
                        struct dnnl_product *product)
{
    const struct workload *w = entry->work;
    const void *as_is = dnnl_describe(dnnl, w->is_bf16, w->k, w->n, 1, w->k), *wanted = NULL;
    const void *b = is_packed ? dnnl_describe(dnnl, w->is_bf16, w->k, w->n, 0, 0) : as_is;
    const char *name = "?";
    dnnl_ref plan;
    product->dnnl = dnnl;
    if (dnnl_plan(dnnl, entry, b, &plan))
        return -1;
    if (is_packed && !(wanted = dnnl->query_memory(plan, DNNL_QUERY_WEIGHTS, 0)))
        return -1;
    for (int set = 0; set < w->sets; set++)
        if (dnnl_weights(dnnl, as_is, w->b[set], wanted, &product->b[set]))
            return -1;
    if (dnnl->primitive_create(&product->primitive, plan) ||
        dnnl->memory_create(&product->a, dnnl_describe(dnnl, w->is_bf16, w->m, w->k, w->k, 1),
                            dnnl->engine, w->a) ||
        dnnl->memory_create(&product->d, dnnl_describe(dnnl, entry->d_is_bf16, w->m, w->n, w->n, 1),
                            dnnl->engine, entry->d))
        return -1;
    dnnl->query(plan, DNNL_QUERY_IMPLEMENTATION, 0, (void *)&name);
    snprintf(entry->name, sizeof entry->name, "oneDNN, b %s (%s)",
             is_packed ? "prepacked" : "as is", name);
    return 0;
}

static int dnnl_call(struct contestant *self, int set)
{
    const struct dnnl_product *product = self->state;
    struct dnnl_argument arguments[] = { { DNNL_ARG_SOURCE, product->a },
                                         { DNNL_ARG_WEIGHT, product->b[set] },
                                         { DNNL_ARG_DESTINATION, product->d } };
    return product->dnnl->execute(product->primitive, product->dnnl->stream, 3, arguments) ||
           product->dnnl->stream_wait(product->dnnl->stream);
}

/* Prepacked, and b as it lies. d has the dtype of a and b. */
static void dnnl_enter(struct contest *contest, const struct dnnl *dnnl)
{
    for (int is_packed = 1; is_packed >= 0; is_packed--) {
        struct contestant *entry =
            contest_add(contest, is_packed ? "onednn" : "onednn-as-is", contest->work.is_bf16);
        if (!entry)
            return;
        entry->call = dnnl_call;
        entry->state = calloc(1, sizeof(struct dnnl_product));
        if (dnnl_prepare(dnnl, entry, is_packed, entry->state))
            contest_drop(contest, entry, "oneDNN has no such product here");
    }
}
#endif
