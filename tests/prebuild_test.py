#!/usr/bin/env python3
"""quern prebuild: plans of models against tests/models/shapes.txt, bundles, what ends them early, and
what they refuse. Everything runs on the CPU; the plans need no compiler."""
import collections
import json
import os
import pty
import random
import re
import resource
import signal
import sqlite3
import subprocess
import time
import unittest

from cli_test import BINARY, BUILD, CommandCase

REPLAY = os.path.abspath(os.path.join(BUILD, "examples", "replay"))
MODELS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "models")
TINY = {
    "architectures": ["LlamaForCausalLM"], "torch_dtype": "bfloat16", "vocab_size": 512,
    "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 64,
}
SIZES = "--max-tokens 16 --max-batch 2 --max-seq 32 --candidates 0".split()
MIXTURE = {
    **TINY, "architectures": ["Qwen3MoeForCausalLM"], "num_experts": 8, "num_experts_per_tok": 2,
    "moe_intermediate_size": 128,
}
# Linear and latent attention, and experts.
HYBRID = {
    **TINY, "architectures": ["KimiLinearForCausalLM"], "num_hidden_layers": 4,
    "num_key_value_heads": 2, "q_lora_rank": None, "kv_lora_rank": 512, "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64, "v_head_dim": 128, "mla_use_nope": True, "num_experts": 8,
    "num_experts_per_token": 2, "moe_intermediate_size": 64, "num_shared_experts": 1,
    "first_k_dense_replace": 1, "moe_router_activation_func": "sigmoid",
    "linear_attn_config": {"kda_layers": [1, 2, 3], "num_heads": 2, "head_dim": 64,
                           "short_conv_kernel_size": 4},
}


def fixture(model):
    return os.path.join(MODELS, model + ".json")


def documented_line(begin):
    """The command of SHIPPING.md that begins so."""
    with open(os.path.join(MODELS, "..", "..", "docs", "SHIPPING.md")) as stream:
        return next(line.strip() for line in stream if line.startswith("    " + begin))


def read_shapes():
    """{(model, tp): {(kind, layers, numbers...)}}"""
    shapes = collections.defaultdict(set)
    with open(os.path.join(MODELS, "shapes.txt")) as stream:
        for line in stream:
            if line.startswith("#"):
                continue
            model, kind, layers, *columns = line.split()
            columns = [[int(number) for number in column.split(",")] for column in columns]
            for place, tp in enumerate((1, 2, 4, 8)):
                numbers = (column[place if len(column) > 1 else 0] for column in columns)
                shapes[model, tp].add((kind, int(layers), *numbers))
    return shapes


def shape_of(call):
    """The call as shapes.txt has it; None for what is not there."""
    p, layers = call["params"], call["layers"]
    family = call["family"]
    if family == "gemm":
        return "gemm", layers, p["n"], p["k"]
    if family == "moe":
        return "moe", layers, 2 * p["inter"], p["hidden"], p["experts"], p["topk"]
    if family in ("attention_prefill", "attention_decode"):
        return "attention", layers, p["hq"], p["hkv"], p["d"], p["dv"]
    if family == "mla_decode":
        return "attention", layers, p["hq"], 1, 576, 512
    if family == "kda_decode":
        return "linear", layers, p["h"], p["hv"]
    return None


class PrebuildCase(CommandCase):
    def write(self, name, content):
        """Whole or not at all: a process that was started before may be reading it."""
        path = self.path(name)
        with open(path + ".new", "w") as stream:
            stream.write(content if isinstance(content, str) else json.dumps(content))
        os.replace(path + ".new", path)
        return path

    def plan(self, model, *words):
        return self.json("prebuild", "--model", model, "--dry-run", *words)["calls"]

    def refused(self, *words, code=1):
        """The one line that says why."""
        done = self.quern("prebuild", *words, code=code)
        self.assertEqual(done.stdout, "")
        self.assertEqual(done.stderr.count("\n"), 1, done.stderr)
        return done.stderr

    def stats(self, bundle):
        return self.json("cache", "stats", "--cache", bundle)

    def own_target(self):
        return self.json("doctor")["cpu"]["target"]


