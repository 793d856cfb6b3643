#!/usr/bin/env python3
"""The gated delta rule's adapter, its reference and its peers, beside a recurrence in plain loops.

FLA and FlashKDA are stood in for by functions that do what theirs are documented to do, so that it
is seen what they are handed and what is made of what they return; torch on the CPU is enough.
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
from harness.contest import Case, Contestant, Errors, check  # noqa: E402
from harness.errors import greater  # noqa: E402
from harness.shapes import BadOption  # noqa: E402
from peers import delta_rule, gdn, kda, numpy_delta_rule  # noqa: E402

HAS_TORCH = importlib.util.find_spec("torch") is not None
SPLIT_BY_FLA = 24  # tokens from which the stand-in splits a sequence
needs_torch = unittest.skipUnless(HAS_TORCH, "torch is not installed")
SMALL = {"h": "2", "hv": "4", "k": "8", "v": "4", "dtype": "f32"}
CASES: list[dict[str, str]] = [
    {"op": "prefill", "t": "9", "gate": "bounded", **SMALL},
    {"op": "prefill", "t": "12", "n": "3", "gate": "softplus", "layout": "kv", **SMALL},
    {"op": "prefill", "t": "9", "n": "3", "lengths": "2+6+1", "gate": "none", **SMALL},
    {"op": "decode", "n": "5", "gate": "bounded", **SMALL},
    {"op": "decode", "n": "3", "gate": "softplus", "layout": "kv", **SMALL},
]


class HostTensors(CudaArrays if HAS_TORCH else HostArrays):  # type: ignore[misc]
    """What a GPU's case is made with, on the CPU."""

    def free_bytes(self) -> int:
        return 1 << 30

    def sets_needed(self, bytes_per_set: int) -> int:
        return 2


def case_of(family: Any, row: dict[str, str], arrays: Arrays | None = None) -> Case:
    """A case of two sets."""
    arrays = arrays or HostArrays(pool=(1 << 16) + 43, most_sets=2)
    made: Case = family.make_case(family.params_of(row, "bf16"), "cpu", 1, arrays)
    return made


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def plain_loops(case: Case, index: int, calls: int = 1) -> tuple[Any, Any]:
    """o [t, hv, v] and states [n, hv, k, v] of an f32 set, a number at a time as the README of the
    family says it."""
    arrays, size, params = case.sets[index], delta_rule.sizes_of(case.params), case.params
    get = {name: np.asarray(array, "f8") for name, array in {**arrays.inputs}.items()}
    q, k = (get[name].reshape(size.t, size.h, size.k) for name in "qk")
    v = get["v"].reshape(size.t, size.hv, size.v)
    g = np.broadcast_to(get["g"].reshape(size.t, size.hv, -1), (size.t, size.hv, size.k))
    beta = get["beta"].reshape(size.t, size.hv)
    bias = np.broadcast_to(get.get("dt_bias", np.zeros((1, 1))), (size.hv, size.k))
    states = np.asarray(arrays["states"][arrays["slots"]] if arrays.inouts
                        else arrays["initial_state"], "f8")
    states = (states if params["layout"] == "kv" else states.swapaxes(2, 3)).copy()
    o = np.zeros((size.t, size.hv, size.v))

    def decay(token: int, head: int) -> Any:
        x = g[token, head] + bias[head]
        if params["gate"] == "none":
            return np.exp(g[token, head])
        rate = math.exp(get["A_log"][head])
        if params["gate"] == "softplus":
            return np.exp([-rate * math.log1p(math.exp(each)) for each in x])
        return np.exp([-5 * sigmoid(rate * each) for each in x])

    for _ in range(calls):
        token = 0
        for sequence, length in enumerate(size.lengths):
            for token in range(token, token + length):
                for head in range(size.hv):
                    of = head // (size.hv // size.h)
                    query, key = (row[token, of] / math.sqrt((row[token, of] ** 2).sum() + 1e-6)
                                  for row in (q, k))
                    state = np.diag(decay(token, head)) @ states[sequence, head]
                    x = sigmoid(beta[token, head]) * (v[token, head] - state.T @ key)
                    states[sequence, head] = state + np.outer(key, x)
                    o[token, head] = states[sequence, head].T @ query / math.sqrt(size.k)
            token += 1
    return o, states


