"""Prepared calls: everything that a launch needs made beforehand, for hot loops.

    prepare() ──> Prepared ──p()──> [torch's current stream] ──> quern_launch()

p() builds nothing: the spec, the arrays and the call are structs made once, which C only reads,
so any number of threads may be in it. A kernel that needs a workspace takes it from torch's caching
allocator on the current stream for each call: right with several streams and in a graph's capture.
p(a=...) checks what is new and works on a copy.
"""

from __future__ import annotations

import ctypes
from functools import partial
from typing import Any, Callable, Iterable, Optional

from . import _call, _family, _plan, _structs
from ._arrays import Array, Kind, Readings, array_of, read_all
from ._context import Context
from ._errors import Error, encoded, invalid, require_text
from ._plan import Plan
from ._structs import pack_call


def request_of(spec: _structs.Spec, block: Any, variant: Optional[str], config: Optional[str]
               ) -> _structs.Request:
    """A struct quern_request; it keeps what it points to alive."""
    require_text("variant", variant)
    require_text("config", config)
    request = _structs.Request(size=ctypes.sizeof(_structs.Request), spec=ctypes.pointer(spec))
    if isinstance(block, bytes):  # which cast() would not keep
        block = ctypes.create_string_buffer(block, len(block))
    if block is not None:
        request.arrays = ctypes.cast(block, ctypes.POINTER(_structs.ArrayStruct))
    request.variant = encoded("variant", variant)
    request.config = encoded("config", config)
    return request


class Prepared:
    """One call, ready: a kernel and the arrays that it was prepared for. Made by prepare().

    p()                 runs it again on the very same arrays and returns what the function does;
                        on a GPU on torch's current stream
    p(a=a2, out=out2)   on these instead; shape, strides, dtype, device and library must be those
                        prepared
    p(stream=s)         on that stream

    Any thread, several at once. The memory that it was prepared with is kept alive, and p() goes
    on with that: a tensor that has been given other memory since (w.data = ..., module.to(...))
    must be prepared again, and one whose memory was taken from it (resize_(0) of its storage,
    NumPy's resize(refcheck=False)) may not be used. Error: the context is closed; a replaced array
    differs from the prepared one or is aligned worse.

    variant, config, config_from   what runs, and whether that was "given", "tuned", a tuned
                                   "neighbour"'s, or the "heuristic"'s
    artifact                       where it came from: "memory", "disk", "compiled"
    spec, bucket, target           texts, as in docs/ARCHITECTURE.md
    steps                          a dict each: name, from, compile_ms, load_ms, registers, spills
                                   (-1: not reported), shared_bytes
    first_call_ms                  the preparation: key, look-up, compile, load
    workspace_bytes                what a call needs besides the arrays, at most
    out                            what p() returns: the output, or a tuple of outputs
    """

    def __init__(self, ctx: Context, plan: Plan, readings: Readings, out: Any,
                 variant: Optional[str], config: Optional[str]) -> None:
        self.out = out
        self._context, self._plan = ctx, plan
        owners, self._data, self._kinds = readings
        self._owners = list(map(_kept, owners, self._kinds))
        self._spec, self._call = plan.spec, _structs.Call()
        self._arrays = plan.family.arrays_type.from_buffer_copy(plan.block(self._data))
        kernel = ctypes.c_void_p()
        request = request_of(plan.spec, self._arrays, variant, config)
        report = _structs.Report()

        def make(handle: ctypes.c_void_p) -> int:
            ctx._check(ctx._library.quern_prepare(handle, ctypes.byref(request),
                                                  ctypes.byref(kernel)), handle, plan.names)
            ctx._library.quern_kernel_report(kernel, ctypes.byref(report))
            return handle.value or 0

        self._ctx = _structs.Opaque.from_address(ctx._inside(make))
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
        self._run: Callable[[], Any] = partial(self._launch, self._default_call)
        if self._plan.current_stream is not None:
            self._current_stream = self._plan.current_stream
            self._run = self._run_workspace if self.workspace_bytes else self._run_torch
        self._hot = self._context._state.calls, self._context._state, self._run

    def __call__(self, *arrays: Any, **replaced: Any) -> Any:
        if replaced or arrays:
            return self._call_with(arrays, replaced)
        calls, state, run = self._hot
        entry = object()
        try:  # as the head of _context says
            calls.add(entry)
            if state.handle is None:
                raise state.refuse()
            status = run()
            if status:
                self._fail(status)
        finally:
            calls.discard(entry)
        return self.out

    def _fail(self, status: int) -> None:
        raise self._context._error(status, self._before[0], self._plan.names)

    def _run_torch(self) -> Any:
        return self._launch(pack_call(self._current_stream(), 0, 0))

    def _run_workspace(self) -> Any:
        call, _workspace = self._call_with_workspace()
        return self._launch(call)

    def _call_with_workspace(self) -> tuple[bytes, Any]:
        """For one call: a struct quern_call and its memory, to be kept until C has returned."""
        from . import _torch
        workspace = _torch.empty_workspace(self.workspace_bytes, self._context.device)
        return pack_call(self._current_stream(), workspace.data_ptr(),
                         self.workspace_bytes), workspace

    # ---- With other arrays ---------------------------------------------------------------------

    def _call_with(self, arrays: tuple[Any, ...], replaced: dict[str, Any]) -> Any:
        stream = _call.raw_stream(replaced.pop("stream")) if "stream" in replaced else None
        owners, data, kinds = self._owners.copy(), self._data.copy(), self._kinds
        if arrays or not replaced.keys() <= self._places.keys():
            raise self._refuse_names(arrays, replaced)
        raw = _call.stream_of(self._plan, self._context, stream)
        for name, owner, address, kind in zip(
                replaced, *read_all(tuple(replaced), replaced.values(), raw)):
            place = self._places[name]
            if kind != kinds[place]:
                self._check_replacement(name, place, kind)
            owners[place], data[place] = owner, address
        block = self._plan.block(data)
        call, _workspace = self._call_for(stream, raw)
        calls, state, _run = self._hot
        entry = object()
        try:
            calls.add(entry)
            if state.handle is None:
                raise state.refuse()
            status = self._foreign(*self._before, block, call)
            if status:
                self._fail(status)
        finally:
            calls.discard(entry)
        self._plan.note_writes(owners)
        if len(self._plan.returns) == 1:
            return replaced.get(self._plan.function.outputs[0], self.out)
        return tuple(map(replaced.get, self._plan.function.outputs, self.out))

    def _refuse_names(self, arrays: tuple[Any, ...], names: Iterable[str]) -> Error:
        known = ", ".join(self._places)
        if arrays:
            return Error(f"arrays are replaced by their names: p({next(iter(self._places))}=...); "
                         f"it was prepared with {known}")
        name = next(name for name in names if name not in self._places)
        return Error(f"{self._plan.function.name} was not prepared with an array {name!r}: it "
                     f"was with {known}")

    def _call_for(self, stream: Optional[int], raw: Optional[int]) -> tuple[Any, Any]:
        """A struct quern_call for the stream ``raw``: ``stream``, else torch's current one."""
        if stream is None and self.workspace_bytes and self._plan.current_stream is not None:
            return self._call_with_workspace()
        return pack_call(raw, 0, 0) if raw else self._default_call, None

    def _check_replacement(self, name: str, place: int, kind: Optional[Kind]) -> None:
        """Error: the new array is none, or differs, but in strides that do not matter."""
        prepared = self._kinds[place]
        assert prepared is not None
        if kind is None:
            raise invalid(name, "must be given")
        new, old = array_of(kind), array_of(prepared)
        for what, prefix in _COMPARED.items():
            is_, must = getattr(new, what), getattr(old, what)
            if is_ != must and not (what == "strides" and _steps(new) == _steps(old)):
                raise invalid(name, f"{prefix} {is_}: must be {must}, as prepared")
        if not new.is_writable and self._plan.is_written[place]:
            raise invalid(name, "is read-only")

    def __repr__(self) -> str:
        return f"<quern.Prepared {self.variant} for {self.bucket}>"


