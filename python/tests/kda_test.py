#!/usr/bin/env python3
"""KDA and GDN, their convolution, norms and gates on NumPy arrays, against float64 recurrences."""

from __future__ import annotations

import os
from unittest import mock

from common import Case, from_bf16, main, np, poisoned, quern, random, to_bf16
from quern._families import DESCRIPTIONS

F32 = 1e-5  # bound of the relative error: that of the families' own checks
H, HV, K, V = 1, 2, 64, 64
LENGTHS = (37, 0, 1, 66, 20)


def recurrence(q, k, v, g, beta, state, scale=K**-0.5):
    """o and the state after, of one sequence: q and k [T, H, K], v [T, HV, V], g [T, HV, K]."""
    o, state = np.zeros(v.shape), np.array(state, float)
    share = v.shape[1] // q.shape[1]
    for t in range(len(q)):
        query, key = (np.repeat(x[t].astype(float), share, 0) for x in (q, k))
        state *= np.exp(g[t].astype(float))[..., None]
        gap = v[t] - np.einsum("hkv,hk->hv", state, key)
        state += key[..., None] * (beta[t, :, None] * gap)[:, None]
        o[t] = scale * np.einsum("hkv,hk->hv", state, query)
    return o, state


def by_sequence(inputs, lengths, states, scale=K**-0.5):
    """recurrence() of packed sequences."""
    outputs, after, begin = [], [], 0
    for length, state in zip(lengths, states):
        o, final = recurrence(*(x[begin:begin + length] for x in inputs), state, scale)
        outputs.append(o)
        after.append(final)
        begin += length
    return np.concatenate(outputs), np.stack(after)


def unit(x):
    x = x.astype(float)
    return x / np.sqrt((x * x).sum(-1, keepdims=True) + 1e-6)


def sigmoid(x):
    return 1 / (1 + np.exp(-x.astype(float)))


def draw(*lead):
    """q, k, v, g, beta of KDA: keys of length 1, decays from none to strong."""
    q, k, v = random(*lead, H, K), random(*lead, H, K), random(*lead, HV, V)
    k = unit(k).astype(np.float32)
    g = (-np.exp(2 * random(*lead, HV, K) - 2)).astype(np.float32)
    return q, k, v, g, sigmoid(random(*lead, HV)).astype(np.float32)


def borders(lengths=LENGTHS, dtype=np.int32):
    return np.cumsum([0, *lengths], dtype=dtype)


def parts(mixed):
    """q, k and v, side by side in the rows of a convolution's output."""
    q, k, v = np.split(mixed, (H * K, 2 * H * K), axis=1)
    return q.reshape(-1, H, K), k.reshape(-1, H, K), v.reshape(-1, HV, V)


def turned(states):
    return np.ascontiguousarray(states.swapaxes(-1, -2))


