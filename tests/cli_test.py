#!/usr/bin/env python3
"""The quern command as a user meets it: every verb, arrays from files, exit codes, bad input.

Needs python3; the cases about arrays also NumPy. QUERN_BIN is the binary (else the one in
QUERN_BUILD, else build/quern). Everything is written below a private temporary directory, also HOME
and the cache.
"""
import hashlib
import json
import os
import pty
import re
import shutil
import sqlite3
import stat
import struct
import subprocess
import tempfile
import unittest

try:
    import numpy as np
except ImportError:
    np = None

BUILD = os.environ.get("QUERN_BUILD", "build")
BINARY = os.path.abspath(os.environ.get("QUERN_BIN", os.path.join(BUILD, "quern")))
RUN_FIELDS = (
    "family spec target variant config config_from artifact steps first_call_ms time_us spread_us "
    "tflops gbps"
).split()
STEP_FIELDS = "step from compile_ms load_ms registers spills shared_bytes".split()
CHECK_FIELDS = "ok rel_err row_err tol covered seed".split()
TUNE_FIELDS = "bucket candidates failed best heuristic speedup seconds scratch_bytes".split()
ENTRY_FIELDS = "variant config time_us spread_us".split()
STATS_FIELDS = "artifacts tuned trials bytes compiles hits misses".split()
SMALL = "gemm m=5 n=7 k=11".split()


def refuse_constant(name):
    raise ValueError(f"{name} is not JSON")


