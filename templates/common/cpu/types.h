/* Fixed-width integers without a system header: the same types as <stdint.h>, so a struct that
 * uses them is shared by freestanding device templates and by the host code that fills it in. */
#ifndef QN_CPU_TYPES_H
#define QN_CPU_TYPES_H
typedef __INT32_TYPE__ int32_t;
typedef __INT64_TYPE__ int64_t;
typedef __UINT16_TYPE__ uint16_t;
typedef __UINT32_TYPE__ uint32_t;
typedef __UINT64_TYPE__ uint64_t;
typedef __UINT8_TYPE__ uint8_t;
typedef __UINTPTR_TYPE__ uintptr_t;
#endif
