"""torch's attention on a GPU as peers: what a program in PyTorch calls, and gets.

    flash    scaled_dot_product_attention with its FlashAttention-2 backend; packed sequences by
             torch.nn.attention.varlen, which is FlashAttention-2 too
    cudnn    the same function with its cuDNN backend
    dense    extend, decode: the keys of each sequence dense and side by side rather than in pages,
             brought there before anything is timed: a point of reference, since no engine has them
             so. extend: FlashAttention-2 by torch.nn.attention.varlen; decode: in torch_decode.py

What a backend refuses is brought into a form that it takes, beforehand and not in its time: keys
and values of a group repeated for each of its heads where it has no GQA, values widened by zeros
where they must be as wide as keys. The detail says so. Masks but causal ones, windows and sinks are
no part of these functions: those shapes have no entry. No logarithm of the denominators is asked
for by quern, so that it writes none; torch's always do.

torch makes the outputs itself; they are taken into the case's for the check alone. All of it in
inference mode.
"""
from __future__ import annotations

import importlib
import warnings
from typing import Any, Callable

from harness.contest import ArraySet, Case, Contestant, Unavailable
from peers import attention, extend

Call = Callable[[], Any]
Form = tuple[str, Callable[[ArraySet], Call]]  # what was done beforehand; the call of a set


class Torch(Contestant):
    """Calls that return an output of the case's shape, perhaps with further columns."""

    def __init__(self, name: str, detail: str, case: Case, calls: list[Call]) -> None:
        self._torch = importlib.import_module("torch")
        self.name, self.detail = name, detail
        self._sets, self._calls = case.sets, calls
        self._made: dict[int, Any] = {}

    def run(self, index: int) -> None:
        with self._torch.inference_mode():
            self._made[index] = self._calls[index]()

    def deliver(self, index: int) -> None:
        """Copied, not moved: a graph that is replayed writes into the same memory again."""
        o = self._sets[index]["o"]
        o.copy_(self._made[index][..., :o.shape[-1]].reshape(o.shape))

    def close(self) -> None:
        self._calls, self._made = [], {}


def first_that_runs(name: str, detail: str, case: Case, forms: list[Form]) -> list[Contestant]:
    """The contestant in the first of the forms that its backend takes; what it says of the last
    one where it takes none."""
    torch = importlib.import_module("torch")
    why: Exception = Unavailable("has no form of this call")
    for done, call_of in forms:
        try:
            with torch.inference_mode(), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # in which torch says why, once for each backend
                call_of(case.sets[0])()
            torch.cuda.synchronize()
        except (RuntimeError, ValueError) as failure:  # no kernel of the backend
            why = failure
            continue
        calls = [call_of(arrays) for arrays in case.sets]
        return [Torch(name, detail + done, case, calls)]
    raise why


def repeated(array: Any, times: int, dim: int) -> Any:
    """Heads of keys or values for each query head that reads them."""
    return array.repeat_interleave(times, dim) if times > 1 else array


def widened(v: Any, width: int) -> Any:
    """Values with columns of zeros."""
    functional = importlib.import_module("torch.nn.functional")
    return functional.pad(v, (0, width - v.shape[-1]))


def forms_of(group: int, is_narrow: bool) -> list[tuple[str, bool, bool]]:
    """What may be done beforehand, the least first: (said, repeat, widen)."""
    found = [("", False, False)]
    if group > 1:
        found.append((", keys and values repeated for each head beforehand", True, False))
    if is_narrow:
        found.append((", values widened by zeros beforehand", False, True))
    if group > 1 and is_narrow:
        found.append((", keys and values repeated, values widened beforehand", True, True))
    return found


# ---- Dense batches ----------------------------------------------------------------------------


def dense_call(backend: Any, q: Any, k: Any, v: Any, is_causal: bool) -> Call:
    """q, k, v [b, s, heads, d] --> o [b, s, hq, dv]."""
    sdpa = importlib.import_module("torch.nn.functional").scaled_dot_product_attention
    sdpa_kernel = importlib.import_module("torch.nn.attention").sdpa_kernel
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    more = {"enable_gqa": True} if q.shape[1] != k.shape[1] else {}

    def call() -> Any:
        with sdpa_kernel(backend):
            return sdpa(q, k, v, is_causal=is_causal, **more).transpose(1, 2)

    return call


