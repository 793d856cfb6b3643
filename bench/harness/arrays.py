"""Arrays for a case: random inputs, empty outputs, and floats of either for the reference.

    HostArrays    NumPy, in huge pages where the kernel gives them, no two at the same place of a
                  page (they would meet in the same lines of a cache); bf16 is uint16 bits
    CudaArrays    torch tensors on one device

Inputs are uniform in [-1, 1), cut out of one pool of such numbers: each array starts at another
place of it, so that no two of a case are alike and making them costs a copy. Not for threads.
"""
from __future__ import annotations

import itertools
import math
import mmap
from typing import Any, Protocol, Sequence

HUGE = 2 << 20
STAGGER = (4096 + 64, 1 << 16)  # bytes: step, and where it begins again
POOL = (1 << 24) + 43  # elements; odd, so that arrays of 2^n elements get different ones
STRIDE = 7368787  # between the starts of successive arrays: prime

LAST_LEVEL = 256 << 20  # bytes between two uses of a set on the CPU: beyond most private caches
MOST_SETS = 64

BYTES = {"f32": 4, "bf16": 2, "f16": 2}


class Arrays(Protocol):
    """What an adapter makes its cases with. Shapes are tuples, dtypes "f32", "bf16", "f16", and on
    a GPU "e4m3"."""

    def random(self, shape: Sequence[int], dtype: str) -> Any:
        """A new array of random numbers, unlike those before it."""

    def empty(self, shape: Sequence[int], dtype: str) -> Any:
        """A new array with nothing in particular in it."""

    def integers(self, values: Sequence[int], dtype: str) -> Any:
        """A new array of these, "i32" or "i64"."""

    def floats(self, array: Any, dtype: str, is_double: bool = False) -> Any:
        """The same numbers as f32 (or f64)."""

    def sets_needed(self, bytes_per_set: int) -> int:
        """How many sets of arrays push each other out of the last-level cache."""

    def free_bytes(self) -> int:
        """Memory that may be taken."""


PLACED = itertools.count()  # of host_bytes()


def host_bytes(size_bytes: int) -> Any:
    """Fresh zeros for the CPU, aligned to 64 bytes, each at another place of a huge page: what the
    case's arrays lie in, and what contestants keep of their own."""
    import numpy

    memory = mmap.mmap(-1, size_bytes + HUGE + STAGGER[1])
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    raw = numpy.frombuffer(memory, "u1")
    start = -raw.ctypes.data % HUGE + next(PLACED) * STAGGER[0] % STAGGER[1]
    return raw[start:start + size_bytes]


def host_floats(array: Any, dtype: str, is_double: bool = False) -> Any:
    """The same numbers as f32 or f64: bf16's bits are the upper half of an f32's."""
    if dtype == "bf16":
        array = (array.astype("u4") << 16).view("f4")
    return array.astype("f8" if is_double else "f4")


class HostArrays:
    """NumPy arrays for the CPU."""

    def __init__(self, pool: int = POOL, most_sets: int = MOST_SETS) -> None:
        import numpy

        self._made, self._most_sets = 0, most_sets
        generator = numpy.random.default_rng()
        self._pool = generator.random(pool, "f4") * 2 - 1

    def random(self, shape: Sequence[int], dtype: str) -> Any:
        """Uniform in [-1, 1), rounded towards zero where bf16."""
        array = self.empty(shape, dtype)
        pool = self._pool.size
        flat, start = array.reshape(-1), self._made * STRIDE % pool
        self._made += 1
        done = 0
        while done < flat.size:
            count = min(flat.size - done, pool - start)
            flat[done:done + count] = self._narrow(self._pool[start:start + count], dtype)
            done, start = done + count, 0
        return array

    def empty(self, shape: Sequence[int], dtype: str) -> Any:
        """Zeros in pages of their own, aligned to 64 bytes."""
        size = math.prod(shape) * BYTES[dtype]
        kind = {"f32": "f4", "f16": "f2", "bf16": "u2"}[dtype]
        return host_bytes(size).view(kind).reshape(shape)

    def integers(self, values: Sequence[int], dtype: str) -> Any:
        """As a plain NumPy array."""
        import numpy

        return numpy.array(values, {"i32": "i4", "i64": "i8"}[dtype])

    def floats(self, array: Any, dtype: str, is_double: bool = False) -> Any:
        """Of host_floats()."""
        return host_floats(array, dtype, is_double)

    def sets_needed(self, bytes_per_set: int) -> int:
        """One more than what lies between two uses of a set."""
        return min(self._most_sets, 1 + math.ceil(LAST_LEVEL / bytes_per_set))

    def free_bytes(self) -> int:
        """MemAvailable."""
        with open("/proc/meminfo", encoding="ascii") as facts:
            for line in facts:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
        raise OSError("/proc/meminfo: has no MemAvailable")

    def _narrow(self, values: Any, dtype: str) -> Any:
        return (values.view("u4") >> 16).astype("u2") if dtype == "bf16" else values


class CudaArrays:
    """torch tensors on one CUDA device."""

    def __init__(self, device: str, most_sets: int = 1 << 30) -> None:
        import torch

        self._torch, self._device, self._most_sets = torch, device, most_sets
        self._dtypes = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16,
                        "e4m3": torch.float8_e4m3fn}
        self._made = 0
        self._pool = torch.empty(POOL, device=device).uniform_(-1, 1)

    def random(self, shape: Sequence[int], dtype: str) -> Any:
        """Uniform in [-1, 1), rounded to the nearest."""
        tensor = self.empty(shape, dtype)
        flat, start = tensor.view(-1), self._made * STRIDE % POOL
        self._made += 1
        done = 0
        while done < flat.numel():
            count = min(flat.numel() - done, POOL - start)
            flat[done:done + count].copy_(self._pool[start:start + count])
            done, start = done + count, 0
        return tensor

    def empty(self, shape: Sequence[int], dtype: str) -> Any:
        """torch.empty(): aligned to 512 bytes."""
        return self._torch.empty(tuple(shape), dtype=self._dtypes[dtype], device=self._device)

    def integers(self, values: Sequence[int], dtype: str) -> Any:
        """As a tensor on the device."""
        kind = {"i32": self._torch.int32, "i64": self._torch.int64}[dtype]
        return self._torch.tensor(list(values), dtype=kind, device=self._device)

    def floats(self, array: Any, dtype: str, is_double: bool = False) -> Any:
        """The tensor's own dtype says what it is."""
        return array.to(self._torch.float64 if is_double else self._torch.float32)

    def sets_needed(self, bytes_per_set: int) -> int:
        """What the clock's rotation wants: twice the L2 between two uses."""
        from harness import clock_cuda

        return min(self._most_sets, int(clock_cuda.sets_needed(bytes_per_set, self._device)))

    def free_bytes(self) -> int:
        """Of the device; what torch holds in its cache is given back first."""
        self._torch.cuda.empty_cache()
        return int(self._torch.cuda.mem_get_info(self._device)[0])
