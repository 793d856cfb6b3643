"""The device side of the Triton peer: d[z, m, n] = a[z, m, k] b[z, n, k]^T, f32 accumulation.

    grid of `product`            what a program does
    TMA=1  (SMs, 1, 1)           tiles program_id, + SMs, + 2 SMs, ...; loads by tensor descriptors
    TMA=0  (tiles, SPLIT_K, z)   one tile, one part of k; loads by pointers, masked at odd ends

    tiles are walked in groups of GROUP_M rows of tiles, so that neighbours in time share b:

        group 0   0  2  4  6         SPLIT_K > 1: each part is stored as f32 in `partials`; the
                  1  3  5  7         program that arrives last (`arrivals`, one counter a tile)
        group 1   8 10 12 14         adds the parts in their order, writes d and sets the counter
                  9 11 13 15         to zero again: one launch, and the same sum each time

Needs of TMA=1: contiguous arrays, a base and row strides that are multiples of 16 bytes. Beyond the
edges a descriptor reads zeros and writes nothing; between two batches it would not, so a batched
product is stored through masked pointers. Two launches at once must not share `partials`.

Nothing here chooses: the host's side is triton_gemm.py. Importing this needs Triton.
"""
import triton
import triton.language as tl


@triton.jit
def tile_at(index, M, N, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, GROUP_M: tl.constexpr):
    """Row and column of the tile with this number, counted in elements."""
    tiles_m = tl.cdiv(M, BLOCK_M)
    group_tiles = GROUP_M * tl.cdiv(N, BLOCK_N)
    first = index // group_tiles * GROUP_M
    rows = min(tiles_m - first, GROUP_M)
    inside = index % group_tiles
    return (first + inside % rows) * BLOCK_M, inside // rows * BLOCK_N


