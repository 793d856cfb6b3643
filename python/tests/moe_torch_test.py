#!/usr/bin/env python3
"""Mixtures of experts on PyTorch tensors: eager calls, operators, torch.compile, CUDA graphs, and a
model whose blocks of experts are replaced.

    Eager, Traced, Replaced    each on the CPU, where clang and LLVM are, and on a GPU
    Graphs                     on a GPU only

Skipped whole where torch is missing. Data is random; QUERN_SEED repeats a run.
"""

from __future__ import annotations

from typing import Any

import common
import quern
from torch_test import Case, bits, on_cpu, on_cuda, torch

T, E, TOPK, HIDDEN, INTER = 33, 16, 4, 256, 128


def silu(x: Any) -> Any:
    return x * torch.sigmoid(x)


def routed(logits: Any, count: int) -> Any:
    """Weights that sum to 1, and ids, in float64; ties to the lower expert."""
    order = torch.sort(logits.double(), dim=-1, descending=True, stable=True)
    return torch.softmax(order.values[:, :count], -1), order.indices[:, :count]


def oracle(x: Any, w1: Any, w2: Any, weights: Any, ids: Any) -> Any:
    """The layer in float64, an expert at a time; of an id of -1 nothing."""
    out = torch.zeros(x.shape, dtype=torch.float64, device=x.device)
    for e in range(len(w1)):
        tokens, places = torch.where(ids == e)
        gate, up = (x[tokens].double() @ w1[e].double().T).chunk(2, -1)
        y = silu(gate) * up @ w2[e].double().T
        out.index_add_(0, tokens, y * weights[tokens, places, None].double())
    return out


class Layers(Case):
    """Tokens, logits and weights."""

    dtypes: Any = ()
    wide: Any = None  # the first of them: of tests that need but one

    def setUp(self) -> None:
        super().setUp()
        torch._dynamo.reset()
        self.dtypes = (torch.bfloat16, torch.float16) if self.device == "cuda" else \
            (torch.float32, torch.bfloat16)
        self.wide = self.dtypes[0]
        self.logits = self.draw(T, E)
        self.x, self.w1, self.w2 = self.layer(self.wide)

    def layer(self, dtype: Any, hidden: int = HIDDEN, inter: int = INTER) -> Any:
        return (self.draw(T, hidden, dtype=dtype),
                (self.draw(E, 2 * inter, hidden) * hidden ** -0.5).to(dtype),
                (self.draw(E, hidden, inter) * inter ** -0.5).to(dtype))

    def near(self, got: Any, wanted: Any, tolerance: float = 0.0) -> None:
        """Relative, in the norm."""
        self.assertEqual(got.shape, wanted.shape)
        tolerance = tolerance or {torch.float32: 1e-5, torch.float16: 1e-3}.get(got.dtype, 5e-3)
        error = (got.double() - wanted).norm() / (wanted.norm() or 1)
        self.assertLessEqual(error.item(), tolerance)  # NaN is not

    def integers(self, values: Any) -> Any:
        return torch.tensor(values, dtype=torch.int32, device=self.device)


