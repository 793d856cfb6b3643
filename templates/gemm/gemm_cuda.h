/* What the host sides of gemm_sm80 and gemm_ffma share: the grid and the arguments of a launch, a
 * model of how long it takes, and a list of configs ranked by it. gemm_sm90 uses the profile, the
 * ranking and the list. */
#ifndef GEMM_CUDA_H
#define GEMM_CUDA_H

#include "gemm.h"

#define GEMM_CUDA_MAX_SPLIT 64
#define GEMM_CUDA_MAX_GROUP 16

/* A config as the model sees it. */
struct gemm_cuda_work {
    int bm, bn, bk, split_k;
    int resident;            /* blocks that an SM holds at a time */
    int tiles_ahead;         /* tiles of k that a block reads ahead */
    double tile_us;          /* a tile of k takes a block at least, from barrier to barrier */
    double tflops;           /* of all SMs, were they busy with such blocks and nothing else */
    double shared_bytes_a_k; /* that a block moves in and out of shared memory for each k */
};

int gemm_cuda_supports(const struct quern_problem *problem);
/* Values that a profile lacks are those of a small device. */
struct quern_profile gemm_cuda_profile(const struct quern_problem *problem);
int gemm_cuda_legal(const struct quern_problem *problem, int bm, int bn, int split_k,
                    struct quern_message *why);
/* Microseconds. */
double gemm_cuda_time(const struct quern_problem *problem, const struct gemm_cuda_work *work);
/* Shares of k worth trying, in `splits`, ascending; returns how many. */
#define GEMM_CUDA_SPLITS 14
int gemm_cuda_splits(const struct quern_problem *problem, int bk, int splits[GEMM_CUDA_SPLITS]);
/* Rows of tiles in a group such that blocks which run together read least. */
int gemm_cuda_group(const struct quern_problem *problem, const struct gemm_cuda_work *work);

/* The defines of a step that say what is computed. */
void gemm_cuda_define(const struct quern_problem *problem, struct quern_step *step);
/* Appends the step that adds the shares, if split_k > 1, after the main one; sets the workspace. */
void gemm_cuda_add_reduce(const struct quern_problem *problem, const char *source, int split_k,
                          struct quern_plan *plan);
void gemm_cuda_bind(const struct quern_binding *binding, int bm, int bn, int split_k,
                    struct quern_launch *launch);

/* ---- Ranking ---- */

#define GEMM_CUDA_RANKED 48

/* The fastest configs so far by the model, fastest first. */
struct gemm_cuda_ranking {
    int count, most; /* most: how many are kept */
    double times[GEMM_CUDA_RANKED];
    int32_t configs[GEMM_CUDA_RANKED][QUERN_MAX_KNOBS];
};
void gemm_cuda_rank(struct gemm_cuda_ranking *ranking, double time, const int32_t *config,
                    int knob_count);
/* Copies up to `max` of them, then the first three with other values of knob `group`. */
int gemm_cuda_list(const struct gemm_cuda_ranking *ranking, int group, int knob_count,
                   int32_t (*configs)[QUERN_MAX_KNOBS], int max);

#endif
