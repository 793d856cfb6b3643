#!/usr/bin/env python3
"""KDA and GDN on PyTorch tensors: eager calls, operators, torch.compile, CUDA graphs, tuning.

    Eager, Traced      each on the CPU, where clang and LLVM are, and on a GPU
    Graphs             on a GPU only

Skipped whole where torch is missing. Data is random; QUERN_SEED repeats a run.
"""

from __future__ import annotations

from typing import Any

import common
import quern
from torch_test import BACKEND, Case, bits, on_cpu, on_cuda, torch

H, HV, K, V = 1, 2, 64, 64
LENGTHS = (70, 0, 33, 1)


def recurrence(q: Any, k: Any, v: Any, g: Any, beta: Any, state: Any) -> Any:
    """o and the state after, of one sequence, in float64."""
    q, k, v, g, beta, state = (x.double() for x in (q, k, v, g, beta, state))
    share, outputs = v.shape[1] // q.shape[1], []
    q, k = (x.repeat_interleave(share, 1) for x in (q, k))
    for t in range(len(q)):
        state = state * g[t].exp()[..., None]
        gap = v[t] - torch.einsum("hkv,hk->hv", state, k[t])
        state = state + k[t][..., None] * (beta[t][:, None] * gap)[:, None]
        outputs.append(torch.einsum("hkv,hk->hv", state, q[t]) * K**-0.5)
    return torch.stack(outputs) if outputs else v.new_zeros(v.shape), state


class Delta(Case):
    """Inputs of one call: packed, in bf16, with a pool of states."""

    def setUp(self) -> None:
        super().setUp()
        t = sum(LENGTHS)
        self.mixed = self.draw(t, 2 * H * K + HV * V, dtype=torch.bfloat16)
        q, k, v = self.mixed.split([H * K, H * K, HV * V], -1)
        self.q, self.k = q.unflatten(-1, (H, K)), k.unflatten(-1, (H, K))
        self.v = v.unflatten(-1, (HV, V))
        self.g = -self.draw(t, HV, K).exp() / 4
        self.beta = self.draw(t, HV).sigmoid()
        borders = [0, *torch.tensor(LENGTHS).cumsum(0).tolist()]
        self.cu_seqlens = torch.tensor(borders, dtype=torch.int32, device=self.device)
        self.slots = torch.tensor([5, 1, 6, 0], dtype=torch.int32, device=self.device)
        self.pool = torch.full((9, 2, HV, V, K), 1e30, device=self.device)[:, 1]  # a pitch of two
        self.pool[self.slots.long()] = self.draw(4, HV, V, K)

    @property
    def inputs(self) -> Any:
        return self.q, self.k, self.v, self.g, self.beta

    def wanted(self, decay: Any = None) -> Any:
        """o, and the pool's slots of the call, [V, K]."""
        norm = [x.double() / (x.double().square().sum(-1, keepdim=True) + 1e-6).sqrt()
                for x in (self.q, self.k)]
        inputs = *norm, self.v, self.g if decay is None else decay, self.beta
        outputs, after = [], []
        for i, slot in enumerate(self.slots.tolist()):
            begin, end = self.cu_seqlens[i:i + 2].tolist()
            o, state = recurrence(*(x[begin:end] for x in inputs), self.pool[slot].mT)
            outputs.append(o)
            after.append(state.mT)
        return torch.cat(outputs), torch.stack(after)

    def prefill(self, pool: Any, **options: Any) -> Any:
        return quern.kda_prefill(*self.inputs, cu_seqlens=self.cu_seqlens, states=pool,
                                 slots=self.slots, state_v_first=True,
                                 use_qk_l2norm_in_kernel=True, **options)

    def near(self, got: Any, wanted: Any, tolerance: float = 5e-3) -> None:
        self.assertEqual(got.shape, wanted.shape)
        error = (got.double() - wanted).norm() / wanted.norm()
        self.assertLess(error.item(), tolerance)  # NaN is not less

    def others_are_left(self, pool: Any) -> None:
        rest = pool.clone()
        rest[self.slots.long()] = 1e30
        self.assertTrue(torch.all(rest == 1e30).item())


