/* What the files of attention_decode share on the host side. */
#ifndef ATTENTION_DECODE_H
#define ATTENTION_DECODE_H

#include <quern/family.h>

#include "decode/attention_decode_args.h"

QUERN_API extern const struct quern_family quern_family_attention_decode;
extern const struct quern_variant attention_decode_cpu, attention_decode_sm80;

/* What both variants' kernels take, from a call's arrays and sizes. */
struct decode_args attention_decode_arguments(const struct quern_binding *binding);
/* The defines that say what is computed: D, DV, GROUP (query heads of a cache's head), HKV, PAGE,
 * DTYPE, KV_DTYPE, KV_SCALE, SINKS, SINKS_DTYPE, HAS_LSE, HAS_SOFTCAP, HAS_SHARED, HAS_WINDOW. */
void attention_decode_define(struct quern_step *step, const struct quern_spec *bucket);

/* Of a sequence that has seq_len tokens of its own and shared_len before them, both as they stand
 * in the arrays: the tokens of each that are seen, [own.begin, own.end) and so on, clamped to what
 * its table holds. */
struct decode_span {
    int64_t begin, end;
};
struct decode_seen {
    struct decode_span shared, own;
};
struct decode_seen attention_decode_seen(const struct quern_spec *spec, int64_t shared_len,
                                         int64_t seq_len);

/* Lengths that inputs() draws; cost() counts them. */
int64_t attention_decode_length(const struct quern_spec *spec, int64_t sequence);
int64_t attention_decode_shared_length(const struct quern_spec *spec);
int attention_decode_inputs(const struct quern_spec *spec, int index, uint64_t seed, void *data);

#define ATTENTION_DECODE_LSE 16 /* what an lse's error is measured against, unless it is larger */
void attention_decode_reference(struct quern_ref *ref, int64_t unit);

#endif
