"""Calls: arrays in, the library's quern_run(), the output back.

    read the arrays -> the context -> the plan -> make the output -> addresses -> C

The same arguments' shapes, strides and dtypes met again skip all of inference and checking
(_plan). Arrays are referenced until C has returned; on a GPU what happens to their memory
afterwards is ordered by the stream, as with every other call there.
"""

from __future__ import annotations

import sys
from typing import Any, Callable, Optional, Sequence

from . import _context, _family, _numbers, _plan
from ._arrays import (DEVICE, Array, Kind, Readings, array_of, check_device, describe,
                      is_parameter, read_all)
from ._context import Context, require_context
from ._errors import Error, require_text
from ._plan import Function, Inferred, Plan
from ._structs import pack_call


def is_traced() -> bool:
    """Whether torch.compile or torch.export looks on, and quern can be an operator of theirs."""
    is_compiling = getattr(sys.modules.get("torch.compiler"), "is_compiling", None)
    return is_compiling is not None and is_compiling() and has_operators()


def has_operators() -> bool:
    """Whether torch is imported, in whole, and has what torch_ops needs: from PyTorch 2.4 on."""
    library = getattr(sys.modules.get("torch"), "library", None)
    return hasattr(library, "register_fake")


def raw_stream(stream: Any) -> Optional[int]:
    """The address of a stream given as an int or a torch.cuda.Stream; None of None."""
    raw = getattr(stream, "cuda_stream", stream)
    if raw is None or (isinstance(raw, int) and not isinstance(raw, bool) and 0 <= raw < 2**64):
        return raw
    raise Error(f"stream={stream!r}: must be a torch.cuda.Stream or the address of a CUDA stream")


def context_for(function: Function, kinds: Sequence[Optional[Kind]],
                context: Optional[Context]) -> Context:
    """The one given, else the default one where the first array is."""
    if context is not None:
        require_context(context)
        return context
    for kind in kinds:
        if kind is not None:
            device = kind[DEVICE]
            if device not in _context.defaults:
                check_device(function.arrays[kinds.index(kind)], array_of(kind))
            return _context.default(device)
    raise Error(f"{function.arrays[0]}: must be given")


def stream_of(plan: Plan, context: Context, stream: Optional[int]) -> Optional[int]:
    """Where a call runs: the stream given, else torch's current one; None: the default one."""
    if stream is None:
        return None if plan.current_stream is None else plan.current_stream()
    if stream and context.device == "cpu":
        raise Error(f"stream={stream}: must be None for arrays on the CPU")
    return stream


def make_outputs(plan: Plan, values: Sequence[Any], readings: Readings,
                 stream: Optional[int] = None) -> list[Any]:
    """The values with new outputs among them; their memory is put into the readings.

    Zeros are written on the stream of the call, where one is given.
    """
    completed = list(values)
    owners, data, kinds = readings
    for place, make in plan.makers:
        made = completed[place] = make() if stream is None else make_on(stream, plan, make)
        ((owners[place],), (data[place],), (kinds[place],)) = read_all(
            (plan.function.arrays[place],), (made,))
    return completed


def make_on(stream: int, plan: Plan, make: Callable[[], Any]) -> Any:
    """make(), with its work, if it has any, on the stream."""
    if not plan.is_zeroed or plan.current_stream is None:
        return make()
    from . import _torch
    with _torch.on_stream(stream, plan.device):
        return make()


def run(function: Function, values: tuple[Any, ...], options: tuple[Any, ...],
        context: Optional[Context], stream: Any) -> Any:
    """One call of a family. `values` and `options` are in the order of the Function's.

    Returns the output, or a tuple of outputs. Error: any argument; the library's own refusals with
    its text.
    """
    given = None if stream is None else raw_stream(stream)
    readings = owners, data, kinds = read_all(function.arrays, values, given)
    ctx = context_for(function, kinds, context)
    plan = _plan.find(ctx, function, kinds, options)
    raw = stream_of(plan, ctx, given)
    result = plan.result(make_outputs(plan, values, readings, given) if plan.makers else values)
    block = plan.block(data)
    if ctx._tune_s is not None:
        from . import _tune
        _tune.tune_once(ctx, plan, owners, data, block)
    call = pack_call(raw, 0, 0) if raw else None
    state, entry = ctx._state, object()
    try:  # as the head of _context says
        state.calls.add(entry)
        handle = state.handle
        if handle is None:
            raise state.refuse()
        status = ctx._library.quern_run(handle, plan.spec_ref, block, call)
        if status:
            raise ctx._error(status, handle, plan.names)
    finally:
        state.calls.discard(entry)
    if plan.noted:
        plan.note_writes(owners)
    return result


# ---- Any family by its name --------------------------------------------------------------------