class PrefillTest(Case):
    def test_batches_are_independent_sequences(self):
        inputs, state = draw(2, 70), random(2, HV, K, V)
        o, final = quern.kda_prefill(*inputs, initial_state=state, output_final_state=True)
        self.assertEqual((o.shape, final.shape, final.dtype), ((2, 70, HV, V), state.shape,
                                                               np.float32))
        for i in range(2):
            wanted, after = recurrence(*(x[i] for x in inputs), state[i])
            self.assert_close(o[i], wanted, F32)
            self.assert_close(final[i], after, F32)

    def test_packed_sequences_have_borders_of_either_width(self):
        inputs, state = draw(sum(LENGTHS)), random(len(LENGTHS), HV, K, V)
        wanted, after = by_sequence(inputs, LENGTHS, state)
        for dtype in (np.int32, np.int64):
            for lead in ((), (None,)):
                given = [x[lead] for x in inputs] if lead else inputs
                o, final = quern.kda_prefill(*given, initial_state=state, output_final_state=True,
                                             cu_seqlens=borders(dtype=dtype))
                self.assertEqual(o.shape, given[2].shape)
                self.assert_close(o.reshape(wanted.shape), wanted, F32)
                self.assert_close(final, after, F32)
                np.testing.assert_array_equal(final[1], state[1])  # of no token

    def test_tokens_of_no_sequence_are_zeros_unless_out_is_given(self):
        q, k, v, g, beta = draw(40)
        some = np.array([5, 20, 30], np.int32)
        for function, decay in ((quern.kda_prefill, g), (quern.gdn_prefill, g[..., 0])):
            inputs = q, k, v, decay, beta
            for _ in range(3):
                poisoned(40, HV, V)  # what is made next may lie where this lay
                o, _ = function(*inputs, cu_seqlens=some)
                self.assertTrue((o[:5] == 0).all() and (o[30:] == 0).all())
            out = poisoned(40, HV, V)
            function(*inputs, cu_seqlens=some, out=out)
            self.assertTrue(np.isnan(out[:5]).all() and np.isnan(out[30:]).all())
            np.testing.assert_array_equal(out[5:30], o[5:30])

    def test_no_final_state_is_none(self):
        inputs = draw(20)
        o, final = quern.kda_prefill(*inputs, scale=0.5)
        self.assertIsNone(final)
        self.assert_close(o, recurrence(*inputs, np.zeros((HV, K, V)), 0.5)[0], F32)

    def test_outputs_may_be_given_and_lie_on_v_and_the_initial_state(self):
        inputs, state = draw(sum(LENGTHS)), random(len(LENGTHS), HV, K, V)
        wanted, after = by_sequence(inputs, LENGTHS, state)
        o, final = quern.kda_prefill(*inputs, initial_state=state, final_state=state,
                                     cu_seqlens=borders(), out=inputs[2])
        self.assertIs(o, inputs[2])
        self.assertIs(final, state)
        self.assert_close(o, wanted, F32)
        self.assert_close(final, after, F32)

    def test_a_pool_is_updated_in_place_and_its_other_slots_are_left_alone(self):
        inputs, state = draw(sum(LENGTHS)), random(len(LENGTHS), HV, K, V)
        slots = np.array([6, 2, -1, 0, 4], np.int32)
        state[2] = 0  # of slot -1: begins from zeros
        wanted, after = by_sequence(inputs, LENGTHS, state)
        whole = np.full((8, 3, HV, V, K), 1e30, np.float32)
        pool = whole[:, 1]  # a pitch of three states
        kept = slots >= 0
        pool[slots[kept]] = turned(state)[kept]
        o, final = quern.kda_prefill(*inputs, cu_seqlens=borders(), states=pool, slots=slots,
                                     state_v_first=True)
        self.assertIsNone(final)
        self.assert_close(o, wanted, F32)
        self.assert_close(pool[slots[kept]], turned(after)[kept], F32)
        pool[slots[kept]] = 1e30
        self.assertTrue((whole == np.float32(1e30)).all())

    def test_parts_of_a_convolutions_output_are_taken_as_they_lie(self):
        mixed = random(sum(LENGTHS), 2 * H * K + HV * V + 8)
        q, k, v = parts(mixed[:, :-8])
        for part in (q, k, v):
            self.assertTrue(np.shares_memory(part, mixed))
        _, _, _, g, beta = draw(len(mixed))
        before = mixed.copy()
        o, _ = quern.kda_prefill(q, k, v, g, beta, cu_seqlens=borders(),
                                 use_qk_l2norm_in_kernel=True)
        zeros = np.zeros((len(LENGTHS), HV, K, V))
        self.assert_close(o, by_sequence((unit(q), unit(k), v, g, beta), LENGTHS, zeros)[0], F32)
        np.testing.assert_array_equal(mixed, before)

    def test_the_output_may_lie_on_v_among_such_parts(self):
        before = random(sum(LENGTHS), 2 * H * K + HV * V + 8)
        q, k, v = parts(before[:, :-8])
        _, _, _, g, beta = draw(len(before))
        zeros = np.zeros((len(LENGTHS), HV, K, V))
        wanted, _ = by_sequence((unit(q), unit(k), v, g, beta), LENGTHS, zeros)
        options = {"cu_seqlens": borders(), "use_qk_l2norm_in_kernel": True}
        for lead in ((), (None,)):
            mixed = before.copy()
            q, k, v = (x[lead] if lead else x for x in parts(mixed[:, :-8]))
            gates = (g[lead], beta[lead]) if lead else (g, beta)
            with quern.Context("cpu", cache="") as context:
                context.tune("kda_prefill", q, k, v, *gates, out=v, max_configs=2, **options)
                np.testing.assert_array_equal(mixed, before)
                o, _ = context.kda_prefill(q, k, v, *gates, out=v, **options)
            self.assertIs(o, v)
            self.assert_close(o.reshape(wanted.shape), wanted, F32)
            mixed[:, 2 * H * K:-8] = before[:, 2 * H * K:-8]
            np.testing.assert_array_equal(mixed, before)
            call = quern.prepare("kda_prefill", q, k, v, *gates, out=v, **options)
            self.assertIs(call()[0], v)
            self.assert_close(v.reshape(wanted.shape), wanted, F32)
            self.refused("overlaps k=", quern.kda_prefill, q, k, v, *gates, **options,
                         out=mixed[:, 2 * H * K - 4:-12].reshape(v.shape))

    def test_states_at_the_start_of_chunks_are_kept(self):
        inputs, lengths = draw(150), (130, 20)
        kept = poisoned(150 // 64 + 2, HV, V, K)
        _, final = quern.kda_prefill(*inputs, cu_seqlens=borders(lengths), chunk_states=kept,
                                     state_v_first=True)
        self.assertIsNone(final)
        zero = np.zeros((HV, K, V))
        for row, tokens in ((0, 0), (1, 64), (2, 128)):
            _, state = recurrence(*(x[:tokens] for x in inputs), zero)
            self.assert_close(kept[row], turned(state), F32)
        self.assertTrue((kept[130 // 64 + 1] == 0).all())
        self.refused("chunk_states: shape (4, 2, 64, 64): must be (3, 2, 64, 64)",
                     quern.kda_prefill, *inputs, chunk_states=kept)

    def test_gates_and_logits_are_taken_raw(self):
        q, k, v, _, _ = draw(2, 40)
        raw, logits = random(2, 40, HV, K), random(2, 40, HV)
        rate, bias = random(HV), random(HV * K)
        sum_ = raw + bias.reshape(HV, K).astype(float)
        factor = np.exp(rate.astype(float))[:, None]
        for given, log, times in (
                ({}, -factor * np.logaddexp(0, sum_), 1),
                ({"lower_bound": -5, "safe_gate": True, "allow_neg_eigval": True},
                 -5 * sigmoid(factor * sum_), 2)):
            o, _ = quern.kda_prefill(q, k, v, raw, logits, A_log=rate.reshape(1, 1, HV, 1),
                                     dt_bias=bias, use_gate_in_kernel=True,
                                     use_beta_sigmoid_in_kernel=True, **given)
            beta = times * sigmoid(logits)
            for i in range(2):
                wanted, _ = recurrence(q[i], k[i], v[i], log[i], beta[i], np.zeros((HV, K, V)))
                self.assert_close(o[i], wanted, F32)

    def test_gdn_has_one_decay_for_a_head(self):
        q, k, v, g, beta = draw(2, 40)
        wide = np.broadcast_to(g[..., :1], g.shape)
        for decay in (g[..., 0], np.ascontiguousarray(g[..., 0])):
            o, final = quern.gdn_prefill(q, k, v, decay, beta, output_final_state=True)
            for i in range(2):
                wanted, after = recurrence(q[i], k[i], v[i], wide[i], beta[i],
                                           np.zeros((HV, K, V)))
                self.assert_close(o[i], wanted, F32)
                self.assert_close(final[i], after, F32)

    def test_bf16_inputs_and_states_have_their_bits(self):
        q, k, v, g, beta = draw(90)
        bits = [to_bf16(x) for x in (q, k, v)]
        state = to_bf16(random(1, HV, K, V))
        out = quern.view(poisoned(90, HV, V, dtype=np.uint16), "bf16")
        after = quern.view(poisoned(1, HV, K, V, dtype=np.uint16), "bf16")
        o, final = quern.kda_prefill(*(quern.view(x, "bf16") for x in bits), g, beta, out=out,
                                     initial_state=quern.view(state, "bf16"), final_state=after)
        self.assertIs(o, out)
        self.assertIs(final, after)
        wanted, last = recurrence(*map(from_bf16, bits), g, beta, from_bf16(state)[0])
        self.assert_close(from_bf16(out.array), wanted, 5e-3)
        self.assert_close(from_bf16(after.array)[0], last, 5e-3)

    def test_no_tokens_and_no_sequences_are_served(self):
        state = random(3, HV, K, V)
        o, final = quern.kda_prefill(*draw(3, 0), initial_state=state, output_final_state=True)
        self.assertEqual(o.shape, (3, 0, HV, V))
        np.testing.assert_array_equal(final, state)
        o, _ = quern.kda_prefill(*draw(0), cu_seqlens=borders(()))
        self.assertEqual(o.shape, (0, HV, V))


class DecodeTest(Case):
    def test_one_token_continues_a_prefill(self):
        inputs, slots = draw(3, 21), np.array([2, 0, 4], np.int32)
        pool, zero = poisoned(6, HV, K, V), np.zeros((HV, K, V))
        pool[slots] = 0
        first = [np.ascontiguousarray(x[:, :20]) for x in inputs]
        quern.kda_prefill(*first, states=pool, slots=slots)
        o, final = quern.kda_decode(*(x[:, 20] for x in inputs), states=pool, slots=slots)
        self.assertEqual((o.shape, final), ((3, HV, V), None))
        for i in range(3):
            wanted, after = recurrence(*(x[i] for x in inputs), zero)
            self.assert_close(o[i], wanted[-1], F32)
            self.assert_close(pool[slots[i]], after, F32)
        self.assertTrue(np.isnan(pool[[1, 3, 5]]).all())

    def test_several_tokens_and_gdn(self):
        q, k, v, g, beta = draw(2, 4)
        state = random(2, HV, K, V)
        wide = np.broadcast_to(g[..., :1], g.shape)
        o, final = quern.gdn_decode(q, k, v, g[..., 0], beta, initial_state=state,
                                    output_final_state=True)
        for i in range(2):
            wanted, after = recurrence(q[i], k[i], v[i], wide[i], beta[i], state[i])
            self.assert_close(o[i], wanted, F32)
            self.assert_close(final[i], after, F32)

    def test_padding_gives_zeros_and_touches_nothing(self):
        inputs, pool = draw(3), random(4, HV, K, V)
        before, slots = pool.copy(), np.array([-1, 1, -1], np.int32)
        out = poisoned(3, HV, V)
        quern.kda_decode(*inputs, states=pool, slots=slots, out=out)
        self.assertTrue((out[[0, 2]] == 0).all() and (out[1] != 0).all())
        np.testing.assert_array_equal(pool[[0, 2, 3]], before[[0, 2, 3]])

    def test_drafts_leave_the_pool_and_keep_every_state(self):
        inputs, pool = draw(2, 3), random(4, HV, K, V)
        before, slots = pool.copy(), np.array([3, 1], np.int32)
        saved = poisoned(2, 3, HV, K, V)
        parents = np.array([[-1, 0, 0], [-1, 0, 1]], np.int32)
        o, final = quern.kda_decode(*inputs, states=pool, slots=slots, step_states=saved,
                                    parents=parents)
        self.assertIsNone(final)
        np.testing.assert_array_equal(pool, before)
        for i in range(2):
            states = {-1: before[slots[i]]}
            for t in range(3):
                wanted, states[t] = recurrence(*(x[i, t:t + 1] for x in inputs),
                                               states[parents[i, t]])
                self.assert_close(o[i, t], wanted[0], F32)
                self.assert_close(saved[i, t], states[t], F32)


def convolved(x, weight, bias, before):
    """silu of the filtered inputs of one sequence, and its last W - 1 inputs."""
    taps = weight.shape[1]
    padded = np.concatenate([before, x]).astype(float)
    y = sum(padded[j:j + len(x)] * weight[:, j] for j in range(taps)) + bias
    return y * sigmoid(y), padded[len(x):]


class ConvolutionTest(Case):
    def setUp(self):
        self.weight, self.bias = random(40, 4), random(40)

    def test_batches_and_packed_sequences(self):
        x, state = random(2, 30, 40), random(2, 3, 40)
        y, final = quern.causal_conv1d(x, self.weight, self.bias, initial_state=state,
                                       output_final_state=True, activation="silu")
        packed, _ = quern.causal_conv1d(x.reshape(1, 60, 40), self.weight, self.bias,
                                        initial_state=state, activation="swish",
                                        cu_seqlens=np.array([0, 30, 60]))
        for i in range(2):
            wanted, after = convolved(x[i], self.weight, self.bias, state[i])
            self.assert_close(y[i], wanted, F32)
            self.assert_close(packed[0, 30 * i:30 * i + 30], wanted, F32)
            np.testing.assert_array_equal(final[i], after.astype(np.float32))

    def test_states_may_be_transposed_views_and_stand_in_a_pool(self):
        x, slots = random(60, 40), np.array([4, 1], np.int32)
        pool = np.full((6, 3, 40), 1e30, np.float32)
        pool[slots] = old = random(2, 3, 40)
        y, final = quern.causal_conv1d(x, self.weight, self.bias, activation="silu", slots=slots,
                                       states=pool.swapaxes(1, 2), cu_seqlens=borders((30, 30)),
                                       has_initial=np.array([True, False]))
        old[1] = 0
        self.assertIsNone(final)
        for i in range(2):
            wanted, after = convolved(x[30 * i:30 * i + 30], self.weight, self.bias, old[i])
            self.assert_close(y[30 * i:30 * i + 30], wanted, F32)
            np.testing.assert_array_equal(pool[slots[i]], after.astype(np.float32))
        self.assertTrue((pool[[0, 2, 3, 5]] == np.float32(1e30)).all())

    def test_updates_continue_it(self):
        x, slots = random(2, 3, 40), np.array([1, 0], np.int32)
        pool = random(3, 3, 40)
        before = pool.copy()
        windows = poisoned(2, 3, 3, 40)
        drafts = quern.causal_conv1d_update(x, pool, self.weight, self.bias, slots=slots,
                                            activation="silu", windows=windows)
        np.testing.assert_array_equal(pool, before)
        y = quern.causal_conv1d_update(x, pool, self.weight, self.bias, slots=slots,
                                       activation="silu")
        np.testing.assert_array_equal(y, drafts)
        np.testing.assert_array_equal(pool[slots], windows[:, -1])
        np.testing.assert_array_equal(pool[2], before[2])
        for i in range(2):
            wanted, _ = convolved(x[i], self.weight, self.bias, before[slots[i]])
            self.assert_close(y[i], wanted, F32)
        one = quern.causal_conv1d_update(x[:, 0], before[slots], self.weight, self.bias,
                                         activation="silu")
        self.assert_close(one, y[:, 0], 1e-7)


class AroundTest(Case):
    def test_l2norm_takes_any_number_of_dimensions(self):
        whole = random(2, 5, 3, 64)
        for x in (whole, whole[0], whole[0, 0], whole[0, 0, 0], whole[:, :, 1]):
            self.assert_close(quern.l2norm(x), unit(x), 1e-6)
        x = whole[0].copy()
        self.assertIs(quern.l2norm(x, out=x), x)
        self.assert_close(x, unit(whole[0]), 1e-6)

    def test_gated_rmsnorm_has_either_activation(self):
        x, z, weight = random(6, 3, 64), random(6, 3, 64), random(64)
        wide = x.astype(float)
        norm = wide / np.sqrt((wide * wide).mean(-1, keepdims=True) + 0.1) * weight
        self.assert_close(quern.gated_rmsnorm(x, z, weight, eps=0.1), norm * sigmoid(z), 1e-6)
        self.assert_close(quern.gated_rmsnorm(x, z, weight, eps=np.float64(0.1),
                                              activation="silu"), norm * z * sigmoid(z), 1e-6)

    def test_gates_are_summed_within_chunks(self):
        raw, rate, bias = random(50, HV, K), random(HV), random(HV, K)
        log = -np.exp(rate.astype(float))[:, None] * np.logaddexp(0, raw + bias.astype(float))
        sums = np.concatenate([np.cumsum(log[i:j], 0) for i, j in ((0, 16), (16, 20), (20, 36),
                                                                   (36, 50))])
        out = quern.kda_gate_cumsum(raw, rate, dt_bias=bias, chunk_size=16,
                                    cu_seqlens=borders((20, 30)))
        self.assert_close(out, sums / np.log(2), 1e-5)
        decays = -np.abs(random(2, 20, HV))
        out = quern.kda_gate_cumsum(decays, decay="scalar")
        self.assert_close(out, np.cumsum(decays.astype(float), 1) / np.log(2), 1e-5)


class StepTest(Case):
    """kda_step: what the three calls that it stands for give."""

    def setUp(self):
        self.width = 2 * H * K + HV * V
        self.x, self.weight, self.bias = random(3, self.width), random(self.width, 4), None
        _, _, _, self.g, self.beta = draw(3)
        self.states, self.windows = random(6, HV, K, V), random(6, 3, self.width)
        self.slots = np.array([4, -1, 1], np.int32)

    def separately(self, states, windows, g, decode, **options):
        """o before the norm, of the calls one after the other."""
        y = quern.causal_conv1d_update(self.x, windows, self.weight, self.bias, slots=self.slots,
                                       activation="silu")
        parts = np.split(y, (H * K, 2 * H * K), 1)
        q, k, v = (part.reshape(3, -1, width) for part, width in zip(parts, (K, K, V)))
        return decode(q, k, v, g, self.beta, states=states, slots=self.slots,
                      use_qk_l2norm_in_kernel=True, **options)[0]

    def step(self, states, windows, g, **options):
        return quern.kda_step(self.x, self.weight, g, self.beta, bias=self.bias, states=states,
                              conv_states=windows, slots=self.slots,
                              use_qk_l2norm_in_kernel=True, **options)

    def check(self, g, decode, **options):
        states, windows = self.states.copy(), self.windows.copy()
        wanted = self.separately(states, windows, g, decode, **options)
        z, scales = random(3, HV, V), random(V)
        for norm in ({}, {"z": z, "norm_weight": scales, "norm_activation": "silu", "eps": 1e-3}):
            pool, inputs = self.states.copy(), self.windows.copy()
            out = poisoned(3, HV, V)
            self.assertIs(self.step(pool, inputs, g, out=out, **norm, **options), out)
            if norm:
                wanted = quern.gated_rmsnorm(wanted, z, scales, activation="silu", eps=1e-3)
            self.assert_close(out, wanted, F32)
            self.assertTrue((out[1] == 0).all())
            self.assert_close(pool, states, F32)
            np.testing.assert_array_equal(inputs, windows)
            for kept in (0, 2, 3, 5):
                np.testing.assert_array_equal(pool[kept], self.states[kept])

    def test_it_is_the_three_calls_of_a_layer(self):
        self.bias = random(self.width)
        self.check(self.g, quern.kda_decode, scale=0.5)

    def test_a_decay_for_each_head_makes_it_gdn(self):
        self.check(np.ascontiguousarray(self.g[..., 0]), quern.gdn_decode,
                   A_log=random(HV), dt_bias=random(HV), use_gate_in_kernel=True)

    def test_pools_may_have_other_layouts(self):
        states, windows = self.states.copy(), self.windows.copy()
        wanted = self.step(states, windows, self.g)
        other = turned(self.states)
        whole = np.ascontiguousarray(self.windows)
        o = self.step(other, whole.swapaxes(1, 2), self.g, state_v_first=True)
        self.assert_close(o, wanted, F32)
        self.assert_close(other, turned(states), F32)
        np.testing.assert_array_equal(whole, windows)

    def test_it_is_tuned_prepared_and_called_by_name(self):
        pools = self.states.copy(), self.windows.copy()
        named = {"g": self.g, "beta": self.beta, "slots": self.slots}
        found = quern.tune("kda_step", self.x, self.weight, states=pools[0],
                           conv_states=pools[1], max_configs=2, **named)
        self.assertEqual(found.best.variant, "kda_step_cpu")
        np.testing.assert_array_equal(pools[0], self.states)
        np.testing.assert_array_equal(pools[1], self.windows)
        step = quern.prepare("kda_step", self.x, self.weight, states=pools[0],
                             conv_states=pools[1], **named)
        again = self.states.copy(), self.windows.copy()
        self.assert_close(step(), quern.call("kda_step", self.x, self.weight, states=again[0],
                                             conv_states=again[1], **named), 0)
        np.testing.assert_array_equal(pools[1], again[1])

    def test_a_call_by_the_tables_alone_makes_what_is_only_written(self):
        states, windows = self.states.copy(), self.windows.copy()
        wanted = quern.kda_step(self.x, self.weight, self.g, self.beta, states=states,
                                conv_states=windows, slots=self.slots)
        given = {"x": self.x, "weight": self.weight, "g": self.g, "beta": self.beta,
                 "slots": self.slots, "norm": "none", "h": H, "k": K, "v": V}
        with mock.patch.dict(DESCRIPTIONS):
            del DESCRIPTIONS["kda_step"]
            pool, inputs = self.states.copy(), self.windows.copy()
            o = quern.call("kda_step", **given, states=pool, conv_states=inputs)
            np.testing.assert_array_equal(o, wanted)
            np.testing.assert_array_equal(inputs, windows)
            del DESCRIPTIONS["causal_conv1d"]
            y, final = quern.call("causal_conv1d", self.x, self.weight, n=1, act="none", final=0)
            self.assertIsNone(final)
            np.testing.assert_array_equal(y, quern.causal_conv1d(self.x, self.weight)[0])

    def test_mistakes_are_named(self):
        given = {"states": self.states, "conv_states": self.windows, "slots": self.slots}
        z, scales = random(3, HV, V), random(V)

        def refuse(text, *changed, **named):
            arrays = changed or (self.x, self.weight, self.g, self.beta)
            self.refused(text, quern.kda_step, *arrays, **{**given, **named})

        rest = self.weight, self.g, self.beta
        refuse("x: shape (256,): must be [n, D]", self.x[0], *rest)
        refuse("x: 250 channels: must be 2 H 64 + 128, with H a divisor of 2", self.x[:, :250],
               self.weight[:250], *rest[1:])
        refuse("x: dtype f64: must be one of: bf16 f16 f32", self.x.astype(float), *rest)
        refuse("weight: shape (250, 4): must be (256, W)", self.x, self.weight[:250], *rest[1:])
        refuse("states: shape (6, 2, 64): must be (slots, HV, K, V)", states=self.states[..., 0])
        refuse("conv_states: shape (6, 2, 256): must be (6, 3, 256)",
               conv_states=self.windows[:, 1:])
        refuse("g: shape (3, 1, 64): must be (3, 2, 64)", self.x, self.weight, self.g[:, :1],
               self.beta)
        refuse("slots: must be given", slots=None)
        refuse("slots: dtype i64: must be i32", slots=self.slots.astype(np.int64))
        refuse("z: must be given with norm_weight", norm_weight=scales)
        refuse("norm_weight: must be given", z=z)
        refuse("norm_activation=tanh: must be one of", z=z, norm_weight=scales,
               norm_activation="tanh")
        refuse("A_log: must be given", use_gate_in_kernel=True)
        refuse("out: shape (3, 2, 32): must be (3, 2, 64)", out=poisoned(3, HV, 32))
        with mock.patch.dict(os.environ, QUERN_CHECK="1"), \
                quern.Context("cpu", cache="") as context:
            self.refused("slots[0]=6: must be", context.kda_step, self.x, *rest,
                         **{**given, "slots": np.array([6, 0, 1], np.int32)})


class CallsTest(Case):
    """What is common to all functions: names, prepared calls, tuning, contexts."""

    def test_tuning_leaves_the_pool_as_it_was(self):
        inputs, slots = draw(3), np.array([2, -1, 5], np.int32)
        pool = np.full((64, HV, K, V), 1e30, np.float32)
        pool[slots[[0, 2]]] = random(2, HV, K, V)
        packed, two = draw(64), slots[[0, 2]].copy()
        before = pool.tobytes()
        with quern.Context("cpu", cache="") as context:
            found = context.tune("kda_decode", *inputs, states=pool, slots=slots, max_configs=2)
            self.assertEqual((found.best.variant, pool.tobytes()), ("kda_decode_cpu", before))
            found = context.tune("gdn_prefill", *packed[:3], packed[3][..., 0], packed[4],
                                 states=pool, slots=two, cu_seqlens=borders((40, 24)),
                                 max_configs=2)
            self.assertIn("decay=scalar", found.bucket)
            self.assertEqual(pool.tobytes(), before)
            found = context.tune("gdn_decode", n=4, h=1, hv=1, k=64, v=64, max_configs=1)
            self.assertIn("kda_decode n=4", found.bucket)
            self.assertIn("decay=scalar", found.bucket)

    def test_a_context_that_tunes_advances_states_once(self):
        inputs, slots, pool = draw(2), np.array([4, 1], np.int32), random(5, HV, K, V)
        before = pool.copy()
        with quern.Context("cpu", cache="", tune=0.2) as context:
            o, _ = context.kda_decode(*inputs, states=pool, slots=slots)
            self.assertEqual(context.stats().tuned, 1)
        for i, slot in enumerate(slots):
            wanted, after = recurrence(*(x[i:i + 1] for x in inputs), before[slot])
            self.assert_close(o[i], wanted[0], F32)
            self.assert_close(pool[slot], after, F32)
        np.testing.assert_array_equal(pool[[0, 2, 3]], before[[0, 2, 3]])

    def test_a_prepared_call_returns_what_the_function_does(self):
        inputs, zero = draw(30), np.zeros((HV, K, V))
        call = quern.prepare("kda_prefill", *inputs, output_final_state=True)
        o, final = call()
        self.assertIs(o, call.out[0])
        self.assertIs(final, call.out[1])
        wanted, after = recurrence(*inputs, zero)
        self.assert_close(o, wanted, F32)
        self.assert_close(final[0], after, F32)
        out = poisoned(30, HV, V)
        again = call(out=out)
        self.assertIs(again[0], out)
        self.assertIs(again[1], final)
        np.testing.assert_array_equal(out, o)
        self.assertIsNone(quern.prepare("kda_prefill", *inputs)()[1])

    def test_a_familys_second_name_is_its_function(self):
        inputs = draw(30)
        o, final = quern.call("kda", *inputs, output_final_state=True)
        wanted, after = quern.kda_prefill(*inputs, output_final_state=True)
        np.testing.assert_array_equal(o, wanted)
        np.testing.assert_array_equal(final, after)
        self.assertIsNone(quern.prepare("kda", *inputs)()[1])

    def test_flags_and_numbers_may_be_numpys(self):
        inputs = draw(30)
        wanted, after = quern.kda_prefill(*inputs, scale=0.5, output_final_state=True)
        for one, half in ((1, np.float32(0.5)), (np.True_, np.float64(0.5))):
            o, final = quern.kda_prefill(*inputs, scale=half, output_final_state=one)
            np.testing.assert_array_equal(o, wanted)
            np.testing.assert_array_equal(final, after)
        self.assertIsNone(quern.kda_prefill(*inputs, output_final_state=np.False_)[1])

    def test_contexts_and_names_serve_them_all(self):
        inputs, x, weight = draw(30), random(10, 40), random(40, 4)
        rows, z, scales = random(6, 64), random(6, 64), random(64)
        width = 2 * H * K + HV * V
        step = (random(30, width), random(width, 4), *inputs[3:])
        pools = {"states": random(30, HV, K, V), "conv_states": random(30, 3, width),
                 "slots": np.arange(30, dtype=np.int32)}
        with quern.Context("cpu") as context:
            for name, arrays in (
                    ("kda_prefill", inputs), ("kda_decode", inputs),
                    ("gdn_prefill", (*inputs[:3], inputs[3][..., 0], inputs[4])),
                    ("gdn_decode", (*inputs[:3], inputs[3][..., 0], inputs[4])),
                    ("causal_conv1d", (x, weight)),
                    ("kda_step", step),
                    ("causal_conv1d_update", (x, np.zeros((10, 3, 40), np.float32), weight)),
                    ("l2norm", (rows,)), ("gated_rmsnorm", (rows, z, scales)),
                    ("kda_gate_cumsum", (inputs[3],))):
                copies = [[np.array(array) for array in arrays] for _ in range(3)]
                named = [{key: array.copy() for key, array in pools.items()}
                         if name == "kda_step" else {} for _ in range(3)]
                results = (getattr(quern, name)(*copies[0], **named[0]),
                           quern.call(name, *copies[1], **named[1]),
                           getattr(context, name)(*copies[2], **named[2]))
                first = [made[0] if isinstance(made, tuple) else made for made in results]
                np.testing.assert_array_equal(first[0], first[1], name)
                np.testing.assert_array_equal(first[0], first[2], name)


class RefusalTest(Case):
    def setUp(self):
        self.inputs = draw(20)

    def refuse(self, text, *changed, **arguments):
        """kda_prefill() with these in place of the inputs of their names."""
        values = dict(zip(("q", "k", "v", "g", "beta"), self.inputs))
        values.update({name: arguments.pop(name) for name in list(arguments) if name in values})
        function = changed[0] if changed else quern.kda_prefill
        return self.refused(text, function, *values.values(), **arguments)

    def test_shapes_are_named_with_what_would_fit(self):
        q, k, v, g, beta = self.inputs
        self.refuse("q: shape (20, 64): must be [B, T, H, K], or packed [T, H, K]", q=q[:, 0])
        self.refuse("k: shape (19, 1, 64): must be (20, 1, 64), as q is", k=k[1:])
        self.refuse("v: shape (19, 2, 64): must be (20, HV, V)", v=v[1:])
        self.refuse("its 3 heads must be a multiple of q's 2", q=random(20, 2, K),
                    k=random(20, 2, K), v=random(20, 3, V))
        self.refuse("g: shape (20, 2): must be (20, 2, 64), as q is", g=g[..., 0])
        self.refuse("g: shape (20, 2, 64): must be (20, 2), as q is", quern.gdn_prefill)
        self.refuse("beta: shape (20, 1): must be (20, 2)", beta=beta[:, :1])
        self.refuse("out: shape (20, 2, 32): must be (20, 2, 64)", out=poisoned(20, 2, 32))
        wide = [np.concatenate([x, x[..., :32]], -1) for x in (q, k, g)]
        self.refuse("k: shape (20, 1, 96): K must be 64, 128 or 256", q=wide[0], k=wide[1],
                    g=wide[2])
        self.refuse("q: shape (1, 20, 1, 64): T must be at most 16", quern.kda_decode,
                    **dict(zip(("q", "k", "v", "g", "beta"), (x[None] for x in self.inputs))))

    def test_dtypes_are_named(self):
        q, k, v, g, beta = self.inputs
        self.refuse("q: dtype f64: must be one of: bf16 f16 f32", q=q.astype(float),
                    k=k.astype(float), v=v.astype(float))
        self.refuse("v: dtype f16: must be f32", v=v.astype(np.float16))
        self.refuse("beta: dtype f64: must be one of: f32 bf16 f16", beta=beta.astype(float))
        pool, slots = random(4, HV, K, V), np.zeros(1, np.int32)
        self.refuse("states: dtype f64: must be one of: f32 bf16 f16", states=pool.astype(float),
                    slots=slots)
        self.refuse("slots: dtype i64: must be i32", states=pool, slots=slots.astype(np.int64))
        self.refuse("cu_seqlens: dtype f32: must be one of: i32 i64",
                    cu_seqlens=np.array([0, 20], np.float32))
        self.refuse("final_state: dtype f16: must be f32", initial_state=random(1, HV, K, V),
                    final_state=np.zeros((1, HV, K, V), np.float16))

    def test_the_argument_that_is_wrong_is_named(self):
        q, k, v, g, beta = self.inputs
        for dtype, name in ((float, "f64"), (np.int32, "i32")):
            self.refuse(f"q: dtype {name}: must be one of: bf16 f16 f32", q=q.astype(dtype))
        self.refuse("q: dtype e4m3: must be", q=quern.view(np.zeros(q.shape, np.uint8), "e4m3"))
        for t, text in ((20, "q: shape (1, 20, 1, 64): T must be at most 16"),
                        (0, "q: shape (1, 0, 1, 64): T must be from 1")):
            self.refused(text, quern.kda_decode, *(x[None, :t] for x in self.inputs))
        self.refused("cu_seqlens: shape (1,): must be (n + 1,) with n of at least 1, as q has 140",
                     quern.kda_prefill, *draw(140), cu_seqlens=np.array([0]))
        self.refuse("v: shape (20, 2, 32): V must be 64, 128 or 256", v=v[..., :32].copy())
        self.refuse("k: shape (20, 1, 0): K must be", q=q[..., :0], k=k[..., :0], g=g[..., :0])
        x, weight = random(10, 40), random(40, 4)
        self.refused("has_initial: dtype i64: must be bool or u8", quern.causal_conv1d, x, weight,
                     initial_state=random(1, 3, 40), has_initial=np.ones(1, np.int64))
        self.refused("weight: shape (40, 5): W must be 2, 3 or 4", quern.causal_conv1d_update, x,
                     random(10, 4, 40), random(40, 5))
        self.refused("x: shape (2, 1100): D must be at most 1024", quern.gated_rmsnorm,
                     random(2, 1100), random(2, 1100), random(1100))

    def test_flags_and_numbers_are_named(self):
        for value, said in ((np.ones(1, bool), "<ndarray>"), (np.ones((30, 2)), "<ndarray>"),
                            ("x", "'x'"), (2, "2"), (1.0, "1.0"), (None, "<NoneType>")):
            self.refuse(f"output_final_state={said}: must be True or False",
                        output_final_state=value)
            self.refused(f"output_final_state={said}: must be True or False", quern.causal_conv1d,
                         random(10, 40), random(40, 4), output_final_state=value)
        gate = {"use_gate_in_kernel": True, "A_log": random(HV)}
        for value, text in (("0.5", "'0.5': must be a number"), (True, "True: must be a number"),
                            (np.ones(1), "<ndarray>: must be a number"),
                            (float("nan"), "nan: must be finite"),
                            (-10**400, "inf: must be finite")):
            self.refuse(f"scale={text}", scale=value)
            self.refuse(f"lower_bound={text}", lower_bound=value, **gate)
        cumsum, g = quern.kda_gate_cumsum, self.inputs[3]
        self.refused("chunk_size=48: must be one of: 16 32 64", cumsum, g, chunk_size=48)
        for value, said in (("64", "'64'"), (64.0, "64.0"), (float("nan"), "nan"), (True, "True")):
            self.refused(f"chunk_size={said}: must be a whole number", cumsum, g, chunk_size=value)
        self.refused("eps='1': must be a number", quern.l2norm, g, eps="1")

    def test_strides_are_named(self):
        q = self.inputs[0]
        self.refuse("q: strides (128, 128, 2): the last dimension must be contiguous",
                    q=random(20, 1, 128)[..., ::2])
        inputs = draw(2, 20)
        self.refused("q: strides (1408, 64, 64, 1): its first 2 dimensions must follow each other",
                     quern.kda_prefill, random(2, 22, 1, K)[:, :20], *inputs[1:])
        self.assertEqual(q.shape, (20, H, K))

    def test_states_are_given_one_way(self):
        pool, slots, state = random(4, HV, K, V), np.zeros(1, np.int32), random(1, HV, K, V)
        self.refuse("slots: must be given with states", states=pool)
        self.refuse("states: must be given with slots", slots=slots)
        both = {"states": pool, "slots": slots}
        self.refuse("initial_state: must not be given with states", **both, initial_state=state)
        self.refuse("final_state: must not be given with states", **both, final_state=state)
        self.refuse("output_final_state: must not be given with states", **both,
                    output_final_state=True)
        self.refuse("slots: shape (2,): must be (1,)", states=pool, slots=np.zeros(2, np.int32))
        self.refuse("states: shape (4, 2, 64): must be (slots, 2, 64, 64)", slots=slots,
                    states=pool[..., 0])
        self.refuse("states: shape (0, 2, 64, 64): must be", slots=slots, states=pool[:0])
        self.refuse("initial_state: shape (1, 2, 64, 32): must be (1, 2, 64, 64)",
                    initial_state=state[..., :32])
        read_only = pool.copy()
        read_only.flags.writeable = False
        self.refuse("states: is read-only", states=read_only, slots=slots)

    def test_borders_are_a_vector_of_packed_sequences(self):
        self.refuse("cu_seqlens: shape (2, 2): must be (n + 1,)",
                    cu_seqlens=np.zeros((2, 2), np.int32))
        self.refuse("cu_seqlens: shape (0,): must be (n + 1,)", cu_seqlens=np.zeros(0, np.int32))
        self.refused("B must be 1 with cu_seqlens", quern.kda_prefill, *draw(2, 20),
                     cu_seqlens=borders((20, 20)))
        self.refuse("initial_state: shape (1, 2, 64, 64): must be (2, 2, 64, 64)",
                    cu_seqlens=borders((5, 15)), initial_state=random(1, HV, K, V))

    def test_what_borders_and_slots_hold_is_looked_at_if_asked_for(self):
        pool, inputs = random(4, HV, K, V), draw(2)
        before = pool.copy()
        with mock.patch.dict(os.environ, QUERN_CHECK="1"), \
                quern.Context("cpu", cache="") as context:
            for text, cu_seqlens in (("cu_seqlens[0]=1: must be 0", [1, 20]),
                                     ("cu_seqlens[1]=30: must be at most t=20", [0, 30])):
                self.refused(text, context.kda_prefill, *self.inputs,
                             cu_seqlens=np.array(cu_seqlens))
            for text, slots in (("slots[0]=9: must be -1, or from 0", [9, 1]),
                                ("slots[1]=1: must not be used twice", [1, 1])):
                self.refused(text, context.kda_decode, *inputs, states=pool,
                             slots=np.array(slots, np.int32))
        np.testing.assert_array_equal(pool, before)

    def test_gates_are_said_in_whole(self):
        rate = random(HV)
        gate = {"use_gate_in_kernel": True}
        self.refuse("A_log: must be given", **gate)
        self.refuse("A_log: must not be given unless use_gate_in_kernel=True", A_log=rate)
        self.refuse("dt_bias: must not be given unless", dt_bias=random(HV * K))
        self.refuse("A_log: shape (3,): must be (2,)", A_log=random(3), **gate)
        self.refuse("dt_bias: shape (5,): must be (128,) or (2, 64)", A_log=rate, **gate,
                    dt_bias=random(5))
        self.refuse("lower_bound: must be given with safe_gate=True", A_log=rate, safe_gate=True,
                    **gate)
        self.refuse("lower_bound=-6: must be from -5", A_log=rate, lower_bound=-6, **gate)
        self.refuse("allow_neg_eigval=True: must be False unless", allow_neg_eigval=True)
        self.refuse("state_v_first='vk': must be True or False", state_v_first="vk")

    def test_decoding_has_its_own_rules(self):
        decode = quern.kda_decode
        ten = [x[None, :10] for x in self.inputs]
        self.refused("for one token each of several pass q[0]", decode, *ten,
                     states=random(12, HV, K, V), slots=np.arange(10, dtype=np.int32))
        self.refuse("parents: must not be given without step_states", decode,
                    parents=np.zeros(20, np.int32))
        saved = poisoned(20, HV, K, V)
        self.refuse("final_state: must not be given with step_states", decode, step_states=saved,
                    output_final_state=True)
        self.refuse("step_states: shape (20, 2, 64, 32): must be (20, 2, 64, 64)", decode,
                    step_states=poisoned(20, HV, K, 32))
        self.assertRaises(TypeError, decode, *self.inputs, cu_seqlens=borders())

    def test_what_only_fla_has_is_refused(self):
        for name in ("cp_context", "return_intermediate_states", "cu_seqlens_cpu", "chunk_indices",
                     "chunk_size", "use_graph", "max_num_seqs", "disable_recompute",
                     "transpose_state_layout", "gk", "gv"):
            for function in (quern.kda_prefill, quern.gdn_decode):
                self.assertRaises(TypeError, function, *self.inputs, **{name: None})
        self.assertRaises(TypeError, quern.kda_prefill, *self.inputs, 0.5)  # scale by position
        self.refuse("g: must be given", g=None)
        self.refuse("beta: must be given", beta=None)

    def test_a_slot_outside_of_the_pool_is_padding_unless_looked_at(self):
        inputs, pool = draw(2), random(4, HV, K, V)
        before, slots = pool.copy(), np.array([9, 1], np.int32)
        o, _ = quern.kda_decode(*inputs, states=pool, slots=slots)
        self.assertTrue((o[0] == 0).all() and (o[1] != 0).all())
        np.testing.assert_array_equal(pool[[0, 2, 3]], before[[0, 2, 3]])
        with mock.patch.dict(os.environ, QUERN_CHECK="1"), \
                quern.Context("cpu", cache="") as context:
            self.refused("slots[0]=9: must be -1", context.kda_decode, *inputs, states=pool,
                         slots=slots)

    def test_the_others_name_their_arguments(self):
        x, weight = random(10, 40), random(40, 4)
        conv, update = quern.causal_conv1d, quern.causal_conv1d_update
        self.refused("x: shape (40,): must be [B, T, D]", conv, x[0], weight)
        self.refused("weight: shape (4, 40): must be (40, W)", conv, x, random(4, 40))
        self.refused("weight: shape (40, 5): W must be 2, 3 or 4", conv, x, random(40, 5))
        self.refused("bias: shape (4,): must be (40,)", conv, x, weight, random(4))
        self.refused("activation=gelu: must be None, silu or swish", conv, x, weight,
                     activation="gelu")
        self.refused("initial_state: shape (1, 40, 4): must be (1, 3, 40), or a transposed", conv,
                     x, weight, initial_state=random(1, 40, 4))
        self.refused("has_initial: must not be given without", conv, x, weight,
                     has_initial=np.ones(1, bool))
        self.refused("initial_state: strides (0, 1, 0): the last dimension must be contiguous",
                     conv, x, weight, initial_state=np.broadcast_to(random(3)[:, None], (1, 3, 40)))
        self.refused("slots: must be given with states", conv, x, weight, states=random(2, 3, 40))
        self.refused("states: must be given", update, x, None, weight)
        self.refused("states: shape (2, 3, 40): must be (10, 3, 40)", update, x, random(2, 3, 40),
                     weight)
        self.refused("windows: shape (10, 40): must be (10, 3, 40)", update, x, random(10, 3, 40),
                     weight, windows=x.copy())
        self.refused("x: shape (2, 1025): D must be at most 1024", quern.l2norm, random(2, 1025))
        self.refused("eps=-1: must be", quern.l2norm, x, eps=-1)
        self.refused("x: shape (): must have at least 1", quern.l2norm, np.float32(3)[...])
        self.refused("z: shape (9, 40): must be (10, 40)", quern.gated_rmsnorm, x, x[1:],
                     random(40))
        self.refused("activation=tanh: must be one of: sigmoid silu swish", quern.gated_rmsnorm,
                     x, x, random(40), activation="tanh")
        self.refused("g: shape (10, 40): must be [B, T, HV, K]", quern.kda_gate_cumsum, x)
        self.refused("decay=x: must be one of: channel scalar", quern.kda_gate_cumsum, x,
                     decay="x")
        self.refused("chunk_size=8: must be one of: 16 32 64", quern.kda_gate_cumsum, x,
                     decay="scalar", chunk_size=8)
        self.refused("A_log: must be given with dt_bias", quern.kda_gate_cumsum, x,
                     decay="scalar", lower_bound=-5)


if __name__ == "__main__":
    main()
