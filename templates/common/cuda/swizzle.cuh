/* The XOR swizzle that TMA and wgmma share: within a tile of rows of `pitch` bytes (128, 64 or 32)
 * that starts at a multiple of 8 pitch, 16-byte chunks trade places so that eight rows of one
 * column of chunks lie in different banks. */
#ifndef QN_CUDA_SWIZZLE_CUH
#define QN_CUDA_SWIZZLE_CUH
#include "common/types.h"

/* Where byte `offset` of the plain tile lies in the swizzled one. */
template <int pitch> __device__ __forceinline__ uint32_t swizzled(uint32_t offset)
{
    return offset ^ ((offset >> 7 & (pitch / 16 - 1)) << 4);
}
#endif
