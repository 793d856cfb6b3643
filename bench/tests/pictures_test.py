#!/usr/bin/env python3
"""Shape files, pictures and page of the benchmarks. No library and no device are needed.

Runs are made up, of random figures; pictures are looked at through matplotlib's own layout. What
needs matplotlib is skipped where there is none.
"""
from __future__ import annotations

import contextlib
import copy
import importlib.util
import io
import json
import math
import random
import re
import sys
import tempfile
import unittest
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from harness import page, plot, report, shapes
from peers import gemm

SEED = random.SystemRandom().randrange(1 << 32)
HAS_MATPLOTLIB = importlib.util.find_spec("matplotlib") is not None
needs_matplotlib = unittest.skipUnless(HAS_MATPLOTLIB, "matplotlib is not installed")
OURS = ("ours", "ours in panels")
PEERS = ("openblas", "onednn prepacked", "mkl", "<b>peer</b> & \"co\" $^$")
NO_MATPLOTLIB: Any = dict.fromkeys(("matplotlib", "matplotlib.figure"))  # of sys.modules
M_VALUES = (1, 2, 4, 8, 16, 32, 64, 128, 512, 2048, 4096, 8192)


def entry(dice: random.Random, name: str, micros: float, ratio: float) -> dict[str, Any]:
    role = "untuned" if "untuned" in name else "ours" if name in OURS else "peer"
    against = OURS[1] if "prepacked" in name and role == "peer" else OURS[0]
    return {"name": name, "role": role, "detail": f"<i>{name}</i>", "us": micros * ratio,
            "mad_us": 0.01 * micros, "of_roof": dice.random(), "against": against, "ratio": ratio,
            "ratio_mad": 0.05 * dice.random() * ratio, "rel_err": 1e-3}


def random_row(dice: random.Random, spread: float) -> dict[str, Any]:
    m, n, k = (dice.choice(M_VALUES), dice.randrange(1, 250000), dice.randrange(1, 33000))
    shape = {"m": m, "n": n, "k": k, "batch": dice.choice((1, 128)),
             "dtype": dice.choice(("bf16", "f32"))}
    flops, micros = 2.0 * m * n * k, math.exp(dice.uniform(0, 9))
    entries = [entry(dice, OURS[0], micros, 1.0)]
    entries += [entry(dice, name, micros, math.exp(dice.gauss(0, spread)))
                for name in (OURS[1], "ours untuned", *PEERS)
                if dice.random() < 0.9 or name == PEERS[0]]
    return {"shape": shape, "label": " ".join(map(str, shape.values())), "flops": flops,
            "bytes": 2.0 * (m * k + n * k + m * n), "roof_us": 1.0, "entries": entries,
            "groups": ["m <= 128"] * (m <= 128) + ["m >= 512"] * (m >= 512), "rounds": 11,
            "dropped": 0, "noise": 0.01, "is_busy": dice.random() < 0.1,
            "clocks": {"sm_mhz": 1755}, "left_out": ["wrong <one>"]}


def random_run(count: int, spread: float = 0.2, seed: int = SEED) -> dict[str, Any]:
    """A run of `count` shapes, in the form that rows.py and figures.py document."""
    dice = random.Random(seed)
    starts = {"peer": "triton", "shapes": ["1 2 3 bf16"], "failed": ["a <failure>"],
              "rows": [{"name": "dispatch", "unit": "ns", "quern": 88.0, "quern_mad": 1.0,
                        "peer": None, "peer_mad": None}]}
    return {"family": "gemm", "date": "2026-01-02 03:04 UTC", "device": "cpu",
            "machine": {"name": "A <Processor> & more", "threads": "2"},
            "roof": {"flops": {"bf16": 2e12, "f32": 5e11}, "bytes_per_s": 2e10, "how": "so"},
            "peers": {"openblas": "OpenBLAS 0.3.21"}, "skipped": {"mkl": "no <file>"},
            "rows": [random_row(dice, spread) for _ in range(count)], "starts": starts,
            "means": [{"peer": PEERS[3], "group": "m <= 128", "count": 1, "geomean": 1.1,
                       "worst": 0.9, "worst_label": "1 2 3", "is_busy": True},
                      {"peer": PEERS[0], "group": "all", "count": 3, "geomean": 1.25,
                       "worst": 0.75, "worst_label": "3 2 1", "is_busy": False}],
            "tuning": {"count": 3, "geomean": 1.1, "worst": 1.4, "worst_label": "1 2 3",
                       "longest_s": 3.9}}


