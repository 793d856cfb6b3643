#!/usr/bin/env python3
"""The adapters of moe, grouped_gemm and routing: shapes, references and torch's peers.

References are held against loops. torch's peers for a GPU run here on tensors of the CPU, with
torch._grouped_mm stood in for where it needs one.
"""
from __future__ import annotations

import importlib.util
import math
import os
import sys
import unittest
from pathlib import Path
from typing import Any

BENCH = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(BENCH), str(BENCH.parent / "python")]
sys.dont_write_bytecode = True
if os.environ.get("QUERN_BUILD"):
    os.environ["QUERN_LIBRARY"] = str(Path(os.environ["QUERN_BUILD"]) / "libquern.so.0")

import numpy as np  # noqa: E402 (the path comes first)

from harness import contest, shapes  # noqa: E402
from harness.arrays import CudaArrays, HostArrays  # noqa: E402
from harness.contest import Case, Contestant  # noqa: E402
from harness.shapes import BadOption  # noqa: E402
from peers import grouped_gemm, moe, routing  # noqa: E402

HAS_TORCH = importlib.util.find_spec("torch") is not None
needs_torch = unittest.skipUnless(HAS_TORCH, "torch is not installed")
FAMILIES: dict[str, Any] = {x.NAME: x for x in (moe, grouped_gemm, routing)}
LAYER = {"tokens": "5", "experts": "12", "topk": "3", "hidden": "32", "inter": "24"}
GROUPED = {"experts": "6", "rows": "5+0+2", "n": "20", "k": "16"}
CHOICE = {"op": "gate", "tokens": "40", "experts": "32", "topk": "4", "groups": "4",
          "topk_group": "2"}
CASES: list[tuple[Any, dict[str, str]]] = [
    (moe, LAYER), (moe, {**LAYER, "tokens": "40", "logits": "skewed"}), (grouped_gemm, GROUPED),
    (routing, CHOICE), (routing, {**CHOICE, "groups": "1", "topk_group": "1"}),
    (routing, {**CHOICE, "op": "softmax"}), (routing, {**CHOICE, "op": "sigmoid"}),
    (routing, {**CHOICE, "op": "align", "block": "8"}),
    (routing, {**CHOICE, "op": "align", "block": "16", "tokens": "1"}),
]


class HostTensors(CudaArrays if HAS_TORCH else HostArrays):  # type: ignore[misc]
    """What a GPU's case is made with, on the CPU."""

    def free_bytes(self) -> int:
        return 1 << 32

    def sets_needed(self, bytes_per_set: int) -> int:
        return 2


def case_of(family: Any, row: dict[str, str], dtype: str = "f32", arrays: Any = None) -> Case:
    """A small case."""
    arrays = arrays or HostArrays(pool=(1 << 16) + 43, most_sets=2)
    device = "cuda:0" if isinstance(arrays, HostTensors) and HAS_TORCH else "cpu"
    made: Case = family.make_case(family.params_of(row, dtype), device, 1, arrays)
    return made


def errors_after(case: Case, contestant: Contestant) -> contest.Errors:
    """Of the check."""
    def compute() -> None:
        for index in contest.ends_of(case):
            contestant.run(index)

    return contest.check(case, contestant, compute)


def write_layer(case: Case, index: int) -> None:
    """out, a token and an expert at a time."""
    arrays, topk = case.sets[index], int(case.params["topk"])
    for token, row in enumerate(arrays["logits"]):
        ids = sorted(range(len(row)), key=lambda e: (-row[e], e))[:topk]
        weights = np.exp(row[ids].astype("f8"))
        y = 0
        for weight, e in zip(weights / weights.sum(), ids):
            gate, up = np.split(arrays["w13"][e].astype("f8") @ arrays["x"][token], 2)
            y = y + weight * (arrays["w2"][e] @ (gate / (1 + np.exp(-gate)) * up))
        arrays["out"][token] = y


def write_grouped(case: Case, index: int) -> None:
    """out, a row at a time."""
    arrays = case.sets[index]
    for e, (begin, end) in enumerate(zip(arrays["offsets"], arrays["offsets"][1:])):
        for row in range(begin, end):
            arrays["out"][row] = arrays["b"][e] @ arrays["a"][row]