class Eager:
    def test_views_of_a_convolution_and_a_pool_in_place(self: Any) -> None:
        wanted, after = self.wanted()
        pool = self.pool
        before = self.mixed.clone()
        o, final = self.prefill(pool)
        self.assertIsNone(final)
        self.assertEqual((o.dtype, o.is_contiguous()), (torch.bfloat16, True))
        self.near(o, wanted)
        self.near(pool[self.slots.long()], after)
        self.others_are_left(pool)
        self.assertTrue(torch.equal(self.mixed, before))

    def test_the_output_may_lie_on_v_among_such_views(self: Any) -> None:
        wanted, after = self.wanted()
        before = self.mixed.clone()
        o, _ = self.prefill(self.pool, out=self.v)
        self.assertIs(o, self.v)
        self.near(o, wanted)
        self.near(self.pool[self.slots.long()], after)
        self.others_are_left(self.pool)
        self.assertTrue(torch.equal(self.mixed[:, :2 * H * K], before[:, :2 * H * K]))

    def test_calls_go_as_flas(self: Any) -> None:
        batch = [x[:64].unflatten(0, (2, 32)).contiguous() for x in self.inputs]
        state = self.draw(2, HV, K, V)
        raw, rate, bias = self.draw(2, 32, HV, K), self.draw(HV), self.draw(HV * K)
        o, final = quern.kda_prefill(batch[0], batch[1], batch[2], raw, batch[4], A_log=rate,
                                     dt_bias=bias, initial_state=state, output_final_state=True,
                                     use_qk_l2norm_in_kernel=True, use_gate_in_kernel=True)
        log = -rate.double().exp()[:, None] * torch.nn.functional.softplus(
            raw.double() + bias.view(HV, K).double())
        q, k = (torch.nn.functional.normalize(x.double(), dim=-1) for x in batch[:2])
        for i in range(2):
            wanted, after = recurrence(q[i], k[i], batch[2][i], log[i], batch[4][i], state[i])
            self.near(o[i], wanted)
            self.near(final[i], after)

    def test_decode_continues_where_prefill_ended(self: Any) -> None:
        one = [x[:4] for x in self.inputs]
        states = self.pool[self.slots.long()].double()
        q, k = (torch.nn.functional.normalize(x.double(), dim=-1) for x in one[:2])
        for function, g, wide in (
                (quern.kda_decode, one[3], one[3]),
                (quern.gdn_decode, one[3][..., 0], one[3][..., :1].expand(4, HV, K))):
            pool = self.pool.clone()
            o, _ = function(*one[:3], g, one[4], states=pool, slots=self.slots,
                            state_v_first=True, use_qk_l2norm_in_kernel=True)
            for i in range(4):
                wanted, after = recurrence(*(x[i:i + 1] for x in (q, k, one[2], wide, one[4])),
                                           states[i].mT)
                self.near(o[i], wanted[0])
                self.near(pool[self.slots[i]], after.mT, 1e-4)
            self.others_are_left(pool)

    def test_gdn_has_one_decay_for_a_head(self: Any) -> None:
        wanted, after = self.wanted(self.g[..., :1].expand_as(self.g))
        pool = self.pool.clone()
        o, _ = quern.gdn_prefill(*self.inputs[:3], self.g[..., 0], self.beta,
                                 cu_seqlens=self.cu_seqlens, states=pool, slots=self.slots,
                                 state_v_first=True, use_qk_l2norm_in_kernel=True)
        self.near(o, wanted)
        self.near(pool[self.slots.long()], after)

    def test_tuning_leaves_the_pool_as_it_was(self: Any) -> None:
        before, mixed = self.pool.clone(), self.mixed.clone()
        arguments = {"states": self.pool, "slots": self.slots, "state_v_first": True,
                     "use_qk_l2norm_in_kernel": True, "max_configs": 3, "force": True}
        found = quern.tune("kda_prefill", *self.inputs, cu_seqlens=self.cu_seqlens, **arguments)
        self.assertGreater(found.candidates, 0)
        found = quern.tune("kda_decode", *(x[:4] for x in self.inputs), **arguments)
        self.assertGreater(found.candidates, 0)
        self.assertTrue(torch.equal(bits(self.pool), bits(before)))
        self.assertTrue(torch.equal(bits(self.mixed), bits(mixed)))

    def test_prepared_calls_go_on_with_the_pool(self: Any) -> None:
        one = [x[:4].clone() for x in self.inputs]
        options = {"slots": self.slots, "state_v_first": True, "use_qk_l2norm_in_kernel": True}
        pool, other = self.pool.clone(), self.pool.clone()
        step = quern.prepare("kda_decode", *one, states=pool, **options)
        for _ in range(3):
            one[2].copy_(self.draw(4, HV, V))
            o, _ = step()
            wanted, _ = quern.kda_decode(*one, states=other, **options)
            self.assertTrue(torch.equal(o, wanted))
            self.assertTrue(torch.equal(bits(pool), bits(other)))

    def test_tokens_of_no_sequence_are_zeros_on_any_stream(self: Any) -> None:
        some = self.cu_seqlens[2:4].clone()
        begin, end = some.tolist()
        streams: Any = [None]
        if self.device != "cpu":
            torch.cuda.synchronize()
            streams = [None, 0, torch.cuda.Stream()]
        for stream in streams:
            for function, g in ((quern.kda_prefill, self.g), (quern.gdn_prefill, self.g[..., 0])):
                o, _ = function(*self.inputs[:3], g, self.beta, cu_seqlens=some, stream=stream,
                                use_qk_l2norm_in_kernel=True)
                if self.device != "cpu":
                    torch.cuda.synchronize()
                self.assertFalse(o[:begin].any().item() or o[end:].any().item())
                self.assertTrue(o[begin:end].any().item())

    def test_a_step_is_the_three_calls(self: Any) -> None:
        x, width = self.mixed[:4], self.mixed.shape[-1]
        weight, windows = self.draw(width, 4), self.draw(9, 3, width, dtype=torch.bfloat16)
        z, scales = self.draw(4, HV, V, dtype=torch.bfloat16), self.draw(V)
        options = {"slots": self.slots, "state_v_first": True, "use_qk_l2norm_in_kernel": True}
        pool, other, moved = self.pool.clone(), self.pool.clone(), windows.clone()
        o = quern.kda_step(x, weight, self.g[:4], self.beta[:4], states=pool, conv_states=moved,
                           z=z, norm_weight=scales, **options)
        y = quern.causal_conv1d_update(x, windows, weight, slots=self.slots, activation="silu")
        q, k, v = y.split([H * K, H * K, HV * V], -1)
        wanted, _ = quern.kda_decode(q.unflatten(-1, (H, K)), k.unflatten(-1, (H, K)),
                                     v.unflatten(-1, (HV, V)), self.g[:4], self.beta[:4],
                                     states=other, **options)
        self.near(o, quern.gated_rmsnorm(wanted, z, scales).double())
        self.near(pool[self.slots.long()], other[self.slots.long()].double(), 1e-3)
        self.assertTrue(torch.equal(bits(moved), bits(windows)))
        self.others_are_left(pool)

    def test_what_is_around_is_right(self: Any) -> None:
        x = self.mixed[:64].view(2, 32, -1)
        weight, bias = self.draw(x.shape[-1], 4), self.draw(x.shape[-1])
        y, final = quern.causal_conv1d(x, weight, bias, activation="silu",
                                       output_final_state=True)
        filtered = torch.nn.functional.conv1d(
            torch.nn.functional.pad(x.double().mT, (3, 0)), weight.double()[:, None],
            bias.double(), groups=x.shape[-1]).mT
        self.near(y, torch.nn.functional.silu(filtered), 2.5e-3)
        self.assertTrue(torch.equal(final, x[:, -3:]))
        step = quern.causal_conv1d_update(x[:, 0], final.mT, weight, bias)
        self.assertEqual(step.shape, (2, x.shape[-1]))
        z, scales = self.draw(*self.v.shape, dtype=torch.bfloat16), self.draw(V)
        wide = self.v.double()
        norm = wide / (wide.square().mean(-1, keepdim=True) + 1e-5).sqrt() * scales.double()
        self.near(quern.gated_rmsnorm(self.v, z, scales), norm * z.double().sigmoid(), 2.5e-3)
        self.near(quern.l2norm(self.v), torch.nn.functional.normalize(wide, dim=-1), 2.5e-3)
        sums = quern.kda_gate_cumsum(self.g[:64])
        self.near(sums, self.g[:64].double().cumsum(0) / torch.log(torch.tensor(2.0)).item(), 1e-5)

    def test_a_tensor_is_no_flag_and_no_number(self: Any) -> None:
        for name in ("output_final_state", "use_qk_l2norm_in_kernel", "state_v_first"):
            with self.error(f"^{name}=<Tensor>: must be True or False"):
                quern.kda_prefill(*self.inputs, **{name: torch.tensor(True)})
        with self.error("^scale=<Tensor>: must be a number"):
            quern.kda_decode(*self.inputs, scale=torch.tensor(0.5))

    def test_gradients_and_devices_are_named(self: Any) -> None:
        with self.error("^beta: requires grad"):
            quern.kda_prefill(*self.inputs[:4], self.beta.requires_grad_())
        if self.device != "cpu":
            with self.error("^slots: on cpu: must be on cuda:0, as q is"):
                quern.kda_prefill(*self.inputs[:4], self.beta.detach(), states=self.pool,
                                  slots=self.slots.cpu())


