/* The arrays of one call: from files (--in), drawn, or to be written; and back to files (--out). */
#ifndef TOOLS_ARRAY_IO_H
#define TOOLS_ARRAY_IO_H

#include "session.h"

struct array_set {
    struct quern_family_description family;
    struct quern_shape shapes[QUERN_MAX_ARRAYS];
    struct quern_array arrays[QUERN_MAX_ARRAYS]; /* dense, in memory of the device */
    int ranks_left_out
        [QUERN_MAX_ARRAYS]; /* leading ones that the array's file lacks; -1: no file */
};

/* Check --in and --out against the spec, then allocate every array that takes part: inputs from
 * their files or drawn with --seed, outputs zeroed. An exit code, after complaining. Destroy in any
 * case. */
int array_set_create(struct session *session, const struct quern_spec *spec, struct array_set *set);
void array_set_destroy(struct session *session, struct array_set *set);

/* Write the arrays named by --out. An exit code. */
int array_set_save(struct session *session, const struct array_set *set);

#endif
