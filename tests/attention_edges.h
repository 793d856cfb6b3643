/* What the cases of attention_prefill and attention_extend cannot say, said once for the suites of
 * the CPU and of a device: each has a bed that its calls run on.
 *
 *     edges       inputs that are put by hand, against the reference
 *     NaN         in one sequence: the others keep their bits
 *     indices     what index arrays may hold and should not
 *     agreement   attention_extend gives what attention_prefill does on the same keys */
#ifndef ATTENTION_EDGES_H
#define ATTENTION_EDGES_H

#include "common.h"

/* A call's arrays: the host's copies, dense, and what the call takes. */
struct attention_set {
    struct common_arrays *host;
    struct quern_array *arrays;
};

struct attention_bed {
    struct quern_context *ctx, *checking; /* checking: made with QUERN_CHECK=1 */
    uint64_t *seed;
    /* Draws arrays into slot 0 or 1, closing what was there. */
    struct attention_set (*open)(struct quern_context *ctx, const struct quern_spec *spec, int slot,
                                 uint64_t seed);
    /* Runs the call on what the host's copies hold, and fetches the outputs; fails the test if it
     * wrote anything else. Returns quern_run()'s status. */
    int (*run)(struct quern_context *ctx, const struct quern_spec *spec, int slot,
               const char *what);
    /* The same, against the reference. */
    struct quern_check (*verify)(struct quern_context *ctx, const struct quern_spec *spec, int slot,
                                 const char *what);
    bool (*is_served)(const char *text); /* some variant takes the spec there */
};

/* All of it, on the bed, which stays the caller's; its fixtures are still to be added. */
TCase *attention_tcase(const struct attention_bed *bed);

#endif