class PlanTest(PrebuildCase):
    def test_plans_have_every_shape_of_the_models_and_no_other(self):
        for (model, tp), wanted in read_shapes().items():
            with self.subTest(model=model, tp=tp):
                calls = self.plan(fixture(model), "--tp", tp, "--dtype", "bf16")
                have = {shape_of(call) for call in calls} - {None}
                self.assertEqual(have - wanted, set(), "planned and not among the facts")
                self.assertEqual(wanted - have, set(), "not planned")

    def test_every_fixture_is_planned_within_100_ms(self):
        for name in sorted(os.listdir(MODELS)):
            if not name.endswith(".json"):
                continue
            with self.subTest(name):
                seconds = [1]
                while min(seconds) >= 0.1 and len(seconds) < 10:  # of the processor; others run too
                    start = resource.getrusage(resource.RUSAGE_CHILDREN)
                    self.quern("prebuild", "--model", os.path.join(MODELS, name), "--dry-run",
                               "--json", "--dtype", "bf16")
                    end = resource.getrusage(resource.RUSAGE_CHILDREN)
                    seconds.append(end.ru_utime + end.ru_stime - start.ru_utime - start.ru_stime)
                self.assertLess(min(seconds), 0.1)

    def test_a_plan_names_its_calls_and_what_is_not_provided(self):
        calls = self.plan(fixture("llama-3.1-8b"), "--tp", "8")
        for call in calls:
            self.assertEqual(list(call), "family params where layers count provided".split())
        provided = {call["family"]: call["provided"] for call in calls}
        self.assertTrue(provided["gemm"])
        self.assertIn(False, provided.values())
        self.assertEqual({call["where"] for call in calls if call["layers"] == 1},
                         {"lm_head", "embedding", "sampling", "first norm", "after embedding",
                          "after lm_head"})

    def test_a_printed_plan_is_the_same_plan_when_read(self):
        model = ("--model", fixture("kimi-linear-48b"), "--tp", "8")
        printed = self.quern("prebuild", *model, "--dry-run", "--json").stdout
        path = self.write("plan.json", printed)
        self.assertEqual(self.quern("prebuild", "--plan", path, "--dry-run", "--json").stdout,
                         printed)

    def test_the_text_of_a_plan_has_a_line_for_calls_that_differ_in_numbers(self):
        model = ("--model", self.write("tiny.json", TINY), *SIZES, "--dry-run")
        head, *lines, total = self.quern("prebuild", *model).stdout.splitlines()
        self.assertEqual(head.split(), ["where", "layers", "calls", "what"])
        calls = self.plan(*model[1:])
        self.assertTrue(total.startswith(f"{len(calls)} calls, "))
        self.assertEqual({(call["where"], call["family"]) for call in calls}, {
            (line[:30].rstrip(), line[46:].split()[0]) for line in lines})
        self.assertIn("gemm m=1,2,4..16 n=256 k=128 a=bf16", lines[0])
        for line in lines:
            provided = {call["provided"] for call in calls if call["family"] == line[46:].split()[0]}
            self.assertEqual(provided, {not line.endswith("(not provided)")}, line)

    def test_what_a_model_has_beside_products_is_planned(self):
        """Of each fixture what sets it apart: the call has all of the words; "!" it is not provided."""
        wanted = {
            "llama-3.1-8b": ["set_kv_buffer rope=neox rope_dim=128", "!rmsnorm", "!fused_add_rmsnorm"],
            "gpt-oss-120b": ["gemm n=640 bias=bf16", "gemm n=2880 k=512 bias=bf16",
                             "gemm n=128 bias=bf16 d=f32", "attention_decode window=128 sinks=1",
                             "!moe expert_bias=bf16 activation=swiglu_oai limit=7"],
            "glm-4.5": ["gemm n=1792 bias=bf16", "fused_qk_norm_rope rotary_dim=64",
                        "moe scoring=sigmoid bias=1 scaling=2.5", "!verify_tree_greedy"],
            "minimax-m2": ["!rmsnorm_tp q=768 k=128 ranks=8", "set_kv_buffer rope=neox rope_dim=64",
                           "gemm a=f32 b=f32 d=f32 n=256"],
            "qwen3-next-80b": ["fused_qk_norm_rope rotary_dim=64", "!rmsnorm weight=1+w",
                               "!sigmoid_mul width=512", "gated_rmsnorm act=silu",
                               "kda_decode steps=2 save=states", "kda_prefill decay=scalar"],
            "qwen3.5-27b": ["!vision_tower", "kda_step norm=silu", "silu_and_mul width=2176"],
            "kimi-linear-48b": ["mla_decode scale=0.0721688", "!rmsnorm hidden=512",
                                "attention_prefill causal=0 lse=1 d=192 dv=128",
                                "kda_prefill decay=channel gate=softplus", "moe bias=1"],
            "deepseek-v3": ["!rotary_embedding rope=gptj", "moe groups=8 topk_group=4 bias=1",
                            "!rmsnorm hidden=1536", "mla_decode sq=2", "merge_state_v2 d=128"],
            "deepseek-v3.2": ["mla_decode topk=2048", "!fp8_mqa_logits", "!fast_topk topk=2048"],
            "kimi-k3": ["!situ_and_mul", "!moe activation=situ hidden=3584", "!attention_residual",
                        "kda_decode gate=bounded lower_bound=-5", "!sigmoid_mul"],
            "mixtral-8x7b": ["moe experts=8 topk=2 renormalize=1"],
            "qwen3-235b-a22b": ["fused_qk_norm_rope hq=8 hk=1 d=128"],
        }
        unwanted = {
            "llama-3.1-8b": ["bias=", "fused_qk_norm_rope"], "mixtral-8x7b": ["bias="],
            "kimi-linear-48b": ["rotary_embedding", "rope=neox", "rope=gptj"],
            "qwen3-235b-a22b": ["rope=neox"], "minimax-m2": ["fused_qk_norm_rope"],
            "qwen3-next-80b": ["rope=neox"],
        }
        for model, calls in wanted.items():
            plan = self.plan(fixture(model), "--tp", "8", "--dtype", "bf16")
            texts = {(not call["provided"]) * "!" + " ".join([call["family"], *(
                f"{name}={value}" for name, value in call["params"].items())]) for call in plan}
            for call in calls:
                with self.subTest(model=model, call=call):
                    words = set(call.split())
                    self.assertTrue(any(words <= set(text.split()) for text in texts))
            for word in unwanted.get(model, ()):
                with self.subTest(model=model, word=word):
                    self.assertFalse(any(word in text for text in texts))

    def test_only_experts_are_quantised_where_the_config_says_so(self):
        for model, families in (("gpt-oss-120b", {"gemm", "moe_block_scaled"}),
                                ("kimi-k3", {"gemm", "moe_block_scaled"}),
                                ("deepseek-v3", {"gemm", "gemm_block_scaled", "moe_block_scaled",
                                                 "per_token_group_quant_fp8"})):
            with self.subTest(model):
                have = {call["family"] for call in self.plan(fixture(model))}
                self.assertEqual({name for name in have if name.startswith("gemm")
                                  or name.startswith("moe") or "quant" in name} - {
                                      "gather_and_maybe_dequant_cache"}, families)

    def test_an_unknown_architecture_is_planned_from_its_fields_with_a_warning(self):
        path = self.write("new.json", {**TINY, "architectures": ["NobodyKnowsForCausalLM"]})
        done = self.quern("prebuild", "--model", path, "--dry-run", *SIZES)
        self.assertIn("NobodyKnowsForCausalLM is not known", done.stderr)
        known = self.quern("prebuild", "--model", self.write("tiny.json", TINY), "--dry-run", *SIZES)
        self.assertEqual(done.stdout, known.stdout)

    def test_a_sweep_tunes_the_greatest_sizes_only_of_attention(self):
        report = self.json("sweep", "--model", fixture("llama-3.1-8b"), "--tp", "8", "--max-tokens",
                           "1024", "--max-batch", "16", "--budget", "0.001")
        specs = {row["family"]: row["specs"] for row in report["families"]}
        prompts, batches = 5, 5  # of 64 to 1024 tokens; of 1 to 16 sequences
        self.assertEqual((specs["attention_prefill"], specs["attention_extend"],
                          specs["attention_decode"]), (prompts, prompts, batches))

    def test_a_longer_step_only_adds_to_a_plan(self):
        path = self.write("tiny.json", TINY)
        short, long = (
            {json.dumps([call["family"], call["params"]]) for call in self.plan(
                path, "--max-tokens", tokens, "--max-batch", 2, "--max-seq", 64)}
            for tokens in (64, 128)
        )
        self.assertLess(short, long)


