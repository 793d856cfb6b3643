/* What the cases of attention_decode and of merge_state cannot say, said once for the suites of the
 * CPU and of a device: each has a bed that its calls run on.
 *
 *     edges       lengths and pages put by hand, what no sequence has poisoned; the reference
 *     alone       deterministic=1: the bits of a sequence alone, and in every config
 *     NaN         in one sequence: the others keep their bits
 *     indices     what index arrays may hold and should not
 *     prefix      shared, or in every sequence's own table
 *     halves      of the keys, merged; and states merged in place */
#ifndef DECODE_EDGES_H
#define DECODE_EDGES_H

#include "common.h"

enum { DECODE_SLOTS = 4 };

/* A call's arrays: the host's copies, dense, and what the call takes. */
struct decode_set {
    struct common_arrays *host;
    struct quern_array *arrays;
};

struct decode_bed {
    struct quern_context *ctx, *checking; /* checking: made with QUERN_CHECK=1 */
    uint64_t *seed;
    /* Draws arrays into a slot, closing what was there. */
    struct decode_set (*open)(struct quern_context *ctx, const struct quern_spec *spec, int slot,
                              uint64_t seed);
    /* Runs the call, with a config unless it is NULL, on what the host's copies hold, and fetches
     * the outputs; fails the test if it wrote anything else. Returns quern_run()'s status. */
    int (*run)(struct quern_context *ctx, const struct quern_spec *spec, int slot,
               const char *config, const char *what);
    /* The same, against the reference. */
    struct quern_check (*verify)(struct quern_context *ctx, const struct quern_spec *spec, int slot,
                                 const char *what);
    bool (*is_served)(const char *text); /* some variant takes the spec there */
};

/* All of it, on the bed, which stays the caller's; its fixtures are still to be added. */
TCase *decode_tcase(const struct decode_bed *bed);

#endif
