"""What an array argument is: one record for NumPy arrays, torch tensors, DLPack and views.

    user's object --read--> owner, data, kind        in every call
        View            the array inside, under the dtype that the view names
        torch.Tensor    _torch.read()     imported when torch is
        numpy.ndarray   _numpy.read()     likewise
        anything else   _dlpack.read()    if it has __dlpack__
    kind --array_of()--> Array                       where such a call is met for the first time

A kind is a plain tuple of Array's fields: what a call's inference depends on, and part of the key
under which that is remembered. Nothing is copied and nothing is checked here that depends on a
family.
"""

from __future__ import annotations

import numbers
import sys
from functools import partial
from typing import Any, Callable, Iterable, List, NamedTuple, Optional, Sequence, Tuple

from . import _structs
from ._errors import Error, invalid


Kind = Tuple[Any, ...]
# What keeps the memory alive; the address of element [0, 0, ...], valid while that lives and of no
# meaning in an empty array; the kind.
Reading = Tuple[Any, int, Kind]
# The same of all arguments of a call; None, 0 and None of one that is not given.
Readings = Tuple[List[Any], List[int], List[Optional[Kind]]]


class Array(NamedTuple):
    """One array argument, but for its memory."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]  # in elements, outermost first
    dtype: str  # quern's name ("bf16"); of other dtypes their library's ("complex64")
    device: str  # "cpu", "cuda:0"; other kinds under their library's name
    is_writable: bool
    source: str  # "numpy", "torch", "dlpack": who makes an output like it


DEVICE = Array._fields.index("device")  # in a kind

# Views: what the bits may be in, by their size.
_CARRIERS = {1: ("i8", "u8", "int8", "uint8"), 2: ("int16", "uint16")}


class View:
    """An array of 8-bit or 16-bit integers whose bits are those of another dtype; as view() says.

    ``array`` is the array itself, ``dtype`` quern's name of what its bits mean: neither changes.
    """

    __slots__ = ("_array", "_dtype", "_carriers")

    def __init__(self, array: Any, dtype: Any) -> None:
        name = dtype_word("dtype", dtype)
        size = _structs.DTYPE_BYTES.get(name, 0)
        if size not in _CARRIERS:
            allowed = [name for name, n in _structs.DTYPE_BYTES.items() if n in _CARRIERS]
            raise invalid(None, f"dtype={name}: must be one of: {' '.join(allowed)}")
        self._array, self._dtype, self._carriers = array, name, _CARRIERS[size]
        is_ = describe("array", array).dtype
        if is_ not in self._carriers:
            raise invalid("array", f"dtype {is_}: must be integers of {size * 8} bits to be viewed "
                          f"as {name}")

    @property
    def array(self) -> Any:
        return self._array

    @property
    def dtype(self) -> str:
        return self._dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self._array.shape)

    def __reduce__(self) -> tuple[Any, ...]:
        return View, (self._array, self._dtype)

    def __repr__(self) -> str:
        return f"quern.view({self._array!r}, {self._dtype!r})"


def view(array: Any, dtype: Any) -> View:
    """``array``, of 8-bit or 16-bit integers, taken as ``dtype``: its bits stay as they are.

    For dtypes that NumPy has not: ``quern.view(bits, "bf16")`` with ``bits`` of uint16 or int16;
    "e4m3" and "e5m2" with uint8 or int8; ``dtype`` may be NumPy's or torch's, too. Any shape,
    strides and device. What has the shape and memory of the array stays the array's:
    ``view.array``.

    Error: a dtype of another size, or an array of anything but integers of that size.
    """
    return View(array, dtype)


# Adapters by the argument's type, filled as types are met: an import statement and the isinstance
# tests would cost more than all the rest of a reading. Bounded, since a type may be made to be
# dropped (a weak dictionary costs as much as a reading).
_Adapter = Callable[[Any, Optional[int]], Reading]
_adapters: dict[type, _Adapter] = {}
_MOST_ADAPTERS = 256


class StreamWanted(Exception):
    """A reading cannot go on without knowing the stream that the call will run on."""


def read_all(names: Sequence[str], values: Iterable[Any], stream: Optional[int] = None
             ) -> Readings:
    """Error, by its name: an argument is none of what this file's head lists.

    ``stream`` is the raw stream on which a DLPack producer makes the data ready; None: torch's
    current one of the first CUDA tensor among the values, which may be gone through twice; without
    one the default stream.
    """
    owners: list[Any] = []
    data: list[int] = []
    kinds: list[Optional[Kind]] = []
    try:
        for value in values:
            if value is None:
                owners.append(None)
                data.append(0)
                kinds.append(None)
                continue
            adapter = _adapters.get(type(value)) or _find_adapter(value)
            owner, address, kind = adapter(value, stream)
            owners.append(owner)
            data.append(address)
            kinds.append(kind)
    except Error as error:
        raise Error(f"{names[len(kinds)]}: {error}", error.status) from error.__cause__
    except StreamWanted:
        return read_all(names, values, _stream_among(values))
    return owners, data, kinds


def _stream_among(values: Iterable[Any]) -> int:
    """torch's current stream of the first CUDA tensor's device; 0, the default one, without any."""
    torch: Any = sys.modules.get("torch")
    for value in values if hasattr(torch, "Tensor") else ():
        tensor = value.array if isinstance(value, View) else value
        if isinstance(tensor, torch.Tensor) and tensor.is_cuda:
            from . import _torch
            return _torch.current_stream(tensor.device.index)
    return 0


def remember(table: dict[Any, Any], key: Any, value: Any, most: int) -> None:
    """table[key] = value; of ``most`` entries the older half goes. Any thread: of single steps."""
    if len(table) >= most:
        for old in list(table)[:most // 2]:
            table.pop(old, None)
    table[key] = value


def array_of(kind: Kind) -> Array:
    shape, *others = kind
    return Array(tuple(shape), *others)  # torch's would be printed as torch.Size([2, 3])


def describe(name: str, value: Any) -> Array:
    """The record of the argument ``name``, which is given. Error as of read_all()."""
    try:
        adapter = _adapters.get(type(value)) or _find_adapter(value)
        return array_of(adapter(value, -1)[2])  # -1: of DLPack, not to be made ready for any stream
    except Error as error:
        raise Error(f"{name}: {error}", error.status) from error.__cause__


def _find_adapter(value: Any) -> _Adapter:
    adapter = _adapter_for(value)
    remember(_adapters, type(value), adapter, _MOST_ADAPTERS)
    return adapter


def _adapter_for(value: Any) -> _Adapter:
    torch, numpy = sys.modules.get("torch"), sys.modules.get("numpy")
    if torch is not None and isinstance(value, torch.Tensor):
        from . import _torch
        _torch.check_class(value)
        return _torch.read
    if numpy is not None and isinstance(value, numpy.ndarray):
        masked = sys.modules.get("numpy.ma")
        if masked is not None and isinstance(value, masked.MaskedArray):
            raise Error("a MaskedArray: its mask would be ignored; pass its filled() values")
        from . import _numpy
        return _numpy.read
    if isinstance(value, View):
        return _read_view
    if hasattr(type(value), "__dlpack__"):
        from . import _dlpack
        return _dlpack.read
    kind = type(value).__name__
    article = "an" if kind[:1].lower() in "aeiou" else "a"
    way = "; pass np.asarray() of it" if isinstance(value, (list, tuple)) else ""
    raise Error(f"{article} {kind}: must be a NumPy array, a torch tensor or support DLPack{way}")


def _read_view(value: View, stream: Optional[int]) -> Reading:
    array = value._array
    adapter = _adapters.get(type(array)) or _find_adapter(array)
    owner, data, kind = adapter(array, stream)
    if kind[2] not in value._carriers:  # NumPy lets an array's dtype be set
        raise Error(f"its array's dtype has become {kind[2]}: view it anew")
    return owner, data, (*kind[:2], value._dtype, *kind[3:])


def is_parameter(value: Any) -> bool:
    """Whether an argument is meant as a parameter's value: none, text, a number or a dtype.

    Whatever else there is, is meant as an array, and refused by its name if it is none.
    """
    return value is None or isinstance(value, (str, numbers.Number)) or _own_word(value) is not None


def _own_word(dtype: Any) -> Optional[str]:
    """Quern's name of a dtype of NumPy's or torch's; None: it is neither."""
    torch, numpy = sys.modules.get("torch"), sys.modules.get("numpy")
    if isinstance(dtype, getattr(torch, "dtype", ())):
        from . import _torch
        return _torch.dtype_name(dtype)
    if numpy is not None and isinstance(dtype, (type, numpy.dtype)):
        from . import _numpy
        try:
            return _numpy.dtype_name(numpy.dtype(dtype))
        except TypeError:  # a class that is no dtype
            return None
    return None


