#!/usr/bin/env python3
"""The CPU's peers beside float64 sums. One that is not installed is skipped, with its own words."""
from __future__ import annotations

import itertools
import os
import pathlib
import sys
import tempfile
import unittest
from typing import Any
from unittest import mock

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
sys.dont_write_bytecode = True

import numpy as np  # noqa: E402  (after the path)

from harness.contest import (ArraySet, Case, Contestant, Errors, Peer, Unavailable,  # noqa: E402
                             poison)  # noqa: E402
from peers import mkl, native, onednn, openblas  # noqa: E402

SHAPES = [(1, 1, 1, 1), (1, 300, 77, 1), (7, 33, 65, 1), (64, 96, 128, 1), (3, 17, 5, 4),
          (1, 40, 31, 3)]
TOLERANCE = {"f32": 3e-6, "bf16": 5e-3}
PEERS: list[Peer] = [*openblas.PEERS, mkl.PEER, onednn.PEER]
SEED = int(os.environ.get("QUERN_SEED", 0)) or int.from_bytes(os.urandom(4), "little")
RANDOM = np.random.default_rng(SEED)


def floats(array: Any, dtype: str) -> Any:
    """bf16's bits are the upper half of an f32's."""
    wide = (array.astype(np.uint32) << 16).view(np.float32) if dtype == "bf16" else array
    return wide.astype(np.float64)


def random(shape: tuple[int, ...], dtype: str) -> Any:
    """Fresh normal numbers."""
    values = RANDOM.standard_normal(shape, dtype=np.float32)
    return mkl.rounded(values) if dtype == "bf16" else values


def make_case(shape: tuple[int, int, int, int], dtype: str) -> Case:
    """Two sets of random arrays."""
    m, n, k, batch = shape
    lead = (batch,) if batch > 1 else ()
    kind = np.uint16 if dtype == "bf16" else np.float32
    sets = [ArraySet({"a": random((*lead, m, k), dtype), "b": random((*lead, n, k), dtype)},
                     {"out": np.zeros((*lead, m, n), kind)}) for _ in range(2)]
    params: dict[str, Any] = {"m": m, "n": n, "k": k, "batch": batch, "dtype": dtype}

    def compare(index: int, calls: int) -> Errors:
        a, b = (floats(sets[index][name], dtype) for name in "ab")
        wanted = a @ np.swapaxes(b, -1, -2)
        scale = np.abs(a) @ np.swapaxes(np.abs(b), -1, -2)
        worst = float((np.abs(floats(sets[index]["out"], dtype) - wanted) / scale).max())
        return Errors(worst, worst)

    return Case(f"{shape} {dtype} (QUERN_SEED={SEED})", params, "cpu", 2, 0, 0, sets,
                TOLERANCE[dtype], compare)


