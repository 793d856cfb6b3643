#!/usr/bin/env python3
"""Mixtures of experts on NumPy arrays against float64: routing, slots and rows, grouped products,
the layer; silu_and_mul and fused_qk_norm_rope."""

from __future__ import annotations

import math

from common import Case, from_bf16, main, np, poisoned, quern, random, run_python, to_bf16

F32, BF16 = 1e-5, 5e-3  # bounds of the relative error, by the output's dtype


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def best(keys, count):
    """Largest first, ties to the lower index."""
    return np.argsort(-keys, -1, kind="stable")[:, :count]


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def weighed(scores, ids, renormalize=True):
    w = np.take_along_axis(scores, ids, -1)
    return w / w.sum(-1, keepdims=True) if renormalize else w


def silu(x):
    return x * sigmoid(x)


def gelu(x):
    return 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def layer(x, w1, w2, weights, ids, act=silu):
    """What the experts of each token come to, in float64; of an id of -1 nothing."""
    x, w1, w2 = (array.astype(np.float64) for array in (x, w1, w2))
    out = np.zeros_like(x)
    for t, row in enumerate(x):
        for weight, e in zip(weights[t], ids[t]):
            if e >= 0:
                gate, up = np.split(w1[e] @ row, 2)
                out[t] += weight * (w2[e] @ (act(gate) * up))
    return out


def grid(*shape):
    """Logits with ties: multiples of 1/8, which any dtype has."""
    return np.round(random(*shape) * 8) / 8


class RoutingTest(Case):
    def test_softmax_takes_the_largest_logits_and_the_lower_of_equal_ones(self):
        logits = grid(50, 24)
        weights, ids = quern.topk_softmax(logits, 6)
        self.assertEqual((weights.dtype, ids.dtype), (np.float32, np.int32))
        np.testing.assert_array_equal(ids, best(logits, 6))
        self.assert_close(weights, weighed(softmax(logits.astype(np.float64)), ids, False), F32)

    def test_renormalized_weights_are_of_the_chosen(self):
        logits = random(9, 64)
        weights, ids = quern.topk_softmax(logits, 8, renormalize=True)
        self.assert_close(weights, weighed(softmax(logits.astype(np.float64)), ids), F32)

    def test_bias_cap_and_factor(self):
        logits, bias = random(7, 40) * 3, random(40)
        z = 2 * np.tanh(logits.astype(np.float64) / 2) + bias
        weights, ids = quern.topk_softmax(logits, 4, moe_softcapping=2, correction_bias=bias,
                                          routed_scaling_factor=2.5)
        np.testing.assert_array_equal(ids, best(z, 4))
        self.assert_close(weights, 2.5 * weighed(softmax(z), ids, False), F32)

    def test_the_bias_of_sigmoids_chooses_and_weighs_nothing(self):
        logits, bias = random(30, 48), random(48)
        weights, ids = quern.topk_sigmoid(logits, 5, correction_bias=bias, renormalize=True)
        scores = sigmoid(logits.astype(np.float64))
        np.testing.assert_array_equal(ids, best(scores + bias, 5))
        self.assert_close(weights, weighed(scores, ids), F32)

    def test_outputs_given_say_topk_and_are_written(self):
        logits = random(5, 16)
        weights, ids = poisoned(5, 3), poisoned(5, 3, dtype=np.int32)
        made = quern.topk_softmax(topk_weights=weights, topk_ids=ids, gating_output=logits)
        self.assertIs(made[0], weights)
        self.assertIs(made[1], ids)
        np.testing.assert_array_equal(ids, best(logits, 3))

    def test_logits_may_be_bf16_and_strided(self):
        bits = to_bf16(random(12, 40))
        view = bits[::2, :32]
        _, ids = quern.topk_softmax(quern.view(view, "bf16"), 4)
        np.testing.assert_array_equal(ids, best(from_bf16(view), 4))

    def test_nan_is_minus_infinity(self):
        logits = random(3, 8)
        logits[1, ::2] = np.nan
        logits[2] = np.nan
        _, ids = quern.topk_softmax(logits, 4)
        np.testing.assert_array_equal(ids, best(np.nan_to_num(logits, nan=-1e30), 4))

    def test_the_gate_chooses_of_the_best_groups(self):
        logits, bias = random(40, 32), random(32)
        scores = sigmoid(logits.astype(np.float64))
        keys = (scores + bias).reshape(40, 8, 4)
        kept = best(np.sort(keys, -1)[..., -2:].sum(-1), 3)
        masked = np.full_like(keys, -np.inf)
        np.put_along_axis(masked, kept[..., None], np.take_along_axis(keys, kept[..., None], 1), 1)
        weights, ids = quern.moe_fused_gate(logits, bias, 8, 3, 6)
        np.testing.assert_array_equal(ids, best(masked.reshape(40, 32), 6))
        self.assert_close(weights, weighed(scores, ids), F32)

    def test_shared_experts_are_the_last_columns(self):
        logits = random(6, 16)
        weights, ids = quern.moe_fused_gate(logits, None, 1, 1, 4, 2, 2.5)
        np.testing.assert_array_equal(ids[:, 2:], [[16, 17]] * 6)
        np.testing.assert_allclose(weights[:, 2:], 0.4, rtol=1e-6)
        scaled, _ = quern.moe_fused_gate(logits, None, 1, 1, 4, 2, 2.5, True)
        np.testing.assert_allclose(scaled, weights * 2.5, rtol=1e-6)

    def test_no_tokens_are_no_rows(self):
        weights, ids = quern.topk_softmax(random(0, 16), 2)
        self.assertEqual((weights.shape, ids.shape), ((0, 2), (0, 2)))

    def test_what_cannot_be_is_named(self):
        logits = random(4, 8)
        self.refused("topk", quern.topk_softmax, logits, 9)
        self.refused("topk: must be given", quern.topk_softmax, logits)
        self.refused("topk", quern.topk_softmax, logits, 2.5)
        self.refused("topk_ids: shape (4, 3): must be (4, 2)", quern.topk_softmax, logits, 2,
                     topk_ids=np.zeros((4, 3), np.int32))
        self.refused("topk_ids: dtype i64: must be i32", quern.topk_softmax, logits, 2,
                     topk_ids=np.zeros((4, 2), np.int64))
        self.refused("gating_output: shape (8,): must be [T, E]", quern.topk_softmax, logits[0], 2)
        self.refused("gating_output: dtype i32", quern.topk_softmax, logits.astype(np.int32), 2)
        self.refused("correction_bias: shape (7,): must be (8,)", quern.topk_softmax, logits, 2,
                     correction_bias=random(7))
        self.refused("num_expert_group", quern.moe_fused_gate, logits, None, 3, 1, 2)
        self.refused("scoring", quern.moe_fused_gate, logits, None, 2, 1, 2,
                     scoring_func="cosine")


