/* Transpose a VW x VW square of 32-bit lanes held in VW vectors.
 *
 * Number the elements by row bits R and column bits C: the address is R:C. Interleaving vector i
 * with vector i + VW/2 for every i < VW/2 rotates the address left by one bit (the top row bit
 * becomes the lowest column bit), so log2(VW) such rounds turn R:C into C:R. Every round is the
 * same two shuffles: one pattern, two index registers, VW shuffles a round. */
#ifndef QN_CPU_TRANSPOSE_H
#define QN_CPU_TRANSPOSE_H
#include "common/cpu/vec.h"

#if VW == 16
#define TRANSPOSE_ROUNDS 4
#define INTERLEAVE_LOW(a, b)                                                                       \
    __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23)
#define INTERLEAVE_HIGH(a, b)                                                                      \
    __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31)
#elif VW == 8
#define TRANSPOSE_ROUNDS 3
#define INTERLEAVE_LOW(a, b) __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11)
#define INTERLEAVE_HIGH(a, b) __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15)
#else
#define TRANSPOSE_ROUNDS 2
#define INTERLEAVE_LOW(a, b) __builtin_shufflevector(a, b, 0, 4, 1, 5)
#define INTERLEAVE_HIGH(a, b) __builtin_shufflevector(a, b, 2, 6, 3, 7)
#endif

INLINE void transpose(vec_u32 v[VW])
{
    UNROLL
    for (int round = 0; round < TRANSPOSE_ROUNDS; round++) {
        vec_u32 mixed[VW];
        UNROLL
        for (int i = 0; i < VW / 2; i++) {
            mixed[2 * i] = INTERLEAVE_LOW(v[i], v[i + VW / 2]);
            mixed[2 * i + 1] = INTERLEAVE_HIGH(v[i], v[i + VW / 2]);
        }
        UNROLL
        for (int i = 0; i < VW; i++)
            v[i] = mixed[i];
    }
}
#endif
