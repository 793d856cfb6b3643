/* What a reader of array files finds: the bytes of one array and how to take them. */
#ifndef TOOLS_TENSOR_H
#define TOOLS_TENSOR_H

#include <quern.h>

#include <stddef.h>
#include <stdint.h>

#define TENSOR_MAX_RANK 32
#define TENSOR_WHY_BYTES 512 /* one line: what is wrong, after "a=file.npy: " */

struct tensor_view {
    int dtype;     /* enum quern_dtype; QUERN_NONE: nothing but raw bits */
    int raw_bytes; /* 1 or 2: may also hold the bits of a type without a NumPy name; else 0 */
    char type[16]; /* as the file writes it: "<f4", "BF16" */
    int is_fortran;
    int rank;
    int64_t dims[TENSOR_MAX_RANK];
    const unsigned char *data; /* into the caller's bytes, not aligned */
    size_t bytes;
};

/* count = product of dims, *bytes = count * element_bytes. Non-zero if that overflows 63 bits. */
int tensor_size(int rank, const int64_t *dims, size_t element_bytes, int64_t *count, size_t *bytes);

/* "(3, 4)", as NumPy writes it. */
void tensor_shape_text(int rank, const int64_t *dims, char *text, size_t size);

#endif
