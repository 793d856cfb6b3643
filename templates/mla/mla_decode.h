/* What the files of mla_decode share on the host side. */
#ifndef MLA_DECODE_H
#define MLA_DECODE_H

#include <quern/family.h>

#include "mla_decode_args.h"

QUERN_API extern const struct quern_family quern_family_mla_decode;
extern const struct quern_variant mla_decode_sm90, mla_decode_sm80, mla_decode_cpu;

/* The most rows that a query sees. */
int64_t mla_decode_length(const struct quern_spec *spec);

/* What the code of all kernels depends on: SQ, HQ, PAGE, DTYPE, KV_DTYPE, CAUSAL, HAS_TOPK,
 * HAS_LSE, DETERMINISTIC. */
void mla_decode_define(struct quern_step *step, const struct quern_spec *bucket);
struct mla_decode_args mla_decode_arguments(const struct quern_binding *binding);

int mla_decode_inputs(const struct quern_spec *spec, int index, uint64_t seed, void *data);
void mla_decode_reference(struct quern_ref *ref, int64_t unit);

/* The scale of the bound on lse: tolerance() times 4 of it is the absolute error of a row whose lse
 * is no larger. */
#define MLA_LSE_NORM 8

#endif
