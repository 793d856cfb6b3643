/* AMX tiles: eight registers of 16 rows by 64 bytes, for a block of bf16 products.
 *
 * TDPBF16PS adds A (16 rows of 16 pairs along k) times B (16 rows of k pairs, 16 columns) to C
 * (16 x 16 f32). All eight tiles are configured at full size: callers pad with zeros. The
 * configuration is per thread and makes context switches larger, so a block configures the
 * tiles when it starts and releases them when it ends. The process needs the kernel's permission
 * (arch_prctl XTILEDATA), which the library asks for before it loads such an object. */
#ifndef QN_CPU_AMX_H
#define QN_CPU_AMX_H
#include "common/types.h"

#define TILE_ROWS 16
#define TILE_UNITS 16 /* 32-bit units in a tile row */

static inline void configure_tiles(void)
{
    struct {
        uint8_t palette, start_row, reserved[14];
        uint16_t row_bytes[16];
        uint8_t rows[16];
    } config = { .palette = 1 };
    for (int i = 0; i < 8; i++) {
        config.row_bytes[i] = TILE_UNITS * 4;
        config.rows[i] = TILE_ROWS;
    }
    __builtin_ia32_tile_loadconfig(&config);
}

/* The tile number must be a constant in the instruction, hence macros. Strides are in bytes. */
#define TILE_ZERO(tile) __builtin_ia32_tilezero(tile)
#define TILE_LOAD(tile, p, stride) __builtin_ia32_tileloadd64(tile, p, stride)
#define TILE_STORE(tile, p, stride) __builtin_ia32_tilestored64(tile, p, stride)
#define TILE_MULTIPLY(c, a, b) __builtin_ia32_tdpbf16ps(c, a, b)
#define TILE_RELEASE() __builtin_ia32_tilerelease()
#endif
