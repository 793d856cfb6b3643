/* NumPy's .npy: reading from memory, writing to a file. Format:
 * numpy.org/doc/stable/reference/generated/numpy.lib.format.html, versions 1, 2 and 3. */
#ifndef TOOLS_NPY_H
#define TOOLS_NPY_H

#include "tensor.h"

/* Find the array in a whole file's bytes. 0, or -1 with one line in why. Every dtype that quern
 * knows, both orders; little-endian only. Exactly one array a file. */
int npy_parse(const void *bytes, size_t size, struct tensor_view *view, char why[TENSOR_WHY_BYTES]);

/* Whether a file could be written there: to be asked before hours of work. 0, or -1 with why. */
int npy_check_place(const char *path, char why[TENSOR_WHY_BYTES]);

/* Write a dense row-major array; bf16 as u2, e4m3 and e5m2 as u1. The file appears whole or not at
 * all. 0, or -1 with one line in why. */
int npy_write(const char *path, int dtype, int rank, const int64_t *dims, const void *data,
              char why[TENSOR_WHY_BYTES]);

#endif
