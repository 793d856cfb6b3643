#!/usr/bin/env python3
"""quern on PyTorch tensors: eager calls, operators, torch.compile, streams, CUDA graphs, memory.

    Eager, Prepared, Refused    each on the CPU, where clang and LLVM are, and on a GPU
    Compiled                    likewise, with inductor where there is a C++ compiler
    Operators                   opcheck and fake implementations
    Streams, Graphs, Memory     on a GPU only

Skipped whole where torch is missing. Data is random; QUERN_SEED repeats a run. What inductor
compiles is kept in a temporary folder.
"""

from __future__ import annotations

import logging
import os
import random
import re
import shutil
import threading
import unittest
import warnings
from typing import Any
from unittest import mock

import common  # first: it finds the package and the library
import quern

os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(common.FOLDER / "inductor")

try:
    import torch
except ImportError:
    torch = None
else:
    import quern.torch_ops  # noqa: F401  (torch.ops.quern)

HAS_CUDA = torch is not None and torch.cuda.is_available()
# Inductor needs g++ on the CPU, Triton a C compiler on a GPU; tracing needs neither.
HAS_COMPILER = all(map(shutil.which, ("gcc", "g++")))
BACKEND = "inductor" if HAS_COMPILER else "aot_eager"
HAS_SPLIT_K = HAS_CUDA and torch.cuda.get_device_capability() >= (8, 0)
GUARD = 7.0
M, N, K = 48, 80, 96
# A config of gemm_sm80 that sums shares of k in a workspace.
SPLIT_K = "bm=64,bn=64,bk=64,warps_m=2,warps_n=2,stages=4,split_k=4,group=1"

on_cuda = unittest.skipUnless(HAS_CUDA, "no GPU that torch can use")
on_cpu = unittest.skipUnless(quern.doctor()["cpu"]["usable"] == "yes", "no compiler for the CPU")


@unittest.skipIf(torch is None, "torch is not installed")
class Case(common.Case):
    device = "cpu"

    def setUp(self) -> None:
        torch.manual_seed(common.SEED)
        random.seed(common.SEED)

    def draw(self, *shape: int, dtype: Any = None) -> Any:
        return torch.randn(shape, device=self.device).to(dtype or torch.float32)

    def factors(self, dtype: Any = None, m: int = M, n: int = N, k: int = K) -> Any:
        return self.draw(m, k, dtype=dtype), self.draw(n, k, dtype=dtype)

    def assertClose(self, out: Any, reference: Any, k: int = K) -> None:
        """Relative error in the norm, within the family's tolerance (templates/gemm/README.md)."""
        self.assertEqual(tuple(out.shape), tuple(reference.shape))
        wide = max(2e-6, 5e-8 * k**0.5)
        tolerance = {"torch.bfloat16": 2.5e-3, "torch.float16": 4e-4}.get(str(out.dtype), wide)
        error = (out.double() - reference).norm() / reference.norm()
        self.assertLess(error.item(), tolerance)  # NaN is not less

    def error(self, pattern: str) -> Any:
        return self.assertRaisesRegex(quern.Error, pattern)


def product(a: Any, b: Any, bias: Any = None, old: Any = None) -> Any:
    """a b^T (+ bias) (+ old) in float64."""
    d = a.double() @ b.double().mT
    for term in (bias, old):
        d = d if term is None else d + term.double()
    return d


def guarded(rows: int, columns: int, device: str, dtype: Any) -> Any:
    """A NaN-filled [rows, columns] view and the larger tensor around it, elsewhere GUARD."""
    around = torch.full((rows + 2, columns + 16), GUARD, device=device, dtype=dtype)
    view = around[1:-1, 8:-8]
    view.fill_(float("nan"))
    return view, around


# ---- Eager calls -------------------------------------------------------------------------------


