"""torch as peers of routing, eager and, softmax and align, compiled.

    softmax, sigmoid   the scores of all, torch.topk, weights that sum to 1
    gate               groups by their two best, the others masked, torch.topk
    align              a stable sort, offsets by searchsorted, slots scattered to their places
"""
from __future__ import annotations

import importlib
from typing import Any, Callable

from harness.contest import ArraySet, Case, Contestant
from peers import routing
from peers.torch_attention import TorchPeer
from peers.torch_attention_cpu import TorchCpu, tensor

COMPILED = ("softmax", "align")


def choose(torch: Any, logits: Any, op: str, topk: int) -> tuple[Any, Any]:
    """Of all experts."""
    scores = torch.softmax(logits.float(), -1) if op == "softmax" else \
        torch.sigmoid(logits.float())
    weights, ids = torch.topk(scores, topk)
    return weights / weights.sum(-1, keepdim=True), ids


def gate(torch: Any, logits: Any, bias: Any, size: routing.Sizes) -> tuple[Any, Any]:
    """Of the best groups."""
    scores = torch.sigmoid(logits.float())
    keys = scores + bias
    each = keys.unflatten(-1, (size.groups, -1))
    best = each.topk(2, -1).values.sum(-1).topk(size.topk_group, -1).indices
    is_out = torch.ones(each.shape[:2], dtype=torch.bool, device=keys.device)
    is_out = is_out.scatter(1, best, False)[..., None]
    ids = each.masked_fill(is_out, float("-inf")).flatten(1).topk(size.topk, -1).indices
    weights = scores.gather(1, ids)
    return weights / weights.sum(-1, keepdim=True), ids


def align(torch: Any, ids: Any, size: routing.Sizes) -> tuple[Any, Any, Any]:
    """Sorted slots, blocks, rows in use."""
    experts = torch.arange(size.experts, device=ids.device)
    sorted_ids, slots = torch.sort(ids.reshape(-1), stable=True)
    ends = torch.searchsorted(sorted_ids, experts.int(), right=True)
    begins = torch.searchsorted(sorted_ids, experts.int())
    padded_ends = torch.cumsum((ends - begins + size.block - 1) // size.block * size.block, 0)
    shift = padded_ends - (ends - begins + size.block - 1) // size.block * size.block - begins
    places = torch.arange(size.slots, device=ids.device) + shift[sorted_ids]
    found = torch.full((size.rows,), size.slots, dtype=torch.int32, device=ids.device)
    found = found.scatter(0, places, slots.int())
    firsts = torch.arange(size.rows // size.block, device=ids.device) * size.block
    blocks = torch.searchsorted(padded_ends, firsts, right=True).int()
    return found, torch.where(firsts < padded_ends[-1], blocks, -1), padded_ends[-1:].int()


def function_of(torch: Any, op: str, size: routing.Sizes) -> Callable[..., tuple[Any, ...]]:
    """The arrays of a set to its outputs."""
    if op == "align":
        return lambda arrays: align(torch, arrays["ids"], size)
    if op == "gate":
        return lambda arrays: gate(torch, arrays["logits"], arrays["bias"], size)
    return lambda arrays: choose(torch, arrays["logits"], op, size.topk)


class Routed(Contestant):
    """Calls that return the outputs in their order."""

    def __init__(self, name: str, case: Case, function: Callable[..., tuple[Any, ...]],
                 inputs: list[dict[str, Any]], outputs: list[list[Any]]) -> None:
        self._torch = importlib.import_module("torch")
        self.name, self._function = name, function
        self._inputs, self._outputs = inputs, outputs
        self._made: dict[int, tuple[Any, ...]] = {}

    def run(self, index: int) -> None:
        with self._torch.inference_mode():
            self._made[index] = self._function(self._inputs[index])

    def deliver(self, index: int) -> None:
        for output, made in zip(self._outputs[index], self._made[index]):
            output.copy_(made)

    def close(self) -> None:
        self._made, self._inputs = {}, []


def tensors_of(case: Case, arrays: ArraySet) -> tuple[dict[str, Any], list[Any]]:
    """A set as tensors: inputs, and outputs of which integers are such."""
    torch, dtype = importlib.import_module("torch"), str(case.params["dtype"])
    inputs, outputs = dict(arrays.inputs), dict(arrays.outputs)
    if case.device == "cpu":
        inputs = {name: tensor(array, dtype if name == "logits" else "f32")
                  for name, array in inputs.items()}
        outputs = {name: tensor(array, "f32") for name, array in outputs.items()}
    return inputs, [array if name == "weights" else array.view(torch.int32)
                    for name, array in outputs.items()]


class TorchRouting:
    """The entries `torch` and, on a GPU, `compiled`, whose compiler sees dictionaries of one
    kind."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._opened: Any = None

    def open(self, device: str, threads: int) -> None:
        """Unavailable without torch, or on a GPU without a usable one."""
        self._opened = TorchCpu() if device == "cpu" else TorchPeer("torch")
        self._opened.open(device, threads)

    def version(self) -> str:
        return str(self._opened.version())

    def enter(self, case: Case) -> list[list[Contestant]]:
        """[] of what takes long to compile and gains little by it."""
        torch = importlib.import_module("torch")
        if self.name == "compiled" and case.params["op"] not in COMPILED:
            return []
        function = function_of(torch, str(case.params["op"]), routing.sizes_of(case.params))
        if self.name == "compiled":
            torch.compiler.reset()
            function = torch.compile(function, dynamic=False)
        pairs = [tensors_of(case, arrays) for arrays in case.sets]
        return [[Routed(self.name, case, function, [pair[0] for pair in pairs],
                        [pair[1] for pair in pairs])]]


PEERS = [TorchRouting("torch"), TorchRouting("compiled")]
