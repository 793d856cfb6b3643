/* What is in the cache, why a request hits or misses, and whether the file is sound. For people and
 * tools; a program that only calls kernels needs none of it. Rows and texts handed to a callback
 * live until it returns. Threads: any, as in quern.h. */
#ifndef QUERN_CACHE_H
#define QUERN_CACHE_H

#include <quern.h>

#ifdef __cplusplus
extern "C" {
#endif

struct quern_cache_stats {
    int64_t artifacts, tuned, trials, misses_recorded;
    int64_t bytes;                  /* of the file */
    int64_t compiles, hits, misses; /* since the cache was created, all processes */
};
QUERN_API int quern_cache_stats(struct quern_context *ctx, struct quern_cache_stats *stats);

struct quern_cache_row {
    const char *table;                      /* "artifact" or "tuned" */
    const char *key;                        /* 32 hexadecimal digits */
    const char *text;                       /* the key's canonical text, one name=value a line */
    const char *family;                     /* "gemm" */
    const char *target;                     /* artifact: target; tuned: device profile */
    const char *detail;                     /* artifact: compiler; tuned: "gemm_cpu mr=14,..." */
    const char *log;                        /* artifact: the compiler's */
    int64_t bytes, hits, created, last_use; /* times in Unix seconds */
    int64_t generation;                     /* tuned */
    double time_us, spread_us;              /* tuned */
};
typedef int quern_cache_visit(void *user, const struct quern_cache_row *row);
/* Every artifact, then every tuned row; a non-zero return of visit ends it and is returned. */
QUERN_API int quern_cache_list(struct quern_context *ctx, quern_cache_visit *visit, void *user);
/* The rows whose key starts with `prefix`; MISS if none. */
QUERN_API int quern_cache_show(struct quern_context *ctx, const char *prefix,
                               quern_cache_visit *visit, void *user);

/* The nearest stored key is the one with the fewest differing lines among the family's for the same
 * target and template, or, of tuned rows, the same profile. Where there are none such, one line
 * says what is stored instead, with nearest NULL: "target", wanted "cpu:x86-64-v4", have "sm_80,
 * sm_90a".
 */
struct quern_cache_difference {
    const char *table;   /* "tuned" or "artifact" */
    const char *key;     /* of this request */
    const char *nearest; /* the stored key compared with; NULL: none */
    const char *name;    /* of the differing line; NULL: a hit, or with nearest NULL: none stored */
    const char *wanted, *have; /* its values; NULL: absent on that side */
};
/* Why the request hits or misses, one call of `line` a fact. */
QUERN_API int quern_cache_explain(struct quern_context *ctx, const struct quern_request *request,
                                  void (*line)(void *user,
                                               const struct quern_cache_difference *difference),
                                  void *user);
/* Check the file and every blob; damaged rows are set aside. */
QUERN_API int quern_cache_verify(struct quern_context *ctx, int64_t *checked, int64_t *damaged);

#ifdef __cplusplus
}
#endif
#endif
