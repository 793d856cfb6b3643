"""bench/beside.py and its harness on the CPU, and without a device where none is needed."""
from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path
from typing import Any
from unittest import mock
from weakref import WeakKeyDictionary

BENCH = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(BENCH))
if os.environ.get("QUERN_BUILD"):
    os.environ["QUERN_LIBRARY"] = str(Path(os.environ["QUERN_BUILD"]) / "libquern.so.0")

import beside  # noqa: E402 (the path comes first)
from harness import clock_cpu, figures, report, rows, shapes  # noqa: E402
from harness.arrays import HostArrays  # noqa: E402
from harness.contest import (ArraySet, Case, Contestant, Errors, Limits,  # noqa: E402
                             Outcome, Player, Wrong, check, hold, require)
from harness.errors import errors_of  # noqa: E402
from harness.shapes import BadOption  # noqa: E402
from peers import gemm  # noqa: E402


class FakeClock:
    """Takes the seconds that each contestant has, one a turn; remembers the order."""

    def __init__(self, noise: list[float] | None = None) -> None:
        self.order: list[str] = []
        self.warmed: list[str] = []
        self._noise = [0.0, *(noise or [])]

    def warm(self, contestant: Any) -> None:
        self.warmed.append(contestant.name)
        if contestant.chills:
            raise RuntimeError("no memory for a graph")

    def turn(self, contestant: Any) -> float:
        self.order.append(contestant.name)
        if contestant.breaks:
            raise RuntimeError("no graph")
        return float(contestant.seconds)

    def screen(self, contestant: Any) -> float:
        return float(contestant.seconds)

    def noise(self) -> float:
        return self._noise.pop(0) if self._noise else 0.0


class Fake(Contestant):
    """Writes a value into the output; fails, is not to be warmed, or breaks when it is timed, where
    told so."""

    def __init__(self, case: Case, name: str, value: float = 1.0, seconds: float = 1.0,
                 role: str = "peer", fails: bool = False, breaks: bool = False,
                 chills: bool = False) -> None:
        self.name, self.detail, self.role = name, "", role
        self.computes = role != "reader"
        self.against = name if role == "ours" else (
            "quern prepacked" if "prepacked" in name else "quern")
        self.seconds, self.breaks, self.chills = seconds, breaks, chills
        self.closed = 0
        self._case, self._value, self._fails = case, value, fails

    def run(self, index: int) -> None:
        if self._fails:
            raise ValueError("not  this\nshape")
        self._case.sets[index]["out"][:] = self._value

    def close(self) -> None:
        self.closed += 1


def fake_case() -> Case:
    """Two sets; the right output is all ones."""
    import numpy

    sets = [ArraySet({"a": numpy.ones(4, "f4"), "b": numpy.ones(4, "f4")},
                     {"out": numpy.zeros(4, "f4")}) for _ in range(2)]

    def compare(index: int, calls: int) -> Errors:
        worst = float(abs(sets[index]["out"] - 1).max())
        return Errors(worst, worst)

    return Case("1 2 2 f32", {"m": 1, "n": 2, "k": 2, "dtype": "f32"}, "cpu", 2, 8.0, 48.0, sets,
                1e-3, compare, reads=[each["b"] for each in sets])


def entry(name: str, ratio: float, role: str = "peer") -> dict[str, Any]:
    """What figures.means() reads of an entry."""
    return {"name": name, "ratio": ratio, "role": role}


