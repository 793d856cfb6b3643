"""The device side of the Triton peers of moe, routing and grouped_gemm, from published algorithms.

    choose     a token a program: the largest logit, topk times; weights are their softmax
    count      an expert a program: its slots (t topk + j), counted
    lay        one program: where each expert's blocks begin; blocks' experts; rows in use
    fill       an expert a program: its slots in their order, then padding
    sort_few   one program: all three of these, for few slots
    experts    a tile a program: rows of a gathered by sorted slot, times an expert's matrix;
               weighed where it is the second product
    silu       silu(gate) up of rows [gate, up]
    add        the sum over a token's slots
    grouped    a tile a program: rows of expert e from offsets[e] on; tiles counted on the device

All sums are in f32. Nothing here chooses: the host's sides are triton_moe.py, triton_grouped.py and
triton_routing.py. Importing this needs Triton.
"""
import triton
import triton.language as tl


@triton.jit(do_not_specialize=["E"])
def choose(logits, weights, ids, E, TOPK: tl.constexpr, BLOCK_E: tl.constexpr,
           BLOCK_K: tl.constexpr, RENORMALIZE: tl.constexpr):
    """Largest first, ties to the lower expert."""
    token = tl.program_id(0)
    experts, places = tl.arange(0, BLOCK_E), tl.arange(0, BLOCK_K)
    x = tl.load(logits + token * E + experts, mask=experts < E, other=float("-inf"))
    x = x.to(tl.float32)
    top = tl.max(x, 0)
    total = tl.sum(tl.exp(x - top), 0)
    found = tl.full((BLOCK_K,), float("-inf"), tl.float32)
    best = tl.zeros((BLOCK_K,), tl.int32)
    for place in tl.static_range(TOPK):
        value, at = tl.max(x, 0, return_indices=True, return_indices_tie_break_left=True)
        found = tl.where(places == place, value, found)
        best = tl.where(places == place, at.to(tl.int32), best)
        x = tl.where(experts == at, float("-inf"), x)
    w = tl.exp(found - top)
    w = w / (tl.sum(w, 0) if RENORMALIZE else total)
    is_inside = places < TOPK
    tl.store(weights + token * TOPK + places, w, mask=is_inside)
    tl.store(ids + token * TOPK + places, best, mask=is_inside)


@triton.jit(do_not_specialize=["slots"])
def count(ids, counts, slots, BLOCK: tl.constexpr):
    """counts[expert]."""
    expert = tl.program_id(0)
    found = tl.zeros((BLOCK,), tl.int32)
    for first in range(0, slots, BLOCK):
        at = first + tl.arange(0, BLOCK)
        found += (tl.load(ids + at, mask=at < slots, other=-1) == expert).to(tl.int32)
    tl.store(counts + expert, tl.sum(found, 0))


@triton.jit(do_not_specialize=["E", "blocks"])
def lay(counts, starts, blocks_of, used, E, blocks, BLOCK_E: tl.constexpr, BLOCK_M: tl.constexpr,
        BLOCK: tl.constexpr):
    """starts[expert] in rows; the expert of each of `blocks` blocks, -1 of those not in use."""
    experts = tl.arange(0, BLOCK_E)
    n = tl.load(counts + experts, mask=experts < E, other=0)
    padded = tl.cdiv(n, BLOCK_M)
    ends = tl.cumsum(padded, 0)
    total = tl.sum(padded, 0)
    tl.store(starts + experts, (ends - padded) * BLOCK_M, mask=experts < E)
    tl.store(used, total * BLOCK_M)
    for first in range(0, blocks, BLOCK):
        at = first + tl.arange(0, BLOCK)
        owner = tl.sum((ends[None, :] <= at[:, None]).to(tl.int32), 1)
        tl.store(blocks_of + at, tl.where(at < total, owner, -1), mask=at < blocks)


@triton.jit(do_not_specialize=["slots"])
def fill(ids, starts, counts, sorted_slots, slots, BLOCK_M: tl.constexpr, BLOCK: tl.constexpr):
    """The slots of an expert, then `slots` up to a whole block."""
    expert = tl.program_id(0)
    start, n = tl.load(starts + expert), tl.load(counts + expert)
    done = 0
    for first in range(0, slots, BLOCK):
        at = first + tl.arange(0, BLOCK)
        is_ours = tl.load(ids + at, mask=at < slots, other=-1) == expert
        place = tl.cumsum(is_ours.to(tl.int32), 0) - 1 + done
        tl.store(sorted_slots + start + place, at, mask=is_ours)
        done += tl.sum(is_ours.to(tl.int32), 0)
    rest = tl.arange(0, BLOCK_M)
    tl.store(sorted_slots + start + n + rest, slots, mask=rest < tl.cdiv(n, BLOCK_M) * BLOCK_M - n)


@triton.jit(do_not_specialize=["E", "slots", "blocks"])
def sort_few(ids, sorted_slots, blocks_of, used, E, slots, blocks, BLOCK_E: tl.constexpr,
             BLOCK_S: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_M: tl.constexpr):
    """What count, lay and fill leave; slots and blocks are at most BLOCK_S and BLOCK_B."""
    each, at = tl.arange(0, BLOCK_E), tl.arange(0, BLOCK_S)
    id = tl.load(ids + at, mask=at < slots, other=-1)
    is_its = (id[None, :] == each[:, None]).to(tl.int32)
    rank = tl.cumsum(is_its, 1) - 1
    padded = tl.cdiv(tl.sum(is_its, 1), BLOCK_M)
    ends = tl.cumsum(padded, 0)
    total = tl.sum(padded, 0)
    place = tl.sum(is_its * (rank + ((ends - padded) * BLOCK_M)[:, None]), 0)
    block = tl.arange(0, BLOCK_B)
    owner = tl.sum((ends[:, None] <= block[None, :]).to(tl.int32), 0)
    tl.store(used, total * BLOCK_M)
    tl.store(blocks_of + block, tl.where(block < total, owner, -1), mask=block < blocks)
    rows = block[:, None] * BLOCK_M + tl.arange(0, BLOCK_M)[None, :]
    tl.store(sorted_slots + rows, slots, mask=block[:, None] < blocks)
    tl.debug_barrier()
    tl.store(sorted_slots + place, at, mask=at < slots)