class Oracle(Contestant):
    """Writes what plain_loops() finds, perhaps with something wrong in it."""

    name = "oracle"

    def __init__(self, case: Case, wrong: str = "") -> None:
        self._case, self._wrong = case, wrong

    def run(self, index: int) -> None:
        arrays, params = self._case.sets[index], self._case.params
        o, states = plain_loops(self._case, index)
        if params["layout"] == "vk":
            states = states.swapaxes(2, 3)
        arrays["o"][...] = o.reshape(arrays["o"].shape)
        if arrays.inouts:
            arrays["states"][arrays["slots"]] = states
        else:
            arrays["final_state"][...] = states
        if self._wrong == "state":
            arrays["states" if arrays.inouts else "final_state"][
                arrays["slots"][0] if arrays.inouts else 0, 1] = 0
        if self._wrong == "slot":
            unused = set(range(len(arrays["states"]))) - set(arrays["slots"].tolist())
            arrays["states"][unused.pop(), 0, 0, 0] += 1e-3
        if self._wrong == "o":
            arrays["o"].reshape(-1)[-1] += 1


class Shapes(unittest.TestCase):
    def test_every_set_can_be_read(self) -> None:
        for family in (kda, gdn):
            for name in shapes.sets(family.NAME):
                found = shapes.read(shapes.find(family.NAME, name), family.COLUMNS,
                                    lambda line: family.params_of(line, "bf16"))
                labels = [family.label(params) for params in found]
                self.assertEqual(len(labels), len(set(labels)), labels)
                self.assertEqual({x for p in found for x in family.groups(p)}, set(family.GROUPS))

    def test_what_cannot_be_is_named_with_what_may(self) -> None:
        row = {"op": "prefill", "t": "8", "h": "2"}
        for more, said in (({"op": "train"}, "op=train: must be one of prefill decode"),
                           ({"gate": "hard"}, "gate=hard: must be one of bounded softplus none"),
                           ({"t": "0"}, "t=0: must be a whole number"),
                           ({"hv": "3"}, "hv=3: must be a multiple of h=2"),
                           ({"n": "3"}, "t=8: must be a multiple of n=3"),
                           ({"n": "2", "lengths": "3+6"}, r"lengths=3\+6: must be n=2 whole"),
                           ({"n": "2", "lengths": "8"}, "lengths=8: must be n=2 whole"),
                           ({"dtype": "i8"}, "dtype=i8: must be one of"),
                           ({"op": "decode", "n": "2"}, "op=decode: t=8 and lengths= must")):
            with self.assertRaisesRegex(BadOption, said):
                kda.params_of({**row, **more}, "bf16")

    def test_work_is_counted_as_the_figures_count_it(self) -> None:
        params = kda.params_of({"op": "prefill", "t": "100", "h": "3"}, "bf16")
        self.assertEqual(delta_rule.flops_of(params), 152064 * 300)
        decode = kda.params_of({"op": "decode", "n": "64", "h": "32"}, "bf16")
        states = 2 * 64 * 32 * 128 * 128 * 4
        self.assertTrue(states < delta_rule.bytes_of(decode) < 1.02 * states)

    def test_what_does_not_fit_is_refused(self) -> None:
        arrays = HostArrays()
        with mock.patch.object(arrays, "free_bytes", return_value=1 << 20):
            with self.assertRaisesRegex(MemoryError, "MiB may be taken"):
                case_of(kda, {"op": "decode", "n": "64", "h": "8"}, arrays)


