#!/usr/bin/env python3
"""What counts as an array: DLPack, views, copy(), and any family by its name, plugins included."""

from __future__ import annotations

import copy
import ctypes
import os
import pickle
import textwrap
import unittest
from unittest import mock

from common import (BUILD, ROOT, Case, from_bf16, main, np, poisoned, quern, random, run_python,
                    to_bf16)

PLUGIN = os.path.join(BUILD or ROOT / "build", "tests", "plugin_scale.so")


class Foreign:
    """An array of a library that only speaks DLPack, of before version 1 if `is_old`."""

    def __init__(self, array, is_old=False):
        self.array, self.is_old = array, is_old

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()

    def __dlpack__(self, **options):
        if self.is_old and "max_version" in options:
            raise TypeError("max_version")
        options.pop("max_version", None)
        return self.array.__dlpack__(**options)


class Broken(Foreign):
    def __dlpack__(self, **options):
        raise BufferError("on the moon")


class DlpackTest(Case):
    def test_foreign_arrays_are_inputs_and_outputs(self):
        a, b, d = random(12, 40)[:, 3:35], random(9, 32), poisoned(12, 9)
        for is_old in (False, True):
            d[:] = np.nan
            out = Foreign(d, is_old)
            self.assertIs(quern.gemm(Foreign(a, is_old), Foreign(b, is_old), out), out)
            self.assert_close(d, a.astype(float) @ b.T, 3e-6)

    def test_their_output_must_be_given(self):
        a = Foreign(random(4, 4))
        self.refused("out: must be given", quern.gemm, a, a)

    def test_a_failing_producer_is_named(self):
        self.refused("b: its __dlpack__() failed: on the moon", quern.gemm, random(2, 4),
                     Broken(random(3, 4)))

    def test_other_dtypes_are_told_by_name(self):
        self.refused("a: dtype complex64: must be one of: f32 bf16 f16", quern.gemm,
                     Foreign(random(2, 4).astype(np.complex64)), random(3, 4))

    def test_memory_lives_as_long_as_a_prepared_call(self):
        a, b, d = random(12, 32), random(9, 32), poisoned(12, 9)
        wanted = a.astype(float) @ b.T
        product = quern.prepare("gemm", Foreign(a.copy()), Foreign(b.copy()), out=d)
        random(1000, 100)
        product()
        self.assert_close(d, wanted, 3e-6)


    def test_what_no_sound_producer_gives_is_refused(self):
        b = random(3, 4)
        for text, options in {
            "a: its DLPack tensor has 2 dimensions and no shape": {"shape": None},
            "a: its DLPack tensor has -1 dimensions": {"ndim": -1},
            "a: its DLPack tensor has a negative extent": {"shape": (-8, 4)},
            f"a: its DLPack byte_offset={2**64 - 64}: ends beyond": {"offset": 2**64 - 64},
        }.items():
            self.refused(text, quern.gemm, Handmade(random(8, 4), **options), b)
        d = poisoned(8, 3)
        quern.gemm(Handmade(random(8, 4)), b, d)
        self.assertFalse(np.isnan(d).any())

    def test_a_gpus_producer_is_asked_for_the_stream_of_the_call(self):
        for current, wanted in ((0, 1), (4096, 4096)):
            foreign = OnGpu(random(2, 4))
            with mock.patch.object(quern._arrays, "_stream_among", return_value=current):
                quern._arrays.read_all(("a",), (foreign,))
            quern._arrays.read_all(("a",), (foreign,), 77)
            quern._arrays.describe("a", foreign)
            self.assertEqual(foreign.streams, [wanted, 77, -1])


class Handmade:
    """A DLPack tensor with the fields given."""

    def __init__(self, array, shape=(8, 4), ndim=2, offset=0):
        self.array, self.managed = array, quern._dlpack._Managed()
        tensor = self.managed.tensor
        tensor.data, tensor.device_type, tensor.ndim = array.ctypes.data, 1, ndim
        tensor.code, tensor.bits, tensor.lanes, tensor.byte_offset = 2, 32, 1, offset
        if shape is not None:
            tensor.shape = (ctypes.c_int64 * len(shape))(*shape)

    def __dlpack_device__(self):
        return 1, 0

    def __dlpack__(self, **_):
        new = ctypes.pythonapi.PyCapsule_New
        new.restype, new.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p,
                                                       ctypes.c_void_p]
        return new(ctypes.addressof(self.managed), b"dltensor", None)


