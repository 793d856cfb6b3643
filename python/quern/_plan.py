"""From the arguments of a call to what C is given: worked out once for each kind of call.

    Function   a family as Python calls it: argument names, options, how sizes follow from arrays
    kinds of all arguments, options  ──>  key ──(a context's dictionary)──> Plan
    Plan       the spec, and the arrays' ranks and strides as bytes: a call adds addresses

All checks of shapes, dtypes, devices and strides are made here, so that a repeated call makes
none: its key is equal only if they would come out the same. What depends on addresses (alignment,
overlaps, whether a GPU can reach them) the library checks in every call.
"""

from __future__ import annotations

import ctypes
import math
import re
import struct
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Callable, NamedTuple, Optional, Sequence

from . import _family, _structs
from ._arrays import Array, Kind, array_of, check_strides, maker, refuse_dtype, remember
from ._errors import Error, invalid

if TYPE_CHECKING:
    from ._context import Context

_MOST_PLANS = 65536  # of a context, about 1.5 KB each; the older half goes then


_REFUSAL = re.compile(r"(\w+)=([^:]*): (.*)")  # of a parameter, as the library says it


class Inferred(NamedTuple):
    """What the arguments of a call mean."""

    params: dict[str, Any]  # of the spec; those left out have their defaults
    views: dict[str, Array] = {}  # arguments that the family takes in another form
    output_rank: int = _structs.MAX_RANK  # of an output to be made: leading extents of 1 go
    asked: dict[str, str] = {}  # parameter: the option that alone says it, where one does
    made: dict[str, tuple[tuple[int, ...], str]] = {}  # shapes and dtypes of outputs to be made;
    #                               of those not named here they are the family's
    origins: dict[str, tuple[str, str]] = {}  # parameter: the argument whose shape says it, and
    #                               what stands there ("K"); or the option, and ""
    zeroed: tuple[str, ...] = ()  # outputs that are made as zeros
    returned: Optional[tuple[str, ...]] = None  # those of the outputs that are; None: all


class Function(NamedTuple):
    """A family as Python calls it."""

    family: str
    arrays: tuple[str, ...]  # arguments that are arrays, in the .def's order
    fields: tuple[str, ...]  # the same, as the .def names them
    outputs: tuple[str, ...]  # those made when they are not given, and returned: of one the
    #                           array, of several a tuple, None for each that has no part; of
    #                           none None
    options: dict[str, Any]  # the other arguments, with their defaults
    infer: Callable[[dict[str, Optional[Array]], dict[str, Any]], Inferred]
    key: Any  # what plans are remembered under: hashable
    positional: tuple[str, ...]  # the arrays in the order in which they go without names
    name: str  # of the function; the family's unless it serves a part of that
    fixed: dict[str, Any] = {}  # the parameters that make it that part
    checks: dict[str, Callable[[str, Any], Any]] = {}  # of options: the value, or an Error
    aliases: dict[str, str] = {}  # other names of arguments; "" of those that say nothing here
    numbers: tuple[str, ...] = ()  # arrays of one element, for which a number may be given


@dataclass(frozen=True, eq=False)
class Plan:
    """A kind of call, checked. Immutable: any thread may use it."""

    function: Function
    family: _family.Family
    spec: _structs.Spec
    spec_ref: Any  # byref(spec)
    pack: Callable[..., bytes]  # struct quern_array[] of `parts`
    parts: list[Any]  # of each array the address, here 0, and the rest of the struct
    returns: tuple[int, ...]  # the arguments that are returned
    makers: tuple[tuple[int, Callable[[], Any]], ...]  # of outputs that are not given
    current_stream: Optional[Callable[[], int]]  # torch's, of a GPU's tensors
    is_written: list[bool]  # of each array
    noted: tuple[int, ...]  # written ones that note_write() is called with: torch's
    note_write: Optional[Callable[[Any], None]]
    names: dict[str, str]  # what Python calls an array of the family, where it differs
    is_zeroed: bool  # an output is made as zeros
    device: str  # where it is made

    def block(self, data: list[int]) -> bytes:
        """The struct quern_array[] of one call."""
        parts = self.parts.copy()
        parts[::2] = data
        return self.pack(*parts)

    def result(self, values: Sequence[Any]) -> Any:
        """What a call with these arguments returns."""
        returns = self.returns
        if len(returns) == 1:
            return values[returns[0]]
        return tuple([values[place] for place in returns]) or None

    def note_writes(self, owners: list[Any]) -> None:
        """Tells torch's autograd which tensors have changed."""
        for argument in self.noted:
            self.note_write(owners[argument])  # type: ignore[misc]


