/* What host and device sides of attention_decode_sm80 share. */
#ifndef DECODE_CUDA_ARGS_H
#define DECODE_CUDA_ARGS_H
#include "attention_decode_args.h"
#include "common/cuda/split_kv_args.h"

struct decode_cuda_args {
    struct decode_args call;
    struct split_kv_space space;
};

/* A unit's fixed pieces, at most, with deterministic=1. */
#define DECODE_PIECES 32
/* Tokens of a fixed piece, at least: a whole number of tiles. */
#define DECODE_PIECE_TOKENS 512
/* Pieces that a block has, at most, beside the units it has whole, where there is a prefix. */
#define DECODE_SHARED_PIECES 4

#endif
