#!/usr/bin/env python3
"""The adapters of attention, extend, decode and mla, their reference and their peers.

The reference is held against loops over single numbers. What needs a GPU is stood in for by
functions that do what torch's and Triton's are documented to do, on tensors of the CPU, so that it
is seen what they are handed and what is made of what they return.
"""
from __future__ import annotations

import contextlib
import importlib
import importlib.util
import json
import math
import os
import subprocess
import sys
import tempfile
import types
import unittest
from pathlib import Path
from typing import Any, Iterator
from unittest import mock

BENCH = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(BENCH), str(BENCH.parent / "python")]
sys.dont_write_bytecode = True
if os.environ.get("QUERN_BUILD"):
    os.environ["QUERN_LIBRARY"] = str(Path(os.environ["QUERN_BUILD"]) / "libquern.so.0")

import numpy as np  # noqa: E402 (the path comes first)

from harness import contest, shapes  # noqa: E402
from harness.arrays import Arrays, CudaArrays, HostArrays  # noqa: E402
from harness.contest import Case, Contestant, Errors  # noqa: E402
from harness.shapes import BadOption  # noqa: E402
from peers import attend, attention, decode, extend, mla, numpy_attention, pages  # noqa: E402

HAS_TORCH = importlib.util.find_spec("torch") is not None
needs_torch = unittest.skipUnless(HAS_TORCH, "torch is not installed")
FAMILIES: dict[str, Any] = {x.NAME: x for x in (attention, extend, decode, mla)}
CASES: list[tuple[Any, dict[str, str]]] = [
    (attention, {"b": "2", "s": "21", "hq": "4", "hkv": "2", "d": "64", "mask": "causal"}),
    (attention, {"b": "1", "s": "9", "hq": "2", "d": "128", "mask": "full"}),
    (attention, {"lengths": "5+1+13", "hq": "2", "d": "64", "mask": "causal"}),
    (attention, {"s": "20", "hq": "2", "d": "192", "dv": "128", "mask": "causal"}),
    (attention, {"s": "30", "hq": "4", "hkv": "1", "d": "64", "mask": "causal", "window": "7",
                 "sinks": "yes"}),
    (extend, {"b": "2", "prefix": "13", "t": "9", "hq": "4", "hkv": "2", "d": "64", "page": "4"}),
    (extend, {"b": "1", "prefix": "8", "t": "3", "hq": "2", "d": "128", "page": "1"}),
    (decode, {"b": "3", "kv": "5-20", "hq": "4", "hkv": "2", "d": "64", "page": "4"}),
    (decode, {"b": "2", "kv": "16", "hq": "2", "d": "128", "page": "16"}),
    (decode, {"b": "2", "kv": "7", "shared": "8", "hq": "4", "hkv": "2", "d": "64", "page": "4"}),
    (mla, {"b": "2", "kv": "20", "hq": "16", "page": "4"}),
    (mla, {"b": "1", "kv": "9", "sq": "2", "hq": "20", "page": "64"}),
]


class HostTensors(CudaArrays if HAS_TORCH else HostArrays):  # type: ignore[misc]
    """What a GPU's case is made with, on the CPU."""

    def free_bytes(self) -> int:
        return 1 << 30

    def sets_needed(self, bytes_per_set: int) -> int:
        return 2


def case_of(family: Any, row: dict[str, str], arrays: Arrays | None = None, device: str = "cpu",
            dtype: str = "bf16") -> Case:
    """A case of two sets."""
    arrays = arrays or HostArrays(pool=(1 << 16) + 43, most_sets=2)
    made: Case = family.make_case(family.params_of(row, dtype), device, 1, arrays)
    return made


def errors_after(case: Case, contestant: Contestant) -> Errors:
    """Of the check."""
    def compute() -> None:
        for index in contest.ends_of(case):
            contestant.run(index)

    return contest.check(case, contestant, compute)


def plain_loops(part: attend.Part, rule: attend.Rule) -> Any:
    """o [sq, hq, dv], a number at a time."""
    q, k, v = (np.asarray(x, "f8") for x in (part.q, part.k, part.v))
    (sq, hq, _), (sk, hkv, dv) = q.shape, v.shape
    o = np.zeros((sq, hq, dv))
    for i in range(sq):
        place = i + sk - sq
        for head in range(hq):
            seen = [j for j in range(sk) if (j <= place or not rule.causal)
                    and (not rule.window or abs(j - place) < rule.window)]
            of = head // (hq // hkv)
            weights = [math.exp(rule.scale * float(q[i, head] @ k[j, of])) for j in seen]
            total = sum(weights)
            if part.sinks is not None:
                total += math.exp(part.sinks[head])
            for weight, j in zip(weights, seen):
                o[i, head] += weight / total * v[j, of]
    return o