class Eager:
    def test_products_are_right_in_every_dtype(self: Any) -> None:
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            with self.subTest(dtype=dtype):
                a, b = self.factors(dtype)
                d = quern.gemm(a, b)
                self.assertEqual((d.dtype, d.device), (dtype, a.device))
                self.assertTrue(d.is_contiguous())
                self.assertClose(d, product(a, b))

    def test_sizes_may_be_any(self: Any) -> None:
        m, n, k = (random.randint(16, 64) for _ in range(3))
        a, b = self.factors(torch.bfloat16, m, n, k)
        self.assertClose(quern.gemm(a, b, out_dtype=torch.float32), product(a, b))

    def test_out_dtype_may_be_wider_and_named(self: Any) -> None:
        a, b = self.factors(torch.bfloat16)
        for wanted in (torch.float32, "f32"):
            d = quern.gemm(a, b, out_dtype=wanted)
            self.assertEqual(d.dtype, torch.float32)
            self.assertClose(d, product(a, b))

    def test_out_is_written_and_nothing_beside_it(self: Any) -> None:
        a, b = self.factors(torch.bfloat16)
        out, around = guarded(M, N, self.device, torch.bfloat16)
        self.assertIs(quern.gemm(a, b, out), out)
        self.assertClose(out, product(a, b))
        out.fill_(GUARD)
        self.assertTrue(torch.all(around == GUARD).item())

    def test_bias_and_accumulate_are_added(self: Any) -> None:
        a, b = self.factors()
        bias, old = self.draw(N), self.draw(M, N)
        out = old.clone()
        quern.gemm(a, b, out, bias=bias, accumulate=True)
        self.assertClose(out, product(a, b, bias, old))

    def test_batches_may_share_weights(self: Any) -> None:
        a, b = self.draw(3, M, K), self.draw(3, N, K)
        self.assertClose(quern.gemm(a, b), product(a, b))
        shared = b[0].expand(3, N, K)
        self.assertClose(quern.gemm(a, shared), product(a, shared))

    def test_rows_may_have_any_stride_and_offset(self: Any) -> None:
        a = self.draw(M, 2 * K + 1, dtype=torch.bfloat16)[:, 1 : K + 1]
        b = self.draw(2 * N, K, dtype=torch.bfloat16)[::2]
        self.assertClose(quern.gemm(a, b), product(a, b))

    def test_transposed_b_is_the_other_layout(self: Any) -> None:
        a, b = self.factors()
        stored = b.mT.contiguous()
        self.assertClose(quern.gemm(a, stored.mT), product(a, b))
        self.assertClose(quern.gemm(a, stored, layout="nn"), product(a, b))
        self.assertClose(quern.gemm(a, b.mT, layout="nn"), product(a, b))

    def test_no_rows_and_no_sums_are_no_error(self: Any) -> None:
        b = self.draw(N, K)
        self.assertEqual(quern.gemm(self.draw(0, K), b).shape, (0, N))
        nothing = quern.gemm(self.draw(M, 0), self.draw(N, 0))
        self.assertTrue(torch.equal(nothing, torch.zeros_like(nothing)))

    def test_copy_scales_and_adds(self: Any) -> None:
        x, out = self.draw(1000), self.draw(1000)
        self.assertTrue(torch.equal(quern.copy(x), x))
        self.assertTrue(torch.equal(quern.copy(x, alpha=0.5), 0.5 * x))
        expected = out + 0.5 * x
        quern.copy(x, out, alpha=0.5, inplace=True)
        self.assertClose(out, expected.double())

    def test_parameters_are_taken_without_gradients(self: Any) -> None:
        a, b = self.factors()
        weight = torch.nn.Parameter(b)
        with torch.no_grad():
            self.assertClose(quern.gemm(a, weight), product(a, b))
        with torch.inference_mode():
            self.assertClose(quern.gemm(a, weight), product(a, b))

    def test_backward_notices_what_was_overwritten(self: Any) -> None:
        a, b = self.factors()
        saved = torch.zeros(M, N, device=self.device)
        loss = (saved * self.draw(M, N).requires_grad_()).sum()
        quern.gemm(a, b, saved)
        with self.assertRaisesRegex(RuntimeError, "modified by an inplace operation"):
            loss.backward()

    def test_threads_do_not_disturb_each_other(self: Any) -> None:
        work = [self.factors(m=M + i) for i in range(4)]
        outs: list[Any] = [None] * len(work)

        def multiply(i: int) -> None:
            for _ in range(50):
                outs[i] = quern.gemm(*work[i])

        threads = [threading.Thread(target=multiply, args=(i,)) for i in range(len(work))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for (a, b), out in zip(work, outs):
            self.assertClose(out, product(a, b))

    def test_tuning_leaves_tensors_as_they_were(self: Any) -> None:
        a, b = self.factors(torch.bfloat16, m=64)
        out, around = guarded(64, N, self.device, torch.bfloat16)
        before = [tensor.clone() for tensor in (a, b, around)]
        found = quern.tune("gemm", a, b, out=out, max_configs=3, force=True)
        self.assertGreater(found.candidates, 0)
        for tensor, old in zip((a, b, around), before):
            self.assertTrue(torch.equal(bits(tensor), bits(old)))
        self.assertClose(quern.gemm(a, b, out), product(a, b))


def bits(tensor: Any) -> Any:
    """So that NaNs compare."""
    return tensor.contiguous().view(torch.int16 if tensor.element_size() == 2 else torch.int32)


@on_cpu
class EagerOnCpu(Eager, Case):
    pass


@on_cuda
class EagerOnCuda(Eager, Case):
    device = "cuda"


# ---- Prepared callables ------------------------------------------------------------------------


class Prepared:
    def test_repeated_call_sees_new_data(self: Any) -> None:
        a, b = self.factors(torch.bfloat16)
        out = torch.empty(M, N, device=self.device, dtype=torch.bfloat16)
        multiply = quern.prepare("gemm", a, b, out=out)
        for _ in range(3):
            a.copy_(self.draw(M, K))
            self.assertIs(multiply(), out)
            self.assertClose(out, product(a, b))

    def test_tensors_may_be_replaced_by_like_ones(self: Any) -> None:
        a, b = self.factors()
        out = torch.empty(M, N, device=self.device)
        multiply = quern.prepare("gemm", a, b, out=out)
        a2, out2 = self.draw(M, K), torch.full_like(out, float("nan"))
        multiply(a=a2, out=out2)
        self.assertClose(out2, product(a2, b))
        with self.error(r"^a: shape"):
            multiply(a=self.draw(M, K + 1))
        with self.error(r"^a: dtype"):
            multiply(a=a2.to(torch.float16))

    def test_its_memory_outlives_what_the_tensors_are_given(self: Any) -> None:
        x, w = self.draw(8, 512), torch.nn.Parameter(self.draw(512, 512), requires_grad=False)
        out = torch.empty(8, 512, device=self.device)
        multiply, wanted = quern.prepare("gemm", x, w, out=out), product(x, w)
        w.data = torch.zeros(4, 4, device=self.device)
        taken = [torch.zeros(512, 512, device=self.device) for _ in range(4)]
        multiply()
        self.assertClose(out, wanted, k=512)
        self.assertEqual(len(taken), 4)

    def test_replaced_outputs_are_noted_and_of_the_same_library(self: Any) -> None:
        a, b = self.factors()
        weight = torch.ones(M, N, device=self.device, requires_grad=True)
        out = torch.empty(M, N, device=self.device)
        multiply = quern.prepare("gemm", a, b, out=out)
        other = torch.ones_like(out)
        loss = (weight * other).sum()
        multiply(a=a, out=other)
        with self.assertRaisesRegex(RuntimeError, "modified by an inplace"):
            loss.backward()
        if self.device == "cpu":
            before = out.clone()
            with self.error("out: an array of numpy: must be torch, as prepared"):
                multiply(out=out.numpy())
            with self.error("a: an array of torch: must be numpy, as prepared"):
                quern.prepare("gemm", a.numpy(), b.numpy())(a=a)
            self.assertTrue(torch.equal(bits(out), bits(before)))

    def test_threads_may_share_one(self: Any) -> None:
        a, b = self.factors()
        multiply = quern.prepare("gemm", a, b, out=torch.empty(M, N, device=self.device))
        work = [(self.draw(M, K), torch.empty(M, N, device=self.device)) for _ in range(4)]

        def repeat(x: Any, y: Any) -> None:
            for _ in range(50):
                multiply(a=x, out=y)

        threads = [threading.Thread(target=repeat, args=pair) for pair in work]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for x, y in work:
            self.assertClose(y, product(x, b))


@on_cpu
class PreparedOnCpu(Prepared, Case):
    pass


@on_cuda
class PreparedOnCuda(Prepared, Case):
    device = "cuda"


# ---- Bad input ---------------------------------------------------------------------------------


class Refused:
    def test_memory_that_is_none(self: Any) -> None:
        a, b = self.factors()
        freed = a.clone()
        freed.untyped_storage().resize_(0)
        negated = torch.view_as_complex(self.draw(M, K, 2)).conj().imag
        for name, wrong, pattern in (
            ("freed", freed, r"^a: its memory was freed"),
            ("meta", a.to("meta"), r"^a: is a meta tensor"),
            ("sparse", a.to_sparse(), r"^a: layout sparse_coo"),
            ("negated", negated, r"^a: is a lazy negation"),
        ):
            with self.subTest(name), self.error(pattern):
                quern.gemm(wrong, b)

    def test_fake_and_wrapped_tensors(self: Any) -> None:
        a, b = self.factors()
        from torch._subclasses.fake_tensor import FakeTensorMode

        with FakeTensorMode() as mode:
            fake = mode.from_tensor(a)
        with self.error(r"^a: is a fake tensor"):
            quern.gemm(fake, b)
        with self.error(r"^a: has no memory of its own"):
            torch.vmap(lambda row: quern.gemm(row, b))(a.view(2, M // 2, K))

    def test_dtypes_and_shapes(self: Any) -> None:
        a, b = self.factors()
        for pattern, call in (
            (r"^a: dtype complex64", lambda: quern.gemm(a.to(torch.complex64), b)),
            (r"^a: dtype i64", lambda: quern.gemm(a.long(), b)),
            (r"^b: shape \(80, 95\)", lambda: quern.gemm(a, b[:, 1:])),
            (r"^out: shape", lambda: quern.gemm(a, b, a)),
            (r"^bias: shape", lambda: quern.gemm(a, b, bias=self.draw(N + 1))),
            (r"^a: ", lambda: quern.gemm(a[0], b)),
            (r"^a: strides", lambda: quern.gemm(self.draw(M, 2 * K)[:, ::2], b)),
        ):
            with self.subTest(pattern), self.error(pattern):
                call()

    def test_dtypes_have_the_librarys_names(self: Any) -> None:
        from quern import _torch

        for name in ("f32", "bf16", "f16", "f64", "e4m3", "e5m2", "i8", "u8", "i32", "i64"):
            tensor = torch.empty(3, dtype=_torch.dtype_of(name), device=self.device)
            described = quern._arrays.describe("tensor", tensor)
            self.assertEqual(described.dtype, name)
            self.assertEqual(described.device.partition(":")[0], self.device)
        with self.error("dtype none: "):
            _torch.dtype_of("none")

    def test_dtypes_and_devices_of_torch_are_words(self: Any) -> None:
        viewed = quern.view(torch.zeros(4, 8, dtype=torch.int16, device=self.device),
                            torch.bfloat16)
        self.assertEqual(viewed.dtype, "bf16")
        kinds = dict.fromkeys("abd", torch.bfloat16)
        found = quern.tune("gemm", m=16, n=16, k=32, **kinds, max_configs=1,
                           device=torch.device(self.device))
        self.assertIn("a=bf16 b=bf16 d=bf16", found.bucket)
        with quern.Context(torch.device(self.device), cache="") as context:
            self.assertEqual(context.device.partition(":")[0], self.device)

    def test_gradients(self: Any) -> None:
        a, b = self.factors()
        with self.error(r"^b: requires grad: .*no_grad"):
            quern.gemm(a, b.requires_grad_())
        with self.error(r"^x: requires grad"):
            quern.copy(self.draw(8).requires_grad_())


@on_cpu
class RefusedOnCpu(Refused, Case):
    pass


@on_cuda
class RefusedOnCuda(Refused, Case):
    device = "cuda"

    def test_tensors_elsewhere(self) -> None:
        a, b = self.factors()
        with self.error(r"^b: on cpu: must be on cuda:0, as a is"):
            quern.gemm(a, b.cpu())
        with self.error(r"^out: on cpu: must be on cuda:0"):
            quern.gemm(a, b, torch.empty(M, N))
        multiply = quern.prepare("gemm", a, b, out=self.draw(M, N))
        with self.error(r"^a: on cpu"):
            multiply(a=a.cpu())

    @unittest.skipUnless(HAS_CUDA and torch.cuda.device_count() > 1, "one GPU only")
    def test_second_gpu_has_its_own_context(self) -> None:
        a, b = (tensor.to("cuda:1") for tensor in self.factors())
        d = quern.gemm(a, b)
        self.assertEqual(d.device.index, 1)
        self.assertClose(d, product(a, b))
        with self.error(r"^b: on cuda:0: must be on cuda:1"):
            quern.gemm(a, b.to("cuda:0"))


# ---- torch.compile -----------------------------------------------------------------------------


class Compiled:
    """Each test starts with dynamo as new, so that recompiles of others do not count."""

    def setUp(self: Any) -> None:
        super().setUp()
        torch._dynamo.reset()

    def test_call_is_part_of_one_graph(self: Any) -> None:
        def layer(x: Any, w: Any, bias: Any) -> Any:
            return torch.relu(quern.gemm(x * 2, w, bias=bias)) + 1

        x, w = self.factors(torch.bfloat16)
        bias = self.draw(N)
        compiled = torch.compile(layer, fullgraph=True, backend=BACKEND)
        for _ in range(2):
            x = self.draw(M, K, dtype=torch.bfloat16)
            with torch.no_grad():
                self.assertTrue(torch.equal(compiled(x, w, bias), layer(x, w, bias)))

    def test_sizes_may_be_dynamic(self: Any) -> None:
        graphs = []

        def count(graph: Any, _inputs: Any) -> Any:
            graphs.append(graph)
            return graph

        multiply = torch.compile(lambda x, w: quern.gemm(x, w) + 1, backend=count, dynamic=True)
        _, w = self.factors()
        for m in random.sample(range(2, 64), 3):
            x = self.draw(m, K)
            self.assertClose(multiply(x, w), product(x, w) + 1)
        self.assertEqual(len(graphs), 1)
        self.assertIn("quern.gemm", graphs[0].code)

    def test_dynamic_sizes_reach_inductor(self: Any) -> None:
        multiply = torch.compile(
            lambda x, w: quern.gemm(x, w, out_dtype="f32").sum(0),
            dynamic=True,
            fullgraph=True,
            backend=BACKEND,
        )
        _, w = self.factors(torch.bfloat16)
        for m in random.sample(range(17, 64), 2):
            x = self.draw(m, K, dtype=torch.bfloat16)
            self.assertClose(multiply(x, w), product(x, w).sum(0))

    def test_out_and_accumulate_write_in_place(self: Any) -> None:
        def step(x: Any, w: Any, total: Any) -> Any:
            quern.gemm(x, w, total, accumulate=True)
            return total * 2

        x, w = self.factors()
        total = self.draw(M, N)
        expected = product(x, w, old=total)
        doubled = torch.compile(step, fullgraph=True, backend=BACKEND)(x, w, total)
        self.assertClose(total, expected)
        self.assertClose(doubled, 2 * expected)

    def test_transposed_weights_stay_views(self: Any) -> None:
        x, w = self.factors()
        multiply = torch.compile(
            lambda x, w: quern.gemm(x, w.mT, layout="nn"), fullgraph=True, backend=BACKEND
        )
        self.assertClose(multiply(x, w), product(x, w))

    def test_copy_is_an_operator_too(self: Any) -> None:
        def scaled(x: Any, out: Any) -> Any:
            quern.copy(x, out, alpha=0.5, inplace=True)
            return quern.copy(x + 1, alpha=2.0)

        x, out = self.draw(100), self.draw(100)
        expected = out + 0.5 * x
        doubled = torch.compile(scaled, fullgraph=True, backend=BACKEND)(x, out)
        self.assertClose(out, expected.double())
        self.assertClose(doubled, 2 * (x + 1).double())

    def test_wrong_shapes_are_named_while_tracing(self: Any) -> None:
        a, b = self.factors()
        with self.assertRaisesRegex(Exception, r"b: shape \(80, 95\): must be \(80, 96\)"):
            torch.compile(quern.gemm, fullgraph=True)(a, b[:, 1:])

    def test_gradients_are_refused_while_tracing(self: Any) -> None:
        a, b = self.factors()
        with self.assertRaisesRegex(Exception, "b: requires grad"):
            torch.compile(lambda a, b: quern.gemm(a, b), fullgraph=True)(a, b.requires_grad_())

    def test_other_contexts_are_called_outside_of_graphs(self: Any) -> None:
        a, b = self.factors()
        with quern.Context(device=self.device) as ctx:
            multiply = torch.compiler.disable(lambda a, b: quern.gemm(a, b, context=ctx))
            compiled = torch.compile(lambda a, b: multiply(a, b) + 1, backend=BACKEND)
            self.assertClose(compiled(a, b), product(a, b) + 1)


@on_cpu
class CompiledOnCpu(Compiled, Case):
    def test_order_of_imports_does_not_matter(self) -> None:
        program = (
            "import quern, torch\n"
            "f = torch.compile(lambda a, b: quern.gemm(a, b), fullgraph=True, backend='eager')\n"
            "a, b = torch.randn(4, 8), torch.randn(6, 8)\n"
            "assert torch.allclose(f(a, b), a @ b.T, atol=1e-5)\n"
        )
        done = common.run_python(program)
        self.assertEqual(done.returncode, 0, done.stderr)


@on_cuda
class CompiledOnCuda(Compiled, Case):
    device = "cuda"

    @unittest.skipUnless(HAS_COMPILER, "inductor needs gcc and g++")
    def test_reduce_overhead_replays_a_graph(self) -> None:
        def layer(x: Any, w: Any) -> Any:
            return torch.relu(quern.gemm(x, w)) + 1

        compiled = torch.compile(layer, mode="reduce-overhead", fullgraph=True)
        _, w = self.factors(torch.bfloat16)
        for _ in range(5):
            x = self.draw(M, K, dtype=torch.bfloat16)
            with torch.no_grad():
                self.assertTrue(torch.equal(compiled(x, w).clone(), layer(x, w)))


# ---- Operators ---------------------------------------------------------------------------------


class Operators:
    def test_opcheck_finds_nothing(self: Any) -> None:
        a, b = self.factors()
        bias, out, x = self.draw(N), self.draw(M, N), self.draw(33)
        ops = torch.ops.quern
        for op, args, kwargs in (
            (ops.gemm, (a, b), {}),
            (ops.gemm, (a, b, bias), {"out_dtype": torch.bfloat16}),
            (ops.gemm, (a, b.mT.contiguous()), {"layout": "nn"}),
            (ops.gemm, (self.draw(2, M, K), self.draw(2, N, K)), {}),
            (ops.gemm, (self.draw(2, M, K), b), {}),
            (ops.gemm_out, (a, b, out), {}),
            (ops.gemm_out, (a, b, out, bias), {"accumulate": True}),
            (ops.copy, (x,), {"alpha": 0.5}),
            (ops.copy_out, (x, self.draw(33)), {"inplace": True}),
        ):
            with self.subTest(op=str(op), kwargs=kwargs):
                torch.library.opcheck(op.default, args, kwargs)

    def test_fakes_refuse_what_calls_refuse(self: Any) -> None:
        from torch._subclasses.fake_tensor import FakeTensorMode

        a, b = self.factors(n=12)
        vector, out = self.draw(8), torch.empty(M, 12, device=self.device)
        gemm, copy = torch.ops.quern.gemm, torch.ops.quern.copy
        cases: Any = (
            (copy, (self.draw(4, 4),), {}),
            (copy, (self.draw(16)[::2],), {}),
            (gemm, (a, b), {"n": 7}),
            (gemm, (self.draw(K, M).T, b), {}),
            (gemm, (a, self.draw(12, 2 * K)[:, ::2]), {}),
            (gemm, (a, b), {"packed": 5, "n": 12}),
            (gemm, (a, b, self.draw(24)[::2]), {}),
            (torch.ops.quern.gemm_out, (a, b, out.T.contiguous().T), {}),
            (torch.ops.quern.copy_out, (vector, self.draw(16)[::2]), {}),
        )
        for operator, tensors, options in cases:
            with self.subTest(operator=operator, options=options):
                with self.error("must be|must have|must be contiguous"):
                    operator(*tensors, **options)
                with FakeTensorMode() as mode:
                    fakes = [mode.from_tensor(tensor) for tensor in tensors]
                    with self.assertRaisesRegex(RuntimeError, "must be|must have"):
                        operator(*fakes, **options)
        sound = ((a, self.draw(K, 12).T), (a[:1], b), (a[:0], b))
        with FakeTensorMode() as mode:
            for tensors in sound:
                gemm(*[mode.from_tensor(tensor) for tensor in tensors])

    def test_errors_keep_their_type(self: Any) -> None:
        a, b = self.factors()
        with self.error(r"^b: shape \(80, 95\)"):
            torch.ops.quern.gemm(a, b[:, 1:])
        with self.error(r"^a: requires grad"):
            torch.ops.quern.gemm(a.requires_grad_(), b)

    def test_exported_program_has_the_operator(self: Any) -> None:
        class Layer(torch.nn.Module):
            def forward(self, x: Any, w: Any) -> Any:
                return quern.gemm(x, w).relu()

        a, b = self.factors()
        rows = {0: torch.export.Dim("rows", min=2, max=4096)}
        program = torch.export.export(Layer(), (a, b), dynamic_shapes=(rows, None))
        self.assertIn("quern.gemm.default", program.graph_module.code)
        a = self.draw(M + 3, K)
        self.assertClose(program.module()(a, b), product(a, b).relu())

    def test_fake_results_are_like_real_ones(self: Any) -> None:
        a, b = self.factors(torch.bfloat16)
        real = torch.ops.quern.gemm(a, b, out_dtype=torch.float32)
        fake = torch.ops.quern.gemm(a.to("meta"), b.to("meta"), out_dtype=torch.float32)
        for name in ("shape", "dtype"):
            self.assertEqual(getattr(fake, name), getattr(real, name))
        self.assertEqual(fake.stride(), real.stride())


@on_cpu
class OperatorsOnCpu(Operators, Case):
    def test_packed_weights_are_traced(self) -> None:
        a, b = self.factors()
        packed = quern.gemm_pack(b, width=32)
        out = torch.full((M, N), float("nan"))

        def multiply(a: Any, packed: Any, out: Any) -> Any:
            quern.gemm(a, packed, out, packed=32)
            return quern.gemm(a, packed, packed=32, n=N) + out

        doubled = torch.compile(multiply, backend="eager", fullgraph=True)(a, packed, out)
        self.assertClose(out, product(a, b))
        self.assertClose(doubled, 2 * product(a, b))


@on_cuda
class OperatorsOnCuda(Operators, Case):
    device = "cuda"


# ---- Streams -----------------------------------------------------------------------------------


def busy(stream: Any, milliseconds: int = 30) -> None:
    """Keep a stream busy, so that what does not wait for it comes too early."""
    with torch.cuda.stream(stream):
        torch.cuda._sleep(milliseconds * 1_500_000)


@on_cuda
class Streams(Case):
    device = "cuda"

    def late(self, stream: Any, call: Any, a: Any) -> Any:
        """call() after a got new contents on a busy stream."""
        new = self.draw(*a.shape).to(a.dtype)
        torch.cuda.synchronize()
        busy(stream)
        with torch.cuda.stream(stream):
            a.copy_(new)
            out = call()
        stream.synchronize()
        return out

    def test_eager_calls_take_the_current_stream(self) -> None:
        a, b = self.factors(torch.bfloat16)
        quern.gemm(a, b)
        out = self.late(torch.cuda.Stream(), lambda: quern.gemm(a, b), a)
        self.assertClose(out, product(a, b))

    def test_prepared_calls_take_the_current_stream(self) -> None:
        a, b = self.factors(torch.bfloat16)
        out = torch.full((M, N), float("nan"), device="cuda", dtype=torch.bfloat16)
        multiply = quern.prepare("gemm", a, b, out=out)
        self.assertClose(self.late(torch.cuda.Stream(), multiply, a), product(a, b))

    def test_operators_take_the_current_stream(self) -> None:
        a, b = self.factors(torch.bfloat16)
        quern.gemm(a, b)
        out = self.late(torch.cuda.Stream(), lambda: torch.ops.quern.gemm(a, b), a)
        self.assertClose(out, product(a, b))

    def test_external_stream_is_a_stream(self) -> None:
        a, b = self.factors(torch.bfloat16)
        quern.gemm(a, b)
        owner = torch.cuda.Stream()
        external = torch.cuda.ExternalStream(owner.cuda_stream)
        out = self.late(external, lambda: quern.gemm(a, b), a)
        self.assertClose(out, product(a, b))

    def test_given_stream_is_taken(self) -> None:
        a, b = self.factors(torch.bfloat16)
        out = torch.full((M, N), float("nan"), device="cuda", dtype=torch.bfloat16)
        quern.gemm(a, b, out)
        stream, new = torch.cuda.Stream(), self.draw(M, K).to(torch.bfloat16)
        torch.cuda.synchronize()
        busy(stream)
        with torch.cuda.stream(stream):
            a.copy_(new)
        quern.gemm(a, b, out, stream=stream)
        stream.synchronize()
        self.assertClose(out, product(a, b))

    def test_two_streams_at_once_give_both_results(self) -> None:
        streams = [torch.cuda.Stream() for _ in range(2)]
        work = [self.factors(m=64, n=64, k=8192) for _ in streams]
        quern.gemm(*work[0])
        torch.cuda.synchronize()
        outs: list[Any] = [[], []]
        for _ in range(20):
            for i, stream in enumerate(streams):
                with torch.cuda.stream(stream):
                    outs[i].append(quern.gemm(*work[i]))
        torch.cuda.synchronize()
        for (a, b), results in zip(work, outs):
            self.assertClose(results[0], product(a, b), 8192)
            for other in results[1:]:
                self.assertTrue(torch.equal(other, results[0]))


# ---- CUDA graphs -------------------------------------------------------------------------------


@on_cuda
class Graphs(Case):
    device = "cuda"

    def setUp(self) -> None:
        """A context is there before anything is captured."""
        super().setUp()
        quern.gemm(*self.factors(torch.bfloat16))

    def replayed(self, call: Any, a: Any, b: Any, out: Any) -> None:
        """Captured, call() must write out again at each replay, from what is in a then."""
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            call()
        for _ in range(3):
            a.copy_(self.draw(*a.shape))
            out.fill_(float("nan"))
            graph.replay()
            torch.cuda.synchronize()
            self.assertClose(out, product(a, b), a.shape[-1])

    def test_eager_call_replays_with_new_inputs(self) -> None:
        a, b = self.factors(torch.bfloat16)
        out = quern.gemm(a, b)
        self.replayed(lambda: quern.gemm(a, b, out), a, b, out)

    def test_new_output_is_of_the_graphs_pool(self) -> None:
        a, b = self.factors(torch.bfloat16)
        quern.gemm(a, b)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = quern.gemm(a, b)
        others = [self.draw(M, N) for _ in range(8)]
        a.copy_(self.draw(M, K))
        graph.replay()
        torch.cuda.synchronize()
        self.assertClose(out, product(a, b))
        del others

    def test_prepared_call_replays_with_new_inputs(self) -> None:
        a, b = self.factors(torch.bfloat16)
        out = torch.empty(M, N, device="cuda", dtype=torch.bfloat16)
        self.replayed(quern.prepare("gemm", a, b, out=out), a, b, out)

    def test_operator_replays_with_new_inputs(self) -> None:
        a, b = self.factors(torch.bfloat16)
        out = quern.gemm(a, b)
        self.replayed(lambda: torch.ops.quern.gemm_out(a, b, out), a, b, out)

    @unittest.skipUnless(HAS_SPLIT_K, "gemm_sm80 needs compute capability 8.0")
    def test_prepared_workspace_is_captured(self) -> None:
        a, b = self.factors(torch.bfloat16, k=1024)
        out = torch.empty(M, N, device="cuda", dtype=torch.bfloat16)
        multiply = quern.prepare("gemm", a, b, out=out, variant="gemm_sm80", config=SPLIT_K)
        self.assertGreater(multiply.workspace_bytes, 0)
        self.replayed(multiply, a, b, out)

    def test_hooks_workspace_is_captured(self) -> None:
        a, b, out = with_workspace(self)
        self.replayed(lambda: quern.gemm(a, b, out), a, b, out)

    def test_replay_needs_no_memory_after_capture(self) -> None:
        """Others may not get a captured workspace: they are filled with NaN between replays."""
        a, b, out = with_workspace(self)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            quern.gemm(a, b, out)
        spoilers = [
            torch.full((1 << size,), float("nan"), device="cuda") for size in range(8, 22)
        ]
        graph.replay()
        torch.cuda.synchronize()
        self.assertClose(out, product(a, b), a.shape[-1])
        self.assertTrue(all(spoiler.isnan().all().item() for spoiler in spoilers))

    def test_captured_miss_is_refused_and_capture_goes_on(self) -> None:
        """The library refuses before it touches the stream: the capture stays valid."""
        a, b = self.factors(torch.float16, m=5, n=517, k=1033)
        total = torch.zeros(4, device="cuda")
        stream = torch.cuda.Stream()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            with self.error(r"is being captured.* is not prepared"):
                quern.gemm(a, b)
            total.add_(1)
        graph.replay()
        torch.cuda.synchronize()
        self.assertEqual(total.tolist(), [1.0] * 4)
        with torch.cuda.stream(stream):
            out = quern.gemm(a, b)
        stream.synchronize()
        self.assertClose(out, product(a, b))

    def test_miss_that_leaves_the_capture_ends_it(self) -> None:
        """torch.cuda.graph() ends the capture while the error passes."""
        a, b = self.factors(torch.float16, m=5, n=515, k=1031)
        graph = torch.cuda.CUDAGraph()
        with warnings.catch_warnings(), self.error("is being captured"):
            warnings.simplefilter("ignore")  # of an empty graph
            with torch.cuda.graph(graph):
                quern.gemm(a, b)
        self.assertFalse(torch.cuda.is_current_stream_capturing())
        self.assertClose(quern.gemm(a, b), product(a, b))


def with_workspace(case: Case) -> Any:
    """a, b, out, warmed up, of which an eager call takes a workspace from the hook."""
    for k in (8192, 16384):
        a, b = case.factors(m=64, n=64, k=k)
        out = torch.empty(64, 64, device="cuda")
        if quern.prepare("gemm", a, b, out=out).workspace_bytes:
            quern.gemm(a, b, out)
            return a, b, out
    return case.skipTest("no f32 product here sums shares of k in a workspace")


# ---- Memory ------------------------------------------------------------------------------------


def allocator() -> Any:
    from quern import _torch

    return _torch.allocator()


class Allocator(Case):
    """The hook's callbacks as the library calls them, without a GPU."""

    def setUp(self) -> None:
        super().setUp()
        self.give, self.take = mock.Mock(return_value=0x5000), mock.Mock()
        patched = mock.patch.multiple(
            torch.cuda,
            init=mock.Mock(),
            caching_allocator_alloc=self.give,
            caching_allocator_delete=self.take,
        )
        patched.start()
        self.addCleanup(patched.stop)
        self.alloc, self.free = allocator()

    def test_callbacks_pass_size_device_and_stream(self) -> None:
        self.assertEqual(self.alloc(100, 1, None, None), 0x5000)
        self.assertEqual(self.alloc(200, 0, 0x77, None), 0x5000)
        self.free(0x5000, 100, 1, None, None)
        calls = [mock.call(100, 1, 0), mock.call(200, 0, 0x77)]
        self.assertEqual(self.give.call_args_list, calls)
        self.take.assert_called_once_with(0x5000)

    def test_what_is_raised_becomes_no_memory(self) -> None:
        for error in (torch.OutOfMemoryError("none left"), RuntimeError("x"), KeyboardInterrupt()):
            self.give.side_effect = self.take.side_effect = error
            with self.assertLogs("quern", logging.WARNING) as log:
                self.assertIsNone(self.alloc(100, 0, None, None))
                self.free(0x5000, 100, 0, None, None)
            self.assertEqual(len(log.output), 2)
            self.assertIn(repr(error), log.output[0])


@on_cuda
class Memory(Case):
    device = "cuda"

    def allocated(self) -> Any:
        torch.cuda.synchronize()
        stats = torch.cuda.memory_stats()
        return stats["allocation.all.allocated"], stats["allocated_bytes.all.current"]

    def test_workspaces_are_torchs(self) -> None:
        a, b, out = with_workspace(self)
        count, in_use = self.allocated()
        quern.gemm(a, b, out)
        count_after, in_use_after = self.allocated()
        self.assertGreater(count_after, count)
        self.assertEqual(in_use_after, in_use)

    def test_tuning_buffers_are_torchs_and_come_back(self) -> None:
        a, b = self.factors(torch.bfloat16, m=256, n=256, k=256)
        out = torch.empty(256, 256, device="cuda", dtype=torch.bfloat16)
        count, in_use = self.allocated()
        quern.tune("gemm", a, b, out=out, max_configs=3, force=True)
        count_after, in_use_after = self.allocated()
        self.assertGreater(count_after, count)
        self.assertEqual(in_use_after, in_use)

    def test_tuning_waits_for_other_streams(self) -> None:
        """What another stream still writes must be what comes back."""
        a, b = self.factors(torch.bfloat16, m=64)
        out = torch.empty(64, N, device="cuda", dtype=torch.bfloat16)
        stream, new = torch.cuda.Stream(), self.draw(64, K).to(torch.bfloat16)
        torch.cuda.synchronize()
        busy(stream, 200)
        with torch.cuda.stream(stream):
            a.copy_(new)
            quern.tune("gemm", a, b, out=out, max_configs=2, force=True)
        torch.cuda.synchronize()
        self.assertTrue(torch.equal(a, new))

    def test_no_memory_is_an_error_with_its_size(self) -> None:
        alloc, _free = allocator()
        with self.assertLogs("quern", logging.WARNING) as log:
            self.assertIsNone(alloc(1 << 50, 0, None, None))
        self.assertTrue(re.search("OutOfMemoryError|out of memory", log.output[0]))


if __name__ == "__main__":
    common.main()