class Statistics(unittest.TestCase):
    def test_median_and_mad(self) -> None:
        self.assertEqual(figures.median([3, 1, 2]), 2)
        self.assertEqual(figures.median([4, 1, 2, 3]), 2.5)
        self.assertTrue(math.isnan(figures.median([])))
        self.assertEqual(figures.mad([1, 2, 3, 4, 100]), 1)

    def test_ratios_are_taken_within_the_round(self) -> None:
        self.assertEqual(figures.ratios([2.0, 8.0], [1.0, 2.0]), [2.0, 4.0])

    def test_means_by_group_and_worst_is_the_least(self) -> None:
        table = [{"label": "a", "groups": ["small"], "entries": [entry("p", 2.0)]},
                 {"label": "b", "groups": [], "entries": [entry("p", 0.5), entry("q", 3.0)]}]
        found = {(mean["peer"], mean["group"]): mean for mean in figures.means(table, ["small"])}
        self.assertAlmostEqual(found["p", "all"]["geomean"], 1.0)
        self.assertEqual(found["p", "all"]["worst_label"], "b")
        self.assertAlmostEqual(found["p", "small"]["geomean"], 2.0)
        self.assertNotIn(("q", "small"), found)

    def test_a_group_of_all_rows_is_not_said_twice(self) -> None:
        table = [{"label": "a", "groups": ["small"], "entries": [entry("p", 2.0)]}]
        self.assertEqual([m["group"] for m in figures.means(table, ["small"])], ["all"])

    def test_ours_is_no_peer_and_the_worst_untuned_is_the_slowest(self) -> None:
        table = [{"label": x, "groups": [], "tune_s": 2.0,
                  "entries": [entry("quern untuned", ratio, "untuned")]}
                 for x, ratio in (("a", 1.0), ("b", 1.21))]
        self.assertEqual(figures.means(table, []), [])
        self.assertEqual(figures.tuning(table)["worst_label"], "b")
        self.assertAlmostEqual(figures.tuning(table)["geomean"], 1.1)


class ShapeFiles(unittest.TestCase):
    def read(self, text: str) -> list[dict[str, int | str]]:
        with tempfile.NamedTemporaryFile("w", suffix=".csv") as file:
            file.write(text)
            file.flush()
            return shapes.read(Path(file.name), gemm.COLUMNS,
                               lambda line: gemm.params_of(line, "f32"))

    def test_a_list_is_one_shape_for_each_value(self) -> None:
        found = self.read('# of\nm,n,k,note\n\n1 16,4,8,"two, words"\n2,4,8,\n')
        self.assertEqual([line["m"] for line in found], [1, 16, 2])

    def test_columns_and_values_that_cannot_be_are_named_with_their_line(self) -> None:
        for text, said in (("m,n\n1,2\n", "the column k is missing"),
                           ("m,n,k,btach\n1,2,3,4\n", "column btach: must be one of m n k batch"),
                           ("m,n,k,k\n1,2,3,4\n", "column k: must be"),
                           ("m,n,k\n1,2,3\n1,2,x\n", "line 3: k=x: must be a whole number")):
            with self.assertRaisesRegex(BadOption, said):
                self.read(text)

    def test_a_line_of_another_length_is_named(self) -> None:
        with self.assertRaisesRegex(BadOption, r"line 3: 2 fields: must be 3, m,n,k"):
            self.read("# of\nm,n,k\n1,2\n")

    def test_a_file_without_shapes_is_refused(self) -> None:
        with self.assertRaisesRegex(BadOption, "has no shapes"):
            self.read("m,n,k\n")

    def test_a_size_that_is_none_is_named(self) -> None:
        for value in ("0", "-1", "x", "", "1.5"):
            with self.assertRaisesRegex(BadOption, f"^k={value}: must be a whole number"):
                gemm.params_of({"m": "1", "n": "2", "k": value}, "f32")
        with self.assertRaisesRegex(BadOption, "dtype=f8: must be one of f32 bf16 f16"):
            gemm.params_of({"m": "1", "n": "2", "k": "3", "dtype": "f8"}, "f32")

    def test_every_set_can_be_read(self) -> None:
        for name in shapes.sets("gemm"):
            found = shapes.read(shapes.find("gemm", name), gemm.COLUMNS,
                                lambda line: gemm.params_of(line, "bf16"))
            self.assertGreater(len(found), 2, name)

    def test_a_sample_is_spread_from_the_first_to_the_last(self) -> None:
        table: list[dict[str, int | str]] = [{"m": m} for m in range(10)]
        self.assertEqual([x["m"] for x in shapes.sample(table, 4)], [0, 3, 6, 9])
        self.assertEqual(shapes.sample(table, 1), [{"m": 0}])
        self.assertEqual(shapes.sample(table, 99), table)