def dtype_word(name: str, dtype: Any) -> str:
    """Quern's name of a dtype: "bf16" of "bf16", "bfloat16", NumPy's and torch's. Error: none."""
    if isinstance(dtype, str):
        return _structs.SHORT_NAMES.get(dtype, dtype)
    word = _own_word(dtype)
    if word is None:
        raise Error(f"{name}={dtype!r}: must be a dtype or its name")
    return word


def device_word(device: Any) -> Any:
    """"cuda:0" of torch.device("cuda:0"); anything else as it is."""
    kind: Any = getattr(sys.modules.get("torch"), "device", ())
    if isinstance(device, kind):
        return "cpu" if device.type == "cpu" else str(device)
    return device


def maker(like: Array, shape: tuple[int, ...], dtype: str, is_zeroed: bool = False
          ) -> Callable[[], Any]:
    """Makes dense arrays on the device of ``like`` and of its library; contents undefined, or 0.

    NumPy has no bf16 and no 8-bit floats: they are ml_dtypes' where that is imported, else a View
    of unsigned integers. Error: nobody can make one.
    """
    if like.source == "torch":
        from . import _torch
        return _torch.maker(shape, dtype, like.device, is_zeroed)
    if like.source == "numpy":
        from . import _numpy
        return partial(_numpy.empty, shape, dtype, is_zeroed)
    raise Error("must be given: only NumPy and torch arrays have one made for them")


