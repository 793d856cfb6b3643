/* The kernels of l2norm and gated_rmsnorm, on the host side: what both families' variants do, said
 * of a struct that each fills in from its own list. */
#ifndef KDA_NORM_H
#define KDA_NORM_H

#include <quern/family.h>

#include "kda_norm_args.h"

/* Where the values and arrays of a family are; without z and weight (act KDA_NORM_UNGATED) their
 * dtypes are x's and their alignments 16. */
struct kda_norm {
    int64_t t, h, d;
    int dtype, z, weight, act;
    int x_alignment, z_alignment, out_alignment;
};

enum { KDA_NORM_CPU_KNOBS = 1, KDA_NORM_CUDA_KNOBS = 3 };
extern const struct quern_knob kda_norm_cpu_knobs[KDA_NORM_CPU_KNOBS];
extern const struct quern_knob kda_norm_cuda_knobs[KDA_NORM_CUDA_KNOBS];

/* 0, or why the sizes are refused. */
int kda_norm_validate(int64_t t, int64_t h, int64_t d, double eps, struct quern_message *why);
double kda_norm_tolerance(int64_t dtype);

int kda_norm_cpu_legal(const int32_t *config, struct quern_message *why);
void kda_norm_cpu_heuristic(int32_t *config);
int kda_norm_cpu_candidates(int32_t (*configs)[QUERN_MAX_KNOBS], int max);
void kda_norm_cpu_plan(const struct kda_norm *norm, struct quern_plan *plan);
void kda_norm_cpu_bind(const struct kda_norm *norm, const int32_t *config,
                       struct kda_norm_args *args, struct quern_step_launch *launch);

int kda_norm_cuda_legal(const struct kda_norm *norm, const int32_t *config,
                        struct quern_message *why);
void kda_norm_cuda_heuristic(const struct kda_norm *norm, int32_t *config);
int kda_norm_cuda_candidates(int32_t (*configs)[QUERN_MAX_KNOBS], int max);
void kda_norm_cuda_plan(const struct kda_norm *norm, const int32_t *config,
                        struct quern_plan *plan);
void kda_norm_cuda_bind(const struct kda_norm *norm, const int32_t *config, int cores,
                        const struct kda_norm_args *args, struct quern_step_launch *launch);

#endif
