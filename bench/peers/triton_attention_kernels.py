"""The device side of the Triton peers of attention: flash attention over rows that lie together or
in pages.

    prefill      a program a tile of BLOCK_M queries of one head of one sequence; it walks over the
                 tiles of keys that the queries see, those of a prefix in pages first
    decode       a program a part of the keys of one sequence and one head of k and v, all queries
                 of that head's group at once; SPLITS parts leave f32 outputs and logarithms
    latent       decode for MLA: one latent head, BLOCK_H of the query heads a program, rows of
                 512 + 64 columns, of which the first 512 are values too
    combine      the parts of decode and latent made one

The running maximum is of scores times scale log2(e), which the host has multiplied; exponentials
are of base 2. A width that is no power of two is cut in two, D + D2. Keys that a tile has too many
are read as zeros and not seen; a query that sees nothing gives zeros.

Written from the published algorithms (FlashAttention-2, split-KV decode), with nothing in it that
Triton's own compiler does not choose: pointers, no descriptors. Nothing here chooses: the host's
sides are triton_attention.py, triton_decode.py and triton_mla.py. Importing this needs Triton.
"""
import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def read(base, rows, columns, is_there, IS_MASKED: tl.constexpr):
    """A tile of rows, given by their offsets; zeros for those that are not there."""
    places = base + rows[:, None] + columns[None, :]
    if IS_MASKED:
        return tl.load(places, mask=is_there[:, None], other=0.0)
    return tl.load(places)


@triton.jit
def absorb(o, total, top, scores, v):
    """The state after a tile of scores (in units of log2) and its values."""
    reached = tl.maximum(top, tl.max(scores, 1))
    base = tl.where(reached == float("-inf"), 0.0, reached)
    p = tl.exp2(scores - base[:, None])
    factor = tl.exp2(top - base)
    total = total * factor + tl.sum(p, 1)
    return tl.dot(p.to(v.dtype), v, o * factor[:, None]), total, reached


@triton.jit
def scores_of(q, q2, k, k2, k_rows, is_there, scale, D: tl.constexpr, D2: tl.constexpr,
              IS_MASKED: tl.constexpr):
    """scale q k^T of a tile of keys, whose row offsets these are, in f32."""
    tile = read(k, k_rows, tl.arange(0, D), is_there, IS_MASKED).to(q.dtype)
    scores = tl.dot(q, tl.trans(tile))
    if D2:
        tile = read(k2, k_rows, tl.arange(0, D2), is_there, IS_MASKED).to(q.dtype)
        scores = tl.dot(q2, tl.trans(tile), scores)
    return scores * scale


