/* What the files of set_kv_buffer share on the host side. */
#ifndef SET_KV_BUFFER_H
#define SET_KV_BUFFER_H

#include <quern/family.h>

#include "set_kv_buffer_args.h"

QUERN_API extern const struct quern_family quern_family_set_kv_buffer;
extern const struct quern_variant set_kv_buffer_cuda, set_kv_buffer_cpu;

enum { KV_PLAIN, KV_MLA };                         /* layout */
enum { KV_ROPE_NONE, KV_ROPE_NEOX, KV_ROPE_GPTJ }; /* rope */
enum { KV_SCALE_NONE, KV_SCALE_TENSOR, KV_SCALE_HEAD };

/* Columns that are rotated, and the first of them. */
int64_t set_kv_buffer_rope_dim(const struct quern_spec *spec);
int64_t set_kv_buffer_rope_first(const struct quern_spec *spec);

/* What the code of both kinds of kernel depends on; their arguments. */
void set_kv_buffer_define(struct quern_step *step, const struct quern_spec *bucket);
struct set_kv_buffer_args set_kv_buffer_arguments(const struct quern_binding *binding);

int set_kv_buffer_inputs(const struct quern_spec *spec, int index, uint64_t seed, void *data);
void set_kv_buffer_reference(struct quern_ref *ref, int64_t unit);

#endif