class CommandCase(unittest.TestCase):
    """A directory and a cache for each class; subclasses share what earlier cases compiled."""

    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.mkdtemp(prefix="quern_cli_")
        cls.cache = cls.path("t.db")
        cls.environment = {
            name: value for name, value in os.environ.items() if not name.startswith("QUERN_")
        }
        cls.environment.update(HOME=cls.folder, QUERN_CACHE=cls.cache, LC_ALL="C")
        if "QUERN_CLANG" in os.environ:
            cls.environment["QUERN_CLANG"] = os.environ["QUERN_CLANG"]

    @classmethod
    def tearDownClass(cls):
        shutil.rmtree(cls.folder)

    def tearDown(self):
        left = [name for name in os.listdir(self.folder) if name.endswith(".tmp")]
        self.assertEqual(left, [], "files were left behind")

    @classmethod
    def path(cls, name):
        return os.path.join(cls.folder, name)

    def clang(self, name, body):
        """A compiler that behaves badly."""
        path = self.path(name)
        with open(path, "w") as stream:
            stream.write(f"#!/bin/sh\n{body}\n")
        os.chmod(path, 0o755)
        return path

    def quern(self, *words, code=0, **environment):
        """On the CPU unless words name a device: what these cases say holds where a GPU is, too."""
        words = [str(word) for word in words]
        if not any(re.fullmatch("--device(=.*)?", word) for word in words):
            words = ["--device", "cpu", *words]
        done = subprocess.run(
            [BINARY, *words],
            cwd=self.folder,
            env={**self.environment, **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
        )
        shown = f"quern {' '.join(words)}\n{done.stdout}{done.stderr}"
        self.assertEqual(done.returncode, code, shown)
        return done

    def json(self, *words, code=0, **environment):
        """The one object on the one line of stdout; nothing on stderr."""
        done = self.quern(*words, "--json", code=code, **environment)
        self.assertEqual(done.stdout.count("\n"), 1, done.stdout)
        if not code:
            self.assertEqual(done.stderr, "")
        return json.loads(done.stdout, parse_constant=refuse_constant)

    def run_json(self, *words, **environment):
        return self.json("run", *words, "--iters", "3", **environment)


class VerbsTest(CommandCase):
    """Every verb does its work and prints the fields that docs/CLI.md names, in that order."""

    def test_version_and_help(self):
        self.assertRegex(self.quern("--version").stdout, r"^quern \d+\.\d+\.\d+\n$")
        self.assertEqual(self.quern("version").stdout, self.quern("--version").stdout)
        overview = self.quern("--help").stdout
        self.assertEqual(self.quern("help").stdout, overview)
        for verb in "doctor families gen build run tune cache".split():
            self.assertIn(f"\n  {verb} ", overview)
            own = self.quern(verb, "--help").stdout
            self.assertIn(f"quern {verb}", own)
            self.assertEqual(self.quern("help", verb).stdout, own)
            for option in "cache device variant config device-profile plugin json".split():
                self.assertIn(f"--{option}", own)

    def test_doctor(self):
        facts = self.json("doctor")
        self.assertEqual(list(facts), "version cpu cuda cache".split())
        self.assertEqual(facts["cpu"]["usable"], "yes", facts["cpu"])
        self.assertIn(facts["cuda"]["usable"], ("yes", "no"))
        if facts["cuda"]["usable"] == "no":
            self.assertTrue(facts["cuda"]["reason"])
        self.assertIn("cuda", self.quern("doctor").stdout)

    def test_doctor_says_what_a_missing_compiler_means(self):
        note = "only kernels that are in the cache can run"
        cpu, cuda = self.quern("doctor", QUERN_CLANG="/nowhere").stdout.split("\ncuda\n")
        self.assertIn(note, cpu)
        cpu, cuda = self.quern("doctor", QUERN_NVRTC="/nowhere").stdout.split("\ncuda\n")
        self.assertNotIn(note, cpu)
        usable = self.json("doctor")["cuda"]["usable"] == "yes"
        self.assertEqual(note in cuda, usable, cuda)

    def test_doctor_helps_where_the_cache_cannot_be_used(self):
        done = self.quern("doctor", "--json", "--cache", self.folder, code=1)
        facts = json.loads(done.stdout)
        self.assertEqual(facts["cache"]["usable"], "no")
        self.assertIn(self.folder, facts["cache"]["reason"])
        self.assertEqual(facts["cpu"]["usable"], "yes")

    def test_families(self):
        families = self.json("families")
        self.assertEqual(list(families), ["families"])
        for family in families["families"]:
            self.assertEqual(list(family), "name folder params arrays variants kernels".split())
            self.assertTrue(family["variants"])
            self.assertEqual([k["variant"] for k in family["kernels"]], family["variants"])
            for kernel in family["kernels"]:
                self.assertEqual(list(kernel), "variant device doc knobs".split())
                self.assertIn(kernel["device"], ("cpu", "cuda"))
                self.assertTrue(kernel["doc"])
                for knob in kernel["knobs"]:
                    self.assertEqual(list(knob), "name min max doc".split())
                    self.assertLessEqual(knob["min"], knob["max"])
            for param in family["params"]:
                self.assertEqual(list(param), "name class domain default doc".split())
                self.assertIn(param["class"], "static dynamic hint scalar".split())
            for array in family["arrays"]:
                self.assertEqual(list(array), "name role dtype shape".split())
        names = [family["name"] for family in families["families"]]
        self.assertLessEqual({"copy", "gemm"}, set(names))
        for name in names:
            self.assertIn(name, self.quern("families").stdout)
            self.assertIn("parameter", self.quern("families", name).stdout)
        (gemm,) = self.json("families", "gemm")["families"]
        params = {param["name"]: param for param in gemm["params"]}
        self.assertEqual(params["m"]["domain"], {"min": 0})
        self.assertIsNone(params["m"]["default"])
        self.assertIn("bf16", params["a"]["domain"])
        text = self.quern("families", "gemm").stdout
        for kernel in gemm["kernels"]:
            self.assertRegex(text, f"{kernel['variant']} +{kernel['device']} +{kernel['doc'][:20]}")
        self.assertRegex(text, "bias +IN if bias +bias +")
        self.assertRegex(text, "d +INOUT if accumulate, else OUT +d +")
        text = self.quern("families", "attention_decode").stdout
        self.assertRegex(text, "b +dynamic +at least 0 +required")
        self.assertRegex(text, "hkv +static +at least 1 +implied")
        self.assertRegex(text, "seq_lens +IN +i32 ")

    def test_gen_prints_defines_and_template(self):
        source = self.quern("gen", *SMALL).stdout
        self.assertIn("#define ", source)
        self.assertEqual(self.json("gen", *SMALL)["source"], source)
        self.assertEqual(list(self.json("gen", *SMALL)), "family spec target source".split())
        other = self.quern("gen", *SMALL, "--target", "cpu:x86-64-v1").stdout
        self.assertIn("#define ", other)

    def test_build_compiles_once_a_target(self):
        targets = "cpu:x86-64-v1,cpu:x86-64-v3"
        if os.uname().machine != "x86_64":
            targets = "cpu:aarch64"
        built = self.json("build", *SMALL, "--target", targets)
        self.assertEqual(list(built), "family spec builds".split())
        self.assertEqual([build["target"] for build in built["builds"]], targets.split(","))
        self.assertEqual({build["artifact"] for build in built["builds"]}, {"compiled"})
        again = self.json("build", *SMALL, "--target", targets)
        self.assertEqual({build["artifact"] for build in again["builds"]}, {"disk"})

    def test_other_targets_are_planned_with_the_profile_that_fits_them(self):
        gen = ["gen", "copy", "n=1000", "--target"]
        for target, name in (("sm_90a", "h100"), ("sm_80", "l40s"), ("sm_80", "a100")):
            self.assertIn("#define ", self.quern(*gen, target, "--device-profile", name).stdout)
        for target, name, sm in (
            ("sm_90a", "a100", "sm_80"),
            ("sm_89", "a100", "sm_80"),
            ("sm_80", "h100", "sm_90"),
            ("sm_120a", "b200", "sm_100"),
            ("sm_80", "cpu-desktop-8", "cpu"),
        ):
            done = self.quern(*gen, target, "--device-profile", name, code=2)
            wanted = f"quern: device-profile={name}: is for {sm}, target={target}\n"
            self.assertEqual(done.stderr, wanted)
        done = self.quern("run", *SMALL, "--device-profile", "h100", code=2)
        self.assertIn("device-profile=h100: is for sm_90, target=cpu:", done.stderr)
        done = self.quern("tune", *SMALL, "--device-profile", "h100", code=2)
        self.assertIn("device-profile=h100: tuning needs the device itself", done.stderr)

    def test_gpu_kernels_are_built_where_no_gpu_is(self):
        if "nvrtc_version" not in self.json("doctor")["cuda"]:
            self.skipTest("no NVRTC")
        targets = "sm_80,sm_90a"
        built = self.json("build", "copy", "n=1000", "--target", targets)["builds"]
        self.assertEqual([build["target"] for build in built], targets.split(","))
        for build in built:
            for step in build["steps"]:
                self.assertEqual(step["spills"], 0)
                self.assertGreater(step["registers"], 0)
                self.assertGreaterEqual(step["shared_bytes"], 0)
        (again,) = self.json("build", "copy", "n=1000", "--target", "sm_80")["builds"]
        self.assertEqual(again["artifact"], "disk")
        self.assertEqual(again["steps"][0]["registers"], built[0]["steps"][0]["registers"])

    def test_a_device_that_is_not_here_is_refused_with_the_reason(self):
        if self.json("doctor")["cuda"]["usable"] == "yes":
            self.skipTest("it is here")
        done = self.quern("run", *SMALL, "--device", "cuda", code=1)
        self.assertRegex(done.stderr, r"\Aquern: device=cuda[^\n]*\n\Z")

    def test_run_reports_every_field(self):
        report = self.run_json(*SMALL, "--check")
        self.assertEqual(list(report), RUN_FIELDS + ["check"])
        self.assertEqual(list(report["check"]), CHECK_FIELDS)
        self.assertTrue(report["steps"])
        for step in report["steps"]:
            self.assertEqual(list(step), STEP_FIELDS)
        self.assertIs(report["check"]["ok"], True)
        self.assertLessEqual(report["check"]["rel_err"], report["check"]["tol"])
        self.assertEqual(report["family"], "gemm")
        self.assertTrue(report["spec"].startswith("gemm m=5 n=7 k=11 "))
        self.assertGreater(report["time_us"], 0)
        self.assertEqual(list(self.run_json(*SMALL)), RUN_FIELDS)

    def test_run_takes_a_config_and_a_seed(self):
        report = self.run_json(*SMALL)
        config = ",".join(f"{name}={value}" for name, value in report["config"].items())
        given = self.run_json(
            *SMALL, "--check", "--seed", "7", "--config", config, "--variant", report["variant"]
        )
        self.assertEqual(given["config_from"], "given")
        self.assertEqual(given["config"], report["config"])
        self.assertEqual(given["check"]["seed"], 7)

    def test_run_text_is_for_people(self):
        text = self.quern("run", *SMALL, "--check", "--device", "cpu").stdout
        for word in ("variant", "config", "kernel", "time", "rate", "check     ok"):
            self.assertIn(word, text)

    def test_empty_sizes_run(self):
        for sizes in ("m=0 n=7 k=11", "m=5 n=0 k=11", "m=5 n=7 k=0"):
            with self.subTest(sizes):
                report = self.run_json("gemm", *sizes.split(), "--check")
                self.assertIs(report["check"]["ok"], True)

    def test_options_may_stand_before_the_verb(self):
        words = ["--json", "--device=cpu", "run", *SMALL]
        self.assertEqual(json.loads(self.quern(*words).stdout)["family"], "gemm")

    def test_verbose_says_what_happens_on_stderr(self):
        done = self.quern("run", *SMALL, "-v", "--device", "cpu", "--cache", self.path("v.db"))
        self.assertIn("quern: ", done.stderr)

    def test_a_full_disk_is_a_failure(self):
        with open("/dev/full", "w") as full:
            done = subprocess.run(
                [BINARY, "families"], env=self.environment, stdout=full, stderr=subprocess.PIPE
            )
        self.assertEqual(done.returncode, 1)
        self.assertIn(b"stdout", done.stderr)

    def test_the_example_finds_its_kernel_in_the_cache_the_second_time(self):
        program = os.path.join(os.path.dirname(BINARY), "examples", "gemm")
        if not os.path.exists(program):
            self.skipTest("examples are not built")
        environment = {**self.environment, "QUERN_CACHE": self.path("example.db")}
        for origin in ("from the compiler", "from the cache"):
            done = subprocess.run([program], env=environment, capture_output=True, text=True)
            self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
            self.assertIn(origin, done.stdout)
            self.assertIn(" 0 of ", done.stdout)


class ReuseTest(CommandCase):
    """Compiled once, then from disk, with or without a compiler."""

    def test_the_second_run_reuses_the_first(self):
        spec = "gemm m=301 n=517 k=1033 a=bf16 b=bf16 d=bf16".split()
        first = self.run_json(*spec, "--check")
        self.assertEqual(first["artifact"], "compiled")
        self.assertIs(first["check"]["ok"], True)
        self.assertEqual(self.run_json(*spec, "--check")["artifact"], "disk")
        bare = self.run_json(*spec, "--check", PATH="/nonexistent", QUERN_CLANG="")
        self.assertEqual(bare["artifact"], "disk")
        self.assertIs(bare["check"]["ok"], True)
        stats = self.json("cache", "stats")
        self.assertEqual(list(stats), STATS_FIELDS)
        self.assertEqual(stats["compiles"], len(first["steps"]) - self.shared_steps(first))
        self.assertEqual(stats["compiles"], stats["artifacts"])
        self.assertGreaterEqual(stats["hits"], 1)

    @staticmethod
    def shared_steps(report):
        """Steps beyond the first: all of a GEMM's steps come from one source."""
        return len(report["steps"]) - 1


class TuneTest(CommandCase):
    spec = "gemm m=64 n=96 k=128 a=f32 b=f32 d=f32 accumulate=1".split()

    @unittest.skipUnless(np, "needs NumPy")
    def test_tuning_leaves_the_buffer_and_run_uses_the_winner(self):
        x = np.random.default_rng(1).standard_normal((64, 96)).astype("<f4")
        np.save(self.path("x.npy"), x)
        files = ["--in", "d=x.npy", "--out", "d=y.npy"]
        result = self.json("tune", *self.spec, *files, "--max-configs", "4")
        self.assertEqual(list(result), TUNE_FIELDS)
        self.assertEqual(list(result["best"]), ENTRY_FIELDS)
        self.assertEqual(list(result["heuristic"]), ENTRY_FIELDS)
        self.assertGreaterEqual(result["candidates"], 1)
        y = np.load(self.path("y.npy"))
        self.assertEqual((y.dtype, y.shape), (x.dtype, x.shape))
        self.assertEqual(y.tobytes(), x.tobytes())
        tuned = self.run_json(*self.spec, "--check")
        self.assertEqual(tuned["config_from"], "tuned")
        self.assertEqual(tuned["config"], result["best"]["config"])
        self.assertIs(tuned["check"]["ok"], True)
        winners = [row["family"] for row in self.json("cache", "ls")["tuned"]]
        self.assertEqual(winners.count("gemm"), 1)

    def test_the_reason_of_each_failed_candidate_is_told(self):
        once = self.clang(
            "once",
            f"""case "$*" in *--version*) exec clang-19 "$@" ;; esac
            mkdir {self.path("used")} && exec clang-19 "$@"
            cat > /dev/null; echo out of luck >&2; exit 1""",
        )
        words = ["tune", *self.spec, "--max-configs", "4", "--device", "cpu", "--cache", ""]
        done = self.quern(*words, "-v", QUERN_CLANG=once)
        failed = int(re.search(r"(\d+) failed, ", done.stdout).group(1))
        self.assertGreaterEqual(failed, 1)
        told = [line for line in done.stderr.splitlines() if line.startswith("quern: rejected ")]
        self.assertEqual(len(told), failed, done.stderr)
        for line in told:
            self.assertRegex(line, "gemm_cpu .*algo=.*: .*[a-z]")

    @unittest.skipUnless(np, "needs NumPy")
    def test_arrays_that_are_not_of_the_bound_are_said_to_be_unused(self):
        for n, count in ((1000, 1), (1024, 0)):
            np.save(self.path("x.npy"), np.ones(n, "<f4"))
            words = ["copy", f"n={n}", "--in", "x=x.npy", "--max-configs", "2", "--force"]
            out = self.quern("tune", *words, "--device", "cpu").stdout
            self.assertEqual(out.count("your arrays were not used"), count, out)

    def test_a_bar_is_drawn_only_on_a_terminal(self):
        words = ["tune", "copy", "n=1000", "--max-configs", "2", "--device", "cpu"]
        self.assertEqual(self.quern(*words).stderr, "")
        self.assertIn("/", self.on_terminal(*words, "--force"))
        self.assertEqual(self.on_terminal(*words, "--force", "-q"), "")

    def on_terminal(self, *words):
        """What is written to stderr when that is a terminal."""
        ours, theirs = pty.openpty()
        process = subprocess.Popen(
            [BINARY, *words],
            env={**self.environment, "TERM": "xterm"},
            stdout=subprocess.DEVNULL,
            stderr=theirs,
        )
        os.close(theirs)
        written = b""
        while True:
            try:
                part = os.read(ours, 4096)
            except OSError:  # how Linux says that the other side is closed
                part = b""
            if not part:
                break
            written += part
        os.close(ours)
        self.assertEqual(process.wait(), 0, written)
        return written.decode()


class CacheTest(CommandCase):
    """What the cache verbs say about one artifact and one winner."""

    spec = "gemm m=250 n=96 k=128".split()

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        words = ["tune", *cls.spec, "--max-configs", "2", "--device", "cpu"]
        subprocess.run([BINARY, *words], env=cls.environment, capture_output=True, check=True)

    def test_ls_and_show(self):
        listed = self.json("cache", "ls")
        self.assertEqual(list(listed), ["artifacts", "tuned"])
        self.assertGreaterEqual(len(listed["artifacts"]), 1)
        self.assertEqual(len(listed["tuned"]), 1)
        text = self.quern("cache", "ls").stdout
        for row in listed["artifacts"] + listed["tuned"]:
            self.assertIn(row["key"][:12], text)
            (shown,) = self.json("cache", "show", row["key"])["rows"]
            self.assertLessEqual(row.items(), shown.items())
            self.assertIn("=", shown["text"])
            whole = self.quern("cache", "show", row["key"][:12]).stdout
            for line in shown["text"].splitlines():
                self.assertIn(line, whole)

    def test_explain_names_the_line_that_differs(self):
        words = ["cache", "explain", "gemm", "n=96", "k=128"]
        hit = self.json(*words, "m=250")
        self.assertEqual(list(hit), "family spec differences".split())
        for line in hit["differences"]:
            self.assertEqual(list(line), "table key nearest name wanted have".split())
        tuned = [line for line in hit["differences"] if line["table"] == "tuned"]
        self.assertEqual([line["name"] for line in tuned], [None])
        miss = self.json(*words, "m=500")
        tuned = [line for line in miss["differences"] if line["table"] == "tuned"]
        self.assertEqual(
            [(line["name"], line["wanted"], line["have"]) for line in tuned], [("m", "512", "256")]
        )
        text = self.quern(*words, "m=500", "--device", "cpu").stdout
        self.assertRegex(text, r"m: wanted 512, nearest stored \(\w+\) has 256")

    def test_explain_says_in_one_line_what_other_places_have(self):
        cache = ["--cache", self.path("places.db")]
        spec = ["copy", "n=1000"]
        have, wanted = "cpu:x86-64-v2", "cpu:x86-64-v1"
        self.quern("build", *spec, "--target", f"{have},cpu:aarch64", *cache)

        def artifact(*words):
            lines = self.json("cache", "explain", *words, *cache)["differences"]
            return [line for line in lines if line["table"] == "artifact"]

        (hit,) = artifact(*spec, "--target", have)
        self.assertIsNone(hit["name"])
        self.assertIsNotNone(hit["nearest"])
        (miss,) = artifact(*spec, "--target", wanted)
        self.assertEqual((miss["name"], miss["wanted"]), ("target", wanted))
        self.assertEqual(set(miss["have"].split(", ")), {have, "cpu:aarch64"})
        self.assertIsNone(miss["nearest"])
        (miss,) = artifact("copy", "n=1000", "dtype=bf16", "--target", have)
        self.assertTrue(miss["name"].startswith("define."), miss)
        text = self.quern("cache", "explain", *spec, "--target", wanted, *cache).stdout
        self.assertRegex(text, f"miss: target: wanted {wanted}, stored: cpu:")

    def test_verify_sets_damaged_rows_aside(self):
        damaged = self.path("damaged.db")
        shutil.copy(self.cache, damaged)
        sound = self.json("cache", "verify", "--cache", damaged)
        self.assertEqual(list(sound), ["checked", "damaged"])
        self.assertGreaterEqual(sound["checked"], 1)
        self.assertEqual(sound["damaged"], 0)
        with sqlite3.connect(damaged) as database:
            database.execute(
                "UPDATE artifact SET blob = zeroblob(length(blob)) "
                "WHERE rowid = (SELECT min(rowid) FROM artifact)"
            )
        database.close()
        done = self.quern("cache", "verify", "--json", "--cache", damaged, code=1)
        self.assertEqual(json.loads(done.stdout)["damaged"], 1)
        self.assertIn("damaged=1", done.stderr)
        self.assertEqual(self.json("cache", "verify", "--cache", damaged)["damaged"], 0)

    def test_gc_makes_the_cache_smaller_and_says_what_went(self):
        cache = ("--cache", self.path("gc.db"))
        self.quern("build", "copy", "n=64", *cache)
        self.assertIn("one must be given", self.quern("cache", "gc", *cache, code=2).stderr)
        refused = self.quern("cache", "gc", "--older-than", 0, *cache, code=2)
        self.assertIn("older-than=0: ", refused.stderr)
        kept = self.json("cache", "gc", "--older-than", 1, "--max-size", 64, *cache)
        self.assertEqual(kept["artifacts"], 0)
        database = sqlite3.connect(cache[1])
        database.execute("UPDATE artifact SET last_use = last_use - 3 * 86400")
        database.commit()
        database.close()
        gone = self.json("cache", "gc", "--older-than", 2, *cache)
        self.assertEqual(list(gone), ["artifacts", "trials", "misses", "bytes"])
        self.assertEqual(gone["artifacts"], 1)
        self.assertEqual(self.json("cache", "stats", *cache)["artifacts"], 0)

    def test_what_only_reads_makes_no_cache_of_a_mistyped_name(self):
        name = self.path("nosuch.db")
        tail = ("--cache", name)
        model = ("--model", "x.json", "--dry-run")
        for words in (("cache", "ls"), ("cache", "show", "0"), ("cache", "explain", "copy", "n=1"),
                      ("cache", "stats"), ("cache", "verify"), ("cache", "gc", "--max-size", 1),
                      ("cache", "export", "-o", self.path("x.qdb")), ("report",),
                      ("sweep", "--from-misses"), ("prebuild", *model)):
            refused = self.quern(*words, *tail, code=1)
            self.assertRegex(refused.stderr, f"cache={name}: .*No such file")
            self.assertFalse(os.path.exists(name))

    def test_a_bundle_is_exported_imported_and_used_as_a_base(self):
        bundle, other = self.path("bundle.qdb"), self.path("other.db")
        listed = self.json("cache", "ls")
        artifacts, tuned = len(listed["artifacts"]), len(listed["tuned"])
        taken = self.json("cache", "export", "-o", bundle, "--family", "gemm")
        self.assertEqual(list(taken)[:3], ["artifacts", "tuned", "manifest"])
        self.assertEqual((taken["artifacts"], taken["tuned"]), (artifacts, tuned))
        again = self.quern("cache", "export", "-o", bundle, code=2)
        self.assertIn(f"output={bundle}: is there already", again.stderr)
        nothing = self.path("nothing.qdb")
        self.quern("cache", "export", "-o", nothing, "--family", "copy", code=1)
        for option in ("--target", "cpu:aarch64"), ("--model", "nosuch"):
            self.quern("cache", "export", "-o", nothing, *option, code=1)
        refused = self.quern("cache", "export", "-o", nothing, "--target", "sm_9", code=2)
        self.assertIn("target=sm_9: ", refused.stderr)
        self.assertFalse(os.path.exists(nothing))
        taken = self.json("cache", "import", bundle, bundle, "--cache", other)
        self.assertEqual((taken["artifacts"], taken["artifacts_there"]), (artifacts, artifacts))
        self.assertEqual((taken["tuned"], taken["tuned_there"]), (tuned, tuned))
        self.assertEqual(len(self.json("cache", "ls", "--cache", other)["artifacts"]), artifacts)
        missing = self.quern("cache", "import", self.path("no.qdb"), "--cache", other, code=1)
        self.assertIn("no.qdb: is not there", missing.stderr)
        self.assertIn("file: must be given", self.quern("cache", "import", code=2).stderr)
        self.assertIn("output: must be given", self.quern("cache", "export", code=2).stderr)

        over = {**self.environment, "QUERN_BASE": bundle, "QUERN_MODE": "sealed"}
        del over["QUERN_CACHE"]
        words = [BINARY, "run", *self.spec, "--device", "cpu", "--cache", "", "--json"]
        before = os.stat(bundle)
        done = subprocess.run(words, env=over, capture_output=True, text=True)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(os.stat(bundle).st_mtime_ns, before.st_mtime_ns)
        words = [BINARY, "doctor", "--device", "cpu", "--cache", "", "--json"]
        done = subprocess.run(words, env=over, capture_output=True, text=True)
        self.assertIn(f"{bundle}: {artifacts} artifacts", done.stdout)
        over["QUERN_BASE"] = self.path("no.qdb")
        done = subprocess.run(words, env=over, capture_output=True, text=True)
        self.assertEqual(done.returncode, 1)
        self.assertIn(f"base={self.path('no.qdb')}: is not there", done.stderr)

    def test_a_bundle_for_another_device_is_told_of_once_and_only_where_something_is_missing(self):
        own = self.json("doctor")["cpu"]["target"]
        other = "cpu:x86-64-v1" if own == "cpu:aarch64" else "cpu:aarch64"
        ours, theirs = self.path("ours.qdb"), self.path("theirs.qdb")
        self.quern("build", *self.spec, "--cache", ours)
        self.quern("build", *self.spec, "--target", other, "--cache", theirs)
        run = ("run", *self.spec, "--iters", "1", "--cache", "")
        told = self.quern(*run, QUERN_BASE=theirs).stderr
        self.assertEqual(told, f"quern: base={theirs}: has kernels for {other} and none for this "
                         f"device, which is {own}\n")
        told = self.quern(*run, code=1, QUERN_BASE=theirs, QUERN_MODE="sealed").stderr
        self.assertIn(f"{theirs}: has kernels for {other}", told)
        self.assertEqual(self.quern(*run, QUERN_BASE=f"{theirs}:{ours}").stderr, "")
        missing = ("run", *SMALL, "b=f16", "--iters", "1", "--cache", "")
        self.assertEqual(self.quern(*missing, QUERN_BASE=ours).stderr, "")

    def test_stats_text(self):
        self.assertRegex(self.quern("cache", "stats").stdout, r"compiles +\d+")


def to_bf16(values):
    """Round f32 to bf16 bits, to nearest, ties to even."""
    bits = np.ascontiguousarray(values, "<f4").view("<u4").astype("u8")
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")


def from_bf16(bits):
    return (bits.astype("<u4") << 16).view("<f4")


def save_safetensors(path, tensors):
    """tensors: name -> (dtype, shape, bytes)."""
    header, data = {"__metadata__": {"format": "np"}}, b""
    for name, (dtype, shape, content) in tensors.items():
        offsets = [len(data), len(data) + len(content)]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": offsets}
        data += content
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text + data)


