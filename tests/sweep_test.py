#!/usr/bin/env python3
"""quern sweep on the CPU: where its list comes from, what it leaves in the cache, how it resumes,
how several share a list, the budget, device profiles as files, and bad input.

Needs python3. QUERN_BIN is the binary (else the one in QUERN_BUILD, else build/quern). Everything
is written below a private temporary directory, also HOME and the cache.
"""
import json
import os
import re
import shlex
import shutil
import signal
import sqlite3
import subprocess
import tempfile
import time
import unittest

BUILD = os.environ.get("QUERN_BUILD", "build")
BINARY = os.path.abspath(os.environ.get("QUERN_BIN", os.path.join(BUILD, "quern")))
TESTS = os.path.dirname(os.path.abspath(__file__))
MODELS = os.path.join(TESTS, "models")
MANUAL = os.path.join(TESTS, "..", "docs", "CLI.md")
GRID = ["--family", "gemm", "--grid", "m=1,2,64 n=64 k=64,128"]
ROW_FIELDS = ("family specs tuned skipped not_provided failed left cut_short ties disturbed "
              "speedup roof_share").split()
REPORT_FIELDS = "families devices not_provided seconds troubles passed_over".split()
SMALL_MODEL = ["--model", os.path.join(MODELS, "llama-3.1-8b.json"), "--tp", "8", "--max-tokens",
               "64", "--max-batch", "4", "--max-seq", "256"]


class SweepCase(unittest.TestCase):
    """A directory for each class and a cache for each case."""

    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.mkdtemp(prefix="quern_sweep_")
        cls.environment = {
            name: value for name, value in os.environ.items() if not name.startswith("QUERN_")
        }
        cls.environment.update(HOME=cls.folder, LC_ALL="C")
        if "QUERN_CLANG" in os.environ:
            cls.environment["QUERN_CLANG"] = os.environ["QUERN_CLANG"]

    @classmethod
    def tearDownClass(cls):
        shutil.rmtree(cls.folder)

    def setUp(self):
        self.cache = self.path(f"{self.id().split('.')[-1]}.db")

    def path(self, name):
        return os.path.join(self.folder, name)

    def write(self, name, text):
        with open(self.path(name), "w") as stream:
            stream.write(text)
        return self.path(name)

    def start(self, *words):
        return subprocess.Popen(
            [BINARY, "--device", "cpu", "--cache", self.cache, *words], cwd=self.folder,
            env=self.environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True)

    def quern(self, *words, code=0):
        process = self.start(*words)
        out, err = process.communicate(timeout=300)
        self.assertEqual(process.returncode, code, f"quern {' '.join(words)}\n{out}{err}")
        return out, err

    def sweep(self, *words, code=0, configs="2"):
        out, _ = self.quern("sweep", *words, "--max-configs", configs, "--json", code=code)
        self.assertEqual(out.count("\n"), 1)
        return json.loads(out)

    def family(self, report, name="gemm"):
        rows = [row for row in report["families"] if row["family"] == name]
        self.assertEqual(len(rows), 1, report)
        self.assertEqual(list(rows[0]), ROW_FIELDS)
        return rows[0]

    def stored(self):
        """Key and generation of every winner."""
        with sqlite3.connect(self.cache) as database:
            return database.execute("SELECT key, generation FROM tuned").fetchall()

    def refuse(self, code, naming, *words):
        out, err = self.quern("sweep", *words, code=code)
        self.assertEqual(out, "")
        self.assertEqual(err.count("\n"), 1, err)
        self.assertIn(naming, err)


