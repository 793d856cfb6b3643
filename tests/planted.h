/* Kernels for sm_90a with something wrong in them that ptxas says, and a family of them. Each is
 * sound where PLANT is defined as 0. Only compiled: what they compute means nothing. */
#ifndef PLANTED_H
#define PLANTED_H

#include <quern/family.h>

extern const char planted_wgmma[], planted_setmaxnreg[], planted_spill[];

/* The knob kind= of the family `planted`. */
enum planted_kind {
    PLANTED_NONE,
    PLANTED_WGMMA,      /* C7511 */
    PLANTED_SETMAXNREG, /* C7508 */
    PLANTED_SPILL,
    PLANTED_ERROR /* of the front end */
};

extern const struct quern_family planted_family;

#endif
