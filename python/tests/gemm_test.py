#!/usr/bin/env python3
"""quern.gemm() and gemm_pack() on NumPy arrays against float64."""

from __future__ import annotations

import unittest

from common import Case, from_bf16, main, np, poisoned, quern, random, to_bf16

try:
    import ml_dtypes
except ImportError:
    ml_dtypes = None

F32, F16, BF16 = 3e-6, 1e-3, 5e-3  # bounds of the relative error, by the output's dtype


def product(a, b):
    return a.astype(np.float64) @ np.swapaxes(b.astype(np.float64), -1, -2)


class GemmTest(Case):
    def test_f32_is_the_product(self):
        a, b = random(37, 129), random(65, 129)
        d = quern.gemm(a, b)
        self.assertEqual((d.dtype, d.shape), (np.float32, (37, 65)))
        self.assert_close(d, product(a, b), F32)

    def test_f16_gives_f16(self):
        a, b = random(33, 70).astype(np.float16), random(18, 70).astype(np.float16)
        d = quern.gemm(a, b)
        self.assertEqual(d.dtype, np.float16)
        self.assert_close(d, product(a, b), F16)

    def test_views_of_bits_are_bf16(self):
        a, b = to_bf16(random(20, 64)), to_bf16(random(48, 64))
        d = quern.gemm(quern.view(a, "bf16"), quern.view(b, "bf16"), out_dtype="f32")
        self.assert_close(d, product(from_bf16(a), from_bf16(b)), F32)

    def test_a_new_bf16_output_has_its_bits(self):
        a, b = to_bf16(random(20, 64)), to_bf16(random(48, 64))
        bits = quern.view(poisoned(20, 48, dtype=np.uint16), "bf16")
        made = quern.gemm(quern.view(a, "bf16"), quern.view(b, "bf16"), bits)
        self.assertIs(made, bits)
        self.assert_close(from_bf16(bits.array), product(from_bf16(a), from_bf16(b)), BF16)
        if ml_dtypes is None:
            new = quern.gemm(quern.view(a, "bf16"), quern.view(b, "bf16"))
            self.assertIsInstance(new, quern.View)
            np.testing.assert_array_equal(new.array, bits.array)

    @unittest.skipIf(ml_dtypes is None, "ml_dtypes is not installed")
    def test_ml_dtypes_are_taken_by_name(self):
        a = random(20, 64).astype(ml_dtypes.bfloat16)
        b = random(48, 64).astype(ml_dtypes.bfloat16)
        d = quern.gemm(a, b)
        self.assertEqual(d.dtype, ml_dtypes.bfloat16)
        self.assert_close(d.astype(np.float32), product(a, b), BF16)

    def test_dtypes_have_several_names(self):
        a, b = random(9, 40), random(17, 40)
        for name in ("f16", "float16", np.float16, np.dtype("f2")):
            self.assertEqual(quern.gemm(a, b, out_dtype=name).dtype, np.float16)

    def test_dtypes_may_be_mixed(self):
        a, b = random(9, 40), to_bf16(random(17, 40))
        d = quern.gemm(a, quern.view(b, "bf16"), out_dtype=np.float16)
        self.assertEqual(d.dtype, np.float16)
        self.assert_close(d, product(a, from_bf16(b)), F16)

    def test_a_batch_is_independent_products(self):
        a, b = random(5, 12, 33), random(5, 7, 33)
        self.assert_close(quern.gemm(a, b), product(a, b), F32)

    def test_two_dimensional_b_serves_the_whole_batch(self):
        a, b = random(5, 12, 33), random(7, 33)
        self.assert_close(quern.gemm(a, b), product(a, b), F32)
        turned = np.ascontiguousarray(b.T)
        self.assert_close(quern.gemm(a, turned, layout="nn"), product(a, b), F32)

    def test_rows_and_batches_may_have_any_stride(self):
        a, b = random(24, 3, 50), random(90, 80)[3:74:2, 5:55]
        swapped = a.swapaxes(0, 1)
        self.assert_close(quern.gemm(swapped, b), product(swapped, b), F32)

    def test_strided_outputs_leave_the_rest_alone(self):
        a, b = random(10, 30), random(8, 30)
        whole = poisoned(20, 16)
        quern.gemm(a, b, whole[::2, 4:12])
        self.assert_close(whole[::2, 4:12], product(a, b), F32)
        whole[::2, 4:12] = np.nan
        self.assertTrue(np.isnan(whole).all())

    def test_bias_is_added_to_every_row(self):
        a, b, bias = random(11, 21), random(13, 21), random(13)
        d = poisoned(11, 13)
        self.assertIs(quern.gemm(a, b, d, bias=bias), d)
        self.assert_close(d, product(a, b) + bias, F32)

    def test_accumulate_adds_to_out(self):
        a, b, d = random(11, 21), random(13, 21), random(11, 13)
        wanted = product(a, b) + d
        quern.gemm(a, b, d, accumulate=True)
        self.assert_close(d, wanted, F32)

    def test_layout_nn_takes_k_by_n(self):
        a, b = random(11, 21), random(21, 13)
        self.assert_close(quern.gemm(a, b, layout="nn"), product(a, b.T), F32)

    def test_transposed_views_are_taken_as_they_lie(self):
        a, b = random(11, 21), random(21, 13)
        wanted = quern.gemm(a, b, layout="nn")
        np.testing.assert_array_equal(quern.gemm(a, b.T), wanted)
        turned = np.ascontiguousarray(b.T)
        np.testing.assert_array_equal(quern.gemm(a, turned.T, layout="nn"),
                                      quern.gemm(a, turned))
        batch = random(4, 21, 13)
        many = random(4, 11, 21)
        self.assert_close(quern.gemm(many, batch.swapaxes(1, 2)), many.astype(float) @ batch, F32)

    def test_a_column_of_a_matrix_is_a_transposed_view(self):
        a, b = random(11, 21), random(21, 5)
        self.assert_close(quern.gemm(a, b[:, 2:3].T), product(a, b[:, 2:3].T), F32)

    def test_a_packed_b_gives_the_product_of_the_plain_one(self):
        a, b = random(40, 100), random(75, 100)
        for width in (16, 32, 48, 64):
            packed = quern.gemm_pack(b, width=width)
            self.assertEqual(packed.shape, (-(-75 // width), 128 * width))
            for given in ({"out": poisoned(40, 75)}, {"n": 75}):
                d = quern.gemm(a, packed, packed=width, **given)
                self.assert_close(d, product(a, b), F32)

    def test_packing_takes_either_layout_and_batches(self):
        b = random(3, 45, 33)
        packed = quern.gemm_pack(b, width=16)
        self.assertEqual(packed.shape, (3, 3, 64 * 16))
        turned = np.ascontiguousarray(b.swapaxes(1, 2))
        for other in (quern.gemm_pack(turned, width=16, layout="nn"),
                      quern.gemm_pack(turned.swapaxes(1, 2), width=16)):
            np.testing.assert_array_equal(other, packed)
        a = random(3, 9, 33)
        self.assert_close(quern.gemm(a, packed, packed=16, n=45), product(a, b), F32)

    def test_empty_sizes_are_served(self):
        self.assertEqual(quern.gemm(random(0, 8), random(4, 8)).shape, (0, 4))
        self.assertEqual(quern.gemm(random(3, 8), random(0, 8)).shape, (3, 0))
        bias = random(4)
        d = quern.gemm(random(3, 0), random(4, 0), poisoned(3, 4), bias=bias)
        np.testing.assert_array_equal(d, np.broadcast_to(bias, (3, 4)))

    def test_nan_and_infinity_come_through(self):
        a, b = random(6, 12), random(5, 12)
        a[2, 3], a[4, 0] = np.nan, np.inf
        d = quern.gemm(a, b)
        self.assertTrue(np.isnan(d[2]).all() and np.isinf(d[4]).all())
        self.assertTrue(np.isfinite(d[[0, 1, 3, 5]]).all())

    def test_addresses_of_any_alignment_are_served_after_any_other(self):
        b, memory = random(16, 64), random(1 + 24 * 64)
        for offset in (0, 1):
            a = memory[offset:offset + 24 * 64].reshape(24, 64)
            self.assert_close(quern.gemm(a, b), product(a, b), F32)


if __name__ == "__main__":
    main()