class ShapeFiles(unittest.TestCase):
    """Those of gemm."""

    def read(self, name: str) -> list[dict[str, Any]]:
        return shapes.read(shapes.find("gemm", name), gemm.COLUMNS,
                           lambda line: gemm.params_of(line, "f32"))

    def test_every_file_is_read_and_has_no_shape_twice(self) -> None:
        for name in shapes.sets("gemm"):
            found = [tuple(params.values()) for params in self.read(name)]
            self.assertLess(0, len(found), name)
            self.assertEqual(len(found), len(set(found)), name)

    def test_every_model_shape_has_twelve_m(self) -> None:
        by_shape: dict[tuple[Any, ...], list[int]] = {}
        for params in self.read("llm_gemm"):
            key = tuple(params[name] for name in ("n", "k", "batch", "dtype"))
            by_shape.setdefault(key, []).append(params["m"])
        self.assertTrue(all(tuple(ms) == M_VALUES for ms in by_shape.values()))
        for known in ((2112, 7168, 1, "bf16"), (512, 128, 16, "bf16"),
                      (256, 3072, 1, "f32"), (28672, 4096, 1, "bf16")):
            self.assertIn(known, by_shape)

    def test_odd_sizes_are_odd(self) -> None:
        for params in self.read("odd"):
            self.assertTrue(all(params[name] % 2 for name in "mnk"), params)


class Lines(unittest.TestCase):
    def test_shapes_stand_in_lines_by_m_with_the_run_s_ratios(self) -> None:
        run = random_run(40)
        lines = plot.lines_of(run)
        self.assertEqual([int(line.label.replace("BUSY", "").split()[0]) for line in lines],
                         sorted(row["shape"]["m"] for row in run["rows"]), f"seed {SEED}")
        drawn = sorted(mark.mean for line in lines for mark in line.marks.values())
        told = sorted(e["ratio"] for row in run["rows"] for e in row["entries"][1:])
        for ours, theirs in zip(drawn, told):
            self.assertAlmostEqual(ours, theirs, msg=f"seed {SEED}")
        self.assertEqual(len(drawn), len(told))

    def test_many_shapes_become_a_line_for_every_m(self) -> None:
        run = random_run(plot.MOST_LINES + 200)
        lines = plot.lines_of(run)
        self.assertLessEqual(len(lines), 2 * len(M_VALUES))
        count = sum(len(mark.ratios) for line in lines for mark in line.marks.values())
        self.assertEqual(count, sum(len(row["entries"]) - 1 for row in run["rows"]))

    def test_groups_stand_together_whatever_their_parameters(self) -> None:
        run = random_run(30)
        for place, row in enumerate(run["rows"]):
            row["groups"] = [["even"], ["odd"], []][place % 3]
        groups = [line.group for line in plot.lines_of(run)]
        self.assertEqual(sum(a != b for a, b in zip(groups, groups[1:])), 2)

    def test_ours_is_told_by_role_and_not_by_name(self) -> None:
        run = random_run(9)
        self.assertEqual(plot.main_of(run), OURS[0])
        self.assertNotIn(OURS[0], plot.compared_of(run))
        self.assertEqual(plot.compared_of(run)[PEERS[1]], OURS[1])
        for row in run["rows"]:
            row["entries"] = [e for e in row["entries"] if e["role"] == "peer"]
        self.assertEqual(plot.main_of(run), "")
        self.assertIn(PEERS[0], plot.compared_of(run))

    def test_a_busy_shape_says_so(self) -> None:
        run = random_run(5)
        for place, row in enumerate(run["rows"]):
            row["is_busy"] = place == 3
        self.assertEqual(sum("BUSY" in line.label for line in plot.lines_of(run)), 1)

    def test_without_matplotlib_one_line_says_what_to_install(self) -> None:
        with mock.patch.dict(sys.modules, NO_MATPLOTLIB):
            with self.assertRaisesRegex(plot.PlotError, "^matplotlib is needed.*pip install.*$"):
                plot.require()


