/* Keys: XXH3-128 of canonical text, in hexadecimal. */
#include "cache/store.h"

#include <xxhash.h>

void qn_key_hex(const void *text, size_t bytes, char hex[QN_KEY_HEX])
{
    static const char digits[] = "0123456789abcdef";
    XXH128_canonical_t canonical; /* big endian: one key on every machine */

    XXH128_canonicalFromHash(&canonical, XXH3_128bits(text, bytes));
    for (size_t i = 0; i < sizeof canonical.digest; i++) {
        hex[2 * i] = digits[canonical.digest[i] >> 4];
        hex[2 * i + 1] = digits[canonical.digest[i] & 15];
    }
    hex[QN_KEY_HEX - 1] = 0;
}