def find(context: Context, function: Function, kinds: list[Optional[Kind]],
         options: tuple[Any, ...]) -> Plan:
    """The plan for such a call in the context, remembered. Error: what is wrong with a call."""
    key = (function.key, options, *kinds)
    try:
        plan = context._plans.get(key)
    except TypeError:
        raise Error(f"{_unhashable(function, options)}: must be a word or a number") from None
    if plan is None:
        plan = _make(context, function, kinds, options)
        remember(context._plans, key, plan, _MOST_PLANS)
    return plan


def _unhashable(function: Function, options: tuple[Any, ...]) -> str:
    for name, value in zip(function.options, options):
        try:
            hash(value)
        except TypeError:
            return f"{name}={value!r}"
    return "an argument"


def _make(context: Context, function: Function, kinds: list[Optional[Kind]],
          options: tuple[Any, ...]) -> Plan:
    arrays = [None if kind is None else array_of(kind) for kind in kinds]
    named = dict(zip(function.arrays, arrays))
    check_devices(named, context)
    family = _family.find(context, function.family)
    inferred = function.infer(named, dict(zip(function.options, options)))
    names = dict(zip(function.fields, function.arrays))
    spec = _spec(context, family, inferred, named, names)
    shapes = _family.spec_shapes(context, family, spec)
    assert function.fields == tuple(slot.name for slot in family.slots)
    block, makers, noted = family.arrays_type(), [], []
    is_written = [shape.role in (_structs.OUT, _structs.INOUT) for shape in shapes]
    for i, (name, shape) in enumerate(zip(function.arrays, shapes)):
        array = inferred.views.get(name, named[name])
        if array is None and name in function.outputs and shape.role == _structs.OUT:
            makers.append((i, _maker(name, arrays, shape, inferred)))
            continue
        check_array(name, array, shape)
        if array is None:
            continue
        if 0 not in array.shape:  # an empty one's strides mean nothing
            block[i].rank = len(array.shape)
            block[i].strides[: len(array.shape)] = array.strides
        if is_written[i] and array.source == "torch":
            noted.append(i)
    returned = function.outputs if inferred.returned is None else inferred.returned
    returns = tuple(map(function.arrays.index, returned))
    renamed = {field: name for field, name in names.items() if field != name}
    pack = struct.Struct(_structs.ARRAY_FORMAT * len(arrays)).pack
    return Plan(function, family, spec, ctypes.byref(spec), pack, _parts(block), returns,
                tuple(makers), _current_stream(kinds), is_written, tuple(noted),
                _note_write() if noted else None, renamed, bool(inferred.zeroed), context.device)


def _maker(name: str, arrays: Sequence[Optional[Array]], shape: _structs.Shape,
           inferred: Inferred) -> Callable[[], Any]:
    """What makes the output `name`."""
    like = next(array for array in arrays if array is not None)
    dims, dtype = tuple(shape.dims[: shape.rank]), _structs.DTYPES[shape.dtype]
    extents, word = inferred.made.get(name, (dims[-inferred.output_rank:], dtype))
    assert (math.prod(extents), word) == (math.prod(dims), dtype)
    try:
        return maker(like, extents, dtype, name in inferred.zeroed)
    except Error as error:
        raise Error(f"{name}: {error}") from None


