/* Rows of two arrays behind each other: one block of the grid writes args->block rows. */
#include "common/types.h"
#include "mla/mla_concat_args.h"

#ifndef HEADS
#define HEADS 128
#endif
#ifndef LEFT
#define LEFT 128
#endif
#ifndef RIGHT
#define RIGHT 64
#endif
#ifndef SIZE
#define SIZE 2
#endif

void mla_concat_main(const struct mla_concat_args *args, uint32_t x, uint32_t y, uint32_t z)
{
    (void)y, (void)z;
    int64_t begin = (int64_t)x * args->block, end = begin + args->block;
    end = end < args->t * HEADS ? end : args->t * HEADS;
    for (int64_t i = begin; i < end; i++) {
        int64_t token = i / HEADS, head = i % HEADS;
        const char *left = args->left, *right = args->right;
        char *out = args->out;
        left += (token * args->left_token + head * args->left_head) * SIZE;
        right += (token * args->right_token + head * args->right_head) * SIZE;
        out += (token * args->out_token + head * args->out_head) * SIZE;
        __builtin_memcpy(out, left, LEFT * SIZE);
        __builtin_memcpy(out + LEFT * SIZE, right, RIGHT * SIZE);
    }
}
