"""NumPy as a peer of attention, extend, decode and mla: as one would write it, in f32.

A head and a block of queries at a time: two products by NumPy's BLAS, on its own threads, and a
softmax between them; keys that a block cannot see are left out. Converting bf16, and gathering
pages, is in its time.
"""
from __future__ import annotations

import math
from typing import Any, Callable, Iterator

from harness.arrays import host_floats
from harness.contest import ArraySet, Case, Contestant, Unavailable
from peers import attention, decode, extend, mla
from peers.attend import Rule, mask_of, seen_by
from peers.numpy_delta_rule import bits_of
from peers.pages import tokens

BLOCK = 256  # queries at a time
Sequences = Iterator[tuple[Any, Any, Any, Any, Any]]  # q [sq, hq, d], k, v, o as they lie, sinks


def of_attention(arrays: ArraySet, params: dict[str, Any]) -> Sequences:
    """Parts of what lies together."""
    size = attention.sizes_of(params)
    q, k, v, o = (arrays[x].reshape(-1, *arrays[x].shape[2:]) for x in ("q", "k", "v", "o"))
    sinks = arrays["sinks"] if "sinks" in arrays.inputs else None
    for begin, end in zip(size.borders, size.borders[1:]):
        yield q[begin:end], k[begin:end], v[begin:end], o[begin:end], sinks


def of_extend(arrays: ArraySet, params: dict[str, Any]) -> Sequences:
    """Prefix and new tokens brought together."""
    size = extend.sizes_of(params)
    for sequence in range(size.b):
        own = slice(sequence * size.t, (sequence + 1) * size.t)
        k, v = (extend.keys_of(arrays, size, sequence, name) for name in "kv")
        yield arrays["q"][own], k, v, arrays["o"][own], None


def of_decode(arrays: ArraySet, params: dict[str, Any]) -> Sequences:
    """Pages brought together."""
    size = decode.sizes_of(params)
    for sequence in range(len(size.lengths)):
        k, v = (decode.keys_of(arrays, size, sequence, name) for name in "kv")
        yield arrays["q"][sequence][None], k, v, arrays["o"][sequence][None], None


def of_mla(arrays: ArraySet, params: dict[str, Any]) -> Sequences:
    """Latent rows as the keys and values of one head."""
    size = mla.sizes_of(params)
    for sequence in range(size.b):
        rows = tokens(arrays["kv_cache"], arrays["page_table"][sequence], size.kv)[:, None]
        yield (arrays["q"][sequence], rows, rows[..., :mla.VALUES], arrays["o"][sequence], None)


def attend_head(q: Any, k: Any, v: Any, rule: Rule, first: int, sq: int, group: int,
                sink: Any) -> Any:
    """f32: q [queries group, d] from query `first` of sq, k [sk, d], v [sk, dv]; sink: of each row,
    or None."""
    import numpy

    last = first + q.shape[0] // group
    begin, end = seen_by(first, last, sq, k.shape[0], rule)
    if begin == end:
        return numpy.zeros((q.shape[0], v.shape[1]), "f4")
    scores = q @ k[begin:end].T
    if rule.causal or rule.window:
        seen = mask_of(numpy, scores, (first, last), (begin, end), k.shape[0] - sq, rule)
        scores[~numpy.repeat(seen, group, 0)] = -math.inf
    top = scores.max(-1, keepdims=True)
    top = top if sink is None else numpy.maximum(top, sink)
    scores -= numpy.where(top == -math.inf, 0, top)
    numpy.exp(scores, out=scores)
    total = scores.sum(-1, keepdims=True)
    total = total if sink is None else total + numpy.exp(sink - top)
    return (scores @ v[begin:end]) / numpy.where(total > 0, total, 1)


class NumpyAttention(Contestant):
    """One of the four on the arrays of a case."""

    name, detail = "numpy", "a head and a block of queries at a time, f32"

    def __init__(self, case: Case, of: Callable[[ArraySet, dict[str, Any]], Sequences],
                 rule: Rule) -> None:
        self._sets, self._params, self._of, self._rule = case.sets, case.params, of, rule
        self._dtype = str(case.params["dtype"])

    def run(self, index: int) -> None:
        import numpy

        for q, k, v, o, sinks in self._of(self._sets[index], self._params):
            (sq, hq, d), hkv = q.shape, k.shape[1]
            group = hq // hkv
            for head in range(hkv):
                readers = slice(head * group, (head + 1) * group)
                rows = host_floats(q[:, readers], self._dtype) * numpy.float32(self._rule.scale)
                keys, values = (numpy.ascontiguousarray(host_floats(x[:, head], self._dtype))
                                for x in (k, v))
                for first in range(0, sq, BLOCK):
                    part = rows[first:first + BLOCK]
                    sink = None if sinks is None else numpy.tile(
                        sinks[readers], part.shape[0])[:, None]
                    found = attend_head(part.reshape(-1, d), keys, values, self._rule, first, sq,
                                        group, sink)
                    o[first:first + BLOCK, readers] = bits_of(found, self._dtype).reshape(
                        part.shape[0], group, -1)


class NumpyPeer:
    """The entry `numpy`."""

    name = "numpy"

    def open(self, device: str, threads: int) -> None:
        """For the CPU, with NumPy."""
        if device != "cpu":
            raise Unavailable(f"is for the CPU, not for {device}")

    def version(self) -> str:
        import numpy

        return f"NumPy {numpy.__version__}"

    def enter(self, case: Case) -> list[list[Contestant]]:
        params = case.params
        if "mask" in params:
            return [[NumpyAttention(case, of_attention, attention.sizes_of(params).rule)]]
        if "prefix" in params:
            return [[NumpyAttention(case, of_extend, extend.sizes_of(params).rule)]]
        if "shared" in params:
            rule = Rule(decode.sizes_of(params).d ** -0.5)
            return [[NumpyAttention(case, of_decode, rule)]]
        return [[NumpyAttention(case, of_mla, mla.sizes_of(params).rule)]]


PEER = NumpyPeer()