class Contests(unittest.TestCase):
    def hold(self, entries: Any, clock: Any, seconds: float = 0.0, most: int = 7) -> Outcome:
        return hold(entries[0][0]._case, entries, clock, Limits(seconds, most))

    def test_a_wrong_one_is_left_out_and_said(self) -> None:
        case = fake_case()
        wrong = Fake(case, "wrong", value=1.01)
        outcome = self.hold([[Fake(case, "quern", role="ours")], [wrong]], FakeClock())
        self.assertEqual([player.contestant.name for player in outcome.players], ["quern"])
        self.assertRegex(outcome.left_out[0], r"^wrong: WRONG, relative error 1.00e-02, allowed 1")
        self.assertEqual(wrong.closed, 1)

    def test_what_writes_nothing_is_wrong(self) -> None:
        case = fake_case()
        lazy = Fake(case, "lazy")
        with mock.patch.object(lazy, "run"):
            outcome = self.hold([[lazy]], FakeClock())
        self.assertIn("nan", outcome.left_out[0])

    def test_every_output_is_touched_before_anyone_runs(self) -> None:
        case, seen = fake_case(), []
        case.sets += fake_case().sets
        first = Fake(case, "first")
        with mock.patch.object(first, "run", side_effect=lambda index: seen.append(
                [bool((x["out"] != x["out"]).all()) for x in case.sets])):
            self.hold([[first]], FakeClock())
        self.assertEqual(seen[0], [True] * 4)

    def test_one_that_cannot_be_closed_ends_nothing(self) -> None:
        case = fake_case()
        wrong = Fake(case, "wrong", value=2.0)
        with mock.patch.object(wrong, "close", side_effect=OSError("gone")):
            outcome = self.hold([[wrong], [Fake(case, "good")]], FakeClock())
        self.assertEqual(len(outcome.players), 1)
        self.assertIn("wrong: close: OSError: gone", outcome.left_out)

    def test_a_failing_one_is_left_out_with_its_reason_on_one_line(self) -> None:
        case = fake_case()
        outcome = self.hold([[Fake(case, "bad", fails=True)], [Fake(case, "good")]], FakeClock())
        self.assertEqual(outcome.left_out, ["bad: ValueError: not this shape"])
        self.assertEqual(len(outcome.players), 1)

    def test_one_that_cannot_be_timed_leaves_the_others_complete(self) -> None:
        case = fake_case()
        outcome = self.hold([[Fake(case, "a")], [Fake(case, "b", breaks=True)]], FakeClock())
        self.assertEqual([player.contestant.name for player in outcome.players], ["a"])
        self.assertEqual(len(outcome.players[0].seconds), len(outcome.noise))
        self.assertIn("no graph", outcome.left_out[0])

    def test_everyone_is_warmed_before_anyone_is_timed(self) -> None:
        case, clock = fake_case(), FakeClock()
        entries = [[Fake(case, "a")], [Fake(case, "b", chills=True)], [Fake(case, "c")]]
        with mock.patch.object(clock, "turn", side_effect=lambda each: len(clock.warmed)):
            outcome = self.hold(entries, clock, most=1)
        self.assertEqual([player.seconds for player in outcome.players], [[3], [3]])
        self.assertEqual(outcome.left_out, ["b: RuntimeError: no memory for a graph"])

    def test_a_lost_one_of_ours_is_known(self) -> None:
        case = fake_case()
        for role, is_ours in (("ours", True), ("untuned", True), ("peer", False)):
            outcome = self.hold([[Fake(case, "x", role=role, fails=True)]], FakeClock())
            self.assertEqual(outcome.is_ours_lost, is_ours)

    def test_a_peer_that_is_less_exact_plays_where_the_case_lets_it_and_is_said(self) -> None:
        case = fake_case()
        case.peer_tolerance = 4e-3
        outcome = self.hold([[Fake(case, "quern", role="ours")], [Fake(case, "near", value=1.003)],
                             [Fake(case, "far", value=1.005)],
                             [Fake(case, "quern untuned", value=1.003, role="untuned")]],
                            FakeClock())
        self.assertEqual([player.contestant.name for player in outcome.players], ["quern", "near"])
        self.assertEqual([line.split(":")[0] for line in outcome.left_out],
                         ["far", "quern untuned"])
        row = rows.of_case(case, outcome, [])
        self.assertIn("near: relative error 3.0e-03, 1.0e-03 is asked of ours",
                      " ".join(report.progress(row)))
        self.assertIn("error 3.0e-03", " ".join(report.table({"rows": [row]})))

    def test_what_a_call_changes_in_place_begins_anew_for_each(self) -> None:
        import numpy

        case = fake_case()
        for arrays in case.sets:
            arrays.inouts["state"] = numpy.zeros(1, "f4")
        calls: list[tuple[int, int]] = []
        case.restore = lambda index: case.sets[index]["state"].fill(0)

        def compare(index: int, count: int) -> Errors:
            calls.append((index, count))
            worst = float(abs(case.sets[index]["state"][0] - count))
            return Errors(worst, worst)

        case.compare = compare

        class Stepper(Fake):
            def run(self, index: int) -> None:
                case.sets[index].inouts["state"] += 1

        def twice(stepper: Fake) -> None:
            for index in (0, 1, 1, 0):
                stepper.run(index)

        for stepper in (Stepper(case, "a"), Stepper(case, "b")):
            check(case, stepper, lambda: twice(stepper), calls=2)
        self.assertEqual(calls, [(0, 2), (1, 2)] * 2)
        apart = Stepper(case, "c")
        apart.is_in_place = False
        with self.assertRaisesRegex(Wrong, "relative error 1.00e"):
            check(case, apart, lambda: twice(apart), calls=2)

    def test_every_other_round_goes_backwards(self) -> None:
        case, clock = fake_case(), FakeClock()
        self.hold([[Fake(case, name)] for name in "abc"], clock, most=2)
        self.assertEqual("".join(clock.order), "abccba")

    def test_the_fastest_alternative_plays(self) -> None:
        case = fake_case()
        slow, fast = Fake(case, "p", seconds=2.0), Fake(case, "p", seconds=1.0)
        outcome = self.hold([[slow, fast, Fake(case, "p", fails=True)]], FakeClock())
        self.assertIs(outcome.players[0].contestant, fast)
        self.assertEqual(fast.detail, ", fastest of 2 (next: -, 2.00 times as long)")
        self.assertEqual((slow.closed, fast.closed), (1, 0))

    def test_a_tuned_call_that_is_slower_than_the_untuned_one_is_said(self) -> None:
        for seconds, over in ((0.94, 1.064), (0.96, None), (2.0, None)):
            case = fake_case()
            outcome = self.hold([[Fake(case, "quern", role="ours")],
                                 [Fake(case, "quern untuned", seconds=seconds, role="untuned")],
                                 [Fake(case, "peer", seconds=0.5)]], FakeClock())
            run = {"rows": [rows.of_case(case, outcome, [])], "means": []}
            for said in (report.progress(run["rows"][0]), report.table(run), report.means(run)):
                self.assertEqual("TUNED SLOWER" in " ".join(said), over is not None, said)
            if over:
                tuned, untuned = run["rows"][0]["entries"][:2]
                for choice, more in (("gemm a=2", ""), ("gemm a=1", ", in the same config")):
                    tuned["detail"], untuned["detail"] = f"tuned: {choice}", "near: gemm a=1"
                    self.assertIn(f"    quern: TUNED SLOWER, 1.064 times quern untuned{more}",
                                  report.progress(run["rows"][0]))
                self.assertIn("1 of 1 shapes: tuned over untuned above 1.05 at 1 2 2 f32 (1.064)",
                              " ".join(report.means(run)))

    def test_what_is_in_the_seconds_until_a_call_is_said(self) -> None:
        from peers.ours import plain

        best = mock.Mock(variant="v", config="c")
        call = mock.Mock(tune=lambda *_: mock.Mock(seconds=3.0, candidates=2, failed=0, best=best),
                         prepare=lambda **_: mock.Mock(config_from="tuned", **{"variant": "v"}))
        contexts: Any = (None, None)
        ours, tune_s = plain(fake_case(), lambda *_: call, contexts, 2.0, {}, lambda text: None)
        self.assertEqual(tune_s, 3.0)
        self.assertTrue(3.0 <= ours[0].first_s, ours[0].first_s)
        said = [report.ready({"first_s": each.first_s, "first_how": each.first_how})
                for each in ours]
        self.assertRegex(said[0], r"^; ready in [0-9.]+ s, 3.00 of them tuning$")
        self.assertNotIn("tuning", said[1])
        self.assertEqual(report.ready({"first_s": None, "first_how": "x"}), "")
        self.assertEqual(report.ready({"first_s": 1.0}), "; ready in 1.00 s")

    def test_disturbed_rounds_are_dropped_where_quiet_ones_remain(self) -> None:
        case = fake_case()
        outcome = self.hold([[Fake(case, "a")]], FakeClock([0.5, 0, 0, 0.5, 0, 0, 0]), 1.0)
        self.assertEqual((outcome.dropped, len(outcome.noise)), (2, 5))
        self.assertEqual(len(outcome.players[0].seconds), 5)

    def test_a_busy_machine_keeps_its_rounds_and_is_said(self) -> None:
        case = fake_case()
        outcome = self.hold([[Fake(case, "a")]], FakeClock([0.5] * 7))
        self.assertEqual((outcome.dropped, len(outcome.noise)), (0, 3))
        row = rows.of_case(case, outcome, [])
        self.assertTrue(row["is_busy"])
        self.assertIn("BUSY", " ".join(report.progress(row)))


