/* Slots sorted by expert, on the host side: the families moe_align_block_size and
 * prepare_moe_input, and the steps that the fused layer shares with them. */
#ifndef MOE_ALIGN_H
#define MOE_ALIGN_H

#include <quern/family.h>

#include "moe_align_args.h"

QUERN_API extern const struct quern_family quern_family_moe_align_block_size;
QUERN_API extern const struct quern_family quern_family_prepare_moe_input;

enum { MOE_EXPERTS_MOST = 1024, MOE_BLOCK_MOST = 1024, MOE_SLOTS_MOST = 1 << 30 };
enum { MOE_ALIGN_STEPS = 2 };

extern const struct quern_variant *const moe_align_variants[];

/* Rows of sorted slots: what any ids may need, and the slots without an expert too. */
int64_t moe_align_rows(int64_t slots, int64_t experts, int64_t block);

/* ---- The two steps on CUDA, for plans of other families -------------------------------------- */

struct moe_align_config {
    int32_t threads; /* of a block: a power of two from 128 to 512 */
    int32_t chunk;   /* slots that a block sorts, 32 to 65535 */
    int32_t whole;   /* up to so many slots each block counts all: the first step is skipped */
};
void moe_align_choose(int64_t slots, struct moe_align_config *config);
/* Bytes of args->counts: for the config, and for what moe_align_choose() gives for fewer slots. */
int64_t moe_align_counts_bytes(int64_t slots, int64_t experts,
                               const struct moe_align_config *config);
/* Appends MOE_ALIGN_STEPS steps, which wait for the kernel ahead of them themselves (sm_90 up), and
 * write no problem_sizes nor blockscale_offsets. */
void moe_align_plan(const struct quern_problem *problem, int64_t experts,
                    const struct moe_align_config *config, struct quern_plan *plan);
/* Binds both. The caller filled in args but for counts, chunk and what is CUDA's. */
void moe_align_bind(struct moe_align_args *args, const struct moe_align_config *config,
                    void *counts, struct quern_step_launch *steps);

/* ---- What the two families give to the shared code ------------------------------------------- */

struct moe_align_args moe_align_block_size_arguments(const struct quern_binding *binding);
struct moe_align_args prepare_moe_input_arguments(const struct quern_binding *binding);
int moe_align_check_sizes(int64_t tokens, int64_t topk, int64_t experts, struct quern_message *why);
/* ids: distinct experts of a token as far as there are any, few of them popular, some -1; with a
 * number of tokens that 5 divides all of one expert. */
void moe_align_draw_ids(uint64_t seed, int64_t tokens, int64_t topk, int64_t experts, int32_t *ids);
int64_t moe_align_units(const struct quern_spec *spec);
double moe_align_tolerance(const struct quern_spec *spec, int index);

void moe_align_block_size_reference(struct quern_ref *ref, int64_t unit);
void prepare_moe_input_reference(struct quern_ref *ref, int64_t unit);

#endif
