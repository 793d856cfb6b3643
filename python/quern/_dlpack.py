"""Arrays of other libraries, by DLPack (https://dmlc.github.io/dlpack/latest).

    value.__dlpack__() -> PyCapsule "dltensor_versioned" or "dltensor" -> DLTensor -> Array

The capsule is looked into and kept, never consumed: the Array owns it, and its destructor gives
the memory back. No array is made this way: outputs are the caller's.
"""

from __future__ import annotations

import ctypes
from ctypes import (POINTER, Structure, c_char_p, c_int, c_int32, c_int64, c_uint8, c_uint16,
                    c_uint32, c_uint64, c_void_p, py_object)
from typing import Any, Optional

from ._arrays import Reading, StreamWanted, row_major
from ._errors import Error


class _Tensor(Structure):
    """DLTensor"""
    _fields_ = [("data", c_void_p), ("device_type", c_int32), ("device_id", c_int32),
                ("ndim", c_int32), ("code", c_uint8), ("bits", c_uint8), ("lanes", c_uint16),
                ("shape", POINTER(c_int64)), ("strides", POINTER(c_int64)),
                ("byte_offset", c_uint64)]


class _Managed(Structure):
    """DLManagedTensor"""
    _fields_ = [("tensor", _Tensor), ("manager", c_void_p), ("deleter", c_void_p)]


class _Versioned(Structure):
    """DLManagedTensorVersioned"""
    _fields_ = [("major", c_uint32), ("minor", c_uint32), ("manager", c_void_p),
                ("deleter", c_void_p), ("flags", c_uint64), ("tensor", _Tensor)]


_READ_ONLY = 1  # a bit of flags
_CPU, _CUDA, _CUDA_HOST, _CUDA_MANAGED = 1, 2, 3, 13
_NAMES = {(2, 32): "f32", (2, 16): "f16", (2, 64): "f64", (4, 16): "bf16", (0, 8): "i8",
          (1, 8): "u8", (0, 32): "i32", (0, 64): "i64", (10, 8): "e4m3", (12, 8): "e5m2"}
_MOST_DIMENSIONS = 64  # NumPy's and torch's bound
_KINDS = {0: "int", 1: "uint", 2: "float", 4: "bfloat", 5: "complex", 6: "bool"}

_is_valid = ctypes.pythonapi.PyCapsule_IsValid
_is_valid.restype, _is_valid.argtypes = c_int, [py_object, c_char_p]
_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_pointer.restype, _pointer.argtypes = c_void_p, [py_object, c_char_p]


def _capsule(value: Any, stream: Optional[int]) -> Any:
    """The capsule, of the newest form that the producer has, with the data ready on ``stream``."""
    kind = int(value.__dlpack_device__()[0])
    options: dict[str, Any] = {}
    if kind in (_CUDA, _CUDA_MANAGED):
        if stream is None:
            raise StreamWanted
        options["stream"] = stream or 1  # 1: the legacy default stream; -1: none
    try:
        return value.__dlpack__(max_version=(1, 0), **options)
    except TypeError:  # a producer from before version 1
        return value.__dlpack__(**options)


def _dtype_name(tensor: _Tensor) -> str:
    name = _NAMES.get((tensor.code, tensor.bits)) if tensor.lanes == 1 else None
    lanes = f"x{tensor.lanes}" if tensor.lanes != 1 else ""
    return name or f"{_KINDS.get(tensor.code, f'code{tensor.code}_')}{tensor.bits}{lanes}"


def _device_name(kind: int, index: int) -> str:
    if kind in (_CPU, _CUDA_HOST):
        return "cpu"
    return f"cuda:{index}" if kind in (_CUDA, _CUDA_MANAGED) else f"DLPack device {kind}:{index}"


def _check(tensor: _Tensor) -> None:
    """Error: what a sound producer never gives."""
    if not 0 <= tensor.ndim <= _MOST_DIMENSIONS or (tensor.ndim and not tensor.shape):
        raise Error(f"its DLPack tensor has {tensor.ndim} dimensions and "
                    f"{'a' if tensor.shape else 'no'} shape")
    if any(extent < 0 for extent in tensor.shape[: tensor.ndim]):
        raise Error("its DLPack tensor has a negative extent")
    if (tensor.data or 0) + tensor.byte_offset >= 2**64:
        raise Error(f"its DLPack byte_offset={tensor.byte_offset}: ends beyond all memory")


def _strides(tensor: _Tensor, shape: tuple[int, ...]) -> tuple[int, ...]:
    """In elements; none given: row-major."""
    return tuple(tensor.strides[: tensor.ndim]) if tensor.strides else row_major(shape)


def read(value: Any, stream: Optional[int] = None) -> Reading:
    """``stream`` as for _arrays.read_all(); None is refused for memory of a GPU (StreamWanted).

    Error: the producer refuses, no capsule comes, or what it holds cannot be.
    """
    try:
        capsule = _capsule(value, stream)
    except StreamWanted:
        raise
    except Exception as error:  # whatever the producer raises, the argument is what is wrong
        text = str(error).partition("\n")[0]
        raise Error(f"its __dlpack__() failed: {text or type(error).__name__}") from error
    is_writable = True
    if _is_valid(capsule, b"dltensor_versioned"):
        versioned = _Versioned.from_address(_pointer(capsule, b"dltensor_versioned"))
        if versioned.major != 1:
            raise Error(f"its DLPack version is {versioned.major}: must be 1 or older")
        tensor, is_writable = versioned.tensor, not versioned.flags & _READ_ONLY
    elif _is_valid(capsule, b"dltensor"):
        tensor = _Managed.from_address(_pointer(capsule, b"dltensor")).tensor
    else:
        raise Error("its __dlpack__() gave no DLPack capsule")
    _check(tensor)
    shape = tuple(tensor.shape[: tensor.ndim])
    kind = (shape, _strides(tensor, shape), _dtype_name(tensor),
            _device_name(tensor.device_type, tensor.device_id), is_writable, "dlpack")
    return (value, capsule), (tensor.data or 0) + tensor.byte_offset, kind
