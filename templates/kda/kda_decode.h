/* What the files of kda_decode share on the host side. */
#ifndef KDA_DECODE_H
#define KDA_DECODE_H

#include <quern/family.h>

#include "kda_decode_args.h"

QUERN_API extern const struct quern_family quern_family_kda_decode;
extern const struct quern_variant kda_decode_cpu, kda_decode_cuda;

#define KDA_DECODE_STEPS 16 /* tokens of a sequence, at most */

/* The one array that states are read from, and written to; -1: none. */
int kda_decode_from(const struct quern_spec *spec);
int kda_decode_to(const struct quern_spec *spec);

/* What the code of both kinds of kernel depends on; their arguments. */
void kda_decode_define(struct quern_step *step, const struct quern_spec *bucket);
struct kda_decode_args kda_decode_arguments(const struct quern_binding *binding);

/* A slab of a state, as the CUDA kernels have it in the registers of `warps`. */
struct kda_slab {
    int64_t k, v;
    int is_vk, state, access; /* state: its dtype; access: bytes */
};
/* Whether bv columns of v may be one. */
int kda_slab_legal(const struct kda_slab *slab, int32_t bv, int32_t warps,
                   struct quern_message *why);

int kda_decode_inputs(const struct quern_spec *spec, int index, uint64_t seed, void *data);
void kda_decode_reference(struct quern_ref *ref, int64_t unit);

#endif