class ListTest(SweepCase):
    def test_a_grid_is_every_combination_and_is_not_tuned_twice(self):
        row = self.family(self.sweep(*GRID))
        self.assertEqual([row[name] for name in "specs tuned skipped failed left".split()],
                         [6, 6, 0, 0, 0])
        self.assertGreater(row["speedup"], 0.9)
        row = self.family(self.sweep(*GRID))
        self.assertEqual((row["tuned"], row["skipped"]), (0, 6))
        self.assertEqual({generation for _, generation in self.stored()}, {1})

    def test_sizes_of_one_bucket_are_tuned_once(self):
        row = self.family(self.sweep("--family", "copy", "--grid", "n=1000,1001,1024"), "copy")
        self.assertEqual((row["specs"], row["tuned"]), (1, 1))

    def test_a_file_holds_specs_or_columns(self):
        lines = self.write("specs.txt", "# two specs\ngemm m=1 n=64 k=64\n\ncopy n=4096\n")
        report = self.sweep("--shapes", lines)
        self.assertEqual([row["family"] for row in report["families"]], ["gemm", "copy"])
        table = self.write("table.csv", "m,n,k,batch,dtype,note\n1,64,64,,,first\n"
                                        "2,64,64,,bf16,second of two\n4 8,64,64,,,\n")
        row = self.family(self.sweep("--shapes", table, "--family", "gemm"))
        self.assertEqual((row["specs"], row["tuned"], row["skipped"]), (4, 3, 1))

    def test_misses_are_tuned_and_then_found(self):
        self.quern("run", "gemm", "m=3", "n=64", "k=64", "--iters", "1")
        row = self.family(self.sweep("--from-misses"))
        self.assertEqual((row["specs"], row["tuned"]), (1, 1))
        out, _ = self.quern("run", "gemm", "m=3", "n=64", "k=64", "--iters", "1", "--json")
        self.assertEqual(json.loads(out)["config_from"], "tuned")

    def test_a_cache_without_misses_is_nothing_to_do(self):
        self.quern("build", "copy", "n=8", "--device", "cpu")
        self.assertEqual(self.sweep("--from-misses")["families"], [])

    def test_a_model_is_listed_and_the_budget_ends_the_sweep(self):
        begin = time.monotonic()
        report = self.sweep(*SMALL_MODEL, "--budget", "3")
        self.assertEqual(list(report), REPORT_FIELDS)
        self.assertGreater(report["not_provided"], 0)
        row = self.family(report)
        self.assertGreater(row["specs"], 5)
        self.assertGreater(sum(row["left"] for row in report["families"]), 0)
        self.assertLess(time.monotonic() - begin, 60)


    def specs(self, *words):
        """How many of each family a list has; hardly one of them is tuned."""
        report = self.sweep(*words, "--budget", "0.001")
        return {row["family"]: row["specs"] for row in report["families"]}, report

    def test_families_of_a_model_are_chosen(self):
        everything, _ = self.specs(*SMALL_MODEL)
        chosen, report = self.specs(*SMALL_MODEL, "--family", "silu_and_mul,set_kv_buffer")
        self.assertEqual(chosen, {name: everything[name] for name in chosen})
        self.assertEqual(set(chosen), {"silu_and_mul", "set_kv_buffer"})
        self.assertEqual(report["not_provided"], 0)
        both, _ = self.specs(*SMALL_MODEL, *GRID)
        self.assertEqual(both, {"gemm": everything["gemm"] + 6})

    def test_misses_are_chosen_by_family(self):
        self.quern("run", "gemm", "m=3", "n=64", "k=64", "--iters", "1")
        self.quern("run", "copy", "n=100", "--iters", "1")
        self.assertEqual(self.specs("--from-misses", "--family", "copy")[0], {"copy": 1})

    def test_the_standard_set_has_every_kind_of_call(self):
        families, report = self.specs("--standard")
        for name in ("gemm attention_prefill attention_extend attention_decode mla_decode moe "
                     "kda_prefill kda_decode kda_step causal_conv1d causal_conv1d_update "
                     "set_kv_buffer gated_rmsnorm fused_qk_norm_rope silu_and_mul merge_state_v2 copy").split():
            self.assertGreater(families.get(name, 0), 0, name)
        self.assertGreater(families["gemm"], 30)
        self.assertLess(sum(families.values()), 200)
        self.assertEqual(report["not_provided"], 0)

    def test_what_no_variant_serves_is_passed_over_and_is_no_failure(self):
        out, err = self.quern("sweep", *GRID, "--variant", "gemm_sm90", "--json")
        report = json.loads(out)
        row = self.family(report)
        self.assertEqual([row[name] for name in "specs tuned not_provided failed left".split()],
                         [6, 0, 6, 0, 0])
        self.assertEqual(report["troubles"], [])
        self.assertEqual(len(report["passed_over"]), 6)
        self.assertIn("no variant serves", report["passed_over"][0]["why"])
        self.assertEqual(err.count("passed over: "), 6)
        self.assertEqual(self.quern("sweep", *GRID, "--variant", "gemm_sm90", "-q")[1], "")


