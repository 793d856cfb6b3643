"""Prepared calls: everything that a launch needs made beforehand, for hot loops.

    prepare() ──> Prepared ──p()──> [torch's current stream] ──> quern_launch()

p() builds nothing: the spec, the arrays and the call are structs made once, which C only reads,
so any number of threads may be in it. A kernel that needs a workspace takes it from torch's caching allocator on the current
stream for each call: right with several streams and in a graph's capture. p(a=...) checks what is
new and works on a copy.
"""

from __future__ import annotations

import ctypes
from functools import partial
from typing import TYPE_CHECKING, Any, Callable, Iterable, Optional

from . import _call, _family, _plan, _structs
from ._arrays import Kind, Readings, array_of, read_all
from ._errors import Error, invalid, require_text
from ._structs import pack_call

if TYPE_CHECKING:
    from ._context import Context
    from ._plan import Plan


def request_of(spec: _structs.Spec, block: Any, variant: Optional[str], config: Optional[str]
               ) -> _structs.Request:
    """A struct quern_request; it keeps what it points to alive."""
    require_text("variant", variant)
    require_text("config", config)
    request = _structs.Request(size=ctypes.sizeof(_structs.Request), spec=ctypes.pointer(spec))
    if block is not None:
        request.arrays = ctypes.cast(block, ctypes.POINTER(_structs.ArrayStruct))
    request.variant = None if variant is None else variant.encode()
    request.config = None if config is None else config.encode()
    return request


class Prepared:
    """One call, ready: a kernel and the arrays that it was prepared for. Made by prepare().

    p()                 runs it again on the very same arrays and returns the output; on a GPU on
                        torch's current stream
    p(a=a2, out=out2)   on these instead; shape, strides, dtype and device must be those prepared
    p(stream=s)         on that stream

    Any thread, several at once; arrays are kept alive. Error: the context is closed; a replaced
    array differs from the prepared one or is aligned worse.

    variant, config, config_from   what runs, and whether that was "given", "tuned", a tuned
                                   "neighbour"'s, or the "heuristic"'s
    artifact                       where it came from: "memory", "disk", "compiled"
    spec, bucket, target           texts, as in docs/ARCHITECTURE.md
    steps                          a dict each: name, from, compile_ms, load_ms, registers, spills
                                   (-1: not reported), shared_bytes
    first_call_ms                  the preparation: key, look-up, compile, load
    workspace_bytes                what a call needs besides the arrays, at most
    out                            the output array
    """

    def __init__(self, ctx: "Context", plan: "Plan", readings: Readings, out: Any,
                 variant: Optional[str], config: Optional[str]) -> None:
        self.out = out
        self._context, self._plan = ctx, plan
        self._owners, self._data, self._kinds = readings
        self._state, self._calls = ctx._state, ctx._state.calls
        self._spec, self._call = plan.spec, _structs.Call()
        self._arrays = plan.family.arrays_type.from_buffer_copy(plan.block(self._data))
        kernel = ctypes.c_void_p()
        request = request_of(plan.spec, self._arrays, variant, config)
        report = _structs.Report()
        with ctx._use() as handle:
            ctx._check(ctx._library.quern_prepare(handle, ctypes.byref(request),
                                                  ctypes.byref(kernel)), plan.names)
            ctx._library.quern_kernel_report(kernel, ctypes.byref(report))
            self._ctx = _structs.Opaque.from_address(handle.value or 0)
        self._kernel = _structs.Opaque.from_address(kernel.value or 0)
        self._report(report)
        self._bind()

    def _report(self, report: _structs.Report) -> None:
        self.variant = report.variant.decode()
        self.config = report.config.decode()
        self.config_from = _structs.CONFIG_FROM[report.config_from]
        self.artifact = _structs.ARTIFACT_FROM[report.artifact]
        self.spec = _family.spec_text(self._context, self._spec)
        self.bucket = report.bucket.decode()
        self.target = report.target.decode()
        self.first_call_ms = report.first_call_ms
        self.workspace_bytes = report.workspace_bytes
        self.steps = [_step(report.steps[i]) for i in range(report.step_count)]

    # ---- Launching -----------------------------------------------------------------------------

    def _bind(self) -> None:
        """The foreign call with all but its last argument, and who supplies that."""
        launch = self._foreign = self._context._library.quern_launch
        self._before = (ctypes.byref(self._ctx), ctypes.byref(self._kernel), self._plan.spec_ref)
        self._launch = partial(launch, *self._before, ctypes.byref(self._arrays))
        self._places = {name: i for i, name in enumerate(self._plan.function.arrays)
                        if self._kinds[i] is not None}
        self._default_call = ctypes.byref(self._call)
        self._run: "Callable[[], int]" = partial(self._launch, self._default_call)
        if self._plan.current_stream is not None:
            self._current_stream = self._plan.current_stream
            self._run = self._run_workspace if self.workspace_bytes else self._run_torch

    def __call__(self, **replaced: Any) -> Any:
        if replaced:
            return self._call_with(replaced)
        calls = self._calls
        calls.append(None)
        try:
            if self._state.handle is None:
                raise self._state.refuse()
            status = self._run()
            if status:
                self._fail(status)
        finally:
            calls.pop()
        return self.out

    def _fail(self, status: int) -> None:
        raise self._context._error(status, self._state.handle, self._plan.names)

    def _run_torch(self) -> int:
        return self._launch(pack_call(self._current_stream(), 0, 0))

    def _run_workspace(self) -> int:
        call, _workspace = self._call_with_workspace()
        return self._launch(call)

    def _call_with_workspace(self) -> "tuple[bytes, Any]":
        """For one call: a struct quern_call and its memory, to be kept until C has returned."""
        from . import _torch
        workspace = _torch.empty_workspace(self.workspace_bytes, self._context.device)
        return pack_call(self._current_stream(), workspace.data_ptr(),
                         self.workspace_bytes), workspace

    # ---- With other arrays ---------------------------------------------------------------------

    def _call_with(self, replaced: "dict[str, Any]") -> Any:
        stream = _call.raw_stream(replaced.pop("stream")) if "stream" in replaced else None
        owners, data, kinds = self._owners.copy(), self._data.copy(), self._kinds
        if not replaced.keys() <= self._places.keys():
            raise self._refuse_names(replaced)
        for name, owner, address, kind in zip(
                replaced, *read_all(tuple(replaced), replaced.values(), stream)):
            place = self._places[name]
            if kind != kinds[place]:
                self._check_replacement(name, place, kind)
            owners[place], data[place] = owner, address
        block = self._plan.block(data)
        call, _workspace = self._call_for(stream)
        self._calls.append(None)
        try:
            if self._state.handle is None:
                raise self._state.refuse()
            status = self._foreign(*self._before, block, call)
            if status:
                self._fail(status)
        finally:
            self._calls.pop()
        self._plan.note_writes(owners)
        return replaced.get(self._plan.function.output, self.out)

    def _refuse_names(self, names: "Iterable[str]") -> Error:
        name = next(name for name in names if name not in self._places)
        return Error(f"{self._plan.function.family} was not prepared with an array {name!r}")

    def _call_for(self, stream: Optional[int]) -> "tuple[Any, Any]":
        if stream is None and self.workspace_bytes and self._plan.current_stream is not None:
            return self._call_with_workspace()
        raw = _call.stream_of(self._plan, self._context, stream)
        return pack_call(raw, 0, 0) if raw else self._default_call, None

    def _check_replacement(self, name: str, place: int, kind: Optional[Kind]) -> None:
        """Error: the new array is none, or differs in more than its library."""
        prepared = self._kinds[place]
        assert prepared is not None
        if kind is None:
            raise invalid(name, "must be given")
        new, old = array_of(kind), array_of(prepared)
        for what in ("device", "dtype", "shape", "strides"):
            is_, must = getattr(new, what), getattr(old, what)
            if is_ != must:
                prefix = "on" if what == "device" else what
                raise invalid(name, f"{prefix} {is_}: must be {must}, as prepared")
        if not new.is_writable and self._plan.is_written[place]:
            raise invalid(name, "is read-only")

    def __repr__(self) -> str:
        return f"<quern.Prepared {self.variant} for {self.bucket}>"