class Reference(unittest.TestCase):
    def each(self) -> Iterator[Case]:
        for family in (kda, gdn):
            for row in CASES:
                with self.subTest(family=family.NAME, **row):
                    yield case_of(family, row)

    def checked(self, case: Case, contestant: Contestant) -> Errors:
        def compute() -> None:
            for index in contest.ends_of(case):
                contestant.run(index)

        return check(case, contestant, compute)

    def test_it_is_the_recurrence(self) -> None:
        for case in self.each():
            self.assertLess(self.checked(case, Oracle(case)).whole, 1e-6)

    def test_a_long_sequence_in_parts_is_the_same(self) -> None:
        for parts in (1, 4, 5, 23, 40):
            with mock.patch.multiple(delta_rule, LONG=1, PARTS=parts):
                case = case_of(kda, {**CASES[0], "t": "23"})
                self.assertLess(self.checked(case, Oracle(case)).whole, 1e-6)

    def test_calls_in_place_go_on_from_each_other(self) -> None:
        case = case_of(kda, CASES[3])
        oracle = Oracle(case)
        case.restore(0)
        for calls in (1, 2, 3):
            oracle.run(0)
            self.assertLess(case.compare(0, calls).whole, 1e-6)
        self.assertGreater(case.compare(0, 2).whole, case.tolerance)
        case.restore(0)
        oracle.run(0)
        self.assertLess(case.compare(0, 1).whole, 1e-6)

    def test_one_wrong_state_or_number_is_caught(self) -> None:
        for case in self.each():
            for wrong in ("state", "o"):
                with self.assertRaisesRegex(contest.Wrong, "WRONG"):
                    self.checked(case, Oracle(case, wrong))

    def test_a_nan_in_one_of_two_outputs_is_caught(self) -> None:
        nan, zero = Errors(math.nan, math.nan), Errors(0.0, 1.0)
        for found in (greater(nan, zero), greater(zero, nan)):
            self.assertTrue(all(map(math.isnan, found)))
        self.assertEqual(greater(Errors(2.0, 1.0), Errors(1.0, 3.0)), Errors(2.0, 3.0))

    def test_a_slot_that_is_not_named_keeps_its_bits(self) -> None:
        for case in self.each():
            if case.sets[0].inouts:
                with self.assertRaisesRegex(contest.Wrong, "relative error inf"):
                    self.checked(case, Oracle(case, "slot"))

    def test_what_is_not_written_is_wrong(self) -> None:
        case = case_of(kda, CASES[0])
        with self.assertRaisesRegex(contest.Wrong, "nan"):
            self.checked(case, Contestant.__new__(Silent))

    def test_numpy_computes_it(self) -> None:
        for case in self.each():
            peer = numpy_delta_rule.PEER.enter(case)[0][0]
            self.assertLess(self.checked(case, peer).whole, case.tolerance)

    def test_numpy_rounds_to_nearest(self) -> None:
        values = np.array([1 + 2 ** -8, 1 + 3 * 2 ** -8, -1.0], "f4")
        bits = numpy_delta_rule.bits_of(values, "bf16")
        self.assertEqual(bits.tolist(), [0x3F80, 0x3F82, 0xBF80])

    def test_quern_computes_it(self) -> None:
        import quern

        context = quern.Context(device="cpu", cache="")
        for family, row in ((kda, {"op": "prefill", "t": "70", "n": "2", "lengths": "3+67",
                                   "h": "1", "k": "64", "v": "64"}),
                            (gdn, {"op": "decode", "n": "3", "h": "1", "hv": "2", "k": "64",
                                   "v": "64", "gate": "softplus", "layout": "kv"})):
            case = case_of(family, row)
            for ours in family.ours(case, context, context, 0.0, {}, print)[0]:
                self.assertLess(self.checked(case, ours).whole, case.tolerance)


class Silent(Contestant):
    """Computes nothing."""

    def run(self, index: int) -> None:
        pass


# ---- FLA and FlashKDA -------------------------------------------------------------------------


def fla_like(is_scalar: bool, q: Any, k: Any, v: Any, g: Any, beta: Any, scale: float,
             initial_state: Any, cu_seqlens: Any = None, lower_bound: float | None = None,
             A_log: Any = None, dt_bias: Any = None, state_v_first: bool = False, **more: Any
             ) -> tuple[Any, Any]:
    """(o, states) of [batch, tokens, heads, ...], in f64."""
    import torch
    from peers import recurrence

    assert more["use_qk_l2norm_in_kernel"] and more["use_beta_sigmoid_in_kernel"]
    assert more["use_gate_in_kernel"] and g.shape[2] == v.shape[2]
    batch, length, heads = v.shape[:3]
    g = g[..., None] if is_scalar else g
    rows = [x.double().reshape(batch * length, *x.shape[2:]) for x in (q, k, v, g, beta)]
    q, k = (recurrence.spread(recurrence.normalised(torch, x), heads) for x in rows[:2])
    gate = "softplus" if lower_bound is None else "bounded"
    decay = recurrence.decays(torch, gate, rows[3] + dt_bias.double().view(heads, -1),
                              A_log.double(), lower_bound or 0.0)
    state = initial_state.double()
    state = state.swapaxes(2, 3).clone() if state_v_first else state.clone()
    starts, lengths = [x * length for x in range(batch)], [length] * batch
    if cu_seqlens is not None:
        borders = cu_seqlens.tolist()
        starts, lengths = borders[:-1], [b - a for a, b in zip(borders, borders[1:])]
    o = torch.empty_like(rows[2])
    for place, (start, count) in enumerate(zip(starts, lengths)):
        tokens = recurrence.Tokens(q, k, rows[2], decay, rows[4].sigmoid())
        recurrence.run(tokens, [start], [count], state[place:place + 1], scale, o)
    state = state.swapaxes(2, 3) if state_v_first else state
    return o.reshape(v.shape).to(v.dtype), state.float()


