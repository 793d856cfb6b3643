"""flash-linear-attention's Triton kernels as a peer: what an engine that takes FLA gets.

    prefill   chunk_kda, chunk_gated_delta_rule; packed sequences by cu_seqlens, with its copy on
              the host, which spares FLA a wait. A single long sequence also as one that is split
              over the device (FLA_INTRACARD_CP), where FLA does that
    decode    fused_recurrent_kda and fused_recurrent_gated_delta_rule, which read states and write
              new ones; fused_recurrent_kda_fwd, which updates a pool in place by its slots

It autotunes in the first call of a kind, its candidates compiled side by side (triton_compile.py).
FLA looks for that switch in the environment at every call, so that it is set around the calls that
are to split and nowhere else. A split call copies from the host midway, which FLA says a graph
cannot hold; the clock tries, and goes without one.
All in torch's inference mode, gate, sigmoid and norms in the kernels; outputs that it makes itself
are taken into the case's for the check alone. What calls itself flash_kda is kept from answering
for it (FLA_FLASH_KDA=0).
"""
from __future__ import annotations

import contextlib
import gc
import importlib
import importlib.metadata
import os
import time
from typing import TYPE_CHECKING, Any, Callable, Iterator

from harness.contest import Case, Contestant, Unavailable
from peers.delta_rule import LOWER_BOUND, batched, sizes_of
from peers.triton_compile import side_by_side

if TYPE_CHECKING:
    from harness.contest import ArraySet
    from peers.delta_rule import Params

    Call = Callable[[], Any]

WHERE = "fla-core, einops and packaging, on PYTHONPATH"
SPLITTING = "FLA_INTRACARD_CP"  # 1: a sequence may be split
SPLIT_FROM = 16384  # tokens of a single sequence, from which that is tried


def functions(params: Params) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """FLA's for prefill, and for decode."""
    if params["decay"] == "channel":
        kda = importlib.import_module("fla.ops.kda")
        return kda.chunk_kda, kda.fused_recurrent_kda
    rule = importlib.import_module("fla.ops.gated_delta_rule")
    return rule.chunk_gated_delta_rule, rule.fused_recurrent_gated_delta_rule


def common_arguments(params: Params, arrays: ArraySet) -> dict[str, Any]:
    """What prefill and decode share: token arrays and the flags."""
    tokens = batched(params, arrays)
    arguments = {**{name: tokens[name] for name in ("q", "k", "v", "g", "beta")},
                 "scale": sizes_of(params).k ** -0.5, "use_qk_l2norm_in_kernel": True,
                 "use_beta_sigmoid_in_kernel": True, "state_v_first": params["layout"] == "vk"}
    if params["gate"] != "none":
        arguments.update(use_gate_in_kernel=True, A_log=arrays["A_log"],
                         dt_bias=arrays["dt_bias"].view(-1))
    if params["gate"] == "bounded":
        arguments["lower_bound"] = LOWER_BOUND
    return arguments


def prefill_call(params: Params, arrays: ArraySet, borders: tuple[Any, Any] | None) -> Call:
    """() --> (o, final state). borders: cu_seqlens on the device and on the host; None: of
    sequences that are equally long."""
    function, _ = functions(params)
    arguments = common_arguments(params, arrays)
    arguments.update(initial_state=arrays["initial_state"], output_final_state=True)
    if params["gate"] == "bounded":
        arguments["safe_gate"] = True
    if borders:
        arguments.update(cu_seqlens=borders[0], cu_seqlens_cpu=borders[1])
    return lambda: function(**arguments)


def decode_call(params: Params, arrays: ArraySet) -> Call:
    """() --> (o, states after), from a copy of the states before."""
    _, function = functions(params)
    arguments = common_arguments(params, arrays)
    begun = arrays["states"][arrays["slots"].long()]
    return lambda: function(**arguments, initial_state=begun, output_final_state=True)


def pool_call(params: Params, arrays: ArraySet) -> Call:
    """() --> (o, the pool), KDA's alone."""
    function = importlib.import_module("fla.ops.kda.fused_recurrent").fused_recurrent_kda_fwd
    arguments = common_arguments(params, arrays)
    arguments.update(initial_state=arrays["states"], inplace_final_state=True,
                     ssm_state_indices=arrays["slots"], out=batched(params, arrays)["o"])
    return lambda: function(**arguments)


class Fla(Contestant):
    """One of FLA's functions on the arrays of a case; what it returns is kept until delivered."""

    name = "fla"

    def __init__(self, case: Case, detail: str, calls: list[Call], is_in_place: bool) -> None:
        self._torch = importlib.import_module("torch")
        self._sets, self._calls = case.sets, calls
        self._made: dict[int, Any] = {}
        self.detail, self.is_in_place = detail, is_in_place

    def run(self, index: int) -> None:
        with self._torch.inference_mode():
            self._made[index] = self._calls[index]()

    def deliver(self, index: int) -> None:
        """Copied, not moved: a graph that is replayed writes into the same memory again."""
        arrays, (o, states) = self._sets[index], self._made[index]
        arrays["o"].copy_(o.view(arrays["o"].shape))
        if not arrays.inouts:
            arrays["final_state"].copy_(states)
        elif not self.is_in_place:
            arrays["states"][arrays["slots"].long()] = states.to(arrays["states"].dtype)

    def close(self) -> None:
        self._calls, self._made = [], {}


@contextlib.contextmanager
def splitting() -> Iterator[None]:
    """FLA may split sequences."""
    before = os.environ.get(SPLITTING)
    os.environ[SPLITTING] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[SPLITTING]
        else:
            os.environ[SPLITTING] = before


