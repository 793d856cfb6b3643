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

/* A request that was served by a config that nobody had tuned, and how often it was prepared. */
struct quern_cache_miss {
    const char *spec;                     /* of the bucket: quern_spec_parse() reads it */
    const char *profile;                  /* of the device it was planned for */
    int64_t count, first_seen, last_seen; /* Unix seconds */
};
/* Every one of them; a non-zero return of visit ends it and is returned. */
QUERN_API int quern_cache_misses(struct quern_context *ctx,
                                 int (*visit)(void *user, const struct quern_cache_miss *miss),
                                 void *user);

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
/* Check the file and every blob, then those of its bases. Damaged rows of the cache are set aside,
 * a base's passed over. */
QUERN_API int quern_cache_verify(struct quern_context *ctx, int64_t *checked, int64_t *damaged);

/* Copies what `from`, another context, knows of the request's bucket on its target: its tuned
 * configs and those of its neighbours, so that both choose alike. STORE: cannot be written. */
QUERN_API int quern_cache_adopt(struct quern_context *ctx, struct quern_context *from,
                                const struct quern_request *request);

/* What export takes; a NULL is all. Tuned rows go by family only: their keys name no target. A
 * model is what the manifest says. */
struct quern_cache_selection {
    const char *family, *target, *model;
};
struct quern_cache_merged {
    int64_t artifacts, tuned, manifest;   /* taken */
    int64_t artifacts_there, tuned_there; /* not taken: the same one, or a better one, is there */
    int64_t damaged;                      /* not taken: its hash does not hold */
};
/* Writes a new bundle of what is in the cache (not in its bases); INVALID if `path` exists, MISS if
 * nothing was selected. Nothing is left there on failure. selection may be NULL. */
QUERN_API int quern_cache_export(struct quern_context *ctx, const char *path,
                                 const struct quern_cache_selection *selection,
                                 struct quern_cache_merged *merged);
/* Takes the rows of a bundle into the cache. An artifact that is there stays. Of tuned rows of the
 * same key, which the device profile is part of, the newest generation stays, and of one generation
 * that of more samples. */
QUERN_API int quern_cache_import(struct quern_context *ctx, const char *path,
                                 struct quern_cache_merged *merged);

/* Takes what was written out of the -wal beside the cache's file, so that the file has it; closing
 * the last context does so, too, and tells nobody if the disk is full. STORE: it is, or nothing is
 * kept, since the file or its folder cannot be written. */
QUERN_API int quern_cache_sync(struct quern_context *ctx);

/* What may stay. Of artifacts the longest unused go first; a use is written when its process
 * compiles something or destroys its context. Tuned configs stay, and kernels that are loaded. */
struct quern_cache_limits {
    int64_t older_than_s; /* artifacts, trials and misses not used for so long go; 0: of any age */
    int64_t bytes;        /* of the file, at most; 0: any */
};
struct quern_cache_freed {
    int64_t artifacts, trials, misses, bytes; /* deleted; bytes of the file */
};
/* Safe while other processes use the cache. Bases are left alone. INVALID: no limit is given.
 * STORE: cannot be written. */
QUERN_API int quern_cache_gc(struct quern_context *ctx, const struct quern_cache_limits *limits,
                             struct quern_cache_freed *freed);

/* For which model and call an artifact is in a bundle. */
struct quern_cache_manifest_row {
    const char *key;     /* of the artifact, 32 hexadecimal digits */
    const char *target;  /* "sm_90a" */
    const char *model;   /* as the config names it */
    const char *rank;    /* shape of the rank: "tp=8 ep=1" */
    const char *where;   /* "prefill", "decode" */
    const char *spec;    /* "gemm m=64 n=4096 ..." */
    const char *kind;    /* "built" or "tuned" */
    const char *toolkit; /* what compiled it */
    int64_t created;     /* Unix seconds; 0 on put: now */
};
/* Replaces the row of the same key, target, model, rank, where and spec. */
QUERN_API int quern_cache_manifest_put(struct quern_context *ctx,
                                       const struct quern_cache_manifest_row *row);
/* Every row of the cache, then of its bases; a non-zero return of visit ends it and is returned. */
QUERN_API int quern_cache_manifest(struct quern_context *ctx,
                                   int (*visit)(void *user,
                                                const struct quern_cache_manifest_row *row),
                                   void *user);

#ifdef __cplusplus
}
#endif
#endif