def pooled(is_scalar: bool, initial_state: Any, ssm_state_indices: Any, inplace_final_state: bool,
           out: Any, **more: Any) -> tuple[Any, Any]:
    """fla_like() in a pool of states."""
    assert inplace_final_state
    slots = ssm_state_indices.long()
    o, states = fla_like(is_scalar, initial_state=initial_state[slots], **more)
    initial_state[slots] = states
    out.copy_(o)
    return out, initial_state


def flash_like(q: Any, k: Any, v: Any, g: Any, beta: Any, scale: float, out: Any, *,
               final_state: Any, **more: Any) -> None:
    """flash_kda.fwd()."""
    assert more["dt_bias"].shape == (v.shape[2], 128)
    o, states = fla_like(False, q, k, v, g, beta, scale, state_v_first=True,
                         use_qk_l2norm_in_kernel=True, use_beta_sigmoid_in_kernel=True,
                         use_gate_in_kernel=True, **more)
    out.copy_(o)
    final_state.copy_(states)


def is_splitting(cu_seqlens: Any = None, **arguments: Any) -> bool:
    """Whether FLA's IntraCardCPBackend would split a sequence."""
    import torch

    return (os.environ.get("FLA_INTRACARD_CP", "0") != "0" and torch.is_inference_mode_enabled()
            and cu_seqlens is not None and bool((cu_seqlens.diff() >= SPLIT_BY_FLA).any()))


def modules() -> dict[str, Any]:
    """What sys.modules has in place of FLA's and FlashKDA's."""
    def module(**functions: Any) -> Any:
        made = types.ModuleType("stand-in")
        vars(made).update(functions)
        return made

    def named(name: str, is_scalar: bool, function: Any = fla_like) -> Any:
        def call(**arguments: Any) -> Any:
            if is_splitting(**arguments):
                sys.modules["fla.ops.common.intracard_cp"].intracard_pre_scan()
            return function(is_scalar, **arguments)

        call.__name__ = name
        return call

    return {"fla": module(__version__="0"), "fla.ops": module(),
            "fla.ops.kda": module(chunk_kda=named("chunk_kda", False),
                                  fused_recurrent_kda=named("fused_recurrent_kda", False)),
            "fla.ops.kda.fused_recurrent": module(
                fused_recurrent_kda_fwd=named("fused_recurrent_kda_fwd", False, pooled)),
            "fla.ops.common": module(),
            "fla.ops.common.intracard_cp": module(intracard_pre_scan=lambda: None),
            "fla.ops.gated_delta_rule": module(
                chunk_gated_delta_rule=named("chunk_gated_delta_rule", True),
                fused_recurrent_gated_delta_rule=named("fused_recurrent", True)),
            "flash_kda": module(fwd=flash_like)}


