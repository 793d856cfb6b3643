/* What the CUDA variants of attention_prefill share on the host side. */
#ifndef ATTENTION_PREFILL_CUDA_H
#define ATTENTION_PREFILL_CUDA_H

#include "attention_cuda.h"
#include "attention_prefill.h"

/* Without l1_bytes. */
struct attention_work attention_prefill_work(const struct quern_spec *spec);
/* The defines of a step that say what is computed, but for d and dv. */
void attention_prefill_define(const struct quern_problem *problem, struct quern_step *step);
/* All but tiles and section. */
struct attention_cuda_args attention_prefill_arguments(const struct quern_binding *binding);

#endif