class PeerTest(unittest.TestCase):
    def assert_right(self, case: Case, entry: Contestant) -> None:
        for index, arrays in enumerate(case.sets):
            poison(arrays)
            entry.run(index)
            entry.deliver(index)
            self.assertLessEqual(case.compare(index, 1).whole, case.tolerance,
                                 f"{case.label}: {entry.name} {entry.detail}")

    def opened(self, peer: Any) -> Any:
        try:
            peer.open("cpu", 2)
        except Unavailable as why:
            self.skipTest(f"{peer.name}: {why}")
        return peer

    def assert_all_right(self, peer: Any, wanted: dict[str, list[str]]) -> None:
        """Every alternative of every entry, and that the entries are called so, by dtype."""
        self.opened(peer)
        for shape, dtype in itertools.product(SHAPES, wanted):
            case = make_case(shape, dtype)
            entries = peer.enter(case)
            self.assertEqual([entry[0].name for entry in entries], wanted[dtype])
            for alternative in itertools.chain(*entries):
                self.assert_right(case, alternative)
                self.assertEqual(alternative.against, "quern prepacked" if
                                 "prepacked" in alternative.name else "quern")
                alternative.close()
                alternative.close()

    def test_openblas_is_right_with_every_core_type(self) -> None:
        self.assert_all_right(openblas.PEERS[0], {"f32": ["openblas"], "bf16": []})

    def test_openblas_of_numpy_is_right_with_every_core_type(self) -> None:
        self.assert_all_right(openblas.PEERS[1], {"f32": ["openblas-numpy"], "bf16": []})

    def test_mkl_is_right_and_says_where_its_output_is_f32(self) -> None:
        self.assert_all_right(mkl.PEER, {
            "f32": ["mkl", "mkl prepacked"],
            "bf16": ["mkl (f32 out)", "mkl prepacked (f32 out)"]})

    def test_onednn_is_right_as_it_lies_and_prepacked(self) -> None:
        names = ["onednn", "onednn prepacked"]
        self.assert_all_right(onednn.PEER, {"f32": names, "bf16": names})

    def test_mkl_does_not_hide_a_stale_output(self) -> None:
        case = make_case((4, 8, 16, 1), "bf16")
        entry = self.opened(mkl.PEER).enter(case)[0][0]
        self.assert_right(case, entry)
        case.sets[0]["a"][...] = random(case.sets[0]["a"].shape, "bf16")
        self.assertGreater(case.compare(0, 1).whole, case.tolerance)
        entry.deliver(0)
        self.assertTrue(np.isnan(floats(case.sets[0]["out"], "bf16")).all())
        self.assert_right(case, entry)

    def test_a_core_type_that_is_given_is_the_only_one(self) -> None:
        if not openblas.cores_of(openblas.cpu_features()):
            self.skipTest("no core type to choose from")
        peer = openblas.OpenBlas("openblas", openblas.find_system)
        with mock.patch.dict(os.environ, {"OPENBLAS_CORETYPE": "Haswell"}):
            self.opened(peer)
            self.assertEqual(os.environ["OPENBLAS_CORETYPE"], "Haswell")
        self.assertRegex(peer.version(), r"^OpenBLAS [0-9.]+ \(Haswell\)$")

    def test_copies_and_settings_are_gone_after_loading(self) -> None:
        with tempfile.TemporaryDirectory() as folder, \
                mock.patch.object(tempfile, "tempdir", folder):
            before = dict(os.environ)
            peer = self.opened(openblas.OpenBlas("openblas", openblas.find_system))
            self.assertEqual(os.listdir(folder), [])
            self.assertEqual(dict(os.environ), before)
        case = make_case((5, 6, 7, 1), "f32")
        self.assert_right(case, peer.enter(case)[0][0])

    def test_core_types_follow_the_instructions(self) -> None:
        self.assertEqual(openblas.cores_of(frozenset()), [])
        self.assertEqual(openblas.cores_of(openblas.AVX2), ["Haswell", "Zen"])
        self.assertEqual(openblas.cores_of(openblas.AVX512), ["Haswell", "Zen", "SkylakeX"])

    def test_another_device_is_unavailable(self) -> None:
        for peer in PEERS:
            with self.assertRaisesRegex(Unavailable, "for the CPU, not for cuda:0"):
                peer.open("cuda:0", 1)

    def test_a_missing_library_says_where_it_was_sought(self) -> None:
        with self.assertRaisesRegex(Unavailable, "no Nothing: libnothing.so.9 in /nowhere, the "):
            native.load("Nothing", ["libnothing.so.9"], ["/nowhere"])

    def test_a_missing_function_names_itself(self) -> None:
        library, path = native.load("libm", ["libm.so.6"])
        self.assertTrue(os.path.isabs(path), path)
        with self.assertRaisesRegex(Unavailable, "libm.so.6 lacks no_such_function"):
            native.symbol(library, "no_such_function")

    def test_an_array_with_gaps_is_refused(self) -> None:
        with self.assertRaisesRegex(ValueError, "must be contiguous"):
            native.address(np.zeros((4, 4), np.float32)[:, ::2])

    def test_an_unsupported_dtype_enters_nothing(self) -> None:
        case = make_case((2, 3, 4, 1), "f32")
        case.params["dtype"] = "f16"
        for peer in PEERS:
            self.assertEqual(peer.enter(case), [])


if __name__ == "__main__":
    unittest.main()
