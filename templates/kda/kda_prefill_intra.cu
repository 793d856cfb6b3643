/* kda_prefill on GPUs, sm_80 and up, bf16 and f16:
 *
 *     kda_prefill_scan     one block       first chunk of each sequence         (varlen)
 *     kda_prefill_intra    chunk, head     q k v g beta -> a record             in parallel
 *
 * and then, in kda_prefill_state.cu,
 *
 *     kda_prefill_ends     segment, head   where it ends from 0, and its map    (where split)
 *     kda_prefill_join     head            where segments begin                 (where split)
 *     kda_prefill_state    sequence, head, slab of v: records, state -> o, state     serially
 *
 * A record is (6 k + 4 v) chunk + 4 k bytes of tiles (kda_prefill_cuda_args.h), 1288 a token of a
 * head at k = v = 128 and chunks of 64. It is written once and read once from memory: what the
 * slabs share of it comes to the others from L2. With q, k, v, o and g in bf16 that is 3.9 KB a
 * token of a head, the floor of this form (0.47 ms on an H200 at 64 heads, 8192 tokens); a form
 * without records would need 1.3 KB. */

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
#ifndef G_DTYPE
#define G_DTYPE DT_F32
#endif
#ifndef BETA_DTYPE
#define BETA_DTYPE DT_F32
#endif
#ifndef IS_INDEX_64
#define IS_INDEX_64 0
#endif
#ifndef GATE
#define GATE KDA_GATE_NONE
#endif
#ifndef DECAY
#define DECAY KDA_DECAY_CHANNEL
#endif
#ifndef L2NORM
#define L2NORM 0
#endif
#ifndef BETA_LOGITS
#define BETA_LOGITS 0
#endif
#ifndef NEG_EIGVAL
#define NEG_EIGVAL 0
#endif
#ifndef HAS_BIAS
#define HAS_BIAS 0
#endif
#ifndef VARLEN
#define VARLEN 1
#endif

/* What base and strides are multiples of. */
#ifndef ALIGN_Q
#define ALIGN_Q 16
#endif
#ifndef ALIGN_K
#define ALIGN_K 16
#endif
#ifndef ALIGN_V
#define ALIGN_V 16
#endif
#ifndef ALIGN_G
#define ALIGN_G 16
#endif

/* ---- Parameters: how ---- */
#ifndef CHUNK /* tokens */
#define CHUNK 64
#endif
#ifndef WGMMA /* the serial kernel multiplies by it, which the record's layout is for */
#define WGMMA 0
#endif
#ifndef INTRA_BLOCKS /* of 64 tokens that an SM holds at a time, at least */
#define INTRA_BLOCKS 1
#endif

#include "kda_kinds.h"
#include "kda_scan.cuh"
#include "kda_solve.cuh"