class Shapes(unittest.TestCase):
    def test_every_set_can_be_read(self) -> None:
        for name, family in FAMILIES.items():
            for file in shapes.sets(name):
                found = shapes.read(shapes.find(name, file), family.COLUMNS,
                                    lambda line: family.params_of(line, "bf16"))
                labels = [family.label(params) for params in found]
                self.assertEqual(len(labels), len(set(labels)), labels)
                for params in found:
                    self.assertLessEqual(set(family.groups(params)), set(family.GROUPS))
                    self.assertGreater(family.flops_of(params), 0)

    def test_what_starts_and_calls_ask_for_can_be_read(self) -> None:
        for name, family in FAMILIES.items():
            calls = importlib.import_module(f"peers.{family.CALLS}")
            for kind in ("cpu", "cuda"):
                for row in (*family.STARTS[kind], calls.TINY[kind], calls.DISPATCHED[kind]):
                    self.assertTrue(family.label(family.params_of(row, "bf16")), name)

    def test_what_cannot_be_is_named_with_what_may(self) -> None:
        for family, row, said in (
                (attention, {"hq": "4", "s": "0"}, "s=0: must be a whole number"),
                (attention, {"hq": "4", "s": "8", "hkv": "3"}, "hkv=3: must be a divisor of hq=4"),
                (attention, {"hq": "4", "s": "8", "mask": "left"}, "mask=left: must be one of"),
                (attention, {"hq": "4", "s": "8", "dv": "256"}, "dv=256: must be at most d=128"),
                (attention, {"hq": "4", "lengths": "3+0"}, r"lengths=3\+0: must be whole numbers"),
                (attention, {"hq": "4", "s": "8", "lengths": "3"}, "lengths=3: b and s must be"),
                (attention, {"hq": "4", "s": "8", "dtype": "i8"}, "dtype=i8: must be one of"),
                (decode, {"hq": "4", "kv": "9-3"}, "kv=9-3: must be a number of tokens"),
                (decode, {"hq": "4", "kv": "9", "page": "12"}, "page=12: must be a power of two"),
                (decode, {"hq": "4", "kv": "9", "kv_dtype": "f16"}, "kv_dtype=f16: must be one of"),
                (decode, {"hq": "4", "kv": "9", "shared": "8"}, "shared=8: must be a multiple of"),
                (extend, {"hq": "4", "prefix": "0", "t": "1"}, "prefix=0: must be a whole"),
                (mla, {"hq": "4", "kv": ""}, "kv=: must be a whole number")):
            with self.assertRaisesRegex(BadOption, said):
                family.params_of(row, "bf16")

    def test_work_is_counted_in_keys_that_are_seen(self) -> None:
        def flops(family: Any, **row: str) -> float:
            return float(family.flops_of(family.params_of(row, "bf16")))

        full = flops(attention, b="2", s="64", hq="3", mask="full")
        self.assertEqual(full, 4 * 2 * 64 * 64 * 3 * 128)
        causal = flops(attention, b="2", s="64", hq="3", mask="causal")
        self.assertEqual(causal, full * 65 / 128)
        window = flops(attention, s="64", hq="1", d="64", mask="causal", window="8")
        self.assertEqual(window, 4 * 64 * (64 * 8 - 28))
        packed = flops(attention, lengths="3+5", hq="1", d="192", dv="128", mask="full")
        self.assertEqual(packed, 2 * (9 + 25) * (192 + 128))
        after = flops(extend, prefix="10", t="2", hq="1", d="64")
        self.assertEqual(after, 4 * (11 + 12) * 64)
        self.assertEqual(flops(mla, b="2", kv="10", sq="2", hq="16"), 2 * 2 * 19 * 16 * 1088)

    def test_bytes_are_those_of_the_caches_a_shared_prefix_once(self) -> None:
        row = {"b": "2", "kv": "16", "hq": "4", "hkv": "2", "d": "64", "shared": "32"}
        found = decode.bytes_of(decode.params_of(row, "bf16"))
        self.assertEqual(found, 2 * (2 * 64 * 2 * 64 + 2 * 2 * 4 * 64))
        tokens = mla.bytes_of(mla.params_of({"kv": "64", "hq": "16", "kv_dtype": "e4m3"}, "bf16"))
        self.assertEqual(tokens, 64 * 656 + 2 * 16 * 1088)

    def test_drawn_lengths_are_the_same_in_every_run(self) -> None:
        found = decode.lengths_of("10-20", 50)
        self.assertEqual(found, decode.lengths_of("10-20", 50))
        self.assertTrue(10 <= min(found) < max(found) <= 20)

    def test_what_does_not_fit_is_refused(self) -> None:
        arrays = HostArrays(pool=(1 << 16) + 43)
        for family, row in CASES:
            with mock.patch.object(arrays, "free_bytes", return_value=1 << 10):
                with self.assertRaisesRegex(MemoryError, "MiB may be taken"):
                    case_of(family, row, arrays)


