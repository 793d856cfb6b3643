/* The serial part of kda_prefill on GPUs; kda_prefill_intra.cu says what comes before it. The chain
 * of a sequence's chunks is of three products each, whatever the number of heads: kda_segments.cuh
 * says how it is shortened. */

/* ---- Parameters: what is computed ---- */
#ifndef KEY_WIDTH
#define KEY_WIDTH 128
#endif
#ifndef VALUE_WIDTH
#define VALUE_WIDTH 128
#endif
#ifndef DTYPE
#define DTYPE DT_BF16
#endif
#ifndef STATE_DTYPE
#define STATE_DTYPE DT_F32
#endif
#ifndef IS_INDEX_64
#define IS_INDEX_64 0
#endif
#ifndef LAYOUT
#define LAYOUT KDA_LAYOUT_KV
#endif
#ifndef VARLEN
#define VARLEN 1
#endif
#ifndef POOL
#define POOL 0
#endif
#ifndef HAS_BEFORE
#define HAS_BEFORE 0
#endif
#ifndef HAS_AFTER
#define HAS_AFTER 1
#endif
#ifndef CHUNK_STATES
#define CHUNK_STATES 0
#endif

/* What base and strides are multiples of. */
#ifndef ALIGN_O
#define ALIGN_O 16
#endif
#ifndef ALIGN_BEFORE
#define ALIGN_BEFORE 16
#endif
#ifndef ALIGN_AFTER
#define ALIGN_AFTER 16
#endif
#ifndef ALIGN_CHUNKS
#define ALIGN_CHUNKS 16
#endif

/* ---- Parameters: how ---- */
#ifndef CHUNK /* tokens */
#define CHUNK 64
#endif
#ifndef WGMMA /* the serial kernel multiplies by it: sm_90a */
#define WGMMA 0
#endif
#ifndef BV /* columns of v that a block has */
#define BV 64
#endif
#ifndef SPLIT /* warps that have 16 columns together */
#define SPLIT 1
#endif
#ifndef STAGES
#define STAGES 2
#endif
#ifndef SEGMENT /* chunks; 0: sequences are not split */
#define SEGMENT 0
#endif

#include "kda_join.cuh"
#include "kda_state.cuh"
