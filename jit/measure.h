/* Timing kernels on a workset, from restored memory: each launch alone, or short ones of a GPU as a
 * recording. */
#ifndef QN_MEASURE_H
#define QN_MEASURE_H

#include "jit/stats.h"
#include "jit/workset.h"

#define QN_MAX_SAMPLES 256

struct qn_samples {
    double us[QN_MAX_SAMPLES];
    int count;
};

/* Bytes of copies after which a launch's inputs are out of the device's last cache. */
int64_t qn_rotate_bytes(const struct quern_profile *profile);

/* Time for about budget_ms and append what was found: at least one sample, at most `most`, up to
 * QN_MAX_SAMPLES. expected_us is what a launch was seen to take. The workset's workspace must be
 * the kernel's. */
int qn_measure_turn(struct qn_workset *set, const struct quern_kernel *kernel, double expected_us,
                    double budget_ms, int most, struct qn_samples *samples,
                    struct quern_message *why);

/* Warm up until two launches agree, then time for about budget_ms of wall-clock, or until samples
 * hardly differ: at least three, and no more once the median is past give_up_us (0: never). */
int qn_measure_adaptive(struct qn_workset *set, const struct quern_kernel *kernel, double budget_ms,
                        double give_up_us, struct qn_samples *samples, struct quern_message *why);

#endif
