/* Inputs, checks, timing and tuning: what surrounds the calls of kernels. A program that only calls
 * them needs none of it. Errors, threads and lifetimes are as in quern.h. */
#ifndef QUERN_TUNE_H
#define QUERN_TUNE_H

#include <quern.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Valid random contents for array `index`, dense, in host memory, as the family defines them. */
QUERN_API int quern_fill(struct quern_context *ctx, const struct quern_spec *spec, int index,
                         uint64_t seed, void *data);

struct quern_check {
    int ok;
    double rel_err; /* ||out - ref|| / ||ref|| against the float64 reference */
    double row_err; /* the worst row's, over that row's norm, or its terms' */
    double tol;     /* bound of rel_err; row_err may be four times that */
    double covered; /* share of the output compared element by element */
    uint64_t seed;
    char why[256]; /* "" when ok */
};

/* Poison the outputs, launch once, compare with the reference. The outputs are left as a call
 * leaves them. Returns QUERN_OK also when check->ok is 0. */
QUERN_API int quern_verify(struct quern_context *ctx, struct quern_kernel *kernel,
                           const struct quern_spec *spec, const struct quern_array *arrays,
                           uint64_t seed, struct quern_check *check);

struct quern_time {
    double median_us, spread_us; /* spread: median absolute deviation */
    int64_t samples;
    double flops, bytes; /* of one call, by the family's cost function */
};
/* Time with restore-value: every array comes back bit for bit. `iterations` samples, each of one
 * call; of a short kernel on a GPU, each the mean of a recording of some calls. */
QUERN_API int quern_measure(struct quern_context *ctx, struct quern_kernel *kernel,
                            const struct quern_spec *spec, const struct quern_array *arrays,
                            int iterations, struct quern_time *result);

struct quern_tune_progress {
    int done, total, failed;
    double seconds, best_us;
    const char *variant, *config, *outcome; /* outcome: "ok" or why the candidate was rejected */
};

struct quern_tune_options {
    size_t size;
    double budget_s;     /* 0: none */
    int max_configs;     /* 0: all candidates */
    int force;           /* tune again although a winner is stored: a new generation */
    int jobs;            /* compile jobs; 0: one a core, of which a GPU's bench keeps two */
    size_t memory_bytes; /* for private buffers; 0: a quarter of the free memory */
    uint64_t seed;
    int64_t retune_before; /* Unix seconds: a winner made earlier is tuned again; 0: none is */
    int retune_toolkit;    /* a winner of another compiler or driver is tuned again */
    int (*progress)(void *user, const struct quern_tune_progress *progress); /* non-zero stops */
    void *user;
};
#define QUERN_TUNE_OPTIONS_INIT QUERN_INIT(struct quern_tune_options)

struct quern_tune_entry {
    char variant[64], config[512];
    double time_us, spread_us;
};

struct quern_tune_result {
    char bucket[512];
    int candidates, failed;
    struct quern_tune_entry best, heuristic;
    double speedup, seconds; /* speedup over the heuristic, timed in turns; 0: it was not timed */
    int64_t scratch_bytes;
    int is_reused; /* a stored winner was returned; nothing was measured */
    int is_drawn;  /* inputs were drawn: the sizes given are not the bucket's bound */
};

/* Find the best config of the request's bucket and store it; a cache that cannot take it leaves it
 * with the context. A search that the budget or the callback ended stores the best that it found,
 * and the next call without arrays goes on with it. request->arrays are run on and come back bit
 * for bit, if every DYNAMIC parameter is its bucket's; else (result->is_drawn) and without them
 * the family's inputs are drawn. request->variant restricts the search. Needs request->config NULL
 * and the device's own profile. While another process tunes the bucket, progress is told once a
 * second (done=0, outcome "waiting for another process"); stopped there, the call returns
 * QUERN_MISS. */
QUERN_API int quern_tune(struct quern_context *ctx, const struct quern_request *request,
                         const struct quern_tune_options *options,
                         struct quern_tune_result *result);

/* What the device's choices are planned from: the profile in use, and a file of it that
 * options.profile takes instead of a name. The file is text, one name=value a line, and is replaced
 * whole or not at all. */
struct quern_profile;
QUERN_API int quern_profile_of(struct quern_context *ctx, struct quern_profile *profile);
QUERN_API int quern_profile_save(struct quern_context *ctx, const struct quern_profile *profile,
                                 const char *path);

#ifdef __cplusplus
}
#endif
#endif
