/* The pipeline: from a bucket to a loaded kernel. jit/build.c is its one readable function. */
#ifndef QN_BUILD_H
#define QN_BUILD_H

#include "jit/context.h"

struct qn_build_request {
    const struct qn_bucket *bucket;
    const struct quern_target *target;   /* what to compile for */
    const struct quern_profile *profile; /* what to choose for */
    const char *variant;                 /* NULL: any */
    const char *config;                  /* text; NULL: tuned, neighbour, heuristic */
    bool is_loaded;                      /* false: into the store only */
    bool is_local; /* of no other compiler, where there is one here: a tuning measures its own */
};

/* request->target, else the device's own, and what to plan with for it. */
int qn_target_of(struct quern_context *ctx, const struct quern_request *request,
                 struct quern_target *target, struct quern_profile *profile);

/* *kernel is malloc'ed and not yet known to the context. Thread-safe: the tuner builds candidates
 * in parallel. On failure the text is on the context; *log, if not NULL, is the compiler's
 * (malloc'ed). */
int qn_build(struct quern_context *ctx, const struct qn_build_request *request,
             struct quern_kernel **kernel, char **log);
void qn_kernel_destroy(struct quern_context *ctx, struct quern_kernel *kernel);

/* The artifact key texts that the request would look up (malloc'ed, as is each); for explain. */
int qn_unit_keys(struct quern_context *ctx, const struct qn_build_request *request, char ***keys,
                 int *count);

/* The digest that the request's kernel would have, without building it. */
int qn_build_digest(struct quern_context *ctx, const struct qn_build_request *request,
                    char digest[QN_KEY_HEX]);

/* origin.c: a row of the manifest for each artifact of what was built for `request`. */
int qn_origin_note(struct quern_context *ctx, const struct quern_origin *origin,
                   const struct qn_build_request *request, const struct quern_report *report);

/* inspect.c: a warning for each base that has kernels for devices of this kind and none for this
 * one, once a context: called where the device misses one, it costs those that hit nothing. */
void qn_bases_tell(struct quern_context *ctx);

/* A distinct artifact of a plan: its source and key. */
struct qn_unit {
    char *source; /* flattened */
    size_t source_bytes;
    size_t body; /* where the defines end and the template begins */
    char *key_text;
    int first_step; /* the first that uses it */
};

/* emit.c, key.c: plan -> units (malloc'ed; unit_of[i] is step i's, -1 for a memset). */
int qn_emit(struct quern_context *ctx, const struct quern_family *family,
            const struct quern_plan *plan, const struct quern_target *target, const char *options,
            struct qn_unit units[QUERN_MAX_STEPS], int *unit_count, int unit_of[QUERN_MAX_STEPS]);
void qn_units_fini(struct qn_unit *units, int unit_count);

/* choose.c: the config to use and where it came from. */
struct qn_choice {
    const struct quern_variant *variant;
    int32_t config[QUERN_MAX_KNOBS];
    enum quern_config_from from;
};
int qn_choose(struct quern_context *ctx, const struct qn_build_request *request,
              struct qn_choice *choice);
/* Without the tuned rows of the first `files` files: of the cache, then of its bases. */
int qn_choose_without(struct quern_context *ctx, const struct qn_build_request *request, int files,
                      struct qn_choice *choice);

/* The request's problem, as variants take it. */
struct quern_problem qn_problem_of(const struct qn_build_request *request);
/* Whether the variant is the one asked for, if one is, and serves the problem. */
bool qn_variant_usable(const struct qn_build_request *request, const struct quern_variant *variant);
/* The heuristic's config with what `text` names put over it; refused unless it is legal. */
int qn_config_for(const struct qn_build_request *request, const struct quern_variant *variant,
                  const char *text, int32_t *config, struct quern_message *why);

#endif
