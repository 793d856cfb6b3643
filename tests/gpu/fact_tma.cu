/* Facts about TMA and mbarriers: what one box looks like in shared memory, what lies outside the
 * tensor, phases of a ring, multicast, a store clipped at the edge. test_tma_gpu.c says what each
 * must give. sm_90a. */
#include "common/cuda/cluster.cuh"
#include "common/cuda/mbarrier.cuh"
#include "common/cuda/swizzle.cuh"
#include "common/cuda/tma.cuh"
#include "fact_args.h"
#include "fact_wait.cuh"

#define TILE 8192 /* bytes of the largest box */

struct tile {
    __align__(1024) unsigned char bytes[TILE];
};

__device__ void dump(const struct tile *tile, void *out, int bytes)
{
    for (int i = threadIdx.x; i < bytes; i += blockDim.x)
        ((unsigned char *)out)[i] = tile->bytes[i];
}

/* The box at (x, y, z), byte for byte as it lies in shared memory. */
extern "C" __global__ void load_box(const __grid_constant__ struct fact_args args)
{
    __shared__ struct tile tile;
    __shared__ uint64_t full;
    uint32_t barrier = shared_address(&full);
    if (threadIdx.x == 0) {
        mbarrier_init(barrier, 1);
        mbarrier_init_fence();
        tma_prefetch_map(&args.maps[0]);
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        mbarrier_arrive_expect(barrier, args.bytes);
        tma_load_3d(shared_address(&tile), &args.maps[0], barrier, args.x, args.y, args.z);
    }
    if (fact_wait(barrier, 0))
        dump(&tile, args.out, args.bytes);
}

/* What try_wait says of parity 0 and 1: fresh; after one of two arrivals; after both; after both of
 * the next phase. */
extern "C" __global__ void phases(const __grid_constant__ struct fact_args args)
{
    __shared__ uint64_t object;
    uint32_t barrier = shared_address(&object);
    int32_t *out = (int32_t *)args.out;
    if (threadIdx.x)
        return;
    mbarrier_init(barrier, 2);
    mbarrier_init_fence();
    for (int i = 0; i < 5; i++) {
        *out++ = mbarrier_try(barrier, 0);
        *out++ = mbarrier_try(barrier, 1);
        mbarrier_arrive(barrier);
    }
}

/* n boxes down the rows through a ring of three stages; 128 threads consume, one produces. */
#define STAGES 3
extern "C" __global__ void ring(const __grid_constant__ struct fact_args args)
{
    __shared__ struct tile tiles[STAGES];
    __shared__ uint64_t full[STAGES], empty[STAGES];
    if (threadIdx.x == 0) {
        for (int s = 0; s < STAGES; s++) {
            mbarrier_init(shared_address(&full[s]), 1);
            mbarrier_init(shared_address(&empty[s]), 128);
        }
        mbarrier_init_fence();
    }
    __syncthreads();
    bool is_producer = threadIdx.x == 128;
    for (int i = 0; i < args.n && (is_producer || threadIdx.x < 128); i++) {
        int s = i % STAGES, phase = i / STAGES & 1;
        if (is_producer) {
            fact_wait(shared_address(&empty[s]), phase ^ 1);
            mbarrier_arrive_expect(shared_address(&full[s]), args.bytes);
            tma_load_3d(shared_address(&tiles[s]), &args.maps[0], shared_address(&full[s]), 0,
                        i * args.y, 0);
            continue;
        }
        if (fact_wait(shared_address(&full[s]), phase)) {
            for (int b = threadIdx.x; b < args.bytes; b += 128)
                ((unsigned char *)args.out)[i * args.bytes + b] = tiles[s].bytes[b];
        }
        mbarrier_arrive(shared_address(&empty[s]));
    }
}

/* Two blocks load half of a tile each, into both. */
extern "C" __global__ void multicast(const __grid_constant__ struct fact_args args)
{
    __shared__ struct tile tile;
    __shared__ uint64_t full;
    uint32_t barrier = shared_address(&full), rank = cluster_rank();
    if (threadIdx.x == 0) {
        mbarrier_init(barrier, 1);
        mbarrier_init_fence();
        mbarrier_arrive_expect(barrier, 2 * args.bytes);
    }
    cluster_sync();
    if (threadIdx.x == 0)
        tma_multicast_3d(shared_address(&tile) + rank * args.bytes, &args.maps[0], barrier, 0,
                         rank * args.y, 0, 3);
    if (fact_wait(barrier, 0))
        dump(&tile, (char *)args.out + rank * 2 * args.bytes, 2 * args.bytes);
    cluster_sync();
}

/* Each block reads what the other has in its shared memory, and arrives on the other's barrier. */
extern "C" __global__ void peer(const __grid_constant__ struct fact_args args)
{
    __shared__ float4 values[128];
    __shared__ uint64_t object;
    uint32_t rank = cluster_rank(), barrier = shared_address(&object), t = threadIdx.x;
    float first = 1000 * rank + 4 * t;
    values[t] = make_float4(first, first + 1, first + 2, first + 3);
    if (t == 0) {
        mbarrier_init(barrier, 128);
        mbarrier_init_fence();
    }
    cluster_sync();
    float4 *out = (float4 *)args.out + rank * 128;
    float4 seen = cluster_load(cluster_address(shared_address(&values[t]), rank ^ 1));
    mbarrier_arrive_at(barrier, rank ^ 1);
    if (fact_wait(barrier, 0))
        out[t] = seen;
    cluster_sync();
}

/* A tile of 64 by 64 16-bit numbers, element i holding i, swizzled, stored at (x, y, z). Once it
 * was read the block may end: the store is done when the kernel is. */
extern "C" __global__ void store_box(const __grid_constant__ struct fact_args args)
{
    __shared__ struct tile tile;
    for (uint32_t i = threadIdx.x; i < 4096; i += blockDim.x)
        *(uint16_t *)(tile.bytes + swizzled<128>(2 * i)) = i;
    tma_store_fence();
    __syncthreads();
    if (threadIdx.x == 0) {
        tma_store_3d(&args.maps[0], shared_address(&tile), args.x, args.y, args.z);
        tma_store_commit();
        tma_store_wait_read<0>();
    }
}
