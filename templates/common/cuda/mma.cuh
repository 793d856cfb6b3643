/* mma.sync: a warp multiplies fragments in registers, d += a b with f32 sums (PTX ISA 9.7.14.5).
 * sm_80 and up.
 *
 * With g = lane / 4 and t = lane % 4:
 *
 *     d   16x8          d[0], d[1]: row g, columns 2t, 2t + 1;  d[2], d[3]: row g + 8
 *     a   16x16 16-bit  a[0]: row g, k 2t, 2t + 1;  a[1]: row g + 8;  a[2], a[3]: the same at k + 8
 *     b   16x8  16-bit  b[0]: column g, k 2t, 2t + 1;  b[1]: at k + 8
 *     a   16x8  tf32    a[0]: row g, k t;  a[1]: row g + 8;  a[2], a[3]: the same at k + 4
 *     b   8x8   tf32    b[0]: column g, k t;  b[1]: at k + 4
 *
 * so in bytes tf32 fragments are the 16-bit ones. Pairs have the lower k in the low half. */
#ifndef QN_CUDA_MMA_CUH
#define QN_CUDA_MMA_CUH
#include "common/types.h"

__device__ __forceinline__ void mma_bf16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                                         uint32_t b1)
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ void mma_f16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                                        uint32_t b1)
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ void mma_tf32(float (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                                         uint32_t b1)
{
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
#endif