@unittest.skipUnless(np, "needs NumPy")
class ArraysTest(CommandCase):
    """Arrays written by NumPy give NumPy's product."""

    m, n, k = 9, 33, 65
    sizes = [f"m={m}", f"n={n}", f"k={k}"]

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        random = np.random.default_rng(2)
        cls.a = random.standard_normal((cls.m, cls.k)).astype("<f4")
        cls.b = random.standard_normal((cls.n, cls.k)).astype("<f4")
        cls.product = cls.a.astype("f8") @ cls.b.astype("f8").T
        np.save(cls.path("a.npy"), cls.a)
        np.save(cls.path("b.npy"), cls.b)

    def gemm(self, *words, a="a.npy", b="b.npy"):
        files = ["--in", f"a={a}", "--in", f"b={b}", "--out", "d=d.npy"]
        report = self.run_json("gemm", *self.sizes, *files, "--check", *words)
        self.assertIs(report["check"]["ok"], True)
        return np.load(self.path("d.npy"))

    def assert_near(self, have, want, tolerance):
        error = np.linalg.norm(have.astype("f8") - want) / np.linalg.norm(want)
        self.assertLessEqual(error, tolerance)

    def test_f32(self):
        d = self.gemm()
        self.assertEqual((d.dtype, d.shape), (np.dtype("<f4"), (self.m, self.n)))
        self.assert_near(d, self.product, 1e-6)

    def test_f16(self):
        a, b = self.a.astype("<f2"), self.b.astype("<f2")
        np.save(self.path("a16.npy"), a)
        np.save(self.path("b16.npy"), b)
        d = self.gemm("a=f16", "b=f16", "d=f16", a="a16.npy", b="b16.npy")
        self.assertEqual(d.dtype, np.dtype("<f2"))
        self.assert_near(d, a.astype("f8") @ b.astype("f8").T, 4e-4)

    def test_bf16_as_raw_bits_and_converted_from_f32_are_the_same(self):
        types = ["a=bf16", "b=bf16", "d=bf16"]
        a, b = to_bf16(self.a), to_bf16(self.b)
        np.save(self.path("au2.npy"), a)
        np.save(self.path("bv2.npy"), b.view("V2"))
        raw = self.gemm(*types, a="au2.npy", b="bv2.npy")
        self.assertEqual(raw.dtype, np.dtype("<u2"))
        want = from_bf16(a).astype("f8") @ from_bf16(b).astype("f8").T
        self.assert_near(from_bf16(raw), want, 2.5e-3)
        self.assertEqual(self.gemm(*types).tobytes(), raw.tobytes())

    def test_safetensors(self):
        path = self.path("w.safetensors")
        save_safetensors(
            path,
            {
                "odd": ("U8", (3,), b"abc"),  # so that the next one is not aligned
                "q.weight": ("F32", self.b.shape, self.b.tobytes()),
                "x": ("BF16", self.a.shape, to_bf16(self.a).tobytes()),
            },
        )
        d = self.gemm(b="w.safetensors:q.weight")
        self.assert_near(d, self.product, 1e-6)
        d = self.gemm("a=bf16", "b=bf16", "d=f32", a="w.safetensors:x", b="w.safetensors:q.weight")
        want = from_bf16(to_bf16(self.a)).astype("f8") @ from_bf16(to_bf16(self.b)).astype("f8").T
        self.assert_near(d, want, 1e-6)

    def test_fortran_order_f64_and_a_batch_of_one(self):
        np.save(self.path("af.npy"), np.asfortranarray(self.a))
        np.save(self.path("b8.npy"), self.b.astype("<f8")[None])
        self.assertTrue(np.load(self.path("af.npy")).flags.f_contiguous)
        self.assert_near(self.gemm(a="af.npy", b="b8.npy"), self.product, 1e-6)

    def test_leading_extents_may_be_one_of_the_file(self):
        packed = np.random.default_rng(4).standard_normal((6, 2, 64), "<f4")
        spec = "attention b=2 sq=3 hq=2 d=64 dtype=f32 causal=1".split()
        for name, shape in (("packed", (6, 2, 64)), ("whole", (2, 3, 2, 64))):
            np.save(self.path(f"{name}.npy"), packed.reshape(shape))
            words = [word for array in "qkv" for word in ("--in", f"{array}={name}.npy")]
            self.run_json(*spec, *words, "--out", f"o=o_{name}.npy")
        taken, wanted = (np.load(self.path(f"o_{name}.npy")) for name in ("packed", "whole"))
        self.assertEqual(taken.shape, (2, 3, 2, 64))
        self.assertEqual(taken.tobytes(), wanted.tobytes())
        one = [word for array in "qkv" for word in ("--in", f"{array}=packed.npy")]
        self.run_json(*"attention sq=6 hq=2 d=64 dtype=f32".split(), *one, "--out", "o=o.npy")
        self.assertEqual(np.load(self.path("o.npy")).shape, (6, 2, 64))

    def test_out_is_left_by_exactly_one_call(self):
        random = np.random.default_rng(3)
        a, b, d = (
            random.integers(-4, 5, shape).astype("<f4")
            for shape in ((self.m, self.k), (self.n, self.k), (self.m, self.n))
        )
        for name, array in (("ai", a), ("bi", b), ("di", d)):
            np.save(self.path(f"{name}.npy"), array)
        words = ["accumulate=1", "--in", "d=di.npy", "--iters", "5"]
        self.assertTrue((self.gemm(*words, a="ai.npy", b="bi.npy") == d + a @ b.T).all())

    def test_drawn_arrays_repeat_with_their_seed(self):
        outputs = []
        for seed in (1, 1, 2):
            self.run_json("gemm", *self.sizes, "--out", "d=s.npy", "--seed", seed)
            outputs.append(np.load(self.path("s.npy")).tobytes())
        self.assertEqual(outputs[0], outputs[1])
        self.assertNotEqual(outputs[0], outputs[2])