class Paging(unittest.TestCase):
    def test_pages_are_distinct_and_the_rest_of_a_row_is_no_page(self) -> None:
        made = pages.scattered([5, 0, 9], 4)
        used = [page for row in made.table for page in row]
        self.assertEqual(sorted(used), list(range(made.count)))
        self.assertEqual([len(row) for row in made.table], [2, 0, 3])
        rows = np.array(made.entries).reshape(3, made.width)
        self.assertEqual((rows == -1).sum(1).tolist(), [1, 3, 0])

    def test_tokens_come_back_in_order(self) -> None:
        cache = np.arange(4 * 2 * 3).reshape(4, 2, 3)
        found = pages.tokens(cache, np.array([2, 0, -1]), 3)
        self.assertEqual(found.tolist(), [cache[2, 0].tolist(), cache[2, 1].tolist(),
                                          cache[0, 0].tolist()])


class Reference(unittest.TestCase):
    def test_it_is_attention(self) -> None:
        random = np.random.default_rng()
        for sq, sk, hq, hkv, rule in ((5, 5, 2, 2, attend.Rule(0.3)),
                                      (4, 9, 4, 2, attend.Rule(0.3, True)),
                                      (9, 4, 2, 1, attend.Rule(0.3, True)),
                                      (8, 8, 2, 1, attend.Rule(0.3, True, 3)),
                                      (8, 8, 2, 1, attend.Rule(0.3, False, 3)),
                                      (3, 0, 2, 1, attend.Rule(0.3))):
            for sinks in (None, random.standard_normal(hq)):
                part = attend.Part(random.standard_normal((sq, hq, 6)),
                                   random.standard_normal((sk, hkv, 6)),
                                   random.standard_normal((sk, hkv, 4)), sinks)
                with np.errstate(all="raise"):
                    wanted = plain_loops(part, rule) if sk else np.zeros((sq, hq, 4))
                for block in (1, 40, 1 << 20):
                    found = attend.attend(part, rule, block)
                    self.assertEqual(found.shape, wanted.shape)
                    self.assertLess(abs(found - wanted).max(), 1e-12)

    def test_large_scores_are_no_nan(self) -> None:
        part = attend.Part(np.full((2, 1, 4), 100.0), np.full((3, 1, 4), 100.0),
                           np.ones((3, 1, 4)))
        self.assertLess(abs(attend.attend(part, attend.Rule(1.0, True), 100) - 1).max(), 1e-12)

    def test_every_case_is_met_by_loops(self) -> None:
        for family, row in CASES:
            with self.subTest(family=family.NAME, **row):
                case = case_of(family, row, dtype="f32")
                for index in contest.ends_of(case):
                    write_loops(case, index)
                    self.assertLess(case.compare(index, 1).whole, 2e-7)

    def test_one_wrong_number_and_what_is_not_written_are_caught(self) -> None:
        for family, row in CASES:
            with self.subTest(family=family.NAME, **row):
                case = case_of(family, row, dtype="f32")
                contest.poison(case.sets[0])
                with self.assertRaisesRegex(contest.Wrong, "nan"):
                    contest.require(case.compare(0, 1), case.tolerance)
                write_loops(case, 0)
                case.sets[0]["o"].reshape(-1)[-1] += 0.1
                with self.assertRaises(contest.Wrong):
                    contest.require(case.compare(0, 1), case.tolerance)

    def test_of_large_cases_a_part_is_compared_and_all_must_be_finite(self) -> None:
        with mock.patch.dict(attend.LIMITS, cpu=1.0):
            for family, row in CASES:
                case = case_of(family, row, dtype="f32")
                write_loops(case, 0)
                self.assertLess(case.compare(0, 1).whole, 2e-7)
                for place in (0, -1):
                    write_loops(case, 0)
                    case.sets[0]["o"].reshape(-1)[place] = math.nan
                    self.assertFalse(case.compare(0, 1).whole < 1)

    def test_the_part_is_as_large_as_it_may_be_and_drawn_anew(self) -> None:
        self.assertEqual(attend.choose(2, 2, 1.0), {0: [0, 1], 1: [0, 1]})
        found = attend.choose(10, 8, 0.5)
        self.assertEqual([len(heads) for heads in found.values()], [4] * 10)
        self.assertEqual([len(x) for x in attend.choose(10, 2, 0.1).values()], [1, 1])
        drawn = {str(attend.choose(30, 30, 1e-9)) for _ in range(30)}
        self.assertGreater(len(drawn), 1)
        self.assertEqual({len(attend.choose(30, 30, 1e-9)) for _ in range(9)}, {1})

    def test_scores_are_neither_flat_nor_one_hot(self) -> None:
        case = case_of(attention, {"s": "512", "hq": "1", "mask": "full"}, dtype="f32")
        q, k = (case.sets[0][name][0, :, 0].astype("f8") for name in "qk")
        scores = q @ k.T / math.sqrt(128)
        p = np.exp(scores - scores.max(-1, keepdims=True))
        counted = p.sum(-1) ** 2 / (p * p).sum(-1)
        self.assertTrue(16 < np.median(counted) < 256, np.median(counted))

    def test_bf16_queries_are_as_loud(self) -> None:
        floats = attend.loud(np.array([0.5, -0.25, 0.0], "f4"), "f32")
        bits = attend.loud((np.array([0.5, -0.25, 0.0], "f4").view("u4") >> 16).astype("u2"),
                           "bf16")
        self.assertEqual((bits.astype("u4") << 16).view("f4").tolist(), floats.tolist())