class OnGpu(Foreign):
    """Says so, and notes the streams that it is asked for."""

    def __init__(self, array):
        super().__init__(array)
        self.streams = []

    def __dlpack_device__(self):
        return 2, 0

    def __dlpack__(self, stream=None, **options):
        self.streams.append(stream)
        return self.array.__dlpack__()


class ViewTest(Case):
    def test_a_view_is_the_array_inside(self):
        bits = to_bf16(random(6, 8))
        viewed = quern.view(bits, "bf16")
        self.assertIs(viewed.array, bits)
        self.assertEqual((viewed.dtype, viewed.shape), ("bf16", (6, 8)))

    def test_signed_bits_do_as_well(self):
        a = to_bf16(random(6, 8)).view(np.int16)
        d = quern.gemm(quern.view(a, "bf16"), random(4, 8), out_dtype="f32")
        self.assertEqual(d.shape, (6, 4))

    def test_only_integers_of_the_size_are_viewed(self):
        self.refused("array: dtype f32: must be integers of 16 bits", quern.view, random(3),
                     "bf16")
        self.refused("array: dtype u8: must be integers of 16 bits", quern.view,
                     np.zeros(3, np.uint8), "f16")
        self.refused("dtype=f32: must be one of: bf16 f16", quern.view, np.zeros(3, np.uint8),
                     "f32")


    def test_long_names_and_dtypes_do_as_well(self):
        bits = to_bf16(random(6, 8))
        self.assertEqual(quern.view(bits, "bfloat16").dtype, "bf16")
        self.assertEqual(quern.view(bits, np.float16).dtype, "f16")
        self.refused("dtype=['bf16']: must be a dtype or its name", quern.view, bits, ["bf16"])

    def test_a_view_is_checked_however_it_is_made_and_does_not_change(self):
        bits = np.zeros((8, 16), np.uint8)
        self.refused("dtype=f32: must be one of: bf16 f16", quern.View, bits, "f32")
        viewed = quern.view(bits, "e4m3")
        for field in ("array", "dtype", "other"):
            self.assertRaises(AttributeError, setattr, viewed, field, "f32")
        for again in (copy.copy(viewed), pickle.loads(pickle.dumps(viewed))):
            self.assertEqual((again.dtype, again.shape), ("e4m3", (8, 16)))

    def test_an_array_that_changed_inside_is_refused(self):
        bits = np.zeros((8, 16), np.uint16)
        viewed = quern.view(bits, "bf16")
        bits.dtype = np.float32
        self.refused("a: its array's dtype has become f32: view it anew", quern.gemm, viewed,
                     random(3, 16))


class CopyTest(Case):
    def test_a_copy_is_the_source(self):
        x = random(1003)
        np.testing.assert_array_equal(quern.copy(x), x)

    def test_alpha_is_a_factor(self):
        x, out = random(1003), poisoned(1003)
        self.assertIs(quern.copy(x, out, alpha=-0.5), out)
        np.testing.assert_array_equal(out, -0.5 * x)

    def test_the_sign_of_a_zero_alpha_counts(self):
        x = np.ones(4, np.float32)
        for alpha in (0.0, -0.0, 0.0):
            for made in (quern.copy(x, alpha=alpha), quern.call("copy", x, alpha=alpha)):
                self.assertEqual(set(np.signbit(made)), {np.signbit(alpha)})

    def test_its_options_are_checked(self):
        x, out = random(4), poisoned(4)
        self.refused("inplace=no: must be 0 or 1", quern.copy, x, out, inplace="no")
        self.refused("alpha: is beyond what a double holds", quern.copy, x, alpha=10**400)
        self.refused("alpha=nan: must be a finite number", quern.copy, x, alpha=float("nan"))

    def test_inplace_adds(self):
        x, out = random(77), random(77)
        wanted = out + 3 * x
        quern.copy(x, out, alpha=3, inplace=True)
        np.testing.assert_allclose(out, wanted, rtol=1e-5, atol=1e-6)

    def test_out_may_be_the_source_itself(self):
        x = random(77)
        wanted = x * 2
        quern.copy(x, x, alpha=2)
        np.testing.assert_array_equal(x, wanted)

    def test_bf16_comes_through(self):
        bits, out = to_bf16(random(50)), poisoned(50, dtype=np.uint16)
        quern.copy(quern.view(bits, "bf16"), quern.view(out, "bf16"))
        np.testing.assert_array_equal(out, bits)


