#!/usr/bin/env python3
"""Contexts: options, caches, modes, logs, forks, facts; how the library is found and refused."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
import textwrap
import threading
import time
import unittest
from unittest import mock

from common import FOLDER, PACKAGE, ROOT, Case, main, np, quern, random, run_python

GEMM = "import numpy as np, quern; a = np.ones((3, 4), np.float32); quern.gemm(a, a)"


class CacheTest(Case):
    def test_a_second_context_finds_the_firsts_kernels(self):
        cache = FOLDER / "reuse.db"
        a, b = random(5, 9), random(7, 9)
        artifacts = []
        for _ in range(2):
            with quern.Context("cpu", cache=cache) as context:
                artifacts.append(context.prepare("gemm", a, b).artifact)
        self.assertEqual(artifacts, ["compiled", "disk"])
        with quern.Context("cpu", cache=str(cache)) as context:
            context.gemm(a, b)
            self.assertEqual(context.prepare("gemm", a, b).steps[0]["from"], "disk")
            self.assertGreaterEqual(context.stats().hits, 1)

    def test_sealed_compiles_nothing_and_names_the_key(self):
        cache = FOLDER / "sealed.db"
        a, b = random(5, 9), random(7, 9)
        with quern.Context("cpu", cache=cache) as context:
            wanted = context.gemm(a, b)
        with quern.Context("cpu", cache=cache, mode="sealed") as context:
            np.testing.assert_array_equal(context.gemm(a, b), wanted)
            error = self.refused("", context.gemm, a, b, out_dtype="f16")
            self.assertEqual(error.status, "SEALED")
            self.assertRegex(str(error), "[0-9a-f]{32}")
            error = self.refused("", context.tune, "gemm", a, b, out_dtype="f16")
            self.assertEqual(error.status, "SEALED")

    def test_memory_alone_leaves_no_file(self):
        home = FOLDER / "home"
        home.mkdir()
        done = run_python("import numpy as np, quern\n"
                          "c = quern.Context('cpu', cache='')\n"
                          "c.gemm(np.ones((3, 4), np.float32), np.ones((5, 4), np.float32))",
                          HOME=str(home), QUERN_CACHE="")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(list(home.rglob("*")), [])

    def test_bad_options_are_named(self):
        for text, options in {
            "mode=loose: must be normal or sealed": {"mode": "loose"},
            "device=tpu: must be cpu, cuda or cuda:N": {"device": "tpu"},
            "templates=/nowhere: must be a directory": {"templates": "/nowhere"},
            "threads=-1: must be a whole number": {"threads": -1},
            "threads=True: must be a whole number": {"threads": True},
            "plugins='x.so': must be a list of paths": {"plugins": "x.so"},
            "plugins=3: must be a list of paths": {"plugins": 3},
            "cache='a\\x00b': must not contain NUL": {"cache": "a\0b"},
            "log_level=loud: must be one of: off warn": {"log_level": "loud"},
            "profile": {"profile": "abacus"},
            "device=5: must be text": {"device": 5},
            "cache=5: must be text or a path": {"cache": 5},
            "plugins=5: must be text or a path": {"plugins": [5]},
            "log=5: must be callable": {"log": 5},
        }.items():
            self.refused(text, quern.Context, **{"device": "cpu", "cache": "", **options})
        error = self.refused("cache=/dev/null", quern.Context, "cpu", cache="/dev/null")
        self.assertEqual(error.status, "STORE")


class LifeTest(Case):
    def test_a_closed_context_refuses_everything(self):
        context = quern.Context("cpu")
        self.assertIn("cpu", repr(context))
        context.close()
        context.close()
        self.assertTrue(context.is_closed)
        for function in (context.doctor, context.stats, context.families):
            self.refused("context: is closed", function)
        self.refused("context: is closed", context.gemm, random(2, 3), random(4, 3))

    def test_with_closes(self):
        with quern.Context("cpu") as context:
            self.assertEqual(context.device, "cpu")
        self.assertTrue(context.is_closed)

    def test_a_dropped_context_is_destroyed(self):
        context = quern.Context("cpu", cache="")
        state = context._state
        del context
        self.assertIsNone(state.handle)

    def test_a_closed_default_context_is_made_again(self):
        a, b = random(2, 3), random(4, 3)
        quern.gemm(a, b)
        quern._context.default("cpu").close()
        self.assert_close(quern.gemm(a, b), a.astype(float) @ b.T, 3e-6)

    def test_a_call_that_an_interrupt_left_behind_holds_nobody_up(self):
        context = quern.Context("cpu", cache="")
        context._state.calls.add(object())
        started = time.monotonic()
        context.close()
        self.assertLess(time.monotonic() - started, 5)

    def test_closing_does_not_wait_for_ever(self):
        context, begun, end = quern.Context("cpu", cache=""), threading.Event(), threading.Event()

        def work(handle):
            begun.set()
            end.wait()

        thread = threading.Thread(target=context._inside, args=(work,))
        thread.start()
        begun.wait()
        with mock.patch.object(quern._context, "_CLOSE_PATIENCE_S", 0.2):
            self.refused("context: still in use by 1 calls after 0.2 s", context.close)
        self.assertFalse(context.is_closed)
        end.set()
        thread.join()
        context.close()
        self.assertTrue(context.is_closed)

    def test_closing_from_inside_a_call_is_refused(self):
        context = quern.Context("cpu", cache="")
        inside = "context: this thread is inside a call of it"
        self.refused(inside, context.tune, "gemm", m=8, n=8, k=8, max_configs=2,
                     progress=lambda now: context.close())
        self.refused(inside, context._inside, lambda handle: context.close())
        self.assertFalse(context.is_closed)
        context.close()

    def test_a_signal_handler_inside_a_call_is_told_so(self):
        done = run_python(textwrap.dedent("""
            import os, signal, threading, numpy as np, quern
            a = np.ones((900, 900), np.float32)
            context, said = quern.Context("cpu", cache="", threads=1), []
            call = context.prepare("gemm", a, a)
            def handle(*_):
                try:
                    context.close()
                except quern.Error as error:
                    said.append(str(error))
            signal.signal(signal.SIGUSR1, handle)
            while not said and not context.is_closed:
                threading.Timer(0.005, os.kill, (os.getpid(), signal.SIGUSR1)).start()
                try:
                    for _ in range(20):
                        call()
                except quern.Error as error:
                    assert "is closed" in str(error), error
            assert not said or "inside a call" in said[0], said
        """))
        self.assertEqual(done.returncode, 0, done.stderr)

    def test_interrupts_leave_no_context_that_cannot_be_closed(self):
        done = run_python(textwrap.dedent("""
            import random, signal, time, numpy as np, quern
            a, d = np.ones((1, 4), np.float32), np.ones((1, 1), np.float32)
            context = quern.Context("cpu", cache="")
            call = context.prepare("gemm", a, a, out=d)
            def interrupt(*_):
                raise KeyboardInterrupt
            signal.signal(signal.SIGALRM, interrupt)
            end = time.monotonic() + 2
            while time.monotonic() < end:
                try:
                    signal.setitimer(signal.ITIMER_REAL, random.uniform(5e-5, 3e-4))
                    while True:
                        call()
                        context.gemm(a, a, d)
                except KeyboardInterrupt:
                    pass
            signal.setitimer(signal.ITIMER_REAL, 0)
            context.close()
        """))
        self.assertEqual(done.returncode, 0, done.stderr)

    def test_torch_that_fails_keeps_no_context_open(self):
        context, torch = quern.Context("cpu", cache=""), mock.Mock()
        context._state.device, torch.synchronize.side_effect = "cuda:0", KeyError("of torch")
        with mock.patch.dict(sys.modules, {"torch": torch}), \
                mock.patch.object(quern, "_torch", torch, create=True):
            self.assertRaises(KeyError, context.close)
        self.assertTrue(context.is_closed)

    def test_remembered_kinds_of_calls_are_bounded(self):
        with quern.Context("cpu", cache="") as context, \
                mock.patch.object(quern._plan, "_MOST_PLANS", 8):
            for m in range(1, 30):
                context.gemm(random(m, 3), random(4, 3))
                self.assertLessEqual(len(context._plans), 8)
            self.assertGreaterEqual(len(context._plans), 4)

    def test_a_process_ends_quietly_with_contexts_and_threads_alive(self):
        done = run_python(textwrap.dedent("""
            import numpy as np, quern, threading
            a = np.ones((300, 400), np.float32)
            kept, call = quern.Context("cpu"), quern.prepare("gemm", a, a)
            kept.gemm(a, a)
            def work():
                while True:
                    call()
            for _ in range(3):
                threading.Thread(target=work, daemon=True).start()
        """))
        self.assertEqual(done.returncode, 0, done.stderr)

    def test_another_device_than_the_contexts_is_refused(self):
        a = random(2, 3)
        array = quern._arrays.describe("a", a)._replace(device="cuda:1")
        context = quern._context.default("cpu")
        both = {"a": quern._arrays.describe("a", a), "b": array}
        self.refused("b: on cuda:1: must be on cpu, as a is", quern._plan.check_devices, both,
                     context)
        self.refused("a: on cuda:1: must be on cpu, the context's device",
                     quern._plan.check_devices, {"a": array}, context)
        self.refused("a: on mps:0: must be on cpu or cuda", quern._arrays.check_device, "a",
                     array._replace(device="mps:0"))


@unittest.skipUnless(hasattr(os, "fork"), "no fork here")
class ForkTest(Case):
    def test_a_forked_child_works_and_the_parent_goes_on(self):
        done = run_python(textwrap.dedent("""
            import os, numpy as np, quern
            a, b = np.ones((5, 6), np.float32), np.ones((7, 6), np.float32)
            mine = quern.Context("cpu")
            quern.gemm(a, b)
            call = mine.prepare("gemm", a, b)
            child = os.fork()
            assert (quern.gemm(a, b) == 6).all()
            if child == 0:
                for refused in (call, mine.stats, lambda: mine.gemm(a, b)):
                    try:
                        refused()
                    except quern.Error as error:
                        assert "made before a fork" in str(error), error
                    else:
                        os._exit(1)
                assert quern.doctor()["cache"]["path"] == "", quern.doctor()["cache"]
                print("child")
            else:
                _, status = os.waitpid(child, 0)
                assert status == 0, status
                assert (call() == 6).all()
                print("parent")
        """))
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(sorted(done.stdout.split()), ["child", "parent"])


    def test_grids_of_many_blocks_run_in_parent_and_child(self):
        done = run_python(textwrap.dedent("""
            import os, numpy as np, quern
            a = np.ones((700, 600), np.float32)
            assert (quern.gemm(a, a) == 600).all()
            child = os.fork()
            assert (quern.gemm(a, a) == 600).all()
            with quern.Context("cpu", cache="", threads=2) as context:
                assert (context.gemm(a, a) == 600).all()
            if child == 0:
                print("child")
            else:
                _, status = os.waitpid(child, 0)
                assert status == 0, status
                assert (quern.gemm(a, a) == 600).all()
                print("parent")
        """))
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(sorted(done.stdout.split()), ["child", "parent"])


class LogTest(Case):
    def test_lines_go_to_a_callable(self):
        lines = []
        with quern.Context("cpu", cache="", log_level="debug",
                           log=lambda level, line: lines.append((level, line))) as context:
            context.gemm(random(2, 3), random(4, 3))
        self.assertTrue(lines)
        self.assertLessEqual({level for level, _ in lines}, {"warn", "info", "debug"})

    def test_warnings_go_to_the_logger_quern(self):
        cache = FOLDER / "damaged.db"
        quern.Context("cpu", cache=cache).close()
        cache.write_bytes(cache.read_bytes()[:100].ljust(5000, b"x"))
        with self.assertLogs("quern", logging.WARNING) as logged:
            quern.Context("cpu", cache=cache).close()
        self.assertIn("damaged", logged.output[0])

    def test_off_says_nothing(self):
        with quern.Context("cpu", cache="", log_level="off") as context:
            self.assertFalse(any(isinstance(kept, quern._structs.LogCallback)
                                 for kept in context._callbacks))


class FactsTest(Case):
    def test_the_doctor_has_three_sections(self):
        facts = quern.doctor()
        self.assertEqual(set(facts), {"cpu", "cuda", "cache"})
        self.assertIn("target", facts["cpu"])
        if facts["cuda"]["usable"] == "no":
            self.assertTrue(facts["cuda"]["reason"])

    def test_a_context_without_a_device_takes_the_best_one(self):
        usable = quern.doctor()["cuda"]["usable"] == "yes"
        with quern.Context(cache="") as context:
            self.assertEqual(context.device, "cuda:0" if usable else "cpu")

    def test_stats_count(self):
        stats = quern.stats()
        self.assertIsInstance(stats, quern.Stats)
        self.assertEqual(len(stats), 8)
        self.assertTrue(all(isinstance(count, int) and count >= 0 for count in stats))

    def test_families_are_described(self):
        families = quern.families()
        self.assertLessEqual({"gemm", "gemm_pack", "copy"}, set(families))
        self.assertIn("matrix product", families["gemm"])


class LibraryTest(Case):
    def test_importing_loads_nothing(self):
        done = run_python("import quern, sys; sys.exit('numpy' in sys.modules)",
                          QUERN_LIBRARY="/nowhere/libquern.so.0")
        self.assertEqual(done.returncode, 0, done.stderr)

    def test_a_missing_library_says_where_it_was_looked_for(self):
        done = run_python(GEMM, QUERN_LIBRARY="/nowhere/libquern.so.0")
        self.assertIn("quern._errors.Error: libquern.so.0: not found: QUERN_LIBRARY names "
                      "/nowhere/libquern.so.0 (no such file)", done.stderr)

    def test_without_a_variable_every_place_is_named(self):
        alone = FOLDER / "alone" / "site"
        shutil.copytree(PACKAGE / "quern", alone / "quern",
                        ignore=shutil.ignore_patterns("__pycache__", "*.so*"))
        settings = {name: value for name, value in os.environ.items()
                    if not name.startswith(("QUERN_", "LD_"))}
        done = subprocess.run([sys.executable, "-c", GEMM], cwd=alone, text=True, check=False,
                              env={**settings, "PYTHONPATH": str(alone)}, capture_output=True)
        if done.returncode == 0:
            self.skipTest("a libquern.so.0 is installed on the loader's path")
        for place in (f"{alone}/quern/libquern.so.0 (no such file)",
                      f"{alone.parent}/build/libquern.so.0 (no such file)",
                      "libquern.so.0 (not on the loader's path)"):
            self.assertIn(place, done.stderr)

    def test_another_version_is_refused_by_both_versions_and_the_file(self):
        source, library = FOLDER / "other.c", FOLDER / "libother.so"
        source.write_text('const char *quern_version(void) { return "9.9.9"; }\n')
        subprocess.run(["cc", "-shared", "-fPIC", str(source), "-o", str(library)], check=True)
        done = run_python(GEMM, QUERN_LIBRARY=str(library))
        self.assertIn(f"{library} is version 9.9.9: must be {quern.__version__}", done.stderr)

    def test_what_is_no_library_is_refused(self):
        path = FOLDER / "text.so"
        path.write_text("text")
        done = run_python(GEMM, QUERN_LIBRARY=str(path))
        self.assertIn(f"{path} cannot be loaded", done.stderr)
        done = run_python(GEMM, QUERN_LIBRARY="libm.so.6")
        self.assertIn("libm.so.6 is no quern library", done.stderr)

    def test_a_relative_name_is_of_where_the_process_began(self):
        relative = os.path.relpath(quern.library_path())
        done = run_python(f"import os, quern\nprint(quern.library_path() == {relative!r})\n"
                          "import numpy as np; a = np.ones((3, 4), np.float32); quern.gemm(a, a)",
                          QUERN_LIBRARY=relative)
        self.assertEqual((done.returncode, done.stdout), (0, "False\n"), done.stderr)

    def test_the_path_is_that_of_the_file(self):
        self.assertTrue(os.path.samefile(quern.library_path(), os.environ["QUERN_LIBRARY"])
                        if "QUERN_LIBRARY" in os.environ
                        else os.path.exists(quern.library_path()))

    def test_the_version_is_the_headers(self):
        header = (ROOT / "include" / "quern.h").read_text()
        self.assertIn(f'#define QUERN_VERSION "{quern.__version__}"', header)


if __name__ == "__main__":
    main()
