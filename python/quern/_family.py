"""The library's tables of a family, and specs made from them.

A table says of each parameter its kind and domain, and of each array its dtype and shape as
expressions of the parameters, in C: "batch, layout ? k : n, ...". Here only bare identifiers of
them are understood, which is enough to find sizes and dtypes from arrays; what a shape must be is
then asked of the library (quern_spec_shape()), which evaluates the expressions.
"""

from __future__ import annotations

import ctypes
import numbers
from typing import TYPE_CHECKING, Any, NamedTuple, Optional

from . import _structs
from ._arrays import dtype_word
from ._errors import Error, encoded, require_text

if TYPE_CHECKING:
    from ._context import Context


class Param(NamedTuple):
    """A row of the parameters' table."""

    name: str
    kind: int  # _structs.SIZE, CHOICE, ...
    domain: tuple[str, ...]  # of a CHOICE or DTYPE
    is_required: bool


class Slot(NamedTuple):
    """A row of the arrays' table: an argument that is an array."""

    name: str
    dtype: Optional[str]  # the DTYPE parameter that it is; None: an expression or a constant
    dims: tuple[Optional[str], ...]  # the SIZE parameter that each extent is; None: likewise
    is_output: bool  # OUT or INOUT, under some parameters at least
    is_made: bool  # OUT, under some parameters at least


class Family:
    """A family's tables, read once a context. Immutable."""

    def __init__(self, name: str, address: int, text: _structs.FamilyDescription) -> None:
        self.name = name
        self.address = address
        self.doc = _text(text.doc)
        self.variants = tuple(_text(text.variants[i]) for i in range(text.variant_count))
        self.params = {param.name: param for param in
                       (_param(text.params[i]) for i in range(text.param_count))}
        self.slots = tuple(self._slot(text.arrays[i]) for i in range(text.array_count))
        self.index = {slot.name: i for i, slot in enumerate(self.slots)}
        self.arrays_type: Any = _structs.ArrayStruct * len(self.slots)

    def _slot(self, info: _structs.ArrayInfo) -> Slot:
        dtype = _text(info.dtype)
        dims = [word.strip() for word in _split(_text(info.shape))]
        sizes = {name for name, param in self.params.items() if param.kind == _structs.SIZE}
        role = _text(info.role)
        return Slot(_text(info.name), dtype if dtype in self.params else None,
                    tuple(dim if dim in sizes else None for dim in dims),
                    "OUT" in role, "OUT" in role.replace("INOUT", ""))


def _text(value: Optional[bytes]) -> str:
    return value.decode() if value else ""


def _split(shape: str) -> list[str]:
    """At the commas outside brackets."""
    parts, depth = [""], 0
    for letter in shape:
        depth += (letter == "(") - (letter == ")")
        if letter == "," and not depth:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def _param(row: _structs.Param) -> Param:
    is_required = row.kind != _structs.REAL and row.default_value == _structs.REQUIRED
    return Param(_text(row.name), row.kind, tuple(_text(row.domain).split()), is_required)


def names(context: Context) -> dict[str, str]:
    """Every family that the context knows: what it computes, in a line."""
    library = context._library

    def read_all(handle: Any) -> list[Family]:
        count = library.quern_family_count(handle)
        return [_read(context, library.quern_family_at(handle, i)) for i in range(count)]

    return {row.name: row.doc for row in context._inside(read_all)}


def _read(context: Context, address: int) -> Family:
    text = _structs.FamilyDescription()
    context._library.quern_family_describe(address, ctypes.byref(text))
    return Family(_text(text.name), address, text)


def find(context: Context, name: str) -> Family:
    """Error: the context knows no such family; lists those it knows."""
    require_text("family", name)
    known = context._families.get(name)
    if known is not None:
        return known
    raw = b"" if name is None or "\0" in name else encoded("family", name)

    def read(handle: Any) -> Optional[Family]:
        address = context._library.quern_family_find(handle, raw)
        return _read(context, address) if address else None

    family = context._inside(read)
    if family is None:
        raise Error(f"family={name}: must be one of: {' '.join(names(context))}")
    context._families[name] = family
    return family


def _value_text(param: Param, value: Any) -> str:
    """What the library reads the value from: True is "1", 512 is "512", torch.float32 "f32"."""
    if param.kind == _structs.DTYPE and not isinstance(value, numbers.Number):
        return dtype_word(param.name, value)
    if param.kind == _structs.FLAG and not isinstance(value, str) and value in (0, 1):
        return str(int(value))
    if param.kind == _structs.REAL and isinstance(value, numbers.Real):
        try:
            return repr(float(value))
        except OverflowError:
            raise Error(f"{param.name}: is beyond what a double holds") from None
    return str(value)


def make_spec(context: Context, family: Family, values: dict[str, Any]) -> _structs.Spec:
    """The spec with these parameters, validated. Error: the library's text."""
    spec = _structs.Spec()
    reference = ctypes.byref(spec)
    context._ask("quern_spec_init", encoded("family", family.name), reference)
    for name, value in values.items():
        param = family.params.get(name)
        text = str(value) if param is None else _value_text(param, value)
        context._ask("quern_spec_set", reference, encoded("parameter", name), encoded(name, text))
    context._ask("quern_spec_validate", reference)
    return spec


def spec_text(context: Context, spec: _structs.Spec) -> str:
    """Canonical: all parameters, in the .def's order."""
    buffer = ctypes.create_string_buffer(4096)
    context._library.quern_spec_text(ctypes.byref(spec), buffer, len(buffer))
    return buffer.value.decode()


def spec_shapes(context: Context, family: Family, spec: _structs.Spec
                ) -> list[_structs.Shape]:
    """Role, dtype and dimensions of every array under the spec."""
    shapes = [_structs.Shape() for _ in family.slots]
    for i, shape in enumerate(shapes):
        context._ask("quern_spec_shape", ctypes.byref(spec), i, ctypes.byref(shape))
    return shapes
