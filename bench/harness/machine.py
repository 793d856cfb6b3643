"""Facts about the machine, the device and what is installed, without which a figure says little.

Texts by name, for the head of a run and its JSON object. No host names, no paths.
"""
from __future__ import annotations

import os
import platform
import sys
import time
from pathlib import Path
from typing import Any


def facts(device: str, threads: int, quern_version: str) -> dict[str, str]:
    """The machine's facts; "name" is the device's."""
    found = {"name": cpu_model(), "processor": processor(), "system": system(),
             "memory": memory(), "quern": quern_version, "python": platform.python_version()}
    if device == "cpu":
        clock = ", timed by its own clock" if threads == 1 else ""
        found["threads"] = f"{threads} for everyone{clock}"
        found["numpy"] = module_version("numpy")
        return found
    from harness import clock_cuda

    return {**found, **{name: str(value) for name, value in clock_cuda.facts(device).items()}}


def now() -> str:
    """Date, minute and zone."""
    return time.strftime("%Y-%m-%d %H:%M %Z")


def cpu_model() -> str:
    """As /proc/cpuinfo has it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        return platform.processor() or platform.machine()
    return platform.machine()


def processor() -> str:
    """Model, how many of it, and its caches as far as the system tells."""
    caches = "".join(f", {name} {size}" for name, size in cache_sizes())
    return f"{cpu_model()} ({platform.machine()}), {os.cpu_count()} online{caches}"


def cache_sizes() -> list[tuple[str, str]]:
    """Of the first processor, as the kernel tells them: [("L2", "2048K"), ...]; no code caches."""
    sizes = []
    for cache in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        try:
            level, kind, size = ((cache / name).read_text(encoding="ascii").strip()
                                 for name in ("level", "type", "size"))
        except OSError:
            continue  # a guest need not be told
        if kind != "Instruction":
            sizes.append((f"L{level}", size))
    return sizes


def cpu_mhz() -> float | None:
    """The greatest clock of a processor now, as the system tells it; None where it does not."""
    paths = Path("/sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq/scaling_cur_freq")
    try:
        clocks = [int(path.read_text(encoding="ascii")) / 1000 for path in paths]
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            clocks = clocks or [float(line.partition(":")[2]) for line in lines
                                if line.startswith("cpu MHz")]
    except (OSError, ValueError):
        return None
    return max(clocks, default=None)


def system() -> str:
    """Kernel and load."""
    return f"{platform.system()} {platform.release()}, load {os.getloadavg()[0]:.2f}"


def memory() -> str:
    """Installed, in GB."""
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return f"{pages / 1e9:.1f} GB"


def module_version(name: str) -> str:
    """Of a module that is already imported; "not loaded" else."""
    module: Any = sys.modules.get(name)
    return str(getattr(module, "__version__", "unknown")) if module else "not loaded"
