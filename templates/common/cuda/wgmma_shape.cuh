/* wgmma: a warpgroup multiplies a tile of 64 rows from shared memory by one of N columns, with f32
 * accumulators in registers (PTX ISA 9.7.15). sm_90a only. wgmma.cuh says in which order things go.
 *
 * Each time it is included (a second time within an #if, so that emit puts it in again) this file
 * defines one function, for the shape that the includer has
 * described: WGMMA_NAME; WGMMA_N, 8 to 256 in steps of 8, a plain number; WGMMA_TYPE, bf16, f16,
 * tf32, e4m3 or e5m2; WGMMA_K, 32 bytes of that type; and for bf16 and f16 WGMMA_TRANS_A and
 * WGMMA_TRANS_B, 1 where that operand's tile is contiguous along M or N instead of K. All are
 * undefined at the end. The function is
 *
 *     void WGMMA_NAME(float (&d)[WGMMA_N / 2], uint64_t a, uint64_t b, int accumulates)
 *
 * with descriptors of the 64 x K and the N x K tile. accumulates=0 overwrites d. As d[i], lane l of
 * warp w has row 16 (w % 4) + l / 4 + 8 (i / 2 % 2) and column 8 (i / 4) + 2 (l % 4) + i % 2.
 *
 * With WGMMA_FROM_REGISTERS (bf16 and f16; N 16, 32, 64, 128, 192 or 256) the first operand is in
 * registers,
 *
 *     void WGMMA_NAME(float (&d)[WGMMA_N / 2], const uint32_t (&a)[4], uint64_t b, int accumulates)
 *
 * of lane l pairs of columns 2 (l % 4) and the next: rows l / 4 and 8 more, then both 8 columns on.
 * It is read while the group runs.
 *
 * The descriptors come first, declared as written though they are not, so that an accumulator's
 * operand number does not depend on N. */
#include "common/types.h"

#define WGMMA_TEXT_(x) #x
#define WGMMA_TEXT(x) WGMMA_TEXT_(x)
#ifdef WGMMA_FROM_REGISTERS
#define WGMMA_TRANS ", " WGMMA_TEXT(WGMMA_TRANS_B)
#elif defined(WGMMA_TRANS_A)
#define WGMMA_TRANS ", " WGMMA_TEXT(WGMMA_TRANS_A) ", " WGMMA_TEXT(WGMMA_TRANS_B)
#else
#define WGMMA_TRANS
#endif