class RefusalTest(PrebuildCase):
    def test_a_field_that_cannot_be_is_named_with_its_value(self):
        cases = [
            (TINY, "hidden_size", None, "hidden_size: must be given"),
            (TINY, "hidden_size", 0, "hidden_size=0: must be"),
            (TINY, "hidden_size", -5, "hidden_size=-5: must be"),
            (TINY, "hidden_size", 1 << 40, "hidden_size=1099511627776: must be"),
            (TINY, "hidden_size", "128", "hidden_size: must be a whole number"),
            (TINY, "hidden_size", 128.5, "hidden_size: must be a whole number"),
            (TINY, "num_hidden_layers", 20000, "num_hidden_layers=20000: must be"),
            (TINY, "vocab_size", None, "vocab_size: must be given"),
            (TINY, "num_attention_heads", None, "num_attention_heads: must be given"),
            (TINY, "num_key_value_heads", 3, "num_key_value_heads=3: must divide"),
            (TINY, "intermediate_size", None, "intermediate_size: must be given"),
            (TINY, "partial_rotary_factor", 2.0, "partial_rotary_factor=2: must be"),
            (TINY, "rotary_dim", 65, "rotary_dim=65: must be"),
            (MIXTURE, "num_experts_per_tok", 9, "num_experts_per_tok=9: must be at most the 8"),
            (MIXTURE, "num_experts_per_tok", None, "num_experts_per_tok: must be given"),
            (MIXTURE, "n_group", 3, "n_group=3: must divide the 8"),
            (MIXTURE, "topk_group", 2, "topk_group=2: must be at most"),
            (MIXTURE, "num_experts", 1 << 33, "num_experts=8589934592: must be"),
            ({**MIXTURE, "n_shared_experts": 1}, "shared_expert_intermediate_size", 128,
             "shared_expert_intermediate_size=128: must not come with n_shared_experts"),
            ({**TINY, "head_dim": None}, "num_attention_heads", 3, "must divide hidden_size=128"),
            (TINY, "quantization_config", {"quant_method": "fp8", "weight_block_size": [0, 128]},
             "weight_block_size=[0, 128]: must be positive"),
            (TINY, "linear_num_value_heads", 3, "linear_num_key_heads: must be given"),
            ({**TINY, "linear_num_key_heads": 2}, "linear_num_value_heads", 3,
             "linear_num_value_heads=3: must be a multiple of linear_num_key_heads=2"),
            (HYBRID, "num_hidden_layers", 2, "num_hidden_layers=2: must be at least the 3"),
            (HYBRID, "v_head_dim", None, "v_head_dim: must be given"),
            (HYBRID, "index_n_heads", 4, "index_n_heads=4: must come with index_head_dim"),
            (TINY, "attention_bias", 1, "attention_bias: must be true or false"),
            (TINY, "rms_norm_eps", "small", "rms_norm_eps: must be a number"),
            (TINY, "rms_norm_eps", 1e308, "rms_norm_eps=1e+308: must be 0 to 1"),
            (TINY, "rope_theta", -1, "rope_theta=-1: must be 1 to 1e+12"),
            (TINY, "rope_parameters", {"rope_theta": 0}, "rope_theta=0: must be 1 to 1e+12"),
            (MIXTURE, "routed_scaling_factor", 0, "routed_scaling_factor=0: must be"),
        ]
        for model, name, value, said in cases:
            with self.subTest(name=name, value=value):
                config = {**model, name: value}
                if value is None:
                    del config[name]
                path = self.write("bad.json", config)
                self.assertIn(said, self.refused("--model", path, "--dry-run"))

    def test_a_file_that_is_no_config_is_refused(self):
        path = self.write("bad.json", [TINY])
        self.assertIn("must be a JSON object, and is an array",
                      self.refused("--model", path, "--dry-run"))
        os.makedirs(self.path("bare"), exist_ok=True)
        self.assertIn("bare/config.json", self.refused("--model", self.path("bare"), "--dry-run"))
        for content in ("", "{", "[]", "3", '"text"', "hidden_size: 3", "{}", '{"a":1,"a":2}'):
            with self.subTest(content):
                self.refused("--model", self.write("bad.json", content), "--dry-run")
        self.assertIn("model=", self.refused("--model", self.path("none.json"), "--dry-run"))

    def test_ranks_that_do_not_divide_say_what_and_what_engines_do(self):
        block = {"quant_method": "fp8", "weight_block_size": [128, 128]}
        cases = [
            (TINY, 3, 1, "tp=3: must divide 2 (num_attention_heads); engines refuse it"),
            ({**TINY, "num_attention_heads": 8, "num_key_value_heads": 4, "intermediate_size": 252},
             8, 1, "tp=8: must divide 252 (intermediate_size)"),
            ({**TINY, "num_attention_heads": 6, "num_key_value_heads": 2, "intermediate_size": 252,
              "vocab_size": 576}, 3, 1, "engines repeat heads"),
            (TINY, 1, 2, "ep=2: must be 1: the model has no experts"),
            (MIXTURE, 1, 3, "ep=3: must divide 8 experts; engines add redundant ones"),
            ({**MIXTURE, "quantization_config": block}, 2, 1,
             "tp=2: leaves experts a width of 64, no multiple of the weights' block of 128 by 128"),
            ({**TINY, "quantization_config": block}, 2, 1, "tp=2: leaves queries a width of 64"),
            ({**TINY, "num_attention_heads": 4, "head_dim": 128, "intermediate_size": 384,
              "quantization_config": block}, 2, 1, "tp=2: leaves intermediate_size a width of 192"),
            ({**MIXTURE, "num_attention_heads": 4, "num_key_value_heads": 4}, 4, 3,
             "ep=3: must divide 8 experts"),
            ({**MIXTURE, "num_experts": 12}, 2, 3, "ep=3: must divide tp=2 or be a multiple of it"),
        ]
        for config, tp, ep, said in cases:
            with self.subTest(said):
                path = self.write("bad.json", config)
                self.assertIn(
                    said, self.refused("--model", path, "--tp", tp, "--ep", ep, "--dry-run"))

    def test_a_dtype_that_no_model_has_is_refused(self):
        path = self.write("tiny.json", TINY)
        for words, said in (
            (("--dtype", "fp16"), "dtype=fp16: must be bf16, f16 or f32"),
            (("--kv-dtype", "fp8"), "kv-dtype=fp8: must be bf16, as the rest, or e4m3"),
            (("--dtype", "f16", "--kv-dtype", "bf16"), "kv-dtype=bf16: must be f16"),
        ):
            with self.subTest(said):
                self.assertIn(said, self.refused("--model", path, *words, "--dry-run"))
        self.plan(path, "--dtype", "f16", "--kv-dtype", "e4m3")
        path = self.write("tiny.json", {**TINY, "torch_dtype": "float64"})
        said = self.quern("prebuild", "--model", path, "--dry-run").stderr
        self.assertIn("dtype float64 is not known: bf16 stands for it", said)

    def test_a_plan_file_that_cannot_be_is_refused_by_the_member(self):
        cases = [
            ("{", "must be JSON: line 1"),
            ({}, "calls: must be an array, and not empty"),
            ({"calls": []}, "calls: must be an array, and not empty"),
            ({"calls": [3]}, "calls[0].family: must be"),
            ({"calls": [{"family": "gemm"}]}, "calls[0].params: must be an object"),
            ({"calls": [{"family": "gemm", "params": {"m": []}}]}, "calls[0].params.m: must be"),
            ({"calls": [{"family": "gemm", "params": {"m": "1" * 999}}]}, "must be shorter"),
        ]
        for content, said in cases:
            with self.subTest(said):
                path = self.write("bad.json", content)
                self.assertIn(said, self.refused("--plan", path, "--dry-run"))

    def test_a_bundle_that_cannot_be_written_is_refused_before_anything_is_compiled(self):
        call = {"family": "copy", "params": {"n": 16}}
        plan, out = self.write("copy.json", {"calls": [call]}), self.path("locked.qdb")
        words = ("--plan", plan, "--target", self.own_target(), "-o", out, "--candidates", "0")
        self.json("prebuild", *words)
        os.chmod(out, 0o400)
        for more in ((), ("--target", "cpu:x86-64-v2")):
            self.assertIn(f"output={out}: cannot be written", self.refused("-q", *words, *more))
        os.chmod(out, 0o600)

    def test_what_is_no_bundle_is_left_as_it_is(self):
        model = ("--model", self.write("tiny.json", TINY), *SIZES, "--target", "cpu:x86-64-v3")
        for name, content in (("notes.txt", b"mine\n"), ("empty.qdb", b"")):
            path = self.path(name)
            with open(path, "wb") as stream:
                stream.write(content)
            self.assertIn(f"output={path}: ", self.refused(*model, "-o", path))
            self.assertIn(f"bundle={path}: ", self.refused("--check", path, *model))
            with open(path, "rb") as stream:
                self.assertEqual(stream.read(), content)
        other = self.path("other.qdb")
        for version in ("application_id=7", "application_id=1364546126"):
            if os.path.exists(other):
                os.unlink(other)
            connection = sqlite3.connect(other)
            connection.executescript(f"PRAGMA {version}; PRAGMA user_version=999; CREATE TABLE a(b)")
            connection.close()
            with open(other, "rb") as stream:
                before = stream.read()
            self.assertIn(f"output={other}: ", self.refused(*model, "-o", other))
            self.assertIn(f"bundle={other}: ", self.refused("--check", other, *model))
            with open(other, "rb") as stream:
                self.assertEqual(stream.read(), before)
        self.assertIn("output=", self.refused(*model, "-o", self.folder))

    def test_nothing_is_written_for_a_command_that_is_refused(self):
        model, out = self.write("tiny.json", TINY), self.path("never.qdb")
        plan = self.write("foreign.json", {"calls": [{"family": "vision_tower", "params": {}}]})
        usual = ("--model", model, *SIZES)
        for words, code in (
            ((*usual, "-o", out), 2),
            ((*usual, "-o", out, "--target", "sm_9x"), 2),
            ((*usual, "-o", out, "--target", "cpu:x86-64-v3,pdp-11"), 2),
            ((*usual, "-o", out, "--target", "sm_90"), 2),
            ((*usual, "-o", out, "--target", "sm_90a,"), 2),
            ((*usual, "-o", out, "--target", "sm_90a", "--tp", "3"), 1),
            ((*usual, "-o", out, "--target", "sm_90a", "--tp", "0"), 2),
            ((*usual, "-o", out, "--target", "sm_90a", "--memory", "0"), 2),
            ((*usual, "-o", self.path("none/never.qdb"), "--target", "sm_90a"), 1),
            ((*usual, "--target", "sm_90a"), 2),
            (("-o", out, "--target", "sm_90a"), 2),
            (("--model", model, "--plan", model, "-o", out, "--target", "sm_90a"), 2),
            (("--plan", plan, "--tp", "8", "-o", out, "--target", "sm_90a"), 2),
            (("--plan", plan, "-o", out, "--target", "sm_90a"), 1),
            (("--check", out, *usual, "--target", "sm_90a"), 1),
        ):
            with self.subTest(words):
                self.refused(*words, code=code)
                self.assertFalse(os.path.exists(out))
                self.assertFalse(os.path.exists(self.path("none")))


