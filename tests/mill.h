/* mill: the tuner's test family. out[r] = 2 x[r] (+ out[r]); with a pool, out[slot[r]] += 2 x[r].
 * One knob picks what is wrong with the kernel, the other how slow it is. */
#ifndef MILL_H
#define MILL_H

#include <quern/family.h>

enum { MILL_X, MILL_SLOT, MILL_OUT, MILL_ARRAYS };

/* The knob kind=. */
enum mill_kind {
    MILL_GOOD,
    MILL_WRONG,
    MILL_RACING, /* a row depends on the one before, within the tolerance */
    MILL_PAST_END,
    MILL_BEFORE_BEGIN,
    MILL_WRITES_INPUT,
    MILL_UNWRITTEN,
    MILL_BROKEN,        /* does not compile */
    MILL_READS_SCRATCH, /* before writing it */
    MILL_PAST_SCRATCH,
    MILL_PADDING,   /* writes between rows */
    MILL_NEIGHBOUR, /* writes the next row of a pool */
    MILL_KINDS
};

/* The parameter menu=: which candidates are offered beside the default, a good and slow one. */
enum mill_menu {
    MILL_MENU_SPEEDS, /* good ones; the fastest has work=0, the last takes for ever */
    MILL_MENU_BAD,
    MILL_MENU_MANY,     /* 60 slow ones */
    MILL_MENU_HOPELESS, /* the default is wrong, too */
    MILL_MENU_ACCUMULATE,
    MILL_MENU_POOL
};

#define MILL_SCRATCH_BYTES 1000 /* of workspace */

/* What the kernels tell the test: a launch is a surprise when an inout array does not begin with
 * `initial`. One test at a time. */
struct mill_probe {
    int64_t launches, surprises;
    float initial;
};
extern struct mill_probe mill_probe;

extern const struct quern_family mill_family;

/* The family's own functions, for tests that make its arrays. */
void mill_shape(const struct quern_spec *spec, int index, struct quern_shape *shape);
int mill_inputs(const struct quern_spec *spec, int index, uint64_t seed, void *data);

#endif
