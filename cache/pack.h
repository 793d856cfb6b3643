/* Long columns, shorter on disk. */
#ifndef QN_PACK_H
#define QN_PACK_H

#include <stddef.h>

/* malloc'ed, shorter than `size`; NULL where it would not be, or there is no memory. */
void *qn_pack(const void *bytes, size_t size, size_t *packed_size);
/* malloc'ed, `size` bytes and a zero after them; NULL if `packed` is no pack of that many. */
void *qn_unpack(const void *packed, size_t packed_size, size_t size);

#endif