@triton.jit
def store_tile(d, values, row, column, M, N, d_row, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """The part of the tile that lies inside d."""
    rows = row + tl.arange(0, BLOCK_M)
    columns = column + tl.arange(0, BLOCK_N)
    places = d + rows.to(tl.int64)[:, None] * d_row + columns[None, :]
    is_inside = (rows < M)[:, None] & (columns < N)[None, :]
    tl.store(places, values.to(d.dtype.element_ty), mask=is_inside)


@triton.jit
def multiply_part(a, b, row, column, first, last, M, N, K, a_row, b_row, BLOCK_M: tl.constexpr,
                  BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, IS_EVEN_K: tl.constexpr):
    """The tile's sum over the blocks first .. last - 1 of k. Rows past an end repeat others."""
    rows = (row + tl.arange(0, BLOCK_M)) % M
    columns = (column + tl.arange(0, BLOCK_N)) % N
    depth = tl.arange(0, BLOCK_K)
    a_places = a + rows.to(tl.int64)[:, None] * a_row + (first * BLOCK_K + depth)[None, :]
    b_places = b + columns.to(tl.int64)[None, :] * b_row + (first * BLOCK_K + depth)[:, None]
    total = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for block in range(first, last):
        if IS_EVEN_K:
            a_tile = tl.load(a_places)
            b_tile = tl.load(b_places)
        else:
            left = K - block * BLOCK_K
            a_tile = tl.load(a_places, mask=depth[None, :] < left, other=0.0)
            b_tile = tl.load(b_places, mask=depth[:, None] < left, other=0.0)
        total = tl.dot(a_tile, b_tile, total, input_precision="ieee")
        a_places += BLOCK_K
        b_places += BLOCK_K
    return total


@triton.jit
def add_parts(partials, slot, SPLIT_K: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Sum of the SPLIT_K tiles from `slot` on, in their order, past the L1."""
    inside = tl.arange(0, BLOCK_M)[:, None] * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
    total = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for part in range(SPLIT_K):
        places = partials + (slot + part).to(tl.int64) * (BLOCK_M * BLOCK_N) + inside
        total += tl.load(places, cache_modifier=".cg")
    return total


@triton.jit
def product_by_pointers(a, b, d, partials, arrivals, M, N, K, a_row, b_row, d_row, a_step, b_step,
                        d_step, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
                        BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr, SPLIT_K: tl.constexpr,
                        IS_EVEN_K: tl.constexpr):
    batch = tl.program_id(2)
    row, column = tile_at(tl.program_id(0), M, N, BLOCK_M, BLOCK_N, GROUP_M)
    blocks = tl.cdiv(K, BLOCK_K)
    share = tl.cdiv(blocks, SPLIT_K)
    first = tl.program_id(1) * share
    total = multiply_part(a + batch.to(tl.int64) * a_step, b + batch.to(tl.int64) * b_step, row,
                          column, first, min(first + share, blocks), M, N, K, a_row, b_row,
                          BLOCK_M, BLOCK_N, BLOCK_K, IS_EVEN_K)
    d += batch.to(tl.int64) * d_step
    if SPLIT_K == 1:
        store_tile(d, total, row, column, M, N, d_row, BLOCK_M, BLOCK_N)
    else:
        tile = batch * tl.num_programs(0) + tl.program_id(0)
        slot = tile * SPLIT_K
        inside = tl.arange(0, BLOCK_M)[:, None] * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
        mine = (slot + tl.program_id(1)).to(tl.int64) * (BLOCK_M * BLOCK_N)
        tl.store(partials + mine + inside, total)
        tl.debug_barrier()  # all threads' stores come before the one thread's atomic
        arrived = tl.atomic_add(arrivals + tile, 1, sem="acq_rel", scope="gpu")
        if arrived == SPLIT_K - 1:
            total = add_parts(partials, slot, SPLIT_K, BLOCK_M, BLOCK_N)
            store_tile(d, total, row, column, M, N, d_row, BLOCK_M, BLOCK_N)
            tl.store(arrivals + tile, 0)


@triton.jit
def product_by_descriptors(a, b, d, M, N, K, batches, a_row, b_row, d_row, d_step,
                           BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
                           GROUP_M: tl.constexpr, STORES: tl.constexpr,
                           IS_BATCHED: tl.constexpr):
    a_rows = tl.make_tensor_descriptor(a, shape=[batches * M, K], strides=[a_row, 1],
                                       block_shape=[BLOCK_M, BLOCK_K])
    b_rows = tl.make_tensor_descriptor(b, shape=[batches * N, K], strides=[b_row, 1],
                                       block_shape=[BLOCK_N, BLOCK_K])
    if not IS_BATCHED:
        d_rows = tl.make_tensor_descriptor(d, shape=[M, N], strides=[d_row, 1],
                                           block_shape=[BLOCK_M, BLOCK_N // STORES])
    tiles = tl.cdiv(M, BLOCK_M) * tl.cdiv(N, BLOCK_N)
    for index in tl.range(tl.program_id(0), tiles * batches, tl.num_programs(0), flatten=True):
        batch = index // tiles
        row, column = tile_at(index % tiles, M, N, BLOCK_M, BLOCK_N, GROUP_M)
        total = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
        for block in range(tl.cdiv(K, BLOCK_K)):
            a_tile = a_rows.load([batch * M + row, block * BLOCK_K])
            b_tile = b_rows.load([batch * N + column, block * BLOCK_K])
            total = tl.dot(a_tile, b_tile.T, total)
        if IS_BATCHED:
            store_tile(d + batch.to(tl.int64) * d_step, total, row, column, M, N, d_row, BLOCK_M,
                       BLOCK_N)
        elif STORES == 1:
            d_rows.store([row, column], total.to(d.dtype.element_ty))
        else:
            halves = total.reshape(BLOCK_M, 2, BLOCK_N // 2).permute(0, 2, 1)
            left, right = halves.split()
            d_rows.store([row, column], left.to(d.dtype.element_ty))
            d_rows.store([row, column + BLOCK_N // 2], right.to(d.dtype.element_ty))


@triton.jit
def product(a, b, d, partials, arrivals, M, N, K, batches, a_row, b_row, d_row, a_step, b_step,
            d_step, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
            GROUP_M: tl.constexpr, SPLIT_K: tl.constexpr, TMA: tl.constexpr,
            STORES: tl.constexpr, IS_BATCHED: tl.constexpr, IS_EVEN_K: tl.constexpr):
    """Rows of a, b, d are a_row, b_row, d_row elements apart, batches a_step, b_step, d_step."""
    if TMA:
        product_by_descriptors(a, b, d, M, N, K, batches, a_row, b_row, d_row, d_step, BLOCK_M,
                               BLOCK_N, BLOCK_K, GROUP_M, STORES, IS_BATCHED)
    else:
        product_by_pointers(a, b, d, partials, arrivals, M, N, K, a_row, b_row, d_row, a_step,
                            b_step, d_step, BLOCK_M, BLOCK_N, BLOCK_K, GROUP_M, SPLIT_K, IS_EVEN_K)