def parts_of(case: Case) -> Any:
    """The adapter's own, from the case's reference."""
    return case.compare.__self__._parts  # type: ignore[attr-defined]


def write_loops(case: Case, index: int) -> None:
    """The outputs by loops over numbers."""
    parts, rule = parts_of(case), case.compare.__self__._rule  # type: ignore[attr-defined]
    for sequence in range(parts.count):
        part = parts.part(index, sequence, list(range(parts.heads)))
        parts.output(index, sequence)[...] = plain_loops(part, rule)


class CpuPeers(unittest.TestCase):
    def test_numpy_computes_all_of_them(self) -> None:
        for family, row in CASES:
            for dtype in ("f32", "bf16"):
                with self.subTest(family=family.NAME, dtype=dtype, **row), \
                        mock.patch.object(numpy_attention, "BLOCK", 8):
                    case = case_of(family, row, dtype=dtype)
                    peer = numpy_attention.PEER.enter(case)[0][0]
                    self.assertLess(errors_after(case, peer).whole, case.tolerance)

    def test_quern_computes_all_of_them(self) -> None:
        import quern

        context = quern.Context(device="cpu", cache="")
        for family, row in CASES:
            with self.subTest(family=family.NAME, **row):
                case = case_of(family, row)
                for ours in family.ours(case, context, context, 0.0, {}, print)[0]:
                    self.assertLess(errors_after(case, ours).whole, case.tolerance)

    def test_a_product_is_a_yardstick_that_is_not_checked(self) -> None:
        from peers import quern_gemm

        class Context:
            tune = mock.Mock()

            def prepare(self, name: str, a: Any, b: Any, out: Any) -> Any:
                self.sizes = a.shape, b.shape, out.shape
                return mock.Mock(config="c")

        case = case_of(attention, {"s": "64", "hq": "2", "mask": "full"}, dtype="f32")
        peer, context = quern_gemm.GemmPeer(), Context()
        peer._context = context
        with mock.patch.object(quern_gemm, "SIDE", 16):
            found = peer.enter(case)[0][0]
        self.assertEqual(context.sizes, ((16, 8192), (16, 8192), (16, 16)))
        self.assertEqual(case.flops, 2 * 16 * 16 * 8192)
        outcome = contest.Outcome([], [])
        contest.poison(case.sets[0])
        self.assertIsNotNone(contest.admit(case, found, outcome))

    @needs_torch
    def test_torch_computes_what_it_can(self) -> None:
        from peers.torch_attention_cpu import PEER

        PEER.open("cpu", 1)
        for family, row in CASES:
            if family not in (attention, decode):
                continue
            with self.subTest(family=family.NAME, **row):
                case = case_of(family, row)
                found = [x for entry in PEER.enter(case) for x in entry]
                is_left_out = any(name in row for name in ("lengths", "window")) or "-" in row.get(
                    "kv", "")
                self.assertEqual(len(found), 0 if is_left_out else 1)
                for contestant in found:
                    self.assertLess(errors_after(case, contestant).whole, case.tolerance)


# ---- torch's on a GPU ---------------------------------------------------------------------------


