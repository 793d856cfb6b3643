/* What the files of shuffle_rows share on the host side. */
#ifndef SHUFFLE_ROWS_H
#define SHUFFLE_ROWS_H

#include <quern/family.h>

QUERN_API extern const struct quern_family quern_family_shuffle_rows;

void shuffle_rows_reference(struct quern_ref *ref, int64_t unit);

#endif
