"""Attention in float64, and how far outputs are off it: the reference of attention, extend, decode
and mla.

    o[i, h] = sum_j p[i, j] v[j, h / group],  p = softmax(scale q[i, h] k[j, h / group])

over the keys that query i sees: with causal those up to i + sk - sq, with a window the last so many
of them; exp(sink) joins the denominator. NumPy or torch, whichever the arrays are; a block of
queries at a time, and of keys only those that one of the block can see.

Everything is compared where that is cheap (LIMITS); where it is not, all heads of a part of the
sequences or a part of the heads of all, drawn anew for each case, and the rest must be finite.
"""
from __future__ import annotations

import importlib
import math
import random
from dataclasses import dataclass
from typing import Any, Protocol, Sequence

from harness.arrays import Arrays
from harness.contest import ArraySet, Errors
from harness.errors import errors_of, greater

LIMITS = {"cpu": 4e10, "cuda": 2e13}  # flops in float64 that a set's reference may take
SCORES = {"cpu": 1 << 22, "cuda": 1 << 27}  # elements of a block of scores
FEW = 8  # queries of a sequence below which its heads are rows of one group
LOUD = 2  # powers of 2 that uniform queries are louder: 8 to 2000 keys then count, not one, not all


@dataclass
class Rule:
    """What is the same for all sequences of a call."""

    scale: float
    causal: bool = False
    window: int = 0  # 0: all


@dataclass
class Part:
    """One sequence in float64."""

    q: Any  # [sq, hq, d]
    k: Any  # [sk, hkv, d]
    v: Any  # [sk, hkv, dv]
    sinks: Any = None  # [hq]


class Parts(Protocol):
    """An adapter's case, sequence by sequence; `heads` counts those of k and v."""

    count: int  # sequences
    heads: int

    def part(self, index: int, sequence: int, heads: Sequence[int]) -> Part:
        """Of set `index`, these heads of k and v and the queries that read them."""

    def output(self, index: int, sequence: int) -> Any:
        """[sq, hq, dv] of the set's output, as it is."""


def module_of(array: Any) -> Any:
    """torch or NumPy, whose functions take the array."""
    return importlib.import_module("torch" if hasattr(array, "clone") else "numpy")


def loud(array: Any, dtype: str) -> Any:
    """Uniform numbers times 2^LOUD, in place: scores then spread by more than one."""
    if dtype != "bf16" or hasattr(array, "clone"):
        array *= 2 ** LOUD
    else:
        array[(array & 0x7F80) != 0] += LOUD << 7  # bf16 as bits
    return array


# ---- The computation --------------------------------------------------------------------------


def seen_by(first: int, last: int, sq: int, sk: int, rule: Rule) -> tuple[int, int]:
    """The keys that queries first .. last - 1 can see, from and to."""
    past = sk - sq
    end = min(sk, last + past) if rule.causal else sk
    begin = max(0, first + past - rule.window + 1) if rule.window else 0
    return begin, max(begin, end)


def mask_of(xp: Any, like: Any, rows: tuple[int, int], keys: tuple[int, int], past: int,
            rule: Rule) -> Any:
    """[rows, keys]: which are seen."""
    where = {"device": like.device} if hasattr(like, "clone") else {}
    distance = (xp.arange(*rows, **where)[:, None] + past) - xp.arange(*keys, **where)[None, :]
    seen = distance > -(1 << 62)
    if rule.causal:
        seen = seen & (distance >= 0)
    if rule.window:
        seen = seen & (abs(distance) < rule.window)
    return seen


