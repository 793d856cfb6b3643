"""Contexts: the library's handle, its life, and the default one of each device.

    Context ──> _State(handle, calls, device)   shared with whatever uses the handle
                 handle  None once closed (or in a forked child): nobody calls C any more
                 calls   an object for each call that is in C now

Who uses the handle does it in these steps, close() in these others:

    entry = object()               1 handle = None
    try: calls.add(entry)          2 wait until calls is empty
         use of handle, if any     3 destroy
    finally: calls.discard(entry)

Each is a single operation under the interpreter's lock, so that a call costs no lock of ours and
no context is destroyed under one. An interrupt (Ctrl-C) may end a call at any point, before Python
3.11 even between `finally` and the discard(); so step 2 drops entries that no running function has
in its variable `entry`. It looks at the calling thread's own functions, too: one that closes the
context from inside its own call (a callback, a signal handler) would wait for itself.

At the end of the process every context is destroyed once, by weakref.finalize(); one that a
thread is still using after a few seconds is left to the system. A forked child abandons what it
inherited, untouched, and makes contexts of its own; default ones keep nothing on disk there,
since a child may not open a cache file that its parent has open (docs/ARCHITECTURE.md).
"""

from __future__ import annotations

import ctypes
import functools
import logging
import os
import sys
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any, Callable, Iterable, Optional, TypeVar, Union

from . import _bundles, _library, _structs
from ._arrays import device_word
from ._errors import Error, count_of, encoded, require_callable, require_seconds, require_text

if TYPE_CHECKING:
    from ._family import Family
    from ._facts import Stats
    from ._plan import Plan
    from ._prepared import Prepared
    from ._tune import TuneResult

Log = Callable[[str, str], None]
Path = Union[str, "os.PathLike[str]"]
_T = TypeVar("_T")

_logger = logging.getLogger("quern")
_LOGGING_LEVELS = {"warn": logging.WARNING, "info": logging.INFO, "debug": logging.DEBUG}
_EXIT_PATIENCE_S = 5.0
_CLOSE_PATIENCE_S = 60.0


def _log_to_logging(level: str, line: str) -> None:
    _logger.log(_LOGGING_LEVELS.get(level, logging.WARNING), "%s", line)


class _State:
    """What a context and all that was made from it share."""

    __slots__ = ("handle", "to_destroy", "calls", "device", "why_closed")
    handle: Optional[ctypes.c_void_p]
    to_destroy: list[ctypes.c_void_p]  # the same, for the one who takes it to destroy it
    calls: set[object]
    device: str
    why_closed: str

    def __init__(self) -> None:
        self.handle = None
        self.to_destroy = []
        self.calls = set()
        self.device = ""
        self.why_closed = "is closed"

    def refuse(self) -> Error:
        return Error(f"context: {self.why_closed}")


def device_index(device: str) -> int:
    """0 of "cuda:0"; -1 of "cpu"."""
    return int(device.partition(":")[2] or 0) if device.startswith("cuda") else -1


def _entries(frame: Any) -> set[int]:
    """The ids of what the function of a frame, and its callers, have in a variable `entry`."""
    found = set()
    while frame is not None:
        if "entry" in frame.f_code.co_varnames:
            found.add(id(frame.f_locals.get("entry")))
        frame = frame.f_back
    return found


def _drop_ended(calls: set[object]) -> None:
    """Takes out entries that an interrupt left behind: see above."""
    before = list(calls)  # before the frames: what begins later is in neither or in both
    running = set().union(*map(_entries, sys._current_frames().values()))
    for call in before:
        if id(call) not in running:
            calls.discard(call)


def _wait(state: _State, patience_s: float) -> None:
    """Until nobody is in the context. Error: this thread is; or somebody still is at the end."""
    give_up, look = time.monotonic() + patience_s, time.monotonic() + 0.05
    while state.calls:
        now = time.monotonic()
        if now > look:
            _drop_ended(state.calls)
            look = now + 1.0
        if now > give_up:
            raise Error(f"context: still in use by {len(state.calls)} calls after "
                        f"{patience_s:g} s")
        time.sleep(0.0005)