class Exactness(unittest.TestCase):
    def test_a_wrong_tile_that_hides_in_the_norm_is_caught_by_its_row(self) -> None:
        import numpy

        wanted = numpy.random.default_rng().choice((-1.0, 1.0), (4096, 64))
        output = wanted.copy()
        output[4000, :16] = 0
        errors = errors_of(output, wanted)
        self.assertAlmostEqual(errors.whole, (16 / wanted.size) ** 0.5)
        self.assertAlmostEqual(errors.row, 0.5)
        with self.assertRaisesRegex(Wrong, "in a row, allowed 8.00e-02"):
            require(errors, 1e-2)

    def test_a_group_of_small_numbers_has_its_own_measure(self) -> None:
        import numpy

        wanted = numpy.ones((2, 8, 4))
        wanted[1] = 1e-4
        output = wanted.copy()
        output[1, 3] = 0
        self.assertLess(errors_of(output, wanted).whole, 1e-4)
        self.assertAlmostEqual(errors_of(output, wanted).row, 1.0)

    def test_what_is_no_number_passes_nothing(self) -> None:
        import numpy

        wanted = numpy.ones((3, 4))
        for value in (math.nan, math.inf):
            output = wanted.copy()
            output[1, 1] = value
            with self.assertRaises(Wrong):
                require(errors_of(output, wanted), 1.0)
        self.assertEqual(errors_of(wanted[:0], wanted[:0]), Errors(0.0, 0.0))
        self.assertEqual(errors_of(0 * wanted, 0 * wanted), Errors(0.0, 0.0))
        self.assertGreater(errors_of(wanted, 0 * wanted).whole, 1.0)

    def test_small_sums_are_held_against_what_is_expected(self) -> None:
        import numpy

        errors = errors_of(numpy.full((1, 1), 1e-9), numpy.full((1, 1), 2e-9), least=1.0)
        self.assertLess(errors.whole, 1e-8)
        self.assertLess(errors.row, 1e-8)