/* Eight columns are four registers: their operands' text and the operands. */
#define WGMMA_T0 "%3, %4, %5, %6"
#define WGMMA_D0 , "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
#if WGMMA_N > 8
#define WGMMA_T1 ", %7, %8, %9, %10"
#define WGMMA_D1 , "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7])
#else
#define WGMMA_T1
#define WGMMA_D1
#endif
#if WGMMA_N > 16
#define WGMMA_T2 ", %11, %12, %13, %14"
#define WGMMA_D2 , "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11])
#else
#define WGMMA_T2
#define WGMMA_D2
#endif
#if WGMMA_N > 24
#define WGMMA_T3 ", %15, %16, %17, %18"
#define WGMMA_D3 , "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15])
#else
#define WGMMA_T3
#define WGMMA_D3
#endif
#if WGMMA_N > 32
#define WGMMA_T4 ", %19, %20, %21, %22"
#define WGMMA_D4 , "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19])
#else
#define WGMMA_T4
#define WGMMA_D4
#endif
#if WGMMA_N > 40
#define WGMMA_T5 ", %23, %24, %25, %26"
#define WGMMA_D5 , "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23])
#else
#define WGMMA_T5
#define WGMMA_D5
#endif
#if WGMMA_N > 48
#define WGMMA_T6 ", %27, %28, %29, %30"
#define WGMMA_D6 , "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27])
#else
#define WGMMA_T6
#define WGMMA_D6
#endif
#if WGMMA_N > 56
#define WGMMA_T7 ", %31, %32, %33, %34"
#define WGMMA_D7 , "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31])
#else
#define WGMMA_T7
#define WGMMA_D7
#endif
#if WGMMA_N > 64
#define WGMMA_T8 ", %35, %36, %37, %38"
#define WGMMA_D8 , "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35])
#else
#define WGMMA_T8
#define WGMMA_D8
#endif
#if WGMMA_N > 72
#define WGMMA_T9 ", %39, %40, %41, %42"
#define WGMMA_D9 , "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39])
#else
#define WGMMA_T9
#define WGMMA_D9
#endif
#if WGMMA_N > 80
#define WGMMA_T10 ", %43, %44, %45, %46"
#define WGMMA_D10 , "+f"(d[40]), "+f"(d[41]), "+f"(d[42]), "+f"(d[43])
#else
#define WGMMA_T10
#define WGMMA_D10
#endif
#if WGMMA_N > 88
#define WGMMA_T11 ", %47, %48, %49, %50"
#define WGMMA_D11 , "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47])
#else
#define WGMMA_T11
#define WGMMA_D11
#endif
#if WGMMA_N > 96
#define WGMMA_T12 ", %51, %52, %53, %54"
#define WGMMA_D12 , "+f"(d[48]), "+f"(d[49]), "+f"(d[50]), "+f"(d[51])
#else
#define WGMMA_T12
#define WGMMA_D12
#endif
#if WGMMA_N > 104
#define WGMMA_T13 ", %55, %56, %57, %58"
#define WGMMA_D13 , "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55])
#else
#define WGMMA_T13
#define WGMMA_D13
#endif
#if WGMMA_N > 112
#define WGMMA_T14 ", %59, %60, %61, %62"
#define WGMMA_D14 , "+f"(d[56]), "+f"(d[57]), "+f"(d[58]), "+f"(d[59])
#else
#define WGMMA_T14
#define WGMMA_D14
#endif
#if WGMMA_N > 120
#define WGMMA_T15 ", %63, %64, %65, %66"
#define WGMMA_D15 , "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), "+f"(d[63])
#else
#define WGMMA_T15
#define WGMMA_D15
#endif
#if WGMMA_N > 128
#define WGMMA_T16 ", %67, %68, %69, %70"
#define WGMMA_D16 , "+f"(d[64]), "+f"(d[65]), "+f"(d[66]), "+f"(d[67])
#else
#define WGMMA_T16
#define WGMMA_D16
#endif
#if WGMMA_N > 136
#define WGMMA_T17 ", %71, %72, %73, %74"
#define WGMMA_D17 , "+f"(d[68]), "+f"(d[69]), "+f"(d[70]), "+f"(d[71])
#else
#define WGMMA_T17
#define WGMMA_D17
#endif
#if WGMMA_N > 144
#define WGMMA_T18 ", %75, %76, %77, %78"
#define WGMMA_D18 , "+f"(d[72]), "+f"(d[73]), "+f"(d[74]), "+f"(d[75])
#else
#define WGMMA_T18
#define WGMMA_D18
#endif
#if WGMMA_N > 152
#define WGMMA_T19 ", %79, %80, %81, %82"
#define WGMMA_D19 , "+f"(d[76]), "+f"(d[77]), "+f"(d[78]), "+f"(d[79])
#else
#define WGMMA_T19
#define WGMMA_D19
#endif
#if WGMMA_N > 160
#define WGMMA_T20 ", %83, %84, %85, %86"
#define WGMMA_D20 , "+f"(d[80]), "+f"(d[81]), "+f"(d[82]), "+f"(d[83])
#else
#define WGMMA_T20
#define WGMMA_D20
#endif
#if WGMMA_N > 168
#define WGMMA_T21 ", %87, %88, %89, %90"
#define WGMMA_D21 , "+f"(d[84]), "+f"(d[85]), "+f"(d[86]), "+f"(d[87])
#else
#define WGMMA_T21
#define WGMMA_D21
#endif
#if WGMMA_N > 176
#define WGMMA_T22 ", %91, %92, %93, %94"
#define WGMMA_D22 , "+f"(d[88]), "+f"(d[89]), "+f"(d[90]), "+f"(d[91])
#else
#define WGMMA_T22
#define WGMMA_D22
#endif
#if WGMMA_N > 184
#define WGMMA_T23 ", %95, %96, %97, %98"
#define WGMMA_D23 , "+f"(d[92]), "+f"(d[93]), "+f"(d[94]), "+f"(d[95])
#else
#define WGMMA_T23
#define WGMMA_D23
#endif
#if WGMMA_N > 192
#define WGMMA_T24 ", %99, %100, %101, %102"
#define WGMMA_D24 , "+f"(d[96]), "+f"(d[97]), "+f"(d[98]), "+f"(d[99])
#else
#define WGMMA_T24
#define WGMMA_D24
#endif
#if WGMMA_N > 200
#define WGMMA_T25 ", %103, %104, %105, %106"
#define WGMMA_D25 , "+f"(d[100]), "+f"(d[101]), "+f"(d[102]), "+f"(d[103])
#else
#define WGMMA_T25
#define WGMMA_D25
#endif
#if WGMMA_N > 208
#define WGMMA_T26 ", %107, %108, %109, %110"
#define WGMMA_D26 , "+f"(d[104]), "+f"(d[105]), "+f"(d[106]), "+f"(d[107])
#else
#define WGMMA_T26
#define WGMMA_D26
#endif
#if WGMMA_N > 216
#define WGMMA_T27 ", %111, %112, %113, %114"
#define WGMMA_D27 , "+f"(d[108]), "+f"(d[109]), "+f"(d[110]), "+f"(d[111])
#else
#define WGMMA_T27
#define WGMMA_D27
#endif
#if WGMMA_N > 224
#define WGMMA_T28 ", %115, %116, %117, %118"
#define WGMMA_D28 , "+f"(d[112]), "+f"(d[113]), "+f"(d[114]), "+f"(d[115])
#else
#define WGMMA_T28
#define WGMMA_D28
#endif
#if WGMMA_N > 232
#define WGMMA_T29 ", %119, %120, %121, %122"
#define WGMMA_D29 , "+f"(d[116]), "+f"(d[117]), "+f"(d[118]), "+f"(d[119])
#else
#define WGMMA_T29
#define WGMMA_D29
#endif
#if WGMMA_N > 240
#define WGMMA_T30 ", %123, %124, %125, %126"
#define WGMMA_D30 , "+f"(d[120]), "+f"(d[121]), "+f"(d[122]), "+f"(d[123])
#else
#define WGMMA_T30
#define WGMMA_D30
#endif
#if WGMMA_N > 248
#define WGMMA_T31 ", %127, %128, %129, %130"
#define WGMMA_D31 , "+f"(d[124]), "+f"(d[125]), "+f"(d[126]), "+f"(d[127])
#else
#define WGMMA_T31
#define WGMMA_D31
#endif