def _refuse_inside(state: _State) -> None:
    """Error: the calling thread is in a call of the context itself, and would wait for it."""
    if state.calls and not _entries(sys._getframe()).isdisjoint(map(id, list(state.calls))):
        raise Error("context: this thread is inside a call of it: close it after that")


def _destroy(state: _State, callbacks: list[Any], patience_s: float) -> None:
    """Ends the context once nobody is in it. `callbacks` only have to live until then.

    Error: somebody is; it is then as it was.
    """
    _refuse_inside(state)
    try:
        handle = state.to_destroy.pop()
    except IndexError:  # done, or another thread is about to
        return
    try:
        state.handle = None
        _wait(state, patience_s)
    except BaseException:  # an interrupt, too
        state.handle = handle
        state.to_destroy.append(handle)
        raise
    try:
        if state.device.startswith("cuda") and hasattr(sys.modules.get("torch"), "cuda"):
            from . import _torch
            if _torch.is_cuda_usable():
                _torch.synchronize(device_index(state.device))
    finally:
        _library.load().quern_context_destroy(handle)
        callbacks.clear()


def _destroy_at_end(state: _State, callbacks: list[Any]) -> None:
    """Of a context that was dropped, or at the end of the process: one in use is left alone."""
    try:
        _destroy(state, callbacks, _EXIT_PATIENCE_S)
    except Error as error:
        state.handle = None
        _logger.debug("%s", error)


