/* Facts about warps within a block and kernels within a stream: named barriers, setmaxnreg,
 * programmatic launch. test_launch_gpu.c says what each must give. sm_90a. */
#include "common/cuda/launch.cuh"
#include "common/cuda/named_barrier.cuh"
#include "fact_args.h"
#include "fact_wait.cuh"

/* Two pairs of warps hand numbers over through barriers of their own, args.n rounds: the first of a
 * pair writes, the second sums up what it sees. */
extern "C" __global__ void hand_over(const __grid_constant__ struct fact_args args)
{
    __shared__ volatile int32_t slots[2][32];
    int pair = threadIdx.x / 64, lane = threadIdx.x % 32;
    bool is_writer = threadIdx.x / 32 % 2 == 0;
    int full = 1 + pair, empty = 3 + pair;
    int32_t sum = 0;
    for (int i = 0; i < args.n; i++) {
        if (is_writer) {
            slots[pair][lane] = (pair + 1) * (i + lane);
            named_barrier_arrive(full, 64);
            named_barrier_sync(empty, 64);
        } else {
            named_barrier_sync(full, 64);
            sum += slots[pair][31 - lane] * (i % 7 + 1);
            named_barrier_arrive(empty, 64);
        }
    }
    if (!is_writer)
        ((int32_t *)args.out)[pair * 32 + lane] = sum;
}

/* 384 threads are launched with 168 registers each. The first warpgroup gives up most of its own;
 * the others then hold 200 values each, args.n rounds. */
#define HELD 200
extern "C" __global__ void __launch_bounds__(384, 1)
    move_registers(const __grid_constant__ struct fact_args args)
{
    const float *a = (const float *)args.a;
    if (threadIdx.x < 128) {
        registers_lower<24>();
        return;
    }
    registers_raise<240>();
    int t = threadIdx.x - 128;
    float held[HELD], sum = 0;
#pragma unroll
    for (int i = 0; i < HELD; i++)
        held[i] = a[i * 256 + t];
    for (int round = 0; round < args.n; round++) {
        float first = held[0];
#pragma unroll
        for (int i = 0; i < HELD - 1; i++)
            held[i] = held[i + 1] * 2 - held[i];
        held[HELD - 1] = first;
    }
#pragma unroll
    for (int i = 0; i < HELD; i++)
        sum += (i % 3 + 1) * held[i];
    ((float *)args.out)[t] = sum;
}

/* Programmatic launch: ahead lets the next kernel start, works on for args.bytes nanoseconds, then
 * writes args.y everywhere and the time at which it did; behind notes when it started, waits, and
 * copies what it sees. */
extern "C" __global__ void ahead(const __grid_constant__ struct fact_args args)
{
    uint64_t start = fact_time_ns();
    launch_wait();
    launch_dependents();
    while (fact_time_ns() - start < args.bytes) {
    }
    int32_t *values = (int32_t *)args.a;
    for (int i = threadIdx.x; i < args.n; i += blockDim.x)
        values[blockIdx.x * args.n + i] = args.y;
    if (threadIdx.x == 0 && blockIdx.x == 0)
        ((volatile uint64_t *)args.b)[0] = fact_time_ns();
}

extern "C" __global__ void behind(const __grid_constant__ struct fact_args args)
{
    if (threadIdx.x == 0 && blockIdx.x == 0)
        ((volatile uint64_t *)args.b)[1] = fact_time_ns();
    launch_wait();
    const volatile int32_t *values = (const volatile int32_t *)args.a;
    for (int i = threadIdx.x; i < args.n; i += blockDim.x)
        ((int32_t *)args.out)[blockIdx.x * args.n + i] = values[blockIdx.x * args.n + i];
}

/* Faults where args.out is no address. */
extern "C" __global__ void fault(const __grid_constant__ struct fact_args args)
{
    *(volatile int32_t *)args.out = 1;
}