def varlen_like(has_gqa: bool, has_widths: bool) -> Any:
    """torch.nn.attention.varlen.varlen_attn(), of a backend that may have less."""
    def varlen_attn(q: Any, k: Any, v: Any, cu_q: Any, cu_k: Any, max_q: int, max_k: int, *,
                    window_size: tuple[int, int]) -> Any:
        assert int((cu_q[1:] - cu_q[:-1]).max()) == max_q
        assert int((cu_k[1:] - cu_k[:-1]).max()) == max_k
        if (q.shape[1] != k.shape[1] and not has_gqa) or (
                v.shape[-1] != q.shape[-1] and not has_widths):
            raise RuntimeError("no kernel")
        o = q.new_zeros(*q.shape[:2], v.shape[-1])
        rule = attend.Rule(q.shape[-1] ** -0.5, window_size == (-1, 0))
        for (a, b), (c, d) in zip(zip(cu_q, cu_q[1:]), zip(cu_k, cu_k[1:])):
            part = attend.Part(q[a:b].double(), k[c:d].double(), v[c:d].double())
            o[a:b] = attend.attend(part, rule, 1 << 20).to(o.dtype)
        return o

    return varlen_attn


def sdpa_like(has_gqa: bool, has_widths: bool) -> Any:
    """scaled_dot_product_attention(), likewise."""
    def sdpa(q: Any, k: Any, v: Any, is_causal: bool, enable_gqa: bool = False) -> Any:
        if (enable_gqa and not has_gqa) or (v.shape[-1] != q.shape[-1] and not has_widths):
            raise RuntimeError("no kernel")
        assert enable_gqa or q.shape[1] == k.shape[1]
        o = q.new_zeros(*q.shape[:3], v.shape[-1])
        for each in range(q.shape[0]):
            part = attend.Part(*(x[each].transpose(0, 1).double() for x in (q, k, v)))
            rule = attend.Rule(q.shape[-1] ** -0.5, is_causal)
            o[each] = attend.attend(part, rule, 1 << 20).transpose(0, 1).to(o.dtype)
        return o

    return sdpa


@needs_torch
class TorchPeers(unittest.TestCase):
    def setUp(self) -> None:
        import torch
        import torch.nn.attention.varlen  # noqa: F401 (inside a patch it would go with it)

        self.arrays = HostTensors("cpu")
        self.patch("torch.cuda.synchronize")
        self.patch("torch.nn.attention.sdpa_kernel",
                   lambda backend: contextlib.nullcontext())
        self.assertTrue(torch)

    def patch(self, name: str, *value: Any) -> None:
        patched = mock.patch(name, *value)
        patched.start()
        self.addCleanup(patched.stop)

    def backend(self, has_gqa: bool, has_widths: bool) -> None:
        """What torch's functions are from here on."""
        self.patch("torch.nn.functional.scaled_dot_product_attention",
                   sdpa_like(has_gqa, has_widths))
        self.patch("torch.nn.attention.varlen.varlen_attn", varlen_like(has_gqa, has_widths))

    def entered(self, peer: Any, family: Any, row: dict[str, str]) -> list[Contestant]:
        """What the peer enters, checked."""
        case = case_of(family, row, self.arrays)
        found = [x for entry in peer.enter(case) for x in entry]
        for contestant in found:
            self.assertLess(errors_after(case, contestant).whole, case.tolerance)
        return found

    def test_each_call_is_made_in_the_first_form_that_its_backend_takes(self) -> None:
        from peers import torch_attention, torch_decode

        peers = {peer.name: peer for peer in torch_attention.PEERS}
        for has_gqa, has_widths in ((True, True), (False, False)):
            self.backend(has_gqa, has_widths)
            for family, row in CASES:
                if family is mla:
                    continue
                with self.subTest(gqa=has_gqa, family=family.NAME, **row):
                    peer = {attention: peers["flash"], extend: peers["dense"],
                            decode: torch_decode.PEER}[family]
                    found = self.entered(peer, family, row)
                    if "window" in row:
                        self.assertEqual(found, [])
                        continue
                    group = int(row["hq"]) // int(row.get("hkv", row["hq"]))
                    for contestant in found:
                        self.assertEqual("repeated" in contestant.detail,
                                         group > 1 and not has_gqa, contestant.detail)
                        self.assertEqual("widened" in contestant.detail,
                                         "dv" in row and not has_widths, contestant.detail)

    def test_decode_of_equal_lengths_offers_both_backends(self) -> None:
        from peers.torch_decode import PEER

        self.backend(True, True)
        rows = [row for family, row in CASES if family is decode]
        self.assertEqual([len(self.entered(PEER, decode, row)) for row in rows], [1, 2, 2])
        case = case_of(decode, {**rows[1], "kv_dtype": "e4m3"}, self.arrays)
        self.assertEqual(PEER.enter(case), [])

    def test_what_no_form_runs_is_said(self) -> None:
        from peers.torch_attention import PEERS

        def refuse(*_: Any, **__: Any) -> None:
            raise RuntimeError("no available kernel")

        self.patch("torch.nn.functional.scaled_dot_product_attention", refuse)
        with self.assertRaisesRegex(RuntimeError, "no available kernel"):
            PEERS[1].enter(case_of(attention, CASES[0][1], self.arrays))

    def test_mla_is_two_products_and_a_softmax(self) -> None:
        from peers.torch_mla import PEER

        for family, row in CASES:
            if family is mla:
                case = case_of(mla, row, self.arrays, dtype="bf16")
                found = PEER.enter(case)[0][0]
                self.assertLess(errors_after(case, found).whole, attention.PEER * case.tolerance)


