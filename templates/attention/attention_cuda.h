/* What the host sides of attention_prefill's and attention_extend's CUDA variants share: the knobs
 * of attention_sm80, which configs may run, which are good, and the arguments of the kernels. */
#ifndef ATTENTION_CUDA_H
#define ATTENTION_CUDA_H

#include <quern/family.h>

#include "attention_cuda_args.h"

enum {
    ATTENTION_BM,
    ATTENTION_BN,
    ATTENTION_WARPS,
    ATTENTION_STAGES,
    ATTENTION_Q_REGS,
    ATTENTION_PACK,
    ATTENTION_BLOCKS,
    ATTENTION_KNOBS
};
extern const struct quern_knob attention_cuda_knobs[ATTENTION_KNOBS];

/* A problem as these functions see it. */
struct attention_work {
    int64_t d, dv, hq, hkv;
    int64_t b, queries; /* sequences, and queries of each; varlen: of all */
    int is_varlen;
    int has_prefix;   /* keys and values are in a cache, too */
    int is_converted; /* which is of another dtype, so that it is read by way of registers */
    int is_narrow;    /* an array is aligned to less than 16 bytes */
    int64_t l1_bytes; /* of shared memory that a block may have; 0: unknown */
};

int attention_cuda_supports(const struct quern_problem *problem, const struct attention_work *work);
int attention_cuda_legal(const struct attention_work *work, const int32_t *config,
                         struct quern_message *why);
void attention_cuda_heuristic(const struct attention_work *work, int32_t *config);
int attention_cuda_candidates(const struct attention_work *work,
                              int32_t (*configs)[QUERN_MAX_KNOBS], int max);

/* Adds the step, with the defines of widths, alignments and config. */
struct quern_step *attention_cuda_plan(const struct attention_work *work, const int32_t *config,
                                       const struct quern_variant *variant,
                                       struct quern_plan *plan);
/* An array of 16-bit elements [sequence, token, head, width], or without the first. */
struct attention_rows attention_cuda_rows(const struct quern_array *array, int has_sequences);
/* factor, sign and inner of the arguments; a scale that is NaN is d^-0.5. */
void attention_cuda_scale(struct attention_cuda_args *args, int64_t d, double scale,
                          double softcap);
/* Blocks of bm rows. */
int64_t attention_cuda_blocks(const struct attention_work *work, int64_t bm, int is_packed);
/* tiles and section of the arguments, from b, sq, sk, hq and group; returns the blocks. */
int64_t attention_cuda_grid(const struct attention_work *work, int64_t bm, int is_packed,
                            int64_t l2_bytes, struct attention_cuda_args *args);
/* Whether rows of one head would leave much of a tile empty. */
int attention_cuda_wants_pack(const struct attention_work *work);
#endif
