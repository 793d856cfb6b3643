/* The obvious attention of one query token's heads that share a head of k and v, in float64. */
#ifndef ATTENTION_REF_H
#define ATTENTION_REF_H

#include <quern/family.h>

/* A kernel works on tiles: what is not finite in v may reach queries of its sequence that do not
 * see it, but whose keys end or begin less than this before or after it. */
#define ATTENTION_REACH 256

struct attention_unit {
    int64_t d, dv, heads;   /* heads of q that share one of k and v */
    int64_t position, keys; /* the query's own position among the keys, and their number */
    int64_t causal, window, dtype;
    double scale, softcap; /* 0: none */
    int q, sinks, o, lse;  /* arrays; -1: absent */
    int64_t row, head;     /* of q and o: the row of the first head; that head's number */
    int is_unsaid;         /* nothing is expected of o */
    /* A row of k or v: d or dv numbers of key j. */
    void (*read)(struct quern_ref *ref, const struct attention_unit *unit, int is_value, int64_t j,
                 double *row);
    const void *of; /* read()'s own */
};

void attention_reference_unit(struct quern_ref *ref, const struct attention_unit *unit);
/* The bound of a row of o, or of an element of lse. */
double attention_tolerance(int64_t dtype, int is_lse);

#endif
