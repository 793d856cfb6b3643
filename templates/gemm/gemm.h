/* What the files of this folder share on the host side. */
#ifndef GEMM_H
#define GEMM_H

#include <quern/family.h>

QUERN_API extern const struct quern_family quern_family_gemm;
QUERN_API extern const struct quern_family quern_family_gemm_pack;

/* gemm.c: rules that both families have. */
int gemm_check_sizes(int64_t m, int64_t n, int64_t k, int64_t batch, struct quern_message *why);
/* `name`=`width` asks for panels of `dtype`: is there such a form? */
int gemm_check_panel(const char *name, int64_t width, int dtype, struct quern_message *why);

/* A panel. */
void gemm_pack_reference(struct quern_ref *ref, int64_t unit);
/* One row of d. */
void gemm_reference(struct quern_ref *ref, int64_t unit);
/* For random signs x, of each row: a (b^T x) + old d x + bias x, and d x. */
void gemm_linear_expect(struct quern_ref *ref, uint64_t seed, int64_t first, int64_t count,
                        double *wanted);
void gemm_linear_actual(struct quern_ref *ref, uint64_t seed, int64_t first, int64_t count,
                        double *got);

/* gemm_cpu_plan.c */
extern const struct quern_variant gemm_cpu;

/* gemm_sm90_plan.c, gemm_sm80_plan.c, gemm_ffma_plan.c */
extern const struct quern_variant gemm_sm90, gemm_sm80, gemm_ffma;

/* ---- Packed b ------------------------------------------------------------------------------ */

/* Panels of `width` columns, zeros past column n; in each, units of 32 bits (an f32, or a pair of
 * bf16 along k) as [unit][width], zeros from k up to a multiple of GEMM_PACKED_K. */
#define GEMM_PACKED_K 32
#define GEMM_MAX_PANEL 64

/* The width that a choice stands for: "0 16 32 48 64" of gemm, "16 32 48 64" of gemm_pack. */
static inline int64_t gemm_packed_width(int64_t packed)
{
    return 16 * packed;
}

static inline int64_t gemm_panel_width(int64_t panel)
{
    return 16 * (panel + 1);
}

/* Elements along k in a unit. */
static inline int gemm_unit_k(int dtype)
{
    return dtype == QUERN_BF16 ? 2 : 1;
}

/* Where a panel has term p of its column `column`, in elements. */
static inline int64_t gemm_panel_offset(int64_t p, int64_t column, int64_t width, int unit_k)
{
    return (p / unit_k * width + column) * unit_k + p % unit_k;
}

static inline int64_t gemm_ceil_div(int64_t x, int64_t by)
{
    return (x + by - 1) / by;
}

static inline int64_t gemm_round_up(int64_t x, int64_t to)
{
    return gemm_ceil_div(x, to) * to;
}

#endif
