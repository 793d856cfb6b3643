/* The family moe_align_block_size. */
#ifndef MOE_ALIGN_BLOCK_SIZE_H
#define MOE_ALIGN_BLOCK_SIZE_H

#include "moe_align.h"

#endif
