/* All that a layer of KDA (Kimi Delta Attention) or GDN (Gated DeltaNet: decay=scalar) calls:
 *
 *     prefill    causal_conv1d  ->  kda_prefill  ->  gated_rmsnorm
 *     decode     kda_step: causal_conv1d_update -> gates -> recurrence -> gated_rmsnorm, at once;
 *                or one by one, with kda_decode, which also verifies drafts of several tokens
 *
 * with l2norm and the gates inside kda_prefill and kda_decode, or before them (l2norm,
 * kda_gate_cumsum). States and windows of a sequence lie in slots of pools and are advanced in
 * place; slots of no sequence of the call are not touched, by tuning neither. Each header has its
 * family's parameters and arrays; templates/kda/README.md the mathematics, layouts and limits. */
#ifndef QUERN_KDA_H
#define QUERN_KDA_H

#include <quern/causal_conv1d.h>
#include <quern/causal_conv1d_update.h>
#include <quern/gated_rmsnorm.h>
#include <quern/kda_decode.h>
#include <quern/kda_gate_cumsum.h>
#include <quern/kda_prefill.h>
#include <quern/kda_step.h>
#include <quern/l2norm.h>

#endif
