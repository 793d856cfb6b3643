/* How strongly layers forget, from hardly to within a token, and lengths about blocks and chunks:
 * what kda_prefill is held against the recurrence on, for the suites of the CPU and of a device. */
#ifndef KDA_REGIMES_H
#define KDA_REGIMES_H

#include "common.h"

struct kda_regime {
    const char *name, *words; /* of the spec */
    double (*g)(uint64_t *seed);
    double (*rate)(uint64_t *seed); /* of A_log, a logarithm; NULL: there is none */
};
extern const struct kda_regime kda_regimes[];
extern const int kda_regime_count;

/* A packed call of sequences of all lengths. */
void kda_regime_text(const struct kda_regime *regime, const char *words, char *text, size_t bytes);
/* The regime's gates and the lengths' borders, into drawn arrays of such a call, or of one of a
 * single sequence. */
void kda_regime_put(const struct kda_regime *regime, struct common_arrays *set,
                    struct quern_context *ctx, const struct quern_spec *spec, uint64_t *seed);

#endif