class Replays(unittest.TestCase):
    def test_a_replay_is_checked_for_as_many_calls_as_it_makes(self) -> None:
        from harness import clock_cuda

        case, checked = fake_case(), []
        clock = clock_cuda.Clock.__new__(clock_cuda.Clock)
        clock._case, clock._sets, clock._loops = case, 2, WeakKeyDictionary()
        loop = clock_cuda.Loop(lambda: None, 6, True)
        made = {"_launches_for": 6, "_record": loop, "_complete": None, "_steady": None}
        with contextlib.ExitStack() as stack:
            for name, value in made.items():
                stack.enter_context(mock.patch.object(clock, name, return_value=value))
            stack.enter_context(mock.patch.object(
                clock_cuda, "check", lambda *arguments: checked.append(arguments[3])))
            clock.warm(Fake(case, "a"))
            clock.warm(Fake(case, "read", role="reader"))
        self.assertEqual(checked, [3])


class Rows(unittest.TestCase):
    def row(self) -> dict[str, Any]:
        case = fake_case()
        right = Errors(0.0, 0.0)
        players = [Player(Fake(case, name, role=role), right, seconds) for name, role, seconds in (
            ("quern", "ours", [1.0, 2.0]), ("quern prepacked", "ours", [0.5, 1.0]),
            ("lib", "peer", [2.0, 4.0]), ("lib prepacked", "peer", [2.0, 4.0]),
            ("read", "reader", [16e-9, 16e-9]))]
        return rows.of_case(case, Outcome(players, [0.0, 0.0]), ["m <= 128"])

    def test_a_prepacked_peer_meets_our_prepacked(self) -> None:
        found = {each["name"]: each for each in self.row()["entries"]}
        self.assertEqual((found["lib"]["against"], found["lib"]["ratio"]), ("quern", 2.0))
        self.assertEqual(found["lib prepacked"]["against"], "quern prepacked")
        self.assertEqual(found["lib prepacked"]["ratio"], 4.0)
        self.assertNotIn("read", found)

    def test_without_the_like_of_ours_there_is_no_ratio(self) -> None:
        case = fake_case()
        players = [Player(Fake(case, name, role=role), Errors(0.0, 0.0), [1.0]) for name, role in (
            ("quern prepacked", "ours"), ("lib", "peer"), ("lib prepacked", "peer"))]
        row = rows.of_case(case, Outcome(players, [0.0]), [])
        self.assertEqual([each["against"] for each in row["entries"][1:]],
                         [None, "quern prepacked"])

    def test_a_few_disturbed_rounds_that_were_kept_make_a_shape_busy(self) -> None:
        self.assertTrue(rows.is_busy([0.0] * 4 + [0.5] * 3))
        self.assertFalse(rows.is_busy([0.0] * 5))
        self.assertFalse(rows.is_busy([0.0] * 3))

    def test_busy_shapes_do_not_count_while_there_are_others(self) -> None:
        table = [{"label": x, "groups": [], "is_busy": is_busy, "entries": [entry("p", ratio)]}
                 for x, ratio, is_busy in (("a", 2.0, False), ("b", 0.1, True))]
        self.assertEqual(figures.means(table, [])[0]["worst"], 2.0)
        self.assertEqual(figures.means(table[1:], [])[0]["worst"], 0.1)

    def test_the_roof_is_the_greater_of_work_and_traffic(self) -> None:
        row = self.row()
        rows.against_roof(row, {"flops": {"f32": 1.0}, "bytes_per_s": 1.0})
        self.assertEqual(row["roof_us"], 8e6)
        rows.against_roof(row, {"flops": {"f32": 1e30}, "bytes_per_s": 1.0})
        self.assertAlmostEqual(row["roof_us"], 48e-3)  # the reader's 16 bytes in 16 ns
        self.assertAlmostEqual(row["entries"][0]["of_roof"], 48e-9 / 1.5)

    def test_without_a_roof_there_is_no_share(self) -> None:
        row = self.row()
        rows.against_roof(row, {"how": "not built"})
        self.assertIsNone(row["entries"][0]["of_roof"])
        self.assertRegex(report.table({"rows": [row]})[2], r"\| +- \|")