class RowsTest(Case):
    def setUp(self):
        self.ids = best(random(37, 10), 3).astype(np.int32)

    def sorted_slots(self, ids, experts, block):
        """The expert of each block, and the slots, padded; filtered ids first."""
        flat = np.where((ids >= 0) & (ids < experts), ids, -1).reshape(-1)
        slots, blocks = [], []
        for e in range(-1, experts):
            found = np.flatnonzero(flat == e).tolist()
            padding = -len(found) % block
            slots += found + [flat.size] * padding
            blocks += [e] * ((len(found) + padding) // block)
        return slots, blocks

    def check_aligned(self, made, slots, blocks, numel):
        got, experts, used = made
        self.assertEqual(used.tolist(), [len(slots)])
        self.assertEqual(got[:len(slots)].tolist(), slots)
        self.assertTrue((got[len(slots):] == numel).all())
        self.assertEqual(experts[:len(blocks)].tolist(), blocks)
        self.assertTrue((experts[len(blocks):] == -1).all())

    def test_slots_are_sorted_and_padded(self):
        for block in (1, 16):
            made = quern.moe_align_block_size(self.ids, block, 10)
            self.check_aligned(made, *self.sorted_slots(self.ids, 10, block), self.ids.size)

    def test_filtered_ids_come_first(self):
        self.ids[3:9] = -1
        self.ids[11, 1] = 99
        made = quern.moe_align_block_size(self.ids, 8, 10)
        self.check_aligned(made, *self.sorted_slots(self.ids, 10, 8), self.ids.size)

    def test_a_map_says_what_ids_stand_for(self):
        mapping = np.array([-1, 2, 0, -1, 1, -1, -1, -1, 3, -1], np.int32)
        made = quern.moe_align_block_size(self.ids, 8, 4, expert_map=mapping)
        self.check_aligned(made, *self.sorted_slots(mapping[self.ids], 4, 8), self.ids.size)

    def test_outputs_are_given_by_sglangs_names(self):
        made = quern.moe_align_block_size(self.ids, 8, 10)
        given = [poisoned(*array.shape, dtype=np.int32) for array in made]
        names = ("sorted_token_ids", "experts_ids", "num_tokens_post_pad")
        quern.call("moe_align_block_size", self.ids, block_size=8, num_experts=10,
                   **dict(zip(names, given)))
        again = quern.moe_align_block_size(self.ids, 8, 10, experts_ids=given[1].copy())
        for one, two, other in zip(given, again, made):
            np.testing.assert_array_equal(one, other)
            np.testing.assert_array_equal(two, other)

    def test_permutations_bring_rows_to_their_experts_and_back(self):
        x, factors = random(37, 64), random(37, 3)
        offsets, sizes1, sizes2, rows, back = quern.prepare_moe_input(self.ids, 10, 32, 64)
        counts = np.bincount(self.ids.reshape(-1), minlength=10)
        np.testing.assert_array_equal(offsets, [0, *np.cumsum(counts)])
        np.testing.assert_array_equal(sizes1, [(m, 64, 64) for m in counts])
        np.testing.assert_array_equal(sizes2, [(m, 64, 32) for m in counts])
        order = np.argsort(self.ids.reshape(-1), kind="stable")
        np.testing.assert_array_equal(rows, order // 3)
        np.testing.assert_array_equal(np.argsort(order).reshape(37, 3), back)
        shuffled = quern.shuffle_rows(x, rows, (111, 64))
        np.testing.assert_array_equal(shuffled, x[rows])
        y = quern.apply_shuffle_mul_sum(shuffled, None, back, factors)
        self.assert_close(y, x.astype(np.float64) * factors.sum(-1, keepdims=True), F32)
        flat = quern.apply_shuffle_mul_sum(shuffled, poisoned(37, 64), back.reshape(-1), factors)
        np.testing.assert_array_equal(flat, y)

    def test_offsets_of_blocks_are_rounded_up(self):
        six = quern.prepare_moe_input(self.ids, 10, 32, 64, blockscale=True)
        counts = np.bincount(self.ids.reshape(-1), minlength=10)
        np.testing.assert_array_equal(six[5], [0, *np.cumsum(-(-counts // 128) * 128)])

    def test_rows_from_nowhere_are_zeros_and_add_nothing(self):
        x = random(6, 32)
        rows = quern.shuffle_rows(x, np.array([5, -1, 6, 0], np.int32))
        np.testing.assert_array_equal(rows, [x[5], 0 * x[0], 0 * x[0], x[0]])
        y = quern.apply_shuffle_mul_sum(x, None, np.array([[2, -1], [7, 3]], np.int32))
        np.testing.assert_array_equal(y, x[2:4])

    def test_sums_over_the_experts_of_a_token(self):
        x, weights = random(11, 4, 48), random(11, 4)
        self.assert_close(quern.moe_sum(x), x.sum(1, dtype=np.float64), F32)
        out = poisoned(11, 48)
        self.assertIs(quern.moe_sum_reduce(x, out, 2.5, topk_weights=weights), out)
        self.assert_close(out, 2.5 * np.einsum("tk,tkh->th", weights.astype(np.float64), x), F32)

    def test_what_cannot_be_is_named(self):
        self.refused("num_experts=0: must be 1 or more", quern.moe_align_block_size, self.ids, 8, 0)
        self.refused("block_size: must be given", quern.call, "moe_align_block_size", self.ids,
                     num_experts=8)
        self.refused("topk_ids: dtype i64", quern.moe_align_block_size,
                     self.ids.astype(np.int64), 8, 10)
        self.refused("output_tensor_shape=(3, 4): must be (2, 8)", quern.shuffle_rows,
                     random(4, 8), np.zeros(2, np.int32), (3, 4))
        self.refused("permutation: shape (6,): must be [T, topk]", quern.apply_shuffle_mul_sum,
                     random(6, 8), None, np.zeros(6, np.int32))
        self.refused("input_tensor: shape (4, 8): must be [T, topk, K]", quern.moe_sum,
                     random(4, 8))


class GroupedGemmTest(Case):
    def setUp(self):
        self.rows = [5, 0, 17, 1]
        self.offsets = np.array([0, 5, 5, 22, 23], np.int32)
        self.a, self.b = random(23, 64), random(4, 40, 64)

    def wanted(self, a, b, rows):
        parts = np.split(a.astype(np.float64), np.cumsum(rows)[:-1])
        return np.concatenate([part @ b[e].T.astype(np.float64) for e, part in enumerate(parts)])

    def test_rows_between_offsets_are_an_experts(self):
        d = quern.grouped_gemm(self.a, self.b, self.offsets)
        self.assert_close(d, self.wanted(self.a, self.b, self.rows), F32)

    def test_bf16_to_bf16_and_to_f32(self):
        a, b = to_bf16(self.a), to_bf16(self.b)
        wanted = self.wanted(from_bf16(a), from_bf16(b), self.rows)
        for name, bound in (("f32", F32), ("bf16", BF16)):
            out = poisoned(23, 40, dtype=np.float32 if name == "f32" else np.uint16)
            given = out if name == "f32" else quern.view(out, "bf16")
            quern.grouped_gemm(quern.view(a, "bf16"), quern.view(b, "bf16"), self.offsets,
                               out=given)
            self.assert_close(out if name == "f32" else from_bf16(out), wanted, bound)

    def test_gathered_rows_and_an_activation(self):
        row_ids = np.arange(23, dtype=np.int32)[::-1].copy() * 3
        d = quern.grouped_gemm(self.a, self.b, self.offsets, row_ids=row_ids, share=3,
                               activation="silu")
        both = self.wanted(self.a[::-1], self.b, self.rows)
        self.assert_close(d, silu(both[:, :20]) * both[:, 20:], F32)

    def test_blocks_of_rows_have_an_expert_each(self):
        ids = np.array([2, -1, 0], np.int32)
        out = poisoned(24, 40)
        a = random(24, 64)
        quern.grouped_gemm(a, self.b, expert_ids=ids, num_rows=np.array([24], np.int32),
                           block_size=8, out=out)
        wanted = self.wanted(a, self.b[[2, 1, 0]], [8, 8, 8])
        wanted[8:16] = 0
        self.assert_close(out, wanted, F32)

    def test_counts_mask_the_rows_of_an_expert(self):
        a, out = random(4, 6, 64), poisoned(4, 6, 40)
        counts = np.array([6, 0, 2, 1], np.int32)
        quern.grouped_gemm(a, self.b, counts=counts, out=out)
        for e, count in enumerate(counts):
            self.assert_close(out[e, :count], a[e, :count].astype(np.float64) @ self.b[e].T, F32)
            self.assertTrue(np.isnan(out[e, count:]).all())

    def test_what_cannot_be_is_named(self):
        a, b, offsets = self.a, self.b, self.offsets
        self.refused("offsets: must be given, or", quern.grouped_gemm, a, b)
        self.refused("offsets: shape (4,): must be (5,)", quern.grouped_gemm, a, b, offsets[:4])
        self.refused("offsets: dtype i64", quern.grouped_gemm, a, b, offsets.astype(np.int64))
        self.refused("b: shape (4, 40, 64): must be (4, 40, 63)", quern.grouped_gemm,
                     self.a[:, :63], b, offsets)
        self.refused("b: shape (4, 39, 64): must be [E, 2 n, k]", quern.grouped_gemm, a,
                     np.ascontiguousarray(b[:, :39]), offsets, activation="silu")
        self.refused("a: shape (23, 64): must be [E, m, k]", quern.grouped_gemm, a, b,
                     counts=offsets[:4])
        self.refused("activation=relu", quern.grouped_gemm, a, b, offsets, activation="relu")
        self.refused("num_rows: must not be given", quern.grouped_gemm, a, b, offsets,
                     num_rows=offsets[:1])


class LayerTest(Case):
    def setUp(self):
        self.x, self.logits = random(21, 96), random(21, 12)
        self.w1, self.w2 = random(12, 128, 96) / 8, random(12, 96, 64) / 8

    def routed(self, count=3):
        ids = best(self.logits, count)
        return weighed(softmax(self.logits.astype(np.float64)), ids), ids

    def test_a_layer_is_the_weighed_sum_of_its_experts(self):
        y = quern.fused_moe(self.x, self.w1, self.w2, self.logits, 3)
        self.assert_close(y, layer(self.x, self.w1, self.w2, *self.routed()), F32)

    def test_bf16(self):
        x, w1, w2 = (to_bf16(array) for array in (self.x, self.w1, self.w2))
        out = quern.view(poisoned(21, 96, dtype=np.uint16), "bf16")
        y = quern.fused_moe(*(quern.view(array, "bf16") for array in (x, w1, w2)), self.logits, 3,
                            out=out)
        self.assertIs(y, out)
        wanted = layer(*(from_bf16(array) for array in (x, w1, w2)), *self.routed())
        self.assert_close(from_bf16(out.array), wanted, BF16)

    def test_in_place_writes_over_the_tokens(self):
        wanted = quern.fused_moe(self.x, self.w1, self.w2, self.logits, 3)
        self.assertIs(quern.fused_moe(self.x, self.w1, self.w2, self.logits, 3, inplace=True),
                      self.x)
        np.testing.assert_array_equal(self.x, wanted)

    def test_weights_that_are_not_made_to_sum_to_one(self):
        y = quern.fused_moe(self.x, self.w1, self.w2, self.logits, 3, False,
                            routed_scaling_factor=2.0)
        _, ids = self.routed()
        weights = 2 * weighed(softmax(self.logits.astype(np.float64)), ids, False)
        self.assert_close(y, layer(self.x, self.w1, self.w2, weights, ids), F32)

    def test_groups_bias_and_a_shared_expert(self):
        bias = random(10)
        logits = np.ascontiguousarray(self.logits[:, :10])
        y = quern.fused_moe(self.x, self.w1, self.w2, logits, 3, num_expert_group=5, topk_group=2,
                            scoring_func="sigmoid", correction_bias=bias,
                            num_fused_shared_experts=2, activation="gelu")
        weights, ids = quern.moe_fused_gate(logits, bias, 5, 2, 3)
        shared = np.tile([[10, 11]], (21, 1))
        wanted = layer(self.x, self.w1, self.w2, np.hstack([weights, 0 * shared + 1.0]),
                       np.hstack([ids, shared]), gelu)
        self.assert_close(y, wanted, F32)

    def test_experts_that_are_elsewhere_add_nothing(self):
        mapping = np.full(12, -1, np.int32)
        mapping[[3, 7, 8, 11]] = [1, 0, 3, 2]
        y = quern.fused_moe(self.x, self.w1[:4], self.w2[:4], self.logits, 3, expert_map=mapping)
        weights, ids = self.routed()
        self.assert_close(y, layer(self.x, self.w1, self.w2, weights, mapping[ids]), F32)

    def test_weights_of_eight_bits(self):
        codes = [np.random.default_rng().integers(-127, 128, array.shape).astype(np.int8)
                 for array in (self.w1, self.w2)]
        scales = [np.abs(random(12, 128)) / 500, np.abs(random(12, 96)) / 500]
        y = quern.fused_moe(self.x, *codes, self.logits, 3, w1_scale=scales[0],
                            w2_scale=scales[1])
        w1, w2 = (code * scale[..., None] for code, scale in zip(codes, scales))
        self.assert_close(y, layer(self.x, w1, w2, *self.routed()), F32)

    def test_no_tokens_and_one(self):
        for count in (0, 1):
            y = quern.fused_moe(self.x[:count], self.w1, self.w2, self.logits[:count], 3)
            self.assertEqual(y.shape, (count, 96))

    def test_a_prepared_layer_and_a_tuned_one(self):
        step = quern.prepare("fused_moe", self.x, self.w1, self.w2, self.logits, topk=3)
        wanted = step().copy()
        other = random(21, 96)
        y = step(hidden_states=other, out=poisoned(21, 96))
        self.assert_close(y, layer(other, self.w1, self.w2, *self.routed()), F32)
        x = self.x.copy()
        found = quern.tune("fused_moe", x, self.w1, self.w2, self.logits, topk=3, inplace=True,
                           max_configs=2, budget=5)
        self.assertTrue(found.best.variant)
        np.testing.assert_array_equal(x, self.x)
        np.testing.assert_array_equal(quern.fused_moe(self.x, self.w1, self.w2, self.logits, 3),
                                      wanted)

    def test_what_cannot_be_is_named(self):
        x, w1, w2, logits = self.x, self.w1, self.w2, self.logits
        self.refused("topk", quern.fused_moe, x, w1, w2, logits, 13)
        self.refused("topk_group: must be given with num_expert_group=4", quern.fused_moe, x, w1,
                     w2, logits, 3, num_expert_group=4, scoring_func="sigmoid")
        self.refused("gating_output: shape (21, 8): must have 12 columns", quern.fused_moe, x, w1,
                     w2, np.ascontiguousarray(logits[:, :8]), 3)
        self.refused("w2: shape (12, 96, 64): must be", quern.fused_moe, x, w1[:, :64], w2, logits,
                     3)
        self.refused("w1: dtype f16: must be f32", quern.fused_moe, x, w1.astype(np.float16),
                     w2.astype(np.float16), logits, 3)
        self.refused("w1_scale: must be given", quern.fused_moe, x, w1.astype(np.int8),
                     w2.astype(np.int8), logits, 3)
        self.refused("w1_scale: must not be given", quern.fused_moe, x, w1, w2, logits, 3,
                     w1_scale=random(12, 128))
        self.refused("out: must not be given with inplace=True", quern.fused_moe, x, w1, w2,
                     logits, 3, inplace=True, out=x)
        self.refused("activation=relu", quern.fused_moe, x, w1, w2, logits, 3, activation="relu")


class NeighboursTest(Case):
    def test_activations_times_the_other_half(self):
        x = random(3, 5, 130)
        gate, up = np.split(x.astype(np.float64), 2, -1)
        cases = ((quern.silu_and_mul, silu(gate)), (quern.gelu_and_mul, gelu(gate)),
                 (quern.gelu_tanh_and_mul, 0.5 * gate * (1 + np.tanh(
                     math.sqrt(2 / math.pi) * (gate + 0.044715 * gate ** 3)))))
        for function, wanted in cases:
            self.assert_close(function(x), wanted * up, F32)

    def test_a_limit_holds_gate_and_the_other_half(self):
        x = random(4, 64) * 4
        gate, up = np.split(x.astype(np.float64), 2, -1)
        out = poisoned(4, 32)
        self.assertIs(quern.silu_and_mul(x, out, limit=2.0), out)
        self.assert_close(out, silu(np.minimum(gate, 2)) * np.clip(up, -2, 2), F32)

    def test_codes_times_scales_are_the_values(self):
        x = random(6, 512)
        gate, up = np.split(x.astype(np.float64), 2, -1)
        values = silu(gate) * up
        for group in (0, 128):
            codes, scales = quern.silu_and_mul(x, quantize="i8", group_size=group)
            self.assertEqual((codes.dtype, scales.shape), (np.int8, (6, 256 // group if group
                                                                     else 1)))
            made = codes.reshape(6, scales.shape[1], -1) * scales[..., None].astype(np.float64)
            off = np.abs(made.reshape(6, 256) - values)
            self.assertLessEqual((off / np.repeat(scales, 256 // scales.shape[1], 1)).max(), 0.501)

    def test_heads_are_normed_and_rotated_in_place(self):
        hq, hk, hv, d, base = 3, 2, 2, 64, 1e4
        qkv, qw, kw = random(9, (hq + hk + hv) * d), random(d), random(d)
        positions = np.array([0, 1, 2, 3, 100, 5, 6, 7, 4000], np.int64)
        for is_neox in (True, False):
            got = qkv.copy()
            self.assertIsNone(quern.fused_qk_norm_rope(got, hq, hk, hv, d, 1e-6, qw, kw, base,
                                                       is_neox, positions))
            heads = qkv.reshape(9, -1, d).astype(np.float64)
            x = heads / np.sqrt((heads ** 2).mean(-1, keepdims=True) + 1e-6)
            x[:, :hq] *= qw
            x[:, hq:hq + hk] *= kw
            angle = (positions[:, None] * base ** (-2 * np.arange(d // 2) / d))[:, None]
            one, two = (slice(0, d // 2), slice(d // 2, d)) if is_neox else \
                (slice(0, d, 2), slice(1, d, 2))
            wanted = x.copy()
            wanted[..., one] = x[..., one] * np.cos(angle) - x[..., two] * np.sin(angle)
            wanted[..., two] = x[..., two] * np.cos(angle) + x[..., one] * np.sin(angle)
            wanted[:, hq + hk:] = heads[:, hq + hk:]
            self.assert_close(got, wanted.reshape(9, -1), 2e-5)
            np.testing.assert_array_equal(got.reshape(9, -1, d)[:, hq + hk:],
                                          qkv.reshape(9, -1, d)[:, hq + hk:])

    def test_what_cannot_be_is_named(self):
        self.refused("input: shape (4, 5): must be [.., 2 D]", quern.silu_and_mul, random(4, 5))
        self.refused("quantize=fp4: must be None", quern.silu_and_mul, random(4, 8),
                     quantize="fp4")
        self.refused("qkv: shape (2, 300): must be (2, 320)", quern.fused_qk_norm_rope,
                     random(2, 300), 3, 1, 1, 64, 1e-6, random(64), random(64), 1e4, True,
                     np.arange(2))


class ElsewhereTest(Case):
    def test_a_context_has_each_of_them(self):
        logits, x = random(5, 8), random(5, 64)
        w1, w2 = random(8, 32, 64), random(8, 64, 16)
        one = np.ones(64, np.float32)
        with quern.Context("cpu", cache="") as context:
            weights, ids = context.topk_softmax(logits, 2)
            context.topk_sigmoid(logits, 2)
            context.moe_fused_gate(logits, topk=2)
            context.moe_align_block_size(ids, 8, 8)
            offsets, _, _, rows, back = context.prepare_moe_input(ids, 8, 16, 64)
            moved = context.shuffle_rows(x, rows)
            context.grouped_gemm(moved, w1, offsets)
            context.apply_shuffle_mul_sum(moved, None, back, weights)
            context.moe_sum(random(5, 2, 8))
            context.moe_sum_reduce(random(5, 2, 8))
            context.fused_moe(x, w1, w2, logits, 2)
            for name in ("silu_and_mul", "gelu_and_mul", "gelu_tanh_and_mul"):
                getattr(context, name)(x)
            context.fused_qk_norm_rope(random(5, 192), 1, 1, 1, 64, 1e-6, one, one, 1e4, True,
                                       np.arange(5))
            self.assertGreater(context.stats().compiles, 8)

    def test_prepared_calls_take_other_arrays(self):
        logits = random(9, 32)
        choose = quern.prepare("topk_softmax", logits, topk=4, renormalize=True)
        other = random(9, 32)
        weights, ids = choose(gating_output=other)
        np.testing.assert_array_equal(ids, best(other, 4))
        align = quern.prepare("moe_align_block_size", ids, block_size=8, num_experts=32)
        wanted = quern.moe_align_block_size(ids, 8, 32)
        for one, two in zip(align(), wanted):
            np.testing.assert_array_equal(one, two)

    def test_families_are_called_by_their_own_names_too(self):
        x, logits = random(4, 64), random(4, 8)
        w1, w2 = random(8, 32, 64), random(8, 64, 16)
        y = quern.call("moe", x, w1, w2, logits, topk=2)
        np.testing.assert_array_equal(y, quern.fused_moe(x, w1, w2, logits, 2))

    def test_ids_and_offsets_are_checked_where_that_is_asked_for(self):
        done = run_python("""
import numpy as np, quern
a, b = np.ones((6, 16), np.float32), np.ones((2, 8, 16), np.float32)
try:
    quern.grouped_gemm(a, b, np.array([0, 7, 6], np.int32))
except quern.Error as error:
    print(error.status, error)
""", QUERN_CHECK="1")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("offsets", done.stdout)


if __name__ == "__main__":
    main()