#ifdef WGMMA_FROM_REGISTERS
#if WGMMA_N == 16
#define WGMMA_A "{%0, %11, %12, %13}"
#elif WGMMA_N == 32
#define WGMMA_A "{%0, %19, %20, %21}"
#elif WGMMA_N == 64
#define WGMMA_A "{%0, %35, %36, %37}"
#elif WGMMA_N == 128
#define WGMMA_A "{%0, %67, %68, %69}"
#elif WGMMA_N == 192
#define WGMMA_A "{%0, %99, %100, %101}"
#else
#define WGMMA_A "{%0, %131, %132, %133}"
#endif
#define WGMMA_FIRST const uint32_t(&a)[4]
#define WGMMA_FIRST_OPERAND "+r"(first)
#define WGMMA_LAST_OPERANDS : "r"(a[1]), "r"(a[2]), "r"(a[3])
#else
#define WGMMA_A "%0"
#define WGMMA_FIRST uint64_t a
#define WGMMA_FIRST_OPERAND "+l"(first)
#define WGMMA_LAST_OPERANDS
#endif

__device__ __forceinline__ void WGMMA_NAME(float (&d)[WGMMA_N / 2], WGMMA_FIRST, uint64_t b,
                                           int accumulates)
{
#ifdef WGMMA_FROM_REGISTERS
    uint32_t first = a[0];
#else
    uint64_t first = a;
#endif
    /* clang-format off */
    asm volatile("{\n"
        ".reg .pred p;\n"
        "setp.ne.b32 p, %2, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n" WGMMA_TEXT(WGMMA_N) "k" WGMMA_TEXT(WGMMA_K)
        ".f32." WGMMA_TEXT(WGMMA_TYPE) "." WGMMA_TEXT(WGMMA_TYPE) " {"
        WGMMA_T0 WGMMA_T1 WGMMA_T2 WGMMA_T3 WGMMA_T4 WGMMA_T5 WGMMA_T6 WGMMA_T7
        WGMMA_T8 WGMMA_T9 WGMMA_T10 WGMMA_T11 WGMMA_T12 WGMMA_T13 WGMMA_T14 WGMMA_T15
        WGMMA_T16 WGMMA_T17 WGMMA_T18 WGMMA_T19 WGMMA_T20 WGMMA_T21 WGMMA_T22 WGMMA_T23
        WGMMA_T24 WGMMA_T25 WGMMA_T26 WGMMA_T27 WGMMA_T28 WGMMA_T29 WGMMA_T30 WGMMA_T31
        "}, " WGMMA_A ", %1, p, 1, 1" WGMMA_TRANS ";\n"
        "}\n"
        : WGMMA_FIRST_OPERAND, "+l"(b), "+r"(accumulates)
        WGMMA_D0 WGMMA_D1 WGMMA_D2 WGMMA_D3 WGMMA_D4 WGMMA_D5 WGMMA_D6 WGMMA_D7
        WGMMA_D8 WGMMA_D9 WGMMA_D10 WGMMA_D11 WGMMA_D12 WGMMA_D13 WGMMA_D14 WGMMA_D15
        WGMMA_D16 WGMMA_D17 WGMMA_D18 WGMMA_D19 WGMMA_D20 WGMMA_D21 WGMMA_D22 WGMMA_D23
        WGMMA_D24 WGMMA_D25 WGMMA_D26 WGMMA_D27 WGMMA_D28 WGMMA_D29 WGMMA_D30 WGMMA_D31
        WGMMA_LAST_OPERANDS
    );
    /* clang-format on */
}

