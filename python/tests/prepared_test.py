#!/usr/bin/env python3
"""quern.prepare(): the same arrays, others, threads, what it reports, and what it costs."""

from __future__ import annotations

import ctypes
import gc
import re
import threading
from unittest import mock

from common import Case, main, np, poisoned, quern, random


def product(a, b):
    return a.astype(np.float64) @ b.astype(np.float64).T


class PreparedTest(Case):
    def setUp(self):
        self.a, self.b, self.d = random(24, 96), random(40, 96), poisoned(24, 40)

    def prepare(self, **arguments):
        return quern.prepare("gemm", self.a, self.b, out=self.d, **arguments)

    def test_preparing_runs_nothing(self):
        self.prepare()
        self.assertTrue(np.isnan(self.d).all())

    def test_a_call_computes_on_the_same_memory(self):
        call = self.prepare()
        for _ in range(3):
            self.a[:] = random(24, 96)
            self.d[:] = np.nan
            self.assertIs(call(), self.d)
            self.assert_close(self.d, product(self.a, self.b), 3e-6)

    def test_an_output_is_made_if_none_is_given(self):
        call = quern.prepare("gemm", self.a, self.b, out_dtype="f16")
        self.assertIs(call(), call.out)
        self.assertEqual(call.out.dtype, np.float16)

    def test_arrays_may_be_replaced_for_a_call(self):
        call = self.prepare()
        a, d = random(24, 96), poisoned(24, 40)
        self.assertIs(call(a=a, out=d), d)
        self.assert_close(d, product(a, self.b), 3e-6)
        self.assertTrue(np.isnan(self.d).all())
        self.assert_close(call(), product(self.a, self.b), 3e-6)

    def test_replaced_arrays_must_be_like_the_prepared_ones(self):
        call = self.prepare()
        self.refused("a: shape (23, 96): must be (24, 96), as prepared", call, a=random(23, 96))
        self.refused("a: dtype f16: must be f32, as prepared", call,
                     a=self.a.astype(np.float16))
        self.refused("b: strides (192, 1): must be (96, 1), as prepared", call,
                     b=random(40, 192)[:, :96])
        self.refused("a: a list: must be a NumPy array", call, a=[1])
        read_only = self.d.copy()
        read_only.flags.writeable = False
        self.refused("out: is read-only", call, out=read_only)
        self.refused("gemm was not prepared with an array 'bias'", call, bias=random(40))
        self.refused("gemm was not prepared with an array 'd': it was with a, b, out", call,
                     d=self.d)
        self.refused("arrays are replaced by their names: p(a=...); it was prepared with a, b, out",
                     call, self.a)
        foreign = mock.Mock(spec=["__dlpack__", "__dlpack_device__"])
        kind = (*quern._arrays.describe("a", self.a)[:-1], "dlpack")
        with mock.patch.dict(quern._arrays._adapters, {type(foreign): lambda *_: (0, 0, kind)}):
            self.refused("a: an array of dlpack: must be numpy, as prepared", call, a=foreign)
        self.assertTrue(np.isnan(self.d).all())

    def test_strides_of_one_row_do_not_matter(self):
        call = quern.prepare("gemm", self.a[:1], self.b)
        wide = random(1, 200)[:, :96]
        self.assert_close(call(a=wide), product(wide, self.b), 3e-6)

    def test_worse_aligned_arrays_are_refused(self):
        memory = random(1 + 24 * 96)
        at = memory.__array_interface__["data"][0] // 4 % 4 == 0
        good, bad = (memory[i:i + 24 * 96].reshape(24, 96) for i in ((0, 1) if at else (1, 0)))
        call = quern.prepare("gemm", good, self.b, out=self.d)
        self.refused("a: its base and strides are multiples of 4 bytes", call, a=bad)

    def test_other_options_are_prepared_with(self):
        bias, old = random(40), random(24, 40)
        self.d[:] = old
        self.prepare(bias=bias, accumulate=True)()
        self.assert_close(self.d, product(self.a, self.b) + bias + old, 3e-6)

    def test_it_says_what_runs(self):
        call = self.prepare()
        self.assertEqual(call.variant, "gemm_cpu")
        self.assertIn("mr=", call.config)
        self.assertIn(call.config_from, ("heuristic", "neighbour", "tuned"))
        self.assertIn(call.artifact, ("memory", "disk", "compiled"))
        self.assertTrue(call.spec.startswith("gemm m=24 n=40 k=96 batch=1 a=f32"), call.spec)
        self.assertTrue(call.bucket.startswith("gemm m=32 n=40"), call.bucket)
        self.assertTrue(call.target.startswith("cpu:"), call.target)
        self.assertEqual(set(call.steps[0]), {"name", "from", "compile_ms", "load_ms",
                                              "registers", "spills", "shared_bytes"})
        self.assertGreaterEqual(call.first_call_ms, 0)
        self.assertGreaterEqual(call.workspace_bytes, 0)
        self.assertIn("gemm_cpu", repr(call))

    def test_choices_may_be_given(self):
        config = self.prepare().config
        call = self.prepare(variant="gemm_cpu", config=config)
        self.assertEqual((call.config, call.config_from), (config, "given"))
        self.assert_close(call(), product(self.a, self.b), 3e-6)
        self.refused("variant=gemm_gpu", self.prepare, variant="gemm_gpu")
        self.refused("config", self.prepare, config="mr=0")

    def test_workspaces_are_taken_as_needed(self):
        a, b, d = random(70, 300), random(384, 300), poisoned(70, 384)
        config = quern.prepare("gemm", a, b, out=d).config.replace("pack_b=0", "pack_b=1")
        call = quern.prepare("gemm", a, b, out=d, config=config)
        self.assertGreater(call.workspace_bytes, 0)
        self.assert_close(call(), product(a, b), 3e-6)
        self.assert_close(call(a=a, b=b), product(a, b), 3e-6)

    def test_arrays_live_as_long_as_it_does(self):
        call = quern.prepare("gemm", self.a.copy(), self.b.copy(), out=poisoned(24, 40))
        gc.collect()
        random(500, 500)
        self.assert_close(call(), product(self.a, self.b), 3e-6)

    def test_its_objects_are_those_of_c(self):
        call = self.prepare()
        self.assertEqual(call._arrays[0].data, self.a.__array_interface__["data"][0])
        self.assertTrue(all(ctypes.addressof(part) for part in
                            (call._ctx, call._kernel, call._spec, call._arrays, call._call)))

    def test_a_closed_context_is_said(self):
        context = quern.Context("cpu")
        call = context.prepare("gemm", self.a, self.b, out=self.d)
        context.close()
        self.refused("context: is closed", call)
        self.refused("context: is closed", call, a=self.a)

    def test_a_launch_that_fails_says_why(self):
        call = self.prepare()
        call._arrays[0].rank = 9
        self.refused("a.rank=9", call)