def _step(step: _structs.StepReport) -> "dict[str, Any]":
    return {"name": step.name.decode(), "from": _structs.ARTIFACT_FROM[step.from_],
            "compile_ms": step.compile_ms, "load_ms": step.load_ms, "registers": step.registers,
            "spills": step.spills, "shared_bytes": step.shared_bytes}


def bind_call(family: str, arrays: "tuple[Any, ...]", arguments: "dict[str, Any]",
              context: "Optional[Context]"
              ) -> "tuple[Context, Plan, Readings, Any]":
    """The plan of a call by its family's name, its arrays, and the output, made if not given."""
    from .families import DESCRIPTIONS
    function = DESCRIPTIONS.get(family)
    if function is None:
        context = context or _call.default_for(arrays + tuple(arguments.values()))
        function = _call.generic(_family.find(context, family), arrays, arguments)
    values, options = _call.bind(function, arrays, arguments)
    readings = read_all(function.arrays, values)
    context = _call.context_for(function, readings[2], context)
    plan = _plan.find(context, function, readings[2], options)
    out = values[plan.output]
    if plan.make is not None:  # from here on the output is given
        out = _call.make_output(plan, readings)
        plan = _plan.find(context, function, readings[2], options)
    return context, plan, readings, out


def prepare(family: str, *arrays: Any, variant: Optional[str] = None,
            config: Optional[str] = None, context: "Optional[Context]" = None,
            **arguments: Any) -> Prepared:
    """What quern.FAMILY(*arrays, **arguments) would call, found, compiled and loaded now.

    family, arrays, arguments   as for quern.call()
    variant, config             only this variant, these choices ("bm=64,bn=128"); None: tuned,
                                else a neighbour's, else the heuristic's
    context                     None: the default one of the device that the arrays are on

    Runs nothing. Never tunes, except in a Context with tune=. Error: an argument; UNSUPPORTED,
    SEALED, NO_COMPILER and so on with the library's text.
    """
    context, plan, readings, out = bind_call(family, arrays, arguments, context)
    if context._tune_s is not None and variant is None and config is None:
        from . import _tune
        _tune.tune_once(context, plan, readings[1], plan.block(readings[1]))
    return Prepared(context, plan, readings, out, variant, config)
