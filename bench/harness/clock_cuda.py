"""How a turn is timed on a CUDA device, what the device is, and what it can do at most.

    capture    launch 0 1 2 ... last 0 1 ...    one contestant, walking over the sets of the case,
                                                until a replay lasts a millisecond
    check      poison, replay, compare          what is timed, not only what was launched before
    turn       replay | event, replay, event    the first keeps the device busy while the host
                                                enqueues the rest, so that no host time is inside
                      |<-- a turn -->|          seconds a launch: between the events / launches

Sets are as many as sets_needed() says: between two uses of one, more than twice the L2 was read and
written. A contestant that waits for the device, or does else what a graph cannot hold, is launched
plainly and timed by the host, from an idle device until all its streams are idle again: launching
is inside then, and the detail says so.

Nothing here sets clocks or waits for other users of the device: it reads what NVML tells (through
nvidia-ml-py, if it is installed) while turns run, and clocks() has the last reading. One thread.
"""
from __future__ import annotations

import functools
import importlib
import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Callable
from weakref import WeakKeyDictionary

from harness.contest import Case, Contestant, check
from harness.figures import median

if TYPE_CHECKING:
    import torch

REPLAY_S = 1e-3  # of a replay, at least: its own start is lost in it
MOST_SETS = 256
MOST_LAUNCHES = 512  # of one graph, about
STEADY = 0.02  # between two successive replays, when a contestant counts as warm
MOST_WARMING = 40  # replays
SCREENED = 5  # replays
READ_EVERY = 8  # turns between two readings of the clocks

COPY_BYTES = 4 << 30
ROOF_RUNS = 10
SIDES = {"bf16": 8192, "f16": 8192, "f32": 4096}  # of the square products
DTYPES = {"bf16": "bfloat16", "f16": "float16", "f32": "float32"}


def find_torch() -> Any:
    """The module, imported when it is needed first."""
    return importlib.import_module("torch")


def index_of(device: str) -> int:
    """The device's number in torch: 1 for "cuda:1", 0 for "cuda"."""
    return int(find_torch().device(device).index or 0)