# ---- Triton's -----------------------------------------------------------------------------------


def prefill_like(q: Any, k: Any, v: Any, o: Any, sinks: Any, borders: Any, k_cache: Any,
                 v_cache: Any, table: Any, prefixes: Any, most: int, pages_of: int, window: int,
                 scale: float, **more: Any) -> None:
    """triton_attention_kernels.prefill of all tiles."""
    import torch

    tokens = [x.reshape(-1, *x.shape[-2:]) for x in (q, k, v, o)]
    cuts = borders.tolist() if more["PACKED"] else [
        most * x for x in range(tokens[0].shape[0] // most + 1)]
    assert more["HQ"] // more["GROUP"] == k.shape[-2] and more["D"] + more["D2"] == q.shape[-1]
    assert more["DV"] == v.shape[-1] and more["BLOCK_M"] and more["BLOCK_N"]
    rule = attend.Rule(scale * math.log(2), more["CAUSAL"], window if more["WINDOW"] else 0)
    for sequence, (begin, end) in enumerate(zip(cuts, cuts[1:])):
        q, k, v = (x[begin:end] for x in tokens[:3])
        if more["PAGE"]:
            assert table.shape[1] == pages_of and k_cache.shape[1] == more["PAGE"]
            before = int(prefixes[sequence])
            k, v = (torch.cat([pages.tokens(cache, table[sequence], before), new])
                    for cache, new in ((k_cache, k), (v_cache, v)))
        part = attend.Part(q.double(), k.double(), v.double(),
                           sinks.double() if more["SINKS"] else None)
        tokens[3][begin:end] = attend.attend(part, rule, 1 << 20).to(o.dtype)


def left(found: Any, o: Any, parts: Any, splits: int) -> None:
    """What a part leaves: here all of it in the first, with weight 1."""
    if splits == 1:
        o.copy_(found.reshape(o.shape))
    else:
        parts.view(-1, splits, o.shape[-1])[:o.numel() // o.shape[-1], 0] = found.reshape(
            -1, o.shape[-1]).float()


def decode_like(q: Any, k: Any, v: Any, o: Any, parts: Any, logs: Any, table: Any, lengths: Any,
                pages_of: int, sequences: int, scale: float, **more: Any) -> None:
    """triton_attention_kernels.decode of all parts."""
    import torch

    assert table.shape == (sequences, pages_of) and k.shape[1] == more["PAGE"]
    assert more["BLOCK_H"] >= max(16, more["GROUP"]) and more["D"] == q.shape[-1]
    found = torch.stack([attend.attend(attend.Part(
        q[each][None].double(), *(pages.tokens(x, table[each], int(lengths[each])).double()
                                  for x in (k, v))), attend.Rule(scale * math.log(2)), 1 << 20)[0]
        for each in range(sequences)])
    left(found, o, parts, more["SPLITS"])


def latent_like(q: Any, c: Any, rope: Any, factors: Any, o: Any, parts: Any, logs: Any, table: Any,
                lengths: Any, pages_of: int, sequences: int, scale: float, **more: Any) -> None:
    """triton_attention_kernels.latent of all parts, rows found by their widths in elements."""
    import torch

    count = c.shape[0] * c.shape[1]
    rows = torch.arange(count)[:, None]

    def taken(array: Any, width: int, columns: Any) -> Any:
        flat = array.as_strided((array.untyped_storage().nbytes() // array.element_size()
                                 - array.storage_offset(),), (1,))
        return flat[rows * width + columns[None]].double()

    values = taken(c, more["ROW"], torch.arange(512))
    if more["FACTOR_ROW"]:
        values *= taken(factors, more["FACTOR_ROW"], torch.arange(512) // 128)
    cache = torch.cat([values, taken(rope, more["ROPE_ROW"], torch.arange(64))], 1)
    cache = cache.view(*c.shape[:2], 576)
    assert c.shape[1] == more["PAGE"] and table.shape == (sequences, pages_of)
    rule = attend.Rule(scale * math.log(2), True)
    found = []
    for each in range(sequences):
        seen = pages.tokens(cache, table[each], int(lengths[each]))[:, None]
        found.append(attend.attend(attend.Part(q[each].double(), seen, seen[..., :512]), rule,
                                   1 << 20))
    assert more["SQ"] == q.shape[1] and more["HQ"] == q.shape[2]
    left(torch.stack(found), o, parts, more["SPLITS"])


class Launched:
    """A kernel that stands in for one of Triton's under its autotuner."""

    def __init__(self, function: Any, **chosen: Any) -> None:
        self._function = function
        self.best_config = types.SimpleNamespace(kwargs=chosen, num_warps=4, num_stages=2)
        self.configs_timings, self.bench_time = {1: 0.1}, 0.5

    def __getitem__(self, grid: Any) -> Any:
        chosen = self.best_config.kwargs
        sizes = grid(chosen) if callable(grid) else grid
        assert all(size > 0 for size in sizes)
        return lambda *arguments, **more: self._function(*arguments, **more, **chosen)


def combine_like(parts: Any, logs: Any, o: Any, DV: int, SPLITS: int, BLOCK_S: int) -> None:
    """triton_attention_kernels.combine of what left() leaves."""
    o.copy_(parts.view(-1, SPLITS, DV)[:o.numel() // DV, 0].reshape(o.shape))


@needs_torch
class TritonPeers(unittest.TestCase):
    def setUp(self) -> None:
        self.arrays = HostTensors("cpu")
        found = types.ModuleType("stand-in")
        found.combine = Launched(combine_like)  # type: ignore[attr-defined]
        patched = mock.patch.dict(sys.modules, {"peers.triton_attention_kernels": found})
        importlib.import_module("torch")
        patched.start()
        self.addCleanup(patched.stop)

    def each(self, wanted: Any) -> Iterator[tuple[dict[str, str], Case]]:
        for family, row in CASES:
            if family in wanted:
                with self.subTest(family=family.NAME, **row):
                    yield row, case_of(family, row, self.arrays)

    def test_attention_and_extend_are_one_launch(self) -> None:
        from peers import triton_attention

        tuner = Launched(prefill_like, BLOCK_M=16, BLOCK_N=16)
        with mock.patch.object(triton_attention, "tuner_of", lambda width: tuner):
            for row, case in self.each((attention, extend)):
                found = triton_attention.PEER.enter(case)[0][0]
                self.assertLess(errors_after(case, found).whole, case.tolerance)
                self.assertEqual(found.detail, "BLOCK_M=16 BLOCK_N=16 warps=4 stages=2")

    def test_decode_and_mla_combine_their_parts(self) -> None:
        from peers import triton_decode, triton_mla

        for splits in (1, 3):
            one = Launched(decode_like, BLOCK_N=16, SPLITS=splits)
            other = Launched(latent_like, BLOCK_H=16, BLOCK_N=16, SPLITS=splits)
            with mock.patch.multiple(triton_decode, tuner_of=lambda _: one, cores_of=lambda _: 4,
                                     suitable_splits=lambda *_: [splits]), \
                    mock.patch.multiple(triton_mla, tuner_of=lambda *_: other,
                                        cores_of=lambda _: 4,
                                        suitable_splits=lambda *_: [splits]):
                for row, case in self.each((decode, mla)):
                    peer = (triton_mla if "sq" in case.params else triton_decode).PEER
                    found = peer.enter(case)[0][0]
                    self.assertLess(errors_after(case, found).whole, case.tolerance)

    def test_bytes_of_a_token_are_unpacked_as_they_were_packed(self) -> None:
        from peers import triton_mla

        row = {"b": "2", "kv": "9", "hq": "16", "page": "4", "kv_dtype": "e4m3"}
        case = case_of(mla, row, self.arrays, "cuda:0")
        one = Launched(latent_like, BLOCK_H=16, BLOCK_N=16, SPLITS=1)
        with mock.patch.multiple(triton_mla, tuner_of=lambda *_: one, cores_of=lambda _: 4):
            found = triton_mla.PEER.enter(case)[0][0]
            self.assertLess(errors_after(case, found).whole, case.tolerance)
        with self.assertRaisesRegex(MemoryError, "on a GPU alone"):
            case_of(mla, row, self.arrays)

    def test_parts_are_no_more_than_the_device_and_the_keys_bear(self) -> None:
        from peers.triton_decode import suitable_splits

        self.assertEqual(suitable_splits(256, 4096, 132), [1, 2, 4])
        self.assertEqual(suitable_splits(8, 1024, 132), [1, 2, 4, 8])
        self.assertEqual(suitable_splits(4, 65536, 132), [8, 16, 32, 64])
        self.assertEqual(suitable_splits(5000, 100, 132), [1])

    def test_tiles_of_mla_are_about_full_of_heads(self) -> None:
        from peers.triton_mla import tiles_for

        self.assertEqual({tile[0] for tile in tiles_for(8)}, {16})
        self.assertEqual({tile[0] for tile in tiles_for(20)}, {32})
        self.assertEqual({tile[0] for tile in tiles_for(128)}, {32, 64})

    def test_a_first_call_says_what_it_tuned(self) -> None:
        from peers import triton_attention

        tuner = Launched(prefill_like, BLOCK_M=16, BLOCK_N=16)
        case = case_of(attention, CASES[0][1], self.arrays)
        with mock.patch.object(triton_attention, "tuner_of", lambda width: tuner):
            figures = triton_attention.first_call(case, "")()
            self.assertLess(case.compare(0, 1).whole, case.tolerance)
            self.assertEqual((figures["candidates"], figures["tuning_s"]), (1, 0.5))

    def test_a_first_call_can_be_given_one_config_of_the_list(self) -> None:
        from peers import triton_attention, triton_decode

        class Config:
            num_warps, num_stages = 4, 2

            def __init__(self, **chosen: int) -> None:
                self.kwargs = chosen

            def all_kwargs(self) -> dict[str, int]:
                return self.kwargs

        def tuner(function: Any, *configs: Config) -> Any:
            kernel = mock.MagicMock()
            kernel.__getitem__.return_value = function
            return types.SimpleNamespace(fn=kernel, configs=configs)

        one = tuner(prefill_like, Config(BLOCK_M=16, BLOCK_N=16), Config(BLOCK_M=32, BLOCK_N=16))
        case = case_of(attention, CASES[0][1], self.arrays)
        with mock.patch.object(triton_attention, "tuner_of", lambda width: one):
            for given, config in (("any", "BLOCK_M=16 BLOCK_N=16 warps=4 stages=2"),
                                  ("BLOCK_M=32 BLOCK_N=16 warps=4 stages=2",) * 2):
                contest.poison(case.sets[0])
                self.assertEqual(triton_attention.first_call(case, given)(), {"config": config})
                self.assertLess(case.compare(0, 1).whole, case.tolerance)
                one.fn.__getitem__.assert_called_with((2 if given == "any" else 1, 4, 2))
            with self.assertRaisesRegex(ValueError, "config=BLOCK_M=8: must be one of BLOCK_M=16"):
                triton_attention.first_call(case, "BLOCK_M=8")
        other = tuner(decode_like, Config(BLOCK_N=16, SPLITS=3))
        case = case_of(decode, CASES[7][1], self.arrays)
        with mock.patch.multiple(triton_decode, tuner_of=lambda _: other, cores_of=lambda _: 4):
            with mock.patch.object(triton_decode, "suitable_splits", lambda *_: [3]):
                triton_decode.first_call(case, "any")()
        self.assertLess(case.compare(0, 1).whole, case.tolerance)

    def test_widths_are_powers_of_two_and_the_rest(self) -> None:
        from peers.triton_attention import columns_of, tiles_for

        self.assertEqual([columns_of(x) for x in (64, 96, 128, 192, 256)],
                         [(64, 0), (64, 32), (128, 0), (128, 64), (256, 0)])
        self.assertTrue(all(tiles_for(x) for x in (64, 96, 128, 192, 256)))


class Runs(unittest.TestCase):
    def test_a_run_of_each_family_makes_a_table_and_an_object(self) -> None:
        lines = {"attention": "s,hq,d,mask\n40,2,64,full causal\n",
                 "extend": "prefix,t,hq,d\n20,9,2,64\n", "decode": "b,kv,hq,d\n3,30,2,64\n",
                 "mla": "b,kv,hq\n2,30,16\n"}
        for family, text in lines.items():
            with tempfile.TemporaryDirectory() as folder:
                file, saved = Path(folder) / "tiny.csv", Path(folder) / "run.json"
                file.write_text(text, encoding="utf-8")
                done = subprocess.run(
                    [sys.executable, str(BENCH / "beside.py"), family, "--shapes", str(file),
                     "--tune", "0", "--rounds", "3", "--seconds", "0.2", "--peers", "numpy",
                     "--json", str(saved)],
                    text=True, capture_output=True, timeout=120, check=False)
                self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
                run = json.loads(saved.read_text(encoding="utf-8"))
            for row in run["rows"]:
                self.assertEqual([x["name"] for x in row["entries"]], ["quern", "numpy"])
                for each in row["entries"]:
                    self.assertLess(each["rel_err"], each["allowed"])


if __name__ == "__main__":
    unittest.main()