class SharedTest(SweepCase):
    def test_a_killed_sweep_goes_on_where_it_was(self):
        process = self.start("sweep", *GRID, "--max-configs", "2")
        for _ in range(600):
            time.sleep(0.05)
            if os.path.exists(self.cache) and self.count_safely() >= 2:
                break
        process.send_signal(signal.SIGKILL)
        process.communicate()
        before = self.count_safely()
        self.assertGreaterEqual(before, 2)
        row = self.family(self.sweep(*GRID))
        self.assertEqual((row["skipped"], row["tuned"]), (before, 6 - before))

    def test_an_interrupted_sweep_says_that_it_goes_on(self):
        process = self.start("sweep", "--family", "gemm", "--grid", "m=1,2,64 n=64,128 k=64,128",
                             "--max-configs", "2")
        for _ in range(600):
            time.sleep(0.05)
            if os.path.exists(self.cache) and self.count_safely():
                break
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=300)
        self.assertEqual(process.returncode, 1, err)
        self.assertRegex(err, r"^quern: interrupted: \d+ not finished; the same command goes on")
        self.assertIn("12 specs on 1 device", out)
        self.assertLess(self.count_safely(), 12)

    def count_safely(self):
        try:
            return len(self.stored())
        except sqlite3.Error:  # not created yet
            return 0

    def test_two_sweeps_share_a_list(self):
        both = [self.start("sweep", *GRID, "--max-configs", "2", "--json") for _ in range(2)]
        rows = []
        for process in both:
            out, err = process.communicate(timeout=300)
            self.assertEqual(process.returncode, 0, err)
            rows.append(self.family(json.loads(out)))
        self.assertEqual(sum(row["tuned"] for row in rows), 6, rows)
        self.assertEqual([row["left"] for row in rows], [0, 0])
        self.assertEqual({generation for _, generation in self.stored()}, {1})


class RetuneTest(SweepCase):
    ONE = ["--family", "gemm", "--grid", "m=1 n=64 k=64"]

    def change(self, statement):
        with sqlite3.connect(self.cache) as database:
            database.execute(statement)

    def tuned(self, *words):
        return self.family(self.sweep(*self.ONE, *words))["tuned"]

    def test_what_was_cut_short_is_gone_on_with(self):
        self.assertEqual(self.tuned(), 1)
        self.change("UPDATE tuned SET provenance = provenance || ', stopped after 1 of 2'")
        row = self.family(self.sweep(*self.ONE))
        self.assertEqual((row["tuned"], row["cut_short"]), (1, 0))
        self.assertEqual(self.family(self.sweep(*self.ONE))["skipped"], 1)
        with sqlite3.connect(self.cache) as database:
            trials = dict(database.execute("SELECT generation, count(*) FROM trial GROUP BY 1"))
        self.assertEqual(trials, {1: 2, 2: 2})

    def test_a_speed_up_of_disturbed_times_is_doubtful(self):
        self.assertEqual(self.tuned(), 1)
        self.change("UPDATE tuned SET time_us = 8, spread_us = 1, heuristic_us = 12, "
                    "heuristic_spread_us = 1")
        self.assertEqual(self.family(self.sweep(*self.ONE))["disturbed"], 0)
        for change in ("heuristic_spread_us = 7", "heuristic_spread_us = 1, heuristic_us = 1000"):
            self.change(f"UPDATE tuned SET {change}")
            self.assertEqual(self.family(self.sweep(*self.ONE))["disturbed"], 1)
        self.assertIn("doubtful speed-ups: 1", self.quern("sweep", *self.ONE)[0])

    def test_what_is_tuned_again(self):
        self.assertEqual(self.tuned(), 1)
        self.assertEqual(self.tuned("--retune", "older-than=2"), 0)
        self.assertEqual(self.tuned("--retune", "driver-changed"), 0)
        self.change("UPDATE tuned SET created = created - 3 * 86400")
        self.assertEqual(self.tuned(), 0)
        self.assertEqual(self.tuned("--retune", "older-than=2"), 1)
        self.assertEqual(self.tuned("--retune", "older-than=2"), 0)
        for change in ("'another compiler'", "toolkit || ', driver 1.0'"):
            self.change(f"UPDATE tuned SET toolkit = {change}")
            self.assertEqual(self.tuned(), 0)
            self.assertEqual(self.tuned("--retune", "driver-changed"), 1)
        self.assertEqual(self.tuned("--retune", "driver-changed"), 0)
        self.assertEqual(self.tuned("--retune", "all"), 1)
        self.assertEqual([generation for _, generation in self.stored()], [1, 2, 3, 4, 5])