def attend(part: Part, rule: Rule, block: int) -> Any:
    """[sq, hq, dv], dv at most d. block: elements of scores at a time."""
    xp, (sq, hq, _), (sk, _, dv) = module_of(part.q), part.q.shape, part.v.shape
    o = xp.zeros_like(part.q[:, :, :dv])
    k, v = part.k.swapaxes(0, 1).swapaxes(1, 2), part.v.swapaxes(0, 1)
    step = max(1, block // max(1, hq * sk))
    for first in range(0, sq if sk else 0, step):
        last = min(sq, first + step)
        keys = seen_by(first, last, sq, sk, rule)
        if keys[0] == keys[1]:
            continue
        o[first:last] = attend_block(xp, part, (first, last), keys, (k, v), rule)
    return o


def attend_block(xp: Any, part: Part, rows: tuple[int, int], keys: tuple[int, int],
                 kv: tuple[Any, Any], rule: Rule) -> Any:
    """Some queries and the keys that they can see. kv: [hkv, d, sk], [hkv, sk, dv]."""
    count, (hkv, sk) = rows[1] - rows[0], (kv[0].shape[0], kv[0].shape[2])
    q = part.q[rows[0]:rows[1]].reshape(count, hkv, -1, part.q.shape[-1]).swapaxes(0, 1)
    group = q.shape[2]
    scores = rule.scale * (q.reshape(hkv, count * group, -1) @ kv[0][:, :, keys[0]:keys[1]])
    scores = scores.reshape(hkv, count, group, -1)
    if rule.causal or rule.window:
        seen = mask_of(xp, scores, rows, keys, sk - part.q.shape[0], rule)[None, :, None, :]
        scores = xp.where(seen, scores, -math.inf)
    top = xp.amax(scores, -1)
    if part.sinks is not None:
        sinks = part.sinks.reshape(hkv, 1, group)
        top = xp.maximum(top, sinks)
    top = xp.where(top == -math.inf, xp.zeros_like(top), top)
    p = xp.exp(scores - top[..., None])
    total = p.sum(-1)
    if part.sinks is not None:
        total = total + xp.exp(sinks - top)
    total = xp.where(total > 0, total, xp.ones_like(total))
    o = p.reshape(hkv, count * group, -1) @ kv[1][:, keys[0]:keys[1]]
    o = o.reshape(hkv, count, group, -1) / total[..., None]
    return o.swapaxes(0, 1).reshape(count, hkv * group, -1)


# ---- The comparison ---------------------------------------------------------------------------


class Reference:
    """The outputs of a case's sets, computed when first asked for. A Case's `compare`."""

    def __init__(self, parts: Parts, sets: Sequence[ArraySet], rule: Rule, flops: float,
                 arrays: Arrays, dtype: str) -> None:
        self._parts, self._sets, self._rule = parts, sets, rule
        self._arrays, self._dtype = arrays, dtype
        self._kind = "cuda" if getattr(sets[0]["o"], "is_cuda", False) else "cpu"
        self._chosen = choose(parts.count, parts.heads, LIMITS[self._kind] / flops)
        self._known: dict[int, dict[int, Any]] = {}

    def errors(self, index: int, calls: int) -> Errors:
        """The greatest of the sequences compared; inf where another output is no number."""
        if index not in self._known:
            self._known[index] = {sequence: self._wanted(index, sequence)
                                  for sequence in self._chosen}
        if not self._is_whole() and not self._is_finite(index):
            return Errors(math.inf, math.inf)
        worst = Errors(0.0, 0.0)
        for sequence, heads in self._chosen.items():
            output = self._arrays.floats(self._parts.output(index, sequence), self._dtype, True)
            group = output.shape[1] // self._parts.heads
            rows = [head * group + each for head in heads for each in range(group)]
            found = errors_of(grouped(output[:, rows]), grouped(self._known[index][sequence]))
            worst = greater(worst, found)
        return worst

    def _is_whole(self) -> bool:
        return len(self._chosen) == self._parts.count and all(
            len(heads) == self._parts.heads for heads in self._chosen.values())

    def _is_finite(self, index: int) -> bool:
        o = self._arrays.floats(self._sets[index]["o"], self._dtype)
        return bool(module_of(o).isfinite(o).all())

    def _wanted(self, index: int, sequence: int) -> Any:
        part = self._parts.part(index, sequence, self._chosen[sequence])
        return attend(part, self._rule, SCORES[self._kind])


def choose(sequences: int, heads: int, share: float) -> dict[int, list[int]]:
    """Sequence -> heads of k and v: about that share of all, every sequence if it can be; of those
    left out nobody knows beforehand."""
    if share >= 1:
        return {sequence: list(range(heads)) for sequence in range(sequences)}
    kept = max(1, int(heads * share))
    some = max(1, min(sequences, int(sequences * heads * share / kept)))
    return {sequence: sorted(random.sample(range(heads), kept))
            for sequence in sorted(random.sample(range(sequences), some))}


def grouped(o: Any) -> Any:
    """[groups, rows, dv] of [sq, hq, dv]: a head's queries, or all of a sequence that has few."""
    return o.swapaxes(0, 1) if o.shape[0] >= FEW else o.reshape(1, -1, o.shape[-1])
