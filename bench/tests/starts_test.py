#!/usr/bin/env python3
"""What starts.py measures is what it says: the processes' work, their checks, its table."""
from __future__ import annotations

import os
import pathlib
import sys
import tempfile
import unittest
from typing import Any
from unittest import mock

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "bench"), str(ROOT / "python")]
sys.dont_write_bytecode = True
if os.environ.get("QUERN_BUILD"):
    os.environ["QUERN_LIBRARY"] = str(pathlib.Path(os.environ["QUERN_BUILD"]) / "libquern.so.0")

from harness import start_child, starts  # noqa: E402  (after the path)
from harness.contest import Unavailable, Wrong  # noqa: E402
from harness.roof import shared_object  # noqa: E402
from peers import gemm, gemm_calls  # noqa: E402

SHAPE = {"m": "3", "n": "17", "k": "31", "dtype": "bf16"}


def found_row(rows: list[starts.Row], name: str) -> starts.Row:
    return next(row for row in rows if row.name == name)


class Starts(unittest.TestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.told: list[str] = []
        children = starts.Children("cpu", 1, pathlib.Path(folder.name))
        self.run_ = starts.Measurement(gemm, children, self.told.append, 0.5)

    def test_a_cold_process_compiles_and_a_warm_one_reads_what_it_left(self) -> None:
        with mock.patch.dict(starts.PROCESSES, cpu=2):
            cold, warm = self.run_.pair("quern", self.run_.job("quern", SHAPE))
        self.assertEqual([], self.run_.failed)
        self.assertEqual(["compiled"] * 2, [x["artifact"] for x in cold.figures])
        self.assertEqual(["disk"] * 2, [x["artifact"] for x in warm.figures])
        for figures in cold.figures + warm.figures:
            self.assertLess(0, figures["inner_s"])
            self.assertLess(figures["inner_s"], figures["outer_s"])

    def test_tuning_first_leaves_a_cache_that_a_warm_process_finds_tuned(self) -> None:
        job = self.run_.job("quern", SHAPE, tune_s=0.5)
        with mock.patch.dict(starts.PROCESSES, cpu=1):
            cold, warm = self.run_.pair("tuned", job)
        self.assertEqual([], self.run_.failed)
        self.assertLess(0, cold.figures[0]["candidates"])
        self.assertEqual("tuned", warm.figures[0]["config_from"])

    def test_without_a_budget_nobody_tunes(self) -> None:
        self.run_.tune_s = 0.0
        with mock.patch.dict(starts.PROCESSES, cpu=1):
            with mock.patch.dict(gemm.STARTS, cpu=[SHAPE]):
                starts.measure_first_calls(self.run_)
        self.assertEqual([], self.run_.failed)
        self.assertIsNone(found_row(self.run_.rows, "tuning").quern)
        row = found_row(self.run_.rows, "first call, warm cache, one config")
        self.assertLess(0, row.quern or 0)

    def test_a_wrong_output_is_a_failure(self) -> None:
        case = start_child.case_of(self.run_.job("quern", SHAPE))
        with self.assertRaisesRegex(Wrong, "WRONG, relative error nan"):
            start_child.checked(case, {})
        case.sets[0]["out"][...] = 0
        with self.assertRaisesRegex(Wrong, r"WRONG, relative error \d"):
            start_child.checked(case, {})

    def test_a_start_of_another_family_is_its_own_call(self) -> None:
        from peers import kda

        self.run_.adapter = kda
        shape = {"op": "decode", "n": "2", "h": "1", "k": "64", "v": "64"}
        with mock.patch.dict(starts.PROCESSES, cpu=1):
            cold, _ = self.run_.pair("decode", self.run_.job("quern", shape))
        self.assertEqual([], self.run_.failed)
        self.assertIn("kda_decode_cpu", cold.figures[0]["config"])
        self.assertLess(cold.figures[0]["rel_err"], 5e-3)

    def test_a_peer_that_takes_no_config_autotunes_whatever_the_budget(self) -> None:
        asked: list[dict[str, Any]] = []

        def run(script: str, cache: str, job: dict[str, Any], **more: str) -> dict[str, Any]:
            asked.append(job)
            return {"inner_s": 1.0, "outer_s": 2.0, "tuning_s": 0.0, "candidates": 3,
                    "config": "autotuned"}

        from peers import kda

        self.run_.adapter, self.run_.kind, self.run_.tune_s = kda, "cuda", 0.0
        with mock.patch.object(self.run_.children, "run", side_effect=run), \
                mock.patch.dict(starts.PROCESSES, cuda=1):
            found = starts.peer_starts(self.run_)
        self.assertEqual(["none", "", ""], [job["config"] for job in asked])
        self.assertEqual({"fla_delta_rule"}, {job["peer"] for job in asked})
        self.assertEqual({"tuned cold", "tuned warm"}, set(found))

    def test_a_start_that_did_something_else_is_said(self) -> None:
        start = starts.Start("warm", {}, False, [{"artifact": "compiled"}, {"artifact": "disk"}])
        starts.expect(self.run_, start, "artifact", "disk")
        self.assertEqual(["warm: artifact was compiled, not disk, in 1 of 2"], self.run_.failed)

    def test_a_kind_that_fails_leaves_its_line_and_empty_cells(self) -> None:
        job = self.run_.job("quern", SHAPE, device="nowhere")
        cold, warm = self.run_.pair("quern", job)
        self.assertEqual(1, len(self.run_.failed))
        self.assertIn("quern cold", self.run_.failed[0])
        row = starts.row_of("first call", "ms", "inner_s", (starts.worst([cold]), None))
        self.assertEqual((None, None), (row.quern, row.peer))
        self.assertEqual([], warm.figures)

    def test_the_slowest_shape_is_the_figure(self) -> None:
        quick, slow = (starts.Start(str(s), {}, True, [{"inner_s": s}]) for s in (0.1, 0.2))
        self.assertIs(slow, starts.worst([quick, slow, starts.Start("none", {}, True)]))

    def test_calls_from_c_and_from_python_and_their_difference_are_rows(self) -> None:
        try:
            shared_object("call_cost.so", str(self.run_.children.library))
        except Unavailable as why:
            self.skipTest(str(why))
        starts.measure_calls(self.run_)
        self.assertEqual([], self.run_.failed)
        rows = self.run_.rows
        c = found_row(rows, "quern_launch() from C").quern or 0
        python = found_row(rows, "Prepared() from Python").quern or 0
        over = found_row(rows, "  its overhead over C").quern or 0
        self.assertLess(0, c)
        self.assertAlmostEqual(python - c, over, delta=0.2 * python)
        for name in gemm_calls.ROWS:
            self.assertLess(0, found_row(rows, name).quern or 0)

    def test_memory_is_less_that_of_a_process_without_quern(self) -> None:
        warm = starts.Start("warm", self.run_.job("quern", SHAPE), False, [{"rss_kb": 1 << 20}])
        starts.measure_memory(self.run_, warm)
        row = found_row(self.run_.rows, "resident, warm, beyond Python")
        self.assertTrue(900 < (row.quern or 0) < 1074, row)


class Table(unittest.TestCase):
    def test_columns_align_and_what_was_not_measured_is_empty(self) -> None:
        rows: list[dict[str, Any]] = [
            vars(starts.Row("first", "ms", 12.34, 0.5, 4000.0, 12.0)), vars(starts.Row("no", "s"))]
        lines = starts.table({"peer": "triton", "rows": rows})
        self.assertEqual(1, len({len(line) for line in lines}), lines)
        self.assertEqual(["first", "12.3 +- 0.5", "4000 +- 12", "ms"],
                         [cell.strip() for cell in lines[2].strip("|").split("|")])
        self.assertEqual(["no", "", "", "s"],
                         [cell.strip() for cell in lines[3].strip("|").split("|")])


if __name__ == "__main__":
    unittest.main()