class Measuring(unittest.TestCase):
    def test_the_reference_is_right_and_catches_a_wrong_block(self) -> None:
        import numpy

        for dtype in ("f32", "bf16", "f16"):
            params: dict[str, int | str] = {"m": 40, "n": 70, "k": 50, "batch": 2, "dtype": dtype}
            arrays = HostArrays()
            with mock.patch.object(arrays, "sets_needed", return_value=2):
                case = gemm.make_case(params, "cpu", 1, arrays)
            a, b = (arrays.floats(case.sets[1][name], dtype, True) for name in "ab")
            out = (a @ b.swapaxes(1, 2)).astype("f4")
            if dtype == "bf16":
                out = ((out.view("u4") + 0x8000) >> 16).astype("u2")
            elif dtype == "f16":
                out = out.astype("f2")
            case.sets[1]["out"][...] = out
            self.assertLess(case.compare(1, 1).whole, case.tolerance)
            case.sets[1]["out"][1, 4:6, 8:10] = 0
            self.assertEqual(case.compare(1, 1).row, math.inf)
            self.assertFalse(numpy.array_equal(case.sets[0]["a"], case.sets[1]["a"]))

    def test_arrays_begin_at_lines_of_their_own(self) -> None:
        arrays = HostArrays()
        made = [arrays.random((3, 5), "f32") for _ in range(3)]
        self.assertEqual({array.ctypes.data % 64 for array in made}, {0})
        self.assertEqual(len({array.ctypes.data % 4096 for array in made}), 3)
        self.assertTrue(-1 <= made[0].min() < made[0].max() < 1)

    def test_what_does_not_fit_is_refused(self) -> None:
        arrays = HostArrays()
        with mock.patch.object(arrays, "free_bytes", return_value=1 << 20):
            with self.assertRaisesRegex(MemoryError, "MiB may be taken"):
                gemm.make_case({"m": 512, "n": 512, "k": 512, "batch": 1, "dtype": "f32"}, "cpu",
                               1, arrays)

    def test_a_turn_is_seconds_a_call_and_walks_over_the_sets(self) -> None:
        case, seen = fake_case(), []

        class Worker(Contestant):
            def run(self, index: int) -> None:
                seen.append(index)

        clock = clock_cpu.Clock(case)
        with mock.patch("time.clock_gettime", side_effect=lambda which: 0.01 * len(seen)):
            turns = [clock.turn(Worker()) for _ in range(2)]
        self.assertEqual([round(seconds, 9) for seconds in turns], [0.01, 0.01])
        self.assertEqual(seen, [place % 2 for place in range(len(seen))])