class Context:
    """A device, a cache of kernels, and the options that both have. Any thread may use it.

    device        "cpu", "cuda", "cuda:N", or a torch.device; None: cuda if usable, else cpu
    cache         file of the cache; "": memory only; None: $QUERN_CACHE, else
                  ~/.cache/quern/quern.db
    base          a bundle, or a list of them: only read, in their order after the cache; "" or []:
                  none. None: $QUERN_BASE, else the installed ones (quern.bundle), which are passed
                  over with a warning where they cannot be used
    mode          "normal", or "sealed": never compiles or tunes; None: $QUERN_MODE
    tune          seconds: a bucket met for the first time is tuned then, for at most that long;
                  what the cache has a winner for is not tuned again. None: only tune() tunes.
                  Not with mode="sealed"; where $QUERN_MODE says sealed it does nothing
    profile       name of a device profile to plan for; None: the device's own
    threads       that execute a call on the CPU; None, 0: $OMP_NUM_THREADS, else all
    templates     directory that is looked in before the templates in the library
    log           called as log(level, line), possibly from other threads; it may not use or
                  close the context. None: to the logging module's logger "quern"
    log_level     "off", "warn", "info", "debug"; None: $QUERN_LOG, else warn
    plugins       a list of files: shared objects with further families

    With torch imported, workspaces and tuning buffers of a CUDA context come from torch's caching
    allocator. `with` closes it at the end. Error: an option, the cache or the device is refused.

    A context is the process's that made it: in a forked child it is refused.
    """

    def __init__(self, device: Any = None, cache: Optional[Path] = None,
                 mode: Optional[str] = None, tune: Optional[float] = None,
                 profile: Optional[str] = None, threads: Optional[int] = None,
                 templates: Optional[Path] = None, log: Optional[Log] = None,
                 log_level: Optional[str] = None, plugins: Iterable[Path] = (),
                 base: Union[Path, Iterable[Path], None] = None) -> None:
        require_seconds("tune", tune)
        device = device_word(device)
        require_text("device", device)
        require_callable("log", log, "log(level, line)")
        if tune is not None and mode == "sealed":
            raise Error(f"tune={tune}: must be None with mode=sealed, which tunes nothing")
        files = _files("plugins", plugins)
        bases = _bundles.named(base)
        if log_level is not None and log_level not in _structs.LOG_LEVELS:
            raise Error(f"log_level={log_level}: must be one of: {' '.join(_structs.LOG_LEVELS)}")
        self._library = _library.load()
        self._state = _State()
        self._callbacks: list[Any] = []
        is_sealed = mode is None and os.environ.get("QUERN_MODE") == "sealed"
        self._tune_s = None if is_sealed or tune is None else float(tune)
        self._tuned: dict[Any, None] = {}
        self._families: dict[str, Family] = {}
        self._plans: dict[Any, Plan] = {}
        texts = {"cache": cache, "mode": mode, "profile": profile, "templates": templates}
        self._installed: list[bytes] = []  # bundles that nobody named
        self._warn: Callable[[str], None]
        self._open({name: encoded(name, text) for name, text in texts.items()}, bases, device,
                   threads, log, log_level)
        _live.add(self)
        for path in files:
            self._load_plugin(path)

    # ---- Making --------------------------------------------------------------------------------

    def _open(self, texts: dict[str, Optional[bytes]], bases: Optional[list[bytes]],
              device: Optional[str], threads: Optional[int], log: Optional[Log],
              log_level: Optional[str]) -> None:
        options = _structs.Options(size=ctypes.sizeof(_structs.Options))
        for name, text in texts.items():
            setattr(options, name, text)
        options.threads = count_of("threads", threads)
        say = (log or _log_to_logging) if log_level != "off" else None
        if say is not None:
            options.log = self._keep(_log_callback(say))
            options.log_level = _structs.LOG_LEVELS.index(log_level) if log_level else 0
        self._set_bases(options, bases, say if log_level or os.environ.get("QUERN_LOG") != "off"
                        else None)
        if device is None:
            device = self._find_device(options)
        options.device = encoded("device", device)
        if device.startswith("cuda"):
            self._use_torch_memory(options)
        self._state.handle = self._create(options)
        self._state.to_destroy = [self._state.handle]
        self._state.device = "cuda:0" if device == "cuda" else device
        self._finalizer = weakref.finalize(self, _destroy_at_end, self._state, self._callbacks)

    def _set_bases(self, options: _structs.Options, bases: Optional[list[bytes]],
                   say: Optional[Log]) -> None:
        self._warn = functools.partial(say, "warn") if say else lambda _: None
        if bases is not None:
            options.base = b":".join(bases)
        elif "QUERN_BASE" not in os.environ:
            self._installed = _bundles.installed(self._warn)
            options.base = b":".join(self._installed)

    def _load_plugin(self, path: bytes) -> None:
        """A plugin may leave quern's symbols to the program that loads it: they are made global."""
        ctypes.CDLL(_library.library_path(), ctypes.RTLD_GLOBAL | os.RTLD_NOLOAD)
        self._ask("quern_plugin_load", path)

    def _keep(self, callback: Any) -> Any:
        self._callbacks.append(callback)
        return callback

    def _create(self, options: _structs.Options) -> ctypes.c_void_p:
        while True:
            handle = ctypes.c_void_p()
            status = self._library.quern_context_create(ctypes.byref(options),
                                                        ctypes.byref(handle))
            if not status:
                return handle
            error = self._error(status, handle)
            self._library.quern_context_destroy(handle)
            culprit = _bundles.refused(error, self._installed)
            if culprit is None:
                raise error
            self._warn(f"{error}; this installed bundle is passed over")
            self._installed.remove(culprit)
            options.base = b":".join(self._installed)

    def _find_device(self, options: _structs.Options) -> str:
        """What the library takes by itself; asked first, since memory hooks depend on it."""
        from . import _facts
        handle = self._create(options)
        try:
            facts = _facts.read(self._library, handle)
        finally:
            self._library.quern_context_destroy(handle)
        return "cuda:0" if facts.get("cuda", {}).get("usable") == "yes" else "cpu"

    def _use_torch_memory(self, options: _structs.Options) -> None:
        torch = sys.modules.get("torch")
        if torch is None or not hasattr(torch, "cuda"):
            return
        from . import _torch
        if _torch.is_cuda_usable():
            alloc, free = _torch.allocator()
            options.alloc, options.free = self._keep(alloc), self._keep(free)

    # ---- Using ---------------------------------------------------------------------------------

    def _inside(self, work: Callable[[ctypes.c_void_p], _T]) -> _T:
        """work(handle); the context is not destroyed meanwhile. Error: closed."""
        state, entry = self._state, object()
        try:
            state.calls.add(entry)
            handle = state.handle
            if handle is None:
                raise state.refuse()
            return work(handle)
        finally:
            state.calls.discard(entry)

    def _ask(self, function: str, *arguments: Any) -> None:
        """A function of the library with the handle as its first argument. Error: its status."""
        def ask(handle: ctypes.c_void_p) -> None:
            self._check(getattr(self._library, function)(handle, *arguments), handle)

        self._inside(ask)

    def _error(self, status: int, handle: Any,
               names: Optional[dict[str, str]] = None) -> Error:
        """The calling thread's last failure. `names`: arrays that Python calls differently."""
        text = self._library.quern_errmsg(handle).decode(errors="replace")
        for field, name in (names or {}).items():
            if text.startswith(field) and not text[len(field):len(field) + 1].isalnum():
                text = name + text[len(field):]
        kind = _library.status_name(status)
        return Error(text or kind.lower(), kind)

    def _check(self, status: int, handle: Any, names: Optional[dict[str, str]] = None) -> None:
        """Error unless status is 0."""
        if status:
            raise self._error(status, handle, names)

    @property
    def device(self) -> str:
        """"cpu", "cuda:0"."""
        return self._state.device

    @property
    def is_closed(self) -> bool:
        return self._state.handle is None

    def close(self) -> None:
        """Ends the context; waits for calls that are under way, and on a GPU for torch's work.

        Without torch, work on a GPU that its calls began must have ended before. Whatever was
        prepared with it is refused from then on. A second close does nothing. Error, and the
        context stays open: calls of other threads go on for more than a minute; or the calling
        thread is itself inside a call (a log or progress callback, a signal handler).
        """
        _destroy(self._state, self._callbacks, _CLOSE_PATIENCE_S)
        self._finalizer.detach()

    def __enter__(self) -> Context:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<quern.Context {self.device}{' closed' if self.is_closed else ''}>"

    # ---- What the module's functions do, in this context ---------------------------------------

    def call(self, family: str, *arrays: Any, **arguments: Any) -> Any:
        """quern.call() in this context."""
        from ._call import call
        return call(family, *arrays, context=self, **arguments)

    def gemm(self, a: Any, b: Any, out: Any = None, **options: Any) -> Any:
        """quern.gemm() in this context."""
        from ._families.gemm import gemm
        return gemm(a, b, out, context=self, **options)

    def gemm_pack(self, b: Any, out: Any = None, **options: Any) -> Any:
        """quern.gemm_pack() in this context."""
        from ._families.gemm import gemm_pack
        return gemm_pack(b, out, context=self, **options)

    def copy(self, x: Any, out: Any = None, **options: Any) -> Any:
        """quern.copy() in this context."""
        from ._families.copy import copy
        return copy(x, out, context=self, **options)

    def kda_prefill(self, q: Any, k: Any, v: Any, g: Any, beta: Any, **options: Any) -> Any:
        """quern.kda_prefill() in this context."""
        from ._families.kda import kda_prefill
        return kda_prefill(q, k, v, g, beta, context=self, **options)

    def gdn_prefill(self, q: Any, k: Any, v: Any, g: Any, beta: Any, **options: Any) -> Any:
        """quern.gdn_prefill() in this context."""
        from ._families.kda import gdn_prefill
        return gdn_prefill(q, k, v, g, beta, context=self, **options)

    def kda_decode(self, q: Any, k: Any, v: Any, g: Any, beta: Any, **options: Any) -> Any:
        """quern.kda_decode() in this context."""
        from ._families.kda import kda_decode
        return kda_decode(q, k, v, g, beta, context=self, **options)

    def gdn_decode(self, q: Any, k: Any, v: Any, g: Any, beta: Any, **options: Any) -> Any:
        """quern.gdn_decode() in this context."""
        from ._families.kda import gdn_decode
        return gdn_decode(q, k, v, g, beta, context=self, **options)

    def kda_step(self, x: Any, weight: Any, g: Any, beta: Any, **options: Any) -> Any:
        """quern.kda_step() in this context."""
        from ._families.kda_step import kda_step
        return kda_step(x, weight, g, beta, context=self, **options)

    def causal_conv1d(self, x: Any, weight: Any, bias: Any = None, **options: Any) -> Any:
        """quern.causal_conv1d() in this context."""
        from ._families.kda_conv import causal_conv1d
        return causal_conv1d(x, weight, bias, context=self, **options)

    def causal_conv1d_update(self, x: Any, states: Any, weight: Any, bias: Any = None,
                             **options: Any) -> Any:
        """quern.causal_conv1d_update() in this context."""
        from ._families.kda_conv import causal_conv1d_update
        return causal_conv1d_update(x, states, weight, bias, context=self, **options)

    def l2norm(self, x: Any, eps: float = 1e-6, **options: Any) -> Any:
        """quern.l2norm() in this context."""
        from ._families.kda_norm import l2norm
        return l2norm(x, eps, context=self, **options)

    def gated_rmsnorm(self, x: Any, z: Any, weight: Any, **options: Any) -> Any:
        """quern.gated_rmsnorm() in this context."""
        from ._families.kda_norm import gated_rmsnorm
        return gated_rmsnorm(x, z, weight, context=self, **options)

    def kda_gate_cumsum(self, g: Any, A_log: Any = None, **options: Any) -> Any:
        """quern.kda_gate_cumsum() in this context."""
        from ._families.kda_norm import kda_gate_cumsum
        return kda_gate_cumsum(g, A_log, context=self, **options)

    def attention(self, q: Any, k: Any, v: Any, **options: Any) -> Any:
        """quern.attention() in this context."""
        from ._families.attention import attention
        return attention(q, k, v, context=self, **options)

    def attention_extend(self, q: Any, k: Any, v: Any, k_cache: Any, v_cache: Any,
                         **options: Any) -> Any:
        """quern.attention_extend() in this context."""
        from ._families.attention import attention_extend
        return attention_extend(q, k, v, k_cache, v_cache, context=self, **options)

    def attention_decode(self, q: Any, k_cache: Any, v_cache: Any, page_table: Any = None,
                         seq_lens: Any = None, **options: Any) -> Any:
        """quern.attention_decode() in this context."""
        from ._families.attention_decode import attention_decode
        return attention_decode(q, k_cache, v_cache, page_table, seq_lens, context=self, **options)

    def mla_decode(self, q: Any, kv_cache: Any, page_table: Any = None, seq_lens: Any = None,
                   **options: Any) -> Any:
        """quern.mla_decode() in this context."""
        from ._families.mla import mla_decode
        return mla_decode(q, kv_cache, page_table, seq_lens, context=self, **options)

    def concat_mla_k(self, k_nope: Any, k_rope: Any, out: Any = None, **options: Any) -> Any:
        """quern.concat_mla_k() in this context."""
        from ._families.mla import concat_mla_k
        return concat_mla_k(k_nope, k_rope, out, context=self, **options)

    def concat_mla_absorb_q(self, a: Any, b: Any, out: Any = None, **options: Any) -> Any:
        """quern.concat_mla_absorb_q() in this context."""
        from ._families.mla import concat_mla_absorb_q
        return concat_mla_absorb_q(a, b, out, context=self, **options)

    def merge_state(self, v_a: Any, s_a: Any, v_b: Any, s_b: Any, **options: Any) -> Any:
        """quern.merge_state() in this context."""
        from ._families.attention_decode import merge_state
        return merge_state(v_a, s_a, v_b, s_b, context=self, **options)

    def merge_state_v2(self, v_a: Any, s_a: Any, v_b: Any, s_b: Any, **options: Any) -> Any:
        """quern.merge_state_v2() in this context."""
        from ._families.attention_decode import merge_state_v2
        return merge_state_v2(v_a, s_a, v_b, s_b, context=self, **options)

    def set_kv_buffer(self, k: Any, v: Any, k_cache: Any, v_cache: Any, loc: Any = None,
                      **options: Any) -> None:
        """quern.set_kv_buffer() in this context."""
        from ._families.kv_cache import set_kv_buffer
        set_kv_buffer(k, v, k_cache, v_cache, loc, context=self, **options)

    def topk_softmax(self, gating_output: Any, topk: Optional[int] = None, **options: Any) -> Any:
        """quern.topk_softmax() in this context."""
        from ._families.moe_routing import topk_softmax
        return topk_softmax(gating_output, topk, context=self, **options)

    def topk_sigmoid(self, gating_output: Any, topk: Optional[int] = None, **options: Any) -> Any:
        """quern.topk_sigmoid() in this context."""
        from ._families.moe_routing import topk_sigmoid
        return topk_sigmoid(gating_output, topk, context=self, **options)

    def moe_fused_gate(self, input_tensor: Any, bias: Any = None, **options: Any) -> Any:
        """quern.moe_fused_gate() in this context."""
        from ._families.moe_routing import moe_fused_gate
        return moe_fused_gate(input_tensor, bias, context=self, **options)

    def moe_align_block_size(self, topk_ids: Any, block_size: int, num_experts: int, **options: Any
                             ) -> Any:
        """quern.moe_align_block_size() in this context."""
        from ._families.moe_align import moe_align_block_size
        return moe_align_block_size(topk_ids, block_size, num_experts, context=self, **options)

    def prepare_moe_input(self, topk_ids: Any, num_experts: int, n: int, k: int, **options: Any
                          ) -> Any:
        """quern.prepare_moe_input() in this context."""
        from ._families.moe_align import prepare_moe_input
        return prepare_moe_input(topk_ids, num_experts, n, k, context=self, **options)

    def shuffle_rows(self, input_tensor: Any, dst2src_map: Any, **options: Any) -> Any:
        """quern.shuffle_rows() in this context."""
        from ._families.moe_align import shuffle_rows
        return shuffle_rows(input_tensor, dst2src_map, context=self, **options)

    def apply_shuffle_mul_sum(self, input: Any, output: Any = None, permutation: Any = None,
                              factors: Any = None, **options: Any) -> Any:
        """quern.apply_shuffle_mul_sum() in this context."""
        from ._families.moe_align import apply_shuffle_mul_sum
        return apply_shuffle_mul_sum(input, output, permutation, factors, context=self, **options)

    def moe_sum(self, input_tensor: Any, output_tensor: Any = None, **options: Any) -> Any:
        """quern.moe_sum() in this context."""
        from ._families.moe_align import moe_sum
        return moe_sum(input_tensor, output_tensor, context=self, **options)

    def moe_sum_reduce(self, input_tensor: Any, output_tensor: Any = None, **options: Any) -> Any:
        """quern.moe_sum_reduce() in this context."""
        from ._families.moe_align import moe_sum_reduce
        return moe_sum_reduce(input_tensor, output_tensor, context=self, **options)

    def grouped_gemm(self, a: Any, b: Any, offsets: Any = None, **options: Any) -> Any:
        """quern.grouped_gemm() in this context."""
        from ._families.grouped_gemm import grouped_gemm
        return grouped_gemm(a, b, offsets, context=self, **options)

    def fused_moe(self, hidden_states: Any, w1: Any, w2: Any, gating_output: Any, topk: int,
                  **options: Any) -> Any:
        """quern.fused_moe() in this context."""
        from ._families.moe import fused_moe
        return fused_moe(hidden_states, w1, w2, gating_output, topk, context=self, **options)

    def silu_and_mul(self, input: Any, out: Any = None, **options: Any) -> Any:
        """quern.silu_and_mul() in this context."""
        from ._families.activation import silu_and_mul
        return silu_and_mul(input, out, context=self, **options)

    def gelu_and_mul(self, input: Any, out: Any = None, **options: Any) -> Any:
        """quern.gelu_and_mul() in this context."""
        from ._families.activation import gelu_and_mul
        return gelu_and_mul(input, out, context=self, **options)

    def gelu_tanh_and_mul(self, input: Any, out: Any = None, **options: Any) -> Any:
        """quern.gelu_tanh_and_mul() in this context."""
        from ._families.activation import gelu_tanh_and_mul
        return gelu_tanh_and_mul(input, out, context=self, **options)

    def fused_qk_norm_rope(self, qkv: Any, *arguments: Any, **options: Any) -> Any:
        """quern.fused_qk_norm_rope() in this context."""
        from ._families.norm_rope import fused_qk_norm_rope
        return fused_qk_norm_rope(qkv, *arguments, context=self, **options)

    def prepare(self, family: str, *arrays: Any, **arguments: Any) -> Prepared:
        """quern.prepare() in this context."""
        from ._prepared import prepare
        return prepare(family, *arrays, context=self, **arguments)

    def tune(self, family: str, *arrays: Any, **arguments: Any) -> TuneResult:
        """quern.tune() in this context."""
        from ._tune import tune
        return tune(family, *arrays, context=self, **arguments)

    def doctor(self) -> dict[str, dict[str, str]]:
        """quern.doctor() of this context."""
        from . import _facts
        return self._inside(functools.partial(_facts.read, self._library))

    def stats(self) -> Stats:
        """quern.stats() of this context's cache."""
        from . import _facts
        return _facts.stats_of(self)

    def families(self) -> dict[str, str]:
        """quern.families() of this context, plugins included."""
        from . import _family
        return _family.names(self)