@needs_matplotlib
class Pictures(unittest.TestCase):
    def drawn(self, draw: Any, run: dict[str, Any]) -> Any:
        """The figure that would have been written, laid out."""
        with mock.patch.object(plot, "_write") as write:
            draw(run, "unused")
        figure = write.call_args.args[0]
        figure.set_dpi(100)
        figure.draw_without_rendering()
        return figure

    def assert_apart(self, texts: list[Any], figure: Any) -> None:
        """No text overlaps another, none is cut off by the picture's edge."""
        boxes = [text.get_window_extent() for text in texts if text.get_text()]
        for place, box in enumerate(boxes):
            self.assertTrue(box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.x1
                            and box.y1 <= figure.bbox.y1, f"{texts[place]} is cut, seed {SEED}")
            overlaps = [other for other in boxes[:place] if box.overlaps(other)]
            self.assertFalse(overlaps, f"{texts[place]} overlaps, seed {SEED}")

    def test_no_label_of_the_ratios_overlaps_or_is_cut(self) -> None:
        for count in (1, 5, 25, 60, 300):
            for spread in (0.01, 0.2, 1.5):
                with self.subTest(count=count, spread=spread, seed=SEED):
                    figure = self.drawn(plot.ratio_plot, random_run(count, spread))
                    axes = figure.axes[0]
                    self.assert_apart(axes.get_yticklabels(), figure)
                    self.assert_apart(axes.get_xticklabels() + [axes.xaxis.label], figure)
                    self.assert_apart(axes.get_legend().get_texts() + [axes._left_title], figure)
                    self.assertGreaterEqual(len(axes.get_xticks()), 2)

    def test_every_ratio_lies_inside_the_axes(self) -> None:
        run = random_run(20, 1.0)
        low, high = self.drawn(plot.ratio_plot, run).axes[0].get_xlim()
        ratios = [e["ratio"] for row in run["rows"] for e in row["entries"]]
        self.assertTrue(low < min(ratios) and max(ratios) < high, f"seed {SEED}")

    def test_the_roofline_has_its_ceilings_and_everybody_under_their_name(self) -> None:
        run = random_run(30)
        axes = self.drawn(plot.roofline_plot, run).axes[0]
        said = " ".join(text.get_text() for text in axes.texts)
        for name in ("bf16 2 TFLOPS", "f32 0.5 TFLOPS", "memory 20 GB/s"):
            self.assertIn(name, said)
        names = [text.get_text() for text in axes.get_legend().get_texts()]
        self.assertEqual(names[0], OURS[0])
        self.assertEqual(set(names[:3]), {*OURS, "ours untuned"})
        self.assertEqual(sorted(names[3:]), sorted(plot.plain(name) for name in PEERS))

    def test_the_legend_says_who_is_against_another_of_ours_and_has_the_run_s_means(self) -> None:
        axes = self.drawn(plot.ratio_plot, random_run(30)).axes[0]
        said = [text.get_text() for text in axes.get_legend().get_texts()]
        self.assertIn(f"{PEERS[1]}, against {OURS[1]}", said)
        self.assertIn(f"{PEERS[0]}: mean 1.25, worst 0.75", said)
        self.assertIn(f"{OURS[0]} ({OURS[1]} where", axes.xaxis.label.get_text())

    def test_a_dollar_begins_no_formula(self) -> None:
        run = random_run(5)
        run["machine"]["name"] = run["peers"]["x"] = "$\\nothing{$"
        for row in run["rows"]:
            row["shape"]["dtype"] = "$_$"
        plot.plot(run, io.BytesIO(), "png")

    def test_runs_with_gaps_are_drawn(self) -> None:
        run = random_run(6)
        run["roof"] = {"how": "not measured"}
        run["rows"][0]["entries"] = []
        run["rows"][1]["entries"][1]["ratio"] = None
        run["rows"][2]["entries"][0]["us"] = None
        for row in run["rows"]:
            row["shape"] = {"heads": 3, "length": row["shape"]["k"]}
        for draw in (plot.ratio_plot, plot.roofline_plot, plot.plot):
            with self.subTest(draw=draw.__name__):
                file = io.BytesIO()
                draw(run, file, "png")
                self.assertEqual(file.getvalue()[:4], b"\x89PNG")

    def test_quern_alone_gives_the_roofline(self) -> None:
        run = random_run(3)
        for row in run["rows"]:
            del row["entries"][1:]
        self.assertEqual(len(self.drawn(plot.plot, run).axes), 1)
        with self.assertRaisesRegex(plot.PlotError, "no ratios"):
            plot.ratio_plot(run, io.BytesIO(), "png")

    def test_what_cannot_be_drawn_or_written_is_refused(self) -> None:
        with self.assertRaisesRegex(plot.PlotError, "no times"):
            plot.plot({"rows": []}, io.BytesIO(), "png")
        with self.assertRaisesRegex(plot.PlotError, "/nowhere/at/all.png"):
            plot.plot(random_run(1), "/nowhere/at/all.png")


