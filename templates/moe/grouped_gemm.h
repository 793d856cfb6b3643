/* What the files of grouped_gemm share on the host side. */
#ifndef GROUPED_GEMM_H
#define GROUPED_GEMM_H

#include <quern/family.h>

QUERN_API extern const struct quern_family quern_family_grouped_gemm;
extern const struct quern_variant grouped_gemm_sm80, grouped_gemm_cpu;

/* Choices of the parameters form and activation. */
enum { GROUPED_GEMM_OFFSETS, GROUPED_GEMM_BLOCKS, GROUPED_GEMM_MASKED };
enum {
    GROUPED_GEMM_NONE,
    GROUPED_GEMM_SILU,
    GROUPED_GEMM_GELU,
    GROUPED_GEMM_GELU_TANH,
    GROUPED_GEMM_SWIGLU_OAI
};

#define GROUPED_GEMM_MAX_EXPERTS 1024
#define GROUPED_GEMM_MAX_BLOCK 1024

/* One row of d. */
void grouped_gemm_reference(struct quern_ref *ref, int64_t unit);

/* The clamp that a call means: infinity where there is none. limit is NaN unless given. */
static inline float grouped_gemm_limit(int64_t activation, double limit)
{
    if (limit == limit)
        return (float)limit;
    return activation == GROUPED_GEMM_SWIGLU_OAI ? 7.0f : __builtin_inff();
}

static inline int64_t grouped_gemm_ceil_div(int64_t x, int64_t by)
{
    return (x + by - 1) / by;
}

/* ---- The product as a step of a plan ------------------------------------------------------- */

/* What is computed, whoever asks: the variants of this family, or a family with such a step in its
 * plan. Sizes as in grouped_gemm.def: in plan() those of the bucket, in bind() the real ones. */
struct grouped_gemm_work {
    int64_t experts, m, n, k, source_rows, share;
    int form, block, gather, dtype, d, activation;
    int align_a, align_b, align_d; /* bytes that bases and strides are multiples of, at most 16 */
    float limit;                   /* grouped_gemm_limit() */
    int is_routed; /* rows an expert vary as a router's choices make them; 0: not known to */
    int is_plain;  /* d=f32: sums stay as tensor cores add them, for what is rounded later */
};

/* Where it is. Strides are in elements. */
struct grouped_gemm_place {
    const void *a, *b;
    void *d;
    const int32_t *offsets, *expert_ids, *num_rows, *counts, *row_ids;
    int64_t a_row_stride, b_row_stride, d_row_stride;
    int64_t a_expert_stride, b_expert_stride, d_expert_stride; /* of a and d: form=masked */
};

/* grouped_gemm.c: the family's own, of a bucket or a call, and of a call. problem->bucket. */
void grouped_gemm_work_of(const struct quern_spec *spec, const uint8_t *alignment,
                          struct grouped_gemm_work *work);
void grouped_gemm_place_of(const struct quern_binding *binding, struct grouped_gemm_place *place);

#endif