@needs_torch
class Peers(unittest.TestCase):
    def setUp(self) -> None:
        importlib.import_module("torch")  # for good: what is imported inside a patch goes with it
        self.arrays = HostTensors("cpu")
        patched = mock.patch.dict(sys.modules, modules())
        patched.start()
        self.addCleanup(patched.stop)

    def entered(self, peer: Any, family: Any, row: dict[str, str]) -> tuple[Case, list[Any]]:
        case = case_of(family, {"k": "16", "v": "16", **row}, self.arrays)
        return case, [x for entry in peer.enter(case) for x in entry]

    def assert_right(self, case: Case, contestant: Contestant) -> None:
        def compute() -> None:
            for _ in range(2):
                for index in contest.ends_of(case):
                    contestant.run(index)

        errors = check(case, contestant, compute, calls=2)
        self.assertLess(errors.whole, 2.5e-3, contestant.detail)

    def test_fla_is_handed_what_its_functions_take(self) -> None:
        from peers.fla_delta_rule import PEER

        wanted = {"prefill": 1, "decode": 2}
        for op, more in (("prefill", {"t": "12", "n": "2", "gate": "bounded"}),
                         ("prefill", {"t": "9", "n": "3", "lengths": "2+6+1", "gate": "softplus"}),
                         ("prefill", {"t": "8", "gate": "softplus", "layout": "kv"}),
                         ("decode", {"n": "5", "gate": "bounded"})):
            with self.subTest(op=op, **more):
                case, found = self.entered(PEER, kda, {"op": op, "h": "2", "hv": "4", **more})
                self.assertEqual(len(found), wanted[op])
                for contestant in found:
                    self.assert_right(case, contestant)

    def test_fla_computes_gdn_but_with_a_bounded_gate(self) -> None:
        from peers.fla_delta_rule import PEER

        for op, more in (("prefill", {"t": "12", "n": "2"}), ("decode", {"n": "3"})):
            row = {"op": op, "h": "1", "hv": "2", **more}
            case, found = self.entered(PEER, gdn, {**row, "gate": "softplus"})
            self.assertEqual(len(found), 1)
            self.assert_right(case, found[0])
            self.assertEqual(self.entered(PEER, gdn, {**row, "gate": "bounded"})[1], [])

    def test_a_long_sequence_is_also_offered_to_fla_as_one_that_it_may_split(self) -> None:
        from peers import fla_delta_rule

        patched = mock.patch.object(fla_delta_rule, "SPLIT_FROM", 20)
        with patched, mock.patch.dict(os.environ, FLA_INTRACARD_CP="0"):
            for family in (kda, gdn):
                row = {"op": "prefill", "t": "30", "h": "2", "gate": "softplus"}
                case, (plain, split) = self.entered(fla_delta_rule.PEER, family, row)
                for contestant, scans in ((plain, 0), (split, 2)):
                    with fla_delta_rule.scans() as seen:
                        for index in (0, 1):
                            contestant.run(index)
                    self.assertEqual(len(seen), scans)
                    self.assert_right(case, contestant)
                self.assertEqual(os.environ["FLA_INTRACARD_CP"], "0")
                self.assertIn("the sequence split (FLA_INTRACARD_CP=1)", split.detail)
                self.assertIn("compiled side by side", plain.first_how)
            for more in ({"t": "19"}, {"t": "40", "n": "2"}, {"t": "40", "n": "2",
                                                              "lengths": "30+10"}):
                found = self.entered(fla_delta_rule.PEER, kda, {**row, **more})[1]
                self.assertEqual(len(found), 1)
        with mock.patch.dict(os.environ):
            os.environ.pop("FLA_INTRACARD_CP", None)
            with fla_delta_rule.splitting():
                self.assertEqual(os.environ["FLA_INTRACARD_CP"], "1")
            self.assertNotIn("FLA_INTRACARD_CP", os.environ)

    def test_where_fla_cannot_split_a_line_says_so_and_the_ordinary_call_plays(self) -> None:
        from peers import fla_delta_rule

        def refuse() -> None:
            raise RuntimeError("no graph\nfor this")

        clock = mock.Mock(noise=lambda: 0.0, turn=lambda each: 1.0, screen=lambda each: 1.0)
        scan = sys.modules["fla.ops.common.intracard_cp"]
        for t, function, said in (("22", scan.intracard_pre_scan, "FLA does not split this"),
                                  ("30", refuse, "RuntimeError: no graph for this")):
            with mock.patch.object(fla_delta_rule, "SPLIT_FROM", 20), \
                    mock.patch.object(scan, "intracard_pre_scan", function):
                case = case_of(kda, {"op": "prefill", "t": t, "h": "1", "k": "16", "v": "16"},
                               self.arrays)
                outcome = contest.hold(case, fla_delta_rule.PEER.enter(case), clock,
                                       contest.Limits(0.1, 3))
            self.assertEqual([x.contestant.detail for x in outcome.players], ["chunk_kda"])
            self.assertEqual(len(outcome.left_out), 1)
            self.assertRegex(outcome.left_out[0], rf"^fla \(chunk_kda, the sequence split.*{said}")

    def test_a_first_call_of_fla_is_right_and_says_what_it_tuned(self) -> None:
        from peers import fla_delta_rule

        class Tuner:
            bench_time, configs_timings = 1.5, {1: 0.1, 2: 0.2}

        kept = Tuner()
        found = {"triton.runtime.autotuner": mock.Mock(Autotuner=Tuner)}
        case = case_of(kda, {"op": "prefill", "t": "8", "h": "1", "k": "16", "v": "16"},
                       self.arrays)
        with mock.patch.dict(sys.modules, found):
            figures = fla_delta_rule.first_call(case, "")()
        self.assertLess(case.compare(0, 1).whole, case.tolerance)
        self.assertEqual((figures["candidates"], figures["tuning_s"]), (2, kept.bench_time))
        self.assertEqual(fla_delta_rule.first_call(case, "none")(), {})

    def test_flash_kda_computes_what_it_can(self) -> None:
        from peers.flash_kda_peer import PEER

        row = {"op": "prefill", "t": "6", "n": "2", "h": "1", "k": "128", "v": "128"}
        case, found = self.entered(PEER, kda, {**row, "lengths": "2+4"})
        self.assert_right(case, found[0])
        for more in ({"gate": "softplus"}, {"hv": "2"}, {"layout": "kv"}, {"k": "64"}):
            self.assertEqual(self.entered(PEER, kda, {**row, **more})[1], [])

    def test_without_fla_a_line_says_what_it_needs(self) -> None:
        from peers.fla_delta_rule import PEER

        import torch

        with mock.patch.object(torch.cuda, "is_available", return_value=True), \
                mock.patch.object(torch.cuda, "set_device"), \
                mock.patch.dict(sys.modules, {"fla.ops.kda": None}):
            with self.assertRaisesRegex(contest.Unavailable, "needs fla-core, einops and"):
                PEER.open("cuda:0", 1)


