/* A NaN in one sequence of a call to a KDA family: where to put it, and that it stays there. Works
 * on host copies, for the suites of the CPU and of a device. */
#ifndef KDA_NAN_H
#define KDA_NAN_H

#include "common.h"

/* Four sequences, of 12 tokens or in a pool of six. No other size is 48, 4 or 6, so that an array's
 * leading dimension says whose its rows are. */
extern const char *const kda_nan_specs[];
extern const int kda_nan_spec_count;

/* Borders, slots and parents of the sequences, into dense arrays of one of these specs. */
void kda_nan_indices_put(struct common_arrays *set, struct quern_context *ctx,
                         const struct quern_spec *spec);
/* A NaN in an element of the second sequence in array `index`, also in what restore() brings back;
 * false if that is no input of sequences' floats. */
bool kda_nan_put(struct common_arrays *set, int index, uint64_t *seed);
/* Fails the test unless the other sequences' outputs are what common_arrays_keep() found, bit for
 * bit, and one of the second's has a NaN. */
void kda_nan_check(const struct common_arrays *set, const char *what);

#endif
