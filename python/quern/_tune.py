"""Tuning: quern_tune() on the caller's arrays, which come back bit for bit, or on sizes alone."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any, Callable, NamedTuple, Optional

from . import _context, _family, _structs
from ._errors import Error, require_seconds
from ._prepared import bind_call, request_of

if TYPE_CHECKING:
    from ._context import Context
    from ._plan import Plan


class TuneEntry(NamedTuple):
    """A variant with its choices, and its time of one call in microseconds: median and MAD."""

    variant: str
    config: str
    time_us: float
    spread_us: float


class TuneResult(NamedTuple):
    """What tune() found. `speedup` is of `best` over `heuristic`."""

    bucket: str
    candidates: int
    failed: int
    best: TuneEntry
    heuristic: TuneEntry
    speedup: float
    seconds: float
    scratch_bytes: int
    is_reused: bool  # a stored winner: nothing was measured
    is_drawn: bool  # inputs were drawn at the bucket's sizes; the arrays given were left alone


class TuneProgress(NamedTuple):
    """How far a tuning is, after each candidate; times in seconds and microseconds."""

    done: int
    total: int
    failed: int
    seconds: float
    best_us: float
    variant: str
    config: str
    outcome: str  # "ok", or why the candidate was rejected


Progress = Callable[[TuneProgress], Any]


def tune(family: str, *arrays: Any, budget: Optional[float] = None,
         max_configs: Optional[int] = None, force: bool = False, variant: Optional[str] = None,
         progress: Optional[Progress] = None, device: Optional[str] = None,
         context: "Optional[Context]" = None, **arguments: Any) -> TuneResult:
    """Find the fastest variant and config of the bucket of a call, and store it.

    family, arrays, arguments   as for quern.call(): on these arrays, which come back bit for bit;
                                or without any array the parameters by the .def's names:
                                tune("gemm", m=512, n=4096, k=4096, a="bf16", b="bf16", d="bf16")
    budget                      seconds, at most; None: until all candidates were tried
    max_configs                 candidates, at most; None: all
    force                       also where a winner is stored already
    variant                     only this one
    progress                    called as progress(TuneProgress) after each candidate; True stops
    device                      without arrays: where; None: cuda if usable, else cpu
    context                     None: the default one of the device

    Any thread; of several processes that tune one bucket one does and the others wait. Error: an
    argument; SEALED; MISS where progress stopped the waiting for another process.
    """
    options = _options(budget, max_configs, force)
    if arrays or any(_is_array(value) for value in arguments.values()):
        if device is not None:
            raise Error(f"device={device}: must not be given with arrays, which are somewhere")
        context, plan, (_owners, data, _kinds), _out = bind_call(family, arrays, arguments, context)
        request = request_of(plan.spec, plan.block(data), variant, None)
        _finish_work(plan, context)
        return _tune(context, request, options, progress, plan.names)
    if context is None:
        context = _context.default(_device(device))
    elif device is not None:
        raise Error(f"device={device}: must not be given with a context, which has one")
    table = _family.find(context, family)
    request = request_of(_family.make_spec(context, table, arguments), None, variant, None)
    return _tune(context, request, options, progress, {})


def _is_array(value: Any) -> bool:
    return value is not None and not isinstance(value, (str, int, float))


def _device(device: Optional[str]) -> str:
    if device is None:
        is_cuda = _context.any_default().doctor().get("cuda", {}).get("usable") == "yes"
        return "cuda:0" if is_cuda else "cpu"
    return "cuda:0" if device == "cuda" else device


def _options(budget: Optional[float], max_configs: Optional[int], force: bool
             ) -> _structs.TuneOptions:
    require_seconds("budget", budget)
    if max_configs is not None and (not isinstance(max_configs, int) or max_configs < 1):
        raise Error(f"max_configs={max_configs!r}: must be a number of at least 1, or None")
    return _structs.TuneOptions(size=ctypes.sizeof(_structs.TuneOptions), budget_s=budget or 0,
                                max_configs=max_configs or 0, force=bool(force))


def _finish_work(plan: "Plan", context: "Context") -> None:
    """The tuner's streams are its own: what torch's still write must be there before."""
    if plan.current_stream is not None:
        from . import _torch
        _torch.synchronize(_context.device_index(context.device))


def _tune(context: "Context", request: _structs.Request, options: _structs.TuneOptions,
          progress: Optional[Progress], names: "dict[str, str]") -> TuneResult:
    raised: "list[BaseException]" = []
    options.progress = _progress_callback(progress, raised)
    result = _structs.TuneResultStruct()
    with context._use() as handle:
        status = context._library.quern_tune(handle, ctypes.byref(request), ctypes.byref(options),
                                             ctypes.byref(result))
        if raised:
            raise raised[0]
        context._check(status, names)
    return TuneResult(result.bucket.decode(), result.candidates, result.failed,
                      _entry(result.best), _entry(result.heuristic), result.speedup,
                      result.seconds, result.scratch_bytes, bool(result.is_reused),
                      bool(result.is_drawn))


def _progress_callback(progress: Optional[Progress], raised: "list[BaseException]") -> Any:
    """An exception in progress() stops the tuning and is raised when C has returned."""
    if progress is None:
        return _structs.ProgressCallback()

    def told(_: Optional[int], now: Any) -> int:
        at = now.contents
        texts = [(text or b"").decode(errors="replace")
                 for text in (at.variant, at.config, at.outcome)]
        try:
            return bool(progress(TuneProgress(at.done, at.total, at.failed, at.seconds,
                                              at.best_us, *texts)))
        except BaseException as error:
            raised.append(error)
            return 1

    return _structs.ProgressCallback(told)


def _entry(entry: _structs.TuneEntry) -> TuneEntry:
    return TuneEntry(entry.variant.decode(), entry.config.decode(), entry.time_us,
                     entry.spread_us)


# ---- Contexts that tune at a bucket's first call -----------------------------------------------


def _alignment(address: int) -> int:
    """The greatest power of two, up to 16, that the address is a multiple of."""
    return min(address & -address, 16) or 16


def tune_once(context: "Context", plan: "Plan", data: "list[int]", block: bytes) -> None:
    """Tunes what such a call needs, unless this was done or a stored winner serves it.

    Not while torch's current stream is being captured: the call then says what it lacks.
    """
    key = (plan.function.family, bytes(plan.spec), *plan.parts, *map(_alignment, data))
    if key in context._tuned:
        return
    if plan.current_stream is not None:
        from . import _torch
        if _torch.is_capturing():
            return
    _finish_work(plan, context)
    _tune(context, request_of(plan.spec, block, None, None),
          _options(context._tune_s, None, False), None, plan.names)
    context._tuned.add(key)