class RefusalCase(CommandCase):
    """One clear line that names the mistake, the right exit code, and a cache left as it was."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        words = ["run", *SMALL, "--device", "cpu"]
        subprocess.run([BINARY, *words], env=cls.environment, capture_output=True, check=True)

    def cache_bytes(self):
        with open(self.cache, "rb") as stream:
            return hashlib.sha256(stream.read()).hexdigest()

    def refuse(self, code, expected, *words, state=None, lines=1, **environment):
        """state: what must stay the same; else the cache's bytes. lines: how many on stderr."""
        state = state or self.cache_bytes
        with self.subTest(" ".join(words)):
            before = state()
            done = self.quern(*words, code=code, **environment)
            self.assertEqual(done.stdout, "")
            self.assertIn(expected, done.stderr)
            if lines:
                self.assertEqual(done.stderr.count("\n"), lines, done.stderr)
            self.assertEqual(state(), before, "the cache was changed")


class BadWordsTest(RefusalCase):
    """Words that mean nothing, and places that cannot be used."""

    def test_words(self):
        self.refuse(2, "verb: must be given")
        self.refuse(2, "verb=:", "")
        self.refuse(2, "verb=rnu", "rnu", *SMALL)
        self.refuse(2, "did you mean run?", "rnu", *SMALL)
        self.refuse(2, "verb=gemm", *SMALL)
        self.refuse(2, "family", "run")
        self.refuse(2, "family=gem", "run", "gem", "m=1")
        self.refuse(2, "did you mean gemm?", "run", "gem", "m=1")
        self.refuse(2, "family=m=5", "run", "m=5")
        self.refuse(2, "family=nosuch", "families", "nosuch")
        self.refuse(2, "cache=sl", "cache", "sl")
        self.refuse(2, "key", "cache", "show")
        self.refuse(2, "key=xyz", "cache", "show", "xyz")
        self.refuse(1, "key=" + 32 * "0", "cache", "show", 32 * "0")
        self.refuse(2, "word=more", "cache", "ls", "more")
        self.refuse(2, "word=more", "families", "gemm", "more")
        self.refuse(2, "as in quern cache explain gemm m=", "cache", "explain")
        self.refuse(2, "verb=nosuch", "help", "nosuch")

    def test_options(self):
        self.refuse(2, "option=--itres", "run", *SMALL, "--itres", "3")
        self.refuse(2, "did you mean --iters?", "run", *SMALL, "--itres", "3")
        self.refuse(2, "option=-z", "run", *SMALL, "-z")
        self.refuse(2, "option=--json=1", "run", *SMALL, "--json=1")
        self.refuse(2, "option=--config", "--device", "cpu", "run", *SMALL, "--config")
        self.refuse(2, "option=--budget", "run", *SMALL, "--budget", "3")
        self.refuse(2, "option=--iters", "tune", *SMALL, "--iters", "3")
        for bad in ("0", "-1", "x", "1e3", "", "99999999999999999999"):
            self.refuse(2, f"iters={bad}", "run", *SMALL, "--iters", bad)
        self.refuse(2, "seed=-1", "run", *SMALL, "--seed", "-1")
        for bad in ("0", "-3", "nan", "inf", "3s"):
            self.refuse(2, f"budget={bad}", "tune", *SMALL, "--budget", bad)
        self.refuse(2, "max-configs=0", "tune", *SMALL, "--max-configs", "0")

    def test_specs(self):
        for bad in ("-1", "abc", "1.5", "", "1e3", "99999999999999999999", str(2**63 - 1)):
            self.refuse(2, f"m={bad}", "run", "gemm", f"m={bad}", "n=7", "k=11")
        self.refuse(2, "mm=5", "run", "gemm", "mm=5", "n=7", "k=11")
        self.refuse(2, "did you mean layout?", "run", *SMALL, "layuot=nn")
        self.refuse(2, "a=f33", "run", *SMALL, "a=f33")
        self.refuse(2, "layout=tt", "run", *SMALL, "layout=tt")
        self.refuse(2, "accumulate=2", "run", *SMALL, "accumulate=2")
        self.refuse(2, "m=6", "run", *SMALL, "m=6")
        self.refuse(2, "word=causal", "run", *SMALL, "causal")
        self.refuse(2, "n: must be given", "run", "gemm", "m=5", "k=11")
        self.refuse(2, "m=1099511627776: must be", "run", "gemm", f"m={1 << 40}", "n=1", "k=1")
        huge = [f"m={1 << 30}", f"n={1 << 30}"]
        self.refuse(2, "63 bits", "run", "gemm", *huge, "k=1", f"batch={1 << 24}")
        self.refuse(1, f"d: needs {1 << 62} bytes (f32 of", "run", "gemm", *huge, "k=0")

    def test_choices(self):
        self.refuse(2, "target=sm_1", "gen", *SMALL, "--target", "sm_1")
        self.refuse(2, "target=", "gen", *SMALL, "--target", "")
        self.refuse(2, "target=nosuch", "build", *SMALL, "--target", "nosuch")
        self.refuse(2, "target=nosuch", "cache", "explain", *SMALL, "--target", "nosuch")
        for bad in ("cpu:x86-64-v1,,cpu:x86-64-v2", "cpu:x86-64-v1,", ",cpu:x86-64-v1", ","):
            self.refuse(2, f"target={bad}: must be", "build", *SMALL, "--target", bad)
        self.refuse(2, "target=nosuch", "build", *SMALL, "--target", "cpu:x86-64-v1,nosuch")
        self.refuse(1, "target=sm_80", "build", *SMALL, "--target", "cpu:x86-64-v1,sm_80",
                    "--variant", "gemm_cpu")
        other_kind = "variant=gemm_sm90: is for CUDA, target=cpu:"
        self.refuse(1, other_kind, "run", *SMALL, "--variant", "gemm_sm90")
        not_served = "target=sm_80: gemm_sm90 (bf16 and f16 on Hopper: "
        self.refuse(1, not_served, "gen", *SMALL, "--variant", "gemm_sm90", "--target", "sm_80")
        self.refuse(2, "nosuch=1", "run", *SMALL, "--config", "nosuch=1")
        self.refuse(2, "nosuch", "run", *SMALL, "--config", "nosuch")
        self.refuse(2, "variant=nosuch", "run", *SMALL, "--variant", "nosuch")
        self.refuse(2, "device=tpu", "run", *SMALL, "--device", "tpu")
        self.refuse(2, "nosuch", "run", *SMALL, "--device-profile", "nosuch")
        self.refuse(2, "plugin=nosuch.so", "families", "--plugin", "nosuch.so")

    def test_caches(self):
        self.refuse(1, f"cache={self.folder}", "run", *SMALL, "--cache", self.folder)
        with open(self.path("text.db"), "w") as stream:
            stream.write("this is not a database, however long it may be" * 100)
        os.chmod(self.path("text.db"), stat.S_IRUSR | stat.S_IWUSR)
        self.refuse(1, "cache=", "run", *SMALL, "--cache", self.path("text.db"))
        shutil.copy(self.cache, self.path("newer.db"))
        with sqlite3.connect(self.path("newer.db")) as database:
            database.execute("PRAGMA journal_mode = DELETE")
            database.execute("PRAGMA user_version = 99")
        database.close()
        self.refuse(1, "newer", "run", *SMALL, "--cache", self.path("newer.db"))
        if os.getuid() != 0:
            shutil.copy(self.cache, self.path("mute.db"))
            os.chmod(self.path("mute.db"), 0)
            self.refuse(1, "cache=", "run", *SMALL, "--cache", self.path("mute.db"))

    def refuse_compile(self, expected, lines=1, **environment):
        """The miss is counted, so the cache's bytes change; what is stored must not."""
        spec = "gemm m=5 n=7 k=11 a=f16 b=f16 d=f16".split()  # not in the cache
        stored = lambda: self.json("cache", "ls")
        self.refuse(1, expected, "run", *spec, state=stored, lines=lines, **environment)

    def test_compilers(self):
        self.refuse_compile("clang", QUERN_CLANG="/nonexistent/clang")
        self.refuse_compile("clang", QUERN_CLANG="", PATH="/nonexistent")
        version = 'case "$*" in *version*) echo "clang version 19.1.7"; exit;; esac'
        failing = self.clang("failing", f"{version}\necho 'no space on device' >&2; exit 1")
        self.refuse_compile("no space on device", lines=0, QUERN_CLANG=failing)
        killed = self.clang("killed", f"{version}\nkill -KILL $$")
        self.refuse_compile("clang", lines=0, QUERN_CLANG=killed)