@triton.jit(do_not_specialize=["slots", "tiles_m"])
def experts(a, b, d, sorted_slots, blocks_of, used, weights, slots, tiles_m, N, K,
            SHARE: tl.constexpr, WEIGHED: tl.constexpr, BLOCK_M: tl.constexpr,
            BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr):
    """d[slot] = a[slot / SHARE] b[expert]^T, times weights[slot]. BLOCK_K divides K."""
    index = tl.program_id(0)
    group_tiles = GROUP_M * tl.cdiv(N, BLOCK_N)
    first = index // group_tiles * GROUP_M
    high = min(tiles_m - first, GROUP_M)
    tile_m = first + index % group_tiles % high
    tile_n = index % group_tiles // high
    if tile_m * BLOCK_M >= tl.load(used):
        return
    slot = tl.load(sorted_slots + tile_m * BLOCK_M + tl.arange(0, BLOCK_M))
    expert = tl.load(blocks_of + tile_m).to(tl.int64)
    is_row = slot < slots
    columns = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    depth = tl.arange(0, BLOCK_K)
    a_places = a + (slot // SHARE).to(tl.int64)[:, None] * K + depth[None, :]
    b_places = b + expert * N * K + (columns % N).to(tl.int64)[None, :] * K + depth[:, None]
    total = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for _ in range(0, K // BLOCK_K):
        a_tile = tl.load(a_places, mask=is_row[:, None], other=0.0)
        total = tl.dot(a_tile, tl.load(b_places), total)
        a_places += BLOCK_K
        b_places += BLOCK_K
    if WEIGHED:
        total *= tl.load(weights + slot, mask=is_row, other=0.0)[:, None]
    d_places = d + slot.to(tl.int64)[:, None] * N + columns[None, :]
    tl.store(d_places, total.to(d.dtype.element_ty), mask=is_row[:, None] & (columns < N)[None, :])


@triton.jit
def silu(x, d, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """d[row] = silu(x[row, :WIDTH]) x[row, WIDTH:]."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    is_inside = at < WIDTH
    gate = tl.load(x + row * 2 * WIDTH + at, mask=is_inside, other=0.0).to(tl.float32)
    up = tl.load(x + row * 2 * WIDTH + WIDTH + at, mask=is_inside, other=0.0).to(tl.float32)
    h = gate / (1 + tl.exp(-gate)) * up
    tl.store(d + row * WIDTH + at, h.to(d.dtype.element_ty), mask=is_inside)


@triton.jit
def add(x, d, TOPK: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """d[token] = sum over j of x[token TOPK + j]."""
    token = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    is_inside = at < WIDTH
    total = tl.zeros((BLOCK,), tl.float32)
    for j in tl.static_range(TOPK):
        row = x + (token * TOPK + j) * WIDTH
        total += tl.load(row + at, mask=is_inside, other=0.0).to(tl.float32)
    tl.store(d + token * WIDTH + at, total.to(d.dtype.element_ty), mask=is_inside)


@triton.jit(do_not_specialize=["E"])
def grouped(a, b, d, offsets, E, N, K, BLOCK_E: tl.constexpr, BLOCK_M: tl.constexpr,
            BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr):
    """d[r] = a[r] b[e]^T for rows offsets[e] to offsets[e + 1] - 1. BLOCK_K divides K. Tiles of one
    matrix stand together: those of all rows of an expert for a column of tiles, then the next."""
    index, tiles_n = tl.program_id(0), tl.cdiv(N, BLOCK_N)
    each = tl.arange(0, BLOCK_E)
    begins = tl.load(offsets + each, mask=each < E, other=0)
    ends = tl.load(offsets + 1 + each, mask=each < E, other=0)
    tiles = tl.cdiv(ends - begins, BLOCK_M)
    last = tl.cumsum(tiles, 0)
    expert = tl.sum((last * tiles_n <= index).to(tl.int32), 0)
    if expert >= E:
        return
    is_it = each == expert
    rows_m = tl.sum(tl.where(is_it, tiles, 0), 0)
    inside = index - (tl.sum(tl.where(is_it, last, 0), 0) - rows_m) * tiles_n
    end = tl.sum(tl.where(is_it, ends, 0), 0)
    row = tl.sum(tl.where(is_it, begins, 0), 0) + inside % rows_m * BLOCK_M
    rows = row + tl.arange(0, BLOCK_M)
    columns = inside // rows_m * BLOCK_N + tl.arange(0, BLOCK_N)
    depth = tl.arange(0, BLOCK_K)
    is_row = rows < end
    a_places = a + tl.where(is_row, rows, row).to(tl.int64)[:, None] * K + depth[None, :]
    b_places = (b + expert.to(tl.int64) * N * K + (columns % N).to(tl.int64)[None, :] * K
                + depth[:, None])
    total = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for _ in range(0, K // BLOCK_K):
        total = tl.dot(tl.load(a_places), tl.load(b_places), total)
        a_places += BLOCK_K
        b_places += BLOCK_K
    d_places = d + rows.to(tl.int64)[:, None] * N + columns[None, :]
    tl.store(d_places, total.to(d.dtype.element_ty), mask=is_row[:, None] & (columns < N)[None, :])