class ProfileTest(SweepCase):
    def test_what_was_measured_is_planned_with(self):
        profile = self.path("here.profile")
        report = self.sweep("--device-profile-out", profile)
        with open(profile) as stream:
            lines = stream.read().splitlines()
        self.assertEqual(lines[0], "quern device profile 1")
        facts = dict(line.split("=", 1) for line in lines[1:])
        self.assertEqual(facts["name"], report["devices"][0]["profile"])
        for rate in "memory_gbps f32_tflops tensor_tflops launch_us".split():
            self.assertGreater(float(facts[rate]), 0, rate)
        row = self.family(self.sweep(*RetuneTest.ONE, "--device-profile", profile))
        self.assertGreater(row["roof_share"], 0)
        self.assertEqual(row["tuned"], 1)
        self.assertEqual(row["ties"] == 1, row["speedup"] == 1)
        # It is the same device: what was tuned with the file is found without it.
        self.assertEqual(self.family(self.sweep(*RetuneTest.ONE))["skipped"], 1)
        # The rate of L2 is not measured, and stays in proportion to the tensor cores'.
        facts.update(l2_gbps="500", tensor_tflops="2")
        given = self.write("given.profile", lines[0] + "\n" + "".join(
            f"{name}={value}\n" for name, value in facts.items()))
        self.sweep("--device-profile", given, "--device-profile-out", profile)
        with open(profile) as stream:
            facts = dict(line.split("=", 1) for line in stream.read().splitlines()[1:])
        self.assertAlmostEqual(float(facts["l2_gbps"]) / float(facts["tensor_tflops"]), 250,
                               delta=0.25)

    def test_a_file_that_is_no_profile_is_refused(self):
        good = self.path("good.profile")
        self.sweep("--device-profile-out", good)
        with open(good) as stream:
            text = stream.read()
        for name, body in {
            "empty": "",
            "version": text.replace("profile 1", "profile 2"),
            "unknown": text + "speed=1\n",
            "twice": text + "sm=0\n",
            "nan": text.replace("cores=", "cores=nan\nx="),
            "negative": text.replace("memory_gbps=", "memory_gbps=-"),
            "lacking": "\n".join(line for line in text.splitlines() if "cores" not in line),
        }.items():
            with self.subTest(name):
                path = self.write(f"{name}.profile", body)
                self.refuse(2, f"device-profile={path}", *RetuneTest.ONE, "--device-profile", path)
        missing = self.path("none.profile")
        self.refuse(2, f"device-profile={missing}", *RetuneTest.ONE, "--device-profile", missing)

    def test_a_place_that_cannot_be_written_is_named(self):
        path = self.path("none/there.profile")
        self.refuse(1, f"device-profile-out={path}", "--device-profile-out", path)
        self.assertEqual(self.stored(), [], "nothing is tuned first")