def dense_forms(case: Case, backend: Any) -> list[Form]:
    """Of scaled_dot_product_attention."""
    size = attention.sizes_of(case.params)
    group = size.hq // size.hkv

    def form(repeat: bool, widen: bool) -> Callable[[ArraySet], Call]:
        def call_of(arrays: ArraySet) -> Call:
            k, v = (repeated(arrays[x], group if repeat else 1, 2) for x in "kv")
            v = widened(v, size.d) if widen else v
            return dense_call(backend, arrays["q"], k, v, size.rule.causal)

        return call_of

    return [(said, form(repeat, widen))
            for said, repeat, widen in forms_of(group, size.dv != size.d)]


# ---- Packed sequences -------------------------------------------------------------------------


def packed_call(q: Any, k: Any, v: Any, borders: tuple[Any, Any], most: tuple[int, int],
                is_causal: bool) -> Call:
    """q [tq, hq, d], k and v [tk, heads, d], where sequences begin and their longest."""
    function = importlib.import_module("torch.nn.attention.varlen").varlen_attn
    window = (-1, 0) if is_causal else (-1, -1)
    return lambda: function(q, k, v, *borders, *most, window_size=window)


def packed_forms(case: Case) -> list[Form]:
    """Of varlen_attn."""
    size = attention.sizes_of(case.params)
    group, most = size.hq // size.hkv, max(size.lengths)

    def form(repeat: bool, widen: bool) -> Callable[[ArraySet], Call]:
        def call_of(arrays: ArraySet) -> Call:
            k, v = (repeated(arrays[x][0], group if repeat else 1, 1) for x in "kv")
            v = widened(v, size.d) if widen else v
            borders = arrays["cu_seqlens"]
            return packed_call(arrays["q"][0], k, v, (borders, borders), (most, most),
                               size.rule.causal)

        return call_of

    return [(said, form(repeat, widen))
            for said, repeat, widen in forms_of(group, size.dv != size.d)]


def extend_forms(case: Case) -> list[Form]:
    """Of varlen_attn on the prefixes and the new tokens side by side."""
    size = extend.sizes_of(case.params)
    torch = importlib.import_module("torch")
    group, total = size.hq // size.hkv, size.prefix + size.t

    def form(repeat: bool) -> Callable[[ArraySet], Call]:
        def call_of(arrays: ArraySet) -> Call:
            k, v = (torch.cat([extend.keys_of(arrays, size, sequence, name)
                               for sequence in range(size.b)]) for name in "kv")
            k, v = (repeated(x, group if repeat else 1, 1) for x in (k, v))
            keys = torch.arange(0, size.b * total + 1, total, dtype=torch.int32, device=k.device)
            return packed_call(arrays["q"], k, v, (arrays["cu_seqlens_q"], keys),
                               (size.t, total), True)

        return call_of

    return [(said, form(repeat)) for said, repeat, _ in forms_of(group, False)]


# ---- The peers --------------------------------------------------------------------------------


class TorchPeer:
    """What torch's peers share."""

    def __init__(self, name: str) -> None:
        self.name = name

    def open(self, device: str, threads: int) -> None:
        """Make `device` the current one; Unavailable without torch or a GPU."""
        try:
            torch = importlib.import_module("torch")
        except ImportError as problem:
            raise Unavailable(str(problem)) from problem
        if not torch.cuda.is_available():
            raise Unavailable("torch finds no CUDA device")
        torch.cuda.set_device(device)

    def version(self) -> str:
        torch = importlib.import_module("torch")
        if self.name != "cudnn":
            return f"PyTorch {torch.__version__}"
        return f"PyTorch {torch.__version__}, cuDNN {torch.backends.cudnn.version()}"

    def backend(self) -> Any:
        """Of scaled_dot_product_attention."""
        backends = importlib.import_module("torch.nn.attention").SDPBackend
        return backends.CUDNN_ATTENTION if self.name == "cudnn" else backends.FLASH_ATTENTION

    def enter(self, case: Case) -> list[list[Contestant]]:
        """An entry, where the backend takes the call in some form; [] where it is no part of it."""
        if case.params["dtype"] not in ("bf16", "f16"):
            return []
        if self.name == "dense":
            return [first_that_runs("dense", "varlen_attn", case, extend_forms(case))]
        if case.params["window"] or case.params["sinks"] == "yes":
            return []
        if case.params["lengths"]:
            if self.name == "cudnn":
                return []
            return [first_that_runs("flash", "varlen_attn", case, packed_forms(case))]
        forms = dense_forms(case, self.backend())
        return [first_that_runs(self.name, "scaled_dot_product_attention", case, forms)]


PEERS = [TorchPeer("flash"), TorchPeer("cudnn"), TorchPeer("dense")]
