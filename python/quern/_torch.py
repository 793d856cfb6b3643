"""PyTorch's side of the package: what a tensor is, and torch's streams and memory for the library.

Imported when the first torch tensor is met, never before, so that a program without torch pays
nothing and a torch that is imported after quern is found.

    tensor --read()--> address, kind        shape, strides, dtype and device by name
    a call --current_stream()--> stream     torch's current stream of the tensor's device
    library --alloc/free callbacks--> torch's caching allocator, on the call's stream

The allocator's callbacks are called by the library, from any thread, without Python's lock (ctypes
takes it). What is raised in one cannot pass through C: it is logged, and the library sees that
there is no memory. Memory is of the stream that is asked for; while that stream is being captured
into a CUDA graph, torch gives memory of the graph's own pool, so that replays find it.

Not here: the operators for torch.compile (torch_ops.py). A tensor that was made on one stream and
is used on another is the caller's to order and to keep (Tensor.record_stream), as with any
operator of torch.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import Any, Callable, Optional, Tuple

import torch

from ._arrays import Reading, row_major
from ._errors import Error
from ._structs import SHORT_NAMES, AllocCallback, FreeCallback

_LOG = logging.getLogger("quern")

_DTYPES = {
    short: getattr(torch, name) for name, short in SHORT_NAMES.items() if hasattr(torch, name)
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


# ---- Tensors -----------------------------------------------------------------------------------


def dtype_name(dtype: torch.dtype) -> str:
    """The library's name of a dtype: "bf16" for torch.bfloat16; else torch's: "complex64"."""
    return _NAMES.get(dtype) or _plain(dtype)


def dtype_of(name: str) -> torch.dtype:
    """torch.bfloat16 for "bf16". Error: one that this torch does not have."""
    dtype = _DTYPES.get(name)
    if dtype is None:
        raise Error(f"dtype {name}: this torch has no such tensors")
    return dtype


def read(tensor: torch.Tensor, stream: Optional[int] = None) -> Reading:
    """A tensor's address and kind. ``stream`` is not used: calls take torch's current one.

    Error, without the argument's name, for what has no plain memory (sparse, meta, wrapped or
    freed tensors), for a lazy negation, and for a tensor that requires a gradient while gradients
    are recorded. dtypes and devices that the library does not have are named, not refused.
    """
    if tensor.requires_grad and torch.is_grad_enabled():
        raise Error(GRADIENT)
    try:
        shape, strides, data = tensor.shape, tensor.stride(), tensor.data_ptr()
    except RuntimeError as error:
        raise Error(_why_not_plain(tensor, error)) from error
    if not data and tensor.numel():
        raise Error(_why_no_memory(tensor))
    if tensor.is_neg():
        raise Error("is a lazy negation: pass a.resolve_neg()")
    dtype, device = tensor.dtype, tensor.device
    return tensor, data, (shape, strides, _NAMES.get(dtype) or _plain(dtype),
                          _devices.get(device) or _device_name(device), True, "torch")


GRADIENT = (
    "requires grad: quern has no gradients; call it under torch.no_grad() or pass a.detach()"
)


def _plain(thing: object) -> str:
    return str(thing).replace("torch.", "", 1)


_devices: dict[torch.device, str] = {}  # the names of those met


def _device_name(device: torch.device) -> str:
    name = _devices[device] = "cpu" if device.type == "cpu" else str(device)
    return name


def _why_not_plain(tensor: torch.Tensor, error: RuntimeError) -> str:
    """Only strided tensors have strides, and storage unless they wrap another (vmap, ...)."""
    if tensor.layout is not torch.strided:
        return f"layout {_plain(tensor.layout)}: must be strided (dense)"
    first_line = str(error).partition("\n")[0]
    return f"has no memory of its own: {first_line}"


def _why_no_memory(tensor: torch.Tensor) -> str:
    if tensor.is_meta:
        return "is a meta tensor: has no memory"
    return "its memory was freed (the storage was resized to 0)"


def alias(tensor: torch.Tensor) -> torch.Tensor:
    """The same memory and version; kept when the tensor is given another (``w.data = ...``)."""
    return tensor.detach()


def check_class(tensor: torch.Tensor) -> None:
    """Error: fake tensors (a null pointer and a warning), wrappers such as DTensor (theirs is
    inside)."""
    from torch._subclasses.fake_tensor import FakeTensor
    from torch.utils._python_dispatch import is_traceable_wrapper_subclass

    if isinstance(tensor, FakeTensor):
        raise Error("is a fake tensor: has no memory; trace torch.ops.quern instead")
    if is_traceable_wrapper_subclass(tensor):
        kind = type(tensor).__name__
        raise Error(f"a {kind} wraps other tensors: pass one that has its own memory")


def maker(shape: Tuple[int, ...], dtype: str, device: str, is_zeroed: bool
          ) -> Callable[[], torch.Tensor]:
    """Makes dense tensors, zeros or not filled; empty_strided() costs half of what empty() does."""
    if is_zeroed:
        return partial(torch.zeros, shape, dtype=dtype_of(dtype), device=torch.device(device))
    return partial(
        torch.empty_strided,
        shape,
        row_major(shape),
        dtype=dtype_of(dtype),
        device=torch.device(device),
    )


def on_stream(stream: int, device: str) -> Any:
    """Within it torch works on the stream with this address."""
    return torch.cuda.stream(torch.cuda.ExternalStream(stream, device=device))


note_write: Callable[[torch.Tensor], None] = torch.autograd.graph.increment_version
"""Tells autograd that a call wrote to the tensor: a backward() that needs its old contents is
refused then."""


# ---- Streams -----------------------------------------------------------------------------------


def _no_streams(device_index: int) -> int:
    raise Error(f"device=cuda:{device_index}: this torch was built without CUDA", "DEVICE")


current_stream: Callable[[int], int] = getattr(
    torch._C, "_cuda_getCurrentRawStream", _no_streams
)
"""The raw cudaStream_t (0: the default stream) that is current in this thread for a device."""


def is_capturing() -> bool:
    """Whether this thread's current stream is being captured into a CUDA graph."""
    return bool(torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing())


