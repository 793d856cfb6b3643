/* What the files of this folder share on the host side. */
#ifndef COPY_H
#define COPY_H

#include <quern/family.h>

#define COPY_UNIT 4096 /* elements in a unit of the reference */

QUERN_API extern const struct quern_family quern_family_copy;

void copy_reference(struct quern_ref *ref, int64_t unit);

#endif
