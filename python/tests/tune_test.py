#!/usr/bin/env python3
"""quern.tune(): on arrays that come back bit for bit, on sizes alone, and at a first call."""

from __future__ import annotations

import ctypes
import os
import signal
import threading
import time
from unittest import mock

from common import FOLDER, Case, main, np, poisoned, quern, random

SIZES = {"m": 32, "n": 48, "k": 64, "a": "f32", "b": "f32", "d": "f32"}


class TuneTest(Case):
    def setUp(self):
        self.context = quern.Context("cpu", cache="")
        self.addCleanup(self.context.close)

    def test_arrays_come_back_bit_for_bit(self):
        a, b, d, bias = random(32, 64), random(48, 64), poisoned(32, 48), random(48)
        arrays = [a, b, d, bias]
        before = [array.tobytes() for array in arrays]
        result = self.context.tune("gemm", a, b, d, bias=bias, max_configs=3)
        self.assertEqual([array.tobytes() for array in arrays], before)
        self.assertFalse(result.is_drawn)
        self.assertIn("bias=f32", result.bucket)

    def test_a_result_names_the_winner_and_the_heuristic(self):
        result = self.context.tune("gemm", **SIZES, max_configs=3)
        self.assertTrue(result.bucket.startswith("gemm m=32 n=48 k=64"), result.bucket)
        self.assertTrue(1 <= result.candidates <= 3, result)
        for entry in (result.best, result.heuristic):
            self.assertEqual(entry.variant, "gemm_cpu")
            self.assertIn("mr=", entry.config)
            self.assertGreater(entry.time_us, 0)
        self.assertGreaterEqual(result.speedup, 0.9)
        self.assertGreater(result.seconds, 0)
        self.assertFalse(result.is_reused)

    def test_a_winner_is_used_by_calls_and_reused_by_tunings(self):
        first = self.context.tune("gemm", **SIZES, max_configs=3)
        again = self.context.tune("gemm", **SIZES, max_configs=3)
        self.assertTrue(again.is_reused)
        self.assertEqual(again.best.config, first.best.config)
        self.assertFalse(self.context.tune("gemm", **SIZES, max_configs=1, force=True).is_reused)
        call = self.context.prepare("gemm", random(32, 64), random(48, 64))
        self.assertEqual(call.config_from, "tuned")

    def test_other_sizes_than_the_buckets_are_drawn(self):
        a, b = random(30, 64), random(48, 64)
        before = a.tobytes()
        self.assertTrue(self.context.tune("gemm", a, b, max_configs=1).is_drawn)
        self.assertEqual(a.tobytes(), before)

    def test_progress_is_told_and_may_stop(self):
        told = []
        self.context.tune("gemm", **SIZES, max_configs=3, progress=told.append)
        self.assertEqual({type(now) for now in told}, {quern.TuneProgress})
        self.assertEqual(told[0].variant, "gemm_cpu")
        self.assertEqual(told[0].outcome, "ok")
        stopped = []
        self.context.tune("gemm", **SIZES, force=True,
                          progress=lambda now: stopped.append(now) or True)
        self.assertLess(len(stopped), 4)

    def test_an_exception_of_progress_is_raised(self):
        def progress(now):
            raise KeyError("mine")

        with self.assertRaisesRegex(KeyError, "mine"):
            self.context.tune("gemm", **SIZES, progress=progress)

    def test_progress_is_told_in_the_calling_thread(self):
        threads = set()
        self.context.tune("gemm", **SIZES, max_configs=2, force=True,
                          progress=lambda now: threads.add(threading.get_ident()))
        self.assertEqual(threads, {threading.get_ident()})

    def test_an_interrupt_ends_it_soon_and_is_raised(self):
        a, b = random(256, 256), random(256, 256)
        before = a.tobytes()
        for progress in (None, lambda now: None):
            timer = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT))
            timer.start()
            with self.assertRaises(KeyboardInterrupt):
                self.context.tune("gemm", a, b, force=True, progress=progress)
            timer.join()
            self.assertEqual(a.tobytes(), before)
            self.assertEqual(self.context._state.calls, set())

    def test_the_library_reads_arrays_that_are_still_there(self):
        request = quern._prepared.request_of(quern._structs.Spec(), bytes(range(200)), None, None)
        taken = [bytes(200) for _ in range(1000)]
        self.assertEqual(ctypes.string_at(request.arrays, 200), bytes(range(200)), len(taken))

    def test_sizes_and_dtypes_may_be_numpys(self):
        bucket = self.context.tune("gemm", **SIZES, max_configs=1).bucket
        sizes = {name: np.int64(SIZES[name]) for name in "mnk"}
        for dtype in (np.float32, "float32", np.dtype("f4")):
            found = self.context.tune("gemm", **sizes, a=dtype, b=dtype, d=dtype,
                                      max_configs=np.int64(1))
            self.assertEqual((found.bucket, found.is_reused), (bucket, True))

    def test_a_budget_is_kept(self):
        started = time.monotonic()
        self.context.tune("gemm", m=256, n=256, k=256, budget=1)
        self.assertLess(time.monotonic() - started, 20)

    def test_bad_options_are_named(self):
        tune = self.context.tune
        self.refused("budget=-1: must be", tune, "gemm", **SIZES, budget=-1)
        self.refused("max_configs=0: must be", tune, "gemm", **SIZES, max_configs=0)
        self.refused("k: must be given", tune, "gemm", m=1, n=1)
        self.refused("m=-1: must be", tune, "gemm", m=-1, n=1, k=1)
        self.refused("a=i8: must be one of: f32 bf16 f16", tune, "gemm", m=1, n=1, k=1, a="i8")
        self.refused("foo=1: gemm has no such parameter; it has", tune, "gemm", m=1, foo=1)
        self.refused("device=cpu: must not be given with a context", tune, "gemm", **SIZES,
                     device="cpu")
        self.refused("device=cpu: must not be given with arrays", quern.tune, "gemm",
                     random(2, 3), random(2, 3), device="cpu")
        self.refused("device=gpu: must be cpu, cuda or cuda:N", quern.tune, "gemm", **SIZES,
                     device="gpu")
        for count in (2**31, 2**32 + 1, True, 1.5):
            self.refused(f"max_configs={count}: must be a whole number", tune, "gemm", **SIZES,
                         max_configs=count)
        self.refused("progress=5: must be callable", tune, "gemm", **SIZES, progress=5)
        self.refused("device=5: must be text", quern.tune, "gemm", **SIZES, device=5)
        self.refused("variant=5: must be text", tune, "gemm", **SIZES, variant=5)
        self.refused("budget='x': must be a number of seconds", tune, "gemm", budget="x")
        self.refused("variant=x", tune, "gemm", **SIZES, variant="x")

    def test_sizes_are_tuned_on_the_device_named(self):
        self.assertIn("gemm m=32", quern.tune("gemm", **SIZES, device="cpu",
                                              max_configs=1).bucket)