def synchronize(device_index: int) -> None:
    """Wait for all work on a device: before tuning, which the library orders behind the default
    stream only, and before a context is destroyed."""
    torch.cuda.synchronize(device_index)


def is_cuda_usable() -> bool:
    """Whether torch has a GPU, and so memory of it for the library."""
    return bool(torch.cuda.is_available())


# ---- Memory ------------------------------------------------------------------------------------


def empty_workspace(nbytes: int, device: str) -> torch.Tensor:
    """uint8 memory of torch's current stream, for a call on that stream; 512-byte aligned.

    It may be dropped as soon as the call is queued: what torch gives it to next is ordered behind.
    """
    return torch.empty(nbytes, dtype=torch.uint8, device=device)


def _alloc(nbytes: int, device: int, stream: Optional[int], _user: Any) -> Optional[int]:
    try:
        return int(torch.cuda.caching_allocator_alloc(nbytes, device, stream or 0))
    except BaseException as error:  # Nothing can pass through C. An interrupt ends the call, too.
        _LOG.warning("torch's allocator: %d bytes on cuda:%d: %r", nbytes, device, error)
        return None


def _free(data: Optional[int], _nbytes: int, _device: int, _stream: Any, _user: Any) -> None:
    try:
        torch.cuda.caching_allocator_delete(data)
    except BaseException as error:  # As above.
        _LOG.warning("torch's allocator: could not take back %#x: %r", data or 0, error)


_ALLOCATOR = (AllocCallback(_alloc), FreeCallback(_free))


def allocator() -> Tuple[Any, Any]:
    """The callbacks for quern_options.alloc and .free; they live as long as the process.

    torch's allocator is made ready first: it is not before torch is used on a GPU.
    """
    torch.cuda.init()
    return _ALLOCATOR