class Options(unittest.TestCase):
    def refuse(self, *arguments: str) -> str:
        with self.assertRaises(BadOption) as caught:
            options = beside.parser().parse_args(arguments)
            beside.chosen_shapes(options, beside.check_options(options))
        return str(caught.exception)

    def test_what_cannot_be_is_refused_by_name_with_what_may(self) -> None:
        for wanted, *arguments in (
                ("FAMILY=conv: must be one of gemm kda gdn", "conv"),
                ("FAMILY=: must be one of gemm",),
                ("--device tpu: must be cpu, cuda or cuda:N", "gemm", "--device", "tpu"),
                ("--device cuda:x: must be", "gemm", "--device", "cuda:x"),
                ("--device cpu:1: must be", "gemm", "--device", "cpu:1"),
                ("--shapes cubes: must be a file, or one of cpu", "gemm", "--shapes", "cubes"),
                ("--peers blis: must be none, or of openblas,", "gemm", "--peers", "mkl,blis"),
                ("--peers mkl: must be none, or of cublaslt,", "gemm", "--device", "cuda",
                 "--peers", "mkl"),
                ("--dtype int4: must be one of f32 bf16 f16 on cpu", "gemm", "--dtype", "int4"),
                ("--only none: must be in a shape's line, such as", "gemm", "--only", "none"),
                ("--rounds: 0: must be a whole number, 1 or more", "gemm", "--rounds", "0"),
                ("--sample: 1.5: must be a whole number", "gemm", "--sample", "1.5"),
                ("--threads: two: must be a whole number", "gemm", "--threads", "two"),
                ("--tune: -1: must be a number of seconds, or 0", "gemm", "--tune", "-1"),
                ("--seconds: nan: must be a number of seconds above 0", "gemm", "--seconds",
                 "nan"),
                ("unrecognized arguments: --speed", "gemm", "--speed")):
            said = self.refuse(*arguments)
            self.assertIn(wanted, said)
            self.assertNotIn("\n", said)

    def test_every_option_of_the_readme_is_one(self) -> None:
        text = (BENCH / "README.md").read_text(encoding="utf-8")
        known = beside.parser().format_help()
        commands = " ".join(re.findall(r"    bench/beside.py (.*)", text))
        options = re.findall(r"`(--[a-z]+)", text) + re.findall(r"--[a-z]+", commands)
        self.assertGreater(len(options), 15)
        for option in options:
            self.assertIn(option, known)

    def test_dtype_stands_instead_of_the_file_s(self) -> None:
        options = beside.parser().parse_args(["gemm", "--dtype", "bf16", "--only", "2048"])
        found = beside.chosen_shapes(options, beside.check_options(options))
        self.assertEqual({params["dtype"] for params in found}, {"bf16"})

    def test_a_config_that_is_given_is_not_tuned(self) -> None:
        options = beside.parser().parse_args(["gemm", "--config", "mr=8"])
        beside.check_options(options)
        self.assertEqual(options.tune, 0)

    def test_threads_are_those_of_the_environment(self) -> None:
        with mock.patch.dict(os.environ, OMP_NUM_THREADS="1"):
            self.assertEqual(beside.default_threads(), 1)


class Peers(unittest.TestCase):
    def test_one_that_is_not_here_is_skipped_by_name(self) -> None:
        from harness import session

        adapter = argparse.Namespace(PEERS={"cpu": {"absent": "no_such_library"}})
        found, skipped = session.open_peers(adapter, ["absent"], "cpu", 1)  # type: ignore
        self.assertEqual(found, [])
        self.assertIn("no_such_library", skipped["absent"])