def _parts(block: Any) -> list[Any]:
    parts: list[Any] = []
    for array in block:
        parts += (0, bytes(array)[_structs.ARRAY_TAIL:])
    return parts


def torch_index(kinds: Sequence[Optional[Kind]]) -> int:
    """The device index of the first CUDA tensor of torch's; -1 if there is none."""
    for kind in kinds:
        array = None if kind is None else array_of(kind)
        if array is not None and array.source == "torch" and array.device != "cpu":
            return int(array.device.partition(":")[2])
    return -1


def _current_stream(kinds: Sequence[Optional[Kind]]) -> Optional[Callable[[], int]]:
    index = torch_index(kinds)
    if index < 0:
        return None
    from . import _torch
    return partial(_torch.current_stream, index)


def _note_write() -> Callable[[Any], None]:
    from . import _torch
    return _torch.note_write


def check_devices(named: dict[str, Optional[Array]], context: Context) -> None:
    """All arrays on the context's device."""
    first = next((name for name, array in named.items() if array is not None), "")
    for name, array in named.items():
        if array is None or array.device == context.device:
            continue
        like = named[first]
        why = ("the context's device" if name == first or like is None or
               like.device != context.device else f"as {first} is")
        raise invalid(name, f"on {array.device}: must be on {context.device}, {why}")


def _spec(context: Context, family: _family.Family, inferred: Inferred,
          named: dict[str, Optional[Array]], names: dict[str, str]) -> _structs.Spec:
    """A dtype that comes from an array is refused under the array's name."""
    for name, value in inferred.params.items():
        param = family.params.get(name)
        sources = [names.get(slot.name, slot.name) for slot in family.slots if slot.dtype == name]
        if param and param.kind == _structs.DTYPE and sources and value not in param.domain:
            allowed = " ".join(word for word in param.domain if word != "none")
            if name in inferred.asked:
                raise Error(f"{inferred.asked[name]}={value}: must be one of: {allowed}")
            source = next((source for source in sources if named.get(source)), sources[0])
            raise refuse_dtype(source, value, allowed)
    try:
        return _family.make_spec(context, family, inferred.params)
    except Error as error:
        raise _said_of(error, inferred, named) from None


def _said_of(error: Error, inferred: Inferred, named: dict[str, Optional[Array]]) -> Error:
    """The library's refusal of a parameter as one of the argument that says it."""
    match = _REFUSAL.fullmatch(str(error))
    origin, word = inferred.origins.get(match.group(1), ("", "")) if match else ("", "")
    if not match or not origin:
        return error
    array = named.get(origin)
    if array is None:
        return Error(f"{origin}={match.group(2)}: {match.group(3)}", error.status)
    return Error(f"{origin}: shape {array.shape}: {word} {match.group(3)}", error.status)


def check_array(name: str, array: Optional[Array], shape: _structs.Shape) -> None:
    """An argument against what the spec asks for. Error: role, dtype, shape or strides differ."""
    if shape.role == _structs.ABSENT:
        if array is not None:
            raise invalid(name, "must not be given: it takes no part with these arguments")
        return
    if array is None:
        why = ": its old contents are read" if shape.role == _structs.INOUT else ""
        raise invalid(name, f"must be given{why}")
    dtype, dims = _structs.DTYPES[shape.dtype], tuple(shape.dims[: shape.rank])
    if array.dtype != dtype:
        raise invalid(name, f"dtype {array.dtype}: must be {dtype}")
    check_shape(name, array.shape, dims)
    check_strides(name, array)
    if shape.role != _structs.IN and not array.is_writable:
        raise invalid(name, "is read-only")


def check_shape(name: str, shape: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    """Equal, or with leading extents of 1 left out. Error: said with as few of those as given."""
    missing = len(wanted) - len(shape)
    if missing >= 0 and wanted[missing:] == shape and set(wanted[:missing]) <= {1}:
        return
    while len(wanted) > max(len(shape), 1) and wanted[0] == 1:
        wanted = wanted[1:]
    raise invalid(name, f"shape {shape}: must be {wanted}")