# Fields of an Array, and how a text names them.
_COMPARED = {"device": "on", "dtype": "dtype", "shape": "shape", "strides": "strides",
             "source": "an array of"}


def _steps(array: Array) -> list[int]:
    """The strides that matter."""
    return [stride for extent, stride in zip(array.shape, array.strides) if extent > 1]


def _kept(owner: Any, kind: Optional[Kind]) -> Any:
    """What keeps the memory of an array, whatever becomes of the array."""
    if kind is None or array_of(kind).source != "torch":
        return owner
    from . import _torch
    return _torch.alias(owner)


def _step(step: _structs.StepReport) -> dict[str, Any]:
    return {"name": step.name.decode(), "from": _structs.ARTIFACT_FROM[step.from_],
            "compile_ms": step.compile_ms, "load_ms": step.load_ms, "registers": step.registers,
            "spills": step.spills, "shared_bytes": step.shared_bytes}


def bind_call(family: str, arrays: tuple[Any, ...], arguments: dict[str, Any],
              context: Optional[Context]
              ) -> tuple[Context, Plan, Readings, Any]:
    """The plan of a call by its family's name, its arrays, and the output, made if not given."""
    function, context = _call.function_of(family, arrays, arguments, context)
    values, options = _call.bind(function, arrays, arguments)
    readings = read_all(function.arrays, values)
    context = _call.context_for(function, readings[2], context)
    plan = _plan.find(context, function, readings[2], options)
    if plan.makers:  # from here on the outputs are given
        values = tuple(_call.make_outputs(plan, values, readings))
        plan = _plan.find(context, function, readings[2], options)
    return context, plan, readings, plan.result(values)


def prepare(family: str, *arrays: Any, variant: Optional[str] = None,
            config: Optional[str] = None, context: Optional[Context] = None,
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
        owners, data, _kinds = readings
        _tune.tune_once(context, plan, owners, data, plan.block(data))
    return Prepared(context, plan, readings, out, variant, config)