class Runs(unittest.TestCase):
    def run_it(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, str(BENCH / "beside.py"), *arguments], text=True,
                              capture_output=True, timeout=120, check=False)

    def test_an_option_that_cannot_be_is_one_line_and_status_2(self) -> None:
        done = self.run_it("gemm", "--device", "tpu")
        self.assertEqual((done.returncode, done.stdout), (2, ""))
        self.assertEqual(done.stderr, "beside.py: --device tpu: must be cpu, cuda or cuda:N\n")

    def test_a_device_that_is_not_here_is_one_line_and_status_1(self) -> None:
        with contextlib.suppress(ImportError):
            import torch

            if torch.cuda.is_available():
                self.skipTest("there is a GPU")
        done = self.run_it("gemm", "--device", "cuda")
        self.assertEqual((done.returncode, done.stdout), (1, ""))
        self.assertRegex(done.stderr, r"^beside.py: --device cuda:0.*\n$")

    def test_a_choice_that_quern_does_not_know_is_one_line_and_status_2(self) -> None:
        for option, said in (("--variant", "gemm has no such variant"), ("--config", "must be")):
            done = self.run_it("gemm", "--shapes", "odd", "--sample", "3", "--peers", "none",
                               option, "nope")
            self.assertEqual(done.returncode, 2)
            self.assertRegex(done.stderr, rf"^beside.py: {option} nope: {said}.*\n$")

    def test_ctrl_c_leaves_the_table_of_what_is_there(self) -> None:
        def measure(options: Any, chosen: Any, opened: Any, run: Any, say: Any) -> None:
            run["rows"].append(opened.shape(chosen[0]))
            raise KeyboardInterrupt

        out = io.StringIO()
        with mock.patch.object(beside, "measure", measure), contextlib.redirect_stdout(out):
            status = beside.main(["gemm", "--shapes", "odd", "--only", "17 31 33 ", "--tune", "0",
                                  "--rounds", "1", "--peers", "none", "--threads", "1"])
        self.assertEqual(status, 130)
        self.assertRegex(out.getvalue(), r"stopped: this is what was (.|\n)*\| 17 31 33 f32")

    def test_two_shapes_make_a_table_and_an_object(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            file, saved = Path(folder) / "tiny.csv", Path(folder) / "run.json"
            file.write_text("m,n,k,dtype\n3,17,33,f32\n8,32,64,bf16\n", encoding="utf-8")
            done = self.run_it("gemm", "--shapes", str(file), "--tune", "0.3", "--rounds", "3",
                               "--seconds", "0.2", "--peers", "onednn", "--json", str(saved), "-v")
            self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
            run = json.loads(saved.read_text(encoding="utf-8"))
        self.assertIn("| 3 17 33 f32", done.stdout)
        self.assertIn("above 1, quern is faster", done.stdout)
        self.assertEqual([row["label"] for row in run["rows"]], ["3 17 33 f32", "8 32 64 bf16"])
        self.check_run(run)

    def check_run(self, run: dict[str, Any]) -> None:
        """The fields that pictures and pages are made of."""
        self.assertEqual((run["family"], run["device"]), ("gemm", "cpu"))
        self.assertEqual(set(run["peers"]) | set(run["skipped"]), {"onednn"})
        self.assertEqual(len(run["means"]) > 0, "onednn" in run["peers"])
        for row in run["rows"]:
            self.assertEqual(row["flops"], 2.0 * math.prod(row["shape"][x] for x in "mnk"))
            self.assertTrue(1 <= row["rounds"] <= 3)
            names = {each["name"]: each for each in row["entries"]}
            self.assertLessEqual({"quern", "quern untuned", "quern prepacked"}, set(names))
            self.assertTrue(names["quern"]["detail"].startswith("tuned: gemm_cpu"))
            self.assertEqual(names["quern"]["ratio"], 1.0)
            for each in row["entries"]:
                self.assertGreater(each["us"], 0)
                self.assertLess(each["rel_err"], 1e-2)
                self.assertEqual(each["of_roof"] is None, "flops" not in run["roof"])

    def test_json_on_stdout_is_nothing_else(self) -> None:
        done = self.run_it("gemm", "--shapes", "odd", "--only", "17 31 33 ", "--tune", "0",
                           "--rounds", "1", "--peers", "none", "--json", "-", "--threads", "1")
        self.assertEqual(done.returncode, 0, done.stderr)
        run = json.loads(done.stdout)
        self.assertEqual(len(run["rows"]), 1)
        self.assertEqual(run["tuning"], {})
        self.assertIn("no peer was compared with", done.stderr)

    def test_nobody_s_result_is_no_number(self) -> None:
        out = io.StringIO()
        report.write({"rows": [math.nan, {"x": math.inf}]}, "-", out)
        self.assertEqual(json.loads(out.getvalue()), {"rows": [None, {"x": None}]})


if __name__ == "__main__":
    unittest.main()
