"""Tuning: quern_tune() on the caller's arrays, which come back bit for bit, or on sizes alone."""

from __future__ import annotations

import ctypes
import queue
import threading
from typing import Any, Callable, NamedTuple, Optional, Sequence

from . import _context, _family, _structs
from ._arrays import device_word, is_parameter, remember
from ._context import Context, require_context
from ._errors import Error, count_of, require_callable, require_seconds, require_text
from ._plan import Plan
from ._prepared import bind_call, request_of

_MOST_TUNED = 4096  # kinds of calls that a context remembers to have tuned


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
         progress: Optional[Progress] = None, device: Any = None,
         context: Optional[Context] = None, **arguments: Any) -> TuneResult:
    """Find the fastest variant and config of the bucket of a call, and store it.

    family, arrays, arguments   as for quern.call(): on these arrays, which come back bit for bit;
                                or without any array the parameters by the .def's names:
                                tune("gemm", m=512, n=4096, k=4096, a="bf16", b="bf16", d="bf16")
    budget                      seconds, at most; None: until all candidates were tried
    max_configs                 candidates, at most; None: all
    force                       also where a winner is stored already
    variant                     only this one
    progress                    called as progress(TuneProgress) after each candidate, in this
                                thread; True stops
    device                      without arrays: where, as for Context; None: cuda if usable, else
                                cpu
    context                     None: the default one of the device

    Any thread; of several processes that tune one bucket one does and the others wait. What is
    raised meanwhile (Ctrl-C, or by progress) ends it after the candidate under way, as a budget
    that is spent would. Error: an argument; SEALED; MISS where progress stopped the waiting for
    another process.
    """
    from ._families import DESCRIPTIONS
    options = _options(budget, max_configs, force)
    require_callable("progress", progress, "progress(TuneProgress)")
    require_context(context)
    if arrays or not all(map(is_parameter, arguments.values())):
        if device is not None:
            raise Error(f"device={device}: must not be given with arrays, which are somewhere")
        context, plan, (owners, data, _kinds), _out = bind_call(family, arrays, arguments, context)
        request = request_of(plan.spec, plan.block(data), variant, None)
        _finish_work(plan, context)
        return _tune(context, request, options, progress, plan.names, owners)
    if context is None:
        context = _context.default(_device(device_word(device)))
    elif device is not None:
        raise Error(f"device={device}: must not be given with a context, which has one")
    require_text("family", family)
    function = DESCRIPTIONS.get(family)
    table = _family.find(context, function.family if function else family)
    params = {**arguments, **(function.fixed if function else {})}
    request = request_of(_family.make_spec(context, table, params), None, variant, None)
    return _tune(context, request, options, progress, {}, ())


def _device(device: Optional[str]) -> str:
    if device is None:
        is_cuda = _context.any_default().doctor().get("cuda", {}).get("usable") == "yes"
        return "cuda:0" if is_cuda else "cpu"
    require_text("device", device)
    return "cuda:0" if device == "cuda" else device


def _options(budget: Optional[float], max_configs: Optional[int], force: bool
             ) -> _structs.TuneOptions:
    require_seconds("budget", budget)
    return _structs.TuneOptions(size=ctypes.sizeof(_structs.TuneOptions),
                                budget_s=float(budget or 0), force=bool(force),
                                max_configs=count_of("max_configs", max_configs, least=1))


def _finish_work(plan: Plan, context: Context) -> None:
    """The tuner's streams are its own: what torch's still write must be there before."""
    if plan.current_stream is not None:
        from . import _torch
        _torch.synchronize(_context.device_index(context.device))


def _tune(context: Context, request: _structs.Request, options: _structs.TuneOptions,
          progress: Optional[Progress], names: dict[str, str], owners: Sequence[Any]
          ) -> TuneResult:
    """`owners` keep the arrays' memory, whatever the calling thread does."""
    result = _structs.TuneResultStruct()
    relay = _Relay(progress)
    options.progress = relay.callback

    def tune_there(handle: ctypes.c_void_p) -> None:
        kept = (request, options, owners)
        status = context._library.quern_tune(handle, ctypes.byref(kept[0]), ctypes.byref(kept[1]),
                                             ctypes.byref(result))
        if not relay.is_stopped:
            context._check(status, handle, names)

    # Twice inside: a close() from progress(), in this thread, has to see that, too.
    context._inside(lambda _: relay.run(lambda: context._inside(tune_there)))
    return TuneResult(result.bucket.decode(), result.candidates, result.failed,
                      _entry(result.best), _entry(result.heuristic), result.speedup,
                      result.seconds, result.scratch_bytes, bool(result.is_reused),
                      bool(result.is_drawn))


class _Relay:
    """A tuning in a thread of its own, while the calling one can be interrupted.

        calling thread   run() ──starts──> other thread: quern_tune()
          waits          <──── a TuneProgress ────  after each candidate, through `asked`
          progress()     ───── go on, or stop ───>  through `answers`
          waits          <──── None ──────────────  C has returned

    An exception in the calling thread (Ctrl-C, or progress()'s own) stops the tuning at its next
    candidate, and is raised when C has returned, so that arrays are back as they were.
    """

    def __init__(self, progress: Optional[Progress]) -> None:
        self.is_stopped = False
        self.callback = _structs.ProgressCallback(self._told)
        self._progress = progress
        self._asked: queue.SimpleQueue[Optional[TuneProgress]] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._failures: list[BaseException] = []

    def run(self, work: Callable[[], None]) -> None:
        """work() in the other thread. Raises what it raises, or the exception that ended it."""
        thread = threading.Thread(target=self._work, args=(work,), name="quern.tune", daemon=True)
        interrupt: Optional[BaseException] = None
        thread.start()
        while True:
            try:
                now = self._asked.get()
                if now is None:
                    break
                self._answers.put(interrupt is not None or self._answer(now))
            except BaseException as error:
                interrupt, self.is_stopped = error, True
                self._answers.put(True)
        if interrupt is not None:
            raise interrupt
        if self._failures:
            raise self._failures[0]

    def _answer(self, now: TuneProgress) -> bool:
        return self._progress is not None and bool(self._progress(now))

    def _work(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            self._failures.append(error)
        finally:
            self._asked.put(None)

    def _told(self, _: Optional[int], now: Any) -> int:
        """The library's callback, in the other thread: non-zero stops."""
        if self.is_stopped or self._progress is None:
            return self.is_stopped
        at = now.contents
        texts = [(text or b"").decode(errors="replace")
                 for text in (at.variant, at.config, at.outcome)]
        self._asked.put(TuneProgress(at.done, at.total, at.failed, at.seconds, at.best_us, *texts))
        return self._answers.get() or self.is_stopped


def _entry(entry: _structs.TuneEntry) -> TuneEntry:
    return TuneEntry(entry.variant.decode(), entry.config.decode(), entry.time_us,
                     entry.spread_us)


# ---- Contexts that tune at a bucket's first call -----------------------------------------------


def _alignment(address: int) -> int:
    """The greatest power of two, up to 16, that the address is a multiple of."""
    return min(address & -address, 16) or 16


def tune_once(context: Context, plan: Plan, owners: list[Any], data: list[int], block: bytes
              ) -> None:
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
          _options(context._tune_s, None, False), None, plan.names, owners)
    remember(context._tuned, key, None, _MOST_TUNED)
