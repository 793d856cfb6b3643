#!/usr/bin/env python3
"""The README's programs run as they stand, and everything public says what it is."""

from __future__ import annotations

import inspect
import re
import typing

from common import PACKAGE, Case, main, quern, run_python

README = (PACKAGE / "README.md").read_text(encoding="utf-8")
PROGRAMS = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


class ReadmeTest(Case):
    def test_the_first_program_runs_as_it_stands(self):
        done = run_python(PROGRAMS[0])
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        self.assertLessEqual(len(PROGRAMS[0].strip().splitlines()), 12)

    def test_the_other_numpy_programs_run_after_it(self):
        rest = [program for program in PROGRAMS[1:] if "torch" not in program]
        self.assertTrue(rest)
        done = run_python("\n".join([PROGRAMS[0], *rest]))
        self.assertEqual(done.returncode, 0, done.stderr)

    def test_every_program_is_python(self):
        for program in PROGRAMS:
            compile(program, "README.md", "exec")

    def test_the_packages_own_example_runs(self):
        docstring = quern.__doc__ or ""
        lines = [line[4:] for line in docstring.splitlines() if line.startswith("    ")]
        done = run_python("\n".join(lines))
        self.assertEqual(done.returncode, 0, done.stderr)


class DocstringTest(Case):
    def test_every_public_name_has_a_docstring(self):
        for name in quern.__all__:
            value = getattr(quern, name)
            if name == "__version__":
                continue
            self.assertTrue(inspect.getdoc(value), name)
            for method, function in vars(value).items() if inspect.isclass(value) else ():
                if inspect.isfunction(function) and not method.startswith("_"):
                    self.assertTrue(function.__doc__, f"{name}.{method}")

    def test_every_argument_of_a_family_is_in_its_docstring(self):
        for function in (quern.gemm, quern.gemm_pack, quern.copy, quern.prepare, quern.tune,
                         quern.call, quern.Context, quern.kda_prefill, quern.kda_decode,
                         quern.gdn_prefill, quern.gdn_decode, quern.causal_conv1d,
                         quern.causal_conv1d_update, quern.l2norm, quern.gated_rmsnorm,
                         quern.kda_gate_cumsum, quern.attention, quern.attention_extend,
                         quern.attention_decode, quern.mla_decode, quern.merge_state,
                         quern.merge_state_v2, quern.set_kv_buffer, quern.concat_mla_k,
                         quern.concat_mla_absorb_q, quern.scaled_dot_product_attention,
                         quern.topk_softmax, quern.topk_sigmoid, quern.moe_fused_gate,
                         quern.moe_align_block_size, quern.prepare_moe_input,
                         quern.shuffle_rows, quern.apply_shuffle_mul_sum, quern.moe_sum,
                         quern.moe_sum_reduce, quern.grouped_gemm, quern.fused_moe,
                         quern.silu_and_mul, quern.gelu_and_mul, quern.gelu_tanh_and_mul,
                         quern.fused_qk_norm_rope):
            text = inspect.getdoc(function) or ""
            for name in inspect.signature(function).parameters:
                self.assertRegex(text, rf"\b{name}\b", f"{function.__name__}: {name}")

    def test_every_public_function_has_type_hints(self):
        for name in quern.__all__:
            value = getattr(quern, name)
            if inspect.isfunction(value):
                hints = typing.get_type_hints(value)
                missing = set(inspect.signature(value).parameters) - set(hints)
                self.assertEqual((missing, "return" in hints), (set(), True), name)


if __name__ == "__main__":
    main()