def row_major(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides of a dense array, in elements."""
    strides, stride = [], 1
    for extent in reversed(shape):
        strides.append(stride)
        stride *= max(extent, 1)
    return tuple(reversed(strides))


def refuse_dtype(name: str, dtype: str, allowed: str) -> Error:
    way = "; pass its astype(np.float32) or .float()" if dtype == "f64" else ""
    return invalid(name, f"dtype {dtype}: must be one of: {allowed}{way}")


def refuse_strides(name: str, array: Array) -> Error:
    return invalid(name, f"strides {array.strides}: the last dimension must be contiguous; pass "
                   f"{name}.copy() / {name}.contiguous()")


def check_strides(name: str, array: Array) -> None:
    """Error unless the last dimension is contiguous and no stride negative, where they matter."""
    if 0 in array.shape:
        return
    for extent, stride in zip(array.shape, array.strides):
        if stride < 0 and extent > 1:
            raise invalid(name, f"strides {array.strides}: must not be negative; pass "
                          f"{name}.copy()")
    if array.shape and array.shape[-1] > 1 and array.strides[-1] != 1:
        raise refuse_strides(name, array)


def check_device(name: str, array: Array) -> None:
    if array.device != "cpu" and not array.device.startswith("cuda:"):
        raise invalid(name, f"on {array.device}: must be on cpu or cuda")