@unittest.skipUnless(np, "needs NumPy")
class BadArraysTest(RefusalCase):
    """Files that must not be taken for an array."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.good = np.arange(55, dtype="<f4").reshape(5, 11)
        np.save(cls.path("good.npy"), cls.good)

    def refuse_a(self, expected, name, *words, code=1):
        self.refuse(code, expected, "run", *SMALL, "--in", f"a={self.path(name)}", *words)

    def refuse_bytes(self, expected, content):
        with open(self.path("bad.npy"), "wb") as stream:
            stream.write(content)
        self.refuse_a(f"a={self.path('bad.npy')}: ", "bad.npy")
        self.refuse_a(expected, "bad.npy")

    def test_names(self):
        self.refuse(2, "q=x.npy", "run", *SMALL, "--in", "q=x.npy")
        self.refuse(2, "must be one of: ", "run", *SMALL, "--in", "q=x.npy")
        self.refuse(2, "array=x.npy", "run", *SMALL, "--in", "x.npy")
        self.refuse(2, "array=a=", "run", *SMALL, "--in", "a=")
        role = "d is an output here; it is read only where its role is INOUT (accumulate ? "
        self.refuse(2, role, "run", *SMALL, "--in", "d=good.npy")
        self.refuse(2, "bias is absent here", "run", *SMALL, "--in", "bias=good.npy")
        self.refuse(2, "a is an input and is never written", "run", *SMALL, "--out", "a=y.npy")
        self.refuse(2, "d=y.txt", "run", *SMALL, "--out", "d=y.txt")
        self.refuse_a("given twice", "good.npy", "--in", "a=good.npy", code=2)

    def test_files(self):
        self.refuse_a("No such file", "nosuch.npy")
        self.refuse_a("regular file", "")
        os.mkfifo(self.path("pipe.npy"))
        self.refuse_a("regular file", "pipe.npy")
        self.refuse(1, "d=nosuch/y.npy", "run", *SMALL, "--out", "d=nosuch/y.npy")

    def test_contents(self):
        with open(self.path("good.npy"), "rb") as stream:
            whole = stream.read()
        self.refuse_bytes("not a .npy file", b"")
        self.refuse_bytes("not a .npy file", b"PK\3\4" + whole)
        self.refuse_bytes("truncated", whole[:-1])
        self.refuse_bytes("truncated", whole[:40])
        self.refuse_bytes("too long", whole + b"\0")
        self.refuse_bytes("version", whole[:6] + b"\7" + whole[7:])
        self.refuse_bytes("malformed header", whole.replace(b"'descr'", b"'decsr'"))
        self.refuse_bytes("63 bits", whole.replace(b"(5, 11)", b"(9223372036854775807, 11)", 1)
                          .replace(b" " * 18, b"", 1))

    def test_dtypes_and_shapes(self):
        for dtype in ("<i4", "<i8", "<u2", "<c8", ">f4", "?"):
            np.save(self.path("dtype.npy"), self.good.astype(dtype))
            self.refuse_a("must be", "dtype.npy")
            self.refuse_a("dtype '", "dtype.npy")
        halves = np.arange(60, dtype="<f4")
        for array in (self.good.T, self.good[:, :-1], self.good[None, None, 0], self.good.ravel(),
                      halves[:44].reshape(2, 2, 11), halves.reshape(5, 2, 6)):
            np.save(self.path("shape.npy"), np.ascontiguousarray(array))
            self.refuse_a("shape (", "shape.npy")
        for shape in ((3, 2, 2, 64), (5, 2, 64), (2, 6, 64), (6, 128)):
            np.save(self.path("q.npy"), np.zeros(shape, "<f4"))
            spec = "attention b=2 sq=3 hq=2 d=64 dtype=f32".split()
            self.refuse(1, "must be (2, 3, 2, 64)", "run", *spec, "--in",
                        f"q={self.path('q.npy')}")

    def test_safetensors(self):
        content = self.good.tobytes()
        save_safetensors(self.path("w.safetensors"), {"left.weight": ("F32", (5, 11), content)})
        self.refuse_a("FILE.safetensors:TENSOR", "w.safetensors")
        self.refuse_a("did you mean 'left.weight'?", "w.safetensors:left.wieght")
        save_safetensors(self.path("short.safetensors"), {"x": ("F32", (5, 12), content)})
        self.refuse_a("needs 240 bytes", "short.safetensors:x")
        with open(self.path("w.safetensors"), "rb") as stream:
            whole = stream.read()
        with open(self.path("cut.safetensors"), "wb") as stream:
            stream.write(whole[:-1])
        self.refuse_a("truncated", "cut.safetensors:left.weight")


if __name__ == "__main__":
    unittest.main()