class Eager:
    def test_experts_are_chosen_as_torch_would(self: Any) -> None:
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            logits = (self.draw(200, 128) * 4).round().to(dtype)  # with ties
            weights, ids = quern.topk_softmax(logits, 8, renormalize=True)
            wanted = routed(logits, 8)
            self.assertTrue(torch.equal(ids.long(), wanted[1]))
            self.near(weights, wanted[0], 1e-5)
        scores = torch.sigmoid(self.logits.double())
        weights, ids = quern.topk_sigmoid(self.logits, TOPK)
        self.near(weights, scores.gather(1, ids.long()), 1e-5)

    def test_the_gate_is_deepseeks(self: Any) -> None:
        logits, bias = self.draw(300, 256), self.draw(256)
        scores = torch.sigmoid(logits.double())
        keys = (scores + bias).view(300, 8, 32)
        kept = keys.topk(2, -1).values.sum(-1).topk(4, -1).indices
        mask = torch.zeros(300, 8, dtype=torch.bool, device=self.device).scatter_(1, kept, True)
        best = keys.masked_fill(~mask[..., None], -9.0).flatten(1).topk(8, -1)
        weights, ids = quern.moe_fused_gate(logits, bias, 8, 4, 8)
        self.near(scores.gather(1, ids.long()) + bias[ids.long()], best.values, 1e-6)
        wanted = scores.gather(1, best.indices)
        self.near(weights, wanted / wanted.sum(-1, keepdim=True), 1e-5)

    def test_layers_are_right_in_every_dtype(self: Any) -> None:
        for dtype in self.dtypes:
            for hidden, inter in ((HIDDEN, INTER), (192, 96)):
                with self.subTest(dtype=dtype, hidden=hidden):
                    layer = self.layer(dtype, hidden, inter)
                    out = quern.fused_moe(*layer, self.logits, TOPK)
                    self.assertEqual((out.dtype, out.device), (dtype, layer[0].device))
                    self.near(out, oracle(*layer, *routed(self.logits, TOPK)))

    def test_tokens_may_be_few_and_many(self: Any) -> None:
        for count in (0, 1, 2, 7, 300):
            x, logits = self.draw(count, HIDDEN, dtype=self.wide), self.draw(count, E)
            with self.subTest(count=count):
                out = quern.fused_moe(x, self.w1, self.w2, logits, TOPK)
                self.near(out, oracle(x, self.w1, self.w2, *routed(logits, TOPK)))

    def test_repeats_are_equal_to_the_bit_and_in_place_too(self: Any) -> None:
        first = quern.fused_moe(self.x, self.w1, self.w2, self.logits, TOPK)
        for _ in range(3):
            again = quern.fused_moe(self.x, self.w1, self.w2, self.logits, TOPK)
            self.assertTrue(torch.equal(first, again))
        x = self.x.clone()
        self.assertIs(quern.fused_moe(x, self.w1, self.w2, self.logits, TOPK, inplace=True), x)
        self.assertTrue(torch.equal(first, x))

    def test_halves_of_the_experts_add_up(self: Any) -> None:
        total = 0
        for half in (slice(0, E // 2), slice(E // 2, E)):
            mapping = torch.full((E,), -1, dtype=torch.int32, device=self.device)
            mapping[half] = torch.arange(E // 2, dtype=torch.int32, device=self.device)
            total = total + quern.fused_moe(self.x, self.w1[half], self.w2[half], self.logits,
                                            TOPK, expert_map=mapping).double()
        wanted = oracle(self.x, self.w1, self.w2, *routed(self.logits, TOPK))
        self.near(total, wanted, 5e-3)

    def test_the_parts_come_to_the_layer(self: Any) -> None:
        weights, ids = quern.topk_softmax(self.logits, TOPK, renormalize=True)
        offsets, _, _, rows, back = quern.prepare_moe_input(ids, E, INTER, HIDDEN)
        both = quern.grouped_gemm(quern.shuffle_rows(self.x, rows), self.w1, offsets)
        h = quern.silu_and_mul(both)
        fused = quern.grouped_gemm(self.x, self.w1, offsets, row_ids=rows, activation="silu")
        self.near(fused, h.double(), 5e-3)
        y = quern.grouped_gemm(h, self.w2, offsets)
        out = quern.apply_shuffle_mul_sum(y, None, back, weights)
        wanted = oracle(self.x, self.w1, self.w2, *routed(self.logits, TOPK))
        self.near(out, wanted, 1e-2)
        slots, experts, used = quern.moe_align_block_size(ids, 16, E)
        d = quern.grouped_gemm(self.x, self.w1, expert_ids=experts, num_rows=used, row_ids=slots,
                               share=TOPK, block_size=16, activation="silu")
        spread = torch.empty_like(h)
        is_slot = slots < T * TOPK
        spread[slots[is_slot].long()] = d[is_slot]
        self.near(spread, h[back.flatten().long()].double(), 5e-3)

    def test_gradients_are_refused(self: Any) -> None:
        with self.error("hidden_states: requires grad"):
            quern.fused_moe(self.x.clone().requires_grad_(), self.w1, self.w2, self.logits, TOPK)


@on_cpu
class EagerOnCpu(Eager, Layers):
    pass


@on_cuda
class EagerOnCuda(Eager, Layers):
    device = "cuda"


class Traced:
    def test_opcheck_finds_nothing(self: Any) -> None:
        ops, layer = torch.ops.quern, (self.x, self.w1, self.w2, self.logits)
        ids = self.integers([[e % E, (e + 3) % E] for e in range(T)])
        counts = [0] * E
        for e in ids.flatten().tolist():
            counts[e] += 1
        offsets = torch.tensor(counts).cumsum(0).tolist()
        rows = self.draw(offsets[-1], HIDDEN, dtype=self.wide)
        qkv, one = self.draw(T, 4 * 64, dtype=self.wide), self.draw(64, dtype=self.wide)
        weights = self.draw(T, TOPK), torch.zeros(T, TOPK, dtype=torch.int32, device=self.device)
        for op, args, kwargs in (
            (ops.topk_softmax, (self.logits,), {"topk": TOPK, "renormalize": True}),
            (ops.topk_softmax_out, (self.logits, *weights), {}),
            (ops.moe_fused_gate, (self.logits,), {"num_expert_group": 4, "topk_group": 2,
                                                  "topk": TOPK}),
            (ops.moe_align_block_size, (ids,), {"block_size": 8, "num_experts": E}),
            (ops.prepare_moe_input, (ids,), {"num_experts": E, "n": 64, "k": 64}),
            (ops.shuffle_rows, (self.x, ids[:, 0].contiguous()), {}),
            (ops.moe_sum, (self.draw(T, 2, 64),), {}),
            (ops.grouped_gemm, (rows, self.w1, self.integers([0, *offsets])),
             {"activation": "silu", "out_dtype": torch.float32}),
            (ops.fused_moe, layer, {"topk": TOPK}),
            (ops.fused_moe_out, (*layer, torch.empty_like(self.x)), {"topk": TOPK}),
            (ops.fused_moe_inplace_out, (*layer[1:], self.x.clone()), {"topk": TOPK}),
            (ops.silu_and_mul, (qkv,), {}),
            (ops.silu_and_mul, (qkv,), {"quantize": "i8", "group_size": 128}),
            (ops.fused_qk_norm_rope_out, (one, one.clone(), ids[:, 0].contiguous(), qkv),
             {"num_heads_q": 2, "num_heads_k": 1, "num_heads_v": 1, "head_dim": 64}),
        ):
            with self.subTest(op=str(op)):
                torch.library.opcheck(op.default, args, kwargs, test_utils=(
                    "test_schema", "test_autograd_registration", "test_faketensor"))

    def test_a_layer_is_one_graph(self: Any) -> None:
        def layer(x: Any, qkv: Any, out: Any) -> Any:
            quern.fused_qk_norm_rope(qkv, 2, 1, 1, 64, 1e-6, one, one, 1e4, True, positions)
            logits = x.float() @ router
            weights, ids = quern.topk_softmax(logits, TOPK, renormalize=True)
            aligned = quern.moe_align_block_size(ids, 16, E)
            six = quern.prepare_moe_input(ids, E, INTER, HIDDEN, blockscale=True)
            d = quern.grouped_gemm(x, self.w1, six[0], row_ids=six[3], activation="silu",
                                   out_dtype="f32" if x.dtype == torch.float32 else "bf16")
            y = quern.fused_moe(x, self.w1, self.w2, logits, TOPK, activation="gelu")
            quern.fused_moe(x, self.w1, self.w2, logits, TOPK, out=out)
            quern.fused_moe(x, self.w1, self.w2, logits, TOPK, inplace=True)
            return (weights, ids, *aligned, *six, d, y + 1, quern.gelu_and_mul(qkv),
                    *quern.silu_and_mul(qkv, quantize="e4m3"))

        one = self.draw(64, dtype=self.wide)
        positions = torch.arange(T, device=self.device)
        router = self.draw(HIDDEN, E)
        qkv = self.draw(T, 4 * 64, dtype=self.wide)
        results = []
        for function in (layer, torch.compile(layer, fullgraph=True, backend="aot_eager")):
            given = [self.x.clone(), qkv.clone(), torch.empty_like(self.x)]
            with torch.no_grad():
                results.append([*function(*given), *given])
        self.assertEqual(len(results[0]), 19)
        for eager, compiled in zip(*results):
            self.assertTrue(torch.equal(bits(eager), bits(compiled)))

    def test_tokens_may_be_dynamic(self: Any) -> None:
        graphs = []

        def count(graph: Any, _inputs: Any) -> Any:
            graphs.append(graph)
            return graph

        compiled = torch.compile(
            lambda x, logits: quern.fused_moe(x, self.w1, self.w2, logits, TOPK) + 1,
            backend=count, dynamic=True)
        for t in (7, 20, 33):
            x, logits = self.x[:t], self.logits[:t]
            wanted = quern.fused_moe(x, self.w1, self.w2, logits, TOPK) + 1
            self.assertTrue(torch.equal(compiled(x, logits), wanted))
        self.assertEqual(len(graphs), 1)
        self.assertIn("quern.fused_moe", graphs[0].code)

    def test_mistakes_are_named_while_tracing(self: Any) -> None:
        good = {"hidden_states": self.x, "w1": self.w1, "w2": self.w2,
                "gating_output": self.logits, "topk": TOPK}
        for text, changed in (
            (r"w2: shape \(16, 255, 128\): must be", {"w2": self.w2[:, 1:]}),
            ("gating_output: shape", {"gating_output": self.logits[1:]}),
            ("out: must not be given with inplace", {"inplace": True, "out": self.x}),
            ("renormalize: must be True or False", {"renormalize": self.x}),
        ):
            with self.subTest(text), self.assertRaisesRegex(Exception, text):
                torch._dynamo.reset()
                torch.compile(lambda: quern.fused_moe(**{**good, **changed}), fullgraph=True,
                              backend="eager")()
        ids = torch.empty(T, TOPK, dtype=torch.int32, device=self.device)
        with self.assertRaisesRegex(Exception, "topk_weights: must be given with topk_ids"):
            torch.compile(lambda: quern.topk_softmax(self.logits, topk_ids=ids), fullgraph=True,
                          backend="eager")()


@on_cpu
class TracedOnCpu(Traced, Layers):
    pass


@on_cuda
class TracedOnCuda(Traced, Layers):
    device = "cuda"


@on_cuda
class Graphs(Layers):
    device = "cuda"

    def test_a_layer_replays_with_other_tokens_and_experts(self) -> None:
        for count in (1, 8, 33):
            x, logits = self.x[:count].clone(), self.logits[:count].clone()
            out = torch.empty_like(x)
            quern.fused_moe(x, self.w1, self.w2, logits, TOPK, out=out)  # compiles
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                quern.fused_moe(x, self.w1, self.w2, logits, TOPK, out=out)
            for _ in range(3):
                x.copy_(self.draw(count, HIDDEN))
                logits.copy_(self.draw(count, E))
                graph.replay()
                torch.cuda.synchronize()
                self.near(out, oracle(x, self.w1, self.w2, *routed(logits, TOPK)))

    def test_counts_on_the_device_are_read_by_every_replay(self) -> None:
        a, counts = self.draw(E, 24, HIDDEN, dtype=self.wide), self.integers([24] * E)
        out = torch.zeros(E, 24, 2 * INTER, device="cuda", dtype=self.wide)
        quern.grouped_gemm(a, self.w1, counts=counts, out=out)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            quern.grouped_gemm(a, self.w1, counts=counts, out=out)
        for held in ([0] * E, [e % 25 for e in range(E)]):
            counts.copy_(self.integers(held))
            out.zero_()
            graph.replay()
            torch.cuda.synchronize()
            wanted = torch.einsum("emk,enk->emn", a.double(), self.w1.double())
            for e, count in enumerate(held):
                wanted[e, count:] = 0
            self.near(out, wanted)


# ---- A model -----------------------------------------------------------------------------------


class Experts(torch.nn.Module if torch else object):
    """A block as Qwen3-MoE has it: softmax of all, the best, their weights made to sum to 1."""

    def __init__(self, hidden: int, inter: int, experts: int, topk: int) -> None:
        super().__init__()
        self.topk = topk
        self.gate = torch.nn.Linear(hidden, experts, bias=False)
        self.gate_up_proj = torch.nn.Parameter(
            torch.randn(experts, 2 * inter, hidden) * hidden ** -0.5)
        self.down_proj = torch.nn.Parameter(torch.randn(experts, hidden, inter) * inter ** -0.5)

    def forward(self, hidden_states: Any) -> Any:
        x = hidden_states.flatten(0, -2)
        weights = torch.softmax(self.gate(x).float(), -1)
        weights, ids = torch.topk(weights, self.topk, -1)
        weights = (weights / weights.sum(-1, keepdim=True)).to(x.dtype)
        out = torch.zeros_like(x)
        for expert in ids.unique().tolist():
            tokens, places = torch.where(ids == expert)
            gate, up = torch.nn.functional.linear(x[tokens], self.gate_up_proj[expert]).chunk(2, -1)
            y = torch.nn.functional.linear(silu(gate) * up, self.down_proj[expert])
            out.index_add_(0, tokens, y * weights[tokens, places, None])
        return out.view(hidden_states.shape)


class QuernExperts(Experts):
    """The same block, by one call."""

    def forward(self, hidden_states: Any) -> Any:
        x = hidden_states.flatten(0, -2)
        out = quern.fused_moe(x, self.gate_up_proj, self.down_proj, self.gate(x), self.topk,
                              renormalize=True)
        return out.view(hidden_states.shape)


class Decoder(torch.nn.Module if torch else object):
    """A layer: attention with norms of queries and keys and rotary embedding, then experts."""

    def __init__(self, hidden: int, heads: int, kv_heads: int, block: Any) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.d = heads, kv_heads, 64
        self.qkv = torch.nn.Linear(hidden, (heads + 2 * kv_heads) * 64, bias=False)
        self.o = torch.nn.Linear(heads * 64, hidden, bias=False)
        self.norms = torch.nn.ModuleList(torch.nn.RMSNorm(n, eps=1e-6) for n in
                                         (hidden, hidden, 64, 64))
        self.block = block

    def rotated(self, x: Any) -> Any:
        s = x.shape[1]
        rate = 1e6 ** (-torch.arange(32, device=x.device, dtype=torch.float64) / 32)
        angle = torch.arange(s, device=x.device)[:, None] * rate
        cos, sin = (f(angle).to(x.dtype)[:, None] for f in (torch.cos, torch.sin))
        one, two = x.chunk(2, -1)
        return torch.cat([one * cos - two * sin, two * cos + one * sin], -1)

    def forward(self, x: Any) -> Any:
        qkv = self.qkv(self.norms[0](x)).unflatten(-1, (-1, self.d))
        q, k, v = qkv.split([self.heads, self.kv_heads, self.kv_heads], 2)
        q, k = self.rotated(self.norms[2](q)), self.rotated(self.norms[3](k))
        o = torch.nn.functional.scaled_dot_product_attention(
            *(y.transpose(1, 2) for y in (q, k, v)), is_causal=True, enable_gqa=True)
        x = x + self.o(o.transpose(1, 2).flatten(2))
        return x + self.block(self.norms[1](x))


class Model(torch.nn.Module if torch else object):
    """Two layers of a small Qwen3-MoE, at random."""

    def __init__(self, words: int = 97, hidden: int = 128) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(words, hidden)
        self.layers = torch.nn.ModuleList(
            Decoder(hidden, 4, 2, Experts(hidden, 64, 8, 2)) for _ in range(2))
        self.norm = torch.nn.RMSNorm(hidden, eps=1e-6)
        self.head = torch.nn.Linear(hidden, words, bias=False)

    def forward(self, words: Any) -> Any:
        x = self.embed(words)
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x))


def replace(model: Any) -> None:
    """Its blocks by quern, with their weights as they lie."""
    for layer in model.layers:
        layer.block.__class__ = QuernExperts


class Replaced:
    def test_each_block_is_the_models_own(self: Any) -> None:
        for dtype in self.dtypes:
            model = Model().to(self.device, dtype)
            words = torch.randint(97, (2, 19), device=self.device)
            seen: Any = []
            for layer in model.layers:
                layer.block.register_forward_hook(lambda block, given, _: seen.append(
                    (block, given[0].clone())))
            with self.subTest(dtype=dtype), torch.no_grad():
                model(words)
                self.assertEqual(len(seen), 2)
                replace(model)
                for block, x in list(seen):
                    flat = x.flatten(0, 1)
                    wanted = oracle(flat, block.gate_up_proj, block.down_proj,
                                    *routed(block.gate(flat), block.topk))
                    self.near(block(x).flatten(0, 1), wanted)

    def test_logits_are_the_models(self: Any) -> None:
        for dtype, tolerance in ((torch.float32, 1e-4), (torch.bfloat16, 4e-2)):
            if dtype not in self.dtypes:
                continue
            model = Model().to(self.device, dtype)
            words = torch.randint(97, (3, 40), device=self.device)
            with self.subTest(dtype=dtype), torch.no_grad():
                wanted = model(words)
                replace(model)
                self.near(model(words), wanted.double(), tolerance)

    def test_a_compiled_model_is_one_graph(self: Any) -> None:
        model = Model().to(self.device, self.wide)
        replace(model)
        words = torch.randint(97, (2, 11), device=self.device)
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        with torch.no_grad():
            self.near(compiled(words), model(words).double(), 1e-2)


@on_cpu
class ReplacedOnCpu(Replaced, Layers):
    pass


@on_cuda
class ReplacedOnCuda(Replaced, Layers):
    device = "cuda"


if __name__ == "__main__":
    common.main()
