"""The gated delta rule, a token at a time: what chunked kernels have to come to.

    S = E S      x = b (value - S^T key)      S = S + key x^T      o = scale S^T query

for each token of each sequence and each value head, S [k, v]. Sequences are sorted by length, so
that token i of all that have one is a single step over the first so many states. NumPy arrays or
torch tensors, in the precision of what is given; `xp` is the module that they are of.
"""
from __future__ import annotations

from typing import Any, NamedTuple, Sequence

EPSILON = 1e-6  # of the squares' sum, inside the root of a norm


class Tokens(NamedTuple):
    """What the recurrence takes: a row a token [t, heads of v, ...]."""

    q: Any  # normalised, [t, hv, k]
    k: Any
    v: Any  # [t, hv, v]
    decay: Any  # factors, [t, hv, k or 1]
    b: Any  # [t, hv]


def normalised(xp: Any, rows: Any) -> Any:
    """Rows of q or k over their norms."""
    return rows / xp.sqrt((rows * rows).sum(-1)[..., None] + EPSILON)


def spread(rows: Any, heads: int) -> Any:
    """[t, h, k] as [t, heads, k]: value head i reads head i / (heads / h)."""
    each = heads // rows.shape[1]
    return rows if each == 1 else rows[:, [head // each for head in range(heads)]]


def decays(xp: Any, gate: str, x: Any, a_log: Any, lower_bound: float) -> Any:
    """Factors of the state, of the gate's input x [t, hv, k or 1] with its bias added."""
    if gate == "none":
        return xp.exp(x)
    rate = xp.exp(a_log)[:, None]
    if gate == "softplus":
        return xp.exp(-rate * xp.log1p(xp.exp(x)))
    return xp.exp(lower_bound / (1 + xp.exp(-rate * x)))


def rows_at(places: list[int]) -> Any:
    """An index of these rows; a slice where they are evenly spaced, which copies nothing."""
    gap = places[1] - places[0] if len(places) > 1 else 1
    if gap > 0 and places == list(range(places[0], places[-1] + 1, gap)):
        return slice(places[0], places[-1] + 1, gap)
    return places


def run(tokens: Tokens, starts: Sequence[int], lengths: Sequence[int], state: Any, scale: float,
        o: Any) -> None:
    """Writes o [t, hv, v] unless it is None, and leaves in `state` [sequences, hv, k, v] the states
    after.

    Sequence i has lengths[i] tokens from starts[i]; lengths do not increase.
    """
    for step in range(lengths[0]):
        active = sum(length > step for length in lengths)
        at = rows_at([start + step for start in starts[:active]])
        q, k, v, decay, b = (rows[at] for rows in tokens)
        now = state[:active]
        now *= decay[..., None]
        x = (v[:, :, None, :] - k[:, :, None, :] @ now) * b[:, :, None, None]
        now += k[..., None] * x
        if o is not None:
            o[at] = (q[:, :, None, :] @ now)[:, :, 0] * scale


def run_long(xp: Any, tokens: Tokens, state: Any, scale: float, o: Any, parts: int) -> None:
    """run() of one sequence, its parts next to each other, for a device that has few heads to work
    on: the same sums in another order, which f64 does not mind.

    What the tokens of a part make of a state S is A S + B: columns that begin as the identity and
    see values of 0 become A, those that begin as 0 become B. So, once over all parts at a time for
    A and B, from part to part for the states that they begin with, and once more for o.
    """
    length, heads, wide = tokens.v.shape
    size = -(-length // parts)
    starts = list(range(0, length, size))
    lengths = [min(size, length - start) for start in starts]
    both = xp.zeros_like(state)[[0] * len(starts)]
    channels = both.shape[2]
    both = xp.concatenate([both, xp.zeros_like(both @ both.swapaxes(2, 3))], -1)
    for channel in range(channels):
        both[:, :, channel, wide + channel] = 1
    nothing = xp.zeros_like(tokens.k)
    run(tokens._replace(v=xp.concatenate([tokens.v, nothing], -1)), starts, lengths, both, scale,
        None)
    begun = both[..., :wide] * 0
    begun[0] = state[0]
    for part in range(1, len(starts)):
        begun[part] = both[part - 1, ..., wide:] @ begun[part - 1] + both[part - 1, ..., :wide]
    run(tokens, starts, lengths, begun, scale, o)
    state[0] = begun[-1]
