"""NumPy arrays: what they are, and new ones. Imported when a NumPy array is met, never before."""

from __future__ import annotations

import ctypes
import sys
from typing import Any, Optional

import numpy

from . import _structs
from ._arrays import Reading, View
from ._errors import Error

# NumPy gives no buffers of dtypes that are not its own, nor ctypes an address of what is read-only,
# strided or empty; of all others it is the cheapest way to one.
_NOT_BUFFERS = ("bf16", "e4m3", "e5m2")
_Byte = ctypes.c_char
_known: dict[Any, str] = {}  # numpy.dtype -> quern's name, of the dtypes met


def dtype_name(dtype: Any) -> str:
    """Quern's name of a NumPy dtype; NumPy's own for others, ">f4" for a foreign byte order."""
    name = _structs.SHORT_NAMES.get(dtype.name)
    if name is None or not dtype.isnative or dtype.itemsize != _structs.DTYPE_BYTES[name]:
        return str(dtype.name if dtype.isnative else dtype.str)
    _known[dtype] = name
    return name


def read(value: Any, stream: Optional[int] = None) -> Reading:
    """``stream`` is not used: the data is in host memory."""
    flags, itemsize, dtype = value.flags, value.itemsize or 1, value.dtype
    name = _known.get(dtype)
    if name is None:  # not one of quern's, or met for the first time
        name, is_buffer = dtype_name(dtype), False
    else:
        is_buffer = flags.carray and value.size and name not in _NOT_BUFFERS
    if is_buffer:
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


_LONG_NAMES = {short: name for name, short in _structs.SHORT_NAMES.items()}
_PLAIN = {short: numpy.dtype(name) for short, name in _LONG_NAMES.items() if hasattr(numpy, name)}


def empty(shape: tuple[int, ...], dtype: str, is_zeroed: bool = False) -> Any:
    """A new array; of a dtype that NumPy lacks ml_dtypes' if imported, else a View of integers."""
    make = numpy.zeros if is_zeroed else numpy.empty
    if dtype in _PLAIN:
        return make(shape, _PLAIN[dtype])
    ml_dtypes = sys.modules.get("ml_dtypes")
    if ml_dtypes is not None:
        return make(shape, getattr(ml_dtypes, _LONG_NAMES[dtype]))
    carrier = numpy.uint16 if _structs.DTYPE_BYTES[dtype] == 2 else numpy.uint8
    return View(make(shape, carrier), dtype)
