/* Sizes and shapes of arrays in files, where no number may be believed before it is checked. */
#include "tensor.h"

#include <inttypes.h>
#include <stdio.h>

int tensor_size(int rank, const int64_t *dims, size_t element_bytes, int64_t *count, size_t *bytes)
{
    int64_t product = 1, total;
    for (int i = 0; i < rank; i++) {
        if (dims[i] == 0) { /* an empty array may name any other extents */
            *count = 0, *bytes = 0;
            return 0;
        }
    }
    for (int i = 0; i < rank; i++)
        if (__builtin_mul_overflow(product, dims[i], &product))
            return -1;
    if (__builtin_mul_overflow(product, (int64_t)element_bytes, &total))
        return -1;
    *count = product, *bytes = (size_t)total;
    return 0;
}

void tensor_shape_text(int rank, const int64_t *dims, char *text, size_t size)
{
    size_t used = 0;
    for (int i = 0; i < rank && used < size; i++)
        used += (size_t)snprintf(text + used, size - used, "%s%" PRId64, i ? ", " : "(", dims[i]);
    if (used < size)
        snprintf(text + used, size - used, "%s", rank == 0 ? "()" : rank == 1 ? ",)" : ")");
}