class Checker(HTMLParser):
    """Tags that are open, texts, and whatever the page would fetch."""

    VOID = ("meta", "img")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.wrong: list[str] = []
        self.fetched: list[str | None] = []
        self.seen: dict[str, int] = {}
        self.said = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen[tag] = self.seen.get(tag, 0) + 1
        self.fetched += [value for name, value in attrs if name in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)

    def handle_data(self, data: str) -> None:
        self.said += data


class Page(unittest.TestCase):
    def checked(self, text: str) -> Checker:
        checker = Checker()
        checker.feed(text)
        self.assertEqual((checker.open, checker.wrong), ([], []))
        return checker

    def test_markup_is_whole_and_texts_of_runs_are_escaped(self) -> None:
        found = self.checked(page.page([random_run(7), random_run(2, seed=SEED + 1)]))
        self.assertNotIn("b", found.seen)
        self.assertNotIn("i", found.seen)
        for said in (PEERS[3], "A <Processor> & more", "no <file>", "wrong <one>", "a <failure>"):
            self.assertIn(said, found.said)
        self.assertEqual(found.seen["section"], 2)

    def test_the_summary_says_against_whom_and_what_was_busy(self) -> None:
        run = random_run(9)
        for place, row in enumerate(run["rows"]):
            row["is_busy"] = place == 4
        found = self.checked(page.summary(run))
        for said in (f"BUSY {PEERS[3]}", OURS[0], "1.250", report.busy_text(run),
                     report.tuning_text(run["tuning"]), report.ratio_text(run)):
            self.assertIn(said, found.said)
        for row in run["rows"]:
            row["is_busy"] = False
        self.assertNotIn("BUSY,", self.checked(page.summary(run)).said)

    def test_a_tuned_call_that_is_slower_than_the_untuned_one_is_said(self) -> None:
        for ratio, count in ((0.9, 2), (0.96, 0), (1.3, 0)):
            run = random_run(1)
            found = run["rows"][0]["entries"]
            found[:] = [each for each in found if each["role"] != "untuned"]
            found.append(entry(random.Random(SEED), "ours untuned", 10.0, ratio))
            self.assertEqual(page.page([run]).count("TUNED SLOWER"), count)

    def test_nothing_is_fetched(self) -> None:
        found = self.checked(page.page([random_run(3)] * 2))
        others = {value for value in found.fetched if not str(value).startswith("data:")}
        self.assertEqual(others, {"#run0", "#run1"})

    def test_lines_have_a_cell_for_every_heading(self) -> None:
        _, above, heading, *lines = page.shape_table(random_run(9)).split("<tr>")
        self.assertEqual(len(lines), 9)
        spans = [int(span) for span in re.findall(r'colspan="(\d+)"', above)]
        for count in (sum(spans), *(line.count("<td") for line in lines)):
            self.assertEqual(count, heading.count("<button"))

    def test_figures_of_the_run_are_in_the_table(self) -> None:
        run = random_run(4)
        text = page.shape_table(run)
        for row in run["rows"]:
            for found in row["entries"][1:]:
                self.assertIn(f"{found['ratio']:.3f} ±", text)

    def test_a_page_without_matplotlib_says_so(self) -> None:
        with mock.patch.dict(sys.modules, NO_MATPLOTLIB):
            found = self.checked(page.page([random_run(2)]))
        self.assertIn("matplotlib is needed", found.said)
        self.assertNotIn("img", found.seen)

    def test_a_run_with_nothing_in_it_makes_a_page(self) -> None:
        self.assertIn("No peer was compared with", self.checked(page.page([{"rows": []}])).said)

    def test_main_writes_the_page_of_saved_runs(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            saved, target = Path(folder) / "run.json", Path(folder) / "new" / "page"
            saved.write_text(json.dumps(random_run(3)), encoding="utf-8")
            status, said = self.run_main([str(saved), str(saved), str(target)])
            self.assertEqual((status, said.strip()), (0, str(target / "index.html")))
            self.checked((target / "index.html").read_text(encoding="utf-8"))

    def test_main_refuses_what_is_no_run_in_one_line(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            bad = Path(folder) / "bad.json"
            for content, why in (("{", "is not JSON"), ("[]", "no rows"), ("{}", "no rows")):
                bad.write_text(content, encoding="utf-8")
                status, said = self.run_main([str(bad), folder])
                self.assertEqual((status, said.count("\n")), (1, 1))
                self.assertIn(why, said)
            status, said = self.run_main([str(Path(folder) / "none.json"), folder])
            self.assertEqual((status, said.count("\n")), (1, 1))
            self.assertFalse((Path(folder) / "index.html").exists())
        self.assertEqual(self.run_main(["one"])[0], 2)

    def test_what_has_rows_but_is_no_run_is_refused_in_one_line(self) -> None:
        def spoiled(at: list[Any], value: Any) -> dict[str, Any]:
            run = random_run(2)
            place: Any = run
            for key in at[:-1]:
                place = place[key]
            place[at[-1]] = value
            return run

        runs = [{"rows": [1]}, {"rows": [{}]}, spoiled(["machine"], "x"), spoiled(["roof"], [1]),
                spoiled(["means"], [{}]), spoiled(["rows", 0, "flops"], "many"),
                spoiled(["rows", 0, "shape"], "x"), spoiled(["rows", 1, "entries", 0], {}),
                spoiled(["rows", 1, "entries"], None), spoiled(["starts", "rows"], [{}])]
        with tempfile.TemporaryDirectory() as folder:
            bad = Path(folder) / "bad.json"
            for run in runs:
                with self.subTest(run=run):
                    bad.write_text(json.dumps(run), encoding="utf-8")
                    status, said = self.run_main([str(bad), str(Path(folder) / "page")])
                    self.assertEqual((status, said.count("\n")), (1, 1), said)
                    self.assertIn("run 1 of the page is not what", said)
            self.assertEqual(list(Path(folder).iterdir()), [bad])

    def test_a_run_is_left_as_it_was(self) -> None:
        run = random_run(3)
        before = copy.deepcopy(run)
        page.page([run])
        self.assertEqual(run, before)

    def run_main(self, arguments: list[str]) -> tuple[int, str]:
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            return page.main(arguments), said.getvalue()


if __name__ == "__main__":
    unittest.main()
