/* Which tokens a chunk has, found on the device: cu_seqlens is the caller's and not to be trusted.
 * Borders outside of [0, t] count as the nearest in it, a sequence that ends before it begins as
 * empty. first[i] is the first chunk of sequence i in the workspace, first[n] their number, both at
 * most `chunks`, and a sequence ends with its last chunk: so whatever cu_seqlens holds, nothing
 * outside of the arrays is read or written.
 *
 * Where all sequences are of one length, first is not needed. */
#ifndef KDA_CHUNKS_CUH
#define KDA_CHUNKS_CUH
#include "common/types.h"
#include "kda_prefill_cuda_args.h"

#define CHUNK_BLOCKS (CHUNK / 16)
#define KEY_PART KDA_PART_BYTES(CHUNK, KEY_WIDTH)
#define VALUE_PART KDA_PART_BYTES(CHUNK, VALUE_WIDTH)
#define RECORD_BYTES KDA_RECORD_BYTES(CHUNK, KEY_WIDTH, VALUE_WIDTH)

struct sequence {
    int64_t begin, end;    /* tokens */
    int64_t first, chunks; /* in the workspace */
};

__device__ __forceinline__ int64_t border_of(const struct kda_prefill_cuda_args *args,
                                             int64_t index)
{
    int64_t at = IS_INDEX_64 ? ((const int64_t *)args->cu_seqlens)[index]
                             : ((const int32_t *)args->cu_seqlens)[index];
    return max((int64_t)0, min(at, args->t));
}

__device__ __forceinline__ struct sequence sequence_of(const struct kda_prefill_cuda_args *args,
                                                       int64_t index)
{
    struct sequence sequence;
    if (VARLEN) {
        sequence.begin = border_of(args, index);
        sequence.end = max(sequence.begin, border_of(args, index + 1));
        sequence.first = args->first[index];
        sequence.chunks = args->first[index + 1] - sequence.first;
        sequence.end = min(sequence.end, sequence.begin + sequence.chunks * CHUNK);
        return sequence;
    }
    int64_t length = args->t / args->n;
    sequence.begin = index * length;
    sequence.end = sequence.begin + length;
    sequence.chunks = (length + CHUNK - 1) / CHUNK;
    sequence.first = index * sequence.chunks;
    return sequence;
}

/* The sequence of a chunk: the last that begins at or before it; -1 past the last chunk. */
__device__ __forceinline__ int64_t sequence_of_chunk(const struct kda_prefill_cuda_args *args,
                                                     int64_t chunk)
{
    if (!VARLEN)
        return chunk / ((args->t / args->n + CHUNK - 1) / CHUNK);
    int64_t low = 0, high = args->n;
    if (chunk >= args->first[high])
        return -1;
    while (high - low > 1) {
        int64_t middle = (low + high) / 2;
        if (args->first[middle] <= chunk)
            low = middle;
        else
            high = middle;
    }
    return low;
}
#endif