def require_context(context: Any) -> None:
    """Error unless it is a Context or None."""
    if context is not None and not isinstance(context, Context):
        raise Error(f"context={context!r}: must be a quern.Context")


def _files(name: str, paths: Any) -> list[bytes]:
    """Error unless it is a list, or such, of texts and paths."""
    try:
        if isinstance(paths, (str, bytes)):
            raise TypeError
        return [encoded(name, "" if path is None else path) or b"" for path in paths]
    except TypeError:
        raise Error(f"{name}={paths!r}: must be a list of paths") from None


def _log_callback(log: Log) -> Any:
    def said(_: Optional[int], level: int, line: bytes) -> None:
        log(_structs.LOG_LEVELS[level], line.decode(errors="replace"))

    return _structs.LogCallback(said)


# ---- Default contexts --------------------------------------------------------------------------

_live: weakref.WeakSet[Context] = weakref.WeakSet()
defaults: dict[str, Context] = {}
_defaults_lock = threading.Lock()
_is_forked_child = False


def any_default() -> Context:
    """Some default context, for what does not depend on the device."""
    return default(next(iter(defaults), "cpu"))


def default(device: str) -> Context:
    """The default context of "cpu", "cuda:0", ..., made at first use."""
    context = defaults.get(device)
    if context is not None and context._state.handle is not None:
        return context
    with _defaults_lock:
        context = defaults.get(device)
        if context is None or context.is_closed:
            if _is_forked_child:
                _logger.warning("in a forked child kernels are kept in memory only; start "
                                "processes by spawn, or give a Context a cache of its own")
            context = defaults[device] = Context(device, cache="" if _is_forked_child else None)
        return context


def _abandon_inherited() -> None:
    """In a forked child: what the parent made is the parent's, and its locks' state is unknown."""
    global _defaults_lock, _is_forked_child
    _defaults_lock = threading.Lock()
    _is_forked_child = True
    defaults.clear()
    for context in list(_live):
        state = context._state
        state.handle, state.to_destroy, state.calls = None, [], set()
        state.why_closed = "was made before a fork: make a new one in the child"
        context._finalizer.detach()


os.register_at_fork(after_in_child=_abandon_inherited)
