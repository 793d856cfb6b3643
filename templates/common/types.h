/* Fixed-width integers without a system header: of the same size and layout as those of <stdint.h>,
 * so a struct that uses them is shared by device templates (CPU and CUDA) and by the host code that
 * fills it in. */
#ifndef QN_TYPES_H
#define QN_TYPES_H
#ifdef __CUDACC_RTC__
typedef signed char int8_t;
typedef short int16_t;
typedef int int32_t;
typedef long long int64_t;
typedef unsigned char uint8_t;
typedef unsigned short uint16_t;
typedef unsigned int uint32_t;
typedef unsigned long long uint64_t;
typedef unsigned long long uintptr_t;
#else
typedef __INT32_TYPE__ int32_t;
typedef __INT64_TYPE__ int64_t;
typedef __UINT16_TYPE__ uint16_t;
typedef __UINT32_TYPE__ uint32_t;
typedef __UINT64_TYPE__ uint64_t;
typedef __UINT8_TYPE__ uint8_t;
typedef __UINTPTR_TYPE__ uintptr_t;
#endif
#endif
