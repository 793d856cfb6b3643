/* The suites' own family, registered at run time: every class and kind of parameter, an array that
 * may be absent, strides, two steps of one artifact, a workspace, a knob that a step owns, and a
 * second variant that computes a wrong element. */
#ifndef KINDS_H
#define KINDS_H

#include <quern/family.h>

#include "common.h"

enum { KINDS_X, KINDS_BIAS, KINDS_OUT };
enum {
    KINDS_BATCH,
    KINDS_ROWS,
    KINDS_COLS,
    KINDS_LONGEST,
    KINDS_DTYPE,
    KINDS_ORDER,
    KINDS_BIASED,
    KINDS_ACCUMULATE,
    KINDS_GAIN
};

extern const struct quern_family kinds_family;
extern const struct quern_source kinds_sources[];

/* The kernel that a call would use now, of any family; fails the test if there is none. */
struct quern_kernel *kinds_dispatch(struct quern_context *with, const char *text,
                                    const struct quern_array *arrays);
struct quern_report kinds_report(const struct quern_kernel *kernel);
/* out = gain x, f32, as the reference has it. */
bool kinds_is_scaled(const struct common_arrays *set, double gain);
/* Compiles that the context's store has counted. */
int64_t kinds_compiles(struct quern_context *with);

#endif
