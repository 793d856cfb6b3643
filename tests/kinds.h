/* The suites' own family, registered at run time: every class and kind of parameter, an array that
 * may be absent, strides, two steps of one artifact, a workspace, a knob that a step owns, and a
 * second variant that computes a wrong element. */
#ifndef KINDS_H
#define KINDS_H

#include <quern/family.h>

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

#endif
