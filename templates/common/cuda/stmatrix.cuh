/* stmatrix: a warp writes four 8x8 matrices of 16-bit elements to shared memory (PTX ISA
 * 9.7.14.5). sm_90 and up. Lane l gives the address of row l % 8 of matrix l / 8; register i holds
 * matrix i in accumulator order: lane l has row l / 4, columns 2 (l % 4) and the next. The
 * transposed form writes columns as rows: lane l's address is then that of column l % 8. */
#ifndef QN_CUDA_STMATRIX_CUH
#define QN_CUDA_STMATRIX_CUH
#include "common/types.h"

__device__ __forceinline__ void stmatrix_x4(uint32_t row, const uint32_t (&matrices)[4])
{
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(row),
                 "r"(matrices[0]), "r"(matrices[1]), "r"(matrices[2]), "r"(matrices[3])
                 : "memory");
}

__device__ __forceinline__ void stmatrix_x4_transposed(uint32_t row, const uint32_t (&matrices)[4])
{
    asm volatile(
        "stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(row),
        "r"(matrices[0]), "r"(matrices[1]), "r"(matrices[2]), "r"(matrices[3])
        : "memory");
}
#endif
