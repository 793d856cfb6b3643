/* The two long columns of an artifact, source and blob, packed with zlib where that is shorter. How
 * long they were is stored beside them, and packed bytes are shorter than that: so bytes that are
 * as long as they should be are plain ones. A pack that does not open, or not to its length, gives
 * back the stored bytes, which the artifact's hash then finds damaged.
 */
#include "cache/pack.h"

#include <stdlib.h>
#include <zlib.h>

enum {
    LEVEL = 6,
    MOST_RATIO = 1100,    /* deflate makes at most 1032 bytes of one: a larger length is damage */
    MOST_BYTES = 1 << 30, /* as much as SQLite takes unpacked */
};

void *qn_pack(const void *bytes, size_t size, size_t *packed_size)
{
    uLongf length = size;
    void *packed = size ? malloc(size) : NULL;

    /* Room for one byte less: what does not get shorter fails. */
    if (packed)
        length = size - 1;
    if (packed && compress2(packed, &length, bytes, size, LEVEL) == Z_OK) {
        *packed_size = length;
        return packed;
    }
    free(packed);
    return NULL;
}

void *qn_unpack(const void *packed, size_t packed_size, size_t size)
{
    uLongf length = size;
    char *bytes = NULL;

    if (packed_size >= size || size > MOST_BYTES || size / MOST_RATIO > packed_size)
        return NULL;
    bytes = malloc(size + 1);
    if (!bytes || uncompress((Bytef *)bytes, &length, packed, packed_size) != Z_OK ||
        length != size) {
        free(bytes);
        return NULL;
    }
    bytes[size] = 0;
    return bytes;
}