class DocumentTest(SweepCase):
    def test_the_commands_of_the_manual_are_understood(self):
        """They are cut short: what a budget of nothing leaves unmeasured may be told as exit 1."""
        with open(MANUAL, encoding="utf-8") as stream:
            section = stream.read().split("\n## sweep\n")[1].split("\n## ")[0]
        commands = re.findall(r"^    quern (sweep .*)$", section, re.M)
        self.assertGreater(len(commands), 3)
        shutil.copy(os.path.join(MODELS, "llama-3.1-8b.json"), self.path("config.json"))
        for command in commands:
            with self.subTest(command):
                words = [*shlex.split(command), "--budget", "0.001", "--max-configs", "1", "--json"]
                process = self.start(*words)
                out, err = process.communicate(timeout=300)
                self.assertIn(process.returncode, (0, 1), err)
                self.assertEqual(list(json.loads(out)), REPORT_FIELDS)
                if process.returncode:
                    self.assertIn("was not measured", err)


class BadInputTest(SweepCase):
    def test_what_is_wrong_is_named(self):
        self.refuse(2, "what to tune must be given")
        self.refuse(2, "family: must be given", "--grid", "m=1")
        self.refuse(2, "grid: must be given", "--family", "gemm")
        self.refuse(2, "family=gemm,copy: must be one", "--family", "gemm,copy", "--grid", "m=1")
        self.refuse(2, "did you mean gemm", *SMALL_MODEL, "--family", "copy,gem")
        self.refuse(2, "did you mean gemm", "--family", "gem", "--grid", "m=1")
        self.refuse(2, "grid=m: must be", "--family", "gemm", "--grid", "m")
        self.refuse(2, "m=-1", "--family", "gemm", "--grid", "m=1,-1 n=64 k=64")
        self.refuse(2, "grid: ", "--family", "gemm", "--grid", "m=1,,2 n=64 k=64")
        self.refuse(2, "retune=never", *GRID, "--retune", "never")
        self.refuse(2, "retune=older-than=", *GRID, "--retune", "older-than=")
        self.refuse(1, "shapes=", "--shapes", self.path("none.txt"))
        wrong = self.write("wrong.txt", "gemm m=1 n=64 k=64\ngemm m=1 n=64\n")
        self.refuse(2, f"shapes={wrong}:2", "--shapes", wrong)
        table = self.write("wrong.csv", "m,n,q\n1,2,3\n")
        self.refuse(2, f"shapes={table}:2", "--shapes", table, "--family", "gemm")
        self.refuse(2, "family: must be given", "--shapes", table)

    def test_a_file_of_which_no_line_is_a_spec_is_refused(self):
        for name, text, naming in (
                ("one.json", '[{"m": 1, "n": 64, "k": 64}]\n', ":1: must be a spec"),
                ("many.json", '{\n"m": 1\n}\n', ":1: "),
                ("semi.csv", "m;n;k\n1;64;64\n", ":1: names must have ',' between, not ';'"),
                ("tabs.csv", "m\tn\tk\n1\t64\t64\n", "not a tab"),
                ("empty.txt", "# none\n", ": must have a spec"),
                ("heads.csv", "m,n,k\n", ": must have a spec")):
            with self.subTest(name):
                path = self.write(name, text)
                self.refuse(2, f"shapes={path}", "--shapes", path, "--family", "gemm")
                self.refuse(2, naming, "--shapes", path, "--family", "gemm")

    def test_a_cache_that_cannot_be_written_is_refused_before_anything_is_tuned(self):
        self.quern("build", "copy", "n=8", "--device", "cpu")
        os.chmod(self.cache, 0o400)
        self.refuse(1, f"cache={self.cache}: cannot be written", *GRID, "-q")

    def test_what_fails_is_listed_and_the_rest_is_tuned(self):
        report = self.sweep(*GRID, "--variant", "none", code=1)
        row = self.family(report)
        self.assertEqual((row["failed"], row["tuned"]), (6, 0))
        self.assertEqual(len(report["troubles"]), 6)
        self.assertIn("variant=none", report["troubles"][0]["why"])


if __name__ == "__main__":
    unittest.main()