#undef WGMMA_TEXT_
#undef WGMMA_TEXT
#undef WGMMA_TRANS
#undef WGMMA_T0
#undef WGMMA_D0
#undef WGMMA_T1
#undef WGMMA_D1
#undef WGMMA_T2
#undef WGMMA_D2
#undef WGMMA_T3
#undef WGMMA_D3
#undef WGMMA_T4
#undef WGMMA_D4
#undef WGMMA_T5
#undef WGMMA_D5
#undef WGMMA_T6
#undef WGMMA_D6
#undef WGMMA_T7
#undef WGMMA_D7
#undef WGMMA_T8
#undef WGMMA_D8
#undef WGMMA_T9
#undef WGMMA_D9
#undef WGMMA_T10
#undef WGMMA_D10
#undef WGMMA_T11
#undef WGMMA_D11
#undef WGMMA_T12
#undef WGMMA_D12
#undef WGMMA_T13
#undef WGMMA_D13
#undef WGMMA_T14
#undef WGMMA_D14
#undef WGMMA_T15
#undef WGMMA_D15
#undef WGMMA_T16
#undef WGMMA_D16
#undef WGMMA_T17
#undef WGMMA_D17
#undef WGMMA_T18
#undef WGMMA_D18
#undef WGMMA_T19
#undef WGMMA_D19
#undef WGMMA_T20
#undef WGMMA_D20
#undef WGMMA_T21
#undef WGMMA_D21
#undef WGMMA_T22
#undef WGMMA_D22
#undef WGMMA_T23
#undef WGMMA_D23
#undef WGMMA_T24
#undef WGMMA_D24
#undef WGMMA_T25
#undef WGMMA_D25
#undef WGMMA_T26
#undef WGMMA_D26
#undef WGMMA_T27
#undef WGMMA_D27
#undef WGMMA_T28
#undef WGMMA_D28
#undef WGMMA_T29
#undef WGMMA_D29
#undef WGMMA_T30
#undef WGMMA_D30
#undef WGMMA_T31
#undef WGMMA_D31
#undef WGMMA_A
#undef WGMMA_FIRST
#undef WGMMA_FIRST_OPERAND
#undef WGMMA_LAST_OPERANDS
#undef WGMMA_FROM_REGISTERS
#undef WGMMA_NAME
#undef WGMMA_N
#undef WGMMA_K
#undef WGMMA_TYPE
#undef WGMMA_TRANS_A
#undef WGMMA_TRANS_B