class FakeTorch:
    """The adapter of a GPU's tensors, over host memory: the launches' side of it."""

    def __init__(self):
        self.stream, self.workspaces = 0, []

    def current_stream(self, index):
        return self.stream

    def empty_workspace(self, size, device):
        memory = FakeWorkspace(size)
        self.workspaces.append(memory)
        return memory

    def note_write(self, tensor):
        pass


class FakeWorkspace:
    def __init__(self, size):
        self.memory = np.full(size + 256, 255, np.uint8)

    def data_ptr(self):
        return -(-self.memory.__array_interface__["data"][0] // 256) * 256


class StreamTest(Case):
    """The paths of torch's GPUs, as far as they go without one: the CPU ignores streams."""

    def setUp(self):
        self.torch = FakeTorch()
        for patch in (mock.patch.object(quern, "_torch", self.torch, create=True),
                      mock.patch("quern._plan.torch_index", return_value=0)):
            patch.start()
            self.addCleanup(patch.stop)
        self.context = quern.Context("cpu")  # whose plans are made with the patches
        self.addCleanup(self.context.close)
        self.a, self.b, self.d = random(70, 300), random(384, 300), poisoned(70, 384)
        self.wanted = product(self.a, self.b)

    def test_each_call_is_on_the_current_stream(self):
        call = self.context.prepare("gemm", self.a, self.b, out=self.d, config=self.config(0))
        for self.torch.stream in (0, 4096, 8192, 4096, 0):
            self.d[:] = np.nan
            with mock.patch.object(call, "_launch", wraps=call._launch) as launch:
                self.assert_close(call(), self.wanted, 3e-6)
            made = quern._structs.Call.from_buffer_copy(launch.call_args.args[0])
            self.assertEqual((made.stream or 0, made.workspace_bytes), (self.torch.stream, 0))
        self.assert_close(call(a=self.a), self.wanted, 3e-6)

    def test_each_call_has_a_workspace_of_its_own(self):
        call = self.context.prepare("gemm", self.a, self.b, out=self.d, config=self.config(1))
        for _ in range(2):
            self.d[:] = np.nan
            self.assert_close(call(), self.wanted, 3e-6)
        self.assert_close(call(b=self.b), self.wanted, 3e-6)
        self.assertEqual(len(self.torch.workspaces), 3)
        for workspace in self.torch.workspaces:
            self.assertFalse((workspace.memory == 255).all(), "it was not used")

    def config(self, pack_b):
        config = self.context.prepare("gemm", self.a, self.b, out=self.d).config
        return re.sub("pack_b=[01]", f"pack_b={pack_b}", config)


class ThreadTest(Case):
    THREADS, CALLS = 8, 200

    def in_threads(self, work):
        errors = []

        def guarded(index):
            try:
                work(index)
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=guarded, args=(i,)) for i in range(self.THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(errors, [])

    def test_one_prepared_call_serves_many_threads(self):
        a, b, d = random(8, 64), random(24, 64), poisoned(8, 24)
        with quern.Context("cpu", threads=1) as context:
            call = context.prepare("gemm", a, b, out=d)

            def work(_):
                mine, out = random(8, 64), poisoned(8, 24)
                wanted = product(mine, b)
                for _ in range(self.CALLS):
                    call(a=mine, out=out)
                    self.assert_close(out, wanted, 3e-6)
                    call()

            self.in_threads(work)
            self.assert_close(d, product(a, b), 3e-6)

    def test_eager_calls_of_many_kinds_mix(self):
        with quern.Context("cpu", threads=1) as context:
            def work(index):
                for m in range(1, 20):
                    a, b = random(m, 16 + index), random(24, 16 + index)
                    self.assert_close(context.gemm(a, b), product(a, b), 3e-6)
                    self.refused("b: shape", context.gemm, a, b[:, 1:].copy())

            self.in_threads(work)

    def test_closing_waits_for_calls_under_way(self):
        a, b = random(600, 700), random(800, 700)
        for _ in range(5):
            context = quern.Context("cpu", threads=1)
            context.gemm(a, b)
            refusals = []

            def work(_, context=context, refusals=refusals):
                try:
                    for _ in range(50):
                        context.gemm(a, b)
                except quern.Error as error:
                    refusals.append(str(error))

            closer = threading.Timer(0.02, context.close)
            closer.start()
            self.in_threads(work)
            closer.join()
            self.assertEqual(set(refusals), {"context: is closed"})


if __name__ == "__main__":
    main()
