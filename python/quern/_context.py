"""Contexts: the library's handle, its life, and the default one of each device.

    Context ──> _State(handle, calls, device)   shared with whatever uses the handle
                 handle  None once closed (or in a forked child): nobody calls C any more
                 calls   one entry for each call that is in C now

A user of the handle appends to `calls` first and reads `handle` then; close() clears `handle`
first and waits for `calls` to be empty then. Both are single operations under the interpreter's
lock, so that a call costs no lock of ours and no context is destroyed under one.

At the end of the process every context is destroyed once, by weakref.finalize(); one that a
thread is still using after a few seconds is left to the system. A forked child abandons what it
inherited, untouched, and makes contexts of its own; default ones keep nothing on disk there,
since a child may not open a cache file that its parent has open (docs/ARCHITECTURE.md).
"""

from __future__ import annotations

import ctypes
import logging
import os
import sys
import threading
import time
import weakref
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Callable, Iterable, Iterator, Optional, Union

from . import _library, _structs
from ._errors import Error, require_seconds, require_text

if TYPE_CHECKING:
    from ._family import Family
    from ._facts import Stats
    from ._plan import Plan
    from ._prepared import Prepared
    from ._tune import TuneResult

Log = Callable[[str, str], None]
Path = Union[str, "os.PathLike[str]"]

_logger = logging.getLogger("quern")
_LOGGING_LEVELS = {"warn": logging.WARNING, "info": logging.INFO, "debug": logging.DEBUG}
_EXIT_PATIENCE_S = 5.0


def _log_to_logging(level: str, line: str) -> None:
    _logger.log(_LOGGING_LEVELS.get(level, logging.WARNING), "%s", line)


class _State:
    """What a context and all that was made from it share."""

    __slots__ = ("handle", "calls", "device", "why_closed")
    handle: Optional[ctypes.c_void_p]
    calls: "list[None]"
    device: str
    why_closed: str

    def __init__(self) -> None:
        self.handle = None
        self.calls = []
        self.device = ""
        self.why_closed = "is closed"

    def refuse(self) -> Error:
        return Error(f"context: {self.why_closed}")


def device_index(device: str) -> int:
    """0 of "cuda:0"; -1 of "cpu"."""
    return int(device.partition(":")[2] or 0) if device.startswith("cuda") else -1


def _destroy(state: _State, callbacks: "list[Any]", patience_s: float) -> None:
    """Ends the context once nobody is in it. `callbacks` only have to live until then."""
    handle, state.handle = state.handle, None
    if handle is None:
        return
    give_up = time.monotonic() + patience_s
    while state.calls:
        if time.monotonic() > give_up:
            return
        time.sleep(0.0005)
    if state.device.startswith("cuda") and "torch" in sys.modules:
        from . import _torch
        _torch.synchronize(device_index(state.device))
    _library.load().quern_context_destroy(handle)
    callbacks.clear()