def sets_needed(bytes_per_set: int, device: str) -> int:
    """Sets of that size that together are two sets beyond twice the L2; at most MOST_SETS."""
    properties = find_torch().cuda.get_device_properties(index_of(device))
    return min(MOST_SETS, 2 * int(properties.L2_cache_size) // max(1, bytes_per_set) + 2)


# ---- Turns ----------------------------------------------------------------------------------


@dataclass
class Loop:
    """A contestant's launches, ready to be repeated on the current stream."""

    replay: Callable[[], None]
    launches: int
    is_graph: bool


class Clock:
    """The clock of one case; graphs live as long as their contestants and the clock."""

    def __init__(self, case: Case) -> None:
        self._torch = find_torch()
        self._case, self._sets, self._device = case, len(case.sets), case.device
        self._torch.cuda.set_device(case.device)
        self._stream = self._torch.cuda.Stream(case.device)
        self._events = [self._torch.cuda.Event(enable_timing=True) for _ in range(2)]
        self._loops: WeakKeyDictionary[Contestant, Loop] = WeakKeyDictionary()
        self._meter = meter_of(case.device)
        self._meter.forget()
        self._turns = 0

    def warm(self, contestant: Contestant) -> None:
        """Capture, check and replay until steady. Raises Wrong, and what its library says."""
        self._loop_of(contestant)

    def turn(self, contestant: Contestant) -> float:
        """Seconds a launch, of one replay."""
        self._turns += 1
        return self._time(self._loop_of(contestant), self._turns % READ_EVERY == 0)

    def screen(self, contestant: Contestant) -> float:
        """The median of five turns."""
        loop = self._loop_of(contestant)
        return median([self._time(loop) for _ in range(SCREENED)])

    def noise(self) -> float:
        """0: what others do on the device cannot be seen."""
        return 0.0

    def _loop_of(self, contestant: Contestant) -> Loop:
        if contestant not in self._loops:
            loop = self._record(contestant, self._launches_for(contestant))
            if contestant.computes:
                calls = loop.launches // self._sets
                check(self._case, contestant, lambda: self._complete(loop), calls)
            self._steady(loop)
            self._loops[contestant] = loop
        return self._loops[contestant]

    def _launches_for(self, contestant: Contestant) -> int:
        """As many as last REPLAY_S, every set as often as any other."""
        once = max(1e-9, self._time(self._record(contestant, self._sets)))
        rounds = min(int(REPLAY_S / (once * self._sets)), MOST_LAUNCHES // self._sets) + 1
        return rounds * self._sets

    def _record(self, contestant: Contestant, launches: int) -> Loop:
        """A graph of so many launches; without one where they cannot be captured."""
        torch = self._torch
        torch.cuda.synchronize()
        with torch.cuda.stream(self._stream):
            self._launch(contestant, min(2, self._sets))
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            why = capture(graph, lambda: self._launch(contestant, launches), self._device)
        torch.cuda.synchronize()
        if why is None:
            return Loop(graph.replay, launches, True)
        if "no graph" not in contestant.detail:
            contestant.detail += f" (no graph: {why}; by the host's clock)"
        return Loop(lambda: self._launch(contestant, launches), launches, False)

    def _launch(self, contestant: Contestant, launches: int) -> None:
        for place in range(launches):
            contestant.run(place % self._sets)

    def _complete(self, loop: Loop) -> None:
        """One replay and nothing else on the device, on whichever streams."""
        self._torch.cuda.synchronize()
        loop.replay()
        self._torch.cuda.synchronize()

    def _steady(self, loop: Loop) -> None:
        """Replay until two in succession take the same time."""
        before = self._time(loop)
        for _ in range(MOST_WARMING):
            now = self._time(loop)
            if abs(now - before) <= STEADY * before:
                return
            before = now

    def _time(self, loop: Loop, is_read: bool = False) -> float:
        """Seconds a launch; with `is_read`, the meter is read while the device works."""
        if not loop.is_graph:
            return self._time_by_host(loop)
        begin, end = self._events
        loop.replay()
        begin.record()
        loop.replay()
        end.record()
        if is_read:
            self._meter.read()
        end.synchronize()
        return float(begin.elapsed_time(end)) * 1e-3 / loop.launches

    def _time_by_host(self, loop: Loop) -> float:
        """Seconds a launch, whichever streams it went to: events see the current one alone."""
        self._torch.cuda.synchronize()
        begin = time.perf_counter()
        self._complete(loop)
        return (time.perf_counter() - begin) / loop.launches


BROKEN: list[Any] = []  # graphs whose capture failed: torch's allocator still refers to them


def capture(graph: Any, launch: Callable[[], None], device: str) -> str | None:
    """Capture what launch() does on the current stream; None, or why that cannot be.

    After a failure torch's random numbers start from a new seed: the generator would go on as if
    it were being captured.
    """
    why = None
    graph.capture_begin(capture_error_mode="relaxed")
    try:
        launch()
    except Exception as failure:  # whatever a library raises: the capture has to end first
        why = first_line(failure)
    try:
        graph.capture_end()
    except RuntimeError as failure:
        why = why or first_line(failure)
        BROKEN.append(graph)
        torch = find_torch()
        generator = torch.cuda.default_generators[index_of(device)]
        generator.graphsafe_set_state(torch.Generator(device=device))
        generator.seed()
    return why


def first_line(failure: Exception) -> str:
    """What an exception says, without torch's advice in the lines after."""
    return (str(failure).splitlines() or [type(failure).__name__])[0]


# ---- NVML -----------------------------------------------------------------------------------


class Meter:
    """NVML's readings of one device; all are empty where nvidia-ml-py or NVML is missing."""

    def __init__(self, device: str) -> None:
        self.latest: dict[str, int] = {}
        self._nvml: Any = None
        try:
            nvml = importlib.import_module("pynvml")
        except ImportError:
            return  # not installed: the figures then come without clocks
        try:
            nvml.nvmlInit()
            self._handle = nvml.nvmlDeviceGetHandleByPciBusId(bus_id(device))
            self._nvml = nvml
        except nvml.NVMLError:
            return  # no NVML on this machine, or not for this device

    def forget(self) -> None:
        """Before another case: its readings are to be its own."""
        self.latest = {}

    def read(self) -> None:
        """Clocks and power as they are now, into `latest`."""
        nvml = self._nvml
        if nvml is None:
            return
        readings = {
            "sm_mhz": self._ask("nvmlDeviceGetClockInfo", nvml.NVML_CLOCK_SM),
            "memory_mhz": self._ask("nvmlDeviceGetClockInfo", nvml.NVML_CLOCK_MEM),
            "power_mw": self._ask("nvmlDeviceGetPowerUsage"),
        }
        self.latest = {name: value for name, value in readings.items() if value is not None}

    def facts(self) -> dict[str, str]:
        """Driver, greatest SM clock, power limit."""
        nvml = self._nvml
        if nvml is None:
            return {}
        most = self._ask("nvmlDeviceGetMaxClockInfo", nvml.NVML_CLOCK_SM)
        limit = self._ask("nvmlDeviceGetEnforcedPowerLimit")
        found = {"driver": str(nvml.nvmlSystemGetDriverVersion())}
        if most is not None:
            found["clock"] = f"{most} MHz at most"
        if limit is not None:
            found["power"] = f"{limit / 1000:.0f} W at most"
        return found

    def _ask(self, call: str, *arguments: Any) -> int | None:
        """None where the device does not tell. Only with NVML."""
        try:
            return int(getattr(self._nvml, call)(self._handle, *arguments))
        except self._nvml.NVMLError:
            return None


@functools.lru_cache(maxsize=None)
def meter_of(device: str) -> Meter:
    """The device's meter, made once."""
    return Meter(device)


def bus_id(device: str) -> str:
    """PCI address, "00000000:1b:00.0"; right under CUDA_VISIBLE_DEVICES too."""
    properties = find_torch().cuda.get_device_properties(index_of(device))
    return (f"{properties.pci_domain_id:08x}:{properties.pci_bus_id:02x}:"
            f"{properties.pci_device_id:02x}.0")


def clocks(device: str) -> dict[str, int]:
    """sm_mhz, memory_mhz, power_mw: read under the last turns, else now; {} without NVML."""
    meter = meter_of(device)
    if not meter.latest:
        meter.read()
    return dict(meter.latest)


# ---- Facts ----------------------------------------------------------------------------------


def facts(device: str) -> dict[str, str]:
    """The device, its driver, and the libraries that run on it; only what is known."""
    torch = find_torch()
    properties = torch.cuda.get_device_properties(index_of(device))
    found = {
        "name": properties.name,
        "device": f"sm_{properties.major}{properties.minor}, "
                  f"{properties.multi_processor_count} SMs, "
                  f"{properties.L2_cache_size / 2**20:.0f} MiB of L2, "
                  f"{properties.total_memory / 2**30:.0f} GiB",
        "cuda": str(torch.version.cuda),
        "torch": torch.__version__,
        "triton": triton_version(),
    }
    found.update(meter_of(device).facts())
    return {name: text for name, text in found.items() if text}


def triton_version() -> str:
    """Empty where it is not installed."""
    try:
        return str(importlib.import_module("triton").__version__)
    except ImportError:
        return ""


# ---- The roof -------------------------------------------------------------------------------


def measure_roof(device: str) -> dict[str, Any]:
    """{"flops": {dtype: a second}, "bytes_per_s", "how"}; about two seconds, 8 GiB."""
    torch = find_torch()
    torch.cuda.set_device(device)
    rate, copied = copy_rate(device)
    flops = {dtype: product_rate(device, dtype) for dtype in SIDES}
    how = (f"copy of {copied / 2**30:.1f} GiB by torch, bytes read and written, best of "
           f"{ROOF_RUNS}; torch.matmul of random squares, "
           + ", ".join(f"{dtype} {side}" for dtype, side in SIDES.items())
           + f", median of {ROOF_RUNS}; f32 without TF32")
    torch.cuda.empty_cache()
    return {"flops": flops, "bytes_per_s": rate, "how": how}


def copy_rate(device: str) -> tuple[float, int]:
    """Bytes a second, reads and writes; and the size of what was copied."""
    torch = find_torch()
    free = int(torch.cuda.mem_get_info(device)[0])
    size = min(COPY_BYTES, free // 4) // 4 * 4
    source = torch.ones(size // 4, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    times = event_times(lambda: target.copy_(source), 2)
    return 2.0 * size / min(times), size


def product_rate(device: str, dtype: str) -> float:
    """Flops a second of a square product of random numbers."""
    torch = find_torch()
    side = SIDES[dtype]
    kind = getattr(torch, DTYPES[dtype])
    a, b = (torch.empty(side, side, dtype=torch.float32, device=device).uniform_(-1, 1).to(kind)
            for _ in range(2))
    out = torch.empty(side, side, dtype=kind, device=device)
    was_tf32 = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    times = event_times(lambda: torch.matmul(a, b.mT, out=out), ROOF_RUNS)
    torch.backends.cuda.matmul.allow_tf32 = was_tf32
    return float(2.0 * math.pow(side, 3) / median(times))


def event_times(call: Callable[[], torch.Tensor], warming: int) -> list[float]:
    """Seconds of ROOF_RUNS calls, one right behind the other, after `warming` more."""
    cuda = find_torch().cuda
    events = [cuda.Event(enable_timing=True) for _ in range(ROOF_RUNS + 1)]
    for _ in range(warming):
        call()
    events[0].record()
    for event in events[1:]:
        call()
        event.record()
    events[-1].synchronize()
    return [begin.elapsed_time(end) * 1e-3 for begin, end in zip(events, events[1:])]