class CallTest(Case):
    def test_a_family_with_a_function_is_called_through_it(self):
        a, b = random(4, 8), random(5, 8)
        np.testing.assert_array_equal(quern.call("gemm", a, b), quern.gemm(a, b))
        with quern.Context("cpu") as context:
            np.testing.assert_array_equal(context.call("gemm", a, b=b), quern.gemm(a, b))
            np.testing.assert_array_equal(context.gemm(a, b), quern.gemm(a, b))
            self.assertIn("gemm", dir(context))
            self.assertRaises(AttributeError, getattr, context, "gem")

    @unittest.skipUnless(os.path.exists(PLUGIN), "the example plugin is not built")
    def test_a_plugins_family_is_called_by_its_tables(self):
        with quern.Context("cpu", plugins=[PLUGIN]) as context:
            self.assertIn("scale", context.families())
            x, out = random(1000), poisoned(1000)
            self.assertIs(context.call("scale", x, out), out)
            np.testing.assert_array_equal(out, 2 * x)
            context.call("scale", x=x, out=out, factor=3)
            np.testing.assert_array_equal(out, 3 * x)
            for given, factor in (({"factor": 1000}, 1000), ({"n": 1000}, 2)):
                np.testing.assert_array_equal(context.call("scale", x, **given), factor * x)
            out[:] = np.nan
            np.testing.assert_array_equal(context.prepare("scale", x, out, factor=-1)(), -x)
            self.assertEqual(context.tune("scale", x, out, max_configs=1).failed, 0)
            np.testing.assert_array_equal(out, -x)
            np.testing.assert_array_equal(context.call("scale", x), 2 * x)
            self.refused("x: must be given", context.call, "scale", out=out, n=1000)
            self.refused("out: shape (999,): must be (1000,)", context.call, "scale", x, out[1:])
            self.refused("x: dtype f64: must be f32", context.call, "scale", x.astype(float), out)
            self.refused("scale() has no argument 'foo': it has x, out, n, factor", context.call,
                         "scale", x, out, foo=1)
            self.refused("factor=[1]: must be a word or a number", context.call, "scale", x, out,
                         factor=[1])

    def test_a_missing_plugin_is_an_error(self):
        self.refused("/nowhere.so", quern.Context, "cpu", plugins=["/nowhere.so"])


class ReferenceTest(Case):
    def test_arrays_are_not_kept_by_a_call(self):
        a, b = random(4, 8), random(5, 8)
        d = quern.gemm(a, b)
        del d
        counts = [ctypes.c_ssize_t.from_address(id(array)).value for array in (a, b)]
        for _ in range(10):
            quern.gemm(a, b)
        self.assertEqual([ctypes.c_ssize_t.from_address(id(array)).value for array in (a, b)],
                         counts)

    def test_bits_and_numbers_agree(self):
        values = random(100)
        np.testing.assert_allclose(from_bf16(to_bf16(values)), values, rtol=4e-3)


class OldTorchTest(Case):
    def test_a_torch_without_what_operators_need_does_not_disturb_numpy(self):
        """One older than 2.4, or one that another thread is still importing."""
        done = run_python(textwrap.dedent("""
            import sys, types
            torch = sys.modules["torch"] = types.ModuleType("torch")
            torch.Tensor, torch.library = type("Tensor", (), {}), types.ModuleType("library")
            sys.modules["torch.compiler"] = torch.compiler = types.ModuleType("torch.compiler")
            import numpy as np, quern
            a = np.ones((3, 5), np.float32)
            assert (quern.gemm(a, a) == 5).all() and (quern.copy(a[0]) == 1).all()
            assert quern.prepare("gemm", a, a)().shape == (3, 3)
        """))
        self.assertEqual(done.returncode, 0, done.stderr)


if __name__ == "__main__":
    main()