@triton.jit
def paged_rows(table, tokens, is_there, PAGE: tl.constexpr):
    """Rows of the cache that hold these tokens."""
    page = tl.load(table + tokens // PAGE, mask=is_there, other=0)
    return page.to(tl.int64) * PAGE + tokens % PAGE


# ---- Prefill ----------------------------------------------------------------------------------


@triton.jit
def prefill(q, k, v, o, sinks, borders, k_cache, v_cache, table, prefixes, most, pages, window,
            scale, HQ: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr, D2: tl.constexpr,
            DV: tl.constexpr, CAUSAL: tl.constexpr, WINDOW: tl.constexpr, SINKS: tl.constexpr,
            PACKED: tl.constexpr, PAGE: tl.constexpr, BLOCK_M: tl.constexpr,
            BLOCK_N: tl.constexpr):
    """Grid: (tiles of the longest sequence, HQ, sequences); with CAUSAL the last tile first."""
    HKV: tl.constexpr = HQ // GROUP
    WIDTH: tl.constexpr = D + D2
    tile = tl.program_id(0)
    head = tl.program_id(1)
    sequence = tl.program_id(2)
    if CAUSAL:
        tile = tl.num_programs(0) - 1 - tile
    begin = sequence * most
    count = most
    if PACKED:
        begin = tl.load(borders + sequence)
        count = tl.load(borders + sequence + 1) - begin
    first = tile * BLOCK_M
    if first >= count:
        return
    rows = first + tl.arange(0, BLOCK_M)
    is_row = rows < count
    q_rows = (begin + rows).to(tl.int64) * (HQ * WIDTH) + head * WIDTH
    kv_head = head // GROUP
    tile_q = read(q, q_rows, tl.arange(0, D), is_row, True)
    tile_q2 = tile_q
    if D2:
        tile_q2 = read(q + D, q_rows, tl.arange(0, D2), is_row, True)

    top = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    state = tl.zeros((BLOCK_M, DV), tl.float32)

    if PAGE:
        prefix = tl.load(prefixes + sequence)
        pages_of = table + sequence.to(tl.int64) * pages
        whole = prefix // BLOCK_N * BLOCK_N
        for start in range(0, whole, BLOCK_N):
            tokens = start + tl.arange(0, BLOCK_N)
            places = paged_rows(pages_of, tokens, tokens < prefix, PAGE) * HKV + kv_head
            scores = scores_of(tile_q, tile_q2, k_cache, k_cache + D, places * WIDTH, is_row,
                               scale, D, D2, False)
            values = read(v_cache, places * DV, tl.arange(0, DV), is_row, False)
            state, total, top = absorb(state, total, top, scores, values)
        if whole < prefix:
            tokens = whole + tl.arange(0, BLOCK_N)
            is_there = tokens < prefix
            places = paged_rows(pages_of, tokens, is_there, PAGE) * HKV + kv_head
            scores = scores_of(tile_q, tile_q2, k_cache, k_cache + D, places * WIDTH, is_there,
                               scale, D, D2, True)
            scores = tl.where(is_there[None, :], scores, float("-inf"))
            values = read(v_cache, places * DV, tl.arange(0, DV), is_there, True)
            state, total, top = absorb(state, total, top, scores, values)

    low = 0
    high = count
    if WINDOW:
        low = tl.maximum(first - window + 1, 0) // BLOCK_N * BLOCK_N
    whole = count // BLOCK_N * BLOCK_N
    if CAUSAL:
        high = tl.minimum(count, first + BLOCK_M)
        whole = first // BLOCK_N * BLOCK_N
    if WINDOW:
        whole = low
    places = (begin + tl.arange(0, BLOCK_N)).to(tl.int64) * HKV + kv_head
    for start in range(low, whole, BLOCK_N):
        at = places + start * HKV
        scores = scores_of(tile_q, tile_q2, k, k + D, at * WIDTH, is_row, scale, D, D2, False)
        values = read(v, at * DV, tl.arange(0, DV), is_row, False)
        state, total, top = absorb(state, total, top, scores, values)
    for start in range(whole, high, BLOCK_N):
        keys = start + tl.arange(0, BLOCK_N)
        at = places + start * HKV
        scores = scores_of(tile_q, tile_q2, k, k + D, at * WIDTH, keys < count, scale, D, D2,
                           True)
        seen = (keys < count)[None, :]
        if CAUSAL:
            seen = seen & (keys[None, :] <= rows[:, None])
        if WINDOW:
            seen = seen & (rows[:, None] - keys[None, :] < window)
            seen = seen & (keys[None, :] - rows[:, None] < window)
        scores = tl.where(seen, scores, float("-inf"))
        values = read(v, at * DV, tl.arange(0, DV), keys < count, True)
        state, total, top = absorb(state, total, top, scores, values)

    if SINKS:
        sink = tl.load(sinks + head).to(tl.float32) * LOG2E
        reached = tl.maximum(top, sink)
        factor = tl.exp2(top - reached)
        total = total * factor + tl.exp2(sink - reached)
        state = state * factor[:, None]
    state = state / tl.where(total > 0, total, 1.0)[:, None]
    o_rows = (begin + rows).to(tl.int64) * (HQ * DV) + head * DV
    tl.store(o + o_rows[:, None] + tl.arange(0, DV)[None, :], state.to(o.dtype.element_ty),
             mask=is_row[:, None])


# ---- Decode -----------------------------------------------------------------------------------


@triton.jit
def part_of(count, part, SPLITS: tl.constexpr, BLOCK_N: tl.constexpr):
    """From and to: the keys of part `part` of so many."""
    each = tl.cdiv(tl.cdiv(count, SPLITS), BLOCK_N) * BLOCK_N
    begin = tl.minimum(part * each, count)
    return begin, tl.minimum(begin + each, count)


@triton.jit
def leave(o, logs, state, total, top, rows, part, is_row, DV: tl.constexpr, SPLITS: tl.constexpr):
    """A part's output, normalised, and the base-2 logarithm of its denominator. `rows` counts rows
    of the output; `o` is the output itself where there is one part."""
    state = state / tl.where(total > 0, total, 1.0)[:, None]
    places = rows.to(tl.int64) * SPLITS + part
    tl.store(o + places[:, None] * DV + tl.arange(0, DV)[None, :], state.to(o.dtype.element_ty),
             mask=is_row[:, None])
    if SPLITS > 1:
        tl.store(logs + places, tl.where(total > 0, top + tl.log2(total), float("-inf")),
                 mask=is_row)


@triton.jit
def decode(q, k, v, o, parts, logs, table, lengths, pages, sequences, scale, HQ: tl.constexpr,
           GROUP: tl.constexpr, D: tl.constexpr, PAGE: tl.constexpr, BLOCK_H: tl.constexpr,
           BLOCK_N: tl.constexpr, SPLITS: tl.constexpr):
    """Grid: (SPLITS, HQ / GROUP, sequences); `sequences` is what the tuner knows a shape by."""
    HKV: tl.constexpr = HQ // GROUP
    part = tl.program_id(0)
    kv_head = tl.program_id(1)
    sequence = tl.program_id(2)
    heads = tl.arange(0, BLOCK_H)
    is_head = heads < GROUP
    rows = sequence * HQ + kv_head * GROUP + heads
    columns = tl.arange(0, D)
    tile_q = read(q, rows.to(tl.int64) * D, columns, is_head, True)
    begin, end = part_of(tl.load(lengths + sequence), part, SPLITS, BLOCK_N)
    pages_of = table + sequence.to(tl.int64) * pages

    top = tl.full((BLOCK_H,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_H,), tl.float32)
    state = tl.zeros((BLOCK_H, D), tl.float32)
    for start in range(begin, end, BLOCK_N):
        tokens = start + tl.arange(0, BLOCK_N)
        is_there = tokens < end
        places = (paged_rows(pages_of, tokens, is_there, PAGE) * HKV + kv_head) * D
        scores = scores_of(tile_q, tile_q, k, k, places, is_there, scale, D, 0, True)
        scores = tl.where(is_there[None, :], scores, float("-inf"))
        values = read(v, places, columns, is_there, True).to(tile_q.dtype)
        state, total, top = absorb(state, total, top, scores, values)
    if SPLITS == 1:
        leave(o, logs, state, total, top, rows, part, is_head, D, SPLITS)
    else:
        leave(parts, logs, state, total, top, rows, part, is_head, D, SPLITS)


@triton.jit
def latent(q, c, rope, factors, o, parts, logs, table, lengths, pages, sequences, scale,
           HQ: tl.constexpr, SQ: tl.constexpr, ROW: tl.constexpr, ROPE_ROW: tl.constexpr,
           FACTOR_ROW: tl.constexpr, PAGE: tl.constexpr, BLOCK_H: tl.constexpr,
           BLOCK_N: tl.constexpr, SPLITS: tl.constexpr):
    """Grid: (SPLITS, blocks of heads, sequences times SQ). The latent columns at `c`, rows of ROW
    elements, the rotary ones at `rope`, of ROPE_ROW; with FACTOR_ROW the latent ones are e4m3, to
    be multiplied by the factor of their 128."""
    part = tl.program_id(0)
    query = tl.program_id(2)
    sequence = query // SQ
    heads = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    is_head = heads < HQ
    rows = query * HQ + heads
    wide = tl.arange(0, 512)
    narrow = tl.arange(0, 64)
    q_rows = rows.to(tl.int64) * 576
    tile_q = read(q, q_rows, wide, is_head, True)
    tile_q2 = read(q + 512, q_rows, narrow, is_head, True)
    count = tl.load(lengths + sequence) - SQ + 1 + query % SQ
    begin, end = part_of(count, part, SPLITS, BLOCK_N)
    pages_of = table + sequence.to(tl.int64) * pages

    top = tl.full((BLOCK_H,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_H,), tl.float32)
    state = tl.zeros((BLOCK_H, 512), tl.float32)
    for start in range(begin, end, BLOCK_N):
        tokens = start + tl.arange(0, BLOCK_N)
        is_there = tokens < end
        places = paged_rows(pages_of, tokens, is_there, PAGE)
        values = read(c, places * ROW, wide, is_there, True)
        if FACTOR_ROW:
            of = read(factors, places * FACTOR_ROW, wide // 128, is_there, True)
            values = (values.to(tl.float32) * of).to(tile_q.dtype)
        turned = read(rope, places * ROPE_ROW, narrow, is_there, True)
        scores = tl.dot(tile_q, tl.trans(values))
        scores = tl.dot(tile_q2, tl.trans(turned), scores) * scale
        scores = tl.where(is_there[None, :], scores, float("-inf"))
        state, total, top = absorb(state, total, top, scores, values)
    if SPLITS == 1:
        leave(o, logs, state, total, top, rows, part, is_head, 512, SPLITS)
    else:
        leave(parts, logs, state, total, top, rows, part, is_head, 512, SPLITS)


@triton.jit
def combine(parts, logs, o, DV: tl.constexpr, SPLITS: tl.constexpr, BLOCK_S: tl.constexpr):
    """Grid: rows of the output."""
    row = tl.program_id(0).to(tl.int64)
    part = tl.arange(0, BLOCK_S)
    is_part = part < SPLITS
    log = tl.load(logs + row * SPLITS + part, mask=is_part, other=float("-inf"))
    reached = tl.max(log, 0)
    weights = tl.exp2(log - tl.where(reached == float("-inf"), 0.0, reached))
    columns = tl.arange(0, DV)
    values = tl.load(parts + (row * SPLITS + part)[:, None] * DV + columns[None, :],
                     mask=is_part[:, None], other=0.0)
    total = tl.sum(weights, 0)
    mixed = tl.sum(values * weights[:, None], 0) / tl.where(total > 0, total, 1.0)
    tl.store(o + row * DV + columns, mixed.to(o.dtype.element_ty))