class Context:
    """A device, a cache of kernels, and the options that both have. Any thread may use it.

    device        "cpu", "cuda", "cuda:N"; None: cuda if usable, else cpu
    cache         file of the cache; "": memory only; None: $QUERN_CACHE, else
                  ~/.cache/quern/quern.db
    mode          "normal", or "sealed": never compiles or tunes; None: $QUERN_MODE
    tune          seconds: a bucket met for the first time is tuned then, for at most that long;
                  what the cache has a winner for is not tuned again. None: only tune() tunes
    profile       name of a device profile to plan for; None: the device's own
    threads       that execute a call on the CPU; None: $OMP_NUM_THREADS, else all
    templates     directory that is looked in before the templates in the library
    log           called as log(level, line), possibly from other threads; it may not use the
                  context. None: to the logging module's logger "quern"
    log_level     "off", "warn", "info", "debug"; None: $QUERN_LOG, else warn
    plugins       files of shared objects with further families

    With torch imported, workspaces and tuning buffers of a CUDA context come from torch's caching
    allocator. `with` closes it at the end. Error: an option, the cache or the device is refused.
    """

    def __init__(self, device: Optional[str] = None, cache: "Optional[Path]" = None,
                 mode: Optional[str] = None, tune: Optional[float] = None,
                 profile: Optional[str] = None, threads: Optional[int] = None,
                 templates: "Optional[Path]" = None, log: Optional[Log] = None,
                 log_level: Optional[str] = None, plugins: "Iterable[Path]" = ()) -> None:
        require_seconds("tune", tune)
        require_text("device", device)
        if log is not None and not callable(log):
            raise Error(f"log={log!r}: must be callable as log(level, line)")
        if log_level is not None and log_level not in _structs.LOG_LEVELS:
            raise Error(f"log_level={log_level}: must be one of: {' '.join(_structs.LOG_LEVELS)}")
        self._library = _library.load()
        self._state = _State()
        self._callbacks: "list[Any]" = []
        self._tune_s = tune
        self._tuned: "set[Any]" = set()
        self._families: "dict[str, Family]" = {}
        self._plans: "dict[Any, Plan]" = {}
        texts = {"cache": cache, "mode": mode, "profile": profile, "templates": templates}
        self._open({name: _encoded(name, text) for name, text in texts.items()}, device, threads,
                   log, log_level)
        _live.add(self)
        for path in plugins:
            self._load_plugin(_encoded("plugins", path) or b"")

    # ---- Making --------------------------------------------------------------------------------

    def _open(self, texts: "dict[str, Optional[bytes]]", device: Optional[str],
              threads: Optional[int], log: Optional[Log], log_level: Optional[str]) -> None:
        options = _structs.Options(size=ctypes.sizeof(_structs.Options))
        for name, text in texts.items():
            setattr(options, name, text)
        options.threads = _in_int(threads, "threads")
        say = (log or _log_to_logging) if log_level != "off" else None
        if say is not None:
            options.log = self._keep(_log_callback(say))
            options.log_level = _structs.LOG_LEVELS.index(log_level) if log_level else 0
        if device is None:
            device = self._find_device(options)
        options.device = device.encode()
        if device.startswith("cuda"):
            self._use_torch_memory(options)
        self._state.handle = self._create(options)
        self._state.device = "cuda:0" if device == "cuda" else device
        self._finalizer = weakref.finalize(self, _destroy, self._state, self._callbacks,
                                           _EXIT_PATIENCE_S)

    def _load_plugin(self, path: bytes) -> None:
        """A plugin may leave quern's symbols to the program that loads it: they are made global."""
        ctypes.CDLL(_library.library_path(), ctypes.RTLD_GLOBAL | os.RTLD_NOLOAD)
        with self._use() as handle:
            self._check(self._library.quern_plugin_load(handle, path))

    def _keep(self, callback: Any) -> Any:
        self._callbacks.append(callback)
        return callback

    def _create(self, options: _structs.Options) -> ctypes.c_void_p:
        handle = ctypes.c_void_p()
        status = self._library.quern_context_create(ctypes.byref(options), ctypes.byref(handle))
        if status:
            error = self._error(status, handle)
            self._library.quern_context_destroy(handle)
            raise error
        return handle

    def _find_device(self, options: _structs.Options) -> str:
        """What the library takes by itself; asked first, since memory hooks depend on it."""
        from . import _facts
        handle = self._create(options)
        try:
            facts = _facts.doctor(self._library, handle)
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

    @contextmanager
    def _use(self) -> Iterator[ctypes.c_void_p]:
        """The handle, which is not destroyed meanwhile. Error: closed."""
        state = self._state
        state.calls.append(None)
        try:
            if state.handle is None:
                raise state.refuse()
            yield state.handle
        finally:
            state.calls.pop()

    def _error(self, status: int, handle: Optional[ctypes.c_void_p],
               names: "Optional[dict[str, str]]" = None) -> Error:
        """The calling thread's last failure. `names`: arrays that Python calls differently."""
        text = self._library.quern_errmsg(handle).decode(errors="replace")
        for field, name in (names or {}).items():
            if text.startswith(field) and not text[len(field):len(field) + 1].isalnum():
                text = name + text[len(field):]
        kind = _library.status_name(status)
        return Error(text or kind.lower(), kind)

    def _check(self, status: int, names: "Optional[dict[str, str]]" = None) -> None:
        """Error unless status is 0."""
        if status:
            raise self._error(status, self._state.handle, names)

    @property
    def device(self) -> str:
        """"cpu", "cuda:0"."""
        return self._state.device

    @property
    def is_closed(self) -> bool:
        return self._state.handle is None

    def close(self) -> None:
        """Ends the context; waits for calls that are under way, on a GPU also for its work.

        Whatever was prepared with it is refused from then on. A second close does nothing. Not
        from a log or progress callback: it would wait for itself.
        """
        _destroy(self._state, self._callbacks, float("inf"))
        self._finalizer.detach()

    def __enter__(self) -> "Context":
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

    def prepare(self, family: str, *arrays: Any, **arguments: Any) -> "Prepared":
        """quern.prepare() in this context."""
        from ._prepared import prepare
        return prepare(family, *arrays, context=self, **arguments)

    def tune(self, family: str, *arrays: Any, **arguments: Any) -> "TuneResult":
        """quern.tune() in this context."""
        from ._tune import tune
        return tune(family, *arrays, context=self, **arguments)

    def doctor(self) -> "dict[str, dict[str, str]]":
        """quern.doctor() of this context."""
        from . import _facts
        with self._use() as handle:
            return _facts.doctor(self._library, handle)

    def stats(self) -> "Stats":
        """quern.stats() of this context's cache."""
        from . import _facts
        return _facts.stats(self)

    def families(self) -> "dict[str, str]":
        """quern.families() of this context, plugins included."""
        from . import _family
        return _family.names(self)

    def __getattr__(self, name: str) -> "Callable[..., Any]":
        """context.gemm(...) is quern.gemm(..., context=context), and so for every family."""
        from .families import FUNCTIONS
        if name not in FUNCTIONS:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        function = FUNCTIONS[name]

        def in_this_context(*arrays: Any, **arguments: Any) -> Any:
            return function(*arrays, context=self, **arguments)

        return in_this_context

    def __dir__(self) -> "list[str]":
        from .families import FUNCTIONS
        return [*super().__dir__(), *FUNCTIONS]


def _encoded(name: str, value: "Optional[Path]") -> Optional[bytes]:
    """A text or path as C takes it."""
    try:
        return None if value is None else os.fsencode(value)
    except TypeError:
        raise Error(f"{name}={value!r}: must be text or a path") from None


def _in_int(value: Optional[int], name: str) -> int:
    """None: 0. Error: no C int."""
    if value is None:
        return 0
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**31:
        raise Error(f"{name}={value!r}: must be a whole number of at least 0")
    return value


def _log_callback(log: Log) -> Any:
    def said(_: Optional[int], level: int, line: bytes) -> None:
        log(_structs.LOG_LEVELS[level], line.decode(errors="replace"))

    return _structs.LogCallback(said)


# ---- Default contexts --------------------------------------------------------------------------

_live: "weakref.WeakSet[Context]" = weakref.WeakSet()
defaults: "dict[str, Context]" = {}
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
        state.handle, state.calls = None, []
        state.why_closed = "was made before a fork: make a new one in the child"
        context._finalizer.detach()


os.register_at_fork(after_in_child=_abandon_inherited)