def call(family: str, *arrays: Any, context: Optional[Context] = None, stream: Any = None,
         **arguments: Any) -> Any:
    """Call a family by its name, those of plugins included; returns the output.

    A family that has a function of its own here ("gemm") is called through it. Of any other,
    arrays and parameters go by the names of its .def (`quern families FAMILY`); arrays may also be
    given by position, in its order. Sizes and dtypes that are the extents and dtypes of arrays are
    taken from them. Outputs that a call only writes are made if they are not given, and returned,
    several as a tuple; of a family that has none, the first array that it changes is returned.
    context and stream are as for gemm().

    Error: the family or one of the arguments is unknown, missing, or refused.
    """
    function, context = function_of(family, arrays, arguments, context)
    values, options = bind(function, arrays, arguments)
    return run(function, values, options, context, stream)


def function_of(family: str, arrays: tuple[Any, ...], arguments: dict[str, Any],
                context: Optional[Context]) -> tuple[Function, Optional[Context]]:
    """A family as Python calls it, and the context, if it took one to find that out."""
    from ._families import DESCRIPTIONS
    require_text("family", family)
    require_context(context)
    function = DESCRIPTIONS.get(family)
    if function is None:
        context = context or default_for(arrays + tuple(arguments.values()))
        found = _family.find(context, family)  # under its alias, it may be
        function = DESCRIPTIONS.get(found.name) or generic(found, arrays, arguments)
    return function, context


def key_value(value: Any) -> Any:
    """An option as part of a key: 0.0 and -0.0 are equal, their texts are not."""
    return float.__repr__(value) if isinstance(value, float) else value


def options_of(function: Function, values: Sequence[Any]) -> tuple[Any, ...]:
    """The options of a call as part of a key. Error: one is not what its name stands for."""
    return tuple([value if value is None and default is None or value is False is default
                  else _option_of(function, name, value)
                  for value, (name, default) in zip(values, function.options.items())])


def _option_of(function: Function, name: str, value: Any) -> Any:
    check = function.checks.get(name)
    return key_value(value if check is None else check(name, value))


def default_for(values: Sequence[Any]) -> Context:
    """The default context of the first array among the values; of the CPU if there is none."""
    for value in values:
        if not is_parameter(value):
            array = describe("array", value)
            check_device("array", array)
            return _context.default(array.device)
    return _context.any_default()


def bind(function: Function, arrays: tuple[Any, ...], arguments: dict[str, Any]
         ) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Arguments in the order of the Function's arrays and options. Error: one is unknown."""
    given = _by_own_names(function, arguments)
    if len(arrays) > len(function.positional):
        raise Error(f"{function.name}() takes at most {len(function.positional)} arrays "
                    f"({', '.join(function.positional)}), {len(arrays)} were given")
    for name, value in zip(function.positional, arrays):
        if name in given:
            raise Error(f"{name}: given twice")
        given[name] = value
    known = (*function.positional, *function.options)
    for name in given:
        if name not in known:
            raise Error(f"{function.name}() has no argument {name!r}: it has "
                        f"{', '.join(known)}")
    return (_numbers.with_arrays(function, tuple(map(given.get, function.arrays))),
            options_of(function, [given.get(name, default)
                                  for name, default in function.options.items()]))


def _by_own_names(function: Function, arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments without aliases, of which None is none. Error: one is given under two names."""
    given: dict[str, Any] = {}
    for name, value in arguments.items():
        own = function.aliases.get(name, name)
        if not own or (own != name and value is None):
            continue
        if own in given and given[own] is not None and value is not None:
            raise Error(f"{name}: must not be given with {own}, another name of it")
        if value is not None or own not in given:
            given[own] = value
    return given


def generic(family: _family.Family, arrays: tuple[Any, ...], arguments: dict[str, Any]
            ) -> Function:
    """The Function of a family that has none here, for a call with these arguments.

    A parameter and an array may have one name: what is text or a number is the parameter.
    """
    slots = tuple(slot.name for slot in family.slots)
    options: dict[str, Any] = {}
    for name, value in arguments.items():
        if name in family.params and (name not in slots or is_parameter(value)):
            options[name] = None
        elif name not in slots:
            known = ", ".join(dict.fromkeys((*slots, *family.params)))
            raise Error(f"{family.name}() has no argument {name!r}: it has {known}")
    outputs = tuple(slot.name for slot in family.slots if slot.is_made)
    changed = (slot.name for slot in family.slots if slot.is_output)

    def infer(named: dict[str, Optional[Array]], given: dict[str, Any]) -> Inferred:
        return Inferred({**_from_arrays(family, named), **given})

    return Function(family.name, slots, slots, outputs or (next(changed, slots[0]),), options,
                    infer, (family.name, *options), slots, family.name)


def _from_arrays(family: _family.Family, named: dict[str, Optional[Array]]) -> dict[str, Any]:
    """Sizes and dtypes that are extents and dtypes of arrays; the first array says each."""
    params: dict[str, Any] = {}
    for slot in family.slots:
        array = named[slot.name]
        if array is None:
            continue
        if slot.dtype is not None:
            params.setdefault(slot.dtype, array.dtype)
        for dim, extent in zip(reversed(slot.dims), reversed(array.shape)):
            if dim is not None:
                params.setdefault(dim, extent)
    return params