@on_cpu
class EagerOnCpu(Eager, Delta):
    pass


@on_cuda
class EagerOnCuda(Eager, Delta):
    device = "cuda"


class Traced:
    def setUp(self: Any) -> None:
        super().setUp()
        torch._dynamo.reset()

    def test_opcheck_finds_nothing(self: Any) -> None:
        ops, check = torch.ops.quern, torch.library.opcheck
        one, inputs, scalar = [x[:4] for x in self.inputs], self.inputs, self.g[..., 0]
        norm = {"use_qk_l2norm_in_kernel": True}
        pool = {"states": self.pool, "slots": self.slots, "state_v_first": True, **norm}
        out, cu, x = torch.empty_like(self.v), {"cu_seqlens": self.cu_seqlens}, self.mixed
        weight, states = self.draw(x.shape[-1], 4), self.draw(4, 3, x.shape[-1], dtype=x.dtype)
        for op, args, kwargs in (
            (ops.kda_prefill, inputs, {"output_final_state": True, **cu, **norm}),
            (ops.kda_prefill, inputs, {"scale": 0.5, **norm}),
            (ops.kda_prefill_out, (*inputs, out), {**pool, **cu}),
            (ops.gdn_prefill, (*inputs[:3], scalar, inputs[4]), norm),
            (ops.kda_decode, one, {"output_final_state": True}),
            (ops.kda_decode_out, (*one, out[:4]), pool),
            (ops.gdn_decode_out, (*one[:3], scalar[:4], one[4], out[:4]), pool),
            (ops.causal_conv1d, (x, weight), {"activation": "silu", "output_final_state": True}),
            (ops.causal_conv1d_update_out, (x[:4], weight, torch.empty_like(x[:4]), states), {}),
            (ops.kda_step_out, (x[:4], weight, self.g[:4], self.beta[:4], self.slots,
                                torch.empty_like(one[2]), self.draw(9, 3, x.shape[-1],
                                                                    dtype=x.dtype), self.pool),
             {"state_v_first": True, **norm}),
            (ops.l2norm, (self.v,), {}),
            (ops.gated_rmsnorm, (self.v, out.normal_(), self.draw(V)), {"activation": "silu"}),
            (ops.kda_gate_cumsum, (self.g,), cu),
        ):
            with self.subTest(op=str(op), kwargs=list(kwargs)):
                check(op.default, tuple(args), kwargs)

    def test_a_layer_is_one_graph_and_writes_its_pools(self: Any) -> None:
        def layer(x: Any, weight: Any, convolved: Any, pool: Any, g: Any, beta: Any) -> Any:
            x, _ = quern.causal_conv1d(x, weight, activation="silu", cu_seqlens=self.cu_seqlens,
                                       states=convolved, slots=self.slots)
            q, k, v = x.split([H * K, H * K, HV * V], -1)
            v = v.unflatten(-1, (HV, V))
            o, _ = quern.kda_prefill(q.unflatten(-1, (H, K)), k.unflatten(-1, (H, K)), v, g, beta,
                                     cu_seqlens=self.cu_seqlens, states=pool, slots=self.slots,
                                     state_v_first=True, use_qk_l2norm_in_kernel=True)
            return quern.gated_rmsnorm(o, v, torch.ones(V, device=o.device)) + 1

        width = self.mixed.shape[-1]
        weight, windows = self.draw(width, 4), self.draw(9, 3, width, dtype=torch.bfloat16)
        results = []
        backend = BACKEND if self.device == "cuda" else "aot_eager"  # inductor takes a minute there
        for function in (layer, torch.compile(layer, fullgraph=True, backend=backend)):
            pools = windows.clone(), self.pool.clone()
            with torch.no_grad():
                out = function(self.mixed, weight, *pools, self.g, self.beta)
            results.append((out, *pools))
        for eager, compiled in zip(*results):
            self.assertTrue(torch.equal(bits(eager), bits(compiled)))
        self.assertFalse(torch.equal(results[0][2], self.pool))

    def test_final_states_are_made_beside_an_out_that_is_given(self: Any) -> None:
        cu, before = self.cu_seqlens, self.draw(4, HV, V, K, dtype=torch.bfloat16)
        packed, one = self.inputs, [x[:4] for x in self.inputs]
        batch = [x[:40].unflatten(0, (2, 20)) for x in self.inputs]
        weight, x = self.draw(self.mixed.shape[-1], 4), self.mixed
        made = {"output_final_state": True}

        def layer(*outs: Any) -> Any:
            return (*quern.kda_prefill(*packed, cu_seqlens=cu, out=outs[0], **made),
                    *quern.kda_prefill(*packed, cu_seqlens=cu, initial_state=before, out=outs[1],
                                       state_v_first=True, **made),
                    *quern.kda_prefill(*batch, out=outs[2], **made),
                    *quern.kda_decode(*one, out=outs[3], **made),
                    *quern.causal_conv1d(x, weight, out=outs[4], **made),
                    *quern.kda_prefill(*packed, out=outs[5]))

        shapes = self.v, self.v, batch[2], one[2], x, self.v
        results = []
        for function in (layer, torch.compile(layer, fullgraph=True, backend="aot_eager")):
            outs = [torch.empty(like.shape, dtype=like.dtype, device=like.device)
                    for like in shapes]
            with torch.no_grad():
                results.append(function(*outs))
        self.assertIsNone(results[1][-1])
        self.assertEqual(results[1][3].dtype, torch.bfloat16)
        for eager, compiled in zip(results[0][:-1], results[1]):
            self.assertTrue(torch.equal(bits(eager), bits(compiled)))

    def test_states_of_chunks_may_be_asked_for(self: Any) -> None:
        def layer(kept: Any) -> Any:
            return quern.kda_prefill(*self.inputs, cu_seqlens=self.cu_seqlens, chunk_states=kept,
                                     use_qk_l2norm_in_kernel=True, output_final_state=True)

        rows = len(self.v) // 64 + len(LENGTHS)
        results = []
        for function in (layer, torch.compile(layer, fullgraph=True, backend="aot_eager")):
            kept = torch.zeros(rows, HV, K, V, dtype=torch.bfloat16, device=self.device)
            with torch.no_grad():
                results.append((*function(kept), kept))
        for eager, compiled in zip(*results):
            self.assertTrue(torch.equal(bits(eager), bits(compiled)))

    def test_tokens_of_no_sequence_are_zeros(self: Any) -> None:
        some = self.cu_seqlens[2:4].clone()  # of 70 up to 103
        begin, end = some.tolist()
        for chunks in (False, True):  # with them it is the operator that writes to an out
            rows = len(self.v) // 64 + 1
            kept = (torch.zeros(rows, HV, K, V, dtype=self.v.dtype, device=self.device)
                    if chunks else None)
            function = torch.compile(
                lambda kept: quern.kda_prefill(*self.inputs, cu_seqlens=some, chunk_states=kept),
                fullgraph=True, backend="aot_eager")
            with torch.no_grad():
                o, _ = function(kept)
            self.assertFalse(o[:begin].any().item() or o[end:].any().item())
            self.assertTrue(o[begin:end].any().item())

    def test_a_step_is_one_operator(self: Any) -> None:
        slots, width = self.slots, self.mixed.shape[-1]
        weight, windows = self.draw(width, 4), self.draw(9, 3, width, dtype=torch.bfloat16)
        z, scales = self.draw(4, HV, V, dtype=torch.bfloat16), self.draw(V)
        pool = self.pool.clone()

        def layer(states: Any, conv_states: Any) -> Any:
            o = quern.kda_step(self.mixed[:4], weight, self.g[:4], self.beta[:4], states=states,
                               conv_states=conv_states, slots=slots, state_v_first=True,
                               use_qk_l2norm_in_kernel=True)
            return o, quern.kda_step(self.mixed[:4], weight, self.g[:4, :, 0].contiguous(),
                                     self.beta[:4], states=states, conv_states=conv_states,
                                     slots=slots, state_v_first=True, z=z, norm_weight=scales,
                                     activation=None, use_qk_l2norm_in_kernel=True)

        results = []
        for function in (layer, torch.compile(layer, fullgraph=True, backend="aot_eager")):
            pools = pool.clone(), windows.clone()
            with torch.no_grad():
                results.append((*function(*pools), *pools))
        for eager, compiled in zip(*results):
            self.assertTrue(torch.equal(bits(eager), bits(compiled)))
        self.assertEqual(results[1][0].shape, (4, HV, V))
        self.assertFalse(torch.equal(results[1][2], pool))

    def test_sizes_may_be_dynamic(self: Any) -> None:
        graphs = []

        def count(graph: Any, _inputs: Any) -> Any:
            graphs.append(graph)
            return graph

        def layer(q: Any, k: Any, v: Any, g: Any, beta: Any) -> Any:
            o, final = quern.kda_prefill(q, k, v, g, beta, output_final_state=True)
            return o + 1, final

        compiled = torch.compile(layer, backend=count, dynamic=True)
        for t in (20, 35, 64):
            inputs = [x[:t] for x in self.inputs]
            for eager, traced in zip(layer(*inputs), compiled(*inputs)):
                self.assertTrue(torch.equal(eager, traced))
        self.assertEqual(len(graphs), 1)
        self.assertIn("quern.kda_prefill", graphs[0].code)

    def test_mistakes_are_named_while_tracing(self: Any) -> None:
        def prefill(**changed: Any) -> Any:
            given = dict(zip(("q", "k", "v", "g", "beta"), self.inputs))
            given.update(changed)
            return torch.compile(lambda: quern.kda_prefill(**given), fullgraph=True,
                                 backend="eager")()

        for text, changed in (
            (r"k: shape \(104, 64\): must be", {"k": self.k[:, 0]}),
            ("v: dtype f32: must be bf16", {"v": self.v.float()}),
            ("beta: requires grad", {"beta": self.beta.clone().requires_grad_()}),
            ("slots: must be given with states", {"states": self.pool}),
            ("A_log: must be given", {"use_gate_in_kernel": True}),
            ("output_final_state: must not be given with states",
             {"states": self.pool, "slots": self.slots, "output_final_state": True}),
            ("states: must be given with slots", {"slots": self.slots, "out": self.v}),
            ("scale: must be a number of Python's", {"scale": "0.5"}),
            ("lower_bound: must be a number of Python's", {"lower_bound": self.beta}),
            ("safe_gate: must be True or False", {"safe_gate": self.beta > 1}),
            ("output_final_state: must be True or False", {"output_final_state": "yes"}),
            ("q: dtype f64: must be one of", {"q": self.q.double(), "out": self.v,
                                              "output_final_state": True}),
        ):
            with self.subTest(text), self.assertRaisesRegex(Exception, text):
                torch._dynamo.reset()
                prefill(**changed)