class SideBySide(unittest.TestCase):
    def test_candidates_are_compiled_before_they_are_timed(self) -> None:
        from peers.triton_compile import side_by_side

        done: list[Any] = []

        class Autotuner:
            nargs = {"x": 1, "y": 2}
            fn = mock.Mock(run=lambda *args, **kwargs: done.append((args, kwargs)))

            def prune_configs(self, kwargs: Any) -> list[Any]:
                return [mock.Mock(all_kwargs=lambda: {"B": 8}), mock.Mock(all_kwargs=dict)]

        mode = mock.Mock(side_effect=lambda pool, ignore_errors: contextlib.nullcontext())
        found = {"triton.runtime.autotuner": mock.Mock(Autotuner=Autotuner),
                 "triton.runtime._async_compile": mock.Mock(AsyncCompileMode=mode)}
        plain = Autotuner.prune_configs
        with mock.patch.dict(sys.modules, found), side_by_side():
            self.assertEqual(len(Autotuner().prune_configs({"grid": 3, "warmup": False})), 2)
        self.assertEqual(done, [((1, 2), {"grid": 3, "warmup": True, "B": 8}),
                                ((1, 2), {"grid": 3, "warmup": True})])
        self.assertIs(Autotuner.prune_configs, plain)

    def test_without_triton_nothing_is_changed(self) -> None:
        from peers.triton_compile import side_by_side

        with mock.patch.dict(sys.modules, {"triton.runtime._async_compile": None}), side_by_side():
            pass


class Runs(unittest.TestCase):
    def test_a_run_of_each_family_makes_a_table_and_an_object(self) -> None:
        for family in ("kda", "gdn"):
            with tempfile.TemporaryDirectory() as folder:
                file, saved = Path(folder) / "tiny.csv", Path(folder) / "run.json"
                file.write_text("op,t,n,h,hv,k,v,gate\nprefill,40,1,1,2,64,64,softplus\n"
                                "decode,,3,1,2,64,64,softplus\n", encoding="utf-8")
                done = subprocess.run(
                    [sys.executable, str(BENCH / "beside.py"), family, "--shapes", str(file),
                     "--tune", "0", "--rounds", "3", "--seconds", "0.2", "--json", str(saved)],
                    text=True, capture_output=True, timeout=120, check=False)
                self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
                run = json.loads(saved.read_text(encoding="utf-8"))
            self.assertEqual([row["groups"] for row in run["rows"]], [["prefill"], ["decode"]])
            for row in run["rows"]:
                self.assertEqual([x["name"] for x in row["entries"]], ["quern", "numpy"])
                for each in row["entries"]:
                    self.assertLess(each["rel_err"], each["allowed"])
                    self.assertLess(each["row_err"], contest.ROW * each["allowed"])


if __name__ == "__main__":
    unittest.main()