def write_routing(case: Case, index: int) -> None:
    """Outputs, a token at a time; slots sorted by Python."""
    arrays, size, op = case.sets[index], routing.sizes_of(case.params), case.params["op"]
    if op == "align":
        flat = arrays["ids"].reshape(-1).tolist()
        slots, blocks = [], []
        for e in range(size.experts):
            mine = [slot for slot, expert in enumerate(flat) if expert == e]
            mine += [size.slots] * (-len(mine) % size.block)
            slots, blocks = slots + mine, blocks + [e] * (len(mine) // size.block)
        for name, values in (("sorted", slots), ("blocks", blocks), ("used", [len(slots)])):
            routing.integers(arrays[name])[:len(values)] = values
        return
    for token, row in enumerate(arrays["logits"].astype("f8")):
        scores = np.exp(row) if op == "softmax" else 1 / (1 + np.exp(-row))
        keys = scores + (arrays["bias"] if op == "gate" else 0)
        groups = keys.reshape(size.groups if op == "gate" else 1, -1)
        kept = np.argsort(-np.sort(groups)[:, -2:].sum(-1), kind="stable")[:size.topk_group]
        masked = np.full_like(groups, -9)
        masked[kept] = groups[kept]
        ids = np.argsort(-masked.reshape(-1), kind="stable")[:size.topk]
        routing.integers(arrays["ids"])[token] = ids
        arrays["weights"][token] = scores[ids] / scores[ids].sum()


WRITE = {"moe": write_layer, "grouped_gemm": write_grouped, "routing": write_routing}


class Shapes(unittest.TestCase):
    def test_every_set_and_start_can_be_read(self) -> None:
        for name, family in FAMILIES.items():
            calls = importlib.import_module(f"peers.{family.CALLS}")
            rows = [row for kind in ("cpu", "cuda") for row in (
                *family.STARTS[kind], calls.TINY[kind], calls.DISPATCHED[kind])]
            found = [family.params_of(row, "f32") for row in rows]
            for file in shapes.sets(name):
                found += shapes.read(shapes.find(name, file), family.COLUMNS,
                                     lambda line: family.params_of(line, "f32"))
            for params in found:
                self.assertTrue(family.label(params))
                self.assertLessEqual(set(family.groups(params)), set(family.GROUPS))
                self.assertGreater(family.flops_of(params), 0)

    def test_what_cannot_be_is_named(self) -> None:
        for family, row, said in (
                (moe, {**LAYER, "tokens": "0"}, "tokens=0: must be a whole number"),
                (moe, {**LAYER, "logits": "flat"}, "logits=flat: must be one of"),
                (grouped_gemm, {**GROUPED, "rows": "0+0"}, r"rows=0\+0: must be"),
                (routing, {**CHOICE, "op": "max"}, "op=max: must be one of"),
                (routing, {**CHOICE, "topk": "33"}, "topk=33: must be at most experts=32"),
                (routing, {**CHOICE, "groups": "5"}, "groups=5: must be a divisor")):
            with self.assertRaisesRegex(BadOption, said):
                family.params_of(row, "f32")

    def test_calls_of_few_tokens_share_no_expert_with_the_one_before(self) -> None:
        for logits in ("random", "skewed"):
            case = case_of(moe, {**LAYER, "tokens": "2", "topk": "2", "logits": logits})
            hit = [moe.experts_hit(arrays["logits"], 2) for arrays in case.sets]
            self.assertGreater(len(hit), 2)
            for one, other in zip(hit, hit[1:]):
                self.assertFalse(one & other)
            mean = sum(map(len, hit)) / len(hit)
            self.assertEqual(case.bytes, moe.hit_bytes(case.params, mean))


class References(unittest.TestCase):
    def test_loops_are_right(self) -> None:
        for family, row in CASES:
            with self.subTest(family=family.NAME, **row):
                case = case_of(family, row)
                for index in contest.ends_of(case):
                    WRITE[family.NAME](case, index)
                    self.assertLess(case.compare(index, 1).whole, 1e-6)

    def test_what_is_not_written_and_what_is_wrong_are_caught(self) -> None:
        for family, row in CASES:
            with self.subTest(family=family.NAME, **row):
                case = case_of(family, row)
                contest.poison(case.sets[0])
                with self.assertRaises(contest.Wrong):
                    contest.require(case.compare(0, 1), case.tolerance)
                WRITE[family.NAME](case, 0)
                outputs = case.sets[0].outputs
                if family is routing:
                    first = next(name for name in ("ids", "sorted") if name in outputs)
                    ids = routing.integers(outputs[first]).reshape(-1)
                    ids[:2] = ids[1::-1].copy()
                else:
                    outputs["out"].reshape(-1)[0] += 0.5 * abs(outputs["out"]).max()
                with self.assertRaises(contest.Wrong):
                    contest.require(case.compare(0, 1), case.tolerance)

    def test_a_row_that_is_no_number_is_caught_wherever_it_is(self) -> None:
        for family, row in CASES[:3]:
            case = case_of(family, row)
            for place in (0, -1):
                WRITE[family.NAME](case, 0)
                case.sets[0]["out"].reshape(-1)[place] = math.nan
                self.assertFalse(case.compare(0, 1).whole < 1)


@needs_torch
class TorchPeers(unittest.TestCase):
    def test_those_of_the_cpu_are_right(self) -> None:
        for family, row in CASES:
            with self.subTest(family=family.NAME, **row):
                module = importlib.import_module(f"peers.{family.PEERS['cpu']['torch']}")
                peer = (getattr(module, "PEERS", None) or [module.PEER])[0]
                peer.open("cpu", 1)
                for dtype in ("f32",) if family is routing else ("f32", "bf16"):
                    case = case_of(family, row, dtype)
                    for contestant in sum(peer.enter(case), []):
                        errors_after(case, contestant)

    def test_layers_of_a_gpu_are_right(self) -> None:
        from peers import torch_moe

        arrays = HostTensors("cpu")
        for tokens in ("3", "30"):
            case = case_of(moe, {**LAYER, "tokens": tokens}, "bf16", arrays)
            size = moe.sizes_of(case.params)
            for make in (torch_moe.grouped_call, torch_moe.gathered_call):
                calls = [make(found, size) for found in case.sets]
                errors_after(case, torch_moe.Layer("torch", "", case, calls))


if __name__ == "__main__":
    unittest.main()
