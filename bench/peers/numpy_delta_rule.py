"""NumPy as a peer of the gated delta rule: the recurrence as one would write it, in f32.

A check of sense more than a rival: a token at a time, all heads at once, on NumPy's own threads
where it has any.
"""
from __future__ import annotations

from typing import Any

from harness.arrays import host_floats
from harness.contest import Case, Contestant, Unavailable
from peers import recurrence
from peers.delta_rule import sizes_of, tokens_of


class Floats:
    """What tokens_of() wants of the arrays of a case."""

    floats = staticmethod(host_floats)


def bits_of(values: Any, dtype: str) -> Any:
    """f32 as an array of the case keeps it; bf16 rounded to the nearest, ties to even."""
    import numpy

    if dtype != "bf16":
        return values.astype({"f32": "f4", "f16": "f2"}[dtype])
    bits = numpy.ascontiguousarray(values).view("u4")
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("u2")


class Recurrence(Contestant):
    """The recurrence on the arrays of a case."""

    name, detail = "numpy", "the recurrence, a token at a time, f32"

    def __init__(self, case: Case) -> None:
        self._params, self._sets = case.params, case.sets
        self._size = sizes_of(case.params)

    def run(self, index: int) -> None:
        import numpy

        arrays, size, params = self._sets[index], self._size, self._params
        tokens = tokens_of(numpy, arrays, params, size, Floats(), False)
        order = sorted(range(size.n), key=lambda place: -size.lengths[place])
        kept, places = arrays["initial_state"] if not arrays.inouts else arrays["states"], order
        if arrays.inouts:
            places = [int(arrays["slots"][place]) for place in order]
        is_kv, kind = params["layout"] == "kv", str(params["state"])
        state = host_floats(kept[places], kind)
        state = state if is_kv else numpy.ascontiguousarray(state.swapaxes(-1, -2))
        o = numpy.empty_like(tokens.v)
        recurrence.run(tokens, [size.starts[place] for place in order],
                       [size.lengths[place] for place in order], state, size.k ** -0.5, o)
        arrays["o"][...] = bits_of(o, str(params["dtype"])).reshape(arrays["o"].shape)
        target = arrays["states"] if arrays.inouts else arrays["final_state"]
        target[places] = bits_of(state if is_kv else state.swapaxes(-1, -2), kind)


class NumpyDeltaRule:
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
        return [[Recurrence(case)]]


PEER = NumpyDeltaRule()
