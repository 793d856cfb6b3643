/* What index arrays of the KDA families may hold and should not: a table that the suites of the CPU
 * and of a device go through. Every family takes four sequences, and 48 tokens or a pool of six. */
#ifndef BAD_INDICES_H
#define BAD_INDICES_H

#include "common.h"

enum { BAD_INDICES = 12 };

struct bad_indices {
    const char *array;
    int32_t values[BAD_INDICES];
    const char *text;  /* of the refusal under QUERN_CHECK=1; NULL: none, they are legal */
    bool is_undefined; /* what the call then computes is not said anywhere: nothing to compare */
};
extern const struct bad_indices bad_indices[];
extern const int bad_index_count;

extern const char *const bad_index_specs[];
extern const int bad_index_spec_count;

/* The number of the family's array of that name; -1 where the spec has none. */
int bad_indices_array(struct quern_context *ctx, const struct quern_spec *spec, const char *name);
/* Put into the host's copy of array `index`. */
void bad_indices_put(struct common_arrays *set, int index, const struct bad_indices *bad);
/* "kda_prefill t=48 ... with slots={3, -1, 4, 3, ...}" */
void bad_indices_text(const char *spec, const struct bad_indices *bad, char *text, size_t bytes);

#endif