class ServingTest(PrebuildCase):
    """What a process meets that has nothing but a bundle: made once for each of two models."""

    sizes = {"tiny": SIZES, "hybrid": "--max-tokens 13 --max-batch 3 --max-seq 70 --candidates 0".split()}

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        for name, config in (("tiny", TINY), ("hybrid", HYBRID)):
            with open(cls.path(name + ".json"), "w") as stream:
                json.dump(config, stream)
            subprocess.run([BINARY, "prebuild", *cls.model(name), "--target", cls.target(), "-o",
                            cls.path(name + ".qdb")],
                           env=cls.environment, check=True, capture_output=True)

    @classmethod
    def target(cls):
        done = subprocess.run([BINARY, "doctor", "--device", "cpu", "--json"], env=cls.environment,
                              check=True, capture_output=True)
        return json.loads(done.stdout)["cpu"]["target"]

    @classmethod
    def model(cls, name):
        return ("--model", cls.path(name + ".json"), *cls.sizes[name])

    def provided(self, name):
        return [call for call in self.plan(*self.model(name)[1:]) if call["provided"]]

    def test_a_sealed_process_makes_every_planned_call_without_a_compiler(self):
        for name in self.sizes:
            bundle = self.path(name + ".qdb")
            sealed = {"QUERN_MODE": "sealed", "QUERN_CACHE": bundle, "QUERN_CLANG": "/nonexistent"}
            before, calls = self.stats(bundle), self.provided(name)
            self.write("plan.json", self.quern("prebuild", *self.model(name), "--dry-run",
                                               "--json").stdout)
            subprocess.run(documented_line("python3 -c "), shell=True, cwd=self.folder, check=True)
            done = subprocess.run([REPLAY, self.path("calls.txt"), "cpu"], text=True,
                                  env={**self.environment, **sealed}, capture_output=True)
            self.assertEqual((done.returncode, done.stderr, done.stdout),
                             (0, "", f"{len(calls)} calls, 0 of them failed\n"))
            after = self.stats(bundle)
            for counter in ("compiles", "misses", "artifacts"):
                self.assertEqual(after[counter], before[counter])
            self.assertGreater(after["hits"], before["hits"])

    def test_the_text_of_a_check_has_a_line_a_kernel_that_is_missing_and_a_verdict(self):
        words = ("prebuild", "--check", self.path("tiny.qdb"), *self.model("tiny"), "--target",
                 self.target())
        whole = self.quern(*words)
        self.assertRegex(whole.stdout,
                         rf"^nothing would miss: {len(self.provided('tiny'))} calls, in ")
        self.assertEqual(whole.stderr, "")
        report = json.loads(self.quern(*words, "--dtype", "f32", "--json", code=1).stdout)
        troubles = report["troubles"]
        keys = {trouble["why"].split()[2] for trouble in troubles}
        lacking = self.quern(*words, "--dtype", "f32", code=1)
        self.assertRegex(
            lacking.stdout,
            rf"^would miss {len(keys)} kernels? of {len(troubles)} calls; \d+ calls found theirs, ")
        lines = lacking.stderr.splitlines()
        self.assertEqual(len(lines), len(keys))
        self.assertEqual(sum(int(line.split("(")[1].split()[0]) for line in lines), len(troubles))
        for line in lines:
            self.assertRegex(line, rf"^quern: {re.escape(self.target())}: \w+ \w+=.*: "
                                   r"artifact [0-9a-f]{32} is missing")

    def test_no_call_between_the_planned_ones_is_missing(self):
        """Any sizes up to the greatest: as a server draws them, which knows nothing of buckets."""
        draw = random.Random(2028)
        for name in self.sizes:
            most = {}
            for call in self.provided(name):
                params = most.setdefault((call["family"], call["where"]), dict(call["params"]))
                for key, value in call["params"].items():
                    if isinstance(value, int):
                        params[key] = max(params[key], value)
            calls = []
            for (family, where), greatest in most.items():
                calls += [{"family": family, "params": self.drawn(draw, family, where, greatest)}
                          for _ in range(40)]
            path = self.write("drawn.json", {"calls": calls})
            report = self.json("prebuild", "--check", self.path(name + ".qdb"), "--plan", path,
                               "--target", self.target())
            self.assertEqual((report["missing"], report["failed"], report["not_provided"]),
                             (0, 0, 0), report["troubles"][:3])
            self.assertGreater(report["present"], 5 * len(most))

    @staticmethod
    def drawn(draw, family, where, greatest):
        params = dict(greatest)
        for name in ("m", "tokens", "t", "sq", "sk", "max_pages"):
            if name in params:
                params[name] = draw.randint(1, params[name])
        tokens = params.get("sq", params.get("t"))
        for name in ("b", "n"):
            if name in params and not family.startswith("gemm"):
                params[name] = draw.randint(1, min(params[name], tokens or params[name]))
        if "sk" in params and "chunk" not in where:
            params["sk"] = tokens
        if "pages" in params:  # a cache of any size
            params["pages"] = draw.choice([params.get("max_pages", 1), 100, params["pages"]])
        if "capacity" in params:
            params["capacity"] = draw.choice([params["capacity"], params["capacity"] + 1, 100])
        return params