@on_cpu
class TracedOnCpu(Traced, Delta):
    pass


@on_cuda
class TracedOnCuda(Traced, Delta):
    device = "cuda"


@on_cuda
class Graphs(Delta):
    device = "cuda"

    def test_a_step_replays_on_the_pool(self) -> None:
        one = [x[:4].clone() for x in self.inputs]
        options: Any = {"slots": self.slots, "state_v_first": True,
                        "use_qk_l2norm_in_kernel": True}
        pool, other, out = self.pool.clone(), self.pool.clone(), torch.empty_like(one[2])
        quern.kda_decode(*one, states=pool, out=out, **options)  # compiles
        pool.copy_(self.pool)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            quern.kda_decode(*one, states=pool, out=out, **options)
        for _ in range(3):
            one[2].copy_(self.draw(4, HV, V))
            graph.replay()
            wanted, _ = quern.kda_decode(*one, states=other, **options)
            torch.cuda.synchronize()
            self.assertTrue(torch.equal(out, wanted))
            self.assertTrue(torch.equal(bits(pool), bits(other)))

    def test_a_prefill_replays_with_other_borders(self) -> None:
        pool, other = self.pool.clone(), self.pool.clone()
        out = torch.empty(self.v.shape, device="cuda", dtype=self.v.dtype)
        self.prefill(pool, out=out)
        pool.copy_(self.pool)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.prefill(pool, out=out)
        for borders in ([0, 70, 70, 103, 104], [0, 1, 64, 100, 104]):
            self.cu_seqlens.copy_(torch.tensor(borders, dtype=torch.int32))
            graph.replay()
            wanted, _ = self.prefill(other)
            torch.cuda.synchronize()
            self.assertTrue(torch.equal(out, wanted))
            self.assertTrue(torch.equal(bits(pool), bits(other)))


if __name__ == "__main__":
    common.main()
