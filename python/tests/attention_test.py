#!/usr/bin/env python3
"""Attention on NumPy arrays: sequences, chunks, decoding, MLA, states, caches, against float64."""

from __future__ import annotations

import os
import pathlib
import subprocess
from unittest import mock

from common import (BUILD, FOLDER, RANDOM, ROOT, Case, from_bf16, main, np, poisoned, quern, random,
                    to_bf16)

F32 = 1e-5  # bound of the relative error, and of the absolute one of an lse
BF16 = 6e-3
H, HKV, D = 4, 2, 64
I32 = np.int32


def oracle(q, k, v, causal=False, window=0, softcap=0.0, sinks=None, scale=None, distance=None):
    """o [S, H, Dv] and lse [S, H] of one sequence, in float64."""
    (s, h, d), (sk, hkv, _) = q.shape, k.shape
    k, v = (np.repeat(x.astype(float), h // hkv, 1) for x in (k, v))
    scores = np.einsum("shd,khd->hsk", q.astype(float), k) * (d**-0.5 if scale is None else scale)
    if softcap:
        scores = softcap * np.tanh(scores / softcap)
    ahead = np.arange(sk)[None] - (np.arange(s)[:, None] + sk - s)
    unseen = np.zeros((s, sk), bool)
    if causal:
        unseen |= ahead > 0
    if window:
        unseen |= np.abs(ahead) >= window
    scores[:, unseen] = -np.inf
    logits = np.full((h, s, 1), -np.inf) if sinks is None else \
        np.broadcast_to(np.asarray(sinks, float)[:, None, None], (h, s, 1))
    every = np.concatenate([scores, logits], 2)
    top = every.max(2, keepdims=True)
    top[np.isinf(top)] = 0
    weights = np.exp(every - top)
    total = weights.sum(2, keepdims=True)
    with np.errstate(divide="ignore"):
        lse = np.log(total) + top
    total[total == 0] = 1
    o = np.einsum("hsk,khd->shd", weights[..., :-1] / total, v)
    return o, lse[..., 0].T


def borders(*lengths):
    return np.cumsum([0, *lengths], dtype=I32)


def paged(rows, lengths, page, pages, width, heads=HKV):
    """Caches with these rows' keys and values, and a table: other rows NaN, pages in any order."""
    k, v = rows
    k_cache, v_cache = poisoned(pages, page, heads, k.shape[-1]), \
        poisoned(pages, page, heads, v.shape[-1])
    order = list(shuffled(pages))
    table = np.full((len(lengths), width), 2**31 - 1, I32)
    begin = 0
    for i, length in enumerate(lengths):
        for j in range(0, length, page):
            table[i, j // page] = at = order.pop()
            n = min(page, length - j)
            k_cache[at, :n], v_cache[at, :n] = (x[begin + j:begin + j + n] for x in (k, v))
        begin += length
    return k_cache, v_cache, table


def shuffled(count):
    """The first numbers, shuffled."""
    return RANDOM.permutation(count)


class AttentionCase(Case):
    def near_lse(self, got, wanted, tolerance=F32):
        self.assertEqual((got.shape, got.dtype), (wanted.shape, np.dtype(np.float32)))
        none = np.isinf(wanted)
        np.testing.assert_array_equal(got[none], wanted[none])
        self.assertLessEqual(np.abs(got[~none] - wanted[~none]).max(initial=0),
                             tolerance * max(1, np.abs(wanted[~none]).max(initial=0)))

    def near(self, got, wanted, tolerance=F32):
        """(o, lse) of a call, against the oracle's."""
        self.assert_close(got[0], wanted[0], tolerance)
        self.near_lse(got[1], wanted[1])


class SequencesTest(AttentionCase):
    def draw(self, *lead, keys=None, width=D, values=None):
        at = (*lead[:-1], keys or lead[-1])
        return (random(*lead, H, width), random(*at, HKV, width),
                random(*at, HKV, values or width))

    def test_batches_and_one_packed_sequence(self):
        q, k, v = self.draw(2, 33, keys=50)
        o, lse = quern.attention(q, k, v, return_lse=True)
        self.assertEqual((o.shape, lse.shape), ((2, 33, H, D), (2, 33, H)))
        for i in range(2):
            self.near((o[i], lse[i]), oracle(q[i], k[i], v[i]))
            one = quern.attention(q[i], k[i], v[i], return_softmax_lse=True)
            self.assertEqual(one[0].shape, (33, H, D))
            self.near(one, oracle(q[i], k[i], v[i]))

    def test_without_the_lse_it_is_the_output_alone(self):
        q, k, v = self.draw(1, 5)
        self.assert_close(quern.attention(q, k, v, dropout_p=0.0, deterministic=True)[0], oracle(q[0], k[0], v[0])[0], F32)

    def test_causal_is_aligned_to_the_bottom_right(self):
        for s, sk in ((40, 40), (17, 60), (60, 17), (1, 9)):
            q, k, v = self.draw(s, keys=sk)
            got = quern.attention(q, k, v, causal=True, return_lse=True)
            self.near(got, oracle(q, k, v, causal=True))
            if s > sk:  # queries that see no key
                self.assertTrue((got[0][:s - sk] == 0).all())

    def test_windows_are_flash_attentions(self):
        q, k, v = self.draw(40, keys=55)
        for size, causal, window in (((7, 7), False, 8), ((7, 0), False, 8), ((-1, 0), False, 0),
                                     ((7, -1), True, 8), ((7, 3), True, 8), ([0, 0], False, 1),
                                     ((200, 200), False, 201), ((-1, -1), True, 0),
                                     (None, True, 0)):
            got = quern.attention(q, k, v, causal=causal, window_size=size, return_lse=True)
            is_causal = causal or (size is not None and size[1] == 0)
            self.near(got, oracle(q, k, v, causal=is_causal, window=window))

    def test_softcap_sinks_and_scale(self):
        q, k, v = self.draw(20, keys=30)
        sinks = random(H)
        got = quern.attention(q, k, v, softcap=2.5, sinks=sinks, softmax_scale=0.3, causal=True,
                              return_lse=True)
        self.near(got, oracle(q, k, v, True, softcap=2.5, sinks=sinks, scale=0.3))
        same = quern.attention(q, k, v, softcap=2.5, learnable_sink=sinks, softmax_scale=0.3,
                               causal=True)
        np.testing.assert_array_equal(same, got[0])
        same = quern.attention(q, k, v, logits_soft_cap=2.5, sinks=sinks, sm_scale=0.3, causal=True)
        np.testing.assert_array_equal(same, got[0])
        half = quern.view(to_bf16(sinks), "bf16")
        o, lse = quern.attention(q, k, v, sinks=half, return_lse=True)
        self.near((o, lse), oracle(q, k, v, sinks=from_bf16(half.array)))

    def test_packed_sequences_are_as_flash_attns_varlen(self):
        lengths, keys = (13, 0, 1, 31), (20, 5, 1, 31)
        q, k, v = self.draw(sum(lengths), keys=sum(keys))
        at, to = borders(*lengths), borders(*keys)
        for causal in (False, True):
            for lead in ((), (None,)):
                o, lse = quern.attention(q[lead] if lead else q, k[lead] if lead else k,
                                         v[lead] if lead else v, cu_seqlens_q=at, cu_seqlens_k=to,
                                         max_seqlen_q=31, max_seqlen_k=31, causal=causal,
                                         return_lse=True)
                self.assertEqual(o.ndim, 4 if lead else 3)
                o, lse = o.reshape(-1, H, D), lse.reshape(-1, H)
                for i in range(len(lengths)):
                    mine, theirs = slice(at[i], at[i + 1]), slice(to[i], to[i + 1])
                    self.near((o[mine], lse[mine]), oracle(q[mine], k[theirs], v[theirs], causal))

    def test_widths_may_differ_between_keys_and_values(self):
        q, k, v = self.draw(20, width=192, values=128)
        o, lse = quern.attention(q, k, v, causal=True, return_lse=True)
        self.assertEqual(o.shape, (20, H, 128))
        self.near((o, lse), oracle(q, k, v, True))

    def test_views_are_taken_as_they_lie(self):
        whole = random(2, 30, (H + 2 * HKV) * D)  # a projection's output
        q, k, v = (x.reshape(2, 30, -1, D) for x in np.split(whole, (H * D, (H + HKV) * D), 2))
        self.assertFalse(q.flags.c_contiguous and q.flags.owndata)
        turned = [np.ascontiguousarray(x.swapaxes(1, 2)).swapaxes(1, 2) for x in (q, k, v)]
        out = poisoned(2, H, 30, D).swapaxes(1, 2)
        wanted = quern.attention(q, k, v, causal=True)
        self.assertIs(quern.attention(*turned, causal=True, out=out), out)
        np.testing.assert_allclose(out, wanted, rtol=1e-5, atol=1e-6)
        for i in range(2):
            self.assert_close(wanted[i], oracle(q[i], k[i], v[i], True)[0], F32)

    def test_outputs_may_be_given(self):
        q, k, v = self.draw(12)
        out, lse = poisoned(12, H, D), poisoned(12, H)
        both = quern.attention(q, k, v, out=out, lse=lse)
        self.assertIs(both[0], out)
        self.assertIs(both[1], lse)
        self.near(both, oracle(q, k, v))

    def test_bf16_and_f16(self):
        q, k, v = self.draw(50, keys=70)
        wanted = oracle(*(from_bf16(to_bf16(x)) for x in (q, k, v)), True)[0]
        o = quern.attention(*(quern.view(to_bf16(x), "bf16") for x in (q, k, v)), causal=True)
        self.assert_close(from_bf16(o.array), wanted, BF16)
        half = [x.astype(np.float16) for x in (q, k, v)]
        o, lse = quern.attention(*half, causal=True, return_lse=True)
        self.assertEqual((o.dtype, lse.dtype), (np.float16, np.float32))
        self.assert_close(o, oracle(*half, True)[0], 1e-3)

    def test_nothing_is_nothing(self):
        q, k, v = self.draw(6, keys=7)
        self.assertEqual(quern.attention(q[:0], k, v).shape, (0, H, D))
        o, lse = quern.attention(q, k[:0], v[:0], return_lse=True)
        self.assertTrue((o == 0).all() and (lse == -np.inf).all())
        none = borders()
        self.assertEqual(quern.attention(q[:0], k[:0], v[:0], cu_seqlens_q=none,
                                         cu_seqlens_k=none).shape, (0, H, D))


class CachesCase(AttentionCase):
    """Sequences whose keys lie in pages."""

    lengths = (23, 0, 1, 16, 65)

    def setUp(self):
        rows = sum(self.lengths)
        self.k, self.v = random(rows, HKV, D), random(rows, HKV, D)
        self.lens = np.array(self.lengths, I32)
        self.at = borders(*self.lengths)

    def pages(self, page=16, pages=None):
        count = sum(-(-length // page) for length in self.lengths)
        return paged((self.k, self.v), self.lengths, page, pages or count + 3, 70 // page + 2)

    def own(self, i):
        """Keys and values of a sequence."""
        mine = slice(self.at[i], self.at[i + 1])
        return self.k[mine], self.v[mine]


class DecodeTest(CachesCase):
    def setUp(self):
        super().setUp()
        self.q = random(len(self.lengths), H, D)

    def check(self, got, **options):
        for i in range(len(self.lengths)):
            wanted = oracle(self.q[i:i + 1], *self.own(i), **options)
            self.near((got[0][i:i + 1], got[1][i:i + 1]), wanted)

    def test_pages_of_any_order_and_size(self):
        for page in (1, 16, 64):
            k_cache, v_cache, table = self.pages(page)
            o, lse = quern.attention_decode(self.q, k_cache, v_cache, table, self.lens,
                                            return_lse=True)
            self.assertTrue((o[1] == 0).all() and (lse[1] == -np.inf).all())
            self.check((o, lse))

    def test_arguments_go_by_flash_attentions_names(self):
        k_cache, v_cache, table = self.pages()
        wanted = quern.attention_decode(self.q, k_cache, v_cache, table, self.lens)
        o, lse = quern.attention_decode(self.q[:, None], k_cache, v_cache, block_table=table,
                                        cache_seqlens=self.lens, softmax_scale=D**-0.5,
                                        causal=True, num_splits=0, return_softmax_lse=True)
        self.assertEqual((o.shape, lse.shape), ((5, 1, H, D), (5, 1, H)))
        np.testing.assert_array_equal(o[:, 0], wanted)

    def test_other_layouts_are_views(self):
        k_cache, v_cache, table = self.pages()
        wanted = quern.attention_decode(self.q, k_cache, v_cache, table, self.lens)
        turned = [np.ascontiguousarray(x.swapaxes(1, 2)) for x in (k_cache, v_cache)]
        o = quern.attention_decode(self.q, *turned, table, self.lens, kv_layout="HND")
        np.testing.assert_allclose(o, wanted, rtol=1e-5, atol=1e-6)
        both = np.stack([k_cache, v_cache], 1)  # FlashInfer's [pages, 2, page, H, D]
        o = quern.attention_decode(self.q, both[:, 0], both[:, 1], table, self.lens)
        np.testing.assert_allclose(o, wanted, rtol=1e-5, atol=1e-6)
        k_cache, v_cache, table = self.pages(1)
        o = quern.attention_decode(self.q, k_cache[:, 0], v_cache[:, 0], table, self.lens)
        np.testing.assert_allclose(o, wanted, rtol=1e-5, atol=1e-6)

    def test_windows_softcap_and_sinks(self):
        k_cache, v_cache, table = self.pages()
        sinks = random(H)
        for right in (-1, 0, 5):
            got = quern.attention_decode(self.q, k_cache, v_cache, table, self.lens, softcap=3,
                                         window_size=(9, right), sinks=sinks, softmax_scale=0.5,
                                         return_lse=True)
            self.check(got, window=10, softcap=3.0, sinks=sinks, scale=0.5)

    def test_a_common_prefix_is_seen_first(self):
        k_cache, v_cache, table = self.pages(16)
        prefix, keys, values = 21, random(32, HKV, D), random(32, HKV, D)
        keys[prefix:] = values[prefix:] = np.nan
        k_cache = np.concatenate([k_cache, keys.reshape(2, 16, HKV, D)])
        v_cache = np.concatenate([v_cache, values.reshape(2, 16, HKV, D)])
        shared = np.array([len(k_cache) - 2, len(k_cache) - 1], I32)
        o, lse = quern.attention_decode(self.q, k_cache, v_cache, table, self.lens,
                                        shared_table=shared, shared_len=np.array([prefix], I32),
                                        return_lse=True)
        for i in range(len(self.lengths)):
            k, v = (np.concatenate([common[:prefix], own])
                    for common, own in zip((keys, values), self.own(i)))
            self.near((o[i:i + 1], lse[i:i + 1]), oracle(self.q[i:i + 1], k, v))

    def small_pages(self):
        """Caches of random e4m3, and a table."""
        *wide, table = self.pages()
        bits = [np.where(np.isnan(x), 0x7f, RANDOM.integers(0, 0x48, x.shape) |
                         RANDOM.integers(0, 2, x.shape) << 7).astype(np.uint8) for x in wide]
        return [quern.view(x, "e4m3") for x in bits], table

    def test_e4m3_caches_have_factors(self):
        caches, table = self.small_pages()
        q = quern.view(to_bf16(self.q), "bf16")
        dense = [from_e4m3(x.array) for x in caches]
        for scales in ((np.full(1, 0.125, np.float32), np.full((), 0.25, np.float32)),
                       (np.array([0.125, 0.2], np.float32), np.array([0.3, 0.1], np.float32)),
                       (np.broadcast_to(np.array([0.125, 0.2], np.float32), (5, 2)),) * 2):
            o, lse = quern.attention_decode(q, *caches, table, self.lens, k_descale=scales[0],
                                            v_scale=scales[1], return_lse=True)
            wide = [s.ravel()[-2:] if s.size > 1 else np.full(2, s.ravel()[0]) for s in scales]
            for i, length in enumerate(self.lengths):
                rows = [table[i, j // 16] * 16 + j % 16 for j in range(length)]
                k, v = (x.reshape(-1, HKV, D)[rows] * s[:, None] for x, s in zip(dense, wide))
                wanted = oracle(from_bf16(to_bf16(self.q[i:i + 1])), k, v)
                self.assert_close(from_bf16(o.array[i:i + 1]), wanted[0], BF16)
                self.near_lse(lse[i:i + 1], wanted[1], 1e-3)

    def test_factors_may_be_numbers(self):
        caches, table = self.small_pages()
        q = quern.view(to_bf16(self.q), "bf16")
        arguments = {"page_table": table, "seq_lens": self.lens}
        scales = [np.array([x], np.float32) for x in (0.05, 2.0)]
        wanted = quern.attention_decode(q, *caches, k_scale=scales[0], v_scale=scales[1],
                                        **arguments)
        for numbers in ((0.05, 2.0), (0.05, 2), (scales[0], np.float64(2))):
            named = dict(zip(("k_scale", "v_scale"), numbers), **arguments)
            for o in (quern.attention_decode(q, *caches, **named),
                      quern.call("attention_decode", q, *caches, **named),
                      quern.prepare("attention_decode", q, *caches, **named)()):
                np.testing.assert_array_equal(o.array, wanted.array)
        for value, text in ((float("nan"), "k_scale=nan: must be finite as f32"),
                            (1e39, "k_scale=1e+39: must be finite as f32"),
                            (True, "k_scale: a bool: must be")):
            self.refused(text, quern.attention_decode, q, *caches, k_scale=value, v_scale=1.0,
                         **arguments)
        with mock.patch("quern._numbers._MOST", 0):
            self.refused("k_scale=0.375: must be an array of f32", quern.attention_decode, q,
                         *caches, k_scale=0.375, v_scale=1.0, **arguments)
        self.refused("q: a list: must be", quern.attention_decode, [1.0], *caches, k_scale=1.0,
                     v_scale=1.0, **arguments)

    def test_deterministic_bits_do_not_depend_on_the_batch(self):
        k_cache, v_cache, table = self.pages()
        every = quern.attention_decode(self.q, k_cache, v_cache, table, self.lens,
                                       deterministic=True)
        for i in range(len(self.lengths)):
            one = quern.attention_decode(self.q[i:i + 1], k_cache, v_cache, table[i:i + 1],
                                         self.lens[i:i + 1], deterministic=True)
            np.testing.assert_array_equal(one[0], every[i])

    def test_calls_are_prepared_and_tuned_by_either_name(self):
        k_cache, v_cache, table = self.pages()
        before = k_cache.copy()
        wanted = quern.attention_decode(self.q, k_cache, v_cache, table, self.lens)
        arguments = {"block_table": table, "cache_seqlens": self.lens}
        step = quern.prepare("attention_decode", self.q, k_cache, v_cache, **arguments)
        np.testing.assert_array_equal(step(), wanted)
        both = quern.prepare("attention_decode", self.q, k_cache, v_cache, return_softmax_lse=True,
                             sm_scale=None, logits_soft_cap=None, **arguments)
        self.check(both())
        found = quern.tune("attention_decode", self.q, k_cache, v_cache, max_configs=2, force=True,
                           **arguments)
        self.assertGreater(found.candidates, 0)
        np.testing.assert_array_equal(k_cache, before)

    def test_bad_arguments_are_named(self):
        k_cache, v_cache, table = self.pages()
        good = {"q": self.q, "k_cache": k_cache, "v_cache": v_cache, "page_table": table,
                "seq_lens": self.lens}

        def refuse(text, **changed):
            self.refused(text, quern.attention_decode, **{**good, **changed})

        refuse("q: shape (5, 2, 4, 64): must be one token of each", q=random(5, 2, H, D))
        refuse("k_cache: shape (2, 64): must be [pages, page, H, D]", k_cache=random(2, 64))
        refuse("v_cache: shape", v_cache=v_cache[1:])
        refuse("k_cache: shape (12, 16, 3, 64): its 3 heads must divide q's 4",
               k_cache=random(12, 16, 3, D), v_cache=random(12, 16, 3, D))
        refuse("page_table: dtype i64: must be i32", page_table=table.astype(np.int64))
        refuse(f"page_table: shape (4, {table.shape[1]}): must be (5, {table.shape[1]}), a row",
               page_table=table[1:])
        refuse("seq_lens: must be given", seq_lens=None)
        refuse("seq_lens: shape (4,): must be (5,)", seq_lens=self.lens[1:])
        refuse("block_table: must not be given with page_table", block_table=table)
        refuse("v_scale: must be given with k_scale", k_scale=np.ones(1, np.float32))
        refuse("k_scale: shape (3,): must be (1,), or (2,)", k_scale=np.ones(3, np.float32))
        refuse("shared_len: must be given", shared_table=table[0])
        refuse("kv_layout=nhd: must be one of: NHD HND", kv_layout="nhd")
        refuse("window_size=3: must be two whole numbers", window_size=3)
        refuse("window_size=(-2, 0): must not be below -1", window_size=(-2, 0))
        refuse("deterministic=2: must be True or False", deterministic=2)
        refuse("sinks: shape (2,): must be (4,)", sinks=random(2))
        refuse("page", k_cache=random(4, 24, HKV, D), v_cache=random(4, 24, HKV, D))
        refuse("q: shape", q=random(5, H, 72), k_cache=random(4, 16, HKV, 72),
               v_cache=random(4, 16, HKV, 72))
        with self.assertRaises(TypeError):
            quern.attention_decode(**good, rotary_cos=None)

    def test_indices_are_looked_at_when_asked_for(self):
        k_cache, v_cache, table = self.pages()
        with mock.patch.dict(os.environ, QUERN_CHECK="1"), \
                quern.Context("cpu", cache="") as context:
            for change, text in (((0, 1), "page_table"), ((4, 0), "page_table")):
                wrong = table.copy()
                wrong[change] = len(k_cache)
                self.refused(text, context.attention_decode, self.q, k_cache, v_cache, wrong,
                             self.lens)
            self.refused("seq_lens", context.attention_decode, self.q, k_cache, v_cache, table,
                         self.lens - 1)


def from_e4m3(bits):
    """Values of e4m3, in f32."""
    exponent, mantissa = (bits >> 3 & 15).astype(int), (bits & 7).astype(float)
    value = np.where(exponent == 0, mantissa * 2.0**-9, (1 + mantissa / 8) * 2.0**(exponent - 7))
    value = np.where(bits & 0x7f == 0x7f, np.nan, value)
    return np.where(bits & 0x80, -value, value).astype(np.float32)


class ExtendTest(CachesCase):
    new = (7, 3, 0, 20, 1)

    def setUp(self):
        super().setUp()
        t = sum(self.new)
        self.q, self.nk, self.nv = random(t, H, D), random(t, HKV, D), random(t, HKV, D)
        self.cu = borders(*self.new)

    def check(self, got, causal=True, **options):
        for i in range(len(self.new)):
            mine = slice(self.cu[i], self.cu[i + 1])
            k, v = (np.concatenate([old, new[mine]])
                    for old, new in zip(self.own(i), (self.nk, self.nv)))
            self.near((got[0][mine], got[1][mine]),
                      oracle(self.q[mine], k, v, causal, **options))

    def test_prefixes_by_page_table(self):
        k_cache, v_cache, table = self.pages()
        arguments = self.q, self.nk, self.nv, k_cache, v_cache
        self.check(quern.attention_extend(*arguments, cu_seqlens_q=self.cu, page_table=table,
                                          prefix_lens=self.lens, return_lse=True))
        sinks = random(H)
        got = quern.attention_extend(*arguments, qo_indptr=self.cu, block_table=table,
                                     prefix_lens=self.lens, return_lse=True, softcap=4.0,
                                     sinks=sinks, window_size=(11, -1), softmax_scale=0.2)
        self.check(got, softcap=4.0, sinks=sinks, window=12, scale=0.2)
        got = quern.attention_extend(*arguments, qo_indptr=self.cu, block_table=table,
                                     prefix_lens=self.lens, return_lse=True, causal=False)
        self.check(got, causal=False)

    def test_prefixes_by_rows(self):
        k_cache, v_cache, table = self.pages()
        rows = np.concatenate([table[i, np.arange(n) // 16] * 16 + np.arange(n) % 16
                               for i, n in enumerate(self.lengths)]).astype(I32)
        arguments = self.q, self.nk, self.nv
        slots = [x.reshape(-1, HKV, D) for x in (k_cache, v_cache)]
        for caches in ((k_cache, v_cache), slots):
            got = quern.attention_extend(*arguments, *caches, qo_indptr=self.cu,
                                         kv_indptr=self.at, kv_indices=rows, return_lse=True)
            self.check(got)

    def test_other_layouts_are_views(self):
        k_cache, v_cache, table = (np.ascontiguousarray(x.swapaxes(1, 2)) if x.ndim == 4 else x
                                   for x in self.pages())
        o, lse = quern.attention_extend(self.q[None], self.nk[None], self.nv[None], k_cache,
                                        v_cache, cu_seqlens_q=self.cu, page_table=table,
                                        prefix_lens=self.lens, kv_layout="HND", return_lse=True)
        self.assertEqual((o.shape, lse.shape), ((1, *self.q.shape), (1, *self.q.shape[:2])))
        self.check((o[0], lse[0]))

    def test_bad_arguments_are_named(self):
        k_cache, v_cache, table = self.pages()
        good = {"q": self.q, "k": self.nk, "v": self.nv, "k_cache": k_cache, "v_cache": v_cache,
                "cu_seqlens_q": self.cu, "page_table": table, "prefix_lens": self.lens}

        def refuse(text, **changed):
            self.refused(text, quern.attention_extend, **{**good, **changed})

        refuse("cu_seqlens_q: must be given", cu_seqlens_q=None)
        refuse("cu_seqlens_q: shape (6, 1): must be (B + 1,)", cu_seqlens_q=self.cu[:, None])
        refuse("page_table: must not be given with kv_indices", kv_indptr=self.at,
               kv_indices=self.lens)
        refuse("kv_indices: must be given", kv_indptr=self.at, page_table=None, prefix_lens=None)
        refuse("prefix_lens: must be given", prefix_lens=None)
        refuse("k: shape", k=self.nk[1:])
        refuse("v: dtype f16: must be f32", v=self.nv.astype(np.float16))
        refuse("q: shape (2, 31, 4, 64): must be packed", q=random(2, 31, H, D))
        refuse("k_cache: shape", k_cache=random(4, 16, HKV, 128), v_cache=random(4, 16, HKV, 128))


class MergeTest(Case):
    def test_two_states_are_attention_to_all(self):
        q, k, v = random(9, H, D), random(50, HKV, D), random(50, HKV, D)
        parts = [quern.attention(q, k[at], v[at], return_lse=True)
                 for at in (slice(0, 20), slice(20, 50))]
        wanted, lse = oracle(q, k, v)
        o, s = quern.merge_state_v2(*parts[0], *parts[1])
        self.assert_close(o, wanted, F32)
        self.assert_close(s, lse, F32)
        two = [(o, (s / np.log(2)).astype(np.float32)) for o, s in parts]
        o, s = quern.merge_state(*two[0], *two[1])
        self.assert_close(o, wanted, F32)
        self.assert_close(s, lse / np.log(2), F32)

    def test_empty_states_give_way(self):
        v, s = random(3, H, D), random(3, H)
        none, empty = np.zeros((3, H, D), np.float32), np.full((3, H), -np.inf, np.float32)
        for function in (quern.merge_state, quern.merge_state_v2):
            o, total = function(none, empty, v, s)
            self.assert_close(o, v, 1e-6)
            self.assert_close(total, s, 1e-6)
            out, sums = poisoned(3, H, D), poisoned(3, H)
            self.assertIs(function(none, empty, none, empty, out, sums)[0], out)
            self.assertTrue((out == 0).all() and (sums == -np.inf).all())

    def test_bad_arguments_are_named(self):
        v, s = random(3, H, D), random(3, H)
        self.refused("v_b: shape (2, 4, 64): must be (3, 4, 64)", quern.merge_state, v, s, v[1:], s)
        self.refused("s_b: must be given", quern.merge_state_v2, v, s, v, None)
        self.refused("s_a: shape (3, 4, 1): must be (3, 4)", quern.merge_state, v, s[..., None], v,
                     s)


def latent_oracle(q, rows, causal_from=None, scale=576**-0.5):
    """o [S, H, 512] and lse [S, H] of one sequence's queries to rows [n, 576]."""
    o, lse = [], []
    for i, query in enumerate(q):
        seen = rows if causal_from is None else rows[:max(0, causal_from + i)]
        one, total = oracle(query[None], seen[:, None], seen[:, None, :512], scale=scale)
        o.append(one[0])
        lse.append(total[0])
    return np.stack(o), np.stack(lse)


class LatentTest(AttentionCase):
    lengths = (70, 5, 64)

    def setUp(self):
        self.q = random(3, 2, 16, 576)
        self.lens = np.array(self.lengths, I32)
        self.cache, self.table = poisoned(7, 64, 576), np.array([[5, 2], [0, -1], [3, -1]], I32)
        self.rows = [random(n, 576) for n in self.lengths]
        for table, rows in zip(self.table, self.rows):
            for j in range(0, len(rows), 64):
                part = rows[j:j + 64]
                self.cache[table[j // 64], :len(part)] = part

    def test_several_queries_see_what_is_before_them(self):
        for causal in (False, True):
            o, lse = quern.mla_decode(self.q, self.cache, self.table, self.lens, causal=causal,
                                      return_lse=True)
            self.assertEqual((o.shape, lse.shape), ((3, 2, 16, 512), (3, 2, 16)))
            for i, n in enumerate(self.lengths):
                self.near((o[i], lse[i]), latent_oracle(self.q[i], self.rows[i],
                                                        n - 1 if causal else None))

    def test_arguments_go_by_flash_mlas_names(self):
        o = quern.mla_decode(self.q[:, 0], self.cache[:, :, None], block_table=self.table,
                             cache_seqlens=self.lens, head_dim_v=512, num_splits=1,
                             softmax_scale=0.03)
        for i in range(3):
            self.assert_close(o[i:i + 1], latent_oracle(self.q[i, :1], self.rows[i],
                                                        scale=0.03)[0], F32)

    def test_a_query_may_name_the_rows_that_it_sees(self):
        indices = np.full((3, 2, 8), -1, I32)
        for i, n in enumerate(self.lengths):
            for j in range(2):
                seen = shuffled(n)[:5 + j]
                indices[i, j, :len(seen)] = self.table[i, seen // 64] * 64 + seen % 64
        indices[1, 1] = -1
        o, lse = quern.mla_decode(self.q, self.cache, indices=indices, return_lse=True)
        self.assertTrue((o[1, 1] == 0).all() and (lse[1, 1] == -np.inf).all())
        for i in range(3):
            for j in range(2):
                rows = self.cache.reshape(-1, 576)[indices[i, j][indices[i, j] >= 0]]
                self.near((o[i, j:j + 1], lse[i, j:j + 1]),
                          latent_oracle(self.q[i, j:j + 1], rows))

    def test_tokens_of_656_bytes_are_what_set_kv_buffer_keeps(self):
        q = quern.view(to_bf16(self.q), "bf16")
        packed = np.full((7, 64, 656), 0xff, np.uint8)
        for table, rows in zip(self.table, self.rows):
            at = np.arange(len(rows))
            quern.set_kv_buffer(quern.view(to_bf16(rows), "bf16"), None, packed, None,
                                table[at // 64] * 64 + at % 64)
        for cache in (packed, packed[:, :, None], quern.view(packed, "e4m3")):
            o, lse = quern.mla_decode(q, cache, self.table, self.lens, is_fp8_kvcache=True,
                                      return_lse=True)
            for i in range(3):
                mine = packed[self.table[i]].reshape(-1, 656)[:self.lengths[i]]
                scales = np.repeat(mine[:, 512:528].copy().view(np.float32), 128, 1)
                rows = np.concatenate([from_e4m3(mine[:, :512]) * scales,
                                       from_bf16(mine[:, 528:].copy().view(np.uint16))], 1)
                self.assert_close(rows, self.rows[i], 0.04)
                wanted = latent_oracle(from_bf16(q.array[i]), rows)
                self.assert_close(from_bf16(o.array[i]), wanted[0], BF16)
                self.near_lse(lse[i], wanted[1], 1e-3)

    def test_columns_are_put_together(self):
        both = random(7, 3, 256)  # of a projection: keys without position, and values
        nope, rope = both[..., :128], random(7, 1, 64)
        wanted = np.concatenate([nope, np.broadcast_to(rope, (7, 3, 64))], 2)
        np.testing.assert_array_equal(quern.concat_mla_k(nope, rope), wanted)
        out = poisoned(7, 3, 192)
        self.assertIs(quern.concat_mla_k(nope, rope[:, 0], out), out)
        np.testing.assert_array_equal(out, wanted)
        a, b = random(7, 3, 512), random(3, 7, 64).swapaxes(0, 1)
        np.testing.assert_array_equal(quern.concat_mla_absorb_q(a, b), np.concatenate([a, b], 2))

    def test_bad_arguments_are_named(self):
        mla, good = quern.mla_decode, (self.q, self.cache, self.table, self.lens)
        self.refused("q: shape (3, 2, 16, 512): must be [B, S, H, 576]", mla, self.q[..., :512],
                     *good[1:])
        self.refused("kv_cache: shape (7, 64, 512): its last dimension must be 576, or 656", mla,
                     self.q, self.cache[..., :512], *good[2:])
        self.refused("is_fp8_kvcache=True: must be False unless", mla, *good, is_fp8_kvcache=True)
        self.refused("page_table: must not be given with indices", mla, *good,
                     indices=np.zeros((3, 2, 4), I32))
        self.refused("indices: shape (3, 4): must be (3, 2, 4)", mla, *good[:2],
                     indices=np.zeros((3, 4), I32))
        self.refused("seq_lens: must be given", mla, *good[:3])
        self.refused("q: shape (3, 9, 16, 576): S must be", mla, random(3, 9, 16, 576), *good[1:])
        self.refused("b: shape (7, 2, 64): must be (7, 3, 64)", quern.concat_mla_absorb_q,
                     random(7, 3, 512), random(7, 2, 64))
        self.refused("k_rope: shape (7, 3, 64): must be (7, 1, 64)", quern.concat_mla_k,
                     random(7, 3, 128), random(7, 3, 64))


def rotated(x, angles, is_neox):
    """x [T, H, D], its first columns turned by angles [T, R / 2]."""
    half = angles.shape[1]
    one, other = ((slice(0, half), slice(half, 2 * half)) if is_neox else
                  (slice(0, 2 * half, 2), slice(1, 2 * half, 2)))
    y, a, b = x.astype(float), x[..., one].astype(float), x[..., other].astype(float)
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
    y[..., one], y[..., other] = a * cos - b * sin, b * cos + a * sin
    return y


class StoreTest(Case):
    def setUp(self):
        self.k, self.v = random(6, HKV, D), random(6, HKV, D)
        self.loc = np.array([33, 0, -1, 79, 16, 10**6], I32)
        self.kept = np.array([0, 1, 3, 4])
        self.rows = self.loc[self.kept]

    def others_are_left(self, *caches):
        for cache in caches:
            rest = cache.reshape(-1, *cache.shape[2:]).copy()
            rest[self.rows] = 1e30
            self.assertTrue((rest == np.float32(1e30)).all())

    def test_tokens_go_to_their_rows_and_nothing_else_changes(self):
        for dtype in (np.int32, np.int64):
            caches = [np.full((5, 16, HKV, D), 1e30, np.float32) for _ in range(2)]
            self.assertIsNone(quern.set_kv_buffer(self.k, self.v, *caches, self.loc.astype(dtype)))
            for cache, new in zip(caches, (self.k, self.v)):
                np.testing.assert_array_equal(cache.reshape(80, HKV, D)[self.rows], new[self.kept])
            self.others_are_left(*caches)

    def test_other_layouts_are_views(self):
        both = np.full((5, 2, 16, HKV, D), 1e30, np.float32)
        quern.set_kv_buffer(self.k, self.v, both[:, 0], both[:, 1], slot_mapping=self.loc)
        turned = [np.full((5, HKV, 16, D), 1e30, np.float32) for _ in range(2)]
        quern.set_kv_buffer(self.k, self.v, *turned, self.loc, kv_layout="HND")
        slots = [np.full((80, HKV, D), 1e30, np.float32) for _ in range(2)]
        quern.set_kv_buffer(self.k, self.v, *slots, self.loc)
        for i in range(2):
            np.testing.assert_array_equal(turned[i].swapaxes(1, 2), both[:, i])
            np.testing.assert_array_equal(slots[i].reshape(5, 16, HKV, D), both[:, i])

    def test_keys_and_queries_are_rotated_on_the_way(self):
        positions, rope = np.array([3, 0, 9, 4, 7, 1], I32), 32
        angles = random(10, rope // 2).astype(float)
        table = np.concatenate([np.cos(angles), np.sin(angles)], 1).astype(np.float32)
        for is_neox in (True, False):
            q, caches = random(6, H, D), [np.full((5, 16, HKV, D), 1e30, np.float32)] * 1
            caches.append(caches[0].copy())
            wanted = rotated(q, angles[positions], is_neox)
            quern.set_kv_buffer(self.k, self.v, *caches, self.loc, positions=positions,
                                cos_sin_cache=table, is_neox=is_neox, q=q)
            self.assert_close(q, wanted, 1e-6)
            keys = rotated(self.k, angles[positions], is_neox)[self.kept]
            self.assert_close(caches[0].reshape(80, HKV, D)[self.rows], keys, 1e-6)
            np.testing.assert_array_equal(caches[1].reshape(80, HKV, D)[self.rows],
                                          self.v[self.kept])
            self.others_are_left(*caches)

    def test_e4m3_caches_hold_values_divided_by_their_factor(self):
        caches = [np.full((5, 16, HKV, D), 0xa5, np.uint8) for _ in range(2)]
        scales = np.array([0.02, 0.05], np.float32), np.array([0.01, 0.001], np.float32)
        quern.set_kv_buffer(self.k, self.v, *(quern.view(x, "e4m3") for x in caches), self.loc,
                            k_scale=scales[0], v_scale=scales[1])
        for cache, new, scale in zip(caches, (self.k, self.v), scales):
            wanted = np.clip(new[self.kept] / scale[:, None], -448, 448)
            self.assert_close(from_e4m3(cache.reshape(80, HKV, D)[self.rows]), wanted, 0.04)
            rest = cache.reshape(80, HKV, D)
            rest[self.rows] = 0xa5
            self.assertTrue((rest == 0xa5).all())

    def test_latent_rows_have_no_values(self):
        rows = random(6, 576)
        for shape in ((5, 16, 576), (5, 16, 1, 576), (80, 576)):
            cache = np.full(shape, 1e30, np.float32)
            quern.set_kv_buffer(rows, None, cache, None, self.loc)
            np.testing.assert_array_equal(cache.reshape(80, 576)[self.rows], rows[self.kept])

    def test_tuning_leaves_the_cache_as_it_was(self):
        caches = [random(5, 16, HKV, D) for _ in range(2)]
        before = [x.copy() for x in caches]
        found = quern.tune("set_kv_buffer", self.k, self.v, *caches, self.loc, max_configs=3,
                           force=True)
        self.assertGreater(found.candidates, 0)
        for cache, old in zip(caches, before):
            np.testing.assert_array_equal(cache, old)
        step = quern.prepare("set_kv_buffer", self.k, self.v, *caches, slot_mapping=self.loc)
        self.assertIsNone(step())
        np.testing.assert_array_equal(caches[0].reshape(80, HKV, D)[self.rows], self.k[self.kept])

    def test_bad_arguments_are_named(self):
        caches = [np.zeros((5, 16, HKV, D), np.float32) for _ in range(2)]
        good = {"k": self.k, "v": self.v, "k_cache": caches[0], "v_cache": caches[1],
                "loc": self.loc}

        def refuse(text, **changed):
            self.refused(text, quern.set_kv_buffer, **{**good, **changed})

        refuse("loc: shape (5,): must be (6,)", loc=self.loc[1:])
        refuse("loc: dtype f32: must be one of: i32 i64", loc=self.loc.astype(np.float32))
        refuse("v: must be given with v_cache", v=None)
        refuse("v_cache: must be given", v_cache=None)
        refuse("k_cache: shape (5, 16, 3, 64): must have 2 heads of 64",
               k_cache=np.zeros((5, 16, 3, D), np.float32))
        refuse("v: shape (5, 2, 64): must be (6, 2, 64)", v=self.v[1:])
        refuse("positions: must not be given without cos_sin_cache", positions=self.loc)
        refuse("positions: must be given", cos_sin_cache=random(10, 64))
        refuse("positions: dtype i64: must be i32", cos_sin_cache=random(10, 64),
               positions=self.loc.astype(np.int64))
        refuse("kv_scale", k_scale=np.ones(1, np.float32), v_scale=np.ones(1, np.float32))
        read_only = caches[0].copy()
        read_only.flags.writeable = False
        refuse("k_cache: is read-only", k_cache=read_only)
        with mock.patch.dict(os.environ, QUERN_CHECK="1"), \
                quern.Context("cpu", cache="") as context:
            refuse("loc[5]=1000000: must be -1, or", context=context)
        for cache in caches:
            self.assertFalse(cache.any())


class CommandLineTest(Case):
    """What `quern build` made is what calls look for."""

    def serves(self, spec, call):
        cache = FOLDER / f"{spec.split()[0]}.db"
        tool = pathlib.Path(BUILD or ROOT / "build").resolve() / "quern"
        subprocess.run([tool, "build", *spec.split()], check=True, capture_output=True,
                       env={**os.environ, "QUERN_CACHE": str(cache)})
        with quern.Context("cpu", cache=cache, mode="sealed") as context:
            call(context)

    def test_attention(self):
        q, k, v = random(2, 16, 4, 64), random(2, 16, 2, 64), random(2, 16, 2, 64)
        spec = "attention b=2 sq=16 sk=16 hq=4 hkv=2 d=64 dtype=f32 causal=1"
        self.serves(spec, lambda at: at.attention(q, k, v, causal=True))
        self.serves(spec, lambda at: at.attention(q, k, v, causal=True, softcap=None))

    def test_attention_decode(self):
        q, (k, v) = random(2, 4, 64), random(2, 8, 16, 2, 64)
        table, lens = np.arange(8, dtype=np.int32).reshape(2, 4), np.array([9, 64], np.int32)
        self.serves("attention_decode b=2 hq=4 hkv=2 d=64 page=16 pages=8 dtype=f32",
                    lambda at: at.attention_decode(q, k, v, table, lens, logits_soft_cap=0.0))

    def test_mla_decode(self):
        q, cache = random(2, 16, 576), random(4, 64, 576)
        table, lens = np.arange(4, dtype=np.int32).reshape(2, 2), np.array([9, 64], np.int32)
        self.serves("mla_decode b=2 hq=16 pages=4 dtype=f32",
                    lambda at: at.mla_decode(q, cache, table, lens))

    def test_set_kv_buffer(self):
        k, v, (k_cache, v_cache) = random(8, 2, 64), random(8, 2, 64), random(2, 4, 16, 2, 64)
        loc = np.arange(8, dtype=np.int32)
        self.serves("set_kv_buffer t=8 hkv=2 d=64 pages=4 dtype=f32",
                    lambda at: at.set_kv_buffer(k, v, k_cache, v_cache, loc))


class RefusalTest(Case):
    def test_attention_names_its_arguments(self):
        q, k, v = random(8, H, D), random(9, HKV, D), random(9, HKV, D)
        good = {"q": q, "k": k, "v": v}

        def refuse(text, **changed):
            self.refused(text, quern.attention, **{**good, **changed})

        refuse("q: shape (4, 64): must be [B, S, H, D]", q=q[0])
        refuse("q: must be given", q=None)
        refuse("q: dtype f64: must be one of: bf16 f16 f32", q=q.astype(float))
        refuse("k: shape (1, 9, 2, 64): must have 3 dimensions", k=k[None])
        refuse("k: shape (9, 3, 64): its 3 heads must divide q's 4", k=random(9, 3, D),
               v=random(9, 3, D))
        refuse("k: shape (9, 2, 32): its last dimension must be 64", k=random(9, HKV, 32))
        refuse("v: shape (8, 2, 64): must be (9, 2, 64)", v=v[1:])
        refuse("v: dtype f16: must be f32", v=v.astype(np.float16))
        refuse("cu_seqlens_k: must be given", cu_seqlens_q=borders(8))
        refuse("cu_seqlens_q: must be given", cu_seqlens_k=borders(9))
        refuse("cu_seqlens_q: dtype i64: must be i32", cu_seqlens_q=np.array([0, 8]),
               cu_seqlens_k=borders(9))
        refuse("cu_seqlens_q: shape (1,): must be (B + 1,) with B of at least 1, as q has 8",
               cu_seqlens_q=borders(), cu_seqlens_k=borders())
        refuse("cu_seqlens_k: shape (3,): must be (2,)", cu_seqlens_q=borders(8),
               cu_seqlens_k=borders(4, 5))
        refuse("window_size=(3, 5): must be (w, w), or with causal=True", window_size=(3, 5))
        refuse("window_size=(3, -1): must be (w, w)", window_size=(3, -1))
        refuse("window_size=<ndarray>: must be two whole", window_size=np.array([1, 2]))
        refuse("softmax_scale=nan: must be finite", softmax_scale=float("nan"))
        refuse("softcap=-1", softcap=-1.0)
        refuse("causal='yes': must be True or False", causal="yes")
        refuse("q: strides", q=random(8, D, H).swapaxes(1, 2))
        refuse("out: shape (8, 4, 32): must be (8, 4, 64)", out=poisoned(8, H, 32))
        refuse("out", out=q)
        refuse("learnable_sink: must not be given with sinks", sinks=random(H),
               learnable_sink=random(H))
        refuse("sm_scale: must not be given with softmax_scale", sm_scale=0.1, softmax_scale=0.1)
        refuse("logits_soft_cap: must not be given with softcap", logits_soft_cap=1.0, softcap=1.0)
        for width in (72, 512):
            refuse(f"q: shape (8, 4, {width}): D must be", q=random(8, H, width),
                   k=random(9, HKV, width), v=random(9, HKV, width))
        refuse("v: shape (9, 2, 128): Dv must be", v=random(9, HKV, 128))
        refuse("dropout_p=0.1: must be 0", dropout_p=0.1)
        for name in ("alibi_slopes", "attn_mask", "return_attn_probs"):
            self.assertRaises(TypeError, quern.attention, q, k, v, **{name: None})

    def test_batches_do_not_go_with_borders(self):
        q = random(2, 8, H, D)
        self.refused("q: shape (2, 8, 4, 64): B must be 1 with cu_seqlens_q", quern.attention, q,
                     q, q, cu_seqlens_q=borders(8, 8), cu_seqlens_k=borders(8, 8))

    def test_a_context_has_the_functions(self):
        q, k, v = random(8, H, D), random(9, HKV, D), random(9, HKV, D)
        rows, cache = random(4, 1, 576), random(2, 64, 576)
        table, lens = np.array([[1]], I32), np.array([9], I32)
        ends = borders(8)
        k_cache, v_cache = random(2, 16, HKV, D), random(2, 16, HKV, D)
        with quern.Context("cpu", cache="") as context:
            for name, arguments in (
                    ("attention", (q, k, v)), ("attention_decode", (q[:1], k_cache, v_cache, table,
                                                                    lens)),
                    ("mla_decode", (rows[:1], cache, table, lens)),
                    ("merge_state", (q, q[..., 0].copy(), q, q[..., 1].copy())),
                    ("merge_state_v2", (q, q[..., 0].copy(), q, q[..., 1].copy())),
                    ("concat_mla_k", (q, q[:, :1])), ("concat_mla_absorb_q", (q, q))):
                for got, wanted in zip(getattr(context, name)(*arguments),
                                       getattr(quern, name)(*arguments)):
                    np.testing.assert_array_equal(got, wanted)
            context.set_kv_buffer(k[:1], v[:1], k_cache, v_cache, np.array([5], I32))
            np.testing.assert_array_equal(k_cache[0, 5], k[0])
            o = context.attention_extend(q, k[:8], v[:8], k_cache, v_cache, cu_seqlens_q=ends,
                                         page_table=table, prefix_lens=lens)
            self.assert_close(o, oracle(q, np.concatenate([k_cache[1, :9], k[:8]]),
                                        np.concatenate([v_cache[1, :9], v[:8]]), True)[0], F32)

    def test_any_name_of_the_family_is_the_function(self):
        q, k, v = random(8, H, D), random(9, HKV, D), random(9, HKV, D)
        wanted = quern.attention(q, k, v, causal=True)
        for name in ("attention", "attention_prefill"):
            np.testing.assert_array_equal(quern.call(name, q, k, v, causal=True), wanted)
        step = quern.prepare("attention", q, k, v, causal=True, max_seqlen_q=8)
        np.testing.assert_array_equal(step(), wanted)
        self.refused("learnable_sink: must not be given with sinks", quern.prepare, "attention", q,
                     k, v, sinks=random(H), learnable_sink=random(H))


if __name__ == "__main__":
    main()
