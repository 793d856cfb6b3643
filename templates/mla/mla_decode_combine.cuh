/* mla_decode_combine: the second step of the CUDA variants. A block has one row of a sequence that
 * was cut: blockIdx.y is the row of all units, blockIdx.x a cut, or with DETERMINISTIC a
 * sequence. */
#ifndef MLA_DECODE_COMBINE_CUH
#define MLA_DECODE_COMBINE_CUH
#include "common/cuda/launch.cuh"
#include "mla_decode_items.cuh"

#ifndef COMBINE_THREADS
#define COMBINE_THREADS 256
#endif

/* The step behind may be brought to the SMs by now; it waits for this one itself. */
__device__ __forceinline__ void announce_combine(void)
{
#if __CUDA_ARCH__ >= 900
    launch_dependents();
#endif
}

/* Where the states of a row's pieces are. */
struct row_states {
    struct split_kv_pieces pieces;
    int units, unit, row;
    __device__ __forceinline__ int64_t operator()(int piece) const
    {
        int64_t slot = DETERMINISTIC ? pieces.first + piece : pieces(piece);
        return (slot * units + unit) * BM + row;
    }
};

/* Whether the block has a sequence, and which. */
__device__ __forceinline__ bool pieces_of_block(const struct mla_cuda_args *args,
                                                struct split_kv_unit *unit,
                                                struct split_kv_pieces *pieces)
{
    if (!DETERMINISTIC)
        return split_pieces(args->space, blockIdx.x, unit, pieces);
    int64_t first = args->space.before[blockIdx.x];
    int count = (int)(args->space.before[blockIdx.x + 1] - first);
    *unit = { first, (int)blockIdx.x, 0, count };
    *pieces = { first, count };
    return count > 1;
}

extern "C" __global__ void __launch_bounds__(COMBINE_THREADS)
    mla_decode_combine(const __grid_constant__ struct mla_cuda_args args)
{
    struct split_kv_unit cut;
    struct split_kv_pieces pieces;
#if __CUDA_ARCH__ >= 900
    launch_wait();
#endif
    if (!pieces_of_block(&args, &cut, &pieces))
        return;
    const int row = blockIdx.y % BM, unit = blockIdx.y / BM, sequence = cut.sequence;
    const struct row_states states = { pieces, (int)(gridDim.y / BM), unit, row };
    int64_t offset = heads_offset(args.mla.o, sequence, unit, row);
    if (offset < 0)
        return;
    auto write = [&](int column, const struct split_kv_state &state) {
        float factor = reciprocal_of_sum(state.l);
        const float values[4] = { state.o[0] * factor, state.o[1] * factor, state.o[2] * factor,
                                  state.o[3] * factor };
        store_o((char *)args.mla.o.data + (offset + column) * 2, values);
        if (column == 0)
            store_lse(&args, sequence, unit, row, state.m, state.l);
    };
    split_combine<COMBINE_THREADS, MLA_DV>(args.space, pieces.count, states, write);
}
#endif