@contextlib.contextmanager
def scans() -> Iterator[list[bool]]:
    """Has an element for every split that FLA makes meanwhile."""
    module: Any = importlib.import_module("fla.ops.common.intracard_cp")
    plain, seen = module.intracard_pre_scan, []

    def pre_scan(*arguments: Any, **more: Any) -> Any:
        seen.append(True)
        return plain(*arguments, **more)

    module.intracard_pre_scan = pre_scan
    try:
        yield seen
    finally:
        module.intracard_pre_scan = plain


class SplitFla(Fla):
    """Prefill of one sequence that FLA splits; run() raises Unavailable where it does not."""

    def __init__(self, case: Case, detail: str, calls: list[Call]) -> None:
        super().__init__(case, f"{detail}, the sequence split ({SPLITTING}=1)", calls, False)
        self._has_split = False

    def run(self, index: int) -> None:
        with splitting():
            if self._has_split:
                super().run(index)
                return
            with scans() as seen:
                super().run(index)
        if not seen:
            raise Unavailable("FLA does not split this sequence")
        self._has_split = True


def prefill_entry(case: Case) -> list[Contestant]:
    """FLA's prefill, and for a single long sequence the split one."""
    params, size = case.params, sizes_of(case.params)
    name, borders = functions(params)[0].__name__, None
    if params["lengths"]:
        borders = case.sets[0]["cu_seqlens"], case.sets[0]["cu_seqlens"].cpu()
    found: list[Contestant] = [
        Fla(case, name, [prefill_call(params, arrays, borders) for arrays in case.sets], False)]
    if size.n == 1 and size.t >= SPLIT_FROM:
        host = importlib.import_module("torch").tensor([0, size.t])
        borders = host.to(case.sets[0]["q"].device), host
        calls = [prefill_call(params, arrays, borders) for arrays in case.sets]
        found.append(SplitFla(case, name, calls))
    return found


def entry_of(case: Case) -> list[Contestant]:
    """The alternatives of a case; [] where FLA has none."""
    params, decode = case.params, functions(case.params)[1]
    is_kda = params["decay"] == "channel"
    if not is_kda and params["gate"] == "bounded":
        return []
    if params["op"] == "prefill":
        return prefill_entry(case) if params["state"] == "f32" else []
    found: list[Contestant] = []
    if params["state"] == "f32":
        calls = [decode_call(params, arrays) for arrays in case.sets]
        found.append(Fla(case, decode.__name__ + ", new states", calls, False))
    if is_kda:
        calls = [pool_call(params, arrays) for arrays in case.sets]
        found.append(Fla(case, "fused_recurrent_kda_fwd, the pool in place", calls, True))
    return found


# ---- First calls ----------------------------------------------------------------------------


HAS_CONFIGS = False  # first_call() can only autotune


def load() -> None:
    """Import FLA with what it needs. ImportError: one is not installed."""
    os.environ.update({"FLA_FLASH_KDA": "0", SPLITTING: "0"})
    importlib.import_module("fla.ops.kda")
    importlib.import_module("fla.ops.gated_delta_rule")


def first_call(case: Case, config: str) -> Callable[[], dict[str, Any]]:
    """For start_child.py: FLA's own first call, on the first set; "none": imports alone."""
    if config == "none":
        return dict
    contestant = entry_of(case)[0]
    contestant.run(0)

    def finish() -> dict[str, Any]:
        contestant.deliver(0)
        return {"config": "autotuned", **tuning_done()}

    return finish


def tuning_done() -> dict[str, Any]:
    """What Triton's autotuners have timed in this process; what came from disk is not there."""
    kind = importlib.import_module("triton.runtime.autotuner").Autotuner
    tuners = [x for x in gc.get_objects() if issubclass(type(x), kind) and hasattr(x, "bench_time")]
    return {"candidates": sum(len(x.configs_timings) for x in tuners),
            "tuning_s": float(sum(x.bench_time for x in tuners))}


# ---- The peer -------------------------------------------------------------------------------


class FlaDeltaRule:
    """The entry `fla`."""

    name = "fla"

    def open(self, device: str, threads: int) -> None:
        """Make `device` the current one and import FLA; Unavailable without either."""
        try:
            torch = importlib.import_module("torch")
            if not torch.cuda.is_available():
                raise Unavailable("torch finds no CUDA device")
            torch.cuda.set_device(device)
            load()
        except ImportError as problem:
            raise Unavailable(f"{problem}: needs {WHERE}") from problem

    def version(self) -> str:
        triton = importlib.import_module("triton").__version__
        try:
            return f"fla-core {importlib.metadata.version('fla-core')}, Triton {triton}"
        except importlib.metadata.PackageNotFoundError:
            return f"fla {importlib.import_module('fla').__version__}, Triton {triton}"

    def enter(self, case: Case) -> list[list[Contestant]]:
        """Each has been called once: what it tunes is tuned. One that raises does so again in the
        check, which says why."""
        if case.params["dtype"] not in ("bf16", "f16"):
            return []
        alternatives = entry_of(case)
        for contestant in alternatives:
            begin = time.monotonic()
            with contextlib.suppress(Exception), side_by_side():
                contestant.run(0)
            contestant.first_s = time.monotonic() - begin
            contestant.first_how = "candidates compiled side by side"
            if contestant is not alternatives[0]:
                contestant.first_how += ", after those of another call"
        return [alternatives]


PEER = FlaDeltaRule()
