"""NumPy arrays: what they are, and new ones. Imported when a NumPy array is met, never before."""

from __future__ import annotations

import ctypes
import sys
from typing import Any, Optional

import numpy

from . import _structs
from ._arrays import Reading, View
from ._errors import Error

# By NumPy's names; the last three are ml_dtypes'.
_NAMES = {"float32": "f32", "float16": "f16", "float64": "f64", "int8": "i8", "uint8": "u8",
          "int32": "i32", "int64": "i64", "bfloat16": "bf16", "float8_e4m3fn": "e4m3",
          "float8_e5m2": "e5m2"}
# NumPy gives no buffers of dtypes that are not its own, nor ctypes an address of what is read-only,
# strided or empty; of all others it is the cheapest way to one.
_NOT_BUFFERS = ("bf16", "e4m3", "e5m2")
_Byte = ctypes.c_char
_known: "dict[Any, str]" = {}  # numpy.dtype -> quern's name, of the dtypes met


def dtype_name(dtype: Any) -> str:
    """Quern's name of a NumPy dtype; NumPy's own for others, ">f4" for a foreign byte order."""
    known = _known.get(dtype)
    if known is not None:
        return known
    name = _NAMES.get(dtype.name)
    if name is None or not dtype.isnative or dtype.itemsize != _structs.DTYPE_BYTES[name]:
        return str(dtype.name if dtype.isnative else dtype.str)
    _known[dtype] = name
    return name


def read(value: Any, stream: Optional[int] = None) -> Reading:
    """``stream`` is not used: the data is in host memory."""
    flags, itemsize, dtype = value.flags, value.itemsize or 1, value.dtype
    name = _known.get(dtype) or dtype_name(dtype)
    if flags.carray and value.size and name not in _NOT_BUFFERS:
        address = ctypes.addressof(_Byte.from_buffer(value))
    else:
        address = value.__array_interface__["data"][0]
    if flags.aligned:
        strides = tuple([stride // itemsize for stride in value.strides])
    else:
        strides = tuple([_in_elements(stride, itemsize, value) for stride in value.strides])
    return value, address, (value.shape, strides, name, "cpu", flags.writeable, "numpy")


def _in_elements(stride: int, itemsize: int, value: Any) -> int:
    """Of an array with strides such as those of a field of records."""
    elements, rest = divmod(stride, itemsize)
    if rest:
        raise Error(f"strides of {value.strides} bytes: must be multiples of {itemsize}, the "
                    f"size of {value.dtype.name}; pass a copy()")
    return elements


_PLAIN = {name: numpy.dtype(known) for known, name in _NAMES.items() if hasattr(numpy, known)}


def empty(shape: "tuple[int, ...]", dtype: str) -> Any:
    """A new array; of a dtype that NumPy lacks ml_dtypes' if imported, else a View of integers."""
    if dtype in _PLAIN:
        return numpy.empty(shape, _PLAIN[dtype])
    ml_dtypes = sys.modules.get("ml_dtypes")
    if ml_dtypes is not None:
        name = next(known for known, ours in _NAMES.items() if ours == dtype)
        return numpy.empty(shape, getattr(ml_dtypes, name))
    carrier = numpy.uint16 if _structs.DTYPE_BYTES[dtype] == 2 else numpy.uint8
    return View(numpy.empty(shape, carrier), dtype)
