/* Where a tuning's candidates are tried: arrays, their expectation, private memory to run on. */
#ifndef QN_TESTBED_H
#define QN_TESTBED_H

#include "jit/check.h"
#include "jit/workset.h"

/* An array that nobody gave. */
struct qn_drawn {
    void *data;
    size_t bytes;
};

struct qn_testbed {
    struct quern_context *ctx;
    struct qn_drawn drawn[QUERN_MAX_ARRAYS];
    struct qn_regions map;
    struct qn_image before;       /* every region, as it came */
    struct qn_image after, first; /* written regions, after a run; after the first run of a check */
    struct qn_expectation *expectation;
    struct qn_workset set;
};

/* spec is what is run: the bucket's bound, or the caller's when `bound` (qn_arrays_bind()'s) is
 * given; NULL has arrays drawn by seed. memory_bytes as in quern_tune_options. */
int qn_testbed_init(struct qn_testbed *bed, struct quern_context *ctx,
                    const struct quern_spec *spec, const struct quern_array *bound,
                    size_t memory_bytes, uint64_t seed, struct quern_message *why);
/* Puts back what ran in place. */
int qn_testbed_fini(struct qn_testbed *bed, struct quern_message *why);
int64_t qn_testbed_bytes(const struct qn_testbed *bed); /* device memory held */

struct qn_check_limits {
    double slow_ms;   /* reject a kernel whose first run takes longer; 0: none */
    double serial_ms; /* leave the serial orders out where a run would take longer; 0: never */
};

/* Run a kernel on poisoned outputs in every grid order and hold it against the expectation.
 * QUERN_CHECK_FAILED: it is wrong, slow, races, writes where it must not, or cannot be run, and
 * `why` says so; another failure is the testbed's own. Leaves the workset ready to time the kernel.
 * *is_complete: no order was left out. */
int qn_testbed_check(struct qn_testbed *bed, const struct quern_kernel *kernel,
                     const struct qn_check_limits *limits, bool *is_complete,
                     struct quern_message *why);

#endif