class BundleTest(PrebuildCase):
    def build(self, out, *words, **more):
        return self.json("prebuild", "--model", self.write("tiny.json", TINY), *SIZES, "--target",
                         self.own_target(), "-o", out, *words, **more)

    def check(self, bundle, *words, code=0, **environment):
        return self.quern("prebuild", "--check", bundle, "--model", self.path("tiny.json"), *SIZES,
                          "--target", self.own_target(), *words, "--json", code=code, **environment)

    def start(self, out):
        return subprocess.Popen(
            [BINARY, "prebuild", "--device", "cpu", "--model", self.write("tiny.json", TINY), *SIZES,
             "--target", self.own_target(), "-o", out],
            env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def test_a_second_build_compiles_nothing_and_a_larger_one_only_what_is_new(self):
        bundle = self.path("twice.qdb")
        first = self.build(bundle)
        again = self.build(bundle)
        self.assertEqual(again["compiled"], 0)
        self.assertEqual(again["present"], first["compiled"] + first["present"])
        more = self.build(bundle, "--candidates", "2")
        self.assertGreater(more["compiled"], 0)
        stats = self.stats(bundle)
        self.assertEqual(stats["compiles"], stats["artifacts"])

    def test_a_tuning_finds_its_first_candidates_compiled(self):
        spec = "gemm m=16 n=512 k=128 a=bf16 b=bf16 d=bf16".split()
        call = {"family": "gemm", "params": dict(word.split("=") for word in spec[1:])}
        plan, bundle = self.write("one.json", {"calls": [call]}), self.path("ahead.qdb")
        built = self.json("prebuild", "--plan", plan, "--target", self.own_target(), "-o", bundle)
        self.assertEqual((built["failed"], built["missing"]), (0, 0))
        before = self.stats(bundle)["artifacts"]
        self.assertEqual(built["compiled"], before)
        self.json("tune", *spec, "--cache", bundle, "--max-configs", "3")
        self.assertEqual(self.stats(bundle)["artifacts"], before)

    def test_the_commands_of_the_documentation_work_in_their_order(self):
        self.write("config.json", TINY)
        with open(os.path.join(MODELS, "..", "..", "docs", "CLI.md")) as stream:
            section = stream.read().split("\n## prebuild\n")[1].split("\n## ")[0]
        commands = [line.split() for line in section.splitlines() if line.startswith("    quern ")]
        self.assertGreater(len(commands), 3)
        small = {"8": "2", "config.json": self.path("config.json"),
                 "sm_90a": self.own_target(), "sm_90a,sm_80": self.own_target()}
        self.quern("build", "copy", "n=8", "--cache", self.path("tuned.db"))
        for _, *words in commands:
            words = [small.get(word, self.path(word) if "." in word and ":" not in word else word)
                     for word in words]
            self.quern(*words, *SIZES)

    def test_the_manifest_says_of_each_artifact_what_it_is_for(self):
        bundle = self.path("told.qdb")
        self.build(bundle)
        connection = sqlite3.connect(bundle)
        rows = connection.execute(
            "SELECT key, target, model, rank, used_in, spec, kind, toolkit FROM manifest").fetchall()
        keys = {key for key, in connection.execute("SELECT key FROM artifact")}
        connection.close()
        self.assertEqual({row[0] for row in rows}, keys)
        self.assertEqual({row[1:4] for row in rows}, {(self.own_target(), "tiny", "tp=1 ep=1")})
        self.assertEqual({row[6] for row in rows}, {"built"})
        self.assertNotIn("", {row[7] for row in rows})
        calls = [call for call in self.plan(self.path("tiny.json"), *SIZES) if call["provided"]]
        self.assertEqual({row[4] for row in rows}, {call["where"] for call in calls})

    def test_the_manifest_names_a_model_by_its_folder_and_a_plan_by_its_file(self):
        bundle, target = self.path("named.qdb"), ("--target", self.own_target())
        os.makedirs(self.path("acme"), exist_ok=True)
        for path in ("acme/config.json", "acme.json", "config.json", "./config.json",
                     "acme/../config.json", "acme", "acme/", "acme/.", "acme/../acme"):
            if path.endswith(".json"):
                self.write(path, TINY)
            self.json("prebuild", "--model", path, *SIZES, *target, "-o", bundle)
        call = {"family": "copy", "params": {"n": 16}}
        plan = self.write("calls.json", {"calls": [call]})
        self.json("prebuild", "--plan", plan, *target, "-o", bundle)
        connection = sqlite3.connect(bundle)
        rows = set(connection.execute("SELECT model, rank FROM manifest"))
        connection.close()
        self.assertEqual(rows, {("acme", "tp=1 ep=1"), ("calls", ""),
                                (os.path.basename(self.folder), "tp=1 ep=1")})

    def test_tuned_winners_of_the_cache_are_built_and_come_along(self):
        spec = "gemm m=16 n=512 k=128 a=bf16 b=bf16 d=bf16".split()
        cache, bundle = self.path("tuned.db"), self.path("winners.qdb")
        tuned = self.json("tune", *spec, "--cache", cache, "--max-configs", "3")
        self.build(bundle, "--cache", cache)
        call = {"family": "gemm", "params": dict(word.split("=") for word in spec[1:])}
        plan = self.write("one.json", {"calls": [call]})
        report = self.json("prebuild", "--plan", plan, "--target", self.own_target(), "-o", bundle,
                           "--cache", cache, "--candidates", "4")
        self.assertEqual(report["compiled"], 0, "candidates beside a winner")
        self.assertEqual(self.stats(bundle)["tuned"], 1)
        connection = sqlite3.connect(bundle)
        kinds = dict(connection.execute(
            "SELECT key, kind FROM manifest WHERE spec LIKE 'gemm m=16 n=512 k=128 %'"))
        connection.close()
        self.assertEqual(set(kinds.values()), {"tuned"})
        run = self.run_json(*spec, QUERN_MODE="sealed", QUERN_CACHE=bundle)
        self.assertEqual((run["config_from"], run["config"]), ("tuned", tuned["best"]["config"]))
        self.check(bundle)

    def test_a_bundle_as_a_base_serves_a_sealed_process_that_has_no_cache(self):
        bundle = self.path("base.qdb")
        self.build(bundle)
        run = self.run_json(*"gemm m=16 n=512 k=128 a=bf16 b=bf16 d=bf16".split(), "--cache", "",
                            QUERN_MODE="sealed", QUERN_BASE=bundle)
        self.assertEqual(run["artifact"], "disk")

    def test_what_a_base_has_is_in_the_bundle_too(self):
        base, bundle = self.path("first.qdb"), self.path("second.qdb")
        self.build(base)
        self.build(bundle, QUERN_BASE=base)
        self.check(bundle, QUERN_BASE="")

    def test_progress_is_shown_on_a_terminal_only(self):
        words = [BINARY, "prebuild", "--device", "cpu", "--model", self.write("tiny.json", TINY),
                 *SIZES, "--target", self.own_target()]
        main, terminal = pty.openpty()
        done = subprocess.Popen([*words, "-o", self.path("shown.qdb")], stderr=terminal,
                                stdout=subprocess.DEVNULL, env={**self.environment, "TERM": "vt100"})
        os.close(terminal)
        said = b""
        try:
            while part := os.read(main, 4096):
                said += part
        except OSError:  # the other end is closed
            pass
        os.close(main)
        self.assertEqual(done.wait(), 0)
        self.assertRegex(said.decode(), r"\d+/\d+, 0 failed, \d+\.\d/s, \d+ s left")
        self.assertTrue(said.endswith(b"\r\x1b[K"))
        quiet = subprocess.run([*words, "-o", self.path("piped.qdb")], env=self.environment,
                               capture_output=True)
        self.assertEqual((quiet.returncode, quiet.stderr), (0, b""))

    def test_little_memory_builds_the_same_bundle(self):
        bundle = self.path("narrow.qdb")
        self.assertEqual(self.build(bundle, "--memory", "1", "--jobs", "8")["failed"], 0)
        self.check(bundle)

    def test_check_names_what_a_bundle_would_miss(self):
        bundle = self.path("small.qdb")
        self.build(bundle)
        done = self.check(bundle, "--dtype", "f32", code=1)
        report = json.loads(done.stdout)
        self.assertEqual(report["missing"], len(report["troubles"]))
        self.assertGreater(report["missing"], 0)
        for trouble in report["troubles"]:
            self.assertEqual(trouble["what"], "missing")
            self.assertIn("mode=sealed: artifact ", trouble["why"])
        self.assertEqual(self.stats(bundle)["compiles"], self.stats(bundle)["artifacts"])

    def test_no_more_than_20_lines_say_what_is_missing(self):
        bundle = self.path("one.qdb")
        names = ("bf16", "f16", "f32")
        dtypes = [{"a": a, "b": a, "d": d} for a in names for d in names]
        calls = [{"family": "gemm", "params": {"m": 16, "n": 64, "k": 64, "layout": layout, **dtype}}
                 for dtype in dtypes for layout in ("nt", "nn")]
        calls += [{**call, "params": {**call["params"], "bias": "f32"}} for call in calls[:4]]
        first = self.write("first.json", {"calls": calls[:1]})
        target = ("--target", self.own_target())
        self.json("prebuild", "--plan", first, *target, "-o", bundle, "--candidates", "0")
        path = self.write("many.json", {"calls": calls})
        words = ("prebuild", "--check", bundle, "--plan", path, *target)
        report = json.loads(self.quern(*words, "--json", code=1).stdout)
        kinds = {(trouble["family"], trouble["why"].split()[2]) for trouble in report["troubles"]}
        lines = self.quern(*words, code=1).stderr.splitlines()
        self.assertGreater(len(kinds), 20)
        self.assertEqual(len(lines), 21)
        self.assertEqual(lines[-1], f"quern: ... and {len(kinds) - 20} more; --json has all")

    def test_a_full_disk_ends_a_build_at_its_first_kernel_that_is_not_kept(self):
        """A file may be so long and no longer, which for SQLite is a disk that has no more room."""
        bundle = self.path("full.qdb")
        model = ("--model", self.write("tiny.json", TINY), *SIZES, "--target", self.own_target())
        words = (BINARY, "prebuild", "--device", "cpu", *model, "-o", bundle)

        def limit():
            resource.setrlimit(resource.RLIMIT_FSIZE, (256 << 10, 256 << 10))

        done = subprocess.run(words, env=self.environment, capture_output=True, text=True,
                              preexec_fn=limit, restore_signals=False)  # SIGXFSZ stays ignored
        self.assertEqual(done.returncode, 1, done.stderr)
        self.assertRegex(done.stderr, rf"^quern: output={bundle}: cannot be written to its end "
                         r"\(.*\): \d+ not begun; .*\n\Z")
        self.assertIn(" 0 failed", done.stdout)
        stats = self.stats(bundle)
        self.assertGreater(stats["artifacts"], 0)
        self.assertGreaterEqual(stats["artifacts"], int(done.stdout.split()[0]))

    def test_failures_are_listed_with_their_log(self):
        clang = self.clang("no_clang", 'case "$*" in *--version*) echo clang version 19.1.7; exit;; '
                           'esac; echo "<stdin>:1:1: error: the sky is falling" >&2; exit 1')
        done = self.quern("prebuild", "--model", self.write("tiny.json", TINY), *SIZES, "--target",
                          self.own_target(), "-o", self.path("failed.qdb"), "--json", code=1,
                          QUERN_CLANG=clang)
        report = json.loads(done.stdout)
        self.assertEqual(report["compiled"], 0)
        self.assertEqual(report["failed"], len(report["troubles"]))
        self.assertGreater(report["failed"], 0)
        self.assertIn("the sky is falling", report["troubles"][0]["log"])
        self.assertIn("the sky is falling", done.stderr)
        self.assertLess(done.stderr.count("the sky is falling"), report["failed"])

    def test_a_build_that_is_killed_goes_on_and_repeats_no_finished_work(self):
        """Killed at once, and when there are so and so many artifacts more, until it is through."""
        bundle = self.path("killed.qdb")
        kept, code = 0, None
        for step in [0, 1, 1, 2, 3, 5, 1000]:
            process = self.start(bundle)
            while process.poll() is None and self.count_artifacts(bundle) < kept + step:
                time.sleep(random.uniform(0, 0.02))
            if step < 1000:
                process.send_signal(signal.SIGKILL)
            said, complaint = process.communicate()
            code = process.returncode
            if not os.path.exists(bundle):
                continue
            stats = self.stats(bundle)
            self.assertGreaterEqual(stats["artifacts"], kept)
            self.assertEqual(stats["compiles"], stats["artifacts"])
            before, kept = kept, stats["artifacts"]
        self.assertEqual(code, 0, said + complaint)
        self.assertRegex(said, rf"^{kept - before} kernels? compiled; .* 0 failed")
        self.assertGreater(before, 0)
        self.check(bundle)

    @staticmethod
    def count_artifacts(bundle):
        """0 also while the file is being made."""
        try:
            connection = sqlite3.connect(f"file:{bundle}?mode=ro", uri=True)
            try:
                return connection.execute("SELECT count(*) FROM artifact").fetchone()[0]
            finally:
                connection.close()
        except sqlite3.Error:
            return 0

    def test_an_interrupted_build_says_so_and_goes_on(self):
        bundle = self.path("interrupted.qdb")
        process = self.start(bundle)
        while not os.path.exists(bundle):
            time.sleep(0.005)
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        said, complaint = process.communicate(timeout=60)
        self.assertEqual(process.returncode, 1, said + complaint)
        self.assertIn("interrupted: ", complaint)
        self.assertIn(" 0 failed", said)
        done = self.stats(bundle)["artifacts"]
        rest = self.build(bundle)
        self.assertGreater(rest["compiled"], 0)
        stats = self.stats(bundle)
        self.assertGreater(stats["artifacts"], done)
        self.assertEqual(stats["compiles"], stats["artifacts"])

    def test_two_builds_of_one_bundle_share_the_work(self):
        bundle = self.path("shared.qdb")
        for process in [self.start(bundle) for _ in range(2)]:
            said, complaint = process.communicate(timeout=120)
            self.assertEqual(process.returncode, 0, said + complaint)
        stats = self.stats(bundle)
        self.assertEqual(stats["compiles"], stats["artifacts"])


if __name__ == "__main__":
    unittest.main()
