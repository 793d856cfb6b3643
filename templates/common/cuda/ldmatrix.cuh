/* ldmatrix: a warp reads four 8x8 matrices of 16-bit elements from shared memory (PTX ISA
 * 9.7.14.5.15). sm_75 and up. Lane l gives the address of the 16-byte row l % 8 of matrix l / 8.
 * Register i then holds of matrix i row l / 4, columns 2 (l % 4) and the next; transposed, column
 * l / 4, rows 2 (l % 4) and the next. A row may as well be four 32-bit elements: then register i
 * holds row l / 4, column l % 4. */
#ifndef QN_CUDA_LDMATRIX_CUH
#define QN_CUDA_LDMATRIX_CUH
#include "common/types.h"

__device__ __forceinline__ void ldmatrix_x4(uint32_t (&matrices)[4], uint32_t row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(matrices[0]), "=r"(matrices[1]), "=r"(matrices[2]), "=r"(matrices[3])
                 : "r"(row)
                 : "memory");
}

__device__ __forceinline__ void ldmatrix_x4_transposed(uint32_t (&matrices)[4], uint32_t row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(matrices[0]), "=r"(matrices[1]), "=r"(matrices[2]), "=r"(matrices[3])
                 : "r"(row)
                 : "memory");
}
#endif