class TuningContextTest(Case):
    def test_a_bucket_is_tuned_at_its_first_call_and_once(self):
        cache = FOLDER / "tuning.db"
        a, b, d = random(30, 64), random(48, 64), random(30, 48)
        wanted = d + a.astype(float) @ b.T
        with quern.Context("cpu", cache=cache, tune=0.3) as context:
            context.gemm(a, b, d, accumulate=True)
            self.assert_close(d, wanted, 3e-6)
            self.assertEqual(context.stats().tuned, 1)
            for m in (30, 30, 31):
                context.gemm(random(m, 64), b, random(m, 48), accumulate=True)
            self.assertEqual(context.stats().tuned, 1)
            call = context.prepare("gemm", a, b, d, accumulate=True)
            self.assertEqual(call.config_from, "tuned")
        with quern.Context("cpu", cache=cache, tune=0.3) as context, \
                mock.patch("quern._tune._tune", wraps=quern._tune._tune) as tuned:
            context.gemm(a, b, d, accumulate=True)
            self.assertEqual(tuned.call_count, 1)
            self.assertEqual(context.stats().tuned, 1)

    def test_sealed_tunes_nothing(self):
        self.refused("tune=1: must be None with mode=sealed", quern.Context, "cpu", tune=1,
                     mode="sealed")
        with mock.patch.dict(os.environ, QUERN_MODE="sealed"), \
                quern.Context("cpu", cache="", tune=1) as context:
            self.assertIsNone(context._tune_s)

    def test_seconds_must_be_positive(self):
        self.refused("tune=0: must be a number of seconds above 0", quern.Context, "cpu", tune=0)


if __name__ == "__main__":
    main()
