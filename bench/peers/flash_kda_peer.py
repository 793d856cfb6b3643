"""FlashKDA (CUTLASS, sm_90 up) as a peer of KDA's prefill, where `flash_kda` can be imported.

It takes bf16 at 128 by 128, as many value heads as heads, the bounded gate, logits of beta and
states [v, k]; other cases it has no entry in. It writes into arrays that it is given.
"""
from __future__ import annotations

import importlib
from typing import Any

from harness.contest import Case, Contestant, Unavailable
from peers.delta_rule import LOWER_BOUND, batched, sizes_of

FIXED = {"op": "prefill", "k": 128, "v": 128, "dtype": "bf16", "gate": "bounded", "layout": "vk",
         "state": "f32"}


class FlashKda(Contestant):
    """flash_kda.fwd() on the arrays of a case."""

    name, detail = "flash-kda", "fwd"

    def __init__(self, case: Case) -> None:
        self._torch = importlib.import_module("torch")
        self._forward = importlib.import_module("flash_kda").fwd
        self._calls = [self._arguments(case, arrays) for arrays in case.sets]

    def _arguments(self, case: Case, arrays: Any) -> tuple[list[Any], dict[str, Any]]:
        size, found = sizes_of(case.params), batched(case.params, arrays)
        tokens = [found[name] for name in ("q", "k", "v", "g", "beta", "o")]
        more = {"A_log": arrays["A_log"], "dt_bias": arrays["dt_bias"].view(size.hv, -1),
                "lower_bound": LOWER_BOUND, "initial_state": arrays["initial_state"],
                "final_state": arrays["final_state"],
                "cu_seqlens": arrays["cu_seqlens"] if case.params["lengths"] else None}
        return [*tokens[:5], size.k ** -0.5, tokens[5]], more

    def run(self, index: int) -> None:
        arguments, more = self._calls[index]
        with self._torch.inference_mode():
            self._forward(*arguments, **more)

    def close(self) -> None:
        self._calls = []


class FlashKdaPeer:
    """The entry `flash-kda`."""

    name = "flash-kda"

    def open(self, device: str, threads: int) -> None:
        """Make `device` the current one; Unavailable without a GPU or the module."""
        try:
            torch = importlib.import_module("torch")
            importlib.import_module("flash_kda")
        except ImportError as problem:
            raise Unavailable(str(problem)) from problem
        if not torch.cuda.is_available():
            raise Unavailable("torch finds no CUDA device")
        torch.cuda.set_device(device)

    def version(self) -> str:
        found = importlib.import_module("flash_kda")
        return f"FlashKDA {getattr(found, '__version__', 'of unknown version')}"

    def enter(self, case: Case) -> list[list[Contestant]]:
        params = case.params
        is_one = all(params[name] == value for name, value in FIXED.items())
        return [[FlashKda(case)]] if is_one and params["h"] == params["hv"] else []


PEER = FlashKdaPeer()
