/* Index arrays (cu_seqlens, slots, page tables): what a family reads of them on the host. */
#ifndef QN_INDICES_H
#define QN_INDICES_H

#include "jit/context.h"

/* Dense host copies of a call's integer inputs, NULL for every other array; malloc'ed. */
struct qn_indices {
    void *host[QUERN_MAX_ARRAYS];
};

/* Waits for the stream, on which the copies are ordered. bound comes from qn_arrays_bind(). */
int qn_indices_read(struct quern_context *ctx, const struct quern_spec *spec,
                    const struct quern_array *bound, void *stream, struct qn_indices *indices,
                    struct quern_message *why);
void qn_indices_fini(struct qn_indices *indices);

/* What the family refuses of them under QUERN_CHECK=1. */
int qn_indices_check(const struct quern_context *ctx, const struct quern_spec *spec,
                     const struct qn_indices *indices, struct quern_message *why);
/* Reads and checks those of a call on `stream`, before anything is launched: for ctx->is_checking
 * only. A stream that is being captured cannot be waited for: refused. */
int qn_call_check(struct quern_context *ctx, const struct quern_spec *spec,
                  const struct quern_array *bound, void *stream, struct quern_message *why);

#endif
