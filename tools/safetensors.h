/* One tensor of a .safetensors file, read from memory. Format:
 * github.com/huggingface/safetensors, README.md, "Format". */
#ifndef TOOLS_SAFETENSORS_H
#define TOOLS_SAFETENSORS_H

#include "tensor.h"

/* Find tensor `name` in a whole file's bytes. 0, or -1 with one line in why. */
int safetensors_parse(const void *bytes, size_t size, const char *name, struct tensor_view *view,
                      char why[TENSOR_WHY_BYTES]);

#endif
