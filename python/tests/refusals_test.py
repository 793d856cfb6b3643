#!/usr/bin/env python3
"""Bad input: one quern.Error, one line, the argument's name, and nothing written."""

from __future__ import annotations

import pickle
import sys
import unittest

from common import Case, main, np, poisoned, quern, random


class RefusalTest(Case):
    def setUp(self):
        self.a, self.b = random(16, 256), random(128, 256)

    def gemm(self, text, *arrays, **arguments):
        return self.refused(text, quern.gemm, *(arrays or (self.a, self.b)), **arguments)

    def test_what_is_no_array_is_named(self):
        need = "must be a NumPy array, a torch tensor or support DLPack"
        self.gemm(f"a: a list: {need}", [[1.0]], self.b)
        self.gemm(f"b: an int: {need}", self.a, 3)
        self.gemm(f"out: a str: {need}", self.a, self.b, "d")
        self.gemm(f"bias: a float: {need}", bias=1.0)
        self.gemm(f"a: a type: {need}", np.ndarray, self.b)
        self.gemm("b: must be given", self.a, None)
        self.gemm("a: must be given", None, self.b)

    def test_shapes_that_do_not_fit_are_named_with_what_would(self):
        self.gemm("b: shape (128, 255): must be (128, 256)", self.a, self.b[:, :255].copy())
        self.gemm("b: shape (255, 128): must be (256, 128)", self.a, random(255, 128),
                  layout="nn")
        self.gemm("b: shape (3, 128, 256): must be (1, 128, 256)", self.a, random(3, 128, 256))
        self.gemm("b: shape (3, 128, 256): must be (2, 128, 256)", random(2, 16, 256),
                  random(3, 128, 256))
        self.gemm("out: shape (16, 127): must be (16, 128)", out=poisoned(16, 127))
        self.gemm("out: shape (2048,): must be (16, 128)", out=poisoned(2048))
        self.gemm("bias: shape (127,): must be (128,)", bias=random(127))
        self.gemm("bias: shape (1, 128): must be (128,)", bias=random(1, 128))

    def test_ranks_are_named(self):
        self.gemm("a: shape (256,): must have 2 dimensions, or 3 with a batch", random(256),
                  self.b)
        self.gemm("b: shape (): must have 2 dimensions", self.a, np.array(1, np.float32))
        self.gemm("b: shape (1, 1, 128, 256): must have 2", self.a, self.b[None, None])
        self.refused("x: shape (2, 3): must have 1 dimension", quern.copy, random(2, 3))

    def test_dtypes_are_named_with_those_allowed(self):
        allowed = "must be one of: f32 bf16 f16"
        self.gemm(f"a: dtype complex64: {allowed}", self.a.astype(np.complex64), self.b)
        self.gemm(f"a: dtype f64: {allowed}", self.a.astype(float), self.b)
        self.gemm(f"b: dtype bool: {allowed}", self.a, self.b > 0)
        self.gemm(f"b: dtype >f4: {allowed}", self.a, self.b.astype(">f4"))
        self.gemm(f"a: dtype object: {allowed}", self.a.astype(object), self.b)
        self.gemm(f"out: dtype i32: {allowed}", out=poisoned(16, 128, dtype=np.int32))
        self.gemm(f"out_dtype=f64: {allowed}", out_dtype="float64")
        self.gemm("out_dtype=f16: must be f32, as out is", out=poisoned(16, 128),
                  out_dtype=np.float16)
        self.gemm("out_dtype=3: must be a dtype or its name", out_dtype=3)
        self.refused("out: dtype f16: must be f32", quern.copy, random(3),
                     poisoned(3, dtype=np.float16))
        half = self.a.astype(np.float16)
        self.gemm("math=tf32 a=f16", half, self.b, math="tf32")

    def test_strides_are_named_with_a_way_out(self):
        way = "the last dimension must be contiguous; pass a.copy() / a.contiguous()"
        self.gemm(f"a: strides (1, 16): {way}", random(256, 16).T, self.b)
        self.gemm("b: strides (512, 2): the last", self.a, random(128, 512)[:, ::2])
        self.gemm("out: strides (256, 2): the last", out=poisoned(16, 256)[:, ::2])
        self.gemm("a: strides (-256, 1): must not be negative; pass a.copy()", self.a[::-1],
                  self.b)
        self.gemm("bias: strides (2,): the last", bias=random(256)[::2])
        records = np.zeros(12, dtype=[("head", "i2"), ("row", "f4", (1,))])
        self.gemm("a: strides of (6, 4) bytes: must be multiples of 4", records["row"],
                  random(2, 1))

    def test_read_only_outputs_are_refused_and_inputs_taken(self):
        out = poisoned(16, 128)
        out.flags.writeable = False
        self.gemm("out: is read-only", out=out)
        self.a.flags.writeable = False
        self.assert_close(quern.gemm(self.a, self.b), self.a.astype(float) @ self.b.T, 3e-6)

    def test_overlaps_are_named_as_python_names_them(self):
        square = random(16, 16)
        error = self.gemm("overlaps a=", square, random(16, 16), square)
        self.assertTrue(str(error).startswith("out="), error)
        before = square.copy()
        np.testing.assert_array_equal(square, before)
        self.gemm("out", self.a, self.b, np.lib.stride_tricks.as_strided(
            poisoned(128), (16, 128), (0, 4)))

    def test_misaligned_elements_are_refused(self):
        memory = np.zeros(16 * 256 * 4 + 1, np.uint8)
        crooked = memory[1:].view(np.float32).reshape(16, 256)
        self.gemm("a=", crooked, self.b)

    def test_words_and_numbers_are_the_librarys_to_refuse(self):
        self.gemm("layout=tn: must be one of: nt nn", layout="tn")
        self.gemm("math=f64: must be one of: f32 tf32", math="f64")
        self.gemm("accumulate=2: must be 0 or 1", out=poisoned(16, 128), accumulate=2)
        self.gemm("packed=24: must be one of", packed=24, n=128)
        self.gemm("n: must be given with a packed b", packed=32)
        self.gemm("n=127: must be 128", n=127)
        self.gemm("layout=['nt']: must be a word or a number", layout=["nt"])
        self.refused("panel=24: must be one of: 16 32 48 64", quern.gemm_pack, self.b, width=24)
        self.refused("panel=0: must be one of", quern.gemm_pack, self.b, width=0)

    def test_what_would_read_an_output_needs_it(self):
        self.gemm("out: must be given with accumulate=True", accumulate=True)
        self.refused("out: must be given with inplace=True", quern.copy, random(3), inplace=True)

    def test_a_packed_b_must_be_in_panels(self):
        self.gemm("b: shape (128, 256): must be (4, 8192)", packed=32, n=128)

    def test_another_layout_is_suggested_where_it_fits(self):
        self.gemm('b: shape (256, 100): must be (n, 256), as a is (16, 256); for a b of [k, n] '
                  'pass layout="nn"', self.a, random(256, 100))
        self.gemm('b: shape (100, 256): must be (256, n), as a is (16, 256); for a b of [n, k] '
                  'pass layout="nt"', self.a, random(100, 256), layout="nn")
        self.gemm("b: shape (2, 256, 9): must be (batch, n, 256)", random(2, 5, 256),
                  random(2, 256, 9))

    def test_ways_out_are_named(self):
        self.gemm("pass its astype(np.float32) or .float()", self.a.astype(float), self.b)
        self.gemm("pass np.asarray() of it", [[1.0]], self.b)
        self.gemm("pass its reshape(-1, 16, 256)", self.a[None, None], self.b)
        self.gemm("a: a MaskedArray: its mask would be ignored; pass its filled() values",
                  np.ma.masked_array(self.a, mask=self.a > 0), self.b)

    def test_dtypes_that_have_no_buffers_are_named(self):
        for dtype in ("M8[s]", "m8[s]", "V0", "U3", "V3"):
            for _ in range(2):
                self.gemm("a: dtype ", np.zeros((16, 256), dtype), self.b)

    def test_what_is_no_text_or_number_is_named(self):
        for function in (quern.call, quern.prepare, quern.tune):
            self.refused("family=[]: must be text", function, [], self.a, self.b)
            self.refused("must be text that can be encoded", function, "\ud800", self.a, self.b)
        for function in (quern.prepare, quern.tune):
            self.refused("context=3: must be a quern.Context", function, "gemm", self.a, self.b,
                         context=3)
            self.refused("context=3: must be a quern.Context", function, "nothing", context=3)
            self.refused("variant='\\ud800': must be text that can be encoded", function, "gemm",
                         self.a, self.b, variant="\ud800")
        self.gemm("layout=([],): must be a word or a number", layout=([],))

    def test_streams_are_for_gpus(self):
        self.gemm(f"stream={2**64}: must be a torch.cuda.Stream", stream=2**64)
        self.gemm("stream=True: must be a torch.cuda.Stream", stream=True)
        self.gemm("stream=5: must be None for arrays on the CPU", stream=5)
        self.gemm("stream='s': must be a torch.cuda.Stream", stream="s")

    def test_a_context_is_a_context(self):
        self.gemm("context=3: must be a quern.Context", context=3)

    def test_unknown_arguments_are_named_with_those_there_are(self):
        self.assertRaises(TypeError, quern.gemm, self.a, self.b, foo=1)
        known = "it has a, b, out, bias, accumulate, layout, math, out_dtype, packed, n"
        for function in (quern.call, quern.prepare, quern.tune):
            self.refused(f"gemm() has no argument 'foo': {known}", function, "gemm", self.a,
                         self.b, foo=1)
            self.refused("a: given twice", function, "gemm", self.a, a=self.b)
            self.refused("gemm() takes at most 4 arrays", function, "gemm", *[self.a] * 5)

    def test_unknown_families_are_named_with_those_there_are(self):
        known = "family=gem: must be one of: "
        for function in (quern.call, quern.prepare, quern.tune):
            self.refused(known, function, "gem", self.a, self.b)
        self.refused(known, quern.tune, "gem", m=3)

    def test_errors_carry_a_status_and_pickle(self):
        error = self.gemm("layout=tn", layout="tn")
        self.assertEqual(error.status, "INVALID")
        self.assertIsInstance(error, RuntimeError)
        again = pickle.loads(pickle.dumps(error))
        self.assertEqual((str(again), again.status), (str(error), error.status))

    def test_a_refused_call_is_refused_again(self):
        for _ in range(3):
            self.gemm("b: shape", self.a, random(3, 3))

    @unittest.skipIf("torch" in sys.modules, "another suite imported torch")
    def test_numpy_users_never_import_torch(self):
        quern.gemm(self.a, self.b)
        self.assertNotIn("torch", sys.modules)


if __name__ == "__main__":
    main()
